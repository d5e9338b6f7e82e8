"""Credit on a virtual clock: one budget, shared fairly, never exceeded, whatever drivers and recorder do."""

from collections import deque
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sensorium.drivers.bus.credits import (
    DEFAULT_BUDGET_BYTES,
    HEADER_OVERHEAD_BYTES,
    Budget,
    CreditState,
    Limit,
    declared_bytes_per_s,
    least_limit_bytes,
    most_budget_bytes,
    needed_bytes,
)
from sensorium.drivers.bus.purse import Purse
from sensorium.drivers.bus.wire import Credit, Welcome
from sensorium.drivers.frame import Column, Encoding, Modality, StreamInfo
from sensorium.timebase import SECOND_NS

MB = 1_000_000
HEARTBEAT_NS = SECOND_NS // 5


def camera(rate_hz: float, frame_bytes: int, name: str = "cam") -> StreamInfo:
    return StreamInfo(name, Modality.CAMERA, Encoding.JPEG, rate_hz, name, max_payload_bytes=frame_bytes)


@dataclass(slots=True)
class Driver:
    """A driver instance, and what lies on the way to it and from it."""

    instance: int
    info: StreamInfo
    purse: Purse
    inbox: deque[Limit] = field(default_factory=deque)
    outbox: deque[CreditState] = field(default_factory=deque)
    held: deque[int] = field(default_factory=deque)
    returned_bytes: int = 0
    sent: int = 0
    refused: int = 0
    is_alive: bool = True

    def hears(self) -> None:
        """Take what the recorder told it, one message."""
        if not self.inbox:
            return
        limit = self.inbox.popleft()
        if self.purse.session is None:
            welcome = Welcome(
                instance=self.instance,
                session=1,
                limit_number=limit.number,
                limit_bytes=limit.limit_bytes,
                has_ring=False,
            )
            self.purse.welcome(welcome)
        else:
            self._take(limit.number, limit.limit_bytes)
        self.says()

    def _take(self, number: int, limit_bytes: int) -> None:
        self.purse.take(Credit(self.instance, self.purse.join, self.returned_bytes, number, limit_bytes))

    def says(self) -> None:
        self.outbox.append(self.purse.state())

    def publishes(self, n_frames: int = 1) -> None:
        size = self.info.max_payload_bytes
        for _ in range(n_frames):
            self.purse.want(size)
            if self.purse.spend(size):
                self.sent += 1
                self.held.append(size + HEADER_OVERHEAD_BYTES)
            else:
                self.purse.refuse()
                self.refused += 1

    def is_released(self, n_frames: int | None = None) -> None:
        """The recorder lets go of its oldest frames (of all), and the driver hears so."""
        for _ in range(len(self.held) if n_frames is None else min(n_frames, len(self.held))):
            self.returned_bytes += self.held.popleft()
        self._take(self.purse.state().limit_number, self.purse.limit_bytes)


class Rig:
    """A budget and its drivers; messages go when they are told to."""

    def __init__(self, budget_bytes: int | None) -> None:
        self.budget = Budget(budget_bytes)
        self.now_ns = 100 * SECOND_NS
        self.drivers: dict[int, Driver] = {}

    def join(self, info: StreamInfo) -> Driver:
        instance = len(self.drivers) + 1
        driver = Driver(instance, info, Purse(instance, None))
        self.drivers[instance] = driver
        self.budget.join(instance, [info])
        return driver

    def decide(self) -> None:
        for limit in self.budget.changes(self.now_ns):
            self.drivers[limit.instance].inbox.append(limit)

    def listen(self, driver: Driver) -> None:
        if driver.outbox:
            self.budget.hear(driver.instance, driver.outbox.popleft(), self.now_ns)

    def die(self, driver: Driver) -> None:
        driver.is_alive = False
        driver.inbox.clear()
        driver.outbox.clear()
        self.budget.leave(driver.instance, sum(driver.held))

    def settle(self, rounds: int = 6) -> None:
        """Let all messages arrive; nobody is idle for it."""
        for _ in range(rounds):
            self.decide()
            for driver in self.alive:
                while driver.inbox:
                    driver.hears()
                while driver.outbox:
                    self.listen(driver)

    def pass_time(self, seconds: float, *, every_ns: int = HEARTBEAT_NS) -> None:
        """Go on, with heartbeats."""
        end_ns = self.now_ns + int(seconds * SECOND_NS)
        while self.now_ns < end_ns:
            self.now_ns = min(end_ns, self.now_ns + every_ns)
            for driver in self.alive:
                driver.says()
            self.settle(3)

    @property
    def alive(self) -> list[Driver]:
        return [driver for driver in self.drivers.values() if driver.is_alive]

    def check(self) -> None:
        """Assert that neither what is granted nor what is under way exceeds the budget."""
        granted = sum(driver.purse.limit_bytes for driver in self.alive)
        dead = sum(sum(driver.held) for driver in self.drivers.values() if not driver.is_alive)
        assert granted + dead <= self.budget.budget_bytes
        assert self.budget.committed_bytes <= self.budget.budget_bytes
        alone = sum(
            driver.purse.outstanding_bytes
            for driver in self.alive
            if driver.info.max_payload_bytes + HEADER_OVERHEAD_BYTES > driver.purse.limit_bytes
        )
        under_way = sum(sum(driver.held) for driver in self.drivers.values())
        assert under_way - alone <= self.budget.budget_bytes


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("join"), st.integers(0, 3), st.integers(0, 3)),
        st.tuples(
            st.sampled_from(["die", "decide", "hears", "says", "listen", "burst", "release", "pass"]),
            st.integers(0, 7),
            st.integers(1, 40),
        ),
    ),
    max_size=120,
)
RATES = (0.0, 2.0, 30.0, 200.0)
SIZES = (200, 40_000, 300_000, 2_000_000)


@settings(max_examples=300, deadline=None)
@given(budget_bytes=st.sampled_from([300_000, 3 * MB, 50 * MB, None]), steps=STEPS)
def test_the_sum_of_the_limits_never_exceeds_the_budget(
    budget_bytes: int | None, steps: list[tuple[str, int, int]]
) -> None:
    rig = Rig(budget_bytes)
    for what, which, amount in steps:
        if what == "join":
            if len(rig.drivers) < 12:
                rig.join(camera(RATES[which], SIZES[amount]))
            continue
        if what == "decide":
            rig.decide()
        elif what == "pass":
            rig.now_ns += amount * SECOND_NS // 10
        elif rig.alive:
            driver = rig.alive[which % len(rig.alive)]
            if what == "die":
                rig.die(driver)
            elif what == "hears":
                driver.hears()
            elif what == "says":
                driver.says()
            elif what == "listen":
                rig.listen(driver)
            elif what == "burst":
                driver.publishes(amount)
            elif what == "release":
                driver.is_released(amount)
        rig.check()


@settings(max_examples=100, deadline=None)
@given(
    kinds=st.lists(st.tuples(st.integers(1, 3), st.integers(0, 3)), min_size=1, max_size=8),
    stall_at_s=st.floats(0.0, 20.0),
)
def test_a_stall_of_a_second_loses_nothing_of_declared_rates_that_fit(
    kinds: list[tuple[int, int]], stall_at_s: float
) -> None:
    rig = Rig(None)
    drivers = [rig.join(camera(RATES[rate], SIZES[size])) for rate, size in kinds]
    if sum(needed_bytes([driver.info]) for driver in drivers) > rig.budget.budget_bytes:
        return  # more than a quarter of this machine's memory
    rig.settle()
    end_ns = rig.now_ns + int(stall_at_s * SECOND_NS)
    due_ns = {driver.instance: rig.now_ns for driver in drivers}

    def run(until_ns: int, *, is_stalled: bool) -> None:
        while rig.now_ns < until_ns:
            rig.now_ns = min(until_ns, rig.now_ns + SECOND_NS // 20)
            for driver in drivers:
                while due_ns[driver.instance] <= rig.now_ns:
                    due_ns[driver.instance] += int(SECOND_NS / driver.info.rate_hz)
                    driver.publishes()
                if not is_stalled:
                    driver.is_released()
                driver.says()
            if not is_stalled:
                rig.settle(2)

    run(end_ns, is_stalled=False)
    run(end_ns + SECOND_NS, is_stalled=True)
    assert [driver.refused for driver in drivers] == [0] * len(drivers)
    rig.check()


def test_drivers_share_the_budget_in_proportion_to_what_they_declared() -> None:
    rig = Rig(200 * MB)
    big, small = rig.join(camera(20, MB)), rig.join(camera(10, MB))
    rig.settle()
    assert big.purse.limit_bytes + small.purse.limit_bytes == pytest.approx(200 * MB, rel=1e-6)
    ratio = needed_bytes([big.info]) / needed_bytes([small.info])
    assert big.purse.limit_bytes / small.purse.limit_bytes == pytest.approx(ratio)


def test_two_of_its_largest_frames_are_every_drivers_when_the_budget_is_short() -> None:
    rig = Rig(20 * MB)
    drivers = [rig.join(camera(60, 2 * MB)), rig.join(camera(0.5, 2 * MB)), rig.join(camera(1000, 100))]
    rig.settle()
    for driver in drivers:
        assert driver.purse.limit_bytes >= least_limit_bytes([driver.info])


def test_a_driver_that_was_throttled_keeps_its_limit() -> None:
    rig = Rig(40 * MB)
    driver, other = rig.join(camera(20, MB)), rig.join(camera(10, MB, "other"))
    rig.settle()
    before = driver.purse.limit_bytes
    for _ in range(100):  # twenty seconds in which next to nothing of it is written
        driver.publishes(20)
        other.publishes(2)
        other.is_released()
        driver.is_released(1)
        rig.pass_time(0.2)
    assert driver.refused > 1000
    assert driver.purse.limit_bytes >= before


def test_the_share_of_an_idle_driver_serves_the_burst_of_another_and_comes_back() -> None:
    rig = Rig(60 * MB)
    busy, idle = rig.join(camera(20, MB)), rig.join(camera(20, MB, "idle"))
    rig.settle()
    for _ in range(60):  # the other one sends nothing for twelve seconds
        busy.publishes(4)
        busy.is_released()
        rig.pass_time(0.2)
    assert idle.purse.limit_bytes >= needed_bytes([idle.info])  # while nobody presses, it keeps its share
    for _ in range(15):  # five times its rate, and nothing of it reaches the disk
        busy.publishes(3)
        rig.pass_time(0.05, every_ns=SECOND_NS // 20)
    assert busy.refused == 0
    assert sum(busy.held) > 40 * MB
    assert busy.purse.limit_bytes > 50 * MB
    busy.is_released()
    rig.pass_time(3.0)
    assert idle.purse.limit_bytes >= needed_bytes([idle.info])
    assert busy.purse.limit_bytes < 35 * MB


def test_a_driver_that_begins_to_send_again_is_given_its_share_while_the_other_drains() -> None:
    rig = Rig(60 * MB)
    busy, idle = rig.join(camera(20, MB)), rig.join(camera(20, MB, "idle"))
    rig.settle()
    for _ in range(60):
        busy.publishes(12)
        busy.is_released(12)
        rig.pass_time(0.2)
    for _ in range(30):
        for driver in (busy, idle):
            driver.publishes(4)
            driver.is_released()
        rig.pass_time(0.2)
    assert idle.refused == 0
    assert idle.purse.limit_bytes >= needed_bytes([idle.info])


def test_a_limit_that_was_lowered_is_free_only_once_its_driver_said_so() -> None:
    rig = Rig(30 * MB)
    first = rig.join(camera(10, MB))
    rig.settle()
    assert first.purse.limit_bytes == 30 * MB
    first.publishes(25)
    second = rig.join(camera(10, MB, "second"))
    rig.decide()
    assert not second.inbox
    rig.settle()
    assert first.purse.limit_bytes < 20 * MB
    assert not second.inbox  # 25 MB are under way all the same
    assert second.purse.session is None
    first.is_released()
    first.says()
    rig.settle()
    assert second.purse.limit_bytes > 10 * MB
    rig.check()


def test_a_driver_that_does_not_answer_keeps_a_newcomer_waiting_for_a_second_only() -> None:
    rig = Rig(30 * MB)
    rig.join(camera(10, MB))
    rig.settle()
    second = rig.join(camera(10, MB, "second"))
    rig.decide()
    rig.now_ns += SECOND_NS
    rig.decide()
    (limit,) = second.inbox
    assert limit.limit_bytes == 0  # it may send one frame at a time
    second.hears()
    second.publishes(2)
    assert (second.sent, second.refused) == (1, 1)


def test_what_a_dead_driver_left_with_the_recorder_is_free_when_it_is_released() -> None:
    rig = Rig(30 * MB)
    first = rig.join(camera(10, MB))
    rig.settle()
    first.publishes(20)
    rig.die(first)
    second = rig.join(camera(10, MB, "second"))
    rig.settle()
    assert second.purse.session is None or second.purse.limit_bytes < 10 * MB
    first.held.clear()
    rig.budget.leave(first.instance, 0)
    rig.settle()
    assert second.purse.limit_bytes == 30 * MB


def test_rates_that_do_not_fit_are_said_as_a_sentence() -> None:
    rig = Rig(30 * MB)
    rig.join(camera(10, MB))
    assert rig.budget.shortfall() == ""
    rig.join(camera(25, MB, "second"))
    assert "a second of the declared rates is 35 MB, the recorder's memory is 30 MB" in rig.budget.shortfall()
    assert "memory_mb" in rig.budget.shortfall()


def test_the_default_budget_grows_with_what_is_declared_up_to_a_quarter_of_the_memory() -> None:
    budget = Budget(None)
    assert budget.budget_bytes == min(DEFAULT_BUDGET_BYTES, most_budget_bytes())
    budget.join(1, [camera(400, MB)])
    assert budget.budget_bytes == min(needed_bytes([camera(400, MB)]), most_budget_bytes())
    before = budget.budget_bytes
    budget.leave(1, 0)
    assert budget.budget_bytes == before  # limits may lie around that were granted from it


OVERHEAD = HEADER_OVERHEAD_BYTES


@pytest.mark.parametrize(
    ("info", "bytes_per_s"),
    [
        (camera(30, 250_000), 30 * (250_000 + OVERHEAD)),
        (StreamInfo("raw", Modality.CAMERA, "bgr8", 10, "raw", shape=(48, 64, 3)), 10 * (9216 + OVERHEAD)),
        (StreamInfo("grey", Modality.CAMERA, "mono16", 10, "grey", shape=(48, 64)), 10 * (6144 + OVERHEAD)),
        (
            StreamInfo("mic", Modality.AUDIO, "pcm_s16le", 48_000, "mic", shape=(2,), frame_rate_hz=100),
            48_000 * 4 + 100 * OVERHEAD,
        ),
        (
            StreamInfo(
                "imu",
                Modality.IMU,
                "columns",
                1000,
                "imu",
                columns=(Column("x", "m"),) * 6,
                frame_rate_hz=100,
            ),
            24_000 + 100 * OVERHEAD,
        ),
        (camera(0, 250_000), 0),
    ],
)
def test_declared_rates_are_exact_where_samples_have_one_size(info: StreamInfo, bytes_per_s: float) -> None:
    assert declared_bytes_per_s(info) == bytes_per_s
