"""Rotations and camera models against OpenCV and against themselves."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sensorium.calibration import geometry
from sensorium.calibration.geometry import Intrinsics
from sensorium.errors import CalibrationError

CAMERAS = {
    "pinhole": Intrinsics("pinhole", 640, 480, 500.0, 505.0, 320.0, 240.0),
    "radtan": Intrinsics(
        "radtan", 752, 480, 458.7, 457.3, 367.2, 248.4, (-0.28340811, 0.07395907, 0.00019359, 1.76e-05)
    ),
    "rational": Intrinsics(
        "rational", 640, 480, 500.0, 505.0, 320.0, 240.0, (0.3, -0.1, 1e-3, -5e-4, 0.02, 0.6, -0.05, 0.01)
    ),
    "equidistant": Intrinsics(
        "equidistant", 640, 480, 300.0, 301.0, 322.0, 241.0, (-0.01, 0.02, -0.005, 0.001)
    ),
}

rotation_vectors = st.tuples(*[st.floats(-1.8, 1.8)] * 3)


def points_in_view(seed: int, count: int = 200) -> geometry.Array:
    rng = np.random.default_rng(seed)
    depth = rng.uniform(1.0, 20.0, count)
    return np.stack(
        [rng.uniform(-0.5, 0.5, count) * depth, rng.uniform(-0.4, 0.4, count) * depth, depth], axis=1
    )


@given(rotation_vectors)
@settings(max_examples=100, deadline=None)
def test_logarithm_undoes_exponential(vector: tuple[float, float, float]) -> None:
    # 1.8 * sqrt(3) = 3.118 < pi, so the vector is the shortest one.
    np.testing.assert_allclose(geometry.rotation_log(geometry.rotation_exp(vector)), vector, atol=1e-9)


@given(rotation_vectors)
@settings(max_examples=50, deadline=None)
def test_quaternion_and_rpy_give_the_rotation_back(vector: tuple[float, float, float]) -> None:
    rotation = geometry.rotation_exp(vector)
    again = geometry.rotation_from_quaternion(geometry.quaternion_from_rotation(rotation))
    np.testing.assert_allclose(again, rotation, atol=1e-12)
    np.testing.assert_allclose(
        geometry.rotation_from_rpy(*geometry.rpy_from_rotation(rotation)), rotation, atol=1e-9
    )


def test_inverse_transform_maps_points_back() -> None:
    T = geometry.small_motion((0.3, -0.2, 1.0, 1.0, 2.0, 3.0))
    points = points_in_view(1)
    np.testing.assert_allclose(
        geometry.apply(geometry.inverse(T), geometry.apply(T, points)), points, atol=1e-12
    )


@pytest.mark.parametrize("name", CAMERAS)
def test_projection_agrees_with_opencv(name: str) -> None:
    camera, points = CAMERAS[name], points_in_view(2)
    if name == "equidistant":
        expected, _ = cv2.fisheye.projectPoints(
            points.reshape(-1, 1, 3), np.zeros(3), np.zeros(3), camera.K, np.array(camera.distortion)
        )
    else:
        coefficients = np.array(camera.distortion or (0.0, 0.0, 0.0, 0.0))
        expected, _ = cv2.projectPoints(points, np.zeros(3), np.zeros(3), camera.K, coefficients)
    np.testing.assert_allclose(geometry.project(points, camera), expected.reshape(-1, 2), atol=1e-8)


@pytest.mark.parametrize("name", CAMERAS)
def test_undistortion_inverts_projection(name: str) -> None:
    points = points_in_view(3)
    found = geometry.rays(geometry.project(points, CAMERAS[name]), CAMERAS[name])
    np.testing.assert_allclose(found, points / points[:, 2:], atol=1e-6)


def test_points_behind_the_camera_have_no_pixel() -> None:
    pixels = geometry.project(np.array([[0.0, 0.0, -1.0], [0.0, 0.0, 0.0]]), CAMERAS["radtan"])
    assert np.isnan(pixels).all()
    assert not geometry.in_image(pixels, CAMERAS["radtan"]).any()


def test_far_points_do_not_fold_back_into_the_image() -> None:
    camera = Intrinsics("radtan", 640, 480, 500.0, 500.0, 320.0, 240.0, (-0.4, 0.0, 0.0, 0.0))
    # r (1 - 0.4 r^2) turns back at r = sqrt(1 / 1.2); at r = 1.58 it crosses the image centre again.
    pixels = geometry.project(np.array([[0.5, 0.0, 1.0], [1.55, 0.0, 1.0]]), camera)
    assert np.isfinite(pixels[0]).all()
    assert np.isnan(pixels[1]).all()


def test_resized_image_keeps_its_rays() -> None:
    camera = CAMERAS["pinhole"]
    half = camera.scaled(320, 240)
    # The centre of a 2x2 block of pixels is half a pixel from the centre of its first one.
    corner = geometry.rays(np.array([[0.5, 0.5]]), camera)
    np.testing.assert_allclose(geometry.rays(np.array([[0.0, 0.0]]), half), corner, atol=1e-12)


@pytest.mark.parametrize(
    ("model", "distortion", "complaint"),
    [
        ("fisheye62", (), "unknown"),
        ("radtan", (0.1,), "takes 4 or 5 distortion coefficients, found 1"),
        ("pinhole", (0.1, 0.2, 0.3, 0.4), "takes 0"),
        ("equidistant", (float("nan"),) * 4, "finite"),
    ],
)
def test_impossible_cameras_are_refused(model: str, distortion: tuple[float, ...], complaint: str) -> None:
    with pytest.raises(CalibrationError, match=complaint):
        Intrinsics(model, 640, 480, 500.0, 500.0, 320.0, 240.0, distortion)
