"""Byte credits: how much each driver may have under way, out of one memory budget of the rig.

What is under way lies in sockets, in shared memory, or with the recorder until it is on disk. The sum of all
drivers' limits never exceeds the budget, so neither does the memory.
"""

import math
import os
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from sensorium.drivers.frame import PCM_BYTES, Encoding, StreamInfo
from sensorium.drivers.payloads import table
from sensorium.timebase import SECOND_NS

DEFAULT_BUDGET_BYTES = 256_000_000
HEADER_OVERHEAD_BYTES = 256
"""What a frame costs on the bus beside its payload."""

LEAST_LIMIT_BYTES = 256 << 10
_NO_SLOT = -1
_DEMAND_S = 10
_PRESSED_NS = 2 * SECOND_NS
_DIVIDE_NS = SECOND_NS // 10
_PATIENCE_NS = SECOND_NS
"""How long a new driver waits for its share until others have given it back; then it begins with less."""

_LEAST_CHANGE_BYTES = 64 << 10


class Held(NamedTuple):
    """What a received frame holds of its driver's credit until it is released.

    Attributes:
        instance: The driver instance whose credit it is.
        size: Bytes that it costs.
        slot: Where its payload lies in the driver's shared memory; -1 when it came over the socket.
    """

    instance: int
    size: int
    slot: int = _NO_SLOT


class CreditState(NamedTuple):
    """How a driver stands with its credit; part of its heartbeats.

    Attributes:
        wanted_bytes: What it wanted to send in its life, refused frames included.
        outstanding_bytes: What is under way.
        is_pressed: It refused a frame lately, or more than half of its limit is under way.
        limit_number, limit_bytes: The last limit that it was told, and the one that it keeps to; larger than
            what it was told only while more than that is under way.
    """

    wanted_bytes: int = 0
    outstanding_bytes: int = 0
    is_pressed: bool = False
    limit_number: int = 0
    limit_bytes: int = 0


NO_CREDIT = CreditState()


def declared_bytes_per_s(info: StreamInfo) -> float:
    """Return what a stream will put on the bus in a second, by its declaration."""
    return table.declared_bytes_per_s(info) + info.message_rate_hz * HEADER_OVERHEAD_BYTES


def largest_frame_bytes(info: StreamInfo) -> int:
    """Return what the largest frame of a stream costs; no frame of samples is taken to last over a second."""
    declared = info.max_payload_bytes
    if info.rate_hz and info.plain_encoding in (Encoding.COLUMNS, *PCM_BYTES):
        declared = min(declared, math.ceil(declared_bytes_per_s(info)))
    return declared + HEADER_OVERHEAD_BYTES


def least_limit_bytes(infos: Sequence[StreamInfo]) -> int:
    """Return the least that a driver of these streams can work with: two of its largest frames."""
    return max(2 * max(map(largest_frame_bytes, infos)), LEAST_LIMIT_BYTES)


def needed_bytes(infos: Sequence[StreamInfo]) -> int:
    """Return what a stall of a second takes: a quarter more than is declared for it, and what was under way."""
    return math.ceil(sum(map(declared_bytes_per_s, infos)) * 1.25) + least_limit_bytes(infos)


def most_budget_bytes() -> int:
    """Return a quarter of the machine's memory, the most that the bus takes by itself."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4


@dataclass(slots=True)
class _Share:
    """What one driver instance is given.

    Attributes:
        declared: Bytes in a second of its declared rates.
        needs, least: What a stall of a second takes; two of its largest frames.
        number, limit: The last limit that it was sent, counted from 1.
        committed: The most that it may have under way, by all that it was sent and has acknowledged.
        demand: What it wanted to send in each of the last ten whole seconds; empty seconds count.
    """

    declared: float
    needs: int
    least: int
    entitled: int = 0
    number: int = 0
    limit: int = 0
    committed: int = 0
    is_acknowledged: bool = True
    waiting_since_ns: int | None = None
    granted_ns: int | None = None
    pressed_until_ns: int = 0
    outstanding: int = 0
    wanted: int = 0
    demand: deque[int] = field(default_factory=lambda: deque(maxlen=_DEMAND_S))
    second: int = 0
    wanted_before: int = 0

    def hear(self, wanted: int, outstanding: int, now_ns: int) -> None:
        second = now_ns // SECOND_NS
        if second != self.second:
            if self.second:
                self.demand.append(self.wanted - self.wanted_before)
                self.demand.extend([0] * min(_DEMAND_S, second - self.second - 1))
            self.second, self.wanted_before = second, self.wanted
        self.wanted, self.outstanding = wanted, outstanding

    def rate(self, now_ns: int) -> int:
        """Return what it wants to send in a second: by its declaration until it is known."""
        found = max(self.wanted - self.wanted_before, *self.demand, 0)
        if now_ns < self.pressed_until_ns:
            found = max(found, 2 * self.outstanding)
        if self.granted_ns is None or now_ns - self.granted_ns < _DEMAND_S * SECOND_NS:
            return max(found, math.ceil(self.declared))
        return found

    def claim(self, now_ns: int) -> int:
        """Return what nobody else may be given: a second of what it wants, as far as it is entitled to it."""
        return min(self.entitled, self.rate(now_ns) * 5 // 4 + self.least)


class Limit(NamedTuple):
    """A limit to be sent to a driver instance."""

    instance: int
    number: int
    limit_bytes: int


class Budget:
    """Divides the memory among the driver instances that are known.

    While nobody presses on its limit, each has the memory in proportion to its declared rates. As soon as one
    does, each keeps what it needs for a second, and the rest goes to all in proportion to what they want to
    send, so that all could bear a stall for the same time: an idle driver's share serves another's burst. What
    a driver wants counts, not what it could send: being throttled makes no limit smaller. A limit that was
    lowered is free for others only once its driver has acknowledged it.

    Args:
        budget_bytes: The memory; None = the larger of 256 MB and one second of the declared rates, at most a
            quarter of the machine's.
    """

    def __init__(self, budget_bytes: int | None) -> None:
        self.budget_bytes = DEFAULT_BUDGET_BYTES if budget_bytes is None else budget_bytes
        self._is_fixed = budget_bytes is not None
        if not self._is_fixed:
            self.budget_bytes = min(self.budget_bytes, most_budget_bytes())
        self._shares: dict[int, _Share] = {}
        self._left: dict[int, int] = {}
        self._next_ns = 0
        self._is_changed = False

    @property
    def committed_bytes(self) -> int:
        """What all drivers together may have under way, those that are gone included."""
        return sum(share.committed for share in self._shares.values()) + sum(self._left.values())

    def join(self, instance: int, infos: Sequence[StreamInfo]) -> None:
        """Count on a driver; :meth:`changes` grants its limit as soon as it is free."""
        if instance in self._shares:
            return
        declared = sum(map(declared_bytes_per_s, infos))
        share = _Share(declared, needed_bytes(infos), least_limit_bytes(infos))
        share.committed = self._left.pop(instance, 0)
        self._shares[instance] = share
        self._divide()

    def leave(self, instance: int, held_bytes: int) -> None:
        """Give the limit of a driver to the others, but for what is still held of it; again as that shrinks."""
        share = self._shares.pop(instance, None)
        if share is None and self._left.get(instance, 0) <= held_bytes:
            return
        if held_bytes:
            self._left[instance] = held_bytes if share is None else min(held_bytes, share.committed)
        else:
            self._left.pop(instance, None)
        self._divide()

    def hear(self, instance: int, state: CreditState, now_ns: int) -> None:
        """Take in how a driver stands."""
        share = self._shares.get(instance)
        if share is None:
            return
        share.hear(state.wanted_bytes, state.outstanding_bytes, now_ns)
        if state.limit_number == share.number:
            self._is_changed |= not share.is_acknowledged or share.committed != state.limit_bytes
            share.is_acknowledged = True
            share.committed = max(share.limit, state.limit_bytes)
        if state.is_pressed:
            self._is_changed |= now_ns >= share.pressed_until_ns
            share.pressed_until_ns = now_ns + _PRESSED_NS

    def changes(self, now_ns: int) -> list[Limit]:
        """Return the limits to be sent now; cheap when nothing has changed."""
        if not self._is_changed and now_ns < self._next_ns:
            return []
        self._is_changed, self._next_ns = False, now_ns + _DIVIDE_NS
        targets = self._targets(now_ns)
        found = [limit for share_of in targets.items() for limit in self._lowered(*share_of)]
        # Who waits for a first limit comes before who has one.
        order = sorted(targets, key=lambda instance: self._shares[instance].number > 0)
        free = self.budget_bytes - self.committed_bytes
        for instance in order:
            share = self._shares[instance]
            limit = min(targets[instance], free + share.committed)
            if self._may_have(share, limit, targets[instance], now_ns):
                free -= max(0, limit - share.committed)
                found.append(self._sent(instance, limit))
        return found

    def _lowered(self, instance: int, target: int) -> Iterator[Limit]:
        share = self._shares[instance]
        if share.number and share.is_acknowledged and target < share.limit - _slack(share.limit):
            yield self._sent(instance, target)

    def _may_have(self, share: _Share, limit: int, target: int, now_ns: int) -> bool:
        """Return whether a driver should be sent a higher limit, or its first one."""
        if share.number:
            return share.is_acknowledged and limit > share.limit + _slack(share.limit)
        if share.waiting_since_ns is None:
            share.waiting_since_ns = now_ns
        has_waited = now_ns - share.waiting_since_ns >= _PATIENCE_NS
        if limit >= min(target, share.entitled) or has_waited:
            share.granted_ns = now_ns
            return True
        return False

    def _sent(self, instance: int, limit: int) -> Limit:
        share = self._shares[instance]
        share.number += 1
        share.limit = limit
        share.is_acknowledged = False
        share.committed = max(share.committed, limit)
        return Limit(instance, share.number, limit)

    def _divide(self) -> None:
        """Settle what each is entitled to: a second of its rates, or what the budget leaves of it to all."""
        shares = self._shares.values()
        needed = sum(share.needs for share in shares)
        if not self._is_fixed:  # it never shrinks: limits may lie around that were granted from it
            self.budget_bytes = max(self.budget_bytes, min(needed, most_budget_bytes()))
        least = sum(share.least for share in shares)
        over = max(0, self.budget_bytes - least)
        for share in shares:
            share.entitled = share.needs
            if needed > self.budget_bytes:
                share.entitled = share.least * min(self.budget_bytes, least) // max(1, least)
                share.entitled += (share.needs - share.least) * over // max(1, needed - least)
        self._is_changed = True

    def _targets(self, now_ns: int) -> dict[int, int]:
        shares = self._shares
        base, weight = {}, {}
        is_pressed = any(now_ns < share.pressed_until_ns for share in shares.values())
        for instance, share in shares.items():
            base[instance] = share.claim(now_ns) if is_pressed else share.entitled
            weight[instance] = share.rate(now_ns) if is_pressed else share.entitled
        rest = max(0, self.budget_bytes - sum(base.values()))
        total = max(1, sum(weight.values()))
        return {instance: base[instance] + rest * weight[instance] // total for instance in shares}

    def shortfall(self) -> str:
        """Return what a second of the declared rates needs beyond the budget, as a sentence; "" if it fits."""
        declared = sum(share.declared for share in self._shares.values())
        if declared <= self.budget_bytes:
            return ""
        return (
            f"a second of the declared rates is {declared / 1e6:.0f} MB, the recorder's memory is"
            f" {self.budget_bytes / 1e6:.0f} MB: a stall of a second will lose samples;"
            " set recorder: {memory_mb} higher, or declare less"
        )


def _slack(limit: int) -> int:
    """Return by how much a limit may be wrong before it is worth a message."""
    return max(limit // 16, _LEAST_CHANGE_BYTES)
