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


class Frame:
    """What was recorded as one message: an image, a LiDAR's revolution, a block of samples.

    Attributes:
        instance: Which run of the driver.
    """

    __slots__ = ("_info", "_recorded", "_utc_minus_host_ns", "instance")

    def __init__(self, recorded: RecordedFrame, info: StreamInfo, utc_minus_host_ns: int) -> None:
        self._recorded = recorded
        self._info = info
        self._utc_minus_host_ns = utc_minus_host_ns
        self.instance = recorded.instance

    @property
    def stream(self) -> str:
        return self._recorded.frame.stream

    @property
    def seq(self) -> int:
        """Number of the first sample; a jump is a loss that the manifest accounts for."""
        return self._recorded.frame.seq

    @property
    def count(self) -> int:
        """Samples in it."""
        return self._recorded.frame.count

    @property
    def times_ns(self) -> Times:
        """(k,) int64 capture times, UTC ns; k = ``count``, or 1 = of the first sample."""
        return self._recorded.stamped.capture_ns + self._utc_minus_host_ns

    @property
    def time_ns(self) -> int:
        """Capture time of the first sample, UTC ns."""
        return int(self._recorded.stamped.capture_ns[0]) + self._utc_minus_host_ns

    @property
    def uncertainty_ns(self) -> float:
        """By how much its times may be off: covers the truth 95 % of the time, all that is not known included."""
        return self._recorded.uncertainty.total95_ns

    @property
    def asymmetry_ns(self) -> float:
        """That part of it which no stamp shows (a constant latency): a bound, which does not average out."""
        return self._recorded.uncertainty.asymmetry_ns

    @property
    def arrival_ns(self) -> Times:
        """(k,) int64 when its samples reached the machine, UTC ns; k = ``count`` or 1."""
        return self._recorded.frame.arrival_ns + self._utc_minus_host_ns

    @property
    def device_ticks(self) -> Times | None:
        """(k,) int64 raw stamps of the device, k = ``count`` or 1; None where it has none."""
        return self._recorded.frame.device_ticks

    @property
    def payload(self) -> bytes | memoryview:
        """Bytes as they were published; ``Stream.encoding`` says of what."""
        return self._recorded.frame.payload

    @property
    def meta(self) -> Mapping[str, float]:
        """Numbers that came with it, by name (``exposure_ns``)."""
        return dict(zip(self._info.meta_fields, self._recorded.frame.meta, strict=True))

    def __repr__(self) -> str:
        return f"<Frame {self.stream} {self.seq}: {self.count} samples, {len(self.payload)} bytes>"


def frames_in(files: EpisodeFiles, names: Collection[str], window: Window) -> Iterator[RecordedFrame]:
    """Yield the frames that hold a sample captured in a window, in order of arrival; reads only their chunks."""
    offset_ns = files.timeline.utc_minus_host_ns
    since_ns = None if window.start_ns is None else window.start_ns - offset_ns
    until_ns = None if window.end_ns is None else window.end_ns - offset_ns
    if since_ns is None and until_ns is None:
        yield from files.frames(names)
        return
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
