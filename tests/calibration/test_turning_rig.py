"""A rig that turns at 30 deg/s: what its straightened sweeps say of the mounts, and what crooked ones would."""

import numpy as np

from sensorium.calibration import geometry
from sensorium.calibration.camera_lidar import check_camera_lidar
from sensorium.calibration.edges import Edge
from sensorium.calibration.keyframes import Keyframe, keyframe
from sensorium.calibration.lidar_lidar import Registration, register_sweeps
from sensorium.calibration.rig_document import RigCalibration
from sensorium.calibration.sweep import deskew
from sensorium.drivers.payloads.ouster import beam_rays
from sensorium.simulators.demo_rig import rig_calibration
from sensorium.simulators.emulators.ouster_encoder import default_metadata
from sensorium.simulators.render import Renderer
from sensorium.simulators.world import World
from sensorium.verdict import Status

RIG, WORLD = rig_calibration(1), World(1)
RATE_RAD_S = np.deg2rad(30.0)
SWEEP_S = 0.1
EXPOSED_S = -0.04
"""When the camera looks, against the middle of the sweep: by then the rig has turned by 1.2 deg."""
UP = np.array([0.0, 0.0, 1.0])


def body(world_s: float, late_s: geometry.Array) -> geometry.Array:
    """Return (N, 4, 4) poses of the body, frozen where it is but turning about its own axis."""
    still = WORLD.pose(world_s)
    turns = [
        geometry.transform(geometry.rotation_exp(RATE_RAD_S * late * UP), np.zeros(3)) for late in late_s
    ]
    return np.array([still @ turn for turn in turns])


def sweep(
    world_s: float, name: str, rings: int, columns: int, phase: float = 0.0
) -> tuple[geometry.Array, geometry.Array]:
    """Return points (rings * columns, 4) of a sweep, and when each was measured against the middle (s).

    Args:
        phase: Part of a turn by which the sweep begins elsewhere.
    """
    directions, offsets = beam_rays(default_metadata(rings, columns, 10.0))
    late_s = SWEEP_S * ((np.arange(columns) / columns + phase) % 1 - 0.5)
    T = body(world_s, late_s) @ RIG.transform("body", name)
    ways = np.einsum("cij,rcj->rci", T[:, :3, :3], directions).reshape(-1, 3)
    starts = (np.einsum("cij,rcj->rci", T[:, :3, :3], offsets) + T[:, :3, 3]).reshape(-1, 3)
    hits = WORLD.scene.cast(starts.astype(np.float32), ways.astype(np.float32))
    rng = np.random.default_rng(int(1000 * world_s))
    range_m = hits.range_m + rng.normal(0, 0.008, len(ways))
    flat = offsets.reshape(-1, 3) + directions.reshape(-1, 3) * range_m[:, None]
    return np.column_stack([flat, hits.reflectivity]), np.tile(late_s, rings)


def straight(points: geometry.Array, late_s: geometry.Array, name: str, at_s: float = 0.0) -> geometry.Array:
    gyro_s = np.arange(-0.06, 0.06, 0.005)
    rates = np.tile(RATE_RAD_S * RIG.transform("imu", "body")[:3, :3] @ UP, (len(gyro_s), 1))
    return deskew(points, late_s, at_s, gyro_s, rates, RIG.transform(name, "imu")[:3, :3])


def views(is_straightened: bool) -> list[Keyframe]:
    camera, T = RIG.camera("camera_left"), RIG.transform("camera_left", "lidar")
    found = []
    for world_s in (0.3, 2.3, 4.3, 6.3):
        points, late_s = sweep(world_s, "lidar", 64, 1024)
        pose = body(world_s, np.array([EXPOSED_S]))[0] @ RIG.transform("body", "camera_left")
        image = Renderer(WORLD.scene, camera, np.random.default_rng(1)).image(pose, world_s)
        if is_straightened:
            points = straight(points, late_s, "lidar", EXPOSED_S)
        found.append(keyframe(image, points, camera, T, np.repeat(np.arange(64), 1024)))
    return found


def test_camera_and_lidar_of_a_turning_rig_are_read_without_bias() -> None:
    known = RigCalibration(edges=(Edge("camera", "lidar", RIG.transform("camera_left", "lidar")),))
    check = check_camera_lidar(views(is_straightened=True), known, "camera", "lidar")
    assert check.verdict.status is Status.OK, check.verdict
    assert np.abs(np.rad2deg(check.motion[:3])).max() < 0.3
    crooked = check_camera_lidar(views(is_straightened=False), known, "camera", "lidar")
    assert crooked.verdict.status in (Status.SUSPECT, Status.FAILED)
    assert np.abs(np.rad2deg(crooked.motion[:3])).max() > 0.8


def test_two_lidars_of_a_turning_rig_agree_once_straightened() -> None:
    # The second begins its sweep half a turn later: the two see the same wall 50 ms apart.
    first, second = sweep(1.0, "lidar", 64, 1024), sweep(1.0, "lidar", 32, 512, 0.5)
    flat = [straight(*cloud, "lidar") for cloud in (first, second)]
    angle_deg, shift_m = apart(register_sweeps(flat[:1], flat[1:], np.eye(4)))
    assert angle_deg < 0.1
    assert shift_m < 0.01
    crooked_deg, _ = apart(register_sweeps([first[0]], [second[0]], np.eye(4)))
    assert crooked_deg > 2 * angle_deg


def apart(found: Registration) -> tuple[float, float]:
    T = found.T_target_source
    return float(np.rad2deg(geometry.rotation_angle(T[:3, :3]))), float(np.linalg.norm(T[:3, 3]))
