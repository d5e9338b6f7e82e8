"""Foxglove ``CameraCalibration`` and ``FrameTransform(s)`` messages in an MCAP file (read and write).

Frames keep their ids. ``FrameTransform`` is the pose of the child in the parent, quaternion x y z w. Messages
in protobuf and in JSON are read. A transform that changes during the file is a motion, not a mount: it is
left out and named.

Source: the Foxglove schemas ``foxglove.CameraCalibration`` and ``foxglove.FrameTransform``.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from foxglove_schemas_protobuf.CameraCalibration_pb2 import CameraCalibration
from foxglove_schemas_protobuf.FrameTransform_pb2 import FrameTransform
from foxglove_schemas_protobuf.FrameTransforms_pb2 import FrameTransforms
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.json_format import ParseDict, ParseError
from google.protobuf.message import DecodeError
from mcap.exceptions import McapError
from mcap.reader import make_reader
from mcap.writer import Writer

from sensorium.calibration.formats.draft import Draft
from sensorium.calibration.geometry import (
    Array,
    Intrinsics,
    quaternion_from_rotation,
    rotation_from_quaternion,
    transform,
)
from sensorium.calibration.rig_document import RigCalibration
from sensorium.errors import CalibrationError
from sensorium.verdict import Status, Verdict

TRANSFORMS_TOPIC = "/tf_static"
_SCHEMAS: dict[str, Any] = {
    "foxglove.CameraCalibration": CameraCalibration,
    "foxglove.FrameTransform": FrameTransform,
    "foxglove.FrameTransforms": FrameTransforms,
}
_WRITTEN = {
    "pinhole": ("plumb_bob", 5),
    "radtan": ("plumb_bob", 5),
    "rational": ("rational_polynomial", 8),
    "equidistant": ("kannala_brandt", 4),
}
# A mount read twice differs by rounding only; a moving arm or vehicle by far more.
_MOVES = 1e-6
_NANOSECONDS = 1_000_000_000


def read(path: Path | str, findings: list[Verdict] | None = None) -> RigCalibration:
    """Read the first calibration of each camera and every transform that stays the same.

    Raises:
        CalibrationError: If it is no MCAP file or holds none of these messages.
    """
    path = Path(path)
    draft = Draft(path, findings)
    cameras: dict[str, Any] = {}
    transforms: dict[tuple[str, str], Array] = {}
    moving: set[tuple[str, str]] = set()
    for message in _messages(path, draft):
        if isinstance(message, CameraCalibration):
            _take_camera(draft, cameras, message)
            continue
        for given in message.transforms if isinstance(message, FrameTransforms) else [message]:
            ends = (given.parent_frame_id, given.child_frame_id)
            T = _transform(given, draft)
            if ends in transforms and float(np.abs(transforms[ends] - T).max()) > _MOVES:
                moving.add(ends)
            transforms.setdefault(ends, T)
    for ends in sorted(moving):
        sentence = "moves during the recording: a motion, not a mount; left out"
        draft.note("moving_transform", "~".join(ends), Status.OK, sentence)
    for ends, T in transforms.items():
        if ends not in moving:
            draft.add_edge(*ends, T)
    return draft.finish(rig=path.stem)


def _messages(path: Path, draft: Draft) -> Iterator[Any]:
    try:
        with path.open("rb") as stream:
            reader = make_reader(stream)
            summary = reader.get_summary()
            topics = None
            if summary is not None:
                wanted = {key for key, schema in summary.schemas.items() if schema.name in _SCHEMAS}
                topics = [c.topic for c in summary.channels.values() if c.schema_id in wanted]
                if not topics:
                    return
            for schema, channel, message in reader.iter_messages(topics=topics):
                if schema is None or schema.name not in _SCHEMAS:
                    continue
                kind = _SCHEMAS[schema.name]
                if channel.message_encoding == "protobuf":
                    yield kind.FromString(message.data)
                elif channel.message_encoding == "json":
                    yield ParseDict(
                        _without_time(json.loads(message.data)), kind(), ignore_unknown_fields=True
                    )
    except (OSError, McapError, DecodeError, ParseError, ValueError, EOFError) as err:
        raise draft.error(f"not a sound MCAP file: {' '.join(str(err).split())[:160]}") from err


def _without_time(value: Any) -> Any:
    """Return JSON without its stamps: Foxglove writes them as sec and nsec, protobuf's JSON as text."""
    if isinstance(value, dict):
        return {key: _without_time(item) for key, item in value.items() if key != "timestamp"}
    return [_without_time(item) for item in value] if isinstance(value, list) else value


def _take_camera(draft: Draft, cameras: dict[str, Any], message: Any) -> None:
    name = message.frame_id
    if name in cameras:
        known = cameras[name]
        same = list(known.K) == list(message.K) and list(known.D) == list(message.D)
        if known.distortion_model != message.distortion_model or not same:
            sentence = (
                f"has two calibrations ({known.distortion_model!r}, {message.distortion_model!r}); "
                "the first was taken: remove the other topic"
            )
            if not any(f.check == "repeated_camera" and f.subject == name for f in draft.findings):
                draft.note("repeated_camera", name, Status.SUSPECT, sentence)
        return
    cameras[name] = message
    size = (message.width, message.height) if message.width and message.height else None
    draft.add_camera(name, message.distortion_model, list(message.K), size, list(message.D))


def _transform(message: Any, draft: Draft) -> Array:
    q = (message.rotation.x, message.rotation.y, message.rotation.z, message.rotation.w)
    length = float(np.linalg.norm(q))
    subject = f"{message.parent_frame_id}~{message.child_frame_id}"
    if not 0.9 < length < 1.1:
        raise draft.error(f"transform {subject}: quaternion of length {length:.3g}, not 1")
    xyz = (message.translation.x, message.translation.y, message.translation.z)
    return transform(rotation_from_quaternion(q), draft.numbers(xyz, 3, f"translation of {subject}"))


def write(calibration: RigCalibration, path: Path | str, utc_ns: int = 0) -> tuple[str, ...]:
    """Write an MCAP file with one message per camera and all transforms.

    Args:
        utc_ns: Stamp of the messages.

    Returns:
        One sentence for each thing that the format cannot carry.

    Raises:
        CalibrationError: If there is nothing to write.
    """
    cameras = {name: camera for name, camera in calibration.cameras.items() if camera.model in _WRITTEN}
    if not cameras and not calibration.edges:
        raise CalibrationError(
            "nothing to write: the calibration has no transform and no camera whose lens Foxglove has a model for"
        )
    stamp = {"seconds": utc_ns // _NANOSECONDS, "nanos": utc_ns % _NANOSECONDS}
    with Path(path).open("wb") as stream:
        writer: Any = Writer(stream)
        writer.start(library="sensorium")
        if calibration.edges:
            transforms = [
                _message(e.parent, e.child, e.T_parent_child) | {"timestamp": stamp}
                for e in calibration.edges
            ]
            _add(
                writer, TRANSFORMS_TOPIC, _SCHEMAS["foxglove.FrameTransforms"](transforms=transforms), utc_ns
            )
        for name, camera in cameras.items():
            message = _SCHEMAS["foxglove.CameraCalibration"](
                timestamp=stamp, frame_id=name, **_fields(camera)
            )
            _add(writer, f"/{name}/calibration", message, utc_ns)
        writer.finish()
    return tuple(
        f"left out, the format has no such lens model: {name} ({camera.model})"
        for name, camera in calibration.cameras.items()
        if name not in cameras
    )


def _message(parent: str, child: str, T: Array) -> dict[str, Any]:
    x, y, z, w = quaternion_from_rotation(T[:3, :3]).tolist()
    translation = dict(zip("xyz", T[:3, 3].tolist(), strict=True))
    return {
        "parent_frame_id": parent,
        "child_frame_id": child,
        "translation": translation,
        "rotation": {"x": x, "y": y, "z": z, "w": w},
    }


def _fields(camera: Intrinsics) -> dict[str, Any]:
    model, count = _WRITTEN[camera.model]
    K = camera.K
    return {
        "width": camera.width,
        "height": camera.height,
        "distortion_model": model,
        "D": [*camera.distortion, *[0.0] * (count - len(camera.distortion))],
        "K": K.ravel().tolist(),
        "R": np.eye(3).ravel().tolist(),
        "P": np.hstack([K, np.zeros((3, 1))]).ravel().tolist(),
    }


def _add(writer: Any, topic: str, message: Any, utc_ns: int) -> None:
    descriptors = FileDescriptorSet()
    _collect(message.DESCRIPTOR.file, descriptors, set())
    schema = writer.register_schema(
        name=message.DESCRIPTOR.full_name, encoding="protobuf", data=descriptors.SerializeToString()
    )
    channel = writer.register_channel(topic=topic, message_encoding="protobuf", schema_id=schema)
    writer.add_message(channel, log_time=utc_ns, publish_time=utc_ns, data=message.SerializeToString())


def _collect(file: FileDescriptor, into: FileDescriptorSet, seen: set[str]) -> None:
    if file.name in seen:
        return
    seen.add(file.name)
    for needed in file.dependencies:
        _collect(needed, into, seen)
    file.CopyToProto(into.file.add())
