"""Simulated devices begin together, work ahead of their time, and say when the machine is too slow for them."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from simulated_rig import START_NS, device, drain

from sensorium.drivers.frame import Frame, stamps
from sensorium.errors import DeviceError
from sensorium.simulators.ahead import AHEAD_BYTES, FramesAhead
from sensorium.simulators.common_start import LEAD_NS, PATIENCE_NS, agree_on_start
from sensorium.simulators.device import SimulatedDriver
from sensorium.simulators.pace import load_pace
from sensorium.timebase import SECOND_NS, HostClock, VirtualClock


class Maker:
    """Pushes frames with the given arrivals, one each time it is asked."""

    def __init__(self, arrivals_ns: list[int], payload: bytes = b"") -> None:
        self.frames = FramesAhead("maker", self.produce)
        self.made = 0
        self._arrivals_ns = arrivals_ns
        self._payload = payload

    def produce(self) -> bool:
        if self.made == len(self._arrivals_ns):
            return False
        arrival_ns = stamps(self._arrivals_ns[self.made])
        self.frames.push(Frame("s", self.made, 1, None, arrival_ns, self._payload))
        self.made += 1
        return True


def taken(frames: FramesAhead) -> list[int]:
    """Take one frame after the other until there are no more; return their numbers."""
    found: list[int] = []
    while (due_ns := frames.next_ns()) is not None:
        found += [frame.seq for frame in frames.take(due_ns)]
    return found


def test_every_frame_is_taken_once_and_in_order() -> None:
    maker = Maker([10 * k for k in range(200)])
    assert taken(maker.frames) == list(range(200))
    maker.frames.close()


def test_a_frame_waits_until_it_has_arrived() -> None:
    maker = Maker([10, 20, 30])
    assert maker.frames.next_ns() == 10
    assert maker.frames.take(9) == []
    assert [frame.seq for frame in maker.frames.take(10)] == [0]
    assert maker.frames.next_ns() == 20
    maker.frames.close()


def test_what_waits_is_bounded_and_what_was_taken_makes_room() -> None:
    payload = bytes(AHEAD_BYTES // 8)
    maker = Maker(list(range(40)), payload)
    maker.frames.next_ns()
    maker.frames.close()
    assert maker.made <= 9
    maker = Maker(list(range(40)), payload)
    assert len(taken(maker.frames)) == 40
    maker.frames.close()


def test_an_error_comes_after_the_frames_before_it() -> None:
    maker = Maker([1, 2])

    def fails() -> bool:
        if not maker.produce():
            raise DeviceError("torn cable")
        return True

    frames = maker.frames = FramesAhead("maker", fails)
    for number in range(2):
        assert frames.next_ns() == number + 1
        assert [frame.seq for frame in frames.take(number + 1)] == [number]
    with pytest.raises(DeviceError, match="torn cable"):
        frames.next_ns()
    frames.close()


def together(work: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=one) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


def test_devices_that_start_together_agree_on_one_instant(tmp_path: Path) -> None:
    names, clock = [f"device_{k}" for k in range(8)], HostClock()
    found: dict[str, int] = {}

    def opening(name: str) -> Callable[[], None]:
        return lambda: found.update({name: agree_on_start(tmp_path, name, names, clock)})

    before_ns = clock.now_ns()
    together([opening(name) for name in names])
    assert found.keys() == set(names)
    (start_ns,) = set(found.values())
    assert before_ns + LEAD_NS <= start_ns <= clock.now_ns() + LEAD_NS
    again = agree_on_start(tmp_path, names[3], names, clock)  # restarted
    assert again == start_ns


def test_a_device_that_never_comes_is_named(tmp_path: Path) -> None:
    clock = VirtualClock(START_NS)
    options = {"start_ns": None, "starts_with": ["imu", "lidar"]}
    with pytest.raises(DeviceError, match="imu waited 60 s for lidar"):
        device("imu", tmp_path, clock, **options).open()
    assert clock.now_ns() - START_NS > PATIENCE_NS


def test_devices_of_one_rig_have_the_same_world_time(tmp_path: Path) -> None:
    clock = VirtualClock(START_NS)
    options = {"start_ns": None, "starts_with": ["imu", "force"], "seconds": 0.5}
    (tmp_path / "start").mkdir()
    (tmp_path / "start" / "force.open").touch()
    imu, force = (device(name, tmp_path, clock, **options) for name in ("imu", "force"))
    infos = imu.open(), force.open()
    assert isinstance(imu, SimulatedDriver)
    assert isinstance(force, SimulatedDriver)
    assert imu.start_ns == force.start_ns == START_NS + LEAD_NS
    frames = drain(imu, [info.name for info in infos[0]])["imu"]
    assert frames[0].arrival_ns[0] >= START_NS + LEAD_NS
    assert sum(frame.count for frame in frames) == 100
    force.close()


def test_a_device_that_keeps_up_leaves_no_word_of_it(tmp_path: Path) -> None:
    driver = device("imu", tmp_path, seconds=2.0)
    drain(driver, [info.name for info in driver.open()])
    assert load_pace(tmp_path) == {}


def test_a_device_that_falls_behind_loses_nothing_and_says_how_far(tmp_path: Path) -> None:
    clock = VirtualClock(START_NS)
    driver = device("force", tmp_path, clock, seconds=5.0)
    names = [info.name for info in driver.open()]
    clock.advance(3 * SECOND_NS)  # the machine did something else
    frames = drain(driver, names)["force"]
    assert sum(frame.count for frame in frames) == 5000
    assert load_pace(tmp_path) == {"force": pytest.approx(3.0, abs=0.1)}


def test_an_accelerated_device_is_never_late(tmp_path: Path) -> None:
    clock = VirtualClock(START_NS)
    driver = device("force", tmp_path, clock, seconds=5.0, speed=50.0)
    names = [info.name for info in driver.open()]
    clock.advance(3 * SECOND_NS)
    drain(driver, names)
    assert load_pace(tmp_path) == {}
