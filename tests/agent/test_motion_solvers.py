"""`sensorium calibration solve` without a board, on episodes of the simulated rig, against the simulator's truth."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sensor_episodes import sensor_episode
from typer.testing import CliRunner

from sensorium.agent.cli import app
from sensorium.calibration.geometry import rotation_log, small_motion
from sensorium.calibration.rig_document import RigCalibration
from sensorium.calibration.sensor_models import MicrophoneArray
from sensorium.errors import CalibrationError
from sensorium.simulators.demo_rig import rig_calibration
from sensorium.simulators.force import TOOL_CENTRE_M, TOOL_KG
from sensorium.simulators.microphone import SPACING_M

IMU = {"driver": "sim_imu"}
LIDAR = {"driver": "sim_lidar", "columns": 512, "rings": 32}


def solved(episode: Path, *arguments: object) -> tuple[int, dict[str, Any], RigCalibration | None]:
    """Run the command; return its exit code, what it said, and the document that it wrote."""
    output = episode.parent / "solved.yaml"
    call = ["calibration", "solve", str(episode), "--output", str(output), "--force", "--json"]
    found = CliRunner().invoke(app, [*call, *map(str, arguments)], catch_exceptions=False)
    said: dict[str, Any] = json.loads(found.stdout)
    return found.exit_code, said, RigCalibration.load(output) if said["written"] else None


def part(said: dict[str, Any], solver: str, subject: str) -> dict[str, Any]:
    (found,) = (each for each in said["parts"] if (each["solver"], each["subject"]) == (solver, subject))
    return dict(found)


def test_poses_give_imu_bias_and_payload(tmp_path: Path) -> None:
    gyro_deg_s, acc_m_s2, bias_n = (0.1, -0.4, 0.25), (0.05, -0.08, 0.06), (1.0, -0.5, 0.3)
    jump = {"gyro_deg_s": gyro_deg_s, "acc_m_s2": acc_m_s2}
    imu = IMU | {"acc_bias_m_s2": 0.0, "gyro_bias_rad_s": 0.0, "bias_jump": jump}
    force = {"driver": "sim_force", "force_bias_n": bias_n}
    episode = sensor_episode(tmp_path, {"imu": imu, "force": force}, rig_calibration(1), 36.0, motion="tilts")
    code, said, document = solved(episode)
    assert (code, said["status"]) == (0, "ok")
    assert document is not None
    known = document.imus["imu"]
    assert known.gyro_bias_rad_s is not None
    assert known.acc_bias_m_s2 is not None
    sigma = part(said, "imu", "imu")["quantities"]["gyro_bias_x"]["sigma"]
    # Bias walks add to the noise of the mean: 4e-6 sqrt(36 s) of the gyro, 1e-4 sqrt(36 s) of the accelerometer.
    np.testing.assert_allclose(
        np.rad2deg(known.gyro_bias_rad_s), np.array(gyro_deg_s), atol=np.rad2deg(3 * sigma + 4e-6 * 6)
    )
    np.testing.assert_allclose(
        np.array(known.acc_bias_m_s2), np.array(acc_m_s2), atol=3 * 1e-3 / np.sqrt(2) + 1e-4 * 6
    )
    payload = document.force_torque["force"]
    assert payload.holds
    # Gravity comes from the IMU, whose bias of 1 mm/s^2 at most is 0.4 mN of this tool.
    assert payload.mass_kg == pytest.approx(TOOL_KG, abs=1e-3)
    np.testing.assert_allclose(payload.centre_m, TOOL_CENTRE_M, atol=1e-3)
    np.testing.assert_allclose(payload.force_bias_n, bias_n, atol=0.02)


def test_what_moves_too_little_is_refused_with_what_is_missing(tmp_path: Path) -> None:
    devices = {"imu": IMU, "force": {"driver": "sim_force"}}
    walking = sensor_episode(tmp_path / "walk", devices, rig_calibration(1), 6.0)
    code, said, document = solved(walking, "--only", "imu,force-torque")
    assert (code, said["status"], document) == (1, "insufficient", None)
    assert "let it stand" in part(said, "imu", "imu")["reasons"][0]
    still = sensor_episode(tmp_path / "still", devices, rig_calibration(1), 15.0, motion="still")
    code, said, document = solved(still)
    assert (code, part(said, "force-torque", "force")["status"]) == (0, "insufficient")
    assert "six poses" in part(said, "force-torque", "force")["reasons"][0]
    assert document is not None
    assert document.force_torque == {}
    assert "only the part along gravity" in part(said, "imu", "imu")["reasons"][-1]


def test_one_pose_renews_the_bias_under_a_known_payload(tmp_path: Path) -> None:
    devices = {"imu": IMU, "force": {"driver": "sim_force"}}
    episode = sensor_episode(tmp_path / "a", devices, rig_calibration(1), 36.0, motion="tilts")
    _, _, known = solved(episode)
    assert known is not None
    drifted = devices | {"force": {"driver": "sim_force", "force_bias_n": (0.0, 0.6, 0.0)}}
    later = sensor_episode(tmp_path / "b", drifted, known, 12.0, motion="still")
    code, said, document = solved(later, "--only", "force-torque")
    assert (code, said["status"]) == (0, "ok")
    assert document is not None
    change = document.force_torque["force"].force_bias_n - known.force_torque["force"].force_bias_n
    np.testing.assert_allclose(change, (0.0, 0.6, 0.0), atol=0.02)
    assert any("only the biases" in reason for reason in part(said, "force-torque", "force")["reasons"])


def test_two_lidars_are_found_from_a_rough_start_and_the_ground_is_remembered(tmp_path: Path) -> None:
    truth = rig_calibration(1, ("lidar_rear",))
    T = truth.transform("body", "lidar_rear") @ small_motion((0.02, -0.01, 0.02, 0.05, -0.05, 0.03))
    rough = truth.with_transform("body", "lidar_rear", T, "by hand")
    devices: dict[str, dict[str, Any]] = {"lidar": LIDAR, "lidar_rear": LIDAR, "imu": IMU}
    episode = sensor_episode(tmp_path, devices, rough, 2.5, motion="still")
    code, _, document = solved(episode, "--only", "lidars,ground-reference")
    assert code == 1  # of the rear LiDAR no ground was seen, and it was asked for
    assert document is not None
    found, expected = (each.transform("lidar", "lidar_rear") for each in (document, truth))
    (edge,) = (edge for edge in document.edges if edge.covariance is not None)
    assert edge.covariance is not None
    sigma = np.sqrt(np.diag(edge.covariance))
    assert (np.abs(rotation_log(found[:3, :3] @ expected[:3, :3].T)) < 3 * sigma[:3]).all()
    assert (np.abs(found[:3, 3] - expected[:3, 3]) < 3 * sigma[3:]).all()
    reference = document.reference("ground_gravity", "lidar~imu")
    assert reference is not None
    assert max(map(abs, reference.mean)) < 0.5


def test_claps_give_polarity_and_order(tmp_path: Path) -> None:
    # The document has the two the other way round.
    wrong = MicrophoneArray(((0.0, -SPACING_M / 2, 0.0), (0.0, SPACING_M / 2, 0.0)))
    start = replace(rig_calibration(1), microphones={"microphone": wrong})
    microphone = {"driver": "sim_microphone", "channels": 2, "inverted": (1,)}
    marks = dict.fromkeys((1.0, 3.5, 6.0, 8.5, 11.0), "clap right")
    episode = sensor_episode(tmp_path, {"microphone": microphone}, start, 12.0, marks, motion="still")
    code, _, document = solved(episode)
    assert code == 0
    assert document is not None
    found = document.microphones["microphone"]
    assert found.polarity == (1, -1)
    assert found.positions_m == ((0.0, SPACING_M / 2, 0.0), (0.0, -SPACING_M / 2, 0.0))


def test_a_walk_gives_rotation_and_time_offset_of_camera_and_imu(tmp_path: Path) -> None:
    truth = rig_calibration(1)
    T = truth.transform("body", "imu") @ small_motion((0.0, np.deg2rad(3.0), 0.0, 0.0, 0.0, 0.0))
    rough = truth.with_transform("body", "imu", T, "by hand")
    camera = {"driver": "sim_camera", "rate_hz": 10.0}
    episode = sensor_episode(tmp_path, {"camera_left": camera, "imu": IMU}, rough, 11.0)
    code, said, document = solved(episode, "--only", "turning")
    assert (code, said["status"]) == (0, "ok"), said["parts"]
    assert document is not None
    (edge,) = (edge for edge in document.edges if edge.covariance is not None)
    assert edge.covariance is not None
    error = rotation_log(edge.T_parent_child[:3, :3] @ truth.transform("camera_left", "imu")[:3, :3].T)
    assert (np.abs(error) < 3 * np.sqrt(np.diag(edge.covariance)[:3])).all()
    offset = part(said, "turning", "camera_left~imu")["quantities"]["time_offset"]
    assert abs(offset["value"]) < 3 * offset["sigma"]
    assert edge.time_offset_s == pytest.approx(-offset["value"] * 1e-3)
    assert said["moved"][0]["rotation_deg"] == pytest.approx(3.0, abs=0.6)


def test_an_unknown_solver_data_is_refused(tmp_path: Path) -> None:
    episode = sensor_episode(tmp_path, {"imu": IMU}, rig_calibration(1), 2.0)
    with pytest.raises(CalibrationError, match="holds nothing for microphones"):
        solved(episode, "--only", "microphones")
