"""Image files beside recordings: read as they are stored, written in one step."""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from sensorium.drivers.payloads.images import decompress
from sensorium.errors import CalibrationError, PayloadError

Image = NDArray[np.uint8]


def read_image(path: Path) -> Image:
    """Return the grey or BGR image in a file, as stored: an EXIF orientation does not turn it.

    Raises:
        CalibrationError: If it cannot be read or is no image.
    """
    try:
        pixels = decompress(path.read_bytes())
    except (OSError, PayloadError) as err:
        raise CalibrationError(f"image {path} cannot be read: {err}") from err
    return np.asarray(pixels // 256 if pixels.dtype == np.uint16 else pixels, np.uint8)


def write_image(image: Image, path: Path) -> None:
    """Replace an image file in one step, so that a viewer never reads half of it.

    Raises:
        CalibrationError: If it cannot be written, or its suffix names no image format.
    """
    try:
        _, data = cv2.imencode(path.suffix, image)
    except cv2.error:
        raise CalibrationError(
            f"picture {path} cannot be written: {path.suffix or 'no suffix'} names no image format; use .png or .jpg"
        ) from None
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(data.tobytes())
        part.replace(path)
    except OSError as err:
        raise CalibrationError(f"picture {path} cannot be written: {err}") from err
