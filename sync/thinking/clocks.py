"""The clocks of a recording session that are no stream, and the streams that claim to keep one of them."""

from collections.abc import Iterable, Iterator

from sensorium.drivers.frame import ClockKind
from sensorium.sync.clocks.claims import ClaimWatch, Reference
from sensorium.sync.clocks.host_base import HOST_CLOCK
from sensorium.sync.clocks.watch import ClockWatch, WatchEvent
from sensorium.sync.clocks.watch_settings import WatchSettings
from sensorium.sync.thinking.tracked import TrackedStream
from sensorium.timebase import BaseReading, Clock
from sensorium.verdict import Status, Verdict

_NO_LOCK = "PTP was never locked here"


class SessionClocks:
    """Polls the host's clock, PTP, chrony and nodes; each second holds the streams' claims against them."""

    def __init__(self, host_id: str, settings: WatchSettings, clock: Clock) -> None:
        """Open what ``settings`` name.

        Raises:
            ConfigError: If a key cannot be used.
            ClockError: If the PTP hardware clock cannot be read.
        """
        self._watch = ClockWatch(host_id, settings, clock)
        self._node_of = {device: node.name for node in settings.nodes for device in node.devices}
        self._claims: dict[str, ClaimWatch] = {}

    def begin(self) -> None:
        """Begin the verdicts of a new episode."""
        self._watch.begin()
        for claim in self._claims.values():
            claim.begin()

    def standing(self) -> tuple[WatchEvent, ...]:
        """Return what is known of each clock but the host's now, for an episode that begins."""
        return tuple(
            WatchEvent(v.subject, f"at the start: {v.check} {v.status.value}. {'; '.join(v.reasons)}".strip())
            for v in self.verdicts()
            if v.check != HOST_CLOCK and v.status is not Status.INSUFFICIENT
        )

    def step(self) -> tuple[WatchEvent, ...]:
        """Do what is due between two readings; never waits."""
        return self._watch.step()

    def second(self, reading: BaseReading, streams: Iterable[TrackedStream]) -> tuple[WatchEvent, ...]:
        """Take a reading of the host's clocks and compare every claim with its reference."""
        events = list(self._watch.step(reading))
        ptp = self._watch.ptp_reference()
        for stream in streams:
            if stream.info.clock.kind not in (ClockKind.FREE, ClockKind.PTP):
                continue
            node = self._node_of.get(stream.device)
            if node is not None:
                events += self._look(
                    stream,
                    self._watch.node_reference(node),
                    f"node {node}",
                    f"the clock of {node} is not known",
                )
            elif stream.info.clock.kind is ClockKind.PTP:
                events += self._look(stream, ptp, "PTP", _NO_LOCK)
        return tuple(events)

    def _look(
        self, stream: TrackedStream, reference: Reference | None, keeps: str, why_none: str
    ) -> Iterator[WatchEvent]:
        name = stream.info.name
        claim = self._claims.setdefault(name, ClaimWatch(stream.info, keeps))
        if claim.look(stream.tracker, reference, why_none):
            found = claim.verdict
            yield WatchEvent(
                name, f"claims {keeps}: {found.status.value}. {'; '.join(found.reasons)}".strip()
            )

    def verdicts(self) -> tuple[Verdict, ...]:
        """Return one verdict per clock as of now, and of each claim the worst that held since :meth:`begin`."""
        return (*self._watch.verdicts(), *(claim.worst for claim in self._claims.values()))

    def close(self) -> None:
        """Release all sockets."""
        self._watch.close()
