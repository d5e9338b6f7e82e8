"""The bus between a driver and the synchronizer: byte credits, reported losses, heartbeats, hostile messages."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sensorium.drivers.bus.counters import CounterFile, read_counters
from sensorium.drivers.bus.credits import HEADER_OVERHEAD_BYTES, Held
from sensorium.drivers.bus.publisher import HEARTBEAT_NS, BusPublisher
from sensorium.drivers.bus.receiver import BusReceiver
from sensorium.drivers.bus.wire import (
    Declare,
    End,
    Heartbeat,
    Inbound,
    Lost,
    pack_control,
    pack_header,
)
from sensorium.drivers.frame import Frame, Loss, Modality, Place, StreamInfo, stamps
from sensorium.errors import DeviceError, WireError
from sensorium.timebase import SECOND_NS, Timeline, VirtualClock

INSTANCE = 7
PAYLOAD_BYTES = 50_000
FRAME_BYTES = PAYLOAD_BYTES + HEADER_OVERHEAD_BYTES
BUDGET_BYTES = 256 << 10
INFO = StreamInfo("cam", Modality.CAMERA, "jpeg", 30.0, "cam", max_payload_bytes=PAYLOAD_BYTES)
ENDPOINT = "inproc://bus"


def frame(seq: int, count: int = 1, size: int = PAYLOAD_BYTES, stream: str = "cam") -> Frame:
    return Frame(stream, seq, count, None, stamps(1000 + seq), bytes(size))


class Bus:
    """A publisher and the receivers that it has seen, in one process."""

    def __init__(self, folder: Path, context: "zmq.Context[zmq.Socket[bytes]]") -> None:
        self.clock = VirtualClock(SECOND_NS)
        self.context = context
        self.receiver = BusReceiver(ENDPOINT, 1, context, BUDGET_BYTES)
        self.counters = folder / "cam.counters"
        self.declare = Declare(
            instance=INSTANCE,
            device="cam",
            driver="sim_camera",
            streams=(INFO,),
            timeline=Timeline("bench", 0),
            is_live=True,
            counters=str(self.counters),
        )
        file = CounterFile(self.counters, INSTANCE, ["cam"])
        self.publisher = BusPublisher(ENDPOINT, self.declare, file, self.clock, context)
        self.intruders: list[zmq.Socket[bytes]] = []

    def close(self) -> None:
        if not self.publisher._socket.closed:
            self.publisher.end(linger_s=0.0)
        self.receiver.close()
        for intruder in self.intruders:
            intruder.close(linger=0)

    def received(self) -> list[Inbound]:
        self.receiver.socket.poll(200)
        found: list[Inbound] = []
        while batch := list(self.receiver.receive(1000)):
            found += batch
            self.receiver.socket.poll(20)
        return found

    def welcome(self) -> None:
        (inbound,) = self.received()
        assert isinstance(inbound.message, Declare)
        self.receiver.welcome(inbound.identity, self.declare)
        self._deliver()
        assert self.publisher.is_welcome

    def release(self, frames: int) -> None:
        self.receiver.release([Held(INSTANCE, FRAME_BYTES)] * frames)
        self._deliver()

    def _deliver(self) -> None:
        self.receiver.step(self.clock.now_ns())
        self.publisher.step(wait_s=0.2)


def identity(instance: int) -> bytes:
    return b"\1" + instance.to_bytes(8, "little")


@pytest.fixture
def context() -> Iterator["zmq.Context[zmq.Socket[bytes]]"]:
    with zmq.Context() as found:
        yield found
        found.destroy(linger=0)  # closes every socket that a test opened


@pytest.fixture
def bus(tmp_path: Path, context: "zmq.Context[zmq.Socket[bytes]]") -> Iterator[Bus]:
    found = Bus(tmp_path, context)
    yield found
    found.close()


def messages(found: list[Inbound]) -> list[object]:
    """Return the received messages without heartbeats; frames as (seq, count)."""
    return [
        (inbound.message[1].seq, inbound.message[1].count)
        if isinstance(inbound.message, tuple)
        else inbound.message
        for inbound in found
        if not isinstance(inbound.message, Heartbeat)
    ]


def test_nothing_is_sent_before_the_synchronizer_knows_the_streams(bus: Bus) -> None:
    assert not bus.publisher.publish(frame(0))
    assert read_counters(bus.counters)[1]["cam"].lost == {(Place.BUS, "out of credit"): 1}


def test_the_bytes_under_way_never_exceed_the_credit(bus: Bus) -> None:
    bus.welcome()
    sent = [bus.publisher.publish(frame(seq)) for seq in range(20)]
    assert sent.count(True) == BUDGET_BYTES // FRAME_BYTES
    assert sent == sorted(sent, reverse=True)
    bus.release(2)
    assert [bus.publisher.publish(frame(seq)) for seq in range(20, 24)] == [True, True, False, False]


def test_what_credit_did_not_cover_is_reported_before_the_next_frame(bus: Bus) -> None:
    bus.welcome()
    window = BUDGET_BYTES // FRAME_BYTES
    for seq in range(window + 3):
        bus.publisher.publish(frame(seq))
    bus.release(window)
    assert bus.publisher.publish(frame(window + 3))
    found = messages(bus.received())
    assert found[:window] == [(seq, 1) for seq in range(window)]
    lost, last = found[window:]
    assert isinstance(lost, Lost)
    assert (lost.seq, lost.count, lost.place) == (window, 3, Place.BUS)
    assert last == (window + 3, 1)


def test_a_gap_in_the_devices_counter_is_booked_to_the_device(bus: Bus) -> None:
    bus.welcome()
    bus.publisher.publish(frame(0))
    bus.publisher.publish(frame(5))
    _, lost, _ = messages(bus.received())
    assert isinstance(lost, Lost)
    assert (lost.seq, lost.count, lost.place) == (1, 4, Place.DEVICE)


def test_a_loss_that_the_driver_names_keeps_its_place_and_reason(bus: Bus) -> None:
    bus.welcome()
    bus.publisher.publish(frame(0))
    bus.publisher.lose(Loss("cam", 3, Place.KERNEL, "socket buffer overflowed"))
    bus.publisher.publish(frame(4))
    _, lost, last = messages(bus.received())
    assert isinstance(lost, Lost)
    assert (lost.seq, lost.count, lost.place, lost.reason) == (1, 3, Place.KERNEL, "socket buffer overflowed")
    assert last == (4, 1)


def test_a_payload_over_the_declared_maximum_is_dropped_and_counted(bus: Bus) -> None:
    bus.welcome()
    assert not bus.publisher.publish(frame(0, size=PAYLOAD_BYTES + 1))
    (lost,) = read_counters(bus.counters)[1]["cam"].lost
    assert lost[0] is Place.DRIVER


def test_a_sequence_that_goes_back_is_a_bug_of_the_driver(bus: Bus) -> None:
    bus.welcome()
    bus.publisher.publish(frame(5))
    with pytest.raises(DeviceError, match="went back from 6 to 5"):
        bus.publisher.publish(frame(5))


def test_a_stream_that_was_not_declared_is_a_bug_of_the_driver(bus: Bus) -> None:
    with pytest.raises(DeviceError, match="not declared"):
        bus.publisher.publish(frame(0, stream="other"))


def test_a_heartbeat_shows_the_loss_of_a_tail(bus: Bus) -> None:
    bus.welcome()
    bus.publisher.publish(frame(0))
    bus.publisher.lose(Loss("cam", 9, Place.DEVICE, "reset"))
    bus.clock.advance(HEARTBEAT_NS)
    bus.publisher.step()
    found = bus.received()
    beats = [inbound.message for inbound in found if isinstance(inbound.message, Heartbeat)]
    assert beats[-1].next_seq == {"cam": 10}
    assert any(isinstance(inbound.message, Lost) and inbound.message.count == 9 for inbound in found)


def test_the_last_word_tells_where_every_stream_ended(bus: Bus) -> None:
    bus.welcome()
    bus.publisher.publish(frame(0))
    bus.publisher.lose(Loss("cam", 2, Place.DEVICE, "reset"))
    bus.publisher.end("unplugged")
    *_, end = messages(bus.received())
    assert isinstance(end, End)
    assert (end.next_seq, end.error) == ({"cam": 3}, "unplugged")


def test_counters_outlive_the_driver(bus: Bus) -> None:
    bus.welcome()
    bus.publisher.publish(frame(0))
    bus.publisher.publish(frame(4))
    bus.publisher.publish(frame(5))
    instance, counts = read_counters(bus.counters)
    assert instance == INSTANCE
    assert counts["cam"].next_seq == 6
    assert sum(counts["cam"].lost.values()) == 3


def test_a_new_synchronizer_gives_fresh_credit(bus: Bus) -> None:
    bus.welcome()
    window = BUDGET_BYTES // FRAME_BYTES
    assert [bus.publisher.publish(frame(seq)) for seq in range(window + 1)][-1] is False
    bus.receiver.session = 2
    bus.receiver.welcome(identity(INSTANCE), bus.declare)
    bus._deliver()
    assert all(bus.publisher.publish(frame(seq)) for seq in range(window + 1, 2 * window + 1))


def test_a_repeated_welcome_of_the_same_synchronizer_gives_none(bus: Bus) -> None:
    bus.welcome()
    window = BUDGET_BYTES // FRAME_BYTES
    for seq in range(window):
        assert bus.publisher.publish(frame(seq))
    bus.receiver.welcome(identity(INSTANCE), bus.declare)
    bus._deliver()
    assert not bus.publisher.publish(frame(window))


class Intruder:
    """Somebody who writes to the bus whatever they like, under an identity of their choice."""

    def __init__(self, bus: Bus, name: bytes = identity(99)) -> None:
        self.bus = bus
        self.name = name
        self.socket = bus.context.socket(zmq.DEALER)
        bus.intruders.append(self.socket)
        self.socket.setsockopt(zmq.IDENTITY, name)
        self.socket.connect(ENDPOINT)

    def sends(self, *parts: bytes) -> list[Inbound]:
        """Return what the receiver lets through of one message."""
        self.socket.send_multipart(parts)
        return [inbound for inbound in self.bus.received() if inbound.identity == self.name]


GOOD = pack_header(99, frame(0, size=4))


@pytest.mark.parametrize(
    "parts",
    [
        (b"",),
        (b"garbage",),
        (b"garbage", b"payload"),
        (GOOD,),
        (GOOD, b"payload", b"more"),
        (b"\xc1" * 40, b"payload"),
        (GOOD[:-3], b"payload"),
        (b"\xdd\xff\xff\xff\xff", b"payload"),  # an array of 2^32 - 1
        (b"\x81\xa4kind\xa7declare",),
        (pack_control(Heartbeat(instance=5, next_seq={})),),
        (pack_header(5, frame(0, size=4)), b"pay"),
    ],
)
def test_garbage_is_counted_and_never_let_through(bus: Bus, parts: tuple[bytes, ...]) -> None:
    bus.received()
    assert Intruder(bus).sends(*parts) == []
    assert sum(bus.receiver.rejected.values()) == 1


def test_a_wrong_identity_cannot_speak_for_another_driver(bus: Bus) -> None:
    bus.received()
    intruder = Intruder(bus)
    assert intruder.sends(pack_header(INSTANCE, frame(0, size=4)), bytes(4)) == []
    assert intruder.sends(pack_control(End(instance=INSTANCE, next_seq={}, error=""))) == []
    assert bus.receiver.rejected.total() == 2
    assert all("instance" in reason for reason in bus.receiver.rejected)


def test_a_rejected_frame_gives_its_credit_back(bus: Bus) -> None:
    bus.welcome()
    bus.publisher._socket.send_multipart([b"garbage", bytes(1000)])
    bus.publisher._outstanding_bytes += 1000 + HEADER_OVERHEAD_BYTES
    bus.received()
    bus._deliver()
    assert bus.publisher._outstanding_bytes == 0


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.binary(max_size=200),
    flips=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=4),
)
def test_whatever_a_stranger_sends_is_a_wire_error_or_a_valid_frame(
    data: bytes, flips: list[tuple[int, int]], bus: Bus
) -> None:
    damaged = bytearray(GOOD)
    for at, value in flips:
        damaged[at % len(damaged)] = value
    for parts in ([identity(99), data], [identity(99), data, b"x"], [identity(99), bytes(damaged), b"x"]):
        try:
            inbound = bus.receiver._validated([zmq.Frame(part) for part in parts])
        except WireError:
            continue
        assert isinstance(inbound.message, tuple)
        found = inbound.message[1]
        assert found.seq >= 0
        assert found.count >= 1
        assert found.arrival_ns.dtype == np.int64


def test_headers_say_what_they_were_given(bus: Bus) -> None:
    given_frame = Frame("cam", 12, 3, stamps(1, -2, 3), stamps(4, 5, 6), b"abc", (0.5, 7.0))
    intruder = Intruder(bus)
    bus.received()
    (inbound,) = intruder.sends(pack_header(99, given_frame), b"abc")
    assert isinstance(inbound.message, tuple)
    number, found = inbound.message
    assert number == 99
    assert found.device_ticks is not None
    assert found.device_ticks.tolist() == [1, -2, 3]
    assert found.arrival_ns.tolist() == [4, 5, 6]
    assert (found.seq, found.count, bytes(found.payload), found.meta) == (12, 3, b"abc", (0.5, 7.0))
    assert replace(found, payload=b"abc").next_seq == 15
