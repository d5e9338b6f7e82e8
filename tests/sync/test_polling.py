"""Samples that a host fetches at fixed instants: found in the arrivals, covered by the bound, and not imagined."""

import numpy as np
import pytest
from stored_clock import BEGIN_NS, LEAST_NS, Device, store

from sensorium.sync.clocks.polling import Polling, fetched


def polled(rate_hz: float, period_ns: int, ready_ns: float, seed: int) -> Device:
    """Return a device whose samples are ready soon and wait for the next instant of the host's."""
    device = Device.run(rate_hz, 60, seed)
    random = np.random.default_rng([seed, 99])
    device.capture_ns += random.integers(period_ns)
    ready = device.capture_ns + random.exponential(ready_ns, device.capture_ns.size).astype(np.int64)
    device.arrival_ns = np.maximum.accumulate(-(-ready // period_ns) * period_ns) + LEAST_NS
    return device


@pytest.mark.parametrize(
    ("period_ns", "ready_ns"), [(125_000, 10_000.0), (1_000_000, 300_000.0), (8_000_000, 2e6)]
)
def test_the_wait_for_being_fetched_lies_within_the_bound_where_frames_meet_few_phases(
    period_ns: int, ready_ns: float
) -> None:
    for seed in range(4):
        stored = store(polled(30, period_ns, ready_ns, seed))
        later = slice(30 * 10, None)
        assert stored.covers(later) > 0.93
        assert np.median(stored.bound_ns[later]) < 0.6 * period_ns  # a gap of a third, not the whole period


@pytest.mark.parametrize("rate_hz", [10.0, 30.0, 59.94, 200.0, 1000.0])
@pytest.mark.parametrize("latency_ns", [5e3, 30e3, 300e3, 5e6])
@pytest.mark.parametrize("jitter_ns", [0.0, 30e3, 1e6])
def test_no_fetching_is_seen_where_latency_knows_nothing_of_instants(
    rate_hz: float, latency_ns: float, jitter_ns: float
) -> None:
    """Also where captures themselves are periodic, and so are their arrivals, or wait for one another."""
    random = np.random.default_rng(round(rate_hz + latency_ns + jitter_ns))
    for count in (64, 512):
        captures_ns = np.arange(count) * 1e9 / rate_hz * (1 + 4e-5) + random.normal(0, jitter_ns, count)
        captures_ns.sort()
        arrivals_ns = np.maximum.accumulate(captures_ns + random.exponential(latency_ns, count))
        polling = Polling()
        for arrival_ns, capture_ns in zip(
            arrivals_ns.astype(np.int64).tolist(), captures_ns.tolist(), strict=True
        ):
            if polling.take(arrival_ns, capture_ns):
                polling.look(np.zeros_like)
                assert (polling.period_ns, polling.unseen_ns) == (0.0, 0.0)


def test_phases_that_are_all_met_leave_next_to_nothing_unseen() -> None:
    random = np.random.default_rng(5)
    captures_ns = np.sort(random.uniform(0, 8e9, 256))
    arrivals_ns = np.ceil(captures_ns / 1e6) * 1e6
    period_ns, unmet_ns = fetched(arrivals_ns, captures_ns)
    assert period_ns == 1e6
    assert unmet_ns < 0.06 * period_ns  # what chance leaves of 256 phases


def test_samples_that_a_stall_held_back_are_not_taken_for_fetched() -> None:
    device = Device.run(200, 60, 1)
    for at_s in range(5, 55, 2):
        device.hold(at_s, 1.0)
    stored = store(device)
    assert np.median(stored.bound_ns) < 100_000
    assert device.arrival_ns[0] > BEGIN_NS
