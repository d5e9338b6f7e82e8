"""The columnar stamps of a stream: one row per frame, packed beside the frames of the same chunk.

Integers are stored by difference, because stamps of a steady stream are far from zero and close to each other: with
a compressed chunk around them, a block of samples takes what its arrivals are uncertain by, and little more.
"""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sensorium.drivers.frame import Frame
from sensorium.sync.clocks.model import Stamped, Uncertainty
from sensorium.sync.episode import schemas
from sensorium.sync.episode.layouts import bytes_tag, varint
from sensorium.sync.episode.varints import pack_sint64

_Int64s = NDArray[np.int64]
_NO_STAMPS = np.empty(0, np.int64)

STEPS = (
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
PER_ROW = 7
"""So many of the steps have one entry per row; the others have as many as the counts say."""
DOUBLES = ("statistical_ns", "floor_ns", "asymmetry_ns", "meta")
TAGS = {name: bytes_tag(schemas.field_number(schemas.Stamps, name)) for name in (*STEPS, *DOUBLES)}
_COUNT_TAGS = [TAGS[name] for name in STEPS[2:PER_ROW]]
_WIDTH_TAGS = [TAGS[name] for name in DOUBLES[:3]]
_INSTANCE_TAG, _SEQ_TAG, _META_TAG = (TAGS[name] for name in ("instance_step", "seq_gap", "meta"))
_TICKS_TAG, _ARRIVAL_TAG, _CAPTURE_TAG = (TAGS[name] for name in STEPS[PER_ROW:])
_MOST_ROWS = 12
_MOST_STAMPS = 36
"""Up to so many of either, packing without arrays is faster."""

_SMALL = [varint(code) for code in range(256)]
_INT64 = 1 << 63
_MAX_STEP_BYTES = 10
_FIXED_ROW_BYTES = 5 + _MAX_STEP_BYTES + 4 + 5 + 3 * 4 + 3 * 8
"""What the steps and doubles of one row take at most, its stamps apart: no count exceeds 2^20."""
HEAD_BYTES = 11 * len(TAGS)
"""Largest size of the tags and lengths of one message."""


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

    @property
    def are_few(self) -> bool:
        """Whether ``pack`` takes no longer than handing it to another thread would."""
        return len(self.frames) <= _MOST_ROWS

    def pack(self) -> bytes:
        """Return the rows as a ``sensorium.Stamps`` message, the bytes that protobuf would write."""
        return pack_few(self.frames) or self.pack_many()

    def pack_many(self) -> bytes:
        """Return what :meth:`pack` does, by arrays."""
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
        named = zip(TAGS.values(), parts, strict=True)
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


# -- few rows, without arrays


def pack_few(rows: Sequence[tuple[int, Frame, Stamped]]) -> bytes | None:
    """Return (instance, frame, stamped) rows as a message, packed without arrays; None = not few, or not alike.

    A megabyte of camera images holds a frame or two of each camera: one or two rows for each stamps message. Arrays
    of so few elements cost 40 us a message there, a quarter of the time that the kernel takes to write the megabyte.
    """
    if len(rows) > _MOST_ROWS:
        return None
    kinds = set(map(_kind, rows))
    kind = kinds.pop()
    if kinds or sum(kind[3:]) * len(rows) > _MOST_STAMPS:
        return None
    instances, counts = _alike(kind, len(rows))
    ticks = [frame.device_ticks for _, frame, _ in rows if frame.device_ticks is not None]
    meta = [value for _, frame, _ in rows for value in frame.meta]
    return b"".join(
        (
            instances,
            _field(_SEQ_TAG, _gaps(rows)),
            counts,
            _field(_TICKS_TAG, _few_steps(ticks)) if ticks else b"",
            _field(_ARRIVAL_TAG, _few_steps([frame.arrival_ns for _, frame, _ in rows])),
            _field(_CAPTURE_TAG, _few_steps([stamped.capture_ns for _, _, stamped in rows])),
            _widths([stamped.uncertainty for _, _, stamped in rows]),
            _field(_META_TAG, struct.pack(f"<{len(meta)}d", *meta)) if meta else b"",
        )
    )


def _kind(row: tuple[int, Frame, Stamped]) -> tuple[int, ...]:
    """Return instance, count, epoch, and how many ticks, arrivals and captures."""
    instance, frame, stamped = row
    ticks = 0 if frame.device_ticks is None else len(frame.device_ticks)
    return instance, frame.count, stamped.epoch, ticks, len(frame.arrival_ns), len(stamped.capture_ns)


def _gaps(rows: Sequence[tuple[int, Frame, Stamped]]) -> bytes:
    found = b""
    next_seq = 0
    for _, frame, _ in rows:
        found += _step(frame.seq - next_seq)
        next_seq = frame.seq + frame.count
    return found


def _widths(uncertainties: list[Uncertainty]) -> bytes:
    heads, doubles = _few_doubles(len(uncertainties))
    return doubles.pack(
        heads[0],
        *[width.statistical_ns for width in uncertainties],
        heads[1],
        *[width.floor_ns for width in uncertainties],
        heads[2],
        *[width.asymmetry_ns for width in uncertainties],
    )


@lru_cache(maxsize=256)
def _alike(kind: tuple[int, ...], rows: int) -> tuple[bytes, bytes]:
    """Return the steps of the instance, and of the counts: the first as it is, then none."""
    instance, *counts = kind
    tail = bytes(rows - 1)
    fields = [_field(tag, _step(value) + tail) for tag, value in zip(_COUNT_TAGS, counts, strict=True)]
    return _field(_INSTANCE_TAG, _step(instance) + tail), b"".join(fields)


@lru_cache(maxsize=64)
def _few_doubles(rows: int) -> tuple[list[bytes], struct.Struct]:
    """Return what stands before each column of doubles, and the layout of the three with that."""
    heads = [tag + varint(8 * rows) for tag in _WIDTH_TAGS]
    return heads, struct.Struct("<" + "".join(f"{len(head)}s{rows}d" for head in heads))


def _field(tag: bytes, data: bytes) -> bytes:
    return tag + varint(len(data)) + data


def _few_steps(columns: Iterable[NDArray[np.int64]]) -> bytes:
    """Return the stamps, each as its difference to the one before."""
    found = b""
    last = 0
    for column in columns:
        for value in column.tolist():
            found += _step(value - last)
            last = value
    return found


def _step(step: int) -> bytes:
    """Return a difference of two int64 as protobuf's ``sint64``, modulo 2^64."""
    if not -_INT64 <= step < _INT64:
        step = (step + _INT64) % (2 * _INT64) - _INT64
    code = step << 1 if step >= 0 else ~step << 1 | 1
    return _SMALL[code] if code < 256 else varint(code)
