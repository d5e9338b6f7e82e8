"""The bus between a driver and the recorder, one suite for both ways that a payload can travel."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import zmq
from bus_bench import CAMERA, INSTANCE, PAYLOAD_BYTES, BusBench, Transport, frame, identity, messages
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sensorium.drivers.bus.counters import read_counters
from sensorium.drivers.bus.credits import HEADER_OVERHEAD_BYTES
from sensorium.drivers.bus.header import MAX_META, RingPlace, is_frame, pack_frame, pack_header, unpack_frame
from sensorium.drivers.bus.publisher import HEARTBEAT_NS
from sensorium.drivers.bus.wire import (
    Declare,
    End,
    Heartbeat,
    Inbound,
    Lost,
    Ready,
    pack_control,
    unpack_control,
)
from sensorium.drivers.frame import COUNTER_GAP, Frame, Loss, Modality, Place, StreamInfo, stamps
from sensorium.errors import DeviceError, WireError
from sensorium.timebase import SECOND_NS

pytestmark = pytest.mark.alone

BUDGET_BYTES = 1_000_000
FRAME_BYTES = PAYLOAD_BYTES + HEADER_OVERHEAD_BYTES
WINDOW = BUDGET_BYTES // FRAME_BYTES
"""Frames that fit into the budget, over the socket or in the ring."""


@pytest.fixture(params=["socket", "ring"])
def bus(
    request: pytest.FixtureRequest, tmp_path: Path, context: "zmq.Context[zmq.Socket[bytes]]"
) -> Iterator[BusBench]:
    transport: Transport = request.param
    found = BusBench(tmp_path, context, transport, BUDGET_BYTES)
    yield found
    found.close()


def frames_of(found: list[Inbound]) -> list[Frame]:
    return [inbound.message[1] for inbound in found if isinstance(inbound.message, tuple)]


def test_the_payload_travels_the_way_that_the_suite_says(bus: BusBench) -> None:
    driver = bus.driver()
    driver.publish(frame(0))
    (inbound,) = [each for each in bus.received() if each.held is not None]
    assert inbound.held is not None
    assert (inbound.held.slot >= 0) == (bus.transport == "ring")
    assert inbound.held.size == FRAME_BYTES


def test_a_driver_can_ask_whether_the_bus_is_served_before_it_opens_its_device(
    tmp_path: Path, context: "zmq.Context[zmq.Socket[bytes]]"
) -> None:
    bench = BusBench(tmp_path, context, "ring", BUDGET_BYTES)
    bench.end_recorder()
    early = bench.connect()
    early.step(wait_s=0.05)
    assert not early.is_served
    bench.receiver = bench._new_receiver(2)
    bench.until(lambda: early.is_served)
    assert not early.is_welcome
    bench.declare(early, CAMERA)
    bench.until(lambda: early.is_welcome)
    bench.close()


def test_nothing_is_sent_before_the_recorder_knows_the_streams(bus: BusBench) -> None:
    driver = bus.connect()
    bus.declare(driver, CAMERA)
    assert not driver.publish(frame(0))
    assert read_counters(bus.counters())[1]["cam"].lost == {(Place.BUS, "out of credit"): 1}


def test_the_bytes_under_way_never_exceed_the_credit(bus: BusBench) -> None:
    driver = bus.driver()
    sent = [driver.publish(frame(seq)) for seq in range(20)]
    assert sent.count(True) == WINDOW
    assert sent == sorted(sent, reverse=True)
    bus.until(lambda: len(bus.held) == WINDOW)
    bus.release(2)
    assert [driver.publish(frame(seq)) for seq in range(20, 24)] == [True, True, False, False]


def test_a_payload_stays_as_it_was_sent_until_it_is_released(bus: BusBench) -> None:
    driver = bus.driver()
    kept: dict[int, Frame] = {}
    for seq in range(40):
        driver.publish(frame(seq))
        bus.exchange(1)
        if seq % 3 == 2:  # the newest two of three, so that slots come back in no order
            newest = bus.held[-2:]
            bus.receiver.release(newest)
            del bus.held[-2:]
    bus.release()
    for seq in range(40, 40 + WINDOW):
        assert driver.publish(frame(seq))
    kept = {found.seq: found for found in frames_of(bus.received())}
    assert sorted(kept) == list(range(40, 40 + WINDOW))
    for seq, found in kept.items():
        assert bytes(found.payload) == frame(seq).payload


def test_what_credit_did_not_cover_is_reported_before_the_next_frame(bus: BusBench) -> None:
    driver = bus.driver()
    found: list[Inbound] = []
    for seq in range(WINDOW + 3):
        driver.publish(frame(seq))
    found += bus.until(lambda: len(bus.held) == WINDOW)
    bus.release()
    assert driver.publish(frame(WINDOW + 3))
    told = messages([*found, *bus.received()])
    assert told[:WINDOW] == [(seq, 1) for seq in range(WINDOW)]
    lost, last = told[WINDOW:]
    assert isinstance(lost, Lost)
    assert (lost.seq, lost.count, lost.place, lost.reason) == (WINDOW, 3, Place.BUS, "out of credit")
    assert last == (WINDOW + 3, 1)


def test_refused_frames_are_no_messages_of_their_own(bus: BusBench) -> None:
    driver = bus.driver()
    for seq in range(WINDOW):
        driver.publish(frame(seq))
    n_refused = 5000
    beats: list[Heartbeat] = []
    lost: list[Lost] = []
    for seq in range(WINDOW, WINDOW + n_refused):
        assert not driver.publish(frame(seq))
        if seq % 500 == 0:
            bus.clock.advance(HEARTBEAT_NS)  # two seconds in all
            driver.step()
    driver.end(linger_s=0.05)
    for inbound in bus.received():
        if isinstance(inbound.message, Lost):
            lost.append(inbound.message)
        elif isinstance(inbound.message, Heartbeat):
            beats.append(inbound.message)
    assert sum(loss.count for loss in lost) == n_refused
    assert 2 <= len(lost) <= 4  # one in a second, and the last word
    assert all(before.seq + before.count == after.seq for before, after in pairwise(lost))
    ends = {loss.seq + loss.count for loss in lost}
    assert all(beat.next_seq["cam"] in {WINDOW, *ends} for beat in beats)


def test_a_gap_in_the_devices_counter_is_booked_to_the_device(bus: BusBench) -> None:
    driver = bus.driver()
    driver.publish(frame(0))
    driver.publish(frame(5))
    _, lost, _ = messages(bus.received())
    assert isinstance(lost, Lost)
    assert (lost.seq, lost.count, lost.place, lost.reason) == (1, 4, Place.DEVICE, COUNTER_GAP)


def test_a_loss_that_the_driver_names_keeps_its_place_and_reason(bus: BusBench) -> None:
    driver = bus.driver()
    driver.publish(frame(0))
    driver.lose(Loss("cam", 3, Place.KERNEL, "socket buffer overflowed"))
    driver.publish(frame(4))
    _, lost, last = messages(bus.received())
    assert isinstance(lost, Lost)
    assert (lost.seq, lost.count, lost.place, lost.reason) == (1, 3, Place.KERNEL, "socket buffer overflowed")
    assert last == (4, 1)


def test_losses_of_several_places_before_one_frame_are_told_apart(bus: BusBench) -> None:
    driver = bus.driver()
    for _ in range(3):
        driver.lose(Loss("cam", 2, Place.KERNEL, "overflow"))
        driver.lose(Loss("cam", 1, Place.DRIVER, "torn"))
    driver.publish(frame(11))
    *lost, last = messages(bus.received())
    assert last == (11, 1)
    assert [(loss.seq, loss.count, loss.place) for loss in lost if isinstance(loss, Lost)] == [
        (0, 6, Place.KERNEL),
        (6, 3, Place.DRIVER),
        (9, 2, Place.DEVICE),
    ]


def test_many_and_long_reasons_are_told_as_the_counter_file_has_them(bus: BusBench) -> None:
    driver = bus.driver()
    for number in range(30):
        driver.lose(Loss("cam", 1 + number, Place.DRIVER, f"{number} " + "because of this " * 20))
    driver.publish(frame(sum(range(1, 31))))
    told = {
        (loss.place, loss.reason): loss.count for loss in messages(bus.received()) if isinstance(loss, Lost)
    }
    assert told == read_counters(bus.counters())[1]["cam"].lost


def test_a_payload_over_the_declared_maximum_is_dropped_and_counted(bus: BusBench) -> None:
    driver = bus.driver()
    assert not driver.publish(frame(0, size=PAYLOAD_BYTES + 1))
    (lost,) = read_counters(bus.counters())[1]["cam"].lost
    assert lost[0] is Place.DRIVER


def test_more_stamps_than_a_message_holds_are_dropped_and_counted(bus: BusBench) -> None:
    driver = bus.driver()
    many = np.arange(5000, dtype=np.int64)
    assert not driver.publish(Frame("cam", 0, 5000, many, many, b"x"))
    assert driver.publish(Frame("cam", 5000, 4096, many[:4096], many[:4096], b"x"))
    lost, last = messages(bus.received())
    assert isinstance(lost, Lost)
    assert (lost.count, lost.place) == (5000, Place.DRIVER)
    assert last == (5000, 4096)


def test_a_frame_larger_than_its_limit_travels_alone(bus: BusBench) -> None:
    huge = replace(CAMERA, max_payload_bytes=2 * BUDGET_BYTES)
    driver = bus.driver(huge)
    size = BUDGET_BYTES + 1
    assert driver.publish(frame(0, size=size))
    assert not driver.publish(frame(1, size=size))
    bus.until(lambda: len(bus.held) == 1)
    bus.release()
    assert driver.publish(frame(2, size=size))


def test_a_sequence_that_goes_back_is_a_bug_of_the_driver(bus: BusBench) -> None:
    driver = bus.driver()
    driver.publish(frame(5))
    with pytest.raises(DeviceError, match="went back from 6 to 5"):
        driver.publish(frame(5))


def test_a_stream_that_was_not_declared_is_a_bug_of_the_driver(bus: BusBench) -> None:
    with pytest.raises(DeviceError, match="not declared"):
        bus.connect(1).publish(frame(0))
    with pytest.raises(DeviceError, match="not declared"):
        bus.driver().publish(frame(0, stream="other"))


def test_more_meta_fields_than_the_bus_carries_are_refused_at_once(bus: BusBench) -> None:
    info = replace(CAMERA, meta_fields=tuple(f"f{n}" for n in range(MAX_META + 1)))
    with pytest.raises(DeviceError, match="65 meta fields, the bus carries 64"):
        bus.declare(bus.connect(), info)


def test_a_heartbeat_shows_the_loss_of_a_tail(bus: BusBench) -> None:
    driver = bus.driver()
    driver.publish(frame(0))
    driver.lose(Loss("cam", 9, Place.DEVICE, "reset"))
    bus.clock.advance(HEARTBEAT_NS)
    driver.step()
    found = bus.received()
    beats = [inbound.message for inbound in found if isinstance(inbound.message, Heartbeat)]
    assert beats[-1].next_seq == {"cam": 10}
    assert any(isinstance(inbound.message, Lost) and inbound.message.count == 9 for inbound in found)


def test_the_last_word_tells_where_every_stream_ended_and_is_answered(bus: BusBench) -> None:
    driver = bus.driver()
    driver.publish(frame(0))
    driver.lose(Loss("cam", 2, Place.DEVICE, "reset"))
    driver.end("unplugged", linger_s=0.02)
    *_, end = messages(bus.received())
    assert isinstance(end, End)
    assert (end.next_seq, end.error) == ({"cam": 3}, "unplugged")


def test_counters_outlive_the_driver(bus: BusBench) -> None:
    driver = bus.driver()
    driver.publish(frame(0))
    driver.publish(frame(4))
    driver.publish(frame(5))
    instance, counts = read_counters(bus.counters())
    assert instance == INSTANCE
    assert counts["cam"].next_seq == 6
    assert sum(counts["cam"].lost.values()) == 3


# -- recorders and drivers that come and go


def test_a_new_recorder_gives_credit_for_what_the_old_one_took_with_it(bus: BusBench) -> None:
    driver = bus.driver()
    assert [driver.publish(frame(seq)) for seq in range(WINDOW + 1)][-1] is False
    bus.until(lambda: len(bus.held) == WINDOW)
    bus.replace_recorder(2)
    bus.until(lambda: driver.has_credit(PAYLOAD_BYTES))
    assert all(driver.publish(frame(seq)) for seq in range(WINDOW + 1, 2 * WINDOW + 1))
    assert not driver.publish(frame(2 * WINDOW + 1))


def test_what_was_sent_while_nobody_recorded_costs_credit_until_it_is_released(bus: BusBench) -> None:
    driver = bus.driver()
    bus.end_recorder()
    sent = [driver.publish(frame(seq)) for seq in range(WINDOW)]
    assert all(sent)
    bus.start_recorder(2)
    found = bus.until(lambda: driver._purse.session == 2)
    found += bus.exchange(6)
    strays = frames_of(found)
    for stray in strays:
        assert bytes(stray.payload) == frame(stray.seq).payload
    # What had left for the old recorder when it ended is lost on the way; the rest is here, and held.
    published = 0
    while driver.publish(frame(WINDOW + published)):
        published += 1
    assert published == WINDOW - len(strays)
    for stray in strays:
        assert bytes(stray.payload) == frame(stray.seq).payload
    bus.until(lambda: len(bus.held) == WINDOW)
    bus.release()
    assert [driver.publish(frame(100 + seq)) for seq in range(WINDOW + 1)].count(True) == WINDOW


def test_a_repeated_welcome_of_the_same_recorder_gives_none(bus: BusBench) -> None:
    driver = bus.driver()
    for seq in range(WINDOW):
        assert driver.publish(frame(seq))
    bus.until(lambda: len(bus.held) == WINDOW)
    bus.receiver.welcome(identity(INSTANCE), bus.declares[INSTANCE])
    bus.exchange()
    assert not driver.publish(frame(WINDOW))
    bus.release()
    assert [driver.publish(frame(WINDOW + 1 + seq)) for seq in range(WINDOW + 1)].count(True) == WINDOW


def test_credit_for_a_frame_that_never_came_is_found_by_the_next_heartbeat(bus: BusBench) -> None:
    driver = bus.driver()
    for _ in range(WINDOW):  # as if it had been sent, and a connection had broken
        assert driver._purse.place(frame(0).payload) or driver._purse.spend(PAYLOAD_BYTES)
    assert not driver.has_credit(PAYLOAD_BYTES)
    bus.clock.advance(HEARTBEAT_NS)
    bus.until(lambda: driver.has_credit(PAYLOAD_BYTES))
    assert [driver.publish(frame(seq)) for seq in range(WINDOW + 1)].count(True) == WINDOW


def test_a_recorder_that_lost_its_notes_hears_the_declaration_again(bus: BusBench) -> None:
    driver = bus.driver()
    assert driver.publish(frame(0))
    bus.until(lambda: len(bus.held) == 1)
    bus.declares.clear()
    bus.replace_recorder(2)
    assert driver.publish(frame(1))
    bus.clock.advance(HEARTBEAT_NS)
    bus.until(lambda: driver._purse.session == 2)
    assert bus.declares[INSTANCE].first_seq == {"cam": 2}
    assert sum(bus.receiver.rejected.values()) <= 1  # the frame that nobody had declared


def test_the_share_of_a_driver_that_is_gone_goes_to_the_next_one(bus: BusBench) -> None:
    first = bus.driver()
    for seq in range(WINDOW):
        assert first.publish(frame(seq))
    bus.until(lambda: len(bus.held) == WINDOW)
    bus.publishers.remove(first)
    first._socket.close(linger=0)  # as a kill would
    bus.receiver.forget(INSTANCE)
    second = bus.connect(8)
    bus.declare(second, replace(CAMERA, name="cam2"))
    bus.exchange()
    assert not second.is_welcome  # what the dead one sent still fills the memory
    bus.release()
    bus.until(lambda: second.is_welcome)
    sent = [second.publish(frame(seq, stream="cam2")) for seq in range(WINDOW + 1)]
    assert sent.count(True) == WINDOW


def test_frames_of_a_driver_that_is_gone_stay_valid_until_they_are_released(bus: BusBench) -> None:
    driver = bus.driver()
    driver.publish(frame(3))
    (found,) = frames_of(bus.until(lambda: len(bus.held) == 1))
    driver.end(linger_s=0.0)
    bus.receiver.forget(INSTANCE)
    bus.receiver.step(bus.clock.now_ns())
    assert bytes(found.payload) == frame(3).payload


# -- hostile messages


class Intruder:
    """Somebody who writes to the bus whatever they like, under an identity of their choice."""

    def __init__(self, bus: BusBench, name: bytes = identity(99)) -> None:
        self.bus = bus
        self.name = name
        self.socket = bus.stranger(name)

    def sends(self, *parts: bytes) -> list[Inbound]:
        """Return what the receiver lets through of one message."""
        before = self.bus.receiver.rejected.total()
        self.socket.send_multipart(parts)
        found: list[Inbound] = []
        for _ in range(100):
            found += [inbound for inbound in self.bus.received() if inbound.identity == self.name]
            if found or self.bus.receiver.rejected.total() > before:
                return found
        raise AssertionError("the message did not come")


GOOD = pack_header(99, frame(0, size=4))


@pytest.mark.parametrize(
    "parts",
    [
        (b"",),
        (b"garbage",),
        (b"garbage", b"payload"),
        (GOOD,),
        (GOOD, b"payload", b"more"),
        (GOOD, b"payload", identity(INSTANCE), pack_header(INSTANCE, frame(0, size=4)), b"abcd"),
        (b"\xc1" * 40, b"payload"),
        (GOOD[:-3], b"payload"),
        (b"\xdd\xff\xff\xff\xff", b"payload"),  # an array of 2^32 - 1
        (b"\x81\xa4kind\xa7declare",),
        (pack_control(Heartbeat(instance=5, next_seq={})),),
        (pack_control(Heartbeat(instance=99, next_seq={})), b"a second part"),
        (pack_header(5, frame(0, size=4)), b"pay"),
    ],
)
def test_garbage_is_counted_and_never_let_through(bus: BusBench, parts: tuple[bytes, ...]) -> None:
    driver = bus.driver()
    assert Intruder(bus).sends(*parts) == []
    assert sum(bus.receiver.rejected.values()) == 1
    assert driver.publish(frame(0))
    assert messages(bus.received()) == [(0, 1)]


def test_a_wrong_identity_cannot_speak_for_another_driver(bus: BusBench) -> None:
    bus.driver()
    intruder = Intruder(bus)
    assert intruder.sends(pack_header(INSTANCE, frame(0, size=4)), bytes(4)) == []
    assert intruder.sends(pack_control(End(instance=INSTANCE, next_seq={}, error=""))) == []
    assert bus.receiver.rejected.total() == 2
    assert all("instance" in reason for reason in bus.receiver.rejected)


def test_a_stranger_who_was_not_declared_is_asked_to_declare_itself(bus: BusBench) -> None:
    intruder = Intruder(bus)
    assert intruder.sends(pack_header(99, frame(0, size=4)), bytes(4)) == []
    assert intruder.socket.poll(2000)
    assert unpack_control(intruder.socket.recv()) == Ready(99, 1)
    assert list(bus.receiver.rejected) == ["frame of an undeclared instance"]


@pytest.mark.parametrize(
    ("slot", "size"), [(0, 1 << 40), (1 << 40, 1), (-1, 4), (0, -1), ("0", 4), (0, None), (1.5, 4), (True, 4)]
)
def test_a_place_outside_of_the_ring_is_refused_and_costs_nobody_else(
    bus: BusBench, slot: object, size: object
) -> None:
    driver = bus.driver()
    place = RingPlace(slot, size)  # type: ignore[arg-type]
    driver._socket.send(pack_frame(INSTANCE, frame(0), (), place, None))
    assert driver.publish(frame(1))
    bus.until(lambda: len(bus.held) == 1)
    assert bus.receiver.rejected.total() == 1
    bus.release()
    assert [driver.publish(frame(2 + seq)) for seq in range(WINDOW + 1)].count(True) == WINDOW


def test_a_slot_that_is_held_cannot_be_sent_again(
    tmp_path: Path, context: "zmq.Context[zmq.Socket[bytes]]"
) -> None:
    bus = BusBench(tmp_path, context, "ring", BUDGET_BYTES)
    driver = bus.driver()
    driver.publish(frame(0))
    bus.until(lambda: len(bus.held) == 1)
    driver._socket.send(pack_frame(INSTANCE, frame(1), (), RingPlace(bus.held[0].slot, 4), None))
    bus.until(lambda: bus.receiver.rejected.total() == 1)
    assert list(bus.receiver.rejected) == ["place in shared memory is in use"]
    bus.close()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.binary(max_size=200),
    flips=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=4),
)
def test_whatever_a_stranger_sends_is_a_wire_error_or_a_valid_frame(
    data: bytes, flips: list[tuple[int, int]]
) -> None:
    damaged = bytearray(GOOD)
    for at, value in flips:
        damaged[at % len(damaged)] = value
    for message in (data, bytes(damaged)):
        for beside in (None, b"x"):
            try:
                if is_frame(message):
                    found = unpack_frame(message, beside, None).frame
                else:
                    unpack_control(message)
                    continue
            except WireError:
                continue
            assert found.seq >= 0
            assert found.count >= 1
            assert found.arrival_ns.dtype == np.int64


def test_headers_say_what_they_were_given(bus: BusBench) -> None:
    info = StreamInfo("cam", Modality.CAMERA, "jpeg", 30.0, "cam", meta_fields=("a", "b"))
    driver = bus.driver(info)
    driver.publish(Frame("cam", 12, 3, stamps(1, -2, 3), stamps(4, 5, 6), b"abc", (0.5, 7.0)))
    (found,) = frames_of(bus.received())
    assert found.device_ticks is not None
    assert found.device_ticks.tolist() == [1, -2, 3]
    assert found.arrival_ns.tolist() == [4, 5, 6]
    assert (found.seq, found.count, bytes(found.payload), found.meta) == (12, 3, b"abc", (0.5, 7.0))
    assert replace(found, payload=b"abc").next_seq == 15


def test_a_declaration_travels_with_the_offer_of_a_ring_only_on_one_machine(bus: BusBench) -> None:
    bus.driver()
    declared = bus.declares[INSTANCE]
    assert isinstance(declared, Declare)
    assert (declared.ring is not None) == (bus.transport == "ring")


def test_a_driver_of_small_frames_offers_no_ring(
    tmp_path: Path, context: "zmq.Context[zmq.Socket[bytes]]"
) -> None:
    bus = BusBench(tmp_path, context, "ring", BUDGET_BYTES)
    driver = bus.driver(replace(CAMERA, max_payload_bytes=1000))
    assert bus.declares[INSTANCE].ring is None
    assert driver.publish(frame(0, size=1000))
    bus.clock.advance(SECOND_NS)
    bus.until(lambda: len(bus.held) == 1)
    bus.close()


def test_what_the_recorder_still_held_when_all_was_to_be_zeroed_is_zeroed_once_it_is_released(
    tmp_path: Path, context: "zmq.Context[zmq.Socket[bytes]]"
) -> None:
    """A writer lets go of its frames when it likes, long after the instant of a withdrawal."""
    bus = BusBench(tmp_path, context, "ring", BUDGET_BYTES)
    try:
        publisher = bus.driver()
        ring = publisher._purse._ring
        assert ring is not None
        for seq in range(3):
            assert publisher.publish(frame(seq))
        bus.until(lambda: len(bus.held) == 3)
        bus.release(1)
        bus.receiver.wipe()
        bus.exchange()
        bus.clock.advance(SECOND_NS)
        assert any(bytes(ring._view[: 3 * PAYLOAD_BYTES])), "two are held"
        bus.release()
        bus.until(lambda: not any(bytes(ring._view[: 4 * PAYLOAD_BYTES])))
    finally:
        bus.close()
