"""A driver's end of the record plane: it spends byte credits that the recorder returns.

PUSH/PULL would lose what the sockets hold when one end dies, and high-water marks count messages, not bytes.
Here a driver may have so many bytes under way as the recorder grants it; out of credit, a frame is dropped
at the source and counted.
"""

from collections import deque
from dataclasses import dataclass

import zmq

from sensorium.drivers.bus.counters import CounterFile
from sensorium.drivers.bus.credits import HEADER_OVERHEAD_BYTES
from sensorium.drivers.bus.wire import (
    COPY_BELOW_BYTES,
    Credit,
    Declare,
    End,
    Heartbeat,
    Lost,
    Welcome,
    pack_control,
    pack_header,
    unpack_control,
)
from sensorium.drivers.frame import COUNTER_GAP, Frame, Loss, Place, StreamInfo
from sensorium.errors import DeviceError, WireError
from sensorium.timebase import SECOND_NS, Clock

HEARTBEAT_NS = SECOND_NS // 5
_END_POLL_MS = 20


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
        return self._outstanding_bytes == 0 or self._outstanding_bytes + size_bytes <= self._limit_bytes

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
