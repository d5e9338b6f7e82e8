"""Which sensor moved, from what all watched pairs say after it did."""

from collections.abc import Iterable, Sequence
from typing import Any

from sensorium.agent.calibrating.watching.watch import ALARM, Moved, Watch
from sensorium.calibration.attribution import moved_sensors
from sensorium.sync.recording.judged import MOUNTING, JudgedWindow
from sensorium.timebase import SECOND_NS
from sensorium.verdict import Quantity, Status, Verdict, worst


class Attribution:
    """Names the sensors behind pairs that are off in two windows, and anew when other pairs change the answer."""

    def __init__(self) -> None:
        self._said: tuple[str, tuple[str, ...], Status] | None = None

    def verdict(self, watches: Iterable[Watch[Any]], current: Watch[Any]) -> JudgedWindow | None:
        """Return who moved and when, if some pair is off for sure and the answer is new; ok once all are back.

        Args:
            current: The pair that was judged just now; the answer belongs to its episode.
        """
        judged = [watch for watch in watches if watch.settled is not None]
        spans = [watch.moved for watch in judged if watch.moved is not None]
        if not spans:
            return self._taken_back(current)
        before_ns = min(moved.before_ns for moved in spans)
        afters = [moved.after_ns for moved in spans if moved.after_ns is not None]
        after_ns = max((ns for ns in afters if ns <= before_ns), default=None)
        # A pair that was ok before the motion says nothing about who moved, nor does one window in alarm alone.
        heard = [watch for watch in judged if watch.moved is not None or _is_ok_after(watch, before_ns)]
        names = moved_sensors(watch.settled for watch in heard if watch.settled)
        status = worst(watch.settled for watch in heard if watch.settled)
        if not names or self._said == (current.episode, names, status):
            return None
        self._said = (current.episode, names, status)
        verdict = _verdict(status, names, heard, Moved(after_ns, before_ns), current.started_ns)
        return JudgedWindow(verdict, after_ns or before_ns, before_ns)

    def _taken_back(self, current: Watch[Any]) -> JudgedWindow | None:
        if self._said is None or current.latest is None:
            return None
        _, names, _ = self._said
        self._said = None
        reason = "every pair that was off is in place again, or was off by a time offset only"
        verdict = Verdict(MOUNTING, ", ".join(names), Status.OK, (), (reason,))
        return JudgedWindow(verdict, current.latest.start_ns, current.latest.end_ns)


def _is_ok_after(watch: Watch[Any], since_ns: int) -> bool:
    latest = watch.latest
    return latest is not None and latest.end_ns >= since_ns and latest.verdict.status is Status.OK


def _status(watch: Watch[Any]) -> Status:
    assert watch.settled is not None
    return watch.settled.status


def _verdict(
    status: Status, names: tuple[str, ...], heard: Sequence[Watch[Any]], moved: Moved, started_ns: int
) -> Verdict:
    alarmed = ", ".join(watch.plan.subject for watch in heard if _status(watch) in ALARM)
    calm = ", ".join(watch.plan.subject for watch in heard if _status(watch) is Status.OK)
    is_sure = len(names) == 1 or all(_explains(name, heard) for name in names)
    subject = (", " if is_sure else " or ").join(names)
    in_place = f", {calm} in place" if calm else ""
    reasons = [f"{subject} moved: {alarmed} off{in_place if is_sure else '; no other pair tells which'}"]
    numbers: tuple[Quantity, ...] = ()
    if moved.before_ns < started_ns:
        reasons.append("before this episode began")
    elif moved.after_ns is not None:
        after_s, before_s = ((ns - started_ns) / SECOND_NS for ns in (moved.after_ns, moved.before_ns))
        numbers = (Quantity("moved_after", after_s, "s"), Quantity("moved_before", before_s, "s"))
        reasons.append(f"between {after_s:.1f} s and {before_s:.1f} s of the episode")
    return Verdict(MOUNTING, subject, status, numbers, tuple(reasons))


def _explains(name: str, heard: Sequence[Watch[Any]]) -> bool:
    """Return whether every judged pair of this sensor is off, and there is more than one."""
    own = [watch for watch in heard if name in watch.plan.frames]
    return len(own) > 1 and all(_status(watch) in ALARM for watch in own)
