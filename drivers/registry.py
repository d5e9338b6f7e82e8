"""Drivers by name: a table of lazy strings, and the entry-point group ``sensorium.drivers`` for others'."""

import difflib
import importlib
from importlib.metadata import entry_points
from typing import Any

from sensorium.drivers.driver import Driver
from sensorium.errors import ConfigError

ENTRY_POINT_GROUP = "sensorium.drivers"

BUILT_IN = {
    "ati_netft": "sensorium.drivers.devices.ati_netft:AtiNetFtDriver",
    "opencv": "sensorium.drivers.devices.opencv.driver:OpenCvDriver",
    "ouster": "sensorium.drivers.devices.ouster.driver:OusterDriver",
    "pps": "sensorium.drivers.devices.pps:PpsDriver",
    "sounddevice": "sensorium.drivers.devices.sounddevice:SoundDeviceDriver",
    "xsens": "sensorium.drivers.devices.xsens:XsensDriver",
    "sim_camera": "sensorium.simulators.camera:SimulatedCamera",
    "sim_force": "sensorium.simulators.force:SimulatedForce",
    "sim_imu": "sensorium.simulators.imu:SimulatedImu",
    "sim_lidar": "sensorium.simulators.lidar:SimulatedLidar",
    "sim_microphone": "sensorium.simulators.microphone:SimulatedMicrophone",
    "sim_trigger": "sensorium.simulators.trigger:SimulatedTrigger",
    "replay": "sensorium.simulators.player:ReplayDriver",
}


def driver_targets() -> dict[str, str]:
    """Return every known driver name with its ``module:class``, built-in ones first."""
    found = dict(BUILT_IN)
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        found.setdefault(entry.name, entry.value)
    return found


def load_driver(name: str) -> type[Driver[Any]]:
    """Import and return the driver class called ``name``.

    Raises:
        ConfigError: If no such driver is known, or its module cannot be imported.
    """
    # Looking through every installed package takes longer than to import most drivers.
    targets = BUILT_IN if name in BUILT_IN else driver_targets()
    if name not in targets:
        near = difflib.get_close_matches(name, targets, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(targets))}"
        raise ConfigError(f"driver {name!r} is unknown; {hint}")
    module_name, _, class_name = targets[name].partition(":")
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, OSError) as err:
        raise ConfigError(f"driver {name!r} ({targets[name]}) cannot be loaded: {err}") from err
    if not (isinstance(found, type) and issubclass(found, Driver)):
        raise ConfigError(f"driver {name!r} ({targets[name]}) is not a sensorium Driver class")
    return found
