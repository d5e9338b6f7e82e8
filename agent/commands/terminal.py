"""The terminal: a console that obeys nobody else's text, tables, colours, progress."""

import contextlib
import os
import re
import secrets
import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from sensorium.agent.commands.output import COMMANDS, plain_text

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
            if segment.control or not COMMANDS.search(segment.text):
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


def say_progress(text: str, as_json: bool) -> None:
    """Say on a terminal what is going on."""
    if not as_json and sys.stderr.isatty():
        PatientConsole(stderr=True, highlight=False).print(text, soft_wrap=True)


def tell(text: str) -> None:
    """Say on stderr what somebody has to do or know now, whoever reads it and in whatever form the result comes."""
    PatientConsole(stderr=True, highlight=False).print(text, soft_wrap=True, markup=False)
