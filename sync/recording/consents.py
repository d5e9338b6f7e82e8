"""What consent says of each frame while recording: to store it, to show it live."""

from dataclasses import dataclass

from sensorium.drivers.frame import Frame, StreamInfo
from sensorium.sync.clocks.model import Stamped
from sensorium.sync.consent.decisions import Decision, StreamConsent
from sensorium.sync.consent.grants import ConsentLedger, Purpose
from sensorium.sync.consent.store import ConsentStore
from sensorium.timebase import SECOND_NS, Clock

_HELD = Decision(False, "paused", "paused; the press could not be written down")


@dataclass(frozen=True, slots=True)
class Now:
    """This moment in UTC: true, and on the clock of the captures (of a replay: in the past)."""

    utc_ns: int
    capture_utc_ns: int


class SessionConsent:
    """The decisions of a session's personal streams, renewed with the log and with time."""

    def __init__(self, store: ConsentStore, clock: Clock) -> None:
        self.ledger: ConsentLedger = store.poll(clock.utc_ns())
        self._store = store
        self._clock = clock
        self._is_held = False
        self._record: dict[str, StreamConsent] = {}
        self._live: dict[str, StreamConsent] = {}

    @property
    def is_paused(self) -> bool:
        return self._is_held or self.ledger.is_paused

    def admit(self, info: StreamInfo, now: Now) -> None:
        """Prepare the decisions for a stream."""
        for purpose, found in ((Purpose.RECORD, self._record), (Purpose.LIVE, self._live)):
            found[info.name] = StreamConsent(self.ledger, info, purpose, now.utc_ns, now.capture_utc_ns)

    def update(self, now: Now) -> None:
        """Take in what was written to the log, and the passing of time; call every 20 ms."""
        self.ledger = self._store.poll(now.utc_ns)
        for consent in (*self._record.values(), *self._live.values()):
            consent.update(self.ledger, now.utc_ns, now.capture_utc_ns)

    def to_record(self, info: StreamInfo, frame: Frame, stamped: Stamped, utc_minus_host_ns: int) -> Decision:
        """Return whether a frame of a personal stream may be stored."""
        if self._is_held:
            return _HELD
        return _over_span(self._record[info.name], info, frame, stamped, utc_minus_host_ns)

    def to_show(self, info: StreamInfo, frame: Frame, stamped: Stamped, utc_minus_host_ns: int) -> bool:
        """Return whether a frame may be shown to viewers."""
        if self._is_held:
            return False
        return _over_span(self._live[info.name], info, frame, stamped, utc_minus_host_ns).is_allowed

    def pause(self, source: str) -> int:
        """Deny personal captures from now on; durable before it returns. Returns the UTC of the press.

        Raises:
            ConsentError: If the press could not be written down; captures are denied all the same, until
                ``resume`` or the end of this process.
        """
        self._is_held = True
        pause = self._store.pause(self._clock.utc_ns(), source)
        self._is_held = False
        return pause.from_ns

    def resume(self, source: str) -> int:
        """End every pause; return how many there were."""
        ended = self._store.resume(self._clock.utc_ns(), source)
        self._is_held = False
        return len(ended)


def _over_span(
    consent: StreamConsent, info: StreamInfo, frame: Frame, stamped: Stamped, utc_minus_host_ns: int
) -> Decision:
    """Return the decision over the whole span of a frame's samples, widened by their uncertainty."""
    first, last = int(stamped.capture_ns[0]), int(stamped.capture_ns[-1])
    if len(stamped.capture_ns) == 1 and frame.count > 1 and info.rate_hz:
        last += int((frame.count - 1) * SECOND_NS / info.rate_hz)
    half_width = (last - first) // 2 + int(stamped.uncertainty.total95_ns)
    return consent.allows((first + last) // 2 + utc_minus_host_ns, half_width)
