"""Images of a scene: one perspective warp per visible surface, drawn far to near."""

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from sensorium.calibration.geometry import Intrinsics
from sensorium.simulators.surfaces import Array, Image, Scene, Surface

Maps = tuple[NDArray[np.float32], NDArray[np.float32]]

_NEAR_M = 0.05
_SUBPIXEL_BITS = 4


@dataclass(frozen=True, slots=True, eq=False)
class _Seen:
    """A surface with its (4, 3) corners in camera coordinates."""

    surface: Surface
    corners_m: Array
    order: int
    nearness: float


class Renderer:
    """Draws what a camera sees; holds the noise field and the distortion maps.

    Noise: white, grey, normal with ``noise_dn`` grey values, from a fixed field at a random shift per image.
    """

    def __init__(
        self, scene: Scene, lens: Intrinsics, rng: np.random.Generator, noise_dn: float = 1.5
    ) -> None:
        self._scene = scene
        self._lens = lens
        self._rng = rng
        self._ideal, self._maps = _ideal_view(lens)
        field = rng.normal(128.0, noise_dn, (lens.height + 64, lens.width + 64, 1)).round()
        self._noise: Image = np.repeat(np.clip(field, 0, 255).astype(np.uint8), 3, axis=2)

    def image(self, T_world_camera: Array, world_s: float) -> Image:
        """Return the (height, width, 3) BGR image from this pose."""
        lens = self._ideal
        canvas: Image = np.zeros((lens.height, lens.width, 3), np.uint8)
        R_camera_world = T_world_camera[:3, :3].T
        eye = T_world_camera[:3, 3]
        for seen in _visible(self._scene.surfaces(world_s), lens, R_camera_world, eye):
            _draw(canvas, seen, lens, R_camera_world, eye)
        if self._maps is not None:
            canvas = np.asarray(cv2.remap(canvas, *self._maps, cv2.INTER_LINEAR), np.uint8)
        dy, dx = self._rng.integers(0, 64, 2)
        field = self._noise[dy : dy + self._lens.height, dx : dx + self._lens.width]
        return np.asarray(cv2.addWeighted(canvas, 1.0, field, 1.0, -128.0), np.uint8)


def _ideal_view(lens: Intrinsics) -> tuple[Intrinsics, Maps | None]:
    """Return the undistorted view to draw, and maps that bend it as the lens does (None: straight)."""
    if not any(lens.distortion):
        return lens, None
    grid = np.mgrid[0 : lens.height, 0 : lens.width].astype(np.float64)
    pixels = np.stack([grid[1].ravel(), grid[0].ravel()], axis=1)
    rays = cv2.undistortPoints(pixels[:, None], lens.K, np.array(lens.distortion))[:, 0]
    low, high = rays.min(axis=0), rays.max(axis=0)
    width = int(np.ceil((high[0] - low[0]) * lens.fx)) + 3
    height = int(np.ceil((high[1] - low[1]) * lens.fy)) + 3
    ideal = Intrinsics("pinhole", width, height, lens.fx, lens.fy, 1 - low[0] * lens.fx, 1 - low[1] * lens.fy)
    x = (rays[:, 0] * lens.fx + ideal.cx).reshape(lens.height, lens.width)
    y = (rays[:, 1] * lens.fy + ideal.cy).reshape(lens.height, lens.width)
    return ideal, (x.astype(np.float32), y.astype(np.float32))


def _visible(surfaces: list[Surface], lens: Intrinsics, R_camera_world: Array, eye: Array) -> list[_Seen]:
    """Return the surfaces that face the eye and reach into the image, in drawing order."""
    corners = np.array([surface.corners_m for surface in surfaces]) - eye
    normals = np.array([surface.normal for surface in surfaces])
    facing = np.einsum("ni,ni->n", corners[:, 0], normals) < 0
    middle = corners.mean(axis=1)
    distance = np.hypot(middle[:, 0], middle[:, 1])
    seen = corners @ R_camera_world.T
    x, y, z = seen[..., 0] * lens.fx, seen[..., 1] * lens.fy, seen[..., 2]
    outside = (z < _NEAR_M).all(axis=1)
    outside |= (x < -lens.cx * z).all(axis=1) | (x > (lens.width - lens.cx) * z).all(axis=1)
    outside |= (y < -lens.cy * z).all(axis=1) | (y > (lens.height - lens.cy) * z).all(axis=1)
    chosen = np.flatnonzero(facing & ~outside)
    found = [_Seen(surfaces[k], seen[k], surfaces[k].order, -float(distance[k])) for k in chosen]
    return sorted(found, key=lambda one: (one.order, one.nearness))


def _draw(canvas: Image, seen: _Seen, lens: Intrinsics, R_camera_world: Array, eye: Array) -> None:
    surface, corners = seen.surface, _clip_near(seen.corners_m)
    pixels = corners[:, :2] / corners[:, 2:] * (lens.fx, lens.fy) + (lens.cx, lens.cy)
    (low_x, low_y), (high_x, high_y) = pixels.min(axis=0), pixels.max(axis=0)
    left, top = max(math.floor(low_x), 0), max(math.floor(low_y), 0)
    right, bottom = min(math.ceil(high_x) + 1, lens.width), min(math.ceil(high_y) + 1, lens.height)
    if left >= right or top >= bottom:
        return
    texture = _level(surface, corners, lens)
    step_right = surface.right * (surface.size_m[0] / texture.shape[1])
    step_down = surface.up * (-surface.size_m[1] / texture.shape[0])
    first = surface.corner_m - eye + 0.5 * (step_right + step_down)
    image_from_texture = lens.K @ R_camera_world @ np.array([step_right, step_down, first]).T
    # Row operations that move the patch's corner to pixel (0, 0).
    image_from_texture[0] -= left * image_from_texture[2]
    image_from_texture[1] -= top * image_from_texture[2]
    patch = cv2.warpPerspective(
        texture,
        image_from_texture,
        (right - left, bottom - top),
        flags=cv2.INTER_LINEAR,
        # 40 % cheaper than BORDER_REPLICATE; the half pixel along the edges takes on the mean colour.
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=surface.mean,
    )
    # OpenCV rasterises with int32 coordinates: keep far-away corners of near surfaces inside their range.
    outline = np.clip(pixels - (left, top), -60000, 60000) * (1 << _SUBPIXEL_BITS)
    mask = np.zeros(patch.shape[:2], np.uint8)
    cv2.fillConvexPoly(mask, np.rint(outline).astype(np.int32), 255, cv2.LINE_8, _SUBPIXEL_BITS)
    cv2.copyTo(patch, mask, canvas[top:bottom, left:right])


def _clip_near(corners: Array) -> Array:
    """Cut a polygon in camera coordinates at z = _NEAR_M (Sutherland-Hodgman)."""
    if corners[:, 2].min() >= _NEAR_M:
        return corners
    kept: list[Array] = []
    for start, end in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        if start[2] >= _NEAR_M:
            kept.append(start)
        if (start[2] >= _NEAR_M) != (end[2] >= _NEAR_M):
            part = (_NEAR_M - start[2]) / (end[2] - start[2])
            kept.append(start + part * (end - start))
    return np.array(kept)


def _level(surface: Surface, corners: Array, lens: Intrinsics) -> Image:
    """Return the pyramid level whose pixels are as fine as the image's at the surface's mean depth."""
    depth = max(float(corners[:, 2].mean()), _NEAR_M)
    texture_px_per_m = surface.levels[0].shape[1] / surface.size_m[0]
    ratio = texture_px_per_m * depth / lens.fx
    number = round(math.log2(max(ratio, 1.0)))
    return surface.levels[min(number, len(surface.levels) - 1)]
