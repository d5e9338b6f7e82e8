"""What it costs to start each process of a session: time to import, against a bare interpreter.

    python tests/bench/start_up.py [--runs N] [--json]

Each process is started ``--runs`` times and the least is taken, so that other work on the machine counts little;
bytecode is cached, as in an installed program. ``heavy`` names the packages that take most of it.
"""

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from typing import Any

from sensorium.timebase import HostClock

MODULES = {
    "bare interpreter": (),
    "command line": ("sensorium.agent.cli",),
    "record, demo": ("sensorium.agent.commands.sessions",),
    "recorder": ("sensorium.sync.recording.service",),
    "checker": ("sensorium.agent.calibrating.watching.service",),
    "uploader": ("sensorium.uploader.service",),
    "driver host": ("sensorium.drivers.host",),
    "host of sim_camera": ("sensorium.drivers.host", "sensorium.simulators.camera"),
    "host of sim_lidar": ("sensorium.drivers.host", "sensorium.simulators.lidar"),
    "host of opencv": ("sensorium.drivers.host", "sensorium.drivers.devices.opencv"),
    "host of ouster": ("sensorium.drivers.host", "sensorium.drivers.devices.ouster.driver"),
    "host of xsens": ("sensorium.drivers.host", "sensorium.drivers.devices.xsens"),
}
# As the supervisor starts its children.
ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
_CLOCK = HostClock()


def started(modules: tuple[str, ...], *options: str) -> tuple[float, str, str]:
    """Return wall ms, what it printed, and what it said on standard error."""
    code = "\n".join([*(f"import {module}" for module in modules), "import time; print(time.process_time())"])
    environment = {**os.environ, **ENVIRONMENT}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    before_ns = _CLOCK.now_ns()
    run = subprocess.run(
        [sys.executable, *options, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    return (_CLOCK.now_ns() - before_ns) / 1e6, run.stdout, run.stderr


def heavy(modules: tuple[str, ...], count: int = 4) -> list[str]:
    """Return the packages that take most of the import, each with its own ms."""
    own_us: Counter[str] = Counter()
    for line in started(modules, "-X", "importtime")[2].splitlines():
        _, _, rest = line.partition("import time:")
        parts = [part.strip() for part in rest.split("|")]
        if len(parts) == 3 and parts[0].isdigit():
            own_us[_package(parts[2])] += int(parts[0])
    return [f"{name} {us / 1e3:.0f}" for name, us in own_us.most_common(count)]


def _package(module: str) -> str:
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "sensorium" else parts[0]


def measure(runs: int) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    bare_ms = 0.0
    for name, modules in MODULES.items():
        tries = [started(modules) for _ in range(runs)]
        wall_ms = min(wall for wall, _, _ in tries)
        cpu_ms = min(float(said) * 1e3 for _, said, _ in tries)
        bare_ms = bare_ms or wall_ms
        found[name] = {
            "wall_ms": round(wall_ms, 1),
            "cpu_ms": round(cpu_ms, 1),
            "times_bare": round(wall_ms / bare_ms, 1),
            "heavy": heavy(modules) if modules else [],
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = measure(options.runs)
    if options.json:
        print(json.dumps(found))
        return
    print(f"{'process':20} {'wall ms':>8} {'cpu ms':>7} {'x bare':>7}  heavy (ms)")
    for name, row in found.items():
        numbers = f"{row['wall_ms']:8.0f} {row['cpu_ms']:7.0f} {row['times_bare']:7.1f}"
        print(f"{name:20} {numbers}  {', '.join(row['heavy'])}")


if __name__ == "__main__":
    main()
