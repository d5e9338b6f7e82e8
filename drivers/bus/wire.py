"""The bus's messages and their validation: nothing from a socket is believed before it passed here.

A frame is two parts, ``[header, payload]``; the header is a msgpack array of fixed length. Everything else is
one part, a msgpack map whose ``kind`` names it. Stamps travel as little-endian int64.
"""

from typing import Annotated, Any, Literal, NamedTuple

import msgpack
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from sensorium.drivers.bus.credits import Held
from sensorium.drivers.frame import (
    MAX_SAMPLES_PER_FRAME,
    STREAM_NAME,
    Frame,
    Place,
    RecordedStamps,
    StreamInfo,
)
from sensorium.errors import ConfigError, WireError
from sensorium.timebase import Timeline

VERSION = 3
MAX_HEADER_BYTES = 128 + 24 * 4096
MAX_CONTROL_BYTES = 4 << 20
MAX_MESSAGE_BYTES = 64 << 20
"""A larger message ends the connection that it came from."""

COPY_BELOW_BYTES = 64 << 10
"""Below this size a copy is cheaper than ZeroMQ's zero-copy bookkeeping (specs/performance.md 3)."""

_HEADER_LENGTH = 9


def pack_header(instance: int, frame: Frame) -> bytes:
    """Return the header of ``frame`` as published by driver ``instance``."""
    ticks = None if frame.device_ticks is None else frame.device_ticks.astype("<i8", copy=False).tobytes()
    arrival = frame.arrival_ns.astype("<i8", copy=False).tobytes()
    known = frame.recorded
    recorded = None
    if known is not None:
        capture = known.capture_ns.astype("<i8", copy=False).tobytes()
        recorded = (capture, known.statistical_ns, known.floor_ns, known.asymmetry_ns, known.epoch)
    packed: bytes = msgpack.packb(
        (VERSION, instance, frame.stream, frame.seq, frame.count, ticks, arrival, frame.meta, recorded)
    )
    return packed


def unpack_header(data: bytes, payload: bytes | memoryview) -> tuple[int, Frame]:
    """Return (instance, frame) of a received header and payload.

    Raises:
        WireError: If any field is missing, of the wrong type, or out of range; says which.
    """
    if len(data) > MAX_HEADER_BYTES:
        raise WireError(f"header of {len(data)} bytes, limit {MAX_HEADER_BYTES}")
    try:
        fields = msgpack.unpackb(
            data, max_str_len=64, max_bin_len=MAX_HEADER_BYTES, max_array_len=64, max_map_len=0, max_ext_len=0
        )
    except (ValueError, msgpack.UnpackException) as err:
        raise WireError(f"header is not msgpack: {type(err).__name__}") from err
    if not isinstance(fields, list) or len(fields) != _HEADER_LENGTH:
        raise WireError(f"header is not an array of {_HEADER_LENGTH}")
    version, instance, stream, seq, count, ticks, arrival, meta, recorded = fields
    if version != VERSION:
        raise WireError(f"header version {version!r}, expected {VERSION}")
    if not isinstance(stream, str) or not STREAM_NAME.fullmatch(stream):
        raise WireError("stream name is malformed")
    if not _is_int(instance, 1 << 32) or not _is_int(seq, 1 << 62):
        raise WireError("instance or sequence number out of range")
    if not _is_int(count, MAX_SAMPLES_PER_FRAME + 1) or count < 1:
        raise WireError("sample count out of range")
    if not isinstance(meta, list) or not all(type(value) in (int, float) for value in meta):
        raise WireError("meta is not a list of numbers")
    try:
        frame = Frame(
            stream=stream,
            seq=seq,
            count=count,
            device_ticks=None if ticks is None else _stamps(ticks, "device ticks"),
            arrival_ns=_stamps(arrival, "arrival stamps"),
            payload=payload,
            meta=tuple(meta),
            recorded=None if recorded is None else _recorded(recorded),
        )
    except ValueError as err:
        raise WireError(str(err)) from err
    return instance, frame


def _is_int(value: Any, limit: int) -> bool:
    return type(value) is int and 0 <= value < limit


def _stamps(data: Any, what: str) -> NDArray[np.int64]:
    if not isinstance(data, bytes) or len(data) == 0 or len(data) % 8:
        raise WireError(f"{what} are not int64 values")
    return np.frombuffer(data, "<i8").astype(np.int64, copy=False)


def _recorded(data: Any) -> RecordedStamps:
    if not isinstance(data, list) or len(data) != 5 or not all(type(value) is float for value in data[1:4]):
        raise WireError("recorded stamps are malformed")
    if not _is_int(data[4], 1 << 31):
        raise WireError("recorded epoch out of range")
    return RecordedStamps(_stamps(data[0], "recorded stamps"), *data[1:])


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_bytes="base64", val_json_bytes="base64")

    instance: int = Field(ge=0, lt=1 << 32)


class Declare(_Message):
    """First message of a driver instance: what it is and which streams it will publish."""

    kind: Literal["declare"] = "declare"
    device: str = Field(pattern=STREAM_NAME.pattern)
    driver: str = Field(max_length=64)
    streams: tuple[StreamInfo, ...] = Field(max_length=256)
    timeline: Timeline
    is_live: bool
    counters: str = Field(max_length=4096)
    """Path of the instance's counter file, "" when it is on another machine."""
    first_seq: dict[str, int] = Field(default={}, max_length=256)
    """Where the numbers of a stream begin, if not at 0."""


class Lost(_Message):
    """Samples [seq, seq + count) will never come; sent before the frame that follows them."""

    kind: Literal["lost"] = "lost"
    stream: str = Field(pattern=STREAM_NAME.pattern)
    seq: int = Field(ge=0)
    count: int = Field(ge=1)
    place: Place
    reason: str = Field(max_length=200)


class Heartbeat(_Message):
    """Every stream's next sequence number, so that the loss of a tail shows."""

    kind: Literal["heartbeat"] = "heartbeat"
    next_seq: dict[str, int] = Field(max_length=256)


class End(_Message):
    """Last message of an instance. ``error`` is empty after a normal end."""

    kind: Literal["end"] = "end"
    next_seq: dict[str, int] = Field(max_length=256)
    error: str = Field(max_length=2000)


class Welcome(_Message):
    """Synchronizer to driver: your streams are known, you may have this many bytes under way."""

    kind: Literal["welcome"] = "welcome"
    session: int = Field(ge=0, lt=1 << 64)
    credit_limit_bytes: int = Field(ge=0)


class Credit(_Message):
    """Synchronizer to driver: this many bytes have left the synchronizer's hands."""

    kind: Literal["credit"] = "credit"
    released_bytes: int = Field(ge=0)


Control = Declare | Lost | Heartbeat | End | Welcome | Credit
_CONTROL: TypeAdapter[Control] = TypeAdapter(Annotated[Control, Field(discriminator="kind")])


def pack_control(message: Control) -> bytes:
    packed: bytes = msgpack.packb(message.model_dump(mode="json"))
    return packed


def unpack_control(data: bytes) -> Control:
    """Return the control message in ``data``.

    Raises:
        WireError: If it is not one; the reason names the first offending field.
    """
    if len(data) > MAX_CONTROL_BYTES:
        raise WireError(f"control message of {len(data)} bytes, limit {MAX_CONTROL_BYTES}")
    try:
        fields = msgpack.unpackb(data, max_array_len=4096, max_map_len=4096, max_ext_len=0)
        return _CONTROL.validate_python(fields)
    except (ValueError, msgpack.UnpackException, ConfigError) as err:
        raise WireError(f"control message is malformed: {_first_problem(err)}") from err


def _first_problem(err: Exception) -> str:
    if isinstance(err, ValidationError):
        first = err.errors(include_url=False, include_input=False)[0]
        return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
    return type(err).__name__


class Inbound(NamedTuple):
    """A validated message with the socket identity that it came from.

    Attributes:
        message: A control message, or (instance, frame).
        held: What a frame holds of its driver's credit until it is given to ``BusReceiver.release``.
    """

    identity: bytes
    message: Control | tuple[int, Frame]
    held: Held | None = None
