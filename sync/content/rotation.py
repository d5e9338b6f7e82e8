"""The time offset between a gyro and a camera on one rigid body: they see the same turning.

The answer carries a sigma, or refuses when the scene holds no information. It proves or contradicts what the clocks
claim (`sensorium.sync.content.offset.judge`).

Offsets are signed: ``offset_ns`` is what the second sensor's stamp reads minus what the first one's reads, for one
and the same instant. Known delays (exposure and rows of a camera, group delay of a filter, travel of sound) are
inputs and are taken off the stamps first; see :class:`sensorium.sync.content.offset.Delay`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from sensorium.calibration.gyro import GyroIntegral
from sensorium.errors import ClockError
from sensorium.sync.content.offset import NO_DELAY, ContentOffset, Delay
from sensorium.timebase import SECOND_NS
from sensorium.verdict import Quantity

Floats = NDArray[np.float64]
Stamps = NDArray[np.int64]

_GRID_NS = 5e6
_GAP_PERIODS = 3.0
_MIN_STEPS = 60
_MIN_CORRELATION = 0.5
"""Unrelated hand motions of 20 s reach 0.35 by chance, once they may be turned and shifted to fit."""

_RIVAL_CHI2 = 30.0
"""An offset whose misfit is larger by less than this is a rival: chance alone reaches it once in 1000 trials
(9 degrees of freedom: a rotation and a scale, tried at some hundred shifts)."""

_MAX_SIGMA_NS = 5e6
_NOISE_LAGS = 15
_REWEIGHTINGS = 2
_STEP_S = 5e-4
_REFINEMENTS = 6
_OUTLIER_SIGMAS = 3.0


@dataclass(slots=True, eq=False)
class _Fit:
    """The best rotation, scale and bias at one offset, and what they leave."""

    cost: float
    correlation: float
    scale: float
    rotation: Floats
    residual: Floats


class _Turning:
    """The problem: turns seen between frames against the integral of the gyro at shifted times."""

    def __init__(self, gyro: GyroIntegral, first_s: Floats, second_s: Floats, turns: Floats) -> None:
        self._gyro, self._first_s, self._second_s = gyro, first_s, second_s
        self._lasting_s = second_s - first_s
        self.turns = turns
        self.weights: Floats = np.ones(len(turns))

    def _unbiased(self, values: Floats) -> Floats:
        """Take out what a constant rate (the gyro's bias) would add."""
        moment = (self.weights * self._lasting_s) @ values / (self.weights @ self._lasting_s**2)
        clean: Floats = values - np.outer(self._lasting_s, moment)
        return clean

    def bias(self, offset_s: float, fit: _Fit) -> Floats:
        """Return the gyro's constant error in its own axes: its mean rate beyond what was seen."""
        beyond = self.predicted(offset_s) - self.turns @ fit.rotation / (fit.scale or 1.0)
        found: Floats = (self._lasting_s * self.weights) @ beyond / (self.weights @ self._lasting_s**2)
        return found

    def predicted(self, offset_s: float) -> Floats:
        return self._gyro.turned(self._first_s + offset_s, self._second_s + offset_s)

    def derivative(self, offset_s: float) -> Floats:
        """Return the change of the prediction per second of offset."""
        ahead, behind = self.predicted(offset_s + _STEP_S), self.predicted(offset_s - _STEP_S)
        return (ahead - behind) / (2 * _STEP_S)

    def fit(self, offset_s: float) -> _Fit:
        """Return the fit at one offset: Kabsch (1976) for the rotation, the scale beside it."""
        seen, told = self._unbiased(self.turns), self._unbiased(self.predicted(offset_s))
        weights = self.weights[:, None]
        u, singular, vt = np.linalg.svd((weights * seen).T @ told)
        hand = float(np.sign(np.linalg.det(u @ vt)))
        together = float(singular[0] + singular[1] + hand * singular[2])
        seen_power, told_power = float((weights * seen**2).sum()), float((weights * told**2).sum())
        if told_power <= 0 or seen_power <= 0 or together <= 0:
            return _Fit(seen_power, 0.0, 0.0, np.eye(3), seen)
        rotation: Floats = (u * [1.0, 1.0, hand]) @ vt
        scale = together / told_power
        cost = max(seen_power - together * scale, 0.0)
        residual = seen - scale * (told @ rotation.T)
        return _Fit(cost, together / np.sqrt(told_power * seen_power), scale, rotation, residual)

    def minimise(self, low_s: float, high_s: float) -> float:
        return _golden(lambda offset_s: self.fit(offset_s).cost, low_s, high_s)

    def reweight(self, residual: Floats) -> None:
        """Give steps that lie far out less weight (Huber), so that a lost track does not steer."""
        size = np.linalg.norm(residual, axis=1)
        typical = float(np.median(size)) / 1.538  # median of a chi distribution of 3 degrees of freedom
        if typical > 0:
            self.weights = np.minimum(1.0, _OUTLIER_SIGMAS * typical / np.maximum(size, 1e-300))

    def refine(self, offset_s: float, fit: _Fit, span_s: tuple[float, float]) -> tuple[float, _Fit, Floats]:
        """Return offset and fit for noise that differs by axis, and the (3, 3) whitening of that noise.

        Translation disturbs the turns about the image's axes ten times more than the roll: a least-squares fit
        with equal weights would be led by the parallax. Gauss-Newton, the covariance estimated anew each round.
        """
        metric = _whitening(fit.residual, self.weights)
        for _ in range(_REFINEMENTS):
            jacobian = np.einsum("ab,nbk->nak", metric, self.jacobian(offset_s, fit))
            jacobian *= np.sqrt(self.weights)[:, None, None]
            residual = (fit.residual @ metric.T) * np.sqrt(self.weights)[:, None]
            step, _, _, _ = np.linalg.lstsq(jacobian.reshape(-1, 8), residual.reshape(-1), rcond=1e-9)
            offset_s = float(np.clip(offset_s + step[0], *span_s))
            turn, _ = cv2.Rodrigues(step[2:5])
            fit = self._with(offset_s, fit.scale * (1 + step[1] / fit.scale), np.asarray(turn) @ fit.rotation)
            self.reweight(fit.residual @ metric.T)
            metric = _whitening(fit.residual, self.weights)
        return offset_s, fit, metric

    def profile(self, offset_s: float, fit: _Fit, metric: Floats) -> float:
        """Return the whitened misfit at an offset; rotation, scale and bias fitted anew, linearly about ``fit``."""
        there = self._with(offset_s, fit.scale, fit.rotation)
        jacobian = self.jacobian(offset_s, there, by_offset=False)[:, :, 1:]
        jacobian = np.einsum("ab,nbk->nak", metric, jacobian) * np.sqrt(self.weights)[:, None, None]
        residual = ((there.residual @ metric.T) * np.sqrt(self.weights)[:, None]).reshape(-1)
        flat = jacobian.reshape(-1, 7)
        normal = flat.T @ flat
        moment = flat.T @ residual
        step = np.linalg.lstsq(normal, moment, rcond=1e-12)[0]
        return float(residual @ residual - moment @ step)

    def _with(self, offset_s: float, scale: float, rotation: Floats) -> _Fit:
        """Return what given values leave."""
        seen, told = self._unbiased(self.turns), self._unbiased(self.predicted(offset_s))
        residual = seen - scale * (told @ rotation.T)
        weights = self.weights[:, None]
        power = float((weights * seen**2).sum()) * float((weights * told**2).sum())
        correlation = float((weights * seen * (told @ rotation.T)).sum()) / np.sqrt(max(power, 1e-300))
        return _Fit(float((weights * residual**2).sum()), correlation, scale, rotation, residual)

    def jacobian(self, offset_s: float, fit: _Fit, *, by_offset: bool = True) -> Floats:
        """Return (n, 3, 8): derivatives of the prediction by offset (0 unless asked), scale, rotation and bias."""
        told = self._unbiased(self.predicted(offset_s)) @ fit.rotation.T
        columns = np.zeros((len(told), 3, 8))
        if by_offset:
            columns[:, :, 0] = fit.scale * (self.derivative(offset_s) @ fit.rotation.T)
        columns[:, :, 1] = told
        for axis in range(3):
            columns[:, :, 2 + axis] = fit.scale * np.cross(np.eye(3)[axis], told)
            columns[:, axis, 5 + axis] = self._lasting_s
        return columns


def rotation_offset(
    visual_ns: Stamps,
    turns_rad: Floats,
    gyro_ns: Stamps,
    gyro_rad_s: Floats,
    *,
    visual_delay: Delay = NO_DELAY,
    gyro_delay: Delay = NO_DELAY,
    max_offset_ns: float = 150e6,
) -> ContentOffset:
    """Return the gyro's stamp minus the camera's for one instant, from the turning that both saw.

    Minimises the misfit of the gyro, integrated between shifted frame times, to the turns seen between frames;
    the rotation between the axes (Kabsch), the gyro's bias and a scale are unknowns. A grid of 5 ms finds the
    valley, a bounded golden-section search its bottom (specs/clocks.md 2e); steps far out lose weight. Sigma
    comes from curvature with residuals correlated over a few frames allowed for (Newey and West 1987).

    Args:
        visual_ns: (n + 1,) stamps of the frames (middle of exposure).
        turns_rad: (n, 3) rotation vectors R_before_after of each step in camera axes; NaN where there is none.
        gyro_ns: (m,) ascending stamps.
        gyro_rad_s: (m, 3) angular rates in the gyro's axes.
        max_offset_ns: Search range on either side.

    Raises:
        ClockError: If the arrays do not fit each other or time does not ascend.
    """
    visual_s, gyro_s = _seconds(visual_ns, gyro_ns, visual_delay.delay_ns, gyro_delay.delay_ns)
    if turns_rad.shape != (len(visual_s) - 1, 3) or gyro_rad_s.shape != (len(gyro_s), 3):
        raise ClockError(
            f"rotation offset: {turns_rad.shape} turns for {len(visual_s)} frames, "
            f"{gyro_rad_s.shape} rates for {len(gyro_s)} stamps"
        )
    bound_ns = visual_delay.bound_ns + gyro_delay.bound_ns
    usable = _usable_steps(visual_s, turns_rad, gyro_s, max_offset_ns * 1e-9)
    count = int(usable.sum())
    if count < _MIN_STEPS:
        reason = f"only {count} rotation steps lie inside the gyro's span, {_MIN_STEPS} are needed"
        return ContentOffset("gyro-visual", np.nan, np.inf, bound_ns, count, reasons=(reason,))
    steps = visual_s[:-1][usable], visual_s[1:][usable], turns_rad[usable]
    turning = _Turning(GyroIntegral(gyro_s, gyro_rad_s), *steps)
    half = int(np.ceil(max_offset_ns / _GRID_NS))
    grid_s = np.arange(-half, half + 1) * (_GRID_NS * 1e-9)
    best = int(np.argmin([turning.fit(at_s).cost for at_s in grid_s]))
    low_s, high_s = grid_s[max(best - 1, 0)], grid_s[min(best + 1, len(grid_s) - 1)]
    offset_s = 0.0
    for _ in range(_REWEIGHTINGS):
        offset_s = turning.minimise(low_s, high_s)
        turning.reweight(turning.fit(offset_s).residual)
    # What is bent by the bias is not undone by taking a constant rate off the sum.
    bias = turning.bias(offset_s, turning.fit(offset_s))
    weights = turning.weights
    turning = _Turning(GyroIntegral(gyro_s, gyro_rad_s - bias), *steps)
    turning.weights = weights
    fit = turning.fit(offset_s)
    metric = _whitening(fit.residual, turning.weights)
    misfits = np.array([turning.profile(at_s, fit, metric) for at_s in grid_s])
    low_s = float(grid_s[int(np.argmin(misfits))])
    offset_s, last_fit, last_metric = turning.refine(low_s, fit, (grid_s[0], grid_s[-1]))
    sigma_s, inflation = _sigma(turning, offset_s, last_fit, last_metric, _white_noise(gyro_rad_s))
    least = turning.profile(offset_s, fit, metric)
    variance = max(least / (3 * float(turning.weights.sum()) - 8), 1e-30) * max(inflation, 1.0)
    is_far = np.abs(grid_s - offset_s) > max(15e-3, 6 * min(sigma_s, 1.0))
    rival = float((misfits[is_far].min(initial=np.inf) - least) / variance) if is_far.any() else 0.0
    fit = last_fit
    reasons = _refusals(fit, sigma_s, rival, abs(offset_s) >= grid_s[-1])
    return ContentOffset(
        "gyro-visual",
        offset_s * SECOND_NS,
        sigma_s * SECOND_NS,
        bound_ns,
        count,
        (
            Quantity("correlation", fit.correlation, "1", threshold=_MIN_CORRELATION),
            Quantity("next best offset's misfit", rival, "sigma^2", threshold=_RIVAL_CHI2),
            Quantity("scale", fit.scale, "1"),
            Quantity("visual noise", float(np.degrees(np.sqrt(np.median(fit.residual**2) / 0.4549))), "deg"),
        ),
        reasons,
        fit.rotation.T,
        tuple((bias + turning.bias(offset_s, fit)).tolist()),
    )


def predicted_turns(
    visual_ns: Stamps,
    gyro_ns: Stamps,
    gyro_rad_s: Floats,
    found: ContentOffset,
    *,
    visual_delay: Delay = NO_DELAY,
    gyro_delay: Delay = NO_DELAY,
    max_offset_ns: float = 0.0,  # noqa: ARG001 - takes the options of rotation_offset
) -> Floats:
    """Return the (n, 3) turns that the gyro puts between frames, given an offset and the fitted rotation.

    NaN outside the gyro's span.
    """
    visual_s, gyro_s = _seconds(visual_ns, gyro_ns, visual_delay.delay_ns, gyro_delay.delay_ns)
    at_s = visual_s + found.offset_ns / SECOND_NS
    turned = GyroIntegral(gyro_s, gyro_rad_s - np.asarray(found.bias_rad_s)).turned(at_s[:-1], at_s[1:])
    scale = next(each.value for each in found.quantities if each.name == "scale")
    assert found.rotation is not None
    turns: Floats = scale * turned @ found.rotation
    turns[(at_s[:-1] < gyro_s[0]) | (at_s[1:] > gyro_s[-1])] = np.nan
    return turns


def _refusals(fit: _Fit, sigma_s: float, rival: float, is_at_edge: bool) -> tuple[str, ...]:
    reasons = []
    if fit.correlation < _MIN_CORRELATION:
        reasons.append(
            f"gyro and images turn together with a correlation of {fit.correlation:.2f} only, "
            f"{_MIN_CORRELATION} is needed: too little rotation, or not one rigid body"
        )
    if not sigma_s * SECOND_NS <= _MAX_SIGMA_NS:
        reasons.append("the rotation changes too little: its time is known no better than 5 ms")
    if rival < _RIVAL_CHI2:
        reasons.append(
            "other offsets fit almost as well: the rotation is constant, periodic or lost in the noise"
        )
    if is_at_edge:
        reasons.append("the best offset lies at the edge of the search range")
    return tuple(reasons)


def _whitening(residual: Floats, weights: Floats) -> Floats:
    """Return the (3, 3) matrix that makes the residuals' noise white, of mean variance as before."""
    covariance = (weights[:, None] * residual).T @ residual / weights.sum()
    size = float(np.trace(covariance)) / 3
    if size <= 0:
        return np.eye(3)
    values, vectors = np.linalg.eigh(covariance / size + 1e-4 * np.eye(3))
    return np.asarray((vectors / np.sqrt(values)) @ vectors.T, np.float64)


def _sigma(
    turning: _Turning, offset_s: float, fit: _Fit, metric: Floats, noise_rad_s: float
) -> tuple[float, float]:
    """Return one sigma of the offset, and by how much correlated residuals enlarge its variance."""
    jacobian = turning.jacobian(offset_s, fit) * np.sqrt(turning.weights)[:, None, None]
    jacobian = np.einsum("ab,nbk->nak", metric, jacobian)
    residual = (fit.residual @ metric.T) * np.sqrt(turning.weights)[:, None]
    flat = jacobian.reshape(-1, 8)
    nuisance, _, _, _ = np.linalg.lstsq(flat[:, 1:], flat[:, 0], rcond=1e-9)
    alone = (flat[:, 0] - flat[:, 1:] @ nuisance).reshape(-1, 3)
    # Noise of the gyro makes the derivative larger but tells nothing about time.
    information = (
        float((alone**2).sum()) - 2 * len(alone) * float((metric**2).sum()) * (fit.scale * noise_rad_s) ** 2
    )
    if information <= 0:
        return np.inf, 1.0
    score = (alone * residual).sum(axis=1)
    plain = float(residual.reshape(-1) @ residual.reshape(-1)) / (residual.size - 8) * float((alone**2).sum())
    lagged = float(score @ score)
    for lag in range(1, _NOISE_LAGS + 1):
        lagged += 2 * (1 - lag / (_NOISE_LAGS + 1)) * float(score[lag:] @ score[:-lag])
    # Negative correlation of neighbours (a frame's noise enters two steps) would make it smaller. Its estimate is
    # noisy: with it, two sigma covered 92 % of 440 trials of white noise.
    variance = max(lagged, plain)
    return float(np.sqrt(variance) / information), variance / plain if plain > 0 else 1.0


def _white_noise(rates: Floats) -> float:
    """Return the standard deviation of a sample's noise, from third differences: smooth motion has none."""
    third = np.diff(rates, n=3, axis=0)
    return float(np.sqrt(np.median(third**2) / 0.4549 / 20))


def _usable_steps(visual_s: Floats, turns: Floats, gyro_s: Floats, reach_s: float) -> NDArray[np.bool_]:
    """Return which steps have a turn, a credible length, and the gyro's samples at every offset tried."""
    lasting = np.diff(visual_s)
    usable: NDArray[np.bool_] = np.isfinite(turns).all(axis=1) & (
        lasting <= _GAP_PERIODS * np.median(lasting)
    )
    first_s, second_s = visual_s[:-1] - reach_s, visual_s[1:] + reach_s
    usable &= (first_s >= gyro_s[0]) & (second_s <= gyro_s[-1])
    gaps = np.diff(gyro_s)
    for index in np.flatnonzero(gaps > _GAP_PERIODS * np.median(gaps)):
        usable &= (second_s <= gyro_s[index]) | (first_s >= gyro_s[index + 1])
    return usable


def _seconds(
    visual_ns: Stamps, gyro_ns: Stamps, visual_delay_ns: float, gyro_delay_ns: float
) -> tuple[Floats, Floats]:
    if len(visual_ns) < 2 or len(gyro_ns) < 4:
        raise ClockError(
            f"rotation offset: {len(visual_ns)} frames and {len(gyro_ns)} gyro samples are too few"
        )
    origin_ns = int(visual_ns[0])
    visual_s: Floats = (np.asarray(visual_ns - origin_ns, np.float64) - visual_delay_ns) / SECOND_NS
    gyro_s: Floats = (np.asarray(gyro_ns - origin_ns, np.float64) - gyro_delay_ns) / SECOND_NS
    for name, times in (("frame", visual_s), ("gyro", gyro_s)):
        if not (np.diff(times) > 0).all():
            raise ClockError(f"rotation offset: {name} stamps do not ascend")
    return visual_s, gyro_s


def _golden(cost: Callable[[float], float], low: float, high: float, rounds: int = 24) -> float:
    """Return the minimum of a function with one valley in [low, high], to 1e-5 of the width."""
    ratio = (np.sqrt(5) - 1) / 2
    inner_low, inner_high = high - ratio * (high - low), low + ratio * (high - low)
    at_low, at_high = cost(inner_low), cost(inner_high)
    for _ in range(rounds):
        if at_low < at_high:
            high, inner_high, at_high = inner_high, inner_low, at_low
            inner_low = high - ratio * (high - low)
            at_low = cost(inner_low)
        else:
            low, inner_low, at_low = inner_low, inner_high, at_high
            inner_high = low + ratio * (high - low)
            at_high = cost(inner_high)
    return 0.5 * (low + high)
