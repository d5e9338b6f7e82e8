"""Seconds from a PPS, and the system clock held against them."""

import numpy as np
import pytest

from sensorium.drivers.devices.pps import pulse_stream
from sensorium.drivers.frame import Frame, Latency, stamps
from sensorium.sync.clocks.model import Stamped, Uncertainty
from sensorium.sync.clocks.pps import Edge, PpsTracker, PpsWatch
from sensorium.timebase import SECOND_NS
from sensorium.verdict import Status, Verdict

FIRST_S = 1_800_000_000


def _edges(count: int, seed: int = 1, skew_ppm: float = 40.0) -> list[int]:
    rng = np.random.default_rng(seed)
    late = rng.exponential(3000, count)
    return [int(5e9 + i * SECOND_NS * (1 + skew_ppm * 1e-6) + late[i]) for i in range(count)]


def test_a_pps_is_named_by_its_messages_and_followed_to_microseconds() -> None:
    tracker = PpsTracker()
    for second, edge_ns in enumerate(_edges(60)):
        tracker.edge(edge_ns)
        tracker.label(1_800_000_000 + second, edge_ns + 300_000_000)
    state = tracker.state
    assert state is not None
    assert state.utc_s == 1_800_000_059
    true_ns = 5e9 + 59 * SECOND_NS * (1 + 40e-6)
    assert abs(state.edge_ns - true_ns) < 3000
    assert abs((state.ns_per_second / SECOND_NS - 1) * 1e6 - 40) < 1
    half = state.utc_ns(state.edge_ns + SECOND_NS // 2)
    assert abs(half - (1_800_000_059 * SECOND_NS + SECOND_NS / 2)) < 30_000


def test_missed_edges_glitches_and_wrong_names_are_counted() -> None:
    tracker = PpsTracker()
    kinds = []
    for second, edge_ns in enumerate(_edges(40)):
        if second in (10, 11, 25):
            continue
        kinds.append(tracker.edge(edge_ns))
        if second == 20:
            assert tracker.edge(edge_ns + 123_000_000) is Edge.GLITCH
        name = 1_800_000_000 + second + (1 if second == 30 else 0)
        tracker.label(name, edge_ns + 300_000_000)
    assert (tracker.missed, tracker.glitches, tracker.bad_labels) == (3, 1, 1)
    assert kinds.count(Edge.SECOND) == 36
    assert tracker.state is not None
    assert tracker.state.utc_s == 1_800_000_039


def test_a_first_edge_that_was_a_glitch_is_given_up() -> None:
    tracker = PpsTracker()
    tracker.edge(4_300_000_000)
    for second, edge_ns in enumerate(_edges(10)):
        tracker.edge(edge_ns)
        tracker.label(1_800_000_000 + second, edge_ns + 300_000_000)
    assert tracker.state is not None
    assert tracker.state.utc_s == 1_800_000_009


def _watched(
    count: int = 60, *, phase_ns: int = 0, rate_ppm: float = 0.0, stepped_s: tuple[int, int] | None = None
) -> Verdict:
    """Return the verdict on a REALTIME that is ``phase_ns`` and ``rate_ppm`` off.

    Args:
        stepped_s: (number of an edge, seconds): from there on it is so many whole seconds further off.
    """
    watch = PpsWatch(pulse_stream("gnss", 1.0, "local", Latency(), details={}))
    for number, edge_ns in enumerate(_edges(count)):
        off_ns = phase_ns + round(rate_ppm * 1e-6 * number * SECOND_NS)
        if stepped_s is not None and number >= stepped_s[0]:
            off_ns += stepped_s[1] * SECOND_NS
        late_ns = edge_ns - int(5e9 + number * SECOND_NS * (1 + 40e-6))
        realtime_ns = (FIRST_S + number) * SECOND_NS + off_ns + late_ns
        payload = realtime_ns.to_bytes(8, "little", signed=True)
        frame = Frame("gnss", number, 1, stamps(edge_ns), stamps(edge_ns + 5_000_000), payload)
        watch.take(frame, Stamped(stamps(edge_ns), Uncertainty(0.0, 0.0, 50_000.0), 0))
    return watch.verdict()


def test_a_steered_system_clock_keeps_the_seconds_of_the_pps() -> None:
    verdict = _watched(phase_ns=20_000)
    assert verdict.status is Status.OK, verdict
    found = {quantity.name: quantity.value for quantity in verdict.quantities}
    assert found["edges"] == 60
    # The stamps' own lateness, 3 us on the mean, is part of the phase.
    assert found["phase of REALTIME"] == pytest.approx(22, abs=3)
    assert found["rate of the host's raw clock"] == pytest.approx(40, abs=1)


def test_a_system_clock_that_nobody_steers_is_found_by_its_rate() -> None:
    verdict = _watched(phase_ns=100_000, rate_ppm=9.0)
    assert verdict.status is Status.SUSPECT
    assert "nobody steers it" in verdict.reasons[0]
    found = {quantity.name: quantity.value for quantity in verdict.quantities}
    # Two stamps, each late by 3 us on the mean, over a minute.
    assert found["rate of REALTIME"] == pytest.approx(9.0, abs=4 * 3 / 60 * np.sqrt(2))


@pytest.mark.parametrize(("phase_ns", "status"), [(4_000_000, Status.SUSPECT), (-310_000_000, Status.FAILED)])
def test_a_system_clock_that_is_off_is_named_with_its_error(phase_ns: int, status: Status) -> None:
    verdict = _watched(phase_ns=phase_ns)
    assert verdict.status is status
    said_ms = float(verdict.reasons[0].split()[4])
    assert said_ms == pytest.approx(abs(phase_ns) / 1e6, rel=0.03)


@pytest.mark.parametrize("seconds", [1, -37])
def test_a_step_by_whole_seconds_leaves_the_phase_but_not_the_names(seconds: int) -> None:
    verdict = _watched(stepped_s=(30, seconds))
    assert verdict.status is Status.FAILED
    assert "stepped by whole seconds" in verdict.reasons[0]
    found = {quantity.name: quantity.value for quantity in verdict.quantities}
    assert found["phase of REALTIME"] < 10


def test_without_edges_nothing_is_claimed() -> None:
    verdict = _watched(3)
    assert verdict.status is Status.INSUFFICIENT
    assert "3 edges came" in verdict.reasons[0]
