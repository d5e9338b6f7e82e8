"""How a frame travels: a msgpack array of fixed length, validated before anything of it is believed.

A small payload lies in the array, a large one follows as a second part or lies in the driver's shared memory.
Stamps travel as little-endian int64.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import msgpack
import numpy as np
from numpy.typing import NDArray

from sensorium.drivers.bus.ring import RingReader
from sensorium.drivers.frame import (
    MAX_SAMPLES_PER_FRAME,
    STREAM_NAME,
    Frame,
    Place,
    RecordedStamps,
)
from sensorium.errors import WireError

VERSION = 4
INSIDE_BELOW_BYTES = 64 << 10
"""A smaller payload travels inside its header: a copy is cheaper than a part of its own, and than ZeroMQ's
bookkeeping for what is not copied (specs/performance.md 3)."""

MAX_STAMPED = 4096
"""Samples of a frame that may have stamps of their own."""

MAX_META = 64
MAX_HEADER_BYTES = 4096 + 24 * MAX_STAMPED
"""Of a frame, without its payload: three stamps for each of its samples, and the rest."""

MAX_REASON_LENGTH = 200
MAX_LOSSES = 16
PLACES = tuple(Place)
_PLACE_INDEX = {place: index for index, place in enumerate(PLACES)}
_INT64 = np.dtype("<i8")
_FIELDS = 12
_FRAME_MARK = bytes([0x90 | _FIELDS])
"""First byte of a msgpack array of so many fields, which nothing else on the bus is."""


class LostBefore(NamedTuple):
    """So many samples directly before a frame, or before the next loss, that will never come."""

    samples: int
    place: Place
    reason: str


class RingPlace(NamedTuple):
    """Where a payload lies in the driver's shared memory."""

    slot: int
    size: int


class Unpacked(NamedTuple):
    """A frame as it was received; ``losses`` explain the gap before it, in order."""

    instance: int
    frame: Frame
    losses: tuple[LostBefore, ...]
    slot: int


def is_frame(data: bytes) -> bool:
    """Return whether a message claims to be a frame and not a control message."""
    return data[:1] == _FRAME_MARK


def pack_header(instance: int, frame: Frame) -> bytes:
    """Return the header of ``frame`` as published by driver ``instance``, its payload left out."""
    return pack_frame(instance, frame, (), None, None)


def pack_frame(
    instance: int,
    frame: Frame,
    losses: Sequence[LostBefore],
    place: RingPlace | None,
    inside: bytes | memoryview | None,
) -> bytes:
    """Return a frame as one message part.

    Args:
        losses: What explains the gap before it.
        place: Where its payload lies in shared memory, if there.
        inside: Its payload, if it travels inside; with neither it follows as a part of its own.
    """
    ticks = frame.device_ticks
    known = frame.recorded
    packed: bytes = msgpack.packb(
        (
            VERSION,
            instance,
            frame.stream,
            frame.seq,
            frame.count,
            None if ticks is None else _int64_bytes(ticks),
            _int64_bytes(frame.arrival_ns),
            frame.meta,
            None if known is None else _pack_recorded(known),
            pack_losses(losses) if losses else None,
            place,
            inside,
        )
    )
    return packed


def _int64_bytes(values: NDArray[np.int64]) -> bytes:
    return values.astype(_INT64, copy=False).tobytes()


def _pack_recorded(known: RecordedStamps) -> tuple[bytes, float, float, float, int]:
    capture = _int64_bytes(known.capture_ns)
    return (capture, known.statistical_ns, known.floor_ns, known.asymmetry_ns, known.epoch)


def unpack_header(data: bytes, payload: bytes | memoryview) -> tuple[int, Frame]:
    """Return (instance, frame) of a header and the payload that came beside it.

    Raises:
        WireError: If any field is missing, of the wrong type, or out of range; says which.
    """
    found = unpack_frame(data, payload, None)
    return found.instance, found.frame


def unpack_frame(data: bytes, beside: bytes | memoryview | None, ring: RingReader | None) -> Unpacked:
    """Return the frame in ``data``.

    Args:
        beside: The part that followed it, if one did.
        ring: The sender's shared memory, if it is mapped.

    Raises:
        WireError: If any field is missing, of the wrong type, or out of range; says which.
    """
    version, instance, stream, seq, count, ticks, arrival, meta, recorded, losses, place, inside = _fields(
        data
    )
    if version != VERSION:
        raise WireError(f"header version {version!r}, expected {VERSION}")
    if type(stream) is not str or not is_stream_name(stream):
        raise WireError("stream name is malformed")
    if type(instance) is not int or not 0 <= instance < 1 << 32:
        raise WireError("instance out of range")
    if type(seq) is not int or not 0 <= seq < 1 << 62:
        raise WireError("sequence number out of range")
    if type(count) is not int or not 1 <= count <= MAX_SAMPLES_PER_FRAME:
        raise WireError("sample count out of range")
    if type(meta) is not list or len(meta) > MAX_META:
        raise WireError("meta is not a list of numbers")
    for value in meta:
        if type(value) is not float and type(value) is not int:
            raise WireError("meta is not a list of numbers")
    arrival_ns = _stamps(arrival, count, "arrival stamps")
    payload, slot = _payload(beside, place, inside, ring)
    frame = _frame(
        stream,
        seq,
        count,
        None if ticks is None else _stamps(ticks, count, "device ticks"),
        arrival_ns,
        payload,
        tuple(meta),
        None if recorded is None else _recorded(recorded, count, arrival_ns),
    )
    return Unpacked(instance, frame, () if losses is None else _losses(losses, seq), slot)


def _fields(data: bytes) -> list[Any]:
    if len(data) > MAX_HEADER_BYTES + INSIDE_BELOW_BYTES:
        raise WireError(f"header of {len(data)} bytes, limit {MAX_HEADER_BYTES}")
    try:
        fields = msgpack.unpackb(data, max_map_len=0, max_ext_len=0)
    except (ValueError, msgpack.UnpackException) as err:
        raise WireError(f"header is not msgpack: {type(err).__name__}") from err
    if type(fields) is not list or len(fields) != _FIELDS:
        raise WireError(f"header is not an array of {_FIELDS}")
    return fields


@lru_cache(maxsize=4096)
def is_stream_name(name: str) -> bool:
    """Return whether a stream may be called so."""
    return STREAM_NAME.fullmatch(name) is not None


def _stamps(data: Any, count: int, what: str) -> NDArray[np.int64]:
    if type(data) is not bytes or (len(data) != 8 and len(data) != 8 * count):
        raise WireError(f"{what} are not int64 values of 1 or {count} samples")
    return np.frombuffer(data, _INT64)


def _recorded(data: Any, count: int, arrival_ns: NDArray[np.int64]) -> RecordedStamps:
    if type(data) is not list or len(data) != 5 or not all(type(value) is float for value in data[1:4]):
        raise WireError("recorded stamps are malformed")
    if type(data[4]) is not int:
        raise WireError("recorded epoch out of range")
    capture_ns = _stamps(data[0], count, "recorded stamps")
    if (capture_ns > arrival_ns[-1]).any():
        raise WireError("recorded capture times lie after the arrival")
    try:
        return RecordedStamps(capture_ns, *data[1:])
    except ValueError as err:
        raise WireError(str(err)) from err


def _payload(
    beside: bytes | memoryview | None, place: Any, inside: Any, ring: RingReader | None
) -> tuple[bytes | memoryview, int]:
    """Return the payload and its slot, from the one place where it may be."""
    if (beside is not None) + (place is not None) + (inside is not None) != 1:
        raise WireError("payload is missing, or there are two")
    if beside is not None:
        return beside, -1
    if inside is not None:
        if type(inside) is not bytes:
            raise WireError("payload is not bytes")
        return inside, -1
    if ring is None:
        raise WireError("payload in a shared memory that is not mapped")
    if type(place) is not list or len(place) != 2:
        raise WireError("place in shared memory is malformed")
    slot, size = place
    if type(slot) is not int or type(size) is not int:
        raise WireError("place in shared memory is malformed")
    return ring.view(slot, size), slot


def _losses(data: Any, seq: int) -> tuple[LostBefore, ...]:
    found = unpack_losses(data)
    if sum(lost.samples for lost in found) > seq:
        raise WireError("more samples are lost than there were")
    return found


def pack_losses(losses: Sequence[LostBefore]) -> list[tuple[int, int, str]]:
    """Return losses as they travel."""
    return [(count, _PLACE_INDEX[place], reason) for count, place, reason in losses]


def unpack_losses(data: Any) -> tuple[LostBefore, ...]:
    """Return the losses in a list from the wire.

    Raises:
        WireError: If it is not one.
    """
    if type(data) is not list or not 1 <= len(data) <= MAX_LOSSES:
        raise WireError("losses are malformed")
    return tuple(map(_lost_before, data))


def _lost_before(data: Any) -> LostBefore:
    if type(data) is not list or len(data) != 3:
        raise WireError("losses are malformed")
    count, place, reason = data
    if type(count) is not int or not 1 <= count < 1 << 62:
        raise WireError("lost count out of range")
    if type(place) is not int or not 0 <= place < len(PLACES):
        raise WireError("place of a loss is unknown")
    if type(reason) is not str or len(reason) > MAX_REASON_LENGTH:
        raise WireError("reason of a loss is malformed")
    return LostBefore(count, PLACES[place], reason)


_new_frame = Frame.__new__
_set_stream, _set_seq, _set_count, _set_ticks, _set_arrival, _set_payload, _set_meta, _set_recorded = (
    Frame.__dict__[name].__set__
    for name in ("stream", "seq", "count", "device_ticks", "arrival_ns", "payload", "meta", "recorded")
)


def _frame(
    stream: str,
    seq: int,
    count: int,
    device_ticks: NDArray[np.int64] | None,
    arrival_ns: NDArray[np.int64],
    payload: bytes | memoryview,
    meta: tuple[float, ...],
    recorded: RecordedStamps | None,
) -> Frame:
    """Return a frame whose fields were validated here, without validating them again: a third of the time."""
    frame = _new_frame(Frame)
    _set_stream(frame, stream)
    _set_seq(frame, seq)
    _set_count(frame, count)
    _set_ticks(frame, device_ticks)
    _set_arrival(frame, arrival_ns)
    _set_payload(frame, payload)
    _set_meta(frame, meta)
    _set_recorded(frame, recorded)
    return frame
