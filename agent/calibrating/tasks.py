"""Which streams a kind of check can judge, together or alone, under a calibration."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, product

from sensorium.agent.calibrating.shots import views_overlap
from sensorium.agent.session.check_kinds import CheckKind, Pairs, Part
from sensorium.calibration.rig_document import RigCalibration
from sensorium.drivers.frame import StreamInfo
from sensorium.drivers.roles import has_role
from sensorium.verdict import Status, Verdict


@dataclass(frozen=True, slots=True)
class CheckTask:
    """A check that a recording allows.

    Attributes:
        frames: Of its one or two sensors.
        infos: Their streams; empty where a recording has none (folders of images and sweeps).
    """

    kind: CheckKind
    frames: tuple[str, ...]
    infos: tuple[StreamInfo, ...] = ()

    @property
    def check(self) -> str:
        """The name that its verdict carries."""
        return self.kind.verdict

    @property
    def subject(self) -> str:
        return "~".join(self.frames)

    def insufficient(self, reason: str) -> Verdict:
        return Verdict(self.check, self.subject, Status.INSUFFICIENT, (), (reason,))


def tasks_of(kind: CheckKind, infos: Iterable[StreamInfo], calibration: RigCalibration) -> list[CheckTask]:
    """Return every check of this kind that these streams and the calibration allow."""
    known = list(infos)
    fitting = [[info for info in known if not _lacks(part, info, calibration)] for part in kind.parts]
    if len(fitting) == 1:
        return [CheckTask(kind, (info.frame_id,), (info,)) for info in fitting[0]]
    firsts, seconds = map(_one_per_frame, fitting)
    return [
        CheckTask(kind, (first.frame_id, second.frame_id), (first, second))
        for first, second in _pairs(kind, firsts, seconds, calibration)
    ]


def refusal(kind: CheckKind, infos: Sequence[StreamInfo], calibration: RigCalibration) -> str:
    """Return why a kind of check cannot judge these streams, in the order of its parts; "" if it can."""
    lacking = (_lacks(part, info, calibration) for part, info in zip(kind.parts, infos, strict=True))
    if problem := next(filter(None, lacking), ""):
        return problem
    is_joined = calibration.has_transform(infos[0].frame_id, infos[-1].frame_id)
    return "" if len(infos) == 1 or is_joined else "the calibration does not join the two"


def _lacks(part: Part, info: StreamInfo, calibration: RigCalibration) -> str:
    if not has_role(info, *part.roles):
        return f"{info.name} is no {part.name}"
    if part.has_lens and info.frame_id not in calibration.cameras:
        return f"the calibration has no lens for {info.frame_id}"
    return ""


def _one_per_frame(infos: Sequence[StreamInfo]) -> list[StreamInfo]:
    """Return of several streams of one sensor the fastest; in order."""
    fastest = {info.frame_id: info for info in sorted(infos, key=lambda info: info.rate_hz)}
    return [info for info in infos if fastest[info.frame_id] is info]


def _pairs(
    kind: CheckKind, firsts: Sequence[StreamInfo], seconds: Sequence[StreamInfo], calibration: RigCalibration
) -> list[tuple[StreamInfo, StreamInfo]]:
    if kind.parts[0] == kind.parts[1]:
        found = list(combinations(sorted(firsts, key=lambda info: info.frame_id), 2))
    else:
        found = list(product(firsts, seconds))
    found = [pair for pair in found if calibration.has_transform(pair[0].frame_id, pair[1].frame_id)]
    if kind.pairs is Pairs.OVERLAPPING:
        return [pair for pair in found if views_overlap(calibration, pair[0].frame_id, pair[1].frame_id)]
    if kind.pairs is Pairs.FASTEST:
        of_each = [[pair for pair in found if pair[0] is first] for first in firsts]
        return [max(pairs, key=lambda pair: pair[1].rate_hz) for pairs in of_each if pairs]
    return found
