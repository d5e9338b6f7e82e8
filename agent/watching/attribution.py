"""Which sensor moved, from what all watched pairs say after it did."""

from collections.abc import Iterable, Sequence
from typing import Any

from sensorium.agent.watching.watch import ALARM, Watch
from sensorium.calibration.attribution import moved_sensors
from sensorium.sync.check_book import MOUNTING, JudgedWindow
from sensorium.timebase import SECOND_NS
from sensorium.verdict import Quantity, Status, Verdict, worst


class Attribution:
    """Names the sensors behind pairs that are off in two windows, and anew when other pairs change the answer."""

    def __init__(self) -> None:
        self._said: tuple[str, tuple[str, ...], Status] | None = None

    def verdict(self, watches: Iterable[Watch[Any]]) -> JudgedWindow | None:
        """Return who moved and when, if some pair is off for sure and the answer is new; None otherwise."""
        judged = [watch for watch in watches if watch.latest is not None]
        failing = [watch for watch in judged if watch.moved is not None]
        if not failing:
            self._said = None
            return None
        afters = [watch.moved.after_ns for watch in failing if watch.moved and watch.moved.after_ns]
        before_ns = min(watch.moved.before_ns for watch in failing if watch.moved)
        after_ns = max((ns for ns in afters if ns <= before_ns), default=None)
        # A pair that was ok before the motion says nothing about who moved, nor does one window in alarm alone.
        heard = [
            watch
            for watch in judged
            if watch.moved is not None
            or (watch.latest and watch.latest.end_ns >= before_ns and _status(watch) is Status.OK)
        ]
        names = moved_sensors(watch.latest.verdict for watch in heard if watch.latest)
        episode = failing[0].episode
        status = worst(watch.latest.verdict for watch in failing if watch.latest)
        if not names or self._said == (episode, names, status):
            return None
        self._said = (episode, names, status)
        return JudgedWindow(
            _verdict(status, names, heard, (after_ns, before_ns), failing[0].started_ns),
            after_ns or before_ns,
            before_ns,
        )


def _status(watch: Watch[Any]) -> Status:
    assert watch.latest is not None
    return watch.latest.verdict.status


def _verdict(
    status: Status,
    names: tuple[str, ...],
    heard: Sequence[Watch[Any]],
    moved: tuple[int | None, int],
    started_ns: int,
) -> Verdict:
    alarmed = ", ".join(watch.plan.subject for watch in heard if _status(watch) in ALARM)
    calm = ", ".join(watch.plan.subject for watch in heard if _status(watch) is Status.OK)
    after_ns, before_ns = moved
    is_sure = all(_explains(name, heard) for name in names)
    if len(names) == 1 or is_sure:
        sentence = f"{' and '.join(names)} moved: {alarmed} off" + (f", {calm} in place" if calm else "")
    else:
        sentence = f"{' or '.join(names)} moved: {alarmed} off; no other pair tells which"
    reasons = [sentence]
    numbers: list[Quantity] = []
    if after_ns is not None:
        after_s, before_s = ((ns - started_ns) / SECOND_NS for ns in (after_ns, before_ns))
        numbers = [Quantity("moved_after", after_s, "s"), Quantity("moved_before", before_s, "s")]
        reasons.append(f"between {after_s:.1f} s and {before_s:.1f} s of the episode")
    return Verdict(MOUNTING, ", ".join(names), status, tuple(numbers), tuple(reasons))


def _explains(name: str, heard: Sequence[Watch[Any]]) -> bool:
    """Return whether every judged pair of this sensor is off, and there is more than one."""
    own = [watch for watch in heard if name in watch.plan.frames]
    return len(own) > 1 and all(_status(watch) in ALARM for watch in own)
