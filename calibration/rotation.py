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
from sensorium.calibration.gyro import GyroIntegral
from sensorium.calibration.rig_document import RigCalibration
from sensorium.verdict import Quantity, Verdict

CHECK = "imu_rotation"

MIN_EXCITATION_RAD_S = np.deg2rad(5.0)
MIN_SPAN_S = 5.0
MIN_STEPS = 30
MAX_OFFSET_S = 0.05
GRID_S = 4e-3
SLOPE_S = 1e-3
MAX_ROUNDS = 20
LAGS = 5
CHI2_MEDIAN = 2.366
# What a step of tracked corners is never better than; keeps the formally best ones from deciding alone.
STEP_FLOOR_RAD = np.deg2rad(0.005)
# Two images this many apart are compared: parallax and noise of tracks are the same, the turn is twice as large.
STRIDE = 2
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
        covariance: (N, 3, 3) of each rate, up to a common factor; None if all are known equally well. Steps may
            overlap.
    """

    start_s: Array
    end_s: Array
    rate_rad_s: Array
    covariance: Array | None = None

    def shifted(self, by_s: float) -> "Turns":
        """Return the same turns with stamps moved by ``by_s``."""
        return Turns(self.start_s + by_s, self.end_s + by_s, self.rate_rad_s, self.covariance)

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

    A grid of 4 ms with the best rotation in closed form for each offset (Kabsch, on rates without their mean)
    finds the valley. Rotation, offset and the gyro's bias are then refined together (Gauss-Newton), each step
    weighted by its own covariance and by a Cauchy weight. Their covariance allows for residuals that neighbours
    share (Newey and West 1987): steps overlap, and the scene misleads the tracks for many of them alike.
    """
    gyro = GyroIntegral(gyro_s, gyro_rad_s)
    inside = (turns.start_s > gyro_s[0] + MAX_OFFSET_S) & (turns.end_s < gyro_s[-1] - MAX_OFFSET_S)
    start_s, end_s, seen = turns.start_s[inside], turns.end_s[inside], turns.rate_rad_s[inside]
    if len(seen) < 3:
        unknown = np.full((3, 3), np.inf)
        return Alignment(np.eye(3), unknown, 0.0, float("inf"), float("nan"), np.zeros(3))
    weight = np.broadcast_to(np.eye(3), (len(seen), 3, 3))
    if turns.covariance is not None:
        weight = np.linalg.inv(
            turns.covariance[inside] + (STEP_FLOOR_RAD / (end_s - start_s))[:, None, None] ** 2 * np.eye(3)
        )
    scalar = np.trace(weight, axis1=1, axis2=2)
    centred = seen - np.average(seen, axis=0, weights=scalar)

    def mean_rate(offset_s: float) -> Array:
        turned = gyro.turned(start_s + offset_s, end_s + offset_s)
        return np.asarray(turned / (end_s - start_s)[:, None], np.float64)

    def kabsch(offset_s: float) -> tuple[Array, float]:
        rate = mean_rate(offset_s)
        rate = rate - np.average(rate, axis=0, weights=scalar)
        rotation = nearest_rotation((centred * scalar[:, None]).T @ rate)
        left = np.linalg.norm(centred - rate @ rotation.T, axis=1)
        # A failed track is one wild step; it must not choose the valley.
        return rotation, float((scalar * np.minimum(left, 3 * np.median(left)) ** 2).sum())

    grid = np.arange(-MAX_OFFSET_S, MAX_OFFSET_S + 1e-9, GRID_S)
    offset_s = float(grid[int(np.argmin([kabsch(value)[1] for value in grid]))])
    rotation, bias = kabsch(offset_s)[0], np.zeros(3)
    for _ in range(MAX_ROUNDS):
        turned = mean_rate(offset_s) @ rotation.T
        slope = (mean_rate(offset_s + SLOPE_S) - mean_rate(offset_s - SLOPE_S)) / (2 * SLOPE_S)
        left = seen - turned - bias
        squares = np.einsum("ni,nij,nj->n", left, weight, left)
        trust = 1 / (1 + squares / (9 * max(float(np.median(squares)) / CHI2_MEDIAN, 1e-30)))
        jacobian = np.concatenate(
            [
                -_skews(turned),
                np.broadcast_to(np.eye(3), (len(left), 3, 3)),
                (slope @ rotation.T)[:, :, None],
            ],
            axis=2,
        )
        pulls = np.einsum("n,nia,nij,nj->na", trust, jacobian, weight, left)
        information = np.einsum("n,nia,nij,njb->ab", trust, jacobian, weight, jacobian)
        information += 1e-9 * np.trace(information) * np.eye(7)
        step = np.linalg.solve(information, pulls.sum(axis=0))
        rotation = rotation_exp(step[:3]) @ rotation
        bias = bias + step[3:6]
        offset_s = float(np.clip(offset_s + step[6], -MAX_OFFSET_S, MAX_OFFSET_S))
        if float(np.abs(step).max()) < 1e-8:
            break
    spread = np.linalg.inv(information)
    covariance = SIGMA_INFLATION**2 * spread @ _newey_west(pulls) @ spread
    excitation = np.sqrt(np.maximum(np.linalg.eigvalsh(centred.T @ centred / len(centred))[::-1], 0))
    return Alignment(
        rotation,
        np.asarray(covariance[:3, :3] + ROTATION_FLOOR_RAD**2 * np.eye(3), np.float64),
        offset_s,
        float(np.hypot(np.sqrt(covariance[6, 6]), OFFSET_FLOOR_S)),
        float(np.sqrt(np.average(np.square(left).mean(axis=1), weights=trust))),
        excitation,
    )


def _skews(vectors: Array) -> Array:
    out = np.zeros((len(vectors), 3, 3))
    x, y, z = vectors.T
    out[:, 0, 1], out[:, 0, 2], out[:, 1, 2] = -z, y, -x
    out[:, 1, 0], out[:, 2, 0], out[:, 2, 1] = z, -y, x
    return out


def _newey_west(pulls: Array) -> Array:
    """Return the covariance of the sum of (N, k) pulls whose neighbours are alike."""
    total = pulls.T @ pulls
    for lag in range(1, min(LAGS, len(pulls) - 1) + 1):
        shared = pulls[lag:].T @ pulls[:-lag]
        total += (1 - lag / (LAGS + 1)) * (shared + shared.T)
    return np.asarray(total, np.float64)


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


def relative_rotation(
    first: NDArray[np.uint8], second: NDArray[np.uint8], camera: Intrinsics
) -> tuple[Array, Array] | None:
    """Return R_first_second between two images by their epipolar geometry, and its covariance (3, 3), rad^2.

    None without enough tracks. The covariance is large about the axis in which parallax looks like rotation,
    which is where the scene is nearly flat.
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


def _rotation_between(before: Array, after: Array, f_px: float) -> tuple[Array, Array] | None:
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
        return rotation, (MIN_PARALLAX_PX / f_px) ** 2 * np.eye(3)
    turn, travel = _search(unit[0], unit[1] @ rotation.T, f_px)
    miss_px, rotation, covariance = _refine(before, after, turn @ rotation, travel, f_px)
    return (rotation, covariance) if miss_px < 1.5 else None


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
