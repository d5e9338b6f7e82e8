import itertools
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from episode_samples import STREAMS, TIMELINE, all_frames, begin_episode, make_frame, run_doctor, write_frames
from foxglove_schemas_protobuf.FrameTransforms_pb2 import FrameTransforms
from mcap.reader import make_reader
from mcap_protobuf.decoder import DecoderFactory

from sensorium.calibration.edges import Edge
from sensorium.calibration.geometry import Intrinsics, rotation_exp, transform
from sensorium.calibration.rig_document import RigCalibration
from sensorium.drivers.frame import Frame, StreamInfo
from sensorium.errors import ConfigError, EpisodeError
from sensorium.sync.align import Match, Matched, SyncRow
from sensorium.sync.clocks.model import ClockModel, Stamped, Uncertainty
from sensorium.sync.episode.entries import EpisodeEvent
from sensorium.sync.episode.files import RESERVED_STREAMS
from sensorium.sync.episode.reader import Episode
from sensorium.sync.episode.recorded import RecordedFrame
from sensorium.sync.episode.spool import Spool
from sensorium.sync.episode.writer import EpisodeWriter, WriterPolicy
from sensorium.timebase import SECOND_NS, BaseReading

PERSONAL = {info.name for info in STREAMS if info.is_personal}


def assert_same(found: RecordedFrame, frame: Frame, stamped: Stamped) -> None:
    assert (found.frame.stream, found.frame.seq, found.frame.count) == (frame.stream, frame.seq, frame.count)
    assert found.frame.payload == frame.payload
    assert found.frame.meta == frame.meta
    np.testing.assert_array_equal(found.frame.arrival_ns, frame.arrival_ns)
    np.testing.assert_array_equal(found.stamped.capture_ns, stamped.capture_ns)
    assert (found.stamped.uncertainty, found.stamped.epoch) == (stamped.uncertainty, stamped.epoch)
    assert (found.frame.device_ticks is None) == (frame.device_ticks is None)
    if frame.device_ticks is not None:
        np.testing.assert_array_equal(found.frame.device_ticks, frame.device_ticks)


def write_one_of_everything(writer: EpisodeWriter) -> None:
    uncertainty = Uncertainty(1.0, 2.0, 3.0)
    writer.write_event(EpisodeEvent(SECOND_NS, "mark", "", "door opened", {"by": "operator"}))
    writer.write_base(BaseReading(SECOND_NS, 2, 3, 4, 5))
    writer.write_model(
        "imu", ClockModel(0, "envelope", -5, 7, 1000.5, 12.5, uncertainty), SECOND_NS, instance=3
    )
    matches = (Matched("imu", Match.MATCHED, 4, -7, 3, 1.5), Matched("mic", Match.SILENT))
    writer.write_row(SyncRow(9, SECOND_NS, matches))
    writer.write_message("/tf_static", FrameTransforms(), SECOND_NS)
    writer.attach("calibration.yaml", "application/yaml", b"id: 7\n", SECOND_NS)


def test_frames_come_back_exactly_and_in_order_of_arrival(tmp_path: Path) -> None:
    writer = begin_episode(tmp_path, WriterPolicy(chunk_bytes=20_000))
    written = write_frames(writer, frames=60)
    writer.close()
    with Episode(writer.folder) as episode:
        assert episode.timeline == TIMELINE
        assert episode.streams == {info.name: info for info in STREAMS} | episode.streams
        found = list(episode.frames())
    arrivals = [int(entry.frame.arrival_ns[-1]) for entry in found]
    assert arrivals == sorted(arrivals)
    assert {entry.instance for entry in found} == {3}
    expected = {(frame.stream, frame.seq): (frame, stamped) for frame, stamped in written}
    assert len(found) == len(expected)
    for entry in found:
        assert_same(entry, *expected[entry.frame.stream, entry.frame.seq])


def test_named_streams_are_read_alone_and_unknown_ones_refused(tmp_path: Path) -> None:
    writer = begin_episode(tmp_path)
    write_frames(writer, frames=3)
    writer.close()
    with Episode(writer.folder) as episode:
        assert Counter(entry.frame.stream for entry in episode.frames(["imu", "cam"])) == {"imu": 3, "cam": 3}
        with pytest.raises(EpisodeError, match="no stream lidra"):
            next(episode.frames(["lidra"]))


def test_a_stream_that_came_late_puts_no_other_out_of_order(tmp_path: Path) -> None:
    by_name = {info.name: info for info in STREAMS}
    rng = np.random.default_rng(1)
    writer = begin_episode(tmp_path)
    for chunk in (
        (("imu", 400),),
        (("odd", 40), ("imu", 401)),
    ):  # the second one begins 3.6 s before the first
        for name, index in chunk:
            writer.write(*make_frame(by_name[name], index, rng), instance=3)
        writer.flush()
    writer.close()
    with Episode(writer.folder) as episode:
        assert [row.seq for _, row in episode.stamps(["imu"])] == [4000, 4010]
        assert [seen.frame.seq for seen in episode.frames(["imu"])] == [4000, 4010]


def test_reading_holds_only_the_chunks_of_the_moment(tmp_path: Path) -> None:
    """Of an episode of many chunks, the first frame needs no more than the first chunk of each file."""
    writer = begin_episode(tmp_path, WriterPolicy(chunk_bytes=5_000))
    write_frames(writer, frames=100)
    writer.close()
    with Episode(writer.folder) as episode:
        frames = episode.frames()
        next(frames)
        waiting = frames.gi_frame.f_locals["waiting"]  # type: ignore[attr-defined]
        assert 0 < len(waiting) < 0.2 * 100 * len(STREAMS)


def test_what_is_noted_beside_the_frames_comes_back(tmp_path: Path) -> None:
    writer = begin_episode(tmp_path)
    write_one_of_everything(writer)
    writer.close()
    with Episode(writer.folder) as episode:
        (row,) = episode.rows()
        (event,) = episode.events()
        (base,) = episode.bases()
        (entry,) = episode.models()
        assert episode.attachment("calibration.yaml") == b"id: 7\n"
    matches = (Matched("imu", Match.MATCHED, 4, -7, 3, 1.5), Matched("mic", Match.SILENT))
    assert row == SyncRow(9, SECOND_NS, matches)
    assert event == EpisodeEvent(SECOND_NS, "mark", "", "door opened", {"by": "operator"})
    assert base == BaseReading(SECOND_NS, 2, 3, 4, 5)
    expected = ClockModel(0, "envelope", -5, 7, 1000.5, 12.5, Uncertainty(1.0, 2.0, 3.0))
    assert (entry.stream, entry.instance, entry.host_ns, entry.model) == ("imu", 3, SECOND_NS, expected)


def test_each_personal_stream_has_a_file_of_its_own(tmp_path: Path) -> None:
    writer = begin_episode(tmp_path)
    write_frames(writer, frames=2)
    writer.close()
    assert {path.name for path in writer.folder.iterdir()} == {"data.mcap"} | {
        f"{name}.mcap" for name in PERSONAL
    }
    with (writer.folder / "data.mcap").open("rb") as file:
        topics = {channel.topic for _, channel, _ in make_reader(file).iter_messages()}
    assert topics.isdisjoint({f"/{name}" for name in PERSONAL})


def test_the_mcap_library_reads_every_message_with_decoded_schemas(tmp_path: Path) -> None:
    writer = begin_episode(tmp_path, WriterPolicy(chunk_bytes=20_000))
    written = write_frames(writer, frames=30)
    write_one_of_everything(writer)
    writer.close()
    by_sequence = {(frame.stream, frame.seq): (frame, stamped) for frame, stamped in written}
    seen = 0
    for path in writer.folder.glob("*.mcap"):
        with path.open("rb") as file:
            reader = make_reader(file, validate_crcs=True)
            decoders = DecoderFactory()
            for schema, channel, message in reader.iter_messages():
                if channel.message_encoding == "protobuf":
                    assert schema is not None
                    decode = decoders.decoder_for("protobuf", schema)
                    assert decode is not None
                    decoded = decode(message.data)
                    assert decoded.DESCRIPTOR.full_name == schema.name
                entry = by_sequence.get((channel.topic.removeprefix("/"), message.sequence))
                if entry is not None and not channel.topic.endswith("/stamps"):
                    frame, stamped = entry
                    offset_ns = TIMELINE.utc_minus_host_ns
                    assert message.log_time == int(frame.arrival_ns[-1]) + offset_ns
                    assert message.publish_time == int(stamped.capture_ns[0]) + offset_ns
                    seen += 1
            assert list(reader.iter_metadata())
    assert seen == len(written)


def test_pymcap_doctor_finds_nothing_wrong(tmp_path: Path) -> None:
    writer = begin_episode(tmp_path, WriterPolicy(chunk_bytes=20_000))
    write_frames(writer, frames=30)
    write_one_of_everything(writer)
    writer.close()
    for path in writer.folder.glob("*.mcap"):
        severities = {finding.get("severity") for finding in run_doctor(path)}
        assert severities.isdisjoint({"error", "warning"})


def test_the_doctor_does_find_a_flipped_bit(tmp_path: Path) -> None:
    writer = begin_episode(tmp_path)
    write_frames(writer, frames=3)
    writer.close()
    path = writer.folder / "data.mcap"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(AssertionError):
        run_doctor(path)


def test_rerun_accepts_the_files(tmp_path: Path) -> None:
    rerun = shutil.which("rerun")
    if rerun is None:
        pytest.skip("rerun is not installed (pip install rerun-sdk)")
    writer = begin_episode(tmp_path)
    write_frames(writer, frames=5)
    write_one_of_everything(writer)
    writer.close()
    for path in writer.folder.glob("*.mcap"):
        found = subprocess.run(
            [rerun, "mcap", "check", str(path)], capture_output=True, text=True, timeout=60
        )
        assert found.returncode == 0, found.stdout + found.stderr


def test_viewers_get_transforms_and_camera_models(tmp_path: Path) -> None:
    camera = Intrinsics("radtan", 640, 480, 500.0, 501.0, 320.0, 240.0, (0.1, 0.2, 0.3, 0.4))
    T_base_cam = transform(rotation_exp([0.0, 0.0, np.pi / 2]), [1.0, 2.0, 3.0])
    calibration = RigCalibration(cameras={"cam": camera}, edges=(Edge("base", "cam", T_base_cam),))
    writer = begin_episode(tmp_path)
    writer.write_calibration(calibration, SECOND_NS)
    writer.close()
    with (writer.folder / "data.mcap").open("rb") as file:
        reader = make_reader(file, decoder_factories=[DecoderFactory()])
        decoded = {channel.topic: message for _, channel, _, message in reader.iter_decoded_messages()}
    (edge,) = decoded["/tf_static"].transforms
    assert (edge.parent_frame_id, edge.child_frame_id, edge.translation.z) == ("base", "cam", 3.0)
    assert (edge.rotation.z, edge.rotation.w) == pytest.approx((np.sqrt(0.5), np.sqrt(0.5)))
    found = decoded["/cam/calibration"]
    assert list(found.K) == camera.K.ravel().tolist()
    assert (found.distortion_model, list(found.D)) == ("plumb_bob", [0.1, 0.2, 0.3, 0.4, 0.0])


def test_compressed_images_are_stored_and_numbers_compressed(tmp_path: Path) -> None:
    writer = begin_episode(tmp_path)
    write_frames(writer, frames=3)
    writer.close()
    with (writer.folder / "cam.mcap").open("rb") as file:
        summary = make_reader(file).get_summary()
    assert summary is not None
    assert {chunk.compression for chunk in summary.chunk_indexes} == {""}
    with (writer.folder / "data.mcap").open("rb") as file:
        summary = make_reader(file).get_summary()
    assert summary is not None
    assert {chunk.compression for chunk in summary.chunk_indexes} == {"", "zstd"}


def test_chunks_stay_under_their_size_unless_one_frame_is_larger(tmp_path: Path) -> None:
    writer = begin_episode(tmp_path, WriterPolicy(chunk_bytes=20_000))
    write_frames(writer, frames=60)
    writer.close()
    for path in writer.folder.glob("*.mcap"):
        with path.open("rb") as file:
            summary = make_reader(file).get_summary()
        assert summary is not None
        assert max(chunk.uncompressed_size for chunk in summary.chunk_indexes) <= 20_000


def test_a_chunk_reaches_the_disk_no_later_than_the_flush_interval(tmp_path: Path) -> None:
    policy = WriterPolicy(flush_s=1.0, sync_s=None)
    writer = begin_episode(tmp_path, policy)
    frame, stamped = make_frame(STREAMS[1], 0, np.random.default_rng(0))
    step_ns = 50_000_000
    for now_ns in range(0, 10 * SECOND_NS, step_ns):
        writer.step(now_ns)
        writer.wait()  # for the disk, which knows nothing of the clock of this test
        if now_ns == 3 * SECOND_NS:
            writer.write(frame, stamped, 0)
        samples = writer.written().get((frame.stream, 0))
        if now_ns > 3 * SECOND_NS + policy.flush_s * SECOND_NS:
            assert samples is not None
            assert (samples.samples, samples.pending_samples) == (1, 0)
        elif now_ns < 3 * SECOND_NS + policy.flush_s * SECOND_NS - step_ns and samples is not None:
            assert (samples.samples, samples.pending_samples) == (0, 1)
    writer.close()


def test_what_was_given_is_written_or_pending_or_lost(tmp_path: Path) -> None:
    writer = begin_episode(tmp_path, WriterPolicy(chunk_bytes=20_000))
    given = Counter[str]()
    for frame, stamped in all_frames(30):
        writer.write(frame, stamped, 0)
        given[frame.stream] += frame.count
        for (name, _), found in writer.written().items():
            assert found.samples + found.pending_samples + found.lost_samples == given[name]
    writer.close()
    assert {name: found.samples for (name, _), found in writer.written().items()} == given


def test_without_the_fast_checksum_the_files_are_as_sound(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
sys.modules["isal"] = None
from episode_samples import begin_episode, write_frames
from sensorium.sync.episode import checksum
assert checksum.combine_crc32 is checksum.plain_combine_crc32
writer = begin_episode(Path(sys.argv[1]))
write_frames(writer, frames=20)
writer.close()
"""
    paths = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, "-c", script, str(tmp_path)]
    subprocess.run(command, env={"PYTHONPATH": paths}, check=True, timeout=60)
    (folder,) = Spool(tmp_path / "spool").open_folders()
    for path in folder.glob("*.mcap"):
        severities = {finding.get("severity") for finding in run_doctor(path)}
        assert severities.isdisjoint({"error", "warning"})
    with Episode(folder) as episode:
        assert sum(1 for _ in episode.frames()) == 20 * len(STREAMS)


def test_an_episode_is_never_overwritten(tmp_path: Path) -> None:
    writer = begin_episode(tmp_path)
    writer.close()
    before = (writer.folder / "data.mcap").read_bytes()
    with pytest.raises(EpisodeError, match="never overwritten"):
        EpisodeWriter(writer.folder, writer.episode_id, TIMELINE)
    assert (writer.folder / "data.mcap").read_bytes() == before


def test_wrong_use_is_refused_with_the_streams_name(tmp_path: Path) -> None:
    writer = begin_episode(tmp_path)
    frame, stamped = make_frame(STREAMS[0], 0, np.random.default_rng(0))
    unknown = Frame("unknown", 0, 1, None, frame.arrival_ns, b"")
    with pytest.raises(EpisodeError, match="unknown was not declared"):
        writer.write(unknown, stamped, 0)
    bare = Frame(frame.stream, 0, 1, None, frame.arrival_ns, b"x")
    with pytest.raises(EpisodeError, match="cam carries 0 numbers"):
        writer.write(bare, stamped, 0)
    with pytest.raises(EpisodeError, match="cam changed its declaration"):
        writer.declare(StreamInfo("cam", STREAMS[0].modality, "png", 1.0, "cam"))
    for name in RESERVED_STREAMS:
        with pytest.raises(ConfigError, match=f"{name}.*reserved"):
            writer.declare(StreamInfo(name, STREAMS[0].modality, "png", 1.0, "cam"))
    writer.close()
    assert writer.written() == {}


def test_sequence_numbers_beyond_32_bits_survive(tmp_path: Path) -> None:
    writer = begin_episode(tmp_path)
    frame, stamped = make_frame(STREAMS[1], 0, np.random.default_rng(0))
    large = Frame(frame.stream, 2**40 + 5, 1, None, frame.arrival_ns, frame.payload)
    writer.write(large, stamped, 0)
    writer.close()
    with Episode(writer.folder) as episode:
        (found,) = episode.frames()
    assert found.frame.seq == 2**40 + 5


def test_folders_that_are_no_episodes_are_named(tmp_path: Path) -> None:
    with pytest.raises(EpisodeError, match="not an episode folder"):
        Episode(tmp_path / "nothing")
    with pytest.raises(EpisodeError, match=r"no data\.mcap"):
        Episode(tmp_path)
    (tmp_path / "data.mcap").write_bytes(b"PK\x03\x04 something else")
    with pytest.raises(EpisodeError, match="not an MCAP file"):
        Episode(tmp_path)


def test_a_foreign_mcap_is_named_as_such(tmp_path: Path, shared_data: Path) -> None:
    samples = sorted((shared_data / "mcap_conformance").rglob("*.mcap"))
    assert samples
    for sample in itertools.islice(samples, 0, None, 10):
        (tmp_path / "data.mcap").write_bytes(sample.read_bytes())
        with pytest.raises(EpisodeError):
            Episode(tmp_path)


def test_an_open_episode_is_not_read_but_said_to_need_recovery(tmp_path: Path) -> None:
    writer = begin_episode(tmp_path)
    write_frames(writer, frames=2)
    writer.flush()
    with pytest.raises(EpisodeError, match="recover"):
        Episode(writer.folder)
    writer.close()
