"""The command line. Nothing heavy is imported here: each command loads what it needs when it is called."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from sensorium.errors import SensoriumError

app = typer.Typer(
    name="sensorium",
    help="Capture multisensor training data whose episodes can prove themselves.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
episodes_app = typer.Typer(help="Look at, check and recover episodes.", no_args_is_help=True)
consent_app = typer.Typer(help="Give, withdraw and show consent grants.", no_args_is_help=True)
upload_app = typer.Typer(
    help="Deliver sealed episodes to the store and verify them there.", no_args_is_help=True
)
app.add_typer(episodes_app, name="episodes")
app.add_typer(consent_app, name="consent")
calibration_app = typer.Typer(
    help="Show, convert, check and solve where the sensors of a rig are.", no_args_is_help=True
)
app.add_typer(upload_app, name="upload")
app.add_typer(calibration_app, name="calibration")
sync_app = typer.Typer(help="Look at clocks and alignment.", no_args_is_help=True)
app.add_typer(sync_app, name="sync")

DEFAULT_SPOOL = Path(os.environ.get("SENSORIUM_SPOOL", "spool"))

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
SpoolOption = Annotated[Path, typer.Option("--spool", help="Folder that episodes are recorded into.")]
Despite = Annotated[
    bool, typer.Option("--despite-calibration", help="Record although a calibration check failed before.")
]
Seconds = Annotated[float | None, typer.Option("--seconds", min=0.1, help="Stop after so much time.")]


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
    from sensorium.agent.commands.sessions import run_record

    code = run_record(rig, spool, seconds, operator, despite_calibration=despite_calibration, as_json=as_json)
    raise typer.Exit(code)


@app.command()
def replay(
    source: Annotated[Path, typer.Argument(help="Episode, pcap, ROS 1/2 bag, MCAP file or EuRoC folder.")],
    rate: Annotated[str, typer.Option("--rate", help="Times real time, or max.")] = "1",
    loop: Annotated[bool, typer.Option("--loop", help="Begin again at the end, until stopped.")] = False,
    spool: Annotated[Path, typer.Option("--spool", help="Where the replay is recorded.")] = Path(
        "replay-spool"
    ),
    seconds: Seconds = None,
    calibration: Annotated[Path | None, typer.Option("--calibration", help="Calibration to check.")] = None,
    reference: Annotated[str | None, typer.Option("--reference", help="Stream to align on.")] = None,
    tolerance_ms: Annotated[float, typer.Option("--tolerance-ms", min=0.001, help="Of a match.")] = 10.0,
    as_json: Json = False,
) -> None:
    """Publish a recording as if it were live, and record it under its own clock."""
    from sensorium.agent.commands.sessions import run_replay

    code = run_replay(
        source, rate, loop, spool, seconds, calibration, reference, tolerance_ms=tolerance_ms, as_json=as_json
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


@episodes_app.command("list")
def episodes_list(spool: SpoolOption = DEFAULT_SPOOL, as_json: Json = False) -> None:
    """List the episodes of a spool with their state."""
    from sensorium.agent.commands.episodes import list_episodes

    raise typer.Exit(list_episodes(spool, as_json=as_json))


@episodes_app.command("show")
def episodes_show(episode: Annotated[Path, typer.Argument()], as_json: Json = False) -> None:
    """Show what an episode says about itself."""
    from sensorium.agent.commands.episodes import show_episode

    raise typer.Exit(show_episode(episode, as_json=as_json))


@episodes_app.command("verify")
def episodes_verify(episode: Annotated[Path, typer.Argument()], as_json: Json = False) -> None:
    """Check signature, hashes and balance of an episode against its files."""
    from sensorium.agent.commands.episodes import verify_episode

    raise typer.Exit(verify_episode(episode, as_json=as_json))


@episodes_app.command("recover")
def episodes_recover(spool: SpoolOption = DEFAULT_SPOOL, as_json: Json = False) -> None:
    """Recover and seal what a crash left open."""
    from sensorium.agent.commands.episodes import recover_episodes

    raise typer.Exit(recover_episodes(spool, as_json=as_json))


@episodes_app.command("report")
def episodes_report(episode: Annotated[Path, typer.Argument()], as_json: Json = False) -> None:
    """Write the HTML report of an episode anew and print its path."""
    from sensorium.agent.commands.episodes import report_episode

    raise typer.Exit(report_episode(episode, as_json=as_json))


@consent_app.command("grant")
def consent_grant(
    subject: Annotated[str, typer.Argument(help="Pseudonym: sub:1f0c9a, group:lab or site:hall2.")],
    streams: Annotated[list[str], typer.Option("--stream", help="Stream name or pattern.")] = ["*"],  # noqa: B006
    purposes: Annotated[
        list[str], typer.Option("--purpose", help="record, live, upload, export, ai:train ...")
    ] = [  # noqa: B006
        "record",
        "upload",
    ],
    days: Annotated[float, typer.Option("--days", min=0.001, help="Validity from now.")] = 1.0,
    controller: Annotated[str, typer.Option("--controller", help="Who answers for the data.")] = "",
    folder: Annotated[
        Path | None, typer.Option("--consent", help="Consent folder; default SPOOL/consent.")
    ] = None,
    spool: SpoolOption = DEFAULT_SPOOL,
    as_json: Json = False,
) -> None:
    """Enter a subject's permission."""
    from sensorium.agent.commands.consent import give_consent

    code = give_consent(
        folder or spool / "consent",
        subject,
        streams,
        purposes,
        days=days,
        controller=controller,
        as_json=as_json,
    )
    raise typer.Exit(code)


@consent_app.command("withdraw")
def consent_withdraw(
    grant: Annotated[str, typer.Argument(help="Grant id or subject.")],
    folder: Annotated[Path | None, typer.Option("--consent")] = None,
    spool: SpoolOption = DEFAULT_SPOOL,
    as_json: Json = False,
) -> None:
    """End a grant (or all of a subject's) for good."""
    from sensorium.agent.commands.consent import withdraw_consent

    raise typer.Exit(withdraw_consent(folder or spool / "consent", grant, as_json=as_json))


@consent_app.command("show")
def consent_show(
    folder: Annotated[Path | None, typer.Option("--consent")] = None,
    spool: SpoolOption = DEFAULT_SPOOL,
    as_json: Json = False,
) -> None:
    """List grants, what they are worth now, and whether a pause is on."""
    from sensorium.agent.commands.consent import show_consent

    raise typer.Exit(show_consent(folder or spool / "consent", as_json=as_json))


@upload_app.callback(invoke_without_command=True)
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


@upload_app.command("status")
def upload_status(spool: SpoolOption = DEFAULT_SPOOL, as_json: Json = False) -> None:
    """Show the upload state of every episode of a spool."""
    from sensorium.agent.commands.episodes import list_episodes

    raise typer.Exit(list_episodes(spool, as_json=as_json))


Size = Annotated[
    str | None, typer.Option("--size", help="WIDTHxHEIGHT of the images, for files that do not say.")
]


@calibration_app.command("show")
def calibration_show(
    file: Annotated[Path, typer.Argument(help="Calibration of any known format, or a folder with one.")],
    size: Size = None,
    as_json: Json = False,
) -> None:
    """Show what a calibration says and what looks wrong in it."""
    from sensorium.agent.commands.calibration import show_calibration

    raise typer.Exit(show_calibration(file, size, as_json=as_json))


@calibration_app.command("convert")
def calibration_convert(
    source: Annotated[Path, typer.Argument(help="Calibration of any known format, or a folder with one.")],
    target: Annotated[Path, typer.Argument(help="File to write; for ROS a folder.")],
    to: Annotated[
        str | None, typer.Option("--to", help="sensorium, kalibr, ros, urdf, opencv, foxglove or kitti.")
    ] = None,
    size: Size = None,
    cameras: Annotated[
        str | None, typer.Option("--cameras", help="Only these, the left one first: a,b.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite, and write what looks wrong.")] = False,
    as_json: Json = False,
) -> None:
    """Write a calibration in another format; it is read back and compared."""
    from sensorium.agent.commands.calibration import convert_calibration

    raise typer.Exit(convert_calibration(source, target, to, size, cameras, force=force, as_json=as_json))


Board = Annotated[
    str | None, typer.Option("--board", help="COLUMNSxROWSxSQUARE_M, inner corners: 9x6x0.025.")
]
BoardType = Annotated[
    str, typer.Option("--board-type", help="chessboard, or charuco (--board counts its squares).")
]
Marker = Annotated[
    float | None, typer.Option("--marker", help="Side of a ChArUco marker, m; default 0.75 squares.")
]
Dictionary = Annotated[str, typer.Option("--dictionary", help="Of the ChArUco markers.")]
BoardSize = Annotated[
    str | None, typer.Option("--board-size", help="WIDTHxHEIGHT of the whole board, m; for LiDARs.")
]


@calibration_app.command("check")
def calibration_check(
    target: Annotated[
        Path, typer.Argument(help="Episode, EuRoC or KITTI folder, rig file (recorded live), or document.")
    ],
    calibration: Annotated[
        Path | None, typer.Option("--calibration", help="Use this file instead of the recording's own.")
    ] = None,
    seconds: Annotated[
        float | None, typer.Option("--seconds", min=1.0, help="How long to record a rig file; default 15.")
    ] = None,
    pairs: Annotated[
        list[str], typer.Option("--pair", help="Only this pair, such as camera~lidar; repeatable.")
    ] = [],  # noqa: B006
    overlay: Annotated[
        Path | None, typer.Option("--overlay", help="Write a picture: what the checks saw.")
    ] = None,
    board: Board = None,
    board_type: BoardType = "chessboard",
    marker: Marker = None,
    dictionary: Dictionary = "DICT_5X5_1000",
    board_size: BoardSize = None,
    picture: Annotated[
        Path | None, typer.Option("--picture", help="With a rig file and a board: boards seen, every second.")
    ] = None,
    store_reference: Annotated[
        bool, typer.Option("--store-reference", help="If all is ok, keep what checks without a target read.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Judge each pair of sensors: 0 if ok; 1 if suspect, failed or insufficient, with the reason."""
    from sensorium.agent.commands.check import check_calibration
    from sensorium.calibration.targets import parse_board

    shown = parse_board(board, board_type, marker, dictionary, board_size) if board is not None else None
    code = check_calibration(
        target, calibration, seconds, pairs, overlay, as_json, shown, store_reference, picture
    )
    raise typer.Exit(code)


@calibration_app.command("solve")
def calibration_solve(
    source: Annotated[
        Path, typer.Argument(help="Episode, EuRoC or KITTI folder, folder of images, or rig file (live).")
    ],
    board: Board = None,
    board_type: BoardType = "chessboard",
    marker: Marker = None,
    dictionary: Dictionary = "DICT_5X5_1000",
    board_size: BoardSize = None,
    only: Annotated[
        str, typer.Option("--only", help="Comma-separated: intrinsics,stereo,camera-lidar,...")
    ] = "",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Rig document to write (.yaml).")
    ] = None,
    base: Annotated[
        Path | None, typer.Option("--base", help="Calibration to start from and to merge into.")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Ignore the calibration that the recording carries.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the output.")] = False,
    model: Annotated[str, typer.Option("--model", help="Lens: pinhole, radtan or equidistant.")] = "",
    seconds: Annotated[
        float | None, typer.Option("--seconds", min=1.0, help="At most so long, with a rig file.")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option("--picture", help="Write a picture: the boards seen, what is missing.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Find out where the sensors of a rig are, from a recording or live: 0 if solved; 1 with the reason."""
    from sensorium.agent.commands.solve import SolveOptions, solve_calibration
    from sensorium.calibration.targets import parse_board

    target = parse_board(board, board_type, marker, dictionary, board_size) if board is not None else None
    names = tuple(name for name in only.split(",") if name)
    options = SolveOptions(
        target, names, output, base, fresh, force, model, seconds, picture, as_json=as_json
    )
    raise typer.Exit(solve_calibration(source, options))


@sync_app.command("report")
def sync_report(
    episode: Annotated[Path, typer.Argument(help="Episode folder.")],
    html: Annotated[
        Path | None,
        typer.Option("--html", help="Where the page with plots goes; default EPISODE/sync-report.html."),
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
    """Show what an episode's clocks did, how certain they are, and how its streams align."""
    from sensorium.agent.commands.sync import content_inputs, report_sync

    inputs = content_inputs(clap_m, filter_delay or []) if content else None
    raise typer.Exit(report_sync(episode, html, inputs=inputs, as_json=as_json))


@sync_app.command("clocks")
def sync_clocks(
    rig: Annotated[Path, typer.Argument(help="Rig file (YAML).")],
    seconds: Seconds = None,
    as_json: Json = False,
) -> None:
    """Watch the host's clock, PTP, chrony and the remote nodes of a rig, without recording."""
    from sensorium.agent.commands.clocks import watch_clocks

    raise typer.Exit(watch_clocks(rig, seconds, as_json=as_json))


@sync_app.command("serve")
def sync_serve(
    key: Annotated[Path, typer.Option("--key", help="File of the key that both machines share (mode 0600).")],
    bind: Annotated[str, typer.Option("--bind", help="Address to answer on.")] = "0.0.0.0",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="UDP port; 0 = any.")] = 5005,
    as_json: Json = False,
) -> None:
    """On a remote node: answer the agent's clock probes, so that the node's stamps can be used."""
    from sensorium.agent.commands.clocks import serve_probes

    raise typer.Exit(serve_probes(bind, port, key, as_json=as_json))


@sync_app.command("remap")
def sync_remap(
    episode: Annotated[Path, typer.Argument(help="Episode folder.")],
    as_json: Json = False,
) -> None:
    """Estimate an episode's capture times anew from both sides, into a file beside its recordings."""
    from sensorium.agent.commands.sync import remap_sync

    raise typer.Exit(remap_sync(episode, as_json=as_json))


def main() -> None:
    """Run the command line; every error becomes one line and an exit code."""
    try:
        app()
    except SensoriumError as err:
        _fail(str(err), err.exit_code)
    except BrokenPipeError:
        os._exit(0)  # the reader of our output has left
    except Exception as err:  # noqa: BLE001 - the one place; users get a line, the log the rest
        _fail(_internal(err), 3)


def _fail(message: str, code: int) -> NoReturn:
    if "--json" in sys.argv:
        print(json.dumps({"error": message, "exit_code": code}))  # noqa: T201
    for line in message.splitlines():
        print(f"sensorium: {line}", file=sys.stderr)  # noqa: T201
    sys.exit(code)


def _internal(err: Exception) -> str:
    import tempfile
    import traceback

    with tempfile.NamedTemporaryFile("w", prefix="sensorium-error-", suffix=".log", delete=False) as file:
        traceback.print_exception(err, file=file)
    return f"internal error: {type(err).__name__}: {err}; details are in {file.name}, please report them"


if __name__ == "__main__":
    main()
