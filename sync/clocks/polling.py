"""Hosts that fetch samples at fixed instants (USB frames, a driver's loop), seen in the arrivals.

Samples that are ready wait for the next instant. If the device's own rate lets them meet few phases of the fetching,
all of them wait, and the wait looks like a least latency. It cannot be measured, but that there is one can: a latency
that knows nothing of instants can only blur the phases of the captures, so arrivals that are more concentrated than
the captures were fetched.
"""

import math
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating[Any]]

PERIODS_NS = (125e3, 250e3, 500e3, 1e6, 2e6, 4e6, 8e6, 10e6)
"""USB micro-frames, frames and the intervals of endpoints; timers of kernels."""
OFF = 6e-5
"""A bus has a crystal of its own, which is off the host's clock by so much at most (ratio)."""
MOST_TRIALS = 65
"""Rates of the bus that are tried; of the samples so many are used that these suffice."""
LONGEST_NS = 30e9
"""Over longer times the clock's line bends too much."""
FEWEST = 32
KEPT = 256
LONGEST_LOOK = 4096
NEWS = 0.1
SURE = 18.0
"""How much likelier (natural log) arrivals that were fetched make what is seen; one look asks some 100 questions."""
CLEARER = 0.15
"""By how much arrivals are more concentrated than captures (resultant of unit vectors, 0 ... 1)."""
AS_CLEAR = 0.9
"""Periods whose arrivals are as concentrated as this share of the most are the same fetching seen in other units."""
HELD_SHARE = 0.5
"""A sample that came quicker after its predecessor than this share of what the device needed was held back."""
CHANCE = 3.0
"""Phases that fall anywhere leave a gap of (ln n + this) / n of the period in one of twenty cases."""


class Polling:
    """Finds out whether one stream's samples are fetched, and what of the period no sample's phase has met.

    Attributes:
        period_ns: Of the fetching; 0 = none was found.
        unseen_ns: So long all samples may have waited, beside the latency that is seen.
    """

    def __init__(self) -> None:
        self.period_ns = self.unseen_ns = 0.0
        self._arrivals: deque[int] = deque(maxlen=KEPT)
        self._devices: deque[float] = deque(maxlen=KEPT)
        self._last = (0, 0.0)
        self._until_look = self._look_every = FEWEST

    def clear(self) -> None:
        """Forget the samples: those to come are of another clock. The link is the same."""
        self._arrivals.clear()
        self._devices.clear()
        self._until_look = self._look_every = FEWEST

    def take(self, arrival_ns: int, device_ns: float) -> bool:
        """Take a sample, ``device_ns`` since the epoch's origin; return whether it is time to look."""
        before_ns, before_device_ns = self._last
        self._last = (arrival_ns, device_ns)
        if arrival_ns - before_ns < HELD_SHARE * (device_ns - before_device_ns):
            return False
        self._arrivals.append(arrival_ns)
        self._devices.append(device_ns)
        self._until_look -= 1
        return self._until_look <= 0

    def look(self, offset_at: Callable[[FloatArray], FloatArray]) -> bool:
        """Look at the samples anew; return whether ``unseen_ns`` is another now.

        Args:
            offset_at: Host minus device time at (k,) device times, by the clock that is known by now.
        """
        arrivals_ns = (np.array(self._arrivals, np.int64) - self._arrivals[0]).astype(np.float64)
        device_ns = np.array(self._devices)
        captures_ns = device_ns + offset_at(device_ns)
        before_ns = self.unseen_ns
        self.period_ns, self.unseen_ns = fetched(arrivals_ns, captures_ns - captures_ns[0])
        self._look_every = min(2 * self._look_every, KEPT if self.period_ns else LONGEST_LOOK)
        self._until_look = self._look_every
        return abs(self.unseen_ns - before_ns) > NEWS * max(before_ns, self.unseen_ns)


def fetched(arrivals_ns: FloatArray, captures_ns: FloatArray) -> tuple[float, float]:
    """Return (period, what of it no capture's phase has met), ns, of (n,) samples' fetching; zeros if there is none.

    Args:
        arrivals_ns, captures_ns: (n,) since any instant, growing; captures may be late by any constant.
    """
    found = [_concentrated(period_ns, arrivals_ns, captures_ns) for period_ns in PERIODS_NS]
    clearest = AS_CLEAR * max(concentrated for concentrated, _ in found)
    if not clearest:
        return 0.0, 0.0
    # Instants a millisecond apart are also whole micro-frames apart.
    period_ns, unmet = next(
        (period_ns, unmet)
        for period_ns, (concentrated, unmet) in zip(reversed(PERIODS_NS), reversed(found), strict=True)
        if concentrated >= clearest
    )
    return period_ns, unmet * period_ns


def _concentrated(period_ns: float, arrivals_ns: FloatArray, captures_ns: FloatArray) -> tuple[float, float]:
    """Return how concentrated arrivals are, and the share of the period that is not met; zeros if not fetched."""
    span_ns = min((MOST_TRIALS - 1) / 4 * period_ns / OFF, LONGEST_NS)
    first = int(np.searchsorted(arrivals_ns, arrivals_ns[-1] - span_ns))
    n = arrivals_ns.size - first
    if n < FEWEST:
        return 0.0, 0.0
    cycles = OFF * (arrivals_ns[-1] - arrivals_ns[first]) / period_ns
    offs = np.linspace(-OFF, OFF, 2 * math.ceil(2 * cycles) + 1)
    turns = (2j * math.pi / period_ns) * (1 + offs[:, None])
    of_arrivals = np.abs(np.exp(turns * arrivals_ns[first:]).mean(axis=1))
    best = int(of_arrivals.argmax())
    # The best of all rates, so that a clock that is not well known yet does not make captures look spread.
    of_captures = float(np.abs(np.exp(turns * captures_ns[first:]).mean(axis=1)).max())
    concentrated = float(of_arrivals[best])
    if concentrated < of_captures + CLEARER or n * (concentrated**2 - of_captures**2) < SURE:
        return 0.0, 0.0
    return concentrated, _unmet(captures_ns[first:] * (1 + offs[best]) / period_ns)


def _unmet(turns: FloatArray) -> float:
    """Return the largest part of a turn that (n,) phases leave empty; 0 if chance leaves as much."""
    phases = np.sort(turns % 1.0)
    gap = float(max(np.diff(phases).max(), 1 + phases[0] - phases[-1]))
    return gap if gap > (math.log(phases.size) + CHANCE) / phases.size else 0.0
