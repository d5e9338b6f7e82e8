"""Solves cameras, pairs of cameras, and camera against LiDAR from views of a board."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from sensorium.calibration.board import (
    MIN_INTRINSIC_VIEWS,
    MIN_LIDAR_VIEWS,
    BoardView,
    board_residuals,
    pose_of,
)
from sensorium.calibration.bundle import (
    Fit,
    adjust,
    by_lens,
    by_motion,
    by_point,
    inverse_or_infinite,
    pixels_of,
    relative_pose,
    vector_of,
    with_vector,
)
from sensorium.calibration.geometry import (
    Array,
    Intrinsics,
    apply,
    difference,
    inverse,
    nearest_rotation,
    rays,
    skew,
    small_motion,
    transform,
)
from sensorium.calibration.targets import Target, View
from sensorium.errors import CalibrationError

SOLVED_MODELS = {"pinhole": 0, "radtan": 4, "rational": 8, "equidistant": 4}
"""Distortion coefficients that are solved; a radtan camera before with five keeps its five."""

MAX_FOLDS = 5
# A view that misses by so many times what the others do has a wrong corner or moved.
_OUTLIER = 3.0
_OUTLIER_PX = 0.3
_MAX_REJECTED = 0.25
# The scatter that boards state is worth so many measured coordinates; five to a pose.
_STATED_WORTH = 30.0
# What all boards of a LiDAR are off alike, of its ranges and of a lens: rad, m.
_COMMON_SIGMA = np.array([1e-4] * 3 + [7e-4] * 3)


@dataclass(frozen=True, slots=True, eq=False)
class LensFit:
    """A camera as its boards have it.

    Attributes:
        covariance: Of fx, fy, cx, cy and the distortion.
        poses: T_camera_board of the views used.
        used, rejected: Numbers of the views; those rejected with the RMS by which they miss, px.
        held_out_px: RMS distance of corners in views that the fit judging them had not used.
    """

    camera: Intrinsics
    covariance: Array
    poses: tuple[Array, ...]
    used: tuple[int, ...]
    rejected: dict[int, float]
    rms_px: float
    held_out_px: float

    @property
    def focal_sigma(self) -> float:
        """Relative deviation of the focal length (of the worse axis)."""
        root = np.sqrt(np.diag(self.covariance)[:2])
        return float(max(root[0] / self.camera.fx, root[1] / self.camera.fy))

    def projection_sigma(self, columns: int = 9, rows: int = 7) -> Array:
        """Return (rows, columns) deviations (px) of where the camera sees what lies over the image."""
        return projection_sigma(self.camera, self.covariance, columns, rows)


def projection_sigma(camera: Intrinsics, covariance: Array, columns: int, rows: int) -> Array:
    """Return (rows, columns) deviations, px, of the pixels of fixed rays over the image.

    What a turn of the camera would undo is left out, because poses and mounts absorb it: a principal point a
    pixel off with the camera turned the other way is the same camera.
    """
    u, v = np.meshgrid(
        (np.arange(columns) + 0.5) / columns * camera.width, (np.arange(rows) + 0.5) / rows * camera.height
    )
    points = rays(np.stack([u.ravel(), v.ravel()], axis=1), camera)
    seen = np.isfinite(points).all(axis=1)
    lens = by_lens(points[seen], camera).reshape(2 * seen.sum(), -1)
    turn = (by_point(points[seen], camera) @ by_motion(points[seen])[:, :, :3]).reshape(-1, 3)
    rest = lens - turn @ np.linalg.lstsq(turn, lens, rcond=None)[0]
    variance = np.einsum("np,pq,nq->n", rest, covariance, rest).reshape(-1, 2).sum(axis=1)
    found = np.full(columns * rows, np.nan)
    found[seen] = np.sqrt(np.maximum(variance, 0.0))
    return found.reshape(rows, columns)


def solve_intrinsics(
    views: Sequence[View],
    board: Target,
    size: tuple[int, int],
    model: str = "radtan",
    start: Intrinsics | None = None,
    is_judged: bool = True,
) -> LensFit:
    """Return the camera that fits the views of a board, and how well they pin it.

    Args:
        size: Width and height of the images, px.
        start: A camera of this model and size near by; None = unknown.
        is_judged: Also fit without some views to judge those; else ``held_out_px`` is NaN.

    Raises:
        CalibrationError: With fewer than ``MIN_INTRINSIC_VIEWS`` views, an unknown model, or views that do not
            determine the camera at all.
    """
    if model not in SOLVED_MODELS:
        raise CalibrationError(f"cannot solve model {model!r}; {', '.join(SOLVED_MODELS)} can be solved")
    if len(views) < MIN_INTRINSIC_VIEWS:
        raise CalibrationError(f"{len(views)} views of the board; at least {MIN_INTRINSIC_VIEWS} are needed")
    used = list(range(len(views)))
    rejected: dict[int, float] = {}
    fit = _fit_lens(views, board, _starts(views, board, size, model, start))
    limit = int(_MAX_REJECTED * len(views))
    while len(used) > MIN_INTRINSIC_VIEWS and len(rejected) < limit:
        rms = fit.view_rms_px[0]
        worst = int(np.argmax(rms))
        if rms[worst] <= max(_OUTLIER * float(np.median(rms)), _OUTLIER_PX):
            break
        rejected[used.pop(worst)] = float(rms[worst])
        fit = _fit_lens([views[k] for k in used], board, [fit.cameras[0]])
    chosen = [views[k] for k in used]
    camera = replace(fit.cameras[0], board_rms_px=fit.rms_px)
    held_out = _held_out_lens(chosen, board, camera) if is_judged else float("nan")
    return LensFit(camera, fit.covariance, fit.poses, tuple(used), rejected, fit.rms_px, held_out)


def _starts(
    views: Sequence[View], board: Target, size: tuple[int, int], model: str, start: Intrinsics | None
) -> list[Intrinsics]:
    width, height = size
    if start is not None and start.model == model and (start.width, start.height) == size:
        return [start]
    none = (0.0,) * SOLVED_MODELS[model]
    centre = ((width - 1) / 2, (height - 1) / 2)
    points = [board.points_m[view.ids].astype(np.float32).reshape(-1, 1, 3) for view in views]
    pixels = [view.pixels.astype(np.float32).reshape(-1, 1, 2) for view in views]
    focal = [0.3 * width, 0.45 * width, 0.7 * width, 1.1 * width, 1.8 * width]
    if model != "equidistant":
        K = cv2.initCameraMatrix2D(points, pixels, size, 1.0)
        guess = float(K[0, 0])
        if np.isfinite(guess) and 0.2 * width < guess < 10 * width:
            focal.insert(0, guess)
    return [Intrinsics(model, width, height, f, f, *centre, none) for f in focal]


def _fit_lens(views: Sequence[View], board: Target, starts: Sequence[Intrinsics]) -> Fit:
    """Return the best fit from several starts; the first that fits to a pixel is taken."""
    best: Fit | None = None
    for start in starts:
        try:
            poses = [pose_of(view, board, start) for view in views]
            fit = adjust(board.points_m, [views], [start], [np.eye(4)], poses)
        except (CalibrationError, cv2.error, np.linalg.LinAlgError):
            continue
        if best is None or fit.rms_px < best.rms_px:
            best = fit
        if best.rms_px < 1e-3 * start.width:
            return best
    if best is None:
        raise CalibrationError("the views do not determine the camera: no start leads to a fit")
    return best


def _folds(count: int, least: int) -> list[list[int]]:
    """Return which views to leave out in turn: every view once, if enough stay for a fit; else nothing."""
    folds = min(MAX_FOLDS, count)
    groups = [list(range(k, count, folds)) for k in range(folds)]
    return groups if count - max(map(len, groups), default=0) >= least else []


def _held_out(count: int, least: int, judge: Callable[[list[int], list[int]], list[float]]) -> float:
    """Return the RMS of what ``judge`` (fitted views, judged views) finds for views left out of the fit."""
    found: list[float] = []
    for group in _folds(count, least):
        found += judge([k for k in range(count) if k not in group], group)
    return float(np.sqrt(np.mean(np.square(found)))) if found else float("nan")


def _held_out_lens(views: Sequence[View], board: Target, camera: Intrinsics) -> float:
    def judge(fitted: list[int], judged: list[int]) -> list[float]:
        other = _fit_lens([views[k] for k in fitted], board, [camera]).cameras[0]
        seen = [views[k] for k in judged]
        poses = [pose_of(view, board, other) for view in seen]
        fit = adjust(board.points_m, [seen], [other], [np.eye(4)], poses, free="none")
        return [float(value) for value in fit.view_rms_px[0]]

    return _held_out(len(views), MIN_INTRINSIC_VIEWS, judge)


# -- two cameras


@dataclass(frozen=True, slots=True, eq=False)
class PairFit:
    """One sensor's place against another's, as boards seen by both have it.

    Attributes:
        T_first_second: Maps points of the second into the first.
        covariance: 6x6 of its left perturbation (rad, m), the lenses' uncertainty included where known.
        held_out: RMS miss in views that the fit judging them had not used: px of the second camera, or m.
        rms: As ``held_out``, of the views that were fitted.
    """

    T_first_second: Array
    covariance: Array
    used: tuple[int, ...]
    rejected: dict[int, float]
    rms: float
    held_out: float


def solve_stereo(
    first_views: Sequence[View],
    second_views: Sequence[View],
    board: Target,
    first: Intrinsics,
    second: Intrinsics,
    lens_covariance: tuple[Array, Array] | None = None,
) -> PairFit:
    """Fit T_first_second to boards seen by both cameras; the lenses stay.

    Args:
        lens_covariance: Of the numbers of both cameras, where they are known only so well.

    Raises:
        CalibrationError: Without a common view.
    """
    if not first_views or len(first_views) != len(second_views):
        raise CalibrationError(
            f"{len(first_views)} and {len(second_views)} views of the board by two cameras"
        )
    used = list(range(len(first_views)))
    rejected: dict[int, float] = {}
    views = [list(first_views), list(second_views)]
    fit = _fit_pair(views, board, first, second)
    while len(used) > 2 and len(rejected) < int(_MAX_REJECTED * len(first_views)):
        rms = np.sqrt(np.mean(np.square(fit.view_rms_px), axis=0))
        worst = int(np.argmax(rms))
        if rms[worst] <= max(_OUTLIER * float(np.median(rms)), _OUTLIER_PX):
            break
        rejected[used.pop(worst)] = float(rms[worst])
        views = [[part[k] for k in used] for part in (first_views, second_views)]
        fit = _fit_pair(views, board, first, second)

    def judge(fitted: list[int], judged: list[int]) -> list[float]:
        other = _fit_pair([[part[k] for k in fitted] for part in views], board, first, second)
        T = other.T_camera_reference[1]
        return [transfer_rms_px(views[0][k], views[1][k], board, first, second, T) for k in judged]

    T_second_first = fit.T_camera_reference[1]
    covariance = fit.covariance
    if lens_covariance is not None:
        covariance = covariance + _from_lenses(views, board, first, second, fit, lens_covariance)
    T_first_second = inverse(T_second_first)
    misses = [
        transfer_rms_px(a, b, board, first, second, T_second_first)
        for a, b in zip(views[0], views[1], strict=True)
    ]
    return PairFit(
        T_first_second,
        inverted_covariance(covariance, T_second_first),
        tuple(used),
        rejected,
        float(np.sqrt(np.mean(np.square(misses)))),
        _held_out(len(used), 1, judge),
    )


def _fit_pair(views: Sequence[Sequence[View]], board: Target, first: Intrinsics, second: Intrinsics) -> Fit:
    poses = [
        [pose_of(view, board, camera) for view in part]
        for part, camera in zip(views, (first, second), strict=True)
    ]
    T = relative_pose(poses[0], poses[1])
    return adjust(board.points_m, views, [first, second], [np.eye(4), T], poses[0], free="none")


def transfer_rms_px(
    first_view: View, second_view: View, board: Target, first: Intrinsics, second: Intrinsics, T: Array
) -> float:
    """Return how far the second camera sees the board from where the first one places it, RMS px.

    Args:
        T: T_second_first.
    """
    points = apply(T @ pose_of(first_view, board, first), board.points_m[second_view.ids])
    misses = pixels_of(points, second) - second_view.pixels
    return float(np.sqrt(np.mean(np.square(misses).sum(axis=1))))


def inverted_covariance(covariance: Array, T: Array) -> Array:
    """Return the covariance of the inverse's left perturbation, given that of T (4x4)."""
    turned = T[:3, :3].T
    jacobian = np.zeros((6, 6))
    # T' = small_motion(w, u) T; T'^-1 T = a turn by -R^T w and a shift by R^T (t x w) - R^T u.
    jacobian[:3, :3] = jacobian[3:, 3:] = -turned
    jacobian[3:, :3] = turned @ skew(T[:3, 3])
    return np.asarray(jacobian @ covariance @ jacobian.T, np.float64)


def _from_lenses(
    views: Sequence[Sequence[View]],
    board: Target,
    first: Intrinsics,
    second: Intrinsics,
    fit: Fit,
    lens_covariance: tuple[Array, Array],
) -> Array:
    """Return the covariance of T_second_first that comes from the uncertain numbers of the two cameras."""
    total = np.zeros((6, 6))
    nominal = fit.T_camera_reference[1]
    for index, covariance in enumerate(lens_covariance):
        values, vectors = np.linalg.eigh(covariance)
        for value, direction in zip(values, vectors.T, strict=True):
            if value <= 0:
                continue
            # One deviation along each axis of the covariance, and how far that moves the pair.
            change = np.sqrt(value) * direction
            moved = _moved_pair(views, board, (first, second), fit, index, change)
            if moved is not None:
                gap = difference(moved, nominal)
                total += np.outer(gap, gap)
    return total


def _moved_pair(
    views: Sequence[Sequence[View]],
    board: Target,
    cameras: tuple[Intrinsics, Intrinsics],
    fit: Fit,
    index: int,
    change: Array,
) -> Array | None:
    moved = list(cameras)
    try:
        moved[index] = with_vector(cameras[index], vector_of(cameras[index]) + change)
        again = adjust(board.points_m, views, moved, fit.T_camera_reference, fit.poses, free="none")
    except CalibrationError:
        return None
    return again.T_camera_reference[1]


# -- camera and LiDAR


def solve_camera_lidar(views: Sequence[BoardView]) -> PairFit:
    """Fit T_camera_lidar to board centres and normals, robustly.

    The covariance is the formal one times how much more, or less, the boards scatter than they say; and what all
    boards share, which no scatter shows.

    Raises:
        CalibrationError: With fewer than three views.
    """
    if len(views) < MIN_LIDAR_VIEWS:
        raise CalibrationError(f"{len(views)} board poses; at least {MIN_LIDAR_VIEWS} are needed")
    T, information, weight = _fit_boards(views)
    used = [k for k in range(len(views)) if weight[k] > 0.1]
    rejected = {
        k: float(np.linalg.norm(centre_gap(view, T))) for k, view in enumerate(views) if k not in used
    }

    def judge(fitted: list[int], judged: list[int]) -> list[float]:
        other, _, _ = _fit_boards([views[used[k]] for k in fitted])
        return [float(np.linalg.norm(centre_gap(views[used[k]], other))) for k in judged]

    residual = np.concatenate([board_residuals(views[k], T)[1] for k in used])
    # A normal has two free coordinates, a centre three.
    freedom = max(5 * len(used) - 6, 1)
    scale = (_STATED_WORTH + float(np.square(residual).sum())) / (_STATED_WORTH + freedom)
    gaps = [np.linalg.norm(centre_gap(views[k], T)) for k in used]
    rms_m = float(np.sqrt(np.mean(np.square(gaps))))
    held_out = _held_out(len(used), MIN_LIDAR_VIEWS, judge)
    covariance = inverse_or_infinite(information) * scale + np.diag(_COMMON_SIGMA**2)
    return PairFit(T, covariance, tuple(used), rejected, rms_m, held_out)


def centre_gap(view: BoardView, T_camera_lidar: Array) -> Array:
    """Return the camera's minus the LiDAR's centre of the board, m, in the camera's axes."""
    return np.asarray(view.camera_centre - apply(T_camera_lidar, view.lidar_centre[None])[0])


def _fit_boards(views: Sequence[BoardView]) -> tuple[Array, Array, Array]:
    """Return T_camera_lidar, its information, and (N,) weights of the boards."""
    camera = np.array([view.camera_centre for view in views])
    lidar = np.array([view.lidar_centre for view in views])
    normals = (
        np.array([view.camera_normal for view in views]),
        np.array([view.lidar_normal for view in views]),
    )
    # Directions between centres alone are weak for few boards, so normals join with a metre's weight.
    pairs = (camera - camera.mean(axis=0)).T @ (lidar - lidar.mean(axis=0)) + normals[0].T @ normals[1]
    rotation = nearest_rotation(pairs)
    T = transform(rotation, camera.mean(axis=0) - rotation @ lidar.mean(axis=0))
    weight = np.ones(len(views))
    information = np.eye(6)
    for _ in range(20):
        parts = [board_residuals(view, T) for view in views]
        size = np.array([float(np.sqrt(np.mean(np.square(residual)))) for _, residual in parts])
        scale = max(1.0, float(np.median(size)))
        weight = 1 / (1 + np.square(size / (3 * scale)))
        information = sum(
            (w * jacobian.T @ jacobian for w, (jacobian, _) in zip(weight, parts, strict=True)),
            np.zeros((6, 6)),
        )
        pull = sum(
            (w * jacobian.T @ residual for w, (jacobian, residual) in zip(weight, parts, strict=True)),
            np.zeros(6),
        )
        step = np.linalg.solve(information + 1e-9 * np.diag(np.diag(information)), pull)
        T = small_motion(step) @ T
        if float(np.abs(step).max()) < 1e-9:
            break
    return T, information, weight
