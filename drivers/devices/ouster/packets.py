"""Ouster's UDP packets: metadata, decoding into range images, points.

Sources: Ouster Software User Manual ("Lidar Data Packet Format", "Coordinate Frames and XYZ Calculation") and
the field tables of ouster-sdk (BSD-3). The tests compare every decoded field with digests made by that SDK.
"""

import json
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sensorium.errors import ConfigError, WireError

IMU_PACKET_BYTES = 48
IMU_PACKET = struct.Struct("<QQQffffff")
"""sys_ns, accel_ns, gyro_ns, acceleration x3 (g), angular velocity x3 (deg/s)."""

HEADER_BYTES = 32
FOOTER_BYTES = 32
_MODE = re.compile(r"(\d+)x(\d+)")
_MODE_COLUMNS_PER_PACKET = 16
_BEAM_ORIGIN_MM = {"OS-0": 27.67, "OS-1": 15.806, "OS-2": 13.762}
"""Used where old firmware does not report it (ouster-sdk, ``default_lidar_origin_to_beam_origin``)."""


@dataclass(frozen=True, slots=True)
class PixelField:
    """Where a value lies in a pixel: ``(raw & mask)``, then shifted left by ``shift``."""

    dtype: str
    offset: int
    mask: int = 0
    shift: int = 0


@dataclass(frozen=True, slots=True)
class Profile:
    """Pixel layout of one ``udp_profile_lidar``; ``has_header`` is False for LEGACY only."""

    pixel_bytes: int
    has_header: bool
    fields: Mapping[str, PixelField]


PROFILES: Mapping[str, Profile] = {
    "LEGACY": Profile(
        12,
        False,
        {
            "range_mm": PixelField("<u4", 0, 0x000FFFFF),
            "reflectivity": PixelField("<u2", 4),
            "signal": PixelField("<u2", 6),
            "near_ir": PixelField("<u2", 8),
        },
    ),
    "RNG19_RFL8_SIG16_NIR16": Profile(
        12,
        True,
        {
            "range_mm": PixelField("<u4", 0, 0x0007FFFF),
            "reflectivity": PixelField("<u1", 4),
            "signal": PixelField("<u2", 6),
            "near_ir": PixelField("<u2", 8),
        },
    ),
    "RNG15_RFL8_NIR8": Profile(
        4,
        True,
        {
            "range_mm": PixelField("<u2", 0, 0x7FFF, 3),
            "reflectivity": PixelField("<u1", 2),
            "near_ir": PixelField("<u1", 3, 0, 4),
        },
    ),
    "RNG19_RFL8_SIG16_NIR16_DUAL": Profile(
        16,
        True,
        {
            "range_mm": PixelField("<u4", 0, 0x0007FFFF),
            "reflectivity": PixelField("<u1", 3),
            "signal": PixelField("<u2", 8),
            "near_ir": PixelField("<u2", 12),
        },
    ),
}


@dataclass(frozen=True, slots=True, eq=False)
class OusterMetadata:
    """What the sensor says about itself; needed to read its packets.

    Attributes:
        profile: ``udp_profile_lidar``; one of :data:`PROFILES`.
        rings: Pixels per column (image height H).
        columns: Columns per revolution (image width W).
        column_window: First and last column sent, both included; first > last wraps over column 0.
        beam_altitude_rad, beam_azimuth_rad: (H,) angles, top ring first.
        pixel_shift: (H,) columns by which a row moves right to line up with its neighbours.
        beam_origin_m: Distance of the beams' origin from the axis of rotation.
        T_sensor_lidar, T_sensor_imu: (4, 4) float64, metres.
        serial: Product serial number, "" when unknown.
        init_id: Changes each time the sensor initialises; 0 when unknown.
        timestamp_mode: ``TIME_FROM_INTERNAL_OSC``, ``TIME_FROM_SYNC_PULSE_IN``, ``TIME_FROM_PTP_1588`` or "".
        text: The JSON that all this was read from.
    """

    profile: str
    imu_profile: str
    rings: int
    columns: int
    columns_per_packet: int
    column_window: tuple[int, int]
    rate_hz: float
    beam_altitude_rad: NDArray[np.float64]
    beam_azimuth_rad: NDArray[np.float64]
    pixel_shift: NDArray[np.int64]
    beam_origin_m: float
    T_sensor_lidar: NDArray[np.float64]
    T_sensor_imu: NDArray[np.float64]
    serial: str
    init_id: int
    product: str
    firmware: str
    lidar_mode: str
    timestamp_mode: str
    text: str

    @classmethod
    def from_json(cls, text: str) -> "OusterMetadata":
        """Read metadata as saved by Ouster's tools or answered by ``/api/v1/sensor/metadata``.

        Both the flat form (firmware 2.x and older) and the form in sections (firmware 3.x) are read; what old
        firmware leaves out is derived from ``lidar_mode`` and the product line as ouster-sdk does.

        Raises:
            ConfigError: If it is not the metadata of a sensor whose packets can be decoded here.
        """
        try:
            document = json.loads(text)
        except ValueError as err:
            raise ConfigError(f"Ouster metadata is not JSON: {err}") from err
        if not isinstance(document, dict):
            raise ConfigError(f"Ouster metadata must be a JSON object, found {type(document).__name__}")
        try:
            return _read_metadata(document, text)
        except (KeyError, TypeError, ValueError) as err:
            raise ConfigError(f"Ouster metadata is incomplete or malformed: {err!r}") from err

    @property
    def column_bytes(self) -> int:
        header_and_status = 12 if PROFILES[self.profile].has_header else 20
        return header_and_status + self.rings * PROFILES[self.profile].pixel_bytes

    @property
    def packet_bytes(self) -> int:
        """Size of one lidar packet."""
        around = HEADER_BYTES + FOOTER_BYTES if PROFILES[self.profile].has_header else 0
        return around + self.columns_per_packet * self.column_bytes

    @property
    def packets_per_frame(self) -> int:
        """Packets that one revolution consists of (those that touch the column window)."""
        return int(np.count_nonzero(self.packet_slots >= 0))

    @property
    def packet_slots(self) -> NDArray[np.int64]:
        """(W / columns per packet,) place of each packet in the revolution's sending order; -1 = not sent."""
        first, last = (column // self.columns_per_packet for column in self.column_window)
        total = self.columns // self.columns_per_packet
        index = np.arange(total)
        wraps = self.column_window[0] > self.column_window[1]
        is_sent = (index >= first) | (index <= last) if wraps else (index >= first) & (index <= last)
        return np.where(is_sent, np.cumsum(is_sent) - 1, -1)


def _read_metadata(document: dict[str, Any], text: str) -> OusterMetadata:
    flat = _flatten(document)
    lidar_mode = str(flat.get("lidar_mode", ""))
    mode = _MODE.fullmatch(lidar_mode)
    layout = flat.get("data_format") or flat.get("lidar_data_format") or {}
    rings = int(layout.get("pixels_per_column") or len(flat["beam_altitude_angles"]))
    columns = int(layout.get("columns_per_frame") or (int(mode[1]) if mode else 0))
    per_packet = int(layout.get("columns_per_packet", _MODE_COLUMNS_PER_PACKET))
    rate_hz = float(layout.get("fps") or (int(mode[2]) if mode else 0))
    profile = str(layout.get("udp_profile_lidar") or flat.get("udp_profile_lidar", "LEGACY"))
    window = layout.get("column_window", [0, columns - 1])
    if profile not in PROFILES:
        raise ConfigError(f"Ouster profile {profile!r} cannot be decoded; known: {', '.join(PROFILES)}")
    if not (
        0 < rings <= 256 and 0 < columns <= 8192 and 0 < per_packet <= columns and columns % per_packet == 0
    ):
        raise ValueError(f"{rings} rings x {columns} columns in packets of {per_packet} columns")
    if not 0 < rate_hz <= 100:
        raise ValueError(f"rate {rate_hz} Hz (from lidar_mode {lidar_mode!r})")
    first, last = int(window[0]), int(window[1])
    if not (0 <= first < columns and 0 <= last < columns):
        raise ValueError(f"column_window {window} of {columns} columns")
    product = str(flat.get("prod_line", ""))
    return OusterMetadata(
        profile=profile,
        imu_profile=str(layout.get("udp_profile_imu") or flat.get("udp_profile_imu", "LEGACY")),
        rings=rings,
        columns=columns,
        columns_per_packet=per_packet,
        column_window=(first, last),
        rate_hz=rate_hz,
        beam_altitude_rad=_angles(flat["beam_altitude_angles"], rings),
        beam_azimuth_rad=_angles(flat["beam_azimuth_angles"], rings),
        pixel_shift=np.asarray(layout.get("pixel_shift_by_row", [0] * rings), np.int64),
        beam_origin_m=_beam_origin_mm(flat, product) / 1000.0,
        T_sensor_lidar=_transform(flat.get("lidar_to_sensor_transform", _LIDAR_TO_SENSOR_MM)),
        T_sensor_imu=_transform(flat.get("imu_to_sensor_transform", _IMU_TO_SENSOR_MM)),
        serial=str(flat.get("prod_sn", "")),
        init_id=int(flat.get("initialization_id", 0)),
        product=product,
        firmware=str(flat.get("image_rev") or flat.get("build_rev", "")),
        lidar_mode=lidar_mode,
        timestamp_mode=str(flat.get("timestamp_mode", "")),
        text=text,
    )


_SECTIONS = ("sensor_info", "beam_intrinsics", "imu_intrinsics", "lidar_intrinsics", "config_params")
_LIDAR_TO_SENSOR_MM = [-1, 0, 0, 0, 0, -1, 0, 0, 0, 0, 1, 36.18, 0, 0, 0, 1]
_IMU_TO_SENSOR_MM = [1, 0, 0, 6.253, 0, 1, 0, -11.775, 0, 0, 1, 7.645, 0, 0, 0, 1]


def _flatten(document: dict[str, Any]) -> dict[str, Any]:
    flat = {key: value for key, value in document.items() if key not in _SECTIONS}
    for section in _SECTIONS:
        if isinstance(document.get(section), dict):
            flat.update(document[section])
    return flat


def _angles(values_deg: Any, rings: int) -> NDArray[np.float64]:
    angles = np.radians(np.asarray(values_deg, np.float64))
    if angles.shape != (rings,):
        raise ValueError(f"{angles.shape} beam angles for {rings} rings")
    return angles


def _beam_origin_mm(flat: dict[str, Any], product: str) -> float:
    if "lidar_origin_to_beam_origin_mm" in flat:
        return float(flat["lidar_origin_to_beam_origin_mm"])
    if "beam_to_lidar_transform" in flat:
        return float(flat["beam_to_lidar_transform"][3])
    return _BEAM_ORIGIN_MM.get(product[:4], 0.0)


def _transform(values_mm: Any) -> NDArray[np.float64]:
    transform: NDArray[np.float64] = np.array(values_mm, np.float64).reshape(4, 4)
    transform[:3, 3] /= 1000.0
    return transform


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


def destagger(image: NDArray[Any], metadata: OusterMetadata) -> NDArray[Any]:
    """Return the (H, W) image with each row moved so that one image column is one viewing direction."""
    columns = (np.arange(metadata.columns)[None, :] - metadata.pixel_shift[:, None]) % metadata.columns
    return np.take_along_axis(image, columns, axis=1)


@dataclass(frozen=True, slots=True)
class PacketHeader:
    """The part of a packet that assembly needs.

    Attributes:
        frame_id: Revolution, modulo 65536.
        first_column: Measurement id of the first column.
        device_ns: Stamp of the first valid column (of the first column if none is valid).
        init_id, serial: 0 for LEGACY packets, which carry neither.
    """

    frame_id: int
    first_column: int
    device_ns: int
    init_id: int = 0
    serial: int = 0


_EUDP_HEADER = struct.Struct("<HH8s")
_COLUMN_START = struct.Struct("<QHH")
LIDAR_PACKET_TYPE = 1


def read_header(packet: bytes | memoryview, metadata: OusterMetadata) -> PacketHeader:
    """Read what assembly needs from one packet.

    Raises:
        WireError: If size, packet type or column number cannot belong to this sensor's lidar packets.
    """
    if len(packet) != metadata.packet_bytes:
        raise WireError(f"Ouster packet has {len(packet)} B, this sensor sends {metadata.packet_bytes} B")
    has_header = PROFILES[metadata.profile].has_header
    start = HEADER_BYTES if has_header else 0
    first_ns, first_column, third = _COLUMN_START.unpack_from(packet, start)
    if first_column >= metadata.columns or first_column % metadata.columns_per_packet:
        raise WireError(f"Ouster packet starts at column {first_column} of {metadata.columns}")
    device_ns = _first_valid_ns(packet, metadata, start, first_ns)
    if not has_header:
        return PacketHeader(third, first_column, device_ns)
    packet_type, frame_id, identity = _EUDP_HEADER.unpack_from(packet, 0)
    if packet_type != LIDAR_PACKET_TYPE:
        raise WireError(f"Ouster packet is of type {packet_type}, not a lidar packet")
    init_id = int.from_bytes(identity[:3], "little")
    serial = int.from_bytes(identity[3:], "little")
    return PacketHeader(frame_id, first_column, device_ns, init_id, serial)


def _first_valid_ns(packet: bytes | memoryview, metadata: OusterMetadata, start: int, first_ns: int) -> int:
    status_offset = 10 if PROFILES[metadata.profile].has_header else metadata.column_bytes - 4
    for column in range(
        start, start + metadata.columns_per_packet * metadata.column_bytes, metadata.column_bytes
    ):
        if packet[column + status_offset] & 1:
            return _to_int64(_COLUMN_START.unpack_from(packet, column)[0])
    return _to_int64(first_ns)


def _to_int64(value: int) -> int:
    if value >= 1 << 63:
        raise WireError(f"Ouster time stamp {value} is not a time")
    return value


class Crc(str, Enum):
    """What the CRC at the end of a packet says. Old firmware sends none (``ABSENT``)."""

    ABSENT = "absent"
    GOOD = "good"
    BAD = "bad"


_CRC_POLYNOMIAL = 0xC96C5795D7870F42
_CRC_LANE = 512
_CRC_PART = 16 * _CRC_LANE
"""Looked up at once: what stays in the processor's cache."""


@lru_cache(maxsize=1)
def _crc_tables() -> tuple[NDArray[np.uint64], NDArray[np.int64], list[list[int]]]:
    """Return what :func:`crc64` looks up.

    First (lane * 256,): entry k * 256 + v = register after byte v and k zero bytes, from a zero register.
    Then (lane,) where in it the bytes of a lane begin; then, as lists, the rows of a lane's first 8 bytes.
    """
    register = np.arange(256, dtype=np.uint64)
    for _ in range(8):
        low_bit = register & np.uint64(1)
        register = (register >> np.uint64(1)) ^ low_bit * np.uint64(_CRC_POLYNOMIAL)
    tables = np.empty((_CRC_LANE, 256), np.uint64)
    tables[0] = register
    for k in range(1, _CRC_LANE):
        before = tables[k - 1]
        tables[k] = tables[0][before & np.uint64(0xFF)] ^ (before >> np.uint64(8))
    starts = np.arange(_CRC_LANE - 1, -1, -1, dtype=np.int64) * 256
    return tables.reshape(-1), starts, tables[:-9:-1].tolist()


def crc64(data: bytes | memoryview) -> int:
    """Return the CRC-64/XZ of ``data``, which must have at least 8 bytes.

    The register is linear in the message, so lanes of 512 bytes are looked up all at once and then chained.
    """
    tables, starts, carry = _crc_tables()
    message = np.zeros(-(-len(data) // _CRC_LANE) * _CRC_LANE, np.uint8)
    pad = len(message) - len(data)  # zeros in front leave a zero register unchanged
    message[pad:] = np.frombuffer(data, np.uint8)
    message[pad : pad + 8] ^= np.uint8(0xFF)  # the initial register ~0, moved into the message
    register = 0
    for start in range(0, len(message), _CRC_PART):
        part = message[start : start + _CRC_PART].reshape(-1, _CRC_LANE)
        for lane in np.bitwise_xor.reduce(tables.take(part + starts), axis=1).tolist():
            carried = 0
            for row, byte in zip(carry, register.to_bytes(8, "little"), strict=True):
                carried ^= row[byte]
            register = lane ^ carried
    return register ^ 0xFFFFFFFFFFFFFFFF


def check_crc(packet: bytes | memoryview, metadata: OusterMetadata) -> Crc:
    """Compare the packet's CRC with its bytes; ``ABSENT`` for LEGACY packets and where the field is zero.

    Firmware before 3.0 leaves undefined bytes there: trust ``BAD`` only from a sensor that has sent ``GOOD``.
    """
    if not PROFILES[metadata.profile].has_header:
        return Crc.ABSENT
    sent = int.from_bytes(packet[-8:], "little")
    if sent == 0:
        return Crc.ABSENT
    return Crc.GOOD if crc64(packet[:-8]) == sent else Crc.BAD
