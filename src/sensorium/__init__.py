"""Sensorium: multisensor capture whose episodes can prove themselves.

``sensorium.open`` opens an episode for reading. It is loaded when it is first used: importing this is cheap.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sensorium.sync.reading.opening import open_episode as open

__all__ = ["__version__", "open"]

__version__ = "0.1.0"

_LAZY = {"open": ("sensorium.sync.reading.opening", "open_episode")}
"""By public name: the module that has it, and its name there."""


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'sensorium' has no attribute {name!r}")
    import importlib

    module, found = _LAZY[name]
    return getattr(importlib.import_module(module), found)


def __dir__() -> list[str]:
    return sorted(__all__)
