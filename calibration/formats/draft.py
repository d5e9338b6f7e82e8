"""What all readers share: a file's numbers become our types, its oddities become findings."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import ArrayLike

from sensorium.bounded_yaml import BoundedLoader
from sensorium.calibration.edges import Edge
from sensorium.calibration.geometry import Array, Intrinsics, nearest_rotation, transform
from sensorium.calibration.rig_document import RigCalibration
from sensorium.calibration.sensor_models import ImuModel, Vector
from sensorium.errors import CalibrationError
from sensorium.verdict import Quantity, Status, Verdict

# Published calibrations carry 6-7 digits; beyond this the matrix was edited, rounded or is no rotation.
ROUGH_ROTATION = 1e-4
BROKEN_ROTATION = 0.02
MAX_SKEW_PX = 0.5

_COMMON_SIZES = (
    (320, 240),
    (640, 480),
    (640, 512),
    (752, 480),
    (800, 600),
    (848, 480),
    (1024, 768),
    (1226, 370),
    (1242, 375),
    (1280, 720),
    (1280, 800),
    (1280, 960),
    (1280, 1024),
    (1440, 1080),
    (1600, 1200),
    (1920, 1080),
    (1920, 1200),
    (2048, 1536),
    (2592, 1944),
    (3840, 2160),
)

_MODELS = {
    "": "radtan",
    "pinhole": "pinhole",
    "none": "pinhole",
    "radtan": "radtan",
    "radial-tangential": "radtan",
    "plumb_bob": "radtan",
    "brown": "radtan",
    "rational": "rational",
    "rational_polynomial": "rational",
    "equidistant": "equidistant",
    "kannala_brandt": "equidistant",
    "kannala_brandt4": "equidistant",
    "fisheye": "equidistant",
    "radialtangential": "radtan",
    "radialtangential8": "rational",
}


_IMU_NOISE = (
    "gyroscope_noise_density",
    "gyroscope_random_walk",
    "accelerometer_noise_density",
    "accelerometer_random_walk",
)


class Draft:
    """A calibration while a file is being read.

    Args:
        path: The file, named in errors.
        findings: Where oddities go; None drops them.
    """

    def __init__(self, path: Path | str, findings: list[Verdict] | None = None) -> None:
        self.path = Path(path)
        self.cameras: dict[str, Intrinsics] = {}
        self.edges: list[Edge] = []
        self.imus: dict[str, ImuModel] = {}
        self.findings = findings if findings is not None else []

    def note(
        self, check: str, subject: str, status: Status, sentence: str, quantities: tuple[Quantity, ...] = ()
    ) -> None:
        """Add a finding: what was found and what to do."""
        self.findings.append(Verdict(check, subject, status, quantities, (sentence,)))

    def error(self, sentence: str) -> CalibrationError:
        return CalibrationError(f"calibration file {self.path}: {sentence}")

    def numbers(self, values: Any, count: int, what: str) -> Array:
        """Return ``count`` finite numbers, flat.

        Raises:
            CalibrationError: If there are others.
        """
        try:
            array = np.asarray(values, np.float64).reshape(-1)
        except (TypeError, ValueError) as err:
            raise self.error(f"{what} needs {count} numbers, found {str(values)[:60]}") from err
        if array.size != count or not np.all(np.isfinite(array)):
            raise self.error(f"{what} needs {count} finite numbers, found {array.size}: {str(values)[:60]}")
        return array

    def rotation(self, values: Any, subject: str) -> Array:
        """Return the 3x3 rotation nearest to nine numbers, with a finding if they are not one.

        Raises:
            CalibrationError: If they are not nine finite numbers.
        """
        matrix = self.numbers(values, 9, f"rotation of {subject}").reshape(3, 3)
        determinant = float(np.linalg.det(matrix))
        nearest = nearest_rotation(matrix)
        gap = float(np.abs(matrix - nearest).max())
        if gap <= ROUGH_ROTATION:
            return nearest
        status = Status.FAILED if gap > BROKEN_ROTATION else Status.SUSPECT
        if determinant < 0:
            what = "a mirror, not a rotation; an axis was flipped or two columns swapped: correct the source"
        elif status is Status.FAILED:
            what = "no rotation; rows are damaged or scaled: correct the source"
        else:
            what = "not quite a rotation; the nearest one was taken: export it with more digits"
        sentence = f"the 3x3 block (determinant {determinant:.4f}, off by {gap:.2g}) is {what}"
        self.note(
            "rotation",
            subject,
            status,
            sentence,
            (Quantity("determinant", determinant, "1", ROUGH_ROTATION),),
        )
        return nearest

    def rigid(self, values: Any, subject: str) -> Array:
        """Return the 4x4 transform of sixteen or twelve numbers in rows.

        Raises:
            CalibrationError: If they are not as many finite numbers, or the last row is not 0 0 0 1.
        """
        flat = np.asarray(values, dtype=object).reshape(-1)
        matrix = self.numbers(values, 12 if flat.size == 12 else 16, f"transform {subject}").reshape(-1, 4)
        if len(matrix) == 4 and not np.allclose(matrix[3], (0, 0, 0, 1), atol=1e-9):
            raise self.error(f"transform {subject}: the last row must be 0 0 0 1, found {matrix[3].tolist()}")
        return transform(self.rotation(matrix[:3, :3], subject), matrix[:3, 3])

    def add_edge(self, parent: str, child: str, T_parent_child: Array, **fields: Any) -> None:
        """Add a transform; one that repeats an earlier one is compared with it instead."""
        for known in self.edges:
            if {known.parent, known.child} == {parent, child}:
                self._compare(known, parent, T_parent_child)
                return
        self.edges.append(Edge(parent, child, T_parent_child, **fields))

    def _compare(self, known: Edge, parent: str, T_parent_child: Array) -> None:
        known_T = known.T_parent_child if known.parent == parent else np.linalg.inv(known.T_parent_child)
        gap = float(np.abs(known_T - T_parent_child).max())
        if gap > ROUGH_ROTATION:
            self.note(
                "repeated_transform",
                f"{known.parent}~{known.child}",
                Status.FAILED,
                f"this transform is given twice and differs by up to {gap:.3g}; keep the right one",
            )

    def add_camera(
        self,
        name: str,
        model: str,
        matrix: ArrayLike,
        size: tuple[int, int] | None,
        coefficients: Sequence[float],
        board_rms_px: float | None = None,
    ) -> None:
        """Add a camera.

        Args:
            model: In any of the usual spellings.
            matrix: Nine numbers of K.
            size: Width and height, px; None guesses it from the principal point and says so.

        Raises:
            CalibrationError: If the model is unknown or K is no camera matrix.
        """
        K = self.numbers(matrix, 9, f"camera matrix of {name}").reshape(3, 3)
        if abs(K[2, 2] - 1.0) > 1e-6 or np.abs(K[[1, 2, 2], [0, 0, 1]]).max() > 1e-6:
            raise self.error(
                f"camera matrix of {name} is not upper triangular with 1 at its end: {K.tolist()}"
            )
        if abs(K[0, 1]) > MAX_SKEW_PX:
            self.note(
                "skew",
                name,
                Status.SUSPECT,
                f"the camera matrix has a skew of {K[0, 1]:.2f} px, which was dropped; "
                "today's sensors have none: look for a transposed or damaged matrix",
                (Quantity("skew", float(K[0, 1]), "px", MAX_SKEW_PX),),
            )
        known_model, distortion = self._distortion(name, model, tuple(float(value) for value in coefficients))
        focal = (K[0, 0], K[1, 1], K[0, 2], K[1, 2])
        self.add_lens(name, known_model, size, focal, distortion, board_rms_px)

    def add_lens(
        self,
        name: str,
        model: str,
        size: tuple[int, int] | None,
        focal: Sequence[float],
        coefficients: Sequence[float],
        board_rms_px: float | None = None,
    ) -> None:
        """Add a camera whose model is one of ours.

        Args:
            size: As in :meth:`add_camera`.
            focal: fx, fy, cx, cy.

        Raises:
            CalibrationError: If the numbers make no camera.
        """
        fx, fy, cx, cy = (float(value) for value in focal)
        width, height = size or self._guess_size(name, cx, cy)
        distortion = tuple(float(value) for value in coefficients)
        try:
            camera = Intrinsics(model, width, height, fx, fy, cx, cy, distortion, board_rms_px)
        except CalibrationError as err:
            raise self.error(f"camera {name}: {err}") from err
        known = self.cameras.setdefault(name, camera)
        if known != camera:
            self.note(
                "repeated_camera",
                name,
                Status.FAILED,
                f"{self.path.name} gives a second camera of this name with other numbers; the first was taken: give "
                "each its own name",
            )

    def _guess_size(self, name: str, cx: float, cy: float) -> tuple[int, int]:
        guess = (max(round(2 * cx + 1), 1), max(round(2 * cy + 1), 1))
        near = min(_COMMON_SIZES, key=lambda size: abs(size[0] / guess[0] - 1) + abs(size[1] / guess[1] - 1))
        if all(abs(near[axis] / guess[axis] - 1) < 0.1 for axis in (0, 1)):
            guess = near
        self.note(
            "image_size",
            name,
            Status.INSUFFICIENT,
            f"the file does not say for which image size it holds; {guess[0]}x{guess[1]} was assumed "
            "from the principal point: give the size (--size WIDTHxHEIGHT)",
        )
        return guess

    def _distortion(self, name: str, model: str, values: tuple[float, ...]) -> tuple[str, tuple[float, ...]]:
        known = _MODELS.get(model.strip().lower())
        if known is None:
            names = ", ".join(sorted(spelling for spelling in _MODELS if spelling))
            raise self.error(
                f"camera {name} has distortion model {model!r}, which is not read; known: {names}"
            )
        if known == "radtan" and len(values) > 5 and not any(values[5:]):
            values = values[:5]
        if known == "rational" and len(values) in (12, 14) and not any(values[8:]):
            values = values[:8]
        if known in ("radtan", "pinhole") and not any(values):
            return "pinhole", ()
        if len(values) in Intrinsics.MODELS[known]:
            return known, values
        fitting = [other for other in ("radtan", "rational") if len(values) in Intrinsics.MODELS[other]]
        if not fitting and known == "rational" and len(values) < 8:
            fitting = ["rational"]
        taken = fitting[0] if fitting and known != "equidistant" else known
        count = max(Intrinsics.MODELS[taken])
        expected = " or ".join(str(count) for count in Intrinsics.MODELS[known])
        if model:
            sentence = (
                f"distortion model {model!r} takes {expected} coefficients, found {len(values)}; "
                f"read as {taken} with {count}: correct the model or the coefficients"
            )
            self.note("distortion_count", name, Status.FAILED, sentence)
        elif len(values) != count:
            sentence = (
                f"{len(values)} distortion coefficients (thin prism or tilt) go beyond {taken}; the first "
                f"{count} were taken: calibrate again without the extra terms"
            )
            self.note("distortion_count", name, Status.FAILED, sentence)
        return taken, (*values, *(0.0,) * count)[:count]

    def add_imu_noise(self, name: str, fields: Any, source: str) -> None:
        """Take what a file says of an IMU's noise, in the words of Kalibr and EuRoC.

        Raises:
            CalibrationError: If a density or random walk is no positive number.
        """
        values = {f"{name}.{key}": fields.get(key) for key in _IMU_NOISE}
        gyro, gyro_walk, acc, acc_walk = (
            (key, None if value is None else float(self.numbers([value], 1, key)[0]))
            for key, value in values.items()
        )
        self.add_noises(name, dict((gyro, acc, gyro_walk, acc_walk)), source)

    def add_noises(
        self,
        name: str,
        known: Mapping[str, float | None],
        source: str,
        biases: tuple[Vector | None, Vector | None] = (None, None),
    ) -> None:
        """Take the noise of gyro and accelerometer, then their random walks: four values by their keys in the file.

        Every reader comes through here, so that none takes a density that no sensor can have.

        Args:
            biases: Of gyro (rad/s) and accelerometer (m/s^2).

        Raises:
            CalibrationError: If one is not positive.
        """
        for key, value in known.items():
            if value is not None and not value > 0:
                raise self.error(f"{key} must be positive, found {value:g}")
        if any(value is not None for value in (*known.values(), *biases)):
            gyro, acc, gyro_walk, acc_walk = known.values()
            self.imus[name] = ImuModel(*biases, gyro, acc, gyro_walk, acc_walk, source)

    def finish(self, rig: str = "", date: str = "", source: str = "") -> RigCalibration:
        """Return the calibration.

        Raises:
            CalibrationError: If the file held none.
        """
        if not self.cameras and not self.edges and not self.imus:
            raise self.error("no camera and no transform found in it")
        return RigCalibration(
            rig, date, source or self.path.name, dict(self.cameras), tuple(self.edges), imus=dict(self.imus)
        )


def read_text(path: Path) -> str:
    """Return the text of a small file.

    Raises:
        CalibrationError: If it cannot be read, is not text, or is too large for a calibration.
    """
    try:
        if path.stat().st_size > 16_000_000:
            raise CalibrationError(
                f"calibration file {path} has {path.stat().st_size} bytes: not a calibration"
            )
        data = path.read_bytes()
    except OSError as err:
        raise CalibrationError(f"calibration file {path} cannot be read: {err}") from err
    return _decoded(data, path).replace("\r\n", "\n").replace("\r", "\n")


def _decoded(data: bytes, path: Path) -> str:
    """Return text as UTF-8, else as editors and shells of Windows save it."""
    try:
        if data[:2] in (b"\xff\xfe", b"\xfe\xff") and data.count(0) > len(data) // 3:
            return data.decode("utf-16")  # PowerShell's > writes so
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as err:
        if re.search(rb"[\x00-\x08\x0e-\x1f]", data):
            raise CalibrationError(f"calibration file {path} cannot be read: no text ({err})") from err
        return data.decode("latin-1")  # a degree sign or a name in a comment


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file; the header ``%YAML:1.0`` of OpenCV and EuRoC is skipped.

    Raises:
        CalibrationError: If it is not YAML or not a mapping.
    """
    return read_documents(path)[0]


def read_documents(path: Path) -> list[dict[str, Any]]:
    """Return the mappings of a YAML file of one or more documents, as a topic echo prints them: ``---`` after each.

    Raises:
        CalibrationError: As :func:`read_yaml`.
    """
    text = read_text(path)
    if text.startswith("%YAML:"):
        text = text.partition("\n")[2]
    try:
        found = [each for each in yaml.load_all(text, Loader=BoundedLoader) if each is not None] or [None]
    except (yaml.YAMLError, ValueError, RecursionError) as err:
        raise CalibrationError(
            f"calibration file {path} is not YAML: {' '.join(str(err).split())[:160]}"
        ) from err
    if not isinstance(found[0], dict):
        raise CalibrationError(
            f"calibration file {path}: a mapping was expected, found {type(found[0]).__name__}"
        )
    return [fields for fields in found if isinstance(fields, dict)]


def field_of(fields: Any, key: str, draft: Draft, where: str = "") -> Any:
    """Return ``fields[key]``.

    Raises:
        CalibrationError: Naming the key and the place.
    """
    if not isinstance(fields, dict) or key not in fields:
        found = ", ".join(str(name) for name in fields) if isinstance(fields, dict) else type(fields).__name__
        raise draft.error(
            f"{where + '.' if where else ''}{key} is missing; found: {found[:120] or 'nothing'}"
        )
    return fields[key]


def list_of(values: Any, draft: Draft, what: str) -> list[float]:
    """Return a list of finite numbers of any length.

    Raises:
        CalibrationError: If it is no list of finite numbers; names the file and ``what``.
    """
    try:
        found = [float(value) for value in values]
    except (TypeError, ValueError) as err:
        raise draft.error(f"{what} must be a list of numbers, found {str(values)[:60]}") from err
    if not np.all(np.isfinite(found)):
        raise draft.error(f"{what} must be finite, found {found}")
    return found


def size_of(width: Any, height: Any, draft: Draft, what: str) -> tuple[int, int]:
    """Return a positive image size.

    Raises:
        CalibrationError: If it is none; names the file and ``what``.
    """
    try:
        size = (int(width), int(height))
    except (TypeError, ValueError, OverflowError) as err:
        raise draft.error(f"{what} must be two whole numbers, found {width!r}, {height!r}") from err
    if min(size) <= 0:
        raise draft.error(f"{what} must be positive, found {size[0]}x{size[1]}")
    return size


def in_frames(calibration: RigCalibration, keep: Sequence[str]) -> tuple[str, ...]:
    """Return a sentence for every frame that is not among ``keep``: a writer cannot carry it."""
    left = [name for name in calibration.frames if name not in keep]
    return (f"left out, the format has no place for it: {', '.join(left)}",) if left else ()


def plain_rows(matrix: Array) -> list[list[float]]:
    """Return a matrix as lists of floats."""
    return [[float(value) for value in row] for row in matrix]
