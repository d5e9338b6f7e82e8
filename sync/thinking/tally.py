"""What is counted of one stream of one episode beside its balance: rate, holes, stated uncertainty."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sensorium.drivers.frame import StreamInfo
from sensorium.sync.clocks.model import ClockEvent, Stamped
from sensorium.sync.distribution import Distribution
from sensorium.timebase import SECOND_NS

_GAP_PERIODS = 3
_MAX_GAPS = 1000
_FRAMES_OF_A_SKEW = 3


@dataclass(slots=True)
class StreamTally:
    """What an episode says about one stream; across driver restarts.

    ``bytes_raw`` are of payloads as the driver gave them, before a codec packed them.
    """

    info: StreamInfo
    frames: int = 0
    samples: int = 0
    bytes_raw: int = 0
    first_arrival_ns: int | None = None
    last_arrival_ns: int = 0
    first_capture_ns: int = 0
    last_capture_ns: int = 0
    last_frame_ns: int = 0
    last_count: int = 0
    gaps: list[tuple[int, int]] = field(default_factory=list)
    bound_ns: Distribution = field(default_factory=Distribution)
    asymmetry_ns: float = 0.0
    skew_ppm: float | None = None
    clock_method: str = ""
    clock_epochs: int = 1
    clock_events: Counter[str] = field(default_factory=Counter)

    def add(self, count: int, driver_bytes: int, arrival_ns: NDArray[np.int64], stamped: Stamped) -> None:
        """Count one stored frame, in order of arrival."""
        first, last = int(stamped.capture_ns[0]), int(stamped.capture_ns[-1])
        if self.first_arrival_ns is None:
            self.first_arrival_ns = int(arrival_ns[0])
            self.first_capture_ns = first
        elif self.info.rate_hz:
            gap_ns = first - self.last_capture_ns
            if gap_ns > _GAP_PERIODS * SECOND_NS / self.info.message_rate_hz and len(self.gaps) < _MAX_GAPS:
                self.gaps.append((self.last_capture_ns, gap_ns))
        self.frames += 1
        self.samples += count
        self.bytes_raw += driver_bytes
        self.last_arrival_ns = int(arrival_ns[-1])
        self.last_capture_ns = last
        self.last_frame_ns = first
        self.last_count = count
        self.bound_ns.add(stamped.uncertainty.total95_ns)
        self.asymmetry_ns = stamped.uncertainty.asymmetry_ns
        self.clock_epochs = max(self.clock_epochs, stamped.epoch + 1)

    def note_clock(self, events: Iterable[ClockEvent]) -> None:
        for event in events:
            self.clock_events[event.kind.value] += 1

    @property
    def told_skew_ppm(self) -> float | None:
        """The skew, where enough frames were recorded that one could be seen."""
        return self.skew_ppm if self.frames >= _FRAMES_OF_A_SKEW else None

    @property
    def rate_hz(self) -> float:
        """Recorded samples per second of capture time; 0 while unknown."""
        if self.last_frame_ns <= self.first_capture_ns:
            return 0.0
        return (self.samples - self.last_count) * SECOND_NS / (self.last_frame_ns - self.first_capture_ns)
