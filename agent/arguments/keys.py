"""``sensorium keys``."""

from typing import Annotated

import typer

from sensorium.agent.arguments.options import Json, command_group

group = command_group("Keys of this machine, and whose signatures count on it.")
_Role = Annotated[str, typer.Option("--role", help="device, operator or authority.")]


@group.command("init")
def keys_init(as_json: Json = False) -> None:
    """Make the keys of this machine, where there are none yet (the first use of each does that, too)."""
    from sensorium.agent.commands.keys import make_keys

    raise typer.Exit(make_keys(as_json=as_json))


@group.command("show")
def keys_show(as_json: Json = False) -> None:
    """List the keys that are known here, and what each may say."""
    from sensorium.agent.commands.keys import show_keys

    raise typer.Exit(show_keys(as_json=as_json))


@group.command("enroll")
def keys_enroll(
    public: Annotated[
        str, typer.Argument(help="Public key in hex, a file that holds it, or one of `keys rotate`.")
    ],
    name: Annotated[str, typer.Option("--name", help="Whose it is: robot 7, ada.")] = "",
    role: _Role = "device",
    as_json: Json = False,
) -> None:
    """Let what another machine or person signed count here."""
    from sensorium.agent.commands.keys import enroll_key

    raise typer.Exit(enroll_key(public, role, name, as_json=as_json))


@group.command("trust")
def keys_trust(
    episode: Annotated[str, typer.Argument(help="Episode folder whose signer is to be trusted.")],
    name: Annotated[str, typer.Option("--name", help="Whose it is.")],
    as_json: Json = False,
) -> None:
    """Enroll the key that signed an episode; compare its id with what its owner says first."""
    from sensorium.agent.commands.keys import trust_signer

    raise typer.Exit(trust_signer(episode, name, as_json=as_json))


@group.command("rotate")
def keys_rotate(role: _Role = "device", as_json: Json = False) -> None:
    """Replace a key of this machine; what the old one signed until now still counts."""
    from sensorium.agent.commands.keys import rotate_key

    raise typer.Exit(rotate_key(role, as_json=as_json))


@group.command("revoke")
def keys_revoke(
    key: Annotated[str, typer.Argument(help="Beginning of the key's id.")],
    reason: Annotated[str, typer.Option("--reason", help="Why; shown wherever the key turns up.")],
    as_json: Json = False,
) -> None:
    """Let nothing count any more that a key signed, whenever that was."""
    from sensorium.agent.commands.keys import revoke_key

    raise typer.Exit(revoke_key(key, reason, as_json=as_json))
