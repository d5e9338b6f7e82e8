"""Kills at every call that changes the disk: each process of a session dies at the Nth fsync, rename, write, unlink."""

import os
import re
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sessions import (
    SMALL_RIG,
    Done,
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

from sensorium.agent.session.memory_folder import memory_folders

FLUSH_S = 1.0
CALLS = ("fsync", "fdatasync", "rename", "unlink", "rmdir", "writev", "pwrite64", "ftruncate")
VICTIMS = ("synchronizer", "thinker", "supervisor")
_ARGUMENTS = ("--seconds", 3)
_LINE = re.compile(r"^(\d+) +(\w+)\(")
needs_strace = pytest.mark.skipif(
    shutil.which("strace") is None or os.geteuid() != 0,
    reason="killing at system calls needs strace and root",
)
pytestmark = needs_strace


@contextmanager
def traced(pid: int, log: Path, *options: str) -> Iterator[None]:
    """Attach strace to all threads of a process; it ends with the process."""
    command = ["strace", "-f", "-qq", "-o", str(log), "-p", str(pid), "-e", f"trace={','.join(CALLS)}"]
    with subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True) as tracer:
        until(lambda: _is_traced(pid), f"strace at process {pid}")
        try:
            yield
        finally:
            tracer.terminate()
            tracer.communicate()


def _is_traced(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True  # it died of what was asked for
    return "TracerPid:\t0" not in status


def record(tmp_path: Path, victim: str, *options: str) -> tuple[Done | None, Path]:
    """Record three seconds in episodes of one while ``victim`` is traced; None if the supervisor died."""
    spool = tmp_path / "spool"
    rig = write_rig(tmp_path, SMALL_RIG, episode={"max_s": 1.0}, recorder={"flush_s": FLUSH_S})
    grant(spool)
    with Session("record", rig, *_ARGUMENTS, "--json", spool=spool) as session:
        name = "imu" if victim == "supervisor" else victim
        until(lambda: name in session.note_processes(), f"the process of {victim}")
        pid = session.pid if victim == "supervisor" else session.note_processes()[victim]
        run_dir = session.run_dir
        with traced(pid, tmp_path / "calls", *options):
            if victim == "supervisor":
                done = _end_without_supervisor(session, spool)
            else:
                done = session.finish(timeout_s=60.0)
        left = session.note_processes() if is_alive(session.pid) else {}
        assert not any(map(is_alive, left.values())), left
    return done, run_dir


def _end_without_supervisor(session: Session, spool: Path) -> Done | None:
    """Let the session come to its end, or end what the death of its supervisor left, as a next start does."""
    processes = session.note_processes()
    until(lambda: session.exit_code() is not None, "the end of the supervisor", 60.0)
    if session.exit_code() == -signal.SIGKILL:
        recovered = sensorium("episodes", "recover", "--spool", spool)
        assert recovered.code == 0, recovered.err
        assert not any(map(is_alive, processes.values()))
        return None
    return session.finish()


def check_whole(spool: Path, run_dir: Path) -> None:
    """Assert that all is sealed, balanced, lost at most a flush interval, and nothing lies around."""
    episodes = sealed(spool)
    assert not list((spool / "open").iterdir())
    assert not [path for path in memory_folders() if path.name.endswith(run_dir.name)]
    check_balance(episodes, run_dir)
    check_verifies(*episodes)
    for episode in episodes:
        for stream in read_manifest(episode).streams:
            lost = sum(stream.total.dropped.get("synchronizer", {}).values())
            assert lost <= (FLUSH_S + 0.05) * stream.info.rate_hz + 1, f"{stream.info.name}: {lost}"


def count_calls(tmp_path: Path, victim: str) -> dict[str, int]:
    """Return how often each call is made by the thread that makes it most often."""
    record(tmp_path, victim)
    found: Counter[tuple[str, str]] = Counter()
    for line in (tmp_path / "calls").read_text().splitlines():
        if made := _LINE.match(line):
            found[made[2], made[1]] += 1
    return {call: max((n for (name, _), n in found.items() if name == call), default=0) for call in CALLS}


def kill_at(tmp_path: Path, victim: str, call: str, number: int) -> None:
    done, run_dir = record(tmp_path, victim, "-e", f"inject={call}:signal=SIGKILL:when={number}")
    assert done is None or done.code in (0, 1), done.err
    check_whole(tmp_path / "spool", run_dir)


@pytest.mark.parametrize(
    ("victim", "call", "number"),
    [
        ("synchronizer", "writev", 9),
        pytest.param("thinker", "rename", 2, marks=pytest.mark.slow),
        pytest.param("supervisor", "unlink", 1, marks=pytest.mark.slow),
    ],
)
def test_whoever_dies_at_a_call_that_changes_the_disk_all_is_sealed_and_balanced(
    victim: str, call: str, number: int, tmp_path: Path
) -> None:
    kill_at(tmp_path, victim, call, number)


@pytest.mark.slow
@pytest.mark.parametrize("victim", VICTIMS)
def test_every_call_of_a_process_that_changes_the_disk(victim: str, tmp_path: Path) -> None:
    counts = count_calls(tmp_path / "counting", victim)
    points = [(call, number) for call, most in counts.items() for number in range(1, most + 1)]
    for call, number in points:
        kill_at(tmp_path / f"{call}{number}", victim, call, number)
    print(f"{victim}: {len(points)} points: {counts}")
    assert points
