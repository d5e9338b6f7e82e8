"""Re-mapping a stored stream from both sides."""

import numpy as np
import pytest

from sensorium.drivers.frame import (
    ClockKind,
    DeviceClock,
    Encoding,
    Frame,
    Latency,
    Modality,
    StreamInfo,
)
from sensorium.sync.clocks.remap import remap
from sensorium.sync.clocks.tracker import StreamTracker

SECOND = 1_000_000_000


def recorded(
    rate_hz: float, seconds: float, seed: int, block: int
) -> tuple[StreamInfo, list[Frame], np.ndarray]:
    """A crystal that swings by 4.8 ppm in 300 s, restarted after two thirds of the recording."""
    random = np.random.default_rng(seed)
    at_s = np.arange(round(rate_hz * seconds)) / rate_hz
    device_s = at_s * (1 - 30e-6) + 4.8e-6 * 300 / (2 * np.pi) * np.sin(2 * np.pi * at_s / 300)
    capture = 10**12 + np.rint(at_s * 1e9).astype(np.int64)
    ticks = 2**32 - 30_000_000 + (device_s * 1e6).astype(np.int64)
    restart = at_s.size * 2 // 3 // block * block
    ticks[restart:] -= ticks[restart] - 1000
    arrival = np.maximum.accumulate(
        capture + 1_000_000 + random.exponential(1.5e6, at_s.size).astype(np.int64)
    )
    info = StreamInfo(
        "s",
        Modality.IMU,
        Encoding.JPEG,
        rate_hz,
        "s",
        DeviceClock(ClockKind.FREE, 1000, 1, 2**32),
        Latency(1_000_000, 0, SECOND),
    )
    frames = [
        Frame("s", at, block, ticks[at : at + block] % 2**32, arrival[at : at + block], b"")
        for at in range(0, at_s.size - block + 1, block)
    ]
    return info, frames, capture


@pytest.mark.parametrize(("rate_hz", "block"), [(30, 1), (200, 10)])
def test_both_sides_know_more_than_one(rate_hz: float, block: int) -> None:
    info, frames, capture = recorded(rate_hz, 180, 1, block)
    tracker = StreamTracker(info)
    causal = np.concatenate([tracker.update(frame).capture_ns for frame in frames])
    stamps = remap(info, frames)
    mapped = np.concatenate([one.capture_ns for one in stamps])
    truth = capture[: mapped.size]
    arrival = np.concatenate([frame.arrival_ns for frame in frames])
    assert [one.epoch for one in (stamps[0], stamps[-1])] == [0, 1]
    assert (mapped <= arrival).all()
    assert (np.diff(mapped) >= 0).all()
    error, causal_error = np.abs(mapped - truth), np.abs(causal - truth)
    # Not only better on the whole: the first seconds of an epoch are no worse than the rest.
    assert np.percentile(error, 99) < np.percentile(causal_error[truth > truth[0] + 5 * SECOND], 99)
    assert np.percentile(error[truth < truth[0] + 5 * SECOND], 99) < 30_000
    bound = np.repeat([one.uncertainty.bound95_ns for one in stamps], block)
    assert (error <= bound).mean() > 0.9


def test_streams_without_a_device_clock_keep_their_stamps() -> None:
    info = StreamInfo("s", Modality.CAMERA, Encoding.JPEG, 30, "s", DeviceClock(), Latency(1000, 0, SECOND))
    arrival = 10**12 + np.arange(100) * 33_000_000
    frames = [Frame("s", at, 1, None, arrival[at : at + 1], b"") for at in range(100)]
    assert [int(one.capture_ns[0]) for one in remap(info, frames)] == (arrival - 1000).tolist()


def test_a_recording_too_short_to_solve_keeps_its_causal_stamps() -> None:
    info, frames, _ = recorded(30, 1.5, 2, 1)
    tracker = StreamTracker(info)
    causal = [int(tracker.update(frame).capture_ns[0]) for frame in frames]
    assert [int(one.capture_ns[0]) for one in remap(info, frames)][:10] == causal[:10]


def test_samples_between_a_step_and_its_discovery_are_mapped_by_the_new_epoch() -> None:
    random = np.random.default_rng(8)
    capture = 10**12 + np.arange(30 * 90) * (SECOND // 30)
    ticks = capture // 1000
    ticks[1500:] -= 3000  # known some seconds later
    arrival = np.maximum.accumulate(
        capture + 1_000_000 + random.exponential(1.5e6, capture.size).astype(np.int64)
    )
    clock = DeviceClock(ClockKind.FREE, 1000)
    info = StreamInfo("s", Modality.IMU, Encoding.JPEG, 30.0, "s", clock, Latency(1_000_000, 0, SECOND))
    frames = [Frame("s", at, 1, ticks[at : at + 1], arrival[at : at + 1], b"") for at in range(ticks.size)]
    stamps = remap(info, frames)
    error = np.abs(np.concatenate([one.capture_ns for one in stamps]) - capture)
    assert abs([one.epoch for one in stamps].index(1) - 1500) < 10
    assert np.percentile(error[1510:], 99) < 100_000
