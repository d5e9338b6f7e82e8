"""Driver ``sim_microphone``: one or two microphones of the simulated rig.

Hears each clap after its sound has travelled (343 m/s, amplitude falling with distance), a 440 Hz tone, mains
hum and white room noise. The device stamp is the number of samples since the driver was opened.
"""

from collections.abc import Sequence
from functools import partial
from typing import Literal

import numpy as np
from pydantic import NonNegativeFloat, PositiveInt

from sensorium.calibration.geometry import Array, transform
from sensorium.drivers.driver import DriverContext
from sensorium.drivers.frame import ClockKind, DeviceClock, Encoding, Frame, Modality, StreamInfo, stamps
from sensorium.simulators.device import SampleTrain, SimulatedConfig, SimulatedDriver
from sensorium.simulators.device_clock import LatencyConfig
from sensorium.simulators.imu import BATCH_S
from sensorium.simulators.world import SOUND_M_S, Clap, World
from sensorium.timebase import SECOND_NS

CLAP_S = 0.06
CLAP_AMPLITUDE = 0.8
FULL_SCALE = 32767
SPACING_M = 0.10


class SimulatedMicrophoneConfig(SimulatedConfig):
    """Options of ``sim_microphone``; levels are parts of full scale, ``block`` samples make one frame.

    ``latency.min_ms`` counts from the end of a block; declared is the latency of its first sample.

    Attributes:
        swapped: The two channels hang at each other's microphone.
        inverted, dead: Channels with swapped wires, and without any.
    """

    rate_hz: PositiveInt = 48_000
    channels: Literal[1, 2] = 1
    block: PositiveInt = 480
    noise: NonNegativeFloat = 0.002
    tone: NonNegativeFloat = 0.01
    hum: NonNegativeFloat = 0.003
    swapped: bool = False
    inverted: tuple[int, ...] = ()
    dead: tuple[int, ...] = ()
    latency: LatencyConfig = LatencyConfig(min_ms=2.0)


def heard_s(world: World, clap: Clap, T_body_microphone: Array) -> float:
    """Return the world time at which the clap's sound reaches a microphone on the moving rig."""
    at_s = clap.at_s
    for _ in range(4):  # the rig moves at under 1 m/s: each round is 400 times nearer
        place_m = (world.pose(at_s) @ T_body_microphone)[:3, 3]
        at_s = clap.at_s + float(np.linalg.norm(place_m - clap.place_m)) / SOUND_M_S
    return at_s


def clap_wave(since_s: Array) -> Array:
    """Return the sound of a clap at a distance of 1 m, ``since_s`` after its onset; 0 before."""
    t = np.maximum(since_s, 0.0)
    body = np.exp(-t / 6e-3) * np.sin(2 * np.pi * 1800 * t)
    snap = 0.6 * np.exp(-t / 2e-3) * np.sin(2 * np.pi * 4200 * t)
    wave: Array = CLAP_AMPLITUDE * np.where(since_s < CLAP_S, body + snap, 0.0)
    return wave


class SimulatedMicrophone(SimulatedDriver[SimulatedMicrophoneConfig]):
    """One stream, named like the device: blocks of 16-bit samples, channels interleaved."""

    config_type = SimulatedMicrophoneConfig
    modalities = (Modality.AUDIO,)

    def __init__(self, config: SimulatedMicrophoneConfig, context: DriverContext) -> None:
        super().__init__(config, context)
        self._train: SampleTrain | None = None
        self._first_index: int | None = None
        self._rng = self.rng("noise")

    def streams(self) -> Sequence[StreamInfo]:
        config, name = self.config, self.context.name
        self.mount()
        min_ns = round(config.latency.min_ms * 1e6) + config.block * SECOND_NS // config.rate_hz
        self._train = SampleTrain(
            self, name, config.rate_hz / config.block, min_ns, samples_each=config.block
        )
        return (
            StreamInfo(
                name,
                Modality.AUDIO,
                Encoding.PCM_S16LE,
                float(config.rate_hz),
                frame_id=name,
                clock=DeviceClock(ClockKind.SAMPLES, SECOND_NS, config.rate_hz),
                latency=self.latency(min_ns),
                stamp_of="first_sample",
                shape=(config.channels,),
                frame_rate_hz=config.rate_hz / config.block,
                host_id=self.context.host_id,
                is_personal=self.is_personal(True),
                has_device_counter=True,
                is_synthetic=True,
                details={"simulator": "room", "seed": str(config.seed)},
            ),
        )

    def channel_mounts(self, world_s: float = 0.0) -> list[Array]:
        """Return T_body_microphone of each channel, left first."""
        middle = self.mount(world_s)
        if self.config.channels == 1:
            return [middle]
        return [middle @ transform(np.eye(3), (0.0, side * SPACING_M / 2, 0.0)) for side in (1, -1)]

    def produce(self) -> bool:
        assert self._train is not None
        config = self.config
        samples = self._train.take(max(1, round(BATCH_S * config.rate_hz / config.block)))
        if samples is None:
            return False
        if self._first_index is None:
            self._first_index = int(samples.index[0])
        for i in np.flatnonzero(samples.kept).tolist():
            world_s, index = float(samples.world_s[i]), int(samples.index[i])
            self.push(
                Frame(
                    self.context.name,
                    int(samples.seq[i]),
                    config.block,
                    stamps(self._counter(index, world_s)),
                    stamps(int(samples.arrival_ns[i])),
                    self.payload(self.context.name, world_s, partial(self._sound, index)),
                )
            )
        return True

    def _counter(self, index: int, world_s: float) -> int:
        """Return how many samples the device has counted since it was opened, or since its last reset."""
        assert self._first_index is not None
        resets = [reset_s for reset_s in self.faults.resets_s if reset_s <= world_s]
        if resets:
            return round((world_s - resets[-1]) * self.config.rate_hz)
        return (index - self._first_index) * self.config.block

    def _sound(self, index: int) -> bytes:
        assert self._train is not None
        config = self.config
        ends_s = self._train.instants(np.array([index, index + 1]))
        times_s = np.linspace(ends_s[0], ends_s[1], config.block, endpoint=False)
        room = config.tone * np.sin(2 * np.pi * 440 * times_s) + config.hum * np.sin(2 * np.pi * 50 * times_s)
        wave = self._rng.standard_normal((config.block, config.channels)) * config.noise + room[:, None]
        # 0.1 s covers the travel through the room and back.
        for clap in self.world.claps(float(ends_s[0]) - CLAP_S - 0.1, float(ends_s[1])):
            for channel, T_body_microphone in enumerate(self.channel_mounts(clap.at_s)):
                onset_s = heard_s(self.world, clap, T_body_microphone)
                distance_m = max((onset_s - clap.at_s) * SOUND_M_S, 1.0)
                wave[:, channel] += clap_wave(times_s - onset_s) / distance_m
        if config.swapped:
            wave = wave[:, ::-1]
        wave[:, list(config.inverted)] *= -1.0
        wave[:, list(config.dead)] = 0.0
        return bytes(np.clip(np.rint(wave * FULL_SCALE), -32768, 32767).astype("<i2").tobytes())
