"""Losses for the log: joined by stream, place and reason within a second."""

from sensorium.drivers.bus.wire import Lost
from sensorium.drivers.frame import Place
from sensorium.sync.recording.loss_runs import LossRun, LossRuns
from sensorium.timebase import SECOND_NS


def lost(seq: int, count: int = 1, place: Place = Place.BUS, stream: str = "cam") -> Lost:
    return Lost(1, stream, seq, count, place, "out of credit")


def test_refused_frames_of_a_second_are_one_run() -> None:
    runs = LossRuns()
    for index in range(100):
        runs.add(lost(2 * index), index * SECOND_NS // 200)
    runs.add(lost(7, 3, Place.DEVICE), SECOND_NS // 2)
    assert list(runs.due(SECOND_NS - 1)) == []
    assert list(runs.due(SECOND_NS)) == [LossRun("cam", Place.BUS, "out of credit", 0, 100, 0)]
    assert list(runs.due(SECOND_NS)) == []
    assert [run.count for run in runs.due(None)] == [3]


def test_the_next_second_is_a_run_of_its_own() -> None:
    runs = LossRuns()
    runs.add(lost(0), 0)
    (first,) = runs.due(SECOND_NS)
    runs.add(lost(5, 2), SECOND_NS)
    (second,) = runs.due(2 * SECOND_NS)
    assert (first.seq, first.count, second.seq, second.count) == (0, 1, 5, 2)
