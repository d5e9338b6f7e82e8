"""When a pause holds, on the clock of the captures: the wall clock may be stepped between press and release."""

from collections.abc import Iterable
from dataclasses import replace

from sensorium.sync.consent.grants import BEFORE_ALL_NS, ConsentLedger, PauseEvent
from sensorium.timebase import HostInstant, Timeline


def on_timeline(ledger: ConsentLedger, timeline: Timeline) -> ConsentLedger:
    """Return a ledger whose pauses hold in the UTC of an episode, whatever the wall clock said when they were pressed.

    Presses of another start of the machine, or on another machine than a replay's source, stay where the wall
    clock put them.
    """
    if timeline.is_virtual or not timeline.boot_id:
        return ledger
    placed = [_in_utc_of(timeline, pause) for pause in ledger.pauses]
    return replace(ledger, pauses=tuple(placed))


def _in_utc_of(timeline: Timeline, pause: PauseEvent) -> PauseEvent:
    pressed, released = pause.pressed, pause.released
    if pressed is not None and pressed.boot_id == timeline.boot_id:
        pause = replace(pause, from_ns=pressed.host_ns + timeline.utc_minus_host_ns)
    if released is not None and released.boot_id == timeline.boot_id:
        pause = replace(pause, until_ns=released.host_ns + timeline.utc_minus_host_ns)
    return pause


class LivePauses:
    """The pauses of a running session on the clock of its captures.

    Args:
        boot: Start of the machine that the captures' clock counts from; "" if it is that of a replay's source.
    """

    def __init__(self, boot: str) -> None:
        self._boot = boot
        self._pressed_ns: dict[str, int] = {}
        self._released_ns: dict[str, int] = {}

    def place(
        self, pauses: Iterable[PauseEvent], now_ns: int, utc_offsets_ns: tuple[int, int]
    ) -> tuple[PauseEvent, ...]:
        """Return the pauses with press and release on the captures' clock, those that are long over left out.

        Args:
            now_ns: Now on the captures' clock. Press and release may be stamped by a clock that is ahead of it
                (always, during a replay); each holds at the latest from when it was first seen here.
            utc_offsets_ns: Least and most that UTC may be ahead of the captures' clock.
        """
        placed = (self._place(pause, now_ns, utc_offsets_ns) for pause in pauses)
        return tuple(pause for pause in placed if pause is not None)

    def _place(self, pause: PauseEvent, now_ns: int, offsets_ns: tuple[int, int]) -> PauseEvent | None:
        from_ns = self._when(pause.pressed, pause.from_ns - offsets_ns[1])
        until_ns = (
            None if pause.until_ns is None else self._when(pause.released, pause.until_ns - offsets_ns[0])
        )
        if until_ns == BEFORE_ALL_NS:
            return None
        if until_ns is None:
            self._pressed_ns.setdefault(pause.id, now_ns)
        if pause.id in self._pressed_ns:
            from_ns = min(from_ns, self._pressed_ns[pause.id])
            if until_ns is not None:
                until_ns = min(until_ns, self._released_ns.setdefault(pause.id, now_ns))
        return replace(pause, from_ns=from_ns, until_ns=until_ns)

    def _when(self, instant: HostInstant | None, by_wall_clock_ns: int) -> int:
        if instant is None or not self._boot:
            return by_wall_clock_ns
        # What was pressed before the machine was last started lies before all captures since then.
        return instant.host_ns if instant.boot_id == self._boot else BEFORE_ALL_NS
