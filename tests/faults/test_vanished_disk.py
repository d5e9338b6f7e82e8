"""A disk that runs out of inodes while recording: said in a sentence, and what was there is there again."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from sessions import (
    FORCE,
    IMU,
    Session,
    check_balance,
    check_verifies,
    grant,
    sealed,
    sensorium,
    write_rig,
)

_INODES = 400


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, in memory, with few inodes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    options = f"size=300m,nr_inodes={_INODES}"
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip(f"this machine does not let us mount a small disk: {done.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=False, capture_output=True)


def _take_inodes(folder: Path) -> list[Path]:
    taken: list[Path] = []
    try:
        while True:
            path = folder / f"ballast-{len(taken)}"
            path.touch()
            taken.append(path)
    except OSError:
        return taken


@pytest.mark.slow
def test_a_disk_without_inodes_is_said_and_nothing_is_lost(disk: Path, tmp_path: Path) -> None:
    rig = write_rig(tmp_path, {"imu": IMU, "force": FORCE})
    spool = disk / "spool"
    grant(spool)
    with Session("record", rig, "--json", "--spool", spool, spool=spool) as session:
        session.until_recorded(0.5, ["imu", "force"])
        taken = _take_inodes(disk)
        assert taken
        run_dir = session.run_dir
        done = session.finish(signal.SIGINT)
    said = done.out + done.err
    assert "Traceback" not in said
    for path in taken:
        path.unlink()
    if not sealed(spool):
        assert done.code == 3
        assert "No space left on device" in said
        assert sensorium("episodes", "recover", "--spool", spool).code == 0
    (episode,) = sealed(spool)
    check_verifies(episode)
    check_balance([episode], run_dir, is_contiguous=False)
    again = sensorium("record", rig, "--seconds", 1, "--json", "--spool", spool)
    assert again.code == 0, again.err
