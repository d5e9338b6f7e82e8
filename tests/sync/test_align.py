"""Alignment: nearest and interpolated matches, a reason for everything else, nobody waits for the dead."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sensorium.drivers.frame import Column, DeviceClock, Encoding, Latency, Modality, StreamInfo, stamps
from sensorium.sync.align import Aligner, Match

MS = 1_000_000
S = 1000 * MS
LATENCY = Latency(max_ns=500 * MS)


def camera(name: str, rate_hz: float = 30.0) -> StreamInfo:
    return StreamInfo(name, Modality.CAMERA, Encoding.JPEG, rate_hz, name, DeviceClock(), LATENCY)


def imu(name: str = "imu", rate_hz: float = 200.0) -> StreamInfo:
    return StreamInfo(
        name,
        Modality.IMU,
        Encoding.COLUMNS,
        rate_hz,
        name,
        latency=LATENCY,
        columns=(Column("x", "m/s^2"),),
        is_sampled=True,
    )


def microphone() -> StreamInfo:
    return StreamInfo("mic", Modality.AUDIO, Encoding.PCM_S16LE, 48000.0, "mic", latency=LATENCY, shape=(1,))


def aligner(*infos: StreamInfo, tolerance_ns: int = 10 * MS) -> Aligner:
    made = Aligner(infos[0].name, tolerance_ns)
    for info in infos:
        made.declare(info)
    return made


def test_the_nearest_frame_within_tolerance_matches_with_its_residual() -> None:
    both = aligner(camera("ref"), camera("other"))
    both.add("ref", 0, 1, stamps(100 * MS), 0)
    both.add("other", 7, 1, stamps(96 * MS), 5000)
    both.add("other", 8, 1, stamps(130 * MS), 5000)
    both.add("ref", 1, 1, stamps(133 * MS), 0)
    (row,) = both.advance(now_ns=140 * MS)
    assert row.tick_ns == 100 * MS
    assert (row.matches[0].seq, row.matches[0].residual_ns) == (7, -4 * MS)
    (row,) = both.finish()
    assert (row.matches[0].seq, row.matches[0].residual_ns) == (8, -3 * MS)


def test_a_frame_serves_only_the_tick_that_it_is_nearest_to() -> None:
    both = aligner(camera("ref"), camera("slow"), tolerance_ns=40 * MS)
    for seq, time_ms in enumerate((0, 33, 66)):
        both.add("ref", seq, 1, stamps(time_ms * MS), 0)
    both.add("slow", 0, 1, stamps(30 * MS), 0)
    outcomes = [row.matches[0].outcome for row in both.finish()]
    assert outcomes == [Match.NEARER_TO_ANOTHER, Match.MATCHED, Match.NEARER_TO_ANOTHER]


def test_a_dead_stream_holds_a_tick_back_for_its_largest_latency_and_no_longer() -> None:
    both = aligner(camera("ref"), camera("dead"))
    both.add("dead", 0, 1, stamps(0), 0)
    both.add("ref", 0, 1, stamps(100 * MS), 0)
    both.add("ref", 1, 1, stamps(133 * MS), 0)
    assert both.advance(now_ns=100 * MS + LATENCY.max_ns) == []
    (row,) = both.advance(now_ns=101 * MS + LATENCY.max_ns)
    assert row.matches[0].outcome is Match.SILENT


def test_nobody_waits_for_a_stream_that_is_not_recorded() -> None:
    both = aligner(camera("ref"), camera("private"))
    both.withhold("private")
    both.add("ref", 0, 1, stamps(100 * MS), 0)
    both.add("ref", 1, 1, stamps(133 * MS), 0)
    (row,) = both.advance(now_ns=134 * MS)
    assert row.matches[0].outcome is Match.NOT_RECORDED


def test_a_sampled_stream_brackets_the_tick_and_reports_the_gap() -> None:
    both = aligner(camera("ref"), imu())
    for block in range(10):
        times = np.arange(10, dtype=np.int64) * 5 * MS + block * 50 * MS
        both.add("imu", block * 10, 10, times, 1000)
    both.add("ref", 0, 1, stamps(102 * MS), 0)
    (row,) = both.advance(now_ns=700 * MS)
    assert (row.matches[0].seq, row.matches[0].gap_ns) == (20, 5 * MS)
    between_blocks = 147 * MS
    both.add("ref", 1, 1, stamps(between_blocks), 0)
    (row,) = both.advance(now_ns=700 * MS)
    assert (row.matches[0].seq, row.matches[0].gap_ns) == (29, 5 * MS)


def test_a_hole_in_a_sampled_stream_is_called_a_gap() -> None:
    both = aligner(camera("ref"), imu())
    both.add("imu", 0, 2, stamps(0, 5 * MS), 0)
    both.add("imu", 50, 2, stamps(250 * MS, 255 * MS), 0)
    both.add("ref", 0, 1, stamps(100 * MS), 0)
    (row,) = both.advance(now_ns=700 * MS)
    assert row.matches[0].outcome is Match.GAP
    assert row.matches[0].gap_ns == 245 * MS


def test_audio_blocks_are_indexed_to_the_sample() -> None:
    both = aligner(camera("ref"), microphone())
    for block in range(20):
        both.add("mic", block * 480, 480, stamps(block * 10 * MS), 0)
    both.add("ref", 0, 1, stamps(55 * MS), 0)
    (row,) = both.advance(now_ns=700 * MS)
    seq = row.matches[0].seq
    assert seq is not None
    assert abs(seq - 0.055 * 48000) <= 1


@settings(max_examples=60, deadline=None)
@given(
    ref_hz=st.integers(5, 60),
    other_hz=st.integers(5, 60),
    offset_ms=st.integers(0, 100),
    keep=st.lists(st.booleans(), min_size=20, max_size=80),
    tolerance_ms=st.integers(1, 60),
)
def test_every_frame_is_matched_once_or_has_a_reason(
    ref_hz: int, other_hz: int, offset_ms: int, keep: list[bool], tolerance_ms: int
) -> None:
    both = aligner(camera("ref", ref_hz), camera("other", other_hz), imu(), tolerance_ns=tolerance_ms * MS)
    events = [("ref", i, i * S // ref_hz) for i in range(2 * ref_hz)]
    events += [("other", i, offset_ms * MS + i * S // other_hz) for i, kept in enumerate(keep) if kept]
    events += [("imu", i * 10, i * 50 * MS) for i in range(40)]
    rows = []
    for stream, seq, time_ns in sorted(events, key=lambda event: event[2]):
        count = 10 if stream == "imu" else 1
        both.add(stream, seq, count, time_ns + np.arange(count, dtype=np.int64) * 5 * MS, 0)
        rows += both.advance(time_ns)
    rows += both.finish()
    assert [row.tick_seq for row in rows] == list(range(2 * ref_hz))
    results = both.results()
    used = [row.matches[0].seq for row in rows if row.matches[0].outcome is Match.MATCHED]
    assert len(used) == len(set(used)) == results["other"].matched
    assert results["other"].matched + results["other"].unmatched.total() == sum(keep)
    assert results["imu"].matched + results["imu"].unmatched.total() == 400
    for row in rows:
        other = row.matches[0]
        assert other.outcome is not Match.MATCHED or abs(other.residual_ns) <= tolerance_ms * MS


def test_residuals_are_summed_up_in_microseconds() -> None:
    both = aligner(camera("ref"), camera("other"))
    for seq in range(100):
        both.add("ref", seq, 1, stamps(seq * 33 * MS), 0)
        both.add("other", seq, 1, stamps(seq * 33 * MS + 2 * MS), 0)
    both.finish()
    assert both.results()["other"].residual_us() == pytest.approx((2000, 2000, 2000))
