"""Which checks run: what the rig file names, or every pair that the calibration and the streams allow."""

from collections.abc import Sequence
from dataclasses import dataclass

from sensorium.agent.calibrating.shots import fastest_gyro
from sensorium.agent.calibrating.tasks import refusal, tasks_of
from sensorium.agent.session.check_kinds import KINDS, check_kind
from sensorium.agent.session.rig import CheckOptions
from sensorium.calibration.rig_document import RigCalibration
from sensorium.drivers.frame import StreamInfo


@dataclass(frozen=True, slots=True)
class Planned:
    """One check of one or two streams.

    Attributes:
        kind: Its name in rig files.
        gyro: IMU stream that straightens sweeps and tells how fast the rig turns; "" without.
        problem: Why it cannot run; "" if it can.
    """

    kind: str
    streams: tuple[str, ...]
    frames: tuple[str, ...]
    every_s: float
    gyro: str = ""
    problem: str = ""

    @property
    def check(self) -> str:
        """The name that its verdicts carry."""
        return check_kind(self.kind).verdict

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
        options = [
            CheckOptions(check=kind.name, streams=tuple(info.name for info in task.infos))
            for kind in KINDS
            if kind.watch
            for task in tasks_of(kind, known.values(), calibration)
        ]
    return [_planned(option, calibration, known, gyro.name if gyro is not None else "") for option in options]


def _planned(
    option: CheckOptions, calibration: RigCalibration, known: dict[str, StreamInfo], gyro: str
) -> Planned:
    kind = check_kind(option.check)
    found = [known[name] for name in option.streams if name in known]
    frames = tuple(known[name].frame_id if name in known else name for name in option.streams)
    missing = next((name for name in option.streams if name not in known), None)
    problem = refusal(kind, found, calibration) if missing is None else f"there is no stream {missing}"
    return Planned(option.check, option.streams, frames, option.every_s or kind.every_s, gyro, problem)
