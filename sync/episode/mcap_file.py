"""An MCAP file being written, consistent after every call."""

import contextlib
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from threading import Lock

from sensorium.errors import EpisodeError
from sensorium.sync.episode.checksum import combine_crc32, crc32, crc32_of
from sensorium.sync.episode.chunks import PackedChunk, pack_message_indexes
from sensorium.sync.episode.mcap_records import (
    DATA_END,
    HEADER,
    LIBRARY,
    MAGIC,
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

_MOST_PARTS = 1024
"""IOV_MAX of Linux."""


class McapFile:
    """An MCAP file being written; after every call the bytes on disk are whole records.

    A call that fails (full disk) leaves the file as it was before it, so that others may still be tried.
    Threads may share a file; a call waits while another one is writing.
    """

    def __init__(self, path: Path) -> None:
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
        self._adopt(path, fd, Contents(), 0, 0)
        try:
            self._begin()
        except WriteError:
            self.discard()
            raise

    @classmethod
    def resume(cls, path: Path, contents: Contents, offset: int, crc: int) -> "McapFile":
        """Return the file cut at ``offset``, ready to be appended to; ``crc`` is that of the bytes kept."""
        found = cls.__new__(cls)
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        found._adopt(path, fd, contents, offset, crc)
        found._cut_back()
        if offset == 0:
            found._begin()
        return found

    def _adopt(self, path: Path, fd: int, contents: Contents, offset: int, crc: int) -> None:
        self.path = path
        self.contents = contents
        self.offset = offset
        self._fd = fd
        self._crc = crc
        self._lock = Lock()
        self._is_torn = False
        self.is_closed = False

    def _begin(self) -> None:
        self.append([MAGIC, pack_record(HEADER, pack_text("") + pack_text(LIBRARY))])

    def _cut_back(self) -> None:
        """Remove what lies behind the last whole record."""
        os.ftruncate(self._fd, self.offset)
        os.lseek(self._fd, self.offset, os.SEEK_SET)
        self._is_torn = False

    def append(self, parts: list[Buffer]) -> int:
        """Write the parts, whole records, as they are and return their size.

        Raises:
            WriteError: If the disk did not take all of them; the file is cut back to where it was.
        """
        with self._lock:
            return self._append(parts)

    def _append(self, parts: list[Buffer], crc: int | None = None) -> int:
        """Append while the lock is held; ``crc`` of the file with the parts, where the caller knows it."""
        size = sum(map(len, parts))
        try:
            if self._is_torn:
                self._cut_back()
            self._is_torn = True
            _writev_all(self._fd, parts, size)
            self._is_torn = False
        except OSError as err:
            with contextlib.suppress(OSError):  # tried again before the next record
                self._cut_back()
            raise WriteError(
                f"{self.path}: {size} bytes could not be written: {err.strerror}; free space there"
            ) from err
        self._crc = crc32_of(parts, self._crc) if crc is None else crc
        self.offset += size
        return size

    def add_schema(self, name: str, encoding: str, data: bytes) -> int:
        """Return the id of this schema, written on first use; 0 stands for no schema."""
        if not encoding:
            return 0
        with self._lock:
            for known in self.contents.schemas.values():
                if (known.name, known.encoding, known.data) == (name, encoding, data):
                    return known.id
            schema = Schema(len(self.contents.schemas) + 1, name, encoding, data)
            self._append([schema.pack()])
            self.contents.schemas[schema.id] = schema
        return schema.id

    def add_channel(self, topic: str, message_encoding: str, schema_id: int, metadata: dict[str, str]) -> int:
        """Return the id of a new channel; ``schema_id`` as ``add_schema`` returned it."""
        with self._lock:
            channel = Channel(len(self.contents.channels) + 1, schema_id, topic, message_encoding, metadata)
            self._append([channel.pack()])
            self.contents.channels[channel.id] = channel
        return channel.id

    def add_metadata(self, name: str, values: dict[str, str]) -> None:
        """Write a table of texts."""
        with self._lock:
            offset = self.offset
            length = self._append([Metadata(name, values).pack()])
            self.contents.metadata.append(MetadataIndex(offset, length, name))

    def add_attachment(self, attachment: Attachment) -> None:
        """Write a small document."""
        with self._lock:
            offset = self.offset
            length = self._append([attachment.pack()])
            self.contents.attachments.append(
                AttachmentIndex(
                    offset,
                    length,
                    attachment.log_ns,
                    len(attachment.data),
                    attachment.name,
                    attachment.media_type,
                )
            )

    def add_chunk(self, chunk: PackedChunk) -> int:
        """Write a chunk with its message indexes; return the bytes that its messages take on disk.

        Raises:
            WriteError: If the disk did not take all of it; the file is cut back to where it was.
        """
        with self._lock:
            head = chunk.pack_head()
            begin = self.offset
            length = len(head) + chunk.stored_bytes
            tail, offsets = pack_message_indexes(chunk.index, begin + length)
            crc = combine_crc32(crc32(head, self._crc), chunk.stored_crc, chunk.stored_bytes)
            self._append([head, *chunk.stored, tail], crc32(tail, crc))
            counts = {channel_id: len(entries) // 2 for channel_id, entries in chunk.index.items()}
            self.contents.add_chunk(
                ChunkIndex(
                    chunk.start_ns,
                    chunk.end_ns,
                    begin,
                    length,
                    offsets,
                    len(tail),
                    chunk.compression,
                    chunk.stored_bytes,
                    chunk.plain_bytes,
                ),
                counts,
            )
        return chunk.stored_bytes

    def sync(self) -> None:
        """Return once all that was written is on the disk."""
        os.fdatasync(self._fd)

    def finish(self, *, is_synced: bool = False) -> None:
        """Write data end, summary and footer, and close.

        Args:
            is_synced: Return only once all of it is on the disk.

        Raises:
            WriteError: If the disk is full or does not take it; the file stays recoverable.
        """
        try:
            with self._lock:
                end = pack_record(DATA_END, struct.pack("<I", self._crc))
                self._append([end, self.contents.pack_summary(self.offset + len(end))])
            if is_synced:
                self.sync()
        except OSError as err:
            raise WriteError(
                f"{self.path} could not be synced to disk: {err.strerror}; check the disk"
            ) from err
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


def _writev_all(fd: int, parts: Sequence[Buffer], size: int) -> None:
    """Write every part, ``size`` bytes in all; the kernel may take fewer than it was given."""
    while size:
        batch = parts[:_MOST_PARTS]
        written = os.writev(fd, batch)
        size -= written
        if size:
            parts = _behind(parts, written)


def _behind(parts: Sequence[Buffer], written: int) -> list[Buffer]:
    """Return what is left of the parts behind so many bytes."""
    for count, part in enumerate(parts):
        if written < len(part):
            return [memoryview(part)[written:], *parts[count + 1 :]]
        written -= len(part)
    return []
