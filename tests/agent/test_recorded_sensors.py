"""`record`, then `calibration check`: a rig that is as its document says, and one in which every sensor is off."""

from pathlib import Path
from typing import Any

import pytest
from sensor_episodes import document
from sessions import sensorium, write_rig

SECONDS = 13.0
LIDAR = {"driver": "sim_lidar", "columns": 512, "rings": 32, "rate_hz": 5.0}
GOOD: dict[str, dict[str, Any]] = {
    "lidar": LIDAR,
    "lidar_rear": LIDAR,
    "imu": {"driver": "sim_imu", "acc_bias_m_s2": 0.0, "gyro_bias_rad_s": 0.0},
    "force": {"driver": "sim_force"},
    "microphone": {"driver": "sim_microphone", "channels": 2, "personal": False},
}
OFF: dict[str, dict[str, Any]] = {
    "lidar_rear": {"bump": {"at_s": 0.0, "rotation_deg": (0.5, 0.0, 0.0), "translation_m": (0.0, 0.05, 0.0)}},
    "imu": {"bias_jump": {"gyro_deg_s": (0.0, 0.3, 0.0), "acc_m_s2": (0.0, 0.0, 0.1)}},
    "force": {"force_bias_n": (0.2, 0.0, 0.0)},
    "microphone": {"inverted": (1,)},
}


def recorded(folder: Path, changes: dict[str, dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    """Record a standing rig with real processes; return the verdicts of the check by check and subject."""
    common = {"motion": "still", "speed": 3.0, "seconds": SECONDS, "seed": 1}
    devices = {name: {**options, **common, **changes.get(name, {})} for name, options in GOOD.items()}
    folder.mkdir()
    document(spare=True).save(folder / "calibration.yaml")
    rig = write_rig(folder, devices, calibration="calibration.yaml", episode={"reference": "lidar"})
    (episode,) = sensorium("record", rig, "--json", timeout_s=120.0).episodes
    said = sensorium("calibration", "check", episode, "--json", timeout_s=120.0).document
    return {(each["check"], each["subject"]): each for each in said["checks"]}


@pytest.mark.slow
def test_what_was_recorded_is_ok_as_it_should_be_and_every_injected_fault_is_found(tmp_path: Path) -> None:
    judged = (
        ("lidar_lidar", "lidar~lidar_rear"),
        ("imu_static", "imu"),
        ("force_torque", "force"),
        ("microphones", "microphone"),
    )
    good = recorded(tmp_path / "good", {})
    assert {key: good[key]["status"] for key in judged} == dict.fromkeys(judged, "ok"), good
    off = recorded(tmp_path / "off", OFF)
    assert {key: off[key]["status"] for key in judged} == dict.fromkeys(judged, "failed"), off
    degrees = {
        name for key in judged for name, each in off[key]["degrees"].items() if each["status"] == "failed"
    }
    assert degrees == {"roll", "y", "gyro_bias_y", "gravity", "force_x"}
    assert any("opposite polarity" in reason for reason in off["microphones", "microphone"]["reasons"])
