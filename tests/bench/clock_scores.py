"""Rows of clocks: the causal stamps of the real path against truth, beside the references on the same samples."""

import itertools
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import clock_shapes as shapes
import numpy as np
from clock_samples import FloatArray, Generator, Samples
from numpy.typing import NDArray
from published_path import PublishedPath

from sensorium.sync.clocks.model import ClockEvent, ClockEventKind

AGES_S = (0.0, 1.0, 5.0, 20.0, math.inf)
SETTLED_S = 15.0
"""Like the one-way table; runs that end before this age are judged whole."""
ENOUGH = 1000
COVERS = (0.93, 0.99)
WIDEST = 4.0
RESET_WITHIN_S = 60.0
"""A reset that is seen later than this is missed: the file would be half done."""
FEW_SAMPLES = 10_000

REFERENCES: dict[str, shapes.Estimator] = {
    **shapes.REFERENCES,
    "window LP 120 s": lambda x, y: shapes.window_lp(x, y, 120),
}


@dataclass
class Judged:
    """One run: (n,) errors, bounds (us) and ages (s), the references' errors, and what the tracker reported."""

    error_us: FloatArray
    bound_us: FloatArray
    age_s: FloatArray
    since_pause_s: FloatArray
    references_us: dict[str, FloatArray]
    verdicts: dict[str, int]


@dataclass
class Row:
    """What all runs of a row have in common, and the runs."""

    name: str
    runs: list[Judged] = field(default_factory=list)
    runs_per_seed: list[int] = field(default_factory=list)


def judge(samples: Samples, references: Mapping[str, shapes.Estimator] = REFERENCES) -> Judged:
    """Send a run through recorder and thinker, and through the references."""
    path = PublishedPath(samples.info())
    capture, bound = [], []
    events: list[ClockEvent] = []
    for number, frame in enumerate(samples.frames()):
        stamped = path.update(frame)
        capture.append(stamped.capture_ns)
        bound.append(np.full(frame.count, stamped.uncertainty.bound95_ns))
        if number % 64 == 0:
            events.extend(path.tracker.take_events())
    events.extend(path.tracker.take_events())
    stamped_ns = np.concatenate(capture)
    count = stamped_ns.size
    others = {name: run_reference(one, samples)[:count] for name, one in references.items()}
    return Judged(
        (stamped_ns - samples.capture_ns[:count]) / 1e3,
        np.concatenate(bound) / 1e3,
        samples.age_s()[:count],
        samples.since_pause_s()[:count],
        others,
        _verdicts(samples, events),
    )


def run_reference(estimator: shapes.Estimator, samples: Samples) -> FloatArray:
    """Return the signed errors (us) of a reference that is told the wraps and the great restarts."""
    device, arrivals, captures = samples.device_ns(), samples.arrival_ns, samples.capture_ns
    error_us = np.empty(captures.size)
    for part in samples.restarts():
        arrival = (arrivals[part] - arrivals[part][0]).astype(np.float64)
        found = np.minimum(estimator(device[part] - device[part][0], arrival), arrival)
        truth = (captures[part] + samples.min_latency_ns - arrivals[part][0]).astype(np.float64)
        error_us[part] = (found - truth) / 1e3
    return error_us


def _verdicts(samples: Samples, events: Sequence[ClockEvent]) -> dict[str, int]:
    epochs = samples.epochs
    true_ns = samples.arrival_ns[1:][np.diff(epochs) > 0].tolist()
    seen_ns = [one.host_ns for one in events if one.kind is ClockEventKind.RESET]
    missed = 0
    for at_ns in true_ns:
        match = next((one for one in seen_ns if 0 <= one - at_ns <= RESET_WITHIN_S * 1e9), None)
        if match is None:
            missed += 1
        else:
            seen_ns.remove(match)
    alarms = sum(one.kind is ClockEventKind.FLOOR for one in events)
    others = sum(one.kind not in (ClockEventKind.RESET, ClockEventKind.FLOOR) for one in events)
    return {
        "resets": len(true_ns),
        "missed_resets": missed,
        "false_resets": len(seen_ns),
        "false_floor_alarms": 0 if samples.floor_moves else alarms,
        "floor_alarms": alarms,
        "other_events": others,
    }


def wilson(hits: int, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a rate."""
    z = 1.959964
    rate, spread = hits / count, z * z / count
    half = z * math.sqrt(rate * (1 - rate) / count + spread / (4 * count))
    return (rate + spread / 2 - half) / (1 + spread), (rate + spread / 2 + half) / (1 + spread)


def cell(error_us: FloatArray, bound_us: FloatArray) -> dict[str, Any] | None:
    """Return coverage and width of some samples; the interval where there are few. None if there are none."""
    count = error_us.size
    if not count:
        return None
    hits = int((np.abs(error_us) <= bound_us).sum())
    found: dict[str, Any] = {
        "n": count,
        "coverage": hits / count,
        "mean_bound_us": float(bound_us.mean()),
        "median_bound_us": float(np.median(bound_us)),
        "p95_us": float(np.percentile(np.abs(error_us), 95)),
    }
    if count < ENOUGH:
        found["interval"] = list(wilson(hits, count))
    return found


def ages(low_s: float, high_s: float) -> str:
    return f"{low_s:g}-{high_s:g}" if math.isfinite(high_s) else f"{low_s:g}+"


def summary(row: Row) -> dict[str, Any]:
    """Return a row of the table as numbers."""
    runs = row.runs
    error = np.concatenate([one.error_us for one in runs])
    bound = np.concatenate([one.bound_us for one in runs])
    age = np.concatenate([one.age_s for one in runs])
    paused = np.concatenate([one.since_pause_s for one in runs])
    settled = [_judged(one.age_s) for one in runs]
    judged = np.concatenate(settled)
    absolute = np.abs(error[judged])
    p95 = float(np.percentile(absolute, 95))
    references = {
        name: float(np.percentile(np.abs(_of(runs, name)[judged]), 99)) for name in runs[0].references_us
    }
    whole = {name: float(np.percentile(np.abs(_of(runs, name)), 99)) for name in references}
    best = min(references, key=references.__getitem__)
    best_whole = min(whole, key=whole.__getitem__)
    verdicts = {key: sum(one.verdicts[key] for one in runs) for key in runs[0].verdicts}
    by_age = {
        ages(low, high): cell(error[part], bound[part])
        for low, high in itertools.pairwise(AGES_S)
        if (part := (age >= low) & (age < high)).any()
    }
    after = {
        ages(low, high): cell(error[part], bound[part])
        for low, high in itertools.pairwise(AGES_S)
        if (part := (paused >= low) & (paused < high)).any()
    }
    per_seed = _per_seed(row, [np.abs(one.error_us[kept]) for one, kept in zip(runs, settled, strict=True)])
    stated = bound[judged]
    found: dict[str, Any] = {
        "n": int(absolute.size),
        "p50_us": float(np.percentile(absolute, 50)),
        "p95_us": p95,
        "p99_us": float(np.percentile(absolute, 99)),
        "p99_interval_us": interval(per_seed, 99),
        "max_us": float(absolute.max()),
        "coverage": float((absolute <= stated).mean()),
        "mean_bound_us": float(stated.mean()),
        "width_ratio": float(stated.mean()) / max(p95, 1e-9),
        "whole_p99_us": float(np.percentile(np.abs(error), 99)),
        "by_age": by_age,
        "after_pause": after,
        "best_reference": best,
        "best_reference_p99_us": references[best],
        "whole_best_reference": best_whole,
        "whole_best_reference_p99_us": whole[best_whole],
        "reference_p99_us": references,
        "verdicts": verdicts,
        "seeds": len(row.runs_per_seed),
    }
    found["misses"] = misses(found)
    return found


def _judged(age_s: FloatArray) -> NDArray[np.bool_]:
    """Return which samples of a run count: the settled ones, or all of a run that ends before."""
    settled: NDArray[np.bool_] = age_s > SETTLED_S
    return settled if settled.any() else np.ones_like(settled)


def _of(runs: Sequence[Judged], name: str) -> FloatArray:
    return np.concatenate([one.references_us[name] for one in runs])


def _per_seed(row: Row, values: Sequence[FloatArray]) -> list[FloatArray]:
    edges = np.concatenate(([0], np.cumsum(row.runs_per_seed)))
    return [np.concatenate(values[a:b]) for a, b in itertools.pairwise(edges)]


def interval(per_seed: Sequence[FloatArray], quantile: float) -> list[float]:
    """Return the 95 % bootstrap interval over seeds of a pooled percentile."""
    random = np.random.default_rng(0)
    thinned = [values[:: max(1, values.size // FEW_SAMPLES)] for values in per_seed]
    found = [
        np.percentile(
            np.concatenate([thinned[i] for i in random.integers(0, len(thinned), len(thinned))]), quantile
        )
        for _ in range(200)
    ]
    return [float(np.percentile(found, 2.5)), float(np.percentile(found, 97.5))]


def misses(found: dict[str, Any]) -> list[str]:
    """Return what of the goal a row misses, a phrase for each."""
    low, high = COVERS
    said = []
    if found["p99_us"] > found["best_reference_p99_us"]:
        said.append(f"p99 {found['p99_us'] / found['best_reference_p99_us']:.2f} x {found['best_reference']}")
    for age, one in found["by_age"].items():
        if not _may_be(one, low, 1.0):
            said.append(f"covers {one['coverage']:.3f} at {age} s")
    for age, one in found["after_pause"].items():
        if not _may_be(one, low, 1.0):
            said.append(f"covers {one['coverage']:.3f} at {age} s after a pause")
    if found["coverage"] > high and found["width_ratio"] > WIDEST:
        said.append(f"bound {found['width_ratio']:.1f} x p95")
    verdicts = found["verdicts"]
    for key in ("missed_resets", "false_resets", "false_floor_alarms"):
        if verdicts[key]:
            said.append(f"{verdicts[key]} {key.replace('_', ' ')}")
    return said


def _may_be(one: dict[str, Any], low: float, high: float) -> bool:
    bottom, top = one.get("interval", [one["coverage"], one["coverage"]])
    return bool(top >= low and bottom <= high)


def bench(rows: Mapping[str, Generator], seeds: Sequence[int], say: Callable[[str], None]) -> dict[str, Any]:
    """Judge every row at every seed; ``say`` hears how far it is."""
    result = {}
    for name, generate in rows.items():
        row = Row(name)
        for seed in seeds:
            say(f"families {name} seed {seed}")
            runs = generate(seed)
            row.runs.extend(judge(one) for one in runs)
            row.runs_per_seed.append(len(runs))
        result[name] = summary(row)
    return result


def table(result: dict[str, Any]) -> None:
    print(f"\nfamilies: |error| in us through recorder and thinker, older than {SETTLED_S:g} s in its epoch")
    print("covers: by age of the epoch in s, ~ where the cell is below 1000 samples; width: mean bound / p95")
    print(
        f"{'row':28}{'p50':>8}{'p99':>9}{'(95 % interval)':>19}{'best reference':>29}"
        + "".join(f"{ages(a, b):>8}" for a, b in itertools.pairwise(AGES_S))
        + f"{'width':>7}  verdicts"
    )
    for name, row in result.items():
        spread = "({:.1f}-{:.1f})".format(*row["p99_interval_us"])
        best = f"{row['best_reference_p99_us']:.1f} {row['best_reference']}"
        print(
            f"{name:28}{row['p50_us']:8.1f}{row['p99_us']:9.1f}{spread:>19}{best:>29}{_cells(row['by_age'])}"
            f"{row['width_ratio']:7.1f}  {_said(row['verdicts'])}"
        )
    for name, row in result.items():
        if row["misses"]:
            print(f"misses {name}: {'; '.join(row['misses'])}")


def _cells(by_age: dict[str, Any]) -> str:
    text = ""
    for low, high in itertools.pairwise(AGES_S):
        one = by_age.get(ages(low, high))
        mark = "~" if one is not None and "interval" in one else ""
        text += f"{'-' if one is None else mark + format(one['coverage'], '.3f'):>8}"
    return text


def _said(verdicts: dict[str, int]) -> str:
    resets = f"resets {verdicts['resets'] - verdicts['missed_resets']}/{verdicts['resets']}"
    return (
        f"{resets}, false {verdicts['false_resets']}; floor {verdicts['floor_alarms']},"
        f" false {verdicts['false_floor_alarms']}; events {verdicts['other_events']}"
    )


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
