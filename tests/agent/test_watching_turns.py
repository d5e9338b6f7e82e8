"""Cameras and LiDARs watched against an IMU: what turning shows, what it costs, and that rest says nothing."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from watched_rig import WatchedRig, watched_rig

from sensorium.agent.calibrating.shots import Gyro, Sample, decoded_cloud
from sensorium.agent.calibrating.watching.pairs import following_sweep
from sensorium.agent.calibrating.watching.plan import plan_checks
from sensorium.agent.calibrating.watching.service import Job, next_job
from sensorium.agent.calibrating.watching.watch import Watch, new_watch
from sensorium.agent.session.rig import CheckOptions
from sensorium.calibration.attribution import is_timing
from sensorium.calibration.geometry import small_motion
from sensorium.calibration.rig_document import RigCalibration
from sensorium.simulators.demo_rig import demo_calibration
from sensorium.simulators.rig import MOUNTS
from sensorium.simulators.world import World
from sensorium.sync.recording.judged import JudgedWindow
from sensorium.verdict import Status

SECONDS = 31.0
CALIBRATION = demo_calibration()


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> WatchedRig:
    devices: dict[str, dict[str, Any]] = {"camera_left": {"rate_hz": 10.0}, "imu": {}}
    return watched_rig(tmp_path_factory.mktemp("walk"), devices, seconds=SECONDS)


def watch(rig: WatchedRig, kind: str, sensor: str, calibration: RigCalibration = CALIBRATION) -> Watch[Any]:
    options = CheckOptions.model_validate({"check": kind, "streams": [sensor, "imu"]})
    (plan,) = plan_checks([options], calibration, rig.infos)
    assert not plan.problem
    return new_watch(plan, calibration)


def fed(watched: Watch[Any], rig: WatchedRig, seconds: float = SECONDS) -> list[JudgedWindow]:
    found = []
    for world_s in np.arange(0.3, seconds - 0.8, max(watched.step_ns(False) / 1e9, 1.0)):
        watched.take(rig.at(watched.request, world_s))
        window = watched.due_verdict()
        found += [window] if window is not None else []
    return found


def turned(calibration: RigCalibration, frame: str, by_deg: float) -> RigCalibration:
    """Return the calibration with one sensor turned about its own y."""
    motion = small_motion((0.0, np.deg2rad(by_deg), 0.0, 0.0, 0.0, 0.0))
    edges = tuple(
        replace(edge, T_parent_child=edge.T_parent_child @ motion) if edge.child == frame else edge
        for edge in calibration.edges
    )
    assert any(edge.child == frame for edge in edges)
    return replace(calibration, edges=edges)


def test_a_camera_in_place_is_ok_against_the_gyro_in_one_window(walk: WatchedRig) -> None:
    (window,) = fed(watch(walk, "camera_imu", "camera_left"), walk)
    assert window.verdict.status is Status.OK, window.verdict.reasons
    assert (window.end_ns - window.start_ns) / 1e9 > 20


def test_a_turned_camera_and_a_late_one_are_told_apart(walk: WatchedRig) -> None:
    (window,) = fed(watch(walk, "camera_imu", "camera_left", turned(CALIBRATION, "camera_left", 2.5)), walk)
    assert window.verdict.status is Status.SUSPECT, "the first of two windows"
    assert not is_timing(window.verdict)
    late = walk.stamped_late("camera_left", 0.02)
    (window,) = fed(watch(late, "camera_imu", "camera_left"), late)
    assert window.verdict.status is Status.SUSPECT
    assert is_timing(window.verdict), window.verdict.reasons
    offset_ms = next(q.value for q in window.verdict.quantities if q.name == "time_offset")
    assert offset_ms == pytest.approx(-20.0, abs=3.0)
    assert "too late" in window.verdict.reasons[0]


def test_a_rig_at_rest_says_nothing_and_decodes_no_image(tmp_path: Any) -> None:
    devices: dict[str, dict[str, Any]] = {"camera_left": {"rate_hz": 10.0}, "imu": {}}
    still = watched_rig(tmp_path, devices, seconds=6.0, motion="still")
    # Whoever looked at these images would fail.
    blank = still.with_payloads("camera_left", lambda _: b"no image")
    watched = watch(blank, "camera_imu", "camera_left")
    assert fed(watched, blank, 6.0) == []
    watched.plan = replace(watched.plan, every_s=3.0)
    for world_s in np.linspace(0.3, 5.0, 12):
        watched.take(blank.at(watched.request, world_s))
        assert watched.due_verdict() is None
    assert "waits for 5 deg/s" in watched.note


@pytest.mark.slow
def test_a_lidar_is_judged_against_the_gyro(tmp_path: Any) -> None:
    rig = watched_rig(tmp_path, {"lidar": {}, "imu": {}}, seconds=30.0)
    watched = watch(rig, "lidar_imu", "lidar")
    watched.plan = replace(watched.plan, every_s=24.0)
    (window,) = fed(watched, rig, 30.0)
    assert window.verdict.status is Status.OK, window.verdict.reasons
    wrong = watch(rig, "lidar_imu", "lidar", turned(CALIBRATION, "lidar", 3.0))
    wrong.plan = replace(wrong.plan, every_s=24.0)
    (window,) = fed(wrong, rig, 30.0)
    assert window.verdict.status is Status.SUSPECT


@pytest.fixture(scope="module")
def fast_pair(tmp_path_factory: pytest.TempPathFactory) -> WatchedRig:
    devices: dict[str, dict[str, Any]] = {
        "camera_left": {"rate_hz": 25.0},
        "camera_right": {"rate_hz": 25.0},
        "imu": {},
    }
    return watched_rig(tmp_path_factory.mktemp("pair"), devices, seconds=8.0)


def stereo_watch(rig: WatchedRig, calibration: RigCalibration = CALIBRATION) -> Watch[Any]:
    options = CheckOptions.model_validate(
        {"check": "stereo", "streams": ["camera_left", "camera_right"], "every_s": 2.4}
    )
    (plan,) = plan_checks([options], calibration, rig.infos)
    return new_watch(plan, calibration)


def stereo_windows(rig: WatchedRig, calibration: RigCalibration = CALIBRATION) -> list[JudgedWindow]:
    watched, found = stereo_watch(rig, calibration), []
    for world_s in np.arange(0.4, 7.6, 0.8):
        watched.take(rig.at(watched.request, world_s))
        window = watched.due_verdict()
        found += [window] if window is not None else []
    return found


def test_a_camera_that_is_stamped_early_is_told_from_one_that_turned(fast_pair: WatchedRig) -> None:
    assert {window.verdict.status for window in stereo_windows(fast_pair)} == {Status.OK}
    # What the right camera took a frame later bears the left one's stamps: 40 ms too early.
    early = fast_pair.stamped_late("camera_right", -0.04)
    last = stereo_windows(early)[-1].verdict
    assert last.status is Status.SUSPECT, last.reasons
    assert is_timing(last), last.reasons
    (offset_ms,) = (quantity.value for quantity in last.quantities if quantity.name == "time_offset")
    assert offset_ms == pytest.approx(40.0, abs=8.0)
    assert "camera_right is stamped" in last.reasons[0]
    assert "too early against camera_left" in last.reasons[0]
    moved = stereo_windows(fast_pair, pitched(CALIBRATION, "camera_right", 0.5))[-1].verdict
    assert moved.status is Status.FAILED
    assert not is_timing(moved)
    assert any("does not follow the rig's turning" in reason for reason in moved.reasons)


def pitched(calibration: RigCalibration, frame: str, by_deg: float) -> RigCalibration:
    motion = small_motion((np.deg2rad(by_deg), 0.0, 0.0, 0.0, 0.0, 0.0))
    edges = tuple(
        replace(edge, T_parent_child=edge.T_parent_child @ motion) if edge.child == frame else edge
        for edge in calibration.edges
    )
    return replace(calibration, edges=edges)


def test_turning_waits_for_the_gaps_between_the_other_checks_and_is_not_forgotten(
    fast_pair: WatchedRig,
) -> None:
    turning = Job(watch(fast_pair, "camera_imu", "camera_left"), due_ns=0)
    stereo = Job(stereo_watch(fast_pair), due_ns=0)
    second = 1_000_000_000
    jobs = [turning, stereo]
    assert next_job(jobs, second, second // 2) is stereo, "both are due"
    stereo.due_ns = 2 * second
    assert next_job(jobs, second, second // 2) is turning, "there is a gap"
    assert next_job(jobs, second, 2 * second) is stereo, "sets come slowly: it would not fit into the gap"
    late_ns = round(2.1 * turning.watch.plan.every_s * second)
    assert next_job(jobs, late_ns, second) is turning, "two periods without a turn"
    turning.due_ns = 3 * second
    assert next_job(jobs, second, second) is stereo
    assert next_job([turning], second, second) is turning
    assert next_job([], second, second) is None


def test_the_next_sweep_beside_a_set_tells_how_fast_the_rig_moves(tmp_path: Any) -> None:
    devices: dict[str, dict[str, Any]] = {
        "camera_left": {"rate_hz": 10.0},
        "lidar": {"columns": 512},
        "imu": {},
    }
    rig = watched_rig(tmp_path, devices, seconds=3.0)
    options = CheckOptions.model_validate({"check": "camera_lidar", "streams": ["camera_left", "lidar"]})
    (plan,) = plan_checks([options], CALIBRATION, rig.infos)
    request = new_watch(plan, CALIBRATION).request
    R_lidar_imu = CALIBRATION.transform("lidar", "imu")[:3, :3]
    for world_s in (0.6, 1.4, 2.2):
        found = rig.at(request, world_s)
        sweep, blocks = found.members[1], [kept for kept in found.beside if kept.info.name == "imu"]
        sample = Sample(bytes(sweep.frame.payload), sweep.first_ns)
        gyro = Gyro.of(blocks[0].info, ((kept.frame, kept.capture_ns) for kept in blocks))
        cloud, other = decoded_cloud(sweep.info, sample), following_sweep(sweep, found)
        assert other is not None
        velocity = cloud.velocity_m_s(other, gyro, R_lidar_imu)
        assert velocity is not None
        assert cloud.time_s is not None
        since_s = float(cloud.time_s.min()) - rig.started_ns / 1e9
        truth = World(1).motion(since_s + np.array([0.0, 0.05])).carried_to(MOUNTS["lidar"])
        # Half of the way to the next sweep, in the axes of its beginning.
        assert velocity == pytest.approx(truth.rotation[0].T @ truth.velocity_m_s[1], abs=0.12)
        assert np.linalg.norm(velocity) > 0.2
