"""Eight producers that start together: the barrier, their own accounts, and the environment that finds them."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL, Popen

from rigs.loads import RIGS, entry_point_folder
from rigs.schedule import give_start
from sensorium.timebase import SECOND_NS, HostClock

BENCH = Path(__file__).resolve().parents[1]
SOURCES = BENCH.parents[1] / "src"
_POLL_NS = SECOND_NS // 50
_LEAD_NS = SECOND_NS // 2
"""From the word go to the first frame: everybody polls for it every 20 ms."""

START_UP_NS = 60 * SECOND_NS
CLOCK = HostClock()


class BenchError(Exception):
    """A run that cannot be measured; the message says which and why."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a rig.

    Attributes:
        folder: Of this run alone: pools (links to the common ones), barrier, accounts, logs.
        seconds: Of the rig's own time; ``wall_s`` is what it takes.
    """

    rig: str
    multiple: int
    seconds: float
    folder: Path

    @property
    def wall_s(self) -> float:
        return self.seconds / self.multiple

    @property
    def streams(self) -> tuple[str, ...]:
        return tuple(load.name for load in RIGS[self.rig])

    @property
    def options(self) -> dict[str, object]:
        """Options of every driver of the rig."""
        return {
            "rig": self.rig,
            "folder": str(self.folder),
            "multiple": self.multiple,
            "seconds": self.seconds,
            "personal": False,
        }


def prepare(run: Run, pools: Path) -> None:
    """Make the run's folder, with the payload pools in it."""
    run.folder.mkdir(parents=True)
    for path in (pools / run.rig).iterdir():
        (run.folder / path.name).symlink_to(path)


def environment(folder: Path) -> dict[str, str]:
    """Return the environment in which the bench's driver is known like an installed package's."""
    site = folder / "site"
    if not site.exists():
        entry_point_folder(site)
    found = environment_of_sources()
    return {**found, "PYTHONPATH": os.pathsep.join([str(site), str(BENCH), found["PYTHONPATH"]])}


def environment_of_sources() -> dict[str, str]:
    """Return the environment in which this tree is imported, whatever is installed."""
    paths = [str(SOURCES), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def wait_until_ready(run: Run, names: Sequence[str], processes: Sequence[Popen[bytes]]) -> None:
    """Return when all have said so.

    Raises:
        BenchError: If one ended instead, or after a minute.
    """
    deadline_ns = CLOCK.now_ns() + START_UP_NS
    while missing := [name for name in names if not (run.folder / f"{name}.ready").exists()]:
        ended = [process for process in processes if process.poll() is not None]
        if ended or CLOCK.now_ns() > deadline_ns:
            how = f"a process ended with code {ended[0].returncode}" if ended else "a minute is over"
            raise BenchError(f"{', '.join(missing)} not ready to go: {how}; logs are in {run.folder}")
        CLOCK.sleep_until(CLOCK.now_ns() + _POLL_NS)


def start_all(run: Run) -> int:
    """Let all producers go; return the host time of the first frame."""
    start_ns = CLOCK.now_ns() + _LEAD_NS
    give_start(run.folder, start_ns)
    return start_ns


def wait_for(
    processes: Sequence[Popen[bytes]], patience_s: float, what: str, *, may_fail: bool = False
) -> None:
    """Return when all have ended.

    Raises:
        BenchError: If one failed, or is still there after ``patience_s``.
    """
    deadline_ns = CLOCK.now_ns() + round(patience_s * SECOND_NS)
    while None in (codes := [process.poll() for process in processes]):
        if any(codes) and not may_fail:
            raise BenchError(f"{what}: a process failed with code {next(filter(None, codes))}")
        if CLOCK.now_ns() > deadline_ns:
            raise BenchError(f"{what} did not end within {patience_s:.0f} s")
        CLOCK.sleep_until(CLOCK.now_ns() + _POLL_NS)


def spawn_module(
    stack: ExitStack,
    run: Run,
    module: str,
    name: str,
    spec: Mapping[str, object],
    more: Mapping[str, str] = {},
) -> Popen[bytes]:
    """Start ``python -m module NAME.spec.json``; it is killed when the stack closes."""
    path = run.folder / f"{name}.spec.json"
    path.write_text(json.dumps(spec))
    log = stack.enter_context((run.folder / f"{name}.log").open("wb"))
    process = Popen(
        [sys.executable, "-m", module, str(path)],
        stdin=DEVNULL,
        stdout=log,
        stderr=log,
        env={**environment(run.folder), **more},
    )
    stack.callback(end_process, process)
    return process


def end_process(process: Popen[bytes]) -> None:
    """Kill a process that has not ended, and take note of its end."""
    if process.poll() is None:
        process.kill()
    process.wait()


def accounts_of(run: Run) -> dict[str, dict[str, float]]:
    """Return what each producer itself says it had."""
    return {
        name: json.loads((run.folder / f"{name}.account.json").read_text())
        for name in run.streams
        if (run.folder / f"{name}.account.json").exists()
    }
