"""Which poses of a board a camera has seen, what they pin, and which pose would help most.

Every view adds information about the camera; its own unknown pose is taken out (Schur complement). From the sum
follows how well the camera is known, and by trying poses that were not shown yet, which one is worth most.
Nothing is fitted here, so it keeps up with live images.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import cv2
import numpy as np
from numpy.typing import NDArray

from sensorium.calibration.board import BoardView, board_residuals, pose_of
from sensorium.calibration.board_fit import LensFit, projection_sigma
from sensorium.calibration.bundle import (
    by_lens,
    by_motion,
    by_point,
    inverse_or_infinite,
    pixels_of,
    vector_of,
)
from sensorium.calibration.geometry import Array, Intrinsics, apply, inverse, rotation_exp, transform
from sensorium.calibration.targets import Target, View
from sensorium.errors import CalibrationError

MAX_FOCAL_SIGMA = 0.003
"""Relative; a third of the focal error that the check at start finds."""
MAX_PROJECTION_SHARE = 1 / 640
"""Of the image's width: how well it must be known where a ray lands, anywhere in the image."""
MAX_ROTATION_SIGMA_RAD = np.deg2rad(0.15)
MAX_TRANSLATION_SIGMA_M = 0.01
MIN_VIEWS = 6

COLUMNS, ROWS = 5, 4
# Corners of one view share part of their errors (see bundle.py): deviation of a corner, as if independent.
CORNER_SIGMA_PX = 0.3
_TILTS_DEG = ((0, 0), (35, 0), (-35, 0), (0, 35), (0, -35))
_SHARES = (0.3, 0.5, 0.7)
_MARGIN = 0.02
_ACROSS = ("left", "", "right")
_DOWN = ("upper", "", "lower")


@dataclass(frozen=True, slots=True, eq=False)
class Wanted:
    """A pose of the board that is worth showing: T_camera_board, its corners in the image, and words."""

    T_camera_board: Array
    pixels: Array
    words: str


class LensCoverage:
    """How well views pin one camera.

    Args:
        camera: The camera as far as it is known; a guess does.
    """

    def __init__(self, board: Target, camera: Intrinsics) -> None:
        self.board = board
        self.camera = camera
        self.views: list[View] = []
        self.poses: list[Array] = []
        self._information = _prior(camera)

    @classmethod
    def of(cls, board: Target, fit: LensFit, views: Sequence[View]) -> "LensCoverage":
        """Return the coverage of a fit; what it says of its own uncertainty counts."""
        found = cls(board, fit.camera)
        found.views = [views[k] for k in fit.used]
        found.poses = list(fit.poses)
        found._information = inverse_or_infinite(fit.covariance)
        return found

    def add(self, view: View) -> bool:
        """Take in a view; False if no pose fits it."""
        try:
            pose = pose_of(view, self.board, self.camera)
        except CalibrationError:
            return False
        self.views.append(view)
        self.poses.append(pose)
        self._information = self._information + lens_information(self.board, view.ids, pose, self.camera)
        return True

    @property
    def covariance(self) -> Array:
        """Of fx, fy, cx, cy and the distortion."""
        return inverse_or_infinite(self._information)

    @property
    def focal_sigma(self) -> float:
        """Relative deviation of the focal length."""
        root = np.sqrt(np.diag(self.covariance)[:2])
        return float(max(root[0] / self.camera.fx, root[1] / self.camera.fy))

    @property
    def cell_sigma_px(self) -> Array:
        """(ROWS, COLUMNS) deviations, px, of where the camera sees things over the image."""
        return projection_sigma(self.camera, self.covariance, COLUMNS, ROWS)

    @property
    def max_projection_px(self) -> float:
        return self.camera.width * MAX_PROJECTION_SHARE

    @property
    def unseen_corners(self) -> list[str]:
        """Corners of the image in which no corner of the board was ever seen: the lens is only extrapolated there."""
        seen = np.concatenate([view.pixels for view in self.views]) if self.views else np.zeros((0, 2))
        x, y = seen[:, 0] / self.camera.width, seen[:, 1] / self.camera.height
        return [
            f"{down} {across}"
            for down, is_down in (("upper", y < 0.3), ("lower", y > 0.7))
            for across, is_across in (("left", x < 0.3), ("right", x > 0.7))
            if not (is_down & is_across).any()
        ]

    @property
    def progress(self) -> float:
        """0 to 1; 1 when every limit is kept and the board was in every corner of the image."""
        worst = max(
            self.focal_sigma / MAX_FOCAL_SIGMA,
            float(np.nanmax(self.cell_sigma_px)) / self.max_projection_px,
        )
        corners = 1 - len(self.unseen_corners) / 8
        return float(min(1.0, 1 / worst, len(self.views) / MIN_VIEWS, corners))

    @property
    def is_enough(self) -> bool:
        return self.progress >= 1.0

    def notes(self) -> list[str]:
        """Return what is pinned by extrapolation only; while somebody holds the board it is asked for."""
        if not self.unseen_corners:
            return []
        return [
            f"the board was never in the {', '.join(self.unseen_corners)} of the image: there the lens is "
            "extrapolated"
        ]

    def missing(self) -> list[str]:
        """Return sentences: what is not pinned well enough."""
        found = []
        if len(self.views) < MIN_VIEWS:
            found.append(f"{len(self.views)} views of the board, at least {MIN_VIEWS} are needed")
        if self.focal_sigma > MAX_FOCAL_SIGMA:
            found.append(
                f"the focal length is known to {100 * self.focal_sigma:.2g} % "
                f"(limit {100 * MAX_FOCAL_SIGMA:g} %): tilt the board more"
            )
        cells = self.cell_sigma_px
        if np.nanmax(cells) > self.max_projection_px:
            row, column = np.unravel_index(int(np.nanargmax(cells)), cells.shape)
            where = place_words((column + 0.5) / COLUMNS, (row + 0.5) / ROWS)
            found.append(
                f"where a point lands {where} is known to {np.nanmax(cells):.2g} px only "
                f"(limit {self.max_projection_px:.2g} px): show the board there"
            )
        return found

    def wanted(self) -> Wanted | None:
        """Return the pose that would help most; None if no pose fits into the image."""
        ids = np.arange(len(self.board.points_m))
        best, least = None, np.inf
        unseen = len(self.unseen_corners)
        for candidate in candidates(self.board, self.camera):
            if unseen and len(self._with(candidate).unseen_corners) == unseen:
                continue
            more = lens_information(self.board, ids, candidate.T_camera_board, self.camera)
            covariance = inverse_or_infinite(self._information + more)
            loss = self._loss(covariance)
            if loss < least:
                best, least = candidate, loss
        return best

    def _with(self, candidate: Wanted) -> "LensCoverage":
        found = LensCoverage(self.board, self.camera)
        found.views = [*self.views, View(np.arange(len(candidate.pixels)), candidate.pixels)]
        return found

    def _loss(self, covariance: Array) -> float:
        root = np.sqrt(np.diag(covariance)[:2])
        focal = max(root[0] / self.camera.fx, root[1] / self.camera.fy) / MAX_FOCAL_SIGMA
        cells = projection_sigma(self.camera, covariance, COLUMNS, ROWS) / self.max_projection_px
        return float(focal**2 + np.nanmean(np.square(cells)) + 0.5 * np.nanmax(np.square(cells)))


def lens_information(board: Target, ids: NDArray[np.int64], pose: Array, camera: Intrinsics) -> Array:
    """Return what corners seen at this pose say about the camera's numbers, the pose being unknown."""
    points = apply(pose, board.points_m[ids])
    size = len(vector_of(camera))
    lens = by_lens(points, camera).reshape(-1, size) / CORNER_SIGMA_PX
    motion = (by_point(points, camera) @ by_motion(points)).reshape(-1, 6) / CORNER_SIGMA_PX
    own = motion.T @ motion
    mixed = lens.T @ motion
    return np.asarray(lens.T @ lens - mixed @ np.linalg.solve(own, mixed.T), np.float64)


def _prior(camera: Intrinsics) -> Array:
    """Return the information of knowing nothing but that it is a camera."""
    sigma = np.array(
        [0.5 * camera.fx, 0.5 * camera.fy, 0.1 * camera.width, 0.1 * camera.width]
        + [0.5] * len(camera.distortion)
    )
    return np.diag(sigma**-2.0)


def candidates(board: Target, camera: Intrinsics) -> list[Wanted]:
    """Return poses to choose from: nine places, three sizes, five tilts, as far as they fit into the image."""
    found = []
    outline = board.outline_m
    middle = board.points_m.mean(axis=0)
    for share, (row, column), (about_x, about_y) in product(_SHARES, product(range(3), range(3)), _TILTS_DEG):
        distance = camera.f_px * outline[0] / (share * camera.width)
        R = rotation_exp((0.0, np.deg2rad(about_y), 0.0)) @ rotation_exp((np.deg2rad(about_x), 0.0, 0.0))
        target = np.array([(column - 1) * camera.width, (row - 1) * camera.height]) / 2
        centre = np.array([target[0], target[1], camera.f_px]) * distance / camera.f_px
        for _ in range(4):
            pixels = pixels_of((board.points_m - middle) @ R.T + centre, _straight(camera))
            low = pixels.min(axis=0) - _MARGIN * camera.width
            high = pixels.max(axis=0) + _MARGIN * camera.width - (camera.width, camera.height)
            shift = np.where(low < 0, -low, 0) - np.where(high > 0, high, 0)
            centre[:2] += shift * distance / camera.f_px
        pose = transform(R, centre - R @ middle)
        points = apply(pose, board.points_m)
        if points[:, 2].min() <= 0:
            continue
        pixels = pixels_of(points, camera)
        inside = (pixels >= 0).all() and (pixels <= (camera.width - 1, camera.height - 1)).all()
        if inside:
            words = pose_words(pixels, share, about_x, about_y, camera)
            found.append(Wanted(pose, pixels, words))
    return found


def _straight(camera: Intrinsics) -> Intrinsics:
    return replace(camera, model="pinhole", distortion=())


def pose_words(pixels: Array, share: float, about_x: float, about_y: float, camera: Intrinsics) -> str:
    """Return what to do to bring the board there."""
    x, y = pixels.mean(axis=0) / (camera.width, camera.height)
    side = {(1, 0): "upper edge", (-1, 0): "lower edge", (0, 1): "right edge", (0, -1): "left edge"}
    tilt = side.get((int(np.sign(about_x)), int(np.sign(about_y))))
    turned = f"its {tilt} tilted towards the camera" if tilt else "facing the camera"
    return f"bring the board {place_words(x, y, 'to')}, {100 * share:.0f} % of the image wide, {turned}"


def place_words(x: float, y: float, preposition: str = "in") -> str:
    """Return where in the image a point is; x and y from 0 to 1. In the picture, not as a mirror shows it."""
    across = _ACROSS[0 if x < 0.4 else 2 if x > 0.6 else 1]
    down = _DOWN[0 if y < 0.4 else 2 if y > 0.6 else 1]
    if across and down:
        return f"{preposition} the {down} {across} corner"
    if across or down:
        return f"{'at' if preposition == 'in' else preposition} the {across or down} edge"
    return f"{preposition} the middle"


# -- camera and LiDAR


def lidar_information(views: Sequence[BoardView], T_camera_lidar: Array) -> Array:
    """Return what boards say about T_camera_lidar (left perturbation)."""
    total = np.zeros((6, 6))
    for view in views:
        jacobian, _ = board_residuals(view, T_camera_lidar)
        total += jacobian.T @ jacobian
    return total


def wanted_for_lidar(
    board: Target, camera: Intrinsics, views: Sequence[BoardView], T_camera_lidar: Array
) -> Wanted | None:
    """Return the pose of the board that would pin camera against LiDAR best."""
    limits = np.array([MAX_ROTATION_SIGMA_RAD] * 3 + [MAX_TRANSLATION_SIGMA_M] * 3)
    known = lidar_information(views, T_camera_lidar) + 1e-2 * np.diag(limits**-2.0)
    best, least = None, np.inf
    T_lidar_camera = inverse(T_camera_lidar)
    middle = board.points_m.mean(axis=0)
    for candidate in candidates(board, camera):
        pose = candidate.T_camera_board
        centre, normal = apply(pose, middle[None])[0], -pose[:3, 2]
        view = BoardView(
            centre, normal, apply(T_lidar_camera, centre[None])[0], T_lidar_camera[:3, :3] @ normal
        )
        more = known + lidar_information([view], T_camera_lidar)
        loss = float((np.diag(inverse_or_infinite(more)) / limits**2).sum())
        if loss < least:
            best, least = candidate, loss
    return best


def missing_for_lidar(covariance: Array) -> list[str]:
    """Return sentences: what of T_camera_lidar is not pinned well enough."""
    root = np.sqrt(np.diag(covariance))
    found = []
    if root[:3].max() > MAX_ROTATION_SIGMA_RAD:
        found.append(
            f"the rotation is known to {np.rad2deg(root[:3].max()):.2g} deg "
            f"(limit {np.rad2deg(MAX_ROTATION_SIGMA_RAD):.2g}): tilt the board about both axes"
        )
    if root[3:].max() > MAX_TRANSLATION_SIGMA_M:
        found.append(
            f"the translation is known to {100 * root[3:].max():.2g} cm "
            f"(limit {100 * MAX_TRANSLATION_SIGMA_M:g}): show the board at other places"
        )
    return found


# -- the picture


def coverage_picture(
    coverage: LensCoverage, image: NDArray[np.uint8] | None, wanted: Wanted | None, title: str
) -> NDArray[np.uint8]:
    """Return the boards seen (green), cells that are not known well enough (red), the next pose (yellow)."""
    camera = coverage.camera
    size = (camera.height, camera.width, 3)
    if image is None:
        canvas = np.full(size, 40, np.uint8)
    else:
        colour = image if image.ndim == 3 else np.repeat(image[:, :, None], 3, axis=2)
        canvas = np.asarray(colour * 0.6, np.uint8)
    cells = coverage.cell_sigma_px
    layer = canvas.copy()
    for (row, column), sigma in np.ndenumerate(cells):
        if not sigma <= coverage.max_projection_px:
            x0, x1 = round(column * camera.width / COLUMNS), round((column + 1) * camera.width / COLUMNS)
            y0, y1 = round(row * camera.height / ROWS), round((row + 1) * camera.height / ROWS)
            cv2.rectangle(layer, (x0, y0), (x1, y1), (40, 40, 190), -1)
    for view in coverage.views:
        cv2.fillConvexPoly(layer, _hull(view.pixels), (60, 140, 60), cv2.LINE_AA)
    canvas = np.asarray(cv2.addWeighted(canvas, 0.65, layer, 0.35, 0), np.uint8)
    for view in coverage.views:
        cv2.polylines(canvas, [_hull(view.pixels)], True, (90, 230, 90), 1, cv2.LINE_AA)
    lines = [title, f"{len(coverage.views)} views, {100 * coverage.progress:.0f} %"]
    if wanted is not None and not coverage.is_enough:
        cv2.polylines(canvas, [_hull(wanted.pixels)], True, (60, 220, 255), 2, cv2.LINE_AA)
        lines.append(wanted.words)
    for number, line in enumerate(lines):
        at = (8, 20 + 20 * number)
        cv2.putText(canvas, line, at, cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 3, cv2.LINE_AA)
        cv2.putText(canvas, line, at, cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 255), 1, cv2.LINE_AA)
    return canvas


def _hull(pixels: Array) -> NDArray[np.int32]:
    points: NDArray[np.int32] = np.rint(pixels).astype(np.int32).reshape(-1, 1, 2)
    return np.asarray(cv2.convexHull(points), np.int32)
