"""Attacks on the pause and on grants by setting the wall clock while recording."""

from pathlib import Path

import pytest
import zmq
from synchronizer_bench import Bench

from sensorium.drivers.bus.publisher import BusPublisher
from sensorium.drivers.frame import Encoding, Frame, Latency, Modality, StreamInfo, stamps
from sensorium.sync.consent.grants import (
    Purpose,
)
from sensorium.sync.episode.reader import Episode
from sensorium.timebase import SECOND_NS

HOUR_NS = 3600 * SECOND_NS
STEPS_NS = [-2 * SECOND_NS, -SECOND_NS // 10, SECOND_NS // 10, 7 * SECOND_NS, 600 * SECOND_NS]
MICROPHONE = StreamInfo(
    "mic",
    Modality.AUDIO,
    Encoding.PCM_S16LE,
    100.0,
    "mic",
    latency=Latency(max_ns=SECOND_NS // 100),
    shape=(1,),
    is_personal=True,
    frame_rate_hz=10.0,
)


class Paused:
    """A microphone that is recorded under a grant on a virtual clock, a block every 100 ms."""

    def __init__(
        self, tmp_path: Path, context: zmq.Context[zmq.Socket[bytes]], lasts_ns: int = HOUR_NS
    ) -> None:
        self.bench = Bench(tmp_path, context, ("mic",))
        self.bench.grant(Purpose.UPLOAD, lasts_ns=lasts_ns)
        self._mic: BusPublisher = self.bench.driver(MICROPHONE, 1)
        self._seq = 0
        self.bench.settle(self._mic)

    def sound(self, blocks: int) -> None:
        for _ in range(blocks):
            at = stamps(self.bench.clock.now_ns())
            self._mic.publish(Frame("mic", self._seq, 10, None, at, bytes(20)))
            self._seq += 10
            self.bench.advance(0.1, self._mic)

    def stored_arrivals_ns(self) -> list[int]:
        """End the session; return the host time of arrival of every block that was stored."""
        self._mic.end(linger_s=0.05)
        self.bench.settle()
        self.bench.close()
        found: list[int] = []
        for sealed in self.bench.thinker.sealed:
            assert sealed.path is not None
            with Episode(sealed.path) as episode:
                found += [int(recorded.frame.arrival_ns[0]) for recorded in episode.frames()]
        return found


@pytest.mark.parametrize("step_ns", STEPS_NS)
def test_a_stepped_wall_clock_does_not_defeat_a_pause(
    tmp_path: Path, context: zmq.Context[zmq.Socket[bytes]], step_ns: int
) -> None:
    session = Paused(tmp_path, context)
    session.sound(5)
    session.bench.clock.step_utc(step_ns)
    session.sound(5)
    pressed_ns = session.bench.clock.now_ns()
    session.bench.synchronizer.pause("button")
    session.sound(20)
    arrivals = session.stored_arrivals_ns()
    assert len(arrivals) == 10
    assert max(arrivals) < pressed_ns


@pytest.mark.parametrize("step_ns", STEPS_NS)
def test_a_clock_that_is_set_during_a_pause_neither_ends_nor_prolongs_it(
    tmp_path: Path, context: zmq.Context[zmq.Socket[bytes]], step_ns: int
) -> None:
    session = Paused(tmp_path, context)
    session.sound(5)
    session.bench.synchronizer.pause("button")
    session.bench.clock.step_utc(step_ns)
    session.sound(5)
    released_ns = session.bench.clock.now_ns()
    session.bench.synchronizer.resume("button")
    session.sound(5)
    arrivals = session.stored_arrivals_ns()
    # A block that came just at the release began before it: stamps are uncertain, and so is that.
    assert 9 <= len(arrivals) <= 10
    assert not [at for at in arrivals[5:] if at < released_ns]


def test_a_press_counts_from_when_it_was_made_and_not_from_when_it_was_heard(
    tmp_path: Path, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    session = Paused(tmp_path, context)
    session.sound(5)
    pressed_ns = session.bench.clock.now_ns()
    session.bench.clock.advance(SECOND_NS // 10)
    session.bench.synchronizer.pause("command line", pressed_ns)
    session.bench.clock.advance(-SECOND_NS // 20)  # a block that was captured in between comes late
    session.sound(1)
    assert max(session.stored_arrivals_ns()) < pressed_ns


@pytest.mark.parametrize("by_ns", [-2 * HOUR_NS, 2 * HOUR_NS])
def test_a_clock_set_out_of_a_grant_ends_what_it_permits(
    tmp_path: Path, context: zmq.Context[zmq.Socket[bytes]], by_ns: int
) -> None:
    session = Paused(tmp_path, context)
    session.sound(5)
    session.bench.clock.step_utc(by_ns)
    session.bench.settle()
    session.bench.advance(0.1)
    session.sound(5)
    assert len(session.stored_arrivals_ns()) == 5


def test_a_clock_set_back_does_not_revive_a_grant_that_has_run_out(
    tmp_path: Path, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    session = Paused(tmp_path, context, lasts_ns=SECOND_NS)
    session.sound(20)
    session.bench.clock.step_utc(-10 * SECOND_NS)
    session.sound(20)
    arrivals = session.stored_arrivals_ns()
    assert 5 <= len(arrivals) <= 10
