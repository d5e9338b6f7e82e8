"""A stream as the thinker knows it: its clock's tracker, and the maps that come of it."""

from dataclasses import dataclass

from sensorium.drivers.bus.wire import Declare
from sensorium.drivers.frame import ClockKind, Frame, StreamInfo
from sensorium.sync.clocks.published import ClockMap, MapSource
from sensorium.sync.clocks.tracker import StreamTracker
from sensorium.sync.recording.notes import FrameNote

JITTER_PACE = 16.0
"""Streams without a device clock are solved so much less often: only the jitter of their arrivals comes of it."""


@dataclass(slots=True)
class TrackedStream:
    """One stream of one driver instance.

    Attributes:
        has_own_time: Its frames state their capture times (the replay of an episode); nothing is estimated.
    """

    device: str
    instance: int
    index: int
    info: StreamInfo
    tracker: StreamTracker
    source: MapSource
    has_ended: bool = False
    has_own_time: bool = False
    last_seq: int = 0

    @classmethod
    def of(cls, declare: Declare, index: int) -> "TrackedStream":
        """Return the state for a stream that was just declared."""
        info = declare.streams[index]
        tracker = StreamTracker(info)
        found = cls(declare.device, declare.instance, index, info, tracker, MapSource(tracker))
        found.set_pace(1.0)
        return found

    def set_pace(self, pace: float) -> None:
        """Solve so many times less often than the clocks would like."""
        self.tracker.pace = pace * (JITTER_PACE if self.info.clock.kind is ClockKind.NONE else 1.0)

    def take(self, note: FrameNote) -> None:
        """Let the tracker see a frame."""
        if note.has_own_time:
            self.has_own_time = True
            return
        ticks = note.device_ticks
        frame = Frame(self.info.name, note.seq, note.count, ticks, note.arrival_ns, b"")
        self.tracker.update(frame)
        self.last_seq = note.seq + (0 if ticks is None else ticks.size - 1)

    def news(self) -> ClockMap | None:
        """Return a new map for the recorder, if there is one."""
        return None if self.has_own_time else self.source.news(self.last_seq)

    @property
    def method(self) -> str:
        """Whose estimate stamps the stream, for the manifest; "" = arrivals."""
        if self.has_own_time:
            return "recorded"
        model = self.tracker.model
        return model.method if model is not None else ""
