"""Records a short simulated rig again and again while this machine is made to suffer; looks at how it ends.

Whatever happens to a recording, `sensorium record` must say it: an exit code other than 0 comes with a sentence
on stderr and in the document's `problems`, 0 with an episode. Each run has a seed, which decides how many
processes burn the cores, which child is stopped, killed or ended when, and when the agent itself is told to end.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sensorium.agent.session.control import AgentNote
from sensorium.timebase import SECOND_NS, HostClock

sys.path.insert(0, str(Path(__file__).parents[1]))
from sessions import SMALL_RIG, command_line, grant, write_rig

CLOCK = HostClock()
MAX_S = 150.0
_BURN = "import sys\nn = 0\nwhile True: n += 1"
AGENT = "agent"


@dataclass(frozen=True, slots=True)
class Blow:
    """What hits one process: ``target`` is a child's name or the agent itself."""

    after_s: float
    target: str
    number: int
    resumes_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What one run does."""

    seed: int
    seconds: float | None
    burners: int
    source_s: float | None
    blows: tuple[Blow, ...]


@dataclass(frozen=True, slots=True)
class Ending:
    """How a recording ended, and what is wrong with that; "" = it said what there was to say."""

    seed: int
    code: int
    episodes: int
    said: str
    complaint: str
    wall_s: float


def plan_of(seed: int) -> Plan:
    """Return what the seed decides."""
    dice = random.Random(seed)
    blows: list[Blow] = []
    names = [*SMALL_RIG, "synchronizer", "thinker"]
    kind = dice.choice(("none", "none", "stop", "stop", "kill", "end_child", "end_agent"))
    after_s = dice.uniform(0.05, 5.0)
    if kind == "stop":
        for _ in range(dice.randint(1, 3)):
            pause_s = dice.uniform(0.2, 4.0)
            blows.append(Blow(dice.uniform(0.05, 5.0), dice.choice(names), signal.SIGSTOP, pause_s))
    elif kind == "kill":
        blows.append(Blow(after_s, dice.choice(names), signal.SIGKILL))
    elif kind == "end_child":
        number = dice.choice((signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE))
        blows.append(Blow(after_s, dice.choice(names), number))
    elif kind == "end_agent":
        number = dice.choice((signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGPIPE))
        blows.append(Blow(after_s, AGENT, number))
    is_finite = dice.random() < 0.3
    return Plan(
        seed,
        None if is_finite else dice.choice((0.1, 0.5, 1.0, 3.0)),
        dice.choice((0, 2, 4, 8)),
        dice.choice((0.2, 1.0, 3.0)) if is_finite else None,
        tuple(sorted(blows, key=lambda blow: blow.after_s)),
    )


def run(plan: Plan, folder: Path) -> Ending:
    """Do one run in ``folder``; return how it ended."""
    devices = {name: dict(options) for name, options in SMALL_RIG.items()}
    if plan.source_s is not None:
        devices = {name: {**options, "seconds": plan.source_s} for name, options in devices.items()}
    rig = write_rig(folder, devices)
    spool = folder / "spool"
    grant(spool)
    begun_ns = CLOCK.now_ns()
    burning = [subprocess.Popen([sys.executable, "-c", _BURN]) for _ in range(plan.burners)]
    try:
        wanted = ["record", rig, "--json"]
        if plan.seconds is not None:
            wanted += ["--seconds", plan.seconds]
        agent = subprocess.Popen(
            command_line(*wanted),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            _strike(plan, agent, spool, begun_ns)
            out, err = agent.communicate(timeout=MAX_S)
        except subprocess.TimeoutExpired:
            agent.kill()
            out, err = agent.communicate()
            return Ending(plan.seed, agent.returncode, 0, err, f"no end within {MAX_S:.0f} s", MAX_S)
    finally:
        for process in burning:
            process.kill()
            process.wait()
        _sweep(spool)
    return judge(plan.seed, agent.returncode, out, err, (CLOCK.now_ns() - begun_ns) / SECOND_NS)


def _strike(plan: Plan, agent: "subprocess.Popen[str]", spool: Path, begun_ns: int) -> None:
    due = [(begun_ns + int(blow.after_s * SECOND_NS), blow.target, blow.number) for blow in plan.blows]
    for blow in plan.blows:
        if blow.resumes_after_s is not None:
            back_ns = begun_ns + int((blow.after_s + blow.resumes_after_s) * SECOND_NS)
            due.append((back_ns, blow.target, signal.SIGCONT))
    for at_ns, target, number in sorted(due):
        while CLOCK.now_ns() < at_ns and agent.poll() is None:
            CLOCK.sleep_until(min(at_ns, CLOCK.now_ns() + SECOND_NS // 50))
        if agent.poll() is not None:
            return
        if target == AGENT:
            agent.send_signal(number)
            continue
        note = AgentNote.load(spool)
        if note is not None and target in note.processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(note.processes[target], number)


def _sweep(spool: Path) -> None:
    """End what an agent that died left running."""
    note = AgentNote.load(spool)
    for pid in note.processes.values() if note is not None else ():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
            os.kill(pid, signal.SIGKILL)


def judge(seed: int, code: int, out: str, err: str, wall_s: float) -> Ending:
    """Return what is wrong with how a recording ended."""
    try:
        document: dict[str, Any] = json.loads(out) if out.strip() else {}
    except ValueError:
        return Ending(seed, code, 0, err, f"the document is no JSON: {out[:200]!r}", wall_s)
    episodes = [path for path in document.get("episodes", ()) if Path(path).is_dir()]
    told = [*document.get("problems", ()), *([document["error"]] if "error" in document else ())]
    complaint = ""
    if code == 0 and not episodes:
        complaint = "exit 0 without an episode"
    elif code != 0 and not err.strip():
        complaint = f"exit {code} with nothing on stderr"
    elif code != 0 and not told:
        complaint = f"exit {code} with nothing among the problems"
    elif "Traceback" in err or "internal error" in err:
        complaint = "an internal error"
    said = "; ".join(map(str, told)) or err.strip()
    return Ending(seed, code, len(episodes), said, complaint, wall_s)


def main(arguments: Sequence[str]) -> int:
    """Print how each run ended; 0 = every one said what there was to say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    endings: list[Ending] = []
    for seed in range(options.first_seed, options.first_seed + options.runs):
        folder = Path(tempfile.mkdtemp(prefix="sensorium-load-"))
        plan = plan_of(seed)
        ending = run(plan, folder)
        endings.append(ending)
        if not options.json:
            print(
                f"{seed:5d} exit {ending.code:4d} episodes {ending.episodes} {ending.wall_s:5.1f} s ", end=""
            )
            print(f"{ending.complaint or 'ok'} | {ending.said[:160]} | {plan}", flush=True)
        if ending.complaint:
            print(f"      kept: {folder}", file=sys.stderr, flush=True)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    if options.json:
        print(json.dumps([asdict(ending) for ending in endings], indent=2))
    else:
        print(Counter(ending.complaint or "ok" for ending in endings))
    return 1 if any(ending.complaint for ending in endings) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
