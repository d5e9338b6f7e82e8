"""The command line. Nothing heavy is imported here: each command loads what it needs when it is called."""

import errno
import json
import os
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from sensorium import __version__
from sensorium.agent.arguments import calibration, consent, episodes, export, keys, rig, sync, upload
from sensorium.agent.arguments.options import DEFAULT_SPOOL, Despite, Json, PlainGroup, Seconds, SpoolOption
from sensorium.errors import SensoriumError

_COMPLETE = "_SENSORIUM_COMPLETE"
"""Set by the shell when it asks what could come next."""

app = typer.Typer(
    name="sensorium",
    cls=PlainGroup,
    help="Capture multisensor training data whose episodes can prove themselves.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for name, module in (
    ("episodes", episodes),
    ("consent", consent),
    ("upload", upload),
    ("calibration", calibration),
    ("sync", sync),
    ("keys", keys),
    ("rig", rig),
):
    app.add_typer(module.group, name=name)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"sensorium {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for spool, store and rig.")] = Path(
        "sensorium-demo"
    ),
    seconds: Annotated[float, typer.Option("--seconds", min=1.0, help="Length of the recording.")] = 10.0,
    no_consent: Annotated[
        bool, typer.Option("--no-consent", help="Withdraw the demo's grant first.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", help="World and noise of the simulation.")] = 1,
    as_json: Json = False,
) -> None:
    """Record a simulated rig, check it, upload it to a local store, verify it there, and report."""
    from sensorium.agent.commands.sessions import run_demo

    raise typer.Exit(run_demo(out, seconds, is_granted=not no_consent, seed=seed, as_json=as_json))


@app.command()
def record(
    rig: Annotated[Path, typer.Argument(help="Rig file (YAML).")],
    spool: Annotated[Path | None, typer.Option("--spool", help="Overrides the rig file's spool.")] = None,
    seconds: Seconds = None,
    operator: Annotated[str, typer.Option("--operator", help="Who records; some rigs require it.")] = "",
    despite_calibration: Despite = False,
    as_json: Json = False,
) -> None:
    """Record a rig until Ctrl-C, SIGTERM, or the time is over; seal what was recorded."""
    from sensorium.agent.session.rig import load_rig

    found = load_rig(rig)  # before all that recording needs: who mistyped a key waits for nothing else
    from sensorium.agent.commands.sessions import run_record

    code = run_record(
        found, spool, seconds, operator, despite_calibration=despite_calibration, as_json=as_json
    )
    raise typer.Exit(code)


@app.command()
def replay(
    source: Annotated[
        str,
        typer.Argument(help="Episode (folder, id, file:///STORE/ID), pcap, ROS 1/2 bag, MCAP, EuRoC folder."),
    ],
    rate: Annotated[str, typer.Option("--rate", help="Times real time, or max.")] = "1",
    loop: Annotated[bool, typer.Option("--loop", help="Begin again at the end, until stopped.")] = False,
    spool: Annotated[Path, typer.Option("--spool", help="Where the replay is recorded.")] = Path(
        "replay-spool"
    ),
    seconds: Seconds = None,
    calibration: Annotated[Path | None, typer.Option("--calibration", help="Calibration to check.")] = None,
    reference: Annotated[str | None, typer.Option("--reference", help="Stream to align on.")] = None,
    tolerance_ms: Annotated[float, typer.Option("--tolerance-ms", min=0.001, help="Of a match.")] = 10.0,
    consent: Annotated[
        Path | None,
        typer.Option(
            "--consent", help="Folder of the consent log; default: the episode's spool, or --spool."
        ),
    ] = None,
    not_personal: Annotated[
        list[str], typer.Option("--not-personal", help="Stream or topic that shows nobody, though it could.")
    ] = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Publish a recording as if it were live, and record it under its own clock."""
    from sensorium.agent.commands.sessions import run_replay

    code = run_replay(
        source,
        rate,
        loop,
        spool,
        seconds,
        calibration,
        reference,
        tolerance_ms=tolerance_ms,
        consent=consent,
        not_personal=not_personal,
        as_json=as_json,
    )
    raise typer.Exit(code)


def _tell_agent(spool: Path, as_json: bool, cmd: str, **fields: Any) -> NoReturn:
    from sensorium.agent.commands.running import tell_agent

    raise typer.Exit(tell_agent(spool, cmd, fields, as_json=as_json))


@app.command()
def start(
    spool: SpoolOption = DEFAULT_SPOOL, despite_calibration: Despite = False, as_json: Json = False
) -> None:
    """Begin an episode in a running agent."""
    _tell_agent(spool, as_json, "start", despite_calibration=despite_calibration)


@app.command()
def stop(spool: SpoolOption = DEFAULT_SPOOL, as_json: Json = False) -> None:
    """End and seal the episode of a running agent; its drivers go on."""
    _tell_agent(spool, as_json, "stop")


@app.command()
def discard(spool: SpoolOption = DEFAULT_SPOOL, as_json: Json = False) -> None:
    """End the episode of a running agent and delete it."""
    _tell_agent(spool, as_json, "discard")


@app.command()
def mark(
    text: Annotated[str, typer.Argument(help="What happened.")],
    spool: SpoolOption = DEFAULT_SPOOL,
    as_json: Json = False,
) -> None:
    """Put a mark at now into the episode of a running agent."""
    _tell_agent(spool, as_json, "mark", text=text)


@app.command()
def pause(spool: SpoolOption = DEFAULT_SPOOL, as_json: Json = False) -> None:
    """Privacy pause: store nothing personal from now on. Survives a restart of the agent."""
    from sensorium.agent.commands.running import run_pause

    raise typer.Exit(run_pause(spool, "pause", as_json=as_json))


@app.command()
def resume(spool: SpoolOption = DEFAULT_SPOOL, as_json: Json = False) -> None:
    """End the privacy pause."""
    from sensorium.agent.commands.running import run_pause

    raise typer.Exit(run_pause(spool, "resume", as_json=as_json))


@app.command()
def status(spool: SpoolOption = DEFAULT_SPOOL, as_json: Json = False) -> None:
    """Show what a running agent records."""
    _tell_agent(spool, as_json, "status")


@app.command()
def devices(as_json: Json = False) -> None:
    """List the drivers, their options, and what is plugged in."""
    from sensorium.agent.commands.devices import list_devices

    raise typer.Exit(list_devices(as_json=as_json))


app.command("export")(export.export)


class Shell(str, Enum):
    """A shell that can complete commands and options."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


@app.command()
def completion(shell: Annotated[Shell, typer.Argument(help="bash, zsh or fish.")]) -> None:
    """Print what lets a shell complete commands and options: source <(sensorium completion bash)."""
    from typer.completion import get_completion_inspect_parameters, shell_complete

    get_completion_inspect_parameters()  # makes the shells known
    command = typer.main.get_command(app)
    raise typer.Exit(shell_complete(command, {}, "sensorium", _COMPLETE, f"source_{shell.value}"))


def main() -> None:
    """Run the command line; every error becomes one line and an exit code."""
    output = sys.stdout
    if _COMPLETE in os.environ:
        from typer.completion import get_completion_inspect_parameters

        get_completion_inspect_parameters()  # makes the shells known
    try:
        app(prog_name="sensorium")
    except SensoriumError as err:
        _fail(str(err), err.exit_code)
    except SystemExit:
        if sys.stdout is output:
            raise
        os._exit(0)  # the reader of our output has left: typer's word for it is a silent 1
    except OSError as err:
        _fail(_of_the_system(err), 3)
    except MemoryError:
        _fail("there is not enough memory for this; end other programs, or look at the input's size", 3)
    except Exception as err:  # noqa: BLE001 - the one place; users get a line, the log the rest
        _fail(_internal(err), 3)


def _fail(message: str, code: int) -> NoReturn:
    from sensorium.agent.commands.output import plain_text
    from sensorium.masking import masked

    message = masked(message)
    if "--json" in sys.argv:
        print(json.dumps({"error": message, "exit_code": code}))  # noqa: T201
    for line in message.splitlines():
        print(f"sensorium: {plain_text(line)}", file=sys.stderr)  # noqa: T201
    sys.exit(code)


_ADVICE = {
    errno.ENOSPC: "the disk has no room, or no inodes, left: delete files there",
    errno.EDQUOT: "your quota on that disk is used up: delete files there",
    errno.EIO: "the disk cannot be read or written: look at its cable and the kernel's log",
    errno.ENODEV: "the disk is gone: mount it again",
    errno.ENOTCONN: "the mount is gone: mount it again",
    errno.ESTALE: "the mount is gone: mount it again",
    errno.EROFS: "the disk is mounted read-only",
    errno.EMFILE: "too many files are open: raise `ulimit -n`",
    errno.ENFILE: "too many files are open on this machine",
}


def _of_the_system(err: OSError) -> str:
    """Return what the system refused, of which file, and what to do."""
    where = f"{err.filename}: " if err.filename else ""
    advice = _ADVICE.get(err.errno or 0, "look at the path and its permissions")
    return f"{where}{err.strerror or err} ({type(err).__name__}); {advice}"


def _internal(err: Exception) -> str:
    import tempfile
    import traceback

    from sensorium.masking import masked

    with tempfile.NamedTemporaryFile("w", prefix="sensorium-error-", suffix=".log", delete=False) as file:
        file.write(masked("".join(traceback.format_exception(err))))
    return f"internal error: {type(err).__name__}: {err}; details are in {file.name}, please report them"


if __name__ == "__main__":
    main()
