"""A driver of the reference rig as somebody else's package would bring it, with a count of its own."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from rigs.loads import RIGS, Load, column_count, load_named
from rigs.schedule import DEVICE_BUFFER_NS, Schedule, ready, start_of
from sensorium.drivers.driver import Driver, DriverConfig, DriverContext
from sensorium.drivers.frame import (
    ClockKind,
    Column,
    DeviceClock,
    Encoding,
    Frame,
    Loss,
    MessageSchema,
    Modality,
    Place,
    StreamInfo,
    stamps,
)
from sensorium.errors import EndOfStreamError
from sensorium.timebase import SECOND_NS

_CLOCK = DeviceClock(ClockKind.FREE)
_DEVICE_EPOCH_NS = 77_000 * SECOND_NS
_SKEW_PPM = 20
_CLOUD_SCHEMA = MessageSchema("bench", "bench.CompressedCloud", "", b"")
"""The name tells the writer not to compress: peers store the cloud as it is, and so it costs both the same."""


class LoadConfig(DriverConfig):
    """Options of :class:`LoadDriver`; the device's name says which stream of ``rig`` it is.

    Attributes:
        folder: Where the payload pools are, everybody waits for the start, and the counts are left.
        multiple: Times the rig's rates.
        seconds: Of the rig's own time; the source ends after ``seconds / multiple``.
    """

    rig: str
    folder: Path
    multiple: int
    seconds: float


class LoadDriver(Driver[LoadConfig]):
    """Has its frames on time whether they are fetched or not, and writes down what became of them."""

    config_type: ClassVar[type[DriverConfig]] = LoadConfig

    def __init__(self, config: LoadConfig, context: DriverContext) -> None:
        super().__init__(config, context)
        self._load = load_named(config.rig, context.name)
        self._pool: list[bytes] = []
        self._schedule: Schedule | None = None
        self._first = self._next = 0
        self._lost_frames = 0
        self._latest_ns = 0
        self._reads = 0

    def open(self) -> Sequence[StreamInfo]:
        path = self.config.folder / f"{self._load.name}.pool"
        data, size = path.read_bytes(), self._load.frame_bytes
        self._pool = [data[at : at + size] for at in range(0, len(data), size)]
        self._revolution = Revolution(self._pool[0]) if self._load.kind == "ouster" else None
        return [declaration(self._load, self.config)]

    def read(self, timeout_s: float) -> Sequence[Frame | Loss]:
        clock = self.context.clock
        deadline_ns = clock.now_ns() + round(timeout_s * SECOND_NS)
        if self._schedule is None:
            self._schedule = self._wait_for_start()
            if self._schedule is None:
                clock.sleep_until(deadline_ns)
                return ()
        if self._next >= self._schedule.frames:
            raise EndOfStreamError("all frames are produced")
        clock.sleep_until(min(deadline_ns, self._schedule.due_ns(self._next)))
        self._reads += 1
        return self._fetch(self._schedule, clock.now_ns())

    def _wait_for_start(self) -> Schedule | None:
        ready(self.config.folder, self._load.name)  # asked for frames: the agent is ready as well
        start_ns = start_of(self.config.folder)
        if start_ns is None:
            return None
        schedule = schedule_of(self._load, self.config, start_ns)
        self._first = self._next = schedule.count_until(self.context.clock.now_ns())  # after a restart
        return schedule

    def _fetch(self, schedule: Schedule, now_ns: int) -> list[Frame | Loss]:
        """Return what the device's buffer holds; what ran over is lost, and says so."""
        there, gone = schedule.count_until(now_ns), schedule.count_until(now_ns - DEVICE_BUFFER_NS)
        items: list[Frame | Loss] = []
        if gone > self._next:
            lost = gone - self._next
            self._lost_frames += lost
            self._next = gone
            items.append(
                Loss(self._load.name, lost * self._load.samples, Place.DEVICE, "device buffer overrun")
            )
        for index in range(self._next, there):
            self._latest_ns = max(self._latest_ns, now_ns - schedule.due_ns(index))
            items.append(self._frame(index, schedule))
        self._next = max(self._next, there)
        return items

    def _frame(self, index: int, schedule: Schedule) -> Frame:
        load, due_ns = self._load, schedule.due_ns(index)
        ticks = due_ns + _DEVICE_EPOCH_NS + (due_ns - schedule.start_ns) * _SKEW_PPM // 1_000_000
        device_ticks = None if load.kind == "pcm" else stamps(ticks)
        payload: bytes | memoryview = self._pool[index % len(self._pool)]
        if self._revolution is not None:
            payload, device_ticks = self._revolution.at(index, ticks, schedule.period_ns)
        arrival_ns = stamps(self.context.clock.now_ns())
        seq = (index - self._first) * load.samples
        return Frame(load.name, seq, load.samples, device_ticks, arrival_ns, payload)

    def close(self) -> None:
        """Leave the device's own account: what it had, what ran over, how late it was asked at worst."""
        if self._schedule is None:
            return
        now_ns = self.context.clock.now_ns()
        produced = self._schedule.count_until(now_ns) - self._first
        account = {
            "produced": produced * self._load.samples,
            "fetched": (self._next - self._first - self._lost_frames) * self._load.samples,
            "frames": produced,
            "frame_bytes": self._load.frame_bytes,
            "latest_ms": self._latest_ns / 1e6,
            "reads": self._reads,
        }
        (self.config.folder / f"{self._load.name}.account.json").write_text(json.dumps(account))


class Revolution:
    """The recorded revolution again and again, each with the stamps and the number that it would have."""

    def __init__(self, packets: bytes) -> None:
        self._packets = np.frombuffer(packets, np.uint8).reshape(64, -1)
        self._column_bytes = (self._packets.shape[1] - 64) // 16

    def at(self, index: int, first_ns: int, period_ns: float) -> tuple[memoryview, NDArray[np.int64]]:
        """Return (payload, (64,) device stamps of the packets) of revolution ``index``."""
        packets = self._packets.copy()
        packets[:, 2:4] = np.frombuffer((index & 0xFFFF).to_bytes(2, "little"), np.uint8)
        column_ns = first_ns + (np.arange(1024) * (period_ns / 1024)).astype(np.int64)
        columns = packets[:, 32:-32].reshape(64, 16, self._column_bytes)
        columns[:, :, :8] = column_ns.astype("<i8").view(np.uint8).reshape(64, 16, 8)
        return memoryview(packets.reshape(-1)).cast("B"), column_ns.reshape(64, 16)[:, 0].copy()


def expected_period_ns(load: Load, multiple: int) -> float:
    """Return the time between two frames of a stream."""
    return SECOND_NS / (load.frames_per_s * multiple)


def schedule_of(load: Load, config: LoadConfig, start_ns: int) -> Schedule:
    """Return when a stream's frames are there."""
    streams = [each.name for each in RIGS[config.rig]]
    period_ns = expected_period_ns(load, config.multiple)
    frames = round(load.frames_per_s * config.seconds)
    return Schedule(start_ns, period_ns, frames, streams.index(load.name) / len(streams))


def declaration(load: Load, config: LoadConfig) -> StreamInfo:
    """Return what a driver of this stream declares."""
    messages_hz = float(load.frames_per_s * config.multiple)
    common: dict[str, Any] = {
        "name": load.name,
        "rate_hz": messages_hz * load.samples,
        "frame_rate_hz": messages_hz,
        "frame_id": load.name,
        "clock": _CLOCK,
        "max_payload_bytes": load.frame_bytes,
    }
    if load.kind == "jpeg":
        return StreamInfo(modality=Modality.CAMERA, encoding=Encoding.JPEG, **common)
    if load.kind == "cloud":
        return StreamInfo(modality=Modality.LIDAR, encoding=Encoding.MESSAGE, schema=_CLOUD_SCHEMA, **common)
    if load.kind == "columns":
        columns = tuple(Column(f"c{index}", "", "<i4", 1e-3) for index in range(column_count(load)))
        modality = Modality.IMU if load.name == "imu" else Modality.FORCE
        return StreamInfo(
            modality=modality, encoding=Encoding.COLUMNS, columns=columns, is_sampled=True, **common
        )
    if load.kind == "pcm":
        sound = {**common, "clock": DeviceClock()}
        return StreamInfo(modality=Modality.AUDIO, encoding=Encoding.PCM_S16LE, shape=(2,), **sound)
    metadata = (config.folder / "ouster.json").read_text()
    return StreamInfo(
        modality=Modality.LIDAR,
        encoding=Encoding.OUSTER,
        shape=(128, 1024),
        stamp_of="packet",
        details={"metadata": metadata},
        **common,
    )
