"""Ten accelerated minutes while the disk stalls: memory stays bounded, the rest is dropped at the source."""

import shutil
import subprocess
from pathlib import Path

import pytest
from sessions import (
    CLOCK,
    Session,
    check_balance,
    check_verifies,
    dropped_at,
    read_manifest,
    resident_bytes,
    until,
    write_rig,
)

from sensorium.timebase import SECOND_NS

MINUTES = 10
SPEED = 25.0
BUDGET_MB = 8
SAMPLE_NS = SECOND_NS // 10
GROWTH_BYTES = 20 << 20
STALL_US = 300_000
STALL_EVERY = 6
"""Of the writes to the disk, one in six takes 0.3 s longer."""


def stalling_disk(pid: int) -> "subprocess.Popen[str]":
    """Make the file writes of a process slow; its sockets stay as they are."""
    if shutil.which("strace") is None:
        pytest.skip("strace, which makes the disk stall, is not installed here")
    inject = f"inject=writev,fdatasync:delay_enter={STALL_US}:when=1+{STALL_EVERY}"
    return subprocess.Popen(
        [
            "strace",
            "-f",
            "-qq",
            "-o",
            "/dev/null",
            "-p",
            str(pid),
            "-e",
            "trace=writev,fdatasync",
            "-e",
            inject,
        ],
        stderr=subprocess.PIPE,
        text=True,
    )


def test_memory_stays_bounded_over_ten_minutes_with_a_disk_that_stalls(tmp_path: Path) -> None:
    common = {"speed": SPEED, "seconds": 60.0 * MINUTES, "start_ns": CLOCK.now_ns() + 4 * SECOND_NS}
    camera = {"driver": "sim_camera", "size": [320, 240], "render": "cached", "personal": False}
    rig = {
        "camera_left": {**camera, **common},
        "imu": {"driver": "sim_imu", **common},
        "force": {"driver": "sim_force", "rate_hz": 500.0, **common},
    }
    spool = tmp_path / "spool"
    rig_file = write_rig(tmp_path, rig, recorder={"memory_mb": BUDGET_MB})
    with Session("record", rig_file, "--json", spool=spool) as session:
        pid = until(lambda: session.note_processes().get("synchronizer"), "the synchronizer")
        session.until_recorded(20.0)
        run_dir = session.run_dir
        tracer = stalling_disk(pid)
        rss: list[int] = []
        while size := resident_bytes(pid):
            rss.append(size)
            CLOCK.sleep_until(CLOCK.now_ns() + SAMPLE_NS)
        done = session.finish()
        _, trouble = tracer.communicate(timeout=30.0)  # it ends with what it traced
    if "not permitted" in trouble:
        pytest.skip("this machine does not let us trace a process")
    assert done.code in (0, 1), done.err
    half = len(rss) // 2
    first, second = max(rss[:half]), max(rss[half:])
    print(f"largest RSS {first / 2**20:.1f} MiB, then {second / 2**20:.1f} MiB over {len(rss) / 10:.0f} s")
    assert second <= first + GROWTH_BYTES
    manifests = [read_manifest(path) for path in done.episodes]
    recorded_s = sum(m.end_utc_ns - m.start_utc_ns for m in manifests) / SECOND_NS
    assert recorded_s > 60 * MINUTES - 30
    assert dropped_at(manifests, "camera_left")["bus"] > 0
    assert "writer" not in dropped_at(manifests, "camera_left")
    check_balance(done.episodes, run_dir)
    check_verifies(*done.episodes)
