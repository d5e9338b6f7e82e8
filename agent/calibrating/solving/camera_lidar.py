"""The solver of camera against LiDAR by a board, and its check at start."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from sensorium.agent.calibrating.recording import spread
from sensorium.agent.calibrating.solving.boards import BoardMaterial, BoardMoment, Boards
from sensorium.agent.calibrating.solving.cameras import left_out, pair_quantities
from sensorium.agent.calibrating.solving.material import Points
from sensorium.agent.calibrating.solving.solver import SolvedPart, SolveRequest, merged
from sensorium.calibration.board import (
    CAMERA_LIDAR_CHECK,
    MIN_LIDAR_VIEWS,
    BoardView,
    check_camera_lidar_board,
    pose_of,
)
from sensorium.calibration.board_fit import solve_camera_lidar
from sensorium.calibration.board_sweep import (
    SweptBoard,
    board_candidates,
    board_view,
    expected_pose,
    find_board,
    first_guess,
)
from sensorium.calibration.bundle import by_motion, by_point, inverse_or_infinite
from sensorium.calibration.coverage import CORNER_SIGMA_PX, Wanted, missing_for_lidar, wanted_for_lidar
from sensorium.calibration.edges import Edge
from sensorium.calibration.geometry import Array, Intrinsics, apply
from sensorium.calibration.rig_document import RigCalibration
from sensorium.calibration.targets import Target, View
from sensorium.errors import CalibrationError
from sensorium.verdict import Status, Verdict

# Rms distance of board middles: three times what a 16-ring LiDAR shows (spec 1.14).
MAX_CENTRE_MISS_M = 0.025
# Sweeps that are searched all over when nothing tells where the LiDAR is.
MAX_GUESSED = 10
_NUMBERS = re.compile(r" \([^)]*\)")


class CameraLidarSolver:
    """Where each LiDAR is to each camera, from boards that both saw."""

    name = "camera-lidar"
    needs = "images of a board (--board) by a camera, and sweeps of a LiDAR beside them"

    def __init__(self, material: BoardMaterial) -> None:
        self._material = material

    def solve(self, request: SolveRequest, base: RigCalibration) -> Sequence[SolvedPart]:
        table = pose_table(request.path)
        if table is not None:
            return [
                self._solved(request, "camera~lidar", table, [str(k) for k in range(len(table))], [], None)
            ]
        boards = self._material.of(request)
        if boards is None:
            return ()
        parts: list[SolvedPart] = []
        for camera in sorted(boards.sizes):
            for lidar in sorted(boards.lidars):
                # What one camera found tells the next one where to look.
                known = merged(base, parts)
                parts.append(self._solve_pair(request, boards, camera, lidar, known))
        # A LiDAR that one camera placed need not share its view with all the others.
        placed = {edge.child for part in parts if part.is_solved for edge in part.edges}
        return [
            replace(part, is_opportune=part.verdict.subject.split("~")[1] in placed and not part.is_solved)
            for part in parts
        ]

    def _solve_pair(
        self, request: SolveRequest, boards: Boards, camera: str, lidar: str, base: RigCalibration
    ) -> SolvedPart:
        subject = f"{camera}~{lidar}"
        request.show(f"{subject}: looking for the board in the sweeps")
        if camera not in base.cameras:
            reason = f"the lens of {camera} is not known: solve it first, or give it with --base"
            return SolvedPart(
                self.name, Verdict("solve_camera_lidar", subject, Status.INSUFFICIENT, (), (reason,))
            )
        moments = boards.common(camera, lidar)
        known = base.transform(camera, lidar) if base.has_transform(camera, lidar) else None
        try:
            views, labels, lost, T = lidar_views(
                boards.board, moments, camera, lidar, base.camera(camera), known
            )
        except CalibrationError as err:
            verdict = Verdict("solve_camera_lidar", subject, Status.INSUFFICIENT, (), (str(err),))
            return SolvedPart(self.name, verdict)
        wanted = wanted_for_lidar(boards.board, base.camera(camera), views, T) if T is not None else None
        return self._solved(request, subject, views, labels, lost, wanted)

    def _solved(
        self,
        request: SolveRequest,
        subject: str,
        views: Sequence[BoardView],
        labels: Sequence[str],
        lost: list[str],
        wanted: Wanted | None,
    ) -> SolvedPart:
        check, (camera, lidar) = "solve_camera_lidar", subject.split("~")
        try:
            fit = solve_camera_lidar(views)
        except CalibrationError as err:
            verdict = Verdict(check, subject, Status.INSUFFICIENT, (), (str(err), *lost))
            return SolvedPart(self.name, verdict)
        reasons = [*left_out(fit.rejected, labels, "m"), *lost]
        missing = missing_for_lidar(fit.covariance)
        status = Status.OK
        if np.nanmax((fit.held_out, fit.rms)) > MAX_CENTRE_MISS_M:
            status = Status.SUSPECT
            reasons.insert(
                0,
                f"in poses that were not used the board's middle is missed by {100 * fit.held_out:.1f} cm rms "
                f"(limit {100 * MAX_CENTRE_MISS_M:g}): the pattern is not in the middle of its board, or "
                "something moved",
            )
        elif missing:
            status = Status.INSUFFICIENT
            reasons = [*missing, *([f"next: {wanted.words}"] if wanted else []), *reasons]
        edge = Edge(camera, lidar, fit.T_first_second, fit.covariance, request.source, request.date)
        quantities = pair_quantities(fit, "m", MAX_CENTRE_MISS_M)
        return SolvedPart(
            self.name, Verdict(check, subject, status, quantities, tuple(reasons)), edges=(edge,)
        )

    def check(self, request: SolveRequest, calibration: RigCalibration) -> Sequence[Verdict]:
        boards = self._material.of(request)
        if boards is None:
            return ()
        return [
            self._check_pair(boards, camera, lidar, calibration)
            for camera in sorted(set(boards.sizes) & set(calibration.cameras))
            for lidar in sorted(boards.lidars)
            if calibration.has_transform(camera, lidar)
        ]

    def _check_pair(self, boards: Boards, camera: str, lidar: str, calibration: RigCalibration) -> Verdict:
        moments, lens = boards.common(camera, lidar), calibration.camera(camera)
        T = calibration.transform(camera, lidar)
        try:
            views, labels, lost, _ = lidar_views(boards.board, moments, camera, lidar, lens, T)
        except CalibrationError as err:
            return Verdict(CAMERA_LIDAR_CHECK, f"{camera}~{lidar}", Status.INSUFFICIENT, (), (str(err),))
        astray: dict[int, float] = {}
        if len(views) > MIN_LIDAR_VIEWS:
            # A pose that fits none of the others is something else that was taken for the board.
            astray = solve_camera_lidar(views).rejected
        kept = [view for k, view in enumerate(views) if k not in astray]
        verdict = check_camera_lidar_board(kept, calibration, camera, lidar)
        return replace(verdict, reasons=(*verdict.reasons, *left_out(astray, labels, "m"), *lost))


def lidar_views(
    board: Target,
    moments: Sequence[BoardMoment],
    camera: str,
    lidar: str,
    lens: Intrinsics,
    T_camera_lidar: Array | None,
    may_guess: bool = True,
) -> tuple[list[BoardView], list[str], list[str], Array | None]:
    """Return boards found in the sweeps, their labels, sentences on those that were not, and T_camera_lidar.

    Args:
        T_camera_lidar: Where the LiDAR is as far as it is known; None = no idea.
        may_guess: Look for the board all over the sweeps if it is not where it should be.

    Raises:
        CalibrationError: If nothing tells where the LiDAR is.
    """
    middle = board.points_m.mean(axis=0)
    poses = [pose_of(moment.views[camera], board, lens) for moment in moments]
    sweeps = [_returns(moment.sweeps[lidar]) for moment in moments]
    found: dict[int, SweptBoard] = {}
    lost: dict[int, str] = {}

    def search(T_camera_lidar: Array) -> None:
        for k in sorted(set(range(len(moments))) - found.keys()):
            try:
                where = expected_pose(poses[k], middle, T_camera_lidar)
                found[k] = find_board(sweeps[k], *_size(board), where)
                lost.pop(k, None)
            except CalibrationError as err:
                lost[k] = str(err)

    def views() -> list[BoardView]:
        return [
            board_view(
                poses[k], middle, found[k], _pose_covariance(board, moments[k].views[camera], poses[k], lens)
            )
            for k in sorted(found)
        ]

    T = T_camera_lidar
    if T is not None:
        search(T)
    if may_guess and len(found) < max(MIN_LIDAR_VIEWS, len(moments) // 3):
        chosen = spread(len(sweeps), MAX_GUESSED)
        try:
            candidates = [board_candidates(sweeps[k], *_size(board)) for k in chosen]
            T = first_guess([poses[k] for k in chosen], middle, candidates)
            found.clear()
            search(T)
        except CalibrationError:
            if T is None:
                raise
    if lost and len(found) >= MIN_LIDAR_VIEWS:
        # What was not found may be, from a better guess.
        T = solve_camera_lidar(views()).T_first_second
        search(T)
    labels = [moments[k].label for k in sorted(found)]
    return views(), labels, _lost_sentences(lost, len(moments)), T


def _size(board: Target) -> tuple[tuple[float, float], bool]:
    """Return the board's size, or that of its pattern, and whether it is the whole board's."""
    return board.size_m or board.outline_m, board.size_m is not None


def _returns(points: Points) -> Array:
    xyz = np.asarray(points[:, :3], np.float64)
    return np.asarray(xyz[np.isfinite(xyz).all(axis=1) & np.any(xyz != 0.0, axis=1)], np.float64)


def _pose_covariance(board: Target, view: View, pose: Array, lens: Intrinsics) -> Array:
    points = apply(pose, board.points_m[view.ids])
    slope = (by_point(points, lens) @ by_motion(points)).reshape(-1, 6) / CORNER_SIGMA_PX
    return inverse_or_infinite(slope.T @ slope)


def _lost_sentences(lost: Mapping[int, str], count: int) -> list[str]:
    """Return one sentence for each reason why boards that the camera saw were not found in the sweep."""
    return [
        f"in {number} of {count} poses the LiDAR shows {reason}"
        for reason, number in Counter(_NUMBERS.sub("", reason) for reason in lost.values()).most_common(3)
    ]


def pose_table(path: Path) -> list[BoardView] | None:
    """Return the boards in a ``poses.csv`` of ACFR's cam_lidar_calibration, or None if there is none.

    19 lines a pose, mm: the camera's centre, normal, four corners, then the LiDAR's, then sizes.

    Raises:
        CalibrationError: If there is one that is damaged.
    """
    file = path / "poses.csv"
    if not file.is_file():
        return None
    try:
        rows = [[float(value) for value in line.split(",")] for line in file.read_text().split()]
        poses = [np.array(rows[k : k + 12]) for k in range(0, len(rows), 19)]
        return [BoardView(pose[0] / 1000, pose[1], pose[6] / 1000, pose[7]) for pose in poses]
    except (ValueError, IndexError) as err:
        raise CalibrationError(f"{file} is no table of 19 lines a pose: {err}") from err
