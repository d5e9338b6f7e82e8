"""A disk that fills up while recording: capture ends loudly, and what was recorded is whole and balanced."""

import errno
import os
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
    dropped_at,
    grant,
    read_manifest,
    sealed,
    sensorium,
    until,
    write_rig,
)
from small_disk import mount_small_disk

from sensorium.agent.session.control import AGENT_FILE

DISK_MIB = 300
MIN_FREE_MIB = 64
"""``WriterPolicy.min_free_bytes``: capture stops before the disk is quite full."""
CAMERA = {"driver": "sim_camera", "size": [640, 480], "rate_hz": 60.0, "render": "cached", "quality": 95}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, in memory: room for half a minute of the rig above what must stay free."""
    folder = tmp_path / "disk"
    mount_small_disk(folder, f"size={DISK_MIB}m")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path, leave_mib: float) -> Path:
    """Take all but so much of the disk; again where the recorder took some between the two calls."""
    ballast = disk / "ballast"
    with ballast.open("wb") as file:
        for _ in range(100):
            found = os.statvfs(disk)
            size = found.f_bavail * found.f_frsize - int(leave_mib * (1 << 20))
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as err:
                if err.errno != errno.ENOSPC:
                    raise
            else:
                return ballast
    raise AssertionError(f"the recorder was faster a hundred times; {size} bytes were free last")


def test_a_disk_that_runs_full_ends_capture_loudly_and_nothing_goes_uncounted(disk: Path) -> None:
    rig = write_rig(disk, {"camera_left": CAMERA, "imu": IMU, "force": FORCE})
    spool = disk / "spool"
    grant(spool)
    with Session("record", rig, "--json", spool=spool) as session:
        session.until_recorded(0.5, ["camera_left", "imu", "force"])
        ballast = fill(disk, MIN_FREE_MIB + 2)
        run_dir = session.run_dir
        done = session.finish()
    assert done.code == 3
    (problem,) = done.document["problems"]
    assert "capture stopped" in problem
    assert "MiB free" in problem
    assert "Free space or choose another spool" in problem
    (episode,) = done.episodes
    assert not read_manifest(episode).truncated
    check_verifies(episode)
    check_balance([episode], run_dir, is_contiguous=False)
    ballast.unlink()
    again = sensorium("record", rig, "--seconds", 1, "--json")
    assert again.code == 0, again.err
    assert again.document["problems"] == []


def test_a_disk_that_fills_at_once_books_what_it_did_not_take_to_the_writer(disk: Path) -> None:
    rig = write_rig(disk, {"camera_left": CAMERA, "imu": IMU, "force": FORCE})
    spool = disk / "spool"
    grant(spool)
    with Session("record", rig, "--json", spool=spool) as session:
        session.until_recorded(1.5, ["camera_left", "imu", "force"])
        ballast = fill(disk, 0)  # somebody else took it all between two looks
        run_dir = session.run_dir
        done = session.finish()
    ballast.unlink()
    assert done.code == 3, done.err
    assert "capture stopped" in done.out + done.err
    if not sealed(spool):  # there was no room for the manifest
        assert sensorium("episodes", "recover", "--spool", spool).code == 0
    (episode,) = sealed(spool)
    check_verifies(episode)
    check_balance([episode], run_dir, is_contiguous=False)
    manifest = read_manifest(episode)
    lost = sum(
        (dropped_at([manifest], name) for name in ("camera_left", "imu", "force")), start=dropped_at([], "")
    )
    # A machine too slow to fill a chunk between two looks at the disk's room loses nothing: the reserve takes it.
    was_refused = "could not be written" in done.out + done.err
    assert lost["writer"] > 0 or manifest.truncated or not was_refused
    again = sensorium("record", rig, "--seconds", 1, "--json")
    assert again.code == 0, again.err


def test_a_disk_without_room_refuses_to_start_with_one_line(disk: Path) -> None:
    rig = write_rig(disk, {"imu": IMU})
    fill(disk, 0.5)
    done = sensorium("record", rig)
    assert done.code == 3
    assert "free space" in done.err.lower() or "no space left" in done.err.lower(), done.err
    assert len([line for line in done.err.splitlines() if line.startswith("sensorium:")]) == 1


def test_a_spool_that_cannot_be_written_is_refused_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "spool").write_text("not a folder")
    done = sensorium("record", write_rig(tmp_path, {"imu": IMU}))
    assert done.code in (2, 3)
    assert len(done.err.splitlines()) == 1
    assert "spool" in done.err


def test_a_spool_that_holds_its_quota_ends_capture_loudly_and_deletes_nothing(tmp_path: Path) -> None:
    rig = write_rig(tmp_path, {"camera_left": CAMERA, "imu": IMU}, disk={"quota_gb": 0.05})
    spool = tmp_path / "spool"
    grant(spool)
    with Session("record", rig, "--json", spool=spool) as session:
        status = session.until_recorded(1.1, ["camera_left", "imu"])
        assert 0 < status["disk"]["free_bytes"] < 50_000_000
        until(
            lambda: 0 < (session.status() or status)["disk"]["minutes_left"] < 1,
            "a rate of more than a chunk",
        )
        run_dir = session.run_dir
        done = session.finish()
    assert done.code == 3
    (problem,) = done.document["problems"]
    assert "capture stopped: the spool holds its quota of 0.05 GB" in problem
    (episode,) = done.episodes
    check_verifies(episode)
    check_balance([episode], run_dir, is_contiguous=False)  # drivers go on until they are told


def test_a_process_that_is_replaced_on_a_full_disk_does_not_end_the_session(tmp_path: Path) -> None:
    """The note of which processes run cannot be renewed then; capture goes on until the recorder finds no room."""
    spool = tmp_path / "spool"
    with Session("record", write_rig(tmp_path, {"imu": IMU}), "--json", spool=spool) as session:
        session.until_recorded(0.5, ["imu"])
        (spool / "run" / f".{AGENT_FILE}").symlink_to("/dev/full")
        session.kill("thinker")
        until(lambda: not (session.status() or {})["thinking"]["connected"], "its end is seen")
        until(lambda: (session.status() or {})["thinking"]["connected"], "the next thinker")
        done = session.finish(signal.SIGINT)
    assert done.code == 0, done.err
    check_verifies(*done.episodes)
