"""Human faults put into good calibrations are found and named; the good ones raise nothing."""

from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

from sensorium.calibration import pair_lint as pair_linting
from sensorium.calibration.edges import Edge
from sensorium.calibration.formats import kalibr, ros
from sensorium.calibration.formats.detect import import_calibration
from sensorium.calibration.geometry import (
    R_BODY_OPTICAL,
    Array,
    Intrinsics,
    inverse,
    rotation_exp,
    small_motion,
    transform,
)
from sensorium.calibration.keyframes import keyframe
from sensorium.calibration.lint import lint
from sensorium.calibration.pair_lint import View, lint_camera_lidar, lint_stereo, right_angle_rotations
from sensorium.calibration.rig_document import RigCalibration
from sensorium.calibration.sensor_models import ImuModel
from sensorium.calibration.stereo import match_pair
from sensorium.verdict import Status, Verdict

CAMERA = Intrinsics("radtan", 1280, 720, 900.0, 902.0, 645.0, 355.0, (-0.2, 0.05, 0.001, -0.001))


def yawed(degrees: float, x: float, y: float, z: float) -> Array:
    """The pose of an upright camera in a body frame (x forward, z up)."""
    return transform(rotation_exp((0.0, 0.02, np.deg2rad(degrees))) @ R_BODY_OPTICAL, (x, y, z))


def rig(**changes: Array) -> RigCalibration:
    """A vehicle with a stereo pair ahead, a camera to the side and a LiDAR; ``changes`` replace transforms."""
    mounts = {
        "camera_left": yawed(0.0, 1.5, 0.2, 1.4),
        "camera_right": yawed(1.0, 1.5, -0.2, 1.4),
        "camera_side": yawed(-60.0, 0.4, -0.8, 1.5),
        "imu": transform(rotation_exp((0.0, 0.0, 3.1)), (0.1, 0.0, 0.4)),
        **changes,
    }
    edges = tuple(Edge("lidar", name, T, date="2026-03-01") for name, T in mounts.items())
    cameras = {name: CAMERA for name in mounts if "camera" in name}
    return RigCalibration("bench", "2026-03-01", "board", cameras, edges)


def checks(findings: list[Verdict] | tuple[Verdict, ...]) -> set[tuple[str, str]]:
    return {(finding.check, finding.subject) for finding in findings}


def test_a_good_rig_raises_nothing() -> None:
    sizes = {"camera_left": (1280, 720), "lidar": None}
    assert lint(rig(), sizes, date(2026, 11, 21)) == []


GOOD_FILES = (
    "euroc_micro",
    "calibration/kitti_object",
    "calibration/kitti_odom_stereo/sequence_2",
    "calibration/kitti_raw_0048",
    "calibration/acfr_board/camera_info.yaml",
    "calibration/opencv_stereo_chess/left_intrinsics.yml",
    "calibration/opencv_stereo_chess/tutorial_camera_charuco.yml",
    "calibration/pjlab_sensorscalibration/lidar2camera/auto_calib/data",
)


@pytest.mark.parametrize("name", GOOD_FILES)
def test_good_files_raise_nothing(shared_data: Path, name: str) -> None:
    assert import_calibration(shared_data / name).findings == ()


def test_the_file_whose_distortion_does_not_fit_its_images_is_found(shared_data: Path) -> None:
    """README of the data: the sign of D differs from a modern fit of these very images."""
    path = shared_data / "calibration/opencv_stereo_chess/intrinsics.yml"
    found = import_calibration(path, size=(640, 480))
    assert checks(found.findings) == {("distortion", "left")}


def test_an_inverted_camera_is_found() -> None:
    found = lint(rig(camera_left=inverse(yawed(0.0, 1.5, 0.2, 1.4))))
    assert ("inverted", "camera_left~lidar") in checks(found)


def test_a_camera_in_body_axes_is_found() -> None:
    found = lint(rig(camera_side=transform(np.eye(3), (0.4, -0.8, 1.5))))
    assert checks(found) == {("axis_swap", "camera_side~lidar")}
    assert "x forward, z up" in found[0].reasons[0]


def test_millimetres_are_found_and_translated() -> None:
    T = yawed(0.0, 1.5, 0.2, 1.4)
    found = lint(rig(camera_left=transform(T[:3, :3], T[:3, 3] * 1000)))
    assert ("length_unit", "lidar~camera_left") in checks(found)
    assert "millimetres (2.062 m)" in next(f for f in found if f.check == "length_unit").reasons[0]
    tiny = lint(rig(imu=transform(np.eye(3), (0.00005, 0, 0))))
    assert checks(tiny) == {("length_unit", "lidar~imu")}


def test_a_covariance_in_degrees_or_millimetres_is_found() -> None:
    good = np.diag([np.deg2rad(0.5) ** 2] * 3 + [0.01**2] * 3)
    for scale in (np.array([180 / np.pi] * 3 + [1] * 3), np.array([1] * 3 + [1000] * 3)):
        wrong = replace(rig().edges[0], covariance=good * np.outer(scale, scale))
        found = lint(replace(rig(), edges=(wrong, *rig().edges[1:])))
        assert checks(found) == {("covariance_unit", "lidar~camera_left")}
    assert lint(replace(rig(), edges=(replace(rig().edges[0], covariance=good),))) == []


@pytest.mark.parametrize(
    "known",
    [
        {"gyro_noise_rad_s": 0.3},
        {"acc_noise_m_s2": 120.0},
        {"gyro_bias_rad_s": (0.0, 2.5, 0.0)},
        {"acc_bias_m_s2": (0.0, 0.0, -30.0)},
    ],
)
def test_noise_and_biases_that_no_imu_has_are_found(known: dict[str, Any]) -> None:
    found = lint(replace(rig(), imus={"imu": ImuModel(**known)}))
    assert checks(found) == {("imu_unit", "imu")}
    euroc = ImuModel((0.0, 0.02, 0.08), (0.1, 0.1, 0.1), 1.7e-4, 2e-3, 2e-5, 3e-3)
    assert lint(replace(rig(), imus={"imu": euroc})) == []


def test_a_time_offset_in_milliseconds_is_found() -> None:
    edges = (replace(rig().edges[0], time_offset_s=-21.5), *rig().edges[1:])
    assert checks(lint(replace(rig(), edges=edges))) == {("time_unit", "lidar~camera_left")}


@pytest.mark.parametrize(
    ("size", "advice"),
    [((640, 360), "scaled by 0.5"), ((720, 1280), "turned"), ((1280, 960), "another crop")],
)
def test_images_of_another_size_are_found(size: tuple[int, int], advice: str) -> None:
    found = lint(rig(), {"camera_side": size})
    assert [(f.check, f.subject, f.status) for f in found] == [("image_size", "camera_side", Status.FAILED)]
    assert advice in found[0].reasons[0]


def test_intrinsics_of_another_resolution_show_without_a_stream() -> None:
    wrong = replace(CAMERA, width=2560, height=1440)
    found = lint(replace(rig(), cameras={"camera_left": wrong}))
    assert ("principal_point", "camera_left") in checks(found)


@pytest.mark.parametrize(
    ("changes", "check"),
    [
        ({"fx": 4.2, "fy": 4.2}, "focal_length"),
        ({"fy": 600.0}, "aspect"),
        ({"distortion": (0.9, -4.0, 0, 0)}, "distortion"),
    ],
)
def test_impossible_intrinsics_are_found(changes: dict[str, Any], check: str) -> None:
    wrong = replace(CAMERA, **changes)
    assert checks(lint(replace(rig(), cameras={"camera_left": wrong}))) == {(check, "camera_left")}


def test_swapped_left_and_right_are_found() -> None:
    found = lint(rig(camera_left=yawed(1.0, 1.5, -0.2, 1.4), camera_right=yawed(0.0, 1.5, 0.2, 1.4)))
    assert checks(found) == {("left_right", "camera_left~camera_right")}


def test_a_stale_a_future_and_an_unreadable_date_are_found() -> None:
    assert len(lint(rig(), today=date(2028, 1, 1))) == 5
    assert "in the future" in lint(rig(), today=date(2026, 2, 1))[0].reasons[0]
    odd = replace(rig(), date="last summer")
    assert checks(lint(odd, today=date(2026, 11, 21))) == {("date", "rig")}


def test_a_loop_that_does_not_close_is_found() -> None:
    T = rig().transform("camera_left", "camera_right")
    for motion, is_found in (
        ((0, np.deg2rad(0.1), 0, 0.005, 0, 0), False),
        ((0, np.deg2rad(0.4), 0, 0, 0, 0), True),
    ):
        extra = Edge("camera_left", "camera_right", small_motion(motion) @ T)
        found = lint(replace(rig(), edges=(*rig().edges, extra)))
        assert bool(found) is is_found
        assert not found or found[0].check == "loop_closure"


def test_a_stream_without_an_entry_is_found_with_the_nearest_name() -> None:
    found = lint(rig(), {"camera_leftt": (1280, 720), "imu": None, "radar": None})
    assert checks(found) == {("unknown_frame", "camera_leftt"), ("unknown_frame", "radar")}
    assert "did you mean camera_left?" in found[0].reasons[0]


# -- faults that only the file itself shows


def camera_info(path: Path, **changes: object) -> Path:
    document = {"width": 640, "height": 480, "distortion_model": "plumb_bob", "D": [0.1, 0, 0, 0, 0]}
    document |= {"K": [500, 0, 320, 0, 500, 240, 0, 0, 1]} | changes
    path.write_text(yaml.safe_dump(document))
    return path


@pytest.mark.parametrize(
    ("changes", "check", "status"),
    [
        ({}, None, Status.OK),
        ({"K": [500, 12, 320, 0, 500, 240, 0, 0, 1]}, "skew", Status.SUSPECT),
        ({"D": [0.1, 0, 0, 0, 0, 0.1, 0, 0]}, "distortion_count", Status.FAILED),
        ({"D": [0.1, 0, 0]}, "distortion_count", Status.FAILED),
        ({"distortion_model": "equidistant"}, "distortion_count", Status.FAILED),
        ({"distortion_model": "rational_polynomial"}, "distortion_count", Status.FAILED),
        ({"R": [0, 1, 0, 1, 0, 0, 0, 0, 1]}, "rotation", Status.FAILED),
        ({"R": [1.001, 0, 0, 0, 1, 0, 0, 0, 1]}, "rotation", Status.SUSPECT),
        ({"R": [2, 0, 0, 0, 2, 0, 0, 0, 2]}, "rotation", Status.FAILED),
    ],
)
def test_odd_numbers_in_a_file_are_named(
    tmp_path: Path, changes: dict[str, object], check: str | None, status: Status
) -> None:
    found = import_calibration(camera_info(tmp_path / "cam.yaml", **changes))
    assert [finding.check for finding in found.findings] == ([check] if check else [])
    assert found.status is status


def test_a_mirror_in_a_camchain_is_found(tmp_path: Path) -> None:
    kalibr.write(rig(), tmp_path / "camchain.yaml")
    document = yaml.safe_load((tmp_path / "camchain.yaml").read_text())
    document["cam1"]["T_cn_cnm1"][0] = [-value for value in document["cam1"]["T_cn_cnm1"][0]]
    (tmp_path / "camchain.yaml").write_text(yaml.safe_dump(document))
    found = import_calibration(tmp_path / "camchain.yaml")
    assert ("rotation", "cam0~cam1") in checks(found.findings)
    assert found.status is Status.FAILED


def test_degrees_in_a_urdf_are_found(tmp_path: Path) -> None:
    ros.write_urdf(rig(), tmp_path / "rig.urdf")
    text = (tmp_path / "rig.urdf").read_text()
    assert not [f for f in import_calibration(tmp_path / "rig.urdf").findings if f.check == "degrees"]
    start = text.index('rpy="') + 5
    end = text.index('"', start)
    in_degrees = " ".join(str(float(np.rad2deg(float(word)))) for word in text[start:end].split())
    (tmp_path / "rig.urdf").write_text(text[:start] + in_degrees + text[end:])
    found = import_calibration(tmp_path / "rig.urdf").findings
    assert ("degrees", "lidar~camera_left") in checks(found)


# -- faults that only the data shows


def read_image(path: Path) -> NDArray[np.uint8]:
    image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    assert image is not None, path
    return np.asarray(image, np.uint8)


def kitti_views(folder: Path, names: list[str]) -> tuple[list[View], Array]:
    views, T = [], np.eye(4)
    for name in names:
        image = read_image(folder / "image_2" / f"{name}.png")
        points = np.fromfile(folder / "velodyne" / f"{name}.bin", "<f4").reshape(-1, 4)
        calibration = import_calibration(folder / "calib" / f"{name}.txt").calibration
        T = calibration.transform("camera_2", "velodyne")
        frame = keyframe(image, points, calibration.camera("camera_2"), T)
        views.append(View.of(frame, points))
    return views, T


@pytest.fixture(scope="module")
def kitti(shared_data: Path) -> tuple[list[View], Array]:
    """Three frames that share one calibration day."""
    folder = shared_data / "calibration/kitti_object"
    return kitti_views(folder, [path.stem for path in sorted((folder / "calib").glob("*.txt"))[:3]])


def test_every_right_angle_turn_of_the_camera_axes_is_found_and_undone(
    kitti: tuple[list[View], Array],
) -> None:
    views, T = kitti
    assert lint_camera_lidar(views, T, "camera~lidar") == []
    turns = right_angle_rotations()
    assert len(turns) == 24
    for turn in turns[1:]:
        found = lint_camera_lidar(views, transform(turn, np.zeros(3)) @ T, "camera~lidar")
        assert [(f.check, f.status) for f in found] == [("axis_swap", Status.FAILED)], turn
        # The advice, taken, gives the good transform back.
        (back,) = (S for S in turns if pair_linting.spelled(S) in found[0].reasons[0])
        np.testing.assert_array_equal(back @ turn, np.eye(3))


@pytest.mark.parametrize(
    ("fault", "check"),
    [(inverse, "inverted"), (lambda T: transform(T[:3, :3], T[:3, 3] * 1000), "length_unit")],
)
def test_an_inverted_transform_and_millimetres_are_found_in_the_images(
    kitti: tuple[list[View], Array], fault: Callable[[Array], Array], check: str
) -> None:
    views, T = kitti
    found = lint_camera_lidar(views, fault(T), "camera~lidar")
    assert [finding.check for finding in found] == [check]
    assert lint_camera_lidar(views[:2], fault(T), "camera~lidar") == []


def test_a_mount_that_moved_is_not_mistaken_for_swapped_axes(kitti: tuple[list[View], Array]) -> None:
    views, T = kitti
    rng = np.random.default_rng(5)
    for degrees in (1, 3, 10, 30):
        for _ in range(4):
            axis, way = rng.normal(size=(2, 3))
            turn = np.deg2rad(degrees) * axis / np.linalg.norm(axis)
            moved = small_motion((*turn, *(0.3 * way / np.linalg.norm(way)))) @ T
            assert lint_camera_lidar(views, moved, "camera~lidar") == []


def euroc_pairs(folder: Path) -> list[tuple[Array, Array]]:
    left, right = (sorted((folder / "mav0" / name / "data").glob("*.png")) for name in ("cam0", "cam1"))
    pairs = list(zip(left, right, strict=True))[:2]
    return [match_pair(read_image(a), read_image(b)) for a, b in pairs]


def test_swapped_images_and_an_inverted_baseline_are_found_by_depth(shared_data: Path) -> None:
    calibration = import_calibration(shared_data / "euroc_micro").calibration
    pairs = euroc_pairs(shared_data / "euroc_micro")
    assert lint_stereo(pairs, calibration, "cam0", "cam1") == []
    swapped = [(right, left) for left, right in pairs]
    assert checks(lint_stereo(swapped, calibration, "cam0", "cam1")) == {("left_right", "cam0~cam1")}
    T = calibration.transform("cam0", "cam1")
    inverted = RigCalibration(cameras=calibration.cameras, edges=(Edge("cam0", "cam1", inverse(T)),))
    assert checks(lint_stereo(pairs, inverted, "cam0", "cam1")) == {("inverted", "cam0~cam1")}
    assert lint_stereo([], calibration, "cam0", "cam1") == []
