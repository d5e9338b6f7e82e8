"""Kinds of checks: what each asks for, which streams it is given, and what a rig file may say of it."""

from pathlib import Path

import numpy as np
import pytest

from sensorium.agent.calibrating.tasks import refusal, tasks_of
from sensorium.agent.calibrating.watching.watch import Watch
from sensorium.agent.session.check_kinds import KINDS, check_kind, load
from sensorium.agent.session.rig import parse_rig
from sensorium.calibration import (
    camera_lidar,
    force_torque,
    inertial,
    lidar_lidar,
    microphones,
    rotation,
    stereo,
)
from sensorium.calibration.edges import Edge
from sensorium.calibration.rig_document import RigCalibration
from sensorium.drivers.frame import Column, Encoding, Modality, StreamInfo
from sensorium.errors import ConfigError
from sensorium.simulators.demo_rig import demo_calibration

CALIBRATION = demo_calibration()


def camera(name: str) -> StreamInfo:
    return StreamInfo(name, Modality.CAMERA, Encoding.JPEG, 30.0, name, shape=(480, 640, 3))


def lidar(name: str) -> StreamInfo:
    return StreamInfo(name, Modality.LIDAR, Encoding.OUSTER, 10.0, name)


def imu(name: str, rate_hz: float, frame: str = "") -> StreamInfo:
    columns = [Column(f"gyro_{axis}", "rad/s") for axis in "xyz"]
    columns += [Column(f"acc_{axis}", "m/s^2") for axis in "xyz"]
    return StreamInfo(name, Modality.IMU, Encoding.COLUMNS, rate_hz, frame or name, columns=tuple(columns))


def sound(channels: int) -> StreamInfo:
    return StreamInfo("mic", Modality.AUDIO, Encoding.PCM_S16LE, 48e3, "mic", shape=(channels,))


STREAMS = [camera("camera_left"), camera("camera_right"), lidar("lidar"), imu("imu", 200.0)]


def test_every_kind_names_judges_that_exist_and_the_name_that_their_verdicts_carry() -> None:
    for kind in KINDS:
        assert kind.judge or kind.watch
        assert not kind.judge or callable(load(kind.judge))
        assert not kind.watch or issubclass(load(kind.watch), Watch)
        assert check_kind(kind.name) is kind
    assert {kind.verdict for kind in KINDS} == {
        stereo.CHECK,
        camera_lidar.CHECK,
        lidar_lidar.CHECK,
        rotation.CHECK,
        inertial.STATIC_CHECK,
        inertial.GROUND_CHECK,
        force_torque.CHECK,
        microphones.CHECK,
    }


def test_two_of_a_kind_are_paired_once_and_two_kinds_each_with_each() -> None:
    found = [task.subject for kind in KINDS for task in tasks_of(kind, STREAMS, CALIBRATION)]
    assert found == [
        "camera_left~camera_right",
        "camera_left~lidar",
        "camera_right~lidar",
        "camera_left~imu",
        "camera_right~imu",
        "imu",
        "lidar~imu",
        "lidar~imu",
    ]


def test_an_imu_is_the_fastest_of_those_that_the_calibration_joins() -> None:
    slow, fast, elsewhere = imu("slow", 100.0, "imu"), imu("fast", 400.0, "imu"), imu("lost", 1000.0)
    (task,) = tasks_of(check_kind("ground_gravity"), [lidar("lidar"), slow, fast, elsewhere], CALIBRATION)
    assert [info.name for info in task.infos] == ["lidar", "fast"]


def test_cameras_back_to_back_make_no_stereo_pair_but_may_be_named_as_one() -> None:
    back = np.diag([-1.0, 1.0, -1.0, 1.0])
    cameras = {name: CALIBRATION.camera("camera_left") for name in ("front", "rear")}
    calibration = RigCalibration(cameras=cameras, edges=(Edge("front", "rear", back),))
    streams = [camera("front"), camera("rear")]
    assert tasks_of(check_kind("stereo"), streams, calibration) == []
    assert refusal(check_kind("stereo"), streams, calibration) == ""


def test_only_several_microphones_are_an_array() -> None:
    kind = check_kind("microphones")
    assert tasks_of(kind, [sound(1)], CALIBRATION) == []
    assert [task.subject for task in tasks_of(kind, [sound(4)], CALIBRATION)] == ["mic"]
    assert refusal(kind, [sound(1)], CALIBRATION) == "mic is no array of microphones"


def test_a_check_of_two_sensors_that_are_not_joined_says_so() -> None:
    kind = check_kind("ground_gravity")
    assert refusal(kind, [lidar("lidar"), imu("lost", 10.0)], CALIBRATION).endswith("does not join the two")
    assert "lidar is no IMU" in refusal(kind, [lidar("lidar"), lidar("lidar")], CALIBRATION)


@pytest.mark.parametrize(
    ("check", "problem"),
    [
        ("{check: sterio, streams: [a, b]}", "did you mean 'stereo'?"),
        ("{check: sound, streams: [a]}", "check 'sound' is unknown; known: stereo, camera_lidar"),
        ("{check: imu_static, streams: [a]}", "judges finished recordings only"),
        ("{check: stereo, streams: [a]}", "check stereo asks for 2 streams: camera and camera"),
    ],
)
def test_a_rig_file_is_told_which_checks_there_are(check: str, problem: str) -> None:
    text = f"rig: r\ndevices:\n  f: {{driver: ati_netft, host: 192.0.2.1}}\nchecks: [{check}]\n"
    with pytest.raises(ConfigError) as caught:
        parse_rig(text, Path("/rigs/rig.yaml"))
    (line,) = str(caught.value).splitlines()
    assert line.startswith("/rigs/rig.yaml:4:10: checks.0: ")
    assert problem in line
