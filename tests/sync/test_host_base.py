"""The host's clocks: simulated kernels whose steps, slews and TAI offset are known, and the real one."""

from dataclasses import dataclass, field, replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sensorium.sync.clocks.host_base import AffineMap, HostBase, HostClockEvent, HostClockEventKind
from sensorium.timebase import SECOND_NS, BaseReading, HostClock, read_bases
from sensorium.verdict import Status

UTC_NS = 1_700_000_000 * SECOND_NS


@dataclass
class Kernel:
    """Three clocks over RAW: MONOTONIC and REALTIME share the slew; steps move REALTIME alone."""

    slew_ppm: float = 0.0
    tai_s: int = 0
    bracket_ns: int = 400
    raw_ns: int = 5_000 * SECOND_NS
    _slewed_ns: float = 0.0
    _stepped_ns: int = 0
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(1))

    def run(self, seconds: float = 1.0) -> None:
        self.raw_ns += round(seconds * SECOND_NS)
        self._slewed_ns += self.slew_ppm * 1e3 * seconds

    def step(self, by_ns: int) -> None:
        self._stepped_ns += by_ns

    def monotonic_ns(self, raw_ns: int) -> int:
        behind_ns = self.raw_ns - raw_ns
        return raw_ns + round(self._slewed_ns - self.slew_ppm * 1e-6 * behind_ns)

    def realtime_ns(self, raw_ns: int) -> int:
        return self.monotonic_ns(raw_ns) + UTC_NS + self._stepped_ns

    def read(self) -> BaseReading:
        """Each clock is read somewhere within the bracket, as a real reading is."""
        late = sorted(self.random.uniform(-0.5, 0.5, 3) * self.bracket_ns)
        at = [self.raw_ns + round(one) for one in late]
        realtime = self.realtime_ns(at[1])
        tai = self.realtime_ns(at[2]) + self.tai_s * SECOND_NS
        return BaseReading(self.raw_ns, self.monotonic_ns(at[0]), realtime, tai, self.bracket_ns)


def follow(base: HostBase, kernel: Kernel, seconds: int) -> list[HostClockEvent]:
    events: list[HostClockEvent] = []
    for _ in range(seconds):
        kernel.run()
        events += base.update(kernel.read())
    return events


def worst_error_ns(found: AffineMap, kernel: Kernel) -> int:
    """Return the largest error of MONOTONIC -> RAW over the last ten seconds."""
    raw_ns = kernel.raw_ns - np.arange(10, dtype=np.int64) * SECOND_NS
    monotonic_ns = np.array([kernel.monotonic_ns(int(at)) for at in raw_ns], np.int64)
    return int(np.abs(found.to_host(monotonic_ns) - raw_ns).max())


def test_kernel_stamps_are_carried_onto_the_host_clock_within_the_stated_error() -> None:
    base, kernel = HostBase(), Kernel(slew_ppm=35.0)
    assert base.monotonic() is None
    assert follow(base, kernel, 30) == []
    found = base.monotonic()
    assert found is not None
    assert found.rate_ppm == pytest.approx(35.0, abs=0.1)
    assert worst_error_ns(found, kernel) <= found.error_ns <= 2 * kernel.bracket_ns
    assert found.error_at(kernel.raw_ns + SECOND_NS) > found.error_ns


@pytest.mark.parametrize(
    "step_ns", [-3600 * SECOND_NS, -37 * SECOND_NS, -20_000, 20_000, 5_000_000, SECOND_NS]
)
def test_a_step_of_the_system_clock_is_named_and_moves_no_kernel_stamp(step_ns: int) -> None:
    base, kernel = HostBase(), Kernel()
    follow(base, kernel, 20)
    before = base.monotonic()
    kernel.step(step_ns)
    (event,) = follow(base, kernel, 1)
    after = base.monotonic()
    assert event.kind is HostClockEventKind.STEP
    assert event.size == pytest.approx(step_ns, abs=2 * kernel.bracket_ns)
    assert base.steps_ns == event.size
    assert before is not None
    assert after is not None
    assert worst_error_ns(after, kernel) <= after.error_ns
    stamps = np.array([kernel.monotonic_ns(kernel.raw_ns)], np.int64)
    assert abs(int(before.to_host(stamps)[0] - after.to_host(stamps)[0])) <= before.error_ns + after.error_ns


def test_after_a_step_the_map_of_realtime_begins_anew() -> None:
    base, kernel = HostBase(), Kernel()
    follow(base, kernel, 20)
    kernel.step(-2 * SECOND_NS)
    follow(base, kernel, 1)
    assert base.realtime() is None
    follow(base, kernel, 1)
    found = base.realtime()
    assert found is not None
    stamps = np.array([kernel.realtime_ns(kernel.raw_ns)], np.int64)
    assert abs(int(found.to_host(stamps)[0]) - kernel.raw_ns) <= found.error_ns


def test_a_slew_is_no_step_and_is_named() -> None:
    base, kernel = HostBase(), Kernel()
    follow(base, kernel, 20)
    kernel.slew_ppm = 400.0
    events = follow(base, kernel, 5)
    assert [event.kind for event in events] == [HostClockEventKind.SLEW]
    assert events[0].size == pytest.approx(400.0, abs=5)
    assert base.steps_ns == 0
    verdict = base.verdict("bench")
    assert verdict.status is Status.SUSPECT
    assert "changed its rate 1 times" in verdict.reasons[0]


def test_one_slow_reading_is_no_event() -> None:
    base, kernel = HostBase(), Kernel()
    follow(base, kernel, 20)
    kernel.bracket_ns = 3_000_000
    events = follow(base, kernel, 1)
    kernel.bracket_ns = 400
    assert events + follow(base, kernel, 10) == []
    assert base.verdict("bench").status is Status.OK


def test_tai_is_used_only_where_the_kernel_was_told() -> None:
    base, kernel = HostBase(), Kernel()
    follow(base, kernel, 3)
    assert base.tai() is None
    kernel.tai_s = 37
    (event,) = follow(base, kernel, 1)
    assert event.kind is HostClockEventKind.TAI
    assert base.tai_minus_utc_s == 37
    found = base.tai()
    assert found is not None


@settings(max_examples=50, deadline=None)
@given(
    steps=st.lists(st.integers(-(10**12), 10**12), max_size=6),
    slews=st.lists(st.floats(-500, 500), min_size=1, max_size=6),
    seed=st.integers(0, 1000),
)
def test_whatever_the_time_daemon_does_host_time_goes_on(
    steps: list[int], slews: list[float], seed: int
) -> None:
    base, kernel = HostBase(), Kernel(random=np.random.default_rng(seed))
    follow(base, kernel, 3)
    for index in range(max(len(steps), len(slews))):
        if index < len(steps):
            kernel.step(steps[index])
        kernel.slew_ppm = slews[index % len(slews)]
        follow(base, kernel, 3)
        found = base.monotonic()
        assert found is not None
        assert worst_error_ns(found, kernel) <= max(found.error_ns, 1e-3 * 10 * SECOND_NS)
        newest = np.array([kernel.monotonic_ns(kernel.raw_ns)], np.int64)
        assert abs(int(found.to_host(newest)[0]) - kernel.raw_ns) <= found.error_ns + kernel.bracket_ns
    assert base.steps_ns == pytest.approx(sum(steps), abs=len(steps) * (4_000 + 2 * kernel.bracket_ns))


@given(
    elapsed_ns=st.integers(-7 * 86_400 * SECOND_NS, 7 * 86_400 * SECOND_NS),
    rate_ppm=st.floats(-1000, 1000),
)
def test_a_map_carries_stamps_of_a_week_within_two_nanoseconds(elapsed_ns: int, rate_ppm: float) -> None:
    found = AffineMap(10**15, 10**18, rate_ppm, 0.0)
    other_ns = 10**18 + round(elapsed_ns * (1 + Fraction(rate_ppm) / 10**6))
    assert abs(int(found.to_host(np.array([other_ns]))[0]) - (10**15 + elapsed_ns)) <= 2


def test_this_machine_is_followed_with_a_small_error() -> None:
    base, clock = HostBase(), HostClock()
    for _ in range(10):
        base.update(read_bases(tries=20))
        clock.sleep_until(clock.now_ns() + 20_000_000)
    found = base.monotonic()
    assert found is not None
    newest = read_bases(tries=20)
    at = np.array([newest.monotonic_ns], np.int64)
    allowed_ns = found.error_at(newest.raw_ns) + newest.bracket_ns
    assert abs(int(found.to_host(at)[0]) - newest.raw_ns) <= allowed_ns


def test_a_host_that_slept_says_so_and_its_utc_was_not_stepped() -> None:
    kernel, base = Kernel(), HostBase()
    follow(base, kernel, 5)
    kernel.step(63 * SECOND_NS)  # UTC went on, MONOTONIC and RAW stood still
    kernel.run()
    events = list(base.update(replace(kernel.read(), asleep_ns=63 * SECOND_NS)))
    assert [event.kind for event in events] == [HostClockEventKind.ASLEEP]
    assert "slept for 63.0 s" in events[0].detail
    verdict = base.verdict("host")
    assert verdict.status is Status.SUSPECT
    assert "slept 1 times, 63.0 s in all" in verdict.reasons[0]


def test_a_step_on_waking_is_told_from_the_sleep() -> None:
    kernel, base = Kernel(), HostBase()
    follow(base, kernel, 5)
    kernel.step(63 * SECOND_NS + 400_000_000)
    kernel.run()
    events = base.update(replace(kernel.read(), asleep_ns=63 * SECOND_NS))
    kinds = [event.kind for event in events]
    assert kinds == [HostClockEventKind.ASLEEP, HostClockEventKind.STEP]
    assert events[1].size == pytest.approx(400_000_000, abs=10_000)
