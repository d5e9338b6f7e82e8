"""Drift of stereo cameras without a target, on recordings.

The one constant that data chose, what lens models leave in each region of the image, was fixed on KITTI's first
sequence (:func:`scatter`); what that sequence shows is marked ``development``. The second one and EuRoC were not used.
Tolerances are shares of what is to be found: how often an error of just the tolerance (0.08 or 0.16 deg of pitch) is
found depends on how sharply it is seen.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from calibration_rates import DATA, grey, images, is_alarm, rate

from sensorium.calibration import geometry
from sensorium.calibration.edges import Edge
from sensorium.calibration.euroc import read_euroc
from sensorium.calibration.formats.kitti import read_kitti
from sensorium.calibration.rig_document import RigCalibration
from sensorium.calibration.stereo import (
    DEGREES,
    Matches,
    StereoTolerance,
    check_matches,
    match_pair,
    stereo_reference,
)

DEVELOPMENT = "kitti_1"


def stereo_epipolar(_: Path) -> dict[str, Any]:
    """Drift of a stereo camera against a reference from other pairs of the same recording."""
    result = {}
    for name, (pairs, calibration, tolerance) in stereo_recordings().items():
        half = len(pairs) // 2
        halves = (pairs[:half], pairs[half:])
        part: dict[str, Any] = {"pairs": len(pairs), "development": name == DEVELOPMENT}
        for size in (1, 3):
            part[f"{size}_pair"] = _stereo_levels(halves, size, calibration, tolerance, "euroc" in name)
            part[f"{size}_pair"]["scatter"] = scatter(halves, size, calibration)
        result[name] = part
    return result


def scatter(
    halves: tuple[list[Matches], list[Matches]], size: int, calibration: RigCalibration
) -> dict[str, Any]:
    """Return how far disjoint windows lie from a reference of the other half, rms in stated deviations."""
    found = []
    for known, seen in (halves, halves[::-1]):
        good = [check_matches([pair], calibration, "left", "right") for pair in known]
        reference = stereo_reference(good, calibration, "left", "right")
        for start in range(0, len(seen) - size + 1, size):
            check = check_matches(seen[start : start + size], calibration, "left", "right")
            found.append((check.estimate - reference.mean) / np.hypot(check.sigma, reference.sigma))
    rms = np.sqrt(np.square(found).mean(axis=0))
    whole = float(np.sqrt(np.square(found).mean()))
    return {"n": len(found), "rms": round(whole, 3), **dict(zip(DEGREES, rms.round(3).tolist(), strict=True))}


def _stereo_levels(
    halves: tuple[list[Matches], list[Matches]],
    size: int,
    calibration: RigCalibration,
    tolerance: StereoTolerance,
    is_narrow: bool,
) -> dict[str, Any]:
    levels = [("pitch", 0.16), ("pitch", 0.2)] if is_narrow else [("pitch", 0.08), ("pitch", 0.1)]
    levels += [("roll", 0.05), ("yaw", 0.16), ("yaw", 0.2)]
    calm: list[bool] = []
    hits: dict[str, list[bool]] = {f"{name}_{level}deg": [] for name, level in levels}
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
            for name, level in levels:
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
        left, right = (images(folder / side) for side in ("image_l", "image_r"))
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
        match_pair(*(grey(folder / "mav0" / camera / "data" / name) for camera in ("cam0", "cam1")))
        for name in sorted(names[0] & names[1])
    ]
    found["euroc"] = (pairs, calibration, StereoTolerance.for_baseline(0.11))
    return found
