"""Clocks that are held up, stand still, start anew or are set: what the recorder stores, against a simulated truth."""

import numpy as np
import pytest
from stored_clock import BEGIN_NS, MICROSECONDS, MS, SECOND, Device, store

from sensorium.drivers.frame import ClockKind, DeviceClock
from sensorium.sync.clocks.clamp import CaptureClamp
from sensorium.sync.clocks.model import ClockEventKind, Uncertainty
from sensorium.sync.clocks.unwrap import TickKind, Unwrapper


@pytest.mark.parametrize("rate_hz", [30, 200])
@pytest.mark.parametrize("length_s", [1.2, 1.6, 5, 30])
def test_samples_that_a_stall_held_back_keep_the_time_of_their_clock(length_s: float, rate_hz: float) -> None:
    """Longer than any latency that the driver calls credible; the counter wraps during the longest one."""
    covered, errors = [], []
    for seed in range(3):
        device = Device.run(rate_hz, 60, seed)
        held = device.hold(20.3, length_s)
        stored = store(device)
        assert ClockEventKind.RESET not in stored.events
        assert (stored.epoch == 0).all()
        covered.append(stored.covers(held))
        errors.append(np.abs(stored.error_ns[held]))
        assert np.median(stored.bound_ns[held]) < MS  # not by being wide
    assert np.mean(covered) > 0.93
    assert np.percentile(np.concatenate(errors), 95) < 500_000


def test_a_stall_that_loses_all_but_the_newest_samples_is_no_reset() -> None:
    device = Device.run(30, 60, 1)
    held = device.hold(20.3, 6.0)
    stored = store(device.without(slice(held.start, held.stop - 3)))
    assert (stored.epoch == 0).all()
    assert stored.covers(slice(held.start, None)) > 0.93


@pytest.mark.parametrize(
    "clock",
    [DeviceClock(ClockKind.FREE, 1_000_000, 1, 2**16), DeviceClock(ClockKind.FREE, 1000, 1, 1_000_000)],
    ids=["16 bit ms", "one second of us"],
)
def test_a_counter_that_wraps_during_a_stall_is_followed(clock: DeviceClock) -> None:
    device = Device.run(100, 80, 2)
    held = device.hold(20.3, 30)
    stored = store(device, clock)
    assert (stored.epoch == 0).all()
    assert stored.covers(held) > 0.93
    assert np.abs(stored.error_ns[held]).max() < 20 * MS  # no turn is missed; the skew is known to 200 ppm


def test_a_device_whose_clock_stood_still_is_in_doubt_until_it_shows() -> None:
    """After a silence of five seconds the count goes on where it stopped; what comes is captured now."""
    covered = []
    for seed in range(3):
        device = Device.run(30, 70, seed)
        late = device.part_after(25)
        device.capture_ns[late] += 5 * SECOND
        device.arrival_ns[late] += 5 * SECOND
        stored = store(device)
        assert stored.events.count(ClockEventKind.RESET) == 1
        assert stored.epoch[-1] == 1
        covered.append(stored.covers(late))
        settled = slice(late.start + 3 * 30, None)
        assert np.percentile(np.abs(stored.error_ns[settled]), 99) < MS
    assert np.mean(covered) > 0.93


def test_a_counter_that_begins_at_zero_just_where_it_would_have_wrapped_is_a_reset() -> None:
    """0.8 s before the wrap it falls silent for 1.5 s, and restarts at 0.3 s: by the count alone a wrap."""
    unwrapper = Unwrapper(MICROSECONDS, 10_000)
    last = 2**32 - 800_000
    unwrapper.step(last - 10_000, BEGIN_NS, 0)
    unwrapper.step(last, BEGIN_NS + 10 * MS, 1)
    _, kind = unwrapper.step(300_000, BEGIN_NS + 1510 * MS, 2)
    assert kind is TickKind.RESET


def test_lost_samples_that_no_sequence_number_tells_of_do_not_leave_a_short_counter_behind() -> None:
    """Half a second is lost; the counter of 65 ms has wrapped seven times, and nobody counted."""
    clock = DeviceClock(ClockKind.FREE, 1000, 1, 2**16)
    device = Device.run(200, 40, 3)
    gone = slice(4000, 4103)
    stored = store(device.without(gone), clock)
    after = slice(gone.start + 8, None)
    assert np.percentile(np.abs(stored.error_ns[after]), 99) < MS
    assert stored.covers(after) > 0.93
    assert stored.covers(slice(gone.start, gone.start + 8)) == 1.0


@pytest.mark.parametrize(
    ("rate_hz", "step_us", "within_s"),
    [
        (30, -3000, 8.0),
        (30, 3000, 1.0),
        (200, -500, 8.0),
        (200, 500, 1.0),
        (30, 50_000, 0.5),
        (30, -50_000, 2.0),
        (30, -20_000, 8.0),
    ],
)
def test_a_clock_that_is_set_begins_an_epoch_and_the_bound_covers_meanwhile(
    rate_hz: float, step_us: int, within_s: float
) -> None:
    covered, soon, errors = [], [], []
    for seed in range(4):
        device = Device.run(rate_hz, 75, seed)
        late = device.part_after(40)
        device.device_us[late] += step_us
        stored = store(device)
        assert stored.events.count(ClockEventKind.RESET) == 1
        assert (stored.epoch[: late.start] == 0).all()
        assert stored.epoch[-1] == 1
        covered.append(stored.covers(late))
        soon.append(stored.covers(slice(late.start, late.start + round(5 * rate_hz))))
        errors.append(np.abs(stored.error_ns[late][round(within_s * rate_hz) :]))
    assert np.mean(covered) > 0.93
    assert np.mean(soon) > 0.9
    assert np.percentile(np.concatenate(errors), 95) < 0.2 * abs(step_us) * 1000


@pytest.mark.parametrize(("rate_hz", "most"), [(30, 8), (200, 17)])
def test_a_step_back_is_in_doubt_after_a_few_samples_however_long_the_floor_was_not_reached_before(
    rate_hz: float, most: int
) -> None:
    """Five samples show it, and a map is 40 ms late; a floor that is known to 10 us is seldom reached anyway."""
    uncovered = []
    for seed in range(5):
        device = Device.run(rate_hz, 60, seed)
        late = device.part_after(50)
        device.device_us[late] -= 3000
        stored = store(device)
        soon = slice(late.start, late.start + round(rate_hz))
        uncovered.append((np.abs(stored.error_ns) > stored.bound_ns)[soon].sum())
    assert np.mean(uncovered) <= most


def test_samples_below_the_clock_widen_its_bound_until_they_are_out_of_its_window() -> None:
    """A slew of 100 ppm that runs ahead is far beyond what a crystal does, and each of its samples too near for a step.

    Its first second, before any quick sample shows it, cannot be covered, nor the second after it was called a step.
    """
    covered = []
    for seed in range(3):
        device = Device.run(100, 120, seed)
        slewed = slice(100 * 60, 100 * 75)
        ramp_us = np.arange(slewed.stop - slewed.start) * 100e-6 * 1e4
        device.device_us[slewed] += ramp_us.astype(np.int64)
        device.device_us[slewed.stop :] += round(ramp_us[-1])
        stored = store(device)
        covered.append(stored.covers(slewed))
        assert np.median(stored.bound_ns[: slewed.start]) < 20_000  # and only then
    assert np.mean(covered) > 0.75


@pytest.mark.parametrize("extra_ms", [3.0, 12.0])
def test_ten_seconds_of_congestion_are_no_step(extra_ms: float) -> None:
    covered = []
    for seed in range(4):
        device = Device.run(30, 90, seed)
        begin, end = (device.part_after(at_s).start for at_s in (40, 50))
        device.arrival_ns[begin:end] += round(extra_ms * MS)
        device.arrival_ns = np.maximum.accumulate(device.arrival_ns)
        stored = store(device)
        assert ClockEventKind.RESET not in stored.events
        assert (stored.epoch == 0).all()
        covered.append(stored.covers(slice(begin, None)))
    assert np.mean(covered) > 0.93


def test_single_bad_ticks_are_not_used_and_are_no_step() -> None:
    device = Device.run(100, 60, 5)
    bad = np.arange(2500, 6000, 400)
    device.device_us[bad] += np.random.default_rng(6).integers(5_000, 300_000, bad.size)
    stored = store(device)
    assert (stored.epoch == 0).all()
    assert stored.events.count(ClockEventKind.AHEAD) == bad.size
    assert stored.covers(slice(2500, None)) > 0.93


def test_what_is_moved_widens_the_bound_by_as_much() -> None:
    clamp, known = CaptureClamp(), Uncertainty(10.0, 5.0, 1.0)
    assert clamp.one(100, 500) == 100
    assert clamp.widened(known) == known
    assert clamp.one(40, 600) == 100  # not backwards
    assert clamp.widened(known) == Uncertainty(10.0, 65.0, 1.0)
    assert clamp.one(900, 700) == 700  # not after the arrival
    assert clamp.widened(known) == Uncertainty(10.0, 205.0, 1.0)
    block = clamp.block(np.array([690, 720, 710]), np.array([800]))
    assert block.tolist() == [700, 720, 720]
    assert clamp.widened(known) == Uncertainty(10.0, 15.0, 1.0)


@pytest.mark.parametrize("has_host_clock_stopped", [True, False])
def test_the_first_stamps_after_a_host_has_slept_lie_within_their_bound(has_host_clock_stopped: bool) -> None:
    """Suspended, RAW stands still and the device goes on; blocked, both go on and nothing is kept."""
    early, warm = [], []
    for seed in range(12):
        device = Device.run(30, 75, seed)
        late = device.part_after(40)
        slept_ns = 200 * SECOND
        device.device_us[late] += slept_ns // 1000 - 200 * 4  # the crystal got warmer by 4 ppm
        if not has_host_clock_stopped:
            device.capture_ns[late] += slept_ns
            device.arrival_ns[late] += slept_ns
        stored = store(device)
        assert stored.epoch[-1] == (1 if has_host_clock_stopped else 0)
        early.append(stored.covers(slice(late.start, late.start + 30)))
        warm.append(stored.covers(slice(late.start + 30, None)))
    assert np.mean(early) > 0.93
    assert np.mean(warm) > 0.93
