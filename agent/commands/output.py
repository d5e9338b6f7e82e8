"""How commands print: documents for machines, plain consoles for people."""

import json
import sys
from collections.abc import Mapping
from datetime import date, datetime, timezone
from typing import Any

from rich.console import Console

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


def table_console() -> Console:
    """Return a console on standard output; in a pipe it is wide enough for tables."""
    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=150)


def say_progress(text: str, as_json: bool) -> None:
    """Say on a terminal what is going on."""
    if not as_json and sys.stderr.isatty():
        Console(stderr=True, highlight=False).print(text, soft_wrap=True)


def tell(text: str) -> None:
    """Say on stderr what somebody has to do or know now, whoever reads it and in whatever form the result comes."""
    Console(stderr=True, highlight=False).print(text, soft_wrap=True, markup=False)


def today() -> date:
    """Return the date in UTC."""
    return datetime.fromtimestamp(HostClock().utc_ns() / SECOND_NS, timezone.utc).date()
