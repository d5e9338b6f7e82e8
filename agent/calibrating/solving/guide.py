"""Tells a person with a board what to do next, and when it is enough."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations

import cv2
import numpy as np

from sensorium.agent.calibrating.solving.boards import REPEATED, USED, BoardMoment, Boards
from sensorium.agent.calibrating.solving.camera_lidar import lidar_views
from sensorium.agent.calibrating.solving.cameras import MIN_STEREO_VIEWS
from sensorium.agent.calibrating.solving.material import Image, Moment
from sensorium.calibration.board import MIN_LIDAR_VIEWS, BoardView, is_focal_told, refit_focals
from sensorium.calibration.board_fit import solve_camera_lidar, solve_intrinsics
from sensorium.calibration.coverage import (
    LensCoverage,
    Wanted,
    coverage_picture,
    missing_for_lidar,
    wanted_for_lidar,
)
from sensorium.calibration.geometry import Array, Intrinsics
from sensorium.calibration.rig_document import RigCalibration
from sensorium.calibration.targets import Target
from sensorium.errors import CalibrationError

MIN_CHECK_VIEWS = 6
_FIRST_FIT_VIEWS = 4
# Without a calibration the board is looked for all over the sweeps; that takes seconds, so not at every view.
_FIRST_GUESS_MOMENTS = 6
_GUESS_EVERY = 4


@dataclass(slots=True)
class CameraState:
    """One camera: what its last image showed, and what its views pin."""

    name: str
    last: str = "no image yet"
    image: Image | None = None
    coverage: LensCoverage | None = None
    wanted: Wanted | None = None
    is_focal_told: bool = False
    """Whether the views would show a focal length off by as much as the check is to find."""


@dataclass(slots=True)
class LidarState:
    """One camera with one LiDAR."""

    camera: str
    lidar: str
    T_camera_lidar: Array | None = None
    views: list[BoardView] = field(default_factory=list)
    seen: int = 0
    missing: tuple[str, ...] = ("no board seen by both yet",)
    wanted: Wanted | None = None


class Guide:
    """Takes moments of a running rig and keeps what is known, what is missing and what to do next.

    Args:
        base: The calibration before; lenses and places in it save work, none need be there.
        for_check: Enough for a check of that calibration is enough; else for solving.
        model: Lens to solve where the calibration before has none.
        only: Names of solvers; empty = all.
    """

    def __init__(
        self,
        board: Target,
        base: RigCalibration,
        for_check: bool = False,
        model: str = "",
        only: Sequence[str] = (),
    ) -> None:
        self.boards = Boards(board)
        self.cameras: dict[str, CameraState] = {}
        self.lidars: dict[tuple[str, str], LidarState] = {}
        self._base = base
        self._for_check = for_check
        self._model = model
        self._only = only

    def take(self, moment: Moment) -> None:
        """Take in what the sensors saw at one time.

        Raises:
            CalibrationError: If a camera's images change their size, or a sweep does not decode.
        """
        count = len(self.boards.moments)
        found = self.boards.add(moment)
        fresh = self.boards.moments[count:] if len(self.boards.moments) > count else []
        for name, what in found.items():
            state = self.cameras.setdefault(name, CameraState(name))
            state.last, state.image = what, moment.images[name].image
        for lidar in self.boards.lidars if self._wants("camera-lidar") else ():
            for camera in self.cameras:
                known = self._base.has_transform(camera, lidar)
                T = self._base.transform(camera, lidar) if known else None
                self.lidars.setdefault((camera, lidar), LidarState(camera, lidar, T))
        for news in fresh:
            for name in news.views:
                self._update_lens(self.cameras[name])
            for pair in self.lidars.values():
                if pair.camera in news.views and pair.lidar in news.sweeps:
                    self._update_lidar(pair, news)

    def _wants(self, solver: str) -> bool:
        return not self._only or solver in self._only

    # -- what is known

    def _update_lens(self, state: CameraState) -> None:
        views, board = self.boards.views(state.name), self.boards.board
        size = self.boards.sizes[state.name]
        before = self._base.cameras.get(state.name)
        if before is not None and (before.width, before.height) != size:
            before = None
        state.coverage, state.wanted = None, None
        if self._for_check and before is not None:
            state.coverage = LensCoverage(board, before)
            for view in views:
                state.coverage.add(view)
            state.is_focal_told = self._tells_focal(state.coverage)
        elif len(views) >= _FIRST_FIT_VIEWS:
            model = self._model or (before.model if before is not None else "radtan")
            try:
                fit = solve_intrinsics(views, board, size, model, before, is_judged=False)
            except CalibrationError:
                return
            state.coverage = LensCoverage.of(board, fit, views)
        if state.coverage is not None and not self._is_lens_known(state):
            state.wanted = state.coverage.wanted()

    @staticmethod
    def _tells_focal(coverage: LensCoverage) -> bool:
        if len(coverage.views) < MIN_CHECK_VIEWS:
            return False
        try:
            refit = refit_focals([coverage.views], coverage.board, [coverage.camera], [np.eye(4)])
        except CalibrationError:
            return False
        return is_focal_told(float(refit.sigmas[0]))

    def lens(self, name: str) -> Intrinsics | None:
        """Return a camera's lens as far as it is known."""
        state = self.cameras.get(name)
        if state is not None and state.coverage is not None:
            return state.coverage.camera
        return self._base.cameras.get(name)

    def _update_lidar(self, state: LidarState, news: BoardMoment) -> None:
        lens = self.lens(state.camera)
        state.seen += 1
        if lens is None:
            return
        board = self.boards.board
        moments, T = [news], state.T_camera_lidar
        if T is None:
            moments = self.boards.common(state.camera, state.lidar)
            if len(moments) < _FIRST_GUESS_MOMENTS or len(moments) % _GUESS_EVERY:
                return
        try:
            views, _, lost, T = lidar_views(board, moments, state.camera, state.lidar, lens, T, T is None)
        except CalibrationError as err:
            state.missing = (str(err),)
            return
        state.T_camera_lidar = T
        state.views += views
        if len(state.views) < MIN_LIDAR_VIEWS or T is None:
            state.missing = tuple(lost) or (f"{len(state.views)} poses, {MIN_LIDAR_VIEWS} are needed",)
            return
        fit = solve_camera_lidar(state.views)
        state.T_camera_lidar = fit.T_first_second
        state.missing = () if self._for_check else tuple(missing_for_lidar(fit.covariance))
        state.wanted = (
            wanted_for_lidar(board, lens, state.views, fit.T_first_second) if state.missing else None
        )

    # -- what is missing

    def _is_lens_known(self, state: CameraState) -> bool:
        coverage = state.coverage
        if coverage is None:
            return False
        if self._for_check:
            return state.is_focal_told
        return coverage.is_enough

    def _loose_pairs(self) -> list[tuple[str, str, int]]:
        """Return pairs of cameras that share some views, but too few."""
        found = []
        for first, second in combinations(sorted(self.cameras), 2) if self._wants("stereo") else ():
            shared = sum(first in m.views and second in m.views for m in self.boards.moments)
            if 0 < shared < MIN_STEREO_VIEWS + 2:
                found.append((first, second, shared))
        return found

    @property
    def is_enough(self) -> bool:
        """Whether everything that was seen at all is pinned well enough."""
        lenses = [self._is_lens_known(state) for state in self.cameras.values()]
        pairs = [not state.missing for state in self.lidars.values()]
        return bool(lenses) and all(lenses) and all(pairs) and not self._loose_pairs()

    def advice(self) -> str:
        """Return what to do next, in one sentence."""
        loose = [state for state in self.cameras.values() if not self._is_lens_known(state)]
        # The camera that has most to gain is served first; a view for it may serve the others too.
        for state in sorted(loose, key=lambda each: each.coverage.progress if each.coverage else 0.0):
            if state.wanted is not None:
                return f"{state.name}: {state.wanted.words}; hold it still"
            return f"{state.name}: show it the whole board, tilted this way and that"
        for first, second, shared in self._loose_pairs():
            return f"hold the board where {first} and {second} both see it ({shared} views so far)"
        for pair in self.lidars.values():
            if pair.wanted is not None:
                return f"{pair.camera} and {pair.lidar}: {pair.wanted.words}; hold it still"
            if pair.missing:
                return f"{pair.camera} and {pair.lidar}: {pair.missing[0]}"
        return "enough"

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Return for each camera and each pair with a LiDAR: name, last image, views, how far it is."""
        found = []
        for state in self.cameras.values():
            views = len(self.boards.views(state.name))
            progress = 1.0 if self._is_lens_known(state) else 0.0
            if state.coverage is not None and not self._for_check:
                progress = state.coverage.progress
            last = "found" if state.last in (USED, REPEATED) else state.last
            found.append((state.name, last, str(views), f"{100 * progress:.0f} %"))
        for pair in self.lidars.values():
            state_word = "enough" if not pair.missing else pair.missing[0]
            found.append((f"{pair.camera}~{pair.lidar}", "", f"{len(pair.views)} of {pair.seen}", state_word))
        return found

    def picture(self) -> Image | None:
        """Return the coverage of every camera, one above the other; None before the first image."""
        parts = []
        for state in self.cameras.values():
            coverage = state.coverage
            if coverage is None and state.image is not None:
                lens = self.lens(state.name) or _unknown(self.boards.sizes[state.name])
                coverage = LensCoverage(self.boards.board, lens)
                coverage.views = self.boards.views(state.name)
            if coverage is not None:
                parts.append(coverage_picture(coverage, state.image, state.wanted, state.name))
        return stacked(parts) if parts else None


def _unknown(size: tuple[int, int]) -> Intrinsics:
    width, height = size
    return Intrinsics("pinhole", width, height, 0.8 * width, 0.8 * width, (width - 1) / 2, (height - 1) / 2)


def stacked(parts: Sequence[Image]) -> Image:
    """Return pictures one above the other, as wide as the widest."""
    width = max(part.shape[1] for part in parts)
    scaled = [cv2.resize(part, (width, round(part.shape[0] * width / part.shape[1]))) for part in parts]
    return np.asarray(np.concatenate(scaled), np.uint8)
