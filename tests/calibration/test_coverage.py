"""Coverage says what is missing, and whoever follows it ends with a camera that is known."""

import numpy as np
import pytest

from sensorium.calibration.board import BoardView, pose_of
from sensorium.calibration.board_fit import solve_camera_lidar, solve_intrinsics
from sensorium.calibration.bundle import vector_of
from sensorium.calibration.coverage import (
    MAX_FOCAL_SIGMA,
    LensCoverage,
    candidates,
    coverage_picture,
    missing_for_lidar,
    place_words,
    wanted_for_lidar,
)
from sensorium.calibration.geometry import (
    R_BODY_OPTICAL,
    Array,
    Intrinsics,
    apply,
    difference,
    inverse,
    project,
    rotation_exp,
    transform,
)
from sensorium.calibration.targets import Chessboard, View

BOARD = Chessboard(9, 6, 0.03)
TRUTH = Intrinsics("radtan", 640, 480, 530.0, 531.0, 322.0, 238.0, (-0.25, 0.08, 0.0005, -0.0003))
GUESS = Intrinsics("radtan", 640, 480, 512.0, 512.0, 319.5, 239.5, (0.0, 0.0, 0.0, 0.0))
NOISE_PX = 0.15


def shown(T_camera_board: Array, rng: np.random.Generator) -> View:
    pixels = project(apply(T_camera_board, BOARD.points_m), TRUTH)
    return View(np.arange(len(pixels)), pixels + rng.normal(0, NOISE_PX, pixels.shape))


def test_following_the_guide_ends_with_a_known_camera() -> None:
    rng = np.random.default_rng(1)
    coverage, views = LensCoverage(BOARD, GUESS), []
    while not coverage.is_enough:
        wanted = coverage.wanted()
        assert wanted is not None
        # Nobody holds a board exactly: some centimetres and degrees off.
        off = transform(rotation_exp(rng.normal(0, 0.05, 3)), rng.normal(0, 0.01, 3))
        view = shown(off @ wanted.T_camera_board, rng)
        if np.isfinite(view.pixels).all() and (view.pixels > 0).all() and (view.pixels < (639, 479)).all():
            views.append(view)
            before = coverage.progress
            if len(views) >= 4:
                fit = solve_intrinsics(views, BOARD, (640, 480), is_judged=False)
                coverage = LensCoverage.of(BOARD, fit, views)
            else:
                coverage.add(view)
            assert coverage.progress >= before - 0.2
        assert len(views) < 20, coverage.missing()
    fit = solve_intrinsics(views, BOARD, (640, 480))
    gap, sigma = vector_of(fit.camera) - vector_of(TRUTH), np.sqrt(np.diag(fit.covariance))
    assert (np.abs(gap) < 4.5 * sigma).all()
    assert fit.focal_sigma <= MAX_FOCAL_SIGMA
    assert coverage.unseen_corners == []
    assert coverage.missing() == []


def test_what_is_missing_is_said_in_words() -> None:
    rng = np.random.default_rng(2)
    coverage = LensCoverage(BOARD, TRUTH)
    assert any("0 views" in sentence for sentence in coverage.missing())
    # Always upright, always in the upper left.
    for depth in (0.5, 0.52, 0.54, 0.56, 0.58, 0.6, 0.62):
        assert coverage.add(shown(transform(np.eye(3), (-0.27, -0.2, depth)), rng))
    sentences = coverage.missing()
    assert any("focal length" in sentence and "tilt" in sentence for sentence in sentences)
    assert any("lower right corner" in sentence for sentence in sentences)
    assert coverage.unseen_corners == ["upper right", "lower left", "lower right"]
    wanted = coverage.wanted()
    assert wanted is not None
    assert "tilted towards the camera" in wanted.words


def test_words_of_a_tilt_name_the_edge_that_is_nearer() -> None:
    edges = {
        "upper edge": (slice(0, 9), slice(45, 54)),
        "lower edge": (slice(45, 54), slice(0, 9)),
        "left edge": (slice(0, 54, 9), slice(8, 54, 9)),
        "right edge": (slice(8, 54, 9), slice(0, 54, 9)),
    }
    named = set()
    for candidate in candidates(BOARD, TRUTH):
        depth = apply(candidate.T_camera_board, BOARD.points_m)[:, 2]
        for edge, (near, far) in edges.items():
            if f"its {edge} tilted" in candidate.words:
                named.add(edge)
                assert depth[near].mean() < depth[far].mean() - 0.01
        assert (candidate.pixels >= 0).all()
        np.testing.assert_allclose(
            candidate.pixels, project(apply(candidate.T_camera_board, BOARD.points_m), TRUTH), atol=1e-6
        )
    assert named == set(edges)


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [(0.1, 0.1, "in the upper left corner"), (0.9, 0.5, "at the right edge"), (0.5, 0.5, "in the middle")],
)
def test_places_have_names(x: float, y: float, words: str) -> None:
    assert place_words(x, y) == words


def test_following_the_guide_pins_a_lidar() -> None:
    truth, rng = transform(R_BODY_OPTICAL.T, (0.05, -0.1, -0.2)), np.random.default_rng(3)
    big, T = Chessboard(9, 6, 0.1), truth
    views: list[BoardView] = []
    covariance = np.eye(6)
    while missing_for_lidar(covariance):
        wanted = wanted_for_lidar(big, TRUTH, views, T)
        assert wanted is not None
        pose = wanted.T_camera_board
        centre, normal = apply(pose, big.points_m.mean(axis=0)[None])[0], -pose[:3, 2]
        seen = apply(inverse(truth), centre[None])[0] + rng.normal(0, 0.006, 3)
        turned = rotation_exp(rng.normal(0, 0.025, 3)) @ inverse(truth)[:3, :3] @ normal
        views.append(BoardView(centre, normal, seen, turned))
        if len(views) >= 3:
            fit = solve_camera_lidar(views)
            T, covariance = fit.T_first_second, fit.covariance
        assert len(views) < 60
    gap = difference(T, truth)
    assert (np.abs(gap) < 4 * np.sqrt(np.diag(covariance))).all()


def test_the_picture_shows_views_cells_and_the_next_pose() -> None:
    rng = np.random.default_rng(4)
    coverage = LensCoverage(BOARD, TRUTH)
    view = shown(transform(np.eye(3), (-0.25, -0.18, 0.5)), rng)
    coverage.add(view)
    plain = coverage_picture(coverage, None, None, "camera")
    with_next = coverage_picture(coverage, None, coverage.wanted(), "camera")
    assert plain.shape == (480, 640, 3)
    x, y = np.rint(view.pixels.mean(axis=0)).astype(int)
    _, green, red = (int(part) for part in plain[y, x])
    assert green > red
    _, green, red = (int(part) for part in plain[470, 630])  # nothing is known there
    assert red > green
    assert (plain != with_next).any()
    # A pose fits the view that it was taken for.
    np.testing.assert_allclose(pose_of(view, BOARD, TRUTH), coverage.poses[0], atol=1e-6)
