"""When a clap begins in audio, in a force signal and in images.

Each finder returns onsets in samples (fractions count) with one sigma. None of them knows of clocks: stamps,
the travel of sound and the delay of filters are the caller's (`sensorium.sync.content.offset`).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sensorium.errors import ClockError

Floats = NDArray[np.float64]

_QUIET_S = 0.06
"""Audio before a clap from which its background is learned: three periods of mains hum."""
_AR_ORDER = 24
_RISE_S = 0.2e-3
_RISE_DEGREE = 3
"""The first 0.2 ms of a sound are a polynomial of this degree that begins at 0. Of degrees 2 to 6 and 0.1 to 0.35 ms
the one with the smallest p99 on claps of 1 to 5.5 kHz at 30 dB (12 us)."""
_RISE_ERROR = 0.2
"""What the polynomial is off by (samples, one sigma, on the same claps)."""
_APART_S = 0.2
_LOUD = 6.0
"""Power of 1 ms over the median power, for a clap: 8 dB; white noise reaches 2.3 once in a million blocks."""
_FORCE_SIGMAS = 8.0
_PULSE_S = (1.5e-3, 25e-3)
"""Lengths of a knock that are tried."""


@dataclass(frozen=True, slots=True)
class Onset:
    """The beginning of an event.

    Attributes:
        sample: Position in samples from the first one; fractions count.
        sigma: One standard deviation, samples.
        strength: Peak over the noise's standard deviation.
    """

    sample: float
    sigma: float
    strength: float


def audio_onsets(wave: Floats, rate_hz: float) -> list[Onset]:
    """Return the onsets of claps in (n,) samples of one microphone; none in silence or steady noise.

    The background before each clap (tones, hum, coloured noise) is predicted by an autoregressive model and
    taken out; the onset is where a smooth rise from zero explains best what remains, to a fraction of a sample.
    """
    found = []
    for start in _loud_starts(wave, rate_hz):
        onset = _audio_onset(wave, rate_hz, start)
        if onset is not None:
            found.append(onset)
    return found


def force_onsets(force: Floats, rate_hz: float) -> list[Onset]:
    """Return the onsets of knocks in (n,) samples of one axis; none where nothing rises above the noise.

    Fits a half-sine of unknown height, length and onset on a baseline with a slope (least squares over nested
    grids, so that the kinks of a sampled pulse are no local minima).
    """
    steps = np.diff(force)
    if len(steps) < 50:
        return []
    noise = max(1.4826 * float(np.median(np.abs(steps - np.median(steps)))) / np.sqrt(2), 1e-12)
    apart = max(int(_APART_S * rate_hz), 1)
    reach = max(int(_PULSE_S[1] * rate_hz), 8)
    found = []
    index = 0
    while index < len(force):
        # The baseline is the median of the stretch before: motion bends it slowly.
        before = force[max(index - 4 * reach, 0) : max(index, 1)]
        stretch = force[index : index + reach]
        if not len(stretch):
            break
        level = np.median(before) if len(before) >= 8 else np.median(force[: 4 * reach])
        over = np.flatnonzero(np.abs(stretch - level) > _FORCE_SIGMAS * noise)
        slope_noise = 1.4826 * float(np.median(np.abs(before - level))) if len(before) >= 8 else noise
        over = over[np.abs(stretch[over] - level) > _FORCE_SIGMAS * max(noise, slope_noise)]
        if not len(over):
            index += reach // 2
            continue
        crossing = index + int(over[0])
        onset = _pulse_onset(force, rate_hz, crossing, noise)
        if onset is not None:
            found.append(onset)
        index = crossing + apart
    return found


def flash_onset(
    exposure_start_ns: Floats, exposure_ns: float, brightness: Floats
) -> tuple[float, float] | None:
    """Return (time, half width) in ns of the instant at which a lamp went on, or None without a clear step.

    The lamp went on after the end of the last dark exposure and before the end of the first lit one. A first
    lit frame darker than the next was lit for a part of its exposure, which narrows the span.

    Args:
        exposure_start_ns: (n,) starts of exposure of the rows that show the lamp.
        brightness: (n,) mean grey value of the lamp's image, linear in light.
    """
    if not len(exposure_start_ns) == len(brightness) >= 4:
        raise ClockError(f"flash: {len(brightness)} brightnesses for {len(exposure_start_ns)} exposures")
    steps = np.diff(brightness)
    spread = 1.4826 * float(np.median(np.abs(steps - np.median(steps))))
    first = int(np.argmax(steps)) + 1
    # Of the last few only: a moving camera brightens and darkens the scene around the lamp.
    dark = float(np.median(brightness[max(first - 2, 0) : first]))
    full = float(brightness[first : first + 3].max())
    if full - dark <= max(6 * spread, 1e-9):
        return None
    if first >= 2 and brightness[first - 1] - brightness[first - 2] > max(0.1 * (full - dark), 3 * spread):
        first -= 1
        dark = float(np.median(brightness[max(first - 2, 0) : first]))
    end_ns = float(exposure_start_ns[first] + exposure_ns)
    lit = float(np.clip((brightness[first] - dark) / (full - dark), 0.0, 1.0))
    if lit < 0.9:
        error_ns = exposure_ns * max(2 * spread / (full - dark), 0.05)
        return end_ns - lit * exposure_ns, error_ns
    low_ns = float(exposure_start_ns[first - 1] + exposure_ns)
    high_ns = float(exposure_start_ns[first] + 0.1 * exposure_ns)
    return 0.5 * (low_ns + high_ns), 0.5 * (high_ns - low_ns)


def _loud_starts(wave: Floats, rate_hz: float) -> list[int]:
    """Return where the power of a millisecond first rises far above the typical one."""
    block = max(int(rate_hz * 1e-3), 1)
    # Differences weigh high frequencies: a clap has them, hum has not.
    sharp = np.diff(wave)
    count = len(sharp) // block
    if count < 50:
        return []
    power = (sharp[: count * block].reshape(count, block) ** 2).mean(axis=1)
    loud = np.flatnonzero(power > _LOUD * max(float(np.median(power)), 1e-30))
    starts: list[int] = []
    for index in loud:
        start = int(index) * block
        if not starts or start - starts[-1] > _APART_S * rate_hz:
            starts.append(start)
    return starts


def _audio_onset(wave: Floats, rate_hz: float, start: int) -> Onset | None:
    quiet = int(_QUIET_S * rate_hz)
    block = max(int(rate_hz * 1e-3), 1)
    begin = start - 2 * block - quiet
    if begin < 0 or start + 3 * block > len(wave):
        return None
    past = wave[begin : start - 2 * block]
    kernel = _prediction_error_filter(past)
    noise = float(np.std(np.convolve(past, kernel, "valid")))
    if noise <= 0:
        return None
    lead = len(kernel) - 1
    left = start - 2 * block
    surprise = np.convolve(wave[left - lead : start + 3 * block], kernel, "valid") / noise
    over = np.flatnonzero(np.abs(surprise) > max(5.0, 0.1 * float(np.abs(surprise).max())))
    if not len(over):
        return None
    first = int(over[0])
    rise = max(int(_RISE_S * rate_hz), _RISE_DEGREE + 6)
    low, high = max(first - rise - 8, 0), min(first + rise // 2 + 4, len(surprise))
    best, chi2 = _best_rise(surprise[low:high], kernel, first - low)
    curvature = (chi2[0] - 2 * chi2[1] + chi2[2]) / 0.25**2
    sigma = float(np.clip(np.sqrt(2 / curvature) if curvature > 0 else 1.0, 0.02, 1.0))
    sigma *= max(1.0, float(np.sqrt(chi2[1] / max(high - low - _RISE_DEGREE - 1, 1))))
    sigma = float(np.hypot(sigma, _RISE_ERROR))
    return Onset(left + low + best, sigma, float(np.abs(surprise).max()))


def _best_rise(surprise: Floats, kernel: Floats, first: int) -> tuple[float, tuple[float, float, float]]:
    """Return the onset (samples) whose rise leaves least, and the misfit there and 0.25 samples either side."""
    sample = np.arange(len(surprise), dtype=np.float64)

    def misfit(onset: float) -> float:
        since = np.maximum(sample - onset, 0.0) / len(surprise)
        basis = since[:, None] ** np.arange(1, _RISE_DEGREE + 1)
        # The rise passes the same filter as the sound did.
        heard = np.stack([np.convolve(column, kernel)[: len(surprise)] for column in basis.T], axis=1)
        heard /= np.maximum(np.abs(heard).max(axis=0), 1e-30)
        weights, _, _, _ = np.linalg.lstsq(heard, surprise, rcond=None)
        rest = surprise - heard @ weights
        return float(rest @ rest)

    grid = np.arange(max(first - 12.0, 0.0), min(first + 2.0, len(surprise) - _RISE_DEGREE - 2.0), 0.5)
    best = float(grid[int(np.argmin([misfit(onset) for onset in grid]))])
    for step in (0.1, 0.02):
        fine = best + step * np.arange(-5, 6)
        best = float(fine[int(np.argmin([misfit(onset) for onset in fine]))])
    return best, (misfit(best - 0.25), misfit(best), misfit(best + 0.25))


def _prediction_error_filter(past: Floats) -> Floats:
    """Return the (order + 1,) filter that leaves white noise of a steady background (covariance method)."""
    rows = np.lib.stride_tricks.sliding_window_view(past, _AR_ORDER + 1)
    scale = float(np.std(past)) or 1.0
    ridge = 1e-6 * scale * np.sqrt(len(rows)) * np.eye(_AR_ORDER)
    stacked = np.vstack([rows[:, -2::-1], ridge])
    weights, _, _, _ = np.linalg.lstsq(
        stacked, np.concatenate([rows[:, -1], np.zeros(_AR_ORDER)]), rcond=None
    )
    return np.concatenate([[1.0], -weights])


def _pulse_onset(force: Floats, rate_hz: float, crossing: int, noise: float) -> Onset | None:
    longest = int(_PULSE_S[1] * rate_hz)
    lead = max(longest // 2, 8)
    begin = max(crossing - lead, 0)
    level = float(np.median(force[begin : max(crossing - 1, begin + 1)]))
    after = np.abs(force[crossing : crossing + longest] - level)
    if crossing - begin < 6 or len(after) < 4:
        return None
    peak = int(np.argmax(after[: max(longest // 2, 4)]))
    fallen = np.flatnonzero(after[peak:] < max(0.1 * after[peak], 3 * noise))
    if not len(fallen):
        return None
    end = min(crossing + peak + int(fallen[0]) + 5, len(force))
    sample = np.arange(begin, end, dtype=np.float64)
    values = force[begin:end]
    middle = 0.5 * (begin + end)
    flat = np.stack([np.ones_like(sample), sample - middle], axis=1)
    ortho, _ = np.linalg.qr(flat)
    clean = values - ortho @ (ortho.T @ values)
    width = peak + int(fallen[0])
    onset_grid = np.arange(crossing - 0.75 * width - 2, crossing + 0.51, 0.25)
    length_grid = np.arange(
        max(_PULSE_S[0] * rate_hz, 0.6 * width), min(_PULSE_S[1] * rate_hz, 1.8 * width + 4) + 0.26, 0.25
    )
    best = (float(onset_grid[0]), float(length_grid[0]))
    for step in (0.25, 0.05, 0.01, 0.002):
        if step < 0.25:
            onset_grid = best[0] + step * np.arange(-6, 7)
            length_grid = best[1] + step * np.arange(-6, 7)
        onsets, lengths = (grid.ravel() for grid in np.meshgrid(onset_grid, length_grid, indexing="ij"))
        score = _pulse_score(sample, onsets, lengths, ortho, clean)
        at = int(np.argmax(score))
        best = (float(onsets[at]), float(lengths[at]))
    return _pulse_quality(sample, values, flat, best, noise)


def _half_sines(sample: Floats, onsets: Floats, lengths: Floats) -> Floats:
    phase = (sample[None, :] - onsets[:, None]) / lengths[:, None]
    pulses: Floats = np.where((phase > 0) & (phase < 1), np.sin(np.pi * phase), 0.0)
    return pulses


def _pulse_score(sample: Floats, onsets: Floats, lengths: Floats, ortho: Floats, clean: Floats) -> Floats:
    """Return how much of the squares each pulse explains."""
    pulses = _half_sines(sample, onsets, lengths)
    pulses = pulses - (pulses @ ortho) @ ortho.T
    score: Floats = (pulses @ clean) ** 2 / np.maximum((pulses**2).sum(axis=1), 1e-12)
    return score


def _pulse_quality(
    sample: Floats, values: Floats, flat: Floats, best: tuple[float, float], noise: float
) -> Onset | None:
    onset, length = best
    pulse = _half_sines(sample, np.array([onset]), np.array([length]))[0]
    weights, _, _, _ = np.linalg.lstsq(np.column_stack([pulse, flat]), values, rcond=None)
    height = float(weights[0])
    rest = values - np.column_stack([pulse, flat]) @ weights
    phase = (sample - onset) / length
    slope = np.where((phase > 0) & (phase < 1), np.cos(np.pi * phase), 0.0) * np.pi / length * height
    jacobian = np.column_stack([-slope, -slope * phase, pulse, flat])
    spread = max(noise, float(np.sqrt(rest @ rest / max(len(rest) - 5, 1))))
    if abs(height) < _FORCE_SIGMAS * spread:
        return None
    covariance = np.linalg.pinv(jacobian.T @ jacobian) * spread**2
    return Onset(onset, float(np.sqrt(max(covariance[0, 0], 0.0))), abs(height) / spread)
