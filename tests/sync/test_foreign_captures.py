"""Captures as they come from the field: other traffic, two sensors, tags, IPv6, wrong units, numbered metadata."""

import json
import shutil
import socket
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from foreign_cases import generate

from sensorium.drivers.devices.ouster.packets import IMU_PACKET
from sensorium.drivers.frame import Frame
from sensorium.drivers.payloads.ouster import decode_scan
from sensorium.drivers.payloads.ouster_metadata import OusterMetadata
from sensorium.errors import SourceError
from sensorium.sync.decoding import samples
from sensorium.sync.sources import Source, open_source
from sensorium.sync.sources.ip_packets import CaptureCounts
from sensorium.sync.sources.pcap import read_datagrams
from sensorium.timebase import SECOND_NS

RINGS, COLUMNS, PER_PACKET = 16, 512, 16
START_NS = 1_700_000_000 * SECOND_NS
PROFILE = "RNG15_RFL8_NIR8"


def metadata(*, serial: str = "1", profile: str = "LEGACY", imu: str = "LEGACY") -> str:
    document = {
        "prod_line": "OS-1-16",
        "prod_sn": serial,
        "build_rev": "v2.0.0",
        "lidar_mode": "512x10",
        "beam_altitude_angles": [15.0 - 2.0 * ring for ring in range(RINGS)],
        "beam_azimuth_angles": [0.0] * RINGS,
        "data_format": {
            "columns_per_frame": COLUMNS,
            "columns_per_packet": PER_PACKET,
            "pixels_per_column": RINGS,
            "pixel_shift_by_row": [0] * RINGS,
            "udp_profile_lidar": profile,
            "udp_profile_imu": imu,
        },
    }
    return json.dumps(document)


def lidar_packet(frame: int, index: int, range_mm: int, *, serial: int = 0, stamp_unit_ns: int = 1) -> bytes:
    """Return one packet, LEGACY without a serial number and RNG15_RFL8_NIR8 with one."""
    body = b""
    for column in range(index * PER_PACKET, (index + 1) * PER_PACKET):
        stamp = (SECOND_NS + (frame * COLUMNS + column) * SECOND_NS // 10 // COLUMNS) // stamp_unit_ns
        if serial:
            body += struct.pack("<QHH", stamp, column, 1) + struct.pack("<HBB", range_mm // 8, 1, 1) * RINGS
        else:
            body += struct.pack("<QHHI", stamp, column, frame, column * 90112 // COLUMNS)
            body += struct.pack("<IHHHH", range_mm, 10, 20, 30, 0) * RINGS + struct.pack("<I", 0xFFFFFFFF)
    if serial:
        head = struct.pack("<HH", 1, frame) + bytes(3) + serial.to_bytes(5, "little")
        body = head.ljust(32, b"\0") + body + bytes(32)
    return body


def imu_packet(at: int) -> bytes:
    stamp_ns = SECOND_NS + at * SECOND_NS // 100
    return IMU_PACKET.pack(stamp_ns, stamp_ns, stamp_ns + 1000, 0.0, 0.0, 1.0, 0.1, 0.2, 0.3)


def ipv4(payload: bytes, source: str, ports: tuple[int, int] = (47000, 7502)) -> bytes:
    udp = struct.pack(">HHHH", *ports, 8 + len(payload), 0) + payload
    addresses = (socket.inet_aton(source), socket.inet_aton("192.0.2.1"))
    return struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0, *addresses) + udp


def ether(packet: bytes) -> bytes:
    return bytes(12) + b"\x08\0" + packet


def pcap(
    records: list[tuple[int, bytes]], *, link: int = 1, magic: int = 0xA1B2C3D4, tick_ns: int = 1000
) -> bytes:
    body = struct.pack("<IHHiIII", magic, 2, 4, 0, 0, 262144, link)
    for stamp_ns, packet in records:
        stamp = (stamp_ns // SECOND_NS, stamp_ns % SECOND_NS // tick_ns)
        body += struct.pack("<IIII", *stamp, len(packet), len(packet)) + packet
    return body


def slots(frames: int = 3) -> Iterator[tuple[int, int, int]]:
    per_frame = COLUMNS // PER_PACKET
    for frame in range(frames):
        for index in range(per_frame):
            yield frame, index, START_NS + (frame * per_frame + index) * SECOND_NS // (10 * per_frame)


def frames_of(source: Source) -> dict[str, list[Frame]]:
    found: dict[str, list[Frame]] = {}
    for item in source.frames():
        if isinstance(item, Frame):
            found.setdefault(item.stream, []).append(item)
    return found


def ranges_mm(frames: list[Frame], document: str) -> set[int]:
    described = OusterMetadata.from_json(document)
    return {
        int(value) for frame in frames for value in np.unique(decode_scan(frame.payload, described).range_mm)
    }


def test_tags_inside_a_cooked_capture_are_stepped_over(tmp_path: Path) -> None:
    right = generate("pcap_cooked_vlan", tmp_path)
    source = open_source(tmp_path / "drive.pcap")
    frames = frames_of(source)
    assert sum(frame.count for frame in frames["lidar"]) == right["lidar_packets"]
    assert len(frames["lidar"]) == right["lidar_frames"]
    assert right["streams_without"] not in frames
    assert source.problems == ()


@pytest.mark.parametrize(
    ("link", "header"),
    [
        (
            113,
            struct.pack(">HHH8sH", 0, 1, 6, bytes(8), 0x88A8) + struct.pack(">HHHH", 7, 0x8100, 24, 0x0800),
        ),
        (276, struct.pack(">HHIHBB8s", 0x8100, 0, 1, 1, 0, 6, bytes(8)) + struct.pack(">HH", 24, 0x0800)),
        (1, bytes(12) + struct.pack(">HHHHH", 0x88A8, 7, 0x8100, 24, 0x0800)),
        (276, struct.pack(">HHIHBB8s", 0x0800, 0, 1, 1, 0, 6, bytes(8))),
    ],
    ids=["two tags cooked", "cooked version 2", "two tags on ethernet", "no tag in version 2"],
)
def test_every_stack_of_tags_is_stepped_over(tmp_path: Path, link: int, header: bytes) -> None:
    path = tmp_path / "x.pcap"
    path.write_bytes(pcap([(START_NS, header + ipv4(b"tagged", "192.0.2.10"))], link=link))
    assert [datagram.payload for datagram in read_datagrams(path, CaptureCounts())] == [b"tagged"]


def test_a_request_for_the_time_is_no_sample_of_an_imu(tmp_path: Path) -> None:
    right = generate("pcap_ntp_beside", tmp_path)
    source = open_source(tmp_path / "drive.pcap")
    frames = frames_of(source)
    assert right["streams_without"] not in {info.name for info in source.streams}
    assert sum(frame.count for frame in frames["lidar"]) == right["lidar_packets"]
    assert [(one.kind, one.count) for one in source.problems] == [("other_traffic", right["other_datagrams"])]
    assert "from 192.0.2.1 to port 123" in source.problems[0].sentence


def test_a_sensor_that_asks_for_the_time_itself_keeps_its_imu_apart(tmp_path: Path) -> None:
    request = (
        bytes([0x23, 2, 6, 0xEC])
        + bytes(8)
        + b"\xc0\0\x02\x01"
        + struct.pack(">QQQQ", 0, 0, 0, 0xE9A1B2C3D4E5F607)
    )
    records = [
        (at, ether(ipv4(lidar_packet(frame, index, 5000), "192.0.2.10"))) for frame, index, at in slots()
    ]
    imu = [
        (START_NS + at * SECOND_NS // 100, ether(ipv4(imu_packet(at), "192.0.2.10", (47001, 7503))))
        for at in range(30)
    ]
    asked = [(START_NS + 1, ether(ipv4(request, "192.0.2.10", (123, 123))))]
    (tmp_path / "x.pcap").write_bytes(pcap(sorted(records + imu + asked)))
    (tmp_path / "x.json").write_text(metadata())
    source = open_source(tmp_path / "x.pcap")
    counts = Counter(
        {name: sum(frame.count for frame in frames) for name, frames in frames_of(source).items()}
    )
    assert (counts["lidar"], counts["lidar_imu"]) == (96, 30)
    assert [(one.kind, one.count) for one in source.problems] == [("other_traffic", 1)]


def _two_sensors(folder: Path, serials: tuple[int, int], documents: dict[str, str]) -> Source:
    records = []
    for frame, index, at in slots():
        for offset_ns, (address, range_mm, serial) in enumerate(
            (("192.0.2.10", 5000, serials[0]), ("192.0.2.11", 7000, serials[1]))
        ):
            packet = lidar_packet(frame, index, range_mm, serial=serial)
            records.append((at + offset_ns * 1000, ether(ipv4(packet, address))))
    for at in range(30):
        records.append((START_NS + at * 10_000_000, ether(ipv4(imu_packet(at), "192.0.2.11", (47001, 7503)))))
    (folder / "x.pcap").write_bytes(pcap(sorted(records)))
    for name, text in documents.items():
        (folder / name).write_text(text)
    return open_source(folder / "x.pcap")


def test_two_sensors_in_one_capture_are_two_sets_of_streams(tmp_path: Path) -> None:
    source = _two_sensors(tmp_path, (0, 0), {"x.json": metadata()})
    frames = frames_of(source)
    assert [frame.count for frame in frames["lidar"]] == [32, 32, 32]
    assert [frame.count for frame in frames["lidar_2"]] == [32, 32, 32]
    assert ranges_mm(frames["lidar"], metadata()) == {5000}
    assert ranges_mm(frames["lidar_2"], metadata()) == {7000}
    assert sum(frame.count for frame in frames["lidar_2_imu"]) == 30
    assert "lidar_imu" not in frames
    addresses = {info.name: info.details["address"] for info in source.streams if "address" in info.details}
    assert addresses == {"lidar": "192.0.2.10", "lidar_2": "192.0.2.11"}
    (problem,) = source.problems
    assert problem.kind == "guessed_metadata"
    assert "192.0.2.11" in problem.sentence
    assert "x.json" in problem.sentence


def test_each_sensor_is_read_with_the_metadata_of_its_serial_number(tmp_path: Path) -> None:
    documents = {
        f"x_{at}.json": metadata(serial=serial, profile=PROFILE) for at, serial in enumerate(("22", "11"))
    }
    source = _two_sensors(tmp_path, (11, 22), documents)
    frames = frames_of(source)
    serials = {info.name: info.details.get("serial") for info in source.streams}
    assert (serials["lidar"], serials["lidar_2"]) == ("22", "11")
    assert ranges_mm(frames["lidar"], documents["x_0.json"]) == {7000}
    assert ranges_mm(frames["lidar_2"], documents["x_1.json"]) == {5000}
    assert source.problems == ()


def test_a_second_sensor_without_metadata_of_its_own_is_named(tmp_path: Path) -> None:
    source = _two_sensors(tmp_path, (11, 22), {"x.json": metadata(serial="11", profile=PROFILE)})
    assert {info.name for info in source.streams} == {"lidar", "lidar_points"}
    assert [one.kind for one in source.problems] == ["other_traffic"]
    assert "sensor 22" in source.problems[0].sentence


def test_metadata_of_another_sensor_is_refused_with_both_serial_numbers(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"sensor 11, 22, and x\.json describes 33"):
        _two_sensors(tmp_path, (11, 22), {"x.json": metadata(serial="33", profile=PROFILE)})


def test_numbered_metadata_is_found(shared_data: Path) -> None:
    source = open_source(shared_data / "cases2" / "ouster_metadata_suffix" / "capture.pcap")
    text = (shared_data / "cases2" / "ouster_metadata_suffix" / "capture_0.json").read_text()
    scan = decode_scan(frames_of(source)["lidar"][0].payload, OusterMetadata.from_json(text))
    assert (int(np.count_nonzero(scan.range_mm)), int(scan.range_mm.sum())) == (223, 983655)


def test_fragments_of_ipv6_are_put_together(shared_data: Path) -> None:
    source = open_source(shared_data / "cases2" / "ouster_over_ipv6" / "capture.pcap")
    text = (shared_data / "cases2" / "ouster_over_ipv6" / "capture.json").read_text()
    scan = decode_scan(frames_of(source)["lidar"][0].payload, OusterMetadata.from_json(text))
    assert (int(np.count_nonzero(scan.range_mm)), int(scan.range_mm.sum())) == (223, 983655)
    assert source.problems == ()


def _ipv6(pieces: list[bytes], kind: int) -> list[bytes]:
    addresses = bytes(15) + b"\1" + bytes(15) + b"\2"
    return [
        bytes(12) + b"\x86\xdd" + struct.pack(">IHBB", 6 << 28, len(piece), kind, 64) + addresses + piece
        for piece in pieces
    ]


def test_extension_headers_before_and_inside_fragments_are_stepped_over(tmp_path: Path) -> None:
    segment = struct.pack(">HHHH", 1, 2, 8 + 3000, 0) + bytes(3000)
    options = struct.pack(">BB", 44, 0) + bytes(6)
    cuts = [(0, 1400), (1400, 2800), (2800, len(segment))]
    pieces = [
        options + struct.pack(">BxHI", 17, start | (end < len(segment)), 9) + segment[start:end]
        for start, end in cuts
    ]
    path = tmp_path / "x.pcap"
    records = [(START_NS + at, packet) for at, packet in enumerate(_ipv6(pieces[::-1], 0))]
    path.write_bytes(pcap(records + [(START_NS, packet) for packet in _ipv6(pieces[:1], 0)]))
    counts = CaptureCounts()
    assert [len(datagram.payload) for datagram in read_datagrams(path, counts)] == [3000]
    assert counts.incomplete == 1


def test_a_sensor_that_stamps_in_microseconds_is_named_with_the_factor_and_read_as_such(
    tmp_path: Path,
) -> None:
    records = [
        (at, ether(ipv4(lidar_packet(frame, index, 5000, stamp_unit_ns=1000), "192.0.2.10")))
        for frame, index, at in slots()
    ]
    (tmp_path / "x.pcap").write_bytes(pcap(records))
    (tmp_path / "x.json").write_text(metadata())
    source = open_source(tmp_path / "x.pcap")
    assert [one.kind for one in source.problems] == ["wrong_unit"]
    assert "1000 times too slow for nanoseconds: they look like microseconds" in source.problems[0].sentence
    assert {info.clock.tick_ns for info in source.streams} == {1000.0}


@pytest.mark.parametrize(
    ("magic", "tick_ns", "told"),
    [
        (0xA1B2C3D4, 1, "count microseconds, but they count nanoseconds"),
        (0xA1B23C4D, 1000, "but they count micro"),
    ],
)
def test_a_capture_whose_fractions_are_of_another_unit_is_named_with_the_factor(
    tmp_path: Path, magic: int, tick_ns: int, told: str
) -> None:
    records = [
        (at, ether(ipv4(lidar_packet(frame, index, 5000), "192.0.2.10")))
        for frame, index, at in slots(frames=25)
    ]
    (tmp_path / "x.pcap").write_bytes(pcap(records, magic=magic, tick_ns=tick_ns))
    (tmp_path / "x.json").write_text(metadata())
    source = open_source(tmp_path / "x.pcap")
    assert [one.kind for one in source.problems] == ["wrong_unit"]
    assert told in source.problems[0].sentence
    assert "factor 1000" in source.problems[0].sentence
    arrivals = [int(ns) for frame in frames_of(source)["lidar"] for ns in frame.arrival_ns]
    assert arrivals == [at // 1000 * 1000 if tick_ns == 1000 else at for _, _, at in slots(frames=25)]


def imu_block(at: int, count: int = 8, valid: int = 0xFF) -> bytes:
    """Return a packet of firmware 3.2: samples each 1.25 ms, in m/s^2 and rad/s."""
    body = struct.pack("<HH", 2, 0).ljust(32, b"\0") + bytes(100)
    for number in range(count):
        stamp_ns = SECOND_NS + (at * count + number) * 1_250_000
        body += struct.pack(
            "<QHH6f", stamp_ns, number, valid >> number & 1, 0.0, 0.0, 9.80665, 0.25, -0.5, at
        )
    return body + bytes(32)


def block_metadata(count: int) -> str:
    document = json.loads(metadata(imu="ACCEL32_GYRO32_NMEA"))
    document["data_format"] |= {"imu_measurements_per_packet": count, "imu_packets_per_frame": 10}
    return json.dumps(document)


def test_the_newer_imu_profile_is_read_sample_by_sample(tmp_path: Path) -> None:
    records = [
        (at, ether(ipv4(lidar_packet(frame, index, 5000), "192.0.2.10"))) for frame, index, at in slots()
    ]
    for at in range(30):
        valid = 0x3F if at == 4 else 0xFF  # two samples were not measured
        packet = ipv4(imu_block(at, valid=valid), "192.0.2.10", (47001, 7503))
        records.append((START_NS + at * 10_000_000, ether(packet)))
    (tmp_path / "x.pcap").write_bytes(pcap(sorted(records)))
    (tmp_path / "x.json").write_text(block_metadata(8))
    source = open_source(tmp_path / "x.pcap")
    info = next(info for info in source.streams if info.name == "lidar_imu")
    assert (info.rate_hz, info.message_rate_hz) == (800.0, 100.0)
    frames = frames_of(source)["lidar_imu"]
    assert [frame.count for frame in frames] == [8, 8, 8, 8, 6, *[8] * 25]
    assert [frame.seq for frame in frames[:6]] == [0, 8, 16, 24, 32, 38]
    assert frames[1].device_ticks is not None
    assert frames[1].device_ticks.tolist() == [SECOND_NS + n * 1_250_000 for n in range(8, 16)]
    values = samples(info, frames[1].payload, 8)
    assert values is not None
    np.testing.assert_allclose(values[3], [0.0, 0.0, 9.80665, 0.25, -0.5, 1.0], rtol=1e-6)
    assert source.problems == ()


def test_imu_packets_whose_layout_the_metadata_lacks_are_named(tmp_path: Path) -> None:
    records = [
        (at, ether(ipv4(lidar_packet(frame, index, 5000), "192.0.2.10"))) for frame, index, at in slots()
    ]
    records += [(START_NS, ether(ipv4(imu_block(0), "192.0.2.10", (47001, 7503))))]
    (tmp_path / "x.pcap").write_bytes(pcap(sorted(records)))
    (tmp_path / "x.json").write_text(metadata(imu="ACCEL32_GYRO32_NMEA"))
    (problem,) = open_source(tmp_path / "x.pcap").problems
    assert problem.kind == "other_traffic"
    assert "profile ACCEL32_GYRO32_NMEA" in problem.sentence


def test_metadata_under_another_name_is_named_where_it_is_missed(shared_data: Path, tmp_path: Path) -> None:
    shutil.copy(shared_data / "cases2" / "ouster_metadata_suffix" / "capture.pcap", tmp_path / "drive.pcap")
    (tmp_path / "front_lidar.json").write_text(metadata())
    with pytest.raises(
        SourceError, match=r"drive\.json beside them; found there under other names: front_lidar\.json"
    ):
        open_source(tmp_path / "drive.pcap")


def test_packets_that_were_captured_twice_are_played_once_and_counted(tmp_path: Path) -> None:
    records = [(at, ether(ipv4(lidar_packet(frame, n, 5000), "192.0.2.10"))) for frame, n, at in slots()]
    for at in range(30):
        records.append((START_NS + at * 10_000_000, ether(ipv4(imu_packet(at), "192.0.2.10", (47001, 7503)))))
    twice = [record for record in sorted(records) for _ in range(2)]
    (tmp_path / "x.pcap").write_bytes(pcap(twice))
    (tmp_path / "x.json").write_text(metadata())
    source = open_source(tmp_path / "x.pcap")
    frames = frames_of(source)
    assert sum(frame.count for frame in frames["lidar"]) == 96
    assert sum(frame.count for frame in frames["lidar_imu"]) == 30
    assert [(one.kind, one.count) for one in source.problems] == [("repeated_packet", 126)]


def test_packets_that_stand_in_a_wrong_order_are_named(tmp_path: Path) -> None:
    records = [(at, ether(ipv4(lidar_packet(frame, n, 5000), "192.0.2.10"))) for frame, n, at in slots()]
    (tmp_path / "x.pcap").write_bytes(pcap(records[64:] + records[:64]))
    (tmp_path / "x.json").write_text(metadata())
    (problem,) = open_source(tmp_path / "x.pcap").problems
    assert (problem.kind, problem.count) == ("bad_stamp", 63)
    assert "reordercap" in problem.sentence


def test_a_capture_of_cut_packets_alone_is_refused_with_the_cause(tmp_path: Path) -> None:
    packet = ether(ipv4(lidar_packet(0, 0, 5000), "192.0.2.10"))
    body = pcap([]) + struct.pack("<IIII", START_NS // SECOND_NS, 0, 200, len(packet)) + packet[:200]
    (tmp_path / "x.pcap").write_bytes(body)
    (tmp_path / "x.json").write_text(metadata())
    with pytest.raises(SourceError, match=r"1 packets were cut .*tcpdump -s 0"):
        open_source(tmp_path / "x.pcap")
