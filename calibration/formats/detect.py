"""Tell which tool wrote a calibration file and import it."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import yaml

from sensorium.calibration.formats import foxglove, kalibr, kitti, opencv, pjlab, ros
from sensorium.calibration.formats.draft import read_text
from sensorium.calibration.lint import lint
from sensorium.calibration.rig_document import RigCalibration
from sensorium.errors import CalibrationError
from sensorium.verdict import Status, Verdict, worst

NATIVE = "sensorium"
EPISODE_FILE = "calibration.yaml"
KNOWN = (
    "our rig document, Kalibr camchain, ROS camera_info, URDF, OpenCV FileStorage, EuRoC sensor.yaml, "
    "KITTI (object, odometry, raw), Foxglove MCAP, PJLab JSON"
)
_MCAP_MAGIC = b"\x89MCAP0\r\n"


@dataclass(frozen=True, slots=True)
class ImportResult:
    """A calibration and what is odd about it.

    Attributes:
        format: ``sensorium``, ``kalibr``, ``ros``, ``urdf``, ``opencv``, ``euroc``, ``kitti``, ``foxglove`` or
            ``pjlab``.
        findings: Each says what was found and what to do; those with status ok are mere remarks.
    """

    calibration: RigCalibration
    findings: tuple[Verdict, ...]
    format: str

    @property
    def status(self) -> Status:
        """The most severe finding; ok without any."""
        return worst(self.findings) if self.findings else Status.OK


def import_calibration(
    path: Path | str,
    size: tuple[int, int] | None = None,
    streams: Mapping[str, tuple[int, int] | None] | None = None,
    today: date | None = None,
) -> ImportResult:
    """Read a calibration of any known format and look for the common faults in it.

    Args:
        path: A file, or the folder of a rig, an episode, an EuRoC or KITTI recording.
        size: Width and height of the images, for formats that do not say.
        streams: Frames that will use it; a camera with its image size, others with None.
        today: To tell a stale calibration; None does not look.

    Raises:
        CalibrationError: If the format is not recognised or the file is damaged.
    """
    path = Path(path)
    name = detect(path)
    findings: list[Verdict] = []
    calibration = _read(name, path, findings, size)
    findings += lint(calibration, streams, today)
    return ImportResult(calibration, tuple(findings), name)


def _read(name: str, path: Path, findings: list[Verdict], size: tuple[int, int] | None) -> RigCalibration:
    if name == NATIVE:
        return RigCalibration.load(path / EPISODE_FILE if path.is_dir() else path)
    sized: dict[str, Callable[..., RigCalibration]] = {
        "opencv": opencv.read,
        "kitti": kitti.read,
        "pjlab": pjlab.read,
    }
    if name in sized:
        return sized[name](path, findings, size)
    plain: dict[str, Callable[..., RigCalibration]] = {
        "kalibr": kalibr.read,
        "ros": ros.read,
        "urdf": ros.read,
        "euroc": opencv.read_sensor_yaml,
        "foxglove": foxglove.read,
    }
    return plain[name](path, findings)


def detect(path: Path) -> str:
    """Return the name of the format, see :class:`ImportResult`.

    Raises:
        CalibrationError: If there is nothing at ``path`` or it is of no known format.
    """
    if not path.exists():
        raise CalibrationError(f"calibration {path} does not exist")
    found = _of_folder(path) if path.is_dir() else _of_file(path)
    if found is None:
        raise CalibrationError(f"calibration {path} is of no format that is known: {KNOWN}")
    return found


def _of_folder(folder: Path) -> str | None:
    if (folder / EPISODE_FILE).is_file() and _of_file(folder / EPISODE_FILE) == NATIVE:
        return NATIVE
    if any(any(folder.glob(each)) for each in ("mav0/*/sensor.yaml", "*/sensor.yaml", "sensor.yaml")):
        return "euroc"
    if any(folder.glob("*camchain*.yaml")):
        return "kalibr"
    raw = (folder / "calib_cam_to_cam.txt", folder / "calib" / "calib_cam_to_cam.txt")
    if any(file.is_file() for file in raw):
        return "kitti"
    texts = [
        folder / "calib.txt",
        *sorted((folder / "calib").glob("*.txt"))[:1],
        *sorted(folder.glob("*.txt"))[:3],
    ]
    if any(file.is_file() and kitti.is_kitti(file) for file in texts):
        return "kitti"
    for file in (*sorted(folder.glob("*.urdf")), *sorted(folder.glob("*.yaml"))[:4]):
        if _of_file(file) in ("ros", "urdf"):
            return "ros"
    if any(_of_file(file) == "pjlab" for file in sorted(folder.glob("*.json"))[:4]):
        return "pjlab"
    return None


def _of_file(path: Path) -> str | None:
    with path.open("rb") as stream:
        if stream.read(8) == _MCAP_MAGIC:
            return "foxglove"
    text = read_text(path)
    start = text.lstrip()[:400]
    if start.startswith("<"):
        return "opencv" if "<opencv_storage" in start else "urdf" if "<robot" in text else None
    if start.startswith("{") and (found := _of_json(text)) is not None:
        return found
    if "!!opencv-matrix" in text:
        return "opencv"
    if path.suffix == ".txt":
        return "kitti" if kitti.is_kitti(path) else "pjlab" if pjlab.is_text_form(path) else None
    return _of_yaml(text)


def _of_json(text: str) -> str | None:
    try:
        document = json.loads(text)
    except ValueError:
        return None
    sections = document.values() if isinstance(document, dict) else ()
    return "pjlab" if any(isinstance(part, dict) and "param_type" in part for part in sections) else None


def _of_yaml(text: str) -> str | None:
    if text.startswith("%YAML:"):
        text = text.partition("\n")[2]
    try:
        fields = yaml.load(text, Loader=yaml.BaseLoader)
    except yaml.YAMLError:
        return None
    if not isinstance(fields, dict):
        return None
    if str(fields.get("format", "")).startswith("sensorium-calibration/"):
        return NATIVE
    if "T_BS" in fields or "sensor_type" in fields:
        return "euroc"
    if any(key in fields and isinstance(fields[key], dict) for key in ("cam0", "imu0")):
        return "kalibr"
    return "ros" if ros.is_camera_info(fields) else None
