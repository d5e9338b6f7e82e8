"""chrony's tracking as chronyc 4.3 prints it, and a monitor that never waits."""

import shutil
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensorium.errors import ClockError
from sensorium.sync.clocks.chrony import POLL_NS, ChronyMonitor, judge_chrony, parse_tracking
from sensorium.timebase import SECOND_NS, HostClock, VirtualClock
from sensorium.verdict import Status

LOCAL = "7F7F0101,,8,1795299973.792466519,0.000000000,0.000000000,0.000000000,0.000,0.000,0.000,0.0,0.0,0.0,Normal"
LOST = "00000000,,0,0.000000000,0.0,0.0,0.0,0.000,0.000,0.000,1.000000000,1.000000000,0.0,Not synchronised"
REMOTE = "C0000201,192.0.2.1,2,1795299000.5,-0.000012000,0.000003,0.000009,-21.5,0.01,0.05,0.004,0.0005,64.2,Normal"


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


@pytest.fixture
def program(tmp_path: Path) -> Path:
    return tmp_path / "chronyc"


def write(program: Path, body: str) -> None:
    program.write_text(f"#!{sys.executable}\n{body}\n")
    program.chmod(0o755)


def next_verdict(monitor: ChronyMonitor) -> Status:
    clock = HostClock()
    end_ns = clock.now_ns() + 10 * SECOND_NS
    while not monitor.step():
        assert clock.now_ns() < end_ns
        clock.sleep_until(clock.now_ns() + 5_000_000)
    return monitor.verdict.status


def test_the_monitor_asks_again_and_again(program: Path) -> None:
    clock = VirtualClock()
    write(program, f"print({REMOTE!r})")
    monitor = ChronyMonitor("bench", clock, 3e6, str(program))
    assert monitor.verdict.status is Status.INSUFFICIENT
    assert next_verdict(monitor) is Status.OK
    assert not monitor.step(), "not due yet"
    write(program, f"print({LOST!r})")
    clock.advance(POLL_NS)
    assert next_verdict(monitor) is Status.FAILED
    monitor.close()


def test_the_monitor_names_a_chronyc_that_hangs_or_is_gone(program: Path) -> None:
    clock = VirtualClock()
    write(program, "import time; time.sleep(60)")
    monitor = ChronyMonitor("bench", clock, 3e6, str(program))
    assert not monitor.step()
    clock.advance(POLL_NS)
    assert monitor.step()
    assert "did not answer within 16 s" in monitor.verdict.reasons[0]
    program.unlink()
    clock.advance(POLL_NS)
    assert monitor.step()
    monitor.close()
    assert "is not installed" in monitor.verdict.reasons[0]


def test_the_monitor_says_what_a_failing_chronyc_said(program: Path) -> None:
    write(program, "print('506 Cannot talk to daemon'); raise SystemExit(1)")
    monitor = ChronyMonitor("bench", VirtualClock(), 3e6, str(program))
    assert next_verdict(monitor) is Status.INSUFFICIENT
    assert "506 Cannot talk to daemon; is chronyd running" in monitor.verdict.reasons[0]


def test_the_chronyd_of_this_machine_is_asked() -> None:
    if not shutil.which("chronyc"):
        pytest.skip("chrony is not installed")
    monitor = ChronyMonitor("bench", HostClock(), 1e9)
    if next_verdict(monitor) is Status.INSUFFICIENT:
        pytest.skip(monitor.verdict.reasons[0])
    assert monitor.verdict.quantities[0].value >= 0
