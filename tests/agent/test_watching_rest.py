"""Pairs that are watched at rest only: two LiDARs, and the ground against gravity."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from watched_rig import WatchedRig, watched_rig

from sensorium.agent.calibrating.watching.plan import plan_checks
from sensorium.agent.calibrating.watching.watch import Watch, new_watch
from sensorium.agent.session.rig import CheckOptions
from sensorium.calibration.edges import Edge
from sensorium.calibration.geometry import inverse
from sensorium.calibration.rig_document import RigCalibration
from sensorium.simulators.demo_rig import demo_calibration
from sensorium.simulators.device import Bump
from sensorium.sync.recording.judged import JudgedWindow
from sensorium.verdict import Status

SECONDS = 4.0
PLACE = Bump(at_s=-1.0, rotation_deg=(2.0, -3.0, 40.0), translation_m=(-0.3, 0.2, 0.1))
OFF = Bump(at_s=-1.0, rotation_deg=(2.0, -3.0, 41.0), translation_m=(-0.3, 0.2, 0.1))


def rig(run_dir: Any, motion: str, second: Bump = PLACE) -> WatchedRig:
    """A LiDAR with an IMU, and a second LiDAR that is turned and shifted against the first."""
    common = {"motion": motion, "seconds": SECONDS}
    found = watched_rig(run_dir / "first", {"lidar": {}, "imu": {}}, **common)
    other = watched_rig(run_dir / "second", {"lidar": {"bump": second.model_dump()}}, **common)
    renamed = [
        replace(
            kept,
            info=replace(kept.info, name="lidar_side", frame_id="lidar_side"),
            frame=replace(kept.frame, stream="lidar_side"),
        )
        for kept in other.frames["lidar"]
    ]
    return replace(found, frames={**found.frames, "lidar_side": renamed})


def calibration() -> RigCalibration:
    known = demo_calibration()
    return replace(known, edges=(*known.edges, Edge("lidar", "lidar_side", PLACE.T_before_after)))


def judged(rig: WatchedRig, kind: Any, first: str, second: str) -> tuple[Watch[Any], list[JudgedWindow]]:
    known = calibration()
    options = CheckOptions(check=kind, streams=(first, second), every_s=3.0)
    (plan,) = plan_checks([options], known, rig.infos)
    assert not plan.problem
    watched = new_watch(plan, known)
    found = []
    for world_s in np.arange(0.3, SECONDS - 0.2, 0.6):
        watched.take(rig.at(watched.request, world_s))
        window = watched.due_verdict()
        found += [window] if window is not None else []
    return watched, found


@pytest.fixture(scope="module")
def still(tmp_path_factory: pytest.TempPathFactory) -> WatchedRig:
    return rig(tmp_path_factory.mktemp("still"), "still")


@pytest.fixture(scope="module")
def walking(tmp_path_factory: pytest.TempPathFactory) -> WatchedRig:
    return rig(tmp_path_factory.mktemp("walking"), "walk")


def test_two_lidars_in_place_are_ok_and_one_that_turned_by_a_degree_is_not(
    still: WatchedRig, tmp_path: Any
) -> None:
    _, found = judged(still, "lidar_lidar", "lidar", "lidar_side")
    assert [window.verdict.status for window in found] == [Status.OK]
    _, found = judged(rig(tmp_path, "still", OFF), "lidar_lidar", "lidar", "lidar_side")
    (window,) = found
    assert window.verdict.status is Status.SUSPECT  # the first of two windows
    yaw = next(quantity for quantity in window.verdict.quantities if quantity.name == "yaw")
    turned = inverse(PLACE.T_before_after) @ OFF.T_before_after
    assert yaw.sigma is not None
    assert abs(yaw.value - np.rad2deg(turned[1, 0])) < 3 * yaw.sigma


def test_the_ground_under_a_rig_at_rest_is_held_against_gravity(still: WatchedRig) -> None:
    _, found = judged(still, "ground_gravity", "lidar", "imu")
    assert found
    # Without a reference the accelerometer's bias (0.03 m/s^2, 0.2 deg) cannot be told from a tilt.
    assert {window.verdict.status for window in found} <= {Status.OK, Status.SUSPECT}
    for quantity in found[0].verdict.quantities[:2]:
        assert abs(quantity.value) < 3 * np.rad2deg(0.03 / 9.81) + 3 * (quantity.sigma or 0.0)


@pytest.mark.parametrize(("kind", "second"), [("lidar_lidar", "lidar_side"), ("ground_gravity", "imu")])
def test_on_a_moving_rig_they_say_nothing_and_why(kind: str, second: str, walking: WatchedRig) -> None:
    watched, found = judged(walking, kind, "lidar", second)
    assert found == []
    assert "deg/s" in watched.note
