"""What one look of a camera and a LiDAR gives to compare: edges in blurred images, edges in the cloud."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from sensorium.calibration.geometry import (
    Array,
    Intrinsics,
    apply,
    distort,
    in_image,
    project,
)
from sensorium.calibration.sweep import (
    Edges,
    Sweep,
    along_ring_edges,
    between_ring_edges,
    reflectance_edges,
)
from sensorium.errors import CalibrationError

BLUR_PX = (6.0, 3.0, 1.5)
SHRINK = (4, 2, 1)
# Between-ring outlines are useless when the next ring is this far away (spec 2, nuScenes).
MAX_RING_SPACING_PX = 10.0
# Places between two rings at which an outline between them is looked for.
OUTLINE_PLACES = 5
# Edges of one object share their errors: its outline is round, it moved, its beams are wide. Edges nearer to each
# other than this sideways (rad) and in depth (natural logarithm) count as one object's, and n of them weigh
# together as n to the power of 1 - SHARED_ERRORS instead of n. With 0 a bush of a thousand edges outvotes
# everything (of dev windows with nothing moved one in ten lay beyond 3.4 instead of 2.3).
OBJECT_RAD, OBJECT_LOG_DEPTH = 1 / 30, 0.1
SHARED_ERRORS = 0.75
# Standard deviation of something spread evenly over a gap between two rings, as a share of the gap; and the widest
# gap that is believed (a single ring has none).
LEVEL_SHARE, MAX_SPACING_RAD = 12**-0.5, float(np.deg2rad(3.0))
# Two keyframes whose small grey pictures correlate more than this show the same scene.
SAME_SCENE = 0.985


@dataclass(frozen=True, slots=True, eq=False)
class Keyframe:
    """One image and the sweep taken with it, reduced to what the check needs.

    Attributes:
        camera: Pinhole intrinsics of the (undistorted) image.
        images: For each blur and each cue, a small edge image with zero mean and unit variance.
        edges: For each cue, edge points in the LiDAR's frame.
        thumbnail: Tiny grey picture, to tell scenes apart.
        contrast: Standard deviation of the grey values.
        level_sigma_rad: How far off a level outline may seem because no ring came near it; 0 where rings are dense.
    """

    camera: Intrinsics
    images: tuple[tuple[NDArray[np.float32], ...], ...]
    edges: tuple[Edges, ...]
    thumbnail: NDArray[np.float32]
    contrast: float
    level_sigma_rad: float = 0.0


def keyframe(
    image: NDArray[np.uint8],
    points: NDArray[np.floating],
    camera: Intrinsics,
    T_camera_lidar: Array,
    ring: NDArray[np.integer] | None = None,
    as_measured: NDArray[np.floating] | None = None,
) -> Keyframe:
    """Reduce an image and the LiDAR sweep taken at the same time; about 0.1 s.

    Args:
        image: Grey or BGR, as the camera gave it (distorted).
        points: (N, 4) rows x, y, z, intensity in the LiDAR's frame.
        T_camera_lidar: The calibration in force; it only decides which edges are kept as near the view.
        ring: Laser of each point, see :meth:`Sweep.from_points`.
        as_measured: The same rows before the rig's motion was taken out of them: edges are looked for there.

    Raises:
        CalibrationError: If the image size is not the calibration's, or the points are no points.
    """
    if image.shape[:2] != (camera.height, camera.width):
        raise CalibrationError(
            f"camera image is {image.shape[1]}x{image.shape[0]}, its calibration is for "
            f"{camera.width}x{camera.height}"
        )
    grey, camera = straightened(image, camera)
    sweep = Sweep.from_points(points, ring, as_measured)
    found = [along_ring_edges(sweep), between_ring_edges(sweep, OUTLINE_PLACES), reflectance_edges(sweep)]
    is_dense = sweep.ring_spacing_rad * camera.fy < MAX_RING_SPACING_PX
    if not is_dense:
        found[1] = Edges(np.empty((0, 3)), np.empty(0))
    thumbnail = cv2.resize(grey, (48, 16), interpolation=cv2.INTER_AREA)
    return Keyframe(
        camera,
        _edge_images(grey),
        tuple(_by_object(_near_view(edges, camera, T_camera_lidar), T_camera_lidar) for edges in found),
        np.asarray(thumbnail, np.float32),
        float(grey.std()),
        0.0 if is_dense else LEVEL_SHARE * min(sweep.ring_spacing_rad, MAX_SPACING_RAD),
    )


def straightened(image: NDArray[np.uint8], camera: Intrinsics) -> tuple[NDArray[np.float32], Intrinsics]:
    """Return the grey image without its lens's distortion, and the pinhole camera that would have taken it."""
    grey: Any = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    fx, fy = camera.fx * camera.magnification, camera.fy * camera.magnification
    pinhole = Intrinsics("pinhole", camera.width, camera.height, fx, fy, camera.cx, camera.cy)
    if camera.model != "pinhole":
        u, v = np.meshgrid(np.arange(camera.width), np.arange(camera.height))
        ideal = np.stack([(u - camera.cx) / fx, (v - camera.cy) / fy], axis=-1).reshape(-1, 2)
        source = distort(ideal, camera) * (camera.fx, camera.fy) + (camera.cx, camera.cy)
        where = source.reshape(camera.height, camera.width, 2).astype(np.float32)
        grey = cv2.remap(
            grey, where[..., 0], where[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
    return np.asarray(grey, np.float32), pinhole


def _edge_images(grey: NDArray[np.float32]) -> tuple[tuple[NDArray[np.float32], ...], ...]:
    """Return edge images by blur, then cue, each with zero mean and unit variance.

    Gradients are divided by their neighbourhood's mean and clipped, so that a strong edge counts little more
    than a clear one and texture counts less than an outline.
    """
    soft = cv2.GaussianBlur(grey, (0, 0), 0.7)
    across = np.abs(cv2.Sobel(soft, cv2.CV_32F, 1, 0)) / 4
    down = np.abs(cv2.Sobel(soft, cv2.CV_32F, 0, 1)) / 4
    sharp = [
        np.minimum(gradient / (cv2.blur(gradient, (41, 41)) + 4.0), 4.0)
        for gradient in (across, down, np.hypot(across, down))
    ]
    levels = []
    for blur_px, shrink in zip(BLUR_PX, SHRINK, strict=True):
        images = []
        for edge in sharp:
            blurred = cv2.GaussianBlur(edge, (0, 0), blur_px)
            small = cv2.resize(blurred, None, fx=1 / shrink, fy=1 / shrink, interpolation=cv2.INTER_AREA)
            spread = float(small.std())
            images.append(np.asarray((small - small.mean()) / max(spread, 1e-6), np.float32))
        levels.append(tuple(images))
    return tuple(levels)


def _near_view(edges: Edges, camera: Intrinsics, T_camera_lidar: Array) -> Edges:
    pixels = project(apply(T_camera_lidar, edges.xyz), camera)
    near = in_image(pixels, camera, -0.1 * camera.f_px)
    return Edges(edges.xyz[near], edges.weight[near])


def _by_object(edges: Edges, T_camera_lidar: Array) -> Edges:
    """Return the edges with weights that let an object count little more for having many of them."""
    if not len(edges):
        return edges
    x, _, z = apply(T_camera_lidar, edges.xyz).T
    z = np.maximum(z, 0.1)
    cells = np.stack([np.floor(x / z / OBJECT_RAD), np.floor(np.log(z) / OBJECT_LOG_DEPTH)], axis=1)
    _, cell, count = np.unique(cells, axis=0, return_inverse=True, return_counts=True)
    return Edges(edges.xyz, edges.weight * count[cell.ravel()] ** -SHARED_ERRORS)


def distinct_scenes(keyframes: Sequence[Keyframe]) -> int:
    """Return how many keyframes show scenes that differ from all earlier ones."""
    kept: list[NDArray[np.float32]] = []
    for frame in keyframes:
        picture = frame.thumbnail - frame.thumbnail.mean()
        picture = picture / max(float(np.linalg.norm(picture)), 1e-6)
        if all(float((picture * other).sum()) < SAME_SCENE for other in kept):
            kept.append(picture)
    return len(kept)
