"""What in recordings of others is personal: the type alone never clears a topic."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from foreign_cases import generate
from foxglove_schemas_protobuf.PackedElementField_pb2 import PackedElementField
from foxglove_schemas_protobuf.PointCloud_pb2 import PointCloud
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from sensorium.drivers.frame import MessageSchema, Modality
from sensorium.errors import ConfigError
from sensorium.simulators.player import cleared
from sensorium.sync.episode.personal import PERSONAL_BECAUSE, SAID_NOT_PERSONAL
from sensorium.sync.sources import known_types, open_source
from sensorium.sync.sources.message_stream import MessageChannel
from sensorium.sync.sources.topic_kinds import Topic, carries_colour, is_depth, kind_of

pytest.importorskip("rosbags")
from rosbags.typesys import Stores, get_typestore

HEADER = "std_msgs/Header header\n"


def ros(name: str, definition: str = "", encoding: str = "ros2msg") -> MessageSchema:
    return MessageSchema("cdr", name, encoding if definition else "", definition.encode())


def told(schema: MessageSchema, topic: str = "/x", **found: object) -> tuple[Modality, str]:
    kind = kind_of(Topic(topic, schema, **found))  # type: ignore[arg-type]
    return kind.modality, kind.personal_because


def idl(name: str, field: str) -> MessageSchema:
    package, _, kind = name.partition("/msg/")
    text = f"module {package} {{\n module msg {{\n  struct {kind} {{\n   {field};\n  }};\n }};\n}};\n"
    return MessageSchema("cdr", name, "ros2idl", text.encode())


def json_schema(name: str, properties: dict[str, object]) -> MessageSchema:
    text = json.dumps({"title": name, "type": "object", "properties": properties})
    return MessageSchema("json", name, "jsonschema", text.encode())


def protobuf(name: str, fields: dict[str, int]) -> MessageSchema:
    found = FileDescriptorSet()
    package, _, last = name.rpartition(".")
    file = found.file.add(name="x.proto", package=package, syntax="proto3")
    message = file.message_type.add(name=last)
    for number, (field, kind) in enumerate(fields.items(), 1):
        message.field.add(name=field, number=number, label=1, type=kind)
    return MessageSchema("protobuf", name, "protobuf", found.SerializeToString())


BYTES, DOUBLE, STRING = 12, 1, 9


@pytest.mark.parametrize(
    ("schema", "modality"),
    [
        (ros("theora_image_transport/msg/Packet", HEADER + "uint8[] data\n"), Modality.CAMERA),
        (ros("h264_msgs/msg/Packet", HEADER + "uint8[] data\n"), Modality.CAMERA),
        (ros("ffmpeg_image_transport_msgs/msg/FFMPEGPacket"), Modality.CAMERA),
        (ros("realsense2_camera_msgs/msg/RGBD", HEADER + "sensor_msgs/Image rgb\n"), Modality.CAMERA),
        (
            ros(
                "acme_msgs/msg/Station",
                "acme_msgs/Eye[] eyes\n=====\nMSG: acme_msgs/Eye\nsensor_msgs/Image at\n",
            ),
            None,
        ),
        (ros("acme_msgs/msg/Snapshot", "uint8[] jpeg\n"), None),
        (ros("audio_common_msgs/msg/AudioStamped", HEADER + "uint8[] audio\n"), Modality.AUDIO),
        (ros("acme_msgs/msg/Ear", "int16[] pcm\n"), Modality.AUDIO),
        (ros("ublox_msgs/msg/NavPVT", "uint32 i_tow\nint32 lon\nint32 lat\n"), Modality.GNSS),
        (ros("novatel_gps_msgs/msg/Inspva"), Modality.GNSS),
        (ros("px4_msgs/msg/VehicleGlobalPosition", "uint64 timestamp\nfloat64 lat\n"), Modality.GNSS),
        (ros("geographic_msgs/msg/GeoPoseStamped"), Modality.GNSS),
        (ros("gps_msgs/msg/GPSFix"), Modality.GNSS),
        (ros("nmea_msgs/msg/Sentence", HEADER + "string sentence\n"), Modality.GNSS),
        (ros("sensor_msgs::msg::dds_::NavSatFix_"), Modality.GNSS),
        (ros("dvs_msgs/msg/EventArray"), Modality.EVENT_CAMERA),
        (ros("event_camera_msgs/msg/EventPacket", HEADER + "uint8[] events\n"), Modality.EVENT_CAMERA),
        (ros("std_msgs/msg/String", "string data\n"), Modality.TEXT),
        (ros("diagnostic_msgs/msg/DiagnosticArray"), Modality.TEXT),
        (ros("rcl_interfaces/msg/Log"), Modality.TEXT),
        (ros("std_msgs/msg/UInt8MultiArray", "uint8[] data\n"), None),
        (ros("std_msgs/msg/Float32MultiArray", "float32[] data\n"), None),
        (ros("acme_msgs/msg/PacketMsg", "uint8[] buf\n"), None),
        (ros("acme_msgs/msg/Imu", "float64 x\n"), None),
        (ros("acme_msgs/msg/Gizmo"), None),
        (MessageSchema("json", "", "", b""), None),
        (MessageSchema("cbor", "Thing", "", b""), None),
        (idl("acme/msg/Shot", "sequence<uint8> image"), None),
        (idl("acme/msg/Place", "double latitude"), Modality.GNSS),
        (json_schema("Place", {"longitude": {"type": "number"}}), Modality.GNSS),
        (
            json_schema("Pose", {"where": {"type": "object", "properties": {"lat": {"type": "number"}}}}),
            Modality.GNSS,
        ),
        (json_schema("Note", {"speech": {"type": "string"}}), Modality.AUDIO),
        (protobuf("acme.Frame", {"jpeg": BYTES}), None),
        (protobuf("acme.Fix", {"latitude": DOUBLE}), Modality.GNSS),
        (protobuf("acme.Said", {"transcript": STRING}), Modality.AUDIO),
        (
            MessageSchema("flatbuffer", "acme.Fix", "flatbuffer", b"\0\0latitude\0\0longitude\0"),
            Modality.GNSS,
        ),
        (MessageSchema("flatbuffer", "foxglove.CompressedVideo", "flatbuffer", b"\0"), Modality.CAMERA),
    ],
)
def test_what_may_show_people_is_personal_and_says_why(
    schema: MessageSchema, modality: Modality | None
) -> None:
    found, because = told(schema)
    assert because, schema.name
    assert found is (modality or Modality.OTHER)


def test_every_type_that_is_known_to_be_harmless_is_so_with_its_genuine_definition() -> None:
    count = 0
    for distribution, number in ((Stores.ROS1_NOETIC, 1), (Stores.ROS2_HUMBLE, 2), (Stores.ROS2_JAZZY, 2)):
        store = get_typestore(distribution)
        for name in store.types:
            if known_types.plain_name(name) in known_types.HARMLESS:
                definition, _ = store.generate_msgdef(name, ros_version=number)
                _, because = told(ros(name, definition), has_colour=False)
                assert because == "", name
                count += 1
    assert count > 150


@pytest.mark.parametrize(
    ("name", "definition"),
    [
        ("sensor_msgs/msg/Imu", HEADER + "sensor_msgs/Image picture\n"),
        ("sensor_msgs/msg/Imu", HEADER + "uint8[] data\n"),
        ("sensor_msgs/msg/Imu", HEADER + "uint8[4096] buffer\n"),
        ("sensor_msgs/msg/Temperature", HEADER + "float64 latitude\n"),
        ("tf2_msgs/msg/TFMessage", "<no definition>\n"),
        ("sensor_msgs/msg/Image", HEADER + "float64 latitude\nuint8[] data\n"),
    ],
)
def test_a_harmless_name_does_not_clear_a_definition_that_holds_more(name: str, definition: str) -> None:
    assert told(ros(name, definition), "/depth/image_raw", image_format="16UC1")[1]


@pytest.mark.parametrize(
    ("topic", "frame_id", "image_format", "is_it"),
    [
        ("/camera/depth/image_rect_raw", "cam", "16UC1", True),
        ("/camera/aligned_depth_to_color/image_raw", "camera_color_optical_frame", "16UC1", True),
        ("/device_0/sensor_0/Depth_0/image/data", "0", "mono16", True),
        ("/k4a/depth_to_rgb/image_raw", "rgb_camera_link", "32FC1", True),
        ("/image", "camera_depth_optical_frame", "16UC1", True),
        ("/ouster/range_image", "os_sensor", "mono16", True),
        ("/cam/compressed", "cam", "16UC1; compressedDepth png", True),
        ("/flir_boson/image_raw", "boson_camera", "mono16", False),
        ("/thermal/image", "thermal_frame", "16UC1", False),
        ("/camera/ir/image_raw", "camera_depth_optical_frame", "mono16", False),
        ("/depth_camera/infra1/image_rect_raw", "camera_depth_optical_frame", "mono16", False),
        ("/camera/image_raw", "cam", "16UC1", False),
        ("/radiometry", "cam", "32FC1", False),
        ("/long_range_camera/image_raw", "cam", "mono16", False),
        ("/in_depth/image_raw", "cam", "rgb8", False),
        ("/camera/depth/image_raw", "cam", "mono8", False),
        ("/ouster/nearir_image", "os_sensor", "mono16", False),
    ],
)
def test_sixteen_bits_are_depth_only_where_topic_frame_or_encoding_say_so(
    topic: str, frame_id: str, image_format: str, is_it: bool
) -> None:
    assert is_depth(topic, frame_id, image_format) is is_it
    modality, because = told(
        ros("sensor_msgs/msg/Image"), topic, frame_id=frame_id, image_format=image_format
    )
    assert (modality is Modality.DEPTH, because == "") == (is_it, is_it)


def cloud_of(dialect: str, fields: tuple[str, ...]) -> tuple[MessageSchema, bytes]:
    if dialect == "protobuf":
        packed = [
            PackedElementField(name=name, offset=4 * n, type=PackedElementField.FLOAT32)
            for n, name in enumerate(fields)
        ]
        cloud = PointCloud(point_stride=4 * len(fields), fields=packed, data=bytes(400))
        return MessageSchema("protobuf", "foxglove.PointCloud", "", b""), cloud.SerializeToString()
    store = get_typestore(Stores.ROS1_NOETIC if dialect == "ros1" else Stores.ROS2_HUMBLE)
    of: Any = store.types
    stamp = of["builtin_interfaces/msg/Time"](1, 2)
    head = {"seq": 0} if dialect == "ros1" else {}
    header = of["std_msgs/msg/Header"](stamp=stamp, frame_id="lidar", **head)
    # An offset of 48 is the digit 0 in text: what follows a name must not be taken for a part of it.
    described = [of["sensor_msgs/msg/PointField"](name, 48 + 4 * n, 7, 1) for n, name in enumerate(fields)]
    data = np.zeros(400, np.uint8)
    message = of["sensor_msgs/msg/PointCloud2"](header, 1, 10, described, False, 40, 400, data, True)
    name = "sensor_msgs/msg/PointCloud2"
    pack = store.serialize_ros1 if dialect == "ros1" else store.serialize_cdr
    return MessageSchema(dialect, name, "", b""), bytes(pack(message, name))


@pytest.mark.parametrize("dialect", ["ros1", "cdr", "protobuf"])
@pytest.mark.parametrize(
    ("fields", "is_personal"),
    [
        (("x", "y", "z", "rgb"), True),
        (("x", "y", "z", "rgba"), True),
        (("x", "y", "z", "r", "g", "b"), True),
        (("x", "y", "z", "red", "green", "blue", "alpha"), True),
        (("x", "y", "z", "RGB"), True),
        (("x", "y", "z", "intensity", "ring", "time"), False),
        (("x", "y", "z", "r", "azimuth"), False),
    ],
)
def test_a_cloud_whose_points_have_colour_is_personal(
    dialect: str, fields: tuple[str, ...], is_personal: bool
) -> None:
    schema, payload = cloud_of(dialect, fields)
    channel = MessageChannel("cloud", "/points", schema)
    channel.observe(payload, 1, 1)
    info = channel.declare()
    assert info.modality is Modality.LIDAR
    assert info.is_personal is is_personal
    assert (PERSONAL_BECAUSE in info.details) is is_personal


def test_a_cloud_in_an_encoding_that_is_not_read_is_personal() -> None:
    assert carries_colour(MessageSchema("cbor", "sensor_msgs/msg/PointCloud2", "", b""), b"...") is None
    assert told(ros("sensor_msgs/msg/PointCloud2"), has_colour=None)[1]


@pytest.mark.parametrize("topic", ["/gps/odom", "/gnss/pose", "/novatel/odom", "/state/latitude"])
def test_a_position_whose_topic_says_globe_is_personal(topic: str) -> None:
    assert told(ros("nav_msgs/msg/Odometry"), topic)[0] is Modality.GNSS
    assert told(ros("nav_msgs/msg/Odometry"), "/wheels/odom") == (Modality.OTHER, "")


@pytest.mark.parametrize(
    ("kind", "topic"),
    [
        ("std_msgs/msg/Float64", "/vehicle/lat"),
        ("std_msgs/msg/Int32", "/fix/lon_e7"),
        ("geometry_msgs/msg/Vector3Stamped", "/filter/positionlla"),
        ("nav_msgs/msg/Odometry", "/mavros/global_position/local"),
        ("geometry_msgs/msg/PoseStamped", "/odomgps"),
    ],
)
def test_plain_numbers_are_positions_on_the_globe_where_their_topic_says_so(kind: str, topic: str) -> None:
    assert told(ros(kind), topic)[0] is Modality.GNSS


@pytest.mark.parametrize(
    ("kind", "topic"),
    [
        ("std_msgs/msg/Float64", "/arm/torque"),
        ("geometry_msgs/msg/Vector3Stamped", "/imu/mag"),
        ("nav_msgs/msg/Path", "/global_plan"),
        ("geometry_msgs/msg/PoseStamped", "/llama/pose"),
    ],
)
def test_plain_numbers_of_other_topics_are_not(kind: str, topic: str) -> None:
    assert told(ros(kind), topic) == (Modality.OTHER, "")


def test_a_transform_into_a_frame_of_the_globe_is_personal() -> None:
    for frame, is_personal in (("utm", True), ("earth", True), ("map", False), ("base_utmost", False)):
        text = frame.encode() + b"\0"
        payload = b"\0\1\0\0" + bytes(12) + len(text).to_bytes(4, "little") + text + bytes(60)
        channel = MessageChannel("tf", "/tf", ros("tf2_msgs/msg/TFMessage"))
        channel.observe(payload, 1, 1)
        assert channel.declare().is_personal is is_personal, frame


def test_topics_in_types_of_other_packages_are_personal(tmp_path: Path) -> None:
    right = generate("mcap_video_of_other_types", tmp_path)
    with open_source(tmp_path / "drive.mcap") as source:
        assert [info.details["topic"] for info in source.streams if info.is_personal] == right["personal"]
        modalities = {info.modality for info in source.streams}
        assert modalities == {Modality.CAMERA, Modality.AUDIO, Modality.GNSS}


def test_somebody_may_say_that_a_topic_is_harmless_and_the_manifest_keeps_it() -> None:
    channel = MessageChannel("motor", "/motor/state", ros("acme_msgs/msg/Motor", "float64 current\n"))
    channel.observe(bytes(16), 1, 1)
    info = channel.declare()
    assert info.is_personal
    for name in ("motor", "/motor/state"):
        (said,) = cleared([info], [name])
        assert not said.is_personal
        assert "acme_msgs/msg/Motor is unknown here" in said.details[SAID_NOT_PERSONAL]
    with pytest.raises(ConfigError, match="no stream 'moter'; did you mean 'motor'"):
        cleared([info], ["moter"])
