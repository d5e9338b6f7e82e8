from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from simulated_rig import device, run, world_seconds

from sensorium.calibration.geometry import Array, Intrinsics, apply, inverse, project
from sensorium.drivers.frame import Frame
from sensorium.errors import ConfigError
from sensorium.simulators.camera import SimulatedCamera
from sensorium.simulators.render import Renderer
from sensorium.simulators.rig import CAMERA, MOUNTS
from sensorium.simulators.surfaces import Box, BoxScene
from sensorium.simulators.truth import load_truth
from sensorium.simulators.world import BOARD_CORNERS, LAMP_SECONDS, World

LEFT, RIGHT = MOUNTS["camera_left"], MOUNTS["camera_right"]


def _decoded(frame: Frame) -> NDArray[np.uint8]:
    image = cv2.imdecode(np.frombuffer(frame.payload, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    return np.asarray(image, np.uint8)


def _corners(image: NDArray[np.uint8]) -> Array | None:
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    found, corners = cv2.findChessboardCorners(grey, BOARD_CORNERS)
    if not found:
        return None
    refined = cv2.cornerSubPix(grey, corners, (4, 4), (-1, -1), (3, 30, 0.01))
    return np.asarray(refined, np.float64).reshape(-1, 2)


def _expected(world: World, world_s: float, mount: Array, camera: Intrinsics) -> Array:
    return project(apply(inverse(world.pose(world_s) @ mount), world.board_points_m), camera)


def _distance_px(found: Array, expected: Array) -> float:
    """Largest distance; the detector may number a board from either end."""
    return min(float(np.linalg.norm(one - expected, axis=1).max()) for one in (found, found[::-1]))


def test_the_board_is_found_where_the_truth_projects_it(tmp_path: Path) -> None:
    world = World(1)
    _, frames = run("camera_left", tmp_path, seconds=10.0, rate_hz=3.0)
    seconds = world_seconds(load_truth(tmp_path)["camera_left"][:, 1])
    errors = []
    for frame in frames["camera_left"]:
        corners = _corners(_decoded(frame))
        if corners is not None:
            errors.append(_distance_px(corners, _expected(world, seconds[frame.seq], LEFT, CAMERA)))
    assert len(errors) >= 25
    assert max(errors) < 0.5


def test_a_distorted_lens_bends_the_board_as_opencv_says(tmp_path: Path) -> None:
    world, bend = World(1), (-0.25, 0.07, 0.001, -0.0005)
    driver = device("camera_left", tmp_path, distortion=bend, seconds=3.0, rate_hz=2.0)
    assert isinstance(driver, SimulatedCamera)
    camera = driver.intrinsics
    _, frames = run("camera_left", tmp_path, distortion=bend, seconds=3.0, rate_hz=2.0)
    seconds = world_seconds(load_truth(tmp_path)["camera_left"][:, 1])
    bent = 0
    for frame in frames["camera_left"]:
        corners = _corners(_decoded(frame))
        if corners is not None:
            expected = _expected(world, seconds[frame.seq], LEFT, camera)
            assert _distance_px(corners, expected) < 0.5
            bent += _distance_px(expected, _expected(world, seconds[frame.seq], LEFT, CAMERA)) > 2.0
    assert bent >= 2


def test_triggered_cameras_see_the_board_on_equal_rows(tmp_path: Path) -> None:
    names = ("camera_left", "camera_right")
    streams = [run(name, tmp_path, seconds=3.0, rate_hz=3.0)[1][name] for name in names]
    truth = load_truth(tmp_path)
    np.testing.assert_array_equal(truth["camera_left"], truth["camera_right"])
    pairs = 0
    for left, right in zip(*streams, strict=True):
        one, other = _corners(_decoded(left)), _corners(_decoded(right))
        if one is None or other is None:
            continue
        pairs += 1
        disparity = one - other
        assert np.abs(disparity[:, 1]).max() < 0.5
        # Depth of the wall 2 ... 4.5 m: f b / z.
        assert np.all((disparity[:, 0] > 420 * 0.2 / 4.5) & (disparity[:, 0] < 420 * 0.2 / 2))
    assert pairs >= 6


def test_a_stamp_at_exposure_start_is_half_an_exposure_before_the_image(tmp_path: Path) -> None:
    world = World(1)
    options = {"seconds": 1.5, "rate_hz": 2.0, "exposure_ms": 30.0, "stamp_of": "exposure_start"}
    infos, frames = run("camera_left", tmp_path, **options)
    assert infos["camera_left"].meta_fields == ("exposure_ns",)
    seconds = world_seconds(load_truth(tmp_path)["camera_left"][:, 1])
    for frame in frames["camera_left"]:
        assert frame.meta == (30e6,)
        corners = _corners(_decoded(frame))
        assert corners is not None
        assert _distance_px(corners, _expected(world, seconds[frame.seq] + 0.015, LEFT, CAMERA)) < 0.5


def test_a_bump_moves_the_picture_from_its_instant_on(tmp_path: Path) -> None:
    bump = {"at_s": 1.0, "rotation_deg": [0.0, 2.0, 0.0]}
    plain = run("camera_left", tmp_path / "a", seconds=1.5)[1]["camera_left"]
    bumped = run("camera_left", tmp_path / "b", seconds=1.5, bump=bump)[1]["camera_left"]
    seconds = world_seconds(load_truth(tmp_path / "b")["camera_left"][:, 1])
    changed = [bytes(a.payload) != bytes(b.payload) for a, b in zip(plain, bumped, strict=True)]
    assert changed == [bool(second >= 1.0) for second in seconds]


def test_the_lamp_lights_for_the_clap_and_only_then() -> None:
    world = World(1)
    renderer = Renderer(world.scene, CAMERA, np.random.default_rng(0), noise_dn=0.0)
    (clap, *_) = world.claps(3.0, 4.0)
    for offset_s, lit in ((-0.01, False), (0.0, True), (LAMP_SECONDS - 0.005, True), (LAMP_SECONDS, False)):
        T_world_camera = world.pose(clap.at_s) @ LEFT
        ((x, y),) = project(apply(inverse(T_world_camera), np.array([clap.place_m])), CAMERA)
        image = renderer.image(T_world_camera, clap.at_s + offset_s)
        assert (image[round(y), round(x)].min() > 230) == lit


def test_cached_images_repeat_after_one_loop_and_are_near_the_live_ones(tmp_path: Path) -> None:
    options = {"rate_hz": 2.0, "seconds": 21.0, "size": [160, 120]}
    _, frames = run("camera_left", tmp_path / "a", render="cached", **options)
    images = [bytes(frame.payload) for frame in frames["camera_left"]]
    assert images[:20] == images[20:40]
    assert len(set(images[:20])) == 20
    live = run("camera_left", tmp_path / "b", **options)[1]["camera_left"]
    for cached_frame, live_frame in zip(frames["camera_left"][:5], live[:5], strict=True):
        gap = _decoded(cached_frame).astype(int) - _decoded(live_frame)
        assert np.abs(gap).mean() < 5


def test_a_loop_that_does_not_close_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="whole number of frames"):
        device("camera_left", tmp_path, render="cached", rate_hz=29.97).open()


def test_a_plane_that_passes_behind_the_camera_is_drawn_in_front_only() -> None:
    # A floor with a marked half: the eye stands on the border and looks along it.
    floor = np.full((400, 400, 3), 60, np.uint8)
    floor[:, 200:] = 200
    room = Box((0, 0, 1.5), (8, 8, 3), {"-z": floor}, is_room=True, order=0)
    camera = np.eye(4)
    camera[:3, :3] = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])
    camera[:3, 3] = (0, 0, 1.5)
    image = Renderer(BoxScene([room]), CAMERA, np.random.default_rng(0), noise_dn=0.0).image(camera, 0.0)
    assert image.min() > 0
    # Rows below the horizon where the far wall meets the floor: 1.5 m down at 4 m is 157 px.
    lower = image[240 + 160 :, :, 0]
    halves = {int(np.median(lower[:, :300])), int(np.median(lower[:, 340:]))}
    ahead = {int(floor[0, 0, 0]), int(floor[0, -1, 0])}
    assert len(halves) == 1 or halves == ahead
    assert halves <= ahead
