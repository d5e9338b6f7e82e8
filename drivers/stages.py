"""What happens to a device's frames in its host, between driver and bus.

A stage sees a device's items in the order in which its driver gave them. What it drops it says as a
:class:`Loss` in that place; what it holds back keeps its stamps.
"""

import functools
import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sensorium.drivers.driver import Driver
from sensorium.drivers.frame import (
    COUNTER_GAP,
    PCM_BYTES,
    VIDEO,
    ClockKind,
    Encoding,
    Frame,
    Loss,
    Place,
    StreamInfo,
)
from sensorium.drivers.payloads.choice import UNPACKED, CodecChoice, parse_codec
from sensorium.drivers.payloads.codec import CODEC_SOURCE, ChainedPack, Codec, Pack
from sensorium.drivers.payloads.table import DEFAULTS, packed_as
from sensorium.drivers.video_stage import VideoStage
from sensorium.errors import ConfigError
from sensorium.timebase import SECOND_NS

Item = Frame | Loss

BATCH_BYTES = 32 << 10
"""No batch is larger: beyond this a message costs its bytes, not its handling (specs/performance.md 3)."""

_BATCH_SAMPLES = 4096
"""A frame's header holds the stamps of so many samples (bus/wire.py)."""


class Stage(Protocol):
    """One step on the way; a stage that holds nothing back keeps the defaults of the last four.

    Attributes:
        due_ns: Host time at which :meth:`due` must be called; None while nothing is held back.
    """

    due_ns: int | None = None

    def declare(self, infos: Sequence[StreamInfo]) -> Sequence[StreamInfo]:
        """Return the streams as they leave this stage; called once, before the first item.

        Raises:
            ConfigError: If the stage is of no use to any of them.
        """
        ...

    def apply(self, item: Item) -> Sequence[Item]:
        """Return what goes on now; the order of a stream's samples and losses is kept."""
        ...

    def due(self, now_ns: int) -> Sequence[Item]:  # noqa: ARG002 - nothing is held back here
        """Return what has been held back long enough; called every round of the host."""
        return ()

    def flush(self) -> Sequence[Item]:
        """Return all that is held back; the source has ended."""
        return ()

    def refused(self, frame: Frame) -> None:  # noqa: ARG002 - what stands alone is not spoilt
        """Hear that the bus did not take a frame; what follows it must not build upon it."""
        return


class Pipeline:
    """A device's stages, one behind the other."""

    def __init__(self, stages: Sequence[Stage], infos: Sequence[StreamInfo]) -> None:
        """Declare the driver's streams from stage to stage; see :meth:`Stage.declare` for what is raised."""
        self._stages = tuple(stages)
        for stage in self._stages:
            infos = stage.declare(infos)
        self.infos = tuple(infos)

    @property
    def due_ns(self) -> int | None:
        """When the first stage that holds something back wants to be called again."""
        return min((stage.due_ns for stage in self._stages if stage.due_ns is not None), default=None)

    def apply(self, items: Iterable[Item]) -> list[Item]:
        return self._through(items, 0)

    def due(self, now_ns: int) -> list[Item]:
        found: list[Item] = []
        for index, stage in enumerate(self._stages):
            found += self._through(stage.due(now_ns), index + 1)
        return found

    def flush(self) -> list[Item]:
        found: list[Item] = []
        for index, stage in enumerate(self._stages):
            found += self._through(stage.flush(), index + 1)
        return found

    def refused(self, frame: Frame) -> None:
        for stage in self._stages:
            stage.refused(frame)

    def _through(self, items: Iterable[Item], start: int) -> list[Item]:
        taken = list(items)
        for stage in self._stages[start:]:
            if not taken:
                break
            taken = [out for item in taken for out in stage.apply(item)]
        return taken


class CodecStage(Stage):
    """Packs the payloads of those streams that the codec can pack; the others pass."""

    def __init__(
        self,
        choice: CodecChoice,
        first_seq: Mapping[str, int],
        *,
        must_fit: bool,
        only: frozenset[str] | None = None,
    ) -> None:
        """Args:
        first_seq: Where the numbers of a stream begin, if not at 0.
        must_fit: Refuse a device without a stream for this codec: the rig file names it.
        only: Pack streams of these encodings; None = of all that the codec can pack.

        Raises:
            ConfigError: If the codec has no such level.
        """
        self._choice = choice
        self._codec: Codec = choice.load()
        self._level = choice.level if choice.level is not None else self._codec.level or 0
        self._sources = self._codec.sources if only is None else self._codec.sources & only
        self._must_fit = must_fit
        self._first_seq = first_seq
        self._next_seq: dict[str, int] = {}
        self._packs: dict[str, Pack] = {}

    def declare(self, infos: Sequence[StreamInfo]) -> Sequence[StreamInfo]:
        packable = [info for info in infos if info.encoding in self._sources]
        if self._must_fit and not packable:
            found = ", ".join(f"{info.name} is {info.encoding}" for info in infos)
            raise ConfigError(
                f"codec {self._choice.name} packs {', '.join(sorted(self._codec.sources))}, but {found}; "
                "choose a codec for that, or leave codec away"
            )
        self._packs = {info.name: self._codec.packer(info, self._level) for info in packable}
        self._next_seq = {name: self._first_seq.get(name, 0) for name in self._packs}
        return [self._declared(info) if info.name in self._packs else info for info in infos]

    def _declared(self, info: StreamInfo) -> StreamInfo:
        level = "" if self._codec.level is None else f":{self._level}"
        said = {
            "codec": f"{self._codec.name}{level}",
            CODEC_SOURCE: info.encoding,
            "codec_is_exact": "true" if self._codec.is_exact else "false",
        }
        packed = packed_as(self._codec.declare(info), self._codec.encoding)
        return replace(packed, details={**info.details, **said})

    def apply(self, item: Item) -> Sequence[Item]:
        pack = self._packs.get(item.stream)
        if pack is None:
            return (item,)
        if isinstance(item, Loss):
            self._next_seq[item.stream] += item.count
            return (item,)
        gap = item.seq - self._next_seq[item.stream]
        self._next_seq[item.stream] = item.next_seq
        payload = pack(item.payload, item.count)
        if payload is not None:
            return (replace(item, payload=payload),)
        lost = Loss(item.stream, item.count, Place.DRIVER, f"could not be packed as {self._codec.name}")
        if gap <= 0:
            return (lost,)
        # Without the frame behind it nobody would see where this gap lies.
        return (Loss(item.stream, gap, Place.DEVICE, COUNTER_GAP), lost)

    def refused(self, frame: Frame) -> None:
        pack = self._packs.get(frame.stream)
        if isinstance(pack, ChainedPack):
            pack.ask_key_frame()


class BatchStage(Stage):
    """Joins the small frames of numeric and audio streams until ``batch_ns`` after the first sample's arrival.

    Only what comes back out as it went in is joined: frames that follow on each other, with equal meta values
    (see ``StreamInfo.meta_fields`` for bits) and a stamp (and, if any, a device stamp) for every sample. Where
    the clock counts samples, the first one's stamp tells the others', so blocks with one stamp are joined too;
    each sample then has its block's arrival. Everything else passes, in its place.
    """

    def __init__(self, batch_ns: int) -> None:
        self._batch_ns = batch_ns
        self._layouts: dict[str, _Layout] = {}
        self._held: dict[str, _Held] = {}

    def declare(self, infos: Sequence[StreamInfo]) -> Sequence[StreamInfo]:
        return [self._declared(info) if self._gains(info) else info for info in infos]

    def _gains(self, info: StreamInfo) -> bool:
        # A stream without a rate would wait for company that may not come.
        is_fast = info.message_rate_hz * self._batch_ns > SECOND_NS
        return is_fast and info.encoding in (Encoding.COLUMNS, *PCM_BYTES)

    def _declared(self, info: StreamInfo) -> StreamInfo:
        self._layouts[info.name] = _Layout.of(info)
        together = math.ceil(info.message_rate_hz * self._batch_ns / SECOND_NS)
        latency = replace(info.latency, max_ns=info.latency.max_ns + self._batch_ns)
        return replace(
            info,
            frame_rate_hz=info.message_rate_hz / together,
            latency=latency,
            max_payload_bytes=max(info.max_payload_bytes, BATCH_BYTES),
        )

    def apply(self, item: Item) -> Sequence[Item]:
        layout = self._layouts.get(item.stream)
        if layout is None:
            return (item,)
        held = self._held.get(item.stream)
        if isinstance(item, Frame) and self._is_small(item, layout):
            if held is not None and held.can_take(item, self._batch_ns):
                held.add(item)
                return ()
            before = self._release(item.stream)
            self._held[item.stream] = _Held(item, layout)
            self._note_due()
            return before
        return (*self._release(item.stream), item) if held is not None else (item,)

    def _is_small(self, frame: Frame, layout: "_Layout") -> bool:
        return (
            layout.can_share_stamps(frame)
            and frame.recorded is None
            and len(frame.payload) == frame.count * layout.row_bytes < BATCH_BYTES
            and int(frame.arrival_ns[-1]) - int(frame.arrival_ns[0]) < self._batch_ns
        )

    def due(self, now_ns: int) -> Sequence[Item]:
        found: list[Item] = []
        for stream, held in list(self._held.items()):
            held.first_ns = min(held.first_ns, now_ns)  # a stamp from the future must not hold it longer
            if now_ns - held.first_ns >= self._batch_ns:
                found.append(self._held.pop(stream).joined())
        if found:
            self._note_due()
        return found

    def flush(self) -> Sequence[Item]:
        found = [held.joined() for held in self._held.values()]
        self._held.clear()
        self.due_ns = None
        return found

    def _release(self, stream: str) -> Sequence[Item]:
        held = self._held.pop(stream, None)
        if held is None:
            return ()
        self._note_due()
        return (held.joined(),)

    def _note_due(self) -> None:
        first_ns = min((held.first_ns for held in self._held.values()), default=None)
        self.due_ns = None if first_ns is None else first_ns + self._batch_ns


@dataclass(frozen=True, slots=True)
class _Layout:
    """What joining needs to know of a stream.

    Attributes:
        column_bytes: Width of each column; audio is one.
        is_any: Which meta values are bits that any sample of the frame has set.
        is_counted: The clock counts samples, one tick each.
    """

    column_bytes: tuple[int, ...]
    row_bytes: int
    is_any: tuple[bool, ...]
    is_counted: bool

    @classmethod
    def of(cls, info: StreamInfo) -> "_Layout":
        if info.encoding in PCM_BYTES:
            widths: tuple[int, ...] = (PCM_BYTES[info.encoding] * info.shape[0],)
        else:
            widths = tuple(np.dtype(column.dtype).itemsize for column in info.columns)
        is_any = tuple(name.endswith("_any") for name in info.meta_fields)
        ticks_per_sample = SECOND_NS / (info.clock.tick_ns * info.rate_hz)
        is_counted = info.clock.kind is ClockKind.SAMPLES and math.isclose(ticks_per_sample, 1.0)
        return cls(widths, sum(widths), is_any, is_counted)

    def can_share_stamps(self, frame: Frame) -> bool:
        """Return whether a joined frame's stamps can say what this one's do."""
        arrivals = frame.arrival_ns.size
        ticks = arrivals if frame.device_ticks is None else frame.device_ticks.size
        return arrivals == ticks == frame.count or (self.is_counted and arrivals == ticks == 1)

    def have_alike(self, one: tuple[float, ...], other: tuple[float, ...]) -> bool:
        """Return whether frames with these meta values may be joined."""
        if one == other:
            return True
        if not len(one) == len(other) == len(self.is_any):
            return False
        return all(is_any or a == b for a, b, is_any in zip(one, other, self.is_any, strict=True))


class _Held:
    """Frames that follow on each other and will leave as one."""

    def __init__(self, frame: Frame, layout: _Layout) -> None:
        self._frames = [frame]
        self._layout = layout
        self._size_bytes = len(frame.payload)
        self._count = frame.count
        self.first_ns = int(frame.arrival_ns[0])

    def can_take(self, frame: Frame, batch_ns: int) -> bool:
        last = self._frames[-1]
        return (
            frame.seq == last.next_seq
            and self._layout.have_alike(frame.meta, last.meta)
            and self._stamps_follow(frame)
            and self.first_ns <= int(frame.arrival_ns[0])
            and int(frame.arrival_ns[-1]) - self.first_ns < batch_ns
            and self._size_bytes + len(frame.payload) <= BATCH_BYTES
            and self._count + frame.count <= _BATCH_SAMPLES
        )

    def _stamps_follow(self, frame: Frame) -> bool:
        first, last = self._frames[0], self._frames[-1]
        if frame.device_ticks is None or last.device_ticks is None or first.device_ticks is None:
            return frame.device_ticks is last.device_ticks
        if first.device_ticks.size == first.count:
            return frame.device_ticks.size == frame.count
        expected = int(first.device_ticks[0]) + self._count
        return frame.device_ticks.size == 1 and int(frame.device_ticks[0]) == expected

    def add(self, frame: Frame) -> None:
        self._frames.append(frame)
        self._size_bytes += len(frame.payload)
        self._count += frame.count

    def joined(self) -> Frame:
        first = self._frames[0]
        if len(self._frames) == 1:
            return first
        return replace(
            first,
            count=self._count,
            device_ticks=self._ticks(),
            arrival_ns=np.concatenate([_each_arrival(one) for one in self._frames]),
            payload=self._payload(),
            meta=self._meta(),
        )

    def _ticks(self) -> NDArray[np.int64] | None:
        first = self._frames[0]
        if first.device_ticks is None or first.device_ticks.size < first.count:
            return first.device_ticks
        return np.concatenate([one.device_ticks for one in self._frames if one.device_ticks is not None])

    def _meta(self) -> tuple[float, ...]:
        metas = {frame.meta for frame in self._frames}
        if len(metas) == 1:
            return self._frames[0].meta
        return tuple(
            float(functools.reduce(operator.or_, map(int, values))) if is_any else values[0]
            for values, is_any in zip(zip(*metas, strict=True), self._layout.is_any, strict=True)
        )

    def _payload(self) -> bytes:
        """Return the frames' columns, each in one piece: a column of the first frame, of the second, ..."""
        if len(self._layout.column_bytes) == 1:
            return b"".join([frame.payload for frame in self._frames])
        pieces = []
        offset = 0
        for width in self._layout.column_bytes:
            for frame in self._frames:
                pieces.append(frame.payload[offset * frame.count : (offset + width) * frame.count])
            offset += width
        return b"".join(pieces)


def _each_arrival(frame: Frame) -> NDArray[np.int64]:
    if frame.arrival_ns.size == frame.count:
        return frame.arrival_ns
    return np.repeat(frame.arrival_ns, frame.count)


def stages_for(
    driver: Driver[Any], infos: Sequence[StreamInfo], codec: str | None, batch_ms: float
) -> list[Stage]:
    """Return the stages of an opened driver with the streams ``infos``.

    What blocks is a recording: its frames stay as they were, unless ``codec`` says otherwise. On a virtual host
    clock no time passes that a batch could wait for.

    Args:
        codec: The ``codec`` key of the device's entry in the rig file; None = what its options ask for, then
            what is exact and pays.

    Raises:
        ConfigError: If the codec is unknown.
    """
    stages: list[Stage] = []
    if batch_ms > 0 and not driver.blocks and driver.timeline is None:
        stages.append(BatchStage(round(batch_ms * 1e6)))
    if any(info.encoding in VIDEO for info in infos) and not driver.blocks:
        stages.append(VideoStage(driver.first_seq, driver.ask_key_frame))
    wanted = codec if codec is not None else driver.codec
    choice = None if wanted is None else parse_codec(wanted)
    if choice is not None:
        stages.append(CodecStage(choice, driver.first_seq, must_fit=codec is not None))
    if wanted != UNPACKED and not driver.blocks:
        for encoding in dict.fromkeys(info.encoding for info in infos if info.encoding in DEFAULTS):
            default = CodecChoice(DEFAULTS[encoding].name)
            stages.append(CodecStage(default, driver.first_seq, must_fit=False, only=frozenset({encoding})))
    return stages
