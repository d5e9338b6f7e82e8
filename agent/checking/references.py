"""Reference readings: what the checks without a target find while the rig is known to be good."""

from collections.abc import Iterator
from itertools import islice

from sensorium.agent.calibration_data import Recording
from sensorium.calibration.camera_lidar import camera_lidar_reference, keyframe
from sensorium.calibration.rig_document import Reference
from sensorium.calibration.stereo import check_matches, match_pair, stereo_reference
from sensorium.errors import CalibrationError

_WINDOW = 3


def references_of(recording: Recording) -> Iterator[Reference]:
    """Yield the readings of every pair whose scenes allow one; the others yield nothing."""
    calibration = recording.calibration.calibration
    for both in recording.stereo:
        matches = [match_pair(*load()) for load in both.pairs]
        starts = range(0, len(matches) - _WINDOW + 1, _WINDOW)
        windows = [
            check_matches(matches[start : start + _WINDOW], calibration, both.left, both.right)
            for start in starts
        ]
        try:
            yield stereo_reference(windows, calibration, both.left, both.right)
        except CalibrationError:
            continue
    for each in recording.camera_lidar:
        frames = []
        for load in islice(each.shots, None):
            shot = load()
            frames.append(keyframe(shot.image, shot.points, shot.camera, shot.T_camera_lidar, shot.ring))
        try:
            yield camera_lidar_reference(frames, calibration, each.camera, each.lidar)
        except CalibrationError:
            continue
