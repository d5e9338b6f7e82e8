"""Numeric payloads: columns of integers or floats with their scales, and interleaved audio."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sensorium.drivers.frame import Encoding, StreamInfo
from sensorium.drivers.payloads.payload import Buffer, Floats, Payload
from sensorium.errors import ConfigError, PayloadError

_PCM_FULL_SCALE = 32768.0
_PCM_BYTES = 2


def raw_columns(info: StreamInfo, payload: Buffer, count: int) -> dict[str, NDArray[Any]]:
    """Return each column's (count,) raw numbers by name, exact and without a copy; physical = raw * scale.

    Raises:
        PayloadError: If the payload is no ``COLUMNS`` payload of so many samples.
    """
    if not info.columns or len(payload) != count * info.row_bytes:
        raise PayloadError(
            f"a frame of {info.name} has {len(payload)} bytes, its {count} samples need {count * info.row_bytes}"
        )
    found, at = {}, 0
    for column in info.columns:
        raw = np.frombuffer(payload, column.dtype, count, at)
        found[column.name] = raw
        at += raw.nbytes
    return found


def decode_columns(info: StreamInfo, payload: Buffer, count: int) -> Floats:
    """Return (count, columns) physical values.

    Raises:
        PayloadError: As :func:`raw_columns`.
    """
    raw = raw_columns(info, payload, count)
    values = np.empty((count, len(info.columns)))
    for index, (column, numbers) in enumerate(zip(info.columns, raw.values(), strict=True)):
        values[:, index] = numbers * column.scale
    return values


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


def _check_audio(info: StreamInfo) -> None:
    if len(info.shape) != 1 or info.shape[0] < 1:
        raise ConfigError(
            f"stream {info.name}: {info.plain_encoding} needs shape (channels,), found {info.shape}"
        )


def decode_pcm(info: StreamInfo, payload: Buffer, count: int) -> Floats:
    """Return (count, channels) in full scales, -1 up to just below 1.

    Raises:
        PayloadError: If the payload does not hold so many samples.
    """
    channels = info.shape[0]
    if len(payload) != count * channels * _PCM_BYTES:
        raise PayloadError(
            f"a frame of {info.name} has {len(payload)} bytes, its {count} samples of {channels} channels "
            f"need {count * channels * _PCM_BYTES}"
        )
    return np.asarray(np.frombuffer(payload, "<i2").reshape(count, channels) / _PCM_FULL_SCALE, np.float64)


def encode_pcm(info: StreamInfo, values: NDArray[Any]) -> bytes:
    """Return the payload of (count, channels) full scales; what is louder than full scale is clipped.

    Raises:
        PayloadError: If the channels are not the stream's.
    """
    if values.ndim != 2 or values.shape[1:] != info.shape:
        raise PayloadError(f"{info.name} has {info.shape} channels, the values are {values.shape}")
    steps = np.rint(values * _PCM_FULL_SCALE)
    return np.clip(steps, -_PCM_FULL_SCALE, _PCM_FULL_SCALE - 1).astype("<i2").tobytes()


ROWS = (
    Payload(
        Encoding.COLUMNS,
        sample_bytes=lambda info: info.row_bytes,
        samples=decode_columns,
        encode=encode_columns,
    ),
    Payload(
        Encoding.PCM_S16LE,
        check_stream=_check_audio,
        sample_bytes=lambda info: info.shape[0] * _PCM_BYTES,
        samples=decode_pcm,
        encode=encode_pcm,
    ),
)
