"""Driver ``sim_imu``: an inertial sensor of the simulated rig, and the noise model that IMUs here share.

Measures specific force and angular rate in its own axes: true value + constant bias + white noise of density
N (standard deviation N sqrt(rate)) + bias random walk, rounded to counts and limited to the range (the model
of IEEE Std 952, as Kalibr writes it). Defaults are those of an industrial MEMS part.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, NonNegativeFloat, PositiveFloat, PositiveInt

from sensorium.calibration.geometry import Array
from sensorium.drivers.driver import DriverContext
from sensorium.drivers.frame import Column, Modality, StreamInfo
from sensorium.simulators.device import SampleTrain, SimulatedConfig, SimulatedDriver
from sensorium.simulators.device_clock import LatencyConfig
from sensorium.simulators.trajectory import Motion
from sensorium.simulators.world import GRAVITY_M_S2

COUNTS = 32768
BATCH_S = 0.5
IMU_COLUMNS = ("acc_x", "acc_y", "acc_z", "gyro_x", "gyro_y", "gyro_z")


class BiasJump(BaseModel):
    """From ``at_s`` on the sensor reads so much more."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    at_s: float = 0.0
    gyro_deg_s: tuple[float, float, float] = (0.0, 0.0, 0.0)
    acc_m_s2: tuple[float, float, float] = (0.0, 0.0, 0.0)


class SimulatedImuConfig(SimulatedConfig):
    """Options of ``sim_imu``; noise densities per square root of hertz, ranges full scale (+-).

    Attributes:
        block: Samples per frame; each has its own stamps, the frame is there when the last one is.
    """

    rate_hz: PositiveFloat = 200.0
    block: PositiveInt = 10
    acc_range_g: PositiveFloat = 4.0
    gyro_range_dps: PositiveFloat = 500.0
    acc_noise_m_s2: NonNegativeFloat = 1.0e-3
    gyro_noise_rad_s: NonNegativeFloat = 1.2e-4
    acc_bias_m_s2: NonNegativeFloat = 0.03
    gyro_bias_rad_s: NonNegativeFloat = 0.002
    acc_walk_m_s3: NonNegativeFloat = 1.0e-4
    gyro_walk_rad_s2: NonNegativeFloat = 4.0e-6
    bias_jump: BiasJump = BiasJump()
    latency: LatencyConfig = LatencyConfig(min_ms=1.0)


def inertial_truth(motion: Motion) -> Array:
    """Return (n, 6): specific force (m/s^2), gravity included, and angular rate (rad/s), sensor axes."""
    lifted = motion.acceleration_m_s2 + np.array([0.0, 0.0, GRAVITY_M_S2])
    force = np.einsum("nji,nj->ni", motion.rotation, lifted)
    return np.hstack([force, motion.rate_rad_s])


class InertialNoise:
    """Adds bias, white noise and bias walk to (n, 6) true values, in order of time."""

    def __init__(self, config: SimulatedImuConfig, rng: np.random.Generator) -> None:
        def six(acc: float, gyro: float) -> Array:
            return np.repeat([acc, gyro], 3)

        self._rng = rng
        self._bias = rng.standard_normal(6) * six(config.acc_bias_m_s2, config.gyro_bias_rad_s)
        self._white = six(config.acc_noise_m_s2, config.gyro_noise_rad_s) * np.sqrt(config.rate_hz)
        self._walk = six(config.acc_walk_m_s3, config.gyro_walk_rad_s2) / np.sqrt(config.rate_hz)

    def measured(self, truth: Array) -> Array:
        """Return the readings of the next n samples."""
        steps = self._rng.standard_normal((2, *truth.shape))
        bias = self._bias + np.cumsum(steps[0] * self._walk, axis=0)
        self._bias = bias[-1]
        readings: Array = truth + bias + steps[1] * self._white
        return readings


def to_counts(values: Array, scales: Array, dtype: str) -> NDArray[Any]:
    """Round (n, c) physical values to counts of the given scales, limited to what ``dtype`` holds."""
    limits = np.iinfo(dtype)
    return np.clip(np.rint(values / scales), limits.min, limits.max).astype(dtype)


class SimulatedImu(SimulatedDriver[SimulatedImuConfig]):
    """One stream, named like the device: blocks of int16 counts of acceleration and angular rate."""

    config_type = SimulatedImuConfig

    def __init__(self, config: SimulatedImuConfig, context: DriverContext) -> None:
        super().__init__(config, context)
        self._train: SampleTrain | None = None
        self._noise = InertialNoise(config, self.rng("noise"))
        scales = (config.acc_range_g * GRAVITY_M_S2 / COUNTS, np.radians(config.gyro_range_dps) / COUNTS)
        self._scales = np.repeat(scales, 3)

    def streams(self) -> Sequence[StreamInfo]:
        config, name = self.config, self.context.name
        self.mount()
        min_ns = round(config.latency.min_ms * 1e6)
        self._train = SampleTrain(self, name, config.rate_hz, min_ns)
        units = ("m/s^2",) * 3 + ("rad/s",) * 3
        columns = [
            Column(column, unit, "<i2", float(scale))
            for column, unit, scale in zip(IMU_COLUMNS, units, self._scales, strict=True)
        ]
        return (self.columnar(Modality.IMU, config.rate_hz, config.block, columns, min_ns),)

    def produce(self) -> bool:
        assert self._train is not None
        blocks = max(1, round(BATCH_S * self.config.rate_hz / self.config.block))
        samples = self._train.take(blocks * self.config.block)
        if samples is None:
            return False
        motion = self.world.motion(samples.world_s).carried_to(self.mount(float(samples.world_s[0])))
        jump = self.config.bias_jump
        jumped = np.hstack([jump.acc_m_s2, np.radians(jump.gyro_deg_s)])
        readings = self._noise.measured(inertial_truth(motion)) + np.outer(
            samples.world_s >= jump.at_s, jumped
        )
        counts = to_counts(readings, self._scales, "<i2")
        self.push_columns(self.context.name, samples, counts, self.config.block)
        return True
