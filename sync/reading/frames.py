"""The frames of an episode as they were recorded, by capture time: what every other way of reading is made of."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sensorium.drivers.frame import StreamInfo
from sensorium.sync.episode.reader import Episode as EpisodeFiles
from sensorium.sync.episode.recorded import RecordedFrame, sample_times_ns
from sensorium.sync.video import first_ns

Times = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Window:
    """Capture times that are asked for, UTC ns: from ``start_ns`` on, before ``end_ns``; None = without end."""

    start_ns: int | None = None
    end_ns: int | None = None

    def holds(self, times_ns: Times) -> NDArray[np.bool_]:
        """Return which of (k,) instants lie in it."""
        inside = np.ones(len(times_ns), np.bool_)
        if self.start_ns is not None:
            inside &= times_ns >= self.start_ns
        if self.end_ns is not None:
            inside &= times_ns < self.end_ns
        return inside


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Frame:
    """What was recorded as one message: an image, a LiDAR's revolution, a block of samples.

    Attributes:
        seq: Number of the first of ``count`` samples; a jump is a loss that the manifest accounts for.
        times_ns: (k,) int64 capture times, UTC ns; k = ``count``, or 1 = of the first sample.
        uncertainty_ns: By how much they may be off: covers the truth 95 % of the time, the constant latency that no
            stamp shows included.
        asymmetry_ns: That part of it, a bound and no spread: it does not average out.
        arrival_ns: (k,) int64 when they reached the machine, UTC ns; k = ``count`` or 1.
        device_ticks: (k,) int64 raw stamps of the device, None where it has none.
        payload: Bytes as they were published; ``Stream.encoding`` says of what.
        meta: Numbers that came with it, by name (``exposure_ns``).
        instance: Which run of the driver.
    """

    stream: str
    seq: int
    count: int
    times_ns: Times
    uncertainty_ns: float
    asymmetry_ns: float
    arrival_ns: Times
    device_ticks: Times | None
    payload: bytes | memoryview
    meta: Mapping[str, float]
    instance: int

    @property
    def time_ns(self) -> int:
        """Capture time of the first sample, UTC ns."""
        return int(self.times_ns[0])

    def __repr__(self) -> str:
        return f"<Frame {self.stream} {self.seq}: {self.count} samples, {len(self.payload)} bytes>"


def frame_of(recorded: RecordedFrame, info: StreamInfo, utc_minus_host_ns: int) -> Frame:
    """Return a frame as its reader sees it, on UTC."""
    made, known = recorded.frame, recorded.uncertainty
    return Frame(
        made.stream,
        made.seq,
        made.count,
        recorded.stamped.capture_ns + utc_minus_host_ns,
        known.total95_ns,
        known.asymmetry_ns,
        made.arrival_ns + utc_minus_host_ns,
        made.device_ticks,
        made.payload,
        dict(zip(info.meta_fields, made.meta, strict=True)),
        recorded.instance,
    )


def frames_in(files: EpisodeFiles, names: Collection[str], window: Window) -> Iterator[RecordedFrame]:
    """Yield the frames that hold a sample captured in a window, in order of arrival; reads only their chunks."""
    offset_ns = files.timeline.utc_minus_host_ns
    since_ns = None if window.start_ns is None else window.start_ns - offset_ns
    until_ns = None if window.end_ns is None else window.end_ns - offset_ns
    for recorded in files.frames(names, since_ns, until_ns):
        first_capture_ns, last_capture_ns = _span_ns(recorded, files.streams[recorded.frame.stream])
        is_before = since_ns is not None and last_capture_ns < since_ns
        is_after = until_ns is not None and first_capture_ns >= until_ns
        if not is_before and not is_after:
            yield recorded


def chained_frames(files: EpisodeFiles, name: str, window: Window) -> Iterator[tuple[RecordedFrame, bool]]:
    """Yield each frame from the last key frame before a window on, and whether it was captured in the window.

    Of streams that are no video nothing comes before the window.
    """
    offset_ns = files.timeline.utc_minus_host_ns
    since_ns = None
    if window.start_ns is not None:
        since_ns = first_ns(files, name, window.start_ns - offset_ns)
    until_ns = None if window.end_ns is None else window.end_ns - offset_ns
    for recorded in files.frames([name], since_ns, until_ns):
        capture_ns = recorded.stamped.capture_ns[:1] + offset_ns
        if window.end_ns is not None and capture_ns[0] >= window.end_ns:
            continue
        yield recorded, bool(window.holds(capture_ns)[0])


def sample_utc_ns(recorded: RecordedFrame, info: StreamInfo, utc_minus_host_ns: int) -> Times:
    """Return the (count,) capture times of a frame's samples, UTC ns."""
    times_ns = sample_times_ns(recorded.stamped.capture_ns, recorded.frame.count, info.rate_hz)
    return times_ns + utc_minus_host_ns


def _span_ns(recorded: RecordedFrame, info: StreamInfo) -> tuple[int, int]:
    captures_ns = recorded.stamped.capture_ns
    if len(captures_ns) == recorded.frame.count:
        return int(captures_ns[0]), int(captures_ns[-1])
    times_ns = sample_times_ns(captures_ns, recorded.frame.count, info.rate_hz)
    return int(times_ns[0]), int(times_ns[-1])
