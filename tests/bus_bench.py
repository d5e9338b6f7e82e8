"""Both ends of a bus in one process, on a virtual clock, over the socket alone or with the ring."""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import zmq

from sensorium.drivers.bus.counters import CounterFile
from sensorium.drivers.bus.credits import Held
from sensorium.drivers.bus.publisher import BusPublisher
from sensorium.drivers.bus.receiver import BusReceiver
from sensorium.drivers.bus.wire import Declare, Heartbeat, Inbound
from sensorium.drivers.frame import Frame, Modality, StreamInfo, stamps
from sensorium.timebase import SECOND_NS, Timeline, VirtualClock

Transport = Literal["socket", "ring"]
INSTANCE = 7
PAGES = 24
PAYLOAD_BYTES = PAGES * 4096
"""Large enough for the ring, and whole pages of it."""

CAMERA = StreamInfo("cam", Modality.CAMERA, "jpeg", 30.0, "cam", max_payload_bytes=PAYLOAD_BYTES)


def frame(seq: int, count: int = 1, size: int = PAYLOAD_BYTES, stream: str = "cam") -> Frame:
    return Frame(stream, seq, count, None, stamps(1000 + seq), bytes([seq % 256]) * size)


def identity(instance: int) -> bytes:
    return b"\1" + instance.to_bytes(8, "little")


def declaration(instance: int, counters: Path, *infos: StreamInfo) -> Declare:
    return Declare(
        instance=instance,
        device=infos[0].name,
        driver="bench",
        streams=infos,
        timeline=Timeline("bench", 0),
        is_live=True,
        counters=str(counters),
    )


class BusBench:
    """A recorder's end, and as many drivers as are made; ``held`` is what the recorder has not released."""

    def __init__(
        self,
        folder: Path,
        context: "zmq.Context[zmq.Socket[bytes]]",
        transport: Transport,
        budget_bytes: int,
    ) -> None:
        self.folder = folder
        self.context = context
        self.transport = transport
        self.budget_bytes = budget_bytes
        self.clock = VirtualClock(SECOND_NS)
        self.held: list[Held] = []
        self.endpoint = "tcp://127.0.0.1:*" if transport == "socket" else f"ipc://{folder}/bus"
        self.receiver = self._new_receiver(1)
        self.endpoint = self.receiver.socket.get_string(zmq.LAST_ENDPOINT)
        self.publishers: list[BusPublisher] = []
        self.declares: dict[int, Declare] = {}
        self._sockets: list[zmq.Socket[bytes]] = []

    def _new_receiver(self, session: int) -> BusReceiver:
        return BusReceiver(self.endpoint, session, self.context, self.budget_bytes)

    # -- drivers

    def connect(self, instance: int = INSTANCE) -> BusPublisher:
        publisher = BusPublisher(self.endpoint, instance, self.clock, self.context)
        self.publishers.append(publisher)
        return publisher

    def counters(self, instance: int = INSTANCE) -> Path:
        return self.folder / f"{instance}.counters"

    def declare(self, publisher: BusPublisher, *infos: StreamInfo) -> None:
        number = publisher.instance
        path = self.counters(number)
        file = CounterFile(path, number, [info.name for info in infos])
        publisher.declare(declaration(number, path, *infos), file)

    def driver(self, *infos: StreamInfo, instance: int = INSTANCE) -> BusPublisher:
        """Return a driver that was welcomed."""
        publisher = self.connect(instance)
        self.declare(publisher, *(infos or (CAMERA,)))
        self.until(lambda: publisher.is_welcome)
        self.exchange()
        return publisher

    def stranger(self, name: bytes) -> "zmq.Socket[bytes]":
        """Return a socket that sends whatever a test likes, under an identity of its choice."""
        made = self.context.socket(zmq.DEALER)
        made.setsockopt(zmq.IDENTITY, name)
        made.connect(self.endpoint)
        self._sockets.append(made)
        return made

    # -- the recorder

    def received(self) -> list[Inbound]:
        """Return what has come, and welcome who declares itself."""
        found: list[Inbound] = []
        self.receiver.socket.poll(20)
        while batch := list(self.receiver.receive(1000)):
            for inbound in batch:
                if isinstance(inbound.message, Declare):
                    self.declares[inbound.message.instance] = inbound.message
                    self.receiver.welcome(inbound.identity, inbound.message)
                if inbound.held is not None:
                    self.held.append(inbound.held)
            found += batch
            self.receiver.socket.poll(2)
        return found

    def exchange(self, rounds: int = 3) -> list[Inbound]:
        """Let messages go back and forth; return what the recorder got."""
        found = []
        for _ in range(rounds):
            found += self.received()
            self.receiver.step(self.clock.now_ns())
            for publisher in self.publishers:
                publisher.step(wait_s=0.01)
        return found + self.received()

    def until(self, condition: Callable[[], object], rounds: int = 100) -> list[Inbound]:
        """Exchange until something is so; 20 ms pass in each round."""
        found: list[Inbound] = []
        for _ in range(rounds):
            if condition():
                return found
            self.clock.advance(SECOND_NS // 50)
            found += self.exchange(1)
        raise AssertionError("it did not come about")

    def release(self, frames: int | None = None) -> None:
        """Let go of the oldest frames (of all), and tell their drivers."""
        n_frames = len(self.held) if frames is None else frames
        self.receiver.release(self.held[:n_frames])
        del self.held[:n_frames]
        self.exchange()

    def end_recorder(self) -> None:
        """Close the recorder's socket and return once its address is free (ZeroMQ closes in the background)."""
        self.receiver.socket.close(linger=0)
        self.held.clear()
        for _ in range(1000):
            if not _answers(self.endpoint):
                return
            zmq.select([], [], [], 0.005)
        raise AssertionError(f"{self.endpoint} was not given up")

    def replace_recorder(self, session: int) -> None:
        """End the recorder as a kill would, and start another."""
        self.end_recorder()
        self.start_recorder(session)

    def start_recorder(self, session: int) -> None:
        """Start a recorder that knows the drivers from the notes of the one before."""
        self.receiver = self._new_receiver(session)
        for instance, declare in self.declares.items():
            self.receiver.welcome(identity(instance), declare)

    def close(self) -> None:
        for publisher in self.publishers:
            if not publisher._socket.closed:
                publisher.end(linger_s=0.0)
        self.receiver.close()
        for made in self._sockets:
            made.close(linger=0)


def _answers(endpoint: str) -> bool:
    """Return whether somebody listens there."""
    scheme, _, address = endpoint.partition("://")
    host, _, port = address.rpartition(":")
    family = socket.AF_UNIX if scheme == "ipc" else socket.AF_INET
    with socket.socket(family) as probe:
        try:
            probe.connect(address if scheme == "ipc" else (host, int(port)))
        except OSError:
            return False
    return True


def messages(found: list[Inbound]) -> list[object]:
    """Return the received messages without heartbeats; frames as (seq, count)."""
    return [
        (inbound.message[1].seq, inbound.message[1].count)
        if isinstance(inbound.message, tuple)
        else inbound.message
        for inbound in found
        if not isinstance(inbound.message, Heartbeat)
    ]
