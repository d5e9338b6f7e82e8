"""Raw images to video and back, and video that arrives compressed."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sensorium.drivers.frame import COUNTER_GAP, Encoding, Frame, Loss, Modality, Place, StreamInfo, stamps
from sensorium.drivers.payloads.annexb import FrameNumbers, is_annexb, is_key_frame, nal_units, parameter_sets
from sensorium.drivers.payloads.choice import CodecChoice
from sensorium.drivers.payloads.decoder import Decoder
from sensorium.drivers.stages import CodecStage, Pipeline
from sensorium.drivers.video_stage import VideoStage
from sensorium.errors import ConfigError, PayloadError

av = pytest.importorskip("av")

CAM = StreamInfo("cam", Modality.CAMERA, Encoding.BGR8, 10.0, "cam", shape=(96, 128, 3))
GREY = replace(CAM, encoding=Encoding.MONO8, shape=(96, 128))
LOSSY = ("h264", "h265", "av1")
GOP = 10
"""Frames from key frame to key frame at 10 Hz."""


def _image(index: int, info: StreamInfo = CAM) -> NDArray[np.uint8]:
    """Return a coloured ramp that moves, with a square that moves against it."""
    height, width = info.shape[:2]
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([(columns + 3 * index) % 256, rows * 2 % 256, np.full_like(rows, 60)], axis=-1)
    image[20:40, 5 * index % 80 : 5 * index % 80 + 20] = (30, 200, 220)
    pixels = image if len(info.shape) == 3 else image[..., 0]
    return np.ascontiguousarray(pixels, np.uint8)


def _frame(index: int, info: StreamInfo = CAM) -> Frame:
    return Frame(info.name, index, 1, None, stamps(1000 * index), _image(index, info).tobytes())


def _pipeline(codec: str, info: StreamInfo = CAM) -> Pipeline:
    name, _, level = codec.partition(":")
    choice = CodecChoice(name, int(level) if level else None)
    return Pipeline([CodecStage(choice, {}, must_fit=True)], [info])


def _packed(codec: str, count: int, info: StreamInfo = CAM) -> tuple[StreamInfo, list[bytes]]:
    pipeline = _pipeline(codec, info)
    found = pipeline.apply([_frame(index, info) for index in range(count)])
    assert [item.seq if isinstance(item, Frame) else item for item in found] == list(range(count))
    return pipeline.infos[0], [bytes(item.payload) for item in found if isinstance(item, Frame)]


def _error_db(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Return the peak signal to noise ratio of two images."""
    mean_square = float(np.mean((one.astype(np.float64) - other) ** 2))
    return float(10 * np.log10(255**2 / max(mean_square, 1e-9)))


@pytest.mark.parametrize("encoding", [Encoding.BGR8, Encoding.RGB8, Encoding.MONO8])
@pytest.mark.parametrize("size", [(96, 128), (33, 47)])
def test_lossless_video_gives_back_every_pixel_of_noise_and_of_still_images(
    encoding: str, size: tuple[int, int]
) -> None:
    info = replace(CAM, encoding=encoding, shape=(*size, 3) if encoding != Encoding.MONO8 else size)
    pipeline = _pipeline("h264_lossless", info)
    declared = pipeline.infos[0]
    assert declared.details["codec_is_exact"] == "true"
    decoder = Decoder(declared)
    rng = np.random.default_rng(1)
    noise = rng.integers(0, 256, info.shape, np.uint8)
    for index, image in enumerate([noise, noise, np.roll(noise, 3, axis=1), np.full_like(noise, 255)]):
        frame = Frame("cam", index, 1, None, stamps(index), image.tobytes())
        (packed,) = pipeline.apply([frame])
        assert isinstance(packed, Frame)
        assert len(packed.payload) <= declared.max_payload_bytes
        assert decoder.plain(packed.payload, 1) == image.tobytes()


@pytest.mark.parametrize(
    "info", [CAM, replace(CAM, encoding=Encoding.RGB8), GREY], ids=["bgr", "rgb", "grey"]
)
@pytest.mark.parametrize("codec", LOSSY)
def test_lossy_video_shows_nearly_the_same_and_is_much_smaller(codec: str, info: StreamInfo) -> None:
    declared, payloads = _packed(f"{codec}:18", 15, info)
    assert declared.details["codec_is_exact"] == "false"
    assert declared.restores_to == info.encoding
    decoder = Decoder(declared)
    for index, payload in enumerate(payloads):
        found = np.frombuffer(decoder.plain(payload, 1), np.uint8).reshape(info.shape)
        assert _error_db(found, _image(index, info)) > 30.0
    assert sum(map(len, payloads)) * 5 < 15 * _image(0, info).nbytes


@pytest.mark.parametrize("codec", LOSSY)
def test_plain_colours_keep_their_hue_and_brightness(codec: str) -> None:
    """The matrix must be the one that the decoder is told: a wrong one shifts pure colours by 20 and more."""
    pipeline = _pipeline(codec)
    image = np.zeros(CAM.shape, np.uint8)
    image[:, :40], image[:, 40:80], image[:, 80:] = (200, 30, 30), (30, 200, 30), (30, 30, 200)
    (packed,) = pipeline.apply([Frame("cam", 0, 1, None, stamps(0), image.tobytes())])
    assert isinstance(packed, Frame)
    found = np.frombuffer(Decoder(pipeline.infos[0]).plain(packed.payload, 1), np.uint8).reshape(CAM.shape)
    for column in (20, 60, 110):
        assert np.abs(found[48, column].astype(int) - image[48, column]).max() <= 8


@pytest.mark.parametrize("codec", [*LOSSY, "h264_lossless"])
def test_key_frames_come_every_second_and_stand_alone(codec: str) -> None:
    declared, payloads = _packed(codec, 2 * GOP + 3)
    keys = [index for index, payload in enumerate(payloads) if is_key_frame(declared.encoding, payload)]
    assert keys == [0, GOP, 2 * GOP]
    for key in keys:
        Decoder(declared).plain(payloads[key], 1)
        if declared.encoding != Encoding.AV1:
            assert is_annexb(payloads[key])
            assert parameter_sets(declared.encoding, payloads[key])


@pytest.mark.parametrize("codec", [*LOSSY, "h264_lossless"])
def test_a_frame_that_the_bus_refused_makes_the_next_one_a_key_frame(codec: str) -> None:
    pipeline = _pipeline(codec)
    decoder = Decoder(pipeline.infos[0])
    for index in range(7):
        (packed,) = pipeline.apply([_frame(index)])
        assert isinstance(packed, Frame)
        if index == 4:
            pipeline.refused(packed)
            continue
        assert is_key_frame(pipeline.infos[0].encoding, packed.payload) == (index in (0, 5))
        decoder.plain(packed.payload, 1)


@pytest.mark.parametrize("codec", [*LOSSY, "h264_lossless"])
def test_a_picture_without_its_predecessor_is_refused_until_the_next_key_frame(codec: str) -> None:
    declared, payloads = _packed(codec, GOP + 2)
    decoder = Decoder(declared)
    with pytest.raises(PayloadError, match="between key frames"):
        decoder.plain(payloads[3], 1)
    for index in (0, 1, 2):
        decoder.plain(payloads[index], 1)
    for index in (5, 6, 9):
        with pytest.raises(PayloadError):
            decoder.plain(payloads[index], 1)
    for index in (GOP, GOP + 1):
        decoder.plain(payloads[index], 1)


def test_a_level_changes_the_size_and_is_declared() -> None:
    fine, coarse = (_packed(f"h264:{level}", 5) for level in (10, 40))
    assert fine[0].details["codec"] == "h264:10"
    assert sum(map(len, fine[1])) > 3 * sum(map(len, coarse[1]))


def test_a_frame_of_another_size_is_lost_and_the_video_goes_on() -> None:
    pipeline = _pipeline("h264")
    decoder = Decoder(pipeline.infos[0])
    torn = replace(_frame(1), payload=b"torn")
    found = pipeline.apply([_frame(0), torn, _frame(2)])
    assert found[1] == Loss("cam", 1, Place.DRIVER, "could not be packed as h264")
    for item in (found[0], found[2]):
        assert isinstance(item, Frame)
        decoder.plain(item.payload, 1)


def test_odd_sizes_are_refused_for_lossy_video_with_what_holds_them() -> None:
    with pytest.raises(ConfigError, match=r"47 x 33: codec h265 needs even sizes; use h264_lossless"):
        _pipeline("h265", replace(CAM, shape=(33, 47, 3)))


def test_garbage_is_refused() -> None:
    declared, payloads = _packed("h264", 1)
    for garbage in (b"", b"\0\0\1", payloads[0][:40], b"\0\0\0\1\x65" + bytes(50)):
        with pytest.raises(PayloadError):
            Decoder(declared).plain(garbage, 1)


# -- the byte stream


def _joined(units: Sequence[bytes]) -> bytes:
    return b"".join(b"\0\0\0\1" + unit for unit in units)


def test_nal_units_join_to_the_stream_that_they_came_from() -> None:
    _, payloads = _packed("h264", 3)
    for payload in payloads:
        units = list(nal_units(payload))
        assert list(nal_units(_joined(units))) == units
        assert sum(map(len, units)) + 4 * len(units) >= len(payload)


@settings(deadline=None)
@given(data=st.binary(max_size=300))
def test_looking_at_any_bytes_raises_nothing_but_payload_errors(data: bytes) -> None:
    for encoding in (Encoding.H264, Encoding.H265, Encoding.AV1):
        is_key_frame(encoding, data)
        parameter_sets(encoding, data)
    with contextlib.suppress(PayloadError):
        FrameNumbers().follow(data)


# -- video that arrives compressed


def _sent(count: int, encoding: str = "h264") -> tuple[StreamInfo, list[bytes]]:
    """Return a camera's own video: its declaration, and access units whose parameter sets came only once."""
    info, payloads = _packed(encoding, count)
    info = replace(info, details={})
    sets = parameter_sets(info.encoding, payloads[0])
    bare = [
        _joined([unit for unit in nal_units(payload) if unit not in sets.values()]) if index else payload
        for index, payload in enumerate(payloads)
    ]
    return info, bare


def _passed(stage: VideoStage, payloads: Sequence[bytes], seqs: Sequence[int] = ()) -> Iterator[Frame | Loss]:
    for seq, payload in zip(seqs or range(len(payloads)), payloads, strict=True):
        yield from stage.apply(Frame("cam", seq, 1, stamps(7 * seq), stamps(9 * seq), payload))


@pytest.mark.parametrize("encoding", ["h264", "h265"])
def test_every_key_frame_of_a_device_gets_the_parameter_sets(encoding: str) -> None:
    info, payloads = _sent(GOP + 3, encoding)
    stage = VideoStage({}, pytest.fail)
    (declared,) = stage.declare([info])
    assert declared.details["codec"] == f"{info.encoding}, as the device sends it"
    found = [item for item in _passed(stage, payloads) if isinstance(item, Frame)]
    assert [frame.seq for frame in found] == list(range(GOP + 3))
    assert [frame.device_ticks for frame in found] == [7 * seq for seq in range(GOP + 3)]
    decoder = Decoder(declared)
    for frame in found[GOP:]:
        assert len(frame.payload) <= declared.max_payload_bytes
        decoder.plain(frame.payload, 1)
    assert [bytes(frame.payload) for frame in found[1:GOP]] == payloads[1:GOP]


def test_what_comes_before_the_first_key_frame_is_lost_and_a_key_frame_asked_for() -> None:
    info, payloads = _sent(GOP + 1)
    asked: list[str] = []
    stage = VideoStage({}, asked.append)
    stage.declare([info])
    assert (
        list(_passed(stage, payloads[4:7]))
        == [Loss("cam", 1, Place.DRIVER, "before the first key frame")] * 3
    )
    bare_key = stage.apply(Frame("cam", 3, 1, None, stamps(0), payloads[GOP]))
    assert bare_key == (Loss("cam", 1, Place.DRIVER, "key frame without parameter sets"),)
    assert asked == ["cam"] * 4


def test_a_gap_a_loss_and_a_refusal_ask_the_device_for_a_key_frame() -> None:
    info, payloads = _sent(6)
    asked: list[str] = []
    stage = VideoStage({}, asked.append)
    stage.declare([info])
    first, second, third = _passed(stage, [payloads[0], payloads[1], payloads[3]], [0, 1, 3])
    assert all(isinstance(item, Frame) for item in (first, second, third))
    assert len(asked) == 1
    assert list(stage.apply(Loss("cam", 1, Place.KERNEL, "overflow"))) == [
        Loss("cam", 1, Place.KERNEL, "overflow")
    ]
    assert isinstance(first, Frame)
    stage.refused(first)
    assert asked == ["cam"] * 3


def test_what_is_no_byte_stream_is_lost_where_it_stood() -> None:
    info, payloads = _sent(2)
    asked: list[str] = []
    stage = VideoStage({}, asked.append)
    stage.declare([info])
    lengths = len(payloads[0]).to_bytes(4, "big") + payloads[0][4:]
    found = list(_passed(stage, [payloads[0], lengths], [0, 2]))
    assert found[1:] == [
        Loss("cam", 1, Place.DEVICE, COUNTER_GAP),
        Loss("cam", 1, Place.DRIVER, "not an Annex B access unit"),
    ]


def test_other_streams_pass_the_video_stage_untouched() -> None:
    stage = VideoStage({}, pytest.fail)
    assert stage.declare([GREY]) == [GREY]
    frame: Any = Frame("cam", 5, 1, None, stamps(0), b"pixels")
    assert stage.apply(frame) == (frame,)
    stage.refused(frame)
