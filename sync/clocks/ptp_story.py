"""What PTP says about UTC against what else is known: the host's raw clock, its own UTC, the master before.

A port state says that a slave follows its master, not that the master is right. CLOCK_MONOTONIC_RAW runs on one
crystal that nobody steps: PTP time that leaves the line it kept against it has been stepped, whoever says so.
The host's own UTC is a second witness where PTP does not steer it. Where the stories differ and nothing decides
between them, the bound spans both.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from sensorium.sync.clocks.ptp_management import PtpReading
from sensorium.timebase import SECOND_NS

CRYSTAL_PER_NS = 1e-4
"""A crystal and its master differ by no more than 100 ppm; until the rate has been seen, that is what is known."""
AT_ONCE_NS = SECOND_NS // 10
"""No jitter explains such a jump; smaller ones must be seen twice."""
OWN_UTC_NS = SECOND_NS // 2
"""A host whose UTC nobody vouches for is believed no better: enough to tell whole seconds."""
SOFTWARE_NOISE_NS, HARDWARE_NOISE_NS = 50_000.0, 1_000.0
"""What a busy machine adds to one software stamp (an interrupt that waits), and to one of a network card."""
VOUCHED_CLASSES = (6, 7, 13, 14)
"""clockClass of grandmasters that are locked to a reference, or in holdover within their specification."""
UTC_OFFSET_S = 37
"""What ptp4l takes for TAI - UTC until it is told otherwise (since 2017)."""
_SEEN = 16
_MIN_SEEN, _MIN_SPAN_NS = 4, SECOND_NS


@dataclass(frozen=True, slots=True)
class LocalReading:
    """The clock that ptp4l stamps with, read at an instant of CLOCK_MONOTONIC_RAW."""

    raw_ns: int
    local_ns: int
    bracket_ns: int


@dataclass(frozen=True, slots=True)
class HostUtc:
    """The host's own UTC as a witness.

    Attributes:
        error_ns: Its bound; None = nobody vouches for it.
        is_independent: PTP does not steer it; where it does, that both agree says nothing.
    """

    minus_raw_ns: int
    error_ns: float | None = None
    is_independent: bool = True


@dataclass(frozen=True, slots=True)
class Told:
    """One accepted reading as a statement about time, relative to the raw clock at ``at_ns``.

    Attributes:
        ptp_ns: PTP time minus raw time (or minus the local clock where the raw one was not read).
        utc_ns: UTC as PTP tells it, likewise.
        taken_off_s: How many seconds of TAI - UTC ptp4l has taken off before it told the offset.
    """

    at_ns: int
    ptp_ns: int
    utc_ns: int
    taken_off_s: int = 0


class RawTime:
    """Carries stamps of ptp4l's clock onto CLOCK_MONOTONIC_RAW by readings of both."""

    def __init__(self) -> None:
        self._before: LocalReading | None = None

    def carry(self, local_ns: int, reading: LocalReading) -> int | None:
        """Return the raw time of ``local_ns``; None if the local clock was stepped around then."""
        before, self._before = self._before, reading
        rate = 1.0
        if before is not None and reading.raw_ns > before.raw_ns:
            elapsed_ns = reading.raw_ns - before.raw_ns
            gained_ns = (reading.local_ns - before.local_ns) - elapsed_ns
            noise_ns = before.bracket_ns + reading.bracket_ns + 2_000
            if abs(gained_ns) > 1e-3 * elapsed_ns + noise_ns:
                return None
            if elapsed_ns > 100 * noise_ns:
                rate += gained_ns / elapsed_ns
        return reading.raw_ns - round((reading.local_ns - local_ns) / rate)


class Line:
    """Follows one time scale against the raw clock and says when it leaves its line."""

    def __init__(self, noise_ns: float, holdover_per_ns: float) -> None:
        self._noise_ns = noise_ns
        self._holdover = holdover_per_ns
        self._seen: deque[tuple[int, int]] = deque(maxlen=_SEEN)

    def jump_ns(self, at_ns: int, value_ns: int) -> float:
        """Return by how much a value is off the line; 0.0 within what jitter and crystals explain."""
        if not self._seen:
            return 0.0
        last_at, last_value = self._seen[-1]
        at = np.array([at for at, _ in self._seen], np.int64) - last_at
        value = (np.array([value for _, value in self._seen], np.int64) - last_value).astype(np.float64)
        rate, spread_ns, slack = 0.0, 0.0, CRYSTAL_PER_NS
        if len(at) >= _MIN_SEEN and -at[0] >= _MIN_SPAN_NS:
            rate, level = np.polyfit(at.astype(np.float64), value, 1)
            spread_ns = float(np.abs(value - level - rate * at).max())
            slack = min(slack, self._holdover + 2 * (spread_ns + self._noise_ns) / float(-at[0]))
        elapsed_ns = abs(at_ns - last_at)
        off_ns = float(value_ns - last_value) - float(rate) * (at_ns - last_at)
        limit_ns = self._noise_ns + 3 * spread_ns + slack * elapsed_ns
        return off_ns if abs(off_ns) > limit_ns else 0.0

    def take(self, at_ns: int, value_ns: int) -> None:
        """Let a value that is on the line (or begins it) stand."""
        self._seen.append((at_ns, value_ns))

    def move(self, by_ns: float) -> None:
        """Go on where a step has led; the crystal's rate stays."""
        self._seen = deque(((at, value + round(by_ns)) for at, value in self._seen), maxlen=_SEEN)


class Story:
    """What PTP has told so far, and how far it is from what else is known.

    Attributes:
        apart_ns: How far PTP's UTC is from the other story; 0.0 while there is none.
        reason: A sentence on that.
    """

    def __init__(self, is_software: bool, holdover_per_ns: float) -> None:
        noise_ns = SOFTWARE_NOISE_NS if is_software else HARDWARE_NOISE_NS
        self._is_software = is_software
        self._noise_ns = noise_ns
        self._raw = RawTime()
        self._has_raw: bool | None = None
        self._ptp, self._utc = Line(noise_ns, holdover_per_ns), Line(noise_ns, holdover_per_ns)
        self._holdover = holdover_per_ns
        self._disputed_ns = 0.0
        self._disputed_why = ""
        self._has_agreed = False
        self._before: PtpReading | None = None
        self._pending: tuple[float, float] | None = None
        self._taken_s: int | None = None
        self.apart_ns = 0.0
        self.reason = ""

    @property
    def pending_ns(self) -> float:
        """How far the newest reading left the line, if that was not seen again yet."""
        return 0.0 if self._pending is None else max(map(abs, self._pending))

    def told(self, reading: PtpReading, local: LocalReading | None) -> Told | None:
        """Return what a reading says; None where the local clock was stepped meanwhile."""
        master_ns = reading.ingress_ns - reading.offset_ns
        base_ns = reading.ingress_ns
        if local is not None:
            at_ns = self._raw.carry(reading.ingress_ns, local)
            if at_ns is None:
                return None
            base_ns = at_ns
        if self._has_raw is not (local is not None):
            self._has_raw = local is not None
            self._begin()
        told_ns = master_ns - base_ns
        if self._is_software:
            taken_s = self._taken_off_s(base_ns, told_ns, reading)
            return Told(base_ns, told_ns + taken_s * SECOND_NS, told_ns, taken_s)
        offset_s = reading.utc_offset_s if reading.is_ptp_timescale else 0
        return Told(base_ns, told_ns, told_ns - offset_s * SECOND_NS)

    def _taken_off_s(self, at_ns: int, utc_ns: int, reading: PtpReading) -> int:
        """Return what ptp4l takes off a TAI master's time where it stamps on UTC.

        It keeps the largest number that it ever heard, versions differ in when they believe a new one, and the
        newest sync may be older than the newest announcement: whatever lets PTP time go on is it.
        """

        def leaves_ns(taken_s: int) -> float:
            return abs(self._ptp.jump_ns(at_ns, utc_ns + taken_s * SECOND_NS))

        before, announced_s = self._before, reading.utc_offset_s
        was_tai = reading.is_ptp_timescale if before is None else before.is_ptp_timescale
        if not reading.is_ptp_timescale:
            return min((0, self._taken_s or 0) if was_tai else (0,), key=leaves_ns)
        options = [announced_s, UTC_OFFSET_S] if self._taken_s is None else [self._taken_s, announced_s]
        if before is not None and before.grandmaster == reading.grandmaster:
            options.append(announced_s + 1)
        if not was_tai:
            options.append(0)
        found = min(options, key=leaves_ns)
        self._taken_s = found or self._taken_s
        return found

    def _begin(self) -> None:
        self._ptp, self._utc = Line(self._noise_ns, self._holdover), Line(self._noise_ns, self._holdover)
        self._pending = None

    def take(self, reading: PtpReading, told: Told) -> str:
        """Hold a reading against the line so far; return a sentence if PTP time was stepped, else "".

        A reading that leaves the line by less than 0.1 s is pending until a second one says the same.
        """
        jumps = (self._ptp.jump_ns(told.at_ns, told.ptp_ns), self._utc.jump_ns(told.at_ns, told.utc_ns))
        largest = max(map(abs, jumps))
        if largest and largest < AT_ONCE_NS and not self._is_seen_again(jumps):
            self._pending = jumps
            return ""
        self._pending = None
        sentence = self._stepped(reading, *jumps) if largest else ""
        self._ptp.take(told.at_ns, told.ptp_ns)
        self._utc.take(told.at_ns, told.utc_ns)
        self._before = reading
        return sentence

    def _is_seen_again(self, jumps: tuple[float, float]) -> bool:
        if self._pending is None:
            return False
        return all(
            abs(now - before) <= 2 * self._noise_ns for now, before in zip(jumps, self._pending, strict=True)
        )

    def _stepped(self, reading: PtpReading, ptp_ns: float, utc_ns: float) -> str:
        self._ptp.move(ptp_ns)
        self._utc.move(utc_ns)
        before = self._before
        parts = [f"PTP time by {_size(ptp_ns)}"] if ptp_ns else []
        if utc_ns:
            parts.append(f"the UTC that it tells by {_size(utc_ns)}")
        sentence = f"{' and '.join(parts)} against this host's raw clock"
        if before is not None and before.grandmaster != reading.grandmaster:
            sentence += f", from {before.grandmaster} to {reading.grandmaster}"
        if utc_ns and not _is_announced_leap(before, utc_ns):
            self._has_agreed = False
            self._disputed_ns += utc_ns
            self._disputed_why = f"PTP was stepped: {sentence}"
            if abs(self._disputed_ns) <= 4 * self._noise_ns:
                self._disputed_ns = 0.0
        return sentence

    def judge(self, reading: PtpReading, told: Told, witness: HostUtc | None) -> None:
        """Say how far PTP's UTC is from what the host and the story so far say, and whether that is settled."""
        off_ns = None if witness is None else float(witness.minus_raw_ns - told.utc_ns)
        self._settle(off_ns, witness)
        reasons = []
        apart_ns = abs(self._disputed_ns)
        if apart_ns:
            reasons.append(f"{self._disputed_why}; nothing says which story is right")
        if off_ns is not None and witness is not None and not self._is_believed(off_ns, witness):
            apart_ns = max(apart_ns, abs(off_ns))
            whose = "this host's own UTC, for which nobody vouches"
            if witness.error_ns is not None:
                whose = f"chrony's, which is known to {witness.error_ns / 1e3:.0f} us"
            reasons.append(f"the UTC of {reading.grandmaster} is {_size(-off_ns)} from {whose}")
        self.apart_ns, self.reason = apart_ns, "; ".join(reasons)

    def judge_offset(self, reading: PtpReading, told: Told) -> None:
        """Hold the announced TAI - UTC against what the kernel was told (if it was) and what ptp4l takes off."""
        if not reading.is_ptp_timescale:
            return
        others = {}
        if (
            told.taken_off_s and reading.is_utc_offset_valid
        ):  # 0: the newest sync is older than the announcement
            others["ptp4l still takes off"] = told.taken_off_s
        if reading.bases is not None and (
            kernel_s := round((reading.bases.tai_ns - reading.bases.realtime_ns) / SECOND_NS)
        ):
            others["this host's kernel has"] = kernel_s
        for who, seconds in others.items():
            if seconds != reading.utc_offset_s:
                apart_ns = abs(seconds - reading.utc_offset_s) * float(SECOND_NS)
                self.apart_ns = max(self.apart_ns, apart_ns)
                said = (
                    f"{reading.grandmaster} announces TAI - UTC = {reading.utc_offset_s} s, {who} {seconds} s"
                )
                self.reason = f"{self.reason}; {said}" if self.reason else said

    def _settle(self, off_ns: float | None, witness: HostUtc | None) -> None:
        """Let the witness decide between the story before a step and the one after it, where it can."""
        if off_ns is None or witness is None or not witness.is_independent:
            return
        limit_ns = self._limit_ns(witness)
        if abs(off_ns) > limit_ns:
            return
        self._has_agreed = True
        if abs(off_ns + self._disputed_ns) > limit_ns:
            self._disputed_ns = 0.0

    def _is_believed(self, off_ns: float, witness: HostUtc) -> bool:
        """A host that once agreed and has left since, while PTP kept its line, is itself what moved."""
        return abs(off_ns) <= self._limit_ns(witness) or (witness.error_ns is None and self._has_agreed)

    def _limit_ns(self, witness: HostUtc) -> float:
        return OWN_UTC_NS if witness.error_ns is None else witness.error_ns + 4 * self._noise_ns


def _is_announced_leap(before: PtpReading | None, utc_ns: float) -> bool:
    """Return whether UTC stepped by the leap second that the grandmaster had announced."""
    if before is None or abs(abs(utc_ns) - SECOND_NS) > AT_ONCE_NS:
        return False
    return (before.is_leap_61 and utc_ns < 0) or (before.is_leap_59 and utc_ns > 0)


def _size(ns: float) -> str:
    if abs(ns) >= SECOND_NS / 2:
        return f"{ns / 1e9:+.3f} s"
    return f"{ns / 1e6:+.3f} ms" if abs(ns) >= 1e6 else f"{ns / 1e3:+.1f} us"


_PROPERTIES = (
    ("clockClass", "clock_class"),
    ("clockAccuracy", "clock_accuracy"),
    ("currentUtcOffset", "utc_offset_s"),
    ("currentUtcOffsetValid", "is_utc_offset_valid"),
    ("ptpTimescale", "is_ptp_timescale"),
    ("leap61", "is_leap_61"),
    ("leap59", "is_leap_59"),
    ("timeTraceable", "is_time_traceable"),
    ("frequencyTraceable", "is_frequency_traceable"),
    ("timeSource", "time_source"),
    ("priority1", "priority1"),
    ("priority2", "priority2"),
)


def changed_properties(before: PtpReading, now: PtpReading) -> Iterator[str]:
    """Yield a sentence for each property of the grandmaster that it announces differently now."""
    for name, field in _PROPERTIES:
        old, new = getattr(before, field), getattr(now, field)
        if old != new:
            yield f"{name} of {now.grandmaster} went from {_shown(name, old)} to {_shown(name, new)}"


def _shown(name: str, value: int | bool | None) -> str:
    if value is None:
        return "unknown"
    return f"{value:#04x}" if name in ("clockAccuracy", "timeSource") else str(int(value))


def vouched_best(best: PtpReading | None, now: PtpReading) -> PtpReading:
    """Return ``now`` with what a grandmaster vouched for at its best."""
    if best is None:
        return now
    return replace(
        now,
        clock_class=now.clock_class if now.clock_class in VOUCHED_CLASSES else best.clock_class,
        is_time_traceable=now.is_time_traceable or best.is_time_traceable,
    )


def why_not_vouched(best: PtpReading | None, now: PtpReading) -> str:
    """Return why the grandmaster does not vouch for its absolute time any more; "" = as ever.

    Args:
        best: What this grandmaster, or one before, vouched for (:func:`vouched_best`).
    """
    if best is None:
        return ""
    lost = []
    if best.clock_class in VOUCHED_CLASSES and now.clock_class not in VOUCHED_CLASSES:
        lost.append(f"clockClass is {now.clock_class} and was {best.clock_class}")
    if best.is_time_traceable and now.is_time_traceable is False:
        lost.append("its time is no longer traceable to a primary reference")
    claims = now.is_ptp_timescale and now.is_utc_offset_valid and now.is_time_traceable is False
    if not lost and claims:
        lost.append(f"it counts TAI but says that its time is not traceable (clockClass {now.clock_class})")
    if not lost:
        return ""
    return (
        f"{now.grandmaster} does not vouch for absolute time: {', '.join(lost)}; the alignment of what follows"
        " this grandmaster is not touched by that, UTC may be wrong"
    )
