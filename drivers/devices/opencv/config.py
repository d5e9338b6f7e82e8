"""The options of a camera."""

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from sensorium.drivers.driver import DriverConfig

Kind = Literal["v4l2", "file", "http", "rtsp"]


class OpenCvConfig(DriverConfig):
    """Options of an OpenCV camera.

    Attributes:
        device: ``/dev/v4l/by-id/...`` (best), a device index, a video file, ``http(s)://`` (MJPEG) or
            ``rtsp(s)://``. A login in it (user:password@, or keys such as ``pwd=``) is never shown or stored.
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
