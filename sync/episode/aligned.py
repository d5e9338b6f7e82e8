"""Rows at any rate from any episode: what every stream showed at one instant, or why it showed nothing.

Images, LiDAR revolutions and other events: the nearest frame within a tolerance. Sampled signals: linear between
the two samples around the instant, SLERP for orientation quaternions (Shoemake 1985). Audio: the samples from half
a row before the instant to half a row after, so that every sample lies in exactly one row. The episode is read
once, in order of arrival; what is held in memory is bounded by the declared latencies.
"""

import re
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sensorium.drivers.frame import PCM_BYTES, Encoding, StreamInfo
from sensorium.drivers.payloads.decoder import Decoder
from sensorium.drivers.payloads.payload import Floats
from sensorium.errors import EpisodeError
from sensorium.sync.align import Match
from sensorium.sync.clocks.model import Stamped
from sensorium.sync.episode.manifest import Manifest
from sensorium.sync.episode.recorded import RecordedFrame, sample_times_ns
from sensorium.timebase import SECOND_NS, Timeline

Stamps = NDArray[np.int64]
StampsOf = Mapping[tuple[str, int, int], Stamped]
"""Better stamps by (stream, instance, first sequence number), from an offline re-map."""

_GAP_PERIODS = 3.0
_QUATERNION = re.compile(r"(.*?(?:q|quat|quaternion|orientation|rotation)_?)([wxyz])")
_NEARLY_PARALLEL = 0.9995


@dataclass(frozen=True, slots=True, eq=False)
class AlignedValue:
    """One stream's answer to one row.

    Attributes:
        outcome: ``MATCHED``, or the reason for which there is no value.
        values: Sampled signals: (columns,) physical values. Audio: (n, channels) in full scales. Other numeric
            columns: (count, columns) of the frame. None for images, LiDAR and messages, and without a match.
        frame: The frame as it was recorded, for events and images; of sampled signals the one that holds the
            last sample at or before the instant.
        capture_ns: Capture time of what matched: the frame's middle, the instant itself if interpolated.
        residual_ns: Capture time minus the row's instant.
        gap_ns: Distance of the two samples that were joined; of audio the widest hole. Tells also how wide the
            gap was when the outcome is ``GAP``.
        bound_ns: 95 % bound of the capture time, what no stamp shows included (``Uncertainty.total95_ns``).
        asymmetry_ns: The part of it that no stamp shows: the constant latency, unequal paths.
        value_bound: (columns,) 95 % bound of interpolated values: their slope times the time's bound, and the
            curvature of their neighbours as bound on the interpolation (dt^2 / 8 times the second derivative).
        is_repeat: The row before had the same frame.
    """

    stream: str
    outcome: Match
    values: Floats | None = None
    frame: RecordedFrame | None = None
    capture_ns: int | None = None
    residual_ns: int = 0
    gap_ns: int = 0
    bound_ns: float = 0.0
    asymmetry_ns: float = 0.0
    value_bound: Floats | None = None
    is_repeat: bool = False

    @property
    def is_present(self) -> bool:
        return self.outcome is Match.MATCHED


@dataclass(frozen=True, slots=True, eq=False)
class AlignedRow:
    """One instant; ``values`` holds an answer of every chosen stream. ``tick_ns`` is host time."""

    index: int
    tick_ns: int
    utc_ns: int
    values: Mapping[str, AlignedValue]

    def __getitem__(self, stream: str) -> AlignedValue:
        return self.values[stream]


def quaternion_columns(info: StreamInfo) -> list[tuple[int, int, int, int]]:
    """Return the column numbers (w, x, y, z) of each orientation quaternion, known by its names.

    Names end in ``qw qx qy qz``, ``quat_w ...``, ``orientation_w ...``, after any common prefix.
    """
    groups: dict[str, dict[str, int]] = {}
    for index, column in enumerate(info.columns):
        match = _QUATERNION.fullmatch(column.name.lower())
        if match is not None:
            groups.setdefault(match[1], {})[match[2]] = index
    return [(parts["w"], parts["x"], parts["y"], parts["z"]) for parts in groups.values() if len(parts) == 4]


def slerp(first: Floats, second: Floats, share: float) -> Floats:
    """Return the unit quaternion at ``share`` of the shorter way from ``first`` to ``second`` (order w x y z)."""
    first, second = first / np.linalg.norm(first), second / np.linalg.norm(second)
    cosine = float(first @ second)
    if cosine < 0:
        second, cosine = -second, -cosine
    if cosine > _NEARLY_PARALLEL:
        blend = first + share * (second - first)
        return np.asarray(blend / np.linalg.norm(blend), np.float64)
    angle = np.arccos(cosine)
    weights = np.sin((1 - share) * angle), np.sin(share * angle)
    return np.asarray((weights[0] * first + weights[1] * second) / np.sin(angle), np.float64)


@dataclass(frozen=True, slots=True)
class AlignedOptions:
    """How rows are made; see ``Episode.aligned``."""

    rate_hz: float | None = None
    reference: str | None = None
    streams: Collection[str] | None = None
    tolerance_ns: int | None = None
    max_gap_ns: int | None = None
    start_ns: int | None = None
    end_ns: int | None = None
    stamps: StampsOf | None = None


class Recording(Protocol):
    """What rows are made of: the part of an ``Episode`` that is needed here (the reader imports this module)."""

    path: Path
    manifest: Manifest | None
    streams: dict[str, StreamInfo]
    timeline: Timeline

    def frames(self, names: Collection[str] | None = None) -> Iterator[RecordedFrame]:
        """Yield the frames of the named streams in order of arrival."""


def aligned_rows(recording: Recording, options: AlignedOptions) -> Iterator[AlignedRow]:
    """Yield the rows of an episode, in order; see ``Episode.aligned``.

    Raises:
        EpisodeError: If neither or both of rate and reference are given, or a stream is unknown.
    """
    check_options(options)
    return _Joiner(recording, options).rows()


def check_options(options: AlignedOptions) -> None:
    """Raise ``EpisodeError`` unless rows can be made in that way."""
    if (options.rate_hz is None) == (options.reference is None):
        raise EpisodeError("aligned rows need either rate_hz or a reference stream")
    if options.rate_hz is not None and not 0 < options.rate_hz <= 1e6:
        raise EpisodeError(f"aligned rows at {options.rate_hz} Hz are not possible")


def reach_ns(info: StreamInfo, options: AlignedOptions, row_ns: int) -> int:
    """Return how far from a row's instant a frame of the stream may have been captured and still matter to it."""
    track = _Track(info, options, row_ns, is_recorded=True)
    frame_ns = int(SECOND_NS / info.message_rate_hz) if info.message_rate_hz else 0
    return max(track.tolerance_ns, track.half_row_ns, track.max_gap_ns) + int(4 * track.period_ns) + frame_ns


class _Ticks:
    """The instants of the rows: a grid without rounding drift, or the frames of a reference stream."""

    def __init__(self, options: AlignedOptions) -> None:
        self._rate = None if options.rate_hz is None else Fraction(options.rate_hz).limit_denominator(10**6)
        self._start_ns, self._end_ns = options.start_ns, options.end_ns
        self._given: deque[int] = deque()
        self.count = 0

    @property
    def period_ns(self) -> int:
        return 0 if self._rate is None else int(SECOND_NS / self._rate)

    def begin(self, start_ns: int) -> None:
        """Set where the grid starts, if the caller did not."""
        if self._start_ns is None:
            self._start_ns = start_ns

    def add(self, tick_ns: int) -> None:
        if self._start_ns is None or tick_ns >= self._start_ns:
            self._given.append(tick_ns)

    def next_ns(self) -> int | None:
        if self._rate is None:
            tick_ns = self._given[0] if self._given else None
        else:
            assert self._start_ns is not None
            tick_ns = self._start_ns + int(self.count * SECOND_NS / self._rate)
        return None if tick_ns is None or self._is_past(tick_ns) else tick_ns

    def _is_past(self, tick_ns: int) -> bool:
        return self._end_ns is not None and tick_ns >= self._end_ns

    def pop(self) -> None:
        self.count += 1
        if self._given:
            self._given.popleft()


@dataclass(slots=True, eq=False)
class _Block:
    """One frame with the times of its samples (k = count of them, or 1)."""

    recorded: RecordedFrame
    stamped: Stamped
    times_ns: Stamps
    values: Floats | None

    @property
    def first_ns(self) -> int:
        return int(self.times_ns[0])

    @property
    def last_ns(self) -> int:
        return int(self.times_ns[-1])

    @property
    def middle_ns(self) -> int:
        return (self.first_ns + self.last_ns) // 2

    def distance_ns(self, tick_ns: int) -> int:
        return max(self.first_ns - tick_ns, tick_ns - self.last_ns, 0)


class _Track:
    """The part of one stream that rows can still need."""

    def __init__(self, info: StreamInfo, options: AlignedOptions, row_ns: int, *, is_recorded: bool) -> None:
        self.info = info
        self.is_recorded = is_recorded
        self.blocks: deque[_Block] = deque()
        self.first_seen_ns: int | None = None
        self.seen_until_ns: int | None = None
        self.is_audio = info.plain_encoding in PCM_BYTES
        self.is_interpolated = info.is_sampled and info.plain_encoding == Encoding.COLUMNS
        self.period_ns = SECOND_NS / info.rate_hz if info.rate_hz else 0.0
        frame_ns = SECOND_NS / info.message_rate_hz if info.message_rate_hz else float(row_ns or SECOND_NS)
        self.tolerance_ns = options.tolerance_ns if options.tolerance_ns is not None else int(frame_ns / 2)
        limit_ns = int(_GAP_PERIODS * self.period_ns) or SECOND_NS
        self.max_gap_ns = options.max_gap_ns if options.max_gap_ns is not None else limit_ns
        self.half_row_ns = row_ns // 2 if row_ns else int(frame_ns / 2)
        self._longest_ns = 0
        self._decoder = Decoder(info)
        self._quaternions = quaternion_columns(info)
        self._last_frame: RecordedFrame | None = None

    def add(self, recorded: RecordedFrame, stamped: Stamped) -> _Block:
        times_ns = sample_times_ns(stamped.capture_ns, recorded.frame.count, self.info.rate_hz)
        values = self._decoder.samples(recorded.frame.payload, recorded.frame.count)
        block = _Block(recorded, stamped, times_ns, values)
        self.blocks.append(block)
        self.first_seen_ns = min(
            block.first_ns, block.first_ns if self.first_seen_ns is None else self.first_seen_ns
        )
        self.seen_until_ns = max(block.last_ns, self.seen_until_ns or block.last_ns)
        self._longest_ns = max(self._longest_ns, block.last_ns - block.first_ns)
        return block

    def covers(self, tick_ns: int, arrival_ns: int) -> bool:
        """Return whether nothing that concerns the row can still come."""
        if not self.is_recorded:
            return True
        # Interpolation and its curvature look one sample past the tick, nearest matches half a frame.
        reach_ns = max(self.tolerance_ns, self.half_row_ns) + int(2 * self.period_ns)
        if self.seen_until_ns is not None and self.seen_until_ns >= tick_ns + reach_ns:
            return True
        return arrival_ns > tick_ns + reach_ns + self.info.latency.max_ns + self._longest_ns

    def answer(self, tick_ns: int) -> AlignedValue:
        if self.is_interpolated:
            return self._interpolate(tick_ns)
        if self.is_audio:
            return self._window(tick_ns)
        return self._nearest(tick_ns)

    def forget(self, tick_ns: int) -> None:
        """Drop what no later row can use."""
        keep_ns = tick_ns - max(self.tolerance_ns if not self.is_interpolated else 0, self.half_row_ns)
        spare = 2 if self.is_interpolated else 1
        while len(self.blocks) > spare and self.blocks[spare].last_ns < keep_ns:
            self.blocks.popleft()

    def _absent(self, outcome: Match, gap_ns: int = 0) -> AlignedValue:
        return AlignedValue(self.info.name, outcome, gap_ns=gap_ns)

    def _absence(self, tick_ns: int, otherwise: Match) -> AlignedValue:
        if not self.is_recorded:
            return self._absent(Match.NOT_RECORDED)
        if self.first_seen_ns is None or tick_ns < self.first_seen_ns:
            return self._absent(Match.NOT_STARTED)
        if self.seen_until_ns is None or self.seen_until_ns < tick_ns:
            return self._absent(Match.SILENT)
        return self._absent(otherwise)

    def _nearest(self, tick_ns: int) -> AlignedValue:
        block = min(self.blocks, key=lambda each: abs(each.middle_ns - tick_ns), default=None)
        if block is None or block.distance_ns(tick_ns) > self.tolerance_ns:
            return self._absence(tick_ns, Match.OUT_OF_TOLERANCE)
        is_repeat = self._last_frame is block.recorded
        self._last_frame = block.recorded
        return AlignedValue(
            self.info.name,
            Match.MATCHED,
            block.values,
            block.recorded,
            block.middle_ns,
            block.middle_ns - tick_ns,
            0,
            block.stamped.uncertainty.total95_ns,
            block.stamped.uncertainty.asymmetry_ns,
            is_repeat=is_repeat,
        )

    def _interpolate(self, tick_ns: int) -> AlignedValue:
        blocks = [block for block in self.blocks if block.values is not None]
        if not blocks:
            return self._absence(tick_ns, Match.SILENT)
        times_ns = np.concatenate([block.times_ns for block in blocks])
        after = int(np.searchsorted(times_ns, tick_ns, side="left"))
        is_exact = after < len(times_ns) and int(times_ns[after]) == tick_ns
        before = after if is_exact else after - 1
        if before < 0 or after >= len(times_ns):
            return self._absence(tick_ns, Match.SILENT)
        gap_ns = int(times_ns[after] - times_ns[before])
        if gap_ns > self.max_gap_ns:
            return self._absent(Match.GAP, gap_ns)
        values = np.concatenate([block.values for block in blocks if block.values is not None])
        holders = np.repeat(np.arange(len(blocks)), [len(block.times_ns) for block in blocks])
        first, second = blocks[int(holders[before])], blocks[int(holders[after])]
        share = (tick_ns - int(times_ns[before])) / gap_ns if gap_ns else 0.0
        joined = values[before] + share * (values[after] - values[before])
        for columns in self._quaternions:
            place = list(columns)
            joined[place] = slerp(values[before][place], values[after][place], share)
        uncertainty = max(
            (first.stamped.uncertainty, second.stamped.uncertainty), key=lambda each: each.total95_ns
        )
        return AlignedValue(
            self.info.name,
            Match.MATCHED,
            joined,
            first.recorded,
            tick_ns,
            0,
            gap_ns,
            uncertainty.total95_ns,
            max(first.stamped.uncertainty.asymmetry_ns, second.stamped.uncertainty.asymmetry_ns),
            _value_bound(times_ns, values, before, after, uncertainty.total95_ns),
        )

    def _window(self, tick_ns: int) -> AlignedValue:
        low_ns, high_ns = tick_ns - self.half_row_ns, tick_ns + self.half_row_ns
        parts, times, holders = [], [], []
        for block in self.blocks:
            if block.values is None or block.last_ns < low_ns or block.first_ns >= high_ns:
                continue
            inside = slice(*np.searchsorted(block.times_ns, [low_ns, high_ns]))
            parts.append(block.values[inside])
            times.append(block.times_ns[inside])
            holders.append(block)
        if not parts or not sum(len(part) for part in parts):
            return self._absence(tick_ns, Match.SILENT)
        times_ns = np.concatenate(times)
        edges = np.concatenate([[low_ns], times_ns, [high_ns]])
        gap_ns = int(np.diff(edges).max())
        # Blocks are stamped one by one: where they meet, their estimates may differ by their bounds.
        slack_ns = 2 * max(block.stamped.uncertainty.bound95_ns for block in holders)
        if gap_ns > self.max_gap_ns + slack_ns:
            return self._absent(Match.GAP, gap_ns)
        return AlignedValue(
            self.info.name,
            Match.MATCHED,
            np.concatenate(parts),
            holders[0].recorded,
            int(times_ns[0] + times_ns[-1]) // 2,
            int(times_ns[0] + times_ns[-1]) // 2 - tick_ns,
            gap_ns,
            max(block.stamped.uncertainty.total95_ns for block in holders),
            max(block.stamped.uncertainty.asymmetry_ns for block in holders),
        )


def _value_bound(times_ns: Stamps, values: Floats, before: int, after: int, bound_ns: float) -> Floats:
    """Return the 95 % bound of interpolated values; curvature is taken from the neighbours where they exist."""
    low, high = max(before - 1, 0), min(after + 2, len(values))
    near, at_s = values[low:high], (times_ns[low:high] - times_ns[low]) * 1e-9
    steps_s = np.diff(at_s)
    if len(near) < 2 or not (steps_s > 0).all():
        return np.zeros(values.shape[1])
    slopes = np.diff(near, axis=0) / steps_s[:, None]
    time_part = np.abs(slopes).max(axis=0) * bound_ns * 1e-9
    if len(near) < 3:
        return np.asarray(time_part, np.float64)
    bends = np.abs(np.diff(slopes, axis=0) / (0.5 * (steps_s[1:] + steps_s[:-1]))[:, None]).max(axis=0)
    gap_s = float(times_ns[after] - times_ns[before]) * 1e-9
    return np.asarray(time_part + bends * gap_s**2 / 8, np.float64)


class _Joiner:
    def __init__(self, recording: Recording, options: AlignedOptions) -> None:
        self._recording, self._options = recording, options
        infos = dict(recording.streams)
        recorded = set(infos)
        if recording.manifest is not None:
            infos.update(
                {r.info.name: r.info for r in recording.manifest.streams if r.info.name not in infos}
            )
        names = list(infos) if options.streams is None else list(dict.fromkeys(options.streams))
        wanted = [*names, *([options.reference] if options.reference else [])]
        unknown = [name for name in wanted if name not in infos]
        if unknown:
            raise EpisodeError(
                f"{recording.path} has no stream {unknown[0]}; it has: {', '.join(infos) or 'none'}"
            )
        if options.reference is not None and options.reference not in recorded:
            raise EpisodeError(f"{recording.path}: the reference {options.reference} was not recorded")
        self._ticks = _Ticks(options)
        period_ns = self._ticks.period_ns
        if options.reference is not None and infos[options.reference].message_rate_hz:
            period_ns = int(SECOND_NS / infos[options.reference].message_rate_hz)
        self._tracks = {
            name: _Track(infos[name], options, period_ns, is_recorded=name in recorded) for name in names
        }
        self._names = [name for name in dict.fromkeys(wanted) if name in recorded]
        if options.reference is not None and options.reference not in self._tracks:
            self._clockwork: _Track | None = _Track(
                infos[options.reference], options, period_ns, is_recorded=True
            )
        else:
            self._clockwork = None

    def rows(self) -> Iterator[AlignedRow]:
        last_capture_ns: int | None = None
        for recorded in self._recording.frames(self._names):
            block = self._take(recorded)
            if last_capture_ns is None:
                self._ticks.begin(block.first_ns)
            last_capture_ns = max(block.last_ns, last_capture_ns or block.last_ns)
            yield from self._decided(int(recorded.frame.arrival_ns[-1]))
        if last_capture_ns is None:
            return
        while (tick_ns := self._ticks.next_ns()) is not None and tick_ns <= last_capture_ns:
            yield self._row(tick_ns)

    def _take(self, recorded: RecordedFrame) -> _Block:
        name = recorded.frame.stream
        stamped = recorded.stamped
        if self._options.stamps is not None:
            key = (name, recorded.instance, recorded.frame.seq)
            stamped = self._options.stamps.get(key, stamped)
        track = self._tracks.get(name)
        if track is None:
            assert self._clockwork is not None
            block = self._clockwork.add(recorded, stamped)
            self._clockwork.blocks.clear()
        else:
            block = track.add(recorded, stamped)
        if name == self._options.reference:
            self._ticks.add(block.middle_ns)
        return block

    def _decided(self, arrival_ns: int) -> Iterator[AlignedRow]:
        while (tick_ns := self._ticks.next_ns()) is not None:
            if not all(track.covers(tick_ns, arrival_ns) for track in self._tracks.values()):
                return
            yield self._row(tick_ns)

    def _row(self, tick_ns: int) -> AlignedRow:
        values = {name: track.answer(tick_ns) for name, track in self._tracks.items()}
        index = self._ticks.count
        self._ticks.pop()
        for track in self._tracks.values():
            track.forget(tick_ns)
        return AlignedRow(index, tick_ns, tick_ns + self._recording.timeline.utc_minus_host_ns, values)
