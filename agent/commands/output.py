"""How commands print: documents for machines, plain consoles for people."""

import json
import math
import sys
from collections.abc import Mapping
from datetime import date, datetime, timezone
from typing import Any

from rich.console import Console

from sensorium.timebase import SECOND_NS, HostClock


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


def finite(value: float) -> float | None:
    """Return a number, or None where it is none."""
    return float(value) if math.isfinite(value) else None


def table_console() -> Console:
    """Return a console on standard output that is wide enough for tables in a pipe, too."""
    console = Console()
    return console if console.is_terminal else Console(width=150, soft_wrap=True)


def say_progress(text: str, as_json: bool) -> None:
    """Say on a terminal what is going on."""
    if not as_json and sys.stderr.isatty():
        Console(stderr=True).print(text, highlight=False)


def today() -> date:
    """Return the date in UTC."""
    return datetime.fromtimestamp(HostClock().utc_ns() / SECOND_NS, timezone.utc).date()
