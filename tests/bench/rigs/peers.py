"""The peers, fed with the same payloads at the same instants: what each loses and costs."""

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from subprocess import DEVNULL, Popen
from typing import Any

from rigs.loads import QUEUE_FRAMES, RIGS
from rigs.processes import Usage, Watch, peak_mb
from rigs.producers import (
    CLOCK,
    BenchError,
    Run,
    accounts_of,
    end_process,
    spawn_module,
    start_all,
    wait_for,
    wait_until_ready,
)
from rigs.schedule import ready
from sensorium.agent.session.supervisor import _CHILD_ENVIRONMENT as OUR_ENVIRONMENT
from sensorium.timebase import SECOND_NS

GO = "go"
_ROS_RECORD = Path("/usr/lib/rosbag/record")
_ROS_PACKAGES = "python3-rosbag python3-rosmaster libroscpp-dev libstd-msgs-dev libsensor-msgs-dev g++"
_DRAIN_S = 60.0


# -- zmq and somebody's writer


def why_not_zmq(writer: str) -> str:
    """Return why a zmq peer cannot run here; "" if it can."""
    module = {"foxglove_sdk": "foxglove", "mcap": "mcap"}[writer]
    return "" if importlib.util.find_spec(module) else f"{module} is not installed: pip install {writer}"


def zmq_run(run: Run, writer: str, discarded: Mapping[str, Usage]) -> dict[str, Any]:
    """Record a rig with zmq and one of the writers; return its figures."""
    file = run.folder / "out.mcap"
    endpoint = f"ipc://{run.folder}/bus"
    with ExitStack() as stack:
        recorder = spawn_module(
            stack,
            run,
            "rigs.zmq_peer",
            "recorder",
            {
                "writer": writer,
                "file": str(file),
                "endpoint": endpoint,
                "folder": str(run.folder),
                "publishers": len(run.streams),
            },
            OUR_ENVIRONMENT,
        )
        wait_until_ready(run, ["recorder"], [recorder])
        publishers = [
            spawn_module(
                stack,
                run,
                "rigs.zmq_peer",
                name,
                {"name": name, "options": run.options, "run_dir": str(run.folder), "endpoint": endpoint},
                OUR_ENVIRONMENT,
            )
            for name in run.streams
        ]
        watch = stack.enter_context(Watch((recorder.pid, *(each.pid for each in publishers))))
        wait_until_ready(run, run.streams, [recorder, *publishers])
        watch.mark(GO)
        start_all(run)
        wait_for([recorder, *publishers], run.wall_s + _DRAIN_S, f"zmq and {writer}")
    found = json.loads((run.folder / "recorded.json").read_text())
    latency_us = {name: found.get(name, {}).get("p99_us") for name in run.streams}
    counts = _mcap_counts(file)
    stored = file.stat().st_size
    file.unlink()
    return peer_figures(run, counts, stored, latency_us, watch, discarded)


def _mcap_counts(file: Path) -> dict[str, int]:
    from mcap.reader import make_reader

    with file.open("rb") as stream:
        summary = make_reader(stream).get_summary()
    if summary is None or summary.statistics is None:
        raise BenchError(f"{file} has no summary to count by")
    counts = summary.statistics.channel_message_counts
    return {each.topic.removeprefix("/"): counts.get(number, 0) for number, each in summary.channels.items()}


# -- rosbag record


def why_not_ros() -> str:
    """Return why ``rosbag record`` cannot run here; "" if it can."""
    if not _ROS_RECORD.exists() or not shutil.which("rosmaster"):
        return f"rosbag is not installed: apt-get install {_ROS_PACKAGES}"
    if not shutil.which("g++") or subprocess.run(["pkg-config", "roscpp"], check=False).returncode:
        return f"its publisher cannot be compiled: apt-get install {_ROS_PACKAGES}"
    return ""


def compile_publisher(folder: Path) -> Path:
    """Return the compiled roscpp publisher.

    Raises:
        BenchError: With the compiler's last line.
    """
    program = folder / "ros_publisher"
    if not program.exists():
        flags = subprocess.run(
            ["pkg-config", "--cflags", "--libs", "roscpp"], capture_output=True, text=True, check=True
        ).stdout.split()
        source = Path(__file__).with_name("ros_publisher.cpp")
        done = subprocess.run(
            ["g++", "-O2", "-o", str(program), str(source), *flags],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise BenchError(f"{source.name} does not compile: {done.stderr.splitlines()[-1]}")
    return program


def ros_discard_usages(run: Run, program: Path, times: float) -> dict[str, Usage]:
    """Run the publishers without publishing; return what each would use in a run so many times as long."""
    with ExitStack() as stack:
        publishers = _ros_publishers(stack, run, program, "discard", dict(os.environ))
        watch = stack.enter_context(Watch(tuple(each.pid for each in publishers)))
        wait_until_ready(run, run.streams, publishers)
        watch.mark(GO)
        start_all(run)
        wait_for(publishers, run.wall_s + 30, "publishers that discard")
    return {str(pid): usage.prolonged(GO, times) for pid, usage in watch.usages.items()}


def ros_run(run: Run, program: Path, discarded: Mapping[str, Usage]) -> dict[str, Any]:
    """Record a rig with roscpp publishers and ``rosbag record``; return its figures."""
    bag = run.folder / "out.bag"
    port = _free_port()
    environment = {
        **os.environ,
        "ROS_MASTER_URI": f"http://127.0.0.1:{port}",
        "ROS_IP": "127.0.0.1",
        "ROS_HOME": str(run.folder),
    }
    with ExitStack() as stack:
        master = _spawn(stack, run, ["rosmaster", "--core", "-p", str(port)], "rosmaster", environment)
        _wait_for_port(port, master)
        topics = [f"/{name}" for name in run.streams]
        command = [str(_ROS_RECORD), "-O", str(bag), *topics]
        recorder = _spawn(stack, run, command, "record", environment)
        publishers = _ros_publishers(stack, run, program, "publish", environment)
        roots = [recorder, *publishers]
        watch = stack.enter_context(Watch(tuple(each.pid for each in roots)))
        wait_until_ready(run, run.streams, [master, *roots])
        watch.mark(GO)
        start_all(run)
        CLOCK.sleep_until(CLOCK.now_ns() + round(run.wall_s * SECOND_NS) + SECOND_NS)
        _wait_until_still(bag)
        recorder.send_signal(signal.SIGINT)
        wait_for([recorder], _DRAIN_S, "rosbag record")
        ready(run.folder, "recorded")
        wait_for(publishers, _DRAIN_S, "roscpp publishers")
    counts = _bag_counts(bag)
    stored = bag.stat().st_size
    bag.unlink()
    for pid, usage in watch.usages.items():
        usage.name = "recorder" if pid == recorder.pid else usage.name
    return peer_figures(run, counts, stored, dict.fromkeys(run.streams), watch, discarded)


def _ros_publishers(
    stack: ExitStack, run: Run, program: Path, mode: str, environment: Mapping[str, str]
) -> list[Popen[bytes]]:
    publishers = []
    for index, load in enumerate(RIGS[run.rig]):
        period_ns = SECOND_NS / (load.frames_per_s * run.multiple)
        command = [
            str(program),
            load.name,
            load.kind,
            str(run.folder / f"{load.name}.pool"),
            str(load.frame_bytes),
            str(round(load.frames_per_s * run.seconds)),
            repr(period_ns),
            repr(index / len(run.streams)),
            str(QUEUE_FRAMES[load.kind]),
            str(run.folder),
            mode,
        ]
        publishers.append(_spawn(stack, run, command, load.name, environment))
    return publishers


def _spawn(
    stack: ExitStack, run: Run, command: Sequence[str], name: str, environment: Mapping[str, str]
) -> Popen[bytes]:
    log = stack.enter_context((run.folder / f"{name}.log").open("wb"))
    process = Popen(command, stdin=DEVNULL, stdout=log, stderr=log, env=dict(environment))
    stack.callback(end_process, process)
    return process


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _wait_for_port(port: int, master: Popen[bytes]) -> None:
    for _ in range(500):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if master.poll() is not None:
            break
        CLOCK.sleep_until(CLOCK.now_ns() + SECOND_NS // 50)
    raise BenchError(f"rosmaster does not listen on port {port}")


def _wait_until_still(bag: Path) -> None:
    """Return when the recorder's file has not grown for a second: what it had queued is written."""
    active = bag.with_suffix(".bag.active")
    size = -1
    while (now := active.stat().st_size if active.exists() else 0) != size:
        size = now
        CLOCK.sleep_until(CLOCK.now_ns() + SECOND_NS)


def _bag_counts(bag: Path) -> dict[str, int]:
    from rosbags.rosbag1 import Reader

    counts: Counter[str] = Counter()
    with Reader(bag) as reader:
        for connection in reader.connections:
            counts[connection.topic.removeprefix("/")] += connection.msgcount
    return dict(counts)


# -- figures


def peer_figures(
    run: Run,
    counts: Mapping[str, int],
    stored_bytes: int,
    latency_us: Mapping[str, float | None],
    watch: Watch,
    discarded: Mapping[str, Usage],
) -> dict[str, Any]:
    """Return the same figures as of our own runs; frames, and GB of payload that was recorded."""
    loads = RIGS[run.rig]
    produced = {name: int(each["frames"]) for name, each in accounts_of(run).items()}
    gb = sum(counts.get(load.name, 0) * load.frame_bytes for load in loads) / 1e9
    recorder = [usage for usage in watch.usages.values() if usage.name == "recorder"]
    recorder_s = sum(usage.since(GO) for usage in recorder)
    total_s = sum(usage.since(GO) for usage in watch.usages.values())
    discard_s = sum(usage.since(GO) for usage in discarded.values())
    return {
        "produced": sum(produced.values()),
        "lost": sum(produced.values()) - sum(counts.values()),
        "cpu_s_per_gb": round((total_s - discard_s) / gb, 3) if gb else None,
        "recorder_cpu_s_per_gb": round(recorder_s / gb, 3) if gb else None,
        "rss_mb": round(peak_mb(recorder), 1),
        "latency_p99_us": dict(latency_us),
        "stored_ratio": round(gb * 1e9 / stored_bytes, 3) if stored_bytes else None,
        "mb_per_s": round(gb * 1e3 / run.wall_s, 1),
        "wall_s": run.wall_s,
        "lost_by_stream": {name: produced[name] - counts.get(name, 0) for name in produced},
        "load_average": round(os.getloadavg()[0], 2),
    }
