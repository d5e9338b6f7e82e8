"""Another terminal commands a running agent."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sessions import (
    CLOCK,
    SMALL_RIG,
    Session,
    check_balance,
    check_verifies,
    grant,
    is_alive,
    pass_time,
    read_manifest,
    recorded_rows,
    sealed,
    sensorium,
    until,
    write_rig,
)

from sensorium.timebase import SECOND_NS

STREAMS = tuple(SMALL_RIG)
CAMERA_PERIOD_NS = SECOND_NS // 30
PAUSE_GOAL_NS = 50_000_000


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    rig = write_rig(tmp_path)
    grant(tmp_path / "spool")
    with Session("record", rig, "--json", spool=tmp_path / "spool") as found:
        found.until_recorded(0.5, STREAMS)
        yield found


def tell(session: Session, *words: str) -> dict[str, Any]:
    done = sensorium(*words, "--spool", session.spool, "--json")
    assert done.code == 0, done.err
    return done.document


def test_status_shows_what_is_recorded(session: Session) -> None:
    status = tell(session, "status")
    assert set(status["streams"]) == set(STREAMS)
    assert status["devices"] == dict.fromkeys(STREAMS, "connected")
    assert status["paused"] is False
    assert status["bytes"] > 0


def test_a_mark_lies_where_it_was_put(session: Session) -> None:
    before_ns = CLOCK.now_ns()
    tell(session, "mark", "the cup fell")
    after_ns = CLOCK.now_ns()
    done = session.finish(signal.SIGINT)
    (mark,) = read_manifest(done.episodes[0]).marks
    assert mark.text == "the cup fell"
    assert before_ns <= mark.host_ns <= after_ns


def test_stop_seals_and_start_begins_the_next_episode(session: Session) -> None:
    run_dir = session.run_dir
    first = tell(session, "stop")["episode"]
    until(lambda: (session.spool / "sealed" / first).exists(), "the seal")
    assert tell(session, "status")["episode"] is None
    pass_time(0.3)  # belongs to no episode
    second = tell(session, "start")["episode"]
    session.until_recorded(0.5, STREAMS)
    done = session.finish(signal.SIGINT)
    assert [path.name for path in done.episodes] == [first, second]
    check_verifies(*done.episodes)
    check_balance(done.episodes, run_dir, is_contiguous=False)


def test_discard_leaves_nothing_of_the_episode(session: Session) -> None:
    gone = tell(session, "discard")["episode"]
    until(lambda: not list(session.spool.rglob(f"{gone}*")), "its files are deleted")
    done = session.finish(signal.SIGINT)
    assert done.document["episodes"] == []
    assert done.code == 1


def test_a_mark_without_an_episode_is_refused_with_what_to_do(session: Session) -> None:
    tell(session, "stop")
    done = sensorium("mark", "late", "--spool", session.spool)
    assert done.code == 3
    assert "start an episode first" in done.err


def test_a_command_without_an_agent_says_how_to_start_one(tmp_path: Path) -> None:
    done = sensorium("status", "--spool", tmp_path / "spool")
    assert done.code == 3
    assert "sensorium record" in done.err


def personal_captures(episode: Path) -> list[int]:
    return [stamp for row in recorded_rows(episode).get("camera_left", []) for stamp in row.capture_ns]


def test_a_pause_holds_from_the_press_until_resume(session: Session) -> None:
    run_dir = session.run_dir
    pressed_ns = CLOCK.now_ns()
    press = tell(session, "pause")
    assert tell(session, "status")["paused"] is True
    pass_time(1.0)
    resumed_ns = CLOCK.now_ns()
    tell(session, "resume")
    pass_time(1.0)
    done = session.finish(signal.SIGINT)
    before, _, after = done.episodes  # the pause is an episode of its own, of what is not personal
    manifest = read_manifest(before)
    press_ns = press["pressed_utc_ns"] - manifest.timeline.utc_minus_host_ns
    assert pressed_ns <= press_ns
    captures = [stamp for episode in done.episodes for stamp in personal_captures(episode)]
    during = [stamp for stamp in captures if press_ns + PAUSE_GOAL_NS + CAMERA_PERIOD_NS < stamp < resumed_ns]
    assert during == []
    assert min(captures) < press_ns
    assert max(captures) > resumed_ns
    assert min(personal_captures(after)) > resumed_ns - CAMERA_PERIOD_NS
    for episode in done.episodes:
        imu = {row.seq for row in recorded_rows(episode)["imu"]}
        produced = next(r for r in read_manifest(episode).streams if r.info.name == "imu").total.produced
        assert len(imu) * 10 == produced
    check_balance(done.episodes, run_dir)


def test_a_pause_survives_the_death_of_everything(session: Session) -> None:
    session.until_recorded(2.0, STREAMS)  # what is killed loses the last second at most, so that some is left
    tell(session, "pause")
    processes = session.note_processes()
    for pid in (session.pid, *processes.values()):
        os.kill(pid, signal.SIGKILL)
    until(lambda: not any(map(is_alive, processes.values())), "the end of all processes")
    again = sensorium("record", session.spool.parent / "rig.yaml", "--seconds", 1, "--json")
    assert again.code == 1, again.err  # something was denied
    *before, paused = sealed(session.spool)
    assert any(personal_captures(episode) for episode in before)
    assert personal_captures(paused) == []
    dropped = {record.info.name: record.total.dropped for record in read_manifest(paused).streams}
    assert dropped["camera_left"].keys() == {"synchronizer"}
    assert dropped["imu"] == {}


def test_a_pause_without_an_agent_holds_for_the_next_one(tmp_path: Path) -> None:
    rig = write_rig(tmp_path)
    spool = tmp_path / "spool"
    grant(spool)
    paused = sensorium("pause", "--spool", spool, "--json")
    assert json.loads(paused.out) == {"agent": None, "paused": True}
    done = sensorium("record", rig, "--seconds", 1, "--json")
    assert done.document["streams"]["camera_left"]["recorded"] == 0
    assert sensorium("resume", "--spool", spool).code == 0
    done = sensorium("record", rig, "--seconds", 1, "--json")
    assert done.document["streams"]["camera_left"]["recorded"] > 0


def test_commands_to_an_agent_that_was_killed_say_so_at_once(session: Session) -> None:
    processes = session.note_processes()
    for pid in (session.pid, *processes.values()):
        os.kill(pid, signal.SIGKILL)
    until(lambda: not any(map(is_alive, processes.values())), "the end of all processes")
    before_ns = CLOCK.now_ns()
    done = sensorium("status", "--spool", session.spool)
    assert done.code == 3
    assert CLOCK.now_ns() - before_ns < 3 * SECOND_NS
    assert len(done.err.splitlines()) == 1
