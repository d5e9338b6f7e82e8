"""The stereo check finds the motion that was injected, in size and sign, and says when it cannot see."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from sensorium.calibration import geometry
from sensorium.calibration.checks import ConsecutiveJudge
from sensorium.calibration.edges import Edge, Reference
from sensorium.calibration.rig_document import Intrinsics, RigCalibration
from sensorium.calibration.stereo import (
    DEGREES,
    Matches,
    StereoTolerance,
    check_matches,
    check_stereo,
    match_pair,
    stereo_reference,
)
from sensorium.errors import CalibrationError
from sensorium.verdict import Status

CAMERA = Intrinsics("radtan", 640, 480, 500.0, 500.0, 319.5, 239.5, (-0.05, 0.01, 0.0, 0.0))
T_LEFT_RIGHT = geometry.small_motion((0.002, -0.003, 0.001, 0.2, 0.001, -0.002))
NOISE_PX = 0.2


def rig(T_left_right: geometry.Array = T_LEFT_RIGHT) -> RigCalibration:
    return RigCalibration(
        cameras={"left": CAMERA, "right": CAMERA}, edges=(Edge("left", "right", T_left_right),)
    )


def matches(
    T_left_right: geometry.Array,
    seed: int,
    count: int = 400,
    outliers: int = 60,
    left: Intrinsics = CAMERA,
    right: Intrinsics = CAMERA,
) -> Matches:
    """Pixels of random points of a room (1 to 6 m) with noise, and some wrong matches."""
    rng = np.random.default_rng(seed)
    depth = rng.uniform(1.0, 6.0, count)
    x, y = rng.uniform(-0.55, 0.55, count), rng.uniform(-0.42, 0.42, count)
    points = np.stack([x * depth, y * depth, depth], axis=1)
    pixels = (
        geometry.project(points, left),
        geometry.project(geometry.apply(geometry.inverse(T_left_right), points), right),
    )
    seen_left, seen_right = (part + rng.normal(0, NOISE_PX, part.shape) for part in pixels)
    seen_right[:outliers] = rng.uniform((0, 0), (640, 480), (outliers, 2))
    return seen_left, seen_right


def turned(pitch_deg: float = 0.0, yaw_deg: float = 0.0, roll_deg: float = 0.0) -> geometry.Array:
    """Where the right camera is after it was turned about its own axes."""
    angles = np.deg2rad((pitch_deg, yaw_deg, roll_deg))
    return T_LEFT_RIGHT @ geometry.small_motion((*angles, 0.0, 0.0, 0.0))


@pytest.mark.parametrize(
    "injected", [(0.3, 0.0, 0.0), (0.0, -0.5, 0.0), (0.0, 0.0, 0.2), (-1.0, 0.8, -0.6), (0.0, 0.0, 0.0)]
)
def test_injected_turn_is_measured_in_size_and_sign(injected: tuple[float, float, float]) -> None:
    windows = [matches(turned(*injected), seed) for seed in range(3)]
    found = check_matches(windows, rig(), "left", "right")
    error = np.abs(found.estimate - (*injected, 0.0, 0.0, 0.0))
    # The stated sigma is inflated, so the truth lies within three of it.
    assert (error < 3 * found.sigma).all(), (error, found.sigma)
    assert found.residual_px < 1.5 * NOISE_PX


def test_moved_camera_is_measured_as_a_turned_baseline() -> None:
    T = T_LEFT_RIGHT.copy()
    T[2, 3] += 0.2 * np.tan(np.deg2rad(4.0))  # forward
    found = check_matches([matches(T, seed) for seed in range(3)], rig(), "left", "right")
    depth = DEGREES.index("baseline_depth")
    assert abs(found.estimate[depth] - 4.0) < 3 * found.sigma[depth]
    T = T_LEFT_RIGHT.copy()
    T[1, 3] += 0.2 * np.tan(np.deg2rad(4.0))  # downwards
    found = check_matches([matches(T, seed) for seed in range(3)], rig(), "left", "right")
    vertical = DEGREES.index("baseline_vertical")
    assert abs(found.estimate[vertical] - 4.0) < 3 * found.sigma[vertical]


def test_what_all_pairs_share_is_not_averaged_away() -> None:
    right = replace(
        CAMERA, distortion=(-0.05 + 0.0007, 0.01, 0.00003, -0.00003)
    )  # up to 0.06 px in the corners
    pairs = [matches(T_LEFT_RIGHT, seed, right=right) for seed in range(40)]
    one, many = (check_matches(part, rig(), "left", "right") for part in (pairs[:1], pairs))
    assert (np.abs(many.estimate) < 2 * many.sigma).all(), (many.estimate, many.sigma)
    # Noise alone would fall to a sixth.
    yaw = DEGREES.index("yaw")
    assert many.sigma[yaw] > 0.35 * one.sigma[yaw]


@pytest.mark.parametrize("percent", [1.0, -1.0, 0.0])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_focal_length_that_changed_is_measured_on_either_side(side: str, percent: float) -> None:
    zoomed = replace(CAMERA, fx=CAMERA.fx * (1 + percent / 100), fy=CAMERA.fy * (1 + percent / 100))
    left, right = (zoomed, CAMERA) if side == "left" else (CAMERA, zoomed)
    windows = [matches(T_LEFT_RIGHT, seed, left=left, right=right) for seed in range(3)]
    found = check_matches(windows, rig(), "left", "right")
    focal = DEGREES.index("focal")
    injected = percent if side == "right" else -percent
    assert abs(found.estimate[focal] - injected) < 3 * found.sigma[focal]
    assert found.verdict.status is (Status.FAILED if percent else Status.OK)
    assert found.verdict.reasons[0].startswith("focal") == bool(percent)


def test_a_reference_of_another_number_of_degrees_is_refused() -> None:
    known = Reference("stereo_epipolar", "left~right", rig().calibration_id, (0.0,) * 5, (0.1,) * 5, 3)
    with pytest.raises(CalibrationError, match="holds 5 numbers"):
        check_matches([matches(T_LEFT_RIGHT, 1)], rig(), "left", "right", known)


def test_good_rig_is_ok_and_names_what_it_cannot_see() -> None:
    verdict = check_matches(
        [matches(T_LEFT_RIGHT, seed) for seed in range(3)], rig(), "left", "right"
    ).verdict
    assert verdict.status is Status.OK
    assert any("baseline length" in reason for reason in verdict.reasons)
    assert {quantity.name for quantity in verdict.quantities} >= set(DEGREES)


def test_failure_needs_two_windows() -> None:
    judge = ConsecutiveJudge()
    verdicts = [
        judge.judge(check_matches([matches(turned(0.5), seed)], rig(), "left", "right").verdict)
        for seed in (1, 2)
    ]
    assert [verdict.status for verdict in verdicts] == [Status.SUSPECT, Status.FAILED]
    calm = judge.judge(check_matches([matches(T_LEFT_RIGHT, 3)], rig(), "left", "right").verdict)
    assert calm.status is not Status.FAILED
    again = judge.judge(check_matches([matches(turned(0.5), 4)], rig(), "left", "right").verdict)
    assert again.status is Status.SUSPECT


def test_yaw_alone_is_never_called_failed_without_a_reference() -> None:
    windows = [matches(turned(yaw_deg=1.5), seed) for seed in range(5)]
    assert check_matches(windows, rig(), "left", "right").verdict.status is Status.SUSPECT


def test_reference_takes_a_constant_bias_out() -> None:
    biased = turned(yaw_deg=0.55)
    good = [
        check_matches([matches(biased, seed) for seed in range(k, k + 3)], rig(), "left", "right")
        for k in (0, 3)
    ]
    known = rig().with_reference(stereo_reference(good, rig(), "left", "right"))
    calm = check_matches([matches(biased, seed) for seed in range(10, 15)], known, "left", "right")
    assert calm.verdict.status is Status.OK
    drifted = turned(yaw_deg=0.55 - 1.0)
    moved = check_matches([matches(drifted, seed) for seed in range(20, 25)], known, "left", "right")
    assert moved.verdict.status is Status.FAILED
    assert "yaw" in moved.verdict.reasons[0]


def test_too_few_matches_are_insufficient() -> None:
    found = check_matches([matches(T_LEFT_RIGHT, 1, count=50, outliers=5)], rig(), "left", "right")
    assert found.verdict.status is Status.INSUFFICIENT
    assert check_matches([], rig(), "left", "right").verdict.status is Status.INSUFFICIENT


def test_random_matches_are_never_ok() -> None:
    for seed in range(5):
        found = check_matches([matches(T_LEFT_RIGHT, seed, count=400, outliers=400)], rig(), "left", "right")
        assert found.verdict.status is not Status.OK


def test_blank_and_dark_images_are_insufficient() -> None:
    for level in (0, 128, 255):
        blank = np.full((480, 640), level, np.uint8)
        verdict = check_stereo([blank], [blank], rig(), "left", "right").verdict
        assert verdict.status is Status.INSUFFICIENT
        assert "too little texture or light" in verdict.reasons[0]


def test_image_of_another_size_is_refused() -> None:
    image = np.zeros((240, 320), np.uint8)
    with pytest.raises(CalibrationError, match="left: images are 320x240, its calibration is for 640x480"):
        check_stereo([image], [image], rig(), "left", "right")


def _grey(path: Path) -> NDArray[np.uint8]:
    return np.asarray(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE), np.uint8)


def euroc(folder: Path) -> tuple[list[NDArray[np.uint8]], list[NDArray[np.uint8]], RigCalibration]:
    """Stereo pairs and the published calibration of the EuRoC fragment."""
    cameras, edges, names = {}, [], []
    for camera in ("cam0", "cam1"):
        store = folder / "mav0" / camera
        # The file says %YAML:1.0; these numbers are those of its sensor.yaml, read line by line.
        fields = dict(
            line.split(":", 1) for line in (store / "sensor.yaml").read_text().splitlines() if ": [" in line
        )
        numbers = {
            name: [float(part) for part in text.split("#")[0].strip(" []").split(",")]
            for name, text in fields.items()
            if name.strip() in ("resolution", "intrinsics", "distortion_coefficients")
        }
        (width, height), (fx, fy, cx, cy) = numbers["resolution"], numbers["intrinsics"]
        bend = tuple(numbers["distortion_coefficients"])
        cameras[camera] = Intrinsics("radtan", int(width), int(height), fx, fy, cx, cy, bend)
        text = (store / "sensor.yaml").read_text()
        data = text.split("data: [")[1].split("]")[0].replace("\n", " ")
        T = np.array([float(part) for part in data.split(",")]).reshape(4, 4)
        edges.append(Edge("imu", camera, T))
        names.append({path.name for path in (store / "data").glob("*.png")})
    both = sorted(names[0] & names[1])
    left, right = (
        [_grey(folder / "mav0" / camera / "data" / name) for name in both] for camera in ("cam0", "cam1")
    )
    return left, right, RigCalibration(cameras=cameras, edges=tuple(edges))


def test_real_stereo_pairs_are_ok_and_a_turned_camera_is_not(shared_data: Path) -> None:
    left, right, calibration = euroc(shared_data / "euroc_micro")
    assert len(left) >= 12
    found = [match_pair(*pair) for pair in zip(left[::3], right[::3], strict=True)]
    good = check_matches(found[:3], calibration, "cam0", "cam1")
    assert good.verdict.status is Status.OK, good.verdict
    T = calibration.transform("cam0", "cam1") @ geometry.small_motion((np.deg2rad(0.5), 0, 0, 0, 0, 0))
    wrong = RigCalibration(cameras=calibration.cameras, edges=(Edge("cam0", "cam1", T),))
    tolerance = StereoTolerance.for_baseline(0.11)
    moved = check_matches(found[:3], wrong, "cam0", "cam1", tolerance=tolerance)
    assert moved.verdict.status is Status.FAILED, moved.verdict
    # The calibration was turned, so the camera appears turned the other way.
    assert moved.estimate[0] == pytest.approx(good.estimate[0] - 0.5, abs=0.05)
