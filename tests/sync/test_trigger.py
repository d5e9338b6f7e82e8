"""Frames and their trigger pulses in a finished recording: what was lost where, told apart."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sensorium.errors import ClockError
from sensorium.sync.clocks.trigger import (
    Pulse,
    Shutter,
    TriggerMatch,
    match_trigger,
    unwrap_counter,
)
from sensorium.verdict import Status

PERIOD_NS = 33_333_333
GLOBAL = Shutter(delay_ns=20_000)


class Rig:
    """``count`` pulses, a camera that answers them, and what got lost on the way."""

    def __init__(
        self,
        count: int = 200,
        *,
        ignored: frozenset[int] = frozenset(),
        lost: frozenset[int] = frozenset(),
        unrecorded: frozenset[int] = frozenset(),
        seed: int = 1,
        frame_modulus: int | None = None,
        pulse_modulus: int | None = None,
    ) -> None:
        rng = np.random.default_rng(seed)
        self.edges_ns = 10**12 + np.arange(count) * PERIOD_NS + rng.integers(-2000, 2000, count)
        self.exposed = np.array([i for i in range(count) if i not in ignored])
        counter = np.arange(len(self.exposed)) + 65_500
        came = np.array([i not in lost for i in self.exposed])
        self.pulse_of_frame = self.exposed[came]
        self.frame_count = counter[came] if frame_modulus is None else counter[came] % frame_modulus
        recorded = np.array([i for i in range(count) if i not in unrecorded])
        self.pulse_count = recorded + 250 if pulse_modulus is None else (recorded + 250) % pulse_modulus
        self.pulse_ns = self.edges_ns[recorded]
        self.exposure_ns = np.full(len(self.frame_count), 4e6)
        self.true_ns = self.edges_ns[self.pulse_of_frame] + 20_000 + 2_000_000
        # One-way estimates: late by some 100 us, and a constant latency error of 3 ms.
        self.approximate_ns = (
            self.true_ns + 3_000_000 + rng.exponential(1e5, len(self.true_ns)).astype(np.int64)
        )
        self.frame_modulus, self.pulse_modulus = frame_modulus, pulse_modulus

    def match(self) -> TriggerMatch:
        return match_trigger(
            self.pulse_count,
            self.pulse_ns,
            self.frame_count,
            self.approximate_ns,
            self.exposure_ns,
            GLOBAL,
            latency_bound_ns=5e6,
            pulse_modulus=self.pulse_modulus,
            frame_modulus=self.frame_modulus,
        )


def test_frames_get_the_time_of_their_own_pulse_and_half_the_exposure() -> None:
    rig = Rig()
    found = rig.match()
    assert np.array_equal(found.capture_ns, rig.true_ns)
    assert set(found.outcome) == {Pulse.MATCHED}
    verdict = found.verdict("cam")
    assert verdict.status is Status.OK
    assert not verdict.reasons


def test_lost_frames_ignored_pulses_and_unrecorded_pulses_are_told_apart() -> None:
    rig = Rig(ignored=frozenset({50, 51, 120}), lost=frozenset({30, 31, 90}), unrecorded=frozenset({10, 150}))
    found = rig.match()
    assert (found.lost_frames, found.ignored_pulses, found.unrecorded_pulses) == (3, 3, 2)
    assert np.array_equal(found.pulse, rig.pulse_of_frame + 250)
    assert found.outcome.count(Pulse.BRIDGED) == 2
    # A bridged time is off by the jitter of the pulses, not by that of arrivals.
    assert np.abs(found.capture_ns - rig.true_ns).max() <= 4000
    verdict = found.verdict("cam")
    assert verdict.status is Status.SUSPECT
    assert "pulses ignored by the camera: 3" in " ".join(verdict.reasons)


def test_counters_that_wrap_lose_nothing() -> None:
    rig = Rig(lost=frozenset(range(60, 75)), frame_modulus=1 << 16, pulse_modulus=256)
    found = rig.match()
    assert np.array_equal(found.capture_ns, rig.true_ns)
    assert found.lost_frames == 15


def test_whole_turns_of_a_counter_in_a_long_gap_come_from_the_time() -> None:
    counts = np.array([250, 251, 5, 6])
    times_ns = np.array([0, 1, 1 + 522, 1 + 523]) * PERIOD_NS
    unwrapped = unwrap_counter(counts, 256, times_ns, PERIOD_NS)
    assert unwrapped.tolist() == [250, 251, 773, 774]


@pytest.mark.parametrize("share", [0.1, 1 / 3, 0.45, 0.55, 0.8])
def test_a_frame_without_a_pulse_is_found(share: float) -> None:
    rig = Rig()
    # The camera exposes once on its own, between pulses 99 and 100. Estimates are 3 ms late.
    extra_ns = int(rig.true_ns[99]) + 3_000_000 + round(share * PERIOD_NS)
    rig.frame_count = np.concatenate([rig.frame_count, [rig.frame_count[-1] + 1]])
    rig.approximate_ns = np.sort(np.concatenate([rig.approximate_ns, [extra_ns]]))
    rig.exposure_ns = np.full(len(rig.frame_count), 4e6)
    found = rig.match()
    assert found.outcome.count(Pulse.NO_PULSE) == 1
    assert found.outcome.index(Pulse.NO_PULSE) == 100
    assert np.array_equal(np.delete(found.capture_ns, 100), rig.true_ns)
    assert found.verdict("cam").status is Status.SUSPECT


def test_a_free_running_camera_is_not_taken_for_a_triggered_one() -> None:
    rig = Rig(600)
    # 2 % faster than the trigger: every 50th frame has no pulse of its own.
    count = len(rig.frame_count)
    rig.approximate_ns = 10**12 + (np.arange(count) * PERIOD_NS * 0.98).astype(np.int64)
    found = rig.match()
    assert found.outcome.count(Pulse.NO_PULSE) == pytest.approx(12, abs=1)
    assert found.verdict("cam").status is not Status.OK


def test_a_latency_known_worse_than_half_a_period_is_refused() -> None:
    rig = Rig()
    with pytest.raises(ClockError, match="cannot be told"):
        match_trigger(
            rig.pulse_count,
            rig.pulse_ns,
            rig.frame_count,
            rig.approximate_ns,
            rig.exposure_ns,
            GLOBAL,
            latency_bound_ns=20e6,
        )


def test_rows_of_a_rolling_shutter_are_timed_one_by_one() -> None:
    shutter = Shutter(delay_ns=1000, row_ns=30_000.0, rows=481)
    edge, exposure = np.array([10**12]), np.array([2e6])
    assert shutter.row_middle_ns(edge, exposure, 0)[0] == 10**12 + 1000 + 1_000_000
    assert shutter.middle_ns(edge, exposure)[0] == 10**12 + 1000 + 1_000_000 + 240 * 30_000


@settings(max_examples=60, deadline=None)
@given(
    ignored=st.sets(st.integers(20, 180), max_size=4),
    lost=st.sets(st.integers(20, 180), max_size=10),
    unrecorded=st.sets(st.integers(20, 180), max_size=6),
    seed=st.integers(0, 1000),
)
def test_every_pulse_and_every_frame_is_accounted_for(
    ignored: set[int], lost: set[int], unrecorded: set[int], seed: int
) -> None:
    # Changes closer than three frames cannot be told from one late frame; keep the ignored ones apart.
    ignored = {i for i in ignored if not any(0 < abs(i - j) < 20 for j in ignored | lost)}
    rig = Rig(ignored=frozenset(ignored), lost=frozenset(lost), unrecorded=frozenset(unrecorded), seed=seed)
    found = rig.match()
    assert len(found.outcome) == len(rig.frame_count)
    assert found.ignored_pulses == len(ignored)
    assert found.lost_frames == len(lost - ignored)
    assert found.unrecorded_pulses == len(unrecorded)
    assert len(rig.frame_count) + found.lost_frames + found.ignored_pulses + found.outside_pulses == 200
    assert np.array_equal(found.pulse, rig.pulse_of_frame + 250)
