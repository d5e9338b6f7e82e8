"""Pictures of single frames: thumbnails of images, LiDAR from above, LiDAR on the camera image."""

import base64
import struct
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from sensorium.calibration.overlay import lidar_overlay
from sensorium.calibration.rig_document import RigCalibration
from sensorium.drivers.frame import Encoding, Modality, StreamInfo
from sensorium.drivers.payloads.ouster import decode_scan, scan_points
from sensorium.drivers.payloads.ouster_metadata import OusterMetadata
from sensorium.errors import SensoriumError, SourceError
from sensorium.sync.episode import schemas
from sensorium.sync.sources.ros_types import short_name

Image = NDArray[np.uint8]
Points = NDArray[np.float32]

THUMBNAIL_PX = 320
_THUMBNAIL_QUALITY = 80
_OVERLAY_PX = 800
_BIRD_PX = 720
_BIRD_POINTS = 60_000
_RING_COLOUR = (92, 78, 70)
_TEXT_COLOUR = (190, 180, 170)
_DARK = (30, 24, 20)
_CHANNELS = {Encoding.MONO8: 1, Encoding.BGR8: 3, Encoding.RGB8: 3, Encoding.MONO16: 1}
_PCL_TYPES = {1: "i1", 2: "u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 8: "<f8"}

UNSHOWABLE = (
    SensoriumError,
    ValueError,
    LookupError,
    ArithmeticError,
    TypeError,
    OSError,
    struct.error,
    DecodeError,
    cv2.error,
)
"""What a damaged or hostile payload makes a decoder raise; the report then says so in the picture's place."""


@dataclass(frozen=True, slots=True)
class Picture:
    """An encoded image as a data URI, and one sentence about what is seen."""

    uri: str
    width: int
    height: int
    caption: str = ""


# -- images


def decode_picture(info: StreamInfo, payload: bytes | memoryview, is_small: bool = False) -> Image:
    """Return the grey or BGR image of a frame; with ``is_small`` large JPEGs are decoded reduced.

    Raises:
        SourceError: If the frame holds no image that is understood; others of ``UNSHOWABLE`` if damaged.
    """
    if info.encoding in (Encoding.JPEG, Encoding.PNG):
        width = info.shape[1] if is_small and len(info.shape) > 1 else 0
        return _decompress(payload, _reduction(width), info)
    if info.encoding in _CHANNELS:
        dtype = "<u2" if info.encoding == Encoding.MONO16 else "u1"
        pixels = np.frombuffer(payload, dtype).reshape(info.shape)
        if info.encoding == Encoding.RGB8:
            pixels = pixels[:, :, ::-1]
        return _to_bytes(pixels, info)
    if info.encoding == Encoding.MESSAGE and info.schema is not None:
        return _decode_message(info, payload)
    raise SourceError(f"encoding {info.encoding} is not an image")


def _reduction(width: int) -> int:
    if width >= 8 * THUMBNAIL_PX:
        return int(cv2.IMREAD_REDUCED_COLOR_8)
    if width >= 4 * THUMBNAIL_PX:
        return int(cv2.IMREAD_REDUCED_COLOR_4)
    return int(cv2.IMREAD_UNCHANGED)


def _decompress(payload: bytes | memoryview, flags: int, info: StreamInfo) -> Image:
    image = cv2.imdecode(np.frombuffer(payload, np.uint8), flags)
    if image is None:
        raise SourceError(f"its {len(payload)} bytes do not decode as an image")
    return _to_bytes(np.asarray(image), info)


def _to_bytes(pixels: NDArray[Any], info: StreamInfo) -> Image:
    """Return pixels of any depth as 8 bit grey or BGR; depth and 16 bit are spread over their range."""
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.ndim == 3 and pixels.shape[2] == 4:
        pixels = pixels[:, :, :3]
    if pixels.dtype == np.uint8:
        return np.ascontiguousarray(pixels)
    values = pixels.astype(np.float32)
    seen = values[np.isfinite(values) & (values > 0)]
    low, high = np.percentile(seen, (2, 98)) if len(seen) else (0.0, 1.0)
    scaled = np.clip((values - low) * (255 / max(high - low, 1e-9)), 0, 255)
    grey = np.nan_to_num(scaled).astype(np.uint8)
    if info.modality is not Modality.DEPTH:
        return grey
    coloured = np.asarray(cv2.applyColorMap(255 - grey, cv2.COLORMAP_TURBO), np.uint8)
    coloured[~(values > 0)] = 0
    return coloured


def _decode_message(info: StreamInfo, payload: bytes | memoryview) -> Image:
    assert info.schema is not None
    kind = short_name(info.schema.name)
    if info.schema.message_encoding == "protobuf" and kind in ("CompressedImage", "RawImage"):
        message = schemas.FOXGLOVE[kind].FromString(bytes(payload))
        if kind == "CompressedImage":
            return _decompress(message.data, cv2.IMREAD_UNCHANGED, info)
        return _raw_pixels(message, message.data, info)
    if kind not in ("Image", "CompressedImage"):
        raise SourceError(f"messages of {info.schema.name} are not drawn")
    found = _decode_ros(info, payload, f"sensor_msgs/msg/{kind}")
    if kind == "CompressedImage":
        return _decompress(found.data.tobytes(), cv2.IMREAD_UNCHANGED, info)
    return _raw_pixels(found, found.data, info)


def _raw_pixels(message: Any, data: Any, info: StreamInfo) -> Image:
    """Return the pixels of a sensor_msgs/Image or foxglove.RawImage."""
    code = message.encoding.lower()
    conversions = {"rgb8": cv2.COLOR_RGB2BGR, "rgba8": cv2.COLOR_RGBA2BGR, "bgra8": cv2.COLOR_BGRA2BGR}
    conversions |= {"yuv422": cv2.COLOR_YUV2BGR_UYVY, "yuv422_yuy2": cv2.COLOR_YUV2BGR_YUY2}
    conversions |= {"bayer_rggb8": cv2.COLOR_BayerBG2BGR, "bayer_bggr8": cv2.COLOR_BayerRG2BGR}
    conversions |= {"bayer_gbrg8": cv2.COLOR_BayerGR2BGR, "bayer_grbg8": cv2.COLOR_BayerGB2BGR}
    channels = {"rgb8": 3, "bgr8": 3, "8uc3": 3, "rgba8": 4, "bgra8": 4, "yuv422": 2, "yuv422_yuy2": 2}
    types = {"mono16": "u2", "16uc1": "u2", "32fc1": "f4"}
    if code not in channels and code not in types and code not in ("mono8", "8uc1") and "bayer" not in code:
        raise SourceError(f"pixel format {message.encoding[:40]!r} is not drawn")
    order = ">" if getattr(message, "is_bigendian", 0) else "<"
    dtype = np.dtype(order + types.get(code, "u1"))
    depth = channels.get(code, 1)
    rows = np.frombuffer(data, np.uint8)[: message.height * message.step].reshape(
        message.height, message.step
    )
    packed = np.ascontiguousarray(rows[:, : message.width * depth * dtype.itemsize])
    pixels = packed.view(dtype).reshape(message.height, message.width, depth)
    if code in conversions:
        pixels = np.asarray(cv2.cvtColor(pixels, conversions[code]))
    return _to_bytes(pixels, info)


def _decode_ros(info: StreamInfo, payload: bytes | memoryview, type_name: str) -> Any:
    assert info.schema is not None
    try:
        from rosbags.typesys import Stores, get_typestore
    except ImportError:
        raise SourceError(f"install sensorium[ros] to see messages of {info.schema.name}") from None
    if info.schema.message_encoding == "ros1":
        return get_typestore(Stores.ROS1_NOETIC).deserialize_ros1(bytes(payload), type_name)
    if info.schema.message_encoding == "cdr":
        return get_typestore(Stores.ROS2_HUMBLE).deserialize_cdr(bytes(payload), type_name)
    raise SourceError(f"messages encoded as {info.schema.message_encoding} are not drawn")


def thumbnail(info: StreamInfo, payload: bytes | memoryview) -> Picture:
    """Return a small JPEG of an image frame.

    Raises:
        SourceError: As :func:`decode_picture`.
    """
    return _as_jpeg(_shrink(decode_picture(info, payload, is_small=True), THUMBNAIL_PX), _THUMBNAIL_QUALITY)


def encoded(image: Image) -> Picture:
    """Return a grey or BGR image as a JPEG of at most the width of an overlay."""
    return _as_jpeg(_shrink(image, _OVERLAY_PX), 85)


def _shrink(image: Image, width_px: int) -> Image:
    height, width = image.shape[:2]
    if width <= width_px:
        return image
    size = (width_px, max(round(height * width_px / width), 1))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


def _as_jpeg(image: Image, quality: int, caption: str = "") -> Picture:
    _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return _embed("image/jpeg", data, image, caption)


def _embed(media_type: str, data: NDArray[np.uint8], image: Image, caption: str) -> Picture:
    text = base64.b64encode(data.tobytes()).decode()
    height, width = image.shape[:2]
    return Picture(f"data:{media_type};base64,{text}", width, height, caption)


# -- LiDAR


def cloud_points(info: StreamInfo, payload: bytes | memoryview) -> Points:
    """Return (N, 4) float32 x, y, z (m, sensor frame), intensity of a LiDAR frame.

    Raises:
        SensoriumError: If the frame is no point cloud that is understood; others of ``UNSHOWABLE`` if damaged.
    """
    if info.encoding == Encoding.OUSTER:
        metadata = OusterMetadata.from_json(info.details.get("metadata", ""))
        return scan_points(decode_scan(payload, metadata), metadata)
    if info.encoding == Encoding.POINTS:
        return np.frombuffer(payload, "<f4").reshape(-1, 4)
    if info.schema is not None and short_name(info.schema.name) == "PointCloud2":
        return _ros_points(_decode_ros(info, payload, "sensor_msgs/msg/PointCloud2"))
    what = info.schema.name if info.schema is not None else f"encoding {info.encoding}"
    raise SourceError(f"{what} is not drawn as a point cloud")


def _ros_points(message: Any) -> Points:
    order = ">" if message.is_bigendian else "<"
    known = {field.name: field for field in message.fields}
    if not {"x", "y", "z"} <= known.keys():
        raise SourceError(f"a cloud with fields {', '.join(known)[:80]} has no x, y, z")
    names = [name for name in ("x", "y", "z", "intensity") if name in known]
    formats = [order + _PCL_TYPES[known[name].datatype].lstrip("<") for name in names]
    offsets = [known[name].offset for name in names]
    layout = {"names": names, "formats": formats, "offsets": offsets, "itemsize": message.point_step}
    dtype: Any = np.dtype(layout)  # type: ignore[call-overload]
    rows: NDArray[Any] = np.frombuffer(message.data.tobytes(), dtype)
    points = np.zeros((len(rows), 4), np.float32)
    for index, name in enumerate(names):
        points[:, index] = rows[name]
    return points


def bird_view(points: Points) -> Picture:
    """Return a view from above, x forward = up, y left = left, coloured by height, with range rings.

    Raises:
        SourceError: If there is no return to show.
    """
    points = points[np.isfinite(points[:, :3]).all(axis=1) & np.any(points[:, :3] != 0, axis=1)]
    if not len(points):
        raise SourceError("the frame holds no returns")
    if len(points) > _BIRD_POINTS:
        points = points[:: -(-len(points) // _BIRD_POINTS)]
    reach_m = float(np.quantile(np.hypot(points[:, 0], points[:, 1]), 0.985)) * 1.08 + 1e-3
    ring_m = _round_step(reach_m / 4)
    scale = _BIRD_PX / 2 / reach_m
    image = np.full((_BIRD_PX, _BIRD_PX, 3), _DARK, np.uint8)
    _draw_rings(image, ring_m, reach_m, scale)
    low, high = (float(value) for value in np.quantile(points[:, 2], (0.02, 0.98)))
    points = points[np.argsort(points[:, 2])]  # the highest on top, as seen from above
    _scatter(image, points, scale, low, high)
    _draw_sensor(image)
    caption = (
        f"{len(points)} points; rings every {ring_m:g} m; x (forward) is up; "
        f"height from {low:.1f} m (blue) to {high:.1f} m (red)"
    )
    _, data = cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 7])
    return _embed("image/png", data, image, caption)


def _round_step(value: float) -> float:
    """Return 1, 2 or 5 times a power of ten, at most ``value`` by a factor of 2.5."""
    magnitude = 10.0 ** np.floor(np.log10(value))
    return float(max(step for step in (1, 2, 5) if step * magnitude <= value) * magnitude)


def _draw_rings(image: Image, ring_m: float, reach_m: float, scale: float) -> None:
    middle = _BIRD_PX // 2
    cv2.line(image, (middle, 0), (middle, _BIRD_PX), _RING_COLOUR, 1)
    cv2.line(image, (0, middle), (_BIRD_PX, middle), _RING_COLOUR, 1)
    for index in range(1, int(reach_m * 1.42 / ring_m) + 1):
        radius_px = round(index * ring_m * scale)
        cv2.circle(image, (middle, middle), radius_px, _RING_COLOUR, 1, cv2.LINE_AA)
        place = (middle + 4, middle - radius_px + 14)
        text = f"{index * ring_m:g} m"
        cv2.putText(image, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.42, _TEXT_COLOUR, 1, cv2.LINE_AA)


def _scatter(image: Image, points: Points, scale: float, low: float, high: float) -> None:
    columns = np.rint(_BIRD_PX / 2 - points[:, 1] * scale)
    rows = np.rint(_BIRD_PX / 2 - points[:, 0] * scale)
    inside = (columns >= 0) & (columns < _BIRD_PX - 1) & (rows >= 0) & (rows < _BIRD_PX - 1)
    heights = (points[inside, 2] - low) / max(high - low, 1e-6)
    shades = np.clip(30 + 215 * heights, 0, 255).astype(np.uint8)
    colours = np.asarray(cv2.applyColorMap(shades.reshape(-1, 1), cv2.COLORMAP_TURBO)).reshape(-1, 3)
    at, down = columns[inside].astype(np.intp), rows[inside].astype(np.intp)
    for step in (0, 1):
        image[down + step, at] = colours
        image[down, at + step] = colours


def _draw_sensor(image: Image) -> None:
    middle = _BIRD_PX // 2
    triangle = np.array([[middle, middle - 11], [middle - 7, middle + 7], [middle + 7, middle + 7]], np.int32)
    cv2.fillPoly(image, [triangle], (255, 255, 255), cv2.LINE_AA)


def overlay_picture(
    camera: StreamInfo,
    image_payload: bytes | memoryview,
    points: Points,
    lidar: StreamInfo,
    calibration: RigCalibration,
) -> Picture:
    """Return the LiDAR's points on the camera image, red near to blue far.

    Raises:
        CalibrationError: If the calibration does not join the two frames.
        SourceError: As :func:`decode_picture`.
    """
    T_camera_lidar = calibration.transform(camera.frame_id, lidar.frame_id)
    image = decode_picture(camera, image_payload)
    intrinsics = calibration.camera(camera.frame_id)
    height, width = image.shape[:2]
    if (width, height) != (intrinsics.width, intrinsics.height):
        intrinsics = intrinsics.scaled(width, height)
    drawn = lidar_overlay(image, points[:, :3].astype(np.float64), intrinsics, T_camera_lidar)
    return _as_jpeg(_shrink(drawn, _OVERLAY_PX), 85)
