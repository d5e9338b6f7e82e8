"""The learners behind the two-way estimate: scale of the drift, disagreement of halves."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from sensorium.sync.clocks.two_edges import Cloud, DriftScale, Posterior, Prior, SplitHalves, fit_curve

LARGEST = DriftScale.CANDIDATES_PPM_S[-1]
PRIOR = Prior(0.0, 1e4, np.array([100.0]), np.array([1.0]), (0.0, 0.0), np.diag([1e3, 100.0]))
SPAN_S = 30.0


def cloud(random: np.random.Generator, count: int = 200, depth_ns: float = 1000.0) -> Cloud:
    """Bounds of an offset that is 5000 at the end, with slope 300 and no bend; half path 2000 ns."""
    at = np.sort(random.uniform(-1, 0, (2, count)), axis=1)
    excess = random.exponential(depth_ns, (2, count))
    return Cloud(
        at[0],
        5000 + 300 * at[0] + 2000 + excess[0],
        at[1],
        5000 + 300 * at[1] - 2000 - excess[1],
    )


def test_the_posterior_is_as_wide_as_its_error() -> None:
    fits = [fit_curve(cloud(np.random.default_rng(seed)), PRIOR, None) for seed in range(60)]
    z = np.array([(fit.level_ns - 5000) / fit.sigma_ns for fit in fits])
    assert 0.7 < np.sqrt((z**2).mean()) < 1.4
    assert abs(z.mean()) < 3 / np.sqrt(z.size)
    assert np.mean([fit.path_ns for fit in fits]) == pytest.approx(2000, abs=10)
    assert np.mean([fit.slope for fit in fits]) == pytest.approx(300, abs=15)


def halves(spread: float, lean_ns: float, seed: int = 1) -> SplitHalves:
    """Feed halves that scatter by ``spread`` times what they state, and lean to one side."""
    random = np.random.default_rng(seed)
    whole: Posterior = fit_curve(cloud(random), PRIOR, None)
    found = SplitHalves()
    for _ in range(200):
        first, second = (
            replace(whole, level_ns=whole.level_ns + lean_ns + random.normal(0, spread * whole.sigma_ns))
            for _ in range(2)
        )
        found.update(whole, first, second)
    return found


def test_halves_that_scatter_as_stated_widen_nothing() -> None:
    assert halves(1.0, 0.0).widening < 1.4


def test_halves_that_scatter_more_widen_the_bound_in_proportion() -> None:
    assert halves(3.0, 0.0).widening == pytest.approx(3 * 1.2 * 2**0.5, rel=0.3)


def test_halves_that_lean_to_one_side_show_a_bias() -> None:
    assert halves(1.0, 1000.0).lean_ns == pytest.approx(2400.0, rel=0.1)


def learnt(slopes_ns_s: list[float], noise_ns_s: float = 100.0, seed: int = 1) -> float:
    """Return the drift scale after spans with these slopes, known to ``noise_ns_s``."""
    random = np.random.default_rng(seed)
    some = fit_curve(cloud(random), PRIOR, None)
    spans = [
        replace(some, slope=SPAN_S * (slope + random.normal(0, noise_ns_s)), slope_sigma=SPAN_S * noise_ns_s)
        for slope in slopes_ns_s
    ]
    scale = DriftScale()
    for before, after in itertools.pairwise(spans):
        scale.update(SPAN_S, before, after)
    return scale.ppm_s


def test_a_steady_clock_is_learnt_to_be_steady() -> None:
    assert DriftScale().ppm_s > LARGEST / 2, "caution before anything is known"
    assert learnt([20e3] * 20) < LARGEST / 4


def test_a_warming_clock_is_learnt_to_drift() -> None:
    assert learnt([20e3 + 4.8e3 * math.sin(2 * math.pi * span / 10) for span in range(20)]) > 0.9 * LARGEST


def test_a_clock_that_begins_to_drift_is_believed_at_once() -> None:
    assert learnt([0.0] * 100 + [3e3, 6e3]) > 0.8 * LARGEST
