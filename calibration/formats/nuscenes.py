"""nuScenes and data sets in its form: ``calibrated_sensor.json``, ``sensor.json`` and the tables beside (read).

Frames: the channels (``CAM_FRONT``, ``LIDAR_TOP`` ...) and ``ego``. A calibrated sensor is the pose of the sensor in
``ego``: metres, and a quaternion in the order **w x y z**. Images are undistorted. A channel has one entry for each
log that it was calibrated for: of several that differ the first scene's is taken and named; ``check`` gives every
image its own. The LiDAR's x points to the right, its y forward.

Source: nutonomy/nuscenes-devkit, docs/schema_nuscenes.md.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sensorium.calibration.folder_files import files_in
from sensorium.calibration.formats.draft import Draft, field_of, size_of
from sensorium.calibration.geometry import Array, rotation_from_quaternion, transform
from sensorium.calibration.rig_document import RigCalibration
from sensorium.errors import CalibrationError
from sensorium.verdict import Status, Verdict

EGO = "ego"
TABLE = "calibrated_sensor.json"
_MAX_BYTES = 1_500_000_000
_SAME = 1e-9


@dataclass(frozen=True, slots=True, eq=False)
class Mounted:
    """One calibrated sensor.

    Attributes:
        K: 3x3 of a camera, None of other sensors.
    """

    token: str
    channel: str
    T_ego_sensor: Array
    K: Array | None

    def same(self, other: "Mounted") -> bool:
        """Return whether both say the same."""
        is_same_lens = self.K is None or other.K is None or bool(np.allclose(self.K, other.K, atol=_SAME))
        return is_same_lens and bool(np.allclose(self.T_ego_sensor, other.T_ego_sensor, atol=_SAME))


def tables_folder(path: Path) -> Path | None:
    """Return the folder of the tables: the path itself, or the only version in it; None if there is none.

    Raises:
        CalibrationError: If there are several versions.
    """
    folder = path.parent if path.is_file() else path
    if (folder / TABLE).is_file() and (folder / "sensor.json").is_file():
        return folder
    found = [file.parent for file in files_in(folder, f"*/{TABLE}")]
    if len(found) > 1:
        names = ", ".join(each.name for each in found)
        raise CalibrationError(f"{path} holds several versions ({names}): name the folder of one")
    return found[0] if found else None


def table(folder: Path, name: str) -> list[dict[str, Any]]:
    """Return the rows of a table; none if the file is absent.

    Raises:
        CalibrationError: If it is no table, or too large to be read whole.
    """
    file = folder / f"{name}.json"
    if not file.is_file():
        return []
    if file.stat().st_size > _MAX_BYTES:
        raise CalibrationError(
            f"{file} has {file.stat().st_size} bytes: read a part of the data set, such as one blob"
        )
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as err:
        raise CalibrationError(f"{file} cannot be read as JSON: {err}") from err
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise CalibrationError(f"{file}: a list of rows was expected")
    return rows


def mounted_sensors(folder: Path, draft: Draft) -> dict[str, Mounted]:
    """Return every calibrated sensor by its token, in the order of the table.

    Raises:
        CalibrationError: With the file, row and key that is missing or wrong.
    """
    channels = {str(row.get("token")): str(row.get("channel")) for row in table(folder, "sensor")}
    draft.path = folder / TABLE
    found = {}
    for number, row in enumerate(table(folder, TABLE.removesuffix(".json"))):
        where = f"row {number}"
        token, sensor = (str(field_of(row, key, draft, where)) for key in ("token", "sensor_token"))
        if sensor not in channels:
            raise draft.error(f"{where}: sensor_token {sensor} is not in sensor.json beside it")
        K = np.asarray(row.get("camera_intrinsic") or [], dtype=object).reshape(-1)
        lens = draft.numbers(K, 9, f"{where}.camera_intrinsic").reshape(3, 3) if K.size else None
        found[token] = Mounted(token, channels[sensor], pose(row, draft, where), lens)
    return found


def pose(row: dict[str, Any], draft: Draft, where: str) -> Array:
    """Return the 4x4 transform of ``translation`` and ``rotation`` (w x y z).

    Raises:
        CalibrationError: If they are no pose.
    """
    w, x, y, z = draft.numbers(field_of(row, "rotation", draft, where), 4, f"{where}.rotation (w x y z)")
    length = float(np.linalg.norm((w, x, y, z)))
    if not 0.99 < length < 1.01:
        raise draft.error(f"{where}.rotation has length {length:.3g}: not a quaternion w x y z")
    t = draft.numbers(field_of(row, "translation", draft, where), 3, f"{where}.translation")
    return transform(rotation_from_quaternion((x, y, z, w)), t)


def read(
    path: Path | str, findings: list[Verdict] | None = None, size: tuple[int, int] | None = None
) -> RigCalibration:
    """Read the tables of a data set.

    Args:
        size: Width and height of the images where ``sample_data.json`` does not say.

    Raises:
        CalibrationError: With the file, row and key that is missing or wrong.
    """
    folder = tables_folder(Path(path))
    if folder is None:
        raise CalibrationError(f"{path}: no {TABLE} with sensor.json beside it")
    draft = Draft(folder / TABLE, findings)
    sensors = mounted_sensors(folder, draft)
    rows = table(folder, "sample_data")
    scenes, sizes = _scenes(folder, rows), _sizes(rows, draft)
    for channel in dict.fromkeys(each.channel for each in sensors.values()):
        known = [each for each in sensors.values() if each.channel == channel]
        chosen = min(known, key=lambda each: scenes.get(each.token, (len(scenes), ""))[0])
        _note_others(draft, channel, chosen, known, scenes)
        draft.add_edge(EGO, channel, chosen.T_ego_sensor)
        if chosen.K is not None:
            draft.add_camera(channel, "pinhole", chosen.K, sizes.get(chosen.token) or size, [])
    return draft.finish(rig="nuscenes")


def _note_others(
    draft: Draft,
    channel: str,
    chosen: Mounted,
    known: Iterable[Mounted],
    scenes: dict[str, tuple[int, str]],
) -> None:
    others = [each for each in known if not each.same(chosen)]
    if not others:
        return
    name = scenes.get(chosen.token, (0, ""))[1]
    of_scene = f"that of scene {name}" if name else "the first of the table"
    draft.note(
        "repeated_camera" if chosen.K is not None else "repeated_transform",
        channel,
        Status.OK,
        f"is calibrated anew for other logs ({len(others)} entries differ); {of_scene} was taken, and a check gives "
        "every image its own",
    )


def _scenes(folder: Path, rows: list[dict[str, Any]]) -> dict[str, tuple[int, str]]:
    """Return the first scene, its place in the table and its name, that a calibrated sensor was used in."""
    names = {
        str(row.get("token")): (place, str(row.get("name", "")))
        for place, row in enumerate(table(folder, "scene"))
    }
    of_sample = {
        str(row.get("token")): names.get(str(row.get("scene_token"))) for row in table(folder, "sample")
    }
    found: dict[str, tuple[int, str]] = {}
    for row in rows:
        scene, token = of_sample.get(str(row.get("sample_token"))), str(row.get("calibrated_sensor_token"))
        if scene is not None and scene < found.get(token, (len(names), "")):
            found[token] = scene
    return found


def _sizes(rows: list[dict[str, Any]], draft: Draft) -> dict[str, tuple[int, int]]:
    return {
        str(row.get("calibrated_sensor_token")): size_of(
            row["width"], row["height"], draft, "sample_data width, height"
        )
        for row in rows
        if row.get("width") and row.get("height")
    }
