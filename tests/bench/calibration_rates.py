"""Rates with their intervals, and what all parts of the calibration bench share."""

import math
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from sensorium.calibration import geometry
from sensorium.verdict import Status, Verdict

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


LEVELS = {
    "0.25deg": (0.25, 0.0),
    "0.5deg": (0.5, 0.0),
    "1deg": (1.0, 0.0),
    "2cm": (0.0, 0.02),
    "5cm": (0.0, 0.05),
    "10cm": (0.0, 0.10),
    "20cm": (0.0, 0.20),
}


ALARM = (Status.SUSPECT, Status.FAILED)


def rate(hits: Sequence[bool], independent: int, key: str = "tpr") -> dict[str, Any]:
    """Return a rate with the number of trials and the Wilson interval for the independent ones."""
    p = float(np.mean(hits)) if hits else float("nan")
    n, z = max(independent, 1), 1.96
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * float(np.sqrt(max(p * (1 - p), 0.0) / n + z * z / (4 * n * n)))
    interval = [round(max(centre - half, 0.0), 3), round(min(centre + half, 1.0), 3)]
    found = {key: round(p, 4), "n": len(hits), "n_independent": independent, "ci95": interval}
    if key == "rate" and hits:  # false alarms: what they are at most
        found["at_most"] = round(at_most(sum(hits), len(hits)), 4)
    return found


def at_most(hits: int, count: int, confidence: float = 0.95) -> float:
    """Return the upper bound of Clopper and Pearson (1934) on a rate, as if the trials shared no frame."""
    low, high = hits / count, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        chance = sum(math.comb(count, k) * middle**k * (1 - middle) ** (count - k) for k in range(hits + 1))
        low, high = (middle, high) if chance > 1 - confidence else (low, middle)
    return high


def is_alarm(verdict: Verdict) -> bool:
    return verdict.status in ALARM


def random_motion(rng: np.random.Generator, degrees: float, metres: float) -> geometry.Array:
    """Return a motion of this size about a random axis or along a random direction."""
    direction = rng.normal(size=3)
    direction /= np.linalg.norm(direction)
    return np.concatenate([np.deg2rad(degrees) * direction, metres * direction])


def in_parallel(parts: dict[str, Callable[[], dict[str, Any]]], workers: int) -> dict[str, dict[str, Any]]:
    """Run parts in forked processes, which share what is already loaded, and say on stderr what is done."""
    global _parts
    _parts = parts
    started = time.perf_counter()
    if workers < 2:
        return dict(_told(map(_run_part, parts), len(parts), started))
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        found = dict(_told(pool.imap_unordered(_run_part, parts), len(parts), started))
    return {name: found[name] for name in parts}


def _told(
    done: Iterable[tuple[str, dict[str, Any]]], count: int, started: float
) -> Iterator[tuple[str, dict[str, Any]]]:
    for index, (name, result) in enumerate(done):
        spent = f"{index + 1} of {count} parts, {time.perf_counter() - started:.0f} s"
        print(f"  {spent}: {name or 'three_keyframes'}", file=sys.stderr, flush=True)
        yield name, result


_parts: dict[str, Callable[[], dict[str, Any]]] = {}


def _run_part(name: str) -> tuple[str, dict[str, Any]]:
    cv2.setNumThreads(1)
    return name, _parts[name]()


def images(folder: Path) -> list[Any]:
    return [grey(path) for path in sorted(folder.glob("*"))]


def grey(path: Path) -> Any:
    return cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
