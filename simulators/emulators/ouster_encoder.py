"""Ouster packets from range images: the inverse of ``drivers/payloads/ouster.py``, for simulated sensors."""

import json
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sensorium.drivers.devices.ouster.packets import IMU_PACKET, LIDAR_PACKET_TYPE, crc64
from sensorium.drivers.payloads.ouster import packet_dtype
from sensorium.drivers.payloads.ouster_metadata import HEADER_BYTES, PROFILES, OusterMetadata

_FIELD_OF_VIEW_DEG = 45.0
_AZIMUTH_PATTERN_DEG = (4.23, 1.41, -1.41, -4.23)
"""The horizontal stagger of an OS-1's four laser columns."""


def default_metadata(
    rings: int,
    columns: int,
    rate_hz: float,
    *,
    profile: str = "RNG19_RFL8_SIG16_NIR16",
    serial: str = "992600000001",
    init_id: int = 1,
    timestamp_mode: str = "TIME_FROM_INTERNAL_OSC",
) -> OusterMetadata:
    """Return the metadata of an OS-1-like sensor: +-22.5 degrees, evenly spaced, staggered beams.

    ``text`` of the result is the JSON that the decoder and the driver read.

    Raises:
        ConfigError: If such a sensor's packets could not be decoded.
    """
    azimuth_deg = [_AZIMUTH_PATTERN_DEG[ring % 4] for ring in range(rings)]
    document: dict[str, Any] = {
        "prod_line": f"OS-1-{rings}",
        "prod_sn": serial,
        "image_rev": "simulated",
        "status": "RUNNING",
        "initialization_id": init_id,
        "lidar_mode": f"{columns}x{rate_hz:g}",
        "timestamp_mode": timestamp_mode,
        "beam_altitude_angles": np.linspace(_FIELD_OF_VIEW_DEG / 2, -_FIELD_OF_VIEW_DEG / 2, rings).tolist(),
        "beam_azimuth_angles": azimuth_deg,
        "lidar_origin_to_beam_origin_mm": 15.806,
        "lidar_to_sensor_transform": [-1, 0, 0, 0, 0, -1, 0, 0, 0, 0, 1, 36.18, 0, 0, 0, 1],
        "imu_to_sensor_transform": [1, 0, 0, 6.253, 0, 1, 0, -11.775, 0, 0, 1, 7.645, 0, 0, 0, 1],
        "data_format": {
            "pixels_per_column": rings,
            "columns_per_frame": columns,
            "columns_per_packet": 16,
            "column_window": [0, columns - 1],
            "fps": rate_hz,
            "pixel_shift_by_row": [round(columns * angle / 360.0) for angle in azimuth_deg],
            "udp_profile_lidar": profile,
            "udp_profile_imu": "LEGACY",
        },
    }
    return OusterMetadata.from_json(json.dumps(document))


def encode_scan(
    metadata: OusterMetadata,
    frame_id: int,
    range_mm: ArrayLike,
    reflectivity: ArrayLike,
    column_ns: ArrayLike,
    *,
    signal: ArrayLike = 0,
    near_ir: ArrayLike = 0,
    column_valid: ArrayLike = True,
    with_crc: bool = True,
) -> list[bytes]:
    """Return the packets of one revolution in sending order (all columns; the window is not applied).

    Args:
        frame_id: Any integer; sent modulo 65536.
        range_mm: (H, W), 0 = no return; must fit the profile's bits (and 8 mm steps for RNG15).
        reflectivity, signal, near_ir: (H, W) or a constant; fields that the profile lacks are left out.
        column_ns: (W,) device stamps.
        column_valid: (W,) or a constant; becomes bit 0 of the column status.
        with_crc: End packets with their CRC-64, as firmware 3 does; else zeros, as firmware 2 does.

    Raises:
        ValueError: If a value does not fit its field.
    """
    profile = PROFILES[metadata.profile]
    count = metadata.columns // metadata.columns_per_packet
    packets = np.zeros(count, packet_dtype(metadata))
    columns = packets["columns"]
    in_packets = (count, metadata.columns_per_packet)
    columns["timestamp_ns"] = np.asarray(column_ns, np.uint64).reshape(in_packets)
    columns["measurement_id"] = np.arange(metadata.columns).reshape(in_packets)
    valid = np.broadcast_to(np.asarray(column_valid, np.bool_), (metadata.columns,)).reshape(in_packets)
    columns["status"] = np.where(valid, 1 if profile.has_header else 0xFFFFFFFF, 0)
    if not profile.has_header:
        columns["frame_id"] = frame_id & 0xFFFF
        columns["encoder"] = (np.arange(metadata.columns) * 90112 // metadata.columns).reshape(in_packets)
    images = {"range_mm": range_mm, "reflectivity": reflectivity, "signal": signal, "near_ir": near_ir}
    for name in profile.fields:
        columns["pixels"][name] = _raw_pixels(metadata, name, images[name])
    body = packets.tobytes()
    size = metadata.packet_bytes
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    return (
        [_framed(metadata, piece, frame_id, with_crc) for piece in pieces] if profile.has_header else pieces
    )


def _raw_pixels(metadata: OusterMetadata, name: str, image: ArrayLike) -> NDArray[np.int64]:
    field = PROFILES[metadata.profile].fields[name]
    raw = np.broadcast_to(np.asarray(image, np.int64), (metadata.rings, metadata.columns)) >> field.shift
    largest = field.mask or np.iinfo(field.dtype).max
    if raw.min() < 0 or raw.max() > largest:
        raise ValueError(
            f"{name} {raw.min()} ... {raw.max()} does not fit 0 ... {largest} of {metadata.profile}"
        )
    by_column = raw.T.reshape(-1, metadata.columns_per_packet, metadata.rings)
    return np.ascontiguousarray(by_column)


def _framed(metadata: OusterMetadata, piece: bytes, frame_id: int, with_crc: bool) -> bytes:
    header = (
        LIDAR_PACKET_TYPE.to_bytes(2, "little")
        + (frame_id & 0xFFFF).to_bytes(2, "little")
        + metadata.init_id.to_bytes(3, "little")
        + int(metadata.serial or 0).to_bytes(5, "little")
    )
    covered = header.ljust(HEADER_BYTES, b"\0") + piece[HEADER_BYTES:-8]
    return covered + (crc64(covered).to_bytes(8, "little") if with_crc else bytes(8))


def encode_imu(
    sys_ns: int,
    acceleration_g: tuple[float, float, float],
    angular_velocity_dps: tuple[float, float, float],
    *,
    accel_ns: int | None = None,
    gyro_ns: int | None = None,
) -> bytes:
    """Return one 48-byte IMU packet; the accelerometer's and gyroscope's stamps default to ``sys_ns``."""
    return IMU_PACKET.pack(
        sys_ns,
        sys_ns if accel_ns is None else accel_ns,
        sys_ns if gyro_ns is None else gyro_ns,
        *acceleration_g,
        *angular_velocity_dps,
    )
