"""Headers and control messages: exact round trips, and nothing malformed gets through."""

from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensorium.drivers.bus.credits import CreditState
from sensorium.drivers.bus.header import (
    LostBefore,
    RingPlace,
    pack_frame,
    pack_header,
    unpack_frame,
    unpack_header,
)
from sensorium.drivers.bus.wire import (
    Credit,
    End,
    Heartbeat,
    Hello,
    Joined,
    Lost,
    LostRun,
    Ready,
    pack_control,
    unpack_control,
)
from sensorium.drivers.frame import Frame, Place, RecordedStamps, stamps
from sensorium.errors import WireError

INT64 = st.integers(-(2**63), 2**63 - 1)


@given(
    seq=st.integers(0, 2**62 - 1),
    values=st.lists(st.tuples(INT64, INT64), min_size=1, max_size=30),
    has_ticks=st.booleans(),
    meta=st.lists(st.floats(allow_nan=False) | st.integers(-(2**60), 2**60), max_size=8),
)
def test_a_header_comes_out_as_it_went_in(
    seq: int, values: list[tuple[int, int]], has_ticks: bool, meta: list[float]
) -> None:
    ticks, arrival = (np.array(column, np.int64) for column in zip(*values, strict=True))
    frame = Frame("imu", seq, len(values), ticks if has_ticks else None, arrival, b"payload", tuple(meta))
    instance, back = unpack_header(pack_header(77, frame), b"payload")
    assert instance == 77
    assert (back.stream, back.seq, back.count, back.meta) == (frame.stream, seq, frame.count, tuple(meta))
    assert np.array_equal(back.arrival_ns, arrival)
    assert (back.device_ticks is None) == (not has_ticks)
    if back.device_ticks is not None:
        assert np.array_equal(back.device_ticks, ticks)


def test_the_capture_times_of_an_episode_travel_with_its_replay() -> None:
    known = RecordedStamps(stamps(4, 6), 1.5, 2.5, 3.5, 7)
    _, back = unpack_header(pack_header(1, Frame("imu", 0, 2, None, stamps(6), b"", (), known)), b"")
    assert back.recorded is not None
    assert back.recorded.capture_ns.tolist() == [4, 6]
    found = back.recorded
    assert (found.statistical_ns, found.floor_ns, found.asymmetry_ns, found.epoch) == (1.5, 2.5, 3.5, 7)


@given(st.binary(max_size=200))
def test_garbage_is_rejected_as_a_wire_error_and_nothing_else(data: bytes) -> None:
    for parse in (lambda: unpack_header(data, b""), lambda: unpack_control(data)):
        with pytest.raises(WireError):
            parse()


GOOD = [4, 1, "cam", 9, 1, None, stamps(5).tobytes(), [], None, None, None, None]


@pytest.mark.parametrize(
    ("index", "value"),
    [
        (0, 1),
        (1, -1),
        (1, True),
        (2, "../etc"),
        (2, 7),
        (3, -1),
        (3, 2**63),
        (4, 0),
        (4, 1 << 40),
        (5, b"1234567"),
        (6, b""),
        (6, None),
        (6, bytes(24)),
        (7, ["x"]),
        (7, {}),
        (8, {}),
        (8, [stamps(5).tobytes(), 1.0, 1.0, 1.0]),
        (8, [stamps(6).tobytes(), 1.0, 1.0, 1.0, 0]),
        (8, [stamps(5, 5).tobytes(), 1.0, 1.0, 1.0, 0]),
        (8, [stamps(5).tobytes(), -1.0, 1.0, 1.0, 0]),
        (8, [stamps(5).tobytes(), 1.0, float("nan"), 1.0, 0]),
        (8, [stamps(5).tobytes(), 1.0, 1.0, "1", 0]),
        (8, [stamps(5).tobytes(), 1.0, 1.0, 1.0, -1]),
        (9, []),
        (9, [[1, 0]]),
        (9, [[0, 0, "x"]]),
        (9, [[10, 0, "x"]]),  # before the frame's 9 there are only 9
        (9, [[1, len(Place), "x"]]),
        (9, [[1, 0, "x" * 201]]),
        (9, [[1, 0, "x"]] * 17),
        (10, [0, 1]),  # nothing is mapped, and the payload came beside
        (11, b"a second payload"),
    ],
)
def test_each_field_out_of_range_is_refused(index: int, value: Any) -> None:
    unpack_header(msgpack.packb(GOOD), b"")
    bad = list(GOOD)
    bad[index] = value
    with pytest.raises(WireError):
        unpack_header(msgpack.packb(bad), b"")


def test_the_losses_before_a_frame_travel_in_its_header() -> None:
    losses = (LostBefore(3, Place.KERNEL, "overflow"), LostBefore(1, Place.BUS, "out of credit"))
    frame = Frame("cam", 9, 1, None, stamps(5), b"small", (1.5,))
    found = unpack_frame(pack_frame(1, frame, losses, None, frame.payload), None, None)
    assert found.losses == losses
    assert (found.frame.payload, found.frame.meta, found.slot) == (b"small", (1.5,), -1)


@pytest.mark.parametrize("inside", [None, "text", 5])
def test_a_payload_that_is_missing_or_no_bytes_is_refused(inside: Any) -> None:
    with pytest.raises(WireError, match="payload"):
        unpack_frame(msgpack.packb([*GOOD[:-1], inside]), None, None)


def test_a_place_in_memory_that_is_not_mapped_is_refused() -> None:
    frame = Frame("cam", 9, 1, None, stamps(5), b"")
    with pytest.raises(WireError, match="not mapped"):
        unpack_frame(pack_frame(1, frame, (), RingPlace(0, 4), None), None, None)


SAID = [
    Heartbeat(3, {"cam": 4}),
    Heartbeat(3, {"cam": 4, "imu": 0}, 2, 500, 6, CreditState(900, 70, True, 8, 4000)),
    LostRun(3, "cam", 7, (LostBefore(2, Place.DEVICE, "gap"), LostBefore(1, Place.BUS, "out of credit"))),
    Hello(3),
    Ready(3, (1 << 64) - 1),
    Joined(3, 9, 1, 5000, (0, 24, 7)),
    Credit(3, 1, 5000, 2, 100_000, (24,), True),
]


@pytest.mark.parametrize("message", SAID, ids=lambda message: type(message).__name__)
def test_what_is_said_often_comes_out_as_it_went_in_and_whole_or_not_at_all(message: Any) -> None:
    packed = pack_control(message)
    assert unpack_control(packed) == message
    fields = msgpack.unpackb(packed)
    for index in range(len(fields)):
        for bad in (None, -1, "../x", [None], {"x": -1}, 1.5):
            with pytest.raises(WireError):
                unpack_control(msgpack.packb([*fields[:index], bad, *fields[index + 1 :]]))
    for wrong in (fields[:-1], [*fields, 0]):
        with pytest.raises(WireError):
            unpack_control(msgpack.packb(wrong))


def test_a_single_loss_travels_as_a_run() -> None:
    lost = Lost(3, "cam", 7, 2, Place.DEVICE, "gap")
    assert unpack_control(pack_control(lost)) == LostRun(3, "cam", 7, (LostBefore(2, Place.DEVICE, "gap"),))


def test_a_control_message_with_an_unknown_key_is_refused_and_names_it() -> None:
    good = pack_control(End(instance=3, next_seq={"cam": 4}, error=""))
    assert unpack_control(good) == End(instance=3, next_seq={"cam": 4}, error="")
    bad = msgpack.packb({**msgpack.unpackb(good), "surprise": 1})
    with pytest.raises(WireError, match="surprise"):
        unpack_control(bad)
