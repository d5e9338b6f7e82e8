"""Images for the tests of payloads."""

import cv2
import numpy as np
from numpy.typing import NDArray


def textured(height: int, width: int, channels: int = 3) -> NDArray[np.uint8]:
    """Smooth colours, so that JPEG keeps them within a few steps."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [(x * 3 + y) % 200, (x + y * 2) % 180, 255 - x % 128]
    image = np.stack(planes[:channels], axis=-1).astype(np.uint8)
    return np.asarray(cv2.GaussianBlur(image, (0, 0), 2.0), np.uint8)


def turned_by_exif(jpeg: bytes, orientation: int) -> bytes:
    """Return the JPEG with an EXIF segment that asks viewers to turn it."""
    entry = b"\x01\x12\x00\x03\x00\x00\x00\x01" + orientation.to_bytes(2, "big") + b"\0\0"
    body = b"Exif\0\0MM\0*\0\0\0\x08\0\x01" + entry + b"\0\0\0\0"
    return jpeg[:2] + b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body + jpeg[2:]
