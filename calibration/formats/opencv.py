"""OpenCV FileStorage (yml, xml; read and write) and the sensor.yaml of EuRoC (read).

Frames: a stereo file (``M1 D1 M2 D2 R T``) gives ``left`` and ``right``, a file of one camera its ``camera_name``,
else the file's name (our writer adds ``name1`` and ``name2``), a file with a map for each camera the maps' keys.
``R T`` take points of the first camera into the second. Lengths are in the units of the board: metres only if its
squares were given in metres. EuRoC's ``T_BS`` takes points of the sensor into the body; frames are ``body`` and the
folders' names.

The same names in plain YAML or JSON, as scripts in Python dump them, and those of Autoware's first toolkit are read,
too (``CameraMat``; ``CameraExtrinsicMat`` is the camera's pose in ``velodyne``); ``xi`` makes a camera omni.

Source: OpenCV's samples stereo_calib.cpp and calibration.cpp; the comments in EuRoC's own files.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from sensorium.calibration.euroc import is_camera, read_sensors, sensor_files
from sensorium.calibration.formats.draft import (
    Draft,
    field_of,
    in_frames,
    list_of,
    read_text,
    read_yaml,
    size_of,
)
from sensorium.calibration.formats.lens_words import note_no_distortion, stated_model
from sensorium.calibration.formats.storage import plain, read_storage
from sensorium.calibration.geometry import Array, inverse, transform
from sensorium.calibration.rig_document import RigCalibration
from sensorium.errors import CalibrationError
from sensorium.verdict import Status, Verdict

_MATRIX_KEYS = (
    "camera_matrix",
    "Camera_Matrix",
    "cameraMatrix",
    "CameraMatrix",
    "CameraMat",
    "K",
    "mtx",
    "intrinsic_matrix",
)
_DISTORTION_KEYS = (
    "distortion_coefficients",
    "Distortion_Coefficients",
    "distCoeffs",
    "DistCoeffs",
    "DistCoeff",
    "distortion",
    "dist_coeffs",
    "dist_coeff",
    "dist",
    "D",
)
_MODEL_KEYS = ("distortion_model", "DistModel")
_RMS_KEYS = ("avg_reprojection_error", "Avg_Reprojection_Error", "rms")
_WRITTEN = ("pinhole", "radtan", "rational", "equidistant")
_SIZE_KEYS = (
    ("image_width", "image_height"),
    ("image_Width", "image_Height"),
    ("imageWidth", "imageHeight"),
    ("width", "height"),
)
_AUTOWARE_LIDAR = "velodyne"
_FISHEYE_KEYS = ("fisheye_model", "fisheye")


def read(
    path: Path | str, findings: list[Verdict] | None = None, size: tuple[int, int] | None = None
) -> RigCalibration:
    """Read a FileStorage file; of ``intrinsics.yml`` and ``extrinsics.yml`` either one reads both.

    Args:
        size: Width and height of the images where the file does not say.

    Raises:
        CalibrationError: If it is no FileStorage or holds no camera.
    """
    path = Path(path)
    draft = Draft(path, findings)
    nodes: dict[str, Any] = {}
    for file in _partners(path):
        nodes |= _nodes(file)
    size = _size(nodes, draft) or size
    if "M1" in nodes:
        _read_pair(draft, nodes, size)
    elif _key_of(nodes, _MATRIX_KEYS):
        _read_one(draft, nodes, str(nodes.get("camera_name") or nodes.get("name1") or path.stem), size)
    else:
        _read_nested(draft, nodes, size)
    return draft.finish(rig="opencv", date=str(nodes.get("date", "")))


def claims(fields: dict[str, Any]) -> bool:
    """Return whether a plain YAML or JSON mapping holds a camera under OpenCV's names, as scripts in Python dump it."""
    return bool(_key_of(fields, _MATRIX_KEYS) and _key_of(fields, _DISTORTION_KEYS))


def _key_of(nodes: dict[str, Any], keys: tuple[str, ...]) -> str:
    return next((key for key in keys if nodes.get(key) is not None), "")


def _read_pair(draft: Draft, nodes: dict[str, Any], size: tuple[int, int] | None) -> None:
    names = [str(nodes.get(f"name{k}") or default) for k, default in ((1, "left"), (2, "right"))]
    for number, name in enumerate(names, 1):
        if f"M{number}" in nodes:
            _add_camera(draft, name, nodes, f"M{number}", f"D{number}", size)
    if "R" in nodes and "T" in nodes:
        R = draft.rotation(_flat(nodes["R"]), "~".join(names))
        T_second_first = transform(R, draft.numbers(_flat(nodes["T"]), 3, "T"))
        draft.add_edge(names[0], names[1], inverse(T_second_first))


def _read_one(draft: Draft, nodes: dict[str, Any], name: str, size: tuple[int, int] | None) -> None:
    rms = next((nodes[key] for key in _RMS_KEYS if isinstance(nodes.get(key), float)), None)
    _add_camera(draft, name, nodes, _key_of(nodes, _MATRIX_KEYS), _key_of(nodes, _DISTORTION_KEYS), size, rms)
    if "CameraExtrinsicMat" in nodes:  # Autoware's first toolkit: the camera's pose in the LiDAR
        T = draft.rigid(_flat(nodes["CameraExtrinsicMat"]), f"{_AUTOWARE_LIDAR}~{name}")
        if np.allclose(T, np.eye(4)):
            return  # the toolkit fills in what it did not measure
        draft.add_edge(_AUTOWARE_LIDAR, name, T)


def _read_nested(draft: Draft, nodes: dict[str, Any], size: tuple[int, int] | None) -> None:
    """Read the cameras of a file that holds one map for each, called by its key."""
    inner = {key: node for key, node in nodes.items() if isinstance(node, dict)}
    cameras = {key: node for key, node in inner.items() if _key_of(node, _MATRIX_KEYS)}
    if not cameras:
        raise draft.error(
            "no camera matrix (M1 or camera_matrix) in this OpenCV FileStorage; found: "
            f"{', '.join(nodes)[:120] or 'nothing'}"
        )
    for key, node in cameras.items():
        _read_one(draft, node, str(node.get("camera_name") or key), _size(node, draft) or size)


def _flat(values: Any) -> list[Any]:
    """Return the numbers of a matrix, of rows, of a list, or of a map with ``data``, in rows."""
    if isinstance(values, dict):
        values = values.get("data")
    if isinstance(values, np.ndarray):
        return list(values.reshape(-1).tolist())
    if not isinstance(values, list):
        return [] if values is None else [values]
    return [each for part in values for each in (_flat(part) if isinstance(part, list) else [part])]


def _add_camera(
    draft: Draft,
    name: str,
    nodes: dict[str, Any],
    matrix_key: str,
    distortion_key: str,
    size: tuple[int, int] | None,
    rms: float | None = None,
) -> None:
    if not distortion_key:
        note_no_distortion(draft, name)
    coefficients = list_of(_flat(nodes.get(distortion_key)), draft, distortion_key or "distortion")
    matrix = _flat(nodes[matrix_key])
    if nodes.get("xi") is not None:
        _add_omni(draft, name, matrix, nodes["xi"], coefficients, size)
        return
    model = str(nodes.get(_key_of(nodes, _MODEL_KEYS), ""))
    if any(nodes.get(key) for key in _FISHEYE_KEYS):
        model = model or "equidistant"
    elif model or nodes.get("camera_model") is not None:
        model = stated_model({**nodes, "distortion_model": model}, draft, name, coefficients)
    if not model and len(coefficients) > 5:
        model = "rational" if len(coefficients) == 8 or not any(coefficients[8:]) else ""
    draft.add_camera(name, model, matrix, size, coefficients, rms)


def _add_omni(
    draft: Draft,
    name: str,
    matrix: list[Any],
    xi: Any,
    coefficients: list[float],
    size: tuple[int, int] | None,
) -> None:
    """Add a camera of OpenCV's omnidir module: Mei's model, k1 k2 p1 p2."""
    K = draft.numbers(matrix, 9, f"camera matrix of {name}").reshape(3, 3)
    shift = float(draft.numbers(_flat(xi), 1, "xi")[0])
    if len(coefficients) not in (0, 4):
        raise draft.error(f"camera {name} has xi, so 4 distortion coefficients, found {len(coefficients)}")
    focal = (K[0, 0], K[1, 1], K[0, 2], K[1, 2])
    draft.add_lens(name, "omni", size, focal, [shift, *(coefficients or [0.0] * 4)])


def _partners(path: Path) -> list[Path]:
    """Return the file and its twin: stereo_calib writes intrinsics and extrinsics apart."""
    for own, other in (("intrinsics", "extrinsics"), ("extrinsics", "intrinsics")):
        if path.stem == own:
            twin = path.with_name(other + path.suffix)
            return [path, twin] if twin.exists() else [path]
    return [path]


def _size(nodes: dict[str, Any], draft: Draft) -> tuple[int, int] | None:
    for width, height in _SIZE_KEYS:
        if width in nodes and height in nodes:
            return size_of(nodes[width], nodes[height], draft, "image size")
    for key in ("image_size", "imageSize", "ImageSize", "resolution", "size"):
        found = _flat(nodes.get(key))
        if len(found) == 2:
            return size_of(found[0], found[1], draft, key)
    return None


def _nodes(path: Path) -> dict[str, Any]:
    """Return what stands at the top of a FileStorage: matrices, numbers, strings, lists and maps of them."""
    text = read_text(path)
    if "opencv-matrix" not in text and "<opencv_storage" not in text:
        return read_storage(path)
    try:
        # From memory: cv2 takes a path of any kind, but says nothing useful about a missing or odd one.
        storage = cv2.FileStorage(text, cv2.FILE_STORAGE_READ | cv2.FILE_STORAGE_MEMORY)
        root = storage.root()
        fields = plain(root)
        found = (
            {key: value for key, value in fields.items() if value is not None}
            if isinstance(fields, dict)
            else {}
        )
        storage.release()
    except (cv2.error, SystemError, UnicodeDecodeError) as err:  # the binding lets such slip on damage
        raise CalibrationError(
            f"calibration file {path} is not an OpenCV FileStorage: it is cut off or was edited; "
            "copy it again from where it was written"
        ) from err
    return found


def read_sensor_yaml(path: Path | str, findings: list[Verdict] | None = None) -> RigCalibration:
    """Read an EuRoC (ASL) folder, the folder that a sensor.yaml belongs to, or one such file of another name.

    Raises:
        CalibrationError: With the file and key that is missing or wrong.
    """
    path = Path(path)
    files = sensor_files(path)
    calibration = read_sensors(files, path)
    draft = Draft(path, findings)
    for name, file in files.items():
        draft.path, fields = file, read_yaml(file)
        pose = fields.get("T_BS")
        if pose is not None:
            draft.rigid(
                field_of(pose, "data", draft, "T_BS") if isinstance(pose, dict) else pose, f"body~{name}"
            )
        _note_silence(draft, name, fields)
        draft.add_imu_noise(name, fields, str(fields.get("comment", "sensor.yaml")))
    return replace(calibration, imus=draft.imus)


def _note_silence(draft: Draft, name: str, fields: dict[str, Any]) -> None:
    """Note what a description leaves open about its sensor."""
    if fields.get("T_BS") is None:
        sentence = f"{draft.path.name} has no T_BS: where {name} stands is not known; add it"
        draft.note("unknown_frame", name, Status.INSUFFICIENT, sentence)
    is_imu = any("noise_density" in str(key) for key in fields)
    if "sensor_type" not in fields and not is_camera(fields) and not is_imu:
        sentence = f"{draft.path.name} does not say what {name} is (sensor_type): only its place was read"
        draft.note("unknown_sensor", name, Status.SUSPECT, sentence)


def write(
    calibration: RigCalibration, path: Path | str, cameras: tuple[str, ...] | None = None
) -> tuple[str, ...]:
    """Write one camera, or two with the transform between them, as YAML or (by the file's name) XML.

    Args:
        cameras: Which ones, first the left; by default all, if there are one or two.

    Returns:
        One sentence for each thing that the format cannot carry.

    Raises:
        CalibrationError: If there are more than two cameras, or the file cannot be written.
    """
    names = cameras if cameras is not None else _left_first(calibration)
    if not 1 <= len(names) <= 2:
        raise CalibrationError(
            f"an OpenCV file holds one or two cameras, the calibration has {len(names)}: "
            f"choose with --cameras ({', '.join(names) or 'none'})"
        )
    found = [calibration.camera(name) for name in names]
    odd = next(
        (name for name, camera in zip(names, found, strict=True) if camera.model not in _WRITTEN), None
    )
    if odd is not None:
        raise CalibrationError(
            f"OpenCV's file has no lens model for camera {odd} ({calibration.camera(odd).model}); "
            "convert to kalibr or sensorium, which have"
        )
    if len({(camera.width, camera.height) for camera in found}) > 1:
        raise CalibrationError(f"{names[0]} and {names[1]} have different image sizes; write them one by one")
    if len({camera.model == "equidistant" for camera in found}) > 1:
        raise CalibrationError(f"of {names[0]} and {names[1]} one is a fisheye; write them one by one")
    is_xml = Path(path).suffix == ".xml"
    flags = cv2.FILE_STORAGE_WRITE | cv2.FILE_STORAGE_MEMORY
    flags |= cv2.FILE_STORAGE_FORMAT_XML if is_xml else cv2.FILE_STORAGE_FORMAT_YAML
    storage = cv2.FileStorage("", flags)
    storage.write("image_width", found[0].width)
    storage.write("image_height", found[0].height)
    if found[0].model == "equidistant":
        storage.write("fisheye_model", 1)
    if len(names) == 1:
        storage.write("camera_name", names[0])
        storage.write("camera_matrix", found[0].K)
        storage.write("distortion_coefficients", _coefficients(found[0].distortion))
    else:
        for number, (name, camera) in enumerate(zip(names, found, strict=True), 1):
            storage.write(f"name{number}", name)
            storage.write(f"M{number}", camera.K)
            storage.write(f"D{number}", _coefficients(camera.distortion))
        if calibration.has_transform(names[1], names[0]):
            T_second_first = calibration.transform(names[1], names[0])
            storage.write("R", np.ascontiguousarray(T_second_first[:3, :3]))
            storage.write("T", np.ascontiguousarray(T_second_first[:3, 3:]))
    Path(path).write_text(storage.releaseAndGetString(), encoding="utf-8")
    return in_frames(calibration, names)


def _coefficients(distortion: tuple[float, ...]) -> Array:
    return np.array([distortion if distortion else (0.0,) * 5], np.float64)


def _left_first(calibration: RigCalibration) -> tuple[str, ...]:
    names = tuple(sorted(calibration.cameras))
    if len(names) == 2 and calibration.has_transform(*names) and calibration.transform(*names)[0, 3] < 0:
        return names[::-1]
    return names
