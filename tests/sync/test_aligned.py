"""Aligned rows: right values, honest bounds, and an account of every stream in every row."""

from pathlib import Path

import numpy as np
import pytest
from episode_samples import STREAMS, TIMELINE
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_rig import START_NS, run, world_seconds

from sensorium.drivers.frame import Column, Frame, Modality, StreamInfo, stamps
from sensorium.errors import EpisodeError
from sensorium.simulators.imu import inertial_truth
from sensorium.simulators.rig import MOUNTS
from sensorium.simulators.world import World
from sensorium.sync.align import Match
from sensorium.sync.clocks.model import Stamped, Uncertainty
from sensorium.sync.clocks.tracker import StreamTracker
from sensorium.sync.episode.aligned import quaternion_columns, slerp
from sensorium.sync.episode.reader import Episode
from sensorium.sync.episode.spool import Spool
from sensorium.sync.episode.ulid import new_ulid
from sensorium.sync.episode.writer import EpisodeWriter
from sensorium.timebase import SECOND_NS

EXACT = Uncertainty(0.0, 0.0, 0.0)
CAMERA = STREAMS[0]
SPIN = StreamInfo(
    "spin",
    Modality.IMU,
    "columns",
    100.0,
    "imu",
    columns=tuple(Column(name, "", "<f8") for name in ("qw", "qx", "qy", "qz", "line")),
    is_sampled=True,
)
MIC = StreamInfo("mic", Modality.AUDIO, "pcm_s16le", 8000.0, "mic", shape=(1,), frame_rate_hz=100.0)
NO_NOISE = {
    "acc_noise_m_s2": 0.0,
    "gyro_noise_rad_s": 0.0,
    "acc_bias_m_s2": 0.0,
    "gyro_bias_rad_s": 0.0,
    "acc_walk_m_s3": 0.0,
    "gyro_walk_rad_s2": 0.0,
}


def write(folder: Path, infos: list[StreamInfo], frames: list[tuple[Frame, Stamped]]) -> Path:
    """Write frames in order of arrival and return the closed episode's folder."""
    spool = Spool(folder / "spool")
    spool.create()
    episode_id = new_ulid(TIMELINE.utc_minus_host_ns)
    writer = EpisodeWriter(spool.open_folder(episode_id), episode_id, TIMELINE, None)
    for info in infos:
        writer.declare(info)
    for frame, stamped in sorted(frames, key=lambda each: int(each[0].arrival_ns[-1])):
        writer.write(frame, stamped, 0)
        writer.step(int(frame.arrival_ns[-1]))
    writer.close()
    return writer.folder


def picture(seq: int, capture_ns: int) -> tuple[Frame, Stamped]:
    frame = Frame("cam", seq, 1, None, stamps(capture_ns + 5_000_000), b"image %d" % seq, (0.0, 0.0))
    return frame, Stamped(stamps(capture_ns), EXACT, 0)


def spin(seq: int, times_ns: list[int]) -> tuple[Frame, Stamped]:
    """Return samples of a body that turns about z at 2 rad/s, and a line that rises by 1 a second."""
    times = np.array(times_ns, np.int64)
    angle = 2 * times * 1e-9
    zero = np.zeros(len(times))
    # The sign of a quaternion means nothing; alternate it.
    sign = np.where((seq + np.arange(len(times))) % 2, -1.0, 1.0)
    columns = [sign * np.cos(angle / 2), zero, zero, sign * np.sin(angle / 2), times * 1e-9]
    frame = Frame("spin", seq, len(times), None, times + 1_000_000, np.concatenate(columns).tobytes())
    return frame, Stamped(times, EXACT, 0)


def test_interpolated_values_of_a_simulated_imu_lie_within_the_stated_bounds(tmp_path: Path) -> None:
    infos, frames = run("imu", tmp_path, seconds=8.0, **NO_NOISE)
    tracker = StreamTracker(infos["imu"])
    stamped = [(frame, tracker.update(frame)) for frame in frames["imu"]]
    quantum = np.array([column.scale for column in infos["imu"].columns])
    with Episode(write(tmp_path, list(infos.values()), stamped)) as episode:
        rows = list(episode.aligned(rate_hz=73.0, start_ns=START_NS + 3 * SECOND_NS))
    assert len(rows) > 300
    world = World(1)
    times_s = world_seconds(np.array([row.tick_ns for row in rows]))
    truth = inertial_truth(world.motion(times_s).carried_to(MOUNTS["imu"]))
    inside = []
    for row, true in zip(rows, truth, strict=True):
        found = row["imu"]
        if not found.is_present:
            assert row is rows[-1]
            continue
        assert found.values is not None
        assert found.value_bound is not None
        # Differences of rounded counts also count as curvature, so one quantum is the least bound.
        inside.append(np.abs(found.values - true) <= found.value_bound + quantum)
        assert 4_900_000 < found.gap_ns < 5_100_000
    assert np.mean(inside) > 0.95


def test_orientation_is_interpolated_on_the_sphere_and_the_rest_on_a_line(tmp_path: Path) -> None:
    frames = [
        spin(10 * block, [SECOND_NS + (10 * block + i) * 10_000_000 for i in range(10)])
        for block in range(10)
    ]
    with Episode(write(tmp_path, [SPIN], frames)) as episode:
        rows = list(episode.aligned(rate_hz=37.0))
    assert all(row["spin"].is_present for row in rows)
    for row in rows:
        values = row["spin"].values
        assert values is not None
        angle = 2 * row.tick_ns * 1e-9
        expected = np.array([np.cos(angle / 2), 0, 0, np.sin(angle / 2)])
        assert abs(abs(values[:4] @ expected) - 1) < 1e-12
        assert values[4] == pytest.approx(row.tick_ns * 1e-9, abs=1e-9)
        assert row.utc_ns == row.tick_ns + TIMELINE.utc_minus_host_ns


def test_a_gap_is_reported_and_never_bridged(tmp_path: Path) -> None:
    early = spin(0, [SECOND_NS + i * 10_000_000 for i in range(10)])
    late = spin(30, [SECOND_NS + (30 + i) * 10_000_000 for i in range(10)])
    with Episode(write(tmp_path, [SPIN], [early, late])) as episode:
        rows = list(episode.aligned(rate_hz=100.0, start_ns=SECOND_NS + 5_000_000))
        wide = list(episode.aligned(rate_hz=100.0, start_ns=SECOND_NS + 5_000_000, max_gap_ns=300_000_000))
    inside = [row["spin"] for row in rows if SECOND_NS + 90_000_000 < row.tick_ns < SECOND_NS + 300_000_000]
    assert len(inside) == 21
    assert {value.outcome for value in inside} == {Match.GAP}
    assert {value.gap_ns for value in inside} == {210_000_000}
    assert all(value.values is None for value in inside)
    assert all(row["spin"].is_present for row in wide if row.tick_ns < SECOND_NS + 390_000_000)


def test_images_match_within_tolerance_and_say_when_they_repeat(tmp_path: Path) -> None:
    frames = [picture(i, SECOND_NS + i * 33_333_334) for i in range(30) if i not in (10, 11)]
    with Episode(write(tmp_path, [CAMERA], frames)) as episode:
        rows = list(episode.aligned(rate_hz=60.0))
        strict = list(episode.aligned(rate_hz=60.0, tolerance_ns=1_000_000))
    found = [row["cam"] for row in rows]
    for row, value in zip(rows, found, strict=True):
        if value.is_present:
            assert value.frame is not None
            assert abs(value.residual_ns) <= 16_666_667
            assert row.tick_ns + value.residual_ns == int(value.frame.stamped.capture_ns[0])
    assert sum(value.outcome is Match.OUT_OF_TOLERANCE for value in found) in (3, 4)
    assert sum(value.is_repeat for value in found) == pytest.approx(28, abs=2)
    assert sum(row["cam"].is_present for row in strict) == 28


def test_the_frames_of_a_reference_can_be_the_rows(tmp_path: Path) -> None:
    pictures = [picture(i, SECOND_NS + i * 33_000_000) for i in range(20)]
    samples = [spin(10 * b, [SECOND_NS + (10 * b + i) * 10_000_000 for i in range(10)]) for b in range(7)]
    with Episode(write(tmp_path, [CAMERA, SPIN], pictures + samples)) as episode:
        rows = list(episode.aligned(reference="cam", streams=["spin"]))
    assert [row.tick_ns for row in rows] == [SECOND_NS + i * 33_000_000 for i in range(20)]
    assert [row.index for row in rows] == list(range(20))
    assert all(set(row.values) == {"spin"} and row["spin"].is_present for row in rows)


def test_every_sound_lies_in_exactly_one_row(tmp_path: Path) -> None:
    wave = np.arange(80 * 100, dtype="<i2")
    frames = []
    for block in range(100):
        capture_ns = SECOND_NS + block * 10_000_000
        frame = Frame(
            "mic", 80 * block, 80, None, stamps(capture_ns + 12_000_000), wave[80 * block :][:80].tobytes()
        )
        frames.append((frame, Stamped(stamps(capture_ns), EXACT, 0)))
    with Episode(write(tmp_path, [MIC], frames)) as episode:
        rows = list(episode.aligned(rate_hz=50.0, start_ns=SECOND_NS + 10_000_000))
    heard = np.concatenate([row["mic"].values[:, 0] for row in rows if row["mic"].values is not None])
    assert np.array_equal(np.rint(heard * 32768).astype("<i2"), wave[: len(heard)])
    assert len(heard) >= 80 * 96
    assert all(row["mic"].is_present for row in rows[:-1])


def test_a_better_map_moves_the_rows(tmp_path: Path) -> None:
    frames = [picture(i, SECOND_NS + i * 33_000_000) for i in range(10)]
    better = {
        ("cam", 0, frame.seq): Stamped(stamped.capture_ns - 1_000_000, EXACT, 0) for frame, stamped in frames
    }
    with Episode(write(tmp_path, [CAMERA], frames)) as episode:
        plain = [row.tick_ns for row in episode.aligned(reference="cam")]
        moved = [row.tick_ns for row in episode.aligned(reference="cam", stamps=better)]
    assert moved == [tick_ns - 1_000_000 for tick_ns in plain]


def test_rows_come_while_the_episode_is_still_being_read(tmp_path: Path) -> None:
    frames = [picture(i, SECOND_NS + i * 33_000_000) for i in range(300)]
    with Episode(write(tmp_path, [CAMERA], frames)) as episode:
        rows = iter(episode.aligned(rate_hz=30.0))
        first = next(rows)
        track = rows.gi_frame.f_locals["self"]._tracks["cam"]  # type: ignore[attr-defined]
        held = []
        for _ in range(200):
            next(rows)
            held.append(len(track.blocks))
    assert first["cam"].is_present
    assert max(held) <= 8  # half a frame's tolerance and a period of reach on both sides


@settings(max_examples=25, deadline=None)
@given(
    kept=st.sets(st.integers(0, 40), min_size=1),
    blocks=st.sets(st.integers(0, 13), min_size=1),
    rate_hz=st.sampled_from([7.0, 30.0, 29.97, 250.0]),
)
def test_every_row_accounts_for_every_stream(
    tmp_path_factory: pytest.TempPathFactory, kept: set[int], blocks: set[int], rate_hz: float
) -> None:
    pictures = [picture(i, SECOND_NS + i * 33_333_333) for i in sorted(kept)]
    samples = [
        spin(10 * b, [SECOND_NS + (10 * b + i) * 10_000_000 for i in range(10)]) for b in sorted(blocks)
    ]
    folder = write(tmp_path_factory.mktemp("rows"), [CAMERA, SPIN, MIC], pictures + samples)
    known_ns = {10 * b + i: SECOND_NS + (10 * b + i) * 10_000_000 for b in blocks for i in range(10)}
    times_ns = np.array(sorted(known_ns.values()))
    with Episode(folder) as episode:
        rows = list(episode.aligned(rate_hz=rate_hz))
    assert [row.index for row in rows] == list(range(len(rows)))
    for row in rows:
        assert set(row.values) == {"cam", "spin", "mic"}
        assert row["mic"].outcome is Match.NOT_STARTED
        for value in row.values.values():
            has_value = value.values is not None or value.frame is not None
            assert has_value == (value.outcome is Match.MATCHED)
        near_ns = min(abs(SECOND_NS + i * 33_333_333 - row.tick_ns) for i in kept)
        assert row["cam"].is_present == (near_ns <= 16_666_666)
        after = int(np.searchsorted(times_ns, row.tick_ns))
        is_between = 0 < after < len(times_ns) and times_ns[after] - times_ns[after - 1] <= 30_000_000
        is_on = after < len(times_ns) and times_ns[after] == row.tick_ns
        assert row["spin"].is_present == (is_between or is_on)


def test_wrong_calls_are_refused(tmp_path: Path) -> None:
    with Episode(write(tmp_path, [CAMERA], [picture(0, SECOND_NS)])) as episode:
        with pytest.raises(EpisodeError, match="either rate_hz or a reference"):
            episode.aligned()
        with pytest.raises(EpisodeError, match="has no stream nose"):
            episode.aligned(rate_hz=30, streams=["nose"])
        with pytest.raises(EpisodeError, match="not possible"):
            episode.aligned(rate_hz=0)


def test_quaternions_are_known_by_their_names() -> None:
    names = ("t", "orientation_x", "orientation_y", "orientation_z", "orientation_w", "qw", "ax")
    info = StreamInfo(
        "s", Modality.IMU, "columns", 1.0, "s", columns=tuple(Column(name, "") for name in names)
    )
    assert quaternion_columns(info) == [(4, 1, 2, 3)]


def test_slerp_goes_the_short_way_at_constant_speed() -> None:
    one, other = np.array([1.0, 0, 0, 0]), np.array([-np.cos(0.5), -np.sin(0.5), 0, 0])
    quarter = slerp(one, other, 0.25)
    assert abs(quarter @ [np.cos(0.125), np.sin(0.125), 0, 0]) == pytest.approx(1.0, abs=1e-12)
