"""The recorder's end of the bus: validated messages in, credits out."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import zmq

from sensorium.drivers.bus.context import has_mail
from sensorium.drivers.bus.credits import HEADER_OVERHEAD_BYTES, Budget, Held, Limit
from sensorium.drivers.bus.header import LostBefore, Unpacked, is_frame, unpack_frame
from sensorium.drivers.bus.ring import PAGE_BYTES, RingReader, open_ring
from sensorium.drivers.bus.wire import (
    MAX_MESSAGE_BYTES,
    Control,
    Credit,
    Declare,
    End,
    Heartbeat,
    Hello,
    Inbound,
    Joined,
    Lost,
    LostRun,
    Ready,
    Welcome,
    pack_control,
    unpack_control,
)
from sensorium.errors import WireError
from sensorium.timebase import SECOND_NS

QUEUED_MESSAGES = 64
_WELCOME_NS = SECOND_NS // 10
_READY_NS = SECOND_NS // 5
_MOST_STRANGERS = 1000
_MOST_REASONS = 100
_STRANGERS_BYTES = 1 << 20
"""Of one call of ``receive``: what peers without a welcome may have read of theirs. A device's declaration has a
few kilobytes; who sends more does not cost the others their turn."""
_CREDITS_NS = SECOND_NS // 50
_URGENT_SHARE = 4
"""Who waits for a quarter of its limit is told at once; others hear within 20 ms, because each credit costs both
ends as much as a frame does."""
_NOBLOCK = int(zmq.NOBLOCK)


@dataclass(slots=True)
class _Driver:
    """A driver instance that was welcomed.

    Attributes:
        join: Of its last :class:`Joined`, from which ``sent`` and ``returned`` count; 0 while none is valid.
        sent_bytes, sent_slots: What has come of it since, with what was under way then.
        held_bytes, held_slots: What the recorder has of it and has not released.
        ring_bytes: So far it used its ring.
        freed: Slots to be returned.
        unwiped: Slots that held something when all was to be zeroed, and have not come back since.
        is_unwiped: It was not told yet to zero what is free.
        owed_bytes: Released since it was told last.
        is_gone: Nothing more will come of it; its limit is free but for what is held.
    """

    identity: bytes
    instance: int
    streams: frozenset[str]
    ring: RingReader | None = None
    limit: Limit | None = None
    join: int = 0
    sent_bytes: int = 0
    sent_slots: int = 0
    returned_bytes: int = 0
    held_bytes: int = 0
    held_slots: set[int] = field(default_factory=set)
    ring_bytes: int = 0
    freed: list[int] = field(default_factory=list)
    unwiped: set[int] = field(default_factory=set)
    is_unwiped: bool = False
    owed_bytes: int = 0
    next_welcome_ns: int = 0
    has_ended: bool = False
    is_gone: bool = False

    @property
    def memory_bytes(self) -> int:
        """What is held of it, with the pages of its ring, which stay while anything in it is held."""
        return self.held_bytes + (self.ring_bytes if self.held_slots else 0)

    def hold(self, size: int, slot: int) -> None:
        """Book a frame that came.

        Raises:
            WireError: If it lies where one lies that is still held.
        """
        if slot < 0:
            self.sent_bytes += size
            self.held_bytes += size
            return
        if slot in self.held_slots:
            raise WireError("place in shared memory is in use")
        self.sent_slots += 1
        self.held_slots.add(slot)
        self.ring_bytes = max(self.ring_bytes, slot * PAGE_BYTES + size)

    def credit(self, limit: Limit, is_wiping: bool) -> Credit:
        """Return what it is to be told now."""
        slots, self.freed, self.owed_bytes = tuple(self.freed), [], 0
        is_wiping = is_wiping or self.is_unwiped or bool(self.unwiped)
        self.is_unwiped = False
        self.unwiped.difference_update(slots)
        return Credit(
            self.instance,
            self.join,
            self.returned_bytes,
            limit.number,
            limit.limit_bytes,
            slots,
            self.has_ended,
            is_wiping,
        )


class BusReceiver:
    """Validates what drivers send, and returns their credit when the recorder has let go of it.

    Every frame comes with a :class:`Held`; the recorder gives it to :meth:`release` when the frame's bytes are
    on disk, dropped or lost, and calls :meth:`step` in every round of its loop. Until then, and no longer, the
    payload is valid: it may lie in memory that its driver uses again.

    Args:
        budget_bytes: What all drivers together may have under way; None = the default of :class:`Budget`.
    """

    def __init__(
        self,
        endpoint: str,
        session: int,
        context: zmq.Context[zmq.Socket[bytes]],
        budget_bytes: int | None = None,
    ) -> None:
        self.session = session
        self.rejected: Counter[str] = Counter()
        self.socket = context.socket(zmq.ROUTER)
        # What waits for a stalled disk waits at the drivers, whose credits bound it, not here.
        self.socket.setsockopt(zmq.RCVHWM, QUEUED_MESSAGES)
        self.socket.setsockopt(zmq.SNDHWM, 0)  # a return that was dropped would be lost credit
        self.socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        self.socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        self.socket.bind(endpoint)
        self._budget = Budget(budget_bytes)
        self._drivers: dict[int, _Driver] = {}
        self._by_identity: dict[bytes, _Driver] = {}
        self._dirty: set[int] = set()
        self._is_urgent = False
        self._is_wiping = False
        self._next_credits_ns = 0
        self._unjoined: set[int] = set()
        self._strangers: dict[bytes, int] = {}
        self._now_ns = 0

    @property
    def budget_bytes(self) -> int:
        return self._budget.budget_bytes

    def reject(self, reason: str) -> None:
        """Count a message that was not taken; of many different reasons the last ones are counted together."""
        reason = reason[:120]
        if reason not in self.rejected and len(self.rejected) >= _MOST_REASONS:
            reason = "other reasons"
        self.rejected[reason] += 1

    # -- in

    def receive(self, limit: int) -> Iterator[Inbound]:
        """Yield what has arrived, at most ``limit`` messages, without waiting."""
        recv = self.socket.recv
        strange_bytes = 0
        for _ in range(limit):
            if not has_mail(self.socket):
                return
            identity = recv(_NOBLOCK)
            head = recv(_NOBLOCK, False)
            beside = recv(_NOBLOCK, False) if head.more else None
            try:
                if beside is not None and beside.more:
                    self._drain()
                    raise WireError("message of more than two parts")
                data = head.bytes
                if not is_frame(data):
                    if identity not in self._by_identity:
                        strange_bytes += len(data) + HEADER_OVERHEAD_BYTES
                        if strange_bytes > _STRANGERS_BYTES:
                            raise WireError("more than peers without a welcome may say at once")
                    yield from self._control(identity, data, beside)
                    continue
                instance, frame, losses, slot = self._frame(identity, data, beside)
            except WireError as err:
                self.reject(str(err))
                continue
            if losses:
                yield from _told(identity, instance, frame.stream, frame.seq, losses)
            held = Held(instance, len(frame.payload) + HEADER_OVERHEAD_BYTES, slot)
            yield Inbound(identity, (instance, frame), held)

    def _drain(self) -> None:
        while self.socket.recv(zmq.NOBLOCK, False).more:
            pass

    def _frame(self, identity: bytes, data: bytes, beside: zmq.Frame | None) -> Unpacked:
        """Return the frame in a message, booked as held."""
        driver = self._by_identity.get(identity)
        if driver is None:
            self._greet_stranger(identity)
            raise WireError("frame of an undeclared instance")
        found = unpack_frame(data, None if beside is None else beside.buffer, driver.ring)
        if found.instance != driver.instance:
            raise WireError("instance does not belong to this connection")
        if found.frame.stream not in driver.streams:
            raise WireError(f"frame of undeclared stream {found.frame.stream}")
        driver.hold(len(found.frame.payload) + HEADER_OVERHEAD_BYTES, found.slot)
        return found

    def _control(self, identity: bytes, data: bytes, beside: zmq.Frame | None) -> Iterator[Inbound]:
        if beside is not None:
            raise WireError("control message of two parts")
        message = unpack_control(data)
        if identity != _identity(message.instance):
            raise WireError("instance does not belong to this connection")
        if isinstance(message, Hello):
            self._greet_stranger(identity)  # not each time: what a peer does not read waits in our memory
        elif isinstance(message, Joined):
            self._join(message)
        elif isinstance(message, LostRun):
            end = message.seq + sum(lost.samples for lost in message.losses)
            yield from _told(identity, message.instance, message.stream, end, message.losses)
        else:
            if isinstance(message, Heartbeat):
                self._hear(identity, message)
            elif isinstance(message, End):
                self._end(message.instance)
            yield Inbound(identity, message)

    def _greet_stranger(self, identity: bytes) -> None:
        """Let a driver that we do not know declare itself: an earlier recorder knew it."""
        if len(identity) != 9 or self._now_ns < self._strangers.get(identity, 0):
            return
        if len(self._strangers) >= _MOST_STRANGERS:
            self._strangers.clear()
        self._strangers[identity] = self._now_ns + _READY_NS
        self._send(identity, Ready(int.from_bytes(identity[1:5], "little"), self.session))

    def _join(self, message: Joined) -> None:
        """Count anew: all that the driver sent before has come, or never will."""
        driver = self._drivers.get(message.instance)
        if driver is None or message.session != self.session:
            return
        driver.join = message.join
        driver.sent_bytes, driver.sent_slots = message.outstanding_bytes, 0
        driver.returned_bytes = max(0, message.outstanding_bytes - driver.held_bytes)
        driver.freed = [slot for slot in message.slots if slot not in driver.held_slots]
        self._unjoined.discard(message.instance)
        self._tell_now(message.instance)

    def _tell_now(self, instance: int) -> None:
        self._dirty.add(instance)
        self._is_urgent = True

    def _hear(self, identity: bytes, beat: Heartbeat) -> None:
        driver = self._drivers.get(beat.instance)
        if driver is None:
            self._greet_stranger(identity)
            return
        if not driver.join or beat.join != driver.join:
            return
        if (beat.sent_bytes, beat.sent_slots) != (driver.sent_bytes, driver.sent_slots):
            # A frame was refused here, or a connection broke: the driver waits for credit that never comes.
            driver.join = 0
            self._unjoined.add(beat.instance)
            return
        self._budget.hear(beat.instance, beat.credit, self._now_ns)
        limit = driver.limit
        if beat.credit.is_pressed or (limit is not None and limit.number != beat.credit.limit_number):
            self._tell_now(beat.instance)  # what we said last may have been lost with a connection

    def _end(self, instance: int) -> None:
        driver = self._drivers.get(instance)
        if driver is not None:
            driver.has_ended = True
            self._tell_now(instance)
            self.forget(instance)

    # -- out

    def welcome(self, identity: bytes, declare: Declare) -> None:
        """Let a driver publish; :meth:`step` tells it, and how many bytes it may have under way."""
        instance = declare.instance
        driver = self._drivers.get(instance)
        if driver is None:
            names = frozenset(info.name for info in declare.streams)
            driver = _Driver(identity, instance, names)
            self._drivers[instance] = self._by_identity[identity] = driver
        if driver.ring is None and declare.ring is not None:
            driver.ring = open_ring(declare.ring)
        if driver.is_gone:
            driver.is_gone = driver.has_ended = False
            driver.limit = None
        driver.join = driver.next_welcome_ns = 0
        self._budget.join(instance, declare.streams)
        self._unjoined.add(instance)

    def wipe(self) -> None:
        """Have the drivers' rings zeroed: what is free of them now, what is held once it is released."""
        for instance, driver in self._drivers.items():
            driver.is_unwiped = True
            driver.unwiped = {*driver.held_slots, *driver.freed}
            self._tell_now(instance)

    def keep_wiping(self, is_wiping: bool) -> None:
        """From now on, have zeroed whatever becomes free in the rings, or no longer."""
        self._is_wiping = is_wiping

    def forget(self, instance: int) -> None:
        """Take back the limit of a driver instance that is gone, once nothing of it is held."""
        driver = self._drivers.get(instance)
        if driver is not None and not driver.is_gone:
            driver.is_gone = True
            if driver.limit is not None:  # should it live after all, it may not send more
                driver.limit = Limit(instance, driver.limit.number + 1, 0)
            self._unjoined.discard(instance)
            self._tell_now(instance)

    def release(self, held: Iterable[Held]) -> None:
        """Take note of frames whose bytes are on disk, dropped or lost; :meth:`step` returns the credit."""
        drivers, dirty = self._drivers, self._dirty
        for instance, size, slot in held:
            driver = drivers.get(instance)
            if driver is None:
                continue
            if slot < 0:
                driver.held_bytes -= size
                driver.returned_bytes += size
            else:
                driver.held_slots.discard(slot)
                driver.freed.append(slot)
            dirty.add(instance)
            driver.owed_bytes += size
            limit = driver.limit
            if limit is None or _URGENT_SHARE * driver.owed_bytes >= limit.limit_bytes:
                self._is_urgent = True

    def step(self, now_ns: int) -> None:
        """Send what credit there is to return; to be called in every round of the recorder's loop."""
        self._now_ns = now_ns
        for limit in self._budget.changes(now_ns):
            self._drivers[limit.instance].limit = limit
            self._tell_now(limit.instance)
        if self._unjoined:
            self._send_welcomes(now_ns)
        if self._dirty and (self._is_urgent or now_ns >= self._next_credits_ns):
            self._is_urgent, self._next_credits_ns = False, now_ns + _CREDITS_NS
            self._send_credits()

    def _send_welcomes(self, now_ns: int) -> None:
        """Send welcomes until they are answered: a driver may not be connected again yet."""
        for instance in self._unjoined:
            driver = self._drivers[instance]
            limit = driver.limit
            if limit is not None and now_ns >= driver.next_welcome_ns:
                driver.next_welcome_ns = now_ns + _WELCOME_NS
                message = Welcome(
                    instance=instance,
                    session=self.session,
                    limit_number=limit.number,
                    limit_bytes=limit.limit_bytes,
                    has_ring=driver.ring is not None,
                )
                self._send(driver.identity, message)

    def _send_credits(self) -> None:
        for instance in self._dirty:
            driver = self._drivers[instance]
            if driver.limit is not None and (driver.join or driver.has_ended):
                self._send(driver.identity, driver.credit(driver.limit, self._is_wiping))
            if driver.is_gone:
                self._budget.leave(instance, driver.memory_bytes)
                if not driver.memory_bytes:
                    driver.ring = None
        self._dirty.clear()

    def shortfall(self) -> str:
        """Return what the welcomed drivers' declared rates need beyond the budget, "" if they fit."""
        return self._budget.shortfall()

    def _send(self, identity: bytes, message: Control) -> None:
        # A driver that died in between is no error: ROUTER drops what it cannot route.
        self.socket.send_multipart([identity, pack_control(message)], zmq.NOBLOCK)

    def close(self) -> None:
        self.socket.close(linger=0)


def _identity(instance: int) -> bytes:
    return b"\1" + instance.to_bytes(8, "little")


def _told(
    identity: bytes, instance: int, stream: str, end: int, losses: Sequence[LostBefore]
) -> Iterator[Inbound]:
    """Yield one message per loss of those directly before number ``end``."""
    seq = end - sum(lost.samples for lost in losses)
    for count, place, reason in losses:
        yield Inbound(identity, Lost(instance, stream, seq, count, place, reason))
        seq += count
