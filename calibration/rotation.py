"""Whether a gyro and another sensor turn alike: their relative rotation and time offset, from motion.

A camera (tracked features) or LiDAR (odometry) gives the rotation from frame to frame; the gyro, integrated
over the same intervals shifted by a time offset, must give the same rotation in its own axes. Translation
between the two would need second derivatives and is left to offline tools.

Source: spec calibration 1.8 and 1.9.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sensorium.calibration.attribution import TIMING
from sensorium.calibration.checks import Degree, judge
from sensorium.calibration.geometry import (
    Array,
    nearest_rotation,
    rotation_exp,
    rotation_log,
)
from sensorium.calibration.gyro import GyroIntegral
from sensorium.calibration.rig_document import RigCalibration
from sensorium.verdict import Quantity, Status, Verdict

CHECK = "imu_rotation"

MIN_EXCITATION_RAD_S = np.deg2rad(5.0)
MAX_UNEXPLAINED = 0.3
"""Share of the turning (RMS) that may be left over; more, and the sensor saw something else than its own turning."""
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

    Raises:
        CalibrationError: If the frames are unknown.
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
    verdict = judge(
        CHECK, subject, degrees, gates, extra, ("translation cannot be seen from rotation rates",)
    )
    return _timing_named(verdict, degrees[3], [degree.status for degree in degrees[:3]])


def _timing_named(verdict: Verdict, offset: Degree, rotations: Sequence[Status]) -> Verdict:
    """Say of an alarm whether the stamps are the cause alone."""
    if verdict.status not in (Status.SUSPECT, Status.FAILED):
        return verdict
    if not all(status is Status.OK for status in rotations):
        return verdict
    said = (
        f"{verdict.reasons[0]} {TIMING}: the sensor is stamped too {'early' if offset.estimate > 0 else 'late'} "
        "against the gyro, and its mount is in place"
    )
    return replace(verdict, reasons=(said, *verdict.reasons[1:]))


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
    reason = unexplained(found)
    return [reason] if reason else []


def unexplained(found: Alignment) -> str:
    """Return why an alignment means nothing although there was motion; "" if the gyro explains what was seen."""
    turning_rad_s = float(np.sqrt(np.mean(found.excitation_rad_s**2)))
    if found.residual_rad_s <= MAX_UNEXPLAINED * turning_rad_s:
        return ""
    return (
        f"{np.rad2deg(found.residual_rad_s):.1f} of {np.rad2deg(turning_rad_s):.1f} deg/s rms are not the gyro's "
        "turning: blurred images, a moving scene, stamps more than 50 ms apart, or another body's gyro"
    )
