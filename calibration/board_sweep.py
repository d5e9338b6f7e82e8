"""Finds a board in a LiDAR sweep: its plane from the returns on it, its outline from the rays that pass beside it.

The rays of a sweep cross the board's plane. Those that end there hit the board, those that go on passed beside
it; the rectangle that tells the two apart best is the board. Rays on either side bound an edge, so the width of
a beam, which makes a board look larger, hardly moves its centre; rays that end before the plane say nothing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product

import cv2
import numpy as np
from numpy.typing import NDArray

from sensorium.calibration.board import BoardView
from sensorium.calibration.board_fit import centre_gap, solve_camera_lidar
from sensorium.calibration.bundle import by_motion
from sensorium.calibration.geometry import Array, apply, inverse
from sensorium.errors import CalibrationError

MIN_RETURNS = 30
PLANE_TOLERANCE_M = 0.025
MAX_MISPLACED_SHARE = 0.12
# How far the board may be from where a calibration puts it.
SEARCH_M = 0.4
SEARCH_RAD = np.deg2rad(25.0)
REACH_M = 8.0

MAX_SIZE_RATIO = 2.2
"""Of an unknown board to its pattern."""

_EDGE_M = 0.01
_CELL_M = 0.06
_INNER_M = 0.02
_FIT_RAYS = 3000
# What being a metre away from where it should be counts, in misplaced share.
_ASTRAY_PER_M = 0.3
_RANSAC_TRIES = 120
_SEEDS = 150
_MAX_CANDIDATES = 4
_MIN_EDGE_RAYS = 3
# Below these the two sensors' own errors (range bias, flatness, the pattern's place on its board) rule.
_CENTRE_FLOOR_M = 0.004
_NORMAL_FLOOR_RAD = 0.005


@dataclass(frozen=True, slots=True, eq=False)
class SweptBoard:
    """A board as a LiDAR has it, in its frame.

    Attributes:
        centre: Of the outline, m.
        normal: Unit, towards the sensor.
        across, down: Unit, along the outline's sides.
        size_m: Width (along ``across``) and height.
        returns: On the board.
        misplaced_share: Rays near the outline that end on its wrong side.
        centre_covariance: 3x3, m^2, in the LiDAR's axes: between two rings nothing tells where an edge is.
        normal_sigma_rad: Deviation about each axis.
    """

    centre: Array
    normal: Array
    across: Array
    down: Array
    size_m: tuple[float, float]
    returns: int
    misplaced_share: float
    centre_covariance: Array
    normal_sigma_rad: float


@dataclass(frozen=True, slots=True, eq=False)
class _Plane:
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


def find_board(
    points: Array, size_m: tuple[float, float], is_size_known: bool, T_lidar_board: Array
) -> SweptBoard:
    """Return the board near where it is expected.

    Args:
        points: (N, 3) returns, m.
        size_m: Width and height of the whole board; of its pattern at least if they are not known.
        T_lidar_board: The expected pose of the outline's middle: x across, y down, z away from the sensor.

    Raises:
        CalibrationError: If there is no such board, with the reason.
    """
    centre, normal = T_lidar_board[:3, 3], -T_lidar_board[:3, 2]
    radius = 0.5 * float(np.hypot(*size_m))
    near = points[np.linalg.norm(points - centre, axis=1) < radius + SEARCH_M]
    if len(near) < MIN_RETURNS:
        raise CalibrationError(
            f"{len(near)} returns where the board should be, {MIN_RETURNS} are needed: bring it closer"
        )
    best: SweptBoard | None = None
    reason, least = "", np.inf
    planes = list(_planes(near, centre, normal, T_lidar_board[:3, 0], radius))
    for plane in sorted(planes, key=lambda each: abs(float((each.origin - centre) @ normal))):
        try:
            found = _outlined(points, plane, size_m, is_size_known)
        except CalibrationError as err:
            reason = reason or str(err)
            continue
        # Whoever holds the board is flat as well, if one does not look closely, but not where it should be.
        loss = found.misplaced_share + _ASTRAY_PER_M * float(np.linalg.norm(found.centre - centre))
        if loss < least:
            best, least = found, loss
    if best is None:
        raise CalibrationError(f"no board where it should be: {reason or 'no plane turned as the board is'}")
    return best


def _planes(near: Array, centre: Array, normal: Array, across: Array, radius: float) -> Iterator[_Plane]:
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
            n, d = _fitted(left[close])
            n, d = (n, d) if n @ normal > 0 else (-n, -d)
            yield _plane(n, d, centre, across)
        left = left[~inside]


def _plane(normal: Array, d: float, centre: Array, across: Array) -> _Plane:
    origin = centre + (d - centre @ normal) * normal
    flat = across - (across @ normal) * normal
    flat = flat / np.linalg.norm(flat)
    # y down = z x x with z away from the sensor.
    return _Plane(origin, normal, flat, np.cross(-normal, flat))


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


def _fitted(points: Array) -> tuple[Array, float]:
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


def _outlined(points: Array, plane: _Plane, size_m: tuple[float, float], is_size_known: bool) -> SweptBoard:
    flat, hit, seen = plane.crossings(points)
    near = np.abs(flat).max(axis=1) < float(np.hypot(*size_m)) + SEARCH_M
    flat, hit, seen = flat[near], hit[near], seen[near]
    pose = _fit_outline(flat, hit, size_m, is_size_known)
    u, v, angle, width, height = pose
    inside = _inside(flat, pose)
    on_board = (inside > 0) & (hit == 1)
    if on_board.sum() < MIN_RETURNS:
        raise CalibrationError(
            f"{int(on_board.sum())} returns on it, {MIN_RETURNS} are needed: bring it closer"
        )
    rim = np.abs(inside) < 0.1
    wrong = (
        float(np.mean(((inside > 0) != (hit == 1))[rim & (np.abs(inside) > _EDGE_M)])) if rim.any() else 1.0
    )
    if wrong > MAX_MISPLACED_SHARE:
        raise CalibrationError(
            f"nothing with the board's outline ({100 * wrong:.0f} % of the rays beside it end on the wrong side): "
            "hold it away from walls and from your body"
        )
    sides = _bounded(flat, hit, pose)
    for axis, (a, b) in (("left and right", sides[:2]), ("upper and lower", sides[2:])):
        if not (a or b) or (not is_size_known and not (a and b)):
            hint = "" if is_size_known else ", or give its whole size with --board-size"
            raise CalibrationError(
                f"its {axis} edges are not in the LiDAR's view: bring it to the middle{hint}"
            )
    c, s = np.cos(angle), np.sin(angle)
    across, down = c * plane.across + s * plane.down, c * plane.down - s * plane.across
    on = points[seen[(inside > _INNER_M) & (hit == 1)]]
    if len(on) < MIN_RETURNS // 2:
        raise CalibrationError(f"{len(on)} returns well inside its outline: bring it closer")
    normal, d = _fitted(on)
    if normal @ plane.normal < 0:
        normal, d = -normal, -d
    centre = plane.origin + u * plane.across + v * plane.down
    centre = centre + (d - centre @ normal) * normal
    spread = on - on.mean(axis=0)
    thickness = float(np.sqrt(np.mean(np.square(on @ normal - d))))
    extent = float(np.sqrt(np.linalg.eigvalsh(spread.T @ spread / len(on))[1]))
    axes = np.stack([across, down, normal], axis=1)
    slack = (*_slack(flat, hit, pose), 0.0)
    sigma_m = np.hypot(_CENTRE_FLOOR_M, np.array(slack) / np.sqrt(12))
    return SweptBoard(
        centre,
        normal,
        across,
        down,
        (float(width), float(height)),
        int(on_board.sum()),
        wrong,
        axes @ np.diag(sigma_m**2) @ axes.T,
        float(np.hypot(_NORMAL_FLOOR_RAD, thickness / (extent * np.sqrt(len(on))))),
    )


def _slack(flat: Array, hit: NDArray[np.int8], pose: Array) -> tuple[float, float]:
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


def _inside(flat: Array, pose: Array) -> Array:
    """Return (N,) distances from the outline, positive inside."""
    x, y = _along(flat, pose)
    return np.asarray(np.minimum(pose[3] / 2 - np.abs(x), pose[4] / 2 - np.abs(y)), np.float64)


def _fit_outline(
    flat: Array, hit: NDArray[np.int8], size_m: tuple[float, float], is_size_known: bool
) -> Array:
    """Return u, v, angle, width, height of the rectangle that tells hits from misses best."""
    starts = [np.array([0.0, 0.0, 0.0, *size_m])] if is_size_known else []
    patch = _patch(flat, hit)
    if patch is not None:
        starts.append(np.array([*patch[:3], *size_m]) if is_size_known else patch)
    if not starts:
        raise CalibrationError("no patch of returns there")
    low, high = 0.95 * np.array(size_m), MAX_SIZE_RATIO * np.array(size_m)
    fits = [_climbed(flat, hit, start, None if is_size_known else (low, high)) for start in starts]
    return min(fits, key=lambda fit: fit[1])[0]


def _patch(flat: Array, hit: NDArray[np.int8]) -> Array | None:
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
    rim = np.flatnonzero(np.abs(_inside(flat, pose)) < SEARCH_M)
    if len(rim) > _FIT_RAYS:
        rim = rim[np.random.default_rng(4).permutation(len(rim))[:_FIT_RAYS]]
    flat, sign = flat[rim], np.where(hit[rim] == 1, 1.0, -1.0)

    def cost(trial: Array, edge_m: float) -> float:
        # Far from the outline a ray on the wrong side is another object, not a better place.
        margin = np.clip(sign * _inside(flat, trial) / edge_m, -8.0, 8.0)
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
            edge_m = max(_EDGE_M, edge_m / 2)
            lowest = cost(pose, edge_m)
    return pose, lowest


def _bounded(flat: Array, hit: NDArray[np.int8], pose: Array) -> tuple[bool, bool, bool, bool]:
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


# -- without an idea of where the LiDAR is


def board_candidates(points: Array, size_m: tuple[float, float], is_size_known: bool) -> list[SweptBoard]:
    """Return up to four things in a sweep that are flat and as large as the board, the clearest first."""
    ranges = np.linalg.norm(points, axis=1)
    inside = points[(ranges > 0.5) & (ranges < REACH_M)]
    if len(inside) < MIN_RETURNS:
        return []
    rng = np.random.default_rng(2)
    found: list[SweptBoard] = []
    patch_m = 0.3 * min(size_m)
    for seed in inside[rng.integers(0, len(inside), _SEEDS)]:
        if any(_covers(other, seed) for other in found):
            continue
        patch = inside[np.linalg.norm(inside - seed, axis=1) < patch_m]
        if len(patch) < MIN_RETURNS // 3:
            continue
        normal, d = _fitted(patch)
        normal, d = (normal, d) if normal @ seed < 0 else (-normal, -d)
        if float(np.sqrt(np.mean(np.square(patch @ normal - d)))) > PLANE_TOLERANCE_M / 2:
            continue
        board = _grown(inside, normal, seed, size_m, is_size_known)
        if board is not None:
            found.append(board)
    return sorted(found, key=lambda each: each.misplaced_share)[:_MAX_CANDIDATES]


def _covers(board: SweptBoard, point: Array) -> bool:
    away = point - board.centre
    return abs(float(away @ board.normal)) < 0.1 and float(np.linalg.norm(away)) < max(board.size_m) / 2


def _grown(
    points: Array, normal: Array, seed: Array, size_m: tuple[float, float], is_size_known: bool
) -> SweptBoard | None:
    """Return the board on the plane through a patch, its long side level or upright, whichever fits."""
    level = np.cross(normal, (0.0, 0.0, 1.0))
    if np.linalg.norm(level) < 0.2:
        level = np.array([1.0, 0.0, 0.0])
    best: SweptBoard | None = None
    plane = _plane(normal, float(seed @ normal), seed, level)
    flat, hit, _ = plane.crossings(points)
    near = np.linalg.norm(flat, axis=1) < float(np.hypot(*size_m))
    hits = flat[near & (hit == 1)]
    if len(hits) < MIN_RETURNS:
        return None
    # A wall is too large and a poster too small; that is found out without a fit.
    patch = _patch(flat[near], hit[near])
    if patch is None or not _is_board_sized(patch[3:], size_m, is_size_known):
        return None
    centre = seed + hits.mean(axis=0) @ np.array([plane.across, plane.down])
    for axis in (plane.across, plane.down):
        try:
            board = _outlined(
                points, _plane(normal, float(seed @ normal), centre, axis), size_m, is_size_known
            )
        except CalibrationError:
            continue
        if best is None or board.misplaced_share < best.misplaced_share:
            best = board
    return best


def _is_board_sized(patch_m: Array, size_m: tuple[float, float], is_size_known: bool) -> bool:
    """Return whether a patch may be the board: part of it may lie outside the view, and edges are a beam wide."""
    short, long = sorted(patch_m)
    ratio = 1.15 if is_size_known else MAX_SIZE_RATIO
    return bool(
        0.5 * min(size_m) < short < ratio * min(size_m) and 0.5 * max(size_m) < long < ratio * max(size_m)
    )


def first_guess(poses: Sequence[Array], middle: Array, candidates: Sequence[Sequence[SweptBoard]]) -> Array:
    """Return the T_camera_lidar under which most candidates are the board that the camera saw.

    Args:
        poses: T_camera_board of each moment.
        middle: (3,) middle of the board in its own frame.

    Raises:
        CalibrationError: If no three moments agree with a fourth.
    """
    seen = [k for k, found in enumerate(candidates) if found]
    best, most = None, 3
    rng = np.random.default_rng(3)
    triples = list(combinations(seen, 3))
    for index in rng.permutation(len(triples))[:60]:
        triple = triples[index]
        for choice in product(*(candidates[k] for k in triple)):
            views = [board_view(poses[k], middle, board) for k, board in zip(triple, choice, strict=True)]
            try:
                T = solve_camera_lidar(views).T_first_second
            except (CalibrationError, np.linalg.LinAlgError):
                continue
            agreeing = sum(
                any(_agrees(board_view(poses[k], middle, board), T) for board in candidates[k]) for k in seen
            )
            if agreeing > most:
                best, most = T, agreeing
        if most >= max(4, int(0.8 * len(seen))):
            break
    if best is None:
        raise CalibrationError(
            "no place of the LiDAR makes its flat objects the board that the camera saw: give a calibration with "
            "--base (a drawing's numbers do), or the board's whole size with --board-size"
        )
    return best


def _agrees(view: BoardView, T_camera_lidar: Array) -> bool:
    turned = T_camera_lidar[:3, :3] @ view.lidar_normal
    return float(np.linalg.norm(centre_gap(view, T_camera_lidar))) < 0.1 and float(
        view.camera_normal @ turned
    ) > np.cos(np.deg2rad(8.0))


def board_view(
    T_camera_board: Array, middle: Array, board: SweptBoard, pose_covariance: Array | None = None
) -> BoardView:
    """Return a board seen by both sensors.

    Args:
        middle: (3,) of the board's outline, in the board's frame.
        pose_covariance: 6x6 of the left perturbation of the camera's pose; None leaves the camera exact.
    """
    centre, normal = apply(T_camera_board, middle[None])[0], -T_camera_board[:3, 2]
    # The board's own axes carry the LiDAR's covariance over; no calibration is needed for that.
    lidar_axes = np.stack([board.across, board.down, -board.normal], axis=1)
    turn = T_camera_board[:3, :3] @ lidar_axes.T
    covariance = turn @ board.centre_covariance @ turn.T
    normal_variance = board.normal_sigma_rad**2
    if pose_covariance is not None:
        slope = by_motion(centre[None])[0]
        covariance = covariance + slope @ pose_covariance @ slope.T
        tilt = np.eye(3) - np.outer(normal, normal)
        normal_variance += float(np.trace(tilt @ pose_covariance[:3, :3] @ tilt)) / 2
    return BoardView(centre, normal, board.centre, board.normal, covariance, float(np.sqrt(normal_variance)))


def expected_pose(T_camera_board: Array, middle: Array, T_camera_lidar: Array) -> Array:
    """Return T_lidar_board of the outline's middle, as the camera sees it."""
    T = inverse(T_camera_lidar) @ T_camera_board
    T[:3, 3] = apply(T, middle[None])[0]
    return T
