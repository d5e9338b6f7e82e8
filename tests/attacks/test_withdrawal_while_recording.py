"""A withdrawal during a long episode: what it holds is erased in seconds, not when the recording ends hours later."""

import json
import signal
from pathlib import Path

import zmq
from sessions import (
    SMALL_RIG,
    Session,
    check_verifies,
    grant,
    read_manifest,
    recorded_samples,
    sealed,
    sensorium,
    until,
    write_rig,
)

from sensorium.agent.calibrating.watching.service import SetClient
from sensorium.sync.thinking.sets import SetRequest

STREAMS = tuple(SMALL_RIG)


def test_a_withdrawal_erases_what_the_open_episode_holds_while_recording_goes_on(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    given = grant(spool)
    with Session("record", write_rig(tmp_path), "--json", spool=spool) as session, zmq.Context() as context:
        session.until_recorded(1.0, STREAMS)
        spec = json.loads((session.run_dir / "thinker.spec.json").read_text())
        sets = SetClient(spec["sets_endpoint"], context)
        assert not isinstance(sets.ask(SetRequest(("camera_left",))), str)
        assert sensorium("consent", "withdraw", given, "--spool", spool).code == 0
        (first,) = until(lambda: sealed(spool), "the seal of what was withdrawn", seconds=15.0)
        until(lambda: read_manifest(first).tombstones, "the tombstone", seconds=10.0)
        until(lambda: not list(spool.glob("sealed/*/camera_left*.mcap")), "the erasure", seconds=10.0)
        status = session.status()
        assert status is not None
        assert status["episode"] not in (None, first.name)
        said = sets.ask(SetRequest(("camera_left",)))
        sets.close()
        assert isinstance(said, str)  # why there is none: the checker gets nothing more of it
        session.until_recorded(1.0, [name for name in STREAMS if name != "camera_left"])
        done = session.finish(signal.SIGINT)
    assert done.episodes[0].name == first.name
    for episode in done.episodes:
        assert not any(stream == "camera_left" for stream, _ in recorded_samples(episode))
    manifest = read_manifest(first)
    assert manifest.erased == {"camera_left"}
    assert manifest.stream("imu").total.recorded
    check_verifies(*done.episodes)
    for episode in done.episodes:
        in_files = recorded_samples(episode)
        for record in read_manifest(episode).streams:
            if record.info.name != "camera_left":  # nothing of what is nobody's business is lost
                held = sum(count for (name, _), count in in_files.items() if name == record.info.name)
                assert record.total.recorded == record.total.produced == held
