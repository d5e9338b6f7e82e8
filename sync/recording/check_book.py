"""What the checker said about the open episode, window by window, and what the rig's policy makes of it."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from sensorium.sync.episode.manifest import CheckRecord
from sensorium.sync.recording.judged import JudgedWindow, Key
from sensorium.verdict import Status, Verdict, outweighs

_ALARM = (Status.SUSPECT, Status.FAILED)


@dataclass(frozen=True, slots=True)
class PlannedCheck:
    """A check that the checker runs, and what it costs.

    Attributes:
        cost_s: Processor time of one result, seconds; None before the first.
        note: Why it has said nothing lately; "" if it has.
        is_optional: Nobody asked for it and it needs the rig at rest; an episode may do without.
    """

    check: str
    subject: str
    every_s: float
    cost_s: float | None = None
    note: str = ""
    is_optional: bool = False


@dataclass(frozen=True, slots=True)
class CheckerReport:
    """How the checker is doing.

    Attributes:
        cpu_share: Share of one core that it may use; ``used``: what it used over the last minute.
        postponed_s: How long the most overdue check waits because of the share.
    """

    cpu_share: float = 0.0
    used: float = 0.0
    postponed_s: float = 0.0
    checks: tuple[PlannedCheck, ...] = ()


@dataclass(frozen=True, slots=True)
class CheckMessage:
    """What the checker sends: windows of one episode that were judged together, and how it is doing."""

    episode: str
    windows: tuple[JudgedWindow, ...] = ()
    report: CheckerReport | None = None


@dataclass(slots=True)
class _History:
    kept: JudgedWindow
    counts: Counter[str] = field(default_factory=Counter)
    first_alarm_ns: int | None = None
    in_alarm: int = 0

    def add(self, window: JudgedWindow) -> None:
        status = window.verdict.status
        self.counts[status.value] += 1
        if status in _ALARM:
            self.in_alarm += 1
            if self.first_alarm_ns is None:
                self.first_alarm_ns = window.start_ns
        elif status is Status.OK:
            if self.in_alarm == 1 and self.counts[Status.SUSPECT.value] == 1 and not self.counts["failed"]:
                # One window was suspected and the next, which shares no frame with it, says otherwise.
                self.kept, self.first_alarm_ns = window, None
                self.counts["withdrawn"] += 1
                self.counts[Status.SUSPECT.value] -= 1
            self.in_alarm = 0
        if outweighs(status, self.kept.verdict.status):
            self.kept = window


class CheckBook:
    """Keeps for each check and subject the window that says most against the rig, and how many there were."""

    def __init__(self) -> None:
        self.latest: dict[Key, JudgedWindow] = {}
        """Of the whole session, over all episodes."""
        self.report = CheckerReport()
        self._histories: dict[Key, _History] = {}
        self._failing: set[Key] = set()

    def begin(self) -> None:
        """Forget the episode before."""
        self._histories.clear()

    def add(self, window: JudgedWindow) -> None:
        """Book a window of the open episode."""
        history = self._histories.setdefault(window.key, _History(window))
        history.add(window)

    def note(self, windows: Iterable[JudgedWindow]) -> bool:
        """Take in windows of any episode; return whether something fails now and nothing did before."""
        was_failing = bool(self._failing)
        for window in windows:
            self.latest[window.key] = window
            if window.verdict.status is Status.FAILED:
                self._failing.add(window.key)
            elif window.verdict.status is Status.OK:
                self._failing.discard(window.key)
        return bool(self._failing) and not was_failing

    def verdicts(self) -> tuple[Verdict, ...]:
        """Return one verdict for each check and subject; ``insufficient`` for those that never came to one."""
        found = [history.kept.verdict for history in self._histories.values()]
        for planned in self.report.checks:
            if not planned.is_optional and (planned.check, planned.subject) not in self._histories:
                reason = planned.note or "the episode ended before the first window was judged"
                found.append(Verdict(planned.check, planned.subject, Status.INSUFFICIENT, (), (reason,)))
        return tuple(found)

    def records(self) -> tuple[CheckRecord, ...]:
        """Return when the verdicts' windows were captured, and how all windows came out."""
        return tuple(
            CheckRecord(
                history.kept.verdict.check,
                history.kept.verdict.subject,
                history.kept.start_ns,
                history.kept.end_ns,
                {status: count for status, count in history.counts.items() if count},
                history.first_alarm_ns,
            )
            for history in self._histories.values()
        )
