"""Counters and declarations of a session lie in memory while it runs, and at home when it has ended."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sessions import CLOCK, until

from sensorium.agent.session.control import AgentNote
from sensorium.agent.session.memory_folder import (
    LINKED,
    bring_home,
    clear_up,
    make_memory_folder,
    memory_folders,
)
from sensorium.drivers.bus.counters import CounterFile, read_counters
from sensorium.sync.episode.spool import Spool


@pytest.fixture
def run_dir(tmp_path: Path) -> Iterator[Path]:
    """A session's folder, linked into memory, with one counter file."""
    folder = tmp_path / "spool" / "run" / f"test{os.getpid()}"
    folder.mkdir(parents=True)
    assert make_memory_folder(folder) == ""
    counters = CounterFile(folder / "counters" / "cam-1.counters", 1, ["cam"])
    counters.advance("cam", 7)
    counters.close()
    yield folder
    for left in in_memory(folder):
        shutil.rmtree(left)


def in_memory(run_dir: Path) -> list[Path]:
    return [folder for folder in memory_folders() if folder.name.endswith(run_dir.name)]


def let_age(run_dir: Path) -> None:
    for folder in in_memory(run_dir):
        os.utime(folder, (0, 0))


def produced(run_dir: Path) -> int:
    return read_counters(run_dir / "counters" / "cam-1.counters")[1]["cam"].next_seq


def test_a_running_sessions_counters_lie_in_memory_for_its_user_alone(run_dir: Path) -> None:
    (folder,) = in_memory(run_dir)
    assert (run_dir / "counters").resolve() == folder / "counters"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert produced(run_dir) == 7


def test_brought_home_they_say_the_same_and_nothing_is_left_in_memory(run_dir: Path) -> None:
    assert bring_home(run_dir) == ""
    assert in_memory(run_dir) == []
    assert not any((run_dir / name).is_symlink() for name in LINKED)
    assert produced(run_dir) == 7
    assert bring_home(run_dir) == ""
    assert produced(run_dir) == 7


def test_a_way_home_that_was_cut_short_is_gone_again(run_dir: Path) -> None:
    (run_dir / ".counters.home").mkdir()
    (run_dir / ".counters.home" / "half").write_text("")
    assert bring_home(run_dir) == ""
    assert [path.name for path in (run_dir / "counters").iterdir()] == ["cam-1.counters"]


def test_what_a_killed_session_left_is_brought_home_by_the_next_on_its_spool_which_says_so(
    run_dir: Path,
) -> None:
    (said,) = clear_up(run_dir.parent.parent, CLOCK)
    assert run_dir.name in said
    assert in_memory(run_dir) == []
    assert produced(run_dir) == 7
    assert clear_up(run_dir.parent.parent, CLOCK) == []


def test_a_session_on_another_spool_brings_it_home_once_it_is_old(run_dir: Path, tmp_path: Path) -> None:
    clear_up(tmp_path / "other", CLOCK)
    assert in_memory(run_dir)
    let_age(run_dir)
    assert clear_up(tmp_path / "other", CLOCK) == []
    assert in_memory(run_dir) == []
    assert produced(run_dir) == 7


def test_what_belongs_to_a_spool_that_somebody_owns_is_left_alone(run_dir: Path, tmp_path: Path) -> None:
    let_age(run_dir)
    with Spool(run_dir.parent.parent).lock():
        clear_up(tmp_path / "other", CLOCK)
    assert in_memory(run_dir)


def test_what_processes_without_their_agent_still_write_is_left_alone(run_dir: Path, tmp_path: Path) -> None:
    let_age(run_dir)
    waits = [sys.executable, "-c", "import sys; sys.stdin.read()", str(run_dir)]
    with subprocess.Popen(waits, stdin=subprocess.PIPE) as driver:
        note = AgentNote(0, run_dir.name, str(run_dir), "", {"cam": driver.pid})
        note.save(run_dir.parent.parent)
        until(lambda: note.alive(), "the driver's command line")
        clear_up(tmp_path / "other", CLOCK)
        assert in_memory(run_dir)
    clear_up(tmp_path / "other", CLOCK)
    assert in_memory(run_dir) == []


def test_with_its_spool_a_sessions_folder_in_memory_goes(run_dir: Path, tmp_path: Path) -> None:
    shutil.rmtree(run_dir.parent.parent)
    clear_up(tmp_path / "other", CLOCK)
    assert in_memory(run_dir) == []


def test_where_no_memory_can_be_had_the_files_lie_on_the_disk_and_it_is_said(tmp_path: Path) -> None:
    script = """
import json, sys
from pathlib import Path
from sensorium.agent.session import memory_folder
run_dir = Path(sys.argv[1])
print(json.dumps([memory_folder.make_memory_folder(run_dir), memory_folder.bring_home(run_dir)]))
"""
    if shutil.which("unshare") is None or os.geteuid() != 0:
        pytest.skip("hiding file systems needs unshare and root")
    hidden = 'mount --bind "$1" /dev/shm; shift; exec "$@"'
    done = subprocess.run(
        [
            "unshare",
            "-m",
            "sh",
            "-c",
            hidden,
            "sh",
            str(tmp_path),
            sys.executable,
            "-c",
            script,
            str(tmp_path),
        ],
        env={name: value for name, value in os.environ.items() if name != "XDG_RUNTIME_DIR"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"this machine does not let us hide a file system: {done.stderr.strip()[-200:]}")
    problem, at_home = json.loads(done.stdout)
    assert "a disk that stands still will hold drivers up" in problem
    assert at_home == ""
    assert not any((tmp_path / name).is_symlink() for name in LINKED)
