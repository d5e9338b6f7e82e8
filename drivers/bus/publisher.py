"""The record plane: drivers (DEALER) spend byte credits that the synchronizer (ROUTER) returns.

PUSH/PULL would lose what the sockets hold when one end dies, and high-water marks count messages, not bytes.
Here a driver may have about one second of its own traffic under way; out of credit, a frame is dropped at
the source and counted.
"""

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import zmq

from sensorium.drivers.bus.counters import CounterFile
from sensorium.drivers.bus.wire import (
    HEADER_OVERHEAD_BYTES,
    MAX_CONTROL_BYTES,
    Credit,
    Declare,
    End,
    Heartbeat,
    Inbound,
    Lost,
    Welcome,
    pack_control,
    pack_header,
    unpack_control,
    unpack_header,
)
from sensorium.drivers.frame import COUNTER_GAP, Frame, Loss, Place, StreamInfo
from sensorium.errors import DeviceError, WireError
from sensorium.timebase import SECOND_NS, Clock

HEARTBEAT_NS = SECOND_NS // 5
COPY_BELOW_BYTES = 64 << 10
"""Below this size a copy is cheaper than ZeroMQ's zero-copy bookkeeping (specs/performance.md 3)."""

CREDIT_LIMIT_BYTES = 64 << 20
QUEUED_MESSAGES = 64
_END_POLL_MS = 20
_LEAST_WINDOW_BYTES = 256 << 10


@dataclass(slots=True)
class _PendingLoss:
    seq: int
    count: int
    place: Place
    reason: str


class BusPublisher:
    """A driver instance's end of the bus: publishes frames, books what it cannot publish.

    Not thread-safe; the driver host calls everything from one thread.
    """

    def __init__(
        self,
        endpoint: str,
        declare: Declare,
        counters: CounterFile,
        clock: Clock,
        context: zmq.Context[zmq.Socket[bytes]],
    ) -> None:
        self._declare = declare
        self._infos = {info.name: info for info in declare.streams}
        self._counters = counters
        self._clock = clock
        self._socket = context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.IDENTITY, b"\1" + declare.instance.to_bytes(8, "little"))
        self._socket.setsockopt(zmq.SNDHWM, 0)  # the credits bound the queue, in bytes
        self._socket.setsockopt(zmq.RECONNECT_IVL, 20)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, 200)
        self._socket.connect(endpoint)
        self._session: int | None = None
        self._limit_bytes = 0
        self._outstanding_bytes = 0
        self._window = _Window(max(info.max_payload_bytes for info in declare.streams))
        self._pending: dict[str, deque[_PendingLoss]] = {name: deque() for name in self._infos}
        self._next_heartbeat_ns = 0
        self._socket.send(pack_control(declare))

    @property
    def is_welcome(self) -> bool:
        return self._session is not None

    def publish(self, frame: Frame) -> bool:
        """Send ``frame``, or book it as lost when credit is short; True when it was sent.

        Raises:
            DeviceError: If the frame breaks the driver contract (undeclared stream, sequence going back).
        """
        self._account_gap(frame)
        size = len(frame.payload) + HEADER_OVERHEAD_BYTES
        if len(frame.payload) > self._infos[frame.stream].max_payload_bytes:
            self._lose(frame.stream, frame.count, Place.DRIVER, "payload over the declared maximum")
            return False
        if not self.has_credit(size):
            self._lose(frame.stream, frame.count, Place.BUS, "out of credit")
            return False
        self._counters.advance(frame.stream, frame.next_seq)
        self._send_pending(frame.stream)
        self._outstanding_bytes += size
        self._window.add(self._clock.now_ns(), size)
        header = pack_header(self._declare.instance, frame)
        self._socket.send(header, zmq.SNDMORE)
        self._socket.send(frame.payload, 0, len(frame.payload) < COPY_BELOW_BYTES)
        return True

    def lose(self, loss: Loss) -> None:
        """Book samples that the driver says will never come."""
        self._known(loss.stream)
        self._lose(loss.stream, loss.count, loss.place, loss.reason)

    def has_credit(self, size_bytes: int) -> bool:
        """Return whether a frame of this many bytes may be sent now."""
        self._receive()
        if not self.is_welcome:
            return False
        allowed = min(self._limit_bytes, self._window.bytes_per_second())
        return self._outstanding_bytes == 0 or self._outstanding_bytes + size_bytes <= allowed

    def step(self, wait_s: float = 0.0) -> None:
        """Take in credits, send heartbeats; called at least every 100 ms."""
        if wait_s:
            self._socket.poll(int(wait_s * 1000))
        self._receive()
        now_ns = self._clock.now_ns()
        if now_ns >= self._next_heartbeat_ns:
            self._next_heartbeat_ns = now_ns + HEARTBEAT_NS
            for stream in self._infos:
                self._send_pending(stream)
            self._socket.send(
                pack_control(Heartbeat(instance=self._declare.instance, next_seq=self._next_seqs()))
            )

    def end(self, error: str = "", linger_s: float = 5.0) -> None:
        """Send the tail of the account and close, once the synchronizer has taken it or ``linger_s`` are over.

        The last word costs credit like a frame, so its return says that everything before it has arrived. To
        close earlier would lose what waits in the sockets: ZeroMQ drops the unread rest of a peer that is gone.
        """
        for stream in self._infos:
            self._send_pending(stream)
        last = End(instance=self._declare.instance, next_seq=self._next_seqs(), error=error[:2000])
        self._outstanding_bytes += HEADER_OVERHEAD_BYTES
        self._socket.send(pack_control(last))
        for _ in range(int(linger_s * 1000 / _END_POLL_MS)):
            if not self.is_welcome or self._outstanding_bytes == 0:
                break
            self._socket.poll(_END_POLL_MS)
            self._receive()
        self._socket.close(linger=int(linger_s * 1000))

    def _known(self, stream: str) -> StreamInfo:
        if stream not in self._infos:
            raise DeviceError(
                f"device {self._declare.device}: stream {stream!r} was not declared by its driver"
            )
        return self._infos[stream]

    def _account_gap(self, frame: Frame) -> None:
        info = self._known(frame.stream)
        expected = self._counters.next_seq(frame.stream)
        if frame.seq < expected:
            raise DeviceError(f"stream {frame.stream}: sequence went back from {expected} to {frame.seq}")
        if len(frame.meta) != len(info.meta_fields):
            raise DeviceError(
                f"stream {frame.stream}: {len(frame.meta)} meta values for fields {info.meta_fields}"
            )
        if frame.seq > expected:
            self._lose(frame.stream, frame.seq - expected, Place.DEVICE, COUNTER_GAP)

    def _lose(self, stream: str, count: int, place: Place, reason: str) -> None:
        seq = self._counters.next_seq(stream)
        self._counters.advance(stream, seq + count)
        self._counters.book(stream, count, place, reason)
        pending = self._pending[stream]
        if pending and pending[-1].place is place and pending[-1].reason == reason:
            pending[-1].count += count
        else:
            pending.append(_PendingLoss(seq, count, place, reason))

    def _send_pending(self, stream: str) -> None:
        pending = self._pending[stream]
        while pending:
            loss = pending.popleft()
            message = Lost(
                instance=self._declare.instance,
                stream=stream,
                seq=loss.seq,
                count=loss.count,
                place=loss.place,
                reason=loss.reason[:200],
            )
            self._socket.send(pack_control(message))

    def _next_seqs(self) -> dict[str, int]:
        return {name: self._counters.next_seq(name) for name in self._infos}

    def _receive(self) -> None:
        while True:
            try:
                message = unpack_control(self._socket.recv(zmq.NOBLOCK))
            except zmq.Again:
                return
            except WireError:
                continue
            if isinstance(message, Welcome) and message.session != self._session:
                # A new synchronizer: what the old one held is gone and will never be credited.
                self._session = message.session
                self._limit_bytes = message.credit_limit_bytes
                self._outstanding_bytes = 0
            elif isinstance(message, Credit):
                self._outstanding_bytes = max(0, self._outstanding_bytes - message.released_bytes)


class _Window:
    """The driver's own traffic: the busiest of the last ten whole seconds, at least two of its largest frames.

    The second that is running does not count: what is sent in it would allow itself.
    """

    def __init__(self, max_payload_bytes: int) -> None:
        self._least = max(2 * max_payload_bytes, _LEAST_WINDOW_BYTES)
        self._whole: deque[int] = deque(maxlen=10)
        self._running = 0
        self._running_bytes = 0

    def add(self, now_ns: int, size: int) -> None:
        second = now_ns // SECOND_NS
        if second != self._running:
            self._whole.append(self._running_bytes)
            self._running, self._running_bytes = second, 0
        self._running_bytes += size

    def bytes_per_second(self) -> int:
        return max(self._least, max(self._whole, default=0))


class BusReceiver:
    """The synchronizer's end: validated messages in, credits out."""

    def __init__(self, endpoint: str, session: int, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self.session = session
        self.rejected: Counter[str] = Counter()
        self.socket = context.socket(zmq.ROUTER)
        # What waits for a stalled disk waits at the drivers, whose credits bound it, not here.
        self.socket.setsockopt(zmq.RCVHWM, QUEUED_MESSAGES)
        self.socket.setsockopt(zmq.SNDHWM, 1000)
        self.socket.setsockopt(zmq.MAXMSGSIZE, CREDIT_LIMIT_BYTES)
        self.socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        self.socket.bind(endpoint)

    def receive(self, limit: int) -> Iterator[Inbound]:
        """Yield what has arrived, at most ``limit`` messages, without waiting."""
        for _ in range(limit):
            try:
                parts = self.socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            try:
                yield self._validated(parts)
            except WireError as err:
                self.rejected[str(err)[:120]] += 1
                self._release_rejected(parts)

    def _validated(self, parts: Sequence[zmq.Frame]) -> Inbound:
        identity = parts[0].bytes
        if len(parts) == 3:
            payload = parts[2].buffer if len(parts[2]) >= COPY_BELOW_BYTES else parts[2].bytes
            instance, frame = unpack_header(parts[1].bytes, payload)
            _check_identity(identity, instance)
            return Inbound(identity, (instance, frame))
        if len(parts) == 2:
            if len(parts[1]) > MAX_CONTROL_BYTES:
                raise WireError(f"control message of {len(parts[1])} bytes, limit {MAX_CONTROL_BYTES}")
            message = unpack_control(parts[1].bytes)
            _check_identity(identity, message.instance)
            return Inbound(identity, message)
        raise WireError(f"message of {len(parts) - 1} parts")

    def _release_rejected(self, parts: Sequence[zmq.Frame]) -> None:
        identity = parts[0].bytes
        if len(parts) == 3 and len(identity) == 9:
            size = len(parts[2]) + HEADER_OVERHEAD_BYTES
            self.release(identity, int.from_bytes(identity[1:], "little"), size)

    def welcome(self, identity: bytes, instance: int) -> None:
        message = Welcome(instance=instance, session=self.session, credit_limit_bytes=CREDIT_LIMIT_BYTES)
        self._send(identity, pack_control(message))

    def release(self, identity: bytes, instance: int, released_bytes: int) -> None:
        """Return credit for bytes that are written or dropped for good."""
        self._send(identity, pack_control(Credit(instance=instance, released_bytes=released_bytes)))

    def _send(self, identity: bytes, message: bytes) -> None:
        # A driver that died in between is no error: ROUTER drops what it cannot route.
        self.socket.send_multipart([identity, message], zmq.NOBLOCK)

    def close(self) -> None:
        self.socket.close(linger=200)


def _check_identity(identity: bytes, instance: int) -> None:
    if identity != b"\1" + instance.to_bytes(8, "little"):
        raise WireError("instance does not belong to this connection")
