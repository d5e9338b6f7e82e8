"""What a recording shows of a board: moments, each with images of every camera and the sweeps of that time.

Reads episodes, EuRoC folders, ROS bags and MCAP files, and folders of images. In video every image comes with one
before and one after it, so that a moving board can be told.
"""

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sensorium.agent.calibrating.image_files import read_image
from sensorium.agent.calibrating.shots import Sample, decoded_cloud, decoded_image
from sensorium.calibration.folder_files import files_in
from sensorium.drivers.frame import Frame, Modality, StreamInfo
from sensorium.drivers.roles import Role, has_role
from sensorium.errors import CalibrationError
from sensorium.sync.episode.reader import Episode
from sensorium.sync.sources.opening import open_source
from sensorium.timebase import SECOND_NS

Image = NDArray[np.uint8]
Points = NDArray[np.floating]
STEP_S = 0.25
"""One moment of video per so many seconds."""

STILL_S = 0.15
"""The board must be still for so long before and after: half a sweep of a LiDAR, and half the time between two."""

_WAIT_NS = SECOND_NS // 2
_KEEP_NS = 2 * SECOND_NS
_PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".pgm")
_NUMBERED = re.compile(r"(.*?)[-_ ]?(\d+)")


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """An image; in video also one just before and one just after it: time from it (s), and what loads it."""

    image: Image
    beside: tuple[tuple[float, Callable[[], Image]], ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Moment:
    """What the sensors saw at about one time; by frame id.

    Attributes:
        label: The time since the start in seconds, or the number of the images.
        sweeps: Each gives (N, 3 or more) points, m, in the LiDAR's frame, when called.
    """

    label: str
    images: Mapping[str, Shown]
    sweeps: Mapping[str, Callable[[], Points]] = field(default_factory=dict)


def moments(path: Path, kind: str) -> Iterator[Moment]:
    """Yield the moments of a recording.

    Raises:
        SensoriumError: If it cannot be read.
    """
    return _of_images(path) if kind == "images" else _of_video(path, kind)


# -- video


@dataclass(frozen=True, slots=True)
class _Taken:
    at_ns: int
    payload: bytes


def _frames(path: Path, kind: str) -> Iterator[tuple[StreamInfo, _Taken]]:
    """Yield every frame of cameras and LiDARs with the time of its middle, in order of arrival."""
    if kind == "episode":
        with Episode(path) as episode:
            chosen = {name for name, info in episode.streams.items() if _is_wanted(info)}
            for recorded in episode.frames(chosen):
                capture_ns = recorded.stamped.capture_ns
                middle_ns = (int(capture_ns[0]) + int(capture_ns[-1])) // 2
                yield (
                    episode.streams[recorded.frame.stream],
                    _Taken(middle_ns, bytes(recorded.frame.payload)),
                )
        return
    with open_source(path) as source:
        infos = {info.name: info for info in source.streams if _is_wanted(info)}
        for frame in source.frames():
            info = infos.get(frame.stream)
            if info is not None and isinstance(frame, Frame):
                middle_ns = (int(frame.arrival_ns[0]) + int(frame.arrival_ns[-1])) // 2
                yield info, _Taken(middle_ns, bytes(frame.payload))


def _is_wanted(info: StreamInfo) -> bool:
    return info.modality is Modality.CAMERA or _is_cloud(info)


def _is_cloud(info: StreamInfo) -> bool:
    return has_role(info, Role.CLOUD) and not info.reference_of


def _of_video(path: Path, kind: str) -> Iterator[Moment]:
    """Yield a moment every ``STEP_S``: of each stream the frame closest to it."""
    kept: dict[str, deque[_Taken]] = {}
    infos: dict[str, StreamInfo] = {}
    start_ns = next_ns = newest_ns = None
    for info, taken in _frames(path, kind):
        if start_ns is None or next_ns is None:
            start_ns = next_ns = taken.at_ns
        infos[info.name] = info
        queue = kept.setdefault(info.name, deque())
        queue.append(taken)
        while queue[0].at_ns < taken.at_ns - _KEEP_NS:
            queue.popleft()
        newest_ns = max(newest_ns or taken.at_ns, taken.at_ns)
        while newest_ns >= next_ns + _WAIT_NS:
            yield _moment(infos, kept, next_ns, start_ns)
            next_ns += int(STEP_S * SECOND_NS)
    if start_ns is not None and next_ns is not None and newest_ns is not None:
        while next_ns <= newest_ns:
            yield _moment(infos, kept, next_ns, start_ns)
            next_ns += int(STEP_S * SECOND_NS)


def _moment(
    infos: Mapping[str, StreamInfo], kept: Mapping[str, Iterable[_Taken]], at_ns: int, start_ns: int
) -> Moment:
    images, sweeps = {}, {}
    for name, info in infos.items():
        frames = list(kept[name])
        nearest = min(range(len(frames)), key=lambda k: abs(frames[k].at_ns - at_ns))
        taken = frames[nearest]
        if abs(taken.at_ns - at_ns) > STEP_S * SECOND_NS:
            continue
        if _is_cloud(info):
            sweeps[info.frame_id] = partial(_points, info, taken)
            continue
        beside = [_near(frames, nearest, step) for step in (-1, 1)]
        images[info.frame_id] = Shown(
            decoded_image(info, taken.payload),
            tuple(
                ((other.at_ns - taken.at_ns) / SECOND_NS, partial(decoded_image, info, other.payload))
                for other in beside
                if other is not None
            ),
        )
    return Moment(f"{(at_ns - start_ns) / SECOND_NS:.1f} s", images, sweeps)


def _near(frames: list[_Taken], index: int, step: int) -> _Taken | None:
    """Return the first frame at least ``STILL_S`` before (step -1) or after (step 1) another."""
    other = index + step
    while 0 <= other < len(frames):
        if abs(frames[other].at_ns - frames[index].at_ns) >= STILL_S * SECOND_NS:
            return frames[other]
        other += step
    return None


def _points(info: StreamInfo, taken: _Taken) -> Points:
    return decoded_cloud(info, Sample(taken.payload, taken.at_ns)).points


# -- folders of images


def image_folders(path: Path) -> dict[str, dict[str, Path]]:
    """Return by camera its image files by number.

    A camera is a sub-folder with images (or with ``data`` of such), or a common beginning of the names in one
    folder: ``left01.jpg``, ``right01.jpg``.
    """
    found: dict[str, dict[str, Path]] = {}
    for folder in [each for each in files_in(path, "*") if each.is_dir()]:
        inner = folder / "data" if (folder / "data").is_dir() else folder
        files = _pictures(inner)
        if files:
            found[folder.name] = {_number(file): file for file in files}
    if not found:
        for file in _pictures(path):
            match = _NUMBERED.fullmatch(file.stem)
            if match is not None:
                found.setdefault(match[1] or "camera", {})[match[2]] = file
    return found


def _pictures(folder: Path) -> list[Path]:
    return [file for file in files_in(folder, "*") if file.suffix.lower() in _PICTURES and file.is_file()]


def _number(file: Path) -> str:
    match = _NUMBERED.fullmatch(file.stem)
    return match[2] if match is not None else file.stem


def _sweep_folders(path: Path) -> dict[str, dict[str, Path]]:
    found = {}
    for folder in [each for each in files_in(path, "*") if each.is_dir()]:
        inner = folder / "data" if (folder / "data").is_dir() else folder
        files = files_in(inner, "*.bin")
        if files:
            found[folder.name] = {_number(file): file for file in files}
    return found


def _of_images(path: Path) -> Iterator[Moment]:
    if not path.is_dir():
        raise CalibrationError(f"{path} is no recording that is known, and no folder of images")
    cameras, lidars = image_folders(path), _sweep_folders(path)
    if not cameras:
        raise CalibrationError(
            f"{path} holds no images: expected a folder per camera, or numbered names such as left01.png"
        )
    for number in sorted({number for files in cameras.values() for number in files}):
        images = {}
        for name, files in cameras.items():
            if number not in files:
                continue
            images[name] = Shown(read_image(files[number]))
        sweeps = {
            name: partial(_sweep_of, files[number]) for name, files in lidars.items() if number in files
        }
        yield Moment(number, images, sweeps)


def _sweep_of(path: Path) -> Points:
    raw = np.fromfile(path, "<f4")
    if raw.size % 4:
        raise CalibrationError(
            f"{path} is no sweep of x y z intensity: {raw.size} numbers are no rows of four"
        )
    return raw.reshape(-1, 4)
