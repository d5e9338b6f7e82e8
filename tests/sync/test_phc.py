"""Bracketed reads of a simulated hardware clock, and chrony's tracking as chronyc 4.3 prints it."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensorium.errors import ClockError
from sensorium.sync.clocks.phc import (
    PhcClock,
    bracketed_read,
    clock_id_of,
    judge_chrony,
    parse_tracking,
    phc_devices,
    read_chrony,
)
from sensorium.timebase import HostClock, VirtualClock
from sensorium.verdict import Status

LOCAL = "7F7F0101,,8,1795299973.792466519,0.000000000,0.000000000,0.000000000,0.000,0.000,0.000,0.0,0.0,0.0,Normal"
LOST = "00000000,,0,0.000000000,0.0,0.0,0.0,0.000,0.000,0.000,1.000000000,1.000000000,0.0,Not synchronised"
REMOTE = "C0000201,192.0.2.1,2,1795299000.5,-0.000012000,0.000003,0.000009,-21.5,0.01,0.05,0.004,0.0005,64.2,Normal"


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
    assert phc_devices(tmp_path) == (plain,)


def test_a_hardware_clock_of_this_machine_is_read() -> None:
    devices = phc_devices()
    if not devices:
        pytest.skip("this machine has no /dev/ptp*")
    opened = PhcClock(devices[0], HostClock())
    assert opened.read().bracket_ns > 0
    opened.close()
    opened.close()


def test_tracking_is_read_with_its_bound() -> None:
    tracking = parse_tracking(REMOTE)
    assert tracking.stratum == 2
    assert tracking.bound_ns == pytest.approx(12_000 + 500_000 + 2_000_000)
    assert judge_chrony(tracking, "bench", 3e6).status is Status.OK
    verdict = judge_chrony(tracking, "bench", 1e6)
    assert verdict.status is Status.SUSPECT
    assert verdict.reasons == ("UTC is known to 2512 us only, 1000 us are wanted",)


def test_a_chronyd_without_a_source_is_a_failure() -> None:
    assert parse_tracking(LOCAL).is_synchronised
    verdict = judge_chrony(parse_tracking(LOST), "bench", 1e9)
    assert verdict.status is Status.FAILED


def test_numbers_that_are_none_are_refused() -> None:
    with pytest.raises(ClockError, match="not finite"):
        parse_tracking(REMOTE.replace("0.004", "nan"))


@given(st.text(max_size=200))
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(ClockError, match="chronyc -c tracking answered"):
        parse_tracking(text)


def test_an_absent_or_failing_chronyc_is_named(tmp_path: Path) -> None:
    with pytest.raises(ClockError, match="is not installed"):
        read_chrony(str(tmp_path / "chronyc"))
    program = tmp_path / "chronyc"
    for body, message in (
        (
            "print('506 Cannot talk to daemon'); raise SystemExit(1)",
            "506 Cannot talk to daemon; is chronyd running",
        ),
        ("import time; time.sleep(60)", "did not answer"),
    ):
        program.write_text(f"#!{sys.executable}\n{body}\n")
        program.chmod(0o755)
        with pytest.raises(ClockError, match=message):
            read_chrony(str(program))
    program.write_text(f"#!{sys.executable}\nprint({REMOTE!r})\n")
    assert read_chrony(str(program)) == parse_tracking(REMOTE)


def test_the_chronyd_of_this_machine_is_asked() -> None:
    if not shutil.which("chronyc"):
        pytest.skip("chrony is not installed")
    try:
        bound_ns = read_chrony().bound_ns
    except ClockError as err:
        pytest.skip(str(err))
    assert bound_ns >= 0
