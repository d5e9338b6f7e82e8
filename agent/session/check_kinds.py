"""Kinds of calibration checks: one row each, which names what it asks for and who judges.

A new check is its mathematics (``calibration/``), a judge of recordings, a judge while recording, and a row here. The
judges are lazy ``module:name`` strings, so that a rig file can be read without what they import.
"""

import difflib
import importlib
from dataclasses import dataclass
from enum import Enum
from typing import Any

from sensorium.drivers.roles import Role
from sensorium.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Part:
    """What a check asks of one of its streams.

    Attributes:
        roles: It must have them all.
        name: What such a stream is called where another one is refused.
        has_lens: The calibration must know its lens.
    """

    roles: tuple[Role, ...]
    name: str
    has_lens: bool = False


class Pairs(Enum):
    """Which of the streams that could be checked together are, where nobody names them.

    ``EVERY``: all that the calibration joins.
    ``OVERLAPPING``: two cameras whose views overlap by what the calibration says.
    ``FASTEST``: with each the fastest second that the calibration joins with it.
    """

    EVERY = "every"
    OVERLAPPING = "overlapping"
    FASTEST = "fastest"


@dataclass(frozen=True, slots=True)
class CheckKind:
    """One kind of check.

    Attributes:
        name: In the rig file.
        verdict: The name that its verdicts carry; kinds that judge the same of other sensors share it.
        parts: What it asks of its one or two streams.
        judge: Judges a recording: a function, see :mod:`sensorium.agent.calibrating.checking.run`; "" = none does.
        watch: Judges while recording: a class, see :mod:`sensorium.agent.calibrating.watching.watch`; "" = none does.
        every_s: While recording a result about so often, if the rig file does not say.
    """

    name: str
    verdict: str
    parts: tuple[Part, ...]
    judge: str = ""
    watch: str = ""
    pairs: Pairs = Pairs.EVERY
    every_s: float = 10.0

    @property
    def has_camera(self) -> bool:
        return any(part.has_lens for part in self.parts)


_CAMERA = Part((Role.CAMERA,), "camera", has_lens=True)
_SWEEPS = Part((Role.SWEEP,), "LiDAR whose sweeps can be read")
_GYRO = Part((Role.GYRO,), "gyro")
_IMU = Part((Role.GYRO, Role.ACCELEROMETER), "IMU with gyro and accelerometer")
_WRENCH = Part((Role.WRENCH,), "force/torque sensor")
_ARRAY = Part((Role.ARRAY,), "array of microphones")
_JUDGES = "sensorium.agent.calibrating.checking"
_WATCHES = "sensorium.agent.calibrating.watching"

KINDS = (
    CheckKind(
        "stereo",
        "stereo_epipolar",
        (_CAMERA, _CAMERA),
        f"{_JUDGES}.stereo_pair:judge_stereo",
        f"{_WATCHES}.pairs:StereoWatch",
        Pairs.OVERLAPPING,
        every_s=5.0,
    ),
    CheckKind(
        "camera_lidar",
        "camera_lidar",
        (_CAMERA, _SWEEPS),
        f"{_JUDGES}.camera_lidar_pair:judge_camera_lidar",
        f"{_WATCHES}.pairs:CameraLidarWatch",
    ),
    CheckKind(
        "camera_imu",
        "imu_rotation",
        (_CAMERA, _GYRO),
        f"{_JUDGES}.camera_imu_pair:judge_turning",
        f"{_WATCHES}.turning:CameraImuWatch",
        Pairs.FASTEST,
        every_s=30.0,
    ),
    CheckKind(
        "lidar_lidar",
        "lidar_lidar",
        (_SWEEPS, _SWEEPS),
        f"{_JUDGES}.lidar_pairs:judge_lidars",
        f"{_WATCHES}.pairs:LidarLidarWatch",
    ),
    CheckKind("imu_static", "imu_static", (_IMU,), f"{_JUDGES}.single_sensors:judge_imu"),
    CheckKind(
        "ground_gravity",
        "ground_gravity",
        (_SWEEPS, _IMU),
        f"{_JUDGES}.lidar_pairs:judge_ground",
        f"{_WATCHES}.pairs:GroundWatch",
        Pairs.FASTEST,
    ),
    CheckKind(
        "lidar_imu",
        "imu_rotation",
        (_SWEEPS, _IMU),
        f"{_JUDGES}.lidar_pairs:judge_lidar_turning",
        f"{_WATCHES}.turning:LidarImuWatch",
        Pairs.FASTEST,
        every_s=60.0,
    ),
    CheckKind("force_torque", "force_torque", (_WRENCH,), f"{_JUDGES}.single_sensors:judge_force"),
    CheckKind("microphones", "microphones", (_ARRAY,), f"{_JUDGES}.single_sensors:judge_array"),
)
"""In the order in which a recording is judged."""


def check_kind(name: str) -> CheckKind:
    """Return the kind called ``name`` in rig files.

    Raises:
        ConfigError: If there is none.
    """
    known = {kind.name: kind for kind in KINDS}
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
        raise ConfigError(f"check {name!r} is unknown; {hint}")
    return known[name]


def watched_kind(name: str) -> CheckKind:
    """Return the kind called ``name``, which can be judged while recording.

    Raises:
        ConfigError: If there is none, or it judges recordings only.
    """
    kind = check_kind(name)
    if not kind.watch:
        watched = ", ".join(each.name for each in KINDS if each.watch)
        raise ConfigError(
            f"check {name!r} judges finished recordings only (sensorium calibration check); "
            f"while recording there are: {watched}"
        )
    return kind


def load(target: str) -> Any:
    """Import and return a judge by its ``module:name``."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)
