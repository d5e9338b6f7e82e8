"""ORB-SLAM2 and ORB-SLAM3 settings, before and after file version 1.0 (read).

Frames: ``cam0`` (left), ``cam1`` (right), ``imu0``. ``Tbc`` and ``IMU.T_b_c1`` take points of the first camera into
the IMU, whatever the comment beside them says ("from body-frame to left camera" in the authors' own files); ``Tlr`` and
``Stereo.T_c1_c2`` take points of the right camera into the left. ``Camera.bf`` is fx times the baseline of rectified
images. Where ``LEFT.K`` and ``RIGHT.K`` stand, they describe the images as recorded and ``Camera.fx`` the rectified
ones. Noises are densities: the program multiplies them by the root of ``IMU.Frequency``.

Source: UZ-SLAMLab/ORB_SLAM3, src/Settings.cc, Tracking::ParseCamParamFile and the files of Examples and Examples_old.
"""

from pathlib import Path
from typing import Any

import numpy as np

from sensorium.calibration.formats.draft import Draft, size_of
from sensorium.calibration.formats.storage import read_storage
from sensorium.calibration.geometry import Array, inverse, transform
from sensorium.calibration.rig_document import RigCalibration
from sensorium.verdict import Quantity, Status, Verdict

LEFT, RIGHT, IMU = "cam0", "cam1", "imu0"
_MODELS = {"PinHole": "radtan", "KannalaBrandt8": "equidistant", "Rectified": "pinhole"}
_TERMS = {"radtan": ("k1", "k2", "p1", "p2", "k3"), "equidistant": ("k1", "k2", "k3", "k4"), "pinhole": ()}
_IMU_FROM_LEFT = ("IMU.T_b_c1", "Tbc")
_LEFT_FROM_RIGHT = ("Stereo.T_c1_c2", "Tlr")
_DEPTH = ("RGBD.DepthMapFactor", "DepthMapFactor")
_SAME_BASELINE = 0.02
# No two cameras stand closer than this; 0.12 m given as bf with fx 435 would be 0.3 mm.
_LEAST_BASELINE_M = 5e-3


def claims(fields: dict[str, Any]) -> bool:
    """Return whether a settings file is one of ORB-SLAM."""
    return any(key in fields for key in ("Camera.fx", "Camera1.fx", "Camera.type", "LEFT.K"))


def read(
    path: Path | str, findings: list[Verdict] | None = None, size: tuple[int, int] | None = None
) -> RigCalibration:
    """Read a settings file.

    Args:
        size: Width and height of the images where the file does not say.

    Raises:
        CalibrationError: With the file and the key that is missing or wrong.
    """
    path = Path(path)
    draft, fields = Draft(path, findings), read_storage(path)
    if "Camera.width" in fields and "Camera.height" in fields:
        size = size_of(fields["Camera.width"], fields["Camera.height"], draft, "Camera.width, Camera.height")
    if "LEFT.K" in fields and "RIGHT.K" in fields:
        _read_unrectified(draft, fields, size)
    else:
        _read_cameras(draft, fields, size)
    _read_imu(draft, fields)
    _note_scale(draft, fields)
    _note_colour(draft, fields)
    return draft.finish(rig="orbslam")


def _number(draft: Draft, fields: dict[str, Any], key: str) -> float:
    if key not in fields:
        near = ", ".join(name for name in fields if name.startswith(key.split(".")[0])) or "nothing like it"
        raise draft.error(f"{key} is missing; found: {near[:160]}")
    return float(draft.numbers([fields[key]], 1, key)[0])


def _read_cameras(draft: Draft, fields: dict[str, Any], size: tuple[int, int] | None) -> None:
    said = str(fields.get("Camera.type", "PinHole"))
    if said not in _MODELS:
        raise draft.error(f"Camera.type is {said!r}, which is not read; known: {', '.join(_MODELS)}")
    model = _MODELS[said]
    first = "Camera1" if "Camera1.fx" in fields else "Camera"
    _read_camera(draft, fields, first, LEFT, model, size)
    T = _given(draft, fields, _LEFT_FROM_RIGHT, f"{LEFT}~{RIGHT}")
    if "Camera2.fx" in fields:
        _read_camera(draft, fields, "Camera2", RIGHT, model, size)
    if T is not None:
        draft.add_edge(LEFT, RIGHT, T)
    _read_baseline(draft, fields, T, f"{first}.fx")


def _read_camera(
    draft: Draft, fields: dict[str, Any], prefix: str, name: str, model: str, size: tuple[int, int] | None
) -> None:
    focal = [_number(draft, fields, f"{prefix}.{key}") for key in ("fx", "fy", "cx", "cy")]
    keys = [f"{prefix}.{term}" for term in _TERMS[model]]
    if model == "radtan":
        keys = [key for key in keys if key in fields] if f"{prefix}.k1" in fields else []
        if keys and len(keys) < 4:
            missing = next(f"{prefix}.{term}" for term in _TERMS[model] if f"{prefix}.{term}" not in fields)
            raise draft.error(
                f"{missing} is missing beside {keys[0]}: PinHole takes k1 k2 p1 p2 and perhaps k3"
            )
    terms = [_number(draft, fields, key) for key in keys]
    fx, fy, cx, cy = focal
    draft.add_camera(name, model if terms else "pinhole", (fx, 0, cx, 0, fy, cy, 0, 0, 1), size, terms)


def _given(draft: Draft, fields: dict[str, Any], keys: tuple[str, ...], subject: str) -> Array | None:
    key = next((key for key in keys if key in fields), None)
    return None if key is None else draft.rigid(fields[key], f"{key} ({subject})")


def _read_baseline(draft: Draft, fields: dict[str, Any], T: Array | None, fx_key: str) -> None:
    """Place the right camera by ``Camera.bf`` or ``Stereo.b`` of rectified images, or compare with its transform."""
    fx = draft.cameras[LEFT].fx
    if "Stereo.b" in fields and T is None:
        baseline_m, said = _number(draft, fields, "Stereo.b"), "Stereo.b"
    elif "Camera.bf" in fields:
        baseline_m, said = _number(draft, fields, "Camera.bf") / fx, f"Camera.bf / {fx_key}"
    else:
        return
    subject = f"{LEFT}~{RIGHT}"
    if any(key in fields for key in _DEPTH):
        sentence = (
            f"{said} is {baseline_m:.4g} m, but a depth map factor says RGB-D: a made-up baseline; left out"
        )
        draft.note("virtual_baseline", subject, Status.OK, sentence)
        return
    if abs(baseline_m) < _LEAST_BASELINE_M:
        draft.note(
            "length_unit",
            subject,
            Status.FAILED,
            f"{said} is {baseline_m * 1000:.3g} mm: Camera.bf must be the baseline in metres times fx",
            (Quantity("baseline", baseline_m, "m", _LEAST_BASELINE_M),),
        )
    if T is None:
        draft.cameras[RIGHT] = draft.cameras[LEFT]
        draft.add_edge(LEFT, RIGHT, transform(np.eye(3), (baseline_m, 0.0, 0.0)))
    else:
        _compare_baseline(draft, baseline_m, said, T)


def _compare_baseline(draft: Draft, baseline_m: float, said: str, T_left_right: Array) -> None:
    length_m = float(np.linalg.norm(T_left_right[:3, 3]))
    if abs(baseline_m - length_m) > _SAME_BASELINE * length_m:
        draft.note(
            "baseline",
            f"{LEFT}~{RIGHT}",
            Status.SUSPECT,
            f"{said} is {baseline_m:.4g} m, the transform between the cameras is {length_m:.4g} m long: correct one",
            (Quantity("baseline", baseline_m, "m", length_m),),
        )


def _read_unrectified(draft: Draft, fields: dict[str, Any], size: tuple[int, int] | None) -> None:
    """Take the cameras as they record; their rectification says how they stand to each other."""
    T_rect: dict[str, Array] = {}
    for side, name in (("LEFT", LEFT), ("RIGHT", RIGHT)):
        own = size
        if f"{side}.width" in fields and f"{side}.height" in fields:
            own = size_of(fields[f"{side}.width"], fields[f"{side}.height"], draft, f"{side}.width, height")
        terms = np.asarray(fields.get(f"{side}.D", []), dtype=object).reshape(-1)
        draft.add_camera(
            name, "", fields[f"{side}.K"], own, draft.numbers(terms, len(terms), f"{side}.D").tolist()
        )
        if f"{side}.R" not in fields or f"{side}.P" not in fields:
            continue
        P = draft.numbers(fields[f"{side}.P"], 12, f"{side}.P").reshape(3, 4)
        R = draft.rotation(fields[f"{side}.R"], f"{side}.R")
        if abs(float(np.linalg.det(P[:, :3]))) < 1e-12:
            raise draft.error(f"{side}.P has no inverse: {P.tolist()}")
        T_rect[name] = transform(R, -np.linalg.solve(P[:, :3], P[:, 3]))
    if len(T_rect) == 2:
        T = inverse(T_rect[LEFT]) @ T_rect[RIGHT]
        draft.add_edge(LEFT, RIGHT, T)
        if "Camera.bf" in fields and "Camera.fx" in fields:
            baseline_m = _number(draft, fields, "Camera.bf") / _number(draft, fields, "Camera.fx")
            _compare_baseline(draft, baseline_m, "Camera.bf / Camera.fx", T)
    sentence = "Camera.fx describes the rectified images; LEFT and RIGHT, the images as recorded, were taken"
    draft.note("rectified", LEFT, Status.OK, sentence)


def _read_imu(draft: Draft, fields: dict[str, Any]) -> None:
    T = _given(draft, fields, _IMU_FROM_LEFT, f"{IMU}~{LEFT}")
    if T is not None:
        draft.add_edge(IMU, LEFT, T)
    keys = ("IMU.NoiseGyro", "IMU.NoiseAcc", "IMU.GyroWalk", "IMU.AccWalk")
    known = {key: _number(draft, fields, key) if key in fields else None for key in keys}
    draft.add_noises(IMU, known, "ORB-SLAM settings")


def _note_scale(draft: Draft, fields: dict[str, Any]) -> None:
    """Say for which images the numbers hold where ORB-SLAM shrinks them; a scale applied twice is a fault."""
    scale, said = 1.0, ""
    if "Camera.imageScale" in fields:
        scale, said = _number(draft, fields, "Camera.imageScale"), "Camera.imageScale"
    elif "Camera.newWidth" in fields:
        scale = _number(draft, fields, "Camera.newWidth") / draft.cameras[LEFT].width
        said = "Camera.newWidth"
    if not said or scale == 1.0:
        return
    if scale <= 0:
        raise draft.error(f"{said} must be positive, found {scale:g}")
    camera = draft.cameras[LEFT]
    off, off_scaled = (abs(camera.cx / (camera.width * factor) - 0.5) for factor in (1.0, scale))
    if off_scaled < off - 0.05:
        draft.note(
            "image_scale",
            LEFT,
            Status.FAILED,
            f"cx {camera.cx:.1f} is the middle of images of {camera.width * scale:.0f} px, not of {camera.width}: the "
            f"numbers were scaled already, and {said} scales them again; give them for the images as recorded",
            (Quantity("scale", scale, "1"),),
        )
        return
    sentence = (
        f"{said} shrinks images by {scale:.3g} inside ORB-SLAM; the numbers hold for {camera.width}x{camera.height} "
        "as recorded, and were taken so"
    )
    draft.note("image_scale", LEFT, Status.OK, sentence)


def _note_colour(draft: Draft, fields: dict[str, Any]) -> None:
    if "Camera.RGB" not in fields:
        return
    value = _number(draft, fields, "Camera.RGB")
    if value not in (0.0, 1.0):
        sentence = f"Camera.RGB is {value:g}; it must be 1 (images come as RGB) or 0 (BGR)"
        draft.note("colour_order", LEFT, Status.SUSPECT, sentence)
        return
    order, other = ("RGB", "BGR") if value else ("BGR", "RGB")
    sentence = (
        f"Camera.RGB {value:g}: ORB-SLAM expects {order} images. It changes no geometry, but {other} images would be "
        "made grey with red and blue swapped; not kept in the rig document"
    )
    draft.note("colour_order", LEFT, Status.OK, sentence)
