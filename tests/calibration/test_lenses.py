"""Lenses that see beyond 90 degrees: against their formulas worked out by hand, OpenCV, and themselves."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sensorium.calibration import lenses, stereo
from sensorium.calibration.edges import Edge
from sensorium.calibration.formats import foxglove, kalibr, opencv, ros
from sensorium.calibration.formats.detect import import_calibration
from sensorium.calibration.geometry import (
    Array,
    Intrinsics,
    apply,
    inverse,
    project,
    rays,
    small_motion,
    undistort,
    unproject,
)
from sensorium.calibration.keyframes import straightened
from sensorium.calibration.lint import lint
from sensorium.calibration.rig_document import RigCalibration
from sensorium.errors import CalibrationError
from sensorium.verdict import Status

SIZE = (640, 480)
CENTRE = (320.0, 240.0)


def lens(model: str, coefficients: tuple[float, ...], f: float = 300.0) -> Intrinsics:
    return Intrinsics(model, *SIZE, f, f, *CENTRE, coefficients)


LENSES = {
    "kb4": lens("equidistant", (0.0034823894, 0.000715034845, -0.00205323614, 0.000202936736), 191.0),
    "double_sphere": lens("double_sphere", (-0.28, 0.57), 160.0),
    "double_sphere_narrow": lens("double_sphere", (0.2, 0.3), 300.0),
    "eucm": lens("eucm", (0.59, 1.13), 220.0),
    "unified": lens("eucm", (0.8, 1.0), 220.0),
    "omni": lens("omni", (1.35, -0.05, 0.02, 1e-3, -5e-4), 400.0),
    "omni_flat": lens("omni", (0.9, 0.0, 0.0, 0.0, 0.0), 400.0),
    "fov": lens("fov", (0.93,), 300.0),
}


@pytest.mark.parametrize("name", LENSES)
@given(
    azimuth=st.floats(-np.pi, np.pi),
    angle_deg=st.floats(0.0, 100.0),
    distance_m=st.floats(0.1, 50.0),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_a_ray_comes_back_from_the_pixel_it_went_to(
    name: str, azimuth: float, angle_deg: float, distance_m: float
) -> None:
    angle = np.deg2rad(angle_deg)
    ray = np.array([np.sin(angle) * np.cos(azimuth), np.sin(angle) * np.sin(azimuth), np.cos(angle)])
    pixel = project(distance_m * ray[None], LENSES[name])
    if np.isnan(pixel).any():
        assert angle_deg > 60.0, "within 60 degrees each of these lenses sees everything"
        return
    found = unproject(pixel, LENSES[name])[0]
    # At its rim a lens squeezes angles together: the pixel is the measure, and the ray to what it resolves.
    np.testing.assert_allclose(project(found[None], LENSES[name]), pixel, atol=1e-6)
    np.testing.assert_allclose(found, ray, atol=1e-4)


@pytest.mark.parametrize("name", LENSES)
def test_ideal_coordinates_are_those_of_the_ray(name: str) -> None:
    pixels = np.array([[u, v] for u in range(240, 420, 20) for v in range(180, 320, 20)], np.float64)
    found, ideal = unproject(pixels, LENSES[name]), undistort(pixels, LENSES[name])
    np.testing.assert_allclose(found[:, :2] / found[:, 2:], ideal, atol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-12)
    np.testing.assert_allclose(project(rays(pixels, LENSES[name]), LENSES[name]), pixels, atol=1e-6)


def test_a_point_lands_where_the_formulas_say() -> None:
    # (3, 4, 12) is 13 away and 5 off the axis: all roots below are of whole numbers or written out.
    point = np.array([[3.0, 4.0, 12.0]])
    k = -0.25 * 13 + 12  # 8.75, double sphere's second z
    norm = 0.6 * np.sqrt(25 + 8.75 * 8.75) + 0.4 * 8.75
    expected = {
        ("double_sphere", (-0.25, 0.6)): (3 / norm, 4 / norm),
        ("eucm", (0.5, 2.0)): (3 / (0.5 * np.sqrt(194) + 6), 4 / (0.5 * np.sqrt(194) + 6)),
        ("eucm", (0.5, 1.0)): (3 / 12.5, 4 / 12.5),
        ("omni", (1.0, 0.0, 0.0, 0.0, 0.0)): (3 / 25, 4 / 25),
        ("fov", (1.0,)): tuple(np.arctan(10 * np.tan(0.5) / 12) / 5 * np.array([3, 4])),
        ("equidistant", (0.0, 0.0, 0.0, 0.0)): tuple(np.arctan(5 / 12) / 5 * np.array([3, 4])),
    }
    assert k == 8.75
    for (model, coefficients), (x, y) in expected.items():
        pixel = project(point, lens(model, coefficients))
        np.testing.assert_allclose(pixel, [[300 * x + 320, 300 * y + 240]], atol=1e-9)


def test_radial_and_tangential_terms_come_behind_the_mirror() -> None:
    # Ideal (0.12, 0.16), r^2 = 0.04: radial 1 + 0.1 * 0.04 - 0.2 * 0.0016; OpenCV's order k1 k2 p1 p2.
    pixel = project(np.array([[3.0, 4.0, 12.0]]), lens("omni", (1.0, 0.1, -0.2, 0.01, 0.02)))
    radial = 1 + 0.1 * 0.04 - 0.2 * 0.0016
    x = 0.12 * radial + 2 * 0.01 * 0.12 * 0.16 + 0.02 * (0.04 + 2 * 0.0144)
    y = 0.16 * radial + 0.01 * (0.04 + 2 * 0.0256) + 2 * 0.02 * 0.12 * 0.16
    np.testing.assert_allclose(pixel, [[300 * x + 320, 300 * y + 240]], atol=1e-9)


def test_kannala_brandt_agrees_with_opencv() -> None:
    camera = LENSES["kb4"]
    rng = np.random.default_rng(4)
    angles, azimuths = rng.uniform(0, np.deg2rad(85), 200), rng.uniform(-np.pi, np.pi, 200)
    points = np.column_stack(
        [np.sin(angles) * np.cos(azimuths), np.sin(angles) * np.sin(azimuths), np.cos(angles)]
    )
    expected, _ = cv2.fisheye.projectPoints(
        points.reshape(-1, 1, 3), np.zeros(3), np.zeros(3), camera.K, np.array(camera.distortion)
    )
    np.testing.assert_allclose(project(points, camera), expected.reshape(-1, 2), atol=1e-8)


def test_a_fisheye_sees_what_stands_beside_and_behind_it() -> None:
    # 100 degrees off the axis: r = 191 * theta without distortion.
    angle = np.deg2rad(100.0)
    camera = lens("equidistant", (0.0,) * 4, 191.0)
    pixel = project(np.array([[np.sin(angle), 0.0, np.cos(angle)]]), camera)
    np.testing.assert_allclose(pixel, [[320 + 191 * angle, 240.0]], atol=1e-9)
    assert np.isnan(undistort(pixel, camera)).all(), "there is no x/z behind the lens"
    np.testing.assert_allclose(unproject(pixel, camera)[0], [np.sin(angle), 0, np.cos(angle)], atol=1e-9)


@pytest.mark.parametrize("name", LENSES)
def test_what_a_lens_cannot_see_has_no_pixel(name: str) -> None:
    straight_behind = np.array([[0.0, 0.0, -1.0], [0.0, 0.0, 0.0]])
    assert np.isnan(project(straight_behind, LENSES[name])).all()


def test_pixels_outside_the_circle_of_a_lens_have_no_ray() -> None:
    # alpha 0.8: nothing beyond r^2 = 1 / (2 alpha - 1) = 1 / 0.6.
    camera = lens("eucm", (0.8, 1.0), 100.0)
    radius = 100 / np.sqrt(0.6)
    found = unproject(np.array([[320 + radius - 1e-6, 240.0], [320 + radius + 1, 240.0]]), camera)
    assert np.isfinite(found[0]).all()
    assert np.isnan(found[1]).all()


@pytest.mark.parametrize("name", LENSES)
def test_the_focal_length_is_that_about_the_axis(name: str) -> None:
    camera = LENSES[name]
    step = 1e-6
    pixel: Array = project(np.array([[step, 0.0, 1.0]]), camera)
    assert (pixel[0, 0] - 320.0) / step == pytest.approx(camera.f_px, rel=1e-4)


@pytest.mark.parametrize("name", LENSES)
def test_an_image_is_straightened_to_a_pinhole_of_the_same_focal_length(name: str) -> None:
    camera = LENSES[name]
    # A bright spot 20 degrees to the right, drawn where the lens puts it.
    point = np.array([[np.tan(np.deg2rad(20.0)), 0.1, 1.0]])
    image = np.zeros((480, 640), np.uint8)
    u, v = project(point, camera)[0]
    cv2.circle(image, (round(u), round(v)), 4, 255, -1)
    flat, pinhole = straightened(image, camera)
    rows, columns = np.nonzero(flat > 128)
    expected = project(point, pinhole)[0]
    assert pinhole.fx == pytest.approx(camera.f_px)
    assert np.hypot(columns.mean() - expected[0], rows.mean() - expected[1]) < 1.5, (
        "half a pixel of drawing, widened"
    )


def test_a_fisheye_that_does_not_fill_its_corners_is_no_finding() -> None:
    rig = RigCalibration(cameras={"cam0": LENSES["kb4"], "cam1": lens("eucm", (0.7, 1.0), 155.0)})
    assert [finding.check for finding in lint(rig)] == []


@pytest.mark.parametrize(
    ("model", "coefficients", "complaint"),
    [
        ("double_sphere", (-0.2, 1.4), "alpha from 0 to 1, found xi -0.2, alpha 1.4"),
        ("eucm", (0.5, -1.0), "beta > 0"),
        ("omni", (-1.0, 0.0, 0.0, 0.0, 0.0), "xi >= 0"),
        ("fov", (4.0,), "between 0 and pi"),
        ("double_sphere", (0.1,), "takes 2 distortion coefficients, found 1"),
    ],
)
def test_impossible_lenses_are_refused(model: str, coefficients: tuple[float, ...], complaint: str) -> None:
    with pytest.raises(CalibrationError, match=complaint):
        lens(model, coefficients)


WIDE = RigCalibration(
    cameras={name: LENSES[name] for name in ("kb4", "double_sphere", "eucm", "omni", "fov")},
    edges=(Edge("body", "eucm", np.eye(4)),),
)


def test_kalibr_keeps_every_lens(tmp_path: Path) -> None:
    kalibr.write(WIDE, tmp_path / "camchain.yaml")
    again = import_calibration(tmp_path / "camchain.yaml").calibration
    assert {name: camera.model for name, camera in again.cameras.items()} == {
        name: camera.model for name, camera in WIDE.cameras.items()
    }
    for name, camera in WIDE.cameras.items():
        points = np.array([[0.3, -0.2, 1.0], [-1.0, 0.4, 0.8]])
        np.testing.assert_allclose(project(points, again.camera(name)), project(points, camera), atol=1e-9)


def test_a_writer_names_the_lenses_that_it_lacks(tmp_path: Path) -> None:
    left_out = [f"left out, the format has no such lens model: {name}" for name in ("double_sphere", "eucm")]
    for notes in (ros.write(WIDE, tmp_path / "ros"), foxglove.write(WIDE, tmp_path / "a.mcap")):
        assert [note for note in notes for start in left_out if note.startswith(start)] == [
            f"{start} ({model})" for start, model in zip(left_out, ("double_sphere", "eucm"), strict=True)
        ]
    assert import_calibration(tmp_path / "ros").calibration.cameras.keys() == {"kb4"}
    assert import_calibration(tmp_path / "a.mcap").calibration.cameras.keys() == {"kb4"}
    with pytest.raises(CalibrationError, match="no lens model for camera eucm"):
        opencv.write(WIDE, tmp_path / "a.yml", ("eucm",))


def test_every_lens_has_coefficients_that_a_document_can_hold() -> None:
    rig = RigCalibration(cameras=LENSES)
    again = RigCalibration.parse(rig.dump())
    assert again.calibration_id == rig.calibration_id
    assert set(lenses.COUNTS) <= set(Intrinsics.MODELS)


@pytest.mark.parametrize("name", LENSES)
def test_a_stereo_pair_of_any_lens_is_judged(name: str) -> None:
    """Points seen by both, some of them beside the cameras: in place ok, pitched by half a degree failed."""
    T_left_right = small_motion((0.0, 0.02, 0.0, 0.12, 0.0, 0.0))
    rng = np.random.default_rng(5)
    points = rng.uniform((-6, -4, 0.5), (6, 4, 9), (400, 3))
    pixels = [project(points, LENSES[name]), project(apply(inverse(T_left_right), points), LENSES[name])]
    seen = np.isfinite(pixels[0]).all(axis=1) & np.isfinite(pixels[1]).all(axis=1)
    matches = [(pixels[0][seen], pixels[1][seen])]
    cameras = {"left": LENSES[name], "right": LENSES[name]}
    good = RigCalibration(cameras=cameras, edges=(Edge("left", "right", T_left_right),))
    assert stereo.check_matches(matches, good, "left", "right").verdict.status is Status.OK
    pitched = T_left_right @ small_motion((np.deg2rad(0.5), 0, 0, 0, 0, 0))
    wrong = RigCalibration(cameras=cameras, edges=(Edge("left", "right", pitched),))
    found = stereo.check_matches(matches, wrong, "left", "right")
    assert found.verdict.status is Status.FAILED
    assert found.estimate[0] == pytest.approx(-0.5, abs=0.05)
