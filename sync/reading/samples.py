"""Numeric streams and audio of an episode as arrays, every sample with its capture time."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sensorium.drivers.frame import Column, StreamInfo
from sensorium.drivers.payloads.decoder import Decoder
from sensorium.sync.episode.reader import Episode as EpisodeFiles
from sensorium.sync.episode.recorded import RecordedFrame
from sensorium.sync.reading.frames import Times, Window, frames_in, sample_utc_ns

Values = NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Columns(Mapping[str, Values]):
    """The samples of a numeric stream: a mapping from column to its (n,) values in physical units.

    Columns without a scale keep the type that they were recorded in, so that whole nanoseconds stay whole.

    Attributes:
        units: By column.
        times_ns: (n,) int64 capture times, UTC ns.
        uncertainty_ns: (n,) float64, by how much they may be off: covers the truth 95 % of the time.
        asymmetry_ns: (n,) that part of it which does not average out.
        seq: (n,) int64 numbers of the samples; a jump is a loss that the manifest accounts for.
        instance: (n,) which run of the driver they are numbered in.
    """

    stream: str
    units: Mapping[str, str]
    times_ns: Times
    uncertainty_ns: NDArray[np.float64]
    asymmetry_ns: NDArray[np.float64]
    seq: Times
    instance: NDArray[np.uint32]
    _values: Mapping[str, Values]

    def array(self) -> NDArray[np.float64]:
        """Return (n, columns) float64, in the order of ``units``."""
        return np.stack([np.asarray(self[name], np.float64) for name in self.units], axis=1)

    def __getitem__(self, name: str) -> Values:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        """Return the number of columns, as of any mapping; samples are ``len(times_ns)``."""
        return len(self._values)

    def __repr__(self) -> str:
        return f"<Columns {self.stream}: {len(self.times_ns)} samples of {', '.join(self.units)}>"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Audio:
    """Sound.

    Attributes:
        samples: (n, channels) float32, full scale = 1.
        rate_hz: Nominal.
        times_ns: (n,) int64 capture times, UTC ns.
        uncertainty_ns: (n,) float64, by how much they may be off.
        seq: (n,) int64 numbers of the samples.
        gaps: (index, lost) of each hole: so many samples are missing before the sample at that index.
    """

    stream: str
    samples: NDArray[np.float32]
    rate_hz: float
    times_ns: Times
    uncertainty_ns: NDArray[np.float64]
    seq: Times
    gaps: tuple[tuple[int, int], ...]

    def __repr__(self) -> str:
        seconds = len(self.samples) / self.rate_hz if self.rate_hz else 0.0
        return (
            f"<Audio {self.stream}: {seconds:.2f} s at {self.rate_hz:g} Hz, {self.samples.shape[1]} channels>"
        )


@dataclass(slots=True)
class _Rows:
    """What all samples have, frame by frame."""

    times_ns: list[Times]
    uncertainty_ns: list[float]
    asymmetry_ns: list[float]
    seqs: list[Times]
    instances: list[int]

    def add(self, recorded: RecordedFrame, times_ns: Times, inside: NDArray[np.bool_]) -> None:
        self.times_ns.append(times_ns[inside])
        self.uncertainty_ns.append(recorded.uncertainty.total95_ns)
        self.asymmetry_ns.append(recorded.uncertainty.asymmetry_ns)
        self.seqs.append(recorded.frame.seq + np.flatnonzero(inside))
        self.instances.append(recorded.instance)

    @property
    def counts(self) -> list[int]:
        return [len(times_ns) for times_ns in self.times_ns]

    def joined(self, parts: Sequence[Times]) -> Times:
        return np.concatenate([np.empty(0, np.int64), *parts])

    def repeated(self, values: Sequence[float], dtype: Any) -> NDArray[Any]:
        return np.repeat(np.array(values, dtype), self.counts)


def columns_in(files: EpisodeFiles, name: str, window: Window) -> Columns:
    """Return the samples captured in a window.

    Raises:
        PayloadError: If a payload is damaged.
    """
    info, decoder = files.streams[name], Decoder(files.streams[name])
    rows, raw = _Rows([], [], [], [], []), []
    for recorded, times_ns, inside in _blocks(files, name, window):
        rows.add(recorded, times_ns, inside)
        found = decoder.columns(recorded.frame.payload, recorded.frame.count)
        raw.append(found if inside.all() else tuple(column[inside] for column in found))
    values = {
        column.name: _physical(column, [found[index] for found in raw])
        for index, column in enumerate(decoder.info.columns)
    }
    return Columns(
        name,
        {column.name: column.unit for column in info.columns},
        rows.joined(rows.times_ns),
        rows.repeated(rows.uncertainty_ns, np.float64),
        rows.repeated(rows.asymmetry_ns, np.float64),
        rows.joined(rows.seqs),
        rows.repeated(rows.instances, np.uint32),
        values,
    )


def audio_in(files: EpisodeFiles, name: str, window: Window) -> Audio:
    """Return the sound captured in a window.

    Raises:
        PayloadError: If a payload is damaged.
    """
    info, decoder = files.streams[name], Decoder(files.streams[name])
    rows, parts = _Rows([], [], [], [], []), [np.empty((0, info.shape[0] if info.shape else 1), np.float32)]
    for recorded, times_ns, inside in _blocks(files, name, window):
        rows.add(recorded, times_ns, inside)
        values = decoder.samples(recorded.frame.payload, recorded.frame.count)
        assert values is not None
        parts.append(values[inside].astype(np.float32))
    seq = rows.joined(rows.seqs)
    return Audio(
        name,
        np.concatenate(parts),
        info.rate_hz,
        rows.joined(rows.times_ns),
        rows.repeated(rows.uncertainty_ns, np.float64),
        seq,
        _gaps(seq, rows.repeated(rows.instances, np.uint32)),
    )


def _blocks(
    files: EpisodeFiles, name: str, window: Window
) -> Iterator[tuple[RecordedFrame, Times, NDArray[np.bool_]]]:
    """Yield each frame with the (count,) times of its samples, and which of them lie in the window."""
    info: StreamInfo = files.streams[name]
    for recorded in frames_in(files, [name], window):
        times_ns = sample_utc_ns(recorded, info, files.timeline.utc_minus_host_ns)
        inside = window.holds(times_ns)
        if inside.any():
            yield recorded, times_ns, inside


def _physical(column: Column, parts: Sequence[Values]) -> Values:
    raw = np.concatenate([np.empty(0, column.dtype), *parts])
    return raw if column.scale == 1.0 else raw * column.scale


def _gaps(seq: Times, instance: NDArray[np.uint32]) -> tuple[tuple[int, int], ...]:
    """Return where numbers were skipped; a driver that began anew counts from its own start."""
    lost = np.where(instance[1:] == instance[:-1], np.diff(seq) - 1, 0)
    places = np.flatnonzero(lost)
    return tuple((int(place) + 1, int(lost[place])) for place in places)
