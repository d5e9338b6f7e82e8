"""How each stream is laid out in MCAP: its channel, and its messages, which give payload bytes back exactly.

Sequence numbers, stamps and metadata of frames lie in the stream's stamps channel (``/name/stamps``), in the
same chunk as the frames, so that a chunk that survives a crash is complete. The messages hold what viewers
need: payload, geometry, and the capture time as ``timestamp``.
"""

import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from google.protobuf.message import DecodeError
from pydantic import TypeAdapter, ValidationError

from sensorium.drivers.frame import PCM_BYTES, VIDEO, Encoding, Frame, MessageSchema, StreamInfo
from sensorium.drivers.payloads.clouds import POINT_BYTES
from sensorium.drivers.payloads.table import TABLE, check_stream, largest_payload_bytes, payload_check
from sensorium.errors import ConfigError, EpisodeError, PayloadError
from sensorium.sync.episode import schemas
from sensorium.sync.episode.mcap_records import Buffer
from sensorium.wording import said

_STREAM_INFO = TypeAdapter(StreamInfo)


@dataclass(frozen=True, slots=True)
class ChannelFormat:
    """What MCAP must know of a channel."""

    topic: str
    schema: MessageSchema


def dump_stream_info(info: StreamInfo) -> str:
    """Return a stream's declaration as JSON, the form it has in channel metadata and manifest."""
    return _STREAM_INFO.dump_json(info).decode()


def load_stream_info(text: str) -> StreamInfo:
    """Return the stream that ``dump_stream_info`` wrote.

    Raises:
        EpisodeError: If the text is not a stream declaration.
    """
    try:
        return _STREAM_INFO.validate_json(text)
    except (ValidationError, ConfigError) as err:
        raise EpisodeError(f"stream declaration in the episode is invalid: {said(err)}") from err


def protobuf_schema(message: Any) -> MessageSchema:
    """Return a protobuf message class as an embedded MCAP schema."""
    return MessageSchema(
        "protobuf", message.DESCRIPTOR.full_name, "protobuf", schemas.descriptor_set(message)
    )


def varint(value: int) -> bytes:
    """Return ``value`` >= 0 as a protobuf varint."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def bytes_tag(number: int) -> bytes:
    """Return the tag of a length-delimited field."""
    return varint(number << 3 | 2)


def timestamp_field(utc_ns: int) -> bytes:
    """Return field 1, a google.protobuf.Timestamp, as protobuf writes it."""
    seconds, nanos = divmod(utc_ns, 1_000_000_000)
    inner = _seconds_field(seconds)
    if nanos >= 1 << 28:  # three in four; written out because every frame has one
        inner += bytes(
            (
                0x10,
                nanos & 0x7F | 0x80,
                nanos >> 7 & 0x7F | 0x80,
                nanos >> 14 & 0x7F | 0x80,
                nanos >> 21 & 0x7F | 0x80,
                nanos >> 28,
            )
        )
    elif nanos:
        inner += b"\x10" + varint(nanos)
    return _TIMESTAMP_HEADS[len(inner)] + inner


@lru_cache(maxsize=64)
def _seconds_field(seconds: int) -> bytes:
    return b"\x08" + varint(seconds & (1 << 64) - 1) if seconds else b""


_TIMESTAMP_HEADS = [b"\x0a" + varint(size) for size in range(32)]


class MessageLayout(ABC):
    """Wraps the frames of one stream into messages and back."""

    def __init__(self, info: StreamInfo, schema: MessageSchema) -> None:
        self.info = info
        self.channel = ChannelFormat(f"/{info.name}", schema)
        self._check = payload_check(info)

    def check(self, frame: Frame) -> None:
        """Check a frame's payload against the stream's declaration.

        Raises:
            EpisodeError: If it has not the size of its samples.
        """
        try:
            self._check(frame.payload, frame.count)
        except PayloadError as err:
            raise EpisodeError(f"frame {frame.seq} cannot be stored: {err}") from err

    @abstractmethod
    def wrap_parts(self, frame: Frame, capture_utc_ns: int) -> Sequence[Buffer]:
        """Return the message as buffers whose join is the message; the payload is referenced, not copied.

        Raises:
            EpisodeError: If the payload does not have the layout that the stream declared.
        """

    @abstractmethod
    def unwrap(self, data: Buffer) -> bytes:
        """Return the payload bytes of a message.

        Raises:
            EpisodeError: If the message cannot be parsed.
        """


class _Passthrough(MessageLayout):
    """Messages of somebody else's schema."""

    def __init__(self, info: StreamInfo) -> None:
        if info.schema is None:
            raise ConfigError(f"stream {info.name}: messages need their schema")
        super().__init__(info, info.schema)

    def wrap_parts(self, frame: Frame, capture_utc_ns: int) -> Sequence[Buffer]:  # noqa: ARG002
        return (frame.payload,)

    def unwrap(self, data: Buffer) -> bytes:
        return bytes(data)


class _OneField(MessageLayout):
    """Protobuf messages whose payload is one bytes field among constants.

    Protobuf writes fields in the order of their numbers, so a message is: timestamp, the constants with
    smaller numbers, the payload, the constants with larger ones (and the count, where the schema has one).
    """

    def __init__(self, info: StreamInfo, message: Any, constants: dict[str, Any]) -> None:
        super().__init__(info, protobuf_schema(message))
        self._message = message
        number = schemas.field_number(message, "data")
        head = {
            name: value for name, value in constants.items() if schemas.field_number(message, name) < number
        }
        tail = {name: value for name, value in constants.items() if name not in head}
        self._head = message(**head).SerializeToString()
        self._tail = message(**tail).SerializeToString()
        self._tag = bytes_tag(number)
        has_count = "count" in message.DESCRIPTOR.fields_by_name
        self._count_tag = varint(schemas.field_number(message, "count") << 3) if has_count else b""

    def wrap_parts(self, frame: Frame, capture_utc_ns: int) -> Sequence[Buffer]:
        self.check(frame)
        size = len(frame.payload)
        head = timestamp_field(capture_utc_ns) + self._head
        tail = self._tail
        if self._count_tag:
            tail += self._count_tag + varint(frame.count)
        if not size:
            return (head + tail,)
        return (head + self._tag + varint(size), frame.payload, tail)

    def unwrap(self, data: Buffer) -> bytes:
        return bytes(_parse(self._message, data, self.info.name).data)


class _Columns(MessageLayout):
    """Numeric blocks: every column a bytes field beside its name, unit, type and scale."""

    def __init__(self, info: StreamInfo) -> None:
        super().__init__(info, protobuf_schema(schemas.SampleBlock))
        self._head = schemas.SampleBlock(frame_id=info.frame_id).SerializeToString()
        self._columns = [
            (
                schemas.SampleColumn(
                    name=column.name, unit=column.unit, dtype=column.dtype, scale=column.scale
                ).SerializeToString(),
                int(column.dtype[2:]),
            )
            for column in info.columns
        ]
        self._column_tag = bytes_tag(schemas.field_number(schemas.SampleBlock, "columns"))
        self._data_tag = bytes_tag(schemas.field_number(schemas.SampleColumn, "data"))
        self._count_tag = varint(schemas.field_number(schemas.SampleBlock, "count") << 3)
        self._frame_count = 1
        self._heads, self._tail = self._frame_of(1)

    def wrap_parts(self, frame: Frame, capture_utc_ns: int) -> Sequence[Buffer]:
        self.check(frame)
        if frame.count != self._frame_count:  # nearly always that of the frame before
            self._frame_count = frame.count
            self._heads, self._tail = self._frame_of(frame.count)
        view = memoryview(frame.payload)
        out: list[Buffer] = [timestamp_field(capture_utc_ns) + self._head]
        for head, begin, end in self._heads:
            out += (head, view[begin:end])
        out.append(self._tail)
        return (b"".join(out),)

    def _frame_of(self, count: int) -> tuple[list[tuple[bytes, int, int]], bytes]:
        """Return what stands before each column of so many samples and where its data lie, and what ends it."""
        heads = []
        at = 0
        for head, item_bytes in self._columns:
            size = count * item_bytes
            data_head = self._data_tag + varint(size)
            size_field = varint(len(head) + len(data_head) + size)
            heads.append((self._column_tag + size_field + head + data_head, at, at + size))
            at += size
        return heads, self._count_tag + varint(count)

    def unwrap(self, data: Buffer) -> bytes:
        return b"".join(column.data for column in _parse(schemas.SampleBlock, data, self.info.name).columns)


def _parse(message: Any, data: Buffer, stream: str) -> Any:
    try:
        return message.FromString(data)
    except (DecodeError, struct.error) as err:
        raise EpisodeError(f"a message of {stream} is not a {message.DESCRIPTOR.full_name}: {err}") from err


def layout_for(info: StreamInfo) -> MessageLayout:
    """Return the layout of a stream.

    Raises:
        ConfigError: If the encoding is unknown, or its declaration lacks what its payloads' layout needs.
    """
    check_stream(info)
    make = _LAYOUTS.get(info.encoding, _coded if info.restores_to else None)
    if make is None:
        raise ConfigError(f"stream {info.name}: encoding {info.encoding!r} has no place in an episode")
    return make(info)


def _compressed_image(info: StreamInfo) -> MessageLayout:
    constants = {"frame_id": info.frame_id, "format": info.encoding}
    return _OneField(info, schemas.FOXGLOVE["CompressedImage"], constants)


def _compressed_video(info: StreamInfo) -> MessageLayout:
    constants = {"frame_id": info.frame_id, "format": info.encoding}
    return _OneField(info, schemas.FOXGLOVE["CompressedVideo"], constants)


def _raw_image(info: StreamInfo) -> MessageLayout:
    height, width = info.shape[:2]
    geometry = {
        "width": width,
        "height": height,
        "step": largest_payload_bytes(info) // height,
        "encoding": info.encoding,
        "frame_id": info.frame_id,
    }
    return _OneField(info, schemas.FOXGLOVE["RawImage"], geometry)


def _points(info: StreamInfo) -> MessageLayout:
    float32 = 7  # foxglove.PackedElementField.NumericType.FLOAT32
    names = ("x", "y", "z", "intensity")
    constants = {
        "frame_id": info.frame_id,
        "pose": {"position": {}, "orientation": {"w": 1.0}},
        "point_stride": POINT_BYTES,
        "fields": [{"name": name, "offset": 4 * index, "type": float32} for index, name in enumerate(names)],
    }
    return _OneField(info, schemas.FOXGLOVE["PointCloud"], constants)


_PCM_FORMATS = {
    Encoding.PCM_S16LE: "pcm-s16",
    Encoding.PCM_S24LE: "pcm-s24",
    Encoding.PCM_S32LE: "pcm-s32",
    Encoding.PCM_F32LE: "pcm-f32",
}
"""Foxglove defines the first only; a viewer shows the others as what they are called."""


def _audio(info: StreamInfo) -> MessageLayout:
    constants = {
        "format": _PCM_FORMATS[info.encoding],
        "sample_rate": round(info.rate_hz),
        "number_of_channels": info.shape[0],
    }
    return _OneField(info, schemas.FOXGLOVE["RawAudio"], constants)


def _packets(info: StreamInfo) -> MessageLayout:
    return _OneField(info, schemas.Packets, {"frame_id": info.frame_id})


def _coded(info: StreamInfo) -> MessageLayout:
    return _OneField(info, schemas.Coded, {"frame_id": info.frame_id, "encoding": info.encoding})


_LAYOUTS: Mapping[str, Callable[[StreamInfo], MessageLayout]] = {
    Encoding.JPEG: _compressed_image,
    Encoding.PNG: _compressed_image,
    Encoding.MONO8: _raw_image,
    Encoding.BGR8: _raw_image,
    Encoding.RGB8: _raw_image,
    Encoding.MONO16: _raw_image,
    Encoding.POINTS: _points,
    **dict.fromkeys(PCM_BYTES, _audio),
    Encoding.COLUMNS: _Columns,
    Encoding.OUSTER: _packets,
    **dict.fromkeys(VIDEO, _compressed_video),
    Encoding.MESSAGE: _Passthrough,
}
"""By encoding of ``drivers/payloads/table.py``; coded ones that have no row lie as they are."""


def encodings() -> Collection[str]:
    """Return the encodings that an episode holds."""
    return _LAYOUTS.keys() | {encoding for encoding, row in TABLE.items() if row.restores}


def channel_for(info: StreamInfo) -> ChannelFormat:
    """Return topic and schema of a stream."""
    return layout_for(info).channel


def wrap(info: StreamInfo, frame: Frame, capture_utc_ns: int) -> bytes:
    """Return a frame's message; ``capture_utc_ns`` becomes its ``timestamp``."""
    return b"".join(layout_for(info).wrap_parts(frame, capture_utc_ns))


def unwrap(info: StreamInfo, data: Buffer) -> bytes:
    """Return the payload that ``wrap`` was given, byte for byte."""
    return layout_for(info).unwrap(data)
