"""``sensorium export``."""

from pathlib import Path
from typing import Annotated

import typer

from sensorium.agent.arguments.options import EpisodeArgument, Json


def export(
    episode: EpisodeArgument,
    to: Annotated[
        str, typer.Option("--to", help="csv or parquet (numeric streams), or mcap (one file for viewers).")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to make; nothing is overwritten.")],
    streams: Annotated[list[str], typer.Option("--stream", help="Only this stream; may be repeated.")] = [],  # noqa: B006
    consent: Annotated[
        Path | None,
        typer.Option(
            "--consent", help="Grants; default: those of the spool, or the consent state beside a copy."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write an episode in another format; personal streams need a grant for the purpose export."""
    from sensorium.agent.commands.export import run_export

    raise typer.Exit(run_export(episode, to, output, streams, consent, as_json=as_json))
