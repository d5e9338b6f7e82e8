"""Cameras through OpenCV: a V4L2 device, a video file, an MJPEG stream over HTTP, or RTSP.

JPEG images pass untouched wherever the source has them (V4L2 in MJPG mode, MJPEG files and streams); all
else is pixels, which the codec stage of the driver's host packs. RTSP goes through OpenCV's FFmpeg; it was
tried by hand against GStreamer's RTSP server and has no automatic test. Hardware seen: no.
"""

import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from sensorium.drivers.driver import Driver, DriverConfig, DriverContext
from sensorium.drivers.frame import (
    ClockKind,
    DeviceClock,
    Encoding,
    Frame,
    Latency,
    Loss,
    Modality,
    Place,
    StreamInfo,
    is_personal_by_default,
    stamps,
)
from sensorium.drivers.links.inbox import Inbox
from sensorium.drivers.links.mjpeg import MjpegStream, without_password
from sensorium.drivers.payloads.images import decompress, jpeg_extent, with_channels
from sensorium.errors import DeviceError, EndOfStreamError, PayloadError, SensoriumError
from sensorium.timebase import SECOND_NS, Clock, read_bases

_BY_ID = Path("/dev/v4l/by-id")
_V4L2_MANUAL_EXPOSURE = 1.0  # V4L2_EXPOSURE_MANUAL
_EXPOSURE_STEP_US = 100.0  # unit of V4L2_CID_EXPOSURE_ABSOLUTE
_RATE_TOLERANCE = 0.1
_QUEUE_FRAMES = 8
_MAX_TORN = 10

Kind = Literal["v4l2", "file", "http", "rtsp"]


class OpenCvConfig(DriverConfig):
    """Options of an OpenCV camera.

    Attributes:
        device: ``/dev/v4l/by-id/...`` (best), a device index, a video file, ``http(s)://`` (MJPEG) or
            ``rtsp(s)://``; user:password@ in a URL is never shown or stored.
        rate_hz: Asked of a V4L2 device (30 unless given); checked against a file's own rate; the nominal
            rate of a network stream, which cannot be asked.
        size: (width, height); refused if the source delivers another one.
        encoding: What is published. ``jpeg``: images that come as JPEG pass untouched, others are packed
            with ``jpeg_quality``; ``png``, ``bgr8`` and ``mono8`` (grey) are lossless. The device's ``codec``
            key goes before it.
        pixel_format: FOURCC asked of a V4L2 device; ``MJPG`` images pass untouched.
        exposure_us: Fixed exposure time; V4L2 only, in steps of 100 us. Automatic unless given.
        gain: Gain in the device's own unit; V4L2 only.
        loop: Begin a file again at its end.
        stall_s: A live source that delivers nothing for so long is a failed device.
    """

    device: int | str
    rate_hz: PositiveFloat | None = None
    size: tuple[PositiveInt, PositiveInt] | None = None
    encoding: Literal["jpeg", "png", "bgr8", "mono8"] = "jpeg"
    jpeg_quality: int = Field(default=85, ge=1, le=100)
    pixel_format: str = Field(default="MJPG", pattern=r"^[ -~]{4}$")
    exposure_us: PositiveFloat | None = None
    gain: float | None = None
    loop: bool = False
    stall_s: PositiveFloat = 5.0

    @property
    def kind(self) -> Kind:
        device = str(self.device).lower()
        if isinstance(self.device, int) or device.startswith("/dev/"):
            return "v4l2"
        if device.startswith(("http://", "https://")):
            return "http"
        if device.startswith(("rtsp://", "rtsps://")):
            return "rtsp"
        return "file"

    @model_validator(mode="after")
    def _options_fit_the_source(self) -> "OpenCvConfig":
        if isinstance(self.device, int) and self.device < 0:
            raise ValueError(f"device index {self.device} is negative")
        if self.kind != "v4l2" and (self.exposure_us is not None or self.gain is not None):
            raise ValueError(f"exposure_us and gain can only be set on a V4L2 device, not on {self.kind}")
        if self.loop and self.kind != "file":
            raise ValueError("loop is for files")
        return self


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
        _require_rate(self._label, asked_rate_hz, self.rate_hz)
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
        self._label = f"video file {self._path}"
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
        self._label = f"camera {without_password(url)}"
        self._clock = clock
        timeout_ms = round(config.stall_s * 1000)
        limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, timeout_ms, cv2.CAP_PROP_READ_TIMEOUT_MSEC, timeout_ms]
        self._capture = _open_capture(self._label, url, cv2.CAP_FFMPEG, limits)
        stated_hz = self._capture.get(cv2.CAP_PROP_FPS)
        self.rate_hz = stated_hz if 0 < stated_hz < 1000 else 0.0

    def next(self) -> Picture:
        pixels = _read(self._capture, self._label)
        if pixels is None:
            raise DeviceError(f"{self._label}: connection lost; it will be opened again")
        return Picture(pixels, None, self._clock.now_ns())

    def close(self) -> None:
        self._capture.release()


class PixelFormat:
    """Brings pictures to the form that is published: JPEG as it came, or pixels of one size.

    Args:
        keeps_jpeg: Let whole JPEG images pass; False decodes them.
        is_grey: Pixels are published as MONO8 instead of BGR8.
        size: (width, height) that every picture must have.
    """

    def __init__(self, keeps_jpeg: bool, is_grey: bool, size: tuple[int, int]) -> None:
        self._keeps_jpeg = keeps_jpeg
        self._is_grey = is_grey
        self._size = size

    def payload(self, data: bytes | NDArray[np.uint8]) -> bytes | memoryview | None:
        """Return the payload; None if ``data`` is no whole image.

        Raises:
            DeviceError: If the picture has another size than the stream.
        """
        if isinstance(data, bytes):
            extent = jpeg_extent(data)
            if extent is None:
                return None
            self._require(extent.width_px, extent.height_px)
            if self._keeps_jpeg:
                return data[: extent.length_bytes]
            try:
                data = decompress(data)
            except PayloadError:
                return None
        self._require(data.shape[1], data.shape[0])
        return np.ascontiguousarray(with_channels(data, 1 if self._is_grey else 3)).data.cast("B")

    def _require(self, width: int, height: int) -> None:
        if (width, height) != self._size:
            raise DeviceError(
                f"camera delivers {width}x{height} instead of {self._size[0]}x{self._size[1]}; "
                "set size to what it delivers"
            )


class OpenCvDriver(Driver[OpenCvConfig]):
    """One camera, one stream named like the device."""

    config_type: ClassVar[type[DriverConfig]] = OpenCvConfig

    def __init__(self, config: OpenCvConfig, context: DriverContext) -> None:
        super().__init__(config, context)
        self._source: PictureSource | None = None
        self._thread: threading.Thread | None = None
        self._inbox = Inbox(_QUEUE_FRAMES)
        self._last_ns = 0

    @property
    def codec(self) -> str | None:
        """What ``encoding`` asks for, where the images do not come as JPEG."""
        if self.config.encoding == Encoding.JPEG:
            return f"jpeg:{self.config.jpeg_quality}"
        return Encoding.PNG if self.config.encoding == Encoding.PNG else None

    @classmethod
    def check(cls, config: Any) -> None:
        if config.kind == "v4l2":
            path = Path(f"/dev/video{config.device}" if isinstance(config.device, int) else config.device)
            if not path.exists():
                present = sorted(str(entry) for entry in _BY_ID.glob("*")) if _BY_ID.is_dir() else []
                there = f"present: {', '.join(present)}" if present else f"no camera is listed in {_BY_ID}"
                raise DeviceError(f"camera {path}: no such device; {there}")
        elif config.kind == "file" and not Path(config.device).is_file():
            raise DeviceError(f"video file {config.device}: no such file")

    def open(self) -> Sequence[StreamInfo]:
        self.check(self.config)
        source = self._source = self._open_source()
        opening = _until_whole(source, self.context.name)
        size = self.config.size or _size_of(opening[-1].data)
        is_jpeg = self.config.encoding == Encoding.JPEG and isinstance(opening[-1].data, bytes)
        form = PixelFormat(is_jpeg, self.config.encoding == Encoding.MONO8, size)
        form.payload(opening[-1].data)  # refuses another size before anything is published
        if source.rate_hz and self.config.rate_hz is not None:
            _require_rate(f"camera {self.context.name}", self.config.rate_hz, source.rate_hz)
        info = self._describe(source, is_jpeg, size)
        self._last_ns = self.context.clock.now_ns()
        self._thread = threading.Thread(
            target=self._pump, args=(source, form, opening), name=f"{self.context.name}-reader", daemon=True
        )
        self._thread.start()
        return [info]

    def read(self, timeout_s: float) -> Sequence[Frame | Loss]:
        items = self._inbox.take(timeout_s)
        now_ns = self.context.clock.now_ns()
        if items:
            self._last_ns = now_ns
        elif (
            self._source is not None
            and self._source.is_live
            and now_ns - self._last_ns > self.config.stall_s * SECOND_NS
        ):
            raise DeviceError(
                f"camera {self.context.name}: frozen, no image for {self.config.stall_s:g} s; "
                "check its cable, or raise stall_s if it is meant to be that slow"
            )
        return items

    def close(self) -> None:
        self._inbox.close()
        source, self._source = self._source, None
        if source is None:
            return
        if self._thread is None:
            source.close()
            return
        source.interrupt()
        # A reader that hangs in the camera's driver is left behind: releasing under it would crash.
        self._thread.join(timeout=2.0)

    def _open_source(self) -> PictureSource:
        clock = self.context.clock
        if self.config.kind == "file":
            return FileSource(self.config, clock)
        if self.config.kind == "http":
            return HttpSource(self.config, clock)
        if self.config.kind == "rtsp":
            return RtspSource(self.config, clock)
        device = self.config.device
        capture = _open_capture(f"camera {device}", device, cv2.CAP_V4L2, [])
        return V4l2Source(self.config, clock, capture)

    def _describe(self, source: PictureSource, is_jpeg: bool, size: tuple[int, int]) -> StreamInfo:
        width, height = size
        pixels = Encoding.MONO8 if self.config.encoding == Encoding.MONO8 else Encoding.BGR8
        encoding = Encoding.JPEG if is_jpeg else pixels
        personal = self.config.personal
        shape = (height, width, 3) if encoding == Encoding.BGR8 else (height, width)
        return StreamInfo(
            name=self.context.name,
            modality=Modality.CAMERA,
            encoding=encoding,
            rate_hz=source.rate_hz or self.config.rate_hz or 0.0,
            frame_id=self.context.name,
            clock=source.clock,
            latency=Latency(),
            stamp_of=source.stamp_of,
            shape=shape,
            units="px",
            host_id=self.context.host_id,
            is_personal=is_personal_by_default(Modality.CAMERA) if personal is None else personal,
            # A JPEG of noise takes more than its pixels.
            max_payload_bytes=width * height * 9 // 2 + (1 << 16) if is_jpeg else math.prod(shape),
            details={"source": self.config.kind, "device": without_password(str(self.config.device))},
        )

    def _pump(self, source: PictureSource, form: PixelFormat, opening: Sequence[Picture]) -> None:
        """Carry pictures from the source to the inbox until one of them ends; runs in the reader thread."""
        name = self.context.name
        try:
            for seq, picture in enumerate(_pictures(source, opening)):
                if self._inbox.is_closed:
                    break
                payload = form.payload(picture.data)
                if payload is None:
                    self._inbox.lose(Loss(name, 1, Place.DRIVER, "damaged image"))
                    continue
                ticks = None if picture.tick is None else stamps(picture.tick)
                frame = Frame(name, seq, 1, ticks, stamps(picture.arrival_ns), payload)
                if source.is_live:
                    self._inbox.put(frame)
                else:
                    self._inbox.put_waiting(frame)
        except SensoriumError as err:
            self._inbox.fail(err)
        except (cv2.error, ValueError, OSError) as err:
            failure = DeviceError(f"camera {name}: reading failed ({err})")
            failure.__cause__ = err
            self._inbox.fail(failure)
        finally:
            source.close()


def _until_whole(source: PictureSource, name: str) -> list[Picture]:
    """Return the first pictures, up to the first whole one; UVC cameras often begin with torn images."""
    pictures = [source.next()]
    while isinstance(data := pictures[-1].data, bytes) and jpeg_extent(data) is None:
        if len(pictures) == _MAX_TORN:
            raise DeviceError(
                f"camera {name}: its first {_MAX_TORN} images are no whole JPEG; check the cable"
            )
        pictures.append(source.next())
    return pictures


def _pictures(source: PictureSource, opening: Sequence[Picture]) -> Iterator[Picture]:
    yield from opening
    while True:
        yield source.next()


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
    return capture


def _read(capture: Capture, label: str) -> NDArray[np.uint8] | None:
    try:
        is_read, pixels = capture.read()
    except cv2.error as err:
        raise DeviceError(f"{label}: reading failed ({err})") from err
    return np.asarray(pixels, np.uint8) if is_read else None


def _size_of(data: bytes | NDArray[np.uint8]) -> tuple[int, int]:
    if not isinstance(data, bytes):
        return int(data.shape[1]), int(data.shape[0])
    extent = jpeg_extent(data)
    assert extent is not None
    return extent.width_px, extent.height_px


def _require_rate(label: str, asked_hz: float, found_hz: float) -> None:
    if abs(found_hz - asked_hz) > _RATE_TOLERANCE * asked_hz:
        raise DeviceError(
            f"{label}: asked for rate_hz {asked_hz:g}, it delivers {found_hz:g}; set rate_hz to a rate it has"
        )


def _fourcc(text: str) -> int:
    return int.from_bytes(text.encode("ascii"), "little")


def _fourcc_text(code: float) -> str:
    return (int(code) & 0xFFFFFFFF).to_bytes(4, "little").decode("latin-1")
