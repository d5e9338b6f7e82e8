"""Pictures of a check with a board: where the corners are seen, and where the calibration expects them."""

from collections.abc import Iterator

import cv2
import numpy as np

from sensorium.agent.calibrating.checking.report import Overlay
from sensorium.agent.calibrating.solving.boards import BoardMoment, Boards
from sensorium.agent.calibrating.solving.material import Image
from sensorium.calibration.board import pose_of
from sensorium.calibration.geometry import Array, apply, in_image, inverse, project
from sensorium.calibration.overlay import ESTIMATED_BGR, NOW_BGR
from sensorium.calibration.rig_document import RigCalibration
from sensorium.errors import CalibrationError

_LIDAR_BGR = (255, 200, 60)
_CORNER_PX, _CROSS_PX = 5, 9


def board_overlays(boards: Boards, calibration: RigCalibration) -> Iterator[Overlay]:
    """Yield the last view of each camera: corners seen, where another camera places them, returns on the board.

    Raises:
        CalibrationError: If a board that was seen has no pose.
    """
    for camera, (moment, image) in boards.latest.items():
        if camera in calibration.cameras:
            yield _overlay(boards, calibration, camera, moment, image)


def _overlay(
    boards: Boards, calibration: RigCalibration, camera: str, moment: BoardMoment, image: Image
) -> Overlay:
    canvas = np.asarray(
        (image if image.ndim == 3 else np.repeat(image[:, :, None], 3, axis=2)) * 0.7, np.uint8
    )
    lens, view = calibration.camera(camera), moment.views[camera]
    words = [f"{camera}: corners seen green"]
    pose = pose_of(view, boards.board, lens)
    for lidar, points in moment.sweeps.items():
        if calibration.has_transform(camera, lidar):
            T_board_lidar = inverse(pose) @ calibration.transform(camera, lidar)
            on_board = _near_board(apply(T_board_lidar, np.asarray(points[:, :3], np.float64)), boards)
            seen = apply(
                calibration.transform(camera, lidar), np.asarray(points[:, :3], np.float64)[on_board]
            )
            pixels = project(seen, lens)
            for u, v in np.rint(pixels[in_image(pixels, lens)]).astype(int):
                cv2.circle(canvas, (int(u), int(v)), 1, _LIDAR_BGR, -1)
            words.append(f"returns of {lidar} within 5 cm of its plane blue")
    for u, v in np.rint(view.pixels).astype(int):
        cv2.circle(canvas, (int(u), int(v)), _CORNER_PX, ESTIMATED_BGR, 1, cv2.LINE_AA)
    for other in sorted(moment.views):
        if (
            other == camera
            or other not in calibration.cameras
            or not calibration.has_transform(camera, other)
        ):
            continue
        try:
            placed = pose_of(moment.views[other], boards.board, calibration.camera(other))
        except CalibrationError:
            continue
        expected = project(apply(calibration.transform(camera, other) @ placed, boards.board.points_m), lens)
        for u, v in np.rint(expected[in_image(expected, lens)]).astype(int):
            cv2.drawMarker(canvas, (int(u), int(v)), NOW_BGR, cv2.MARKER_CROSS, _CROSS_PX, 1, cv2.LINE_AA)
        words.append(f"where {other} places them red")
    return Overlay(", ".join(words), canvas)


def _near_board(points: Array, boards: Boards) -> Array:
    """Return which points, in the board's frame, lie on it or close before or behind it."""
    middle = boards.board.points_m.mean(axis=0)
    width, height = boards.board.size_m or boards.board.outline_m
    away = np.abs(points - middle)
    return np.asarray((away[:, 0] < width / 2) & (away[:, 1] < height / 2) & (away[:, 2] < 0.05))
