"""What the report's sections are made of, and the words that they share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sensorium.agent.reporting import page
from sensorium.agent.reporting.pictures import UNSHOWABLE
from sensorium.agent.reporting.survey import StreamSurvey, Survey
from sensorium.calibration.rig_document import RigCalibration
from sensorium.sync.consent.grants import Purpose
from sensorium.sync.consent.use import Rights
from sensorium.sync.episode.manifest import Manifest, StreamRecord
from sensorium.timebase import SECOND_NS

_STORED = ("allowed", "not personal", "partly denied")
_Int64s = NDArray[np.int64]


@dataclass(slots=True)
class Material:
    """Everything that the sections are made of.

    Attributes:
        rights: What may be shown; None = nothing personal.
        now_utc_ns: When they are asked.
    """

    folder: Path
    found: Mapping[str, Any]
    manifest: Manifest | None = None
    survey: Survey | None = None
    calibration: RigCalibration | None = None
    calibration_problem: str = ""
    truth: Mapping[str, _Int64s] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    rights: Rights | None = None
    now_utc_ns: int = 0

    @property
    def streams(self) -> Mapping[str, StreamSurvey]:
        return self.survey.streams if self.survey else {}

    @property
    def records(self) -> tuple[StreamRecord, ...]:
        return self.manifest.streams if self.manifest else ()

    @property
    def length_s(self) -> float:
        return (self.survey.span[1] - self.survey.span[0]) / SECOND_NS if self.survey else 1.0

    def seconds(self, host_ns: Any) -> Any:
        """Return host times as seconds since the first capture."""
        assert self.survey is not None
        return (host_ns - self.survey.span[0]) / SECOND_NS

    def utc(self, host_ns: int) -> str:
        assert self.manifest is not None
        return utc_text(host_ns + self.manifest.timeline.utc_minus_host_ns)

    def withheld(self, record: StreamRecord) -> str:
        """Return why a stream must not be shown, or "" when it may."""
        if not record.info.is_personal:
            return ""
        if record.consent.decision not in _STORED:
            reason = record.consent.reason or "no decision is recorded"
            return f"not shown: {record.consent.decision or 'denied'}, {reason}"
        if self.rights is None:
            return "not shown: the consent records are not at hand"
        decision = self.rights.permits(record.info.name, Purpose.LIVE, self.now_utc_ns)
        return "" if decision.is_allowed else f"not shown: {decision.reason}"


def attempt(what: str, make: Callable[[], str]) -> str:
    """Return what ``make`` makes, or one sentence about why it could not."""
    try:
        return make()
    except UNSHOWABLE as err:
        return page.note(f"{what} cannot be shown: {str(err) or type(err).__name__}")


def utc_text(utc_ns: int) -> str:
    """Return an instant as ISO 8601 with milliseconds, or its number where the calendar ends."""
    try:
        instant = datetime.fromtimestamp(0, timezone.utc) + timedelta(microseconds=utc_ns // 1000)
    except OverflowError:
        return f"{utc_ns} ns since 1970"
    return instant.isoformat(sep=" ", timespec="milliseconds").replace("+00:00", " UTC")


def rate_text(record: StreamRecord) -> str:
    if record.rate_hz:
        return f"{record.rate_hz:.2f} Hz"
    return f"nominal {record.info.rate_hz:g} Hz" if record.info.rate_hz else "aperiodic"


def where_text(dropped: Mapping[str, Mapping[str, int]]) -> str:
    """Return drops as ``place: count reason; ...``."""
    return "; ".join(
        f"{place}: {count} {reason}"
        for place, reasons in dropped.items()
        for reason, count in reasons.items()
    )


def names_text(names: Sequence[str], limit: int = 12) -> str:
    """Return names as one text, the first ``limit`` of them where there are many."""
    shown = ", ".join(names[:limit])
    return f"{shown} and {len(names) - limit} more" if len(names) > limit else shown
