"""What a capture time may be, whatever a clock says: not after its arrival, not running backwards.

Late is not impossible: samples that a link held back for seconds were captured when their clock says. So nothing
is moved for being late, and whatever is moved widens the bound by as much.
"""

import numpy as np
from numpy.typing import NDArray

from sensorium.sync.clocks.model import Uncertainty

FloatArray = NDArray[np.floating]
LEAST_PROOF_NS = 2_000_000
"""Arrivals jitter by this much on the quietest link."""


class CaptureClamp:
    """Keeps the captures of one stream credible, frame by frame in order of arrival.

    Attributes:
        moved_ns: By how much a capture of the last call was moved, at most.
    """

    def __init__(self) -> None:
        self.moved_ns = 0
        self._last_ns = -(1 << 62)

    @property
    def last_ns(self) -> int:
        """The latest capture time given so far."""
        return self._last_ns

    def one(self, capture_ns: int, arrival_ns: int) -> int:
        """Return the capture time of a single sample."""
        credible_ns = min(max(capture_ns, self._last_ns), arrival_ns)
        self.moved_ns = abs(credible_ns - capture_ns)
        self._last_ns = max(self._last_ns, credible_ns)
        return credible_ns

    def block(self, capture_ns: NDArray[np.int64], arrival_ns: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the (k,) capture times of a block; ``arrival_ns`` is (k,), or (1,) = that of the last sample."""
        credible_ns = capture_ns
        if credible_ns[0] < self._last_ns:
            credible_ns = np.maximum(credible_ns, self._last_ns)
        if credible_ns.size > 1:
            credible_ns = np.maximum.accumulate(credible_ns)
        credible_ns = np.minimum(credible_ns, arrival_ns)
        self.moved_ns = int(np.abs(credible_ns - capture_ns).max())
        self._last_ns = max(self._last_ns, int(credible_ns[-1]))
        return credible_ns

    def widened(self, known: Uncertainty) -> Uncertainty:
        """Return what is known of the capture times of the last call, which may have been moved."""
        return widened(known, self.moved_ns) if self.moved_ns else known


def widened(known: Uncertainty, by_ns: float) -> Uncertainty:
    """Return an uncertainty whose 95 % bound is wider by so much."""
    return Uncertainty(known.statistical_ns, known.floor_ns + by_ns, known.asymmetry_ns)


class HeldSamples:
    """Tells samples that were held back from a device whose clock stood still while nothing came.

    Both begin alike: after a silence the ticks go on where they stopped. Samples that were held come quicker than
    they were captured, so that each is less late than the one before; a clock that stood still stays late by
    the same. Until that is seen, the bound covers both.
    """

    def __init__(self, credible_ns: int) -> None:
        """``credible_ns``: the largest latency that the driver declares; up to it nothing is in doubt."""
        self._credible_ns = credible_ns
        self._first_ns = 0
        self._are_held = False

    def doubt_ns(self, late_ns: int, jitter_ns: float) -> int:
        """Return by how much later than its clock says a sample may have been captured.

        Args:
            late_ns: Arrival minus capture, by its clock.
            jitter_ns: Arrivals jitter by this much, 95 % of the time.
        """
        if late_ns <= self._credible_ns:
            self._first_ns = 0
            self._are_held = False
            return 0
        if not self._first_ns:
            self._first_ns = late_ns
        elif self._first_ns - late_ns > 4 * max(jitter_ns, LEAST_PROOF_NS):
            self._are_held = True
        return 0 if self._are_held else late_ns


def within_step(begin_ns: int, latest_ns: int, step_ns: float, jitter_ns: float) -> tuple[int, float]:
    """Return the capture time of a sample whose stamp was cut off, and its half width.

    It was captured within the step that begins at its stamp, and before it arrived, but hardly longer before than
    arrivals jitter.

    Args:
        begin_ns: The host's time at which the stamp's step begins.
        latest_ns: Arrival minus the least latency.
        jitter_ns: Arrivals jitter by this much, 95 % of the time.
    """
    early_ns, late_ns = max(float(begin_ns), latest_ns - jitter_ns), min(begin_ns + step_ns, float(latest_ns))
    if early_ns >= late_ns:  # late, so its arrival says nothing; or as early as can be
        early_ns, late_ns = float(begin_ns), begin_ns + (step_ns if latest_ns > begin_ns else 0.0)
    return round((early_ns + late_ns) / 2), (late_ns - early_ns) / 2
