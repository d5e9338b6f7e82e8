"""Images and point clouds in messages of somebody else's schema: ROS 1, ROS 2, Foxglove.

Layouts: sensor_msgs/Image, CompressedImage and PointCloud2 (docs.ros.org), and the Foxglove schemas of the same
things (docs.foxglove.dev).
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from sensorium.drivers.frame import StreamInfo
from sensorium.drivers.payloads.decoder import DAMAGE
from sensorium.drivers.payloads.images import as_grey_or_bgr, decompress, with_channels
from sensorium.drivers.payloads.payload import Buffer, Cloud, Pixels, View
from sensorium.errors import PayloadError
from sensorium.sync.episode import schemas
from sensorium.sync.sources.ros_types import CDR, ROS1, short_name

_BAYER = {  # OpenCV names the pattern by its second row and column, ROS by its first
    "bayer_rggb": cv2.COLOR_BayerBG2BGR,
    "bayer_bggr": cv2.COLOR_BayerRG2BGR,
    "bayer_gbrg": cv2.COLOR_BayerGR2BGR,
    "bayer_grbg": cv2.COLOR_BayerGB2BGR,
}
_TO_BGR = {
    **{f"{pattern}{bits}": conversion for pattern, conversion in _BAYER.items() for bits in (8, 16)},
    **{f"rgb{bits}": cv2.COLOR_RGB2BGR for bits in (8, 16)},
    **{f"rgba{bits}": cv2.COLOR_RGBA2BGR for bits in (8, 16)},
    **{f"bgra{bits}": cv2.COLOR_BGRA2BGR for bits in (8, 16)},
    "yuv422": cv2.COLOR_YUV2BGR_UYVY,
    "uyvy": cv2.COLOR_YUV2BGR_UYVY,
    "yuv422_yuy2": cv2.COLOR_YUV2BGR_YUY2,
    "yuyv": cv2.COLOR_YUV2BGR_YUY2,
}
_TWO_BYTES = frozenset({"yuv422", "uyvy", "yuv422_yuy2", "yuyv"})
_NAMED = {"mono": 1, "rgb": 3, "bgr": 3, "rgba": 4, "bgra": 4, **dict.fromkeys(_BAYER, 1)}
_BY_NAME = re.compile("(" + "|".join(sorted(_NAMED, key=len, reverse=True)) + ")(8|16)")
_BY_TYPE = re.compile(r"(8|16|32|64)([usf])c([1-4])")
_NUMBER_TYPES = {"8u": "u1", "8s": "i1", "16u": "u2", "16s": "i2", "32s": "i4", "32f": "f4", "64f": "f8"}
_DEPTH_HEADER_BYTES, _PNG_MAGIC = 12, b"\x89PNG"
_ROS_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 8: "f8"}
_FOXGLOVE_NUMBERS = {1: "u1", 2: "i1", 3: "u2", 4: "i2", 5: "u4", 6: "i4", 7: "f4", 8: "f8"}


def message_image(info: StreamInfo, payload: Buffer, view: View) -> Pixels:
    """Return (H, W) grey or (H, W, 3) BGR pixels of an image message.

    Raises:
        PayloadError: If the message is none that is understood, or damaged.
    """
    kind = _kind(info)
    if kind not in ("Image", "RawImage", "CompressedImage"):
        raise PayloadError(f"{info.name}: messages of {_schema_name(info)} are not drawn")
    with _reading(info):
        message = _parsed(info, payload, kind)
        pixels = _packed_pixels(message, view) if kind == "CompressedImage" else _raw_pixels(message)
        if not pixels.size:
            raise PayloadError(
                f"{info.name}: an image of {pixels.shape[1]}x{pixels.shape[0]} pixels shows nothing"
            )
        return with_channels(pixels, 1) if view.is_grey else pixels


def message_cloud(info: StreamInfo, payload: Buffer) -> Cloud:
    """Return the points of a cloud message.

    Raises:
        PayloadError: If the message is none that is understood, or damaged.
    """
    kind = _kind(info)
    if kind == "PointCloud2":
        with _reading(info):
            return Cloud(_ros_points(_parsed(info, payload, kind)))
    if kind == "PointCloud" and _is_foxglove(info):
        with _reading(info):
            return Cloud(_foxglove_points(_parsed(info, payload, kind)))
    raise PayloadError(f"{info.name}: {_schema_name(info)} is not drawn as a point cloud")


def _packed_pixels(message: Any, view: View) -> Pixels:
    """Return the pixels of a sensor_msgs or foxglove CompressedImage.

    The ROS plugin compressedDepth puts 12 bytes of its own in front of a PNG.
    """
    data = bytes(message.data)
    if "compressedDepth" in message.format and data[_DEPTH_HEADER_BYTES:].startswith(_PNG_MAGIC):
        data = data[_DEPTH_HEADER_BYTES:]
    return decompress(data, view)


def _schema_name(info: StreamInfo) -> str:
    assert info.schema is not None
    return info.schema.name


def _kind(info: StreamInfo) -> str:
    return short_name(_schema_name(info))


def _is_foxglove(info: StreamInfo) -> bool:
    return info.schema is not None and info.schema.message_encoding == "protobuf"


@contextmanager
def _reading(info: StreamInfo) -> Iterator[None]:
    try:
        yield
    except (*DAMAGE, DecodeError, cv2.error) as err:
        raise PayloadError(f"a message of {info.name} does not decode: {err}") from err


def _parsed(info: StreamInfo, payload: Buffer, kind: str) -> Any:
    assert info.schema is not None
    if _is_foxglove(info):
        return schemas.FOXGLOVE[kind].FromString(bytes(payload))
    dialect = info.schema.message_encoding
    if dialect not in (ROS1, CDR):
        raise PayloadError(f"messages encoded as {dialect} are not drawn")
    return _ros_message(dialect, bytes(payload), f"sensor_msgs/msg/{kind}")


def _ros_message(dialect: str, payload: bytes, type_name: str) -> Any:
    try:
        from rosbags.serde import SerdeError
    except ImportError:
        raise PayloadError("install sensorium[ros] to see ROS messages") from None
    store = _typestore(dialect)
    try:
        if dialect == ROS1:
            return store.deserialize_ros1(payload, type_name)
        return store.deserialize_cdr(payload, type_name)
    except SerdeError as err:
        raise PayloadError(str(err)) from err


@lru_cache(maxsize=2)
def _typestore(dialect: str) -> Any:
    from rosbags.typesys import Stores, get_typestore

    return get_typestore(Stores.ROS1_NOETIC if dialect == ROS1 else Stores.ROS2_HUMBLE)


def _pixel_layout(code: str) -> tuple[int, str] | None:
    """Return channels and number type of a pixel format (sensor_msgs/image_encodings.hpp), None if unknown."""
    if code in _TWO_BYTES:
        return 2, "u1"
    if named := _BY_NAME.fullmatch(code):
        return _NAMED[named[1]], "u1" if named[2] == "8" else "u2"
    if typed := _BY_TYPE.fullmatch(code):
        number = _NUMBER_TYPES.get(typed[1] + typed[2])
        return (int(typed[3]), number) if number else None
    return None


def _raw_pixels(message: Any) -> Pixels:
    """Return the pixels of a sensor_msgs/Image or foxglove.RawImage."""
    code = message.encoding.lower()
    layout = _pixel_layout(code)
    if layout is None:
        raise PayloadError(f"pixel format {message.encoding[:40]!r} is not drawn")
    order = ">" if getattr(message, "is_bigendian", 0) else "<"
    channels, number = layout
    dtype = np.dtype(order + number)
    height, width, step = message.height, message.width, message.step
    rows = np.frombuffer(message.data, np.uint8)[: height * step].reshape(height, step)
    packed = np.ascontiguousarray(rows[:, : width * channels * dtype.itemsize])
    pixels = packed.view(dtype).reshape(height, width, channels)
    pixels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    if channels == 2 and code not in _TO_BGR:
        raise PayloadError(f"pixel format {message.encoding[:40]!r} of two channels is no picture")
    if code in _TO_BGR:
        pixels = np.asarray(cv2.cvtColor(pixels, _TO_BGR[code]))
    return as_grey_or_bgr(pixels)


def _ros_points(message: Any) -> NDArray[np.float32]:
    width_bytes = message.width * message.point_step
    data = np.frombuffer(message.data, np.uint8)
    if message.height > 1 and message.row_step > width_bytes:  # padded rows
        rows = data[: message.height * message.row_step].reshape(message.height, message.row_step)
        data = np.ascontiguousarray(rows[:, :width_bytes]).reshape(-1)
    order = ">" if message.is_bigendian else "<"
    fields = {field.name: (order + _ROS_NUMBERS[field.datatype], field.offset) for field in message.fields}
    return _points(data, message.point_step, fields)


def _foxglove_points(message: Any) -> NDArray[np.float32]:
    fields = {field.name: ("<" + _FOXGLOVE_NUMBERS[field.type], field.offset) for field in message.fields}
    points = _points(np.frombuffer(message.data, np.uint8), message.point_stride, fields)
    place, turn = message.pose.position, message.pose.orientation
    rotation = _rotation(turn.w, turn.x, turn.y, turn.z)
    with np.errstate(invalid="ignore", over="ignore"):  # a point without an echo is no number, and stays none
        points[:, :3] = points[:, :3] @ rotation.T + np.array([place.x, place.y, place.z], np.float32)
    return points


def _rotation(w: float, x: float, y: float, z: float) -> NDArray[np.float32]:
    """Return the rotation of a quaternion; none for the zero quaternion, which means unset."""
    norm = w * w + x * x + y * y + z * z
    scale = 2.0 / norm if norm else 0.0
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.asarray(np.eye(3) + scale * (w * cross + cross @ cross), np.float32)


def _points(data: NDArray[np.uint8], stride: int, fields: dict[str, tuple[str, int]]) -> NDArray[np.float32]:
    """Return (N, 4) x, y, z and intensity, 0 where there is none."""
    if not {"x", "y", "z"} <= fields.keys():
        raise PayloadError(f"a cloud with fields {', '.join(fields)[:80]} has no x, y, z")
    names = [name for name in ("x", "y", "z", "intensity") if name in fields]
    formats, offsets = zip(*(fields[name] for name in names), strict=True)
    layout = {"names": names, "formats": list(formats), "offsets": list(offsets), "itemsize": stride}
    dtype: Any = np.dtype(layout)  # type: ignore[call-overload]
    rows: NDArray[Any] = np.frombuffer(data, dtype)
    points = np.zeros((len(rows), 4), np.float32)
    for index, name in enumerate(names):
        points[:, index] = rows[name]
    return points
