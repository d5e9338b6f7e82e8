"""Packs the stamps of a few frames that are alike without arrays, to the bytes of :meth:`StampRows.pack`.

A megabyte of camera images holds a frame or two of each camera: one or two rows for each stamps message. Arrays
of so few elements cost 40 us a message there, a quarter of the time that the kernel takes to write the megabyte.
"""

import struct
from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sensorium.drivers.frame import Frame
from sensorium.sync.clocks.model import Stamped, Uncertainty
from sensorium.sync.episode import schemas
from sensorium.sync.episode.layouts import bytes_tag, varint

MOST_ROWS = 12
_MOST_STAMPS = 36
"""Up to so many of either, this is the faster way."""

_SMALL = [varint(code) for code in range(256)]
_INT64 = 1 << 63


def _tag(name: str) -> bytes:
    return bytes_tag(schemas.field_number(schemas.Stamps, name))


_COUNTS = ("count_step", "epoch_step", "tick_counts_step", "arrival_counts_step", "capture_counts_step")
_COUNT_TAGS = [_tag(name) for name in _COUNTS]
_WIDTH_TAGS = [_tag(name) for name in ("statistical_ns", "floor_ns", "asymmetry_ns")]
_INSTANCE_TAG, _SEQ_TAG, _META_TAG = _tag("instance_step"), _tag("seq_gap"), _tag("meta")
_TICKS_TAG, _ARRIVAL_TAG, _CAPTURE_TAG = map(
    _tag, ("device_ticks_step", "arrival_host_step_ns", "capture_host_step_ns")
)


def pack_few_stamps(rows: Sequence[tuple[int, Frame, Stamped]]) -> bytes | None:
    """Return (instance, frame, stamped) rows as a ``sensorium.Stamps`` message; None = not few, or not alike."""
    if len(rows) > MOST_ROWS:
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
            _field(_TICKS_TAG, _steps(ticks)) if ticks else b"",
            _field(_ARRIVAL_TAG, _steps([frame.arrival_ns for _, frame, _ in rows])),
            _field(_CAPTURE_TAG, _steps([stamped.capture_ns for _, _, stamped in rows])),
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
    heads, doubles = _doubles(len(uncertainties))
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
def _doubles(rows: int) -> tuple[list[bytes], struct.Struct]:
    """Return what stands before each column of doubles, and the layout of the three with that."""
    heads = [tag + varint(8 * rows) for tag in _WIDTH_TAGS]
    return heads, struct.Struct("<" + "".join(f"{len(head)}s{rows}d" for head in heads))


def _field(tag: bytes, data: bytes) -> bytes:
    return tag + varint(len(data)) + data


def _steps(columns: Iterable[NDArray[np.int64]]) -> bytes:
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
