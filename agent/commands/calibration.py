"""What `sensorium calibration show|convert` do; each function returns an exit code."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich.table import Table

from sensorium.agent.calibrating.checking.report import judged_document
from sensorium.agent.commands.display import print_findings
from sensorium.agent.commands.output import print_json, today
from sensorium.agent.commands.terminal import table_console
from sensorium.calibration import lenses
from sensorium.calibration.formats import foxglove, kalibr, kitti, opencv, ros
from sensorium.calibration.formats.detect import import_calibration
from sensorium.calibration.geometry import Intrinsics, difference, rpy_from_rotation
from sensorium.calibration.rig_document import RigCalibration
from sensorium.calibration.sensor_models import ImuModel, MicrophoneArray, Payload
from sensorium.errors import CalibrationError, UsageError
from sensorium.timebase import HostClock
from sensorium.verdict import Status

WRITERS = ("sensorium", "kalibr", "ros", "urdf", "opencv", "foxglove", "kitti")
_BY_SUFFIX = {
    ".yaml": "sensorium",
    ".urdf": "urdf",
    ".yml": "opencv",
    ".xml": "opencv",
    ".mcap": "foxglove",
    ".txt": "kitti",
    "": "ros",
}
# What a file must give back of what was written into it.
_SAME_RAD_M = 1e-6


def parse_size(text: str | None) -> tuple[int, int] | None:
    """Return width and height of ``WIDTHxHEIGHT``.

    Raises:
        UsageError: If it is not of that form.
    """
    if text is None:
        return None
    width, found, height = text.lower().partition("x")
    if not found or not width.isdecimal() or not height.isdecimal() or not int(width) or not int(height):
        raise UsageError(f"--size must be WIDTHxHEIGHT such as 1280x720, found {text!r}")
    return int(width), int(height)


# -- show


def show_calibration(path: Path, size: str | None, as_json: bool) -> int:
    """Print what a calibration file says, and what is odd about it; 1 if a finding is a failure."""
    found = import_calibration(path, parse_size(size), today=today())
    calibration = found.calibration
    code = 1 if found.status is Status.FAILED else 0
    if as_json:
        print_json(
            {
                "format": found.format,
                "id": calibration.calibration_id,
                "calibration": yaml.safe_load(calibration.dump()),
                "findings": [judged_document(finding) for finding in found.findings],
                "exit_code": code,
            }
        )
        return code
    console = table_console()
    console.print(
        f"{path}: {found.format}, id {calibration.calibration_id}"
        + (f", rig {calibration.rig}" if calibration.rig else "")
        + (f", of {calibration.date}" if calibration.date else ""),
        soft_wrap=True,
    )
    if calibration.cameras:
        console.print(_camera_table(calibration))
    if calibration.edges:
        console.print(_edge_table(calibration))
    for sentence in _known_readings(calibration):
        console.print(sentence, soft_wrap=True)
    print_findings(console, found.findings)
    return code


def _camera_table(calibration: RigCalibration) -> Table:
    table = Table("camera", "model", "image", "fx", "fy", "cx", "cy", "distortion", "board rms px")
    for name, camera in sorted(calibration.cameras.items()):
        table.add_row(
            name,
            camera.model,
            f"{camera.width}x{camera.height}",
            *(f"{value:.2f}" for value in (camera.fx, camera.fy, camera.cx, camera.cy)),
            " ".join(f"{value:.4g}" for value in camera.distortion),
            "" if camera.board_rms_px is None else f"{camera.board_rms_px:.2f}",
        )
    return table


def _edge_table(calibration: RigCalibration) -> Table:
    table = Table(
        "parent", "child", "x y z m", "roll pitch yaw deg", "sigma", "time offset", "source", "date"
    )
    for edge in calibration.edges:
        rpy = np.rad2deg(rpy_from_rotation(edge.T_parent_child[:3, :3]))
        sigma = ""
        if edge.covariance is not None:
            root = np.sqrt(np.maximum(np.diag(edge.covariance), 0))
            sigma = f"{np.rad2deg(root[:3].max()):.2g} deg, {root[3:].max() * 1000:.2g} mm"
        table.add_row(
            edge.parent,
            edge.child,
            " ".join(f"{value:.4f}" for value in edge.T_parent_child[:3, 3]),
            " ".join(f"{value:.2f}" for value in rpy),
            sigma,
            "" if edge.time_offset_s is None else f"{edge.time_offset_s * 1000:.2f} ms",
            edge.source,
            edge.date,
        )
    return table


def _known_readings(calibration: RigCalibration) -> list[str]:
    """Return a sentence for each IMU, force sensor and array of which the document knows what it reads."""
    found = []
    for name, imu in sorted(calibration.imus.items()):
        parts = [
            f"{label} {_joined(values)} {unit}"
            for label, values, unit in (
                ("gyro bias", imu.gyro_bias_rad_s, "rad/s"),
                ("accelerometer bias", imu.acc_bias_m_s2, "m/s^2"),
                ("gyro noise", imu.gyro_noise_rad_s, "rad/s/sqrt(Hz)"),
                ("accelerometer noise", imu.acc_noise_m_s2, "m/s^2/sqrt(Hz)"),
            )
            if values is not None
        ]
        found.append(f"IMU {name}: {', '.join(parts) or 'nothing known'}{_origin(imu)}")
    for name, load in sorted(calibration.force_torque.items()):
        found.append(
            f"force/torque {name}: {load.mass_kg:.4g} kg at {_joined(load.centre_m)} m, bias "
            f"{_joined(load.force_bias_n)} N, {_joined(load.torque_bias_nm)} N m{_origin(load)}"
        )
    for name, array in sorted(calibration.microphones.items()):
        polarity = f", polarity {list(array.polarity)}" if array.polarity else ""
        found.append(f"microphones {name}: {len(array.positions_m)} positions{polarity}{_origin(array)}")
    return found


def _joined(values: Any) -> str:
    return " ".join(f"{value:.4g}" for value in np.atleast_1d(values))


def _origin(model: ImuModel | Payload | MicrophoneArray) -> str:
    said = ", ".join(word for word in (model.source, model.date) if word)
    return f" ({said})" if said else ""


# -- convert


def convert_calibration(
    source: Path,
    target: Path,
    to: str | None,
    size: str | None,
    cameras: str | None,
    force: bool,
    as_json: bool,
) -> int:
    """Write a calibration in another format, read it back and compare.

    Raises:
        UsageError: If the target exists, or its format is not named and not clear from its name.
        CalibrationError: If the source is damaged or the format cannot hold it.
    """
    name = to or _BY_SUFFIX.get(target.suffix.lower())
    if name not in WRITERS:
        raise UsageError(f"format of {target} is not clear: add --to {'|'.join(WRITERS)}")
    if target.exists() and not force:
        raise UsageError(f"{target} exists; choose another name or add --force")
    found = import_calibration(source, parse_size(size))
    if found.status is Status.FAILED and not force:
        reasons = [r for f in found.findings if f.status is Status.FAILED for r in f.reasons]
        raise CalibrationError(f"{source} is not converted: {reasons[0]} (or add --force)")
    chosen = tuple(cameras.split(",")) if cameras else None
    calibration = (
        _only_cameras(found.calibration, chosen) if chosen and name != "opencv" else found.calibration
    )
    if not target.parent.is_dir():
        raise UsageError(f"folder {target.parent} does not exist")
    notes = _write(name, calibration, target, chosen)
    notes += _differences(name, calibration, target)
    if as_json:
        document = {"from": found.format, "to": name, "path": str(target), "notes": notes}
        print_json(document | {"findings": [judged_document(finding) for finding in found.findings]})
        return 0
    console = table_console()
    console.print(f"{target}: written as {name}, read back and compared", soft_wrap=True)
    for note in notes:
        console.print(f"  {note}", soft_wrap=True)
    print_findings(console, found.findings)
    return 0


def _only_cameras(calibration: RigCalibration, names: tuple[str, ...]) -> RigCalibration:
    return replace(calibration, cameras={name: calibration.camera(name) for name in names})


def _write(
    name: str, calibration: RigCalibration, target: Path, cameras: tuple[str, ...] | None
) -> list[str]:
    try:
        if name == "sensorium":
            calibration.save(target)
            return []
        if name == "opencv":
            return list(opencv.write(calibration, target, cameras))
        if name == "foxglove":
            return list(foxglove.write(calibration, target, HostClock().utc_ns()))
        plain: dict[str, Callable[..., tuple[str, ...]]] = {
            "kalibr": kalibr.write,
            "ros": ros.write,
            "urdf": ros.write_urdf,
            "kitti": kitti.write,
        }
        return list(plain[name](calibration, target))
    except OSError as err:
        raise CalibrationError(f"{target} cannot be written: {err}") from err


def _differences(name: str, calibration: RigCalibration, target: Path) -> list[str]:
    """Return what reads back otherwise than it was written; a difference in a number is an error.

    Raises:
        CalibrationError: If a transform or a camera that both have differs.
    """
    size = next(((c.width, c.height) for c in calibration.cameras.values()), None)
    again = import_calibration(target, size).calibration
    for edge in calibration.edges:
        if again.has_transform(edge.parent, edge.child):
            gap = difference(again.transform(edge.parent, edge.child), edge.T_parent_child)
            if float(np.abs(gap).max()) > _SAME_RAD_M:
                raise CalibrationError(
                    f"{target}: {edge.parent} -> {edge.child} reads back otherwise: report this"
                )
    for camera_name, camera in calibration.cameras.items():
        other = again.cameras.get(camera_name)
        if other is not None and not _same_lens(camera, other):
            raise CalibrationError(f"{target}: camera {camera_name} reads back otherwise: report this")
    lost = []
    if name != "sensorium":
        if any(edge.covariance is not None for edge in calibration.edges):
            lost.append("covariances")
        if calibration.references:
            lost.append("reference readings")
        if calibration.imus or calibration.force_torque or calibration.microphones:
            lost.append("what IMUs, force/torque sensors and microphones are known to read")
        if name != "kalibr" and any(edge.time_offset_s is not None for edge in calibration.edges):
            lost.append("time offsets")
    return [f"left out, the format has no place for it: {', '.join(lost)}"] if lost else []


def _same_lens(a: Intrinsics, b: Intrinsics) -> bool:
    first, second = (
        np.array([*camera.K.ravel(), *(*camera.distortion, *(0.0,) * 8)[:8], camera.width, camera.height])
        for camera in (a, b)
    )
    same_kind = a.model == b.model or not {a.model, b.model} & set(lenses.COUNTS)
    return same_kind and bool(np.allclose(first, second, rtol=1e-9, atol=1e-9))
