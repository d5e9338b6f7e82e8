"""Rows of the data.csv files of ASL folders, as many tools write them: other delimiters, units and headings.

A first look at the file decides what its rows mean; rows that do not fit are unreadable, never guessed one by one.
"""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from statistics import median
from typing import TextIO

from sensorium.sync.sources.message_stream import LATEST_STAMP_NS
from sensorium.sync.sources.stamp_units import EARLIEST_UTC_NS as _EARLIEST_NS
from sensorium.sync.sources.stamp_units import LATEST_UTC_NS as _LATEST_NS
from sensorium.timebase import SECOND_NS

_LOOK_ROWS = 200
_MAX_LINE_CHARACTERS = 1 << 16
_DELIMITERS = (",", ";", "\t")
_NUMBER = re.compile(r"[+]?\d{1,20}(\.\d{0,20})?([eE][+-]?\d{1,2})?")
_UNIT = re.compile(r"[\[(]\s*(ns|nsec|us|µs|usec|ms|msec|s|sec|seconds)\s*[\])]", re.IGNORECASE)
_NS_OF = {"ns": 1, "us": 1_000, "µs": 1_000, "ms": 1_000_000, "s": SECOND_NS}
_WORDS = {1: "nanoseconds", 1_000: "microseconds", 1_000_000: "milliseconds", SECOND_NS: "seconds"}

Steps = tuple[int, int]
"""Shortest and longest credible nanoseconds from one row to the next."""

CAMERA_STEPS: Steps = (SECOND_NS // 1000, 20 * SECOND_NS)
IMU_STEPS: Steps = (SECOND_NS // 20_000, SECOND_NS)


@dataclass(frozen=True, slots=True)
class Row:
    """One row: its stamp, None if the row cannot be read, and the cells after it."""

    stamp_ns: int | None
    cells: list[str]


@dataclass(frozen=True, slots=True)
class _Layout:
    delimiter: str | None
    tick_ns: int
    headings: list[str]


class RowFile:
    """One data.csv.

    Attributes:
        unit_words: The unit of the stamps in words if it is not nanoseconds, and how it was told; "" otherwise.
    """

    def __init__(self, path: Path, credible: Steps) -> None:
        """Look at the beginning of the file.

        Args:
            credible: Tells in which unit the stamps make sense.
        """
        self._path = path
        with self._open() as file:
            lines = list(itertools.islice(_lines(file), _LOOK_ROWS))
        self._layout, self.unit_words = _look(lines, credible)

    @property
    def headings(self) -> list[str]:
        """What stands above the cells after the stamp; [] without a heading."""
        return self._layout.headings

    def rows(self, cells: int) -> Iterator[Row]:
        """Yield the rows; those without just so many cells after the stamp cannot be read.

        Empty cells at the end of a row are the doing of spreadsheets and do not count.
        """
        with self._open() as file:
            for number, line in enumerate(line for line in _lines(file) if not line.startswith("#")):
                stamp, *rest = _cells(line, self._layout.delimiter)
                stamp_ns = _stamp_ns(stamp, self._layout.tick_ns)
                if stamp_ns is None and number == 0 and _is_heading(stamp):
                    continue
                yield Row(stamp_ns if len(rest) == cells else None, rest)

    def _open(self) -> TextIO:
        return self._path.open(encoding="utf-8-sig", errors="replace")


def _lines(file: TextIO) -> Iterator[str]:
    """Yield the lines that are not empty; of one that is too long for a row its end."""
    while line := file.readline(_MAX_LINE_CHARACTERS):
        while not line.endswith("\n") and (more := file.readline(_MAX_LINE_CHARACTERS)):
            line = more
        if text := line.strip():
            yield text


def _cells(line: str, delimiter: str | None) -> list[str]:
    cells = [cell.strip().strip('"') for cell in line.split(delimiter)]
    while len(cells) > 1 and not cells[-1]:
        cells.pop()
    return cells


def _is_heading(stamp: str) -> bool:
    return any(character.isalpha() for character in stamp) and _number(stamp) is None


def _look(lines: list[str], credible: Steps) -> tuple[_Layout, str]:
    """Return what rows mean, and what is to be said about it."""
    marked = [line for line in lines if line.startswith("#")]
    rows = [line for line in lines if not line.startswith("#")]
    delimiter = next((mark for mark in _DELIMITERS if sum(mark in row for row in rows) * 2 > len(rows)), None)
    if rows and _is_heading(_cells(rows[0], delimiter)[0]):
        marked.append(rows.pop(0))
    stamps = [value for row in rows if (value := _number(_cells(row, delimiter)[0])) is not None]
    stated = [found[1] for line in marked if (found := _UNIT.search(_cells(line, delimiter)[0]))]
    tick_ns, how = _tick_ns(stamps, _NS_OF[_short(stated[-1])] if stated else None, credible)
    words = f"stamps are {_WORDS[tick_ns]} ({how}), read as such (factor {tick_ns})" if tick_ns > 1 else ""
    headings = [_cells(line, delimiter)[1:] for line in marked]
    return _Layout(delimiter, tick_ns, headings[-1] if headings else []), words


def _short(unit: str) -> str:
    low = unit.lower()
    return "s" if low.startswith("s") else low.removesuffix("ec")


def _tick_ns(stamps: list[Decimal], stated_ns: int | None, credible: Steps) -> tuple[int, str]:
    """Return the nanoseconds of one unit of the stamps, and what tells it."""
    steps = [abs(one - other) for one, other in itertools.pairwise(stamps)]
    step = median(steps) if steps else Decimal(0)
    fitting = [tick_ns for tick_ns in _WORDS if not step or credible[0] <= step * tick_ns <= credible[1]]
    if stated_ns in fitting:
        return stated_ns or 1, "as the heading says"
    if any(value != value.to_integral_value() for value in stamps):
        return SECOND_NS, "by their decimals"
    if not step or not fitting:
        return 1, ""
    dated = [tick_ns for tick_ns in fitting if _EARLIEST_NS <= stamps[0] * tick_ns <= _LATEST_NS]
    return (dated or fitting)[0], "by how far apart they lie"


def _number(text: str) -> Decimal | None:
    if not text.isascii() or _NUMBER.fullmatch(text) is None:
        return None
    try:
        return Decimal(text)
    except InvalidOperation:
        return None


def _stamp_ns(text: str, tick_ns: int) -> int | None:
    if text.isdigit() and text.isascii() and len(text) <= 19:  # the common case, without decimals
        stamp_ns = int(text) * tick_ns
        return stamp_ns if stamp_ns <= LATEST_STAMP_NS else None
    value = _number(text)
    if value is None:
        return None
    stamp_ns = int((value * tick_ns).to_integral_value())
    return stamp_ns if 0 <= stamp_ns <= LATEST_STAMP_NS else None
