import numpy as np

from sensorium.calibration.geometry import rotation_exp, rotation_log
from sensorium.simulators.rig import MOUNTS
from sensorium.simulators.trajectory import HOME_M, PERIOD_S, Tour, Trajectory

STEP_S = 1e-4
TIMES_S = np.linspace(0.0, PERIOD_S, 400, endpoint=False)


def test_the_motion_closes_after_one_period() -> None:
    trajectory = Trajectory(3)
    start, lap = (trajectory.motion(TIMES_S + laps * PERIOD_S) for laps in (0, 7))
    np.testing.assert_allclose(lap.transforms, start.transforms, atol=1e-9)
    np.testing.assert_allclose(lap.rate_rad_s, start.rate_rad_s, atol=1e-9)


def test_derivatives_are_those_of_the_poses() -> None:
    trajectory = Trajectory(4)
    before, now, after = (trajectory.motion(TIMES_S + k * STEP_S) for k in (-1, 0, 1))
    velocity = (after.position_m - before.position_m) / (2 * STEP_S)
    np.testing.assert_allclose(now.velocity_m_s, velocity, atol=1e-6)
    acceleration = (after.velocity_m_s - before.velocity_m_s) / (2 * STEP_S)
    np.testing.assert_allclose(now.acceleration_m_s2, acceleration, atol=1e-6)
    turns = [rotation_log(a.T @ b) for a, b in zip(before.rotation, after.rotation, strict=True)]
    np.testing.assert_allclose(now.rate_rad_s, np.array(turns) / (2 * STEP_S), atol=1e-6)
    angular = (after.rate_rad_s - before.rate_rad_s) / (2 * STEP_S)
    np.testing.assert_allclose(now.angular_acceleration_rad_s2, angular, atol=1e-6)


def test_a_mounted_sensor_moves_with_its_lever_arm() -> None:
    trajectory, mount = Trajectory(5), MOUNTS["force"] @ MOUNTS["lidar"]
    before, now, after = (trajectory.motion(TIMES_S + k * STEP_S).carried_to(mount) for k in (-1, 0, 1))
    np.testing.assert_allclose(now.transforms, trajectory.motion(TIMES_S).transforms @ mount, atol=1e-12)
    velocity = (after.position_m - before.position_m) / (2 * STEP_S)
    np.testing.assert_allclose(now.velocity_m_s, velocity, atol=1e-6)
    acceleration = (after.velocity_m_s - before.velocity_m_s) / (2 * STEP_S)
    np.testing.assert_allclose(now.acceleration_m_s2, acceleration, atol=1e-6)


def test_every_axis_turns_enough_to_align_clocks_and_extrinsics() -> None:
    # The excitation gate of specs/calibration.md 1.8: two axes with over 5 deg/s rms; here all three.
    for seed in range(5):
        rates = np.degrees(Trajectory(seed).motion(TIMES_S).rate_rad_s)
        assert np.all(rates.std(axis=0) > 5.0)


def test_the_rig_stays_near_its_home() -> None:
    for seed in range(5):
        assert np.all(np.abs(Trajectory(seed).motion(TIMES_S).position_m - HOME_M) < 0.6)


def test_rotation_exp_of_a_rate_carries_one_pose_to_the_next() -> None:
    motion = Trajectory(6).motion(np.array([2.0, 2.0 + STEP_S]))
    middle = Trajectory(6).motion(np.array([2.0 + STEP_S / 2])).rate_rad_s[0]
    np.testing.assert_allclose(
        motion.rotation[0] @ rotation_exp(middle * STEP_S), motion.rotation[1], atol=1e-9
    )


def test_a_tour_stops_at_every_pose_and_its_derivatives_are_those_of_its_path() -> None:
    poses = np.random.default_rng(1).uniform(-0.5, 0.5, (3, 6))
    tour = Tour(poses)
    stops_s = np.arange(3.0) * (tour.hold_s + tour.move_s)
    for since_s in (0.0, 0.5 * tour.hold_s, tour.hold_s, tour.period_s):
        motion = tour.motion(stops_s + since_s)
        np.testing.assert_allclose(motion.position_m, poses[:, :3], atol=1e-12)
        np.testing.assert_allclose(motion.velocity_m_s, 0.0, atol=1e-12)
        np.testing.assert_allclose(motion.rate_rad_s, 0.0, atol=1e-12)
    step_s = 1e-5
    times_s = np.linspace(0.0, tour.period_s, 200)
    before, now, after = (tour.motion(times_s + shift) for shift in (-step_s, 0.0, step_s))
    speed = (after.position_m - before.position_m) / (2 * step_s)
    np.testing.assert_allclose(now.velocity_m_s, speed, atol=1e-4)
    change = (after.velocity_m_s - before.velocity_m_s) / (2 * step_s)
    np.testing.assert_allclose(now.acceleration_m_s2, change, atol=1e-3)
    turns = [b.T @ a for a, b in zip(after.rotation, before.rotation, strict=True)]
    rates = np.array([[t[2, 1] - t[1, 2], t[0, 2] - t[2, 0], t[1, 0] - t[0, 1]] for t in turns]) / (
        4 * step_s
    )
    np.testing.assert_allclose(now.rate_rad_s, rates, atol=1e-4)
