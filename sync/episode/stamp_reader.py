"""Reads the columnar stamps that :mod:`sensorium.sync.episode.stamp_rows` packs."""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray

from sensorium.errors import EpisodeError
from sensorium.sync.clocks.model import Stamped, Uncertainty
from sensorium.sync.episode.mcap_records import Buffer
from sensorium.sync.episode.stamp_rows import DOUBLES, PER_ROW, STEPS, TAGS
from sensorium.sync.episode.varints import MAX_GROUPS, unpack_sint64

_Int64s = NDArray[np.int64]
_NAMES = {tag[0]: name for name, tag in TAGS.items()}
_FEW_BYTES = 256
"""Up to so many bytes of steps, reading them without arrays is faster."""

_INT64, _WORD = 1 << 63, (1 << 64) - 1


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


def unpack_stamps(data: Buffer, meta_width: int) -> Iterator[StampRow]:
    """Yield the rows of a ``sensorium.Stamps`` message; ``meta_width`` is ``len(StreamInfo.meta_fields)``.

    Raises:
        EpisodeError: If the message is damaged.
    """
    parts = _parse(bytes(data))
    steps = [parts[name] for name in STEPS]
    is_few = sum(map(len, steps)) <= _FEW_BYTES
    per_row, stamps = _few_columns(steps) if is_few else _many_columns(steps)
    instances, gaps, counts, epochs, *stamp_counts = per_row
    statistical, floor, asymmetry, meta = (_read_doubles(parts[name]) for name in DOUBLES)
    rows = len(counts)
    columns = (*per_row, statistical, floor, asymmetry)
    if any(len(column) != rows for column in columns) or len(meta) != rows * meta_width:
        raise EpisodeError(f"a stamps message is damaged: {rows} rows, columns of {[*map(len, columns)]}")
    ticks, arrivals, captures = (
        _split(values, lengths) for values, lengths in zip(stamps, stamp_counts, strict=True)
    )
    before = 0
    for row, count in enumerate(counts):
        uncertainty = Uncertainty(statistical[row], floor[row], asymmetry[row])
        yield StampRow(
            instances[row],
            gaps[row] + before,
            count,
            ticks[row] if len(ticks[row]) else None,
            arrivals[row],
            Stamped(captures[row], uncertainty, epochs[row]),
            meta[row * meta_width : (row + 1) * meta_width],
        )
        before += count


_Columns = tuple[Sequence[list[int]], Sequence[_Int64s]]
"""The columns with an entry per row, and the three of stamps."""


def _few_columns(steps: Sequence[bytes]) -> _Columns:
    """Return the columns of a short message, each sum of its steps modulo 2^64."""
    found = [_few_sums(part) for part in steps]
    return found[:PER_ROW], [np.array(column, np.int64) for column in found[PER_ROW:]]


def _few_sums(part: bytes) -> list[int]:
    sums = []
    total = code = shift = 0
    for byte in part:
        code |= (byte & 0x7F) << shift
        if byte >= 0x80:
            shift += 7
            continue
        if shift >= 7 * MAX_GROUPS:
            raise EpisodeError("packed integers are damaged: one is longer than ten bytes")
        code &= _WORD
        total += code >> 1 if not code & 1 else ~(code >> 1)
        if not -_INT64 <= total < _INT64:
            total = (total + _INT64 & _WORD) - _INT64
        sums.append(total)
        code = shift = 0
    if shift:
        raise EpisodeError("packed integers are damaged: one does not end")
    return sums


def _many_columns(steps: Sequence[bytes]) -> _Columns:
    """Return the columns of a long message, all of them unpacked at once."""
    joined = b"".join(steps)
    is_last = np.frombuffer(joined, np.uint8) < 0x80
    ends = list(accumulate(map(len, steps)))
    if not all(is_last[end - 1] for end, part in zip(ends, steps, strict=True) if part):
        raise EpisodeError("packed integers are damaged: one does not end")
    values = unpack_sint64(memoryview(joined))
    until = np.concatenate([[0], np.cumsum(is_last)])[[0, *ends]].tolist()
    found = [np.cumsum(values[begin:end]) for begin, end in pairwise(until)]
    return [column.tolist() for column in found[:PER_ROW]], found[PER_ROW:]


def _split(values: _Int64s, lengths: Sequence[int]) -> list[_Int64s]:
    """Return the stamps of each row."""
    if len(lengths) == 1 and lengths[0] == len(values):
        return [values]
    ends = list(accumulate(lengths))
    if (lengths and min(lengths) < 0) or (ends[-1] if ends else 0) != len(values):
        raise EpisodeError(f"a stamps message is damaged: {len(values)} stamps in rows of {lengths[:10]}")
    return [values[end - length : end] for end, length in zip(ends, lengths, strict=True)]


def _parse(data: bytes) -> dict[str, bytes]:
    """Return the bytes of every column; empty where the message has none."""
    parts = dict.fromkeys(TAGS, b"")
    at = 0
    while at < len(data):
        name = _NAMES.get(data[at])
        size, begin = _read_varint(data, at + 1)
        if name is None or begin + size > len(data):
            raise EpisodeError(f"a stamps message is damaged at byte {at} of {len(data)}")
        parts[name] = data[begin : begin + size]
        at = begin + size
    return parts


def _read_doubles(data: bytes) -> tuple[float, ...]:
    if len(data) % 8:
        raise EpisodeError(f"a stamps message is damaged: a column of numbers has {len(data)} bytes")
    return struct.unpack(f"<{len(data) // 8}d", data)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 64, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise EpisodeError("a stamps message is damaged: a length does not end")
