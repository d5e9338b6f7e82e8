"""The bus's messages beside frames, and their validation: nothing from a socket is believed before it passed.

What is said often is a msgpack array whose first entry names it; what is said once is a map whose ``kind``
names it, validated by pydantic.
"""

import hmac
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import msgpack
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from sensorium.drivers.bus.credits import NO_CREDIT, CreditState, Held
from sensorium.drivers.bus.header import VERSION, LostBefore, is_stream_name, pack_losses, unpack_losses
from sensorium.drivers.bus.ring import RingOffer
from sensorium.drivers.frame import STREAM_NAME, Frame, Place, StreamInfo
from sensorium.errors import ConfigError, WireError
from sensorium.timebase import Timeline

MAX_MESSAGE_BYTES = 64 << 20
"""A larger message ends the connection that it came from."""

MAX_CONTROL_BYTES = 4 << 20
MAX_STREAMS = 256
MAX_SLOTS = 1 << 20


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_bytes="base64", val_json_bytes="base64")

    instance: int = Field(ge=0, lt=1 << 32)


class Declare(_Message):
    """First message of a driver instance: what it is and which streams it will publish."""

    kind: Literal["declare"] = "declare"
    device: str = Field(pattern=STREAM_NAME.pattern)
    driver: str = Field(max_length=64)
    streams: tuple[StreamInfo, ...] = Field(max_length=MAX_STREAMS)
    timeline: Timeline
    is_live: bool
    counters: str = Field(max_length=4096)
    """Path of the instance's counter file, "" when it is on another machine."""
    first_seq: dict[str, int] = Field(default={}, max_length=MAX_STREAMS)
    """Where the numbers of a stream begin, if not at 0."""
    ring: RingOffer | None = None
    """Shared memory through which large payloads may travel."""
    refused_priority: str = Field(default="", max_length=1000)
    """What the driver's process could not get of the system, in words."""
    token: str = Field(default="", max_length=128)
    """That its supervisor handed it, see :func:`device_token`."""


def device_token(secret: str, device: str) -> str:
    """Return what a device's driver has to say to be taken: only who knows the session's secret can make it."""
    return hmac.new(secret.encode(), device.encode(), "sha256").hexdigest()


class End(_Message):
    """Last message of an instance. ``error`` is empty after a normal end."""

    kind: Literal["end"] = "end"
    next_seq: dict[str, int] = Field(max_length=MAX_STREAMS)
    error: str = Field(max_length=2000)


class Welcome(_Message):
    """Recorder to driver: your streams are known, you may have this many bytes under way."""

    kind: Literal["welcome"] = "welcome"
    session: int = Field(ge=0, lt=1 << 64)
    limit_number: int = Field(ge=0)
    limit_bytes: int = Field(ge=0)
    has_ring: bool
    """Whether the ring that was offered is mapped."""


@dataclass(frozen=True, slots=True)
class Lost:
    """Samples [seq, seq + count) will never come; the driver booked them to ``place``."""

    kind: ClassVar[str] = "lost"
    instance: int
    stream: str
    seq: int
    count: int
    place: Place
    reason: str


@dataclass(frozen=True, slots=True)
class LostRun:
    """How losses travel that no frame follows for a while: what explains the numbers from ``seq`` on."""

    kind: ClassVar[str] = "lost"
    instance: int
    stream: str
    seq: int
    losses: tuple[LostBefore, ...]


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """How far every stream has come, and how the driver stands with its credit.

    Attributes:
        next_seq: Everything before was sent or reported lost, in order, before this message; what has not
            come by now will not come.
        join: Number of the :class:`Joined` that the credit counts from; 0 before the first.
        sent_bytes, sent_slots: What was sent since, over the socket and through the ring.
        credit: How the driver stands with its credit.
    """

    kind: ClassVar[str] = "heartbeat"
    instance: int
    next_seq: dict[str, int]
    join: int = 0
    sent_bytes: int = 0
    sent_slots: int = 0
    credit: CreditState = NO_CREDIT


@dataclass(frozen=True, slots=True)
class Hello:
    """Driver to recorder: are you there? Answered by :class:`Ready`."""

    kind: ClassVar[str] = "hello"
    instance: int


@dataclass(frozen=True, slots=True)
class Ready:
    """Recorder to driver: I am served; declare yourself if you have not done so to this session."""

    kind: ClassVar[str] = "ready"
    instance: int
    session: int


@dataclass(frozen=True, slots=True)
class Joined:
    """Driver to recorder, on every welcome: from here on we count anew.

    It comes after everything that was sent before, so the recorder knows what of that is lost on the way.

    Attributes:
        join: Of the instance, rising.
        outstanding_bytes: Under way over the socket, as far as the driver knows.
        slots: Of the ring, under way as far as the driver knows.
    """

    kind: ClassVar[str] = "joined"
    instance: int
    session: int
    join: int
    outstanding_bytes: int
    slots: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Credit:
    """Recorder to driver: what it has let go of, and the limit.

    Attributes:
        join: Of the :class:`Joined` that ``returned_bytes`` counts from; another one is void.
        returned_bytes: In all since then, over the socket.
        slots: Of the ring, free again.
        has_ended: The last word has arrived, and so has all before it.
        is_wiped: Nothing may stay in what is free of the ring: a privacy pause is on.
    """

    kind: ClassVar[str] = "credit"
    instance: int
    join: int
    returned_bytes: int
    limit_number: int
    limit_bytes: int
    slots: tuple[int, ...] = field(default=())
    has_ended: bool = False
    is_wiped: bool = False


Said = Declare | End | Welcome
Control = Declare | Lost | LostRun | Heartbeat | End | Welcome | Credit | Hello | Ready | Joined
_SAID: TypeAdapter[Said] = TypeAdapter(Annotated[Said, Field(discriminator="kind")])


def pack_control(message: Control) -> bytes:
    """Return a message as one part."""
    if isinstance(message, _Message):
        return _packed(message.model_dump(mode="json"))
    if isinstance(message, Lost):
        losses = (LostBefore(message.count, message.place, message.reason),)
        message = LostRun(message.instance, message.stream, message.seq, losses)
    values = [getattr(message, name) for name in message.__slots__]
    if isinstance(message, LostRun):
        values[-1] = pack_losses(message.losses)
    return _packed((message.kind, VERSION, *values))


def _packed(value: Any) -> bytes:
    packed: bytes = msgpack.packb(value)
    return packed


def unpack_control(data: bytes) -> Control:
    """Return the control message in ``data``.

    Raises:
        WireError: If it is not one; the reason names the first offending field.
    """
    if len(data) > MAX_CONTROL_BYTES:
        raise WireError(f"control message of {len(data)} bytes, limit {MAX_CONTROL_BYTES}")
    try:
        fields = msgpack.unpackb(data, max_array_len=MAX_SLOTS, max_map_len=4096, max_ext_len=0)
    except (ValueError, msgpack.UnpackException) as err:
        raise WireError(f"control message is malformed: {type(err).__name__}") from err
    if isinstance(fields, list):
        return _unpack_array(fields)
    try:
        return _SAID.validate_python(fields)
    except (ValueError, ConfigError) as err:
        raise WireError(f"control message is malformed: {_first_problem(err)}") from err


def _first_problem(err: Exception) -> str:
    if isinstance(err, ValidationError):
        first = err.errors(include_url=False, include_input=False)[0]
        return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
    return type(err).__name__


def _unpack_array(fields: Sequence[Any]) -> Control:
    if len(fields) < 3 or not isinstance(fields[0], str) or fields[0] not in _ARRAYS:
        raise WireError("control message is malformed: it has no known kind")
    kind, version, instance, *rest = fields
    if version != VERSION:
        raise WireError(f"{kind} of version {version!r}, expected {VERSION}")
    made, checks = _ARRAYS[kind]
    if not _is_u32(instance) or len(rest) != len(checks):
        raise WireError(f"{kind} is malformed: {len(rest)} fields or its instance")
    for index, (check, value) in enumerate(zip(checks, rest, strict=True)):
        if not check(value):
            raise WireError(f"{kind} is malformed: field {index}")
    return made(instance, *rest)


def _is_u32(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 32


def _is_u64(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 64


def _is_number(value: Any) -> bool:
    """Of samples or bytes: any that can be counted."""
    return type(value) is int and 0 <= value < 1 << 62


def _is_bool(value: Any) -> bool:
    return type(value) is bool


def _is_name(value: Any) -> bool:
    return type(value) is str and is_stream_name(value)


def _is_list(value: Any) -> bool:
    return type(value) is list


def _are_slots(value: Any) -> bool:
    return type(value) is list and all(map(_is_u32, value))


def _are_next_seqs(value: Any) -> bool:
    return (
        type(value) is dict
        and len(value) <= MAX_STREAMS
        and all(map(_is_name, value))
        and all(map(_is_number, value.values()))
    )


def _lost_run(instance: int, stream: str, seq: int, losses: list[Any]) -> LostRun:
    return LostRun(instance, stream, seq, unpack_losses(losses))


def _heartbeat(
    instance: int, next_seq: dict[str, int], join: int, sent_bytes: int, sent_slots: int, credit: list[Any]
) -> Heartbeat:
    if len(credit) != len(CreditState._fields):
        raise WireError("heartbeat is malformed: its credit")
    for index, value in enumerate(credit):
        if not (_is_bool if index == 2 else _is_number)(value):
            raise WireError(f"heartbeat is malformed: field {index} of its credit")
    return Heartbeat(instance, next_seq, join, sent_bytes, sent_slots, CreditState(*credit))


def _joined(instance: int, session: int, join: int, outstanding_bytes: int, slots: list[int]) -> Joined:
    return Joined(instance, session, join, outstanding_bytes, tuple(slots))


def _credit(
    instance: int,
    join: int,
    returned: int,
    number: int,
    limit: int,
    slots: list[int],
    has_ended: bool,
    is_wiped: bool,
) -> Credit:
    return Credit(instance, join, returned, number, limit, tuple(slots), has_ended, is_wiped)


_ARRAYS: dict[str, tuple[Callable[..., Control], tuple[Callable[[Any], bool], ...]]] = {
    LostRun.kind: (_lost_run, (_is_name, _is_number, _is_list)),
    Heartbeat.kind: (_heartbeat, (_are_next_seqs, *(_is_number,) * 3, _is_list)),
    Hello.kind: (Hello, ()),
    Ready.kind: (Ready, (_is_u64,)),
    Joined.kind: (_joined, (_is_u64, _is_number, _is_number, _are_slots)),
    Credit.kind: (_credit, (*(_is_number,) * 4, _are_slots, _is_bool, _is_bool)),
}


class Inbound(NamedTuple):
    """A validated message with the socket identity that it came from.

    Attributes:
        message: A control message, or (instance, frame).
        held: What a frame holds of its driver's credit until it is given to ``BusReceiver.release``.
    """

    identity: bytes
    message: Control | tuple[int, Frame]
    held: Held | None = None
