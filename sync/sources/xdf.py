"""XDF files of LabRecorder as they were written: raw stamps, and the clock offsets beside them as evidence.

Nothing is corrected here. What pyxdf makes of the stamps is asked for apart, to be compared with:
its line of offsets takes a dead sender's repeated value for measurements, and its dejittering moves samples onto
one straight line per segment (specs/clocks.md 1.1, 3).
"""

import logging
import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from sensorium.errors import SourceError
from sensorium.sync.sources.xdf_chunks import MAGIC, RawStream, read_chunks, without_values

_MALFORMED = (ArithmeticError, LookupError, ValueError, TypeError, AttributeError, struct.error, OSError)
"""What pyxdf raises at stamps that make no sense to it."""

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
    """Return the stamps and offsets of an XDF file; they are read into memory, the values are not.

    Raises:
        SourceError: If pyxdf is not installed, or the file cannot be read.
    """
    pyxdf = _pyxdf(path)
    logging.getLogger("pyxdf").setLevel(logging.ERROR)  # what it warns of is what the report is about
    raw, problems = read_chunks(path)
    if not raw and problems:
        raise SourceError(f"{path}: cannot be read as XDF: {problems[0]}")
    corrected, failures = _corrected(pyxdf, raw)
    names = [each.name for each in raw]
    streams = tuple(
        _stream(each, f"{each.name}#{each.number}" if names.count(each.name) > 1 else each.name, corrected)
        for each in raw
    )
    return XdfRecording(path, streams, (*problems, *failures))


def _pyxdf(path: Path) -> ModuleType:
    try:
        import pyxdf
    except ImportError as err:
        raise SourceError(f"{path}: XDF files need the pyxdf library: pip install 'sensorium[xdf]'") from err
    found: ModuleType = pyxdf
    return found


def _corrected(pyxdf: ModuleType, raw: list[RawStream]) -> tuple[dict[int, Seconds], tuple[str, ...]]:
    """Return what pyxdf makes of the stamps by stream number, and why it could not, if so."""
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            found, _ = pyxdf.load_xdf(BytesIO(without_values(raw)))
    except (*_MALFORMED, np.linalg.LinAlgError) as err:
        return {}, (f"pyxdf's own corrections fail on this file: {type(err).__name__}: {err}",)
    sizes = {each.number: len(each.stamp_s) for each in raw}
    stamps = {int(each["info"]["stream_id"]): np.asarray(each["time_stamps"], np.float64) for each in found}
    return {number: each for number, each in stamps.items() if len(each) == sizes.get(number)}, ()


def _stream(raw: RawStream, label: str, corrected: Mapping[int, Seconds]) -> XdfStream:
    return XdfStream(
        label,
        raw.kind,
        raw.number,
        raw.host,
        raw.channels,
        raw.rate_hz,
        np.asarray(raw.stamp_s, np.float64),
        np.asarray(raw.offset_at_s, np.float64),
        np.asarray(raw.offset_s, np.float64),
        corrected.get(raw.number),
    )
