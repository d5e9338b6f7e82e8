"""What a stream is for, told from its columns' units and its encoding: the one place that knows the spellings."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from sensorium.drivers.frame import PCM_BYTES, Encoding, Modality, StreamInfo

STANDARD_GRAVITY_M_S2 = 9.80665


class Role(str, Enum):
    """What a stream can be used as; one stream may have several.

    ``GYRO``, ``ACCELEROMETER``, ``FORCE``, ``TORQUE``: three columns that are one vector, see :func:`vector`.
    ``WRENCH``: force and torque of one sensor.
    ``IMAGE``: images of any kind, depth included.
    ``CAMERA``: what a camera saw through the lens that a calibration knows.
    ``CLOUD``: returns of a LiDAR in any form, also a message of somebody else's or a thinned copy.
    ``SWEEP``: whole sweeps of a LiDAR in an encoding of ours, the original.
    ``SOUND``: samples of microphones.
    ``ARRAY``: those of several at once.
    ``POSITION``: latitude and longitude.
    """

    GYRO = "gyro"
    ACCELEROMETER = "accelerometer"
    FORCE = "force"
    TORQUE = "torque"
    WRENCH = "wrench"
    IMAGE = "image"
    CAMERA = "camera"
    CLOUD = "cloud"
    SWEEP = "sweep"
    SOUND = "sound"
    ARRAY = "array"
    POSITION = "position"


@dataclass(frozen=True, slots=True)
class Vector:
    """Three columns of a stream; ``values[:, columns] * factor`` is in SI units.

    Attributes:
        columns: Their numbers, in the order x, y, z.
    """

    columns: tuple[int, ...]
    factor: float


@dataclass(frozen=True, slots=True)
class _Kind:
    """A vector quantity: factor to SI by (lower-case) unit, and how its columns are called where that decides."""

    factors: Mapping[str, float]
    names: re.Pattern[str]


_DEG = math.pi / 180
_KINDS: Mapping[Role, _Kind] = {
    Role.GYRO: _Kind(
        {"rad/s": 1.0, "rad/sec": 1.0, "rad s^-1": 1.0, "deg/s": _DEG, "dps": _DEG, "°/s": _DEG},
        re.compile(r"(gyro?|gyroscope|angular_velocity|angular_rate|omega|w)_?[xyz]"),
    ),
    Role.ACCELEROMETER: _Kind(
        {
            "m/s^2": 1.0,
            "m/s2": 1.0,
            "m/s²": 1.0,
            "m s^-2": 1.0,
            "g": STANDARD_GRAVITY_M_S2,
            "mg": STANDARD_GRAVITY_M_S2 * 1e-3,
        },
        re.compile(r"(acc|accel|acceleration|linear_acceleration|a)_?[xyz]"),
    ),
    Role.FORCE: _Kind({"n": 1.0, "kn": 1e3, "mn": 1e-3}, re.compile(r"(f|force)_?[xyz]")),
    Role.TORQUE: _Kind(
        {"nm": 1.0, "n*m": 1.0, "n m": 1.0, "n·m": 1.0, "n.m": 1.0, "nmm": 1e-3},
        re.compile(r"(t|m|torque|moment)_?[xyz]"),
    ),
}
_IMAGES = frozenset(
    {Encoding.JPEG, Encoding.PNG, Encoding.MONO8, Encoding.BGR8, Encoding.RGB8, Encoding.MONO16}
)
_CLOUDS = frozenset({Encoding.OUSTER, Encoding.POINTS})
_LATITUDE = re.compile(r"lat(itude)?(_(deg|rad))?")
_LONGITUDE = re.compile(r"(lon|lng|long|longitude)(_(deg|rad))?")


def vector(info: StreamInfo, role: Role) -> Vector | None:
    """Return which columns of a stream are a gyro's, an accelerometer's, a force or a torque; None if none are.

    By their unit, if exactly three have one of that kind; else by their names among those that have such a unit
    or none.
    """
    kind = _KINDS[role]
    units = [column.unit.strip().lower() for column in info.columns]
    found = [index for index, unit in enumerate(units) if unit in kind.factors]
    if len(found) != 3:
        found = [index for index in found or _without_unit(units) if _is_called(info, index, kind)]
    if len(found) != 3 or len({units[index] for index in found}) != 1:
        return None
    return Vector(tuple(found), kind.factors.get(units[found[0]], 1.0))


def _without_unit(units: Sequence[str]) -> list[int]:
    return [index for index, unit in enumerate(units) if not unit]


def _is_called(info: StreamInfo, index: int, kind: _Kind) -> bool:
    return kind.names.fullmatch(info.columns[index].name.lower()) is not None


def force_columns(info: StreamInfo) -> list[int]:
    """Return the columns that feel a knock: all forces; of a force sensor without such units those like its first."""
    factors = _KINDS[Role.FORCE].factors
    found = [index for index, column in enumerate(info.columns) if column.unit.strip().lower() in factors]
    if found or info.modality is not Modality.FORCE:
        return found
    return [index for index, column in enumerate(info.columns) if column.unit == info.columns[0].unit]


def roles(info: StreamInfo) -> frozenset[Role]:
    """Return all that a stream can be used as."""
    found = {role for role in _KINDS if vector(info, role) is not None}
    if {Role.FORCE, Role.TORQUE} <= found:
        found.add(Role.WRENCH)
    encoding = info.plain_encoding
    if encoding in _IMAGES or info.modality in (Modality.CAMERA, Modality.DEPTH):
        found.add(Role.IMAGE)
    if info.modality is Modality.CAMERA:
        found.add(Role.CAMERA)
    if encoding in _CLOUDS or info.modality is Modality.LIDAR:
        found.add(Role.CLOUD)
    if encoding in _CLOUDS and not info.reference_of:
        found.add(Role.SWEEP)
    if encoding in PCM_BYTES and info.modality is Modality.AUDIO:
        found.add(Role.SOUND)
        if info.shape and info.shape[0] > 1:
            found.add(Role.ARRAY)
    if _tells_position(info):
        found.add(Role.POSITION)
    return frozenset(found)


def _tells_position(info: StreamInfo) -> bool:
    names = [column.name.lower() for column in info.columns]
    return any(map(_LATITUDE.fullmatch, names)) and any(map(_LONGITUDE.fullmatch, names))


def has_role(info: StreamInfo, *wanted: Role) -> bool:
    """Return whether a stream can be used as each of these."""
    return roles(info).issuperset(wanted)
