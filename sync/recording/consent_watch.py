"""What happens in the recorder where a privacy pause begins or ends, or consent is withdrawn, whoever did it."""

from dataclasses import dataclass

from sensorium.drivers.bus.receiver import BusReceiver
from sensorium.sync.consent.grants import ConsentLedger, EventKind
from sensorium.sync.recording.consents import SessionConsent
from sensorium.sync.recording.open_episode import OpenEpisode
from sensorium.sync.recording.press import PauseSettings, PressFile

_WITHDRAWING = frozenset({EventKind.WITHDRAWN, EventKind.REVOKED})


@dataclass(frozen=True, slots=True)
class Change:
    """Something after which the open episode is cut; ``kind`` and ``said`` go into it as an event."""

    kind: str
    said: str


class ConsentWatch:
    """Sees what changes for the open episode, and has the memory that drivers share zeroed when it does.

    A pause cuts the episode so that what was recorded before goes to the disk at once, and from no buffer later. A
    withdrawal of what the open episode holds cuts it so that its seal erases that within seconds.
    """

    def __init__(
        self, consent: SessionConsent, receiver: BusReceiver, settings: PauseSettings | None
    ) -> None:
        self._consent = consent
        self._receiver = receiver
        self._press = PressFile(settings) if settings is not None else None
        self._was_paused = False
        self._ledger = consent.ledger
        self._withdrawn = _withdrawn(consent.ledger)

    def step(self) -> None:
        """Read the switch, if there is one; call every 20 ms."""
        if self._press is not None:
            self._press.step(self._consent)

    def change(self, by: str, episode: OpenEpisode | None) -> Change | None:
        """Return what has just changed for the open episode, or for the next; None if nothing did."""
        is_paused = self._consent.is_paused
        if is_paused is not self._was_paused:
            self._was_paused = is_paused
            self._receiver.keep_wiping(is_paused)
            if is_paused:
                self._receiver.wipe()
            kind = "pause" if is_paused else "resume"
            return Change(kind, f"{kind}d by {by}")
        return self._withdrawal(episode) if self._consent.ledger is not self._ledger else None

    def _withdrawal(self, episode: OpenEpisode | None) -> Change | None:
        self._ledger = ledger = self._consent.ledger
        ended = _withdrawn(ledger) - self._withdrawn
        self._withdrawn |= ended
        held = [] if episode is None else [each.info for each in episode.streams.values() if each.samples]
        concerned = sorted(
            grant.id
            for grant in ledger.grants
            if grant.id in ended and any(info.is_personal and grant.scope.reaches(info) for info in held)
        )
        if not concerned:
            return None
        self._receiver.wipe()
        return Change("consent", f"withdrawn: {', '.join(concerned)}; what was recorded under it is erased")


def _withdrawn(ledger: ConsentLedger) -> frozenset[str]:
    return frozenset(event.grant_id for event in ledger.events if event.kind in _WITHDRAWING)
