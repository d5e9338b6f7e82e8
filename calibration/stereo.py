"""Whether two cameras with overlapping views still stand as calibrated, from ordinary images.

Features are matched between the two images; each match must lie on the other's epipolar line. From how they
miss it, the motion of the right camera in five degrees of freedom is estimated: pitch (a constant vertical
offset), roll (grows with x), yaw (grows with x times y: weak), and the direction of the baseline (grows with
disparity); and how much longer the right focal length is against the left one (grows with y). The length of
the baseline, and an error that both focal lengths share, cannot be seen without a target.

Source: spec calibration 1.10; Hansen et al., "Online continuous stereo extrinsic parameter estimation", 2012.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from sensorium.calibration.checks import Degree, judge
from sensorium.calibration.edges import Reference
from sensorium.calibration.geometry import Array, Intrinsics, rays, rotation_exp, skew
from sensorium.calibration.rig_document import RigCalibration
from sensorium.errors import CalibrationError
from sensorium.verdict import Quantity, Verdict

CHECK = "stereo_epipolar"
DEGREES = ("pitch", "yaw", "roll", "baseline_vertical", "baseline_depth", "focal")
UNITS = ("deg", "deg", "deg", "deg", "deg", "%")

MAX_FEATURES = 2500
RATIO = 0.75
# Fewer inliers than this over the whole window come from blank walls and darkness; the fit then follows
# repeated texture instead of the mount.
MIN_MATCHES = 80
# Matches beyond this from their epipolar line are wrong matches, not drift (2 degrees is the prior, and it
# moves a point by 0.035 f).
GATE_RAD = 0.035
PRIOR = np.array([np.deg2rad(2.0)] * 5 + [0.02])
# What lens models and rectification leave in each twelfth of the image (rms). It is the same in every pair, so more
# pairs do not average it away; without it deviations were up to four times too small. Fixed on KITTI's sequence_1
# alone: the smallest hundredth with which readings against a reference scatter by no more than is stated.
REGION_BIAS_PX = 0.04
MAX_MEDIAN_RESIDUAL_PX = 1.5


@dataclass(frozen=True, slots=True)
class StereoTolerance:
    """Accepted motion of the right camera, and the constant bias an absolute reading may carry.

    Rectification residues alone make an apparent yaw of 0.5 deg (KITTI odometry, spec 1.10), so without a
    reference yaw and baseline have an allowance and are never called failed. What is to be found (0.1 deg of pitch,
    0.2 deg of yaw) must lie beyond what is accepted: an error of just the tolerance is found half of the time.
    """

    pitch_deg: float = 0.08
    yaw_deg: float = 0.16
    roll_deg: float = 0.05
    baseline_deg: float = 2.0
    focal_percent: float = 0.5
    yaw_bias_deg: float = 0.6
    baseline_bias_deg: float = 2.0

    @classmethod
    def for_baseline(cls, baseline_m: float) -> "StereoTolerance":
        """Return the default for a rig: short baselines see pitch through parallax, half as sharply."""
        return cls(pitch_deg=0.08 if baseline_m >= 0.15 else 0.16)


@dataclass(frozen=True, slots=True, eq=False)
class StereoCheck:
    """What one window of stereo pairs says.

    Attributes:
        estimate: Motion of the right camera about its own axes (pitch, yaw, roll) and of its centre as
            directions of the baseline (vertical, depth), deg, and how much longer its focal length is against
            the left one's than the calibration says, %. (6,)
        sigma: Standard deviations, with what errors of the lens models add. (6,)
        epipolar_px: Median distance of the matches from their epipolar lines under the calibration.
        residual_px: The same after the estimated motion is applied.
    """

    verdict: Verdict
    estimate: Array
    sigma: Array
    matches: int
    pairs: int
    epipolar_px: float
    residual_px: float


def check_stereo(
    left_images: Sequence[NDArray[np.uint8]],
    right_images: Sequence[NDArray[np.uint8]],
    calibration: RigCalibration,
    left_frame: str,
    right_frame: str,
    reference: Reference | None = None,
    tolerance: StereoTolerance | None = None,
) -> StereoCheck:
    """Compare how two cameras see the same scene with what the calibration says.

    Args:
        left_images: Grey or BGR images, each taken at the same time as its right twin.
        reference: Reading of a good time (:func:`stereo_reference`); by default the one in the calibration.
        tolerance: By default :meth:`StereoTolerance.for_baseline`.

    Raises:
        CalibrationError: If the frames are unknown or image sizes do not fit the intrinsics.
    """
    if len(left_images) != len(right_images):
        raise CalibrationError(
            f"stereo check of {left_frame}~{right_frame}: "
            f"{len(left_images)} left images, {len(right_images)} right ones"
        )
    for images, frame in ((left_images, left_frame), (right_images, right_frame)):
        for image in images:
            _require_size(image, calibration.camera(frame), frame)
    matches = [match_pair(left, right) for left, right in zip(left_images, right_images, strict=True)]
    return check_matches(matches, calibration, left_frame, right_frame, reference, tolerance)


def _require_size(image: NDArray[np.uint8], camera: Intrinsics, frame: str) -> None:
    height, width = image.shape[:2]
    if (width, height) != (camera.width, camera.height):
        raise CalibrationError(
            f"camera {frame}: images are {width}x{height}, "
            f"its calibration is for {camera.width}x{camera.height}"
        )


Matches = tuple[Array, Array]


def match_pair(
    left: NDArray[np.uint8], right: NDArray[np.uint8], max_features: int = MAX_FEATURES
) -> Matches:
    """Return matched pixels (N, 2) of the left and right image.

    SIFT with ratio test, mutual. ORB corners sit on whole pixels and would report no drift at all.
    """
    sift = cv2.SIFT.create(nfeatures=max_features)
    keypoints_left, left_features = sift.detectAndCompute(_grey(left), None)
    keypoints_right, right_features = sift.detectAndCompute(_grey(right), None)
    if left_features is None or right_features is None or min(len(left_features), len(right_features)) < 2:
        return np.empty((0, 2)), np.empty((0, 2))
    similarity = _root(left_features) @ _root(right_features).T
    forward, is_clear = _best(similarity)
    backward, _ = _best(similarity.T)
    index = np.flatnonzero(is_clear & (backward[forward] == np.arange(len(forward))))
    points_left = np.array([keypoints_left[i].pt for i in index], np.float64).reshape(-1, 2)
    points_right = np.array([keypoints_right[forward[i]].pt for i in index], np.float64).reshape(-1, 2)
    return points_left, points_right


def _grey(image: NDArray[np.uint8]) -> Any:
    return image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)


def _root(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return unit descriptors, so that distances follow from one matrix product."""
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return np.asarray(features / np.maximum(lengths, 1e-6), np.float32)


def _best(similarity: NDArray[np.float32]) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Return the best column of each row and whether it is clearly nearer than the second."""
    two = np.argpartition(-similarity, 1, axis=1)[:, :2]
    values = np.take_along_axis(similarity, two, axis=1)
    order = np.argmax(values, axis=1)
    best = np.take_along_axis(two, order[:, None], axis=1)[:, 0]
    near = np.sqrt(np.maximum(2 - 2 * values.max(axis=1), 0))
    far = np.sqrt(np.maximum(2 - 2 * values.min(axis=1), 0))
    return best, near < RATIO * far


def check_matches(
    matches: Sequence[Matches],
    calibration: RigCalibration,
    left_frame: str,
    right_frame: str,
    reference: Reference | None = None,
    tolerance: StereoTolerance | None = None,
) -> StereoCheck:
    """As :func:`check_stereo`, from matched pixels, one entry per pair of images.

    Raises:
        CalibrationError: If the frames are unknown, the two cameras stand at one place, or the reference is of
            another form.
    """
    subject = f"{left_frame}~{right_frame}"
    T_left_right = calibration.transform(left_frame, right_frame)
    tolerance = tolerance or StereoTolerance.for_baseline(float(np.linalg.norm(T_left_right[:3, 3])))
    reference = reference or calibration.reference(CHECK, subject)
    left, right = calibration.camera(left_frame), calibration.camera(right_frame)
    rays_left = np.concatenate([np.empty((0, 3)), *(rays(pixels, left) for pixels, _ in matches)])
    rays_right = np.concatenate([np.empty((0, 3)), *(rays(pixels, right) for _, pixels in matches)])
    window = np.repeat(np.arange(len(matches)), [len(pixels) for pixels, _ in matches])
    fit = _fit(rays_left, rays_right, window, T_left_right, (left.f_px + right.f_px) / 2)
    numbers = (
        Quantity("matches", float(fit.matches), "1", threshold=float(MIN_MATCHES)),
        Quantity("epipolar_distance", fit.epipolar_px, "px"),
        Quantity("residual", fit.residual_px, "px", threshold=MAX_MEDIAN_RESIDUAL_PX),
    )
    gates = _gates(fit, len(matches))
    verdict = judge(
        CHECK,
        subject,
        _degrees(fit, reference, tolerance),
        gates,
        numbers,
        ("baseline length and a focal error of both cameras alike cannot be seen without a target",),
    )
    return StereoCheck(
        verdict,
        fit.estimate,
        fit.sigma,
        fit.matches,
        len(matches),
        fit.epipolar_px,
        fit.residual_px,
    )


def stereo_reference(
    windows: Sequence[StereoCheck], calibration: RigCalibration, left_frame: str, right_frame: str
) -> Reference:
    """Return the fingerprint of a time when the rig is known to be good: the mean of several windows.

    Raises:
        CalibrationError: If no window could be judged.
    """
    usable = [window for window in windows if window.matches >= MIN_MATCHES]
    if not usable:
        raise CalibrationError(f"no window of {left_frame}~{right_frame} had enough matches for a reference")
    estimates = np.array([window.estimate for window in usable])
    weights = np.array([1 / np.square(window.sigma) for window in usable])
    mean = (weights * estimates).sum(axis=0) / weights.sum(axis=0)
    formal = 1 / np.sqrt(weights.sum(axis=0))
    scatter = estimates.std(axis=0) / np.sqrt(len(usable))
    return Reference(
        CHECK,
        f"{left_frame}~{right_frame}",
        calibration.calibration_id,
        tuple(float(value) for value in mean),
        tuple(float(value) for value in np.maximum(formal, scatter)),
        sum(window.pairs for window in usable),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Fit:
    estimate: Array
    sigma: Array
    matches: int
    epipolar_px: float
    residual_px: float


def _gates(fit: _Fit, pairs: int) -> list[str]:
    if pairs == 0:
        return ["no stereo pair"]
    if fit.matches < MIN_MATCHES:
        return [f"{fit.matches} matches, at least {MIN_MATCHES} are needed: too little texture or light"]
    if fit.residual_px > MAX_MEDIAN_RESIDUAL_PX:
        return [
            f"matches miss every epipolar geometry by {fit.residual_px:.1f} px: "
            "cameras not synchronised, or intrinsics of another camera"
        ]
    return []


def _degrees(fit: _Fit, reference: Reference | None, tolerance: StereoTolerance) -> list[Degree]:
    accepted = [
        tolerance.pitch_deg,
        tolerance.yaw_deg,
        tolerance.roll_deg,
        tolerance.baseline_deg,
        tolerance.baseline_deg,
        tolerance.focal_percent,
    ]
    mean, sigma = np.zeros(len(DEGREES)), fit.sigma
    if reference is not None:
        if len(reference.mean) != len(DEGREES):
            raise CalibrationError(
                f"the reference of {reference.pair} holds {len(reference.mean)} numbers, {CHECK} has "
                f"{len(DEGREES)} degrees: take the reference again"
            )
        mean, sigma = np.array(reference.mean), np.hypot(sigma, reference.sigma)
    else:
        accepted[1] += tolerance.yaw_bias_deg
        accepted[3] += tolerance.baseline_bias_deg
        accepted[4] += tolerance.baseline_bias_deg
    return [
        Degree(
            name,
            unit,
            float(fit.estimate[k] - mean[k]),
            float(sigma[k]),
            accepted[k],
            may_fail=reference is not None or name in ("pitch", "roll", "focal"),
        )
        for k, (name, unit) in enumerate(zip(DEGREES, UNITS, strict=True))
    ]


def _fit(
    rays_left: Array, rays_right: Array, window: NDArray[np.intp], T_left_right: Array, f_px: float
) -> _Fit:
    """Estimate the six degrees by iteratively reweighted least squares on Sampson distances."""
    geometry = _Epipolar(T_left_right)
    start = geometry.distances(np.zeros(6), rays_left, rays_right) * f_px
    near = np.abs(start) < GATE_RAD * f_px  # NaN rays fail this too
    rays_left, rays_right, window = rays_left[near], rays_right[near], window[near]
    unknown = np.full(6, np.inf)
    if len(rays_left) < MIN_MATCHES // 2:
        return _Fit(np.zeros(6), unknown, len(rays_left), float("nan"), float("nan"))
    prior = np.diag((PRIOR * f_px) ** -2.0)
    theta = np.zeros(6)
    for _ in range(10):
        residual = geometry.distances(theta, rays_left, rays_right) * f_px
        scale = max(1.4826 * float(np.median(np.abs(residual))), 0.1)
        weight = (1 + np.square(residual / (2.5 * scale))) ** -2  # Geman-McClure
        jacobian = geometry.jacobian(theta, rays_left, rays_right)  # px per (rad * f) = plain rad per rad
        information = (jacobian * weight[:, None]).T @ jacobian / scale**2 + prior
        gradient = jacobian.T @ (weight * residual) / scale**2 + prior @ theta * f_px
        theta = theta - np.linalg.solve(information, gradient) / f_px
    residual = geometry.distances(theta, rays_left, rays_right) * f_px
    slopes = jacobian * (weight / scale**2)[:, None]
    variance = _variance(information, slopes, residual, window, rays_left) / f_px**2
    inliers = np.abs(residual) < 3 * 2.5 * scale
    to_unit = np.array([180 / np.pi] * 5 + [100.0])
    return _Fit(
        theta * to_unit,
        np.sqrt(variance) * to_unit,
        int(inliers.sum()),
        float(np.median(np.abs(start[near][inliers]))),
        float(np.median(np.abs(residual[inliers]))),
    )


def _variance(
    information: Array, slopes: Array, residual: Array, window: NDArray[np.intp], rays_left: Array
) -> Array:
    """Return of each degree (6,) the larger of the formal variance and the sandwich, and what all pairs share.

    Neighbouring matches share their errors (the same wall, the same blur), so scores are summed within 4x3
    regions of each pair before their spread is taken; and every region of the image may be off by itself.
    """
    inverse = np.linalg.inv(information)
    columns = np.digitize(rays_left[:, 0], np.quantile(rays_left[:, 0], (0.25, 0.5, 0.75)))
    rows = np.digitize(rays_left[:, 1], np.quantile(rays_left[:, 1], (1 / 3, 2 / 3)))
    region = columns * 3 + rows

    def spread(per_match: Array, group: NDArray[np.intp]) -> Array:
        sums = np.zeros((int(group.max()) + 1, per_match.shape[1]))
        np.add.at(sums, group, per_match)
        return np.asarray(np.square(sums @ inverse).sum(axis=0))

    scatter = spread(slopes * residual[:, None], window * 12 + region)
    shared = spread(slopes * REGION_BIAS_PX, region)
    return np.asarray(np.maximum(np.diag(inverse), scatter) + shared, np.float64)


class _Epipolar:
    """Signed Sampson distances (rad, near the image centre) as a function of the six degrees."""

    def __init__(self, T_left_right: Array) -> None:
        centre = T_left_right[:3, 3]
        length = float(np.linalg.norm(centre))
        if length < 1e-4:
            raise CalibrationError("the two cameras stand at the same place: no epipolar geometry to check")
        self._R_right_left = T_left_right[:3, :3].T
        self._direction = centre / length
        # Depth is the left optical axis, made perpendicular to the baseline; one camera behind the other
        # has no such axis, and takes the image's x axis instead.
        axis = np.array([0.0, 0.0, 1.0]) if abs(self._direction[2]) < 0.9 else np.array([1.0, 0.0, 0.0])
        depth = axis - (axis @ self._direction) * self._direction
        self._depth = depth / np.linalg.norm(depth)
        self._vertical = np.cross(self._depth, self._direction)

    def distances(self, theta: Array, rays_left: Array, rays_right: Array) -> Array:
        """Return (N,) signed distances.

        Theta turns the right camera and moves its centre (rad); its last number stretches the right focal
        length and shortens the left one by half of itself each.
        """
        stretch = np.array([1 - theta[5] / 2, 1 - theta[5] / 2, 1.0])
        rays_left, rays_right = rays_left / stretch, rays_right * stretch
        direction = self._direction + theta[3] * self._vertical + theta[4] * self._depth
        essential = (
            rotation_exp(-theta[:3]) @ self._R_right_left @ skew(direction / np.linalg.norm(direction))
        )
        lines_right = rays_left @ essential.T
        lines_left = rays_right @ essential
        product = np.einsum("ij,ij->i", rays_right, lines_right)
        norm = np.sqrt(np.square(lines_right[:, :2]).sum(axis=1) + np.square(lines_left[:, :2]).sum(axis=1))
        return np.asarray(product / np.maximum(norm, 1e-12), np.float64)

    def jacobian(self, theta: Array, rays_left: Array, rays_right: Array) -> Array:
        """Return (N, 6) derivatives by central differences."""
        step = 1e-5
        columns = []
        for k in range(6):
            shift = np.zeros(6)
            shift[k] = step
            ahead = self.distances(theta + shift, rays_left, rays_right)
            behind = self.distances(theta - shift, rays_left, rays_right)
            columns.append((ahead - behind) / (2 * step))
        return np.stack(columns, axis=1)
