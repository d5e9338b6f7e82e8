"""The way of a stamp through recorder and thinker, without their processes: maps come a batch late."""

from collections import deque

from sensorium.drivers.frame import Frame, StreamInfo
from sensorium.sync.clocks.model import Stamped
from sensorium.sync.clocks.published import MapSource, MapStamper
from sensorium.sync.clocks.tracker import StreamTracker

BATCH_NS = 20_000_000
"""The recorder sends notes so often."""
DELAY_NS = 20_000_000
"""What the thinker takes to answer a batch; measured on two busy cores it is less nearly always."""


class PublishedPath:
    """Stamps frames by published maps, as ``update`` of a tracker stamps them by its own."""

    def __init__(self, info: StreamInfo, delay_ns: int = DELAY_NS) -> None:
        self.tracker = StreamTracker(info)
        self.stamper = MapStamper(info)
        self._source = MapSource(self.tracker)
        self._delay_ns = delay_ns
        self._noted: list[Frame] = []
        self._sent: deque[tuple[int, list[Frame]]] = deque()
        self._next_batch_ns = 0

    def update(self, frame: Frame) -> Stamped:
        """Return the stamps that the recorder would give a frame now."""
        now_ns = int(frame.arrival_ns[-1])
        while self._sent and self._sent[0][0] <= now_ns:
            self._think(self._sent.popleft()[1])
        stamped = self.stamper.stamp(frame)
        self._noted.append(frame)
        if now_ns >= self._next_batch_ns:
            self._next_batch_ns = now_ns + BATCH_NS
            self._sent.append((now_ns + self._delay_ns, self._noted))
            self._noted = []
        return stamped

    def _think(self, frames: list[Frame]) -> None:
        for frame in frames:
            self.tracker.update(frame)
        last = frames[-1]
        ticks = 1 if last.device_ticks is None else last.device_ticks.size
        found = self._source.news(last.seq + ticks - 1)
        if found is not None:
            self.stamper.use(found)
