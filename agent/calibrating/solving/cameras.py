"""Solvers of lenses and of pairs of cameras by a board, and their checks at start."""

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

from sensorium.agent.calibrating.solving.boards import BoardMaterial, BoardMoment, Boards
from sensorium.agent.calibrating.solving.solver import SolvedPart, SolveRequest
from sensorium.calibration.board import (
    MAX_RMS_PX,
    MAX_TRANSFER_PX,
    check_intrinsics,
    check_stereo_board,
    check_stereo_focals,
)
from sensorium.calibration.board_fit import LensFit, PairFit, solve_intrinsics, solve_stereo
from sensorium.calibration.coverage import (
    MAX_FOCAL_SIGMA,
    MAX_ROTATION_SIGMA_RAD,
    LensCoverage,
    coverage_picture,
)
from sensorium.calibration.edges import Edge
from sensorium.calibration.geometry import Array, Intrinsics, rotation_log
from sensorium.calibration.rig_document import RigCalibration
from sensorium.calibration.targets import Target, View
from sensorium.errors import CalibrationError
from sensorium.verdict import Quantity, Status, Verdict

MIN_STEREO_VIEWS = 4
# Of the distance between two cameras: how well their translation must be known.
MAX_BASELINE_SHARE = 0.02


class IntrinsicsSolver:
    """Focal length, principal point and distortion of every camera that saw the board."""

    name = "intrinsics"
    needs = "images of a board (--board) by a camera"

    def __init__(self, material: BoardMaterial) -> None:
        self._material = material
        self.covariances: dict[str, Array] = {}

    def solve(self, request: SolveRequest, base: RigCalibration) -> Sequence[SolvedPart]:
        boards = self._material.of(request)
        if boards is None:
            return ()
        return [
            self._solve_one(request, boards, camera, base.cameras.get(camera))
            for camera in sorted(boards.sizes)
        ]

    def _solve_one(
        self, request: SolveRequest, boards: Boards, name: str, before: Intrinsics | None
    ) -> SolvedPart:
        request.show(f"{name}: solving the lens")
        views = boards.views(name)
        check, counts = "solve_intrinsics", f"images: {boards.summary(name)}"
        size = boards.sizes[name]
        is_same_size = before is not None and (before.width, before.height) == size
        model = request.model or (before.model if before is not None else "radtan")
        start = before if is_same_size else None
        try:
            fit = solve_intrinsics(views, boards.board, size, model, start)
        except CalibrationError as err:
            verdict = Verdict(check, name, Status.INSUFFICIENT, (), (str(err), counts))
            return SolvedPart(self.name, verdict)
        coverage = LensCoverage.of(boards.board, fit, views)
        missing, wanted = coverage.missing(), None
        status = Status.OK
        reasons = [*left_out(fit.rejected, boards.labels(name), "px"), *coverage.notes()]
        limit_px = MAX_RMS_PX * size[0] / 640
        if missing:
            wanted = coverage.wanted()
            status = Status.INSUFFICIENT
            reasons = [*missing, *([f"next: {wanted.words}"] if wanted else []), *reasons, counts]
        elif np.nanmax((fit.held_out_px, fit.rms_px)) > limit_px:
            status = Status.SUSPECT
            reasons.insert(
                0,
                f"views that were not used are missed by {fit.held_out_px:.2f} px rms (limit {limit_px:.2g}): "
                "the board is not flat, its images are not sharp, or the lens needs another --model",
            )
        picture = coverage_picture(coverage, None, wanted, name)
        verdict = Verdict(check, name, status, _lens_quantities(fit, coverage, limit_px), tuple(reasons))
        self.covariances[name] = fit.covariance
        return SolvedPart(self.name, verdict, {name: fit.camera}, pictures={name: picture})

    def check(self, request: SolveRequest, calibration: RigCalibration) -> Sequence[Verdict]:
        boards = self._material.of(request)
        if boards is None:
            return ()
        return [
            check_intrinsics(boards.views(name), boards.board, calibration.camera(name), name)
            for name in sorted(boards.sizes)
            if name in calibration.cameras
        ]


def _lens_quantities(fit: LensFit, coverage: LensCoverage, limit_px: float) -> tuple[Quantity, ...]:
    camera, sigma = fit.camera, np.sqrt(np.diag(fit.covariance))
    names = [("focal_x", "px"), ("focal_y", "px"), ("centre_x", "px"), ("centre_y", "px")]
    labels = {"radtan": "k1 k2 p1 p2 k3", "rational": "k1 k2 p1 p2 k3 k4 k5 k6", "equidistant": "k1 k2 k3 k4"}
    names += [(label, "1") for label in labels.get(camera.model, "").split()[: len(camera.distortion)]]
    values = (camera.fx, camera.fy, camera.cx, camera.cy, *camera.distortion)
    numbers = tuple(
        Quantity(name, float(value), unit, None, float(one))
        for (name, unit), value, one in zip(names, values, sigma, strict=True)
    )
    return (
        *numbers,
        Quantity("rms", fit.rms_px, "px"),
        Quantity("held_out_rms", fit.held_out_px, "px", limit_px),
        Quantity("focal_uncertainty", 100 * fit.focal_sigma, "%", 100 * MAX_FOCAL_SIGMA),
        Quantity(
            "projection_uncertainty",
            float(np.nanmax(coverage.cell_sigma_px)),
            "px",
            coverage.max_projection_px,
        ),
        Quantity("views_used", float(len(fit.used)), "1"),
        Quantity("views_rejected", float(len(fit.rejected)), "1"),
    )


class StereoSolver:
    """Where two cameras are to each other, for every pair that saw the board at the same time."""

    name = "stereo"
    needs = "images of a board (--board) by two cameras at the same time"

    def __init__(self, material: BoardMaterial, lenses: IntrinsicsSolver) -> None:
        self._material = material
        self._lenses = lenses

    def solve(self, request: SolveRequest, base: RigCalibration) -> Sequence[SolvedPart]:
        boards = self._material.of(request)
        if boards is None:
            return ()
        found = []
        for first, second in combinations(sorted(boards.sizes), 2):
            common = boards.common(first, second)
            # Of many cameras most pairs look elsewhere; of two it is worth saying.
            if common or len(boards.sizes) == 2:
                found.append(self._solve_pair(request, boards.board, (first, second), common, base))
        return found

    def _solve_pair(
        self,
        request: SolveRequest,
        board: Target,
        names: tuple[str, str],
        common: list[BoardMoment],
        base: RigCalibration,
    ) -> SolvedPart:
        first, second = names
        views = both_views(common, first, second)
        subject, check = f"{first}~{second}", "solve_stereo"
        request.show(f"{subject}: solving the pair")
        lacking = [name for name in names if name not in base.cameras]
        if lacking:
            reason = f"the lens of {lacking[0]} is not known: solve it first, or give it with --base"
            return SolvedPart(self.name, Verdict(check, subject, Status.INSUFFICIENT, (), (reason,)))
        if len(views) < MIN_STEREO_VIEWS:
            reason = (
                f"{len(views)} views of the board by both cameras at the same time, "
                f"{MIN_STEREO_VIEWS} are needed: hold the board still where both see it, tilted differently"
            )
            return SolvedPart(self.name, Verdict(check, subject, Status.INSUFFICIENT, (), (reason,)))
        known = [self._lenses.covariances.get(name) for name in names]
        lenses = (known[0], known[1]) if known[0] is not None and known[1] is not None else None
        left, right = (base.camera(name) for name in names)
        fit = solve_stereo([a for a, _ in views], [b for _, b in views], board, left, right, lenses)
        limit_px = MAX_TRANSFER_PX * right.width / 640
        root = np.sqrt(np.diag(fit.covariance))
        baseline_m = float(np.linalg.norm(fit.T_first_second[:3, 3]))
        status, reasons = Status.OK, left_out(fit.rejected, [moment.label for moment in common], "px")
        if np.nanmax((fit.held_out, fit.rms)) > limit_px:
            status = Status.SUSPECT
            reasons.insert(
                0,
                f"in views that were not used the board is {fit.held_out:.2f} px rms from where the other camera "
                f"places it (limit {limit_px:.2g}): the cameras were not triggered together, or a lens is wrong",
            )
        too_loose = root[:3].max() > 2 * MAX_ROTATION_SIGMA_RAD or root[3:].max() > max(
            MAX_BASELINE_SHARE * baseline_m, 1e-3
        )
        if too_loose:
            status = Status.INSUFFICIENT
            reasons.insert(
                0,
                f"the views pin the pair only to {np.rad2deg(root[:3].max()):.2g} deg and "
                f"{1000 * root[3:].max():.2g} mm: show the board tilted, and near the corners of both images",
            )
        if lenses is None:
            reasons.append(
                "the lenses were taken as exact: the deviations leave out what is not known of them"
            )
        edge = Edge(first, second, fit.T_first_second, fit.covariance, request.source, request.date, fit.rms)
        verdict = Verdict(check, subject, status, pair_quantities(fit, "px", limit_px), tuple(reasons))
        return SolvedPart(self.name, verdict, edges=(edge,))

    def check(self, request: SolveRequest, calibration: RigCalibration) -> Sequence[Verdict]:
        boards = self._material.of(request)
        if boards is None:
            return ()
        found = []
        for first, second in combinations(sorted(boards.sizes), 2):
            views = both_views(boards.common(first, second), first, second)
            is_known = calibration.has_transform(first, second) and {first, second} <= set(
                calibration.cameras
            )
            if views and is_known:
                lefts, rights = [a for a, _ in views], [b for _, b in views]
                found.append(check_stereo_board(lefts, rights, boards.board, calibration, first, second))
                found.append(check_stereo_focals(lefts, rights, boards.board, calibration, first, second))
        return found


def both_views(moments: Sequence[BoardMoment], first: str, second: str) -> list[tuple[View, View]]:
    """Return the views that both cameras had at the same moments."""
    return [
        (moment.views[first], moment.views[second])
        for moment in moments
        if first in moment.views and second in moment.views
    ]


def left_out(rejected: Mapping[int, float], labels: Sequence[str], unit: str) -> list[str]:
    """Return a sentence for each view that was not used."""
    return [
        f"the view {labels[k]} was left out: it misses by {miss:.2g} {unit}" for k, miss in rejected.items()
    ]


def pair_quantities(fit: PairFit, unit: str, limit: float) -> tuple[Quantity, ...]:
    """Return rotation vector and translation with their deviations, and how well views left out fit."""
    turn = np.rad2deg(rotation_log(fit.T_first_second[:3, :3]))
    shift = fit.T_first_second[:3, 3]
    root = np.sqrt(np.maximum(np.diag(fit.covariance), 0.0))
    angles = tuple(
        Quantity(f"rotation_{name}", float(value), "deg", None, float(np.rad2deg(one)))
        for name, value, one in zip("xyz", turn, root[:3], strict=True)
    )
    places = tuple(
        Quantity(f"translation_{name}", float(value), "m", None, float(one))
        for name, value, one in zip("xyz", shift, root[3:], strict=True)
    )
    return (
        *angles,
        *places,
        Quantity("rms", fit.rms, unit),
        Quantity("held_out_rms", fit.held_out, unit, limit),
        Quantity("views_used", float(len(fit.used)), "1"),
        Quantity("views_rejected", float(len(fit.rejected)), "1"),
    )
