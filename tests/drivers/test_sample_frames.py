"""From samples to frames: runs, gaps, losses."""

import numpy as np

from sensorium.drivers.devices.sample_frames import MAX_FRAME_SAMPLES, SampleFrames
from sensorium.drivers.frame import Column, Frame, Loss, Place

COLUMNS = (Column("mass", "g", "<i4"), Column("t", "degC", "<f8"))


def spans(items: list[Frame | Loss]) -> list[tuple[int, int] | Loss]:
    return [(item.seq, item.count) if isinstance(item, Frame) else item for item in items]


def test_samples_of_one_read_are_one_frame_column_by_column() -> None:
    frames = SampleFrames("scale", COLUMNS)
    for seq in range(3):
        frames.add((seq - 5, 20.0 + seq), 100 + seq, tick=7 * seq, meta=(1.0,))
    (frame,) = frames.take()
    assert isinstance(frame, Frame)
    assert (frame.stream, frame.seq, frame.count, frame.meta) == ("scale", 0, 3, (1.0,))
    np.testing.assert_array_equal(np.frombuffer(frame.payload[:12], "<i4"), [-5, -4, -3])
    np.testing.assert_array_equal(np.frombuffer(frame.payload[12:], "<f8"), [20.0, 21.0, 22.0])
    assert frame.device_ticks is not None
    assert (frame.device_ticks.tolist(), frame.arrival_ns.tolist()) == ([0, 7, 14], [100, 101, 102])
    assert frames.take() == []


def test_a_gap_a_loss_other_status_bits_and_a_lost_time_end_a_frame() -> None:
    frames = SampleFrames("scale", COLUMNS)
    frames.add((0, 0), 0, tick=0)
    frames.add((0, 0), 1, tick=1, missed=2)
    frames.add((0, 0), 2, tick=2)
    frames.lose(3, Place.DRIVER, "torn line")
    frames.add((0, 0), 3, tick=3)
    frames.add((0, 0), 4, tick=4, meta=(8.0,))
    frames.add((0, 0), 5, meta=(8.0,))
    lost = Loss("scale", 3, Place.DRIVER, "torn line")
    assert spans(frames.take()) == [(0, 1), (3, 2), lost, (8, 1), (9, 1), (10, 1)]
    frames.skip(4)
    frames.add((0, 0), 6)
    assert spans(frames.take()) == [(15, 1)]
    assert frames.next_seq == 16


def test_a_late_read_gives_several_frames() -> None:
    frames = SampleFrames("scale", COLUMNS)
    for seq in range(2 * MAX_FRAME_SAMPLES + 1):
        frames.add((0, 0), seq)
    assert [item.count for item in frames.take()] == [MAX_FRAME_SAMPLES, MAX_FRAME_SAMPLES, 1]
