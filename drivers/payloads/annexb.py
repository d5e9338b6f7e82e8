"""What must be known of compressed video without decoding it: key frames, parameter sets, gaps.

Sources: ITU-T H.264 (7.3, 7.4, Annex B), ITU-T H.265 (7.4.2.2), AV1 bitstream specification (5.3).
"""

from collections.abc import Iterator

from sensorium.drivers.frame import Encoding
from sensorium.drivers.payloads.payload import Buffer
from sensorium.errors import PayloadError

_START = b"\x00\x00\x01"
_H264_SLICE, _H264_IDR, _H264_SPS, _H264_PPS = 1, 5, 7, 8
_H265_FIRST_IRAP, _H265_LAST_IRAP = 16, 23
_H265_PARAMETERS = frozenset({32, 33, 34})
"""VPS, SPS, PPS."""
_AV1_SEQUENCE_HEADER = 1
_CHROMA_PROFILES = frozenset({100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135})
"""Profiles whose SPS says the chroma format (7.3.2.1.1)."""

_HEADER_BYTES = 1024
"""A parameter set with every scaling matrix is shorter."""


def nal_units(payload: Buffer) -> Iterator[bytes]:
    """Yield the NAL units of an Annex B byte stream, without their start codes."""
    data = bytes(payload)
    start = data.find(_START)
    while start >= 0:
        begin = start + len(_START)
        start = data.find(_START, begin)
        unit = data[begin:start] if start >= 0 else data[begin:]
        yield unit.rstrip(b"\0") if start >= 0 else unit


def is_annexb(payload: Buffer) -> bool:
    """Return whether a payload begins with a start code."""
    head = bytes(payload[:4])
    return head.startswith(_START) or head == b"\0" + _START


def is_key_frame(encoding: str, payload: Buffer) -> bool:
    """Return whether a decoder can begin at this access unit (IDR, IRAP; AV1: it brings a sequence header)."""
    if encoding == Encoding.H264:
        return any(_h264_type(unit) == _H264_IDR for unit in nal_units(payload))
    if encoding == Encoding.H265:
        return any(_H265_FIRST_IRAP <= _h265_type(unit) <= _H265_LAST_IRAP for unit in nal_units(payload))
    return any(kind == _AV1_SEQUENCE_HEADER for kind in _obu_types(bytes(payload)))


def parameter_sets(encoding: str, payload: Buffer) -> dict[int, bytes]:
    """Return the parameter sets of an access unit by their kind; {} for AV1, whose key frames always have them."""
    if encoding == Encoding.H264:
        kinds = {_h264_type(unit): unit for unit in nal_units(payload)}
        return {kind: unit for kind, unit in kinds.items() if kind in (_H264_SPS, _H264_PPS)}
    if encoding == Encoding.H265:
        kinds = {_h265_type(unit): unit for unit in nal_units(payload)}
        return {kind: unit for kind, unit in kinds.items() if kind in _H265_PARAMETERS}
    return {}


def _h264_type(unit: bytes) -> int:
    return unit[0] & 0x1F if unit else 0


def _h265_type(unit: bytes) -> int:
    return unit[0] >> 1 & 0x3F if unit else 0


def _obu_types(data: bytes) -> Iterator[int]:
    at = 0
    while at < len(data):
        head = data[at]
        yield head >> 3 & 0xF
        at += 2 if head & 4 else 1
        if not head & 2:
            return  # without a size it is the last one
        size, shift = 0, 0
        while at < len(data) and shift < 64:
            byte = data[at]
            size |= (byte & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if byte < 0x80:
                break
        at += size


class FrameNumbers:
    """Follows ``frame_num`` of H.264 pictures: FFmpeg decodes over a missing picture without a word."""

    def __init__(self) -> None:
        self._bits = 0
        self._last: int | None = None

    def follow(self, payload: Buffer) -> bool:
        """Return whether the picture before this one, if it needs one, was given.

        Raises:
            PayloadError: If a parameter set or slice header is cut off.
        """
        for unit in nal_units(payload):
            kind = _h264_type(unit)
            if kind == _H264_SPS:
                self._bits = _frame_number_bits(unit)
            elif kind in (_H264_SLICE, _H264_IDR):
                return self._follow(unit, kind)
        return self._last is not None

    def _follow(self, unit: bytes, kind: int) -> bool:
        if not self._bits:
            return False
        is_reference = bool(unit[0] & 0x60)
        bits = _Bits(unit[1:])
        for _ in range(3):  # first_mb_in_slice, slice_type, pic_parameter_set_id
            bits.exp_golomb()
        number = bits.take(self._bits)
        if kind == _H264_IDR:
            self._last = number
            return True
        if self._last is None:
            return False
        is_next = number in (self._last, (self._last + 1) % (1 << self._bits))
        if is_reference:
            self._last = number if is_next else None
        return is_next


def _frame_number_bits(unit: bytes) -> int:
    """Return the length of ``frame_num`` by a sequence parameter set (7.3.2.1.1)."""
    bits = _Bits(unit[1:])
    profile = bits.take(8)
    bits.take(16)
    bits.exp_golomb()
    if profile in _CHROMA_PROFILES:
        chroma = bits.exp_golomb()
        if chroma == 3:
            bits.take(1)
        bits.exp_golomb()
        bits.exp_golomb()
        bits.take(1)
        if bits.take(1):
            _skip_scaling_lists(bits, 12 if chroma == 3 else 8)
    return bits.exp_golomb() + 4


def _skip_scaling_lists(bits: "_Bits", lists: int) -> None:
    """Read over the scaling matrices (7.3.2.1.1.1)."""
    for index in range(lists):
        if not bits.take(1):
            continue
        last = following = 8
        for _ in range(16 if index < 6 else 64):
            if following:
                code = bits.exp_golomb()
                following = (last + (code + 1 >> 1) * (1 if code & 1 else -1)) % 256
            last = following or last


class _Bits:
    """Reads bits of a NAL unit's payload, emulation prevention removed; only its first bytes."""

    def __init__(self, data: bytes) -> None:
        plain = data[:_HEADER_BYTES].replace(b"\0\0\3", b"\0\0")
        self._number = int.from_bytes(plain, "big")
        self._left = 8 * len(plain)

    def take(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise PayloadError("an H.264 header is cut off")
        return self._number >> self._left & (1 << count) - 1

    def exp_golomb(self) -> int:
        zeros = 0
        while not self.take(1):
            zeros += 1
        return (1 << zeros) - 1 + self.take(zeros)
