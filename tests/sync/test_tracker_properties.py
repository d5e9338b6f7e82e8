"""Whatever a device sends, stamps stay credible: never after arrival, never backwards, always with a bound."""

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sensorium.drivers.frame import ClockKind, DeviceClock, Encoding, Frame, Latency, Modality, StreamInfo
from sensorium.sync.clocks.tracker import MAX_EVENTS, StreamTracker

SECOND = 1_000_000_000

clocks = st.builds(
    DeviceClock,
    kind=st.sampled_from([ClockKind.FREE, ClockKind.PTP, ClockKind.SAMPLES, ClockKind.HOST, ClockKind.NONE]),
    tick_ns_num=st.sampled_from([1, 1000, 10**9]),
    tick_ns_den=st.sampled_from([1, 48_000]),
    modulus=st.sampled_from([None, 2**16, 2**32, 3_600_000_000]),
)


@st.composite
def deliveries(draw: st.DrawFn) -> list[Frame]:
    """Frames with arrivals that grow and device ticks that do whatever they like."""
    frames = []
    arrival_ns = draw(st.integers(0, 2**60))
    seq = 0
    tick = draw(st.integers(0, 2**50))
    for _ in range(draw(st.integers(1, 16))):
        count = draw(st.sampled_from([1, 1, 1, 4]))
        gaps = draw(st.lists(st.integers(0, 3 * SECOND), min_size=count, max_size=count))
        arrivals = arrival_ns + np.cumsum(np.array(gaps, np.int64))
        arrival_ns = int(arrivals[-1])
        kind = draw(st.sampled_from(["go on", "go on", "go on", "anything", "same", "none"]))
        if kind == "go on":
            steps = draw(st.lists(st.integers(0, 10**7), min_size=count, max_size=count))
            ticks = tick + np.cumsum(np.array(steps, np.int64))
        elif kind == "same":
            ticks = np.full(count, tick, np.int64)
        else:
            ticks = np.array(draw(st.lists(st.integers(0, 2**62), min_size=count, max_size=count)), np.int64)
        tick = int(ticks[-1])
        stamps = arrivals if draw(st.booleans()) else arrivals[-1:]
        device = None if kind == "none" else (ticks if draw(st.booleans()) else ticks[:1])
        frames.append(Frame("s", seq, count, device, stamps, b""))
        seq += count + draw(st.sampled_from([0, 0, 0, 3]))
    return frames


@settings(max_examples=40, deadline=None)
@given(clocks, st.sampled_from([0.0, 30.0, 1000.0]), deliveries())
def test_stamps_are_never_after_arrival_and_never_run_backwards(
    clock: DeviceClock, rate_hz: float, frames: list[Frame]
) -> None:
    info = StreamInfo(
        "s", Modality.IMU, Encoding.JPEG, rate_hz, "s", clock, Latency(1_000_000, 5_000, SECOND)
    )
    tracker = StreamTracker(info)
    last_ns = -(2**62)
    epoch = 0
    for frame in frames:
        stamped = tracker.update(frame)
        ticks = 1 if frame.device_ticks is None else frame.device_ticks.size
        assert stamped.capture_ns.shape == (max(ticks, frame.arrival_ns.size),)
        assert stamped.capture_ns.dtype == np.int64
        assert (stamped.capture_ns <= frame.arrival_ns).all()
        assert int(stamped.capture_ns[0]) >= last_ns
        assert (np.diff(stamped.capture_ns) >= 0).all()
        assert math.isfinite(stamped.uncertainty.bound95_ns)
        assert stamped.uncertainty.bound95_ns >= 0
        assert stamped.uncertainty.asymmetry_ns == 5_000
        assert stamped.epoch >= epoch
        last_ns, epoch = int(stamped.capture_ns[-1]), stamped.epoch
    assert len(tracker.take_events()) <= MAX_EVENTS + 1
    assert tracker.take_events() == ()


@settings(max_examples=15, deadline=None)
@given(
    skew_ppm=st.floats(-1000, 1000),
    rate_hz=st.sampled_from([10.0, 30.0, 200.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_crystal_is_followed(skew_ppm: float, rate_hz: float, seed: int) -> None:
    """Even a ceramic resonator, 10 times worse than the prior: the bound is honest within four widths."""
    random = np.random.default_rng(seed)
    at_s = np.arange(round(20 * rate_hz)) / rate_hz
    capture = 10**12 + np.rint(at_s * 1e9).astype(np.int64)
    ticks = np.rint(at_s * 1e9 * (1 + skew_ppm * 1e-6)).astype(np.int64)
    arrival = np.maximum.accumulate(capture + random.exponential(1e6, at_s.size).astype(np.int64))
    info = StreamInfo("s", Modality.IMU, Encoding.JPEG, rate_hz, "s", DeviceClock(ClockKind.FREE))
    tracker = StreamTracker(info)
    stamped = [
        tracker.update(Frame("s", at, 1, ticks[at : at + 1], arrival[at : at + 1], b""))
        for at in range(at_s.size)
    ]
    model = tracker.model
    assert model is not None
    assert abs(int(stamped[-1].capture_ns[0]) - int(capture[-1])) <= 4 * model.uncertainty.bound95_ns + 1
