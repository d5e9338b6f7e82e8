"""One-way clock estimation: the lower envelope of arrival against device time, in a window that adapts.

Latency is never negative, so the samples that were delayed least mark the clock (Moon, Skelly, Towsley,
INFOCOM 1999). `LowerEnvelope` keeps the least delayed sample of each short slot of a window, finds the
posterior of a curve under them (`sensorium.sync.clocks.envelope`) and evaluates it at the newest sample. The
window is as long as the crystal's change of drift allows for the accuracy that the samples give.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sensorium.sync.clocks.crystal import Crystal
from sensorium.sync.clocks.envelope import EXPONENTS, FEW, Posterior, Prior, Proposal, fit

FloatArray = NDArray[np.floating[Any]]

SOLVE_EVERY_NS = 250e6
SOLVES_PER_WINDOW = 24
SOLVES_WHILE_YOUNG = 16
SOLVES_AFTER_PAUSE = 4
SOLVES_AT_MOST = 200
"""A sample below the line asks for a new one at once, but not more often than so many times a window."""
SLOTS_PER_WINDOW = 1024
CAPACITY = 4096
"""Slots kept: four windows of points, so that a shrinking slot never starves the window."""
MIN_WINDOW_NS = 4e9
MAX_WINDOW_NS = 1800e9
ROUGH_WINDOW_NS = 20e9
"""A walking floor can be followed by no window; shorter ones only add the jitter's noise to it."""
HARDNESS_ODDS = np.array([0.0, -1.0, -1.6, -2.4, -3.6, -5.0])
"""Log odds of each exponent before anything was seen: a few dozen samples cannot tell, and guessing soft costs."""
WARY_ODDS = np.array([0.0, 1.2, 2.0, 2.9, 3.9, 4.5])
"""On top of them, for the bound: it is to hold for links of every kind, soft ones too."""
LINE_UNTIL = 24
"""With fewer samples than this the reference is the best straight line, found afresh each time."""
JERK_DIVISOR = 60.0
"""A cubic j t^3 / 6 over a window W, fitted by a parabola, is off by about j W^3 / 60 at its end."""
PAUSE_SHARE = 0.1
BOUNDED_BY = 4.0
"""Of n exponential delays the least exceeds 4 / n of their mean in 2 % of cases."""
SKEW_AFTER_PAUSE = 5e-7
MANY = 128
"""After a pause what was before it is used up to so many samples, if the crystal's bias over it is below the spread."""
FEWEST = 24
"""Samples that the window holds where there are as many: with less the prior of the slope would decide."""
BIAS_AT_CENTRE = 0.25
UNEVEN = 0.25
UNTRIED_NS = 20e9
TRIED_SHARE = 0.6
BIAS_SHARE = 1.5
"""The window is as long as makes its bias this part of the spread."""
KNOWN_WEIGHT = 16.0
"""Samples that the law of latency of the epoch before counts for."""
MEAN_OVER = 4096
OUTLIER = 8.0
"""A stall is not of the law of latency: delays count for no more than so many times their mean."""
REACH_SHARE = 0.25
"""Samples are used across a pause while the crystal cannot have strayed by more than this share of the jitter."""


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
        jerk_per_s2: What the crystal's drift is taken to change by.
        is_floor_moving: True once it is proven; ``wander_ns`` allows for it before.
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
    jerk_per_s2: float
    is_floor_moving: bool


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
        scale_prior_ns: float = 1.5e6,
        scale_weight: float = 0.6,
        resolution_ns: float = 0.0,
        mean_prior_ns: float | None = None,
    ) -> None:
        self._slope_prior = slope_prior
        self._slope_spread = slope_spread
        self._scale_ns = scale_prior_ns
        self._scale_weight = scale_weight
        self._mean_ns = scale_prior_ns if mean_prior_ns is None else mean_prior_ns
        self._mean_of = 0
        self._resolution_ns = resolution_ns
        self.pace = 1.0
        self._evidence: FloatArray = HARDNESS_ODDS.copy()
        self._wary: FloatArray = WARY_ODDS.copy()
        self._window_ns = MAX_WINDOW_NS
        self._x = np.empty(2 * CAPACITY)
        self._d = np.empty(2 * CAPACITY)
        self._low = self._high = 0
        self._slot_ns = self._thinned_ns = 0.0
        self._slot = -1
        self._slot_excess = 0.0
        self._first_x = self._prior_x = 0.0
        self._newest = -math.inf
        self._woke_x = -math.inf
        self._next_solve = -math.inf
        self._solved_x = 0.0
        self._taken = 0
        self._crystal = Crystal()
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
        heir = LowerEnvelope(
            line.slope, skew_spread, line.scale_ns, KNOWN_WEIGHT, self._resolution_ns, self._mean_ns
        )
        heir._evidence = self._evidence.copy()
        heir._wary = self._wary
        heir._window_ns = self._window_ns
        heir._crystal = self._crystal.successor()
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
        if x - self._newest > PAUSE_SHARE * self._window_ns:
            self._woke_x = x
        if line is not None and x - self._newest > self._window_ns:
            if x - self._newest > self._reach_ns(line):
                self._resume(line, x)
            else:
                self._keep_skew(line, x)
        if line is None:
            excess = d
            if self._high == self._low:
                self._first_x = self._prior_x = x
        else:
            excess = d - line.offset_ns - line.slope * (x - line.at_ns)
            if self._taken >= FEW:
                self._mean_of += self._mean_of < MEAN_OVER
                delay_ns = min(max(excess, 0.0), OUTLIER * self._mean_ns)
                self._mean_ns += (delay_ns - self._mean_ns) / (self._mean_of + 1)
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

    def _reach_ns(self, line: Line) -> float:
        """Return how long a pause may last for what was before it to be of use."""
        reach_ns = self._unbiased_ns(REACH_SHARE * line.scale_ns + line.statistical_ns)
        return min(max(reach_ns, self._window_ns), MAX_WINDOW_NS)

    def _unbiased_ns(self, allowed_ns: float) -> float:
        """Return over what time (ns) the crystal's unmodelled motion stays within ``allowed_ns``."""
        return 1e9 * math.pow(allowed_ns * 1e-9 * JERK_DIVISOR / self._crystal.jerk, 1 / 3)

    def _keep_skew(self, line: Line, x: float) -> None:
        """Remember the skew over a pause that windows to come will not see across."""
        pause_s = (x - self._newest) * 1e-9
        of_window = 2 * line.statistical_ns / max(line.window_ns, 1e9)
        self._slope_prior = line.slope
        self._slope_spread = SKEW_AFTER_PAUSE + of_window + self._crystal.drift_per_s * min(pause_s, 200.0)
        self._prior_x = x

    def _resume(self, line: Line, x: float) -> None:
        """Begin anew after a gap that outlasted the window: what is known is about what the skew was."""
        gap_s = (x - self._newest) * 1e-9
        self._slope_prior = line.slope
        self._slope_spread = SKEW_AFTER_PAUSE + self._crystal.drift_per_s * min(gap_s, 200.0)
        self._prior_x = x
        self._scale_ns, self._scale_weight = line.scale_ns, KNOWN_WEIGHT
        self._low = self._high
        self._first_x = self._next_solve = x
        self._taken = 0
        self._slot, self._slot_ns, self._thinned_ns = -1, 0.0, 0.0
        self._proposal = None

    def _solve(self) -> None:
        newest = self._newest
        points = slice(self._low, self._high)
        begin = self._low + int(np.searchsorted(self._x[points], newest - self._window_ns))
        begin = max(min(begin, self._high - FEWEST), self._low)
        if self._high - begin < MANY and begin > self._low and self.line is not None:
            reach_ns = self._unbiased_ns(self.line.statistical_ns)
            further = self._low + int(np.searchsorted(self._x[points], newest - reach_ns))
            begin = min(begin, max(further, self._high - MANY))
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
        prior_age_s = (newest - self._prior_x) * 1e-9
        # The crystal may have drifted since the prior was true.
        crystal = self._crystal
        spread = math.hypot(self._slope_spread, crystal.drift_per_s * min(prior_age_s, 200.0))
        prior = Prior(
            slope_mean_ns=(self._slope_prior - (slope - drift * 1e-9 * half_ns)) * half_ns,
            slope_spread_ns=spread * half_ns,
            bend_mean_ns=-drift * 1e-9 * half_ns * half_ns / 2,
            bend_spread_ns=crystal.drift_per_s * 1e-9 * half_ns * half_ns / 2,
            scale_ns=self._scale_ns,
            scale_weight=self._scale_weight,
            mean_ns=self._mean_ns,
        )
        at = (x - middle) / half_ns
        found = fit(at, excess, prior, self._evidence, proposal, wary=self._wary)
        self._proposal = found.proposal
        self.posterior = found
        bend_slope = 2 * found.bend_ns / half_ns
        new_drift = drift + bend_slope / half_ns * 1e9
        # After a pause the middle of the window may be where there are no samples.
        is_even = abs(float(at.mean())) + abs(float(at @ at) / count - 1 / 3) < UNEVEN
        if count >= FEWEST and is_even:
            centre = offset - slope * half_ns + drift * 0.5e-9 * half_ns * half_ns
            centre += found.middle_ns - found.bend_ns / 3
            # The cubic that a parabola misses disturbs its middle too.
            sigma_ns = math.hypot(found.centre_sigma_ns, BIAS_AT_CENTRE * self._jerk_ns(span_ns))
            crystal.take(middle, centre, sigma_ns, span_ns)
            crystal.walked(newest, offset + found.end_ns)
            drift_sigma = 2e9 * found.bend_sigma_ns / (half_ns * half_ns)
            crystal.drifted(new_drift, drift_sigma, (newest - self._solved_x) * 1e-9)
        wander_ns = crystal.wander_ns
        self._learn(found, newest, span_ns, count)
        samples_per_slot = max(1.0, self._taken * span_ns / (count * max(newest - self._first_x, span_ns)))
        self.line = Line(
            at_ns=newest,
            offset_ns=offset + found.end_ns,
            slope=slope + found.slope_ns / half_ns + bend_slope,
            drift_per_s=new_drift,
            statistical_ns=found.bound95_ns,
            floor_ns=self._bias_ns(x, span_ns) + self._resolution_ns + wander_ns,
            wander_ns=wander_ns,
            scale_ns=found.scale_ns * samples_per_slot,
            window_ns=span_ns,
            count=self._taken,
            hardness=float(found.exponents @ EXPONENTS),
            jerk_per_s2=crystal.jerk,
            is_floor_moving=crystal.is_rough,
        )
        self._adapt(found, span_ns, count)
        self._low += int(np.searchsorted(self._x[self._low : self._high], newest - 2 * self._window_ns))
        self._solved_x = newest
        pause_ns = max(SOLVE_EVERY_NS, self._window_ns / SOLVES_PER_WINDOW)
        since_pause_ns = max(newest - self._woke_x, 0.0) / SOLVES_AFTER_PAUSE
        self._next_solve = newest + min(self.pace * pause_ns, span_ns / SOLVES_WHILE_YOUNG, since_pause_ns)

    def _straight(self, x: FloatArray, d: FloatArray, newest: float) -> tuple[float, float, float]:
        anchor = float(d[-1])
        reach = 3 * self._slope_spread
        slope, height, middle = highest_line_below(
            x - newest, d - anchor, self._slope_prior - reach, self._slope_prior + reach
        )
        return anchor + height - slope * middle, slope, 0.0

    def _learn(self, found: Posterior, newest: float, span_ns: float, count: int) -> None:
        """Remember which floor the windows so far speak for; overlapping windows count by their new share."""
        if count < FEW:
            return
        # While the window still grows, each contains all that the ones before it did.
        share = min((newest - self._solved_x) / min(self._window_ns, max(span_ns, UNTRIED_NS)), 1.0)
        self._evidence = self._evidence * math.exp(-share / 6) + found.evidence * share
        self._wary = self._wary * math.exp(-share / 6)
        self._evidence -= self._evidence.max()

    def _adapt(self, found: Posterior, span_ns: float, count: int) -> None:
        """Lengthen or shorten the window until the crystal's unmodelled motion is a third of the spread."""
        if count >= FEWEST:
            spread_ns = min(found.sigma_ns, found.bound95_ns / 1.6) / BIAS_SHARE
            used_ns = min(self._window_ns, span_ns)
            if self._jerk_ns(used_ns) > spread_ns:
                self._window_ns = used_ns * max((spread_ns / self._jerk_ns(used_ns)) ** 0.25, 0.9)
            elif self._jerk_ns(self._window_ns) < spread_ns:
                self._window_ns *= min((spread_ns / self._jerk_ns(self._window_ns)) ** 0.25, 1.05)
            # No longer than what the crystal was seen to do over several windows vouches for.
            longest_ns = min(max(UNTRIED_NS, (self._newest - self._first_x) * TRIED_SHARE), MAX_WINDOW_NS)
            shortest_ns = ROUGH_WINDOW_NS if self._crystal.is_rough else MIN_WINDOW_NS
            self._window_ns = min(max(self._window_ns, shortest_ns), longest_ns)
        self._slot_ns = max(self._slot_ns, min(span_ns, self._window_ns) / SLOTS_PER_WINDOW)
        if span_ns > 0.9 * self._window_ns:
            self._slot_ns = self._window_ns / SLOTS_PER_WINDOW
        if self._slot_ns > 2 * self._thinned_ns and self._high - self._low > SLOTS_PER_WINDOW:
            self._thin()

    def _thin(self) -> None:
        """Bring the points that were kept to slots as long as the new ones: windows are to be of one density."""
        line, kept = self.line, slice(self._low, self._high)
        assert line is not None
        x, d = self._x[kept], self._d[kept]
        slots = np.floor(x / self._slot_ns).astype(np.int64)
        order = np.lexsort((d - line.slope * x, slots))
        first = np.concatenate(([True], np.diff(slots[order]) > 0))
        chosen = np.sort(order[first])
        self._high = self._low + chosen.size
        self._x[self._low : self._high], self._d[self._low : self._high] = x[chosen], d[chosen]
        self._slot = int(slots[-1])
        self._slot_excess = float(
            self._d[self._high - 1] - line.offset_ns - line.slope * (self._x[self._high - 1] - line.at_ns)
        )
        self._thinned_ns = self._slot_ns

    def _bias_ns(self, x: FloatArray, span_ns: float) -> float:
        """Return what the crystal may have done that the parabola does not know of.

        After a pause of g, a parabola through w before it errs by jerk / 6 * g (g + w / 2) (g + w), as interpolation
        does, until the new samples bound it themselves: they lie above the curve, one of n by about mean / n.
        """
        crystal = self._crystal
        bias_ns = self._jerk_ns(span_ns) * crystal.jerk_bound / crystal.jerk
        steps = np.diff(x)
        if not steps.size:
            return bias_ns
        pause = int(steps.argmax())
        gap_ns = float(steps[pause])
        if gap_ns < PAUSE_SHARE * span_ns or x.size < FEWEST:
            return bias_ns
        gap_s, before_s = gap_ns * 1e-9, float(x[pause] - x[0]) * 1e-9
        strayed_ns = crystal.jerk_bound * 1e9 / 6 * gap_s * (gap_s + before_s / 2) * (gap_s + before_s)
        return bias_ns + min(strayed_ns, BOUNDED_BY * self._mean_ns / (x.size - 1 - pause))

    def _jerk_ns(self, span_ns: float) -> float:
        return self._crystal.jerk * (span_ns * 1e-9) ** 3 / JERK_DIVISOR * 1e9


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
