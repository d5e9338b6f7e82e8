"""Checks with a chessboard, on pictures and poses of boards."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from calibration_rates import DATA, LEVELS, grey, is_alarm, random_motion, rate
from calibration_stereo import with_focal

from sensorium.calibration import geometry
from sensorium.calibration.board import (
    BoardView,
    check_camera_lidar_board,
    check_intrinsics,
    check_stereo_board,
    check_stereo_focals,
    is_focal_told,
    refit_focals,
)
from sensorium.calibration.board_fit import solve_camera_lidar, solve_intrinsics, solve_stereo
from sensorium.calibration.edges import Edge
from sensorium.calibration.geometry import Intrinsics
from sensorium.calibration.rig_document import RigCalibration
from sensorium.calibration.targets import Chessboard, View
from sensorium.verdict import Status, Verdict


def board(_: Path) -> dict[str, Any]:
    """Checks with a chessboard: ACFR camera-LiDAR poses, OpenCV's stereo pairs."""
    return {"camera_lidar": acfr_board(), **opencv_boards(), "intrinsics_guided": guided_focals()}


def acfr_views() -> list[BoardView]:
    """Return the 40 board poses that camera and VLP-16 saw (19 lines each, mm)."""
    path = DATA / "calibration" / "acfr_board" / "poses.csv"
    rows = [[float(value) for value in line.split(",")] for line in path.read_text().split()]
    poses = [np.array(rows[k : k + 12]) for k in range(0, len(rows), 19)]
    return [BoardView(pose[0] / 1000, pose[1], pose[6] / 1000, pose[7]) for pose in poses]


def acfr_board() -> dict[str, Any]:
    """Thirty poses give the calibration, windows of the other ten are judged; 40 random splits."""
    views = acfr_views()
    rng = np.random.default_rng(3)
    result: dict[str, Any] = {"poses": len(views)}
    levels = {3: ("2cm", "0.5deg", "1deg"), 5: ("2cm", "0.5deg", "1deg")}
    for size, names in levels.items():
        calm: list[bool] = []
        hits: dict[str, list[bool]] = {name: [] for name in names}
        for _ in range(40):
            order = rng.permutation(len(views))
            fit = solve_camera_lidar([views[index] for index in order[:30]])
            for k in range(30, len(views) - size + 1, size):
                window = [views[index] for index in order[k : k + size]]
                calm.append(is_alarm(_board_verdict(window, fit.T_first_second)))
                for name in names:
                    T = geometry.small_motion(random_motion(rng, *LEVELS[name])) @ fit.T_first_second
                    hits[name].append(is_alarm(_board_verdict(window, T)))
        independent = len(views) // size
        result[f"{size}_poses"] = {
            **{name: rate(values, independent) for name, values in hits.items()},
            "false_alarm": rate(calm, independent, "rate"),
        }
    return result


def _board_verdict(window: list[BoardView], T_camera_lidar: geometry.Array) -> Verdict:
    calibration = RigCalibration(edges=(Edge("camera", "lidar", T_camera_lidar),))
    return check_camera_lidar_board(window, calibration, "camera", "lidar")


def opencv_boards() -> dict[str, Any]:
    """Each of 13 stereo views judged under a calibration from the other 12."""
    folder = DATA / "calibration" / "opencv_stereo_chess"
    chess = Chessboard(9, 6, 0.025)
    pairs: list[tuple[View, View]] = []
    for path in sorted(folder.glob("left[0-9]*.jpg")):
        both = [chess.find(grey(folder / path.name.replace("left", side))) for side in ("left", "right")]
        if both[0] is not None and both[1] is not None:
            pairs.append((both[0], both[1]))
    size = (640, 480)
    injected = {
        "pitch_0.1deg": (0.1, 0, 0, 0, 0, 0),
        "yaw_0.1deg": (0, 0.1, 0, 0, 0, 0),
        "roll_0.5deg": (0, 0, 0.5, 0, 0, 0),
        "lateral_1.3mm": (0, 0, 0, 0.0013, 0, 0),
        "depth_2.5mm": (0, 0, 0, 0, 0, 0.0025),
    }
    stereo_hits: dict[str, list[bool]] = {name: [] for name in injected}
    stereo_calm: list[bool] = []
    for index, pair in enumerate(pairs):
        others = pairs[:index] + pairs[index + 1 :]
        left, right = (solve_intrinsics([p[side] for p in others], chess, size).camera for side in (0, 1))
        T = solve_stereo([p[0] for p in others], [p[1] for p in others], chess, left, right).T_first_second
        cameras = {"left": left, "right": right}

        def verdict(T_left_right: geometry.Array, cameras: Any = cameras, pair: Any = pair) -> Verdict:
            known = RigCalibration(cameras=cameras, edges=(Edge("left", "right", T_left_right),))
            return check_stereo_board([pair[0]], [pair[1]], chess, known, "left", "right")

        stereo_calm.append(is_alarm(verdict(T)))
        for name, motion in injected.items():
            change = np.array(motion, np.float64)
            change[:3] = np.deg2rad(change[:3])
            stereo_hits[name].append(is_alarm(verdict(T @ geometry.small_motion(change))))
    return {
        "stereo_1_view": {
            **{name: rate(values, len(pairs)) for name, values in stereo_hits.items()},
            "false_alarm": rate(stereo_calm, len(pairs), "rate"),
        },
        **_focal_boards(pairs, chess, size),
    }


def _focal_boards(pairs: list[tuple[View, View]], chess: Chessboard, size: tuple[int, int]) -> dict[str, Any]:
    """Five views judged under a calibration from the other eight, with focal lengths made wrong by 1 %.

    Of one camera alone: ``told`` is how often the views tell 1 % by what the verdict says of them, and the rest of
    the rows hold where they do. By how much deviations are inflated was fixed on the left camera.
    """
    wrong = [{"left": factor} for factor in (0.99, 1.01)]
    wrong += [{"right": factor} for factor in (0.99, 1.01)]
    wrong += [{"left": factor, "right": factor} for factor in (0.99, 1.01)]
    rng = np.random.default_rng(4)
    found: dict[str, list[bool]] = {name: [] for name in ("stereo", "stereo_calm", "single", "single_calm")}
    single: dict[str, list[tuple[bool, Verdict]]] = {"left": [], "right": []}
    for _ in range(20):
        order = rng.permutation(len(pairs))
        known = [[pairs[k][side] for k in order[:8]] for side in (0, 1)]
        seen = [[pairs[k][side] for k in order[8:13]] for side in (0, 1)]
        left, right = (solve_intrinsics(views, chess, size).camera for views in known)
        T = solve_stereo(known[0], known[1], chess, left, right).T_first_second
        good = RigCalibration(cameras={"left": left, "right": right}, edges=(Edge("left", "right", T),))
        for factors in ({}, *wrong):
            rig_now = with_focal(good, factors)
            stereo = check_stereo_focals(seen[0], seen[1], chess, rig_now, "left", "right")
            found["stereo" if factors else "stereo_calm"].append(is_alarm(stereo))
            for name, views in zip(("left", "right"), seen, strict=True):
                if len(factors) == 2 or not factors:
                    verdict = check_intrinsics(views, chess, rig_now.camera(name), name)
                    found["single" if factors else "single_calm"].append(is_alarm(verdict))
                    single[name].append((bool(factors), verdict))
    independent = len(pairs) // 5
    return {
        "stereo_focals_5_views": {
            "focal_1percent": rate(found["stereo"], independent),
            "false_alarm": rate(found["stereo_calm"], independent, "rate"),
        },
        "intrinsics_5_views": {
            "focal_1percent": rate(found["single"], 2 * independent),
            "false_alarm": rate(found["single_calm"], 2 * independent, "rate"),
            **{name: told_rows(verdicts, independent) for name, verdicts in single.items()},
        },
    }


def told_rows(verdicts: Sequence[tuple[bool, Verdict]], independent: int) -> dict[str, Any]:
    """Return how many of the views tell 1 %, what those find, and what the others call ok although it is wrong.

    Args:
        verdicts: Whether the focal length was made wrong, and what was said.
    """
    tell = [is_told(verdict) for _, verdict in verdicts]
    found = [is_alarm(v) for (is_wrong, v), told in zip(verdicts, tell, strict=True) if told and is_wrong]
    calm = [is_alarm(v) for (is_wrong, v), told in zip(verdicts, tell, strict=True) if told and not is_wrong]
    missed = [
        v.status is Status.OK
        for (is_wrong, v), told in zip(verdicts, tell, strict=True)
        if not told and is_wrong
    ]
    rows = {"told": rate(tell, independent)}
    for name, values, key in (
        ("focal_1percent_where_told", found, "tpr"),
        ("false_alarm_where_told", calm, "rate"),
        ("wrongly_ok_where_not_told", missed, "rate"),
    ):
        rows |= {name: rate(values, independent, key)} if values else {}
    return rows


def is_told(verdict: Verdict) -> bool:
    (least,) = (quantity for quantity in verdict.quantities if quantity.name == "least_error_told")
    return least.value <= 1.0


def guided_focals(runs: int = 40) -> dict[str, Any]:
    """A camera alone before a board that is held as the guide asks, until the views tell 1 % (six or more).

    Synthetic corners: a random lens of 640x480, a board of 9x6 squares, 0.1 px of noise a corner and as much again
    that a view's corners share; the calibration is solved from 14 other views.
    """
    verdicts, counts = [], []
    for run in range(runs):
        rng = np.random.default_rng([run, 21])
        truth = _random_lens(rng)
        known = solve_intrinsics([_shown(rng, truth) for _ in range(14)], SHOWN, (640, 480), is_judged=False)
        views = [_shown(rng, truth) for _ in range(6)]
        while not _tells(views, known.camera) and len(views) < 30:
            views.append(_shown(rng, truth))
        counts.append(len(views))
        for factor in (1.0, 0.99, 1.01):
            camera = replace(known.camera, fx=known.camera.fx * factor, fy=known.camera.fy * factor)
            verdicts.append((factor != 1.0, check_intrinsics(views, SHOWN, camera, "camera")))
    return {**told_rows(verdicts, runs), "views_median_max": [float(np.median(counts)), max(counts)]}


SHOWN = Chessboard(9, 6, 0.05)


def _tells(views: Sequence[View], camera: Intrinsics) -> bool:
    return is_focal_told(float(refit_focals([views], SHOWN, [camera], [np.eye(4)]).sigmas[0]))


def _random_lens(rng: np.random.Generator) -> Intrinsics:
    focal = float(rng.uniform(380, 560))
    bend = (float(rng.uniform(-0.15, 0.05)), float(rng.uniform(0.0, 0.04)), *rng.normal(0, 5e-4, 2).tolist())
    cx, cy = rng.normal((319.5, 239.5), 5).tolist()
    return Intrinsics("radtan", 640, 480, focal, focal, cx, cy, bend)


def _shown(rng: np.random.Generator, camera: Intrinsics) -> View:
    """Return a view of the board, whole in the image and tilted by up to 45 degrees."""
    points = SHOWN.points_m - SHOWN.points_m.mean(axis=0)
    while True:
        distance_m = rng.uniform(0.45, 1.0)
        R = geometry.rotation_exp(np.append(rng.uniform(-0.8, 0.8, 2), rng.uniform(-0.3, 0.3)))
        place = distance_m * np.array([rng.uniform(-0.4, 0.4), rng.uniform(-0.3, 0.3), 1.0])
        pixels = geometry.project(points @ R.T + place, camera)
        if np.isfinite(pixels).all() and geometry.in_image(pixels, camera, 8.0).all():
            break
    noise = rng.normal(0, 0.1, pixels.shape) + rng.normal(0, 0.1, 2)
    return View(np.arange(len(points)), pixels + noise)
