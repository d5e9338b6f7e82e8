"""What driving does to a sweep: how fast the rig moved is read from two sweeps, and taken out of them."""

import numpy as np
import pytest

from sensorium.calibration import geometry
from sensorium.calibration.camera_lidar import check_camera_lidar
from sensorium.calibration.edges import Edge
from sensorium.calibration.keyframes import Keyframe, keyframe
from sensorium.calibration.rig_document import RigCalibration
from sensorium.calibration.sweep import deskew
from sensorium.calibration.sweep_motion import sweep_velocity
from sensorium.drivers.payloads.ouster import beam_rays
from sensorium.errors import CalibrationError
from sensorium.simulators.demo_rig import rig_calibration
from sensorium.simulators.emulators.ouster_encoder import default_metadata
from sensorium.simulators.render import Renderer
from sensorium.simulators.world import World

RIG, WORLD = rig_calibration(1), World(1)
SWEEP_S, COLUMNS, RINGS = 0.1, 512, 64
TURN_RAD_S = np.deg2rad(20.0)
UP = np.array([0.0, 0.0, 1.0])
LATE_S = np.tile(SWEEP_S * (np.arange(COLUMNS) / COLUMNS - 0.5), RINGS)
EXPOSED_S = -0.045
"""When the camera looks, against the middle of the sweep."""


def poses(world_s: float, late_s: geometry.Array, velocity_m_s: geometry.Array) -> geometry.Array:
    """Return (N, 4, 4) poses of a body that drives steadily and turns about its own axis."""
    still = WORLD.pose(world_s)
    found = []
    for late in late_s:
        pose = still @ geometry.transform(geometry.rotation_exp(TURN_RAD_S * late * UP), np.zeros(3))
        pose[:3, 3] += still[:3, :3] @ velocity_m_s * late
        found.append(pose)
    return np.array(found)


def sweep(world_s: float, velocity_m_s: geometry.Array, begin_s: float = 0.0) -> geometry.Array:
    """Return points (RINGS * COLUMNS, 4) whose middle was measured ``begin_s`` after the body's own instant."""
    directions, offsets = beam_rays(default_metadata(RINGS, COLUMNS, 10.0))
    T = poses(world_s, LATE_S[:COLUMNS] + begin_s, velocity_m_s) @ RIG.transform("body", "lidar")
    ways = np.einsum("cij,rcj->rci", T[:, :3, :3], directions).reshape(-1, 3)
    starts = (np.einsum("cij,rcj->rci", T[:, :3, :3], offsets) + T[:, :3, 3]).reshape(-1, 3)
    hits = WORLD.scene.cast(starts.astype(np.float32), ways.astype(np.float32))
    range_m = hits.range_m + np.random.default_rng(int(1000 * world_s)).normal(0, 0.008, len(ways))
    flat = offsets.reshape(-1, 3) + directions.reshape(-1, 3) * range_m[:, None]
    return np.column_stack([flat, hits.reflectivity])


def straight(
    points: geometry.Array, at_s: float, velocity_m_s: geometry.Array | None = None
) -> geometry.Array:
    gyro_s = np.arange(-0.08, 0.08, 0.005)
    rates = np.tile(TURN_RAD_S * RIG.transform("imu", "body")[:3, :3] @ UP, (len(gyro_s), 1))
    return deskew(points, LATE_S, at_s, gyro_s, rates, RIG.transform("lidar", "imu")[:3, :3], velocity_m_s)


def in_lidar(velocity_m_s: geometry.Array) -> geometry.Array:
    """Return the LiDAR's own velocity at the body's instant: it sits off the axis that the body turns about."""
    T = RIG.transform("body", "lidar")
    return np.asarray(T[:3, :3].T @ (velocity_m_s + np.cross(TURN_RAD_S * UP, T[:3, 3])))


def known_velocity(world_s: float, velocity_m_s: geometry.Array) -> geometry.Array:
    """Return what two sweeps that follow each other say."""
    first, second = sweep(world_s, velocity_m_s), sweep(world_s, velocity_m_s, SWEEP_S)
    R = RIG.transform("lidar", "body")[:3, :3]
    R_step = R @ geometry.rotation_exp(TURN_RAD_S * SWEEP_S * UP) @ R.T
    found = sweep_velocity(straight(first, 0.0), straight(second, 0.0), SWEEP_S, R_step)
    assert found is not None
    return found.velocity_m_s


@pytest.mark.parametrize("velocity", [(0.0, 0.0, 0.0), (1.5, -0.5, 0.0), (-4.0, 1.0, 0.2), (0.0, -5.0, 0.0)])
def test_the_velocity_is_read_from_two_sweeps(velocity: tuple[float, float, float]) -> None:
    truth = np.array(velocity)
    # The way from one middle to the next: turning bends it by a degree.
    assert known_velocity(0.3, truth) == pytest.approx(
        in_lidar(truth), abs=0.1 + 0.02 * np.linalg.norm(truth)
    )


def test_points_of_a_driving_lidar_lie_where_they_would_from_one_place() -> None:
    velocity = np.array([3.0, -1.0, 0.0])
    skewed = sweep(0.3, velocity)
    # Each point as the sensor would have seen it from where it was at EXPOSED_S, by the truth.
    T = poses(0.3, np.append(LATE_S[:COLUMNS], EXPOSED_S), velocity) @ RIG.transform("body", "lidar")
    to_instant = np.linalg.inv(T[-1]) @ T[:-1]
    grid = skewed[:, :3].reshape(RINGS, COLUMNS, 3)
    truth = np.einsum("cij,rcj->rci", to_instant[:, :3, :3], grid) + to_instant[:, :3, 3]
    turned = straight(skewed, EXPOSED_S)[:, :3]
    whole = straight(skewed, EXPOSED_S, known_velocity(0.3, velocity))[:, :3]
    missed = [np.linalg.norm(found - truth.reshape(-1, 3), axis=1).max() for found in (turned, whole)]
    assert missed[0] > 0.25
    assert missed[1] < 0.03


def test_sweeps_that_share_nothing_or_lie_apart_give_no_velocity() -> None:
    wall = sweep(0.3, np.zeros(3))
    assert sweep_velocity(wall, wall[:50], 0.1, np.eye(3)) is None
    for apart_s in (0.0, 0.5):
        with pytest.raises(CalibrationError, match="s apart say nothing of a speed"):
            sweep_velocity(wall, wall, apart_s, np.eye(3))


def test_a_direction_that_the_scene_does_not_pin_is_no_speed() -> None:
    rng = np.random.default_rng(1)
    along = rng.uniform(-8, 8, 20_000)
    side = rng.choice((-1.5, 1.5), 20_000)
    tunnel = np.column_stack([along, side, rng.uniform(-1, 1, 20_000)])
    floor = np.column_stack([rng.uniform(-8, 8, 9_000), rng.uniform(-1.5, 1.5, 9_000), np.full(9_000, -1.0)])
    corridor = np.concatenate([tunnel, floor]) + rng.normal(0, 0.005, (29_000, 3))
    found = sweep_velocity(corridor, corridor - (0.0, 0.1, 0.0), 0.1, np.eye(3))
    assert found is not None
    assert found.velocity_m_s == pytest.approx((0.0, 1.0, 0.0), abs=0.05)
    assert np.sqrt(found.covariance[0, 0]) > 0.5


def views(velocity_m_s: geometry.Array, is_speed_known: bool) -> list[Keyframe]:
    camera, T = RIG.camera("camera_left"), RIG.transform("camera_left", "lidar")
    found = []
    for world_s in (0.3, 2.3, 4.3, 6.3):
        velocity = known_velocity(world_s, velocity_m_s) if is_speed_known else None
        measured = sweep(world_s, velocity_m_s)
        points = straight(measured, EXPOSED_S, velocity)
        pose = poses(world_s, np.array([EXPOSED_S]), velocity_m_s)[0] @ RIG.transform("body", "camera_left")
        image = Renderer(WORLD.scene, camera, np.random.default_rng(1)).image(pose, world_s)
        found.append(keyframe(image, points, camera, T, np.repeat(np.arange(RINGS), COLUMNS), measured))
    return found


def test_camera_and_lidar_of_a_driving_rig_are_read_without_its_motion() -> None:
    known = RigCalibration(edges=(Edge("camera", "lidar", RIG.transform("camera_left", "lidar")),))
    velocity = np.array([0.0, 4.0, 0.0])
    taken_out, left_in = (
        np.linalg.norm(check_camera_lidar(views(velocity, is_known), known, "camera", "lidar").motion[3:])
        for is_known in (True, False)
    )
    # 45 ms at 4 m/s are 18 cm; what looks ahead was measured nearer to the image's instant than the middle.
    assert left_in > 0.06
    assert taken_out < 0.02
