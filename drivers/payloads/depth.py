"""16-bit images, depth above all: exact, with numpy and zstd only.

Depth cameras that compute disparity send few distinct values, ever further apart with the distance; where at most
half of the values between the least and the greatest occur, pixels become their rank among those that occur, and
the list of values goes along. Then each pixel is predicted from the one to its left, the one above and the one in
between (left + above - between, a plane). What remains is folded and packed, two pixels to a byte where most of it
is zero, as of a disparity camera, in byte planes where it is noise.
``decode(encode(pixels)) == pixels`` whatever the pixels are.

What it cannot hold: payloads that are not ``height x width`` 16-bit pixels (kept as they came; the first byte says
so). It does not look at the frame before, so a still scene costs as much as a moving one.

Measured on the RealSense frames of specs/performance.md 4d: docs/codecs.md.
"""

import struct
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sensorium.drivers.frame import Encoding, StreamInfo
from sensorium.drivers.payloads.codec import Codec, Pack
from sensorium.drivers.payloads.envelope import (
    FIRST_VERSION,
    MAX_PAYLOAD_BYTES,
    ZSTD_BLOCK_BYTES,
    demand_version,
    keep,
    kept,
    kept_bytes,
    pack_sections,
    read_sections,
    squeeze,
    unsqueeze,
)
from sensorium.drivers.payloads.payload import Buffer, Payload, Restore
from sensorium.drivers.payloads.planes import Bytes, differences, from_planes, planes, sums, unzigzag, zigzag
from sensorium.errors import PayloadError

VERSION = FIRST_VERSION
_HEAD = struct.Struct("<BBIII")
"""Version, form, height, width, number of listed values (0 = pixels are coded themselves)."""
_PAIRS, _PLANES = range(2)
_ESCAPE = 15
_LARGE_SHARE = 12
"""Codes are paired while less than one in so many does not fit into half a byte: then most are zero, and a coder that
spends at least a bit on a byte spends half of it on each."""

Pixels = NDArray[np.uint16]


def encode(payload: Buffer, height: int, width: int) -> bytes:
    """Return little-endian 16-bit pixels, coded; as they came where they are no such image or it does not pay."""
    if not len(payload) or len(payload) != 2 * height * width:
        return keep(payload)
    image = np.frombuffer(payload, "<u2").reshape(height, width)
    values, ranks = _ranked(image)
    codes = zigzag(_unpredicted(ranks).reshape(-1))
    is_large = codes >= _ESCAPE
    form = _PAIRS if np.count_nonzero(is_large) * _LARGE_SHARE < len(codes) else _PLANES
    sections = [squeeze(*planes(differences(values)))]
    if form == _PAIRS:
        parts = [[_pairs(codes)], [*planes(codes[is_large])]]
    else:
        parts = [[plane] for plane in planes(codes)]
    # zstd's own block size is faster here, and no larger.
    sections += [squeeze(*part, block_bytes=ZSTD_BLOCK_BYTES) for part in parts]
    coded = _HEAD.pack(VERSION, form, height, width, len(values)) + pack_sections(sections)
    return coded if len(coded) < len(payload) else keep(payload)


def _pairs(codes: Pixels) -> Bytes:
    """Return two codes to a byte, 15 for those that are larger; half a pair at the end is filled with zero."""
    small = np.zeros(len(codes) + len(codes) % 2, np.uint8)
    np.minimum(codes, _ESCAPE, out=small[: len(codes)], casting="unsafe")
    both = small.view("<u2")
    pairs: Bytes = (both | both >> np.uint16(4)).astype(np.uint8)
    return pairs


def decode(coded: Buffer) -> bytes:
    """Return the pixels that :func:`encode` was given.

    Raises:
        PayloadError: If the payload is damaged, or was written by another version.
    """
    plain = kept(coded)
    if plain is not None:
        return plain
    demand_version(coded, VERSION, "depth")
    try:
        _, form, height, width, listed = _HEAD.unpack_from(coded)
    except struct.error as err:
        raise PayloadError(f"a coded image is damaged in its head: {err}") from err
    if not 0 < height * width <= MAX_PAYLOAD_BYTES // 2 or listed > 1 << 16 or form not in (_PAIRS, _PLANES):
        raise PayloadError(
            f"a coded image is damaged in its head: {height} x {width} pixels of {listed} values"
        )
    sections = read_sections(memoryview(coded)[_HEAD.size :])
    values = sums(_numbers(next(sections), listed))
    codes = _read_codes(sections, form, height * width)
    image = _predicted(unzigzag(codes).reshape(height, width))
    if not listed:
        return image.tobytes()
    if image.max() >= listed:
        raise PayloadError(f"a coded image is damaged: a pixel has rank {image.max()} of {listed} values")
    return values.take(image).tobytes()


def _read_codes(sections: Iterator[memoryview], form: int, count: int) -> Pixels:
    if form == _PLANES:
        low, high = (unsqueeze(next(sections), count) for _ in range(2))
        return from_planes(_planes(low + high))
    both = np.frombuffer(unsqueeze(next(sections), -(-count // 2)), np.uint8).astype("<u2")
    halves = (both | both << np.uint16(4)) & np.uint16(0x0F0F)
    codes: Pixels = halves.view(np.uint8)[:count].astype("<u2")
    is_large = codes == _ESCAPE
    codes[is_large] = _numbers(next(sections), int(np.count_nonzero(is_large)))
    return codes


def _numbers(packed: Buffer, count: int) -> Pixels:
    return from_planes(_planes(unsqueeze(packed, 2 * count)))


def _ranked(image: Pixels) -> tuple[Pixels, Pixels]:
    """Return the values that occur, ascending, and each pixel's rank; no values and the image where they are many."""
    pixels = image.reshape(-1).astype(np.intp)  # numpy would convert for each of the two look-ups
    occurs = np.zeros(int(image.max()) + 1, np.bool_)
    occurs[pixels] = True
    values = np.flatnonzero(occurs)
    nonzero = values[1:] if values[0] == 0 and len(values) > 1 else values
    if 2 * len(nonzero) > nonzero[-1] - nonzero[0]:
        return np.empty(0, np.uint16), image
    ranks = np.cumsum(occurs, dtype=np.uint16)
    ranks -= np.uint16(1)
    return values.astype("<u2"), ranks.take(pixels).reshape(image.shape)


def _unpredicted(image: Pixels) -> Pixels:
    """Return what is left of each pixel once its left, upper and upper left neighbour predicted it, modulo 2^16."""
    across = differences(image)
    down = np.empty_like(across)
    down[:1] = across[:1]
    np.subtract(across[1:], across[:-1], out=down[1:])
    return down


def _predicted(remainder: Pixels) -> Pixels:
    image: Pixels = sums(np.cumsum(remainder, axis=0, dtype=np.uint16))
    return image


def _planes(joined: bytes) -> Bytes:
    return np.frombuffer(joined, np.uint8).reshape(2, -1)


def _declare(info: StreamInfo) -> StreamInfo:
    return replace(info, max_payload_bytes=info.max_payload_bytes + 1)


def _packer(info: StreamInfo, _level: int) -> Pack:
    height, width = info.shape[:2]
    return lambda payload, _count: encode(payload, height, width)


def _restorer(_info: StreamInfo) -> Restore:
    return lambda coded, _count: decode(coded)


CODECS = (
    Codec(
        "depth",
        frozenset({Encoding.MONO16}),
        Encoding.PACKED_IMAGE16,
        True,
        _declare,
        _packer,
        default_for=frozenset({Encoding.MONO16}),
    ),
)
ROWS = (
    Payload(
        Encoding.PACKED_IMAGE16,
        is_compressed=True,
        restores=frozenset({Encoding.MONO16}),
        restorer=_restorer,
        plain_bytes=kept_bytes,
    ),
)
