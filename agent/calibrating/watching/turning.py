"""Cameras and LiDARs against an IMU while recording, by the turning that both felt.

Rotation and time offset show only while the rig turns about two axes, and then only from one frame to the next: so a
set is a burst of half a second, with the gyro beside it. Bursts in which the rig hardly turned are let go before an
image is decoded, and a window is as many bursts as it takes; while the rig does not turn, nothing is said. A slip of a
mount shows sooner in what cameras and LiDARs see together, so these wait for the gaps between the other checks.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import cv2
import numpy as np

from sensorium.agent.calibrating.checking.report import told_only_by_more_motion
from sensorium.agent.calibrating.shots import Gyro, Image, Sample, decoded_cloud, decoded_image, require_size
from sensorium.agent.calibrating.watching.plan import Planned
from sensorium.agent.calibrating.watching.watch import UnusableSetError, Watch
from sensorium.calibration.camera_rotation import camera_turns
from sensorium.calibration.lidar_lidar import sweep_turns
from sensorium.calibration.rig_document import RigCalibration
from sensorium.calibration.rotation import MAX_OFFSET_S, MIN_EXCITATION_RAD_S, Turns, check_imu_rotation
from sensorium.sync.recording.judged import JudgedWindow
from sensorium.sync.thinking.sets import AlignedSet, KeptFrame, SetRequest
from sensorium.timebase import SECOND_NS
from sensorium.verdict import Status, Verdict


@dataclass(frozen=True, slots=True, eq=False)
class Burst:
    """How a sensor turned within half a second, and what the gyro felt over it."""

    turns: Turns
    gyro: Gyro


class ImuWatch(Watch[Burst]):
    """A sensor and an IMU by their turning."""

    is_opportune = True
    is_patient = True
    gap_ns = SECOND_NS
    burst_ns: ClassVar[int]
    burst_step_ns: ClassVar[int] = 0

    @property
    def request(self) -> SetRequest:
        sensor, imu = self.plan.streams
        return SetRequest((sensor,), (imu,), self.burst_ns, self.burst_step_ns)

    def due_verdict(self) -> JudgedWindow | None:
        """Return the verdict of a full window; bursts that pin nothing are no verdict, as those at rest are none."""
        before = self.latest
        found = super().due_verdict()
        if found is None or found.verdict.status is not Status.INSUFFICIENT:
            return found
        self.latest, self.note = before, found.verdict.reasons[0]
        return None

    def _reduced(self, aligned: AlignedSet) -> Burst:
        blocks = [kept for kept in aligned.beside if kept.info.name == self.plan.streams[1]]
        pairs = ((kept.frame, kept.capture_ns) for kept in blocks)
        gyro = Gyro.of(blocks[0].info, pairs) if blocks else None
        if gyro is None:
            raise UnusableSetError(f"nothing came of {self.plan.streams[1]} beside {self.plan.streams[0]}")
        rate_rad_s = float(np.sqrt(np.square(gyro.rate_rad_s).sum(axis=1).mean()))
        if rate_rad_s < MIN_EXCITATION_RAD_S:
            raise UnusableSetError(
                f"the rig turns at {np.rad2deg(rate_rad_s):.1f} deg/s; this check waits for "
                f"{np.rad2deg(MIN_EXCITATION_RAD_S):.0f} deg/s about two axes"
            )
        frames = [aligned.members[0], *aligned.burst]
        if len(frames) < 2:
            raise UnusableSetError(
                f"no frame of {self.plan.streams[0]} followed within {self.burst_ns / 1e9:.1f} s"
            )
        turns = _covered(self._turns(frames, gyro), gyro)
        if not len(turns.start_s):
            raise UnusableSetError(f"the turning could not be followed in {self.plan.streams[0]}")
        return Burst(turns, gyro)

    @abstractmethod
    def _turns(self, frames: Sequence[KeptFrame], gyro: Gyro) -> Turns:
        """Return how the sensor turned from frame to frame."""

    def _verdict(self, window: Sequence[Burst]) -> Verdict:
        sensor, imu = self.plan.frames
        covariances = [burst.turns.covariance for burst in window]
        known = [each for each in covariances if each is not None]
        turns = Turns(
            np.concatenate([burst.turns.start_s for burst in window]),
            np.concatenate([burst.turns.end_s for burst in window]),
            np.concatenate([burst.turns.rate_rad_s for burst in window]),
            np.concatenate(known) if len(known) == len(window) else None,
        )
        time_s, order = np.unique(np.concatenate([burst.gyro.time_s for burst in window]), return_index=True)
        rates = np.concatenate([burst.gyro.rate_rad_s for burst in window])[order]
        return told_only_by_more_motion(
            check_imu_rotation(turns, time_s, rates, self.calibration, sensor, imu)
        )


def _covered(turns: Turns, gyro: Gyro) -> Turns:
    """Return the steps over which the gyro is known, also if stamped off by as much as is looked for."""
    inside = (turns.start_s > gyro.time_s[0] + MAX_OFFSET_S) & (turns.end_s < gyro.time_s[-1] - MAX_OFFSET_S)
    covariance = None if turns.covariance is None else turns.covariance[inside]
    return Turns(turns.start_s[inside], turns.end_s[inside], turns.rate_rad_s[inside], covariance)


class CameraImuWatch(ImuWatch):
    """A camera by tracked corners: ten bursts of six images."""

    needed = 10
    burst_ns = SECOND_NS // 2 + SECOND_NS // 20
    burst_step_ns = 95_000_000
    first_cost_s: ClassVar[Mapping[str, float]] = {"take": 0.3, "judge": 0.1}

    def _turns(self, frames: Sequence[KeptFrame], gyro: Gyro) -> Turns:  # noqa: ARG002 - images are of one instant
        camera = self.calibration.camera(self.plan.frames[0])
        images = [_grey(decoded_image(kept.info, bytes(kept.frame.payload))) for kept in frames]
        require_size(images[0], self.plan.frames[0], camera)
        return camera_turns(images, np.array([kept.first_ns / SECOND_NS for kept in frames]), camera)


def _grey(image: Image) -> Image:
    return image if image.ndim == 2 else np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), np.uint8)


class LidarImuWatch(ImuWatch):
    """A LiDAR by registration from sweep to sweep: twelve bursts of four sweeps."""

    needed = 12
    keep_ns = 120 * SECOND_NS
    burst_ns = SECOND_NS // 3
    first_cost_s: ClassVar[Mapping[str, float]] = {"take": 0.6, "judge": 0.1}

    def __init__(self, plan: Planned, calibration: RigCalibration) -> None:
        super().__init__(plan, calibration)
        self._R_lidar_imu = calibration.transform(*plan.frames)[:3, :3]

    def _turns(self, frames: Sequence[KeptFrame], gyro: Gyro) -> Turns:
        clouds = []
        for kept in frames:
            cloud = decoded_cloud(kept.info, Sample(bytes(kept.frame.payload), kept.first_ns))
            at_s = kept.first_ns / SECOND_NS
            clouds.append((cloud.straightened(at_s, gyro, self._R_lidar_imu) or cloud).points)
        times = np.array([kept.first_ns / SECOND_NS for kept in frames])
        return sweep_turns(clouds, times)[0]
