"""Replay as a device: pace, order, loops, choice of streams, and a capture through real sockets."""

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from episode_samples import STREAMS, TIMELINE, sealed_episode
from foreign_cases import generate
from mcap.writer import Writer as McapWriter
from pydantic import ValidationError

from sensorium.drivers.driver import DriverContext
from sensorium.drivers.frame import Frame, Loss, Modality, StreamInfo
from sensorium.drivers.registry import load_driver
from sensorium.errors import ConfigError, DeviceError, EndOfStreamError
from sensorium.simulators.player import ReplayConfig, ReplayDriver
from sensorium.sync.clocks.tracker import StreamTracker
from sensorium.sync.episode.reader import Episode
from sensorium.sync.episode.ulid import new_ulid
from sensorium.sync.episode.writer import EpisodeWriter
from sensorium.sync.sources import open_source
from sensorium.timebase import SECOND_NS, Clock, HostClock, VirtualClock

OS0 = "OS-0-128-U1_v2.3.0_1024x10"
NOW_NS = 1_000 * SECOND_NS


def _driver(source: Path, run_dir: Path, clock: Clock, **options: Any) -> ReplayDriver:
    return ReplayDriver(
        ReplayConfig(source=source, **options), DriverContext("replay", "bench", clock, run_dir)
    )


def _play(driver: ReplayDriver) -> tuple[list[StreamInfo], list[Frame | Loss]]:
    items: list[Frame | Loss] = []
    try:
        infos = list(driver.open())
        while True:
            items += driver.read(0.02)
    except EndOfStreamError:
        return infos, items
    finally:
        driver.close()


def _record(folder: Path, driver: ReplayDriver) -> Path:
    """Record a replay as the synchronizer does: capture times from the tracker, frames into an episode."""
    infos = driver.open()
    assert driver.timeline is not None
    writer = EpisodeWriter(folder, new_ulid(SECOND_NS), driver.timeline)
    trackers = {info.name: StreamTracker(info) for info in infos}
    for info in infos:
        writer.declare(info)
    try:
        while True:
            for item in driver.read(0.02):
                if isinstance(item, Frame):
                    writer.write(item, trackers[item.stream].update(item), instance=0)
    except EndOfStreamError:
        writer.close()
    finally:
        driver.close()
    return folder


def _contents(folder: Path) -> dict[str, list[tuple[Any, ...]]]:
    found: dict[str, list[tuple[Any, ...]]] = {}
    with Episode(folder) as episode:
        for recorded in episode.frames():
            frame = recorded.frame
            ticks = None if frame.device_ticks is None else tuple(frame.device_ticks.tolist())
            row = (
                frame.seq,
                frame.count,
                ticks,
                tuple(frame.arrival_ns.tolist()),
                tuple(recorded.stamped.capture_ns.tolist()),
                frame.meta,
                bytes(frame.payload),
            )
            found.setdefault(frame.stream, []).append(row)
    return found


def test_the_registry_knows_it() -> None:
    assert load_driver("replay") is ReplayDriver
    assert ReplayDriver.blocks


def test_frames_are_published_when_they_are_due(shared_data: Path, tmp_path: Path) -> None:
    """At rate 4 a frame that arrived s seconds into the recording is published s / 4 after the first one."""
    clock = VirtualClock(NOW_NS)
    driver = _driver(shared_data / "rosbag1" / "example.bag", tmp_path, clock, rate=4.0)
    driver.open()
    first_ns = None
    seen = 0
    try:
        while True:
            for item in driver.read(0.02):
                assert isinstance(item, Frame)
                first_ns = int(item.arrival_ns[0]) if first_ns is None else first_ns
                due_ns = NOW_NS + (int(item.arrival_ns[0]) - first_ns) / 4
                assert -0.5 <= clock.now_ns() - due_ns <= 0.02 * SECOND_NS + 1
                seen += 1
    except EndOfStreamError:
        driver.close()
    assert seen == 8647
    assert clock.now_ns() - NOW_NS == pytest.approx(21.7 / 4 * SECOND_NS, rel=0.01)


def test_a_read_returns_within_its_timeout_when_nothing_is_due(shared_data: Path, tmp_path: Path) -> None:
    clock = VirtualClock(NOW_NS)
    driver = _driver(shared_data / "euroc_micro", tmp_path, clock, rate=0.001)
    driver.open()
    assert driver.read(0.02) != []
    started_ns = clock.now_ns()
    assert driver.read(0.02) == []
    assert clock.now_ns() - started_ns == 0.02 * SECOND_NS
    driver.close()


def test_a_silence_of_years_is_jumped_over(tmp_path: Path) -> None:
    right = generate("mcap_first_at_zero", tmp_path)
    clock = VirtualClock(NOW_NS)
    _, items = _play(_driver(tmp_path / "drive.mcap", tmp_path, clock))
    assert len(items) == right["frames"]
    elapsed_ns = clock.now_ns() - NOW_NS
    assert 39 * SECOND_NS // 20 <= elapsed_ns <= right["replay_at_rate_1_ends_within_s"] * SECOND_NS


def test_a_loop_that_would_leave_the_calendar_is_refused(tmp_path: Path) -> None:
    generate("mcap_first_at_zero", tmp_path)
    driver = _driver(tmp_path / "drive.mcap", tmp_path, VirtualClock(NOW_NS), rate="max", loop=True)
    with pytest.raises(DeviceError, match=r"beyond the year 2262, play it without 'loop'"):
        _play(driver)


def test_at_max_nothing_waits(shared_data: Path, tmp_path: Path) -> None:
    clock = VirtualClock(NOW_NS)
    infos, items = _play(_driver(shared_data / "euroc_micro", tmp_path, clock, rate="max"))
    assert clock.now_ns() == NOW_NS
    assert [info.name for info in infos] == ["cam0", "cam1", "imu0"]
    frames = Counter(item.stream for item in items if isinstance(item, Frame))
    assert frames == {"cam0": 16, "cam1": 16, "imu0": 2912}
    assert sum(item.count for item in items if isinstance(item, Loss)) == 79 + 83


def test_the_timeline_is_that_of_the_recording(tmp_path: Path) -> None:
    driver = _driver(sealed_episode(tmp_path), tmp_path, VirtualClock(), rate="max")
    driver.open()
    assert driver.timeline is not None
    assert driver.timeline.is_virtual
    assert driver.timeline.host_id == TIMELINE.host_id
    assert driver.timeline.utc_minus_host_ns == TIMELINE.utc_minus_host_ns
    driver.close()


@pytest.mark.parametrize("rate", [1.0, "max"])
def test_recording_a_replay_of_a_recording_gives_the_recording(tmp_path: Path, rate: float | str) -> None:
    """Payload bytes, sequence numbers, device stamps, arrivals and capture times, at any speed."""
    original = sealed_episode(tmp_path, frames=40)
    first = _record(tmp_path / "first", _driver(original, tmp_path, VirtualClock(), rate="max"))
    again = _driver(first, tmp_path, VirtualClock(NOW_NS), rate=rate, allow_unverified=True)
    second = _record(tmp_path / "second", again)
    assert _contents(second) == _contents(first)
    with Episode(original) as before, Episode(second) as after:
        assert before.streams.keys() == after.streams.keys()
        for name, info in before.streams.items():
            # Nobody signed the first replay: that its depth is not personal is not believed.
            is_personal = info.is_personal or info.modality is Modality.DEPTH
            assert after.streams[name] == replace(info, is_personal=is_personal)
    for name, rows in _contents(original).items():
        assert [row[:4] + row[5:] for row in rows] == [row[:4] + row[5:] for row in _contents(second)[name]]


@pytest.mark.parametrize(
    "name", ["euroc_micro", "rosbag1/example.bag", "mcap_samples/custom-camera-model.mcap"]
)
def test_real_recordings_survive_being_recorded(shared_data: Path, tmp_path: Path, name: str) -> None:
    source = shared_data / name
    first = _record(tmp_path / "first", _driver(source, tmp_path, VirtualClock(), rate="max"))
    again = _driver(first, tmp_path, VirtualClock(), rate="max", allow_unverified=True)
    assert _contents(_record(tmp_path / "second", again)) == _contents(first)
    with open_source(source) as opened:
        counts = Counter(item.stream for item in opened.frames() if isinstance(item, Frame))
    assert {stream: len(rows) for stream, rows in _contents(first).items()} == counts


def test_in_a_loop_time_and_numbers_go_on(tmp_path: Path) -> None:
    driver = _driver(sealed_episode(tmp_path, frames=5), tmp_path, VirtualClock(), rate="max", loop=True)
    driver.open()
    frames: list[Frame] = []
    while len(frames) < 3 * 5 * len(STREAMS):
        frames += [item for item in driver.read(0.02) if isinstance(item, Frame)]
    driver.close()
    for info in STREAMS:
        own = [frame for frame in frames if frame.stream == info.name][:15]
        assert [frame.seq for frame in own] == [index * own[0].count for index in range(15)]
        arrivals = np.concatenate([frame.arrival_ns for frame in own])
        assert np.all(np.diff(arrivals) > 0)
        shift_ns = own[5].arrival_ns - own[0].arrival_ns
        if own[0].device_ticks is not None and own[5].device_ticks is not None:
            ticks = own[5].device_ticks - own[0].device_ticks
            assert abs(int(ticks[0]) * info.clock.tick_ns - int(shift_ns[0])) < info.clock.tick_ns


def test_only_the_chosen_streams_are_played(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "euroc_micro"
    infos, items = _play(_driver(source, tmp_path, VirtualClock(), rate="max", streams=["imu0"]))
    assert [info.name for info in infos] == ["imu0"]
    assert {item.stream for item in items} == {"imu0"}
    wrong = _driver(source, tmp_path, VirtualClock(), streams=["cam7"])
    with pytest.raises(DeviceError, match=r"no stream 'cam7'; it has: cam0, cam1, imu0"):
        wrong.open()
    wrong.close()


def test_a_recording_of_too_many_topics_asks_for_a_choice(tmp_path: Path) -> None:
    path = tmp_path / "many.mcap"
    with path.open("wb") as file:
        writer = McapWriter(file)
        writer.start()
        for index in range(257):
            writer.add_message(writer.register_channel(f"/t{index}", "json", 0), index, b"{}", index)
        writer.finish()  # type: ignore[no-untyped-call]
    driver = _driver(path, tmp_path, VirtualClock(), rate="max")
    with pytest.raises(DeviceError, match=r"257 streams.*name those to play"):
        driver.open()
    driver.close()
    infos, items = _play(_driver(path, tmp_path, VirtualClock(), rate="max", streams=["t5", "t256"]))
    assert [info.name for info in infos] == ["t5", "t256"]
    assert len(items) == 2


def test_an_empty_recording_is_a_clear_refusal(shared_data: Path, tmp_path: Path) -> None:
    driver = _driver(shared_data / "rosbag1" / "no-messages.bag", tmp_path, VirtualClock())
    with pytest.raises(DeviceError, match="nothing to replay in this ROS 1 bag: no messages"):
        driver.open()
    driver.close()


def test_what_is_no_recording_is_found_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("Dear Sensorium")
    for path in (tmp_path / "letter.txt", tmp_path / "absent.bag", tmp_path):
        with pytest.raises(DeviceError):
            ReplayDriver.check(ReplayConfig(source=path))
        driver = _driver(path, tmp_path, VirtualClock())
        with pytest.raises(DeviceError):
            driver.open()
        driver.close()


def test_an_episode_stays_as_personal_as_it_was(tmp_path: Path) -> None:
    driver = _driver(sealed_episode(tmp_path), tmp_path, VirtualClock(), personal=False)
    with pytest.raises(ConfigError, match="stays so"):
        driver.open()
    driver.close()


@pytest.mark.parametrize("rate", [0, -1.0, "fast"])
def test_rates_that_are_none_are_refused(rate: Any) -> None:
    with pytest.raises(ValidationError):
        ReplayConfig(source=Path("x"), rate=rate)


def test_a_recording_that_vanishes_while_it_plays_is_a_device_error(
    shared_data: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.bag"
    shutil.copy(shared_data / "rosbag1" / "example.bag", copy)
    driver = _driver(copy, tmp_path, VirtualClock(), rate="max")
    driver.open()
    copy.unlink()
    with pytest.raises(DeviceError):
        driver.read(0.02)
    driver.close()


def test_a_capture_at_its_own_speed_goes_through_real_sockets(shared_data: Path, tmp_path: Path) -> None:
    """Same packets as the decoder fed directly; live, so the arrivals are this machine's."""
    capture = shared_data / "ouster" / f"{OS0}.pcap"
    clock = HostClock()
    started_ns = clock.now_ns()
    driver = _driver(capture, tmp_path, clock)
    infos, items = _play(driver)
    assert driver.timeline is None
    _, fed = _play(_driver(capture, tmp_path, VirtualClock(), rate="max"))
    for name in ("lidar", "lidar_imu", "lidar_points"):
        live = [item for item in items if item.stream == name]
        direct = [item for item in fed if item.stream == name]
        assert all(isinstance(item, Frame) for item in live)
        assert sum(item.count for item in live) == sum(item.count for item in direct)
    lidar = next(item for item in items if isinstance(item, Frame) and item.stream == "lidar")
    expected = next(item for item in fed if isinstance(item, Frame) and item.stream == "lidar")
    assert bytes(lidar.payload) == bytes(expected.payload)
    assert lidar.device_ticks is not None
    assert expected.device_ticks is not None
    np.testing.assert_array_equal(lidar.device_ticks, expected.device_ticks)
    assert started_ns < lidar.arrival_ns[0] < clock.now_ns()
    # Paced: the capture's packets lie 98 ms apart from first to last.
    assert lidar.arrival_ns[-1] - lidar.arrival_ns[0] > 80_000_000
    assert [info.name for info in infos] == ["lidar", "lidar_imu", "lidar_points"]


def test_closing_in_the_middle_of_a_capture_ends_its_sender(shared_data: Path, tmp_path: Path) -> None:
    driver = _driver(shared_data / "ouster" / f"{OS0}.pcap", tmp_path, HostClock(), loop=True)
    driver.open()
    driver.read(0.02)
    driver.close()
    driver.close()
    with pytest.raises(DeviceError, match="not open"):
        driver.read(0.02)
