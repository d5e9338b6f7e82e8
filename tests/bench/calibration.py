"""How well the calibration checks find what was injected, on real recordings.

    python tests/bench/calibration.py [--kitti FOLDER] [--only PART ...] [--json]

A calibration is made wrong by the stated amount about a random axis or along a random direction; the recordings
are untouched. Thresholds are the package's constants; they were fixed on ../shared/data/calibration/kitti_raw_seq
and from the numbers of the specification. The kind of statistic was chosen with kitti_object in view, so its nine
frames are partly in-sample; frames given with --kitti are not.

``n`` counts trials; trials that share frames are not independent, so ``ci95`` (Wilson) is computed for
``n_independent``, the number of disjoint windows (or views) that the frames give.
"""

import argparse
import json
import math
import multiprocessing
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from sensorium.agent.calibrating.checking.run import run_checks
from sensorium.agent.calibrating.recording import CameraLidarSet, PreparedMaterial, Recording, StereoSet
from sensorium.agent.calibrating.shots import Shot
from sensorium.calibration import geometry
from sensorium.calibration.board import (
    BoardView,
    check_camera_lidar_board,
    check_intrinsics,
    check_stereo_board,
    check_stereo_focals,
)
from sensorium.calibration.board_fit import solve_camera_lidar, solve_intrinsics, solve_stereo
from sensorium.calibration.camera_lidar import (
    DEGREES,
    THRESHOLD,
    camera_lidar_reference,
    check_camera_lidar,
    screening,
)
from sensorium.calibration.camera_rotation import camera_turns
from sensorium.calibration.edges import Edge
from sensorium.calibration.euroc import read_euroc
from sensorium.calibration.force_torque import check_force_torque
from sensorium.calibration.formats.detect import ImportResult
from sensorium.calibration.formats.kitti import read_kitti
from sensorium.calibration.inertial import Inertial, check_ground_gravity, check_imu_static
from sensorium.calibration.keyframes import Keyframe, distinct_scenes, keyframe
from sensorium.calibration.lidar_lidar import check_lidar_lidar, register_sweeps
from sensorium.calibration.microphones import SOUND_M_S, check_claps
from sensorium.calibration.rig_document import RigCalibration
from sensorium.calibration.rotation import Turns, check_imu_rotation
from sensorium.calibration.sensor_models import ImuModel, MicrophoneArray, Payload
from sensorium.calibration.stereo import (
    Matches,
    StereoTolerance,
    check_matches,
    match_pair,
    stereo_reference,
)
from sensorium.calibration.sweep import Edges, Sweep
from sensorium.calibration.targets import Chessboard, View
from sensorium.drivers.payloads.ouster import beam_rays
from sensorium.simulators.demo_rig import rig_calibration
from sensorium.simulators.emulators.ouster_encoder import default_metadata
from sensorium.simulators.imu import InertialNoise, SimulatedImuConfig, inertial_truth
from sensorium.simulators.render import Renderer
from sensorium.simulators.world import World
from sensorium.verdict import Status, Verdict

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
LEVELS = {
    "0.25deg": (0.25, 0.0),
    "0.5deg": (0.5, 0.0),
    "1deg": (1.0, 0.0),
    "2cm": (0.0, 0.02),
    "5cm": (0.0, 0.05),
    "10cm": (0.0, 0.10),
    "20cm": (0.0, 0.20),
}
# What the best known method reached in the specification's own runs (3 keyframes unless said otherwise).
BASELINE = {
    "0.25deg": 0.72,
    "0.5deg": 1.0,
    "1deg": 1.0,
    "2cm": 0.16,
    "5cm": 0.72,
    "10cm": 0.97,
    "20cm": 1.0,
    "false_alarm": 0.03,
}
GOALS = {"0.5deg": 0.95, "1deg": 0.99, "10cm": 0.90, "20cm": 0.99}
ALARM = (Status.SUSPECT, Status.FAILED)


def rate(hits: Sequence[bool], independent: int, key: str = "tpr") -> dict[str, Any]:
    """Return a rate with the number of trials and the Wilson interval for the independent ones."""
    p = float(np.mean(hits)) if hits else float("nan")
    n, z = max(independent, 1), 1.96
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * float(np.sqrt(max(p * (1 - p), 0.0) / n + z * z / (4 * n * n)))
    interval = [round(max(centre - half, 0.0), 3), round(min(centre + half, 1.0), 3)]
    found = {key: round(p, 4), "n": len(hits), "n_independent": independent, "ci95": interval}
    if key == "rate" and hits:  # false alarms: what they are at most
        found["at_most"] = round(at_most(sum(hits), len(hits)), 4)
    return found


def at_most(hits: int, count: int, confidence: float = 0.95) -> float:
    """Return the upper bound of Clopper and Pearson (1934) on a rate, as if the trials shared no frame."""
    low, high = hits / count, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        chance = sum(math.comb(count, k) * middle**k * (1 - middle) ** (count - k) for k in range(hits + 1))
        low, high = (middle, high) if chance > 1 - confidence else (low, middle)
    return high


def is_alarm(verdict: Verdict) -> bool:
    return verdict.status in ALARM


def random_motion(rng: np.random.Generator, degrees: float, metres: float) -> geometry.Array:
    """Return a motion of this size about a random axis or along a random direction."""
    direction = rng.normal(size=3)
    direction /= np.linalg.norm(direction)
    return np.concatenate([np.deg2rad(degrees) * direction, metres * direction])


def kitti_keyframes(folder: Path, every_ring: int = 1) -> list[Keyframe]:
    """Return keyframes of a folder laid out as kitti_object or kitti_raw_seq, edges in camera axes.

    Every second or fourth ring makes it a LiDAR of 32 or 16 rings (over the field of view of 64).

    Each KITTI frame has its own day's calibration; with the edges already in the camera's axes all frames share
    one calibration, the identity, into which errors can be injected.
    """
    found = []
    for image, points, camera, T in kitti_frames(folder):
        sweep = Sweep.from_points(points)
        kept = sweep.ring % every_ring == 0
        rows = np.column_stack([sweep.xyz, sweep.intensity])[kept]
        found.append(_in_camera_axes(keyframe(image, rows, camera, T, sweep.ring[kept]), T))
    return found


def kitti_frames(folder: Path) -> Iterator[tuple[Any, Any, Any, geometry.Array]]:
    """Yield image, points, intrinsics and T_camera_lidar of each frame."""
    for image_path in sorted((folder / "image_2").glob("*.png")):
        points_path = folder / "velodyne" / f"{image_path.stem}.bin"
        own = folder / "calib" / f"{image_path.stem}.txt"
        image = _grey(image_path)
        calibration = read_kitti(own if own.exists() else folder, (image.shape[1], image.shape[0]))
        camera = replace(calibration.camera("camera_2"), width=image.shape[1], height=image.shape[0])
        points = np.fromfile(points_path, np.float32).reshape(-1, 4)
        yield image, points, camera, calibration.transform("camera_2", "velodyne")


def _in_camera_axes(frame: Keyframe, T_camera_lidar: geometry.Array) -> Keyframe:
    return replace(
        frame,
        edges=tuple(Edges(geometry.apply(T_camera_lidar, edges.xyz), edges.weight) for edges in frame.edges),
    )


def rig(motion: geometry.Array | None = None) -> RigCalibration:
    """Return the shared calibration of :func:`kitti_keyframes`, made wrong by a motion."""
    T = np.eye(4) if motion is None else geometry.small_motion(motion)
    return RigCalibration(edges=(Edge("camera", "lidar", T),))


def windows(
    frames: Sequence[Keyframe], size: int, trials: int, rng: np.random.Generator
) -> list[list[Keyframe]]:
    """Return windows of keyframes: shuffles of all frames cut into disjoint windows, until enough.

    As in the agent, a keyframe that shows the same scene as an earlier one of its window is not taken.
    """
    found: list[list[Keyframe]] = []
    for _ in range(100 * trials):
        order = rng.permutation(len(frames))
        for k in range(0, len(frames) - size + 1, size):
            window = [frames[index] for index in order[k : k + size]]
            if distinct_scenes(window) == size:
                found.append(window)
        if len(found) >= trials:
            break
    return found[:trials]


def injection(name: str, rng: np.random.Generator) -> geometry.Array:
    """Return a motion of a level, or of one degree: ``yaw_1deg``, ``x_20cm``, with a random sign."""
    if name in LEVELS:
        return random_motion(rng, *LEVELS[name])
    degree, level = name.split("_")
    degrees, metres = LEVELS[level]
    size = np.deg2rad(degrees) + metres
    return np.asarray(rng.choice((-1, 1)) * size * np.eye(6)[DEGREES.index(degree)], np.float64)


def camera_lidar(folder: Path, trials: int = 60, workers: int = 2) -> dict[str, Any]:
    """Detection and false alarms of the targetless camera-LiDAR check."""
    started = time.perf_counter()
    frames = kitti_keyframes(folder)
    prepare_s = (time.perf_counter() - started) / max(len(frames), 1)
    trials = max(trials, len(frames))
    few = max(trials // 3, 1)
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "": lambda: _sweep_levels(frames, 3, trials),
        "five_keyframes": lambda: _sweep_levels(frames, 5, few),
        "one_keyframe_screening": lambda: _screening(frames),
        "with_reference": lambda: _with_reference(frames, 10, few),
        "three_keyframes_with_reference": lambda: _with_reference(frames, 3, few),
    }
    names = ("yaw_0.5deg", "yaw_1deg", "x_10cm", "x_20cm")
    for rings, every in ((32, 2), (16, 4)):
        parts[f"{rings}_rings"] = lambda every=every: _sweep_levels(  # type: ignore[misc]
            kitti_keyframes(folder, every), min(10, max(len(frames) // 2, 3)), few, names
        )
    found = in_parallel(parts, workers)
    return {
        "frames": len(frames),
        "prepare_s_per_keyframe": round(prepare_s, 3),
        **found.pop(""),
        **found,
    }


def in_parallel(parts: dict[str, Callable[[], dict[str, Any]]], workers: int) -> dict[str, dict[str, Any]]:
    """Run parts in forked processes, which share what is already loaded, and say on stderr what is done."""
    global _parts
    _parts = parts
    started = time.perf_counter()
    if workers < 2:
        return dict(_told(map(_run_part, parts), len(parts), started))
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        found = dict(_told(pool.imap_unordered(_run_part, parts), len(parts), started))
    return {name: found[name] for name in parts}


def _told(
    done: Iterable[tuple[str, dict[str, Any]]], count: int, started: float
) -> Iterator[tuple[str, dict[str, Any]]]:
    for index, (name, result) in enumerate(done):
        spent = f"{index + 1} of {count} parts, {time.perf_counter() - started:.0f} s"
        print(f"  {spent}: {name or 'three_keyframes'}", file=sys.stderr, flush=True)
        yield name, result


_parts: dict[str, Callable[[], dict[str, Any]]] = {}


def _run_part(name: str) -> tuple[str, dict[str, Any]]:
    cv2.setNumThreads(1)
    return name, _parts[name]()


def _sweep_levels(
    frames: list[Keyframe], size: int, trials: int, names: Sequence[str] = tuple(LEVELS)
) -> dict[str, Any]:
    rng = np.random.default_rng(20261121)
    chosen = windows(frames, size, trials, rng)
    independent = len(frames) // size
    started = time.process_time()
    calm = [check_camera_lidar(window, rig(), "camera", "lidar") for window in chosen]
    seconds = (time.process_time() - started) / len(chosen)
    result: dict[str, Any] = {"keyframes": size}
    for name in names:
        hits = [
            is_alarm(check_camera_lidar(window, rig(injection(name, rng)), "camera", "lidar").verdict)
            for window in chosen
        ]
        result[name] = rate(hits, independent)
    stretched = [
        check_camera_lidar(zoomed(window, factor), rig(), "camera", "lidar").verdict
        for window in chosen
        for factor in (0.99, 1.01)
    ]
    result["focal_1percent"] = rate([is_alarm(verdict) for verdict in stretched], independent)
    result["false_alarm"] = rate([is_alarm(check.verdict) for check in calm], independent, "rate")
    insufficient = sum(check.verdict.status is Status.INSUFFICIENT for check in calm)
    readings = np.array([check.motion for check in calm]) * ([180 / np.pi] * 3 + [100.0] * 3)
    distances = [check.distance for check in calm]
    result["null"] = {
        "insufficient": insufficient,
        "median_deg_cm": np.round(np.median(readings, axis=0), 3).tolist(),
        "sd_deg_cm": np.round(readings.std(axis=0), 3).tolist(),
        "misalignment_p50_p95_max": np.round(np.quantile(distances, (0.5, 0.95, 1.0)), 2).tolist(),
    }
    result["cpu_seconds_per_window"] = round(seconds, 3)
    return result


def zoomed(frames: Sequence[Keyframe], factor: float) -> list[Keyframe]:
    """Return keyframes whose calibration has the focal length wrong by a factor."""
    return [
        replace(frame, camera=replace(frame.camera, fx=frame.camera.fx * factor, fy=frame.camera.fy * factor))
        for frame in frames
    ]


def _screening(frames: list[Keyframe]) -> dict[str, Any]:
    """What a single frame says; the check itself never judges one frame by more than a hint."""
    rng = np.random.default_rng(7)
    calm = [screening(frame, np.eye(4)) > THRESHOLD for frame in frames]
    result: dict[str, Any] = {
        "threshold": THRESHOLD,
        "false_alarm": rate(calm, len(frames), "rate"),
    }
    for name in ("0.25deg", "0.5deg", "1deg", "5cm", "10cm", "20cm"):
        hits = [
            screening(frame, geometry.small_motion(injection(name, rng))) > THRESHOLD
            for frame in frames
            for _ in range(max(60 // len(frames), 1))
        ]
        result[name] = rate(hits, len(frames))
    return result


def _with_reference(frames: list[Keyframe], size: int, trials: int) -> dict[str, Any]:
    """Ten frames (or as many as there are) give the reference, windows of the others are judged against it."""
    size = min(size, len(frames) // 2)
    known_count = min(10, len(frames) - size)
    rng = np.random.default_rng(11)
    calm: list[bool] = []
    hits: dict[str, list[bool]] = {name: [] for name in LEVELS}
    while len(calm) < trials:
        order = rng.permutation(len(frames))
        reference = camera_lidar_reference(
            [frames[index] for index in order[:known_count]], rig(), "camera", "lidar"
        )
        for start in range(known_count, len(frames) - size + 1, size)[:3]:
            seen = [frames[index] for index in order[start : start + size]]
            calm.append(is_alarm(check_camera_lidar(seen, rig(), "camera", "lidar", reference).verdict))
            for name in LEVELS:
                # The rig moved after the reference was taken; the calibration in force stayed.
                moved = _moved(seen, injection(name, rng))
                verdict = check_camera_lidar(moved, rig(), "camera", "lidar", reference).verdict
                hits[name].append(is_alarm(verdict))
    independent = max((len(frames) - known_count) // size, 1)
    result: dict[str, Any] = {"keyframes": size, "reference_keyframes": known_count}
    result["false_alarm"] = rate(calm, independent, "rate")
    result |= {name: rate(found, independent) for name, found in hits.items()}
    return result


def _moved(frames: list[Keyframe], motion: geometry.Array) -> list[Keyframe]:
    T = geometry.small_motion(motion)
    return [_in_camera_axes(frame, T) for frame in frames]


def stereo_epipolar(_: Path) -> dict[str, Any]:
    """Drift of a stereo camera against a reference from other pairs of the same recording."""
    result = {}
    for name, (pairs, calibration, tolerance) in stereo_recordings().items():
        half = len(pairs) // 2
        halves = (pairs[:half], pairs[half:])
        part: dict[str, Any] = {"pairs": len(pairs)}
        for size in (1, 3):
            part[f"{size}_pair"] = _stereo_levels(halves, size, calibration, tolerance, "euroc" in name)
        result[name] = part
    return result


def _stereo_levels(
    halves: tuple[list[Matches], list[Matches]],
    size: int,
    calibration: RigCalibration,
    tolerance: StereoTolerance,
    is_narrow: bool,
) -> dict[str, Any]:
    levels = {"pitch": 0.2 if is_narrow else 0.1, "roll": 0.05, "yaw": 0.2}
    calm: list[bool] = []
    hits: dict[str, list[bool]] = {f"{name}_{level}deg": [] for name, level in levels.items()}
    hits["focal_1percent"] = []
    rng = np.random.default_rng(6)
    independent = 0
    for known, seen in (halves, halves[::-1]):
        good = [check_matches([pair], calibration, "left", "right", tolerance=tolerance) for pair in known]
        reference = stereo_reference(good, calibration, "left", "right")
        independent += len(seen) // size
        drawn = [rng.choice(len(seen), size, replace=False) for _ in range(20)]
        for chosen in range(len(seen)) if size == 1 else drawn:
            window = [seen[k] for k in np.atleast_1d(chosen)]
            check = check_matches(window, calibration, "left", "right", reference, tolerance)
            calm.append(is_alarm(check.verdict))
            for name, level in levels.items():
                for sign in (-1, 1):
                    motion = np.zeros(6)
                    motion[("pitch", "yaw", "roll").index(name)] = sign * np.deg2rad(level)
                    T = calibration.transform("left", "right") @ geometry.small_motion(motion)
                    wrong = RigCalibration(cameras=calibration.cameras, edges=(Edge("left", "right", T),))
                    moved = check_matches(window, wrong, "left", "right", reference, tolerance)
                    hits[f"{name}_{level}deg"].append(is_alarm(moved.verdict))
            for side in ("left", "right"):
                for factor in (0.99, 1.01):
                    wrong = with_focal(calibration, {side: factor})
                    stretched = check_matches(window, wrong, "left", "right", reference, tolerance)
                    hits["focal_1percent"].append(is_alarm(stretched.verdict))
    found = {name: rate(values, independent) for name, values in hits.items()}
    return {**found, "false_alarm": rate(calm, independent, "rate")}


def with_focal(calibration: RigCalibration, factors: dict[str, float]) -> RigCalibration:
    """Return the calibration with the focal lengths of some cameras multiplied."""
    cameras = dict(calibration.cameras)
    for name, factor in factors.items():
        cameras[name] = replace(cameras[name], fx=cameras[name].fx * factor, fy=cameras[name].fy * factor)
    return RigCalibration(cameras=cameras, edges=calibration.edges)


def stereo_recordings() -> dict[str, tuple[list[Matches], RigCalibration, StereoTolerance]]:
    """Return matched pairs, calibration and tolerance of each stereo recording."""
    found = {}
    for number in (1, 2):
        folder = DATA / "calibration" / "kitti_odom_stereo" / f"sequence_{number}"
        left, right = (_images(folder / side) for side in ("image_l", "image_r"))
        size = (left[0].shape[1], left[0].shape[0])
        known = read_kitti(folder / "calib.txt", size)
        calibration = RigCalibration(
            cameras={"left": known.camera("camera_0"), "right": known.camera("camera_1")},
            edges=(Edge("left", "right", known.transform("camera_0", "camera_1")),),
        )
        pairs = [match_pair(*pair) for pair in zip(left, right, strict=True)]
        found[f"kitti_{number}"] = (pairs, calibration, StereoTolerance())
    folder = DATA / "euroc_micro"
    known = read_euroc(folder)
    calibration = RigCalibration(
        cameras={"left": known.camera("cam0"), "right": known.camera("cam1")},
        edges=(Edge("left", "right", known.transform("cam0", "cam1")),),
    )
    names = [
        {path.name for path in (folder / "mav0" / name / "data").glob("*.png")} for name in ("cam0", "cam1")
    ]
    pairs = [
        match_pair(*(_grey(folder / "mav0" / camera / "data" / name) for camera in ("cam0", "cam1")))
        for name in sorted(names[0] & names[1])
    ]
    found["euroc"] = (pairs, calibration, StereoTolerance.for_baseline(0.11))
    return found


def _images(folder: Path) -> list[Any]:
    return [_grey(path) for path in sorted(folder.glob("*"))]


def _grey(path: Path) -> Any:
    return cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)


def board(_: Path) -> dict[str, Any]:
    """Checks with a chessboard: ACFR camera-LiDAR poses, OpenCV's stereo pairs."""
    return {"camera_lidar": acfr_board(), **opencv_boards()}


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
        both = [chess.find(_grey(folder / path.name.replace("left", side))) for side in ("left", "right")]
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
    """Five views judged under a calibration from the other eight, with focal lengths made wrong by 1 %."""
    wrong = [{"left": factor} for factor in (0.99, 1.01)]
    wrong += [{"right": factor} for factor in (0.99, 1.01)]
    wrong += [{"left": factor, "right": factor} for factor in (0.99, 1.01)]
    rng = np.random.default_rng(4)
    found: dict[str, list[bool]] = {name: [] for name in ("stereo", "stereo_calm", "single", "single_calm")}
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
                    single = check_intrinsics(views, chess, rig_now.camera(name), name)
                    found["single" if factors else "single_calm"].append(is_alarm(single))
    independent = len(pairs) // 5
    return {
        "stereo_focals_5_views": {
            "focal_1percent": rate(found["stereo"], independent),
            "false_alarm": rate(found["stereo_calm"], independent, "rate"),
        },
        "intrinsics_5_views": {
            "focal_1percent": rate(found["single"], 2 * independent),
            "false_alarm": rate(found["single_calm"], 2 * independent, "rate"),
        },
    }


class SimulatedRoom:
    """The simulated rig frozen at instants of its motion: what a de-skewed recording of it holds."""

    def __init__(self, seed: int) -> None:
        self.rig = rig_calibration(seed)
        self.world = World(seed)
        self.rng = np.random.default_rng(seed)
        self._renderers = {
            name: Renderer(self.world.scene, camera, self.rng) for name, camera in self.rig.cameras.items()
        }

    def image(self, name: str, world_s: float, moved: geometry.Array | None = None) -> Any:
        """Return a camera's picture; ``moved`` is where the camera is in its own former axes."""
        return self._renderers[name].image(self.pose(name, world_s, moved), world_s)

    def sweep(
        self, world_s: float, moved: geometry.Array | None = None, rings: int = 64, columns: int = 1024
    ) -> tuple[Any, Any]:
        """Return points (N, 4) and rings of the LiDAR."""
        directions, offsets = (
            part.reshape(-1, 3) for part in beam_rays(default_metadata(rings, columns, 10.0))
        )
        T = self.pose("lidar", world_s, moved)
        R = T[:3, :3].astype(np.float32)
        origins = (offsets @ R.T + T[:3, 3]).astype(np.float32)
        hits = self.world.scene.cast(origins, (directions @ R.T).astype(np.float32))
        range_m = hits.range_m + self.rng.normal(0, 0.008, len(directions))
        reflectivity = hits.reflectivity + self.rng.normal(0, 2.0, len(directions))
        points = np.column_stack([offsets + directions * range_m[:, None], reflectivity])
        return points, np.repeat(np.arange(rings), columns)

    def pose(self, name: str, world_s: float, moved: geometry.Array | None = None) -> geometry.Array:
        T = self.world.pose(world_s) @ self.rig.transform("body", name)
        return T if moved is None else T @ moved


def simulated(_: Path) -> dict[str, Any]:
    """Checks for which no recording with truth exists: on the simulated room and synthetic noise."""
    return {
        "lidar_lidar": _simulated_lidars(60),
        "ground_gravity": _simulated_ground(60),
        "imu_static_60s": _simulated_rest(100),
        "imu_camera_20s": _simulated_rotation(12),
        "force_torque_6_poses": _simulated_poses(200),
        "microphones_5_claps": _simulated_claps(60),
    }


def _simulated_lidars(trials: int) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    T_first_second = geometry.small_motion((0.1, -0.3, 0.8, -0.2, 0.15, -0.3))
    known = RigCalibration(edges=(Edge("first", "second", T_first_second),))
    found: dict[str, list[bool]] = {"0.5deg": [], "5cm": [], "false_alarm": []}
    rooms = [SimulatedRoom(seed) for seed in (1, 2)]
    for trial in range(trials):
        room, world_s = rooms[trial % 2], float(rng.uniform(0, 10))
        first = [room.sweep(world_s)[0] for _ in range(3)]
        for name, values in found.items():
            change = geometry.small_motion(random_motion(rng, *LEVELS.get(name, (0.0, 0.0))))
            second = [room.sweep(world_s, T_first_second @ change, 32, 512)[0] for _ in range(3)]
            seen = register_sweeps(first, second, T_first_second)
            values.append(is_alarm(check_lidar_lidar([seen], known, "first", "second")))
    calm = found.pop("false_alarm")
    return {
        **{name: rate(values, trials) for name, values in found.items()},
        "false_alarm": rate(calm, trials, "rate"),
    }


def _simulated_ground(trials: int) -> dict[str, Any]:
    rng = np.random.default_rng(2)
    hits: list[bool] = []
    calm: list[bool] = []
    unjudged = 0
    rooms = [SimulatedRoom(seed) for seed in (1, 2)]
    for trial in range(trials):
        room, world_s = rooms[trial % 2], float(rng.uniform(0, 10))
        up = room.pose("imu", world_s)[:3, :3].T @ np.array([0.0, 0.0, 9.81])
        acc = up + rng.normal(0, 0.02, (400, 3))
        heading = rng.uniform(0, 2 * np.pi)
        tilt = np.deg2rad(0.5) * np.array([np.cos(heading), np.sin(heading), 0, 0, 0, 0])
        for motion, values in ((np.zeros(6), calm), (tilt, hits)):
            sweeps = [room.sweep(world_s, geometry.small_motion(motion))[0] for _ in range(3)]
            verdict = check_ground_gravity(sweeps, acc, room.rig, "lidar", "imu")
            unjudged += verdict.status is Status.INSUFFICIENT
            if verdict.status is not Status.INSUFFICIENT:
                values.append(is_alarm(verdict))
    return {
        "tilt_0.5deg": rate(hits, len(hits)),
        "false_alarm": rate(calm, len(calm), "rate"),
        "insufficient": unjudged,
    }


def _simulated_rest(trials: int) -> dict[str, Any]:
    rng = np.random.default_rng(3)
    still = (0.0, 0.0, 0.0)
    model = ImuModel(still, still, 2e-4, 2e-3)
    time_s = np.arange(0, 60, 0.005)
    found: dict[str, list[bool]] = {
        "bias_0.3deg_s": [],
        "noise_x3": [],
        "gravity_0.1m_s2": [],
        "false_alarm": [],
    }
    for _ in range(trials):
        for name, values in found.items():
            loud = np.sqrt(200.0) * (3.0 if name == "noise_x3" else 1.0)
            rate_rad_s = rng.normal(0, 2e-4 * loud, (len(time_s), 3))
            acc = rng.normal(0, 2e-3 * loud, (len(time_s), 3)) + np.array([0, 0, 9.81])
            if name == "bias_0.3deg_s":
                rate_rad_s[:, rng.integers(3)] += np.deg2rad(0.3)
            if name == "gravity_0.1m_s2":
                acc[:, 2] += 0.1
            samples = Inertial(time_s, acc, rate_rad_s)
            values.append(is_alarm(check_imu_static(samples, "imu", model)))
    calm = found.pop("false_alarm")
    return {
        **{name: rate(values, trials) for name, values in found.items()},
        "false_alarm": rate(calm, trials, "rate"),
    }


def _simulated_poses(trials: int) -> dict[str, Any]:
    """Readings of six poses to all sides with the noise of spec 1.12: 0.05 N and 3 mN m."""
    rng = np.random.default_rng(4)
    known = Payload(
        0.5, np.array([1.0, -0.5, 2.0]), np.array([0.0, 0.01, 0.06]), np.array([0.02, 0.0, -0.01])
    )
    found: dict[str, list[bool]] = {"20g": [], "5mm": [], "0.2N": [], "false_alarm": []}
    for _ in range(trials):
        gravity = 9.81 * np.concatenate([np.eye(3), -np.eye(3)]) @ geometry.rotation_exp(rng.normal(0, 1, 3))
        axis = np.eye(3)[rng.integers(3)]
        for name, values in found.items():
            changed = {
                "20g": replace(known, mass_kg=known.mass_kg + 0.02),
                "5mm": replace(known, centre_m=known.centre_m + 0.005 * axis),
                "0.2N": replace(known, force_bias_n=known.force_bias_n + 0.2 * axis),
            }.get(name, known)
            force = changed.force_n(gravity) + rng.normal(0, 0.05, (6, 3))
            torque = changed.torque_nm(gravity) + rng.normal(0, 0.003, (6, 3))
            values.append(is_alarm(check_force_torque(force, torque, gravity, known, "force")))
    calm = found.pop("false_alarm")
    return {
        **{name: rate(values, trials) for name, values in found.items()},
        "false_alarm": rate(calm, trials, "rate"),
    }


def _simulated_claps(trials: int) -> dict[str, Any]:
    """Five bursts 1 to 4 m away, heard by two or four microphones whose document says from which side, or by six.

    Claps come from within 40 degrees of the stated side; 48 kHz, 30 dB over the noise. Two channels swapped, one
    inverted.
    """
    rng = np.random.default_rng(5)
    places = np.array(
        [[0, 0, 0], [0.2, 0, 0], [0.03, 0.12, 0], [0.25, 0.3, 0.05], [-0.1, 0.22, 0.1], [0.1, -0.15, 0.02]]
    )
    sides = np.array([[1.0, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0]])
    found: dict[str, list[bool]] = {}
    for count, is_marked in ((2, True), (4, True), (6, False)):
        known = MicrophoneArray(tuple((float(x), float(y), float(z)) for x, y, z in places[:count]))
        for _ in range(trials):
            # Two microphones hear a difference along their line only.
            stated = sides[rng.integers(0, 2 if count == 2 else 4, 5)]
            clips = [_burst(rng, places[:count], side) for side in stated]
            first, second = rng.choice(count, 2, replace=False)
            order = np.arange(count)
            order[[first, second]] = second, first
            signs = np.where(np.arange(count) == first, -1.0, 1.0)
            kind = f"{count}_channels" + ("_marked" if is_marked else "")
            for name, heard in (
                ("swapped", [clip[:, order] for clip in clips]),
                ("inverted", [clip * signs for clip in clips]),
                ("false_alarm", clips),
            ):
                verdict = check_claps(heard, 48e3, "array", known, list(stated) if is_marked else ())
                found.setdefault(f"{kind}_{name}", []).append(is_alarm(verdict))
    return {
        name: rate(values, trials, "rate" if name.endswith("false_alarm") else "tpr")
        for name, values in found.items()
    }


def _burst(rng: np.random.Generator, places_m: geometry.Array, side: geometry.Array) -> geometry.Array:
    sample = np.arange(2880)
    burst = rng.normal(size=len(sample)) * np.exp(-(((sample - 900) / 200.0) ** 2))
    turn = geometry.rotation_exp(rng.uniform(0, np.deg2rad(40)) * _unit(rng))
    late = np.linalg.norm(places_m - turn @ side * rng.uniform(1, 4), axis=1) / SOUND_M_S * 48e3
    shift = np.exp(-2j * np.pi * np.outer(late - late.min(), np.fft.rfftfreq(len(sample))))
    heard = np.fft.irfft(np.fft.rfft(burst) * shift, axis=1).T
    return np.asarray(heard + rng.normal(0, 0.03, heard.shape))


def _unit(rng: np.random.Generator) -> geometry.Array:
    vector = rng.normal(size=3)
    return np.asarray(vector / np.linalg.norm(vector))


def _simulated_rotation(rooms: int) -> dict[str, Any]:
    hits: dict[str, list[bool]] = {"rotation_1deg_one_axis": [], "offset_5ms": []}
    calm: list[bool] = []
    readings: list[list[float]] = []
    for seed in range(1, rooms + 1):
        room = SimulatedRoom(seed)
        time_s = np.arange(0.3, 20.3, 0.1)
        images = [room.image("camera_left", t) for t in time_s]
        turns = camera_turns(images, time_s, room.rig.camera("camera_left"))
        gyro_s = np.arange(0, 21, 0.005)
        truth = inertial_truth(room.world.motion(gyro_s).carried_to(room.rig.transform("body", "imu")))
        gyro = InertialNoise(SimulatedImuConfig(), np.random.default_rng(seed)).measured(truth)[:, 3:]
        T = room.rig.transform("camera_left", "imu")

        def judged(
            late_s: float,
            change: geometry.Array,
            turns: Turns = turns,
            T: geometry.Array = T,
            gyro_s: geometry.Array = gyro_s,
            gyro: geometry.Array = gyro,
        ) -> Verdict:
            known = RigCalibration(edges=(Edge("camera", "imu", geometry.small_motion(change) @ T),))
            return check_imu_rotation(turns.shifted(-late_s), gyro_s, gyro, known, "camera", "imu")

        quiet = judged(0.0, np.zeros(6))
        calm.append(is_alarm(quiet))
        readings.append([round(quantity.value, 3) for quantity in quiet.quantities[:4]])
        # About one axis of the camera: the tolerance of 1 degree holds per axis.
        single = [sign * np.deg2rad(1.0) * np.eye(6)[axis] for axis in range(3) for sign in (-1, 1)]
        hits["rotation_1deg_one_axis"] += [is_alarm(judged(0.0, motion)) for motion in single]
        hits["offset_5ms"] += [is_alarm(judged(late_s, np.zeros(6))) for late_s in (-0.005, 0.005)]
    return {
        **{name: rate(values, rooms) for name, values in hits.items()},
        "false_alarm": rate(calm, rooms, "rate"),
        "null_deg_ms": readings,
    }


def bump(_: Path, runs: int = 4, workers: int = 2) -> dict[str, Any]:
    """One sensor of the simulated rig is bumped by 1 deg and 2 cm in mid-episode; as many runs without a bump.

    The room, the pictures (two cameras, 640x480) and the sweeps (64 rings) are simulated, as if straightened with
    a perfect gyro; what judges them is the check of a finished episode that the agent runs.
    """
    parts: dict[str, Callable[[], dict[str, Any]]] = {}
    for run in range(runs):
        parts[f"run {run}, bumped"] = partial(_bumped_run, run, True)
        parts[f"run {run}, calm"] = partial(_bumped_run, run, False)
    found = in_parallel(parts, workers)
    bumped = [found[f"run {run}, bumped"] for run in range(runs)]
    calm = [found[f"run {run}, calm"] for run in range(runs)]
    right = [one["found"] and one["right"] and one["within_5s"] for one in bumped]
    return {
        **{key: rate([one[key] for one in bumped], runs) for key in ("found", "right", "within_5s")},
        "found_right_and_within_5s": rate(right, runs),
        "false_alarm": rate([one["found"] for one in calm], runs, "rate"),
        "not_ok_without_a_bump": sum(one["status"] != "ok" for one in calm),
        "missed": [(one["truth"], one["said"]) for one, good in zip(bumped, right, strict=True) if not good],
        "false": [one["said"] for one in calm if one["found"]],
    }


def _bumped_run(run: int, is_bumped: bool) -> dict[str, Any]:
    rng = np.random.default_rng([run, 5])
    name = ("camera_left", "camera_right", "lidar")[run % 3]
    at_s = float(rng.uniform(7.0, 14.0))
    change = geometry.small_motion(random_motion(rng, 1.0, 0.0) + random_motion(rng, 0.0, 0.02))
    report = run_checks(_episode(run + 1, name if is_bumped else "", at_s, change))
    bounds = [
        quantity.value
        for verdict in report.verdicts
        if is_alarm(verdict)
        for quantity in verdict.quantities
        if quantity.name in ("moved_after", "moved_before")
    ]
    middle_s = (min(bounds) + max(bounds)) / 2 if bounds else float("nan")
    return {
        "found": report.status in ALARM,
        "status": report.status.value,
        "right": report.moved == (name,),
        "within_5s": abs(middle_s - at_s) <= 5.0,
        "truth": f"{name} at {at_s:.1f} s",
        "said": f"{', '.join(report.moved)} at {middle_s:.1f} s: {'; '.join(report.reasons[:3])}",
    }


def _episode(seed: int, bumped: str, at_s: float, change: geometry.Array) -> Recording:
    """Return 20 s of the simulated rig: 18 stereo pairs with a sweep each, 1.1 s apart."""
    room = SimulatedRoom(seed)
    times = tuple(0.4 + 1.1 * k for k in range(18))
    names = ("camera_left", "camera_right")
    pairs: list[tuple[Any, Any]] = []
    sweeps: list[tuple[Any, Any]] = []
    for t in times:
        moved = {bumped: change} if bumped and t >= at_s else {}
        left, right = (room.image(name, t, moved.get(name)) for name in names)
        pairs.append((left, right))
        sweeps.append(room.sweep(t, moved.get("lidar")))

    def shots(side: int) -> list[Callable[[], Shot]]:
        camera, T = room.rig.camera(names[side]), room.rig.transform(names[side], "lidar")
        return [
            partial(Shot, pair[side], points, ring, camera, T)
            for pair, (points, ring) in zip(pairs, sweeps, strict=True)
        ]

    material = PreparedMaterial(
        [StereoSet(*names, [partial(tuple, pair) for pair in pairs], times)],
        [CameraLidarSet(name, "lidar", shots(side), None, times) for side, name in enumerate(names)],
    )
    return Recording(
        Path(f"simulated-{seed}"),
        "episode",
        ImportResult(room.rig, (), "sensorium"),
        material,
        material.tasks,
    )


def cost(folder: Path) -> dict[str, Any]:
    """CPU time of one result of each continuous pair, and its share of a core at one result every 10 s."""
    frames = [(image, points, camera, T) for image, points, camera, T in kitti_frames(folder)][:3]
    odometry = DATA / "calibration" / "kitti_odom_stereo" / "sequence_1"
    left, right = (_images(odometry / side)[:3] for side in ("image_l", "image_r"))
    known = read_kitti(odometry / "calib.txt", (left[0].shape[1], left[0].shape[0]))

    def one_camera_lidar(motion: geometry.Array) -> None:
        reduced = [
            _in_camera_axes(keyframe(image, points, camera, T), T) for image, points, camera, T in frames
        ]
        check_camera_lidar(reduced, rig(motion), "camera", "lidar")

    def one_stereo(count: int) -> None:
        matches = [match_pair(*pair) for pair in zip(left[:count], right[:count], strict=True)]
        check_matches(matches, known, "camera_0", "camera_1")

    turned = np.deg2rad(0.5) * np.eye(6)[1]
    jobs: dict[str, Callable[[], None]] = {
        "camera_lidar_3_keyframes": partial(one_camera_lidar, np.zeros(6)),
        "camera_lidar_3_keyframes_in_alarm": partial(one_camera_lidar, turned),
        "stereo_1_pair": partial(one_stereo, 1),
        "stereo_3_pairs": partial(one_stereo, 3),
    }
    result = {}
    for name, job in jobs.items():
        job()  # what the first call loads is not the check's
        started = time.process_time()
        for _ in range(3):
            job()
        seconds = (time.process_time() - started) / 3
        result[name] = {"cpu_s": round(seconds, 3), "share_of_a_core_at_10s": round(seconds / 10, 4)}
    return result


PARTS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "camera_lidar": camera_lidar,
    "board": board,
    "stereo": stereo_epipolar,
    "simulated": simulated,
    "bump": bump,
    "cost": cost,
}


def machine() -> dict[str, Any]:
    return {"machine": platform.machine(), "python": platform.python_version(), "opencv": cv2.__version__}


@dataclass(frozen=True)
class Row:
    """One line of the printed table."""

    part: str
    what: str
    found: dict[str, Any]

    def text(self) -> str:
        value = self.found.get("tpr", self.found.get("rate"))
        low, high = self.found["ci95"]
        known = BASELINE.get(self.what, "")
        bound = f"<= {self.found['at_most']:.3f}  " if "at_most" in self.found else ""
        goal = GOALS.get(self.what, "") if self.part == "camera_lidar" else ""
        return (
            f"{self.part:44s} {self.what:16s} {value:6.3f}  n={self.found['n']:4d} "
            f"({self.found['n_independent']:3d} independent, 95 % {low:.2f}-{high:.2f})  {bound}{goal!s:5s} "
            f"{known if self.part == 'camera_lidar' else ''!s}"
        )


def rows(result: dict[str, Any], part: str = "") -> Iterator[Row]:
    for name, value in result.items():
        if isinstance(value, dict) and "ci95" in value:
            yield Row(part, name, value)
        elif isinstance(value, dict):
            yield from rows(value, f"{part}.{name}" if part else name)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kitti", type=Path, default=DATA / "calibration" / "kitti_object")
    parser.add_argument("--only", nargs="*", choices=PARTS, help="run these parts only")
    parser.add_argument("--trials", type=int, default=60, help="camera-LiDAR windows per level")
    parser.add_argument("--workers", type=int, default=2, help="processes for camera-LiDAR and bump")
    parser.add_argument("--runs", type=int, default=4, help="runs with and without a bump")
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    result: dict[str, Any] = {"machine": machine()}
    for name in options.only or PARTS:
        started = time.perf_counter()
        if name == "bump":
            result[name] = bump(options.kitti, options.runs, options.workers)
        elif name == "camera_lidar":
            result[name] = camera_lidar(options.kitti, options.trials, options.workers)
        else:
            result[name] = PARTS[name](options.kitti)
        print(f"{name}: {time.perf_counter() - started:.0f} s", file=sys.stderr)
    if options.json:
        print(json.dumps(result, indent=1))
        return
    print(f"{'check':44s} {'injected':16s}   rate  trials{'':37s} goal  baseline")
    for row in rows(result):
        print(row.text())
    for name, spent in result.get("cost", {}).items():
        share = spent["share_of_a_core_at_10s"]
        print(f"cost.{name:39s} {spent['cpu_s']:6.3f} s CPU, {share:.1%} of a core at one result every 10 s")


if __name__ == "__main__":
    main()
