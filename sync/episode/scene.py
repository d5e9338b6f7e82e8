"""The calibration as viewers want it: frame transforms and camera calibrations of the foxglove schemas."""

from typing import Any

from sensorium.calibration.edges import Edge
from sensorium.calibration.geometry import quaternion_from_rotation
from sensorium.calibration.rig_document import Intrinsics, RigCalibration
from sensorium.sync.episode.schemas import FOXGLOVE

TRANSFORMS_TOPIC = "/tf_static"
_DISTORTION_MODELS = {
    "pinhole": ("", 0),
    "radtan": ("plumb_bob", 5),
    "rational": ("rational_polynomial", 8),
    "equidistant": ("kannala_brandt", 4),
}


def scene_messages(calibration: RigCalibration, utc_ns: int) -> list[tuple[str, Any]]:
    """Return (topic, message) of all that a rig document says about geometry, for viewers.

    The exact document is attached beside; these messages only place clouds and images in a viewer (it shows
    an error for a cloud whose frame hangs in the air). A lens that the schema lacks is left out.
    """
    seconds, nanos = divmod(utc_ns, 1_000_000_000)
    stamp = {"seconds": seconds, "nanos": nanos}
    found: list[tuple[str, Any]] = []
    if calibration.edges:
        transforms = [_transform(edge) | {"timestamp": stamp} for edge in calibration.edges]
        found.append((TRANSFORMS_TOPIC, FOXGLOVE["FrameTransforms"](transforms=transforms)))
    for frame_id, camera in calibration.cameras.items():
        if camera.model not in _DISTORTION_MODELS:
            continue  # no viewer knows the lens; a pinhole in its place would draw clouds where they are not
        message = FOXGLOVE["CameraCalibration"](timestamp=stamp, frame_id=frame_id, **_camera(camera))
        found.append((f"/{frame_id}/calibration", message))
    return found


def _transform(edge: Edge) -> dict[str, Any]:
    x, y, z = edge.T_parent_child[:3, 3].tolist()
    qx, qy, qz, qw = quaternion_from_rotation(edge.T_parent_child[:3, :3]).tolist()
    return {
        "parent_frame_id": edge.parent,
        "child_frame_id": edge.child,
        "translation": {"x": x, "y": y, "z": z},
        "rotation": {"x": qx, "y": qy, "z": qz, "w": qw},
    }


def _camera(camera: Intrinsics) -> dict[str, Any]:
    model, width = _DISTORTION_MODELS[camera.model]
    K = camera.K
    return {
        "width": camera.width,
        "height": camera.height,
        "distortion_model": model,
        "D": [*camera.distortion, *[0.0] * (width - len(camera.distortion))],
        "K": K.ravel().tolist(),
        "R": [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0],
        "P": [*K[0].tolist(), 0.0, *K[1].tolist(), 0.0, *K[2].tolist(), 0.0],
    }
