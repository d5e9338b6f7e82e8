"""What `sensorium calibration show|convert|check` do; each function returns an exit code."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml
from rich.console import Console
from rich.table import Table

from sensorium.agent.calibrating.checking.references import references_of
from sensorium.agent.calibrating.checking.report import CheckReport, degrees, montage
from sensorium.agent.calibrating.checking.run import run_checks
from sensorium.agent.calibrating.recording import Recording, open_recording
from sensorium.agent.calibrating.solving.guide import Guide
from sensorium.agent.calibrating.solving.live import LiveGuide, record_live
from sensorium.agent.calibrating.solving.run import check_with_board, kind_of
from sensorium.agent.calibrating.solving.solver import SolveRequest
from sensorium.agent.commands.display import coloured
from sensorium.agent.commands.output import finite, print_json, say_progress, table_console, today
from sensorium.agent.session.rig import load_rig
from sensorium.calibration.formats import foxglove, kalibr, kitti, opencv, ros
from sensorium.calibration.formats.detect import ImportResult, import_calibration
from sensorium.calibration.geometry import Intrinsics, difference, rpy_from_rotation
from sensorium.calibration.rig_document import Reference, RigCalibration
from sensorium.calibration.sensor_models import ImuModel, MicrophoneArray, Payload
from sensorium.calibration.targets import Target
from sensorium.errors import CalibrationError, UsageError
from sensorium.timebase import HostClock
from sensorium.verdict import Quantity, Status, Verdict

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
_LIVE_SECONDS = 15.0
BOARD_SECONDS = 90.0
PICTURES = (".png", ".jpg", ".jpeg")


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
                "findings": [_plain_verdict(finding) for finding in found.findings],
                "exit_code": code,
            }
        )
        return code
    console = table_console()
    console.print(
        f"{path}: {found.format}, id {calibration.calibration_id}"
        + (f", rig {calibration.rig}" if calibration.rig else "")
        + (f", of {calibration.date}" if calibration.date else ""),
        highlight=False,
    )
    if calibration.cameras:
        console.print(_camera_table(calibration))
    if calibration.edges:
        console.print(_edge_table(calibration))
    for sentence in _known_readings(calibration):
        console.print(sentence, highlight=False)
    _print_findings(console, found.findings)
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
        print_json(document | {"findings": [_plain_verdict(finding) for finding in found.findings]})
        return 0
    console = table_console()
    console.print(f"{target}: written as {name}, read back and compared", highlight=False)
    for note in notes:
        console.print(f"  {note}", highlight=False)
    _print_findings(console, found.findings)
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
    return bool(np.allclose(first, second, rtol=1e-9, atol=1e-9))


# -- check


def check_calibration(
    path: Path,
    calibration: Path | None,
    seconds: float | None,
    pairs: Sequence[str],
    overlay: Path | None,
    as_json: bool,
    board: Target | None = None,
    stores_reference: bool = False,
    picture: Path | None = None,
) -> int:
    """Judge a recording (or a rig, live) against its calibration; 0 if ok, else 1.

    Args:
        board: Run the checks at start, with this board; else those without a target.
        picture: With a rig file and a board, where the boards seen are drawn every second.
        stores_reference: If all is ok, write what the checks without a target read into the calibration's file.

    Raises:
        SensoriumError: If there is nothing that could be judged at all.
    """
    if overlay is not None and not overlay.parent.is_dir():
        raise UsageError(f"folder {overlay.parent} does not exist")
    if overlay is not None and overlay.suffix.lower() not in PICTURES:
        raise UsageError(f"{overlay} must end in .png or .jpg")
    if stores_reference and board is None:
        raise UsageError("--store-reference needs --board: only then is the rig known to be good")
    if is_rig_file(path):
        return _check_rig(
            path, calibration, seconds, pairs, overlay, as_json, board, stores_reference, picture
        )
    if seconds is not None:
        raise UsageError("--seconds is for a rig file, which is recorded; this is a recording already")
    if stores_reference and calibration is None:
        raise UsageError(
            "--store-reference needs --calibration FILE: a recording's own calibration is never changed"
        )
    if board is not None and calibration is not None and kind_of(path) != "episode":
        # Whatever shows a board will do: bags, folders of images.
        recording = Recording(path, kind_of(path), import_calibration(calibration))
    else:
        recording = open_recording(path, calibration)
    return _check(recording, pairs, overlay, as_json, board, calibration if stores_reference else None)


def is_rig_file(path: Path) -> bool:
    if not path.is_file() or path.suffix not in (".yaml", ".yml"):
        return False
    try:
        found = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return False
    return isinstance(found, dict) and "devices" in found


def _check_rig(
    path: Path,
    calibration: Path | None,
    seconds: float | None,
    pairs: Sequence[str],
    overlay: Path | None,
    as_json: bool,
    board: Target | None,
    stores_reference: bool,
    picture: Path | None,
) -> int:
    """Record the rig for a while into a temporary folder, under its consent, and judge that."""
    rig = load_rig(path)
    chosen = calibration or rig.document.calibration
    if chosen is None:
        raise CalibrationError(f"rig {path} names no calibration; add one to it or give --calibration FILE")
    known = import_calibration(chosen).calibration
    show = partial(say_progress, as_json=as_json)
    with tempfile.TemporaryDirectory(prefix="sensorium-check-") as name:
        folder, task = Path(name), "calibration check"
        if board is None:
            episode = record_live(rig, seconds or _LIVE_SECONDS, folder, task, show, None)
        else:
            guide = Guide(board, known, for_check=True)
            with LiveGuide(guide, HostClock(), picture, as_json) as companion:
                episode = record_live(rig, seconds or BOARD_SECONDS, folder, task, show, companion)
        recording = open_recording(episode, calibration)
        return _check(recording, pairs, overlay, as_json, board, chosen if stores_reference else None)


def _check(
    recording: Recording,
    pairs: Sequence[str],
    overlay: Path | None,
    as_json: bool,
    board: Target | None = None,
    reference_file: Path | None = None,
) -> int:
    show = partial(say_progress, as_json=as_json)
    if board is None:
        recording.choose(pairs)
    references, remarks = references_of(recording) if reference_file is not None else ([], [])
    if board is not None:
        # A board says more than the scene does, and its squares look alike: what follows them from image to
        # image may turn the wrong way. Sensors that need no images are judged as ever.
        recording.stereo, recording.camera_lidar, recording.turning = [], [], []
    report = run_checks(recording, overlay is not None, show)
    if board is not None:
        request = SolveRequest(recording.path, kind_of(recording.path), board, show=show)
        verdicts, pictures = check_with_board(request, recording.calibration.calibration, overlay is not None)
        report.verdicts += verdicts
        report.overlays += pictures
        if pairs:
            _keep_only(report, pairs)
    if reference_file is not None and report.status is Status.OK:
        remarks = [*_store(references, reference_file), *remarks]
    code = 0 if report.status is Status.OK else 1
    if overlay is not None:
        if report.overlays:
            _save_picture(montage(report.overlays), overlay)
        else:
            say_progress(f"no picture was written to {overlay}: there was nothing to draw", as_json)
    written = overlay if overlay is not None and report.overlays else None
    if as_json:
        document = check_document(recording, report, written)
        print_json(document | ({"references": remarks} if reference_file else {}) | {"exit_code": code})
    else:
        print_check(recording, report, written)
        for remark in remarks:
            table_console().print(remark, highlight=False)
    return code


def _keep_only(report: CheckReport, subjects: Sequence[str]) -> None:
    """Drop the verdicts on all other pairs and sensors.

    Raises:
        UsageError: If one that was named has none.
    """
    known = sorted({verdict.subject for verdict in report.verdicts})
    for subject in subjects:
        if subject not in known:
            raise UsageError(f"nothing was judged of {subject}; there is: {', '.join(known) or 'none'}")
    report.verdicts = [verdict for verdict in report.verdicts if verdict.subject in subjects]


def _store(references: Sequence[Reference], path: Path) -> list[str]:
    """Write reference readings into a rig document, whose id stays; return a sentence for each.

    Raises:
        CalibrationError: If the file is no rig document or cannot be written.
    """
    calibration = RigCalibration.load(path)
    for reference in references:
        calibration = calibration.with_reference(reference)
    try:
        calibration.save(path)
    except OSError as err:
        raise CalibrationError(f"{path} cannot be written: {err}") from err
    return [
        f"{path}: keeps what {each.check} read of {each.pair} ({each.count} frames)" for each in references
    ]


def _save_picture(image: Any, path: Path) -> None:
    _, data = cv2.imencode(path.suffix, image)
    try:
        path.write_bytes(data.tobytes())
    except OSError as err:
        raise CalibrationError(f"picture {path} cannot be written: {err}") from err


def check_document(recording: Recording, report: CheckReport, overlay: Path | None) -> dict[str, Any]:
    """Return what ``--json`` prints."""
    calibration: ImportResult = recording.calibration
    return {
        "path": str(recording.path),
        "kind": recording.kind,
        "status": report.status.value,
        "reasons": report.reasons,
        "moved": list(report.moved),
        "calibration": {
            "id": calibration.calibration.calibration_id,
            "format": calibration.format,
            "source": calibration.calibration.source,
            "date": calibration.calibration.date,
        },
        "findings": [_plain_verdict(finding) for finding in report.findings],
        "checks": [
            _plain_verdict(verdict) | {"counts": report.counts(verdict)} for verdict in report.verdicts
        ],
        "overlay": str(overlay) if overlay is not None else None,
    }


def _plain_verdict(verdict: Verdict) -> dict[str, Any]:
    judged = degrees(verdict)
    return {
        "check": verdict.check,
        "subject": verdict.subject,
        "status": verdict.status.value,
        "reasons": list(verdict.reasons),
        "degrees": {q.name: _plain_quantity(q) | {"status": status.value} for q, status in judged},
        "quantities": {
            q.name: _plain_quantity(q)
            for q in verdict.quantities
            if all(q is not other for other, _ in judged)
        },
    }


def _plain_quantity(quantity: Quantity) -> dict[str, Any]:
    found: dict[str, Any] = {"value": finite(quantity.value), "unit": quantity.unit}
    if quantity.threshold is not None:
        found["tolerance"] = finite(quantity.threshold)
    if quantity.sigma is not None:
        found["sigma"] = finite(quantity.sigma)
    return found


def print_check(recording: Recording, report: CheckReport, overlay: Path | None) -> None:
    """Print the table of pairs and degrees of freedom, the findings, and the verdict last."""
    console = table_console()
    calibration = recording.calibration.calibration
    console.print(
        f"{recording.path}: {recording.kind}, calibration {calibration.calibration_id} "
        f"({recording.calibration.format}{', ' + calibration.date if calibration.date else ''})",
        highlight=False,
    )
    table = Table("check", "pair", "degree", "estimate", "± sigma", "tolerance", "verdict")
    for verdict in report.verdicts:
        rows = degrees(verdict)
        for quantity, status in rows:
            digits = 3 if quantity.unit in ("m", "deg") else 2
            table.add_row(
                verdict.check,
                verdict.subject,
                quantity.name,
                f"{quantity.value:+.{digits}f} {quantity.unit}",
                f"{quantity.sigma:.{digits}f}" if quantity.sigma is not None else "",
                f"{quantity.threshold:g}" if quantity.threshold is not None else "",
                coloured(status.value),
            )
        if not rows:
            table.add_row(verdict.check, verdict.subject, "", "", "", "", coloured(verdict.status.value))
        table.add_section()
    if report.verdicts:
        console.print(table)
    for verdict in report.verdicts:
        counts = ", ".join(
            f"{q.name} {q.value:.4g}{'' if q.unit == '1' else ' ' + q.unit}"
            for q in verdict.quantities
            if q.sigma is None
        )
        console.print(
            f"{verdict.subject} {verdict.check}: {coloured(verdict.status.value)}  {counts}", highlight=False
        )
        for reason in verdict.reasons:
            console.print(f"  {reason}", highlight=False)
    _print_findings(console, report.findings)
    if overlay is not None:
        console.print(f"picture: {overlay}", highlight=False)
    console.print(f"calibration: {coloured(report.status.value)}", highlight=False)
    if report.moved:
        console.print(f"  moved: {' or '.join(report.moved)}", highlight=False)
    if report.status is not Status.OK:
        for reason in report.reasons[:3]:
            console.print(f"  {reason}", highlight=False)


def _print_findings(console: Console, findings: Sequence[Verdict]) -> None:
    for finding in findings:
        what = "note" if finding.status is Status.OK else coloured(finding.status.value)
        for reason in finding.reasons:
            console.print(f"{what}: {finding.subject}: {reason}", highlight=False)
