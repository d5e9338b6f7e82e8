"""Camera against LiDAR by edges, on KITTI frames."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from calibration_rates import LEVELS, grey, in_parallel, is_alarm, random_motion, rate

from sensorium.calibration import geometry
from sensorium.calibration.camera_lidar import (
    DEGREES,
    THRESHOLD,
    camera_lidar_reference,
    check_camera_lidar,
    screening,
)
from sensorium.calibration.edges import Edge
from sensorium.calibration.formats.kitti import read_kitti
from sensorium.calibration.keyframes import Keyframe, distinct_scenes, keyframe
from sensorium.calibration.rig_document import RigCalibration
from sensorium.calibration.sweep import Edges, Sweep
from sensorium.verdict import Status


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
        found.append(in_camera_axes(keyframe(image, rows, camera, T, sweep.ring[kept]), T))
    return found


def kitti_frames(folder: Path) -> Iterator[tuple[Any, Any, Any, geometry.Array]]:
    """Yield image, points, intrinsics and T_camera_lidar of each frame."""
    for image_path in sorted((folder / "image_2").glob("*.png")):
        points_path = folder / "velodyne" / f"{image_path.stem}.bin"
        own = folder / "calib" / f"{image_path.stem}.txt"
        image = grey(image_path)
        calibration = read_kitti(own if own.exists() else folder, (image.shape[1], image.shape[0]))
        camera = replace(calibration.camera("camera_2"), width=image.shape[1], height=image.shape[0])
        points = np.fromfile(points_path, np.float32).reshape(-1, 4)
        yield image, points, camera, calibration.transform("camera_2", "velodyne")


def in_camera_axes(frame: Keyframe, T_camera_lidar: geometry.Array) -> Keyframe:
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
    return [in_camera_axes(frame, T) for frame in frames]
