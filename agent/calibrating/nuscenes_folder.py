"""nuScenes and data sets in its form: key frames of each camera with the LiDAR's sweep of the same sample."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sensorium.agent.calibrating.image_files import read_image
from sensorium.agent.calibrating.recording import (
    MAX_KEYFRAMES,
    CameraLidarSet,
    PreparedMaterial,
    Recording,
    spread,
)
from sensorium.agent.calibrating.shots import Shot
from sensorium.calibration.formats import nuscenes
from sensorium.calibration.formats.detect import ImportResult, import_calibration
from sensorium.calibration.formats.draft import Draft
from sensorium.calibration.geometry import Array, Intrinsics, inverse
from sensorium.calibration.rig_document import RigCalibration
from sensorium.errors import CalibrationError

_ROW = 5
"""Numbers of a return: x y z intensity ring, float32."""


@dataclass(frozen=True, slots=True, eq=False)
class _Tables:
    """What the tables say of key frames.

    Attributes:
        root: File names are relative to it.
        frames: Rows of ``sample_data`` by channel and sample.
        poses: Of the ego, by token.
    """

    root: Path
    sensors: Mapping[str, nuscenes.Mounted]
    frames: Mapping[str, Mapping[str, dict[str, Any]]]
    poses: Mapping[str, Array]


def nuscenes_folder(path: Path) -> Path | None:
    """Return the folder of the tables if recorded files lie with them; None if it is no such data set.

    Raises:
        CalibrationError: If a table cannot be read.
    """
    folder = nuscenes.tables_folder(path)
    return folder if folder is not None and (folder / "sample_data.json").is_file() else None


def open_nuscenes(path: Path, folder: Path, given: ImportResult | None) -> Recording:
    """Return the key frames of a data set; every image has the calibration of its own log.

    Args:
        folder: Of the tables.
        given: Use this instead of the calibrations in the tables.

    Raises:
        CalibrationError: If a table is damaged.
    """
    calibration = given or import_calibration(folder)
    tables = _read_tables(folder)
    lidars = [channel for channel in tables.frames if _is_sweeps(tables.frames[channel])]
    sets, problems = [], []
    for camera in calibration.calibration.cameras:
        for lidar in lidars:
            if not calibration.calibration.has_transform(camera, lidar):
                continue
            shots = _shots(tables, camera, lidar, None if given is None else given.calibration)
            if shots:
                sets.append(CameraLidarSet(camera, lidar, shots))
            else:
                problems.append(f"{camera}~{lidar}: no sample has files of both under {tables.root}")
    material = PreparedMaterial((), sets)
    sizes: dict[str, tuple[int, int] | None] = {}
    return Recording(path, "nuscenes", calibration, material, material.tasks, sizes, problems)


def _read_tables(folder: Path) -> _Tables:
    draft = Draft(folder / "ego_pose.json")
    poses = {
        str(row.get("token")): nuscenes.pose(row, draft, f"ego_pose {row.get('token')}")
        for row in nuscenes.table(folder, "ego_pose")
    }
    sensors = nuscenes.mounted_sensors(folder, Draft(folder / nuscenes.TABLE))
    frames: dict[str, dict[str, dict[str, Any]]] = {}
    for row in nuscenes.table(folder, "sample_data"):
        sensor = sensors.get(str(row.get("calibrated_sensor_token")))
        if sensor is not None and row.get("is_key_frame", True) and row.get("filename"):
            frames.setdefault(sensor.channel, {})[str(row.get("sample_token"))] = row
    return _Tables(folder.parent, sensors, frames, poses)


def _is_sweeps(frames: Mapping[str, dict[str, Any]]) -> bool:
    return any(str(row["filename"]).endswith(".bin") for row in frames.values())


def _shots(
    tables: _Tables, camera: str, lidar: str, given: RigCalibration | None
) -> list[Callable[[], Shot]]:
    images, sweeps = tables.frames.get(camera, {}), tables.frames[lidar]
    both = [
        (images[sample], sweeps[sample])
        for sample in images
        if sample in sweeps
        and all((tables.root / str(row["filename"])).is_file() for row in (images[sample], sweeps[sample]))
    ]
    both.sort(key=lambda rows: int(rows[0].get("timestamp") or 0))
    chosen = [both[index] for index in spread(len(both), MAX_KEYFRAMES)]
    return [partial(_shot, tables, *rows, given) for rows in chosen]


def _shot(
    tables: _Tables, picture: dict[str, Any], sweep: dict[str, Any], given: RigCalibration | None
) -> Shot:
    image = read_image(tables.root / str(picture["filename"]))
    seeing, measuring = (tables.sensors[str(row["calibrated_sensor_token"])] for row in (picture, sweep))
    if given is not None:
        lens = given.camera(seeing.channel)
        T_camera_ego = given.transform(seeing.channel, nuscenes.EGO)
        T_ego_lidar = given.transform(nuscenes.EGO, measuring.channel)
    else:
        lens = _lens(seeing, image.shape[1], image.shape[0])
        T_camera_ego, T_ego_lidar = inverse(seeing.T_ego_sensor), measuring.T_ego_sensor
    then, now = (tables.poses.get(str(row.get("ego_pose_token"))) for row in (sweep, picture))
    # Image and sweep are up to 50 ms apart: the vehicle drove on between.
    driven = inverse(now) @ then if now is not None and then is not None else np.eye(4)
    points, ring = read_sweep(tables.root / str(sweep["filename"]))
    return Shot(image, points, ring, lens, T_camera_ego @ driven @ T_ego_lidar)


def _lens(mounted: nuscenes.Mounted, width: int, height: int) -> Intrinsics:
    if mounted.K is None:
        raise CalibrationError(
            f"calibrated sensor {mounted.token} ({mounted.channel}) has no camera_intrinsic"
        )
    K = mounted.K
    fx, fy, cx, cy = (float(value) for value in (K[0, 0], K[1, 1], K[0, 2], K[1, 2]))
    return Intrinsics("pinhole", width, height, fx, fy, cx, cy)


def read_sweep(path: Path) -> tuple[Array, NDArray[np.int64]]:
    """Return (N, 4) rows x y z intensity and (N,) the laser of each return of a ``.pcd.bin``.

    Raises:
        CalibrationError: If it cannot be read, or holds no rows of five.
    """
    try:
        raw = np.fromfile(path, "<f4")
    except OSError as err:
        raise CalibrationError(f"sweep {path} cannot be read: {err}") from err
    if not raw.size or raw.size % _ROW:
        raise CalibrationError(f"{path} is no nuScenes sweep: {raw.size} numbers are no rows of five")
    rows = raw.reshape(-1, _ROW)
    return rows[:, :4].astype(np.float64), rows[:, 4].astype(np.int64)
