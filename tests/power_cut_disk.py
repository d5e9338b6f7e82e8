"""A disk whose power can be cut: a file system whose blocks lie in a file, and copies of that file as they stood.

A copy holds what had reached the device, and nothing of what the kernel kept for later: what a power cut leaves.
"""

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sessions import CLOCK

_IMAGE_BYTES = 256 << 20
_MOST_TRIES = 20


@dataclass(frozen=True, slots=True)
class PowerCut:
    """What was on the device at ``host_ns``."""

    image: Path
    host_ns: int


def why_not() -> str:
    """Return why no such disk can be had here; "" if it can."""
    if os.geteuid() != 0 or not Path("/dev/loop-control").exists():
        return "a disk whose power can be cut needs root and loop devices"
    missing = [name for name in ("mkfs.ext4", "mount", "umount", "findmnt") if shutil.which(name) is None]
    return f"a disk whose power can be cut needs {', '.join(missing)}" if missing else ""


def make_disk(image: Path) -> None:
    """Make an empty file system in a file."""
    with image.open("wb") as file:
        file.truncate(_IMAGE_BYTES)
    subprocess.run(["mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", image], check=True)


@contextlib.contextmanager
def mounted(image: Path, mount: Path) -> Iterator[None]:
    """Mount a disk; its file system repairs itself as after any power cut."""
    subprocess.run(["mount", "-o", "loop", image, mount], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", mount], check=True)


def cut_power(image: Path, mount: Path, target: Path, processes: Iterable[int]) -> PowerCut:
    """Copy what is on the device while everybody stands still; again, if it was written to meanwhile."""
    pids = tuple(processes)
    device = subprocess.run(["findmnt", "-no", "SOURCE", mount], check=True, capture_output=True, text=True)
    counts = Path("/sys/block") / Path(device.stdout.strip()).name / "stat"
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        for _ in range(_MOST_TRIES):
            before, host_ns = counts.read_text().split(), CLOCK.now_ns()
            subprocess.run(["cp", "--sparse=always", image, target], check=True)
            if (
                counts.read_text().split()[4:9] == before[4:9] and before[8] == "0"
            ):  # writes, and those under way
                return PowerCut(target, host_ns)
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    raise AssertionError(f"{device.stdout.strip()} is written to without end, though nobody runs")
