"""Codecs as rig files name them."""

import difflib
from dataclasses import dataclass

from sensorium.drivers.payloads.codec import Codec
from sensorium.drivers.payloads.table import CODECS
from sensorium.errors import ConfigError

UNPACKED = "none"
"""In the place of a codec's name: publish what the driver gives as it is."""


@dataclass(frozen=True, slots=True)
class CodecChoice:
    """A codec as a rig file asks for it: ``name`` or ``name:level``."""

    name: str
    level: int | None = None

    def __str__(self) -> str:
        return self.name if self.level is None else f"{self.name}:{self.level}"

    def load(self) -> Codec:
        """Return the codec.

        Raises:
            ConfigError: If the level is not one of its own.
        """
        codec = CODECS[self.name]
        low, high = codec.levels
        if self.level is not None and (codec.level is None or not low <= self.level <= high):
            allowed = f"from {low} to {high}" if codec.level is not None else "none: write only its name"
            raise ConfigError(f"codec {self}: level {self.level} is not one of its levels, {allowed}")
        return codec


def parse_codec(text: str) -> CodecChoice | None:
    """Return the codec that a rig file names; None for ``none``.

    Raises:
        ConfigError: If there is no such codec, or its level is no number.
    """
    name, separator, level = text.partition(":")
    if name == UNPACKED and not separator:
        return None
    if name not in CODECS:
        near = difflib.get_close_matches(name, [*CODECS, UNPACKED], n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted([*CODECS, UNPACKED]))}"
        raise ConfigError(f"codec {name!r} is unknown; {hint}")
    if separator and not level.isdecimal():
        raise ConfigError(f"codec {text!r}: level {level!r} is not a number; write e.g. {name}:90")
    return CodecChoice(name, int(level) if separator else None)
