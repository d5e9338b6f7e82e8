"""How commands print: documents for machines, plain consoles for people."""

import contextlib
import json
import os
import re
import secrets
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime, timezone
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

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


_COMMANDS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""What a terminal obeys rather than shows, line ends and tabs aside."""


def plain_text(text: str) -> str:
    """Return a text in which all that commands a terminal is a visible sign."""
    return _COMMANDS.sub("\ufffd", text)


_MARK = secrets.token_hex(4)
_STYLED = re.compile(f"<{_MARK} ([a-z ]+)>(.*?)</{_MARK}>", re.DOTALL)


def styled(text: str, style: str) -> str:
    """Return a text for a :class:`PatientConsole` in a style; no text from elsewhere can say the same."""
    return f"<{_MARK} {style}>{text}</{_MARK}>"


class PatientConsole(Console):
    """Falls silent when its reader leaves (`| head`, a closed terminal); shows control characters, sends none.

    rich's own answer is to end the program with code 1 and without a word, in the middle of a recording. Names
    and reasons come from files and devices of others: what would move the cursor, retitle the window or turn the
    reading direction is shown as a sign, and what rich takes for markup stays as it is written.
    """

    def render_str(self, text: str, **how: Any) -> Text:
        style, justify, overflow = how.get("style", ""), how.get("justify"), how.get("overflow")
        found = Text(style=style, justify=justify, overflow=overflow)
        at = 0
        for match in _STYLED.finditer(text):
            found.append(text[at : match.start()])
            found.append(match[2], match[1])
            at = match.end()
        return found.append(text[at:])

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control or not _COMMANDS.search(segment.text):
                yield segment
            else:
                yield Segment(plain_text(segment.text), segment.style)

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
            sys.stderr.write(f"sensorium: {plain_text(problem)}\n")
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
