"""The outline of a board in one LiDAR sweep: its plane, the returns on and beside it, the pose that fits them."""

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from sensorium.calibration.geometry import Array
from sensorium.errors import CalibrationError

# How far the board may be from where a calibration puts it.
SEARCH_M = 0.4
SEARCH_RAD = np.deg2rad(25.0)
MAX_SIZE_RATIO = 2.2
"""Of an unknown board to its pattern."""
MIN_RETURNS = 30
PLANE_TOLERANCE_M = 0.025
EDGE_M = 0.01
_CELL_M = 0.06
_FIT_RAYS = 3000
# What being a metre away from where it should be counts, in misplaced share.
ASTRAY_PER_M = 0.3
_RANSAC_TRIES = 120
SEEDS = 150
_MIN_EDGE_RAYS = 3


@dataclass(frozen=True, slots=True, eq=False)
class Plane:
    """A plane with its two axes; ``crossings`` of rays with it are (N, 2) in them, about ``origin``."""

    origin: Array
    normal: Array
    across: Array
    down: Array

    def crossings(self, points: Array) -> tuple[Array, NDArray[np.int8], NDArray[np.intp]]:
        """Return where rays to points cross, 1 for those that end there and 0 for those that go on, and which.

        Rays that end before the plane, or never cross it, are left out.
        """
        ranges = np.linalg.norm(points, axis=1)
        facing = points @ self.normal / np.maximum(ranges, 1e-9)
        with np.errstate(divide="ignore", invalid="ignore"):
            at = (self.origin @ self.normal) / facing
        beyond = (ranges - at) * np.abs(facing)
        is_seen = np.isfinite(at) & (at > 0.2) & (np.abs(facing) > 0.1) & (beyond > -PLANE_TOLERANCE_M)
        seen = np.flatnonzero(is_seen)
        where = points[seen] * (at[seen] / ranges[seen])[:, None] - self.origin
        flat = np.stack([where @ self.across, where @ self.down], axis=1)
        return flat, (beyond[seen] < PLANE_TOLERANCE_M).astype(np.int8), seen


def planes_near(near: Array, centre: Array, normal: Array, across: Array, radius: float) -> Iterator[Plane]:
    """Yield up to three planes through many returns, turned about as the board."""
    rng = np.random.default_rng(1)
    left = near
    for _ in range(3):
        if len(left) < MIN_RETURNS:
            return
        found = _ransac(left, normal, rng)
        if found is None:
            return
        n, d = found
        inside = np.abs(left @ n - d) < PLANE_TOLERANCE_M
        close = inside & (np.linalg.norm(left - centre, axis=1) < radius + SEARCH_M)
        if close.sum() >= MIN_RETURNS:
            n, d = fitted(left[close])
            n, d = (n, d) if n @ normal > 0 else (-n, -d)
            yield plane_of(n, d, centre, across)
        left = left[~inside]


def plane_of(normal: Array, d: float, centre: Array, across: Array) -> Plane:
    origin = centre + (d - centre @ normal) * normal
    flat = across - (across @ normal) * normal
    flat = flat / np.linalg.norm(flat)
    # y down = z x x with z away from the sensor.
    return Plane(origin, normal, flat, np.cross(-normal, flat))


def _ransac(points: Array, normal: Array, rng: np.random.Generator) -> tuple[Array, float] | None:
    a, b, c = (points[chosen] for chosen in rng.integers(0, len(points), (3, _RANSAC_TRIES)))
    normals = np.cross(b - a, c - a)
    lengths = np.linalg.norm(normals, axis=1)
    normals = normals / np.maximum(lengths, 1e-9)[:, None]
    normals *= np.where(normals @ normal > 0, 1.0, -1.0)[:, None]
    usable = (lengths > 1e-4) & (normals @ normal > np.cos(SEARCH_RAD))
    if not usable.any():
        return None
    normals, distances = normals[usable], np.einsum("ij,ij->i", normals[usable], a[usable])
    # Enough of the returns to tell planes apart.
    some = points[rng.permutation(len(points))[:_FIT_RAYS]]
    counts = (np.abs(some @ normals.T - distances) < PLANE_TOLERANCE_M / 2).sum(axis=0)
    best = int(np.argmax(counts))
    if counts[best] * len(points) < MIN_RETURNS * len(some):
        return None
    return normals[best], float(distances[best])


def fitted(points: Array) -> tuple[Array, float]:
    """Return normal and distance of the least-squares plane, the worst returns left out twice."""
    chosen = points
    n, d = np.zeros(3), 0.0
    for _ in range(3):
        middle = chosen.mean(axis=0)
        _, _, axes = np.linalg.svd(chosen - middle, full_matrices=False)
        n, d = axes[2], float(middle @ axes[2])
        off = np.abs(points @ n - d)
        chosen = points[off <= max(3 * float(np.median(off)), 0.005)]
    return np.asarray(n, np.float64), d


def slack_of(flat: Array, hit: NDArray[np.int8], pose: Array) -> tuple[float, float]:
    """Return how far the outline can move across and down before rays end on its wrong side, m."""
    _, _, _, width, height = pose
    x, y = _along(flat, pose)
    found = []
    for along, beside, half, level in ((x, y, width / 2, height / 2), (y, x, height / 2, width / 2)):
        abreast = np.abs(beside) < level
        room = []
        for way in (-1.0, 1.0):
            # Moving that way, the far edge leaves returns behind and the near one runs over rays that went on.
            left = way * along[abreast & (hit == 1) & (np.abs(along) < half)] + half
            met = way * along[abreast & (hit == 0) & (way * along > half)] - half
            ends = np.sort(np.concatenate([left, met]))
            room.append(float(ends[min(_MIN_EDGE_RAYS - 1, len(ends) - 1)]) if len(ends) else 2 * half)
        found.append(sum(room))
    return found[0], found[1]


def _along(flat: Array, pose: Array) -> tuple[Array, Array]:
    """Return (N,) places along the outline's width and height, from its middle."""
    u, v, angle = pose[:3]
    c, s = np.cos(angle), np.sin(angle)
    x, y = flat[:, 0] - u, flat[:, 1] - v
    return c * x + s * y, c * y - s * x


def are_inside(flat: Array, pose: Array) -> Array:
    """Return (N,) distances from the outline, positive inside."""
    x, y = _along(flat, pose)
    return np.asarray(np.minimum(pose[3] / 2 - np.abs(x), pose[4] / 2 - np.abs(y)), np.float64)


def fit_outline(
    flat: Array, hit: NDArray[np.int8], size_m: tuple[float, float], is_size_known: bool
) -> Array:
    """Return u, v, angle, width, height of the rectangle that tells hits from misses best.

    Raises:
        CalibrationError: If no returns hang together there.
    """
    starts = [np.array([0.0, 0.0, 0.0, *size_m])] if is_size_known else []
    patch = patch_of(flat, hit)
    if patch is not None:
        starts.append(np.array([*patch[:3], *size_m]) if is_size_known else patch)
    if not starts:
        raise CalibrationError("no patch of returns there")
    low, high = 0.95 * np.array(size_m), MAX_SIZE_RATIO * np.array(size_m)
    fits = [_climbed(flat, hit, start, None if is_size_known else (low, high)) for start in starts]
    return min(fits, key=lambda fit: fit[1])[0]


def patch_of(flat: Array, hit: NDArray[np.int8]) -> Array | None:
    """Return the rectangle around the returns on the plane that hang together about its origin, or None."""
    reach = float(np.abs(flat).max()) if len(flat) else 0.0
    cells = int(2 * reach / _CELL_M) + 1
    column, row = np.clip(((flat + reach) / _CELL_M).astype(np.intp), 0, cells - 1).T
    balance = np.zeros((cells, cells))
    np.add.at(balance, (row, column), np.where(hit == 1, 1.0, -1.0))
    count, labels = cv2.connectedComponents((balance > 0).astype(np.uint8), connectivity=4)
    if count < 2:
        return None
    middle = cells // 2
    rows, columns = np.nonzero(labels)
    nearest = int(np.argmin(np.hypot(rows - middle, columns - middle)))
    chosen = (labels[row, column] == labels[rows[nearest], columns[nearest]]) & (hit == 1)
    if chosen.sum() < MIN_RETURNS:
        return None
    (u, v), (width, height), degrees = cv2.minAreaRect(flat[chosen].astype(np.float32))
    angle = float(np.deg2rad(degrees))
    while abs(angle) > np.pi / 4:  # the side nearest to the expected one is the width
        angle -= np.copysign(np.pi / 2, angle)
        width, height = height, width
    return np.array([u, v, angle, width, height])


def _climbed(
    flat: Array, hit: NDArray[np.int8], start: Array, limits: tuple[Array, Array] | None
) -> tuple[Array, float]:
    """Return the best rectangle near a start, and its cost: that of a logistic border.

    Steps shrink along each parameter in turn; the size is free within ``limits``, or fixed.
    """
    pose, edge_m = start.copy(), 0.1
    if limits is not None:
        pose[3:] = np.clip(pose[3:], *limits)
    rim = np.flatnonzero(np.abs(are_inside(flat, pose)) < SEARCH_M)
    if len(rim) > _FIT_RAYS:
        rim = rim[np.random.default_rng(4).permutation(len(rim))[:_FIT_RAYS]]
    flat, sign = flat[rim], np.where(hit[rim] == 1, 1.0, -1.0)

    def cost(trial: Array, edge_m: float) -> float:
        # Far from the outline a ray on the wrong side is another object, not a better place.
        margin = np.clip(sign * are_inside(flat, trial) / edge_m, -8.0, 8.0)
        return float(np.log1p(np.exp(-margin)).sum())

    steps = np.array([0.2, 0.2, np.deg2rad(8.0), 0.1, 0.1])
    lowest = cost(pose, edge_m)
    while steps[0] > 2e-4:
        moved = False
        for k in range(5 if limits is not None else 3):
            for way in (-1.0, 1.0):
                trial = pose.copy()
                trial[k] += way * steps[k]
                if limits is not None and ((trial[3:] < limits[0]) | (trial[3:] > limits[1])).any():
                    continue
                value = cost(trial, edge_m)
                if value < lowest:
                    pose, lowest, moved = trial, value, True
                    break
        if not moved:
            steps /= 2
            edge_m = max(EDGE_M, edge_m / 2)
            lowest = cost(pose, edge_m)
    return pose, lowest


def bounded(flat: Array, hit: NDArray[np.int8], pose: Array) -> tuple[bool, bool, bool, bool]:
    """Return whether rays on either side bound the left, right, upper and lower edge."""
    width, height = pose[3:]
    x, y = _along(flat, pose)
    found = []
    for along, beside, half, length in ((x, y, width / 2, height / 2), (y, x, height / 2, width / 2)):
        for way in (-1.0, 1.0):
            gap = half - way * along
            level = np.abs(beside) < length
            inner = (level & (hit == 1) & (gap > 0) & (gap < 0.1)).sum()
            outer = (level & (hit == 0) & (gap < 0) & (gap > -0.15)).sum()
            found.append(bool(inner >= _MIN_EDGE_RAYS and outer >= _MIN_EDGE_RAYS))
    return found[0], found[1], found[2], found[3]
