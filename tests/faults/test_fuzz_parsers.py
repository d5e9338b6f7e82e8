"""Inputs that are almost right, for every parser of what others wrote: an error of ours or a result, nothing else.

``pytest tests/faults/test_fuzz_parsers.py`` runs 300 inputs a parser; ``FUZZ_INPUTS=100000`` as many as that.
Inputs are valid ones with bytes flipped, cut, doubled, set to extreme lengths or nested deeply.
"""

import base64
import contextlib
import json
import random
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
from episode_samples import sealed_episode
from fuzzing import GROWTH_KB, INPUTS, NESTS, mutated
from sessions import SMALL_RIG, write_rig

from sensorium.agent.session.rig import load_rig
from sensorium.calibration.rig_document import RigCalibration
from sensorium.drivers.bus.header import unpack_frame
from sensorium.drivers.bus.wire import End, Heartbeat, Joined, pack_control, unpack_control
from sensorium.errors import SensoriumError
from sensorium.sync.episode.manifest import load_manifest
from sensorium.sync.episode.mcap_reader import McapReader
from sensorium.sync.trust.documents import open_document


def _mcap(path: Path) -> None:
    reader = McapReader(path)
    try:
        for index in reader.contents.chunks:
            reader.unpack(index)
        for metadata in reader.contents.metadata:
            reader.metadata(metadata.name)
    finally:
        reader.close()


def _of_file(parse: Callable[[Path], object], path: Path) -> Callable[[bytes], object]:
    def parsing(data: bytes) -> object:
        path.write_bytes(data)
        return parse(path)

    return parsing


def parsers(folder: Path) -> dict[str, tuple[bytes, Callable[[bytes], object]]]:
    """Return of each parser a valid input and the parser."""
    episode = sealed_episode(folder)
    envelope = json.loads((episode / "manifest.json").read_bytes())
    manifest = base64.b64decode(envelope["payload"])
    rig = write_rig(folder, SMALL_RIG)
    calibration = b"sensorium: rig\nframes: {}\n"
    control = [pack_control(Heartbeat(3, {"imu": 5})), pack_control(End(instance=3, next_seq={}, error=""))]
    control.append(pack_control(Joined(3, 1, 1, 10, (1, 2))))
    return {
        "bus control": (control[0], unpack_control),
        "bus end": (control[1], unpack_control),
        "bus joined": (control[2], unpack_control),
        "bus frame": (control[0], lambda data: unpack_frame(data, data, None)),
        "manifest": (manifest, load_manifest),
        "signed document": (
            (episode / "manifest.json").read_bytes(),
            lambda data: open_document(data, "receipt", frozenset()),
        ),
        "mcap": ((episode / "data.mcap").read_bytes(), _of_file(_mcap, folder / "fuzz.mcap")),
        "rig": (rig.read_bytes(), _of_file(load_rig, folder / "fuzz.yaml")),
        "calibration": (calibration, _of_file(RigCalibration.load, folder / "fuzz-cal.yaml")),
    }


NAMES = (
    *("bus control", "bus end", "bus joined", "bus frame", "manifest", "signed document"),
    *("mcap", "rig", "calibration"),
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[bytes, Callable[[bytes], object]]]:
    return parsers(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_almost_right_is_read_or_refused(
    made: dict[str, tuple[bytes, Callable[[bytes], object]]], name: str
) -> None:
    valid, parse = made[name]
    rng = random.Random(name)
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(INPUTS):
        with contextlib.suppress(SensoriumError):
            parse(mutated(valid, rng))
    for nest in NESTS:
        with contextlib.suppress(SensoriumError):
            parse(nest)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < GROWTH_KB
