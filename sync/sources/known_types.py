"""Message types of other packages that are known: what they come from, and which of them hold nobody.

A type that shows people is told by the last part of its name, whoever defines it. A type is harmless only under
its full name: another package's ``PacketMsg`` may be video.
"""

import re
from dataclasses import dataclass

from sensorium.drivers.frame import Modality


@dataclass(frozen=True, slots=True)
class Harmless:
    """A type that holds nobody by what its own package says.

    Attributes:
        has_bytes: Its genuine definition holds long arrays of bytes.
        may_be_place: A position may be one on the globe, if its topic or its frame say so.
    """

    modality: Modality = Modality.OTHER
    has_bytes: bool = False
    may_be_place: bool = False


IMAGES = frozenset({"Image", "RawImage", "CompressedImage"})
CLOUDS = frozenset({"PointCloud2", "PointCloud"})

PERSONAL = {
    "image": (Modality.CAMERA, "pictures"),
    "rawimage": (Modality.CAMERA, "pictures"),
    "compressedimage": (Modality.CAMERA, "pictures"),
    "compressedvideo": (Modality.CAMERA, "video"),
    "ffmpegpacket": (Modality.CAMERA, "video"),
    "rgbd": (Modality.CAMERA, "pictures"),
    "rgbdimage": (Modality.CAMERA, "pictures"),
    "audio": (Modality.AUDIO, "sound"),
    "audiodata": (Modality.AUDIO, "sound"),
    "rawaudio": (Modality.AUDIO, "sound"),
    "navsatfix": (Modality.GNSS, "positions on the globe"),
    "gpsfix": (Modality.GNSS, "positions on the globe"),
    "locationfix": (Modality.GNSS, "positions on the globe"),
    "locationfixes": (Modality.GNSS, "positions on the globe"),
    "geojson": (Modality.GNSS, "positions on the globe"),
    "sentence": (Modality.GNSS, "positions on the globe, as NMEA sentences"),
    "geopoint": (Modality.GNSS, "positions on the globe"),
    "geopose": (Modality.GNSS, "positions on the globe"),
    "eventarray": (Modality.EVENT_CAMERA, "what an event camera saw"),
    "eventpacket": (Modality.EVENT_CAMERA, "what an event camera saw"),
    "string": (Modality.TEXT, "text"),
    "log": (Modality.TEXT, "text that programs write freely"),
    "diagnosticarray": (Modality.TEXT, "text that drivers write freely, a receiver's position among it"),
    "diagnosticstatus": (Modality.TEXT, "text that drivers write freely, a receiver's position among it"),
}
"""By the last part of a type's name in lower case, without a ``Stamped`` at its end: what its messages hold."""

_NUMBERS = (
    "Bool",
    "Byte",
    "Char",
    *(f"{sign}{bits}" for sign in ("Int", "UInt") for bits in ("8", "16", "32", "64")),
)
_WIDE_NUMBERS = ("Float32", "Float64", "Int32", "Int64", "UInt32", "UInt64")  # wide enough for a latitude
_GEOMETRY = ("Accel", "Inertia", "Twist", "Quaternion")
_PLACES = (
    "Vector3",
    "Pose",
    "Pose2D",
    "PoseArray",
    "PoseWithCovariance",
    "Point",
    "Point32",
    "Polygon",
    "Transform",
)


def _named(package: str, names: tuple[str, ...], kind: Harmless) -> dict[str, Harmless]:
    return {f"{package}/{name}": kind for name in names}


def _stamped(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{name}{end}" for name in names for end in ("", "Stamped", "WithCovariance")) + tuple(
        f"{name}WithCovarianceStamped" for name in names
    )


_PLAIN, _PLACE = Harmless(), Harmless(may_be_place=True)
_LIDAR, _PACKETS = Harmless(Modality.LIDAR), Harmless(Modality.LIDAR, has_bytes=True)
_SCALAR, _JOINTS, _ACTION = Harmless(Modality.SCALAR), Harmless(Modality.JOINTS), Harmless(Modality.ACTION)

HARMLESS: dict[str, Harmless] = {
    **_named("std_msgs", (*_NUMBERS, "ColorRGBA", "Duration", "Empty", "Header", "Time"), _PLAIN),
    **_named("std_msgs", _WIDE_NUMBERS, _PLACE),
    **_named("builtin_interfaces", ("Duration", "Time"), _PLAIN),
    **_named("geometry_msgs", _stamped(_GEOMETRY), _PLAIN),
    **_named("geometry_msgs", _stamped(_PLACES), _PLACE),
    **_named("geometry_msgs", ("Wrench", "WrenchStamped"), Harmless(Modality.FORCE)),
    **_named("nav_msgs", ("Odometry", "Path", "GridCells", "MapMetaData"), _PLACE),
    "nav_msgs/OccupancyGrid": Harmless(has_bytes=True, may_be_place=True),
    "tf/tfMessage": _PLACE,
    "tf2_msgs/TFMessage": _PLACE,
    "rosgraph_msgs/Clock": _PLAIN,
    "rosgraph_msgs/TopicStatistics": _PLAIN,
    "statistics_msgs/MetricsMessage": _PLAIN,
    "action_msgs/GoalStatusArray": _PLAIN,
    "lifecycle_msgs/TransitionEvent": _PLAIN,
    "sensor_msgs/Imu": Harmless(Modality.IMU),
    "sensor_msgs/PointCloud2": _PACKETS,
    "sensor_msgs/PointCloud": _LIDAR,
    "sensor_msgs/LaserScan": _LIDAR,
    "sensor_msgs/MultiEchoLaserScan": _LIDAR,
    "sensor_msgs/LaserEcho": _LIDAR,
    "sensor_msgs/JointState": _JOINTS,
    "sensor_msgs/MultiDOFJointState": _JOINTS,
    **_named("sensor_msgs", ("Temperature", "FluidPressure", "RelativeHumidity", "Illuminance"), _SCALAR),
    **_named("sensor_msgs", ("BatteryState", "Range"), _SCALAR),
    **_named("sensor_msgs", ("CameraInfo", "Joy", "JoyFeedback", "JoyFeedbackArray"), _PLAIN),
    **_named("sensor_msgs", ("MagneticField", "RegionOfInterest", "TimeReference"), _PLAIN),
    **_named("trajectory_msgs", ("JointTrajectory", "JointTrajectoryPoint"), _ACTION),
    "trajectory_msgs/MultiDOFJointTrajectory": Harmless(Modality.ACTION, may_be_place=True),
    **_named("control_msgs", ("JointJog", "GripperCommand", "PidState"), _ACTION),
    **_named("control_msgs", ("JointControllerState", "JointTrajectoryControllerState"), _JOINTS),
    "control_msgs/DynamicJointState": _JOINTS,
    **_named("ackermann_msgs", ("AckermannDrive", "AckermannDriveStamped"), _ACTION),
    "can_msgs/Frame": Harmless(Modality.CAN),
    **_named(
        "radar_msgs", ("RadarReturn", "RadarScan", "RadarTrack", "RadarTracks"), Harmless(Modality.RADAR)
    ),
    **_named("velodyne_msgs", ("VelodynePacket", "VelodyneScan"), _PACKETS),
    **_named("ouster_ros", ("PacketMsg",), _PACKETS),
    **_named("ouster_sensor_msgs", ("PacketMsg",), _PACKETS),
    **_named("livox_ros_driver", ("CustomMsg", "CustomPoint"), _LIDAR),
    **_named("livox_ros_driver2", ("CustomMsg", "CustomPoint"), _LIDAR),
    **_named("hesai_lidar", ("PandarPacket", "PandarScan"), _PACKETS),
    **_named("pandar_msgs", ("PandarPacket", "PandarScan"), _PACKETS),
    **_named("rslidar_msgs", ("rslidarPacket", "rslidarScan"), _PACKETS),
    **_named("rslidar_msg", ("RslidarPacket",), _PACKETS),
    **_named("nebula_msgs", ("NebulaPacket", "NebulaPackets"), _PACKETS),
    "foxglove.PointCloud": _PACKETS,
    "foxglove.LaserScan": _LIDAR,
    "foxglove.JointStates": _JOINTS,
    "foxglove.JointState": _JOINTS,
    "foxglove.CameraCalibration": _PLAIN,
    "foxglove.FrameTransform": _PLACE,
    "foxglove.FrameTransforms": _PLACE,
    "foxglove.PoseInFrame": _PLACE,
    "foxglove.PosesInFrame": _PLACE,
    "foxglove.Point3InFrame": _PLACE,
    "foxglove.Odometry": _PLACE,
    **{f"foxglove.{name}": _PLAIN for name in ("Vector3", "Quaternion", "Color", "Duration", "Timestamp")},
    **{f"foxglove.{name}": _PLACE for name in ("Pose", "Point2", "Point3")},
}
"""By full name, ROS types without ``/msg``."""

_DDS_NAME = re.compile(r"^(\w+)::(msg|srv|action)::dds_::(\w+?)_$")


def plain_name(type_name: str) -> str:
    """Return ``sensor_msgs/Image`` for all ways in which ROS 1, ROS 2, its DDS topics and IDL write that name."""
    dds = _DDS_NAME.match(type_name)
    if dds is not None:
        return f"{dds[1]}/{dds[3]}"
    name = type_name.replace("::", "/").replace("/msg/", "/")
    return f"foxglove.{name.partition('/')[2]}" if name.startswith("foxglove_msgs/") else name


def last_name(type_name: str) -> str:
    """Return ``Image`` for ``sensor_msgs/msg/Image`` and ``foxglove.Image``."""
    return re.split(r"[/.]", plain_name(type_name))[-1]
