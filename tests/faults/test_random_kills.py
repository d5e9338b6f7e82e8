"""Random kills of any process of a session: nothing is unreadable, each sample balances, nothing is left running."""

import os
import random
import signal
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
from sessions import (
    FLUSH_S,
    SMALL_RIG,
    Session,
    check_balance,
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

from sensorium.agent.session.control import AgentNote
from sensorium.agent.session.memory_folder import memory_folders
from sensorium.sync.consent.grants import Purpose
from sensorium.sync.episode.verify import examine
from sensorium.uploader.receipt import State, upload_state

SPLIT_S = 3.0
KILLS_IN_A_SESSION = 6
SESSIONS = int(os.environ.get("KILL_SESSIONS", "50"))
FIRST_SEED = int(os.environ.get("KILL_FIRST_SEED", "0"))
_MOST_DEATHS_OF_A_RECORDER = 3
"""After so many the supervisor gives up, which another test shows."""


def start(folder: Path, spool: Path) -> Session:
    rig = write_rig(
        folder,
        store=(folder / "central").as_uri(),
        episode={"max_s": SPLIT_S},
        recorder={"flush_s": FLUSH_S},
    )
    if not (spool / "consent").exists():
        grant(spool, Purpose.UPLOAD)
    return Session("record", rig, "--json", spool=spool)


def kill_at_random(session: Session, rng: random.Random, killed: Counter[str]) -> bool:
    """Kill one process, whichever; return whether the session goes on without help."""
    pass_time(rng.uniform(0.1, 1.2))
    processes = {name: pid for name, pid in session.note_processes().items() if is_alive(pid)}
    spared = {"synchronizer"} if killed["synchronizer"] == _MOST_DEATHS_OF_A_RECORDER else set()
    is_last = killed.total() == KILLS_IN_A_SESSION - 1
    name = "supervisor" if is_last and rng.random() < 0.4 else rng.choice(sorted(processes.keys() - spared))
    killed[name] += 1
    if name == "supervisor":
        os.kill(session.pid, signal.SIGKILL)
        return False
    os.kill(processes[name], signal.SIGKILL)
    return True


def live(folder: Path, seed: int) -> Counter[str]:
    """Record and kill until so many died or the supervisor did; check what is left; return who died how often."""
    rng = random.Random(seed)
    spool = folder / "spool"
    killed: Counter[str] = Counter()
    with start(folder, spool) as session:
        session.until_flushed(1.0, tuple(SMALL_RIG))
        run_dir, sockets = session.run_dir, sockets_of(spool)
        assert sockets.is_dir()
        is_whole = True
        while is_whole and killed.total() < KILLS_IN_A_SESSION:
            is_whole = kill_at_random(session, rng, killed)
        if is_whole:
            done = session.finish(signal.SIGINT, timeout_s=120.0)
            assert done.code in (0, 1, 3), done.err
        else:
            until(lambda: session.exit_code() is not None, "the end of the supervisor")
            recovered = sensorium("episodes", "recover", "--spool", spool)
            assert recovered.code in (0, 1), recovered.err
        until(lambda: not processes_of(spool), "the end of every process, of the last uploader too", 60.0)
    check_nothing_is_left(spool, run_dir, sockets)
    check_losses(spool, run_dir, killed)
    return killed


def sockets_of(spool: Path) -> Path:
    """Return the folder of a session's sockets."""
    note = AgentNote.load(spool)
    assert note is not None
    return Path(note.control_endpoint.removeprefix("ipc://")).parent


def processes_of(spool: Path) -> list[str]:
    """Return the command lines of the processes that were started for a spool and still run, ours excepted."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            words = path.read_bytes().decode(errors="replace").replace("\0", " ")
            if str(spool) in words and is_alive(int(path.parent.name)):
                found.append(words)
    return found


def check_nothing_is_left(spool: Path, run_dir: Path, sockets: Path) -> None:
    assert not list((spool / "open").iterdir())
    assert not [path for path in memory_folders() if path.name.endswith(run_dir.name)]
    assert not sockets.exists()


def check_losses(spool: Path, run_dir: Path, killed: Counter[str]) -> None:
    episodes = sealed(spool)
    check_balance(episodes, run_dir)
    for episode in episodes:
        assert examine(episode).is_proven, examine(episode).reasons
    manifests = [read_manifest(episode) for episode in episodes]
    rates_hz = {record.info.name: record.info.rate_hz for each in manifests for record in each.streams}
    for stream, rate_hz in rates_hz.items():
        lost = dropped_at(manifests, stream)
        deaths = killed["synchronizer"] + killed["supervisor"] + killed[stream]
        most = deaths * ((FLUSH_S + 0.05) * rate_hz + 1)
        assert lost.total() <= most, f"{stream}: {lost}, {killed}"


def check_delivery(folder: Path) -> None:
    """Deliver the rest; what was sent beside the kills must not keep anything from arriving."""
    spool, store = folder / "spool", (folder / "central").as_uri()
    sensorium("upload", "--store", store, "--once", "--spool", spool)
    for episode in sealed(spool):
        assert upload_state(episode) in (State.VERIFIED, State.HELD), episode
        if upload_state(episode) is State.VERIFIED:
            assert examine(folder / "central" / "episodes" / episode.name).is_proven


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(FIRST_SEED, FIRST_SEED + SESSIONS))
def test_whoever_dies_nothing_is_lost_but_a_flush_interval_and_nothing_is_left(
    seed: int, tmp_path: Path
) -> None:
    killed = live(tmp_path, seed)
    check_delivery(tmp_path)
    print(f"killed: {dict(killed)}")
