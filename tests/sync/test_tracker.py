"""The tracker: capture times against a simulated truth, whatever the device and the link do."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from sensorium.drivers.frame import (
    ClockKind,
    DeviceClock,
    Encoding,
    Frame,
    Latency,
    Modality,
    StreamInfo,
    stamps,
)
from sensorium.sync.clocks.model import ClockEventKind, Stamped
from sensorium.sync.clocks.oneway import CAPACITY
from sensorium.sync.clocks.tracker import StreamTracker

MS = 1_000_000
SECOND = 1_000_000_000
MIN_LATENCY_NS = MS
MICROSECONDS = DeviceClock(ClockKind.FREE, 1000, 1, 2**32)


@dataclass
class Run:
    """Truth and stamps of one simulated stream."""

    capture_ns: NDArray[np.int64]
    ticks: NDArray[np.int64]
    arrival_ns: NDArray[np.int64]


def simulate(rate_hz: float, jitter_ns: float, seconds: float, seed: int, skew_ppm: float = 40.0) -> Run:
    random = np.random.default_rng(seed)
    seconds_at = np.arange(round(rate_hz * seconds)) / rate_hz
    capture = 10**12 + (seconds_at * 1e9).astype(np.int64)
    ticks = 2**32 - 20_000_000 + (seconds_at * 1e6 * (1 + skew_ppm * 1e-6)).astype(np.int64)
    latency = MIN_LATENCY_NS + random.exponential(jitter_ns, capture.size).astype(np.int64)
    return Run(capture, ticks % 2**32, np.maximum.accumulate(capture + latency))


def stream(clock: DeviceClock, rate_hz: float) -> StreamInfo:
    return StreamInfo(
        "s", Modality.CAMERA, Encoding.JPEG, rate_hz, "s", clock, Latency(MIN_LATENCY_NS, 100_000, SECOND)
    )


def track(tracker: StreamTracker, run: Run, block: int = 1) -> list[Stamped]:
    return [
        tracker.update(
            Frame("s", at, block, run.ticks[at : at + block], run.arrival_ns[at : at + block], b"")
        )
        for at in range(0, run.ticks.size - block + 1, block)
    ]


def captures(stamped: Iterable[Stamped]) -> NDArray[np.int64]:
    return np.concatenate([one.capture_ns for one in stamped])


@pytest.mark.parametrize(
    ("rate_hz", "jitter_ns", "block"),
    [(30, 1.5e6, 1), (200, 1.5e6, 1), (200, 1.5e6, 10), (640, 0.3e6, 64), (1000, 1.5e6, 10), (100, 1.5e6, 1)],
    ids=["camera", "imu", "imu blocks", "lidar", "force", "audio blocks"],
)
def test_half_a_minute_reaches_two_hundred_microseconds(rate_hz: float, jitter_ns: float, block: int) -> None:
    covered = []
    for seed in range(5):
        run = simulate(rate_hz, jitter_ns, 30, seed)
        stamped = track(StreamTracker(stream(MICROSECONDS, rate_hz)), run, block)
        capture = captures(stamped)
        truth = run.capture_ns[: capture.size]
        error = np.abs(capture - truth)
        bound = np.repeat([one.uncertainty.bound95_ns for one in stamped], block)
        warm = truth > truth[0] + 5 * SECOND
        assert np.percentile(error[warm], 99) < 200_000
        assert (capture <= run.arrival_ns[: capture.size]).all()
        assert (np.diff(capture) >= 0).all()
        covered.append(float((error <= bound)[warm].mean()))
    assert np.mean(covered) > 0.93


def test_equal_frames_give_equal_stamps() -> None:
    run = simulate(30, 1.5e6, 10, 1)
    first, second = (captures(track(StreamTracker(stream(MICROSECONDS, 30)), run)) for _ in range(2))
    assert np.array_equal(first, second)


def test_the_model_maps_ticks_to_the_captures_that_were_stamped() -> None:
    run = simulate(200, 1.5e6, 20, 2)
    tracker = StreamTracker(stream(MICROSECONDS, 200))
    stamped = track(tracker, run)
    model = tracker.model
    assert model is not None
    mapped = model.to_host(tracker.unwrapped(run.ticks[-1:]))
    assert abs(int(mapped[0]) - int(stamped[-1].capture_ns[0])) <= 1
    assert model.skew_ppm == pytest.approx(-40, abs=3)
    assert model.uncertainty.asymmetry_ns == 100_000


def test_a_restart_keeps_the_skew_and_begins_an_epoch() -> None:
    run = simulate(200, 1.5e6, 30, 3)
    run.ticks[4000:] = run.ticks[4000:] - run.ticks[4000] + 7
    run.capture_ns[4000:] += 2 * SECOND
    run.arrival_ns[4000:] += 2 * SECOND
    tracker = StreamTracker(stream(MICROSECONDS, 200))
    stamped = track(tracker, run)
    assert [one.epoch for one in stamped[3999:4001]] == [0, 1]
    assert ClockEventKind.RESET in {event.kind for event in tracker.take_events()}
    error = np.abs(captures(stamped) - run.capture_ns)
    soon_after = slice(4200, 5000)  # one second in, a fresh skew would be known to some 30 ppm only
    assert np.percentile(error[soon_after], 99) < 50_000


def test_a_stamp_far_ahead_of_its_arrival_is_not_believed() -> None:
    run = simulate(200, 1.5e6, 20, 4)
    run.ticks[3000] += 300_000
    tracker = StreamTracker(stream(MICROSECONDS, 200))
    stamped = track(tracker, run)
    assert ClockEventKind.AHEAD in {event.kind for event in tracker.take_events()}
    error = np.abs(captures(stamped) - run.capture_ns)
    assert np.percentile(error[3005:], 99) < 50_000
    assert (captures(stamped) <= run.arrival_ns).all()


def test_a_long_pause_is_no_reset_and_costs_little() -> None:
    """Ten minutes without a sample; the crystal's rate has moved by 3 ppm meanwhile."""
    first, second = simulate(200, 1.5e6, 20, 4), simulate(200, 1.5e6, 20, 5, skew_ppm=43)
    pause_ns = 600 * SECOND
    ahead_us = round(600e6 * (1 + 41.5e-6) + 20e6 * 40e-6)
    capture = np.concatenate((first.capture_ns, second.capture_ns + pause_ns))
    arrival = np.concatenate((first.arrival_ns, second.arrival_ns + pause_ns))
    ticks = np.concatenate((first.ticks, (second.ticks + ahead_us) % 2**32))
    stamped = track(StreamTracker(stream(MICROSECONDS, 200)), Run(capture, ticks, arrival))
    assert stamped[-1].epoch == 0
    error = np.abs(captures(stamped) - capture)
    assert np.percentile(error[4200:], 99) < 50_000


@pytest.mark.parametrize("step_us", [300_000, -300_000])
def test_a_clock_that_steps_by_less_than_the_reset_rule_sees_becomes_a_new_epoch(step_us: int) -> None:
    run = simulate(200, 1.5e6, 30, 5)
    run.ticks[3000:] = (run.ticks[3000:] + step_us) % 2**32
    tracker = StreamTracker(stream(MICROSECONDS, 200))
    stamped = track(tracker, run)
    assert stamped[-1].epoch == 1
    error = np.abs(captures(stamped) - run.capture_ns)
    assert np.percentile(error[5000:], 99) < 50_000


def test_a_frozen_device_clock_falls_back_to_arrival_and_says_so() -> None:
    run = simulate(200, 1.5e6, 20, 6)
    run.ticks[2000:2200] = run.ticks[2000]
    tracker = StreamTracker(stream(MICROSECONDS, 200))
    stamped = track(tracker, run)
    kinds = [event.kind for event in tracker.take_events()]
    assert kinds.count(ClockEventKind.FROZEN) == 1
    error = np.abs(captures(stamped) - run.capture_ns)
    bound = np.array([one.uncertainty.bound95_ns for one in stamped])
    assert (error <= bound)[2001:2200].mean() > 0.9
    assert np.percentile(error[2210:], 99) < 50_000


def test_a_block_with_one_stamp_is_captured_at_its_first_sample() -> None:
    """480 samples of 48 kHz: the block can only arrive 10 ms after its first sample was captured."""
    random = np.random.default_rng(7)
    count = 3000
    first = 10**12 + np.arange(count) * 10 * MS
    arrival = np.maximum.accumulate(first + 10 * MS + random.exponential(0.3e6, count).astype(np.int64))
    info = StreamInfo(
        "mic",
        Modality.AUDIO,
        Encoding.PCM_S16LE,
        48_000,
        "mic",
        DeviceClock(ClockKind.SAMPLES, 10**9, 48_000),
        Latency(10 * MS, 0, SECOND),
    )
    tracker = StreamTracker(info)
    capture = captures(
        tracker.update(Frame("mic", 480 * at, 480, stamps(480 * at), arrival[at : at + 1], b""))
        for at in range(count)
    )
    error = np.abs(capture - first)[500:]
    assert np.percentile(error, 99) < 0.55 * 1e9 / 48_000


def test_without_a_device_clock_the_jitter_is_the_uncertainty() -> None:
    run = simulate(30, 1.5e6, 30, 8)
    tracker = StreamTracker(stream(DeviceClock(), 30))
    stamped = [tracker.update(Frame("s", at, 1, None, run.arrival_ns[at : at + 1], b"")) for at in range(900)]
    assert np.array_equal(captures(stamped), run.arrival_ns - MIN_LATENCY_NS)
    error = np.abs(captures(stamped) - run.capture_ns)
    bound = np.array([one.uncertainty.bound95_ns for one in stamped])
    assert (error <= bound)[150:].mean() >= 0.93
    assert tracker.model is None
    aperiodic = StreamTracker(stream(DeviceClock(), 0))
    alone = aperiodic.update(Frame("s", 0, 1, None, stamps(10**12), b""))
    assert alone.uncertainty.bound95_ns == SECOND - MIN_LATENCY_NS


def test_host_stamps_are_taken_as_they_are_but_never_after_arrival() -> None:
    tracker = StreamTracker(stream(DeviceClock(ClockKind.HOST), 30))
    early = tracker.update(Frame("s", 0, 1, stamps(10**12), stamps(10**12 + MS), b""))
    late = tracker.update(Frame("s", 1, 1, stamps(10**12 + 40 * MS), stamps(10**12 + 35 * MS), b""))
    assert early.capture_ns.tolist() == [10**12]
    assert late.capture_ns.tolist() == [10**12 + 35 * MS]
    assert [event.kind for event in tracker.take_events()] == [ClockEventKind.AHEAD]


def test_what_one_tracker_keeps_does_not_grow() -> None:
    run = simulate(1000, 1.5e6, 60, 9)
    tracker = StreamTracker(stream(MICROSECONDS, 1000))
    track(tracker, run, 10)
    epoch = tracker._epochs.current
    assert epoch is not None
    assert epoch.envelope._x.size == 2 * CAPACITY


def test_an_overrun_is_a_gap_in_the_sample_clock_not_a_compression() -> None:
    """One second of audio was lost in the middle; the counter went on, and so do the capture times."""
    random = np.random.default_rng(8)
    blocks = np.concatenate((np.arange(1000), np.arange(1100, 2500)))
    first = 10**12 + blocks * 10 * MS
    arrival = np.maximum.accumulate(first + 10 * MS + random.exponential(0.3e6, blocks.size).astype(np.int64))
    info = StreamInfo(
        "mic",
        Modality.AUDIO,
        Encoding.PCM_S16LE,
        48_000,
        "mic",
        DeviceClock(ClockKind.SAMPLES, 10**9, 48_000),
        Latency(10 * MS, 0, SECOND),
    )
    tracker = StreamTracker(info)
    stamped = [
        tracker.update(Frame("mic", 480 * at, 480, stamps(480 * at), arrival[index : index + 1], b""))
        for index, at in enumerate(blocks.tolist())
    ]
    assert stamped[-1].epoch == 0
    assert [event.kind for event in tracker.take_events()] == [ClockEventKind.STALL]
    assert np.percentile(np.abs(captures(stamped) - first)[500:], 99) < 0.55 * 1e9 / 48_000


def test_a_floor_that_moves_is_an_event() -> None:
    run = simulate(50, 0.3e6, 120, 9)
    steps = np.random.default_rng(10).normal(0, 300e3 / np.sqrt(300 * 50), run.ticks.size)
    run.arrival_ns[:] = np.maximum.accumulate(run.arrival_ns + np.abs(np.cumsum(steps)).astype(np.int64))
    tracker = StreamTracker(stream(MICROSECONDS, 50))
    stamped = track(tracker, run)
    assert [event.kind for event in tracker.take_events()] == [ClockEventKind.FLOOR]
    assert stamped[-1].uncertainty.floor_ns > 50_000
