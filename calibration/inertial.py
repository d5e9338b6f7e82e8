"""Checks of an IMU that stands still, and of the ground that a LiDAR sees against gravity.

Source: spec calibration 1.7 and 1.11; IEEE Std 952 for the noise density and its Allan deviation.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sensorium.calibration.checks import Degree, judge
from sensorium.calibration.geometry import Array
from sensorium.calibration.lidar_lidar import surface
from sensorium.calibration.rig_document import RigCalibration
from sensorium.verdict import Quantity, Status, Verdict

# Cells this far from level are ramps or furniture; the two sensors' tolerance is far below it.
LEVEL_RAD = np.deg2rad(8.0)
MIN_GROUND_CELLS = 20
MIN_GROUND_SPREAD_M = 0.5

STATIC_CHECK = "imu_static"
GROUND_CHECK = "ground_gravity"

GRAVITY_M_S2 = 9.81
MIN_STATIC_S = 20.0
TAU_S = 0.1
# A window counts as still when its rates scatter no more than this times the noise that the sensor should have.
STILL_FACTOR = 10.0
# Noise against the known density. Below 3, so that a sensor three times as loud is always heard.
NOISE_LIMIT = 2.5


@dataclass(frozen=True, slots=True)
class ImuModel:
    """What an IMU is known to do: biases in its own axes, noise densities per square root of hertz."""

    gyro_bias_rad_s: tuple[float, float, float] = (0.0, 0.0, 0.0)
    gyro_noise_rad_s: float = 2e-4
    acc_noise_m_s2: float = 2e-3


@dataclass(frozen=True, slots=True)
class ImuTolerance:
    """Accepted changes while standing still."""

    gyro_bias_deg_s: float = 0.3
    gravity_m_s2: float = 0.1


def noise_density(values: Array, rate_hz: float, tau_s: float = TAU_S) -> Array:
    """Return the white noise density of each column from its Allan deviation at ``tau_s``.

    One minute tells it to 3 % at 0.1 s (relative error 1 / sqrt(2 (T / tau - 1))).
    """
    size = max(round(tau_s * rate_hz), 1)
    groups = len(values) // size
    means = values[: groups * size].reshape(groups, size, -1).mean(axis=1)
    deviation = np.sqrt(0.5 * np.mean(np.square(np.diff(means, axis=0)), axis=0))
    return np.asarray(deviation * np.sqrt(size / rate_hz), np.float64)


def check_imu_static(
    time_s: Array,
    acc_m_s2: Array,
    gyro_rad_s: Array,
    name: str,
    model: ImuModel | None = None,
    tolerance: ImuTolerance | None = None,
) -> Verdict:
    """Judge an IMU that stands still for a minute: bias against the known one, gravity's size, noise.

    Args:
        time_s: (N,); acc_m_s2, gyro_rad_s: (N, 3) in the sensor's axes.
    """
    model, tolerance = model or ImuModel(), tolerance or ImuTolerance()
    count = len(time_s)
    span_s = float(time_s[-1] - time_s[0]) if count > 1 else 0.0
    if span_s < MIN_STATIC_S:
        reason = f"{span_s:.0f} s of data, {MIN_STATIC_S:.0f} s at rest are needed"
        return Verdict(STATIC_CHECK, name, Status.INSUFFICIENT, (), (reason,))
    rate_hz = (count - 1) / span_s
    still = _still(gyro_rad_s, acc_m_s2, rate_hz, model)
    if still.sum() < MIN_STATIC_S * rate_hz:
        reason = f"{still.sum() / rate_hz:.0f} s at rest, {MIN_STATIC_S:.0f} s are needed: the rig moves"
        return Verdict(STATIC_CHECK, name, Status.INSUFFICIENT, (), (reason,))
    gyro, acc = gyro_rad_s[still], acc_m_s2[still]
    bias = np.rad2deg(gyro.mean(axis=0) - model.gyro_bias_rad_s)
    bias_sigma = float(np.rad2deg(2 * model.gyro_noise_rad_s / np.sqrt(len(gyro) / rate_hz)))
    size = float(np.linalg.norm(acc.mean(axis=0))) - GRAVITY_M_S2
    size_sigma = 2 * model.acc_noise_m_s2 / np.sqrt(len(acc) / rate_hz)
    degrees = [
        Degree(f"gyro_bias_{axis}", "deg/s", float(bias[k]), bias_sigma, tolerance.gyro_bias_deg_s)
        for k, axis in enumerate("xyz")
    ]
    degrees.append(Degree("gravity", "m/s^2", size, float(size_sigma), tolerance.gravity_m_s2))
    ratios = (
        ("gyro_noise_ratio", noise_density(gyro, rate_hz) / model.gyro_noise_rad_s),
        ("acc_noise_ratio", noise_density(acc, rate_hz) / model.acc_noise_m_s2),
    )
    extra = tuple(Quantity(label, float(ratio.max()), "1", NOISE_LIMIT) for label, ratio in ratios)
    dead = [
        f"{label} axis {'xyz'[k]} does not move at all: frozen or disconnected"
        for label, values in (("gyro", gyro), ("acc", acc))
        for k in range(3)
        if not np.ptp(values[:, k])
    ]
    if dead:
        return Verdict(STATIC_CHECK, name, Status.FAILED, extra, tuple(dead))
    verdict = judge(STATIC_CHECK, name, degrees, (), extra, ("scale factors need motion",))
    loud = [
        f"{each.name} {each.value:.1f}, more than {NOISE_LIMIT:g}"
        for each in extra
        if each.value > NOISE_LIMIT
    ]
    if loud and verdict.status is not Status.FAILED:
        return Verdict(STATIC_CHECK, name, Status.SUSPECT, verdict.quantities, (*loud, *verdict.reasons))
    return verdict


def _still(gyro: Array, acc: Array, rate_hz: float, model: ImuModel) -> NDArray[np.bool_]:
    """Return which samples lie in whole seconds at rest."""
    size = max(round(rate_hz), 2)
    still = np.zeros(len(gyro), np.bool_)
    limits = STILL_FACTOR * np.sqrt(rate_hz) * np.array([model.gyro_noise_rad_s, model.acc_noise_m_s2])
    for start in range(0, len(gyro) - size + 1, size):
        part = slice(start, start + size)
        still[part] = gyro[part].std(axis=0).max() < limits[0] and acc[part].std(axis=0).max() < limits[1]
    return still


@dataclass(frozen=True, slots=True, eq=False)
class Ground:
    """The plane under a LiDAR: unit normal (upwards, LiDAR axes), height above it, and how it was found."""

    normal: Array
    height_m: float
    cells: int
    rms_m: float


def find_ground(points: NDArray[np.floating], up: Array | None = None) -> Ground | None:
    """Return the ground plane, or None if no level surface below the sensor is large enough.

    The cloud is cut into small planes; those that lie level form the ground at the height that most of them
    share. Walls and slanted bands across furniture never enter, as they would in a plain RANSAC.

    Args:
        points: (N, 3 or more) in the LiDAR's frame.
        up: Where up is, roughly (within 8 degrees), in the LiDAR's axes; by default its own z.
    """
    up = np.array([0.0, 0.0, 1.0]) if up is None else np.asarray(up) / np.linalg.norm(up)
    planes = surface(points)
    level = planes.centres @ up
    flat = (np.abs(planes.normals @ up) > np.cos(LEVEL_RAD)) & (level < -0.2)
    flat &= np.linalg.norm(planes.centres, axis=1) < 20.0
    centres, level = planes.centres[flat], level[flat]
    if len(centres) < MIN_GROUND_CELLS:
        return None
    counts, edges = np.histogram(level, np.arange(level.min() - 0.05, level.max() + 0.15, 0.1))
    height = float(edges[int(np.argmax(counts))]) + 0.05
    normal = up
    for width_m in (0.3, 0.1, 0.06):
        near = centres[np.abs(centres @ normal - height) < width_m]
        if len(near) < MIN_GROUND_CELLS:
            return None
        centre = near.mean(axis=0)
        values, vectors = np.linalg.eigh((near - centre).T @ (near - centre) / len(near))
        if values[1] < MIN_GROUND_SPREAD_M**2:
            return None  # a strip: its slope across is free
        normal = vectors[:, 0] if vectors[:, 0] @ up > 0 else -vectors[:, 0]
        height = float(normal @ centre)
    return Ground(normal, -height, len(near), float(np.sqrt(max(values[0], 0.0))))


def check_ground_gravity(
    sweeps: Sequence[NDArray[np.floating]],
    acc_m_s2: Array,
    calibration: RigCalibration,
    lidar_frame: str,
    imu_frame: str,
    slope_deg: float = 0.0,
    tolerance_deg: float = 0.5,
) -> Verdict:
    """Compare the ground that a LiDAR sees with the gravity that an IMU feels, while standing still.

    Args:
        sweeps: Points of several revolutions at rest.
        acc_m_s2: (N, 3) specific force over the same time, IMU axes; points up at rest.
        slope_deg: How far the ground may be from level (one sigma): 0 indoors, 1 on a road.
    """
    subject = f"{lidar_frame}~{imu_frame}"
    acc = np.asarray(acc_m_s2, np.float64)
    if len(acc) < 10 or acc.std(axis=0).max() > 0.3:
        reason = "the IMU is not at rest, or hardly heard"
        return Verdict(GROUND_CHECK, subject, Status.INSUFFICIENT, (), (reason,))
    up = calibration.transform(lidar_frame, imu_frame)[:3, :3] @ acc.mean(axis=0)
    up = up / np.linalg.norm(up)
    planes = [plane for plane in (find_ground(points, up) for points in sweeps) if plane is not None]
    if len(planes) < 3:
        reason = f"ground found in {len(planes)} of {len(sweeps)} sweeps, 3 are needed"
        return Verdict(GROUND_CHECK, subject, Status.INSUFFICIENT, (), (reason,))
    normals = np.array([plane.normal for plane in planes])
    mean = normals.mean(axis=0)
    # A LiDAR that turned sees the ground turn back; a turn about the vertical is not seen.
    error = np.rad2deg(np.cross(mean / np.linalg.norm(mean), up))
    # Sweeps at rest share the same cells, so their scatter does not shrink with their number.
    scatter = np.rad2deg(normals.std(axis=0).max())
    sigma = float(np.hypot(max(scatter, 0.05), slope_deg))
    degrees = [
        Degree(name, "deg", float(error[axis]), sigma, tolerance_deg)
        for axis, name in enumerate(("roll", "pitch"))
    ]
    heights = [plane.height_m for plane in planes]
    extra = (
        Quantity("height", float(np.mean(heights)), "m", sigma=float(np.std(heights))),
        Quantity("plane_rms", float(np.mean([plane.rms_m for plane in planes])), "m"),
    )
    return judge(GROUND_CHECK, subject, degrees, (), extra, ("heading cannot be seen from the ground",))
