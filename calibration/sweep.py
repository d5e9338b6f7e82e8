"""One LiDAR revolution in the order of its beams, and the edges that a camera can see too."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sensorium.calibration.geometry import Array
from sensorium.errors import CalibrationError

# A ring whose points spread more than this in elevation is not one laser's. Lasers sit off the centre
# (HDL-64E), so near and far points of one differ by some tenths of a degree; shuffled clouds by many.
MAX_RING_SPREAD_RAD = np.deg2rad(1.5)
MIN_RINGS, MAX_RINGS = 4, 260


@dataclass(frozen=True, slots=True, eq=False)
class Sweep:
    """Points of one revolution sorted by ring (top first), then azimuth.

    Attributes:
        xyz: (N, 3) in the LiDAR's frame, only real returns.
        intensity: (N,) reflectance or intensity in the sensor's own scale.
        ring: (N,) 0 = highest laser.
        azimuth, elevation, range_m: (N,) polar form, rad and m; azimuth 0..2 pi. As measured: what hides what, and
            which points are neighbours, is seen from where the sensor was.
        shift: (N, 3) how far each point lies, as if measured at one instant, from there; None = not at all.
    """

    xyz: Array
    intensity: Array
    ring: NDArray[np.intp]
    azimuth: Array
    elevation: Array
    range_m: Array
    shift: Array | None = None

    @classmethod
    def from_points(
        cls,
        points: NDArray[np.floating],
        ring: NDArray[np.integer] | None = None,
        as_measured: NDArray[np.floating] | None = None,
    ) -> "Sweep":
        """Build from (N, 4) rows x, y, z, intensity; rows without a return (zeros, NaN) are dropped.

        Args:
            ring: Laser number of each row, any order; by default found from clusters of elevation, or, where
                those run into each other (HDL-64E), from the storage order: azimuth wraps once per ring.
            as_measured: The same rows before a motion was taken out of them (:func:`deskew`).

        Raises:
            CalibrationError: If the points are not rows of four numbers, or the two sets not of one length.
        """
        rows: Array = np.asarray(points, np.float64)
        if rows.ndim != 2 or rows.shape[1] < 4:
            raise CalibrationError(f"LiDAR points must be rows x, y, z, intensity, found shape {rows.shape}")
        if as_measured is not None and len(as_measured) != len(rows):
            raise CalibrationError(
                f"{len(rows)} points, but {len(as_measured)} as measured: give the same rows"
            )
        moved = rows[:, :3]
        if as_measured is not None:
            rows = np.column_stack([np.asarray(as_measured, np.float64)[:, :3], rows[:, 3]])
        range_m: Array = np.sqrt(np.square(rows[:, :3]).sum(axis=1))
        real = np.isfinite(rows[:, :4]).all(axis=1) & np.isfinite(moved).all(axis=1) & (range_m > 0.1)
        rows, range_m, moved = rows[real], range_m[real], moved[real]
        azimuth = np.arctan2(rows[:, 1], rows[:, 0]) % (2 * np.pi)
        elevation = np.arcsin(np.clip(rows[:, 2] / range_m, -1, 1))
        if ring is not None:
            found = np.unique(np.asarray(ring)[real], return_inverse=True)[1].ravel()
        else:
            found = _rings_by_elevation(elevation)
            if not _are_rings(found, elevation):
                wraps = _rings_by_wrap(azimuth, elevation)
                found = found if wraps is None else wraps
        found = _top_first(found, elevation)
        order = np.lexsort((azimuth, found))
        return cls(
            rows[order, :3],
            rows[order, 3],
            found[order],
            azimuth[order],
            elevation[order],
            range_m[order],
            None if as_measured is None else moved[order] - rows[order, :3],
        )

    def moved(self, xyz: Array, index: NDArray[np.intp]) -> Array:
        """Return places (M, 3) seen beside points (M,) of the sweep as if measured at the one instant."""
        return xyz if self.shift is None else xyz + self.shift[index]

    @property
    def ring_spacing_rad(self) -> float:
        """Median step in elevation from one ring to the next; infinite with a single ring."""
        if not len(self.ring) or self.ring[-1] == 0:
            return float("inf")
        counts = np.bincount(self.ring)
        means = np.bincount(self.ring, self.elevation)[counts > 0] / counts[counts > 0]
        return float(np.median(-np.diff(means)))


def _rings_by_wrap(azimuth: Array, elevation: Array) -> NDArray[np.intp] | None:
    """Return rings of points stored ring after ring, or None if they are not stored so."""
    if len(azimuth) < MIN_RINGS * 8:
        return None
    step = np.diff(azimuth)
    # Returns near azimuth 0 may scatter across it; a step back over 0 cancels the wrap before it. A step
    # forward over half a turn elsewhere is a gap without returns, such as the sky.
    back = (step > np.pi) & (azimuth[:-1] < 0.2) & (azimuth[1:] > 2 * np.pi - 0.2)
    ring = np.concatenate([[0], np.cumsum((step < -np.pi).astype(np.intp) - back)])
    ring -= ring.min()
    counts = np.bincount(ring)
    if not MIN_RINGS <= np.count_nonzero(counts > 16) <= MAX_RINGS:
        return None
    means = np.bincount(ring, elevation) / np.maximum(counts, 1)
    spread = np.sqrt(np.bincount(ring, np.square(elevation - means[ring])) / np.maximum(counts, 1))
    return ring if float(np.median(spread[counts > 16])) < MAX_RING_SPREAD_RAD else None


def _rings_by_elevation(elevation: Array) -> NDArray[np.intp]:
    """Return rings as clusters of elevation: gaps in the sorted elevations separate the lasers."""
    if not len(elevation):
        return np.zeros(0, np.intp)
    order = np.argsort(elevation)
    steps = np.diff(elevation[order])
    # Within a ring steps are noise (micro-radians for thousands of points); between rings >= 0.05 deg.
    ring = np.empty(len(elevation), np.intp)
    ring[order] = np.concatenate([[0], np.cumsum(steps > np.deg2rad(0.04))])
    # Beams do not start at the centre, so near and far returns of one laser may fall into two clusters.
    counts = np.bincount(ring)
    means = np.bincount(ring, elevation) / counts
    spacing = float(np.median(np.diff(means[counts > np.median(counts) / 2]))) if len(means) > 2 else 0.0
    return np.concatenate([[0], np.cumsum(np.diff(means) > spacing / 2)]).astype(np.intp)[ring]


def _are_rings(ring: NDArray[np.intp], elevation: Array) -> bool:
    """Return whether clusters look like lasers: a plausible number, each much narrower than their spacing."""
    counts = np.bincount(ring) if len(ring) else np.zeros(0, np.intp)
    full = counts > 16
    if not MIN_RINGS <= np.count_nonzero(full) <= MAX_RINGS or counts[full].sum() < 0.95 * len(ring):
        return False
    if counts.max() > 3 * np.median(counts[full]):
        return False
    means = np.bincount(ring, elevation) / np.maximum(counts, 1)
    spread = np.sqrt(np.bincount(ring, np.square(elevation - means[ring])) / np.maximum(counts, 1))
    spacing = float(np.median(np.diff(np.sort(means[full]))))
    # Two lasers in one cluster have a spread of half their distance.
    return float(np.quantile(spread[full], 0.9)) < spacing / 4


def _top_first(ring: NDArray[np.intp], elevation: Array) -> NDArray[np.intp]:
    if not len(ring):
        return ring
    counts = np.bincount(ring)
    means = np.where(counts > 0, np.bincount(ring, elevation) / np.maximum(counts, 1), -np.inf)
    rank = np.empty(len(counts), np.intp)
    rank[np.argsort(-means, kind="stable")] = np.arange(len(counts))
    return np.asarray(rank[ring], np.intp)


def deskew(
    points: NDArray[np.floating],
    time_s: Array,
    at_s: float,
    gyro_s: Array,
    gyro_rad_s: Array,
    R_lidar_imu: Array,
    velocity_m_s: Array | None = None,
) -> Array:
    """Return the points (N, 3 or more columns) as if all had been measured at one instant.

    Turning is taken out with a gyro; angles over a sweep are small, so rotation vectors are interpolated and added.

    Args:
        time_s: (N,) when each point was measured; at_s: the instant wanted, such as the camera's exposure.
        gyro_s, gyro_rad_s: (M,) and (M, 3) rates in IMU axes over the whole span, on the same clock.
        velocity_m_s: (3,) of the LiDAR over the ground, in its own axes at the instant wanted
            (:func:`sensorium.calibration.sweep_motion.sweep_velocity`). None leaves in what driving does: a tenth of a
            second at 10 m/s shifts points by up to a metre.
    """
    turns = (gyro_rad_s[1:] + gyro_rad_s[:-1]) / 2 * np.diff(gyro_s)[:, None]
    angle = np.concatenate([np.zeros((1, 3)), np.cumsum(turns @ R_lidar_imu.T, axis=0)])
    wanted = np.array([np.interp(at_s, gyro_s, angle[:, axis]) for axis in range(3)])
    vector = np.stack([np.interp(time_s, gyro_s, angle[:, axis]) for axis in range(3)], axis=1) - wanted
    size = np.linalg.norm(vector, axis=1, keepdims=True)
    axis_of = vector / np.maximum(size, 1e-12)
    straight = np.array(points, np.float64)
    xyz = straight[:, :3]
    along = np.sum(axis_of * xyz, axis=1, keepdims=True) * axis_of
    straight[:, :3] = along + np.cos(size) * (xyz - along) + np.sin(size) * np.cross(axis_of, xyz)
    if velocity_m_s is not None:
        straight[:, :3] += np.asarray(velocity_m_s) * (np.asarray(time_s) - at_s)[:, None]
    return straight


@dataclass(frozen=True, slots=True, eq=False)
class Edges:
    """Points of the scene where the image should have an edge too, with weights."""

    xyz: Array
    weight: Array

    def __len__(self) -> int:
        return len(self.weight)


def _polar(azimuth: Array, elevation: Array, range_m: Array) -> Array:
    flat = range_m * np.cos(elevation)
    return np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), range_m * np.sin(elevation)], axis=1)


def along_ring_edges(sweep: Sweep) -> Edges:
    """Return depth jumps between neighbours of a ring: upright outlines, on the nearer surface.

    The outline lies between the last near and the first far return; the point is moved half a step outwards.
    Jumps across gaps without returns are left out, since the outline may be anywhere in the gap.
    """
    step = np.diff(sweep.azimuth)
    same = (np.diff(sweep.ring) == 0) & (step < _gap_rad(sweep))
    rise = np.diff(sweep.range_m)
    near_first = np.flatnonzero(same & (rise > 0.3 + 0.01 * sweep.range_m[:-1]))
    near_second = np.flatnonzero(same & (-rise > 0.3 + 0.01 * sweep.range_m[1:])) + 1
    index = np.concatenate([near_first, near_second])
    half = np.concatenate([step[near_first] / 2, -step[near_second - 1] / 2])
    jump = np.concatenate([rise[near_first], -rise[near_second - 1]])
    xyz = _polar(sweep.azimuth[index] + half, sweep.elevation[index], sweep.range_m[index])
    return Edges(sweep.moved(xyz, index), np.sqrt(np.minimum(jump, 5.0)))


def between_ring_edges(sweep: Sweep, places: int = 1) -> Edges:
    """Return depth jumps from a ring to the one above: level outlines of smooth surfaces.

    Args:
        places: The outline lies anywhere between the two rings. With 1 it is put half-way; with more, each edge
            is returned at so many places spread evenly over the gap, all edges at the first place before all at
            the second.
    """
    if not len(sweep.ring):
        return Edges(np.empty((0, 3)), np.empty(0))
    above = _neighbour_above(sweep)
    known = above >= 0
    jump = np.where(known, sweep.range_m[above] - sweep.range_m, 0.0)
    flat = _is_level(sweep)
    index = np.flatnonzero(known & flat & (jump > 0.5 + 0.08 * sweep.range_m))
    low, gap = sweep.elevation[index], sweep.elevation[above[index]] - sweep.elevation[index]
    xyz = [
        sweep.moved(_polar(sweep.azimuth[index], low + (k + 0.5) / places * gap, sweep.range_m[index]), index)
        for k in range(places)
    ]
    return Edges(np.concatenate(xyz), np.tile(np.sqrt(np.minimum(jump[index], 5.0)), places))


def reflectance_edges(sweep: Sweep, step_quantile: float = 0.97) -> Edges:
    """Return steps of reflectance along a ring on a continuous surface: paint, signs, seams.

    Args:
        step_quantile: Steps are counted from this quantile of all steps on continuous surfaces, because
            reflectance scales differ by sensor (0.15 of 0..1 on an HDL-64E).
    """
    count = len(sweep.ring)
    if count < 8:
        return Edges(np.empty((0, 3)), np.empty(0))
    smooth = (
        (np.diff(sweep.ring) == 0)
        & (np.diff(sweep.azimuth) < _gap_rad(sweep))
        & (np.abs(np.diff(sweep.range_m)) < 0.15)
    )
    # Edge i lies between points i and i + 1; both neighbours on either side must be on the surface.
    centre = np.zeros(count - 1, np.bool_)
    centre[1:-1] = smooth[:-2] & smooth[1:-1] & smooth[2:]
    intensity = sweep.intensity
    step = np.zeros(count - 1)
    step[1:-1] = np.abs(intensity[2:-1] + intensity[3:] - intensity[1:-2] - intensity[:-3]) / 2
    if not centre.any():
        return Edges(np.empty((0, 3)), np.empty(0))
    threshold = max(float(np.quantile(step[centre], step_quantile)), 1e-6)
    peak = np.zeros(count - 1, np.bool_)
    peak[1:-1] = (step[1:-1] >= step[:-2]) & (step[1:-1] > step[2:])
    index = np.flatnonzero(centre & peak & (step > threshold))
    xyz = (sweep.xyz[index] + sweep.xyz[index + 1]) / 2
    return Edges(sweep.moved(xyz, index), np.sqrt(np.minimum(step[index] / threshold, 4.0)))


def _gap_rad(sweep: Sweep) -> float:
    """Return the largest azimuth step that still joins neighbours of a ring."""
    steps = np.diff(sweep.azimuth)
    steps = steps[(np.diff(sweep.ring) == 0) & (steps > 0)]
    return max(np.deg2rad(0.6), 3 * float(np.median(steps))) if len(steps) else float(np.deg2rad(0.6))


def _neighbour_above(sweep: Sweep) -> NDArray[np.intp]:
    """Return for each point the index of the point nearest in azimuth on the ring above; -1 without one."""
    # One search for all rings: azimuth plus a ring-sized offset is sorted over the whole sweep.
    key = sweep.ring * 10.0 + sweep.azimuth
    wanted = key - 10.0
    right = np.clip(np.searchsorted(key, wanted), 1, len(key) - 1)
    left = right - 1
    nearest = np.where(np.abs(key[left] - wanted) < np.abs(key[right] - wanted), left, right)
    is_near = np.abs(key[nearest] - wanted) < _gap_rad(sweep) / 2
    return np.where(is_near, nearest, -1).astype(np.intp)


def _is_level(sweep: Sweep) -> NDArray[np.bool_]:
    """Return which points have neighbours on both sides at nearly the same range."""
    level = np.zeros(len(sweep.ring), np.bool_)
    near = (
        (np.diff(sweep.ring) == 0)
        & (np.diff(sweep.azimuth) < _gap_rad(sweep))
        & (np.abs(np.diff(sweep.range_m)) < 0.1 + 0.01 * sweep.range_m[:-1])
    )
    level[1:-1] = near[:-1] & near[1:]
    return level
