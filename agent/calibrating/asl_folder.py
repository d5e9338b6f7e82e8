"""EuRoC (ASL) folders and those laid out alike (TUM-VI): images named by their stamps, IMUs as rows of text."""

from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np

from sensorium.agent.calibrating.image_files import read_image
from sensorium.agent.calibrating.recording import PreparedMaterial, Turning
from sensorium.agent.calibrating.shots import Image
from sensorium.agent.calibrating.tasks import CheckTask
from sensorium.agent.session.check_kinds import check_kind
from sensorium.calibration.folder_files import files_in
from sensorium.calibration.formats.detect import ImportResult, import_calibration
from sensorium.calibration.geometry import Array
from sensorium.calibration.rig_document import RigCalibration
from sensorium.calibration.rotation import excited_span
from sensorium.errors import CalibrationError
from sensorium.timebase import SECOND_NS

_BESIDE = ("dso", "calibration", "calib", "config")
"""Where data sets keep a calibration that is not in ``mav0``: TUM-VI has it in ``dso``."""
_TURNING_S = 20.0
_STEP_NS = 95_000_000
_IMU_CELLS = 7


def asl_calibration(path: Path) -> ImportResult:
    """Return the calibration of an ASL folder: its sensor.yaml files, else one of another tool beside them.

    Raises:
        CalibrationError: If there is none, or it cannot be read.
    """
    root = path.parent if path.name == "mav0" else path
    places = [path, *(root / name for name in _BESIDE if (root / name).is_dir())]
    first: CalibrationError | None = None
    for place in places:
        try:
            return import_calibration(place)
        except CalibrationError as err:
            if "no format that is known" not in str(err):
                raise
            first = first or err
    looked = ", ".join(str(place) for place in places)
    raise CalibrationError(f"no calibration in {looked}: give one with --calibration FILE") from first


def joined_imu(root: Path, calibration: RigCalibration, camera: str) -> str | None:
    """Return the IMU of a folder that the calibration joins with a camera."""
    imus = [file.parent.name for file in files_in(root, "imu*/data.csv")]
    return next((name for name in imus if calibration.has_transform(camera, name)), None)


def turning_tasks(root: Path, calibration: RigCalibration, cameras: Mapping[str, object]) -> list[CheckTask]:
    """Return the checks of cameras against the IMU that the folder and the calibration allow."""
    found = []
    for camera in cameras:
        imu = joined_imu(root, calibration, camera) if camera in calibration.cameras else None
        if imu is not None:
            found.append(CheckTask(check_kind("camera_imu"), (camera, imu)))
    return found


class AslMaterial(PreparedMaterial):
    """What :class:`PreparedMaterial` holds, and images with the gyro beside them.

    Args:
        images: Files of each camera by their stamps (ns).
    """

    def __init__(
        self,
        prepared: PreparedMaterial,
        root: Path,
        calibration: RigCalibration,
        images: Mapping[str, Mapping[int, Path]],
    ) -> None:
        super().__init__(prepared.stereo_sets, prepared.camera_lidar_sets)
        self._root, self._calibration, self._images = root, calibration, images

    def turning(self, task: CheckTask) -> Turning:
        camera, imu = task.frames
        time_ns, rates = read_gyro(self._root / imu / "data.csv")
        zero_ns = int(time_ns[0])
        gyro_s = (time_ns - zero_ns) / SECOND_NS
        images_ns = sorted(self._images[camera])
        seen = (time_ns >= images_ns[0]) & (time_ns <= images_ns[-1]) if images_ns else time_ns < 0
        span = excited_span(gyro_s[seen], rates[seen], _TURNING_S) or (0.0, 0.0)
        stamps = _apart(self._images[camera], span, zero_ns)
        return Turning(
            [_grey(read_image(self._images[camera][stamp])) for stamp in stamps],
            (np.array(stamps, np.float64) - zero_ns) / SECOND_NS,
            gyro_s,
            rates,
            known_offset_s(self._calibration, imu, camera),
        )


def _apart(images: Mapping[int, Path], span_s: tuple[float, float], zero_ns: int) -> list[int]:
    """Return the stamps of images in a span, about a tenth of a second apart."""
    start_ns, end_ns = (zero_ns + int(at_s * SECOND_NS) for at_s in span_s)
    found: list[int] = []
    for stamp in sorted(images):
        if start_ns <= stamp <= end_ns and (not found or stamp >= found[-1] + _STEP_NS):
            found.append(stamp)
    return found if span_s[1] > span_s[0] else []


def _grey(image: Image) -> Image:
    return image if image.ndim == 2 else np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), np.uint8)


def known_offset_s(calibration: RigCalibration, imu: str, camera: str) -> float:
    """Return what a calibration says must be added to a camera's stamps to have an IMU's time; 0 if nothing."""
    for edge in calibration.edges:
        if edge.time_offset_s is not None and {edge.parent, edge.child} == {imu, camera}:
            return edge.time_offset_s if edge.parent == imu else -edge.time_offset_s
    return 0.0


def stamped(folder: Path) -> dict[int, Path]:
    """Return the images of a folder by the stamp (ns) that is their name; others are no images of a recording."""
    files = files_in(folder, "*.png", "*.jpg")
    return {int(file.stem): file for file in files if file.stem.isascii() and file.stem.isdigit()}


def read_gyro(path: Path) -> tuple[Array, Array]:
    """Return (N,) stamps (ns) and (N, 3) angular rates (rad/s) of an ASL IMU list, in order.

    Raises:
        CalibrationError: If it cannot be read, or its stamps are no whole nanoseconds.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as err:
        raise CalibrationError(f"{path} cannot be read: {err}") from err
    rows = [line.rstrip(", ").split(",") for line in lines if line.strip() and not line.startswith("#")]
    sound = [row for row in rows if len(row) == _IMU_CELLS and row[0].strip().isdigit()]
    if not sound:
        found = lines[-1][:60] if lines else "nothing"
        raise CalibrationError(
            f"{path}: rows of a stamp in whole nanoseconds, three rates (rad/s) and three accelerations (m/s^2) were "
            f"expected, found {found!r}: stamps in seconds must be multiplied by 1e9"
        )
    try:
        values = np.array([[float(cell) for cell in row] for row in sound])
    except ValueError as err:
        raise CalibrationError(f"{path}: a row holds no number: {err}") from err
    order = np.argsort(values[:, 0], kind="stable")
    first = np.array([int(row[0]) for row in sound], np.float64)[order]
    fresh = np.concatenate([[True], np.diff(first) > 0])
    return first[fresh], values[order][fresh, 1:4]
