"""Camera rigs of maplab, aslam and SVO (``ncamera``; read).

Frames: a camera's ``label``, else ``cam0``, ``cam1`` ...; ``imu0``, which these programs call B. ``T_B_C`` (``T_BS``)
takes points of the camera into the IMU. The only parameter of ``fisheye`` is the angle w of ``fov``; before fu fv cu cv
of ``unified-projection`` stands xi.

Source: ethz-asl/aslam_cv2 and maplab (ncamera YAML); uzh-rpg/rpg_svo_pro_open (params/calib).
"""

from pathlib import Path
from typing import Any

from sensorium.calibration.formats.draft import Draft, field_of, list_of, size_of
from sensorium.calibration.formats.storage import read_storage
from sensorium.calibration.rig_document import RigCalibration
from sensorium.verdict import Status, Verdict

IMU = "imu0"
_NOISES = ("sigma_omega_c", "sigma_acc_c", "sigma_omega_bias_c", "sigma_acc_bias_c")


def claims(fields: dict[str, Any]) -> bool:
    """Return whether a file describes such a rig."""
    cameras = fields.get("cameras")
    return (
        isinstance(cameras, list)
        and bool(cameras)
        and isinstance(cameras[0], dict)
        and "camera" in cameras[0]
    )


def read(
    path: Path | str,
    findings: list[Verdict] | None = None,
    size: tuple[int, int] | None = None,  # noqa: ARG001 - the format always says
) -> RigCalibration:
    """Read a rig file.

    Raises:
        CalibrationError: With the file and the key that is missing or wrong.
    """
    path = Path(path)
    draft, fields = Draft(path, findings), read_storage(path)
    for number, entry in enumerate(field_of(fields, "cameras", draft)):
        where = f"cameras[{number}]"
        camera = field_of(entry, "camera", draft, where)
        label = str(camera.get("label") or "") if isinstance(camera, dict) else ""
        name = label if label and label not in draft.cameras else f"cam{number}"
        _read_camera(draft, camera, name, f"{where}.camera")
        key = next((key for key in ("T_B_C", "T_BS") if key in entry), None)
        if key is None:
            raise draft.error(f"{where} has no T_B_C: where the camera stands is missing")
        draft.add_edge(IMU, name, draft.rigid(_numbers(entry[key]), f"{where}.{key}"))
    _read_imu(draft, fields.get("imu_params"))
    return draft.finish(rig=str(fields.get("label") or "ncamera"))


def _numbers(field: Any) -> Any:
    return field.get("data", field) if isinstance(field, dict) else field


def _read_camera(draft: Draft, camera: Any, name: str, where: str) -> None:
    width, height = (field_of(camera, key, draft, where) for key in ("image_width", "image_height"))
    size = size_of(width, height, draft, f"{where}.image_width, image_height")
    kind = str(field_of(camera, "type", draft, where))
    bent = camera.get("distortion") or {"type": "none"}
    bent_kind = str(field_of(bent, "type", draft, f"{where}.distortion"))
    terms = [float(value) for value in _flat(draft, bent.get("parameters"), f"{where}.distortion.parameters")]
    given = _numbers(field_of(camera, "intrinsics", draft, where))
    if kind == "pinhole":
        fx, fy, cx, cy = draft.numbers(given, 4, f"{where}.intrinsics")
        if bent_kind == "fisheye" and len(terms) == 1:
            draft.add_lens(name, "fov", size, (fx, fy, cx, cy), terms)
        else:
            draft.add_camera(name, bent_kind, (fx, 0, cx, 0, fy, cy, 0, 0, 1), size, terms)
    elif kind in ("unified-projection", "omni") and bent_kind in ("none", "radial-tangential"):
        xi, *focal = draft.numbers(given, 5, f"{where}.intrinsics").tolist()
        draft.add_lens(name, "omni", size, focal, [xi, *(terms or [0.0] * 4)])
    else:
        raise draft.error(
            f"{where} is of type {kind!r} with {bent_kind!r} distortion, which is not read; known: pinhole, and "
            "unified-projection with radial-tangential or none"
        )
    line_delay_ns = float(
        draft.numbers([camera.get("line-delay-nanoseconds", 0)], 1, f"{where}.line-delay-nanoseconds")[0]
    )
    if line_delay_ns < 0:
        raise draft.error(f"{where}.line-delay-nanoseconds must not be negative, found {line_delay_ns:g}")
    if line_delay_ns:
        sentence = "it has a rolling shutter (line-delay-nanoseconds), which the rig document cannot hold"
        draft.note("rolling_shutter", name, Status.OK, sentence)


def _flat(draft: Draft, values: Any, what: str) -> Any:
    return list_of(_numbers(values) if values is not None else [], draft, what)


def _read_imu(draft: Draft, fields: Any) -> None:
    if not isinstance(fields, dict) or not any(key in fields for key in _NOISES):
        return
    known = {
        f"imu_params.{key}": float(draft.numbers([fields[key]], 1, key)[0]) if key in fields else None
        for key in _NOISES
    }
    draft.add_noises(IMU, known, "SVO imu_params")
