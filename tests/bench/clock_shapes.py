"""The simulated clocks of specs/clocks.md 2a, and the reference estimators to compare with."""

import bisect
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sensorium.sync.clocks.oneway import highest_line_below

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

AUDIO_RATE_HZ = 48_000
AUDIO_BLOCK = 480
AUDIO_MIN_LATENCY_NS = 12_000_000
DURATION_S = 1200.0
WRAP_AT_S = 500.0
RESET_AT_S = 800.0
RESET_GAP_S = 2.0
SETTLE_S = 15.0
MODULUS = 2**32
MIN_LATENCY_NS = 1_000_000


@dataclass(frozen=True)
class Shape:
    """One row of the table: a rate and a law of the latency above its constant minimum."""

    name: str
    rate_hz: float
    jitter_ns: float
    floor: str = "hard"
    goal_p99_us: float | None = None


SHAPES = (
    Shape("200hz_1.5ms", 200, 1.5e6, goal_p99_us=8.7),
    Shape("30hz_1.5ms", 30, 1.5e6, goal_p99_us=29),
    Shape("30hz_5ms", 30, 5e6, goal_p99_us=70),
    Shape("10hz_5ms", 10, 5e6, goal_p99_us=168),
    Shape("soft_floor", 200, 1.5e6, "soft", goal_p99_us=95),
    Shape("drifting_floor", 200, 1.5e6, "drifting"),
    Shape("bimodal", 200, 1.5e6, "bimodal"),
    Shape("drifting_floor_sine", 200, 1.5e6, "sine"),
)


@dataclass(frozen=True)
class Simulation:
    """One run. ``device_ns`` is the correctly unwrapped device time; ``epoch`` 1 begins at the reset."""

    capture_ns: IntArray
    raw_ticks: IntArray
    arrival_ns: IntArray
    device_ns: IntArray
    epoch: IntArray
    seq: IntArray

    def age_s(self) -> FloatArray:
        """Return the time since the beginning of each sample's epoch."""
        starts = np.array([self.capture_ns[self.epoch == 0][0], self.capture_ns[self.epoch == 1][0]])
        return np.asarray((self.capture_ns - starts[self.epoch]) * 1e-9, np.float64)


def simulate(shape: Shape, seed: int, duration_s: float = DURATION_S) -> Simulation:
    """Return a run of spec 2a.

    The device's skew is within +-50 ppm, with 10 ppm of warm-up (100 s), 4.8 ppm of thermal swing (300 s) of
    random phase and a random walk of 0.005 ppm per root second; latency is first in, first out, with a stall
    of 50 to 200 ms each minute; a 32-bit microsecond counter wraps at 500 s; the device restarts at 800 s.
    Drifting floor: the least latency wanders between 0 and 300 us above its minimum as a random walk that
    diffuses over the whole range in 300 s. The same as a smooth sine of 300 s is a shape of its own: that is
    the very curve that the crystal's thermal swing draws, so that no method can tell the two apart unless
    their sum moves faster than a crystal can.
    """
    random = np.random.default_rng([seed, [one.name for one in SHAPES].index(shape.name)])
    time_s = np.arange(0.0, duration_s, 1 / shape.rate_hz) + random.uniform(0, 1 / shape.rate_hz)
    grid_s, gained_us = _crystal(duration_s, random)
    is_alive = (time_s < RESET_AT_S) | (time_s >= RESET_AT_S + RESET_GAP_S)
    time_s = time_s[is_alive]
    epoch = (time_s >= RESET_AT_S).astype(np.int64)
    elapsed_us = time_s * 1e6 + _smooth(time_s, grid_s, gained_us)
    start_us = float(MODULUS) - WRAP_AT_S * 1e6
    boot_us = elapsed_us[epoch == 1][0] - random.uniform(1e5, 1e6) if (epoch == 1).any() else 0.0
    device_us = np.floor(np.where(epoch == 0, start_us + elapsed_us, elapsed_us - boot_us)).astype(np.int64)
    latency_ns = _latency(shape, time_s, random)
    capture_ns = 10**12 + np.rint(time_s * 1e9).astype(np.int64)
    arrival_ns = capture_ns + MIN_LATENCY_NS + np.rint(latency_ns).astype(np.int64)
    _stall(capture_ns, arrival_ns, duration_s, random)
    arrival_ns = np.maximum.accumulate(arrival_ns)
    return Simulation(
        capture_ns, device_us % MODULUS, arrival_ns, device_us * 1000, epoch, np.arange(time_s.size)
    )


def simulate_audio(
    jitter_ns: float, seed: int, duration_s: float = DURATION_S
) -> tuple[IntArray, IntArray, IntArray]:
    """Return (capture of each block's first sample, its sample counter, arrival of the block), spec 2d."""
    random = np.random.default_rng([seed, 77, int(jitter_ns)])
    grid_s, gained_us = _crystal(duration_s, random)
    device_s = grid_s + gained_us * 1e-6
    counters = np.arange(0, int(duration_s * AUDIO_RATE_HZ), AUDIO_BLOCK)
    capture_ns = 10**12 + np.rint(np.interp(counters / AUDIO_RATE_HZ, device_s, grid_s) * 1e9).astype(
        np.int64
    )
    latency_ns = AUDIO_MIN_LATENCY_NS + random.exponential(jitter_ns, counters.size)
    arrival_ns = capture_ns + np.rint(latency_ns).astype(np.int64)
    _stall(capture_ns, arrival_ns, duration_s, random)
    return capture_ns, counters.astype(np.int64), np.maximum.accumulate(arrival_ns)


def _crystal(duration_s: float, random: np.random.Generator) -> tuple[FloatArray, FloatArray]:
    """Return a time grid and what the device's clock has gained by then (us)."""
    grid_s = np.arange(0.0, duration_s + 2, 0.1)
    walk = np.cumsum(random.normal(0, 0.005 * 0.1**0.5, grid_s.size))
    rate_ppm = (
        random.uniform(-50, 50)
        + 10 * random.choice([-1, 1]) * np.exp(-grid_s / 100)
        + 4.8 * np.sin(2 * np.pi * grid_s / 300 + random.uniform(0, 2 * np.pi))
        + walk
    )
    gained_us = np.concatenate(([0.0], np.cumsum((rate_ppm[1:] + rate_ppm[:-1]) / 2 * 0.1)))
    return grid_s, gained_us


def _stall(
    capture_ns: IntArray, arrival_ns: IntArray, duration_s: float, random: np.random.Generator
) -> None:
    """Hold up what would arrive during 50 to 200 ms of each minute."""
    for minute in range(int(duration_s // 60)):
        begin_ns = 10**12 + int((minute * 60 + random.uniform(5, 55)) * 1e9)
        end_ns = begin_ns + int(random.uniform(50e6, 200e6))
        held = slice(*np.searchsorted(capture_ns, [begin_ns - 10**9, end_ns]))
        stuck = (arrival_ns[held] > begin_ns) & (arrival_ns[held] < end_ns)
        arrival_ns[held][stuck] = end_ns


def _smooth(time_s: FloatArray, grid_s: FloatArray, values: FloatArray) -> FloatArray:
    """Interpolate linearly: between nodes 0.1 s apart, 0.2 ppm/s makes 0.25 ns of error."""
    return np.interp(time_s, grid_s, values)


def _latency(shape: Shape, time_s: FloatArray, random: np.random.Generator) -> FloatArray:
    latency_ns = random.exponential(shape.jitter_ns, time_s.size)
    if shape.floor == "soft":
        latency_ns += random.uniform(0, 1e6, time_s.size)
    elif shape.floor == "drifting":
        step_s = 0.05
        grid_s = np.arange(0.0, time_s[-1] + 1, step_s)
        walk_ns = np.cumsum(random.normal(0, 300e3 * (step_s / 300) ** 0.5, grid_s.size))
        walk_ns = np.abs((walk_ns + random.uniform(0, 300e3) + 300e3) % 600e3 - 300e3)
        latency_ns += np.interp(time_s, grid_s, walk_ns)
    elif shape.floor == "sine":
        phase = random.uniform(0, 2 * np.pi)
        latency_ns += 150e3 * (1 - np.cos(2 * np.pi * time_s / 300 + phase))
    elif shape.floor == "bimodal":
        latency_ns += 4e6 * (random.uniform(0, 1, time_s.size) < 0.3)
    return latency_ns


Estimator = Callable[[FloatArray, FloatArray], FloatArray]
"""Takes device and arrival nanoseconds of one epoch (relative to its start), returns causal estimates of
capture + minimum latency."""


def raw_arrival(device_ns: FloatArray, arrival_ns: FloatArray) -> FloatArray:
    """Take the arrival as the estimate."""
    return np.array(arrival_ns, np.float64)


def lsl_dejitter(device_ns: FloatArray, arrival_ns: FloatArray, half_life_s: float = 90.0) -> FloatArray:
    """Recursive least squares of arrival on device time with exponential forgetting (spec 1.1)."""
    forget = 2 ** (-float(np.median(np.diff(device_ns))) / (half_life_s * 1e9))
    p00, p01, p11 = 1e10, 0.0, 1e10
    w0, w1 = 0.0, 0.0
    out = np.empty_like(arrival_ns)
    xs = (device_ns * 1e-9).tolist()
    ys = ((arrival_ns - device_ns) * 1e-9).tolist()
    for index, (x, y) in enumerate(zip(xs, ys, strict=True)):
        g0, g1 = p00 + p01 * x, p01 + p11 * x
        scale = forget + g0 + x * g1
        k0, k1 = g0 / scale, g1 / scale
        error = y - w0 - w1 * x
        w0 += k0 * error
        w1 += k1 * error
        p00, p01, p11 = (p00 - k0 * g0) / forget, (p01 - k0 * g1) / forget, (p11 - k1 * g1) / forget
        out[index] = x + w0 + w1 * x
    return out * 1e9


def olson(device_ns: FloatArray, arrival_ns: FloatArray, bound: float = 1e-4) -> FloatArray:
    """Passive synchronisation after Olson 2010 (spec 1.6)."""
    anchor_x = anchor_y = 0.0
    out = []
    is_first = True
    for x, y in zip(device_ns.tolist(), arrival_ns.tolist(), strict=True):
        estimate = anchor_y + (x - anchor_x) * (1 + bound)
        if is_first or y < estimate:
            anchor_x, anchor_y, estimate, is_first = x, y, y, False
        out.append(estimate)
    return np.array(out)


class _Hull:
    """Incremental lower hull; the segment over the middle gives the line (spec 1.7)."""

    def __init__(self) -> None:
        self.x: list[float] = []
        self.y: list[float] = []

    def add(self, x: float, y: float) -> None:
        xs, ys = self.x, self.y
        if xs and x <= xs[-1]:
            # Coarse ticks repeat: the least delayed of them counts.
            if y >= ys[-1]:
                return
            xs.pop()
            ys.pop()
        while len(xs) >= 2 and (ys[-1] - ys[-2]) * (x - xs[-2]) >= (y - ys[-2]) * (xs[-1] - xs[-2]):
            xs.pop()
            ys.pop()
        xs.append(x)
        ys.append(y)

    def at(self, x: float) -> float:
        xs, ys = self.x, self.y
        if len(xs) < 3:
            return ys[-1]
        right = min(max(bisect.bisect(xs, (xs[0] + x) / 2), 1), len(xs) - 1)
        slope = (ys[right] - ys[right - 1]) / (xs[right] - xs[right - 1])
        return ys[right] + slope * (x - xs[right])


def switching_hull(device_ns: FloatArray, arrival_ns: FloatArray, switch_s: float) -> FloatArray:
    """Two convex hulls that take turns (spec 1.7): the pending one becomes current every ``switch_s``."""
    current, pending = _Hull(), _Hull()
    switched = 0.0
    out = []
    for x, y in zip(device_ns.tolist(), (arrival_ns - device_ns).tolist(), strict=True):
        if x - switched > switch_s * 1e9:
            current, pending, switched = pending, _Hull(), x
        current.add(x, y)
        pending.add(x, y)
        out.append(x + current.at(x))
    return np.array(out)


def window_lp(device_ns: FloatArray, arrival_ns: FloatArray, window_s: float) -> FloatArray:
    """Line below a fixed window (Moon et al., spec 1.5), solved every 0.25 s on the samples up to then."""
    offset = arrival_ns - device_ns
    out = np.empty_like(arrival_ns)
    slots = np.floor(device_ns / 0.25e9).astype(np.int64)
    edges = np.flatnonzero(np.diff(slots)) + 1
    begins = np.concatenate(([0], edges))
    ends = np.concatenate((edges, [device_ns.size]))
    lows = np.searchsorted(device_ns, device_ns[begins] - window_s * 1e9)
    lines: tuple[float, float, float] | None = None
    for begin, end, low in zip(begins, ends, lows, strict=True):
        span = slice(begin, end)
        if lines is None:
            out[span] = arrival_ns[span]
        else:
            slope, height, middle = lines
            out[span] = device_ns[span] + height + slope * (device_ns[span] - middle)
        lines = highest_line_below(device_ns[low:end], offset[low:end], -2e-4, 2e-4)
    return out


REFERENCES: dict[str, Estimator] = {
    "raw arrival": raw_arrival,
    "LSL RLS 90 s": lsl_dejitter,
    "Olson 1e-4": olson,
    "hull, switch 60 s": lambda x, y: switching_hull(x, y, 60),
    "hull, switch 10 s": lambda x, y: switching_hull(x, y, 10),
    "window LP 10 s": lambda x, y: window_lp(x, y, 10),
    "window LP 30 s": lambda x, y: window_lp(x, y, 30),
}


def run_reference(estimator: Estimator, simulation: Simulation) -> FloatArray:
    """Return the signed error (us) of a reference that is told the unwrapped ticks and the reset."""
    error_us = np.empty(simulation.capture_ns.size)
    for epoch in (0, 1):
        part = simulation.epoch == epoch
        if not part.any():
            continue
        arrival = simulation.arrival_ns[part]
        device = simulation.device_ns[part]
        estimate = estimator(
            (device - device[0]).astype(np.float64), (arrival - arrival[0]).astype(np.float64)
        )
        estimate = np.minimum(estimate, (arrival - arrival[0]).astype(np.float64))
        truth = (simulation.capture_ns[part] + MIN_LATENCY_NS - arrival[0]).astype(np.float64)
        error_us[part] = (estimate - truth) / 1e3
    return error_us


def oracle_after_reset(shape: Shape, simulation: Simulation, seconds: float = 5.0) -> FloatArray:
    """Return the error (us) after the reset of one who knows skew, drift and the law of latency.

    Least latency so far minus its expectation (scale / samples): the best unbiased estimate under exponential
    latency. What it leaves is the price of not knowing the offset, which no method avoids.
    """
    young = (simulation.epoch == 1) & (simulation.age_s() < seconds)
    latency_us = (simulation.arrival_ns - simulation.capture_ns - MIN_LATENCY_NS)[young] / 1e3
    seen = np.arange(1, latency_us.size + 1)
    oracle: FloatArray = np.minimum.accumulate(latency_us) - shape.jitter_ns / 1e3 / seen
    return oracle
