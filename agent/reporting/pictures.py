"""Pictures of single frames: thumbnails of images, LiDAR from above, LiDAR on the camera image."""

import base64
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from sensorium.calibration.overlay import lidar_overlay
from sensorium.calibration.rig_document import RigCalibration
from sensorium.drivers.frame import Encoding, StreamInfo
from sensorium.drivers.payloads.decoder import DAMAGE
from sensorium.drivers.payloads.images import compress
from sensorium.errors import PayloadError
from sensorium.sync.decoding import Image, picture

Points = NDArray[np.float32]

THUMBNAIL_PX = 320
_THUMBNAIL_QUALITY = 80
_OVERLAY_PX = 800
_BIRD_PX = 720
_BIRD_POINTS = 60_000
_RING_COLOUR = (92, 78, 70)
_TEXT_COLOUR = (190, 180, 170)
_DARK = (30, 24, 20)

UNSHOWABLE = (*DAMAGE, cv2.error)
"""What damaged or hostile data make drawing raise; the report then says so in the picture's place."""


@dataclass(frozen=True, slots=True)
class Picture:
    """An encoded image as a data URI, and one sentence about what is seen."""

    uri: str
    width: int
    height: int
    caption: str = ""


# -- images


def thumbnail(info: StreamInfo, payload: bytes | memoryview) -> Picture:
    """Return a small JPEG of an image frame.

    Raises:
        PayloadError: If the frame holds no image that is understood.
    """
    return _as_jpeg(_shrink(picture(info, payload, THUMBNAIL_PX), THUMBNAIL_PX), _THUMBNAIL_QUALITY)


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
    return _embed("image/jpeg", compress(Encoding.JPEG, image, quality), image, caption)


def _embed(media_type: str, data: bytes, image: Image, caption: str) -> Picture:
    text = base64.b64encode(data).decode()
    height, width = image.shape[:2]
    return Picture(f"data:{media_type};base64,{text}", width, height, caption)


# -- LiDAR


def bird_view(points: Points) -> Picture:
    """Return a view from above, x forward = up, y left = left, coloured by height, with range rings.

    Raises:
        PayloadError: If there is no return to show.
    """
    points = points[np.isfinite(points[:, :3]).all(axis=1) & np.any(points[:, :3] != 0, axis=1)]
    if not len(points):
        raise PayloadError("the frame holds no returns")
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
    return _embed("image/png", data.tobytes(), image, caption)


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
        PayloadError: If the frame holds no image that is understood.
    """
    T_camera_lidar = calibration.transform(camera.frame_id, lidar.frame_id)
    image = picture(camera, image_payload)
    intrinsics = calibration.camera(camera.frame_id)
    height, width = image.shape[:2]
    if (width, height) != (intrinsics.width, intrinsics.height):
        intrinsics = intrinsics.scaled(width, height)
    drawn = lidar_overlay(image, points[:, :3].astype(np.float64), intrinsics, T_camera_lidar)
    return _as_jpeg(_shrink(drawn, _OVERLAY_PX), 85)
