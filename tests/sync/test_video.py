from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from episode_samples import TIMELINE

from sensorium.drivers.frame import Encoding, Frame, Modality, StreamInfo, stamps
from sensorium.drivers.payloads.choice import CodecChoice
from sensorium.drivers.stages import CodecStage, Pipeline
from sensorium.errors import EpisodeError
from sensorium.sync.clocks.model import Stamped, Uncertainty
from sensorium.sync.episode import schemas
from sensorium.sync.episode.layouts import wrap
from sensorium.sync.episode.reader import Episode
from sensorium.sync.episode.ulid import new_ulid
from sensorium.sync.episode.writer import EpisodeWriter, WriterPolicy
from sensorium.sync.video import pictures
from sensorium.timebase import SECOND_NS

pytest.importorskip("av")

CAM = StreamInfo("cam", Modality.CAMERA, Encoding.MONO8, 10.0, "cam", shape=(64, 64))
FRAMES = 60
PERIOD_NS = SECOND_NS // 10


def _image(index: int) -> bytes:
    return np.random.default_rng(index).integers(0, 256, CAM.shape, np.uint8).tobytes()


@pytest.fixture(params=["h264_lossless", "none"])
def episode(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Episode]:
    """Six seconds of noise, exact, one frame a chunk; frame 33 is missing."""
    codec = request.param
    stages = [CodecStage(CodecChoice(codec), {}, must_fit=True)] if codec != "none" else []
    pipeline = Pipeline(stages, [CAM])
    writer = EpisodeWriter(
        tmp_path / "e", new_ulid(TIMELINE.utc_minus_host_ns), TIMELINE, WriterPolicy(chunk_bytes=4096)
    )
    writer.declare(pipeline.infos[0])
    for index in range(FRAMES):
        (frame,) = pipeline.apply(
            [Frame("cam", index, 1, None, stamps(index * PERIOD_NS + 999), _image(index))]
        )
        assert isinstance(frame, Frame)
        if index != 33:
            writer.write(frame, Stamped(stamps(index * PERIOD_NS), Uncertainty(1.0, 1.0, 1.0), 0), 1)
    writer.close()
    with Episode(tmp_path / "e") as opened:
        yield opened


@pytest.mark.parametrize("first", [0, 1, 9, 10, 27, 40, 59])
def test_pictures_from_any_instant_on_are_those_that_were_recorded(episode: Episode, first: int) -> None:
    last = min(first + 5, FRAMES)
    found = list(pictures(episode, "cam", first * PERIOD_NS, last * PERIOD_NS))
    assert [recorded.frame.seq for recorded, _ in found] == list(range(first, last))
    for recorded, image in found:
        assert image is not None
        assert image.tobytes() == _image(recorded.frame.seq)


def test_behind_a_missing_frame_there_is_no_picture_until_the_next_key_frame(episode: Episode) -> None:
    is_video = episode.streams["cam"].encoding == Encoding.H264
    found = {recorded.frame.seq: image for recorded, image in pictures(episode, "cam", 0, 10 * SECOND_NS)}
    assert list(found) == [index for index in range(FRAMES) if index != 33]
    for seq, image in found.items():
        if is_video and 33 < seq < 40:
            assert image is None
        else:
            assert image is not None
            assert image.tobytes() == _image(seq)


def test_reading_from_an_instant_on_leaves_earlier_chunks_out(episode: Episode) -> None:
    found = [recorded.frame.seq for recorded in episode.frames(["cam"], since_ns=50 * PERIOD_NS)]
    assert found == list(range(found[0], FRAMES))
    assert 48 <= found[0] <= 50


def test_an_unknown_stream_is_refused(episode: Episode) -> None:
    with pytest.raises(EpisodeError, match="has no stream depth; it has: cam"):
        next(pictures(episode, "depth", 0, 1))


def test_a_viewer_finds_video_with_its_format_and_its_capture_time() -> None:
    pipeline = Pipeline([CodecStage(CodecChoice("h264_lossless"), {}, must_fit=True)], [CAM])
    (frame,) = pipeline.apply([Frame("cam", 0, 1, None, stamps(0), _image(0))])
    assert isinstance(frame, Frame)
    message = schemas.FOXGLOVE["CompressedVideo"].FromString(
        wrap(pipeline.infos[0], frame, 5 * SECOND_NS + 7)
    )
    assert (message.format, message.frame_id, message.data) == ("h264", "cam", frame.payload)
    assert (message.timestamp.seconds, message.timestamp.nanos) == (5, 7)
