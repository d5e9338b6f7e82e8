"""What a stream is for, whoever declared it."""

import math
from dataclasses import replace

import numpy as np
import pytest

from sensorium.drivers.frame import (
    REFERENCE_ORDER,
    Column,
    Encoding,
    MessageSchema,
    Modality,
    StreamInfo,
    is_personal_by_default,
)
from sensorium.drivers.roles import (
    STANDARD_GRAVITY_M_S2,
    Role,
    Vector,
    force_columns,
    has_role,
    roles,
    vector,
)


def numeric(*columns: tuple[str, str], modality: Modality = Modality.OTHER) -> StreamInfo:
    named = tuple(Column(name, unit) for name, unit in columns)
    return StreamInfo("s", modality, Encoding.COLUMNS, 100.0, "s", columns=named)


def axes(prefix: str, unit: str) -> list[tuple[str, str]]:
    return [(f"{prefix}{axis}", unit) for axis in "xyz"]


def stream(modality: Modality, encoding: str, reference_of: str = "") -> StreamInfo:
    schema = MessageSchema("ros1", "x/Y", "", b"") if encoding == Encoding.MESSAGE else None
    return StreamInfo("s", modality, encoding, 10.0, "s", schema=schema, reference_of=reference_of)


@pytest.mark.parametrize(
    ("role", "prefix", "unit", "factor"),
    [
        (Role.GYRO, "gyro_", "rad/s", 1.0),
        (Role.GYRO, "a", "deg/s", math.pi / 180),
        (Role.GYRO, "w", "", 1.0),
        (Role.ACCELEROMETER, "acc_", "m/s^2", 1.0),
        (Role.ACCELEROMETER, "q", "g", STANDARD_GRAVITY_M_S2),
        (Role.FORCE, "f", "N", 1.0),
        (Role.FORCE, "f", "kN", 1000.0),
        (Role.TORQUE, "t", "N*m", 1.0),
        (Role.TORQUE, "t", "Nm", 1.0),
        (Role.TORQUE, "t", "N m", 1.0),
        (Role.TORQUE, "m", "Nmm", 1e-3),
    ],
)
def test_a_vector_is_known_by_its_unit_or_where_that_lacks_by_its_names(
    role: Role, prefix: str, unit: str, factor: float
) -> None:
    info = numeric(("t", "s"), *axes(prefix, unit), ("temperature", "degC"))
    assert vector(info, role) == Vector((1, 2, 3), factor)
    others = {Role.GYRO, Role.ACCELEROMETER, Role.FORCE, Role.TORQUE} - {role}
    assert not others & roles(info)


def test_gyro_and_accelerometer_of_one_imu_do_not_mix() -> None:
    imu = numeric(*axes("acc_", "m/s^2"), *axes("gyro_", "rad/s"), *(("quat_" + part, "") for part in "wxyz"))
    assert vector(imu, Role.ACCELEROMETER) == Vector((0, 1, 2), 1.0)
    assert vector(imu, Role.GYRO) == Vector((3, 4, 5), 1.0)
    assert roles(imu) == {Role.GYRO, Role.ACCELEROMETER}


def test_of_two_vectors_with_one_unit_the_names_decide() -> None:
    both = numeric(*axes("free_acc_", "m/s^2"), *axes("acc_", "m/s^2"))
    assert vector(both, Role.ACCELEROMETER) == Vector((3, 4, 5), 1.0)
    assert vector(numeric(*axes("p", "m/s^2"), *axes("q", "m/s^2")), Role.ACCELEROMETER) is None


def test_three_columns_with_two_units_are_no_vector() -> None:
    assert vector(numeric(("x", "rad/s"), ("y", "rad/s"), ("z", "deg/s")), Role.GYRO) is None


def test_a_wrench_is_force_and_torque_of_one_sensor() -> None:
    assert has_role(numeric(*axes("f", "N"), *axes("t", "N m")), Role.WRENCH, Role.FORCE)
    assert Role.WRENCH not in roles(numeric(*axes("f", "N")))


def test_a_knock_is_felt_by_forces_and_by_a_force_sensor_in_counts() -> None:
    assert force_columns(numeric(("t", "Nm"), ("f", "N"))) == [1]
    assert force_columns(numeric(("a", ""), ("b", ""), ("t", "s"), modality=Modality.FORCE)) == [0, 1]
    assert force_columns(numeric(("a", ""), ("b", ""))) == []


def test_a_lidar_is_told_by_one_rule() -> None:
    packets, points = stream(Modality.LIDAR, Encoding.OUSTER), stream(Modality.LIDAR, Encoding.POINTS)
    assert roles(packets) == roles(points) == {Role.CLOUD, Role.SWEEP}
    assert roles(replace(points, reference_of="lidar")) == {Role.CLOUD}
    assert roles(stream(Modality.LIDAR, Encoding.MESSAGE)) == {Role.CLOUD}
    assert roles(replace(packets, encoding="range_image", restores_to=Encoding.OUSTER)) == roles(packets)


def test_images_sounds_and_positions_are_told_by_encoding_and_names() -> None:
    assert roles(stream(Modality.TACTILE, Encoding.MONO8)) == {Role.IMAGE}
    assert roles(stream(Modality.DEPTH, Encoding.MESSAGE)) == {Role.IMAGE}
    assert roles(stream(Modality.AUDIO, Encoding.PCM_S16LE)) == {Role.SOUND}
    assert roles(stream(Modality.AUDIO, Encoding.MESSAGE)) == frozenset()
    fix = numeric(("lat", "deg"), ("lon", "deg"), ("height", "m"), modality=Modality.GNSS)
    assert roles(fix) == {Role.POSITION}


def test_the_factor_makes_si_units() -> None:
    gyro = vector(numeric(*axes("w", "dps")), Role.GYRO)
    assert gyro is not None
    values = np.array([[180.0, 0.0, 90.0]])
    assert np.allclose(values[:, gyro.columns] * gyro.factor, [[np.pi, 0.0, np.pi / 2]])


# -- modalities


def test_what_shows_or_names_people_is_personal_by_default() -> None:
    personal = {modality for modality in Modality if is_personal_by_default(modality)}
    assert personal == {
        Modality.CAMERA,
        Modality.EVENT_CAMERA,
        Modality.AUDIO,
        Modality.GNSS,
        Modality.TEXT,
    }


def test_depth_is_personal_only_with_colour() -> None:
    assert is_personal_by_default(Modality.DEPTH, carries_colour=True)
    assert not is_personal_by_default(Modality.LIDAR, carries_colour=True)


def test_the_reference_is_looked_for_once_among_each_modality() -> None:
    assert len(set(REFERENCE_ORDER)) == len(REFERENCE_ORDER)
    by_rate = set(Modality) - set(REFERENCE_ORDER)
    assert by_rate == {Modality.GNSS, Modality.CAN, Modality.SCALAR, Modality.TEXT, Modality.OTHER}
