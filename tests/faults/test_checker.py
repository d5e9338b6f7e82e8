"""The checker as a process: finds what moved while recording, keeps to its share, never costs a sample."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from sessions import (
    IMU,
    Session,
    check_balance,
    check_verifies,
    grant,
    pass_time,
    read_manifest,
    sealed,
    sensorium,
    until,
    write_rig,
)

from sensorium.simulators.demo_rig import demo_calibration, demo_rig
from sensorium.sync.episode.reader import Episode
from sensorium.timebase import SECOND_NS, HostClock
from sensorium.verdict import Status

STREAMS = ("camera_left", "camera_right", "imu")
STEREO = {"check": "stereo", "streams": ["camera_left", "camera_right"], "every_s": 1.5}
OFF = {"at_s": 0.0, "rotation_deg": [1.0, 0.0, 0.5]}
GREEDY = {"cpu_share": 0.9}


def stereo_pair(**left: Any) -> dict[str, Any]:
    """Two cameras on a common trigger and an IMU; ``left`` goes to the left camera."""
    common = {"start_ns": HostClock().now_ns() + 3 * SECOND_NS}
    camera = {"driver": "sim_camera", "rate_hz": 10.0, **common}
    return {"camera_left": {**camera, **left}, "camera_right": camera, "imu": {**IMU, **common}}


def recording(tmp_path: Path, devices: dict[str, Any], *arguments: object, **keys: Any) -> Session:
    spool = tmp_path / "spool"
    tmp_path.mkdir(exist_ok=True)
    demo_calibration().save(tmp_path / "calibration.yaml")
    rig = write_rig(tmp_path, devices, calibration="calibration.yaml", **keys)
    if not (spool / "consent").exists():
        grant(spool)
    return Session("record", rig, "--json", *arguments, spool=spool)


def cpu_s(pid: int) -> float:
    """Return the processor time of a process so far, as the kernel counts it."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_busy_checker_stays_within_its_share_and_costs_no_sample(tmp_path: Path) -> None:
    share, over_s = 0.08, 5.0
    checker = {"cpu_share": share, "over_s": over_s}
    checks = [{**STEREO, "every_s": 0.5}]  # several times as much as the share allows
    with recording(tmp_path, stereo_pair(), checker=checker, checks=checks) as session:
        session.until_recorded(1.0, STREAMS)
        pid = session.note_processes()["checker"]

        def is_judged() -> bool:
            status = session.status()
            return bool(status and status["checks"]["pairs"] and status["checks"]["pairs"][0]["cost_s"])

        until(is_judged, "the first verdict")
        clock = HostClock()
        used_s, since_ns = cpu_s(pid), clock.now_ns()
        pass_time(2 * over_s)
        used_s, wall_s = cpu_s(pid) - used_s, (clock.now_ns() - since_ns) / SECOND_NS
        status = session.status()
        run_dir = session.run_dir
        done = session.finish(signal.SIGINT)
    assert status is not None
    # Two windows, and one piece of work that was dearer than expected.
    assert used_s < share * (wall_s + over_s / 2), f"{used_s:.2f} s of {wall_s:.1f} s"
    assert used_s > 0.4 * share * wall_s  # and it does work
    assert status["checks"]["cpu_share"] == share
    assert status["checks"]["cpu_used"] < 1.5 * share
    assert "the checks may use 8% of a core" in status["checks"]["pairs"][0]["note"]
    for row in done.document["streams"].values():
        assert row["dropped"] == {}, json.dumps(row)
    check_balance(done.episodes, run_dir)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_recording_goes_on_without_its_checker(number: signal.Signals, tmp_path: Path) -> None:
    with recording(tmp_path, stereo_pair(), checker=GREEDY, checks=[{**STEREO, "every_s": 0.5}]) as session:
        session.until_recorded(2.0, STREAMS)  # it has asked for sets, and holds an answer or waits for one
        session.kill("checker", number)
        session.until_recorded(4.0)
        run_dir = session.run_dir
        done = session.finish(signal.SIGINT)
    assert done.code == 0, done.err
    assert done.document["calibration"]["status"] in ("insufficient", "ok")
    for row in done.document["streams"].values():
        assert row["dropped"] == {}, json.dumps(row)
    check_balance(done.episodes, run_dir)


def test_a_failed_check_splits_the_recording_without_a_lost_sample(tmp_path: Path) -> None:
    keys = {"checker": GREEDY, "checks": [STEREO], "on_failed_check": "split"}
    with recording(tmp_path, stereo_pair(bump=OFF), **keys) as session:
        first = session.until_recorded(0.5, STREAMS)["episode"]

        def has_split() -> bool:
            status = session.status()
            return bool(status and status["episode"] not in (None, first) and status["recorded_s"] > 1)

        until(has_split, "the next episode")
        run_dir = session.run_dir
        done = session.finish(signal.SIGINT)
    assert done.code == 1  # a verdict stands against the recording
    before, after = map(read_manifest, done.episodes)
    assert before.episode_id == first
    statuses = {verdict.check: verdict.status for verdict in before.calibration.verdicts}
    assert statuses["stereo_epipolar"] is Status.FAILED
    assert any(f"began because in episode {first} calibration" in text for text in after.limitations)
    with Episode(done.episodes[1]) as episode:
        (split,) = [event for event in episode.events() if event.kind == "split"]
    assert split.fields["after"] == first
    check_balance(done.episodes, run_dir)
    check_verifies(*done.episodes)


def test_a_failed_check_refuses_to_record_until_the_operator_says_so(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    keys = {"checker": GREEDY, "checks": [STEREO], "on_failed_check": "stop"}
    with recording(tmp_path, stereo_pair(bump=OFF), **keys) as session:
        session.until_recorded(0.5, STREAMS)
        refused = until(lambda: (session.status() or {}).get("refused"), "the refusal")
        assert "stereo_epipolar on camera_left~camera_right failed" in refused
        start = sensorium("start", "--spool", spool)
        assert start.code == 1
        assert "--despite-calibration" in start.err
        shown = sensorium("status", "--spool", spool)
        assert "refused" in shown.out
        first = session.finish(signal.SIGINT)
    assert first.code == 1
    again = sensorium("record", tmp_path / "rig.yaml", "--seconds", 1)
    assert again.code == 1  # nothing was started
    assert "refused" in again.err
    with recording(tmp_path, stereo_pair(bump=OFF), "--despite-calibration", **keys) as session:
        session.until_recorded(1.0, STREAMS)
        last = session.finish(signal.SIGINT)
    (episode,) = last.episodes
    manifest = read_manifest(episode)
    assert any("by the operator's word" in text for text in manifest.limitations)


@pytest.mark.slow  # the same is tested step by step in tests/sync/test_synchronizer.py
def test_start_despite_the_calibration_goes_on_in_the_same_agent(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    keys = {"checker": GREEDY, "checks": [STEREO], "on_failed_check": "stop"}
    with recording(tmp_path, stereo_pair(bump=OFF), **keys) as session:
        session.until_recorded(0.5, STREAMS)
        until(lambda: (session.status() or {}).get("refused"), "the refusal")
        assert sensorium("start", "--spool", spool, "--despite-calibration").code == 0
        session.until_recorded(1.0, STREAMS)
        run_dir = session.run_dir
        done = session.finish(signal.SIGINT)
    assert len(sealed(spool)) == 2
    check_balance(done.episodes, run_dir, is_contiguous=False)  # nothing was recorded while it was refused


def test_no_checks_means_no_checker(tmp_path: Path) -> None:
    with recording(tmp_path, stereo_pair(), checks=[]) as session:
        session.until_recorded(0.5, STREAMS)
        assert "checker" not in session.note_processes()
        done = session.finish(signal.SIGINT)
    assert done.document["calibration"]["reasons"] == ["no calibration check ran"]


BUMP_S = 17.0


def whole_rig(bumped: str = "") -> dict[str, Any]:
    """The demo's cameras, LiDAR and IMU, with a sensor that moves by a degree about two axes."""
    start_ns = HostClock().now_ns() + 5 * SECOND_NS
    devices: dict[str, Any] = demo_rig(start_ns=start_ns)["devices"]
    chosen = {name: devices[name] for name in ("camera_left", "camera_right", "lidar", "imu")}
    for name in ("camera_left", "camera_right"):
        chosen[name]["rate_hz"] = 15.0
    if bumped:
        chosen[bumped]["bump"] = {
            "at_s": BUMP_S,
            "rotation_deg": [1.1, 1.1, 0.0],
            "translation_m": [0.01] * 3,
        }
    return chosen


@pytest.mark.slow
@pytest.mark.parametrize("bumped", ["camera_left", "lidar", ""])
def test_a_sensor_that_is_bumped_while_recording_is_found_and_named_in_the_manifest(
    bumped: str, tmp_path: Path
) -> None:
    devices = whole_rig(bumped)
    start_ns = devices["lidar"]["start_ns"]
    with recording(tmp_path, devices, "--seconds", 55, checker={"cpu_share": 0.7}) as session:
        session.until_recorded(0.5, tuple(devices))
        run_dir = session.run_dir
        done = session.finish(timeout_s=120.0)
    (path,) = done.episodes
    manifest = read_manifest(path)
    verdicts = {(found.check, found.subject): found.status for found in manifest.calibration.verdicts}
    named = [subject for check, subject in verdicts if check == "mounting"]
    # What turning says needs half a minute of it, before or after the bump; the mounting is named without.
    apart = ("mounting", "imu_rotation")
    pairs = {subject: status for (check, subject), status in verdicts.items() if check not in apart}
    assert len(pairs) == 3
    for subject, status in pairs.items():
        if bumped and bumped in subject.split("~"):
            assert status in (Status.SUSPECT, Status.FAILED), subject
        else:
            assert status is Status.OK, subject
    assert named == ([bumped] if bumped else [])
    for record in manifest.calibration.checks:
        if record.check == "mounting":
            moved_s = [(ns - start_ns) / SECOND_NS for ns in (record.start_ns, record.end_ns)]
            assert moved_s[0] - 5 < BUMP_S < moved_s[1] + 5
            assert moved_s[1] - moved_s[0] < 10
        elif not (bumped and bumped in record.subject):
            assert record.first_alarm_ns is None
    for row in done.document["streams"].values():
        assert row["dropped"] == {}, json.dumps(row)
    check_balance(done.episodes, run_dir)
    report = Path(done.document["report"]).read_text()
    assert "LiDAR edges, red as calibrated" in report


@pytest.mark.parametrize(
    ("bump", "status"), [(None, "ok"), ({**OFF, "rotation_deg": [0.0, 4.0, 0.0]}, "suspect")]
)
def test_a_camera_is_held_against_the_imu_while_recording(
    bump: dict[str, Any] | None, status: str, tmp_path: Path
) -> None:
    checks = [{"check": "camera_imu", "streams": ["camera_left", "imu"], "every_s": 9.0}]
    left = {} if bump is None else {"bump": bump}
    with recording(tmp_path, stereo_pair(**left), checker=GREEDY, checks=checks) as session:
        session.until_recorded(1.0, STREAMS)

        def is_judged() -> bool:
            found = session.status()
            return bool(found and any(each["status"] != "none yet" for each in found["checks"]["pairs"]))

        until(is_judged, "a window of turning", 60.0)
        done = session.finish(signal.SIGINT)
    manifest = read_manifest(done.episodes[0])
    (verdict,) = (each for each in manifest.calibration.verdicts if each.check == "imu_rotation")
    assert (verdict.subject, verdict.status.value) == ("camera_left~imu", status), verdict.reasons
    assert {quantity.name for quantity in verdict.quantities} >= {"rotation_x", "time_offset"}
    for row in done.document["streams"].values():
        assert row["dropped"] == {}, json.dumps(row)
