"""YAML that folds a world into a few lines: refused within bounds of time and memory by everything that reads YAML."""

import resource
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from sensorium.agent.session.rig import load_rig
from sensorium.bounded_yaml import MOST_BYTES, MOST_DEPTH, MOST_VALUES, BoundedLoader, TooMuchYamlError
from sensorium.calibration.euroc import read_sensors
from sensorium.calibration.formats.draft import read_yaml
from sensorium.calibration.formats.storage import read_storage
from sensorium.calibration.rig_document import RigCalibration
from sensorium.errors import SensoriumError, SourceError
from sensorium.sync.consent.store import read_grant
from sensorium.sync.sources.opening import open_source

READERS: dict[str, Callable[[Path], object]] = {
    "rig": load_rig,
    "calibration": RigCalibration.load,
    "grant": read_grant,
    "calibration of others": read_yaml,
    "EuRoC": lambda path: read_sensors({"cam0": path}, path),
}


def _folded(first: str, line: Callable[[str, str], str]) -> str:
    names = "abcdefghijklmnopqrst"
    return first + "".join(line(last, name) for last, name in pairwise(names))


BOMBS = {
    "aliases": _folded(
        "a: &a [x]\n", lambda last, name: f"{name}: &{name} [{', '.join([f'*{last}'] * 9)}]\n"
    ),
    "merged keys": _folded(
        "a: &a {k: 1}\n", lambda last, name: f"{name}: &{name} {{<<: [{', '.join([f'*{last}'] * 9)}]}}\n"
    ),
    "an alias in itself": "devices: &a [*a]\n",
    "a key that is an alias in itself": "? &a [*a]\n: 1\n",
    "depth": "devices: " + "[" * (10 * MOST_DEPTH),
    "bytes": "a: 1\n" * MOST_BYTES,
    "a key that is a list": "".join(f"k{number}: 1\n" for number in range(300)) + "? [1]\n: 1\n",
    "digits": "a: " + ":".join(["59"] * 20_000),
}
_CPU_S = 15.0
"""Of one reader and one bomb; a million values cost ten times as much."""


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_refused_soon_and_small(bomb: str, tmp_path: Path) -> None:
    path = tmp_path / "sensor.yaml"
    path.write_text(BOMBS[bomb])
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, read in READERS.items():
        begun_s = time.process_time()
        with pytest.raises(SensoriumError):
            read(path)
        assert time.process_time() - begun_s < _CPU_S, name
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 200 << 10


def test_the_number_of_values_and_bytes_is_bounded(tmp_path: Path) -> None:
    with pytest.raises(TooMuchYamlError, match="values"):
        yaml.load("[" + "1," * MOST_VALUES + "1]", Loader=BoundedLoader)
    (tmp_path / "some.yaml").write_text(BOMBS["an alias in itself"])
    with suppress(SensoriumError):
        read_storage(tmp_path / "some.yaml")  # OpenCV knows no aliases: it may read what is left


def test_what_an_alias_is_for_works(tmp_path: Path) -> None:
    path = tmp_path / "some.yaml"
    path.write_text("a: &a {k: 1}\nb: *a\nc: {<<: *a, l: 2}\n")
    assert read_yaml(path) == {"a": {"k": 1}, "b": {"k": 1}, "c": {"k": 1, "l": 2}}


def test_a_bag_whose_list_of_files_unfolds_without_end_is_read_without_it(tmp_path: Path) -> None:
    bomb = _folded("a: &a [x]\n", lambda last, name: f"{name}: &{name} [{', '.join([f'*{last}'] * 9)}]\n")
    text = bomb + "rosbag2_bagfile_information:\n  relative_file_paths: *t\n  storage_identifier: *t\n"
    (tmp_path / "metadata.yaml").write_text(text)
    with pytest.raises(SourceError):
        open_source(tmp_path)
