"""Processes that die or freeze in mid-flight: every sample is recorded or explained, counted from outside."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from sessions import (
    CAMERA,
    CLOCK,
    FLUSH_S,
    FORCE,
    IMU,
    SMALL_RIG,
    Session,
    check_balance,
    check_verifies,
    counter_files,
    dropped_at,
    grant,
    is_alive,
    pass_time,
    read_manifest,
    sealed,
    sensorium,
    until,
    write_rig,
)

from sensorium.agent.session.memory_folder import memory_folders
from sensorium.timebase import SECOND_NS

STREAMS = tuple(SMALL_RIG)


def recording(tmp_path: Path, devices: dict[str, dict[str, Any]] = SMALL_RIG, **keys: Any) -> Session:
    spool = tmp_path / "spool"
    rig = write_rig(tmp_path, devices, **keys)
    if not (spool / "consent").exists():
        grant(spool)
    return Session("record", rig, "--json", spool=spool)


def check_sizes(episode: Path) -> None:
    """Check a manifest's sizes: of what drivers gave, and shares of what lies in the files."""
    records = {record.info.name: record for record in read_manifest(episode).streams}
    for name in ("imu", "force"):
        assert records[name].bytes_raw == records[name].total.recorded * records[name].info.row_bytes
    assert all(record.bytes_stored for record in records.values())
    on_disk = sum(path.stat().st_size for path in episode.glob("*.mcap"))
    assert 0.5 * on_disk < sum(record.bytes_stored for record in records.values()) < on_disk


def until_next_episode(session: Session, first: str) -> None:
    """Return when another episode than the first has a second in it."""

    def goes_on() -> bool:
        status = session.status()
        return bool(status and status["episode"] not in (None, first) and status["recorded_s"] > 1.0)

    until(goes_on, "the next episode")


def instances(session: Session, stream: str) -> list[int]:
    return [number for number, streams in counter_files(session.run_dir).items() if stream in streams]


def test_a_killed_driver_comes_back_and_both_of_its_lives_balance(tmp_path: Path) -> None:
    with recording(tmp_path) as session:
        session.until_recorded(1.0, STREAMS)
        session.kill("imu")
        until(lambda: len(instances(session, "imu")) == 2, "the second life of imu")
        before = session.until_recorded(0.0)["recorded_s"]
        session.until_recorded(before + 1.0)
        run_dir = session.run_dir
        done = session.finish(signal.SIGINT)
    assert done.code == 0, done.err
    (episode,) = done.episodes
    manifest = read_manifest(episode)
    records = {record.info.name: record for record in manifest.streams}
    assert len(records["imu"].balances) == 2
    assert records["imu"].gaps
    assert not records["force"].gaps
    assert len(records["force"].balances) == 1
    assert any("killed by signal 9" in warning for warning in done.document["warnings"])
    check_balance([episode], run_dir)
    check_verifies(episode)


def test_a_killed_synchronizer_is_replaced_and_both_episodes_balance(tmp_path: Path) -> None:
    with recording(tmp_path) as session:
        first = session.until_flushed(1.0, STREAMS)["episode"]
        session.kill("synchronizer")
        until_next_episode(session, first)
        run_dir = session.run_dir
        done = session.finish(signal.SIGINT)
    assert done.code in (0, 1), done.err
    torn, whole = done.episodes
    assert torn.name == first
    assert read_manifest(torn).truncated
    assert not read_manifest(whole).truncated
    assert all(record.total.recorded for record in read_manifest(torn).streams)
    assert all(record.total.recorded for record in read_manifest(whole).streams)
    check_sizes(torn)
    check_sizes(whole)
    manifests = [read_manifest(torn), read_manifest(whole)]
    for record in manifests[0].streams:
        lost = dropped_at(manifests, record.info.name)
        # What drivers sent while no recorder was there is the next one's: only what was in memory is lost.
        assert lost["synchronizer"] <= FLUSH_S * record.info.rate_hz + 1
        assert lost["bus"] <= 0.1 * record.info.rate_hz + 1  # in sockets
    check_balance([torn, whole], run_dir)
    check_verifies(torn, whole)


def test_a_synchronizer_that_freezes_makes_drivers_drop_at_the_source_and_nothing_goes_uncounted(
    tmp_path: Path,
) -> None:
    # 32 kB a sample: a second of them does not fit into what 1 MB of memory leaves to a camera
    greedy = {**CAMERA, "size": [640, 480], "rate_hz": 60.0}
    rig = {**SMALL_RIG, "camera_left": greedy}
    with recording(tmp_path, rig, recorder={"memory_mb": 1}) as session:
        session.until_recorded(1.0, STREAMS)
        session.kill("synchronizer", signal.SIGSTOP)
        stopped_ns = CLOCK.now_ns()
        pass_time(0.8)
        session.kill("synchronizer", signal.SIGCONT)
        stalled_s = (CLOCK.now_ns() - stopped_ns) / SECOND_NS
        before = session.until_recorded(0.0)["recorded_s"]
        session.until_recorded(before + 1.0)
        run_dir = session.run_dir
        done = session.finish(signal.SIGINT)
    manifests = [read_manifest(path) for path in done.episodes]
    assert dropped_at(manifests, "camera_left")["bus"] > 0
    if stalled_s < 1.0:  # a second of its own declaration is everybody's, whatever the others want
        assert dropped_at(manifests, "imu").total() == 0
    check_balance(done.episodes, run_dir)
    check_verifies(*done.episodes)


def test_losses_at_every_place_at_once_balance(tmp_path: Path) -> None:
    lossy = {"drop_probability": 0.05, "faults": [{"kind": "drop", "at_s": 1.0, "count": 7}]}
    rig = {
        "camera_left": {**CAMERA, **lossy},
        "imu": {**IMU, **lossy},
        "force": {**FORCE, **lossy, "personal": True},
    }
    spool = tmp_path / "spool"
    with recording(tmp_path, rig) as session:
        session.until_recorded(1.0, STREAMS)
        assert sensorium("pause", "--spool", spool).code == 0
        pass_time(0.5)
        assert sensorium("resume", "--spool", spool).code == 0
        session.kill("force")
        until(lambda: len(instances(session, "force")) == 2, "the second life of force")
        session.kill("synchronizer", signal.SIGSTOP)
        pass_time(2.0)
        session.kill("synchronizer", signal.SIGCONT)
        before = session.until_recorded(0.0)["recorded_s"]
        session.until_recorded(before + 0.5)
        session.kill("synchronizer")
        until(lambda: bool((session.status() or {}).get("recorded_s", 0) > 0.5), "the next episode")
        run_dir = session.run_dir
        done = session.finish(signal.SIGINT)
    manifests = [read_manifest(path) for path in done.episodes]
    for stream in STREAMS:
        assert dropped_at(manifests, stream)["device"] > 0
        assert dropped_at(manifests, stream)["synchronizer"] > 0
    check_balance(done.episodes, run_dir)
    check_verifies(*done.episodes)


def test_the_next_start_ends_what_a_killed_supervisor_left_running_and_seals_it(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    with recording(tmp_path) as session:
        session.until_recorded(1.0, STREAMS)
        processes = session.note_processes()
        run_dir = session.run_dir
        os.kill(session.pid, signal.SIGKILL)
        pass_time(1.0)
        assert all(map(is_alive, processes.values()))  # nothing is lost while nobody watches
        again = sensorium("record", tmp_path / "rig.yaml", "--seconds", 1, "--json")
        assert not any(map(is_alive, processes.values()))
    assert again.code == 0, again.err
    first, second = sealed(spool)
    assert [second] == again.episodes
    assert not read_manifest(first).truncated
    assert any("left over" in warning for warning in again.document["warnings"])
    check_balance([first], run_dir)
    check_verifies(first, second)


def test_recovery_does_not_touch_an_episode_that_survivors_still_write(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    with recording(tmp_path) as session:
        session.until_recorded(1.0, STREAMS)
        processes = session.note_processes()
        run_dir = session.run_dir
        os.kill(session.pid, signal.SIGKILL)
        until(lambda: not is_alive(session.pid), "the supervisor's end")  # its lock goes with it
        done = sensorium("episodes", "recover", "--spool", spool)
        assert done.code == 0, done.err
        assert not any(map(is_alive, processes.values()))
    (episode,) = sealed(spool)
    check_balance([episode], run_dir)
    check_verifies(episode)


@pytest.mark.parametrize("how", ["start", "recover"])
def test_everything_is_sealed_after_all_processes_were_killed(how: str, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    with recording(tmp_path) as session:
        session.until_flushed(1.0, STREAMS)
        processes = session.note_processes()
        run_dir = session.run_dir
        for pid in (session.pid, *processes.values()):
            os.kill(pid, signal.SIGKILL)
        until(lambda: not any(map(is_alive, processes.values())), "the end of all processes")
        assert [folder for folder in memory_folders() if folder.name.endswith(run_dir.name)]
        if how == "start":
            again = sensorium("record", tmp_path / "rig.yaml", "--seconds", 1, "--json")
        else:
            again = sensorium("episodes", "recover", "--spool", spool, "--json")
    assert again.code == 0, again.err
    assert any(run_dir.name in warning and "was killed" in warning for warning in again.document["warnings"])
    assert not [folder for folder in memory_folders() if folder.name.endswith(run_dir.name)]
    torn = sealed(spool)[0]
    assert read_manifest(torn).truncated
    assert all(record.total.recorded for record in read_manifest(torn).streams)
    check_balance([torn], run_dir)
    check_verifies(*sealed(spool))


def test_a_killed_thinker_costs_no_sample_and_the_seal_catches_up(tmp_path: Path) -> None:
    with recording(tmp_path) as session:
        session.until_recorded(1.5, STREAMS)
        session.kill("thinker")
        until(lambda: (session.status() or {}).get("thinking", {}).get("connected"), "the next thinker")
        before = session.until_recorded(0.0)["recorded_s"]
        session.until_recorded(before + 1.0)
        run_dir = session.run_dir
        done = session.finish(signal.SIGINT)
    assert done.code == 0, done.err
    (episode,) = done.episodes  # recording went on
    manifest = read_manifest(episode)
    assert not manifest.truncated
    assert all(not record.total.dropped for record in manifest.streams)
    assert any("alignment and rates were found from the files" in each for each in manifest.limitations)
    assert manifest.pairs
    check_balance([episode], run_dir)
    check_verifies(episode)


def test_a_thinker_that_freezes_holds_up_nobody(tmp_path: Path) -> None:
    with recording(tmp_path) as session:
        session.until_recorded(1.5, STREAMS)
        session.kill("thinker", signal.SIGSTOP)
        before = session.until_recorded(0.0)
        session.until_recorded(before["recorded_s"] + 3.0)
        session.kill("thinker", signal.SIGCONT)
        session.until_recorded(before["recorded_s"] + 4.0)
        run_dir = session.run_dir
        done = session.finish(signal.SIGINT)
    (episode,) = done.episodes
    manifest = read_manifest(episode)
    assert all(not record.total.dropped for record in manifest.streams)
    assert not any("alignment and rates" in each for each in manifest.limitations)  # it had only lagged
    check_balance([episode], run_dir)
    check_verifies(episode)


def test_recorder_and_thinker_killed_at_once_leave_two_whole_balances(tmp_path: Path) -> None:
    with recording(tmp_path) as session:
        first = session.until_recorded(1.5, STREAMS)["episode"]
        session.kill("synchronizer")
        session.kill("thinker")
        until_next_episode(session, first)
        run_dir = session.run_dir
        done = session.finish(signal.SIGINT)
    torn, whole = sorted(done.episodes)
    assert torn.name == first
    assert read_manifest(torn).truncated
    check_balance([torn, whole], run_dir)
    check_verifies(torn, whole)
