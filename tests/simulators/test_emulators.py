"""The emulators as programs: what they print is what a driver connects with."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sensorium.drivers.driver import DriverContext
from sensorium.drivers.frame import Frame
from sensorium.drivers.registry import load_driver
from sensorium.timebase import SECOND_NS, HostClock


@pytest.mark.parametrize(("device", "name"), [("xsens", "imu"), ("ati", "force")])
def test_an_emulator_prints_the_rig_entry_that_connects_to_it(device: str, name: str, tmp_path: Path) -> None:
    in_background = ["sh", "-c", "trap '' INT; exec \"$@\"", "sh"]  # as `command &` in a script starts it
    command = [sys.executable, "-m", "sensorium.simulators.emulators.command", device, "--rate-hz", "200"]
    with subprocess.Popen(
        [*in_background, *command], stdout=subprocess.PIPE, text=True, cwd=tmp_path
    ) as emulator:
        try:
            assert emulator.stdout is not None
            options = yaml.safe_load(emulator.stdout.readline())[name]
            assert count_samples(options, name, tmp_path) >= 20
        finally:
            emulator.send_signal(signal.SIGINT)
        assert emulator.wait(10) == 0


def count_samples(options: dict[str, object], name: str, folder: Path) -> int:
    """Open the driver of a rig entry and return how many samples came until there were 20, or in 5 s."""
    driver_type = load_driver(str(options.pop("driver")))
    clock = HostClock()
    config = driver_type.config_type.model_validate(options)
    driver = driver_type(config, DriverContext(name, "host", clock, folder))
    count = 0
    try:
        driver.open()
        deadline_ns = clock.now_ns() + 5 * SECOND_NS
        while count < 20 and clock.now_ns() < deadline_ns:
            count += sum(item.count for item in driver.read(0.1) if isinstance(item, Frame))
    finally:
        driver.close()
    return count
