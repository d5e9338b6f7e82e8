"""What is encoded decodes to the same images, in every profile."""

import numpy as np
import pytest

from sensorium.drivers.devices.ouster.packets import IMU_PACKET, Crc, check_crc, read_header
from sensorium.drivers.payloads.ouster import decode_scan, scan_points
from sensorium.drivers.payloads.ouster_metadata import PROFILES, OusterMetadata
from sensorium.simulators.emulators.ouster_encoder import default_metadata, encode_imu, encode_scan


@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_a_scan_survives_encoding_and_decoding(profile: str) -> None:
    rng = np.random.default_rng(5)
    metadata = default_metadata(32, 512, 20, profile=profile, init_id=0xABCDEF)
    shape = (metadata.rings, metadata.columns)
    range_mm = rng.integers(0, 30_000, shape) * 8
    range_mm[rng.random(shape) < 0.3] = 0
    reflectivity = rng.integers(0, 256, shape)
    signal = rng.integers(0, 65536, shape)
    near_ir = rng.integers(0, 256, shape) * 16
    column_ns = 10**12 + np.arange(metadata.columns) * 97_656
    valid = rng.random(metadata.columns) < 0.95
    packets = encode_scan(
        metadata, 65537, range_mm, reflectivity, column_ns, signal=signal, near_ir=near_ir, column_valid=valid
    )
    assert [len(packet) for packet in packets] == [metadata.packet_bytes] * metadata.packets_per_frame
    scan = decode_scan(b"".join(packets), metadata)
    np.testing.assert_array_equal(scan.column_valid, valid)
    np.testing.assert_array_equal(scan.column_ns, np.where(valid, column_ns, 0))
    np.testing.assert_array_equal(scan.range_mm, np.where(valid, range_mm, 0))
    np.testing.assert_array_equal(scan.reflectivity, np.where(valid, reflectivity, 0))
    np.testing.assert_array_equal(scan.near_ir, np.where(valid, near_ir, 0))
    if "signal" in PROFILES[profile].fields:
        np.testing.assert_array_equal(scan.signal, np.where(valid, signal, 0))
    assert [read_header(packet, metadata).first_column for packet in packets] == list(range(0, 512, 16))
    assert {read_header(packet, metadata).frame_id for packet in packets} == {1}


def test_packets_carry_a_crc_identity_and_nothing_else_in_the_header() -> None:
    metadata = default_metadata(16, 512, 10, serial="992600000077", init_id=9)
    (first, *_) = encode_scan(metadata, 3, 1000, 7, np.arange(512))
    header = read_header(first, metadata)
    assert (header.init_id, header.serial) == (9, 992600000077)
    assert check_crc(first, metadata) is Crc.GOOD
    (first, *_) = encode_scan(metadata, 3, 1000, 7, np.arange(512), with_crc=False)
    assert check_crc(first, metadata) is Crc.ABSENT


def test_default_metadata_reads_back_from_its_own_json() -> None:
    metadata = default_metadata(64, 1024, 10, timestamp_mode="TIME_FROM_PTP_1588")
    again = OusterMetadata.from_json(metadata.text)
    assert (again.rings, again.columns, again.rate_hz) == (64, 1024, 10.0)
    assert again.timestamp_mode == "TIME_FROM_PTP_1588"
    np.testing.assert_array_equal(again.beam_altitude_rad, metadata.beam_altitude_rad)


def test_a_wall_at_constant_range_becomes_a_ball_of_that_radius() -> None:
    metadata = default_metadata(16, 512, 10)
    packets = encode_scan(metadata, 0, 5000, 20, np.zeros(512))
    points = scan_points(decode_scan(b"".join(packets), metadata), metadata)
    distance_m = np.linalg.norm(points[:, :3] - [0, 0, 0.03618], axis=1)
    assert len(points) == 16 * 512
    assert np.abs(distance_m - 5.0).max() <= 2 * metadata.beam_origin_m


def test_a_value_that_does_not_fit_its_field_is_refused() -> None:
    metadata = default_metadata(16, 512, 10)
    with pytest.raises(ValueError, match=r"range_mm .* does not fit"):
        encode_scan(metadata, 0, 1 << 19, 0, np.zeros(512))


def test_an_imu_packet_holds_three_stamps_and_six_values() -> None:
    packet = encode_imu(10, (0.0, 0.0, 1.0), (1.0, 2.0, 3.0), accel_ns=11, gyro_ns=12)
    assert IMU_PACKET.unpack(packet) == (10, 11, 12, 0.0, 0.0, 1.0, 1.0, 2.0, 3.0)
