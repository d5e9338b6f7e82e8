"""Checks of an IMU that stands still, and of the ground that a LiDAR sees against gravity.

Source: spec calibration 1.7 and 1.11; IEEE Std 952 for the noise density and its Allan deviation.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sensorium.calibration.checks import Degree, judge
from sensorium.calibration.geometry import Array
from sensorium.calibration.lidar_lidar import surface
from sensorium.calibration.rig_document import RigCalibration
from sensorium.calibration.sensor_models import ImuModel
from sensorium.errors import CalibrationError
from sensorium.verdict import Quantity, Status, Verdict

# Cells this far from level are ramps or furniture; the two sensors' tolerance is far below it.
LEVEL_RAD = np.deg2rad(8.0)
MIN_GROUND_CELLS = 20
MIN_GROUND_SWEEPS = 3
MIN_GROUND_SPREAD_M = 0.5

STATIC_CHECK = "imu_static"
GROUND_CHECK = "ground_gravity"

GRAVITY_M_S2 = 9.81
MIN_STATIC_S = 10.0
MIN_BIAS_POSES = 4
# Least spread of gravity over the poses, RMS along the worst axis: 6 degrees of tilt to either side.
MIN_TILT_M_S2 = 1.0
TAU_S = 0.1
# A second counts as rest when its readings scatter no more than this times the noise that the sensor should have:
# twice what must still be heard as three times too loud; EuRoC's idling rotors reach 6 to 15.
STILL_FACTOR = 6.0
# Parts of one stretch of rest may differ this much in mean specific force: 1 degree of tilt.
SAME_REST_M_S2 = 0.17
# Noise against the known density. Below 3, so that a sensor three times as loud is always heard.
NOISE_LIMIT = 2.5
# Of an industrial MEMS part, where the rig document knows nothing; only rest is told by it.
TYPICAL_GYRO_NOISE, TYPICAL_ACC_NOISE = 2e-4, 2e-3


@dataclass(frozen=True, slots=True)
class ImuTolerance:
    """Accepted while standing still; two thirds of the jumps that must be found (0.3 deg/s, 0.1 m/s^2).

    Attributes:
        unknown_gravity_m_s2: Where no accelerometer bias is known.
    """

    gyro_bias_deg_s: float = 0.2
    acc_bias_m_s2: float = 0.07
    unknown_gravity_m_s2: float = 0.1


@dataclass(frozen=True, slots=True, eq=False)
class Inertial:
    """What an IMU read: (N,) times (s) and (N, 3) specific force and angular rate in its own axes."""

    time_s: Array
    acc_m_s2: Array
    gyro_rad_s: Array

    @property
    def rate_hz(self) -> float:
        span_s = float(self.time_s[-1] - self.time_s[0]) if len(self.time_s) > 1 else 0.0
        return (len(self.time_s) - 1) / span_s if span_s > 0 else 0.0

    def taken(self, which: NDArray[np.bool_]) -> "Inertial":
        """Return the samples that a mask selects."""
        return Inertial(self.time_s[which], self.acc_m_s2[which], self.gyro_rad_s[which])

    def between(self, start_s: float, end_s: float) -> "Inertial":
        return self.taken((self.time_s >= start_s) & (self.time_s < end_s))


def noise_density(values: Array, rate_hz: float, tau_s: float = TAU_S) -> Array:
    """Return the white noise density of each column from its Allan deviation at ``tau_s``.

    One minute tells it to 3 % at 0.1 s (relative error 1 / sqrt(2 (T / tau - 1))).
    """
    size = max(round(tau_s * rate_hz), 1)
    groups = len(values) // size
    means = values[: groups * size].reshape(groups, size, -1).mean(axis=1)
    # The median, because the seconds at rest need not follow upon each other.
    steps = np.median(np.abs(np.diff(means, axis=0)), axis=0) / 0.6745
    return np.asarray(steps * np.sqrt(0.5 * size / rate_hz), np.float64)


def rest_spans(
    samples: Inertial, model: ImuModel | None = None, min_s: float = 1.0
) -> list[tuple[float, float]]:
    """Return (start, end) in seconds of every stretch of ``min_s`` and more in which the IMU was at rest.

    A second is rest when neither gyro nor accelerometer scatters by more than six times the sensor's noise; a
    stretch ends where it tilts. A steady slow turn about the vertical looks like rest to any IMU.
    """
    model = model or ImuModel()
    rate_hz = samples.rate_hz
    size = max(round(rate_hz), 2)
    limits = (
        STILL_FACTOR * np.sqrt(rate_hz) * (model.gyro_noise_rad_s or TYPICAL_GYRO_NOISE),
        STILL_FACTOR * np.sqrt(rate_hz) * (model.acc_noise_m_s2 or TYPICAL_ACC_NOISE),
    )
    spans: list[tuple[int, int]] = []
    before = np.full(3, np.inf)
    for start in range(0, len(samples.time_s) - size + 1, size):
        part = slice(start, start + size)
        gyro, acc = samples.gyro_rad_s[part], samples.acc_m_s2[part]
        is_whole = samples.time_s[start + size - 1] - samples.time_s[start] < 1.5
        if not is_whole or gyro.std(axis=0).max() > limits[0] or acc.std(axis=0).max() > limits[1]:
            before = np.full(3, np.inf)
            continue
        mean = acc.mean(axis=0)
        if float(np.abs(mean - before).max()) < SAME_REST_M_S2:
            spans[-1] = (spans[-1][0], start + size)
        else:
            spans.append((start, start + size))
        before = mean
    last = len(samples.time_s) - 1
    found = [(float(samples.time_s[a]), float(samples.time_s[min(b, last)])) for a, b in spans]
    return [(start_s, end_s) for start_s, end_s in found if end_s - start_s >= 0.99 * min_s]


def at_rest(samples: Inertial, model: ImuModel | None = None) -> Inertial:
    """Return the samples of all stretches of rest."""
    still = np.zeros(len(samples.time_s), np.bool_)
    for start_s, end_s in rest_spans(samples, model):
        still |= (samples.time_s >= start_s) & (samples.time_s < end_s)
    return samples.taken(still)


def check_imu_static(
    samples: Inertial,
    name: str,
    model: ImuModel | None = None,
    tolerance: ImuTolerance | None = None,
    min_s: float = MIN_STATIC_S,
) -> Verdict:
    """Judge an IMU while it stands still: bias against the known one, gravity's size, noise.

    What the model does not know is not judged, and said so. Gravity shows the accelerometer's bias along the
    vertical only.
    """
    model, tolerance = model or ImuModel(), tolerance or ImuTolerance()
    count = len(samples.time_s)
    span_s = float(samples.time_s[-1] - samples.time_s[0]) if count > 1 else 0.0
    if span_s < 0.99 * min_s:
        reason = f"{span_s:.0f} s of data, {min_s:.0f} s at rest are needed"
        return Verdict(STATIC_CHECK, name, Status.INSUFFICIENT, (), (reason,))
    rate_hz = samples.rate_hz
    still = at_rest(samples, model)
    rest_s = len(still.time_s) / rate_hz
    gyro, acc = still.gyro_rad_s, still.acc_m_s2
    if rest_s < 0.99 * min_s:
        reason = f"{rest_s:.0f} s at rest, {min_s:.0f} s are needed: the rig moves"
        return Verdict(STATIC_CHECK, name, Status.INSUFFICIENT, (), (reason,))
    dead = [
        f"{label} axis {'xyz'[k]} does not move at all: frozen or disconnected"
        for label, values in (("gyro", gyro), ("acc", acc))
        for k in range(3)
        if not np.ptp(values[:, k])
    ]
    densities = noise_density(gyro, rate_hz).max(), noise_density(acc, rate_hz).max()
    extra: list[Quantity] = [Quantity("rest", rest_s, "s", min_s)]
    ratios = []
    for label, density, known in (
        ("gyro_noise_ratio", densities[0], model.gyro_noise_rad_s),
        ("acc_noise_ratio", densities[1], model.acc_noise_m_s2),
    ):
        if known is not None:
            ratios.append(Quantity(label, float(density / known), "1", NOISE_LIMIT))
    extra += ratios
    if dead:
        return Verdict(STATIC_CHECK, name, Status.FAILED, tuple(extra), tuple(dead))
    degrees = _bias_degrees(gyro, acc, densities, rest_s, model, tolerance)
    verdict = judge(STATIC_CHECK, name, degrees, (), extra, _unjudged(model))
    loud = [
        f"{q.name} {q.value:.1f}, more than {NOISE_LIMIT:g}: the sensor is loud, or an engine or fan shakes it"
        for q in ratios
        if q.value > NOISE_LIMIT
    ]
    if loud and verdict.status is not Status.FAILED:
        return Verdict(STATIC_CHECK, name, Status.SUSPECT, verdict.quantities, (*loud, *verdict.reasons))
    return verdict


def _bias_degrees(
    gyro: Array,
    acc: Array,
    densities: tuple[float, float],
    rest_s: float,
    model: ImuModel,
    tolerance: ImuTolerance,
) -> list[Degree]:
    degrees = []
    sigma = 2 * np.array(densities) / np.sqrt(rest_s)
    if model.gyro_bias_rad_s is not None:
        bias = np.rad2deg(gyro.mean(axis=0) - model.gyro_bias_rad_s)
        degrees += [
            Degree(
                f"gyro_bias_{axis}",
                "deg/s",
                float(bias[k]),
                float(np.rad2deg(sigma[0])),
                tolerance.gyro_bias_deg_s,
            )
            for k, axis in enumerate("xyz")
        ]
    known = np.zeros(3) if model.acc_bias_m_s2 is None else np.array(model.acc_bias_m_s2)
    size = float(np.linalg.norm(acc.mean(axis=0) - known)) - GRAVITY_M_S2
    limit = tolerance.unknown_gravity_m_s2 if model.acc_bias_m_s2 is None else tolerance.acc_bias_m_s2
    return [*degrees, Degree("gravity", "m/s^2", size, float(sigma[1]), limit)]


def _unjudged(model: ImuModel) -> tuple[str, ...]:
    unknown = [
        label
        for label, known in (
            ("gyro bias", model.gyro_bias_rad_s),
            ("accelerometer bias", model.acc_bias_m_s2),
            ("gyro noise", model.gyro_noise_rad_s),
            ("accelerometer noise", model.acc_noise_m_s2),
        )
        if known is None
    ]
    notes = [f"not judged, the calibration does not know it: {', '.join(unknown)}"] if unknown else []
    return (*notes, "scale factors need motion")


def solve_imu_static(samples: Inertial, known: ImuModel | None = None) -> ImuModel:
    """Return the biases and noise densities that an IMU at rest shows; random walks stay as known.

    In one pose the accelerometer's bias is what gravity's size leaves, along the vertical; across it, bias and
    tilt are one, and what was known of it stays. Rest in four poses or more that tilt about two axes gives all of
    it, from | a - b | = g.

    Raises:
        CalibrationError: With less than 10 s at rest.
    """
    still = at_rest(samples, known)
    rate_hz = samples.rate_hz
    rest_s = len(still.time_s) / rate_hz if rate_hz else 0.0
    if rest_s < 0.99 * MIN_STATIC_S:
        raise CalibrationError(
            f"{rest_s:.0f} s at rest, {MIN_STATIC_S:.0f} s are needed: put the rig down and let it stand"
        )
    known = known or ImuModel()
    gyro, acc = still.gyro_rad_s.mean(axis=0), _acc_bias(still, known)
    return replace(
        known,
        gyro_bias_rad_s=(float(gyro[0]), float(gyro[1]), float(gyro[2])),
        acc_bias_m_s2=(float(acc[0]), float(acc[1]), float(acc[2])),
        gyro_noise_rad_s=float(noise_density(still.gyro_rad_s, rate_hz).max()),
        acc_noise_m_s2=float(noise_density(still.acc_m_s2, rate_hz).max()),
    )


def _acc_bias(still: Inertial, model: ImuModel) -> Array:
    means = np.array([still.between(*span).acc_m_s2.mean(axis=0) for span in rest_spans(still, model)])
    mean = still.acc_m_s2.mean(axis=0)
    if len(means) >= MIN_BIAS_POSES and is_tilted_about_two_axes(means):
        # |a|^2 - 2 a.b + (|b|^2 - g^2) = 0 is linear in b and in the bracket.
        design = np.column_stack([2 * means, -np.ones(len(means))])
        found = np.linalg.lstsq(design, np.square(means).sum(axis=1), rcond=None)[0]
        return np.asarray(found[:3], np.float64)
    before = np.array(model.acc_bias_m_s2 or (0.0, 0.0, 0.0))
    left = mean - before
    return np.asarray(before + left * (1 - GRAVITY_M_S2 / float(np.linalg.norm(left))), np.float64)


def is_tilted_about_two_axes(gravity_m_s2: Array) -> bool:
    """Return whether (N, 3) readings of gravity differ enough in all directions to tell it from a bias."""
    spread = np.linalg.svd(gravity_m_s2 - gravity_m_s2.mean(axis=0), compute_uv=False) / np.sqrt(
        len(gravity_m_s2)
    )
    return bool(len(spread) == 3 and spread[-1] > MIN_TILT_M_S2)


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
    tolerance_deg: float = 0.35,
) -> Verdict:
    """Compare the ground that a LiDAR sees with the gravity that an IMU feels, while standing still.

    An accelerometer's unknown bias looks like tilt (20 mg: 1.1 degrees). With a reference reading in the
    calibration the drift against it is judged; without, nothing is worse than suspect.

    Args:
        sweeps: Points of several revolutions at rest.
        acc_m_s2: (N, 3) specific force over the same time, IMU axes; points up at rest. A known bias is taken off.
        slope_deg: How far the ground may be from level (one sigma): 0 indoors, 1 on a road.
        tolerance_deg: Per axis; a tilt of 0.5 degrees in any direction exceeds the default in one of them.

    Raises:
        CalibrationError: If the frames are unknown.
    """
    subject = f"{lidar_frame}~{imu_frame}"
    model = calibration.imus.get(imu_frame, ImuModel())
    acc = np.asarray(acc_m_s2, np.float64) - (model.acc_bias_m_s2 or (0.0, 0.0, 0.0))
    if len(acc) < 10 or acc.std(axis=0).max() > 0.3:
        reason = "the IMU is not at rest, or hardly heard"
        return Verdict(GROUND_CHECK, subject, Status.INSUFFICIENT, (), (reason,))
    up = calibration.transform(lidar_frame, imu_frame)[:3, :3] @ acc.mean(axis=0)
    up = up / np.linalg.norm(up)
    planes = [plane for plane in (find_ground(points, up) for points in sweeps) if plane is not None]
    if len(planes) < MIN_GROUND_SWEEPS:
        reason = f"ground found in {len(planes)} of {len(sweeps)} sweeps, {MIN_GROUND_SWEEPS} are needed"
        return Verdict(GROUND_CHECK, subject, Status.INSUFFICIENT, (), (reason,))
    normals = np.array([plane.normal for plane in planes])
    mean = normals.mean(axis=0)
    # A LiDAR that turned sees the ground turn back; a turn about the vertical is not seen.
    error = np.rad2deg(np.cross(mean / np.linalg.norm(mean), up))
    # Sweeps at rest share the same cells, so their scatter does not shrink with their number.
    scatter = np.rad2deg(normals.std(axis=0).max())
    sigma = float(np.hypot(max(scatter, 0.05), slope_deg))
    reference = calibration.reference(GROUND_CHECK, subject)
    before = np.zeros(2) if reference is None else np.array(reference.mean)
    degrees = [
        Degree(
            name,
            "deg",
            float(error[axis] - before[axis]),
            sigma,
            tolerance_deg,
            may_fail=reference is not None,
        )
        for axis, name in enumerate(("roll", "pitch"))
    ]
    heights = [plane.height_m for plane in planes]
    extra = (
        Quantity("height", float(np.mean(heights)), "m", sigma=float(np.std(heights))),
        Quantity("plane_rms", float(np.mean([plane.rms_m for plane in planes])), "m"),
    )
    notes = ["heading cannot be seen from the ground"]
    if reference is None:
        notes.append("without a reference reading the accelerometer's bias and a tilt are one")
    return judge(GROUND_CHECK, subject, degrees, (), extra, notes)
