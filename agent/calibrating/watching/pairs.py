"""The pairs that are watched: two cameras, camera and LiDAR, two LiDARs, LiDAR ground and gravity."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from sensorium.agent.calibrating.checking.camera_lidar_pair import MIN_TIMING_FRAMES, with_timing
from sensorium.agent.calibrating.checking.stereo_pair import timed
from sensorium.agent.calibrating.shots import (
    Cloud,
    Sample,
    decoded_cloud,
    decoded_image,
    imu_samples,
    require_size,
    take_shot,
)
from sensorium.agent.calibrating.watching.plan import Planned
from sensorium.agent.calibrating.watching.watch import ALARM, Moved, Taken, UnusableSetError, Watch
from sensorium.calibration import agreement, camera_lidar, keyframes, stereo
from sensorium.calibration.attribution import Window, is_timing, moved_between
from sensorium.calibration.geometry import Array
from sensorium.calibration.inertial import check_ground_gravity
from sensorium.calibration.lidar_lidar import Registration, check_lidar_lidar, register_sweeps
from sensorium.calibration.rig_document import RigCalibration
from sensorium.drivers.roles import Role
from sensorium.sync.thinking.sets import AlignedSet, KeptFrame, SetRequest
from sensorium.timebase import SECOND_NS
from sensorium.verdict import Status, Verdict

# Between the two images of a pair; half of what is accepted in pitch.
MAX_STEREO_TURN_RAD = np.deg2rad(0.05)
# Registration of unsynchronised sweeps and the ground against gravity ask for a rig that hardly turns (spec 3b).
MAX_SWEEP_RATE_RAD_S = np.deg2rad(2.0)
# Above this an image's stamp matters as much as the mount (spec 3b).
CALM_RATE_RAD_S = np.deg2rad(5.0)
LOCATED_FRAMES = 9
# LiDARs whose rings lie too far apart to outline anything level (16 to 32 of them) need more scenes (spec 3b).
SPARSE_KEYFRAMES = 10


def _sample(kept: KeptFrame) -> Sample:
    return Sample(bytes(kept.frame.payload), kept.first_ns)


@dataclass(frozen=True, slots=True, eq=False)
class _Pair:
    """Matches of two images; how fast the right camera turned, and how much later its image is stamped."""

    matches: stereo.Matches
    turning: tuple[Array, float] | None


class StereoWatch(Watch[_Pair]):
    """Two cameras by their epipolar geometry; timing told apart from mounting."""

    def __init__(self, plan: Planned, calibration: RigCalibration) -> None:
        super().__init__(plan, calibration)
        self._history: deque[Taken[_Pair]] = deque(maxlen=LOCATED_FRAMES)
        self._alarmed: deque[_Pair] = deque(maxlen=LOCATED_FRAMES)

    def _reduced(self, aligned: AlignedSet) -> _Pair:
        left, right = aligned.members
        gyro = self._gyro(aligned)
        apart_s = (right.first_ns - left.first_ns) / SECOND_NS
        rate = gyro.at(left.first_ns / SECOND_NS) if gyro is not None else np.zeros(3)
        speed = float(np.linalg.norm(rate))
        if abs(apart_s) * speed > MAX_STEREO_TURN_RAD:
            raise UnusableSetError(
                f"the images are {abs(apart_s) * 1e3:.0f} ms apart while the rig turns at {np.rad2deg(speed):.0f} deg/s"
            )
        images = [decoded_image(kept.info, bytes(kept.frame.payload)) for kept in (left, right)]
        for image, frame in zip(images, self.plan.frames, strict=True):
            require_size(image, frame, self.calibration.camera(frame))
        turning = None
        if gyro is not None:
            R_right_imu = self.calibration.transform(self.plan.frames[1], gyro.frame)[:3, :3]
            turning = (R_right_imu @ rate, apart_s)
        return _Pair(stereo.match_pair(images[0], images[1]), turning)

    def _verdict(self, window: Sequence[_Pair]) -> Verdict:
        left, right = self.plan.frames
        return stereo.check_matches([pair.matches for pair in window], self.calibration, left, right).verdict

    def _refined(self, verdict: Verdict, window: Sequence[Taken[_Pair]]) -> Verdict:
        self._history.extend(window)
        if verdict.status is Status.OK:
            self._alarmed.clear()
            return verdict
        self._alarmed.extend(taken.data for taken in window if taken.data.turning is not None)
        turning = [pair.turning for pair in self._alarmed if pair.turning is not None]
        return timed(verdict, [pair.matches for pair in self._alarmed], turning, self.calibration)

    def _located(self) -> Moved | None:
        """Judge the pairs of the last windows one by one."""
        single = [
            Window(taken.tick_ns, taken.tick_ns, self._verdict([taken.data])) for taken in self._history
        ]
        found = moved_between(single)
        if found is None or found[0] == found[1]:
            return super()._located()
        return Moved(*found)

    def _forget(self) -> None:
        self._history.clear()
        self._alarmed.clear()


@dataclass(frozen=True, slots=True, eq=False)
class _View:
    """A keyframe and how fast the camera turned in it (rad/s, camera axes); None without a gyro."""

    frame: keyframes.Keyframe
    rate_rad_s: Array | None


class CameraLidarWatch(Watch[_View]):
    """Camera and LiDAR by edges, from keyframes of different scenes; timing told apart from mounting."""

    gap_ns = 2 * SECOND_NS
    first_cost_s: ClassVar[Mapping[str, float]] = {"take": 0.2, "judge": 1.0}

    def __init__(self, plan: Planned, calibration: RigCalibration) -> None:
        super().__init__(plan, calibration)
        self._T = calibration.transform(*plan.frames)
        self._motion: Array = np.zeros(6)
        self._history: list[Taken[keyframes.Keyframe]] = []
        self._single: deque[tuple[agreement.Estimate, Array]] = deque(maxlen=LOCATED_FRAMES)

    @property
    def request(self) -> SetRequest:
        """The images around the sweep are wanted too: the one taken when the LiDAR looked there fits best.

        So are the sweeps around it where a gyro straightens them: two of them tell how fast the rig moved.
        """
        found, (camera, lidar) = super().request, self.plan.streams
        return SetRequest(found.streams, (*found.beside, camera, *((lidar,) if self.plan.gyro else ())))

    def _reduced(self, aligned: AlignedSet) -> _View:
        sweep, gyro = aligned.members[1], self._gyro(aligned)
        cloud = decoded_cloud(sweep.info, _sample(sweep))
        picture = self._image_of(cloud, aligned)
        following = following_sweep(sweep, aligned) if gyro is not None else None
        shot = take_shot(
            picture.info, _sample(picture), sweep.info.frame_id, cloud, self.calibration, gyro, following
        )
        if gyro is not None and cloud.time_s is not None and shot.turning_rad_s is None:
            raise UnusableSetError(f"{self.plan.gyro} does not cover image and sweep")
        frame = keyframes.keyframe(shot.image, shot.points, shot.camera, self._T, shot.ring, shot.as_measured)
        known = [taken.data.frame for taken in self._window]
        if keyframes.distinct_scenes([*known, frame]) < keyframes.distinct_scenes(known) + 1:
            raise UnusableSetError("the scene is the same as before: standing still")
        if len(frame.edges[0]) and not len(frame.edges[1]):
            self.needed = SPARSE_KEYFRAMES
        return _View(frame, shot.turning_rad_s)

    def _image_of(self, cloud: Cloud, aligned: AlignedSet) -> KeptFrame:
        facing_s = cloud.facing_s(self._T, self.calibration.camera(self.plan.frames[0]))
        if facing_s is None:
            return aligned.members[0]
        images = [kept for kept in aligned.beside if kept.info.name == self.plan.streams[0]]
        images.append(aligned.members[0])
        return min(images, key=lambda kept: abs(kept.first_ns / SECOND_NS - facing_s))

    def _verdict(self, window: Sequence[_View]) -> Verdict:
        frames, (camera, lidar) = [view.frame for view in window], self.plan.frames
        gates = camera_lidar.gates_of(frames)
        if gates:  # nothing to be learned from climbing
            return Verdict(self.plan.check, self.plan.subject, Status.INSUFFICIENT, (), tuple(gates))
        found = camera_lidar.check_camera_lidar(frames, self.calibration, camera, lidar)
        self._motion = found.motion
        return found.verdict

    def _refined(self, verdict: Verdict, window: Sequence[Taken[_View]]) -> Verdict:
        if verdict.status is Status.INSUFFICIENT:
            return self._stamps_in_doubt(verdict, window)
        self._history += [Taken(taken.tick_ns, _lighter(taken.data.frame)) for taken in window]
        self._history = self._history[-3 * self.needed :]
        if verdict.status not in ALARM:
            self._single.clear()
            return verdict
        self._remember(window)
        if len(self._single) >= MIN_TIMING_FRAMES:
            return with_timing(verdict, list(self._single))
        return self._held_back(verdict, [taken.data.rate_rad_s for taken in window])

    def _remember(self, window: Sequence[Taken[_View]]) -> None:
        """Keep what each keyframe alone says, with how fast the rig turned in it."""
        for view in (taken.data for taken in window):
            if view.rate_rad_s is not None:
                estimate = camera_lidar.estimate_motion([view.frame], self._T)
                self._single.append((estimate, view.rate_rad_s))

    def _stamps_in_doubt(self, verdict: Verdict, window: Sequence[Taken[_View]]) -> Verdict:
        """After an alarm: keyframes that contradict each other may be what a stamp that is off looks like."""
        if not self._single or not any(quantity.name == "misalignment" for quantity in verdict.quantities):
            return verdict
        self._remember(window)
        if len(self._single) < MIN_TIMING_FRAMES:
            return verdict
        told = with_timing(verdict, list(self._single))
        return told if is_timing(told) else verdict

    def _held_back(self, verdict: Verdict, rates: Sequence[Array | None]) -> Verdict:
        """Return an alarm that cannot be told from a late stamp yet as no more than suspect."""
        known = [float(np.linalg.norm(rate)) for rate in rates if rate is not None]
        if not known:
            reason = "without a gyro a late stamp and a moved mount look the same while the rig turns"
            return replace(verdict, reasons=(*verdict.reasons, reason))
        if max(known) < CALM_RATE_RAD_S:
            return verdict
        reason = (
            f"the rig turned at up to {np.rad2deg(max(known)):.0f} deg/s, where a late stamp looks like a moved "
            f"mount: {MIN_TIMING_FRAMES} keyframes tell them apart"
        )
        status = Status.SUSPECT if verdict.status is Status.FAILED else verdict.status
        return replace(verdict, status=status, reasons=(*verdict.reasons, reason))

    def _located(self) -> Moved | None:
        """Find the keyframe from which on the motion explains the edges better than no motion does."""
        gains = [camera_lidar.gain(taken.data, self._T, self._motion) for taken in self._history]
        from_here = np.append(np.cumsum(gains[::-1])[::-1], 0.0)
        first = int(np.argmax(from_here))
        if not 0 < first < len(gains):
            return super()._located()
        return Moved(self._history[first - 1].tick_ns, self._history[first].tick_ns)

    def _forget(self) -> None:
        self._history.clear()
        self._single.clear()


def following_sweep(sweep: KeptFrame, aligned: AlignedSet) -> Cloud | None:
    """Return the sweep after a set's own; None if none came beside it."""
    later = [
        kept
        for kept in aligned.beside
        if kept.info.name == sweep.info.name and kept.first_ns > sweep.first_ns
    ]
    if not later:
        return None
    first = min(later, key=lambda kept: kept.first_ns)
    return decoded_cloud(first.info, _sample(first))


def _lighter(frame: keyframes.Keyframe) -> keyframes.Keyframe:
    """Return a keyframe that holds only the images that :func:`camera_lidar.gain` looks at."""
    return replace(frame, images=((), frame.images[1], ()))


class LidarLidarWatch(Watch[Registration]):
    """Two LiDARs that see the same surfaces, while the rig hardly turns."""

    needed = 5
    is_opportune = True

    def _reduced(self, aligned: AlignedSet) -> Registration:
        gyro = self._gyro(aligned)
        first, second = aligned.members
        at_s = first.first_ns / SECOND_NS
        if gyro is not None:
            _require_calm(float(np.linalg.norm(gyro.at(at_s))))
        clouds = []
        for kept in (first, second):
            cloud = decoded_cloud(kept.info, _sample(kept))
            if gyro is not None and self.calibration.has_transform(kept.info.frame_id, gyro.frame):
                R = self.calibration.transform(kept.info.frame_id, gyro.frame)[:3, :3]
                cloud = cloud.straightened(at_s, gyro, R) or cloud
            clouds.append(cloud.points)
        T_known = self.calibration.transform(*self.plan.frames)
        return register_sweeps(clouds[:1], clouds[1:], T_known)

    def _verdict(self, window: Sequence[Registration]) -> Verdict:
        first, second = self.plan.frames
        return check_lidar_lidar(window, self.calibration, first, second)


class GroundWatch(Watch[tuple[NDArray[np.floating], Array]]):
    """The ground that a LiDAR sees against the gravity that an IMU feels, at rest."""

    is_opportune = True

    @property
    def request(self) -> SetRequest:
        lidar, imu = self.plan.streams
        return SetRequest((lidar,), tuple(dict.fromkeys((imu, self.plan.gyro))) if self.plan.gyro else (imu,))

    def _reduced(self, aligned: AlignedSet) -> tuple[NDArray[np.floating], Array]:
        (sweep,) = aligned.members
        gyro = self._gyro(aligned)
        if gyro is not None:
            _require_calm(float(np.abs(gyro.rate_rad_s).max()))
        blocks = [kept for kept in aligned.beside if kept.info.name == self.plan.streams[1]]
        pairs = ((kept.frame, kept.capture_ns) for kept in blocks)
        found = imu_samples(blocks[0].info, pairs, Role.ACCELEROMETER) if blocks else None
        if found is None:
            raise UnusableSetError(f"nothing came of {self.plan.streams[1]} around the sweep")
        return decoded_cloud(sweep.info, _sample(sweep)).points, found[1]

    def _verdict(self, window: Sequence[tuple[NDArray[np.floating], Array]]) -> Verdict:
        sweeps, forces = zip(*window, strict=True)
        lidar, imu = self.plan.frames
        return check_ground_gravity(sweeps, np.concatenate(forces), self.calibration, lidar, imu)


def _require_calm(rate_rad_s: float) -> None:
    if rate_rad_s > MAX_SWEEP_RATE_RAD_S:
        raise UnusableSetError(
            f"the rig turns at {np.rad2deg(rate_rad_s):.0f} deg/s, this check asks for rest "
            f"(below {np.rad2deg(MAX_SWEEP_RATE_RAD_S):.0f} deg/s)"
        )
