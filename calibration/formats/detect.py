"""Tell which tool wrote a calibration file and import it."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from sensorium.calibration.folder_files import files_in
from sensorium.calibration.formats import (
    autoware,
    basalt,
    dso,
    foxglove,
    ini,
    kalibr,
    kitti,
    ncamera,
    nuscenes,
    okvis,
    opencv,
    orbslam,
    pjlab,
    ros,
    vins,
)
from sensorium.calibration.formats.draft import read_text
from sensorium.calibration.formats.storage import parse_storage
from sensorium.calibration.lint import lint
from sensorium.calibration.rig_document import RigCalibration
from sensorium.errors import CalibrationError
from sensorium.verdict import Status, Verdict, worst

NATIVE = "sensorium"
EPISODE_FILE = "calibration.yaml"
KNOWN = (
    "our rig document, Kalibr and OpenVINS chains, ROS camera_info (YAML, INI), URDF, OpenCV FileStorage, EuRoC "
    "sensor.yaml, KITTI (object, odometry, raw), Foxglove MCAP, PJLab JSON, nuScenes tables, ORB-SLAM, VINS and "
    "camodocal, OKVIS, basalt, maplab and SVO ncamera, DSO camera.txt, Autoware sensor_kit_calibration"
)
_READERS: dict[str, Callable[..., RigCalibration]] = {
    "opencv": opencv.read,
    "kitti": kitti.read,
    "pjlab": pjlab.read,
    "nuscenes": nuscenes.read,
    "orbslam": orbslam.read,
    "vins": vins.read,
    "okvis": okvis.read,
    "ncamera": ncamera.read,
    "basalt": basalt.read,
    "dso": dso.read,
    "autoware": autoware.read,
    "ini": ini.read,
}
"""Read ``(path, findings, size)``."""
_PLAIN_READERS: dict[str, Callable[..., RigCalibration]] = {
    "kalibr": kalibr.read,
    "openvins": kalibr.read_openvins,
    "ros": ros.read,
    "urdf": ros.read,
    "euroc": opencv.read_sensor_yaml,
    "foxglove": foxglove.read,
}
"""Read ``(path, findings)``; the file always says how large images are."""
_SINGLE_FILES = ("orbslam", "vins", "okvis", "ncamera", "basalt", "dso", "ini", "opencv")
"""Formats of which a folder may hold one file among others."""
_CHAINS = ("*camchain*.yaml", "*imucam_chain*.yaml")
_SUFFIXES = (".yaml", ".yml", ".json", ".ini", ".txt", ".xml")
_MAX_LOOKED_AT = 40
_MCAP_MAGIC = b"\x89MCAP0\r\n"


@dataclass(frozen=True, slots=True)
class ImportResult:
    """A calibration and what is odd about it.

    Attributes:
        format: ``sensorium``, or the name of the format as in the table of readers below.
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
    if name == "ros" and path.is_dir():
        findings += _left_aside(path)
    findings += lint(calibration, streams, today)
    return ImportResult(calibration, tuple(findings), name)


def _read(name: str, path: Path, findings: list[Verdict], size: tuple[int, int] | None) -> RigCalibration:
    if name == NATIVE:
        return RigCalibration.load(path / EPISODE_FILE if path.is_dir() else path)
    if name in _SINGLE_FILES and path.is_dir():
        path = _file_in(path, name)
    if name in _READERS:
        return _READERS[name](path, findings, size)
    return _PLAIN_READERS[name](path, findings)


def _file_in(folder: Path, name: str) -> Path:
    """Return the file of a format in a folder.

    Raises:
        CalibrationError: If there are several and it cannot be told which describes the rig.
    """
    found = _files_of(folder)[name]
    rig = vins.rig_file(found) if name == "vins" else None
    if name == "opencv" and {file.stem for file in found} == {"intrinsics", "extrinsics"}:
        rig = found[0]  # which reads the other, too
    if rig is None and len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise CalibrationError(f"{folder} holds several {name} files ({names}): name one of them")
    return rig or found[0]


def _files_of(folder: Path) -> dict[str, list[Path]]:
    """Return the files of a folder by format, those of one-file formats only."""
    found: dict[str, list[Path]] = {}
    looked_at = [
        file for file in files_in(folder, "*") if file.is_file() and file.suffix.lower() in _SUFFIXES
    ]
    for file in looked_at[:_MAX_LOOKED_AT]:
        name = _kind_of(file)
        if name in (*_SINGLE_FILES, "euroc"):
            found.setdefault(str(name), []).append(file)
    return found


def _kind_of(file: Path) -> str | None:
    """Return the format of one file among others; None for what is no text, or no calibration's size."""
    try:
        return _of_file(file)
    except CalibrationError:
        return None


def _left_aside(folder: Path) -> list[Verdict]:
    """Return a finding for each calibration of another format that a folder holds beside those that were read."""
    return [
        Verdict(
            "other_format",
            file.name,
            Status.SUSPECT,
            (),
            (
                f"{file.name} ({kind}) lies beside ROS files and was not read: import it by itself, or move it away",
            ),
        )
        for kind, files in _files_of(folder).items()
        for file in files
    ]


def detect(path: Path) -> str:
    """Return the name of the format, see :class:`ImportResult`.

    Raises:
        CalibrationError: If there is nothing at ``path`` or it is of no known format.
    """
    if not path.exists():
        raise CalibrationError(f"calibration {path} does not exist")
    found = _of_folder(path) if path.is_dir() else _of_file(path)
    if found is None:
        is_poses = path.is_file() and kitti.is_poses(path)
        poses = "; its rows of twelve numbers are poses (KITTI odometry), give calib.txt" if is_poses else ""
        raise CalibrationError(
            f"calibration {path} is of no format that is known{poses or _damage(path)}: {KNOWN}"
        )
    return found


def _damage(path: Path) -> str:
    """Return what keeps a YAML file from being read as one, to stand in a sentence; "" for other files."""
    if path.suffix.lower() not in (".yaml", ".yml") or not path.is_file():
        return ""
    try:
        parse_storage(read_text(path), path)
    except CalibrationError as err:
        return f" ({str(err).removeprefix(f'calibration file {path} ')})"
    return ""


def _of_folder(folder: Path) -> str | None:
    if (folder / EPISODE_FILE).is_file() and _of_file(folder / EPISODE_FILE) == NATIVE:
        return NATIVE
    if files_in(folder, "mav0/*/sensor.yaml", "*/sensor.yaml", "sensor.yaml"):
        return "euroc"
    if (folder / kalibr.ESTIMATOR_FILE).is_file():
        return "openvins"
    if files_in(folder, *_CHAINS):
        return "kalibr"
    if nuscenes.tables_folder(folder) is not None:
        return "nuscenes"
    if any((folder / name).is_file() for name in autoware.FILES):
        return "autoware"
    raw = [
        folder,
        folder / "calib",
        *([folder.resolve().parent] if files_in(folder, "image_0?/data") else []),
    ]
    if any((place / "calib_cam_to_cam.txt").is_file() for place in raw):
        return "kitti"
    texts = [
        folder / "calib.txt",
        *files_in(folder / "calib", "*.txt")[:1],
        *files_in(folder, "*.txt")[:3],
    ]
    if any(file.is_file() and kitti.is_kitti(file) for file in texts):
        return "kitti"
    for file in (*files_in(folder, "*.urdf"), *ros.yaml_files(folder)[:_MAX_LOOKED_AT]):
        if _kind_of(file) in ("ros", "urdf"):
            return "ros"
    if any(_of_file(file) == "pjlab" for file in files_in(folder, "*.json")[:4]):
        return "pjlab"
    kinds = _files_of(folder)
    if len(kinds) > 1:
        names = ", ".join(f"{files[0].name} ({kind})" for kind, files in kinds.items())
        raise CalibrationError(f"{folder} holds calibrations of several formats ({names}): name one of them")
    return next(iter(kinds), None)


def _of_file(path: Path) -> str | None:
    with path.open("rb") as stream:
        if stream.read(8) == _MCAP_MAGIC:
            return "foxglove"
    text = read_text(path)
    start = text.lstrip()[:400]
    if start.startswith("<"):
        return "opencv" if "<opencv_storage" in start else "urdf" if "<robot" in text else None
    if start[:1] in ("{", "[") and (found := _of_json(text, path)) is not None:
        return found
    if ini.claims(text):
        return "ini"
    if path.suffix == ".txt":
        if dso.claims(text):
            return "dso"
        return "kitti" if kitti.is_kitti(path) else "pjlab" if pjlab.is_text_form(path) else None
    return _of_yaml(text, path)


def _of_json(text: str, path: Path) -> str | None:
    if path.name == nuscenes.TABLE:
        return "nuscenes"
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if basalt.claims(document):
        return "basalt"
    if isinstance(document, dict) and ('"opencv-matrix"' in text or opencv.claims(document)):
        return "opencv"
    sections = document.values() if isinstance(document, dict) else ()
    return "pjlab" if any(isinstance(part, dict) and "param_type" in part for part in sections) else None


def _of_yaml(text: str, path: Path) -> str | None:
    try:
        fields = parse_storage(text, path)
    except CalibrationError:
        return "opencv" if "!!opencv-matrix" in text else None
    if str(fields.get("format", "")).startswith("sensorium-calibration/"):
        return NATIVE
    has_matrices = "!!opencv-matrix" in text  # which a camera_info has not, under the same names
    for name, claims in _YAML_KINDS.items():
        if claims(fields) and not (has_matrices and name == "ros"):
            return name
    return "opencv" if has_matrices or opencv.claims(fields) else None


def _is_kalibr(fields: dict[str, Any]) -> bool:
    has_sensor = any(isinstance(fields.get(key), dict) for key in ("cam0", "imu0"))
    return has_sensor or kalibr.is_flat_imu(fields) or any(map(kalibr.is_camera, fields.values()))


# All of these may begin with %YAML:1.0; the keys tell them apart, the most particular first.
_YAML_KINDS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "orbslam": orbslam.claims,
    "vins": vins.claims,
    "openvins": lambda fields: "relative_config_imucam" in fields,
    "okvis": okvis.claims,
    "ncamera": ncamera.claims,
    "euroc": lambda fields: "T_BS" in fields or "sensor_type" in fields,
    "kalibr": _is_kalibr,
    "autoware": autoware.claims,
    "ros": ros.is_camera_info,
}
