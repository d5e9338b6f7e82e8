"""Bracketed reads of a simulated hardware clock."""

from pathlib import Path

import numpy as np
import pytest

from sensorium.errors import ClockError
from sensorium.sync.clocks.phc import (
    PhcClock,
    bracketed_read,
    clock_id_of,
)
from sensorium.timebase import HostClock, VirtualClock


@pytest.mark.parametrize("seed", range(5))
def test_the_truth_lies_within_half_the_shortest_bracket(seed: int) -> None:
    random = np.random.default_rng(seed)
    clock = VirtualClock(10**12)
    ahead_ns = 37_000_000_000

    def slow_register() -> int:
        clock.advance(int(random.exponential(5_000)))
        read = clock.now_ns() + ahead_ns
        clock.advance(int(random.exponential(50_000)))
        return read

    reading = bracketed_read(slow_register, clock)
    assert abs(reading.phc_ns - reading.host_ns - ahead_ns) <= reading.bracket_ns / 2 + 1
    assert reading.bracket_ns < 55_000


def test_clock_ids_are_those_of_the_kernel_header() -> None:
    assert clock_id_of(3) == -29
    assert clock_id_of(0) == -5


def test_what_is_no_hardware_clock_is_named(tmp_path: Path) -> None:
    with pytest.raises(ClockError, match=r"ethtool -T"):
        PhcClock(tmp_path / "ptp9", HostClock())
    plain = tmp_path / "ptp0"
    plain.touch()
    with pytest.raises(ClockError, match="cannot be read as a clock"):
        PhcClock(plain, HostClock())


def test_a_hardware_clock_of_this_machine_is_read() -> None:
    devices = sorted(Path("/dev").glob("ptp[0-9]*"))
    if not devices:
        pytest.skip("this machine has no /dev/ptp*")
    opened = PhcClock(devices[0], HostClock())
    assert opened.read().bracket_ns > 0
    opened.close()
    opened.close()
