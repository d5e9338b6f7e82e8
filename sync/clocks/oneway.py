"""One-way clock estimation: the lower envelope of arrival against device time, in a window that adapts.

Latency is never negative, so the samples that were delayed least mark the clock (Moon, Skelly, Towsley,
INFOCOM 1999). `LowerEnvelope` keeps the least delayed sample of each short slot of a window, finds the
posterior of a curve under them (`sensorium.sync.clocks.envelope`) and evaluates it at the newest sample. The
window is as long as the crystal's change of drift allows for the accuracy that the samples give.
"""

import math
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sensorium.sync.clocks.envelope import EXPONENTS, FEW, Posterior, Prior, Proposal, fit

FloatArray = NDArray[np.floating[Any]]

SOLVE_EVERY_NS = 250e6
SOLVES_PER_WINDOW = 40
SOLVES_WHILE_YOUNG = 12
SOLVES_AT_MOST = 200
"""A sample below the line asks for a new one at once, but not more often than so many times a window."""
SLOTS_PER_WINDOW = 1024
CAPACITY = 4096
"""Slots kept: four windows of points, so that a shrinking slot never starves the window."""
MIN_WINDOW_NS = 4e9
MAX_WINDOW_NS = 120e9
START_WINDOW_NS = 20e9
SOFTNESS_PRIOR = -2.5
"""Log odds per unit of exponent: a few dozen samples cannot tell, and guessing soft costs most there."""
LINE_UNTIL = 24
"""With fewer samples than this the reference is the best straight line, found afresh each time."""
JERK_PER_S2 = 2.1e-9
"""Change of a crystal's drift: a thermal swing of 4.8 ppm in 300 s, the spec's worst (ratio per s^2)."""
DRIFT_SPREAD_PER_S = 7e-8
"""Typical drift of a crystal in its enclosure; the spec's worst is 1.2e-7 (ratio per s)."""
JERK_DIVISOR = 60.0
"""A cubic j t^3 / 6 over a window W, fitted by a parabola, is off by about j W^3 / 60 at its end."""


MAX_DRIFT_PER_S = 1.2e-7
WARM_UP_DRIFT_PER_S = 1e-7
WARM_UP_S = 100.0
DRIFT_LAGS_NS = (10e9, 25e9, 50e9)
WANDER_SPAN_NS = 300e9
WANDER_STEP_NS = 2.5e9
WANDER_HELD_NS = 600e9
WANDER_SHARE = 0.8
"""Of the wander, what a moving floor is blamed for: the crystal's swing is part of it too."""


@dataclass(frozen=True, slots=True)
class Line:
    """Estimate at one instant: host - device time = ``offset_ns`` + ``slope`` * (device time - ``at_ns``).

    Attributes:
        drift_per_s: Change of the slope (ratio per second of device time).
        statistical_ns, floor_ns: Half widths of the stated 95 % bound.
        scale_ns: Scale of the latency above its floor (its mean, if it is exponential).
        window_ns: Device time that the estimate rests on; ``count`` samples.
        wander_ns: The part of the floor term that a moving floor is blamed for.
        hardness: Probability-weighted exponent of the latency floor: 1 = hard, 2 and more = soft.
    """

    at_ns: float
    offset_ns: float
    slope: float
    drift_per_s: float
    statistical_ns: float
    floor_ns: float
    wander_ns: float
    scale_ns: float
    window_ns: float
    count: int
    hardness: float


@dataclass(frozen=True, slots=True)
class _Past:
    """An earlier estimate: offset at its time, and mean slope (with one sigma) of its window."""

    at_ns: float
    offset_ns: float
    slope: float
    slope_sigma: float


class FloorWatch:
    """Tells when the latency floor itself moves, from motion that no crystal makes.

    One-way stamps cannot tell a moving floor from a moving crystal, but crystals drift slowly: 0.12 ppm/s at
    most, and 0.1 ppm/s more while they warm up. Motion beyond that proves that the floor moves, and from then
    on none of the observed wander about a straight line can be called the crystal's: most of it (peak to
    peak, over 300 s) becomes the floor term, for 600 s. A floor that moves as slowly as a crystal
    stays unseen; no method can see it from one direction.
    """

    def __init__(self) -> None:
        self._history: deque[_Past] = deque(maxlen=int(WANDER_SPAN_NS / WANDER_STEP_NS))
        self._seen_at = -math.inf
        self._wander_ns = 0.0
        self._inherited_ns = 0.0

    def update(self, now: _Past, age_s: float) -> float:
        """Return the floor term (ns) after an estimate whose slope was measured over a window."""
        if not self._history or now.at_ns - self._history[-1].at_ns >= WANDER_STEP_NS:
            self._history.append(now)
            self._wander_ns = self._wander()
            for lag_ns in DRIFT_LAGS_NS:
                self._judge(now, age_s, lag_ns)
        if now.at_ns - self._seen_at > WANDER_HELD_NS:
            return 0.0
        return max(self._wander_ns, self._inherited_ns)

    def _judge(self, now: _Past, age_s: float, lag_ns: float) -> None:
        ago = int(lag_ns / WANDER_STEP_NS) + 1
        if len(self._history) <= ago:
            return
        then = self._history[-1 - ago]
        lag_s = (now.at_ns - then.at_ns) * 1e-9
        drift = abs(now.slope - then.slope) / lag_s
        sigma = math.hypot(now.slope_sigma, then.slope_sigma) / lag_s
        allowed = MAX_DRIFT_PER_S + WARM_UP_DRIFT_PER_S * math.exp(-(age_s - lag_s) / WARM_UP_S)
        if drift - 4 * sigma > allowed:
            self._seen_at = now.at_ns

    def successor(self, at_ns: float) -> "FloorWatch":
        """Return a watch for the next epoch, which begins ``at_ns`` after this one did."""
        heir = FloorWatch()
        heir._seen_at = self._seen_at - at_ns
        heir._inherited_ns = max(self._wander_ns, self._inherited_ns)
        return heir

    def _wander(self) -> float:
        if len(self._history) < 4:
            return 0.0
        history = np.array([(past.at_ns, past.offset_ns) for past in self._history])
        history -= history.mean(axis=0)
        x, y = history.T
        rest = y - x * float(x @ y / (x @ x))
        # What has been seen for a short time only will go on; random motion spreads as the root of time.
        return (
            WANDER_SHARE
            * float(rest.max() - rest.min())
            * math.sqrt(WANDER_SPAN_NS / max(x[-1] - x[0], WANDER_SPAN_NS / 9))
        )


class LowerEnvelope:
    """Causal estimator of one epoch, in constant memory.

    Args:
        slope_prior: Skew to expect, and its spread (ratios).
        scale_prior_ns: Expected latency scale, worth ``scale_weight`` samples.
        resolution_ns: Step of the device's stamps; each stamp may be off by that much.

    Attributes:
        pace: Solve so many times less often than the samples ask for, once no longer young.
    """

    def __init__(
        self,
        slope_prior: float = 0.0,
        slope_spread: float = 1e-4,
        scale_prior_ns: float = 1e6,
        scale_weight: float = 2.0,
        resolution_ns: float = 0.0,
    ) -> None:
        self._slope_prior = slope_prior
        self._slope_spread = slope_spread
        self._scale_ns = scale_prior_ns
        self._scale_weight = scale_weight
        self._resolution_ns = resolution_ns
        self.pace = 1.0
        self._evidence = SOFTNESS_PRIOR * (EXPONENTS - 1)
        self._window_ns = START_WINDOW_NS
        self._x = np.empty(2 * CAPACITY)
        self._d = np.empty(2 * CAPACITY)
        self._low = self._high = 0
        self._slot_ns = 0.0
        self._slot = -1
        self._slot_excess = 0.0
        self._first_x = 0.0
        self._newest = -math.inf
        self._next_solve = -math.inf
        self._solved_x = 0.0
        self._taken = 0
        self._floor = FloorWatch()
        self._proposal: Proposal | None = None
        self.posterior: Posterior | None = None
        self.line: Line | None = None

    def successor(self, skew_spread: float) -> "LowerEnvelope":
        """Return an estimator for the next epoch of the same crystal and link: only the offset is unknown."""
        line = self.line
        if line is None or line.count < FEW:
            return LowerEnvelope(
                self._slope_prior,
                self._slope_spread,
                self._scale_ns,
                self._scale_weight,
                self._resolution_ns,
            )
        heir = LowerEnvelope(line.slope, skew_spread, line.scale_ns, 16.0, self._resolution_ns)
        heir._evidence = self._evidence.copy()
        heir._window_ns = self._window_ns
        heir._floor = self._floor.successor(self._newest)
        heir.pace = self.pace
        return heir

    @property
    def evidence(self) -> FloatArray:
        """Log evidence of each latency exponent so far."""
        return self._evidence

    def add(self, device_ns: FloatArray, offset_ns: FloatArray) -> None:
        """Take (k,) samples: device time since the epoch's start, growing, and host minus device time.

        Samples that are not newer than the newest one are ignored.
        """
        for x, d in zip(device_ns.tolist(), offset_ns.tolist(), strict=True):
            self._keep(x, d)
        if self._newest >= self._next_solve:
            self._solve()

    def add_one(self, device_ns: float, offset_ns: float) -> None:
        """Take one sample, as `add` does."""
        self._keep(device_ns, offset_ns)
        if self._newest >= self._next_solve:
            self._solve()

    def offset_at(self, device_ns: FloatArray) -> FloatArray:
        """Return host minus device time at (k,) device times by the current line."""
        line = self.line
        assert line is not None, "no sample yet"
        return line.offset_ns + line.slope * (device_ns - line.at_ns)

    def _keep(self, x: float, d: float) -> None:
        """Keep the sample if it is the least delayed of its slot."""
        if x <= self._newest:
            return
        line = self.line
        if line is not None and x - self._newest > self._window_ns:
            self._resume(line, x)
        if line is None:
            excess = d
            if self._high == self._low:
                self._first_x = x
        else:
            excess = d - line.offset_ns - line.slope * (x - line.at_ns)
            is_news = excess < 0 and x - self._solved_x > self.pace * line.window_ns / SOLVES_AT_MOST
            if is_news or self._taken < FEW:
                self._next_solve = x
        self._newest = x
        self._taken += 1
        slot = int(x / self._slot_ns) if self._slot_ns > 0 else self._slot + 1
        if slot == self._slot:
            if excess < self._slot_excess:
                self._x[self._high - 1], self._d[self._high - 1] = x, d
                self._slot_excess = excess
            return
        if self._high == self._x.size:
            kept = min(self._high - self._low, CAPACITY)
            for points in (self._x, self._d):
                points[:kept] = points[self._high - kept : self._high]
            self._low, self._high = 0, kept
        self._x[self._high], self._d[self._high] = x, d
        self._high += 1
        self._slot, self._slot_excess = slot, excess

    def _resume(self, line: Line, x: float) -> None:
        """Begin anew after a gap that outlasted the window: what is known is about what the skew was."""
        gap_s = (x - self._newest) * 1e-9
        self._slope_prior = line.slope
        self._slope_spread = 5e-7 + DRIFT_SPREAD_PER_S * min(gap_s, 200.0)
        self._scale_ns, self._scale_weight = line.scale_ns, 16.0
        self._low = self._high
        self._first_x = self._next_solve = x
        self._taken = 0
        self._slot, self._slot_ns = -1, 0.0
        self._proposal = None

    def _solve(self) -> None:
        newest = self._newest
        points = slice(self._low, self._high)
        begin = self._low + int(np.searchsorted(self._x[points], newest - self._window_ns))
        x, d = self._x[begin : self._high], self._d[begin : self._high]
        count = x.size
        span_ns = max(newest - float(x[0]), 1e6)
        half_ns = span_ns / 2
        middle = newest - half_ns
        line = self.line
        if line is None or count < LINE_UNTIL:
            reference = self._straight(x, d, newest)
            proposal = None
        else:
            dt = newest - line.at_ns
            reference = (
                line.offset_ns + line.slope * dt + line.drift_per_s * 1e-9 * dt * dt / 2,
                line.slope + line.drift_per_s * 1e-9 * dt,
                line.drift_per_s,
            )
            proposal = self._proposal
        offset, slope, drift = reference
        from_end = x - newest
        excess = d - (offset + slope * from_end + drift * 0.5e-9 * from_end * from_end)
        age_s = (newest - self._first_x) * 1e-9
        # The crystal may have drifted since the prior was true.
        spread = math.hypot(self._slope_spread, 1e-7 * min(age_s, 200.0))
        prior = Prior(
            slope_mean_ns=(self._slope_prior - (slope - drift * 1e-9 * half_ns)) * half_ns,
            slope_spread_ns=spread * half_ns,
            bend_mean_ns=-drift * 1e-9 * half_ns * half_ns / 2,
            bend_spread_ns=DRIFT_SPREAD_PER_S * 1e-9 * half_ns * half_ns / 2,
            scale_ns=self._scale_ns,
            scale_weight=self._scale_weight,
        )
        found = fit((x - middle) / half_ns, excess, prior, self._evidence, proposal)
        self._proposal = found.proposal
        self.posterior = found
        bend_slope = 2 * found.bend_ns / half_ns
        new_drift = drift + bend_slope / half_ns * 1e9
        wander_ns = 0.0
        if count >= 2 * FEW:
            mid_slope = slope - drift * 1e-9 * half_ns + found.slope_ns / half_ns
            past = _Past(newest, offset + found.end_ns, mid_slope, found.slope_sigma_ns / half_ns)
            wander_ns = self._floor.update(past, age_s)
        self._learn(found, newest, count)
        samples_per_slot = max(1.0, self._taken * span_ns / (count * max(newest - self._first_x, span_ns)))
        self.line = Line(
            at_ns=newest,
            offset_ns=offset + found.end_ns,
            slope=slope + found.slope_ns / half_ns + bend_slope,
            drift_per_s=new_drift,
            statistical_ns=found.bound95_ns,
            floor_ns=self._jerk_ns(span_ns) + self._resolution_ns + wander_ns,
            wander_ns=wander_ns,
            scale_ns=found.scale_ns * samples_per_slot,
            window_ns=span_ns,
            count=self._taken,
            hardness=float(found.exponents @ EXPONENTS),
        )
        self._adapt(found, span_ns, count)
        self._low += int(np.searchsorted(self._x[self._low : self._high], newest - 1.3 * self._window_ns))
        self._solved_x = newest
        pause_ns = max(SOLVE_EVERY_NS, self._window_ns / SOLVES_PER_WINDOW)
        self._next_solve = newest + min(self.pace * pause_ns, span_ns / SOLVES_WHILE_YOUNG)

    def _straight(self, x: FloatArray, d: FloatArray, newest: float) -> tuple[float, float, float]:
        anchor = float(d[-1])
        reach = 3 * self._slope_spread
        slope, height, middle = highest_line_below(
            x - newest, d - anchor, self._slope_prior - reach, self._slope_prior + reach
        )
        return anchor + height - slope * middle, slope, 0.0

    def _learn(self, found: Posterior, newest: float, count: int) -> None:
        """Remember which floor the windows so far speak for; overlapping windows count by their new share."""
        if count < FEW:
            return
        share = min((newest - self._solved_x) / self._window_ns, 1.0)
        self._evidence = self._evidence * math.exp(-share / 6) + found.evidence * share
        self._evidence -= self._evidence.max()

    def _adapt(self, found: Posterior, span_ns: float, count: int) -> None:
        """Lengthen or shorten the window until the crystal's unmodelled motion is a third of the spread."""
        if count >= 2 * FEW:
            ratio = found.sigma_ns / max(3 * self._jerk_ns(span_ns), 1e-3)
            if ratio < 1 or span_ns > 0.95 * self._window_ns:
                factor = min(max(ratio**0.25, 0.9), 1.05)
                self._window_ns = min(max(self._window_ns * factor, MIN_WINDOW_NS), MAX_WINDOW_NS)
        self._slot_ns = max(self._slot_ns, min(span_ns, self._window_ns) / SLOTS_PER_WINDOW)
        if span_ns > 0.9 * self._window_ns:
            self._slot_ns = self._window_ns / SLOTS_PER_WINDOW

    @staticmethod
    def _jerk_ns(span_ns: float) -> float:
        return JERK_PER_S2 * (span_ns * 1e-9) ** 3 / JERK_DIVISOR * 1e9


def highest_line_below(
    x: FloatArray, y: FloatArray, slope_min: float, slope_max: float
) -> tuple[float, float, float]:
    """Return (slope, height at the mean of x, mean of x) of the line below all points that is highest there.

    The height is concave and piecewise linear in the slope, so a secant between the support points on either
    side of the mean finds the edge of the lower convex hull in a few passes.
    """
    middle = float(x.mean())
    at = x - middle

    def support(slope: float) -> tuple[int, float]:
        below = y - slope * at
        index = int(below.argmin())
        return index, float(below[index])

    left, height = support(slope_min)
    if at[left] >= 0:
        return slope_min, height, middle
    right, height = support(slope_max)
    if at[right] <= 0:
        return slope_max, height, middle
    for _ in range(64):
        slope = float((y[right] - y[left]) / (at[right] - at[left]))
        index, height = support(slope)
        chord = float(y[left] - slope * at[left])
        if height >= chord - 1e-3 or index in (left, right):
            break
        if at[index] < 0:
            left = index
        else:
            right = index
    return slope, height, middle
