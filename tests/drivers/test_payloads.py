"""The table of encodings: sizes, checks, decoding, codecs, and what damaged bytes do."""

import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from payload_samples import textured, turned_by_exif

from sensorium.drivers.devices.opencv.driver import PictureForm
from sensorium.drivers.frame import Column, Encoding, MessageSchema, Modality, StreamInfo
from sensorium.drivers.payloads import audio, images, samples, table
from sensorium.drivers.payloads.decoder import Decoder
from sensorium.drivers.payloads.payload import Payload, Restore, View
from sensorium.errors import ConfigError, PayloadError

IMU = StreamInfo(
    "imu",
    Modality.IMU,
    Encoding.COLUMNS,
    200.0,
    "imu",
    columns=(Column("gyro_x", "rad/s", "<i2", 0.001), Column("stamp", "ns", "<i8"), Column("t", "K", "<f4")),
)
SOUND = StreamInfo("mic", Modality.AUDIO, Encoding.PCM_S16LE, 48_000.0, "mic", shape=(2,))
RAW = StreamInfo("cam", Modality.CAMERA, Encoding.BGR8, 30.0, "cam", shape=(6, 8, 3))
JPEG = StreamInfo("cam", Modality.CAMERA, Encoding.JPEG, 30.0, "cam", shape=(48, 64), max_payload_bytes=1000)
POINTS = StreamInfo("cloud", Modality.LIDAR, Encoding.POINTS, 10.0, "cloud", max_payload_bytes=1600)
FOREIGN = StreamInfo(
    "msg",
    Modality.OTHER,
    Encoding.MESSAGE,
    5.0,
    "msg",
    max_payload_bytes=100,
    schema=MessageSchema("ros1", "std_msgs/Float64", "ros1msg", b""),
)


# -- declarations


def test_columns_audio_and_raw_images_declare_their_exact_rate_and_others_their_bound() -> None:
    assert table.declared_bytes_per_s(IMU) == 200.0 * 14
    assert table.declared_bytes_per_s(SOUND) == 48_000.0 * 4
    assert table.declared_bytes_per_s(RAW) == 30.0 * 6 * 8 * 3
    assert table.declared_bytes_per_s(JPEG) == 30.0 * 1000
    assert table.declared_bytes_per_s(replace(POINTS, frame_rate_hz=2.0)) == 2.0 * 1600
    assert table.declared_bytes_per_s(FOREIGN) == 5.0 * 100
    assert table.declared_bytes_per_s(replace(IMU, rate_hz=0.0)) == 0.0


def test_of_a_declaration_that_is_wrong_the_bound_is_its_largest_payload() -> None:
    for wrong in (replace(RAW, shape=()), replace(SOUND, shape=(0,)), replace(RAW, encoding="bgr9")):
        assert table.declared_bytes_per_s(wrong) == wrong.message_rate_hz * wrong.max_payload_bytes
        assert table.largest_payload_bytes(wrong) == wrong.max_payload_bytes


@pytest.mark.parametrize(
    ("info", "complaint"),
    [
        (replace(RAW, shape=(6,)), "needs shape"),
        (replace(RAW, shape=(6, 8, 4)), "needs shape"),
        (replace(RAW, shape=(0, 8)), "needs shape"),
        (replace(SOUND, shape=()), "needs shape"),
        (replace(RAW, max_payload_bytes=100), "max_payload_bytes of 100"),
        (replace(RAW, encoding="bgr9"), "has no place"),
        (replace(RAW, restores_to="mono8"), "it is plain"),
    ],
)
def test_a_declaration_without_what_its_layout_needs_is_refused(info: StreamInfo, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        table.check_stream(info)


def test_a_payload_must_have_the_size_of_its_samples() -> None:
    for info, good, count in ((IMU, bytes(28), 2), (SOUND, bytes(40), 10), (RAW, bytes(144), 1)):
        check = table.payload_check(info)
        check(good, count)
        for bad in (good[:-1], good + b"\0", b""):
            with pytest.raises(PayloadError, match=rf"{info.name} has {len(bad)} bytes"):
                check(bad, count)
    table.payload_check(POINTS)(bytes(32), 1)
    with pytest.raises(PayloadError, match="multiple of 16"):
        table.payload_check(POINTS)(bytes(33), 1)


def test_looking_an_encoding_up_loads_no_image_library() -> None:
    script = "import sys, sensorium.drivers.payloads.table; sys.exit('cv2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], timeout=60, check=False).returncode == 0


# -- samples


@given(st.lists(st.integers(-32768, 32767), min_size=1, max_size=50))
def test_columns_decode_to_the_values_that_were_encoded(raw: list[int]) -> None:
    values = np.zeros((len(raw), 3))
    values[:, 0] = np.array(raw) * 0.001
    values[:, 2] = np.linspace(0, 1, len(raw)).astype(np.float32)
    payload = samples.encode_columns(IMU, values)
    decoded = Decoder(IMU).samples(payload, len(raw))
    assert decoded is not None
    assert np.array_equal(decoded, values)


@given(st.binary(min_size=24, max_size=24), st.sampled_from(["<i2", "<u4", "<f4", "<f8"]))
def test_columns_of_one_type_read_as_those_of_mixed_types(payload: bytes, dtype: str) -> None:
    count = 24 // np.dtype(dtype).itemsize // 3
    scales = (0.1, -3.0, 9.80665)
    same = tuple(Column(name, "", dtype, scale) for name, scale in zip("abc", scales, strict=True))
    mixed = replace(IMU, columns=(*same, Column("d", "", "<i1")))
    used = payload[: 3 * count * np.dtype(dtype).itemsize]
    with np.errstate(invalid="ignore", over="ignore"):
        found = Decoder(replace(IMU, columns=same)).samples(used, count)
        expected = Decoder(mixed).samples(used + bytes(count), count)
    assert found is not None
    assert expected is not None
    np.testing.assert_array_equal(found, expected[:, :3])


def test_columns_may_share_a_name() -> None:
    info = replace(IMU, columns=(Column("x", "", "<i2"), Column("x", "", "<i4")))
    decoded = Decoder(info).samples(bytes([1, 0, 2, 0, 0, 0]), 1)
    assert decoded is not None
    assert decoded.tolist() == [[1.0, 2.0]]


def test_raw_columns_keep_nanoseconds_that_a_float_would_round() -> None:
    at_ns = 1_764_500_000_123_456_789
    payload = bytes(2) + at_ns.to_bytes(8, "little") + bytes(4)
    assert Decoder(IMU).columns(payload, 1)[1].tolist() == [at_ns]


def test_a_value_that_does_not_fit_its_column_is_refused_not_wrapped() -> None:
    with pytest.raises(PayloadError, match="gyro_x does not fit <i2"):
        samples.encode_columns(IMU, np.array([[32.768, 0.0, 0.0]]))
    with pytest.raises(PayloadError, match="stamp does not fit <i8"):
        samples.encode_columns(IMU, np.array([[0.0, 2.0**63, 0.0]]))
    with pytest.raises(PayloadError, match="gyro_x does not fit"):
        samples.encode_columns(IMU, np.array([[np.nan, 0.0, 0.0]]))


def test_audio_decodes_in_full_scales_and_clips_what_is_louder() -> None:
    payload = audio.encode_pcm(SOUND, np.array([[0.5, -1.0], [2.0, -2.0]]))
    decoded = Decoder(SOUND).samples(payload, 2)
    assert decoded is not None
    assert decoded.tolist() == [[0.5, -1.0], [32767 / 32768, -1.0]]


# -- images


@pytest.mark.parametrize("encoding", [Encoding.MONO8, Encoding.BGR8, Encoding.RGB8, Encoding.PNG])
def test_a_lossless_image_decodes_to_the_pixels_that_were_encoded(encoding: str) -> None:
    channels = 1 if encoding == Encoding.MONO8 else 3
    image = textured(20, 30, channels)
    info = replace(RAW, encoding=encoding, shape=(20, 30, channels))
    encode = table.payload_of(info).encode
    assert encode is not None
    assert np.array_equal(Decoder(info).pixels(encode(info, image)), image)


def test_sixteen_bits_stay_sixteen_bits() -> None:
    image = np.arange(48, dtype=np.uint16).reshape(6, 8) * 1000
    for encoding in (Encoding.MONO16, Encoding.PNG):
        info = replace(RAW, encoding=encoding, shape=(6, 8))
        encode = table.payload_of(info).encode
        assert encode is not None
        decoded = Decoder(info).pixels(encode(info, image), View(width_px=1))
        assert decoded.dtype == np.uint16
        assert np.array_equal(decoded, image)


@pytest.mark.parametrize("orientation", [3, 6, 8])
@pytest.mark.parametrize("view", [View(), View(is_grey=True), View(width_px=16), View(True, 8)])
def test_an_exif_orientation_turns_no_image(orientation: int, view: View) -> None:
    image = textured(48, 64)
    plain = images.compress(Encoding.JPEG, image)
    decoder = Decoder(JPEG)
    expected = decoder.pixels(plain, view)
    assert np.array_equal(decoder.pixels(turned_by_exif(plain, orientation), view), expected)
    assert expected.shape[0] < expected.shape[1]


def test_a_camera_whose_jpegs_are_turned_by_exif_can_be_published_as_pixels() -> None:
    plain = images.compress(Encoding.JPEG, textured(48, 64))
    for is_grey in (False, True):
        form = PictureForm(keeps_jpeg=False, is_grey=is_grey, size=(64, 48))
        assert form.payload(turned_by_exif(plain, 6)) == form.payload(plain)


def test_a_jpeg_is_decoded_reduced_for_a_narrow_view_and_never_below_it() -> None:
    payload = images.compress(Encoding.JPEG, textured(48, 64))
    decoder = Decoder(JPEG)
    assert [decoder.pixels(payload, View(width_px=width)).shape[1] for width in (64, 33, 32, 16, 8, 5)] == [
        64,
        64,
        32,
        16,
        8,
        8,
    ]


# -- damage


def complaint(read: Callable[[], object]) -> str | None:
    """Return what a decoder says against its payload; None if it reads it."""
    try:
        read()
    except PayloadError as err:
        return str(err)
    return None


@settings(deadline=None)  # the first call imports OpenCV
@given(st.binary(max_size=300), st.integers(1, 20))
def test_damaged_payloads_raise_nothing_but_payload_errors(payload: bytes, count: int) -> None:
    for info in (IMU, SOUND, RAW, JPEG, POINTS, replace(POINTS, encoding=Encoding.OUSTER)):
        decoder = Decoder(info)
        reads = (
            partial(decoder.pixels, payload),
            partial(decoder.cloud, payload),
            partial(decoder.samples, payload, count),
        )
        assert all(info.name in (complaint(read) or info.name) for read in reads)


def test_what_a_stream_is_not_cannot_be_read_from_it() -> None:
    with pytest.raises(PayloadError, match="imu: encoding columns is not an image"):
        Decoder(IMU).pixels(bytes(14))
    with pytest.raises(PayloadError, match="cam: encoding bgr8 is not a point cloud"):
        Decoder(RAW).cloud(bytes(144))
    assert Decoder(RAW).samples(bytes(144), 1) is None


# -- coded encodings


def inflate(info: StreamInfo) -> Restore:
    def restore(payload: bytes | memoryview, count: int) -> bytes:
        try:
            return zlib.decompress(payload)
        except zlib.error as err:
            raise PayloadError(f"a frame of {info.name} does not inflate: {err}") from err

    return restore


@pytest.fixture
def deflate(monkeypatch: pytest.MonkeyPatch) -> str:
    """A coded encoding in the table, as a module of the folder would add it."""
    restores = frozenset({Encoding.COLUMNS, Encoding.BGR8})
    row = Payload("deflate", is_compressed=True, restores=restores, restorer=inflate)
    monkeypatch.setattr(table, "TABLE", {**table.TABLE, row.encoding: row})
    return row.encoding


def test_a_coded_stream_decodes_as_the_plain_one(deflate: str) -> None:
    coded = table.packed_as(IMU, deflate)
    payload = samples.encode_columns(IMU, np.ones((4, 3)))
    assert coded.plain_encoding == Encoding.COLUMNS
    assert table.plain_of(coded) == IMU
    assert Decoder(coded).plain(zlib.compress(payload), 4) == payload
    decoded = Decoder(coded).samples(zlib.compress(payload), 4)
    assert decoded is not None
    assert np.array_equal(decoded, np.ones((4, 3)))


def test_a_coded_stream_declares_the_rate_of_the_plain_one(deflate: str) -> None:
    coded = table.packed_as(IMU, deflate)
    assert table.declared_bytes_per_s(coded) == table.declared_bytes_per_s(IMU)
    assert table.is_compressed(coded)
    assert not table.is_compressed(IMU)


def test_an_image_packed_as_jpeg_restores_to_nothing_and_decodes_itself() -> None:
    packed = table.packed_as(images.JPEG.declare(RAW), Encoding.JPEG)
    payload = images.JPEG.packer(RAW, 90)(textured(6, 8).tobytes(), 1)
    assert packed.restores_to == ""
    assert payload is not None
    assert Decoder(packed).pixels(payload).shape == (6, 8, 3)


def test_a_coded_encoding_restores_only_to_what_it_can(deflate: str) -> None:
    with pytest.raises(ConfigError, match="but to bgr8, columns"):
        table.packed_as(SOUND, deflate)
    with pytest.raises(ConfigError, match="must say what encoding it restores to"):
        table.check_stream(replace(RAW, encoding=deflate))


def test_a_coded_payload_that_restores_to_another_size_is_refused(deflate: str) -> None:
    coded = table.packed_as(RAW, deflate)
    with pytest.raises(PayloadError, match="cam has 10 bytes"):
        Decoder(coded).pixels(zlib.compress(bytes(10)))
    with pytest.raises(PayloadError, match="does not inflate"):
        Decoder(coded).pixels(b"garbage")
