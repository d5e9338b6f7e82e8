"""What an episode holds of sensors that make no pictures: IMUs, sweeps at chosen instants, wrenches, claps.

Read when first asked for; used by the checks of a recording and by the solvers.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sensorium.agent.calibrating.shots import (
    Cloud,
    Gyro,
    Sample,
    decoded_cloud,
    imu_samples,
)
from sensorium.calibration import inertial
from sensorium.calibration.geometry import Array
from sensorium.calibration.inertial import Inertial
from sensorium.calibration.rig_document import RigCalibration
from sensorium.drivers.frame import StreamInfo
from sensorium.drivers.roles import Role, has_role
from sensorium.errors import CalibrationError
from sensorium.sync.content.onsets import audio_onsets
from sensorium.sync.decoding import StreamDecoder
from sensorium.sync.episode.reader import Episode
from sensorium.timebase import SECOND_NS

# A pose held longer is cut, so that a recording at rest gives several readings.
POSE_S = 4.0
MAX_SOUND_S = 120.0
CLIP_S = (0.01, 0.05)
# A mark "clap left" speaks of the claps this long before and after it.
MARKED_S = 2.0
_SIDES = {
    "front": (1.0, 0.0, 0.0),
    "back": (-1.0, 0.0, 0.0),
    "left": (0.0, 1.0, 0.0),
    "right": (0.0, -1.0, 0.0),
    "above": (0.0, 0.0, 1.0),
    "below": (0.0, 0.0, -1.0),
}


@dataclass(frozen=True, slots=True, eq=False)
class Poses:
    """Means over stretches of rest: (N, 3) force and torque, and (N, 3) gravity in the sensor's axes."""

    force_n: Array
    torque_nm: Array
    gravity_m_s2: Array

    def __len__(self) -> int:
        return len(self.force_n)

    def part(self, which: slice) -> "Poses":
        return Poses(self.force_n[which], self.torque_nm[which], self.gravity_m_s2[which])


@dataclass(frozen=True, slots=True, eq=False)
class Claps:
    """(samples, channels) around each clap, the side it came from where a mark says so, and all levels."""

    rate_hz: float
    clips: list[Array]
    sides: list[Array | None]
    loudest: Array


@dataclass(frozen=True, slots=True, eq=False)
class TimedSweep:
    """A sweep straightened to ``time_s`` (host, s), as far as gyro and stamps allow."""

    time_s: float
    points: NDArray[np.floating]


class SensorData:
    """The episode's sensors without images."""

    def __init__(self, path: Path, streams: Sequence[StreamInfo], calibration: RigCalibration) -> None:
        self.path = path
        self.streams = streams
        self.calibration = calibration
        self.imus = self.having(Role.GYRO, Role.ACCELEROMETER)
        self.lidars = self.having(Role.SWEEP)
        self._inertial: dict[str, Inertial | None] = {}

    def having(self, *wanted: Role) -> list[StreamInfo]:
        """Return the streams with each of these roles."""
        return [info for info in self.streams if has_role(info, *wanted)]

    def imu_for(self, frame: str) -> StreamInfo | None:
        """Return the fastest IMU that the calibration joins with a frame."""
        joined = [info for info in self.imus if self.calibration.has_transform(frame, info.frame_id)]
        return max(joined, key=lambda info: info.rate_hz, default=None)

    # -- inertial

    def inertial(self, info: StreamInfo) -> Inertial | None:
        """Return all that an IMU read, None if nothing."""
        if info.name not in self._inertial:
            self._inertial[info.name] = self._read_inertial(info)
        return self._inertial[info.name]

    def _read_inertial(self, info: StreamInfo) -> Inertial | None:
        with Episode(self.path) as episode:
            frames = [(each.frame, each.stamped.capture_ns) for each in episode.frames({info.name})]
        gyro, acc = imu_samples(info, frames, Role.GYRO), imu_samples(info, frames, Role.ACCELEROMETER)
        return None if gyro is None or acc is None else Inertial(gyro[0], acc[1], gyro[1])

    def rest(self, info: StreamInfo) -> list[tuple[float, float]]:
        """Return the stretches of rest that an IMU felt (host, s)."""
        samples = self.inertial(info)
        return (
            [] if samples is None else inertial.rest_spans(samples, self.calibration.imus.get(info.frame_id))
        )

    # -- sweeps

    def sweep_times(self, info: StreamInfo) -> NDArray[np.int64]:
        """Return when each sweep was captured (its first sample; host, ns), in order."""
        with Episode(self.path) as episode:
            times = [int(row.stamped.capture_ns[0]) for _, row in episode.stamps({info.name})]
        return np.sort(np.array(times, np.int64))

    def sweeps(self, info: StreamInfo, times_ns: Iterable[int]) -> list[TimedSweep]:
        """Return the sweeps captured at these times (of :meth:`sweep_times`), straightened with a gyro.

        Raises:
            CalibrationError: If a sweep does not decode.
            EpisodeError: If the episode cannot be read.
        """
        wanted = {int(at_ns) for at_ns in times_ns}
        gyro, R_lidar_imu = self._gyro_of(info)
        found = []
        with Episode(self.path) as episode:
            for recorded in episode.frames({info.name}):
                first_ns = int(recorded.stamped.capture_ns[0])
                if first_ns in wanted:
                    cloud = decoded_cloud(info, Sample(bytes(recorded.frame.payload), first_ns))
                    found.append(_straightened(cloud, first_ns / SECOND_NS, gyro, R_lidar_imu))
        return sorted(found, key=lambda sweep: sweep.time_s)

    def _gyro_of(self, info: StreamInfo) -> tuple[Gyro | None, Array]:
        imu = self.imu_for(info.frame_id)
        samples = None if imu is None else self.inertial(imu)
        if imu is None or samples is None:
            return None, np.eye(3)
        R = self.calibration.transform(info.frame_id, imu.frame_id)[:3, :3]
        return Gyro(imu.frame_id, samples.time_s, samples.gyro_rad_s), R

    # -- force and torque

    def poses(self, info: StreamInfo) -> Poses:
        """Return the force sensor's means over stretches of rest, with gravity from the IMU on the rig.

        Raises:
            CalibrationError: If no IMU is joined with the sensor in the calibration, or nothing was recorded.
        """
        imu = self.imu_for(info.frame_id)
        samples = None if imu is None else self.inertial(imu)
        if imu is None or samples is None:
            raise CalibrationError(
                f"gravity is not known at {info.frame_id}: it needs an IMU on the rig and its place in the calibration"
            )
        with Episode(self.path) as episode:
            frames = [(each.frame, each.stamped.capture_ns) for each in episode.frames({info.name})]
        force, torque = imu_samples(info, frames, Role.FORCE), imu_samples(info, frames, Role.TORQUE)
        if force is None or torque is None:
            raise CalibrationError(f"nothing was recorded of {info.name}")
        known = self.calibration.imus.get(imu.frame_id)
        bias = (0.0, 0.0, 0.0) if known is None or known.acc_bias_m_s2 is None else known.acc_bias_m_s2
        R = self.calibration.transform(info.frame_id, imu.frame_id)[:3, :3]
        rows = []
        for start_s, end_s in _cut(self.rest(imu)):
            inside = (force[0] >= start_s) & (force[0] < end_s)
            if inside.sum() >= 10:
                gravity = -R @ (samples.between(start_s, end_s).acc_m_s2.mean(axis=0) - bias)
                # The median, because knocks on the tool are no weight.
                rows.append(
                    [*np.median(force[1][inside], axis=0), *np.median(torque[1][inside], axis=0), *gravity]
                )
        table = np.array(rows).reshape(-1, 9)
        return Poses(table[:, :3], table[:, 3:6], table[:, 6:])

    # -- sound

    def claps(self, info: StreamInfo) -> Claps:
        """Return what an array heard of claps in the first two minutes."""
        start_s, wave = self._sound(info)
        rate_hz = info.rate_hz
        before, after = (round(part * rate_hz) for part in CLIP_S)
        marks = list(self._marked())
        clips, sides = [], []
        # The loudest channel, lest a dead one decides.
        ear = wave[:, int(np.argmax(wave.std(axis=0)))] if len(wave) else np.empty(0)
        for onset in audio_onsets(ear, rate_hz):
            first = round(onset.sample) - before
            if first >= 0 and first + before + after <= len(wave):
                clips.append(wave[first : first + before + after])
                at_s = start_s + onset.sample / rate_hz
                near = [side for marked_s, side in marks if abs(marked_s - at_s) < MARKED_S]
                sides.append(near[0] if near else None)
        size = before + after
        levels = [wave[k : k + size].std() for k in range(0, max(len(wave) - size, 0), size)]
        loudest = int(np.argmax(levels)) * size if levels else 0
        return Claps(rate_hz, clips, sides, wave[loudest : loudest + size])

    def _sound(self, info: StreamInfo) -> tuple[float, Array]:
        blocks: list[Array] = []
        start_s, next_seq, count = 0.0, None, 0
        decoder = StreamDecoder(info)
        with Episode(self.path) as episode:
            for recorded in episode.frames({info.name}):
                values = decoder.samples(recorded.frame.payload, recorded.frame.count)
                if values is None or not len(values):
                    continue
                if next_seq is None:
                    start_s = float(recorded.stamped.capture_ns[0]) / SECOND_NS
                elif recorded.frame.seq != next_seq:
                    # Silence stands for what was lost, up to a second; a restart begins anew.
                    lost = recorded.frame.seq - next_seq
                    blocks.append(np.zeros((lost if 0 < lost < info.rate_hz else 0, values.shape[1])))
                next_seq = recorded.frame.seq + recorded.frame.count
                blocks.append(values)
                count += len(values)
                if count > MAX_SOUND_S * info.rate_hz:
                    break
        return start_s, np.concatenate(blocks) if blocks else np.empty((0, info.shape[0]))

    def _marked(self) -> Iterator[tuple[float, Array]]:
        with Episode(self.path) as episode:
            for event in episode.events():
                words = event.detail.lower().split()
                if event.kind == "mark" and words[:1] == ["clap"] and words[1:2] and words[1] in _SIDES:
                    yield event.host_ns / SECOND_NS, np.array(_SIDES[words[1]])


def _straightened(cloud: Cloud, first_s: float, gyro: Gyro | None, R_lidar_imu: Array) -> TimedSweep:
    if cloud.time_s is None or not len(cloud.time_s):
        return TimedSweep(first_s, cloud.points)
    at_s = float(cloud.time_s.mean())
    straight = cloud.straightened(at_s, gyro, R_lidar_imu)
    return TimedSweep(at_s, (straight or cloud).points)


def _cut(spans: Sequence[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    for start_s, end_s in spans:
        edges = np.linspace(start_s, end_s, max(int((end_s - start_s) / POSE_S), 1) + 1)
        yield from zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)
