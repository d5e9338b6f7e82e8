"""The episode writer beside a plain write, foxglove-sdk and mcap, on the loads of specs/performance.md 2.

    python tests/bench/writing.py [--rounds 5] [--seconds 5] [--folder DIR] [--json]

Every run is a process of its own, rounds are interleaved, medians are printed. ``mixed``: the 72 MB/s rig, small
samples in blocks of 10 as drivers batch them, every payload stored. ``small``: samples of 100 B; ours one frame
each, and in blocks of 10 and 100 with a device and an arrival stamp for every sample; the peers one message each
(they know no blocks). Peers get payloads as they are, ours wraps them into its schemas and stores their stamps.
``latency``: what one call of ``write`` takes while the disk writes and syncs, paced at 4 times the rig's rate
and at full speed. Only the page cache is written to; the disk itself would be the limit of all of them.
"""

import argparse
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from sensorium.drivers.frame import Column, Frame, Modality, StreamInfo, stamps
from sensorium.sync.clocks.model import Stamped, Uncertainty
from sensorium.sync.episode.reader import Episode
from sensorium.sync.episode.writer import EpisodeWriter, WriterPolicy
from sensorium.timebase import SECOND_NS, Timeline

TIMELINE = Timeline("bench", 1_700_000_000 * SECOND_NS)
EPISODE_ID = "01HF7YAT00ZK5A740N4BRDFWH4"
UNSETTLED_BYTES = 64 << 20
"""The feeder waits beyond this, as drivers do that are out of credit."""
PACE = 4
SMALL_SAMPLES = 300_000
SMALL_BYTES = 100
FORCE = Column("fx", "N", "<i4", 1e-6)
LOAD = (
    # stream, frames per second, samples per frame, bytes per frame
    *((StreamInfo(f"cam{n}", Modality.OTHER, "jpeg", 30.0, "cam"), 30, 1, 251_000) for n in range(4)),
    (StreamInfo("lidar", Modality.LIDAR, "ouster", 1280.0, "lidar"), 20, 64, 64 * 32_768),
    (
        StreamInfo("imu", Modality.IMU, "columns", 1000.0, "imu", columns=(Column("a", "", "<i4"),) * 25),
        100,
        10,
        1000,
    ),
    (StreamInfo("force", Modality.FORCE, "columns", 1000.0, "ft", columns=(FORCE,) * 15), 100, 10, 600),
    (StreamInfo("mic", Modality.AUDIO, "pcm_s16le", 102_400.0, "mic", shape=(2,)), 100, 1024, 4096),
)
SMALL = StreamInfo("imu", Modality.IMU, "columns", 1000.0, "imu", columns=(Column("a", "", "<i4"),) * 25)
UNCERTAINTY = Uncertainty(1.0, 2.0, 3.0)

Load = list[tuple[Frame, Stamped]]
Lap = tuple[float, float]


def stored(info: StreamInfo) -> StreamInfo:
    """Return the stream with its payload kept as it is: compression would hide the cost of writing."""
    return replace(info, encoding="jpeg", columns=(), shape=())


def mixed_load(seconds: float) -> Load:
    """Return the frames of the rig in order of arrival; payloads are taken from a small pool."""
    rng = np.random.default_rng(4)
    pool = {info.name: [rng.bytes(size) for _ in range(4)] for info, _, _, size in LOAD}
    timed = []
    for info, per_second, count, _ in LOAD:
        for index in range(int(seconds * per_second)):
            arrival_ns = SECOND_NS + index * SECOND_NS // per_second
            frame = Frame(
                info.name, index * count, count, None, stamps(arrival_ns), pool[info.name][index % 4]
            )
            timed.append((arrival_ns, frame, Stamped(stamps(arrival_ns - 1000), UNCERTAINTY, 0)))
    timed.sort(key=lambda entry: entry[0])
    return [(frame, stamped) for _, frame, stamped in timed]


def small_load(block: int) -> Load:
    """Return the small samples in frames of ``block``: slow counts with noise, stamped one by one."""
    rng = np.random.default_rng(5)
    walk = rng.integers(-200, 200, (SMALL_SAMPLES, SMALL_BYTES // 4), dtype=np.int32).cumsum(0, np.int32)
    found = []
    for seq in range(0, SMALL_SAMPLES, block):
        payload = walk[seq : seq + block].T.tobytes()
        ticks = np.arange(seq, seq + block, dtype=np.int64) * 1000
        arrivals = SECOND_NS + ticks * 1000
        frame = Frame("imu", seq, block, ticks, arrivals, payload)
        found.append((frame, Stamped(arrivals - 700_000, UNCERTAINTY, 0)))
    return found


def write_ours(
    folder: Path, infos: Sequence[StreamInfo], load: Load, policy: WriterPolicy | None = None
) -> None:
    """Write the load as fast as the writer settles it; the episode is closed when this returns."""
    writer = EpisodeWriter(folder, EPISODE_ID, TIMELINE, policy or WriterPolicy(sync_s=None, reserve_bytes=0))
    for info in infos:
        writer.declare(info)
    unsettled = 0
    for frame, stamped in load:
        size = len(frame.payload)
        writer.write(frame, stamped, 0, held=size)
        unsettled += size
        while unsettled > UNSETTLED_BYTES:
            time.sleep(0.005)
            unsettled -= sum(writer.take_settled())
    writer.close()


def write_raw(folder: Path, load: Load) -> None:
    """Write the payloads and nothing else."""
    folder.mkdir()
    with (folder / "raw").open("wb") as file:
        for frame, _ in load:
            file.write(frame.payload)


def write_foxglove(folder: Path, load: Load) -> None:
    """Write the payloads with foxglove-sdk, chunks of its default size, no compression."""
    import foxglove
    from foxglove.mcap import MCAPWriteOptions

    folder.mkdir()
    context = foxglove.Context()
    options = MCAPWriteOptions(compression=None)
    with foxglove.open_mcap(folder / "data.mcap", context=context, writer_options=options):
        channels = {
            name: foxglove.Channel(
                f"/{name}",
                message_encoding="protobuf",
                schema=foxglove.Schema(name="bench.Bytes", encoding="protobuf", data=b""),
                context=context,
            )
            for name in {frame.stream for frame, _ in load}
        }
        for frame, _ in load:
            payload: Any = frame.payload
            channels[frame.stream].log(payload, log_time=int(frame.arrival_ns[0]))


def write_mcap(folder: Path, load: Load) -> None:
    """Write the payloads with the mcap library, chunks of its default size, no compression."""
    from mcap.writer import CompressionType, Writer

    folder.mkdir()
    with (folder / "data.mcap").open("wb") as file:
        writer = Writer(file, compression=CompressionType.NONE, enable_data_crcs=True)
        writer.start()
        schema_id = writer.register_schema("bench.Bytes", "protobuf", b"")
        channels = {
            name: writer.register_channel(f"/{name}", "protobuf", schema_id)
            for name in {frame.stream for frame, _ in load}
        }
        for frame, _ in load:
            log_ns = int(frame.arrival_ns[0])
            payload: Any = frame.payload
            writer.add_message(channels[frame.stream], log_ns, payload, log_ns, frame.seq)
        writer.finish()  # type: ignore[no-untyped-call]


MIXED: dict[str, Callable[[Path, Load], None]] = {
    "raw": write_raw,
    "sensorium": lambda folder, load: write_ours(folder, [stored(info) for info, *_ in LOAD], load),
    "foxglove_sdk": write_foxglove,
    "mcap": write_mcap,
}
SMALL_WRITERS: dict[str, tuple[int, Callable[[Path, Load], None]]] = {
    "raw": (1, write_raw),
    "sensorium, one by one": (1, lambda folder, load: write_ours(folder, [stored(SMALL)], load)),
    "sensorium, blocks of 10": (10, lambda folder, load: write_ours(folder, [stored(SMALL)], load)),
    "sensorium, blocks of 100": (100, lambda folder, load: write_ours(folder, [stored(SMALL)], load)),
    "sensorium, blocks of 100, zstd": (100, lambda folder, load: write_ours(folder, [SMALL], load)),
    "foxglove_sdk": (1, write_foxglove),
    "mcap": (1, write_mcap),
}


# -- one run, in a process of its own


def run(kind: str, name: str, folder: Path, seconds: float) -> dict[str, float]:
    """Return what one writer cost: wall and CPU seconds, bytes in and out, growth of memory."""
    if kind == "mixed":
        load, write = mixed_load(seconds), MIXED[name]
    else:
        block, write = SMALL_WRITERS[name]
        load = small_load(block)
    size = sum(len(frame.payload) for frame, _ in load)
    write(folder / "warm", load[: len(load) // 10])
    shutil.rmtree(folder / "warm")
    before_bytes = _peak_rss_bytes()
    wall, cpu = time.perf_counter(), time.process_time()
    write(folder / "run", load)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    grown_bytes = _peak_rss_bytes(is_reset=False) - before_bytes
    out_bytes = sum(path.stat().st_size for path in (folder / "run").iterdir())
    return {
        "wall_s": wall,
        "cpu_s": cpu,
        "bytes": size,
        "out_bytes": out_bytes,
        "samples": sum(frame.count for frame, _ in load),
        "rss_growth_mb": grown_bytes / 1e6,
    }


def _peak_rss_bytes(is_reset: bool = True) -> int:
    """Return the most memory since the last reset (and begin anew, from what is used now)."""
    if is_reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def run_latency(pace: float, folder: Path, seconds: float) -> dict[str, float]:
    """Return what ``write`` takes while chunks are written and synced once a second; ``pace`` 0 = unpaced."""
    load = mixed_load(seconds * (pace or 1))
    writer = EpisodeWriter(folder / "run", EPISODE_ID, TIMELINE, WriterPolicy(sync_s=1.0))
    for info, *_ in LOAD:
        writer.declare(info)
    took_ns = []
    first_ns = int(load[0][0].arrival_ns[0])
    size = unsettled = most = next_step_ns = 0
    begin_ns = time.perf_counter_ns()
    for frame, stamped in load:
        due_ns = begin_ns + (int(frame.arrival_ns[0]) - first_ns) / pace if pace else 0
        while (now_ns := time.perf_counter_ns()) < due_ns or (not pace and unsettled > UNSETTLED_BYTES):
            time.sleep(0.0005)
            unsettled -= sum(writer.take_settled())
        writer.write(frame, stamped, 0, held=len(frame.payload))
        took_ns.append(time.perf_counter_ns() - now_ns)
        size += len(frame.payload)
        unsettled += len(frame.payload) - sum(writer.take_settled())
        most = max(most, unsettled)
        if now_ns >= next_step_ns:
            writer.step(now_ns)
            next_step_ns = now_ns + 10_000_000
    wall = (time.perf_counter_ns() - begin_ns) / 1e9
    writer.close()
    p50, p99, p999 = np.percentile(took_ns, (50, 99, 99.9)) / 1e3
    return {
        "p50_us": p50,
        "p99_us": p99,
        "p99_9_us": p999,
        "max_us": max(took_ns) / 1e3,
        "mb_per_s": size / wall / 1e6,
        "most_unsettled_mb": most / 1e6,
    }


def run_read(folder: Path, seconds: float) -> dict[str, float]:
    """Return what it costs to read all frames of the mixed load back, checksums and stamps included."""
    load = mixed_load(seconds)
    size = sum(len(frame.payload) for frame, _ in load)
    write_ours(folder / "run", [stored(info) for info, *_ in LOAD], load)
    with Episode(folder / "run") as episode:
        wall, cpu = time.perf_counter(), time.process_time()
        deque(episode.frames(), maxlen=0)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"mb_per_s": size / wall / 1e6, "cpu_s_per_gb": cpu / size * 1e9}


# -- all runs


def measure(folder: Path, rounds: int = 5, seconds: float = 5.0) -> dict[str, Any]:
    """Return every figure of this bench; ``folder`` takes scratch files of some hundred MB.

    Returns:
        ``mixed`` and ``small`` by writer (medians; ``of_raw`` is the median over rounds of the share of the plain
        write's speed in the same round), ``read``, ``latency``, ``skipped`` (writer: why),
        ``machine``.
    """
    skipped = {}
    if importlib.util.find_spec("foxglove") is None or not hasattr(__import__("foxglove"), "open_mcap"):
        skipped["foxglove_sdk"] = "foxglove-sdk is not installed (extra dev)"
    document: dict[str, Any] = {"machine": machine(), "skipped": skipped}
    for kind, names in (("mixed", list(MIXED)), ("small", list(SMALL_WRITERS))):
        found: dict[str, list[dict[str, float]]] = {name: [] for name in names if name not in skipped}
        for _ in range(rounds):
            for name, laps in found.items():
                laps.append(_child(folder, "--run", kind, name, "--seconds", seconds))
        document[kind] = {name: _summary(laps, found["raw"]) for name, laps in found.items()}
    document["read"] = _child(folder, "--read", "--seconds", seconds)
    document["latency"] = {
        name: _medians([_child(folder, "--latency", pace, "--seconds", seconds) for _ in range(rounds)])
        for name, pace in (("paced", PACE), ("full_speed", 0))
    }
    return document


def _child(folder: Path, *arguments: object) -> dict[str, float]:
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        command = [sys.executable, __file__, *map(str, arguments), "--folder", scratch]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=600)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _medians(laps: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: median(lap[name] for lap in laps) for name in laps[0]}


def _summary(laps: Sequence[dict[str, float]], raw: Sequence[dict[str, float]]) -> dict[str, float]:
    return {
        "mb_per_s": median(lap["bytes"] / lap["wall_s"] for lap in laps) / 1e6,
        "of_raw": median(plain["wall_s"] / lap["wall_s"] for lap, plain in zip(laps, raw, strict=True)),
        "samples_per_s": median(lap["samples"] / lap["wall_s"] for lap in laps),
        "cpu_s_per_gb": median(lap["cpu_s"] / lap["bytes"] for lap in laps) * 1e9,
        "out_in": laps[0]["out_bytes"] / laps[0]["bytes"],
        "rss_growth_mb": median(lap["rss_growth_mb"] for lap in laps),
    }


def machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    return {
        "cpus": os.cpu_count(),
        "load_1min": os.getloadavg()[0],
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "isal": importlib.util.find_spec("isal") is not None,
    }


def table(document: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of the printed form."""
    found = document["machine"]
    yield f"{found['machine']}, {found['cpus']} CPUs, Python {found['python']}, load {found['load_1min']:.1f}"
    for kind in ("mixed", "small"):
        yield f"\n{kind:30}  MB/s  of raw  samples/s  CPU s/GB  out/in  RSS +MB"
        for name, row in document[kind].items():
            yield (
                f"{name:30} {row['mb_per_s']:5.0f} {row['of_raw']:7.2f} {row['samples_per_s']:10,.0f} "
                f"{row['cpu_s_per_gb']:9.2f} {row['out_in']:7.3f} {row['rss_growth_mb']:8.1f}"
            )
    yield "\nwrite, us           p50     p99   p99.9       max   MB/s  unsettled MB"
    for name, row in document["latency"].items():
        yield (
            f"{name:16} {row['p50_us']:6.1f} {row['p99_us']:7.1f} {row['p99_9_us']:7.0f} {row['max_us']:9.0f} "
            f"{row['mb_per_s']:6.0f} {row['most_unsettled_mb']:8.0f}"
        )
    yield f"\nread {document['read']['mb_per_s']:.0f} MB/s, {document['read']['cpu_s_per_gb']:.2f} CPU s/GB"
    for name, reason in document["skipped"].items():
        yield f"{name}: skipped, {reason}"


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="of rig time per run")
    parser.add_argument(
        "--folder", type=Path, default=None, help="for scratch files; a temporary one if absent"
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--run", nargs=2, metavar=("LOAD", "WRITER"), help=argparse.SUPPRESS)
    parser.add_argument("--read", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--latency", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run is not None:
        load, writer = options.run
        print(json.dumps(run(load, writer, options.folder, options.seconds)))
    elif options.read:
        print(json.dumps(run_read(options.folder, options.seconds)))
    elif options.latency is not None:
        print(json.dumps(run_latency(options.latency, options.folder, options.seconds)))
    else:
        with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
            document = measure(Path(scratch), options.rounds, options.seconds)
        print(json.dumps(document, indent=1) if options.json else "\n".join(table(document)))


if __name__ == "__main__":
    main()
