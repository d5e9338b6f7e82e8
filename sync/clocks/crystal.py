"""How a stream's crystal moves, and whether its latency floor moves: learnt from the curve that was found.

A crystal's rate changes smoothly: over short times its third derivative (the jerk of its offset) is one number, however
far apart it is measured. A latency floor that wanders is rough: the same measure grows the shorter the times are. Both
are looked for in third differences of the curve's level, found by parabolas over windows, at two spacings;
what speaks for how much jerk and how much wander is kept as evidence over classes of both, like that of the floor's
hardness.
"""

import bisect
import math
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating[Any]]

_JERKS = np.geomspace(1e-10, 1e-6, 17)
"""Root mean square change of drift (ratio per s^2): 0.05 ppm in 30 min swings less, 30 ppm in 30 s more."""
_WANDERS = np.concatenate(([0.0], np.geomspace(1e3, 300e3, 6)))
"""Random walk of the floor, ns per root second."""
TYPICAL_JERK = 2e-9
JERK_DECADES = 0.6
"""What crystals do before this one was seen: 5 ppm in 300 s swing, with a spread of a factor of 4."""
WANDER_ODDS = 0.03
ALARM = 0.95
DOUBT = 0.3
"""From this probability on the bound allows for a wandering floor; from that one on it is said."""
OUTLIER_LOG = -6.0
"""One difference alone may be of a step that nobody has noticed yet: it cannot speak louder than this."""
MEMORY_S = 600.0
SPACINGS = ((0.25, 0.27, 0.12), (0.5, 1.03, 0.58), (1.0, 1.0, 0.82))
"""In windows; and what of independent noise and of a walk is left in third differences of parabolas' middles at that
spacing, against those of independent points (by quadrature of the least squares weights)."""
FADED = 0.4
"""Of the jerk of a swing of 60 s, in third differences 24 s apart."""
SCORES = 31
FEWEST_SCORES = 5
STEP_SCORE = 4.0
ENTRIES = 512
STEP_NS = 1e9
STEPS_PER_WINDOW = 4
DRIFT_SPREAD_PER_S = 7e-8
DRIFT_AT_FIRST_PER_S = 1.5e-7
"""Before it was seen, a crystal may warm up or swing by 15 ppm; what is seen brings it down."""
MAX_DRIFT_PER_S = 1e-5
DRIFT_MEMORY_S = 300.0
WANDER_SPAN_NS = 300e9
WANDER_STEP_NS = 2.5e9
WANDER_SHARE = 0.8
"""Of the wander, what a moving floor is blamed for: the crystal's swing is part of it too."""


def _log_normal(value: float, variance: FloatArray) -> FloatArray:
    found: FloatArray = -0.5 * (np.log(variance) + value * value / variance)
    return found


def _prior() -> FloatArray:
    decades = np.log10(_JERKS / TYPICAL_JERK) / JERK_DECADES
    of_jerk = np.exp(-0.5 * decades * decades)
    of_wander = np.full(_WANDERS.size, WANDER_ODDS / (_WANDERS.size - 1))
    of_wander[0] = 1 - WANDER_ODDS
    table: FloatArray = np.log(np.outer(of_jerk / of_jerk.sum(), of_wander))
    return table


_PRIOR = _prior()


class Crystal:
    """What is known of one device's crystal, and of its link's floor.

    Attributes:
        jerk: What the drift's change is at most (ratio per s^2), for windows.
        jerk_bound: What it may be, as long as little was seen of it, for bounds.
        walk: What the floor walks, if it does (ns per root second); ``roughness`` is the probability that it does.
        drift_per_s: Typical drift (ratio per s), for priors.
    """

    def __init__(self) -> None:
        self._evidence = np.zeros_like(_PRIOR)
        self._at: list[float] = []
        self._level: list[float] = []
        self._scores: list[deque[float]] = [deque(maxlen=SCORES) for _ in SPACINGS]
        self._variance: list[float] = []
        self._ends: deque[tuple[float, float]] = deque(maxlen=int(WANDER_SPAN_NS / WANDER_STEP_NS))
        self._seen_ns = self._inherited_ns = 0.0
        self.is_rough = False
        self._drift_weight_s = DRIFT_MEMORY_S / 4
        self._drift_square = DRIFT_AT_FIRST_PER_S**2
        self._judge()

    def successor(self) -> "Crystal":
        """Return what is known at the start of the next epoch: the crystal and the link are the same."""
        heir = Crystal()
        heir._evidence = self._evidence.copy()
        heir._drift_weight_s, heir._drift_square = self._drift_weight_s, self._drift_square
        heir._inherited_ns, heir.is_rough = self.wander_ns, self.is_rough
        heir._judge()
        return heir

    @property
    def wander_ns(self) -> float:
        """Return what of the curve's wander may be the floor's: 0 while only the crystal is seen to move."""
        if self.roughness < DOUBT:
            return 0.0
        # What is beyond two root mean squares of the walk is the crystal's.
        walked_ns = 2 * self.walk * math.sqrt(WANDER_SPAN_NS * 1e-9)
        return min(max(self._seen_ns, self._inherited_ns), walked_ns)

    def take(self, at_ns: float, level_ns: float, sigma_ns: float, window_ns: float) -> None:
        """Take the curve's level at the middle of a window, ``at_ns``, where a parabola has no bias."""
        step_ns = max(STEP_NS, window_ns / STEPS_PER_WINDOW)
        if self._at and at_ns - self._at[-1] < step_ns:
            return
        elapsed_s = (at_ns - self._at[-1]) * 1e-9 if self._at else 0.0
        for kept, value in ((self._at, at_ns), (self._level, level_ns), (self._variance, sigma_ns**2)):
            kept.append(value)
            if len(kept) > ENTRIES:
                del kept[: ENTRIES // 4]
        self._evidence *= math.exp(-elapsed_s / MEMORY_S)
        for lag_index in range(len(SPACINGS)):
            self._compare(lag_index, window_ns, step_ns)
        self._judge()

    def _without_steps(self, lag_index: int, score: float) -> float:
        """Return a difference, in units of its noise, cut to what the ones before it make believable.

        A step that nobody has noticed yet is one difference that is unlike the others; a walk makes all of them large.
        """
        before = self._scores[lag_index]
        if len(before) >= FEWEST_SCORES:
            most = STEP_SCORE * max(sorted(before)[len(before) // 2], 1.0)
            score = min(max(score, -most), most)
        before.append(abs(score))
        return score

    def drifted(self, drift_per_s: float, sigma_per_s: float, elapsed_s: float) -> None:
        """Take the drift that a window shows, ``elapsed_s`` after the one before; what the prior says is no news."""
        if sigma_per_s > 0.5 * self.drift_per_s and abs(drift_per_s) < 3 * sigma_per_s:
            return
        weight = min(self._drift_weight_s + elapsed_s, DRIFT_MEMORY_S)
        square = min(abs(drift_per_s), MAX_DRIFT_PER_S) ** 2
        self._drift_square += (square - self._drift_square) * min(elapsed_s / weight, 1.0)
        self._drift_weight_s = weight

    @property
    def drift_per_s(self) -> float:
        return max(math.sqrt(self._drift_square), 0.3 * DRIFT_SPREAD_PER_S)

    def _compare(self, lag_index: int, window_ns: float, step_ns: float) -> None:
        """Weigh the third difference of the newest level and three before it, a share of the window apart."""
        spacing, noise_left, walk_left = SPACINGS[lag_index]
        lag_ns = spacing * window_ns
        at, newest = self._at, self._at[-1]
        picked = [len(at) - 1]
        for _ in range(3):
            index = bisect.bisect_right(at, at[picked[-1]] - 0.9 * lag_ns) - 1
            if index < 0 or at[picked[-1]] - at[index] > 1.6 * lag_ns + step_ns:
                return
            picked.append(index)
        when = np.array([at[index] for index in picked]) - newest
        when *= 1e-9
        level = np.array([self._level[index] for index in picked])
        variance = np.array([self._variance[index] for index in picked])
        gaps = when[:, None] - when + np.eye(4)
        factor = 6 / gaps.prod(axis=1)
        jerk = float(factor @ level) * 1e-9
        noise = noise_left * float(factor * factor @ variance) * 1e-18
        # A random walk moves each later level alike: partial sums of the factors, over the times between.
        moved = np.cumsum(factor)[:3]
        walk = walk_left * float((moved * moved) @ -np.diff(when)) * 1e-18
        jerk = self._without_steps(lag_index, jerk / math.sqrt(noise)) * math.sqrt(noise)
        walked = walk * _WANDERS * _WANDERS + noise
        weights = _log_normal(jerk, (_JERKS * _JERKS)[:, None] + walked)
        if lag_ns >= window_ns:
            # Third differences over a large part of a swing's period are smaller than its jerk.
            faded = _log_normal(jerk, (FADED * _JERKS * FADED * _JERKS)[:, None] + walked)
            weights = np.logaddexp(weights, faded)
        weights -= weights.max()
        share = min(step_ns / lag_ns, 1.0)
        self._evidence += share * np.log(np.exp(weights) + math.exp(OUTLIER_LOG))

    def _judge(self) -> None:
        posterior = self._evidence + _PRIOR
        mass = np.exp(posterior - posterior[:, 0].max())
        of_walk = mass.sum(axis=0) / mass.sum()
        self.roughness = 1 - float(of_walk[0])
        self.walk = math.sqrt(float(of_walk @ (_WANDERS * _WANDERS)))
        self.is_rough = self.roughness > (DOUBT if self.is_rough else ALARM)
        # As long as a swift crystal explains what a walking floor would, windows are to be short enough for it.
        of_jerk = mass[:, 0] / mass[:, 0].sum()
        # A swing's jerk has a peak of root two times its root mean square.
        self.jerk = math.sqrt(2) * float(of_jerk @ _JERKS)
        self.jerk_bound = math.sqrt(2 * float(of_jerk @ (_JERKS * _JERKS)))

    def walked(self, at_ns: float, offset_ns: float) -> None:
        """Take the curve's newest value: its motion about a straight line is what a floor could be blamed for."""
        if self._ends and at_ns - self._ends[-1][0] < WANDER_STEP_NS:
            return
        self._ends.append((at_ns, offset_ns))
        if self.roughness < DOUBT or len(self._ends) < 4:
            return
        history = np.array(self._ends)
        history -= history.mean(axis=0)
        x, y = history.T
        rest = y - x * float(x @ y / (x @ x))
        # What has been seen for a short time only will go on; random motion spreads as the root of time.
        span_ns = max(float(x[-1] - x[0]), WANDER_SPAN_NS / 9)
        self._seen_ns = WANDER_SHARE * float(rest.max() - rest.min()) * math.sqrt(WANDER_SPAN_NS / span_ns)
