"""``sensorium demo`` again and again on a machine that has other things to do: what does a newcomer see?

    python tests/bench/demo_runs.py [--runs 20] [--busy 1] [--core 0] [--seconds 10] [--json]

Each run records the simulated rig into a new folder while ``--busy`` other processes burn a core each;
``--core N`` confines the demo (not the burners) to one core with taskset. A run is whole when nothing was
dropped; quality, the sentences and the time that it took stand beside it.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rigs.machine import burnt_cores, machine, working_folder
from rigs.producers import CLOCK, environment_of_sources

from sensorium.timebase import SECOND_NS

Figures = dict[str, Any]
_LIMIT_S = 300.0


def demo_run(folder: Path, seconds: float, core: int | None) -> Figures:
    """Run the demo once; return what was dropped, by stream, place and reason."""
    confined = [] if core is None else ["taskset", "-c", str(core)]
    command = [*confined, sys.executable, "-m", "sensorium.agent.cli", "demo", "--out", str(folder)]
    load_average, began_ns = os.getloadavg()[0], CLOCK.now_ns()
    done = subprocess.run(
        [*command, "--seconds", str(seconds), "--json"],
        capture_output=True,
        text=True,
        timeout=_LIMIT_S,
        check=False,
        env=environment_of_sources(),
    )
    found: Figures = {
        "exit_code": done.returncode,
        "wall_s": round((CLOCK.now_ns() - began_ns) / SECOND_NS, 1),
        "load_average": round(load_average, 2),
    }
    try:
        document = json.loads(done.stdout)
    except ValueError:
        return {**found, "dropped": None, "failed": (done.stderr.strip().splitlines() or ["no document"])[-1]}
    if "streams" not in document:
        return {**found, "dropped": None, "failed": document.get("error", "no streams in the document")}
    return {**found, **_drops(document)}


def _drops(document: Figures) -> Figures:
    by_stream = {name: sum(stream["dropped"].values()) for name, stream in document["streams"].items()}
    reasons: Counter[str] = Counter()
    for name, stream in document["streams"].items():
        for place, counts in stream["dropped_reasons"].items():
            for reason, count in counts.items():
                reasons[f"{name}: {place}: {reason}"] += count
    return {
        "produced": sum(stream["produced"] for stream in document["streams"].values()),
        "dropped": sum(by_stream.values()),
        "dropped_by_stream": {name: count for name, count in by_stream.items() if count},
        "dropped_reasons": dict(reasons),
        "clock_error_p99_us": {
            name: stream["clock_error_p99_us"]
            for name, stream in document["streams"].items()
            if stream.get("clock_error_p99_us") is not None
        },
        "clock_bound_coverage": {
            name: stream["clock_bound_coverage"]
            for name, stream in document["streams"].items()
            if stream.get("clock_bound_coverage") is not None
        },
        "quality": document["quality"]["status"],
        "reasons": document["quality"]["reasons"],
        "warnings": document["warnings"],
    }


def measure(runs: int, busy: int, core: int | None, seconds: float) -> Figures:
    """Return all runs, one after the other, and how many of them were whole."""
    rows: list[Figures] = []
    with working_folder() as folder, burnt_cores(busy):
        for index in range(runs):
            rows.append(demo_run(folder / str(index), seconds, core))
            shutil.rmtree(folder / str(index), ignore_errors=True)
            print(f"{index + 1} of {runs}: {_line(rows[-1])}", file=sys.stderr, flush=True)
    return {
        "runs": rows,
        "whole": sum(row["dropped"] == 0 for row in rows),
        "of": runs,
        "busy": busy,
        "core": core,
        "machine": machine(),
    }


def _line(row: Figures) -> str:
    if row["dropped"] is None:
        return f"failed: {row['failed']}"
    where = ", ".join(f"{count} x {reason}" for reason, count in row["dropped_reasons"].items())
    return f"{row['dropped']} of {row['produced']} dropped, {row['quality']}, {row['wall_s']} s {where}"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; exit code 1 if a run dropped something."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--busy", type=int, default=1, help="processes that burn a core each")
    parser.add_argument("--core", type=int, help="confine the demo to this core")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of each recording")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args(argv)
    if arguments.core is not None and not shutil.which("taskset"):
        parser.error("--core needs taskset (package util-linux)")
    found = measure(arguments.runs, arguments.busy, arguments.core, arguments.seconds)
    if arguments.json:
        json.dump(found, sys.stdout, indent=1)
        print()
    else:
        print(
            f"{found['whole']} of {found['of']} runs dropped nothing; machine: {json.dumps(found['machine'])}"
        )
    return 0 if found["whole"] == found["of"] else 1


if __name__ == "__main__":
    sys.exit(main())
