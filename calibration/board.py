"""Checks and fits with a chessboard: intrinsics, stereo, camera against LiDAR."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from sensorium.calibration.checks import Degree, judge
from sensorium.calibration.geometry import (
    Array,
    Intrinsics,
    apply,
    nearest_rotation,
    project,
    rotation_exp,
    skew,
    small_motion,
    transform,
    undistort,
)
from sensorium.calibration.rig_document import RigCalibration
from sensorium.calibration.targets import Chessboard
from sensorium.errors import CalibrationError
from sensorium.verdict import Quantity, Status, Verdict

INTRINSICS_CHECK = "intrinsics_board"
STEREO_CHECK = "stereo_board"
CAMERA_LIDAR_CHECK = "camera_lidar_board"

MAX_TRANSFER_PX = 0.6
MAX_RMS_PX = 0.5
MIN_INTRINSIC_VIEWS = 3
MIN_LIDAR_VIEWS = 3

# Refits of different views scatter about twice as far as their formal deviations: boards are not quite flat.
FOCAL_SIGMA_INFLATION = 2.0

# Scatter of a board seen by a 16-ring LiDAR at 1.7-3.3 m: centre per axis, normal (spec 1.14: 0.76 cm median
# distance, 1.3 deg median).
CENTRE_SIGMA_M = 0.006
NORMAL_SIGMA_RAD = 0.025
# What a bumped mount looks like; makes degrees that few boards cannot see count for little.
BUMP_SIGMA = np.array([np.deg2rad(1.0)] * 3 + [0.03] * 3)
# Square root of twice the gain in log-likelihood; the 99 % point of chi-square with 4 to 5 degrees of freedom,
# because the prior leaves about that many of the six free.
LIDAR_THRESHOLD = 3.75


def board_pose(corners: Array, board: Chessboard, camera: Intrinsics) -> Array:
    """Return T_camera_board of one view.

    Raises:
        CalibrationError: If no pose fits.
    """
    ideal = undistort(corners, camera)
    good = np.isfinite(ideal).all(axis=1)
    if good.sum() < 6:
        raise CalibrationError(f"board seen at {int(good.sum())} usable corners; at least 6 are needed")
    points, pixels = board.points_m[good], ideal[good].reshape(-1, 1, 2)
    found, turn, shift = cv2.solvePnP(points, pixels, np.eye(3), None, flags=cv2.SOLVEPNP_ITERATIVE)
    if not found:
        raise CalibrationError("no pose of the board fits its corners")
    return transform(rotation_exp(np.asarray(turn).ravel()), np.asarray(shift).ravel())


def reprojection_rms_px(views: Sequence[Array], board: Chessboard, camera: Intrinsics) -> float:
    """Return the RMS distance of corners from where the fitted poses put them.

    It hardly sees a wrong focal length (the pose moves instead); :func:`check_intrinsics` refits it.
    """
    errors = [
        project(apply(board_pose(view, board, camera), board.points_m), camera) - view for view in views
    ]
    return float(np.sqrt(np.mean(np.square(errors).sum(axis=-1))))


def solve_intrinsics(
    views: Sequence[Array], board: Chessboard, size: tuple[int, int], model: str = "radtan"
) -> Intrinsics:
    """Return intrinsics (``pinhole`` or ``radtan``) that fit the views of a board.

    Args:
        size: Width and height, px.

    Raises:
        CalibrationError: With fewer than ``MIN_INTRINSIC_VIEWS`` views or another model.
    """
    if model not in ("pinhole", "radtan"):
        raise CalibrationError(f"cannot solve model {model!r}; pinhole and radtan can be solved")
    flags = 0 if model == "radtan" else _FIXED_DISTORTION
    K, distortion, rms, _ = _refit(views, board, size, np.eye(3), np.zeros(5), flags)
    coefficients = tuple(float(value) for value in distortion[:5]) if model == "radtan" else ()
    return Intrinsics(
        model,
        *size,
        float(K[0, 0]),
        float(K[1, 1]),
        float(K[0, 2]),
        float(K[1, 2]),
        coefficients,
        board_rms_px=rms,
    )


_FIXED_DISTORTION = (
    cv2.CALIB_ZERO_TANGENT_DIST | cv2.CALIB_FIX_K1 | cv2.CALIB_FIX_K2 | cv2.CALIB_FIX_K3 | cv2.CALIB_FIX_K4
)


def _refit(
    views: Sequence[Array],
    board: Chessboard,
    size: tuple[int, int],
    K: Array,
    distortion: Array,
    flags: int,
) -> tuple[Array, Array, float, Array]:
    """Return K, distortion, RMS (px) and the standard deviations of fx, fy, cx, cy."""
    if len(views) < MIN_INTRINSIC_VIEWS:
        raise CalibrationError(f"{len(views)} views of the board; at least {MIN_INTRINSIC_VIEWS} are needed")
    points = [board.points_m.astype(np.float32).reshape(-1, 1, 3)] * len(views)
    pixels = [np.asarray(view, np.float32).reshape(-1, 1, 2) for view in views]
    try:
        rms, K_found, found, _, _, deviations, *_ = cv2.calibrateCameraExtended(
            points, pixels, size, np.array(K), np.array(distortion), flags=flags
        )
    except cv2.error as err:
        raise CalibrationError(f"the views do not determine the camera: {err.err}") from err
    return (
        np.asarray(K_found, np.float64),
        np.asarray(found, np.float64).ravel(),
        float(rms),
        np.asarray(deviations, np.float64).ravel()[:4],
    )


def check_intrinsics(
    views: Sequence[Array],
    board: Chessboard,
    camera: Intrinsics,
    name: str,
    focal_tolerance: float = 0.01,
) -> Verdict:
    """Refit the focal length on tilted views of a board and compare it with the calibration.

    Args:
        views: (N, 2) corners per view.
        focal_tolerance: Accepted relative error of the focal length.
    """
    if len(views) < MIN_INTRINSIC_VIEWS:
        reason = f"{len(views)} views of the board, {MIN_INTRINSIC_VIEWS} tilted ones are needed"
        return Verdict(INTRINSICS_CHECK, name, Status.INSUFFICIENT, (), (reason,))
    # Without the known distortion the corners are those of a pinhole camera; only the focal length is free.
    straight = [undistort(view, camera) * camera.f_px for view in views]
    size = (2 * camera.width, 2 * camera.height)
    K = np.diag([camera.f_px, camera.f_px, 1.0])
    flags = (
        cv2.CALIB_USE_INTRINSIC_GUESS
        | cv2.CALIB_FIX_PRINCIPAL_POINT
        | cv2.CALIB_FIX_ASPECT_RATIO
        | _FIXED_DISTORTION
    )
    # The principal point must lie in the image for OpenCV: shift everything by its size.
    shift = np.array([camera.width, camera.height], np.float64)
    K[:2, 2] = shift
    found, _, rms, deviations = _refit(
        [view + shift for view in straight], board, size, K, np.zeros(5), flags
    )
    ratio = float(found[0, 0]) / camera.f_px - 1
    # With the aspect ratio fixed OpenCV books the deviation on one of the two focal lengths only.
    sigma = FOCAL_SIGMA_INFLATION * float(deviations[:2].max()) / camera.f_px
    stored_rms = reprojection_rms_px(views, board, camera)
    limit = max(MAX_RMS_PX, 2 * (camera.board_rms_px or 0.0))
    degrees = [Degree("focal_length", "%", 100 * ratio, 100 * sigma, 100 * focal_tolerance)]
    extra = (
        Quantity("reprojection_rms", stored_rms, "px", limit),
        Quantity("refit_rms", rms, "px"),
        Quantity("views", float(len(views)), "1", float(MIN_INTRINSIC_VIEWS)),
    )
    verdict = judge(INTRINSICS_CHECK, name, degrees, (), extra)
    if verdict.status is Status.OK and stored_rms > limit:
        reason = f"board corners miss their places by {stored_rms:.2f} px rms, more than {limit:.2f}"
        return Verdict(INTRINSICS_CHECK, name, Status.SUSPECT, verdict.quantities, (reason,))
    return verdict


def solve_stereo(
    left_views: Sequence[Array],
    right_views: Sequence[Array],
    board: Chessboard,
    left: Intrinsics,
    right: Intrinsics,
) -> Array:
    """Return T_left_right that fits the same boards seen by both cameras (intrinsics stay).

    Raises:
        CalibrationError: Without a common view.
    """
    if not left_views or len(left_views) != len(right_views):
        raise CalibrationError(f"{len(left_views)} left and {len(right_views)} right views of the board")
    points = [board.points_m.astype(np.float32).reshape(-1, 1, 3)] * len(left_views)
    pixels_left, pixels_right = (
        [undistort(view, camera).astype(np.float32).reshape(-1, 1, 2) for view in views]
        for views, camera in ((left_views, left), (right_views, right))
    )
    # Ideal coordinates, so a unit camera and no distortion; tolerances are in those units too.
    unit, none = np.eye(3), np.zeros(5)
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_MAX_ITER, 100, 1e-12)
    _, _, _, _, _, R, t, _, _ = cv2.stereoCalibrate(
        points,
        pixels_left,
        pixels_right,
        unit,
        none,
        unit,
        none,
        (1, 1),
        flags=cv2.CALIB_FIX_INTRINSIC,
        criteria=criteria,
    )
    R_right_left, t_right_left = np.asarray(R, np.float64), np.asarray(t, np.float64).ravel()
    return transform(R_right_left.T, -R_right_left.T @ t_right_left)


def check_stereo_board(
    left_views: Sequence[Array],
    right_views: Sequence[Array],
    board: Chessboard,
    calibration: RigCalibration,
    left_frame: str,
    right_frame: str,
) -> Verdict:
    """Place the board by the left camera and compare where the right one sees it; one view suffices."""
    subject = f"{left_frame}~{right_frame}"
    if not left_views:
        return Verdict(
            STEREO_CHECK, subject, Status.INSUFFICIENT, (), ("no view of the board by both cameras",)
        )
    left, right = calibration.camera(left_frame), calibration.camera(right_frame)
    T_right_left = calibration.transform(right_frame, left_frame)
    errors = []
    for seen_left, seen_right in zip(left_views, right_views, strict=True):
        points = apply(T_right_left @ board_pose(seen_left, board, left), board.points_m)
        errors.append(project(points, right) - seen_right)
    misses = np.where(np.isfinite(errors), errors, 1e3)
    transfer_px = float(np.sqrt(np.mean(np.square(misses).sum(axis=-1))))
    mean_x, mean_y = np.mean(misses, axis=(0, 1))
    quantities = (
        Quantity("transfer_error", transfer_px, "px", MAX_TRANSFER_PX),
        Quantity("mean_x", float(mean_x), "px"),
        Quantity("mean_y", float(mean_y), "px"),
        Quantity("views", float(len(left_views)), "1", 1.0),
    )
    if transfer_px <= MAX_TRANSFER_PX:
        return Verdict(STEREO_CHECK, subject, Status.OK, quantities)
    reason = (
        f"the right camera sees the board {transfer_px:.2f} px rms from where the left one places it "
        f"(limit {MAX_TRANSFER_PX} px; mean x {mean_x:+.2f}, y {mean_y:+.2f})"
    )
    return Verdict(STEREO_CHECK, subject, Status.FAILED, quantities, (reason,))


@dataclass(frozen=True, slots=True, eq=False)
class BoardView:
    """A board seen by camera and LiDAR at once: centre (m) and unit normal towards the sensor, in each frame."""

    camera_centre: Array
    camera_normal: Array
    lidar_centre: Array
    lidar_normal: Array


@dataclass(frozen=True, slots=True, eq=False)
class CameraLidarFit:
    """T_camera_lidar with the covariance of its left perturbation (rad, m) and the centres' RMS distance."""

    T_camera_lidar: Array
    covariance: Array
    rms_m: float


def solve_camera_lidar(views: Sequence[BoardView]) -> CameraLidarFit:
    """Fit T_camera_lidar to board centres and normals, robustly.

    Raises:
        CalibrationError: With fewer than three views.
    """
    if len(views) < MIN_LIDAR_VIEWS:
        raise CalibrationError(f"{len(views)} board poses; at least {MIN_LIDAR_VIEWS} are needed")
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
    for _ in range(15):
        jacobian, residual = _board_residuals(views, T)
        weight = 1 / (1 + np.square(residual / 3))
        information = (jacobian * weight[:, None]).T @ jacobian
        T = small_motion(np.linalg.solve(information, jacobian.T @ (weight * residual))) @ T
    gaps = camera - apply(T, lidar)
    return CameraLidarFit(T, np.linalg.inv(information), float(np.sqrt(np.mean(np.square(gaps).sum(axis=1)))))


def _board_residuals(views: Sequence[BoardView], T_camera_lidar: Array) -> tuple[Array, Array]:
    """Return the whitened jacobian (6 N, 6) and residual (6 N,) of centres and normals."""
    jacobians, residuals = [], []
    for view in views:
        centre = T_camera_lidar[:3, :3] @ view.lidar_centre + T_camera_lidar[:3, 3]
        normal = T_camera_lidar[:3, :3] @ view.lidar_normal
        jacobians.append(np.hstack([-skew(centre), np.eye(3)]) / CENTRE_SIGMA_M)
        residuals.append((view.camera_centre - centre) / CENTRE_SIGMA_M)
        jacobians.append(np.hstack([-skew(normal), np.zeros((3, 3))]) / NORMAL_SIGMA_RAD)
        residuals.append((view.camera_normal - normal) / NORMAL_SIGMA_RAD)
    return np.concatenate(jacobians), np.concatenate(residuals)


def check_camera_lidar_board(
    views: Sequence[BoardView], calibration: RigCalibration, camera_frame: str, lidar_frame: str
) -> Verdict:
    """Compare board centres and normals of camera and LiDAR under the calibration.

    The statistic is how much better the boards would fit after a motion of the size of a bump, not that
    motion itself: few boards place a rotation badly but notice it well (spec 1.14).
    """
    subject = f"{camera_frame}~{lidar_frame}"
    if len(views) < MIN_LIDAR_VIEWS:
        reason = f"{len(views)} board poses, {MIN_LIDAR_VIEWS} are needed"
        return Verdict(CAMERA_LIDAR_CHECK, subject, Status.INSUFFICIENT, (), (reason,))
    T_camera_lidar = calibration.transform(camera_frame, lidar_frame)
    jacobian, residual = _board_residuals(views, T_camera_lidar)
    pull = jacobian.T @ residual
    information = jacobian.T @ jacobian + np.diag(BUMP_SIGMA**-2.0)
    motion = np.linalg.solve(information, pull)
    statistic = float(np.sqrt(max(float(pull @ motion), 0.0)))
    gaps = np.array([view.camera_centre for view in views]) - apply(
        T_camera_lidar, np.array([view.lidar_centre for view in views])
    )
    offset_m = float(np.linalg.norm(gaps.mean(axis=0)))
    quantities = (
        Quantity("misalignment", statistic, "sigma", LIDAR_THRESHOLD),
        Quantity("mean_centre_offset", offset_m, "m"),
        Quantity("estimated_rotation", float(np.rad2deg(np.linalg.norm(motion[:3]))), "deg"),
        Quantity("estimated_translation", float(np.linalg.norm(motion[3:])), "m"),
        Quantity("poses", float(len(views)), "1", float(MIN_LIDAR_VIEWS)),
    )
    if statistic <= LIDAR_THRESHOLD:
        return Verdict(CAMERA_LIDAR_CHECK, subject, Status.OK, quantities)
    reason = (
        f"board centres differ by {100 * offset_m:.1f} cm on average; a motion of "
        f"{np.rad2deg(np.linalg.norm(motion[:3])):.2f} deg and {100 * np.linalg.norm(motion[3:]):.1f} cm "
        f"would fit {statistic:.1f} sigma better (limit {LIDAR_THRESHOLD})"
    )
    return Verdict(CAMERA_LIDAR_CHECK, subject, Status.FAILED, quantities, (reason,))
