"""Runs every calibration check that a recording allows and says what came out, in words, numbers and pictures."""

from collections.abc import Callable

import cv2
import numpy as np

from sensorium.agent.calibrating.checking.report import CheckReport
from sensorium.agent.calibrating.recording import Recording
from sensorium.agent.calibrating.tasks import CheckTask
from sensorium.agent.session.check_kinds import load
from sensorium.calibration.lint import lint_streams
from sensorium.errors import SensoriumError
from sensorium.verdict import Status, Verdict

Judge = Callable[[CheckReport, Recording, CheckTask], Verdict]
"""What a row of :data:`sensorium.agent.session.check_kinds.KINDS` names as its judge of recordings.

It asks the recording's material for what it needs, and returns a verdict. Findings and pictures it adds to the report;
a verdict that few recordings can give it passes through :meth:`CheckReport.leave_out`.
"""


def run_checks(
    recording: Recording, with_pictures: bool = False, show: Callable[[str], None] = lambda _: None
) -> CheckReport:
    """Judge every pair of sensors of a recording. Data that cannot be judged is insufficient, never an error.

    Args:
        show: Told what is being looked at.
    """
    report = CheckReport(list(recording.calibration.findings), with_pictures=with_pictures)
    report.findings += lint_streams(recording.calibration.calibration, recording.sizes)
    for task in recording.tasks:
        show(f"{task.subject}: {task.kind.name.replace('_', ' ')}")
        report.verdicts.append(_judged(report, recording, task))
    for problem in recording.problems:
        subject, _, reason = problem.partition(": ")
        report.verdicts.append(Verdict("calibration", subject, Status.INSUFFICIENT, (), (reason or problem,)))
    return report


def _judged(report: CheckReport, recording: Recording, task: CheckTask) -> Verdict:
    judge: Judge = load(task.kind.judge)
    try:
        return judge(report, recording, task)
    except (SensoriumError, np.linalg.LinAlgError, cv2.error) as err:
        return task.insufficient(f"could not be judged: {' '.join(str(err).split())}")
