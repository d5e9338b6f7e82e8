"""ROS 1 and ROS 2 bags: every message, its stamps, its schema, and what a bag lacks."""

import sqlite3
import struct
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml
from rosbags import rosbag1, rosbag2
from rosbags.rosbag2 import StoragePlugin
from rosbags.typesys import Stores, get_typestore

from sensorium.drivers.frame import ClockKind, Encoding, Frame, Modality
from sensorium.errors import SourceError
from sensorium.sync.sources import Source, open_source
from sensorium.timebase import SECOND_NS

START_NS = 1_700_000_000_000_000_000


def _frames(source: Source) -> list[Frame]:
    return [item for item in source.frames() if isinstance(item, Frame)]


def _kinds(source: Source) -> Counter[str]:
    return Counter(problem.kind for problem in source.problems)


def _ros1_image(stamp_ns: int, pixel_format: str = "rgb8") -> bytes:
    frame_id, text = b"cam", pixel_format.encode()
    header = struct.pack("<IIII", 7, stamp_ns // 10**9, stamp_ns % 10**9, len(frame_id)) + frame_id
    return header + struct.pack("<III", 2, 3, len(text)) + text + struct.pack("<BII", 0, 9, 18) + bytes(18)


def _cdr_wrench(stamp_ns: int) -> bytes:
    frame_id = b"tool\0"
    head = struct.pack("<BBHIII", 0, 1, 0, stamp_ns // 10**9, stamp_ns % 10**9, len(frame_id)) + frame_id
    return head + bytes(-(len(head) - 4) % 8) + struct.pack("<6d", *range(6))


def _sqlite_bag(folder: Path, type_name: str, payloads: list[bytes]) -> Path:
    """Write a ROS 2 bag as Foxy did: SQLite, without any message definition."""
    folder.mkdir()
    database = sqlite3.connect(folder / "old_0.db3")
    database.execute(
        "CREATE TABLE topics(id INTEGER PRIMARY KEY, name TEXT, type TEXT, serialization_format TEXT,"
        " offered_qos_profiles TEXT)"
    )
    database.execute(
        "CREATE TABLE messages(id INTEGER PRIMARY KEY, topic_id INTEGER, timestamp INTEGER, data BLOB)"
    )
    database.execute("INSERT INTO topics VALUES(1, '/force', ?, 'cdr', '')", (type_name,))
    for index, payload in enumerate(payloads):
        row = (index + 1, START_NS + index * 10**7, payload)
        database.execute("INSERT INTO messages VALUES(?, 1, ?, ?)", row)
    database.commit()
    database.close()
    topic = {"name": "/force", "type": type_name, "serialization_format": "cdr", "offered_qos_profiles": ""}
    document = {
        "version": 4,
        "storage_identifier": "sqlite3",
        "relative_file_paths": ["old_0.db3"],
        "duration": {"nanoseconds": 10**7 * len(payloads)},
        "starting_time": {"nanoseconds_since_epoch": START_NS},
        "message_count": len(payloads),
        "topics_with_message_count": [{"topic_metadata": topic, "message_count": len(payloads)}],
        "compression_format": "",
        "compression_mode": "",
    }
    (folder / "metadata.yaml").write_text(yaml.safe_dump({"rosbag2_bagfile_information": document}))
    return folder


@pytest.mark.parametrize("name", ["example", "example-lz4", "example-bz2"])
def test_every_message_of_a_ros1_bag_is_found_whatever_its_compression(shared_data: Path, name: str) -> None:
    source = open_source(shared_data / "rosbag1" / f"{name}.bag")
    frames = _frames(source)
    assert len(frames) == 8647
    assert len(source.streams) == 9
    assert round((source.end_ns - source.start_ns) / SECOND_NS, 1) == 21.7
    arrivals = [int(frame.arrival_ns[0]) for frame in frames]
    assert arrivals == sorted(arrivals)


def test_the_publishers_of_a_topic_share_one_stream(shared_data: Path) -> None:
    source = open_source(shared_data / "rosbag1" / "example.bag")
    assert sum(int(info.details["publishers"]) for info in source.streams) == 12
    rosout = next(info for info in source.streams if info.name == "rosout")
    assert rosout.details["publishers"] == "3"
    # Three nodes on one topic are three clocks: their header stamps say nothing about one of them.
    assert rosout.clock.kind is ClockKind.NONE
    seqs = [frame.seq for frame in _frames(source) if frame.stream == "rosout"]
    assert seqs == list(range(10))


def test_schemas_come_along_in_mcaps_terms(shared_data: Path) -> None:
    source = open_source(shared_data / "rosbag1" / "example.bag")
    pose = next(info for info in source.streams if info.name == "turtle1_pose")
    assert pose.encoding == Encoding.MESSAGE
    assert pose.schema is not None
    assert (pose.schema.message_encoding, pose.schema.name, pose.schema.encoding) == (
        "ros1",
        "turtlesim/Pose",
        "ros1msg",
    )
    assert b"linear_velocity" in pose.schema.data


def test_a_bag_without_messages_is_an_empty_source_that_says_so(shared_data: Path) -> None:
    source = open_source(shared_data / "rosbag1" / "no-messages.bag")
    assert source.streams == ()
    assert _frames(source) == []
    assert source.end_ns <= source.start_ns
    assert _kinds(source) == {"empty": 1}


def test_all_seventy_topics_of_the_realsense_bag_are_streams(shared_data: Path) -> None:
    source = open_source(shared_data / "realsense" / "single_depth_color_640x480.bag")
    frames = _frames(source)
    assert (len(source.streams), len(frames)) == (70, 135)
    images = {info.modality: info for info in source.streams if info.details["type"] == "sensor_msgs/Image"}
    assert set(images) == {Modality.DEPTH, Modality.CAMERA}
    assert images[Modality.CAMERA].is_personal
    assert not images[Modality.DEPTH].is_personal
    assert images[Modality.DEPTH].shape == (480, 640)
    assert len({info.name for info in source.streams}) == 70


def test_the_ouster_driver_bag_holds_its_packets(shared_data: Path) -> None:
    source = open_source(shared_data / "ouster" / "512x10_raw.bag")
    counts = Counter(frame.stream for frame in _frames(source))
    modalities = {info.name: info.modality for info in source.streams}
    assert counts == {"os_node0_lidar_packets": 32, "os_node0_imu_packets": 10, "os_node0_metadata": 1}
    assert modalities["os_node0_lidar_packets"] is Modality.LIDAR
    assert modalities["os_node0_imu_packets"] is Modality.IMU


@pytest.mark.parametrize(("name", "count", "streams"), [("talker", 20, 2), ("cdr_test", 7, 2)])
def test_every_message_of_a_ros2_bag_is_found(shared_data: Path, name: str, count: int, streams: int) -> None:
    source = open_source(shared_data / "rosbag2" / name)
    assert len(_frames(source)) == count
    assert len(source.streams) == streams
    assert all(info.schema is not None and info.schema.encoding == "ros2msg" for info in source.streams)


def test_a_header_stamp_is_the_device_clock(tmp_path: Path) -> None:
    store = get_typestore(Stores.ROS1_NOETIC)
    path = tmp_path / "image.bag"
    with rosbag1.Writer(path) as writer:
        connection = writer.add_connection("/cam/image_raw", "sensor_msgs/msg/Image", typestore=store)
        for index in range(5):
            stamp_ns = START_NS + index * 100_000_000
            writer.write(connection, stamp_ns + 3_000_000, _ros1_image(stamp_ns))
    source = open_source(path)
    (info,) = source.streams
    assert (info.clock.kind, info.stamp_of, info.frame_id) == (ClockKind.FREE, "sample", "cam")
    assert (info.shape, info.details["pixel_format"], info.rate_hz) == ((2, 3), "rgb8", 10.0)
    assert info.is_personal
    for index, frame in enumerate(_frames(source)):
        assert frame.device_ticks is not None
        assert frame.device_ticks[0] == START_NS + index * 100_000_000
        assert frame.arrival_ns[0] - frame.device_ticks[0] == 3_000_000


@pytest.mark.parametrize("storage", [StoragePlugin.SQLITE3, StoragePlugin.MCAP])
def test_ros2_header_stamps_are_read_from_either_storage(tmp_path: Path, storage: StoragePlugin) -> None:
    store = get_typestore(Stores.ROS2_HUMBLE)
    with rosbag2.Writer(tmp_path / "bag", version=9, storage_plugin=storage) as writer:
        connection = writer.add_connection("/ft", "geometry_msgs/msg/WrenchStamped", typestore=store)
        for index in range(3):
            writer.write(connection, START_NS + index, _cdr_wrench(START_NS + index))
    source = open_source(tmp_path / "bag")
    (info,) = source.streams
    assert (info.modality, info.frame_id, info.clock.kind) == (Modality.FORCE, "tool", ClockKind.FREE)
    ticks = [frame.device_ticks.tolist() for frame in _frames(source) if frame.device_ticks is not None]
    assert ticks == [[START_NS], [START_NS + 1], [START_NS + 2]]


def test_a_type_without_definition_passes_as_bytes_and_is_reported(tmp_path: Path) -> None:
    payloads = [b"\0\1\0\0secret" + bytes([index]) for index in range(4)]
    source = open_source(_sqlite_bag(tmp_path / "old", "acme_msgs/msg/Gizmo", payloads))
    assert [bytes(frame.payload) for frame in _frames(source)] == payloads
    assert _kinds(source) == {"unknown_type": 1}
    (problem,) = source.problems
    assert problem.count == 4
    assert "acme_msgs/msg/Gizmo" in problem.sentence


def test_bytes_that_do_not_fit_their_type_carry_no_stamp(tmp_path: Path) -> None:
    source = open_source(
        _sqlite_bag(tmp_path / "odd", "geometry_msgs/msg/WrenchStamped", [b"\0\1\0\0", b"\1"])
    )
    (info,) = source.streams
    assert info.clock.kind is ClockKind.NONE
    assert [frame.device_ticks for frame in _frames(source)] == [None, None]


def test_headers_whose_stamp_was_never_set_are_no_clock(tmp_path: Path) -> None:
    source = open_source(
        _sqlite_bag(tmp_path / "zero", "geometry_msgs/msg/WrenchStamped", [_cdr_wrench(0)] * 3)
    )
    assert source.streams[0].clock.kind is ClockKind.NONE
    assert _kinds(source)["unset_stamps"] == 1


def test_a_bag_that_was_never_finished_asks_for_a_reindex(shared_data: Path, tmp_path: Path) -> None:
    whole = (shared_data / "rosbag1" / "example.bag").read_bytes()
    path = tmp_path / "torn.bag"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SourceError, match=r"torn\.bag: damaged or unfinished ROS 1 bag.*reindex"):
        open_source(path)


def test_without_the_extra_its_use_is_named_where_a_definition_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rosbags", None)
    source = open_source(
        _sqlite_bag(tmp_path / "old", "geometry_msgs/msg/WrenchStamped", [_cdr_wrench(START_NS)])
    )
    (problem,) = source.problems
    assert problem.kind == "unknown_type"
    assert "pip install 'sensorium[ros]'" in problem.sentence


def test_a_ros2_folder_without_its_file_is_refused(shared_data: Path, tmp_path: Path) -> None:
    (tmp_path / "metadata.yaml").write_text(
        (shared_data / "rosbag2" / "talker" / "metadata.yaml").read_text()
    )
    with pytest.raises(SourceError, match=r"files are missing.*talker\.mcap"):
        open_source(tmp_path)
