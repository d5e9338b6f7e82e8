"""Bags and MCAP files as they come from the field: killed recorders, packed messages, bad stamps, known types."""

import shutil
import sqlite3
import struct
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import lz4.frame  # type: ignore[import-untyped]
import pytest
import zstandard
from foreign_cases import generate
from mcap.writer import CompressionType, Writer

from sensorium.drivers.frame import ClockKind, Frame, Loss, Modality
from sensorium.errors import SourceError
from sensorium.sync.sources import Source, open_source
from sensorium.sync.sources.ros_types import begins_with_header
from sensorium.timebase import SECOND_NS

START_NS = 1_700_000_000 * SECOND_NS
DEFINITION = b"std_msgs/Header header\ngeometry_msgs/Wrench wrench\n"


def _frames(source: Source) -> list[Frame]:
    return [item for item in source.frames() if isinstance(item, Frame)]


def _kinds(source: Source) -> set[str]:
    return {problem.kind for problem in source.problems}


def _stamps(source: Source) -> list[int | None]:
    return [None if frame.device_ticks is None else int(frame.device_ticks[0]) for frame in _frames(source)]


def wrench(stamp_ns: int, *, nanoseconds: int | None = None) -> bytes:
    seconds, rest = divmod(stamp_ns, SECOND_NS)
    head = (
        struct.pack("<BBHIII", 0, 1, 0, seconds, rest if nanoseconds is None else nanoseconds, 5) + b"tool\0"
    )
    return head + bytes(-(len(head) - 4) % 8) + struct.pack("<6d", *range(6))


def mcap(
    path: Path, messages: list[tuple[int, bytes]], *, schema: str = "geometry_msgs/msg/WrenchStamped"
) -> Path:
    stream = BytesIO()
    writer = Writer(stream, compression=CompressionType.NONE)
    writer.start(profile="ros2")
    number = writer.register_schema(schema, "ros2msg", DEFINITION)
    channel = writer.register_channel("/ft", "cdr", number)
    for log_ns, payload in messages:
        writer.add_message(channel, log_ns, payload, log_ns)
    writer.finish()  # type: ignore[no-untyped-call]
    path.write_bytes(stream.getvalue())
    return path


def bag_database(
    path: Path,
    messages: list[tuple[int, bytes]],
    kind: str = "geometry_msgs/msg/WrenchStamped",
    topic: str = "/ft",
) -> None:
    database = sqlite3.connect(path)
    database.execute(
        "CREATE TABLE topics(id INTEGER PRIMARY KEY, name TEXT, type TEXT, serialization_format TEXT)"
    )
    database.execute(
        "CREATE TABLE messages(id INTEGER PRIMARY KEY, topic_id INTEGER, timestamp INTEGER, data BLOB)"
    )
    database.execute("INSERT INTO topics VALUES(1, ?, ?, 'cdr')", (topic, kind))
    database.executemany("INSERT INTO messages(topic_id, timestamp, data) VALUES(1, ?, ?)", messages)
    database.commit()
    database.close()


def steady(count: int, start: int = 0) -> list[tuple[int, bytes]]:
    return [
        (START_NS + at * 10_000_000, wrench(START_NS + at * 10_000_000)) for at in range(start, start + count)
    ]


def test_one_bad_stamp_takes_the_clock_from_nobody(tmp_path: Path) -> None:
    right = generate("mcap_one_bad_header", tmp_path)
    source = open_source(tmp_path / "drive.mcap")
    (info,) = source.streams
    found = _stamps(source)
    assert len(found) == right["frames"]
    assert (info.clock.kind, info.stamp_of) == (ClockKind.FREE, right["stamp_of"])
    assert [at for at, stamp in enumerate(found) if stamp is None] == [60]
    assert [(one.kind, one.count) for one in source.problems] == [("bad_stamp", 1)]
    assert all(
        stamp == START_NS + at * SECOND_NS // 20 for at, stamp in enumerate(found) if stamp is not None
    )


def test_stamps_that_were_not_set_now_and_then_are_none_and_are_counted(tmp_path: Path) -> None:
    messages = steady(40)
    for at in (7, 20, 21):
        messages[at] = (messages[at][0], wrench(0))
    source = open_source(mcap(tmp_path / "x.mcap", messages))
    assert source.streams[0].clock.kind is ClockKind.FREE
    assert [at for at, stamp in enumerate(_stamps(source)) if stamp is None] == [7, 20, 21]
    assert [(one.kind, one.count) for one in source.problems] == [("unset_stamps", 3)]


def test_stamps_of_which_most_were_not_set_are_no_clock(tmp_path: Path) -> None:
    messages = [(log_ns, wrench(0)) for log_ns, _ in steady(30)] + steady(3, start=30)
    source = open_source(mcap(tmp_path / "x.mcap", messages))
    assert source.streams[0].clock.kind is ClockKind.NONE
    assert set(_stamps(source)) == {None}
    assert "30 of 33 header stamps were not set (0); arrival is the only time" in source.problems[0].sentence


def test_header_stamps_in_microseconds_are_named_and_read_as_such(tmp_path: Path) -> None:
    messages = [(log_ns, wrench(log_ns // 1000)) for log_ns, _ in steady(100)]
    source = open_source(mcap(tmp_path / "x.mcap", messages))
    assert source.streams[0].clock.tick_ns == 1000.0
    assert [one.kind for one in source.problems] == ["wrong_unit"]
    assert "1000 times too slow for nanoseconds: they look like microseconds" in source.problems[0].sentence


def test_a_field_for_nanoseconds_that_holds_microseconds_is_named_and_no_clock(tmp_path: Path) -> None:
    messages = [(log_ns, wrench(log_ns, nanoseconds=log_ns % SECOND_NS // 1000)) for log_ns, _ in steady(400)]
    source = open_source(mcap(tmp_path / "x.mcap", messages))
    assert source.streams[0].clock.kind is ClockKind.NONE
    (problem,) = source.problems
    assert (problem.kind, "1000 times too slow" in problem.sentence) == ("wrong_unit", True)


@pytest.mark.parametrize("step_ns", [0, -SECOND_NS // 20], ids=["one stamp for all", "backwards"])
def test_header_stamps_that_do_not_advance_are_named_and_no_clock(tmp_path: Path, step_ns: int) -> None:
    messages = [(START_NS + n * SECOND_NS // 20, wrench(START_NS + n * step_ns)) for n in range(40)]
    source = open_source(mcap(tmp_path / "x.mcap", messages))
    assert "header stamps do not advance" in source.problems[0].sentence
    assert source.streams[0].clock.kind is ClockKind.NONE
    assert set(_stamps(source)) == {None}


def test_arrivals_that_a_converter_lost_are_named(tmp_path: Path) -> None:
    source = open_source(mcap(tmp_path / "x.mcap", [(0, wrench(START_NS + n * 10**7)) for n in range(40)]))
    assert "all 40 messages bear one and the same arrival, 1970-01-01" in source.problems[0].sentence


def _json_mcap(path: Path, messages: list[tuple[bytes, int]], encoding: str = "json") -> Path:
    """Write payloads with their publish times, 50 ms apart."""
    stream = BytesIO()
    writer = Writer(stream, compression=CompressionType.NONE)
    writer.start()
    channel = writer.register_channel("/j", encoding, 0)
    for n, (payload, publish_ns) in enumerate(messages):
        writer.add_message(channel, START_NS + n * SECOND_NS // 20, payload, publish_ns)
    writer.finish()  # type: ignore[no-untyped-call]
    path.write_bytes(stream.getvalue())
    return path


def test_publish_times_that_were_never_set_are_no_clock(tmp_path: Path) -> None:
    source = open_source(_json_mcap(tmp_path / "x.mcap", [(b"{}", 0)] * 20))
    assert source.streams[0].clock.kind is ClockKind.NONE
    assert set(_stamps(source)) == {None}


def test_a_publish_time_of_zero_among_dates_was_not_set(tmp_path: Path) -> None:
    messages = [(b"{}", 0 if n == 7 else START_NS + n * SECOND_NS // 20 - 10**6) for n in range(20)]
    source = open_source(_json_mcap(tmp_path / "x.mcap", messages))
    assert source.streams[0].clock.kind is ClockKind.HOST
    assert [n for n, ticks in enumerate(_stamps(source)) if ticks is None] == [7]


def test_json_messages_packed_one_by_one_are_played_unpacked(tmp_path: Path) -> None:
    packed = [(zstandard.ZstdCompressor().compress(b'{"a": %d}' % n), START_NS) for n in range(9)]
    source = open_source(_json_mcap(tmp_path / "x.mcap", packed))
    assert [frame.payload for frame in _frames(source)] == [b'{"a": %d}' % n for n in range(9)]


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [("cdr", lz4.frame.compress), ("protobuf", zstandard.ZstdCompressor().compress)],
    ids=["LZ4", "zstd in another encoding"],
)
def test_packed_messages_that_pass_as_they_are_are_named(tmp_path: Path, encoding: str, pack: Any) -> None:
    source = open_source(_json_mcap(tmp_path / "x.mcap", [(pack(b"\0\1\0\0abc"), START_NS)] * 9, encoding))
    assert "/j: 9 of 9 messages begin like packed data" in source.problems[0].sentence


def test_messages_before_the_clock_ran_are_named_with_the_gap(tmp_path: Path) -> None:
    right = generate("mcap_first_at_zero", tmp_path)
    source = open_source(tmp_path / "drive.mcap")
    assert len(_frames(source)) == right["frames"]
    assert source.streams[0].rate_hz == 20.0
    problem = next(one for one in source.problems if one.kind == "bad_stamp")
    assert problem.count == 3
    assert "1970-01-01" in problem.sentence
    assert "19675 days" in problem.sentence


def test_a_pause_of_a_day_is_named_as_a_gap(tmp_path: Path) -> None:
    later = [(log_ns + 86_400 * SECOND_NS, payload) for log_ns, payload in steady(20)]
    (problem,) = open_source(mcap(tmp_path / "x.mcap", steady(20) + later)).problems
    assert problem.kind == "gap"
    assert "23:59:59" in problem.sentence


@pytest.mark.parametrize("name", ["", "camera_0.mcap"])
def test_messages_packed_one_by_one_are_played_unpacked(shared_data: Path, name: str) -> None:
    source = open_source(shared_data / "cases2" / "message_compressed" / name)
    frames = _frames(source)
    assert [len(frame.payload) for frame in frames] == [9268, 9268]
    assert _stamps(source) == [8297777777, 8331088888]
    (info,) = source.streams
    assert (info.shape, info.details["pixel_format"], info.frame_id) == ((48, 64), "rgb8", "camera")
    assert "zstd" in info.details["compression"]


def test_a_packed_message_that_does_not_unpack_is_a_loss(tmp_path: Path) -> None:
    pack = zstandard.ZstdCompressor().compress
    messages = [(log_ns, pack(payload)) for log_ns, payload in steady(10)]
    messages[4] = (messages[4][0], messages[4][1][:-9])
    source = open_source(mcap(tmp_path / "x.mcap", messages))
    items = list(source.frames())
    assert [item.seq for item in items if isinstance(item, Frame)] == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    assert [item.count for item in items if isinstance(item, Loss)] == [1]
    assert [(one.kind, one.count) for one in source.problems] == [("bad_message", 1)]


def test_a_packed_message_that_unpacks_without_end_is_refused(tmp_path: Path) -> None:
    bomb = zstandard.ZstdCompressor().compressobj()
    packed = b"".join([bomb.compress(bytes(1 << 20)) for _ in range(300)]) + bomb.flush()
    source = open_source(mcap(tmp_path / "x.mcap", [*steady(3), (START_NS, packed)]))
    assert [(one.kind, one.count) for one in source.problems] == [("bad_message", 1)]
    assert len(_frames(source)) == 3


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_a_chunk_of_two_frames_gives_both(tmp_path: Path, compression: str) -> None:
    plain = mcap(tmp_path / "plain.mcap", steady(50)).read_bytes()
    at = _chunk_at(plain)
    length = struct.unpack_from("<Q", plain, at + 1)[0]
    start_ns, end_ns, size, checksum, name_bytes = struct.unpack_from("<QQQII", plain, at + 9)
    assert name_bytes == 0
    records = plain[at + 9 + 32 + 8 :][:size]
    pack = lz4.frame.compress if compression == "lz4" else zstandard.ZstdCompressor().compress
    packed = pack(records[: size // 3]) + pack(records[size // 3 :])
    name = compression.encode()
    body = (
        struct.pack("<QQQII", start_ns, end_ns, size, checksum, len(name))
        + name
        + struct.pack("<Q", len(packed))
    )
    chunk = struct.pack("<BQ", 6, len(body) + len(packed)) + body + packed
    (tmp_path / "x.mcap").write_bytes(plain[:at] + chunk + plain[at + 9 + length :])
    assert len(_frames(open_source(tmp_path / "x.mcap"))) == 50


def _chunk_at(data: bytes) -> int:
    at = 8
    while data[at] != 6:
        at += 9 + struct.unpack_from("<Q", data, at + 1)[0]
    return at


def test_a_type_without_content_keeps_its_schema_and_is_no_complaint(shared_data: Path) -> None:
    source = open_source(shared_data / "cases2" / "empty_type")
    schemas = {info.details["type"]: info.schema for info in source.streams}
    empty = schemas["test_msgs/msg/Empty"]
    assert empty is not None
    assert (empty.name, empty.encoding) == ("test_msgs/msg/Empty", "ros2msg")
    assert len(_frames(source)) == 150
    assert source.problems == ()


def test_a_known_type_without_definition_gets_it_and_says_so(tmp_path: Path) -> None:
    right = generate("rosbag2_humble", tmp_path)
    source = open_source(tmp_path / right["source"])
    (info,) = source.streams
    assert info.schema is not None
    assert (info.schema.name, info.schema.encoding) == ("sensor_msgs/msg/Image", "ros2msg")
    assert b"std_msgs/Header header" in info.schema.data
    assert b"MSG: builtin_interfaces/Time" in info.schema.data
    assert len(_frames(source)) == right["frames"]
    assert [one.kind for one in source.problems] == ["filled_definition"]
    assert "ROS 2 Humble" in source.problems[0].sentence


@pytest.mark.parametrize(
    "kind",
    [
        "sensor_msgs/msg/MagneticField",
        "nav_msgs/msg/Odometry",
        "geometry_msgs/msg/PoseStamped",
        "sensor_msgs/msg/Range",
    ],
)
def test_header_stamps_of_every_known_type_are_used_without_its_definition(tmp_path: Path, kind: str) -> None:
    bag_database(tmp_path / "x.db3", steady(20), kind)
    source = open_source(tmp_path / "x.db3")
    assert source.streams[0].clock.kind is ClockKind.FREE
    assert _stamps(source) == [log_ns for log_ns, _ in steady(20)]


def test_a_header_is_seen_in_idl_behind_comments_and_annotations() -> None:
    idl = """
    #include "std_msgs/msg/Header.idl"
    module acme { module msg {
      @verbatim (language="comment", text="has a struct Other { (and) brackets")
      struct Gizmo {
        // the stamp
        @verbatim (language="comment", text="first; of all")
        std_msgs::msg::Header header;
        double value;
      };
    }; };"""
    assert begins_with_header("acme/msg/Gizmo", idl)
    assert not begins_with_header("acme/msg/Gizmo", idl.replace("std_msgs::msg::Header header;", ""))


def test_without_metadata_a_bag_is_played_and_the_lack_is_named(tmp_path: Path) -> None:
    generate("rosbag2_without_metadata", tmp_path)
    source = open_source(tmp_path / "drive")
    assert len(_frames(source)) == 40
    assert "no_metadata" in _kinds(source)


def test_a_split_bag_without_metadata_is_played_in_order(shared_data: Path) -> None:
    source = open_source(shared_data / "cases2" / "split_bag_without_metadata")
    frames = _frames(source)
    assert len(frames) == 3177
    assert [frame.seq for frame in frames] == list(range(3177))
    arrivals = [int(frame.arrival_ns[0]) for frame in frames]
    assert arrivals == sorted(arrivals)
    assert [info.name for info in source.streams] == ["chatter"]


def test_recordings_that_only_lie_together_are_not_taken_for_one(tmp_path: Path) -> None:
    for name in ("monday_0.mcap", "tuesday_0.mcap"):
        mcap(tmp_path / name, steady(3))
    with pytest.raises(
        SourceError, match=r"monday_0\.mcap, tuesday_0\.mcap without a metadata\.yaml.*give one file"
    ):
        open_source(tmp_path)


def test_parts_are_ordered_by_their_number_and_litter_is_none(tmp_path: Path) -> None:
    for part in range(12):
        mcap(tmp_path / f"drive_{part}.mcap", steady(5, start=5 * part))
    (tmp_path / "._drive_0.mcap").write_bytes(b"\0\5\26\7litter")
    source = open_source(tmp_path)
    assert _stamps(source) == [log_ns for log_ns, _ in steady(60)]


def test_a_file_that_metadata_does_not_list_is_named(shared_data: Path, tmp_path: Path) -> None:
    shutil.copytree(shared_data / "rosbag2" / "talker", tmp_path / "talker")
    mcap(tmp_path / "talker" / "talker_1.mcap", steady(3))
    source = open_source(tmp_path / "talker")
    assert len(_frames(source)) == 20
    problem = next(one for one in source.problems if one.kind == "unlisted_file")
    assert "talker_1.mcap" in problem.sentence


def test_damaged_metadata_does_not_hide_the_recording(shared_data: Path, tmp_path: Path) -> None:
    shutil.copytree(shared_data / "rosbag2" / "talker", tmp_path / "talker")
    (tmp_path / "talker" / "metadata.yaml").write_text("rosbag2_bagfile_information: [")
    source = open_source(tmp_path / "talker")
    assert len(_frames(source)) == 20
    assert "metadata.yaml is damaged" in source.problems[0].sentence


@pytest.mark.parametrize("ending", [".mcap", ".db3"])
def test_a_file_that_was_packed_as_a_whole_is_unpacked(tmp_path: Path, ending: str) -> None:
    plain = tmp_path / f"x{ending}"
    if ending == ".mcap":
        mcap(plain, steady(10))
    else:
        bag_database(plain, steady(10))
    bag = tmp_path / "bag"
    bag.mkdir()
    (bag / f"x_0{ending}.zstd").write_bytes(zstandard.ZstdCompressor().compress(plain.read_bytes()))
    with open_source(bag) as source:
        assert _stamps(source) == [log_ns for log_ns, _ in steady(10)]


def test_messages_of_a_write_ahead_log_are_read_and_the_bag_is_not_written_to(tmp_path: Path) -> None:
    right = generate("rosbag2_write_ahead_log", tmp_path)
    folder = tmp_path / "drive"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with open_source(tmp_path / right["source"]) as source:
        assert len(_frames(source)) == right["frames"]
        assert len(_frames(source)) == right["frames"]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    "trap",
    [
        "CREATE VIEW messages AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) "
        "SELECT i AS id, 1 AS topic_id, i AS timestamp, zeroblob(1000000) AS data FROM n",
        "CREATE TABLE messages(id INTEGER PRIMARY KEY, topic_id INTEGER, timestamp INTEGER, "
        "data BLOB GENERATED ALWAYS AS (zeroblob(1000000000)))",
    ],
    ids=["a view without end", "a computed column"],
)
def test_a_database_that_makes_up_its_rows_is_refused(tmp_path: Path, trap: str) -> None:
    database = sqlite3.connect(tmp_path / "x.db3")
    database.execute(
        "CREATE TABLE topics(id INTEGER PRIMARY KEY, name TEXT, type TEXT, serialization_format TEXT)"
    )
    database.execute(trap)
    database.commit()
    database.close()
    with pytest.raises(SourceError, match=r"x\.db3: damaged or unfinished ROS 2 bag"):
        open_source(tmp_path / "x.db3")


def test_rows_that_hold_no_message_are_left_out_and_counted(tmp_path: Path) -> None:
    bag_database(tmp_path / "x.db3", steady(5))
    database = sqlite3.connect(tmp_path / "x.db3")
    rows = [(1, "soon", b"x"), (1, -5, b"x"), (9, START_NS, b"x"), (1, START_NS, None), (1, START_NS, "text")]
    database.executemany("INSERT INTO messages(topic_id, timestamp, data) VALUES(?, ?, ?)", rows)
    database.commit()
    database.close()
    source = open_source(tmp_path / "x.db3")
    assert len(_frames(source)) == 5
    counts = {one.kind: one.count for one in source.problems if one.kind != "filled_definition"}
    assert counts == {"bad_stamp": 2, "unknown_type": 1, "bad_record": 2}


def test_topics_that_were_written_one_after_another_are_read_in_time(shared_data: Path) -> None:
    began = time.process_time()
    source = open_source(shared_data / "cases2" / "topics_one_after_another_bz2.bag")
    frames = _frames(source)
    assert time.process_time() - began < 5.0  # unpacking a chunk per message takes minutes
    assert len(frames) == 4500
    first_ns = int(frames[0].arrival_ns[0])
    offsets = {info.name: info.details["topic"] for info in source.streams}
    for place, name in enumerate(offsets):
        arrivals = [int(frame.arrival_ns[0]) - first_ns for frame in frames if frame.stream == name]
        assert arrivals == [place * 3_000_000 + at * 10_000_000 for at in range(1500)]
    arrivals = [int(frame.arrival_ns[0]) for frame in frames]
    assert arrivals == sorted(arrivals)


def test_a_depth_image_in_a_humble_bag_is_depth(tmp_path: Path) -> None:
    head = struct.pack("<BBHIII", 0, 1, 0, START_NS // SECOND_NS, 0, 4) + b"cam\0"
    body = (
        struct.pack("<III", 2, 4, 6) + b"16UC1\0" + b"\0" + bytes(1) + struct.pack("<II", 8, 16) + bytes(16)
    )
    bag_database(tmp_path / "x.db3", [(START_NS, head + body)], "sensor_msgs/msg/Image", "/depth/image")
    (info,) = open_source(tmp_path / "x.db3").streams
    assert (info.modality, info.shape) == (Modality.DEPTH, (2, 4))


def test_a_recording_of_librealsense_begins_at_the_time_that_its_text_tells(shared_data: Path) -> None:
    source = open_source(shared_data / "realsense" / "single_depth_color_640x480.bag")
    began_ns = source.start_ns + source.timeline.utc_minus_host_ns
    assert began_ns // SECOND_NS == 1534232519
    problem = next(one for one in source.problems if one.kind == "relative_stamps")
    assert "2018-08-14 07:41:59 UTC" in problem.sentence


def _key_value(key: str, value: str) -> bytes:
    body = b"\0\1\0\0"
    for text in (key, value):
        body += bytes(-len(body) % 4) + struct.pack("<I", len(text) + 1) + text.encode() + b"\0"
    return body


@pytest.mark.parametrize(
    ("told", "offset_ns"), [("1784000000123.25", 1_784_000_000_123_250_000), ("unknown", 0)]
)
def test_a_database_of_librealsense_is_read_without_metadata(
    tmp_path: Path, told: str, offset_ns: int
) -> None:
    """As librealsense 2.59 writes it: no metadata.yaml, stamps from 0 on, the time as text in milliseconds."""
    bag_database(tmp_path / "x.db3", [], "diagnostic_msgs/msg/KeyValue")
    database = sqlite3.connect(tmp_path / "x.db3")
    database.execute("UPDATE topics SET name = '/device_0/sensor_0/Depth_0/image/metadata'")
    rows = [(at * 33_000_000, _key_value("system_time", told)) for at in range(3)]
    database.executemany("INSERT INTO messages(topic_id, timestamp, data) VALUES(1, ?, ?)", rows)
    database.commit()
    database.close()
    source = open_source(tmp_path / "x.db3")
    assert source.timeline.utc_minus_host_ns == offset_ns
    assert "relative_stamps" in _kinds(source)
