"""``sensorium calibration``."""

from pathlib import Path
from typing import Annotated

import typer

from sensorium.agent.arguments.options import Json, command_group

group = command_group("Show, convert, check and solve where the sensors of a rig are.")


Size = Annotated[
    str | None, typer.Option("--size", help="WIDTHxHEIGHT of the images, for files that do not say.")
]


@group.command("show")
def calibration_show(
    file: Annotated[Path, typer.Argument(help="Calibration of any known format, or a folder with one.")],
    size: Size = None,
    as_json: Json = False,
) -> None:
    """Show what a calibration says and what looks wrong in it."""
    from sensorium.agent.commands.calibration import show_calibration

    raise typer.Exit(show_calibration(file, size, as_json=as_json))


@group.command("convert")
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


@group.command("check")
def calibration_check(
    target: Annotated[
        str,
        typer.Argument(
            help="Episode (folder, id, file:///STORE/ID), EuRoC, TUM-VI, KITTI or nuScenes folder, rig file "
            "(recorded live), or document."
        ),
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


@group.command("solve")
def calibration_solve(
    source: Annotated[
        str,
        typer.Argument(
            help="Episode (folder, id, file:///STORE/ID), EuRoC or KITTI folder, folder of images, or rig file (live)."
        ),
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
