"""Kills at every call that changes the disk of evict, withdraw, delete and upload: whoever comes next ends it.

In this process each call is counted, and none changes anything any more after the chosen one; with ``-m slow``
the commands themselves are killed by strace.
"""

import os
import random
import re
import shutil
import signal
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from dying_disk import dying_after
from fragile_store import PowerCut
from sessions import command_line
from upload_samples import CAPTURED, begin_spool, grant_for, seal_episode

from sensorium.agent.commands.verifying import spool_gaps
from sensorium.sync.consent.store import ConsentStore
from sensorium.sync.episode.files import REPORT_FILE
from sensorium.sync.episode.spool import Spool
from sensorium.sync.episode.verify import examine
from sensorium.sync.erasure import erase_all_forgotten
from sensorium.sync.trust.keys import Role
from sensorium.sync.trust.store import trusted_keys
from sensorium.timebase import SECOND_NS, HostClock
from sensorium.uploader.eviction import delete, evict_oldest, finish
from sensorium.uploader.receipt import State, upload_state
from sensorium.uploader.service import UploadService
from sensorium.uploader.stores.directory import DirectoryStore

IDS = ("01J00000000000000000000001", "01J00000000000000000000002")
STREAMS = ("cam", "mic", "data")
CALLS = ("fsync", "fdatasync", "rename", "unlink", "link", "mkdir", "rmdir", "ftruncate")
_MEMORY = Path("/dev/shm")
_LINE = re.compile(r"^(\d+) +(\w+)\(")
needs_strace = pytest.mark.skipif(
    shutil.which("strace") is None or os.geteuid() != 0,
    reason="killing at system calls needs strace and root",
)


class Bench:
    """Two episodes of two subjects (``cam`` and ``mic``), with or without their copies in a store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.spool = Spool(folder / "spool")
        self.clock = HostClock()
        self.consent = ConsentStore(self.spool.root / "consent", self.clock)
        self.store = DirectoryStore(folder / "central")

    def fill(self) -> None:
        begin_spool(self.spool.root)
        now_ns = self.clock.utc_ns()
        whole = grant_for(
            1, captured=(CAPTURED[0] - SECOND_NS, CAPTURED[1] + SECOND_NS), valid_around_ns=now_ns
        )
        for number, stream in enumerate(("cam", "mic"), 1):
            scope = replace(whole.scope, streams=(stream,))
            self.consent.grant(replace(whole, id=grant_for(number).id, subject=f"sub:{stream}", scope=scope))
        for name in IDS:
            folder = seal_episode(self.spool, name, seed=IDS.index(name))
            (folder / REPORT_FILE).write_bytes(b"a picture: " + needle(name, "cam"))

    def upload(self) -> None:
        service = UploadService(self.spool, self.store, self.consent, self.clock, random.Random(1))
        while service.step() is not None:
            pass

    def withdraw(self) -> None:
        self.consent.withdraw_subject("sub:cam")
        erase_all_forgotten(self.spool, self.consent.poll(), self.clock.utc_ns())

    def evict(self) -> None:
        evict_oldest(self.spool, self.store, trusted_keys(Role.DEVICE))

    def delete(self) -> None:
        folders = (self.spool.sealed_folder(IDS[0]), self.spool.gone_dir / IDS[0])
        delete(self.spool, next(path for path in folders if path.exists()), "a test run", self.clock.utc_ns())

    def holders(self, name: str, stream: str) -> int:
        """Return how many files of spool and store hold what a stream of an episode recorded."""
        paths = [path for root in (self.spool.root, self.store.root) for path in root.rglob("*")]
        return sum(needle(name, stream) in path.read_bytes() for path in paths if path.is_file())


def needle(name: str, stream: str) -> bytes:
    """Return bytes that only this stream of this episode has."""
    rng = random.Random(IDS.index(name))  # as the episode was made
    sizes = {"cam": 2000, "mic": 992, "data": 2992}
    made = {each: rng.randbytes(size) for each, size in sizes.items()}
    return made[stream][100:148]


def check_evicted(bench: Bench) -> None:
    finish(bench.spool)
    for name in IDS:
        is_here = bench.spool.sealed_folder(name).exists()
        assert bench.holders(name, "mic") == 1 + is_here
        assert examine(bench.store.root / "episodes" / name).is_proven
    bench.evict()
    assert bench.spool.sealed_folders() == []
    assert spool_gaps(bench.spool) == []


def check_withdrawn(bench: Bench) -> None:
    bench.withdraw()  # whoever was cut off says it again; if it stood in the log, that is harmless
    bench.upload()
    for name in IDS:
        assert bench.holders(name, "cam") == 0
        assert bench.holders(name, "mic") == bench.holders(name, "data") == 2
        assert examine(bench.spool.sealed_folder(name)).is_proven
        assert examine(bench.store.root / "episodes" / name).is_proven


def check_deleted(bench: Bench) -> None:
    bench.delete()
    bench.upload()
    assert [bench.holders(IDS[0], stream) for stream in STREAMS] == [0, 0, 0]
    assert bench.holders(IDS[1], "cam") == 3  # a picture of it, too
    assert spool_gaps(bench.spool) == []


def check_uploaded(bench: Bench) -> None:
    for name in IDS:
        assert bench.holders(name, "mic") >= 1
    bench.upload()
    for name in IDS:
        assert upload_state(bench.spool.sealed_folder(name)) is State.VERIFIED
        assert examine(bench.store.root / "episodes" / name).is_proven
    partial = bench.store.root / ".partial"
    assert not [path for path in partial.rglob("*") if needle(IDS[0], "cam") in path.read_bytes()]


@dataclass(frozen=True, slots=True)
class Act:
    """What is cut off: as it stands before, in this process, as a command, and what must be so in the end."""

    prepare: tuple[Callable[[Bench], None], ...]
    act: Callable[[Bench], None]
    command: Callable[[Bench], list[str]]
    check: Callable[[Bench], None]


def _upload_command(bench: Bench) -> list[str]:
    return command_line("upload", "--once", "--store", bench.store.url, "--spool", bench.spool.root)


ACTS = {
    "upload": Act((), Bench.upload, _upload_command, check_uploaded),
    "evict": Act(
        (Bench.upload,),
        Bench.evict,
        lambda b: command_line("episodes", "evict", "--store", b.store.url, "--spool", b.spool.root),
        check_evicted,
    ),
    "withdraw": Act(
        (Bench.upload,),
        Bench.withdraw,
        lambda b: command_line("consent", "withdraw", "sub:cam", "--spool", b.spool.root),
        check_withdrawn,
    ),
    "withdraw in the store": Act(
        (Bench.upload, Bench.withdraw), Bench.upload, _upload_command, check_withdrawn
    ),
    "delete": Act(
        (Bench.upload,),
        Bench.delete,
        lambda b: command_line(
            "episodes", "delete", IDS[0], "--reason", "a test run", "--spool", b.spool.root
        ),
        check_deleted,
    ),
    "delete in the store": Act((Bench.upload, Bench.delete), Bench.upload, _upload_command, check_deleted),
}


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in memory, with keys of its own."""
    with tempfile.TemporaryDirectory(dir=_MEMORY if _MEMORY.is_dir() else None) as made:
        monkeypatch.setenv("SENSORIUM_HOME", f"{made}/now/home")
        yield Path(made)


def prepared(folder: Path, what: Act) -> Callable[[], Bench]:
    """Return what makes everything as it was before the act, at the same place, again and again."""
    now, before = folder / "now", folder / "before"
    now.mkdir()
    bench = Bench(now)
    bench.fill()
    for step in what.prepare:
        step(bench)
    now.rename(before)

    def renewed() -> Bench:
        shutil.rmtree(now, ignore_errors=True)
        shutil.copytree(before, now)
        return Bench(now)

    return renewed


@pytest.mark.parametrize("name", ACTS)
@pytest.mark.parametrize("most", [3, pytest.param(1000, marks=pytest.mark.slow)])
def test_cut_off_at_a_change_of_the_disk_it_is_ended_by_whoever_comes_next(
    name: str, most: int, folder: Path
) -> None:
    renewed = prepared(folder, ACTS[name])
    bench = renewed()
    with dying_after(None) as made:
        ACTS[name].act(bench)
    points: Sequence[int] = range(made() + 1)
    if most < len(points):
        points = sorted(random.Random(name).sample(points, most))
    for at in points:
        bench = renewed()
        with suppress(PowerCut), dying_after(at):
            ACTS[name].act(bench)
        ACTS[name].check(Bench(bench.folder))
    print(f"{name}: {len(points)} points of {made() + 1}")
    assert made() > 5


def traced(bench: Bench, what: Act, log: Path, *options: str) -> int:
    command = ["strace", "-f", "-qq", "-o", str(log), "-e", f"trace={','.join(CALLS)}", *options]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run([*command, *what.command(bench)], env=environment, capture_output=True).returncode


def count_calls(log: Path) -> dict[str, int]:
    """Return how often each call is made by the thread that makes it most often."""
    found: Counter[tuple[str, str]] = Counter()
    for line in log.read_text().splitlines():
        if made := _LINE.match(line):
            found[made[2], made[1]] += 1
    return {call: max((n for (name, _), n in found.items() if name == call), default=0) for call in CALLS}


@needs_strace
@pytest.mark.slow
@pytest.mark.parametrize("name", ACTS)
def test_the_command_killed_at_any_call_that_changes_the_disk(name: str, folder: Path) -> None:
    what, log = ACTS[name], folder / "calls"
    renewed = prepared(folder, what)
    assert traced(renewed(), what, log) in (0, 3)
    counts = count_calls(log)
    points = [(call, number) for call, most in counts.items() for number in range(1, most + 1)]
    for call, number in points:
        bench = renewed()
        code = traced(bench, what, log, "-e", f"inject={call}:signal=SIGKILL:when={number}")
        assert code in (-signal.SIGKILL, 128 + signal.SIGKILL, 0, 3), f"{call} {number}: {code}"
        what.check(Bench(bench.folder))
    print(f"{name}: {len(points)} points: {counts}")
    assert points
