"""Opens a recording for calibration checks: our episodes, EuRoC, KITTI and nuScenes folders, or a calibration alone."""

from pathlib import Path

from sensorium.agent.calibrating.asl_folder import asl_calibration
from sensorium.agent.calibrating.episode_material import open_episode
from sensorium.agent.calibrating.folders import euroc_root, kitti_layout, open_euroc, open_kitti
from sensorium.agent.calibrating.nuscenes_folder import nuscenes_folder, open_nuscenes
from sensorium.agent.calibrating.recording import Recording
from sensorium.calibration.formats.detect import import_calibration
from sensorium.errors import CalibrationError
from sensorium.sync.episode.folder import is_episode


def open_recording(path: Path, calibration: Path | None = None) -> Recording:
    """Return what a folder or file offers to checks.

    Args:
        calibration: Use this file instead of what the recording carries.

    Raises:
        CalibrationError: If there is no calibration, or the folder is of no known kind.
        EpisodeError: If an episode is damaged.
    """
    if not path.exists():
        raise CalibrationError(f"{path} does not exist")
    given = import_calibration(calibration) if calibration is not None else None
    if is_episode(path):
        return open_episode(path, given)
    if path.is_dir() and (root := euroc_root(path)) is not None:
        return open_euroc(path, root, given or asl_calibration(path))
    if path.is_dir() and (layout := kitti_layout(path)) is not None:
        return open_kitti(path, layout, given)
    if path.is_dir() and (tables := nuscenes_folder(path)) is not None:
        return open_nuscenes(path, tables, given)
    if given is None:
        return Recording(path, "document", import_calibration(path))
    raise CalibrationError(
        f"{path} is no recording that is known: an episode, an EuRoC (TUM-VI), a KITTI or a nuScenes folder"
    )
