"""What in a rig file cannot work although each key alone is right: said before anything starts."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sensorium.agent.session.yaml_positions import Problem
from sensorium.errors import ConfigError
from sensorium.wording import nearest

if TYPE_CHECKING:
    from sensorium.agent.session.rig import Device, RigDocument

_NAMES_ITS_OWN = "replay"
"""A driver whose streams have the names that they were recorded under."""


def unfit(document: "RigDocument", devices: Sequence[str], drivers: Iterable[str]) -> list[Problem]:
    """Return what names a stream that no device has, or a store that nobody serves.

    A device's streams begin with its name; which of them there are, only the open device knows.
    """
    problems = list(_store(document))
    if _NAMES_ITS_OWN in drivers:
        return problems
    reference = document.episode.reference
    if reference is not None and not is_of_a_device(reference, devices):
        what = f"episode.reference: no device has a stream {reference!r}; {nearest(reference, devices)}"
        problems.append((("episode", "reference"), what))
    for index, check in enumerate(document.checks or () if document.calibration is not None else ()):
        for place, stream in enumerate(check.streams):
            if not is_of_a_device(stream, devices):
                what = (
                    f"checks.{index}.streams: no device has a stream {stream!r}; {nearest(stream, devices)}"
                )
                problems.append((("checks", index, "streams", place), what))
    return problems


def taken_twice(devices: Sequence["Device"]) -> Iterator[Problem]:
    """Yield each device that wants what only one program can have and a device before it has already."""
    owners: dict[tuple[str, object], str] = {}
    for device in devices:
        for key, thing in _held(device):
            owner = owners.setdefault(thing, device.name)
            if owner != device.name:
                value = thing[1] if thing[0] else device.options.get(key, thing[1])
                what = f"{thing[0]}{value} is that of {owner}, too; give each device its own"
                yield ("devices", device.name, key), f"devices.{device.name}.{key}: {what}"


def _held(device: "Device") -> Iterator[tuple[str, tuple[str, object]]]:
    """Yield key and thing of what a device keeps to itself: files of devices by whatever name, UDP ports."""
    for key in ("port", "device"):
        path = getattr(device.config, key, None)
        if isinstance(path, str | Path) and str(path).startswith("/dev/"):
            yield key, ("", os.path.realpath(path))
    for key in ("lidar_port", "imu_port"):
        number = getattr(device.config, key, 0)
        if number:  # 0 takes a free one
            yield key, ("UDP port ", f"{getattr(device.config, 'bind', '')}:{number}")


def is_of_a_device(stream: str, devices: Iterable[str]) -> bool:
    """Return whether a stream's name is one that a device may give."""
    return any(stream == name or stream.startswith(f"{name}_") for name in devices)


def _store(document: "RigDocument") -> Iterable[Problem]:
    if document.store is None:
        return
    from sensorium.uploader.stores.serving import check_address

    try:
        check_address(document.store, will_be_written=document.upload)
    except ConfigError as err:
        yield (("store",), f"store: {err}")
