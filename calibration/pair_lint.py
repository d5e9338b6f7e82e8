"""Whether a pair is described the right way round: its transform against what both sensors saw."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations, product

import cv2
import numpy as np
from numpy.typing import NDArray

from sensorium.calibration.geometry import (
    R_BODY_OPTICAL,
    Array,
    Intrinsics,
    apply,
    in_image,
    inverse,
    project,
    rays,
    rotation_angle,
    rotation_exp,
    transform,
)
from sensorium.calibration.keyframes import SHRINK, Keyframe
from sensorium.calibration.lint import MIN_DISTANCE_M, lint_verdict
from sensorium.calibration.rig_document import RigCalibration
from sensorium.calibration.sweep import (
    Sweep,
    along_ring_edges,
    between_ring_edges,
    reflectance_edges,
)
from sensorium.verdict import Quantity, Status, Verdict

# By how much another reading must beat the given one, in standard deviations of chance (spec 5), and how well
# it must fit by itself. Right readings reach 19 and more with three KITTI frames, wrong ones at most 10.
WINNING_SIGMA = 5.0
CONVINCING_SIGMA = 12.0
MIN_VIEWS = 3
# Against an IMU: no mount slips so far unnoticed, and a right reading fits within a few deviations of 10 s of motion.
FAR_OFF_DEG = 20.0
FITTING_DEG = 3.0


def lint_imu_rotation(verdict: Verdict, R_sensor_imu: Array) -> list[Verdict]:
    """Return another reading of a sensor's rotation against an IMU that what both felt fits; nothing if none does.

    Args:
        verdict: Of :func:`sensorium.calibration.rotation.check_imu_rotation`; its first degrees are the rotation by
            which the calibration is off, in the sensor's axes.
        R_sensor_imu: As calibrated.
    """
    off_deg = np.array([quantity.value for quantity in verdict.quantities[:3]])
    if verdict.status is not Status.FAILED or float(np.linalg.norm(off_deg)) < FAR_OFF_DEG:
        return []
    R_felt = rotation_exp(np.deg2rad(off_deg)) @ R_sensor_imu
    readings = [("inverted", "the transform maps the other way: use its inverse", R_sensor_imu.T)]
    for turn in right_angle_rotations()[1:]:
        rows = "; ".join(" ".join(f"{value:+.0f}" for value in row) for row in turn)
        what = f"two axes were swapped or turned: multiply its rotation by [{rows}]"
        readings += [("axis_swap", what, turn @ R_sensor_imu), ("axis_swap", what, R_sensor_imu @ turn)]
    gaps = [float(np.rad2deg(rotation_angle(R_felt @ R.T))) for _, _, R in readings]
    best = int(np.argmin(gaps))
    # The inverse is the commonest mistake, and for many mounts also a right-angle turn.
    best = 0 if gaps[0] < FITTING_DEG else best
    if gaps[best] > FITTING_DEG:
        return []
    check, what, _ = readings[best]
    return lint_verdict(
        check,
        verdict.subject,
        Status.FAILED,
        f"both turned otherwise than calibrated by {np.linalg.norm(off_deg):.0f} deg, and alike to "
        f"{gaps[best]:.1f} deg if {what}",
        Quantity("rotation", float(np.linalg.norm(off_deg)), "deg", FAR_OFF_DEG),
        Quantity("rotation_if_corrected", gaps[best], "deg", FITTING_DEG),
    )


def right_angle_rotations() -> list[Array]:
    """Return the 24 rotations that map axes onto axes; the identity is the first."""
    found = []
    for order in permutations(range(3)):
        for signs in product((1.0, -1.0), repeat=3):
            matrix = np.zeros((3, 3))
            matrix[range(3), order] = signs
            if np.linalg.det(matrix) > 0:
                found.append(matrix)
    return found


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """One image with all edges of the sweep taken with it, in every direction.

    Attributes:
        keyframe: As the check uses it; only its edge images and camera matter here.
        edges: For each cue, points (N, 3) in the LiDAR's frame and weights (N,).
    """

    keyframe: Keyframe
    edges: tuple[tuple[Array, Array], ...]

    @classmethod
    def of(
        cls,
        frame: Keyframe,
        points: NDArray[np.floating],
        ring: NDArray[np.integer] | None = None,
    ) -> "View":
        """Build from a keyframe and its (N, 4) points.

        Raises:
            CalibrationError: If the points are no rows of four numbers.
        """
        sweep = Sweep.from_points(points, ring)
        found = (along_ring_edges(sweep), between_ring_edges(sweep), reflectance_edges(sweep))
        return cls(frame, tuple((edges.xyz, edges.weight) for edges in found))


def lint_camera_lidar(views: Sequence[View], T_camera_lidar: Array, subject: str) -> list[Verdict]:
    """Return a finding if another reading of the same numbers fits the images far better than the given one.

    Tried are the inverse, every right-angle turn of the camera's and of the LiDAR's axes, and millimetres. With
    fewer than three views nothing is found: one scene alone has chance fits.
    """
    if len(views) < MIN_VIEWS:
        return []
    scores = {name: _score(views, T) for name, T in _readings(T_camera_lidar).items()}
    given = scores.pop("as given")
    best = max(scores, key=lambda name: scores[name])
    # The given reading is worth no more than chance when edges and image do not meet at all.
    ahead = scores[best] - max(given, 0.0)
    if ahead <= WINNING_SIGMA or scores[best] <= CONVINCING_SIGMA:
        return []
    check = "inverted" if "inverse" in best else "length_unit" if "translation" in best else "axis_swap"
    return lint_verdict(
        check,
        subject,
        Status.FAILED,
        f"the images fit far better ({ahead:.0f} sigma) with {best}: correct the calibration",
        Quantity("given", given, "sigma"),
        Quantity("better", scores[best], "sigma"),
    )


def _readings(T: Array) -> dict[str, Array]:
    found = {"as given": T, "the inverse of the transform": inverse(T)}
    for turn in right_angle_rotations()[1:]:
        S = transform(turn, np.zeros(3))
        found[f"the camera's axes {spelled(turn)}"] = S @ T
        found[f"the LiDAR's axes {spelled(turn)}"] = T @ S
    distance_m = float(np.linalg.norm(T[:3, 3]))
    # Dividing a plausible distance by 1000 only means "no distance", which may fit by chance.
    if distance_m > 5.0:
        found["the translation read as millimetres"] = transform(T[:3, :3], T[:3, 3] / 1000)
    elif 0 < distance_m < 0.005:
        found["the translation times 1000"] = transform(T[:3, :3], T[:3, 3] * 1000)
    optical = transform(R_BODY_OPTICAL.T, np.zeros(3))
    found["the inverse of the transform and optical camera axes"] = optical @ inverse(T)
    return found


def spelled(turn: Array) -> str:
    """Return what x, y, z become, such as ``-y -z x``."""
    words = []
    for row in turn:
        k = int(np.argmax(np.abs(row)))
        words.append(f"{'-' if row[k] < 0 else ''}{'xyz'[k]}")
    return "read as " + " ".join(words)


def _score(views: Sequence[View], T_camera_lidar: Array) -> float:
    """Return how well edges lie on edges, in standard deviations of chance, over all views and cues."""
    total, terms = 0.0, 0
    level = 1
    for view in views:
        for cue, (xyz, weight) in enumerate(view.edges):
            pixels = project(apply(T_camera_lidar, xyz), view.keyframe.camera)
            seen = in_image(pixels, view.keyframe.camera, 4.0)
            if np.count_nonzero(seen) < 30:
                continue
            values = _sampled(view.keyframe.images[level][cue], pixels[seen], SHRINK[level])
            # Neighbouring edges see the same gradient: about four of them make one independent look.
            total += float(weight[seen] @ values) / float(np.linalg.norm(weight[seen])) / 2.0
            terms += 1
    return total / np.sqrt(terms) if terms else 0.0


def _sampled(image: NDArray[np.float32], pixels: Array, shrink: int) -> Array:
    columns = 256  # cv2.remap takes at most 32767 rows or columns
    padded = np.full((-(-len(pixels) // columns) * columns, 2), -1e4, np.float32)
    padded[: len(pixels)] = (pixels + 0.5) / shrink - 0.5
    u, v = (padded[:, axis].reshape(-1, columns) for axis in (0, 1))
    found = cv2.remap(image, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    return np.asarray(found.reshape(-1)[: len(pixels)], np.float64)


# Points nearer to straight ahead than this in parallax say nothing about the sign of their depth.
MIN_PARALLAX_RAD = 0.004
MIN_LOOKS = 40
FITTING_PX = 2.0


def lint_stereo(
    matches: Sequence[tuple[Array, Array]], calibration: RigCalibration, left: str, right: str
) -> list[Verdict]:
    """Return a finding if matched points fit only when the images are swapped or the transform is inverted.

    The epipolar check alone is blind to this: a baseline and its opposite have the same epipolar lines, but
    the points then lie behind the cameras.

    Args:
        matches: Matched pixels (N, 2) of left and right image, one entry per pair.

    Raises:
        CalibrationError: If the calibration does not join the two frames, or knows no lens of a camera.
    """
    subject = f"{left}~{right}"
    T = calibration.transform(left, right)
    swapped = [(pixels_right, pixels_left) for pixels_left, pixels_right in matches]
    cameras = (calibration.camera(left), calibration.camera(right))
    given = _stereo_fit(matches, cameras, T)
    if given is None or (given.distance_px < FITTING_PX and given.behind < 0.5):
        return []
    for reading, (tried, T_tried) in {
        f"the images of {left} and {right} swapped": (swapped, T),
        "the inverse of the transform between them": (matches, inverse(T)),
    }.items():
        found = _stereo_fit(tried, cameras, T_tried)
        if found is not None and found.distance_px < FITTING_PX and found.behind < 0.1:
            return lint_verdict(
                "left_right" if tried is swapped else "inverted",
                subject,
                Status.FAILED,
                f"{given.behind:.0%} of {given.looks} matched points would lie behind the cameras and they miss "
                f"their epipolar lines by {given.distance_px:.1f} px; with {reading} it is {found.behind:.0%} "
                f"and {found.distance_px:.1f} px: correct the calibration or the stream names",
                Quantity("behind", given.behind, "1", 0.5),
                Quantity("epipolar_distance", given.distance_px, "px", FITTING_PX),
            )
    return []


@dataclass(frozen=True, slots=True)
class _StereoFit:
    """Median distance from epipolar lines, share of points behind, and how many could tell."""

    distance_px: float
    behind: float
    looks: int


def _stereo_fit(
    matches: Sequence[tuple[Array, Array]], cameras: tuple[Intrinsics, Intrinsics], T_left_right: Array
) -> _StereoFit | None:
    t = T_left_right[:3, 3]
    if not matches or float(np.linalg.norm(t)) < MIN_DISTANCE_M:
        return None
    a, b = (np.concatenate([rays(pair[side], cameras[side]) for pair in matches]) for side in (0, 1))
    sees = np.isfinite(a).all(axis=1) & np.isfinite(b).all(axis=1)
    a, b = a[sees], b[sees] @ T_left_right[:3, :3].T
    # Epipolar lines in the left image: normal of the plane through the baseline and the right ray.
    lines = np.cross(t, b)
    distance = np.abs(np.einsum("ij,ij->i", a, lines)) / np.maximum(np.hypot(lines[:, 0], lines[:, 1]), 1e-12)
    a = a / np.linalg.norm(a, axis=1, keepdims=True)
    b = b / np.linalg.norm(b, axis=1, keepdims=True)
    tells = np.linalg.norm(np.cross(a, b), axis=1) > MIN_PARALLAX_RAD
    if np.count_nonzero(tells) < MIN_LOOKS:
        return None
    # Least squares of depth_a * a - depth_b * b = t.
    cosine = np.einsum("ij,ij->i", a[tells], b[tells])
    depth = (a[tells] @ t - cosine * (b[tells] @ t)) / (1 - cosine * cosine)
    median_px = float(np.median(distance)) * cameras[0].f_px
    return _StereoFit(median_px, float(np.mean(depth < 0)), int(np.count_nonzero(tells)))
