"""The camera-LiDAR check without a target: finds what was injected, and says when it cannot know."""

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import pytest

from sensorium.calibration import geometry
from sensorium.calibration.agreement import Expectation, expected_of
from sensorium.calibration.camera_lidar import (
    CHANGE_THRESHOLD,
    FOCAL_BIAS_PERCENT,
    THRESHOLD,
    CameraLidarTolerance,
    camera_lidar_reference,
    change_between,
    check_camera_lidar,
    screening,
)
from sensorium.calibration.edges import Edge
from sensorium.calibration.formats.kitti import read_kitti
from sensorium.calibration.keyframes import Keyframe, distinct_scenes, keyframe
from sensorium.calibration.null_law import MOST_CHANCE, null_law
from sensorium.calibration.rig_document import RigCalibration
from sensorium.calibration.sweep import Sweep, along_ring_edges, between_ring_edges, reflectance_edges
from sensorium.drivers.payloads.ouster import beam_rays
from sensorium.errors import CalibrationError
from sensorium.simulators.demo_rig import rig_calibration
from sensorium.simulators.emulators.ouster_encoder import default_metadata
from sensorium.simulators.render import Renderer
from sensorium.simulators.world import World
from sensorium.verdict import Status

RANGE_NOISE_M = 0.008


def truth() -> RigCalibration:
    """The simulated rig's calibration with the LiDAR hung directly on the left camera."""
    rig = rig_calibration(1)
    return RigCalibration(
        cameras={"camera": rig.camera("camera_left")},
        edges=(Edge("camera", "lidar", rig.transform("camera_left", "lidar")),),
    )


def wrong_by(motion: geometry.Array) -> RigCalibration:
    T = geometry.small_motion(motion) @ truth().transform("camera", "lidar")
    return replace(truth(), edges=(Edge("camera", "lidar", T),))


def view(world_s: float, is_lidar_moved: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image, points and rings of the simulated room, with the rig frozen at an instant of its motion."""
    rig, world = rig_calibration(1), World(1)
    rng = np.random.default_rng(int(world_s * 1000))
    pose = world.pose(world_s)
    renderer = Renderer(world.scene, rig.camera("camera_left"), rng)
    image = renderer.image(pose @ rig.transform("body", "camera_left"), world_s)
    T = pose @ rig.transform("body", "lidar")
    directions, offsets = beam_rays(default_metadata(64, 1024, 10.0))
    rings = np.repeat(np.arange(64), 1024)
    directions, offsets = directions.reshape(-1, 3), offsets.reshape(-1, 3)
    R = T[:3, :3].astype(np.float32)
    hits = world.scene.cast(offsets @ R.T + T[:3, 3].astype(np.float32), directions @ R.T)
    range_m = hits.range_m + rng.normal(0, RANGE_NOISE_M, len(directions))
    points = np.column_stack([offsets + directions * range_m[:, None], hits.reflectivity])
    return image, points, rings


@lru_cache(maxsize=1)
def keyframes() -> tuple[Keyframe, ...]:
    """Six views of the room, a second apart."""
    camera, T = truth().camera("camera"), truth().transform("camera", "lidar")
    found = []
    for second in range(6):
        image, points, rings = view(0.3 + second)
        found.append(keyframe(image, points, camera, T, rings))
    return tuple(found)


def test_rings_are_found_from_points_alone() -> None:
    _, points, rings = view(0.3)
    known = Sweep.from_points(points, rings)
    shuffled = Sweep.from_points(points[np.random.default_rng(1).permutation(len(points))])
    assert known.ring.max() == 63
    # Near and far returns of one laser differ a little in elevation; nearly all must still share a ring.
    assert 60 <= shuffled.ring.max() + 1 <= 68
    assert shuffled.ring_spacing_rad == pytest.approx(known.ring_spacing_rad, rel=0.1)


def test_rows_without_a_return_are_dropped() -> None:
    points = np.array([[0.0, 0, 0, 0], [np.nan, 1, 1, 1], [5.0, 0, 0, 9.0]])
    assert len(Sweep.from_points(points).ring) == 1
    with pytest.raises(CalibrationError, match="rows x, y, z, intensity"):
        Sweep.from_points(np.zeros((5, 3)))


def wall_with_post() -> Sweep:
    """A wall at 10 m and, before it, a post at 5 m from azimuth 1.5 to 1.6 rad; 16 rings, 0.01 rad steps."""
    azimuth = np.tile(np.arange(1.0, 2.0, 0.01), 16)
    ring = np.repeat(np.arange(16), 100)
    elevation = np.deg2rad(8.0 - ring)
    range_m = np.where((azimuth > 1.495) & (azimuth < 1.595), 5.0, 10.0)
    flat = range_m * np.cos(elevation)
    xyz = np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), range_m * np.sin(elevation)], axis=1)
    paint = np.where(azimuth > 1.795, 0.9, 0.1)
    return Sweep.from_points(np.column_stack([xyz, paint]), ring)


def test_upright_outline_lies_half_a_step_outside_the_post() -> None:
    edges = along_ring_edges(wall_with_post())
    azimuth = np.arctan2(edges.xyz[:, 1], edges.xyz[:, 0])
    assert len(edges) == 2 * 16
    np.testing.assert_allclose(np.unique(azimuth.round(6)), (1.495, 1.595), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(edges.xyz, axis=1), 5.0)


def test_paint_is_an_edge_where_it_changes() -> None:
    edges = reflectance_edges(wall_with_post())
    azimuth = np.arctan2(edges.xyz[:, 1], edges.xyz[:, 0])
    np.testing.assert_allclose(azimuth, 1.795, atol=1e-3)
    assert len(edges) == 16


def test_level_outline_lies_between_the_rings() -> None:
    sweep = wall_with_post()
    lower = sweep.ring >= 8
    near = replace(sweep, range_m=np.where(lower, 4.0, 10.0))
    edges = between_ring_edges(near)
    elevation = np.arcsin(edges.xyz[:, 2] / np.linalg.norm(edges.xyz, axis=1))
    np.testing.assert_allclose(elevation, np.deg2rad(0.5), atol=1e-6)


def test_good_rig_is_ok_and_close_to_the_truth() -> None:
    check = check_camera_lidar(keyframes(), truth(), "camera", "lidar")
    assert check.verdict.status is Status.OK, check.verdict
    assert (np.abs(check.motion) < 3 * check.sigma).all()


@pytest.mark.parametrize("motion", [(1.0, 0, 0, 0, 0, 0), (0, -1.0, 0.5, 0, 0, 0), (0, 0, 0, 0.1, -0.1, 0.1)])
def test_injected_motion_is_found_in_size_and_sign(motion: tuple[float, ...]) -> None:
    injected = np.array(motion) * ([np.pi / 180] * 3 + [1.0] * 3)
    check = check_camera_lidar(keyframes(), wrong_by(injected), "camera", "lidar")
    assert check.verdict.status in (Status.SUSPECT, Status.FAILED)
    back = geometry.small_motion(check.motion) @ geometry.small_motion(injected)
    left = np.concatenate([geometry.rotation_log(back[:3, :3]), back[:3, 3]])
    assert (np.abs(left) < 3 * check.sigma).all(), left


def test_large_motion_is_failed_and_named() -> None:
    check = check_camera_lidar(
        keyframes(), wrong_by(np.array([0.0, np.deg2rad(2.0), 0, 0, 0, 0])), "camera", "lidar"
    )
    assert check.verdict.status is Status.FAILED
    assert any(reason.startswith("yaw") for reason in check.verdict.reasons)


@pytest.mark.parametrize("percent", [2.0, -2.0, 0.0])
def test_a_focal_length_that_changed_is_told_from_a_moved_lidar(percent: float) -> None:
    factor = 1 + percent / 100
    frames = [
        replace(frame, camera=replace(frame.camera, fx=frame.camera.fx * factor, fy=frame.camera.fy * factor))
        for frame in keyframes()
    ]
    check = check_camera_lidar(frames, truth(), "camera", "lidar")
    assert check.focal is not None
    error = check.focal.error - (1 / factor - 1)
    assert abs(error) < 3 * np.hypot(check.focal.sigma, FOCAL_BIAS_PERCENT / 100)
    assert (check.verdict.status is Status.OK) == (percent == 0.0), check.verdict


def test_one_keyframe_hints_at_a_motion_but_never_judges() -> None:
    wrong = wrong_by(np.array([0.0, np.deg2rad(2.0), 0, 0, 0, 0]))
    T_right, T_wrong = (rig.transform("camera", "lidar") for rig in (truth(), wrong))
    assert all(screening(frame, T_right) < THRESHOLD for frame in keyframes())
    seen = [screening(frame, T_wrong) > THRESHOLD for frame in keyframes()]
    assert sum(seen) >= len(seen) - 1  # a single view may hold a second top
    verdict = check_camera_lidar([keyframes()[seen.index(True)]], wrong, "camera", "lidar").verdict
    assert verdict.status is Status.INSUFFICIENT
    assert "look again" in verdict.reasons[-1]


def test_a_reference_takes_the_bias_out() -> None:
    biased = wrong_by(np.array([0.0, np.deg2rad(0.8), 0, 0, 0, 0]))
    known = biased.with_reference(camera_lidar_reference(keyframes()[:3], biased, "camera", "lidar"))
    assert check_camera_lidar(keyframes()[3:], known, "camera", "lidar").verdict.status is Status.OK
    assert check_camera_lidar(keyframes()[3:], biased, "camera", "lidar").verdict.status is not Status.OK


def test_a_reference_keeps_what_goes_together_through_a_file(tmp_path: Path) -> None:
    reference = camera_lidar_reference(keyframes()[:3], truth(), "camera", "lidar")
    known = truth().with_reference(reference)
    known.save(tmp_path / "rig.yaml")
    again = RigCalibration.load(tmp_path / "rig.yaml").references[0]
    np.testing.assert_allclose(again.correlation, reference.correlation, atol=1e-6)
    assert np.linalg.eigvalsh(np.array(again.correlation)).min() > 0


def test_a_change_between_two_parts_of_a_recording_is_measured_and_a_common_bias_is_not() -> None:
    T = wrong_by(np.array([0.0, np.deg2rad(0.8), 0, 0, 0, 0])).transform("camera", "lidar")
    calm = change_between(keyframes()[:3], keyframes()[3:], T)
    moved = geometry.small_motion(np.array([np.deg2rad(0.6), 0, 0, 0, 0, 0]))
    later = [
        replace(
            frame,
            edges=tuple(
                replace(
                    edges,
                    xyz=geometry.apply(geometry.inverse(T) @ moved @ T, edges.xyz),
                )
                for edges in frame.edges
            ),
        )
        for frame in keyframes()[3:]
    ]
    change = change_between(keyframes()[:3], later, T)
    assert calm.gain < CHANGE_THRESHOLD < change.gain
    assert abs(change.motion[0] + np.deg2rad(0.6)) < 3 * change.sigma[0]


def test_one_frame_and_standing_still_are_insufficient() -> None:
    one = check_camera_lidar(keyframes()[:1], truth(), "camera", "lidar").verdict
    still = check_camera_lidar([keyframes()[0]] * 5, truth(), "camera", "lidar").verdict
    none = check_camera_lidar([], truth(), "camera", "lidar").verdict
    for verdict in (one, still, none):
        assert verdict.status is Status.INSUFFICIENT
    assert "5 keyframes show 1 different scenes" in still.reasons[0]
    assert distinct_scenes(keyframes()) == 6


def test_dark_images_and_a_covered_lidar_are_insufficient() -> None:
    camera, T = truth().camera("camera"), truth().transform("camera", "lidar")
    dark, covered = [], []
    for second in range(3):
        image, points, rings = view(0.3 + second)
        dark.append(keyframe(np.zeros_like(image), points, camera, T, rings))
        covered.append(keyframe(image, np.full_like(points, 0.2), camera, T, rings))
    verdict = check_camera_lidar(dark, truth(), "camera", "lidar").verdict
    assert verdict.status is Status.INSUFFICIENT
    assert "no contrast" in verdict.reasons[0]
    verdict = check_camera_lidar(covered, truth(), "camera", "lidar").verdict
    assert verdict.status is Status.INSUFFICIENT
    assert "covered LiDAR" in verdict.reasons[0]


def test_empty_sweep_is_insufficient_not_a_crash() -> None:
    camera, T = truth().camera("camera"), truth().transform("camera", "lidar")
    image, *_ = view(0.3)
    frame = keyframe(image, np.zeros((0, 4)), camera, T)
    assert check_camera_lidar([frame] * 3, truth(), "camera", "lidar").verdict.status is Status.INSUFFICIENT


def test_image_of_another_size_is_refused() -> None:
    with pytest.raises(CalibrationError, match="camera image is 320x240"):
        keyframe(np.zeros((240, 320), np.uint8), np.zeros((0, 4)), truth().camera("camera"), np.eye(4))


def test_a_distorted_camera_is_straightened_first() -> None:
    """The same scene through a lens with distortion gives the same estimate within its sigma."""
    straight = truth().camera("camera")
    lens = replace(straight, model="radtan", distortion=(-0.12, 0.03, 0.0, 0.0))
    u, v = np.meshgrid(np.arange(float(lens.width)), np.arange(float(lens.height)))
    ideal = geometry.undistort(np.stack([u, v], axis=-1).reshape(-1, 2), lens)
    where = (ideal * (straight.fx, straight.fy) + (straight.cx, straight.cy)).astype(np.float32)
    where = where.reshape(lens.height, lens.width, 2)
    frames = []
    for second in range(3):
        image, points, rings = view(0.3 + second)
        bent = np.asarray(cv2.remap(image, where[..., 0], where[..., 1], cv2.INTER_LINEAR), np.uint8)
        frames.append(keyframe(bent, points, lens, truth().transform("camera", "lidar"), rings))
    check = check_camera_lidar(frames, truth(), "camera", "lidar")
    assert check.verdict.status is Status.OK
    assert (np.abs(check.motion) < 3 * check.sigma).all()


def test_real_frames_are_ok_and_half_a_degree_is_noticed(shared_data: Path) -> None:
    folder = shared_data / "calibration" / "kitti_object"
    frames, T_of = [], []
    for name in ("000000", "000003", "000005", "000008", "000010"):
        path = str(folder / "image_2" / f"{name}.png")
        image = np.asarray(cv2.imread(path, cv2.IMREAD_GRAYSCALE), np.uint8)
        points = np.fromfile(folder / "velodyne" / f"{name}.bin", np.float32).reshape(-1, 4)
        known = read_kitti(folder / "calib" / f"{name}.txt", (image.shape[1], image.shape[0]))
        T_of.append(known.transform("camera_2", "velodyne"))
        frames.append(keyframe(image, points, known.camera("camera_2"), T_of[-1]))
    # Different days, different calibrations: carry every day's edges to the first day's LiDAR.
    frames = [
        replace(
            frame,
            edges=tuple(
                replace(edges, xyz=geometry.apply(geometry.inverse(T_of[0]) @ T, edges.xyz))
                for edges in frame.edges
            ),
        )
        for frame, T in zip(frames, T_of, strict=True)
    ]
    good = RigCalibration(edges=(Edge("camera", "lidar", T_of[0]),))
    tolerance = CameraLidarTolerance(rotation_deg=0.5, translation_m=0.1)
    assert check_camera_lidar(frames, good, "camera", "lidar", None, tolerance).verdict.status is Status.OK
    for motion in np.deg2rad(0.5) * np.eye(6)[1:3]:
        bad = RigCalibration(edges=(Edge("camera", "lidar", geometry.small_motion(motion) @ T_of[0]),))
        verdict = check_camera_lidar(frames, bad, "camera", "lidar", None, tolerance).verdict
        assert verdict.status in (Status.SUSPECT, Status.FAILED), verdict


def test_keyframes_that_contradict_each_other_quarrel() -> None:
    frames, T = keyframes(), truth().transform("camera", "lidar")
    calm = null_law(frames, T, np.zeros(6), expected_of(frames, None))
    lost = null_law(
        frames, geometry.small_motion((0, np.deg2rad(1.5), 0, 0, 0, 0)) @ T, np.zeros(6), Expectation.of(None)
    )
    assert calm.chance < MOST_CHANCE / 2 < lost.chance
