"""Stamps that are cut off to coarse steps, declared or not: what the recorder stores, against a simulated truth."""

import numpy as np
import pytest
from stored_clock import LEAST_NS, MICROSECONDS, MS, SECOND, Device, Stored, store

from sensorium.drivers.frame import ClockKind, DeviceClock
from sensorium.sync.clocks.clamp import within_step
from sensorium.sync.clocks.grid import Grid, TickGrid
from sensorium.sync.clocks.model import ClockEventKind

WRONG = {ClockEventKind.RESET, ClockEventKind.DUPLICATE, ClockEventKind.FROZEN, ClockEventKind.AHEAD}


def cut(device: Device, step_us: int) -> None:
    device.device_us = device.device_us // step_us * step_us


def clock_of(step_us: int, is_declared: bool) -> DeviceClock:
    return DeviceClock(ClockKind.FREE, 1000 * step_us) if is_declared else MICROSECONDS


def settled_p99(stored: Stored, device: Device) -> tuple[float, float]:
    """Return the p99 of the stored captures and of plain arrivals, older than 10 s."""
    late = device.part_after(10)
    arrivals = np.abs(device.arrival_ns - LEAST_NS - device.capture_ns)
    return float(np.percentile(np.abs(stored.error_ns)[late], 99)), float(np.percentile(arrivals[late], 99))


@pytest.mark.parametrize("is_declared", [True, False], ids=["declared", "undeclared"])
@pytest.mark.parametrize(
    ("step_us", "rate_hz"), [(1000, 30), (10_000, 30), (10_000, 100), (10_000, 250), (4000, 60), (125, 200)]
)
def test_steady_samples_are_a_finer_clock_than_their_stamps(
    step_us: int, rate_hz: int, is_declared: bool
) -> None:
    covered = []
    for seed in range(3):
        device = Device.run(rate_hz, 60, seed)
        cut(device, step_us)
        stored = store(device, clock_of(step_us, is_declared))
        assert not WRONG & set(stored.events)
        assert (stored.epoch == 0).all()
        p99, arrivals_p99 = settled_p99(stored, device)
        assert p99 < 0.1 * arrivals_p99
        covered.append(stored.covers(device.part_after(2)))
    assert np.mean(covered) > 0.93


@pytest.mark.parametrize("is_declared", [True, False], ids=["declared", "undeclared"])
@pytest.mark.parametrize(("step_us", "rate_hz"), [(10_000, 30), (2000, 50)])
def test_unsteady_samples_lie_within_their_step_and_before_they_came(
    step_us: int, rate_hz: int, is_declared: bool
) -> None:
    """Exposure moves the instants by a third of a period."""
    covered, ours, arrivals = [], [], []
    for seed in range(4):
        random = np.random.default_rng([seed, 12])
        device = Device.run(rate_hz, 90, seed)
        moved_ns = random.integers(0, SECOND // rate_hz // 3, device.capture_ns.size)
        device.capture_ns += moved_ns
        device.arrival_ns = np.maximum.accumulate(device.arrival_ns + moved_ns)
        device.device_us += moved_ns // 1000
        cut(device, step_us)
        stored = store(device, clock_of(step_us, is_declared))
        assert ClockEventKind.RESET not in stored.events
        covered.append(stored.covers(device.part_after(5)))
        p99, arrivals_p99 = settled_p99(stored, device)
        ours.append(p99)
        arrivals.append(arrivals_p99)
    assert np.mean(covered) > 0.93
    assert np.mean(ours) < np.mean(arrivals)


def test_a_restart_of_a_coarse_clock_is_an_epoch() -> None:
    device = Device.run(100, 60, 5)
    late = device.part_after(30)
    device.device_us[late] -= device.device_us[late.start] - 3_333
    cut(device, 10_000)
    stored = store(device, clock_of(10_000, True))
    assert stored.events.count(ClockEventKind.RESET) == 1
    assert stored.epoch[-1] == 1
    assert stored.covers(slice(late.start, None)) > 0.93


def test_samples_lost_without_a_gap_in_their_numbers_do_not_carry_the_count_away() -> None:
    device = Device.run(30, 60, 6)
    cut(device, 10_000)
    kept = device.without(slice(1000, 1005))
    stored = store(kept)
    after = slice(1000, None)
    assert stored.covers(after) > 0.93
    assert np.percentile(np.abs(stored.error_ns[1090:]), 95) < 5 * MS


def test_samples_lost_and_counted_are_a_gap_and_no_more() -> None:
    device = Device.run(100, 60, 7)
    cut(device, 10_000)
    seqs = np.delete(np.arange(device.capture_ns.size), slice(3000, 3040))
    stored = store(device.without(slice(3000, 3040)), seqs=seqs)
    assert not WRONG & set(stored.events)
    assert np.percentile(np.abs(stored.error_ns[3000:]), 99) < MS


def test_an_exact_counter_and_fine_clocks_are_not_called_coarse() -> None:
    exact, jittery = TickGrid(1000.0, 5000.0, True), TickGrid(1000.0, 33_333.0, True)
    random = np.random.default_rng(8)
    for at in range(400):
        exact.take(5000 * at, at, 5 * MS * at)
        jittery.take(int(33_333.3 * at + random.integers(0, 3)), at, 33 * MS * at)
    assert (exact.state, jittery.state) == (Grid.EXACT, Grid.FINE)


@pytest.mark.parametrize("ppm", [-200, -25, -3, 0.1, 10, 1000])
@pytest.mark.parametrize("lost", [0, 30])
def test_microseconds_of_a_crystal_are_not_called_coarse(ppm: float, lost: int) -> None:
    """Nearly all of them are whole periods apart; some samples are lost without a gap in their numbers."""
    for begin in range(50):
        grid = TickGrid(1000.0, 5000.0, True)
        kept = np.delete(np.arange(3000), np.random.default_rng(begin).integers(0, 3000, lost))
        for seq, at in enumerate(kept.tolist()):
            grid.take(int((at + begin) * 5000 * (1 + ppm * 1e-6) + 0.02 * begin), seq, 5 * MS * at)
        assert grid.state is not Grid.COARSE


def test_one_bad_tick_does_not_hide_a_coarse_step() -> None:
    grid = TickGrid(1000.0, 33_333.0, True)
    for at in range(40):
        ticks = int(33_333.3 * at) // 10_000 * 10_000
        grid.take(ticks + (3777 if at == 9 else 0), at, 33 * MS * at)
    assert (grid.state, grid.step_ticks) == (Grid.COARSE, 10_000)


def test_a_cut_off_stamp_and_its_arrival_bound_a_capture_from_both_sides() -> None:
    assert within_step(1000, 1400, 1000.0, 5000.0) == (1200, 200.0)  # it had come before its step was over
    assert within_step(1000, 2500, 1000.0, 800.0) == (1850, 150.0)  # hardly so late
    assert within_step(1000, 9000, 1000.0, 800.0) == (1500, 500.0)  # held back: its stamp alone
