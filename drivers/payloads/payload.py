"""What one encoding is: the row that each module of this folder gives to the table."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sensorium.drivers.frame import StreamInfo

Buffer = bytes | memoryview
Floats = NDArray[np.float64]
Pixels = NDArray[Any]
"""(height, width) grey or (height, width, 3) BGR, of the depth that the payload has."""

Restore = Callable[[Buffer, int], bytes]
"""From a coded payload and its count of samples to the plain one. Raises ``PayloadError``.

It is made once per stream and given the frames in order; one that needs no history may be given any. The coded
payload begins with a version byte and says how it is coded, so that no options are needed. The count is the frame's;
1 for images and clouds.
"""


ReadSamples = Callable[[Buffer, int], Floats]
"""From a payload and its count to (count, columns) physical values, audio in full scales."""


@dataclass(frozen=True, slots=True)
class View:
    """What a reader wants of an image; a decoder may then do less, and need not.

    Attributes:
        is_grey: Only brightness is looked at.
        width_px: The image may come smaller, but not narrower than this; 0 = as large as it is.
    """

    is_grey: bool = False
    width_px: int = 0


AS_STORED = View()


@dataclass(frozen=True, slots=True, eq=False)
class Cloud:
    """The returns of a LiDAR's frame.

    Attributes:
        points: (N, 4) float32 x, y, z (m, sensor frame) and intensity.
        ring: (N,) which laser; None where the encoding does not tell.
        since_ns: (N,) int64 from the frame's first sample to each return; None where it does not tell.
    """

    points: NDArray[np.float32]
    ring: NDArray[np.integer] | None = None
    since_ns: NDArray[np.int64] | None = None


def any_stream(info: StreamInfo) -> None:
    """Accept every declaration."""


def of_its_samples(coded: Buffer) -> int | None:  # noqa: ARG001
    """Return None: how large a payload was follows from the count of its samples."""
    return None


@dataclass(frozen=True, slots=True)
class Payload:
    """One row of the table: all that is known of an encoding's payloads.

    Attributes:
        encoding: Its name, as in ``StreamInfo.encoding``.
        is_compressed: Files store it as it is; further compression would only cost time.
        check_stream: Raises ``ConfigError`` if a declaration lacks what the payload's layout needs.
        sample_bytes: Bytes of one sample, where all have the same size; None where sizes vary.
        granule_bytes: Where sizes vary: every payload is a multiple of this.
        largest_bytes: Bound of one sample's payload where sizes vary but a bound follows from the declaration.
        pixels, cloud, samples: The decoders; None where the payload is no such thing. They raise ``PayloadError``,
            ``WireError``, ``ConfigError`` or what numpy raises at damaged bytes; callers come through ``Decoder``,
            which makes one error of these. Small frames of samples are many: their decoder is made once per stream.
        encode: From pixels, (count, columns) physical values or (N, 4) points to a payload.
        is_chained: Each payload builds upon those before, from a key frame on: a reader passes over none.
        restores: Of a coded encoding: the plain ones that it can give back. It then needs neither sizes nor
            decoders, which are those of the plain one. How it is packed says a ``Codec``.
        restorer: Of a coded encoding: from the stream's declaration, whose ``restores_to`` tells the plain
            encoding, to what restores its payloads.
        plain_bytes: Of a coded encoding: the size of the plain payload as far as the coded one tells by itself,
            without being unpacked; None where it is that of the frame's samples.
    """

    encoding: str
    is_compressed: bool = False
    check_stream: Callable[[StreamInfo], None] = any_stream
    sample_bytes: Callable[[StreamInfo], int] | None = None
    granule_bytes: int = 1
    largest_bytes: Callable[[StreamInfo], int] | None = None
    pixels: Callable[[StreamInfo, Buffer, View], Pixels] | None = None
    cloud: Callable[[StreamInfo, Buffer], Cloud] | None = None
    samples: Callable[[StreamInfo], ReadSamples] | None = None
    encode: Callable[[StreamInfo, NDArray[Any]], bytes] | None = None
    is_chained: bool = False
    restores: frozenset[str] = frozenset()
    restorer: Callable[[StreamInfo], Restore] | None = None
    plain_bytes: Callable[[Buffer], int | None] = of_its_samples
