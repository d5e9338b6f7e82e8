"""The account of every sample: produced = recorded + dropped, per stream and driver instance.

An episode opens an account at the sequence number that comes next and closes it at the one that came last.
In between, each number is recorded, reported lost by the driver, or missing, which books it to the bus. The
tallies are kept apart and compared at the end, so the balance can fail.
"""

from collections import Counter
from dataclasses import dataclass, field

from sensorium.drivers.bus.counters import StreamCounts
from sensorium.drivers.frame import Place

IN_FLIGHT = "in flight when the driver or its connection died"
Reason = tuple[Place, str]
NOT_ON_DISK: Reason = (Place.SYNCHRONIZER, "not yet on disk when the synchronizer died")


@dataclass(slots=True)
class Account:
    """One stream of one driver instance within one episode."""

    start_seq: int
    next_seq: int
    recorded: int = 0
    dropped: Counter[Reason] = field(default_factory=Counter)

    @property
    def produced(self) -> int:
        return self.next_seq - self.start_seq

    @property
    def is_balanced(self) -> bool:
        return self.produced == self.recorded + self.dropped.total()


@dataclass(slots=True)
class InstanceStream:
    """What the synchronizer knows of one stream of one driver instance, across episodes.

    Attributes:
        next_seq: First number that has not been accounted for.
        reported: Losses that the driver has reported so far, to tell them from what its counter file adds.
    """

    next_seq: int = 0
    reported: Counter[Reason] = field(default_factory=Counter)
    account: Account | None = None

    def open_account(self) -> Account:
        """Start a new account at the next number; the old one must have been taken."""
        self.account = Account(self.next_seq, self.next_seq)
        return self.account

    def take_account(self) -> Account | None:
        """Close and return the current account."""
        account, self.account = self.account, None
        return account

    def arrive(self, seq: int, count: int) -> bool:
        """Account for a received frame; False when its numbers were settled before (it must be ignored)."""
        if seq < self.next_seq:
            return False
        if seq > self.next_seq:
            self._miss(seq - self.next_seq, Place.BUS, IN_FLIGHT)
        self._advance(seq + count)
        return True

    def drop(self, count: int, place: Place, reason: str) -> None:
        """Book samples that arrived but will not be stored."""
        if self.account is not None:
            self.account.dropped[place, reason] += count

    def report_lost(self, seq: int, count: int, place: Place, reason: str) -> None:
        """Book a loss that the driver reports, in sequence order."""
        if seq > self.next_seq:
            self._miss(seq - self.next_seq, Place.BUS, IN_FLIGHT)
        fresh = seq + count - self.next_seq
        if fresh > 0:  # else it was settled from the counter file before the report came
            self.reported[place, reason] += fresh
            self._miss(fresh, place, reason)

    def reach(self, next_seq: int) -> None:
        """Book everything up to ``next_seq`` that has not come, after the driver's last word."""
        if next_seq > self.next_seq:
            self._miss(next_seq - self.next_seq, Place.BUS, IN_FLIGHT)

    def settle(self, counts: StreamCounts) -> None:
        """Close the tail from the counter file of an instance that died without a last word."""
        tail = counts.next_seq - self.next_seq
        if tail <= 0:
            return
        for (place, reason), total in counts.lost.items():
            unreported = min(total - self.reported[place, reason], tail)
            if unreported > 0:
                self.reported[place, reason] += unreported
                self._miss(unreported, place, reason)
                tail -= unreported
        if tail > 0:
            self._miss(tail, Place.BUS, IN_FLIGHT)

    def _miss(self, count: int, place: Place, reason: str) -> None:
        self._advance(self.next_seq + count)
        self.drop(count, place, reason)

    def _advance(self, next_seq: int) -> None:
        self.next_seq = next_seq
        if self.account is not None:
            self.account.next_seq = next_seq


def settle_torn(
    start_seq: int, reported_at_start: Counter[Reason], recorded: int, counts: StreamCounts
) -> Account:
    """Return the account of a torn episode's stream.

    Args:
        reported_at_start: Losses that the instance had reported before the episode began.
        recorded: Samples that the recovered file really holds.
        counts: The instance's counter file; its process may be alive, then this is the boundary to the next
            episode.
    """
    account = Account(start_seq, max(counts.next_seq, start_seq + recorded), recorded)
    for reason, total in counts.lost.items():
        since = total - reported_at_start[reason]
        if since > 0:
            account.dropped[reason] += since
    rest = account.produced - recorded - account.dropped.total()
    if rest > 0:
        account.dropped[NOT_ON_DISK] += rest
    return account
