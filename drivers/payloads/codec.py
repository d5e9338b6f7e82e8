"""What a codec is, and the table of codecs by their name in the rig file."""

import difflib
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sensorium.drivers.frame import Encoding, StreamInfo
from sensorium.errors import ConfigError

Payload = bytes | memoryview

Pack = Callable[[Payload, int], bytes | None]
"""From a frame's payload and count to the packed payload; None when this one cannot be packed."""

CODECS = {
    "jpeg": "sensorium.drivers.payloads.images:JPEG",
    "png": "sensorium.drivers.payloads.images:PNG",
    "range_image": "sensorium.drivers.payloads.range_image:CODEC",
    "columns": "sensorium.drivers.payloads.columns:CODEC",
    "depth": "sensorium.drivers.payloads.depth:CODEC",
    "pcm": "sensorium.drivers.payloads.audio:CODEC",
    "flac": "sensorium.drivers.payloads.flac:CODEC",
}
"""Name in the rig file -> ``module:codec``; lazy, so that a host loads only the libraries that it needs."""

DEFAULTS: Mapping[str, str] = {
    Encoding.OUSTER: "range_image",
    Encoding.COLUMNS: "columns",
    Encoding.MONO16: "depth",
}
"""Encoding -> the exact codec that packs it where neither the rig file nor the device's options say anything."""

UNPACKED = "none"
"""In the place of a codec's name: publish what the driver gives as it is."""


@dataclass(frozen=True, slots=True)
class Codec:
    """How payloads are packed, frame by frame.

    Attributes:
        sources: Encodings that it packs.
        encoding: The encoding that comes out.
        is_exact: Unpacking gives the same values, bit for bit.
        level: Quality or effort where the rig file names none; None = the codec has no such setting.
        levels: The lowest and highest level allowed.
        declare: The stream as it is once packed, but for ``encoding``.
        packer: From the stream as the driver declares it, and a level, to what packs its payloads; called
            once per stream, then given its frames in order.
    """

    name: str
    sources: frozenset[str]
    encoding: str
    is_exact: bool
    declare: Callable[[StreamInfo], StreamInfo]
    packer: Callable[[StreamInfo, int], Pack]
    level: int | None = None
    levels: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class CodecChoice:
    """A codec as a rig file asks for it: ``name`` or ``name:level``."""

    name: str
    level: int | None = None

    def __str__(self) -> str:
        return self.name if self.level is None else f"{self.name}:{self.level}"

    def load(self) -> Codec:
        """Import and return the codec.

        Raises:
            ConfigError: If the level is not one of its own.
        """
        module, _, attribute = CODECS[self.name].partition(":")
        codec: Codec = getattr(importlib.import_module(module), attribute)
        low, high = codec.levels
        if self.level is not None and (codec.level is None or not low <= self.level <= high):
            allowed = f"from {low} to {high}" if codec.level is not None else "none: write only its name"
            raise ConfigError(f"codec {self}: level {self.level} is not one of its levels, {allowed}")
        return codec


def parse_codec(text: str) -> CodecChoice | None:
    """Return the codec that a rig file names; None for ``none``. Imports no codec.

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
