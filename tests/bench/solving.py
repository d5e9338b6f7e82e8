"""How well solving with a board finds the truth, and whether its stated deviations hold.

    python tests/bench/solving.py [--runs N] [--only PART ...] [--json]

``simulated``: the simulated rig before its board with a random lens, at 14 of its 24 stops, 64 and 16 rings. Errors are
against the simulator's truth; ``within_2_sigma`` counts single numbers, 0.954 is right. ``real``: OpenCV's 13 stereo
pairs, random halves against each other; ACFR's 40 poses (VLP-16), random sets against the fit of all 40. Baselines are
those of the specification, section 1.14.
"""

import argparse
import json
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "tests"))

from simulated_rig import device  # noqa: E402

from sensorium.agent.calibrating.solving.boards import Boards  # noqa: E402
from sensorium.agent.calibrating.solving.camera_lidar import lidar_views, pose_table  # noqa: E402
from sensorium.agent.calibrating.solving.cameras import both_views  # noqa: E402
from sensorium.agent.calibrating.solving.material import Moment, Shown  # noqa: E402
from sensorium.calibration.board_fit import (  # noqa: E402
    PairFit,
    solve_camera_lidar,
    solve_intrinsics,
    solve_stereo,
)
from sensorium.calibration.bundle import vector_of  # noqa: E402
from sensorium.calibration.geometry import Array, Intrinsics, apply, difference, inverse  # noqa: E402
from sensorium.calibration.targets import Chessboard, View  # noqa: E402
from sensorium.drivers.payloads.ouster import scan_points  # noqa: E402
from sensorium.simulators.lidar import SimulatedLidar  # noqa: E402
from sensorium.simulators.render import Renderer  # noqa: E402
from sensorium.simulators.rig import MOUNTS  # noqa: E402
from sensorium.simulators.world import BOARD_SQUARE_M, World  # noqa: E402

DATA = REPOSITORY.parent / "shared/data/calibration"
STOP_S, STOPS, SHOWN = 1.75, 24, 14


def simulated(runs: int) -> dict[str, Any]:
    found: dict[str, list[Array]] = {}
    for run in range(runs):
        for name, (error, sigma) in _simulated_run(run).items():
            found.setdefault(name, []).append(np.stack([error, sigma]))
    return {name: _summary(np.array(values)) for name, values in found.items()}


def _summary(values: Array) -> dict[str, Any]:
    """Return errors (median and largest of the runs) and how many single numbers lie within two deviations."""
    errors, sigmas = values[:, 0], values[:, 1]
    ratios = np.abs(errors / sigmas)
    size = np.abs(errors).max(axis=1)
    inside = float(np.mean(ratios < 2))
    return {
        "median": float(np.median(size)),
        "max": float(size.max()),
        "stated_sigma": float(np.median(sigmas.max(axis=1))),
        "within_2_sigma": round(inside, 3),
        "worst_in_sigmas": round(float(ratios.max()), 1),
        "runs": len(values),
        "numbers": int(ratios.size),
    }


def _simulated_run(run: int) -> dict[str, tuple[Array, Array]]:
    rng = np.random.default_rng([run, 11])
    focal = float(rng.uniform(380, 460))
    bend = (float(rng.uniform(-0.15, 0.05)), float(rng.uniform(0.0, 0.04)), *rng.normal(0, 5e-4, 2).tolist())
    cx, cy = rng.normal((319.5, 239.5), 5).tolist()
    truth = Intrinsics("radtan", 640, 480, focal, focal, cx, cy, bend)
    world = World(run + 1, "board")
    stops = np.sort(rng.permutation(STOPS)[:SHOWN])
    board = Chessboard(9, 6, BOARD_SQUARE_M, (1.5, 1.14))
    result: dict[str, tuple[Array, Array]] = {}
    for rings in (64, 16):
        boards = Boards(board)
        cameras = ("camera_left", "camera_right")
        renderers = {
            name: Renderer(world.scene, truth, np.random.default_rng([run, k]))
            for k, name in enumerate(cameras)
        }
        with tempfile.TemporaryDirectory() as folder:
            lidar = device("lidar", Path(folder), seed=run + 1, motion="board", rings=rings, columns=1024)
            assert isinstance(lidar, SimulatedLidar)
            lidar.open()
            for stop in stops:
                at_s = stop * STOP_S + 0.45
                T = world.pose(at_s)
                images = {name: Shown(renderers[name].image(T @ MOUNTS[name], at_s)) for name in cameras}
                scan, _ = lidar.scan(round(at_s * 10))
                points = scan_points(scan, lidar.metadata)
                boards.add(Moment(str(stop), images, {"lidar": partial(np.asarray, points)}))
            lidar.close()
        _judge(result, boards, truth, rings)
    return result


def _judge(result: dict[str, tuple[Array, Array]], boards: Boards, truth: Intrinsics, rings: int) -> None:
    lenses = {
        name: solve_intrinsics(boards.views(name), boards.board, (640, 480), is_judged=False)
        for name in ("camera_left", "camera_right")
    }
    left, right = lenses.values()
    if rings == 64:
        for name, lens in lenses.items():
            gap, sigma = vector_of(lens.camera) - vector_of(truth), np.sqrt(np.diag(lens.covariance))
            result[f"{name} focal length, %"] = (100 * gap[:2] / truth.fx, 100 * sigma[:2] / truth.fx)
            result[f"{name} principal point, px"] = (gap[2:4], sigma[2:4])
        views = both_views(boards.common("camera_left", "camera_right"), "camera_left", "camera_right")
        pair = solve_stereo(
            [a for a, _ in views],
            [b for _, b in views],
            boards.board,
            left.camera,
            right.camera,
            (left.covariance, right.covariance),
        )
        _add_pair(result, "stereo", pair, inverse(MOUNTS["camera_left"]) @ MOUNTS["camera_right"])
    moments = boards.common("camera_left", "lidar")
    # Where a drawing has it: some degrees and centimetres off.
    rough = inverse(MOUNTS["camera_left"]) @ MOUNTS["lidar"]
    rough[:3, 3] += (0.03, -0.04, 0.02)
    seen, _, _, _ = lidar_views(boards.board, moments, "camera_left", "lidar", left.camera, rough)
    _add_pair(
        result,
        f"camera-LiDAR, {rings} rings",
        solve_camera_lidar(seen),
        inverse(MOUNTS["camera_left"]) @ MOUNTS["lidar"],
    )


def _add_pair(result: dict[str, tuple[Array, Array]], name: str, fit: PairFit, truth: Array) -> None:
    gap, sigma = difference(fit.T_first_second, truth), np.sqrt(np.diag(fit.covariance))
    result[f"{name} rotation, deg"] = (np.rad2deg(gap[:3]), np.rad2deg(sigma[:3]))
    result[f"{name} translation, mm"] = (1000 * gap[3:], 1000 * sigma[3:])


def real(draws: int) -> dict[str, Any]:
    return {"opencv_stereo_chess": _halves(draws), "acfr_board": _repeated(draws)}


def _halves(draws: int) -> dict[str, Any]:
    board, folder = Chessboard(9, 6, 0.025), DATA / "opencv_stereo_chess"
    views: dict[str, list[View]] = {"left": [], "right": []}
    for path in sorted(folder.glob("left[0-9]*.jpg")):
        for side, part in views.items():
            image: Any = cv2.imread(str(folder / path.name.replace("left", side)), cv2.IMREAD_GRAYSCALE)
            view = board.find(image)
            assert view is not None
            part.append(view)
    rng, turns, shifts, focal, ratios = np.random.default_rng(1), [], [], [], []
    for _ in range(draws):
        order = rng.permutation(13)
        found = []
        for half in (order[:6], order[6:]):
            lenses = [
                solve_intrinsics([views[s][k] for k in half], board, (640, 480), is_judged=False)
                for s in views
            ]
            covariances = (lenses[0].covariance, lenses[1].covariance)
            first, second = ([views[side][k] for k in half] for side in views)
            pair = solve_stereo(first, second, board, lenses[0].camera, lenses[1].camera, covariances)
            found.append((pair, lenses[0].camera.f_px))
        gap = difference(found[0][0].T_first_second, found[1][0].T_first_second)
        sigma = np.sqrt(np.diag(found[0][0].covariance + found[1][0].covariance))
        turns.append(np.rad2deg(np.linalg.norm(gap[:3])))
        shifts.append(1000 * np.linalg.norm(gap[3:]))
        focal.append(100 * abs(found[0][1] / found[1][1] - 1))
        ratios.append(np.abs(gap) / sigma)
    return {
        "rotation_deg_median": float(np.median(turns)),
        "translation_mm_median": float(np.median(shifts)),
        "focal_percent_median": float(np.median(focal)),
        "within_2_sigma": round(float(np.mean(np.array(ratios) < 2)), 3),
        "draws": draws,
        "views": "6 against the other 7",
    }


def _repeated(draws: int) -> dict[str, Any]:
    boards = pose_table(DATA / "acfr_board")
    assert boards is not None
    rng = np.random.default_rng(2)
    every = solve_camera_lidar(boards).T_first_second
    middle = np.mean([board.lidar_centre for board in boards], axis=0)[None]
    baselines = {3: (0.45, 0.5), 5: (None, None), 12: (0.17, 0.2)}
    result = {}
    for count, (turn_deg, shift_cm) in baselines.items():
        turns, shifts, ratios = [], [], []
        for _ in range(draws):
            fit = solve_camera_lidar([boards[k] for k in rng.permutation(len(boards))[:count]])
            gap = difference(fit.T_first_second, every)
            turns.append(np.rad2deg(np.linalg.norm(gap[:3])))
            shifts.append(100 * np.linalg.norm(apply(fit.T_first_second, middle) - apply(every, middle)))
            ratios.append(np.abs(gap) / np.sqrt(np.diag(fit.covariance)))
        result[f"{count}_boards"] = {
            "rotation_deg_median": float(np.median(turns)),
            "translation_cm_median": float(np.median(shifts)),
            "baseline": [turn_deg, shift_cm],
            "within_2_sigma": round(float(np.mean(np.array(ratios) < 2)), 3),
            "draws": draws,
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=8, help="of the simulated rig")
    parser.add_argument("--only", nargs="*", choices=("simulated", "real"), default=("simulated", "real"))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    found: dict[str, Any] = {}
    if "simulated" in options.only:
        found["simulated"] = simulated(options.runs)
    if "real" in options.only:
        found["real"] = real(40)
    if options.json:
        print(json.dumps(found, indent=1))
        return
    for part, rows in found.items():
        print(part)
        for name, row in rows.items():
            nested = row if all(isinstance(value, dict) for value in row.values()) else {"": row}
            for kind, numbers in nested.items():
                told = [
                    f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}"
                    for key, value in numbers.items()
                ]
                print(f"  {name} {kind}: {', '.join(told)}")


if __name__ == "__main__":
    main()
