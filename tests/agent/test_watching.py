"""Pairs under watch, on the simulated rig's own frames: what is found, when, whose fault, and what is not said."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from simulated_rig import START_NS
from watched_rig import SLOW, STEP_S, WatchedRig, watched_rig

from sensorium.agent.calibrating.watching.attribution import Attribution
from sensorium.agent.calibrating.watching.plan import plan_checks
from sensorium.agent.calibrating.watching.watch import Watch, new_watch
from sensorium.agent.session.rig import CheckOptions
from sensorium.calibration.attribution import is_timing
from sensorium.calibration.rig_document import RigCalibration
from sensorium.drivers.payloads.ouster import decode_scan
from sensorium.drivers.payloads.ouster_metadata import OusterMetadata
from sensorium.simulators.demo_rig import demo_calibration
from sensorium.simulators.emulators.ouster_encoder import encode_scan
from sensorium.sync.recording.judged import JudgedWindow
from sensorium.sync.thinking.sets import KeptFrame
from sensorium.timebase import SECOND_NS
from sensorium.verdict import Status

CALIBRATION = demo_calibration()
BUMP_S = 7.0
BUMP = {"at_s": BUMP_S, "rotation_deg": [1.0, 1.0, 0.1], "translation_m": [0.01, 0.01, 0.01]}
STEREO = ("stereo", "camera_left", "camera_right")
LEFT = ("camera_lidar", "camera_left", "lidar")
RIGHT = ("camera_lidar", "camera_right", "lidar")


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> WatchedRig:
    return watched_rig(tmp_path_factory.mktemp("calm"))


@pytest.fixture(scope="module")
def left_bumped(calm: WatchedRig, tmp_path_factory: pytest.TempPathFactory) -> WatchedRig:
    return bumped(calm, "camera_left", tmp_path_factory)


@pytest.fixture(scope="module")
def lidar_bumped(calm: WatchedRig, tmp_path_factory: pytest.TempPathFactory) -> WatchedRig:
    return bumped(calm, "lidar", tmp_path_factory)


def bumped(calm: WatchedRig, name: str, tmp_path_factory: pytest.TempPathFactory) -> WatchedRig:
    devices = {name: {**SLOW[name], "bump": BUMP}}
    return calm.with_frames_of(watched_rig(tmp_path_factory.mktemp(name), devices), name)


def watch(
    rig: WatchedRig, kind: str, first: str, second: str, calibration: RigCalibration = CALIBRATION
) -> Watch[Any]:
    options = CheckOptions.model_validate({"check": kind, "streams": [first, second], "every_s": 6.0})
    (plan,) = plan_checks([options], calibration, rig.infos)
    assert not plan.problem
    return new_watch(plan, calibration)


def feed(watched: Watch[Any], rig: WatchedRig, times_s: Iterable[float]) -> list[JudgedWindow]:
    """Give a watch the sets of these times; return the verdicts in order."""
    found = []
    for world_s in times_s:
        watched.take(rig.at(watched.request, world_s))
        window = watched.due_verdict()
        if window is not None:
            found.append(window)
    return found


EVERY_TWO_S = np.arange(9) * STEP_S + 1.85


def everything(rig: WatchedRig) -> tuple[dict[str, list[JudgedWindow]], list[JudgedWindow]]:
    """Return the windows of all three pairs as time goes on, and what was said of who moved."""
    watches = [watch(rig, *pair) for pair in (STEREO, LEFT, RIGHT)]
    attribution = Attribution()
    windows: dict[str, list[JudgedWindow]] = {each.plan.subject: [] for each in watches}
    said = []
    for world_s in EVERY_TWO_S:
        for each in watches:
            windows[each.plan.subject] += feed(each, rig, [world_s])
            named = attribution.verdict(watches, each)
            said += [named] if named is not None else []
    return windows, said


def test_a_rig_in_place_is_ok_in_every_window_and_nobody_is_blamed(calm: WatchedRig) -> None:
    windows, said = everything(calm)
    assert said == []
    for subject, found in windows.items():
        assert len(found) == 3
        assert {window.verdict.status for window in found} == {Status.OK}, subject


@pytest.mark.parametrize(
    ("fixture", "name"),
    [("left_bumped", "camera_left"), pytest.param("lidar_bumped", "lidar", marks=pytest.mark.slow)],
)
def test_a_bumped_sensor_is_found_located_and_named(
    fixture: str, name: str, request: pytest.FixtureRequest
) -> None:
    rig: WatchedRig = request.getfixturevalue(fixture)
    windows, said = everything(rig)
    for subject, found in windows.items():
        statuses = [window.verdict.status for window in found]
        if name in subject:
            assert statuses[0] is Status.OK
            assert statuses[-1] is Status.FAILED, found[-1].verdict.reasons
            assert Status.FAILED not in statuses[:2]  # two windows without common frames
        else:
            assert set(statuses) == {Status.OK}
    assert said[-1].verdict.subject == name
    assert said[-1].verdict.status is Status.FAILED
    bump_ns = START_NS + round(BUMP_S * SECOND_NS)
    assert said[-1].start_ns < bump_ns <= said[-1].end_ns
    assert said[-1].end_ns - said[-1].start_ns <= 5 * SECOND_NS


def test_who_moved_is_said_again_in_the_next_episode_and_taken_back_when_all_is_in_place(
    calm: WatchedRig, left_bumped: WatchedRig
) -> None:
    watched = watch(left_bumped, *STEREO)
    attribution = Attribution()

    def told(rig: WatchedRig, times_s: Iterable[float]) -> JudgedWindow | None:
        assert feed(watched, rig, times_s)
        return attribution.verdict([watched], watched)

    assert told(left_bumped, EVERY_TWO_S[3:6]) is None  # one window alone
    first = told(left_bumped, EVERY_TWO_S[6:9])
    assert first is not None
    assert first.verdict.subject == "camera_left or camera_right"  # one pair cannot tell
    assert "never seen in place" in watched.settled.reasons[-1]  # type: ignore[union-attr]
    later = replace(left_bumped, episode="next", started_ns=first.end_ns + SECOND_NS)
    again = told(later, EVERY_TWO_S[3:6])
    assert again is not None
    assert "before this episode began" in again.verdict.reasons
    back = told(replace(calm, episode="next"), EVERY_TWO_S[6:9])
    assert back is not None
    assert back.verdict.status is Status.OK
    assert told(replace(calm, episode="next"), EVERY_TWO_S[0:3]) is None


def test_a_late_stamp_is_called_timing_and_moves_nobody(calm: WatchedRig) -> None:
    late = calm.stamped_late("lidar", 0.05)
    watched = watch(late, *LEFT)
    verdicts = [window.verdict for window in feed(watched, late, EVERY_TWO_S)]
    assert Status.FAILED not in {verdict.status for verdict in verdicts}
    told = [verdict for verdict in verdicts if is_timing(verdict)]
    assert told
    offset = next(quantity for quantity in told[-1].quantities if quantity.name == "time_offset")
    assert offset.sigma is not None
    assert abs(offset.value + 50.0) < 3 * offset.sigma + 3.0  # a good rig reads up to 3 ms
    assert Attribution().verdict([watched], watched) is None


def test_windows_share_no_frame_and_hold_one_episode_only(calm: WatchedRig) -> None:
    watched = watch(calm, *STEREO)
    feed(watched, calm, [1.0, 2.0])
    later = replace(calm, episode="next")
    assert feed(watched, later, [3.0, 4.0]) == []  # the first two do not count
    (window,) = feed(watched, later, [5.0])
    assert watched.episode == "next"
    assert window.start_ns == later.at(watched.request, 3.0).tick_ns
    (after,) = feed(watched, later, [6.0, 7.0, 8.0])
    assert after.start_ns > window.end_ns


def black(kept: KeptFrame) -> bytes:
    done, data = cv2.imencode(".jpg", np.zeros((480, 640, 3), np.uint8))
    assert done
    return bytes(data)


def torn(kept: KeptFrame) -> bytes:
    return bytes(kept.frame.payload)[:200]


def blind(kept: KeptFrame) -> bytes:
    """A sweep of a covered LiDAR: every beam returns from 30 cm."""
    metadata = OusterMetadata.from_json(kept.info.details["metadata"])
    scan = decode_scan(kept.frame.payload, metadata)
    near = np.full_like(scan.range_mm, 304)
    return b"".join(encode_scan(metadata, 1, near, 10, scan.column_ns))


@pytest.mark.parametrize(
    ("stream", "payload", "pair", "word"),
    [
        ("camera_left", black, LEFT, "no contrast"),
        ("camera_left", black, STEREO, "matches"),
        ("camera_left", torn, LEFT, "decode"),
        ("camera_left", torn, STEREO, "decode"),
        ("lidar", blind, LEFT, "depth edges"),
        ("lidar", torn, LEFT, "decode"),
    ],
)
def test_what_cannot_be_judged_is_insufficient_with_its_reason(
    stream: str, payload: Any, pair: tuple[str, str, str], word: str, calm: WatchedRig
) -> None:
    damaged = calm.with_payloads(stream, payload)
    found = feed(watch(damaged, *pair), damaged, [1.0, 3.2, 5.4, 7.6])
    assert found
    assert {window.verdict.status for window in found} == {Status.INSUFFICIENT}
    assert any(word in reason for reason in found[0].verdict.reasons), found[0].verdict.reasons


def test_standing_still_is_insufficient_and_one_scene_never_makes_a_window(calm: WatchedRig) -> None:
    watched = watch(calm, *LEFT)
    one = calm.at(watched.request, EVERY_TWO_S[0])
    found = []
    for step in range(8):
        later = tuple(
            replace(kept, capture_ns=kept.capture_ns + step * 2 * SECOND_NS)
            for kept in (*one.members, *one.beside)
        )
        watched.take(
            replace(one, tick_ns=one.tick_ns + step * 2 * SECOND_NS, members=later[:2], beside=later[2:])
        )
        window = watched.due_verdict()
        found += [window] if window is not None else []
    assert found
    for window in found:
        assert window.verdict.status is Status.INSUFFICIENT
        assert "standing still" in window.verdict.reasons[0]


def test_the_scene_that_came_in_time_still_counts_when_the_rig_moves_on(calm: WatchedRig) -> None:
    watched = watch(calm, *LEFT)
    found = feed(watched, calm, [EVERY_TWO_S[0]] * 3 + list(EVERY_TWO_S[1:3]))
    assert [window.verdict.status for window in found] == [Status.OK]


def test_a_lidar_of_few_rings_needs_ten_scenes(calm: WatchedRig, tmp_path: Path) -> None:
    few = calm.with_frames_of(watched_rig(tmp_path, {"lidar": {"rings": 16, "columns": 512}}), "lidar")
    watched = watch(few, *LEFT)
    for world_s in EVERY_TWO_S[:4]:
        watched.take(few.at(watched.request, world_s))
    assert watched.needed == 10
    assert not watched.is_full


def test_images_apart_in_time_on_a_turning_rig_are_not_compared(calm: WatchedRig) -> None:
    apart = calm.stamped_late("camera_right", 0.03)
    found = feed(watch(apart, *STEREO), apart, EVERY_TWO_S)
    turning = [window for window in found if window.verdict.status is Status.INSUFFICIENT]
    assert turning
    assert "30 ms apart while the rig turns" in turning[0].verdict.reasons[0]


def test_checks_are_derived_from_the_calibration_and_the_streams(calm: WatchedRig) -> None:
    plans = plan_checks(None, CALIBRATION, calm.infos)
    assert {(plan.kind, plan.subject) for plan in plans} == {
        ("stereo", "camera_left~camera_right"),
        ("camera_lidar", "camera_left~lidar"),
        ("camera_lidar", "camera_right~lidar"),
        ("ground_gravity", "lidar~imu"),
        ("camera_imu", "camera_left~imu"),
        ("camera_imu", "camera_right~imu"),
        ("lidar_imu", "lidar~imu"),
    }
    assert not any(plan.problem for plan in plans)
    assert {plan.gyro for plan in plans} == {"imu"}


@pytest.mark.parametrize(
    ("kind", "streams", "word"),
    [
        ("stereo", ("camera_left", "camera_middle"), "no stream camera_middle"),
        ("stereo", ("camera_left", "lidar"), "lidar is no camera"),
        ("camera_lidar", ("camera_left", "imu"), "no LiDAR"),
    ],
)
def test_a_check_that_cannot_run_says_why(
    kind: Any, streams: tuple[str, str], word: str, calm: WatchedRig
) -> None:
    (plan,) = plan_checks([CheckOptions(check=kind, streams=streams)], CALIBRATION, calm.infos)
    assert word in plan.problem
