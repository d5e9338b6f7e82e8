"""Ouster's UDP packets one by one, as they are assembled into revolutions: header, CRC, the IMU's packet.

Source: Ouster Software User Manual, "Lidar Data Packet Format". What a revolution holds is read by
:mod:`sensorium.drivers.payloads.ouster`.
"""

import struct
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sensorium.drivers.payloads.ouster_metadata import HEADER_BYTES, PROFILES, OusterMetadata
from sensorium.errors import WireError

IMU_PACKET_BYTES = 48
IMU_PACKET = struct.Struct("<QQQffffff")
"""sys_ns, accel_ns, gyro_ns, acceleration x3 (g), angular velocity x3 (deg/s)."""


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
