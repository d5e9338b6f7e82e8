"""KITTI: calibration of the object, odometry and raw sets (read; write the object form).

Frames: ``camera_0`` to ``camera_3`` (rectified), ``rect`` (the rectified axes of camera 0), ``velodyne``,
``imu``. The shift of each camera in its projection matrix (6 cm for camera 2) is applied.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from sensorium.calibration.formats.draft import Draft, in_frames, read_text
from sensorium.calibration.kitti import read_kitti, write_kitti_object
from sensorium.calibration.rig_document import RigCalibration
from sensorium.errors import CalibrationError
from sensorium.verdict import Status, Verdict

DEFAULT_SIZE = (1242, 375)
_RAW_FILE = "calib_cam_to_cam.txt"
_LIDAR_NAMES = ("velodyne", "velo", "lidar", "ouster", "os_sensor", "livox", "hesai")


def read(
    path: Path | str, findings: list[Verdict] | None = None, size: tuple[int, int] | None = None
) -> RigCalibration:
    """Read any layout: a raw folder or one of its files, an object or odometry text, or a folder of either.

    Args:
        size: Width and height of the images; by default that of an image beside, else 1242x375.

    Raises:
        CalibrationError: With the file and what it lacks.
    """
    path = Path(path)
    source = _source(path)
    draft = Draft(source, findings)
    for file in (source,) if source.is_file() else sorted(source.glob("calib_*.txt")):
        _check_rotations(draft, file)
    is_raw = source.is_dir()
    size = size or (None if is_raw else _image_size(source))
    if size is None and not is_raw:
        draft.note(
            "image_size",
            "cameras",
            Status.INSUFFICIENT,
            f"the file does not say for which image size it holds; {DEFAULT_SIZE[0]}x{DEFAULT_SIZE[1]} was "
            "assumed: give the size (--size WIDTHxHEIGHT)",
        )
    try:
        return read_kitti(source, size or DEFAULT_SIZE)
    except np.linalg.LinAlgError as err:
        raise draft.error(f"a projection matrix in it has no inverse ({err})") from err
    except CalibrationError as err:
        raise err if str(source) in str(err) else draft.error(str(err)) from err


def _source(path: Path) -> Path:
    if path.is_file():
        return path.parent if path.name.startswith("calib_") and (path.parent / _RAW_FILE).exists() else path
    for folder in (path, path / "calib"):
        if (folder / _RAW_FILE).exists():
            return folder
    candidates = [path / "calib.txt", *sorted((path / "calib").glob("*.txt")), *sorted(path.glob("*.txt"))]
    found = next((file for file in candidates if file.is_file() and is_kitti(file)), None)
    if found is None:
        raise CalibrationError(f"calibration folder {path}: no KITTI calibration in it")
    return found


def is_kitti(path: Path) -> bool:
    """Return whether a text file looks like an object, odometry or raw calibration."""
    if path.name.startswith("calib_") and (path.parent / _RAW_FILE).is_file():
        return True
    try:
        lines = [line for line in read_text(path).splitlines() if line.strip()]
    except CalibrationError:
        return False
    labels = {line.partition(":")[0].strip() for line in lines if ":" in line}
    if labels & {"P0", "P1", "P2", "P_rect_00", "P_rect_02", "Tr_velo_to_cam"}:
        return True
    return 1 <= len(lines) <= 5 and not labels and all(len(line.split()) == 12 for line in lines)


def _check_rotations(draft: Draft, file: Path) -> None:
    for line in read_text(file).splitlines():
        key, _, values = line.partition(":")
        words = values.split()
        if key == "R" or key.startswith(("R0_rect", "R_rect", "R_0")):
            count, columns = 9, 3
        elif key.startswith("Tr"):
            count, columns = 12, 4
        else:
            continue
        if len(words) == count:
            matrix = draft.numbers(words, count, f"{file.name}: {key}").reshape(3, columns)
            draft.rotation(matrix[:, :3], f"{file.stem} {key}")


def _image_size(file: Path) -> tuple[int, int] | None:
    """Return the size of an image that belongs to a calibration file, read from its PNG header."""
    for name in (f"../image_2/{file.stem}.png", "image_2/*.png", "image_l/*.png", "image_0/*.png"):
        for image in sorted(file.parent.glob(name)) if "*" in name else [file.parent / name]:
            if image.is_file():
                with image.open("rb") as stream:
                    head = stream.read(24)
                if head[:8] == b"\x89PNG\r\n\x1a\n":
                    return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")
    return None


def write(calibration: RigCalibration, path: Path | str) -> tuple[str, ...]:
    """Write the object form. Cameras must be rectified; ``camera_0`` (else the first by name) gives the axes.

    Returns:
        One sentence for each thing that the format cannot carry.

    Raises:
        CalibrationError: If there are more than four cameras, one is not rectified, or there is no LiDAR.
    """
    names = sorted(calibration.cameras)
    if not 1 <= len(names) <= 4:
        raise CalibrationError(f"KITTI holds one to four cameras, the calibration has {len(names)}")
    numbered = {int(name[-1]): name for name in names if name[:-1] == "camera_" and name[-1] in "0123"}
    cameras = numbered if len(numbered) == len(names) and 0 in numbered else dict(enumerate(names))
    lidar = next((name for hint in _LIDAR_NAMES for name in calibration.frames if hint in name.lower()), None)
    if lidar is None:
        raise CalibrationError(
            f"KITTI needs a LiDAR frame; the calibration has: {', '.join(calibration.frames)}"
        )
    imu = next((name for name in calibration.frames if "imu" in name.lower()), None)
    write_kitti_object(
        _renamed(calibration, {lidar: "velodyne", **({imu: "imu"} if imu else {})}), path, cameras
    )
    carried = (*names, "rect", lidar, *((imu,) if imu else ()))
    return in_frames(calibration, carried)


def _renamed(calibration: RigCalibration, names: dict[str, str]) -> RigCalibration:
    edges = tuple(
        replace(edge, parent=names.get(edge.parent, edge.parent), child=names.get(edge.child, edge.child))
        for edge in calibration.edges
    )
    return replace(calibration, edges=edges)
