"""The columnar stamps of a stream: one row per frame, packed beside the frames of the same chunk.

Integers are stored by difference, because stamps of a steady stream are far from zero and close to each other: with
a compressed chunk around them, a block of samples takes what its arrivals are uncertain by, and little more.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sensorium.drivers.frame import Frame
from sensorium.errors import EpisodeError
from sensorium.sync.clocks.model import Stamped, Uncertainty
from sensorium.sync.episode import schemas
from sensorium.sync.episode.layouts import bytes_tag, varint
from sensorium.sync.episode.mcap_records import Buffer
from sensorium.sync.episode.varints import pack_sint64, unpack_sint64

_Int64s = NDArray[np.int64]
_NO_STAMPS = np.empty(0, np.int64)

_STEPS = (
    "instance_step",
    "seq_gap",
    "count_step",
    "epoch_step",
    "tick_counts_step",
    "arrival_counts_step",
    "capture_counts_step",
    "device_ticks_step",
    "arrival_host_step_ns",
    "capture_host_step_ns",
)
_PER_ROW = 7
"""So many of the steps have one entry per row; the others have as many as the counts say."""
_DOUBLES = ("statistical_ns", "floor_ns", "asymmetry_ns", "meta")
_TAGS = {name: bytes_tag(schemas.field_number(schemas.Stamps, name)) for name in (*_STEPS, *_DOUBLES)}
_NAMES = {tag: name for name, tag in _TAGS.items()}
_MAX_STEP_BYTES = 10
_FIXED_ROW_BYTES = 5 + _MAX_STEP_BYTES + 4 + 5 + 3 * 4 + 3 * 8
"""What the steps and doubles of one row take at most, its stamps apart: no count exceeds 2^20."""
HEAD_BYTES = 11 * len(_TAGS)
"""Largest size of the tags and lengths of one message."""


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
        """Return what a frame adds to the packed message at most, not counting its head."""
        ticks = 0 if frame.device_ticks is None else len(frame.device_ticks)
        stamps = ticks + len(frame.arrival_ns) + len(stamped.capture_ns)
        return _FIXED_ROW_BYTES + _MAX_STEP_BYTES * stamps + 8 * len(frame.meta)

    def pack(self) -> bytes:
        """Return the rows as a ``sensorium.Stamps`` message, the bytes that protobuf would write."""
        frames = [frame for _, frame, _ in self.frames]
        stamped = [stamps for _, _, stamps in self.frames]
        ticks = [_NO_STAMPS if frame.device_ticks is None else frame.device_ticks for frame in frames]
        columns = [
            *self._steps_per_row(ticks),
            _steps(np.concatenate(ticks)),
            _steps(np.concatenate([frame.arrival_ns for frame in frames])),
            _steps(np.concatenate([stamps.capture_ns for stamps in stamped])),
        ]
        packed, sizes = pack_sint64(np.concatenate(columns))
        ends = np.cumsum(sizes)[np.cumsum([len(column) for column in columns]) - 1].tolist()
        parts = [packed[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        widths = [stamps.uncertainty for stamps in stamped]
        parts += [
            _doubles([width.statistical_ns for width in widths]),
            _doubles([width.floor_ns for width in widths]),
            _doubles([width.asymmetry_ns for width in widths]),
            _doubles([value for frame in frames for value in frame.meta]),
        ]
        named = zip(_TAGS.values(), parts, strict=True)
        return b"".join(piece for tag, part in named if part for piece in (tag, varint(len(part)), part))

    def _steps_per_row(self, ticks: list[_Int64s]) -> _Int64s:
        """Return (7, rows) steps: instance, gap of sequence numbers, count, epoch, and three counts of stamps."""
        rows: _Int64s = np.array(
            [
                (
                    instance,
                    frame.seq,
                    frame.count,
                    stamps.epoch,
                    len(own_ticks),
                    len(frame.arrival_ns),
                    len(stamps.capture_ns),
                )
                for (instance, frame, stamps), own_ticks in zip(self.frames, ticks, strict=True)
            ],
            np.int64,
        ).T
        steps = _steps(rows)
        steps[1, 1:] -= rows[2, :-1]
        return steps


def _steps(values: _Int64s) -> _Int64s:
    """Return each value minus the one before it along the last axis, modulo 2^64; the first as it is."""
    steps: _Int64s = values.copy()
    steps[..., 1:] -= values[..., :-1]
    return steps


def _doubles(values: list[float]) -> bytes:
    return np.asarray(values, "<f8").tobytes()


def unpack_stamps(data: Buffer, meta_width: int) -> Iterator[StampRow]:
    """Yield the rows of a ``sensorium.Stamps`` message; ``meta_width`` is ``len(StreamInfo.meta_fields)``.

    Raises:
        EpisodeError: If the message is damaged.
    """
    parts = _parse(memoryview(data))
    instance, gaps, counts, epoch, *stamp_counts, ticks, arrivals, captures = (
        np.cumsum(unpack_sint64(parts[name])) for name in _STEPS
    )
    statistical, floor, asymmetry, meta = (_read_doubles(parts[name]) for name in _DOUBLES)
    rows = len(counts)
    per_row = (instance, gaps, epoch, *stamp_counts, statistical, floor, asymmetry)
    if any(len(column) != rows for column in per_row) or len(meta) != rows * meta_width:
        raise EpisodeError(f"a stamps message is damaged: {rows} rows, columns of {[*map(len, per_row)]}")
    seqs = gaps + np.concatenate([[0], np.cumsum(counts)[:-1]]) if rows else gaps
    groups = [
        _split(values, lengths)
        for values, lengths in zip((ticks, arrivals, captures), stamp_counts, strict=True)
    ]
    for row, (own_ticks, arrival, capture) in enumerate(zip(*groups, strict=True)):
        uncertainty = Uncertainty(float(statistical[row]), float(floor[row]), float(asymmetry[row]))
        yield StampRow(
            int(instance[row]),
            int(seqs[row]),
            int(counts[row]),
            own_ticks if len(own_ticks) else None,
            arrival,
            Stamped(capture, uncertainty, int(epoch[row])),
            tuple(meta[row * meta_width : (row + 1) * meta_width].tolist()),
        )


def _split(values: _Int64s, lengths: _Int64s) -> list[_Int64s]:
    """Return the stamps of each row."""
    ends = np.cumsum(lengths)
    if (lengths < 0).any() or (ends[-1] if len(ends) else 0) != len(values):
        raise EpisodeError(f"a stamps message is damaged: {len(values)} stamps in rows of {lengths[:10]}")
    return [values[end - length : end] for end, length in zip(ends.tolist(), lengths.tolist(), strict=True)]


def _parse(view: memoryview) -> dict[str, memoryview]:
    """Return the bytes of every column; empty where the message has none."""
    parts = dict.fromkeys(_TAGS, memoryview(b""))
    at = 0
    while at < len(view):
        name = _NAMES.get(bytes(view[at : at + 1]))
        size, begin = _read_varint(view, at + 1)
        if name is None or begin + size > len(view):
            raise EpisodeError(f"a stamps message is damaged at byte {at} of {len(view)}")
        parts[name] = view[begin : begin + size]
        at = begin + size
    return parts


def _read_doubles(data: memoryview) -> NDArray[np.float64]:
    if len(data) % 8:
        raise EpisodeError(f"a stamps message is damaged: a column of numbers has {len(data)} bytes")
    return np.frombuffer(data, "<f8")


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
