"""Attacks that launder an episode by copying it elsewhere and recording its replay there."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from sessions import Done, sensorium

from sensorium.sync.episode.chain import seal
from sensorium.sync.episode.files import MANIFEST_FILE
from sensorium.sync.episode.manifest import ConsentRecord, read_manifest


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a demo whose grant is live; copy before use."""
    out = tmp_path_factory.mktemp("demo")
    assert sensorium("demo", "--seconds", "2", "--out", out, "--json", timeout_s=120).code == 0
    return out


@pytest.fixture
def demo(recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the demo, on a machine of its own: a withdrawal in one test is known to no other."""
    home = shutil.copytree(os.environ["SENSORIUM_HOME"], tmp_path / "home")
    monkeypatch.setenv("SENSORIUM_HOME", str(home))
    return Path(shutil.copytree(recorded, tmp_path / "demo"))


def copied(demo: Path, tmp_path: Path) -> Path:
    """Return a copy of the demo's episode with nothing of its spool beside it."""
    (episode,) = (demo / "spool" / "sealed").iterdir()
    return Path(shutil.copytree(episode, tmp_path / "elsewhere" / "sealed" / episode.name))


def replayed(episode: Path, spool: Path) -> tuple[Done, set[str], set[str]]:
    """Return the replay, the personal streams that it stored something of, and those that it did not."""
    done = sensorium("replay", episode, "--rate", "max", "--spool", spool, "--json", timeout_s=120)
    stored: set[str] = set()
    denied: set[str] = set()
    for folder in (spool / "sealed").iterdir() if (spool / "sealed").is_dir() else ():
        for record in read_manifest(folder).streams:
            if record.info.is_personal:
                (stored if record.total.recorded else denied).add(record.info.name)
    return done, stored, denied


def test_a_copy_is_not_replayed_where_its_grants_are_not_known(demo: Path, tmp_path: Path) -> None:
    _, stored, denied = replayed(copied(demo, tmp_path), tmp_path / "spool")
    assert stored == set()
    assert denied


def test_a_grant_made_here_does_not_speak_for_those_of_the_source(demo: Path, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    assert sensorium("consent", "grant", "sub:x", "--spool", spool).code == 0
    _, stored, _ = replayed(copied(demo, tmp_path), spool)
    assert stored == set()


@pytest.mark.parametrize("is_withdrawn", [False, True])
def test_a_copy_follows_the_decisions_of_its_grants_as_they_are_now(
    demo: Path, tmp_path: Path, is_withdrawn: bool
) -> None:
    episode = copied(demo, tmp_path)
    if is_withdrawn:
        assert sensorium("consent", "withdraw", "site:demo", "--spool", demo / "spool").code == 0
    spool = tmp_path / "spool"
    shutil.copytree(demo / "spool" / "consent", spool / "consent")
    _, stored, denied = replayed(episode, spool)
    assert bool(stored) is not is_withdrawn
    assert bool(denied) is is_withdrawn
    store = (tmp_path / "central").as_uri()
    uploaded = sensorium("upload", "--once", "--spool", spool, "--store", store, timeout_s=120)
    assert uploaded.code == 0 or is_withdrawn


def test_a_replay_is_not_uploaded_after_the_withdrawal(demo: Path, tmp_path: Path) -> None:
    episode = copied(demo, tmp_path)
    spool = tmp_path / "spool"
    shutil.copytree(demo / "spool" / "consent", spool / "consent")
    _, stored, _ = replayed(episode, spool)
    assert stored
    assert sensorium("consent", "withdraw", "site:demo", "--spool", spool).code == 0
    store = (tmp_path / "central").as_uri()
    assert (
        sensorium("upload", "--once", "--spool", spool, "--store", store, "--json", timeout_s=120).code == 0
    )
    names = {path.name.partition("-")[0] for path in (tmp_path / "central").rglob("*.mcap")}
    assert names == {"data", "plots", "sync"}  # the withdrawal erased what was personal; nothing else was his


def test_a_consent_folder_from_before_the_withdrawal_is_found(demo: Path, tmp_path: Path) -> None:
    episode = copied(demo, tmp_path)
    shutil.copytree(demo / "spool" / "consent", episode.parent.parent / "consent")
    assert sensorium("consent", "withdraw", "site:demo", "--spool", demo / "spool").code == 0
    _, stored, _ = replayed(episode, tmp_path / "spool")
    assert stored == set()


def test_a_stranger_who_seals_a_camera_as_not_personal_is_not_believed(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The episode is edited and sealed anew by a key that nobody knows here."""
    episode = copied(demo, tmp_path)
    monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path / "stranger"))
    manifest = read_manifest(episode)
    streams = tuple(
        replace(each, info=replace(each.info, is_personal=False), consent=ConsentRecord())
        for each in manifest.streams
    )
    open_folder = tmp_path / "forged" / "open" / episode.name
    open_folder.parent.mkdir(parents=True)
    shutil.copytree(episode, open_folder)
    (open_folder / MANIFEST_FILE).unlink()
    forged = seal(open_folder, replace(manifest, streams=streams, files=()))
    monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path / "home"))
    done, _, _ = replayed(forged, tmp_path / "spool")
    assert done.code != 0
    assert "was recorded as personal" in done.out + done.err
    assert not list((tmp_path / "spool").glob("*/*/*.mcap"))
