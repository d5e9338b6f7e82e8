"""Unwrapping: every counter that a device may have, and everything that may happen to it."""

import numpy as np
import pytest

from sensorium.drivers.frame import ClockKind, DeviceClock
from sensorium.sync.clocks.unwrap import FROZEN_AFTER, TickKind, Unwrapper

MS = 1_000_000


def feed(unwrapper: Unwrapper, ticks: np.ndarray, arrival_ns: np.ndarray) -> tuple[list[int], list[TickKind]]:
    steps = [
        unwrapper.step(int(tick), int(at), seq)
        for seq, (tick, at) in enumerate(zip(ticks, arrival_ns, strict=True))
    ]
    return [step[0] for step in steps], [step[1] for step in steps]


@pytest.mark.parametrize(
    ("modulus", "tick_ns", "rate_hz"),
    [
        (2**32, 1000, 20),
        (3_600_000_000, 1000, 10),
        (2**16, 1000, 200),
        (2**16, 1_000_000, 30),
        (2**40, 1, 100),
    ],
    ids=["32 bit us", "hour of us", "16 bit us", "16 bit ms", "40 bit ns"],
)
@pytest.mark.parametrize("block", [1, 10])
def test_a_counter_of_any_modulus_grows_through_its_wraps(
    modulus: int, tick_ns: int, rate_hz: int, block: int
) -> None:
    random = np.random.default_rng(modulus)
    count = 600 * block
    period = round(1e9 / rate_hz / tick_ns)
    truth = modulus - 300 * period + period * np.arange(count)
    arrival = 10**12 + truth * tick_ns + (random.exponential(2e6, count)).astype(np.int64)
    arrival[400:405] = arrival[405]  # a stall, delivered at once
    arrival = np.maximum.accumulate(arrival)
    unwrapper = Unwrapper(DeviceClock(ClockKind.FREE, tick_ns, 1, modulus), period)
    frames = [
        unwrapper.frame(truth[at : at + block] % modulus, arrival[at : at + block], at)
        for at in range(0, count, block)
    ]
    ticks = np.concatenate([frame.ticks for frame in frames])
    assert np.array_equal(ticks - ticks[0], truth - truth[0])
    assert unwrapper.epoch == 0


def test_ticks_past_the_modulus_are_tolerated() -> None:
    hour = 3_600_000_000
    ticks = np.array([hour - 50_000, hour + 50_000, 150_000, 250_000])
    arrival = 10**12 + np.arange(4) * 100 * MS
    unwrapped, kinds = feed(Unwrapper(DeviceClock(ClockKind.FREE, 1000, 1, hour)), ticks, arrival)
    assert np.diff(unwrapped).tolist() == [100_000] * 3
    assert kinds[1:] == [TickKind.NEXT] * 3


@pytest.mark.parametrize("modulus", [None, 2**32])
def test_a_restarted_device_begins_an_epoch_and_a_gap_does_not(modulus: int | None) -> None:
    unwrapper = Unwrapper(DeviceClock(ClockKind.FREE, 1000, 1, modulus), 5000)
    ticks = np.array([900_000_000, 900_005_000, 960_005_000, 1_000, 6_000])
    arrival = 10**12 + np.array([0, 5, 60_005, 62_005, 62_010]) * MS
    unwrapped, kinds = feed(unwrapper, ticks, arrival)
    assert kinds == [TickKind.FIRST, TickKind.NEXT, TickKind.NEXT, TickKind.RESET, TickKind.NEXT]
    assert unwrapper.epoch == 1
    assert unwrapped[-1] - unwrapped[-2] == 5000


def test_a_stall_that_loses_samples_or_delivers_them_late_is_no_reset() -> None:
    unwrapper = Unwrapper(DeviceClock(ClockKind.FREE, 1000, 1, 2**32), 5000)
    ticks = 5000 * np.array([0, 1, 2, 3, 4, 250, 251])
    arrival = 10**12 + np.array([0, 5, 910, 910, 911, 1251, 1256]) * MS
    _, kinds = feed(unwrapper, ticks, arrival)
    assert set(kinds[1:]) == {TickKind.NEXT}


def test_repeated_ticks_are_duplicates_and_then_a_frozen_clock() -> None:
    unwrapper = Unwrapper(DeviceClock(ClockKind.FREE, 1000, 1, None), 5000)
    ticks = np.array([0, 5000] + [10_000] * 8 + [50_000, 55_000])
    _, kinds = feed(unwrapper, ticks, 10**12 + np.arange(12) * 5 * MS)
    assert kinds[2:6] == [TickKind.NEXT] + [TickKind.DUPLICATE] * (FROZEN_AFTER - 1)
    assert kinds[6:10] == [TickKind.FROZEN] * 4
    assert kinds[10:] == [TickKind.NEXT] * 2


def test_a_small_step_back_is_named_and_a_large_one_is_a_reset() -> None:
    ticks = np.array([0, 5000, 10_000, 7_000, 20_000])
    _, kinds = feed(Unwrapper(DeviceClock(ClockKind.FREE, 1000)), ticks, 10**12 + np.arange(5) * 5 * MS)
    assert kinds[3:] == [TickKind.BACKWARDS, TickKind.NEXT]


def test_events_inside_a_block_are_found_one_by_one() -> None:
    unwrapper = Unwrapper(DeviceClock(ClockKind.FREE, 1000), 5000)
    unwrapper.frame(np.array([10**9, 10**9 + 5000]), 10**12 + np.array([0, 5]) * MS, 0)
    frame = unwrapper.frame(
        np.array([10**9 + 10_000, 10**9 + 10_000, 100, 5100]), 10**12 + np.array([10, 15, 20, 25]) * MS, 2
    )
    assert frame.kinds == ((1, TickKind.DUPLICATE), (2, TickKind.RESET))
    assert (frame.epoch, frame.epoch_start) == (1, 2)
    assert frame.usable is not None
    assert frame.usable.tolist() == [True, False, True, True]
