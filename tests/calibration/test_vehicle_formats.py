"""nuScenes tables, Autoware's sensor kit and INI files, against numbers worked out by hand beside each."""

import contextlib
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damaged_text import damaged

from sensorium.calibration.formats.detect import ImportResult, import_calibration
from sensorium.calibration.geometry import apply, project
from sensorium.errors import CalibrationError
from sensorium.verdict import Status


def faults(found: ImportResult) -> list[tuple[str, Status]]:
    return [(each.check, each.status) for each in found.findings if each.status is not Status.OK]


# -- nuScenes

K = [[1260.0, 0.0, 810.0], [0.0, 1250.0, 490.0], [0.0, 0.0, 1.0]]
# A camera that looks forward: x of the image is the ego's -y, y is its -z, z its x. As a matrix
# [[0,0,1],[-1,0,0],[0,-1,0]], trace 0: w = 1/2 and (x, y, z) = (-1, 1, -1) / 2. The order in the file is w x y z.
FORWARD = [0.5, -0.5, 0.5, -0.5]
# The LiDAR's x to the right, y forward: a quarter turn about z to the right, (cos 45, 0, 0, -sin 45).
QUARTER = [np.sqrt(0.5), 0.0, 0.0, -np.sqrt(0.5)]


def tables() -> dict[str, list[dict[str, Any]]]:
    return {
        "sensor": [
            {"token": "s1", "channel": "CAM_FRONT", "modality": "camera"},
            {"token": "s2", "channel": "LIDAR_TOP", "modality": "lidar"},
        ],
        "calibrated_sensor": [
            {
                "token": "c2",
                "sensor_token": "s1",
                "translation": [1.8, 0.0, 1.6],
                "rotation": FORWARD,
                "camera_intrinsic": K,
            },
            {
                "token": "c1",
                "sensor_token": "s1",
                "translation": [1.7, 0.0, 1.5],
                "rotation": FORWARD,
                "camera_intrinsic": K,
            },
            {
                "token": "l1",
                "sensor_token": "s2",
                "translation": [0.9, 0.0, 1.8],
                "rotation": QUARTER,
                "camera_intrinsic": [],
            },
        ],
        "scene": [{"token": "sc1", "name": "scene-0061"}, {"token": "sc2", "name": "scene-0103"}],
        "sample": [{"token": "sa1", "scene_token": "sc1"}, {"token": "sa2", "scene_token": "sc2"}],
        "sample_data": [
            {
                "token": "d2",
                "sample_token": "sa2",
                "calibrated_sensor_token": "c2",
                "width": 1600,
                "height": 900,
            },
            {
                "token": "d1",
                "sample_token": "sa1",
                "calibrated_sensor_token": "c1",
                "width": 1600,
                "height": 900,
            },
            {
                "token": "d3",
                "sample_token": "sa1",
                "calibrated_sensor_token": "l1",
                "width": None,
                "height": None,
            },
        ],
    }


def write_tables(folder: Path, rows: dict[str, list[dict[str, Any]]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, found in rows.items():
        (folder / f"{name}.json").write_text(json.dumps(found))
    return folder


@pytest.mark.parametrize("place", ["v1.0-mini", ".", "v1.0-mini/calibrated_sensor.json"])
def test_nuscenes_gives_poses_in_the_ego_with_w_first(tmp_path: Path, place: str) -> None:
    write_tables(tmp_path / "v1.0-mini", tables())
    found = import_calibration(tmp_path / place)
    rig = found.calibration
    assert (found.format, faults(found)) == ("nuscenes", [])
    # 10 m before the LiDAR (its y), 2 m to its right (its x), 1 m below it: the ego's (10.9, -2, 0.8), so the
    # camera of the first scene has it at (2, 0.7, 9.2).
    point = np.array([[2.0, 10.0, -1.0]])
    np.testing.assert_allclose(
        apply(rig.transform("ego", "LIDAR_TOP"), point), [[10.9, -2.0, 0.8]], atol=1e-9
    )
    seen = apply(rig.transform("CAM_FRONT", "LIDAR_TOP"), point)
    np.testing.assert_allclose(seen, [[2.0, 0.7, 9.2]], atol=1e-9)
    pixel = project(seen, rig.camera("CAM_FRONT"))
    np.testing.assert_allclose(pixel, [[1260 * 2 / 9.2 + 810, 1250 * 0.7 / 9.2 + 490]], atol=1e-9)
    assert (rig.camera("CAM_FRONT").width, rig.camera("CAM_FRONT").height) == (1600, 900)


def test_a_second_log_with_other_numbers_is_named(tmp_path: Path) -> None:
    found = import_calibration(write_tables(tmp_path, tables()))
    named = [each for each in found.findings if each.check == "repeated_camera"]
    assert [each.subject for each in named] == ["CAM_FRONT"]
    assert "scene-0061 was taken" in named[0].reasons[0]


def test_two_tables_are_enough_and_the_size_may_be_given(tmp_path: Path) -> None:
    rows = {name: found for name, found in tables().items() if name in ("sensor", "calibrated_sensor")}
    found = import_calibration(write_tables(tmp_path, rows), size=(1600, 900))
    assert found.calibration.camera("CAM_FRONT").width == 1600
    guessed = import_calibration(tmp_path)
    assert ("image_size", Status.INSUFFICIENT) in faults(guessed)


def test_what_is_wrong_in_a_table_is_named(tmp_path: Path) -> None:
    rows = tables()
    rows["calibrated_sensor"][0]["rotation"] = [1.0, 1.0, 0.0, 0.0]
    with pytest.raises(CalibrationError, match=r"calibrated_sensor.json: row 0.rotation has length 1.41"):
        import_calibration(write_tables(tmp_path, rows))
    rows["calibrated_sensor"][0]["rotation"] = FORWARD
    rows["sensor"] = rows["sensor"][1:]
    with pytest.raises(CalibrationError, match=r"row 0: sensor_token s1 is not in sensor.json"):
        import_calibration(write_tables(tmp_path, rows))
    rows = tables()
    rows["calibrated_sensor"][2]["translation"] = [900.0, 0.0, 1800.0]
    assert ("length_unit", Status.FAILED) in faults(import_calibration(write_tables(tmp_path, rows)))
    write_tables(tmp_path / "v1", tables())
    write_tables(tmp_path / "v2", tables())
    for name in tables():
        (tmp_path / f"{name}.json").unlink()
    with pytest.raises(CalibrationError, match=r"several versions \(v1, v2\)"):
        import_calibration(tmp_path)


# -- Autoware

KIT = """sensor_kit_base_link:
  camera0/camera_link:
    x: 0.1
    y: 0.5
    z: -0.3
    roll: 0.0
    pitch: 0.0
    yaw: YAW
  velodyne_top_base_link:
    x: 0.0
    y: 0.0
    z: 0.0
    roll: 0.0
    pitch: 0.0
    yaw: 1.5707963267948966
"""
SENSORS = """base_link:
  sensor_kit_base_link:
    x: 0.9
    y: 0.0
    z: 2.0
    roll: 0.1
    pitch: 0.2
    yaw: 0.3
"""


def sensor_kit(folder: Path, yaw: str = "0.0") -> Path:
    (folder / "sensor_kit_calibration.yaml").write_text(KIT.replace("YAW", yaw))
    (folder / "sensors_calibration.yaml").write_text(SENSORS)
    return folder


def test_autoware_turns_about_fixed_axes_and_images_are_in_the_optical_frame(tmp_path: Path) -> None:
    found = import_calibration(sensor_kit(tmp_path))
    rig = found.calibration
    assert found.format == "autoware"
    # A camera that looks along the kit's x: what lies 4 m before it, 1 m to its left and 0.5 m up is at
    # (-1, -0.5, 4) of its image.
    point = np.array([[4.1, 1.5, 0.2]])
    seen = apply(rig.transform("camera0/camera_optical_link", "sensor_kit_base_link"), point)
    np.testing.assert_allclose(seen, [[-1.0, -0.5, 4.0]], atol=1e-9)
    # Roll first, yaw last: the kit's z by hand, Rz(0.3) Ry(0.2) Rx(0.1) (0, 0, 1).
    x, y, z = np.sin(0.2) * np.cos(0.1), -np.sin(0.1), np.cos(0.2) * np.cos(0.1)
    axis = (np.cos(0.3) * x - np.sin(0.3) * y, np.sin(0.3) * x + np.cos(0.3) * y, z)
    np.testing.assert_allclose(rig.transform("base_link", "sensor_kit_base_link")[:3, 2], axis, atol=1e-12)
    np.testing.assert_allclose(rig.transform("base_link", "sensor_kit_base_link")[:3, 3], (0.9, 0, 2))
    # Clouds are in velodyne_top, whose height only the maker's xacro knows.
    assert ("unknown_frame", Status.SUSPECT) in faults(found)
    assert "velodyne_top" not in rig.frames


def test_an_expanded_urdf_in_the_folder_places_the_clouds(tmp_path: Path) -> None:
    urdf = """<robot name="kit">
  <link name="velodyne_top_base_link"/><link name="velodyne_top"/>
  <joint name="j" type="fixed"><origin xyz="0 0 0.0377" rpy="0 0 0"/>
    <parent link="velodyne_top_base_link"/><child link="velodyne_top"/></joint>
</robot>"""
    (sensor_kit(tmp_path) / "rig.urdf").write_text(urdf)
    found = import_calibration(tmp_path)
    assert found.format == "autoware"
    assert faults(found) == []
    # A quarter turn to the left: 5 m before the LiDAR is 5 m to the left of the kit.
    np.testing.assert_allclose(
        apply(found.calibration.transform("sensor_kit_base_link", "velodyne_top"), np.array([[5.0, 0, 0]])),
        [[0, 5, 0.0377]],
        atol=1e-12,
    )


@pytest.mark.parametrize(
    ("yaw", "is_degrees"),
    [("90.0", True), ("-57.3", True), ("6.28", False), ("-3.1416", False), ("1.035", False)],
)
def test_degrees_in_an_autoware_file_are_found(tmp_path: Path, yaw: str, is_degrees: bool) -> None:
    found = import_calibration(sensor_kit(tmp_path, yaw))
    assert (("degrees", Status.FAILED) in faults(found)) is is_degrees


def test_what_is_wrong_in_an_autoware_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "sensor_kit_calibration.yaml"
    file.write_text(KIT.replace("YAW", "0.0").replace("    roll: 0.0\n", "", 1))
    with pytest.raises(CalibrationError, match=r"sensor_kit_base_link.camera0/camera_link.roll is missing"):
        import_calibration(file)
    file.write_text(
        KIT.replace("YAW", "0.0").replace("    roll: 0.0\n", "    roll: 0.0\n    roll_deg: 1.0\n", 1)
    )
    with pytest.raises(CalibrationError, match=r"camera0/camera_link.roll_deg: unknown key"):
        import_calibration(file)


# -- INI

OST = """# oST version 5.0 parameters


[image]

width
640

height
480

[narrow_stereo/left]

camera matrix
600.0 0.000000 330.0
0.000000 590.0 236.0
0.000000 0.000000 1.000000

distortion
-0.200000 0.050000 0.001000 -0.002000 0.000000

rectification
1.000000 0.000000 0.000000
0.000000 1.000000 0.000000
0.000000 0.000000 1.000000

projection
500.0 0.000000 320.0 SHIFT
0.000000 500.0 240.0 0.000000
0.000000 0.000000 1.000000 0.000000
"""


def test_the_calibrators_ini_holds_both_cameras_of_a_pair(tmp_path: Path) -> None:
    right = OST.replace("/left", "/right").replace("SHIFT", "-60.0")
    (tmp_path / "ost.ini").write_text(OST.replace("SHIFT", "0.0") + right)
    found = import_calibration(tmp_path / "ost.ini")
    camera = found.calibration.camera("narrow_stereo/left")
    assert (found.format, faults(found)) == ("ini", [])
    assert (camera.width, camera.height, camera.model) == (640, 480, "radtan")
    # (0.1, -0.05, 1): r2 = 0.0125, Brown as in OpenCV.
    radial = 1 - 0.2 * 0.0125 + 0.05 * 0.0125**2
    u = 600 * (0.1 * radial + 2 * 0.001 * -0.005 - 0.002 * (0.0125 + 0.02)) + 330
    v = 590 * (-0.05 * radial + 0.001 * (0.0125 + 0.005) - 2 * 0.002 * -0.005) + 236
    np.testing.assert_allclose(project(np.array([[0.1, -0.05, 1.0]]), camera), [[u, v]], atol=1e-9)
    # P[3] = -fx b: 60 / 500 = 12 cm to the right.
    T = found.calibration.transform("narrow_stereo/left", "narrow_stereo/right")
    np.testing.assert_allclose(T[:3, 3], (0.12, 0, 0), atol=1e-12)


def test_an_ini_under_another_name_is_known_by_its_contents(tmp_path: Path) -> None:
    (tmp_path / "camera_parameters.txt").write_text(OST.replace("SHIFT", "0.0"))
    assert import_calibration(tmp_path / "camera_parameters.txt").format == "ini"
    assert import_calibration(tmp_path).calibration.cameras.keys() == {"narrow_stereo/left"}


VIDERE = """# SVS Engine v 4.0 Stereo Camera Parameter File

[image]
width 640
height 480

[external]
Tx -120.0
Ty 0.0

[left camera]
pwidth 640
pheight 480
Cx 330.0
Cy 236.0
f 600.0
fy 590.0
alpha 0.0
kappa1 -0.2
kappa2 0.05
kappa3 0.01
tau1 0.001
tau2 -0.002
proj
500.0 0 320.0 SHIFT
0 500.0 240.0 0
0 0 1 0
rect
1 0 0
0 1 0
0 0 1
"""


def test_videre_writes_millimetres_and_names_its_terms(tmp_path: Path) -> None:
    right = VIDERE[VIDERE.index("[left camera]") :].replace("left", "right").replace("SHIFT", "-60000.0")
    (tmp_path / "calibration.ini").write_text(VIDERE.replace("SHIFT", "0") + right)
    found = import_calibration(tmp_path / "calibration.ini")
    camera = found.calibration.camera("left camera")
    assert camera.distortion == (-0.2, 0.05, 0.001, -0.002, 0.01)
    assert (camera.fx, camera.fy, camera.cx, camera.cy) == (600, 590, 330, 236)
    np.testing.assert_allclose(
        found.calibration.transform("left camera", "right camera")[:3, 3], (0.12, 0, 0), atol=1e-12
    )


def test_what_is_wrong_in_an_ini_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.ini"
    file.write_text(VIDERE.replace("SHIFT", "0").replace("tau1 0.001\n", ""))
    with pytest.raises(CalibrationError, match=r"a.ini: \[left camera\] tau1 is missing"):
        import_calibration(file)
    file.write_text(OST.replace("SHIFT", "0.0").replace("0.000000 590.0 236.0\n", ""))
    with pytest.raises(CalibrationError, match=r"\[narrow_stereo/left\] camera matrix needs 9"):
        import_calibration(file)


# -- a folder with several


def test_a_folder_of_two_kinds_asks_which(tmp_path: Path) -> None:
    (tmp_path / "ost.ini").write_text(OST.replace("SHIFT", "0.0"))
    (tmp_path / "camera.txt").write_text("Pinhole 460 458 370 245 0\n752 480\ncrop\n640 480\n")
    with pytest.raises(CalibrationError, match=r"several formats \(camera.txt \(dso\), ost.ini \(ini\)\)"):
        import_calibration(tmp_path)


def vehicle_files() -> dict[str, str]:
    found = {f"{name}.json": json.dumps(rows, indent=1) for name, rows in tables().items()}
    found["sensor_kit_calibration.yaml"] = KIT.replace("YAW", "0.1")
    return found | {"ost.ini": OST.replace("SHIFT", "-60.0"), "videre.ini": VIDERE.replace("SHIFT", "-60.0")}


@pytest.mark.parametrize("name", vehicle_files())
def test_a_damaged_file_is_read_or_refused_and_never_an_internal_error(tmp_path: Path, name: str) -> None:
    rng, text = random.Random(name), vehicle_files()[name]
    for _ in range(60):
        path = tmp_path
        if name.endswith(".json"):
            write_tables(tmp_path, tables())
        else:
            path = tmp_path / name
        (tmp_path / name).write_text(damaged(text, rng))
        with contextlib.suppress(CalibrationError):
            import_calibration(path)
