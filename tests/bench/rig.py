"""The reference rigs at full speed through ``sensorium record``, beside the peers, in one run.

    python tests/bench/rig.py [--multiples 1,4,8,16] [--seconds 30] [--peers] [--json] [--rigs opaque,typed]
                              [--wall S | --minutes M] [--busy N] [--stall S] [--kill NAME] [--rounds N]
                              [--only-rigs]

``opaque`` is the 72 MB/s of specs/performance.md 2 (four cameras, clouds, IMU, force, audio) from eight driver
processes of a third party; ``typed`` has the same sensors with real Ouster packets, integers with a scale and
PCM. A multiple scales the rates; ``--seconds`` count the rig's own time, so 30 s at 4 x take 7.5 s.

Every producer has its frames by an absolute schedule, whoever fetches them: what a device's half-second buffer
cannot hold is lost there and says so. Figures per run: frames ``produced`` and ``lost``; ``cpu_s_per_gb`` from
the first frame to the last seal, of the agent's processes and of the driver hosts less what the same drivers
use on a bus that discards (peers: recorder, and publishers less the same), ``.._while_loaded`` the part until the
last frame was produced, that is without most of sealing; ``recorder_cpu_s_per_gb`` of the recorder's process;
``rss_mb``, the largest sum of the agent's processes (proportional set sizes, hosts apart); ``latency_p99_us``
from bus to recorder as the agent's status states it; ``stored_ratio``, payload bytes as the drivers made them by
bytes on disk. Start-up, report and hosts stand beside. After each run the sealed episode is read with the mcap
library, and decoded and compared with what the devices had: ``problems`` lists where the files, the manifest's
balance, the drivers' own accounts and their payloads disagree (exit code 1).
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from rigs import loads, peers, stalls
from rigs.machine import burnt_cores, machine, working_folder
from rigs.processes import Usage
from rigs.producers import BenchError, Run, environment_of_sources, prepare
from rigs.recording import discard_usages, record_run

Figures = dict[str, Any]
SPLIT_BYTES = 3 << 30
"""Longer runs are split into episodes of about this size, which are deleted as they seal."""

STALL_EVERY_S = 6.0
GENERATION_S = 20.0
ZMQ_WRITERS = ("foxglove_sdk", "mcap")
BLOCKS = {
    "imports": ("start_up.py", "--runs", "3"),
    "codecs": ("payload_codecs.py", "--rounds", "5"),
    "writer": ("writing.py", "--rounds", "3"),
    "bus": ("bus.py", "--rounds", "1", "--seconds", "1"),
}
"""Benches of this folder that are run along, with their options."""

BLOCK_S = 300.0


@dataclass(slots=True)
class Bench:
    """One call of the bench: where it works, and what has been measured so far."""

    folder: Path
    arguments: argparse.Namespace
    runs: int = 0
    discarded: dict[tuple[str, int], dict[str, Usage]] = field(default_factory=dict)
    stalls_s: list[float] = field(default_factory=list)

    def seconds(self, multiple: int) -> float:
        """Return the rig's own time that a run takes."""
        wall_s: float | None = self.arguments.wall
        return float(self.arguments.seconds) if wall_s is None else wall_s * multiple

    def new_run(self, rig: str, multiple: int, most_s: float = float("inf")) -> Run:
        """Return the next run with its folder made; it takes at most ``most_s``."""
        self.runs += 1
        seconds = min(self.seconds(multiple), most_s * multiple)
        run = Run(rig, multiple, seconds, self.folder / f"run{self.runs}")
        prepare(run, self.folder / "pools")
        return run

    def generation(self, rig: str, multiple: int) -> dict[str, Usage]:
        """Return what generating a load uses, measured once per rig and multiple, from a part of long runs."""
        key = rig, multiple
        if key not in self.discarded:
            part = self.new_run(rig, multiple, GENERATION_S)
            self.discarded[key] = discard_usages(part, self.seconds(multiple) / part.seconds)
        return self.discarded[key]

    def ours(self, rig: str, multiple: int) -> Figures:
        """Record a rig once."""
        run = self.new_run(rig, multiple)
        bytes_per_s = sum(load.bytes_per_s for load in loads.RIGS[rig]) * multiple
        is_long = run.wall_s * bytes_per_s > SPLIT_BYTES
        split_s = SPLIT_BYTES / bytes_per_s if is_long else None
        with ExitStack() as stack:
            spool = run.folder / "spool"
            disk = None
            if self.arguments.stall:
                disk = stack.enter_context(
                    stalls.stalling_disk(run.folder, self.arguments.stall, STALL_EVERY_S)
                )
                spool = disk.folder / "spool"
            found = record_run(run, spool, split_s, self.generation(rig, multiple), self.arguments.kill)
        if disk is not None:
            found["stalls_s"] = disk.stalls_s
        return found

    def peer(self, name: str, multiple: int) -> Figures:
        """Record the opaque rig once with a peer."""
        if name in ZMQ_WRITERS:
            return peers.zmq_run(self.new_run("opaque", multiple), name, self.generation("opaque", multiple))
        program = peers.compile_publisher(self.folder)
        key = name, multiple
        if key not in self.discarded:
            part = self.new_run("opaque", multiple, GENERATION_S)
            share = self.seconds(multiple) / part.seconds
            self.discarded[key] = peers.ros_discard_usages(part, program, share)
        return peers.ros_run(self.new_run("opaque", multiple), program, self.discarded[key])


def measure(arguments: argparse.Namespace) -> Figures:
    """Return the bench's document."""
    found: Figures = {"rigs": {}, "peers": {}, "machine": machine()}
    with working_folder() as folder, burnt_cores(arguments.busy):
        bench = Bench(folder, arguments)
        for rig in arguments.rigs:
            reason = loads.why_not(rig)
            if reason:
                found["rigs"][rig] = {"skipped": reason}
                continue
            loads.write_pools(folder / "pools" / rig, rig)
            has_peers = rig == "opaque" and arguments.peers
            ours, theirs = _measure_rig(bench, rig, _peer_names(found["peers"]) if has_peers else ())
            found["rigs"][rig] = ours
            found["peers"].update(theirs)
    found["highest_multiple_without_loss"] = {
        rig: max((int(each) for each, run in runs.items() if run.get("lost") == 0), default=None)
        for rig, runs in found["rigs"].items()
    }
    if not arguments.only_rigs:
        found.update({name: _block(name) for name in BLOCKS})
    found["machine"]["load_average_at_the_end"] = [round(each, 2) for each in os.getloadavg()]
    return found


def _peer_names(skipped: Figures) -> tuple[str, ...]:
    """Return the peers that can run here; those that cannot are noted with the reason."""
    reasons = {
        "rosbag_record": peers.why_not_ros(),
        **{name: peers.why_not_zmq(name) for name in ZMQ_WRITERS},
    }
    skipped.update({name: {"skipped": reason} for name, reason in reasons.items() if reason})
    return tuple(name for name, reason in reasons.items() if not reason)


def _measure_rig(bench: Bench, rig: str, peer_names: Sequence[str]) -> tuple[Figures, dict[str, Figures]]:
    """Measure ours and the peers in turn, multiple by multiple."""
    ours: Figures = {}
    theirs: dict[str, Figures] = {name: {} for name in peer_names}
    for multiple in bench.arguments.multiples:
        rounds: dict[str, list[Figures]] = {}
        for _ in range(bench.arguments.rounds):
            rounds.setdefault("", []).append(_told(f"{rig} {multiple} x", bench.ours, rig, multiple))
            for name in peer_names:
                rounds.setdefault(name, []).append(_told(f"{name} {multiple} x", bench.peer, name, multiple))
        ours[str(multiple)] = _joined(rounds[""])
        for name in peer_names:
            theirs[name][str(multiple)] = _joined(rounds[name])
    return ours, theirs


def _told(what: str, action: Callable[[str, int], Figures], name: str, multiple: int) -> Figures:
    print(f"{what} ...", file=sys.stderr, flush=True)
    try:
        found = action(name, multiple)
    except BenchError as err:
        found = {"failed": str(err), "problems": [str(err)]}
    keys = ("produced", "lost", "cpu_s_per_gb", "recorder_cpu_s_per_gb", "rss_mb", "mb_per_s", "failed")
    print(
        f"  {', '.join(f'{key} {found[key]}' for key in keys if key in found)}", file=sys.stderr, flush=True
    )
    for problem in found.get("problems", ()):
        print(f"  {problem}", file=sys.stderr, flush=True)
    return found


def _joined(rounds: Sequence[Figures]) -> Figures:
    """Return the round whose CPU is the median, with the most that was lost in any."""
    done = [each for each in rounds if "failed" not in each]
    if len(rounds) == 1 or not done:
        return dict(rounds[0])
    costs = [each["cpu_s_per_gb"] for each in done]
    middle = min(done, key=lambda each: abs(each["cpu_s_per_gb"] - median(costs)))
    problems = [problem for each in rounds for problem in each.get("problems", ())]
    more = {"cpu_s_per_gb_by_round": costs, "lost_by_round": [each["lost"] for each in done]}
    return {**middle, "lost": max(each["lost"] for each in done), "problems": problems, **more}


def _block(name: str) -> Figures:
    """Return what another bench of this folder prints, or why it cannot be had."""
    script, *options = BLOCKS[name]
    print(f"{name} ...", file=sys.stderr, flush=True)
    command = [sys.executable, str(Path(__file__).with_name(script)), *options, "--json"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=BLOCK_S, env=environment_of_sources()
        )
        found: Figures = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        return {"failed": f"{script} did not end within {BLOCK_S:.0f} s"}
    except (subprocess.CalledProcessError, ValueError) as err:
        said = getattr(err, "stderr", None) or str(err)
        return {"failed": f"{script}: {said.strip().splitlines()[-1]}"}
    return found


# -- printing


def print_table(found: Figures) -> None:
    """Print the figures of every run, ours and theirs."""
    print(
        f"{'run':24}{'MB/s':>7}{'frames':>9}{'lost':>8}{'CPU s/GB':>10}{'recorder':>10}{'MB':>7}{'stored':>8}"
    )
    for group in ("rigs", "peers"):
        for name, runs in found[group].items():
            if "skipped" in runs:
                print(f"{name:24} skipped: {runs['skipped']}")
                continue
            for multiple, run in runs.items():
                _print_run(f"{name} {multiple} x", run)
    print(f"machine: {json.dumps(found['machine'])}")
    print("GB of payload; CPU of the agent's processes and its hosts' share, load generation taken off")


def _print_run(name: str, run: Figures) -> None:
    if "failed" in run:
        print(f"{name:24} failed: {run['failed']}")
        return
    print(
        f"{name:24}{run['mb_per_s']:7.0f}{run['produced']:9}{run['lost']:8}{_number(run['cpu_s_per_gb'])}"
        f"{_number(run['recorder_cpu_s_per_gb'])}{run['rss_mb']:7.0f}{run['stored_ratio'] or 0:8.2f}"
    )
    known = {stream: us for stream, us in run["latency_p99_us"].items() if us is not None}
    if known:
        print(f"{'':24} p99 us: {', '.join(f'{stream} {us:.0f}' for stream, us in known.items())}")
    for line in (*run.get("problems", ()), *run.get("warnings", ())):
        print(f"{'':24} {line}")


def _number(value: float | None) -> str:
    return f"{'-':>10}" if value is None else f"{value:10.2f}"


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--multiples", type=_numbers, default=[1, 4, 8, 16], help="of the rig's rates")
    parser.add_argument("--seconds", type=float, default=30.0, help="of the rig's own time")
    parser.add_argument("--wall", type=float, help="seconds that each run takes, instead of --seconds")
    parser.add_argument("--minutes", type=float, help="--wall in minutes")
    parser.add_argument("--rigs", type=_rigs, default=list(loads.RIGS), help="opaque, typed")
    parser.add_argument("--peers", action="store_true", help="record the opaque rig with the peers as well")
    parser.add_argument("--rounds", type=int, default=1, help="runs of each, in turn; the median counts")
    parser.add_argument("--busy", type=int, default=0, help="cores to burn beside")
    parser.add_argument(
        "--stall", type=float, default=0.0, help="seconds that the disk stands still, every 6 s"
    )
    parser.add_argument(
        "--kill", default="", help="a process to kill on the way: synchronizer, thinker, cam0"
    )
    parser.add_argument("--only-rigs", action="store_true", help="no imports, codecs, writer and bus")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of the table")
    arguments = parser.parse_args(argv)
    if arguments.minutes is not None:
        arguments.wall = 60 * arguments.minutes
    if arguments.stall and (reason := stalls.why_not()):
        parser.error(f"--stall: {reason}")
    return arguments


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _rigs(text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in loads.RIGS]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown rig {unknown[0]!r}; known: {', '.join(loads.RIGS)}")
    return names


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; exit code 1 when accounts disagree or a run failed."""
    arguments = _parse(argv)
    found = measure(arguments)
    if arguments.json:
        json.dump(found, sys.stdout, indent=1)
        print()
    else:
        print_table(found)
    runs = [
        run
        for group in ("rigs", "peers")
        for each in found[group].values()
        if isinstance(each, dict)
        for run in each.values()
        if isinstance(run, dict)
    ]
    return 1 if any(run.get("problems") for run in runs) else 0


if __name__ == "__main__":
    sys.exit(main())
