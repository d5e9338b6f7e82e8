"""Reference readings: what the checks without a target find while the rig is known to be good."""

from sensorium.agent.calibrating.recording import Recording
from sensorium.calibration.camera_lidar import camera_lidar_reference, keyframe
from sensorium.calibration.rig_document import Reference
from sensorium.calibration.stereo import check_matches, match_pair, stereo_reference
from sensorium.errors import CalibrationError

_WINDOW = 3


def references_of(recording: Recording) -> tuple[list[Reference], list[str]]:
    """Return the readings of the pairs whose scenes allow one, and a sentence for each that does not."""
    calibration = recording.calibration.calibration
    found: list[Reference] = []
    lacking: list[str] = []
    for both in recording.stereo:
        matches = [match_pair(*load()) for load in both.pairs]
        starts = range(0, len(matches) - _WINDOW + 1, _WINDOW)
        parts = [matches[start : start + _WINDOW] for start in starts]
        windows = [check_matches(part, calibration, both.left, both.right) for part in parts]
        try:
            found.append(stereo_reference(windows, calibration, both.left, both.right))
        except CalibrationError as err:
            lacking.append(str(err))
    for each in recording.camera_lidar:
        shots = [load() for load in each.shots]
        frames = [
            keyframe(shot.image, shot.points, shot.camera, shot.T_camera_lidar, shot.ring) for shot in shots
        ]
        try:
            found.append(camera_lidar_reference(frames, calibration, each.camera, each.lidar))
        except CalibrationError as err:
            lacking.append(str(err))
    return found, lacking
