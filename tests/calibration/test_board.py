"""Board checks find what a board can show, on synthetic corners and on real pictures."""

import re
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from sensorium.calibration import geometry
from sensorium.calibration.board import (
    BoardView,
    check_camera_lidar_board,
    check_intrinsics,
    check_stereo_board,
    check_stereo_focals,
    pose_of,
    reprojection_rms_px,
    tilts_deg,
)
from sensorium.calibration.board_fit import solve_camera_lidar, solve_intrinsics, solve_stereo
from sensorium.calibration.bundle import vector_of
from sensorium.calibration.edges import Edge
from sensorium.calibration.rig_document import Intrinsics, RigCalibration
from sensorium.calibration.targets import Chessboard, View
from sensorium.errors import CalibrationError
from sensorium.verdict import Status

BOARD = Chessboard(9, 6, 0.03)
CAMERA = Intrinsics("radtan", 640, 480, 530.0, 531.0, 322.0, 238.0, (-0.25, 0.08, 0.0005, -0.0003))
T_LEFT_RIGHT = geometry.small_motion((0.01, -0.02, 0.005, 0.09, 0.001, 0.002))
NOISE_PX = 0.1


def poses(count: int, seed: int) -> list[geometry.Array]:
    """Boards half a metre away, tilted up to 35 degrees, in view of both cameras."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        tilt = rng.uniform(-0.6, 0.6, 3)
        place = np.array([rng.uniform(-0.05, 0.08), rng.uniform(-0.05, 0.05), rng.uniform(0.5, 0.8)])
        T = geometry.transform(geometry.rotation_exp(tilt), place)
        centre = geometry.apply(T, BOARD.points_m.mean(axis=0)[None])[0] - place
        T[:3, 3] -= centre * (1, 1, 0)
        found.append(T)
    return found


def corners(T_camera_board: geometry.Array, camera: Intrinsics, rng: np.random.Generator) -> View:
    pixels = geometry.project(geometry.apply(T_camera_board, BOARD.points_m), camera)
    return View(np.arange(len(pixels)), pixels + rng.normal(0, NOISE_PX, pixels.shape))


def views(count: int, seed: int, camera: Intrinsics = CAMERA) -> list[View]:
    rng = np.random.default_rng(seed)
    return [corners(T, camera, rng) for T in poses(count, seed)]


def stereo_views(T_left_right: geometry.Array, seed: int, count: int = 1) -> list[list[View]]:
    rng = np.random.default_rng(seed)
    T_right_left = geometry.inverse(T_left_right)
    return [
        [corners(T, CAMERA, rng) for T in poses(count, seed)],
        [corners(T_right_left @ T, CAMERA, rng) for T in poses(count, seed)],
    ]


def test_pose_of_a_board_is_found_to_a_millimetre() -> None:
    truth = poses(1, 3)[0]
    found = pose_of(corners(truth, CAMERA, np.random.default_rng(1)), BOARD, CAMERA)
    np.testing.assert_allclose(found, truth, atol=2e-3)
    assert reprojection_rms_px(views(3, 4), BOARD, CAMERA) < 2 * NOISE_PX


def test_camera_is_solved_from_its_boards() -> None:
    found = solve_intrinsics(views(12, 5), BOARD, (640, 480))
    sigma = np.sqrt(np.diag(found.covariance))
    truth = (CAMERA.fx, CAMERA.fy, CAMERA.cx, CAMERA.cy, *CAMERA.distortion)
    assert (np.abs(vector_of(found.camera) - truth) < 4 * sigma).all()
    assert found.focal_sigma < 0.003
    assert found.camera.board_rms_px == pytest.approx(NOISE_PX * np.sqrt(2), rel=0.3)
    assert found.held_out_px == pytest.approx(NOISE_PX * np.sqrt(2), rel=0.3)
    with pytest.raises(CalibrationError, match="2 views of the board"):
        solve_intrinsics(views(2, 5), BOARD, (640, 480))


def test_wrong_focal_length_is_seen_although_the_rms_is_not() -> None:
    seen = views(10, 6)
    assert check_intrinsics(seen, BOARD, CAMERA, "camera").status is Status.OK
    wrong = replace(CAMERA, fx=CAMERA.fx * 1.02, fy=CAMERA.fy * 1.02)
    verdict = check_intrinsics(seen, BOARD, wrong, "camera")
    rms = next(quantity for quantity in verdict.quantities if quantity.name == "reprojection_rms")
    assert rms.value < 0.5
    assert verdict.status in (Status.SUSPECT, Status.FAILED)
    assert verdict.quantities[0].value == pytest.approx(100 * (1 / 1.02 - 1), abs=0.4)


def test_it_is_said_from_which_focal_error_on_the_views_tell() -> None:
    many = check_intrinsics(views(20, 6), BOARD, CAMERA, "camera")
    assert any("tell an error of the focal length from 1 % on" in reason for reason in many.reasons)
    rng = np.random.default_rng(9)
    middle = BOARD.points_m.mean(axis=0)
    hardly_tilted = [
        geometry.transform(geometry.rotation_exp(rng.uniform(-0.05, 0.05, 3)), (0, 0, depth_m) - middle)
        for depth_m in (0.7, 0.8, 0.9)
    ]
    few = check_intrinsics([corners(T, CAMERA, rng) for T in hardly_tilted], BOARD, CAMERA, "camera")
    assert few.status is Status.INSUFFICIENT
    assert any("on, not 1 %: show the board nearer, tilted" in reason for reason in few.reasons)
    told = {
        verdict: next(q for q in verdict.quantities if q.name == "least_error_told")
        for verdict in (many, few)
    }
    assert told[many].value == 1.0
    assert told[few].value > 1.0


def tilted(about: tuple[float, float], count: int, seed: int) -> list[View]:
    """Views of a board turned either way by as many degrees about the image's level and its upright axis."""
    rng = np.random.default_rng(seed)
    middle = BOARD.points_m.mean(axis=0)
    found = []
    for k in range(count):
        level, upright = np.deg2rad(about) * ((-1) ** k, (-1) ** (k // 2))
        R = geometry.rotation_exp((level, 0, 0)) @ geometry.rotation_exp((0, upright, 0))
        T = geometry.transform(R, np.array((0.05, 0, 0.6)) - R @ middle)
        found.append(corners(T, CAMERA, rng))
    return found


@pytest.mark.parametrize(
    ("about", "wanted"),
    [
        ((5.0, 40.0), r"about the level axis \(so far \d deg\), and"),
        ((40.0, 5.0), r"about the upright axis \(so far \d deg\), and"),
        ((4.0, 4.0), r"the level axis \(so far \d deg\) and the upright axis \(so far \d deg\)"),
    ],
)
def test_the_tilt_that_is_lacking_is_named(about: tuple[float, float], wanted: str) -> None:
    views_seen = tilted(about, 3, 1)
    assert tilts_deg([pose_of(view, BOARD, CAMERA) for view in views_seen]) == pytest.approx(about, abs=3)
    strict = check_intrinsics(views_seen, BOARD, CAMERA, "camera", focal_tolerance=0.0005)
    assert any(re.search(wanted, reason) for reason in strict.reasons)


@pytest.mark.parametrize("factor", [0.99, 1.01])
def test_an_error_of_the_tolerance_is_never_called_ok_where_views_cannot_tell_it(factor: float) -> None:
    wrong = replace(CAMERA, fx=CAMERA.fx * factor, fy=CAMERA.fy * factor)
    flat = check_intrinsics(tilted((6.0, 6.0), 5, 2), BOARD, wrong, "camera")
    assert flat.status is Status.INSUFFICIENT
    told = check_intrinsics(tilted((40.0, 40.0), 12, 3), BOARD, wrong, "camera")
    assert told.status in (Status.SUSPECT, Status.FAILED)


def test_few_views_are_insufficient() -> None:
    assert check_intrinsics(views(2, 6), BOARD, CAMERA, "camera").status is Status.INSUFFICIENT
    rig = RigCalibration(cameras={"left": CAMERA, "right": CAMERA}, edges=(Edge("left", "right", np.eye(4)),))
    assert check_stereo_board([], [], BOARD, rig, "left", "right").status is Status.INSUFFICIENT
    assert check_camera_lidar_board([], rig, "left", "right").status is Status.INSUFFICIENT


def test_one_view_shows_a_turned_stereo_camera() -> None:
    left, right = stereo_views(T_LEFT_RIGHT, 8)
    rig = RigCalibration(
        cameras={"left": CAMERA, "right": CAMERA}, edges=(Edge("left", "right", T_LEFT_RIGHT),)
    )
    assert check_stereo_board(left, right, BOARD, rig, "left", "right").status is Status.OK
    for motion in ((0.2, 0, 0, 0, 0, 0), (0, 0.2, 0, 0, 0, 0), (0, 0, 0.8, 0, 0, 0)):
        change = geometry.small_motion(np.deg2rad(motion))
        wrong = replace(rig, edges=(Edge("left", "right", T_LEFT_RIGHT @ change),))
        verdict = check_stereo_board(left, right, BOARD, wrong, "left", "right")
        assert verdict.status is Status.FAILED, motion


@pytest.mark.parametrize("changed", [("left",), ("right",), ("left", "right"), ()])
def test_common_boards_show_a_focal_error_of_one_or_both_cameras(changed: tuple[str, ...]) -> None:
    left, right = stereo_views(T_LEFT_RIGHT, 12, count=5)
    short = replace(CAMERA, fx=CAMERA.fx * 0.99, fy=CAMERA.fy * 0.99)
    cameras = {name: short if name in changed else CAMERA for name in ("left", "right")}
    rig = RigCalibration(cameras=cameras, edges=(Edge("left", "right", T_LEFT_RIGHT),))
    verdict = check_stereo_focals(left, right, BOARD, rig, "left", "right")
    for quantity, name in zip(verdict.quantities[:2], ("left", "right"), strict=True):
        assert quantity.sigma is not None
        truth = 100 * (1 / 0.99 - 1) if name in changed else 0.0
        assert abs(quantity.value - truth) < 3 * quantity.sigma
    is_alarm = verdict.status in (Status.SUSPECT, Status.FAILED)
    assert is_alarm == bool(changed), verdict
    few = check_stereo_focals(left[:2], right[:2], BOARD, rig, "left", "right")
    assert few.status is Status.INSUFFICIENT


def test_stereo_is_solved_from_common_boards() -> None:
    left, right = stereo_views(T_LEFT_RIGHT, 9, count=10)
    found = solve_stereo(left, right, BOARD, CAMERA, CAMERA)
    gap = geometry.difference(found.T_first_second, T_LEFT_RIGHT)
    sigma = np.sqrt(np.diag(found.covariance))
    assert (np.abs(gap) < 4 * sigma).all()
    assert np.rad2deg(sigma[:3].max()) < 0.1
    assert sigma[3:].max() < 1e-3
    assert found.held_out < 3 * NOISE_PX


def board_views(T_camera_lidar: geometry.Array, count: int, seed: int) -> list[BoardView]:
    rng = np.random.default_rng(seed)
    T_lidar_camera = geometry.inverse(T_camera_lidar)
    found = []
    for _ in range(count):
        centre = rng.uniform((-1.0, -0.5, 1.5), (1.0, 0.5, 3.2))
        normal = geometry.rotation_exp(rng.uniform(-0.4, 0.4, 3)) @ np.array([0.0, 0.0, -1.0])
        seen = geometry.apply(T_lidar_camera, centre[None])[0] + rng.normal(0, 0.005, 3)
        turned = geometry.rotation_exp(rng.normal(0, 0.02, 3)) @ T_lidar_camera[:3, :3] @ normal
        found.append(BoardView(centre, normal, seen, turned))
    return found


def test_camera_and_lidar_are_solved_and_checked_with_a_board() -> None:
    truth = geometry.transform(geometry.R_BODY_OPTICAL.T, (0.05, -0.1, -0.2))
    fit = solve_camera_lidar(board_views(truth, 20, 1))
    gap = geometry.difference(fit.T_first_second, truth)
    assert (np.abs(gap) < 4 * np.sqrt(np.diag(fit.covariance))).all()
    assert fit.rms < 0.02
    rig = RigCalibration(edges=(Edge("camera", "lidar", truth),))
    assert check_camera_lidar_board(board_views(truth, 3, 2), rig, "camera", "lidar").status is Status.OK
    for motion in ((0, 0, 0, 0.03, 0, 0), (np.deg2rad(1.5), 0, 0, 0, 0, 0)):
        wrong = RigCalibration(edges=(Edge("camera", "lidar", geometry.small_motion(motion) @ truth),))
        verdict = check_camera_lidar_board(board_views(truth, 3, 2), wrong, "camera", "lidar")
        assert verdict.status is Status.FAILED, motion


def test_boards_are_found_in_real_pictures(shared_data: Path) -> None:
    folder = shared_data / "calibration" / "opencv_stereo_chess"
    board = Chessboard(9, 6, 0.025)
    found = [
        board.find(np.asarray(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE), np.uint8))
        for path in sorted(folder.glob("left[0-9]*.jpg"))
    ]
    seen = [view for view in found if view is not None]
    assert len(seen) == 13
    assert all(view.pixels.shape == (54, 2) for view in seen)
    fit = solve_intrinsics(seen, board, (640, 480))
    # Spec 1.14: calibration RMS 0.20 px.
    assert fit.rms_px == pytest.approx(0.20, abs=0.05)


def test_a_picture_without_a_board_gives_none() -> None:
    assert BOARD.find(np.zeros((480, 640), np.uint8)) is None
