"""Numeric payloads: columns of integers or floats with their scales."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sensorium.drivers.frame import Encoding, StreamInfo
from sensorium.drivers.payloads.payload import Buffer, Floats, Payload
from sensorium.errors import PayloadError


class ColumnReader:
    """Reads the payloads of one ``COLUMNS`` stream."""

    def __init__(self, info: StreamInfo) -> None:
        self._info = info
        self._dtypes = [np.dtype(column.dtype) for column in info.columns]
        self._row_bytes = sum(dtype.itemsize for dtype in self._dtypes)
        self._is_uniform = len(set(self._dtypes)) == 1
        # A number of 4 bytes times a scale has 4 bytes, too: values are the same whichever way they are read.
        precision = np.float32 if self._is_uniform and self._dtypes[0] == np.float32 else np.float64
        self._scales = np.array([column.scale for column in info.columns], precision)

    def raw(self, payload: Buffer, count: int) -> tuple[NDArray[Any], ...]:
        """Return each column's (count,) numbers, exact and without a copy; physical = raw * scale.

        Raises:
            PayloadError: If the payload does not hold so many samples.
        """
        self._require(payload, count)
        found, at = [], 0
        for dtype in self._dtypes:
            found.append(np.frombuffer(payload, dtype, count, at))
            at += count * dtype.itemsize
        return tuple(found)

    def values(self, payload: Buffer, count: int) -> Floats:
        """Return (count, columns) physical values.

        Raises:
            PayloadError: As :meth:`raw`.
        """
        values = np.empty((count, len(self._dtypes)))
        if self._is_uniform:
            self._require(payload, count)
            raw = np.frombuffer(payload, self._dtypes[0]).reshape(len(self._dtypes), count)
            np.multiply(raw.T, self._scales, out=values)
            return values
        for index, numbers in enumerate(self.raw(payload, count)):
            values[:, index] = numbers * self._info.columns[index].scale
        return values

    def _require(self, payload: Buffer, count: int) -> None:
        if len(payload) != count * self._row_bytes or not self._dtypes:
            raise PayloadError(
                f"a frame of {self._info.name} has {len(payload)} bytes, "
                f"its {count} samples need {count * self._row_bytes}"
            )


def encode_columns(info: StreamInfo, values: NDArray[Any]) -> bytes:
    """Return the payload of (count, columns) physical values; integers are rounded to the nearest step.

    Raises:
        PayloadError: If a value does not fit its column's type.
    """
    if values.ndim != 2 or values.shape[1] != len(info.columns):
        raise PayloadError(f"{info.name} has {len(info.columns)} columns, the values are {values.shape}")
    return b"".join(
        _fitted(info, index, values[:, index] / column.scale) for index, column in enumerate(info.columns)
    )


def _fitted(info: StreamInfo, index: int, raw: Floats) -> bytes:
    column = info.columns[index]
    dtype = np.dtype(column.dtype)
    if dtype.kind == "f":
        return raw.astype(dtype).tobytes()
    bounds = np.iinfo(dtype)
    steps = np.rint(raw)
    # As floats both ends of int64 round outwards, hence the strict upper comparison.
    if not ((steps >= float(bounds.min)) & (steps < float(bounds.max) + 1.0)).all():
        raise PayloadError(f"{info.name}: a value of column {column.name} does not fit {column.dtype}")
    return steps.astype(dtype).tobytes()


ROWS = (
    Payload(
        Encoding.COLUMNS,
        sample_bytes=lambda info: info.row_bytes,
        samples=lambda info: ColumnReader(info).values,
        encode=encode_columns,
    ),
)
