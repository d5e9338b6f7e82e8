"""Chunks made ready for an MCAP file: compressed where that pays, with their checksums and indexes."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from operator import gt

import zstandard

from sensorium.sync.episode.checksum import crc32_of
from sensorium.sync.episode.mcap_records import (
    CHUNK,
    CHUNK_HEAD,
    MESSAGE_INDEX,
    RECORD_HEAD,
    Buffer,
    Index,
    pack_text,
)

_SMALL_BYTES = 4096
"""Copying less than this costs no more than one more entry for ``writev`` and one more call for its checksum."""


@dataclass(frozen=True, slots=True)
class PackedChunk:
    """The records of one chunk as they go to the file.

    Attributes:
        stored: The bytes, in parts; what they reference must not change until they are written.
        stored_crc: Checksum of ``stored``.
        plain_crc: Checksum before compression, as the chunk's record carries it.
        index: Of every message, by channel.
    """

    compression: str
    stored: list[Buffer]
    stored_bytes: int
    stored_crc: int
    plain_bytes: int
    plain_crc: int
    index: Index
    start_ns: int
    end_ns: int

    def pack_head(self) -> bytes:
        """Return the chunk's record up to the stored bytes."""
        body = CHUNK_HEAD.pack(self.start_ns, self.end_ns, self.plain_bytes, self.plain_crc)
        body += pack_text(self.compression) + struct.pack("<Q", self.stored_bytes)
        return RECORD_HEAD.pack(CHUNK, len(body) + self.stored_bytes) + body


def pack_chunk(
    parts: list[Buffer],
    index: Index,
    start_ns: int,
    end_ns: int,
    compressor: zstandard.ZstdCompressor | None,
) -> PackedChunk:
    """Return message records (at least one) as a chunk, stored as they are where zstd does not shorten them.

    Args:
        parts: The records, by reference.
        start_ns, end_ns: The earliest and the latest log time of the messages.
        compressor: None = not to be compressed.
    """
    plain_bytes = sum(map(len, parts))
    plain_crc = crc32_of(parts)
    if compressor is not None:
        packed = compressor.compress(parts[0] if len(parts) == 1 else b"".join(parts))
        if len(packed) < plain_bytes:
            crc = crc32_of([packed])
            return PackedChunk(
                "zstd", [packed], len(packed), crc, plain_bytes, plain_crc, index, start_ns, end_ns
            )
    return PackedChunk("", parts, plain_bytes, plain_crc, plain_bytes, plain_crc, index, start_ns, end_ns)


def join_small(parts: Sequence[Buffer]) -> list[Buffer]:
    """Return the parts with small neighbours joined, and no empty ones."""
    joined: list[Buffer] = []
    small: list[Buffer] = []
    for part in parts:
        if len(part) < _SMALL_BYTES:
            small.append(part)
        else:
            if small:
                joined.append(b"".join(small))
                small = []
            joined.append(part)
    if small:
        joined.append(b"".join(small))
    return joined


def pack_message_indexes(index: Index, offset: int) -> tuple[bytes, dict[int, int]]:
    """Return the message index records that begin at file ``offset``, and where each channel's lies."""
    packed = []
    offsets = {}
    for channel_id, entries in index.items():
        size = 8 * len(entries)
        packed.append(
            struct.pack(
                f"<BQHI{len(entries)}Q", MESSAGE_INDEX, 6 + size, channel_id, size, *_in_order(entries)
            )
        )
        offsets[channel_id] = offset
        offset += len(packed[-1])
    return b"".join(packed), offsets


def _in_order(entries: list[int]) -> list[int]:
    """Return the entries by log time, as readers expect; nearly always they are."""
    if len(entries) == 2:
        return entries
    times = entries[::2]
    if not any(map(gt, times, times[1:])):
        return entries
    return [number for entry in sorted(zip(times, entries[1::2], strict=True)) for number in entry]
