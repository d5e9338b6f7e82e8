"""PTP hardware clocks by bracketed reads, and chrony's own tracking where there is no PTP.

Of several readings the one with the shortest host - hardware - host bracket counts, and half the bracket is a
hard bound (the rule of phc2sys).
"""

import math
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sensorium.errors import ClockError
from sensorium.timebase import Clock
from sensorium.verdict import Quantity, Status, Verdict

READS = 5
CHRONYC_TIMEOUT_S = 2.0
_CLOCKFD = 3
_TRACKING_FIELDS = 14


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


def phc_devices(root: Path = Path("/dev")) -> tuple[Path, ...]:
    """Return the hardware clocks of this machine."""
    return tuple(sorted(root.glob("ptp[0-9]*")))


@dataclass(frozen=True, slots=True)
class ChronyTracking:
    """What chronyd says about the system clock; seconds and ppm as chrony counts them.

    Attributes:
        reference: Hexadecimal reference id; "00000000" = none.
        system_offset_s: Between the system clock and chrony's idea of the time; its sign is chrony's.
    """

    reference: str
    stratum: int
    system_offset_s: float
    last_offset_s: float
    rms_offset_s: float
    frequency_ppm: float
    skew_ppm: float
    root_delay_s: float
    root_dispersion_s: float
    update_interval_s: float
    leap: str

    @property
    def is_synchronised(self) -> bool:
        return self.leap != "Not synchronised" and self.reference != "00000000"

    @property
    def bound_ns(self) -> float:
        """Bound of the system clock's error: offset + root dispersion + half the root delay (RFC 5905)."""
        return 1e9 * (abs(self.system_offset_s) + self.root_dispersion_s + self.root_delay_s / 2)


def parse_tracking(line: str) -> ChronyTracking:
    """Return what a line of ``chronyc -c tracking`` says.

    Raises:
        ClockError: If it is something else.
    """
    fields = line.strip().split(",")
    try:
        if len(fields) != _TRACKING_FIELDS:
            raise ValueError(f"{len(fields)} fields instead of {_TRACKING_FIELDS}")
        numbers = [float(field) for field in fields[4:13]]
        if not all(map(math.isfinite, numbers)):
            raise ValueError("a number is not finite")
        system, last, rms, frequency, _, skew, delay, dispersion, interval = numbers
        return ChronyTracking(
            fields[0],
            int(fields[2]),
            system,
            last,
            rms,
            frequency,
            skew,
            delay,
            dispersion,
            interval,
            fields[13],
        )
    except ValueError as err:
        raise ClockError(f"chronyc -c tracking answered {line.strip()[:80]!r}: {err}") from err


def read_chrony(command: str = "chronyc", arguments: tuple[str, ...] = ()) -> ChronyTracking:
    """Ask chronyd through chronyc. Waits for up to two seconds: not for a loop that must not wait.

    Raises:
        ClockError: If chronyc is not installed, chronyd does not run, or the answer makes no sense.
    """
    found = shutil.which(command)
    if found is None:
        raise ClockError(f"{command} is not installed; there is neither PTP nor chrony to ask about UTC")
    try:
        done = subprocess.run(
            [found, *arguments, "-n", "-c", "tracking"],
            capture_output=True,
            text=True,
            timeout=CHRONYC_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as err:
        raise ClockError(f"{command} did not answer: {err}") from err
    if done.returncode:
        raise ClockError(
            f"{command} failed: {(done.stdout + done.stderr).strip()[:120]}; is chronyd running?"
        )
    return parse_tracking(done.stdout)


def judge_chrony(tracking: ChronyTracking, subject: str, limit_ns: float) -> Verdict:
    """Return whether the system clock is synchronised to within ``limit_ns``."""
    quantities = (
        Quantity("bound", tracking.bound_ns, "ns", limit_ns),
        Quantity("rms offset", tracking.rms_offset_s * 1e9, "ns"),
        Quantity("frequency", tracking.frequency_ppm, "ppm", sigma=tracking.skew_ppm),
    )
    reasons = []
    status = Status.OK
    if not tracking.is_synchronised:
        status = Status.FAILED
        reasons.append("chronyd is not synchronised to any source")
    elif tracking.bound_ns > limit_ns:
        status = Status.SUSPECT
        reasons.append(
            f"UTC is known to {tracking.bound_ns / 1e3:.0f} us only, {limit_ns / 1e3:.0f} us are wanted"
        )
    return Verdict("system_clock", subject, status, quantities, tuple(reasons))
