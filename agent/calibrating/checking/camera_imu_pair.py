"""Judges a camera with an IMU by the turning that both saw."""

from dataclasses import replace

from sensorium.agent.calibrating.checking.report import CheckReport, told_only_by_more_motion
from sensorium.agent.calibrating.recording import Recording
from sensorium.agent.calibrating.shots import require_size
from sensorium.agent.calibrating.tasks import CheckTask
from sensorium.calibration import rotation
from sensorium.calibration.camera_rotation import camera_turns
from sensorium.calibration.pair_lint import lint_imu_rotation
from sensorium.verdict import Status, Verdict


def judge_turning(report: CheckReport, recording: Recording, task: CheckTask) -> Verdict:
    """Judge rotation and time offset of a camera against an IMU over the most lively part of a recording.

    Raises:
        CalibrationError: If an image does not decode, or the calibration does not join the two frames.
    """
    calibration = recording.calibration.calibration
    camera_frame, imu_frame = task.frames
    found = recording.material.turning(task)
    camera = calibration.camera(camera_frame)
    for image in found.images[:1]:
        require_size(image, camera_frame, camera)
    turns = camera_turns(found.images, found.image_s, camera)
    if len(turns.start_s) < rotation.MIN_STEPS:
        reason = f"the turning was seen in {len(turns.start_s)} steps, {rotation.MIN_STEPS} are needed"
        return report.leave_out(task.insufficient(reason))
    verdict = rotation.check_imu_rotation(
        turns, found.gyro_s, found.gyro_rad_s, calibration, camera_frame, imu_frame, found.offset_s
    )
    if faults := lint_imu_rotation(verdict, calibration.transform(camera_frame, imu_frame)[:3, :3]):
        report.findings += faults
        return replace(verdict, status=Status.FAILED, reasons=faults[0].reasons)
    return report.leave_out(told_only_by_more_motion(verdict))
