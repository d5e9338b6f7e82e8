"""KITTI's and EuRoC's calibration files are read as their authors meant them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sensorium.calibration.euroc import read_euroc
from sensorium.calibration.formats.detect import import_calibration
from sensorium.calibration.formats.kitti import read_kitti, write_object
from sensorium.errors import CalibrationError
from sensorium.verdict import Status


def test_kitti_object_puts_camera_two_six_centimetres_left(shared_data: Path) -> None:
    path = shared_data / "calibration" / "kitti_object" / "calib" / "000000.txt"
    rig = read_kitti(path, (1224, 370))
    numbers = {
        line.split(":")[0]: np.array(line.split(":")[1].split(), float)
        for line in path.read_text().splitlines()
        if ":" in line
    }
    # The development kit: x = P2 R0_rect Tr_velo_to_cam X.
    P, R, Tr = (numbers[key] for key in ("P2", "R0_rect", "Tr_velo_to_cam"))
    point = np.array([12.0, 1.5, -0.4, 1.0])
    rectified = R.reshape(3, 3) @ Tr.reshape(3, 4) @ point
    expected = P.reshape(3, 4) @ np.append(rectified, 1.0)
    camera = rig.camera("camera_2")
    seen = camera.K @ (rig.transform("camera_2", "velodyne") @ point)[:3]
    np.testing.assert_allclose(seen[:2] / seen[2], expected[:2] / expected[2], atol=1e-3)
    assert rig.transform("camera_0", "camera_2")[0, 3] == pytest.approx(-0.06, abs=0.01)
    assert rig.has_transform("camera_0", "imu")


def test_kitti_raw_and_odometry_layouts_agree_on_the_baseline(shared_data: Path) -> None:
    raw = read_kitti(shared_data / "calibration" / "kitti_raw_seq")
    assert (raw.camera("camera_2").width, raw.camera("camera_2").height) == (1242, 375)
    assert raw.transform("camera_0", "camera_1")[0, 3] == pytest.approx(0.537, abs=1e-3)
    # This copy of the odometry layout has no "P0:" labels.
    odometry = read_kitti(shared_data / "calibration" / "kitti_odom_stereo" / "sequence_1" / "calib.txt")
    assert odometry.transform("camera_0", "camera_1")[0, 3] == pytest.approx(0.537, abs=1e-3)


def test_kitti_object_round_trip(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "calibration" / "kitti_object" / "calib" / "000000.txt"
    rig = read_kitti(path)
    write_object(rig, tmp_path / "out.txt", {k: f"camera_{k}" for k in range(4)})
    again = read_kitti(tmp_path / "out.txt")
    for name in ("camera_2", "velodyne", "imu"):
        np.testing.assert_allclose(
            again.transform("camera_0", name), rig.transform("camera_0", name), atol=1e-9
        )
    assert again.camera("camera_3") == rig.camera("camera_3")


def test_euroc_sensors_are_placed_in_the_body(shared_data: Path) -> None:
    rig = read_euroc(shared_data / "euroc_micro")
    assert set(rig.cameras) == {"cam0", "cam1"}
    assert rig.camera("cam0").distortion[0] == -0.28340811
    baseline = rig.transform("cam0", "cam1")
    assert np.linalg.norm(baseline[:3, 3]) == pytest.approx(0.11, abs=1e-3)
    np.testing.assert_allclose(rig.transform("body", "imu0"), np.eye(4))


def test_files_that_are_something_else_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="cannot be read"):
        read_kitti(tmp_path / "absent.txt")
    (tmp_path / "other.txt").write_text("hello: world\n")
    with pytest.raises(CalibrationError, match="no projection matrix"):
        read_kitti(tmp_path / "other.txt")
    (tmp_path / "short.txt").write_text("P0: 1 2 3\n")
    with pytest.raises(CalibrationError, match="P0 needs 12 numbers, found 3"):
        read_kitti(tmp_path / "short.txt")
    with pytest.raises(CalibrationError, match=r"no sensor\.yaml"):
        read_euroc(tmp_path)
    (tmp_path / "cam0").mkdir()
    (tmp_path / "cam0" / "sensor.yaml").write_text("%YAML:1.0\nsensor_type: camera\n")
    with pytest.raises(CalibrationError, match="camera needs"):
        read_euroc(tmp_path)


ASL_LENS = (458.654, 457.296, 367.215, 248.375, (-0.28340811, 0.07395907, 0.00019359, 1.76187114e-05))


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("asl_camera_without_sensor_type", "cam0"),
        ("asl_camera_without_sensor_type/cam0", "cam0"),
        ("asl_camera_without_sensor_type/cam0/sensor.yaml", "cam0"),
        ("kimera_params/LeftCameraParams.yaml", "left_cam"),
    ],
)
def test_an_asl_camera_is_one_without_saying_so(shared_data: Path, place: str, name: str) -> None:
    found = import_calibration(shared_data / "cases2" / place)
    camera = found.calibration.camera(name)
    assert found.format == "euroc"
    assert (camera.fx, camera.fy, camera.cx, camera.cy, camera.distortion) == ASL_LENS
    assert (camera.width, camera.height, camera.model) == (752, 480, "radtan")
    shift = found.calibration.transform("body", name)[:3, 3]
    np.testing.assert_allclose(shift, (-0.0216401, -0.0646770, 0.0098107), atol=1e-6)


def test_a_urdf_with_macros_in_its_names_is_refused(shared_data: Path) -> None:
    with pytest.raises(CalibrationError, match="run xacro"):
        import_calibration(shared_data / "cases2/urdf_unexpanded/turtlebot3_waffle.urdf")


def test_a_map_beside_the_matrices_of_opencv_does_no_harm(shared_data: Path) -> None:
    found = import_calibration(shared_data / "cases2/opencv_nested/camera.yml")
    camera = found.calibration.camera("cam")
    assert (found.format, camera.fx, camera.cx, camera.width) == ("opencv", 500.0, 320.0, 640)
    assert camera.distortion[0] == 0.1


def made(shared_data: Path, case: str, folder: Path) -> dict[str, Any]:
    """Write a case that users met into a folder; return what is right."""
    script = shared_data.parent / "cases" / f"{case}.py"
    if not script.is_file():
        pytest.skip(f"{script} is absent")
    done = subprocess.run([sys.executable, script, folder], capture_output=True, text=True, check=True)
    right: dict[str, Any] = json.loads(done.stdout)
    return right


def test_a_camera_info_as_a_topic_echo_prints_it_is_read(shared_data: Path, tmp_path: Path) -> None:
    right = made(shared_data, "camera_info_echoed", tmp_path)
    for name in right["files"]:
        found = import_calibration(tmp_path / name)
        camera = found.calibration.camera("front_optical")
        assert (found.format, found.findings) == ("ros", ())
        assert (camera.model, camera.fx, [camera.width, camera.height]) == (
            right["model"],
            right["fx"],
            right["size"],
        )


def test_the_calibrators_fisheye_file_is_no_plumb_bob(shared_data: Path, tmp_path: Path) -> None:
    right = made(shared_data, "camera_info_fisheye_key", tmp_path)
    camera = import_calibration(tmp_path / "ost.yaml").calibration.camera("front")
    assert (camera.model, list(camera.distortion)) == (right["model"], right["distortion"])


CAMERA = (
    "{camera_model: pinhole, intrinsics: [300, 301, 376, 240], distortion_model: radtan, "
    "distortion_coeffs: [0, 0, 0, 0], resolution: [752, 480]}"
)


def sentences(path: Path) -> str:
    return " ".join(reason for finding in import_calibration(path).findings for reason in finding.reasons)


def test_a_camera_of_a_kalibr_chain_under_another_name_is_said_to_be_left_out(tmp_path: Path) -> None:
    path = tmp_path / "camchain.yaml"
    path.write_text(f"cam0: {CAMERA}\nright: {CAMERA}\n")
    assert import_calibration(path).status is Status.FAILED
    assert "right in camchain.yaml is a camera" in sentences(path)
    assert "call them cam0, cam1" in sentences(path)
    path.write_text(f"left: {CAMERA}\nright: {CAMERA}\n")
    with pytest.raises(CalibrationError, match="no cam0 and no imu0 in it: Kalibr numbers"):
        import_calibration(path)


@pytest.mark.parametrize(
    ("size", "is_swapped"), [((480, 640), True), ((640, 480), False), ((500, 400), False)]
)
def test_a_width_and_height_that_were_swapped_are_found(
    size: tuple[int, int], is_swapped: bool, tmp_path: Path
) -> None:
    path = tmp_path / "camera.yaml"
    path.write_text(
        f"image_width: {size[0]}\nimage_height: {size[1]}\ncamera_name: front\n"
        "camera_matrix: {rows: 3, cols: 3, data: [400, 0, 318, 0, 400, 243, 0, 0, 1]}\n"
        "distortion_model: plumb_bob\ndistortion_coefficients: {rows: 1, cols: 4, data: [0, 0, 0, 0]}\n"
    )
    assert ("in the middle of 640x480 images, not of 480x640" in sentences(path)) is is_swapped


def test_a_link_with_two_parents_is_found(tmp_path: Path) -> None:
    joints = "".join(
        f'<joint name="{parent}_c" type="fixed"><parent link="{parent}"/><child link="c"/></joint>'
        for parent in ("a", "b")
    )
    path = tmp_path / "rig.urdf"
    path.write_text(f'<robot name="r">{joints}</robot>')
    assert "c hangs at a and at b (joint b_c)" in sentences(path)


def test_a_file_storage_that_is_cut_off_is_named_without_the_words_of_the_library(tmp_path: Path) -> None:
    path = tmp_path / "camera.xml"
    path.write_text(
        '<?xml version="1.0"?>\n<opencv_storage>\n<camera_matrix type_id="opencv-matrix"><rows>3</rows>'
    )
    with pytest.raises(CalibrationError, match="is cut off or was edited; copy it again") as caught:
        import_calibration(path)
    assert "cpp" not in str(caught.value)
