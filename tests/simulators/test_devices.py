"""Every simulated device: declared streams, truth, determinism, faults."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from simulated_rig import START_NS, device, drain, read_for_ever, run, ticks_of

from sensorium.drivers.frame import Frame
from sensorium.errors import ConfigError, DeviceError, EndOfStreamError
from sensorium.simulators.demo_rig import demo_rig, demo_rig_yaml, write_demo_rig
from sensorium.simulators.truth import load_truth
from sensorium.timebase import VirtualClock

NAMES = tuple(demo_rig()["devices"])
SECONDS = {"camera_left": 0.5, "camera_right": 0.5, "lidar": 0.35}


@pytest.mark.parametrize("name", NAMES)
def test_equal_seeds_give_equal_bytes_and_stamps(name: str, tmp_path: Path) -> None:
    runs = [run(name, tmp_path / str(k), seconds=SECONDS.get(name, 2.0))[1] for k in range(2)]
    for stream, frames in runs[0].items():
        assert len(frames) == len(runs[1][stream]) > 0
        for one, other in zip(frames, runs[1][stream], strict=True):
            assert bytes(one.payload) == bytes(other.payload)
            assert one.seq == other.seq
            np.testing.assert_array_equal(one.device_ticks, other.device_ticks)
            np.testing.assert_array_equal(one.arrival_ns, other.arrival_ns)


@pytest.mark.parametrize("name", NAMES)
def test_arrivals_follow_the_truth_by_the_declared_minimum_at_least(name: str, tmp_path: Path) -> None:
    infos, frames = run(name, tmp_path, seconds=SECONDS.get(name, 3.0))
    truth = load_truth(tmp_path)
    assert set(truth) == set(infos)
    for stream, info in infos.items():
        capture_of = dict(truth[stream].tolist())
        assert info.is_synthetic
        assert info.latency.min_ns > 0
        for frame in frames[stream]:
            assert len(frame.payload) <= info.max_payload_bytes
            for k, arrival_ns in enumerate(frame.arrival_ns.tolist()):
                assert arrival_ns - capture_of[frame.seq + k] >= info.latency.min_ns


@pytest.mark.parametrize("name", NAMES)
def test_device_ticks_are_the_truth_seen_by_the_device_clock(name: str, tmp_path: Path) -> None:
    infos, frames = run(name, tmp_path, seconds=SECONDS.get(name, 6.0))
    truth = load_truth(tmp_path)
    for stream, info in infos.items():
        capture_of = dict(truth[stream].tolist())
        ticks, capture_ns = [], []
        for frame in frames[stream]:
            assert frame.device_ticks is not None
            ticks += frame.device_ticks.tolist()
            capture_ns += [capture_of[frame.seq + k] for k in range(len(frame.device_ticks))]
        steps = np.diff(ticks)
        if info.clock.modulus is not None:
            steps = steps % info.clock.modulus
        elapsed = np.diff(capture_ns)
        # Within one tick of rounding at each end, and the skew: 50 ppm + 6 ppm of drift.
        bound_ns = 2 * info.clock.tick_ns + 56e-6 * elapsed + 1
        assert np.all(np.abs(steps * info.clock.tick_ns - elapsed) <= bound_ns)


@pytest.mark.parametrize(
    ("name", "modulus", "options"),
    [("force", 3_600_000_000, {}), ("camera_left", 1 << 32, {"size": [64, 48], "rate_hz": 5.0})],
)
def test_counters_wrap_during_the_demo(
    name: str, modulus: int, options: dict[str, Any], tmp_path: Path
) -> None:
    infos, frames = run(name, tmp_path, seconds=8.0, **options)
    assert infos[name].clock.modulus == modulus
    ticks = ticks_of(frames[name])
    assert np.count_nonzero(np.diff(ticks) < 0) == 1
    assert ticks.max() < modulus


def test_a_planned_drop_is_a_gap_in_the_sequence_and_in_nothing_else(tmp_path: Path) -> None:
    faults = [{"kind": "drop", "at_s": 1.0, "count": 7}]
    _, frames = run("imu", tmp_path, seconds=2.0, faults=faults)
    missing = _missing(frames["imu"])
    truth = load_truth(tmp_path)["imu"]
    assert len(missing) == 7
    lost_ns = truth[np.isin(truth[:, 0], missing), 1]
    assert np.all((lost_ns >= START_NS + 1_000_000_000) & (lost_ns < START_NS + 1_040_000_000))


def test_random_drops_hit_each_sample_with_their_probability(tmp_path: Path) -> None:
    _, frames = run("force", tmp_path, seconds=5.0, drop_probability=0.1)
    produced = frames["force"][-1].next_seq
    assert abs(len(_missing(frames["force"])) - 0.1 * produced) < 4 * np.sqrt(0.09 * produced)


def test_missing_packets_split_a_revolution_into_runs(tmp_path: Path) -> None:
    faults = [{"kind": "drop", "at_s": 0.13, "count": 3}]
    infos, frames = run("lidar", tmp_path, seconds=0.3, faults=faults)
    assert len(_missing(frames["lidar"])) == 3
    assert len(frames["lidar"]) == 4
    packet_bytes = infos["lidar"].max_payload_bytes // 64
    for frame in frames["lidar"]:
        assert len(frame.payload) == frame.count * packet_bytes


def test_a_frozen_camera_repeats_its_bytes_under_new_stamps(tmp_path: Path) -> None:
    faults = [{"kind": "freeze", "at_s": 0.3, "for_s": 0.2}]
    _, frames = run("camera_left", tmp_path, seconds=0.6, faults=faults)
    images = frames["camera_left"]
    payloads = [bytes(frame.payload) for frame in images]
    assert len(set(payloads)) == len(payloads) - 6  # 0.2 s at 30 Hz
    assert len({int(frame.arrival_ns[0]) for frame in images}) == len(images)


def test_a_stall_holds_everything_and_then_bursts(tmp_path: Path) -> None:
    faults = [{"kind": "stall", "at_s": 1.0, "for_s": 0.5}]
    _, frames = run("imu", tmp_path, seconds=2.0, faults=faults)
    arrivals = np.concatenate([frame.arrival_ns for frame in frames["imu"]]) - START_NS
    assert not np.any((arrivals >= 1_000_000_000) & (arrivals < 1_500_000_000))
    assert np.count_nonzero(arrivals == 1_500_000_000) > 90
    assert not _missing(frames["imu"])


def test_a_clock_reset_starts_the_ticks_again_and_loses_no_numbers(tmp_path: Path) -> None:
    faults = [{"kind": "clock_reset", "at_s": 1.0, "for_s": 0.3}]
    for name in ("imu", "microphone"):
        _, frames = run(name, tmp_path, seconds=2.0, faults=faults)
        assert not _missing(frames[name])
        ticks = ticks_of(frames[name])
        (reset,) = np.flatnonzero(np.diff(ticks) < 0)
        # The first tick after the boot: within one sample period (5 ms) or one block (10 ms).
        assert ticks[reset + 1] <= (5_100 if name == "imu" else 481)


def test_a_corrupt_camera_sends_truncated_images(tmp_path: Path) -> None:
    faults = [{"kind": "corrupt", "at_s": 0.2, "for_s": 0.1}]
    _, frames = run("camera_left", tmp_path, seconds=0.4, faults=faults)
    torn = [frame for frame in frames["camera_left"] if bytes(frame.payload[-2:]) != b"\xff\xd9"]
    assert len(torn) == 3


def test_corrupt_packets_keep_their_size(tmp_path: Path) -> None:
    clean = run("lidar", tmp_path / "a", seconds=0.15)[1]["lidar"]
    faults = [{"kind": "corrupt", "at_s": 0.0, "for_s": 1.0}]
    torn = run("lidar", tmp_path / "b", seconds=0.15, faults=faults)[1]["lidar"]
    assert [len(frame.payload) for frame in torn] == [len(frame.payload) for frame in clean]
    assert all(bytes(a.payload) != bytes(b.payload) for a, b in zip(clean, torn, strict=True))


def test_a_disconnected_device_fails_stays_away_and_comes_back_once(tmp_path: Path) -> None:
    faults = [{"kind": "disconnect", "at_s": 1.0, "for_s": 2.0}]
    clock = VirtualClock(START_NS)
    first = device("imu", tmp_path, clock, faults=faults, seconds=5.0)
    first.open()
    with pytest.raises(DeviceError, match="disconnected at 1 s"):
        read_for_ever(first)
    first.close()
    with pytest.raises(DeviceError, match="unplugged"):
        device("imu", tmp_path, clock, faults=faults, seconds=5.0).open()
    clock.sleep_until(START_NS + 3_000_000_000)
    again = device("imu", tmp_path, clock, faults=faults, seconds=5.0)
    infos = again.open()
    frames = drain(again, [info.name for info in infos])["imu"]
    assert frames[0].seq == 0
    # What the device measured while nobody listened is not delivered later.
    assert frames[0].arrival_ns[0] >= START_NS + 3_000_000_000
    assert sum(frame.count for frame in frames) == pytest.approx(2.0 * 200, abs=2)


def test_a_device_that_was_opened_after_the_world_began_skips_nothing_of_it(tmp_path: Path) -> None:
    (tmp_path / "start").mkdir()
    (tmp_path / "start" / "world.ns").write_text(str(START_NS))
    clock = VirtualClock(START_NS + 715_000_000)  # a machine so slow that 143 samples were over by then
    late = device("imu", tmp_path, clock, start_ns=None, starts_with=("imu",), seconds=2.0)
    frames = drain(late, [info.name for info in late.open()])["imu"]
    assert sum(frame.count for frame in frames) == 400
    again = device(
        "imu", tmp_path, VirtualClock(START_NS + 1_000_000_000), start_ns=None, starts_with=("imu",)
    )
    again.open()
    (first, *_) = (each for _ in range(9) for each in again.read(0.5) if isinstance(each, Frame))
    assert first.arrival_ns[0] > START_NS + 1_000_000_000, "it has run before: what it missed nobody measured"
    again.close()


def test_the_end_is_an_end_and_not_a_failure(tmp_path: Path) -> None:
    driver = device("imu", tmp_path, seconds=0.1)
    driver.open()
    with pytest.raises(EndOfStreamError, match=r"ends after 0\.1 s"):
        read_for_ever(driver)
    driver.close()
    driver.close()


def test_read_returns_empty_after_its_timeout(tmp_path: Path) -> None:
    clock = VirtualClock(START_NS)
    driver = device("imu", tmp_path, clock)
    driver.open()
    assert driver.read(0.001) == ()
    assert clock.now_ns() == START_NS + 1_000_000
    driver.close()


def test_accelerated_devices_stamp_simulated_time(tmp_path: Path) -> None:
    clock = VirtualClock(START_NS, utc_minus_host_ns=11)
    driver = device("imu", tmp_path, clock, seconds=6.0, speed=60.0)
    names = [info.name for info in driver.open()]
    assert driver.timeline is not None
    assert driver.timeline.is_virtual
    assert driver.timeline.utc_minus_host_ns == 11
    frames = drain(driver, names)["imu"]
    assert names == ["imu"]
    assert frames[-1].next_seq == pytest.approx(1200, abs=1)
    assert frames[-1].arrival_ns[-1] - START_NS == pytest.approx(6e9, rel=0.01)
    assert clock.now_ns() - START_NS == pytest.approx(0.1e9, rel=0.01)


def test_acceleration_changes_no_byte_and_no_stamp(tmp_path: Path) -> None:
    real = run("force", tmp_path / "a", seconds=2.0)[1]["force"]
    driver = device("force", tmp_path / "b", VirtualClock(START_NS + 700_000_000), seconds=2.0, speed=20.0)
    fast = drain(driver, [info.name for info in driver.open()])["force"]
    assert [bytes(frame.payload) for frame in fast] == [bytes(frame.payload) for frame in real]
    np.testing.assert_array_equal(fast[3].arrival_ns, real[3].arrival_ns)


def test_an_unknown_mount_is_one_clear_line(tmp_path: Path) -> None:
    driver = device("imu", tmp_path, mount="roof")
    with pytest.raises(ConfigError, match="'roof'"):
        type(driver).check(driver.config)


def test_the_demo_rig_is_written_as_a_rig_file_with_its_calibration(tmp_path: Path) -> None:
    path = write_demo_rig(tmp_path, seed=3, seconds=5.0)
    assert path.read_text() == demo_rig_yaml(3, seconds=5.0)
    assert (tmp_path / "calibration.yaml").exists()


def _missing(frames: list[Frame]) -> list[int]:
    present = {seq for frame in frames for seq in range(frame.seq, frame.next_seq)}
    return sorted(set(range(max(present) + 1)) - present)
