"""What the recorder and the thinker have to do with each other beside the notes of frames."""

from collections.abc import Sequence
from typing import Any

from sensorium.sync.clocks.published import ClockMap
from sensorium.sync.recording.episodes import Episodes
from sensorium.sync.recording.notes import NoteKind, ThinkerLink, ThoughtKind
from sensorium.sync.recording.roster import Roster
from sensorium.sync.recording.streams import Instance
from sensorium.timebase import SECOND_NS

AHEAD_NS = SECOND_NS // 2
"""How far a replay without capture times of its own may run ahead of the thinking (on its own clock)."""
PATIENCE_NS = 20 * SECOND_NS
"""How long such a replay waits for a thinker that says nothing before it goes on without."""


class Briefing:
    """Tells a thinker what it needs to know, and heeds what it says.

    Attributes:
        summaries: What the thinker says of each stream: rate, uncertainty, latency.
        n_sealed: Episodes that it has sealed.
        fault: Why it could not seal one; "" while all is well.
    """

    def __init__(self, link: ThinkerLink, roster: Roster, episodes: Episodes, now_ns: int) -> None:
        self.summaries: dict[str, dict[str, float]] = {}
        self.n_sealed = 0
        self.fault = ""
        self._link = link
        self._roster = roster
        self._episodes = episodes
        self._seen_ns = 0
        self._heard_ns = now_ns

    def hear(self, now_ns: int) -> None:
        """Take in what the thinker said; brief one that has just come."""
        is_new, said = self._link.hear()
        if is_new:
            self._brief()
        if said:
            self._heard_ns = now_ns
        for thought in said:
            self._heed(thought)

    def declare(self, instance: Instance) -> None:
        """Tell of a driver instance."""
        self._link.note((NoteKind.DECLARE.value, instance.declare.model_dump_json().encode()))

    def end(self, instance: Instance) -> None:
        """Tell that a driver instance has said its last word."""
        self._link.note((NoteKind.ENDED.value, instance.number))

    def is_behind(self, arrival_ns: int, now_ns: int) -> bool:
        """Return whether a replay has to wait for the clock maps that stamp it.

        Args:
            arrival_ns: Latest arrival on the replay's clock.
        """
        return arrival_ns - self._seen_ns > AHEAD_NS and now_ns - self._heard_ns < PATIENCE_NS

    def _brief(self) -> None:
        for instance in self._roster:
            self.declare(instance)
            if instance.has_ended:
                self.end(instance)
        if self._episodes.open is not None:
            self._episodes.tell(self._episodes.open, is_from_start=False)

    def _heed(self, thought: Sequence[Any]) -> None:
        kind = ThoughtKind(thought[0])
        if kind is ThoughtKind.MAP:
            self._use_map(*thought[1:])
        elif kind is ThoughtKind.SEEN:
            self._seen_ns = thought[1]
        elif kind is ThoughtKind.SUMMARY:
            self.summaries = thought[1]
        elif kind is ThoughtKind.SEALED:
            self.n_sealed += 1
            if thought[3]:
                self.fault = self.fault or f"episode {thought[1]} could not be sealed: {thought[3]}"

    def _use_map(self, number: int, index: int, fields: Sequence[Any]) -> None:
        instance = self._roster.instances.get(number)
        if instance is not None:
            stream = next(each for each in instance.streams.values() if each.index == index)
            stream.stamper.use(ClockMap.unpack(fields))
