"""The bus between two real processes, beside plain ZeroMQ over ipc in the same run.

    python tests/bench/bus.py [--rounds N] [--json]

``throughput``: MB/s (and messages/s) that one driver moves into a receiver that lets go of every frame at once,
by payload size and way: ``ring`` (shared memory), ``socket`` (the same bus over ipc without it), ``zmq_copy``
and ``zmq_nocopy`` (PUSH/PULL, one part, nothing validated, no credit).
``latency``: from publishing to the recorder's hands, p50 and p99 in microseconds, while one process publishes
289 MB/s: four times the reference rig of specs/performance.md 2 (JPEG, clouds, IMU and force in blocks, audio).
``header``: packing, and unpacking with validation, of a frame of one sample, in microseconds.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import tempfile
import timeit
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import zmq
from rigs.machine import machine

from sensorium.drivers.bus.context import bus_context
from sensorium.drivers.bus.counters import CounterFile
from sensorium.drivers.bus.header import pack_frame, unpack_frame
from sensorium.drivers.bus.publisher import LINGER_S, BusPublisher
from sensorium.drivers.bus.receiver import BusReceiver
from sensorium.drivers.bus.wire import Declare, End
from sensorium.drivers.frame import Frame, Modality, StreamInfo, stamps
from sensorium.timebase import SECOND_NS, HostClock, Timeline

Figures = dict[str, Any]
SIZES = {
    "100": 100,
    "1k": 1000,
    "10k": 10_000,
    "60k": 60_000,
    "250k": 250_000,
    "2M": 2_097_152,
    "8M": 8 << 20,
}
MULTIPLE = 4
LOAD = (  # name, frames per second at 1 x, bytes
    *((f"cam{number}", 30, 251_000) for number in range(4)),
    ("lidar", 20, 2_097_152),
    ("imu", 100, 1000),
    ("force", 100, 600),
    ("mic", 100, 4096),
)
CLOCK = HostClock()
POOL = 4
INSTANCE = 1
_SILENCE_MS = 500
MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 31),
    "MALLOC_TOP_PAD_": str(1 << 26),
    "MALLOC_ARENA_MAX": "1",
}
"""As the supervisor sets them for its children."""


def infos_of(streams: "dict[str, tuple[float, int]]") -> tuple[StreamInfo, ...]:
    return tuple(
        StreamInfo(name, Modality.OTHER, "jpeg", rate, name, max_payload_bytes=size)
        for name, (rate, size) in streams.items()
    )


def frame_of(name: str, seq: int, payload: bytes) -> Frame:
    return Frame(name, seq, 1, None, stamps(CLOCK.now_ns()), payload)


@contextmanager
def driver(folder: Path, streams: "dict[str, tuple[float, int]]") -> Iterator[BusPublisher]:
    """Yield a driver's end that was welcomed."""
    with bus_context(LINGER_S + 1.0) as context:
        publisher = BusPublisher(f"ipc://{folder}/bus", INSTANCE, CLOCK, context)
        infos = infos_of(streams)
        counters = CounterFile(folder / "counters", INSTANCE, [info.name for info in infos])
        declare = Declare(
            instance=INSTANCE,
            device="bench",
            driver="bench",
            streams=infos,
            timeline=Timeline("here", 0),
            is_live=True,
            counters=str(counters.path),
        )
        publisher.declare(declare, counters)
        while not publisher.is_welcome:
            publisher.step(wait_s=0.01)
        yield publisher
        publisher.end()


def flood(folder: str, size: int, seconds: float) -> None:
    """Publish as fast as there is credit."""
    pool = [os.urandom(size) for _ in range(POOL)]
    with driver(Path(folder), {"s": (30.0, size)}) as publisher:
        every = max(1, 16 * 4096 // size)  # a host steps after each read; a read of small samples has many
        end_ns = CLOCK.now_ns() + int(seconds * SECOND_NS)
        seq = 0
        while CLOCK.now_ns() < end_ns:
            while not publisher.has_credit(size):
                publisher.step(wait_s=0.01)
            publisher.publish(frame_of("s", seq, pool[seq % POOL]))
            seq += 1
            if seq % every == 0:
                publisher.step()


def flood_zmq(folder: str, size: int, seconds: float, is_copied: bool) -> None:
    pool = [os.urandom(size) for _ in range(POOL)]
    with bus_context() as context, context.socket(zmq.PUSH) as socket:
        socket.setsockopt(zmq.SNDHWM, max(2, min(1000, (64 << 20) // size)))
        socket.connect(f"ipc://{folder}/bus")
        end_ns = CLOCK.now_ns() + int(seconds * SECOND_NS)
        seq = 0
        while CLOCK.now_ns() < end_ns:
            socket.send(pool[seq % POOL], 0, is_copied)
            seq += 1


def pace(folder: str, seconds: float) -> None:
    """Publish the load by its schedule."""
    pool = {size: [os.urandom(size) for _ in range(POOL)] for _, _, size in LOAD}
    due = []
    for index, (name, rate, size) in enumerate(LOAD):
        period_ns = SECOND_NS / (rate * MULTIPLE)
        phase_ns = period_ns * index / len(LOAD)
        for number in range(int(seconds * rate * MULTIPLE)):
            due.append((int(phase_ns + number * period_ns), name, number, size))
    due.sort()
    with driver(Path(folder), {name: (rate * MULTIPLE, size) for name, rate, size in LOAD}) as publisher:
        start_ns = CLOCK.now_ns() + SECOND_NS // 10
        for at_ns, name, seq, size in due:
            while (left_ns := start_ns + at_ns - CLOCK.now_ns()) > 0:
                publisher.step(wait_s=min(0.02, left_ns / SECOND_NS))
            publisher.publish(frame_of(name, seq, pool[size][seq % POOL]))


def received(folder: Path, take: Callable[[Frame], None], *, with_ring: bool) -> None:
    """Take what comes until the driver's last word, and let go of it at once."""
    with bus_context() as context:
        receiver = BusReceiver(f"ipc://{folder}/bus", 1, context)
        has_ended = False
        while not has_ended:
            n_taken = 0
            for inbound in receiver.receive(256):
                n_taken += 1
                message = inbound.message
                if isinstance(message, tuple):
                    assert inbound.held is not None
                    take(message[1])
                    receiver.release([inbound.held])
                elif isinstance(message, Declare):
                    declare = message if with_ring else message.model_copy(update={"ring": None})
                    receiver.welcome(inbound.identity, declare)
                has_ended |= isinstance(message, End)
            receiver.step(CLOCK.now_ns())
            if not n_taken:
                receiver.socket.poll(5)
        receiver.step(CLOCK.now_ns())
        receiver.close()


def received_zmq(folder: Path, take: Callable[[int], None], *, is_copied: bool) -> None:
    """Take what comes until nothing does for a while."""
    with bus_context() as context, context.socket(zmq.PULL) as socket:
        socket.bind(f"ipc://{folder}/bus")
        socket.poll(10_000)
        while socket.poll(_SILENCE_MS):
            with contextlib.suppress(zmq.Again):
                while True:
                    take(len(socket.recv(zmq.NOBLOCK, copy=is_copied)))


class Rate:
    """Counts what comes, from the first to the last."""

    def __init__(self) -> None:
        self.n_frames = self.n_bytes = self.first_ns = self.last_ns = 0

    def take(self, size: int) -> None:
        self.last_ns = CLOCK.now_ns()
        if not self.n_frames:
            self.first_ns = self.last_ns
        self.n_frames += 1
        self.n_bytes += size

    def figures(self) -> Figures:
        seconds = (self.last_ns - self.first_ns) / SECOND_NS
        return {"mb_per_s": self.n_bytes / 1e6 / seconds, "messages_per_s": self.n_frames / seconds}


@contextmanager
def process(target: Callable[..., None], *arguments: Any) -> Iterator[None]:
    made = multiprocessing.get_context("spawn").Process(target=target, args=arguments, daemon=True)
    made.start()
    yield
    made.join()
    assert made.exitcode == 0, f"{target.__name__} ended with {made.exitcode}"


def throughput(way: str, size: int, seconds: float) -> Figures:
    """Return what one way moves of one size."""
    rate = Rate()
    with tempfile.TemporaryDirectory(prefix="sensorium-bus-") as name:
        folder = Path(name)
        if way in ("ring", "socket"):
            with process(flood, name, size, seconds):
                received(folder, lambda found: rate.take(len(found.payload)), with_ring=way == "ring")
        else:
            is_copied = way == "zmq_copy"
            with process(flood_zmq, name, size, seconds, is_copied):
                received_zmq(folder, rate.take, is_copied=is_copied)
    return rate.figures()


def latency(seconds: float, *, with_ring: bool) -> Figures:
    """Return the latency of each stream under the mixed load, and what was lost of it."""
    taken: dict[str, list[int]] = {name: [] for name, _, _ in LOAD}

    def take(found: Frame) -> None:
        taken[found.stream].append(CLOCK.now_ns() - found.arrival_ns.item(0))

    with tempfile.TemporaryDirectory(prefix="sensorium-bus-") as name, process(pace, name, seconds):
        received(Path(name), take, with_ring=with_ring)
    groups = {"2M": ["lidar"], "250k": [f"cam{n}" for n in range(4)], "small": ["imu", "force", "mic"]}
    sent = sum(int(seconds * rate * MULTIPLE) for _, rate, _ in LOAD)
    found: Figures = {"lost": sent - sum(map(len, taken.values()))}
    for group, names in groups.items():
        values_us = np.concatenate([taken[each] for each in names]) / 1e3
        found[group] = {
            "p50_us": float(np.percentile(values_us, 50)),
            "p99_us": float(np.percentile(values_us, 99)),
        }
    return found


def header() -> Figures:
    """Return what a header costs."""
    frame = Frame("force", 1_234_567, 1, stamps(123_456_789_012), stamps(123_456_789_012_345), bytes(24))
    packed = pack_frame(12_345_678, frame, (), None, frame.payload)
    n_times = 50_000

    def best(action: Callable[[], object]) -> float:
        return min(timeit.repeat(action, number=n_times, repeat=7)) / n_times * 1e6

    return {
        "pack_us": best(lambda: pack_frame(12_345_678, frame, (), None, frame.payload)),
        "unpack_us": best(lambda: unpack_frame(packed, None, None)),
    }


def measure(rounds: int = 3, seconds: float = 2.0) -> Figures:
    """Return all figures; the ways take turns, medians over the rounds."""
    os.environ.update(MALLOC)  # for the processes that are started, not for this one
    ways = ("ring", "socket", "zmq_copy", "zmq_nocopy")
    found: dict[tuple[str, str], list[Figures]] = {}
    for _ in range(rounds):
        for label, size in SIZES.items():
            for way in ways:
                if way != "ring" or size >= 64 << 10:
                    found.setdefault((label, way), []).append(throughput(way, size, seconds))
    moved: Figures = {label: {} for label in SIZES}
    for (label, way), each in found.items():
        moved[label][way] = {key: median(one[key] for one in each) for key in each[0]}
    delays = {
        way: [latency(5 * seconds, with_ring=way == "ring") for _ in range(rounds)]
        for way in ("ring", "socket")
    }
    return {
        "throughput": moved,
        "latency": {way: min(each, key=lambda one: one["2M"]["p99_us"]) for way, each in delays.items()},
        "latency_rounds": delays,
        "header": header(),
        "machine": machine(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each run")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = measure(arguments.rounds, arguments.seconds)
    if arguments.json:
        print(json.dumps(found))
        return
    for label, ways in found["throughput"].items():
        for way, each in ways.items():
            print(f"{label:>5} {way:10} {each['mb_per_s']:8.0f} MB/s {each['messages_per_s']:9.0f}/s")
    for way, each in found["latency"].items():
        print(f"latency at {MULTIPLE} x over {way}, {each['lost']} lost")
        for group in ("2M", "250k", "small"):
            print(f"  {group:5} p50 {each[group]['p50_us']:.0f} us, p99 {each[group]['p99_us']:.0f} us")
    print("header: pack {pack_us:.2f} us, unpack and validate {unpack_us:.2f} us".format(**found["header"]))
    print(found["machine"])


if __name__ == "__main__":
    main()
