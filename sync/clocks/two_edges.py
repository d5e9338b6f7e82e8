"""The curve between two edges: upper and lower bounds of a clock offset in one window, as a posterior.

Excess delays of each direction are exponential with unknown scale, cut where another law begins (congestion).
For a curve with given slope and bend the edges then lie an exponential depth beyond the lowest bounds; slope
and bend are integrated on a grid, the depths in closed form, the least round trip over what earlier windows
said and over anything else.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating[Any]]


def _disc(radius: float, step: float) -> FloatArray:
    axis = np.arange(-radius, radius + step / 2, step)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    disc: FloatArray = grid[(grid * grid).sum(axis=1) <= radius * radius]
    return disc


_DIRECTIONS = _disc(3.5, 0.7)
_NARROW = np.linspace(-3.5, 3.5, 15)
_BROAD = np.geomspace(0.02, 16.0, 20)
_BROAD_WIDTH = np.gradient(_BROAD)
_P_PATH_CHANGED = 0.02
"""Chance that the path is not what it was a window ago."""


@dataclass(frozen=True, slots=True)
class Path:
    """Half of the least round trip, as learnt from windows that ended before this one began."""

    mean_ns: float
    sigma_ns: float


@dataclass(frozen=True, slots=True)
class Cloud:
    """Bounds of the offset in one window; positions -1 ... 0, newest last.

    Attributes:
        at_up: (n,) positions of the upper bounds ``up_ns``.
        at_low: (n,) positions of the lower bounds ``low_ns``.
    """

    at_up: FloatArray
    up_ns: FloatArray
    at_low: FloatArray
    low_ns: FloatArray

    def half(self, first: int) -> "Cloud":
        """Return every other exchange, beginning with ``first`` (0 or 1)."""
        every = slice(first, None, 2)
        return Cloud(self.at_up[every], self.up_ns[every], self.at_low[every], self.low_ns[every])


@dataclass(frozen=True, slots=True)
class Prior:
    """What is known before the window, in ns per window, and where to look first.

    Attributes:
        bend_sigmas: (k,) possible spreads of the bend around none: a steady clock ... a warming one.
        bend_weights: (k,) their probabilities.
        centre: Slope and bend to begin the search at.
        spread: (2, 2) lower triangular, reach of the search around them.
    """

    slope_mean: float
    slope_sigma: float
    bend_sigmas: FloatArray
    bend_weights: FloatArray
    centre: tuple[float, float]
    spread: FloatArray


@dataclass(frozen=True, slots=True)
class Posterior:
    """The offset curve, level + slope * at + bend * at^2 at positions -1 ... 0; sigmas are of its end.

    Attributes:
        path_ns: Half the least round trip.
        up_ns: How far the upper edge typically lies below the lowest upper bound; ``low_ns`` likewise.
        bend_weights: (k,) what the window says about the prior's spreads of the bend.
        spread: (2, 2) lower triangular, of slope and bend.
    """

    level_ns: float
    slope: float
    bend: float
    sigma_ns: float
    slope_sigma: float
    path_ns: float
    path_sigma_ns: float
    up_ns: float
    low_ns: float
    bend_weights: FloatArray
    spread: FloatArray


@dataclass(frozen=True, slots=True)
class _Edge:
    """For each of g curves: the edge of one direction (upper bounds as they are, lower bounds negated)."""

    height_ns: FloatArray
    depth_ns: FloatArray
    log_evidence: FloatArray


def _edge(at: FloatArray, values_ns: FloatArray, curves: FloatArray) -> _Edge:
    """Return the edges below ``values_ns``.

    What lies above three times the median excess (over the middle curve) counts as "at least that much":
    congestion and stalls follow another law.
    """
    shape = np.stack((at, at * at))
    middle = curves[len(curves) // 2] @ shape
    excess = values_ns - middle
    excess = excess - excess.min()
    limit = 3.0 * float(np.median(excess)) + 1.0
    events = max(int((excess <= limit).sum()) - 1, 1)
    cut = values_ns - np.maximum(excess - limit, 0.0)
    paths = curves @ shape
    height = (values_ns - paths).min(axis=1)
    total = np.maximum(cut - paths - height[:, None], 0.0).sum(axis=1) + 1.0
    # Exponential excesses, right-censored; their mean is integrated out with the prior 1/mean.
    return _Edge(height, total / events / values_ns.size, -events * np.log(total))


def fit_curve(cloud: Cloud, prior: Prior, path: Path | None) -> Posterior:
    """Return the posterior of the curve between the two edges.

    Args:
        path: As known from before; None = nothing known.
    """
    centre, spread = np.array(prior.centre), prior.spread
    for _ in range(12):
        curves = centre + _DIRECTIONS @ spread.T
        up = _edge(cloud.at_up, cloud.up_ns, curves)
        low = _edge(cloud.at_low, -cloud.low_ns, -curves)
        gap = up.height_ns + low.height_ns
        log_p = (
            up.log_evidence
            + low.log_evidence
            - ((curves[:, 0] - prior.slope_mean) / prior.slope_sigma) ** 2 / 2
            + np.log(_bend_density(curves[:, 1], prior).sum(axis=1))
        )
        weights = np.exp(log_p - log_p.max())
        weights /= weights.sum()
        mean = weights @ curves
        around = curves - mean
        covariance = (weights[:, None] * around).T @ around
        moved = np.linalg.solve(spread, mean - centre)
        measured = np.linalg.cholesky(covariance + 1e-4 * spread @ spread.T + np.diag([1e-6, 1e-6]))
        scale = np.linalg.norm(np.linalg.solve(spread, measured), 2)
        is_settled = 0.55 < scale < 1.6 and float(np.abs(moved).max()) < 1.0
        if is_settled:
            break
        centre, spread = mean, measured
    return _combine(curves, log_p, up, low, gap, path, measured, prior)


def _bend_density(bends: FloatArray, prior: Prior) -> FloatArray:
    """Return the (g, k) prior density of each bend under each spread."""
    z = bends[:, None] / prior.bend_sigmas
    density: FloatArray = prior.bend_weights / prior.bend_sigmas * np.exp(-z * z / 2) + 1e-290
    return density


def _combine(
    curves: FloatArray,
    log_p: FloatArray,
    up: _Edge,
    low: _Edge,
    gap: FloatArray,
    path: Path | None,
    spread: FloatArray,
    prior: Prior,
) -> Posterior:
    """Integrate over how far the true edges lie beyond the lowest samples, and over the path."""
    log_p = log_p - log_p.max()
    longest = np.maximum(up.depth_ns, low.depth_ns)
    sums = _BROAD * longest[:, None]
    widths = _BROAD_WIDTH * longest[:, None]
    weight = np.exp(log_p)[:, None] * _sum_density(sums, up, low) * widths
    if path is not None:
        nodes = path.mean_ns + path.sigma_ns * _NARROW
        known = gap[:, None] - 2 * nodes
        bell = np.exp(-_NARROW * _NARROW / 2)
        bell /= bell.sum()
        density = np.where(known > 0, _sum_density(np.maximum(known, 0), up, low), 0.0)
        narrow = np.exp(log_p)[:, None] * density * bell
        # A changed path: its half length is anywhere within its old value.
        weight *= _P_PATH_CHANGED / (4 * max(path.mean_ns, 4 * path.sigma_ns))
        narrow *= 1 - _P_PATH_CHANGED
        sums = np.concatenate((sums, known), axis=1)
        weight = np.concatenate((weight, narrow), axis=1)
    weight = weight / weight.sum()
    tilt, tilt_var = _split(np.maximum(sums, 0), up, low)
    level = ((up.height_ns - low.height_ns) / 2)[:, None] + tilt
    half_path = (gap[:, None] - sums) / 2
    by_curve = weight.sum(axis=1)
    mean = float((weight * level).sum())
    variance = float((weight * ((level - mean) ** 2 + tilt_var)).sum())
    path_mean = float((weight * half_path).sum())
    path_var = float((weight * (half_path - path_mean) ** 2).sum())
    slope = float(by_curve @ curves[:, 0])
    density = _bend_density(curves[:, 1], prior)
    return Posterior(
        mean,
        slope,
        float(by_curve @ curves[:, 1]),
        variance**0.5,
        float(by_curve @ (curves[:, 0] - slope) ** 2) ** 0.5,
        path_mean,
        path_var**0.5,
        float(by_curve @ up.depth_ns),
        float(by_curve @ low.depth_ns),
        by_curve @ (density / density.sum(axis=1, keepdims=True)),
        spread,
    )


def _sum_density(sums: FloatArray, up: _Edge, low: _Edge) -> FloatArray:
    """Return the density of the sum of two exponential depths."""
    slow = np.maximum(up.depth_ns, low.depth_ns)[:, None]
    fast = np.minimum(up.depth_ns, low.depth_ns)[:, None]
    difference = np.maximum(1 / fast - 1 / slow, 1e-9)
    density: FloatArray = np.exp(-sums / slow) * -np.expm1(-sums * difference) / (slow * fast * difference)
    return density


def _split(sums: FloatArray, up: _Edge, low: _Edge) -> tuple[FloatArray, FloatArray]:
    """Return mean and variance of (lower depth - upper depth) / 2, given their sum.

    The share of the upper depth is a truncated exponential on 0 ... sum.
    """
    rate = (1 / up.depth_ns - 1 / low.depth_ns)[:, None]
    k = rate * sums
    is_flat = np.abs(k) < 1e-2
    safe = np.clip(np.where(is_flat, 1.0, k), -500, 500)
    share = np.where(is_flat, 0.5 - k / 12, 1 / safe - 1 / np.expm1(safe))
    half = safe / 2
    share_var = np.where(is_flat, 1 / 12 - k * k / 240, 1 / safe**2 - 1 / (4 * np.sinh(half) ** 2))
    tilt = sums * (0.5 - share)
    return tilt, np.maximum(share_var, 0) * sums * sums


class SplitHalves:
    """Learns from the two halves of the same window what the stated spread leaves out.

    Both halves see one clock and one path, so they differ by noise alone. With hard latency floors as assumed
    they differ as much as they state; with soft ones by more, and both lie to the same side of the whole.
    """

    _MEMORY = 60.0
    _PRIOR = 4.0

    def __init__(self) -> None:
        self._weight = self._PRIOR
        self._ratio_sum = self._PRIOR
        self._lean_sum_ns = 0.0

    def update(self, whole: Posterior, first: Posterior, second: Posterior) -> None:
        """Compare the estimates of one window and of its halves."""
        keep = 1 - 1 / self._MEMORY
        stated = first.sigma_ns**2 + second.sigma_ns**2
        ratio = min((first.level_ns - second.level_ns) ** 2 / max(stated, 1e-9), 100.0)
        self._weight = keep * self._weight + 1
        self._ratio_sum = keep * self._ratio_sum + ratio
        self._lean_sum_ns = keep * self._lean_sum_ns + (first.level_ns + second.level_ns) / 2 - whole.level_ns

    @property
    def widening(self) -> float:
        """Factor on the stated spread; 1 for hard floors.

        The spread of hard edges shrinks as 1/n, of softer ones as slowly as averages do, 1/sqrt(n): the whole
        then is worse than its halves make believe by another factor of up to sqrt(2), and the ratio is known
        from few independent windows only (1.2, as in Student's t).
        """
        ratio = max(1.0, math.sqrt(self._ratio_sum / self._weight))
        return ratio * min(ratio * ratio, 1.2 * math.sqrt(2))

    @property
    def lean_ns(self) -> float:
        """How far the whole may lie to one side: soft floors, unequal in the two directions.

        A bias that shrinks as 1/sqrt(n) leaves the whole 1 / (sqrt(2) - 1) = 2.4 times as far from the truth
        as it is from its halves.
        """
        return 2.4 * abs(self._lean_sum_ns) / self._weight


class DriftScale:
    """Learns how fast the skew of this clock changes, from the slopes of neighbouring spans.

    A steady clock may be averaged for longer. No hours of rest make drift unbelievable: one comparison can
    overturn them all.
    """

    CANDIDATES_PPM_S = np.array([0.006, 0.03, 0.12])
    _FIRST = np.array([-3.0, -1.5, 0.0])
    _KEEP = 0.9
    _DOUBT = -5.0

    def __init__(self) -> None:
        self._evidence = np.zeros(self.CANDIDATES_PPM_S.size)

    def update(self, elapsed_s: float, before: Posterior, after: Posterior) -> None:
        """Compare the slopes of two spans of ``elapsed_s`` each that share nothing."""
        moved = (after.slope - before.slope) / elapsed_s
        noise = (after.slope_sigma**2 + before.slope_sigma**2) / elapsed_s**2
        variance = noise + (self.CANDIDATES_PPM_S / 2 * 1e3 * elapsed_s) ** 2
        fit = -np.log(variance) / 2 - np.minimum(moved * moved / variance, 16.0) / 2
        evidence = self._KEEP * self._evidence + fit
        self._evidence = np.maximum(evidence - evidence.max(), self._DOUBT)

    @property
    def weights(self) -> FloatArray:
        """(k,) probabilities of the candidates."""
        log_p = self._evidence + self._FIRST
        weights = np.exp(log_p - log_p.max())
        return np.asarray(weights / weights.sum())

    @property
    def ppm_s(self) -> float:
        """The scale, averaged over what is credible."""
        return float(self.weights @ self.CANDIDATES_PPM_S)
