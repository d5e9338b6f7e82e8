"""Device stamps that are coarser than they look: the step of their clock, and whether the samples are a finer one.

A stamp that is cut off to whole steps says only that the sample was captured within the step that begins there. If
samples come at a steady rate, their count tells the time between two of them far better than the stamps do; that
they are steady is shown by the stamps, which then all lie within one step below one straight line.
"""

import itertools
import math
from collections import Counter, deque
from enum import Enum

import numpy as np
from numpy.typing import NDArray

COARSE_NS = 50_000.0
"""Finer steps matter no more than other errors do."""
_FIRST_LOOK, _LOOKS = 16, (16, 32, 64)
ON_THE_GRID = 0.8
"""So many of the differences are whole steps; the rest may be bad ticks."""
NEAR = 0.05
REPEATS = 3
"""An exact counter does not repeat itself, or once by mistake."""
_KEPT = 512
STEADY_AFTER = 32
_WITHIN = 0.02
_NOISE_NS = 20_000.0
DRIFT_LIMIT = 3e-4
"""A sampling clock and the clock of its stamps differ by less."""
CRYSTAL, MOST_OFF = 1e-4, 0.2
"""Nominal rates are those of a crystal, or else quite another."""
_SLOPES = 25


class Grid(Enum):
    """What is known of the step of a device's stamps."""

    UNKNOWN = "unknown"
    FINE = "fine"
    EXACT = "exact"
    COARSE = "coarse"


class TickGrid:
    """Finds the step of one stream's stamps from their differences, and keeps the newest samples.

    Differences that are all the same multiple of the sequence number's are those of an exact counter, or of a coarse
    one that runs in step with the samples: that shows when it slips by a step.

    Attributes:
        state: What is known; only an unknown or exact grid needs to see samples.
        step_ticks: The step, in ticks, of a coarse grid.
        samples: (unwrapped ticks, sequence number, arrival) of the newest samples.
    """

    def __init__(self, tick_ns: float, period_ticks: float, is_cut: bool) -> None:
        """``is_cut``: ticks are those of a clock, not a count of samples."""
        self.samples: deque[tuple[int, int, int]] = deque(maxlen=_KEPT)
        self.step_ticks = 1
        self.state = Grid.UNKNOWN if is_cut else Grid.FINE
        self._tick_ns = tick_ns
        self._period_ticks = period_ticks
        self._differences: list[int] = []
        self._per_count: Counter[float] = Counter()
        self._repeats = 0
        if is_cut and tick_ns >= COARSE_NS:
            self.state = Grid.COARSE

    @property
    def step_ns(self) -> float:
        return self.step_ticks * self._tick_ns

    @property
    def repeats(self) -> bool:
        """Whether equal stamps of successive samples are in good order."""
        return self.state is Grid.COARSE and 0 < self._period_ticks < 2 * self.step_ticks

    def take(self, ticks: int, seq: int, arrival_ns: int) -> bool:
        """Take a sample that is not known to be of another clock; return whether the state has changed."""
        before = self.samples[-1] if self.samples else None
        self.samples.append((ticks, seq, arrival_ns))
        if before is None or self.state in (Grid.FINE, Grid.COARSE):
            return False
        moved, counted = ticks - before[0], seq - before[1]
        if self.state is Grid.EXACT:
            return self._slips(moved, counted, arrival_ns - before[2])
        if moved <= 0 or counted <= 0:
            self._repeats += moved == 0 and counted > 0
            return False
        self._differences.append(moved)
        self._per_count[moved / counted] += 1
        if len(self._differences) not in _LOOKS:
            return False
        return self._look()

    def forget(self) -> None:
        """Forget the samples: those to come are of another epoch."""
        self.samples.clear()

    def _look(self) -> bool:
        differences = self._differences
        pairs = Counter(math.gcd(a, b) for a, b in itertools.pairwise(differences))
        steps = [one for one, _ in pairs.most_common(4)]
        fitting = [
            one
            for one in steps
            if sum(moved % one == 0 for moved in differences) >= ON_THE_GRID * len(differences)
        ]
        step = max(fitting, default=1)
        left = [min(moved % step, -moved % step) for moved in differences if moved % step]
        # A bad tick lies anywhere; a fine clock beside whole steps is off by a tick or two.
        is_near = sum(one < NEAR * step for one in left) > len(left) / 2
        exact = max(self._per_count.values())
        if step * self._tick_ns < COARSE_NS or is_near:
            self.state = Grid.FINE
        elif exact >= ON_THE_GRID * len(differences) and self._repeats < REPEATS:
            if len(differences) < _LOOKS[-1]:
                return False
            self.state, self.step_ticks = Grid.EXACT, step
        else:
            self.state, self.step_ticks = Grid.COARSE, step
        self._per_count.clear()
        self._differences = []
        return True

    def _slips(self, moved: int, counted: int, waited_ns: int) -> bool:
        """Return whether a counter that was exact so far has slipped against the samples by whole parts of them."""
        slip = moved - counted * self.step_ticks
        if slip == 0 or counted <= 0:
            return False
        is_lost = slip > 0 and waited_ns > (counted + 0.5 * slip / self.step_ticks) * self.step_ns
        step = math.gcd(abs(slip), self.step_ticks)
        if is_lost or abs(slip) > 2 * self.step_ticks or step * self._tick_ns < COARSE_NS:
            if step * self._tick_ns < COARSE_NS:
                self.state = Grid.FINE
            return False
        self.state, self.step_ticks = Grid.COARSE, step
        return True

    def steady_period(self) -> tuple[float, float] | None:
        """Return the period of the samples (ns of device time) and how far it may be off (ratio).

        None if they are not as evenly spaced as their stamps can show, or too few.
        """
        if self._period_ticks <= 0 or len(self.samples) < STEADY_AFTER:
            return None
        kept = np.array(self.samples, np.int64)
        if (np.diff(kept[:, 1]) <= 0).any():
            return None
        nominal_ns = self._period_ticks * self._tick_ns
        counted_ns = (kept[:, 1] - kept[0, 1]) * nominal_ns
        behind_ns = (kept[:, 0] - kept[0, 0]) * self._tick_ns - counted_ns
        reach = self.step_ns / counted_ns[-1]
        slope = behind_ns[-1] / counted_ns[-1]
        if abs(slope) > MOST_OFF:
            return None
        if narrowest_ns(counted_ns, behind_ns, slope, reach) > self.step_ns * (1 + _WITHIN) + _NOISE_NS:
            return None
        if abs(slope) <= reach:
            return nominal_ns, CRYSTAL
        return float(nominal_ns * (1 + slope)), max(CRYSTAL, float(reach))


def narrowest_ns(
    at_ns: NDArray[np.floating], value_ns: NDArray[np.floating], slope: float, reach: float
) -> float:
    """Return the height of the narrowest band that holds (n,) points, over slopes within ``reach`` of ``slope``."""
    slopes = np.linspace(slope - reach, slope + reach, _SLOPES)
    for _ in range(4):
        left = value_ns - slopes[:, None] * at_ns
        heights = left.max(axis=1) - left.min(axis=1)
        best = int(heights.argmin())
        width = slopes[1] - slopes[0]
        slopes = np.linspace(slopes[best] - width, slopes[best] + width, _SLOPES)
    return float(heights[best])
