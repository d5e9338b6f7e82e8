"""``sensorium episodes``."""

from pathlib import Path
from typing import Annotated

import typer

from sensorium.agent.arguments.options import (
    DEFAULT_SPOOL,
    EpisodeArgument,
    Json,
    SpoolOption,
    command_group,
)

group = command_group("Look at, check and recover episodes.")


@group.command("list")
def episodes_list(spool: SpoolOption = DEFAULT_SPOOL, as_json: Json = False) -> None:
    """List the episodes of a spool with their state."""
    from sensorium.agent.commands.episodes import list_episodes

    raise typer.Exit(list_episodes(spool, as_json=as_json))


@group.command("show")
def episodes_show(
    episode: EpisodeArgument, spool: SpoolOption = DEFAULT_SPOOL, as_json: Json = False
) -> None:
    """Show what an episode says about itself."""
    from sensorium.agent.commands.episodes import show_episode

    raise typer.Exit(show_episode(episode, spool, as_json=as_json))


@group.command("verify")
def episodes_verify(
    episode: Annotated[
        str | None,
        typer.Argument(
            help="Episode folder here or in a store, id, or file:///STORE/ID; none = the whole spool."
        ),
    ] = None,
    spool: SpoolOption = DEFAULT_SPOOL,
    any_signer: Annotated[
        bool, typer.Option("--any-signer", help="Let an unknown signer pass; it is still named.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Is it whole, who signed it, and is that one trusted here; for a spool, is an episode missing, too."""
    from sensorium.agent.commands.verifying import verify_episode, verify_spool

    if episode is None:
        raise typer.Exit(verify_spool(spool, any_signer=any_signer, as_json=as_json))
    raise typer.Exit(verify_episode(episode, any_signer=any_signer, as_json=as_json, spool=spool))


@group.command("recover")
def episodes_recover(spool: SpoolOption = DEFAULT_SPOOL, as_json: Json = False) -> None:
    """Recover and seal what a crash left open."""
    from sensorium.agent.commands.episodes import recover_episodes

    raise typer.Exit(recover_episodes(spool, as_json=as_json))


@group.command("report")
def episodes_report(
    episode: EpisodeArgument,
    spool: SpoolOption = DEFAULT_SPOOL,
    consent: Annotated[
        Path | None, typer.Option("--consent", help="Grants; default: those of the episode's spool.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the HTML report of an episode anew and print its path."""
    from sensorium.agent.commands.episodes import report_episode

    raise typer.Exit(report_episode(episode, spool, as_json=as_json, consent=consent))


@group.command("evict")
def episodes_evict(
    episode: Annotated[
        str | None, typer.Argument(help="Episode folder or id; none = all, oldest first.")
    ] = None,
    store: Annotated[str, typer.Option("--store", help="The store that must hold it.")] = "",
    spool: SpoolOption = DEFAULT_SPOOL,
    free_mb: Annotated[
        int | None, typer.Option("--free-mb", min=1, help="Stop once so many MB were freed.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go; remove nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Remove local copies whose every byte is read back from the store first; manifest and receipt stay."""
    from sensorium.agent.commands.evicting import evict_episodes

    raise typer.Exit(evict_episodes(spool, episode, store, free_mb, dry_run, as_json=as_json))


@group.command("delete")
def episodes_delete(
    episode: Annotated[str, typer.Argument(help="Folder or id of an episode, sealed or evicted.")],
    reason: Annotated[str, typer.Option("--reason", help="Why; it stays, signed.")] = "",
    spool: SpoolOption = DEFAULT_SPOOL,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go; remove nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Remove an episode for good, here and in the store, whether or not anybody else has it."""
    from sensorium.agent.commands.evicting import delete_episode

    raise typer.Exit(delete_episode(spool, episode, reason, dry_run, as_json=as_json))
