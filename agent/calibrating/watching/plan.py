"""Which checks run: what the rig file names, or every pair that the calibration and the streams allow."""

from collections.abc import Sequence
from dataclasses import dataclass

from sensorium.agent.calibrating.shots import fastest_gyro, stereo_pairs_of
from sensorium.agent.session.rig import CheckOptions
from sensorium.calibration import camera_lidar, inertial, lidar_lidar, stereo
from sensorium.calibration.rig_document import RigCalibration
from sensorium.drivers.frame import Modality, StreamInfo
from sensorium.drivers.roles import Role, has_role

EVERY_S = {"stereo": 5.0, "camera_lidar": 10.0, "lidar_lidar": 10.0, "ground_gravity": 10.0}
_NAMES = {
    "stereo": stereo.CHECK,
    "camera_lidar": camera_lidar.CHECK,
    "lidar_lidar": lidar_lidar.CHECK,
    "ground_gravity": inertial.GROUND_CHECK,
}


@dataclass(frozen=True, slots=True)
class Planned:
    """One check of two streams.

    Attributes:
        gyro: IMU stream that straightens sweeps and tells how fast the rig turns; "" without.
        problem: Why it cannot run; "" if it can.
    """

    kind: str
    streams: tuple[str, str]
    frames: tuple[str, str]
    every_s: float
    gyro: str = ""
    problem: str = ""

    @property
    def check(self) -> str:
        """The name that its verdicts carry."""
        return _NAMES[self.kind]

    @property
    def subject(self) -> str:
        return "~".join(self.frames)


def plan_checks(
    options: Sequence[CheckOptions] | None, calibration: RigCalibration, infos: Sequence[StreamInfo]
) -> list[Planned]:
    """Return what to check on these streams; without ``options`` every pair that the calibration joins."""
    known = {info.name: info for info in infos if not info.reference_of}
    gyro = fastest_gyro(known.values(), calibration)
    if options is None:
        options = _every_pair(calibration, list(known.values()), gyro)
    return [_planned(option, calibration, known, gyro) for option in options]


def _every_pair(
    calibration: RigCalibration, infos: Sequence[StreamInfo], gyro: StreamInfo | None
) -> list[CheckOptions]:
    cameras = {info.frame_id: info.name for info in infos if info.modality is Modality.CAMERA}
    lidars = {info.frame_id: info.name for info in infos if has_role(info, Role.SWEEP)}
    found = [
        CheckOptions(check="stereo", streams=(cameras[left], cameras[right]))
        for left, right in stereo_pairs_of(calibration, list(cameras))
    ]
    for frame, camera in cameras.items():
        for lidar_frame, lidar in lidars.items():
            if frame in calibration.cameras and calibration.has_transform(frame, lidar_frame):
                found.append(CheckOptions(check="camera_lidar", streams=(camera, lidar)))
    frames = sorted(lidars)
    for index, first in enumerate(frames):
        for second in frames[index + 1 :]:
            if calibration.has_transform(first, second):
                found.append(CheckOptions(check="lidar_lidar", streams=(lidars[first], lidars[second])))
    if gyro is not None and has_role(gyro, Role.ACCELEROMETER):
        found += [
            CheckOptions(check="ground_gravity", streams=(lidar, gyro.name))
            for frame, lidar in lidars.items()
            if calibration.has_transform(frame, gyro.frame_id)
        ]
    return found


def _planned(
    option: CheckOptions,
    calibration: RigCalibration,
    known: dict[str, StreamInfo],
    gyro: StreamInfo | None,
) -> Planned:
    found = [known.get(name) for name in option.streams]
    first, second = (
        info.frame_id if info is not None else name for info, name in zip(found, option.streams, strict=True)
    )
    return Planned(
        option.check,
        option.streams,
        (first, second),
        option.every_s or EVERY_S[option.check],
        gyro.name if gyro is not None else "",
        _problem(option, calibration, found),
    )


def _problem(option: CheckOptions, calibration: RigCalibration, found: Sequence[StreamInfo | None]) -> str:
    for name, info in zip(option.streams, found, strict=True):
        if info is None:
            return f"there is no stream {name}"
    infos = [info for info in found if info is not None]
    cameras = {"stereo": 2, "camera_lidar": 1}.get(option.check, 0)
    for info in infos[:cameras]:
        if info.modality is not Modality.CAMERA:
            return f"{info.name} is no camera"
        if info.frame_id not in calibration.cameras:
            return f"the calibration has no lens for {info.frame_id}"
    sweeps = {"camera_lidar": infos[1:], "lidar_lidar": infos, "ground_gravity": infos[:1]}
    for info in sweeps.get(option.check, []):
        if not has_role(info, Role.SWEEP):
            return f"{info.name} is no LiDAR whose sweeps can be read"
    if not calibration.has_transform(*(info.frame_id for info in infos)):
        return "the calibration does not join the two"
    return ""
