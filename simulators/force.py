"""Driver ``sim_force``: a force/torque sensor at the rig's wrist.

It carries a small tool (weight and inertia), and every clap is also a knock on that tool: a half-sine of 5 ms
along z that begins at the instant of the clap. Noise: white, standard deviations of the config.
"""

from collections.abc import Sequence

import numpy as np
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from sensorium.calibration.geometry import Array
from sensorium.drivers.driver import DriverContext
from sensorium.drivers.frame import Column, Modality, StreamInfo
from sensorium.simulators.device import SampleTrain, SimulatedConfig, SimulatedDriver
from sensorium.simulators.device_clock import LatencyConfig
from sensorium.simulators.imu import BATCH_S, inertial_truth, to_counts

COUNTS_PER_UNIT = 1_000_000
"""Counts per N and per N m, as an ATI Net F/T reports by default."""

KNOCK_S = 0.005
KNOCK_N = 20.0
KNOCK_ARM_M = 0.05
TOOL_KG = 0.4
TOOL_CENTRE_M = (0.0, 0.0, 0.06)
FORCE_COLUMNS = ("fx", "fy", "fz", "tx", "ty", "tz")


class SimulatedForceConfig(SimulatedConfig):
    """Options of ``sim_force``; ``block`` samples per frame, each with its own stamps.

    Attributes:
        force_bias_n, torque_bias_nm: What it reads without a load.
    """

    rate_hz: PositiveFloat = 1000.0
    block: PositiveInt = 20
    force_noise_n: NonNegativeFloat = 0.05
    torque_noise_nm: NonNegativeFloat = 0.002
    force_bias_n: tuple[float, float, float] = (0.0, 0.0, 0.0)
    torque_bias_nm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    latency: LatencyConfig = LatencyConfig(min_ms=0.5)


class SimulatedForce(SimulatedDriver[SimulatedForceConfig]):
    """One stream, named like the device: blocks of int32 counts of force and torque."""

    config_type = SimulatedForceConfig

    def __init__(self, config: SimulatedForceConfig, context: DriverContext) -> None:
        super().__init__(config, context)
        self._train: SampleTrain | None = None
        self._rng = self.rng("noise")

    def streams(self) -> Sequence[StreamInfo]:
        config, name = self.config, self.context.name
        self.mount()
        min_ns = round(config.latency.min_ms * 1e6)
        self._train = SampleTrain(self, name, config.rate_hz, min_ns)
        columns = [
            Column(column, "N" if column[0] == "f" else "N*m", "<i4", 1 / COUNTS_PER_UNIT)
            for column in FORCE_COLUMNS
        ]
        return (self.columnar(Modality.FORCE, config.rate_hz, config.block, columns, min_ns),)

    def wrench(self, world_s: Array) -> Array:
        """Return the true (n, 6) wrench at (n,) world times, N and N m, sensor axes."""
        motion = self.world.motion(world_s).carried_to(self.mount(float(world_s[0])))
        force = TOOL_KG * inertial_truth(motion)[:, :3]
        torque = np.cross(np.broadcast_to(TOOL_CENTRE_M, force.shape), force)
        for clap in self.world.claps(float(world_s[0]) - KNOCK_S, float(world_s[-1]) + 1e-9):
            since = (world_s - clap.at_s) / KNOCK_S
            knock = np.where((since >= 0) & (since <= 1), KNOCK_N * np.sin(np.pi * since), 0.0)
            force[:, 2] += knock
            torque[:, 0] += KNOCK_ARM_M * knock
        return np.hstack([force, torque])

    def produce(self) -> bool:
        assert self._train is not None
        blocks = max(1, round(BATCH_S * self.config.rate_hz / self.config.block))
        samples = self._train.take(blocks * self.config.block)
        if samples is None:
            return False
        truth = self.wrench(samples.world_s) + np.hstack(
            [self.config.force_bias_n, self.config.torque_bias_nm]
        )
        spread = np.repeat([self.config.force_noise_n, self.config.torque_noise_nm], 3)
        reading = truth + self._rng.standard_normal(truth.shape) * spread
        counts = to_counts(reading, np.full(6, 1 / COUNTS_PER_UNIT), "<i4")
        self.push_columns(self.context.name, samples, counts, self.config.block)
        return True
