"""Runs every calibration check that a recording allows and says what came out, in words, numbers and pictures."""

from collections.abc import Callable
from functools import partial

import cv2
import numpy as np

from sensorium.agent.calibrating.checking import lidar_pairs, single_sensors
from sensorium.agent.calibrating.checking.camera_imu_pair import check_turning
from sensorium.agent.calibrating.checking.camera_lidar_pair import check_camera_lidar
from sensorium.agent.calibrating.checking.report import CheckReport
from sensorium.agent.calibrating.checking.stereo_pair import check_stereo
from sensorium.agent.calibrating.recording import Recording
from sensorium.calibration import camera_lidar, rotation, stereo
from sensorium.calibration.lint import lint_streams
from sensorium.errors import SensoriumError
from sensorium.verdict import Status, Verdict

_SENSOR_CHECKS = {**lidar_pairs.CHECKS, **single_sensors.CHECKS}


def run_checks(
    recording: Recording, with_pictures: bool = False, show: Callable[[str], None] = lambda _: None
) -> CheckReport:
    """Judge every pair of sensors of a recording. Data that cannot be judged is insufficient, never an error.

    Args:
        show: Told what is being looked at.
    """
    report = CheckReport(list(recording.calibration.findings))
    report.findings += lint_streams(recording.calibration.calibration, recording.sizes)
    for both in recording.stereo:
        subject = f"{both.left}~{both.right}"
        show(f"{subject}: stereo")
        judge = partial(check_stereo, report, recording, both, with_pictures)
        report.verdicts.append(_guarded(stereo.CHECK, subject, judge))
    for each in recording.camera_lidar:
        subject = f"{each.camera}~{each.lidar}"
        show(f"{subject}: camera and LiDAR")
        judge = partial(check_camera_lidar, report, recording, each, with_pictures)
        report.verdicts.append(_guarded(camera_lidar.CHECK, subject, judge))
    for pair in recording.turning:
        subject = f"{pair.camera}~{pair.imu}"
        show(f"{subject}: turning")
        judge = partial(check_turning, report, recording, pair)
        report.verdicts.append(_guarded(rotation.CHECK, subject, judge))
    if (sensors := recording.sensors) is not None:
        for task in sensors.tasks:
            show(f"{task.subject}: {task.check.replace('_', ' ')}")
            judge = partial(_SENSOR_CHECKS[task.check], report, sensors, task)
            report.verdicts.append(_guarded(task.check, task.subject, judge))
    for problem in recording.problems:
        subject, _, reason = problem.partition(": ")
        report.verdicts.append(Verdict("calibration", subject, Status.INSUFFICIENT, (), (reason or problem,)))
    return report


def _guarded(check: str, subject: str, judge: Callable[[], Verdict]) -> Verdict:
    try:
        return judge()
    except (SensoriumError, np.linalg.LinAlgError, cv2.error) as err:
        reason = f"could not be judged: {' '.join(str(err).split())}"
        return Verdict(check, subject, Status.INSUFFICIENT, (), (reason,))
