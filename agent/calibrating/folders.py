"""Recordings of others that lie in folders: EuRoC, and KITTI (object, raw, odometry, and the same laid out flat)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from sensorium.agent.calibrating.asl_folder import AslMaterial, stamped, turning_tasks
from sensorium.agent.calibrating.image_files import read_image
from sensorium.agent.calibrating.recording import (
    MAX_KEYFRAMES,
    MAX_STEREO_PAIRS,
    CameraLidarSet,
    PreparedMaterial,
    Recording,
    StereoSet,
    spread,
)
from sensorium.agent.calibrating.shots import Image, Shot, stereo_pairs_of
from sensorium.calibration.folder_files import files_in
from sensorium.calibration.formats.detect import ImportResult, import_calibration
from sensorium.calibration.rig_document import RigCalibration
from sensorium.errors import CalibrationError

_Files = Mapping[str, Path]
"""By what one instant is called in all folders."""


def _recording(
    path: Path,
    kind: str,
    calibration: ImportResult,
    material: PreparedMaterial,
    sizes: dict[str, tuple[int, int] | None],
    problems: list[str],
) -> Recording:
    return Recording(path, kind, calibration, material, material.tasks, sizes, problems)


def _sizes(images: Mapping[str, _Files]) -> dict[str, tuple[int, int] | None]:
    """Return the size of each camera's first image."""
    return {name: _size_of(read_image(next(iter(files.values())))) for name, files in images.items() if files}


def _size_of(image: Image) -> tuple[int, int]:
    return image.shape[1], image.shape[0]


def _stereo_set(left: str, right: str, images: Mapping[str, _Files]) -> StereoSet | str:
    """Return images of the same time, or why there are none."""
    lefts, rights = images[left], images[right]
    stems = [stem for stem in lefts if stem in rights]
    if not stems:
        return f"{left} and {right} have no image of the same time"

    def load(stem: str) -> tuple[Image, Image]:
        return read_image(lefts[stem]), read_image(rights[stem])

    chosen = [stems[index] for index in spread(len(stems), MAX_STEREO_PAIRS)]
    return StereoSet(left, right, [partial(load, stem) for stem in chosen])


def _stereo_sets(
    calibration: RigCalibration, images: Mapping[str, _Files]
) -> tuple[list[StereoSet], list[str]]:
    """Return what two cameras saw together, and a sentence for each two that saw nothing together."""
    found = [_stereo_set(left, right, images) for left, right in stereo_pairs_of(calibration, list(images))]
    problems = [each for each in found if isinstance(each, str)]
    return [each for each in found if isinstance(each, StereoSet)], problems


# -- EuRoC


def euroc_root(path: Path) -> Path | None:
    """Return the folder of the sensors of an EuRoC recording, None if it is none."""
    root = path / "mav0" if (path / "mav0").is_dir() else path
    return root if files_in(root, "cam*/data") else None


def open_euroc(path: Path, root: Path, calibration: ImportResult) -> Recording:
    """Return an EuRoC recording whose sensors lie in ``root``.

    Raises:
        CalibrationError: If an image does not decode.
    """
    by_stamp = {folder.parent.name: stamped(folder) for folder in files_in(root, "cam*/data")}
    images = {name: {str(stamp): file for stamp, file in files.items()} for name, files in by_stamp.items()}
    known = calibration.calibration
    stereo, problems = _stereo_sets(known, images)
    material = AslMaterial(PreparedMaterial(stereo), root, known, by_stamp)
    found = _recording(path, "euroc", calibration, material, _sizes(images), problems)
    found.tasks += turning_tasks(root, known, by_stamp)
    return found


# -- KITTI


@dataclass(frozen=True, slots=True)
class Kitti:
    """Image folders by camera frame, the sweeps' folder, and calibrations by the frame's number."""

    images: Mapping[str, Path]
    sweeps: Path | None
    calibs: Path | None


def kitti_layout(path: Path) -> Kitti | None:
    """Return where images, sweeps and calibrations lie in a KITTI folder, None if it is none."""
    images = {
        f"camera_{number}": folder
        for number in range(4)
        for folder in (path / f"image_{number}", path / f"image_0{number}" / "data")
        if folder.is_dir()
    }
    for name, folder in (("camera_0", path / "image_l"), ("camera_1", path / "image_r")):
        if folder.is_dir():
            images[name] = folder
    if not images:
        return None
    sweeps = next((f for f in (path / "velodyne", path / "velodyne_points/data") if f.is_dir()), None)
    calibs = path / "calib" if files_in(path / "calib", "[0-9]*.txt") else None
    return Kitti(images, sweeps, calibs)


def open_kitti(path: Path, layout: Kitti, given: ImportResult | None) -> Recording:
    """Return a KITTI recording.

    Args:
        given: Use this instead of the calibrations in the folder.

    Raises:
        CalibrationError: If a calibration cannot be read, does not say which frame the sweeps are in, or an image
            does not decode.
    """
    images = {
        name: {file.stem: file for file in files_in(folder, "*.png", "*.jpg")}
        for name, folder in layout.images.items()
    }
    calibration = given or import_calibration(path, size=_raw_size(layout, images))
    if layout.calibs is None or given is not None:
        sizes, (stereo, problems) = _sizes(images), _stereo_sets(calibration.calibration, images)
    else:  # each frame has a calibration, and often an image size, of its own
        pairs = stereo_pairs_of(calibration.calibration, list(images))
        sizes, stereo = {}, []
        problems = [f"{a}~{b}: every frame has its own calibration; pairs are not pooled" for a, b in pairs]
    sets = _kitti_sets(layout, images, calibration.calibration, layout.calibs if given is None else None)
    material = PreparedMaterial(stereo, sets)
    return _recording(path, "kitti", calibration, material, sizes, problems)


def _raw_size(layout: Kitti, images: Mapping[str, _Files]) -> tuple[int, int] | None:
    """Return the size of images in the raw layout, which tells whether they were rectified; None for others."""
    if not any(folder.name == "data" for folder in layout.images.values()):
        return None
    return next(iter(_sizes(images).values()), None)


def _kitti_sets(
    layout: Kitti, images: Mapping[str, _Files], calibration: RigCalibration, calibs: Path | None
) -> list[CameraLidarSet]:
    sweeps = {file.stem: file for file in files_in(layout.sweeps, "*.bin")} if layout.sweeps else {}
    found = []
    for name, files in images.items():
        stems = [stem for stem in files if stem in sweeps]
        if not stems:
            continue
        chosen = [stems[index] for index in spread(len(stems), MAX_KEYFRAMES)]
        shots = [_kitti_shot(files[stem], sweeps[stem], calibs, calibration, name) for stem in chosen]
        found.append(CameraLidarSet(name, _lidar_of(calibration), shots))
    return found


def _lidar_of(calibration: RigCalibration) -> str:
    if "velodyne" in calibration.frames:
        return "velodyne"
    others = [name for name in calibration.frames if "lidar" in name.lower() or "velo" in name.lower()]
    if len(others) != 1:
        raise CalibrationError(
            f"the calibration has no frame named velodyne for the sweeps; it has: {', '.join(calibration.frames)}"
        )
    return others[0]


def _kitti_shot(
    image_path: Path, sweep_path: Path, calibs: Path | None, shared: RigCalibration, name: str
) -> Callable[[], Shot]:
    def load() -> Shot:
        calibration, lidar = shared, _lidar_of(shared)
        image = read_image(image_path)
        if calibs is not None:
            calibration = import_calibration(
                calibs / f"{image_path.stem}.txt", size=_size_of(image)
            ).calibration
            lidar = "velodyne"
        raw = np.fromfile(sweep_path, "<f4")
        if raw.size % 4:
            raise CalibrationError(f"{sweep_path} is no KITTI sweep: {raw.size} numbers are no rows of four")
        T = calibration.transform(name, lidar)
        return Shot(image, raw.reshape(-1, 4), None, calibration.camera(name), T)

    return load
