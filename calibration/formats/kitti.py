"""KITTI: calibration of the object, odometry and raw sets (read; write the object form).

Frames: ``camera_0`` to ``camera_3`` (rectified), ``rect`` (the rectified axes of camera 0), ``velodyne``,
``imu``. The shift of each camera in its projection matrix (6 cm for camera 2) is applied.

Source: Geiger et al., "Vision meets Robotics: The KITTI Dataset", IJRR 2013, and the development kits' readmes.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from sensorium.calibration.edges import Edge
from sensorium.calibration.folder_files import files_in
from sensorium.calibration.formats.draft import Draft, in_frames, read_text
from sensorium.calibration.geometry import Array, Intrinsics, inverse, nearest_rotation, transform
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
        size: Width and height of the images; by default that of an image beside, else 1242x375. Of raw data, images
            of the size before rectification (the ``extract`` sets) get the lenses they were taken with.

    Raises:
        CalibrationError: With the file and what it lacks.
    """
    path = Path(path)
    source = _source(path)
    draft = Draft(source, findings)
    for file in (source,) if source.is_file() else files_in(source, "calib_*.txt"):
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
        return _read_raw(source, size) if is_raw else read_kitti(source, size or DEFAULT_SIZE)
    except np.linalg.LinAlgError as err:
        raise draft.error(f"a projection matrix in it has no inverse ({err})") from err
    except CalibrationError as err:
        raise err if str(source) in str(err) else draft.error(str(err)) from err


def _source(path: Path) -> Path:
    if path.is_file():
        return path.parent if path.name.startswith("calib_") and (path.parent / _RAW_FILE).exists() else path
    # Of raw data the calibration of a day lies above its drives.
    for folder in (path, path / "calib", path.resolve().parent):
        if (folder / _RAW_FILE).exists():
            return folder
    candidates = [path / "calib.txt", *files_in(path / "calib", "*.txt"), *files_in(path, "*.txt")]
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
    return 1 <= len(lines) <= 5 and not labels and all(_is_projection(line.split()) for line in lines[:1])


def is_poses(path: Path) -> bool:
    """Return whether a text file holds rows of twelve numbers, as the poses of the odometry set."""
    try:
        lines = read_text(path).splitlines()
    except CalibrationError:
        return False
    return bool(lines) and all(len(line.split()) == 12 and ":" not in line for line in lines if line.strip())


def _is_projection(words: list[str]) -> bool:
    """Return whether twelve words are a rectified projection matrix; rows of poses.txt have as many."""
    if len(words) != 12:
        return False
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        return False
    return numbers[0] > 10 and not any(numbers[k] for k in (1, 4, 8, 9)) and numbers[10] == 1


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
        for image in files_in(file.parent, name) if "*" in name else [file.parent / name]:
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
    write_object(_renamed(calibration, {lidar: "velodyne", **({imu: "imu"} if imu else {})}), path, cameras)
    carried = (*names, "rect", lidar, *((imu,) if imu else ()))
    return in_frames(calibration, carried)


def _renamed(calibration: RigCalibration, names: dict[str, str]) -> RigCalibration:
    edges = tuple(
        replace(edge, parent=names.get(edge.parent, edge.parent), child=names.get(edge.child, edge.child))
        for edge in calibration.edges
    )
    return replace(calibration, edges=edges)


# -- the three layouts


def read_kitti(path: Path | str, size: tuple[int, int] = (1242, 375)) -> RigCalibration:
    """Read any layout: a folder with ``calib_cam_to_cam.txt`` (raw), or one text file (object, odometry).

    Args:
        size: Width and height of the images, px; only the raw layout knows its own.

    Raises:
        CalibrationError: With the file and what it lacks.
    """
    path = Path(path)
    return _read_raw(path) if path.is_dir() else _read_one_file(path, size)


def write_object(calibration: RigCalibration, path: Path | str, cameras: Mapping[int, str]) -> None:
    """Write the object layout for rectified (pinhole) cameras.

    Args:
        cameras: Name of the camera frame for KITTI's numbers 0 to 3; 0 gives the axes.

    Raises:
        CalibrationError: If a camera has distortion or is turned against camera 0.
    """
    base = cameras[0]
    lines = []
    for number, name in sorted(cameras.items()):
        camera = calibration.camera(name)
        T_camera_base = calibration.transform(name, base)
        if camera.model != "pinhole" or not np.allclose(T_camera_base[:3, :3], np.eye(3), atol=1e-6):
            raise CalibrationError(
                f"camera {name!r} is not rectified to {base!r}; KITTI stores rectified only"
            )
        projection = camera.K @ T_camera_base[:3]
        lines.append(f"P{number}: {_numbers(projection)}")
    lines.append(f"R0_rect: {_numbers(np.eye(3))}")
    lines.append(f"Tr_velo_to_cam: {_numbers(calibration.transform(base, 'velodyne')[:3])}")
    if calibration.has_transform("velodyne", "imu"):
        lines.append(f"Tr_imu_to_velo: {_numbers(calibration.transform('velodyne', 'imu')[:3])}")
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _numbers(matrix: Array) -> str:
    return " ".join(f"{value:.12e}" for value in matrix.reshape(-1))


def _read_one_file(path: Path, size: tuple[int, int]) -> RigCalibration:
    fields = _fields(path)
    if not any(key.startswith("P") for key in fields):
        raise CalibrationError(f"{path}: no projection matrix (P0, P1, ...) in this KITTI calibration")
    cameras, edges = {}, []
    for key in sorted(key for key in fields if len(key) == 2 and key[0] == "P" and key[1].isdigit()):
        camera, edge = _camera(fields, key, f"camera_{key[1]}", size, path)
        cameras[edge.child] = camera
        edges.append(edge)
    if "Tr_velo_to_cam" in fields:
        R_rect = transform(_rotation(fields, "R0_rect", path), np.zeros(3))
        edges.append(Edge("rect", "velodyne", R_rect @ _rigid(fields, "Tr_velo_to_cam", path)))
    elif "Tr" in fields:
        edges.append(Edge("rect", "velodyne", _rigid(fields, "Tr", path)))
    if "Tr_imu_to_velo" in fields:
        edges.append(Edge("velodyne", "imu", _rigid(fields, "Tr_imu_to_velo", path)))
    return RigCalibration(rig="kitti", source=path.name, cameras=cameras, edges=tuple(edges))


def _read_raw(folder: Path, size: tuple[int, int] | None = None) -> RigCalibration:
    path = folder / _RAW_FILE
    fields = _fields(path)
    if size is not None and _is_unrectified(fields, size, path):
        cameras, edges = _unrectified(fields, size, path)
        first, base = "camera_0", np.eye(4)
    else:
        cameras, edges = {}, []
        for number in range(4):
            key = f"P_rect_0{number}"
            if key in fields:
                width, height = _array(fields, f"S_rect_0{number}", 2, path)
                camera, edge = _camera(fields, key, f"camera_{number}", (round(width), round(height)), path)
                cameras[edge.child] = camera
                edges.append(edge)
        first, base = "rect", transform(_rotation(fields, "R_rect_00", path), np.zeros(3))
    for name, parent, child, before in (
        ("calib_velo_to_cam.txt", first, "velodyne", base),
        ("calib_imu_to_velo.txt", "velodyne", "imu", np.eye(4)),
    ):
        source = folder / name
        if source.exists():
            part = _fields(source)
            T = transform(_rotation(part, "R", source), _array(part, "T", 3, source))
            edges.append(Edge(parent, child, before @ T))
    return RigCalibration(rig="kitti", source=folder.name, cameras=cameras, edges=tuple(edges))


def _is_unrectified(fields: Mapping[str, Array], size: tuple[int, int], path: Path) -> bool:
    """Return whether images of this size are those before rectification."""
    if "S_00" not in fields or "S_rect_00" not in fields:
        return False
    as_taken, rectified = (
        tuple(int(value) for value in np.rint(_array(fields, key, 2, path))) for key in ("S_00", "S_rect_00")
    )
    return size == as_taken and size != rectified


def _unrectified(
    fields: Mapping[str, Array], size: tuple[int, int], path: Path
) -> tuple[dict[str, Intrinsics], list[Edge]]:
    """Return the cameras as they record; ``R`` and ``T`` take points of camera 0 into each."""
    cameras, edges = {}, []
    for number in range(4):
        if f"K_0{number}" not in fields:
            continue
        K = _array(fields, f"K_0{number}", 9, path).reshape(3, 3)
        terms = tuple(float(value) for value in _array(fields, f"D_0{number}", 5, path))
        focal = (float(K[0, 0]), float(K[1, 1]), float(K[0, 2]), float(K[1, 2]))
        cameras[f"camera_{number}"] = Intrinsics("radtan", *size, *focal, terms)
        if number:
            T = transform(_rotation(fields, f"R_0{number}", path), _array(fields, f"T_0{number}", 3, path))
            edges.append(Edge("camera_0", f"camera_{number}", inverse(T)))
    return cameras, edges


def _fields(path: Path) -> dict[str, Array]:
    """Return the numbers of each labelled line; lines without labels (some odometry copies) count P0, P1, ..."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as err:
        raise CalibrationError(f"KITTI calibration {path} cannot be read: {err}") from err
    fields: dict[str, Array] = {}
    for line in filter(str.strip, lines):
        key, found, values = line.partition(":")
        if not found:
            key, values = f"P{len(fields)}", line
        try:
            fields[key.strip()] = np.array([float(value) for value in values.split()])
        except ValueError:
            continue  # dates and names
    return fields


def _array(fields: Mapping[str, Array], key: str, count: int, path: Path) -> Array:
    if key not in fields:
        raise CalibrationError(f"{path}: {key} is missing; found: {', '.join(sorted(fields)) or 'nothing'}")
    if fields[key].size != count:
        raise CalibrationError(f"{path}: {key} needs {count} numbers, found {fields[key].size}")
    return fields[key]


def _rotation(fields: Mapping[str, Array], key: str, path: Path) -> Array:
    return nearest_rotation(_array(fields, key, 9, path).reshape(3, 3))


def _rigid(fields: Mapping[str, Array], key: str, path: Path) -> Array:
    matrix = _array(fields, key, 12, path).reshape(3, 4)
    return transform(nearest_rotation(matrix[:, :3]), matrix[:, 3])


def _camera(
    fields: Mapping[str, Array], key: str, name: str, size: tuple[int, int], path: Path
) -> tuple[Intrinsics, Edge]:
    projection = _array(fields, key, 12, path).reshape(3, 4)
    K = projection[:, :3]
    camera = Intrinsics("pinhole", *size, float(K[0, 0]), float(K[1, 1]), float(K[0, 2]), float(K[1, 2]))
    # P = K [I | s]: s is where the rectified origin lies in this camera (6 cm for camera 2: 0.3 deg at 12 m).
    shift = np.linalg.solve(K, projection[:, 3])
    T_camera_rect = transform(np.eye(3), shift)
    return camera, Edge("rect", name, inverse(T_camera_rect))
