"""Driver ``sim_camera``: a camera of the simulated rig.

Noise: 1.5 grey values, white, then JPEG. The image is sharp and shows the world at mid-exposure.
"""

from collections.abc import Sequence
from functools import partial
from typing import Literal

import cv2
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt

from sensorium.calibration.geometry import Intrinsics
from sensorium.drivers.driver import DriverContext
from sensorium.drivers.frame import Encoding, Frame, Modality, StreamInfo, stamps
from sensorium.drivers.payloads.images import compress
from sensorium.errors import ConfigError
from sensorium.simulators.device import SampleTrain, SimulatedConfig, SimulatedDriver
from sensorium.simulators.device_clock import LatencyConfig
from sensorium.simulators.render import Renderer
from sensorium.simulators.rig import CAMERA
from sensorium.simulators.trajectory import PERIOD_S
from sensorium.simulators.trigger import rig_trigger


class SimulatedShutter(BaseModel):
    """What lies between a trigger's edge and the image, so that the exposure begins after it as a real one does.

    Without it the rig's trigger marks the middle of the exposure itself.

    Attributes:
        delay_us: Edge to start of the first row's exposure; ``jitter_us`` is the half width of its jitter.
        row_us: From one row's exposure to the next.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    delay_us: NonNegativeFloat = 0.0
    jitter_us: NonNegativeFloat = 0.0
    row_us: NonNegativeFloat = 0.0


class SimulatedCameraConfig(SimulatedConfig):
    """Options of ``sim_camera``.

    Attributes:
        size: Width and height; the field of view stays that of ``rig.CAMERA``.
        distortion: k1, k2, p1, p2 of OpenCV's radial-tangential model.
        triggered: Exposures follow the rig's trigger, common to all its cameras; else the camera's own clock.
        shutter: From the pulses of ``sim_trigger`` to the exposures.
        render: ``live`` draws each image for its very instant. ``cached`` draws one loop of the world on the
            nominal grid and repeats its JPEG bytes: up to half a frame off in time, but free after one loop.
    """

    rate_hz: PositiveFloat = 30.0
    size: tuple[PositiveInt, PositiveInt] = (640, 480)
    distortion: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    exposure_ms: PositiveFloat = 4.0
    stamp_of: Literal["exposure_start", "exposure_mid"] = "exposure_mid"
    quality: int = Field(default=85, ge=1, le=100)
    triggered: bool = True
    shutter: SimulatedShutter | None = None
    render: Literal["live", "cached"] = "live"
    latency: LatencyConfig = LatencyConfig(min_ms=12.0)


class SimulatedCamera(SimulatedDriver[SimulatedCameraConfig]):
    """One stream, named like the device, of JPEG images with their exposure time."""

    config_type = SimulatedCameraConfig
    modalities = (Modality.CAMERA,)

    def __init__(self, config: SimulatedCameraConfig, context: DriverContext) -> None:
        super().__init__(config, context)
        self._train: SampleTrain | None = None
        self._renderer: Renderer | None = None
        self._loop: dict[tuple[int, bool], bytes] = {}

    @property
    def intrinsics(self) -> Intrinsics:
        """The true camera model."""
        width, height = self.config.size
        scale = width / CAMERA.width
        bent = any(self.config.distortion)
        return Intrinsics(
            "radtan" if bent else "pinhole",
            width,
            height,
            CAMERA.fx * scale,
            CAMERA.fy * scale,
            (width - 1) / 2,
            (height - 1) / 2,
            self.config.distortion if bent else (),
        )

    def prepare(self) -> None:
        # One thread per camera process: the machine's cores belong to all of them.
        cv2.setNumThreads(1)
        self._renderer = Renderer(self.world.scene, self.intrinsics, self.rng("noise"))

    def streams(self) -> Sequence[StreamInfo]:
        config, name = self.config, self.context.name
        if config.render == "cached" and config.motion != "walk":
            raise ConfigError(f"device {name}: render: cached is for motion: walk; use render: live")
        loop = PERIOD_S * config.rate_hz
        if config.render == "cached" and abs(loop - round(loop)) > 1e-9:
            raise ConfigError(
                f"device {name}: render: cached needs a whole number of frames in {PERIOD_S:g} s, "
                f"found {loop:g}; change rate_hz or use render: live"
            )
        self.mount()
        min_ns = round(config.latency.min_ms * 1e6)
        trigger, phase_s = rig_trigger(config.seed, config.rate_hz) if config.triggered else (None, None)
        width, height = config.size
        after_s, jitter_s = 0.0, 0.0
        if config.shutter is not None:
            to_middle_us = config.shutter.delay_us + config.shutter.row_us * (height - 1) / 2
            after_s = to_middle_us * 1e-6 + config.exposure_ms / 2000.0
            jitter_s = config.shutter.jitter_us * 1e-6
        self._train = SampleTrain(
            self,
            name,
            config.rate_hz,
            min_ns,
            sampling=trigger,
            phase_s=phase_s,
            after_s=after_s,
            jitter_s=jitter_s,
        )
        return (
            StreamInfo(
                name,
                Modality.CAMERA,
                Encoding.JPEG,
                config.rate_hz,
                frame_id=name,
                clock=self.device_clock.counter,
                latency=self.latency(min_ns),
                stamp_of=config.stamp_of,
                shape=(height, width, 3),
                units="px",
                host_id=self.context.host_id,
                is_personal=self.is_personal(True),
                has_device_counter=True,
                is_synthetic=True,
                max_payload_bytes=3 * width * height,
                meta_fields=("exposure_ns",),
                details={"simulator": "room", "seed": str(config.seed)},
            ),
        )

    def produce(self) -> bool:
        assert self._train is not None
        samples = self._train.take(1)
        if samples is None:
            return False
        for i in np.flatnonzero(samples.kept).tolist():  # one, or two when one was exposed out of turn
            world_s = float(samples.world_s[i])
            self.push(
                Frame(
                    self.context.name,
                    int(samples.seq[i]),
                    1,
                    stamps(int(samples.ticks[i])),
                    stamps(int(samples.arrival_ns[i])),
                    self.payload(self.context.name, world_s, partial(self._image, world_s), may_shrink=True),
                    (self.config.exposure_ms * 1e6,),
                )
            )
        return True

    def _image(self, stamp_s: float) -> bytes:
        world_s = stamp_s
        if self.config.stamp_of == "exposure_start":
            world_s += self.config.exposure_ms / 2000.0
        if self.config.render == "live":
            return self._draw(world_s)
        assert self._train is not None
        rate_hz = self.config.rate_hz
        number = round((world_s - self._train.phase_s) * rate_hz) % round(PERIOD_S * rate_hz)
        bump = self.config.bump
        key = (number, bump is not None and world_s >= bump.at_s)
        if key not in self._loop:
            at_s = number / rate_hz + self._train.phase_s
            # The world repeats, so the same instant of a later loop shows a later bump.
            self._loop[key] = self._draw(at_s + PERIOD_S * np.round((world_s - at_s) / PERIOD_S))
        return self._loop[key]

    def _draw(self, world_s: float) -> bytes:
        assert self._renderer is not None
        T_world_camera = self.world.pose(world_s) @ self.mount(world_s)
        image = self._renderer.image(T_world_camera, world_s)
        return compress(Encoding.JPEG, image, self.config.quality)
