"""How a camera turned from one image to another, from tracked corners and their epipolar geometry.

Source: spec calibration 1.9; Bouguet, "Pyramidal implementation of the Lucas Kanade feature tracker", 2001.
"""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from sensorium.calibration.geometry import (
    Array,
    Intrinsics,
    nearest_rotation,
    rotation_exp,
    rotation_log,
    skew,
    undistort,
)
from sensorium.calibration.rotation import Turns

Image = NDArray[np.uint8]
Rays = tuple[Array, Array]
"""(N, 3) rays with z = 1 of the same points in two images, each in its own camera's axes."""

MAX_CORNERS = 400
CORNERS_APART_PX = 8
MIN_TRACKS = 30
# A track must come back to where it began (forward-backward check).
MAX_RETURN_PX = 0.5
MAX_MISS_PX = 1.5
# Two images this many apart are compared: parallax and noise of tracks are the same, the turn is twice as large.
STRIDE = 2
# Below this the tracks are as good as without parallax, and the direction of travel is noise.
MIN_PARALLAX_PX = 0.1


def camera_turns(images: Sequence[NDArray[np.uint8]], time_s: Array, camera: Intrinsics) -> Turns:
    """Return the camera's rotations from image to image, from tracked corners.

    Steps that cannot be tracked are left out. Images about 0.1 s apart are best: much closer and noise rules,
    much farther and tracks are lost.
    """
    starts, ends, rates, covariances = [], [], [], []
    for k in range(len(images) - 1):
        for later in (k + STRIDE, k + 1):  # too fast for the longer step, the shorter one may do
            found = relative_rotation(images[k], images[later], camera) if later < len(images) else None
            if found is not None:
                span_s = float(time_s[later] - time_s[k])
                starts.append(float(time_s[k]))
                ends.append(float(time_s[later]))
                # Rays of the later image are R^T of the earlier ones: the camera turned by R.
                rates.append(rotation_log(found[0]) / span_s)
                covariances.append(found[1] / span_s**2)
                break
    return Turns(
        np.array(starts),
        np.array(ends),
        np.array(rates).reshape(-1, 3),
        np.array(covariances).reshape(-1, 3, 3),
    )


def relative_rotation(first: Image, second: Image, camera: Intrinsics) -> tuple[Array, Array] | None:
    """Return R_first_second between two images (grey or BGR), and its covariance (3, 3), rad^2.

    None without enough tracks. The covariance is large about the axis in which parallax looks like rotation,
    which is where the scene is nearly flat.
    """
    rays = _tracked_rays(first, second, camera)
    return None if rays is None else _rotation_between(rays, camera.f_px)


def _tracked_rays(first: Image, second: Image, camera: Intrinsics) -> Rays | None:
    """Return the rays of corners that were found in both images; None if they are few."""
    grey = [
        image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) for image in (first, second)
    ]
    corners = cv2.goodFeaturesToTrack(grey[0], MAX_CORNERS, 0.01, CORNERS_APART_PX)
    if corners is None or len(corners) < MIN_TRACKS:
        return None
    corners = np.asarray(corners, np.float32).reshape(-1, 1, 2)
    tracked, found = _track(grey[0], grey[1], corners)
    back, found_back = _track(grey[1], grey[0], tracked)
    pixels, pixels_later = (np.asarray(points, np.float64).reshape(-1, 2) for points in (corners, tracked))
    returned = np.linalg.norm(np.asarray(back, np.float64).reshape(-1, 2) - pixels, axis=1)
    good = found & found_back & (returned < MAX_RETURN_PX)
    normalised = [undistort(part[good], camera) for part in (pixels, pixels_later)]
    finite = np.isfinite(normalised[0]).all(axis=1) & np.isfinite(normalised[1]).all(axis=1)
    if int(finite.sum()) < MIN_TRACKS:
        return None
    before, after = (np.column_stack([part[finite], np.ones(finite.sum())]) for part in normalised)
    return before, after


def _track(
    first: Any, second: Any, corners: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    # OpenCV writes into the array of later positions that it is given: each call gets its own.
    later, found, _ = cv2.calcOpticalFlowPyrLK(
        first, second, corners, np.zeros_like(corners), winSize=(21, 21), maxLevel=4
    )
    return np.asarray(later, np.float32), np.asarray(found).ravel() == 1


def _rotation_between(rays: Rays, f_px: float) -> tuple[Array, Array] | None:
    """Return R that maps later rays into the earlier camera's axes, and its covariance; None if none fits.

    A pure rotation is fitted first (a direction of travel is undefined when nothing travels), then rotation
    and direction of travel together on Sampson distances, with robust weights.
    """
    before, after = rays
    unit = [rays / np.linalg.norm(rays, axis=1, keepdims=True) for rays in (before, after)]
    weight = np.ones(len(before))
    rotation = np.eye(3)
    for _ in range(5):
        rotation = nearest_rotation((unit[0] * weight[:, None]).T @ unit[1])
        size = np.linalg.norm(unit[0] - unit[1] @ rotation.T, axis=1) * f_px
        weight = 1 / (1 + np.square(size / max(2 * float(np.median(size)), 0.3)))
    if float(np.median(size)) < MIN_PARALLAX_PX:
        return rotation, (MIN_PARALLAX_PX / f_px) ** 2 * np.eye(3)
    turn, travel = _search(unit[0], unit[1] @ rotation.T, f_px)
    miss_px, rotation, covariance = _refine(before, after, turn @ rotation, travel, f_px)
    return (rotation, covariance) if miss_px < MAX_MISS_PX else None


def _hemisphere(count: int) -> Array:
    """Return (count, 3) directions spread evenly over half the sphere (golden spiral)."""
    z = (np.arange(count) + 0.5) / count
    azimuth = np.arange(count) * np.pi * (3 - np.sqrt(5))
    radius = np.sqrt(1 - z * z)
    return np.stack([radius * np.cos(azimuth), radius * np.sin(azimuth), z], axis=1)


# The sign of the direction of travel does not matter to the epipolar geometry.
_DIRECTIONS = _hemisphere(120)


def _search(before: Array, after: Array, f_px: float) -> tuple[Array, Array]:
    """Return the small turn and the direction of travel that explain unit rays best, over all directions.

    Parallax of a nearly flat scene looks like rotation, and a climb from one guess stops halfway. For a known
    direction t the turn w is linear: t . (x1 x (x2 + w x x2)) = 0, so every direction is simply tried.
    """
    planes = np.cross(_DIRECTIONS[:, None, :], before[None])  # (directions, points, 3)
    planes /= np.maximum(np.linalg.norm(planes, axis=2, keepdims=True), 1e-6)
    miss = f_px * np.einsum("dni,ni->dn", planes, after)
    lever = f_px * np.cross(after[None], planes)
    turn = np.zeros((len(_DIRECTIONS), 3))
    left = miss
    for _ in range(4):
        scale = np.maximum(1.4826 * np.median(np.abs(left), axis=1, keepdims=True), 0.1)
        weight = (1 + np.square(left / (2.5 * scale))) ** -2
        normal = np.einsum("dn,dni,dnj->dij", weight, lever, lever) + 1e-6 * f_px**2 * np.eye(3)
        turn = -np.linalg.solve(normal, np.einsum("dn,dni,dn->di", weight, lever, miss)[..., None])[..., 0]
        left = miss + np.einsum("dni,di->dn", lever, turn)
    bound = 2.5 * float(scale.min())
    best = int(np.argmin(np.minimum(np.square(left), bound**2).sum(axis=1)))
    return rotation_exp(turn[best]), _DIRECTIONS[best]


def _refine(
    before: Array, after: Array, rotation: Array, travel: Array, f_px: float
) -> tuple[float, Array, Array]:
    """Return the median Sampson distance (px), the rotation and its covariance, polished from a good guess."""
    for _ in range(20):
        residual, jacobian, frame = _sampson(before, after, rotation, travel, f_px)
        scale = max(1.4826 * float(np.median(np.abs(residual))), 0.05)
        weight = (1 + np.square(residual / (2.5 * scale))) ** -2
        information = (jacobian * weight[:, None]).T @ jacobian + 1e-9 * f_px**2 * np.eye(5)
        step = np.linalg.solve(information, -jacobian.T @ (weight * residual))
        step *= min(1.0, 0.2 / max(float(np.abs(step).max()), 1e-12))
        rotation = rotation @ rotation_exp(step[:3])
        travel = travel + frame @ step[3:]
        travel /= np.linalg.norm(travel)
        if float(np.abs(step).max()) < 1e-6:
            break
    covariance = scale**2 * np.linalg.inv(information)[:3, :3]
    return float(np.median(np.abs(residual))), rotation, np.asarray(covariance, np.float64)


def _sampson(
    before: Array, after: Array, rotation: Array, travel: Array, f_px: float
) -> tuple[Array, Array, Array]:
    """Return Sampson distances (px), their jacobian (N, 5) in rotation and travel, and travel's tangent axes."""
    frame = np.linalg.svd(travel[None, :])[2][1:].T

    def distances(change: Array) -> Array:
        direction = travel + frame @ change[3:]
        essential = skew(direction / np.linalg.norm(direction)) @ rotation @ rotation_exp(change[:3])
        lines_before, lines_after = after @ essential.T, before @ essential
        norm = np.sqrt(np.square(lines_before[:, :2]).sum(axis=1) + np.square(lines_after[:, :2]).sum(axis=1))
        product = np.einsum("ij,ij->i", before, lines_before)
        return np.asarray(f_px * product / np.maximum(norm, 1e-12), np.float64)

    step = 1e-5
    columns = [(distances(step * axis) - distances(-step * axis)) / (2 * step) for axis in np.eye(5)]
    return distances(np.zeros(5)), np.stack(columns, axis=1), frame
