"""Images and clouds of an episode, decoded: what cameras, depth cameras and LiDARs showed."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from sensorium.drivers.payloads.payload import Cloud
from sensorium.errors import PayloadError
from sensorium.sync.decoding import StreamDecoder
from sensorium.sync.episode.reader import Episode as EpisodeFiles
from sensorium.sync.episode.recorded import RecordedFrame
from sensorium.sync.reading.frames import Frame, Times, Window, chained_frames, frames_in

Pixels = NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Image:
    """One image.

    Attributes:
        frame: As it was recorded: capture time, uncertainty, number, the compressed bytes.
        problem: Why it does not decode; "" if it does.
    """

    frame: Frame
    problem: str
    _pixels: Pixels | None

    @property
    def time_ns(self) -> int:
        """Capture time, UTC ns."""
        return self.frame.time_ns

    @property
    def uncertainty_ns(self) -> float:
        return self.frame.uncertainty_ns

    @property
    def pixels(self) -> Pixels:
        """(height, width) grey or (height, width, 3) RGB; uint8, or uint16 or float32 where so stored.

        Depth is in the stream's ``units``. Never turned, whatever an EXIF tag says.

        Raises:
            PayloadError: If the payload is damaged, or of a video that begins before what was recorded.
        """
        if self._pixels is None:
            raise PayloadError(self.problem)
        return self._pixels

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Pixels:
        """Return ``pixels``, so that numpy takes it as it is."""
        return as_array(self.pixels, dtype, copy)

    def __repr__(self) -> str:
        size = "damaged" if self._pixels is None else "x".join(map(str, reversed(self._pixels.shape[:2])))
        return f"<Image {self.frame.stream} {self.frame.seq}: {size}>"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Points:
    """The returns of a LiDAR's revolution, in the sensor's own frame.

    Attributes:
        xyz_m: (N, 3) float32.
        intensity: (N,) float32, in the sensor's own scale.
        ring: (N,) which laser; None where the recording does not tell.
        times_ns: (N,) int64 capture time of each return, UTC ns; all that of the frame where it does not tell.
    """

    frame: Frame
    xyz_m: NDArray[np.float32]
    intensity: NDArray[np.float32]
    ring: NDArray[np.integer] | None
    times_ns: Times

    @property
    def time_ns(self) -> int:
        """Capture time of the first sample, UTC ns."""
        return self.frame.time_ns

    @property
    def uncertainty_ns(self) -> float:
        return self.frame.uncertainty_ns

    def __len__(self) -> int:
        return len(self.xyz_m)

    def __repr__(self) -> str:
        return f"<Points {self.frame.stream} {self.frame.seq}: {len(self)} returns>"


class Pictures:
    """Decodes the images of one stream, given in order."""

    def __init__(self, files: EpisodeFiles, name: str) -> None:
        self._info = files.streams[name]
        self._offset_ns = files.timeline.utc_minus_host_ns
        self._decoder = StreamDecoder(self._info)

    def skip(self, recorded: RecordedFrame) -> None:
        """Pass over a frame that nobody wants to see."""
        self._decoder.skip(recorded.frame.payload)

    def image(self, recorded: RecordedFrame) -> Image:
        frame = Frame(recorded, self._info, self._offset_ns)
        try:
            return Image(frame, "", in_rgb(self._decoder.image(recorded.frame.payload)))
        except PayloadError as err:
            return Image(frame, str(err), None)


def images_in(files: EpisodeFiles, name: str, window: Window) -> Iterator[Image]:
    """Yield the images captured in a window, in order of arrival; a damaged one says so when it is looked at."""
    pictures = Pictures(files, name)
    for recorded, is_inside in chained_frames(files, name, window):
        if is_inside:
            yield pictures.image(recorded)
        else:
            pictures.skip(recorded)


def points_in(files: EpisodeFiles, name: str, window: Window) -> Iterator[Points]:
    """Yield the clouds of which something was captured in a window, in order of arrival.

    Raises:
        PayloadError: If one is damaged.
    """
    info = files.streams[name]
    decoder, offset_ns = StreamDecoder(info), files.timeline.utc_minus_host_ns
    for recorded in frames_in(files, [name], window):
        frame = Frame(recorded, info, offset_ns)
        yield points_of(frame, decoder.cloud(frame.payload))


def points_of(frame: Frame, cloud: Cloud) -> Points:
    """Return a decoded cloud with the capture time of each return."""
    since_ns = np.zeros(len(cloud.points), np.int64) if cloud.since_ns is None else cloud.since_ns
    xyz_m, intensity = cloud.points[:, :3], cloud.points[:, 3]
    return Points(frame, xyz_m, intensity, cloud.ring, frame.time_ns + since_ns)


def as_array(values: Pixels, dtype: Any, copy: bool | None) -> Pixels:
    """Return an array as ``__array__`` must: of another type if asked for, copied if asked for.

    Raises:
        ValueError: If it was not to be copied, which another type takes.
    """
    found = values if dtype is None else values.astype(dtype, copy=False)
    if copy is False and found is not values:
        raise ValueError(f"{values.dtype} becomes {found.dtype} only in a copy")
    return found.copy() if copy and found is values else found


def in_rgb(pixels: Pixels) -> Pixels:
    """Return pixels that are blue first as red first; grey ones as they are."""
    return pixels if pixels.ndim == 2 else np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB))
