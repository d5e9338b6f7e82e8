"""How fast a LiDAR moved over the ground, from two of its sweeps; a gyro has taken out how it turned within each."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sensorium.calibration.geometry import Array, transform
from sensorium.calibration.lidar_lidar import MIN_MATCHES, VOXEL_M, register, surface
from sensorium.errors import CalibrationError

# From far (a car drives a metre from sweep to sweep; each try reaches half as far) to near.
VOXELS_M = (4 * VOXEL_M, 4 * VOXEL_M, VOXEL_M, VOXEL_M)
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
    T, covariance, share = transform(R_first_second, np.zeros(3)), np.zeros((6, 6)), 0.0
    for voxel_m in VOXELS_M:
        found = register(surface(first, voxel_m), source, T, voxel_m)
        if found.matches < MIN_MATCHES or not np.isfinite(found.covariance).all():
            return None
        T, covariance, share = found.T_target_source, found.covariance[3:, 3:], found.matches / len(source)
    if share < MIN_SHARE:
        return None
    size, ways = np.linalg.eigh(covariance)
    pinned = ways[:, np.sqrt(size) <= MAX_SIGMA_M]
    velocity = pinned @ pinned.T @ T[:3, 3] / apart_s
    return SweepVelocity(np.asarray(velocity), np.asarray(covariance / apart_s**2))
