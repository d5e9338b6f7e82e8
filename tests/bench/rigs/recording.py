"""One run of a reference rig through ``sensorium record``, and what it cost."""

import json
import os
import shutil
import signal
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL, Popen
from threading import Event, Thread
from typing import Any

import yaml

from rigs.episodes import StreamCount, add_episode, disagreements, manifest_of
from rigs.exactness import differences
from rigs.loads import ENTRY_POINT, RIGS, Load
from rigs.processes import SHARED_MEMORY, Usage, Watch, peak_mb
from rigs.producers import (
    CLOCK,
    BenchError,
    Run,
    accounts_of,
    end_process,
    environment,
    spawn_module,
    start_all,
    wait_for,
    wait_until_ready,
)
from sensorium.agent.session.control import ask_agent
from sensorium.agent.session.memory_folder import memory_folders
from sensorium.errors import SensoriumError
from sensorium.timebase import SECOND_NS

RECORDER = "synchronizer"
GO, LOADED, SEALED = "go", "the last frame was produced", "all children are gone"
SEALING_PATIENCE_S = 180.0
_LOOK_NS = SECOND_NS


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a run left behind, before it is put into figures."""

    counts: dict[str, StreamCount]
    stored_bytes: int
    problems: list[str]
    latency_us: dict[str, float | None]
    episodes: int
    warnings: list[str]


def discard_usages(run: Run, times: float) -> dict[str, Usage]:
    """Run the rig's drivers on a bus that discards; return what each would use in a run so many times as long."""
    with ExitStack() as stack:
        producers = [
            spawn_module(
                stack,
                run,
                "rigs.discard",
                name,
                {"name": name, "options": run.options, "run_dir": str(run.folder)},
            )
            for name in run.streams
        ]
        watch = stack.enter_context(Watch(tuple(producer.pid for producer in producers)))
        wait_until_ready(run, run.streams, producers)
        watch.mark(GO)
        start_all(run)
        wait_for(producers, run.wall_s + 30, "discarding drivers")
    return {
        usage.name: usage.prolonged(GO, times) for usage in watch.usages.values() if usage.name in run.streams
    }


def record_run(
    run: Run, spool: Path, split_s: float | None, discarded: Mapping[str, Usage], victim: str = ""
) -> dict[str, Any]:
    """Record a rig once and return its figures (see ``rig.py``).

    Args:
        victim: Name of a process to kill at 40 % of the time, "" = none.
        spool: Where it is recorded; must not exist.
        split_s: Seal an episode so often, and delete it once its balance is taken.
        discarded: What the same drivers use when the bus discards.

    Raises:
        BenchError: If the agent did not start, or did not end.
    """
    rig = run.folder / "rig.yaml"
    rig.write_text(yaml.safe_dump(_rig_document(run, split_s)))
    load_average = os.getloadavg()[0]
    shared_before = set(SHARED_MEMORY.iterdir())
    with ExitStack() as stack:
        agent = _start_agent(stack, run, rig, spool)
        watch = stack.enter_context(Watch((agent.pid,)))
        reaper = stack.enter_context(Reaper(spool, run, split_s is not None, victim))
        wait_until_ready(run, run.streams, [agent])
        watch.mark(GO)
        latency_us = _watch_agent(run, agent, watch, spool, start_all(run), victim)
        wait_for([agent], SEALING_PATIENCE_S, "sealing and reporting", may_fail=True)
        orphans = [watch.usages[pid].name for pid in watch.alive()]
    recorded = reaper.finish(latency_us)
    recorded.problems.extend([f"{name} outlived the agent" for name in orphans])
    homes = memory_folders()
    of_others = {folder for folder, home in homes.items() if not home.is_relative_to(spool.resolve())}
    leftovers = set(SHARED_MEMORY.iterdir()) - shared_before - of_others
    recorded.problems.extend([f"{path} was left behind" for path in sorted(leftovers)])
    if agent.returncode not in (0, 1) and split_s is None:
        recorded.warnings.append(f"record ended with code {agent.returncode}: {_last_line(run)}")
    return {**figures(run, recorded, watch, agent.pid, discarded), "load_average": round(load_average, 2)}


def _rig_document(run: Run, split_s: float | None) -> dict[str, Any]:
    episode = {} if split_s is None else {"max_s": split_s}
    devices = {name: {"driver": ENTRY_POINT, **run.options} for name in run.streams}
    return {
        "rig": f"{run.rig}-{run.multiple}x",
        "devices": devices,
        "episode": {"reference": "cam0", **episode},
    }


def _start_agent(stack: ExitStack, run: Run, rig: Path, spool: Path) -> Popen[bytes]:
    out = stack.enter_context((run.folder / "record.json").open("wb"))
    log = stack.enter_context((run.folder / "record.log").open("wb"))
    agent = Popen(
        [sys.executable, "-m", "sensorium.agent.cli", "record", str(rig), "--spool", str(spool), "--json"],
        stdin=DEVNULL,
        stdout=out,
        stderr=log,
        env=environment(run.folder),
    )
    stack.callback(_end_agent, agent)
    return agent


def _end_agent(agent: Popen[bytes]) -> None:
    """End the agent if it has not: politely first, so that it ends its children."""
    for _ in range(2):
        if agent.poll() is None:
            agent.send_signal(signal.SIGTERM)
            CLOCK.sleep_until(CLOCK.now_ns() + SECOND_NS)
    end_process(agent)


def _last_line(run: Run) -> str:
    lines = (run.folder / "record.log").read_text(errors="replace").splitlines()
    return lines[-1] if lines else "nothing was said"


def _watch_agent(
    run: Run, agent: Popen[bytes], watch: Watch, spool: Path, start_ns: int, victim: str
) -> dict[str, float | None]:
    """Look on until the agent's children are gone; return the last latencies that it stated."""
    latency_us: dict[str, float | None] = dict.fromkeys(run.streams)
    end_ns = start_ns + round(run.wall_s * SECOND_NS)
    kill_ns = start_ns + round(0.4 * run.wall_s * SECOND_NS) if victim else end_ns
    while watch.has_children() and agent.poll() is None:
        if kill_ns < CLOCK.now_ns() < end_ns:
            watch.kill(victim)
            kill_ns = end_ns
        if CLOCK.now_ns() > end_ns + round(SEALING_PATIENCE_S * SECOND_NS):
            raise BenchError(f"{run.rig} at {run.multiple} x: the agent's processes do not end")
        if CLOCK.now_ns() < end_ns:
            latency_us.update(_stated_latencies(spool))
            last_look_ns = max(min(end_ns, kill_ns) - _LOOK_NS // 10, CLOCK.now_ns())
            CLOCK.sleep_until(min(last_look_ns, CLOCK.now_ns() + _LOOK_NS))
        elif LOADED not in watch.mark_looks:
            watch.mark(LOADED)
        CLOCK.sleep_until(CLOCK.now_ns() + _LOOK_NS // 20)
    watch.mark(SEALED)
    return latency_us


def _stated_latencies(spool: Path) -> dict[str, float | None]:
    """Return the p99 from bus to recorder by stream, as far as the agent's status states it."""
    try:
        streams = ask_agent(spool, "status")["streams"]
    except SensoriumError:
        return {}
    stated = {name: stream.get("latency_us") for name, stream in streams.items()}
    return {name: found["p99"] for name, found in stated.items() if isinstance(found, dict) and found["p99"]}


class Reaper:
    """Takes the balance of each sealed episode; in long runs it deletes all but the last as they seal.

    A driver that is killed leaves no account, and its successor counts anew: its stream is not compared.
    """

    def __init__(self, spool: Path, run: Run, is_deleting: bool, victim: str) -> None:
        self._whole = [name for name in run.streams if name != victim]
        self._spool = spool
        self._run = run
        self._is_deleting = is_deleting
        self._counts: dict[str, StreamCount] = {}
        self._stored_bytes = 0
        self._episodes = 0
        self._over = Event()
        self._thread = Thread(target=self._reap, daemon=True)

    def __enter__(self) -> "Reaper":
        if self._is_deleting:
            self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._over.set()
        if self._is_deleting:
            self._thread.join()

    def _sealed(self) -> list[Path]:
        return sorted(path.parent for path in self._spool.glob("sealed/*/manifest.json"))

    def _reap(self) -> None:
        while not self._over.is_set():
            for episode in self._sealed()[:-1]:
                self._take(episode)
                shutil.rmtree(episode)
            CLOCK.sleep_until(CLOCK.now_ns() + _LOOK_NS)

    def _take(self, episode: Path) -> Mapping[str, Any]:
        manifest = manifest_of(episode)
        add_episode(self._counts, manifest)
        self._stored_bytes += sum(path.stat().st_size for path in episode.glob("*.mcap"))
        self._episodes += 1
        return manifest

    def finish(self, latency_us: dict[str, float | None]) -> Recorded:
        """Check what is left, with the mcap library and against what the devices had; delete it, return all."""
        problems = []
        for episode in self._sealed():
            manifest = self._take(episode)
            problems += disagreements(episode, manifest, self._counts, self._run.streams)
            problems += differences(episode, self._run, self._whole)
        for load in RIGS[self._run.rig]:
            count = self._counts.get(load.name, StreamCount())
            made = count.recorded // load.samples * load.frame_bytes
            if count.raw_bytes != made:
                problems.append(
                    f"{load.name}: {count.raw_bytes} bytes by the manifests, its driver made {made}"
                )
        accounts = accounts_of(self._run)
        for name in self._whole:
            count, account = self._counts.get(name, StreamCount()), accounts.get(name)
            if account is None or count.produced != account["produced"]:
                has = "nothing" if account is None else int(account["produced"])
                problems.append(f"{name}: {count.produced} produced by the balance, {has} by the driver")
        warnings = self._warnings()
        shutil.rmtree(self._spool)
        return Recorded(self._counts, self._stored_bytes, problems, latency_us, self._episodes, warnings)

    def _warnings(self) -> list[str]:
        try:
            found = json.loads((self._run.folder / "record.json").read_text())
        except ValueError:
            return []
        return [*found.get("warnings", []), *found.get("problems", [])]


def figures(
    run: Run, recorded: Recorded, watch: Watch, agent_pid: int, discarded: Mapping[str, Usage]
) -> dict[str, Any]:
    """Return a run's figures; GB are bytes of payload as the drivers made them, of what was recorded."""
    loads = {load.name: load for load in RIGS[run.rig]}
    counts = {name: recorded.counts[name] for name in loads if name in recorded.counts}
    raw = {
        name: count.recorded // loads[name].samples * loads[name].frame_bytes
        for name, count in counts.items()
    }
    gb = sum(raw.values()) / 1e9
    hosts = [usage for usage in watch.usages.values() if usage.name in loads]
    others = [usage for usage in watch.usages.values() if usage.name not in loads]
    root = watch.usages[agent_pid]
    root_s = root.since(GO, SEALED)
    agent_s = sum(usage.since(GO) for usage in others if usage is not root) + root_s
    discard_s = sum(usage.since(GO) for usage in discarded.values())
    hosts_s = sum(usage.since(GO) for usage in hosts)
    recorder_s = sum(usage.since(GO) for usage in others if usage.name == RECORDER)
    return {
        "produced": sum(count.produced // loads[name].samples for name, count in counts.items()),
        "lost": sum(count.lost // loads[name].samples for name, count in counts.items()),
        "cpu_s_per_gb": _per(agent_s + hosts_s - discard_s, gb),
        "recorder_cpu_s_per_gb": _per(recorder_s, gb),
        "cpu_s_per_gb_while_loaded": _per(
            sum(usage.since(GO, LOADED) for usage in watch.usages.values()) - discard_s, gb
        ),
        "rss_mb": round(peak_mb(others, watch.mark_looks[SEALED]), 1),
        "latency_p99_us": recorded.latency_us,
        "stored_ratio": _per(sum(raw.values()), recorded.stored_bytes),
        "mb_per_s": round(sum(raw.values()) / run.wall_s / 1e6, 1),
        "wall_s": run.wall_s,
        "cpu_s": {
            "start_up": _rounded(sum(usage.mark_cpu_s.get(GO, 0.0) for usage in watch.usages.values())),
            "recording_and_sealing": {
                usage.name: _rounded(root_s if usage is root else usage.since(GO))
                for usage in sorted(others, key=lambda usage: usage.pid)
            },
            "reporting": _rounded(root.since(SEALED)),
            "hosts": _rounded(hosts_s),
            "discarding_drivers": _rounded(discard_s),
        },
        "memory_mb": memory(others, hosts, discarded, watch),
        "streams": {
            name: _stream_figures(loads[name], count, raw[name], run.multiple)
            for name, count in counts.items()
        },
        "latest_read_ms": {name: _rounded(each["latest_ms"]) for name, each in accounts_of(run).items()},
        "episodes": recorded.episodes,
        "problems": recorded.problems,
        "warnings": recorded.warnings,
    }


def _stream_figures(load: Load, count: StreamCount, raw: int, multiple: int) -> dict[str, Any]:
    samples_per_s = load.samples * load.frames_per_s * multiple
    found: dict[str, Any] = {
        "produced": count.produced,
        "lost": count.lost,
        "dropped": dict(count.dropped),
        "dropped_s": {reason: _rounded(samples / samples_per_s) for reason, samples in count.dropped.items()},
        "raw_bytes": raw,
        "stored_bytes": count.stored_bytes,
        "stored_ratio": _per(raw, count.stored_bytes),
        "alone_ratio": _per(raw, count.alone_bytes),
    }
    if load.reference_frame_bytes:
        reference = raw / load.frame_bytes * load.reference_frame_bytes
        found["ratio_to_reference"] = _per(reference, count.alone_bytes)
    return found


def memory(
    others: list[Usage], hosts: list[Usage], discarded: Mapping[str, Usage], watch: Watch
) -> dict[str, Any]:
    """Return peaks of memory in MB until the last seal, and by thirds of the run whether it grows."""
    looks = watch.mark_looks[SEALED]
    thirds = [slice(looks * part // 3, looks * (part + 1) // 3) for part in range(3)]
    sums = [sum(usage.pss_mb[look] for usage in others if look < len(usage.pss_mb)) for look in range(looks)]
    return {
        "by_process": {usage.name: _rounded(peak_mb([usage], looks)) for usage in others},
        "peak_by_third": [_rounded(max(sums[third], default=0.0)) for third in thirds],
        "reporting": _rounded(peak_mb(others)),
        "hosts": _rounded(peak_mb(hosts)),
        "discarding_drivers": _rounded(sum(max(each.pss_mb, default=0.0) for each in discarded.values())),
        "dev_shm": _rounded(max(watch.shm_mb, default=0.0)),
    }


def _per(amount: float, per: float) -> float | None:
    return round(amount / per, 3) if per else None


def _rounded(value: float) -> float:
    return round(value, 2)
