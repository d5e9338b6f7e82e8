"""Microphone arrays: channels that are dead, swapped in polarity, or not where the geometry says.

Delays between channels come from the phase transform of the cross-correlation (Knapp and Carter, 1976). They
must close around every triangle, be possible for the distance between the microphones, and have a positive
peak: a negative one is a channel with its wires swapped.

Source: spec calibration 1.13.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, permutations

import numpy as np

from sensorium.calibration.geometry import Array
from sensorium.calibration.sensor_models import MicrophoneArray
from sensorium.verdict import Quantity, Status, Verdict

CHECK = "microphones"
SOUND_M_S = 343.0
MIN_PEAK = 0.15
MAX_CLOSURE_SAMPLES = 1.0
MAX_GAIN_DB = 12.0
MIN_CLAPS = 3
# Every order is tried, so more channels than this are too many.
MAX_ORDERED = 6
# The best order must fit this much better than the next (samples, RMS); delays are good to 0.2.
MIN_ORDER_MARGIN = 1.0
MIN_ORDER_RATIO = 1.3


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


def check_claps(
    clips: Sequence[Array],
    rate_hz: float,
    name: str,
    known: MicrophoneArray | None = None,
    sides: Sequence[Array | None] = (),
) -> Verdict:
    """Judge an array from several claps: dead channels, polarity and order, each by what most claps say.

    Order needs to know where the microphones are. Claps from stated sides show it for any number of channels;
    five and more off one line show it by themselves.

    Args:
        clips: (samples, channels) around each clap.
        sides: (3,) unit vector towards each clap in the array's frame, None where nobody said.
    """
    if not clips:
        reason = "no clap was heard: clap five times, from different places"
        return Verdict(CHECK, name, Status.INSUFFICIENT, (), (reason,))
    count = clips[0].shape[1]
    expected = 0 if known is None else len(known.positions_m or known.polarity)
    if expected not in (0, count):
        reason = f"{count} channels, but the calibration knows {expected} microphones"
        return Verdict(CHECK, name, Status.FAILED, (), (reason,))
    signs = np.array(known.polarity if known is not None and known.polarity else (1,) * count)
    positions_m = np.array(known.positions_m) if known is not None and known.positions_m else None
    heard = [check_microphones(clip * signs, rate_hz, name, positions_m) for clip in clips]
    judged = [verdict for verdict in heard if verdict.status is not Status.INSUFFICIENT]
    numbers = [Quantity("claps", float(len(judged)), "1", float(MIN_CLAPS))]
    if len(judged) < MIN_CLAPS:
        reasons = sorted({reason for verdict in heard for reason in verdict.reasons})
        reason = f"{len(judged)} claps that all channels heard, {MIN_CLAPS} are needed"
        return Verdict(CHECK, name, Status.INSUFFICIENT, tuple(numbers), (reason, *reasons[:2]))
    order, gain = (None, 0.0) if positions_m is None else find_order(clips, rate_hz, positions_m, sides)
    faults: dict[str, int] = {}
    for verdict in judged:
        for reason in verdict.reasons:
            # Numbers in a reason differ from clap to clap; what it is about does not.
            about = reason.partition(" by ")[0].partition(" (")[0]
            faults[about] = faults.get(about, 0) + 1
    said = [f"{fault} ({n} of {len(judged)} claps)" for fault, n in faults.items() if 2 * n > len(judged)]
    notes = []
    if order is None:
        notes.append(
            "the order of the channels was not judged: it needs the microphones' positions in the calibration "
            "and claps from a known side (mark one with: sensorium mark 'clap left')"
        )
    elif order != tuple(range(count)):
        swapped = [k for k in range(count) if order[k] != k]
        said.insert(0, f"channels {', '.join(map(str, swapped))} are swapped: read them as {list(order)}")
    numbers.append(Quantity("order_margin", gain, "samples"))
    is_dead = any(verdict.status is Status.FAILED for verdict in judged)
    if said:
        # Every clap is a window of its own.
        certain = is_dead or any("polarity" in text or "swapped" in text for text in said)
        status = Status.FAILED if certain else Status.SUSPECT
        return Verdict(CHECK, name, status, tuple(numbers), (*said, *notes))
    return Verdict(CHECK, name, Status.OK, tuple(numbers), tuple(notes))


def find_order(
    clips: Sequence[Array], rate_hz: float, positions_m: Array, sides: Sequence[Array | None] = ()
) -> tuple[tuple[int, ...] | None, float]:
    """Return at which microphone each channel hangs, and by how many samples RMS the next best order is worse.

    None where no order fits clearly best. A clap from a stated side is taken as far away; it need only be
    nearer to that side than to others. One from nowhere in particular may be as near as it likes: its place has
    three unknowns, so it takes five microphones off one line for anything to be left over.
    """
    count = len(positions_m)
    pairs = list(combinations(range(count), 2))
    if count > MAX_ORDERED or not pairs:
        return None, 0.0
    reach = int(2 * float(np.ptp(positions_m, axis=0).max() + 0.05) / SOUND_M_S * rate_hz) + 4
    heard = [
        (np.array([delay_between(clip[:, a], clip[:, b], reach).samples for a, b in pairs]), side)
        for clip, side in zip(clips, [*sides, *[None] * (len(clips) - len(sides))], strict=True)
        if side is not None or _is_spread(positions_m)
    ]
    if len(heard) < MIN_CLAPS:
        return None, 0.0
    misses: list[tuple[float, tuple[int, ...]]] = []
    for order in permutations(range(count)):
        metres = positions_m[list(order)] * rate_hz / SOUND_M_S
        squares = [
            float(
                np.square(
                    delays - (_far(metres, pairs, side) if side is not None else _near(metres, pairs, delays))
                ).mean()
            )
            for delays, side in heard
        ]
        # One clap from the wrong side, or an echo, must not decide.
        misses.append((float(np.sqrt(np.median(squares))), order))
    misses.sort()
    gain = misses[1][0] - misses[0][0]
    is_clear = gain > MIN_ORDER_MARGIN and misses[1][0] > MIN_ORDER_RATIO * misses[0][0]
    return (misses[0][1] if is_clear else None), gain


def _is_spread(positions_m: Array) -> bool:
    """Return whether delays tell more than where the sound was."""
    spread = np.linalg.svd(positions_m - positions_m.mean(axis=0), compute_uv=False)
    return bool(len(positions_m) >= 5 and spread[1] > 0.02)


def _far(places: Array, pairs: Sequence[tuple[int, int]], side: Array) -> Array:
    """Return the delays (samples) of a sound from far away; ``places`` in samples of travel."""
    return np.array([(places[a] - places[b]) @ side for a, b in pairs])


def _near(places: Array, pairs: Sequence[tuple[int, int]], delays: Array) -> Array:
    """Return the delays of the place that explains measured ones best (Levenberg-Marquardt)."""
    first, second = np.array(pairs).T
    middle = places.mean(axis=0)
    arms = places[first] - places[second]
    towards = np.linalg.lstsq(arms, delays, rcond=1e-3)[0]
    size = float(np.ptp(places, axis=0).max())
    source = middle + 8 * size * towards / max(float(np.linalg.norm(towards)), 1e-9)
    damping, told, cost = 1e-2, delays, np.inf
    for _ in range(15):
        away = source - places
        distance = np.maximum(np.linalg.norm(away, axis=1), 1e-9)
        now = distance[second] - distance[first]
        left = delays - now
        if float(left @ left) > cost:
            damping *= 10
        else:
            cost, told, kept = float(left @ left), now, source
            damping /= 5
            units = away / distance[:, None]
            jacobian = units[second] - units[first]
            normal, pull = jacobian.T @ jacobian, jacobian.T @ left
        step = np.linalg.solve(normal + damping * np.diag(np.diag(normal) + 1e-9), pull)
        source = kept + step * min(1.0, 4 * size / max(float(np.linalg.norm(step)), 1e-9))
    return np.asarray(told, np.float64)


def solve_polarity(clips: Sequence[Array]) -> tuple[int, ...] | None:
    """Return +1 or -1 for each channel against channel 0, by the majority of claps; None if they disagree."""
    count = clips[0].shape[1] if clips else 0
    votes = np.array(
        [
            [np.sign(delay_between(clip[:, 0], clip[:, k], 200).peak) if k else 1.0 for k in range(count)]
            for clip in clips
        ]
    ).reshape(-1, count)
    share = votes.mean(axis=0)
    if not len(votes) or (np.abs(share) < 0.6).any():
        return None
    return tuple(int(value) for value in np.sign(share))
