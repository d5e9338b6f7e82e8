"""`sensorium calibration check` on folders as data sets lay them out, with the calibration of whichever tool."""

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from sensorium.agent.calibrating.asl_folder import read_gyro
from sensorium.agent.calibrating.nuscenes_folder import nuscenes_folder, read_sweep
from sensorium.agent.cli import app
from sensorium.calibration.formats.detect import import_calibration
from sensorium.calibration.geometry import (
    Array,
    Intrinsics,
    inverse,
    project,
    quaternion_from_rotation,
    rotation_exp,
    rotation_from_rpy,
    small_motion,
    transform,
)
from sensorium.errors import CalibrationError


def checked(*arguments: object) -> tuple[int, dict[str, Any]]:
    found = CliRunner().invoke(
        app, ["calibration", "check", *map(str, arguments), "--json"], catch_exceptions=False
    )
    document: dict[str, Any] = json.loads(found.stdout)
    return found.exit_code, document


def of(document: dict[str, Any], check: str, pair: str) -> dict[str, Any]:
    (found,) = (each for each in document["checks"] if (each["check"], each["subject"]) == (check, pair))
    return dict(found)


# -- TUM-VI: mav0 without sensor.yaml, Kalibr's chain in dso/

KB = (0.0034, 0.0007, -0.002, 0.0002)
LENS = Intrinsics("equidistant", 320, 320, 119.0, 119.2, 159.0, 161.0, KB)
START_NS = 1_520_530_308_199_447_626
SHIFT_S = 0.012
SECONDS = 12.0
# The camera's z is the IMU's x, its x the IMU's -y, its y the IMU's -z.
R_IMU_CAM = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])


def rate_of(time_s: Array) -> Array:
    """Return the rig's turning in the IMU's axes (rad/s): about all three, as by hand."""
    return np.stack(
        [0.5 * np.sin(2.1 * time_s), 0.6 * np.cos(1.7 * time_s + 1), 0.4 * np.sin(2.9 * time_s + 2)], axis=1
    )


@pytest.fixture(scope="module")
def tumvi(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve seconds of a turning fisheye in a sphere of dots, stamped 12 ms too early."""
    folder = tmp_path_factory.mktemp("tumvi")
    images, imu = folder / "mav0/cam0/data", folder / "mav0/imu0"
    images.mkdir(parents=True)
    imu.mkdir()
    rng = np.random.default_rng(3)
    dots = rng.normal(size=(3000, 3))
    sizes, greys = rng.integers(1, 4, len(dots)), rng.integers(60, 256, len(dots))
    step_s = 0.0005
    fine_s = np.arange(0.0, SECONDS, step_s)
    rates = rate_of(fine_s)
    R_world_imu = np.eye(3)
    for k, rate in enumerate(rates):
        if k % 200 == 0:
            stamp = START_NS + round((fine_s[k] - SHIFT_S) * 1e9)
            cv2.imwrite(str(images / f"{stamp}.png"), drawn(dots @ R_world_imu @ R_IMU_CAM, sizes, greys))
        R_world_imu = R_world_imu @ rotation_exp(rate * step_s)
    rows = "".join(
        f"{START_NS + round(at * 1e9)},{w[0]:.9f},{w[1]:.9f},{w[2]:.9f},0,0,9.81\n"
        for at, w in zip(fine_s[::10], rates[::10], strict=True)
    )
    (imu / "data.csv").write_text("#timestamp [ns],w_x,w_y,w_z,a_x,a_y,a_z\n" + rows)
    (folder / "dso").mkdir()
    (folder / "dso/camchain.yaml").write_text(
        "cam0:\n  T_cam_imu: [[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]]\n"
        "  camera_model: pinhole\n  distortion_model: equidistant\n"
        f"  distortion_coeffs: {list(KB)}\n  intrinsics: [119.0, 119.2, 159.0, 161.0]\n"
        f"  resolution: [320, 320]\n  timeshift_cam_imu: {SHIFT_S}\n"
    )
    return folder


def drawn(points: Array, sizes: Any, greys: Any) -> Array:
    image: Any = np.full((320, 320), 30, np.uint8)
    for (u, v), size, grey in zip(project(points, LENS), sizes, greys, strict=True):
        if np.isfinite(u) and 0 <= u < 320 and 0 <= v < 320:
            centre = (round(u * 16), round(v * 16))
            cv2.circle(image, centre, int(size) * 16, int(grey), -1, cv2.LINE_AA, 4)
    found: Array = cv2.GaussianBlur(image, (0, 0), 0.8)
    return found


def test_a_tumvi_folder_is_checked_against_its_imu(tumvi: Path) -> None:
    code, found = checked(tumvi)
    verdict = of(found, "imu_rotation", "cam0~imu0")
    assert (code, verdict["status"]) == (0, "ok"), verdict["reasons"]
    assert set(verdict["degrees"]) == {"rotation_x", "rotation_y", "rotation_z", "time_offset"}


def test_a_shift_that_the_calibration_does_not_know_is_found(tumvi: Path, tmp_path: Path) -> None:
    chain = (tumvi / "dso/camchain.yaml").read_text().replace(str(SHIFT_S), "0.0")
    (tmp_path / "camchain.yaml").write_text(chain)
    code, found = checked(tumvi, "--calibration", tmp_path / "camchain.yaml")
    verdict = of(found, "imu_rotation", "cam0~imu0")
    assert (code, verdict["status"]) == (1, "failed")
    assert verdict["degrees"]["time_offset"]["value"] == pytest.approx(1e3 * SHIFT_S, abs=2.0)


def orbslam(folder: Path, R: Array) -> Path:
    rows = ", ".join(f"{value:g}" for row in np.column_stack([R, np.zeros(3)]) for value in row)
    lens = zip(
        ("fx", "fy", "cx", "cy", "k1", "k2", "k3", "k4"), (119.0, 119.2, 159.0, 161.0, *KB), strict=True
    )
    text = '%YAML:1.0\nFile.version: "1.0"\nCamera.type: "KannalaBrandt8"\nCamera.width: 320\nCamera.height: 320\n'
    text += "".join(f"Camera1.{key}: {value}\n" for key, value in lens)
    text += f"IMU.T_b_c1: !!opencv-matrix\n   rows: 4\n   cols: 4\n   dt: f\n   data: [{rows}, 0, 0, 0, 1]\n"
    (folder / "settings.yaml").write_text(text)
    return folder / "settings.yaml"


def test_an_inverted_tbc_of_orbslam_is_found_in_the_motion(tumvi: Path, tmp_path: Path) -> None:
    code, found = checked(tumvi, "--calibration", orbslam(tmp_path, R_IMU_CAM.T))
    verdict = of(found, "imu_rotation", "cam0~imu0")
    assert (code, verdict["status"]) == (1, "failed")
    assert [each["check"] for each in found["findings"] if each["status"] == "failed"] == ["inverted"]
    assert "use its inverse" in verdict["reasons"][0]


def test_a_folder_without_any_calibration_says_where_it_looked(tumvi: Path, tmp_path: Path) -> None:
    shutil.copytree(tumvi / "mav0", tmp_path / "mav0")
    (tmp_path / "dso").mkdir()
    with pytest.raises(CalibrationError, match=r"no calibration in .*/dso: give one with --calibration"):
        checked(tmp_path)


def test_an_imu_list_in_seconds_names_the_unit(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("#t\n1520530308.199,0,0,0,0,0,9.81\n")
    with pytest.raises(CalibrationError, match="stamps in seconds must be multiplied by 1e9"):
        read_gyro(tmp_path / "data.csv")


# -- nuScenes


@pytest.fixture(scope="module")
def drive(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """KITTI's frames as nuScenes tables: a log for each frame, and a vehicle that drives on from sweep to image."""
    source, root = shared_data / "calibration/kitti_object", tmp_path_factory.mktemp("nuscenes")
    rows: dict[str, list[dict[str, Any]]] = {
        "sensor": [{"token": "cam", "channel": "CAM_FRONT"}, {"token": "lid", "channel": "LIDAR_TOP"}],
        "calibrated_sensor": [],
        "ego_pose": [],
        "sample_data": [],
        "sample": [],
        "scene": [],
    }
    for folder in ("samples/CAM_FRONT", "samples/LIDAR_TOP"):
        (root / folder).mkdir(parents=True)
    for number, image in enumerate(sorted((source / "image_2").glob("*.png"))):
        add_frame(rows, root, source, image, number)
    (root / "v1.0-test").mkdir()
    for name, found in rows.items():
        (root / f"v1.0-test/{name}.json").write_text(json.dumps(found))
    return root


def add_frame(
    rows: dict[str, list[dict[str, Any]]], root: Path, source: Path, image: Path, number: int
) -> None:
    known = import_calibration(source / f"calib/{image.stem}.txt").calibration
    camera = known.camera("camera_2")
    # Somewhere on a vehicle that stands anywhere, turns and drives a metre between sweep and image.
    T_ego_cam = transform(rotation_from_rpy(-1.6, 0.02, -1.5), (1.7, 0.1, 1.5))
    then = small_motion((0.0, 0.0, 0.3 * number, 100.0 + number, 50.0, 1.0))
    driven = small_motion((0.0, 0.0, -0.01, -1.0, 0.02, 0.0))
    now = then @ inverse(driven)
    T_ego_lidar = inverse(driven) @ T_ego_cam @ known.transform("camera_2", "velodyne")
    for kind, T in (("cam", T_ego_cam), ("lid", T_ego_lidar)):
        K = camera.K.tolist() if kind == "cam" else []
        rows["calibrated_sensor"].append(
            {"token": f"{kind}{number}", "sensor_token": kind, "camera_intrinsic": K, **pose(T)}
        )
    rows["ego_pose"] += [{"token": f"now{number}", **pose(now)}, {"token": f"then{number}", **pose(then)}]
    rows["scene"].append({"token": f"scene{number}", "name": f"scene-{number:04d}"})
    rows["sample"].append({"token": f"sample{number}", "scene_token": f"scene{number}"})
    picture, sweep = f"samples/CAM_FRONT/{image.name}", f"samples/LIDAR_TOP/{image.stem}.pcd.bin"
    shutil.copy(image, root / picture)
    points = np.fromfile(source / f"velodyne/{image.stem}.bin", "<f4").reshape(-1, 4)
    azimuth = np.mod(np.arctan2(points[:, 1], points[:, 0]), 2 * np.pi)
    ring = np.concatenate([[0], np.cumsum(np.diff(azimuth) < -np.pi)])
    np.column_stack([points, ring]).astype("<f4").tofile(root / sweep)
    for kind, name, at in (("cam", picture, "now"), ("lid", sweep, "then")):
        is_image = kind == "cam"
        rows["sample_data"].append(
            {
                "token": f"data-{kind}{number}",
                "sample_token": f"sample{number}",
                "calibrated_sensor_token": f"{kind}{number}",
                "ego_pose_token": f"{at}{number}",
                "is_key_frame": True,
                "timestamp": 1_000_000 * number,
                "filename": name,
                "width": camera.width if is_image else None,
                "height": camera.height if is_image else None,
            }
        )


def pose(T: Array) -> dict[str, Any]:
    x, y, z, w = quaternion_from_rotation(T[:3, :3]).tolist()
    return {"rotation": [w, x, y, z], "translation": T[:3, 3].tolist()}


def test_a_nuscenes_folder_reads_as_the_same_frames_do_in_kittis(drive: Path, shared_data: Path) -> None:
    _, found = checked(drive)
    _, kitti = checked(shared_data / "calibration/kitti_object")
    mine = of(found, "camera_lidar", "CAM_FRONT~LIDAR_TOP")
    theirs = of(kitti, "camera_lidar", "camera_2~velodyne")
    assert mine["status"] == theirs["status"]
    for name, degree in theirs["degrees"].items():
        # Laser numbers as our reader finds them and as the test counts them differ in few returns.
        assert abs(mine["degrees"][name]["value"] - degree["value"]) < degree["sigma"], name
    assert [each["check"] for each in found["findings"]].count("repeated_camera") == 1
    assert nuscenes_folder(drive / "v1.0-test") == nuscenes_folder(drive) == drive / "v1.0-test"


def test_a_sweep_of_another_width_is_named(tmp_path: Path) -> None:
    np.zeros(12, "<f4").tofile(tmp_path / "a.pcd.bin")
    with pytest.raises(CalibrationError, match="12 numbers are no rows of five"):
        read_sweep(tmp_path / "a.pcd.bin")


# -- KITTI raw: the day's calibration above its drives, images as taken

RAW = """calib_time: 09-Jan-2012 13:57:47
S_00: 1.392000e+03 5.120000e+02
K_00: 980.0 0 690.0 0 981.0 247.0 0 0 1
D_00: -0.37 0.2 0.001 -0.002 -0.07
R_00: 1 0 0 0 1 0 0 0 1
T_00: 0 0 0
S_rect_00: 1.242000e+03 3.750000e+02
R_rect_00: 1 0 0 0 1 0 0 0 1
P_rect_00: 721.5 0 609.5 0 0 721.5 172.8 0 0 0 1 0
S_01: 1.392000e+03 5.120000e+02
K_01: 985.0 0 695.0 0 986.0 242.0 0 0 1
D_01: -0.36 0.2 0.001 -0.002 -0.07
R_01: 1 0 0 0 1 0 0 0 1
T_01: -0.54 0.005 -0.01
S_rect_01: 1.242000e+03 3.750000e+02
R_rect_01: 1 0 0 0 1 0 0 0 1
P_rect_01: 721.5 0 609.5 -389.61 0 721.5 172.8 0 0 0 1 0
"""
VELO = "calib_time: 15-Mar-2012 11:37:16\nR: 0 -1 0 0 0 -1 1 0 0\nT: 0.01 -0.07 -0.27\n"
IMU = "calib_time: 25-May-2012 16:47:16\nR: 1 0 0 0 1 0 0 0 1\nT: -0.81 0.32 -0.80\n"


def raw_day(folder: Path, size: tuple[int, int]) -> Path:
    for name, text in (("cam_to_cam", RAW), ("velo_to_cam", VELO), ("imu_to_velo", IMU)):
        (folder / f"calib_{name}.txt").write_text(text)
    images = folder / "2011_09_26_drive_0001_sync/image_00/data"
    images.mkdir(parents=True)
    cv2.imwrite(str(images / "0000000000.png"), np.zeros((size[1], size[0]), np.uint8))
    return images.parent.parent


def test_a_drive_finds_the_calibration_of_its_day(tmp_path: Path) -> None:
    found = import_calibration(raw_day(tmp_path, (1242, 375)))
    rig = found.calibration
    # The IMU's (10.81, -0.32, 0.8) is the Velodyne's (10, 0, 0), 10 m ahead: the camera's (0.01, -0.07, 9.73).
    point = np.array([10.81, -0.32, 0.8, 1.0])
    np.testing.assert_allclose((rig.transform("camera_0", "imu") @ point)[:3], (0.01, -0.07, 9.73), atol=1e-9)
    np.testing.assert_allclose(rig.transform("camera_0", "camera_1")[:3, 3], (0.54, 0, 0), atol=1e-9)
    assert rig.camera("camera_0").model == "pinhole"


def test_images_before_rectification_get_their_own_lens(tmp_path: Path) -> None:
    found = import_calibration(raw_day(tmp_path, (1392, 512)), size=(1392, 512)).calibration
    camera = found.camera("camera_1")
    assert (camera.fx, camera.cx, camera.width) == (985.0, 695.0, 1392)
    assert camera.distortion == (-0.36, 0.2, 0.001, -0.002, -0.07)
    # T_01 takes points of camera 0 into camera 1: its centre is at (0.54, -0.005, 0.01) of camera 0.
    np.testing.assert_allclose(
        found.transform("camera_0", "camera_1")[:3, 3], (0.54, -0.005, 0.01), atol=1e-12
    )


LABELLED = (
    "P0: 700 0 600 0 0 700 180 0 0 0 1 0\nP1: 700 0 600 -378 0 700 180 0 0 0 1 0\n"
    "Tr: 0 -1 0 0.01 0 0 -1 -0.07 1 0 0 -0.27\n"
)


@pytest.mark.parametrize("is_labelled", [True, False])
def test_odometry_is_read_with_labels_and_without(tmp_path: Path, is_labelled: bool) -> None:
    rows = LABELLED.splitlines()
    text = LABELLED if is_labelled else "\n".join(row.split(": ")[1] for row in rows[:2])
    (tmp_path / "calib.txt").write_text(text)
    (tmp_path / "poses.txt").write_text("1 0 0 0 0 1 0 0 0 0 1 0\n" * 3)
    found = import_calibration(tmp_path, size=(1226, 370)).calibration
    np.testing.assert_allclose(found.transform("camera_0", "camera_1")[:3, 3], (0.54, 0, 0), atol=1e-12)
    if is_labelled:
        seen = found.transform("camera_1", "velodyne") @ np.array([10.0, 0, 0, 1])
        np.testing.assert_allclose(seen[:3], (0.01 - 0.54, -0.07, 9.73), atol=1e-12)


def test_poses_are_no_calibration(tmp_path: Path) -> None:
    (tmp_path / "poses.txt").write_text("1 0 0 0 0 1 0 0 0 0 1 0\n" * 3)
    with pytest.raises(CalibrationError, match=r"are poses \(KITTI odometry\), give calib.txt"):
        import_calibration(tmp_path / "poses.txt")
