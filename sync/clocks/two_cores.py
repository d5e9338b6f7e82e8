"""The curve through the middle of two clouds: better than their edges where delays gather in a narrow core.

Between network cards that stamp in hardware most answers take nearly the same time, give or take a symmetric
jitter, and a few wait in a queue. The least of many such delays scatters far more than their middle does. Each
direction's core is found as its shortest half and fitted by a curve that both directions share, up to the path
between them; what lies outside three spreads is not of the core.
"""

from dataclasses import dataclass

import numpy as np

from sensorium.sync.clocks.two_edges import Cloud, FloatArray, Posterior

MIN_CORE = 12
"""Exchanges of a direction that must be of its core."""
MUCH_BETTER = 0.75
"""The middle is taken where its spread is this share of the edges' at most: else the edges, which need less."""
LEANS, OFF = 1.5, 6.0
"""Spreads of the edges by which both may differ: for long, which cores do that are unlike in both directions and
lean to one side; and now, which an edge may that a few early answers have moved."""
CORE_BELOW = 0.1
"""A core has delays below its densest quarter (a bell 37 %); delays that begin at their densest have none."""
_MEMORY, _MIN_SEEN = 60, 5
_ROUNDS = 8
_REACH = 3.0
_HALF_OF_BELL = 0.674
"""Half the length of the shortest half of a bell curve, in its spreads."""


@dataclass(frozen=True, slots=True)
class Core:
    """The curve at the end of the window; spreads are of it, ``slope`` in ns per window.

    Attributes:
        shift_ns: How far it lies above the curve between the edges.
        share_below: Of each direction's delays, those below their densest quarter; the smaller of both.
    """

    level_ns: float
    slope: float
    bend: float
    sigma_ns: float
    slope_sigma: float
    shift_ns: float
    share_below: float


class CoreChoice:
    """Decides window by window whether the middle of the delays or their edges carry the clock."""

    def __init__(self) -> None:
        self._seen = 0
        self._shift_ns = 0.0
        self._share_below = 0.0

    def is_better(self, core: Core, edge_sigma_ns: float) -> bool:
        """Take note of a window; return whether its core is known better and does not contradict the edges."""
        self._seen = min(self._seen + 1, _MEMORY)
        self._shift_ns += (core.shift_ns - self._shift_ns) / self._seen
        self._share_below += (core.share_below - self._share_below) / self._seen
        return (
            self._seen >= _MIN_SEEN
            and self._share_below >= CORE_BELOW
            and core.sigma_ns <= MUCH_BETTER * edge_sigma_ns
            and abs(self._shift_ns) <= LEANS * edge_sigma_ns
            and abs(core.shift_ns) <= OFF * edge_sigma_ns
        )


def fit_core(cloud: Cloud, edges: Posterior, bend_sigma_ns: float) -> Core | None:
    """Return the curve through both cores; None where there is none.

    Args:
        edges: The curve between the edges, to begin at.
        bend_sigma_ns: How much the clock may bend within the window.
    """
    at = np.concatenate((cloud.at_up, cloud.at_low))
    curve = edges.level_ns + edges.slope * at + edges.bend * at * at
    left = np.concatenate((cloud.up_ns, cloud.low_ns)) - curve
    is_up = np.arange(at.size) < cloud.at_up.size
    design = np.stack((is_up, ~is_up, at, at * at), axis=1).astype(np.float64)
    solution = np.array([_shortest_half(left[is_up])[0], _shortest_half(left[~is_up])[0], 0.0, 0.0])
    prior = np.diag([0.0, 0.0, 0.0, 1 / bend_sigma_ns**2])
    centre = np.array([0.0, 0.0, 0.0, -edges.bend])
    for _ in range(_ROUNDS):
        rest = left - design @ solution
        spread = np.where(is_up, _shortest_half(rest[is_up])[1], _shortest_half(rest[~is_up])[1])
        z = rest / (_REACH * spread)
        weight = np.where(np.abs(z) < 1, (1 - z * z) ** 2, 0.0) / spread**2
        if min((weight[is_up] > 0).sum(), (weight[~is_up] > 0).sum()) < MIN_CORE:
            return None
        normal = design.T @ (weight[:, None] * design) + prior
        solution = np.linalg.solve(normal, design.T @ (weight * left) + prior @ centre)
    rest = left - design @ solution
    # Waiting moves upper bounds up and lower bounds down.
    below = min(_share_below(rest[is_up]), _share_below(-rest[~is_up]))
    return _core(solution, normal, weight * spread**2, rest / spread, edges, below)


def _core(
    solution: FloatArray,
    normal: FloatArray,
    weight: FloatArray,
    rest: FloatArray,
    edges: Posterior,
    share_below: float,
) -> Core:
    """Return the fitted curve with its spread; ``rest`` is what it leaves, in spreads of the core."""
    # Robust fit: variance of the influence over the square of the mean sensitivity (Huber 1981, 7.6).
    z2 = (rest / _REACH) ** 2
    sensitivity = np.where(z2 < 1, (1 - z2) * (1 - 5 * z2), 0.0)
    pull = np.where(weight > 0, weight * rest, 0.0)
    factor = float((pull**2).mean() / max(float(sensitivity.mean()), 1e-3) ** 2) * float(weight.mean())
    covariance = np.linalg.inv(normal) * max(factor, 1e-6)
    of_level = np.array([0.5, 0.5, 0.0, 0.0])
    shift_ns = float(of_level @ solution)
    sigma_ns = float(np.sqrt(of_level @ covariance @ of_level))
    return Core(
        edges.level_ns + shift_ns,
        edges.slope + float(solution[2]),
        edges.bend + float(solution[3]),
        sigma_ns,
        float(np.sqrt(covariance[2, 2])),
        shift_ns,
        share_below,
    )


def _shortest_half(values: FloatArray) -> tuple[float, float]:
    """Return the middle of the shortest interval that holds half of the values, and the spread of a bell like it."""
    ordered, first, last = _shortest(values, 0.5)
    length = float(ordered[last] - ordered[first])
    return float(ordered[first] + ordered[last]) / 2, max(length / (2 * _HALF_OF_BELL), 1.0)


def _share_below(values: FloatArray) -> float:
    """Return which share of the values lies below their densest quarter."""
    ordered, first, _ = _shortest(values, 0.25)
    return first / ordered.size


def _shortest(values: FloatArray, share: float) -> tuple[FloatArray, int, int]:
    """Return the values in order, and the first and last of the shortest run that holds ``share`` of them."""
    ordered = np.sort(values)
    count = int(ordered.size * share) + 1
    first = int((ordered[count - 1 :] - ordered[: ordered.size - count + 1]).argmin())
    return ordered, first, first + count - 1
