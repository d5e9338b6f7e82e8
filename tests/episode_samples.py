"""Streams of every encoding with seeded random payloads, for tests of the episode on disk."""

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sensorium.drivers.frame import (
    ClockKind,
    Column,
    DeviceClock,
    Frame,
    MessageSchema,
    Modality,
    StreamInfo,
    stamps,
)
from sensorium.sync.clocks.model import Stamped, Uncertainty
from sensorium.sync.episode.chain import seal
from sensorium.sync.episode.facts import SessionFacts
from sensorium.sync.episode.manifest import Balance, Manifest, StreamRecord
from sensorium.sync.episode.spool import Spool
from sensorium.sync.episode.ulid import new_ulid
from sensorium.sync.episode.writer import EpisodeWriter, WriterPolicy
from sensorium.timebase import SECOND_NS, Timeline

TIMELINE = Timeline("bench", 1_700_000_000 * SECOND_NS)
FREE_CLOCK = DeviceClock(ClockKind.FREE, 1000, 1, 1 << 32)

STREAMS = (
    StreamInfo(
        "cam", Modality.CAMERA, "jpeg", 30.0, "cam", is_personal=True, meta_fields=("exposure_ns", "gain")
    ),
    StreamInfo("shot", Modality.OTHER, "png", 1.0, "cam"),
    StreamInfo("grey", Modality.OTHER, "mono8", 30.0, "cam", shape=(4, 6)),
    StreamInfo("depth", Modality.DEPTH, "mono16", 30.0, "cam", shape=(4, 6), units="mm"),
    StreamInfo("colour", Modality.OTHER, "bgr8", 30.0, "cam", shape=(4, 6, 3)),
    StreamInfo("rgb", Modality.OTHER, "rgb8", 30.0, "cam", shape=(4, 6, 3)),
    StreamInfo("points", Modality.LIDAR, "points", 10.0, "lidar"),
    StreamInfo("mic", Modality.AUDIO, "pcm_s16le", 48000.0, "mic", shape=(2,), is_personal=True),
    StreamInfo(
        "lidar", Modality.LIDAR, "ouster", 1280.0, "lidar", clock=FREE_CLOCK, details={"metadata": "{}"}
    ),
    StreamInfo(
        "imu",
        Modality.IMU,
        "columns",
        400.0,
        "imu",
        clock=FREE_CLOCK,
        columns=(Column("ax", "m/s^2", "<i2", 0.01), Column("t", "K"), Column("n", "", "<u8", 0.0)),
        is_sampled=True,
    ),
    StreamInfo(
        "odd",
        Modality.OTHER,
        "message",
        0.0,
        "odd",
        schema=MessageSchema("cdr", "a/msg/B", "ros2msg", b"\xff\x00 x"),
    ),
)
_BYTES_PER_SAMPLE = {
    "points": 16,
    "mic": 4,
    "lidar": 64,
    "imu": 14,
    "grey": 24,
    "depth": 48,
    "colour": 72,
    "rgb": 72,
}
_COUNTS = {"mic": 480, "lidar": 16, "imu": 10}


def make_frame(info: StreamInfo, index: int, rng: np.random.Generator) -> tuple[Frame, Stamped]:
    """Return the ``index``-th frame of a stream and its capture times; arrivals are 10 ms apart."""
    count = _COUNTS.get(info.name, 1)
    arrival_ns = SECOND_NS + index * 10_000_000 + int(rng.integers(0, 5_000_000))
    ticks = None
    if info.clock.kind is not ClockKind.NONE:
        ticks = np.arange(index * count, (index + 1) * count) * 1000 % (1 << 32)
    arrivals = stamps(arrival_ns)
    if info.name == "lidar":
        arrivals = arrival_ns - np.arange(count, dtype=np.int64)[::-1] * 1000
    capture = np.broadcast_to(
        arrivals - 700_000, (len(ticks) if ticks is not None else len(arrivals),)
    ).copy()
    size = count * _BYTES_PER_SAMPLE.get(info.name, int(rng.integers(1, 3000)))
    meta = tuple(rng.random(len(info.meta_fields)).tolist())
    frame = Frame(info.name, index * count, count, ticks, arrivals, rng.bytes(size), meta)
    return frame, Stamped(capture, Uncertainty(*rng.random(3).tolist()), index // 40)


def all_frames(frames: int, seed: int = 1) -> Iterator[tuple[Frame, Stamped]]:
    """Yield ``frames`` frames of every stream, interleaved."""
    rng = np.random.default_rng(seed)
    for index in range(frames):
        for info in STREAMS:
            yield make_frame(info, index, rng)


def begin_episode(tmp_path: Path, policy: WriterPolicy | None = None, serial: int = 0) -> EpisodeWriter:
    """Return a writer with every stream declared, in a spool under ``tmp_path``."""
    spool = Spool(tmp_path / "spool")
    spool.create()
    episode_id = new_ulid(TIMELINE.utc_minus_host_ns + serial * SECOND_NS)
    writer = EpisodeWriter(spool.open_folder(episode_id), episode_id, TIMELINE, policy)
    for info in STREAMS:
        writer.declare(info)
    return writer


def write_frames(writer: EpisodeWriter, frames: int, seed: int = 1) -> list[tuple[Frame, Stamped]]:
    """Write and return ``frames`` frames of every stream, stepping the writer with their arrival."""
    written = []
    for frame, stamped in all_frames(frames, seed):
        writer.write(frame, stamped, instance=3)
        writer.step(int(frame.arrival_ns[-1]))
        written.append((frame, stamped))
    return written


def manifest_of(writer: EpisodeWriter) -> Manifest:
    """Return a manifest whose balances are those of the (closed) writer."""
    records = []
    for info in STREAMS:
        balances = {
            instance: Balance(found.samples + 2, found.samples, {"bus": {"no credit": 2}})
            for (name, instance), found in writer.written().items()
            if name == info.name
        }
        records.append(StreamRecord(info, balances))
    start_utc_ns = TIMELINE.utc_minus_host_ns
    return Manifest(
        writer.episode_id,
        "0.1",
        SessionFacts(rig="bench"),
        start_utc_ns,
        start_utc_ns + SECOND_NS,
        TIMELINE,
        tuple(records),
    )


def sealed_episode(tmp_path: Path, frames: int = 5, serial: int = 0) -> Path:
    """Return the folder of a small sealed episode."""
    writer = begin_episode(tmp_path, serial=serial)
    write_frames(writer, frames)
    writer.close()
    return seal(writer.folder, manifest_of(writer))


class PipeDisk:
    """A disk that stalls: a pipe behind the file's own descriptor, which takes nothing until it is drained."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._before = path.read_bytes()
        (fd,) = _descriptors_of(path)
        self._read_fd, write_fd = os.pipe()
        os.dup2(write_fd, fd)
        os.close(write_fd)
        self._taken: list[bytes] = []
        self._drain = threading.Thread(target=self._take)

    def resume(self) -> None:
        self._drain.start()

    def put_back(self) -> None:
        """Leave in the file what a disk would hold, once the writer has closed it."""
        self._drain.join()
        self.path.write_bytes(self._before + b"".join(self._taken))

    def _take(self) -> None:
        while data := os.read(self._read_fd, 1 << 20):
            self._taken.append(data)
        os.close(self._read_fd)


def _descriptors_of(path: Path) -> list[int]:
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # that of the listing itself is gone
            if link.readlink() == path:
                found.append(int(link.name))
    return found


def run_doctor(path: Path) -> list[dict[str, object]]:
    """Return what ``pymcap-cli doctor`` says of a file; fails unless it passes with its default demands."""
    command = [str(Path(sys.executable).with_name("pymcap-cli")), "doctor", "--format", "jsonl", str(path)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert found.returncode == 0, found.stdout + found.stderr
    return [json.loads(line) for line in found.stdout.splitlines() if line.startswith("{")]
