"""What a driver may send: it decides by itself, from the limit and the returns that the recorder told it."""

from sensorium.drivers.bus.credits import HEADER_OVERHEAD_BYTES, CreditState
from sensorium.drivers.bus.header import RingPlace
from sensorium.drivers.bus.ring import RING_FROM_BYTES, RingWriter
from sensorium.drivers.bus.wire import Credit, Joined, Welcome


class Purse:
    """A driver instance's credit, in sockets and in its ring; both count into one limit.

    Until it is welcomed there is none. A new recorder does not know what the old one took with it: what is
    under way stays so until the answer to :class:`Joined` says what of it has come.
    """

    def __init__(self, instance: int, ring: RingWriter | None) -> None:
        self.session: int | None = None
        self.limit_bytes = 0
        self.has_ended = False
        self.sent_bytes = 0
        self.sent_slots = 0
        self.join = 0
        self._instance = instance
        self._ring = ring
        self._has_ring = False
        self._limit_number = 0
        self._returned_bytes = 0
        self._wanted_bytes = 0
        self._has_refused = False
        self._said_bytes = 0

    @property
    def socket_bytes(self) -> int:
        """What is under way over the socket."""
        return self.sent_bytes - self._returned_bytes

    @property
    def memory_bytes(self) -> int:
        """What is under way at most, with the pages that the ring keeps at hand."""
        under_way = self.sent_bytes - self._returned_bytes
        return under_way if self._ring is None else under_way + self._ring.touched_bytes

    @property
    def outstanding_bytes(self) -> int:
        """What is under way and will return."""
        return self.socket_bytes + (self._ring.used_bytes if self._ring is not None else 0)

    @property
    def has_shrunk(self) -> bool:
        """Whether less is under way than was said last, of more than a lowered limit allows."""
        return self._said_bytes > max(self.limit_bytes, self.memory_bytes)

    @property
    def is_pressed(self) -> bool:
        return self._has_refused or 2 * self.outstanding_bytes > self.limit_bytes

    def state(self) -> CreditState:
        """Return what a heartbeat says of it; a refusal is said once."""
        is_pressed, self._has_refused = self.is_pressed, False
        self._said_bytes = max(self.limit_bytes, self.memory_bytes)
        return CreditState(
            self._wanted_bytes, self.outstanding_bytes, is_pressed, self._limit_number, self._said_bytes
        )

    # -- spending

    def want(self, payload_bytes: int) -> None:
        """Note that a frame of this size is to be sent, whether it can be or not."""
        self._wanted_bytes += payload_bytes + HEADER_OVERHEAD_BYTES

    def refuse(self) -> None:
        """Note that it could not be."""
        self._has_refused = True

    def place(self, payload: bytes | memoryview) -> RingPlace | None:
        """Copy a payload into the ring; None if it must go over the socket, if anywhere."""
        if self._ring is None or not self._has_ring or len(payload) < RING_FROM_BYTES:
            return None
        slot = self._ring.place(payload, self.limit_bytes - self.socket_bytes)
        if slot is None:
            return None
        self.sent_slots += 1
        return RingPlace(slot, len(payload))

    def spend(self, payload_bytes: int) -> bool:
        """Take the credit for a frame over the socket; False when there is not enough."""
        size = payload_bytes + HEADER_OVERHEAD_BYTES
        if not self._has(size):
            return False
        self.sent_bytes += size
        return True

    def fits(self, payload_bytes: int) -> bool:
        """Return whether a frame of this size could be sent now."""
        return self.fits_ring(payload_bytes) or self._has(payload_bytes + HEADER_OVERHEAD_BYTES)

    def fits_ring(self, payload_bytes: int) -> bool:
        """Return whether a payload of this size could be placed in the ring now."""
        if self._ring is None or not self._has_ring or payload_bytes < RING_FROM_BYTES:
            return False
        return self._ring.has_room(payload_bytes, self.limit_bytes - self.socket_bytes)

    def _has(self, size: int) -> bool:
        """Return whether there is credit for so many bytes over the socket."""
        if self.session is None:
            return False
        if self.memory_bytes + size <= self.limit_bytes:
            return True
        if self._ring is not None:
            self._ring.trim()
        # A frame that is larger than the limit travels alone, else it never could.
        return self.memory_bytes + size <= self.limit_bytes or self.outstanding_bytes == 0

    # -- what the recorder says

    def welcome(self, message: Welcome) -> Joined:
        """Take the limit of a recorder, and return the answer that it waits for."""
        self.session = message.session
        self._limit(message.limit_number, message.limit_bytes)
        self._has_ring = message.has_ring
        self.join += 1
        self.sent_bytes, self._returned_bytes, self.sent_slots = self.socket_bytes, 0, 0
        slots = self._ring.slots if self._ring is not None else ()
        return Joined(self._instance, message.session, self.join, self.sent_bytes, slots)

    def take(self, credit: Credit) -> bool:
        """Take what came back, and the limit; True when the limit is new and the recorder waits to hear so."""
        self.has_ended |= credit.has_ended
        if credit.join != self.join:
            return False
        self._returned_bytes = min(max(self._returned_bytes, credit.returned_bytes), self.sent_bytes)
        if self._ring is not None:
            self._ring.free(credit.slots)
            if credit.is_wiped:
                self._ring.trim()  # pages that the system takes back are zero for both ends
        is_new = credit.limit_number != self._limit_number
        self._limit(credit.limit_number, credit.limit_bytes)
        return is_new

    def _limit(self, number: int, limit_bytes: int) -> None:
        self._limit_number, self.limit_bytes = number, limit_bytes
        if self._ring is not None and self.memory_bytes > limit_bytes:
            self._ring.trim()  # what was lowered is for others as soon as we say so

    def close(self) -> None:
        if self._ring is not None:
            self._ring.close()
