"""Boards are found, whole or in part, and their corners are numbered alike from either side up."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from sensorium.calibration.geometry import Intrinsics, apply, project, rotation_exp, transform
from sensorium.calibration.targets import CharucoBoard, Chessboard, blur_px, parse_board
from sensorium.errors import CalibrationError

CAMERA = Intrinsics("pinhole", 640, 480, 520.0, 520.0, 319.5, 239.5)
CHARUCO = CharucoBoard(8, 6, 0.04, 0.03)
PIXELS_PER_M = 2500


def picture(
    board: CharucoBoard, tilt: tuple[float, float, float], place: tuple[float, float, float]
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Return an image of the board and the true pixels of all its corners."""
    T = transform(rotation_exp(tilt), place)
    flat = board.draw(PIXELS_PER_M)
    width, height = board.outline_m
    # Texture pixel (u, v) shows the board at ((u + 0.5), (v + 0.5)) / PIXELS_PER_M.
    corners = np.array([[0, 0, 0], [width, 0, 0], [width, height, 0], [0, height, 0]])
    seen = project(apply(T, corners), CAMERA).astype(np.float32)
    texture = (corners[:, :2] * PIXELS_PER_M - 0.5).astype(np.float32)
    H = cv2.getPerspectiveTransform(texture, seen)
    image = cv2.warpPerspective(flat, H, (640, 480), flags=cv2.INTER_AREA, borderValue=(128,))
    soft = np.asarray(cv2.GaussianBlur(image, (0, 0), 0.7), np.uint8)
    return soft, project(apply(T, board.points_m), CAMERA)


def test_charuco_corners_are_found_where_they_are() -> None:
    image, truth = picture(CHARUCO, (0.3, -0.4, 0.2), (-0.15, -0.1, 0.5))
    view = CHARUCO.find(np.asarray(image, np.uint8))
    assert view is not None
    assert len(view.ids) == len(CHARUCO.points_m)
    assert np.linalg.norm(view.pixels - truth[view.ids], axis=1).max() < 0.5


def test_part_of_a_charuco_board_is_enough_and_too_little_is_none() -> None:
    image, truth = picture(CHARUCO, (0.0, 0.3, 0.0), (-0.15, -0.1, 0.5))
    half = image.copy()
    half[:, 330:] = 128
    view = CHARUCO.find(np.asarray(half, np.uint8))
    assert view is not None
    assert 12 <= len(view.ids) < len(CHARUCO.points_m)
    assert (np.diff(view.ids) > 0).all()
    assert np.linalg.norm(view.pixels - truth[view.ids], axis=1).max() < 0.5
    half[:, 200:] = 128
    assert CHARUCO.find(np.asarray(half, np.uint8)) is None


def test_corners_are_numbered_alike_whichever_way_up_the_camera_hangs(shared_data: Path) -> None:
    board = Chessboard(9, 6, 0.025)
    path = shared_data / "calibration/opencv_stereo_chess/left01.jpg"
    image: NDArray[np.uint8] = np.asarray(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE), np.uint8)
    upright, turned = board.find(image), board.find(np.ascontiguousarray(image[::-1, ::-1]))
    assert upright is not None
    assert turned is not None
    size = np.array([image.shape[1] - 1, image.shape[0] - 1])
    np.testing.assert_allclose(size - turned.pixels, upright.pixels, atol=0.1)


def test_corners_of_a_large_image_are_as_sharp_as_it_is(shared_data: Path) -> None:
    board = Chessboard(9, 6, 0.025)
    path = shared_data / "calibration/opencv_stereo_chess/left02.jpg"
    image = np.asarray(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE), np.uint8)
    large = np.asarray(cv2.resize(image, None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC), np.uint8)
    small, found = board.find(image), board.find(large)
    assert small is not None
    assert found is not None
    # The refining window is 11 px at most, of four times as many: half a pixel of the large image at most.
    apart = np.linalg.norm((found.pixels + 0.5) / 4 - 0.5 - small.pixels, axis=1)
    assert np.median(apart) < 0.125


def test_blur_is_measured_in_pixels_of_rise(shared_data: Path) -> None:
    board = Chessboard(9, 6, 0.025)
    path = shared_data / "calibration/opencv_stereo_chess/left04.jpg"
    sharp = np.asarray(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE), np.uint8)
    blurred = np.asarray(cv2.GaussianBlur(sharp, (0, 0), 2.5), np.uint8)
    found = []
    for image in (sharp, blurred):
        view = board.find(image)
        assert view is not None
        found.append(blur_px(image, view, board))
        # OpenCV's own measure of the same, along all edges instead of one direction.
        corners = view.pixels.astype(np.float32).reshape(-1, 1, 2)
        expected = np.ravel(cv2.estimateChessboardSharpness(image, (9, 6), corners)[0])[0]
        assert found[-1] == pytest.approx(expected, abs=0.6)
    # A Gaussian of 2.5 px alone rises from 10 to 90 % over 2.56 * 2.5 px.
    assert found[1] == pytest.approx(np.hypot(found[0], 2.56 * 2.5), rel=0.1)


def test_boards_are_read_from_text() -> None:
    assert parse_board("9x6x0.025") == Chessboard(9, 6, 0.025)
    assert parse_board("8x6x0.04", "charuco") == CharucoBoard(8, 6, 0.04, 0.03)
    assert parse_board("9x6x0.12", size="1.5x1.14").size_m == (1.5, 1.14)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("9x6", {}, "COLUMNSxROWSxSQUARE"),
        ("9x6x25", {}, "side in metres"),
        ("2x6x0.025", {}, "at least 3"),
        ("9x6x0.025", {"kind": "circles"}, "chessboard, charuco"),
        ("9x6x0.025", {"size": "big"}, "WIDTHxHEIGHT"),
        ("8x6x0.04", {"kind": "charuco", "marker_m": 0.05}, "does not fit"),
        ("8x6x0.04", {"kind": "charuco", "dictionary": "DICT_1"}, "dictionary"),
    ],
)
def test_a_board_that_cannot_be_is_refused(text: str, options: dict[str, str], message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        parse_board(text, **options)  # type: ignore[arg-type]
