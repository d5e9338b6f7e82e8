"""How well the calibration checks find what was injected, on real recordings.

    python tests/bench/calibration.py [--kitti FOLDER] [--only PART ...] [--json]

A calibration is made wrong by the stated amount about a random axis or along a random direction; the recordings
are untouched. Thresholds are the package's constants; they were fixed on ../shared/data/calibration/kitti_raw_seq
and from the numbers of the specification, never on the frames evaluated here.

``n`` counts trials; trials that share frames are not independent, so ``ci95`` (Wilson) is computed for
``n_independent``, the number of disjoint windows (or views) that the frames give.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from sensorium.calibration import geometry
from sensorium.calibration.board import (
    BoardView,
    Chessboard,
    check_camera_lidar_board,
    check_intrinsics,
    check_stereo_board,
    solve_camera_lidar,
    solve_intrinsics,
    solve_stereo,
)
from sensorium.calibration.camera_lidar import (
    Keyframe,
    camera_lidar_reference,
    check_camera_lidar,
    distinct_scenes,
    keyframe,
)
from sensorium.calibration.euroc import read_euroc
from sensorium.calibration.kitti import read_kitti
from sensorium.calibration.rig_document import Edge, RigCalibration
from sensorium.calibration.stereo import (
    Matches,
    StereoTolerance,
    check_matches,
    match_pair,
    stereo_reference,
)
from sensorium.calibration.sweep import Edges
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
    return {key: round(p, 4), "n": len(hits), "n_independent": independent, "ci95": interval}


def is_alarm(verdict: Verdict) -> bool:
    return verdict.status in ALARM


def random_motion(rng: np.random.Generator, degrees: float, metres: float) -> geometry.Array:
    """Return a motion of this size about a random axis or along a random direction."""
    direction = rng.normal(size=3)
    direction /= np.linalg.norm(direction)
    return np.concatenate([np.deg2rad(degrees) * direction, metres * direction])


def kitti_keyframes(folder: Path) -> list[Keyframe]:
    """Return keyframes of a folder laid out as kitti_object or kitti_raw_seq, edges in camera axes.

    Each KITTI frame has its own day's calibration; with the edges already in the camera's axes all frames share
    one calibration, the identity, into which errors can be injected.
    """
    return [
        _in_camera_axes(keyframe(image, points, camera, T), T)
        for image, points, camera, T in kitti_frames(folder)
    ]


def kitti_frames(folder: Path) -> Iterator[tuple[Any, Any, Any, geometry.Array]]:
    """Yield image, points, intrinsics and T_camera_lidar of each frame."""
    for image_path in sorted((folder / "image_2").glob("*.png")):
        points_path = folder / "velodyne" / f"{image_path.stem}.bin"
        own = folder / "calib" / f"{image_path.stem}.txt"
        image = cv2.imread(str(image_path), cv2.IMREAD_GRAYSCALE)
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


def camera_lidar(folder: Path) -> dict[str, Any]:
    """Detection and false alarms of the targetless camera-LiDAR check."""
    started = time.perf_counter()
    frames = kitti_keyframes(folder)
    prepare_s = (time.perf_counter() - started) / max(len(frames), 1)
    result: dict[str, Any] = {
        "keyframes": 3,
        "frames": len(frames),
        "prepare_s_per_keyframe": round(prepare_s, 3),
    }
    result |= _sweep_levels(frames, 3, max(60, len(frames) // 3 * 2))
    result["five_keyframes"] = _sweep_levels(frames, 5, max(30, len(frames) // 5 * 2))
    result["one_keyframe_screening"] = _screening(frames)
    result["with_reference"] = _with_reference(frames)
    return result


def _sweep_levels(frames: list[Keyframe], size: int, trials: int) -> dict[str, Any]:
    rng = np.random.default_rng(20261121)
    chosen = windows(frames, size, trials, rng)
    independent = len(frames) // size
    started = time.perf_counter()
    calm = [check_camera_lidar(window, rig(), "camera", "lidar") for window in chosen]
    seconds = (time.perf_counter() - started) / len(chosen)
    result: dict[str, Any] = {}
    for name, (degrees, metres) in LEVELS.items():
        hits = [
            is_alarm(
                check_camera_lidar(
                    window, rig(random_motion(rng, degrees, metres)), "camera", "lidar"
                ).verdict
            )
            for window in chosen
        ]
        result[name] = rate(hits, independent)
    result["false_alarm"] = rate([is_alarm(check.verdict) for check in calm], independent, "rate")
    insufficient = sum(check.verdict.status is Status.INSUFFICIENT for check in calm)
    readings = np.array([check.motion for check in calm]) * ([180 / np.pi] * 3 + [100.0] * 3)
    result["null"] = {
        "insufficient": insufficient,
        "median_deg_cm": np.round(np.median(readings, axis=0), 3).tolist(),
        "sd_deg_cm": np.round(readings.std(axis=0), 3).tolist(),
        "distance_max": round(max(check.distance for check in calm), 2),
    }
    result["seconds_per_window"] = round(seconds, 3)
    return result


def _screening(frames: list[Keyframe]) -> dict[str, Any]:
    """The distance of single frames. The check itself never judges one frame; this is the bare statistic."""
    rng = np.random.default_rng(7)
    threshold = 3.8  # the largest of 13 single frames of kitti_raw_seq
    calm = [_distance([frame], np.zeros(6)) > threshold for frame in frames]
    result: dict[str, Any] = {"threshold": threshold, "false_alarm": rate(calm, len(frames), "rate")}
    for name in ("0.5deg", "1deg", "10cm", "20cm"):
        hits = [
            _distance([frame], random_motion(rng, *LEVELS[name])) > threshold
            for frame in frames
            for _ in range(4)
        ]
        result[name] = rate(hits, len(frames))
    return result


def _distance(frames: list[Keyframe], motion: geometry.Array) -> float:
    return check_camera_lidar(frames, rig(motion), "camera", "lidar").distance


def _with_reference(frames: list[Keyframe]) -> dict[str, Any]:
    """Two disjoint halves: one gives the reference, windows of the other are judged against it."""
    size = min(10, len(frames) // 2)
    rng = np.random.default_rng(11)
    calm: list[bool] = []
    hits: dict[str, list[bool]] = {name: [] for name in LEVELS}
    splits = max(12, len(frames) // (2 * size) * 6)
    for _ in range(splits):
        order = rng.permutation(len(frames))
        known, seen = ([frames[index] for index in part] for part in (order[:size], order[size : 2 * size]))
        reference = camera_lidar_reference(known, rig(), "camera", "lidar")
        calm.append(is_alarm(check_camera_lidar(seen, rig(), "camera", "lidar", reference).verdict))
        for name, (degrees, metres) in LEVELS.items():
            # The rig moved after the reference was taken; the calibration in force stayed.
            moved = _moved(seen, random_motion(rng, degrees, metres))
            verdict = check_camera_lidar(moved, rig(), "camera", "lidar", reference).verdict
            hits[name].append(is_alarm(verdict))
    independent = len(frames) // (2 * size)
    result: dict[str, Any] = {"keyframes": size, "false_alarm": rate(calm, independent, "rate")}
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
    for known, seen in (halves, halves[::-1]):
        good = [check_matches([pair], calibration, "left", "right", tolerance=tolerance) for pair in known]
        reference = stereo_reference(good, calibration, "left", "right")
        cut = [seen[k : k + size] for k in range(0, len(seen) - size + 1, size)]
        for window in cut:
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
    found = {name: rate(values, len(calm)) for name, values in hits.items()}
    return {**found, "false_alarm": rate(calm, len(calm), "rate")}


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
                calm.append(is_alarm(_board_verdict(window, fit.T_camera_lidar)))
                for name in names:
                    T = geometry.small_motion(random_motion(rng, *LEVELS[name])) @ fit.T_camera_lidar
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
    pairs = []
    for path in sorted(folder.glob("left[0-9]*.jpg")):
        seen = [chess.find(_grey(folder / path.name.replace("left", side))) for side in ("left", "right")]
        if seen[0] is not None and seen[1] is not None:
            pairs.append((seen[0], seen[1]))
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
    focal_hits: list[bool] = []
    focal_calm: list[bool] = []
    rng = np.random.default_rng(4)
    for index, pair in enumerate(pairs):
        others = pairs[:index] + pairs[index + 1 :]
        left, right = (solve_intrinsics([p[side] for p in others], chess, size) for side in (0, 1))
        T = solve_stereo([p[0] for p in others], [p[1] for p in others], chess, left, right)
        cameras = {"left": left, "right": right}

        def verdict(T_left_right: geometry.Array, cameras: Any = cameras, pair: Any = pair) -> Verdict:
            known = RigCalibration(cameras=cameras, edges=(Edge("left", "right", T_left_right),))
            return check_stereo_board([pair[0]], [pair[1]], chess, known, "left", "right")

        stereo_calm.append(is_alarm(verdict(T)))
        for name, motion in injected.items():
            change = np.array(motion, np.float64)
            change[:3] = np.deg2rad(change[:3])
            stereo_hits[name].append(is_alarm(verdict(T @ geometry.small_motion(change))))
    for _ in range(20):
        order = rng.permutation(len(pairs))
        for side in (0, 1):
            camera = solve_intrinsics([pairs[k][side] for k in order[:8]], chess, size)
            seen = [pairs[k][side] for k in order[8:13]]
            focal_calm.append(is_alarm(check_intrinsics(seen, chess, camera, "camera")))
            for factor in (0.99, 1.01):
                wrong = replace(camera, fx=camera.fx * factor, fy=camera.fy * factor)
                focal_hits.append(is_alarm(check_intrinsics(seen, chess, wrong, "camera")))
    return {
        "stereo_1_view": {
            **{name: rate(values, len(pairs)) for name, values in stereo_hits.items()},
            "false_alarm": rate(stereo_calm, len(pairs), "rate"),
        },
        "intrinsics_5_views": {
            "focal_1percent": rate(focal_hits, 2 * (len(pairs) // 5)),
            "false_alarm": rate(focal_calm, 2 * (len(pairs) // 5), "rate"),
        },
    }


PARTS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "camera_lidar": camera_lidar,
    "board": board,
    "stereo": stereo_epipolar,
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
        goal = GOALS.get(self.what, "") if self.part == "camera_lidar" else ""
        return (
            f"{self.part:44s} {self.what:16s} {value:6.3f}  n={self.found['n']:4d} "
            f"({self.found['n_independent']:3d} independent, 95 % {low:.2f}-{high:.2f})  {goal!s:5s} "
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
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    options = parser.parse_args()
    result: dict[str, Any] = {"machine": machine()}
    for name in options.only or PARTS:
        started = time.perf_counter()
        result[name] = PARTS[name](options.kitti)
        print(f"{name}: {time.perf_counter() - started:.0f} s", file=sys.stderr)
    if options.json:
        print(json.dumps(result, indent=1))
        return
    print(f"{'check':44s} {'injected':16s}   rate  trials{'':37s} goal  baseline")
    for row in rows(result):
        print(row.text())


if __name__ == "__main__":
    main()
