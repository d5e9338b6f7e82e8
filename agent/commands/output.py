"""How commands print: documents for machines, plain consoles for people."""

import contextlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
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


class PatientConsole(Console):
    """Falls silent when its reader leaves (`| head`, a closed terminal).

    rich's own answer is to end the program with code 1 and without a word, in the middle of a recording.
    """

    def on_broken_pipe(self) -> None:
        self.quiet = True
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.file.fileno())
            os.close(nowhere)


def table_console() -> Console:
    """Return a console on standard output; in a pipe it is wide enough for tables."""
    found = PatientConsole(highlight=False)
    return found if found.is_terminal else PatientConsole(highlight=False, width=150)


def say_why(problems: Sequence[str]) -> None:
    """Say on standard error why a command ends in an exit code other than 0."""
    try:
        for problem in problems:
            sys.stderr.write(f"sensorium: {problem}\n")
        sys.stderr.flush()
    except OSError:  # nobody is there to hear it; the exit code says it, too
        pass


def say_progress(text: str, as_json: bool) -> None:
    """Say on a terminal what is going on."""
    if not as_json and sys.stderr.isatty():
        PatientConsole(stderr=True, highlight=False).print(text, soft_wrap=True)


def tell(text: str) -> None:
    """Say on stderr what somebody has to do or know now, whoever reads it and in whatever form the result comes."""
    PatientConsole(stderr=True, highlight=False).print(text, soft_wrap=True, markup=False)


def today() -> date:
    """Return the date in UTC."""
    return datetime.fromtimestamp(HostClock().utc_ns() / SECOND_NS, timezone.utc).date()
