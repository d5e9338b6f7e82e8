"""Whether two LiDARs that see the same surfaces still stand as calibrated.

Points of one are matched to planes of the other (point-to-plane ICP), coarse to fine, starting from the
calibration. How far it walks is the motion; the smallest eigenvalues of its normal equations tell which degrees
the scene does not pin (a flat lot, a corridor).

Source: spec calibration 1.7; Chen and Medioni, "Object modelling by registration of multiple range images",
1992.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sensorium.calibration.checks import Degree, judge
from sensorium.calibration.geometry import (
    Array,
    apply,
    difference,
    inverse,
    rotation_log,
    skew,
    small_motion,
)
from sensorium.calibration.rig_document import RigCalibration
from sensorium.calibration.rotation import Turns
from sensorium.verdict import Quantity, Verdict

CHECK = "lidar_lidar"
DEGREES = ("roll", "pitch", "yaw", "x", "y", "z")

VOXEL_M = 0.15
GATES_M = (0.8, 0.4, 0.2, 0.1)
MAX_POINTS = 6000
MIN_MATCHES = 300
# Planes come from a handful of points and matches share them, so formal deviations are too small by far.
SIGMA_INFLATION = 3.0
NOISE_FLOOR_M = 0.01
BIAS_SIGMA = np.array([np.deg2rad(0.05)] * 3 + [0.005] * 3)


@dataclass(frozen=True, slots=True, eq=False)
class Surface:
    """A cloud as small planes: voxel means, unit normals, and a hash of voxels for lookups."""

    centres: Array
    normals: Array
    keys: NDArray[np.int64]


def surface(points: NDArray[np.floating], voxel_m: float = VOXEL_M) -> Surface:
    """Reduce points (N, 3 or more) to planes per cell of ``3 * voxel_m``, kept where they are flat."""
    xyz = np.asarray(points[:, :3], np.float64)
    xyz = xyz[np.isfinite(xyz).all(axis=1) & (np.abs(xyz).max(axis=1, initial=0) < 1e4) & xyz.any(axis=1)]
    cell_m = 3 * voxel_m
    keys, index, counts = np.unique(_keys(xyz, cell_m), return_inverse=True, return_counts=True)
    index = index.ravel()
    sums = np.stack([np.bincount(index, xyz[:, axis], len(keys)) for axis in range(3)], axis=1)
    centres = sums / np.maximum(counts, 1)[:, None]
    left = xyz - centres[index]
    spread = np.zeros((len(keys), 3, 3))
    for a in range(3):
        for b in range(a, 3):
            spread[:, a, b] = spread[:, b, a] = np.bincount(index, left[:, a] * left[:, b], len(keys))
    values, vectors = np.linalg.eigh(spread / np.maximum(counts, 1)[:, None, None])
    flat = (counts >= 6) & (values[:, 0] < 0.05 * values[:, 1]) & (values[:, 1] > (0.1 * voxel_m) ** 2)
    return Surface(centres[flat], vectors[flat][:, :, 0], keys[flat])


def _keys(xyz: Array, cell_m: float) -> NDArray[np.int64]:
    cells = np.floor(xyz / cell_m).astype(np.int64) + (1 << 20)
    return np.asarray((cells[:, 0] << 42) | (cells[:, 1] << 21) | cells[:, 2], np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Registration:
    """T_target_source, its covariance (left perturbation, rad and m), matches and RMS distance to planes."""

    T_target_source: Array
    covariance: Array
    matches: int
    rms_m: float


def register(
    target: Surface, source_xyz: Array, T_target_source: Array, voxel_m: float = VOXEL_M
) -> Registration:
    """Refine a transform by point-to-plane ICP; the start may be off by about a degree and 20 cm."""
    T = np.array(T_target_source)
    source = np.asarray(source_xyz[:, :3], np.float64)
    if len(source) > MAX_POINTS:
        source = source[:: len(source) // MAX_POINTS + 1]
    information, variance, count = np.zeros((6, 6)), NOISE_FLOOR_M**2, 0
    for gate_m in GATES_M:
        for _ in range(12):
            moved = apply(T, source)
            match = _planes_near(target, moved, 3 * voxel_m)
            near = match >= 0
            points, planes = moved[near], match[near]
            normals = target.normals[planes]
            gap = np.einsum("ij,ij->i", normals, points - target.centres[planes])
            close = np.abs(gap) < gate_m
            points, normals, gap = points[close], normals[close], gap[close]
            count = len(gap)
            if count < MIN_MATCHES // 3:
                return Registration(T, np.full((6, 6), np.inf), count, float("nan"))
            scale = max(1.4826 * float(np.median(np.abs(gap))), NOISE_FLOOR_M)
            weight = (1 + np.square(gap / (2 * scale))) ** -2
            jacobian = np.concatenate([np.cross(points, normals), normals], axis=1)
            information = (jacobian * weight[:, None]).T @ jacobian
            variance = scale**2
            # A weak pull to the start keeps unpinned degrees (a corridor's length) from drifting.
            hold = np.diag([variance / np.deg2rad(3.0) ** 2] * 3 + [variance / 0.5**2] * 3)
            offset = difference(T, T_target_source)
            step = -np.linalg.solve(information + hold, jacobian.T @ (weight * gap) + hold @ offset)
            T = small_motion(step) @ T
            if float(np.abs(step).max()) < 1e-5:
                break
    hold = np.diag([1 / np.deg2rad(3.0) ** 2] * 3 + [1 / 0.5**2] * 3)
    covariance = SIGMA_INFLATION**2 * np.linalg.inv(information / variance + hold)
    rms_m = float(np.sqrt(np.mean(np.square(gap) * weight) / np.mean(weight)))
    return Registration(T, np.asarray(covariance, np.float64), count, rms_m)


def _planes_near(target: Surface, points: Array, cell_m: float) -> NDArray[np.intp]:
    """Return for each point the plane whose centre is nearest among its own and six neighbouring cells; or -1."""
    best = np.full(len(points), -1, np.intp)
    if not len(target.keys):
        return best
    distance = np.full(len(points), np.inf)
    offsets = np.vstack([np.zeros((1, 3)), np.eye(3), -np.eye(3)]) * cell_m
    for offset in offsets:
        keys = _keys(points + offset, cell_m)
        place = np.clip(np.searchsorted(target.keys, keys), 0, len(target.keys) - 1)
        found = target.keys[place] == keys
        gap = np.where(found, np.square(points - target.centres[place]).sum(axis=1), np.inf)
        nearer = gap < distance
        best[nearer], distance[nearer] = place[nearer], gap[nearer]
    return best


def register_sweeps(
    first_sweeps: Sequence[NDArray[np.floating]],
    second_sweeps: Sequence[NDArray[np.floating]],
    T_first_second: Array,
) -> Registration:
    """Refine a transform by sweeps of two LiDARs that were taken while the rig stood in one place."""
    target = surface(np.concatenate([np.asarray(sweep)[:, :3] for sweep in first_sweeps]))
    source = np.concatenate([np.asarray(sweep)[:, :3] for sweep in second_sweeps])
    return register(target, source[np.isfinite(source).all(axis=1) & source.any(axis=1)], T_first_second)


def check_lidar_lidar(
    found: Sequence[Registration],
    calibration: RigCalibration,
    first_frame: str,
    second_frame: str,
    rotation_tolerance_deg: float = 0.25,
    translation_tolerance_m: float = 0.025,
) -> Verdict:
    """Judge two LiDARs by registrations at one or several places where the rig hardly moved.

    Tolerances hold per axis; a motion of twice the default in any direction exceeds one of them.

    Args:
        found: Of :func:`register_sweeps`, one for each place (5 sweeps or so each), started at the calibration.

    Raises:
        CalibrationError: If the frames are unknown.
    """
    subject = f"{first_frame}~{second_frame}"
    if not found:
        return judge(CHECK, subject, (), ("no sweeps of both LiDARs while the rig stood still",))
    matches = max(each.matches for each in found)
    gates = []
    if matches < MIN_MATCHES:
        gates.append(f"{matches} points of the one lie on planes of the other, {MIN_MATCHES} are needed")
    motion, covariance = pooled_motion(found, calibration.transform(first_frame, second_frame))
    sigma = np.sqrt(np.diag(covariance))
    degrees = [
        Degree(
            name,
            "deg" if k < 3 else "m",
            float(np.rad2deg(motion[k]) if k < 3 else motion[k]),
            float(np.rad2deg(sigma[k]) if k < 3 else sigma[k]),
            rotation_tolerance_deg if k < 3 else translation_tolerance_m,
        )
        for k, name in enumerate(DEGREES)
    ]
    extra = (
        Quantity("matches", float(matches), "1", float(MIN_MATCHES)),
        Quantity("plane_rms", float(np.median([each.rms_m for each in found])), "m"),
        Quantity("places", float(len(found)), "1"),
    )
    return judge(CHECK, subject, degrees, gates, extra)


def pooled_motion(found: Sequence[Registration], T_first_second: Array) -> tuple[Array, Array]:
    """Return the second LiDAR's motion against a calibration, in its own axes, and the covariance (6, 6).

    Infinite where no registration has enough matches. Places that disagree inflate the covariance.
    """
    usable = [each for each in found if each.matches >= MIN_MATCHES and np.isfinite(each.covariance).all()]
    if not usable:
        return np.zeros(6), np.full((6, 6), np.inf)
    R, t = T_first_second[:3, :3], T_first_second[:3, 3]
    # Covariances are of a perturbation in the first LiDAR's axes; this turns one into the second's.
    carry = np.block([[R.T, np.zeros((3, 3))], [-R.T @ skew(t), R.T]])
    information, pull = np.zeros((6, 6)), np.zeros(6)
    motions = [difference(inverse(T_first_second), inverse(each.T_target_source)) for each in usable]
    weights = [np.linalg.inv(carry @ each.covariance @ carry.T) for each in usable]
    for motion, weight in zip(motions, weights, strict=True):
        information += weight
        pull += weight @ motion
    mean: Array = np.asarray(np.linalg.solve(information, pull), np.float64)
    squares = sum(
        float((motion - mean) @ weight @ (motion - mean))
        for motion, weight in zip(motions, weights, strict=True)
    )
    inflation = max(squares / (6 * max(len(usable) - 1, 1)), 1.0)
    return mean, np.asarray(inflation * np.linalg.inv(information) + np.diag(BIAS_SIGMA**2), np.float64)


def sweep_turns(
    sweeps: Sequence[NDArray[np.floating]], time_s: Array, max_points: int = 3000
) -> tuple[Turns, Array]:
    """Return a LiDAR's rotations from sweep to sweep, and how far it moved in each step (N, metres).

    Each sweep is registered to the one before, starting from the motion of the step before. Sweeps should be
    straightened; steps with too few matches are left out.
    """
    starts, ends, rates, moved = [], [], [], []
    before, guess = surface(sweeps[0]) if len(sweeps) else None, np.eye(4)
    for k in range(1, len(sweeps)):
        assert before is not None
        points = np.asarray(sweeps[k])[:, :3]
        found = register(before, points[:: max(len(points) // max_points, 1)], guess)
        before = surface(sweeps[k])
        if found.matches < MIN_MATCHES:
            guess = np.eye(4)
            continue
        guess = found.T_target_source
        starts.append(float(time_s[k - 1]))
        ends.append(float(time_s[k]))
        rates.append(rotation_log(guess[:3, :3]) / (ends[-1] - starts[-1]))
        moved.append(float(np.linalg.norm(guess[:3, 3])))
    return Turns(np.array(starts), np.array(ends), np.array(rates).reshape(-1, 3)), np.array(moved)
