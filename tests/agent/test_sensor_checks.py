"""`sensorium calibration check` of sensors that make no pictures, on episodes of the simulated rig."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from sensor_episodes import PAYLOAD, document, sensor_episode
from typer.testing import CliRunner

from sensorium.agent.cli import app
from sensorium.calibration.edges import Reference
from sensorium.calibration.geometry import small_motion
from sensorium.calibration.inertial import GROUND_CHECK
from sensorium.simulators.force import TOOL_KG

IMU = {"driver": "sim_imu", "acc_bias_m_s2": 0.0, "gyro_bias_rad_s": 0.0}
FORCE = {"driver": "sim_force"}
LIDAR = {"driver": "sim_lidar", "columns": 512, "rings": 32}
MICROPHONE = {"driver": "sim_microphone", "channels": 2}


def checked(*arguments: object) -> tuple[int, dict[str, Any]]:
    """Run the check; return its exit code and document."""
    found = CliRunner().invoke(
        app, ["calibration", "check", *map(str, arguments), "--json"], catch_exceptions=False
    )
    said: dict[str, Any] = json.loads(found.stdout)
    return found.exit_code, said


def verdict(said: Mapping[str, Any], check: str, subject: str) -> dict[str, Any]:
    (found,) = (each for each in said["checks"] if (each["check"], each["subject"]) == (check, subject))
    return dict(found)


# -- an IMU at rest


@pytest.fixture(scope="module")
def resting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty seconds of IMU and force sensor that stand still."""
    folder = tmp_path_factory.mktemp("resting")
    return sensor_episode(folder, {"imu": IMU, "force": FORCE}, document(), 30.0, motion="still")


def test_a_rig_at_rest_under_its_true_document_is_ok(resting: Path) -> None:
    code, said = checked(resting)
    assert (code, said["status"]) == (0, "ok"), said["reasons"]
    static = verdict(said, "imu_static", "imu")
    assert set(static["degrees"]) == {"gyro_bias_x", "gyro_bias_y", "gyro_bias_z", "gravity"}
    assert set(verdict(said, "force_torque", "force")["degrees"]) >= {"force_x", "torque_z"}


@pytest.mark.parametrize(
    ("options", "degree"),
    [
        ({"bias_jump": {"gyro_deg_s": (0.0, 0.3, 0.0)}}, "gyro_bias_y"),
        ({"bias_jump": {"acc_m_s2": (0.0, 0.0, 0.1)}}, "gravity"),
    ],
)
def test_a_bias_other_than_the_known_one_fails(tmp_path: Path, options: dict[str, Any], degree: str) -> None:
    episode = sensor_episode(tmp_path, {"imu": IMU | options}, document(), 30.0, motion="still")
    code, said = checked(episode)
    static = verdict(said, "imu_static", "imu")
    assert (code, static["status"], static["degrees"][degree]["status"]) == (1, "failed", "failed")
    assert [name for name, each in static["degrees"].items() if each["status"] != "ok"] == [degree]


@pytest.mark.parametrize(
    "jump", [{"gyro_deg_s": (0.3, 0.0, 0.0)}, {"acc_m_s2": (0.1, 0.0, 0.0)}], ids=["gyro", "accelerometer"]
)
def test_a_bias_that_jumps_while_the_rig_stands_is_seen(tmp_path: Path, jump: dict[str, Any]) -> None:
    at_s = 16.0
    imu = IMU | {"bias_jump": {"at_s": at_s, **jump}}
    episode = sensor_episode(tmp_path, {"imu": imu}, document(), 30.0, motion="still")
    code, said = checked(episode)
    static = verdict(said, "imu_static", "imu")
    assert code == 1
    assert static["status"] in ("suspect", "failed")
    # Across gravity an accelerometer's bias shows only as a change.
    if "gyro_deg_s" in jump:
        after, before = (static["quantities"][name]["value"] for name in ("moved_after", "moved_before"))
        assert before - after <= 5.0
        assert after - 2.5 < at_s < before + 2.5
    else:
        assert "acc_x changed" in static["reasons"][0]


def test_an_imu_three_times_as_loud_is_suspect(tmp_path: Path) -> None:
    loud = IMU | {"gyro_noise_rad_s": 3 * 1.2e-4}
    episode = sensor_episode(tmp_path, {"imu": loud}, document(), 30.0, motion="still")
    static = verdict(checked(episode)[1], "imu_static", "imu")
    assert static["status"] == "suspect"
    assert static["quantities"]["gyro_noise_ratio"]["value"] == pytest.approx(3.0, rel=0.2)


def test_a_moving_rig_is_not_judged_at_rest_and_that_is_held_against_nobody(tmp_path: Path) -> None:
    episode = sensor_episode(tmp_path, {"imu": IMU, "force": FORCE}, document(), 12.0)
    code, said = checked(episode)
    assert (code, said["status"]) == (1, "insufficient")
    assert "the rig moves" in verdict(said, "imu_static", "imu")["reasons"][0]
    assert "never at rest" in verdict(said, "force_torque", "force")["reasons"][0]


# -- force and torque


def test_a_force_bias_of_a_fifth_of_a_newton_fails(tmp_path: Path) -> None:
    force = FORCE | {"force_bias_n": (0.0, 0.2, 0.0)}
    episode = sensor_episode(tmp_path, {"imu": IMU, "force": force}, document(), 15.0, motion="still")
    code, said = checked(episode, "--pair", "force")
    (found,) = said["checks"]
    assert (code, found["status"], found["degrees"]["force_y"]["status"]) == (1, "failed", "failed")


def test_tilted_poses_tell_a_payload_from_a_bias(tmp_path: Path) -> None:
    devices: dict[str, dict[str, Any]] = {"imu": IMU, "force": FORCE}
    episode = sensor_episode(tmp_path, devices, document(), 36.0, motion="tilts")
    heavier = replace(document(), force_torque={"force": replace(PAYLOAD, mass_kg=TOOL_KG + 0.02)})
    heavier.save(tmp_path / "heavier.yaml")
    assert verdict(checked(episode)[1], "force_torque", "force")["status"] == "ok"
    _, said = checked(episode, "--calibration", tmp_path / "heavier.yaml")
    degrees = verdict(said, "force_torque", "force")["degrees"]
    assert degrees["mass"]["status"] == "failed"
    assert degrees["force_bias_x"]["status"] == "ok"


# -- microphones


def heard(folder: Path, marked: bool = True, **options: Any) -> dict[str, Any]:
    """Return the verdict on two microphones; the claps come from the right of the rig's middle."""
    marks = dict.fromkeys((1.0, 3.5, 6.0, 8.5, 11.0), "clap right") if marked else {}
    devices = {"microphone": MICROPHONE | options}
    episode = sensor_episode(folder, devices, document(), 12.0, marks, motion="still")
    return verdict(checked(episode)[1], "microphones", "microphone")


def test_two_microphones_as_wired_are_ok(tmp_path: Path) -> None:
    found = heard(tmp_path)
    assert (found["status"], found["reasons"]) == ("ok", [])


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        ({"swapped": True}, "failed", "channels 0, 1 are swapped"),
        ({"inverted": (1,)}, "failed", "opposite polarity"),
        ({"dead": (0,)}, "failed", "channel 0 is dead"),
    ],
)
def test_wrong_wires_are_named(tmp_path: Path, options: dict[str, Any], status: str, words: str) -> None:
    found = heard(tmp_path, **options)
    assert found["status"] == status
    assert words in " ".join(found["reasons"])


def test_order_is_said_to_be_unknown_without_a_mark(tmp_path: Path) -> None:
    found = heard(tmp_path, marked=False, swapped=True)
    assert found["status"] == "ok"
    assert "order of the channels was not judged" in found["reasons"][-1]


def test_silence_is_insufficient(tmp_path: Path) -> None:
    microphone = MICROPHONE | {"noise": 0.0, "tone": 0.0, "hum": 0.0}
    episode = sensor_episode(tmp_path, {"microphone": microphone}, document(), 1.2, motion="still")
    code, said = checked(episode)
    found = verdict(said, "microphones", "microphone")
    assert (code, found["status"]) == (1, "insufficient")
    assert "no clap" in found["reasons"][0]


# -- LiDARs


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seconds of two LiDARs and an IMU that stand still."""
    folder = tmp_path_factory.mktemp("standing")
    devices = {"lidar": LIDAR, "lidar_rear": LIDAR, "imu": IMU}
    return sensor_episode(folder, devices, document(spare=True), 3.0, motion="still")


def test_two_lidars_and_the_ground_are_ok_as_mounted(standing: Path) -> None:
    code, said = checked(standing)
    assert (code, said["status"]) == (0, "ok"), said["reasons"]
    assert verdict(said, "lidar_lidar", "lidar~lidar_rear")["status"] == "ok"
    assert verdict(said, "ground_gravity", "lidar~imu")["status"] == "ok"
    # The rear one sees too little ground, and nothing turns: said, and held against nobody.
    assert "ground found in 0" in verdict(said, "ground_gravity", "lidar_rear~imu")["reasons"][0]
    assert "hardly turns" in verdict(said, "imu_rotation", "lidar~imu")["reasons"][0]


@pytest.mark.parametrize(
    ("motion", "degree"),
    [((0.0, np.deg2rad(0.5), 0.0, 0.0, 0.0, 0.0), "pitch"), ((0.0, 0.0, 0.0, 0.05, 0.0, 0.0), "x")],
)
def test_a_lidar_moved_against_the_other_fails(
    standing: Path, tmp_path: Path, motion: tuple[float, ...], degree: str
) -> None:
    known = document(spare=True)
    # The document is wrong, so the sensor seems moved the other way, in its own axes.
    T = known.transform("body", "lidar_rear") @ small_motion(motion)
    known.with_transform("body", "lidar_rear", T, "wrong").save(tmp_path / "wrong.yaml")
    code, said = checked(standing, "--calibration", tmp_path / "wrong.yaml", "--pair", "lidar~lidar_rear")
    (found,) = said["checks"]
    assert (code, found["status"]) == (1, "failed")
    injected = np.array(motion)[["roll", "pitch", "yaw", "x", "y", "z"].index(degree)]
    expected = -np.rad2deg(injected) if degree == "pitch" else -injected
    value = found["degrees"][degree]
    assert value["value"] == pytest.approx(expected, abs=3 * value["sigma"])


def test_a_lidar_bumped_on_the_way_is_found_with_its_time_and_name(tmp_path: Path) -> None:
    at_s = 1.5
    bump = {"at_s": at_s, "rotation_deg": (0.0, 0.6, 0.0)}
    devices = {"lidar": LIDAR, "lidar_rear": LIDAR | {"bump": bump}, "imu": IMU}
    _, said = checked(sensor_episode(tmp_path, devices, document(spare=True), 3.0, motion="still"))
    found = verdict(said, "lidar_lidar", "lidar~lidar_rear")
    assert found["status"] == "failed"
    after, before = (found["quantities"][name]["value"] for name in ("moved_after", "moved_before"))
    # Sweeps of 0.1 s, every second one looked at.
    assert after - 0.3 < at_s < before + 0.3
    assert before - after < 1.0
    # The first LiDAR still stands on the ground as it did.
    assert said["moved"] == ["lidar_rear"]
    pitch = found["degrees"]["pitch"]
    assert pitch["value"] == pytest.approx(0.6, abs=3 * pitch["sigma"])


def test_a_lidar_tilted_against_gravity_is_an_alarm_and_with_a_reference_a_failure(
    standing: Path, tmp_path: Path
) -> None:
    known = document(spare=True)
    T = known.transform("body", "lidar") @ small_motion((np.deg2rad(0.5), 0, 0, 0, 0, 0))
    wrong = known.with_transform("body", "lidar", T, "wrong")
    wrong.save(tmp_path / "wrong.yaml")
    _, said = checked(standing, "--calibration", tmp_path / "wrong.yaml", "--pair", "lidar~imu")
    assert verdict(said, "ground_gravity", "lidar~imu")["status"] == "suspect"
    reference = Reference(GROUND_CHECK, "lidar~imu", wrong.calibration_id, (0.0, 0.0), (0.05, 0.05), 6)
    wrong.with_reference(reference).save(tmp_path / "referenced.yaml")
    _, said = checked(standing, "--calibration", tmp_path / "referenced.yaml", "--pair", "lidar~imu")
    assert verdict(said, "ground_gravity", "lidar~imu")["status"] == "failed"


def test_two_lidars_of_a_walking_rig_are_not_compared(tmp_path: Path) -> None:
    devices = {"lidar": LIDAR, "lidar_rear": LIDAR, "imu": IMU}
    episode = sensor_episode(tmp_path, devices, document(spare=True), 1.5)
    code, said = checked(episode)
    assert (code, said["status"]) == (1, "insufficient")
    assert "never still" in verdict(said, "lidar_lidar", "lidar~lidar_rear")["reasons"][0]
    assert "at rest" in verdict(said, "ground_gravity", "lidar~imu")["reasons"][0]


@pytest.mark.slow
def test_a_walk_shows_how_a_lidar_is_turned_against_an_imu(tmp_path: Path) -> None:
    devices = {"lidar": LIDAR, "imu": IMU}
    episode = sensor_episode(tmp_path, devices, document(), 9.0)
    found = verdict(checked(episode)[1], "imu_rotation", "lidar~imu")
    assert found["status"] == "ok", found["reasons"]
    known = document()
    T = known.transform("body", "lidar") @ small_motion((0.0, 0.0, np.deg2rad(2.0), 0, 0, 0))
    known.with_transform("body", "lidar", T, "wrong").save(tmp_path / "wrong.yaml")
    _, said = checked(episode, "--calibration", tmp_path / "wrong.yaml")
    found = verdict(said, "imu_rotation", "lidar~imu")
    assert found["status"] in ("suspect", "failed")
    # The document has the LiDAR turned by 2 deg: seen from there, the IMU is turned the same way.
    yaw = found["degrees"]["rotation_z"]
    assert yaw["value"] == pytest.approx(2.0, abs=3 * yaw["sigma"])


# -- scenes that show nothing


CAMERA = {"driver": "sim_camera", "rate_hz": 10.0}
WHOLE = {
    "lidar": LIDAR,
    "lidar_rear": LIDAR,
    "camera_left": CAMERA,
    "camera_right": CAMERA,
    "imu": IMU,
    "force": FORCE,
    "microphone": MICROPHONE,
}
EYES = ("lidar", "camera_left", "camera_right", "imu", "force")
OF_CAMERAS = {
    ("stereo_epipolar", "camera_left~camera_right"),
    ("camera_lidar", "camera_left~lidar"),
    ("imu_rotation", "camera_left~imu"),
}
AT_REST = {("imu_static", "imu"), ("ground_gravity", "lidar~imu"), ("force_torque", "force")}


def grey(level: int) -> dict[str, bytes]:
    image = cv2.imencode(".jpg", np.full((480, 640, 3), level, np.uint8))[1].tobytes()
    return {"camera_left": image, "camera_right": image}


@pytest.mark.parametrize(
    ("scene", "seconds", "names", "unseen"),
    [
        ("darkness", 2.5, EYES, OF_CAMERAS | AT_REST),
        ("blank wall", 1.5, EYES, OF_CAMERAS | AT_REST),
        (
            "standing still",
            1.5,
            ("lidar", "camera_left", "imu"),
            {("camera_lidar", "camera_left~lidar"), ("imu_rotation", "camera_left~imu")},
        ),
        (
            "one frame",
            0.25,
            tuple(WHOLE),
            {("lidar_lidar", "lidar~lidar_rear"), ("imu_rotation", "lidar~imu")} | AT_REST,
        ),
        (
            "one covered",
            1.5,
            ("lidar", "lidar_rear", "imu"),
            {("lidar_lidar", "lidar~lidar_rear"), ("ground_gravity", "lidar_rear~imu")},
        ),
        (
            "both covered",
            1.5,
            ("lidar", "lidar_rear", "camera_left", "imu"),
            {("lidar_lidar", "lidar~lidar_rear"), ("camera_lidar", "camera_left~lidar")},
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_scene_that_shows_nothing_is_insufficient_with_the_reason(
    tmp_path: Path, scene: str, seconds: float, names: Sequence[str], unseen: set[tuple[str, str]]
) -> None:
    devices: dict[str, Any] = {name: WHOLE[name] for name in names}
    for name in {"one covered": ("lidar_rear",), "both covered": ("lidar", "lidar_rear")}.get(scene, ()):
        devices[name] = LIDAR | {"covered": True}
    level = {"darkness": 3, "blank wall": 130}.get(scene)
    motion = "still" if level is None else "walk"
    payloads = None if level is None else grey(level)
    episode = sensor_episode(tmp_path, devices, document(spare=True), seconds, None, payloads, motion=motion)
    code, said = checked(episode)
    assert (code, said["status"]) == (1, "insufficient"), said["reasons"]
    assert said["reasons"]
    for check, subject in unseen:
        found = verdict(said, check, subject)
        assert found["status"] == "insufficient", (check, subject, found)
        assert found["reasons"][0]
    assert {each["status"] for each in said["checks"]} <= {"ok", "insufficient"}


def test_a_lidar_with_late_stamps_is_told_from_one_that_turned(tmp_path: Path) -> None:
    devices = {"lidar": LIDAR, "lidar_rear": LIDAR, "imu": IMU}
    late = sensor_episode(
        tmp_path / "late", devices, document(spare=True), 4.0, late_ns={"lidar_rear": 40_000_000}
    )
    _, said = checked(late, "--pair", "lidar~lidar_rear")
    found = verdict(said, "lidar_lidar", "lidar~lidar_rear")
    assert found["status"] == "suspect", found["reasons"]
    assert "lidar_rear is stamped" in found["reasons"][0]
    assert "too late against lidar (timing)" in found["reasons"][0]
    offset = found["quantities"]["time_offset"]
    assert offset["value"] == pytest.approx(-40.0, abs=max(3 * offset["sigma"], 5.0))
    assert said["moved"] == []
    good = sensor_episode(tmp_path / "good", devices, document(spare=True), 4.0)
    _, said = checked(good, "--pair", "lidar~lidar_rear")
    found = verdict(said, "lidar_lidar", "lidar~lidar_rear")
    assert found["status"] == "insufficient"
    assert abs(found["quantities"]["time_offset"]["value"]) < 5.0
