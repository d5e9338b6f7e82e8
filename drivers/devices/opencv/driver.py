"""Cameras through OpenCV: a V4L2 device, a video file, an MJPEG stream over HTTP, or RTSP.

JPEG images pass untouched wherever the source has them (V4L2 in MJPG mode, MJPEG files and streams); all
else is pixels, which the codec stage of the driver's host packs. RTSP goes through OpenCV's FFmpeg; it was
tried by hand against GStreamer's RTSP server and has no automatic test. Hardware seen: no.
"""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from sensorium.drivers.devices.opencv.config import OpenCvConfig
from sensorium.drivers.driver import Driver, DriverConfig, DriverContext, Seen
from sensorium.drivers.frame import (
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
from sensorium.drivers.links.device_files import require_access
from sensorium.drivers.links.inbox import Inbox
from sensorium.drivers.payloads.images import decompress, jpeg_extent, with_channels
from sensorium.drivers.payloads.table import largest_payload_bytes
from sensorium.errors import DeviceError, PayloadError, SensoriumError
from sensorium.masking import masked, masked_address, secrets_of
from sensorium.timebase import SECOND_NS

if TYPE_CHECKING:  # OpenCV is loaded where a camera is opened: to read a rig file takes none
    from sensorium.drivers.devices.opencv.sources import Picture, PictureSource

_BY_ID = Path("/dev/v4l/by-id")
_QUEUE_FRAMES = 8
_MAX_TORN = 10


class PictureForm:
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
    modalities: ClassVar[tuple[Modality, ...]] = (Modality.CAMERA,)

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
            require_access("camera", path)
        elif config.kind == "file" and not Path(config.device).is_file():
            raise DeviceError(f"video file {masked_address(config.device)}: no such file")

    @classmethod
    def discover(cls) -> Sequence[Seen]:
        """Return the V4L2 cameras by their stable names; index 0 is the one of several nodes that has pictures."""
        nodes = sorted(_BY_ID.glob("*-index0")) if _BY_ID.is_dir() else []
        return [Seen(_card_name(node), {"device": str(node)}) for node in nodes]

    def open(self) -> Sequence[StreamInfo]:
        from sensorium.drivers.devices.opencv.sources import open_source, require_rate

        self.check(self.config)
        source = self._source = open_source(self.config, self.context.clock)
        opening = _until_whole(source, self.context.name)
        size = self.config.size or _size_of(opening[-1].data)
        is_jpeg = self.config.encoding == Encoding.JPEG and isinstance(opening[-1].data, bytes)
        form = PictureForm(is_jpeg, self.config.encoding == Encoding.MONO8, size)
        form.payload(opening[-1].data)  # refuses another size before anything is published
        if source.rate_hz and self.config.rate_hz is not None:
            require_rate(f"camera {self.context.name}", self.config.rate_hz, source.rate_hz)
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

    def _describe(self, source: "PictureSource", is_jpeg: bool, size: tuple[int, int]) -> StreamInfo:
        width, height = size
        pixels = Encoding.MONO8 if self.config.encoding == Encoding.MONO8 else Encoding.BGR8
        encoding = Encoding.JPEG if is_jpeg else pixels
        personal = self.config.personal
        shape = (height, width, 3) if encoding == Encoding.BGR8 else (height, width)
        info = StreamInfo(
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
            details={"source": self.config.kind, "device": masked_address(str(self.config.device))},
        )
        return replace(info, max_payload_bytes=largest_payload_bytes(info))

    def _pump(self, source: "PictureSource", form: PictureForm, opening: Sequence["Picture"]) -> None:
        """Carry pictures from the source to the inbox until one of them ends; runs in the reader thread."""
        from sensorium.drivers.devices.opencv.sources import READ_ERRORS

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
        except READ_ERRORS as err:
            failure = DeviceError(
                f"camera {name}: reading failed ({masked(str(err), secrets_of(self.config.device))})"
            )
            failure.__cause__ = err
            self._inbox.fail(failure)
        finally:
            source.close()


def _card_name(node: Path) -> str:
    """Return what the kernel calls the camera."""
    try:
        return Path(f"/sys/class/video4linux/{node.resolve().name}/name").read_text().strip()
    except OSError:
        return node.name


def _until_whole(source: "PictureSource", name: str) -> list["Picture"]:
    """Return the first pictures, up to the first whole one; UVC cameras often begin with torn images."""
    pictures = [source.next()]
    while isinstance(data := pictures[-1].data, bytes) and jpeg_extent(data) is None:
        if len(pictures) == _MAX_TORN:
            raise DeviceError(
                f"camera {name}: its first {_MAX_TORN} images are no whole JPEG; check the cable"
            )
        pictures.append(source.next())
    return pictures


def _pictures(source: "PictureSource", opening: Sequence["Picture"]) -> Iterator["Picture"]:
    yield from opening
    while True:
        yield source.next()


def _size_of(data: bytes | NDArray[np.uint8]) -> tuple[int, int]:
    if not isinstance(data, bytes):
        return int(data.shape[1]), int(data.shape[0])
    extent = jpeg_extent(data)
    assert extent is not None
    return extent.width_px, extent.height_px
