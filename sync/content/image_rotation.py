"""How a camera turned from one image to the next, from tracked corners (for `content.rotation_offset`)."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from sensorium.errors import ClockError
from sensorium.sync.content.offset import ContentOffset
from sensorium.sync.content.rotation import predicted_turns, rotation_offset

Floats = NDArray[np.float64]
Undistort = Callable[[Floats], Floats]
"""Maps (n, 2) pixels to (n, 2) normalised coordinates (z = 1); NaN where it cannot."""

_CORNERS = 250
_CORNER_QUALITY = 0.01
_CORNER_APART_PX = 12
_WINDOW_PX = 21
_BACK_PX = 0.3
"""A track must come back to where it began, to this many pixels (forward-backward check)."""
_MIN_TRACKS = 20
_FIRST_ROUNDS = 5
_ROUNDS = 15
_TRACK_RAD = 2e-4
"""Misfit of a usual track: 0.1 pixel of a camera with a focal length of 500."""
_HALF = np.sqrt(0.5)
_STARTS: Floats = np.array(
    [
        (1, 0, 0), (0, 1, 0), (0, 0, 1), (_HALF, _HALF, 0), (_HALF, -_HALF, 0), (_HALF, 0, _HALF),
        (_HALF, 0, -_HALF), (0, _HALF, _HALF), (0, _HALF, -_HALF),
    ]
)  # fmt: skip
"""Directions of motion to begin with: half a sphere, since the sign does not matter."""


@dataclass(frozen=True, slots=True, eq=False)
class _Step:
    before: Floats
    now: Floats


class RotationFinder:
    """Gives the rotation of each step of a camera: :meth:`add` its images in order, then ask for :meth:`turns`."""

    def __init__(self, undistort: Undistort, *, scale: float = 1.0) -> None:
        """Args: scale: Images are shrunk by this factor before tracking; a half suffices and costs a quarter."""
        if not 0 < scale <= 1:
            raise ClockError(f"image rotation: scale {scale} is not within (0, 1]")
        self._undistort, self._scale = undistort, scale
        self._before: NDArray[np.uint8] | None = None
        self._steps: list[_Step | None] = []
        self._unhinted: Floats = np.empty((0, 3))

    def add(self, image: NDArray[np.uint8]) -> None:
        """Take the next image (grey or BGR); only the bearings of its tracks are kept."""
        grey = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
        if self._scale != 1.0:
            grey = cv2.resize(grey, None, fx=self._scale, fy=self._scale, interpolation=cv2.INTER_AREA)
        before, self._before = self._before, np.asarray(grey, np.uint8)
        if before is not None:
            self._steps.append(self._track(before, self._before))

    def _track(self, before: NDArray[np.uint8], now: NDArray[np.uint8]) -> _Step | None:
        if before.shape != now.shape:
            return None
        # Centres of pixels of a shrunk image lie between those of the full one.
        first, second = (self._undistort((points + 0.5) / self._scale - 0.5) for points in track(before, now))
        good = np.isfinite(first).all(axis=1) & np.isfinite(second).all(axis=1)
        if good.sum() < _MIN_TRACKS:
            return None
        return _Step(bearings(first[good]), bearings(second[good]))

    def turns(self, hints: Floats | None = None) -> Floats:
        """Return (n - 1, 3) rotation vectors (rad) R_before_now in camera axes; NaN where the track was lost.

        Args:
            hints: (n - 1, 3) rotations to begin with, from a gyro. Two views of a scene that is almost flat have
                two explanations; a hint only says which of them to look at first.
        """
        if hints is None and len(self._unhinted) == len(self._steps):
            return self._unhinted
        out = np.full((len(self._steps), 3), np.nan)
        direction = None
        for index, step in enumerate(self._steps):
            if step is not None:
                hint = None if hints is None or not np.isfinite(hints[index]).all() else hints[index]
                out[index], direction = rotation_between(step.before, step.now, direction, hint)
        if hints is None:
            self._unhinted = out
        return out


def gyro_offset(
    finder: RotationFinder,
    visual_ns: NDArray[np.int64],
    gyro_ns: NDArray[np.int64],
    gyro_rad_s: Floats,
    **options: Any,
) -> ContentOffset:
    """Return `rotation_offset` of the images added to ``finder``, in two passes.

    The first pass knows only the images; its answer tells where the gyro puts each step, which the second pass
    begins from. Raises and ``options`` as `rotation_offset`.
    """
    first = rotation_offset(visual_ns, finder.turns(), gyro_ns, gyro_rad_s, **options)
    if not first.is_informative or first.rotation is None:
        return first
    hints = predicted_turns(visual_ns, gyro_ns, gyro_rad_s, first, **options)
    second = rotation_offset(visual_ns, finder.turns(hints), gyro_ns, gyro_rad_s, **options)
    # What the camera's shifting can do to the answer does not average out; how far it moved shows its size.
    moved_ns = abs(second.offset_ns - first.offset_ns)
    return replace(second, bound_ns=second.bound_ns + moved_ns)


def bearings(normalised: Floats) -> Floats:
    """Return (n, 3) unit vectors of (n, 2) normalised coordinates."""
    rays = np.column_stack([normalised, np.ones(len(normalised))])
    return np.asarray(rays / np.linalg.norm(rays, axis=1, keepdims=True), np.float64)


def track(before: NDArray[np.uint8], now: NDArray[np.uint8]) -> tuple[Floats, Floats]:
    """Return (n, 2) pixel positions of corners in two grey images (pyramidal Lucas-Kanade, Bouguet 2001)."""
    corners = cv2.goodFeaturesToTrack(before, _CORNERS, _CORNER_QUALITY, _CORNER_APART_PX)
    if corners is None:
        return np.empty((0, 2)), np.empty((0, 2))
    window = (_WINDOW_PX, _WINDOW_PX)
    moved, found, _ = cv2.calcOpticalFlowPyrLK(before, now, corners, corners.copy(), winSize=window)
    back, found_back, _ = cv2.calcOpticalFlowPyrLK(now, before, moved, moved.copy(), winSize=window)
    error = np.linalg.norm((back - corners).reshape(-1, 2), axis=1)
    good = (found.ravel() == 1) & (found_back.ravel() == 1) & (error < _BACK_PX)
    first: Floats = corners.reshape(-1, 2)[good].astype(np.float64)
    second: Floats = moved.reshape(-1, 2)[good].astype(np.float64)
    return first, second


def rotation_between(
    before: Floats, now: Floats, direction: Floats | None = None, hint: Floats | None = None
) -> tuple[Floats, Floats]:
    """Return the rotation vector r of a small step, and the direction t in which the camera moved.

    Begins with the rotation-only fit (robust Kabsch); parallax makes that wrong by as much as the flow it causes.
    Then both r and t are refined on the epipolar constraint t . (before x exp(r) now) = 0, as distances from the
    epipolar great circle (Gauss-Newton over 3 + 2 parameters, damped, weights after Geman and McClure).

    Args:
        before: (n, 3) unit bearings.
        now: (n, 3) unit bearings of the same points one step later.
        direction: (3,) direction of the step before, tried as a start beside a fixed set.
        hint: (3,) rotation to begin with, beside the rotation-only fit.
    """
    start = _rotation_only(before, now)
    # The misfit has several valleys: turning about one axis looks like shifting along another.
    starts = _STARTS if direction is None else np.vstack([_STARTS, direction])
    tried = [_refine(before, now, start, each, _FIRST_ROUNDS) for each in starts]
    if hint is not None:
        tried += [_refine(before, now, hint, each, _FIRST_ROUNDS) for each in starts]
    tried.sort(key=lambda each: each[0])
    found = [_refine(before, now, rotation, moved, _ROUNDS) for _, rotation, moved in tried[:2]]
    best = min(found, key=lambda each: each[0])
    return best[1], best[2]


def _refine(
    before: Floats, now: Floats, rotation: Floats, direction: Floats, rounds: int
) -> tuple[float, Floats, Floats]:
    """Return (robust misfit, rotation, direction)."""
    damping = 1e-6
    misfit, rows = _epipolar(before, now, rotation, direction)
    cost = _robust(misfit)
    for _ in range(rounds):
        weights = 1.0 / (1.0 + (misfit / _TRACK_RAD) ** 2)
        normal = (weights[:, None] * rows).T @ rows
        step = np.linalg.solve(
            normal + damping * np.diag(np.diag(normal)) + 1e-12 * np.eye(5), -(weights * misfit) @ rows
        )
        turned = rotation + step[:3]
        moved = direction + _tangent(direction) @ step[3:]
        moved /= np.linalg.norm(moved)
        next_misfit, next_rows = _epipolar(before, now, turned, moved)
        next_cost = _robust(next_misfit)
        if next_cost >= cost:
            damping *= 10
            if damping > 1e3:
                break
            continue
        is_done = cost - next_cost < 1e-6 * cost
        rotation, direction, misfit, rows = turned, moved, next_misfit, next_rows
        cost, damping = next_cost, damping / 10
        if is_done:
            break
    return cost, rotation, direction


def _robust(misfit: Floats) -> float:
    """Return the sum of Cauchy's loss: points off the main plane must keep a voice, false tracks must not."""
    return float(np.log1p((misfit / _TRACK_RAD) ** 2).sum())


def _tangent(direction: Floats) -> Floats:
    """Return (3, 2) orthonormal columns across a direction."""
    _, _, vt = np.linalg.svd(direction[None, :])
    return np.asarray(vt[1:].T, np.float64)


def _epipolar(before: Floats, now: Floats, rotation: Floats, direction: Floats) -> tuple[Floats, Floats]:
    """Return (n,) angles off the epipolar circles, and their (n, 5) derivatives by rotation and direction."""
    matrix, _ = cv2.Rodrigues(rotation)
    seen = now @ np.asarray(matrix, np.float64).T
    across = np.cross(seen, direction)
    # Near the epipole the circle is undefined; such points say little.
    length = np.maximum(np.linalg.norm(across, axis=1), 0.05)
    plane = np.cross(before, seen)
    misfit = plane @ direction / length
    # d(seen) = dr x seen, so d(t . (before x seen)) = dr . (seen x (t x before)).
    by_rotation = np.cross(seen, np.cross(direction, before)) / length[:, None]
    by_direction = plane @ _tangent(direction) / length[:, None]
    return misfit, np.hstack([by_rotation, by_direction])


def _rotation_only(before: Floats, now: Floats) -> Floats:
    rotation = np.zeros(3)
    weights = np.ones(len(now))
    for _ in range(6):
        u, _, vt = np.linalg.svd((weights[:, None] * before).T @ now)
        matrix = u @ np.diag([1.0, 1.0, np.linalg.det(u @ vt)]) @ vt
        vector, _ = cv2.Rodrigues(matrix)
        rotation = np.asarray(vector, np.float64).ravel()
        misfit = np.linalg.norm(before - now @ matrix.T, axis=1)
        scale = max(float(np.median(misfit)), 1e-7)
        weights = 1.0 / (1.0 + (misfit / (2 * scale)) ** 2) ** 2
    return rotation
