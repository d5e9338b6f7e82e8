"""The README tells the truth: its driver runs, its rig file is valid but for the devices, its files exist."""

import re
import types
from pathlib import Path

import numpy as np
import yaml
from delivered_episode import deliver

from sensorium.agent.session.rig import RigDocument
from sensorium.drivers.driver import DriverContext
from sensorium.drivers.registry import BUILT_IN, load_driver
from sensorium.timebase import VirtualClock

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", README, re.DOTALL)
    assert found is not None
    return found.group(1)


def test_the_driver_in_the_readme_reads_a_thermometer(tmp_path: Path) -> None:
    module = types.ModuleType("readme_driver")
    exec(block("python"), module.__dict__)
    device = tmp_path / "temp"
    device.write_text("42500\n")
    clock = VirtualClock(1_000_000_000)
    config = module.ThermometerConfig(path=device, rate_hz=5.0)
    driver = module.Thermometer(config, DriverContext("cpu", "here", clock, tmp_path))
    (info,) = driver.open()
    frames = [frame for _ in range(30) for frame in driver.read(0.1)]
    assert [frame.seq for frame in frames] == list(range(len(frames)))
    assert len(frames) == 15
    value = np.frombuffer(frames[-1].payload, info.columns[0].dtype)[0] * info.columns[0].scale
    assert value == 42.5
    clock.sleep_until(clock.now_ns() + 1_030_000_000)  # the machine was busy, for four readings
    lost, frame = driver.read(0.1)
    assert (lost.count, frame.seq) == (4, frames[-1].seq + 5)
    assert [again.seq for _ in range(2) for again in driver.read(0.1)] == [frame.seq + 1]


def test_the_loader_in_the_readme_yields_batches_with_times_and_uncertainties(tmp_path: Path) -> None:
    found = re.search(r"```python\n(import numpy.*?)```", README, re.DOTALL)
    assert found is not None
    assert len(found[1].strip().splitlines()) <= 18  # two imports, and a function of fifteen lines
    module = types.ModuleType("readme_loader")
    exec(found[1], module.__dict__)
    there = deliver(tmp_path, seconds=2.0)
    for path in (there.folder, there.url):
        first, *more = module.batches(path, size=4)
        assert len(more) == 3
        assert first["camera_left"].shape == (4, 120, 160, 3)
        assert (first["imu"].shape, first["force"].shape) == ((4, 6), (4, 6))
        assert first["time_ns"].shape == first["uncertainty_ns"].shape == (4, 3)
        assert np.ptp(first["time_ns"], axis=1).max() <= 1e9 / 60  # half a period of the camera


def test_the_rig_file_in_the_readme_has_valid_keys_and_options() -> None:
    data = yaml.safe_load(block("yaml"))
    RigDocument.model_validate(data)
    for name, options in data["devices"].items():
        driver = load_driver(options.pop("driver"))
        assert driver.config_type.model_validate(options), name


def test_every_file_that_the_readme_shows_exists() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).is_file(), target


def test_every_driver_has_its_row_in_the_readme() -> None:
    for name in BUILT_IN:
        assert f"`{name}`" in README, name
