"""How commands print: documents for machines, plain lines for people.

What every command needs stands here and loads nothing; tables and colours are in ``terminal.py``.
"""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from datetime import date, datetime, timezone
from typing import Any

from sensorium.timebase import SECOND_NS, HostClock
from sensorium.verdict import finite


def print_json(document: Any) -> None:
    """Print a document for machines; numbers that JSON has no word for become null."""
    sys.stdout.write(json.dumps(_plain(document), indent=1, allow_nan=False) + "\n")


def print_json_line(document: Any) -> None:
    """Print a document on one line, now: one of many for a reader that follows."""
    sys.stdout.write(json.dumps(_plain(document), allow_nan=False) + "\n")
    sys.stdout.flush()


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(found) for key, found in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(found) for found in value]
    return finite(value) if isinstance(value, float) else value


COMMANDS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""What a terminal obeys rather than shows, line ends and tabs aside."""


def plain_text(text: str) -> str:
    """Return a text in which all that commands a terminal is a visible sign."""
    return COMMANDS.sub("\ufffd", text)


def say(text: str) -> None:
    """Print a plain line, now: somebody may follow."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def say_why(problems: Sequence[str]) -> None:
    """Say on standard error why a command ends in an exit code other than 0."""
    try:
        for problem in problems:
            sys.stderr.write(f"sensorium: {plain_text(problem)}\n")
        sys.stderr.flush()
    except OSError:  # nobody is there to hear it; the exit code says it, too
        pass


def today() -> date:
    """Return the date in UTC."""
    return datetime.fromtimestamp(HostClock().utc_ns() / SECOND_NS, timezone.utc).date()
