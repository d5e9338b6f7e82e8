"""Sealed episodes open in other people's tools."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sessions import grant, read_messages, sensorium, write_rig

from sensorium.simulators.demo_rig import demo_calibration
from sensorium.sync.episode.reader import Episode


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
            assert not isinstance(message, bytes), f"{topic} has no schema that a reader can decode"
            assert message.DESCRIPTOR.full_name
            counts[topic.removeprefix("/")] = counts.get(topic.removeprefix("/"), 0) + 1
    for name, count in frames.items():
        assert counts[name] == count > 0


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
