"""Recordings whose recorder or converter went wrong: lost messages, empty parts, arrivals in another unit."""

import sqlite3
from io import BytesIO
from pathlib import Path

import pytest
from foreign_cases import generate
from mcap.writer import CompressionType, Writer

from sensorium.drivers.frame import ClockKind, Frame
from sensorium.errors import SourceError
from sensorium.sync.sources import Source, open_source
from sensorium.timebase import SECOND_NS

START_NS = 1_700_000_000 * SECOND_NS


def _problem(source: Source, kind: str) -> tuple[int, str]:
    (found,) = (problem for problem in source.problems if problem.kind == kind)
    return found.count, found.sentence


def _humble(folder: Path) -> Path:
    generate("rosbag2_humble", folder)
    return folder / "drive"


def _json_mcap(path: Path, times_ns: list[int]) -> Source:
    stream = BytesIO()
    writer = Writer(stream, compression=CompressionType.NONE)
    writer.start()
    channel = writer.register_channel("/j", "json", 0)
    for at_ns in times_ns:
        writer.add_message(channel, at_ns, b"{}", at_ns)
    writer.finish()  # type: ignore[no-untyped-call]
    path.write_bytes(stream.getvalue())
    return open_source(path)


def test_a_bag_that_holds_fewer_messages_than_its_recorder_counted_says_so(tmp_path: Path) -> None:
    metadata = _humble(tmp_path) / "metadata.yaml"
    metadata.write_text(metadata.read_text().replace("message_count: 40", "message_count: 50"))
    count, sentence = _problem(open_source(tmp_path / "drive"), "truncated")
    assert count == 10
    assert "counts 50 messages, and 40 are in the files" in sentence


def test_an_empty_last_file_does_not_hide_the_others(tmp_path: Path) -> None:
    folder = _humble(tmp_path)
    (folder / "metadata.yaml").unlink()
    (folder / "drive_1.db3").touch()
    source = open_source(folder)
    assert len(list(source.frames())) == 40
    assert "drive_1.db3: empty" in _problem(source, "truncated")[1]


def test_files_that_metadata_lists_in_vain_are_named_with_what_lies_there(tmp_path: Path) -> None:
    folder = _humble(tmp_path)
    (folder / "drive_0.db3").rename(folder / "other_0.db3")
    with pytest.raises(SourceError, match=r"drive_0\.db3; other_0\.db3 lie there: .* 'ros2 bag reindex'"):
        open_source(folder)


def test_messages_from_before_1970_are_named_with_their_topic(tmp_path: Path) -> None:
    database = sqlite3.connect(_humble(tmp_path) / "drive_0.db3")
    database.execute("UPDATE messages SET timestamp = -5 WHERE id = 3")
    database.commit()
    database.close()
    count, sentence = _problem(open_source(tmp_path / "drive"), "bad_stamp")
    assert count == 1
    assert sentence.startswith("/cam/image_raw: messages whose time of arrival is before 1970")


@pytest.mark.parametrize(
    ("factor", "unit"), [(1000, "microseconds"), (10**6, "milliseconds"), (SECOND_NS, "seconds")]
)
def test_arrivals_in_another_unit_are_named(tmp_path: Path, factor: int, unit: str) -> None:
    times_ns = [(START_NS + n * SECOND_NS // 20) // factor for n in range(60)]
    count, sentence = _problem(_json_mcap(tmp_path / "x.mcap", times_ns), "wrong_unit")
    assert count == 60
    assert f"look like {unit} (factor {factor})" in sentence


def test_arrivals_beside_header_stamps_are_named_though_they_span_little(tmp_path: Path) -> None:
    database = sqlite3.connect(_humble(tmp_path) / "drive_0.db3")
    database.execute("UPDATE messages SET timestamp = timestamp / 1000000")
    database.commit()
    database.close()
    _, sentence = _problem(open_source(tmp_path / "drive"), "wrong_unit")
    assert "arrivals advance 1000000 times too slow for nanoseconds: they look like milliseconds" in sentence


def test_a_host_that_counts_from_its_start_is_of_no_wrong_unit(tmp_path: Path) -> None:
    twenty_minutes_ns = 1200 * SECOND_NS
    source = _json_mcap(tmp_path / "x.mcap", [twenty_minutes_ns + n * SECOND_NS // 1000 for n in range(60)])
    assert source.problems == ()


def _stamped(folder: Path, stamps_s: dict[int, int]) -> Source:
    """Return the bag of 40 images, some with another second in the header's stamp, by their number."""
    database = sqlite3.connect(_humble(folder) / "drive_0.db3")
    for number, second in stamps_s.items():
        (data,) = database.execute("SELECT data FROM messages WHERE id = ?", (number,)).fetchone()
        changed = data[:4] + second.to_bytes(4, "little") + data[8:]
        database.execute("UPDATE messages SET data = ? WHERE id = ?", (changed, number))
    database.commit()
    database.close()
    return open_source(folder / "drive")


@pytest.mark.parametrize("second", [2**31 - 1, 2**32 - 5, 5], ids=["2038", "negative", "since boot"])
def test_a_header_stamp_far_from_its_arrival_is_none_and_the_others_keep_their_clock(
    tmp_path: Path, second: int
) -> None:
    source = _stamped(tmp_path, {8: second})
    frames = [item for item in source.frames() if isinstance(item, Frame)]
    assert source.streams[0].clock.kind is ClockKind.FREE
    assert [n for n, frame in enumerate(frames, 1) if frame.device_ticks is None] == [8]
    count, sentence = _problem(source, "bad_stamp")
    assert count == 1
    assert "/cam/image_raw: 1 of 40 header stamps lie more than a day from their arrival" in sentence


def test_header_stamps_that_no_recorder_takes_are_no_clock(tmp_path: Path) -> None:
    source = _stamped(tmp_path, {n: 2**32 - 50 + n for n in range(1, 41)})
    assert source.streams[0].clock.kind is ClockKind.NONE
    assert "header stamps lie beyond the year 2043" in _problem(source, "bad_stamp")[1]


def test_a_message_from_beyond_2043_is_left_out_and_named(tmp_path: Path) -> None:
    times_ns = [START_NS + n * SECOND_NS // 20 for n in range(20)]
    source = _json_mcap(tmp_path / "x.mcap", [*times_ns, 2**63 - 1])
    assert len(list(source.frames())) == 20
    assert _problem(source, "bad_stamp") == (
        1,
        "/j: messages that are stamped beyond the year 2043 are left out",
    )


def test_messages_from_before_the_clock_was_set_have_no_device_stamp(tmp_path: Path) -> None:
    database = sqlite3.connect(_humble(tmp_path) / "drive_0.db3")
    for number in (1, 2, 3):
        (data,) = database.execute("SELECT data FROM messages WHERE id = ?", (number,)).fetchone()
        since_boot = data[:4] + (5).to_bytes(4, "little") + data[8:]
        database.execute(
            "UPDATE messages SET timestamp = ?, data = ? WHERE id = ?",
            (5 * SECOND_NS + number, since_boot, number),
        )
    database.commit()
    database.close()
    source = open_source(tmp_path / "drive")
    frames = [item for item in source.frames() if isinstance(item, Frame)]
    assert [frame.device_ticks is None for frame in frames] == [True] * 3 + [False] * 37
    assert "their arrival is their only time" in _problem(source, "bad_stamp")[1]
