"""What the stamps of a Lab Streaming Layer stream are worth: raw stamps against the offsets measured beside them.

A stamp counts the sender's clock; the recorder measured now and then by how much that one is behind its own.
Stamps stay as they are but for the offset: a line per epoch of the sender's clock, through the readings that are
no repeats (`offsets.smooth`).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sensorium.sync.clocks.offsets import WANDER_NS, OffsetLine, frozen_runs, live_readings, smooth

FloatArray = NDArray[np.float64]

RESET_S = 1.0
"""A stamp that lies so far before the one before is of a restarted clock (pyxdf and `offsets` say so, too)."""
GAP_PERIODS = 5.0
_FEW = 3
"""Fewer live readings than this make no line."""


@dataclass(frozen=True, slots=True)
class FrozenRun:
    """Readings that repeat one value exactly: nobody measured any more.

    Attributes:
        begin_s: First repeat, on the sender's clock; ``end_s`` the last.
        samples: Stamps of the stream in that time.
    """

    begin_s: float
    end_s: float
    readings: int
    samples: int


@dataclass(frozen=True, slots=True)
class Gap:
    """A stretch without samples of a regular stream; ``lost`` is how many would have fit in."""

    after_s: float
    duration_s: float
    lost: int


@dataclass(frozen=True, slots=True, eq=False)
class LslClock:
    """What was found out about one stream's clock.

    Attributes:
        time_s: (n,) stamps on the recorder's clock: raw ones plus the offset of their epoch.
        bound_s: (n,) their 95 % bound but for the asymmetry of the network; NaN without offsets.
        interval_s: (n - 1,) intervals of the raw stamps; NaN across resets.
        resets: Indices of the first samples after a restart of the sender's clock.
        backwards: Stamps before the one before, resets not counted.
        lines: One per epoch of the offsets.
        offset_left_s: (k,) offset readings less the line of their epoch.
        offset_time_s: (k,) when they were taken, on the recorder's clock.
        is_live: (k,) whether they are no exact repeat of the one before.
    """

    time_s: FloatArray
    bound_s: FloatArray
    interval_s: FloatArray
    resets: tuple[int, ...]
    backwards: int
    gaps: tuple[Gap, ...]
    frozen: tuple[FrozenRun, ...]
    lines: tuple[OffsetLine, ...]
    offset_left_s: FloatArray
    offset_time_s: FloatArray
    is_live: NDArray[np.bool_]

    @property
    def rate_hz(self) -> float | None:
        """Samples per second between the gaps; None with fewer than two intervals."""
        used = self.interval_s[np.isfinite(self.interval_s)]
        longest = min((gap.duration_s for gap in self.gaps), default=np.inf)
        used = used[used < longest]
        return float(1 / used.mean()) if used.size > 1 and used.mean() > 0 else None

    @property
    def jitter_s(self) -> FloatArray:
        """(n - 1,) by how much each interval differs from the middle one; NaN across resets."""
        finite = self.interval_s[np.isfinite(self.interval_s)]
        middle = float(np.median(finite)) if finite.size else 0.0
        return np.asarray(np.abs(self.interval_s - middle))


def judge_stamps(
    stamp_s: FloatArray, offset_at_s: FloatArray, offset_s: FloatArray, rate_hz: float
) -> LslClock:
    """Return what a stream's raw stamps and offset readings say.

    Args:
        stamp_s: (n,) seconds of the sender's clock, in the order of the samples.
        offset_at_s: (k,) seconds of the sender's clock.
        offset_s: (k,) recorder minus sender.
        rate_hz: As declared; 0.0 = irregular, and then there are no gaps.
    """
    interval = np.diff(stamp_s)
    resets = np.flatnonzero(interval < -RESET_S) + 1
    at_ns, offset_ns = offset_at_s * 1e9, offset_s * 1e9
    if offset_at_s.size:
        is_live, epochs = live_readings(at_ns, offset_ns)
        lines = tuple(smooth(at_ns, offset_ns))
    else:
        is_live, epochs, lines = np.zeros(0, bool), [], ()
    of_sample = _epoch_of_samples(stamp_s, resets, lines)
    time_s, bound_s = stamp_s.copy(), np.full(stamp_s.size, np.nan)
    left_s, moved_s = offset_s.copy(), offset_at_s.copy()
    for number, (line, epoch) in enumerate(zip(lines, epochs, strict=True)):
        chosen = of_sample == number
        time_s[chosen] += line.offset_at(stamp_s[chosen] * 1e9) * 1e-9
        bound_s[chosen] = _bound_s(line, stamp_s[chosen])
        on_line_s = line.offset_at(at_ns[epoch]) * 1e-9
        left_s[epoch] -= on_line_s
        moved_s[epoch] += on_line_s
    steady = interval.copy()
    steady[resets - 1] = np.nan
    return LslClock(
        time_s,
        bound_s,
        steady,
        tuple(resets.tolist()),
        int((steady < 0).sum()),
        _gaps(stamp_s, steady, rate_hz),
        tuple(_frozen(offset_at_s, offset_ns, stamp_s)),
        lines,
        left_s,
        moved_s,
        is_live,
    )


def _epoch_of_samples(
    stamp_s: FloatArray, resets: NDArray[np.intp], lines: tuple[OffsetLine, ...]
) -> NDArray[np.intp]:
    """Return (n,) which line each stamp belongs to.

    As many stretches of stamps as of offsets belong together in order; else each stamp to the nearest.
    """
    if len(resets) + 1 == len(lines):
        return np.asarray(np.searchsorted(resets, np.arange(stamp_s.size), side="right"), np.intp)
    if not lines:
        return np.full(stamp_s.size, -1, np.intp)
    away = [
        np.maximum(np.maximum(line.begin_ns * 1e-9 - stamp_s, stamp_s - line.end_ns * 1e-9), 0.0)
        for line in lines
    ]
    return np.asarray(np.argmin(np.stack(away), axis=0), np.intp)


def _bound_s(line: OffsetLine, stamp_s: FloatArray) -> FloatArray:
    """Return the 95 % bound of the line at (n,) stamps: its own, and what the clock may do where nobody looked."""
    if line.live < _FEW:
        return np.full(stamp_s.size, np.nan)
    at_ns = stamp_s * 1e9
    middle, half = (line.begin_ns + line.end_ns) / 2, max((line.end_ns - line.begin_ns) / 2, 1.0)
    own = line.residual_rms_ns * np.sqrt(1 / line.live + 3 * ((at_ns - middle) / half) ** 2 / line.live)
    outside_s = np.maximum(np.maximum(line.begin_ns - at_ns, at_ns - line.end_ns), 0.0) * 1e-9
    return np.asarray(2e-9 * np.hypot(own, WANDER_NS * np.sqrt(outside_s)))


def _gaps(stamp_s: FloatArray, steady: FloatArray, rate_hz: float) -> tuple[Gap, ...]:
    if rate_hz <= 0:
        return ()
    usual_s = float(np.nanmedian(steady)) if np.isfinite(steady).any() else 0.0
    period_s = max(1 / rate_hz, usual_s)
    return tuple(
        Gap(float(stamp_s[index]), float(steady[index]), round(float(steady[index]) / period_s) - 1)
        for index in np.flatnonzero(steady > GAP_PERIODS * period_s)
    )


def _frozen(offset_at_s: FloatArray, offset_ns: FloatArray, stamp_s: FloatArray) -> list[FrozenRun]:
    found = []
    for run in frozen_runs(offset_ns) if offset_ns.size else ():
        begin, end = float(offset_at_s[run.start]), float(offset_at_s[run.stop - 1])
        inside = int(((stamp_s >= begin) & (stamp_s <= end)).sum())
        found.append(FrozenRun(begin, end, run.stop - run.start, inside))
    return found
