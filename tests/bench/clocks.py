"""Measure every clock against truth and against reference estimators on the same samples.

    python tests/bench/clocks.py [--seeds 1,2,3 or 900-919] [--only one_way,audio] [--quick] [--json]
    python tests/bench/clocks.py --only families [--family step] [--generators FILE.py] [--quick]

Prints one table per kind of clock, or with ``--json`` one document. Development used seeds below 200; the
default seeds are others. What ``--generators`` wants of its file stands in clock_samples.py.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import clock_claims
import clock_real
import clock_samples
import clock_scores
import clock_shapes as shapes
import content
import numpy as np
import two_way
from clock_families import FAMILIES
from clock_scores import interval, progress
from published_path import PublishedPath

from sensorium.drivers.frame import ClockKind, DeviceClock, Encoding, Frame, Latency, Modality, StreamInfo
from sensorium.sync.clocks.published import MapStamper
from sensorium.sync.clocks.remap import remap
from sensorium.sync.clocks.tracker import StreamTracker

DEFAULT_SEEDS = tuple(range(900, 920))
QUICK_SEEDS = (900, 901, 902)
SHARED_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def stream(rate_hz: float) -> StreamInfo:
    return StreamInfo(
        "bench",
        Modality.OTHER,
        Encoding.JPEG,
        rate_hz,
        "bench",
        DeviceClock(ClockKind.FREE, 1000, 1, shapes.MODULUS),
        Latency(shapes.MIN_LATENCY_NS, 0, 10**9),
    )


def run_tracker(
    simulation: shapes.Simulation, tracker: StreamTracker | PublishedPath
) -> tuple[Any, Any, int, float]:
    """Return signed errors (us), stated bounds (us), captures after arrival, and seconds used per sample."""
    count = simulation.capture_ns.size
    capture = np.empty(count, np.int64)
    bound = np.empty(count)
    ticks, arrivals = simulation.raw_ticks.reshape(-1, 1), simulation.arrival_ns.reshape(-1, 1)
    frames = [Frame("bench", index, 1, ticks[index], arrivals[index], b"") for index in range(count)]
    begin = time.process_time()
    for index, frame in enumerate(frames):
        stamped = tracker.update(frame)
        capture[index] = stamped.capture_ns[0]
        bound[index] = stamped.uncertainty.bound95_ns
    used_s = (time.process_time() - begin) / count
    after_arrival = int((capture > simulation.arrival_ns).sum())
    return (capture - simulation.capture_ns) / 1e3, bound / 1e3, after_arrival, used_s


def bench_published(seeds: Sequence[int], cost_us: dict[str, float]) -> dict[str, Any]:
    """The same samples through recorder and thinker: maps come a batch late; beside the tracker's own stamps."""
    result: dict[str, Any] = {}
    for shape in shapes.SHAPES:
        ours, own, bounds, resets, own_resets, costs = [], [], [], [], [], []
        for seed in seeds:
            progress(f"published {shape.name} seed {seed}")
            simulation = shapes.simulate(shape, seed)
            age_s = simulation.age_s()
            is_settled = age_s > shapes.SETTLE_S
            is_after_reset = (age_s < 5) & (simulation.epoch == 1)
            error, bound, _, _ = run_tracker(simulation, PublishedPath(stream(shape.rate_hz)))
            other, _, _, _ = run_tracker(simulation, StreamTracker(stream(shape.rate_hz)))
            ours.append(np.abs(error[is_settled]))
            own.append(np.abs(other[is_settled]))
            bounds.append(bound[is_settled])
            resets.append(np.abs(error[is_after_reset]))
            own_resets.append(np.abs(other[is_after_reset]))
            costs.append(stamper_cost_us(simulation, stream(shape.rate_hz)))
        pooled, stated = np.concatenate(ours), np.concatenate(bounds)
        result[shape.name] = {
            "p99_us": float(np.percentile(pooled, 99)),
            "own_p99_us": float(np.percentile(np.concatenate(own), 99)),
            "coverage": float((pooled <= stated).mean()),
            "after_reset_p99_us": float(np.percentile(np.concatenate(resets), 99)),
            "own_after_reset_p99_us": float(np.percentile(np.concatenate(own_resets), 99)),
            "recorder_us_per_frame": float(np.median(costs)),
            "seeds": len(seeds),
        }
    return result


def stamper_cost_us(simulation: shapes.Simulation, info: StreamInfo) -> float:
    """Return what a frame costs the recorder while a map is in force."""
    ticks, arrivals = simulation.raw_ticks.reshape(-1, 1), simulation.arrival_ns.reshape(-1, 1)
    count = min(5000, len(ticks))
    frames = [Frame("bench", index, 1, ticks[index], arrivals[index], b"") for index in range(count)]
    stamper = MapStamper(info)
    stamper.stamp(frames[0])
    begin = time.process_time()
    for frame in frames[1:]:
        stamper.stamp(frame)
    return (time.process_time() - begin) / count * 1e6


def table_published(result: dict[str, Any]) -> None:
    print("\nthrough recorder and thinker: |error| in us, settled; beside it the tracker's own stamps")
    print(f"{'shape':20}{'p99':>8}{'own':>8}{'covers':>8}{'reset':>8}{'own':>8}{'us/frame':>10}")
    for name, row in result.items():
        print(
            f"{name:20}{row['p99_us']:8.1f}{row['own_p99_us']:8.1f}{row['coverage']:8.3f}"
            f"{row['after_reset_p99_us']:8.0f}{row['own_after_reset_p99_us']:8.0f}"
            f"{row['recorder_us_per_frame']:10.1f}"
        )


def bench_one_way(seeds: Sequence[int], cost_us: dict[str, float]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for shape in shapes.SHAPES:
        errors, bounds, after_reset, starts, oracle, used = [], [], [], [], [], []
        references: dict[str, list[Any]] = {name: [] for name in shapes.REFERENCES}
        late = 0
        for seed in seeds:
            progress(f"one_way {shape.name} seed {seed}")
            simulation = shapes.simulate(shape, seed)
            age_s = simulation.age_s()
            is_settled = age_s > shapes.SETTLE_S
            error, bound, after, used_s = run_tracker(simulation, StreamTracker(stream(shape.rate_hz)))
            late += after
            used.append(used_s)
            errors.append(error[is_settled])
            bounds.append(bound[is_settled])
            is_young = age_s < 5
            after_reset.append(np.abs(error[is_young & (simulation.epoch == 1)]))
            starts.append(np.abs(error[is_young & (simulation.epoch == 0)]))
            oracle.append(np.abs(shapes.oracle_after_reset(shape, simulation)))
            for name, estimator in shapes.REFERENCES.items():
                references[name].append(np.abs(shapes.run_reference(estimator, simulation)[is_settled]))
        pooled = np.abs(np.concatenate(errors))
        stated = np.concatenate(bounds)
        p95 = float(np.percentile(pooled, 95))
        per_seed_coverage = [
            float((np.abs(error) <= bound).mean()) for error, bound in zip(errors, bounds, strict=True)
        ]
        reference_p99 = {
            name: float(np.percentile(np.concatenate(found), 99)) for name, found in references.items()
        }
        best = min(reference_p99, key=reference_p99.__getitem__)
        result[shape.name] = {
            "p50_us": float(np.percentile(pooled, 50)),
            "p95_us": p95,
            "p99_us": float(np.percentile(pooled, 99)),
            "p99_interval_us": interval([np.abs(one) for one in errors], 99),
            "goal_p99_us": shape.goal_p99_us,
            "max_us": float(pooled.max()),
            "coverage": float((pooled <= stated).mean()),
            "coverage_worst_seed": min(per_seed_coverage),
            "width_ratio": float(stated.mean()) / p95,
            "after_reset_p99_us": float(np.percentile(np.concatenate(after_reset), 99)),
            "after_reset_p99_interval_us": interval(after_reset, 99),
            "after_reset_oracle_p99_us": float(np.percentile(np.concatenate(oracle), 99)),
            "start_p99_us": float(np.percentile(np.concatenate(starts), 99)),
            "after_arrival": late,
            "best_reference": best,
            "best_reference_p99_us": reference_p99[best],
            "reference_p99_us": reference_p99,
            "seeds": len(seeds),
        }
        cost_us[shape.name] = float(np.median(used)) * 1e6
    return result


def bench_audio(seeds: Sequence[int], cost_us: dict[str, float]) -> dict[str, Any]:
    """Blocks of 480 samples of 48 kHz; the error of the first sample's capture, in samples, median removed."""
    result: dict[str, Any] = {}
    info = StreamInfo(
        "bench",
        Modality.AUDIO,
        Encoding.PCM_S16LE,
        shapes.AUDIO_RATE_HZ,
        "bench",
        DeviceClock(ClockKind.SAMPLES, 10**9, shapes.AUDIO_RATE_HZ),
        Latency(shapes.AUDIO_MIN_LATENCY_NS, 0, 10**9),
    )
    sample_us = 1e6 / shapes.AUDIO_RATE_HZ
    for jitter_ms in (0.3, 1.0):
        ours, covered, used = [], [], []
        references: dict[str, list[Any]] = {name: [] for name in shapes.REFERENCES}
        for seed in seeds:
            progress(f"audio {jitter_ms} ms seed {seed}")
            capture_ns, counters, arrival_ns = shapes.simulate_audio(jitter_ms * 1e6, seed)
            tracker = StreamTracker(info)
            is_settled = capture_ns - capture_ns[0] > shapes.SETTLE_S * 1e9
            estimate = np.empty(capture_ns.size, np.int64)
            bound = np.empty(capture_ns.size)
            begin = time.process_time()
            for index in range(capture_ns.size):
                seq = int(counters[index])
                frame = Frame(
                    "bench", seq, 480, counters[index : index + 1], arrival_ns[index : index + 1], b""
                )
                stamped = tracker.update(frame)
                estimate[index] = stamped.capture_ns[0]
                bound[index] = stamped.uncertainty.bound95_ns
            used.append((time.process_time() - begin) / capture_ns.size)
            error = ((estimate - capture_ns) / 1e3)[is_settled]
            covered.append(float((np.abs(error) <= bound[is_settled] / 1e3).mean()))
            ours.append(np.abs(error - np.median(error)) / sample_us)
            device = (counters * (1e9 / shapes.AUDIO_RATE_HZ)).astype(np.float64)
            host = (arrival_ns - arrival_ns[0]).astype(np.float64)
            truth = (capture_ns + shapes.AUDIO_MIN_LATENCY_NS - arrival_ns[0]).astype(np.float64)
            for name, estimator in shapes.REFERENCES.items():
                other = ((np.minimum(estimator(device, host), host) - truth) / 1e3)[is_settled]
                references[name].append(np.abs(other - np.median(other)) / sample_us)
        pooled = np.concatenate(ours)
        reference_p99 = {name: float(np.percentile(np.concatenate(v), 99)) for name, v in references.items()}
        best = min(reference_p99, key=reference_p99.__getitem__)
        result[f"{jitter_ms}ms"] = {
            "p50_samples": float(np.percentile(pooled, 50)),
            "p99_samples": float(np.percentile(pooled, 99)),
            "goal_p99_samples": 0.55,
            "max_samples": float(pooled.max()),
            "coverage": float(np.mean(covered)),
            "best_reference": best,
            "best_reference_p99_samples": reference_p99[best],
            "reference_p99_samples": reference_p99,
            "seeds": len(seeds),
        }
        cost_us[f"audio_{jitter_ms}ms_per_block"] = float(np.median(used)) * 1e6
    return result


def table_audio(result: dict[str, Any]) -> None:
    print("\naudio: |error - median| in samples of 48 kHz, blocks of 480")
    for name, row in result.items():
        print(
            f"jitter {name:6} p50 {row['p50_samples']:.3f}  p99 {row['p99_samples']:.3f} (goal 0.55)  max"
            f" {row['max_samples']:.2f}  covers {row['coverage']:.3f}  best reference"
            f" {row['best_reference_p99_samples']:.3f} ({row['best_reference']})"
        )


def table_one_way(result: dict[str, Any]) -> None:
    print("\none-way: |error| in us, settled (older than 15 s in its epoch); reset = first 5 s after it")
    print(
        f"{'shape':20}{'p50':>7}{'p99':>8}{'(95 % interval)':>18}{'goal':>6}{'max':>8}{'covers':>8}{'worst':>7}"
        f"{'width':>7}{'reset':>8}{'(95 % interval)':>18}{'oracle':>8}{'start':>8}{'best reference':>28}"
    )
    for name, row in result.items():
        spread = "({:.1f}-{:.1f})".format(*row["p99_interval_us"])
        reset = "({:.0f}-{:.0f})".format(*row["after_reset_p99_interval_us"])
        goal = f"{row['goal_p99_us']:g}" if row["goal_p99_us"] else "-"
        best = f"{row['best_reference_p99_us']:.1f} {row['best_reference']}"
        print(
            f"{name:20}{row['p50_us']:7.1f}{row['p99_us']:8.1f}{spread:>18}{goal:>6}{row['max_us']:8.1f}"
            f"{row['coverage']:8.3f}{row['coverage_worst_seed']:7.2f}{row['width_ratio']:7.2f}"
            f"{row['after_reset_p99_us']:8.0f}{reset:>18}{row['after_reset_oracle_p99_us']:8.0f}"
            f"{row['start_p99_us']:8.0f}"
            f"{best:>28}"
        )
    print("\nreference p99 (us)")
    names = list(shapes.REFERENCES)
    print(f"{'shape':20}" + "".join(f"{name:>19}" for name in names))
    for name, row in result.items():
        print(f"{name:20}" + "".join(f"{row['reference_p99_us'][one]:19.1f}" for one in names))


OFFLINE_SHAPES = ("200hz_1.5ms", "30hz_1.5ms", "soft_floor")
OFFLINE_SEEDS = 3
"""A re-map holds a whole stream in memory and takes its time; three runs of 20 minutes show the gain."""


def bench_offline(seeds: Sequence[int], cost_us: dict[str, float]) -> dict[str, Any]:
    """Stored streams re-mapped from both sides; every sample counts, the first ones of an epoch too."""
    result: dict[str, Any] = {}
    for shape in shapes.SHAPES:
        if shape.name not in OFFLINE_SHAPES:
            continue
        errors, covered, used = [], [], []
        for seed in seeds[:OFFLINE_SEEDS]:
            progress(f"offline {shape.name} seed {seed}")
            simulation = shapes.simulate(shape, seed)
            ticks, arrivals = simulation.raw_ticks.reshape(-1, 1), simulation.arrival_ns.reshape(-1, 1)
            frames = [Frame("bench", i, 1, ticks[i], arrivals[i], b"") for i in range(ticks.size)]
            begin = time.process_time()
            stamped = remap(stream(shape.rate_hz), frames)
            used.append((time.process_time() - begin) / ticks.size)
            capture = np.array([one.capture_ns[0] for one in stamped])
            bound = np.array([one.uncertainty.bound95_ns for one in stamped])
            error = np.abs(capture - simulation.capture_ns)
            errors.append(error / 1e3)
            covered.append(float((error <= bound).mean()))
        pooled = np.concatenate(errors)
        result[shape.name] = {
            "p50_us": float(np.percentile(pooled, 50)),
            "p99_us": float(np.percentile(pooled, 99)),
            "max_us": float(pooled.max()),
            "coverage": float(np.mean(covered)),
            "seeds": len(errors),
        }
        cost_us[f"offline_{shape.name}"] = float(np.median(used)) * 1e6
    return result


def table_offline(result: dict[str, Any]) -> None:
    print("\nre-mapped from both sides: |error| in us over whole runs")
    for name, row in result.items():
        print(
            f"{name:20} p50 {row['p50_us']:6.2f}  p99 {row['p99_us']:6.2f}  max {row['max_us']:7.1f}"
            f"  covers {row['coverage']:.3f}  ({row['seeds']} seeds)"
        )


def bench_blocks(seeds: Sequence[int], cost_us: dict[str, float]) -> dict[str, Any]:
    """The cost of 1 kHz in blocks of 10, as an IMU or force sensor sends them."""
    shape = shapes.Shape("200hz_1.5ms", 1000, 1.5e6)
    progress("blocks")
    simulation = shapes.simulate(shape, seeds[0], duration_s=120.0)
    tracker = StreamTracker(stream(shape.rate_hz))
    count = simulation.capture_ns.size // 10 * 10
    frames = [
        Frame("bench", at, 10, simulation.raw_ticks[at : at + 10], simulation.arrival_ns[at : at + 10], b"")
        for at in range(0, count, 10)
    ]
    begin = time.process_time()
    for frame in frames:
        tracker.update(frame)
    cost_us["1khz_blocks_of_10"] = (time.process_time() - begin) / count * 1e6
    return {}


def bench_two_way(seeds: Sequence[int], cost_us: dict[str, float]) -> dict[str, Any]:
    progress("two_way")
    return two_way.two_way_results(seeds)


def bench_content(seeds: Sequence[int], cost_us: dict[str, float]) -> dict[str, Any]:
    progress("content")
    return content.content_results(seeds)


def bench_claims(seeds: Sequence[int], cost_us: dict[str, float]) -> dict[str, Any]:
    progress("claims")
    return clock_claims.claim_results(seeds)


def bench_real(seeds: Sequence[int], cost_us: dict[str, float]) -> dict[str, Any]:
    progress("real")
    return clock_real.real_results(SHARED_DATA)


def bench_families(seeds: Sequence[int], cost_us: dict[str, float]) -> dict[str, Any]:
    return clock_scores.bench(FAMILIES, seeds, progress)


SECTIONS: dict[str, tuple[Callable[..., dict[str, Any]], Callable[[dict[str, Any]], None]]] = {
    "one_way": (bench_one_way, table_one_way),
    "published": (bench_published, table_published),
    "families": (bench_families, clock_scores.table),
    "audio": (bench_audio, table_audio),
    "offline": (bench_offline, table_offline),
    "blocks": (bench_blocks, lambda result: None),
    "two_way": (bench_two_way, two_way._print_table),
    "content": (bench_content, content.print_results),
    "claims": (bench_claims, clock_claims.print_results),
    "real": (bench_real, clock_real.print_results),
}


def seeds_of(text: str) -> tuple[int, ...]:
    """Return the seeds of ``1,2,3`` or ``900-919``, or of both in turn."""
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        if not first.isdigit() or (last and not last.isdigit()):
            raise argparse.ArgumentTypeError(
                f"seeds are numbers (1,2,3) or a range (900-919), found {text!r}"
            )
        found.extend(range(int(first), int(last or first) + 1))
    return tuple(found)


def rows_of(options: argparse.Namespace) -> dict[str, clock_samples.Generator]:
    """Return the rows of ``families`` that were asked for: ours, or those of a foreign file."""
    known = clock_samples.read_generators(options.generators) if options.generators else FAMILIES
    return {name: known[name] for name in clock_samples.chosen(list(known), options.family)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=seeds_of, help="1,2,3 or 900-919; default 20 seeds from 900")
    parser.add_argument("--only", help="comma-separated sections: " + ", ".join(SECTIONS))
    parser.add_argument("--quick", action="store_true", help="three seeds")
    parser.add_argument("--family", help="of families, only the rows whose name begins like this")
    parser.add_argument(
        "--generators", type=Path, help="a Python file of foreign rows (see clock_samples.py)"
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    seeds = options.seeds or (QUICK_SEEDS if options.quick else DEFAULT_SEEDS)
    is_of_families = options.generators or options.family
    chosen = options.only.split(",") if options.only else ["families"] if is_of_families else list(SECTIONS)
    if unknown := set(chosen) - set(SECTIONS):
        parser.error(f"--only {', '.join(sorted(unknown))}: no such section; there are {', '.join(SECTIONS)}")
    cost_us: dict[str, float] = {}
    document: dict[str, Any] = {}
    for name in chosen:
        bench, table = SECTIONS[name]
        try:
            if name == "families":
                document[name] = clock_scores.bench(rows_of(options), seeds, progress)
            else:
                document[name] = bench(seeds, cost_us)
        except clock_samples.GeneratorError as err:
            parser.exit(2, f"{err}\n")
        if not options.json:
            table(document[name])
    document["cost_us"] = cost_us
    document["machine"] = f"{platform.machine()} {platform.system()}, Python {platform.python_version()}"
    if options.json:
        print(json.dumps(document, indent=1))
    elif cost_us:
        print(
            "\ncost in the tracker, us per sample: " + ", ".join(f"{k} {v:.1f}" for k, v in cost_us.items())
        )
        print(document["machine"])


if __name__ == "__main__":
    main()
