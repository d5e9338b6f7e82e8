"""LiDAR packets as a range image: exact, byte for byte, and ten times smaller than float32 points.

The pixels of a revolution are pulled apart into words (range, reflectivity, ...), each word is turned into an image
of one row per ring, and neighbours along the azimuth are subtracted. Zero ranges (no return) are left out and kept
as a bit mask; words measured from the return itself are ordered by that mask, so that sky and surfaces do not mix.
A difference that fits is one byte; the others leave 255 there and follow as a list. What is not a pixel (packet
headers, time stamps, measurement ids, encoder counts, status words, checksums) lies in two side sections, by
difference. ``decode(encode(packets)) == packets`` whatever the bytes are.

What it cannot hold: datagrams of different sizes, or of a profile without a row in :data:`LAYOUTS`. Those are kept
as they came and the first byte says so. Lost packets are no obstacle: any number of whole packets is an image.

The idea and its figures: specs/performance.md 4a; the coder is zstd's Huffman stage (see ``envelope``).
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from sensorium.drivers.frame import Encoding, StreamInfo
from sensorium.drivers.payloads.codec import Codec, Pack
from sensorium.drivers.payloads.envelope import (
    FIRST_VERSION,
    demand_version,
    keep,
    kept,
    kept_bytes,
    pack_sections,
    read_sections,
    squeeze,
    unsqueeze,
)
from sensorium.drivers.payloads.ouster_metadata import FOOTER_BYTES, HEADER_BYTES, PROFILES, OusterMetadata
from sensorium.drivers.payloads.payload import Buffer, Payload, Restore
from sensorium.drivers.payloads.planes import (
    Bytes,
    Unsigned,
    differences,
    from_planes,
    planes,
    sums,
    unzigzag,
    zigzag,
)
from sensorium.errors import ConfigError, PayloadError

VERSION = FIRST_VERSION
_MAX_BYTES = 1 << 26
_ESCAPE = 255
_ZEROS, _CODED, _REPEATS = range(3)
_GLANCE = 512
_HEAD = struct.Struct("<BHHHBBBBBB")
_WORD = struct.Struct("<BBBBB")


class Role(IntEnum):
    """How a word of a pixel is ordered before it is coded.

    ``RANGE``: zeros are left out. ``RETURN``: measured from the return, so pixels with a return (of the range before
    it in the pixel) come first. ``AMBIENT``: measured without a return, in the order of the image.
    """

    RANGE = 0
    RETURN = 1
    AMBIENT = 2


@dataclass(frozen=True, slots=True)
class Word:
    """One number of a pixel: ``size_bytes`` little-endian bytes at ``offset``, within one aligned 4-byte word."""

    offset: int
    size_bytes: int
    role: Role

    @property
    def dtype(self) -> str:
        return f"<u{4 if self.size_bytes == 3 else self.size_bytes}"

    def is_inside(self, pixel_bytes: int) -> bool:
        """Return whether the word lies in the pixel and in one aligned 4-byte word of it."""
        end = self.offset + self.size_bytes
        return 0 < self.size_bytes <= 4 and end <= pixel_bytes and self.offset // 4 == (end - 1) // 4


@dataclass(frozen=True, slots=True)
class PacketLayout:
    """How a packet is cut: head, ``columns`` times (column head, ``rings`` pixels, column tail), tail.

    All sizes in bytes; the words cover the pixel without gap or overlap.
    """

    rings: int
    columns: int
    head: int
    column_head: int
    column_tail: int
    tail: int
    pixel: int
    words: tuple[Word, ...]

    @property
    def column(self) -> int:
        return self.column_head + self.rings * self.pixel + self.column_tail

    @property
    def packet(self) -> int:
        return self.head + self.columns * self.column + self.tail


_RANGE24 = (Word(0, 3, Role.RANGE), Word(3, 1, Role.RETURN))
LAYOUTS: Mapping[str, tuple[Word, ...]] = {
    "LEGACY": (
        *_RANGE24,
        Word(4, 2, Role.RETURN),
        Word(6, 2, Role.RETURN),
        Word(8, 2, Role.AMBIENT),
        Word(10, 2, Role.AMBIENT),
    ),
    "RNG19_RFL8_SIG16_NIR16": (
        *_RANGE24,
        Word(4, 1, Role.RETURN),
        Word(5, 1, Role.RETURN),
        Word(6, 2, Role.RETURN),
        Word(8, 2, Role.AMBIENT),
        Word(10, 2, Role.AMBIENT),
    ),
    "RNG15_RFL8_NIR8": (Word(0, 2, Role.RANGE), Word(2, 1, Role.RETURN), Word(3, 1, Role.AMBIENT)),
    "RNG19_RFL8_SIG16_NIR16_DUAL": (
        *_RANGE24,
        Word(4, 3, Role.RANGE),
        Word(7, 1, Role.RETURN),
        Word(8, 2, Role.RETURN),
        Word(10, 2, Role.RETURN),
        Word(12, 2, Role.AMBIENT),
        Word(14, 2, Role.AMBIENT),
    ),
}
"""Words of a pixel by ``udp_profile_lidar``. A range is its lower three bytes, reserved bits included; the fourth
byte (flags, or the reflectivity) is a word of its own."""


def ouster_layout(metadata: OusterMetadata) -> PacketLayout | None:
    """Return how this sensor's packets are cut; None for a profile that has no row in :data:`LAYOUTS`."""
    words = LAYOUTS.get(metadata.profile)
    if words is None:
        return None
    profile = PROFILES[metadata.profile]
    return PacketLayout(
        rings=metadata.rings,
        columns=metadata.columns_per_packet,
        head=HEADER_BYTES if profile.has_header else 0,
        column_head=12 if profile.has_header else 16,
        column_tail=0 if profile.has_header else 4,
        tail=FOOTER_BYTES if profile.has_header else 0,
        pixel=profile.pixel_bytes,
        words=words,
    )


def encode(packets: Buffer, layout: PacketLayout | None) -> bytes:
    """Return packets that lie back to back, coded; as they came where the layout does not fit or does not pay."""
    if layout is None or not _fits(len(packets), layout):
        return keep(packets)
    coded = _encode(np.frombuffer(packets, np.uint8).reshape(-1, layout.packet), layout)
    return coded if len(coded) < len(packets) else keep(packets)


def _fits(size: int, layout: PacketLayout) -> bool:
    return 0 < size <= _MAX_BYTES and size % layout.packet == 0 and size // layout.packet < 1 << 16


def decode(coded: Buffer) -> bytes:
    """Return the packets that :func:`encode` was given, byte for byte; how they are cut lies in the payload.

    Raises:
        PayloadError: If the payload is damaged, or was written by another version.
    """
    plain = kept(coded)
    if plain is not None:
        return plain
    demand_version(coded, VERSION, "range_image")
    count, layout, forms, body = _read_head(memoryview(coded))
    sections = read_sections(body)
    parts = _Parts(np.zeros((count, layout.packet), np.uint8), layout)
    around, beside = parts.sides()
    parts.write_sides(
        *(_from_differences(next(sections), len(rows), rows.shape[1]) for rows in (around, beside))
    )
    words = _WordDecoder(parts.pixel_count, sections)
    for word, (form, of) in zip(layout.words, forms, strict=True):
        parts.add_word(word, words.decode(word, form, of))
    parts.write_words()
    return parts.packets.tobytes()


def plain_bytes(coded: Buffer) -> int:
    """Return the size of the packets that :func:`encode` was given.

    Raises:
        PayloadError: If the payload is damaged.
    """
    size = kept_bytes(coded)
    if size is None:
        count, layout, _, _ = _read_head(memoryview(coded))
        size = count * layout.packet
    return size


def _encode(packets: Bytes, layout: PacketLayout) -> bytes:
    parts = _Parts(packets, layout)
    sections = [squeeze(*_differences_of(rows)) for rows in parts.sides()]
    words = _WordEncoder()
    table = b""
    for word in layout.words:
        form, of, coded = words.encode(word, parts.word(word))
        table += _WORD.pack(word.offset, word.size_bytes, word.role, form, of)
        sections += coded
    head = _HEAD.pack(
        VERSION,
        len(packets),
        layout.rings,
        layout.columns,
        layout.head,
        layout.column_head,
        layout.column_tail,
        layout.tail,
        layout.pixel,
        len(layout.words),
    )
    return head + table + pack_sections(sections)


def _read_head(view: memoryview) -> tuple[int, PacketLayout, list[tuple[int, int]], memoryview]:
    try:
        _, count, rings, columns, *sizes, word_count = _HEAD.unpack_from(view)
        rows = [_WORD.unpack_from(view, _HEAD.size + _WORD.size * index) for index in range(word_count)]
        words = tuple(Word(offset, size, Role(role)) for offset, size, role, _, _ in rows)
    except (struct.error, ValueError) as err:
        raise PayloadError(f"a coded LiDAR frame is damaged in its head: {err}") from err
    head, column_head, column_tail, tail, pixel = sizes
    layout = PacketLayout(rings, columns, head, column_head, column_tail, tail, pixel, words)
    is_possible = (
        all((count, rings, columns, pixel)) and pixel % 4 == 0 and count * layout.packet <= _MAX_BYTES
    )
    if not is_possible or not all(word.is_inside(pixel) for word in words):
        raise PayloadError(f"a coded LiDAR frame is damaged in its head: {count} packets of {layout}")
    return (
        count,
        layout,
        [(form, of) for _, _, _, form, of in rows],
        view[_HEAD.size + _WORD.size * word_count :],
    )


class _Parts:
    """The parts of packets as views into them."""

    def __init__(self, packets: Bytes, layout: PacketLayout) -> None:
        count = len(packets)
        self.packets = packets
        self._head = packets[:, : layout.head]
        self._tail = packets[:, layout.packet - layout.tail :]
        columns = packets[:, layout.head : layout.packet - layout.tail].reshape(count, layout.columns, -1)
        end = layout.column - layout.column_tail
        self._column_head = columns[:, :, : layout.column_head]
        self._column_tail = columns[:, :, end:]
        pixels = columns[:, :, layout.column_head : end].reshape(count, layout.columns, layout.rings, -1)
        # Rings first: along the last two axes, packets and columns, lie neighbours in azimuth.
        self._pixels = pixels.transpose(2, 0, 1, 3)
        self._images: dict[int, NDArray[np.uint32]] = {}

    @property
    def pixel_count(self) -> int:
        rings, packets, columns, _ = self._pixels.shape
        return int(rings * packets * columns)

    def sides(self) -> tuple[Bytes, Bytes]:
        """Return copies of what is no pixel: (packets, bytes) and (columns, bytes)."""
        beside = np.concatenate([self._column_head, self._column_tail], axis=2)
        around = np.concatenate([self._head, self._tail], axis=1)
        return around, beside.reshape(-1, beside.shape[2])

    def write_sides(self, around: Bytes, beside: Bytes) -> None:
        split = self._head.shape[1]
        self._head[:], self._tail[:] = around[:, :split], around[:, split:]
        beside = beside.reshape(*self._column_head.shape[:2], -1)
        split = self._column_head.shape[2]
        self._column_head[:], self._column_tail[:] = beside[..., :split], beside[..., split:]

    def _words32(self, offset: int) -> NDArray[np.uint32]:
        start = offset & ~3
        words: NDArray[np.uint32] = self._pixels[..., start : start + 4].view("<u4")[..., 0]
        return words

    def word(self, word: Word) -> Unsigned:
        """Return the values of a word, ring by ring."""
        start = word.offset & ~3
        if start not in self._images:
            self._images[start] = np.ascontiguousarray(self._words32(start)).reshape(-1)
        values: Unsigned = self._images[start]
        if word.offset != start:
            values = values >> np.uint32(8 * (word.offset - start))
        if word.size_bytes == 3:
            values = values & np.uint32(0xFFFFFF)
        return values.astype(word.dtype, copy=False)

    def add_word(self, word: Word, values: Unsigned | None) -> None:
        """Add the values of a word, ring by ring, to what :meth:`write_words` writes; None are zeros."""
        if values is None:
            return
        shifted = values.astype(np.uint32) << np.uint32(8 * (word.offset & 3))
        start = word.offset & ~3
        if start in self._images:
            self._images[start] |= shifted
        else:
            self._images[start] = shifted

    def write_words(self) -> None:
        for start, image in self._images.items():
            # Ring by ring: numpy's copy of the whole transposed image takes three times as long.
            for target, ring in zip(self._words32(start), image.reshape(self._pixels.shape[:3]), strict=True):
                target[:] = ring


def _differences_of(rows: Bytes) -> Bytes:
    """Return (numbers, bytes of each, rows): every number of a row minus the one in the row before, in planes."""
    item = 4 if rows.shape[1] % 4 == 0 else 1
    numbers = np.ascontiguousarray(rows).view(f"<u{item}").T
    steps = differences(np.ascontiguousarray(numbers))
    return np.ascontiguousarray(steps.view(np.uint8).reshape(*steps.shape, item).transpose(0, 2, 1))


def _from_differences(packed: Buffer, rows: int, width: int) -> Bytes:
    item = 4 if width % 4 == 0 else 1
    split = np.frombuffer(unsqueeze(packed, rows * width), np.uint8).reshape(width // item, item, rows)
    steps = np.ascontiguousarray(split.transpose(0, 2, 1)).reshape(-1).view(f"<u{item}")
    numbers = sums(steps.reshape(width // item, rows))
    return np.ascontiguousarray(numbers.T).view(np.uint8).reshape(rows, width)


class _WordEncoder:
    """Codes the words of a pixel in turn; each may follow the mask of the range before it, or repeat one."""

    def __init__(self) -> None:
        self._order: NDArray[np.intp] | None = None
        self._done: list[Unsigned] = []

    def encode(self, word: Word, values: Unsigned) -> tuple[int, int, list[bytes]]:
        """Return the form of a word, the index of the word that it repeats, and its sections."""
        repeated = self._repeated(values)
        self._done.append(values)
        if word.role is Role.RANGE:
            has_return = values != 0
            valid = np.flatnonzero(has_return)
            self._order = np.concatenate([valid, np.flatnonzero(~has_return)])
        if not values.any():
            return _ZEROS, 0, []
        if repeated is not None:
            return _REPEATS, repeated, []
        if word.role is Role.RANGE:
            return _CODED, 0, [squeeze(np.packbits(has_return)), *_numbers(values.take(valid))]
        if word.role is Role.RETURN and self._order is not None:
            values = values.take(self._order)
        return _CODED, 0, _numbers(values)

    def _repeated(self, values: Unsigned) -> int | None:
        for index, other in enumerate(self._done):
            # A look at a few pixels spares the whole comparison nearly always.
            if (other[:_GLANCE] == values[:_GLANCE]).all() and (other == values).all():
                return index
        return None


def _numbers(values: Unsigned) -> list[bytes]:
    """Return (n,) values by difference: low bytes, then what did not fit into them."""
    steps = differences(values)
    if values.itemsize == 1:
        return [squeeze(steps)]
    codes = zigzag(steps)
    large = codes[codes >= _ESCAPE]
    return [squeeze(np.minimum(codes, _ESCAPE).astype(np.uint8)), squeeze(*planes(large))]


def _read_numbers(sections: Iterator[memoryview], count: int, dtype: str) -> Unsigned:
    low = np.frombuffer(unsqueeze(next(sections), count), np.uint8)
    if dtype == "<u1":
        return sums(low)
    codes = low.astype(dtype)
    is_large = low == _ESCAPE
    large, item = int(np.count_nonzero(is_large)), codes.itemsize
    split = np.frombuffer(unsqueeze(next(sections), large * item), np.uint8).reshape(item, large)
    codes[is_large] = from_planes(split)
    return sums(unzigzag(codes))


class _WordDecoder:
    """The inverse of :class:`_WordEncoder`."""

    def __init__(self, pixels: int, sections: Iterator[memoryview]) -> None:
        self._pixels = pixels
        self._sections = sections
        self._order: NDArray[np.intp] | None = None
        self._done: list[Unsigned | None] = []

    def decode(self, word: Word, form: int, of: int) -> Unsigned | None:
        """Return the values of a word, ring by ring; None if all are zero."""
        values = self._values(word, form, of)
        self._done.append(values)
        if word.role is Role.RANGE:
            has_return = np.zeros(self._pixels, np.bool_) if values is None else values != 0
            self._order = np.concatenate([np.flatnonzero(has_return), np.flatnonzero(~has_return)])
        return values

    def _values(self, word: Word, form: int, of: int) -> Unsigned | None:
        if form == _ZEROS:
            return None
        if form == _REPEATS and of < len(self._done):
            return self._done[of]
        if form != _CODED:
            raise PayloadError(f"a coded LiDAR frame is damaged: form {form} of a word")
        if word.role is Role.RANGE:
            return self._range(word)
        values = _read_numbers(self._sections, self._pixels, word.dtype)
        if word.role is Role.AMBIENT or self._order is None:
            return values
        image = np.empty_like(values)
        image[self._order] = values
        return image

    def _range(self, word: Word) -> Unsigned:
        mask = np.frombuffer(unsqueeze(next(self._sections), -(-self._pixels // 8)), np.uint8)
        valid = np.flatnonzero(np.unpackbits(mask, count=self._pixels))
        image: Unsigned = np.zeros(self._pixels, word.dtype)
        image[valid] = _read_numbers(self._sections, len(valid), word.dtype)
        return image


def _declare(info: StreamInfo) -> StreamInfo:
    return replace(info, max_payload_bytes=info.max_payload_bytes + 1)


def _packer(info: StreamInfo, _level: int) -> Pack:
    try:
        layout = ouster_layout(OusterMetadata.from_json(info.details.get("metadata", "")))
    except ConfigError:  # a sensor that is not known here is recorded all the same
        layout = None
    return lambda payload, _count: encode(payload, layout)


def _restorer(_info: StreamInfo) -> Restore:
    return lambda coded, _count: decode(coded)


CODECS = (
    Codec(
        "range_image",
        frozenset({Encoding.OUSTER}),
        Encoding.RANGE_IMAGE,
        True,
        _declare,
        _packer,
        default_for=frozenset({Encoding.OUSTER}),
    ),
)
ROWS = (
    Payload(
        Encoding.RANGE_IMAGE,
        is_compressed=True,
        restores=frozenset({Encoding.OUSTER}),
        restorer=_restorer,
        plain_bytes=plain_bytes,
    ),
)
