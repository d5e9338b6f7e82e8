"""Clocks of simulated devices, and how long their samples take to reach the host.

Shapes as in specs/clocks.md 2a: constant skew, an exponential warm-up, a slow thermal wave. Latency is a
constant minimum + exponential jitter + stalls, delivered in order.
"""

import zlib
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt

from sensorium.drivers.frame import ClockKind, DeviceClock
from sensorium.timebase import SECOND_NS

Array = NDArray[np.float64]
Stamps = NDArray[np.int64]

MAX_DRIFT_PPM_PER_S = 0.1


def stream_rng(seed: int, *names: str) -> np.random.Generator:
    """Return the random stream of one purpose; equal seeds and names give equal numbers everywhere."""
    return np.random.default_rng([seed, *(zlib.crc32(name.encode()) for name in names)])


class ClockConfig(BaseModel):
    """A device clock in the rig file; what is left out is drawn from the seed.

    Attributes:
        keeps: ``own`` time; ``utc``, as a device that claims PTP does; or the ``host``'s raw clock, as a node on
            this machine does. The latter two have no error but what the other fields say; ``offset_s`` is added.
        skew_ppm: How much longer the device's second is than the host's (as ``ClockModel.skew_ppm``).
        offset_s: What the device clock reads at the common start.
        wrap_after_s: Overrides ``offset_s``: the counter passes its modulus this long after the start.
        tick_ns, modulus: One tick, and how many until the counter starts again (None: never).
        warmup_ppm, warmup_s: Extra skew at the start, and its time constant.
        thermal_ppm, thermal_s: Amplitude and period of a slow wave of the skew.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    keeps: Literal["own", "utc", "host"] = "own"
    skew_ppm: float | None = Field(default=None, ge=-1000, le=1000)
    offset_s: NonNegativeFloat | None = None
    wrap_after_s: PositiveFloat | None = None
    tick_ns: PositiveInt = 1000
    modulus: int | None = Field(default=None, ge=1 << 16)
    warmup_ppm: float = Field(default=4.0, ge=-50, le=50)
    warmup_s: PositiveFloat = 100.0
    thermal_ppm: float = Field(default=2.0, ge=-50, le=50)
    thermal_s: PositiveFloat = 300.0


@dataclass(frozen=True, slots=True)
class SimulatedClock:
    """Maps true time (seconds since the common start) to device time and back.

    Attributes:
        offset_ticks: The counter at the start.
        resets_s: True times at which the counter starts again from zero.
    """

    counter: DeviceClock
    offset_ticks: int
    skew_ppm: float
    warmup_ppm: float = 0.0
    warmup_s: float = 100.0
    thermal_ppm: float = 0.0
    thermal_s: float = 300.0
    thermal_phase_rad: float = 0.0
    resets_s: tuple[float, ...] = ()

    def set_to(self, start_ns: int) -> "SimulatedClock":
        """Return the clock put forward by ``start_ns``, the time that it keeps at the common start."""
        ticks = self.offset_ticks + start_ns * self.counter.tick_ns_den // self.counter.tick_ns_num
        return replace(
            self, offset_ticks=ticks if self.counter.modulus is None else ticks % self.counter.modulus
        )

    def skew_at_ppm(self, true_s: Array) -> Array:
        """Return the momentary skew: how much longer than nominal the device's tick is."""
        wave = np.sin(2 * np.pi * true_s / self.thermal_s + self.thermal_phase_rad)
        return self.skew_ppm + self.warmup_ppm * np.exp(-true_s / self.warmup_s) + self.thermal_ppm * wave

    def device_s(self, true_s: Array) -> Array:
        """Return the seconds that the device has counted since the start."""
        return true_s - self._behind_s(true_s)

    def true_s(self, device_s: Array) -> Array:
        """Return the inverse of :meth:`device_s`, to a picosecond (the map is a contraction by 1e-3)."""
        true_s = device_s
        for _ in range(5):
            true_s = device_s + self._behind_s(true_s)
        return true_s

    def ticks(self, true_s: Array) -> Stamps:
        """Return what the device stamps at (n,) true times, wrapped at the modulus."""
        device_s = self.device_s(true_s)
        origin_s, offset = np.zeros_like(true_s), np.full(true_s.shape, self.offset_ticks, np.int64)
        for reset_s in self.resets_s:
            after = true_s >= reset_s
            origin_s = np.where(after, self.device_s(np.array(reset_s)), origin_s)
            offset = np.where(after, 0, offset)
        counted = np.rint((device_s - origin_s) * (SECOND_NS / self.counter.tick_ns)).astype(np.int64)
        ticks = counted + offset
        return ticks if self.counter.modulus is None else ticks % self.counter.modulus

    def _behind_s(self, true_s: Array) -> Array:
        """Integral of the skew: how far the device has fallen behind."""
        omega = 2 * np.pi / self.thermal_s
        warm = self.warmup_ppm * self.warmup_s * -np.expm1(-true_s / self.warmup_s)
        wave = (
            self.thermal_ppm
            / omega
            * (np.cos(self.thermal_phase_rad) - np.cos(omega * true_s + self.thermal_phase_rad))
        )
        behind: Array = 1e-6 * (self.skew_ppm * true_s + warm + wave)
        return behind


def simulated_clock(
    config: ClockConfig, seed: int, name: str, resets_s: tuple[float, ...] = ()
) -> SimulatedClock:
    """Return the clock of device ``name``: what the config leaves open is drawn from the seed."""
    rng = stream_rng(seed, name, "clock")
    skew_ppm, offset_s, phase_rad = rng.uniform(-50, 50), rng.uniform(600, 86_400), rng.uniform(0, 2 * np.pi)
    kind = ClockKind.PTP if config.keeps == "utc" else ClockKind.FREE
    counter = DeviceClock(kind, config.tick_ns, 1, config.modulus)
    if config.keeps != "own":
        drift = {key: 0.0 for key in ("warmup_ppm", "thermal_ppm") if key not in config.model_fields_set}
        config = config.model_copy(update=drift)
        skew_ppm, offset_s = 0.0, 0.0
    if config.offset_s is not None:
        offset_s = config.offset_s
    offset_ticks = round(offset_s * SECOND_NS / config.tick_ns)
    if config.wrap_after_s is not None and config.modulus is not None:
        offset_ticks = config.modulus - round(config.wrap_after_s * SECOND_NS / config.tick_ns)
    if config.modulus is not None:
        offset_ticks %= config.modulus
    return SimulatedClock(
        counter,
        offset_ticks,
        skew_ppm if config.skew_ppm is None else config.skew_ppm,
        config.warmup_ppm,
        config.warmup_s,
        config.thermal_ppm,
        config.thermal_s,
        phase_rad,
        resets_s,
    )


class LatencyConfig(BaseModel):
    """How samples travel to the host; the minimum is declared to the recorder, the rest is not."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_ms: NonNegativeFloat = 1.0
    jitter_ms: NonNegativeFloat = 1.5
    stalls_per_minute: NonNegativeFloat = 0.0
    stall_ms: tuple[NonNegativeFloat, NonNegativeFloat] = (50.0, 200.0)


class LatencyPath:
    """Turns capture into arrival times: minimum + exponential jitter, held by stalls, never overtaking."""

    def __init__(
        self,
        config: LatencyConfig,
        min_ns: int,
        rng: np.random.Generator,
        start_ns: int,
        held_s: tuple[tuple[float, float], ...] = (),
    ) -> None:
        """Args: held_s: Spans (from, to), seconds since the start, in which nothing is delivered."""
        self._config = config
        self._min_ns = min_ns
        self._rng = rng
        self._stall_rng = np.random.default_rng(rng.integers(1 << 62))
        self._last_ns = 0
        self._held = [(start_ns + round(a * SECOND_NS), start_ns + round(b * SECOND_NS)) for a, b in held_s]
        self._stall = self._next_stall(start_ns)

    def arrivals(self, capture_ns: Stamps) -> Stamps:
        """Return (n,) arrival times of (n,) ascending capture times."""
        jitter = self._rng.exponential(self._config.jitter_ms * 1e6, len(capture_ns))
        arrival = capture_ns + self._min_ns + jitter.astype(np.int64)
        for start, end in self._held:
            arrival = np.where((arrival >= start) & (arrival < end), end, arrival)
        while self._stall is not None and self._stall[0] <= arrival[-1]:
            start, end = self._stall
            arrival = np.where((arrival >= start) & (arrival < end), end, arrival)
            if end > capture_ns[-1]:
                break
            self._stall = self._next_stall(end)
        arrival = np.maximum(np.maximum.accumulate(arrival), self._last_ns)
        self._last_ns = int(arrival[-1])
        return arrival

    def _next_stall(self, after_ns: int) -> tuple[int, int] | None:
        if not self._config.stalls_per_minute:
            return None
        wait_s = self._stall_rng.exponential(60.0 / self._config.stalls_per_minute)
        start = after_ns + round(wait_s * SECOND_NS)
        return start, start + round(self._stall_rng.uniform(*self._config.stall_ms) * 1e6)
