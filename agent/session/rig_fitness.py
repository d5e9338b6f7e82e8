"""What in a rig file cannot work although each key alone is right: said before anything starts."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from sensorium.agent.session.yaml_positions import Problem
from sensorium.errors import ConfigError
from sensorium.wording import nearest

if TYPE_CHECKING:
    from sensorium.agent.session.rig import RigDocument

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
