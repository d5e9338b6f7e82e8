"""MCAP on the level of bytes: records packed and parsed.

Source: MCAP format specification, version 0 (https://mcap.dev/spec). Little-endian throughout.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import zstandard

from sensorium.errors import EpisodeError
from sensorium.sync.episode.checksum import crc32

MAGIC = b"\x89MCAP0\r\n"
LIBRARY = "sensorium"
MAX_CHUNK_BYTES = 72 << 20
"""Larger claims are taken for damage, not for data: the largest frame that the bus takes, and a whole chunk beside."""

HEADER, FOOTER, SCHEMA, CHANNEL, MESSAGE, CHUNK, MESSAGE_INDEX, CHUNK_INDEX = range(1, 9)
ATTACHMENT, ATTACHMENT_INDEX, STATISTICS, METADATA, METADATA_INDEX, SUMMARY_OFFSET, DATA_END = range(9, 16)

RECORD_HEAD = struct.Struct("<BQ")
MESSAGE_HEAD = struct.Struct("<BQHIQQ")
CHUNK_HEAD = struct.Struct("<QQQI")
_MESSAGE_FIELDS = struct.Struct("<HIQQ")
_NUMBERS = {code: struct.Struct("<" + code) for code in "HIQ"}
_CHUNK_PLACE = struct.Struct("<4Q")
_INDEX_ENTRY = struct.Struct("<HQ")
FOOTER_LAYOUT = struct.Struct("<BQQQI")
FOOTER_BYTES = FOOTER_LAYOUT.size + len(MAGIC)

Buffer = bytes | bytearray | memoryview
Index = dict[int, list[int]]
"""Of a chunk's messages, by channel: log time, offset in the chunk, log time, offset, ..."""


class WriteError(EpisodeError):
    """The disk did not take what was to be written."""


def pack_text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<I", len(data)) + data


def pack_table(values: dict[str, str]) -> bytes:
    body = b"".join(pack_text(key) + pack_text(value) for key, value in values.items())
    return struct.pack("<I", len(body)) + body


def pack_record(opcode: int, body: bytes) -> bytes:
    return RECORD_HEAD.pack(opcode, len(body)) + body


class _Cursor:
    """Reads the fields of one record body; raises ``EpisodeError`` when they do not fit."""

    def __init__(self, data: Buffer) -> None:
        self._data = memoryview(data)
        self._at = 0

    def take(self, size: int) -> memoryview:
        end = self._at + size
        if end > len(self._data):
            raise EpisodeError(f"MCAP record is too short: {len(self._data)} bytes, a field needs {end}")
        found = self._data[self._at : end]
        self._at = end
        return found

    def number(self, code: str) -> int:
        packed = _NUMBERS[code]
        return int(packed.unpack(self.take(packed.size))[0])

    def text(self) -> str:
        try:
            return str(self.take(self.number("I")), "utf-8")
        except UnicodeDecodeError as err:
            raise EpisodeError(f"MCAP record holds text that is not UTF-8: {err}") from err

    def table(self) -> dict[str, str]:
        inner = _Cursor(self.take(self.number("I")))
        found = {}
        while inner.has_more:
            key = inner.text()
            found[key] = inner.text()
        return found

    @property
    def has_more(self) -> bool:
        return self._at < len(self._data)


@dataclass(frozen=True, slots=True)
class Schema:
    id: int
    name: str
    encoding: str
    data: bytes

    def pack(self) -> bytes:
        body = struct.pack("<H", self.id) + pack_text(self.name) + pack_text(self.encoding)
        return pack_record(SCHEMA, body + struct.pack("<I", len(self.data)) + self.data)

    @classmethod
    def parse(cls, body: Buffer) -> "Schema":
        cursor = _Cursor(body)
        return cls(cursor.number("H"), cursor.text(), cursor.text(), bytes(cursor.take(cursor.number("I"))))


@dataclass(frozen=True, slots=True)
class Channel:
    id: int
    schema_id: int
    topic: str
    message_encoding: str
    metadata: dict[str, str]

    def pack(self) -> bytes:
        body = (
            struct.pack("<HH", self.id, self.schema_id)
            + pack_text(self.topic)
            + pack_text(self.message_encoding)
        )
        return pack_record(CHANNEL, body + pack_table(self.metadata))

    @classmethod
    def parse(cls, body: Buffer) -> "Channel":
        cursor = _Cursor(body)
        return cls(cursor.number("H"), cursor.number("H"), cursor.text(), cursor.text(), cursor.table())


@dataclass(frozen=True, slots=True)
class Metadata:
    name: str
    values: dict[str, str]

    def pack(self) -> bytes:
        return pack_record(METADATA, pack_text(self.name) + pack_table(self.values))

    @classmethod
    def parse(cls, body: Buffer) -> "Metadata":
        cursor = _Cursor(body)
        return cls(cursor.text(), cursor.table())


@dataclass(frozen=True, slots=True)
class MetadataIndex:
    offset: int
    length: int
    name: str

    def pack(self) -> bytes:
        return pack_record(
            METADATA_INDEX, struct.pack("<QQ", self.offset, self.length) + pack_text(self.name)
        )

    @classmethod
    def parse(cls, body: Buffer) -> "MetadataIndex":
        cursor = _Cursor(body)
        return cls(cursor.number("Q"), cursor.number("Q"), cursor.text())


@dataclass(frozen=True, slots=True)
class Attachment:
    log_ns: int
    name: str
    media_type: str
    data: bytes

    def pack(self) -> bytes:
        body = (
            struct.pack("<QQ", self.log_ns, self.log_ns) + pack_text(self.name) + pack_text(self.media_type)
        )
        body += struct.pack("<Q", len(self.data)) + self.data
        return pack_record(ATTACHMENT, body + struct.pack("<I", zlib.crc32(body)))

    @classmethod
    def parse(cls, body: Buffer) -> "Attachment":
        cursor = _Cursor(body)
        log_ns = cursor.number("Q")
        cursor.number("Q")
        found = cls(log_ns, cursor.text(), cursor.text(), bytes(cursor.take(cursor.number("Q"))))
        if cursor.number("I") != zlib.crc32(memoryview(body)[:-4]):
            raise EpisodeError(f"attachment {found.name!r} does not match its checksum")
        return found


@dataclass(frozen=True, slots=True)
class AttachmentIndex:
    offset: int
    length: int
    log_ns: int
    size: int
    name: str
    media_type: str

    def pack(self) -> bytes:
        body = struct.pack("<5Q", self.offset, self.length, self.log_ns, self.log_ns, self.size)
        return pack_record(ATTACHMENT_INDEX, body + pack_text(self.name) + pack_text(self.media_type))

    @classmethod
    def parse(cls, body: Buffer) -> "AttachmentIndex":
        cursor = _Cursor(body)
        offset, length, log_ns, _, size = (cursor.number("Q") for _ in range(5))
        return cls(offset, length, log_ns, size, cursor.text(), cursor.text())


@dataclass(frozen=True, slots=True)
class ChunkIndex:
    """Where a chunk lies and what it holds; ``length`` and ``offset`` include the record's own head."""

    start_ns: int
    end_ns: int
    offset: int
    length: int
    index_offsets: dict[int, int]
    index_bytes: int
    compression: str
    stored_bytes: int
    plain_bytes: int

    def pack(self) -> bytes:
        body = struct.pack(
            "<4QI", self.start_ns, self.end_ns, self.offset, self.length, 10 * len(self.index_offsets)
        )
        body += b"".join(struct.pack("<HQ", *entry) for entry in self.index_offsets.items())
        body += struct.pack("<Q", self.index_bytes) + pack_text(self.compression)
        return pack_record(CHUNK_INDEX, body + struct.pack("<QQ", self.stored_bytes, self.plain_bytes))

    @classmethod
    def parse(cls, body: Buffer) -> "ChunkIndex":
        cursor = _Cursor(body)
        start_ns, end_ns, offset, length = _CHUNK_PLACE.unpack(cursor.take(_CHUNK_PLACE.size))
        entries = cursor.take(cursor.number("I"))
        if len(entries) % _INDEX_ENTRY.size:
            raise EpisodeError(f"MCAP record is damaged: {len(entries)} bytes of entries of 10 each")
        offsets = dict(_INDEX_ENTRY.iter_unpack(entries))
        index_bytes, compression = cursor.number("Q"), cursor.text()
        return cls(
            start_ns,
            end_ns,
            offset,
            length,
            offsets,
            index_bytes,
            compression,
            cursor.number("Q"),
            cursor.number("Q"),
        )


@dataclass(slots=True)
class Statistics:
    """Counts of a file; ``start_ns`` is None while there is no message."""

    messages: dict[int, int] = field(default_factory=dict)
    start_ns: int | None = None
    end_ns: int = 0

    def add(self, counts: dict[int, int], start_ns: int, end_ns: int) -> None:
        for channel_id, count in counts.items():
            self.messages[channel_id] = self.messages.get(channel_id, 0) + count
        self.start_ns = start_ns if self.start_ns is None else min(self.start_ns, start_ns)
        self.end_ns = max(self.end_ns, end_ns)


@dataclass(frozen=True, slots=True)
class Chunk:
    """A chunk record as it lies in the file, before decompression."""

    start_ns: int
    end_ns: int
    plain_bytes: int
    plain_crc: int
    compression: str
    stored: memoryview

    @classmethod
    def parse(cls, body: Buffer) -> "Chunk":
        cursor = _Cursor(body)
        start_ns, end_ns, plain_bytes = (cursor.number("Q") for _ in range(3))
        crc, compression = cursor.number("I"), cursor.text()
        return cls(start_ns, end_ns, plain_bytes, crc, compression, cursor.take(cursor.number("Q")))

    def unpack(self) -> memoryview:
        """Return the records inside.

        Raises:
            EpisodeError: If the size or checksum differ, or the compression is unknown.
        """
        if self.plain_bytes > MAX_CHUNK_BYTES:
            raise EpisodeError(f"chunk claims {self.plain_bytes} bytes, more than {MAX_CHUNK_BYTES}")
        if self.compression == "":
            plain = self.stored
        elif self.compression == "zstd":
            plain = memoryview(_decompress(self.stored, self.plain_bytes))
        else:
            raise EpisodeError(f"chunk compression {self.compression!r} is not one that Sensorium writes")
        if len(plain) != self.plain_bytes or crc32(plain, 0) != self.plain_crc:
            raise EpisodeError(f"chunk of {len(self.stored)} stored bytes does not match its checksum")
        return plain


def _decompress(stored: memoryview, plain_bytes: int) -> bytes:
    try:
        declared = zstandard.get_frame_parameters(stored).content_size
        if declared != plain_bytes:
            raise EpisodeError(f"chunk is damaged: zstd declares {declared} bytes, its record {plain_bytes}")
        return zstandard.ZstdDecompressor().decompress(stored, max_output_size=plain_bytes)
    except zstandard.ZstdError as err:
        raise EpisodeError(f"chunk is damaged: {err}") from err


class Message(NamedTuple):
    """One message inside an unpacked chunk; ``data`` is a view of the chunk. A tuple, because there are so many."""

    channel_id: int
    sequence: int
    log_ns: int
    publish_ns: int
    data: memoryview
    offset: int


def records(data: Buffer) -> Iterator[tuple[int, int, memoryview]]:
    """Yield (opcode, offset, body) of each record in a buffer.

    Raises:
        EpisodeError: If the last record is cut off.
    """
    view = memoryview(data)
    at = 0
    while at < len(view):
        if at + RECORD_HEAD.size > len(view):
            raise EpisodeError(f"record at byte {at} of {len(view)} is cut off")
        opcode, length = RECORD_HEAD.unpack_from(view, at)
        end = at + RECORD_HEAD.size + length
        if end > len(view):
            raise EpisodeError(f"record at byte {at} claims {length} bytes, {len(view) - at} are there")
        yield opcode, at, view[at + RECORD_HEAD.size : end]
        at = end


def messages(plain: memoryview) -> Iterator[Message]:
    """Yield the messages of an unpacked chunk in file order."""
    for opcode, offset, body in records(plain):
        if opcode == MESSAGE:
            if len(body) < 22:
                raise EpisodeError(f"message record of {len(body)} bytes is shorter than its head")
            channel_id, sequence, log_ns, publish_ns = _MESSAGE_FIELDS.unpack_from(body)
            yield Message(channel_id, sequence, log_ns, publish_ns, body[22:], offset)


def index_messages(plain: memoryview) -> Index:
    """Return the index of a chunk's messages, as the writer would have made it."""
    found: Index = {}
    for message in messages(plain):
        found.setdefault(message.channel_id, []).extend((message.log_ns, message.offset))
    return found


@dataclass(slots=True)
class Contents:
    """What the summary of a file repeats: everything needed to read it or to finish it.

    Attributes:
        chunks: Those that were read from a file.
        added_chunks: Of chunks that were written since, as the summary will hold them: an hour of recording has a
            million, and as objects each of them takes a kilobyte.
    """

    schemas: dict[int, Schema] = field(default_factory=dict)
    channels: dict[int, Channel] = field(default_factory=dict)
    statistics: Statistics = field(default_factory=Statistics)
    chunks: list[ChunkIndex] = field(default_factory=list)
    added_chunks: bytearray = field(default_factory=bytearray)
    added_chunk_count: int = 0
    attachments: list[AttachmentIndex] = field(default_factory=list)
    metadata: list[MetadataIndex] = field(default_factory=list)

    def add_chunk(self, chunk: ChunkIndex, counts: dict[int, int]) -> None:
        """Take note of a chunk that was written, and of its messages by channel."""
        self.added_chunks += chunk.pack()
        self.added_chunk_count += 1
        self.statistics.add(counts, chunk.start_ns, chunk.end_ns)

    def pack_statistics(self) -> bytes:
        counts = self.statistics.messages
        body = struct.pack(
            "<QHIIIIQQI",
            sum(counts.values()),
            len(self.schemas),
            len(self.channels),
            len(self.attachments),
            len(self.metadata),
            len(self.chunks) + self.added_chunk_count,
            self.statistics.start_ns or 0,
            self.statistics.end_ns,
            10 * len(counts),
        )
        return pack_record(
            STATISTICS, body + b"".join(struct.pack("<HQ", *entry) for entry in counts.items())
        )

    def pack_summary(self, summary_start: int) -> bytes:
        """Return summary section, footer and magic; schemas and channels are repeated, as readers insist."""
        groups: list[tuple[int, list[bytes | bytearray]]] = [
            (SCHEMA, [schema.pack() for schema in self.schemas.values()]),
            (CHANNEL, [channel.pack() for channel in self.channels.values()]),
            (STATISTICS, [self.pack_statistics()]),
            (CHUNK_INDEX, [*(chunk.pack() for chunk in self.chunks), self.added_chunks]),
            (ATTACHMENT_INDEX, [attachment.pack() for attachment in self.attachments]),
            (METADATA_INDEX, [metadata.pack() for metadata in self.metadata]),
        ]
        summary = b""
        offsets = b""
        for opcode, packed in groups:
            group = b"".join(packed)
            if group:
                place = struct.pack("<BQQ", opcode, summary_start + len(summary), len(group))
                offsets += pack_record(SUMMARY_OFFSET, place)
                summary += group
        head = FOOTER_LAYOUT.pack(FOOTER, 20, summary_start, summary_start + len(summary), 0)[:-4]
        crc = zlib.crc32(summary + offsets + head)
        return summary + offsets + head + struct.pack("<I", crc) + MAGIC
