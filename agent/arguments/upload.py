"""``sensorium upload``."""

from pathlib import Path
from typing import Annotated

import typer

from sensorium.agent.arguments.options import DEFAULT_SPOOL, Json, SpoolOption, command_group

group = command_group("Deliver sealed episodes to the store and verify them there.")


@group.callback(invoke_without_command=True)
def upload(
    context: typer.Context,
    store: Annotated[str, typer.Option("--store", help="file:///path of the central store.")] = "",
    once: Annotated[bool, typer.Option("--once", help="Handle every episode once, then end.")] = False,
    spool: SpoolOption = DEFAULT_SPOOL,
    folder: Annotated[Path | None, typer.Option("--consent", help="Default SPOOL/consent.")] = None,
    as_json: Json = False,
) -> None:
    """Deliver sealed episodes to the store and verify them there; until Ctrl-C, or with --once."""
    if context.invoked_subcommand is None:
        from sensorium.agent.commands.upload import upload_spool

        raise typer.Exit(upload_spool(spool, store, folder or spool / "consent", once, as_json=as_json))


@group.command("status")
def upload_status(spool: SpoolOption = DEFAULT_SPOOL, as_json: Json = False) -> None:
    """Show the upload state of every episode of a spool."""
    from sensorium.agent.commands.episodes import list_episodes

    raise typer.Exit(list_episodes(spool, as_json=as_json))


@group.command("verify")
def upload_verify(
    store: Annotated[str, typer.Option("--store", help="file:///path of the central store.")] = "",
    sample: Annotated[
        float,
        typer.Option("--sample", min=0.0, max=1.0, help="Read this share of the files, drawn at random."),
    ] = 1.0,
    spool: SpoolOption = DEFAULT_SPOOL,
    as_json: Json = False,
) -> None:
    """Read back what the store holds of each verified episode; one that it lost is not verified any more."""
    from sensorium.agent.commands.evicting import verify_uploads

    raise typer.Exit(verify_uploads(spool, store, sample, as_json=as_json))
