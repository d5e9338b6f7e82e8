"""A wall clock that a bench sets: imported as ``sitecustomize`` by every process of the agent under test.

Only readings of CLOCK_REALTIME and CLOCK_TAI move, as when somebody sets or slews the machine's clock; the host
clock goes on. The machine's own clock, which others use, is left alone.
"""

import mmap
import os
import struct
import time

_READINGS = os.environ.get("BENCH_WALL_CLOCK", "")


def install() -> None:
    """Add the nanoseconds in the file to every reading from now on."""
    with open(_READINGS, "rb") as file:  # noqa: PTH123 - pathlib costs every process of the agent its import
        shared = mmap.mmap(file.fileno(), 8, prot=mmap.PROT_READ)
    true_time_ns, true_gettime_ns = time.time_ns, time.clock_gettime_ns
    moved = (time.CLOCK_REALTIME, time.CLOCK_TAI)

    def off_ns() -> int:
        found: int = struct.unpack("<q", shared[:8])[0]
        return found

    time.time_ns = lambda: true_time_ns() + off_ns()
    time.clock_gettime_ns = lambda clock: true_gettime_ns(clock) + (off_ns() if clock in moved else 0)


if _READINGS:
    install()
