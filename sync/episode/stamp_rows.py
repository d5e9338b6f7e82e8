"""The columnar stamps of a stream: one row per frame, packed beside the frames of the same chunk."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sensorium.drivers.frame import Frame
from sensorium.errors import EpisodeError
from sensorium.sync.clocks.model import Stamped, Uncertainty
from sensorium.sync.episode import schemas
from sensorium.sync.episode.layouts import bytes_tag, varint
from sensorium.sync.episode.mcap_records import Buffer

_Int64s = NDArray[np.int64]
_NO_STAMPS = np.empty(0, np.int64)

_COLUMNS = (
    ("instance", "<u4"),
    ("seq", "<i8"),
    ("count", "<u4"),
    ("epoch", "<i4"),
    ("tick_counts", "<u4"),
    ("device_ticks", "<i8"),
    ("arrival_counts", "<u4"),
    ("arrival_host_ns", "<i8"),
    ("capture_counts", "<u4"),
    ("capture_host_ns", "<i8"),
    ("statistical_ns", "<f8"),
    ("floor_ns", "<f8"),
    ("asymmetry_ns", "<f8"),
    ("meta", "<f8"),
)
_FIXED_ROW_BYTES = 6 * 4 + 8 + 3 * 8
HEAD_BYTES = 11 * len(_COLUMNS)
"""Largest size of the tags and lengths of one message."""
_TAGS = {bytes_tag(schemas.field_number(schemas.Stamps, name)): (name, dtype) for name, dtype in _COLUMNS}


@dataclass(frozen=True, slots=True, eq=False)
class StampRow:
    """All of a frame but its payload."""

    instance: int
    seq: int
    count: int
    device_ticks: _Int64s | None
    arrival_ns: _Int64s
    stamped: Stamped
    meta: tuple[float, ...]


@dataclass(slots=True)
class StampRows:
    """Rows collected for the chunk that is being filled."""

    frames: list[tuple[int, Frame, Stamped]] = field(default_factory=list)
    last_log_ns: int = 0

    def add(self, instance: int, frame: Frame, stamped: Stamped, log_ns: int) -> None:
        self.frames.append((instance, frame, stamped))
        self.last_log_ns = log_ns

    @staticmethod
    def row_bytes(frame: Frame, stamped: Stamped) -> int:
        """Return what a frame adds to the packed message, not counting its head."""
        ticks = 0 if frame.device_ticks is None else len(frame.device_ticks)
        return _FIXED_ROW_BYTES + 8 * (
            ticks + len(frame.arrival_ns) + len(stamped.capture_ns) + len(frame.meta)
        )

    def pack(self) -> bytes:
        """Return the rows as a ``sensorium.Stamps`` message, the bytes that protobuf would write."""
        frames = [frame for _, frame, _ in self.frames]
        stamped = [stamps for _, _, stamps in self.frames]
        ticks = [_NO_STAMPS if frame.device_ticks is None else frame.device_ticks for frame in frames]
        arrivals = [frame.arrival_ns for frame in frames]
        captures = [stamps.capture_ns for stamps in stamped]
        columns = (
            [instance for instance, _, _ in self.frames],
            [frame.seq for frame in frames],
            [frame.count for frame in frames],
            [stamps.epoch for stamps in stamped],
            [len(values) for values in ticks],
            np.concatenate(ticks),
            [len(values) for values in arrivals],
            np.concatenate(arrivals),
            [len(values) for values in captures],
            np.concatenate(captures),
            [stamps.uncertainty.statistical_ns for stamps in stamped],
            [stamps.uncertainty.floor_ns for stamps in stamped],
            [stamps.uncertainty.asymmetry_ns for stamps in stamped],
            [value for frame in frames for value in frame.meta],
        )
        out = []
        for (tag, (_, dtype)), values in zip(_TAGS.items(), columns, strict=True):
            data = np.asarray(values, dtype).tobytes()
            if data:
                out += [tag, varint(len(data)), data]
        return b"".join(out)


def unpack_stamps(data: Buffer, meta_width: int) -> Iterator[StampRow]:
    """Yield the rows of a ``sensorium.Stamps`` message; ``meta_width`` is ``len(StreamInfo.meta_fields)``.

    Raises:
        EpisodeError: If the message is damaged.
    """
    columns = _parse_columns(memoryview(data))
    rows = len(columns["seq"])
    tick_ends = np.cumsum(columns["tick_counts"], dtype=np.int64)
    arrival_ends = np.cumsum(columns["arrival_counts"], dtype=np.int64)
    capture_ends = np.cumsum(columns["capture_counts"], dtype=np.int64)
    per_row = ("instance", "count", "epoch", "statistical_ns", "floor_ns", "asymmetry_ns")
    sizes = {len(columns[name]) for name in per_row} | {len(tick_ends), len(arrival_ends), len(capture_ends)}
    if sizes != {rows} or len(columns["meta"]) != rows * meta_width:
        raise EpisodeError(f"a stamps message is damaged: {rows} rows, columns of {sorted(sizes)}")
    for row in range(rows):
        ticks = _slice(columns["device_ticks"], tick_ends, row)
        uncertainty = Uncertainty(
            float(columns["statistical_ns"][row]),
            float(columns["floor_ns"][row]),
            float(columns["asymmetry_ns"][row]),
        )
        capture = _slice(columns["capture_host_ns"], capture_ends, row)
        yield StampRow(
            int(columns["instance"][row]),
            int(columns["seq"][row]),
            int(columns["count"][row]),
            ticks if len(ticks) else None,
            _slice(columns["arrival_host_ns"], arrival_ends, row),
            Stamped(capture, uncertainty, int(columns["epoch"][row])),
            tuple(columns["meta"][row * meta_width : (row + 1) * meta_width].tolist()),
        )


def _slice(values: _Int64s, ends: _Int64s, row: int) -> _Int64s:
    begin = int(ends[row - 1]) if row else 0
    return values[begin : int(ends[row])]


def _parse_columns(view: memoryview) -> dict[str, NDArray[Any]]:
    columns: dict[str, NDArray[Any]] = {name: np.empty(0, dtype) for name, dtype in _COLUMNS}
    at = 0
    while at < len(view):
        tag = bytes(view[at : at + 1])
        size, begin = _read_varint(view, at + 1)
        if tag not in _TAGS or begin + size > len(view):
            raise EpisodeError(f"a stamps message is damaged at byte {at} of {len(view)}")
        name, dtype = _TAGS[tag]
        if size % np.dtype(dtype).itemsize:
            raise EpisodeError(f"a stamps message is damaged: column {name} has {size} bytes")
        columns[name] = np.frombuffer(view[begin : begin + size], dtype)
        at = begin + size
    return columns


def _read_varint(view: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 64, 7):
        if at >= len(view):
            break
        byte = view[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise EpisodeError("a stamps message is damaged: a length does not end")
