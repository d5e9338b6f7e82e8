"""Runs of samples that stay above the clock: how unlikely they are by the latency that the link has shown.

A device clock that was set back makes every sample later by the step; so does congestion. Neither can be told from
the other at once, but how long the floor has not been reached, against how often it is reached otherwise, says
when there is reason to doubt.
"""

import math

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating]

_BINS_PER_OCTAVE = 4
_BINS = 36 * _BINS_PER_OCTAVE
_UNIT_NS = 500.0
LEARNT_AFTER = 50
"""Samples before the law is asked."""
_REMEMBERED = 8192
_RENEW_EVERY = 64
MOST_NATS = 3.0
"""One late sample says no more than this, however late: rare delays are of another law than ordinary ones."""
STANDING, STANDS_AT = 0.25, 0.7


class LatencyLaw:
    """How often samples come so close to the floor, learnt in logarithmic bins with slow forgetting."""

    def __init__(self) -> None:
        self._counts = [0.0] * _BINS
        self._total = 0.0
        self._since = 0
        self._sum_ns = 0.0
        self._nats = [0.0] * (_BINS + 1)

    def add(self, excess_ns: float) -> None:
        """Take the height of a sample above the clock."""
        index = int(_BINS_PER_OCTAVE * math.log2(excess_ns / _UNIT_NS + 1)) if excess_ns > 0 else 0
        self._counts[min(index, _BINS - 1)] += 1
        self._total += 1
        self._sum_ns += excess_ns
        self._since += 1
        if self._since >= _RENEW_EVERY:
            self._renew()

    def nats(self, height_ns: float) -> float:
        """Return how much it says (natural log of the odds) that one sample is at least so high; 0 if unknown.

        Rare events are believed to be as rare as two sigma of their count allow.
        """
        if height_ns <= 0:
            return 0.0
        at = min(_BINS_PER_OCTAVE * math.log2(height_ns / _UNIT_NS + 1), _BINS - 1.0)
        index = int(at)
        below = self._nats[index]
        return below + (at - index) * (self._nats[index + 1] - below)

    @property
    def mean_ns(self) -> float | None:
        """The mean height; None before enough were seen."""
        return self._sum_ns / self._total if self._total >= LEARNT_AFTER else None

    def quantile_ns(self, share: float) -> float | None:
        """Return the height that so many samples stay below; None before enough were seen."""
        if self._total < LEARNT_AFTER:
            return None
        index = int(np.searchsorted(np.cumsum(self._counts), share * self._total))
        return float(_UNIT_NS * (2 ** ((index + 1) / _BINS_PER_OCTAVE) - 1))

    def _renew(self) -> None:
        self._since = 0
        if self._total > _REMEMBERED:
            self._counts = [count / 2 for count in self._counts]
            self._total /= 2
            self._sum_ns /= 2
        if self._total < LEARNT_AFTER:
            return
        below = np.concatenate(([0.0], np.cumsum(self._counts)))
        share = np.maximum(below - 2 * np.sqrt(below), 0.0) / self._total
        self._nats = np.minimum(-np.log1p(-np.minimum(share, 0.999)), MOST_NATS).tolist()


class Run:
    """The samples since the clock's floor was last reached, and the least height of each tail of them.

    Attributes:
        samples: (device ticks, arrival) of each.
        is_ran_back: Ticks ran back within it: the clock was set, or samples were reordered.
    """

    def __init__(self, law: LatencyLaw, tick_ns: float) -> None:
        self._tick_ns = tick_ns
        self.samples: list[tuple[int, int]] = []
        self.is_ran_back = False
        self._law = law
        self._least: list[float] = []
        self._weights: list[float] = []
        self._first: list[int] = []
        self._next_look = 4

    def clear(self) -> None:
        """The floor was reached."""
        if self._least:
            self._least.clear()
            self._weights.clear()
            self._first.clear()
        if self.samples:
            self.samples = []
        self._next_look = 4
        self.is_ran_back = False

    def drop(self, first: int) -> None:
        """Forget the samples before one that `most_unlikely` named."""
        begin = self._first.index(first)
        self._least, self._weights = self._least[begin:], self._weights[begin:]
        self._first = [at - first for at in self._first[begin:]]
        self.samples = self.samples[first:]
        self._look_later()

    def _look_later(self) -> None:
        self._next_look = len(self.samples) + max(1, len(self.samples) // 8)

    def add(self, ticks: int, arrival_ns: int, height_ns: float) -> bool:
        """Take a sample above the floor; return whether it is time to look at the run."""
        weight = 1.0
        if self.samples:
            before_ticks, before_ns = self.samples[-1]
            weight = freedom(
                height_ns, arrival_ns - before_ns, (ticks - before_ticks) * self._tick_ns, height_ns
            )
        first = len(self.samples)
        while self._least and self._least[-1] >= height_ns:
            self._least.pop()
            weight += self._weights.pop()
            first = self._first.pop()
        self._least.append(height_ns)
        self._weights.append(weight)
        self._first.append(first)
        self.samples.append((ticks, arrival_ns))
        if len(self.samples) < self._next_look:
            return False
        self._look_later()
        return True

    def most_unlikely(self, gate_ns: float) -> tuple[float, int]:
        """Return (nats, index of its first sample) of the tail that ordinary latency explains least."""
        best, best_first = 0.0, 0
        weight = 0.0
        for least_ns, own, first in zip(
            reversed(self._least), reversed(self._weights), reversed(self._first), strict=True
        ):
            weight += own
            nats = weight * self._law.nats(least_ns - gate_ns)
            if nats > best:
                best, best_first = nats, first
        return best, best_first


def freedom(height_ns: float, waited_ns: float, ticked_ns: float, least_ns: float) -> float:
    """Return how free a sample was to be lower than ``least_ns``, 0 ... 1.

    It cannot overtake the one before it. But a queue that merely has to be worked off comes quicker than it was
    captured; one that stays as long as it is, sample after sample, is strange in itself.

    Args:
        waited_ns, ticked_ns: Since the sample before it, by the host and by the device.
    """
    free = min(max(1 - (height_ns - waited_ns) / max(least_ns, 1.0), 0.0), 1.0)
    return max(free, STANDING) if waited_ns >= STANDS_AT * ticked_ns else free


def independent(
    heights_ns: FloatArray, arrival_ns: NDArray[np.int64], device_ns: FloatArray, least_ns: float
) -> float:
    """Return how many of (n,) samples could have been lower than ``least_ns``."""
    waited_ns, ticked_ns = np.diff(arrival_ns), np.diff(device_ns)
    free = np.clip(1 - (heights_ns[1:] - waited_ns) / max(least_ns, 1.0), 0.0, 1.0)
    return 1.0 + float(np.where(waited_ns >= STANDS_AT * ticked_ns, np.maximum(free, STANDING), free).sum())
