"""Clock maps: there and back, and always forwards."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sensorium.sync.clocks.model import ClockModel, Uncertainty

WEEK_NS = 7 * 24 * 3600 * 10**9

models = st.builds(
    lambda skew_ppm, tick_ns, ref_ticks, ref_host_ns: ClockModel(
        0, "test", ref_ticks, ref_host_ns, tick_ns * (1 + skew_ppm * 1e-6), skew_ppm, Uncertainty(0, 0, 0)
    ),
    skew_ppm=st.floats(-1000, 1000),
    tick_ns=st.sampled_from([1.0, 10.0, 1000.0, 1e9 / 48_000]),
    ref_ticks=st.integers(-(2**40), 2**61),
    ref_host_ns=st.integers(0, 2**61),
)


@given(models, st.lists(st.integers(0, WEEK_NS), min_size=1, max_size=20))
def test_clock_maps_round_trip_within_a_nanosecond_over_a_week(
    model: ClockModel, elapsed_ns: list[int]
) -> None:
    ticks = model.ref_ticks + np.array(elapsed_ns) // max(1, round(model.ns_per_tick))
    host_ns = model.to_host(ticks)
    assert np.array_equal(model.to_ticks(host_ns), ticks) or model.ns_per_tick < 2
    assert np.abs(model.to_host(model.to_ticks(host_ns)) - host_ns).max() <= 1


@given(models, st.lists(st.integers(0, WEEK_NS), min_size=2, max_size=50))
def test_clock_maps_are_monotonic(model: ClockModel, elapsed_ns: list[int]) -> None:
    ticks = model.ref_ticks + np.sort(np.array(elapsed_ns)) // max(1, round(model.ns_per_tick))
    assert (np.diff(model.to_host(ticks)) >= 0).all()
