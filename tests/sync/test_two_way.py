"""Two-way clock estimates against simulated clocks and paths whose truth is known."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sensorium.sync.clocks.two_way import FROZEN_AFTER, Exchange, TwoWayEstimator
from sensorium.timebase import SECOND_NS

OFFSET_NS = 7 * 24 * 3600 * SECOND_NS
LEAST_NS = 150_000
EXCESS_NS = 200_000.0
Delay = Callable[[np.random.Generator, float], float]


def exponential(random: np.random.Generator, _at_s: float) -> float:
    return LEAST_NS + random.exponential(EXCESS_NS)


class Link:
    """A remote clock with constant skew behind a path with the given delays; speaks in bursts of 8."""

    def __init__(
        self, skew_ppm: float = 20.0, request: Delay = exponential, reply: Delay = exponential, seed: int = 1
    ) -> None:
        self.skew_ppm = skew_ppm
        self.boot_id = 1
        self.offset_ns = OFFSET_NS
        self._delays = (request, reply)
        self._random = np.random.default_rng(seed)

    def remote_ns(self, local_ns: int) -> int:
        return local_ns + self.truth_ns(local_ns)

    def truth_ns(self, local_ns: int) -> int:
        return self.offset_ns + round(local_ns * self.skew_ppm * 1e-6)

    def burst(self, start_s: float) -> list[Exchange]:
        return [self._exchange(start_s + probe * 0.064) for probe in range(8)]

    def bursts(self, from_s: float, to_s: float) -> Iterator[list[Exchange]]:
        for start_s in np.arange(from_s, to_s, 2.0):
            yield self.burst(float(start_s))

    def _exchange(self, at_s: float) -> Exchange:
        sent_ns = round(at_s * 1e9)
        arrived_ns = sent_ns + round(self._delays[0](self._random, at_s))
        answered_ns = arrived_ns + 40_000
        received_ns = answered_ns + round(self._delays[1](self._random, at_s))
        return Exchange(
            sent_ns, self.remote_ns(arrived_ns), self.remote_ns(answered_ns), received_ns, self.boot_id
        )


def errors_ns(
    link: Link, to_s: float, estimator: TwoWayEstimator, from_s: float = 20.0
) -> list[tuple[float, float]]:
    """Return (error, stated half width) after every burst from ``from_s`` on."""
    found: list[tuple[float, float]] = []
    for burst in link.bursts(0.0, to_s):
        estimator.update(burst)
        now_ns = burst[-1].received_ns
        estimate = estimator.estimate(now_ns)
        assert estimate is not None
        if now_ns >= from_s * 1e9:
            found.append((estimate.offset_ns - link.truth_ns(now_ns), estimate.bound95_ns))
    return found


def test_the_stated_bound_covers_the_error_and_is_much_smaller_than_the_delays() -> None:
    found = [row for seed in range(4) for row in errors_ns(Link(seed=seed), 200.0, TwoWayEstimator())]
    covered = np.mean([abs(error) <= bound for error, bound in found])
    assert covered >= 0.9
    assert np.percentile([abs(error) for error, _ in found], 99) < EXCESS_NS / 10
    assert np.median([bound for _, bound in found]) < EXCESS_NS / 10


def soft(random: np.random.Generator, _at_s: float) -> float:
    return LEAST_NS + random.gamma(2, EXCESS_NS / 2)


def bimodal(random: np.random.Generator, at_s: float) -> float:
    return exponential(random, at_s) + (400_000 if random.uniform() < 0.3 else 0)


@pytest.mark.parametrize("law", [exponential, soft, bimodal])
def test_the_floor_term_makes_the_bound_hold_for_other_laws_of_delay(law: Delay) -> None:
    found = [
        row
        for seed in range(2)
        for row in errors_ns(Link(request=law, reply=law, seed=seed), 400.0, TwoWayEstimator(), from_s=60.0)
    ]
    sizes = np.array([abs(error) for error, _ in found])
    bounds = np.array([bound for _, bound in found])
    # Windows overlap: some twenty independent errors, of which two may miss a 95 % bound.
    assert (sizes <= bounds).mean() >= 0.85
    assert np.median(bounds) <= 3 * np.percentile(sizes, 95)


@settings(max_examples=25, deadline=None)
@given(
    skew_ppm=st.floats(-100, 100),
    request_ms=st.floats(0.01, 20),
    reply_ms=st.floats(0.01, 20),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_hard_interval_holds_the_truth_whatever_the_delays(
    skew_ppm: float, request_ms: float, reply_ms: float, seed: int
) -> None:
    link = Link(
        skew_ppm,
        lambda random, _: random.exponential(request_ms * 1e6),
        lambda random, _: reply_ms * 1e6 * random.uniform(0.5, 3.0),
        seed,
    )
    estimator = TwoWayEstimator()
    for burst in link.bursts(0.0, 40.0):
        estimator.update(burst)
        for now_ns in (burst[-1].received_ns, burst[-1].received_ns + SECOND_NS):
            estimate = estimator.estimate(now_ns)
            assert estimate is not None
            assert estimate.lower_ns <= link.truth_ns(now_ns) <= estimate.upper_ns
            assert estimate.lower_ns <= estimate.offset_ns <= estimate.upper_ns


def test_unequal_least_delays_shift_the_estimate_by_half_and_stay_within_the_asymmetry_term() -> None:
    extra_ns = 100_000
    link = Link(request=lambda random, at_s: extra_ns + exponential(random, at_s))
    estimator = TwoWayEstimator()
    error_ns, stated_ns = errors_ns(link, 120.0, estimator)[-1]
    estimate = estimator.estimate(round(120e9))
    assert estimate is not None
    assert error_ns == pytest.approx(extra_ns / 2, abs=3 * stated_ns)
    assert error_ns <= estimate.asymmetry_ns + stated_ns
    assert estimate.asymmetry_ns == pytest.approx(LEAST_NS + extra_ns / 2, rel=0.1)


def test_a_jam_of_one_direction_does_not_move_the_clock() -> None:
    def jammed(random: np.random.Generator, at_s: float) -> float:
        queue_ns = 2e6 + random.exponential(8e6) if 100 <= at_s < 120 else 0.0
        return exponential(random, at_s) + queue_ns

    found = errors_ns(Link(request=jammed), 140.0, TwoWayEstimator(), from_s=100.0)
    assert max(abs(error) for error, _ in found) < EXCESS_NS / 5


def test_a_longer_path_is_learnt() -> None:
    def rerouted(random: np.random.Generator, at_s: float) -> float:
        return exponential(random, at_s) + (400_000 if at_s > 200 else 0)

    estimator = TwoWayEstimator()
    errors_ns(Link(request=rerouted, reply=rerouted), 500.0, estimator)
    estimate = estimator.estimate(round(500e9))
    assert estimate is not None
    assert estimate.asymmetry_ns == pytest.approx(LEAST_NS + 400_000, rel=0.1)


def test_repeated_answers_are_dropped_and_a_frozen_run_is_flagged() -> None:
    link, estimator = Link(), TwoWayEstimator()
    for burst in link.bursts(0.0, 20.0):
        estimator.update(burst)
    before = estimator.estimate(round(30e9))
    last = link.burst(20.0)[0]
    accepted = estimator.update([last])
    assert accepted == 1
    for n in range(FROZEN_AFTER):
        assert not estimator.is_frozen
        later = replace(
            last,
            sent_ns=last.sent_ns + (n + 1) * SECOND_NS,
            received_ns=last.received_ns + (n + 1) * SECOND_NS,
        )
        assert estimator.update([later]) == 0
    assert estimator.is_frozen
    assert estimator.counts.repeated == FROZEN_AFTER
    after = estimator.estimate(round(30e9))
    assert before is not None
    assert after is not None
    assert abs(after.offset_ns - before.offset_ns) < before.statistical_ns
    assert estimator.update(link.burst(32.0)) == 8
    assert not estimator.is_frozen


def test_a_restart_of_the_remote_clock_drops_the_offset_and_keeps_the_skew() -> None:
    link, estimator = Link(skew_ppm=-40.0), TwoWayEstimator()
    for burst in link.bursts(0.0, 60.0):
        estimator.update(burst)
    link.boot_id, link.offset_ns = 2, 3 * SECOND_NS
    burst = link.burst(62.0)
    estimator.update(burst)
    now_ns = burst[-1].received_ns
    estimate = estimator.estimate(now_ns)
    assert estimate is not None
    assert estimate.epoch == 1
    assert estimator.counts.restarts == 1
    assert estimate.skew_ppm == pytest.approx(-40.0, abs=3.0)
    assert abs(estimate.offset_ns - link.truth_ns(now_ns)) < estimate.statistical_ns + estimate.asymmetry_ns


def test_a_late_reading_of_the_kernels_clocks_is_no_step() -> None:
    def nearly_no_path(random: np.random.Generator, at_s: float) -> float:
        return random.exponential(5_000) - (8_000 if random.uniform() < 0.02 else 0)

    link, estimator = Link(request=nearly_no_path, reply=nearly_no_path), TwoWayEstimator()
    for burst in link.bursts(0.0, 100.0):
        estimator.update(burst)
    assert estimator.epoch == 0
    estimate = estimator.estimate(round(100e9))
    assert estimate is not None
    assert abs(estimate.offset_ns - link.truth_ns(round(100e9))) < 20_000


@pytest.mark.parametrize("step_ns", [-37 * SECOND_NS, -2_000_000, 2_000_000, 3600 * SECOND_NS])
def test_an_unannounced_step_of_the_remote_clock_begins_a_new_epoch(step_ns: int) -> None:
    link, estimator = Link(), TwoWayEstimator()
    for burst in link.bursts(0.0, 60.0):
        estimator.update(burst)
    link.offset_ns += step_ns
    for burst in link.bursts(62.0, 66.0):
        estimator.update(burst)
    now_ns = burst[-1].received_ns
    estimate = estimator.estimate(now_ns)
    assert estimate is not None
    assert estimator.counts.steps == estimate.epoch == 1
    assert estimator.counts.restarts == 0
    assert estimate.lower_ns <= link.truth_ns(now_ns) <= estimate.upper_ns


@pytest.mark.parametrize(
    "impossible",
    [
        Exchange(SECOND_NS, 5, 10_000_000, SECOND_NS + 1_000_000),
        Exchange(SECOND_NS, 10_000, 9_000, SECOND_NS + 1_000_000),
        Exchange(SECOND_NS, 5, 10, SECOND_NS - 1),
    ],
    ids=["turnaround longer than the round trip", "sent before received", "answered before asked"],
)
def test_impossible_exchanges_are_refused(impossible: Exchange) -> None:
    estimator = TwoWayEstimator()
    assert estimator.update([impossible]) == 0
    assert estimator.counts.impossible == 1
    assert estimator.estimate(SECOND_NS) is None


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(
            st.builds(
                Exchange,
                st.integers(0, 10**12) | st.integers(-(2**63), 2**63 - 1),
                st.integers(-(2**63), 2**63 - 1) | st.integers(0, 10**9),
                st.integers(-(2**63), 2**63 - 1) | st.integers(0, 10**9),
                st.integers(0, 10**12) | st.integers(-(2**63), 2**63 - 1),
                st.integers(0, 2),
            ),
            max_size=10,
        ),
        max_size=6,
    )
)
def test_nonsense_from_a_node_breaks_nothing(bursts: list[list[Exchange]]) -> None:
    estimator = TwoWayEstimator()
    for burst in bursts:
        estimator.update(burst)
        estimate = estimator.estimate(10**12)
        assert estimate is None or estimate.lower_ns <= estimate.upper_ns


@settings(max_examples=60, deadline=None)
@given(
    offsets_ns=st.lists(st.integers(-(10**18), 10**18), min_size=6, max_size=40),
    delays_ns=st.lists(st.integers(0, 10**10), min_size=12, max_size=80),
    gap_ns=st.integers(1, 10**10),
)
def test_a_clock_that_jumps_at_will_breaks_nothing(
    offsets_ns: list[int], delays_ns: list[int], gap_ns: int
) -> None:
    estimator = TwoWayEstimator()
    at_ns = SECOND_NS
    for index, offset_ns in enumerate(offsets_ns):
        request_ns, reply_ns = (
            delays_ns[2 * index % len(delays_ns)],
            delays_ns[(2 * index + 1) % len(delays_ns)],
        )
        arrived_ns = at_ns + request_ns
        exchange = Exchange(
            at_ns, arrived_ns + offset_ns, arrived_ns + offset_ns + 10, arrived_ns + 10 + reply_ns
        )
        estimator.update([exchange])
        at_ns = exchange.received_ns + gap_ns
        estimate = estimator.estimate(at_ns)
        assert estimate is None or estimate.lower_ns <= estimate.offset_ns <= estimate.upper_ns


def test_the_model_takes_remote_stamps_to_the_local_clock() -> None:
    link, estimator = Link(skew_ppm=55.0), TwoWayEstimator()
    for burst in link.bursts(0.0, 60.0):
        estimator.update(burst)
    now_ns = round(60e9)
    model = estimator.model(now_ns)
    assert model is not None
    local_ns = now_ns - np.arange(5, dtype=np.int64) * 200_000_000
    remote_ns = np.array([link.remote_ns(int(at)) for at in local_ns])
    bound_ns = 2 * model.uncertainty.statistical_ns
    assert np.abs(model.to_host(remote_ns) - local_ns).max() <= bound_ns
    assert np.abs(model.to_ticks(local_ns) - remote_ns).max() <= bound_ns
    assert model.skew_ppm == pytest.approx(-55.0, abs=1.0)


def test_the_same_answers_give_the_same_estimate() -> None:
    first, second = TwoWayEstimator(), TwoWayEstimator()
    for burst in Link().bursts(0.0, 40.0):
        first.update(burst)
        second.update(burst)
    assert first.estimate(round(41e9)) == second.estimate(round(41e9))


def test_the_bound_grows_while_nothing_is_heard() -> None:
    estimator = TwoWayEstimator()
    for burst in Link().bursts(0.0, 40.0):
        estimator.update(burst)
    soon, late = estimator.estimate(round(41e9)), estimator.estimate(round(101e9))
    assert soon is not None
    assert late is not None
    assert late.statistical_ns > 10 * soon.statistical_ns
    assert late.hard_ns > soon.hard_ns
