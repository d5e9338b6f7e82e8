"""What a foreign recording may cost: no estimate is made of a clock that nothing tells of."""

import time

from sensorium.drivers.frame import Encoding, Frame, MessageSchema, Modality, StreamInfo, stamps
from sensorium.sync.clocks.tracker import StreamTracker
from sensorium.timebase import SECOND_NS


def test_arrivals_of_a_foreign_stream_are_not_held_against_a_rate_that_came_from_them() -> None:
    schema = MessageSchema("json", "acme.Thing", "jsonschema", b"{}")
    info = StreamInfo(
        "thing", Modality.OTHER, Encoding.MESSAGE, 100.0, "thing", stamp_of="arrival", schema=schema
    )
    tracker = StreamTracker(info)
    began = time.process_time()
    for seq in range(5000):
        arrival_ns = 1_700_000_000 * SECOND_NS + seq * SECOND_NS // 100
        stamped = tracker.update(Frame("thing", seq, 1, None, stamps(arrival_ns), b"{}"))
        assert stamped.capture_ns.tolist() == [arrival_ns]
    assert tracker.arrival_bound_ns == info.latency.max_ns
    assert time.process_time() - began < 1.0  # an estimate for each would take two seconds
