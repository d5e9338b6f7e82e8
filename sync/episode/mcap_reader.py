"""A finished MCAP file, read through its summary."""

import os
import zlib
from collections.abc import Iterable
from pathlib import Path

from sensorium.errors import EpisodeError
from sensorium.sync.episode.mcap_records import (
    ATTACHMENT_INDEX,
    CHANNEL,
    CHUNK,
    CHUNK_INDEX,
    FOOTER,
    FOOTER_BYTES,
    FOOTER_LAYOUT,
    MAGIC,
    METADATA_INDEX,
    RECORD_HEAD,
    SCHEMA,
    Attachment,
    AttachmentIndex,
    Channel,
    Chunk,
    ChunkIndex,
    Contents,
    Metadata,
    MetadataIndex,
    Schema,
    records,
)


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
            EpisodeError: If the file ends before, or was closed.
        """
        if self._fd < 0:
            raise EpisodeError(f"{self.path} was closed while it was read; keep the episode open")
        end = os.fstat(self._fd).st_size
        if (
            not 0 <= offset <= offset + size <= end
        ):  # before memory is asked for, however much an index claims
            raise EpisodeError(f"{self.path} ends at byte {end}, expected {offset + size}")
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
        if size < len(MAGIC) + FOOTER_BYTES:
            raise torn
        tail = self.read_at(size - FOOTER_BYTES, FOOTER_BYTES)
        opcode, length, summary_start, _, crc = FOOTER_LAYOUT.unpack_from(tail)
        if not tail.endswith(MAGIC) or (opcode, length) != (FOOTER, 20):
            raise torn
        footer_start = size - FOOTER_BYTES
        if not len(MAGIC) <= summary_start <= footer_start:
            raise EpisodeError(f"{self.path} has no summary; it was not written by Sensorium")
        summary = self.read_at(summary_start, footer_start - summary_start)
        if crc and zlib.crc32(summary + tail[: FOOTER_LAYOUT.size - 4]) != crc:
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
