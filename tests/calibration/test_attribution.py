"""Alarms of several pairs name the sensor that moved, the time it did, and whether it is timing."""

import numpy as np
import pytest

from sensorium.calibration import geometry
from sensorium.calibration.attribution import Window, moved_between, moved_sensors, split_timing
from sensorium.calibration.sweep import deskew
from sensorium.drivers.payloads.ouster import beam_rays
from sensorium.simulators.demo_rig import rig_calibration
from sensorium.simulators.emulators.ouster_encoder import default_metadata
from sensorium.simulators.imu import inertial_truth
from sensorium.simulators.world import World
from sensorium.verdict import Status, Verdict


def verdict(subject: str, status: Status) -> Verdict:
    return Verdict("check", subject, status, (), () if status is Status.OK else ("reason",))


@pytest.mark.parametrize(
    ("statuses", "blamed"),
    [
        ({"left~right": "ok", "left~lidar": "ok", "right~lidar": "ok"}, ()),
        ({"left~right": "ok", "left~lidar": "failed", "right~lidar": "suspect"}, ("lidar",)),
        ({"left~right": "failed", "left~lidar": "failed", "right~lidar": "ok"}, ("left",)),
        ({"left~right": "failed", "left~lidar": "ok", "right~lidar": "insufficient"}, ("right",)),
        ({"left~right": "insufficient", "left~lidar": "failed"}, ("left", "lidar")),
        (
            {"left~right": "failed", "left~lidar": "insufficient", "right~lidar": "insufficient"},
            ("left", "right"),
        ),
        ({"left~right": "insufficient"}, ()),
    ],
)
def test_the_sensor_common_to_all_alarms_is_blamed(statuses: dict[str, str], blamed: tuple[str, ...]) -> None:
    found = moved_sensors(verdict(subject, Status(status)) for subject, status in statuses.items())
    assert found == blamed


def test_a_bump_is_located_between_the_last_good_and_the_first_bad_window() -> None:
    def windows(text: str) -> list[Window]:
        kinds = {"o": Status.OK, "i": Status.INSUFFICIENT, "s": Status.SUSPECT, "f": Status.FAILED}
        return [Window(10 * k, 10 * k + 8, verdict("a~b", kinds[letter])) for k, letter in enumerate(text)]

    assert moved_between(windows("oooo")) is None
    assert moved_between(windows("osoo")) is None
    assert moved_between(windows("oosff")) == (18, 28)
    assert moved_between(windows("ooisf")) == (18, 38)
    assert moved_between(windows("ff")) == (0, 8)
    assert moved_between([]) is None


@pytest.mark.parametrize(("offset_s", "is_timing"), [(0.0, False), (0.03, True), (-0.05, True)])
def test_what_follows_the_turning_is_timing_and_what_stays_is_the_mount(
    offset_s: float, is_timing: bool
) -> None:
    rng = np.random.default_rng(1)
    mount = np.array([0.0, np.deg2rad(0.6), 0.0, 0.0, 0.02, 0.0])
    rates = np.deg2rad(rng.uniform(-20, 20, (25, 3)))
    sigma = np.array([np.deg2rad(0.15)] * 3 + [0.02] * 3)
    motions = mount + np.hstack([rates * offset_s, np.zeros((25, 3))]) + rng.normal(0, sigma, (25, 6))
    motions[3] += np.deg2rad(3.0)  # one false top
    split = split_timing(motions, np.tile(np.diag(sigma**2), (25, 1, 1)), rates)
    assert split.is_timing == is_timing
    assert abs(split.offset_s - offset_s) < 3 * split.offset_sigma_s
    assert (np.abs(split.mount - mount) < 4 * np.sqrt(np.diag(split.mount_covariance))).all()


def test_a_turning_lidar_is_straightened_to_the_cameras_instant() -> None:
    rig, world = rig_calibration(1), World(1)
    directions, offsets = (part.transpose(1, 0, 2) for part in beam_rays(default_metadata(16, 256, 10.0)))
    slow_s = np.arange(0.0, 10.0, 0.1)
    fastest = np.argmax(np.linalg.norm(world.motion(slow_s).rate_rad_s, axis=1))
    time_s = float(slow_s[fastest]) + 0.1 * np.arange(256) / 256
    motion = world.motion(time_s).carried_to(rig.transform("body", "lidar"))
    skewed, expected = [], []
    still = motion.rotation[128], motion.position_m[128]
    for k in range(256):
        R, place = motion.rotation[k], motion.position_m[k]
        range_m = world.scene.cast(
            (offsets[k] @ R.T + place).astype(np.float32), (directions[k] @ R.T).astype(np.float32)
        ).range_m
        points = offsets[k] + directions[k] * range_m[:, None]
        skewed.append(points)
        expected.append((points @ R.T + place - still[1]) @ still[0])
    gyro_s = np.arange(time_s[0] - 0.05, time_s[-1] + 0.05, 0.005)
    gyro = inertial_truth(world.motion(gyro_s).carried_to(rig.transform("body", "imu")))[:, 3:]
    before, truth = np.concatenate(skewed), np.concatenate(expected)
    after = deskew(
        before,
        np.repeat(time_s, 16),
        float(time_s[128]),
        gyro_s,
        gyro,
        rig.transform("lidar", "imu")[:3, :3],
    )
    # What is left is the translation, at most 5 cm at the ends of the sweep; the turning moved points far more.
    speed_m_s = float(np.linalg.norm(motion.velocity_m_s, axis=1).max())
    assert np.linalg.norm(after - truth, axis=1).max() < 0.05 * speed_m_s + 0.005
    assert np.linalg.norm(before - truth, axis=1).max() > 3 * np.linalg.norm(after - truth, axis=1).max()
    assert geometry.rotation_angle(motion.rotation[0].T @ motion.rotation[-1]) > 0.01
