"""How often cameras and LiDARs watched against an IMU while recording are found turned or late, and wrongly so.

    python tests/bench/turning_watch.py [--check camera_imu|lidar_imu ...] [--runs N] [--first SEED] [--json]

Each seed is a simulated walk of 34 s (camera 640x480 at 10 Hz, or LiDAR 64 x 1024, and a gyro at 200 Hz), fed to the
watch of the agent in sets as the recorder gives them. One window is judged as it is, and with calibration or stamps
made wrong: a sensor turned about each of its axes either way, or stamped late or early. Windows of one seed share
their frames: the interval (95 %, Wilson) is of the seeds.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from calibration_rates import is_alarm, rate
from watched_rig import WatchedRig, watched_rig
from watching import watch_of

from sensorium.calibration.edges import Edge
from sensorium.calibration.geometry import small_motion
from sensorium.calibration.rig_document import RigCalibration
from sensorium.simulators.demo_rig import demo_calibration
from sensorium.verdict import Status, Verdict

SECONDS = 34.0
SENSORS: dict[str, tuple[str, dict[str, Any]]] = {
    "camera_imu": ("camera_left", {"rate_hz": 10.0}),
    "lidar_imu": ("lidar", {}),
}
TURNS_DEG = (1.0, 2.0)
LATE_MS = (5.0, 10.0)


def turned(calibration: RigCalibration, frame: str, axis: int, by_deg: float) -> RigCalibration:
    """Return the calibration with one sensor turned about an axis of its own."""
    motion = small_motion(np.deg2rad(by_deg) * np.eye(6)[axis])
    edges = tuple(
        Edge(edge.parent, edge.child, edge.T_parent_child @ motion) if edge.child == frame else edge
        for edge in calibration.edges
    )
    return RigCalibration(cameras=calibration.cameras, edges=edges)


def judged(kind: str, rig: WatchedRig, calibration: RigCalibration) -> Verdict | None:
    """Return the verdict of the first window; None if the rig hardly turned."""
    watch = watch_of(kind, (SENSORS[kind][0], "imu"), calibration, rig.infos)
    step_s = max(watch.step_ns(False) / 1e9, 1.0)
    for world_s in np.arange(0.3, SECONDS - 0.8, step_s):
        watch.take(rig.at(watch.request, world_s))
        window = watch.due_verdict()
        if window is not None:
            return window.verdict
    return None


def cases(
    rig: WatchedRig, known: RigCalibration, name: str
) -> Iterator[tuple[str, WatchedRig, RigCalibration]]:
    yield "calm", rig, known
    for by_deg in TURNS_DEG:
        for axis in range(3):
            sign = (-1) ** axis
            yield f"turned_{by_deg:g}deg", rig, turned(known, name, axis, sign * by_deg)
    for late_ms in LATE_MS:
        for sign in (-1, 1):
            yield f"stamped_{late_ms:g}ms_off", rig.stamped_late(name, sign * late_ms / 1e3), known


def measured(kind: str, seeds: range) -> dict[str, Any]:
    name, options = SENSORS[kind]
    hits: dict[str, list[bool]] = {}
    unjudged: dict[str, int] = {}
    for seed in seeds:
        known = demo_calibration(seed)
        with tempfile.TemporaryDirectory() as folder:
            devices: dict[str, dict[str, Any]] = {name: options, "imu": {}}
            rig = watched_rig(Path(folder), devices, seed=seed, seconds=SECONDS)
        for case, seen, calibration in cases(rig, known, name):
            verdict = judged(kind, seen, calibration)
            # A window that says "insufficient" found nothing.
            hits.setdefault(case, []).append(verdict is not None and is_alarm(verdict))
            is_judged = verdict is not None and verdict.status is not Status.INSUFFICIENT
            unjudged[case] = unjudged.get(case, 0) + (not is_judged)
        print(f"  {kind} seed {seed}: { {k: sum(v) for k, v in hits.items()} }", file=sys.stderr, flush=True)
    calm = hits.pop("calm", [])
    found: dict[str, Any] = {case: rate(values, len(calm)) for case, values in hits.items()}
    return {**found, "false_alarm": rate(calm, len(calm), "rate"), "insufficient": unjudged}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", nargs="*", choices=SENSORS, default=tuple(SENSORS))
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--first", type=int, default=101, help="the first seed")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    result = {
        kind: measured(kind, range(options.first, options.first + options.runs)) for kind in options.check
    }
    if options.json:
        print(json.dumps(result, indent=1))
        return
    for kind, rows in result.items():
        for case, row in rows.items():
            print(f"{kind:12s} {case:20s} {row}")


if __name__ == "__main__":
    main()
