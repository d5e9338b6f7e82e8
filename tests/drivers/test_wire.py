"""Headers and control messages: exact round trips, and nothing malformed gets through."""

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensorium.drivers.bus.wire import Heartbeat, pack_control, pack_header, unpack_control, unpack_header
from sensorium.drivers.frame import Frame, RecordedStamps, stamps
from sensorium.errors import WireError

INT64 = st.integers(-(2**63), 2**63 - 1)


@given(
    seq=st.integers(0, 2**62 - 1),
    values=st.lists(st.tuples(INT64, INT64), min_size=1, max_size=30),
    has_ticks=st.booleans(),
    meta=st.lists(st.floats(allow_nan=False) | st.integers(-(2**60), 2**60), max_size=8),
)
def test_a_header_comes_out_as_it_went_in(seq, values, has_ticks, meta):
    ticks, arrival = (np.array(column, np.int64) for column in zip(*values, strict=True))
    frame = Frame("imu", seq, len(values), ticks if has_ticks else None, arrival, b"payload", tuple(meta))
    instance, back = unpack_header(pack_header(77, frame), b"payload")
    assert instance == 77
    assert (back.stream, back.seq, back.count, back.meta) == (frame.stream, seq, frame.count, tuple(meta))
    assert np.array_equal(back.arrival_ns, arrival)
    assert (back.device_ticks is None) == (not has_ticks)
    if has_ticks:
        assert np.array_equal(back.device_ticks, ticks)


def test_the_capture_times_of_an_episode_travel_with_its_replay():
    known = RecordedStamps(stamps(4, 6), 1.5, 2.5, 3.5, 7)
    _, back = unpack_header(pack_header(1, Frame("imu", 0, 2, None, stamps(6), b"", (), known)), b"")
    assert back.recorded is not None
    assert back.recorded.capture_ns.tolist() == [4, 6]
    found = back.recorded
    assert (found.statistical_ns, found.floor_ns, found.asymmetry_ns, found.epoch) == (1.5, 2.5, 3.5, 7)


@given(st.binary(max_size=200))
def test_garbage_is_rejected_as_a_wire_error_and_nothing_else(data):
    for parse in (lambda: unpack_header(data, b""), lambda: unpack_control(data)):
        with pytest.raises(WireError):
            parse()


GOOD = [3, 1, "cam", 0, 1, None, stamps(5).tobytes(), [], None]


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
    ],
)
def test_each_field_out_of_range_is_refused(index, value):
    unpack_header(msgpack.packb(GOOD), b"")
    bad = list(GOOD)
    bad[index] = value
    with pytest.raises(WireError):
        unpack_header(msgpack.packb(bad), b"")


def test_a_control_message_with_an_unknown_key_is_refused_and_names_it():
    good = pack_control(Heartbeat(instance=3, next_seq={"cam": 4}))
    assert unpack_control(good) == Heartbeat(instance=3, next_seq={"cam": 4})
    bad = msgpack.packb({**msgpack.unpackb(good), "surprise": 1})
    with pytest.raises(WireError, match="surprise"):
        unpack_control(bad)
