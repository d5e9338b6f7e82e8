"""The boards in a recording: which views are worth using, and why others are not."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from sensorium.agent.calibrating.solving.material import Image, Moment, Points, Shown, moments
from sensorium.agent.calibrating.solving.solver import SolveRequest
from sensorium.calibration.targets import Target, View, blur_px, grey
from sensorium.errors import CalibrationError

MAX_MOMENTS = 60
# Two cameras that are not triggered together are up to 17 ms apart: 0.3 px at this speed, for 640 px of width.
MAX_SPEED_PX_S = 20.0
MAX_BLUR_PX = 5.0
# Views closer than this part of the image's width say the same.
_NEW_SHARE = 0.03
_REFERENCE_WIDTH_PX = 640.0

NOT_FOUND, MOVING, BLURRED, REPEATED, USED = "not found", "moving", "blurred", "repeated", "used"


@dataclass(frozen=True, slots=True, eq=False)
class BoardMoment:
    """Views of the board at one time, by camera, and the sweeps beside them, by LiDAR."""

    label: str
    views: dict[str, View]
    sweeps: dict[str, Points]


def judge_view(board: Target, shown: Shown) -> tuple[View | None, str]:
    """Return the board in an image, and what to say of it: found and still, or why it is of no use."""
    picture = grey(shown.image)
    view = board.find(picture)
    if view is None:
        return None, NOT_FOUND
    scale = picture.shape[1] / _REFERENCE_WIDTH_PX
    if any(
        speed_px_s(picture, grey(other()), view, dt_s) > MAX_SPEED_PX_S * scale
        for dt_s, other in shown.beside
    ):
        return view, MOVING
    if blur_px(picture, view, board) > MAX_BLUR_PX * scale:
        return view, BLURRED
    return view, USED


def speed_px_s(picture: Any, other: Any, view: View, dt_s: float) -> float:
    """Return how fast the board's corners move from one grey image to another; infinite where they are lost."""
    start = view.pixels.astype(np.float32).reshape(-1, 1, 2)
    found, status, _ = cv2.calcOpticalFlowPyrLK(
        picture, other, start, start.copy(), winSize=(21, 21), maxLevel=2
    )
    kept = np.asarray(status).ravel() == 1
    if found is None or kept.mean() < 0.8:
        return float("inf")
    away = np.linalg.norm(np.asarray(found, np.float64).reshape(-1, 2)[kept] - view.pixels[kept], axis=1)
    return float(np.median(away)) / max(abs(dt_s), 1e-6)


def is_new(view: View, others: list[View], width: int, share: float = _NEW_SHARE) -> bool:
    """Return whether no other view has the board where this one has it."""
    for other in others:
        both = np.intersect1d(view.ids, other.ids)
        if not len(both):
            continue
        gap = view.only(both).pixels - other.only(both).pixels
        if float(np.linalg.norm(gap, axis=1).mean()) < share * width:
            return False
    return True


@dataclass(slots=True, eq=False)
class Boards:
    """What a recording shows of a board, collected moment by moment.

    Attributes:
        sizes: Width and height of each camera's images.
        latest: By camera, the last moment with a view that was used, and its image.
        counts: By camera: how many images were used, repeated, moving, blurred, or showed no board.
    """

    board: Target
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    lidars: set[str] = field(default_factory=set)
    moments: list[BoardMoment] = field(default_factory=list)
    latest: dict[str, tuple[BoardMoment, Image]] = field(default_factory=dict)
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    _share: float = _NEW_SHARE

    def add(self, moment: Moment) -> dict[str, str]:
        """Take in a moment; return what was made of each camera's image.

        Raises:
            CalibrationError: If a camera's images change their size, or a sweep does not decode.
        """
        views, found = {}, {}
        self.lidars |= set(moment.sweeps)
        for camera, shown in moment.images.items():
            size = (shown.image.shape[1], shown.image.shape[0])
            if self.sizes.setdefault(camera, size) != size:
                raise CalibrationError(
                    f"images of {camera} change their size from {self.sizes[camera]} to {size}"
                )
            view, found[camera] = judge_view(self.board, shown)
            if view is not None and found[camera] == USED:
                views[camera] = view
        fresh = [c for c, view in views.items() if is_new(view, self.views(c), self.sizes[c][0], self._share)]
        if views and not fresh:
            found |= dict.fromkeys(views, REPEATED)
        if fresh:
            sweeps = {name: load() for name, load in moment.sweeps.items()}
            self.moments.append(BoardMoment(moment.label, views, sweeps))
            self.latest |= {camera: (self.moments[-1], moment.images[camera].image) for camera in views}
            if len(self.moments) > MAX_MOMENTS:
                self._thin()
        for camera, what in found.items():
            self.counts.setdefault(camera, Counter())[what] += 1
        return found

    def views(self, camera: str) -> list[View]:
        """Return every view of a camera."""
        return [moment.views[camera] for moment in self.moments if camera in moment.views]

    def labels(self, camera: str) -> list[str]:
        """Return the times (or numbers) of the views of a camera."""
        return [moment.label for moment in self.moments if camera in moment.views]

    def common(self, first: str, second: str) -> list[BoardMoment]:
        """Return the moments at which both cameras saw the board, or a camera and a LiDAR swept."""
        return [
            moment
            for moment in self.moments
            if first in moment.views and (second in moment.views or second in moment.sweeps)
        ]

    def summary(self, camera: str) -> str:
        """Return how many images of a camera were of use, and why not the others."""
        counts = self.counts.get(camera, Counter())
        return ", ".join(f"{counts[what]} {what}" for what in _ORDER if counts[what]) or "no image"

    def _thin(self) -> None:
        """Demand more difference between views, and drop those that are then too close to earlier ones."""
        while len(self.moments) > MAX_MOMENTS * 3 // 4:
            self._share *= 1.3
            every, self.moments = self.moments, []
            for moment in every:
                if any(
                    is_new(view, self.views(camera), self.sizes[camera][0], self._share)
                    for camera, view in moment.views.items()
                ):
                    self.moments.append(moment)


_ORDER = (USED, REPEATED, MOVING, BLURRED, NOT_FOUND)


class BoardMaterial:
    """The boards of a recording, looked for once and shared by all solvers of a run."""

    def __init__(self) -> None:
        self._found: dict[str, Boards] = {}

    def of(self, request: SolveRequest) -> Boards | None:
        """Return the boards; None where no board was named.

        Raises:
            CalibrationError: If the recording cannot be read, or a camera's images change their size.
        """
        if request.board is None:
            return None
        key = str(request.path)
        if key not in self._found:
            boards = Boards(request.board)
            for moment in moments(request.path, request.kind):
                found = boards.add(moment)
                request.show(
                    f"{moment.label}: " + ", ".join(f"{name} {what}" for name, what in found.items())
                )
            self._found[key] = boards
        return self._found[key]
