"""Kinds of device clocks and of their ways to the host, each with parameters of its own, drawn by the seed.

Nothing here is taken from the estimator, nor from the simulated shapes of clock_shapes.py.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from clock_samples import FloatArray, Generator, IntArray, Samples

START_NS = 3 * 10**12
LEAST_NS = 700_000
SHARED_CLOCKS = Path(__file__).resolve().parents[3] / "shared" / "data" / "clock"


def crystal(
    time_s: FloatArray, random: np.random.Generator, swing_ppm: float | None = None, period_s: float = 0.0
) -> FloatArray:
    """Return (n,) device nanoseconds at (n,) true seconds.

    Skew within 80 ppm; a warm-up of up to 10 ppm; a thermal swing, by default of 1 to 6 ppm in 200 to 700 s, which is
    no pure sine; a little of a random walk of the rate.
    """
    tau_s, warm_ppm = random.uniform(50, 200), random.uniform(-10, 10)
    if swing_ppm is None:
        swing_ppm, period_s = random.uniform(1, 6), random.uniform(200, 700)
    gained_us = random.uniform(-80, 80) * time_s + warm_ppm * tau_s * (1 - np.exp(-time_s / tau_s))
    for share, times in ((0.9, 1), (0.1, 2)):
        turn = 2 * np.pi * times / period_s
        phase = random.uniform(0, 2 * np.pi)
        gained_us += share * swing_ppm / turn * (np.cos(phase) - np.cos(turn * time_s + phase))
    grid_s = np.arange(0.0, time_s[-1] + 2, 1.0)
    rate_ppm = np.cumsum(random.normal(0, 0.002, grid_s.size))
    gained_us += np.interp(time_s, grid_s, np.concatenate(([0.0], np.cumsum(rate_ppm[:-1]))))
    return np.asarray(time_s * 1e9 + gained_us * 1e3, np.float64)


def times(rate_hz: float, duration_s: float, random: np.random.Generator) -> FloatArray:
    return np.arange(0.0, duration_s, 1 / rate_hz) + random.uniform(0, 1 / rate_hz)


def exponential(count: int, random: np.random.Generator) -> FloatArray:
    return random.exponential(1.5e6, count)


def deliver(
    name: str,
    time_s: FloatArray,
    device_ns: FloatArray,
    latency_ns: FloatArray,
    rate_hz: float,
    tick_ns: float = 1000.0,
    epoch: IntArray | None = None,
) -> Samples:
    """Return samples that come first in, first out, with a constant least latency that is declared."""
    capture_ns = START_NS + np.rint(time_s * 1e9).astype(np.int64)
    arrival_ns = np.maximum.accumulate(capture_ns + LEAST_NS + np.rint(latency_ns).astype(np.int64))
    ticks = np.floor((device_ns + 123_456_789_000) / tick_ns).astype(np.int64)
    return Samples(name, capture_ns, ticks, arrival_ns, tick_ns, None, rate_hz, LEAST_NS, 10**9, epoch)


def step(rate_hz: float, sizes_ms: tuple[float, ...], every_s: float, duration_s: float) -> Generator:
    """The device's clock is set anew by a little, as NTP on a camera does."""

    def generate(seed: int) -> list[Samples]:
        random = np.random.default_rng([seed, 1])
        time_s = times(rate_hz, duration_s, random)
        epoch = np.floor(time_s / every_s).astype(np.int64)
        jumps_ms = np.concatenate(([0.0], np.cumsum(np.resize(sizes_ms, int(epoch[-1])))))
        device_ns = crystal(time_s, random) + 1e6 * jumps_ms[epoch]
        latency_ns = exponential(time_s.size, random)
        return [deliver("step", time_s, device_ns, latency_ns, rate_hz, epoch=epoch)]

    return generate


def stall(length_s: float, rate_hz: float = 30.0, duration_s: float = 300.0) -> Generator:
    """The link holds everything back once a minute; the device goes on, what was held comes in one burst."""

    def generate(seed: int) -> list[Samples]:
        random = np.random.default_rng([seed, 2])
        time_s = times(rate_hz, duration_s, random)
        latency_s = exponential(time_s.size, random) * 1e-9
        for begin_s in np.arange(20.0, duration_s - 10, 60.0) + random.uniform(0, 20):
            arrives_s = time_s + latency_s
            held = (arrives_s > begin_s) & (arrives_s < begin_s + length_s)
            order = np.arange(int(held.sum())) * 50e-6
            latency_s[held] = begin_s + length_s + order - time_s[held]
        return [deliver("stall", time_s, crystal(time_s, random), latency_s * 1e9, rate_hz)]

    return generate


Law = Callable[[FloatArray, np.random.Generator], FloatArray]


def gamma(order: float) -> Law:
    return lambda time_s, random: random.gamma(order, random.uniform(0.3e6, 1.2e6), time_s.size)


def microframes(time_s: FloatArray, random: np.random.Generator) -> FloatArray:
    """The host asks every 125 us on its own clock, and then needs a little."""
    phase_s, ask_s = random.uniform(0, 125e-6), 125e-6
    wait_s = np.ceil((time_s - phase_s) / ask_s) * ask_s + phase_s - time_s
    return np.asarray(wait_s * 1e9 + random.exponential(random.uniform(5e3, 60e3), time_s.size), np.float64)


def polled(time_s: FloatArray, random: np.random.Generator) -> FloatArray:
    """Whole milliseconds of polling, whose phase the device's own jitter spreads, and queueing."""
    period_ns = random.choice([0.25e6, 0.5e6, 1e6])
    return random.uniform(0, period_ns, time_s.size) + random.exponential(0.6e6, time_s.size)


def uniform(time_s: FloatArray, random: np.random.Generator) -> FloatArray:
    return random.uniform(0, random.uniform(0.5e6, 4e6), time_s.size)


def rarely_quick(time_s: FloatArray, random: np.random.Generator) -> FloatArray:
    """Few samples take a way that is quicker by milliseconds than that of all others."""
    quick, gap_ns = random.uniform(0.02, 0.05), random.uniform(2e6, 8e6)
    return random.exponential(1.5e6, time_s.size) + np.where(random.random(time_s.size) < quick, 0.0, gap_ns)


def start(law: Law, rate_hz: float, episodes: int = 12, duration_s: float = 60.0) -> Generator:
    """Short episodes: all of them is start."""

    def generate(seed: int) -> list[Samples]:
        runs = []
        for episode in range(episodes):
            random = np.random.default_rng([seed, 3, episode])
            time_s = times(rate_hz, duration_s, random)
            device_ns = crystal(time_s, random)
            runs.append(deliver("start", time_s, device_ns, law(time_s, random), rate_hz))
        return runs

    return generate


def ticks(step_ms: float, rate_hz: float, declared: bool, duration_s: float = 300.0) -> Generator:
    """Stamps cut off to whole steps; not declared, they are microseconds that happen to be multiples."""

    def generate(seed: int) -> list[Samples]:
        random = np.random.default_rng([seed, 4])
        time_s = times(rate_hz, duration_s, random)
        device_ns = (
            np.floor((crystal(time_s, random) + random.uniform(0, 1e9)) / (step_ms * 1e6)) * step_ms * 1e6
        )
        tick_ns = step_ms * 1e6 if declared else 1000.0
        device_ns -= 123_456_789_000 % tick_ns
        return [deliver("ticks", time_s, device_ns, exponential(time_s.size, random), rate_hz, tick_ns)]

    return generate


def swing(swing_ppm: float, period_s: float, rate_hz: float = 30.0) -> Generator:
    """A crystal in warmer and colder air, under a hard exponential floor."""
    duration_s = min(max(600.0, 3 * period_s), 2400.0)

    def generate(seed: int) -> list[Samples]:
        random = np.random.default_rng([seed, 5])
        time_s = times(rate_hz, duration_s, random)
        device_ns = crystal(time_s, random, swing_ppm, period_s)
        return [deliver("swing", time_s, device_ns, exponential(time_s.size, random), rate_hz)]

    return generate


def duty(on_s: float, off_s: float, rate_hz: float, duration_s: float = 900.0) -> Generator:
    """The device sends for a while and saves power for a while; its clock goes on."""

    def generate(seed: int) -> list[Samples]:
        random = np.random.default_rng([seed, 6])
        time_s = times(rate_hz, duration_s, random)
        device_ns = crystal(time_s, random)
        latency_ns = exponential(time_s.size, random)
        on = time_s % (on_s + off_s) < on_s
        return [deliver("duty", time_s[on], device_ns[on], latency_ns[on], rate_hz)]

    return generate


def slow(rate_hz: float, law: Law | None = None, duration_s: float = 3600.0) -> Generator:
    def generate(seed: int) -> list[Samples]:
        random = np.random.default_rng([seed, 7])
        time_s = times(rate_hz, duration_s, random)
        device_ns = crystal(time_s, random)
        latency_ns = exponential(time_s.size, random) if law is None else law(time_s, random)
        return [deliver("slow", time_s, device_ns, latency_ns, rate_hz)]

    return generate


def exchanges(time_s: FloatArray, random: np.random.Generator) -> FloatArray:
    """One way of PTP exchanges over a loaded network: a hard floor under a body, and a long tail."""
    body = random.exponential(0.8e6, time_s.size)
    return body + random.exponential(6e6, time_s.size) * (random.uniform(0, 1, time_s.size) < 0.1)


def fast(rate_hz: float, block: int, jitter_ns: float, duration_s: float = 60.0) -> Generator:
    """Blocks of samples with one arrival each."""

    def generate(seed: int) -> list[Samples]:
        random = np.random.default_rng([seed, 8])
        time_s = times(rate_hz, duration_s, random)
        time_s = time_s[: time_s.size // block * block]
        device_ns = crystal(time_s, random)
        last = np.arange(time_s.size) // block * block + block - 1
        latency_ns = random.exponential(jitter_ns, time_s.size // block).repeat(block)
        waits_ns = (time_s[last] - time_s) * 1e9
        found = deliver("fast", time_s, device_ns, latency_ns + waits_ns, rate_hz)
        values = {**vars(found), "block": block}
        return [Samples(**values)]

    return generate


def asleep(sleep_s: float, rate_hz: float = 30.0) -> Generator:
    """The host sleeps and its clock goes on; nothing is kept for it. Awake again, the air is another."""

    def generate(seed: int) -> list[Samples]:
        random = np.random.default_rng([seed, 9])
        pieces, at_s = [], 0.0
        for awake_s in (120.0, 60.0, 60.0, 60.0):
            pieces.append(at_s + times(rate_hz, awake_s, random))
            at_s += awake_s + sleep_s * random.uniform(0.7, 1.3)
        time_s = np.concatenate(pieces)
        device_ns = crystal(time_s, random)
        return [deliver("asleep", time_s, device_ns, exponential(time_s.size, random), rate_hz)]

    return generate


def ptp_netns(seed: int) -> list[Samples]:
    """One way of real exchanges of ptp4l on one clock: the master's offset plus the path's delay, 8 a second."""
    rows = np.loadtxt(SHARED_CLOCKS / "ptp_netns" / "offsets.txt")
    latency_ns = np.maximum(np.rint(rows.sum(axis=1)).astype(np.int64), 0)
    capture_ns = START_NS + np.arange(latency_ns.size) * 125_000_000
    arrival_ns = capture_ns + latency_ns
    return [Samples("ptp", capture_ns, capture_ns - 10**9, arrival_ns, 1.0, None, 8.0, int(latency_ns.min()))]


STEPS_MS = {
    "half": (0.5, -0.5),
    "minus3": (-3.0,),
    "plus3": (3.0,),
    "both3": (3.0, -3.0),
    "minus30": (-30.0,),
}
STEPS_MS["plus50"] = (50.0,)
SWINGS = ((0.5, 300), (5, 60), (5, 600), (15, 300), (20, 300), (20, 1800), (30, 60), (30, 600), (30, 1800))
LAWS: dict[str, Law] = {"gamma2": gamma(2), "gamma3": gamma(3), "polled": polled, "uniform": uniform}

FAMILIES: dict[str, Generator] = {
    **{f"step_30hz_{name}": step(30, sizes, 600, 1500) for name, sizes in STEPS_MS.items()},
    **{f"step_200hz_{name}": step(200, STEPS_MS[name], 200, 450) for name in ("half", "minus3", "plus3")},
    **{f"stall_{length_s}s": stall(length_s) for length_s in (1.2, 1.6, 5.0)},
    **{f"start_{name}": start(law, 30) for name, law in LAWS.items()},
    "start_rarely_quick_30hz": start(rarely_quick, 30),
    "rarely_quick_30hz": start(rarely_quick, 30, episodes=1, duration_s=600.0),
    "rarely_quick_200hz": start(rarely_quick, 200, episodes=1, duration_s=200.0),
    "start_exp": start(lambda time_s, random: exponential(time_s.size, random), 30),
    "start_microframes_30hz": start(microframes, 30),
    "start_microframes_200hz": start(microframes, 200, episodes=4),
    **{
        f"ticks_{step_ms}ms_{rate_hz}hz_{'declared' if declared else 'undeclared'}": ticks(
            step_ms, rate_hz, declared
        )
        for step_ms, rate_hz in ((1, 30), (1, 200), (10, 100), (10, 30))
        for declared in (True, False)
    },
    **{f"swing_{ppm}ppm_{period_s}s": swing(ppm, period_s) for ppm, period_s in SWINGS},
    "duty_10_20s_30hz": duty(10, 20, 30),
    "duty_10_20s_200hz": duty(10, 20, 200),
    "duty_3_57s_30hz": duty(3, 57, 30),
    "slow_0.2hz": slow(0.2, duration_s=7200),
    "slow_1hz": slow(1),
    "slow_3hz": slow(3),
    "slow_1hz_exchanges": slow(1, exchanges),
    "fast_1khz": fast(1000, 10, 0.5e6),
    "fast_8khz": fast(8000, 80, 0.3e6),
    **{f"asleep_{sleep_s}s": asleep(sleep_s) for sleep_s in (60, 600, 3600)},
    **({"ptp_netns": ptp_netns} if SHARED_CLOCKS.is_dir() else {}),
}
