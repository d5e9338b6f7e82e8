"""``sensorium sync``."""

from pathlib import Path
from typing import Annotated

import typer

from sensorium.agent.arguments.options import EpisodeArgument, Json, Seconds, command_group

group = command_group("Look at clocks and alignment.")


@group.command("report")
def sync_report(
    episode: Annotated[
        str, typer.Argument(help="Episode (folder, id, or file:///STORE/ID), or an XDF file of LabRecorder.")
    ],
    html: Annotated[
        Path | None,
        typer.Option(
            "--html",
            help="Where the page with plots goes; default EPISODE/sync-report.html, or beside the file.",
        ),
    ] = None,
    content: Annotated[
        bool,
        typer.Option(
            "--content/--no-content", help="Ask the sensors' own data whether the clocks are right."
        ),
    ] = True,
    clap_m: Annotated[
        float | None,
        typer.Option(
            "--clap-m", min=0.0, help="Metres from the place of the claps to the microphone, to 0.1 m."
        ),
    ] = None,
    filter_delay: Annotated[
        list[str] | None,
        typer.Option("--filter-delay", help="STREAM=MS: group delay of a sensor's filter; may be repeated."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what a recording's clocks did, how certain they are, and how its streams align."""
    from sensorium.agent.commands.sync import content_inputs, report_sync

    inputs = content_inputs(clap_m, filter_delay or []) if content else None
    raise typer.Exit(report_sync(episode, html, inputs=inputs, as_json=as_json))


@group.command("clocks")
def sync_clocks(
    rig: Annotated[Path, typer.Argument(help="Rig file (YAML).")],
    seconds: Seconds = None,
    as_json: Json = False,
) -> None:
    """Watch the host's clock, PTP, chrony and the remote nodes of a rig, without recording."""
    from sensorium.agent.commands.clocks import watch_clocks

    raise typer.Exit(watch_clocks(rig, seconds, as_json=as_json))


@group.command("serve")
def sync_serve(
    key: Annotated[Path, typer.Option("--key", help="File of the key that both machines share (mode 0600).")],
    bind: Annotated[str, typer.Option("--bind", help="Address to answer on.")] = "0.0.0.0",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="UDP port; 0 = any.")] = 5005,
    as_json: Json = False,
) -> None:
    """On a remote node: answer the agent's clock probes, so that the node's stamps can be used."""
    from sensorium.agent.commands.clocks import serve_probes

    raise typer.Exit(serve_probes(bind, port, key, as_json=as_json))


@group.command("remap")
def sync_remap(
    episode: EpisodeArgument,
    as_json: Json = False,
) -> None:
    """Estimate an episode's capture times anew from both sides, into a file beside its recordings."""
    from sensorium.agent.commands.sync import remap_sync

    raise typer.Exit(remap_sync(episode, as_json=as_json))
