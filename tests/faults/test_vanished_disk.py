"""A disk that runs out of inodes, or is gone, while recording: said in a sentence, and nothing recorded is lost."""

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from power_cut_disk import make_disk, mounted, why_not
from sessions import (
    FORCE,
    IMU,
    Session,
    check_balance,
    check_verifies,
    grant,
    read_manifest,
    sealed,
    sensorium,
    write_rig,
)
from small_disk import mount_small_disk

_INODES = 400


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, in memory, with few inodes."""
    folder = tmp_path / "disk"
    mount_small_disk(folder, f"size=300m,nr_inodes={_INODES}")
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


@pytest.mark.slow
@pytest.mark.skipif(bool(why_not()), reason=why_not() or "it can be had")
def test_a_disk_that_is_unmounted_is_said_and_what_lies_on_it_is_recovered(tmp_path: Path) -> None:
    rig = write_rig(tmp_path, {"imu": IMU, "force": FORCE})
    image, mount = tmp_path / "disk.img", tmp_path / "disk"
    mount.mkdir()
    make_disk(image)
    subprocess.run(["mount", "-o", "loop", image, mount], check=True)
    spool = mount / "spool"
    grant(spool)
    with Session("record", rig, "--json", "--spool", spool, spool=spool) as session:
        session.until_flushed(0.5, ["imu", "force"])
        subprocess.run(["umount", "-l", mount], check=True)
        done = session.finish()
    assert done.code == 3
    said = [line for line in done.err.splitlines() if line.startswith("sensorium:")]
    assert len(said) == 1, done.err
    assert f"the disk of spool {spool} is gone" in said[0]
    assert "sensorium episodes recover" in said[0]
    assert not spool.exists(), "nothing was written where the disk was"
    with mounted(image, mount):
        assert sensorium("episodes", "recover", "--spool", spool).code == 0
        (episode,) = sealed(spool)
        check_verifies(episode)
        assert all(stream.total.recorded for stream in read_manifest(episode).streams)
        again = sensorium("record", rig, "--seconds", 1, "--json", "--spool", spool)
        assert again.code == 0, again.err
