"""EuRoC (ASL) folders: cameras as listed image files, IMUs as rows of text.

Layout (Burri et al., "The EuRoC micro aerial vehicle datasets", IJRR 2016): ``mav0/<sensor>/data.csv`` with
a stamp in nanoseconds in the first column, ``sensor.yaml`` beside it, images in ``<sensor>/data/``. The
stamps are the host's and mean mid-exposure (cameras) and the sample (IMU); the arrival was not recorded, so
it equals the stamp.
"""

import heapq
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sensorium.drivers.frame import (
    ClockKind,
    Column,
    DeviceClock,
    Encoding,
    Frame,
    Loss,
    Modality,
    Place,
    StreamInfo,
    stamps,
)
from sensorium.errors import SourceError
from sensorium.sync.episode.files import is_litter
from sensorium.sync.sources.asl_imu import imu_columns
from sensorium.sync.sources.asl_rows import CAMERA_STEPS, IMU_STEPS, RowFile
from sensorium.sync.sources.message_stream import MAX_STAMP_NS, nominal_rate_hz, stream_name
from sensorium.sync.sources.source import RECORDING_HOST, Problem, Source, frame_end_ns

_BLOCK_ROWS = 10
_MAX_IMAGE_BYTES = 256 << 20
_MAX_YAML_BYTES = 1 << 20
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"IEND\xaeB`\x82"
_JPEG_MAGIC, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
_IMU_COLUMNS = (
    *(Column(f"gyro_{axis}", "rad/s", "<f8") for axis in "xyz"),
    *(Column(f"acc_{axis}", "m/s^2", "<f8") for axis in "xyz"),
)
_HOST_CLOCK = DeviceClock(ClockKind.HOST)
_ABSENT = "listed but absent"
_DAMAGED = "image file is damaged"
_BAD_ROW = "unreadable row"


class EurocSource(Source):
    """The cameras and IMUs of one EuRoC folder; other sensors in it (ground truth) are named as a problem.

    Raises:
        SourceError: If no camera or IMU list can be read.
    """

    kind = "EuRoC folder"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        root = path / "mav0" if (path / "mav0").is_dir() else path
        self._sensors: list[_Camera | _Imu] = []
        problems: list[Problem] = []
        try:
            lists = [entry for entry in root.glob("*/data.csv") if entry.is_file()]
            for folder in sorted(entry.parent for entry in lists):
                sensor = _open_sensor(folder, {known.info.name for known in self._sensors})
                if sensor is None:
                    text = f"{folder.name}: not a camera or an IMU; it is not replayed"
                    problems.append(Problem("not_carried", "", 1, text))
                elif sensor.listed == 0:
                    problems.append(sensor.empty_problem())
                else:
                    self._sensors.append(sensor)
                    problems += sensor.problems
        except OSError as err:
            raise SourceError(f"{path}: cannot be read: {err.strerror}") from err
        if not self._sensors:
            raise SourceError(f"{path}: no cam*/data.csv or imu*/data.csv with at least one entry in {root}")
        problems += _twin_problems([sensor for sensor in self._sensors if isinstance(sensor, _Camera)])
        self.streams = tuple(sensor.info for sensor in self._sensors)
        self.problems = tuple(problems)
        self.start_ns = min(sensor.first_ns for sensor in self._sensors)
        self.end_ns = max(sensor.last_ns for sensor in self._sensors)

    def frames(self) -> Iterator[Frame | Loss]:
        try:
            for _, item in heapq.merge(
                *(sensor.items() for sensor in self._sensors), key=lambda pair: pair[0]
            ):
                yield item
        except OSError as err:
            raise SourceError(f"{self.path}: cannot be read: {err.strerror}") from err


def _open_sensor(folder: Path, taken: set[str]) -> "_Camera | _Imu | None":
    description = folder / "sensor.yaml"
    text = ""
    if description.is_file():
        with description.open(encoding="utf-8", errors="replace") as file:
            text = file.read(_MAX_YAML_BYTES)
    kind = re.search(r"^sensor_type:\s*(\w+)", text, re.MULTILINE)
    name = stream_name(folder.name, taken)
    if folder.name.startswith("cam") or (kind and kind[1] == "camera"):
        return _Camera(folder, name, text)
    if folder.name.startswith("imu") or (kind and kind[1] == "imu"):
        return _Imu(folder, name, text)
    return None


def _image_sizes(folder: Path) -> dict[str, int]:
    """Return the sizes of the files in a folder of images by name; what is larger than any image is not there."""
    files = ((entry.name, entry.stat().st_size) for entry in folder.glob("*") if entry.is_file())
    return {name: size for name, size in files if size <= _MAX_IMAGE_BYTES}


def _image_name(listed: str, sizes: dict[str, int]) -> str | None:
    """Return the file that a list means; some write the folder before its name."""
    name = listed.replace("\\", "/").rpartition("/")[2]
    return name if name in sizes else None


def _unlisted(name: str, files: set[str]) -> list[Problem]:
    """Return that images lie in a camera's folder which its list does not name."""
    images = sorted(
        file for file in files if file.lower().endswith((".png", ".jpg", ".jpeg")) and not is_litter(file)
    )
    if not images:
        return []
    text = f"{name}: {len(images)} images in data/ are not listed in data.csv and are left out, {images[0]} the first"
    return [Problem("unlisted_file", name, len(images), text)]


def _details(folder: Path, text: str) -> dict[str, str]:
    return {"source": folder.name, "sensor_yaml": text} if text else {"source": folder.name}


def _rate_hz(text: str, stamps_ns: list[int]) -> float:
    stated = re.search(r"^rate_hz:\s*([0-9.]+)\s*$", text, re.MULTILINE)
    return float(stated[1]) if stated and stated[1].count(".") <= 1 else nominal_rate_hz(stamps_ns)


class _Camera:
    """One camera: a list of image files, of which some may be absent."""

    def __init__(self, folder: Path, name: str, text: str) -> None:
        self._folder = folder
        self.stamps_ns: list[int] = []
        file = RowFile(folder / "data.csv", CAMERA_STEPS)
        rows = list(file.rows(cells=1))
        sizes = _image_sizes(folder / "data")
        self._entries = [
            (row.stamp_ns, _image_name(row.cells[0], sizes) if row.stamp_ns is not None else None)
            for row in rows
        ]
        self.stamps_ns = [stamp_ns for stamp_ns, _ in self._entries if stamp_ns is not None]
        self.listed = len(rows)
        self.first_ns = min(self.stamps_ns, default=0)
        self.last_ns = max(self.stamps_ns, default=0)
        present = [file for _, file in self._entries if file is not None]
        resolution = re.search(r"^resolution:\s*\[\s*(\d+)\s*,\s*(\d+)\s*\]", text, re.MULTILINE)
        is_jpeg = bool(present) and self._read(present[0]).startswith(_JPEG_MAGIC)
        self.info = StreamInfo(
            name=name,
            modality=Modality.CAMERA,
            encoding=Encoding.JPEG if is_jpeg else Encoding.PNG,
            rate_hz=_rate_hz(text, self.stamps_ns),
            frame_id=name,
            clock=_HOST_CLOCK,
            stamp_of="exposure_mid",
            shape=(int(resolution[2]), int(resolution[1])) if resolution else (),
            units="px",
            host_id=RECORDING_HOST,
            is_personal=True,
            max_payload_bytes=max((sizes[file] for file in present), default=1) or 1,
            details=_details(folder, text),
        )
        self.problems = self._find_problems(len(present), file.unit_words)
        self.problems += _unlisted(name, set(sizes) - set(present))

    def empty_problem(self) -> Problem:
        return Problem("empty_stream", self.info.name, 0, f"{self.info.name} lists nothing")

    def _find_problems(self, present: int, unit_words: str) -> list[Problem]:
        name = self.info.name
        unreadable = self.listed - len(self.stamps_ns)
        absent = len(self.stamps_ns) - present
        damaged = sum(1 for _, file in self._entries if file is not None and not self._is_sound(file))
        found = []
        if unit_words:
            found.append(Problem("wrong_unit", name, self.listed, f"{name}: {unit_words}"))
        if absent:
            text = f"{name}: {absent} of {self.listed} listed images are absent"
            found.append(Problem("absent_image", name, absent, text))
        if damaged:
            found.append(
                Problem("bad_image", name, damaged, f"{name}: {damaged} image files are damaged or cut")
            )
        if unreadable:
            found.append(
                Problem("bad_row", name, unreadable, f"{name}: {unreadable} rows of data.csv cannot be read")
            )
        return found

    def items(self) -> Iterator[tuple[int, Frame | Loss]]:
        """Yield (time, item): images in the order of the list, and what is missing before the next one."""
        lost: dict[str, int] = {}
        last_ns = self.first_ns
        for seq, (stamp_ns, file) in enumerate(self._entries):
            last_ns = last_ns if stamp_ns is None else stamp_ns
            payload = self._read(file) if file is not None else b""
            if stamp_ns is None or not self._is_whole(payload):
                reason = _BAD_ROW if stamp_ns is None else _ABSENT if file is None else _DAMAGED
                lost[reason] = lost.get(reason, 0) + 1
                continue
            yield from ((stamp_ns, loss) for loss in self._losses(lost))
            lost = {}
            yield stamp_ns, Frame(self.info.name, seq, 1, stamps(stamp_ns), stamps(stamp_ns), payload)
        yield from ((last_ns, loss) for loss in self._losses(lost))

    def _losses(self, lost: dict[str, int]) -> list[Loss]:
        return [Loss(self.info.name, count, Place.SOURCE, reason) for reason, count in lost.items()]

    def _read(self, file: str) -> bytes:
        with (self._folder / "data" / file).open("rb") as image:
            return image.read(_MAX_IMAGE_BYTES)

    def _is_sound(self, file: str) -> bool:
        with (self._folder / "data" / file).open("rb") as image:
            head = image.read(len(_PNG_MAGIC))
            size = image.seek(0, 2)
            image.seek(max(0, size - len(_PNG_END)))
            return self._is_whole(head + image.read())

    def _is_whole(self, payload: bytes) -> bool:
        """Return whether an image has its beginning and its end; a cut one would fail in every viewer."""
        if self.info.encoding == Encoding.JPEG:
            return payload.startswith(_JPEG_MAGIC) and payload.endswith(_JPEG_END)
        return payload.startswith(_PNG_MAGIC) and payload.endswith(_PNG_END)


class _Imu:
    """One IMU: rows of gyroscope (rad/s) and accelerometer (m/s^2) values, published in blocks."""

    def __init__(self, folder: Path, name: str, text: str) -> None:
        self._file = RowFile(folder / "data.csv", IMU_STEPS)
        self._columns = imu_columns(self._file.headings)
        self._name = name
        self._first_bad = ""
        self.listed = unreadable = 0
        self.first_ns, self.last_ns = MAX_STAMP_NS, 0
        head_ns: list[int] = []
        for row in self._rows():
            self.listed += 1
            if row is None:
                unreadable += 1
                continue
            self.first_ns, self.last_ns = min(self.first_ns, row[0]), max(self.last_ns, row[0])
            if len(head_ns) < 1000:
                head_ns.append(row[0])
        rate_hz = _rate_hz(text, head_ns)
        self.info = StreamInfo(
            name=name,
            modality=Modality.IMU,
            encoding=Encoding.COLUMNS,
            rate_hz=rate_hz,
            frame_rate_hz=rate_hz / _BLOCK_ROWS,
            frame_id=name,
            clock=_HOST_CLOCK,
            stamp_of="sample",
            host_id=RECORDING_HOST,
            columns=_IMU_COLUMNS,
            is_sampled=True,
            max_payload_bytes=_BLOCK_ROWS * 8 * len(_IMU_COLUMNS),
            details=_details(folder, text),
        )
        self.problems: list[Problem] = []
        if self._file.unit_words:
            self.problems.append(Problem("wrong_unit", name, self.listed, f"{name}: {self._file.unit_words}"))
        if self._columns.words:
            problem = Problem("wrong_unit", name, self.listed, f"{name}: {self._columns.words}")
            self.problems.append(problem)
        if unreadable:
            sentence = f"{name}: {unreadable} of {self.listed} rows of data.csv cannot be read"
            self.problems.append(Problem("bad_row", name, unreadable, sentence))
        if unreadable == self.listed:
            self.listed = 0

    def empty_problem(self) -> Problem:
        text = f"{self._name} lists nothing"
        if self._first_bad:
            text = f"{self._name}: no row of data.csv is a stamp and {len(_IMU_COLUMNS)} numbers; the first: "
            text += repr(self._first_bad)
        return Problem("empty_stream", self._name, 0, text)

    def _rows(self) -> Iterator[tuple[int, list[float]] | None]:
        for row in self._file.rows(cells=len(_IMU_COLUMNS)):
            try:
                numbers = [float(cell) for cell in row.cells]
            except ValueError:
                numbers = None
            if row.stamp_ns is None or numbers is None:
                self._first_bad = self._first_bad or " ".join(row.cells)[:60]
                yield None
            else:
                yield row.stamp_ns, self._columns.values(numbers)

    def items(self) -> Iterator[tuple[int, Frame | Loss]]:
        """Yield (time, item): blocks of rows that follow one another, a loss where a row is unreadable."""
        block: list[tuple[int, list[float]]] = []
        seq, last_ns = 0, self.first_ns
        for row in self._rows():
            if row is not None:
                block.append(row)
            if block and (row is None or len(block) == _BLOCK_ROWS):
                frame = self._frame(seq, block)
                last_ns = frame_end_ns(frame)
                yield last_ns, frame
                seq = frame.next_seq
                block = []
            if row is None:
                yield last_ns, Loss(self._name, 1, Place.SOURCE, _BAD_ROW)
                seq += 1
        if block:
            frame = self._frame(seq, block)
            yield frame_end_ns(frame), frame

    def _frame(self, seq: int, block: list[tuple[int, list[float]]]) -> Frame:
        when_ns = stamps(*(stamp_ns for stamp_ns, _ in block))
        values = np.asarray([row for _, row in block], "<f8")
        return Frame(self._name, seq, len(block), when_ns, when_ns, np.ascontiguousarray(values.T).tobytes())


def _twin_problems(cameras: list[_Camera]) -> Iterator[Problem]:
    """Yield the images of other cameras whose stamp the first camera does not list, and the reverse."""
    if len(cameras) < 2:
        return
    left = cameras[0]
    left_ns = set(left.stamps_ns)
    for right in cameras[1:]:
        right_ns = set(right.stamps_ns)
        for one, other, alone in (
            (right, left, len(right_ns - left_ns)),
            (left, right, len(left_ns - right_ns)),
        ):
            if alone:
                name = one.info.name
                text = f"{name}: {alone} listed images have no twin of the same stamp in {other.info.name}"
                yield Problem("no_twin", name, alone, text)
