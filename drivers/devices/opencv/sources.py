"""Where pictures come from: a V4L2 device, a video file, MJPEG over HTTP, RTSP."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from sensorium.drivers.devices.opencv.config import OpenCvConfig
from sensorium.drivers.frame import ClockKind, DeviceClock
from sensorium.drivers.links.mjpeg import MjpegStream
from sensorium.errors import DeviceError, EndOfStreamError, SensoriumError
from sensorium.masking import masked_address, split_login, with_login
from sensorium.timebase import SECOND_NS, Clock, read_bases

_V4L2_MANUAL_EXPOSURE = 1.0  # V4L2_EXPOSURE_MANUAL
_EXPOSURE_STEP_US = 100.0  # unit of V4L2_CID_EXPOSURE_ABSOLUTE
_RATE_TOLERANCE = 0.1

READ_ERRORS = (cv2.error, ValueError, OSError)
"""What OpenCV raises while it reads or converts."""


class Capture(Protocol):
    """The part of ``cv2.VideoCapture`` that is used."""

    def get(self, prop: int) -> float: ...

    def set(self, prop: int, value: float) -> bool: ...

    def read(self) -> tuple[bool, Any]: ...

    def release(self) -> None: ...


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """One image as it came: JPEG bytes, or BGR or grey pixels; ``tick`` in the source's clock."""

    data: bytes | NDArray[np.uint8]
    tick: int | None
    arrival_ns: int


class PictureSource(ABC):
    """Where images come from; opened by its constructor, read and closed by one thread.

    Attributes:
        clock: How the ticks of its pictures count.
        stamp_of: What instant a tick means.
        is_live: Cannot wait: images that nobody takes are dropped, and silence is a fault.
        rate_hz: The source's own statement; 0 where it makes none.
    """

    clock: DeviceClock = DeviceClock()
    stamp_of: str = "arrival"
    is_live: bool = True
    rate_hz: float = 0.0

    @abstractmethod
    def next(self) -> Picture:
        """Wait for the next image.

        Raises:
            DeviceError: If the source is gone; ``EndOfStreamError`` at the end of a file.
        """

    def interrupt(self) -> None:
        """Wake a waiting :meth:`next` if the source can; called from another thread."""
        return

    @abstractmethod
    def close(self) -> None:
        """Release the source."""


class V4l2Source(PictureSource):
    """A camera on this machine; the kernel stamps a buffer with CLOCK_MONOTONIC at its first byte."""

    stamp_of = "packet"

    def __init__(self, config: OpenCvConfig, clock: Clock, capture: Capture) -> None:
        self._label = f"camera {config.device}"
        self._clock = clock
        self._capture = capture
        self._is_jpeg = config.pixel_format in ("MJPG", "JPEG")
        self._first: Picture | None = None
        try:
            self._apply(config)
            first = self._grab()
        except SensoriumError:
            capture.release()
            raise
        # Some drivers stamp with another clock or not at all; then the arrival is all there is.
        if first.tick is not None and 0 <= first.arrival_ns - first.tick <= SECOND_NS:
            self.clock = DeviceClock(ClockKind.HOST)
        else:
            self.stamp_of = "arrival"
        self._first = first

    def _apply(self, config: OpenCvConfig) -> None:
        asked_rate_hz = config.rate_hz or 30.0
        self._capture.set(cv2.CAP_PROP_FOURCC, _fourcc(config.pixel_format))
        if config.size is not None:
            self._capture.set(cv2.CAP_PROP_FRAME_WIDTH, config.size[0])
            self._capture.set(cv2.CAP_PROP_FRAME_HEIGHT, config.size[1])
        self._capture.set(cv2.CAP_PROP_FPS, asked_rate_hz)
        if self._is_jpeg:
            self._capture.set(cv2.CAP_PROP_CONVERT_RGB, 0)
        if config.exposure_us is not None:
            self._capture.set(cv2.CAP_PROP_AUTO_EXPOSURE, _V4L2_MANUAL_EXPOSURE)
            self._capture.set(cv2.CAP_PROP_EXPOSURE, round(config.exposure_us / _EXPOSURE_STEP_US))
        if config.gain is not None:
            self._capture.set(cv2.CAP_PROP_GAIN, config.gain)

        found = _fourcc_text(self._capture.get(cv2.CAP_PROP_FOURCC))
        if found != config.pixel_format:
            raise DeviceError(
                f"{self._label}: asked for pixel_format {config.pixel_format}, it set {found}; "
                "list what it can do with `v4l2-ctl --list-formats-ext`"
            )
        self.rate_hz = self._capture.get(cv2.CAP_PROP_FPS)
        require_rate(self._label, asked_rate_hz, self.rate_hz)
        if config.exposure_us is not None:
            found_us = self._capture.get(cv2.CAP_PROP_EXPOSURE) * _EXPOSURE_STEP_US
            if abs(found_us - config.exposure_us) > _EXPOSURE_STEP_US:
                raise DeviceError(
                    f"{self._label}: asked for exposure_us {config.exposure_us:g}, it set {found_us:g}"
                )
        if config.gain is not None and not math.isclose(
            found_gain := self._capture.get(cv2.CAP_PROP_GAIN), config.gain, abs_tol=0.5
        ):
            raise DeviceError(f"{self._label}: asked for gain {config.gain:g}, it set {found_gain:g}")

    def next(self) -> Picture:
        if self._first is not None:
            first, self._first = self._first, None
            return first
        return self._grab()

    def _grab(self) -> Picture:
        pixels = _read(self._capture, self._label)
        arrival_ns = self._clock.now_ns()
        if pixels is None:
            raise DeviceError(f"{self._label}: stopped delivering images; check its cable and USB bandwidth")
        monotonic_ns = round(self._capture.get(cv2.CAP_PROP_POS_MSEC) * 1e6)
        tick = None
        if monotonic_ns > 0:
            bases = read_bases(tries=1)
            tick = monotonic_ns + bases.raw_ns - bases.monotonic_ns
        return Picture(pixels.tobytes() if self._is_jpeg else pixels, tick, arrival_ns)

    def close(self) -> None:
        self._capture.release()


class FileSource(PictureSource):
    """A video file at its own pace; ticks are media time in ns, continued from one loop to the next."""

    clock = DeviceClock(ClockKind.FREE)
    stamp_of = "sample"
    is_live = False

    def __init__(self, config: OpenCvConfig, clock: Clock) -> None:
        self._path = str(config.device)
        self._label = f"video file {masked_address(self._path)}"
        self._clock = clock
        self._loop = config.loop
        self._capture, self._is_jpeg = self._open(config.encoding == "jpeg")
        self.rate_hz = self._capture.get(cv2.CAP_PROP_FPS)
        if not 0 < self.rate_hz < 1e6:
            if config.rate_hz is None:
                self.close()
                raise DeviceError(f"{self._label}: states no frame rate; give rate_hz")
            self.rate_hz = config.rate_hz
        self._period_ns = round(SECOND_NS / self.rate_hz)
        self._start_ns: int | None = None
        self._lap_ns = 0
        self._last_ns = -1

    def _open(self, want_jpeg: bool) -> tuple[Capture, bool]:
        if want_jpeg:
            capture = _open_capture(self._label, self._path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_FORMAT, -1])
            # With FORMAT -1 the packets come as they lie in the file; only MJPEG's are images by themselves.
            if _fourcc_text(capture.get(cv2.CAP_PROP_FOURCC)).upper() == "MJPG":
                return capture, True
            capture.release()
        return _open_capture(self._label, self._path, cv2.CAP_FFMPEG, []), False

    def next(self) -> Picture:
        pixels = _read(self._capture, self._label)
        if pixels is None:
            if not self._loop or self._last_ns < 0:
                raise EndOfStreamError(f"{self._label}: end reached")
            self._capture.release()
            self._capture, self._is_jpeg = self._open(self._is_jpeg)
            self._lap_ns = self._last_ns + self._period_ns
            pixels = _read(self._capture, self._label)
            if pixels is None:
                raise DeviceError(f"{self._label}: could not be read a second time")
        media_ns = self._lap_ns + round(self._capture.get(cv2.CAP_PROP_POS_MSEC) * 1e6)
        if media_ns <= self._last_ns:  # containers without time stamps
            media_ns = self._last_ns + self._period_ns
        self._last_ns = media_ns
        if self._start_ns is None:
            self._start_ns = self._clock.now_ns() - media_ns
        self._clock.sleep_until(self._start_ns + media_ns)
        return Picture(pixels.tobytes() if self._is_jpeg else pixels, media_ns, self._clock.now_ns())

    def close(self) -> None:
        self._capture.release()


class HttpSource(PictureSource):
    """An MJPEG stream. Senders that add X-Timestamp (mjpg-streamer, ustreamer) give a device clock in us."""

    def __init__(self, config: OpenCvConfig, clock: Clock) -> None:
        self._clock = clock
        self._stream = MjpegStream(str(config.device), config.stall_s)
        self._parts = self._stream.parts()
        try:
            self._first: Picture | None = self._receive()
        except SensoriumError:
            self._stream.close()
            raise
        if self._first.tick is not None:
            self.clock = DeviceClock(ClockKind.FREE, tick_ns_num=1000)
            self.stamp_of = "sample"

    def next(self) -> Picture:
        if self._first is not None:
            first, self._first = self._first, None
            return first
        return self._receive()

    def _receive(self) -> Picture:
        part = next(self._parts)
        tick = None if part.stamp_s is None else round(part.stamp_s * 1e6)
        return Picture(part.body, tick, self._clock.now_ns())

    def interrupt(self) -> None:
        self._stream.interrupt()

    def close(self) -> None:
        self._stream.close()


class RtspSource(PictureSource):
    """A camera's RTSP stream, decoded by OpenCV's FFmpeg; arrival stamps only."""

    def __init__(self, config: OpenCvConfig, clock: Clock) -> None:
        url = str(config.device)
        self._label = f"camera {masked_address(url)}"
        self._clock = clock
        timeout_ms = round(config.stall_s * 1000)
        limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, timeout_ms, cv2.CAP_PROP_READ_TIMEOUT_MSEC, timeout_ms]
        bare, login = split_login(url)  # FFmpeg reads a login as RFC 3986 does
        strict = url if login is None else with_login(bare, login)
        self._capture = _open_capture(self._label, strict, cv2.CAP_FFMPEG, limits)
        stated_hz = self._capture.get(cv2.CAP_PROP_FPS)
        self.rate_hz = stated_hz if 0 < stated_hz < 1000 else 0.0

    def next(self) -> Picture:
        pixels = _read(self._capture, self._label)
        if pixels is None:
            raise DeviceError(f"{self._label}: connection lost; it will be opened again")
        return Picture(pixels, None, self._clock.now_ns())

    def close(self) -> None:
        self._capture.release()


def open_source(config: OpenCvConfig, clock: Clock) -> PictureSource:
    """Open what the device's options name.

    Raises:
        DeviceError: If it cannot be opened or does not take a setting.
    """
    if config.kind == "file":
        return FileSource(config, clock)
    if config.kind == "http":
        return HttpSource(config, clock)
    if config.kind == "rtsp":
        return RtspSource(config, clock)
    capture = _open_capture(f"camera {config.device}", config.device, cv2.CAP_V4L2, [])
    return V4l2Source(config, clock, capture)


def _open_capture(label: str, target: int | str, backend: int, options: list[int]) -> cv2.VideoCapture:
    try:
        capture = cv2.VideoCapture(target, backend, options)
    except cv2.error as err:
        raise DeviceError(f"{label}: cannot be opened ({err})") from err
    if not capture.isOpened():
        capture.release()
        if backend == cv2.CAP_V4L2:
            hint = "is it in use by another program, or not permitted (group video)?"
        else:
            hint = "check its address and login" if "://" in label else "is it a video?"
        raise DeviceError(f"{label}: cannot be opened; {hint}")
    if backend == cv2.CAP_FFMPEG:  # pixels as stored: a phone's note on rotation turns none (docs/codecs.md)
        capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 0)
    return capture


def _read(capture: Capture, label: str) -> NDArray[np.uint8] | None:
    try:
        is_read, pixels = capture.read()
    except cv2.error as err:
        raise DeviceError(f"{label}: reading failed ({err})") from err
    return np.asarray(pixels, np.uint8) if is_read else None


def require_rate(label: str, asked_hz: float, found_hz: float) -> None:
    """Raise ``DeviceError`` if a source delivers at another rate than it was asked for, beyond 10 %."""
    if abs(found_hz - asked_hz) > _RATE_TOLERANCE * asked_hz:
        raise DeviceError(
            f"{label}: asked for rate_hz {asked_hz:g}, it delivers {found_hz:g}; set rate_hz to a rate it has"
        )


def _fourcc(text: str) -> int:
    return int.from_bytes(text.encode("ascii"), "little")


def _fourcc_text(code: float) -> str:
    return (int(code) & 0xFFFFFFFF).to_bytes(4, "little").decode("latin-1")
