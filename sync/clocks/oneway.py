"""One-way clock estimation: the lower envelope of arrival against device time, in a window that adapts.

Latency is never negative, so the samples that were delayed least mark the clock. The estimate is the line
under all samples of a window that maximises its value at their mean (Moon, Skelly, Towsley, INFOCOM 1999: the
maximum-likelihood line under exponential latency), corrected for its bias and evaluated at the window's end.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating[Any]]

BIAS_EXCESSES = 2.0
"""Median error of the envelope at the window's end, in (excess scale / samples); spec 1.5 and 2a."""
BOUND_EXCESSES = 8.0
"""95 % of the error of the corrected envelope, in the same unit."""


@dataclass(frozen=True, slots=True)
class Line:
    """Estimate at one instant: host - device time = ``offset_ns`` + ``slope`` * (device time - ``at_ns``).

    Attributes:
        statistical_ns, floor_ns: Half widths of the stated 95 % bound.
        scale_ns: Scale of the latency above its floor (its mean, if it is exponential).
        window_ns: Device time that the estimate rests on; ``count`` samples.
    """

    at_ns: float
    offset_ns: float
    slope: float
    statistical_ns: float
    floor_ns: float
    scale_ns: float
    window_ns: float
    count: int


class LowerEnvelope:
    """Causal estimator of one epoch, in constant memory.

    Args:
        slope_prior: Skew to expect, ``slope_bound`` its half width at the epoch's start (both as ratios).
        max_drift_per_s: Largest change of the skew per second that the device's crystal makes (ratio per s).
        scale_prior_ns: Expected latency scale; counts as much as 8 samples.
        capacity: Samples kept; older ones are forgotten even if the window would like them.
    """

    def __init__(
        self,
        slope_prior: float = 0.0,
        slope_bound: float = 2e-4,
        max_drift_per_s: float = 1.2e-7,
        scale_prior_ns: float = 1e6,
        capacity: int = 8192,
    ) -> None:
        self._slope_prior = slope_prior
        self._slope_bound = slope_bound
        self._max_drift = max_drift_per_s
        self._scale_ns = scale_prior_ns
        self._capacity = capacity
        self._x = np.empty(2 * capacity)
        self._d = np.empty(2 * capacity)
        self._low = self._high = 0
        self._first_x = 0.0
        self._solved_x = -np.inf
        self._window_ns = MAX_WINDOW_NS
        self.line: Line | None = None

    def add(self, device_ns: FloatArray, offset_ns: FloatArray) -> None:
        """Take (k,) samples: device time since the epoch's start, growing, and host minus device time.

        Samples that are not newer than the newest one are ignored.
        """
        if self._high > self._low and device_ns[0] <= self._x[self._high - 1]:
            is_new = device_ns > self._x[self._high - 1]
            device_ns, offset_ns = device_ns[is_new], offset_ns[is_new]
        count = device_ns.size
        if count == 0:
            return
        if count > self._capacity:
            device_ns, offset_ns = device_ns[-self._capacity :], offset_ns[-self._capacity :]
            count = self._capacity
        if self._high + count > self._x.size:
            keep = slice(max(self._low, self._high - self._capacity + count), self._high)
            kept = keep.stop - keep.start
            self._x[:kept] = self._x[keep]
            self._d[:kept] = self._d[keep]
            self._low, self._high = 0, kept
        if self.line is None and self._high == self._low:
            self._first_x = float(device_ns[0])
        new = slice(self._high, self._high + count)
        self._x[new] = device_ns
        self._d[new] = offset_ns
        self._high += count
        if self._is_due(device_ns, offset_ns):
            self._solve()

    def offset_at(self, device_ns: FloatArray) -> FloatArray:
        """Return host minus device time at (k,) device times by the current line."""
        line = self.line
        assert line is not None, "no sample yet"
        return line.offset_ns + line.slope * (device_ns - line.at_ns)

    def _is_due(self, device_ns: FloatArray, offset_ns: FloatArray) -> bool:
        line = self.line
        if line is None or self._high - self._low < 64:
            return True
        if device_ns[-1] - self._solved_x >= SOLVE_EVERY_NS:
            return True
        return bool((offset_ns < self.offset_at(device_ns)).any())

    def _solve(self) -> None:
        newest = float(self._x[self._high - 1])
        self._solved_x = newest
        self._low = max(self._low, self._high - self._capacity)
        begin = newest - self._window_ns
        low = self._low + int(np.searchsorted(self._x[self._low : self._high], begin))
        x = self._x[low : self._high] - newest
        d = self._d[low : self._high]
        count = x.size
        age_s = (newest - self._first_x) * 1e-9
        bound = self._slope_bound + self._max_drift * age_s
        anchor = float(d[-1])
        slope, height, middle = highest_line_below(
            x, d - anchor, self._slope_prior - bound, self._slope_prior + bound
        )
        excess = d - anchor - (height + slope * (x - middle))
        scale_ns = self._scale(excess)
        span_ns = max(-float(x[0]), 1.0)
        per_sample_ns = scale_ns / count
        end_ns = height - slope * middle
        correction_ns = min(BIAS_EXCESSES, 0.7 + 0.1 * count) * per_sample_ns
        # A slope that the prior pins adds its own error; one that the samples determine does not.
        lever_ns = min(bound * span_ns / 2, BOUND_EXCESSES * per_sample_ns)
        statistical_ns = 3.0 * per_sample_ns + lever_ns
        floor_ns = self._max_drift * 1e-9 * span_ns * span_ns / 8
        self.line = Line(
            at_ns=newest,
            offset_ns=anchor + end_ns - correction_ns,
            slope=slope,
            statistical_ns=statistical_ns,
            floor_ns=floor_ns,
            scale_ns=scale_ns,
            window_ns=span_ns,
            count=count,
        )
        rate_per_s = max(count - 1, 1) / span_ns * 1e9
        wanted_s = (32e-9 * scale_ns / (rate_per_s * self._max_drift)) ** (1 / 3)
        self._window_ns = min(max(wanted_s * 1e9, MIN_WINDOW_NS), MAX_WINDOW_NS)
        # Samples older than twice the window will not be asked for again, unless the rate falls.
        horizon = newest - 2 * self._window_ns
        if self._x[self._low] < horizon:
            self._low += int(np.searchsorted(self._x[self._low : self._high], horizon))

    def _scale(self, excess: FloatArray) -> float:
        count = excess.size
        rank = max(4, count // 10)
        if count <= 8:
            return (8 * self._scale_ns + float(excess.sum())) / (8 + count)
        low = float(np.partition(excess, rank)[rank])
        scale_ns = low / -math.log1p(-rank / count)
        if count < 64:
            scale_ns = (8 * self._scale_ns + count * scale_ns) / (8 + count)
        else:
            self._scale_ns = scale_ns
        return max(scale_ns, 1.0)


SOLVE_EVERY_NS = 250_000_000
MIN_WINDOW_NS = 2e9
MAX_WINDOW_NS = 120e9


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
