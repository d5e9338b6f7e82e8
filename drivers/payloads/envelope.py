"""What every coded payload begins with, and how its parts are packed.

The first byte of a coded payload says how to read the rest: ``AS_IT_CAME`` or ``AS_IT_CAME_ZSTD`` for payloads
that the codec cannot represent (or not make smaller), else the version of the codec that wrote it. A payload
never grows by more than that byte.
"""

import struct
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sensorium.drivers.payloads.payload import Buffer
from sensorium.errors import PayloadError

if TYPE_CHECKING:
    import zstandard

AS_IT_CAME = 0
AS_IT_CAME_ZSTD = 1
FIRST_VERSION = 2
"""Codecs number their versions from here on."""

MAX_PAYLOAD_BYTES = 1 << 30
"""Nothing that is unpacked may claim to be larger: a damaged length must not take the memory."""

BLOCK_BYTES = 1 << 15
"""Each block has a Huffman table of its own; 32 KiB follow the changing statistics of a scan (1-2 % smaller than
zstd's 128 KiB) and cost 10 us each."""
ZSTD_BLOCK_BYTES = 1 << 17
_LENGTH = struct.Struct("<I")
_local = threading.local()


def _compressor() -> "zstandard.ZstdCompressor":
    """Return this thread's compressor: making one costs more than packing a small block."""
    found: zstandard.ZstdCompressor = getattr(_local, "compressor", None) or _new_compressor()
    _local.compressor = found
    return found


def _new_compressor() -> "zstandard.ZstdCompressor":
    import zstandard  # here, because whoever only looks into the table of encodings does not need it

    # Differences of sensor values are noise: what pays is the Huffman coder, not the search for repeats. Only long
    # matches, and a table that stays in the first cache, are twice as fast as level 1 and no larger.
    return zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters(
            window_log=17,
            hash_log=12,
            min_match=7,
            strategy=zstandard.STRATEGY_FAST,
            target_length=0,
            write_content_size=True,
        )
    )


def _bytes_of(part: Buffer | NDArray[Any]) -> memoryview:
    view = part.data if isinstance(part, np.ndarray) else memoryview(part)
    return view.cast("B")


def squeeze(*parts: Buffer | NDArray[Any], block_bytes: int = BLOCK_BYTES) -> bytes:
    """Return the parts, joined, as one zstd frame of which no block spans two parts; b"" for nothing."""
    views = [_bytes_of(part) for part in parts if len(part)]
    if len(views) <= 1 and (block_bytes >= ZSTD_BLOCK_BYTES or sum(map(len, views)) <= block_bytes):
        return _compressor().compress(views[0]) if views else b""
    import zstandard

    stream = _compressor().compressobj(size=sum(map(len, views)))
    out = []
    for view in views:
        for start in range(0, len(view), block_bytes):
            out.append(stream.compress(view[start : start + block_bytes]))
            out.append(stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK))
    out.append(stream.flush())
    return b"".join(out)


def unsqueeze(packed: Buffer, size: int) -> bytes:
    """Return the ``size`` bytes that :func:`squeeze` packed.

    Raises:
        PayloadError: If it is no zstd frame of that size.
    """
    if not size and not len(packed):
        return b""
    found = plain_size(packed)
    if found != size:
        raise PayloadError(f"a coded payload is damaged: a part holds {found} B instead of {size} B")
    import zstandard

    try:
        plain: bytes = zstandard.ZstdDecompressor().decompress(packed)
    except zstandard.ZstdError as err:
        raise PayloadError(f"a coded payload is damaged: {err}") from err
    return plain


def keep(payload: Buffer) -> bytes:
    """Return a payload as it came, marked so; with zstd where that makes it smaller."""
    packed = squeeze(payload)
    if len(packed) < len(payload):
        return bytes([AS_IT_CAME_ZSTD]) + packed
    return bytes([AS_IT_CAME]) + bytes(payload)


def kept(coded: Buffer) -> bytes | None:
    """Return the payload that :func:`keep` was given; None if a codec wrote ``coded``.

    Raises:
        PayloadError: If it is empty or damaged.
    """
    if not len(coded):
        raise PayloadError("a coded payload is empty")
    form, rest = coded[0], memoryview(coded)[1:]
    if form == AS_IT_CAME:
        return bytes(rest)
    if form == AS_IT_CAME_ZSTD:
        return unsqueeze(rest, plain_size(rest))
    return None


def kept_bytes(coded: Buffer) -> int | None:
    """Return the size of the payload that :func:`keep` was given; None if a codec wrote ``coded``.

    Raises:
        PayloadError: If it is damaged.
    """
    form = coded[0] if len(coded) else AS_IT_CAME_ZSTD
    if form == AS_IT_CAME:
        return len(coded) - 1
    return plain_size(memoryview(coded)[1:]) if form == AS_IT_CAME_ZSTD else None


def plain_size(packed: Buffer) -> int:
    """Return the size that a zstd frame says to have unpacked.

    Raises:
        PayloadError: If it is none, or claims more than any payload has.
    """
    import zstandard

    try:
        size: int = zstandard.get_frame_parameters(packed).content_size
    except zstandard.ZstdError as err:
        raise PayloadError(f"a coded payload is damaged: {err}") from err
    if not 0 <= size <= MAX_PAYLOAD_BYTES:
        raise PayloadError(f"a coded payload is damaged: it claims {size} B")
    return size


def demand_version(coded: Buffer, version: int, codec: str) -> None:
    """Refuse what another version of a codec wrote.

    Raises:
        PayloadError: If the first byte is not ``version``.
    """
    if not len(coded) or coded[0] != version:
        found = coded[0] if len(coded) else "nothing"
        raise PayloadError(
            f"a payload was coded by version {found} of {codec}, this Sensorium reads {version}; use a newer one"
        )


def pack_sections(sections: Sequence[Buffer]) -> bytes:
    """Return sections joined, each behind its length."""
    return b"".join(part for section in sections for part in (_LENGTH.pack(len(section)), section))


def read_sections(data: Buffer) -> Iterator[memoryview]:
    """Yield the sections of :func:`pack_sections`, one by one; what is asked for beyond the last is an error.

    Raises:
        PayloadError: If one is cut off.
    """
    view = memoryview(data)
    at = 0
    while True:
        if at + _LENGTH.size > len(view):
            raise PayloadError(
                f"a coded payload is damaged: it ends at byte {len(view)}, inside its sections"
            )
        (size,) = _LENGTH.unpack_from(view, at)
        at += _LENGTH.size
        if at + size > len(view):
            raise PayloadError(
                f"a coded payload is damaged: a section of {size} B at byte {at} of {len(view)}"
            )
        yield view[at : at + size]
        at += size
