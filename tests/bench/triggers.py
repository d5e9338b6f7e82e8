"""How exact a triggered camera is in ``sensorium record``, beside one on the same pulses that does without them.

    python tests/bench/triggers.py [--seeds 11,12,13] [--seconds 60] [--json]

The simulated rig's truth is the middle of each exposure; see docs/clocks.md.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from sessions import CLOCK, grant, sensorium, write_rig

from sensorium.simulators.truth import load_truth
from sensorium.sync.episode.reader import Episode
from sensorium.timebase import SECOND_NS

SHUTTER = {"delay_us": 180.0, "jitter_us": 2.0, "row_us": 12.0}
TRIGGER = {"pulses": "trigger", "drives": ["camera_left"], "delay_us": 180.0, "bound_us": 2.0, "row_us": 12.0}
START_UP_NS = 5 * SECOND_NS
NAMES = {"camera_left": "by its pulses", "camera_right": "ordinary estimate"}


def record(seed: int, seconds: float, folder: Path) -> dict[str, list[tuple[int, float, float]]]:
    """Return (time in ns, error in us, stated 95 % bound in us) of each frame by camera."""
    common = {"seed": seed, "start_ns": CLOCK.now_ns() + 4 * SECOND_NS, "seconds": seconds}
    camera = {"driver": "sim_camera", "size": [160, 120], "render": "cached", "shutter": SHUTTER}
    devices: dict[str, dict[str, Any]] = {"trigger": {"driver": "sim_trigger", **common}}
    devices |= {name: {**camera, "personal": False, **common} for name in NAMES}
    rig = write_rig(folder, devices, triggers=[TRIGGER], episode={"reference": "camera_left"})
    grant(folder / "spool")
    done = sensorium("record", rig, "--json", timeout_s=seconds + 60)
    (run_dir,) = (folder / "spool" / "run").iterdir()
    truth = {name: dict(rows.tolist()) for name, rows in load_truth(run_dir).items()}
    found: dict[str, list[tuple[int, float, float]]] = {name: [] for name in NAMES}
    with Episode(done.episodes[0]) as episode:
        for name, row in episode.stamps(list(NAMES)):
            error_ns = abs(int(row.stamped.capture_ns[0]) - truth[name][row.seq])
            bound_ns = row.stamped.uncertainty.bound95_ns
            found[name].append((int(row.arrival_ns[0]), error_ns / 1e3, bound_ns / 1e3))
    return found


def summary(rows: list[tuple[int, float, float]]) -> dict[str, float]:
    values = np.array(rows)
    p50, p99 = np.percentile(values[:, 1], (50, 99))
    covered = (values[:, 1] <= values[:, 2]).mean()
    return {"n": len(values), "p50_us": p50, "p99_us": p99, "max_us": values[:, 1].max(), "covered": covered}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="11,12,13")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    pooled: dict[str, dict[str, list[tuple[int, float, float]]]] = {}
    for seed in map(int, options.seeds.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            for name, rows in record(seed, options.seconds, Path(folder)).items():
                settled = [row for row in rows if row[0] > rows[0][0] + START_UP_NS]
                parts = pooled.setdefault(NAMES[name], {"first 5 s": [], "after": []})
                parts["first 5 s"] += rows[: len(rows) - len(settled)]
                parts["after"] += settled
    document = {name: {part: summary(rows) for part, rows in parts.items()} for name, parts in pooled.items()}
    if options.json:
        print(json.dumps(document, indent=1))
        return
    for name, found in document.items():
        for part, row in found.items():
            numbers = " / ".join(f"{row[key]:.1f}" for key in ("p50_us", "p99_us", "max_us"))
            print(f"{name:18} {part:10} n {row['n']:5.0f}  {numbers} us, bound covers {row['covered']:.1%}")


if __name__ == "__main__":
    main()
