"""PJLab SensorsCalibration: its JSON files and the ``K: D: T:`` text form (read).

Frames: ``sensor_name`` and ``target_sensor_name`` of the JSON files; ``lidar`` and ``camera`` in the text form.
An extrinsic takes points of the sensor into the target. A folder's JSON files are read together.

Source: PJLab-ADG/SensorsCalibration, the example data of lidar2camera.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from sensorium.calibration.folder_files import files_in
from sensorium.calibration.formats.draft import Draft, field_of, read_text, size_of
from sensorium.calibration.rig_document import RigCalibration
from sensorium.verdict import Verdict


def read(
    path: Path | str, findings: list[Verdict] | None = None, size: tuple[int, int] | None = None
) -> RigCalibration:
    """Read one file, or all JSON files of a folder.

    Args:
        size: Width and height of the images; the text form does not say.

    Raises:
        CalibrationError: With the file and what it lacks.
    """
    path = Path(path)
    draft = Draft(path, findings)
    if path.suffix == ".txt":
        _read_text(draft, size)
    else:
        for file in files_in(path, "*.json") if path.is_dir() else [path]:
            draft.path = file
            _read_json(draft)
    draft.path = path
    return draft.finish(rig="pjlab")


def is_text_form(path: Path) -> bool:
    """Return whether a text file has the lines ``K:`` and ``T:``.

    Raises:
        CalibrationError: If the file cannot be read as text.
    """
    labels = {line.partition(":")[0].strip() for line in read_text(path).splitlines()}
    return {"K", "T"} <= labels


def _read_text(draft: Draft, size: tuple[int, int] | None) -> None:
    fields = {}
    for line in read_text(draft.path).splitlines():
        key, _, values = line.partition(":")
        fields[key.strip()] = values.split()
    K = draft.numbers(field_of(fields, "K", draft), 9, "K")
    D = draft.numbers(fields.get("D", []), len(fields.get("D", [])), "D")
    draft.add_camera("camera", "", K, size, D.tolist())
    draft.add_edge("camera", "lidar", draft.rigid(field_of(fields, "T", draft), "camera~lidar"))


def _read_json(draft: Draft) -> None:
    try:
        document = json.loads(read_text(draft.path))
    except (ValueError, RecursionError) as err:
        raise draft.error(f"not JSON: {err}") from err
    for key, section in document.items() if isinstance(document, dict) else ():
        kind = section.get("param_type") if isinstance(section, dict) else None
        if kind == "intrinsic":
            name = str(field_of(section, "sensor_name", draft, key))
            param = field_of(section, "param", draft, key)
            K, D = (_matrix(param, part, draft) for part in ("cam_K", "cam_dist"))
            width, height = (field_of(param, part, draft) for part in ("img_dist_w", "img_dist_h"))
            draft.add_camera(name, "", K, size_of(width, height, draft, "image size"), D)
        elif kind == "extrinsic":
            child, parent = (
                str(field_of(section, part, draft, key)) for part in ("sensor_name", "target_sensor_name")
            )
            T = draft.rigid(
                _matrix(field_of(section, "param", draft), "sensor_calib", draft), f"{parent}~{child}"
            )
            draft.add_edge(parent, child, T)


def _matrix(param: Any, key: str, draft: Draft) -> list[float]:
    rows = field_of(field_of(param, key, draft, "param"), "data", draft, key)
    try:
        return [float(value) for value in np.asarray(rows, np.float64).reshape(-1)]
    except (TypeError, ValueError) as err:
        raise draft.error(f"{key}.data is not a matrix: {str(rows)[:60]}") from err
