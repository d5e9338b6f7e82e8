"""XDF files of LabRecorder as they were written: raw stamps, and the clock offsets beside them as evidence.

Nothing is corrected here. pyxdf reads the chunks; its own corrections are asked for apart, to be compared with:
its line of offsets takes a dead sender's repeated value for measurements, and its dejittering moves samples onto
one straight line per segment (specs/clocks.md 1.1, 3).
"""

import logging
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sensorium.errors import SourceError

MAGIC = b"XDF:"
_MALFORMED = (ArithmeticError, LookupError, ValueError, TypeError, AttributeError, struct.error, OSError)
"""What pyxdf lets through of a file that is none, or ends in the middle."""

Seconds = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class XdfStream:
    """One stream of a file.

    Attributes:
        label: Its name; with its number in the file where several have the same.
        rate_hz: As declared; 0.0 = irregular.
        stamp_s: (n,) stamps of the samples, seconds of the sender's clock, in file order.
        offset_at_s: (k,) when the recorder measured the offset, seconds of the sender's clock.
        offset_s: (k,) what to add to the sender's clock to get the recorder's.
        pyxdf_s: (n,) what ``pyxdf.load_xdf`` makes of the stamps by default; None where it fails on them.
    """

    label: str
    kind: str
    number: int
    host: str
    channels: int
    rate_hz: float
    stamp_s: Seconds
    offset_at_s: Seconds
    offset_s: Seconds
    pyxdf_s: Seconds | None


@dataclass(frozen=True, slots=True)
class XdfRecording:
    """A file: its streams in file order, and what could not be read of it, in sentences."""

    path: Path
    streams: tuple[XdfStream, ...]
    problems: tuple[str, ...]


def is_xdf(path: Path) -> bool:
    """Return whether a file begins as XDF does."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def read_xdf(path: Path) -> XdfRecording:
    """Return the stamps and offsets of an XDF file; all of it is read into memory.

    Raises:
        SourceError: If pyxdf is not installed, or the file cannot be read.
    """
    pyxdf = _pyxdf(path)
    logging.getLogger("pyxdf").setLevel(logging.ERROR)  # what it warns of is what the report is about
    try:
        raw, _ = pyxdf.load_xdf(str(path), synchronize_clocks=False, dejitter_timestamps=False)
    except _MALFORMED as err:
        raise SourceError(f"{path}: cannot be read as XDF: {type(err).__name__}: {err}") from err
    corrected, problems = _corrected(pyxdf, path, raw)
    names = [_text(each, "name") for each in raw]
    streams = tuple(
        _stream(each, f"{name}#{_number(each)}" if names.count(name) > 1 else name, corrected)
        for each, name in zip(raw, names, strict=True)
    )
    return XdfRecording(path, streams, problems)


def _pyxdf(path: Path) -> ModuleType:
    try:
        import pyxdf
    except ImportError as err:
        raise SourceError(f"{path}: XDF files need the pyxdf library: pip install 'sensorium[xdf]'") from err
    found: ModuleType = pyxdf
    return found


def _corrected(pyxdf: ModuleType, path: Path, raw: list[Any]) -> tuple[dict[int, Seconds], tuple[str, ...]]:
    """Return what pyxdf makes of the stamps by stream number, and why it could not, if so."""
    try:
        found, _ = pyxdf.load_xdf(str(path))
    except (*_MALFORMED, np.linalg.LinAlgError) as err:
        return {}, (f"pyxdf's own corrections fail on this file: {type(err).__name__}: {err}",)
    sizes = {_number(each): len(each["time_stamps"]) for each in raw}
    stamps = {_number(each): np.asarray(each["time_stamps"], np.float64) for each in found}
    return {number: each for number, each in stamps.items() if len(each) == sizes.get(number)}, ()


def _stream(raw: Mapping[str, Any], label: str, corrected: Mapping[int, Seconds]) -> XdfStream:
    number = _number(raw)
    return XdfStream(
        label,
        _text(raw, "type"),
        number,
        _text(raw, "hostname"),
        int(float(_text(raw, "channel_count") or 0)),
        float(_text(raw, "nominal_srate") or 0.0),
        np.asarray(raw["time_stamps"], np.float64),
        np.asarray(raw["clock_times"], np.float64),
        np.asarray(raw["clock_values"], np.float64),
        corrected.get(number),
    )


def _number(raw: Mapping[str, Any]) -> int:
    return int(raw["info"]["stream_id"])


def _text(raw: Mapping[str, Any], key: str) -> str:
    values = raw["info"].get(key) or [""]
    return str(values[0] or "")
