"""Which reader a recording gets, and what a user is told when there is none."""

import os
from pathlib import Path

import pytest

from sensorium.drivers.frame import STREAM_NAME
from sensorium.errors import SourceError
from sensorium.sync.sources import identify, open_source
from sensorium.sync.sources.message_stream import nominal_rate_hz, stream_name
from sensorium.sync.sources.opening import Format


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("euroc_micro", Format.EUROC),
        ("ouster/OS-1-32-G_v2.1.1_1024x10.pcap", Format.PCAP),
        ("rosbag1/example.bag", Format.ROS1_BAG),
        ("rosbag2/talker", Format.ROS2_BAG),
        ("rosbag2/talker/talker.mcap", Format.MCAP),
    ],
)
def test_recordings_are_told_apart_by_content(shared_data: Path, name: str, expected: Format) -> None:
    assert identify(shared_data / name) is expected


def test_the_name_of_a_file_decides_nothing(shared_data: Path, tmp_path: Path) -> None:
    disguised = tmp_path / "film.avi"
    disguised.write_bytes((shared_data / "rosbag2" / "talker" / "talker.mcap").read_bytes())
    assert identify(disguised) is Format.MCAP


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "the file is empty"),
        (b"hello world", r"begins with b'hello wo'"),
        (b"VisionRecord", "VRS"),
        (b"\x1f\x8b\x08", "unpack it first"),
        (b"{}", "JSON document"),
    ],
)
def test_what_cannot_be_read_is_named_with_what_can(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "thing.bag"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=rf"thing\.bag: .*{told}.*supported: an episode folder"):
        open_source(path)


def test_folders_without_a_recording_list_what_they_hold(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="a folder with nothing"):
        open_source(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(SourceError, match=r"a folder with notes\.txt"):
        open_source(tmp_path)
    with pytest.raises(SourceError, match="No such file"):
        open_source(tmp_path / "absent")


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SourceError, match="neither a file nor a folder"):
        open_source(tmp_path / "pipe")


def test_topics_become_valid_unique_stream_names() -> None:
    topics = ["/cam/Image Raw", "/cam/image_raw", "/", "/ä", "/data", "/" + "x" * 60, "/" + "x" * 61]
    taken: list[str] = []
    for topic in topics:
        taken.append(stream_name(topic, taken))
    assert len(set(taken)) == len(topics)
    assert all(STREAM_NAME.fullmatch(name) for name in taken)
    assert taken[:2] == ["cam_image_raw", "cam_image_raw_2"]
    assert "data" not in taken


def test_only_steady_streams_have_a_rate() -> None:
    assert nominal_rate_hz([n * 20_000_000 for n in range(20)]) == 50.0
    assert nominal_rate_hz([0, 1, 2, 10**9, 10**9 + 1, 2 * 10**9, 5 * 10**9]) == 0.0
    bursts = [burst * 10**10 + n * 20_000_000 for burst in range(5) for n in range(50)]
    assert nominal_rate_hz(bursts) == 0.0
    assert nominal_rate_hz([7, 7, 7, 7, 7, 7]) == 0.0
    assert nominal_rate_hz([5]) == 0.0
