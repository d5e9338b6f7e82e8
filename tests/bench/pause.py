"""From the press to the last personal byte: pauses at load, the wall clock set and slewed in a quarter of them.

    python tests/bench/pause.py [--pauses 200] [--multiple 4] [--every 0.6] [--json]

The reference rig ``opaque`` through ``sensorium record`` with its cameras and microphone personal. Presses are made
in turn by command (until its message is sent), by a row in the consent log (until the call that writes it begins)
and by the switch file (until it is written); each counts from the moment before. The delay of a press is that of
the latest personal capture between it and its release which lies in a file of the spool. In every fourth pause the
wall clock of all processes of the agent, not the machine's, is set by up to 30 s either way or slewed by 100 ms.
"""

import argparse
import json
import os
import random
import shutil
import struct
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from subprocess import DEVNULL, Popen
from typing import Any

import numpy as np
import yaml
from rigs.loads import ENTRY_POINT, RIGS, write_pools
from rigs.machine import machine, working_folder
from rigs.producers import CLOCK, Run, end_process, environment, prepare, start_all, wait_until_ready

from sensorium.agent.session.control import ask_agent
from sensorium.sync.consent.grants import ConsentGrant, Evidence, LawfulBasis, Purpose, Scope
from sensorium.sync.consent.store import ConsentStore
from sensorium.sync.episode.reader import Episode
from sensorium.sync.episode.ulid import new_ulid
from sensorium.timebase import SECOND_NS

GOAL_NS = SECOND_NS // 20
FRAME_HZ = 30
KINDS = ("command", "log", "switch")
HOUR_NS = 3600 * SECOND_NS
PAUSED_NS = SECOND_NS // 5
SEED = 11
SEALING_S, SEALING_S_PER_PAUSE = 300, 20
"""Two episodes a pause are sealed behind the recording; a busy machine takes its time for that."""


@dataclass(frozen=True, slots=True)
class Press:
    """One pause, host ns; ``clock`` says what was done to the wall clock."""

    kind: str
    clock: str
    pressed_ns: int
    released_ns: int


class Switches:
    """Presses and releases in every way, and moves the wall clock of the agent."""

    def __init__(self, folder: Path, spool: Path) -> None:
        self._spool = spool
        self.switch = folder / "switch"
        self.switch.write_text("0")
        self.wall = folder / "wall"
        self._set_wall(0)
        self._rng = random.Random(SEED)
        self._store = ConsentStore(spool / "consent")

    def grant(self) -> None:
        now_ns = CLOCK.utc_ns()
        grant = ConsentGrant(
            id=new_ulid(now_ns),
            subject="site:bench",
            controller="bench",
            lawful_basis=LawfulBasis.CONSENT,
            purposes=(Purpose.RECORD,),
            scope=Scope(("*",)),
            valid_from=now_ns - HOUR_NS,
            valid_until=now_ns + HOUR_NS,
            evidence=Evidence("configuration"),
        )
        self._store.grant(grant)

    def pause(self, number: int) -> Press:
        kind = KINDS[number % len(KINDS)]
        clock = self._move_clock(number)
        pressed_ns = CLOCK.now_ns()
        self._press(kind)
        CLOCK.sleep_until(CLOCK.now_ns() + PAUSED_NS)
        released_ns = CLOCK.now_ns()
        self._release(kind)
        return Press(kind, clock, pressed_ns, released_ns)

    def _press(self, kind: str) -> None:
        if kind == "command":
            ask_agent(self._spool, "pause", source="bench")
        elif kind == "log":
            self._store.pause(source="bench")
        else:
            self.switch.write_text("1")

    def _release(self, kind: str) -> None:
        if kind == "command":
            ask_agent(self._spool, "resume", source="bench")
        elif kind == "log":
            self._store.resume(source="bench")
        else:
            self.switch.write_text("0")

    def _move_clock(self, number: int) -> str:
        if number % 4 != 3:
            return ""
        if number % 8 == 3:
            by_ns = self._rng.randrange(-30, 31) * SECOND_NS
            self._set_wall(by_ns)
            return f"set by {by_ns / 1e9:.0f} s"
        for step in range(10):
            self._set_wall(self._wall_ns + SECOND_NS // 100)
            CLOCK.sleep_until(CLOCK.now_ns() + SECOND_NS // 200 * (step >= 0))
        return "slewed by 100 ms"

    def _set_wall(self, off_ns: int) -> None:
        self._wall_ns = off_ns
        with self.wall.open("r+b" if self.wall.exists() else "wb") as file:
            file.write(struct.pack("<q", off_ns))


def rig_document(run: Run, switches: Switches) -> dict[str, Any]:
    """Return the rig file: what is seen or heard is personal."""
    devices = {
        load.name: {"driver": ENTRY_POINT, **run.options, "personal": load.kind in ("jpeg", "pcm")}
        for load in RIGS[run.rig]
    }
    return {"rig": "pauses", "devices": devices, "pause": {"file": str(switches.switch)}, "upload": False}


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the bench's document."""
    with working_folder() as folder, ExitStack() as stack:
        wall_s = 10 + arguments.pauses * (arguments.every + PAUSED_NS / 1e9 + 0.2)
        run = Run("opaque", arguments.multiple, wall_s * arguments.multiple, folder / "run")
        write_pools(folder / "pools" / run.rig, run.rig)
        prepare(run, folder / "pools")
        os.environ["SENSORIUM_HOME"] = str(folder / "home")
        spool = folder / "spool"
        switches = Switches(folder, spool)
        switches.grant()
        agent = stack.enter_context(_agent(run, spool, switches))
        stack.callback(end_process, agent)
        wait_until_ready(run, run.streams, [agent])
        start_all(run)
        CLOCK.sleep_until(CLOCK.now_ns() + 3 * SECOND_NS)
        presses = list(_press_all(switches, arguments))
        agent.terminate()
        agent.wait(SEALING_S + SEALING_S_PER_PAUSE * arguments.pauses)
        return {
            **judged(spool, presses, arguments.multiple),
            "multiple": arguments.multiple,
            "machine": machine(),
        }


def _agent(run: Run, spool: Path, switches: Switches) -> "Popen[bytes]":
    found = environment(run.folder)
    shutil.copy(Path(__file__).parent / "rigs/sitecustomize_clock.py", run.folder / "site/sitecustomize.py")
    rig = run.folder / "rig.yaml"
    rig.write_text(yaml.safe_dump(rig_document(run, switches)))
    log = (run.folder / "record.log").open("wb")
    return Popen(
        [sys.executable, "-m", "sensorium.agent.cli", "record", str(rig), "--spool", str(spool), "--json"],
        stdin=DEVNULL,
        stdout=log,
        stderr=log,
        env={**found, "BENCH_WALL_CLOCK": str(switches.wall)},
    )


def _press_all(switches: Switches, arguments: argparse.Namespace) -> Iterator[Press]:
    for number in range(arguments.pauses):
        yield switches.pause(number)
        CLOCK.sleep_until(CLOCK.now_ns() + int(arguments.every * SECOND_NS))


def judged(spool: Path, presses: Sequence[Press], multiple: int) -> dict[str, Any]:
    """Return the delays of the presses by what the spool holds."""
    captures = np.sort(np.fromiter(_personal_captures(spool), np.int64))
    delays = [_delay_ns(captures, press) for press in presses]
    bound_ns = GOAL_NS + SECOND_NS // (FRAME_HZ * multiple)
    moved = [delay for delay, press in zip(delays, presses, strict=True) if press.clock]
    between = [
        int(((captures > a.released_ns) & (captures < b.pressed_ns)).sum()) for a, b in _pairs(presses)
    ]
    return {
        "pauses": len(presses),
        "with_a_moved_clock": len(moved),
        "delay_p50_ms": float(np.percentile(delays, 50)) / 1e6,
        "delay_p99_ms": float(np.percentile(delays, 99)) / 1e6,
        "delay_max_ms": max(delays) / 1e6,
        "delay_max_with_a_moved_clock_ms": max(moved, default=0) / 1e6,
        "goal_ms": bound_ns / 1e6,
        "personal_frames": len(captures),
        "gaps_without_a_personal_frame": between.count(0),
        "misses": [
            f"{press.kind} {press.clock}: {delay / 1e6:.1f} ms"
            for delay, press in zip(delays, presses, strict=True)
            if delay > bound_ns
        ],
    }


def _pairs(presses: Sequence[Press]) -> Iterator[tuple[Press, Press]]:
    return pairwise(presses)


def _delay_ns(captures: Any, press: Press) -> int:
    during = captures[(captures > press.pressed_ns) & (captures < press.released_ns)]
    return int(during.max()) - press.pressed_ns if during.size else 0


def _personal_captures(spool: Path) -> Iterator[int]:
    for folder in sorted((spool / "sealed").iterdir()):
        with Episode(folder) as episode:
            personal = {name for name, info in episode.streams.items() if info.is_personal}
            for stream, row in episode.stamps():
                if stream in personal:
                    yield int(row.stamped.capture_ns[-1])


def main(arguments: Sequence[str]) -> int:
    """Run it; exit code 1 if the 99th percentile is over the goal."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pauses", type=int, default=200)
    parser.add_argument("--multiple", type=int, default=4)
    parser.add_argument("--every", type=float, default=0.6, help="seconds from a release to the next press")
    parser.add_argument("--json", action="store_true")
    found = measure(parser.parse_args(arguments))
    sys.stdout.write(json.dumps(found, indent=None if "--json" in arguments else 1) + "\n")
    return 0 if found["delay_p99_ms"] <= found["goal_ms"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
