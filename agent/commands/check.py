"""What `sensorium calibration check` does."""

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table

from sensorium.agent.calibrating.checking.references import references_of
from sensorium.agent.calibrating.checking.report import CheckReport, degrees, judged_document, montage
from sensorium.agent.calibrating.checking.run import run_checks
from sensorium.agent.calibrating.image_files import write_image
from sensorium.agent.calibrating.opening import open_recording
from sensorium.agent.calibrating.recording import Recording
from sensorium.agent.calibrating.showing import require_shown
from sensorium.agent.calibrating.solving.guide import Guide
from sensorium.agent.calibrating.solving.live import LiveGuide, grants_of, record_live
from sensorium.agent.calibrating.solving.run import check_with_board, kind_of
from sensorium.agent.calibrating.solving.solver import SolveRequest
from sensorium.agent.commands.display import coloured, print_findings
from sensorium.agent.commands.output import print_json
from sensorium.agent.commands.terminal import say_progress, table_console
from sensorium.agent.session.rig import load_rig
from sensorium.bounded_yaml import BoundedLoader, read_yaml_text
from sensorium.calibration.edges import Reference
from sensorium.calibration.formats.detect import ImportResult, import_calibration
from sensorium.calibration.rig_document import RigCalibration
from sensorium.calibration.targets import Target
from sensorium.errors import CalibrationError, UsageError
from sensorium.sync.reading.locate import folder_of
from sensorium.timebase import HostClock
from sensorium.verdict import Status

_LIVE_SECONDS = 15.0
BOARD_SECONDS = 90.0
PICTURES = (".png", ".jpg", ".jpeg")


def check_calibration(
    target: str | Path,
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
        target: A path; an episode also by its id, or by the URL of a store and its id.
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
    path = folder_of(target)
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
        found = yaml.load(read_yaml_text(path), Loader=BoundedLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValueError, RecursionError):
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
            with LiveGuide(guide, HostClock(), picture, as_json, consent=grants_of(rig)) as companion:
                episode = record_live(rig, seconds or BOARD_SECONDS, folder, task, show, companion)
        recording = open_recording(episode, calibration)
        stored = chosen if stores_reference else None
        return _check(recording, pairs, overlay, as_json, board, stored, grants_of(rig))


def _check(
    recording: Recording,
    pairs: Sequence[str],
    overlay: Path | None,
    as_json: bool,
    board: Target | None = None,
    reference_file: Path | None = None,
    consent: Path | None = None,
) -> int:
    show = partial(say_progress, as_json=as_json)
    if overlay is not None:
        require_shown(recording.path, consent)
    if board is None:
        recording.choose(pairs)
    references, remarks = references_of(recording) if reference_file is not None else ([], [])
    if board is not None:
        # A board says more than the scene does, and its squares look alike: what follows them from image to
        # image may turn the wrong way. Sensors that need no images are judged as ever.
        recording.tasks = [task for task in recording.tasks if not task.kind.has_camera]
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
            write_image(montage(report.overlays), overlay)
        else:
            say_progress(f"no picture was written to {overlay}: there was nothing to draw", as_json)
    written = overlay if overlay is not None and report.overlays else None
    if as_json:
        document = check_document(recording, report, written)
        print_json(document | ({"references": remarks} if reference_file else {}) | {"exit_code": code})
    else:
        print_check(recording, report, written)
        for remark in remarks:
            table_console().print(remark, soft_wrap=True)
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
        "findings": [judged_document(finding) for finding in report.findings],
        "checks": [
            judged_document(verdict) | {"counts": report.counts(verdict)} for verdict in report.verdicts
        ],
        "overlay": str(overlay) if overlay is not None else None,
    }


def print_check(recording: Recording, report: CheckReport, overlay: Path | None) -> None:
    """Print the table of pairs and degrees of freedom, the findings, and the verdict last."""
    console = table_console()
    calibration = recording.calibration.calibration
    console.print(
        f"{recording.path}: {recording.kind}, calibration {calibration.calibration_id} "
        f"({recording.calibration.format}{', ' + calibration.date if calibration.date else ''})",
        soft_wrap=True,
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
            f"{verdict.subject} {verdict.check}: {coloured(verdict.status.value)}  {counts}", soft_wrap=True
        )
        for reason in verdict.reasons:
            console.print(f"  {reason}", soft_wrap=True)
    print_findings(console, report.findings)
    if overlay is not None:
        console.print(f"picture: {overlay}", soft_wrap=True)
    console.print(f"calibration: {coloured(report.status.value)}", soft_wrap=True)
    if report.moved:
        console.print(f"  moved: {' or '.join(report.moved)}", soft_wrap=True)
    if report.status is not Status.OK:
        for reason in report.reasons[:3]:
            console.print(f"  {reason}", soft_wrap=True)
