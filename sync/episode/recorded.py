"""A frame read back from an episode, with the capture times that were stated beside it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sensorium.drivers.frame import Frame
from sensorium.sync.clocks.model import Stamped, Uncertainty
from sensorium.timebase import SECOND_NS


@dataclass(frozen=True, slots=True, eq=False)
class RecordedFrame:
    """A frame as it was published, with the capture times that were computed on arrival."""

    frame: Frame
    stamped: Stamped
    instance: int

    @property
    def uncertainty(self) -> Uncertainty:
        return self.stamped.uncertainty


def sample_times_ns(capture_ns: NDArray[np.int64], count: int, rate_hz: float) -> NDArray[np.int64]:
    """Return the (count,) capture times of a frame's samples, host ns.

    Where only that of the first is stated, the others follow at the stream's rate; at once where it has none.
    """
    if len(capture_ns) == count:
        return capture_ns
    period_ns = SECOND_NS / rate_hz if rate_hz else 0.0
    return np.asarray(capture_ns[0] + np.rint(np.arange(count) * period_ns), np.int64)
