"""Xsens MTData2: messages in a byte stream, and the items in them.

Source: "MT Low Level Communication Protocol Documentation" (Xsens), Message structure and MTData2.
"""

import struct
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

PREAMBLE = b"\xfa\xff"
MAX_EXTENDED_BYTES = 2048
_EXTENDED = 0xFF

GOTO_MEASUREMENT = 0x10
REQ_DID = 0x00
GOTO_CONFIG = 0x30
MTDATA2 = 0x36
ERROR = 0x42
OUTPUT_CONFIGURATION = 0xC0

PACKET_COUNTER = 0x1020
SAMPLE_TIME_FINE = 0x1060
QUATERNION = 0x2010
ACCELERATION = 0x4020
RATE_OF_TURN = 0x8020
STATUS_WORD = 0xE020
_ITEM_NAMES = {
    0x0810: "Temperature",
    0x1010: "UtcTime",
    0x1020: "PacketCounter",
    0x1060: "SampleTimeFine",
    0x1070: "SampleTimeCoarse",
    0x2010: "Quaternion",
    0x2020: "RotationMatrix",
    0x2030: "EulerAngles",
    0x3010: "BaroPressure",
    0x4010: "DeltaV",
    0x4020: "Acceleration",
    0x4030: "FreeAcceleration",
    0x4040: "AccelerationHR",
    0x5020: "AltitudeEllipsoid",
    0x5040: "LatLon",
    0x7010: "GnssPvtData",
    0x8020: "RateOfTurn",
    0x8030: "DeltaQ",
    0x8040: "RateOfTurnHR",
    0xC020: "MagneticField",
    0xD010: "VelocityXYZ",
    0xE010: "StatusByte",
    0xE020: "StatusWord",
}
EVERY_MESSAGE = 0xFFFF
"""Output rate of items that have none of their own: they come with every message."""
_TYPE_MASK = 0xFFF0
"""The lowest nibble of a data id is its coordinate system and number format."""


def encode_message(kind: int, data: bytes = b"") -> bytes:
    """Return a message as it goes over the line."""
    length = (
        bytes([len(data)]) if len(data) < _EXTENDED else bytes([_EXTENDED]) + len(data).to_bytes(2, "big")
    )
    body = b"\xff" + bytes([kind]) + length + data
    return b"\xfa" + body + bytes([-sum(body) & 0xFF])


@dataclass(frozen=True, slots=True)
class Message:
    """A message with a valid checksum; ``arrival_ns`` is when its last byte was read."""

    kind: int
    data: bytes
    arrival_ns: int


class MessageParser:
    """Finds messages in a byte stream, whatever lies between them.

    Attributes:
        skipped_bytes: Bytes that belong to no message.
        bad_checksums: Candidates that were long enough but whose sum was wrong.
    """

    def __init__(self) -> None:
        self.skipped_bytes = 0
        self.bad_checksums = 0
        self._buffer = bytearray()
        self._consumed = 0
        self._arrivals: deque[tuple[int, int]] = deque()

    def feed(self, data: bytes, arrival_ns: int) -> list[Message]:
        """Take what was read at ``arrival_ns``; return the messages that it completes, oldest first."""
        self._buffer += data
        self._arrivals.append((self._consumed + len(self._buffer), arrival_ns))
        messages: list[Message] = []
        while (size := self._next_size()) is not None:
            if sum(self._buffer[1:size]) & 0xFF:
                self.bad_checksums += 1
                self._skip(1)
                continue
            header = 4 if self._buffer[3] != _EXTENDED else 6
            kind, payload = self._buffer[2], bytes(self._buffer[header : size - 1])
            messages.append(Message(kind, payload, self._arrival_of(self._consumed + size)))
            self._drop(size)
        return messages

    def _next_size(self) -> int | None:
        """Skip to the next possible message; return its size, or None until all of it is there."""
        while True:
            start = self._buffer.find(PREAMBLE)
            if start < 0:
                ends_in_half_a_preamble = self._buffer[-1:] == PREAMBLE[:1]
                self._skip(len(self._buffer) - ends_in_half_a_preamble)
                return None
            self._skip(start)
            if len(self._buffer) < 6:
                is_whole = len(self._buffer) == 5 and self._buffer[3] == 0
                return 5 if is_whole else None
            size = 5 + self._buffer[3]
            if self._buffer[3] == _EXTENDED:
                length = int.from_bytes(self._buffer[4:6], "big")
                if length > MAX_EXTENDED_BYTES:
                    self._skip(1)
                    continue
                size = 7 + length
            return size if len(self._buffer) >= size else None

    def _arrival_of(self, end: int) -> int:
        while self._arrivals[0][0] < end:
            self._arrivals.popleft()
        return self._arrivals[0][1]

    def _skip(self, count: int) -> None:
        self.skipped_bytes += count
        self._drop(count)

    def _drop(self, count: int) -> None:
        del self._buffer[:count]
        self._consumed += count


@dataclass(slots=True)
class ItemCounters:
    """What MTData2 messages held that is not used: items by id, and messages cut short inside an item."""

    unknown_items: Counter[int] = field(default_factory=Counter)
    torn_messages: int = 0


@dataclass(frozen=True, slots=True)
class Sample:
    """The items of one MTData2 message that are used; None where the message has none.

    Attributes:
        ticks: SampleTimeFine, 100 us each, modulo 2**32.
        acceleration: m/s^2. ``rate_of_turn``: rad/s. ``quaternion``: w, x, y, z.
        is_double: Some values came in a format that float32 cannot hold.
    """

    counter: int | None = None
    ticks: int | None = None
    acceleration: tuple[float, ...] | None = None
    rate_of_turn: tuple[float, ...] | None = None
    quaternion: tuple[float, ...] | None = None
    status: int = 0
    is_double: bool = False


_VECTORS = {
    ACCELERATION: ("acceleration", 3),
    RATE_OF_TURN: ("rate_of_turn", 3),
    QUATERNION: ("quaternion", 4),
}
_INTEGERS = {PACKET_COUNTER: ("counter", 2), SAMPLE_TIME_FINE: ("ticks", 4), STATUS_WORD: ("status", 4)}


def parse_sample(data: bytes, counters: ItemCounters) -> Sample:
    """Return the known items of an MTData2 message; the others are counted by id."""
    found: dict[str, Any] = {}
    at = 0
    while at + 3 <= len(data):
        identifier, size = int.from_bytes(data[at : at + 2], "big"), data[at + 2]
        item = data[at + 3 : at + 3 + size]
        at += 3 + size
        if len(item) < size:
            break
        kind = identifier & _TYPE_MASK
        if kind in _INTEGERS and size == _INTEGERS[kind][1]:
            found[_INTEGERS[kind][0]] = int.from_bytes(item, "big")
        elif kind in _VECTORS and (values := _numbers(item, identifier & 3, _VECTORS[kind][1])) is not None:
            found[_VECTORS[kind][0]] = values
            found["is_double"] = found.get("is_double", False) or identifier & 3 != 0
        else:
            counters.unknown_items[identifier] += 1
    if at != len(data):
        counters.torn_messages += 1
    return Sample(**found)


_VALUE_BYTES = (4, 4, 6, 8)
"""Of float32, fixed point 12.20 and 16.32, float64: the two lowest bits of a data id."""


def _numbers(item: bytes, number_format: int, count: int) -> tuple[float, ...] | None:
    """Return ``count`` values of a number format (0 to 3); None for another number of bytes."""
    size = _VALUE_BYTES[number_format]
    if len(item) != count * size:
        return None
    if number_format == 0:
        return struct.unpack(f">{count}f", item)
    if number_format == 3:
        return struct.unpack(f">{count}d", item)
    return tuple(_fixed(item[at : at + size]) for at in range(0, len(item), size))


def _fixed(data: bytes) -> float:
    """Return a fixed point value: 12.20, or 16.32, whose fraction goes before its integer part."""
    if len(data) == 4:
        return int.from_bytes(data, "big", signed=True) / (1 << 20)
    return int.from_bytes(data[4:] + data[:4], "big", signed=True) / (1 << 32)


def item_name(identifier: int) -> str:
    """Return what a data id stands for, as the maker's manual calls it."""
    return f"{_ITEM_NAMES.get(identifier & _TYPE_MASK, 'item')} (0x{identifier:04X})"
