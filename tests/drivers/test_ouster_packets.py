"""The packet decoder against the maker's own digests, the CRC catalogue and geometry by hand."""

import hashlib
import json
import lzma
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dpkt
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sensorium.drivers.devices.ouster.packets import Crc, check_crc, crc64, read_header
from sensorium.drivers.payloads.ouster import (
    Scan,
    beam_rays,
    decode_scan,
    packet_columns,
    pixel_values,
    scan_points,
)
from sensorium.drivers.payloads.ouster_metadata import OusterMetadata
from sensorium.errors import ConfigError, WireError

UDP_PAYLOAD_OFFSET = 14 + 20 + 8


@dataclass(frozen=True)
class Capture:
    """One capture of ouster-sdk's tests: metadata, lidar payloads, the maker's digests, numbers to reach."""

    metadata: OusterMetadata
    packets: list[bytes]
    digest: dict[str, Any]
    returns: int
    range_sum_mm: int
    frame_id: int
    first_ns: int


CAPTURES = [
    ("OS-0-128-U1_v2.3.0_1024x10", 97299, 826026376, 1491, 1462559461690),
    ("OS-1-32-G_v2.1.1_1024x10", 27310, 484039339, 638, 3577133606620),
]


@pytest.fixture(params=CAPTURES, ids=[row[0] for row in CAPTURES])
def capture(request: pytest.FixtureRequest, shared_data: Path) -> Capture:
    name, returns, range_sum_mm, frame_id, first_ns = request.param
    folder = shared_data / "ouster"
    metadata = OusterMetadata.from_json((folder / f"{name}.json").read_text())
    with (folder / f"{name}.pcap").open("rb") as file:
        payloads = [frame[UDP_PAYLOAD_OFFSET:] for _, frame in dpkt.pcap.UniversalReader(file)]
    packets = [payload for payload in payloads if len(payload) == metadata.packet_bytes]
    digest = json.loads((folder / f"{name}_digest.json").read_text())
    return Capture(metadata, packets, digest, returns, range_sum_mm, frame_id, first_ns)


def md5(values: NDArray[Any], dtype: str) -> str:
    return hashlib.md5(np.ascontiguousarray(values).astype(dtype).tobytes()).hexdigest()


def test_every_field_of_a_scan_equals_the_makers_digest(capture: Capture) -> None:
    scan = decode_scan(b"".join(capture.packets), capture.metadata)
    expected = capture.digest["scans"][0]
    found = {
        "FRAME_ID": str(read_header(capture.packets[0], capture.metadata).frame_id),
        "TIMESTAMP": md5(scan.column_ns, "<u8"),
        "STATUS": md5(scan.column_status, "<u8"),
        "MEASUREMENT_ID": md5(np.flatnonzero(scan.column_valid), "<u2"),
        "RANGE": md5(scan.range_mm, "<u4"),
        "REFLECTIVITY": md5(scan.reflectivity, "<u1"),
        "NEAR_IR": md5(scan.near_ir, "<u2"),
        "SIGNAL": md5(scan.signal, "<u2"),
        "ENCODER_COUNT": expected["ENCODER_COUNT"],  # not part of a Scan; checked packet by packet below
    }
    assert {name: found[name] for name in expected} == expected


def test_packet_values_equal_the_makers_digest_packet_by_packet(capture: Capture) -> None:
    columns = packet_columns(b"".join(capture.packets), capture.metadata)
    expected = capture.digest["packet_hash"]
    per_packet = {
        "TIMESTAMP": columns["timestamp_ns"],
        "MEASUREMENT_ID": columns["measurement_id"],
        "RANGE": np.swapaxes(pixel_values(columns, "range_mm", capture.metadata.profile), 1, 2),
    }
    if "encoder" in (columns.dtype.names or ()):
        per_packet["ENCODER_COUNT"] = columns["encoder"]
    dtypes = {"TIMESTAMP": "<u8", "MEASUREMENT_ID": "<u2", "RANGE": "<u4", "ENCODER_COUNT": "<u4"}
    assert {name: md5(values, dtypes[name]) for name, values in per_packet.items()} == {
        name: expected[name] for name in per_packet
    }


def test_a_scan_has_the_documented_returns_range_sum_and_first_stamp(capture: Capture) -> None:
    scan = decode_scan(b"".join(capture.packets), capture.metadata)
    assert np.count_nonzero(scan.range_mm) == capture.returns
    assert int(scan.range_mm.sum()) == capture.range_sum_mm
    assert scan.column_valid.sum() == capture.metadata.columns == 1024
    assert scan.column_ns[0] == capture.first_ns
    header = read_header(capture.packets[0], capture.metadata)
    assert (header.frame_id, header.device_ns) == (capture.frame_id, capture.first_ns)
    assert capture.metadata.packets_per_frame == len(capture.packets) == 64


def test_packets_in_any_order_and_subset_fill_the_same_columns(capture: Capture) -> None:
    whole = decode_scan(b"".join(capture.packets), capture.metadata)
    order = np.random.default_rng(7).permutation(len(capture.packets))[:40]
    part = decode_scan(b"".join(capture.packets[i] for i in order), capture.metadata)
    per_packet = capture.metadata.columns_per_packet
    arrived = np.isin(np.arange(capture.metadata.columns) // per_packet, order)
    np.testing.assert_array_equal(part.column_valid, arrived)
    np.testing.assert_array_equal(part.range_mm, np.where(arrived[None, :], whole.range_mm, 0))


def test_points_keep_their_range_from_the_beam_origin(capture: Capture) -> None:
    scan = decode_scan(b"".join(capture.packets), capture.metadata)
    points = scan_points(scan, capture.metadata)
    rows, columns = np.nonzero(scan.range_mm)
    _, offsets = beam_rays(capture.metadata)
    distance_m = np.linalg.norm(points[:, :3] - offsets[rows, columns], axis=1)
    np.testing.assert_allclose(distance_m, scan.range_mm[rows, columns] * 1e-3, rtol=1e-6, atol=1e-5)
    np.testing.assert_array_equal(points[:, 3], scan.reflectivity[rows, columns])


def test_thinned_points_are_a_subset_of_the_points(capture: Capture) -> None:
    scan = decode_scan(b"".join(capture.packets), capture.metadata)
    every = {row.tobytes() for row in scan_points(scan, capture.metadata)}
    thinned = scan_points(scan, capture.metadata, max_points=1000)
    assert len(thinned) == 1000
    assert {row.tobytes() for row in thinned} <= every


def test_column_zero_looks_backward_and_half_a_turn_later_forward() -> None:
    metadata = OusterMetadata.from_json(flat_metadata())
    directions, offsets = beam_rays(metadata)
    ahead = directions[1, metadata.columns // 2]
    np.testing.assert_allclose(ahead, [1, 0, 0], atol=1e-6)
    np.testing.assert_allclose(directions[1, 0], [-1, 0, 0], atol=1e-6)
    np.testing.assert_allclose(directions[1, metadata.columns // 4], [0, 1, 0], atol=1e-6)  # spins clockwise
    np.testing.assert_allclose(offsets[1, 0], [0, 0, 0.03618], atol=1e-6)
    np.testing.assert_allclose(directions[0, 0, 2], np.sin(np.radians(10)), atol=1e-6)


def flat_metadata(**changes: Any) -> str:
    document = {
        "prod_line": "OS-1-32",
        "prod_sn": "123",
        "lidar_mode": "512x10",
        "beam_altitude_angles": [10, 0, -10],
        "beam_azimuth_angles": [0, 0, 0],
        "lidar_origin_to_beam_origin_mm": 15.806,
        "data_format": {
            "pixels_per_column": 3,
            "columns_per_frame": 512,
            "columns_per_packet": 16,
            "column_window": [0, 511],
            "pixel_shift_by_row": [0, 0, 0],
            "udp_profile_lidar": "RNG19_RFL8_SIG16_NIR16",
        },
    }
    document.update(changes)
    return json.dumps(document)


def test_metadata_in_sections_equals_flat_metadata() -> None:
    flat = json.loads(flat_metadata(initialization_id=77))
    sections = {
        "sensor_info": {key: flat[key] for key in ("prod_line", "prod_sn", "initialization_id")},
        "beam_intrinsics": {
            key: flat[key]
            for key in ("beam_altitude_angles", "beam_azimuth_angles", "lidar_origin_to_beam_origin_mm")
        },
        "config_params": {"lidar_mode": "512x10", "timestamp_mode": "TIME_FROM_PTP_1588"},
        "lidar_data_format": flat["data_format"],
    }
    metadata = OusterMetadata.from_json(json.dumps(sections))
    assert (metadata.serial, metadata.init_id, metadata.timestamp_mode) == ("123", 77, "TIME_FROM_PTP_1588")
    assert (metadata.rings, metadata.columns, metadata.rate_hz) == (3, 512, 10.0)
    assert metadata.beam_origin_m == pytest.approx(0.015806)


def test_old_metadata_without_data_format_is_completed_from_the_mode() -> None:
    document = json.loads(flat_metadata())
    del document["data_format"], document["lidar_origin_to_beam_origin_mm"]
    metadata = OusterMetadata.from_json(json.dumps(document))
    assert (metadata.profile, metadata.columns, metadata.columns_per_packet) == ("LEGACY", 512, 16)
    assert metadata.beam_origin_m == pytest.approx(0.015806)


@pytest.mark.parametrize(
    ("window", "packets"),
    [([0, 511], 32), ([0, 15], 1), ([8, 24], 2), ([500, 20], 3), ([20, 18], 32)],
)
def test_a_column_window_counts_the_packets_it_touches(window: list[int], packets: int) -> None:
    document = json.loads(flat_metadata())
    document["data_format"]["column_window"] = window
    assert OusterMetadata.from_json(json.dumps(document)).packets_per_frame == packets


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nonsense", "not JSON"),
        ("[]", "JSON object"),
        ("{}", "lacks the key 'beam_altitude_angles'"),
        (flat_metadata(lidar_mode="fast"), "rate"),
        (flat_metadata(beam_azimuth_angles=[0, 0]), "beam angles"),
        (flat_metadata(data_format={"udp_profile_lidar": "NEWER"}), "'NEWER' cannot be decoded"),
    ],
)
def test_wrong_metadata_is_refused_with_what_is_wrong(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        OusterMetadata.from_json(text)


def test_crc_equals_the_catalogue_check_value() -> None:
    assert crc64(b"123456789") == 0x995DC9BBDF1939FA  # CRC-64/XZ in the CRC catalogue


@settings(deadline=None)
@given(st.integers(8, 30_000), st.integers(0, 2**32))
def test_crc_of_any_length_equals_the_bytewise_definition(size: int, seed: int) -> None:
    data = np.random.default_rng(seed).bytes(size)
    assert crc64(data) == xz_check(data)


def xz_check(data: bytes) -> int:
    """Return the integrity check that the xz format stores for ``data``: an independent CRC-64/XZ."""
    stream = lzma.compress(data, lzma.FORMAT_XZ, lzma.CHECK_CRC64, preset=0)
    index_bytes = (int.from_bytes(stream[-8:-4], "little") + 1) * 4
    check_end = len(stream) - 12 - index_bytes
    return int.from_bytes(stream[check_end - 8 : check_end], "little")


@settings(deadline=None)
@given(st.binary(min_size=8, max_size=1500), st.data())
def test_crc_finds_any_single_flipped_bit(data: bytes, draw: st.DataObject) -> None:
    bit = draw.draw(st.integers(0, len(data) * 8 - 1))
    damaged = bytearray(data)
    damaged[bit // 8] ^= 1 << bit % 8
    assert crc64(bytes(damaged)) != crc64(data)


def test_a_packet_with_a_valid_crc_is_good_one_flipped_is_bad_and_zero_is_absent() -> None:
    metadata = OusterMetadata.from_json(flat_metadata())
    body = bytes(np.random.default_rng(3).integers(0, 256, metadata.packet_bytes - 8, np.uint8))
    good = body + crc64(body).to_bytes(8, "little")
    assert check_crc(good, metadata) is Crc.GOOD
    assert check_crc(b"\x00" + good[1:] if good[0] else b"\x01" + good[1:], metadata) is Crc.BAD
    assert check_crc(body + bytes(8), metadata) is Crc.ABSENT


def test_a_torn_payload_is_refused() -> None:
    metadata = OusterMetadata.from_json(flat_metadata())
    with pytest.raises(WireError, match="whole number"):
        decode_scan(bytes(metadata.packet_bytes + 1), metadata)


@settings(deadline=None)
@given(st.binary(max_size=200), st.integers(0, 65535))
def test_garbage_of_the_right_size_is_a_header_or_a_wire_error(noise: bytes, seed: int) -> None:
    metadata = OusterMetadata.from_json(flat_metadata())
    packet = noise + np.random.default_rng(seed).bytes(metadata.packet_bytes - len(noise))
    try:
        header = read_header(packet, metadata)
    except WireError:
        return
    assert 0 <= header.first_column < metadata.columns
    decode_scan(packet, metadata)


def test_an_empty_payload_is_an_empty_scan() -> None:
    metadata = OusterMetadata.from_json(flat_metadata())
    scan: Scan = decode_scan(b"", metadata)
    assert not scan.column_valid.any()
    assert scan_points(scan, metadata).shape == (0, 4)
