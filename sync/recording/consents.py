"""What consent says of each frame while recording: to store it, to show it live."""

from dataclasses import dataclass, replace

from sensorium.drivers.frame import Frame, StreamInfo
from sensorium.sync.clocks.model import Stamped
from sensorium.sync.consent.decisions import Decision, StreamConsent
from sensorium.sync.consent.grants import ConsentLedger, Purpose
from sensorium.sync.consent.store import ConsentStore
from sensorium.timebase import SECOND_NS, Clock, Timeline, boot_id

_HELD = Decision(False, "paused", "paused; the press could not be written down")


_OLDEST_PRESS_NS = 60 * SECOND_NS
"""A press that states an earlier host time is taken to be from then."""
_UTC_PLAY_NS = SECOND_NS // 1000
"""A slewed wall clock is followed in steps of this, so that decisions are made anew every few seconds at most."""


@dataclass(frozen=True, slots=True)
class Now:
    """This moment: in UTC by the wall clock, and on the clock of the captures (of a replay: in the past).

    Attributes:
        offset_ns: UTC minus the captures' clock, as the wall clock or a replay's source says.
        boot: Start of the machine that the captures' clock counts from; "" in a replay.
    """

    utc_ns: int
    capture_ns: int
    offset_ns: int
    boot: str


def moment(clock: Clock, timeline: Timeline | None, arrival_ns: int) -> Now:
    """Return now, for streams of a timeline whose latest frame arrived at ``arrival_ns``."""
    utc_ns = clock.utc_ns()
    if timeline is not None and timeline.is_virtual:
        return Now(utc_ns, arrival_ns, timeline.utc_minus_host_ns, "")
    return Now(utc_ns, clock.now_ns(), clock.utc_minus_host_ns(), boot_id())


class SessionConsent:
    """The decisions of a session's personal streams, renewed with the log and with time.

    Presses and captures are compared on the host clock. Grants are in UTC, and a capture's UTC is uncertain
    once the wall clock was set during an episode: then a grant must cover both readings of it.
    """

    def __init__(self, store: ConsentStore, clock: Clock, beside: ConsentStore | None = None) -> None:
        """``beside``: the folder of the spool, where another governs: who pauses without an agent writes there."""
        self._store = store
        self._beside = beside
        self._polled: tuple[ConsentLedger, ConsentLedger] | None = None
        self._clock = clock
        self.ledger: ConsentLedger = self._poll(clock.utc_ns())
        self._is_held = False
        self._offsets_ns: tuple[int, int] | None = None
        self._record: dict[str, StreamConsent] = {}
        self._live: dict[str, StreamConsent] = {}

    @property
    def is_paused(self) -> bool:
        return self._is_held or self.ledger.is_paused

    def admit(self, info: StreamInfo, now: Now) -> None:
        """Prepare the decisions for a stream."""
        offsets = self._widened(now)
        for purpose, found in ((Purpose.RECORD, self._record), (Purpose.LIVE, self._live)):
            found[info.name] = StreamConsent(
                self.ledger, info, purpose, now.utc_ns, now.capture_ns, now.boot, offsets
            )

    def begin(self, offset_ns: int, now: Now) -> None:
        """Note how an episode that begins now relates host time to UTC, to the end."""
        self._offsets_ns = (offset_ns, offset_ns)
        self._renew(now)

    def update(self, now: Now) -> None:
        """Take in what was written to the log, and the passing of time; call every 20 ms."""
        self.ledger = self._poll(now.utc_ns)
        self._renew(now)

    def _poll(self, now_utc_ns: int) -> ConsentLedger:
        """Return the ledger, the same object until something changes."""
        found = self._store.poll(now_utc_ns)
        if self._beside is None:
            return found
        beside = self._beside.poll(now_utc_ns)
        before, self._polled = self._polled, (found, beside)
        if before is not None and before[0] is found and before[1] is beside:
            return self.ledger
        return replace(found, pauses=(*found.pauses, *beside.pauses), fault=found.fault or beside.fault)

    def _renew(self, now: Now) -> None:
        offsets = self._widened(now)
        for consent in (*self._record.values(), *self._live.values()):
            consent.update(self.ledger, now.utc_ns, now.capture_ns, offsets)

    def _widened(self, now: Now) -> tuple[int, int]:
        least_ns, most_ns = self._offsets_ns or (now.offset_ns, now.offset_ns)
        if now.offset_ns < least_ns:
            least_ns = now.offset_ns - _UTC_PLAY_NS
        elif now.offset_ns > most_ns:
            most_ns = now.offset_ns + _UTC_PLAY_NS
        self._offsets_ns = (least_ns, most_ns)
        return self._offsets_ns

    def to_record(self, info: StreamInfo, frame: Frame, stamped: Stamped) -> Decision:
        """Return whether a frame of a personal stream may be stored."""
        if self._is_held:
            return _HELD
        return _over_span(self._record[info.name], info, frame, stamped)

    def withheld(self, info: StreamInfo, now: Now) -> str:
        """Return why what a stream captures now is not stored; "" if it is."""
        if info.is_personal is False or info.name not in self._record:
            return ""
        decision = _HELD if self._is_held else self._record[info.name].allows(now.capture_ns, 0)
        return "" if decision.is_allowed else decision.reason

    def to_show(self, info: StreamInfo, frame: Frame, stamped: Stamped) -> bool:
        """Return whether a frame may be shown to viewers."""
        if self._is_held:
            return False
        return _over_span(self._live[info.name], info, frame, stamped).is_allowed

    def pause(self, source: str, pressed_ns: int | None = None) -> int:
        """Deny personal captures from the press on; durable before it returns. Returns the UTC of the press.

        Args:
            pressed_ns: Host time of the press, where that is known from whoever was there; else it is now.

        Raises:
            ConsentError: If the press could not be written down; captures are denied all the same, until
                ``resume`` or the end of this process.
        """
        self._is_held = True
        pause = self._store.pause(self._clock.utc_ns(), source, pressed_ns=self._bounded(pressed_ns))
        self._is_held = False
        return pause.from_ns

    def _bounded(self, pressed_ns: int | None) -> int:
        """Return a press that is stated, unless it lies in the future or long ago."""
        now_ns = self._clock.now_ns()
        return now_ns if pressed_ns is None else max(now_ns - _OLDEST_PRESS_NS, min(pressed_ns, now_ns))

    def release(self, source: str) -> int:
        """End the pauses that a source pressed, and no others; return how many there were."""
        return self.resume(source, of_source=source)

    def resume(self, source: str, of_source: str = "") -> int:
        """End every pause, or those of one source; return how many there were."""
        stores = [store for store in (self._store, self._beside) if store is not None]
        ended = sum(len(store.resume(self._clock.utc_ns(), source, of_source)) for store in stores)
        self._is_held = False
        return ended


def _over_span(consent: StreamConsent, info: StreamInfo, frame: Frame, stamped: Stamped) -> Decision:
    """Return the decision over the whole span of a frame's samples, widened by their uncertainty."""
    first, last = int(stamped.capture_ns[0]), int(stamped.capture_ns[-1])
    if len(stamped.capture_ns) == 1 and frame.count > 1 and info.rate_hz:
        last += int((frame.count - 1) * SECOND_NS / info.rate_hz)
    half_width = (last - first) // 2 + int(stamped.uncertainty.total95_ns)
    return consent.allows((first + last) // 2, half_width)
