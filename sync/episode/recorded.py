"""A frame read back from an episode, with the capture times that were stated beside it."""

from dataclasses import dataclass

from sensorium.drivers.frame import Frame
from sensorium.sync.clocks.model import Stamped, Uncertainty


@dataclass(frozen=True, slots=True, eq=False)
class RecordedFrame:
    """A frame as it was published, with the capture times that were computed on arrival."""

    frame: Frame
    stamped: Stamped
    instance: int

    @property
    def uncertainty(self) -> Uncertainty:
        return self.stamped.uncertainty
