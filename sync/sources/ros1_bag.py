"""ROS 1 bags, format 2.0 (wiki.ros.org/Bags/Format/2.0): every chunk is unpacked once per pass.

Chunks are found through the index at the end, which a recorder writes last: a bag without it was not finished.
"""

import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from sensorium.drivers.frame import MessageSchema
from sensorium.errors import SourceError
from sensorium.sync.sources import ros_types
from sensorium.sync.sources.budget import MAX_CHUNK_BYTES, DamagedError, UnpackBudget, unpack
from sensorium.sync.sources.message_file import ChannelFacts, Message, MessageFile, Segment, by_arrival
from sensorium.sync.sources.message_stream import LATEST_STAMP_NS
from sensorium.timebase import SECOND_NS

MAGIC = b"#ROSBAG V2.0\n"
_MESSAGE, _BAG_HEADER, _CHUNK, _CHUNK_INFO, _CONNECTION = 2, 3, 5, 6, 7
_U32 = struct.Struct("<I")
_MAX_HEADER_BYTES = 16 << 20
_MAX_RECORD_BYTES = MAX_CHUNK_BYTES
_MAX_CHANNELS = 100_000

Fields = dict[bytes, bytes]


class _MalformedError(Exception):
    """The bytes are no bag."""


class Ros1Bag(MessageFile):
    """One bag file.

    Raises:
        SourceError: If it is damaged, was not finished, or is encrypted.
    """

    kind = "ROS 1 bag"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._connections: dict[int, ChannelFacts] = {}
        self._chunks: list[int] = []
        self._segments: list[Segment] = []
        self._budget = UnpackBudget(0)
        try:
            with path.open("rb") as file:
                self._size = path.stat().st_size
                self._read_index(file)
        except _MalformedError as err:
            raise SourceError(
                f"{path}: damaged or unfinished {self.kind}: {err}; 'rosbag reindex' repairs a recording that was "
                f"not finished"
            ) from err
        except OSError as err:
            raise SourceError(f"{path}: cannot be read: {err.strerror}") from err
        self._count_publishers()

    def scan(self) -> Iterator[Message]:
        self._segments = []
        self._budget = UnpackBudget(self._size)
        try:
            with self.path.open("rb") as file:
                for at in sorted(set(self._chunks)):
                    yield from self._scan_chunk(file, at)
        except OSError as err:
            raise SourceError(f"{self.path}: cannot be read: {err.strerror}") from err

    def messages(self) -> Iterator[Message]:
        with self.path.open("rb") as file:
            yield from by_arrival(self._segments, lambda segment: self._chunk_messages(file, segment.offset))

    def channels(self) -> dict[int, ChannelFacts]:
        return self._connections

    def _read_index(self, file: BinaryIO) -> None:
        magic = file.read(len(MAGIC))
        if magic != MAGIC:
            raise _MalformedError(f"its version is {magic[8:-1]!r}, read is 2.0")
        fields = self._record_header(file, _BAG_HEADER)
        if fields.get(b"encryptor"):
            raise SourceError(
                f"{self.path}: the bag is encrypted with {fields[b'encryptor'][:40]!r}; decrypt it first"
            )
        index_at = _unsigned(fields, b"index_pos", 8)
        if not index_at:
            raise _MalformedError("it has no index")
        if index_at > self._size:
            raise _MalformedError(f"its index should begin at byte {index_at}, the file ends at {self._size}")
        file.seek(index_at)
        while file.tell() < self._size:
            self._take_index_record(file)
        if _unsigned(fields, b"chunk_count", 4) > len(self._chunks):
            raise _MalformedError("its index is cut")

    def _take_index_record(self, file: BinaryIO) -> None:
        fields = _fields(self._block(file, _MAX_HEADER_BYTES))
        data = self._block(file, _MAX_HEADER_BYTES)
        kind = _unsigned(fields, b"op", 1)
        if kind == _CONNECTION:
            self._take_connection(fields, data)
        elif kind == _CHUNK_INFO:
            self._chunks.append(_unsigned(fields, b"chunk_pos", 8))

    def _take_connection(self, fields: Fields, data: bytes) -> None:
        number = _unsigned(fields, b"conn", 4)
        if number in self._connections or len(self._connections) >= _MAX_CHANNELS:
            return
        described = _fields(data)
        name = _text(described.get(b"type", b"")).replace("/msg/", "/")
        definition = described.get(b"message_definition", b"")
        schema = MessageSchema(ros_types.ROS1, name, "ros1msg" if definition else "", definition)
        caller = _text(described.get(b"callerid", b""))
        topic = _text(fields.get(b"topic", b"") or described.get(b"topic", b""))
        self._connections[number] = ChannelFacts(topic, schema, details={"callers": caller} if caller else {})

    def _count_publishers(self) -> None:
        """Let the connections of one topic and schema say how many there are, and whose."""
        shared: dict[tuple[str, MessageSchema], list[str]] = {}
        for facts in self._connections.values():
            shared.setdefault((facts.topic, facts.schema), []).append(facts.details.get("callers", ""))
        for number, facts in self._connections.items():
            callers = shared[facts.topic, facts.schema]
            named = " ".join(caller for caller in callers if caller)
            details = {"callers": named} if named else {}
            self._connections[number] = replace(facts, publishers=len(callers), details=details)

    def _scan_chunk(self, file: BinaryIO, at: int) -> Iterator[Message]:
        start_ns: int | None = None
        try:
            for message in self._chunk_messages(file, at, learn=True):
                start_ns = message.log_ns if start_ns is None else min(start_ns, message.log_ns)
                yield message
        except DamagedError as err:
            self.notes.note(err.kind, str(err))
        if start_ns is not None:
            self._segments.append(Segment(at, 0, start_ns))

    def _chunk_messages(self, file: BinaryIO, at: int, *, learn: bool = False) -> Iterator[Message]:
        """Yield the messages of the chunk at byte ``at`` in their order; with ``learn``, note what is amiss.

        Raises:
            DamagedError: If it cannot be unpacked.
        """
        data = self._unpacked(file, at, learn)
        place = 0
        while place < len(data):
            try:
                fields, payload_at, end = _record(data, place)
                kind = _unsigned(fields, b"op", 1)
                if kind == _CONNECTION and learn:
                    self._take_connection(fields, data[payload_at:end])
                number = _unsigned(fields, b"conn", 4) if kind == _MESSAGE else -1
            except _MalformedError as err:
                self.notes.note("bad_record", f"a chunk holds no record where one must be: {err}")
                return
            if number >= 0:
                seconds, nanoseconds = struct.unpack("<II", fields.get(b"time", b"").ljust(8, b"\0")[:8])
                log_ns = seconds * SECOND_NS + nanoseconds
                if number not in self._connections:
                    self.notes.note("unknown_type", f"messages of connection {number}, which is not declared")
                elif log_ns > LATEST_STAMP_NS:
                    topic = self._connections[number].topic
                    text = f"{topic}: messages that are stamped beyond the year 2043 are left out"
                    self.notes.note("bad_stamp", text)
                else:
                    yield Message(log_ns, (at, place), number, None, None, data[payload_at:end])
            place = end

    def _unpacked(self, file: BinaryIO, at: int, learn: bool) -> bytes:
        try:
            file.seek(at)
            fields = self._record_header(file, _CHUNK)
            packed = self._block(file, _MAX_RECORD_BYTES)
            size = _unsigned(fields, b"size", 4)
        except (_MalformedError, OSError, ValueError) as err:
            raise DamagedError(
                "bad_chunk", f"no chunk at byte {at}, where the index names one: {err}"
            ) from err
        if size > MAX_CHUNK_BYTES:
            raise DamagedError("bad_chunk", f"a chunk claims {size} bytes, more than any recorder makes")
        if learn:
            self._budget.take(size)
        data = unpack(_text(fields.get(b"compression", b"")), packed, size)
        if len(data) != size:
            text = f"a chunk unpacks to {len(data)} bytes instead of {size}; it is left out"
            raise DamagedError("bad_chunk", text)
        return data

    def _record_header(self, file: BinaryIO, kind: int) -> Fields:
        fields = _fields(self._block(file, _MAX_HEADER_BYTES))
        found = _unsigned(fields, b"op", 1)
        if found != kind:
            raise _MalformedError(f"a record is of kind {found} instead of {kind}")
        return fields

    def _block(self, file: BinaryIO, limit: int) -> bytes:
        """Read a length and as many bytes."""
        head = file.read(4)
        if len(head) < 4:
            raise _MalformedError("it ends inside a record")
        (length,) = _U32.unpack(head)
        if length > limit or length > self._size - file.tell():
            raise _MalformedError(f"a record of {length} bytes goes beyond its end")
        return file.read(length)


def _record(data: bytes, at: int) -> tuple[Fields, int, int]:
    """Return the header's fields of the record at ``at``, where its data begins, and where it ends."""
    try:
        (header_bytes,) = _U32.unpack_from(data, at)
        data_at = at + 4 + header_bytes
        (data_bytes,) = _U32.unpack_from(data, data_at)
    except struct.error:
        raise _MalformedError("it ends inside a record") from None
    end = data_at + 4 + data_bytes
    if end > len(data):
        raise _MalformedError("a record goes beyond its end")
    return _fields(data[at + 4 : data_at]), data_at + 4, end


def _fields(header: bytes) -> Fields:
    """Return the ``name=value`` fields of a header."""
    fields: Fields = {}
    at = 0
    while at < len(header):
        try:
            (length,) = _U32.unpack_from(header, at)
        except struct.error:
            raise _MalformedError("a header ends inside a field") from None
        at += 4 + length
        name, mark, value = header[at - length : at].partition(b"=")
        if not mark or at > len(header):
            raise _MalformedError("a header's field has no value")
        fields[name] = value
    return fields


def _unsigned(fields: Fields, name: bytes, size: int) -> int:
    value = fields.get(name, b"")
    if len(value) != size:
        raise _MalformedError(f"a record lacks its field {name.decode()}")
    return int.from_bytes(value, "little")


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")
