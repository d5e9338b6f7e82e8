"""A driver's end of the record plane: it spends byte credits that the recorder returns.

PUSH/PULL would lose what the sockets hold when one end dies, and high-water marks count messages, not bytes.
Here a driver may have so many bytes under way as the recorder grants it; out of credit, a frame is dropped
at the source and counted.
"""

from dataclasses import dataclass, field

import zmq

from sensorium.drivers.bus.context import has_mail
from sensorium.drivers.bus.counters import CounterFile
from sensorium.drivers.bus.header import INSIDE_BELOW_BYTES, MAX_META, MAX_STAMPED, LostBefore, pack_frame
from sensorium.drivers.bus.purse import Purse
from sensorium.drivers.bus.ring import RING_FROM_BYTES, RingWriter
from sensorium.drivers.bus.wire import (
    MAX_MESSAGE_BYTES,
    Control,
    Credit,
    Declare,
    End,
    Heartbeat,
    Hello,
    LostRun,
    Ready,
    Welcome,
    pack_control,
    unpack_control,
)
from sensorium.drivers.frame import COUNTER_GAP, Frame, Loss, Place, StreamInfo
from sensorium.errors import DeviceError, WireError
from sensorium.timebase import SECOND_NS, Clock

HEARTBEAT_NS = SECOND_NS // 5
LOST_RUN_NS = SECOND_NS
LINGER_S = 5.0
_HELLO_NS = SECOND_NS // 2
_NEWS_NS = SECOND_NS // 100
_END_POLL_MS = 20


@dataclass(slots=True)
class _Run:
    """Losses of a stream that have not been told: all from ``seq`` up to its next number."""

    seq: int = 0
    counts: dict[tuple[Place, str], int] = field(default_factory=dict)
    next_tell_ns: int = 0

    def take(self) -> tuple[LostBefore, ...]:
        found = tuple(LostBefore(count, place, reason) for (place, reason), count in self.counts.items())
        self.counts.clear()
        return found


class BusPublisher:
    """A driver instance's end of the bus: publishes frames, books what it cannot publish.

    Connects at once and asks whether the bus is served; :meth:`declare` follows when the device is open. Not
    thread-safe; the driver host calls everything from one thread.
    """

    def __init__(
        self, endpoint: str, instance: int, clock: Clock, context: zmq.Context[zmq.Socket[bytes]]
    ) -> None:
        self.instance = instance
        self._clock = clock
        self._is_local = endpoint.startswith(("ipc://", "inproc://"))
        self._socket = context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.IDENTITY, b"\1" + instance.to_bytes(8, "little"))
        self._socket.setsockopt(zmq.SNDHWM, 0)  # the credits bound the queue, in bytes
        self._socket.setsockopt(zmq.RECONNECT_IVL, 20)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, 200)
        self._socket.connect(endpoint)
        self._served_by: int | None = None
        self._declared_to: int | None = None
        self._declare: Declare | None = None
        self._infos: dict[str, StreamInfo] = {}
        self._counters: CounterFile | None = None
        self._purse = Purse(instance, None)
        self._runs: dict[str, _Run] = {}
        self._next_hello_ns = 0
        self._next_heartbeat_ns = 0
        self._next_news_ns = 0
        self._was_pressed = False
        self._say_hello()

    @property
    def is_served(self) -> bool:
        """Whether a recorder has answered."""
        return self._served_by is not None

    @property
    def is_welcome(self) -> bool:
        """Whether a recorder knows the streams."""
        return self._purse.session is not None

    def declare(self, declare: Declare, counters: CounterFile) -> None:
        """Say which streams will be published.

        Raises:
            DeviceError: If the bus cannot carry such a stream.
        """
        for info in declare.streams:
            if len(info.meta_fields) > MAX_META:
                raise DeviceError(
                    f"stream {info.name}: {len(info.meta_fields)} meta fields, the bus carries {MAX_META}"
                )
        ring = None
        if self._is_local and any(info.max_payload_bytes >= RING_FROM_BYTES for info in declare.streams):
            ring = RingWriter.make()
        offer = ring.offer if ring is not None else None
        self._declare = declare.model_copy(update={"ring": offer})
        self._infos = {info.name: info for info in declare.streams}
        self._runs = {name: _Run() for name in self._infos}
        self._counters = counters
        self._purse = Purse(self.instance, ring)
        self._declared_to = self._served_by
        self._send(self._declare)

    # -- what the driver has

    def publish(self, frame: Frame) -> bool:
        """Send ``frame``, or book it as lost when credit is short; True when it was sent.

        Raises:
            DeviceError: If the frame breaks the driver contract (undeclared stream, sequence going back).
        """
        counters = self._account_gap(frame)
        size = len(frame.payload)
        self._purse.want(size)
        reason = self._unfit(frame)
        if reason:
            self._lose(frame.stream, frame.count, Place.DRIVER, reason)
            return False
        place = self._purse.place(frame.payload)
        if place is None and not self._purse.spend(size):
            self._receive()
            place = self._purse.place(frame.payload)
            if place is None and not self._purse.spend(size):
                self._purse.refuse()
                self._lose(frame.stream, frame.count, Place.BUS, "out of credit")
                return False
        counters.advance(frame.stream, frame.next_seq)
        run = self._runs[frame.stream]
        losses = run.take() if run.counts else ()
        if place is not None:
            self._socket.send(pack_frame(self.instance, frame, losses, place, None))
        elif size < INSIDE_BELOW_BYTES:
            self._socket.send(pack_frame(self.instance, frame, losses, None, frame.payload))
        else:
            self._socket.send(pack_frame(self.instance, frame, losses, None, None), zmq.SNDMORE)
            self._socket.send(frame.payload, 0, False)
        return True

    def _unfit(self, frame: Frame) -> str:
        """Return why a frame can never be sent, "" if it can."""
        size = len(frame.payload)
        if size > self._infos[frame.stream].max_payload_bytes:
            return "payload over the declared maximum"
        if size > MAX_MESSAGE_BYTES - INSIDE_BELOW_BYTES and not self._purse.fits_ring(size):
            return "payload over what a message may hold"
        if frame.count > MAX_STAMPED and len(frame.arrival_ns) > MAX_STAMPED:
            return "more stamps than a message may hold"
        return ""

    def lose(self, loss: Loss) -> None:
        """Book samples that the driver says will never come."""
        self._known(loss.stream)
        self._lose(loss.stream, loss.count, loss.place, loss.reason)

    def has_credit(self, payload_bytes: int) -> bool:
        """Return whether a frame with such a payload could be sent now."""
        if self._purse.fits(payload_bytes):
            return True
        self._receive()
        return self._purse.fits(payload_bytes)

    def _known(self, stream: str) -> tuple[StreamInfo, CounterFile]:
        if stream not in self._infos or self._declare is None or self._counters is None:
            device = self._declare.device if self._declare is not None else "that is not declared"
            raise DeviceError(f"device {device}: stream {stream!r} was not declared by its driver")
        return self._infos[stream], self._counters

    def _account_gap(self, frame: Frame) -> CounterFile:
        info, counters = self._known(frame.stream)
        expected = counters.next_seq(frame.stream)
        if frame.seq < expected:
            raise DeviceError(f"stream {frame.stream}: sequence went back from {expected} to {frame.seq}")
        if len(frame.meta) != len(info.meta_fields):
            raise DeviceError(
                f"stream {frame.stream}: {len(frame.meta)} meta values for fields {info.meta_fields}"
            )
        if frame.seq > expected:
            self._lose(frame.stream, frame.seq - expected, Place.DEVICE, COUNTER_GAP)
        return counters

    def _lose(self, stream: str, count: int, place: Place, reason: str) -> None:
        """Book a loss at once; it is told with the next frame, or by itself if none follows."""
        _, counters = self._known(stream)
        run = self._runs[stream]
        if not run.counts:
            run.seq = counters.next_seq(stream)
        counters.advance(stream, counters.next_seq(stream) + count)
        booked = counters.book(stream, count, place, reason)
        run.counts[booked] = run.counts.get(booked, 0) + count

    # -- what goes back and forth beside

    def step(self, wait_s: float = 0.0) -> None:
        """Take in credits, send heartbeats; called at least every 100 ms."""
        if wait_s:
            self._socket.poll(int(wait_s * 1000))
        self._receive()
        now_ns = self._clock.now_ns()
        if self._declare is None:
            if now_ns >= self._next_hello_ns and not self.is_served:
                self._say_hello()
        elif now_ns >= self._next_heartbeat_ns or self._has_news(now_ns):
            self._beat(now_ns)

    def _say_hello(self) -> None:
        self._next_hello_ns = self._clock.now_ns() + _HELLO_NS
        self._send(Hello(self.instance))

    def _has_news(self, now_ns: int) -> bool:
        """Return whether the recorder should hear at once that we need more, or need less now."""
        is_pressed = self._purse.is_pressed
        return now_ns >= self._next_news_ns and (
            (is_pressed and not self._was_pressed) or self._purse.has_shrunk
        )

    def _beat(self, now_ns: int) -> None:
        self._next_heartbeat_ns = now_ns + HEARTBEAT_NS
        self._next_news_ns = now_ns + _NEWS_NS
        self._was_pressed = self._purse.is_pressed
        for stream, run in self._runs.items():
            if run.counts and now_ns >= run.next_tell_ns:
                run.next_tell_ns = now_ns + LOST_RUN_NS
                self._send(LostRun(self.instance, stream, run.seq, run.take()))
        purse = self._purse
        self._send(
            Heartbeat(
                self.instance, self._told(), purse.join, purse.sent_bytes, purse.sent_slots, purse.state()
            )
        )

    def _told(self) -> dict[str, int]:
        """Return the number up to which everything was sent or told, by stream."""
        assert self._counters is not None
        return {
            name: run.seq if run.counts else self._counters.next_seq(name) for name, run in self._runs.items()
        }

    def _receive(self) -> None:
        while has_mail(self._socket):
            try:
                message = unpack_control(self._socket.recv(zmq.NOBLOCK))
            except zmq.Again:
                return
            except WireError:
                continue
            if isinstance(message, Credit):
                if self._purse.take(message):
                    self._next_heartbeat_ns = 0
            elif isinstance(message, Welcome):
                self._send(self._purse.welcome(message))
                self._next_heartbeat_ns = 0
            elif isinstance(message, Ready):
                self._note_ready(message.session)

    def _note_ready(self, session: int) -> None:
        self._served_by = session
        if self._declare is not None and session not in (self._declared_to, self._purse.session):
            # It does not know us: the recorder that did died before it could note us down.
            self._declared_to = session
            self._send(self._declare.model_copy(update={"first_seq": self._told()}))

    def _send(self, message: Control) -> None:
        self._socket.send(pack_control(message))

    # -- the end

    def end(self, error: str = "", linger_s: float = LINGER_S) -> None:
        """Send the tail of the account and close, once the recorder has it all or ``linger_s`` are over.

        Its answer says that everything before has arrived. To close earlier would lose what waits in the
        sockets: ZeroMQ drops the unread rest of a peer that is gone.
        """
        if self._declare is None or self._has_said_last_word(error, linger_s):
            linger_s = 0.0
        self._socket.close(linger=int(linger_s * 1000))
        self._purse.close()

    def _has_said_last_word(self, error: str, linger_s: float) -> bool:
        """Say it; return whether it was answered in time."""
        for stream, run in self._runs.items():
            if run.counts:
                self._send(LostRun(self.instance, stream, run.seq, run.take()))
        told_to = None
        for _ in range(max(1, int(linger_s * 1000 / _END_POLL_MS))):
            if told_to is None or self._purse.session != told_to:
                told_to = self._purse.session or 0
                self._send(End(instance=self.instance, next_seq=self._told(), error=error[:2000]))
            if not self.is_welcome or self._purse.has_ended:
                break
            self._socket.poll(_END_POLL_MS)
            self._receive()
        return self._purse.has_ended
