"""What a recording holds for calibration checks: the checks it allows, and images and sweeps where they ask for them.

Images and sweeps are loaded one at a time, when a check asks for them. Who opens a recording:
:mod:`sensorium.agent.calibrating.opening`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sensorium.agent.calibrating.sensors import SensorData
from sensorium.agent.calibrating.shots import Image, Shot
from sensorium.agent.calibrating.tasks import CheckTask
from sensorium.agent.session.check_kinds import check_kind
from sensorium.calibration.formats.detect import ImportResult
from sensorium.calibration.geometry import Array
from sensorium.errors import CalibrationError, UsageError

MAX_STEREO_PAIRS = 12
MAX_KEYFRAMES = 12


@dataclass(frozen=True, slots=True)
class StereoSet:
    """Image pairs of two cameras, in order of time; each entry loads one pair when called.

    Attributes:
        times_s: When each was taken, since the start of the recording; empty when unknown.
        turning: Of each pair the angular rate in the right camera's axes (rad/s) and how much later (s) the right image
            was taken; empty without a gyro.
    """

    left: str
    right: str
    pairs: Sequence[Callable[[], tuple[Image, Image]]]
    times_s: tuple[float, ...] = ()
    turning: tuple[tuple[Array, float], ...] = ()

    @property
    def task(self) -> CheckTask:
        """The check that it is for."""
        return CheckTask(check_kind("stereo"), (self.left, self.right))


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

    @property
    def task(self) -> CheckTask:
        """The check that it is for."""
        return CheckTask(check_kind("camera_lidar"), (self.camera, self.lidar))


@dataclass(frozen=True, slots=True, eq=False)
class Turning:
    """Images of a moving camera about 0.1 s apart, and the gyro beside them; times in seconds of one clock.

    Attributes:
        offset_s: What the calibration says must be added to the images' stamps, where nobody has added it yet.
    """

    images: Sequence[Image]
    image_s: Array
    gyro_s: Array
    gyro_rad_s: Array
    offset_s: float = 0.0


class Material:
    """What judges can ask of a recording. This one holds nothing; each kind of recording says what it holds.

    Every method raises ``CalibrationError`` where the recording holds no such thing, or it does not decode.
    """

    def stereo(self, task: CheckTask) -> StereoSet:
        """Return the image pairs of two cameras.

        Raises:
            CalibrationError: If the recording holds none, or they do not decode.
        """
        raise _lacking("image pairs", task)

    def camera_lidar(self, task: CheckTask) -> CameraLidarSet:
        """Return images with the sweeps of their time.

        Raises:
            CalibrationError: If the recording holds none, or they do not decode.
        """
        raise _lacking("images with sweeps", task)

    def turning(self, task: CheckTask) -> Turning:
        """Return images and the gyro beside them, over the time in which the rig turned most; none if little.

        Raises:
            CalibrationError: If the recording holds none, or they do not decode.
        """
        raise _lacking("images with a gyro", task)

    @property
    def sensors(self) -> SensorData:
        """The sensors without images.

        Raises:
            CalibrationError: If the recording holds none.
        """
        raise CalibrationError("the recording holds no sensors beside images and sweeps")


class PreparedMaterial(Material):
    """Image pairs, and images with sweeps, that are known beforehand: of folders."""

    def __init__(self, stereo: Sequence[StereoSet] = (), camera_lidar: Sequence[CameraLidarSet] = ()) -> None:
        self._stereo = {each.task.frames: each for each in stereo}
        self._camera_lidar = {each.task.frames: each for each in camera_lidar}

    @property
    def tasks(self) -> list[CheckTask]:
        """The checks that it allows."""
        stereo = [each.task for each in self._stereo.values()]
        return stereo + [each.task for each in self._camera_lidar.values()]

    @property
    def stereo_sets(self) -> list[StereoSet]:
        return list(self._stereo.values())

    @property
    def camera_lidar_sets(self) -> list[CameraLidarSet]:
        return list(self._camera_lidar.values())

    def stereo(self, task: CheckTask) -> StereoSet:
        found = self._stereo.get(task.frames)
        return found if found is not None else super().stereo(task)

    def camera_lidar(self, task: CheckTask) -> CameraLidarSet:
        found = self._camera_lidar.get(task.frames)
        return found if found is not None else super().camera_lidar(task)


def _lacking(what: str, task: CheckTask) -> CalibrationError:
    return CalibrationError(f"the recording holds no {what} of {task.subject}")


@dataclass(slots=True)
class Recording:
    """A recording as calibration checks see it.

    Attributes:
        kind: ``episode``, ``euroc``, ``kitti``, ``nuscenes`` or ``document`` (a calibration alone).
        tasks: The checks to make.
        sizes: Image size of each camera, None for other sensors; by frame.
        problems: Why something could not be taken into account.
    """

    path: Path
    kind: str
    calibration: ImportResult
    material: Material = field(default_factory=Material)
    tasks: list[CheckTask] = field(default_factory=list)
    sizes: dict[str, tuple[int, int] | None] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def choose(self, subjects: Sequence[str]) -> None:
        """Keep only the checks of these pairs (``a~b``, or a sensor alone); all if none is named.

        Raises:
            UsageError: If there is no such pair.
        """
        known = list(dict.fromkeys(task.subject for task in self.tasks))
        for subject in subjects:
            if subject not in known:
                raise UsageError(f"{self.path} has no pair {subject}; it has: {', '.join(known) or 'none'}")
        if subjects:
            self.tasks = [task for task in self.tasks if task.subject in subjects]
            self.problems = []


def spread(count: int, wanted: int) -> list[int]:
    """Return at most ``wanted`` indices below ``count``, evenly spread from the first to the last."""
    if count <= wanted:
        return list(range(count))
    return [int(index) for index in np.linspace(0, count - 1, wanted)]
