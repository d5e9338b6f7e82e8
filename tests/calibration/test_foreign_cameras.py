"""Cameras in the files of others: each is read as it was meant, refused with the way out, or named in a finding."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml

from sensorium.calibration.formats.detect import ImportResult, import_calibration
from sensorium.errors import CalibrationError
from sensorium.verdict import Status

K = [500.0, 0.0, 320.0, 0.0, 501.0, 240.0, 0.0, 0.0, 1.0]
D = [-0.125, 0.0625, 0.001, -0.002, 0.0]
FISHEYE = [-0.0125, 0.0031, -0.0009, 0.0002]


def rows(values: list[float]) -> list[list[float]]:
    return [values[at : at + 3] for at in range(0, 9, 3)]


def matrix(values: list[float], rows: int = 1) -> dict[str, Any]:
    return {"rows": rows, "cols": len(values) // rows, "data": values}


def message(**changes: Any) -> dict[str, Any]:
    """Return a camera_info as ROS 2 echoes it."""
    found = {
        "header": {"stamp": {"sec": 1, "nanosec": 2}, "frame_id": "front"},
        "height": 480,
        "width": 640,
        "distortion_model": "plumb_bob",
        "d": D,
        "k": K,
        "r": [1.0, 0, 0, 0, 1, 0, 0, 0, 1],
        "p": [500.0, 0, 320, 0, 0, 501, 240, 0, 0, 0, 1, 0],
        "binning_x": 0,
        "binning_y": 0,
        "roi": {"x_offset": 0, "y_offset": 0, "height": 0, "width": 0, "do_rectify": False},
    }
    return {**found, **changes}


def calibrator(**changes: Any) -> dict[str, Any]:
    """Return what the calibrator saves."""
    found = {
        "image_width": 640,
        "image_height": 480,
        "camera_name": "front",
        "camera_matrix": matrix(K, 3),
        "distortion_model": "plumb_bob",
        "distortion_coefficients": matrix(D),
    }
    return {key: value for key, value in {**found, **changes}.items() if value is not None}


def imported(folder: Path, fields: Any, name: str = "front.yaml") -> ImportResult:
    text = fields if isinstance(fields, str) else yaml.safe_dump(fields)
    (folder / name).write_text(text)
    return import_calibration(folder / name)


def checks(found: ImportResult) -> dict[str, Status]:
    return {each.check: each.status for each in found.findings}


# -- binning and region of interest


@pytest.mark.parametrize(
    ("changes", "size", "focal"),
    [
        ({"binning_x": 2, "binning_y": 2}, (320, 240), (250.0, 250.5, 160.0, 120.0)),
        ({"binning_x": 4, "binning_y": 1}, (160, 480), (125.0, 501.0, 80.0, 240.0)),
        ({"binning_x": 0, "binning_y": 2}, (640, 240), (500.0, 250.5, 320.0, 120.0)),
        (
            {"roi": {"x_offset": 100, "y_offset": 60, "width": 400, "height": 300}},
            (400, 300),
            (500.0, 501.0, 220.0, 180.0),
        ),
        (
            {
                "binning_x": 2,
                "binning_y": 2,
                "roi": {"x_offset": 100, "y_offset": 60, "width": 400, "height": 300, "do_rectify": True},
            },
            (200, 150),
            (250.0, 250.5, 110.0, 90.0),
        ),
    ],
)
def test_binning_and_region_of_interest_are_applied_as_ros_does_it(
    tmp_path: Path, changes: dict[str, Any], size: tuple[int, int], focal: tuple[float, ...]
) -> None:
    found = imported(tmp_path, message(**changes))
    camera = found.calibration.camera("front")
    assert (camera.width, camera.height) == size
    assert (camera.fx, camera.fy, camera.cx, camera.cy) == pytest.approx(focal, abs=1e-9)
    assert list(camera.distortion) == D
    assert checks(found)["region"] is Status.OK
    assert any(f"images of {size[0]}x{size[1]} px" in each.reasons[0] for each in found.findings)


def test_a_region_that_is_the_whole_sensor_changes_nothing(tmp_path: Path) -> None:
    roi = {"x_offset": 0, "y_offset": 0, "width": 640, "height": 480, "do_rectify": False}
    found = imported(tmp_path, message(binning_x=1, binning_y=1, roi=roi))
    assert (found.calibration.camera("front").width, found.findings) == (640, ())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"roi": {"x_offset": 600, "y_offset": 0, "width": 100, "height": 100}},
            "reaches beyond its 640x480 px",
        ),
        (
            {"roi": {"x_offset": -1, "y_offset": 0, "width": 10, "height": 10}},
            "x_offset must be a whole number",
        ),
        ({"binning_x": 1.5}, "binning_x must be a whole number"),
        ({"binning_x": "two"}, "binning_x needs 1 numbers"),
        ({"k": [0.0] * 9}, "was not calibrated when this was written"),
    ],
)
def test_a_message_that_cannot_be_is_refused_with_the_key(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(CalibrationError, match=words):
        imported(tmp_path, message(**changes))


def test_both_cameras_of_a_pair_that_one_echo_printed_are_read(tmp_path: Path) -> None:
    left = message(header={"frame_id": "left"})
    right = message(header={"frame_id": "right"}, p=[500.0, 0, 320, -50, 0, 501, 240, 0, 0, 0, 1, 0])
    text = "---\n".join(yaml.safe_dump(each) for each in (left, right, left)) + "---\n"
    found = imported(tmp_path, text)
    assert set(found.calibration.cameras) == {"left", "right"}
    assert found.calibration.transform("left", "right")[0, 3] == pytest.approx(0.1)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "latin-1"])
def test_what_windows_made_of_the_file_does_no_harm(tmp_path: Path, encoding: str) -> None:
    text = "# turned by 3\u00b0\r\n" + yaml.safe_dump(message()).replace("\n", "\r\n")
    (tmp_path / "front.yaml").write_bytes(text.encode(encoding))
    found = import_calibration(tmp_path / "front.yaml")
    assert (found.calibration.camera("front").fx, found.findings) == (500.0, ())


# -- lens models


@pytest.mark.parametrize("key", ["fisheye", "Fisheye", "equidistant", "kannala_brandt"])
def test_a_fisheye_is_one_by_either_key(tmp_path: Path, key: str) -> None:
    for changes in ({"camera_model": key, "distortion_model": None}, {"distortion_model": key}):
        found = imported(tmp_path, calibrator(distortion_coefficients=matrix(FISHEYE), **changes))
        camera = found.calibration.camera("front")
        assert (camera.model, list(camera.distortion), found.findings) == ("equidistant", FISHEYE, ())


def test_two_keys_that_exclude_each_other_are_a_finding(tmp_path: Path) -> None:
    found = imported(tmp_path, calibrator(camera_model="fisheye"))
    assert found.calibration.camera("front").model == "radtan"
    assert checks(found) == {"lens_model": Status.FAILED}


@pytest.mark.parametrize(
    ("coefficients", "model", "status"),
    [
        (D, "radtan", Status.OK),
        (D[:4], "radtan", Status.INSUFFICIENT),
        ([*D, 0.1, 0.2, 0.3], "rational", Status.OK),
    ],
)
def test_a_file_that_does_not_name_its_lens_is_read_with_a_finding(
    tmp_path: Path, coefficients: list[float], model: str, status: Status
) -> None:
    found = imported(
        tmp_path, calibrator(distortion_model=None, distortion_coefficients=matrix(coefficients))
    )
    assert found.calibration.camera("front").model == model
    assert checks(found)["lens_model"] is status


def test_a_lens_without_distortion_needs_no_name(tmp_path: Path) -> None:
    found = imported(tmp_path, calibrator(distortion_model=None, distortion_coefficients=matrix([0.0] * 5)))
    assert (found.calibration.camera("front").model, found.findings) == ("pinhole", ())


def test_missing_coefficients_are_a_finding(tmp_path: Path) -> None:
    found = imported(tmp_path, calibrator(distortion_coefficients=None))
    assert found.calibration.camera("front").model == "pinhole"
    assert checks(found) == {"no_distortion": Status.INSUFFICIENT}


@pytest.mark.parametrize("changes", [{"camera_model": "omni"}, {"distortion_model": "division"}])
def test_a_lens_that_is_not_read_is_refused_by_name(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(CalibrationError, match=next(iter(changes.values()))):
        imported(tmp_path, calibrator(**changes))


def test_a_slip_of_the_pen_is_named_with_its_line(tmp_path: Path) -> None:
    text = yaml.safe_dump(calibrator()).replace("image_width: 640", "image_width 640")
    with pytest.raises(CalibrationError, match=r"not YAML: .* line \d+"):
        imported(tmp_path, text)


# -- folders


def test_two_cameras_that_the_calibrator_called_alike_go_by_their_files(tmp_path: Path) -> None:
    for name, focal in (("left.yaml", 500.0), ("right.yml", 510.0)):
        fields = calibrator(camera_name="narrow_stereo", camera_matrix=matrix([focal, *K[1:]], 3))
        (tmp_path / name).write_text(yaml.safe_dump(fields))
    (tmp_path / "._left.yaml").write_bytes(b"\0\5\26\7")
    found = import_calibration(tmp_path)
    assert {name: camera.fx for name, camera in found.calibration.cameras.items()} == {
        "narrow_stereo": 500.0,
        "right": 510.0,
    }
    assert checks(found) == {"repeated_camera": Status.OK}


def test_what_desktops_and_nas_boxes_leave_in_folders_is_no_calibration(
    tmp_path: Path, shared_data: Path
) -> None:
    litter = b"\0\5\26\7\0\2\0\0Mac OS X"
    text = (shared_data / "cases2/asl_camera_without_sensor_type/cam0/sensor.yaml").read_text()
    for folder in ("euroc/cam0", "ros", "kalibr", "opencv", "euroc/._cam0", "euroc/@eaDir"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("euroc/cam0/sensor.yaml", "euroc/@eaDir/sensor.yaml"):
        (tmp_path / name).write_text(text)
    (tmp_path / "ros/front.yaml").write_text(yaml.safe_dump(calibrator()))
    chain = {"cam0": {**ASL, "distortion_model": "radtan", "distortion_coeffs": D[:4]}}
    (tmp_path / "kalibr/camchain.yaml").write_text(yaml.safe_dump(chain))
    (tmp_path / "opencv/camera.yml").write_text((shared_data / "cases2/opencv_nested/camera.yml").read_text())
    for name in ("ros/._front.yaml", "kalibr/._camchain.yaml", "kalibr/._imu.yaml", "opencv/._camera.yml"):
        (tmp_path / name).write_bytes(litter)
    (tmp_path / "euroc/._cam0/sensor.yaml").write_bytes(litter)
    for folder, name in (("euroc", "cam0"), ("ros", "front"), ("kalibr", "cam0"), ("opencv", "cam")):
        assert set(import_calibration(tmp_path / folder).calibration.cameras) == {name}


def test_a_calibration_of_another_format_beside_ros_files_is_named(tmp_path: Path, shared_data: Path) -> None:
    (tmp_path / "front.yaml").write_text(yaml.safe_dump(calibrator()))
    (tmp_path / "rear.yml").write_text((shared_data / "cases2/opencv_nested/camera.yml").read_text())
    found = import_calibration(tmp_path)
    assert checks(found) == {"other_format": Status.SUSPECT}
    assert "rear.yml (opencv)" in found.findings[0].reasons[0]


def test_a_folder_with_one_file_of_opencv_is_that_file(shared_data: Path) -> None:
    found = import_calibration(shared_data / "cases2/opencv_nested")
    assert (found.format, set(found.calibration.cameras)) == ("opencv", {"cam"})


def test_a_folder_of_kimera_is_read_whole(tmp_path: Path, shared_data: Path) -> None:
    text = (shared_data / "cases2/kimera_params/LeftCameraParams.yaml").read_text()
    (tmp_path / "LeftCameraParams.yaml").write_text(text)
    right = text.replace("left_cam", "right_cam").replace("-0.0216401454975", "0.08836")
    (tmp_path / "RightCameraParams.yaml").write_text(right)
    pose = "T_BS: {cols: 4, rows: 4, data: [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1]}\n"
    noise = "gyroscope_noise_density: 1.7e-4\naccelerometer_noise_density: 2.0e-3\n"
    (tmp_path / "ImuParams.yaml").write_text("%YAML:1.0\n" + pose + noise)
    (tmp_path / "PipelineParams.yaml").write_text("%YAML:1.0\nbackend_type: 1\n")
    found = import_calibration(tmp_path)
    assert (found.format, set(found.calibration.cameras)) == ("euroc", {"left_cam", "right_cam"})
    assert found.calibration.transform("body", "right_cam")[0, 3] == 0.08836
    assert "ImuParams" in found.calibration.imus
    (tmp_path / "RightCameraParams.yaml").write_text(text)
    with pytest.raises(CalibrationError, match="both called left_cam"):
        import_calibration(tmp_path)


# -- ASL descriptions

ASL = {
    "T_BS": {"cols": 4, "rows": 4, "data": [1.0, 0, 0, 0.1, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1]},
    "rate_hz": 20,
    "resolution": [640, 480],
    "camera_model": "pinhole",
    "intrinsics": [500.0, 501.0, 320.0, 240.0],
    "distortion_model": "radial-tangential",
    "distortion_coefficients": D[:4],
}


def asl(folder: Path, **changes: Any) -> ImportResult:
    fields = {key: value for key, value in {**ASL, **changes}.items() if value is not None}
    (folder / "cam0").mkdir(exist_ok=True)
    (folder / "cam0/sensor.yaml").write_text("%YAML:1.0\n" + yaml.safe_dump(fields))
    return import_calibration(folder)


@pytest.mark.parametrize(
    ("changes", "model"),
    [
        ({"sensor_type": "camera"}, "radtan"),
        ({"sensor_type": "Camera_RGB", "distortion_model": "radtan"}, "radtan"),
        ({"distortion_model": "equi", "distortion_coefficients": FISHEYE}, "equidistant"),
        ({"distortion_model": None, "distortion_coefficients": None}, "pinhole"),
        ({"distortion_model": "none", "distortion_coefficients": [0.0] * 4}, "pinhole"),
        ({"camera_model": None}, "radtan"),
        ({"T_BS": [[1, 0, 0, 0.1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]}, "radtan"),
    ],
)
def test_an_asl_camera_is_never_taken_for_a_place_alone(
    tmp_path: Path, changes: dict[str, Any], model: str
) -> None:
    found = asl(tmp_path, **changes)
    camera = found.calibration.camera("cam0")
    assert (camera.model, camera.fx, camera.width) == (model, 500.0, 640)
    assert found.calibration.transform("body", "cam0")[0, 3] == 0.1
    assert found.findings == ()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"camera_model": "omni"}, "camera_model 'omni'"),
        ({"distortion_model": "fov"}, "distortion_model 'fov' is not read; known"),
        ({"distortion_model": None}, "no distortion_model; add it"),
        ({"resolution": None}, "needs resolution"),
    ],
)
def test_an_asl_camera_that_is_not_understood_is_refused(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(CalibrationError, match=words):
        asl(tmp_path, **changes)


def test_what_an_asl_description_leaves_open_is_a_finding(tmp_path: Path) -> None:
    found = asl(tmp_path, T_BS=None)
    assert checks(found) == {"unknown_frame": Status.INSUFFICIENT}
    assert found.calibration.camera("cam0").fx == 500.0
    (tmp_path / "cam0/sensor.yaml").write_text(yaml.safe_dump({"T_BS": ASL["T_BS"]}))
    assert checks(import_calibration(tmp_path)) == {"unknown_sensor": Status.SUSPECT}


# -- OpenCV's names


def storage(form: int, nodes: dict[str, Any]) -> str:
    file = cv2.FileStorage("", cv2.FILE_STORAGE_WRITE | cv2.FILE_STORAGE_MEMORY | form)
    for key, value in nodes.items():
        if isinstance(value, dict):
            file.startWriteStruct(key, cv2.FILE_NODE_MAP)
            for inner, each in value.items():
                file.write(inner, each)
            file.endWriteStruct()
        else:
            file.write(key, value)
    return str(file.releaseAndGetString())


FORMS = [
    (cv2.FILE_STORAGE_FORMAT_YAML, "front.yml"),
    (cv2.FILE_STORAGE_FORMAT_XML, "front.xml"),
    (cv2.FILE_STORAGE_FORMAT_JSON, "front.json"),
]


@pytest.mark.parametrize(("form", "name"), FORMS)
def test_a_file_of_opencv_is_read_in_each_form_and_beside_maps(tmp_path: Path, form: int, name: str) -> None:
    nodes = {
        "image_width": 640,
        "image_height": 480,
        "camera_matrix": np.array(K).reshape(3, 3),
        "distortion_coefficients": np.array(D).reshape(5, 1),
        "board": {"rows": 6, "cols": 9, "square": 0.025},
    }
    found = imported(tmp_path, storage(form, nodes), name)
    camera = found.calibration.camera("front")
    assert (found.format, camera.model, list(camera.distortion), camera.cx) == ("opencv", "radtan", D, 320.0)
    assert found.findings == ()


@pytest.mark.parametrize(("form", "name"), FORMS)
def test_a_map_for_each_camera_gives_each_camera(tmp_path: Path, form: int, name: str) -> None:
    lens = {"K": np.array(K).reshape(3, 3), "D": np.array([D])}
    nodes = {
        "image_width": 640,
        "image_height": 480,
        "left": lens,
        "right": {**lens, "image_width": 320, "image_height": 240},
        "board": {"rows": 6},
    }
    found = imported(tmp_path, storage(form, nodes), name)
    sizes = {key: (camera.width, camera.fx) for key, camera in found.calibration.cameras.items()}
    assert sizes == {"left": (640, 500.0), "right": (320, 500.0)}


@pytest.mark.parametrize("dump", [yaml.safe_dump, json.dumps], ids=["yaml", "json"])
@pytest.mark.parametrize(
    "fields",
    [
        {"camera_matrix": rows(K), "dist_coeff": [D]},
        {"camera_matrix": rows(K), "dist_coeffs": D, "image_width": 640, "image_height": 480},
        {"mtx": rows(K), "dist": [D], "resolution": [640, 480]},
        {"camera_matrix": rows(K), "distortion_coefficients": [[each] for each in D]},
    ],
)
def test_what_scripts_dump_is_read_with_its_distortion(
    tmp_path: Path, dump: Any, fields: dict[str, Any]
) -> None:
    found = imported(tmp_path, dump(fields), "front.yaml" if dump is yaml.safe_dump else "front.json")
    camera = found.calibration.camera("front")
    assert (camera.model, list(camera.distortion), camera.width) == ("radtan", D, 640)
    has_size = "image_width" in fields or "resolution" in fields
    assert checks(found) == ({} if has_size else {"image_size": Status.INSUFFICIENT})


def test_an_omnidirectional_camera_of_opencv_is_no_plumb_bob(tmp_path: Path) -> None:
    nodes = {
        "camera_matrix": np.array(K).reshape(3, 3),
        "distortion_coefficients": np.array([FISHEYE]),
        "xi": 1.25,
    }
    nodes |= {"image_width": 640, "image_height": 480}
    camera = imported(tmp_path, storage(FORMS[0][0], nodes), "front.yml").calibration.camera("front")
    assert (camera.model, camera.distortion) == ("omni", (1.25, *FISHEYE))


def test_a_file_of_autowares_first_toolkit_places_the_camera_in_the_lidar(tmp_path: Path) -> None:
    pose = np.array([[0.0, 0, 1, 0.5], [-1, 0, 0, 0.1], [0, -1, 0, -0.2], [0, 0, 0, 1]])
    nodes = {
        "CameraExtrinsicMat": pose,
        "CameraMat": np.array(K).reshape(3, 3),
        "DistCoeff": np.array([D]),
        "ImageSize": [640, 480],
        "DistModel": "plumb_bob",
    }
    text = storage(FORMS[0][0], {key: value for key, value in nodes.items() if key != "ImageSize"})
    found = imported(tmp_path, text + "ImageSize: [ 640, 480 ]\n", "front.yml")
    assert found.calibration.camera("front").width == 640
    np.testing.assert_allclose(found.calibration.transform("velodyne", "front"), pose, atol=1e-12)
    assert found.findings == ()


# -- URDF

JOINT = '<joint name="j" type="fixed"><parent link="base"/><child link="cam"/><origin xyz="0 0 1" rpy="0 0 0"/></joint>'
XACRO = 'xmlns:xacro="http://www.ros.org/wiki/xacro"'


@pytest.mark.parametrize(
    "body",
    [
        JOINT.replace("cam", "${prefix}cam"),
        JOINT.replace("cam", "$(arg prefix)cam"),
        JOINT.replace("0 0 1", "0 0 ${height}"),
        JOINT.replace('"j"', '"${prefix}j"'),
        JOINT + '<xacro:sensor_camera name="front" parent="base"/>',
        JOINT + '<xacro:include filename="camera.urdf.xacro"/>',
        JOINT + '<xacro:if value="${has_arm}"><link name="arm"/></xacro:if>',
    ],
)
def test_a_urdf_that_xacro_has_still_to_expand_is_refused_with_the_command(tmp_path: Path, body: str) -> None:
    with pytest.raises(CalibrationError, match=r"run xacro on it first \(xacro FILE > rig.urdf\)"):
        imported(tmp_path, f'<robot name="r" {XACRO}>{body}</robot>', "rig.urdf")


def test_what_xacro_leaves_in_the_head_of_a_urdf_does_no_harm(tmp_path: Path) -> None:
    head = '<xacro:property name="a" value="1"/><xacro:arg name="b" default=""/><!-- ${c} -->'
    found = imported(tmp_path, f'<robot name="r" {XACRO}>{head}{JOINT}</robot>', "rig.urdf")
    assert found.calibration.transform("base", "cam")[2, 3] == 1.0
