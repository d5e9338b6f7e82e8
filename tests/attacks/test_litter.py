"""What desktops, NAS boxes and editors leave: in every command it is a remark, and never a file of the episode."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner
from upload_samples import CAPTURED, EPISODE_ID, begin_spool, grant_for, seal_episode

from sensorium.agent.cli import app
from sensorium.sync.consent.store import ConsentStore
from sensorium.sync.episode.files import is_litter
from sensorium.sync.episode.manifest import read_manifest
from sensorium.sync.episode.reader import Episode
from sensorium.sync.episode.spool import Spool
from sensorium.timebase import SECOND_NS, HostClock

_CASE = Path("/work/shared/cases/folder_litter.py")

FILES = (
    "._cam.mcap",
    "._data.mcap",
    "._manifest.json",
    ".DS_Store",
    ".data.mcap.swp",
    ".nfs000000000123",
    ".fuse_hidden00000001",
    ".~lock.report.html#",
    "Thumbs.db",
    "thumbs.db",
    "Desktop.ini",
    "~$report.html",
    "report.html~",
    "data.mcap:Zone.Identifier",
    "Icon\r",
)
FOLDERS = (
    "@eaDir",
    ".@__thumb",
    ".AppleDouble",
    "__MACOSX",
    "#recycle",
    "System Volume Information",
    "lost+found",
)


def run(*words: object) -> str:
    """Return what a command printed; it must be content."""
    found = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    return found.stdout


def litter(folder: Path) -> int:
    """Leave one of everything in a folder; return how many."""
    for name in FILES:
        (folder / name).write_bytes(b"\x00\x05\x16\x07" + bytes(100))
    for name in FOLDERS:
        (folder / name).mkdir()
        (folder / name / "data.mcap").write_bytes(bytes(64))
        (folder / name / "data.mcap@SynoEAStream").write_bytes(bytes(64))
    return len(FILES) + len(FOLDERS)


@pytest.fixture
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Spool:
    """A spool with one sound episode and a live grant, littered on every level."""
    monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path / "home"))
    spool, _ = begin_spool(tmp_path / "spool")
    captured = (CAPTURED[0] - SECOND_NS, CAPTURED[1] + SECOND_NS)
    grant = grant_for(captured=captured, valid_around_ns=HostClock().utc_ns())
    ConsentStore(spool.root / "consent").grant(grant)
    litter(seal_episode(spool))
    for folder in (spool.root, spool.sealed_dir, spool.open_dir, spool.root / "consent"):
        litter(folder)
    return spool


def test_every_name_of_the_list_is_litter() -> None:
    assert [name for name in (*FILES, *FOLDERS) if not is_litter(name)] == []
    assert not any(is_litter(name) for name in ("data.mcap", "manifest-2.json", "notes.txt", "cam.mcap.bak"))


def test_verify_says_of_each_that_it_is_there_and_finds_no_fault(spool: Spool) -> None:
    folder = spool.sealed_folder(EPISODE_ID)
    remarks = json.loads(run("episodes", "verify", str(folder), "--json"))["remarks"]
    unsaid = [name for name in (*FILES, *FOLDERS) if not any(name in remark for remark in remarks)]
    assert unsaid == []


def test_list_show_recover_and_the_verification_of_the_spool_work(spool: Spool) -> None:
    before = sorted(path for path in spool.root.rglob("*") if path.is_file() and path.name != "lock")
    folder = spool.sealed_folder(EPISODE_ID)
    run("episodes", "show", str(folder), "--json")
    run("episodes", "recover", "--spool", str(spool.root), "--json")
    run("episodes", "verify", "--spool", str(spool.root), "--json")
    run("consent", "show", "--spool", str(spool.root), "--json")
    rows = json.loads(run("episodes", "list", "--spool", str(spool.root), "--json"))["episodes"]
    assert [row["episode"] for row in rows] == [EPISODE_ID]
    assert sorted(path for path in spool.root.rglob("*") if path.is_file() and path.name != "lock") == before


def test_it_is_read_as_if_nothing_lay_there(spool: Spool) -> None:
    with Episode(spool.sealed_folder(EPISODE_ID)) as episode:
        assert sorted(episode.streams) == ["cam", "lidar", "mic"]


def test_it_is_delivered_evicted_and_verified_in_the_store_and_no_litter_is_sent(
    spool: Spool, tmp_path: Path
) -> None:
    store = (tmp_path / "central").as_uri()
    words = ["--spool", str(spool.root), "--store", store, "--json"]
    files = read_manifest(spool.sealed_folder(EPISODE_ID)).files
    run("upload", "--once", *words)
    sent = list((tmp_path / "central" / "episodes" / EPISODE_ID).iterdir())
    assert len(sent) == len(files) + 2  # the manifest, and what may be done with it
    litter(tmp_path / "central")
    litter(tmp_path / "central" / "episodes" / EPISODE_ID)
    run("upload", "verify", *words)
    run("episodes", "evict", *words)
    assert not any(path.suffix == ".mcap" for path in (spool.gone_dir / EPISODE_ID).iterdir())
    run("episodes", "verify", str(tmp_path / "central" / "episodes" / EPISODE_ID), "--json")


@pytest.mark.skipif(not _CASE.is_file(), reason="the case's generator is not on this machine")
def test_the_littered_case_verifies(spool: Spool, tmp_path: Path) -> None:
    for path in spool.sealed_folder(EPISODE_ID).iterdir():
        if is_litter(path.name):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    subprocess.run(
        [sys.executable, str(_CASE), str(spool.sealed_folder(EPISODE_ID))], check=True, capture_output=True
    )
    run("episodes", "verify", str(spool.sealed_folder(EPISODE_ID)))
    run("episodes", "show", str(spool.sealed_folder(EPISODE_ID)))
