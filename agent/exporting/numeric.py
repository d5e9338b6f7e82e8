"""Numeric streams as tables: a row for each sample, with its capture time and how far that may be off."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sensorium.agent.exporting.exporter import ExportJob
from sensorium.drivers.frame import Column, Encoding, StreamInfo
from sensorium.drivers.payloads.table import plain_of
from sensorium.errors import EpisodeError
from sensorium.sync.decoding import StreamDecoder
from sensorium.sync.episode.recorded import RecordedFrame, sample_times_ns

Values = NDArray[np.generic]

CAPTURE = "capture_utc_ns"
BOUND = "bound95_ns"
_OURS = (
    (CAPTURE, "ns", "<i8"),
    (BOUND, "ns", "<f8"),
    ("asymmetry_ns", "ns", "<f8"),
    ("instance", "", "<u4"),
    ("seq", "", "<i8"),
)
"""Before the stream's own columns: capture time on UTC; the half width that covers the truth 95 % of the time; the
bound of the constant latency, which no stamp shows; which run of the driver; the sample's number in it."""

BATCH_ROWS = 16_384


@dataclass(frozen=True, slots=True)
class TableColumn:
    """One column; ``dtype`` is a numpy code, ``unit`` "" where there is none."""

    name: str
    unit: str
    dtype: str

    @property
    def label(self) -> str:
        """Name and unit, for formats that have one line for both; our own names say theirs already."""
        is_said = not self.unit or self.name.endswith(f"_{self.unit}")
        return self.name if is_said else f"{self.name} [{self.unit}]"


def holds_numbers(info: StreamInfo) -> bool:
    """Return whether a stream is a table; audio is not, though its samples are numbers."""
    return plain_of(info).encoding == Encoding.COLUMNS


def table_columns(info: StreamInfo) -> tuple[TableColumn, ...]:
    """Return the columns of a stream's table: ours, then its own in their physical units."""
    found = [TableColumn(*ours) for ours in _OURS]
    for column in info.columns:
        name, taken, serial = column.name, {each.name for each in found}, 2
        while name in taken:
            name, serial = f"{column.name}_{serial}", serial + 1
        found.append(TableColumn(name, column.unit, column.dtype if _is_exact(column) else "<f8"))
    return tuple(found)


def _is_exact(column: Column) -> bool:
    """Return whether raw numbers are physical ones: then they stay as they are, whole nanoseconds for one."""
    return column.scale == 1.0


def table_batches(job: ExportJob, info: StreamInfo) -> Iterator[tuple[Values, ...]]:
    """Yield the rows of a stream's table in order of arrival, some thousand at a time, as one array per column.

    Raises:
        EpisodeError: If the files hold more or fewer samples than the signed manifest says.
        PayloadError: If a payload is damaged.
    """
    rows = 0
    for batch in _batches(job, info):
        yield batch
        rows += len(batch[0])
        job.report(len(batch[0]))
    expected = job.manifest.stream(info.name).total.recorded
    if rows != expected:
        raise EpisodeError(
            f"{job.episode.path}: stream {info.name} has {rows} samples in its file, {expected} in its manifest; "
            "run: sensorium episodes verify"
        )


def _batches(job: ExportJob, info: StreamInfo) -> Iterator[tuple[Values, ...]]:
    decoder = StreamDecoder(info)
    offset_ns = job.episode.timeline.utc_minus_host_ns
    frames: list[RecordedFrame] = []
    raw: list[Sequence[Values]] = []
    rows = 0
    for recorded in job.episode.frames([info.name]):
        frames.append(recorded)
        raw.append(decoder.columns(recorded.frame.payload, recorded.frame.count))
        rows += recorded.frame.count
        if rows >= BATCH_ROWS:
            yield (*_our_values(decoder.info, frames, offset_ns), *_own_values(decoder.info, raw))
            frames, raw, rows = [], [], 0
    if frames:
        yield (*_our_values(decoder.info, frames, offset_ns), *_own_values(decoder.info, raw))


def _our_values(info: StreamInfo, frames: Sequence[RecordedFrame], offset_ns: int) -> tuple[Values, ...]:
    counts = np.array([each.frame.count for each in frames])
    times_ns = [sample_times_ns(each.stamped.capture_ns, each.frame.count, info.rate_hz) for each in frames]
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return (
        np.concatenate(times_ns) + offset_ns,
        np.repeat(np.array([each.uncertainty.bound95_ns for each in frames]), counts),
        np.repeat(np.array([each.uncertainty.asymmetry_ns for each in frames]), counts),
        np.repeat(np.array([each.instance for each in frames], np.uint32), counts),
        np.repeat(np.array([each.frame.seq for each in frames], np.int64), counts) + within,
    )


def _own_values(info: StreamInfo, frames: Sequence[Sequence[Values]]) -> Iterator[Values]:
    for column, parts in zip(info.columns, zip(*frames, strict=True), strict=True):
        raw = np.concatenate(parts)
        yield raw if _is_exact(column) else raw * column.scale
