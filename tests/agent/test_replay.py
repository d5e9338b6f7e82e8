"""``sensorium replay`` of recordings that nobody here wrote, and of our own."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sessions import Done, check_balance, check_verifies, grant, read_manifest, sensorium, write_rig

from sensorium.sync.consent.grants import Purpose
from sensorium.sync.episode.reader import Episode

CAMERA = {"driver": "sim_camera", "size": [160, 120], "render": "cached"}


def replayed(source: Path, tmp_path: Path, *arguments: object, timeout_s: float = 60.0) -> Done:
    spool = tmp_path / "replay-spool"
    return sensorium("replay", source, "--spool", spool, "--json", *arguments, timeout_s=timeout_s)


def at_max(source: Path, tmp_path: Path) -> Done:
    done = replayed(source, tmp_path, "--rate", "max")
    assert done.code in (0, 1), done.err
    (episode,) = done.episodes
    check_verifies(episode)
    (run_dir,) = (path.parent for path in (tmp_path / "replay-spool" / "run").glob("*/counters"))
    check_balance([episode], run_dir)
    return done


def recorded(done: Done) -> dict[str, int]:
    """Return the recorded samples by stream, without the thinned views of other streams."""
    with Episode(done.episodes[0]) as episode:
        originals = {name for name, info in episode.streams.items() if not info.reference_of}
    return {n: row["recorded"] for n, row in done.document["streams"].items() if n in originals}


def pcaps(shared_data: Path) -> list[Path]:
    return sorted((shared_data / "ouster").glob("*.pcap"))


def test_an_ouster_capture_gives_every_packet_at_full_speed(shared_data: Path, tmp_path: Path) -> None:
    (source,) = (path for path in pcaps(shared_data) if "OS-0-128-U1_v2.3.0" in path.name)
    found = recorded(at_max(source, tmp_path))
    assert sorted(found.values()) == [10, 64]


def test_an_ouster_capture_goes_over_real_udp_at_its_own_speed(shared_data: Path, tmp_path: Path) -> None:
    (source,) = (path for path in pcaps(shared_data) if "OS-0-128-U1_v2.3.0" in path.name)
    done = replayed(source, tmp_path)
    assert done.code in (0, 1), done.err
    assert sorted(recorded(done).values()) == [10, 64]
    with Episode(done.episodes[0]) as episode:
        assert not episode.timeline.is_virtual
    check_verifies(*done.episodes)


def test_every_ouster_capture_plays(shared_data: Path, tmp_path: Path) -> None:
    for index, source in enumerate(pcaps(shared_data)):
        done = replayed(source, tmp_path / str(index), "--rate", "max")
        assert done.code in (0, 1), (source.name, done.err)
        assert sum(recorded(done).values()) > 0, source.name


def test_euroc_reports_images_that_are_absent_and_frames_without_a_twin(
    shared_data: Path, tmp_path: Path
) -> None:
    done = at_max(shared_data / "euroc_micro", tmp_path)
    found = recorded(done)
    images = {name: count for name, count in found.items() if "cam" in name}
    assert sorted(images.values()) == [16, 16]
    assert [count for name, count in found.items() if "imu" in name] == [29120]
    dropped = {name: done.document["streams"][name]["dropped"] for name in images}
    assert sorted(sum(row.values()) for row in dropped.values()) == [95 - 16, 99 - 16]
    text = " ".join(done.document["problems"])
    assert "twin" in text or "left" in text, text


@pytest.mark.parametrize("name", ["example.bag", "example-lz4.bag", "example-bz2.bag"])
def test_a_ros_1_bag_gives_all_of_its_messages(name: str, shared_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("rosbags")
    assert sum(recorded(at_max(shared_data / "rosbag1" / name, tmp_path)).values()) == 8647


def test_a_realsense_bag_gives_all_of_its_messages(shared_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("rosbags")
    (source,) = (shared_data / "realsense").glob("*.bag")
    assert sum(recorded(at_max(source, tmp_path)).values()) == 135


def test_ros_2_bags_give_all_of_their_messages(shared_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("rosbags")
    counts = {}
    for folder in sorted(path for path in (shared_data / "rosbag2").iterdir() if path.is_dir()):
        done = at_max(folder, tmp_path / folder.name)
        counts[folder.name] = sum(recorded(done).values())
    assert 20 in counts.values()
    assert 7 in counts.values()


@pytest.mark.parametrize(("words", "messages"), [("custom-camera", 30), ("example", 111)])
def test_mcap_files_give_all_of_their_messages(
    words: str, messages: int, shared_data: Path, tmp_path: Path
) -> None:
    (source,) = (path for path in (shared_data / "mcap_samples").glob("*.mcap") if words in path.name)
    assert sum(recorded(at_max(source, tmp_path)).values()) == messages


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short episode of our own, with losses in it."""
    folder = tmp_path_factory.mktemp("own")
    lossy = {"drop_probability": 0.05}
    rig: dict[str, dict[str, Any]] = {
        "camera_left": {**CAMERA, **lossy},
        "imu": {"driver": "sim_imu", **lossy},
        "force": {"driver": "sim_force"},
        "microphone": {"driver": "sim_microphone"},
    }
    grant(folder / "spool", Purpose.UPLOAD)
    done = sensorium("record", write_rig(folder, rig), "--seconds", 3, "--json")
    assert done.code == 0, done.err
    return done.episodes[0]


def contents(episode: Path) -> dict[str, list[Any]]:
    """Return all that a frame is, by stream, in order."""
    found: dict[str, list[Any]] = {}
    with Episode(episode) as opened:
        for recorded_frame in opened.frames():
            frame = recorded_frame.frame
            ticks = None if frame.device_ticks is None else frame.device_ticks.tolist()
            found.setdefault(frame.stream, []).append(
                (
                    frame.seq,
                    frame.count,
                    ticks,
                    frame.arrival_ns.tolist(),
                    np.asarray(recorded_frame.stamped.capture_ns).tolist(),
                    recorded_frame.uncertainty,
                    recorded_frame.stamped.epoch,
                    bytes(frame.payload),
                    frame.meta,
                )
            )
    return found


@pytest.mark.parametrize("rate", ["1", "max"])
def test_record_replay_record_gives_the_same_frames_and_stamps(rate: str, own: Path, tmp_path: Path) -> None:
    done = replayed(own, tmp_path, "--rate", rate)
    assert done.code == 0, done.err + done.out
    (again,) = done.episodes
    before, after = contents(own), contents(again)
    assert before.keys() == after.keys()
    for stream, frames in before.items():
        assert len(after[stream]) == len(frames), stream
        for was, now in zip(frames, after[stream], strict=True):
            assert now == was, (stream, was[:5], now[:5])
    with Episode(own) as first, Episode(again) as second:
        assert first.timeline.utc_minus_host_ns == second.timeline.utc_minus_host_ns
    lost = {r.info.name: r.total.dropped_total for r in read_manifest(own).streams}
    assert {r.info.name: r.total.dropped_total for r in read_manifest(again).streams} == lost
    assert read_manifest(own).episode_id != read_manifest(again).episode_id


def cut(source: Path, target: Path, share: float) -> Path:
    data = source.read_bytes()
    target.write_bytes(data[: int(len(data) * share)])
    return target


def check_refused(done: Done) -> None:
    assert done.code in (2, 3), (done.code, done.err)
    lines = [line for line in done.err.splitlines() if line.startswith("sensorium:")]
    assert len(lines) == 1, done.err


def test_a_truncated_capture_gives_what_is_whole_and_says_so(shared_data: Path, tmp_path: Path) -> None:
    (source,) = (path for path in pcaps(shared_data) if "OS-0-128-U1_v2.3.0" in path.name)
    torn = cut(source, tmp_path / source.name, 0.5)
    metadata = source.with_suffix(".json")
    (tmp_path / metadata.name).write_bytes(metadata.read_bytes())
    done = replayed(torn, tmp_path, "--rate", "max")
    assert done.code in (0, 1), done.err
    assert 20 <= sum(recorded(done).values()) < 74
    assert done.document["problems"], done.document
    check_verifies(*done.episodes)


def test_an_mcap_that_was_cut_in_the_middle_gives_what_is_whole_and_says_so(
    shared_data: Path, tmp_path: Path
) -> None:
    (source,) = (path for path in (shared_data / "mcap_samples").glob("*.mcap") if "example" in path.name)
    done = replayed(cut(source, tmp_path / "torn.mcap", 0.6), tmp_path, "--rate", "max")
    if done.code in (2, 3):
        check_refused(done)
        return
    assert sum(recorded(done).values()) < 111
    assert done.document["problems"]


def test_an_episode_that_was_changed_is_not_replayed(own: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / own.name
    shutil.copytree(own, copy)
    data = bytearray((copy / "data.mcap").read_bytes())
    data[len(data) // 2] ^= 1
    (copy / "data.mcap").write_bytes(data)
    check_refused(replayed(copy, tmp_path, "--rate", "max"))


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("missing.mcap", None),
        ("empty.mcap", b""),
        ("noise.pcap", bytes(range(256)) * 40),
        ("noise.bag", b"#ROSBAG V2.0\n" + bytes(range(256)) * 40),
        ("noise.mcap", b"\x89MCAP0\r\n" + bytes(range(256)) * 40),
        ("text.txt", b"not a recording"),
    ],
)
def test_what_is_no_recording_is_refused_with_one_line(name: str, data: bytes | None, tmp_path: Path) -> None:
    source = tmp_path / name
    if data is not None:
        source.write_bytes(data)
    check_refused(replayed(source, tmp_path, "--rate", "max"))


def test_a_rate_that_is_none_is_refused(tmp_path: Path) -> None:
    done = replayed(tmp_path, tmp_path, "--rate", "0")
    assert done.code == 2
    assert "above 0" in done.err
