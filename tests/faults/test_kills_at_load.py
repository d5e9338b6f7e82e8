"""Kills in mid-flight at four times the reference rig: 289 MB/s by eight drivers of somebody else's package."""

import os
import random
import signal
import sys
from pathlib import Path

import pytest
import yaml
from sessions import Session, check_balance, check_verifies, is_alive, pass_time, read_manifest, until

BENCH = Path(__file__).resolve().parents[1] / "bench"
sys.path.insert(0, str(BENCH))

from rigs import loads  # noqa: E402
from rigs.loads import ENTRY_POINT  # noqa: E402
from rigs.producers import Run, environment, prepare, start_all  # noqa: E402
from rigs.schedule import GO_FILE  # noqa: E402

from sensorium.agent.session.memory_folder import memory_folders  # noqa: E402

pytestmark = pytest.mark.slow
MULTIPLE = 4
WALL_S = 7.0
FLUSH_S = 1.0
VICTIMS = ("synchronizer", "thinker", "cam0", "lidar", "imu")


@pytest.fixture(scope="module")
def pools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pools")
    loads.write_pools(folder / "opaque", "opaque")
    return folder


@pytest.fixture
def run(tmp_path: Path, pools: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    found = Run("opaque", MULTIPLE, WALL_S * MULTIPLE, tmp_path / "run")
    prepare(found, pools)
    monkeypatch.setenv("PYTHONPATH", environment(found.folder)["PYTHONPATH"])
    return found


def start(run: Run, spool: Path) -> Session:
    rig = run.folder / "rig.yaml"
    devices = {name: {"driver": ENTRY_POINT, **run.options} for name in run.streams}
    rig.write_text(
        yaml.safe_dump({"rig": "load", "devices": devices, "recorder": {"flush_s": FLUSH_S}, "upload": False})
    )
    return Session("record", rig, "--spool", spool, "--json", spool=spool)


def begin(run: Run, session: Session) -> None:
    until(lambda: all((run.folder / f"{name}.ready").exists() for name in run.streams), "drivers", 60.0)
    assert session.note_processes()
    start_all(run)


@pytest.mark.parametrize("victim", VICTIMS)
@pytest.mark.parametrize("seed", range(2))
def test_whoever_dies_the_balance_is_exact_and_a_flush_interval_is_lost_at_most(
    victim: str, seed: int, tmp_path: Path, run: Run
) -> None:
    spool = tmp_path / "spool"
    at_s = random.Random(f"{victim}{seed}").uniform(0.5, 4.0)
    with start(run, spool) as session:
        begin(run, session)
        pass_time(at_s)
        session.kill(victim)
        run_dir = session.run_dir
        done = session.finish(timeout_s=120.0)
        processes = session.note_processes()
    assert done.code in (0, 1), done.err
    assert not any(map(is_alive, processes.values()))
    assert not [path for path in memory_folders() if path.name.endswith(run_dir.name)]
    check_balance(done.episodes, run_dir)
    check_verifies(*done.episodes)
    frame_s = 0.05
    for episode in done.episodes:
        for record in read_manifest(episode).streams:
            dropped = record.total.dropped
            if victim == "thinker":
                assert not dropped, f"{record.info.name}: {dropped}"
            not_on_disk = sum(dropped.get("synchronizer", {}).values())
            assert not_on_disk <= (FLUSH_S + frame_s) * record.info.rate_hz


def test_a_killed_supervisor_leaves_processes_that_the_next_start_ends(tmp_path: Path, run: Run) -> None:
    spool = tmp_path / "spool"
    with start(run, spool) as session:
        begin(run, session)
        pass_time(2.0)
        run_dir = session.run_dir
        os.kill(session.pid, signal.SIGKILL)
        processes = session.note_processes()
        until(
            lambda: not any(is_alive(processes[name]) for name in run.streams),
            "the sources' end",
            WALL_S + 30,
        )
        for path in (run.folder / GO_FILE, *run.folder.glob("*.ready")):
            path.unlink()
        with start(run, spool) as again:
            begin(run, again)
            pass_time(1.0)
            done = again.finish(signal.SIGINT, timeout_s=120.0)
    assert done.code in (0, 1), done.err
    first = sorted((spool / "sealed").iterdir())[0]
    assert not read_manifest(first).truncated
    check_balance([first], run_dir)
