"""Rotations, rigid transforms and camera models.

Frames: cameras x right, y down, z forward; LiDAR, IMU and body x forward, y left, z up. ``T_parent_child``
(4x4) maps child points into the parent. Metres and radians. A small motion is a 6-vector, rotation first
(rad), translation second (m).
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sensorium.calibration import lenses
from sensorium.errors import CalibrationError

Array = NDArray[np.float64]


def skew(vector: ArrayLike) -> Array:
    """Return the 3x3 matrix S with S @ b = vector x b."""
    x, y, z = np.asarray(vector, np.float64)
    return np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]], np.float64)


def rotation_exp(rotation_vector: ArrayLike) -> Array:
    """Return the 3x3 rotation of a rotation vector (axis times angle, rad)."""
    vector = np.asarray(rotation_vector, np.float64)
    angle = float(np.linalg.norm(vector))
    cross = skew(vector)
    if angle < 1e-8:
        return np.asarray(np.eye(3) + cross + 0.5 * cross @ cross, np.float64)
    sine, versine = np.sin(angle) / angle, (1.0 - np.cos(angle)) / (angle * angle)
    return np.asarray(np.eye(3) + sine * cross + versine * cross @ cross, np.float64)


def rotation_log(rotation: Array) -> Array:
    """Return the rotation vector (rad, length 0..pi) of a 3x3 rotation."""
    x, y, z, w = quaternion_from_rotation(rotation)
    if w < 0.0:
        x, y, z, w = -x, -y, -z, -w
    vector = np.array([x, y, z])
    sine = float(np.linalg.norm(vector))
    if sine < 1e-10:
        return 2.0 * vector
    return np.asarray(vector * (2.0 * np.arctan2(sine, w) / sine), np.float64)


def rotation_from_quaternion(quaternion_xyzw: ArrayLike) -> Array:
    """Return the 3x3 rotation of a quaternion (x, y, z, w), normalised first."""
    quaternion = np.asarray(quaternion_xyzw, np.float64)
    x, y, z, w = quaternion / np.linalg.norm(quaternion)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def quaternion_from_rotation(rotation: Array) -> Array:
    """Return the quaternion (x, y, z, w) of a 3x3 rotation.

    The largest of the four squared components is taken as pivot (Shepperd 1978), so no division is small.
    """
    r = np.asarray(rotation, np.float64)
    trace = r[0, 0] + r[1, 1] + r[2, 2]
    squares = np.array([r[0, 0], r[1, 1], r[2, 2], trace])
    pivot = int(np.argmax(squares))
    quaternion = np.empty(4)
    if pivot == 3:
        quaternion[:] = r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1], 1.0 + trace
    else:
        i, j, k = pivot, (pivot + 1) % 3, (pivot + 2) % 3
        quaternion[i] = 1.0 + r[i, i] - r[j, j] - r[k, k]
        quaternion[j] = r[j, i] + r[i, j]
        quaternion[k] = r[k, i] + r[i, k]
        quaternion[3] = r[k, j] - r[j, k]
    return np.asarray(quaternion / np.linalg.norm(quaternion), np.float64)


def rotation_from_rpy(roll: float, pitch: float, yaw: float) -> Array:
    """Return Rz(yaw) Ry(pitch) Rx(roll): fixed-axis XYZ, the convention of URDF and ROS."""
    return rotation_exp((0.0, 0.0, yaw)) @ rotation_exp((0.0, pitch, 0.0)) @ rotation_exp((roll, 0.0, 0.0))


def rpy_from_rotation(rotation: Array) -> Array:
    """Return (roll, pitch, yaw) of :func:`rotation_from_rpy`; roll is 0 at the gimbal lock."""
    pitch = np.arctan2(-rotation[2, 0], np.hypot(rotation[0, 0], rotation[1, 0]))
    if abs(np.cos(pitch)) < 1e-9:
        return np.array([0.0, pitch, np.arctan2(-rotation[0, 1], rotation[1, 1])])
    return np.array(
        [np.arctan2(rotation[2, 1], rotation[2, 2]), pitch, np.arctan2(rotation[1, 0], rotation[0, 0])]
    )


def nearest_rotation(matrix: Array) -> Array:
    """Return the rotation closest to a 3x3 matrix in the Frobenius norm (by SVD)."""
    u, _, vt = np.linalg.svd(np.asarray(matrix, np.float64))
    return np.asarray(u @ np.diag([1.0, 1.0, np.linalg.det(u @ vt)]) @ vt, np.float64)


def transform(rotation: ArrayLike, translation: ArrayLike) -> Array:
    """Return the 4x4 transform of a 3x3 rotation and a translation (m)."""
    matrix = np.eye(4)
    matrix[:3, :3] = rotation
    matrix[:3, 3] = translation
    return matrix


def inverse(T: Array) -> Array:
    """Return the inverse of a rigid 4x4 transform."""
    rotation = T[:3, :3].T
    return transform(rotation, -rotation @ T[:3, 3])


def apply(T: Array, points: Array) -> Array:
    """Return (N, 3) points mapped by a 4x4 transform."""
    return np.asarray(points @ T[:3, :3].T + T[:3, 3], np.float64)


def small_motion(delta: ArrayLike) -> Array:
    """Return the 4x4 transform of a 6-vector (rotation vector, translation), its parts independent."""
    vector = np.asarray(delta, np.float64)
    return transform(rotation_exp(vector[:3]), vector[3:])


def difference(T_a: Array, T_b: Array) -> Array:
    """Return the 6-vector d with ``T_a = small_motion(d) @ T_b`` up to the split of :func:`small_motion`."""
    relative = T_a @ inverse(T_b)
    return np.concatenate([rotation_log(relative[:3, :3]), relative[:3, 3]])


def rotation_angle(rotation: Array) -> float:
    """Return the angle (rad) of a 3x3 rotation."""
    return float(np.linalg.norm(rotation_log(rotation)))


# Body axes (x forward, y left, z up) of optical axes (x right, y down, z forward).
R_BODY_OPTICAL: Array = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
# A ray this near to 90 degrees off the axis has coordinates at z = 1 that no check can use.
_LEAST_FORWARD = 0.02


@dataclass(frozen=True, slots=True)
class Intrinsics:
    """One camera's projection, pixel origin at the centre of the top-left pixel.

    Attributes:
        model: ``pinhole`` (no distortion), ``radtan`` (k1 k2 p1 p2 [k3], OpenCV's first five), ``rational``
            (k1 k2 p1 p2 k3 k4 k5 k6), or one of :mod:`sensorium.calibration.lenses`: ``equidistant``
            (k1 k2 k3 k4), ``double_sphere`` (xi alpha), ``eucm`` (alpha beta), ``omni`` (xi k1 k2 p1 p2), ``fov`` (w).
        board_rms_px: Reprojection RMS of the calibration that found it; None when unknown.
    """

    MODELS: ClassVar[dict[str, tuple[int, ...]]] = {
        "pinhole": (0,),
        "radtan": (4, 5),
        "rational": (8,),
        **{model: (count,) for model, count in lenses.COUNTS.items()},
    }

    model: str
    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    distortion: tuple[float, ...] = ()
    board_rms_px: float | None = None

    def __post_init__(self) -> None:
        if self.model not in self.MODELS:
            raise CalibrationError(f"camera model {self.model!r} is unknown; known: {', '.join(self.MODELS)}")
        if len(self.distortion) not in self.MODELS[self.model]:
            expected = " or ".join(str(count) for count in self.MODELS[self.model])
            raise CalibrationError(
                f"camera model {self.model} takes {expected} distortion coefficients, "
                f"found {len(self.distortion)}"
            )
        if self.width <= 0 or self.height <= 0:
            raise CalibrationError(f"image size {self.width}x{self.height} is not a size")
        numbers = (self.fx, self.fy, self.cx, self.cy, *self.distortion)
        if not np.all(np.isfinite(numbers)) or self.fx <= 0 or self.fy <= 0:
            raise CalibrationError(f"focal lengths must be positive and all numbers finite, found {numbers}")
        if problem := lenses.problem(self.model, self.distortion):
            raise CalibrationError(problem)

    @property
    def K(self) -> Array:
        """The 3x3 camera matrix."""
        return np.array([[self.fx, 0.0, self.cx], [0.0, self.fy, self.cy], [0.0, 0.0, 1.0]])

    @property
    def magnification(self) -> float:
        """What fx and fy are multiplied with to be focal lengths about the axis; 1 but for some wide lenses."""
        return lenses.magnification(self.model, self.distortion)

    @property
    def f_px(self) -> float:
        """Geometric mean of the two focal lengths about the axis, px."""
        return float(np.sqrt(self.fx * self.fy)) * self.magnification

    def scaled(self, width: int, height: int) -> "Intrinsics":
        """Return the intrinsics of the same camera resampled to another size (not cropped)."""
        sx, sy = width / self.width, height / self.height
        return Intrinsics(
            self.model,
            width,
            height,
            self.fx * sx,
            self.fy * sy,
            (self.cx + 0.5) * sx - 0.5,
            (self.cy + 0.5) * sy - 0.5,
            self.distortion,
            self.board_rms_px,
        )


def distort(normalised: Array, camera: Intrinsics) -> Array:
    """Return (N, 2) distorted normalised coordinates of (N, 2) ideal ones (x/z, y/z)."""
    if camera.model == "pinhole":
        return np.array(normalised, np.float64)
    if camera.model in lenses.COUNTS:
        points = np.column_stack([normalised, np.ones(len(normalised))])
        return lenses.onto_plane(points, camera.model, camera.distortion)
    return lenses.brown(normalised, camera.distortion)


def project(points: Array, camera: Intrinsics) -> Array:
    """Return (N, 2) pixels of (N, 3) points in the camera's frame.

    NaN where a point lies where the lens has no place for it: behind the camera, for a lens that looks backwards
    too beyond its angle of view, or where the distortion model folds back on itself. Pixels outside the image are
    returned as they are.
    """
    points = np.asarray(points, np.float64)
    pixels = np.full((len(points), 2), np.nan)
    if camera.model in lenses.COUNTS:
        seen = lenses.is_seen(points, camera.model, camera.distortion)
        distorted = lenses.onto_plane(points[seen], camera.model, camera.distortion)
    else:
        seen = points[:, 2] > 1e-6
        normalised = points[seen, :2] / points[seen, 2:3]
        distorted = distort(normalised, camera)
        distorted[np.hypot(normalised[:, 0], normalised[:, 1]) > _largest_radius(camera)] = np.nan
    pixels[seen] = distorted * (camera.fx, camera.fy) + (camera.cx, camera.cy)
    return pixels


def _largest_radius(camera: Intrinsics) -> float:
    return float("inf") if camera.model == "pinhole" else lenses.largest_brown_radius(camera.distortion)


def in_image(pixels: Array, camera: Intrinsics, margin_px: float = 0.0) -> NDArray[np.bool_]:
    """Return which (N, 2) pixels lie in the image, at least ``margin_px`` from its border; NaN does not."""
    with np.errstate(invalid="ignore"):
        return np.asarray(
            (pixels[:, 0] >= margin_px)
            & (pixels[:, 1] >= margin_px)
            & (pixels[:, 0] <= camera.width - 1 - margin_px)
            & (pixels[:, 1] <= camera.height - 1 - margin_px)
        )


def undistort(pixels: Array, camera: Intrinsics) -> Array:
    """Return (N, 2) ideal normalised coordinates (z = 1) of pixels; NaN where that did not converge.

    A lens that looks backwards too has none beyond 90 degrees off its axis: see :func:`unproject`.
    """
    target = _on_plane(pixels, camera)
    if camera.model == "pinhole":
        return target
    if camera.model in lenses.COUNTS:
        rays = lenses.onto_sphere(target, camera.model, camera.distortion)
        with np.errstate(invalid="ignore"):
            rays[~(rays[:, 2] > _LEAST_FORWARD)] = np.nan
        return np.asarray(rays[:, :2] / rays[:, 2:], np.float64)
    ideal = lenses.invert(lambda places: distort(places, camera), target)
    with np.errstate(invalid="ignore"):
        ideal[np.hypot(ideal[:, 0], ideal[:, 1]) > _largest_radius(camera)] = np.nan
    return ideal


def unproject(pixels: Array, camera: Intrinsics) -> Array:
    """Return (N, 3) unit viewing rays of pixels, also those beyond 90 degrees; NaN where none comes from."""
    if camera.model in lenses.COUNTS:
        return lenses.onto_sphere(_on_plane(pixels, camera), camera.model, camera.distortion)
    found = rays(pixels, camera)
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True), np.float64)


def _on_plane(pixels: Array, camera: Intrinsics) -> Array:
    shifted = np.asarray(pixels, np.float64).reshape(-1, 2) - (camera.cx, camera.cy)
    return np.asarray(shifted / (camera.fx, camera.fy), np.float64)


def rays(pixels: Array, camera: Intrinsics) -> Array:
    """Return (N, 3) viewing rays with z = 1; NaN where undistortion did not converge."""
    normalised = undistort(pixels, camera)
    return np.concatenate([normalised, np.ones((len(normalised), 1))], axis=1)
