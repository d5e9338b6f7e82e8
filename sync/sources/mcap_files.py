"""MCAP files of others, whole or torn; messages, schemas and encodings pass as they are found.

Format: mcap.dev/spec. ``log_time`` is the arrival. ``publish_time`` becomes the device stamp of a channel
where it ever differs from ``log_time``: as host time if it always lies within a minute before it, else as a
clock of its own; a ROS message's header stamp goes before it. Sequence numbers are kept (from the first one
on, as every stream counts from 0) where they count the channel's messages; many writers leave them 0 or
count over the whole file, and then the messages are counted here.
"""

import heapq
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, NamedTuple

import zstandard
from lz4.frame import LZ4FrameDecompressor  # type: ignore[import-untyped]  # comes with mcap
from mcap.data_stream import ReadDataStream
from mcap.exceptions import McapError
from mcap.opcode import Opcode
from mcap.records import Channel, Header, Schema

from sensorium.drivers.frame import Frame, Loss, MessageSchema
from sensorium.errors import SourceError
from sensorium.sync.episode.files import MANIFEST_FILE
from sensorium.sync.sources.bags import message_problems
from sensorium.sync.sources.message_stream import MAX_STAMP_NS, MessageChannel, stream_name
from sensorium.sync.sources.source import Problem, Source

MAGIC = b"\x89MCAP0\r\n"
_RECORD = struct.Struct("<BQ")
_MESSAGE = struct.Struct("<HIQQ")
_CHUNK = struct.Struct("<QQQI")
_MAX_CHUNK_BYTES = 128 << 20
_MAX_RUN_BYTES = 1 << 20
_PARSE_ERRORS = (McapError, struct.error, ValueError, IndexError, EOFError)


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of the file that is read at once: a chunk, the start of a torn one, or loose messages."""

    offset: int
    length: int
    start_ns: int
    is_chunk: bool
    is_torn: bool = False


class Message(NamedTuple):
    """A message record; ordered by arrival, then by its place in the file."""

    log_ns: int
    place: tuple[int, int]
    channel_id: int
    sequence: int
    publish_ns: int
    payload: bytes


class DamagedError(Exception):
    """A chunk whose bytes cannot be trusted; ``kind`` is that of the :class:`Problem` it becomes."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class McapSource(Source):
    """One MCAP file. Its whole chunks and the readable part of a torn one are played; the rest is a problem.

    Raises:
        SourceError: If it is no MCAP file, or part of one of our episodes (whose consent is in its manifest).
    """

    kind = "MCAP file"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        if (path.parent / MANIFEST_FILE).is_file():
            raise SourceError(
                f"{path}: part of an episode; give its folder {path.parent}, which holds its consent"
            )
        self._segments: list[Segment] = []
        self._schemas: dict[int, Schema] = {}
        self._channels: dict[int, Channel] = {}
        self._found: dict[int, MessageChannel] = {}
        self._sequences: dict[int, _SequenceFacts] = {}
        self._global_sequence: _SequenceFacts = _SequenceFacts()
        self._damage: dict[str, tuple[int, str]] = {}
        self._not_carried = 0
        self._profile = ""
        try:
            with path.open("rb") as file:
                self._size = path.stat().st_size
                self._scan(file)
        except _PARSE_ERRORS as err:
            raise SourceError(f"{path}: damaged MCAP file: {err}") from err
        except OSError as err:
            raise SourceError(f"{path}: cannot be read: {err.strerror}") from err
        self._declare()

    def frames(self) -> Iterator[Frame | Loss]:
        try:
            with self.path.open("rb") as file:
                yield from self._frames(file)
        except OSError as err:
            raise SourceError(f"{self.path}: cannot be read: {err.strerror}") from err
        except DamagedError as err:
            raise SourceError(f"{self.path}: changed while it was played: {err}") from err

    def _frames(self, file: BinaryIO) -> Iterator[Frame]:
        counts = dict.fromkeys(self._found, 0)
        for message in self._merged(file):
            channel = self._found[message.channel_id]
            facts = self._sequences[message.channel_id]
            if self._keeps_sequence(facts):
                seq = message.sequence - facts.first
            else:
                seq = counts[message.channel_id]
                counts[message.channel_id] += 1
            yield channel.frame(seq, message.payload, message.log_ns, message.publish_ns)

    def _keeps_sequence(self, facts: "_SequenceFacts") -> bool:
        counts_whole_file = self._global_sequence.is_increasing and len(self._found) > 1
        return facts.is_counter and not counts_whole_file

    def _merged(self, file: BinaryIO) -> Iterator[Message]:
        """Yield messages by arrival; holds only the segments that overlap in time."""
        waiting: list[Message] = []
        for segment in sorted(self._segments, key=lambda segment: (segment.start_ns, segment.offset)):
            while waiting and waiting[0].log_ns < segment.start_ns:
                yield heapq.heappop(waiting)
            for message in self._messages_of(file, segment):
                heapq.heappush(waiting, message)
        while waiting:
            yield heapq.heappop(waiting)

    def _scan(self, file: BinaryIO) -> None:
        """Walk the data section: learn channels, segments and facts; stop at its end or at the first tear."""
        if file.read(len(MAGIC)) != MAGIC:
            raise SourceError(f"{self.path}: not an MCAP file")
        at = len(MAGIC)
        run: list[tuple[int, int]] = []  # loose messages that follow one another: (offset, length)
        while True:
            file.seek(at)
            head = file.read(_RECORD.size)
            if len(head) < _RECORD.size:
                self._note("truncated", f"the file ends at byte {self._size} inside its data section")
                break
            opcode, length = _RECORD.unpack(head)
            end = at + _RECORD.size + length
            if opcode != Opcode.MESSAGE or (run and end - run[0][0] > _MAX_RUN_BYTES):
                self._take_run(file, run)
            if end > self._size:
                self._take_torn(file, opcode, at + _RECORD.size)
                break
            if opcode == Opcode.MESSAGE:
                run.append((at, end - at))
            elif opcode == Opcode.CHUNK:
                self._take_chunk(file, at + _RECORD.size, length, is_torn=False)
            elif opcode in (Opcode.DATA_END, Opcode.FOOTER):
                self._check_end(file)
                break
            elif opcode == 0:
                self._note("truncated", f"no MCAP record at byte {at}")
                break
            else:
                self._take_record(file.read(length), opcode)
            at = end
        self._take_run(file, run)

    def _take_record(self, body: bytes, opcode: int) -> None:
        if opcode == Opcode.HEADER:
            self._profile = Header.read(_stream(body)).profile
        elif opcode == Opcode.SCHEMA:
            schema = Schema.read(_stream(body))
            self._schemas.setdefault(schema.id, schema)
        elif opcode == Opcode.CHANNEL:
            channel = Channel.read(_stream(body))
            self._channels.setdefault(channel.id, channel)
        elif opcode in (Opcode.ATTACHMENT, Opcode.METADATA):
            self._not_carried += 1

    def _take_run(self, file: BinaryIO, run: list[tuple[int, int]]) -> None:
        if not run:
            return
        offset = run[0][0]
        segment = Segment(offset, run[-1][0] + run[-1][1] - offset, 0, is_chunk=False)
        run.clear()
        self._take_segment(file, segment)

    def _take_chunk(self, file: BinaryIO, offset: int, length: int, *, is_torn: bool) -> None:
        try:
            self._take_segment(file, Segment(offset, length, 0, is_chunk=True, is_torn=is_torn))
        except DamagedError as err:
            self._note(err.kind, str(err))

    def _take_torn(self, file: BinaryIO, opcode: int, offset: int) -> None:
        self._note(
            "truncated", f"the file ends at byte {self._size} inside a record; what stood before it is played"
        )
        if opcode == Opcode.CHUNK and offset < self._size:
            self._take_chunk(file, offset, self._size - offset, is_torn=True)

    def _take_segment(self, file: BinaryIO, segment: Segment) -> None:
        start_ns: int | None = None
        for message in self._messages_of(file, segment, learn=True):
            start_ns = message.log_ns if start_ns is None else min(start_ns, message.log_ns)
            self._observe(message)
        if start_ns is not None:
            self._segments.append(
                Segment(segment.offset, segment.length, start_ns, segment.is_chunk, segment.is_torn)
            )

    def _observe(self, message: Message) -> None:
        found = self._found.get(message.channel_id)
        if found is None:
            found = self._found[message.channel_id] = self._new_channel(self._channels[message.channel_id])
            self._sequences[message.channel_id] = _SequenceFacts()
        if not any(channel.count for channel in self._found.values()):
            self.start_ns = message.log_ns
        self.start_ns, self.end_ns = min(self.start_ns, message.log_ns), max(self.end_ns, message.log_ns)
        found.observe(message.payload, message.log_ns, message.publish_ns)
        self._sequences[message.channel_id].observe(message.sequence, message.log_ns)
        self._global_sequence.observe(message.sequence, 0)

    def _new_channel(self, channel: Channel) -> MessageChannel:
        schema = self._schemas.get(channel.schema_id)
        declared = MessageSchema(
            channel.message_encoding,
            schema.name if schema else "",
            schema.encoding if schema else "",
            schema.data if schema else b"",
        )
        if schema is None and channel.schema_id:
            self._note(
                "unknown_type", f"channel {channel.topic} names schema {channel.schema_id}, which is absent"
            )
        details = {f"metadata.{key}": value for key, value in channel.metadata.items()}
        name = stream_name(channel.topic, {found.name for found in self._found.values()})
        return MessageChannel(name, channel.topic, declared, details={"profile": self._profile, **details})

    def _messages_of(self, file: BinaryIO, segment: Segment, *, learn: bool = False) -> Iterator[Message]:
        """Yield a segment's messages in file order; with ``learn``, take in its schemas and channels too.

        Raises:
            DamagedError: If a chunk cannot be unpacked or fails its checksum.
        """
        file.seek(segment.offset)
        data = file.read(segment.length)
        if segment.is_chunk:
            data = unpack_chunk(data, is_torn=segment.is_torn)
        at = 0
        while at + _RECORD.size <= len(data):
            opcode, length = _RECORD.unpack_from(data, at)
            body_at = at + _RECORD.size
            at = body_at + length
            if at > len(data):
                break  # the tear
            if opcode != Opcode.MESSAGE:
                if learn:
                    self._take_record(data[body_at:at], opcode)
                continue
            if length < _MESSAGE.size:
                self._note("bad_record", "a message record is too short for its own header", learn)
                continue
            channel_id, sequence, log_ns, publish_ns = _MESSAGE.unpack_from(data, body_at)
            if channel_id not in self._channels:
                self._note("unknown_type", f"messages of channel {channel_id}, which is not declared", learn)
            elif max(log_ns, publish_ns) > MAX_STAMP_NS:
                self._note("bad_stamp", f"a stamp of channel {channel_id} is beyond the year 2262", learn)
            else:
                payload = data[body_at + _MESSAGE.size : at]
                yield Message(log_ns, (segment.offset, body_at), channel_id, sequence, publish_ns, payload)

    def _check_end(self, file: BinaryIO) -> None:
        file.seek(max(0, self._size - len(MAGIC)))
        if file.read() != MAGIC:
            self._note("truncated", "the summary at the end is cut; every message stands before it")

    def _note(self, kind: str, sentence: str, is_scan: bool = True) -> None:
        if is_scan:
            count, first_sentence = self._damage.get(kind, (0, sentence))
            self._damage[kind] = (count + 1, first_sentence)

    def _declare(self) -> None:
        for channel_id, channel in self._found.items():
            facts = self._sequences[channel_id]
            if self._keeps_sequence(facts):
                channel.details["first_sequence"] = str(facts.first)
        self.streams = tuple(channel.declare() for channel in self._found.values())
        problems = [Problem(kind, "", count, text) for kind, (count, text) in self._damage.items()]
        silent = [
            MessageChannel(stream_name(channel.topic, ()), channel.topic, MessageSchema("", "", "", b""))
            for channel in self._channels.values()
            if channel.id not in self._found
        ]
        problems += message_problems([*self._found.values(), *silent])
        if self._not_carried:
            text = f"{self._not_carried} attachments and metadata records belong to no stream: not replayed"
            problems.append(Problem("not_carried", "", self._not_carried, text))
        self.problems = tuple(problems)


@dataclass(slots=True)
class _SequenceFacts:
    """Whether a writer's sequence numbers can be a counter: they rise in file order, and with time."""

    first: int = 0
    last: int = -1
    last_log_ns: int = 0
    count: int = 0
    is_increasing: bool = True

    @property
    def is_counter(self) -> bool:
        """Numbers that leave out nine of ten are ids of some kind, or damaged: nobody loses that much."""
        return self.is_increasing and self.count > 1 and self.last - self.first < 10 * self.count

    def observe(self, sequence: int, log_ns: int) -> None:
        if self.count == 0:
            self.first = sequence
        elif sequence <= self.last or log_ns < self.last_log_ns:
            self.is_increasing = False
        self.last, self.last_log_ns = sequence, log_ns
        self.count += 1


def unpack_chunk(body: bytes, *, is_torn: bool) -> bytes:
    """Return the records of a chunk; of a torn one what can be unpacked of them, which no checksum covers.

    Raises:
        DamagedError: If the compression is unknown, the data does not unpack, or the checksum differs.
    """
    header_bytes = _CHUNK.size + 4
    if len(body) < header_bytes:
        raise DamagedError("truncated", "the last chunk is cut before its data")
    _, _, size, checksum = _CHUNK.unpack_from(body)
    name_length = int.from_bytes(body[_CHUNK.size : header_bytes], "little")
    compression = body[header_bytes : header_bytes + name_length].decode("ascii", "replace")
    packed = body[header_bytes + name_length + 8 :]
    if size > _MAX_CHUNK_BYTES:
        raise DamagedError("bad_chunk", f"a chunk claims {size} bytes, more than any writer makes")
    if compression == "":
        data = packed[:size]
    elif compression == "zstd":
        data = _unpack_zstd(packed, size)
    elif compression == "lz4":
        data = _unpack_lz4(packed, size)
    else:
        raise DamagedError("bad_chunk", f"a chunk is compressed with {compression!r}; known are zstd and lz4")
    if is_torn:
        return data[:size]
    if len(data) != size:
        raise DamagedError(
            "bad_chunk", f"a chunk unpacks to {len(data)} bytes instead of {size}; it is left out"
        )
    if checksum and zlib.crc32(data) != checksum:
        raise DamagedError("bad_checksum", "chunks whose checksum does not match their data are left out")
    return data


def _unpack_zstd(packed: bytes, size: int) -> bytes:
    pieces: list[bytes] = []
    left = size + 1  # one more, to see that it holds more than it says
    reader = zstandard.ZstdDecompressor().stream_reader(packed)
    try:
        while left > 0 and (piece := reader.read(min(left, _MAX_RUN_BYTES))):
            pieces.append(piece)
            left -= len(piece)
    except zstandard.ZstdError:
        pass  # what came before stands; the caller compares the size
    return b"".join(pieces)


def _unpack_lz4(packed: bytes, size: int) -> bytes:
    try:
        return bytes(LZ4FrameDecompressor().decompress(packed, max_length=size))
    except (RuntimeError, EOFError):
        return b""


def _stream(body: bytes) -> ReadDataStream:
    return ReadDataStream(BytesIO(body))
