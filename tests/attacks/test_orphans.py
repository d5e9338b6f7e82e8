"""A supervisor is killed: what has nothing to record any more ends by itself and leaves no socket."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from sessions import SMALL_RIG, Session, grant, is_alive, sealed, sensorium, until, write_rig

from sensorium.stopping import PARENT_KEY


def test_an_uploader_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    (tmp_path / "spool").mkdir()
    code = (
        "import os, subprocess, sys, signal\n"
        f"env = {{**os.environ, {PARENT_KEY!r}: str(os.getpid())}}\n"
        "command = [sys.executable, '-m', 'sensorium.uploader.service', *sys.argv[1:]]\n"
        "child = subprocess.Popen(command, env=env)\n"
        "print(child.pid, flush=True)\n"
        "signal.pause()\n"
    )
    options = ["--spool", str(tmp_path / "spool"), "--store", f"file://{tmp_path}/store"]
    options += ["--json-status", str(tmp_path / "status.json")]
    with subprocess.Popen(
        [sys.executable, "-c", code, *options], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        uploader = int(parent.stdout.readline())
        until(lambda: (tmp_path / "status.json").exists(), "the uploader's first round")
        parent.kill()
        parent.wait()
        until(lambda: not is_alive(uploader), "the uploader's end")


def test_a_killed_replay_leaves_no_process_and_no_socket(tmp_path: Path) -> None:
    rig = write_rig(tmp_path, SMALL_RIG)
    grant(tmp_path / "spool")
    done = sensorium("record", rig, "--seconds", 3, "--json")
    assert done.code == 0, done.err
    spool = tmp_path / "replayed"
    with Session("replay", done.episodes[0], "--spool", spool, "--json", spool=spool) as session:
        until(lambda: (session.status() or {}).get("episode"), "the replay")
        processes = session.note_processes()
        spec = json.loads((session.run_dir / "synchronizer.spec.json").read_text())
        os.kill(session.pid, signal.SIGKILL)
        until(lambda: not any(map(is_alive, processes.values())), "the end of all processes", 60.0)
    assert not Path(spec["bus_endpoint"].removeprefix("ipc://")).parent.exists()
    assert len(sealed(spool)) == 1
    assert not list((spool / "open").iterdir())


def test_drivers_end_when_their_supervisor_and_their_recorder_are_killed(tmp_path: Path) -> None:
    """A device that nobody records must not stay open: the next session would find it busy."""
    spool = tmp_path / "spool"
    with Session("record", write_rig(tmp_path, {"imu": SMALL_RIG["imu"]}), "--json", spool=spool) as session:
        session.until_recorded(0.5, ["imu"])
        processes = session.note_processes()
        assert {"imu", "synchronizer"} <= processes.keys()
        os.kill(session.pid, signal.SIGKILL)
        os.kill(processes["synchronizer"], signal.SIGKILL)
        until(lambda: not any(map(is_alive, processes.values())), "the end of all processes", 30.0)
