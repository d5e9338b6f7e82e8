"""The share of a core that thinking may use: solving slows down when it is used up, and recovers."""

from sensorium.sync.recording.spec import ThinkingSettings
from sensorium.sync.thinking.pace import Pace
from sensorium.timebase import SECOND_NS, thread_cpu_ns

SETTINGS = ThinkingSettings(cpu_share=0.5, over_s=1.0)


def burn(seconds: float) -> None:
    until_ns = thread_cpu_ns() + int(seconds * SECOND_NS)
    while thread_cpu_ns() < until_ns:
        pass


def test_a_thread_over_its_share_solves_less_often_and_one_below_it_as_often_as_it_likes() -> None:
    pace = Pace(SETTINGS, 0)
    now_ns = 0
    for _ in range(4):
        burn(0.09)
        now_ns += SECOND_NS // 10  # nine tenths of a core
        slowed = pace.next(now_ns)
    assert slowed > 2
    assert 0.8 < pace.used < 1.0
    for _ in range(30):
        now_ns += SECOND_NS // 10  # nothing is used
        relaxed = pace.next(now_ns)
    assert relaxed == 1.0


def test_solving_never_stops_altogether() -> None:
    pace = Pace(ThinkingSettings(cpu_share=0.001, over_s=1.0), 0)
    now_ns = 0
    for _ in range(40):
        burn(0.002)
        now_ns += SECOND_NS // 10
        slowest = pace.next(now_ns)
    assert slowest == 64.0
