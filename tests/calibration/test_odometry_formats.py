"""Settings of visual-inertial programs, against numbers worked out by hand beside each file.

One rig is written in every dialect: the camera's z is the IMU's x, its x the IMU's -y, its y the IMU's -z, and it
stands at (0.1, 0.02, -0.03) of the IMU; a second camera stands 0.12 m to its right. So the IMU's point (4.1, -0.38,
0.17) is the camera's (0.4, -0.2, 4), x/z = 0.1, y/z = -0.05.
"""

import contextlib
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damaged_text import damaged

from sensorium.calibration.formats.detect import ImportResult, import_calibration
from sensorium.calibration.geometry import apply, project
from sensorium.errors import CalibrationError
from sensorium.verdict import Status

POINT_IMU = np.array([[4.1, -0.38, 0.17]])
POINT_CAM = (0.4, -0.2, 4.0)
POINT_CAM1 = (0.28, -0.2, 4.0)
X, Y = 0.1, -0.05
RADTAN = (-0.2, 0.05, 0.001, -0.002)
# Brown by hand: r2 = 0.0125, radial = 1 - 0.2 * 0.0125 + 0.05 * 0.0125^2, p1 2xy + p2 (r2 + 2x2) and so on.
RADIAL = 1 - 0.2 * 0.0125 + 0.05 * 0.0125**2
RADTAN_UV = (
    460 * (X * RADIAL + 2 * 0.001 * X * Y - 0.002 * (0.0125 + 2 * X * X)) + 370,
    458 * (Y * RADIAL + 0.001 * (0.0125 + 2 * Y * Y) - 2 * 0.002 * X * Y) + 245,
)
KB = (0.003, 0.0007, -0.002, 0.0002)
RADIUS = np.hypot(X, Y)
THETA = np.arctan(RADIUS)
THETA_D = THETA * (1 + 0.003 * THETA**2 + 0.0007 * THETA**4 - 0.002 * THETA**6 + 0.0002 * THETA**8)
KB_UV = (191 * X * THETA_D / RADIUS + 255, 190 * Y * THETA_D / RADIUS + 257)
T_IMU_CAM = "[0, 0, 1, 0.1, -1, 0, 0, 0.02, 0, -1, 0, -0.03, 0, 0, 0, 1]"
# The second camera: 0.12 m along the camera's x, which is the IMU's -y.
T_IMU_CAM1 = "[0, 0, 1, 0.1, -1, 0, 0, -0.1, 0, -1, 0, -0.03, 0, 0, 0, 1]"
T_CAM_IMU = "[[0, -1, 0, 0.02], [0, 0, -1, -0.03], [1, 0, 0, -0.1], [0, 0, 0, 1]]"


def matrix(data: str, rows: int = 4, columns: int = 4) -> str:
    return f"!!opencv-matrix\n   rows: {rows}\n   cols: {columns}\n   dt: d\n   data: {data}"


def found_in(tmp_path: Path, name: str, text: str) -> ImportResult:
    (tmp_path / name).write_text(text)
    return import_calibration(tmp_path / name)


def lands(found: ImportResult, camera: str, uv: tuple[float, float], imu: str = "imu0") -> None:
    """Check where the IMU's point is in the camera's axes, and on its image."""
    rig = found.calibration
    seen = apply(rig.transform(camera, imu), POINT_IMU)
    np.testing.assert_allclose(seen, [POINT_CAM], atol=1e-9)
    np.testing.assert_allclose(project(seen, rig.camera(camera)), [uv], atol=1e-6)


def stands_right(found: ImportResult, imu: str = "imu0") -> None:
    seen = apply(found.calibration.transform("cam1", imu), POINT_IMU)
    np.testing.assert_allclose(seen, [POINT_CAM1], atol=1e-9)


def faults(found: ImportResult) -> list[tuple[str, Status]]:
    return [(each.check, each.status) for each in found.findings if each.status is not Status.OK]


# -- ORB-SLAM

ORB_HEAD = '%YAML:1.0\nCamera.type: "PinHole"\nCamera.width: 752\nCamera.height: 480\nCamera.RGB: 1\n'


def orb_lens(prefix: str) -> str:
    numbers = zip(
        ("fx", "fy", "cx", "cy", "k1", "k2", "p1", "p2"), (460, 458, 370, 245, *RADTAN), strict=True
    )
    return "".join(f"{prefix}.{key}: {value}\n" for key, value in numbers)


def test_orbslam_takes_points_of_the_camera_into_the_imu_by_either_key(tmp_path: Path) -> None:
    old = (
        ORB_HEAD
        + orb_lens("Camera")
        + f"Tbc: {matrix(T_IMU_CAM)}\nIMU.NoiseGyro: 1.7e-04\nIMU.AccWalk: 3e-3\n"
    )
    found = found_in(tmp_path, "old.yaml", old)
    assert found.format == "orbslam"
    lands(found, "cam0", RADTAN_UV)
    assert found.calibration.imus["imu0"].gyro_noise_rad_s == 1.7e-4
    assert found.calibration.imus["imu0"].acc_walk_m_s3 == 3e-3
    new = 'File.version: "1.0"\n' + orb_lens("Camera1") + orb_lens("Camera2")
    new = ORB_HEAD + new + f"Stereo.T_c1_c2: {matrix('[1,0,0,0.12,0,1,0,0,0,0,1,0,0,0,0,1]')}\n"
    found = found_in(tmp_path, "new.yaml", new + f"IMU.T_b_c1: {matrix(T_IMU_CAM)}\n")
    lands(found, "cam0", RADTAN_UV)
    stands_right(found)
    assert faults(found) == []


def test_orbslam_fisheyes_stand_by_tlr_of_three_rows(tmp_path: Path) -> None:
    lens = "".join(
        f"{prefix}.{key}: {value}\n"
        for prefix in ("Camera", "Camera2")
        for key, value in zip(
            ("fx", "fy", "cx", "cy", "k1", "k2", "k3", "k4"), (191, 190, 255, 257, *KB), strict=True
        )
    )
    text = '%YAML:1.0\nCamera.type: "KannalaBrandt8"\nCamera.width: 512\nCamera.height: 512\n' + lens
    text += f"Tlr: {matrix('[1,0,0,0.12,0,1,0,0,0,0,1,0]', rows=3)}\nTbc: {matrix(T_IMU_CAM)}\n"
    found = found_in(tmp_path, "tumvi.yaml", text)
    lands(found, "cam0", KB_UV)
    stands_right(found)


def test_orbslam_reads_what_only_opencv_forgives(tmp_path: Path) -> None:
    text = (
        ORB_HEAD
        + orb_lens("Camera")
        + f"Tbc: {matrix(T_IMU_CAM).replace('data: ', 'data:')}\nViewer.PointSize:2\n"
    )
    lands(found_in(tmp_path, "s.yaml", text), "cam0", RADTAN_UV)


def test_the_baseline_of_rectified_images_is_bf_by_fx(tmp_path: Path) -> None:
    plain = "Camera.fx: 400.0\nCamera.fy: 400.0\nCamera.cx: 320.0\nCamera.cy: 240.0\n"
    plain = "%YAML:1.0\n" + plain + "Camera.width: 640\nCamera.height: 480\n"
    found = found_in(tmp_path, "a.yaml", plain + "Camera.bf: 48.0\n")
    np.testing.assert_allclose(found.calibration.transform("cam0", "cam1")[:3, 3], (0.12, 0, 0), atol=1e-12)
    assert faults(found) == []
    depth = found_in(tmp_path, "b.yaml", plain + "Camera.bf: 40.0\nDepthMapFactor: 5000.0\n")
    assert "cam1" not in depth.calibration.cameras
    metres = found_in(tmp_path, "c.yaml", plain + "Camera.bf: 0.12\n")
    assert ("length_unit", Status.FAILED) in faults(metres)


def test_images_as_recorded_are_taken_where_orbslam_rectifies_itself(tmp_path: Path) -> None:
    # No turn: the right camera's projection is moved by -fx b = -48.
    K = matrix("[460,0,370,0,458,245,0,0,1]", 3, 3)
    eye = matrix("[1,0,0,0,1,0,0,0,1]", 3, 3)
    D = matrix(str([*RADTAN, 0.0]), 1, 5)
    sides = ""
    for side, shift in (("LEFT", 0), ("RIGHT", -48)):
        P = matrix(f"[400,0,360,{shift},0,400,240,0,0,0,1,0]", 3, 4)
        sides += f"{side}.height: 480\n{side}.width: 752\n{side}.K: {K}\n{side}.D: {D}\n"
        sides += f"{side}.R: {eye}\n{side}.P: {P}\n"
    text = (
        ORB_HEAD + "Camera.fx: 400\nCamera.fy: 400\nCamera.cx: 360\nCamera.cy: 240\nCamera.bf: 48\n" + sides
    )
    found = found_in(tmp_path, "euroc.yaml", text + f"Tbc: {matrix(T_IMU_CAM)}\n")
    lands(found, "cam0", RADTAN_UV)
    stands_right(found)
    wrong = found_in(tmp_path, "wrong.yaml", text.replace("Camera.bf: 48", "Camera.bf: 60"))
    assert ("baseline", Status.SUSPECT) in faults(wrong)


def test_a_scale_that_was_applied_already_is_found(tmp_path: Path) -> None:
    good = ORB_HEAD + orb_lens("Camera") + "Camera.imageScale: 0.5\n"
    assert faults(found_in(tmp_path, "good.yaml", good)) == []
    twice = good.replace("Camera.cx: 370", "Camera.cx: 185").replace("Camera.fx: 460", "Camera.fx: 230")
    twice = twice.replace("Camera.cy: 245", "Camera.cy: 122").replace("Camera.fy: 458", "Camera.fy: 229")
    assert ("image_scale", Status.FAILED) in faults(found_in(tmp_path, "twice.yaml", twice))


def test_the_order_of_colours_is_named(tmp_path: Path) -> None:
    found = found_in(tmp_path, "a.yaml", ORB_HEAD + orb_lens("Camera"))
    assert [each.status for each in found.findings if each.check == "colour_order"] == [Status.OK]
    odd = found_in(tmp_path, "b.yaml", ORB_HEAD.replace("RGB: 1", "RGB: 2") + orb_lens("Camera"))
    assert ("colour_order", Status.SUSPECT) in faults(odd)


# -- VINS and camodocal


def camodocal(kind: str, groups: dict[str, dict[str, float]], size: tuple[int, int]) -> str:
    text = f"%YAML:1.0\n---\nmodel_type: {kind}\ncamera_name: front\nimage_width: {size[0]}\nimage_height: {size[1]}\n"
    for group, numbers in groups.items():
        text += f"{group}:\n" + "".join(f"   {key}: {value}\n" for key, value in numbers.items())
    return text


PINHOLE_FILE = camodocal(
    "PINHOLE",
    {
        "distortion_parameters": dict(zip(("k1", "k2", "p1", "p2"), RADTAN, strict=True)),
        "projection_parameters": {"fx": 460, "fy": 458, "cx": 370, "cy": 245},
    },
    (752, 480),
)
KB_FILE = camodocal(
    "KANNALA_BRANDT",
    {
        "projection_parameters": dict(
            zip(("k2", "k3", "k4", "k5", "mu", "mv", "u0", "v0"), (*KB, 191, 190, 255, 257), strict=True)
        )
    },
    (512, 512),
)


def test_vins_fusion_names_its_camera_files(tmp_path: Path) -> None:
    (tmp_path / "left.yaml").write_text(PINHOLE_FILE)
    (tmp_path / "right.yaml").write_text(PINHOLE_FILE)
    text = '%YAML:1.0\nimu: 1\nnum_of_cam: 2\ncam0_calib: "left.yaml"\ncam1_calib: "right.yaml"\nimage_width: 752\n'
    text += f"image_height: 480\nbody_T_cam0: {matrix(T_IMU_CAM)}\nbody_T_cam1: {matrix(T_IMU_CAM1)}\n"
    text += "estimate_extrinsic: 0\nacc_n: 0.1\ntd: -0.0125\n"
    found = found_in(tmp_path, "rig.yaml", text)
    assert found.format == "vins"
    lands(found, "cam0", RADTAN_UV)
    stands_right(found)
    # "read image clock + td = IMU clock": the child's stamps plus the offset are the parent's.
    assert {(edge.parent, edge.child): edge.time_offset_s for edge in found.calibration.edges} == {
        ("imu0", "cam0"): -0.0125,
        ("imu0", "cam1"): -0.0125,
    }
    assert faults(found) == []
    assert import_calibration(tmp_path).calibration.calibration_id == found.calibration.calibration_id
    (tmp_path / "right.yaml").unlink()
    with pytest.raises(CalibrationError, match=r"cam1_calib names .*right.yaml, which does not exist"):
        import_calibration(tmp_path / "rig.yaml")


def test_vins_mono_keeps_lens_and_mount_in_one_file(tmp_path: Path) -> None:
    mount = f"extrinsicRotation: {matrix('[0,0,1,-1,0,0,0,-1,0]', 3, 3)}\n"
    mount += f"extrinsicTranslation: {matrix('[0.1, 0.02, -0.03]', 3, 1)}\ntd: 0.004\nestimate_extrinsic: 1\n"
    found = found_in(tmp_path, "euroc.yaml", KB_FILE + mount)
    lands(found, "cam0", KB_UV)
    assert found.calibration.edges[0].time_offset_s == 0.004
    unknown = found_in(tmp_path, "new.yaml", KB_FILE + mount.replace("extrinsic: 1", "extrinsic: 2"))
    assert ("first_guess", Status.SUSPECT) in faults(unknown)


def test_a_camera_file_alone_gives_the_lens_by_its_own_name(tmp_path: Path) -> None:
    mei = camodocal(
        "MEI",
        {
            "mirror_parameters": {"xi": 1.0},
            "distortion_parameters": dict(zip(("k1", "k2", "p1", "p2"), RADTAN, strict=True)),
            "projection_parameters": {"gamma1": 800, "gamma2": 790, "u0": 400, "v0": 300},
        },
        (800, 600),
    )
    camera = found_in(tmp_path, "cam.yaml", mei).calibration.camera("front")
    assert camera.model == "omni"
    # (2, 1, 2) has length 3: z + xi * 3 = 5, ideal (0.4, 0.2), r2 = 0.2.
    radial = 1 - 0.2 * 0.2 + 0.05 * 0.04
    x = 0.4 * radial + 2 * 0.001 * 0.08 - 0.002 * (0.2 + 0.32)
    y = 0.2 * radial + 0.001 * (0.2 + 0.08) - 2 * 0.002 * 0.08
    pixel = project(np.array([[2.0, 1.0, 2.0]]), camera)
    np.testing.assert_allclose(pixel, [[800 * x + 400, 790 * y + 300]], atol=1e-9)
    full = camodocal(
        "PINHOLE_FULL",
        {
            "distortion_parameters": {
                "k1": 0.1,
                "k2": 0,
                "k3": 0,
                "k4": 0.2,
                "k5": 0,
                "k6": 0,
                "p1": 0,
                "p2": 0,
            },
            "projection_parameters": {"fx": 460, "fy": 458, "cx": 370, "cy": 245},
        },
        (752, 480),
    )
    camera = found_in(tmp_path, "full.yaml", full).calibration.camera("front")
    # r2 = 1 at (1, 0): (1 + k1) / (1 + k4) = 1.1 / 1.2.
    np.testing.assert_allclose(
        project(np.array([[0.6, 0.8, 1.0]]), camera),
        [[460 * 0.6 * 1.1 / 1.2 + 370, 458 * 0.8 * 1.1 / 1.2 + 245]],
    )


# -- OpenVINS and Kalibr

CHAIN = """%YAML:1.0
cam0:
  T_imu_cam:
    - [0, 0, 1, 0.1]
    - [-1, 0, 0, 0.02]
    - [0, -1, 0, -0.03]
    - [0, 0, 0, 1]
  cam_overlaps: [1]
  camera_model: pinhole
  distortion_coeffs: [-0.2, 0.05, 0.001, -0.002]
  distortion_model: radtan
  intrinsics: [460, 458, 370, 245]
  resolution: [752, 480]
  timeshift_cam_imu: 0.003
cam1:
  T_imu_cam:
    - [0, 0, 1, 0.1]
    - [-1, 0, 0, -0.1]
    - [0, -1, 0, -0.03]
    - [0, 0, 0, 1]
  camera_model: pinhole
  distortion_coeffs: [-0.2, 0.05, 0.001, -0.002]
  distortion_model: radtan
  intrinsics: [460, 458, 370, 245]
  resolution: [752, 480]
"""
IMU_CHAIN = """%YAML:1.0
imu0:
  T_i_b:
    - [1.0, 0.0, 0.0, 0.0]
    - [0.0, 1.0, 0.0, 0.0]
    - [0.0, 0.0, 1.0, 0.0]
    - [0.0, 0.0, 0.0, 1.0]
  accelerometer_noise_density: 2.0000e-3
  accelerometer_random_walk: 3.0000e-3
  gyroscope_noise_density: 1.6968e-04
  gyroscope_random_walk: 1.9393e-05
  Ta:
    - [1.01, 0.0, 0.0]
    - [0.0, 1.0, 0.0]
    - [0.0, 0.0, 1.0]
  Tg:
    - [0.0, 0.0, 0.0]
    - [0.0, 0.0, 0.0]
    - [0.0, 0.0, 0.0]
"""
ESTIMATOR = """%YAML:1.0 # need to specify the file type at the top!
verbosity: "INFO"
calib_cam_timeoffset: true
relative_config_imu: "kalibr_imu_chain.yaml"
relative_config_imucam: "kalibr_imucam_chain.yaml"
"""


def openvins_folder(folder: Path) -> Path:
    (folder / "estimator_config.yaml").write_text(ESTIMATOR)
    (folder / "kalibr_imucam_chain.yaml").write_text(CHAIN)
    (folder / "kalibr_imu_chain.yaml").write_text(IMU_CHAIN)
    return folder


@pytest.mark.parametrize("place", [".", "estimator_config.yaml", "kalibr_imucam_chain.yaml"])
def test_openvins_places_cameras_in_the_imu(tmp_path: Path, place: str) -> None:
    found = import_calibration(openvins_folder(tmp_path) / place)
    assert found.format == ("kalibr" if "chain" in place else "openvins")
    lands(found, "cam0", RADTAN_UV)
    stands_right(found)
    # t_imu = t_cam + shift
    assert found.calibration.edges[0].time_offset_s == 0.003
    if found.format == "openvins":
        assert found.calibration.imus["imu0"].gyro_noise_rad_s == 1.6968e-4
        assert [each.check for each in found.findings] == ["imu_scale"], "Ta is not one; Tg is none"


def test_an_openvins_transform_under_kalibrs_key_is_found_by_its_second_camera(tmp_path: Path) -> None:
    found = found_in(tmp_path, "camchain.yaml", CHAIN.replace("T_imu_cam", "T_cam_imu"))
    assert ("inverted", Status.SUSPECT) in faults(found)
    assert faults(found_in(tmp_path, "right.yaml", CHAIN)) == []


def test_openvins_names_the_chain_that_is_not_there(tmp_path: Path) -> None:
    (openvins_folder(tmp_path) / "kalibr_imu_chain.yaml").unlink()
    with pytest.raises(
        CalibrationError, match=r"relative_config_imu names .*kalibr_imu_chain.yaml.* does not exist"
    ):
        import_calibration(tmp_path)


def test_kalibrs_input_for_an_imu_needs_no_name_around_it(tmp_path: Path) -> None:
    """TUM-VI: camchain.yaml and imu_config.yaml, whose numbers stand at the top of the file."""
    chain = CHAIN.replace("T_imu_cam:\n    - [0, 0, 1, 0.1]\n", "T_cam_imu:\n    - [0, -1, 0, 0.02]\n")
    chain = f"cam0:\n  T_cam_imu: {T_CAM_IMU}\n  camera_model: pinhole\n  distortion_model: equidistant\n"
    chain += (
        f"  distortion_coeffs: {list(KB)}\n  intrinsics: [191, 190, 255, 257]\n  resolution: [512, 512]\n"
    )
    (tmp_path / "camchain.yaml").write_text(chain)
    (tmp_path / "imu_config.yaml").write_text(
        "accelerometer_noise_density: 0.0028\naccelerometer_random_walk: 0.00086\n"
        "gyroscope_noise_density: 0.00016\ngyroscope_random_walk: 0.000022\nrostopic: /imu0\nupdate_rate: 200.0\n"
    )
    found = import_calibration(tmp_path)
    lands(found, "cam0", KB_UV)
    assert found.calibration.imus["imu0"].acc_noise_m_s2 == 0.0028


@pytest.mark.parametrize(
    ("model", "own", "bent", "coefficients", "norm"),
    [
        # (0.4, -0.2, 4): r2 = 0.2, length sqrt(16.2).
        ("omni", [0.9], "none", [], 4 + 0.9 * np.sqrt(16.2)),
        (
            "ds",
            [-0.25, 0.6],
            "none",
            [],
            0.6 * np.sqrt(0.2 + (4 - 0.25 * np.sqrt(16.2)) ** 2) + 0.4 * (4 - 0.25 * np.sqrt(16.2)),
        ),
        ("eucm", [0.6, 1.2], "none", [], 0.6 * np.sqrt(1.2 * 0.2 + 16) + 0.4 * 4),
    ],
)
def test_kalibrs_wide_lenses_put_their_own_terms_before_the_focal_lengths(
    tmp_path: Path, model: str, own: list[float], bent: str, coefficients: list[float], norm: float
) -> None:
    lens = f"  camera_model: {model}\n  intrinsics: {[*own, 300, 310, 320, 240]}\n  resolution: [640, 480]\n"
    lens += f"  distortion_model: {bent}\n  distortion_coeffs: {coefficients}\n"
    found = found_in(tmp_path, "camchain.yaml", f"cam0:\n  T_cam_imu: {T_CAM_IMU}\n" + lens)
    lands(found, "cam0", (300 * 0.4 / norm + 320, 310 * -0.2 / norm + 240))


# -- OKVIS


def okvis_text(kind: str, terms: tuple[float, ...]) -> str:
    return f"""%YAML:1.0
cameras:
     - {{T_SC:
        {T_IMU_CAM},
        image_dimension: [752, 480],
        distortion_coefficients: {list(terms)},
        distortion_type: {kind},
        focal_length: [460, 458],
        principal_point: [370, 245]}}
     - {{T_SC:
        {T_IMU_CAM1},
        image_dimension: [752, 480],
        distortion_coefficients: {list(terms)},
        distortion_type: {kind},
        focal_length: [460, 458],
        principal_point: [370, 245]}}
imu_params:
    sigma_g_c: 12.0e-4
    sigma_a_c: 8.0e-3
    sigma_gw_c: 4.0e-6
    sigma_aw_c: 4.0e-5
    T_BS:
        [0.0, -1.0, 0.0, 0.5,
         1.0, 0.0, 0.0, 0.0,
         0.0, 0.0, 1.0, 0.0,
         0.0, 0.0, 0.0, 1.0]
imageDelay: 0.02
"""


def test_okvis_places_cameras_in_the_sensor_and_the_sensor_in_the_body(tmp_path: Path) -> None:
    found = found_in(tmp_path, "config.yaml", okvis_text("radialtangential", RADTAN))
    assert found.format == "okvis"
    lands(found, "cam0", RADTAN_UV)
    stands_right(found)
    # T_BS turns a quarter about z and shifts by half a metre: (1, 0, 0) of the IMU is the body's (0.5, 1, 0).
    np.testing.assert_allclose(
        apply(found.calibration.transform("body", "imu0"), np.array([[1.0, 0, 0]])), [[0.5, 1, 0]], atol=1e-12
    )
    assert found.calibration.imus["imu0"].gyro_noise_rad_s == 1.2e-3
    # An image that is 20 ms late on the IMU's clock was taken 20 ms before its stamp.
    assert found.calibration.edges[0].time_offset_s == -0.02
    eight = found_in(tmp_path, "eight.yaml", okvis_text("radialtangential8", (0.1, 0, 0, 0, 0, 0.2, 0, 0)))
    assert eight.calibration.camera("cam0").model == "rational"
    with pytest.raises(CalibrationError, match="distortion model 'scaramuzza'"):
        found_in(tmp_path, "odd.yaml", okvis_text("scaramuzza", RADTAN))


# -- basalt


def basalt_document(kind: str, terms: dict[str, float]) -> dict[str, Any]:
    # R = [[0,0,1],[-1,0,0],[0,-1,0]]: trace 0, so w = 1/2 and x y z = (-1, 1, -1) / 2.
    pose = {"px": 0.1, "py": 0.02, "pz": -0.03, "qx": -0.5, "qy": 0.5, "qz": -0.5, "qw": 0.5}
    lens = {"camera_type": kind, "intrinsics": {"fx": 300, "fy": 310, "cx": 320, "cy": 240, **terms}}
    return {
        "value0": {
            "T_imu_cam": [pose, {**pose, "py": -0.1}],
            "intrinsics": [lens, lens],
            "resolution": [[640, 480], [640, 480]],
            "calib_accel_bias": [0.01, 0, 0, 0, 0, 0, 0, 0, 0],
            "calib_gyro_bias": [0] * 12,
            "accel_noise_std": [0.016] * 3,
            "gyro_noise_std": [0.000282] * 3,
            "accel_bias_std": [0.001] * 3,
            "gyro_bias_std": [0.0001] * 3,
            "cam_time_offset_ns": 1_500_000,
        }
    }


BASALT: dict[str, tuple[dict[str, float], float]] = {
    # What (0.4, -0.2) is divided by.
    "ds": (
        {"xi": -0.25, "alpha": 0.6},
        0.6 * np.sqrt(0.2 + (4 - 0.25 * np.sqrt(16.2)) ** 2) + 0.4 * (4 - 0.25 * np.sqrt(16.2)),
    ),
    "eucm": ({"alpha": 0.6, "beta": 1.2}, 0.6 * np.sqrt(1.2 * 0.2 + 16) + 0.4 * 4),
    "ucm": ({"alpha": 0.6}, 0.6 * np.sqrt(16.2) + 0.4 * 4),
    "pinhole": ({}, 4.0),
    "kb4": (
        dict(zip(("k1", "k2", "k3", "k4"), KB, strict=True)),
        float(np.sqrt(0.2) / THETA_D),
    ),
    "pinhole-radtan8": (
        {"k1": 0.1, "k2": 0, "p1": 0, "p2": 0, "k3": 0, "k4": 0.2, "k5": 0, "k6": 0, "rpmax": 2.7},
        4 * (1 + 0.2 * 0.0125) / (1 + 0.1 * 0.0125),
    ),
    "fov": ({"w": 0.9}, float(np.sqrt(0.2) * 0.9 / np.arctan(2 * RADIUS * np.tan(0.45)))),
}


@pytest.mark.parametrize("kind", BASALT)
def test_basalt_names_every_number_of_pose_and_lens(tmp_path: Path, kind: str) -> None:
    terms, norm = BASALT[kind]
    found = found_in(tmp_path, "calib.json", json.dumps(basalt_document(kind, terms)))
    assert found.format == "basalt"
    lands(found, "cam0", (300 * 0.4 / norm + 320, 310 * -0.2 / norm + 240))
    stands_right(found)
    assert found.calibration.edges[0].time_offset_s == pytest.approx(1.5e-3)
    imu = found.calibration.imus["imu0"]
    assert (imu.acc_bias_m_s2, imu.gyro_bias_rad_s, imu.gyro_noise_rad_s) == ((0.01, 0, 0), None, 0.000282)


# -- maplab and SVO


def ncamera_text(key: str = "T_B_C", kind: str = "pinhole", bent: str = "radial-tangential") -> str:
    intrinsics, terms = [460, 458, 370, 245], list(RADTAN)
    if kind == "unified-projection":
        intrinsics = [1, *intrinsics]
    if bent == "fisheye":
        terms = [0.9]
    camera = f"""
- camera:
    label: LABEL
    line-delay-nanoseconds: 0
    image_height: 480
    image_width: 752
    type: {kind}
    intrinsics:
      cols: 1
      rows: {len(intrinsics)}
      data: {intrinsics}
    distortion:
      type: {bent}
      parameters:
        cols: 1
        rows: {len(terms)}
        data: {terms}
  {key}:
    cols: 4
    rows: 4
    data: POSE"""
    first = camera.replace("LABEL", "cam0").replace("POSE", T_IMU_CAM)
    second = camera.replace("LABEL", "cam1").replace("POSE", T_IMU_CAM1)
    return f"label: rig\ncameras:{first}{second}\nimu_params:\n  sigma_omega_c: 0.005\n"


@pytest.mark.parametrize("key", ["T_B_C", "T_BS"])
def test_an_ncamera_places_cameras_in_the_body(tmp_path: Path, key: str) -> None:
    found = found_in(tmp_path, "ncamera.yaml", ncamera_text(key))
    assert found.format == "ncamera"
    lands(found, "cam0", RADTAN_UV)
    stands_right(found)
    assert found.calibration.imus["imu0"].gyro_noise_rad_s == 0.005


def test_the_fisheye_of_an_ncamera_is_one_angle_and_its_mirror_comes_first(tmp_path: Path) -> None:
    found = found_in(tmp_path, "fov.yaml", ncamera_text(bent="fisheye"))
    norm = np.sqrt(0.2) * 0.9 / np.arctan(2 * RADIUS * np.tan(0.45))
    lands(found, "cam0", (460 * 0.4 / norm + 370, 458 * -0.2 / norm + 245))
    mirror = found_in(tmp_path, "omni.yaml", ncamera_text(kind="unified-projection")).calibration.camera(
        "cam0"
    )
    assert (mirror.model, mirror.distortion, mirror.fx) == ("omni", (1.0, *RADTAN), 460.0)


# -- DSO


def test_shares_of_the_image_lose_half_a_pixel(tmp_path: Path) -> None:
    folder = tmp_path / "cam0"
    folder.mkdir()
    text = "EquiDistant 0.373 0.3725 0.4988 0.5027 0.003 0.0007 -0.002 0.0002\n512 512\ncrop\n512 512\n"
    found = found_in(folder, "camera.txt", text)
    camera = found.calibration.camera("cam0")
    assert found.format == "dso"
    assert (camera.fx, camera.fy) == (0.373 * 512, 0.3725 * 512)
    assert (camera.cx, camera.cy) == (0.4988 * 512 - 0.5, 0.5027 * 512 - 0.5)
    assert camera.distortion == KB


def test_the_lens_of_dso_is_told_by_name_or_by_count(tmp_path: Path) -> None:
    tail = "\n752 480\nnone\n752 480\n"
    kinds: dict[str, tuple[str, tuple[float, ...]]] = {
        "KannalaBrandt 191 190 255 257 0.003 0.0007 -0.002 0.0002": ("equidistant", KB),
        "RadTan 460 458 370 245 -0.2 0.05 0.001 -0.002": ("radtan", RADTAN),
        "460 458 370 245 -0.2 0.05 0.001 -0.002": ("radtan", RADTAN),
        "460 458 370 245 0.9": ("fov", (0.9,)),
        "Pinhole 460 458 370 245 0": ("pinhole", ()),
    }
    for number, (line, (model, terms)) in enumerate(kinds.items()):
        camera = found_in(tmp_path, f"c{number}.txt", line + tail).calibration.camera(f"c{number}")
        assert (camera.model, camera.distortion, camera.width) == (model, terms, 752), line


# -- none is taken for another, and what is wrong is named

FILES: dict[str, Callable[[], tuple[str, str]]] = {
    "orbslam": lambda: ("a.yaml", ORB_HEAD + orb_lens("Camera")),
    "vins": lambda: ("a.yaml", PINHOLE_FILE),
    "kalibr": lambda: ("a.yaml", CHAIN),
    "okvis": lambda: ("a.yaml", okvis_text("equidistant", KB)),
    "ncamera": lambda: ("a.yaml", ncamera_text()),
    "basalt": lambda: ("a.json", json.dumps(basalt_document("ds", {"xi": 0.1, "alpha": 0.5}))),
    "dso": lambda: ("a.txt", "Pinhole 460 458 370 245 0\n752 480\ncrop\n640 480\n"),
    "opencv": lambda: (
        "a.yml",
        f"%YAML:1.0\n---\ncamera_matrix: {matrix('[460,0,370,0,458,245,0,0,1]', 3, 3)}\n",
    ),
    "openvins": lambda: ("a.yaml", ESTIMATOR),
}


@pytest.mark.parametrize("name", [name for name in FILES if name != "openvins"])
def test_each_is_told_from_its_contents_alone(tmp_path: Path, name: str) -> None:
    file, text = FILES[name]()
    assert found_in(tmp_path, file, text).format == name


@pytest.mark.parametrize(
    ("name", "change", "complaint"),
    [
        ("orbslam", ("Camera.fx: 460\n", ""), r"Camera.fx is missing"),
        ("orbslam", ('"PinHole"', '"Omni"'), r"Camera.type is 'Omni'.*known: PinHole"),
        ("orbslam", ("Camera.p1: 0.001\n", ""), r"Camera.p1 is missing beside Camera.k1"),
        ("vins", ("PINHOLE", "SCARAMUZZA"), r"model_type is 'SCARAMUZZA'.*known: PINHOLE"),
        ("vins", ("   fx: 460\n", ""), r"fx is missing for model_type PINHOLE"),
        ("vins", ("fx: 460", "fx: wide"), r"fx needs 1 numbers, found"),
        ("okvis", ("focal_length", "focal"), r"cameras\[0\].focal_length is missing"),
        ("ncamera", ("type: pinhole", "type: omnidirectional"), r"of type 'omnidirectional'.*known: pinhole"),
        ("ncamera", ("image_width", "width"), r"cameras\[0\].camera.image_width is missing"),
        ("basalt", ('"ds"', '"rs"'), r"camera_type 'rs'.*known: pinhole"),
        ("basalt", ('"alpha"', '"a"'), r"alpha is missing"),
        ("basalt", ('"qw": 0.5', '"qw": 5'), r"quaternion has length"),
        (
            "kalibr",
            ("camera_model: pinhole", "camera_model: ocam"),
            r"camera model 'ocam'.*known: pinhole, omni",
        ),
        ("kalibr", ("[460, 458, 370, 245]", "[460, 458, 370]"), r"intrinsics \(pinhole\) needs 4"),
        (
            "openvins",
            ("relative_config_imu:", "config_imu:"),
            r"relative_config_imu is missing|does not exist",
        ),
    ],
)
def test_what_is_wrong_is_named_with_file_and_key(
    tmp_path: Path, name: str, change: tuple[str, str], complaint: str
) -> None:
    file, text = FILES[name]()
    assert change[0] in text
    with pytest.raises(CalibrationError, match=complaint) as raised:
        found_in(tmp_path, file, text.replace(*change))
    assert str(tmp_path / file) in str(raised.value)


def test_a_matrix_that_is_no_rotation_is_a_finding(tmp_path: Path) -> None:
    bad = (
        ORB_HEAD
        + orb_lens("Camera")
        + f"Tbc: {matrix(T_IMU_CAM.replace('-1, 0, 0, 0.02', '1, 0, 0, 0.02'))}\n"
    )
    found = found_in(tmp_path, "a.yaml", bad)
    assert ("rotation", Status.FAILED) in faults(found)


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_read_or_refused_and_never_an_internal_error(tmp_path: Path, name: str) -> None:
    file, text = FILES[name]()
    rng = random.Random(name)
    for _ in range(60):
        with contextlib.suppress(CalibrationError):
            found_in(tmp_path, file, damaged(text, rng))


# -- numbers that no sensor can have

NOT_A_NOISE = ("0", "-0.01", ".nan", ".inf")


@pytest.mark.parametrize("value", NOT_A_NOISE)
@pytest.mark.parametrize("key", ["sigma_omega_c", "sigma_acc_c", "sigma_omega_bias_c", "sigma_acc_bias_c"])
def test_an_ncamera_with_a_noise_that_nothing_has_is_refused_with_its_key(
    tmp_path: Path, key: str, value: str
) -> None:
    text = ncamera_text().replace("sigma_omega_c: 0.005", f"{key}: {value}")
    with pytest.raises(CalibrationError, match=key):
        found_in(tmp_path, "ncamera.yaml", text)


def test_a_rolling_shutter_that_runs_backwards_is_refused(tmp_path: Path) -> None:
    text = ncamera_text().replace("line-delay-nanoseconds: 0", "line-delay-nanoseconds: -7")
    with pytest.raises(CalibrationError, match="line-delay-nanoseconds must not be negative"):
        found_in(tmp_path, "ncamera.yaml", text)


@pytest.mark.parametrize("key", ["gyro_noise_std", "accel_noise_std", "gyro_bias_std", "accel_bias_std"])
def test_a_basalt_noise_of_which_one_axis_is_not_positive_is_refused(tmp_path: Path, key: str) -> None:
    document = basalt_document("pinhole", {})
    document["value0"][key] = [0.01, -0.02, 0.01]
    with pytest.raises(CalibrationError, match=f"{key} must be positive"):
        found_in(tmp_path, "calib.json", json.dumps(document))


@pytest.mark.parametrize("value", NOT_A_NOISE)
@pytest.mark.parametrize("key", ["sigma_g_c", "sigma_a_c", "sigma_gw_c", "sigma_aw_c"])
def test_okvis_settings_with_a_noise_that_nothing_has_are_refused_with_their_key(
    tmp_path: Path, key: str, value: str
) -> None:
    text = re.sub(rf"{key}: .*", f"{key}: {value}", okvis_text("equidistant", KB))
    with pytest.raises(CalibrationError, match=key):
        found_in(tmp_path, "okvis.yaml", text)


@pytest.mark.parametrize("value", NOT_A_NOISE)
@pytest.mark.parametrize("key", ["IMU.NoiseGyro", "IMU.NoiseAcc", "IMU.GyroWalk", "IMU.AccWalk"])
def test_orb_slam_settings_with_a_noise_that_nothing_has_are_refused_with_their_key(
    tmp_path: Path, key: str, value: str
) -> None:
    text = ORB_HEAD + orb_lens("Camera") + f"{key}: {value}\n"
    with pytest.raises(CalibrationError, match=key):
        found_in(tmp_path, "orb.yaml", text)


@pytest.mark.parametrize("value", NOT_A_NOISE)
@pytest.mark.parametrize(
    "key",
    [
        "gyroscope_noise_density",
        "gyroscope_random_walk",
        "accelerometer_noise_density",
        "accelerometer_random_walk",
    ],
)
def test_an_imu_of_kalibr_with_a_noise_that_nothing_has_is_refused_with_its_key(
    tmp_path: Path, key: str, value: str
) -> None:
    known = {"accelerometer_noise_density": "0.01", "gyroscope_noise_density": "2.0e-4", key: value}
    text = "".join(f"{name}: {number}\n" for name, number in known.items()) + "update_rate: 200.0\n"
    with pytest.raises(CalibrationError, match=key):
        found_in(tmp_path, "imu.yaml", text)
