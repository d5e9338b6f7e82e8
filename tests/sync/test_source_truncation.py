"""Every format cut anywhere, and damaged anywhere: a source that tells its problems, or one clear error."""

import random
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from rosbags import rosbag2
from rosbags.rosbag2 import StoragePlugin
from rosbags.typesys import Stores, get_typestore

from sensorium.drivers.frame import Frame
from sensorium.errors import SourceError
from sensorium.sync.sources import open_source

TRIALS = 40


def _pcap(shared_data: Path, folder: Path) -> tuple[Path, Path]:
    name = "OS-1-32-G_v2.1.1_1024x10"
    shutil.copy(shared_data / "ouster" / f"{name}.json", folder / "x.json")
    shutil.copy(shared_data / "ouster" / f"{name}.pcap", folder / "x.pcap")
    return folder / "x.pcap", folder / "x.pcap"


def _ros1(shared_data: Path, folder: Path) -> tuple[Path, Path]:
    shutil.copy(shared_data / "ouster" / "512x10_raw.bag", folder / "x.bag")
    return folder / "x.bag", folder / "x.bag"


def _ros1_lz4(shared_data: Path, folder: Path) -> tuple[Path, Path]:
    shutil.copy(shared_data / "rosbag1" / "example-lz4.bag", folder / "x.bag")
    return folder / "x.bag", folder / "x.bag"


def _ros2_mcap(shared_data: Path, folder: Path) -> tuple[Path, Path]:
    for name in ("metadata.yaml", "talker.mcap"):
        shutil.copy(shared_data / "rosbag2" / "talker" / name, folder / name)
    return folder, folder / "talker.mcap"


def _ros2_sqlite(shared_data: Path, folder: Path) -> tuple[Path, Path]:
    store = get_typestore(Stores.ROS2_HUMBLE)
    with rosbag2.Writer(folder / "bag", version=9, storage_plugin=StoragePlugin.SQLITE3) as writer:
        connection = writer.add_connection("/text", "std_msgs/msg/String", typestore=store)
        for index in range(200):
            writer.write(connection, index * 1000, b"\0\1\0\0\4\0\0\0abc\0" + bytes(100))
    return folder / "bag", next((folder / "bag").glob("*.db3"))


def _ros2_metadata(shared_data: Path, folder: Path) -> tuple[Path, Path]:
    source, _ = _ros2_mcap(shared_data, folder)
    return source, folder / "metadata.yaml"


def _mcap(shared_data: Path, folder: Path) -> tuple[Path, Path]:
    shutil.copy(shared_data / "mcap_samples" / "custom-camera-model.mcap", folder / "x.mcap")
    return folder / "x.mcap", folder / "x.mcap"


def _small_mcap(shared_data: Path, folder: Path) -> tuple[Path, Path]:
    name = "TenMessages-ch-chx-mx-rch-rsh-st-sum.mcap"
    shutil.copy(shared_data / "mcap_conformance" / "TenMessages" / name, folder / "x.mcap")
    return folder / "x.mcap", folder / "x.mcap"


def _euroc_list(shared_data: Path, folder: Path) -> tuple[Path, Path]:
    camera = folder / "mav0" / "cam0"
    (camera / "data").mkdir(parents=True)
    for name in ("data.csv", "sensor.yaml"):
        shutil.copy(shared_data / "euroc_micro" / "mav0" / "cam0" / name, camera / name)
    return folder, camera / "data.csv"


def _euroc_imu(shared_data: Path, folder: Path) -> tuple[Path, Path]:
    imu = folder / "mav0" / "imu0"
    imu.mkdir(parents=True)
    lines = (shared_data / "euroc_micro" / "mav0" / "imu0" / "data.csv").read_text().splitlines()[:60]
    (imu / "data.csv").write_text("\n".join(lines))
    return folder, imu / "data.csv"


def _euroc_yaml(shared_data: Path, folder: Path) -> tuple[Path, Path]:
    source, _ = _euroc_list(shared_data, folder)
    return source, folder / "mav0" / "cam0" / "sensor.yaml"


RECORDINGS: dict[str, Callable[[Path, Path], tuple[Path, Path]]] = {
    "pcap": _pcap,
    "ros1": _ros1,
    "ros1 lz4": _ros1_lz4,
    "ros2 mcap": _ros2_mcap,
    "ros2 sqlite": _ros2_sqlite,
    "ros2 metadata": _ros2_metadata,
    "mcap": _mcap,
    "small mcap": _small_mcap,
    "euroc list": _euroc_list,
    "euroc imu": _euroc_imu,
    "euroc yaml": _euroc_yaml,
}


def _samples(source_path: Path) -> int:
    """Return how many samples a recording yields, -1 if a clear line refuses it, -2 if an unclear one."""
    try:
        with open_source(source_path) as source:
            assert source.end_ns >= source.start_ns
            return sum(item.count for item in source.frames() if isinstance(item, Frame))
    except SourceError as err:
        return -1 if str(source_path) in str(err) and "\n" not in str(err) else -2


@pytest.mark.parametrize("name", RECORDINGS)
def test_a_recording_cut_anywhere_never_raises_anything_but_a_source_error(
    name: str, shared_data: Path, tmp_path: Path
) -> None:
    source, victim = RECORDINGS[name](shared_data, tmp_path)
    victim.chmod(0o644)
    whole = victim.read_bytes()
    complete = _samples(source)
    rng = random.Random(f"cut {name}")
    ends = [0, 1, 7, 8, 9, len(whole) - 1] + [rng.randrange(len(whole)) for _ in range(TRIALS)]
    for end in ends:
        victim.write_bytes(whole[:end])
        assert -1 <= _samples(source) <= complete, f"cut at byte {end}"


@pytest.mark.parametrize("name", RECORDINGS)
def test_damaged_bytes_anywhere_never_raise_anything_but_a_source_error(
    name: str, shared_data: Path, tmp_path: Path
) -> None:
    source, victim = RECORDINGS[name](shared_data, tmp_path)
    victim.chmod(0o644)
    whole = victim.read_bytes()
    rng = random.Random(f"damage {name}")
    for _ in range(TRIALS):
        damaged = bytearray(whole)
        # Headers and indexes lie at the ends; most of the middle is payload.
        for _ in range(rng.choice((1, 3, 30))):
            place = rng.choice((rng.randrange(len(whole)), rng.randrange(min(400, len(whole)))))
            damaged[place if rng.random() < 0.7 else -1 - place] = rng.randrange(256)
        victim.write_bytes(damaged)
        assert _samples(source) >= -1


def test_a_database_that_is_locked_or_foreign_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.db3"
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE cats(name TEXT)")
    database.commit()
    database.close()
    with pytest.raises(SourceError, match=r"other\.db3"):
        open_source(path)
