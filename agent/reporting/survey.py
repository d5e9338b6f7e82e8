"""One pass over an episode that keeps what its report shows; memory does not grow with the recording."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from sensorium.drivers.frame import VIDEO, Frame, Modality, StreamInfo
from sensorium.drivers.payloads.annexb import is_key_frame
from sensorium.drivers.roles import Role, has_role, roles
from sensorium.errors import PayloadError, SensoriumError
from sensorium.sync.align import Match, SyncRow
from sensorium.sync.decoding import StreamDecoder
from sensorium.sync.episode.entries import EpisodeEvent
from sensorium.sync.episode.manifest import Manifest
from sensorium.sync.episode.reader import Episode
from sensorium.sync.episode.recorded import RecordedFrame
from sensorium.timebase import SECOND_NS

TIME_BINS = 640
"""Columns of an envelope: about two per displayed pixel pair of the page's width."""
CLOCK_POINTS = 1500
RESIDUALS = 4000
MAX_EVENTS = 400
MAX_LOSSES = 400

_GAP_PERIODS = 3.0
_Int64s = NDArray[np.int64]
_Floats = NDArray[np.float64]


class Thinned:
    """Rows of int64, evenly thinned: never more than ``limit``, at least half of it once it was exceeded."""

    def __init__(self, width: int, limit: int) -> None:
        self._limit = limit
        self._stride = 1
        self._seen = 0
        self._kept = 0
        self._parts: list[_Int64s] = [np.empty((0, width), np.int64)]

    def add(self, rows: _Int64s) -> None:
        """Take in (n, width) rows."""
        picked = rows[-self._seen % self._stride :: self._stride]
        self._seen += len(rows)
        if len(picked):
            self._parts.append(picked)
            self._kept += len(picked)
        while self._kept > self._limit:
            halved = self.rows()[::2]
            self._parts, self._kept, self._stride = [halved], len(halved), 2 * self._stride

    def rows(self) -> _Int64s:
        return np.concatenate(self._parts)


class Envelope:
    """Least and greatest value of each column in each of ``TIME_BINS`` equal spans of time."""

    def __init__(self, columns: int, span: tuple[int, int]) -> None:
        self._start_ns, end_ns = span
        self._length_ns = max(end_ns - self._start_ns, 1)
        self.low: _Floats = np.full((TIME_BINS, columns), np.nan)
        self.high: _Floats = np.full((TIME_BINS, columns), np.nan)

    def add(self, times_ns: _Int64s, values: _Floats) -> None:
        """Take in (n,) times and (n, columns) values."""
        bins = np.clip((times_ns - self._start_ns) * TIME_BINS // self._length_ns, 0, TIME_BINS - 1)
        starts = np.r_[0, np.flatnonzero(np.diff(bins)) + 1]
        np.fmin.at(self.low, bins[starts], np.fmin.reduceat(values, starts, axis=0))
        np.fmax.at(self.high, bins[starts], np.fmax.reduceat(values, starts, axis=0))


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One frame kept to be drawn; ``capture_ns`` is host time, of the middle of the frame."""

    payload: bytes | memoryview
    capture_ns: int


@dataclass(slots=True)
class Lost:
    """A stretch in which samples are missing; ``why`` is "" where no event explains it."""

    start_ns: int
    end_ns: int
    count: int
    why: str


@dataclass(slots=True)
class StreamSurvey:
    """What is kept of one stream.

    Attributes:
        spans: Stretches of host time in which frames came without a break.
        clock: Columns instance, seq, arrival, capture, 95 % bound (ns).
    """

    info: StreamInfo
    spans: list[list[int]] = field(default_factory=list)
    losses: list[Lost] = field(default_factory=list)
    clock: Thinned = field(default_factory=lambda: Thinned(5, CLOCK_POINTS))
    first: Snapshot | None = None
    middle: Snapshot | None = None
    last: Snapshot | None = None
    wanted: dict[int, Snapshot] = field(default_factory=dict)
    envelope: Envelope | None = None


@dataclass(slots=True)
class PairSurvey:
    """Alignment of one stream on the reference: signed residual, or for interpolated streams the gap (ns)."""

    residual_ns: Thinned = field(default_factory=lambda: Thinned(1, RESIDUALS))
    without: dict[str, int] = field(default_factory=dict)
    is_interpolated: bool = False


@dataclass(frozen=True, slots=True)
class OverlayPair:
    """The LiDAR sweep and the camera image of one reference tick, by their first samples' numbers."""

    lidar: str
    camera: str
    tick_ns: int
    lidar_seq: int
    camera_seq: int
    apart_ns: int


@dataclass(slots=True)
class Survey:
    """All that the report draws from the files; ``problems`` says what could not be read."""

    span: tuple[int, int]
    streams: dict[str, StreamSurvey] = field(default_factory=dict)
    pairs: dict[str, PairSurvey] = field(default_factory=dict)
    overlays: list[OverlayPair] = field(default_factory=list)
    events: list[EpisodeEvent] = field(default_factory=list)
    more_events: int = 0
    problems: list[str] = field(default_factory=list)


def survey(episode: Episode, manifest: Manifest) -> Survey:
    """Return what the report shows of an episode. What is damaged is left out and named in ``problems``."""
    found = Survey(manifest.span_ns)
    for name, info in episode.streams.items():
        found.streams[name] = StreamSurvey(info)
    _guard(found, "alignment rows", lambda: _take_rows(found, episode.rows(), manifest.reference))
    _guard(found, "events", lambda: _take_events(found, episode.events()))
    _guard(found, "frames", lambda: _take_frames(found, episode.frames(), _middles(manifest)))
    return found


def _guard(found: Survey, what: str, action: Callable[[], None]) -> None:
    try:
        action()
    except (SensoriumError, ValueError, OSError) as err:
        found.problems.append(f"reading the {what} stopped: {err}")


def _middles(manifest: Manifest) -> dict[str, int]:
    """Return the middle of each stream's span in host ns."""
    offset = manifest.timeline.utc_minus_host_ns
    return {
        record.info.name: (record.first_utc_ns + record.last_utc_ns) // 2 - offset
        for record in manifest.streams
        if record.first_utc_ns is not None and record.last_utc_ns is not None
    }


# -- rows and events


def _take_rows(found: Survey, rows: Iterable[SyncRow], reference: str) -> None:
    clouds = [
        s.info for s in found.streams.values() if has_role(s.info, Role.CLOUD) and not s.info.reference_of
    ]
    cameras = [s.info for s in found.streams.values() if s.info.modality is Modality.CAMERA]
    wanted = [(cloud, camera) for cloud in clouds for camera in cameras]
    middle_ns = sum(found.span) // 2
    best: dict[tuple[str, str], OverlayPair] = {}
    for row in rows:
        seqs = {reference: (row.tick_seq, 0)}
        for match in row.matches:
            pair = found.pairs.setdefault(match.stream, PairSurvey())
            if match.outcome is Match.MATCHED:
                pair.is_interpolated = pair.is_interpolated or match.gap_ns > 0
                pair.residual_ns.add(np.array([[match.gap_ns or match.residual_ns]], np.int64))
                seqs[match.stream] = (match.seq or 0, match.residual_ns)
            else:
                reason = match.outcome.value
                pair.without[reason] = pair.without.get(reason, 0) + 1
        for cloud, camera in wanted:
            if cloud.name in seqs and camera.name in seqs:
                key = (cloud.name, camera.name)
                (lidar_seq, lidar_ns), (camera_seq, camera_ns) = seqs[cloud.name], seqs[camera.name]
                if key not in best or abs(row.tick_ns - middle_ns) < abs(best[key].tick_ns - middle_ns):
                    best[key] = OverlayPair(*key, row.tick_ns, lidar_seq, camera_seq, lidar_ns - camera_ns)
    found.overlays = list(best.values())


def _take_events(found: Survey, events: Iterator[EpisodeEvent]) -> None:
    found.events = list(islice(events, MAX_EVENTS))
    found.more_events = sum(1 for _ in events)


# -- frames


def _take_frames(found: Survey, frames: Iterable[RecordedFrame], middles: Mapping[str, int]) -> None:
    wanted: dict[str, set[int]] = {}
    for overlay in found.overlays:
        wanted.setdefault(overlay.lidar, set()).add(overlay.lidar_seq)
        wanted.setdefault(overlay.camera, set()).add(overlay.camera_seq)
    takers = {
        name: _Taker(stream, found, wanted.get(name, set()), middles.get(name))
        for name, stream in found.streams.items()
    }
    try:
        for recorded in frames:
            takers[recorded.frame.stream].take(recorded)
    finally:
        for taker in takers.values():
            taker.finish()


class _Taker:
    """Follows one stream through the pass."""

    def __init__(self, stream: StreamSurvey, found: Survey, wanted: set[int], middle_ns: int | None) -> None:
        self._stream = stream
        self._wanted = wanted
        self._middle_ns = middle_ns if middle_ns is not None else sum(found.span) // 2
        self._span = found.span
        info = stream.info
        self._decoder = StreamDecoder(info)
        self._keeps_frames = bool(roles(info) & {Role.IMAGE, Role.CLOUD})
        self._loss_events = [
            event for event in found.events if event.kind == "loss" and event.stream == info.name
        ]
        self._period_ns = SECOND_NS / info.rate_hz if info.rate_hz else 0.0
        pixel_ns = (found.span[1] - found.span[0]) / (2 * TIME_BINS)
        frame_ns = SECOND_NS / info.message_rate_hz if info.message_rate_hz else pixel_ns
        self._break_ns = max(_GAP_PERIODS * frame_ns, pixel_ns)
        self._merge_ns = max(pixel_ns, 1.0)
        self._instance: int | None = None
        self._next_seq = 0
        self._end_ns: int | None = None
        self._nearest_ns: int | None = None

    def take(self, recorded: RecordedFrame) -> None:
        frame, capture = recorded.frame, recorded.stamped.capture_ns
        first_ns, last_ns = int(capture[0]), int(capture[-1])
        if len(capture) == 1 and frame.count > 1:
            last_ns = first_ns + int((frame.count - 1) * self._period_ns)
        self._follow(recorded.instance, frame, first_ns)
        self._extend(first_ns, last_ns)
        self._instance, self._next_seq, self._end_ns = recorded.instance, frame.next_seq, last_ns
        self._take_clock(recorded)
        if self._keeps_frames:
            self._keep(frame, (first_ns + last_ns) // 2)
        else:
            self._measure(frame, capture)

    def finish(self) -> None:
        """Book the losses after the last frame, which no sequence number shows."""
        for event in self._loss_events:
            seq, count = _number(event, "seq"), _number(event, "count")
            if seq >= self._next_seq and self._end_ns is not None:
                end_ns = min(self._end_ns + int((count + 1) * self._period_ns), self._span[1])
                self._add_loss(Lost(self._end_ns, max(end_ns, self._end_ns), count, _why(event)))

    def _follow(self, instance: int, frame: Frame, first_ns: int) -> None:
        if self._end_ns is None or instance != self._instance or frame.seq <= self._next_seq:
            return
        reasons = [
            _why(event) for event in self._loss_events if self._next_seq <= _number(event, "seq") < frame.seq
        ]
        count = frame.seq - self._next_seq
        self._add_loss(Lost(self._end_ns, first_ns, count, "; ".join(dict.fromkeys(reasons))))

    def _add_loss(self, loss: Lost) -> None:
        """Keep a loss; what is nearer together than a pixel is one, and more than fit are joined further."""
        _join_losses(self._stream.losses, loss, self._merge_ns)
        while len(self._stream.losses) > MAX_LOSSES:
            self._merge_ns *= 2
            kept: list[Lost] = []
            for each in self._stream.losses:
                _join_losses(kept, each, self._merge_ns)
            self._stream.losses = kept

    def _extend(self, first_ns: int, last_ns: int) -> None:
        spans = self._stream.spans
        if spans and first_ns - spans[-1][1] <= self._break_ns:
            spans[-1][1] = max(spans[-1][1], last_ns)
        else:
            spans.append([first_ns, last_ns])

    def _take_clock(self, recorded: RecordedFrame) -> None:
        arrival, capture = recorded.frame.arrival_ns, recorded.stamped.capture_ns
        if len(arrival) != len(capture):  # a block that arrived as a whole: only its last sample is fresh
            arrival, capture = arrival[-1:], capture[-1:]
        rows = np.empty((len(capture), 5), np.int64)
        rows[:, 0] = recorded.instance
        if len(capture) == recorded.frame.count:
            rows[:, 1] = np.arange(recorded.frame.seq, recorded.frame.next_seq)
        else:
            is_of_last = len(recorded.stamped.capture_ns) == recorded.frame.count
            rows[:, 1] = recorded.frame.next_seq - 1 if is_of_last else recorded.frame.seq
        rows[:, 2], rows[:, 3] = arrival, capture
        rows[:, 4] = min(recorded.uncertainty.total95_ns, 1e18)
        self._stream.clock.add(rows)

    def _keep(self, frame: Frame, middle_ns: int) -> None:
        info = self._stream.info
        if info.encoding in VIDEO and not is_key_frame(info.encoding, frame.payload):
            return  # no picture without those before it
        stream, snapshot = self._stream, Snapshot(frame.payload, middle_ns)
        stream.first = stream.first or snapshot
        stream.last = snapshot
        distance_ns = abs(middle_ns - self._middle_ns)
        if self._nearest_ns is None or distance_ns < self._nearest_ns:
            stream.middle, self._nearest_ns = snapshot, distance_ns
        if frame.seq in self._wanted:
            stream.wanted[frame.seq] = snapshot

    def _measure(self, frame: Frame, capture: _Int64s) -> None:
        try:
            values = self._decoder.samples(frame.payload, frame.count)
        except PayloadError:
            return  # drawn without it; its own check says what is wrong with it
        if values is None or not len(values):
            return
        if len(capture) != len(values):
            capture = capture[0] + (np.arange(len(values)) * self._period_ns).astype(np.int64)
        if self._stream.envelope is None:
            self._stream.envelope = Envelope(values.shape[1], self._span)
        self._stream.envelope.add(capture, values)


def _join_losses(losses: list[Lost], loss: Lost, nearer_ns: float) -> None:
    """Append a loss, or widen the last one when it lies nearer than ``nearer_ns``."""
    last = losses[-1] if losses else None
    if last is None or loss.start_ns - last.end_ns >= nearer_ns:
        losses.append(loss)
        return
    last.end_ns, last.count = max(last.end_ns, loss.end_ns), last.count + loss.count
    if loss.why not in last.why.split("; "):
        last.why = "; ".join(why for why in (last.why, loss.why) if why)


def _number(event: EpisodeEvent, key: str) -> int:
    text = event.fields.get(key, "")
    return int(text) if text.isdecimal() else 0


def _why(event: EpisodeEvent) -> str:
    return f"{event.fields.get('place', '')}: {event.fields.get('reason', '')}"
