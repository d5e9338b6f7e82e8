"""A disk that stands still as a whole (a file system that is frozen): nobody but its own threads waits for it."""

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from sessions import Session, check_balance, check_verifies, pass_time, read_manifest, until

BENCH = Path(__file__).resolve().parents[1] / "bench"
sys.path.insert(0, str(BENCH))

from rigs import loads  # noqa: E402
from rigs.producers import Run, environment, prepare, start_all  # noqa: E402

WALL_S = 9.0
SPLIT_S = 4.0
STALL_S = 1.5
"""72 MB/s for so long are 108 MB of the 256 MB that may be under way."""
_FREEZE, _THAW = 0xC0045877, 0xC0045878  # FIFREEZE, FITHAW of linux/fs.h


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own whose blocks lie in memory."""
    if os.geteuid() != 0 or not Path("/dev/loop-control").exists() or shutil.which("mkfs.ext4") is None:
        pytest.skip("a disk that can be frozen needs root, loop devices and mkfs.ext4")
    mount = tmp_path / "disk"
    mount.mkdir()
    with tempfile.NamedTemporaryFile(prefix="frozen-", dir="/dev/shm") as image:
        image.truncate(3 << 30)
        subprocess.run(["mkfs.ext4", "-q", "-E", "lazy_itable_init=1", image.name], check=True)
        done = subprocess.run(["mount", "-o", "loop,nobarrier", image.name, mount], check=False)
        if done.returncode:
            pytest.skip("this machine does not let us mount a file system")
        yield mount
        subprocess.run(["umount", "-l", mount], check=True)


@contextlib.contextmanager
def frozen(disk: Path) -> Iterator[None]:
    """Let every write to a disk wait."""
    descriptor = os.open(disk, os.O_RDONLY)
    try:
        fcntl.ioctl(descriptor, _FREEZE, 0)
        try:
            yield
        finally:
            fcntl.ioctl(descriptor, _THAW, 0)
    finally:
        os.close(descriptor)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    loads.write_pools(tmp_path / "pools" / "opaque", "opaque")
    found = Run("opaque", 1, WALL_S, tmp_path / "run")
    prepare(found, tmp_path / "pools")
    monkeypatch.setenv("PYTHONPATH", environment(found.folder)["PYTHONPATH"])
    return found


def recording(run: Run, spool: Path) -> Session:
    devices = {name: {"driver": loads.ENTRY_POINT, **run.options} for name in run.streams}
    episode = {"max_s": SPLIT_S, "reference": "cam0"}
    rig = run.folder / "rig.yaml"
    rig.write_text(yaml.safe_dump({"rig": "frozen", "devices": devices, "episode": episode}))
    return Session("record", rig, "--spool", spool, "--json", spool=spool)


@contextlib.contextmanager
def split_while_frozen(run: Run, session: Session, disk: Path) -> Iterator[None]:
    """Record until shortly before a split, and hold the disk from then on; entered once the split is done."""
    until(lambda: all((run.folder / f"{name}.ready").exists() for name in run.streams), "drivers", 60.0)
    start_all(run)
    first = session.until_recorded(SPLIT_S - 0.5 * STALL_S)["episode"]
    with frozen(disk):
        until(lambda: (session.status() or {}).get("episode") not in (None, first), "a split", STALL_S)
        yield


def test_an_episode_is_split_while_the_disk_stands_still_and_nothing_is_lost(run: Run, disk: Path) -> None:
    spool = disk / "spool"
    with recording(run, spool) as session:
        with split_while_frozen(run, session, disk):
            pass_time(0.5)
            status = session.status()
            assert status is not None
            assert status["recorded_s"] > 0.4
        run_dir = session.run_dir
        done = session.finish(timeout_s=90.0)
    assert done.code in (0, 1), done.err
    assert len(done.episodes) >= 2
    for episode in done.episodes:
        for record in read_manifest(episode).streams:
            assert not record.total.dropped, f"{record.info.name}: {record.total.dropped}"
    check_balance(done.episodes, run_dir)
    check_verifies(*done.episodes)
    assert not list(spool.glob("open/*"))


def test_a_recorder_killed_while_a_split_waits_for_the_disk_leaves_balances_that_meet(
    run: Run, disk: Path
) -> None:
    spool = disk / "spool"
    with recording(run, spool) as session:
        with split_while_frozen(run, session, disk):
            pass_time(0.2)
            session.kill("synchronizer")
        run_dir = session.run_dir
        done = session.finish(timeout_s=90.0)
    assert done.code in (0, 1), done.err
    assert len(done.episodes) >= 3
    assert [read_manifest(episode).truncated for episode in sorted(done.episodes)[:3]] == [True, True, False]
    check_balance(done.episodes, run_dir)  # no sample stands in two episodes, and none in none
    check_verifies(*done.episodes)


def test_files_that_were_made_ahead_for_an_episode_that_never_began_are_removed(tmp_path: Path) -> None:
    rig = tmp_path / "rig.yaml"
    devices = {"imu": {"driver": "sim_imu"}}
    rig.write_text(yaml.safe_dump({"rig": "ahead", "devices": devices, "episode": {"max_s": 3.0}}))
    spool = tmp_path / "spool"
    with Session("record", rig, "--spool", spool, "--json", spool=spool) as session:
        first = session.until_recorded(0.1)["episode"]
        until(lambda: len(list(spool.glob("open/*/.prepared"))) == 1, "files of the next episode")
        session.kill("synchronizer")
        until(lambda: (session.status() or {}).get("episode") not in (None, first), "another recorder")
        session.until_recorded(0.5)
        done = session.finish(2)
    assert done.episodes[0].name == first
    assert len(done.episodes) == 2
    assert not list(spool.glob("open/*"))
