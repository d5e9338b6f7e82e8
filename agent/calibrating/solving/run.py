"""Runs the solvers that a recording allows, and the checks at start that need a board."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from sensorium.agent.calibrating.checking.report import Overlay
from sensorium.agent.calibrating.solving.boards import BoardMaterial
from sensorium.agent.calibrating.solving.camera_lidar import CameraLidarSolver
from sensorium.agent.calibrating.solving.cameras import IntrinsicsSolver, StereoSolver
from sensorium.agent.calibrating.solving.motion import motion_solvers
from sensorium.agent.calibrating.solving.pictures import board_overlays
from sensorium.agent.calibrating.solving.solver import SolvedPart, Solver, SolveRequest, merged
from sensorium.calibration.rig_document import RigCalibration
from sensorium.errors import CalibrationError, SensoriumError, SourceError
from sensorium.sync.episode.folder import is_episode
from sensorium.sync.sources.opening import identify
from sensorium.verdict import Status, Verdict, worst


def solvers(material: BoardMaterial | None = None) -> tuple[Solver, ...]:
    """Return every solver, in the order in which they run: cameras first, then what stands on them.

    Args:
        material: Boards that were found before.
    """
    material = material or BoardMaterial()  # looked through once, for all that need a board
    lenses = IntrinsicsSolver(material)
    return lenses, StereoSolver(material, lenses), CameraLidarSolver(material), *motion_solvers()


@dataclass(frozen=True, slots=True, eq=False)
class Solution:
    """What all solvers found, and the document that follows from it."""

    before: RigCalibration
    parts: tuple[SolvedPart, ...]
    after: RigCalibration

    @property
    def status(self) -> Status:
        counted = [part for part in self.parts if part.counts] or self.parts
        return worst(part.verdict for part in counted)


def kind_of(path: Path) -> str:
    """Return ``episode``, ``video`` (EuRoC folder, bag, MCAP, capture) or ``images`` (a folder of them)."""
    if is_episode(path):
        return "episode"
    try:
        identify(path)
    except SourceError:
        return "images"
    return "video"


def solve(request: SolveRequest, before: RigCalibration, only: Sequence[str] = ()) -> Solution:
    """Run the solvers that are asked for and for which the recording holds data.

    Raises:
        CalibrationError: If no solver found data, or one that was named did not.
    """
    parts: list[SolvedPart] = []
    available = solvers()
    for solver in available:
        if only and solver.name not in only:
            continue
        found = _guarded(solver, request, merged(before, parts))
        if not found and solver.name in only:
            raise CalibrationError(f"{request.path} holds nothing for {solver.name}: it needs {solver.needs}")
        parts += [replace(part, is_opportune=part.is_opportune and not only) for part in found]
    if not parts:
        needs = "; ".join(f"{solver.name} needs {solver.needs}" for solver in available)
        raise CalibrationError(f"nothing to solve in {request.path}: {needs}")
    after = replace(merged(before, parts), date=request.date, source=request.source)
    return Solution(before, tuple(parts), after)


def _guarded(solver: Solver, request: SolveRequest, base: RigCalibration) -> Sequence[SolvedPart]:
    try:
        return solver.solve(request, base)
    except (SensoriumError, np.linalg.LinAlgError, cv2.error) as err:
        reason = f"could not be solved: {' '.join(str(err).split())}"
        verdict = Verdict(f"solve_{solver.name}", str(request.path), Status.INSUFFICIENT, (), (reason,))
        return [SolvedPart(solver.name, verdict)]


def check_with_board(
    request: SolveRequest, calibration: RigCalibration, with_pictures: bool = False
) -> tuple[list[Verdict], list[Overlay]]:
    """Return the verdicts of every check at start on the calibration in force, and pictures of what they saw.

    What could not be judged is ``insufficient``: also that no camera saw the board at all.

    Raises:
        CalibrationError: If the recording cannot be read, or a camera's images are not of its calibration's
            size.
    """
    found: list[Verdict] = []
    material = BoardMaterial()
    for solver in solvers(material):
        try:
            found += solver.check(request, calibration)
        except (SensoriumError, np.linalg.LinAlgError, cv2.error) as err:
            reason = f"could not be judged: {' '.join(str(err).split())}"
            found.append(
                Verdict(f"{solver.name}_board", str(request.path), Status.INSUFFICIENT, (), (reason,))
            )
    if not found:
        reason = "no camera of this calibration was recorded: nothing to look for the board in"
        found.append(Verdict("board", str(request.path), Status.INSUFFICIENT, (), (reason,)))
    boards = material.of(request) if with_pictures else None
    return found, list(board_overlays(boards, calibration)) if boards is not None else []
