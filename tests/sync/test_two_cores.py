"""Delays that gather in a core: their middle carries the clock, and only where they do."""

from collections.abc import Callable

import numpy as np
import pytest

from sensorium.sync.clocks.two_way import Exchange, OffsetEstimate, TwoWayEstimator
from sensorium.timebase import SECOND_NS

LEAST_NS = 840_000.0
ASYMMETRY_NS = 16_000.0
"""What the reply takes longer: every estimate is half of it too low."""
SPREAD_NS = 5_000.0
Delays = Callable[[np.random.Generator], float]


def core(random: np.random.Generator) -> float:
    """Return a delay between cards that stamp in hardware: a bell, and one in three waits."""
    waits = random.exponential(2e6) if random.random() < 1 / 3 else 0.0
    return float(15_000 + random.normal(0, SPREAD_NS) + waits)


def exponential(random: np.random.Generator) -> float:
    return float(random.exponential(15_000))


def estimates(delays: Delays, seed: int, seconds: int = 600) -> list[OffsetEstimate]:
    """Return an estimate per second of a clock that is right, from the third minute on."""
    random = np.random.default_rng(seed)
    estimator, found = TwoWayEstimator(), []
    for second in range(seconds):
        sent = 10**12 + second * SECOND_NS
        there = sent + round(LEAST_NS + delays(random))
        back = there + 40_000
        got = back + round(LEAST_NS + ASYMMETRY_NS + delays(random))
        estimator.update([Exchange(sent, there, back, got)])
        estimate = estimator.estimate(got)
        if second >= 120 and estimate is not None:
            found.append(estimate)
    return found


@pytest.mark.parametrize("seed", [11, 12])
def test_the_middle_of_a_core_is_known_better_than_its_edge(seed: int) -> None:
    found = estimates(core, seed)
    left_ns = np.array([each.offset_ns for each in found]) + ASYMMETRY_NS / 2
    stated_ns = np.array([each.bound95_ns for each in found])
    # Two of three in 100 s are of the core; half the sum of both ways, three times that at a parabola's end.
    sigma_ns = 3 * SPREAD_NS / np.sqrt(2 * 67)
    assert np.percentile(np.abs(left_ns), 95) < 3 * sigma_ns
    assert np.mean(np.abs(left_ns) <= stated_ns) > 0.9


def test_the_whole_bound_holds_what_unequal_ways_hide() -> None:
    found = estimates(core, 13)
    assert all(abs(each.offset_ns) <= each.total95_ns for each in found)
    assert all(each.total95_ns == each.bound95_ns + each.asymmetry_ns for each in found)


def test_delays_that_begin_at_their_densest_have_hardly_ever_a_core() -> None:
    random = np.random.default_rng(14)
    estimator, by_edges = TwoWayEstimator(), []
    for second in range(300):
        sent = 10**12 + second * SECOND_NS
        there = sent + round(LEAST_NS + exponential(random))
        got = there + 40_000 + round(LEAST_NS + exponential(random))
        estimator.update([Exchange(sent, there, there + 40_000, got)])
        by_edges.append(estimator.is_by_edges)
    assert np.mean(by_edges) > 0.95
