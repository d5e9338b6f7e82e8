"""The recorder's end of the bus: validated messages in, credits out."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import zmq

from sensorium.drivers.bus.credits import HEADER_OVERHEAD_BYTES, Budget, Held
from sensorium.drivers.bus.wire import (
    COPY_BELOW_BYTES,
    MAX_CONTROL_BYTES,
    MAX_MESSAGE_BYTES,
    Credit,
    Declare,
    End,
    Inbound,
    Welcome,
    pack_control,
    unpack_control,
    unpack_header,
)
from sensorium.errors import WireError

QUEUED_MESSAGES = 64


class BusReceiver:
    """Validates what drivers send, and returns their credit when the recorder has let go of it.

    Every frame comes with a :class:`Held`; the recorder gives it to :meth:`release` when the frame's bytes are
    on disk, dropped or lost, and calls :meth:`step` in every round of its loop.
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
        self.socket.setsockopt(zmq.SNDHWM, 1000)
        self.socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        self.socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        self.socket.bind(endpoint)
        self._budget = Budget(budget_bytes)
        self._released: Counter[int] = Counter()

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
            return Inbound(identity, (instance, frame), Held(instance, len(payload) + HEADER_OVERHEAD_BYTES))
        if len(parts) == 2:
            if len(parts[1]) > MAX_CONTROL_BYTES:
                raise WireError(f"control message of {len(parts[1])} bytes, limit {MAX_CONTROL_BYTES}")
            message = unpack_control(parts[1].bytes)
            _check_identity(identity, message.instance)
            if isinstance(message, End):
                self._released[message.instance] += HEADER_OVERHEAD_BYTES
            return Inbound(identity, message)
        raise WireError(f"message of {len(parts) - 1} parts")

    def _release_rejected(self, parts: Sequence[zmq.Frame]) -> None:
        identity = parts[0].bytes
        if len(parts) == 3 and len(identity) == 9:
            size = len(parts[2]) + HEADER_OVERHEAD_BYTES
            self._released[int.from_bytes(identity[1:], "little")] += size

    def welcome(self, identity: bytes, declare: Declare) -> None:
        """Let a driver publish, and tell it how many bytes it may have under way."""
        limit_bytes = self._budget.join(declare.instance, declare.streams)
        message = Welcome(instance=declare.instance, session=self.session, credit_limit_bytes=limit_bytes)
        self._send(identity, pack_control(message))

    def forget(self, instance: int) -> None:
        """Give the limit of a driver instance that is gone to the others."""
        self._budget.leave(instance)

    def release(self, held: Iterable[Held]) -> None:
        """Take note of frames whose bytes are on disk, dropped or lost; :meth:`step` returns the credit."""
        for instance, size, _ in held:
            self._released[instance] += size

    def step(self, now_ns: int) -> None:  # noqa: ARG002 - limits will follow what each driver needs
        """Send what credit there is to return; to be called in every round of the recorder's loop."""
        if not self._released:
            return
        for instance, released_bytes in self._released.items():
            message = Credit(instance=instance, released_bytes=released_bytes)
            self._send(_identity(instance), pack_control(message))
        self._released.clear()

    def shortfall(self) -> str:
        """Return what the welcomed drivers' declared rates need beyond the budget, "" if they fit."""
        return self._budget.shortfall()

    def _send(self, identity: bytes, message: bytes) -> None:
        # A driver that died in between is no error: ROUTER drops what it cannot route.
        self.socket.send_multipart([identity, message], zmq.NOBLOCK)

    def close(self) -> None:
        self.socket.close(linger=200)


def _identity(instance: int) -> bytes:
    return b"\1" + instance.to_bytes(8, "little")


def _check_identity(identity: bytes, instance: int) -> None:
    if identity != _identity(instance):
        raise WireError("instance does not belong to this connection")
