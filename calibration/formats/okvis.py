"""OKVIS and OKVIS2 settings (read).

Frames: ``cam0``, ``cam1`` ..., ``imu0`` (S, the sensor), ``body`` (B). ``T_SC`` takes points of a camera into the IMU,
``T_BS`` points of the IMU into the body; the image delay is taken off the images' stamps. Noises are densities.

Source: ethz-asl/okvis, config/ and okvis_multisensor_processing.
"""

from pathlib import Path
from typing import Any

from sensorium.calibration.formats.draft import Draft, field_of, list_of, size_of
from sensorium.calibration.formats.storage import read_storage
from sensorium.calibration.rig_document import RigCalibration
from sensorium.verdict import Verdict

IMU, BODY = "imu0", "body"
_NOISES = ("sigma_g_c", "sigma_a_c", "sigma_gw_c", "sigma_aw_c")


def claims(fields: dict[str, Any]) -> bool:
    """Return whether a settings file is one of OKVIS."""
    cameras = fields.get("cameras")
    return (
        isinstance(cameras, list) and bool(cameras) and isinstance(cameras[0], dict) and "T_SC" in cameras[0]
    )


def read(
    path: Path | str,
    findings: list[Verdict] | None = None,
    size: tuple[int, int] | None = None,  # noqa: ARG001 - the format always says
) -> RigCalibration:
    """Read a settings file.

    Raises:
        CalibrationError: With the file and the key that is missing or wrong.
    """
    path = Path(path)
    draft, fields = Draft(path, findings), read_storage(path)
    shift_s = -_delay_s(draft, fields)
    for number, camera in enumerate(field_of(fields, "cameras", draft)):
        where = f"cameras[{number}]"
        _read_camera(draft, camera, f"cam{number}", where)
        T = draft.rigid(field_of(camera, "T_SC", draft, where), f"{where}.T_SC")
        draft.add_edge(IMU, f"cam{number}", T, time_offset_s=shift_s)
    _read_imu(draft, fields.get("imu_params") or fields.get("imu_parameters") or {})
    return draft.finish(rig="okvis")


def _delay_s(draft: Draft, fields: dict[str, Any]) -> float:
    inner = fields.get("camera_parameters")
    given = inner.get("image_delay", 0.0) if isinstance(inner, dict) else fields.get("imageDelay", 0.0)
    return float(draft.numbers([given], 1, "image delay")[0])


def _read_camera(draft: Draft, camera: Any, name: str, where: str) -> None:
    width, height = draft.numbers(
        field_of(camera, "image_dimension", draft, where), 2, f"{where}.image_dimension"
    )
    fx, fy = draft.numbers(field_of(camera, "focal_length", draft, where), 2, f"{where}.focal_length")
    cx, cy = draft.numbers(field_of(camera, "principal_point", draft, where), 2, f"{where}.principal_point")
    kind = str(field_of(camera, "distortion_type", draft, where))
    terms = list_of(
        field_of(camera, "distortion_coefficients", draft, where), draft, f"{where}.distortion_coefficients"
    )
    size = size_of(width, height, draft, f"{where}.image_dimension")
    draft.add_camera(name, kind, (fx, 0, cx, 0, fy, cy, 0, 0, 1), size, terms)


def _read_imu(draft: Draft, fields: Any) -> None:
    if "T_BS" in fields:
        draft.add_edge(BODY, IMU, draft.rigid(fields["T_BS"], "imu_params.T_BS"))
    known = {
        f"imu_params.{key}": float(draft.numbers([fields[key]], 1, f"imu_params.{key}")[0])
        if key in fields
        else None
        for key in _NOISES
    }
    draft.add_noises(IMU, known, "OKVIS settings")
