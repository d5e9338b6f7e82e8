"""The overlay paints points where the camera model puts them."""

import numpy as np

from sensorium.calibration import geometry
from sensorium.calibration.overlay import ESTIMATED_BGR, NOW_BGR, edge_overlay, lidar_overlay
from sensorium.calibration.rig_document import Intrinsics

CAMERA = Intrinsics("pinhole", 200, 100, 100.0, 100.0, 100.0, 50.0)
T_CAMERA_LIDAR = geometry.transform(geometry.R_BODY_OPTICAL.T, (0.0, 0.0, 0.0))


def test_points_ahead_are_painted_and_the_rest_is_not() -> None:
    image = np.zeros((100, 200, 3), np.uint8)
    # Straight ahead, behind, no return, and 45 degrees to the left (y = +): out of this image's 100 px half.
    points = np.array([[5.0, 0.0, 0.0], [-5.0, 0.0, 0.0], [0.0, 0.0, 0.0], [5.0, 2.5, 0.0]])
    painted = lidar_overlay(image, points, CAMERA, T_CAMERA_LIDAR)
    rows, columns = np.nonzero(painted.any(axis=2))
    assert set(rows) == {49, 50, 51}
    assert set(columns) == {49, 50, 51, 99, 100, 101}
    assert not image.any()


def test_nearer_points_cover_farther_ones() -> None:
    image = np.zeros((100, 200), np.uint8)
    both = lidar_overlay(image, np.array([[2.0, 0.0, 0.0], [20.0, 0.0, 0.0]]), CAMERA, T_CAMERA_LIDAR)
    blue, _, red = both[50, 100]
    assert red > blue


def test_edges_show_now_and_estimated() -> None:
    image = np.zeros((100, 200, 3), np.uint8)
    moved = geometry.small_motion((0.0, 0.1, 0.0, 0.0, 0.0, 0.0)) @ T_CAMERA_LIDAR
    painted = edge_overlay(image, np.array([[5.0, 0.0, 0.0]]), CAMERA, T_CAMERA_LIDAR, moved)
    assert tuple(painted[50, 100]) == NOW_BGR
    assert tuple(painted[50, 110]) == ESTIMATED_BGR


def test_no_point_in_view_leaves_the_picture_alone() -> None:
    image = np.full((100, 200, 3), 7, np.uint8)
    assert (lidar_overlay(image, np.empty((0, 3)), CAMERA, T_CAMERA_LIDAR) == 7).all()
