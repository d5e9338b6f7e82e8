"""MCAP files of others: the conformance suite, real samples, torn and damaged files."""

import json
from io import BytesIO
from pathlib import Path

import pytest
from mcap.writer import CompressionType, Writer

from sensorium.drivers.frame import ClockKind, Encoding, Frame, Modality
from sensorium.errors import SourceError
from sensorium.sync.sources import Source, open_source
from sensorium.timebase import SECOND_NS

START_NS = 1_700_000_000_000_000_000


def _frames(source: Source) -> list[Frame]:
    return [item for item in source.frames() if isinstance(item, Frame)]


def _kinds(source: Source) -> set[str]:
    return {problem.kind for problem in source.problems}


def _file(
    path: Path,
    messages: list[tuple[str, int, int, int]],
    *,
    compression: CompressionType = CompressionType.ZSTD,
    use_chunking: bool = True,
    chunk_size: int = 300,
) -> Path:
    """Write (topic, sequence, log time, publish time) as an MCAP file with small chunks."""
    stream = BytesIO()
    writer = Writer(stream, chunk_size=chunk_size, compression=compression, use_chunking=use_chunking)
    writer.start()
    schema = writer.register_schema("acme.Thing", "jsonschema", b"{}")
    channels: dict[str, int] = {}
    for topic, sequence, log_ns, publish_ns in messages:
        if topic not in channels:
            channels[topic] = writer.register_channel(topic, "json", schema, {"unit": "m"})
        payload = json.dumps({"n": sequence, "t": log_ns}).encode()
        writer.add_message(channels[topic], log_ns, payload, publish_ns, sequence)
    writer.finish()  # type: ignore[no-untyped-call]
    path.write_bytes(stream.getvalue())
    return path


def _steady(count: int = 50, step_ns: int = 10_000_000) -> list[tuple[str, int, int, int]]:
    return [
        ("/thing", index, START_NS + index * step_ns, START_NS + index * step_ns) for index in range(count)
    ]


def _expected_messages(document: Path) -> list[dict[str, str]]:
    records = json.loads(document.read_text())["records"]
    messages = [dict(record["fields"]) for record in records if record["type"] == "Message"]
    return sorted(messages, key=lambda fields: int(fields["log_time"]))


def test_the_conformance_suite_is_read_to_the_last_message(shared_data: Path) -> None:
    files = sorted((shared_data / "mcap_conformance").glob("*/*.mcap"))
    assert len(files) >= 200
    for file in files:
        expected = _expected_messages(file.with_suffix(".json"))
        frames = _frames(open_source(file))
        assert [int(frame.arrival_ns[0]) for frame in frames] == [int(one["log_time"]) for one in expected], (
            file
        )
        assert [list(frame.payload) for frame in frames] == [
            [int(byte) for byte in one["data"]] for one in expected
        ], file


def test_schema_encoding_and_channel_metadata_pass_as_found(shared_data: Path) -> None:
    folder = shared_data / "mcap_conformance" / "OneMessage"
    (info,) = open_source(folder / "OneMessage-ch-chx-mx-rch-rsh-st-sum.mcap").streams
    assert info.encoding == Encoding.MESSAGE
    assert info.schema is not None
    assert (info.schema.message_encoding, info.schema.name, info.schema.encoding) == ("a", "Example", "c")
    assert info.schema.data == bytes([4, 5, 6])
    assert info.details["metadata.foo"] == "bar"


@pytest.mark.parametrize(("name", "count"), [("custom-camera-model", 30), ("example", 111)])
def test_real_samples_are_read_whole(shared_data: Path, name: str, count: int) -> None:
    source = open_source(shared_data / "mcap_samples" / f"{name}.mcap")
    assert len(_frames(source)) == count


def test_a_ros2_camera_in_an_mcap_is_a_personal_camera_with_its_own_clock(shared_data: Path) -> None:
    source = open_source(shared_data / "mcap_samples" / "custom-camera-model.mcap")
    image = next(info for info in source.streams if info.name == "image_compressed")
    assert image.modality is Modality.CAMERA
    assert image.is_personal
    assert image.clock.kind is ClockKind.FREE
    assert (source.end_ns - source.start_ns) / SECOND_NS == pytest.approx(0.9, abs=0.01)


@pytest.mark.parametrize("compression", list(CompressionType))
@pytest.mark.parametrize("use_chunking", [True, False])
def test_every_layout_gives_the_same_frames(
    tmp_path: Path, compression: CompressionType, use_chunking: bool
) -> None:
    path = _file(tmp_path / "x.mcap", _steady(), compression=compression, use_chunking=use_chunking)
    source = open_source(path)
    frames = _frames(source)
    assert [frame.seq for frame in frames] == list(range(50))
    assert [int(frame.arrival_ns[0]) for frame in frames] == [log_ns for _, _, log_ns, _ in _steady()]
    assert source.streams[0].rate_hz == 100.0
    assert source.problems == ()


def test_messages_come_by_arrival_even_when_chunks_overlap(tmp_path: Path) -> None:
    late = [("/late", index, START_NS + index * 7, START_NS + index * 7) for index in range(200)]
    early = [("/early", index, START_NS + index * 5, START_NS + index * 5) for index in range(200)]
    source = open_source(_file(tmp_path / "x.mcap", late + early))
    arrivals = [int(frame.arrival_ns[0]) for frame in _frames(source)]
    assert arrivals == sorted(log_ns for _, _, log_ns, _ in late + early)


def test_sequence_numbers_that_count_are_kept_with_their_gaps(tmp_path: Path) -> None:
    messages = [("/a", 100 + n, START_NS + n, START_NS + n) for n in (0, 1, 2, 5, 6)]
    messages += [("/b", 3, START_NS + 9, START_NS + 9)]
    source = open_source(_file(tmp_path / "x.mcap", messages))
    assert [frame.seq for frame in _frames(source) if frame.stream == "a"] == [0, 1, 2, 5, 6]
    assert next(info for info in source.streams if info.name == "a").details["first_sequence"] == "100"


@pytest.mark.parametrize(
    "sequences",
    [[0, 0, 0, 0], [3, 2, 1, 0], [0, 1000, 2000, 3000]],
    ids=["always zero", "falling", "ids"],
)
def test_sequence_numbers_that_do_not_count_are_replaced(tmp_path: Path, sequences: list[int]) -> None:
    messages = [("/a", number, START_NS + n, START_NS + n) for n, number in enumerate(sequences)]
    assert [frame.seq for frame in _frames(open_source(_file(tmp_path / "x.mcap", messages)))] == [0, 1, 2, 3]


def test_a_counter_over_the_whole_file_is_no_loss_of_every_channel(tmp_path: Path) -> None:
    messages = [("/ab"[: 2 + n % 2], n, START_NS + n, START_NS + n) for n in range(20)]
    frames = _frames(open_source(_file(tmp_path / "x.mcap", messages)))
    for stream in ("a", "ab"):
        assert [frame.seq for frame in frames if frame.stream == stream] == list(range(10))


@pytest.mark.parametrize(
    ("lag_ns", "kind"),
    [(0, ClockKind.NONE), (2_000_000, ClockKind.HOST), (START_NS, ClockKind.FREE), (-5, ClockKind.FREE)],
    ids=["equal", "a little earlier", "since boot", "later than its arrival"],
)
def test_publish_time_is_a_clock_only_where_it_differs(tmp_path: Path, lag_ns: int, kind: ClockKind) -> None:
    messages = [("/a", n, START_NS + n, START_NS + n - lag_ns) for n in range(5)]
    source = open_source(_file(tmp_path / "x.mcap", messages))
    assert source.streams[0].clock.kind is kind
    for frame in _frames(source):
        if kind is not ClockKind.NONE:
            assert frame.device_ticks is not None
            assert frame.device_ticks[0] == frame.arrival_ns[0] - lag_ns
        else:
            assert frame.device_ticks is None


@pytest.mark.parametrize("compression", list(CompressionType))
def test_a_torn_file_gives_the_messages_before_the_tear(tmp_path: Path, compression: CompressionType) -> None:
    """Also those of the torn chunk: a recorder that died in its only chunk has not lost everything."""
    whole = _file(
        tmp_path / "whole.mcap", _steady(4000), compression=compression, chunk_size=1 << 20
    ).read_bytes()
    torn = tmp_path / "torn.mcap"
    torn.write_bytes(whole[: len(whole) // 2])
    source = open_source(torn)
    seqs = [frame.seq for frame in _frames(source)]
    assert _kinds(source) == {"truncated"}
    assert seqs == list(range(len(seqs)))
    assert len(seqs) > 400


def test_a_file_without_its_summary_is_complete_but_for_the_note(tmp_path: Path) -> None:
    whole = _file(tmp_path / "whole.mcap", _steady()).read_bytes()
    (tmp_path / "cut.mcap").write_bytes(whole[:-100])
    source = open_source(tmp_path / "cut.mcap")
    assert len(_frames(source)) == 50
    assert _kinds(source) == {"truncated"}


def test_a_chunk_that_fails_its_checksum_is_left_out_and_reported(tmp_path: Path) -> None:
    whole = bytearray(_file(tmp_path / "x.mcap", _steady(), compression=CompressionType.NONE).read_bytes())
    at = whole.index(b'{"n": 20')
    whole[at + 2] ^= 1
    (tmp_path / "bad.mcap").write_bytes(whole)
    source = open_source(tmp_path / "bad.mcap")
    assert _kinds(source) == {"bad_checksum"}
    assert 0 < len(_frames(source)) < 50


def test_part_of_an_episode_is_not_opened_behind_its_consent(tmp_path: Path) -> None:
    path = _file(tmp_path / "data.mcap", _steady())
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(SourceError, match="give its folder"):
        open_source(path)


def test_attachments_are_named_as_not_replayed(shared_data: Path) -> None:
    source = open_source(shared_data / "mcap_conformance" / "OneAttachment" / "OneAttachment.mcap")
    assert _kinds(source) == {"empty", "not_carried"}
