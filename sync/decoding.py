"""What a frame shows: the one door for whoever reads payloads, of our own encodings and of foreign messages.

The functions read single frames. A reader of a whole stream makes a ``StreamDecoder`` and gives it the frames in
order, which saves looking things up and is what codecs with a history (video) need.
"""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from sensorium.drivers.frame import Encoding, Modality, StreamInfo
from sensorium.drivers.payloads.decoder import Decoder, reading
from sensorium.drivers.payloads.images import with_channels
from sensorium.drivers.payloads.payload import AS_STORED, Buffer, Cloud, Floats, Pixels, View
from sensorium.sync.sources.foreign import message_cloud, message_image

Image = NDArray[np.uint8]


class StreamDecoder:
    """Decodes the frames of one stream, given in order.

    Attributes:
        info: The stream as a reader sees it: of a coded stream the plain declaration.
    """

    def __init__(self, info: StreamInfo) -> None:
        """Look the encoding up.

        Raises:
            ConfigError: If the encoding is unknown.
        """
        self._decoder = Decoder(info)
        self.info = self._decoder.info
        self._is_foreign = self.info.encoding == Encoding.MESSAGE

    def skip(self, payload: Buffer, count: int = 1) -> None:
        """Pass over a frame that nobody wants to see: the next one of a video builds upon it."""
        self._decoder.skip(payload, count)

    def image(self, payload: Buffer, view: View = AS_STORED) -> Pixels:
        """Return (H, W) grey or (H, W, 3) BGR pixels, never turned: uint8, or uint16 or float32 where so stored.

        Raises:
            PayloadError: If the stream holds no images that are understood, or the payload is damaged.
        """
        if self._is_foreign:
            return message_image(self.info, payload, view)
        pixels = self._decoder.pixels(payload, view)
        return with_channels(pixels, 1) if view.is_grey else pixels

    def grey(self, payload: Buffer) -> Image:
        """Return (H, W) brightness, 255 = the most that the pixel's type holds; float pixels as in ``picture``.

        Raises:
            PayloadError: As :meth:`image`.
        """
        pixels = self.image(payload, View(is_grey=True))
        if pixels.dtype == np.uint16:
            return np.asarray(pixels >> 8, np.uint8)
        return pixels if pixels.dtype == np.uint8 else spread(pixels)

    def picture(self, payload: Buffer, width_px: int = 0) -> Image:
        """Return an image as eyes want it: grey or BGR, more than 8 bits spread over their range, depth coloured.

        Args:
            width_px: The picture may come smaller, but not narrower than this; 0 = as large as it is.

        Raises:
            PayloadError: As :meth:`image`.
        """
        pixels = self.image(payload, View(width_px=width_px))
        if pixels.dtype == np.uint8:
            return np.ascontiguousarray(pixels)
        grey = spread(pixels)
        return _coloured(grey, pixels > 0) if self.info.modality is Modality.DEPTH else grey

    def cloud(self, payload: Buffer) -> Cloud:
        """Return the returns of a LiDAR's frame.

        Raises:
            PayloadError: If the stream holds no clouds that are understood, or the payload is damaged.
        """
        return message_cloud(self.info, payload) if self._is_foreign else self._decoder.cloud(payload)

    def samples(self, payload: Buffer, count: int) -> Floats | None:
        """Return (count, columns) physical values, audio in full scales; None for streams that hold no numbers.

        Raises:
            PayloadError: If the payload does not hold so many samples.
        """
        return self._decoder.samples(payload, count)

    def columns(self, payload: Buffer, count: int) -> tuple[NDArray[Any], ...]:
        """Return each column's (count,) raw numbers in their order, exact (nanoseconds stay whole).

        Physical values are these times the column's scale.

        Raises:
            PayloadError: If the stream has no columns, or the payload does not hold so many samples.
        """
        return self._decoder.columns(payload, count)


def image(info: StreamInfo, payload: Buffer, view: View = AS_STORED) -> Pixels:
    """Return the pixels of one frame; see ``StreamDecoder.image``."""
    with reading(info):
        return StreamDecoder(info).image(payload, view)


def grey(info: StreamInfo, payload: Buffer) -> Image:
    """Return the brightness of one frame; see ``StreamDecoder.grey``."""
    with reading(info):
        return StreamDecoder(info).grey(payload)


def picture(info: StreamInfo, payload: Buffer, width_px: int = 0) -> Image:
    """Return one frame as eyes want it; see ``StreamDecoder.picture``."""
    with reading(info):
        return StreamDecoder(info).picture(payload, width_px)


def cloud(info: StreamInfo, payload: Buffer) -> Cloud:
    """Return the returns of one frame; see ``StreamDecoder.cloud``."""
    with reading(info):
        return StreamDecoder(info).cloud(payload)


def samples(info: StreamInfo, payload: Buffer, count: int) -> Floats | None:
    """Return the values of one frame; see ``StreamDecoder.samples``."""
    with reading(info):
        return StreamDecoder(info).samples(payload, count)


def spread(values: Pixels) -> Image:
    """Return numbers of any range as 8 bits: the middle 96 % of those above zero fill them."""
    wide = values.astype(np.float32)
    seen = wide[np.isfinite(wide) & (wide > 0)]
    low, high = np.percentile(seen, (2, 98)) if len(seen) else (0.0, 1.0)
    scaled = np.clip((wide - low) * (255 / max(high - low, 1e-9)), 0, 255)
    return np.nan_to_num(scaled).astype(np.uint8)


def _coloured(grey_image: Image, is_measured: NDArray[np.bool_]) -> Image:
    """Return depth from red (near) to blue (far), black where nothing was measured."""
    coloured = np.asarray(cv2.applyColorMap(255 - grey_image, cv2.COLORMAP_TURBO), np.uint8)
    coloured[~is_measured] = 0
    return coloured
