"""Calibration files of other tools: what they say is understood, and what is written reads back the same."""

import contextlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sensorium.calibration.edges import Edge
from sensorium.calibration.formats import foxglove, kalibr, kitti, opencv, pjlab, ros
from sensorium.calibration.formats.detect import import_calibration
from sensorium.calibration.geometry import (
    Intrinsics,
    difference,
    inverse,
    project,
    rotation_from_rpy,
    small_motion,
    transform,
)
from sensorium.calibration.rig_document import RigCalibration
from sensorium.errors import CalibrationError
from sensorium.verdict import Status

# Quaternions and angles of rotations lose up to a few rounding errors of 1e-16 per operation.
EXACT = 1e-9

Reader = Callable[[Path], RigCalibration]


def same_camera(a: Intrinsics, b: Intrinsics) -> None:
    """Check that two cameras project alike, however many zeros their lists of coefficients have."""
    assert (a.width, a.height) == (b.width, b.height)
    grid = np.stack(np.meshgrid(np.linspace(-0.4, 0.4, 5), np.linspace(-0.3, 0.3, 5), [1.0]), -1).reshape(
        -1, 3
    )
    np.testing.assert_allclose(project(grid, a), project(grid, b), rtol=0, atol=1e-6)


def same_mounts(a: RigCalibration, b: RigCalibration, frames: tuple[str, ...]) -> None:
    """Check that both know the same pairs of these frames and place them alike."""
    for parent in frames:
        for child in frames:
            assert a.has_transform(parent, child) == b.has_transform(parent, child), (parent, child)
            if a.has_transform(parent, child):
                gap = difference(a.transform(parent, child), b.transform(parent, child))
                assert float(np.abs(gap).max()) < 1e-7, (parent, child)


# -- rigs at random

ANGLES = st.floats(-3.1, 3.1)
LENGTHS = st.floats(-3.0, 3.0)
SMALL = st.floats(-0.05, 0.05)


@st.composite
def transforms(draw: st.DrawFn) -> np.ndarray[Any, np.dtype[np.float64]]:
    rpy = [draw(ANGLES), draw(st.floats(-1.5, 1.5)), draw(ANGLES)]
    return transform(rotation_from_rpy(*rpy), [draw(LENGTHS) for _ in range(3)])


@st.composite
def cameras(draw: st.DrawFn, models: tuple[str, ...], size: tuple[int, int] = (1280, 720)) -> Intrinsics:
    model = draw(st.sampled_from(models))
    count = draw(st.sampled_from(Intrinsics.MODELS[model]))
    f, aspect = draw(st.floats(300, 2000)), draw(st.floats(0.95, 1.05))
    centre = size[0] / 2 + draw(st.floats(-40, 40)), size[1] / 2 + draw(st.floats(-40, 40))
    return Intrinsics(model, *size, f, f * aspect, *centre, tuple(draw(SMALL) for _ in range(count)))


@st.composite
def rigs(
    draw: st.DrawFn,
    models: tuple[str, ...] = ("pinhole", "radtan", "rational", "equidistant"),
    names: tuple[str, ...] = ("front_left", "front_right", "rear"),
    others: tuple[str, ...] = ("body", "lidar", "imu"),
) -> RigCalibration:
    """Cameras and other frames, joined into one tree."""
    frames = draw(st.permutations((*names, *others)))
    edges = [
        Edge(frames[draw(st.integers(0, k - 1))], frames[k], draw(transforms()))
        for k in range(1, len(frames))
    ]
    return RigCalibration(
        "bench", cameras={name: draw(cameras(models)) for name in names}, edges=tuple(edges)
    )


quick = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@quick
@given(rig=rigs(("pinhole", "radtan", "equidistant")))
def test_a_kalibr_chain_reads_back_as_it_was_written(rig: RigCalibration, tmp_path: Path) -> None:
    short = {name: replace(camera, distortion=camera.distortion[:4]) for name, camera in rig.cameras.items()}
    rig = replace(rig, cameras=short)
    notes = kalibr.write(rig, tmp_path / "camchain.yaml")
    found = import_calibration(tmp_path / "camchain.yaml")
    assert found.format == "kalibr"
    for name, camera in rig.cameras.items():
        same_camera(found.calibration.camera(name), camera)
    same_mounts(found.calibration, rig, ("front_left", "front_right", "rear", "imu"))
    assert notes == ("left out, the format has no place for it: body, lidar",)
    assert not [finding for finding in found.findings if finding.check == "loop_closure"]


@quick
@given(rig=rigs())
def test_a_ros_folder_reads_back_as_it_was_written(rig: RigCalibration, tmp_path: Path) -> None:
    assert ros.write(rig, tmp_path) == ()
    found = import_calibration(tmp_path).calibration
    for name, camera in rig.cameras.items():
        same_camera(found.camera(name), camera)
    same_mounts(found, rig, rig.frames)


@quick
@given(rig=rigs())
def test_an_mcap_file_of_foxglove_messages_reads_back_as_it_was_written(
    rig: RigCalibration, tmp_path: Path
) -> None:
    foxglove.write(rig, tmp_path / "rig.mcap", utc_ns=1_700_000_000_123_456_789)
    found = import_calibration(tmp_path / "rig.mcap").calibration
    for name, camera in rig.cameras.items():
        same_camera(found.camera(name), camera)
    same_mounts(found, rig, rig.frames)


@quick
@given(rig=rigs(names=("left", "right"), others=("lidar",)), suffix=st.sampled_from((".yml", ".xml")))
def test_an_opencv_file_reads_back_as_it_was_written(
    rig: RigCalibration, suffix: str, tmp_path: Path
) -> None:
    left = rig.cameras["left"]
    right = replace(left, fx=left.fx + 3.0, cx=left.cx - 2.5)
    rig = replace(rig, cameras={"left": left, "right": right})
    opencv.write(rig, tmp_path / f"stereo{suffix}")
    found = import_calibration(tmp_path / f"stereo{suffix}").calibration
    for name, camera in rig.cameras.items():
        same_camera(found.camera(name), camera)
    same_mounts(found, rig, ("left", "right"))


@quick
@given(rig=rigs(names=("left", "right"), others=("lidar",)))
def test_a_urdf_reads_back_as_it_was_written(rig: RigCalibration, tmp_path: Path) -> None:
    ros.write_urdf(rig, tmp_path / "rig.urdf")
    found = import_calibration(tmp_path / "rig.urdf")
    assert found.format == "urdf"
    same_mounts(found.calibration, rig, rig.frames)


@quick
@given(
    f=st.floats(300, 2000), baseline=st.floats(0.05, 1.0), T_rect_lidar=transforms(), T_lidar_imu=transforms()
)
def test_a_kitti_file_reads_back_as_it_was_written(
    f: float,
    baseline: float,
    T_rect_lidar: np.ndarray[Any, np.dtype[np.float64]],
    T_lidar_imu: np.ndarray[Any, np.dtype[np.float64]],
    tmp_path: Path,
) -> None:
    camera = Intrinsics("pinhole", 1242, 375, f, f, 620.5, 187.0)
    T_left_right = transform(np.eye(3), (baseline, 0, 0))
    edges = (
        Edge("camera_0", "camera_1", T_left_right),
        Edge("camera_0", "velodyne", T_rect_lidar),
        Edge("velodyne", "imu", T_lidar_imu),
    )
    rig = RigCalibration(cameras={"camera_0": camera, "camera_1": camera}, edges=edges)
    kitti.write(rig, tmp_path / "000000.txt")
    found = import_calibration(tmp_path / "000000.txt", size=(1242, 375)).calibration
    same_camera(found.camera("camera_1"), camera)
    same_mounts(found, rig, ("camera_0", "camera_1", "velodyne", "imu"))


# -- what real files say


def test_euroc_sensors_stand_where_their_files_say(shared_data: Path) -> None:
    found = import_calibration(shared_data / "euroc_micro")
    rig = found.calibration
    assert (found.format, found.findings) == ("euroc", ())
    assert rig.frames == ("body", "cam0", "cam1", "imu0")
    # Burri et al. 2016: the stereo pair has a baseline of 11 cm.
    assert abs(rig.transform("cam0", "cam1")[0, 3] - 0.110) < 1e-3
    single = import_calibration(shared_data / "euroc_micro/mav0/cam1/sensor.yaml").calibration
    assert single.calibration_id == rig.calibration_id


@pytest.mark.parametrize("writer", ["kalibr", "ros", "foxglove", "opencv", "urdf"])
def test_euroc_survives_every_format(shared_data: Path, tmp_path: Path, writer: str) -> None:
    rig = import_calibration(shared_data / "euroc_micro").calibration
    writers: dict[str, tuple[Callable[..., Any], str]] = {
        "kalibr": (kalibr.write, "camchain.yaml"),
        "ros": (ros.write, "ros"),
        "foxglove": (foxglove.write, "rig.mcap"),
        "opencv": (opencv.write, "stereo.yml"),
        "urdf": (ros.write_urdf, "rig.urdf"),
    }
    write, name = writers[writer]
    write(rig, tmp_path / name)
    found = import_calibration(tmp_path / name).calibration
    same_mounts(found, rig, ("cam0", "cam1"))
    if writer != "urdf":
        same_camera(found.camera("cam1"), rig.camera("cam1"))
    if writer in ("kalibr", "ros", "foxglove", "urdf"):
        same_mounts(found, rig, ("cam0", "imu0"))


KITTI_PLACES = ("kitti_object", "kitti_odom_stereo/sequence_1", "kitti_raw_0048", "kitti_raw_seq")


@pytest.mark.parametrize("place", KITTI_PLACES)
def test_all_kitti_layouts_are_read(shared_data: Path, place: str) -> None:
    found = import_calibration(shared_data / "calibration" / place)
    rig = found.calibration
    assert (found.format, found.findings) == ("kitti", ())
    # Geiger et al. 2013: cameras 0 and 1 stand 54 cm apart, camera 2 stands 6 cm to the left of camera 0.
    assert abs(rig.transform("camera_0", "camera_1")[0, 3] - 0.54) < 0.01
    if "camera_2" in rig.cameras:
        assert abs(rig.transform("camera_0", "camera_2")[0, 3] + 0.06) < 0.01
        assert abs(rig.transform("camera_2", "velodyne")[2, 3] + 0.27) < 0.1


def test_kitti_object_survives_its_own_writer(shared_data: Path, tmp_path: Path) -> None:
    for path in sorted((shared_data / "calibration/kitti_object/calib").glob("*.txt")):
        rig = import_calibration(path).calibration
        kitti.write(rig, tmp_path / path.name)
        camera = rig.camera("camera_2")
        again = import_calibration(tmp_path / path.name, size=(camera.width, camera.height)).calibration
        same_camera(again.camera("camera_2"), camera)
        same_mounts(again, rig, ("camera_0", "camera_1", "camera_2", "camera_3", "velodyne", "imu"))


def test_kitti_images_beside_the_calibration_give_its_size(shared_data: Path) -> None:
    for path in sorted((shared_data / "calibration/kitti_object/calib").glob("*.txt"))[:3]:
        image = cv2.imread(str(path.parent.parent / "image_2" / f"{path.stem}.png"))
        assert image is not None
        height, width = image.shape[:2]
        camera = import_calibration(path).calibration.camera("camera_2")
        assert (camera.width, camera.height) == (width, height)


def test_opencv_stereo_files_are_read_together(shared_data: Path, tmp_path: Path) -> None:
    given_file = shared_data / "calibration/opencv_stereo_chess/intrinsics.yml"
    (tmp_path / "intrinsics.yml").write_text(given_file.read_text())
    T_left_right = small_motion((0.01, -0.02, 0.005, 0.0834, 0.001, -0.002))
    storage = cv2.FileStorage(str(tmp_path / "extrinsics.yml"), cv2.FILE_STORAGE_WRITE)
    storage.write("R", inverse(T_left_right)[:3, :3].copy())
    storage.write("T", inverse(T_left_right)[:3, 3:].copy())
    storage.release()
    for name in ("intrinsics.yml", "extrinsics.yml"):
        rig = import_calibration(tmp_path / name, size=(640, 480)).calibration
        assert rig.camera("left").fx == pytest.approx(534.80326845, abs=1e-8)
        np.testing.assert_allclose(rig.transform("left", "right"), T_left_right, atol=EXACT)


def test_an_image_size_that_no_file_gives_is_named_as_a_guess(shared_data: Path) -> None:
    path = shared_data / "calibration/opencv_stereo_chess/intrinsics.yml"
    guesses = [finding for finding in import_calibration(path).findings if finding.check == "image_size"]
    assert [(finding.subject, finding.status) for finding in guesses] == [
        ("left", Status.INSUFFICIENT),
        ("right", Status.INSUFFICIENT),
    ]
    assert not [f for f in import_calibration(path, size=(640, 480)).findings if f.check == "image_size"]


def test_the_samples_of_opencv_keep_size_and_residual(shared_data: Path) -> None:
    folder = shared_data / "calibration/opencv_stereo_chess"
    camera = import_calibration(folder / "left_intrinsics.yml").calibration.camera("left_intrinsics")
    assert (camera.width, camera.height, camera.model) == (640, 480, "radtan")
    assert camera.board_rms_px == pytest.approx(0.39259, abs=1e-5)


def test_the_flat_camera_info_of_acfr_is_a_fisheye(shared_data: Path, tmp_path: Path) -> None:
    found = import_calibration(shared_data / "calibration/acfr_board/camera_info.yaml")
    camera = found.calibration.camera("camera_info")
    assert (camera.model, camera.width, camera.height) == ("equidistant", 1920, 1208)
    assert found.findings == ()
    ros.write(found.calibration, tmp_path)
    same_camera(import_calibration(tmp_path / "camera_info.yaml").calibration.camera("camera_info"), camera)


def test_pjlab_files_say_where_the_lidar_stands(shared_data: Path) -> None:
    folder = shared_data / "calibration/pjlab_sensorscalibration/lidar2camera"
    rig = import_calibration(folder / "auto_calib/data").calibration
    T_camera_lidar = rig.transform("center_camera", "top_center_lidar")
    np.testing.assert_allclose(T_camera_lidar[:3, 3], (-0.0125114, -0.379526, -0.551037), atol=EXACT)
    text = import_calibration(folder / "auto_calib_v2.0/data/ours/3/calib.txt", size=(1920, 1200))
    np.testing.assert_allclose(text.calibration.transform("camera", "lidar"), T_camera_lidar, atol=1e-6)
    assert text.calibration.camera("camera").distortion == rig.camera("center_camera").distortion


def test_json_messages_of_foxglove_are_read_and_a_second_model_is_named(shared_data: Path) -> None:
    found = import_calibration(shared_data / "mcap_samples/custom-camera-model.mcap")
    assert found.calibration.camera("camera").fx == 800.0
    assert [(finding.check, finding.status) for finding in found.findings] == [
        ("repeated_camera", Status.SUSPECT)
    ]


# -- conventions

KALIBR = """
cam0:
  cam_overlaps: [1]
  camera_model: pinhole
  distortion_coeffs: [-0.2, 0.05, 0.0001, -0.0002]
  distortion_model: radtan
  intrinsics: [461.6, 460.3, 363.0, 248.1]
  resolution: [752, 480]
  rostopic: /cam0/image_raw
  timeshift_cam_imu: -0.0021
  T_cam_imu: {cam0}
cam1:
  cam_overlaps: [0]
  camera_model: pinhole
  distortion_coeffs: [-0.01, 0.02, -0.003, 0.001]
  distortion_model: equidistant
  intrinsics: [460.0, 459.0, 370.0, 250.0]
  resolution: [752, 480]
  rostopic: /cam1/image_raw
  T_cn_cnm1: {chain}
"""


def test_kalibr_keys_decide_the_direction(tmp_path: Path) -> None:
    T_imu_cam0, T_cam0_cam1 = (
        small_motion((0.3, -1.2, 0.5, 0.1, 0.2, -0.3)),
        small_motion((0, 0.01, 0, 0.11, 0, 0)),
    )
    text = KALIBR.format(cam0=inverse(T_imu_cam0).tolist(), chain=inverse(T_cam0_cam1).tolist())
    (tmp_path / "camchain-imucam.yaml").write_text(text)
    rig = import_calibration(tmp_path).calibration
    np.testing.assert_allclose(rig.transform("imu0", "cam0"), T_imu_cam0, atol=EXACT)
    np.testing.assert_allclose(rig.transform("imu0", "cam1"), T_imu_cam0 @ T_cam0_cam1, atol=EXACT)
    assert [edge.time_offset_s for edge in rig.edges] == [-0.0021, None]
    openvins = text.replace("T_cam_imu", "T_imu_cam")
    (tmp_path / "openvins.yaml").write_text(openvins)
    inverted = import_calibration(tmp_path / "openvins.yaml").calibration
    np.testing.assert_allclose(inverted.transform("imu0", "cam0"), inverse(T_imu_cam0), atol=EXACT)


def test_kalibr_keeps_the_time_shift_through_writing(tmp_path: Path) -> None:
    camera = Intrinsics("pinhole", 640, 480, 500.0, 500.0, 320.0, 240.0)
    rig = RigCalibration(cameras={"eye": camera}, edges=(Edge("eye", "imu", np.eye(4), time_offset_s=0.004),))
    kalibr.write(rig, tmp_path / "camchain.yaml")
    assert yaml.safe_load((tmp_path / "camchain.yaml").read_text())["cam0"]["timeshift_cam_imu"] == -0.004
    again = kalibr.read(tmp_path / "camchain.yaml")
    assert [(edge.parent, edge.child, edge.time_offset_s) for edge in again.edges] == [("imu", "eye", -0.004)]


def test_a_second_imu_of_kalibr_joins_the_first(tmp_path: Path) -> None:
    T_first_second = small_motion((0.1, 0.0, 0.3, 0.05, 0.0, 0.01))
    document = {
        "imu0": {
            "T_i_b": np.eye(4).tolist(),
            "accelerometer_noise_density": 0.01,
            "gyroscope_noise_density": 2e-4,
            "gyroscope_random_walk": 3e-6,
            "update_rate": 200.0,
        },
        "imu1": {"T_i_b": inverse(T_first_second).tolist(), "time_offset": 0.0012},
    }
    (tmp_path / "imu.yaml").write_text(yaml.safe_dump(document))
    found = import_calibration(tmp_path / "imu.yaml")
    np.testing.assert_allclose(found.calibration.transform("imu0", "imu1"), T_first_second, atol=EXACT)
    assert found.calibration.edges[0].time_offset_s == 0.0012
    (imu,) = found.calibration.imus.values()
    assert (imu.acc_noise_m_s2, imu.gyro_noise_rad_s, imu.gyro_walk_rad_s2) == (0.01, 2e-4, 3e-6)
    assert (imu.acc_walk_m_s3, imu.gyro_bias_rad_s) == (None, None)
    assert found.findings == ()


def test_the_right_camera_of_a_ros_pair_stands_one_baseline_to_the_right(tmp_path: Path) -> None:
    base = {
        "image_width": 640,
        "image_height": 480,
        "distortion_model": "plumb_bob",
        "camera_matrix": {"rows": 3, "cols": 3, "data": [500, 0, 320, 0, 500, 240, 0, 0, 1]},
        "distortion_coefficients": {"rows": 1, "cols": 5, "data": [0.1, 0, 0, 0, 0]},
        "rectification_matrix": {"rows": 3, "cols": 3, "data": np.eye(3).ravel().tolist()},
    }
    for name, shift in (("left", 0.0), ("right", -450.0 * 0.12)):
        projection = [450, 0, 320, shift, 0, 450, 240, 0, 0, 0, 1, 0]
        matrix = {"rows": 3, "cols": 4, "data": projection}
        document = {**base, "camera_name": name, "projection_matrix": matrix}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(document))
    rig = import_calibration(tmp_path).calibration
    assert rig.transform("rectified", "right")[0, 3] == pytest.approx(0.12, abs=EXACT)


@quick
@given(T=transforms(), camera=cameras(("pinhole", "radtan", "rational", "equidistant")))
def test_rectification_of_a_ros_pair_says_where_its_cameras_stand(
    T: np.ndarray[Any, np.dtype[np.float64]], camera: Intrinsics, tmp_path: Path
) -> None:
    T_left_right = small_motion((*(0.1 * T[:3, 0]), 0.2 + abs(T[0, 3]), 0.05 * T[1, 3], 0.05 * T[2, 3]))
    rig = RigCalibration(cameras={"a": camera, "b": camera}, edges=(Edge("a", "b", T_left_right),))
    ros.write(rig, tmp_path)
    (tmp_path / ros.URDF_FILE).unlink()
    same_mounts(import_calibration(tmp_path).calibration, rig, ("a", "b"))


def test_rpy_of_a_urdf_turns_about_fixed_axes_and_moving_joints_are_named(tmp_path: Path) -> None:
    text = """<robot name="arm"><link name="base"/><link name="lidar"/><link name="tool"/>
      <joint name="mast" type="fixed"><parent link="base"/><child link="lidar"/>
        <origin xyz="0.1 0 1.2" rpy="0.1 -0.2 1.5"/></joint>
      <joint name="wrist" type="revolute"><parent link="base"/><child link="tool"/></joint></robot>"""
    (tmp_path / "arm.urdf").write_text(text)
    found = import_calibration(tmp_path / "arm.urdf")
    expected = transform(rotation_from_rpy(0.1, -0.2, 1.5), (0.1, 0, 1.2))
    np.testing.assert_allclose(found.calibration.transform("base", "lidar"), expected, atol=EXACT)
    assert [(f.check, f.subject, f.status) for f in found.findings] == [
        ("moving_joint", "base~tool", Status.OK)
    ]


JOINT = "<robot><joint type='fixed'><parent link='a'/><child link='b'/><origin xyz='1 2'/></joint></robot>"


# -- what is damaged is refused with the file's name


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("empty.yaml", "", "no format"),
        ("list.yaml", "- 1\n- 2\n", "no format"),
        ("open.yaml", "cam0: {", "no format"),
        ("chain.yaml", "cam0: {camera_model: ocam}", "ocam"),
        ("chain2.yaml", "cam0: {camera_model: pinhole, intrinsics: [1, 2]}", "4"),
        ("chain3.yaml", "cam0: {camera_model: pinhole}", "intrinsics is missing"),
        ("info.yaml", "{D: [0], K: [1, 2], width: 4, height: 4}", "9 finite numbers"),
        ("info2.yaml", "{D: a, K: [1,0,1,0,1,1,0,0,1], width: 4, height: 4}", "list of numbers"),
        ("info3.yaml", "{D: [], K: [1,0,1,0,1,1,0,0,1], width: -4, height: 4}", "positive"),
        (
            "info4.yaml",
            "{D: [], K: [1,0,1,0,1,1,0,0,1], width: 4, height: 4, R: {rows: 3}}",
            "R.data is missing",
        ),
        ("lens.yaml", "{D: [], K: [1,0,1,0,1,1,0,0,1], width: 4, height: 4, distortion_model: ds}", "'ds'"),
        ("a.urdf", "<robot><joint", "not XML"),
        ("b.urdf", "<!DOCTYPE robot [<!ENTITY a 'b'>]><robot/>", "DOCTYPE"),
        ("c.urdf", "<robot name='x'/>", "no camera and no transform"),
        (
            "d.urdf",
            JOINT,
            "3 finite numbers",
        ),
        ("e.xml", "<opencv_storage><a>", "FileStorage"),
        ("f.yml", "%YAML:1.0\nM: !!opencv-matrix\n   rows: 3\n", "FileStorage"),
        ("g.txt", "P2: 1 2 3\nTr_velo_to_cam: 1\n", "12"),
        ("flat.txt", "P0: 1 0 0 0 0 1 0 0 0 0 0 0\n", "no inverse"),
        ("zero.txt", "P0: 0 0 0 0 0 0 0 0 0 0 0 0\n", "must be positive"),
        ("h.json", '{"a": {"param_type": "intrinsic"}}', "sensor_name"),
        ("i.json", "{", "no format"),
        ("j.mcap", b"\x89MCAP0\r\n\x00\x01", "MCAP"),
        ("k.bin", b"\xff\xfe\x00\x01", "cannot be read"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line_with_its_name(
    tmp_path: Path, name: str, content: str | bytes, what: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CalibrationError) as raised:
        import_calibration(path)
    assert name in str(raised.value)
    assert what in str(raised.value)
    assert "\n" not in str(raised.value)


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_no_damage_to_a_file_gets_past_our_own_error(data: st.DataObject, tmp_path: Path) -> None:
    rig = data.draw(rigs(("radtan",), ("left", "right"), ("lidar",)))
    left = replace(rig.cameras["left"], distortion=(0.1, 0.0, 0.0, 0.0))
    rig = replace(rig, cameras={"left": left, "right": left})
    writers: dict[str, Callable[..., Any]] = {
        "camchain.yaml": kalibr.write,
        "rig.urdf": ros.write_urdf,
        "stereo.yml": opencv.write,
        "stereo.xml": opencv.write,
        "rig.mcap": foxglove.write,
        "rig.yaml": lambda calibration, path: calibration.save(path),
    }
    name = data.draw(st.sampled_from(sorted(writers)))
    path = tmp_path / name
    writers[name](rig, path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(1, 3))] = data.draw(st.binary(max_size=3))
        if not content:
            break
    path.write_bytes(bytes(content[: data.draw(st.integers(1, max(len(content), 1)))]))
    with contextlib.suppress(CalibrationError):
        import_calibration(path)


def test_json_of_another_kind_is_no_calibration(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"rows": 3}))
    with pytest.raises(CalibrationError, match="no format"):
        import_calibration(tmp_path / "a.json")
    assert not pjlab.is_text_form(tmp_path / "a.json")
