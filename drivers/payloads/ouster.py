"""Ouster's lidar packets as a payload: decoding into range images, points.

Sources: Ouster Software User Manual ("Lidar Data Packet Format", "Coordinate Frames and XYZ Calculation") and
the field tables of ouster-sdk (BSD-3). The tests compare every decoded field with digests made by that SDK.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sensorium.drivers.payloads.ouster_metadata import HEADER_BYTES, PROFILES, OusterMetadata
from sensorium.errors import WireError


@lru_cache(maxsize=8)
def packet_dtype(metadata: OusterMetadata) -> np.dtype[np.void]:
    """Return the structured type of a packet: ``columns`` (C,), each with its header and ``pixels`` (H,)."""
    profile = PROFILES[metadata.profile]
    pixel = np.dtype(
        {
            "names": list(profile.fields),
            "formats": [field.dtype for field in profile.fields.values()],
            "offsets": [field.offset for field in profile.fields.values()],
            "itemsize": profile.pixel_bytes,
        }
    )
    pixels = (pixel, (metadata.rings,))
    if profile.has_header:
        layout: dict[str, tuple[Any, int]] = {
            "timestamp_ns": ("<u8", 0),
            "measurement_id": ("<u2", 8),
            "status": ("<u2", 10),
            "pixels": (pixels, 12),
        }
    else:
        layout = {
            "timestamp_ns": ("<u8", 0),
            "measurement_id": ("<u2", 8),
            "frame_id": ("<u2", 10),
            "encoder": ("<u4", 12),
            "pixels": (pixels, 16),
            "status": ("<u4", metadata.column_bytes - 4),
        }
    column = np.dtype(
        {
            "names": list(layout),
            "formats": [dtype for dtype, _ in layout.values()],
            "offsets": [offset for _, offset in layout.values()],
            "itemsize": metadata.column_bytes,
        }
    )
    return np.dtype(
        {
            "names": ["columns"],
            "formats": [(column, (metadata.columns_per_packet,))],
            "offsets": [HEADER_BYTES if profile.has_header else 0],
            "itemsize": metadata.packet_bytes,
        }
    )


def packet_columns(payload: bytes | memoryview, metadata: OusterMetadata) -> NDArray[np.void]:
    """Return the columns of packets that lie back to back: a (packets, columns per packet) structured view.

    Fields: ``timestamp_ns``, ``measurement_id``, ``status``, ``pixels`` (H,), and for LEGACY ``frame_id`` and
    ``encoder``. Pixel values are raw: :func:`pixel_values` applies mask and shift.

    Raises:
        WireError: If the payload is not a whole number of packets.
    """
    if len(payload) % metadata.packet_bytes:
        raise WireError(
            f"Ouster payload of {len(payload)} B is not a whole number of {metadata.packet_bytes} B packets"
        )
    packets = np.frombuffer(payload, packet_dtype(metadata))
    columns: NDArray[np.void] = packets["columns"]
    return columns


def pixel_values(columns: NDArray[np.void], name: str, profile: str) -> NDArray[np.uint32]:
    """Return field ``name`` of structured columns (..., H) as uint32; zeros where the profile lacks it."""
    field = PROFILES[profile].fields.get(name)
    pixels = columns["pixels"]
    if field is None:
        return np.zeros(pixels.shape, np.uint32)
    values: NDArray[np.uint32] = pixels[name].astype(np.uint32)
    if field.mask:
        values &= np.uint32(field.mask)
    if field.shift:
        values <<= np.uint32(field.shift)
    return values


@dataclass(frozen=True, slots=True, eq=False)
class Scan:
    """One revolution as images in the sensor's own (staggered) layout; row 0 is the top ring.

    Attributes:
        range_mm: (H, W) uint32, 0 = no return.
        reflectivity, signal, near_ir: (H, W) uint16; zeros where the profile has no such field.
        column_ns: (W,) int64 device stamps of the columns, 0 where missing.
        column_valid: (W,) bool: the column arrived and the sensor calls it valid.
        column_status: (W,) uint32 as sent, 0 where missing.
    """

    range_mm: NDArray[np.uint32]
    reflectivity: NDArray[np.uint16]
    signal: NDArray[np.uint16]
    near_ir: NDArray[np.uint16]
    column_ns: NDArray[np.int64]
    column_valid: NDArray[np.bool_]
    column_status: NDArray[np.uint32]


def decode_scan(payload: bytes | memoryview, metadata: OusterMetadata) -> Scan:
    """Decode the packets of one revolution (any subset, in any order) into images.

    Raises:
        WireError: If the payload is not a whole number of packets.
    """
    columns = packet_columns(payload, metadata).reshape(-1)
    ids = columns["measurement_id"]
    keep = ((columns["status"] & 1) == 1) & (ids < metadata.columns)
    if not keep.all():
        columns = columns[keep]
        ids = columns["measurement_id"]
    width = metadata.columns
    column_ns = np.zeros(width, np.int64)
    column_status = np.zeros(width, np.uint32)
    column_valid = np.zeros(width, np.bool_)
    column_ns[ids] = columns["timestamp_ns"].astype(np.int64)
    column_status[ids] = columns["status"]
    column_valid[ids] = True
    range_mm = np.zeros((metadata.rings, width), np.uint32)
    range_mm[:, ids] = pixel_values(columns, "range_mm", metadata.profile).T
    others = {}
    for name in ("reflectivity", "signal", "near_ir"):
        others[name] = np.zeros((metadata.rings, width), np.uint16)
        if name in PROFILES[metadata.profile].fields:
            others[name][:, ids] = pixel_values(columns, name, metadata.profile).T
    return Scan(
        range_mm, **others, column_ns=column_ns, column_valid=column_valid, column_status=column_status
    )


@lru_cache(maxsize=4)
def beam_rays(metadata: OusterMetadata) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return unit directions and offsets, each (H, W, 3): point = offset + range * direction.

    Both are in the sensor frame: x forward (away from the connector), y left, z up; metres. A range counts
    from ``offset`` on, which lies one beam-origin distance behind the point where the beam leaves the rotor.
    Source: Software User Manual, "Lidar Range to XYZ".
    """
    encoder = 2.0 * np.pi * (1.0 - np.arange(metadata.columns) / metadata.columns)
    azimuth = encoder[None, :] - metadata.beam_azimuth_rad[:, None]
    altitude = metadata.beam_altitude_rad[:, None]
    direction = np.empty((metadata.rings, metadata.columns, 3))
    direction[..., 0] = np.cos(azimuth) * np.cos(altitude)
    direction[..., 1] = np.sin(azimuth) * np.cos(altitude)
    direction[..., 2] = np.sin(altitude)
    rotor = np.stack([np.cos(encoder), np.sin(encoder), np.zeros_like(encoder)], axis=-1)
    offset = metadata.beam_origin_m * (rotor[None, :, :] - direction)
    rotation, translation = metadata.T_sensor_lidar[:3, :3], metadata.T_sensor_lidar[:3, 3]
    directions = (direction @ rotation.T).astype(np.float32)
    offsets = (offset @ rotation.T + translation).astype(np.float32)
    directions.setflags(write=False)
    offsets.setflags(write=False)
    return directions, offsets


def scan_points(scan: Scan, metadata: OusterMetadata, max_points: int | None = None) -> NDArray[np.float32]:
    """Return the returns as (N, 4) float32 x, y, z (m, sensor frame, x forward) and intensity (reflectivity).

    Rows follow the image, ring by ring. With ``max_points`` an evenly strided subset of that size at most.
    """
    pixels = np.flatnonzero(scan.range_mm)
    if max_points is not None and len(pixels) > max_points:
        pixels = pixels[np.linspace(0, len(pixels) - 1, max_points).astype(np.int64)]
    directions, offsets = beam_rays(metadata)
    ranges_m = (scan.range_mm.reshape(-1)[pixels] * 1e-3).astype(np.float32)
    points = np.empty((len(pixels), 4), np.float32)
    points[:, :3] = offsets.reshape(-1, 3)[pixels]
    points[:, :3] += directions.reshape(-1, 3)[pixels] * ranges_m[:, None]
    points[:, 3] = scan.reflectivity.reshape(-1)[pixels]
    return points
