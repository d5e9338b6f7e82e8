"""A disk that stalls: a file system of its own that is frozen for a second again and again.

Whoever writes to it waits in the kernel, as with a card that collects its garbage or a saturated network disk.
Run as ``python -m rigs.stalls MOUNT STALL_S EVERY_S LOG``; it thaws and ends when its standard input closes.
"""

import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rigs.producers import environment
from sensorium.timebase import SECOND_NS, HostClock

_FREEZE, _THAW = 0xC0045877, 0xC0045878  # FIFREEZE, FITHAW of linux/fs.h
_IMAGE_BYTES = 12 << 30
_MEMORY = "/dev/shm"
_LEAST_MEMORY_BYTES = 10 << 30
_CLOCK = HostClock()


@dataclass(slots=True)
class StallingDisk:
    """``stalls_s`` is filled when the disk is taken away: how long each stall really was."""

    folder: Path
    stalls_s: list[float] = field(default_factory=list)


def why_not() -> str:
    """Return why no such disk can be had here; "" if it can."""
    if os.geteuid() != 0:
        return "needs root to mount and freeze a file system"
    if not Path("/dev/loop-control").exists():
        return "needs loop devices (/dev/loop-control) for a file system of its own"
    free_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    if free_bytes < _LEAST_MEMORY_BYTES:
        return f"needs {_LEAST_MEMORY_BYTES >> 30} GB of free memory for its blocks, found {free_bytes >> 30}"
    missing = [name for name in ("mkfs.ext4", "mount", "umount") if not shutil.which(name)]
    return f"needs {', '.join(missing)}" if missing else ""


@contextlib.contextmanager
def stalling_disk(folder: Path, stall_s: float, every_s: float) -> Iterator[StallingDisk]:
    """Mount a file system below ``folder`` that stands still for ``stall_s`` every ``every_s``."""
    mount, log = folder / "disk", folder / "stalls.json"
    mount.mkdir()
    with _mounted(mount):
        command = [sys.executable, "-m", "rigs.stalls", str(mount), str(stall_s), str(every_s), str(log)]
        disk = StallingDisk(mount)
        freezer = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment(folder))
        try:
            yield disk
        finally:
            assert freezer.stdin is not None
            freezer.stdin.close()
            freezer.wait()
            disk.stalls_s += json.loads(log.read_text()) if log.exists() else []


@contextlib.contextmanager
def _mounted(mount: Path) -> Iterator[None]:
    """Mount an empty file system whose blocks lie in memory.

    Freezing waits for what is dirty, and a disk may take many seconds for what was written since the last stall.
    """
    with tempfile.TemporaryDirectory(prefix="sensorium-bench-", dir=_MEMORY) as folder:
        image = Path(folder) / "disk.img"
        with image.open("wb") as file:
            file.truncate(_IMAGE_BYTES)
        subprocess.run(["mkfs.ext4", "-q", "-E", "lazy_itable_init=1", str(image)], check=True)
        subprocess.run(["mount", "-o", "loop,nobarrier,discard", str(image), str(mount)], check=True)
        try:
            yield
        finally:
            subprocess.run(["umount", "-l", str(mount)], check=False)


def main() -> None:
    """Freeze and thaw until standard input closes."""
    mount, stall_s, every_s, log = sys.argv[1], float(sys.argv[2]), float(sys.argv[3]), Path(sys.argv[4])
    stalls_s = []
    descriptor = os.open(mount, os.O_RDONLY)
    while not _is_over(every_s):
        subprocess.run(["sync", "-f", mount], check=True)
        began_ns = _CLOCK.now_ns()
        fcntl.ioctl(descriptor, _FREEZE, 0)
        try:
            is_over = _is_over(stall_s)
        finally:
            fcntl.ioctl(descriptor, _THAW, 0)
        stalls_s.append(round((_CLOCK.now_ns() - began_ns) / SECOND_NS, 3))
        if is_over:
            break
    log.write_text(json.dumps(stalls_s))


def _is_over(wait_s: float) -> bool:
    """Wait; return whether whoever started this has gone."""
    return bool(select.select([sys.stdin], [], [], wait_s)[0])


if __name__ == "__main__":
    main()
