import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sensorium.drivers.frame import ClockKind, DeviceClock
from sensorium.simulators.device_clock import (
    MAX_DRIFT_PPM_PER_S,
    ClockConfig,
    LatencyConfig,
    LatencyPath,
    SimulatedClock,
    simulated_clock,
)

WEEK_S = 7 * 86_400.0


@given(
    skew_ppm=st.floats(-1000, 1000),
    warmup_ppm=st.floats(-50, 50),
    thermal_ppm=st.floats(-50, 50),
    true_s=st.floats(0, WEEK_S),
)
def test_device_time_and_true_time_are_inverse_over_a_week(
    skew_ppm: float, warmup_ppm: float, thermal_ppm: float, true_s: float
) -> None:
    clock = SimulatedClock(
        DeviceClock(ClockKind.FREE), 0, skew_ppm, warmup_ppm, thermal_ppm=thermal_ppm, thermal_phase_rad=1.0
    )
    there = clock.device_s(np.array([true_s]))
    # A float64 of a week's seconds resolves 0.1 ns.
    assert abs(clock.true_s(there)[0] - true_s) < 1e-9


def test_a_positive_skew_makes_the_device_tick_longer() -> None:
    clock = SimulatedClock(DeviceClock(ClockKind.FREE, 1000), 0, skew_ppm=50.0)
    ticks = clock.ticks(np.array([0.0, 1000.0]))
    assert ticks.tolist() == [0, 1_000_000_000 - 50_000]


def test_the_stated_skew_is_the_slope_of_device_time() -> None:
    clock = simulated_clock(ClockConfig(), 1, "imu")
    times = np.linspace(1.0, 1200.0, 100)
    slope = (clock.device_s(times + 0.5) - clock.device_s(times - 0.5)) / 1.0
    np.testing.assert_allclose((1 - slope) * 1e6, clock.skew_at_ppm(times), atol=1e-3)


def test_the_skew_drifts_no_faster_than_the_bound() -> None:
    for name in ("camera_left", "imu", "force", "lidar"):
        clock = simulated_clock(ClockConfig(), 1, name)
        drift = np.diff(clock.skew_at_ppm(np.arange(0.0, 1200.0)))
        assert np.abs(drift).max() <= MAX_DRIFT_PPM_PER_S


def test_a_counter_wraps_when_the_rig_file_says() -> None:
    config = ClockConfig(
        tick_ns=1000, modulus=1 << 32, wrap_after_s=4.0, skew_ppm=0, warmup_ppm=0, thermal_ppm=0
    )
    ticks = simulated_clock(config, 1, "camera").ticks(np.array([3.999_999, 4.0, 4.000_001]))
    assert ticks.tolist() == [(1 << 32) - 1, 0, 1]


def test_a_reset_starts_the_counter_again() -> None:
    clock = SimulatedClock(DeviceClock(ClockKind.FREE, 1000), 7_000_000, 0.0, resets_s=(2.0, 5.0))
    ticks = clock.ticks(np.array([1.0, 2.0, 4.0, 5.5]))
    assert ticks.tolist() == [8_000_000, 0, 2_000_000, 500_000]


def test_equal_seeds_make_equal_clocks_and_different_devices_differ() -> None:
    clocks = [
        simulated_clock(ClockConfig(), seed, name) for seed, name in ((1, "a"), (1, "a"), (1, "b"), (2, "a"))
    ]
    assert clocks[0] == clocks[1]
    assert len({clock.skew_ppm for clock in clocks}) == 3


def test_a_modulus_that_is_no_counter_is_refused() -> None:
    with pytest.raises(ValidationError):
        ClockConfig(modulus=1)


def _latencies(config: LatencyConfig, rate_hz: float, count: int) -> np.ndarray:
    capture_ns = (np.arange(count) * 1e9 / rate_hz).astype(np.int64)
    path = LatencyPath(config, 3_000_000, np.random.default_rng(7), 0)
    arrivals = np.concatenate([path.arrivals(part) for part in np.array_split(capture_ns, 50)])
    assert np.all(np.diff(arrivals) >= 0)
    return np.asarray(arrivals - capture_ns)


def test_latency_is_the_minimum_plus_exponential_jitter() -> None:
    count, mean_ns = 20_000, 1_500_000
    # At 10 Hz no sample catches up with the one before, so the jitter is what was drawn.
    excess = _latencies(LatencyConfig(jitter_ms=1.5), 10.0, count) - 3_000_000
    assert excess.min() >= 0
    # The smallest of n exponentials has mean m / n; four times that has probability e^-4.
    assert excess.min() < 4 * mean_ns / count
    assert abs(excess.mean() - mean_ns) < 4 * mean_ns / np.sqrt(count)
    assert abs(np.median(excess) - mean_ns * np.log(2)) < 4 * mean_ns / np.sqrt(count)


def test_stalls_hold_samples_and_release_them_together() -> None:
    config = LatencyConfig(jitter_ms=0.3, stalls_per_minute=6.0)
    latency = _latencies(config, 200.0, 24_000)
    late = latency > 20_000_000
    # 2 minutes, 6 stalls a minute of 125 ms on average, 200 samples a second: 300 samples are expected.
    assert 24_000 * 0.002 < late.sum() < 24_000 * 0.03
    assert latency.max() < 205_000_000
