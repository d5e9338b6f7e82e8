"""The management codec, the lock rule and PTP claims, without a daemon (that one: test_ptp_daemon.py)."""

import socket
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensorium.errors import ClockError
from sensorium.sync.clocks.claims import compare_claim
from sensorium.sync.clocks.model import ClockModel, Uncertainty
from sensorium.sync.clocks.ptp import (
    PtpEventKind,
    PtpMonitor,
    PtpPolicy,
    PtpStatus,
    PtpTracker,
    claimed_model,
)
from sensorium.sync.clocks.ptp_management import (
    DataSet,
    PortState,
    PtpClient,
    PtpReading,
    pack_get,
    unpack_response,
)
from sensorium.sync.clocks.ptp_story import LocalReading
from sensorium.timebase import SECOND_NS, BaseReading, VirtualClock
from sensorium.verdict import Status

START_NS = 1_000 * SECOND_NS
READING = PtpReading(
    host_ns=START_NS,
    clock_identity="5a8174.fffe.815c2b",
    domain=42,
    is_slave_only=True,
    port_state=PortState.SLAVE,
    sync_interval_s=0.125,
    offset_ns=-160,
    ingress_ns=1_795_287_253_104_482_993,
    mean_path_delay_ns=2473.0,
    steps_removed=1,
    grandmaster="82ef50.fffe.726493",
    is_grandmaster_claimed=True,
    clock_class=248,
    clock_accuracy=0xFE,
    utc_offset_s=37,
    is_utc_offset_valid=False,
    is_ptp_timescale=False,
)


def later(reading: PtpReading, seconds: float, **changes: object) -> PtpReading:
    """Return the reading of a healthy ptp4l ``seconds`` later, then changed."""
    by_ns = round(seconds * SECOND_NS)
    moved = replace(reading, host_ns=reading.host_ns + by_ns, ingress_ns=reading.ingress_ns + by_ns)
    return replace(moved, **changes)  # type: ignore[arg-type]


def locked(policy: PtpPolicy | None = None, seconds: int = 10) -> tuple[PtpTracker, PtpReading]:
    tracker = PtpTracker("bench", policy)
    reading = READING
    for _ in range(seconds):
        reading = later(reading, 1.0)
        assert tracker.update(reading).is_locked
    return tracker, reading


# -- codec


def test_a_request_is_a_management_message_as_the_standard_has_it() -> None:
    message = pack_get(DataSet.TIME_STATUS, 7, 42, transport_specific=1)
    assert len(message) == 54
    assert message[0] == 0x1D
    assert struct.unpack_from(">H", message, 2) == (54,)
    assert message[4] == 42
    assert struct.unpack_from(">H", message, 30) == (7,)
    assert message[46] == 0
    assert message[48:] == bytes.fromhex("0001 0002 c000")


def response(data_set: int, body: bytes, sequence: int = 7, domain: int = 42, tlv: int = 1) -> bytes:
    message = bytearray(pack_get(DataSet.DEFAULT, sequence, domain))
    message[46] = 2
    message[48:] = struct.pack(">HHH", tlv, 2 + len(body), data_set) + body
    message[2:4] = struct.pack(">H", len(message))
    return bytes(message)


CURRENT_BODY = struct.pack(">Hqq", 1, -160 << 16, 2473 << 16)


def test_a_response_gives_its_fields() -> None:
    assert unpack_response(response(DataSet.CURRENT, CURRENT_BODY), 7, 42) == (
        DataSet.CURRENT,
        (1, -160 << 16, 2473 << 16),
    )


@pytest.mark.parametrize(
    "message",
    [
        response(DataSet.CURRENT, CURRENT_BODY, sequence=8),
        response(DataSet.CURRENT, CURRENT_BODY, domain=0),
        response(DataSet.CURRENT, CURRENT_BODY[:-1]),
        response(0x2005, CURRENT_BODY),
        pack_get(DataSet.CURRENT, 7, 42),
        response(DataSet.CURRENT, CURRENT_BODY)[:-1],
        response(DataSet.CURRENT, bytes(3000)),
    ],
    ids=["other sequence", "other domain", "short", "unknown id", "a request", "torn", "too long"],
)
def test_what_is_no_answer_is_passed_over(message: bytes) -> None:
    assert unpack_response(message, 7, 42) is None


def test_a_refusal_is_an_error() -> None:
    with pytest.raises(ClockError, match="refused a management request with error 0x0002"):
        unpack_response(response(2, CURRENT_BODY, tlv=2), 7, 42)


@given(st.binary(max_size=200))
def test_garbage_is_passed_over(message: bytes) -> None:
    assert unpack_response(message, 7, 42) is None


# -- monitor


@pytest.fixture
def deaf_daemon(tmp_path: Path) -> Iterator[Path]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as daemon:
        daemon.bind(str(tmp_path / "ptp4l"))
        yield tmp_path / "ptp4l"


def test_the_monitor_never_waits_and_names_silence(deaf_daemon: Path) -> None:
    clock = VirtualClock(START_NS)
    monitor = PtpMonitor(PtpClient(clock, deaf_daemon, domain=3), PtpTracker("bench"), clock)
    assert monitor.step() is None
    clock.advance(SECOND_NS // 2)
    assert monitor.step() is None
    clock.advance(SECOND_NS // 2)
    status = monitor.step()
    monitor.close()
    assert status is not None
    assert status.verdict.status is Status.INSUFFICIENT
    assert "does not answer: is its domain 3 and its transportSpecific 0?" in status.verdict.reasons[0]


# -- lock rule


def test_a_healthy_slave_is_locked_with_a_stated_uncertainty() -> None:
    tracker, reading = locked()
    status = tracker.status(reading.host_ns)
    assert status.verdict.status is Status.OK
    assert status.epoch == 0
    assert status.uncertainty is not None
    assert status.uncertainty.statistical_ns == pytest.approx(160.0)
    assert status.uncertainty.asymmetry_ns == 2473.0
    assert [event.kind for event in tracker.take_events()] == [PtpEventKind.LOCKED]
    assert tracker.take_events() == ()


def test_recorded_offsets_of_a_real_link_give_its_scatter(shared_data: Path) -> None:
    lines = (shared_data / "clock" / "ptp_netns" / "offsets.txt").read_text().splitlines()
    tracker, reading = PtpTracker("bench"), READING
    for line in lines:
        offset_ns, delay_ns = line.split()
        reading = later(reading, 1.0, offset_ns=int(offset_ns), mean_path_delay_ns=float(delay_ns))
        status = tracker.update(reading)
    assert status.uncertainty is not None
    # specs/clocks.md 4: p99 1.4 us, path delay 2.2 us.
    assert 1_000 < status.uncertainty.statistical_ns < 1_500
    assert 1_900 < status.uncertainty.asymmetry_ns < 2_500


@pytest.mark.parametrize(
    ("changes", "status", "reason"),
    [
        ({"port_state": PortState.LISTENING}, Status.SUSPECT, "port is LISTENING instead of SLAVE"),
        ({"port_state": PortState.UNCALIBRATED}, Status.SUSPECT, "UNCALIBRATED"),
        ({"port_state": PortState.MASTER}, Status.FAILED, "itself the master"),
        ({"port_state": PortState.FAULTY}, Status.SUSPECT, "FAULTY"),
        ({"ingress_ns": 0}, Status.INSUFFICIENT, "no sync has come"),
        ({"mean_path_delay_ns": -498_000.0}, Status.FAILED, "-498000 ns; no path is shorter"),
        ({"offset_ns": 37 * SECOND_NS}, Status.FAILED, "exceeds the limit of 100000 ns"),
    ],
)
def test_each_condition_ends_the_lock(changes: dict[str, object], status: Status, reason: str) -> None:
    tracker, reading = locked()
    found = tracker.update(later(reading, 1.0, **changes))
    assert not found.is_locked
    assert found.verdict.status is status
    assert reason in found.verdict.reasons[0]
    assert "holdover" in found.verdict.reasons[1]
    back = tracker.update(later(reading, 2.0))
    assert back.is_locked
    assert back.epoch == 1, "a new lock is a new epoch"


def test_a_slave_that_gets_no_sync_loses_its_lock_after_three_intervals() -> None:
    tracker, reading = locked()
    silent = replace(reading, is_grandmaster_claimed=True)
    held = tracker.update(replace(silent, host_ns=reading.host_ns + SECOND_NS))
    lost = tracker.update(replace(silent, host_ns=reading.host_ns + 2 * SECOND_NS))
    assert held.is_locked, "polling once per second cannot see less than a second"
    assert not lost.is_locked
    assert "no sync for 2.0 s" in lost.verdict.reasons[0]


def test_holdover_grows_at_the_declared_rate() -> None:
    tracker, reading = locked(PtpPolicy(holdover_per_ns=1e-6))
    widths = []
    for second in range(1, 4):
        status = tracker.fail(reading.host_ns + second * SECOND_NS, "silence")
        assert status.uncertainty is not None
        widths.append(status.uncertainty.statistical_ns)
    assert np.diff(widths) == pytest.approx([1_000, 1_000])


def test_the_first_offset_after_a_change_of_grandmaster_is_discarded() -> None:
    tracker, reading = locked()
    tracker.take_events()
    changed = later(reading, 1.0, grandmaster="0a1b2c.fffe.3d4e5f")
    waiting = tracker.update(changed)
    still = tracker.update(replace(changed, host_ns=changed.host_ns + SECOND_NS // 10))
    settled = tracker.update(later(changed, 1.0, offset_ns=70))
    assert not waiting.is_locked
    assert not still.is_locked
    assert waiting.uncertainty is None, "nothing of the old master's offsets is kept"
    assert "first sync of the new grandmaster" in waiting.verdict.reasons[0]
    assert settled.is_locked
    assert (settled.epoch, settled.offset_ns) == (1, 70)
    kinds = [event.kind for event in tracker.take_events()]
    assert kinds == [PtpEventKind.LOST, PtpEventKind.GRANDMASTER, PtpEventKind.LOCKED]


def test_what_exchanges_scatter_here_is_not_forgotten_with_a_lock() -> None:
    """One reading tells nothing of its own scatter: what the lock before it had is what the next one begins with."""
    tracker, reading = PtpTracker("bench", PtpPolicy(is_free_running=True)), READING
    for second in range(40):
        reading = later(reading, 1.0, offset_ns=20_000 if second % 2 else -20_000)
        tracker.update(reading)
    reading = later(reading, 1.0, grandmaster="000000.fffe.000001")
    tracker.update(reading)
    first = tracker.update(later(reading, 1.0, offset_ns=80_000))
    assert first.is_locked
    assert first.uncertainty is not None
    sigma_ns = 1.4826 * 20_000
    assert 12 * sigma_ns < first.uncertainty.bound95_ns < 14 * sigma_ns, (
        "Student's t of one degree of freedom"
    )


def test_a_servo_that_had_to_find_its_way_says_nothing_of_how_exchanges_scatter() -> None:
    tracker, reading = PtpTracker("bench", PtpPolicy(is_free_running=True)), READING
    for second in range(40):
        offset_ns = int(5e6 * 0.5**second) + (500 if second % 2 else -500)
        reading = later(reading, 1.0, offset_ns=offset_ns)
        tracker.update(reading)
    reading = later(reading, 1.0, grandmaster="000000.fffe.000001")
    tracker.update(reading)
    first = tracker.update(later(reading, 1.0, offset_ns=300))
    assert first.uncertainty is not None
    assert first.uncertainty.bound95_ns < 5e6 / 100, "a hundredth of where it began"


def test_a_free_running_client_is_locked_while_uncalibrated_and_may_drift() -> None:
    tracker, reading = PtpTracker("bench", PtpPolicy(is_free_running=True)), READING
    for second in range(60):
        drifted_ns = 20_000 * second
        reading = later(reading, 1.0, port_state=PortState.UNCALIBRATED, offset_ns=drifted_ns)
        status = tracker.update(reading)
    assert status.is_locked
    assert status.offset_ns == drifted_ns
    assert status.uncertainty is not None
    assert status.uncertainty.statistical_ns < 1


def test_a_master_that_has_to_follow_another_is_no_master() -> None:
    tracker = PtpTracker("bench", PtpPolicy(is_master=True))
    own = replace(READING, port_state=PortState.MASTER, offset_ns=0, ingress_ns=0, mean_path_delay_ns=0.0)
    assert tracker.update(own).is_locked
    still = tracker.update(replace(own, host_ns=own.host_ns + SECOND_NS))
    assert still.is_locked
    assert still.uncertainty == Uncertainty(0.0, 0.0, 0.0)
    usurped = tracker.update(later(READING, 2.0, grandmaster="0a1b2c.fffe.3d4e5f"))
    assert not usurped.is_locked
    assert usurped.verdict.reasons[0] == "port is SLAVE instead of MASTER"


@pytest.mark.parametrize(
    ("is_ptp_timescale", "is_valid", "expected"),
    [(False, False, 0), (True, True, -37 * SECOND_NS), (True, False, None)],
)
def test_utc_follows_only_from_an_offset_that_is_vouched_for(
    is_ptp_timescale: bool, is_valid: bool, expected: int | None
) -> None:
    reading = replace(READING, is_ptp_timescale=is_ptp_timescale, is_utc_offset_valid=is_valid)
    assert reading.utc_minus_ptp_ns == expected
    status = PtpTracker("bench").update(reading)
    assert status.verdict.status is (Status.SUSPECT if expected is None else Status.OK)


# -- the story that PTP tells

UTC_MINUS_RAW_NS = 1_700_000_000 * SECOND_NS
TAI_S = 37


def told(
    second: float, *, ptp_ns: int = 0, host_utc_ns: int = 0, tai_s: int = 0, **changes: object
) -> PtpReading:
    """Return what a free-running client with software stamps says, its host's clocks as they should be.

    Args:
        ptp_ns: How far the master's UTC is ahead of the truth.
        host_utc_ns: Likewise the host's REALTIME.
        tai_s: What the kernel was told of TAI - UTC.
    """
    raw_ns = START_NS + round(second * SECOND_NS)
    realtime_ns = raw_ns + UTC_MINUS_RAW_NS + host_utc_ns
    found = replace(
        READING,
        host_ns=raw_ns,
        port_state=PortState.UNCALIBRATED,
        ingress_ns=realtime_ns - 10_000_000,
        offset_ns=host_utc_ns - ptp_ns,
        bases=BaseReading(raw_ns, raw_ns, realtime_ns, realtime_ns + tai_s * SECOND_NS, 200),
    )
    return replace(found, **changes)  # type: ignore[arg-type]


def listening(*readings: PtpReading, policy: PtpPolicy | None = None) -> tuple[PtpTracker, PtpStatus]:
    tracker = PtpTracker("bench", policy or PtpPolicy(is_free_running=True))
    for reading in readings:
        status = tracker.update(reading)
    return tracker, status


def steps_of(tracker: PtpTracker) -> list[str]:
    return [event.detail for event in tracker.take_events() if event.kind is PtpEventKind.STEP]


@pytest.mark.parametrize("by_ns", [37 * SECOND_NS, -SECOND_NS, 3_000_000])
def test_a_step_of_ptp_time_is_an_event_and_an_epoch_and_the_bound_spans_both_stories(by_ns: int) -> None:
    steady = [told(second) for second in range(10)]
    after = [told(second, ptp_ns=by_ns) for second in range(10, 14)]
    tracker, status = listening(*steady, *after)
    assert (status.is_locked, status.epoch) == (True, 1)
    assert status.verdict.status is Status.SUSPECT
    assert len(steps_of(tracker)) == 1
    assert status.uncertainty is not None
    assert status.uncertainty.asymmetry_ns >= abs(status.offset_ns)
    assert status.on_wire is not None
    assert status.on_wire.asymmetry_ns == 2473.0


def test_a_small_jump_is_a_step_only_once_it_was_seen_twice() -> None:
    steady = [told(second) for second in range(10)]
    tracker, status = listening(*steady, told(10, ptp_ns=3_000_000))
    assert (status.epoch, status.offset_ns) == (0, 0)
    assert status.uncertainty is not None
    assert status.uncertainty.asymmetry_ns > 3_000_000, "until it is known, the bound reaches to it"
    back = tracker.update(told(11))
    assert back.uncertainty is not None
    assert back.uncertainty.asymmetry_ns < 3_000
    assert steps_of(tracker) == []


def test_a_host_clock_that_is_stepped_is_no_step_of_ptp() -> None:
    before = [told(second) for second in range(10)]
    after = [told(second, host_utc_ns=5 * SECOND_NS) for second in range(10, 16)]
    tracker, status = listening(*before, *after)
    assert steps_of(tracker) == []
    assert (status.epoch, status.apart_ns) == (0, 0.0)


def test_a_grandmaster_that_finds_the_hosts_utc_again_is_believed() -> None:
    wrong = [told(second, ptp_ns=40 * SECOND_NS) for second in range(10)]
    tracker, doubted = listening(*wrong)
    assert doubted.apart_ns == pytest.approx(40 * SECOND_NS)
    right = [told(second) for second in range(10, 13)]
    for reading in right:
        status = tracker.update(reading)
    assert (status.apart_ns, status.verdict.status, status.epoch) == (0.0, Status.OK, 1)
    assert len(steps_of(tracker)) == 1


def test_a_host_whose_utc_chrony_vouches_for_is_a_closer_witness() -> None:
    readings = [told(second, ptp_ns=30_000_000) for second in range(5)]
    _, alone = listening(*readings)
    tracker = PtpTracker("bench", PtpPolicy(is_free_running=True))
    tracker.utc_error_ns = 2e6
    for reading in readings:
        vouched = tracker.update(reading)
    assert alone.verdict.status is Status.OK, "nobody knows this host's UTC to 30 ms"
    assert vouched.verdict.status is Status.SUSPECT
    assert "+30.000 ms from chrony's, which is known to 2000 us" in vouched.verdict.reasons[0]


def test_a_leap_second_that_was_announced_is_a_step_without_doubt() -> None:
    tai = {"is_ptp_timescale": True, "is_utc_offset_valid": True, "is_time_traceable": True}
    before = [told(second, is_leap_61=True, **tai) for second in range(10)]
    moved: dict[str, Any] = {**tai, "utc_offset_s": TAI_S + 1}
    # UTC repeats a second, so the host's REALTIME does, too.
    after = [told(second, ptp_ns=-SECOND_NS, host_utc_ns=-SECOND_NS, **moved) for second in (11, 12, 13, 14)]
    tracker, status = listening(*before, *after)
    assert len(steps_of(tracker)) == 1
    assert status.apart_ns == 0
    assert status.ptp_minus_told_ns == (TAI_S + 1) * SECOND_NS


def test_an_announced_utc_offset_is_held_against_the_kernels() -> None:
    tai = {"is_ptp_timescale": True, "is_utc_offset_valid": True, "is_time_traceable": True}
    _, right = listening(*[told(second, tai_s=TAI_S, **tai) for second in range(4)])
    _, wrong = listening(*[told(second, tai_s=TAI_S - 1, **tai) for second in range(4)])
    assert right.verdict.status is Status.OK
    assert wrong.verdict.status is Status.SUSPECT
    assert "announces TAI - UTC = 37 s, this host's kernel has 36 s" in wrong.verdict.reasons[0]
    assert wrong.apart_ns == SECOND_NS


def test_a_hardware_clock_that_counts_tai_is_carried_to_utc_by_what_is_announced() -> None:
    policy = PtpPolicy(is_software=False)
    tracker = PtpTracker("bench", policy)
    changes: dict[str, Any] = {
        "is_ptp_timescale": True,
        "is_utc_offset_valid": True,
        "is_time_traceable": True,
        "port_state": PortState.SLAVE,
    }
    for second in range(12):
        reading = told(second, **changes)
        assert reading.bases is not None
        tai_ns = reading.bases.realtime_ns + TAI_S * SECOND_NS
        local = LocalReading(reading.bases.raw_ns, tai_ns, 300)
        reading = replace(reading, ingress_ns=tai_ns - 10_000_000)
        if second == 8:
            changes["utc_offset_s"] = TAI_S + 1
        status = tracker.update(reading, local)
    (step,) = steps_of(tracker)
    assert step.startswith("the UTC that it tells by -1.000 s")
    assert status.apart_ns == SECOND_NS
    assert status.ptp_minus_told_ns == 0


# -- claims

HOUR_NS = 3600 * SECOND_NS
DEVICE_NS = 1_795_287_253 * SECOND_NS


def model_at(host_ns: int, skew_ppm: float = 0.0, width_ns: float = 20_000) -> ClockModel:
    return ClockModel(
        0, "test", DEVICE_NS, host_ns, 1 + skew_ppm * 1e-6, skew_ppm, Uncertainty(width_ns, 0.0, 1_000_000)
    )


@pytest.mark.parametrize(
    ("apart_ns", "reason"),
    [
        (-37 * SECOND_NS, "TAI is taken for UTC (37 s)"),
        (37 * SECOND_NS + 300_000, "UTC is taken for TAI (37 s)"),
        (5 * HOUR_NS, "it counts within the hour (+5 h)"),
        (-HOUR_NS - 37 * SECOND_NS, "TAI is taken for UTC (37 s) and it counts within the hour (-1 h)"),
        (SECOND_NS, "+1 s from their claim: whole seconds"),
        (-SECOND_NS + 200_000, "-1 s from their claim"),
        (5_000_000, "+5000.0 us from their claim, beyond the bound"),
        (1_437 * SECOND_NS + 400_000_000, "+1437.400 s from their claim"),
    ],
)
def test_a_false_claim_is_named(apart_ns: int, reason: str) -> None:
    verdict = compare_claim("lidar", DEVICE_NS, model_at(START_NS + apart_ns), model_at(START_NS))
    assert verdict.status is Status.FAILED
    assert reason in verdict.reasons[0]


def test_a_true_claim_stands() -> None:
    verdict = compare_claim("lidar", DEVICE_NS, model_at(START_NS + 800_000), model_at(START_NS))
    assert verdict.status is Status.OK
    assert verdict.reasons == ()


def test_a_free_running_device_is_named_before_it_has_gone_far() -> None:
    verdict = compare_claim("lidar", DEVICE_NS, model_at(START_NS, 23.0), model_at(START_NS))
    assert verdict.status is Status.FAILED
    assert (
        "+23.0 ppm (+- 0.0) off the clock that it claims to follow: it is free-running" in verdict.reasons[0]
    )


def test_the_claim_of_a_lock_maps_ptp_time_to_the_host() -> None:
    tracker, reading = locked()
    local_ns = DEVICE_NS - 160
    model = claimed_model(tracker.status(reading.host_ns), local_ns, reading.host_ns)
    assert model.to_host(np.array([DEVICE_NS], np.int64))[0] == reading.host_ns
    never: PtpStatus = PtpTracker("bench").status(START_NS)
    with pytest.raises(ClockError, match="never locked"):
        claimed_model(never, local_ns, reading.host_ns)
