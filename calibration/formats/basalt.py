"""basalt's ``calib.json`` (read).

Frames: ``cam0``, ``cam1`` ..., ``imu0``. ``T_imu_cam`` is the pose of each camera in the IMU, its quaternion given by
name (qx qy qz qw); ``cam_time_offset_ns`` is added to the images' stamps. Noises are densities; biases are the first
three numbers of ``calib_gyro_bias`` and ``calib_accel_bias``.

Source: VladyslavUsenko/basalt-headers, calibration.hpp and the camera models.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from sensorium.calibration.formats.draft import Draft, field_of, list_of, read_text, size_of
from sensorium.calibration.geometry import Array, rotation_from_quaternion, transform
from sensorium.calibration.rig_document import RigCalibration
from sensorium.calibration.sensor_models import Vector
from sensorium.verdict import Status, Verdict

IMU = "imu0"
_MODELS = {
    "pinhole": ("pinhole", ()),
    "pinhole-radtan8": ("rational", ("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6")),
    "kb4": ("equidistant", ("k1", "k2", "k3", "k4")),
    "ds": ("double_sphere", ("xi", "alpha")),
    "eucm": ("eucm", ("alpha", "beta")),
    "ucm": ("eucm", ("alpha",)),
    "fov": ("fov", ("w",)),
}
_SECONDS_PER_NS = 1e-9


def claims(document: Any) -> bool:
    """Return whether a JSON document is such a calibration."""
    value = document.get("value0") if isinstance(document, dict) else None
    return isinstance(value, dict) and "T_imu_cam" in value and "intrinsics" in value


def read(
    path: Path | str,
    findings: list[Verdict] | None = None,
    size: tuple[int, int] | None = None,  # noqa: ARG001 - the format always says
) -> RigCalibration:
    """Read a calibration.

    Raises:
        CalibrationError: With the file and the key that is missing or wrong.
    """
    path = Path(path)
    draft = Draft(path, findings)
    try:
        document = json.loads(read_text(path))
    except (ValueError, RecursionError) as err:
        raise draft.error(f"not JSON: {err}") from err
    value = field_of(document, "value0", draft)
    lenses, poses, sizes = (field_of(value, key, draft) for key in ("intrinsics", "T_imu_cam", "resolution"))
    if not all(isinstance(each, list) for each in (lenses, poses, sizes)):
        raise draft.error(
            "value0.intrinsics, T_imu_cam and resolution must be lists, one entry for each camera"
        )
    if not len(lenses) == len(poses) == len(sizes):
        raise draft.error(
            f"value0 has {len(lenses)} intrinsics, {len(poses)} T_imu_cam and {len(sizes)} resolutions; they must match"
        )
    shift_ns = draft.numbers([value.get("cam_time_offset_ns", 0)], 1, "cam_time_offset_ns")[0]
    for number, (lens, pose, given) in enumerate(zip(lenses, poses, sizes, strict=True)):
        width, height = draft.numbers(given, 2, f"resolution[{number}]")
        _read_camera(draft, lens, f"cam{number}", size_of(width, height, draft, f"resolution[{number}]"))
        T = pose_of(draft, pose, f"T_imu_cam[{number}]")
        draft.add_edge(IMU, f"cam{number}", T, time_offset_s=float(shift_ns) * _SECONDS_PER_NS)
    _read_imu(draft, value)
    return draft.finish(rig="basalt")


def _read_camera(draft: Draft, lens: Any, name: str, size: tuple[int, int]) -> None:
    kind = str(field_of(lens, "camera_type", draft, name))
    if kind not in _MODELS:
        raise draft.error(f"{name} has camera_type {kind!r}, which is not read; known: {', '.join(_MODELS)}")
    model, terms = _MODELS[kind]
    given = field_of(lens, "intrinsics", draft, name)
    focal, own = (
        [float(draft.numbers([field_of(given, key, draft, f"{name} ({kind})")], 1, key)[0]) for key in keys]
        for keys in (("fx", "fy", "cx", "cy"), terms)
    )
    draft.add_lens(name, model, size, focal, [*own, 1.0] if kind == "ucm" else own)
    if float(given.get("rpmax", 0.0) or 0.0) > 0:
        sentence = "rpmax is left out: where the lens model folds back is found from its coefficients"
        draft.note("lens_limit", name, Status.OK, sentence)


def pose_of(draft: Draft, pose: Any, what: str) -> Array:
    """Return the 4x4 transform of named ``px py pz qx qy qz qw``.

    Raises:
        CalibrationError: If one is missing, or the quaternion is far from length 1.
    """
    keys = ("px", "py", "pz", "qx", "qy", "qz", "qw")
    numbers = draft.numbers([field_of(pose, key, draft, what) for key in keys], 7, what)
    length = float(np.linalg.norm(numbers[3:]))
    if not 0.99 < length < 1.01:
        raise draft.error(f"{what}: its quaternion has length {length:.3g}, not 1: damaged, or no quaternion")
    return transform(rotation_from_quaternion(numbers[3:]), numbers[:3])


def _read_imu(draft: Draft, value: dict[str, Any]) -> None:
    keys = ("gyro_noise_std", "accel_noise_std", "gyro_bias_std", "accel_bias_std")
    known = {key: _largest(draft, value, key) for key in keys}
    biases: list[Vector | None] = []
    for key in ("calib_gyro_bias", "calib_accel_bias"):
        numbers = np.array(list_of(value.get(key) or [], draft, key))
        biases.append(
            (float(numbers[0]), float(numbers[1]), float(numbers[2])) if np.any(numbers[:3]) else None
        )
        if np.any(numbers[3:]):
            sentence = f"scales and misalignments in {key} are left out; the rig document holds biases only"
            draft.note("imu_scale", IMU, Status.OK, sentence)
    draft.add_noises(IMU, known, "basalt calib.json", (biases[0], biases[1]))


def _largest(draft: Draft, value: dict[str, Any], key: str) -> float | None:
    if key not in value:
        return None
    given = np.atleast_1d(np.asarray(value[key], dtype=object))
    numbers = draft.numbers(given.tolist(), len(given), key)
    if float(numbers.min()) <= 0:
        raise draft.error(f"{key} must be positive, found {numbers.tolist()}")
    return float(numbers.max())
