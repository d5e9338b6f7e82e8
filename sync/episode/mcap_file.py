"""MCAP on the level of bytes: records packed and parsed, and a file that is consistent after every call.

Source: MCAP format specification, version 0 (https://mcap.dev/spec). Little-endian throughout.
"""

import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import zstandard

from sensorium.errors import EpisodeError

MAGIC = b"\x89MCAP0\r\n"
LIBRARY = "sensorium"
MAX_CHUNK_BYTES = 1 << 28
"""Larger claims are taken for damage, not for data."""

HEADER, FOOTER, SCHEMA, CHANNEL, MESSAGE, CHUNK, MESSAGE_INDEX, CHUNK_INDEX = range(1, 9)
ATTACHMENT, ATTACHMENT_INDEX, STATISTICS, METADATA, METADATA_INDEX, SUMMARY_OFFSET, DATA_END = range(9, 16)

RECORD_HEAD = struct.Struct("<BQ")
MESSAGE_HEAD = struct.Struct("<BQHIQQ")
_CHUNK_HEAD = struct.Struct("<QQQI")
_FOOTER = struct.Struct("<BQQQI")
_FOOTER_BYTES = _FOOTER.size + len(MAGIC)

Buffer = bytes | bytearray | memoryview


class WriteError(EpisodeError):
    """The disk did not take what was to be written."""


def _text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<I", len(data)) + data


def _table(values: dict[str, str]) -> bytes:
    body = b"".join(_text(key) + _text(value) for key, value in values.items())
    return struct.pack("<I", len(body)) + body


def _record(opcode: int, body: bytes) -> bytes:
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
        packed = struct.Struct("<" + code)
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
        body = struct.pack("<H", self.id) + _text(self.name) + _text(self.encoding)
        return _record(SCHEMA, body + struct.pack("<I", len(self.data)) + self.data)

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
        body = struct.pack("<HH", self.id, self.schema_id) + _text(self.topic) + _text(self.message_encoding)
        return _record(CHANNEL, body + _table(self.metadata))

    @classmethod
    def parse(cls, body: Buffer) -> "Channel":
        cursor = _Cursor(body)
        return cls(cursor.number("H"), cursor.number("H"), cursor.text(), cursor.text(), cursor.table())


@dataclass(frozen=True, slots=True)
class Metadata:
    name: str
    values: dict[str, str]

    def pack(self) -> bytes:
        return _record(METADATA, _text(self.name) + _table(self.values))

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
        return _record(METADATA_INDEX, struct.pack("<QQ", self.offset, self.length) + _text(self.name))

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
        body = struct.pack("<QQ", self.log_ns, self.log_ns) + _text(self.name) + _text(self.media_type)
        body += struct.pack("<Q", len(self.data)) + self.data
        return _record(ATTACHMENT, body + struct.pack("<I", zlib.crc32(body)))

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
        return _record(ATTACHMENT_INDEX, body + _text(self.name) + _text(self.media_type))

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
        body += struct.pack("<Q", self.index_bytes) + _text(self.compression)
        return _record(CHUNK_INDEX, body + struct.pack("<QQ", self.stored_bytes, self.plain_bytes))

    @classmethod
    def parse(cls, body: Buffer) -> "ChunkIndex":
        cursor = _Cursor(body)
        start_ns, end_ns, offset, length = (cursor.number("Q") for _ in range(4))
        entries = _Cursor(cursor.take(cursor.number("I")))
        offsets = {}
        while entries.has_more:
            channel_id = entries.number("H")
            offsets[channel_id] = entries.number("Q")
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
        if len(plain) != self.plain_bytes or zlib.crc32(plain) != self.plain_crc:
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


@dataclass(frozen=True, slots=True)
class Message:
    """One message inside an unpacked chunk; ``data`` is a view of the chunk."""

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
            channel_id, sequence, log_ns, publish_ns = struct.unpack_from("<HIQQ", body)
            yield Message(channel_id, sequence, log_ns, publish_ns, body[22:], offset)


def index_messages(plain: memoryview) -> dict[int, list[tuple[int, int]]]:
    """Return (log time, offset) of every message by channel, as the writer would have indexed them."""
    found: dict[int, list[tuple[int, int]]] = {}
    for message in messages(plain):
        found.setdefault(message.channel_id, []).append((message.log_ns, message.offset))
    return found


@dataclass(slots=True)
class Contents:
    """What the summary of a file repeats: everything needed to read it or to finish it."""

    schemas: dict[int, Schema] = field(default_factory=dict)
    channels: dict[int, Channel] = field(default_factory=dict)
    statistics: Statistics = field(default_factory=Statistics)
    chunks: list[ChunkIndex] = field(default_factory=list)
    attachments: list[AttachmentIndex] = field(default_factory=list)
    metadata: list[MetadataIndex] = field(default_factory=list)

    def pack_statistics(self) -> bytes:
        counts = self.statistics.messages
        body = struct.pack(
            "<QHIIIIQQI",
            sum(counts.values()),
            len(self.schemas),
            len(self.channels),
            len(self.attachments),
            len(self.metadata),
            len(self.chunks),
            self.statistics.start_ns or 0,
            self.statistics.end_ns,
            10 * len(counts),
        )
        return _record(STATISTICS, body + b"".join(struct.pack("<HQ", *entry) for entry in counts.items()))

    def pack_summary(self, summary_start: int) -> bytes:
        """Return summary section, footer and magic; schemas and channels are repeated, as readers insist."""
        groups = [
            (SCHEMA, [schema.pack() for schema in self.schemas.values()]),
            (CHANNEL, [channel.pack() for channel in self.channels.values()]),
            (STATISTICS, [self.pack_statistics()]),
            (CHUNK_INDEX, [chunk.pack() for chunk in self.chunks]),
            (ATTACHMENT_INDEX, [attachment.pack() for attachment in self.attachments]),
            (METADATA_INDEX, [metadata.pack() for metadata in self.metadata]),
        ]
        summary = b""
        offsets = b""
        for opcode, packed in groups:
            if packed:
                group = b"".join(packed)
                place = struct.pack("<BQQ", opcode, summary_start + len(summary), len(group))
                offsets += _record(SUMMARY_OFFSET, place)
                summary += group
        head = _FOOTER.pack(FOOTER, 20, summary_start, summary_start + len(summary), 0)[:-4]
        crc = zlib.crc32(summary + offsets + head)
        return summary + offsets + head + struct.pack("<I", crc) + MAGIC


class McapFile:
    """An MCAP file being written; after every call the bytes on disk are whole records.

    A call that fails (full disk) leaves the file as it was before it, so that others may still be tried.
    """

    def __init__(self, path: Path, zstd_level: int = 1) -> None:
        """Create ``path``; refuses to overwrite.

        Raises:
            EpisodeError: If the file exists or cannot be created.
        """
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError as err:
            raise EpisodeError(f"{path} exists already; an episode is never overwritten") from err
        except OSError as err:
            raise EpisodeError(f"{path} cannot be created: {err.strerror}") from err
        self._adopt(path, fd, Contents(), 0, 0, zstd_level)
        try:
            self.append([MAGIC, _record(HEADER, _text("") + _text(LIBRARY))])
        except WriteError:
            self.discard()
            raise

    @classmethod
    def resume(cls, path: Path, contents: Contents, offset: int, crc: int) -> "McapFile":
        """Return the file cut at ``offset``, ready to be appended to; ``crc`` is that of the bytes kept."""
        found = cls.__new__(cls)
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        os.ftruncate(fd, offset)
        os.lseek(fd, offset, os.SEEK_SET)
        found._adopt(path, fd, contents, offset, crc, 1)
        if offset == 0:
            found.append([MAGIC, _record(HEADER, _text("") + _text(LIBRARY))])
        return found

    def _adopt(self, path: Path, fd: int, contents: Contents, offset: int, crc: int, zstd_level: int) -> None:
        self.path = path
        self.contents = contents
        self.offset = offset
        self._fd = fd
        self._crc = crc
        self._zstd_level = zstd_level
        self._compressor: zstandard.ZstdCompressor | None = None
        self.is_closed = False

    def append(self, parts: Sequence[Buffer], crc: int | None = None) -> int:
        """Write the parts as they are and return their size.

        Args:
            crc: The checksum of the whole file including the parts, where the caller knows it.

        Raises:
            WriteError: If the disk did not take all of them; the file is cut back to where it was.
        """
        size = sum(map(len, parts))
        try:
            written = _writev_all(self._fd, parts)
        except OSError as err:
            os.ftruncate(self._fd, self.offset)
            os.lseek(self._fd, self.offset, os.SEEK_SET)
            raise WriteError(
                f"{self.path}: {size} bytes could not be written: {err.strerror}; free space there"
            ) from err
        assert written == size
        if crc is None:
            crc = self._crc
            for part in parts:
                crc = zlib.crc32(part, crc)
        self._crc = crc
        self.offset += size
        return size

    def add_schema(self, name: str, encoding: str, data: bytes) -> int:
        """Return the id of this schema, written on first use; 0 stands for no schema."""
        if not encoding:
            return 0
        for known in self.contents.schemas.values():
            if (known.name, known.encoding, known.data) == (name, encoding, data):
                return known.id
        schema = Schema(len(self.contents.schemas) + 1, name, encoding, data)
        self.append([schema.pack()])
        self.contents.schemas[schema.id] = schema
        return schema.id

    def add_channel(self, topic: str, message_encoding: str, schema_id: int, metadata: dict[str, str]) -> int:
        channel = Channel(len(self.contents.channels) + 1, schema_id, topic, message_encoding, metadata)
        self.append([channel.pack()])
        self.contents.channels[channel.id] = channel
        return channel.id

    def add_metadata(self, name: str, values: dict[str, str]) -> None:
        offset = self.offset
        length = self.append([Metadata(name, values).pack()])
        self.contents.metadata.append(MetadataIndex(offset, length, name))

    def add_attachment(self, attachment: Attachment) -> None:
        offset = self.offset
        length = self.append([attachment.pack()])
        entry = AttachmentIndex(
            offset, length, attachment.log_ns, len(attachment.data), attachment.name, attachment.media_type
        )
        self.contents.attachments.append(entry)

    def add_chunk(
        self, compression: str, parts: Sequence[Buffer], index: dict[int, list[tuple[int, int]]]
    ) -> int:
        """Write message records as one chunk with its message indexes; return the stored size.

        Args:
            compression: ``""`` (the parts are written without a copy) or ``zstd`` (stored all the same where
                that is not smaller).
            index: (log time, offset in the chunk) of every message, by channel id.
        """
        crc = 0
        for part in parts:
            crc = zlib.crc32(part, crc)
        plain_bytes = sum(map(len, parts))
        stored: Sequence[Buffer] = parts
        if compression:
            if self._compressor is None:
                self._compressor = zstandard.ZstdCompressor(level=self._zstd_level)
            packed = self._compressor.compress(b"".join(parts))
            if len(packed) < plain_bytes:
                stored = [packed]
            else:
                compression = ""
        times = [log_ns for entries in index.values() for log_ns, _ in entries]
        start_ns, end_ns = min(times), max(times)
        stored_bytes = sum(map(len, stored))
        body = _CHUNK_HEAD.pack(start_ns, end_ns, plain_bytes, crc) + _text(compression)
        body += struct.pack("<Q", stored_bytes)
        length = RECORD_HEAD.size + len(body) + stored_bytes
        tail, offsets = pack_message_indexes(index, self.offset + length)
        head = RECORD_HEAD.pack(CHUNK, len(body) + stored_bytes) + body
        entry = ChunkIndex(
            start_ns, end_ns, self.offset, length, offsets, len(tail), compression, stored_bytes, plain_bytes
        )
        file_crc = None
        if not compression:
            file_crc = zlib.crc32(tail, combine_crc32(zlib.crc32(head, self._crc), crc, plain_bytes))
        size = self.append([head, *stored, tail], file_crc)
        self.contents.chunks.append(entry)
        counts = {channel_id: len(entries) for channel_id, entries in index.items()}
        self.contents.statistics.add(counts, start_ns, end_ns)
        return size

    def sync(self) -> None:
        """Return once all that was written is on the disk."""
        os.fdatasync(self._fd)

    def finish(self) -> None:
        """Write data end, summary and footer, and close.

        Raises:
            WriteError: If the disk is full; the file stays recoverable.
        """
        end = _record(DATA_END, struct.pack("<I", self._crc))
        try:
            self.append([end, self.contents.pack_summary(self.offset + len(end))])
        finally:
            self.abandon()

    def discard(self) -> None:
        """Close and remove the file."""
        self.abandon()
        self.path.unlink()

    def abandon(self) -> None:
        """Close without finishing; safe to call twice."""
        if not self.is_closed:
            self.is_closed = True
            os.close(self._fd)


def _multiply_mod_p(a: int, b: int) -> int:
    """Return a * b modulo the CRC-32 polynomial, bits reflected."""
    product = 0
    mask = 1 << 31
    while a:
        if a & mask:
            product ^= b
            a ^= mask
        mask >>= 1
        b = b >> 1 ^ 0xEDB88320 if b & 1 else b >> 1
    return product


def _powers_of_x() -> list[int]:
    """Return x^(2^n) modulo the CRC-32 polynomial for n = 0 ... 31."""
    powers = [1 << 30]
    while len(powers) < 32:
        powers.append(_multiply_mod_p(powers[-1], powers[-1]))
    return powers


_POWERS_OF_X = _powers_of_x()


def combine_crc32(first: int, second: int, second_bytes: int) -> int:
    """Return the CRC-32 of two byte strings joined, from that of each (zlib's ``crc32_combine``).

    A chunk's checksum thus serves for the file's as well, instead of a second pass over a megabyte.
    """
    shift = 1 << 31
    for bit in range(second_bytes.bit_length()):
        if second_bytes >> bit & 1:
            shift = _multiply_mod_p(_POWERS_OF_X[(bit + 3) & 31], shift)
    return _multiply_mod_p(shift, first) ^ second


def pack_message_indexes(
    index: dict[int, list[tuple[int, int]]], offset: int
) -> tuple[bytes, dict[int, int]]:
    """Return the message index records that begin at file ``offset``, and where each channel's lies."""
    packed = b""
    offsets = {}
    for channel_id, entries in index.items():
        offsets[channel_id] = offset + len(packed)
        flat = [number for entry in sorted(entries) for number in entry]
        packed += _record(MESSAGE_INDEX, struct.pack(f"<HI{len(flat)}Q", channel_id, 8 * len(flat), *flat))
    return packed, offsets


def _writev_all(fd: int, parts: Sequence[Buffer]) -> int:
    """Write every part; the kernel takes at most IOV_MAX buffers and may take less than it was given."""
    limit = 1024
    total = 0
    for first in range(0, len(parts), limit):
        batch = [part for part in parts[first : first + limit] if len(part)]
        while batch:
            written = os.writev(fd, batch)
            total += written
            while batch and written >= len(batch[0]):
                written -= len(batch.pop(0))
            if batch and written:
                batch[0] = memoryview(batch[0])[written:]
    return total


class McapReader:
    """A finished MCAP file, read through its summary."""

    def __init__(self, path: Path) -> None:
        """Open ``path`` and read its summary.

        Raises:
            EpisodeError: If the file is no MCAP, cut off, or its summary is damaged.
        """
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as err:
            raise EpisodeError(f"{path} cannot be opened: {err.strerror}") from err
        try:
            self.contents = self._read_summary()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def read_at(self, offset: int, size: int) -> bytes:
        """Return exactly ``size`` bytes.

        Raises:
            EpisodeError: If the file ends before.
        """
        data = os.pread(self._fd, size, offset)
        while len(data) < size:
            more = os.pread(self._fd, size - len(data), offset + len(data))
            if not more:
                raise EpisodeError(f"{self.path} ends at byte {offset + len(data)}, expected {offset + size}")
            data += more
        return data

    def _read_summary(self) -> Contents:
        size = os.fstat(self._fd).st_size
        if size < len(MAGIC) or self.read_at(0, len(MAGIC)) != MAGIC:
            raise EpisodeError(f"{self.path} is not an MCAP file (first bytes differ)")
        torn = EpisodeError(
            f"{self.path} was not closed (no footer at its end, {size} bytes); recover the episode first"
        )
        if size < len(MAGIC) + _FOOTER_BYTES:
            raise torn
        tail = self.read_at(size - _FOOTER_BYTES, _FOOTER_BYTES)
        opcode, length, summary_start, _, crc = _FOOTER.unpack_from(tail)
        if not tail.endswith(MAGIC) or (opcode, length) != (FOOTER, 20):
            raise torn
        footer_start = size - _FOOTER_BYTES
        if not len(MAGIC) <= summary_start <= footer_start:
            raise EpisodeError(f"{self.path} has no summary; it was not written by Sensorium")
        summary = self.read_at(summary_start, footer_start - summary_start)
        if crc and zlib.crc32(summary + tail[: _FOOTER.size - 4]) != crc:
            raise EpisodeError(f"{self.path} has a damaged summary (checksum differs)")
        contents = parse_summary(records(summary))
        for chunk in contents.chunks:
            if not len(MAGIC) <= chunk.offset < chunk.offset + chunk.length <= summary_start:
                raise EpisodeError(
                    f"{self.path}: a chunk is said to lie at byte {chunk.offset}, outside the data"
                )
        return contents

    def unpack(self, index: ChunkIndex) -> memoryview:
        """Return the records of one chunk, checked against its checksum."""
        data = self.read_at(index.offset, index.length)
        opcode, length = RECORD_HEAD.unpack_from(data)
        if opcode != CHUNK or length + RECORD_HEAD.size != index.length:
            raise EpisodeError(f"{self.path}: no chunk at byte {index.offset}")
        try:
            return Chunk.parse(memoryview(data)[RECORD_HEAD.size :]).unpack()
        except EpisodeError as err:
            raise EpisodeError(f"{self.path} at byte {index.offset}: {err}") from err

    def metadata(self, name: str) -> dict[str, str] | None:
        """Return the values of the last metadata record called ``name``."""
        for index in reversed(self.contents.metadata):
            if index.name == name:
                data = self.read_at(index.offset, index.length)
                return Metadata.parse(memoryview(data)[RECORD_HEAD.size :]).values
        return None

    def attachment(self, name: str) -> bytes | None:
        """Return the data of the attachment called ``name``."""
        for index in self.contents.attachments:
            if index.name == name:
                data = self.read_at(index.offset, index.length)
                return Attachment.parse(memoryview(data)[RECORD_HEAD.size :]).data
        return None


def parse_summary(found: Iterable[tuple[int, int, memoryview]]) -> Contents:
    """Return the contents that the records of a summary section describe."""
    contents = Contents()
    for opcode, _, body in found:
        if opcode == SCHEMA:
            schema = Schema.parse(body)
            contents.schemas[schema.id] = schema
        elif opcode == CHANNEL:
            channel = Channel.parse(body)
            contents.channels[channel.id] = channel
        elif opcode == CHUNK_INDEX:
            contents.chunks.append(ChunkIndex.parse(body))
        elif opcode == METADATA_INDEX:
            contents.metadata.append(MetadataIndex.parse(body))
        elif opcode == ATTACHMENT_INDEX:
            contents.attachments.append(AttachmentIndex.parse(body))
    return contents
