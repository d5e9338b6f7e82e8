"""Offsets measured elsewhere: dead senders, restarts, and a real recording with both."""

from pathlib import Path

import numpy as np
import pytest

from sensorium.sync.clocks.offsets import FROZEN_AFTER, OffsetTracker, frozen_runs, live_readings, smooth

SECOND = 1e9


def readings(count: int, skew: float, noise_ns: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    at = np.arange(count) * 5 * SECOND
    return at, 1e15 + skew * at + random.normal(0, noise_ns, count)


def test_skew_and_offset_are_found_within_their_sigma() -> None:
    at, offset = readings(60, -5e-6, 35e3, 1)
    tracker = OffsetTracker()
    for one, value in zip(at, offset, strict=True):
        assert tracker.update(float(one), float(value))
    found, sigma = tracker.offset_at(float(at[-1]) + 10 * SECOND)
    assert abs(found - (1e15 - 5e-6 * (at[-1] + 10 * SECOND))) < 3 * sigma
    assert tracker.skew_ppm == pytest.approx(-5, abs=0.5)


def test_a_dead_sender_is_frozen_and_does_not_bend_the_line() -> None:
    at, offset = readings(60, -5e-6, 35e3, 2)
    offset[30:] = offset[29]
    tracker = OffsetTracker()
    taken = [tracker.update(float(one), float(value)) for one, value in zip(at, offset, strict=True)]
    assert sum(taken) == 30
    assert tracker.is_frozen
    assert frozen_runs(offset) == [slice(30, 60)]
    (line,) = smooth(at, offset)
    assert (line.live, line.repeats) == (30, 30)
    # 35 us over 150 s: the slope's sigma is 35e3 / (50 s * sqrt(30)).
    assert line.skew == pytest.approx(-5e-6, abs=4 * 35e3 / (43 * SECOND * 30**0.5))


def test_a_few_equal_readings_are_no_frozen_run() -> None:
    offset = np.array([1.0, 2.0, 2.0, 2.0, 3.0])
    assert FROZEN_AFTER == 3
    assert frozen_runs(offset) == []


def test_a_restart_drops_the_offset_and_keeps_the_skew() -> None:
    at, offset = readings(60, -5e-6, 35e3, 3)
    tracker = OffsetTracker()
    for one, value in zip(at, offset, strict=True):
        tracker.update(float(one), float(value))
    tracker.update(100 * SECOND, 7e9)
    assert tracker.epoch == 1
    found, _ = tracker.offset_at(120 * SECOND)
    assert found == pytest.approx(7e9 - 5e-6 * 20 * SECOND, abs=20e3)


def test_one_wild_reading_moves_little() -> None:
    at, offset = readings(60, 0.0, 35e3, 4)
    offset[50] += 50e6
    tracker = OffsetTracker()
    for one, value in zip(at, offset, strict=True):
        tracker.update(float(one), float(value))
    assert abs(tracker.offset_at(float(at[-1]))[0] - 1e15) < 60e3


def test_the_real_recording_has_two_epochs_and_a_dead_sender(shared_data: Path) -> None:
    data = np.load(shared_data / "clock" / "clock_resets_offsets.npz")
    slopes = []
    for name in ("MyMarkerStream", "BioSemi"):
        at, offset = data[f"{name}_clock_times"] * 1e9, data[f"{name}_clock_values"] * 1e9
        is_live, epochs = live_readings(at, offset)
        assert [epoch.stop - epoch.start for epoch in epochs] == [82, 33]
        assert int(is_live[epochs[0]].sum()) == 28
        assert frozen_runs(offset) == [slice(28, 82)]
        slopes += [line.skew * 1e6 for line in smooth(at, offset)]
    # The same crystal before and after (specs/clocks.md 3): -5.1, -5.4 ppm and -4.3, -4.4 ppm.
    assert slopes == pytest.approx([-5.1, -4.3, -5.4, -4.4], abs=0.2)
