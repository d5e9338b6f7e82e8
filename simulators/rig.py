"""Where the simulated rig's sensors sit.

Frames: body, LiDAR, IMU, force and microphone x forward, y left, z up; cameras x right, y down, z forward.
"""

import numpy as np

from sensorium.calibration.geometry import Array, Intrinsics, rotation_from_rpy, transform

BODY = "body"
CAMERA = Intrinsics("pinhole", 640, 480, 420.0, 420.0, 319.5, 239.5)

_OPTICAL = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])
_LIDAR = transform(rotation_from_rpy(*np.radians((0.6, -1.1, 2.0))), (-0.04, 0.01, 0.14))
# Ouster's imu_to_sensor_transform: axes parallel, millimetres away (Software User Manual, "IMU Data Packet").
_LIDAR_IMU = _LIDAR @ transform(np.eye(3), (0.006253, -0.011775, 0.007645))

MOUNTS: dict[str, Array] = {
    "camera_left": transform(_OPTICAL, (0.10, 0.10, 0.0)),
    "camera_right": transform(_OPTICAL, (0.10, -0.10, 0.0)),
    "lidar": _LIDAR,
    "lidar_imu": _LIDAR_IMU,
    "imu": transform(rotation_from_rpy(*np.radians((-0.8, 0.5, 1.2))), (0.02, 0.03, -0.02)),
    "microphone": transform(np.eye(3), (0.05, 0.0, 0.06)),
    "force": transform(np.eye(3), (0.15, 0.0, -0.10)),
}
"""T_body_sensor by device name."""

_REAR_LIDAR = transform(rotation_from_rpy(*np.radians((1.5, 3.0, 40.0))), (-0.25, 0.06, 0.05))
SPARE_MOUNTS: dict[str, Array] = {
    "lidar_rear": _REAR_LIDAR,
    "lidar_rear_imu": _REAR_LIDAR @ transform(np.eye(3), (0.006253, -0.011775, 0.007645)),
}
"""T_body_sensor of devices that the demo's rig does not carry."""
