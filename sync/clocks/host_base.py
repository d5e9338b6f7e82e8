"""The host's own clocks: MONOTONIC, REALTIME and TAI carried onto RAW and back, their steps and slews named.

RAW is the base of every capture time because the system's time daemon can neither step nor slew it. REALTIME
and MONOTONIC are slewed together and only REALTIME is stepped, so their difference tells the two apart: it
moves by a step alone.
"""

from collections import deque
from dataclasses import dataclass
from enum import Enum
from statistics import median

import numpy as np
from numpy.typing import NDArray

from sensorium.timebase import SECOND_NS, BaseReading
from sensorium.verdict import Quantity, Status, Verdict

HOST_CLOCK = "host_clock"
"""Name of the check in verdicts."""
WINDOW = 16
"""Readings (one per second) that a map is fitted to: kernel time moves by slews, so old ones do not help."""
MAX_SLEW_PPM = 500.0
"""The kernel slews by no more (adjtimex, man 2)."""
SLEW_EVENT_PPM = 10.0
"""A rate that leaves the usual one by more is worth an event; crystals wander by less."""
_READ_NOISE_NS = 2_000
ASLEEP_NS = 10_000_000
"""A suspend takes longer; differences below are two readings that were not taken at once."""


class HostClockEventKind(str, Enum):
    STEP = "step"
    SLEW = "slew"
    TAI = "tai"
    ASLEEP = "asleep"


@dataclass(frozen=True, slots=True)
class HostClockEvent:
    """Something that happened to the system clock by ``host_ns``; ``size`` in ns (step, TAI, asleep) or ppm (slew)."""

    kind: HostClockEventKind
    host_ns: int
    size: float
    detail: str


@dataclass(frozen=True, slots=True)
class AffineMap:
    """Map between RAW and another clock: other_ns = ref_other_ns + (host_ns - ref_host_ns) * (1 + rate).

    Attributes:
        rate_ppm: How much faster the other clock runs than RAW.
        error_ns: Bound of the error within the fitted readings; see :meth:`error_at`.
    """

    ref_host_ns: int
    ref_other_ns: int
    rate_ppm: float
    error_ns: float

    def to_host(self, other_ns: NDArray[np.int64]) -> NDArray[np.int64]:
        """Carry (k,) stamps of the other clock onto RAW."""
        elapsed = other_ns - self.ref_other_ns
        rate = self.rate_ppm * 1e-6
        host_ns: NDArray[np.int64] = (
            self.ref_host_ns + elapsed - np.rint(elapsed * (rate / (1 + rate))).astype(np.int64)
        )
        return host_ns

    def error_at(self, host_ns: int) -> float:
        """Return the bound at ``host_ns``: beyond the newest reading the kernel may have begun to slew."""
        return self.error_ns + max(0, host_ns - self.ref_host_ns) * 2 * MAX_SLEW_PPM * 1e-6


class HostBase:
    """Follows the system's clocks, one reading after another; pure, constant memory.

    Attributes:
        steps_ns: Sum of all steps of REALTIME so far.
        asleep_ns: How long the host slept in all.
        tai_minus_utc_s: 0 where nobody told the kernel, in which case CLOCK_TAI is REALTIME.
    """

    def __init__(self) -> None:
        self.steps_ns = 0
        self.asleep_ns = 0
        self.tai_minus_utc_s = 0
        self._readings: deque[BaseReading] = deque(maxlen=WINDOW)
        self._since_step: deque[BaseReading] = deque(maxlen=WINDOW)
        self._rates_ppm: deque[float] = deque(maxlen=WINDOW)
        self._start: BaseReading | None = None
        self._doubt = 0
        self._events: list[HostClockEvent] = []
        self._counts = dict.fromkeys(HostClockEventKind, 0)

    def update(self, reading: BaseReading) -> tuple[HostClockEvent, ...]:
        """Take a reading (later than the one before) and return what it reveals."""
        self._events = []
        if self._readings:
            before = self._readings[-1]
            asleep_ns = self._note_sleep(before, reading)
            self._note_step(before, reading, asleep_ns)
            self._note_slew(before, reading)
        else:
            self._start = reading
        self._note_tai(reading)
        self._readings.append(reading)
        self._since_step.append(reading)
        return tuple(self._events)

    def monotonic(self) -> AffineMap | None:
        """Return the map of CLOCK_MONOTONIC (V4L2 and most kernel stamps); None before two readings."""
        return _fit([(one.raw_ns, one.monotonic_ns, one.bracket_ns) for one in self._readings])

    def realtime(self) -> AffineMap | None:
        """Return the map of CLOCK_REALTIME (network stamps) since its last step; None before two readings."""
        return _fit([(one.raw_ns, one.realtime_ns, one.bracket_ns) for one in self._since_step])

    def tai(self) -> AffineMap | None:
        """Return the map of CLOCK_TAI; None where the kernel does not know it, or before two readings."""
        if self.tai_minus_utc_s == 0:
            return None
        return _fit([(one.raw_ns, one.tai_ns, one.bracket_ns) for one in self._since_step])

    def verdict(self, subject: str) -> Verdict:
        """Return how the system clock behaved since the first reading.

        Capture times do not depend on it: they are RAW, and UTC labels use one offset per episode. A step
        says that this offset, and UTC stamps of others, may be wrong by that much.
        """
        if self._start is None or len(self._readings) < 2:
            return Verdict(HOST_CLOCK, subject, Status.INSUFFICIENT, (), ("fewer than two readings",))
        first, last = self._start, self._readings[-1]
        moved_ns = last.utc_minus_host_ns - first.utc_minus_host_ns
        quantities = (
            Quantity("UTC moved against the episode's label", float(moved_ns), "ns"),
            Quantity("steps", float(self._counts[HostClockEventKind.STEP]), ""),
            Quantity("rate of MONOTONIC", median(self._rates_ppm), "ppm"),
        )
        reasons = []
        if self._counts[HostClockEventKind.STEP]:
            reasons.append(
                f"REALTIME was stepped by {self.steps_ns / 1e9:+.6f} s in all; capture times are unaffected, UTC"
                " labels follow the beginning of the episode"
            )
        if self._counts[HostClockEventKind.ASLEEP]:
            reasons.append(
                f"the host slept {self._counts[HostClockEventKind.ASLEEP]} times, {self.asleep_ns / 1e9:.1f} s in all:"
                " times of this episode skip that, UTC labels are behind by it afterwards"
            )
        if self._counts[HostClockEventKind.SLEW]:
            reasons.append(f"the kernel changed its rate {self._counts[HostClockEventKind.SLEW]} times")
        return Verdict(
            HOST_CLOCK, subject, Status.SUSPECT if reasons else Status.OK, quantities, tuple(reasons)
        )

    def _note_sleep(self, before: BaseReading, now: BaseReading) -> int:
        """Return for how long the host slept between two readings."""
        asleep_ns = now.asleep_ns - before.asleep_ns
        if asleep_ns <= ASLEEP_NS:
            return 0
        detail = (
            f"the host slept for {asleep_ns / 1e9:.1f} s: RAW stood still, devices went on; REALTIME is set anew by"
            " the hardware clock"
        )
        self._note(HostClockEventKind.ASLEEP, now, float(asleep_ns), detail)
        self.asleep_ns += asleep_ns
        return asleep_ns

    def _note_step(self, before: BaseReading, now: BaseReading, asleep_ns: int) -> None:
        moved_ns = (now.realtime_ns - now.monotonic_ns) - (before.realtime_ns - before.monotonic_ns)
        if asleep_ns:
            # UTC went on while RAW did not: maps of before do not hold. What is left of it may be a step.
            self._since_step.clear()
            moved_ns -= asleep_ns
        noise_ns = before.bracket_ns + now.bracket_ns + _READ_NOISE_NS
        # The hardware clock that gives the time after a sleep is read to some milliseconds.
        if abs(moved_ns) <= (ASLEEP_NS if asleep_ns else noise_ns):
            return
        self.steps_ns += moved_ns
        self._since_step.clear()
        self._note(HostClockEventKind.STEP, now, moved_ns, f"REALTIME was stepped by {moved_ns / 1e9:+.6f} s")

    def _note_slew(self, before: BaseReading, now: BaseReading) -> None:
        elapsed_ns = now.raw_ns - before.raw_ns
        if elapsed_ns <= 0:
            return
        gained_ns = (now.monotonic_ns - before.monotonic_ns) - elapsed_ns
        rate_ppm = gained_ns / elapsed_ns * 1e6
        noise_ppm = (before.bracket_ns + now.bracket_ns) / elapsed_ns * 1e6
        usual_ppm = median(self._rates_ppm) if self._rates_ppm else rate_ppm
        is_off = abs(rate_ppm - usual_ppm) > SLEW_EVENT_PPM + noise_ppm
        # One odd interval may be a slow read; two in a row are the kernel.
        self._doubt = self._doubt + 1 if is_off else 0
        if self._doubt < 2:
            if not is_off:
                self._rates_ppm.append(rate_ppm)
            return
        self._doubt = 0
        self._rates_ppm.clear()
        self._rates_ppm.append(rate_ppm)
        detail = f"the kernel's rate went from {usual_ppm:+.1f} to {rate_ppm:+.1f} ppm"
        self._note(HostClockEventKind.SLEW, now, rate_ppm - usual_ppm, detail)

    def _note_tai(self, now: BaseReading) -> None:
        offset_s = round((now.tai_ns - now.realtime_ns) / SECOND_NS)
        if offset_s == self.tai_minus_utc_s:
            return
        detail = f"TAI - UTC went from {self.tai_minus_utc_s} to {offset_s} s"
        self._note(HostClockEventKind.TAI, now, float((offset_s - self.tai_minus_utc_s) * SECOND_NS), detail)
        self.tai_minus_utc_s = offset_s

    def _note(self, kind: HostClockEventKind, now: BaseReading, size: float, detail: str) -> None:
        self._counts[kind] += 1
        self._events.append(HostClockEvent(kind, now.raw_ns, size, detail))


def _fit(points: list[tuple[int, int, int]]) -> AffineMap | None:
    """Return the line through (host, other, bracket), shorter brackets weighing more, at the newest point."""
    if len(points) < 2 or points[-1][0] <= points[0][0]:
        return None
    host, other, bracket = (np.array(column, np.int64) for column in zip(*points, strict=True))
    at = (host - host[-1]).astype(np.float64)
    gained = ((other - other[-1]) - (host - host[-1])).astype(np.float64)
    weight = 1.0 / (bracket + 100.0) ** 2
    mean_at, mean_gained = float(weight @ at / weight.sum()), float(weight @ gained / weight.sum())
    apart = at - mean_at
    rate = float(weight @ (apart * (gained - mean_gained)) / (weight @ (apart * apart)))
    newest = mean_gained - rate * mean_at
    left = np.abs(gained - newest - rate * at)
    error_ns = float((left + bracket / 2).max())
    return AffineMap(int(host[-1]), int(other[-1]) + round(newest), rate * 1e6, error_ns)
