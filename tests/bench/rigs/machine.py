"""The machine that was measured, and how long each kind of process takes to import what it needs."""

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from rigs.producers import CLOCK, SOURCES, end_process
from sensorium.timebase import SECOND_NS

PROCESSES = {
    "command line": "sensorium.agent.cli",
    "supervisor": "sensorium.agent.session.run",
    "recorder": "sensorium.sync.recording.service",
    "thinker": "sensorium.sync.recording.thinker",
    "driver host": "sensorium.drivers.host",
    "checker": "sensorium.agent.calibrating.watching.service",
    "uploader": "sensorium.uploader.service",
}
_ROUNDS = 3


def machine() -> dict[str, Any]:
    """Return what a figure must be read with."""
    return {
        "cores": os.cpu_count(),
        "model": _cpu_model(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_average": [round(each, 2) for each in os.getloadavg()],
    }


def _cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown"
    )


def import_times() -> dict[str, Any]:
    """Return by process kind the seconds from start to imported: bare Python's, wall and CPU, median of three.

    Byte code is cached, as it is after an installation.
    """
    found: dict[str, Any] = {"bare python": _measured("pass")}
    for kind, module in PROCESSES.items():
        found[kind] = _measured(f"import {module}") if _is_there(module) else {"skipped": f"no {module}"}
    return found


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _measured(code: str) -> dict[str, float]:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(SOURCES), environment.get("PYTHONPATH", "")])
    )
    runs = [_once(code, environment) for _ in range(1 + _ROUNDS)][1:]  # the first one writes the byte code
    return {
        "wall_s": round(median(wall for wall, _ in runs), 3),
        "cpu_s": round(median(cpu for _, cpu in runs), 3),
    }


def _once(code: str, environment: dict[str, str]) -> tuple[float, float]:
    before_ns, before = CLOCK.now_ns(), os.times()
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    after = os.times()
    cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    return (CLOCK.now_ns() - before_ns) / SECOND_NS, cpu_s


@contextmanager
def working_folder() -> Iterator[Path]:
    """Yield a folder that is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="sensorium-rig-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def burnt_cores(count: int) -> Iterator[None]:
    """Burn so many cores beside what is measured."""
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for burner in burners:
            end_process(burner)
