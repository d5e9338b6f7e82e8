"""What the IMU's packets of an Ouster hold, by ``udp_profile_imu``, as columns of samples.

Sources: Ouster Software User Manual (``LEGACY``), and for ``ACCEL32_GYRO32_NMEA`` (firmware 3.2) the layout that
ouster-sdk's ``parsing.cpp`` states: the packet's header, 100 bytes of NMEA text with its stamp, samples of 36 bytes,
footer; values in m/s^2 and rad/s where ``LEGACY`` has g and deg/s.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sensorium.drivers.frame import Column
from sensorium.drivers.payloads.ouster_metadata import HEADER_BYTES, OusterMetadata

STANDARD_GRAVITY = 9.80665
LEGACY_RATE_HZ = 100.0
LEGACY_BLOCK_SAMPLES = 5
IMU_PACKET_TYPE = 2
NMEA_BYTES = 100

IMU_COLUMNS = (
    *(Column(f"acc_{axis}", "m/s^2", "<f4", STANDARD_GRAVITY) for axis in "xyz"),
    *(Column(f"gyro_{axis}", "rad/s", "<f4", math.pi / 180.0) for axis in "xyz"),
    Column("sys_ns", "ns", "<i8"),
    Column("gyro_ns", "ns", "<i8"),
)
"""Of ``LEGACY``, as sent: g and deg/s with their scales, and the two stamps that are not the frame's own."""

BLOCK_COLUMNS = (
    *(Column(f"acc_{axis}", "m/s^2") for axis in "xyz"),
    *(Column(f"gyro_{axis}", "rad/s") for axis in "xyz"),
)
"""Of ``ACCEL32_GYRO32_NMEA``."""

_RECORD = np.dtype([("sys_ns", "<i8"), ("accel_ns", "<i8"), ("gyro_ns", "<i8"), ("values", "<f4", (6,))])
_SAMPLE = np.dtype([("ns", "<u8"), ("place", "<u2"), ("status", "<u2"), ("values", "<f4", (6,))])


@dataclass(frozen=True, slots=True)
class ImuBlock:
    """The valid samples of one packet: (k,) stamps in device nanoseconds, and the payload of the frame."""

    device_ns: NDArray[np.int64]
    payload: bytes


def is_block_profile(metadata: OusterMetadata) -> bool:
    """Return whether each IMU packet holds several samples."""
    return metadata.imu_samples > 0


def columns_of(metadata: OusterMetadata) -> tuple[Column, ...]:
    return BLOCK_COLUMNS if is_block_profile(metadata) else IMU_COLUMNS


def rates_hz(metadata: OusterMetadata) -> tuple[float, float]:
    """Return samples and frames per second; (0.0, 0.0) where the metadata does not say."""
    if not is_block_profile(metadata):
        return LEGACY_RATE_HZ, LEGACY_RATE_HZ / LEGACY_BLOCK_SAMPLES
    packets_hz = metadata.imu_packets_per_frame * metadata.rate_hz
    return packets_hz * metadata.imu_samples, packets_hz


def legacy_payload(packets: bytes) -> bytes:
    """Return the columns of ``LEGACY`` packets that lie back to back."""
    records = np.frombuffer(packets, _RECORD)
    values = np.ascontiguousarray(records["values"].T)
    return values.tobytes() + records["sys_ns"].tobytes() + records["gyro_ns"].tobytes()


def read_block(packet: bytes, metadata: OusterMetadata) -> ImuBlock | None:
    """Return the samples of a packet of several; None if it cannot be this sensor's."""
    if len(packet) != metadata.imu_packet_bytes or int.from_bytes(packet[:2], "little") != IMU_PACKET_TYPE:
        return None
    samples = np.frombuffer(packet, _SAMPLE, metadata.imu_samples, HEADER_BYTES + NMEA_BYTES)
    valid = samples[(samples["status"] & 1) == 1]
    if (valid["ns"] >= 1 << 63).any():
        return None
    return ImuBlock(valid["ns"].astype(np.int64), np.ascontiguousarray(valid["values"].T).tobytes())
