"""The readers' one door: images, clouds and samples of our encodings and of foreign messages."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from foxglove_schemas_protobuf.PackedElementField_pb2 import PackedElementField
from foxglove_schemas_protobuf.PointCloud_pb2 import PointCloud
from foxglove_schemas_protobuf.RawImage_pb2 import RawImage
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from payload_samples import textured, turned_by_exif
from rosbags.typesys import Stores, get_typestore

from sensorium.agent.calibrating.image_files import read_image
from sensorium.agent.calibrating.shots import decoded_image
from sensorium.agent.reporting.pictures import thumbnail
from sensorium.drivers.frame import Encoding, MessageSchema, Modality, StreamInfo
from sensorium.drivers.payloads import images
from sensorium.drivers.payloads.payload import View
from sensorium.drivers.payloads.table import TABLE
from sensorium.errors import PayloadError
from sensorium.sync import decoding
from sensorium.sync.episode.layouts import encodings

CAMERA = StreamInfo("cam", Modality.CAMERA, Encoding.JPEG, 30.0, "cam", shape=(48, 64))


def foreign(modality: Modality, message_encoding: str, name: str) -> StreamInfo:
    schema = MessageSchema(message_encoding, name, "", b"")
    return StreamInfo("other", modality, Encoding.MESSAGE, 10.0, "other", schema=schema)


def test_every_encoding_has_its_place_in_an_episode() -> None:
    assert encodings() == TABLE.keys()


# -- images


def saved(read: Callable[[Path], Any], path: Path) -> Callable[[bytes], Any]:
    def through_a_file(payload: bytes) -> Any:
        path.write_bytes(payload)
        return read(path)

    return through_a_file


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_no_reader_turns_an_image_by_its_exif(orientation: int, tmp_path: Path) -> None:
    plain = images.compress(Encoding.JPEG, textured(48, 64))
    turned = turned_by_exif(plain, orientation)
    # The file does ask for it: whoever obeys the orientation sees another image.
    one, other = (np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), 1)) for data in (plain, turned))
    assert not np.array_equal(one, other)
    readers: list[Callable[[bytes], Any]] = [
        lambda payload: decoding.image(CAMERA, payload),
        lambda payload: decoding.image(CAMERA, payload, View(is_grey=True)),
        lambda payload: decoding.grey(CAMERA, payload),
        lambda payload: decoding.picture(CAMERA, payload),
        lambda payload: decoding.picture(CAMERA, payload, 16),
        lambda payload: np.frombuffer(thumbnail(CAMERA, payload).uri.encode(), np.uint8),
        lambda payload: decoded_image(CAMERA, payload),
        saved(read_image, tmp_path / "image.jpg"),
    ]
    for read in readers:
        np.testing.assert_array_equal(read(turned), read(plain))


def test_sixteen_bits_reach_a_reader_whole_and_eyes_spread() -> None:
    pixels = (np.arange(48 * 64, dtype=np.uint16) * 4 + 1000).reshape(48, 64)
    info = replace(CAMERA, encoding=Encoding.MONO16)
    payload = pixels.astype("<u2").tobytes()
    np.testing.assert_array_equal(decoding.image(info, payload), pixels)
    np.testing.assert_array_equal(decoding.grey(info, payload), pixels >> 8)
    shown = decoding.picture(info, payload)
    assert shown.dtype == np.uint8
    assert (int(shown.min()), int(shown.max())) == (0, 255)


def test_depth_is_shown_in_colours_and_black_where_nothing_was_measured() -> None:
    depth = np.full((48, 64), 1500, np.uint16)
    depth[:, :20] = 4000
    depth[0, 0] = 0
    info = replace(CAMERA, modality=Modality.DEPTH, encoding=Encoding.MONO16)
    shown = decoding.picture(info, depth.astype("<u2").tobytes())
    assert shown.shape == (48, 64, 3)
    assert shown[0, 0].tolist() == [0, 0, 0]
    near, far = shown[10, 50].astype(int), shown[10, 5].astype(int)
    assert near[2] > near[0]  # red
    assert far[0] > far[2]  # blue


@pytest.mark.parametrize(
    ("code", "pixel"),
    [
        ("mono8", [100]),
        ("8UC3", [10, 20, 200]),
        ("bgr8", [10, 20, 200]),
        ("rgb8", [200, 20, 10]),
        ("rgba8", [200, 20, 10, 255]),
        ("bgra8", [10, 20, 200, 255]),
    ],
)
def test_foxglove_pixels_come_as_grey_or_bgr(code: str, pixel: list[int]) -> None:
    row = bytes(pixel) * 6 + b"\xee\xee"  # two bytes of padding
    message = RawImage(width=6, height=4, step=len(row), encoding=code, data=row * 4)
    info = foreign(Modality.CAMERA, "protobuf", "foxglove.RawImage")
    found = decoding.image(info, message.SerializeToString())
    assert found.shape[:2] == (4, 6)
    assert np.unique(found.reshape(24, -1), axis=0).tolist() == [[100] if code == "mono8" else [10, 20, 200]]


def test_a_pixel_format_that_is_not_known_is_named_not_guessed() -> None:
    info = foreign(Modality.CAMERA, "protobuf", "foxglove.RawImage")
    message = RawImage(width=2, height=1, step=4, encoding="bayer_rggb12p", data=bytes(4))
    with pytest.raises(PayloadError, match="'bayer_rggb12p' is not drawn"):
        decoding.image(info, message.SerializeToString())


@pytest.mark.parametrize(
    ("code", "mosaic"),
    [
        ("bayer_rggb16", [[60000, 30000], [30000, 1000]]),
        ("bayer_bggr16", [[1000, 30000], [30000, 60000]]),
        ("bayer_gbrg16", [[30000, 1000], [60000, 30000]]),
        ("bayer_grbg16", [[30000, 60000], [1000, 30000]]),
    ],
)
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_mosaic_of_sixteen_bits_has_the_colours_of_its_pattern(
    code: str, mosaic: list[list[int]], order: str
) -> None:
    pixels = np.tile(np.asarray(mosaic, f"{order}u2"), (8, 8))
    message = foreign_image(code, pixels, is_bigendian=order == ">")
    found = decoding.image(foreign(Modality.CAMERA, "cdr", "sensor_msgs/msg/Image"), message)
    assert found.dtype == np.uint16
    assert found[4:-4, 4:-4].reshape(-1, 3).tolist() == [[1000, 30000, 60000]] * 64
    assert (
        decoding.picture(foreign(Modality.CAMERA, "cdr", "sensor_msgs/msg/Image"), message).dtype == np.uint8
    )


def foreign_image(code: str, pixels: NDArray[Any], *, is_bigendian: bool = False) -> bytes:
    store = get_typestore(Stores.ROS2_HUMBLE)
    header = store.types["std_msgs/msg/Header"](store.types["builtin_interfaces/msg/Time"](1, 2), "cam")
    height, width = pixels.shape[:2]
    step = pixels.strides[0]
    image = store.types["sensor_msgs/msg/Image"](
        header, height, width, code, int(is_bigendian), step, np.frombuffer(pixels.tobytes(), np.uint8)
    )
    return bytes(store.serialize_cdr(image, "sensor_msgs/msg/Image"))


def packed_image(data: bytes, form: str = "jpeg") -> bytes:
    store = get_typestore(Stores.ROS2_HUMBLE)
    header = store.types["std_msgs/msg/Header"](store.types["builtin_interfaces/msg/Time"](1, 2), "cam")
    image = store.types["sensor_msgs/msg/CompressedImage"](header, form, np.frombuffer(data, np.uint8))
    return bytes(store.serialize_cdr(image, "sensor_msgs/msg/CompressedImage"))


def test_depth_behind_the_header_of_its_ros_plugin_is_read() -> None:
    depth = np.arange(48 * 64, dtype=np.uint16).reshape(48, 64)
    message = packed_image(bytes(12) + images.compress(Encoding.PNG, depth), "16UC1; compressedDepth png")
    info = foreign(Modality.DEPTH, "cdr", "sensor_msgs/msg/CompressedImage")
    np.testing.assert_array_equal(decoding.image(info, message), depth)


def whatever_opencv_writes() -> dict[str, bytes]:
    rng = np.random.default_rng(5)
    found = {}
    for ending in (".jpg", ".png", ".tiff", ".webp", ".bmp"):
        for dtype in ("u1", "i2", "f8"):
            for shape in ((8, 8, 3), (1, 999, 4)):
                try:
                    done, data = cv2.imencode(ending, (rng.random(shape) * 200).astype(dtype))
                except cv2.error:
                    continue
                if done:
                    found[f"{ending} {dtype} {shape}"] = data.tobytes()
    return found


def test_no_compressed_image_raises_anything_but_a_payload_error() -> None:
    """Whatever a message holds: images of all types, cut, empty, changed, a size beyond any sensor's."""
    rng = np.random.default_rng(6)
    info = foreign(Modality.CAMERA, "cdr", "sensor_msgs/msg/CompressedImage")
    kinds, shown, refused = whatever_opencv_writes(), set(), 0
    for name, data in kinds.items():
        changed = bytearray(data)
        changed[int(rng.integers(min(40, len(data))))] = int(rng.integers(256))
        for held in (data, data[: len(data) // 2], bytes(changed), b""):
            message = packed_image(held)
            for payload in (message, message[: len(message) // 2]):
                for read in (decoding.image, decoding.grey, decoding.picture, thumbnail):
                    try:
                        read(info, payload)
                        shown.add(name)
                    except PayloadError:
                        refused += 1
    assert len(shown) == len(kinds)
    assert refused > len(kinds)


@pytest.mark.parametrize("ending", [".jpg", ".png"])
def test_an_image_that_claims_more_pixels_than_its_bytes_can_hold_is_not_unpacked(ending: str) -> None:
    data = bytearray(cv2.imencode(ending, np.zeros((16, 16), np.uint8))[1].tobytes())
    if ending == ".png":
        data[16:24] = (60000).to_bytes(4, "big") * 2
    else:
        at = data.index(b"\xff\xc0")
        data[at + 5 : at + 9] = (60000).to_bytes(2, "big") * 2
    with pytest.raises(PayloadError, match="claim 3600000000 pixels"):
        images.decompress(bytes(data))


@pytest.mark.parametrize("shape", [(0, 0), (0, 4), (4, 0)])
def test_an_image_without_pixels_is_named(shape: tuple[int, int]) -> None:
    message = foreign_image("mono8", np.zeros(shape, np.uint8))
    for read in (decoding.image, decoding.grey, decoding.picture):
        with pytest.raises(PayloadError):
            read(foreign(Modality.CAMERA, "cdr", "sensor_msgs/msg/Image"), message)


# -- clouds


def points(count: int = 5) -> NDArray[np.float32]:
    return np.arange(count * 4, dtype=np.float32).reshape(count, 4)


def foxglove_cloud(rows: NDArray[np.float32]) -> PointCloud:
    names = ("x", "y", "z", "intensity")
    fields = [
        PackedElementField(name=name, offset=4 * at, type=PackedElementField.FLOAT32)
        for at, name in enumerate(names)
    ]
    return PointCloud(point_stride=16, fields=fields, data=rows.tobytes())


def test_a_foxglove_cloud_comes_in_its_frame() -> None:
    info = foreign(Modality.LIDAR, "protobuf", "foxglove.PointCloud")
    message = foxglove_cloud(points())
    np.testing.assert_array_equal(decoding.cloud(info, message.SerializeToString()).points, points())
    message.pose.position.x = 2.0
    message.pose.orientation.z = message.pose.orientation.w = np.sqrt(0.5)  # a quarter turn to the left
    found = decoding.cloud(info, message.SerializeToString()).points
    expected = points().copy()
    expected[:, 0], expected[:, 1] = 2.0 - points()[:, 1], points()[:, 0]
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("padding", [0, 6])
@pytest.mark.parametrize("is_bigendian", [False, True])
def test_a_ros_cloud_is_read_by_its_fields(padding: int, is_bigendian: bool) -> None:
    rosbags = pytest.importorskip("rosbags.typesys", reason="rosbags is not installed")
    store = rosbags.get_typestore(rosbags.Stores.ROS2_HUMBLE)
    types = store.types
    order = ">" if is_bigendian else "<"
    layout = np.dtype([("ring", "u1"), ("y", order + "f8"), ("x", order + "f4"), ("z", order + "f4")])
    rows = np.zeros((2, 3), layout)
    rows["x"], rows["y"], rows["z"] = 1.0, np.arange(6.0).reshape(2, 3), -2.0
    data = b"".join(row.tobytes() + bytes(padding) for row in rows)
    numbers = {"ring": 2, "y": 8, "x": 7, "z": 7}
    field_type, offsets = types["sensor_msgs/msg/PointField"], layout.fields
    assert offsets is not None
    fields = [field_type(name, offsets[name][1], kind, 1) for name, kind in numbers.items()]
    header = types["std_msgs/msg/Header"](types["builtin_interfaces/msg/Time"](1, 2), "lidar")
    message = types["sensor_msgs/msg/PointCloud2"](
        header,
        2,
        3,
        fields,
        is_bigendian,
        layout.itemsize,
        3 * layout.itemsize + padding,
        np.frombuffer(data, np.uint8),
        True,
    )
    payload = bytes(store.serialize_cdr(message, message.__msgtype__))
    info = foreign(Modality.LIDAR, "cdr", "sensor_msgs/msg/PointCloud2")
    found = decoding.cloud(info, payload).points
    assert found.tolist() == [[1.0, float(y), -2.0, 0.0] for y in range(6)]


def test_a_cloud_without_coordinates_is_refused_with_its_fields() -> None:
    info = foreign(Modality.LIDAR, "protobuf", "foxglove.PointCloud")
    message = foxglove_cloud(points())
    message.fields[2].name = "height"
    with pytest.raises(PayloadError, match="fields x, y, height, intensity has no x, y, z"):
        decoding.cloud(info, message.SerializeToString())


def test_points_of_our_own_come_as_they_were() -> None:
    info = StreamInfo("points", Modality.LIDAR, Encoding.POINTS, 10.0, "lidar")
    found = decoding.cloud(info, points().tobytes())
    np.testing.assert_array_equal(found.points, points())
    assert found.ring is None
    assert found.since_ns is None


# -- damage

FOREIGN = [
    foreign(modality, dialect, name)
    for modality, dialect, name in (
        (Modality.CAMERA, "protobuf", "foxglove.RawImage"),
        (Modality.CAMERA, "protobuf", "foxglove.CompressedImage"),
        (Modality.LIDAR, "protobuf", "foxglove.PointCloud"),
        (Modality.CAMERA, "ros1", "sensor_msgs/Image"),
        (Modality.CAMERA, "ros1", "sensor_msgs/CompressedImage"),
        (Modality.LIDAR, "ros1", "sensor_msgs/PointCloud2"),
        (Modality.CAMERA, "cdr", "sensor_msgs/msg/Image"),
        (Modality.LIDAR, "cdr", "sensor_msgs/msg/PointCloud2"),
        (Modality.CAMERA, "json", "foxglove.RawImage"),
    )
]


def mutated(payload: bytes, cuts: list[tuple[int, int]]) -> bytes:
    data = bytearray(payload)
    for at, value in cuts:
        data[at % len(data)] = value
    return bytes(data)


def said_of(read: Callable[[StreamInfo, bytes], object], info: StreamInfo, payload: bytes) -> str:
    """Return what a reader says against a payload, or the stream's name if it reads it."""
    try:
        read(info, payload)
    except PayloadError as err:
        return str(err)
    return info.name


READERS = (decoding.image, decoding.cloud, decoding.picture, decoding.grey)


@settings(deadline=None)  # the first call imports rosbags
@given(st.binary(max_size=200))
def test_random_bytes_are_read_or_refused_by_the_streams_name(payload: bytes) -> None:
    for info in FOREIGN:
        assert all(info.name in said_of(read, info, payload) for read in READERS)
        assert decoding.samples(info, payload, 1) is None


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4))
def test_damaged_messages_are_read_or_refused_by_the_streams_name(cuts: list[tuple[int, int]]) -> None:
    image = RawImage(width=6, height=4, step=18, encoding="rgb8", data=bytes(72)).SerializeToString()
    cloud = foxglove_cloud(points()).SerializeToString()
    for payload in (mutated(image, cuts), mutated(cloud, cuts)):
        for info in FOREIGN[:3]:
            assert all(info.name in said_of(read, info, payload) for read in READERS)
