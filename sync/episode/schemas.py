"""Our own protobuf schemas, built without protoc, and the serialised descriptors that MCAP files embed."""

from typing import Any

from foxglove_schemas_protobuf.CameraCalibration_pb2 import CameraCalibration
from foxglove_schemas_protobuf.CompressedImage_pb2 import CompressedImage
from foxglove_schemas_protobuf.CompressedVideo_pb2 import CompressedVideo
from foxglove_schemas_protobuf.FrameTransforms_pb2 import FrameTransforms
from foxglove_schemas_protobuf.PointCloud_pb2 import PointCloud
from foxglove_schemas_protobuf.RawAudio_pb2 import RawAudio
from foxglove_schemas_protobuf.RawImage_pb2 import RawImage
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, timestamp_pb2

_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "string": _Field.TYPE_STRING,
    "bytes": _Field.TYPE_BYTES,
    "double": _Field.TYPE_DOUBLE,
    "int32": _Field.TYPE_INT32,
    "uint32": _Field.TYPE_UINT32,
    "sint64": _Field.TYPE_SINT64,
    "uint64": _Field.TYPE_UINT64,
    "fixed32": _Field.TYPE_FIXED32,
    "sfixed32": _Field.TYPE_SFIXED32,
    "sfixed64": _Field.TYPE_SFIXED64,
}
_TIMESTAMP = "Timestamp"

_MESSAGES: dict[str, tuple[tuple[str, str], ...]] = {
    "KeyValue": (("key", "string"), ("value", "string")),
    # One column of a block: ``data`` holds little-endian raw values; physical value = raw * scale.
    "SampleColumn": (
        ("name", "string"),
        ("unit", "string"),
        ("dtype", "string"),
        ("scale", "double"),
        ("data", "bytes"),
    ),
    "SampleBlock": (
        ("timestamp", _TIMESTAMP),
        ("frame_id", "string"),
        ("columns", "*SampleColumn"),
        ("count", "uint32"),
    ),
    # UDP packets of one LiDAR revolution back to back, all of equal size.
    "Packets": (("timestamp", _TIMESTAMP), ("frame_id", "string"), ("data", "bytes"), ("count", "uint32")),
    # What a codec made of a frame; ``encoding`` names the codec's encoding (docs/codecs.md), ``data`` begins with its
    # version. The stream's declaration in the channel's metadata says what it restores to.
    "Coded": (
        ("timestamp", _TIMESTAMP),
        ("frame_id", "string"),
        ("encoding", "string"),
        ("data", "bytes"),
        ("count", "uint32"),
    ),
    # One entry per frame of the same chunk, in order; ``*_counts*`` say how many of the stamps belong to each. A
    # ``step`` is a value minus the one before it in its column, the first minus zero, modulo 2^64; ``seq_gap`` is the
    # frame's first sequence number minus the end (first number plus count) of the frame before, the first minus zero.
    "Stamps": (
        ("instance_step", "*sint64"),
        ("seq_gap", "*sint64"),
        ("count_step", "*sint64"),
        ("epoch_step", "*sint64"),
        ("tick_counts_step", "*sint64"),
        ("arrival_counts_step", "*sint64"),
        ("capture_counts_step", "*sint64"),
        ("device_ticks_step", "*sint64"),
        ("arrival_host_step_ns", "*sint64"),
        ("capture_host_step_ns", "*sint64"),
        ("statistical_ns", "*double"),
        ("floor_ns", "*double"),
        ("asymmetry_ns", "*double"),
        ("meta", "*double"),
    ),
    # ``seq`` is -1 where a stream has no match; ``outcome`` is "matched" or the reason.
    "SyncMatch": (
        ("stream", "string"),
        ("outcome", "string"),
        ("seq", "sint64"),
        ("residual_ns", "sint64"),
        ("gap_ns", "sint64"),
        ("bound_ns", "double"),
    ),
    "SyncRow": (
        ("timestamp", _TIMESTAMP),
        ("tick_seq", "uint64"),
        ("tick_host_ns", "sfixed64"),
        ("matches", "*SyncMatch"),
    ),
    "Event": (
        ("timestamp", _TIMESTAMP),
        ("host_ns", "sfixed64"),
        ("kind", "string"),
        ("stream", "string"),
        ("detail", "string"),
        ("fields", "*KeyValue"),
    ),
    "ClockBase": (
        ("timestamp", _TIMESTAMP),
        ("raw_ns", "sfixed64"),
        ("monotonic_ns", "sfixed64"),
        ("realtime_ns", "sfixed64"),
        ("tai_ns", "sfixed64"),
        ("bracket_ns", "sfixed64"),
    ),
    "ClockModel": (
        ("timestamp", _TIMESTAMP),
        ("stream", "string"),
        ("instance", "uint32"),
        ("host_ns", "sfixed64"),
        ("epoch", "int32"),
        ("method", "string"),
        ("ref_ticks", "sfixed64"),
        ("ref_host_ns", "sfixed64"),
        ("ns_per_tick", "double"),
        ("skew_ppm", "double"),
        ("statistical_ns", "double"),
        ("floor_ns", "double"),
        ("asymmetry_ns", "double"),
    ),
}


def _own_file() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(
        name="sensorium/episode.proto",
        package="sensorium",
        syntax="proto3",
        dependency=["google/protobuf/timestamp.proto"],
    )
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, (field_name, spelled) in enumerate(fields, start=1):
            kind = spelled.lstrip("*")
            field = message.field.add(name=field_name, number=number)
            field.label = _Field.LABEL_REPEATED if spelled.startswith("*") else _Field.LABEL_OPTIONAL
            if kind in _SCALARS:
                field.type = _SCALARS[kind]
            else:
                field.type = _Field.TYPE_MESSAGE
                field.type_name = ".google.protobuf.Timestamp" if kind == _TIMESTAMP else f".sensorium.{kind}"
    return file


def _own_classes() -> dict[str, Any]:
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(timestamp_pb2.DESCRIPTOR.serialized_pb)
    pool.AddSerializedFile(_own_file().SerializeToString())
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"sensorium.{name}"))
        for name in _MESSAGES
    }


_OWN = _own_classes()

SampleColumn: Any = _OWN["SampleColumn"]
SampleBlock: Any = _OWN["SampleBlock"]
Packets: Any = _OWN["Packets"]
Coded: Any = _OWN["Coded"]
Stamps: Any = _OWN["Stamps"]
SyncRowMessage: Any = _OWN["SyncRow"]
SyncMatchMessage: Any = _OWN["SyncMatch"]
EventMessage: Any = _OWN["Event"]
ClockBaseMessage: Any = _OWN["ClockBase"]
ClockModelMessage: Any = _OWN["ClockModel"]

FOXGLOVE: dict[str, Any] = {
    "CameraCalibration": CameraCalibration,
    "CompressedImage": CompressedImage,
    "CompressedVideo": CompressedVideo,
    "FrameTransforms": FrameTransforms,
    "PointCloud": PointCloud,
    "RawAudio": RawAudio,
    "RawImage": RawImage,
}


def field_number(message: Any, name: str) -> int:
    """Return the number of a field of a message class."""
    return int(message.DESCRIPTOR.fields_by_name[name].number)


def descriptor_set(message: Any) -> bytes:
    """Return the serialised FileDescriptorSet of a message class, its dependencies first."""
    found = descriptor_pb2.FileDescriptorSet()
    seen: set[str] = set()

    def add(file: Any) -> None:
        if file.name in seen:
            return
        seen.add(file.name)
        for dependency in file.dependencies:
            add(dependency)
        found.file.add().ParseFromString(file.serialized_pb)

    add(message.DESCRIPTOR.file)
    return found.SerializeToString(deterministic=True)
