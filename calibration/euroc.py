"""EuRoC's sensor.yaml files: cameras and IMUs of an ASL data set folder (``mav0``).

The files announce YAML 1.0, which YAML 1.1 readers refuse, and hold ``T_BS``: sensor points into the body.

Source: Burri et al., "The EuRoC micro aerial vehicle datasets", IJRR 2016, and the format's own comments.
"""

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from sensorium.calibration.edges import Edge
from sensorium.calibration.geometry import Array, Intrinsics, nearest_rotation, transform
from sensorium.calibration.rig_document import RigCalibration
from sensorium.errors import CalibrationError

_MODELS = {"radial-tangential": "radtan", "equidistant": "equidistant"}


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
            (Kimera's ``LeftCameraParams.yaml``), which stands for itself.

    Raises:
        CalibrationError: If a description of another name cannot be read.
    """
    if path.is_file() and path.name != "sensor.yaml":
        return {str(_load(path).get("camera_id") or path.stem): path}
    if path.is_file() or (path / "sensor.yaml").is_file():
        path = (path.resolve() if path.is_dir() else path.resolve().parent).parent
    root = path / "mav0" if (path / "mav0").is_dir() else path
    return {file.parent.name: file for file in sorted(root.glob("*/sensor.yaml"))}


def read_sensors(files: dict[str, Path], source: Path) -> RigCalibration:
    """Read the descriptions of the sensors of one body.

    Raises:
        CalibrationError: With the file and key that is missing or wrong.
    """
    cameras, edges = {}, []
    for name, path in files.items():
        fields = _load(path)
        # Old writers leave sensor_type out.
        if fields.get("sensor_type", "camera" if "distortion_model" in fields else "") == "camera":
            cameras[name] = _camera(fields, path)
        if "T_BS" in fields:
            edges.append(
                Edge("body", name, _pose(fields["T_BS"], path), source=str(fields.get("comment", "")))
            )
    if not edges:
        raise CalibrationError(f"{source}: no sensor.yaml with a T_BS in this EuRoC folder")
    return RigCalibration(rig="euroc", source=source.name, cameras=cameras, edges=tuple(edges))


def _load(path: Path) -> dict[str, Any]:
    text = path.read_text(encoding="utf-8")
    if text.startswith("%YAML:"):
        text = text.partition("\n")[2]
    try:
        fields = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as err:
        raise CalibrationError(f"{path} is not YAML: {' '.join(str(err).split())}") from err
    if not isinstance(fields, dict):
        raise CalibrationError(f"{path}: a sensor description was expected, found {type(fields).__name__}")
    return fields


def _camera(fields: dict[str, Any], path: Path) -> Intrinsics:
    try:
        model = _MODELS[fields["distortion_model"]]
        width, height = fields["resolution"]
        fx, fy, cx, cy = (float(value) for value in fields["intrinsics"])
        distortion = tuple(float(value) for value in fields["distortion_coefficients"])
    except (KeyError, TypeError, ValueError) as err:
        raise CalibrationError(f"{path}: camera needs resolution, intrinsics and distortion: {err}") from err
    return Intrinsics(model, int(width), int(height), fx, fy, cx, cy, distortion)


def _pose(field: Any, path: Path) -> Array:
    try:
        matrix = np.array(field["data"], np.float64).reshape(4, 4)
    except (KeyError, TypeError, ValueError) as err:
        raise CalibrationError(f"{path}: T_BS needs data with 16 numbers: {err}") from err
    return transform(nearest_rotation(matrix[:3, :3]), matrix[:3, 3])
