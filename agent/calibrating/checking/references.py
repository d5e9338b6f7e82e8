"""Reference readings: what the checks without a target find while the rig is known to be good."""

from collections.abc import Callable

from sensorium.agent.calibrating.recording import Recording
from sensorium.agent.calibrating.tasks import CheckTask
from sensorium.calibration.camera_lidar import camera_lidar_reference
from sensorium.calibration.edges import Reference
from sensorium.calibration.keyframes import keyframe
from sensorium.calibration.stereo import check_matches, match_pair, stereo_reference
from sensorium.errors import CalibrationError

_WINDOW = 3


def references_of(recording: Recording) -> tuple[list[Reference], list[str]]:
    """Return the readings of the pairs whose scenes allow one, and a sentence for each that does not."""
    found: list[Reference] = []
    lacking: list[str] = []
    for task in recording.tasks:
        read = _READERS.get(task.kind.name)
        if read is not None:
            try:
                found.append(read(recording, task))
            except CalibrationError as err:
                lacking.append(str(err))
    return found, lacking


def _stereo(recording: Recording, task: CheckTask) -> Reference:
    calibration, (left, right) = recording.calibration.calibration, task.frames
    matches = [match_pair(*load()) for load in recording.material.stereo(task).pairs]
    starts = range(0, len(matches) - _WINDOW + 1, _WINDOW)
    parts = [matches[start : start + _WINDOW] for start in starts]
    windows = [check_matches(part, calibration, left, right) for part in parts]
    return stereo_reference(windows, calibration, left, right)


def _camera_lidar(recording: Recording, task: CheckTask) -> Reference:
    shots = [load() for load in recording.material.camera_lidar(task).shots]
    frames = [
        keyframe(shot.image, shot.points, shot.camera, shot.T_camera_lidar, shot.ring) for shot in shots
    ]
    return camera_lidar_reference(frames, recording.calibration.calibration, *task.frames)


_READERS: dict[str, Callable[[Recording, CheckTask], Reference]] = {
    "stereo": _stereo,
    "camera_lidar": _camera_lidar,
}
