"""What a recording holds for calibration checks: stereo pairs, and images with the sweep taken with them.

Reads our episodes, EuRoC folders, and KITTI folders (object, raw, odometry, and the same laid out flat).
Images and sweeps are loaded one at a time, when a check asks for them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from sensorium.agent.calibrating.image_files import read_image
from sensorium.agent.calibrating.sensors import SensorData
from sensorium.agent.calibrating.shots import (
    Gyro,
    Image,
    Sample,
    Shot,
    decoded_cloud,
    decoded_image,
    fastest_gyro,
    stereo_pairs_of,
    take_shot,
)
from sensorium.calibration.formats.detect import ImportResult, import_calibration
from sensorium.calibration.geometry import Array
from sensorium.calibration.rig_document import RigCalibration
from sensorium.calibration.rotation import excited_span
from sensorium.drivers.frame import Modality, StreamInfo
from sensorium.drivers.roles import Role, has_role
from sensorium.errors import CalibrationError, UsageError
from sensorium.sync.align import Match
from sensorium.sync.episode.files import DATA_FILE
from sensorium.sync.episode.reader import Episode
from sensorium.timebase import SECOND_NS

MAX_STEREO_PAIRS = 12
MAX_KEYFRAMES = 12
TURNING_S = 20.0
TURNING_STEP_S = 0.095


@dataclass(frozen=True, slots=True)
class StereoSet:
    """Image pairs of two cameras, in order of time; each entry loads one pair when called.

    Attributes:
        times_s: When each was taken, since the start of the recording; empty when unknown.
    """

    left: str
    right: str
    pairs: Sequence[Callable[[], tuple[Image, Image]]]
    times_s: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class CameraLidarSet:
    """Images with sweeps of one camera and one LiDAR, in order of time; each entry loads one when called.

    Attributes:
        apart_ns: The longest time between an image and the middle of its sweep; None when unknown.
        times_s: As in :class:`StereoSet`.
    """

    camera: str
    lidar: str
    shots: Sequence[Callable[[], Shot]]
    apart_ns: int | None = None
    times_s: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Turning:
    """Images of a moving camera about 0.1 s apart, and the gyro beside them; times in seconds of one clock."""

    images: Sequence[Image]
    image_s: Array
    gyro_s: Array
    gyro_rad_s: Array


@dataclass(frozen=True, slots=True)
class TurningSet:
    """A camera and an IMU; ``load`` reads the liveliest 20 s of both."""

    camera: str
    imu: str
    load: Callable[[], Turning]


@dataclass(slots=True)
class Recording:
    """A recording as calibration checks see it.

    Attributes:
        kind: ``episode``, ``euroc``, ``kitti`` or ``document`` (a calibration alone).
        sizes: Image size of each camera, None for other sensors; by frame.
        sensors: What else an episode offers; its tasks are the checks to make.
        problems: Why something could not be taken into account.
    """

    path: Path
    kind: str
    calibration: ImportResult
    stereo: list[StereoSet] = field(default_factory=list)
    camera_lidar: list[CameraLidarSet] = field(default_factory=list)
    turning: list[TurningSet] = field(default_factory=list)
    sensors: SensorData | None = None
    sizes: dict[str, tuple[int, int] | None] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def choose(self, pairs: Sequence[str]) -> None:
        """Keep only these pairs (``a~b``, or a sensor alone); all if none is named.

        Raises:
            UsageError: If there is no such pair.
        """
        tasks = self.sensors.tasks if self.sensors is not None else []
        known = [f"{s.left}~{s.right}" for s in self.stereo]
        known += [f"{s.camera}~{s.lidar}" for s in self.camera_lidar]
        known += [f"{s.camera}~{s.imu}" for s in self.turning]
        known += list(dict.fromkeys(task.subject for task in tasks))
        for pair in pairs:
            if pair not in known:
                raise UsageError(f"{self.path} has no pair {pair}; it has: {', '.join(known) or 'none'}")
        if pairs:
            self.stereo = [s for s in self.stereo if f"{s.left}~{s.right}" in pairs]
            self.camera_lidar = [s for s in self.camera_lidar if f"{s.camera}~{s.lidar}" in pairs]
            self.turning = [s for s in self.turning if f"{s.camera}~{s.imu}" in pairs]
            self.problems = []
            if self.sensors is not None:
                self.sensors.tasks = [task for task in tasks if task.subject in pairs]


def open_recording(path: Path, calibration: Path | None = None) -> Recording:
    """Return what a folder or file offers to checks.

    Args:
        calibration: Use this file instead of what the recording carries.

    Raises:
        CalibrationError: If there is no calibration, or the folder is of no known kind.
        EpisodeError: If an episode is damaged.
    """
    if not path.exists():
        raise CalibrationError(f"{path} does not exist")
    given = import_calibration(calibration) if calibration is not None else None
    if path.is_dir() and (path / DATA_FILE).is_file():
        return _open_episode(path, given)
    if path.is_dir() and (root := _euroc_root(path)) is not None:
        return _open_euroc(path, root, given or import_calibration(path))
    if path.is_dir() and (layout := _kitti_layout(path)) is not None:
        return _open_kitti(path, layout, given)
    if given is None:
        return Recording(path, "document", import_calibration(path))
    raise CalibrationError(f"{path} is no recording that is known: an episode, an EuRoC or a KITTI folder")


def spread(count: int, wanted: int) -> list[int]:
    """Return at most ``wanted`` indices below ``count``, evenly spread from the first to the last."""
    if count <= wanted:
        return list(range(count))
    return [int(index) for index in np.linspace(0, count - 1, wanted)]


def _size_of(image: Image) -> tuple[int, int]:
    return image.shape[1], image.shape[0]


# -- EuRoC


def _euroc_root(path: Path) -> Path | None:
    root = path / "mav0" if (path / "mav0").is_dir() else path
    return root if any(root.glob("cam*/data")) else None


def _open_euroc(path: Path, root: Path, calibration: ImportResult) -> Recording:
    found = Recording(path, "euroc", calibration)
    images = {
        folder.parent.name: {file.stem: file for file in sorted(folder.glob("*.png"))}
        for folder in sorted(root.glob("cam*/data"))
    }
    for name, files in images.items():
        if files:
            found.sizes[name] = _size_of(read_image(next(iter(files.values()))))
    for left, right in stereo_pairs_of(calibration.calibration, list(images)):
        _add_stereo(found, left, right, images[left], images[right])
    return found


def _add_stereo(
    found: Recording, left: str, right: str, lefts: Mapping[str, Path], rights: Mapping[str, Path]
) -> None:
    stems = [stem for stem in lefts if stem in rights]
    if not stems:
        found.problems.append(f"{left} and {right} have no image of the same time")
        return

    def load(stem: str) -> Callable[[], tuple[Image, Image]]:
        return lambda: (read_image(lefts[stem]), read_image(rights[stem]))

    chosen = [stems[index] for index in spread(len(stems), MAX_STEREO_PAIRS)]
    found.stereo.append(StereoSet(left, right, [load(stem) for stem in chosen]))


# -- KITTI


@dataclass(frozen=True, slots=True)
class _Kitti:
    """Image folders by camera frame, the sweeps' folder, and calibrations by the frame's number."""

    images: Mapping[str, Path]
    sweeps: Path | None
    calibs: Path | None


def _kitti_layout(path: Path) -> _Kitti | None:
    images = {
        f"camera_{number}": folder
        for number in range(4)
        for folder in (path / f"image_{number}", path / f"image_0{number}" / "data")
        if folder.is_dir()
    }
    for name, folder in (("camera_0", path / "image_l"), ("camera_1", path / "image_r")):
        if folder.is_dir():
            images[name] = folder
    if not images:
        return None
    sweeps = next((f for f in (path / "velodyne", path / "velodyne_points/data") if f.is_dir()), None)
    calibs = path / "calib" if any((path / "calib").glob("[0-9]*.txt")) else None
    return _Kitti(images, sweeps, calibs)


def _open_kitti(path: Path, layout: _Kitti, given: ImportResult | None) -> Recording:
    calibration = given or import_calibration(path)
    found = Recording(path, "kitti", calibration)
    files = {
        name: {file.stem: file for file in sorted((*folder.glob("*.png"), *folder.glob("*.jpg")))}
        for name, folder in layout.images.items()
    }
    for name, images in files.items():
        if images:
            found.sizes[name] = _size_of(read_image(next(iter(images.values()))))
    if layout.calibs is not None and given is None:
        found.sizes.clear()  # each frame has a calibration, and often an image size, of its own
    for left, right in stereo_pairs_of(calibration.calibration, list(files)):
        if layout.calibs is None or given is not None:
            _add_stereo(found, left, right, files[left], files[right])
        else:
            found.problems.append(
                f"{left}~{right}: every frame has its own calibration; pairs are not pooled"
            )
    sweeps = {file.stem: file for file in sorted(layout.sweeps.glob("*.bin"))} if layout.sweeps else {}
    for name, images in files.items():
        stems = [stem for stem in images if stem in sweeps]
        if not stems:
            continue
        chosen = [stems[index] for index in spread(len(stems), MAX_KEYFRAMES)]
        own = layout.calibs if given is None else None
        shots = [_kitti_shot(images[s], sweeps[s], own, calibration.calibration, name) for s in chosen]
        found.camera_lidar.append(CameraLidarSet(name, _lidar_of(calibration.calibration), shots))
    return found


def _lidar_of(calibration: RigCalibration) -> str:
    if "velodyne" in calibration.frames:
        return "velodyne"
    others = [name for name in calibration.frames if "lidar" in name.lower() or "velo" in name.lower()]
    if len(others) != 1:
        raise CalibrationError(
            f"the calibration has no frame named velodyne for the sweeps; it has: {', '.join(calibration.frames)}"
        )
    return others[0]


def _kitti_shot(
    image_path: Path, sweep_path: Path, calibs: Path | None, shared: RigCalibration, name: str
) -> Callable[[], Shot]:
    def load() -> Shot:
        calibration, lidar = shared, _lidar_of(shared)
        image = read_image(image_path)
        if calibs is not None:
            calibration = import_calibration(
                calibs / f"{image_path.stem}.txt", size=_size_of(image)
            ).calibration
            lidar = "velodyne"
        raw = np.fromfile(sweep_path, "<f4")
        if raw.size % 4:
            raise CalibrationError(f"{sweep_path} is no KITTI sweep: {raw.size} numbers are no rows of four")
        T = calibration.transform(name, lidar)
        return Shot(image, raw.reshape(-1, 4), None, calibration.camera(name), T)

    return load


# -- episodes


def _open_episode(path: Path, given: ImportResult | None) -> Recording:
    if given is None:
        try:
            given = import_calibration(path)
        except CalibrationError as err:
            raise CalibrationError(
                f"episode {path} carries no calibration ({err}); give one with --calibration FILE"
            ) from err
    found = Recording(path, "episode", given)
    with Episode(path) as episode:
        streams = episode.streams
        reference = episode.manifest.reference if episode.manifest is not None else ""
        rows = _matched_rows(episode, reference)
        calibration = given.calibration
        gyro = _read_gyro(episode, calibration)
    by_frame = {info.frame_id: info for info in streams.values() if info.modality is Modality.CAMERA}
    lidars = [info for info in streams.values() if has_role(info, Role.SWEEP)]
    for frame, info in by_frame.items():
        found.sizes[frame] = (info.shape[1], info.shape[0]) if len(info.shape) > 1 else None
    found.sizes |= {info.frame_id: None for info in lidars}
    found.sensors = SensorData(path, list(streams.values()), calibration)
    for left, right in stereo_pairs_of(calibration, list(by_frame)):
        _add_episode_stereo(found, by_frame[left], by_frame[right], rows)
    for camera in by_frame.values():
        is_calibrated = camera.frame_id in calibration.cameras
        if is_calibrated and gyro is not None and calibration.has_transform(camera.frame_id, gyro.frame):
            load = partial(load_turning, path, camera, gyro)
            found.turning.append(TurningSet(camera.frame_id, gyro.frame, load))
        for lidar in lidars:
            known = calibration.has_transform(camera.frame_id, lidar.frame_id)
            if known and camera.frame_id in calibration.cameras:
                _add_episode_lidar(found, camera, lidar, rows, gyro)
    return found


@dataclass(frozen=True, slots=True)
class _Row:
    """A reference tick and for each stream that matched it the sample's number and capture time (host ns)."""

    tick_ns: int
    samples: Mapping[str, tuple[int, int]]


def _matched_rows(episode: Episode, reference: str) -> list[_Row]:
    found = []
    for row in episode.rows():
        matched = {
            match.stream: (match.seq, row.tick_ns + match.residual_ns)
            for match in row.matches
            if match.outcome is Match.MATCHED and match.seq is not None
        }
        found.append(_Row(row.tick_ns, {reference: (row.tick_seq, row.tick_ns)} | matched))
    return found


def _apart_ns(row: _Row, names: tuple[str, str]) -> int:
    (_, first_ns), (_, second_ns) = (row.samples[name] for name in names)
    return abs(first_ns - second_ns)


def _chosen(rows: Sequence[_Row], names: tuple[str, str], wanted: int) -> list[_Row]:
    """Return rows in which both streams matched, spread over the recording: of each stretch the closest pair."""

    both = [row for row in rows if all(name in row.samples for name in names)]
    found: list[_Row] = []
    used: set[tuple[str, int, int]] = set()
    for stretch in np.array_split(np.arange(len(both)), min(wanted, max(len(both), 1))):
        # A slow stream may match several ticks; each of its samples counts once.
        free = [both[k] for k in stretch if not used & {(name, *both[k].samples[name]) for name in names}]
        if free:
            found.append(min(free, key=lambda row: _apart_ns(row, names)))
            used |= {(name, *found[-1].samples[name]) for name in names}
    return found


def _read_gyro(episode: Episode, calibration: RigCalibration) -> Gyro | None:
    """Return the rates of the fastest IMU whose place on the rig is known, or None."""
    info = fastest_gyro(episode.streams.values(), calibration)
    if info is None:
        return None
    frames = ((recorded.frame, recorded.stamped.capture_ns) for recorded in episode.frames({info.name}))
    return Gyro.of(info, frames)


class _Payloads:
    """Chosen samples of two streams, read from the episode in one pass when first asked for."""

    def __init__(self, path: Path, names: tuple[str, str], rows: Sequence[_Row]) -> None:
        self._path, self._names, self._rows = path, names, rows
        self._found: dict[tuple[str, int, int], Sample] | None = None

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

    def _read(self) -> Iterator[tuple[tuple[str, int, int], Sample]]:
        wanted = {name: [row.samples[name] for row in self._rows] for name in self._names}
        with Episode(self._path) as episode:
            for recorded in episode.frames(set(self._names)):
                frame, first_ns = recorded.frame, int(recorded.stamped.capture_ns[0])
                for seq, at_ns in wanted[frame.stream]:
                    # Numbers begin anew with each start of a driver; the time tells the starts apart.
                    if frame.seq <= seq < frame.next_seq and abs(first_ns - at_ns) < SECOND_NS:
                        yield (frame.stream, seq, at_ns), Sample(bytes(frame.payload), first_ns)


def _times(chosen: Sequence[_Row], rows: Sequence[_Row]) -> tuple[float, ...]:
    """Return when the chosen rows were captured, seconds since the first row of the recording."""
    return tuple((row.tick_ns - rows[0].tick_ns) / SECOND_NS for row in chosen)


def _add_episode_stereo(found: Recording, left: StreamInfo, right: StreamInfo, rows: Sequence[_Row]) -> None:
    chosen = _chosen(rows, (left.name, right.name), MAX_STEREO_PAIRS)
    payloads = _Payloads(found.path, (left.name, right.name), chosen)

    def load(index: int) -> Callable[[], tuple[Image, Image]]:
        def images() -> tuple[Image, Image]:
            first, second = payloads.pair(index)
            return decoded_image(left, first.payload), decoded_image(right, second.payload)

        return images

    pairs = [load(index) for index in range(len(chosen))]
    found.stereo.append(StereoSet(left.frame_id, right.frame_id, pairs, _times(chosen, rows)))


def _add_episode_lidar(
    found: Recording, camera: StreamInfo, lidar: StreamInfo, rows: Sequence[_Row], gyro: Gyro | None
) -> None:
    names = (camera.name, lidar.name)
    chosen = _chosen(rows, names, MAX_KEYFRAMES)
    apart_ns = max((_apart_ns(row, names) for row in chosen), default=0)
    payloads = _Payloads(found.path, names, chosen)
    calibration = found.calibration.calibration

    def load(index: int) -> Callable[[], Shot]:
        def shot() -> Shot:
            picture, sweep = payloads.pair(index)
            return take_shot(camera, picture, lidar.frame_id, decoded_cloud(lidar, sweep), calibration, gyro)

        return shot

    shots = [load(index) for index in range(len(chosen))]
    found.camera_lidar.append(
        CameraLidarSet(camera.frame_id, lidar.frame_id, shots, apart_ns, _times(chosen, rows))
    )


def load_turning(path: Path, camera: StreamInfo, gyro: Gyro) -> Turning:
    """Return images of an episode over the twenty seconds in which a gyro felt most turning; none if little."""
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
