"""``sensorium rig``."""

from pathlib import Path
from typing import Annotated

import typer

from sensorium.agent.arguments.options import Json, command_group

group = command_group("Write, check and describe rig files.")

RigFile = Annotated[Path, typer.Argument(help="Rig file (YAML).")]


@group.command("check")
def rig_check(
    rig: RigFile = Path("rig.yaml"),
    spool: Annotated[Path | None, typer.Option("--spool", help="Overrides the rig file's spool.")] = None,
    as_json: Json = False,
) -> None:
    """Say everything that is wrong with a rig file, and which streams have no grant; opens no device."""
    from sensorium.agent.commands.rig import check_rig

    raise typer.Exit(check_rig(rig, spool, as_json=as_json))


@group.command("init")
def rig_init(rig: RigFile = Path("rig.yaml"), as_json: Json = False) -> None:
    """Write a first rig file: with what is plugged in, else with simulated sensors."""
    from sensorium.agent.commands.rig import init_rig

    raise typer.Exit(init_rig(rig, as_json=as_json))


@group.command("schema")
def rig_schema() -> None:
    """Print the JSON schema of rig files: keys with types, defaults, limits and units."""
    from sensorium.agent.commands.rig import print_schema

    raise typer.Exit(print_schema())


@group.command("reference")
def rig_reference() -> None:
    """Print every key of a rig file and every driver's options as Markdown: docs/rig.md."""
    from sensorium.agent.commands.rig import print_reference

    raise typer.Exit(print_reference())
