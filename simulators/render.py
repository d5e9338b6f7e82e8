"""Images of a scene: one perspective warp per visible surface, drawn far to near."""

import cv2
import numpy as np
from numpy.typing import NDArray

from sensorium.calibration.geometry import Intrinsics
from sensorium.simulators.surfaces import Array, Image, Scene, Surface

Maps = tuple[NDArray[np.float32], NDArray[np.float32]]

_NEAR_M = 0.05
_SUBPIXEL_BITS = 4


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
        for surface in _visible(self._scene.surfaces(world_s), eye):
            _draw(canvas, surface, lens, R_camera_world, eye)
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


def _visible(surfaces: list[Surface], eye: Array) -> list[Surface]:
    """Return the surfaces that face the eye, in drawing order."""
    facing = [surface for surface in surfaces if (eye - surface.corner_m) @ surface.normal > 0]

    def key(surface: Surface) -> tuple[int, float]:
        centre = surface.corners_m.mean(axis=0)
        return surface.order, -float(np.linalg.norm(centre[:2] - eye[:2]))

    return sorted(facing, key=key)


def _draw(canvas: Image, surface: Surface, lens: Intrinsics, R_camera_world: Array, eye: Array) -> None:
    corners = _clip_near((surface.corners_m - eye) @ R_camera_world.T)
    if len(corners) < 3:
        return
    pixels = corners[:, :2] / corners[:, 2:] * (lens.fx, lens.fy) + (lens.cx, lens.cy)
    left, top = np.maximum(np.floor(pixels.min(axis=0)), 0).astype(int)
    right, bottom = np.minimum(np.ceil(pixels.max(axis=0)) + 1, (lens.width, lens.height)).astype(int)
    if left >= right or top >= bottom:
        return
    texture = _level(surface, corners, lens)
    pixels_per_m = texture.shape[1] / surface.size_m[0]
    step_right, step_up = surface.right / pixels_per_m, surface.up / (texture.shape[0] / surface.size_m[1])
    first = surface.corner_m - eye + 0.5 * (step_right - step_up)
    image_from_texture = lens.K @ R_camera_world @ np.stack([step_right, -step_up, first], axis=1)
    shift = np.array([[1, 0, -left], [0, 1, -top], [0, 0, 1.0]])
    patch = cv2.warpPerspective(
        texture,
        shift @ image_from_texture,
        (int(right - left), int(bottom - top)),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    # OpenCV rasterises with int32 coordinates: keep far-away corners of near surfaces inside their range.
    outline = np.clip(pixels - (left, top), -60000, 60000) * (1 << _SUBPIXEL_BITS)
    mask = np.zeros(patch.shape[:2], np.uint8)
    cv2.fillConvexPoly(mask, np.rint(outline).astype(np.int32), 255, cv2.LINE_8, _SUBPIXEL_BITS)
    cv2.copyTo(patch, mask, canvas[top:bottom, left:right])


def _clip_near(corners: Array) -> Array:
    """Cut a polygon in camera coordinates at z = _NEAR_M (Sutherland-Hodgman)."""
    kept: list[Array] = []
    for start, end in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        if start[2] >= _NEAR_M:
            kept.append(start)
        if (start[2] >= _NEAR_M) != (end[2] >= _NEAR_M):
            part = (_NEAR_M - start[2]) / (end[2] - start[2])
            kept.append(start + part * (end - start))
    return np.array(kept)


def _level(surface: Surface, corners: Array, lens: Intrinsics) -> Image:
    """Return the pyramid level whose pixels are as fine as the image's at the surface's middle depth."""
    depth = max(float(np.median(corners[:, 2])), _NEAR_M)
    texture_px_per_m = surface.levels[0].shape[1] / surface.size_m[0]
    ratio = texture_px_per_m * depth / lens.fx
    number = int(np.clip(np.round(np.log2(max(ratio, 1e-6))), 0, len(surface.levels) - 1))
    return surface.levels[number]
