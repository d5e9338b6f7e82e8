"""Kalibr: ``camchain.yaml``, ``camchain-imucam.yaml`` and ``imu.yaml`` (read and write).

Frames are Kalibr's own keys, ``cam0`` ... and ``imu0`` ...; a camera may carry other names under ``frame_id``
and ``imu_frame_id``, which our writer adds and Kalibr ignores (it counts top-level keys, so they sit inside).

``T_cn_cnm1`` takes points of the camera before into this one, ``T_cam_imu`` takes points of the IMU into the
camera, ``T_imu_cam`` (OpenVINS) is its inverse: the key decides. ``T_i_b`` takes points of the first IMU into
this one. t_imu = t_cam + ``timeshift_cam_imu``.

Before fu fv pu pv stand xi (omni), xi alpha (ds), alpha beta (eucm).

Source: Kalibr's wiki, "YAML formats" and "Supported models"; OpenVINS' documentation of its calibration files.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from sensorium.calibration.folder_files import files_in
from sensorium.calibration.formats.draft import (
    Draft,
    field_of,
    in_frames,
    list_of,
    plain_rows,
    size_of,
)
from sensorium.calibration.formats.storage import read_storage
from sensorium.calibration.geometry import Array, Intrinsics, inverse
from sensorium.calibration.rig_document import RigCalibration
from sensorium.errors import CalibrationError
from sensorium.verdict import Status, Verdict

ESTIMATOR_FILE = "estimator_config.yaml"
_IMU_TERMS = ("Tw", "Ta", "Tg", "R_IMUtoGYRO", "R_IMUtoACC")
_WRITTEN = {"pinhole": "none", "radtan": "radtan", "equidistant": "equidistant", "fov": "fov"}
_OWN_TERMS = {"pinhole": 0, "omni": 1, "ds": 2, "eucm": 2}
"""What stands in ``intrinsics`` before fu fv pu pv: xi; xi alpha; alpha beta."""
_OURS = {"ds": "double_sphere", "eucm": "eucm"}


def read(path: Path | str, findings: list[Verdict] | None = None) -> RigCalibration:
    """Read a camchain or IMU file, or a folder with both (``*camchain*.yaml``, ``*imu*.yaml``).

    Raises:
        CalibrationError: If a key is missing, or a camera model is none of ours.
    """
    path = Path(path)
    draft = Draft(path, findings)
    files = _files(path) if path.is_dir() else [path]
    if not files:
        raise draft.error("no *camchain*.yaml and no *imu*.yaml in this folder")
    _read_files(draft, files)
    return draft.finish(rig="kalibr")


def read_openvins(path: Path | str, findings: list[Verdict] | None = None) -> RigCalibration:
    """Read the two chains that an ``estimator_config.yaml`` of OpenVINS names, or the folder that holds it.

    Raises:
        CalibrationError: With the file and the key that is missing or wrong.
    """
    path = Path(path)
    path = path / ESTIMATOR_FILE if path.is_dir() else path
    draft, fields = Draft(path, findings), read_storage(path)
    files = []
    for key in ("relative_config_imucam", "relative_config_imu"):
        file = path.parent / str(field_of(fields, key, draft))
        if not file.is_file():
            raise draft.error(f"{key} names {file}, which does not exist: put it beside this file")
        files.append(file)
    _read_files(draft, files)
    return draft.finish(rig="openvins")


def _read_files(draft: Draft, files: list[Path]) -> None:
    sensors: dict[str, dict[str, Any]] = {}
    for file in files:
        found = read_storage(file)
        if is_flat_imu(found):
            found = {"imu0": found}  # what Kalibr takes for its input
        for key, fields in found.items():
            if re.fullmatch(r"(cam|imu)\d+", str(key)) and isinstance(fields, dict):
                sensors[str(key)] = {**sensors.get(str(key), {}), **fields}
            elif is_camera(fields):
                sentence = (
                    f"{key} in {file.name} is a camera under a name that Kalibr does not give: not read; "
                    "call them cam0, cam1 ... (with frame_id: NAME for its own name)"
                )
                draft.note("unnumbered_camera", str(key), Status.FAILED, sentence)
    if not sensors:
        raise draft.error("no cam0 and no imu0 in it: Kalibr numbers its sensors cam0, cam1 ..., imu0 ...")
    names = {key: str(fields.get("frame_id", key)) for key, fields in sensors.items()}
    imu = str(sensors.get("cam0", {}).get("imu_frame_id", names.get("imu0", "imu0")))
    for key, fields in sorted(sensors.items(), key=lambda item: (item[0][:3], int(item[0][3:]))):
        if key.startswith("cam"):
            _read_camera(draft, key, fields, names, imu)
            continue
        draft.add_imu_noise(imu if key == "imu0" else names[key], fields, "Kalibr imu.yaml")
        if "T_i_b" in fields and key != "imu0":
            T_parent_child = inverse(draft.rigid(fields["T_i_b"], f"imu0~{key}"))
            shift = fields.get("time_offset")
            draft.add_edge(imu, names[key], T_parent_child, time_offset_s=_seconds(draft, key, shift))
        for matrix in _IMU_TERMS:
            own = fields.get(matrix)
            if own is not None and not np.allclose(
                draft.numbers(own, 9, f"{key}.{matrix}").reshape(3, 3), _none(matrix)
            ):
                sentence = (
                    f"{matrix} is left out: the rig document holds no scales and misalignments of an IMU"
                )
                draft.note("imu_scale", key, Status.OK, sentence)


def _none(matrix: str) -> Array:
    return np.zeros((3, 3)) if matrix == "Tg" else np.eye(3)


def is_camera(fields: Any) -> bool:
    """Return whether a value has what Kalibr says of a camera."""
    return isinstance(fields, dict) and {"camera_model", "intrinsics", "resolution"} <= fields.keys()


def is_flat_imu(fields: dict[str, Any]) -> bool:
    """Return whether a file is Kalibr's input ``imu.yaml``, which has no ``imu0`` around its numbers."""
    return (
        "accelerometer_noise_density" in fields
        and "gyroscope_noise_density" in fields
        and "T_BS" not in fields
    )


def _files(folder: Path) -> list[Path]:
    chains = files_in(folder, "*camchain*.yaml", "*imucam_chain*.yaml")
    complete = [path for path in chains if "imucam" in path.name]
    return (complete or chains)[:1] + [path for path in files_in(folder, "*imu*.yaml") if path not in chains]


def _read_camera(draft: Draft, key: str, fields: dict[str, Any], names: dict[str, str], imu: str) -> None:
    name = names[key]
    _read_lens(draft, key, name, fields)
    if "T_cn_cnm1" in fields:
        before = f"cam{int(key[3:]) - 1}"
        if before not in names:
            raise draft.error(f"{key} has T_cn_cnm1 but there is no {before}")
        T = inverse(draft.rigid(fields["T_cn_cnm1"], f"{before}~{key}"))
        draft.add_edge(names[before], name, T)
    shift = _seconds(draft, key, fields.get("timeshift_cam_imu"))
    for given, is_inverse in (("T_cam_imu", True), ("T_imu_cam", False)):
        if given in fields:
            T = draft.rigid(fields[given], f"imu0~{key}")
            draft.add_edge(imu, name, inverse(T) if is_inverse else T, time_offset_s=shift)


def _read_lens(draft: Draft, key: str, name: str, fields: dict[str, Any]) -> None:
    model = str(field_of(fields, "camera_model", draft, key))
    if model not in _OWN_TERMS:
        raise draft.error(
            f"{key} has camera model {model!r}, which is not read; known: {', '.join(_OWN_TERMS)}"
        )
    count = _OWN_TERMS[model]
    given = field_of(fields, "intrinsics", draft, key)
    numbers = [float(value) for value in draft.numbers(given, 4 + count, f"{key}.intrinsics ({model})")]
    own, focal = numbers[:count], numbers[count:]
    resolution = list_of(field_of(fields, "resolution", draft, key), draft, f"{key}.resolution")
    if len(resolution) != 2:
        raise draft.error(f"{key}.resolution must be width and height, found {resolution}")
    size = size_of(resolution[0], resolution[1], draft, f"{key}.resolution")
    bent = str(field_of(fields, "distortion_model", draft, key))
    coefficients = list_of(fields.get("distortion_coeffs") or [], draft, f"{key}.distortion_coeffs")
    if model == "pinhole" and bent == "fov":
        draft.add_lens(
            name, "fov", size, focal, draft.numbers(coefficients, 1, f"{key}.distortion_coeffs").tolist()
        )
    elif model == "pinhole":
        fx, fy, cx, cy = focal
        draft.add_camera(name, bent, (fx, 0, cx, 0, fy, cy, 0, 0, 1), size, coefficients)
    elif model == "omni" and bent in ("none", "radtan"):
        terms = draft.numbers(coefficients or [0.0] * 4, 4, f"{key}.distortion_coeffs")
        draft.add_lens(name, "omni", size, focal, [*own, *terms])
    elif bent == "none" or not any(coefficients):
        draft.add_lens(name, _OURS[model], size, focal, own)
    else:
        raise draft.error(f"{key}: {model} with {bent} distortion is not read: calibrate as {model}-none")


def _seconds(draft: Draft, key: str, value: Any) -> float | None:
    return None if value is None else float(draft.numbers([value], 1, f"{key}: time shift")[0])


def write(calibration: RigCalibration, path: Path | str) -> tuple[str, ...]:
    """Write the cameras (and their pose against an IMU, if there is one) as a camchain.

    Returns:
        One sentence for each thing that the format cannot carry.

    Raises:
        CalibrationError: If there is no camera, or a lens model that Kalibr lacks.
    """
    if not calibration.cameras:
        raise CalibrationError("a Kalibr camchain needs a camera; the calibration has none")
    names = sorted(calibration.cameras)
    imu = next((name for name in calibration.frames if "imu" in name.lower()), None)
    chain: dict[str, dict[str, Any]] = {}
    for number, name in enumerate(names):
        fields = _camera_fields(calibration.cameras[name], name)
        if name != f"cam{number}":
            fields["frame_id"] = name
        others = [
            k for k, other in enumerate(names) if k != number and calibration.has_transform(name, other)
        ]
        fields["cam_overlaps"] = others
        fields["rostopic"] = f"/{name}/image_raw"
        if number and calibration.has_transform(name, names[number - 1]):
            fields["T_cn_cnm1"] = plain_rows(calibration.transform(name, names[number - 1]))
        if imu is not None and calibration.has_transform(name, imu):
            if imu != "imu0":
                fields["imu_frame_id"] = imu
            fields["T_cam_imu"] = plain_rows(calibration.transform(name, imu))
            shift = _time_offset(calibration, imu, name)
            if shift is not None:
                fields["timeshift_cam_imu"] = shift
        chain[f"cam{number}"] = fields
    Path(path).write_text(yaml.safe_dump(chain, sort_keys=False, width=140), encoding="utf-8")
    carried = (*names, imu) if imu is not None else tuple(names)
    return in_frames(calibration, carried)


def _camera_fields(camera: Intrinsics, name: str) -> dict[str, Any]:
    distortion = list(camera.distortion)
    if camera.model == "radtan" and len(distortion) == 5 and distortion[4] == 0.0:
        distortion = distortion[:4]
    if camera.model not in (*_WRITTEN, *_OURS.values(), "omni") or (
        camera.model == "radtan" and len(distortion) != 4
    ):
        raise CalibrationError(
            f"Kalibr has no lens model for camera {name} ({camera.model}, {len(distortion)} coefficients); "
            "calibrate it as radtan with four, or equidistant"
        )
    model, own, bent = "pinhole", [], _WRITTEN.get(camera.model, "none")
    if camera.model == "omni":
        model, own, distortion, bent = "omni", distortion[:1], distortion[1:], "radtan"
    elif camera.model not in _WRITTEN:
        model = next(theirs for theirs, ours in _OURS.items() if ours == camera.model)
        own, distortion = distortion, []
    return {
        "camera_model": model,
        "intrinsics": [*own, camera.fx, camera.fy, camera.cx, camera.cy],
        "distortion_model": bent,
        "distortion_coeffs": [float(value) for value in distortion],
        "resolution": [camera.width, camera.height],
    }


def _time_offset(calibration: RigCalibration, imu: str, camera: str) -> float | None:
    for edge in calibration.edges:
        if edge.time_offset_s is not None and {edge.parent, edge.child} == {imu, camera}:
            return edge.time_offset_s if edge.parent == imu else -edge.time_offset_s
    return None
