"""The clock of a remote node, followed with probes: what a synchronizer polls for its map and its verdict."""

from sensorium.sync.clocks.model import ClockEvent, ClockEventKind, ClockModel
from sensorium.sync.clocks.probe import ProbeClient
from sensorium.sync.clocks.two_way import OffsetEstimate, TwoWayEstimator
from sensorium.timebase import SECOND_NS, Clock
from sensorium.verdict import Quantity, Status, Verdict

SILENT_BURSTS = 3
"""So many bursts without an answer, and the map is said to be in holdover."""
STATE_LIMIT_NS = 1_000_000.0
"""A stated half width beyond this (asymmetry included) is suspect unless the caller says otherwise."""


class RemoteClock:
    """Probes one node and estimates its clock; call :meth:`step` often, it never waits.

    Args:
        name: Of the node, for events and verdicts.
        limit_ns: Half width, asymmetry included, that is good enough.
    """

    def __init__(
        self, name: str, client: ProbeClient, clock: Clock, limit_ns: float = STATE_LIMIT_NS
    ) -> None:
        self.name = name
        self.estimator = TwoWayEstimator()
        self._client = client
        self._clock = clock
        self._limit_ns = limit_ns
        self._silent_bursts = 0
        self._heard_ns: int | None = None
        self._epoch = 0
        self._was_frozen = False
        self._events: list[ClockEvent] = []

    def step(self) -> bool:
        """Send and take in what is due; return True when a burst was completed."""
        burst = self._client.step()
        if burst is None:
            return False
        now_ns = self._clock.now_ns()
        if self.estimator.update(burst):
            if self._silent_bursts >= SILENT_BURSTS:
                self._note(
                    ClockEventKind.STALL, now_ns, f"answers again after {self._silence_s(now_ns):.1f} s"
                )
            self._silent_bursts = 0
            self._heard_ns = now_ns
        else:
            self._silent_bursts += 1
            if self._silent_bursts == SILENT_BURSTS:
                self._note(ClockEventKind.STALL, now_ns, f"{SILENT_BURSTS} bursts without a new answer")
        self._note_changes(now_ns)
        return True

    def estimate(self) -> OffsetEstimate | None:
        """Return the offset now; None before enough answers came."""
        return self.estimator.estimate(self._clock.now_ns())

    def model(self) -> ClockModel | None:
        """Return the map from the node's clock (ticks = its nanoseconds) to ours."""
        return self.estimator.model(self._clock.now_ns())

    def take_events(self) -> tuple[ClockEvent, ...]:
        """Return and forget the events since the last call."""
        events = tuple(self._events)
        self._events.clear()
        return events

    def verdict(self) -> Verdict:
        """Return whether the node's clock is known well enough, now."""
        estimate = self.estimate()
        if estimate is None:
            return self._verdict(Status.INSUFFICIENT, (), (self._why_no_answer(),))
        width_ns = estimate.bound95_ns + estimate.asymmetry_ns
        quantities = (
            Quantity("half width with asymmetry", width_ns, "ns", self._limit_ns),
            Quantity("95 % bound", estimate.bound95_ns, "ns"),
            Quantity("hard bound", estimate.hard_ns, "ns"),
            Quantity("skew", estimate.skew_ppm, "ppm"),
        )
        reasons = []
        if self.estimator.is_frozen:
            reasons.append("only old answers are repeated; the other side is not measuring any more")
        if self._silent_bursts >= SILENT_BURSTS:
            held_s = self._silence_s(self._clock.now_ns())
            reasons.append(f"in holdover for {held_s:.1f} s: {self._why_no_answer()}")
        if width_ns > self._limit_ns:
            reasons.append(
                f"its clock is known to {width_ns / 1e3:.0f} us only, {self._limit_ns / 1e3:.0f} us are wanted"
            )
        return self._verdict(Status.SUSPECT if reasons else Status.OK, quantities, tuple(reasons))

    def close(self) -> None:
        """Release the socket."""
        self._client.close()

    def _verdict(self, status: Status, quantities: tuple[Quantity, ...], reasons: tuple[str, ...]) -> Verdict:
        return Verdict("remote_clock", self.name, status, quantities, reasons)

    def _why_no_answer(self) -> str:
        if self._client.rejected:
            reason, count = self._client.rejected.most_common(1)[0]
            return f"{count} answers were refused: {reason}"
        return "no answer; does the node's probe server run with the same key, and is UDP let through?"

    def _silence_s(self, now_ns: int) -> float:
        return 0.0 if self._heard_ns is None else (now_ns - self._heard_ns) / SECOND_NS

    def _note_changes(self, now_ns: int) -> None:
        if self.estimator.epoch != self._epoch:
            self._epoch = self.estimator.epoch
            counts = self.estimator.counts
            detail = f"clock restarted or stepped ({counts.restarts} restarts, {counts.steps} steps so far)"
            self._note(ClockEventKind.RESET, now_ns, detail)
        if self.estimator.is_frozen and not self._was_frozen:
            self._note(ClockEventKind.FROZEN, now_ns, "only old answers are repeated")
        self._was_frozen = self.estimator.is_frozen

    def _note(self, kind: ClockEventKind, host_ns: int, detail: str) -> None:
        self._events.append(ClockEvent(self.name, kind, host_ns, detail))
