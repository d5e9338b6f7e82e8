"""Checks and fits with a chessboard: intrinsics, stereo, camera against LiDAR."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from sensorium.calibration.bundle import adjust
from sensorium.calibration.checks import Degree, judge
from sensorium.calibration.geometry import (
    Array,
    Intrinsics,
    apply,
    project,
    rotation_exp,
    skew,
    transform,
    undistort,
)
from sensorium.calibration.rig_document import RigCalibration
from sensorium.calibration.targets import Target, View
from sensorium.errors import CalibrationError
from sensorium.verdict import Quantity, Status, Verdict

INTRINSICS_CHECK = "intrinsics_board"
STEREO_CHECK = "stereo_board"
STEREO_FOCAL_CHECK = "stereo_focal_board"
CAMERA_LIDAR_CHECK = "camera_lidar_board"

MAX_TRANSFER_PX = 0.6
MAX_RMS_PX = 0.5
MIN_POSE_CORNERS = 6
MIN_INTRINSIC_VIEWS = 3
MIN_LIDAR_VIEWS = 3
# A quarter of the views tilted as far as this about an axis determine a focal length in that direction.
ENOUGH_TILT_DEG = 25.0

# Refits of different views scatter this much further than their formal deviations: boards are not quite flat, and
# the calibration has an error of its own (five views of OpenCV's left camera against a calibration from eight others:
# 2.4; the right one, which this was not taken from: 3.0).
FOCAL_SIGMA_INFLATION = 2.5
FOCAL_TOLERANCE = 0.01

# Scatter of a board seen by a 16-ring LiDAR at 1.7-3.3 m: centre per axis, normal (spec 1.14: 0.76 cm median
# distance, 1.3 deg median).
CENTRE_SIGMA_M = 0.006
NORMAL_SIGMA_RAD = 0.025
# What a bumped mount looks like; makes degrees that few boards cannot see count for little.
BUMP_SIGMA = np.array([np.deg2rad(1.0)] * 3 + [0.03] * 3)
# Square root of twice the gain in log-likelihood; the 99 % point of chi-square with 4 to 5 degrees of freedom,
# because the prior leaves about that many of the six free.
LIDAR_THRESHOLD = 3.75


def pose_of(view: View, board: Target, camera: Intrinsics) -> Array:
    """Return T_camera_board of one view.

    Raises:
        CalibrationError: If no pose fits.
    """
    ideal = undistort(view.pixels, camera)
    good = np.isfinite(ideal).all(axis=1)
    if good.sum() < MIN_POSE_CORNERS:
        raise CalibrationError(
            f"board seen at {int(good.sum())} usable corners; at least {MIN_POSE_CORNERS} are needed"
        )
    points, pixels = board.points_m[view.ids[good]], ideal[good].reshape(-1, 1, 2)
    found, turn, shift = cv2.solvePnP(points, pixels, np.eye(3), None, flags=cv2.SOLVEPNP_ITERATIVE)
    if not found:
        raise CalibrationError("no pose of the board fits its corners")
    return transform(rotation_exp(np.asarray(turn).ravel()), np.asarray(shift).ravel())


def reprojection_rms_px(views: Sequence[View], board: Target, camera: Intrinsics) -> float:
    """Return the RMS distance of corners from where the fitted poses put them.

    It hardly sees a wrong focal length (the pose moves instead); :func:`check_intrinsics` refits it.
    """
    errors = [
        project(apply(pose_of(view, board, camera), board.points_m[view.ids]), camera) - view.pixels
        for view in views
    ]
    return float(np.sqrt(np.mean(np.square(np.concatenate(errors)).sum(axis=1))))


@dataclass(frozen=True, slots=True, eq=False)
class FocalRefit:
    """Relative errors of cameras' focal lengths (calibrated too short is positive), and their deviations."""

    errors: Array
    sigmas: Array
    rms_px: float


def refit_focals(
    views: Sequence[Sequence[View]],
    board: Target,
    cameras: Sequence[Intrinsics],
    T_camera_first: Sequence[Array],
) -> FocalRefit:
    """Fit one factor on each camera's focal length, with the rest of the lenses and the mounts as calibrated.

    A board's tilt shows a focal length; two cameras that see the same boards from a known distance share the
    boards' poses, which shows each against the other ten times more sharply.

    Args:
        views: By camera, then by pose of the board; every camera saw every board.

    Raises:
        CalibrationError: If a board has no pose or the views determine nothing.
    """
    poses = [pose_of(view, board, cameras[0]) for view in views[0]]
    fit = adjust(board.points_m, views, cameras, T_camera_first, poses, free="focals", is_mount_free=False)
    formal = np.sqrt(np.diag(fit.covariance) / fit.inflation)
    errors = np.array([found.fx / camera.fx - 1 for found, camera in zip(fit.cameras, cameras, strict=True)])
    return FocalRefit(errors, FOCAL_SIGMA_INFLATION * formal, fit.rms_px)


def check_intrinsics(
    views: Sequence[View],
    board: Target,
    camera: Intrinsics,
    name: str,
    focal_tolerance: float = FOCAL_TOLERANCE,
) -> Verdict:
    """Refit the focal length on tilted views of a board and compare it with the calibration.

    Views that do not tell an error of the tolerance are ``insufficient`` unless they prove more: the verdict names
    from which error on they do (``least_error_told``), how the board was tilted, and what to show.

    Args:
        focal_tolerance: Accepted relative error of the focal length.

    Raises:
        CalibrationError: If a board has no pose.
    """
    if len(views) < MIN_INTRINSIC_VIEWS:
        reason = f"{len(views)} views of the board, {MIN_INTRINSIC_VIEWS} tilted ones are needed"
        return Verdict(INTRINSICS_CHECK, name, Status.INSUFFICIENT, (), (reason,))
    refit = refit_focals([views], board, [camera], [np.eye(4)])
    stored_rms = reprojection_rms_px(views, board, camera)
    limit = max(MAX_RMS_PX, 2 * (camera.board_rms_px or 0.0))
    degrees = _focals(("focal_length",), refit, focal_tolerance)
    poses = [pose_of(view, board, camera) for view in views]
    extra = (
        Quantity("reprojection_rms", stored_rms, "px", limit),
        Quantity("refit_rms", refit.rms_px, "px"),
        Quantity("views", float(len(views)), "1", float(MIN_INTRINSIC_VIEWS)),
        Quantity("least_error_told", least_told(degrees[0]), "%", degrees[0].tolerance),
    )
    verdict = judge(INTRINSICS_CHECK, name, degrees, (), extra, (_told(degrees[0], poses),))
    if verdict.status is Status.OK and stored_rms > limit:
        reason = f"board corners miss their places by {stored_rms:.2f} px rms, more than {limit:.2f}"
        return Verdict(INTRINSICS_CHECK, name, Status.SUSPECT, verdict.quantities, (reason,))
    return verdict


def is_focal_told(sigma: float, tolerance: float = FOCAL_TOLERANCE) -> bool:
    """Return whether an error of the tolerance is told 95 of 100 times, and a right focal length called ok.

    Args:
        sigma: Of the refitted focal length, relative (:func:`refit_focals`).
    """
    return sigma <= tolerance / 4


def least_told(focal: Degree) -> float:
    """Return from which error of the focal length on views tell one, in its unit."""
    return (
        focal.tolerance
        if is_focal_told(focal.sigma, focal.tolerance)
        else focal.tolerance + 3.65 * focal.sigma
    )


def _told(focal: Degree, poses: Sequence[Array]) -> str:
    """Say from which error of the focal length on these views tell one (95 of 100 times), and what would tell more."""
    least = least_told(focal)
    said = f"these views tell an error of the focal length from {least:.2g} % on"
    if is_focal_told(focal.sigma, focal.tolerance):
        return said
    level, upright = tilts_deg(poses)
    scant = [
        f"the {axis} axis (so far {tilt:.0f} deg)"
        for axis, tilt in (("level", level), ("upright", upright))
        if tilt < ENOUGH_TILT_DEG
    ]
    about = " and ".join(scant) or "both axes"
    return (
        f"{said}, not {focal.tolerance:.2g} %: show the board nearer, tilted by 30 to 45 deg about {about}, "
        "and more often"
    )


def tilts_deg(poses: Sequence[Array]) -> tuple[float, float]:
    """Return how far boards were tilted about the image's level and its upright axis: the upper quartile, deg.

    Only tilted boards show a focal length: one that faces the camera looks the same from half as far at half of it.
    """
    normals = np.array([T[:3, 2] * np.sign(T[2, 2]) for T in poses]).reshape(-1, 3)
    tilts = np.rad2deg(np.abs(np.arctan2(normals[:, :2], normals[:, 2:])))
    about_level, about_upright = np.quantile(tilts[:, ::-1], 0.75, axis=0)
    return float(about_level), float(about_upright)


def _focals(names: Sequence[str], refit: FocalRefit, tolerance: float) -> list[Degree]:
    return [
        Degree(name, "%", 100 * float(error), 100 * float(sigma), 100 * tolerance)
        for name, error, sigma in zip(names, refit.errors, refit.sigmas, strict=True)
    ]


def check_stereo_focals(
    left_views: Sequence[View],
    right_views: Sequence[View],
    board: Target,
    calibration: RigCalibration,
    left_frame: str,
    right_frame: str,
    focal_tolerance: float = 0.01,
) -> Verdict:
    """Refit both focal lengths on boards that both cameras see; sharper than each camera alone.

    Raises:
        CalibrationError: If the frames are unknown, or a board has no pose.
    """
    subject = f"{left_frame}~{right_frame}"
    if len(left_views) < MIN_INTRINSIC_VIEWS:
        reason = f"{len(left_views)} common views of the board, {MIN_INTRINSIC_VIEWS} tilted ones are needed"
        return Verdict(STEREO_FOCAL_CHECK, subject, Status.INSUFFICIENT, (), (reason,))
    cameras = [calibration.camera(left_frame), calibration.camera(right_frame)]
    T_right_left = calibration.transform(right_frame, left_frame)
    refit = refit_focals([left_views, right_views], board, cameras, [np.eye(4), T_right_left])
    extra = (
        Quantity("refit_rms", refit.rms_px, "px"),
        Quantity("views", float(len(left_views)), "1", float(MIN_INTRINSIC_VIEWS)),
    )
    degrees = _focals(("focal_left", "focal_right"), refit, focal_tolerance)
    return judge(STEREO_FOCAL_CHECK, subject, degrees, (), extra)


def check_stereo_board(
    left_views: Sequence[View],
    right_views: Sequence[View],
    board: Target,
    calibration: RigCalibration,
    left_frame: str,
    right_frame: str,
) -> Verdict:
    """Place the board by the left camera and compare where the right one sees it; one view suffices.

    Raises:
        CalibrationError: If the frames are unknown, or a board has no pose.
    """
    subject = f"{left_frame}~{right_frame}"
    if not left_views:
        return Verdict(
            STEREO_CHECK, subject, Status.INSUFFICIENT, (), ("no view of the board by both cameras",)
        )
    left, right = calibration.camera(left_frame), calibration.camera(right_frame)
    T_right_left = calibration.transform(right_frame, left_frame)
    errors = []
    for seen_left, seen_right in zip(left_views, right_views, strict=True):
        points = apply(T_right_left @ pose_of(seen_left, board, left), board.points_m[seen_right.ids])
        errors.append(project(points, right) - seen_right.pixels)
    missed = np.concatenate(errors)
    misses = np.where(np.isfinite(missed), missed, 1e3)
    transfer_px = float(np.sqrt(np.mean(np.square(misses).sum(axis=1))))
    mean_x, mean_y = np.mean(misses, axis=0)
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
    """A board seen by camera and LiDAR at once: centre (m) and unit normal towards the sensor, in each frame.

    Attributes:
        centre_covariance: 3x3, m^2, of the difference of the centres, in the camera's axes.
        normal_sigma_rad: Deviation of the angle between the normals, about each axis.
    """

    camera_centre: Array
    camera_normal: Array
    lidar_centre: Array
    lidar_normal: Array
    centre_covariance: Array = field(default_factory=lambda: np.eye(3) * CENTRE_SIGMA_M**2)
    normal_sigma_rad: float = NORMAL_SIGMA_RAD


def board_residuals(view: BoardView, T_camera_lidar: Array) -> tuple[Array, Array]:
    """Return the whitened jacobian (6, 6) and residual (6,) of a centre and a normal."""
    centre = T_camera_lidar[:3, :3] @ view.lidar_centre + T_camera_lidar[:3, 3]
    normal = T_camera_lidar[:3, :3] @ view.lidar_normal
    white = np.linalg.inv(np.linalg.cholesky(view.centre_covariance))
    jacobian = np.zeros((6, 6))
    jacobian[:3, :3], jacobian[:3, 3:] = -white @ skew(centre), white
    jacobian[3:, :3] = -skew(normal) / view.normal_sigma_rad
    residual = (
        white @ (view.camera_centre - centre),
        (view.camera_normal - normal) / view.normal_sigma_rad,
    )
    return jacobian, np.concatenate(residual)


def check_camera_lidar_board(
    views: Sequence[BoardView], calibration: RigCalibration, camera_frame: str, lidar_frame: str
) -> Verdict:
    """Compare board centres and normals of camera and LiDAR under the calibration.

    The statistic is how much better the boards would fit after a motion of the size of a bump, not that
    motion itself: few boards place a rotation badly but notice it well (spec 1.14).

    Raises:
        CalibrationError: If the frames are unknown.
    """
    subject = f"{camera_frame}~{lidar_frame}"
    if len(views) < MIN_LIDAR_VIEWS:
        reason = f"{len(views)} board poses, {MIN_LIDAR_VIEWS} are needed"
        return Verdict(CAMERA_LIDAR_CHECK, subject, Status.INSUFFICIENT, (), (reason,))
    T_camera_lidar = calibration.transform(camera_frame, lidar_frame)
    parts = [board_residuals(view, T_camera_lidar) for view in views]
    jacobian, residual = (np.concatenate(part) for part in zip(*parts, strict=True))
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
