"""Whether a gyro and another sensor turn alike: their relative rotation and time offset, from motion.

A camera (tracked features) or LiDAR (odometry) gives the rotation from frame to frame; the gyro, integrated
over the same intervals shifted by a time offset, must give the same rotation in its own axes. Translation
between the two would need second derivatives and is left to offline tools.

Source: spec calibration 1.8 and 1.9.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from sensorium.calibration.checks import Degree, judge
from sensorium.calibration.geometry import (
    Array,
    Intrinsics,
    nearest_rotation,
    rotation_exp,
    rotation_log,
    skew,
    undistort,
)
from sensorium.calibration.rig_document import RigCalibration
from sensorium.verdict import Quantity, Verdict

CHECK = "imu_rotation"

MIN_EXCITATION_RAD_S = np.deg2rad(5.0)
MIN_SPAN_S = 5.0
MIN_STEPS = 30
MAX_OFFSET_S = 0.05
# Below this the tracks are as good as without parallax, and the direction of travel is noise.
MIN_PARALLAX_PX = 0.1
# Formal deviations are right within 1.0 to 1.5 (EuRoC); gyro scale and misalignment add a floor of 0.15 deg.
SIGMA_INFLATION = 1.5
ROTATION_FLOOR_RAD = np.deg2rad(0.15)
OFFSET_FLOOR_S = 0.5e-3


@dataclass(frozen=True, slots=True, eq=False)
class Turns:
    """Rotations of a sensor between instants.

    Attributes:
        start_s, end_s: (N,) on the episode's clock.
        rate_rad_s: (N, 3) rotation vector of each step divided by its duration, in the sensor's axes.
        sigma_rad_s: (N,) how well each is known against the others, or None if equally well.
    """

    start_s: Array
    end_s: Array
    rate_rad_s: Array
    sigma_rad_s: Array | None = None

    def shifted(self, by_s: float) -> "Turns":
        """Return the same turns with stamps moved by ``by_s``."""
        return Turns(self.start_s + by_s, self.end_s + by_s, self.rate_rad_s, self.sigma_rad_s)

    @classmethod
    def from_rotations(cls, time_s: Array, rotations: Sequence[Array]) -> "Turns":
        """Build from orientations R_world_sensor at (N + 1,) instants."""
        steps = np.array([rotation_log(a.T @ b) for a, b in pairwise(rotations)])
        return cls(time_s[:-1], time_s[1:], steps.reshape(-1, 3) / np.diff(time_s)[:, None])


@dataclass(frozen=True, slots=True, eq=False)
class Alignment:
    """R_sensor_imu and the offset to add to the sensor's stamps to get the gyro's time.

    Attributes:
        covariance: (3, 3) of the left perturbation of the rotation, rad^2, inflated.
        residual_rad_s: RMS of what is left per axis.
        excitation_rad_s: (3,) RMS rate about the principal axes after the mean is removed, largest first.
    """

    R_sensor_imu: Array
    covariance: Array
    offset_s: float
    offset_sigma_s: float
    residual_rad_s: float
    excitation_rad_s: Array


def align(turns: Turns, gyro_s: Array, gyro_rad_s: Array) -> Alignment:
    """Find rotation and time offset between a sensor's turns and a gyro.

    Both rates lose their mean first, which removes the gyro's constant bias. For each offset on a 2 ms grid the
    best rotation is closed-form (Kabsch); the least residual, refined by a parabola, is the offset.
    """
    steps = np.diff(gyro_s)
    angle = np.concatenate(
        [np.zeros((1, 3)), np.cumsum((gyro_rad_s[1:] + gyro_rad_s[:-1]) / 2 * steps[:, None], axis=0)]
    )
    inside = (turns.start_s > gyro_s[0] + MAX_OFFSET_S) & (turns.end_s < gyro_s[-1] - MAX_OFFSET_S)
    start_s, end_s, seen = turns.start_s[inside], turns.end_s[inside], turns.rate_rad_s[inside]
    if len(seen) < 3:
        unknown = np.full((3, 3), np.inf)
        return Alignment(np.eye(3), unknown, 0.0, float("inf"), float("nan"), np.zeros(3))
    known = np.ones(len(seen))
    if turns.sigma_rad_s is not None:
        sigma = turns.sigma_rad_s[inside]
        known = np.minimum(np.square(np.median(sigma) / sigma), 4.0)
    centred = seen - np.average(seen, axis=0, weights=known)

    def at(offset_s: float) -> Array:
        ends = [
            np.stack([np.interp(instant + offset_s, gyro_s, angle[:, axis]) for axis in range(3)], axis=1)
            for instant in (start_s, end_s)
        ]
        rate = (ends[1] - ends[0]) / (end_s - start_s)[:, None]
        return np.asarray(rate - np.average(rate, axis=0, weights=known), np.float64)

    def fit(offset_s: float, weight: Array) -> tuple[Array, Array, Array]:
        rate = at(offset_s)
        rotation = nearest_rotation((centred * weight[:, None]).T @ rate)
        return rotation, rate, centred - rate @ rotation.T

    weight = known
    grid = np.arange(-MAX_OFFSET_S, MAX_OFFSET_S + 1e-9, 2e-3)
    offset_s = 0.0
    for _ in range(3):  # a failed track is one wild step; weights keep it from deciding
        costs = np.array(
            [float((weight[:, None] * np.square(fit(value, weight)[2])).sum()) for value in grid]
        )
        best = int(np.clip(np.argmin(costs), 1, len(grid) - 2))
        bend = costs[best - 1] - 2 * costs[best] + costs[best + 1]
        shift = 0.5 * (costs[best - 1] - costs[best + 1]) / bend if bend > 0 else 0.0
        offset_s = float(grid[best] + 2e-3 * np.clip(shift, -1, 1))
        _, _, left = fit(offset_s, weight)
        size = np.linalg.norm(left, axis=1)
        weight = known / (1 + np.square(size / max(3 * float(np.median(size)), 1e-9)))
    rotation, rate, left = fit(offset_s, weight)
    variance = float((weight[:, None] * np.square(left)).sum() / max(3 * weight.sum() - 7, 1))
    turned = rate @ rotation.T
    information = sum(
        w * (float(r @ r) * np.eye(3) - np.outer(r, r)) for w, r in zip(weight, turned, strict=True)
    )
    covariance = variance * np.linalg.pinv(np.asarray(information)) * SIGMA_INFLATION**2
    slope = (at(offset_s + 2e-3) - at(offset_s - 2e-3)) / 4e-3
    offset_sigma = SIGMA_INFLATION * np.sqrt(
        variance / max(float((weight[:, None] * np.square(slope)).sum()), 1e-12)
    )
    excitation = np.sqrt(np.maximum(np.linalg.eigvalsh(centred.T @ centred / len(centred))[::-1], 0))
    return Alignment(
        rotation,
        covariance + ROTATION_FLOOR_RAD**2 * np.eye(3),
        offset_s,
        float(np.hypot(offset_sigma, OFFSET_FLOOR_S)),
        float(np.sqrt(variance)),
        excitation,
    )


def excited_span(
    gyro_s: Array, gyro_rad_s: Array, span_s: float, least_rad_s: float = MIN_EXCITATION_RAD_S
) -> tuple[float, float] | None:
    """Return the start and end (s) of the stretch that turns most about its second axis.

    None where no stretch of ``MIN_SPAN_S`` reaches ``least_rad_s``, the RMS rate about that axis.
    """
    if len(gyro_s) < 2 or gyro_s[-1] - gyro_s[0] < MIN_SPAN_S:
        return None
    length_s = min(span_s, float(gyro_s[-1] - gyro_s[0]))
    best, found = least_rad_s, None
    for start_s in np.arange(gyro_s[0], gyro_s[-1] - length_s + 1e-6, 1.0):
        first, last = np.searchsorted(gyro_s, [start_s, start_s + length_s])
        rates = gyro_rad_s[first:last]
        if len(rates) < MIN_STEPS:
            continue
        excitation = np.sqrt(max(float(np.linalg.eigvalsh(np.cov(rates.T))[1]), 0.0))
        if excitation > best:
            best, found = excitation, (float(start_s), float(start_s + length_s))
    return found


def check_imu_rotation(
    turns: Turns,
    gyro_s: Array,
    gyro_rad_s: Array,
    calibration: RigCalibration,
    sensor_frame: str,
    imu_frame: str,
    offset_s: float = 0.0,
    rotation_tolerance_deg: float = 1.0,
    offset_tolerance_s: float = 5e-3,
) -> Verdict:
    """Judge rotation and time offset between a sensor and an IMU over 10 to 20 s of motion.

    A time offset that is out while the rotation is in tells a timing fault from a moved mount.

    Args:
        offset_s: The offset that is already known and applied by nobody: 0 when stamps share one clock.
    """
    subject = f"{sensor_frame}~{imu_frame}"
    found = align(turns, gyro_s, gyro_rad_s)
    gates = _gates(turns, found)
    error = rotation_log(found.R_sensor_imu @ calibration.transform(sensor_frame, imu_frame)[:3, :3].T)
    sigma = np.sqrt(np.diag(found.covariance))
    degrees = [
        Degree(
            f"rotation_{axis}",
            "deg",
            float(np.rad2deg(error[k])),
            float(np.rad2deg(sigma[k])),
            rotation_tolerance_deg,
        )
        for k, axis in enumerate("xyz")
    ]
    degrees.append(
        Degree(
            "time_offset",
            "ms",
            1e3 * (found.offset_s - offset_s),
            1e3 * found.offset_sigma_s,
            1e3 * offset_tolerance_s,
        )
    )
    extra = (
        Quantity("residual", float(np.rad2deg(found.residual_rad_s)), "deg/s"),
        Quantity(
            "excitation_second_axis",
            float(np.rad2deg(found.excitation_rad_s[1])),
            "deg/s",
            float(np.rad2deg(MIN_EXCITATION_RAD_S)),
        ),
        Quantity("steps", float(len(turns.start_s)), "1", float(MIN_STEPS)),
    )
    return judge(CHECK, subject, degrees, gates, extra, ("translation cannot be seen from rotation rates",))


def _gates(turns: Turns, found: Alignment) -> list[str]:
    count = len(turns.start_s)
    span_s = float(turns.end_s[-1] - turns.start_s[0]) if count else 0.0
    if count < MIN_STEPS or span_s < MIN_SPAN_S:
        return [f"{count} steps over {span_s:.1f} s, {MIN_STEPS} over {MIN_SPAN_S:.0f} s are needed"]
    if found.excitation_rad_s[1] < MIN_EXCITATION_RAD_S:
        return [
            f"the rig turns at {np.rad2deg(found.excitation_rad_s[1]):.1f} deg/s rms about its second axis, "
            f"{np.rad2deg(MIN_EXCITATION_RAD_S):.0f} are needed: standing still or turning about one axis"
        ]
    return []


def camera_turns(images: Sequence[NDArray[np.uint8]], time_s: Array, camera: Intrinsics) -> Turns:
    """Return the camera's rotations from image to image, from tracked corners.

    Steps that cannot be tracked are left out. Images about 0.1 s apart are best: much closer and noise rules,
    much farther and tracks are lost.
    """
    starts, ends, rates, sigmas = [], [], [], []
    for k in range(len(images) - 1):
        found = relative_rotation(images[k], images[k + 1], camera)
        if found is not None:
            starts.append(float(time_s[k]))
            ends.append(float(time_s[k + 1]))
            # Rays of the later image are R^T of the earlier ones: the camera turned by R.
            rates.append(rotation_log(found[0]) / (ends[-1] - starts[-1]))
            sigmas.append(found[1] / (ends[-1] - starts[-1]))
    return Turns(np.array(starts), np.array(ends), np.array(rates).reshape(-1, 3), np.array(sigmas))


def relative_rotation(
    first: NDArray[np.uint8], second: NDArray[np.uint8], camera: Intrinsics
) -> tuple[Array, float] | None:
    """Return R_first_second between two images by their epipolar geometry, and its sigma (rad).

    None without enough tracks. Sigma is large where the scene is nearly flat and parallax looks like rotation.
    """
    grey = [
        image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) for image in (first, second)
    ]
    corners = cv2.goodFeaturesToTrack(grey[0], 400, 0.01, 8)
    if corners is None or len(corners) < 30:
        return None
    corners = np.asarray(corners, np.float32).reshape(-1, 1, 2)
    tracked, found = _track(grey[0], grey[1], corners)
    back, found_back = _track(grey[1], grey[0], tracked)
    pixels, pixels_later = (np.asarray(points, np.float64).reshape(-1, 2) for points in (corners, tracked))
    returned = np.linalg.norm(np.asarray(back, np.float64).reshape(-1, 2) - pixels, axis=1)
    good = found & found_back & (returned < 0.5)
    rays = undistort(pixels[good], camera), undistort(pixels_later[good], camera)
    finite = np.isfinite(rays[0]).all(axis=1) & np.isfinite(rays[1]).all(axis=1)
    before, after = (np.column_stack([part[finite], np.ones(finite.sum())]) for part in rays)
    if len(before) < 30:
        return None
    return _rotation_between(before, after, camera.f_px)


def _track(
    first: Any, second: Any, corners: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    # OpenCV writes into the array of later positions that it is given: each call gets its own.
    later, found, _ = cv2.calcOpticalFlowPyrLK(
        first, second, corners, np.zeros_like(corners), winSize=(21, 21), maxLevel=4
    )
    return np.asarray(later, np.float32), np.asarray(found).ravel() == 1


def _rotation_between(before: Array, after: Array, f_px: float) -> tuple[Array, float] | None:
    """Return R that maps later rays into the earlier camera's axes.

    A pure rotation is fitted first (a direction of travel is undefined when nothing travels), then rotation
    and direction of travel together on Sampson distances, with robust weights.
    """
    unit = [rays / np.linalg.norm(rays, axis=1, keepdims=True) for rays in (before, after)]
    weight = np.ones(len(before))
    rotation = np.eye(3)
    for _ in range(5):
        rotation = nearest_rotation((unit[0] * weight[:, None]).T @ unit[1])
        size = np.linalg.norm(unit[0] - unit[1] @ rotation.T, axis=1) * f_px
        weight = 1 / (1 + np.square(size / max(2 * float(np.median(size)), 0.3)))
    if float(np.median(size)) < MIN_PARALLAX_PX:
        return rotation, MIN_PARALLAX_PX / f_px
    turn, travel = _search(unit[0], unit[1] @ rotation.T, f_px)
    miss_px, rotation, sigma = _refine(before, after, turn @ rotation, travel, f_px)
    return (rotation, sigma) if miss_px < 1.5 else None


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
) -> tuple[float, Array, float]:
    """Return the median Sampson distance (px), the rotation and its sigma (rad), polished from a good guess."""
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
    sigma = scale * np.sqrt(float(np.trace(np.linalg.inv(information)[:3, :3])))
    return float(np.median(np.abs(residual))), rotation, float(sigma)


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
