"""Losses for the episode's log: one entry per stream, place and reason in a second, however many there are."""

from collections.abc import Iterator
from dataclasses import dataclass

from sensorium.drivers.bus.wire import Lost
from sensorium.drivers.frame import Place
from sensorium.timebase import SECOND_NS


@dataclass(slots=True)
class LossRun:
    """``count`` samples of a stream that were lost for one reason from ``seq`` on; others between may have come."""

    stream: str
    place: Place
    reason: str
    seq: int
    count: int
    since_ns: int

    @property
    def sentence(self) -> str:
        return f"{self.count} samples from {self.seq} on lost at {self.place.value}: {self.reason}"

    @property
    def fields(self) -> dict[str, str]:
        """The same for machines."""
        return {
            "seq": str(self.seq),
            "count": str(self.count),
            "place": self.place.value,
            "reason": self.reason,
        }


class LossRuns:
    """Joins the losses that drivers report; the account has each of them at once, this is for people."""

    def __init__(self) -> None:
        self._runs: dict[tuple[str, Place, str], LossRun] = {}

    def add(self, lost: Lost, now_ns: int) -> None:
        key = (lost.stream, lost.place, lost.reason)
        run = self._runs.get(key)
        if run is None:
            self._runs[key] = LossRun(lost.stream, lost.place, lost.reason, lost.seq, lost.count, now_ns)
        else:
            run.count += lost.count

    def due(self, now_ns: int | None) -> Iterator[LossRun]:
        """Yield the runs that began a second ago, and forget them; None = all."""
        for key, run in list(self._runs.items()):
            if now_ns is None or now_ns - run.since_ns >= SECOND_NS:
                del self._runs[key]
                yield run
