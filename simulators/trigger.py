"""Driver ``sim_trigger``: the trigger box of the simulated rig, which drives all its cameras.

A pulse's edge is stamped by the simulated host's kernel: late by the jitter of an interrupt. Pulses that the box
does not record (faults of kind ``drop``) trigger the cameras all the same; the box's counter goes on.
"""

from collections.abc import Sequence

import numpy as np
from pydantic import NonNegativeFloat, PositiveFloat

from sensorium.drivers.devices.pps import pulse_stream
from sensorium.drivers.driver import DriverContext
from sensorium.drivers.frame import Frame, Latency, StreamInfo, stamps
from sensorium.simulators.device import SampleTrain, SimulatedConfig, SimulatedDriver
from sensorium.simulators.device_clock import (
    ClockConfig,
    LatencyConfig,
    SimulatedClock,
    simulated_clock,
    stream_rng,
)


def rig_trigger(seed: int, rate_hz: float) -> tuple[SimulatedClock, float]:
    """Return the clock that makes the rig's pulses and the time of the first one on it, seconds."""
    phase_s = float(stream_rng(seed, "trigger", "phase").uniform(0, 1 / rate_hz))
    return simulated_clock(ClockConfig(), seed, "trigger"), phase_s


class SimulatedTriggerConfig(SimulatedConfig):
    """Options of ``sim_trigger``; ``rate_hz`` must be that of the cameras.

    Attributes:
        jitter_us: Mean of the exponential lateness of a stamp.
        bound_us: Bound on it that the driver declares.
    """

    rate_hz: PositiveFloat = 30.0
    jitter_us: NonNegativeFloat = 1.0
    bound_us: NonNegativeFloat = 10.0
    latency: LatencyConfig = LatencyConfig(min_ms=0.2, jitter_ms=0.3)


class SimulatedTrigger(SimulatedDriver[SimulatedTriggerConfig]):
    """One stream of pulses, named like the device."""

    config_type = SimulatedTriggerConfig

    def __init__(self, config: SimulatedTriggerConfig, context: DriverContext) -> None:
        super().__init__(config, context)
        self._train: SampleTrain | None = None
        self._jitter_rng = self.rng("stamps")

    def streams(self) -> Sequence[StreamInfo]:
        config, name = self.config, self.context.name
        clock, phase_s = rig_trigger(config.seed, config.rate_hz)
        min_ns = round(config.latency.min_ms * 1e6)
        self._train = SampleTrain(self, name, config.rate_hz, min_ns, sampling=clock, phase_s=phase_s)
        latency = Latency(min_uncertainty_ns=round(config.bound_us * 1e3))
        return (
            pulse_stream(
                name,
                config.rate_hz,
                self.context.host_id,
                latency,
                details={"simulator": "trigger", "seed": str(config.seed)},
                is_personal=config.personal,
                is_synthetic=True,
            ),
        )

    def produce(self) -> bool:
        assert self._train is not None
        samples = self._train.take(1)
        if samples is None:
            return False
        for i in np.flatnonzero(samples.kept).tolist():
            late_ns = int(self._jitter_rng.exponential(self.config.jitter_us * 1e3))
            arrival_ns = int(samples.arrival_ns[i])
            edge_ns = min(int(samples.capture_ns[i]) + late_ns, arrival_ns)
            realtime_ns = edge_ns + (self.config.utc_minus_host_ns or 0)
            payload = realtime_ns.to_bytes(8, "little", signed=True)
            self.push(
                Frame(
                    self.context.name,
                    int(samples.seq[i]),
                    1,
                    stamps(edge_ns),
                    stamps(arrival_ns),
                    payload,
                )
            )
        return True
