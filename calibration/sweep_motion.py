"""How fast a LiDAR moved over the ground, from two of its sweeps; a gyro has taken out how it turned within each."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sensorium.calibration.geometry import Array, transform
from sensorium.calibration.lidar_lidar import MIN_MATCHES, VOXEL_M, Registration, register, surface
from sensorium.errors import CalibrationError

# Sizes of the planes that are matched: fine ones find a way of 20 cm. A car drives further from sweep to sweep; that is
# looked for from coarse to fine, where each try reaches half a metre.
NEAR_M = (VOXEL_M, VOXEL_M)
FAR_M = (4 * VOXEL_M, 4 * VOXEL_M, VOXEL_M, VOXEL_M)
MAX_POINTS = 3000
# Sweeps further apart share too little, and the speed changed in between.
MAX_APART_S = 0.35
# Of the points that lie on surfaces of the other sweep; false places reach 0.6.
MIN_SHARE = 0.8
# Of the way from sweep to sweep; what a scene pins less well (a corridor's length) is not taken for a speed.
MAX_SIGMA_M = 0.05


@dataclass(frozen=True, slots=True, eq=False)
class SweepVelocity:
    """Velocity over the ground (3,), m/s, in the first sweep's axes, and its covariance (3, 3)."""

    velocity_m_s: Array
    covariance: Array


def sweep_velocity(
    first: NDArray[np.floating], second: NDArray[np.floating], apart_s: float, R_first_second: Array
) -> SweepVelocity | None:
    """Return how fast a LiDAR moved between two of its sweeps; None if they share too few surfaces.

    What a steady motion does within a sweep is the same in both, so it need not be taken out before. Directions
    that the scene does not pin are left at zero.

    Args:
        first, second: (N, 3 or more) points, each sweep straightened for turning to an instant of its own; both
            instants at the same place of their sweep.
        apart_s: The second instant minus the first; negative if it was before.
        R_first_second: How the LiDAR turned from the first to the second instant, by the gyro.

    Raises:
        CalibrationError: If the two instants are one, or too far apart.
    """
    if not 0 < abs(apart_s) <= MAX_APART_S:
        raise CalibrationError(
            f"sweeps {apart_s:.3g} s apart say nothing of a speed: give two within {MAX_APART_S} s of each other"
        )
    source = np.asarray(second, np.float64)[:, :3]
    source = source[np.isfinite(source).all(axis=1) & source.any(axis=1)]
    source = source[:: max(len(source) // MAX_POINTS, 1)]
    start = transform(R_first_second, np.zeros(3))
    found = _registered(first, source, start, NEAR_M) or _registered(first, source, start, FAR_M)
    if found is None:
        return None
    covariance = found.covariance[3:, 3:]
    size, ways = np.linalg.eigh(covariance)
    pinned = ways[:, np.sqrt(size) <= MAX_SIGMA_M]
    velocity = pinned @ pinned.T @ found.T_target_source[:3, 3] / apart_s
    return SweepVelocity(np.asarray(velocity), np.asarray(covariance / apart_s**2))


def _registered(
    first: NDArray[np.floating], source: Array, T_first_second: Array, voxels_m: Sequence[float]
) -> Registration | None:
    """Return the last of several tries, each from where the one before ended; None if too few points lie on planes."""
    T, found = T_first_second, None
    for voxel_m in voxels_m:
        found = register(surface(first, voxel_m), source, T, voxel_m)
        if found.matches < MIN_MATCHES or not np.isfinite(found.covariance).all():
            return None
        T = found.T_target_source
    return found if found is not None and found.matches >= MIN_SHARE * len(source) else None
