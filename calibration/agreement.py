"""How well edges of images and clouds agree under a motion of the LiDAR, and the motion where they agree best."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from sensorium.calibration.edges import Reference
from sensorium.calibration.geometry import (
    Array,
    apply,
    rotation_exp,
    skew,
)
from sensorium.calibration.keyframes import OUTLINE_PLACES, SHRINK, Keyframe

# Edges per cue and keyframe that take part at each blur.
MAX_EDGES = (500, 1000, 1_000_000)
# Weights of the three cues: between-ring outlines lie somewhere between two rings. Each of them is looked for at
# several places, whose sum would count as several looks.
CUE_WEIGHTS = (1.0, 0.5 / OUTLINE_PLACES**0.5, 1.0)
# A mount that moved more than this is found by the other checks first (bounds of the climb).
BOUNDS = np.array([np.deg2rad(4.0)] * 3 + [0.8] * 3 + [0.05])
# Large motions are rare; the prior keeps degrees that the scene does not pin near zero.
PRIOR_SIGMA = np.array([np.deg2rad(1.0)] * 3 + [0.2] * 3)
# Estimates of windows of kitti_raw_seq scatter this much more than the bend of the agreement says.
SIGMA_INFLATION = 1.3
# Shift at which the bend of the agreement is read: the sharpest blur.
BEND_PX = 1.5
# What separates a reading from the truth although nothing moved, in every window alike: beams have a width,
# so edges are seen beside where they are (spec 2: +.12/-.09/-.07 deg, 0.3/0.8/1.0 cm). One sigma.
BIAS_SIGMA = np.array([np.deg2rad(0.1), np.deg2rad(0.1), np.deg2rad(0.07), 0.008, 0.008, 0.02])
# The same against a reference taken by this very check: only what changes from scene to scene is left.
DRIFT_SIGMA = np.array([np.deg2rad(0.03)] * 3 + [0.006, 0.006, 0.008])


@dataclass(frozen=True, slots=True, eq=False)
class Expectation:
    """Where a LiDAR is expected to be found: motion from the calibration (6,) and its covariance (6, 6).

    The covariance holds what goes together: a reference knows a turn against the shift that looks alike much
    less well than the two as one.
    """

    mean: Array
    covariance: Array

    @classmethod
    def of(cls, reference: Reference | None) -> "Expectation":
        """Return where a LiDAR is found that did not move."""
        if reference is None:
            return cls(np.zeros(6), np.diag(BIAS_SIGMA**2))
        sigma = np.array(reference.sigma)
        correlation = np.array(reference.correlation) if reference.correlation else np.eye(6)
        known = correlation * np.outer(sigma, sigma)
        return cls(np.array(reference.mean), known + np.diag(DRIFT_SIGMA**2))


def expected_of(keyframes: Sequence[Keyframe], reference: Reference | None) -> Expectation:
    """Return where a LiDAR is found in these keyframes that did not move.

    Rings too far apart for level outlines leave open where between two of them a thing ends, which reads as a
    pitch or roll of a part of their spacing, the same in every scene (0.4 to 0.6 deg at 1.3 deg of spacing).
    """
    found = Expectation.of(reference)
    if reference is not None or not keyframes:
        return found
    level_rad = float(np.mean([frame.level_sigma_rad for frame in keyframes]))
    variance = np.zeros(6)
    variance[[0, 2]] = level_rad**2
    return Expectation(found.mean, found.covariance + np.diag(variance))


ANYWHERE = Expectation(np.zeros(6), np.diag(PRIOR_SIGMA**2))


@dataclass(frozen=True, slots=True, eq=False)
class Estimate:
    """Where a window of keyframes sees the LiDAR.

    Attributes:
        motion: (6,) rotation (rad) and translation (m) in camera axes (x right, y down, z forward):
            the LiDAR is at ``small_motion(motion) @ T_camera_lidar``.
        covariance: (6, 6) of the scatter from window to window, without any common bias.
        score: Height of the top above the calibration's own place, in standard deviations of chance.
    """

    motion: Array
    covariance: Array
    score: float


class Agreement:
    """How well the edges agree at a motion, and its gradient; one blur level, several keyframes.

    Each cue of each keyframe counts as a score with unit variance under chance, so the sum behaves as a
    logarithmic likelihood and the prior can be added to it.
    """

    def __init__(
        self,
        keyframes: Sequence[Keyframe],
        T_camera_lidar: Array,
        level: int,
        prior: "Expectation | None" = None,
    ) -> None:
        self._mean = (prior or ANYWHERE).mean
        self._precision = np.linalg.inv((prior or ANYWHERE).covariance)
        self._terms = []
        for frame in keyframes:
            for cue, edges in enumerate(frame.edges):
                if len(edges) < 5:
                    continue
                # Evenly spread edges place a blurred top as well as all of them do.
                every = -(-len(edges) // MAX_EDGES[level])
                xyz, weight = edges.xyz[::every], edges.weight[::every]
                weight = CUE_WEIGHTS[cue] * weight / float(np.linalg.norm(weight))
                image = frame.images[level][cue]
                self._terms.append((cue, frame.camera, image, apply(T_camera_lidar, xyz), weight))
        self._shrink = SHRINK[level]

    def value(self, motion: Array) -> tuple[float, Array]:
        """Return the agreement less the prior's cost, and its (6,) gradient."""
        total, gradient = 0.0, np.zeros(len(motion))
        for _, image, pixels, weight, slope_u, slope_v in self._follow(motion):
            value, across, down = _sample(image, pixels, self._shrink)
            total += float(weight @ value)
            gradient += (weight * across) @ slope_u + (weight * down) @ slope_v
        gap = motion - self._mean
        pull = self._precision @ gap
        return total - 0.5 * float(gap @ pull), gradient - pull

    def covariance(self, motion: Array) -> Array:
        """Return the covariance of the top: the inverse of the prior's and the edges' information."""
        information = self._precision + self.information(motion)
        return np.asarray(SIGMA_INFLATION**2 * np.linalg.inv(information), np.float64)

    def information(self, motion: Array) -> Array:
        """Return what the edges alone tell about the degrees: how sharp the agreement's top is.

        Each cue's agreement, summed over all its points, falls off when the image is shifted by a pixel or two
        sideways or upwards; that bend, times how each point's pixel follows the six degrees, is the information.
        The plain second derivative of the agreement would see single pixels, and is often not even definite.
        """
        bends = np.zeros((len(CUE_WEIGHTS), 2))
        size = len(motion)
        follows = np.zeros((len(CUE_WEIGHTS), 2, size, size))
        for cue, image, pixels, weight, slope_u, slope_v in self._follow(motion):
            centre = _sample(image, pixels, self._shrink)[0]
            for axis, slope in enumerate((slope_u, slope_v)):
                shift = np.zeros(2)
                shift[axis] = BEND_PX
                sides = sum(_sample(image, pixels + way * shift, self._shrink)[0] for way in (-1, 1))
                bends[cue, axis] += float((weight * (2 * centre - sides)).sum()) / BEND_PX**2
                follows[cue, axis] += (slope * weight[:, None]).T @ slope
        total = np.zeros(len(bends))
        for cue, *_, weight in self._terms:
            total[cue] += float(weight.sum())
        seen = np.where(total > 0, np.maximum(bends, 0.0).T / np.maximum(total, 1e-12), 0.0).T
        return np.asarray(np.einsum("ca,caij->ij", seen, follows), np.float64)

    def pulls(self, motion: Array, columns: int) -> Array:
        """Return (columns, n) how the edges in each upright strip of the images pull at the degrees."""
        found = np.zeros((columns, len(motion)))
        terms = zip(self._terms, self._follow(motion), strict=True)
        for (_, camera, *_), (_, image, pixels, weight, slope_u, slope_v) in terms:
            _, across, down = _sample(image, pixels, self._shrink)
            strip = np.clip(pixels[:, 0] / camera.width * columns, 0, columns - 1).astype(np.intp)
            np.add.at(found, strip, (weight * across)[:, None] * slope_u + (weight * down)[:, None] * slope_v)
        return found

    def _follow(self, motion: Array) -> Iterator[tuple[int, NDArray[np.float32], Array, Array, Array, Array]]:
        """Yield cue, image, pixels, weights and how the pixels' u and v follow the six degrees, by term."""
        rotation, turn = rotation_exp(motion[:3]), _left_jacobian(motion[:3])
        stretch = 1.0 + motion[6] if len(motion) > 6 else 1.0
        for cue, camera, image, points, weight in self._terms:
            turned = points @ rotation.T
            x, y, z = (turned + motion[3:6]).T
            z = np.maximum(z, 0.5)
            fx, fy = camera.fx * stretch, camera.fy * stretch
            pixels = np.stack([x / z * fx + camera.cx, y / z * fy + camera.cy], axis=1)
            slopes = [
                _slopes(turned, along, depth, axis, focal, len(motion))
                for axis, along, depth, focal in (
                    (0, fx / z, -fx * x / z**2, x / z * camera.fx),
                    (1, fy / z, -fy * y / z**2, y / z * camera.fy),
                )
            ]
            for slope in slopes:
                slope[:, :3] = slope[:, :3] @ turn
            yield cue, image, pixels, weight, slopes[0], slopes[1]


def _slopes(turned: Array, along: Array, depth: Array, axis: int, by_focal: Array, size: int) -> Array:
    """Return (N, size) derivatives of one pixel coordinate by turn, shift and (if asked for) focal length.

    Args:
        turned: (N, 3) points, turned but not yet shifted.
        along, depth: (N,) derivatives of the coordinate by the point's own ``axis`` (0 or 1) and by its z.
    """
    found = np.zeros((len(turned), size))
    x, y, z = turned.T
    found[:, 3 + axis], found[:, 5] = along, depth
    # The turn's part is the cross product of the point with the shift's part; numpy's own is three times slower.
    if axis == 0:
        found[:, 0], found[:, 1], found[:, 2] = y * depth, z * along - x * depth, -y * along
    else:
        found[:, 0], found[:, 1], found[:, 2] = y * depth - z * along, -x * depth, x * along
    if size > 6:
        found[:, 6] = by_focal
    return found


def _left_jacobian(rotation_vector: Array) -> Array:
    """Return d exp(w) in the tangent on the left, to second order (angles here stay under 4 degrees)."""
    cross = skew(rotation_vector)
    return np.asarray(np.eye(3) + cross / 2 + cross @ cross / 6, np.float64)


def _sample(image: NDArray[np.float32], pixels: Array, shrink: int) -> tuple[Array, Array, Array]:
    """Return values and derivatives (per full-size pixel) of a shrunk image; zero outside it."""
    count = len(pixels)
    columns = 256  # cv2.remap takes at most 32767 rows or columns
    padded = np.full((-(-count // columns) * columns, 2), -1e4, np.float32)
    padded[:count] = (pixels + 0.5) / shrink - 0.5
    u, v = (padded[:, axis].reshape(-1, columns) for axis in (0, 1))

    def at(du: float, dv: float) -> Array:
        sampled = cv2.remap(image, u + du, v + dv, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
        return np.asarray(sampled.reshape(-1)[:count], np.float64)

    scale = 2.0 * shrink
    return at(0, 0), (at(1, 0) - at(-1, 0)) / scale, (at(0, 1) - at(0, -1)) / scale


def hill_climb(agreement: Agreement, start: Array, iterations: int = 40) -> Array:
    """Return the top reached from ``start`` by a quasi-Newton (BFGS) climb with backtracking.

    Steps are in units that move the image by about a pixel: 1/720 rad, 12/720 m, 1/360 of the focal length.
    """
    size = len(start)
    unit = np.array([1 / 720.0] * 3 + [12 / 720.0] * 3 + [1 / 360.0])[:size]
    limit = BOUNDS[:size] / unit

    def cost(x: Array) -> tuple[float, Array]:
        value, gradient = agreement.value(x * unit)
        return -value, -gradient * unit

    x = start / unit
    value, gradient = cost(x)
    inverse = np.eye(size) * 2.0 / max(float(np.linalg.norm(gradient)), 1e-9)
    for iteration in range(iterations):
        step = -inverse @ gradient
        step *= min(1.0, 8.0 / max(float(np.abs(step).max()), 1e-9))
        slope = float(gradient @ step)
        if slope > -1e-9:
            break
        length = 1.0
        while True:
            candidate = np.clip(x + length * step, -limit, limit)
            new_value, new_gradient = cost(candidate)
            if new_value <= value + 1e-4 * length * slope or length < 1e-3:
                break
            length *= 0.4
        if new_value > value:
            break
        moved, change = candidate - x, new_gradient - gradient
        bend = float(moved @ change)
        if bend > 1e-9:
            if iteration == 0:
                inverse = np.eye(size) * bend / float(change @ change)
            left = np.eye(size) - np.outer(moved, change) / bend
            inverse = left @ inverse @ left.T + np.outer(moved, moved) / bend
        x, value, gradient = candidate, new_value, new_gradient
        if iteration > 2 and float(np.abs(moved).max()) < 0.02:
            break
    return np.asarray(x * unit, np.float64)
