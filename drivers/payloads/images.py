"""Images: JPEG and PNG untouched, and raw pixels.

Pixels are as they are stored: an EXIF orientation never turns them, because intrinsics and zones belong to the
sensor's own rows and columns. OpenCV is imported where an image is decoded: who only looks up a row needs none.
"""

import re
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np

from sensorium.drivers.frame import Encoding, StreamInfo
from sensorium.drivers.payloads.codec import Codec, Pack
from sensorium.drivers.payloads.payload import AS_STORED, Buffer, Payload, Pixels, View
from sensorium.errors import ConfigError, PayloadError

DEFAULT_JPEG_QUALITY = 85
_MARKER_AFTER_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_HEADER_BYTES = 1 << 16
_RAW = {
    Encoding.MONO8: (1, "u1"),
    Encoding.BGR8: (3, "u1"),
    Encoding.RGB8: (3, "u1"),
    Encoding.MONO16: (1, "<u2"),
}
"""Channels and type of raw pixels."""
_CONVERTED = ("u1", "u2", "f4")  # what OpenCV's colour conversions take
_CREDIBLE_PX = 1 << 24
_CREDIBLE_PX_PER_BYTE = 4000
"""Of an image that is larger: a flat PNG has 3000 pixels in a byte, no picture of the world comes near."""


@dataclass(frozen=True, slots=True)
class JpegExtent:
    """Where a JPEG image ends, and its size in pixels."""

    length_bytes: int
    width_px: int
    height_px: int


def jpeg_extent(data: bytes | bytearray | memoryview) -> JpegExtent | None:
    """Return the extent of the JPEG image that ``data`` begins with; None if it is not a whole one.

    Walks the marker segments (ITU-T T.81, annex B). Inside entropy-coded data 0xFF is always followed by a
    stuffed zero or a restart marker, so the first other marker there is real.
    """
    if len(data) < 4 or bytes(data[:2]) != b"\xff\xd8":
        return None
    at, size = 2, (0, 0)
    while at + 4 <= len(data) or bytes(data[at : at + 2]) == b"\xff\xd9":
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if marker == 0xD9:
            return JpegExtent(at + 2, size[0], size[1]) if size[0] and size[1] else None
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if length < 2:
            return None
        if marker in _START_OF_FRAME and at + 9 <= len(data):
            size = (
                int.from_bytes(data[at + 7 : at + 9], "big"),
                int.from_bytes(data[at + 5 : at + 7], "big"),
            )
        at += 2 + length
        if marker == 0xDA:
            found = _MARKER_AFTER_SCAN.search(data, at)
            if found is None:
                return None
            at = found.start()
    return None


# -- compressed


def decompress(data: Buffer, view: View = AS_STORED, width_px: int = 0) -> Pixels:
    """Return the pixels of a JPEG, PNG or whatever else OpenCV reads, as stored: never turned by their EXIF.

    Args:
        width_px: How wide the image is, where it is known: only then a JPEG is decoded reduced.

    Raises:
        PayloadError: If the bytes are no whole image.
    """
    import cv2

    claimed_px = _claimed_px(data)
    if claimed_px > max(_CREDIBLE_PX, _CREDIBLE_PX_PER_BYTE * len(data)):
        raise PayloadError(f"its {len(data)} bytes claim {claimed_px} pixels, more than any picture has")
    is_jpeg = bytes(data[:2]) == b"\xff\xd8"
    reduction = next((by for by in (8, 4, 2) if view.width_px and width_px >= by * view.width_px), 1)
    if not is_jpeg or (reduction == 1 and not view.is_grey):
        flags = cv2.IMREAD_UNCHANGED  # ignores the orientation, too
    else:
        colour, grey = _REDUCED[reduction]
        flags = getattr(cv2, grey if view.is_grey else colour) | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        found = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if len(data) else None
    except cv2.error as err:
        raise PayloadError(f"its {len(data)} bytes do not decode as an image ({err})") from err
    if found is None:
        raise PayloadError(f"its {len(data)} bytes do not decode as an image")
    return as_grey_or_bgr(np.asarray(found))


def _claimed_px(data: Buffer) -> int:
    """Return the pixels that an image says it has; 0 where it does not say so at its beginning."""
    head = bytes(data[:_HEADER_BYTES])
    if head.startswith(b"\x89PNG"):
        return int.from_bytes(head[16:20], "big") * int.from_bytes(head[20:24], "big")
    if head.startswith(b"BM"):
        width, height = (int.from_bytes(head[at : at + 4], "little", signed=True) for at in (18, 22))
        return abs(width * height)
    if head[:4] in (b"II*\0", b"MM\0*"):
        return _tiff_px(data, "little" if head[:1] == b"I" else "big")
    at = 2
    while head[:2] == b"\xff\xd8" and at + 9 <= len(head) and head[at] == 0xFF:
        if head[at + 1] in _START_OF_FRAME:
            return int.from_bytes(head[at + 5 : at + 7], "big") * int.from_bytes(head[at + 7 : at + 9], "big")
        at += 1 if head[at + 1] == 0xFF else 2 + max(2, int.from_bytes(head[at + 2 : at + 4], "big"))
    return 0


def _tiff_px(data: Buffer, order: Literal["little", "big"]) -> int:
    """Return the pixels of a TIFF's first directory (TIFF 6.0, section 2: tags 256 and 257)."""

    def number(at: int, size: int) -> int:
        return int.from_bytes(data[at : at + size], order)

    at, sides = number(4, 4), {256: 1, 257: 1}
    for entry in range(at + 2, at + 2 + 12 * min(number(at, 2), 1000), 12):
        if number(entry, 2) in sides:
            sides[number(entry, 2)] = number(entry + 8, 2 if number(entry + 2, 2) == 3 else 4)
    return sides[256] * sides[257]


_REDUCED = {
    1: ("IMREAD_COLOR", "IMREAD_GRAYSCALE"),
    2: ("IMREAD_REDUCED_COLOR_2", "IMREAD_REDUCED_GRAYSCALE_2"),
    4: ("IMREAD_REDUCED_COLOR_4", "IMREAD_REDUCED_GRAYSCALE_4"),
    8: ("IMREAD_REDUCED_COLOR_8", "IMREAD_REDUCED_GRAYSCALE_8"),
}


def as_grey_or_bgr(pixels: Pixels) -> Pixels:
    """Return (H, W) for one channel and (H, W, 3) for BGR with alpha."""
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        return pixels[:, :, 0]
    return pixels[:, :, :3] if pixels.ndim == 3 else pixels


def compress(encoding: str, pixels: Pixels, jpeg_quality: int = DEFAULT_JPEG_QUALITY) -> bytes:
    """Return grey or BGR pixels as JPEG (8 bit) or PNG (8 or 16 bit).

    Raises:
        PayloadError: If the encoding cannot hold such pixels.
    """
    import cv2

    options = [cv2.IMWRITE_JPEG_QUALITY, jpeg_quality] if encoding == Encoding.JPEG else []
    if encoding == Encoding.JPEG and pixels.dtype != np.uint8:
        raise PayloadError(f"JPEG holds 8 bit pixels, not {pixels.dtype}")
    try:
        done, data = cv2.imencode(".jpg" if encoding == Encoding.JPEG else ".png", pixels, options)
    except cv2.error as err:
        raise PayloadError(f"pixels {pixels.shape} of {pixels.dtype} are no {encoding} ({err})") from err
    if not done:
        raise PayloadError(f"pixels {pixels.shape} of {pixels.dtype} are no {encoding}")
    return data.tobytes()


def _decode_compressed(info: StreamInfo, payload: Buffer, view: View) -> Pixels:
    try:
        return decompress(payload, view, info.shape[1] if len(info.shape) > 1 else 0)
    except PayloadError as err:
        raise PayloadError(f"an image of {info.name} does not decode: {err}") from err


def _largest_compressed(info: StreamInfo) -> int:
    """Raw size as three channels, half as much again for noise that does not compress, and headers."""
    if len(info.shape) < 2:
        return info.max_payload_bytes
    return info.shape[0] * info.shape[1] * 9 // 2 + _HEADER_BYTES


# -- raw


def _check_raw(info: StreamInfo) -> None:
    channels, _ = _RAW[info.plain_encoding]
    if len(info.shape) < 2 or info.shape[2:] not in ((), (channels,)) or min(info.shape) < 1:
        raise ConfigError(
            f"stream {info.name}: {info.plain_encoding} needs shape (height, width), found {info.shape}"
        )


def _raw_bytes(info: StreamInfo) -> int:
    channels, dtype = _RAW[info.plain_encoding]
    return info.shape[0] * info.shape[1] * channels * np.dtype(dtype).itemsize


def _decode_raw(info: StreamInfo, payload: Buffer, view: View) -> Pixels:  # noqa: ARG001
    channels, dtype = _RAW[info.plain_encoding]
    height, width = info.shape[:2]
    pixels: Pixels = np.frombuffer(payload, dtype).reshape(height, width, channels)
    if info.plain_encoding == Encoding.RGB8:
        pixels = np.ascontiguousarray(pixels[:, :, ::-1])
    return as_grey_or_bgr(pixels)


def _encode_raw(info: StreamInfo, pixels: Pixels) -> bytes:
    channels, dtype = _RAW[info.plain_encoding]
    if pixels.size * pixels.itemsize != _raw_bytes(info) or pixels.dtype != np.dtype(dtype):
        raise PayloadError(
            f"{info.name} takes {channels} channels of {dtype} in shape {info.shape}, "
            f"found {pixels.dtype} {pixels.shape}"
        )
    return (pixels[:, :, ::-1] if info.plain_encoding == Encoding.RGB8 else pixels).tobytes()


def with_channels(pixels: Pixels, channels: int) -> Pixels:
    """Return grey or BGR pixels with 1 or 3 channels."""
    import cv2

    if channels == 1 and pixels.ndim == 3:
        known = pixels if pixels.dtype.str[1:] in _CONVERTED else pixels.astype(np.float32)
        return np.asarray(cv2.cvtColor(known, cv2.COLOR_BGR2GRAY))
    if channels == 3 and pixels.ndim == 2:
        return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_GRAY2BGR))
    return pixels


def _declare_compressed(info: StreamInfo) -> StreamInfo:
    return replace(info, shape=info.shape[:2], max_payload_bytes=_largest_compressed(info))


def _packer(encoding: str, info: StreamInfo, jpeg_quality: int) -> Pack:
    def pack(payload: Buffer, _count: int) -> bytes | None:
        if len(payload) != _raw_bytes(info):
            return None
        try:
            return compress(encoding, _decode_raw(info, payload, AS_STORED), jpeg_quality)
        except PayloadError:  # JPEG ends at 65500 pixels a side
            return None

    return pack


JPEG = Codec(
    "jpeg",
    frozenset(encoding for encoding, (_, dtype) in _RAW.items() if dtype == "u1"),
    Encoding.JPEG,
    False,
    _declare_compressed,
    partial(_packer, Encoding.JPEG),
    level=85,
    levels=(1, 100),
)
PNG = Codec("png", frozenset(_RAW), Encoding.PNG, True, _declare_compressed, partial(_packer, Encoding.PNG))

CODECS = (JPEG, PNG)
ROWS = (
    *(
        Payload(
            encoding,
            is_compressed=True,
            largest_bytes=_largest_compressed,
            pixels=_decode_compressed,
            encode=lambda info, pixels: compress(info.plain_encoding, pixels),
        )
        for encoding in (Encoding.JPEG, Encoding.PNG)
    ),
    *(
        Payload(
            encoding,
            check_stream=_check_raw,
            sample_bytes=_raw_bytes,
            pixels=_decode_raw,
            encode=_encode_raw,
        )
        for encoding in _RAW
    ),
)
