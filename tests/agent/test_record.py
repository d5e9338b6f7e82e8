"""Recording a rig: how it ends, who may own a spool, and what a rig file may say."""

import os
import shutil
import signal
from pathlib import Path

import pytest
from sessions import (
    CORE,
    FORCE,
    IMU,
    Session,
    check_balance,
    check_verifies,
    grant,
    is_alive,
    read_manifest,
    sealed,
    sensorium,
    until,
    write_rig,
)

from sensorium.agent.session.rig import load_rig
from sensorium.errors import ConfigError
from sensorium.sync.thinking.sealed import SEALED_FILE


def recording(tmp_path: Path, *arguments: object) -> Session:
    rig = write_rig(tmp_path)
    spool = tmp_path / "spool"
    if not (spool / "consent").exists():
        grant(spool)
    return Session("record", rig, *arguments, spool=spool)


def test_ctrl_c_seals_the_episode(tmp_path: Path) -> None:
    with recording(tmp_path, "--json") as session:
        session.until_recorded(1.0, ["camera_left", "imu", "force"])
        run_dir = session.run_dir
        done = session.finish(signal.SIGINT)
    assert done.code == 0, done.err
    (episode,) = done.episodes
    assert not read_manifest(episode).truncated
    check_verifies(episode)
    check_balance([episode], run_dir)


def test_sigterm_seals_the_episode(tmp_path: Path) -> None:
    with recording(tmp_path, "--json") as session:
        session.until_recorded(1.0, ["camera_left", "imu", "force"])
        run_dir = session.run_dir
        done = session.finish(signal.SIGTERM)
    assert done.code == 0, done.err
    check_balance(done.episodes, run_dir)
    check_verifies(*done.episodes)


def test_a_second_ctrl_c_leaves_an_episode_that_can_be_recovered(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    with recording(tmp_path) as session:
        session.until_recorded(2.5, ["camera_left", "imu", "force"])
        run_dir = session.run_dir
        session.kill("synchronizer", signal.SIGSTOP)  # it cannot seal before the second one
        drivers = [pid for name, pid in session.note_processes().items() if name not in CORE]
        session.signal(signal.SIGINT)
        until(lambda: not any(map(is_alive, drivers)), "the drivers' end")
        done = session.finish(signal.SIGINT)
    assert done.code == 3
    assert "ended at once" in done.err
    recovered = sensorium("episodes", "recover", "--spool", spool, "--json")
    assert recovered.code == 0, recovered.out
    (episode,) = sealed(spool)
    assert read_manifest(episode).truncated
    check_verifies(episode)
    check_balance([episode], run_dir)


def test_a_second_agent_on_the_same_spool_is_refused_by_name(tmp_path: Path) -> None:
    with recording(tmp_path) as session:
        session.until_recorded(0.2)
        second = sensorium("record", tmp_path / "rig.yaml")
        assert second.code == 3
        assert f"in use by process {session.pid}" in second.err
        assert len(second.err.splitlines()) == 1
        assert session.status() is not None


def test_seconds_end_the_recording(tmp_path: Path) -> None:
    with recording(tmp_path, "--seconds", 1.5, "--json") as session:
        done = session.finish()
    assert done.code == 0, done.err
    manifest = read_manifest(done.episodes[0])
    assert 1.5 <= (manifest.end_utc_ns - manifest.start_utc_ns) / 1e9 < 6.0


def test_seconds_are_those_of_all_episodes_together(tmp_path: Path) -> None:
    rig = write_rig(tmp_path, {"imu": IMU}, episode={"max_s": 1.0})
    done = sensorium("record", rig, "--seconds", 2.5, "--json")
    assert done.code == 0, done.err
    spans = [read_manifest(path) for path in done.episodes]
    assert len(spans) >= 3
    assert 2.3 < sum(m.end_utc_ns - m.start_utc_ns for m in spans) / 1e9 < 6.0


def test_every_typo_is_a_line_with_its_place_and_nothing_starts(tmp_path: Path) -> None:
    path = tmp_path / "rig.yaml"
    path.write_text(
        "rig: bench\n"
        "spool: spool\n"
        "calibration: missing.yaml\n"
        "episode: {max_seconds: 3}\n"
        "devices:\n"
        "  imu: {driver: sim_imu, rate_hz: fast}\n"
        "  force: {driver: sim_forse}\n"
        "  camera: {driver: sim_camera, sise: [160, 120]}\n"
        "  imu: {driver: sim_imu, rate_hz: fast}\n"
        "  Loud: {driver: sim_imu}\n"
        "uplaod: true\n"
    )
    done = sensorium("record", path)
    assert done.code == 2
    lines = done.err.splitlines()
    expected = {
        ":4:": "max_seconds",
        ":6:3": "again on line 9",
        ":6:26": "rate_hz",
        ":7:": "did you mean 'sim_force'",
        ":8:": "did you mean 'size'",
        ":10:": "'Loud'",
        ":11:": "did you mean 'upload'",
    }
    for place, words in expected.items():
        assert any(f"{path}{place}" in line and words in line for line in lines), (place, words, lines)
    assert not (tmp_path / "spool").exists()


@pytest.mark.parametrize(
    "text",
    [
        "rig: bench\ndevices: {imu: {driver: sim_imu}\n",
        "rig: bench\n\tdevices: {}\n",
        "rig: b\x07\n",
        "rig: bench\ntask: 2026-99-99\ndevices: {imu: {driver: sim_imu}}\n",
        "rig: !!python/name:os.system\ndevices: {imu: {driver: sim_imu}}\n",
        "- rig\n",
        "",
    ],
)
def test_what_is_not_a_rig_file_is_refused_with_its_place(text: str, tmp_path: Path) -> None:
    path = tmp_path / "rig.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_rig(path)
    assert all(line.startswith(str(path)) for line in str(caught.value).splitlines())


def test_a_calibration_that_is_missing_is_refused_with_its_place(tmp_path: Path) -> None:
    path = write_rig(tmp_path, {"imu": IMU}, calibration="nowhere.yaml")
    done = sensorium("record", path)
    assert done.code == 2
    assert len(done.err.splitlines()) == 1
    assert "rig.yaml:3:1" in done.err
    assert "nowhere.yaml does not exist" in done.err
    assert not (tmp_path / "spool").exists()


def test_a_calibration_that_is_broken_is_refused_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("rig: [1, 2\n")
    done = sensorium("record", write_rig(tmp_path, {"imu": IMU}, calibration="broken.yaml"))
    assert done.code == 2, done.err
    assert "broken.yaml" in done.err
    assert len(done.err.splitlines()) == 1


def test_a_required_device_that_is_missing_stops_everything_before_it_starts(tmp_path: Path) -> None:
    gone = {"driver": "opencv", "device": "/dev/video-that-is-not-there"}
    done = sensorium("record", write_rig(tmp_path, {"imu": IMU, "camera": gone}))
    assert done.code == 3, done.err
    assert len(done.err.splitlines()) == 1
    assert "camera" in done.err
    assert "video-that-is-not-there" in done.err
    assert not (tmp_path / "spool").exists()


def test_an_optional_device_that_is_missing_does_not_keep_the_others_from_recording(tmp_path: Path) -> None:
    gone = {"driver": "opencv", "device": "/dev/video-that-is-not-there", "required": False}
    rig = write_rig(tmp_path, {"imu": IMU, "camera": gone, "force": FORCE})
    done = sensorium("record", rig, "--seconds", 1, "--json")
    assert done.code == 0, done.err
    assert set(done.document["streams"]) == {"imu", "force"}
    assert any("video-that-is-not-there" in warning for warning in done.document["warnings"])


def test_a_required_device_that_fails_while_opening_ends_the_start_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "noise.mp4").write_bytes(bytes(range(256)) * 64)
    broken = {"driver": "opencv", "device": str(tmp_path / "noise.mp4")}
    done = sensorium("record", write_rig(tmp_path, {"imu": IMU, "camera": broken}))
    assert done.code == 3, done.err
    (line,) = [line for line in done.err.splitlines() if line.startswith("sensorium:")]
    assert "camera" in line
    assert "noise.mp4" in line


def test_episodes_that_are_taken_away_while_it_records_do_not_disturb_it(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    rig = write_rig(tmp_path, {"imu": IMU}, episode={"max_s": 1.0})
    with Session("record", rig, "--json", spool=spool) as session:
        first = until(lambda: next(spool.glob("sealed/*"), None), "the first sealed episode")
        shutil.rmtree(first)
        until(lambda: sealed(spool), "the next sealed episode")
        done = session.finish(signal.SIGINT)
    assert done.code == 0, done.err
    assert done.document["taken_away"] == [first.name]
    assert done.document["problems"] == []
    assert any(first.name in warning for warning in done.document["warnings"])
    assert done.episodes
    assert first not in done.episodes


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_an_agent_that_is_ended_while_it_starts_says_that_nothing_was_recorded(
    tmp_path: Path, number: int
) -> None:
    with recording(tmp_path, "--json") as session:
        until(lambda: "thinker" in session.note_processes(), "the first processes")
        done = session.finish(number)
    assert done.code == 1
    assert done.episodes == []
    (problem,) = done.document["problems"]
    assert problem.startswith("nothing was recorded: no device")
    assert f"before the session ended by {signal.Signals(number).name}" in problem
    assert problem in done.err


def test_a_thinker_that_is_told_to_end_before_it_is_ready_seals_what_was_recorded(tmp_path: Path) -> None:
    with recording(tmp_path, "--json") as session:
        until(lambda: "thinker" in session.note_processes(), "the first processes")
        thinker = session.kill("thinker", signal.SIGSTOP)  # as on a machine too busy to load it
        session.until_recorded(0.5)
        session.signal(signal.SIGTERM)
        others = [pid for name, pid in session.note_processes().items() if name != "thinker"]
        until(lambda: not any(map(is_alive, others)), "the end of the others")
        os.kill(thinker, signal.SIGCONT)
        done = session.finish()
    assert done.code == 0, done.err
    check_verifies(*done.episodes)


def test_an_episode_that_was_sealed_and_never_reported_is_still_told(tmp_path: Path) -> None:
    """As by a thinker that is killed between the two."""
    with recording(tmp_path, "--json") as session:
        session.until_recorded(0.5)
        report = session.run_dir / SEALED_FILE
        report.mkdir()  # nothing can be appended to it
        assert sensorium("stop", "--spool", session.spool).code == 0
        (episode,) = until(lambda: sealed(session.spool), "the seal")
        until(lambda: not is_alive(session.note_processes()["thinker"]), "the thinker's end")
        report.rmdir()
        done = session.finish(signal.SIGINT)
    assert done.episodes == [episode]


def test_a_reader_of_the_progress_that_leaves_does_not_end_the_recording(tmp_path: Path) -> None:
    with recording(tmp_path) as session:
        session.until_recorded(0.2)
        session.close_output()
        session.until_recorded(4.5)
        session.signal(signal.SIGINT)
        until(lambda: not is_alive(session.pid), "the end")
    (episode,) = sealed(tmp_path / "spool")
    check_verifies(episode)


def test_a_verdict_against_a_recording_is_a_sentence(tmp_path: Path) -> None:
    clock = {"keeps": "utc", "tick_ns": 1000, "offset_s": 0.05}
    devices = {"imu": {**IMU, "clock": clock, "seconds": 8.0}}
    rig = write_rig(tmp_path, devices)
    grant(tmp_path / "spool")
    done = sensorium("record", rig, "--json")
    found = done.document
    assert bool(done.code) == bool(found["problems"]) == bool(done.err)
