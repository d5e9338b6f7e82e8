"""Point clouds: plain float32 rows, and what an Ouster's packets hold."""

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sensorium.drivers.frame import Encoding, StreamInfo
from sensorium.drivers.payloads.ouster import decode_scan, scan_points
from sensorium.drivers.payloads.ouster_metadata import OusterMetadata
from sensorium.drivers.payloads.payload import Buffer, Cloud, Payload
from sensorium.errors import PayloadError

POINT_BYTES = 16


def decode_points(info: StreamInfo, payload: Buffer) -> Cloud:
    """Return the cloud of a ``POINTS`` payload.

    Raises:
        PayloadError: If the payload is not a whole number of points.
    """
    if len(payload) % POINT_BYTES:
        raise PayloadError(f"a cloud of {info.name} has {len(payload)} bytes, no multiple of {POINT_BYTES}")
    return Cloud(np.frombuffer(payload, "<f4").reshape(-1, 4))


def encode_points(info: StreamInfo, points: NDArray[Any]) -> bytes:
    """Return the payload of (N, 4) x, y, z (m), intensity.

    Raises:
        PayloadError: If the rows are no such points.
    """
    if points.ndim != 2 or points.shape[1] != 4:
        raise PayloadError(f"{info.name} takes points of 4 numbers, found {points.shape}")
    return points.astype("<f4").tobytes()


def decode_ouster(info: StreamInfo, payload: Buffer) -> Cloud:
    """Return the returns of one revolution's packets, with laser and time of each.

    Raises:
        ConfigError: If the stream does not carry the sensor's metadata.
        WireError: If the payload is not a whole number of packets.
    """
    metadata = _metadata(info.details.get("metadata", ""))
    scan = decode_scan(payload, metadata)
    returns = np.flatnonzero(scan.range_mm)
    ring, column = np.divmod(returns, scan.range_mm.shape[1])
    valid = np.flatnonzero(scan.column_valid)
    if not len(returns) or not len(valid):
        return Cloud(scan_points(scan, metadata), ring)
    return Cloud(scan_points(scan, metadata), ring, scan.column_ns[column] - scan.column_ns[valid[0]])


# One object per text: the tables of rays and layouts are cached by object.
_metadata = lru_cache(maxsize=8)(OusterMetadata.from_json)

ROWS = (
    Payload(Encoding.POINTS, granule_bytes=POINT_BYTES, cloud=decode_points, encode=encode_points),
    Payload(Encoding.OUSTER, cloud=decode_ouster),
)
