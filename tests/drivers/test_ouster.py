"""Assembly of Ouster packets, and the driver on real loopback sockets."""

import http.server
import json
import socket
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import dpkt
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sensorium.drivers.devices.ouster.driver import OusterAssembler, OusterConfig, OusterDriver
from sensorium.drivers.driver import DriverContext
from sensorium.drivers.frame import ClockKind, Encoding, Frame, Loss, Place
from sensorium.drivers.payloads.ouster import decode_scan
from sensorium.drivers.payloads.ouster_metadata import OusterMetadata
from sensorium.errors import ConfigError, DeviceError
from sensorium.simulators.emulators.ouster_encoder import default_metadata, encode_imu, encode_scan
from sensorium.timebase import SECOND_NS, HostClock

LOOPBACK = "127.0.0.1"
METADATA = default_metadata(4, 512, 10)
PER_FRAME = METADATA.packets_per_frame
FRAME_NS = SECOND_NS // 10
DEVICE_START_NS = 10**12
ARRIVAL_START_NS = 10**15


def revolution(
    frame_id: int, device_ns: int | None = None, metadata: OusterMetadata = METADATA
) -> list[bytes]:
    start_ns = DEVICE_START_NS + frame_id * FRAME_NS if device_ns is None else device_ns
    column_ns = start_ns + np.arange(metadata.columns) * FRAME_NS // metadata.columns
    return encode_scan(metadata, frame_id, 1000 + frame_id % 1000, 7, column_ns)


def feed(assembler: OusterAssembler, packets: Sequence[bytes], start_ns: int) -> list[Frame | Loss]:
    step_ns = FRAME_NS // PER_FRAME
    return [
        item
        for i, packet in enumerate(packets)
        for item in assembler.feed_lidar(packet, start_ns + i * step_ns)
    ]


def feed_frames(
    assembler: OusterAssembler, frames: Sequence[int], missing: frozenset[tuple[int, int]] = frozenset()
) -> list[Frame | Loss]:
    """Feed whole revolutions less the ``missing`` (frame, packet) pairs, each at its own time."""
    items: list[Frame | Loss] = []
    for frame in frames:
        kept = [packet for i, packet in enumerate(revolution(frame)) if (frame, i) not in missing]
        items += feed(assembler, kept, ARRIVAL_START_NS + frame * FRAME_NS)
    return items


def assembler(preview_points: int = 0, metadata: OusterMetadata = METADATA) -> OusterAssembler:
    return OusterAssembler("lidar", metadata, "host", preview_points)


def frames_of(items: Sequence[Frame | Loss], stream: str = "lidar") -> list[Frame]:
    return [item for item in items if isinstance(item, Frame) and item.stream == stream]


def test_a_revolution_is_one_frame_as_soon_as_its_last_packet_is_there() -> None:
    under_test = assembler()
    packets = revolution(5)
    assert feed(under_test, packets[:-1], ARRIVAL_START_NS) == []
    (frame,) = frames_of(under_test.feed_lidar(packets[-1], ARRIVAL_START_NS + FRAME_NS))
    assert (frame.seq, frame.count, frame.payload) == (0, PER_FRAME, b"".join(packets))
    assert frame.device_ticks is not None
    first_column = np.arange(PER_FRAME) * 16
    np.testing.assert_array_equal(
        frame.device_ticks, DEVICE_START_NS + 5 * FRAME_NS + first_column * FRAME_NS // METADATA.columns
    )
    assert frame.arrival_ns[0] == ARRIVAL_START_NS
    assert frame.arrival_ns[-1] == ARRIVAL_START_NS + FRAME_NS


def test_a_capture_that_starts_in_mid_revolution_counts_from_its_first_packet() -> None:
    under_test = assembler()
    items = feed(under_test, revolution(9)[10:], ARRIVAL_START_NS)
    items += feed(under_test, revolution(10), ARRIVAL_START_NS + FRAME_NS)
    assert [(frame.seq, frame.count) for frame in frames_of(items)] == [
        (0, PER_FRAME - 10),
        (PER_FRAME - 10, PER_FRAME),
    ]


def test_the_frame_number_wraps_without_a_gap() -> None:
    items = feed_frames(assembler(), range(65534, 65539))
    assert [(frame.seq, frame.count) for frame in frames_of(items)] == [
        (i * PER_FRAME, PER_FRAME) for i in range(5)
    ]


def test_missing_packets_split_a_revolution_and_leave_a_gap_of_their_number() -> None:
    under_test = assembler()
    items = feed_frames(under_test, range(3), frozenset({(1, 4), (1, 5), (1, 20)})) + under_test.flush()
    base = PER_FRAME
    assert [(frame.seq, frame.count) for frame in frames_of(items)] == [
        (0, PER_FRAME),
        (base, 4),
        (base + 6, 14),
        (base + 21, PER_FRAME - 21),
        (2 * PER_FRAME, PER_FRAME),
    ]
    assert not [item for item in items if isinstance(item, Loss)]


def test_whole_missing_revolutions_are_a_gap() -> None:
    items = feed_frames(assembler(), [0, 1, 4])
    assert [frame.seq for frame in frames_of(items)] == [0, PER_FRAME, 4 * PER_FRAME]


@settings(max_examples=30, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 3))
def test_reordered_and_repeated_packets_give_the_same_frames(
    random: "np.random.Generator", reach: int
) -> None:
    ordered = [packet for frame in range(3) for packet in revolution(frame)]
    expected = [
        (frame.seq, frame.payload) for frame in frames_of(feed(assembler(), ordered, ARRIVAL_START_NS))
    ]
    # Each packet after the first may be overtaken by up to `reach` later ones; some come twice.
    order = sorted(range(1, len(ordered)), key=lambda i: i + random.random() * reach)
    shuffled = [ordered[0]] + [ordered[i] for i in order]
    shuffled += [shuffled[-1]]
    under_test = assembler()
    items = feed(under_test, shuffled, ARRIVAL_START_NS) + under_test.flush()
    assert [(frame.seq, frame.payload) for frame in frames_of(items)] == expected
    assert under_test.counters.duplicate + under_test.counters.late == 1


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_whatever_is_lost_repeated_or_reordered_each_packet_keeps_its_own_number(draw: st.DataObject) -> None:
    ordered = [packet for frame in range(65534, 65538) for packet in revolution(frame)]
    number = {packet: i for i, packet in enumerate(ordered)}
    random = draw.draw(st.randoms(use_true_random=False))
    sent = [ordered[0]]  # numbers count from the first packet seen
    for packet in ordered[1:]:
        sent += [packet] * random.choices([0, 1, 2], [2, 7, 1])[0]
    reach = draw.draw(st.integers(0, 12))
    order = [0, *sorted(range(1, len(sent)), key=lambda i: i + random.random() * reach)]
    under_test = assembler()
    items = feed(under_test, [sent[i] for i in order], ARRIVAL_START_NS) + under_test.flush()
    size = METADATA.packet_bytes
    seqs = []
    for frame in frames_of(items):
        for i in range(frame.count):
            assert number[bytes(frame.payload[i * size : (i + 1) * size])] == frame.seq + i
            seqs.append(frame.seq + i)
    assert seqs == sorted(set(seqs))
    counters = under_test.counters
    assert counters.restarts == 0
    assert len(seqs) + counters.duplicate + counters.late == len(sent)


def test_packets_that_come_after_a_pause_in_mid_revolution_are_not_lost() -> None:
    under_test = assembler()
    packets = revolution(0)
    items = feed(under_test, packets[:20], ARRIVAL_START_NS)
    items += under_test.expire(ARRIVAL_START_NS + 3 * FRAME_NS)
    items += feed(under_test, packets[20:], ARRIVAL_START_NS + 4 * FRAME_NS)
    items += feed(under_test, revolution(1), ARRIVAL_START_NS + 5 * FRAME_NS)
    assert [(frame.seq, frame.count) for frame in frames_of(items)] == [
        (0, 20),
        (20, PER_FRAME - 20),
        (PER_FRAME, PER_FRAME),
    ]


def test_packets_lost_in_the_kernel_are_booked_there_and_no_more_than_were_missing() -> None:
    under_test = assembler()
    items = feed_frames(under_test, [0])
    packets = revolution(1)
    items += feed(under_test, packets[:6], ARRIVAL_START_NS + FRAME_NS)
    under_test.note_lost(5, Place.KERNEL, "overflow")  # three lidar packets and two from elsewhere
    items += feed(under_test, packets[9:], ARRIVAL_START_NS + FRAME_NS + 1000)
    items += feed_frames(under_test, [2])
    losses = [item for item in items if isinstance(item, Loss)]
    assert [(loss.stream, loss.count, loss.place) for loss in losses] == [("lidar", 3, Place.KERNEL)]
    position = items.index(losses[0])
    following = items[position + 1]
    assert isinstance(following, Frame)
    assert following.seq == PER_FRAME + 9


def test_an_old_kernel_loss_does_not_explain_a_later_gap() -> None:
    under_test = assembler()
    items = feed_frames(under_test, [0])
    under_test.note_lost(2, Place.KERNEL, "overflow")
    items += feed_frames(under_test, range(1, 5)) + feed_frames(under_test, [5, 6], frozenset({(5, 3)}))
    assert not [item for item in items if isinstance(item, Loss)]


def test_a_packet_with_a_bad_checksum_is_lost_in_the_driver() -> None:
    under_test = assembler()
    items = feed_frames(under_test, [0])
    packets = revolution(1)
    packets[7] = packets[7][:100] + bytes([packets[7][100] ^ 1]) + packets[7][101:]
    items += feed(under_test, packets, ARRIVAL_START_NS + FRAME_NS) + feed_frames(under_test, [2])
    assert under_test.counters.corrupt == 1
    losses = [item for item in items if isinstance(item, Loss)]
    assert [(loss.count, loss.place) for loss in losses] == [(1, Place.DRIVER)]
    assert sum(frame.count for frame in frames_of(items)) == 3 * PER_FRAME - 1


def test_packets_of_another_sensor_are_counted_and_left_out() -> None:
    other = default_metadata(4, 512, 10, serial="992600000099")
    under_test = assembler()
    items = feed_frames(under_test, [0])
    assert feed(under_test, revolution(1, metadata=other), ARRIVAL_START_NS + FRAME_NS) == []
    assert under_test.counters.foreign == PER_FRAME
    items += feed_frames(under_test, [1])
    assert [frame.seq for frame in frames_of(items)] == [0, PER_FRAME]


@pytest.mark.parametrize("profile", ["LEGACY", "RNG19_RFL8_SIG16_NIR16"])
def test_a_restarted_sensor_goes_on_with_the_next_number(profile: str) -> None:
    metadata = default_metadata(4, 512, 10, profile=profile)
    under_test = assembler(metadata=metadata)
    items = feed(under_test, revolution(500, metadata=metadata)[:20], ARRIVAL_START_NS)
    after_ns = ARRIVAL_START_NS + 30 * SECOND_NS
    items += feed(under_test, revolution(0, metadata=metadata), after_ns)
    items += feed(under_test, revolution(1, metadata=metadata), after_ns + FRAME_NS)
    assert under_test.counters.restarts == 1
    assert [(frame.seq, frame.count) for frame in frames_of(items)] == [
        (0, 20),
        (20, PER_FRAME),
        (20 + PER_FRAME, PER_FRAME),
    ]


def test_a_sensor_that_begins_anew_with_a_recent_frame_number_is_heard_again() -> None:
    under_test = assembler()
    items = feed_frames(under_test, [0, 1, 2]) + feed_frames(under_test, [1, 2, 3]) + under_test.flush()
    assert under_test.counters.restarts == 1
    late = under_test.counters.late
    assert 0 < late < PER_FRAME
    assert sum(frame.count for frame in frames_of(items)) == 6 * PER_FRAME - late
    assert frames_of(items)[-1].next_seq == 6 * PER_FRAME - late


def test_one_packet_with_an_impossible_frame_number_restarts_nothing() -> None:
    metadata = default_metadata(4, 512, 10, profile="LEGACY")
    under_test = assembler(metadata=metadata)
    packets = revolution(500, metadata=metadata)
    stray = revolution(40_000, metadata=metadata)[3]
    items = feed(under_test, [*packets[:9], stray, *packets[9:]], ARRIVAL_START_NS)
    assert (under_test.counters.restarts, under_test.counters.malformed) == (0, 1)
    assert [(frame.seq, frame.count) for frame in frames_of(items)] == [(0, PER_FRAME)]


def test_a_long_outage_is_a_gap_and_not_a_restart() -> None:
    under_test = assembler()
    items = feed_frames(under_test, [0, 600])
    assert under_test.counters.restarts == 0
    assert [frame.seq for frame in frames_of(items)] == [0, 600 * PER_FRAME]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.binary(max_size=100), st.integers(0, 2**32)), max_size=20))
def test_garbage_never_raises_and_never_hides_good_packets(noise: list[bytes | int]) -> None:
    under_test = assembler()
    items = feed_frames(under_test, [0])
    for piece in noise:
        size = METADATA.packet_bytes
        packet = piece if isinstance(piece, bytes) else np.random.default_rng(piece).bytes(size)
        items += under_test.feed_lidar(packet, ARRIVAL_START_NS + FRAME_NS)
        items += under_test.feed_imu(packet, ARRIVAL_START_NS + FRAME_NS)
    items += feed_frames(under_test, [1])
    counters = under_test.counters
    assert counters.malformed + counters.foreign + counters.corrupt == len(noise) == counters.imu_malformed
    assert [(frame.seq, frame.count) for frame in frames_of(items)] == [
        (0, PER_FRAME),
        (PER_FRAME, PER_FRAME),
    ]


def test_the_preview_is_a_thinned_cloud_of_each_revolution() -> None:
    under_test = assembler(preview_points=100)
    items = feed_frames(under_test, range(2))
    previews = frames_of(items, "lidar_points")
    assert [frame.seq for frame in previews] == [0, 1]
    points = np.frombuffer(previews[0].payload, "<f4").reshape(-1, 4)
    assert points.shape == (100, 4)
    offset_m = METADATA.beam_origin_m + 0.03618
    assert np.abs(np.linalg.norm(points[:, :3], axis=1) - 1.0).max() < offset_m
    assert set(points[:, 3]) == {7.0}


def test_imu_packets_become_blocks_of_columns_with_scales() -> None:
    under_test = assembler()
    items: list[Frame | Loss] = []
    for i in range(10):
        packet = encode_imu(1000 + i, (0.0, 0.5, i), (1.0, 2.0, 180.0), accel_ns=2000 + i, gyro_ns=3000 + i)
        items += under_test.feed_imu(packet, ARRIVAL_START_NS + i * 10_000_000)
    frames = frames_of(items, "lidar_imu")
    assert [(frame.seq, frame.count) for frame in frames] == [(0, 5), (5, 5)]
    second = frames[1]
    assert second.device_ticks is not None
    assert second.device_ticks.tolist() == [2005, 2006, 2007, 2008, 2009]
    (info,) = [info for info in under_test.streams() if info.name == "lidar_imu"]
    values, at = {}, 0
    for column in info.columns:
        dtype = np.dtype(column.dtype)
        raw = np.frombuffer(second.payload, dtype, second.count, at)
        values[column.name], at = raw * column.scale, at + second.count * dtype.itemsize
    assert at == len(second.payload) == second.count * info.row_bytes
    np.testing.assert_allclose(values["acc_z"], np.arange(5, 10) * 9.80665)
    np.testing.assert_allclose(values["gyro_z"], np.pi)
    np.testing.assert_array_equal(values["sys_ns"], np.arange(1005, 1010))
    np.testing.assert_array_equal(values["gyro_ns"], np.arange(3005, 3010))


def test_imu_packets_lost_in_the_kernel_are_a_gap_with_its_reason() -> None:
    under_test = assembler()
    packet = encode_imu(1, (0.0, 0.0, 1.0), (0.0, 0.0, 0.0))
    items = under_test.feed_imu(packet, 0) + under_test.note_imu_lost(3, Place.KERNEL, "overflow")
    items += under_test.feed_imu(packet, 1) + under_test.flush()
    first, loss, second = items
    assert isinstance(first, Frame)
    assert isinstance(loss, Loss)
    assert isinstance(second, Frame)
    assert (first.next_seq, loss.count, second.seq) == (1, 3, 4)


def test_the_clock_kind_follows_the_timestamp_mode() -> None:
    ptp = default_metadata(4, 512, 10, timestamp_mode="TIME_FROM_PTP_1588")
    assert [info.clock.kind for info in assembler(metadata=ptp).streams()] == [ClockKind.PTP] * 2
    assert [info.clock.kind for info in assembler().streams()] == [ClockKind.FREE] * 2


@pytest.mark.parametrize("name", ["OS-0-128-U1_v2.3.0_1024x10", "OS-1-32-G_v2.1.1_1024x10"])
def test_a_real_capture_is_one_whole_revolution(name: str, shared_data: Path) -> None:
    metadata = OusterMetadata.from_json((shared_data / "ouster" / f"{name}.json").read_text())
    under_test = OusterAssembler("lidar", metadata, "host")
    items: list[Frame | Loss] = []
    with (shared_data / "ouster" / f"{name}.pcap").open("rb") as file:
        for seconds, ethernet in dpkt.pcap.UniversalReader(file):
            feed_one = under_test.feed_imu if len(ethernet) < 100 else under_test.feed_lidar
            items += feed_one(ethernet[42:], round(seconds * SECOND_NS))
    items += under_test.flush()
    (frame,) = frames_of(items)
    assert (frame.seq, frame.count) == (0, 64)
    assert decode_scan(frame.payload, metadata).column_valid.all()
    assert not any(getattr(under_test.counters, field) for field in under_test.counters.__slots__)
    imu_samples = sum(frame.count for frame in frames_of(items, "lidar_imu"))
    assert imu_samples == (10 if "v2.3.0" in name else 0)


def test_a_real_revolution_of_512_columns_from_a_ros_bag_is_whole(shared_data: Path) -> None:
    highlevel = pytest.importorskip("rosbags.highlevel")
    messages: dict[str, list[tuple[int, Any]]] = {}
    with highlevel.AnyReader([shared_data / "ouster" / "512x10_raw.bag"]) as bag:
        for connection, time_ns, raw in bag.messages():
            message = bag.deserialize(raw, connection.msgtype)
            messages.setdefault(connection.topic.rsplit("/", 1)[1], []).append((time_ns, message))
    ((_, text),) = messages["metadata"]
    metadata = OusterMetadata.from_json(text.data)
    under_test = OusterAssembler("lidar", metadata, "host")
    items: list[Frame | Loss] = []
    for time_ns, message in messages["lidar_packets"]:
        items += under_test.feed_lidar(bytes(message.buf), time_ns)
    for time_ns, message in messages["imu_packets"]:
        items += under_test.feed_imu(bytes(message.buf), time_ns)
    (frame,) = frames_of(items)
    assert (frame.count, metadata.columns) == (32, 512)
    assert decode_scan(frame.payload, metadata).column_valid.all()
    assert [(block.seq, block.count) for block in frames_of(items, "lidar_imu")] == [(0, 5), (5, 5)]


# The driver on real sockets


@pytest.fixture
def metadata_file(tmp_path: Path) -> Path:
    path = tmp_path / "sensor.json"
    path.write_text(METADATA.text)
    return path


def make_driver(tmp_path: Path, config: OusterConfig) -> OusterDriver:
    return OusterDriver(config, DriverContext("lidar", "host", HostClock(), tmp_path))


def local_config(metadata_file: Path) -> OusterConfig:
    return OusterConfig(host=LOOPBACK, metadata=metadata_file, lidar_port=0, imu_port=0, bind=LOOPBACK)


@pytest.fixture
def driver(tmp_path: Path, metadata_file: Path) -> Iterator[OusterDriver]:
    opened = make_driver(tmp_path, local_config(metadata_file))
    opened.open()
    yield opened
    opened.close()


@pytest.fixture
def sender() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        yield opened


def read_frames(driver: OusterDriver, stream: str, count: int) -> list[Frame]:
    frames: list[Frame] = []
    deadline_ns = HostClock().now_ns() + 5 * SECOND_NS
    while len(frames) < count and HostClock().now_ns() < deadline_ns:
        frames += frames_of(driver.read(0.1), stream)
    return frames


def test_the_driver_receives_revolutions_previews_and_imu(
    driver: OusterDriver, sender: socket.socket
) -> None:
    lidar_port, imu_port = driver.ports
    before_ns = HostClock().now_ns()
    for frame_id in range(3):
        for packet in revolution(frame_id):
            sender.sendto(packet, (LOOPBACK, lidar_port))
    for i in range(5):
        sender.sendto(encode_imu(i, (0.0, 0.0, 1.0), (0.0, 0.0, 0.0)), (LOOPBACK, imu_port))
    items: list[Frame | Loss] = []
    while len(frames_of(items)) < 3 or not frames_of(items, "lidar_imu"):
        read = driver.read(2.0)
        assert read, "nothing arrived within 2 s"
        items += read
    after_ns = HostClock().now_ns()
    assert [(f.seq, f.payload) for f in frames_of(items)] == [
        (i * PER_FRAME, b"".join(revolution(i))) for i in range(3)
    ]
    assert len(frames_of(items, "lidar_points")) == 3
    assert frames_of(items, "lidar_imu")[0].count == 5
    for frame in frames_of(items):
        assert (np.diff(frame.arrival_ns) >= 0).all()
        assert before_ns - 5_000_000 <= frame.arrival_ns[0] <= frame.arrival_ns[-1] <= after_ns


def test_streams_declare_what_they_carry(tmp_path: Path, metadata_file: Path) -> None:
    opened = make_driver(tmp_path, local_config(metadata_file))
    try:
        lidar, imu, points = opened.open()
    finally:
        opened.close()
    assert (lidar.name, lidar.encoding, lidar.shape) == ("lidar", Encoding.OUSTER, (4, 512))
    assert (lidar.rate_hz, lidar.frame_rate_hz) == (10 * PER_FRAME, 10)
    assert lidar.has_device_counter
    assert lidar.max_payload_bytes == PER_FRAME * METADATA.packet_bytes
    assert OusterMetadata.from_json(lidar.details["metadata"]).serial == METADATA.serial
    assert (imu.name, imu.is_sampled) == ("lidar_imu", True)
    assert (points.name, points.reference_of) == ("lidar_points", "lidar")


def test_reading_without_data_returns_nothing_at_the_timeout(driver: OusterDriver) -> None:
    before_ns = HostClock().now_ns()
    assert driver.read(0.02) == []
    assert HostClock().now_ns() - before_ns < SECOND_NS


def test_a_flood_that_overflows_the_kernel_is_booked_to_the_kernel(
    tmp_path: Path, metadata_file: Path, sender: socket.socket
) -> None:
    config = local_config(metadata_file).model_copy(update={"receive_buffer_bytes": 40_000})
    driver = make_driver(tmp_path, config)
    driver.open()
    try:
        port, _ = driver.ports
        sent = [packet for frame_id in range(2) for packet in revolution(frame_id)]
        for packet in sent:
            sender.sendto(packet, (LOOPBACK, port))
        items = list(driver.read(1.0))
        for packet in revolution(2):
            sender.sendto(packet, (LOOPBACK, port))
            items += driver.read(0.0)
        while read := driver.read(0.3):
            items += read
    finally:
        driver.close()
    lost = sum(item.count for item in items if isinstance(item, Loss) and item.place is Place.KERNEL)
    received = sum(frame.count for frame in frames_of(items))
    assert lost > 0
    assert received + lost == 3 * PER_FRAME


def test_an_incomplete_revolution_comes_out_when_the_sensor_stops(
    driver: OusterDriver, sender: socket.socket
) -> None:
    for packet in revolution(0)[:7]:
        sender.sendto(packet, (LOOPBACK, driver.ports[0]))
    (frame,) = read_frames(driver, "lidar", 1)
    assert (frame.seq, frame.count) == (0, 7)


def test_datagrams_from_another_host_are_foreign(tmp_path: Path, metadata_file: Path) -> None:
    config = local_config(metadata_file).model_copy(update={"bind": "0.0.0.0"})
    driver = make_driver(tmp_path, config)
    driver.open()
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.bind(("127.0.0.2", 0))
            stranger.sendto(revolution(0)[0], (LOOPBACK, driver.ports[0]))
        deadline_ns = HostClock().now_ns() + 5 * SECOND_NS
        while not driver.counters.foreign and HostClock().now_ns() < deadline_ns:
            assert driver.read(0.1) == []
        assert driver.counters.foreign == 1
    finally:
        driver.close()


def test_a_silent_sensor_is_an_error_that_says_where_it_was_expected(
    tmp_path: Path, metadata_file: Path
) -> None:
    driver = make_driver(tmp_path, local_config(metadata_file).model_copy(update={"silence_s": 0.05}))
    driver.open()
    try:
        port = driver.ports[0]
        with pytest.raises(DeviceError, match=f"UDP port {port}"):
            driver.read(0.1)
    finally:
        driver.close()


def test_a_port_in_use_leaves_nothing_open(tmp_path: Path, metadata_file: Path, driver: OusterDriver) -> None:
    config = local_config(metadata_file).model_copy(update={"imu_port": driver.ports[1]})
    second = make_driver(tmp_path, config)
    with pytest.raises(DeviceError, match="cannot listen"):
        second.open()
    assert second.ports == ()
    second.close()


@pytest.fixture
def metadata_server() -> Iterator[tuple[str, dict[str, str]]]:
    """Serve what the test puts into the dict as path -> text; yields ``host:port`` and the dict."""
    pages: dict[str, str] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = pages.get(self.path, "").encode()
            self.send_response(200 if body else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Be quiet."""

    server = http.server.ThreadingHTTPServer((LOOPBACK, 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"{LOOPBACK}:{server.server_port}", pages
    server.shutdown()
    thread.join()
    server.server_close()


def test_metadata_is_fetched_from_the_sensor(
    tmp_path: Path, metadata_server: tuple[str, dict[str, str]]
) -> None:
    address, pages = metadata_server
    pages["/api/v1/sensor/metadata"] = METADATA.text
    config = OusterConfig(host=LOOPBACK, http_port=int(address.split(":")[1]), lidar_port=0, imu_port=0)
    driver = make_driver(tmp_path, config)
    try:
        lidar, *_ = driver.open()
    finally:
        driver.close()
    assert lidar.details["serial"] == METADATA.serial


def test_a_sensor_that_sends_to_another_port_is_refused(
    tmp_path: Path, metadata_server: tuple[str, dict[str, str]]
) -> None:
    address, pages = metadata_server
    document = json.loads(METADATA.text) | {"config_params": {"udp_port_lidar": 7777, "lidar_mode": "512x10"}}
    pages["/api/v1/sensor/metadata"] = json.dumps(document)
    config = OusterConfig(host=LOOPBACK, http_port=int(address.split(":")[1]))
    with pytest.raises(DeviceError, match="udp_port_lidar = 7777, rig file 7502"):
        make_driver(tmp_path, config).open()


def test_a_sensor_that_does_not_answer_is_an_error_with_its_address(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind((LOOPBACK, 0))
        port = closed.getsockname()[1]
    with pytest.raises(DeviceError, match=f"{LOOPBACK}:{port}/api"):
        make_driver(tmp_path, OusterConfig(host=LOOPBACK, http_port=port)).open()


def test_a_missing_or_wrong_metadata_file_is_found_before_opening(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.json cannot be read"):
        OusterDriver.check(OusterConfig(metadata=tmp_path / "absent.json"))
    wrong = tmp_path / "wrong.json"
    wrong.write_text("{}")
    with pytest.raises(ConfigError, match=r"wrong\.json: Ouster metadata"):
        OusterDriver.check(OusterConfig(metadata=wrong))


def test_config_refuses_unknown_keys_missing_sources_and_equal_ports() -> None:
    with pytest.raises(ValidationError, match="needs host"):
        OusterConfig()
    with pytest.raises(ValidationError, match="both 7502"):
        OusterConfig(host="x", imu_port=7502)
    with pytest.raises(ValidationError, match="extra"):
        OusterConfig.model_validate({"host": "x", "extra": 1})


def test_a_closed_driver_says_so_and_closes_again(driver: OusterDriver) -> None:
    driver.close()
    driver.close()
    with pytest.raises(DeviceError, match="not open"):
        driver.read(0.0)
