"""Single images: raw pixels to JPEG or PNG."""

from dataclasses import replace

import cv2
import numpy as np

from sensorium.drivers.frame import Encoding, StreamInfo
from sensorium.drivers.payloads.codec import Codec, Payload

_RAW = frozenset({Encoding.MONO8, Encoding.BGR8})


def _declare(info: StreamInfo) -> StreamInfo:
    height, width = info.shape[:2]
    # Raw size, half as much again for noise that does not compress, and headers.
    return replace(info, shape=(height, width), max_payload_bytes=height * width * 9 // 2 + (1 << 16))


def _jpeg(info: StreamInfo, payload: Payload, level: int) -> bytes | None:
    return _encode(".jpg", info, payload, [cv2.IMWRITE_JPEG_QUALITY, level])


def _png(info: StreamInfo, payload: Payload, _level: int) -> bytes | None:
    return _encode(".png", info, payload, [])


def _encode(kind: str, info: StreamInfo, payload: Payload, settings: list[int]) -> bytes | None:
    if len(payload) != np.prod(info.shape):
        return None
    pixels = np.frombuffer(payload, np.uint8).reshape(info.shape)
    try:
        is_done, packed = cv2.imencode(kind, pixels, settings)
    except cv2.error:  # JPEG ends at 65500 pixels a side
        return None
    return packed.tobytes() if is_done else None


JPEG = Codec("jpeg", _RAW, Encoding.JPEG, False, _declare, _jpeg, level=85, levels=(1, 100))
PNG = Codec("png", _RAW, Encoding.PNG, True, _declare, _png)
