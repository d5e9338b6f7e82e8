"""Judges a camera with an IMU by the turning that both saw."""

from dataclasses import replace

from sensorium.agent.calibration_data import Recording, TurningSet
from sensorium.agent.checking.report import degrees
from sensorium.calibration import rotation
from sensorium.errors import CalibrationError
from sensorium.verdict import Status, Verdict


def check_turning(recording: Recording, pair: TurningSet) -> Verdict:
    calibration = recording.calibration.calibration
    found = pair.load()
    camera = calibration.camera(pair.camera)
    for image in found.images[:1]:
        if (image.shape[1], image.shape[0]) != (camera.width, camera.height):
            raise CalibrationError(
                f"images of {pair.camera} are {image.shape[1]}x{image.shape[0]}, its calibration is for "
                f"{camera.width}x{camera.height}"
            )
    turns = rotation.camera_turns(found.images, found.image_s, camera)
    if len(turns.start_s) < rotation.MIN_STEPS:
        reason = f"the turning was seen in {len(turns.start_s)} steps, {rotation.MIN_STEPS} are needed"
        return Verdict(rotation.CHECK, f"{pair.camera}~{pair.imu}", Status.INSUFFICIENT, (), (reason,))
    verdict = rotation.check_imu_rotation(
        turns, found.gyro_s, found.gyro_rad_s, calibration, pair.camera, pair.imu
    )
    judged = degrees(verdict)
    if verdict.status is Status.SUSPECT and all(abs(q.value) < (q.threshold or 0.0) for q, _ in judged):
        # Ten seconds of handheld motion leave 0.2 deg; inside the tolerance, only not by two sigma.
        reason = "the motion does not pin every degree to its tolerance; turn more about all axes"
        return replace(verdict, status=Status.INSUFFICIENT, reasons=(reason, *verdict.reasons))
    return verdict
