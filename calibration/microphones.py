"""Microphone arrays: channels that are dead, swapped in polarity, or not where the geometry says.

Delays between channels come from the phase transform of the cross-correlation (Knapp and Carter, 1976). They
must close around every triangle, be possible for the distance between the microphones, and have a positive
peak: a negative one is a channel with its wires swapped.

Source: spec calibration 1.13.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from sensorium.calibration.geometry import Array
from sensorium.verdict import Quantity, Status, Verdict

CHECK = "microphones"
SOUND_M_S = 343.0
MIN_PEAK = 0.15
MAX_CLOSURE_SAMPLES = 1.0
MAX_GAIN_DB = 12.0


@dataclass(frozen=True, slots=True)
class Delay:
    """By how many samples the second channel is later, and the height of the peak (-1..1; negative: inverted)."""

    samples: float
    peak: float


def delay_between(first: Array, second: Array, max_samples: int) -> Delay:
    """Return delay and polarity between two channels by GCC-PHAT, refined by a parabola."""
    size = 1 << int(np.ceil(np.log2(len(first) + len(second))))
    cross = np.fft.rfft(second, size) * np.conj(np.fft.rfft(first, size))
    cross /= np.maximum(np.abs(cross), 1e-3 * float(np.abs(cross).max()) + 1e-30)
    correlation = np.fft.irfft(cross, size)
    lags = np.concatenate([correlation[-max_samples:], correlation[: max_samples + 1]])
    best = int(np.argmax(np.abs(lags)))
    sign = 1.0 if lags[best] > 0 else -1.0
    shift = 0.0
    if 0 < best < len(lags) - 1:
        left, centre, right = sign * lags[best - 1 : best + 2]
        bend = left - 2 * centre + right
        shift = float(0.5 * (left - right) / bend) if bend < 0 else 0.0
    return Delay(best - max_samples + shift, float(lags[best]))


def check_microphones(
    channels: Array,
    rate_hz: float,
    name: str,
    positions_m: Array | None = None,
    max_distance_m: float = 0.5,
) -> Verdict:
    """Judge the channels of one recording with a sound in it (a clap, speech).

    Args:
        channels: (samples, channels).
        positions_m: (channels, 3) where the microphones are, if known; bounds each pair's delay.
        max_distance_m: Bound for all pairs when positions are not known.
    """
    count = channels.shape[1]
    level = channels.std(axis=0)
    loud = float(np.median(level))
    gains_db = 20 * np.log10(np.maximum(level, 1e-12) / max(loud, 1e-12))
    numbers = [Quantity("gain_spread", float(np.ptp(gains_db)), "dB", MAX_GAIN_DB)]
    if loud == 0.0:
        return Verdict(CHECK, name, Status.INSUFFICIENT, tuple(numbers), ("silence on most channels",))
    dead = [f"channel {k} is dead ({gains_db[k]:.0f} dB)" for k in range(count) if gains_db[k] < -40]
    if dead:
        return Verdict(CHECK, name, Status.FAILED, tuple(numbers), tuple(dead))
    delays: dict[tuple[int, int], Delay] = {}
    faults: list[str] = []
    for a, b in combinations(range(count), 2):
        distance_m = max_distance_m
        if positions_m is not None:
            distance_m = float(np.linalg.norm(positions_m[a] - positions_m[b]))
        limit = distance_m / SOUND_M_S * rate_hz
        # Search twice as far as physics allows, so that an impossible delay can be seen as one.
        delay = delay_between(channels[:, a], channels[:, b], max(int(2 * limit) + 2, 4))
        delays[a, b] = delay
        if abs(delay.peak) >= MIN_PEAK and abs(delay.samples) > limit + 1:
            faults.append(
                f"channels {a} and {b} differ by {delay.samples:+.1f} samples, {distance_m:.2f} m allow {limit:.1f}"
            )
    clear = [delay for delay in delays.values() if abs(delay.peak) >= MIN_PEAK]
    if len(clear) < max(count - 1, 1):
        reason = "no sound that the channels share: noise only, or silence"
        return Verdict(CHECK, name, Status.INSUFFICIENT, tuple(numbers), (reason,))
    faults = _inverted(delays, count) + faults
    closure = _closure(delays, count)
    numbers.append(Quantity("closure", closure, "samples", MAX_CLOSURE_SAMPLES))
    if closure > MAX_CLOSURE_SAMPLES:
        faults.append(f"delays do not close around a triangle by {closure:.1f} samples")
    if float(np.ptp(gains_db)) > MAX_GAIN_DB:
        faults.append(f"levels differ by {float(np.ptp(gains_db)):.0f} dB")
    if faults:
        return Verdict(CHECK, name, Status.SUSPECT, tuple(numbers), tuple(faults))
    return Verdict(CHECK, name, Status.OK, tuple(numbers))


def _inverted(delays: dict[tuple[int, int], Delay], count: int) -> list[str]:
    """Name the channels whose polarity differs from the majority; of two channels neither can be blamed."""
    negative = {pair for pair, delay in delays.items() if delay.peak < -MIN_PEAK}
    if not negative:
        return []
    against = [sum(k in pair for pair in negative) for k in range(count)]
    blamed = [k for k in range(count) if against[k] > (count - 1) / 2]
    if count == 2 or not blamed:
        return ["two channels have opposite polarity: swap the wires of one of them"]
    return [f"channel {k} has opposite polarity: swap its wires" for k in blamed]


def _closure(delays: dict[tuple[int, int], Delay], count: int) -> float:
    gaps = [
        abs(delays[a, b].samples + delays[b, c].samples - delays[a, c].samples)
        for a, b, c in combinations(range(count), 3)
    ]
    return max(gaps, default=0.0)


def channel_order(arrivals: Sequence[float], positions_m: Array, source_m: Array) -> tuple[int, ...]:
    """Return which microphone each channel most likely is, from the order in which a known clap reaches them.

    Args:
        arrivals: When each channel hears the clap (any unit).
        source_m: (3,) where the clap was.
    """
    distance_m = np.linalg.norm(positions_m - source_m, axis=1)
    order = np.empty(len(arrivals), np.intp)
    order[np.argsort(arrivals, kind="stable")] = np.argsort(distance_m, kind="stable")
    return tuple(int(index) for index in order)
