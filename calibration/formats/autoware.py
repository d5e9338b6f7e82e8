"""Autoware's ``sensor_kit_calibration.yaml`` and ``sensors_calibration.yaml`` (read).

Frames keep their names. Each entry is the pose of the child in its parent: metres, and roll, pitch, yaw about fixed
axes in **radians** (R = Rz Ry Rx, as in a URDF). The description's xacro adds what the files do not say: beside a
``.../camera_link`` it hangs ``.../camera_optical_link``, which images are in (taken so here); above a
``..._base_link`` the maker's macro puts the frame of the clouds, at a height that only an expanded URDF tells. A URDF
in the same folder is read with them, and camera_info files too.

Source: autowarefoundation/sample_sensor_kit_launch and autoware-documentation, "Creating sensor model".
"""

from pathlib import Path
from typing import Any

import numpy as np

from sensorium.calibration.folder_files import files_in
from sensorium.calibration.formats import ros
from sensorium.calibration.formats.draft import Draft, read_yaml
from sensorium.calibration.geometry import R_BODY_OPTICAL, rotation_from_rpy, transform
from sensorium.calibration.rig_document import RigCalibration
from sensorium.verdict import Quantity, Status, Verdict

FILES = ("sensors_calibration.yaml", "sensor_kit_calibration.yaml")
_KEYS = ("x", "y", "z", "roll", "pitch", "yaw")
_CAMERA, _OPTICAL = "camera_link", "camera_optical_link"
_LIDAR_BASE = "_base_link"
_NOT_SENSORS = ("sensor_kit_base_link", "base_link")
# 3 decimals of pi / 2; no mount is written with more than a turn, and degrees of a whole quarter always are.
_TURN_RAD = 2 * np.pi + 1e-3


def claims(fields: dict[str, Any]) -> bool:
    """Return whether a YAML mapping is of this form: parents, each with children that have x and yaw."""
    children = [child for group in fields.values() if isinstance(group, dict) for child in group.values()]
    return (
        bool(children)
        and all(isinstance(group, dict) for group in fields.values())
        and all(isinstance(child, dict) and "yaw" in child and "x" in child for child in children)
    )


def read(
    path: Path | str,
    findings: list[Verdict] | None = None,
    size: tuple[int, int] | None = None,  # noqa: ARG001 - camera_info always says
) -> RigCalibration:
    """Read one file, or a folder with both files, and a URDF and camera_info files if there are any.

    Raises:
        CalibrationError: With the file and the key that is missing or wrong.
    """
    path = Path(path)
    draft = Draft(path, findings)
    files = [path] if path.is_file() else [path / name for name in FILES if (path / name).is_file()]
    described: set[str] = set()
    if path.is_dir():
        described = _read_beside(draft, path)
    for file in files:
        draft.path = file
        for parent, children in read_yaml(file).items():
            for child, pose in children.items() if isinstance(children, dict) else ():
                _read_pose(draft, str(parent), str(child), pose)
    draft.path = path
    _add_optical(draft, described)
    return draft.finish(rig="autoware")


def _read_beside(draft: Draft, folder: Path) -> set[str]:
    """Read URDF and camera_info files; return the frames that the URDF knows."""
    beside = files_in(folder, "*.urdf")
    beside += [
        file
        for file in files_in(folder, "*.yaml")
        if file.name not in FILES and ros.is_camera_info(read_yaml(file))
    ]
    known: set[str] = set()
    for file in beside:
        part = ros.read(file, draft.findings)
        draft.cameras |= dict(part.cameras)
        for edge in part.edges:
            draft.add_edge(edge.parent, edge.child, edge.T_parent_child)
            known |= {edge.parent, edge.child}
    return known


def _read_pose(draft: Draft, parent: str, child: str, pose: Any) -> None:
    if not isinstance(pose, dict):
        raise draft.error(f"{parent}.{child} must hold {' '.join(_KEYS)}, found {str(pose)[:60]}")
    missing = [key for key in _KEYS if key not in pose]
    if missing:
        raise draft.error(f"{parent}.{child}.{missing[0]} is missing; it must hold {' '.join(_KEYS)}")
    unknown = [str(key) for key in pose if key not in _KEYS]
    if unknown:
        raise draft.error(
            f"{parent}.{child}.{unknown[0]}: unknown key; known: {' '.join(_KEYS)} (metres, radians)"
        )
    numbers = draft.numbers([pose[key] for key in _KEYS], 6, f"{parent}.{child}")
    largest = float(np.abs(numbers[3:]).max())
    if largest > _TURN_RAD:
        draft.note(
            "degrees",
            f"{parent}~{child}",
            Status.FAILED,
            f"roll, pitch, yaw of {child} are {' '.join(f'{value:g}' for value in numbers[3:])}: more than a turn, "
            "so in degrees; Autoware takes radians: multiply by pi / 180",
            (Quantity("angle", largest, "rad", float(_TURN_RAD)),),
        )
    draft.add_edge(parent, child, transform(rotation_from_rpy(*numbers[3:]), numbers[:3]))


def _add_optical(draft: Draft, described: set[str]) -> None:
    """Add the frame that images are in, where no URDF has it, and name clouds whose frame is not known."""
    names = {edge.child for edge in draft.edges}
    for name in sorted(names - described):
        if name.endswith(_CAMERA):
            optical = name.removesuffix(_CAMERA) + _OPTICAL
            if optical not in names | described:
                draft.add_edge(name, optical, transform(R_BODY_OPTICAL, np.zeros(3)))
                sentence = f"{optical} was added as the xacro does: rpy -pi/2 0 -pi/2 of {name}"
                draft.note("added_frame", optical, Status.OK, sentence)
        elif name.endswith(_LIDAR_BASE) and name not in _NOT_SENSORS:
            own = name.removesuffix(_LIDAR_BASE)
            if own not in described:
                sentence = (
                    f"clouds are in {own}, which the maker's xacro hangs above {name} (some centimetres): put the "
                    "expanded URDF into the folder (xacro sensor_kit.xacro > rig.urdf)"
                )
                draft.note("unknown_frame", own, Status.SUSPECT, sentence)
