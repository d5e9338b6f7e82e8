"""Judges a camera with an IMU by the turning that both saw."""

from sensorium.agent.calibrating.checking.report import CheckReport, told_only_by_more_motion
from sensorium.agent.calibrating.recording import Recording, TurningSet
from sensorium.calibration import rotation
from sensorium.calibration.camera_rotation import camera_turns
from sensorium.errors import CalibrationError
from sensorium.verdict import Status, Verdict


def check_turning(report: CheckReport, recording: Recording, pair: TurningSet) -> Verdict:
    """Judge rotation and time offset of a camera against an IMU over the most lively part of a recording."""
    calibration = recording.calibration.calibration
    found = pair.load()
    camera = calibration.camera(pair.camera)
    for image in found.images[:1]:
        if (image.shape[1], image.shape[0]) != (camera.width, camera.height):
            raise CalibrationError(
                f"images of {pair.camera} are {image.shape[1]}x{image.shape[0]}, its calibration is for "
                f"{camera.width}x{camera.height}"
            )
    turns = camera_turns(found.images, found.image_s, camera)
    if len(turns.start_s) < rotation.MIN_STEPS:
        reason = f"the turning was seen in {len(turns.start_s)} steps, {rotation.MIN_STEPS} are needed"
        subject = f"{pair.camera}~{pair.imu}"
        return report.leave_out(Verdict(rotation.CHECK, subject, Status.INSUFFICIENT, (), (reason,)))
    verdict = rotation.check_imu_rotation(
        turns, found.gyro_s, found.gyro_rad_s, calibration, pair.camera, pair.imu
    )
    return report.leave_out(told_only_by_more_motion(verdict))
