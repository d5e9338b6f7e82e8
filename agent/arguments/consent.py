"""``sensorium consent``."""

from pathlib import Path
from typing import Annotated

import typer

from sensorium.agent.arguments.options import DEFAULT_SPOOL, Json, SpoolOption, command_group

group = command_group("Give, withdraw and show consent grants.")


@group.command("grant")
def consent_grant(
    subject: Annotated[str, typer.Argument(help="Pseudonym: sub:1f0c9a, group:lab or site:hall2.")],
    streams: Annotated[list[str], typer.Option("--stream", help="Stream name or pattern.")] = ["*"],  # noqa: B006
    purposes: Annotated[
        list[str], typer.Option("--purpose", help="record, live, upload, export, ai:train ...")
    ] = [  # noqa: B006
        "record",
        "live",
        "upload",
    ],
    days: Annotated[float, typer.Option("--days", min=0.001, help="Validity from now.")] = 1.0,
    controller: Annotated[str, typer.Option("--controller", help="Who answers for the data.")] = "",
    episode: Annotated[
        str,
        typer.Option("--for", metavar="EPISODE", help="For what this episode captured: its id or folder."),
    ] = "",
    captured_from: Annotated[
        str,
        typer.Option("--captured-from", metavar="UTC", help="For captures since, as 2026-11-21T21:00:00Z."),
    ] = "",
    captured_until: Annotated[
        str, typer.Option("--captured-until", metavar="UTC", help="For captures before.")
    ] = "",
    modalities: Annotated[
        list[str], typer.Option("--modality", help="camera, audio ...; default: all that the streams are.")
    ] = [],  # noqa: B006
    zones: Annotated[
        list[str], typer.Option("--zone", help="Only what devices of this zone (in the rig file) captured.")
    ] = [],  # noqa: B006
    retain_days: Annotated[
        int | None, typer.Option("--retain-days", min=1, help="Nothing is kept for longer.")
    ] = None,
    notice: Annotated[str, typer.Option("--notice", help="Where the subject read what it is for.")] = "",
    jurisdiction: Annotated[str, typer.Option("--jurisdiction", help="Whose law applies, such as DE.")] = "",
    folder: Annotated[
        Path | None, typer.Option("--consent", help="Consent folder; default SPOOL/consent.")
    ] = None,
    spool: SpoolOption = DEFAULT_SPOOL,
    as_json: Json = False,
) -> None:
    """Enter a subject's permission, for captures from now on or for those of an episode."""
    from sensorium.agent.commands.granting import Permission, give_consent

    asked = Permission(
        subject,
        tuple(streams),
        tuple(purposes),
        days,
        controller,
        spool,
        folder,
        episode,
        captured_from,
        captured_until,
        tuple(modalities),
        tuple(zones),
        retain_days,
        notice,
        jurisdiction,
    )
    raise typer.Exit(give_consent(asked, as_json=as_json))


@group.command("withdraw")
def consent_withdraw(
    grant: Annotated[str, typer.Argument(help="Grant id or subject.")],
    folder: Annotated[Path | None, typer.Option("--consent")] = None,
    spool: SpoolOption = DEFAULT_SPOOL,
    as_json: Json = False,
) -> None:
    """End a grant (or all of a subject's) for good, and erase what was recorded under it."""
    from sensorium.agent.commands.consent import withdraw_consent

    raise typer.Exit(withdraw_consent(folder or spool / "consent", spool, grant, as_json=as_json))


@group.command("log")
def consent_log(
    folder: Annotated[Path | None, typer.Option("--consent")] = None,
    spool: SpoolOption = DEFAULT_SPOOL,
    as_json: Json = False,
) -> None:
    """Print what was granted, withdrawn and paused, when, and which key signed it."""
    from sensorium.agent.commands.consent import show_log

    raise typer.Exit(show_log(folder or spool / "consent", as_json=as_json))


@group.command("receipt")
def consent_receipt(
    grant: Annotated[str, typer.Argument(help="Grant id.")],
    folder: Annotated[Path | None, typer.Option("--consent")] = None,
    spool: SpoolOption = DEFAULT_SPOOL,
) -> None:
    """Print what the subject gets: a Kantara consent receipt 1.1, as JSON."""
    from sensorium.agent.commands.consent import print_receipt

    raise typer.Exit(print_receipt(folder or spool / "consent", grant))


@group.command("export")
def consent_export(
    folder: Annotated[Path | None, typer.Option("--consent")] = None,
    spool: SpoolOption = DEFAULT_SPOOL,
) -> None:
    """Print every grant as a record in W3C DPV JSON-LD, with fields of ISO/IEC TS 27560."""
    from sensorium.agent.commands.consent import export_records

    raise typer.Exit(export_records(folder or spool / "consent"))


@group.command("adopt")
def consent_adopt(
    folder: Annotated[Path | None, typer.Option("--consent")] = None,
    spool: SpoolOption = DEFAULT_SPOOL,
    as_json: Json = False,
) -> None:
    """Vouch for grant files that were put into the consent folder by hand: enter them in the log."""
    from sensorium.agent.commands.consent import adopt_grants

    raise typer.Exit(adopt_grants(folder or spool / "consent", as_json=as_json))


@group.command("restart")
def consent_restart(
    folder: Annotated[Path | None, typer.Option("--consent")] = None,
    spool: SpoolOption = DEFAULT_SPOOL,
    as_json: Json = False,
) -> None:
    """Begin a new log after the old one was lost or damaged: paused, and nothing granted."""
    from sensorium.agent.commands.consent import restart_consent

    raise typer.Exit(restart_consent(folder or spool / "consent", as_json=as_json))


@group.command("show")
def consent_show(
    folder: Annotated[Path | None, typer.Option("--consent")] = None,
    spool: SpoolOption = DEFAULT_SPOOL,
    as_json: Json = False,
) -> None:
    """List grants, what they are worth now, and whether a pause is on."""
    from sensorium.agent.commands.consent import show_consent

    raise typer.Exit(show_consent(folder or spool / "consent", as_json=as_json))
