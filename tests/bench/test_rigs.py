"""The bench's producers count honestly; and, with ``-m bench``, the recorder beside its peers in one run."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from rigs.driver import LoadConfig, LoadDriver
from rigs.loads import RIGS, why_not, write_pools
from rigs.schedule import give_start

from sensorium.drivers.driver import DriverContext
from sensorium.drivers.frame import Frame, Loss, Place
from sensorium.errors import EndOfStreamError
from sensorium.timebase import SECOND_NS, VirtualClock

START_NS = 5 * SECOND_NS
MIC = next(load for load in RIGS["opaque"] if load.name == "mic")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mic.pool").write_bytes(bytes(MIC.frame_bytes))
    return tmp_path


def microphone(folder: Path, clock: VirtualClock, seconds: float, multiple: int = 1) -> LoadDriver:
    config = LoadConfig(rig="opaque", folder=folder, multiple=multiple, seconds=seconds)
    driver = LoadDriver(config, DriverContext("mic", "here", clock, folder))
    driver.open()
    return driver


def items_until_the_end(driver: LoadDriver) -> Iterator[Frame | Loss]:
    while True:
        try:
            yield from driver.read(0.02)
        except EndOfStreamError:
            driver.close()
            return


def account(folder: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((folder / "mic.account.json").read_text())
    return found


def test_nothing_is_produced_before_everybody_is_ready(folder: Path) -> None:
    clock = VirtualClock(START_NS)
    driver = microphone(folder, clock, seconds=1)
    assert driver.read(0.02) == ()
    assert (folder / "mic.ready").exists()


def test_a_second_of_the_rig_at_four_times_its_rate_takes_a_quarter(folder: Path) -> None:
    clock = VirtualClock(START_NS)
    driver = microphone(folder, clock, seconds=1, multiple=4)
    give_start(folder, START_NS)
    frames = [item for item in items_until_the_end(driver) if isinstance(item, Frame)]
    assert [frame.seq for frame in frames] == [index * MIC.samples for index in range(MIC.frames_per_s)]
    assert START_NS < clock.now_ns() <= START_NS + SECOND_NS // 4 + SECOND_NS // 400
    assert account(folder)["fetched"] == account(folder)["produced"] == MIC.frames_per_s * MIC.samples


def test_what_nobody_fetched_within_the_devices_buffer_is_lost_there_and_counted(folder: Path) -> None:
    clock = VirtualClock(START_NS)
    driver = microphone(folder, clock, seconds=3)
    give_start(folder, START_NS)
    items = list(driver.read(0.02))
    clock.advance(SECOND_NS)
    items += items_until_the_end(driver)
    lost = [item for item in items if isinstance(item, Loss)]
    frames = [item for item in items if isinstance(item, Frame)]
    assert [(loss.place, loss.reason) for loss in lost] == [(Place.DEVICE, "device buffer overrun")]
    assert lost[0].count == pytest.approx(0.5 * MIC.frames_per_s * MIC.samples, abs=2 * MIC.samples)
    assert len(frames) * MIC.samples + lost[0].count == 3 * MIC.frames_per_s * MIC.samples
    assert account(folder)["produced"] - account(folder)["fetched"] == lost[0].count


def test_a_slow_reader_does_not_slow_the_schedule(folder: Path) -> None:
    clock = VirtualClock(START_NS)
    driver = microphone(folder, clock, seconds=2)
    give_start(folder, START_NS)
    driver.read(0.02)
    clock.advance(SECOND_NS // 4)
    frames = [item for item in driver.read(0.02) if isinstance(item, Frame)]
    assert len(frames) == pytest.approx(MIC.frames_per_s / 4, abs=2)


@pytest.mark.parametrize("rig", RIGS)
def test_the_pools_hold_whole_payloads(tmp_path: Path, rig: str) -> None:
    if why_not(rig):
        pytest.skip(why_not(rig))
    write_pools(tmp_path / rig, rig)
    for load in RIGS[rig]:
        size = (tmp_path / rig / f"{load.name}.pool").stat().st_size
        assert size > 0
        assert size % load.frame_bytes == 0


@pytest.mark.bench
def test_recording_loses_nothing_at_four_times_the_rig_and_costs_less_than_the_peers() -> None:
    command = [sys.executable, str(Path(__file__).with_name("rig.py")), "--multiples", "4", "--seconds", "20"]
    done = subprocess.run(
        [*command, "--rigs", "opaque", "--peers", "--only-rigs", "--json"],
        stdout=subprocess.PIPE,
        timeout=600,
        check=True,
    )
    found = json.loads(done.stdout)
    ours = found["rigs"]["opaque"]["4"]
    assert ours["lost"] == 0
    for peer, share in (("rosbag_record", 1 / 3), ("foxglove_sdk", 0.8)):
        if "4" in found["peers"][peer]:
            assert ours["cpu_s_per_gb"] <= share * found["peers"][peer]["4"]["cpu_s_per_gb"], peer
