"""Boards with a known pattern: chessboard and ChArUco.

Every corner array that OpenCV returns is reshaped at this border, because its shape differs between versions
((N, 1, 2) in 4, (N, 2) in 5) and numpy would broadcast the two against each other without a word.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from sensorium.calibration.geometry import Array
from sensorium.errors import CalibrationError

Image = NDArray[np.uint8]
MIN_CORNERS = 12
_BLUR_EDGES = 20
_SEARCH_PX = 1280
DICTIONARIES = tuple(name for name in dir(cv2.aruco) if name.startswith("DICT_"))


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """A board in one image: (N, 2) pixels of the corners whose numbers are ``ids`` (N,), ascending."""

    ids: NDArray[np.int64]
    pixels: Array

    def only(self, ids: NDArray[np.int64]) -> "View":
        """Return the view with only these corners."""
        chosen = np.isin(self.ids, ids)
        return View(self.ids[chosen], self.pixels[chosen])


class Target(Protocol):
    """A board that can be found in images.

    Attributes:
        points_m: (N, 3) all corners in the board's plane, z = 0, by number.
        square_m: Side of a square.
        outline_m: Width and height of the pattern with its outer squares.
        size_m: Width and height of the whole board, pattern in the middle; None = unknown. For LiDARs.
    """

    @property
    def points_m(self) -> Array: ...

    @property
    def square_m(self) -> float: ...

    @property
    def outline_m(self) -> tuple[float, float]: ...

    @property
    def size_m(self) -> tuple[float, float] | None: ...

    def find(self, image: Image) -> View | None:
        """Return the corners seen, with sub-pixel positions; None if too few for a pose."""


def grey(image: Image) -> Any:
    """Return a grey image of a grey or BGR one."""
    return image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)


def refined(image: Any, corners: Array, spacing_px: float) -> Array:
    """Return (N, 2) corners moved to the saddle points of a grey image near them."""
    # The window must stay inside a square, or it pulls towards the next corner.
    half = int(np.clip(spacing_px / 3, 3, max(11, round(11 * image.shape[1] / _SEARCH_PX))))
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_MAX_ITER, 40, 1e-3)
    start = np.ascontiguousarray(corners, np.float32).reshape(-1, 1, 2)
    found = cv2.cornerSubPix(image, start.copy(), (half, half), (-1, -1), criteria)
    return np.asarray(found, np.float64).reshape(-1, 2)


def blur_px(image: Image, view: View, board: Target) -> float:
    """Return how wide the edges between the board's squares are: the median rise from 10 to 90 %, px.

    Sampled across the edge half-way between corners that are neighbours on the board. 0 if there are none.
    """
    picture = grey(image).astype(np.float32)
    grid = np.rint(board.points_m[view.ids][:, :2] / board.square_m).astype(np.int64)
    place = {(int(x), int(y)): k for k, (x, y) in enumerate(grid)}
    widths = []
    edges = [(k, place[x + 1, y]) for (x, y), k in place.items() if (x + 1, y) in place]
    for k, other in edges[:: max(len(edges) // _BLUR_EDGES, 1)]:
        along = view.pixels[other] - view.pixels[k]
        length = float(np.linalg.norm(along))
        across = np.array([-along[1], along[0]]) / max(length, 1e-9)
        reach = 0.4 * length
        steps = np.arange(-reach, reach + 0.125, 0.25)
        line = ((view.pixels[k] + view.pixels[other]) / 2 + steps[:, None] * across).astype(np.float32)
        profile = cv2.remap(picture, line[None, :, 0], line[None, :, 1], cv2.INTER_LINEAR).ravel()
        low, high = np.quantile(profile, (0.05, 0.95))
        if high - low < 10 or length < 4:
            continue
        rises = np.abs(np.diff(profile))
        inside = (profile > low + 0.1 * (high - low)) & (profile < high - 0.1 * (high - low))
        # Of a straight edge the part between 10 and 90 % is one run; noise on the plateaus is outside of it.
        peak = int(np.argmax(rises))
        left, right = peak, peak + 1
        while left > 0 and inside[left]:
            left -= 1
        while right < len(inside) - 1 and inside[right]:
            right += 1
        widths.append(0.25 * (right - left))
    return float(np.median(widths)) if widths else 0.0


@dataclass(frozen=True, slots=True)
class Chessboard:
    """A chessboard by its inner corners."""

    columns: int
    rows: int
    square_m: float
    size_m: tuple[float, float] | None = None

    @property
    def points_m(self) -> Array:
        """(columns * rows, 3) corners in the board's plane, row by row."""
        v, u = np.mgrid[0 : self.rows, 0 : self.columns]
        flat = np.zeros(self.columns * self.rows)
        return np.stack([u.ravel() * self.square_m, v.ravel() * self.square_m, flat], axis=1)

    @property
    def outline_m(self) -> tuple[float, float]:
        return (self.columns + 1) * self.square_m, (self.rows + 1) * self.square_m

    def find(self, image: Image) -> View | None:
        """Return all corners, or None if the whole board is not seen.

        Where the number of columns plus rows is odd, the corners are numbered so that the first square inside
        is dark: then two cameras number them alike, whichever way up they hang.
        """
        picture = grey(image)
        flags = cv2.CALIB_CB_ADAPTIVE_THRESH | cv2.CALIB_CB_NORMALIZE_IMAGE
        # Looking for it takes seconds in a large image; the corners are then placed in the whole one.
        scale = max(1.0, picture.shape[1] / _SEARCH_PX)
        small = picture
        if scale > 1:
            size = (_SEARCH_PX, round(picture.shape[0] / scale))
            small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
        found, corners = cv2.findChessboardCorners(small, (self.columns, self.rows), None, flags)
        if not found:
            return None
        corners = (np.asarray(corners, np.float64).reshape(-1, 2) + 0.5) * scale - 0.5
        corners = refined(picture, corners, float(np.linalg.norm(corners[1] - corners[0])))
        if (self.columns + self.rows) % 2 and self._begins_light(picture, corners):
            corners = corners[::-1].copy()
        return View(np.arange(len(corners)), corners)

    def _begins_light(self, picture: Any, corners: Array) -> bool:
        grid = corners.reshape(self.rows, self.columns, 2)
        middles = (grid[:-1, :-1] + grid[1:, :-1] + grid[:-1, 1:] + grid[1:, 1:]) / 4
        x, y = np.rint(middles).astype(np.intp).reshape(-1, 2).T
        height, width = picture.shape[:2]
        brightness = picture[np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)].reshape(middles.shape[:2])
        is_like_first = (np.indices(brightness.shape).sum(axis=0) % 2) == 0
        return bool(np.median(brightness[is_like_first]) > np.median(brightness[~is_like_first]))


@dataclass(frozen=True, slots=True)
class CharucoBoard:
    """A ChArUco board: ``columns`` x ``rows`` squares with markers of ``marker_m`` in the white ones.

    Corners are numbered row by row as OpenCV does; a part of the board is enough.
    """

    columns: int
    rows: int
    square_m: float
    marker_m: float
    dictionary: str = "DICT_5X5_1000"
    has_legacy_pattern: bool = False
    size_m: tuple[float, float] | None = None

    @property
    def points_m(self) -> Array:
        v, u = np.mgrid[1 : self.rows, 1 : self.columns]
        flat = np.zeros(u.size)
        return np.stack([u.ravel() * self.square_m, v.ravel() * self.square_m, flat], axis=1)

    @property
    def outline_m(self) -> tuple[float, float]:
        return self.columns * self.square_m, self.rows * self.square_m

    def _board(self) -> Any:
        dictionary = cv2.aruco.getPredefinedDictionary(getattr(cv2.aruco, self.dictionary))
        size = (self.columns, self.rows)
        board = cv2.aruco.CharucoBoard(size, self.square_m, self.marker_m, dictionary)
        board.setLegacyPattern(self.has_legacy_pattern)
        return board

    def draw(self, pixels_per_m: int, margin_px: int = 0) -> Image:
        """Return a picture of the board, for printing and for tests."""
        width, height = (round(side * pixels_per_m) + 2 * margin_px for side in self.outline_m)
        return np.asarray(self._board().generateImage((width, height), None, margin_px, 1), np.uint8)

    def find(self, image: Image) -> View | None:
        corners, ids, _, _ = cv2.aruco.CharucoDetector(self._board()).detectBoard(grey(image))
        if ids is None or len(ids) < MIN_CORNERS:
            return None
        numbers = np.asarray(ids, np.int64).reshape(-1)
        pixels = np.asarray(corners, np.float64).reshape(-1, 2)
        order = np.argsort(numbers)
        return View(numbers[order], pixels[order])


def parse_board(
    text: str,
    kind: str = "chessboard",
    marker_m: float | None = None,
    dictionary: str = "DICT_5X5_1000",
    size: str | None = None,
) -> Chessboard | CharucoBoard:
    """Return the board of ``COLUMNSxROWSxSQUARE``, such as 9x6x0.025.

    Args:
        text: Inner corners of a chessboard, squares of a ChArUco board; the square's side in metres.
        marker_m: Side of a ChArUco marker; 0.75 squares by default.
        size: ``WIDTHxHEIGHT`` of the whole board, m.

    Raises:
        CalibrationError: If it is no such board.
    """
    parts = text.lower().split("x")
    try:
        columns, rows, square_m = int(parts[0]), int(parts[1]), float(parts[2])
        is_good = len(parts) == 3 and min(columns, rows) >= 3
    except (ValueError, IndexError):
        is_good = False
    if not is_good:
        raise CalibrationError(
            f"board {text!r} is not COLUMNSxROWSxSQUARE such as 9x6x0.025 "
            "(inner corners of a chessboard or squares of a ChArUco board, at least 3 each way; metres)"
        )
    if not 0.002 <= square_m <= 0.5:
        raise CalibrationError(f"board {text!r}: a square of {square_m:g} m; give its side in metres")
    size_m = _parse_size(size)
    if kind == "chessboard":
        return Chessboard(columns, rows, square_m, size_m)
    if kind != "charuco":
        raise CalibrationError(f"board type {kind!r} is unknown; known: chessboard, charuco")
    if dictionary not in DICTIONARIES:
        raise CalibrationError(f"dictionary {dictionary!r} is unknown; known: {', '.join(DICTIONARIES)}")
    marker_m = marker_m if marker_m is not None else 0.75 * square_m
    if not 0 < marker_m < square_m:
        raise CalibrationError(f"a marker of {marker_m:g} m does not fit into a square of {square_m:g} m")
    return CharucoBoard(columns, rows, square_m, marker_m, dictionary, size_m=size_m)


def _parse_size(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        width, height = (float(part) for part in text.lower().split("x"))
    except ValueError:
        width = height = 0.0
    if not (0.05 < width < 5 and 0.05 < height < 5):
        raise CalibrationError(f"board size {text!r} is not WIDTHxHEIGHT in metres such as 0.7x0.5")
    return width, height
