"""Writer and reader throughput beside the mcap library's writer and a plain write, on the mixed load of
specs/performance.md 2. Only ratios are asserted; run with ``-m bench -s``."""

import os
import platform
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import pytest
from episode_samples import TIMELINE
from mcap.writer import CompressionType, Writer

from sensorium.drivers.frame import Column, Frame, Modality, StreamInfo, stamps
from sensorium.sync.clocks.model import Stamped, Uncertainty
from sensorium.sync.episode.layouts import layout_for
from sensorium.sync.episode.reader import Episode
from sensorium.sync.episode.writer import EpisodeWriter, WriterPolicy
from sensorium.timebase import SECOND_NS

pytestmark = pytest.mark.bench

SECONDS = 5
ROUNDS = 5
UNCERTAINTY = Uncertainty(1.0, 2.0, 3.0)
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


def mixed_load() -> list[tuple[Frame, Stamped]]:
    """Return the frames of the load in order of arrival; payloads are taken from a small pool."""
    rng = np.random.default_rng(4)
    pool = {info.name: [rng.bytes(size) for _ in range(4)] for info, _, _, size in LOAD}
    timed = []
    for info, per_second, count, _ in LOAD:
        for index in range(SECONDS * per_second):
            arrival_ns = SECOND_NS + index * SECOND_NS // per_second
            frame = Frame(
                info.name, index * count, count, None, stamps(arrival_ns), pool[info.name][index % 4]
            )
            timed.append((arrival_ns, frame, Stamped(stamps(arrival_ns - 1000), UNCERTAINTY, 0)))
    timed.sort(key=lambda entry: entry[0])
    return [(frame, stamped) for _, frame, stamped in timed]


def stored(info: StreamInfo) -> StreamInfo:
    """Return the stream with its payload kept as it is: compression would hide the cost of writing."""
    return replace(info, encoding="jpeg", columns=(), shape=())


def write_ours(folder: Path, load: list[tuple[Frame, Stamped]]) -> None:
    writer = EpisodeWriter(
        folder, "01HF7YAT00ZK5A740N4BRDFWH4", TIMELINE, WriterPolicy(sync_s=None, reserve_bytes=0)
    )
    for info, *_ in LOAD:
        writer.declare(stored(info))
    for frame, stamped in load:
        writer.write(frame, stamped, 0)
    writer.close()


def write_library(folder: Path, load: list[tuple[Frame, Stamped]]) -> None:
    folder.mkdir()
    with (folder / "data.mcap").open("wb") as file:
        writer = Writer(file, compression=CompressionType.NONE, enable_data_crcs=True)
        writer.start()
        channels = {}
        for info, *_ in LOAD:
            layout = layout_for(stored(info))
            schema = layout.channel.schema
            schema_id = writer.register_schema(schema.name, schema.encoding, schema.data)
            channels[info.name] = (
                layout,
                writer.register_channel(layout.channel.topic, "protobuf", schema_id),
            )
        for frame, stamped in load:
            layout, channel_id = channels[frame.stream]
            data = b"".join(layout.wrap_parts(frame, int(stamped.capture_ns[0])))
            log_ns = int(frame.arrival_ns[0])
            writer.add_message(channel_id, log_ns, data, int(stamped.capture_ns[0]), frame.seq & 0xFFFFFFFF)
        writer.finish()


def write_raw(folder: Path, load: list[tuple[Frame, Stamped]]) -> None:
    folder.mkdir()
    with (folder / "raw").open("wb") as file:
        for frame, _ in load:
            file.write(frame.payload)


def seconds(action: Callable[[], None]) -> tuple[float, float]:
    """Return (wall, CPU) seconds; CPU is what a machine shared with others can still compare."""
    wall, cpu = time.perf_counter(), time.process_time()
    action()
    return time.perf_counter() - wall, time.process_time() - cpu


def scratch_folders(tmp_path: Path) -> Iterator[Path]:
    for index in range(1000):
        yield tmp_path / str(index)


def test_the_writer_is_cheaper_than_the_mcap_librarys(tmp_path: Path) -> None:
    load = mixed_load()
    size = sum(len(frame.payload) for frame, _ in load)
    folders = scratch_folders(tmp_path)
    kept = tmp_path / "kept"
    write_ours(kept, load)
    times: dict[str, list[tuple[float, float]]] = {}
    for _ in range(ROUNDS):
        for name, write in (("ours", write_ours), ("mcap", write_library), ("raw", write_raw)):
            folder = next(folders)
            times.setdefault(name, []).append(seconds(partial(write, folder, load)))
            shutil.rmtree(folder)
    walls = {name: median(wall for wall, _ in found) for name, found in times.items()}
    cpus = {name: median(cpu for _, cpu in found) for name, found in times.items()}
    with Episode(kept) as episode:
        read_s, _ = seconds(lambda: deque(episode.frames(), maxlen=0).clear())
    print(f"\n{platform.machine()}, {os.cpu_count()} CPUs, {size / 1e6:.0f} MB, {len(load)} frames, stored")
    for name, wall in walls.items():
        print(f"{name:5} {size / wall / 1e6:6.0f} MB/s  {cpus[name] / size * 1e9:.2f} CPU s/GB")
    print(f"read  {size / read_s / 1e6:6.0f} MB/s")
    print(f"ours/mcap {walls['mcap'] / walls['ours']:.2f} (CPU {cpus['mcap'] / cpus['ours']:.2f})")
    assert cpus["mcap"] > 1.2 * cpus["ours"]
