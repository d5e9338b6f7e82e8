"""Sealed episodes open in other people's tools."""

import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from mcap.reader import make_reader
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from sessions import grant, read_messages, sensorium, write_rig

from sensorium.simulators.demo_rig import demo_calibration
from sensorium.sync.decoding import samples
from sensorium.sync.episode.files import PLOTS_FILE
from sensorium.sync.episode.reader import Episode
from sensorium.sync.thinking.plots import PLOT_HZ, PLOT_SUFFIX
from sensorium.timebase import SECOND_NS


@pytest.fixture(scope="module")
def episode(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An episode with every kind of stream that the simulator has."""
    folder = tmp_path_factory.mktemp("viewers")
    camera = {"driver": "sim_camera", "size": [160, 120], "render": "cached"}
    rig: dict[str, dict[str, Any]] = {
        "camera_left": camera,
        "camera_right": camera,
        "lidar": {"driver": "sim_lidar"},
        "imu": {"driver": "sim_imu"},
        "force": {"driver": "sim_force"},
        "microphone": {"driver": "sim_microphone"},
    }
    demo_calibration().save(folder / "calibration.yaml")
    grant(folder / "spool")
    done = sensorium(
        "record", write_rig(folder, rig, calibration="calibration.yaml"), "--seconds", 3, "--json"
    )
    assert done.code == 0, done.err
    return done.episodes[0]


def test_the_mcap_library_reads_every_message_with_its_schema(episode: Path) -> None:
    with Episode(episode) as opened:
        frames = dict.fromkeys(opened.streams, 0)
        for found in opened.frames():
            frames[found.frame.stream] += 1
    counts: dict[str, int] = {}
    for file in episode.glob("*.mcap"):
        for topic, message in read_messages(file):
            if topic.endswith(PLOT_SUFFIX):
                continue  # in a schema of ROS; see the test of what can be plotted
            assert not isinstance(message, bytes), f"{topic} has no schema that a reader can decode"
            assert message.DESCRIPTOR.full_name
            counts[topic.removeprefix("/")] = counts.get(topic.removeprefix("/"), 0) + 1
    for name, count in frames.items():
        assert counts[name] == count > 0


def test_numeric_streams_can_be_plotted_as_they_lie(episode: Path) -> None:
    """Rerun draws names and positions of this message; Foxglove plots any number of a schema that it knows."""
    store = get_typestore(Stores.EMPTY)
    seen: dict[str, list[tuple[int, Any]]] = {}
    with (episode / PLOTS_FILE).open("rb") as file:
        for schema, channel, message in make_reader(file).iter_messages():
            assert schema is not None
            kind = schema.name
            if kind not in store.fielddefs:
                store.register(get_types_from_msg(schema.data.decode(), kind))
            found = store.deserialize_cdr(message.data, kind)
            seen.setdefault(channel.topic, []).append((message.log_time, found))
    assert set(seen) == {f"/{name}{PLOT_SUFFIX}" for name in ("imu", "force", "lidar_imu")}
    with Episode(episode) as opened:
        offset_ns = opened.timeline.utc_minus_host_ns
        for name in ("imu", "force", "lidar_imu"):
            info, rows = opened.streams[name], seen[f"/{name}{PLOT_SUFFIX}"]
            exact: dict[int, Any] = {}
            for recorded in opened.frames([name]):
                values = samples(info, recorded.frame.payload, recorded.frame.count)
                assert values is not None
                exact |= zip((recorded.stamped.capture_ns + offset_ns).tolist(), values, strict=True)
            for log_ns, message in rows:
                stamp = message.header.stamp
                assert stamp.sec * SECOND_NS + stamp.nanosec == log_ns
                assert message.name == [column.name for column in info.columns]
                assert message.position.tolist() == exact[log_ns].tolist()
            assert 0.8 * min(info.rate_hz, PLOT_HZ) < (len(rows) - 1) / ((rows[-1][0] - rows[0][0]) * 1e-9)
            assert max(Counter(log_ns // SECOND_NS for log_ns, _ in rows).values()) <= 1.05 * PLOT_HZ


def test_rerun_draws_a_line_for_each_column(episode: Path, tmp_path: Path) -> None:
    found = shutil.which("rerun", path=str(Path(sys.executable).parent)) or shutil.which("rerun")
    if found is None:
        pytest.skip("rerun is not installed here (pip install rerun-sdk)")
    drawn = tmp_path / "plots.rrd"
    for command in (
        ["mcap", "convert", str(episode / PLOTS_FILE), "-o", str(drawn)],
        ["rrd", "print", str(drawn)],
    ):
        done = subprocess.run([found, *command], capture_output=True, text=True, timeout=120, check=True)
    for name in ("imu", "force", "lidar_imu"):
        lines = [line for line in done.stdout.splitlines() if f"/{name}{PLOT_SUFFIX}/position " in line]
        assert any("Scalars:scalars" in line and "SeriesLines:names" in line for line in lines), done.stdout


def test_the_doctor_of_pymcap_finds_nothing_wrong(episode: Path) -> None:
    pytest.importorskip("pymcap_cli")
    tool = Path(sys.executable).with_name("pymcap-cli")
    for file in sorted(episode.glob("*.mcap")):
        done = subprocess.run([tool, "doctor", file], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, f"{file.name}: {done.stdout}{done.stderr}"


def test_rerun_accepts_every_file(episode: Path) -> None:
    found = shutil.which("rerun", path=str(Path(sys.executable).parent)) or shutil.which("rerun")
    if found is None:
        pytest.skip("rerun is not installed here (pip install rerun-sdk)")
    for file in sorted(episode.glob("*.mcap")):
        done = subprocess.run(
            [found, "mcap", "check", file], capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, f"{file.name}: {done.stdout}{done.stderr}"
