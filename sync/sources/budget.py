"""What a recording of somebody else may cost: sizes that it claims, and what it unpacks to.

A claim is believed only as far as the bytes are there; what is packed is unpacked piece by piece and never beyond
what was announced, so that a bomb costs no more than an honest file of the same announcement.
"""

import bz2
from collections.abc import Iterator
from typing import Any

import zstandard
from lz4.frame import LZ4FrameDecompressor  # type: ignore[import-untyped]  # comes with mcap

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
PACKED_MAGICS = (ZSTD_MAGIC, b"\x04\x22\x4d\x18", b"\x1f\x8b\x08", b"BZh")
"""How data begin that are packed with zstd, LZ4, gzip and bzip2."""
MAX_CHUNK_BYTES = 512 << 20
MAX_MESSAGE_BYTES = 256 << 20
_PIECE_BYTES = 1 << 20
_FREE_BYTES = 1 << 30
_MAX_RATIO = 250
"""Of a whole file beyond the first GiB: what black images and silence reach stays below."""


class DamagedError(Exception):
    """Bytes that cannot be trusted; ``kind`` is that of the :class:`Problem` that they become."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class UnpackBudget:
    """How many bytes one pass over a file may unpack altogether."""

    def __init__(self, file_bytes: int) -> None:
        self._left = max(_FREE_BYTES, _MAX_RATIO * file_bytes)

    def take(self, count: int) -> None:
        """Book bytes that are about to be unpacked.

        Raises:
            DamagedError: If the file has unpacked to more than any recording of its size does.
        """
        if count > self._left:
            raise DamagedError(
                "bomb", "the file unpacks to more than recordings of its size do; the rest is left out"
            )
        self._left -= count


def unpack(compression: str, packed: bytes, size: int) -> bytes:
    """Return at most ``size + 1`` unpacked bytes, over all frames of the packed ones; fewer where they are damaged.

    Args:
        compression: ``""``, ``none``, ``zstd``, ``lz4`` or ``bz2``.

    Raises:
        DamagedError: If the compression is unknown.
    """
    if compression in ("", "none"):
        return packed[: size + 1]
    streams = {"zstd": _zstd_pieces, "lz4": _lz4_pieces, "bz2": _bz2_pieces}
    if compression not in streams:
        known = ", ".join(sorted(streams))
        raise DamagedError("bad_chunk", f"a chunk is compressed with {compression[:20]!r}; known are {known}")
    pieces: list[bytes] = []
    left = size + 1  # one more, to see that it holds more than it says
    for piece in streams[compression](packed, size + 1):
        pieces.append(piece[:left])
        left -= len(piece)
        if left <= 0:
            break
    return b"".join(pieces)


def unpack_message(payload: bytes) -> bytes:
    """Return a message that was packed by itself with zstd.

    Raises:
        DamagedError: If it does not unpack, or to more than any message holds.
    """
    plain = unpack("zstd", payload, MAX_MESSAGE_BYTES)
    if len(plain) > MAX_MESSAGE_BYTES:
        raise DamagedError("bomb", f"a packed message unpacks to more than {MAX_MESSAGE_BYTES} bytes")
    try:
        stated = zstandard.frame_content_size(payload)
    except zstandard.ZstdError:
        stated = -1
    if not plain or (stated > 0 and len(plain) < stated):
        raise DamagedError("bad_message", "a packed message does not unpack")
    return plain


def _zstd_pieces(packed: bytes, limit: int) -> Iterator[bytes]:
    reader = zstandard.ZstdDecompressor().stream_reader(packed, read_across_frames=True)
    try:
        while piece := reader.read(min(limit, _PIECE_BYTES)):
            yield piece
    except zstandard.ZstdError:
        return  # what came before stands; the caller compares the size


def _lz4_pieces(packed: bytes, limit: int) -> Iterator[bytes]:
    yield from _frame_pieces(LZ4FrameDecompressor, packed, limit)


def _bz2_pieces(packed: bytes, limit: int) -> Iterator[bytes]:
    yield from _frame_pieces(bz2.BZ2Decompressor, packed, limit)


def _frame_pieces(new_decompressor: Any, packed: bytes, limit: int) -> Iterator[bytes]:
    """Yield what one frame after another unpacks to."""
    while packed:
        decompressor = new_decompressor()
        data, made = packed, 0
        try:
            while not decompressor.eof:
                piece = decompressor.decompress(data, max_length=min(limit, _PIECE_BYTES))
                if not piece and (decompressor.needs_input or not data):
                    return  # torn
                data, made = b"", made + len(piece)
                if piece:
                    yield piece
        except (RuntimeError, EOFError, OSError, ValueError):
            return
        packed = decompressor.unused_data or b""
