"""What an Ouster says about itself, and how its packets are laid out by profile.

Sources: Ouster Software User Manual ("Lidar Data Packet Format", "Coordinate Frames and XYZ Calculation") and
the field tables of ouster-sdk (BSD-3). The tests compare every decoded field with digests made by that SDK.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sensorium.errors import ConfigError

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
        T_sensor_lidar: (4, 4) float64, metres.
        serial: Product serial number, "" when unknown.
        imu_samples, imu_packets_per_frame: Of ``ACCEL32_GYRO32_NMEA``; 0 where each packet is one sample.
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
    serial: str
    init_id: int
    product: str
    firmware: str
    lidar_mode: str
    timestamp_mode: str
    text: str
    imu_samples: int = 0
    imu_packets_per_frame: int = 0

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
        except KeyError as err:
            raise ConfigError(f"Ouster metadata lacks the key {err}: save it anew from the sensor") from err
        except (TypeError, ValueError) as err:
            raise ConfigError(f"Ouster metadata is malformed: {err}") from err

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
    def imu_packet_bytes(self) -> int:
        """Size of one IMU packet; 0 for a profile that cannot be read here."""
        if self.imu_samples:
            return HEADER_BYTES + 100 + 36 * self.imu_samples + FOOTER_BYTES
        return 48 if self.imu_profile == "LEGACY" else 0

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
        serial=str(flat.get("prod_sn", "")),
        init_id=int(flat.get("initialization_id", 0)),
        product=product,
        firmware=str(flat.get("image_rev") or flat.get("build_rev", "")),
        lidar_mode=lidar_mode,
        timestamp_mode=str(flat.get("timestamp_mode", "")),
        text=text,
        **_imu_layout(layout, flat),
    )


def _imu_layout(layout: dict[str, Any], flat: dict[str, Any]) -> dict[str, int]:
    """Return how many samples an IMU packet has, and packets a revolution, of the profile that has several."""
    profile = str(layout.get("udp_profile_imu") or flat.get("udp_profile_imu", "LEGACY"))
    if profile != "ACCEL32_GYRO32_NMEA":
        return {}
    samples = int(layout.get("imu_measurements_per_packet", 0))
    packets = int(layout.get("imu_packets_per_frame", 0))
    if not (0 <= samples <= 256 and 0 <= packets <= 8192):
        raise ValueError(f"{samples} IMU samples in each of {packets} packets")
    return {"imu_samples": samples, "imu_packets_per_frame": packets}


_SECTIONS = ("sensor_info", "beam_intrinsics", "imu_intrinsics", "lidar_intrinsics", "config_params")
_LIDAR_TO_SENSOR_MM = [-1, 0, 0, 0, 0, -1, 0, 0, 0, 0, 1, 36.18, 0, 0, 0, 1]


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
