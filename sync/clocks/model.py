"""What a clock estimate is: a map from device ticks to the host clock, with its uncertainty in parts."""

from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

ONE_WAY = "oneway-envelope"
"""Method of a stream's own estimate; every other name is that of a clock that it follows."""


@dataclass(frozen=True, slots=True)
class Uncertainty:
    """Half widths in nanoseconds, in parts; :attr:`total95_ns` is what a capture time may be off by.

    Attributes:
        statistical_ns: From the number and spread of the samples.
        floor_ns: From the shape of the latency floor (soft, drifting or bimodal floors).
        asymmetry_ns: Bound on what no stamp can show: the constant least latency one way, unequal paths
            two ways.
    """

    statistical_ns: float
    floor_ns: float
    asymmetry_ns: float

    @property
    def bound95_ns(self) -> float:
        """What was measured: covers the truth 95 % of the time but for the asymmetry. For estimators."""
        return self.statistical_ns + self.floor_ns

    @property
    def total95_ns(self) -> float:
        """The bound of a capture time, for whoever uses it: what is not known is part of it.

        The asymmetry is a bound and no spread: it does not average out, so it is added, not joined in squares.
        """
        return self.bound95_ns + self.asymmetry_ns


@dataclass(frozen=True, slots=True)
class ClockModel:
    """Affine map of one epoch: host_ns = ref_host_ns + (ticks - ref_ticks) * ns_per_tick.

    Attributes:
        epoch: Counts resets of the device clock; maps of different epochs have nothing in common.
        ref_ticks: Unwrapped device ticks at which ``ref_host_ns`` holds.
        skew_ppm: How much longer a device tick is than nominal, in parts per million.
    """

    epoch: int
    method: str
    ref_ticks: int
    ref_host_ns: int
    ns_per_tick: float
    skew_ppm: float
    uncertainty: Uncertainty

    def to_host(self, unwrapped_ticks: NDArray[np.int64]) -> NDArray[np.int64]:
        """Map (k,) unwrapped ticks to (k,) host nanoseconds."""
        elapsed_ns = (unwrapped_ticks - self.ref_ticks) * self.ns_per_tick
        host_ns: NDArray[np.int64] = self.ref_host_ns + np.rint(elapsed_ns).astype(np.int64)
        return host_ns

    def to_ticks(self, host_ns: NDArray[np.int64]) -> NDArray[np.int64]:
        """Map (k,) host nanoseconds to the nearest (k,) unwrapped ticks; the inverse of `to_host`."""
        elapsed_ticks = (host_ns - self.ref_host_ns) / self.ns_per_tick
        ticks: NDArray[np.int64] = self.ref_ticks + np.rint(elapsed_ticks).astype(np.int64)
        return ticks


CREDIBLE_SKEW_PPM = 10_000.0
"""A hundred times what crystals are off. Beyond it the fit saw a queue being emptied, or too few stamps."""


def credible_skew_ppm(skew_ppm: float) -> float | None:
    """Return a skew as people are told it; None where it is that of no clock."""
    return skew_ppm if abs(skew_ppm) <= CREDIBLE_SKEW_PPM else None


class ClockEventKind(str, Enum):
    RESET = "reset"
    BACKWARDS = "backwards"
    DUPLICATE = "duplicate"
    FROZEN = "frozen"
    STALL = "stall"
    AHEAD = "ahead"
    FLOOR = "floor"
    TRIGGER = "trigger"
    FOLLOW = "follow"


@dataclass(frozen=True, slots=True)
class ClockEvent:
    """Something that happened to a stream's clock, at ``host_ns``; ``detail`` is a sentence with numbers."""

    stream: str
    kind: ClockEventKind
    host_ns: int
    detail: str


@dataclass(frozen=True, slots=True, eq=False)
class Stamped:
    """Capture times of one frame.

    Attributes:
        capture_ns: (k,) int64 host nanoseconds, one per arrival stamp or device stamp (whichever are more);
            never after the arrival.
        epoch: The clock epoch that they were mapped with.
    """

    capture_ns: NDArray[np.int64]
    uncertainty: Uncertainty
    epoch: int
