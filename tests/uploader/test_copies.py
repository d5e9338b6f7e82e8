"""Several stores of one episode, and the commands that delete it and look after it."""

from pathlib import Path

import pytest
from sessions import Done
from typer.testing import CliRunner
from upload_samples import CAPTURED, EPISODE_ID, begin_spool, grant_for, seal_episode

from sensorium.agent.cli import app
from sensorium.errors import SensoriumError
from sensorium.sync.consent.store import ConsentStore
from sensorium.sync.episode.manifest import read_manifest
from sensorium.sync.episode.spool import Spool
from sensorium.sync.episode.verify import examine
from sensorium.timebase import SECOND_NS, HostClock
from sensorium.uploader.copies import copies
from sensorium.uploader.stores.directory import DirectoryStore


def sensorium(*words: object) -> Done:
    """Run a command in this process: a fifth of a second less each."""
    found = CliRunner().invoke(app, [str(word) for word in words])
    if isinstance(found.exception, SensoriumError):
        return Done(found.exception.exit_code, found.stdout, str(found.exception))
    assert found.exception is None or isinstance(found.exception, SystemExit), found.exception
    return Done(found.exit_code, found.stdout, found.stderr)


@pytest.fixture
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Spool:
    """A spool with one sound episode and a live grant."""
    monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path / "home"))
    spool, _ = begin_spool(tmp_path / "spool")
    captured = (CAPTURED[0] - SECOND_NS, CAPTURED[1] + SECOND_NS)
    grant = grant_for(captured=captured, valid_around_ns=HostClock().utc_ns())
    ConsentStore(spool.root / "consent").grant(grant)
    seal_episode(spool)
    return spool


def stored(folder: Path) -> list[str]:
    return sorted(
        info.key.rpartition("/")[2] for info in DirectoryStore(folder).list(f"episodes/{EPISODE_ID}/")
    )


def upload(spool: Spool, folder: Path) -> dict[str, object]:
    done = sensorium("upload", "--once", "--spool", spool.root, "--store", folder.as_uri(), "--json")
    found: dict[str, object] = done.document["verification"]
    return found


def test_what_is_withdrawn_goes_from_the_stores_of_before_too(spool: Spool, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert upload(spool, first)["status"] == "verified"
    assert upload(spool, second)["status"] == "verified"
    folder = spool.sealed_folder(EPISODE_ID)
    assert copies(folder) == {first.as_uri(): 1, second.as_uri(): 1}
    assert examine(folder).is_proven
    words = ("--spool", spool.root, "--json")
    told = sensorium("consent", "withdraw", grant_for().id, *words).document["in_stores"][EPISODE_ID]
    assert first.as_uri() in told
    assert second.as_uri() in told
    aside = tmp_path / "aside"
    first.rename(aside)  # the store of before is away, say unplugged
    first.parent.joinpath("first").write_text("not a folder")
    done = upload(spool, second)
    assert not any(name.startswith(("cam", "mic")) for name in stored(second))
    remarks = done["remarks"]
    assert isinstance(remarks, list)
    assert any(first.as_uri() in remark and "may still have" in remark for remark in remarks)
    first.unlink()
    aside.rename(first)
    assert not any("may still have" in remark for remark in upload(spool, second)["remarks"])  # type: ignore[attr-defined]
    assert not any(name.startswith(("cam", "mic")) for name in stored(first))
    assert "manifest-2.json" in stored(first)


def test_a_record_of_the_stores_that_was_edited_is_found(spool: Spool, tmp_path: Path) -> None:
    upload(spool, tmp_path / "first")
    upload(spool, tmp_path / "second")
    (record,) = (spool.root / "stores").iterdir()
    record.write_bytes(record.read_bytes().replace(b"a", b"b", 3))
    sensorium("consent", "withdraw", grant_for().id, "--spool", spool.root)
    remarks = upload(spool, tmp_path / "second")["remarks"]
    assert isinstance(remarks, list)
    assert any("counts for nothing" in remark and "is not known" in remark for remark in remarks)


def test_deleting_says_why_takes_the_store_along_and_is_listed(spool: Spool, tmp_path: Path) -> None:
    store = tmp_path / "central"
    upload(spool, store)
    folder = spool.sealed_folder(EPISODE_ID)
    words = ("--spool", spool.root, "--json")
    assert sensorium("episodes", "delete", folder, "--reason", " ", *words).code == 2
    dry = sensorium("episodes", "delete", folder, "--reason", "wrong room", "--dry-run", *words)
    assert dry.code == 0
    assert dry.document["episodes"][0]["state"] == "would be deleted"
    assert examine(folder).is_proven
    # A folder that was named lies in its own spool, whichever the command would take else.
    elsewhere = ("--dry-run", "--spool", tmp_path / "none")
    assert sensorium("episodes", "delete", folder, "--reason", "wrong room", *elsewhere).code == 0
    assert sensorium("episodes", "evict", folder, "--store", store.as_uri(), *elsewhere).code == 0
    assert sensorium("episodes", "delete", store, "--reason", "wrong room", *elsewhere).code == 2
    done = sensorium("episodes", "delete", folder, "--reason", "wrong room", *words)
    assert done.code == 0
    assert done.document["episodes"][0]["freed_bytes"] > 0
    assert not folder.exists()
    listed = sensorium("episodes", "list", *words).document["episodes"]
    assert [(row["episode"], row["state"]) for row in listed] == [(EPISODE_ID, "deleted")]
    assert "wrong room" in read_manifest(spool.gone_dir / EPISODE_ID).tombstones[0].reason
    upload(spool, store)
    assert not any(name.endswith(".mcap") for name in stored(store))
    assert sensorium("episodes", "delete", tmp_path / "nothing", "--reason", "x", *words).code == 2


def test_an_episode_that_was_evicted_and_put_back_is_not_deleted_half(spool: Spool, tmp_path: Path) -> None:
    store = tmp_path / "central"
    upload(spool, store)
    folder = spool.sealed_folder(EPISODE_ID)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    words = ("--spool", spool.root, "--json")
    assert sensorium("episodes", "evict", folder, "--store", store.as_uri(), *words).code == 0
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    done = sensorium("episodes", "delete", folder, "--reason", "twice", *words)
    assert done.code == 3
    assert "put back" in done.err
    assert not (folder / "manifest-2.json").exists(), "nothing was signed before it was refused"


def test_what_the_store_lost_is_found_by_upload_verify(spool: Spool, tmp_path: Path) -> None:
    store = tmp_path / "central"
    upload(spool, store)
    words = ("upload", "verify", "--spool", spool.root, "--store", store.as_uri(), "--json")
    good = sensorium(*words)
    assert (good.code, good.document["episodes"][0]["state"]) == (0, "verified")
    victim = next((store / "episodes" / EPISODE_ID).glob("cam-*.mcap"))
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    lost = sensorium(*words)
    assert (lost.code, lost.document["episodes"][0]["state"]) == (1, "lost")
    assert "reads back differently" in lost.document["episodes"][0]["reasons"][0]
    assert sensorium("upload", "verify", "--spool", spool.root, "--json").code == 2
