"""What every check of a pair has in common while recording: windows that share no frame, and when it moved."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, TypeVar

import cv2
import numpy as np

from sensorium.agent.calibrating.shots import Gyro
from sensorium.agent.calibrating.watching.plan import Planned
from sensorium.agent.session.check_kinds import check_kind, load
from sensorium.calibration.attribution import Window, is_timing, moved_between
from sensorium.calibration.checks import ConsecutiveJudge
from sensorium.calibration.rig_document import RigCalibration
from sensorium.errors import CalibrationError
from sensorium.sync.recording.judged import JudgedWindow
from sensorium.sync.thinking.sets import AlignedSet, SetRequest
from sensorium.timebase import SECOND_NS
from sensorium.verdict import Quantity, Status, Verdict

ALARM = (Status.SUSPECT, Status.FAILED)
MAX_WINDOWS = 30
UNREADABLE = (CalibrationError, np.linalg.LinAlgError, cv2.error)
"""What data that cannot be judged raises."""

DataT = TypeVar("DataT")


class UnusableSetError(CalibrationError):
    """A set that says nothing about the mount; the message says why."""


@dataclass(frozen=True, slots=True, eq=False)
class Taken(Generic[DataT]):
    """What is kept of one aligned set."""

    tick_ns: int
    data: DataT


@dataclass(frozen=True, slots=True)
class Moved:
    """When a pair went from ok to alarm (host ns); ``after_ns`` is None if it was never seen in place."""

    after_ns: int | None
    before_ns: int


class Watch(ABC, Generic[DataT]):
    """One pair under watch. Feed it aligned sets; a full window, or an overdue one, gives a verdict.

    Attributes:
        needed: Sets in a window. gap_ns: Least time between two of them.
        moved: When it went bad; set once two windows in a row that share no frame say that a mount did.
        settled: The last verdict that judged.
        note: Why it says nothing.
    """

    needed = 3
    gap_ns = SECOND_NS // 2
    keep_ns = 60 * SECOND_NS
    """Frames that wait longer for the rest of their window are let go."""
    first_cost_s: ClassVar[Mapping[str, float]] = {"take": 0.3, "judge": 0.1}
    """What its work costs, until it is measured (processor time)."""
    is_opportune = False
    """Judges only at rest, or only while the rig turns, and says nothing while it does not."""

    is_patient = False
    """Its sets are asked for only while no other check is due."""

    def __init__(self, plan: Planned, calibration: RigCalibration) -> None:
        self.plan = plan
        self.calibration = calibration
        self.moved: Moved | None = None
        self.latest: JudgedWindow | None = None
        self.settled: Verdict | None = None
        self.note = ""
        self._window: list[Taken[DataT]] = []
        self._judge = ConsecutiveJudge()
        self._episode = ("", 0)
        self._spans: list[Window] = []
        self._period_since_ns: int | None = None
        self._in_alarm = 0
        self._tried_ns: list[int] = []
        self._problems: list[str] = []

    @property
    def request(self) -> SetRequest:
        """What to ask of the synchronizer."""
        return SetRequest(self.plan.streams, (self.plan.gyro,) if self.plan.gyro else ())

    @property
    def episode(self) -> str:
        """The episode of the frames in the window."""
        return self._episode[0]

    @property
    def started_ns(self) -> int:
        """When that episode began."""
        return self._episode[1]

    @property
    def is_full(self) -> bool:
        return len(self._window) >= self.needed

    def step_ns(self, is_hurried: bool) -> int:
        """Return the time from one set to the next; hurried after an alarm of another pair."""
        usual_ns = int(self.plan.every_s * SECOND_NS / self.needed)
        return max(self.gap_ns, 0 if is_hurried else usual_ns)

    def take(self, aligned: AlignedSet) -> None:
        """Reduce a set to what the check needs. A window never holds frames of two episodes."""
        if aligned.episode_id != self.episode:
            self._episode = (aligned.episode_id, aligned.started_ns)
            self._window.clear()
            self._spans.clear()
            self._tried_ns.clear()
            self._problems.clear()
            self._period_since_ns = None
            self._forget()
        if self._period_since_ns is None:
            self._period_since_ns = aligned.tick_ns
        self._window = [taken for taken in self._window if taken.tick_ns > aligned.tick_ns - self.keep_ns]
        self._tried_ns.append(aligned.tick_ns)
        try:
            self._window.append(Taken(aligned.tick_ns, self._reduced(aligned)))
        except UNREADABLE as err:
            self._problems.append(" ".join(str(err).split()))

    def fail(self, problem: str) -> None:
        """Note that no set came."""
        self.note = problem

    def due_verdict(self) -> JudgedWindow | None:
        """Return the verdict of a full window, or ``insufficient`` when a period passed without one."""
        if self.is_full:
            return self._judged()
        if len(self._tried_ns) < self.needed or self._period_since_ns is None:
            return None  # also when the sets were asked for late, to keep to the share
        if self._tried_ns[-1] - self._period_since_ns < self.plan.every_s * SECOND_NS * 0.9:
            return None
        reasons = tuple(dict.fromkeys(self._problems)) or ("the sets came too far apart in time",)
        if not self.is_opportune:
            return self.unjudged(reasons)
        self.note = reasons[0]
        self._restart()
        return None

    def unjudged(self, reasons: tuple[str, ...]) -> JudgedWindow:
        """Return ``insufficient`` for the sets of this period; their frames may still fill a window."""
        span = self._tried_ns[0], self._tried_ns[-1]
        self.note = reasons[0]
        self._restart()
        verdict = Verdict(self.plan.check, self.plan.subject, Status.INSUFFICIENT, (), reasons)
        self.latest = JudgedWindow(verdict, *span)
        return self.latest

    def _restart(self) -> None:
        self._period_since_ns = self._tried_ns[-1] if self._tried_ns else None
        self._tried_ns.clear()
        self._problems.clear()

    def _judged(self) -> JudgedWindow:
        window, self._window = self._window, []
        span = window[0].tick_ns, window[-1].tick_ns
        raw = self._verdict([taken.data for taken in window])
        self._spans = [*self._spans, Window(*span, raw)][-MAX_WINDOWS:]
        verdict = self._refined(self._judge.judge(raw), window)
        if verdict.status is Status.OK:
            self._in_alarm, self.moved = 0, None
        elif verdict.status in ALARM:
            self._in_alarm += 1
            is_confirmed = self._in_alarm > 1 and not is_timing(verdict)
            self.moved = (self.moved or self._located()) if is_confirmed else None
        if verdict.status in ALARM and self.moved is not None:
            verdict = self._with_location(verdict, self.moved)
        if verdict.status is not Status.INSUFFICIENT:
            self.settled = verdict
        self._restart()
        self.note = ""
        self.latest = JudgedWindow.of(verdict, *span)
        return self.latest

    def _with_location(self, verdict: Verdict, moved: Moved) -> Verdict:
        before_s = (moved.before_ns - self._episode[1]) / SECOND_NS
        if moved.before_ns < self.started_ns:
            sentence = "it was off before this episode began"
            numbers: tuple[Quantity, ...] = ()
        elif moved.after_ns is None:
            sentence = "it was never seen in place in this episode"
            numbers = ()
        else:
            after_s = (moved.after_ns - self._episode[1]) / SECOND_NS
            sentence = (
                f"it was in place until {after_s:.1f} s and is off from {before_s:.1f} s of the episode on"
            )
            numbers = (Quantity("moved_after", after_s, "s"), Quantity("moved_before", before_s, "s"))
        return replace(
            verdict, quantities=(*verdict.quantities, *numbers), reasons=(*verdict.reasons, sentence)
        )

    def _located(self) -> Moved | None:
        """Return when the pair went bad for good, from the windows of this episode."""
        found = moved_between(self._spans)
        if found is None:
            return None
        is_ok_before = any(
            span.verdict.status is Status.OK for span in self._spans if span.end_ns <= found[0]
        )
        return Moved(found[0] if is_ok_before else None, found[1])

    @abstractmethod
    def _reduced(self, aligned: AlignedSet) -> DataT:
        """Return what the check needs of a set.

        Raises:
            CalibrationError: If the set says nothing; the message is a reason for ``insufficient``.
        """

    @abstractmethod
    def _verdict(self, window: Sequence[DataT]) -> Verdict:
        """Return the verdict of one window."""

    def _refined(self, verdict: Verdict, window: Sequence[Taken[DataT]]) -> Verdict:  # noqa: ARG002 - a hook
        """Return the verdict after what several windows say together."""
        return verdict

    def _forget(self) -> None:
        """Drop what was kept of an episode that has ended."""

    def _gyro(self, aligned: AlignedSet) -> Gyro | None:
        """Return the angular rates beside a set; None without an IMU.

        Raises:
            UnusableSetError: If the rig has one and nothing came of it.
        """
        if not self.plan.gyro:
            return None
        blocks = [kept for kept in aligned.beside if kept.info.name == self.plan.gyro]
        found = (
            Gyro.of(blocks[0].info, ((each.frame, each.capture_ns) for each in blocks)) if blocks else None
        )
        if found is None:
            raise UnusableSetError(f"nothing came of {self.plan.gyro} around the image or sweep")
        return found


def new_watch(plan: Planned, calibration: RigCalibration) -> Watch[Any]:
    """Return a new watch for a planned check, of the class that its kind names.

    Raises:
        CalibrationError: If the calibration does not join its sensors.
    """
    watch: type[Watch[Any]] = load(check_kind(plan.kind).watch)
    return watch(plan, calibration)
