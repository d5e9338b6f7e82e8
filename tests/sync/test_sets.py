"""Aligned sets for the checker: the next full row, with the IMU around it, and nothing kept that nobody wants."""

import numpy as np
import pytest

from sensorium.drivers.frame import Column, Encoding, Frame, Modality, StreamInfo, stamps
from sensorium.sync.align import Match, Matched, SyncRow
from sensorium.sync.thinking.set_messages import pack_set, unpack_set
from sensorium.sync.thinking.sets import (
    MARGIN_NS,
    MAX_KEPT_BYTES,
    PATIENCE_NS,
    AlignedSet,
    SetKeeper,
    SetRequest,
)
from sensorium.timebase import SECOND_NS

MS = 1_000_000
CAMERA = StreamInfo("camera", Modality.CAMERA, Encoding.MONO8, 10.0, "camera", shape=(2, 2))
LIDAR = StreamInfo("lidar", Modality.LIDAR, Encoding.POINTS, 10.0, "lidar")
IMU = StreamInfo(
    "imu", Modality.IMU, Encoding.COLUMNS, 100.0, "imu", columns=(Column("gyro_x", "rad/s"),), is_sampled=True
)
REQUEST = SetRequest(("camera", "lidar"), ("imu",))


class Bench:
    """A keeper that hears a camera and a LiDAR at 10 Hz and an IMU in blocks of ten samples at 100 Hz."""

    def __init__(self) -> None:
        self.keeper = SetKeeper()
        self.keeper.begin("episode", 0, "camera")
        self.sent = 0

    def offer(self, info: StreamInfo, seq: int, at_ns: int, payload: bytes = b"1234", count: int = 1) -> None:
        frame = Frame(info.name, seq, count, None, stamps(at_ns), payload)
        if self.keeper.wants(info.name):
            self.keeper.offer(info, frame, stamps(at_ns), at_ns)

    def pair(self, seq: int) -> None:
        at_ns = seq * 100 * MS
        self.offer(CAMERA, seq, at_ns)
        self.offer(LIDAR, seq, at_ns + 7 * MS)

    def block(self, number: int) -> None:
        self.offer(IMU, 10 * number, number * 100 * MS, bytes(40), 10)

    def row(self, seq: int, outcome: Match = Match.MATCHED) -> None:
        match = Matched("lidar", outcome, seq if outcome is Match.MATCHED else None, 7 * MS)
        self.keeper.row(SyncRow(seq, seq * 100 * MS, (match,)), seq * 100 * MS)


def test_a_full_row_is_answered_with_its_frames_and_all_of_the_imu_around_them() -> None:
    bench = Bench()
    bench.keeper.request(REQUEST, 0)
    for number in range(30):
        bench.block(number)
    for seq in range(30):
        bench.pair(seq)
    bench.row(20, Match.SILENT)
    assert bench.keeper.take(0) is None
    bench.row(21)
    found = bench.keeper.take(0)
    assert found is not None
    assert [kept.frame.seq for kept in found.members] == [21, 21]
    times = np.concatenate([kept.first_ns + np.arange(10) * 10 * MS for kept in found.beside])
    assert times.min() <= found.members[0].first_ns - MARGIN_NS
    assert times.max() >= found.members[1].last_ns + MARGIN_NS
    assert len(found.beside) <= 3  # and not all that is kept
    assert bench.keeper.take(0) is None  # one answer to one request


def test_a_camera_that_is_fifteen_seconds_behind_still_finds_its_imu() -> None:
    bench = Bench()
    bench.keeper.request(REQUEST, 0)
    for number in range(150):
        bench.block(number)
    for seq in range(3):
        bench.pair(seq)
    bench.row(1)
    found = bench.keeper.take(0)
    assert found is not None
    assert found.beside[0].first_ns <= found.members[0].first_ns <= found.beside[-1].last_ns


def test_a_set_waits_for_the_imu_of_its_time_but_not_for_ever() -> None:
    bench = Bench()
    bench.keeper.request(REQUEST, 0)
    bench.pair(5)
    bench.block(4)
    bench.row(5)
    assert bench.keeper.take(600 * MS) is None
    bench.block(5)
    found = bench.keeper.take(600 * MS)
    assert found is not None
    assert [kept.frame.seq for kept in found.beside] == [40, 50]
    bench.keeper.request(REQUEST, 0)
    bench.pair(6)
    bench.row(6)
    assert bench.keeper.take(600 * MS + PATIENCE_NS - 1) is None
    late = bench.keeper.take(600 * MS + PATIENCE_NS)  # the IMU has died
    assert late is not None


def test_streams_of_which_nothing_comes_are_named() -> None:
    bench = Bench()
    bench.keeper.request(REQUEST, 0)
    bench.offer(CAMERA, 0, 0)
    assert bench.keeper.missing() == ["lidar"]


def test_nothing_is_kept_of_streams_that_nobody_asked_for_within_a_minute() -> None:
    bench = Bench()
    bench.keeper.request(REQUEST, 0)
    for seq in range(700):
        bench.pair(seq)
    bench.row(699)
    assert bench.keeper.take(700 * 100 * MS) is None
    assert bench.keeper.missing() == ["camera", "lidar"]


def test_a_set_survives_the_way_to_the_checker() -> None:
    bench = Bench()
    bench.keeper.request(REQUEST, 0)
    bench.pair(5)
    bench.block(4)
    bench.block(5)
    bench.row(5)
    sent = bench.keeper.take(0)
    assert sent is not None
    got = unpack_set(pack_set(sent))
    assert isinstance(got, AlignedSet)
    assert (got.episode_id, got.started_ns, got.tick_ns) == ("episode", 0, SECOND_NS // 2)
    for before, after in zip((*sent.members, *sent.beside), (*got.members, *got.beside), strict=True):
        assert after.info == before.info
        assert (after.frame.seq, after.frame.count) == (before.frame.seq, before.frame.count)
        assert bytes(after.frame.payload) == bytes(before.frame.payload)
        assert np.array_equal(after.capture_ns, before.capture_ns)


@pytest.mark.parametrize("count", [1, 10])
def test_the_last_capture_of_a_block_with_one_stamp_follows_from_the_rate(count: int) -> None:
    bench = Bench()
    bench.keeper.request(SetRequest(("imu",)), 0)
    bench.keeper.begin("episode", 0, "imu")
    bench.offer(IMU, 0, 0, bytes(4 * count), count)
    bench.keeper.row(SyncRow(0, 0, ()), 0)
    found = bench.keeper.take(0)
    assert found is not None
    assert found.members[0].last_ns == (count - 1) * 10 * MS


def test_large_frames_are_kept_for_less_time_rather_than_without_bound() -> None:
    bench = Bench()
    bench.keeper.request(SetRequest(("camera",)), 0)
    large = bytes(MAX_KEPT_BYTES // 4)
    for seq in range(12):
        bench.offer(CAMERA, seq, seq * 100 * MS, large)
    bench.keeper.row(SyncRow(7, 700 * MS, ()), 0)
    assert bench.keeper.take(0) is None  # it was let go
    bench.keeper.row(SyncRow(8, 800 * MS, ()), 0)
    found = bench.keeper.take(0)
    assert found is not None
    assert found.members[0].frame.seq == 8
