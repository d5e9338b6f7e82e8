"""Reads the columnar stamps that :mod:`sensorium.sync.episode.stamp_rows` packs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from sensorium.errors import EpisodeError
from sensorium.sync.clocks.model import Stamped, Uncertainty
from sensorium.sync.episode import schemas
from sensorium.sync.episode.mcap_records import Buffer

_Int64s = NDArray[np.int64]
_INT64 = 1 << 63


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
    found = _parse(data)
    instances, epochs, counts = map(_sums, (found.instance_step, found.epoch_step, found.count_step))
    seqs = _sums([gap + before for gap, before in zip(found.seq_gap[:], [0, *counts], strict=False)])
    widths = (found.statistical_ns[:], found.floor_ns[:], found.asymmetry_ns[:])
    ticks = _split(found.device_ticks_step, found.tick_counts_step)
    arrivals = _split(found.arrival_host_step_ns, found.arrival_counts_step)
    captures = _split(found.capture_host_step_ns, found.capture_counts_step)
    meta = found.meta[:]
    rows = len(counts)
    columns = (instances, seqs, epochs, *widths, ticks, arrivals, captures)
    if any(len(column) != rows for column in columns) or len(meta) != rows * meta_width:
        raise EpisodeError(f"a stamps message is damaged: {rows} rows, columns of {[*map(len, columns)]}")
    stamped = map(Stamped, captures, map(Uncertainty, *widths), epochs)
    own_ticks = [stamps if len(stamps) else None for stamps in ticks]
    metas = zip(*[iter(meta)] * meta_width, strict=True) if meta_width else [()] * rows
    yield from map(StampRow, instances, seqs, counts, own_ticks, arrivals, stamped, metas)


def _parse(data: Buffer) -> Any:
    try:
        return schemas.Stamps.FromString(bytes(data))
    except DecodeError as err:
        raise EpisodeError(f"a stamps message of {len(data)} bytes is damaged: {err}") from err


def _sums(steps: Sequence[int]) -> list[int]:
    """Return the values of a column with an entry per row, sums modulo 2^64."""
    found = list(accumulate(steps[:]))
    if found and (max(found) >= _INT64 or min(found) < -_INT64):
        return [(value + _INT64) % (2 * _INT64) - _INT64 for value in found]
    return found


def _split(steps: Sequence[int], count_steps: Sequence[int]) -> list[_Int64s]:
    """Return the stamps of each row, sums modulo 2^64."""
    values: _Int64s = np.array(steps[:], np.int64).cumsum()
    lengths = _sums(count_steps)
    ends = list(accumulate(lengths, initial=0))
    if ends[-1] != len(values) or min(lengths, default=0) < 0:
        raise EpisodeError(f"a stamps message is damaged: {len(values)} stamps in rows of {lengths[:10]}")
    return [values[begin:end] for begin, end in pairwise(ends)]
