"""Options that several commands share."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from sensorium.sync.episode.files import DEFAULT_SPOOL

__all__ = ["DEFAULT_SPOOL", "Despite", "EpisodeArgument", "Json", "Seconds", "SpoolOption", "command_group"]

EpisodeArgument = Annotated[
    str,
    typer.Argument(
        metavar="EPISODE", help="Episode folder here or in a store, its id in the spool, or file:///STORE/ID."
    ),
]

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
SpoolOption = Annotated[Path, typer.Option("--spool", help="Folder that episodes are recorded into.")]
Despite = Annotated[
    bool, typer.Option("--despite-calibration", help="Record although a calibration check failed before.")
]
Seconds = Annotated[float | None, typer.Option("--seconds", min=0.1, help="Stop after so much time.")]


def command_group(about: str) -> typer.Typer:
    """Return a group of commands whose help is plain text: the framed one costs 80 ms and is not wider."""
    return typer.Typer(help=about, no_args_is_help=True, rich_markup_mode=None)


class PlainGroup(TyperGroup):
    """The root of all commands: what a library says of a value to programmers is said in words."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command; an option's value that is wrong is named with what to write."""
        try:
            return super().invoke(ctx)
        except Exception as err:
            errors = getattr(err.__cause__, "errors", None)
            if callable(errors) and hasattr(err, "message"):
                from sensorium.wording import in_words

                name = getattr(getattr(err, "param", None), "name", None) or ""
                err.message = in_words(errors()[0], name)
            raise
