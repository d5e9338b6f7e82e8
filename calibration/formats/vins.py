"""VINS-Mono, VINS-Fusion and the camera files of camodocal (read).

Frames: ``cam0``, ``cam1``; ``imu0``, which these programs call the body. ``body_T_cam0``, and ``extrinsicRotation``
with ``extrinsicTranslation``, take points of the camera into the IMU; ``td`` is added to the images' stamps. A camera
file alone gives its ``camera_name``. Models: PINHOLE (k1 k2 p1 p2), PINHOLE_FULL (k1..k6 p1 p2), KANNALA_BRANDT
(k2 k3 k4 k5: the four terms of ``equidistant``), MEI (``omni``).

Source: HKUST-Aerial-Robotics/VINS-Fusion, config/ and camera_models/; hengli/camodocal.
"""

from pathlib import Path
from typing import Any

import numpy as np

from sensorium.calibration.formats.draft import Draft, field_of, size_of
from sensorium.calibration.formats.storage import read_storage
from sensorium.calibration.geometry import transform
from sensorium.calibration.rig_document import RigCalibration
from sensorium.errors import CalibrationError
from sensorium.verdict import Status, Verdict

IMU = "imu0"
_FOCAL = {
    "PINHOLE": ("fx", "fy", "cx", "cy"),
    "PINHOLE_FULL": ("fx", "fy", "cx", "cy"),
    "KANNALA_BRANDT": ("mu", "mv", "u0", "v0"),
    "MEI": ("gamma1", "gamma2", "u0", "v0"),
}
_TERMS = {
    "PINHOLE": ("radtan", ("k1", "k2", "p1", "p2")),
    "PINHOLE_FULL": ("rational", ("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6")),
    "KANNALA_BRANDT": ("equidistant", ("k2", "k3", "k4", "k5")),
    "MEI": ("omni", ("xi", "k1", "k2", "p1", "p2")),
}
_NOISES = ("acc_n", "gyr_n", "acc_w", "gyr_w")


def claims(fields: dict[str, Any]) -> bool:
    """Return whether a settings file is one of VINS or camodocal."""
    return "model_type" in fields or is_rig(fields)


def is_rig(fields: dict[str, Any]) -> bool:
    """Return whether it says where cameras stand, not only how one projects."""
    return any(key in fields for key in ("body_T_cam0", "cam0_calib", "extrinsicRotation"))


def read(
    path: Path | str, findings: list[Verdict] | None = None, size: tuple[int, int] | None = None
) -> RigCalibration:
    """Read a rig's settings with the camera files that they name, or one camera file.

    Args:
        size: Width and height of the images where no file says.

    Raises:
        CalibrationError: With the file and the key that is missing or wrong.
    """
    path = Path(path)
    draft, fields = Draft(path, findings), read_storage(path)
    if not is_rig(fields):
        _read_camera(draft, fields, str(fields.get("camera_name") or path.stem), size)
        return draft.finish(rig="camodocal")
    if "model_type" in fields:
        _read_camera(draft, fields, "cam0", size)
    for key in [key for key in fields if key.startswith("cam") and key.endswith("_calib")]:
        _read_camera_file(draft, fields, key, size)
    _read_mounts(draft, fields)
    if any(key in fields for key in _NOISES):
        sentence = (
            "acc_n, gyr_n, acc_w, gyr_w are tuning values of the estimator, per sample and not per root of hertz: "
            "left out; take the noise from a resting recording (sensorium calibration solve --only imu)"
        )
        draft.note("imu_noise", IMU, Status.OK, sentence)
    return draft.finish(rig="vins")


def _read_camera_file(draft: Draft, fields: dict[str, Any], key: str, size: tuple[int, int] | None) -> None:
    name, rig_file = key.removesuffix("_calib"), draft.path
    file = rig_file.parent / str(fields[key])
    if not file.is_file():
        raise draft.error(
            f"{key} names {file}, which does not exist: put the camera file beside the settings"
        )
    camera_fields = read_storage(file)
    draft.path = file
    _read_camera(draft, camera_fields, name, size)
    draft.path = rig_file
    camera = draft.cameras[name]
    if "image_width" in fields and "image_height" in fields:
        own = size_of(fields["image_width"], fields["image_height"], draft, "image_width, image_height")
        if own != (camera.width, camera.height):
            sentence = (
                f"{rig_file.name} says images are {own[0]}x{own[1]}, {file.name} {camera.width}x{camera.height}: "
                "correct one; the camera file was taken"
            )
            draft.note("image_size", name, Status.SUSPECT, sentence)


def _read_camera(draft: Draft, fields: dict[str, Any], name: str, size: tuple[int, int] | None) -> None:
    said = str(field_of(fields, "model_type", draft)).upper()
    if said not in _FOCAL:
        raise draft.error(f"model_type is {said!r}, which is not read; known: {', '.join(_FOCAL)}")
    groups = ("mirror_parameters", "distortion_parameters", "projection_parameters")
    numbers: dict[str, Any] = {}
    for group in groups:
        given = fields.get(group, {})
        given = {} if given is None else given
        if not isinstance(given, dict):
            raise draft.error(f"{group} must hold named numbers, found {str(given)[:60]}")
        numbers |= given
    model, terms = _TERMS[said]
    bent = fields.get("distortion_parameters")
    if said.startswith("PINHOLE") and (bent is None or (isinstance(bent, dict) and not bent)):
        model, terms = "pinhole", ()
    focal = [_number(draft, numbers, key, said) for key in _FOCAL[said]]
    coefficients = [_number(draft, numbers, key, said) for key in terms]
    if "image_width" in fields:
        size = size_of(
            fields["image_width"], field_of(fields, "image_height", draft), draft, "image_width, image_height"
        )
    if model == "omni":
        draft.add_lens(name, model, size, focal, coefficients)
        return
    fx, fy, cx, cy = focal
    draft.add_camera(name, model, (fx, 0, cx, 0, fy, cy, 0, 0, 1), size, coefficients)


def _number(draft: Draft, numbers: dict[str, Any], key: str, model: str) -> float:
    if key not in numbers:
        found = ", ".join(map(str, numbers)) or "nothing"
        raise draft.error(f"{key} is missing for model_type {model}; found: {found}")
    return float(draft.numbers([numbers[key]], 1, key)[0])


def _read_mounts(draft: Draft, fields: dict[str, Any]) -> None:
    trust = int(draft.numbers([fields.get("estimate_extrinsic", 0)], 1, "estimate_extrinsic")[0])
    shift_s = float(draft.numbers([fields.get("td", 0.0)], 1, "td")[0])
    found = [(key.removeprefix("body_T_"), key) for key in fields if key.startswith("body_T_cam")]
    if not found and trust < 2 and "extrinsicRotation" not in fields:
        raise draft.error("neither body_T_cam0 nor extrinsicRotation says where the camera stands")
    for name, key in found:
        draft.add_edge(IMU, name, draft.rigid(fields[key], key), time_offset_s=shift_s)
    if "extrinsicRotation" in fields:
        R = draft.rotation(fields["extrinsicRotation"], "extrinsicRotation")
        t = draft.numbers(field_of(fields, "extrinsicTranslation", draft), 3, "extrinsicTranslation")
        draft.add_edge(IMU, "cam0", transform(np.asarray(R), t), time_offset_s=shift_s)
    if trust:
        sentence = (
            "estimate_extrinsic is 2: VINS finds the mount itself, and what stands in the file is not used"
            if trust > 1
            else "estimate_extrinsic is 1: the mount in the file is only where VINS begins; save what it found"
        )
        draft.note("first_guess", IMU, Status.SUSPECT if trust > 1 else Status.OK, sentence)


def rig_file(files: list[Path]) -> Path | None:
    """Return of several files of this kind the one that describes the rig; None if that is not one."""
    rigs = []
    for file in files:
        try:
            if is_rig(read_storage(file)):
                rigs.append(file)
        except CalibrationError:
            continue
    return rigs[0] if len(rigs) == 1 else None
