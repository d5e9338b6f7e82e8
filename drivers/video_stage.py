"""Video that a device sends compressed: passed through, once it is what players and readers need.

Each frame must be one access unit, for H.264 and H.265 as an Annex B byte stream. Parameter sets that the device sends
once are put before every key frame; what comes before the first key frame is booked as lost; and where a packet is
missing, the device is asked for a key frame. Pictures between a gap and that key frame travel all the same: they are
what the device sent, and readers refuse them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from sensorium.drivers.frame import COUNTER_GAP, VIDEO, Encoding, Frame, Loss, Place, StreamInfo
from sensorium.drivers.payloads.annexb import is_annexb, is_key_frame, parameter_sets

_START = b"\0\0\0\1"
_PARAMETER_BYTES = 4096
"""Room for parameter sets before a key frame."""
_SETS_NEEDED = {
    Encoding.H264: frozenset({7, 8}),
    Encoding.H265: frozenset({32, 33, 34}),
    Encoding.AV1: frozenset(),
}


@dataclass(slots=True)
class _Stream:
    encoding: str
    next_seq: int
    has_begun: bool = False
    sets: dict[int, bytes] = field(default_factory=dict)

    def whole(self, payload: bytes) -> bytes | str:
        """Return the access unit as it travels, or why it cannot."""
        if self.encoding != Encoding.AV1 and not is_annexb(payload):
            return "not an Annex B access unit"
        own = parameter_sets(self.encoding, payload)
        self.sets.update(own)
        if is_key_frame(self.encoding, payload):
            if not _SETS_NEEDED[self.encoding] <= self.sets.keys():
                return "key frame without parameter sets"
            self.has_begun = True
            missing = [unit for kind, unit in sorted(self.sets.items()) if kind not in own]
            return b"".join(_START + unit for unit in missing) + payload
        return payload if self.has_begun else "before the first key frame"


class VideoStage:
    """A stage for the streams that a driver declares as video; the others pass."""

    due_ns: int | None = None

    def __init__(self, first_seq: Mapping[str, int], ask_key_frame: Callable[[str], None]) -> None:
        """Args:
        first_seq: Where the numbers of a stream begin, if not at 0.
        ask_key_frame: Called with a stream's name when a packet of it is missing.
        """
        self._first_seq = first_seq
        self._ask = ask_key_frame
        self._streams: dict[str, _Stream] = {}

    def declare(self, infos: Sequence[StreamInfo]) -> Sequence[StreamInfo]:
        self._streams = {
            info.name: _Stream(info.encoding, self._first_seq.get(info.name, 0))
            for info in infos
            if info.encoding in VIDEO
        }
        return [self._declared(info) if info.name in self._streams else info for info in infos]

    def _declared(self, info: StreamInfo) -> StreamInfo:
        said = {"codec": f"{info.encoding}, as the device sends it"}
        return replace(
            info,
            max_payload_bytes=info.max_payload_bytes + _PARAMETER_BYTES,
            details={**said, **info.details},
        )

    def apply(self, item: Frame | Loss) -> Sequence[Frame | Loss]:
        stream = self._streams.get(item.stream)
        if stream is None:
            return (item,)
        if isinstance(item, Loss):
            stream.next_seq += item.count
            self._ask(item.stream)
            return (item,)
        gap = item.seq - stream.next_seq
        stream.next_seq = item.next_seq
        whole = stream.whole(bytes(item.payload))
        if gap > 0 or isinstance(whole, str):
            self._ask(item.stream)
        if isinstance(whole, bytes):
            return (replace(item, payload=whole),)
        lost = Loss(item.stream, item.count, Place.DRIVER, whole)
        return (Loss(item.stream, gap, Place.DEVICE, COUNTER_GAP), lost) if gap > 0 else (lost,)

    def due(self, now_ns: int) -> Sequence[Frame | Loss]:  # noqa: ARG002 - nothing is held back
        return ()

    def flush(self) -> Sequence[Frame | Loss]:
        return ()

    def refused(self, frame: Frame) -> None:
        if frame.stream in self._streams:
            self._ask(frame.stream)
