"""The second opinion by reflectance agrees with a good calibration and not with a wrong one."""

from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import pytest

from sensorium.calibration.formats.kitti import read_kitti
from sensorium.calibration.geometry import Intrinsics, small_motion
from sensorium.calibration.nid import (
    AGREEING_DEG,
    BINS,
    ReflectanceView,
    information_distance,
    reflectance_view,
    second_opinion,
)

CAMERA = Intrinsics("pinhole", 320, 240, 200.0, 200.0, 159.5, 119.5)


@lru_cache(maxsize=1)
def views(folder: Path) -> tuple[ReflectanceView, ...]:
    """Six real frames of one drive."""
    found = []
    for image_path in sorted((folder / "image_2").glob("*.png"))[::2][:6]:
        image = np.asarray(cv2.imread(str(image_path), cv2.IMREAD_GRAYSCALE), np.uint8)
        points = np.fromfile(folder / "velodyne" / f"{image_path.stem}.bin", np.float32).reshape(-1, 4)
        known = read_kitti(folder, (image.shape[1], image.shape[0]))
        T = known.transform("camera_2", "velodyne")
        found.append(reflectance_view(image, points, known.camera("camera_2"), T))
    return tuple(found)


def test_real_frames_agree_with_their_calibration(shared_data: Path) -> None:
    opinion = second_opinion(views(shared_data / "calibration" / "kitti_raw_seq"), np.zeros(6))
    assert not opinion.disagrees.any(), (opinion.gap_deg, opinion.sigma_deg)


@pytest.mark.parametrize("axis", [0, 1])
def test_a_turn_that_edges_might_claim_is_contradicted(shared_data: Path, axis: int) -> None:
    claimed = np.deg2rad(0.7) * np.eye(6)[axis]
    opinion = second_opinion(views(shared_data / "calibration" / "kitti_raw_seq"), claimed)
    assert opinion.disagrees[axis]
    assert abs(opinion.gap_deg[axis] + 0.7) < AGREEING_DEG + 2 * opinion.sigma_deg[axis]


def test_painted_wall_is_read_best_where_it_is() -> None:
    """Stripes of reflectance on a wall at 5 m, painted into the image exactly where they are seen."""
    columns, rows = np.meshgrid(np.arange(320), np.arange(240))
    image = np.where((columns // 16 + rows // 16) % 2, 200, 40).astype(np.uint8)
    u, v = columns[::3, ::3].ravel(), rows[::3, ::3].ravel()
    xyz = np.stack(
        [(u - CAMERA.cx) / CAMERA.fx * 5, (v - CAMERA.cy) / CAMERA.fy * 5, np.full(len(u), 5.0)], 1
    )
    points = np.column_stack([xyz, image[v, u] / 255.0])
    seen = reflectance_view(image, points, CAMERA, np.eye(4))
    at_home = information_distance(seen, np.zeros(6))
    for axis in range(6):
        away = information_distance(seen, np.eye(6)[axis] * (0.02 if axis < 3 else 0.1))
        assert at_home < away, axis


def test_points_behind_others_are_left_out() -> None:
    near = np.array([[0.0, 0.0, 2.0, 0.5]] * 10) + np.linspace(0, 0.01, 10)[:, None] * (1, 0, 0, 0)
    far = near * (4, 1, 4, 1)
    seen = reflectance_view(np.zeros((240, 320), np.uint8), np.vstack([near, far]), CAMERA, np.eye(4))
    assert (seen.xyz[:, 2] < 3).all()


def test_nothing_in_view_is_no_information_and_no_crash() -> None:
    image = np.full((240, 320), 128, np.uint8)
    for points in (np.zeros((0, 4)), np.array([[0.0, 0.0, -5.0, 1.0]]), np.full((3, 4), np.nan)):
        seen = reflectance_view(image, points, CAMERA, small_motion(np.zeros(6)))
        assert len(seen.xyz) == 0
        assert seen.bins.max(initial=0) < BINS
        assert information_distance(seen, np.zeros(6)) == 1.0
    assert np.isfinite(second_opinion([seen] * 3, np.zeros(6)).gap_deg).all()
