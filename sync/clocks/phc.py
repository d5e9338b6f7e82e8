"""PTP hardware clocks by bracketed reads.

Of several readings the one with the shortest host - hardware - host bracket counts, and half the bracket is a
hard bound (the rule of phc2sys).
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sensorium.errors import ClockError
from sensorium.timebase import Clock

READS = 5
_CLOCKFD = 3


@dataclass(frozen=True, slots=True)
class PhcReading:
    """Hardware time at a host instant, known to within half of ``bracket_ns``."""

    host_ns: int
    phc_ns: int
    bracket_ns: int


def bracketed_read(read_ns: Callable[[], int], clock: Clock, tries: int = READS) -> PhcReading:
    """Return the reading of ``read_ns`` with the shortest bracket of ``tries``."""
    best: PhcReading | None = None
    for _ in range(tries):
        before_ns = clock.now_ns()
        phc_ns = read_ns()
        after_ns = clock.now_ns()
        if best is None or after_ns - before_ns < best.bracket_ns:
            best = PhcReading((before_ns + after_ns) // 2, phc_ns, after_ns - before_ns)
    assert best is not None
    return best


def clock_id_of(descriptor: int) -> int:
    """Return the dynamic POSIX clock id of an open /dev/ptp* (Linux, FD_TO_CLOCKID)."""
    return (~descriptor << 3) | _CLOCKFD


class PhcClock:
    """One /dev/ptp* device.

    Raises:
        ClockError: If it cannot be opened or is no clock.
    """

    def __init__(self, device: Path, clock: Clock) -> None:
        self.device = device
        self._clock = clock
        try:
            self._descriptor = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as err:
            raise ClockError(
                f"hardware clock {device}: {err.strerror}; which one a port has is shown by: ethtool -T PORT"
            ) from err
        try:
            self.read()
        except ClockError:
            self.close()
            raise

    def read(self) -> PhcReading:
        """Return a bracketed reading.

        Raises:
            ClockError: If the device is no clock, or was removed.
        """
        clock_id = clock_id_of(self._descriptor)
        try:
            return bracketed_read(lambda: time.clock_gettime_ns(clock_id), self._clock)
        except OSError as err:
            raise ClockError(f"{self.device} cannot be read as a clock: {err.strerror}") from err

    def close(self) -> None:
        """Release the device; safe to call twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
