"""The check that a rig asks for before it records: somebody shows the board, and episodes carry what came of it.

The board is recorded into a temporary folder, under the rig's consent, and judged as ``calibration check RIG --board``
judges it. Nobody need be there: after its time the check ends by itself, and says what to do.
"""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from sensorium.agent.calibrating.solving.guide import Guide
from sensorium.agent.calibrating.solving.live import LiveGuide, record_live
from sensorium.agent.calibrating.solving.run import check_with_board
from sensorium.agent.calibrating.solving.solver import SolveRequest
from sensorium.agent.session.rig import BoardOptions, Rig
from sensorium.calibration.rig_document import RigCalibration
from sensorium.calibration.targets import Target
from sensorium.errors import CalibrationError, ConsentError
from sensorium.sync.recording.judged import JudgedWindow
from sensorium.timebase import SECOND_NS, Clock
from sensorium.verdict import Status, Verdict

_STARTING_S = 20.0
"""So long may devices take to begin; the board's own time counts from then at the latest."""


def board_at_start(
    rig: Rig, options: BoardOptions, clock: Clock, show: Callable[[str], None], is_silent: bool
) -> tuple[JudgedWindow, ...]:
    """Record the rig while somebody shows the board, at most ``options.seconds``, and judge it.

    Args:
        show: Told what to do; goes to whoever stands there, also with ``--json``.
        is_silent: Do not draw what was seen so far.

    Returns:
        A verdict of every check with the board; ``insufficient`` with what to do if no board was seen.

    Raises:
        SensoriumError: If a device did not start.
    """
    assert rig.document.calibration is not None, "a rig file that asks for the board names a calibration"
    board, known = options.target(), RigCalibration.load(rig.document.calibration)
    cameras = ", ".join(sorted(known.cameras)) or "the cameras"
    show(
        f"check at start: show the board ({options.pattern}) to {cameras}, tilted to all sides, for up to "
        f"{options.seconds:g} s; recording begins after it"
    )
    start_ns = clock.now_ns()
    with tempfile.TemporaryDirectory(prefix="sensorium-start-") as name:
        verdicts = _judged(rig, options, board, known, Path(name), clock, show, is_silent)
    found = tuple(
        JudgedWindow.of(_advised(each, rig, options), start_ns, clock.now_ns()) for each in verdicts
    )
    for window in found:
        show(f"check at start: {_sentence(window.verdict)}")
    return found


def _judged(
    rig: Rig,
    options: BoardOptions,
    board: Target,
    known: RigCalibration,
    folder: Path,
    clock: Clock,
    show: Callable[[str], None],
    is_silent: bool,
) -> list[Verdict]:
    deadline_ns = clock.now_ns() + int((options.seconds + _STARTING_S) * SECOND_NS)
    guide = LiveGuide(Guide(board, known, for_check=True), clock, None, is_silent, deadline_ns)
    try:
        with guide as companion:
            episode = record_live(rig, options.seconds, folder, "check at start", show, companion)
        return check_with_board(SolveRequest(episode, "episode", board), known)[0]
    except (CalibrationError, ConsentError) as err:
        return [Verdict("board", rig.document.rig, Status.INSUFFICIENT, (), (str(err),))]


def _advised(verdict: Verdict, rig: Rig, options: BoardOptions) -> Verdict:
    """Return a verdict that says what to do where the board did not show enough."""
    if verdict.status is not Status.INSUFFICIENT:
        return verdict
    advice = (
        f"show the board within {options.seconds:g} s of the start (board: seconds), or check before the drive: "
        f"sensorium calibration check {rig.path} --board {options.pattern}"
    )
    return replace(verdict, reasons=(*verdict.reasons, advice))


def _sentence(verdict: Verdict) -> str:
    reason = f": {verdict.reasons[0]}" if verdict.reasons and verdict.status is not Status.OK else ""
    return f"{verdict.check} {verdict.subject} {verdict.status.value}{reason}"


def why_refused(windows: tuple[JudgedWindow, ...]) -> str:
    """Return why a rig whose file says ``on_failed_check: stop`` must not record; "" if it may."""
    failed = [window.verdict for window in windows if window.verdict.status is Status.FAILED]
    return "; ".join(_sentence(verdict) for verdict in failed)
