"""A bare recorder to compare with: ZeroMQ in, somebody else's MCAP writer out, no account, no clocks, no consent.

Run as ``python -m rigs.zmq_peer SPEC.json``, as a publisher of one stream or as the recorder with one writer.
Both get the allocator settings that our own processes get, small streams travel in blocks of ten as ours do,
and nothing is compressed: the peers at their best (specs/performance.md 3c).
"""

import json
import struct
import sys
from abc import ABC, abstractmethod
from collections import defaultdict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import zmq

from rigs.driver import LoadConfig, LoadDriver
from rigs.schedule import ready
from sensorium.drivers.driver import DriverContext
from sensorium.drivers.frame import Frame
from sensorium.errors import EndOfStreamError
from sensorium.timebase import HostClock

HEADER = struct.Struct("<48sqq")
"""Stream, sequence number, host ns at publishing."""

_QUEUE_MESSAGES = 1000  # ZeroMQ's own default
_COPY_BELOW_BYTES = 64 << 10
_CHUNK_BYTES = 1 << 20
_CLOCK = HostClock()


def publish(spec: dict[str, Any]) -> None:
    """Send every frame of one driver; what the queue does not take is dropped and counted."""
    context = DriverContext(spec["name"], "local", _CLOCK, Path(spec["run_dir"]))
    driver = LoadDriver(LoadConfig.model_validate(spec["options"]), context)
    driver.open()
    name = spec["name"].encode()
    dropped = 0
    with zmq.Context() as zmq_context, zmq_context.socket(zmq.PUSH) as socket:
        socket.setsockopt(zmq.SNDHWM, _QUEUE_MESSAGES)
        socket.connect(spec["endpoint"])
        try:
            while True:
                for item in driver.read(0.02):
                    if isinstance(item, Frame):
                        dropped += not _send(socket, name, item)
        except EndOfStreamError:
            driver.close()
        socket.send_multipart([HEADER.pack(name, -1, dropped), b""])


def _send(socket: zmq.Socket[bytes], name: bytes, frame: Frame) -> bool:
    header = HEADER.pack(name, frame.seq, _CLOCK.now_ns())
    try:
        socket.send_multipart([header, frame.payload], zmq.NOBLOCK, len(frame.payload) < _COPY_BELOW_BYTES)
    except zmq.Again:
        return False
    return True


class _Writer(ABC):
    """One of the writers that are compared; every stream gets a channel of bytes."""

    @abstractmethod
    def __init__(self, path: Path) -> None: ...

    @abstractmethod
    def write(self, stream: str, seq: int, log_ns: int, payload: bytes) -> None: ...

    @abstractmethod
    def close(self) -> None: ...


class _FoxgloveWriter(_Writer):
    def __init__(self, path: Path) -> None:
        import foxglove
        from foxglove.mcap import MCAPWriteOptions

        self._foxglove = foxglove
        options = MCAPWriteOptions(compression=None, chunk_size=_CHUNK_BYTES)
        self._file = foxglove.open_mcap(path, writer_options=options)
        self._channels: dict[str, Any] = {}

    def write(self, stream: str, seq: int, log_ns: int, payload: bytes) -> None:
        channel = self._channels.get(stream)
        if channel is None:
            schema = self._foxglove.Schema(name="bench", encoding="", data=b"")
            channel = self._foxglove.Channel(f"/{stream}", schema=schema, message_encoding="bench")
            self._channels[stream] = channel
        channel.log(payload, log_time=log_ns)

    def close(self) -> None:
        self._file.close()


class _McapWriter(_Writer):
    def __init__(self, path: Path) -> None:
        from mcap.writer import CompressionType, Writer

        self._file: BinaryIO = path.open("wb")
        self._writer = Writer(self._file, chunk_size=_CHUNK_BYTES, compression=CompressionType.NONE)
        self._writer.start()
        self._channels: dict[str, int] = {}

    def write(self, stream: str, seq: int, log_ns: int, payload: bytes) -> None:
        channel = self._channels.get(stream)
        if channel is None:
            channel = self._channels[stream] = self._writer.register_channel(f"/{stream}", "bench", 0)
        self._writer.add_message(channel, log_ns, payload, log_ns, seq & 0xFFFFFFFF)

    def close(self) -> None:
        self._writer.finish()  # type: ignore[no-untyped-call]
        self._file.close()


WRITERS: dict[str, type[_Writer]] = {"foxglove_sdk": _FoxgloveWriter, "mcap": _McapWriter}


def record(spec: dict[str, Any]) -> None:
    """Write what the publishers send until each has said its last word; leave counts and latencies."""
    folder = Path(spec["folder"])
    writer = WRITERS[spec["writer"]](Path(spec["file"]))
    latency_ns: dict[str, list[int]] = defaultdict(list)
    dropped: dict[str, int] = {}
    with zmq.Context() as context, context.socket(zmq.PULL) as socket:
        socket.setsockopt(zmq.RCVHWM, _QUEUE_MESSAGES)
        socket.bind(spec["endpoint"])
        ready(folder, "recorder")
        while len(dropped) < spec["publishers"]:
            header, payload = socket.recv_multipart()
            now_ns = _CLOCK.now_ns()
            name, seq, stamp_ns = HEADER.unpack(header)
            stream = name.rstrip(b"\0").decode()
            if seq < 0:
                dropped[stream] = stamp_ns
                continue
            latency_ns[stream].append(now_ns - stamp_ns)
            writer.write(stream, seq, now_ns, payload)
    writer.close()
    found = {
        name: {"p99_us": float(np.percentile(values, 99)) / 1e3, "dropped": dropped[name]}
        for name, values in latency_ns.items()
    }
    (folder / "recorded.json").write_text(json.dumps(found))


def main() -> None:
    """Be the publisher or the recorder that the spec asks for."""
    spec = json.loads(Path(sys.argv[1]).read_text())
    (record if "writer" in spec else publish)(spec)


if __name__ == "__main__":
    main()
