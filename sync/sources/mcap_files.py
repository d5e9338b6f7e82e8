"""MCAP files of others, whole or torn; messages, schemas and encodings pass as they are found.

Format: mcap.dev/spec. ``log_time`` is the arrival, ``publish_time`` a second stamp.
"""

import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from mcap.data_stream import ReadDataStream
from mcap.exceptions import McapError
from mcap.opcode import Opcode
from mcap.records import Channel, Header, Schema

from sensorium.drivers.frame import MessageSchema
from sensorium.errors import SourceError
from sensorium.sync.episode.files import MANIFEST_FILE
from sensorium.sync.sources.budget import DamagedError, UnpackBudget, unpack
from sensorium.sync.sources.message_file import ChannelFacts, Message, MessageFile, Segment, by_arrival
from sensorium.sync.sources.message_stream import LATEST_STAMP_NS

MAGIC = b"\x89MCAP0\r\n"
_RECORD = struct.Struct("<BQ")
_MESSAGE = struct.Struct("<HIQQ")
_CHUNK = struct.Struct("<QQQI")
_MAX_CHUNK_BYTES = 128 << 20
_MAX_RUN_BYTES = 1 << 20
_MAX_RECORD_BYTES = 256 << 20  # of what is read whole: schemas, channels, chunks
_PARSE_ERRORS = (McapError, struct.error, ValueError, IndexError, EOFError)


class McapFile(MessageFile):
    """One MCAP file. Its whole chunks and the readable part of a torn one are read; the rest is noted.

    Raises:
        SourceError: If it is part of one of our episodes (whose consent is in its manifest).
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
        self._channels: dict[int, ChannelFacts] = {}
        self._occurrences: Counter[tuple[str, MessageSchema]] = Counter()
        self._not_carried = 0
        self._profile = ""
        self._size = 0
        self._budget = UnpackBudget(0)

    def scan(self) -> Iterator[Message]:
        try:
            with self.path.open("rb") as file:
                self._size = self.path.stat().st_size
                self._budget = UnpackBudget(self._size)
                yield from self._scan(file)
        except _PARSE_ERRORS as err:
            raise SourceError(f"{self.path}: damaged MCAP file: {err}") from err
        except OSError as err:
            raise SourceError(f"{self.path}: cannot be read: {err.strerror}") from err
        if self._not_carried:
            text = f"{self._not_carried} attachments and metadata records belong to no stream: not replayed"
            self.notes.note("not_carried", text, self._not_carried)

    def messages(self) -> Iterator[Message]:
        with self.path.open("rb") as file:
            yield from by_arrival(self._segments, lambda segment: self._messages_of(file, segment))

    def channels(self) -> dict[int, ChannelFacts]:
        return self._channels

    def _take_channel(self, channel: Channel) -> None:
        if channel.id in self._channels:
            return
        schema = self._schema_of(channel)
        occurrence = self._occurrences[channel.topic, schema]
        self._occurrences[channel.topic, schema] += 1
        details = {f"metadata.{key}": value for key, value in channel.metadata.items()}
        details = {"profile": self._profile, **details}
        self._channels[channel.id] = ChannelFacts(channel.topic, schema, 1, occurrence, details)

    def _schema_of(self, channel: Channel) -> MessageSchema:
        schema = self._schemas.get(channel.schema_id)
        if schema is None:
            if channel.schema_id:
                text = f"channel {channel.topic} names schema {channel.schema_id}, which is absent"
                self.notes.note("unknown_type", text)
            return MessageSchema(channel.message_encoding, "", "", b"")
        return MessageSchema(channel.message_encoding, schema.name, schema.encoding, schema.data)

    def _scan(self, file: BinaryIO) -> Iterator[Message]:
        """Walk the data section: learn channels and segments; stop at its end or at the first tear."""
        if file.read(len(MAGIC)) != MAGIC:
            raise SourceError(f"{self.path}: not an MCAP file")
        at = len(MAGIC)
        run: list[tuple[int, int]] = []  # loose messages that follow one another: (offset, length)
        while True:
            file.seek(at)
            head = file.read(_RECORD.size)
            if len(head) < _RECORD.size:
                self.notes.note("truncated", f"the file ends at byte {self._size} inside its data section")
                break
            opcode, length = _RECORD.unpack(head)
            end = at + _RECORD.size + length
            if opcode != Opcode.MESSAGE or (run and end - run[0][0] > _MAX_RUN_BYTES):
                yield from self._take_run(file, run)
            if end > self._size:
                yield from self._take_torn(file, opcode, at + _RECORD.size)
                break
            if opcode == Opcode.MESSAGE and length > _MAX_RECORD_BYTES:
                self.notes.note("bad_record", f"a message of {length} bytes is more than any recorder writes")
            elif opcode == Opcode.MESSAGE:
                run.append((at, end - at))
            elif opcode == Opcode.CHUNK:
                yield from self._take_chunk(file, at + _RECORD.size, length, is_torn=False)
            elif opcode in (Opcode.DATA_END, Opcode.FOOTER):
                self._check_end(file)
                break
            elif opcode == 0:
                self.notes.note("truncated", f"no MCAP record at byte {at}")
                break
            elif opcode in (Opcode.ATTACHMENT, Opcode.METADATA):
                self._not_carried += 1  # may be large; nothing in it is looked at
            elif length <= _MAX_RECORD_BYTES:
                self._take_record(file.read(length), opcode)
            at = end
        yield from self._take_run(file, run)

    def _take_record(self, body: bytes, opcode: int) -> None:
        if opcode == Opcode.HEADER:
            self._profile = Header.read(_stream(body)).profile
        elif opcode == Opcode.SCHEMA:
            schema = Schema.read(_stream(body))
            self._schemas.setdefault(schema.id, schema)
        elif opcode == Opcode.CHANNEL:
            self._take_channel(Channel.read(_stream(body)))
        elif opcode in (Opcode.ATTACHMENT, Opcode.METADATA):
            self._not_carried += 1

    def _take_run(self, file: BinaryIO, run: list[tuple[int, int]]) -> Iterator[Message]:
        if not run:
            return
        offset = run[0][0]
        segment = Segment(offset, run[-1][0] + run[-1][1] - offset, 0, is_chunk=False)
        run.clear()
        yield from self._take_segment(file, segment)

    def _take_chunk(self, file: BinaryIO, offset: int, length: int, *, is_torn: bool) -> Iterator[Message]:
        if length > _MAX_RECORD_BYTES:
            self.notes.note("bad_chunk", f"a chunk has {length} bytes, more than any writer makes")
            return
        try:
            yield from self._take_segment(file, Segment(offset, length, 0, is_chunk=True, is_torn=is_torn))
        except DamagedError as err:
            self.notes.note(err.kind, str(err))

    def _take_torn(self, file: BinaryIO, opcode: int, offset: int) -> Iterator[Message]:
        self.notes.note(
            "truncated", f"the file ends at byte {self._size} inside a record; what stood before it is played"
        )
        if opcode == Opcode.CHUNK and offset < self._size:
            yield from self._take_chunk(file, offset, self._size - offset, is_torn=True)

    def _take_segment(self, file: BinaryIO, segment: Segment) -> Iterator[Message]:
        start_ns: int | None = None
        for message in self._messages_of(file, segment, learn=True):
            start_ns = message.log_ns if start_ns is None else min(start_ns, message.log_ns)
            yield message
        if start_ns is not None:
            self._segments.append(
                Segment(segment.offset, segment.length, start_ns, segment.is_chunk, segment.is_torn)
            )

    def _messages_of(self, file: BinaryIO, segment: Segment, *, learn: bool = False) -> Iterator[Message]:
        """Yield a segment's messages in file order; with ``learn``, take in its schemas and channels too.

        Raises:
            DamagedError: If a chunk cannot be unpacked or fails its checksum.
        """
        file.seek(segment.offset)
        data = file.read(segment.length)
        if segment.is_chunk:
            data = unpack_chunk(data, is_torn=segment.is_torn, budget=self._budget if learn else None)
        at = 0
        while at + _RECORD.size <= len(data):
            opcode, length = _RECORD.unpack_from(data, at)
            body_at = at + _RECORD.size
            at = body_at + length
            if at > len(data) or opcode == 0:
                break  # the tear
            if opcode != Opcode.MESSAGE:
                if learn:
                    self._take_record(data[body_at:at], opcode)
                continue
            if length < _MESSAGE.size:
                if learn:
                    self.notes.note("bad_record", "a message record is too short for its own header")
                continue
            channel_id, sequence, log_ns, publish_ns = _MESSAGE.unpack_from(data, body_at)
            if channel_id not in self._channels:
                self.notes.note("unknown_type", f"messages of channel {channel_id}, which is not declared")
            elif log_ns > LATEST_STAMP_NS:
                topic = self._channels[channel_id].topic
                text = f"{topic}: messages that are stamped beyond the year 2043 are left out"
                self.notes.note("bad_stamp", text)
            else:
                payload = data[body_at + _MESSAGE.size : at]
                published_ns = publish_ns if publish_ns <= LATEST_STAMP_NS else 0  # 0: not set
                yield Message(log_ns, (segment.offset, body_at), channel_id, sequence, published_ns, payload)

    def _check_end(self, file: BinaryIO) -> None:
        file.seek(max(0, self._size - len(MAGIC)))
        if file.read() != MAGIC:
            self.notes.note("truncated", "the summary at the end is cut; every message stands before it")


def unpack_chunk(body: bytes, *, is_torn: bool, budget: UnpackBudget | None = None) -> bytes:
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
    if budget is not None:
        budget.take(size)
    data = packed[:size] if compression == "" else unpack(compression, packed, size)
    if is_torn:
        return data[:size]
    if len(data) != size:
        raise DamagedError(
            "bad_chunk", f"a chunk unpacks to {len(data)} bytes instead of {size}; it is left out"
        )
    if checksum and zlib.crc32(data) != checksum:
        raise DamagedError("bad_checksum", "chunks whose checksum does not match their data are left out")
    return data


def _stream(body: bytes) -> ReadDataStream:
    return ReadDataStream(BytesIO(body))
