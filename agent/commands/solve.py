"""What `sensorium calibration solve` does: run the solvers that a recording allows, write the rig document."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich.table import Table

from sensorium.agent.calibrating.image_files import write_image
from sensorium.agent.calibrating.showing import require_shown
from sensorium.agent.calibrating.solving.guide import Guide, stacked
from sensorium.agent.calibrating.solving.live import LiveGuide, grants_of, record_live
from sensorium.agent.calibrating.solving.run import Solution, kind_of, solve, solvers
from sensorium.agent.calibrating.solving.solver import SolvedPart, SolveRequest
from sensorium.agent.commands.check import PICTURES, is_rig_file
from sensorium.agent.commands.display import coloured
from sensorium.agent.commands.output import print_json, today
from sensorium.agent.commands.terminal import say_progress, table_console
from sensorium.agent.session.rig import load_rig
from sensorium.calibration.formats.detect import import_calibration
from sensorium.calibration.geometry import difference
from sensorium.calibration.rig_document import RigCalibration
from sensorium.calibration.targets import Target
from sensorium.errors import CalibrationError, SensoriumError, UsageError
from sensorium.sync.reading.locate import folder_of
from sensorium.timebase import HostClock
from sensorium.verdict import Status, finite

LIVE_SECONDS = 180.0


@dataclass(frozen=True, slots=True)
class SolveOptions:
    """Options of the command; see its help."""

    board: Target | None = None
    only: Sequence[str] = ()
    output: Path | None = None
    base: Path | None = None
    is_fresh: bool = False
    is_forced: bool = False
    model: str = ""
    seconds: float | None = None
    picture: Path | None = None
    as_json: bool = False


def solve_calibration(source: str | Path, options: SolveOptions) -> int:
    """Solve a recording, or a rig live; 0 if everything asked for was solved, else 1.

    Args:
        source: A path; an episode also by its id, or by the URL of a store and its id.

    Raises:
        UsageError: If the output exists, or a solver is not known.
        CalibrationError: If there is nothing that could be solved at all.
    """
    _check_options(options)
    path = folder_of(source)
    if is_rig_file(path):
        return _solve_rig(path, options)
    if options.seconds is not None:
        raise UsageError("--seconds is for a rig file, which is recorded; this is a recording already")
    return _solved(path, path, before_of(path, options), options)


def _solve_rig(path: Path, options: SolveOptions) -> int:
    """Run the rig while somebody shows it the board, under its consent, and solve what was recorded."""
    rig = load_rig(path)
    before = before_of(rig.document.calibration, options)
    with tempfile.TemporaryDirectory(prefix="sensorium-solve-") as name:
        folder, task = Path(name), "calibration solve"
        show = partial(say_progress, as_json=options.as_json)
        seconds = options.seconds or LIVE_SECONDS
        if options.board is None:
            episode = record_live(rig, seconds, folder, task, show, None)
        else:
            guide = Guide(options.board, before, model=options.model, only=options.only)
            with LiveGuide(
                guide, HostClock(), options.picture, options.as_json, consent=grants_of(rig)
            ) as companion:
                episode = record_live(rig, seconds, folder, task, show, companion)
        return _solved(path, episode, before, options, grants_of(rig))


def _solved(
    path: Path, recording: Path, before: RigCalibration, options: SolveOptions, consent: Path | None = None
) -> int:
    if options.picture is not None:
        require_shown(recording, consent)
    solution = solve(request_of(recording, options), before, options.only)
    written = _write(solution, options)
    code = 0 if solution.status is Status.OK else 1
    if options.as_json:
        print_json(solve_document(path, solution, written) | {"exit_code": code})
    else:
        _print(path, solution, written)
    return code


def _check_options(options: SolveOptions) -> None:
    known = [solver.name for solver in solvers()]
    for name in options.only:
        if name not in known:
            raise UsageError(f"--only {name} is unknown; known: {', '.join(known)}")
    if options.picture is not None:
        if options.picture.suffix.lower() not in PICTURES:
            raise UsageError(f"{options.picture} must end in .png or .jpg")
        if not options.picture.parent.is_dir():
            raise UsageError(f"folder {options.picture.parent} does not exist")
    if options.output is not None:
        if options.output.exists() and not options.is_forced:
            raise UsageError(f"{options.output} exists; choose another name or add --force")
        if not options.output.parent.is_dir():
            raise UsageError(f"folder {options.output.parent} does not exist")


def before_of(path: Path | None, options: SolveOptions) -> RigCalibration:
    """Return the calibration before: the one named, else the one that the recording carries, else none."""
    if options.base is not None:
        return import_calibration(options.base).calibration
    if options.is_fresh or path is None:
        return RigCalibration()
    try:
        return import_calibration(path).calibration
    except SensoriumError:
        return RigCalibration()


def request_of(path: Path, options: SolveOptions) -> SolveRequest:
    """Return what the solvers are asked, once it is clear what kind of recording it is."""
    if not path.exists():
        raise CalibrationError(f"{path} does not exist")
    return SolveRequest(
        path,
        kind_of(path),
        options.board,
        f"sensorium calibration solve {path.name}",
        today().isoformat(),
        options.model,
        lambda what: say_progress(what, options.as_json),
    )


def _write(solution: Solution, options: SolveOptions) -> Path | None:
    pictures = [picture for part in solution.parts for picture in part.pictures.values()]
    if options.picture is not None and pictures:
        write_image(stacked(pictures), options.picture)
    if options.output is None or not any(part.is_solved for part in solution.parts):
        return None
    try:
        solution.after.save(options.output)
    except OSError as err:
        raise CalibrationError(f"{options.output} cannot be written: {err}") from err
    return options.output


# -- what is printed


def solve_document(path: Path, solution: Solution, written: Path | None) -> dict[str, Any]:
    """Return what ``--json`` prints."""
    return {
        "path": str(path),
        "status": solution.status.value,
        "parts": [_plain_part(part) for part in solution.parts],
        "moved": _moved(solution),
        "loops": [
            {
                "frames": list(loop.frames),
                "rotation_deg": float(np.rad2deg(loop.rotation_rad)),
                "translation_m": loop.translation_m,
                "is_closed": loop.is_closed,
            }
            for loop in solution.after.loops()
        ],
        "calibration": {"id": solution.after.calibration_id, "before": solution.before.calibration_id},
        "document": yaml.safe_load(solution.after.dump()),
        "written": str(written) if written is not None else None,
    }


def _plain_part(part: SolvedPart) -> dict[str, Any]:
    """Return a part's verdict for machines; a quantity's ``limit`` is its ``threshold`` by its name in the table."""
    numbers = {q.name: q.document() | {"limit": finite(q.threshold)} for q in part.verdict.quantities}
    return {"solver": part.solver, **part.verdict.document(), "quantities": numbers}


def _moved(solution: Solution) -> list[dict[str, Any]]:
    """Return how far every solved transform and focal length is from the calibration before."""
    found: list[dict[str, Any]] = []
    for part in solution.parts:
        if not part.is_solved:
            continue
        for name, camera in part.cameras.items():
            known = solution.before.cameras.get(name)
            if known is not None:
                found.append({"what": name, "focal_percent": 100 * (camera.f_px / known.f_px - 1)})
        for edge in part.edges:
            if solution.before.has_transform(edge.parent, edge.child):
                gap = difference(edge.T_parent_child, solution.before.transform(edge.parent, edge.child))
                found.append(
                    {
                        "what": f"{edge.parent}~{edge.child}",
                        "rotation_deg": float(np.rad2deg(np.linalg.norm(gap[:3]))),
                        "translation_m": float(np.linalg.norm(gap[3:])),
                    }
                )
    return found


def _print(path: Path, solution: Solution, written: Path | None) -> None:
    console = table_console()
    table = Table("solved", "of", "quantity", "value", "± sigma", "limit", "verdict")
    for part in solution.parts:
        rows = part.verdict.quantities
        for quantity in rows:
            unit = "" if quantity.unit == "1" else f" {quantity.unit}"
            table.add_row(
                part.solver,
                part.verdict.subject,
                quantity.name,
                f"{quantity.value:.6g}{unit}",
                f"{quantity.sigma:.2g}" if quantity.sigma is not None else "",
                f"{quantity.threshold:g}" if quantity.threshold is not None else "",
                coloured(part.verdict.status.value) if quantity is rows[0] else "",
            )
        if not rows:
            table.add_row(
                part.solver, part.verdict.subject, "", "", "", "", coloured(part.verdict.status.value)
            )
        table.add_section()
    console.print(table)
    for part in solution.parts:
        for reason in part.verdict.reasons:
            console.print(f"{part.verdict.subject} {part.solver}: {reason}", soft_wrap=True)
    for moved in _moved(solution):
        console.print(_moved_sentence(moved), soft_wrap=True)
    for loop in solution.after.loops():
        state = "closes" if loop.is_closed else "does NOT close"
        console.print(
            f"loop {' -> '.join(loop.frames)} {state}: {np.rad2deg(loop.rotation_rad):.3f} deg, "
            f"{loop.translation_m * 1000:.1f} mm",
            soft_wrap=True,
        )
    if written is not None:
        console.print(f"{written}: written, id {solution.after.calibration_id}", soft_wrap=True)
    console.print(f"{path}: {coloured(solution.status.value)}", soft_wrap=True)


def _moved_sentence(moved: dict[str, Any]) -> str:
    if "focal_percent" in moved:
        return f"{moved['what']}: focal length {moved['focal_percent']:+.2f} % from the calibration before"
    return (
        f"{moved['what']}: {moved['rotation_deg']:.3f} deg and {moved['translation_m'] * 1000:.1f} mm "
        "from the calibration before"
    )
