"""Finds a board in a LiDAR sweep: its plane from the returns on it, its outline from the rays that pass beside it.

The rays of a sweep cross the board's plane. Those that end there hit the board, those that go on passed beside
it; the rectangle that tells the two apart best is the board. Rays on either side bound an edge, so the width of
a beam, which makes a board look larger, hardly moves its centre; rays that end before the plane say nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np

from sensorium.calibration.board import BoardView
from sensorium.calibration.board_fit import centre_gap, solve_camera_lidar
from sensorium.calibration.bundle import by_motion
from sensorium.calibration.geometry import Array, apply, inverse
from sensorium.calibration.swept_outline import (
    ASTRAY_PER_M,
    EDGE_M,
    MAX_SIZE_RATIO,
    MIN_RETURNS,
    PLANE_TOLERANCE_M,
    SEARCH_M,
    SEEDS,
    Plane,
    are_inside,
    bounded,
    fit_outline,
    fitted,
    patch_of,
    plane_of,
    planes_near,
    slack_of,
)
from sensorium.errors import CalibrationError

MAX_MISPLACED_SHARE = 0.12
REACH_M = 8.0
_INNER_M = 0.02
_MAX_CANDIDATES = 4
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
    planes = list(planes_near(near, centre, normal, T_lidar_board[:3, 0], radius))
    for plane in sorted(planes, key=lambda each: abs(float((each.origin - centre) @ normal))):
        try:
            found = _outlined(points, plane, size_m, is_size_known)
        except CalibrationError as err:
            reason = reason or str(err)
            continue
        # Whoever holds the board is flat as well, if one does not look closely, but not where it should be.
        loss = found.misplaced_share + ASTRAY_PER_M * float(np.linalg.norm(found.centre - centre))
        if loss < least:
            best, least = found, loss
    if best is None:
        raise CalibrationError(f"no board where it should be: {reason or 'no plane turned as the board is'}")
    return best


def _outlined(points: Array, plane: Plane, size_m: tuple[float, float], is_size_known: bool) -> SweptBoard:
    flat, hit, seen = plane.crossings(points)
    near = np.abs(flat).max(axis=1) < float(np.hypot(*size_m)) + SEARCH_M
    flat, hit, seen = flat[near], hit[near], seen[near]
    pose = fit_outline(flat, hit, size_m, is_size_known)
    u, v, angle, width, height = pose
    inside = are_inside(flat, pose)
    on_board = (inside > 0) & (hit == 1)
    if on_board.sum() < MIN_RETURNS:
        raise CalibrationError(
            f"{int(on_board.sum())} returns on it, {MIN_RETURNS} are needed: bring it closer"
        )
    rim = np.abs(inside) < 0.1
    wrong = (
        float(np.mean(((inside > 0) != (hit == 1))[rim & (np.abs(inside) > EDGE_M)])) if rim.any() else 1.0
    )
    if wrong > MAX_MISPLACED_SHARE:
        raise CalibrationError(
            f"nothing with the board's outline ({100 * wrong:.0f} % of the rays beside it end on the wrong side): "
            "hold it away from walls and from your body"
        )
    sides = bounded(flat, hit, pose)
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
    normal, d = fitted(on)
    if normal @ plane.normal < 0:
        normal, d = -normal, -d
    centre = plane.origin + u * plane.across + v * plane.down
    centre = centre + (d - centre @ normal) * normal
    spread = on - on.mean(axis=0)
    thickness = float(np.sqrt(np.mean(np.square(on @ normal - d))))
    extent = float(np.sqrt(np.linalg.eigvalsh(spread.T @ spread / len(on))[1]))
    axes = np.stack([across, down, normal], axis=1)
    slack = (*slack_of(flat, hit, pose), 0.0)
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


def board_candidates(points: Array, size_m: tuple[float, float], is_size_known: bool) -> list[SweptBoard]:
    """Return up to four things in a sweep that are flat and as large as the board, the clearest first."""
    ranges = np.linalg.norm(points, axis=1)
    inside = points[(ranges > 0.5) & (ranges < REACH_M)]
    if len(inside) < MIN_RETURNS:
        return []
    rng = np.random.default_rng(2)
    found: list[SweptBoard] = []
    patch_m = 0.3 * min(size_m)
    for seed in inside[rng.integers(0, len(inside), SEEDS)]:
        if any(_covers(other, seed) for other in found):
            continue
        patch = inside[np.linalg.norm(inside - seed, axis=1) < patch_m]
        if len(patch) < MIN_RETURNS // 3:
            continue
        normal, d = fitted(patch)
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
    plane = plane_of(normal, float(seed @ normal), seed, level)
    flat, hit, _ = plane.crossings(points)
    near = np.linalg.norm(flat, axis=1) < float(np.hypot(*size_m))
    hits = flat[near & (hit == 1)]
    if len(hits) < MIN_RETURNS:
        return None
    # A wall is too large and a poster too small; that is found out without a fit.
    patch = patch_of(flat[near], hit[near])
    if patch is None or not _is_board_sized(patch[3:], size_m, is_size_known):
        return None
    centre = seed + hits.mean(axis=0) @ np.array([plane.across, plane.down])
    for axis in (plane.across, plane.down):
        try:
            board = _outlined(
                points, plane_of(normal, float(seed @ normal), centre, axis), size_m, is_size_known
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
