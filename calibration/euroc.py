"""EuRoC's sensor.yaml files: cameras and IMUs of an ASL data set folder (``mav0``), and Kimera's, which look alike.

The files announce YAML 1.0, which YAML 1.1 readers refuse, and hold ``T_BS``: sensor points into the body.

Source: Burri et al., "The EuRoC micro aerial vehicle datasets", IJRR 2016, and the format's own comments.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from sensorium.bounded_yaml import BoundedLoader, read_yaml_text
from sensorium.calibration.edges import Edge
from sensorium.calibration.folder_files import files_in
from sensorium.calibration.geometry import Array, Intrinsics, nearest_rotation, transform
from sensorium.calibration.rig_document import RigCalibration
from sensorium.errors import CalibrationError

_MODELS = {
    "radial-tangential": "radtan",
    "radial_tangential": "radtan",
    "radtan": "radtan",
    "plumb_bob": "radtan",
    "brown": "radtan",
    "equidistant": "equidistant",
    "equi": "equidistant",
    "fisheye": "equidistant",
    "kannala_brandt": "equidistant",
    "none": "pinhole",
}
_CAMERA_KEYS = ("intrinsics", "camera_model", "distortion_model", "distortion_coefficients")


def read_euroc(folder: Path | str) -> RigCalibration:
    """Read every ``<sensor>/sensor.yaml`` of an ASL folder; frames are ``body`` and the sensors' folder names.

    Raises:
        CalibrationError: With the file and key that is missing or wrong.
    """
    folder = Path(folder)
    return read_sensors(sensor_files(folder), folder)


def sensor_files(path: Path) -> dict[str, Path]:
    """Return the description of each sensor by the name of its frame.

    Args:
        path: An ASL folder or its ``mav0``, a sensor's folder, its ``sensor.yaml``, or a description of another name
            (Kimera's ``LeftCameraParams.yaml``), which stands for itself; or a folder of such.

    Raises:
        CalibrationError: If a description of another name cannot be read.
    """
    if path.is_file() and path.name != "sensor.yaml":
        return {_own_name(path): path}
    if path.is_file() or (path / "sensor.yaml").is_file():
        path = (path.resolve() if path.is_dir() else path.resolve().parent).parent
    root = path / "mav0" if (path / "mav0").is_dir() else path
    found = {file.parent.name: file for file in files_in(root, "*/sensor.yaml")}
    return found or _descriptions(root)


def _descriptions(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for file in files_in(folder, "*.yaml"):
        if not _is_description(file):
            continue
        name = _own_name(file)
        if name in found:
            raise CalibrationError(
                f"{folder}: {found[name].name} and {file.name} are both called {name}; give each its own camera_id"
            )
        found[name] = file
    return found


def _own_name(path: Path) -> str:
    return str(load_sensor(path).get("camera_id") or path.stem)


def _is_description(path: Path) -> bool:
    try:
        return "T_BS" in load_sensor(path)
    except CalibrationError:
        return False


def is_camera(fields: Mapping[str, Any]) -> bool:
    """Return whether a description is a camera's; old writers leave sensor_type out."""
    kind = fields.get("sensor_type")
    if kind is None:
        return any(key in fields for key in _CAMERA_KEYS)
    return "cam" in str(kind).lower() or "intrinsics" in fields


def read_sensors(files: dict[str, Path], source: Path) -> RigCalibration:
    """Read the descriptions of the sensors of one body.

    Raises:
        CalibrationError: With the file and key that is missing or wrong.
    """
    cameras, edges = {}, []
    for name, path in files.items():
        fields = load_sensor(path)
        if is_camera(fields):
            cameras[name] = _camera(fields, path)
        if fields.get("T_BS") is not None:
            edges.append(
                Edge("body", name, _pose(fields["T_BS"], path), source=str(fields.get("comment", "")))
            )
    if not edges and not cameras:
        raise CalibrationError(f"{source}: no sensor.yaml with a T_BS or a camera in this EuRoC folder")
    return RigCalibration(rig="euroc", source=source.name, cameras=cameras, edges=tuple(edges))


def load_sensor(path: Path) -> dict[str, Any]:
    """Return the fields of a description.

    Raises:
        CalibrationError: If it cannot be read or is no mapping.
    """
    try:
        text = read_yaml_text(path)
    except (OSError, UnicodeDecodeError) as err:
        raise CalibrationError(f"{path} cannot be read: {err}") from err
    if text.startswith("%YAML:"):
        text = text.partition("\n")[2]
    try:
        fields = yaml.load(text, Loader=BoundedLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as err:
        raise CalibrationError(f"{path} is not YAML: {' '.join(str(err).split())}") from err
    if not isinstance(fields, dict):
        raise CalibrationError(f"{path}: a sensor description was expected, found {type(fields).__name__}")
    return fields


def _camera(fields: dict[str, Any], path: Path) -> Intrinsics:
    kind = str(fields.get("camera_model") or "pinhole").lower()
    bent = str(fields.get("distortion_model") or "none").lower()
    if kind != "pinhole" or bent not in _MODELS:
        raise CalibrationError(
            f"{path}: camera_model {kind!r} with distortion_model {bent!r} is not read; known: pinhole with "
            f"{', '.join(_MODELS)}"
        )
    try:
        width, height = (int(value) for value in fields["resolution"])
        fx, fy, cx, cy = (float(value) for value in fields["intrinsics"])
        distortion = tuple(float(value) for value in fields.get("distortion_coefficients") or ())
    except (KeyError, TypeError, ValueError, OverflowError) as err:
        raise CalibrationError(f"{path}: camera needs resolution, intrinsics and distortion: {err}") from err
    if bent == "none" and any(distortion):
        raise CalibrationError(f"{path}: camera has distortion_coefficients and no distortion_model; add it")
    try:
        return Intrinsics(_MODELS[bent], width, height, fx, fy, cx, cy, () if bent == "none" else distortion)
    except CalibrationError as err:
        raise CalibrationError(f"{path}: {err}") from err


def _pose(field: Any, path: Path) -> Array:
    values = field.get("data") if isinstance(field, dict) else field
    try:
        matrix = np.array(values, np.float64).reshape(4, 4)
    except (TypeError, ValueError) as err:
        raise CalibrationError(f"{path}: T_BS needs data with 16 numbers: {err}") from err
    return transform(nearest_rotation(matrix[:3, :3]), matrix[:3, 3])
