"""A simulated device whose clock may do anything, and what the recorder stores of it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from published_path import PublishedPath

from sensorium.drivers.frame import ClockKind, DeviceClock, Encoding, Frame, Latency, Modality, StreamInfo
from sensorium.sync.clocks.model import ClockEventKind

MS, SECOND = 1_000_000, 1_000_000_000
LEAST_NS = 2 * MS
BEGIN_NS = 5 * 10**12
MICROSECONDS = DeviceClock(ClockKind.FREE, 1000, 1, 2**32)
Times = NDArray[np.int64]


@dataclass
class Device:
    """Truth, and what the host got: microseconds of a crystal 25 ppm slow, exponential latency of 1.2 ms."""

    capture_ns: Times
    device_us: Times
    arrival_ns: Times
    rate_hz: float

    @classmethod
    def run(cls, rate_hz: float, seconds: float, seed: int) -> "Device":
        random = np.random.default_rng([seed, 4711])
        at_s = np.arange(round(rate_hz * seconds)) / rate_hz
        capture_ns = BEGIN_NS + np.rint(at_s * 1e9).astype(np.int64)
        device_us = 2**32 - 45_000_000 + np.floor(at_s * 1e6 * (1 - 25e-6)).astype(np.int64)
        latency_ns = LEAST_NS + random.exponential(1.2e6, at_s.size).astype(np.int64)
        return cls(capture_ns, device_us, np.maximum.accumulate(capture_ns + latency_ns), rate_hz)

    def hold(self, begin_s: float, length_s: float) -> slice:
        """Deliver what would arrive in this time at its end, at once; return which samples that are."""
        begin_ns, end_ns = (BEGIN_NS + round(at * SECOND) for at in (begin_s, begin_s + length_s))
        held = (self.arrival_ns > begin_ns) & (self.arrival_ns < end_ns)
        self.arrival_ns[held] = end_ns + 40_000 * np.arange(int(held.sum()))
        self.arrival_ns = np.maximum.accumulate(self.arrival_ns)
        where = np.flatnonzero(held)
        return slice(int(where[0]), int(where[-1]) + 1)

    def without(self, gone: slice) -> "Device":
        kept = np.ones(self.capture_ns.size, np.bool_)
        kept[gone] = False
        return Device(self.capture_ns[kept], self.device_us[kept], self.arrival_ns[kept], self.rate_hz)

    def part_after(self, at_s: float) -> slice:
        return slice(int(np.searchsorted(self.capture_ns, BEGIN_NS + round(at_s * SECOND))), None)


@dataclass
class Stored:
    """What the recorder stored of each sample, and what the clock reported."""

    error_ns: Times
    bound_ns: NDArray[np.float64]
    epoch: Times
    events: list[ClockEventKind]

    def covers(self, part: slice = slice(None)) -> float:
        return float((np.abs(self.error_ns) <= self.bound_ns)[part].mean())


def store(device: Device, clock: DeviceClock = MICROSECONDS, seqs: Times | None = None) -> Stored:
    """Send a device's samples through recorder and thinker; ``seqs`` are their numbers, if not 0, 1, 2 ..."""
    latency = Latency(LEAST_NS, 0, SECOND)
    info = StreamInfo("s", Modality.CAMERA, Encoding.JPEG, device.rate_hz, "s", clock, latency)
    raw = np.floor_divide(device.device_us * 1000, round(clock.tick_ns))
    if clock.modulus is not None:
        raw = raw % clock.modulus
    path = PublishedPath(info)
    stamped = [
        path.update(
            Frame(
                "s",
                at if seqs is None else int(seqs[at]),
                1,
                raw[at : at + 1],
                device.arrival_ns[at : at + 1],
                b"",
            )
        )
        for at in range(raw.size)
    ]
    capture_ns = np.concatenate([one.capture_ns for one in stamped])
    assert (capture_ns <= device.arrival_ns).all()
    assert (np.diff(capture_ns) >= 0).all()
    return Stored(
        capture_ns - device.capture_ns,
        np.array([one.uncertainty.bound95_ns for one in stamped]),
        np.array([one.epoch for one in stamped]),
        [event.kind for event in path.tracker.take_events()],
    )
