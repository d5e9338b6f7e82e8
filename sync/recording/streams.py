"""What the recorder keeps of each driver instance and each of its streams."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sensorium.drivers.bus.counters import Counts, read_counters
from sensorium.drivers.bus.wire import Declare
from sensorium.drivers.frame import Frame, StreamInfo
from sensorium.drivers.payloads.payload import Buffer
from sensorium.drivers.payloads.table import driver_bytes, payload_check
from sensorium.errors import EpisodeError, PayloadError, WireError
from sensorium.sync.clocks.model import Stamped, Uncertainty
from sensorium.sync.clocks.published import MapStamper
from sensorium.sync.recording.accounting import InstanceStream
from sensorium.timebase import SECOND_NS

_OLDEST_NS = 86_400 * SECOND_NS
_MAX_STAMP_NS = 1 << 61
"""73 years: UTC in nanoseconds fits, and differences of stamps stay within int64."""


@dataclass(slots=True)
class LiveStream:
    """One stream of a driver instance that is connected now; ``index`` is its place in the declaration.

    ``driver_bytes`` tells how large a payload was as the driver gave it.
    """

    info: StreamInfo
    index: int
    stamper: MapStamper
    account: InstanceStream = field(default_factory=InstanceStream)
    driver_bytes: Callable[[Buffer, int], int] = field(init=False)
    _fits: Callable[[Buffer, int], None] = field(init=False)
    _most_ticks: float = field(init=False)

    def __post_init__(self) -> None:
        self.driver_bytes = driver_bytes(self.info)
        self._fits = payload_check(self.info)
        self._most_ticks = _MAX_STAMP_NS / self.info.clock.tick_ns

    def stamp(self, frame: Frame) -> Stamped:
        """Return the capture times of a frame; those of an episode that is replayed stay as they were."""
        known = frame.recorded
        if known is None:
            return self.stamper.stamp(frame)
        uncertainty = Uncertainty(known.statistical_ns, known.floor_ns, known.asymmetry_ns)
        return Stamped(known.capture_ns, uncertainty, known.epoch)

    def check(self, frame: Frame, now_ns: int | None) -> None:
        """Raise ``WireError`` if the frame is not what the stream declared, or its stamps are no times.

        Args:
            now_ns: Host time; None in a replay, whose stamps have no relation to now.
        """
        info = self.info
        earliest_ns, latest_ns = -_MAX_STAMP_NS, _MAX_STAMP_NS
        if now_ns is not None:
            earliest_ns, latest_ns = now_ns - _OLDEST_NS, now_ns + SECOND_NS
        first_ns, last_ns = _extremes(frame.arrival_ns)
        if not earliest_ns <= first_ns <= last_ns <= latest_ns:
            raise WireError(f"{info.name}: an arrival stamp lies in the future or long ago")
        if frame.device_ticks is not None:
            least, most = _extremes(frame.device_ticks)
            if max(-least, most) > self._most_ticks:
                raise WireError(f"{info.name}: a device stamp is more than 73 years from zero")
        size = len(frame.payload)
        if size > info.max_payload_bytes:
            raise WireError(
                f"{info.name}: payload of {size} bytes, declared at most {info.max_payload_bytes}"
            )
        if frame.recorded is not None and now_ns is not None:
            raise WireError(f"{info.name}: states its own capture time, which only a replay may")
        if frame.recorded is not None and int(frame.recorded.capture_ns.min()) < earliest_ns:
            raise WireError(f"{info.name}: a recorded capture time lies long ago")
        if len(frame.meta) != len(info.meta_fields):
            raise WireError(f"{info.name}: {len(frame.meta)} meta values, declared {len(info.meta_fields)}")
        try:
            self._fits(frame.payload, frame.count)
        except PayloadError as err:
            raise WireError(str(err)) from err


def _extremes(values: NDArray[np.int64]) -> tuple[int, int]:
    if values.size == 1:  # of a single sample, as of every image; NumPy's way takes ten times as long
        only = values.item()
        return only, only
    return int(values.min()), int(values.max())


@dataclass(slots=True)
class Instance:
    """A driver instance: its connection, its streams, and whether it has said its last word."""

    declare: Declare
    identity: bytes
    streams: dict[str, LiveStream]
    heard_ns: int
    has_ended: bool = False
    error: str = ""

    @property
    def number(self) -> int:
        return self.declare.instance

    def settle(self, read: Callable[[Path], Counts] = read_counters) -> str:
        """Close the accounts of an instance that died without a last word; return what could not be known."""
        self.has_ended = True
        try:
            _, counts = read(Path(self.declare.counters))
        except EpisodeError as err:
            return str(err)
        for name, stream in self.streams.items():
            if name in counts:
                stream.account.settle(counts[name])
        return ""


def instance_of(declare: Declare, identity: bytes, now_ns: int) -> Instance:
    """Return the state for a newly declared driver instance."""
    streams = {
        info.name: LiveStream(
            info, index, MapStamper(info), InstanceStream(declare.first_seq.get(info.name, 0))
        )
        for index, info in enumerate(declare.streams)
    }
    return Instance(declare, identity, streams, now_ns)
