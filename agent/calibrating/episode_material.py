"""What an episode holds for calibration checks: images and sweeps that matched, read when a check asks for them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from sensorium.agent.calibrating.recording import (
    MAX_KEYFRAMES,
    MAX_STEREO_PAIRS,
    CameraLidarSet,
    Material,
    Recording,
    StereoSet,
    Turning,
)
from sensorium.agent.calibrating.sensors import SensorData
from sensorium.agent.calibrating.shots import (
    Gyro,
    Image,
    Sample,
    Shot,
    decoded_cloud,
    decoded_image,
    fastest_gyro,
    take_shot,
)
from sensorium.agent.calibrating.tasks import CheckTask, tasks_of
from sensorium.agent.session.check_kinds import KINDS
from sensorium.calibration.formats.detect import ImportResult, import_calibration
from sensorium.calibration.geometry import Array
from sensorium.calibration.rig_document import RigCalibration
from sensorium.calibration.rotation import excited_span
from sensorium.drivers.frame import StreamInfo
from sensorium.drivers.roles import Role, has_role
from sensorium.errors import CalibrationError
from sensorium.sync.align import Match
from sensorium.sync.episode.files import CALIBRATION_FILE
from sensorium.sync.episode.folder import file_in
from sensorium.sync.episode.reader import Episode
from sensorium.timebase import SECOND_NS

TURNING_S = 20.0
TURNING_STEP_S = 0.095


@dataclass(frozen=True, slots=True)
class Row:
    """A reference tick and for each stream that matched it the sample's number and capture time (host ns)."""

    tick_ns: int
    samples: Mapping[str, tuple[int, int]]


def open_episode(path: Path, given: ImportResult | None) -> Recording:
    """Return an episode with every check that its streams and its calibration allow.

    Args:
        given: Use this instead of the calibration that the episode carries.

    Raises:
        CalibrationError: If it carries none and none is given.
        EpisodeError: If it is damaged.
    """
    if given is None:
        try:
            own = file_in(path, CALIBRATION_FILE)
            given = import_calibration(own if own.exists() else path)
        except CalibrationError as err:
            why = f" ({err})" if own.exists() else ""
            raise CalibrationError(
                f"episode {path} carries no calibration{why}; give one with --calibration FILE"
            ) from err
    with Episode(path) as episode:
        infos = list(episode.streams.values())
        reference = episode.manifest.reference if episode.manifest is not None else ""
        rows = _matched_rows(episode, reference)
    calibration = given.calibration
    tasks = [task for kind in KINDS if kind.judge for task in tasks_of(kind, infos, calibration)]
    material = EpisodeMaterial(path, infos, rows, calibration)
    return Recording(path, "episode", given, material, tasks, _sizes(infos))


def _sizes(infos: Sequence[StreamInfo]) -> dict[str, tuple[int, int] | None]:
    found: dict[str, tuple[int, int] | None] = {}
    for info in infos:
        if has_role(info, Role.CAMERA):
            found[info.frame_id] = (info.shape[1], info.shape[0]) if len(info.shape) > 1 else None
        elif has_role(info, Role.SWEEP):
            found[info.frame_id] = None
    return found


def _matched_rows(episode: Episode, reference: str) -> list[Row]:
    found = []
    for row in episode.rows():
        matched = {
            match.stream: (match.seq, row.tick_ns + match.residual_ns)
            for match in row.matches
            if match.outcome is Match.MATCHED and match.seq is not None
        }
        found.append(Row(row.tick_ns, {reference: (row.tick_seq, row.tick_ns)} | matched))
    return found


class EpisodeMaterial(Material):
    """Chosen samples of two streams, spread over the recording: of each stretch those closest in time.

    Args:
        rows: What matched each reference tick.
    """

    def __init__(
        self, path: Path, infos: Sequence[StreamInfo], rows: Sequence[Row], calibration: RigCalibration
    ) -> None:
        self._path, self._rows, self._calibration = path, rows, calibration
        self._sensors = SensorData(path, infos, calibration)
        self._infos = infos
        self._gyros: dict[str, Gyro | None] = {}

    @property
    def sensors(self) -> SensorData:
        return self._sensors

    def stereo(self, task: CheckTask) -> StereoSet:
        left, right = task.infos
        chosen = _chosen(self._rows, (left.name, right.name), MAX_STEREO_PAIRS)
        payloads = _Payloads(self._path, (left.name, right.name), chosen)

        def load(index: int) -> Callable[[], tuple[Image, Image]]:
            def images() -> tuple[Image, Image]:
                first, second = payloads.pair(index)
                return decoded_image(left, first.payload), decoded_image(right, second.payload)

            return images

        pairs = [load(index) for index in range(len(chosen))]
        turning = self._turning(chosen, (left, right))
        return StereoSet(left.frame_id, right.frame_id, pairs, self._times_s(chosen), turning)

    def _turning(
        self, chosen: Sequence[Row], infos: tuple[StreamInfo, StreamInfo]
    ) -> tuple[tuple[Array, float], ...]:
        """Return how fast the second sensor turned in each row, and how much later it was sampled; () if unknown."""
        fastest = fastest_gyro(self._infos, self._calibration)
        gyro = None if fastest is None else self._gyro(fastest)
        if gyro is None or not self._calibration.has_transform(infos[1].frame_id, gyro.frame):
            return ()
        R = self._calibration.transform(infos[1].frame_id, gyro.frame)[:3, :3]
        found = []
        for row in chosen:
            (_, first_ns), (_, second_ns) = (row.samples[info.name] for info in infos)
            at_s = second_ns / SECOND_NS
            if not gyro.covers(at_s, at_s):
                return ()
            found.append((R @ gyro.at(at_s), (second_ns - first_ns) / SECOND_NS))
        return tuple(found)

    def camera_lidar(self, task: CheckTask) -> CameraLidarSet:
        camera, lidar = task.infos
        names = (camera.name, lidar.name)
        chosen = _chosen(self._rows, names, MAX_KEYFRAMES)
        apart_ns = max((_apart_ns(row, names) for row in chosen), default=0)
        payloads = _Payloads(self._path, names, chosen)
        fastest = fastest_gyro(self._infos, self._calibration)
        gyro = None if fastest is None else self._gyro(fastest)

        def load(index: int) -> Callable[[], Shot]:
            def shot() -> Shot:
                picture, sweep = payloads.pair(index)
                cloud = decoded_cloud(lidar, sweep)
                after = payloads.after(index) if gyro is not None else None
                following = None if after is None else decoded_cloud(lidar, after)
                return take_shot(camera, picture, lidar.frame_id, cloud, self._calibration, gyro, following)

            return shot

        shots = [load(index) for index in range(len(chosen))]
        return CameraLidarSet(camera.frame_id, lidar.frame_id, shots, apart_ns, self._times_s(chosen))

    def turning(self, task: CheckTask) -> Turning:
        camera, imu = task.infos
        gyro = self._gyro(imu)
        if gyro is None:
            return Turning((), np.empty(0), np.empty(0), np.empty((0, 3)))
        return load_turning(self._path, camera, gyro)

    def _gyro(self, info: StreamInfo) -> Gyro | None:
        """Return all rates of an IMU, None if nothing was recorded of it."""
        if info.name not in self._gyros:
            with Episode(self._path) as episode:
                frames = ((each.frame, each.stamped.capture_ns) for each in episode.frames({info.name}))
                self._gyros[info.name] = Gyro.of(info, frames)
        return self._gyros[info.name]

    def _times_s(self, chosen: Sequence[Row]) -> tuple[float, ...]:
        """Return when the chosen rows were captured, since the first row of the recording."""
        return tuple((row.tick_ns - self._rows[0].tick_ns) / SECOND_NS for row in chosen)


def _apart_ns(row: Row, names: tuple[str, str]) -> int:
    (_, first_ns), (_, second_ns) = (row.samples[name] for name in names)
    return abs(first_ns - second_ns)


def _chosen(rows: Sequence[Row], names: tuple[str, str], wanted: int) -> list[Row]:
    """Return rows in which both streams matched, spread over the recording: of each stretch the closest pair."""

    both = [row for row in rows if all(name in row.samples for name in names)]
    found: list[Row] = []
    used: set[tuple[str, int, int]] = set()
    for stretch in np.array_split(np.arange(len(both)), min(wanted, max(len(both), 1))):
        # A slow stream may match several ticks; each of its samples counts once.
        free = [both[k] for k in stretch if not used & {(name, *both[k].samples[name]) for name in names}]
        if free:
            found.append(min(free, key=lambda row: _apart_ns(row, names)))
            used |= {(name, *found[-1].samples[name]) for name in names}
    return found


class _Payloads:
    """Chosen samples of two streams, read from the episode in one pass when first asked for."""

    def __init__(self, path: Path, names: tuple[str, str], rows: Sequence[Row]) -> None:
        self._path, self._names, self._rows = path, names, rows
        self._found: dict[tuple[str, int, int], Sample] | None = None
        self._after: dict[tuple[str, int, int], Sample] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def pair(self, index: int) -> tuple[Sample, Sample]:
        """Return the two frames of one pair.

        Raises:
            CalibrationError: If a frame that was matched is not in the file.
        """
        if self._found is None:
            self._found = dict(self._read())
        samples = self._rows[index].samples
        first, second = (self._found.get((name, *samples[name])) for name in self._names)
        if first is None or second is None:
            raise CalibrationError(f"{self._path}: a matched frame of {' or '.join(self._names)} is missing")
        return first, second

    def after(self, index: int) -> Sample | None:
        """Return the frame of the second stream that follows the one of a pair; None where the recording ends."""
        self.pair(index)
        return self._after.get((self._names[1], *self._rows[index].samples[self._names[1]]))

    def _read(self) -> Iterator[tuple[tuple[str, int, int], Sample]]:
        wanted = {name: [row.samples[name] for row in self._rows] for name in self._names}
        last: list[tuple[str, int, int]] = []
        with Episode(self._path) as episode:
            for recorded in episode.frames(set(self._names)):
                frame, first_ns = recorded.frame, int(recorded.stamped.capture_ns[0])
                if frame.stream == self._names[1]:
                    self._after |= dict.fromkeys(last, Sample(bytes(frame.payload), first_ns)) if last else {}
                    last = []
                for seq, at_ns in wanted[frame.stream]:
                    # Numbers begin anew with each start of a driver; the time tells the starts apart.
                    if frame.seq <= seq < frame.next_seq and abs(first_ns - at_ns) < SECOND_NS:
                        last += [(frame.stream, seq, at_ns)] if frame.stream == self._names[1] else []
                        yield (frame.stream, seq, at_ns), Sample(bytes(frame.payload), first_ns)


def load_turning(path: Path, camera: StreamInfo, gyro: Gyro) -> Turning:
    """Return images of an episode over the twenty seconds in which a gyro felt most turning; none if little.

    Raises:
        CalibrationError: If an image does not decode.
        EpisodeError: If the episode cannot be read.
    """
    images: list[Image] = []
    times: list[float] = []
    span = excited_span(gyro.time_s, gyro.rate_rad_s, TURNING_S)
    start_s, end_s = span or (float(gyro.time_s[0]), float(gyro.time_s[0]))
    with Episode(path) as episode:
        for recorded in episode.frames({camera.name}):
            at_s = float(recorded.stamped.capture_ns[0]) / SECOND_NS
            if at_s < start_s or (times and at_s < times[-1] + TURNING_STEP_S):
                continue
            if at_s > end_s:
                break
            image = decoded_image(camera, bytes(recorded.frame.payload))
            images.append(
                image if image.ndim == 2 else np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), np.uint8)
            )
            times.append(at_s)
    return Turning(images, np.array(times), gyro.time_s, gyro.rate_rad_s)
