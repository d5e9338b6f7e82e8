"""An MCAP file being written, consistent after every call."""

import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import zstandard

from sensorium.errors import EpisodeError
from sensorium.sync.episode.mcap_records import (
    CHUNK,
    CHUNK_HEAD,
    DATA_END,
    HEADER,
    LIBRARY,
    MAGIC,
    MESSAGE_INDEX,
    RECORD_HEAD,
    Attachment,
    AttachmentIndex,
    Buffer,
    Channel,
    ChunkIndex,
    Contents,
    Metadata,
    MetadataIndex,
    Schema,
    WriteError,
    pack_record,
    pack_text,
)


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
            self.append([MAGIC, pack_record(HEADER, pack_text("") + pack_text(LIBRARY))])
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
            found.append([MAGIC, pack_record(HEADER, pack_text("") + pack_text(LIBRARY))])
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
        body = CHUNK_HEAD.pack(start_ns, end_ns, plain_bytes, crc) + pack_text(compression)
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
        end = pack_record(DATA_END, struct.pack("<I", self._crc))
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
        packed += pack_record(
            MESSAGE_INDEX, struct.pack(f"<HI{len(flat)}Q", channel_id, 8 * len(flat), *flat)
        )
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
