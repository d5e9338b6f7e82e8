"""Aligned rows: what every stream showed at one instant, decoded, or why it showed nothing."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sensorium.drivers.frame import VIDEO, StreamInfo
from sensorium.drivers.payloads.annexb import is_key_frame
from sensorium.errors import PayloadError
from sensorium.sync.align import Match
from sensorium.sync.decoding import StreamDecoder
from sensorium.sync.episode.aligned import (
    AlignedOptions,
    AlignedRow,
    AlignedValue,
    aligned_rows,
    check_options,
    reach_ns,
)
from sensorium.sync.episode.manifest import Manifest
from sensorium.sync.episode.reader import Episode as EpisodeFiles
from sensorium.sync.episode.recorded import RecordedFrame
from sensorium.sync.reading.frames import Frame
from sensorium.sync.reading.scenes import as_array, in_rgb
from sensorium.sync.reading.streams import Stream
from sensorium.sync.video import first_ns
from sensorium.timebase import SECOND_NS, Timeline

Values = NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Value:
    """One stream's answer to one row.

    Attributes:
        reason: Why there is none; "" if there is.
        time_ns: Capture time of what is shown, UTC ns: the frame's middle; the row's instant where samples were
            joined to it. None without.
        uncertainty_ns: By how much that may be off: covers the truth 95 % of the time.
        residual_ns: Capture time minus the row's instant.
        gap_ns: Distance of the two samples that were joined; 0 for images, clouds and other single frames.
        value_bound: (columns,) 95 % bound of joined values, from the uncertainty of their time and their curvature;
            None where nothing was joined.
        is_repeat: The row before shows the same frame.
        frame: What was recorded; of joined samples the block with the one before.
    """

    stream: str
    reason: str
    time_ns: int | None
    uncertainty_ns: float
    residual_ns: int
    gap_ns: int
    value_bound: NDArray[np.float64] | None
    is_repeat: bool
    frame: Frame | None
    _decode: "_Shown"
    _values: Values | None

    @property
    def is_present(self) -> bool:
        return not self.reason

    @property
    def values(self) -> Values:
        """What it showed, decoded when it is asked for.

        Numeric streams: (columns,) float64 in physical units, or (count, columns) where they cannot be interpolated.
        Audio: (n, channels) float32 from half a row before to half a row after. Images: (H, W) or (H, W, 3) RGB.
        LiDAR: (N, 4) float32 x, y, z (m, sensor frame) and intensity.

        Raises:
            PayloadError: If there is nothing to show, or it does not decode.
        """
        if self.reason or self.frame is None:
            raise PayloadError(f"{self.stream} has no value here: {self.reason}")
        return self._decode.values(self.frame) if self._values is None else self._values

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Values:
        """Return ``values``, so that numpy takes it as it is: ``np.stack([row["imu"] for row in rows])``."""
        return as_array(self.values, dtype, copy)

    def __repr__(self) -> str:
        return f"<Value of {self.stream}: {self.reason or f'{self.residual_ns / 1e6:+.3f} ms'}>"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Row:
    """One instant; ``row[stream]`` is the answer of a stream. ``time_ns`` is UTC."""

    index: int
    time_ns: int
    streams: Mapping[str, Value]

    @property
    def is_complete(self) -> bool:
        """Whether every stream has a value."""
        return all(value.is_present for value in self.streams.values())

    def __getitem__(self, stream: str) -> Value:
        return self.streams[stream]

    def __iter__(self) -> Iterator[str]:
        return iter(self.streams)

    def __repr__(self) -> str:
        present = sum(value.is_present for value in self.streams.values())
        return f"<Row {self.index} at {self.time_ns}: {present} of {len(self.streams)} streams>"


class _Shown:
    """Decodes what rows show of one stream that is no video: each frame by itself."""

    def __init__(self, info: StreamInfo, holds: str) -> None:
        self._info, self.holds = info, holds
        self._decoder: StreamDecoder | None = None

    def values(self, frame: Frame) -> Values:
        if self.holds not in ("images", "points"):
            raise PayloadError(
                f"{frame.stream} holds {self.holds}: take row[{frame.stream!r}].frame.payload and decode it"
            )
        if self._decoder is None:
            self._decoder = StreamDecoder(self._info)
        if self.holds == "points":
            return self._decoder.cloud(frame.payload).points
        return in_rgb(self._decoder.image(frame.payload))


class _Film:
    """The frames of a video between the picture that was shown last and what was read: those build upon each other."""

    def __init__(self, info: StreamInfo) -> None:
        self._info = info
        self._decoder = StreamDecoder(info)
        self._waiting: list[RecordedFrame] = []
        self._shown: tuple[RecordedFrame, Values | None] | None = None

    def add(self, recorded: RecordedFrame) -> None:
        self._waiting.append(recorded)

    def picture(self, wanted: RecordedFrame) -> Values | None:
        """Return the pixels of a frame that is not before the one that was asked for last; None if damaged."""
        if self._shown is None or self._shown[0] is not wanted:
            self._shown = wanted, self._decoded(wanted)
        return self._shown[1]

    def _decoded(self, wanted: RecordedFrame) -> Values | None:
        last = next((index for index, each in enumerate(self._waiting) if each is wanted), None)
        if last is None:
            return None
        before, self._waiting = self._waiting[: last + 1], self._waiting[last + 1 :]
        for recorded in before[self._last_key(before) : -1]:
            self._decoder.skip(recorded.frame.payload)
        try:
            return in_rgb(self._decoder.image(wanted.frame.payload))
        except PayloadError:
            return None

    def _last_key(self, frames: Sequence[RecordedFrame]) -> int:
        """Return the last key frame's place: nothing before it is needed. 0 where there is none."""
        for index in range(len(frames) - 1, 0, -1):
            if is_key_frame(self._info.encoding, frames[index].frame.payload):
                return index
        return 0


class _Excerpt:
    """The part of an episode that rows of a span are made of, as ``aligned_rows`` reads a recording."""

    def __init__(
        self, files: EpisodeFiles, films: Mapping[str, _Film], since_ns: int | None, until_ns: int | None
    ) -> None:
        self._files, self._films = files, films
        self._since_ns, self._until_ns = since_ns, until_ns
        self.path: Path = files.path
        self.manifest: Manifest | None = files.manifest
        self.streams: dict[str, StreamInfo] = files.streams
        self.timeline: Timeline = files.timeline

    def frames(self, names: Collection[str] | None = None) -> Iterator[RecordedFrame]:
        """Yield the frames of the named streams in order of arrival; of a video from a key frame on."""
        chosen = list(self.streams) if names is None else list(names)
        since_ns = self._since_ns
        for name in self._films.keys() & set(chosen):
            if since_ns is not None:
                first = first_ns(self._files, name, since_ns)
                since_ns = None if first is None else min(since_ns, first)
        for recorded in self._files.frames(chosen, since_ns, self._until_ns):
            film = self._films.get(recorded.frame.stream)
            if film is not None:
                film.add(recorded)
            yield recorded


def rows_in(files: EpisodeFiles, streams: Mapping[str, Stream], options: AlignedOptions) -> Iterator[Row]:
    """Return an iterator over the rows of a span.

    Args:
        streams: Those to join, and the reference.
        options: Times are host ns.

    Raises:
        EpisodeError: If neither or both of rate and reference are given.
    """
    check_options(options)
    row_ns = int(SECOND_NS / options.rate_hz) if options.rate_hz else 0
    infos = [files.streams[name] for name in streams if name in files.streams]
    margin_ns = max((reach_ns(info, options, row_ns) for info in infos), default=0)
    since_ns = None if options.start_ns is None else options.start_ns - margin_ns
    until_ns = None if options.end_ns is None else options.end_ns + margin_ns
    films = {info.name: _Film(info) for info in infos if info.encoding in VIDEO}
    shown = {info.name: _Shown(info, streams[info.name].holds) for info in infos}
    excerpt = _Excerpt(files, films, since_ns, until_ns)
    return (_row(row, files, streams, shown, films) for row in aligned_rows(excerpt, options))


def _row(
    row: AlignedRow,
    files: EpisodeFiles,
    streams: Mapping[str, Stream],
    shown: Mapping[str, _Shown],
    films: Mapping[str, _Film],
) -> Row:
    offset_ns = files.timeline.utc_minus_host_ns
    values = {}
    for name, found in row.values.items():
        value = _value(found, files, shown[name])
        if value.reason == Match.NOT_STARTED.value and _had_begun(streams[name], row.utc_ns):
            value = replace(value, reason=Match.SILENT.value)
        if name in films and found.frame is not None:
            value = _with_picture(value, films[name].picture(found.frame))
        values[name] = value
    return Row(row.index, row.tick_ns + offset_ns, values)


def _value(found: AlignedValue, files: EpisodeFiles, shown: _Shown) -> Value:
    offset_ns = files.timeline.utc_minus_host_ns
    frame = None
    if found.frame is not None:
        frame = Frame(found.frame, files.streams[found.stream], offset_ns)
    return Value(
        found.stream,
        "" if found.is_present else found.outcome.value,
        None if found.capture_ns is None else found.capture_ns + offset_ns,
        found.bound_ns,
        found.residual_ns,
        found.gap_ns,
        found.value_bound,
        found.is_repeat,
        frame,
        shown,
        found.values if found.values is None or shown.holds != "audio" else found.values.astype(np.float32),
    )


def _had_begun(stream: Stream, utc_ns: int) -> bool:
    """Return whether a stream was there before the span that was read, so that it fell silent."""
    return stream.start_ns is not None and stream.start_ns <= utc_ns


def _with_picture(value: Value, pixels: Values | None) -> Value:
    if pixels is None:
        return replace(
            value, reason="the picture does not decode: damaged, or what it builds upon is missing"
        )
    return replace(value, _values=pixels)
