"""Devices that claim to keep a reference, and truly do or do not: how the claim is judged, second by second.

Rates 1 to 1000 Hz, latencies of 0.3 to 40 ms, on quiet and on busy hosts; drawn by the seed. Development used seeds
below 200.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from clock_samples import FloatArray

from sensorium.drivers.frame import ClockKind, DeviceClock, Encoding, Frame, Latency, Modality, StreamInfo
from sensorium.sync.clocks.claims import ClaimWatch, Reference
from sensorium.sync.clocks.model import ClockModel, Uncertainty
from sensorium.sync.clocks.tracker import StreamTracker
from sensorium.verdict import Status

RATES_HZ = (1.0, 3.0, 10.0, 30.0, 50.0, 100.0, 200.0, 1000.0)
JITTERS_MS = (0.3, 1.5, 5.0, 20.0, 40.0)
LAWS = ("exponential", "gamma 3", "uniform", "busy host")
RUNS_PER_SEED = 50
SECONDS = 60.0
FREE_PPM = 5.0
FREE_SECONDS = 240.0
LEAST_NS = 1_000_000
UTC_MINUS_HOST_NS = 1_700_000_000 * 10**9
SECOND_NS = 1_000_000_000


@dataclass(frozen=True)
class Claim:
    """One run: how the device is, and what was found. ``told_ppm``: how well its rate was known at the end."""

    rate_hz: float
    jitter_ms: float
    law: str
    ppm: float
    worst: Status
    failed_after_s: float | None
    told_ppm: float
    reasons: tuple[str, ...]


def latencies(law: str, jitter_ns: float, time_s: FloatArray, random: np.random.Generator) -> FloatArray:
    """Return (n,) latencies above the least, of this mean; busy: bursts, and 40 ms stalls every few seconds."""
    if law == "gamma 3":
        return random.gamma(3.0, jitter_ns / 3, time_s.size)
    if law == "uniform":
        return random.uniform(0, 2 * jitter_ns, time_s.size)
    latency_ns = random.exponential(jitter_ns, time_s.size)
    if law == "busy host":
        for begin_s in np.cumsum(random.exponential(2.0, int(time_s[-1]))):
            busy = (time_s >= begin_s) & (time_s < begin_s + random.uniform(0.1, 0.6))
            latency_ns[busy] += random.uniform(0, 15e6, int(busy.sum()))
        for begin_s in np.cumsum(random.exponential(5.0, int(time_s[-1] / 4))):
            stalled = (time_s >= begin_s) & (time_s < begin_s + 0.04)
            latency_ns[stalled] += 40e6
    return np.asarray(latency_ns, np.float64)


def run(
    rate_hz: float,
    jitter_ms: float,
    law: str,
    random: np.random.Generator,
    ppm: float = 0.0,
    seconds: float = SECONDS,
) -> Claim:
    """Judge a device that is ``ppm`` faster than it claims, once a second."""
    time_s = np.arange(0.0, seconds, 1 / rate_hz) + random.uniform(0, 1 / rate_hz)
    capture_ns = 4 * 10**12 + np.rint(time_s * 1e9).astype(np.int64)
    ticks = (capture_ns + UTC_MINUS_HOST_NS + np.rint(time_s * ppm * 1e3).astype(np.int64)) // 1000
    latency_ns = LEAST_NS + np.rint(latencies(law, jitter_ms * 1e6, time_s, random)).astype(np.int64)
    arrival_ns = np.maximum.accumulate(capture_ns + latency_ns)
    clock = DeviceClock(ClockKind.PTP, 1000)
    latency = Latency(LEAST_NS, 100_000, SECOND_NS)
    info = StreamInfo("lidar", Modality.LIDAR, Encoding.JPEG, rate_hz, "lidar", clock, latency)
    tracker, watch = StreamTracker(info), ClaimWatch(info, "PTP")
    known = Uncertainty(500.0, 500.0, 0.0)
    model = ClockModel(0, "ptp", 4 * 10**12 + UTC_MINUS_HOST_NS, 4 * 10**12, 1.0, 0.0, known)
    reference = Reference("ptp", model)
    look_ns, failed_after_s = int(arrival_ns[0]) + SECOND_NS, None
    for at in range(ticks.size):
        tracker.update(Frame("lidar", at, 1, ticks[at : at + 1], arrival_ns[at : at + 1], b""))
        if int(arrival_ns[at]) >= look_ns:
            look_ns += SECOND_NS * max(1, -((look_ns - int(arrival_ns[at])) // SECOND_NS))
            watch.look(tracker, reference)
            if failed_after_s is None and watch.verdict.status is Status.FAILED:
                failed_after_s = float(time_s[at])
                break
    limits = [one.threshold for one in watch.verdict.quantities if one.name == "skew"]
    told_ppm = limits[0] - 1.0 if limits and limits[0] is not None else float("inf")
    reasons = watch.worst.reasons
    return Claim(rate_hz, jitter_ms, law, ppm, watch.worst.status, failed_after_s, told_ppm, reasons)


def runs(seed: int, ppm: float = 0.0, count: int = RUNS_PER_SEED, seconds: float = SECONDS) -> list[Claim]:
    """Return claims of devices whose rate, latency and host are drawn."""
    found = []
    for number in range(count):
        random = np.random.default_rng([seed, 41, number, 1000 + round(ppm)])
        rate_hz, jitter_ms = float(random.choice(RATES_HZ)), float(random.choice(JITTERS_MS))
        law = str(random.choice(LAWS))
        found.append(run(rate_hz, jitter_ms, law, random, ppm, seconds))
    return found


def claim_results(seeds: Sequence[int]) -> dict[str, Any]:
    """Return how many truthful devices were called wrong, and which free-running ones were found, and when."""
    truthful = [one for seed in seeds for one in runs(seed)]
    free = [
        one
        for seed in seeds
        for sign in (-1, 1)
        for one in runs(seed, sign * FREE_PPM, max(1, RUNS_PER_SEED // 10), FREE_SECONDS)
    ]
    found_s = [one.failed_after_s for one in free if one.failed_after_s is not None]
    return {
        "truthful_runs": len(truthful),
        "false": [repr(one) for one in truthful if one.worst is not Status.OK],
        "free_runs": len(free),
        "found": len(found_s),
        "found_after_s": [float(np.percentile(found_s, q)) for q in (10, 50, 90)] if found_s else [],
        "missed_though_told": sum(one.failed_after_s is None and one.told_ppm < 3.0 for one in free),
        "missed_and_said": sum(one.failed_after_s is None and one.told_ppm >= 3.0 for one in free),
    }


def print_results(result: dict[str, Any]) -> None:
    print(
        f"\nclaims: {len(result['false'])} of {result['truthful_runs']} truthful devices called wrong;"
        f" of {result['free_runs']} that run {FREE_PPM:g} ppm off, {result['found']} found within"
        f" {FREE_SECONDS:g} s (10, 50, 90 %: {result['found_after_s']} s), {result['missed_and_said']} where the"
        f" verdict says that the rate is not known well enough, {result['missed_though_told']} missed"
    )
    for one in result["false"]:
        print("false:", one)
