"""Pictures that people trust: LiDAR points on the camera image."""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from sensorium.calibration.geometry import Array, Intrinsics, apply, in_image, project

NOW_BGR = (60, 60, 255)
ESTIMATED_BGR = (80, 255, 80)

Image = NDArray[np.uint8]


def lidar_overlay(
    image_bgr: Image, points_xyz: Array, intrinsics: Intrinsics, T_camera_lidar: Array, radius_px: int = 1
) -> Image:
    """Return a copy of the image with the points on it, red near to blue far.

    Args:
        image_bgr: Grey or BGR image of the size in ``intrinsics``.
        points_xyz: (N, 3) in the LiDAR's frame; rows of zeros (no return) are left out.
        radius_px: Points are squares of 2 * radius + 1 pixels; nearer points cover farther ones.
    """
    canvas = _canvas(image_bgr)
    pixels, depth_m = _seen(points_xyz, intrinsics, T_camera_lidar)
    if not len(pixels):
        return canvas
    order = np.argsort(-depth_m)
    near, far = np.quantile(depth_m, (0.02, 0.98))
    span = max(np.log(far / near), 1e-3)
    shade = np.clip(255 * (1 - np.log(depth_m[order] / near) / span), 0, 255).astype(np.uint8)
    colours = cv2.applyColorMap(shade.reshape(-1, 1), cv2.COLORMAP_TURBO).reshape(-1, 3)
    _paint(canvas, pixels[order], colours, radius_px)
    return canvas


def edge_overlay(
    image_bgr: Image,
    edges_xyz: Array,
    intrinsics: Intrinsics,
    T_camera_lidar: Array,
    T_camera_lidar_estimated: Array | None = None,
) -> Image:
    """Return a darkened copy of the image with LiDAR edges: red as calibrated, green as estimated.

    Args:
        edges_xyz: (N, 3) points on depth or reflectance edges, in the LiDAR's frame.
        T_camera_lidar_estimated: Where a check thinks the LiDAR is; None draws the calibration alone.
    """
    canvas = np.asarray(_canvas(image_bgr) * 0.6, np.uint8)
    for T, colour in ((T_camera_lidar, NOW_BGR), (T_camera_lidar_estimated, ESTIMATED_BGR)):
        if T is not None:
            pixels, _ = _seen(edges_xyz, intrinsics, T)
            _paint(canvas, pixels, np.tile(np.array(colour, np.uint8), (len(pixels), 1)), 1)
    return canvas


def _canvas(image: Image) -> Image:
    copy: Any = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR) if image.ndim == 2 else image.copy()
    return np.asarray(copy, np.uint8)


def _seen(points_xyz: Array, intrinsics: Intrinsics, T_camera_lidar: Array) -> tuple[Array, Array]:
    points_xyz = np.asarray(points_xyz, np.float64)
    points = apply(T_camera_lidar, points_xyz[np.any(points_xyz != 0.0, axis=1)])
    pixels = project(points, intrinsics)
    visible = in_image(pixels, intrinsics)
    return pixels[visible], points[visible, 2]


def _paint(canvas: Image, pixels: Array, colours: NDArray[np.uint8], radius_px: int) -> None:
    height, width = canvas.shape[:2]
    columns, rows = np.rint(pixels).astype(np.intp).T
    for dy in range(-radius_px, radius_px + 1):
        for dx in range(-radius_px, radius_px + 1):
            canvas[np.clip(rows + dy, 0, height - 1), np.clip(columns + dx, 0, width - 1)] = colours
