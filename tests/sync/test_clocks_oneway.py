"""The lower envelope: unbiased and honest under hard and soft floors, and wary of floors that move."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sensorium.sync.clocks.envelope import EXPONENTS, Posterior, Prior, fit
from sensorium.sync.clocks.oneway import CAPACITY, LowerEnvelope, highest_line_below

SCALE_NS = 1.5e6
NO_EVIDENCE = np.zeros(EXPONENTS.size)
WIDE = Prior(0.0, 1e9, 0.0, 1e6, SCALE_NS, 2.0)

LAWS: dict[str, Callable[[np.random.Generator, int], NDArray[np.float64]]] = {
    "exponential": lambda random, count: random.exponential(SCALE_NS, count),
    "polling and queueing": lambda random, count: (
        random.uniform(0, 1e6, count) + random.exponential(SCALE_NS, count)
    ),
    "two delays in a row": lambda random, count: random.gamma(2, SCALE_NS / 2, count),
}


def posteriors(law: str, count: int, trials: int) -> list[Posterior]:
    at = np.linspace(-1, 1, count)
    found = []
    for seed in range(trials):
        random = np.random.default_rng([seed, count])
        excess = LAWS[law](random, count)
        found.append(fit(at, excess, WIDE, NO_EVIDENCE, None))
    return found


@pytest.mark.parametrize("law", LAWS)
def test_the_bound_covers_the_truth_whatever_the_floor(law: str) -> None:
    found = posteriors(law, 1000, 80)
    covered = sum(abs(one.end_ns) <= one.bound95_ns for one in found)
    # 80 trials at 95 %: 3 sigma = 7 %.
    assert covered >= 80 * (0.95 - 0.07)
    # Honest, not idle: the bound is of the size of the errors.
    errors = np.abs([one.end_ns for one in found])
    assert np.mean([one.bound95_ns for one in found]) < 3 * np.percentile(errors, 95)


@pytest.mark.parametrize("softness", [4.5, 7.0])
def test_a_floor_far_under_every_sample_is_bounded_by_the_least_sample(softness: float) -> None:
    at = np.linspace(-1, 1, 1000)
    for seed in range(20):
        excess = np.random.default_rng([seed, 9]).uniform(0, 1, at.size) ** (1 / softness) * 10e6
        found = fit(at, excess, WIDE, NO_EVIDENCE, None)
        curve = found.middle_ns + found.slope_ns * at + found.bend_ns * (at * at - 1 / 3)
        depth_ns = float((excess - curve).min())
        band_ns = found.ceiling_ns
        assert depth_ns < 2.5 * band_ns
        if depth_ns > 0.75 * band_ns:
            assert found.bound95_ns > 0.9 * depth_ns


def test_the_estimate_under_a_hard_floor_has_no_bias() -> None:
    ends = np.array([one.end_ns for one in posteriors("exponential", 400, 80)])
    assert abs(ends.mean()) < 3 * ends.std() / np.sqrt(ends.size)


def test_a_soft_floor_is_told_from_a_hard_one() -> None:
    hard = np.mean([one.exponents @ EXPONENTS for one in posteriors("exponential", 2000, 20)])
    soft = np.mean([one.exponents @ EXPONENTS for one in posteriors("two delays in a row", 2000, 20)])
    assert hard < 1.3
    assert soft > 1.6


@given(
    middle=st.floats(-1e6, 1e6),
    slope=st.floats(-3e5, 3e5),
    bend=st.floats(-1e5, 1e5),
    seed=st.integers(0, 1000),
)
@settings(max_examples=25, deadline=None)
def test_the_answer_does_not_depend_on_the_reference(
    middle: float, slope: float, bend: float, seed: int
) -> None:
    at = np.linspace(-1, 1, 500)
    excess = np.random.default_rng(seed).exponential(SCALE_NS, at.size)
    near = fit(at, excess, WIDE, NO_EVIDENCE, None)
    shape = at * at - 1 / 3
    prior = Prior(-slope, 1e9, -bend, 1e6, SCALE_NS, 2.0)
    far = fit(at, excess - middle - slope * at - bend * shape, prior, NO_EVIDENCE, None)
    assert far.end_ns + middle + slope + bend * 2 / 3 == pytest.approx(near.end_ns, abs=near.sigma_ns)


def run(latency_ns: NDArray[np.float64], rate_hz: float, swing_us: float = 0.0) -> LowerEnvelope:
    envelope = LowerEnvelope()
    at_ns = np.arange(latency_ns.size) * 1e9 / rate_hz
    clock_ns = 30e-6 * at_ns + 1e3 * swing_us * np.sin(2 * np.pi * at_ns / 300e9)
    for x, d in zip(at_ns.tolist(), (clock_ns + latency_ns).tolist(), strict=True):
        envelope.add_one(x, d)
    return envelope


def test_a_floor_that_wanders_is_blamed_and_a_crystal_that_swings_is_not() -> None:
    random = np.random.default_rng(5)
    count = 150 * 50
    jitter = random.exponential(0.3e6, count)
    swinging = run(jitter, 50, swing_us=229)  # the spec's thermal swing: 4.8 ppm in 300 s
    assert swinging.line is not None
    assert swinging.line.wander_ns == 0
    steps = random.normal(0, 300e3 / np.sqrt(300 * 50), count)
    floor = np.abs((np.cumsum(steps) + 450e3) % 600e3 - 300e3)
    wandering = run(jitter + floor, 50)
    assert wandering.line is not None
    assert wandering.line.floor_ns > 0.8 * (floor.max() - floor.min()) / 2


def test_the_heir_of_an_epoch_knows_the_skew_but_not_the_offset() -> None:
    random = np.random.default_rng(6)
    envelope = run(random.exponential(SCALE_NS, 6000), 200)
    heir = envelope.successor(5e-7)
    for index, latency in enumerate(random.exponential(SCALE_NS, 400).tolist()):
        heir.add_one(index * 5e6, 7e9 + latency + 30e-6 * index * 5e6)
    assert heir.line is not None
    assert heir.line.slope == pytest.approx(30e-6, abs=2e-6)
    assert abs(heir.line.offset_ns - 7e9 - 30e-6 * heir.line.at_ns) < 3 * heir.line.statistical_ns + 1e3


def test_memory_is_bounded_however_fast_the_samples_come() -> None:
    envelope = run(np.random.default_rng(7).exponential(1e5, 60_000), 10_000)
    assert envelope._x.size == 2 * CAPACITY
    assert envelope.line is not None
    assert envelope.line.count > 59_000


@given(st.integers(0, 10_000))
@settings(max_examples=50, deadline=None)
def test_the_highest_line_below_lies_below_and_touches(seed: int) -> None:
    random = np.random.default_rng(seed)
    x = np.sort(random.uniform(0, 100, 40))
    y = random.exponential(5, 40) + 0.3 * x
    slope, height, middle = highest_line_below(x, y, -10, 10)
    gap = y - (height + slope * (x - middle))
    assert gap.min() == pytest.approx(0, abs=2e-3)
    # No other slope through the mean goes higher.
    for other in (slope - 1e-3, slope + 1e-3):
        assert (y - other * (x - middle)).min() <= height + 2e-3


def test_an_estimate_late_by_more_than_the_latency_gives_no_mean_delay_below_zero() -> None:
    envelope = run(np.full(40, 1e6), 30)
    # Each sample is earlier than the estimate by more than all were late before.
    for index in range(40, 80):
        at_ns = index * 1e9 / 30
        envelope.add_one(at_ns, 30e-6 * at_ns - index * 1e6)
    heir = envelope.successor(5e-7)
    heir.add_one(0.0, 0.0)
    heir.add_one(33e6, 1e3)
    assert heir.line is not None
    assert np.isfinite(heir.line.statistical_ns)
