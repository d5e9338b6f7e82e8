"""From recorded frames to what calibration checks look at: images, clouds, straightened sweeps, gyro rates.

Used on episodes (:mod:`sensorium.agent.calibrating.recording`) and while recording
(:mod:`sensorium.agent.calibrating.watching`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from sensorium.calibration.geometry import Array, Intrinsics, apply, in_image, project, rotation_exp
from sensorium.calibration.rig_document import RigCalibration
from sensorium.calibration.sweep import deskew
from sensorium.calibration.sweep_motion import MAX_APART_S, sweep_velocity
from sensorium.drivers.frame import Frame, StreamInfo
from sensorium.drivers.roles import Role, has_role, vector
from sensorium.errors import CalibrationError, PayloadError
from sensorium.sync import decoding
from sensorium.timebase import SECOND_NS

Image = NDArray[np.uint8]

# Cameras that look further apart than this share too little of the scene.
MAX_STEREO_ANGLE_RAD = np.deg2rad(50)
MAX_BASELINE_M = 3.0


@dataclass(frozen=True, slots=True, eq=False)
class Shot:
    """An image, the sweep taken with it, and the calibration that holds for the two.

    Attributes:
        turning_rad_s: Angular rate in the camera's axes when the image was taken; None without a gyro. The
            sweep is then straightened as if taken in the image's instant.
        as_measured: The points before that; None where nothing was taken out.
    """

    image: Image
    points: NDArray[np.floating]
    ring: NDArray[np.integer] | None
    camera: Intrinsics
    T_camera_lidar: Array
    turning_rad_s: Array | None = None
    as_measured: NDArray[np.floating] | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """A frame's payload and when its first sample was captured (host ns)."""

    payload: bytes
    capture_ns: int


@dataclass(frozen=True, slots=True, eq=False)
class Gyro:
    """Angular rates of an IMU over a span, on the host's clock."""

    frame: str
    time_s: Array
    rate_rad_s: Array

    def covers(self, start_s: float, end_s: float) -> bool:
        return bool(self.time_s[0] <= start_s and end_s <= self.time_s[-1])

    def at(self, time_s: float) -> Array:
        """Return the rate at an instant, over the 20 ms around it."""
        near = np.abs(self.time_s - time_s) < 0.01
        picked = near if near.any() else np.abs(self.time_s - time_s) == np.abs(self.time_s - time_s).min()
        return np.asarray(self.rate_rad_s[picked].mean(axis=0), np.float64)

    def turned(self, start_s: float, end_s: float) -> Array:
        """Return the turn (3, 3) from one instant to another: its columns are the later axes in the earlier."""
        first, last = sorted((start_s, end_s))
        within = (self.time_s > first) & (self.time_s < last)
        times = np.concatenate([[first], self.time_s[within], [last]])
        rates = np.stack(
            [np.interp(times, self.time_s, self.rate_rad_s[:, axis]) for axis in range(3)], axis=1
        )
        R = np.eye(3)
        for rate, step_s in zip((rates[1:] + rates[:-1]) / 2, np.diff(times), strict=True):
            R = R @ rotation_exp(rate * step_s)
        return R if start_s <= end_s else R.T

    @classmethod
    def of(cls, info: StreamInfo, frames: Iterable[tuple[Frame, NDArray[np.int64]]]) -> "Gyro | None":
        """Return the rates in blocks of an IMU with their capture times (host ns); None without samples."""
        found = imu_samples(info, frames, Role.GYRO)
        return None if found is None else cls(info.frame_id, *found)


def imu_samples(
    info: StreamInfo, frames: Iterable[tuple[Frame, NDArray[np.int64]]], role: Role
) -> tuple[Array, Array] | None:
    """Return (N,) times (s, host) and (N, 3) SI values of a stream's vector; None without it or without samples."""
    axes = vector(info, role)
    if axes is None:
        return None
    times, rows = [], []
    decoder = decoding.StreamDecoder(info)
    for frame, capture_ns in frames:
        values = decoder.samples(frame.payload, frame.count)
        if values is None or not len(values):
            continue
        if len(capture_ns) != len(values):  # one stamp for a block: of its first sample
            capture_ns = capture_ns[0] + (np.arange(len(values)) * SECOND_NS / info.rate_hz).astype(np.int64)
        times.append(capture_ns / SECOND_NS)
        rows.append(values[:, axes.columns] * axes.factor)
    if not times:
        return None
    time_s = np.concatenate(times)
    order = np.argsort(time_s, kind="stable")
    return time_s[order], np.concatenate(rows)[order]


def fastest_gyro(infos: Iterable[StreamInfo], calibration: RigCalibration) -> StreamInfo | None:
    """Return the fastest IMU whose place on the rig is known, or None."""
    found = [info for info in infos if info.frame_id in calibration.frames and has_role(info, Role.GYRO)]
    return max(found, key=lambda each: each.rate_hz, default=None)


def stereo_pairs_of(calibration: RigCalibration, cameras: Sequence[str]) -> list[tuple[str, str]]:
    """Return the pairs of cameras whose views overlap by what the calibration says, first by name first."""
    return [
        (left, right)
        for left, right in combinations(sorted(set(cameras) & calibration.cameras.keys()), 2)
        if calibration.has_transform(left, right) and views_overlap(calibration, left, right)
    ]


def views_overlap(calibration: RigCalibration, left: str, right: str) -> bool:
    """Return whether two cameras look about the same way from about the same place.

    Raises:
        CalibrationError: If the calibration does not join the two.
    """
    T = calibration.transform(left, right)
    distance_m = float(np.linalg.norm(T[:3, 3]))
    return bool(T[2, 2] > np.cos(MAX_STEREO_ANGLE_RAD)) and 1e-3 < distance_m < MAX_BASELINE_M


def require_size(image: Image, frame: str, camera: Intrinsics) -> None:
    """Refuse an image of another size than the one that its lens was calibrated for.

    Raises:
        CalibrationError: If the sizes differ.
    """
    if (image.shape[1], image.shape[0]) != (camera.width, camera.height):
        raise CalibrationError(
            f"images of {frame} are {image.shape[1]}x{image.shape[0]}, its calibration is for "
            f"{camera.width}x{camera.height}"
        )


def decoded_image(info: StreamInfo, payload: bytes) -> Image:
    """Return the grey or BGR image of a camera's frame.

    Raises:
        CalibrationError: If it does not decode.
    """
    try:
        return decoding.picture(info, payload)
    except PayloadError as err:
        raise CalibrationError(str(err)) from err


@dataclass(frozen=True, slots=True, eq=False)
class Cloud:
    """Returns of a sweep, with the laser and the time (host, s) of each where the encoding tells.

    ``as_measured`` are a straightened cloud's points before that.
    """

    points: NDArray[np.floating]
    ring: NDArray[np.integer] | None = None
    time_s: Array | None = None
    as_measured: NDArray[np.floating] | None = None

    def facing_s(self, T_camera_lidar: Array, camera: Intrinsics) -> float | None:
        """Return when the LiDAR looked where the camera looks (median over the returns in view); None if unknown.

        An image of that instant fits best: while it turns and is straightened, the LiDAR also moves on.
        """
        if self.time_s is None:
            return None
        pixels = project(apply(T_camera_lidar, np.asarray(self.points[::8, :3], np.float64)), camera)
        seen = self.time_s[::8][in_image(pixels, camera)]
        return float(np.median(seen)) if len(seen) else None

    def straightened(
        self, at_s: float, gyro: Gyro | None, R_lidar_imu: Array, velocity_m_s: Array | None = None
    ) -> "Cloud | None":
        """Return the cloud as if measured at one instant; None if gyro or times do not cover it.

        Args:
            velocity_m_s: (3,) as in :func:`sensorium.calibration.sweep.deskew`; None takes out the turning only.
        """
        if gyro is None or self.time_s is None or not len(self.time_s):
            return None
        if not gyro.covers(min(at_s, float(self.time_s.min())), max(at_s, float(self.time_s.max()))):
            return None
        points = deskew(
            self.points, self.time_s, at_s, gyro.time_s, gyro.rate_rad_s, R_lidar_imu, velocity_m_s
        )
        return Cloud(points, self.ring, None, self.points)

    def velocity_m_s(self, following: "Cloud", gyro: Gyro | None, R_lidar_imu: Array) -> Array | None:
        """Return how fast the LiDAR moved, in its axes when this sweep began; None where it cannot be told.

        Args:
            following: The sweep after this one; its part over which the gyro is known counts.
        """
        if self.time_s is None or following.time_s is None or gyro is None or not len(self.time_s):
            return None
        rest = following.within(gyro.time_s[0], gyro.time_s[-1])
        if rest.time_s is None or len(rest.time_s) < len(following.time_s) / 4:
            return None
        begin_s, next_s = float(self.time_s.min()), float(following.time_s.min())
        first = self.straightened(begin_s, gyro, R_lidar_imu)
        second = rest.straightened(next_s, gyro, R_lidar_imu)
        if first is None or second is None or not 0 < next_s - begin_s <= MAX_APART_S:
            return None
        R = R_lidar_imu @ gyro.turned(begin_s, next_s) @ R_lidar_imu.T
        found = sweep_velocity(first.points, second.points, next_s - begin_s, R)
        return None if found is None else found.velocity_m_s

    def within(self, start_s: float, end_s: float) -> "Cloud":
        """Return the returns of a span of time; all of them where their times are unknown."""
        if self.time_s is None:
            return self
        inside = (self.time_s >= start_s) & (self.time_s <= end_s)
        return Cloud(
            self.points[inside], None if self.ring is None else self.ring[inside], self.time_s[inside]
        )


def decoded_cloud(info: StreamInfo, sample: Sample) -> Cloud:
    """Return the returns of a LiDAR's frame.

    Raises:
        CalibrationError: If it does not decode.
    """
    try:
        found = decoding.cloud(info, sample.payload)
    except PayloadError as err:
        raise CalibrationError(str(err)) from err
    if found.since_ns is None:
        return Cloud(found.points, found.ring)
    return Cloud(found.points, found.ring, (sample.capture_ns + found.since_ns) / SECOND_NS)


def take_shot(
    camera: StreamInfo,
    picture: Sample,
    lidar_frame: str,
    cloud: Cloud,
    calibration: RigCalibration,
    gyro: Gyro | None,
    following: Cloud | None = None,
) -> Shot:
    """Return an image with the sweep of its time, straightened where the gyro covers both.

    Args:
        following: The next sweep: it tells how fast the LiDAR moved, which is taken out too.

    Raises:
        CalibrationError: If the image does not decode or the calibration does not join the two.
    """
    image = decoded_image(camera, picture.payload)
    T = calibration.transform(camera.frame_id, lidar_frame)
    at_s, turning = picture.capture_ns / SECOND_NS, None
    if gyro is not None and calibration.has_transform(lidar_frame, gyro.frame):
        R_lidar_imu = calibration.transform(lidar_frame, gyro.frame)[:3, :3]
        velocity_m_s = None if following is None else cloud.velocity_m_s(following, gyro, R_lidar_imu)
        straight = cloud.straightened(at_s, gyro, R_lidar_imu, velocity_m_s)
        if straight is not None:
            cloud, turning = straight, T[:3, :3] @ R_lidar_imu @ gyro.at(at_s)
    lens = calibration.camera(camera.frame_id)
    return Shot(image, cloud.points, cloud.ring, lens, T, turning, cloud.as_measured)
