"""Two-way clock estimators beside the references of the field, on the shapes of specs/clocks.md 2b.

    python tests/bench/two_way.py [--seeds 1,2,3] [--json] [--live-seconds 40]

Every estimator sees the same exchanges and is asked for the offset every 0.5 s, with what had come by then.
"""

import argparse
import itertools
import json
import math
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent))

from two_way_live import live_results, print_live
from two_way_shapes import BURST, SHAPES, Run, Shape, simulate, simulate_pair

from sensorium.sync.clocks.two_way import Exchange, TwoWayEstimator

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.floating[Any]]

DEFAULT_SEEDS = tuple(range(900, 920))


# -- references: each returns offset (ns) and slope (ns/s) at the end of every burst

Reference = Callable[[IntArray], tuple[FloatArray, FloatArray]]


def _offsets(stamps: IntArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return offset (ns), round trip (ns) and middle local time (s) of every exchange, (bursts, 8) each."""
    t1, t2, t3, t4 = np.moveaxis(stamps, -1, 0)
    return (
        ((t2 - t1) + (t3 - t4)) / 2,
        ((t4 - t1) - (t3 - t2)).astype(float),
        ((t1 + t4) // 2 - 10**12) * 1e-9,
    )


def _ends_s(stamps: IntArray) -> FloatArray:
    return np.asarray((stamps[..., 3].max(axis=1) - 10**12) * 1e-9)


def single_probe(stamps: IntArray) -> tuple[FloatArray, FloatArray]:
    offset, _, _ = _offsets(stamps)
    return offset[:, -1], np.zeros(len(offset))


def median_of_8(stamps: IntArray) -> tuple[FloatArray, FloatArray]:
    offset, _, _ = _offsets(stamps)
    return np.median(offset, axis=1), np.zeros(len(offset))


def _best_of_8(stamps: IntArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    offset, trip, middle = _offsets(stamps)
    best = trip.argmin(axis=1)[:, None]
    return tuple(np.take_along_axis(part, best, 1)[:, 0] for part in (offset, trip, middle))  # type: ignore[return-value]


def lsl_best_of_8(stamps: IntArray) -> tuple[FloatArray, FloatArray]:
    """Hold the offset of the exchange with the least round trip (liblsl, spec 1.1)."""
    offset, _, _ = _best_of_8(stamps)
    return offset, np.zeros(len(offset))


def ntp_clock_filter(stamps: IntArray) -> tuple[FloatArray, FloatArray]:
    """Of the last 8 bursts' best, take the one of least delay plus 15 ppm of age (RFC 5905, 10), once each."""
    offset, trip, middle = _best_of_8(stamps)
    ends = _ends_s(stamps)
    out = np.empty(len(offset))
    newest = -1
    for i in range(len(offset)):
        low = max(0, i - 7)
        distance = trip[low : i + 1] / 2 + 15e3 * (ends[i] - middle[low : i + 1])
        newest = max(newest, low + int(distance.argmin()))
        out[i] = offset[newest]
    return out, np.zeros(len(offset))


def min_rtt_huber(stamps: IntArray, window_s: float = 60.0) -> tuple[FloatArray, FloatArray]:
    """Huber line through the best of each burst in a window."""
    offset, _, middle = _best_of_8(stamps)
    ends = _ends_s(stamps)
    value, slope = np.empty(len(offset)), np.empty(len(offset))
    for i in range(len(offset)):
        low = int(np.searchsorted(middle, ends[i] - window_s))
        x, y = middle[low : i + 1] - ends[i], offset[low : i + 1]
        value[i], slope[i] = _huber_line(x, y)
    return value, slope


def _huber_line(x: FloatArray, y: FloatArray, rounds: int = 8) -> tuple[float, float]:
    if x.size < 3:
        return float(y[-1]), 0.0
    weight = np.ones(x.size)
    intercept = slope = 0.0
    for _ in range(rounds):
        intercept, slope = _weighted_line(x, y, weight)
        residual = np.abs(y - intercept - slope * x)
        limit = 1.345 * 1.4826 * float(np.median(residual)) + 1.0
        weight = np.minimum(1.0, limit / np.maximum(residual, 1e-9))
    return intercept, slope


def _weighted_line(x: FloatArray, y: FloatArray, weight: FloatArray) -> tuple[float, float]:
    total = weight.sum()
    mean_x, mean_y = float(weight @ x / total), float(weight @ y / total)
    dx = x - mean_x
    slope = float(weight @ (dx * (y - mean_y)) / max(float(weight @ (dx * dx)), 1e-12))
    return mean_y - slope * mean_x, slope


def chrony_style(stamps: IntArray, register: int = 64) -> tuple[FloatArray, FloatArray]:
    """Weighted line over an adaptive register of best-of-burst samples, shortened by a runs test (spec 1.3)."""
    offset, trip, middle = _best_of_8(stamps)
    ends = _ends_s(stamps)
    value, slope = np.empty(len(offset)), np.empty(len(offset))
    size = 0
    for i in range(len(offset)):
        size = min(size + 1, register)
        while True:
            part = slice(i + 1 - size, i + 1)
            x, y, distance = middle[part] - ends[i], offset[part], trip[part] / 2
            spread = max((float(np.median(distance)) - float(distance.min())) / 0.7, 1.0)
            weight = (1 + (distance - distance.min()) / spread) ** -2.0
            value[i], slope[i] = _weighted_line(x, y, weight) if size > 2 else (y[-1], 0.0)
            if size < 4 or _looks_random(y - value[i] - slope[i] * x):
                break
            size -= 1
    return value, slope


def _looks_random(residual: FloatArray) -> bool:
    """Test the number of sign runs at 5 % (Wald-Wolfowitz)."""
    signs = residual > 0
    runs = 1 + int((signs[1:] != signs[:-1]).sum())
    above, below = int(signs.sum()), int((~signs).sum())
    total = above + below
    if not above or not below:
        return False
    mean = 2 * above * below / total + 1
    variance = (mean - 1) * (mean - 2) / (total - 1)
    return runs >= mean - 1.645 * math.sqrt(max(variance, 0)) - 0.5


def hull_interval(stamps: IntArray, window_s: float = 60.0) -> tuple[FloatArray, FloatArray]:
    """Skew from the hulls of both directions, offset from the intersected bounds (spec 2b, the best there)."""
    t1, t2, t3, t4 = np.moveaxis(stamps, -1, 0)
    at_up, at_low = (t1 - 10**12).ravel() * 1e-9, (t4 - 10**12).ravel() * 1e-9
    up, low = (t2 - t1).ravel().astype(float), (t3 - t4).ravel().astype(float)
    ends = _ends_s(stamps)
    value, slope = np.empty(len(ends)), np.empty(len(ends))
    for i, end in enumerate(ends):
        first = int(np.searchsorted(at_up, end - window_s))
        last = (i + 1) * BURST
        x_up, x_low = at_up[first:last] - end, at_low[first:last] - end
        part_up, part_low = up[first:last], low[first:last]
        slope[i] = (
            (_hull_slope(x_up, part_up) - _hull_slope(x_low, -part_low)) / 2 if last - first > 16 else 0
        )
        highest = (part_low - slope[i] * x_low).max()
        lowest = (part_up - slope[i] * x_up).min()
        value[i] = (lowest + highest) / 2
    return value, slope


def _hull_slope(x: FloatArray, y: FloatArray) -> float:
    """Return the slope of the lower hull's edge under the mean x (monotone chain)."""
    order = np.argsort(x, kind="stable")
    hull: list[tuple[float, float]] = []
    for px, py in zip(x[order].tolist(), y[order].tolist(), strict=True):
        while len(hull) > 1 and (hull[-1][1] - hull[-2][1]) * (px - hull[-2][0]) >= (py - hull[-2][1]) * (
            hull[-1][0] - hull[-2][0]
        ):
            hull.pop()
        hull.append((px, py))
    mean = float(x.mean())
    for left, right in itertools.pairwise(hull):
        if left[0] <= mean <= right[0] and right[0] > left[0]:
            return (right[1] - left[1]) / (right[0] - left[0])
    return 0.0


def pyxdf_line(stamps: IntArray) -> tuple[FloatArray, FloatArray]:
    """One Huber line over everything, offline: it knows the future (spec 1.1)."""
    offset, _, middle = _best_of_8(stamps)
    ends = _ends_s(stamps)
    intercept, slope = _huber_line(middle, offset)
    return intercept + slope * ends, np.full(len(ends), slope)


REFERENCES: dict[str, Reference] = {
    "single probe": single_probe,
    "LSL best of 8, hold": lsl_best_of_8,
    "NTP clock filter": ntp_clock_filter,
    "median of 8": median_of_8,
    "min-rtt + Huber line 60 s": min_rtt_huber,
    "chrony-style weighted + runs": chrony_style,
    "hull skew + interval 60 s": hull_interval,
    "pyxdf line (offline)": pyxdf_line,
}


def error_of_reference(reference: Reference, run: Run) -> FloatArray:
    """Return the signed error (us) at every asking time."""
    value, slope = reference(run.stamps_ns)
    ends_ns = run.stamps_ns[..., 3].max(axis=1)
    age_s = (run.asked_ns - ends_ns[run.answers]) * 1e-9
    return np.asarray((value[run.answers] + slope[run.answers] * age_s - run.truth_ns) / 1e3)


@dataclass(frozen=True)
class Ours:
    """Signed error, stated 95 % half width, asymmetry term and hard half width (us); truth in the interval?"""

    error_us: FloatArray
    stated_us: FloatArray
    asymmetry_us: FloatArray
    hard_us: FloatArray
    is_bounded: NDArray[np.bool_]


def run_ours(run: Run, make: Callable[[], TwoWayEstimator] = TwoWayEstimator) -> Ours:
    """Feed the estimator burst by burst and ask it at the same instants as the references."""
    estimator = make()
    fed = 0
    rows = []
    for asked_ns, answer, truth in zip(
        run.asked_ns.tolist(), run.answers.tolist(), run.truth_ns.tolist(), strict=True
    ):
        while fed <= answer:
            estimator.update([Exchange(*row) for row in run.stamps_ns[fed].tolist()])
            fed += 1
        found = estimator.estimate(asked_ns)
        assert found is not None
        rows.append(
            (
                found.offset_ns - truth,
                found.bound95_ns,
                found.asymmetry_ns,
                found.hard_ns,
                found.lower_ns <= truth <= found.upper_ns,
            )
        )
    table = np.array(rows, np.float64)
    error, stated, asymmetry, hard = table[:, :4].T / 1e3
    return Ours(error, stated, asymmetry, hard, table[:, 4] > 0)


def _percentiles(errors: FloatArray) -> dict[str, float]:
    size = np.abs(errors)
    return {
        "p50_us": float(np.percentile(size, 50)),
        "p99_us": float(np.percentile(size, 99)),
        "max_us": float(size.max()),
    }


def _interval_of_p99(by_seed: list[FloatArray]) -> tuple[float, float]:
    """Return the 95 % bootstrap interval (seeds resampled) of the pooled p99."""
    random = np.random.default_rng(1)
    found = []
    for _ in range(400):
        picked = random.integers(len(by_seed), size=len(by_seed))
        found.append(np.percentile(np.abs(np.concatenate([by_seed[i] for i in picked])), 99))
    return float(np.percentile(found, 2.5)), float(np.percentile(found, 97.5))


def two_way_results(
    seeds: Sequence[int] = DEFAULT_SEEDS, shapes: Sequence[Shape] = SHAPES, live_s: float = 40.0
) -> dict[str, Any]:
    """Return per shape our numbers, the goals and the references, all on the same exchanges.

    "live" holds the run on loopback beside liblsl, ``live_s`` long (0 = none), or why it was skipped.
    """
    results: dict[str, Any] = {}
    for shape in shapes:
        ours: list[Ours] = []
        references: dict[str, list[FloatArray]] = {name: [] for name in REFERENCES}
        for seed in seeds:
            run = simulate_pair(shape, seed) if shape.is_hardware else simulate(shape, seed)
            ours.append(run_ours(run))
            for name, reference in REFERENCES.items():
                references[name].append(error_of_reference(reference, run))
        pooled = np.concatenate([one.error_us for one in ours])
        stated = np.concatenate([one.stated_us for one in ours])
        low, high = _interval_of_p99([one.error_us for one in ours])
        table = {name: _percentiles(np.concatenate(errors)) for name, errors in references.items()}
        causal = {name: row for name, row in table.items() if "offline" not in name}
        best = min(causal, key=lambda name: causal[name]["p99_us"])
        results[shape.name] = {
            **_percentiles(pooled),
            "p99_ci95_us": [low, high],
            "goal_p99_us": shape.goal_p99_us,
            "goal_max_us": shape.goal_max_us,
            "bias_us": float(np.median(pooled)),
            "coverage": float((np.abs(pooled) <= stated).mean()),
            "coverage_with_asymmetry": float(
                (np.abs(pooled) <= stated + np.concatenate([one.asymmetry_us for one in ours])).mean()
            ),
            "width_ratio": float(np.median(stated) / np.percentile(np.abs(pooled), 95)),
            "hard_coverage": float(np.concatenate([one.is_bounded for one in ours]).mean()),
            "hard_p50_us": float(np.median(np.concatenate([one.hard_us for one in ours]))),
            "asymmetry_p50_us": float(np.median(np.concatenate([one.asymmetry_us for one in ours]))),
            "best_reference": best,
            "best_reference_p99_us": causal[best]["p99_us"],
            "references": table,
            "seeds": list(seeds),
        }
    if live_s > 0:
        results["live"] = live_results(live_s)
    return results


def print_results(results: dict[str, Any]) -> None:
    """Print a table per shape, and the live run."""
    print(f"machine: {platform.processor() or platform.machine()}, Python {platform.python_version()}\n")
    for name, row in results.items():
        if name == "live":
            print("live, on loopback, both interpreters busy:")
            print_live(row)
            continue
        low, high = row["p99_ci95_us"]
        goal = (
            ""
            if row["goal_p99_us"] is None
            else f" (goal {row['goal_p99_us']}, max {row['goal_max_us'] or '-'})"
        )
        print(f"{name}: {len(row['seeds'])} seeds{goal}")
        print(f"  {'estimator':30} {'p50 us':>9} {'p99 us':>9} {'max us':>9}")
        print(
            f"  {'sensorium':30} {row['p50_us']:9.1f} {row['p99_us']:9.1f} {row['max_us']:9.1f}"
            f"   p99 95 % interval {low:.1f} ... {high:.1f}"
        )
        for reference, found in row["references"].items():
            print(f"  {reference:30} {found['p50_us']:9.1f} {found['p99_us']:9.1f} {found['max_us']:9.1f}")
        print(
            f"  stated 95 % bound covers {row['coverage']:.1%} (with the asymmetry term"
            f" {row['coverage_with_asymmetry']:.1%}), {row['width_ratio']:.2f} of the real p95;"
            f" hard interval covers {row['hard_coverage']:.2%}, median half width {row['hard_p50_us']:.0f} us\n"
        )


def main(arguments: Sequence[str]) -> int:
    """Print the table; 0 = every goal reached."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="", help="comma separated; default 900 ... 919")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--live-seconds", type=float, default=40.0, help="0 = without the run beside liblsl")
    options = parser.parse_args(arguments)
    seeds = [int(part) for part in options.seeds.split(",") if part] or DEFAULT_SEEDS
    results = two_way_results(seeds, live_s=options.live_seconds)
    if options.json:
        print(json.dumps(results, indent=2))
    else:
        print_results(results)
    return 0 if all(map(_is_reached, results.values())) else 1


def _is_reached(row: dict[str, Any]) -> bool:
    if "references" in row:
        return row["goal_p99_us"] is None or row["p99_us"] <= row["goal_p99_us"]
    return "skipped" in row or row["sensorium"]["p99_us"] <= row["liblsl"]["p99_us"]


_print_table = print_results


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
