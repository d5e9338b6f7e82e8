"""Packet captures: classic and pcapng, fragments, cut files; and Ouster captures through the real decoder."""

import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

from sensorium.drivers.frame import Frame
from sensorium.drivers.payloads.ouster import decode_scan
from sensorium.drivers.payloads.ouster_metadata import OusterMetadata
from sensorium.errors import SourceError
from sensorium.sync.sources import open_source
from sensorium.sync.sources.ip_packets import CaptureCounts
from sensorium.sync.sources.pcap import read_datagrams

OS0 = "OS-0-128-U1_v2.3.0_1024x10"
OS1 = "OS-1-32-G_v2.1.1_1024x10"


def _ipv4(payload: bytes, *, fragment: int = 0, identification: int = 7) -> bytes:
    header = struct.pack(
        ">BBHHHBBH4s4s",
        0x45,
        0,
        20 + len(payload),
        identification,
        fragment,
        64,
        17,
        0,
        b"\x7f\0\0\1",
        b"\x7f\0\0\1",
    )
    return header + payload


def _udp(payload: bytes, port: int = 7502) -> bytes:
    return struct.pack(">HHHH", 4000, port, 8 + len(payload), 0) + payload


def _ethernet(packet: bytes) -> bytes:
    return bytes(12) + b"\x08\0" + packet


def _pcap(packets: list[bytes], *, order: str = "<", magic: int = 0xA1B2C3D4, link: int = 1) -> bytes:
    body = struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, 65535, link)
    for index, packet in enumerate(packets):
        body += struct.pack(order + "IIII", 100, index, len(packet), len(packet)) + packet
    return body


def _pcapng(packets: list[bytes], *, order: str = "<", resolution: int = 9) -> bytes:
    def block(kind: int, body: bytes) -> bytes:
        body += bytes(-len(body) % 4)
        length = 12 + len(body)
        return struct.pack(order + "II", kind, length) + body + struct.pack(order + "I", length)

    option = struct.pack(order + "HHBxxxHH", 9, 1, resolution, 0, 0)
    blocks = block(0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1))
    blocks += block(1, struct.pack(order + "HHI", 1, 0, 0) + option)
    for index, packet in enumerate(packets):
        ticks = 5 * 10**resolution + index
        fixed = struct.pack(order + "IIIII", 0, ticks >> 32, ticks & 0xFFFFFFFF, len(packet), len(packet))
        blocks += block(6, fixed + packet)
    return blocks


def _read(path: Path, content: bytes) -> tuple[list[tuple[int, int, bytes]], CaptureCounts]:
    path.write_bytes(content)
    counts = CaptureCounts()
    found = [
        (datagram.arrival_ns, datagram.port, datagram.payload) for datagram in read_datagrams(path, counts)
    ]
    return found, counts


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("magic", "tick_ns"), [(0xA1B2C3D4, 1000), (0xA1B23C4D, 1)])
def test_both_byte_orders_and_both_resolutions_are_read(
    tmp_path: Path, order: str, magic: int, tick_ns: int
) -> None:
    packets = [_ethernet(_ipv4(_udp(b"one"))), _ethernet(_ipv4(_udp(b"two", port=9)))]
    found, counts = _read(tmp_path / "x.pcap", _pcap(packets, order=order, magic=magic))
    assert found == [(100 * 10**9, 7502, b"one"), (100 * 10**9 + tick_ns, 9, b"two")]
    assert not counts.is_truncated


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("resolution", "tick_ns"), [(9, 1), (6, 1000)])
def test_pcapng_stamps_follow_the_resolution_of_the_interface(
    tmp_path: Path, order: str, resolution: int, tick_ns: int
) -> None:
    packets = [_ethernet(_ipv4(_udp(b"one"))), _ethernet(_ipv4(_udp(b"two")))]
    found, _ = _read(tmp_path / "x.pcapng", _pcapng(packets, order=order, resolution=resolution))
    assert found == [(5 * 10**9, 7502, b"one"), (5 * 10**9 + tick_ns, 7502, b"two")]


@pytest.mark.parametrize("reverse", [False, True])
def test_fragments_become_one_datagram_in_whatever_order_they_come(tmp_path: Path, reverse: bool) -> None:
    payload = bytes(range(256)) * 100
    segment = _udp(payload)
    offsets = range(0, len(segment), 1480)
    packets = [
        _ethernet(
            _ipv4(segment[at : at + 1480], fragment=at // 8 | (0x2000 if at + 1480 < len(segment) else 0))
        )
        for at in offsets
    ]
    found, counts = _read(tmp_path / "x.pcap", _pcap(packets[::-1] if reverse else packets))
    assert [payload for _, _, payload in found] == [payload]
    assert counts.incomplete == 0


def test_a_datagram_with_a_missing_fragment_is_counted(tmp_path: Path) -> None:
    packets = [
        _ethernet(_ipv4(_udp(bytes(2000))[:1480], fragment=0x2000)),
        _ethernet(_ipv4(_udp(b"whole"), identification=8)),
    ]
    found, counts = _read(tmp_path / "x.pcap", _pcap(packets))
    assert [payload for _, _, payload in found] == [b"whole"]
    assert counts.incomplete == 1


def test_vlan_tags_and_other_links_are_stepped_over(tmp_path: Path) -> None:
    tagged = bytes(12) + b"\x81\x00\x00\x05\x08\x00" + _ipv4(_udp(b"tagged"))
    arp = bytes(12) + b"\x08\x06" + bytes(28)
    assert _read(tmp_path / "a.pcap", _pcap([arp, tagged]))[0][0][2] == b"tagged"
    assert _read(tmp_path / "b.pcap", _pcap([_ipv4(_udp(b"raw"))], link=101))[0][0][2] == b"raw"
    cooked = bytes(16) + _ipv4(_udp(b"cooked"))
    assert _read(tmp_path / "c.pcap", _pcap([cooked], link=113))[0][0][2] == b"cooked"


def test_a_link_type_without_ip_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="link type 189"):
        _read(tmp_path / "usb.pcap", _pcap([b"usb"], link=189))


@pytest.mark.parametrize(
    ("name", "ranges", "total_mm"), [(OS0, 97299, 826026376), (OS1, 27310, 484039339)], ids=["os0", "os1"]
)
def test_an_ouster_capture_holds_the_makers_scan(
    shared_data: Path, name: str, ranges: int, total_mm: int
) -> None:
    source = open_source(shared_data / "ouster" / f"{name}.pcap")
    lidar = [frame for frame in source.frames() if isinstance(frame, Frame) and frame.stream == "lidar"]
    assert [(frame.seq, frame.count) for frame in lidar] == [(0, 64)]
    metadata = OusterMetadata.from_json((shared_data / "ouster" / f"{name}.json").read_text())
    scan = decode_scan(lidar[0].payload, metadata)
    assert int(np.count_nonzero(scan.range_mm)) == ranges
    assert int(scan.range_mm.sum(dtype=np.uint64)) == total_mm
    assert source.problems == ()


def test_the_ouster_imu_and_the_stamps_of_the_capture_are_kept(shared_data: Path) -> None:
    source = open_source(shared_data / "ouster" / f"{OS0}.pcap")
    frames = [frame for frame in source.frames() if isinstance(frame, Frame)]
    assert sum(frame.count for frame in frames if frame.stream == "lidar_imu") == 10
    lidar = next(frame for frame in frames if frame.stream == "lidar")
    assert lidar.device_ticks is not None
    assert lidar.device_ticks[0] == 1462559461690
    assert lidar.arrival_ns[0] == 0x625F3CF5 * 10**9 + 0x000C2974 * 1000


def test_a_cut_capture_gives_its_packets_so_far_and_says_so(shared_data: Path, tmp_path: Path) -> None:
    whole = (shared_data / "ouster" / f"{OS0}.pcap").read_bytes()
    capture = tmp_path / "cut.pcap"
    capture.write_bytes(whole[: len(whole) // 2])
    shutil.copy(shared_data / "ouster" / f"{OS0}.json", tmp_path / "cut.json")
    source = open_source(capture)
    assert [problem.kind for problem in source.problems] == ["truncated"]
    packets = sum(
        frame.count for frame in source.frames() if isinstance(frame, Frame) and frame.stream == "lidar"
    )
    assert 25 <= packets < 64


def test_foreign_captures_and_wrong_metadata_are_refused_with_what_was_found(
    shared_data: Path, tmp_path: Path
) -> None:
    with pytest.raises(SourceError, match=r"603 UDP packets of 1206 bytes to port 2368.*vlp16\.json"):
        open_source(shared_data / "velodyne_vlp16" / "vlp16.pcap")
    shutil.copy(shared_data / "velodyne_vlp16" / "vlp16.pcap", tmp_path / "vlp16.pcap")
    (tmp_path / "vlp16.json").write_text(json.dumps({"hello": 1}))
    with pytest.raises(SourceError, match="not the metadata of an Ouster sensor"):
        open_source(tmp_path / "vlp16.pcap")
    shutil.copy(shared_data / "ouster" / f"{OS0}.json", tmp_path / "os1.json")
    shutil.copy(shared_data / "ouster" / f"{OS1}.pcap", tmp_path / "os1.pcap")
    with pytest.raises(SourceError, match=r"no lidar packet of 8448 bytes.*6464 bytes to port 7502"):
        open_source(tmp_path / "os1.pcap")
