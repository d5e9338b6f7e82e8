"""UDP reception with what the kernel knows: receive stamps, its own drops, the real buffer size."""

import select
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from sensorium.errors import DeviceError
from sensorium.timebase import SECOND_NS, Clock, read_bases

# Linux, include/uapi/asm-generic/socket.h; Python's socket module names none of them.
_SO_RCVBUFFORCE = 33
_SO_TIMESTAMPNS = 35
_SO_RXQ_OVFL = 40

_TIMESPEC = struct.Struct("@ll")
_DROP_COUNT = struct.Struct("@I")
_ANCILLARY_BYTES = socket.CMSG_SPACE(_TIMESPEC.size) + socket.CMSG_SPACE(_DROP_COUNT.size)
_MAX_DATAGRAM_BYTES = 65535
_MAX_BATCH = 256
_CLOCK_STEP_NS = 1_000_000
"""REALTIME is slewed by 500 ppm at most; between two batches a larger change of offset is a step."""


@dataclass(frozen=True, slots=True)
class Datagram:
    """One datagram.

    Attributes:
        arrival_ns: Host time of reception, from the kernel where it gives a stamp.
        source: Sender's address and port.
        dropped_before: Datagrams that the kernel dropped for want of buffer since the previous one.
    """

    payload: bytes
    arrival_ns: int
    source: tuple[str, int]
    dropped_before: int


class UdpReceiver:
    """A bound UDP socket.

    Attributes:
        port: The bound port (useful after binding to port 0).
        buffer_bytes: Receive buffer read back: half of what the kernel reports, which doubles the value for
            its own bookkeeping (man 7 socket).
        has_kernel_stamps: False where the kernel refuses SO_TIMESTAMPNS; arrival is then when it was read.
    """

    def __init__(self, bind: str, port: int, buffer_bytes: int, clock: Clock) -> None:
        """Bind to ``bind:port`` and size the buffer.

        Raises:
            DeviceError: If the address cannot be bound.
        """
        self._clock = clock
        self._dropped = 0
        self._raw_minus_realtime_ns: int | None = None
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            self._socket.bind((bind, port))
        except (OSError, OverflowError) as err:
            self._socket.close()
            raise DeviceError(
                f"cannot listen on UDP {bind}:{port}: {err}; is another program receiving there?"
            ) from err
        self._socket.setblocking(False)
        self.port: int = self._socket.getsockname()[1]
        self.buffer_bytes = self._size_buffer(buffer_bytes)
        self.has_kernel_stamps = self._try_option(_SO_TIMESTAMPNS, 1)
        self._try_option(_SO_RXQ_OVFL, 1)

    def _size_buffer(self, wanted_bytes: int) -> int:
        if not self._try_option(_SO_RCVBUFFORCE, wanted_bytes):
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, wanted_bytes)
        return self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2

    def _try_option(self, option: int, value: int) -> bool:
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, option, value)
        except OSError:  # not Linux, or not permitted: the caller does without
            return False
        return True

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, payload: bytes, address: tuple[str, int]) -> None:
        """Send from the bound port.

        Raises:
            DeviceError: If the network refuses.
        """
        try:
            self._socket.sendto(payload, address)
        except OSError as err:
            raise DeviceError(f"cannot send to UDP {address[0]}:{address[1]}: {err}") from err

    def receive(self) -> list[Datagram]:
        """Return what has arrived, oldest first, at most 256 datagrams; never waits."""
        datagrams: list[Datagram] = []
        raw_minus_realtime_ns: int | None = None
        for _ in range(_MAX_BATCH):
            try:
                payload, ancillary, _, source = self._socket.recvmsg(_MAX_DATAGRAM_BYTES, _ANCILLARY_BYTES)
            except BlockingIOError:
                break
            except OSError:  # an ICMP answer to something that we sent; the next call works again
                continue
            if not datagrams:
                raw_minus_realtime_ns = self._clock_offset()
            arrival_ns, dropped = self._read_ancillary(ancillary, raw_minus_realtime_ns)
            datagrams.append(Datagram(payload, arrival_ns, source, dropped))
        return datagrams

    def _clock_offset(self) -> int | None:
        """Return RAW - REALTIME; None right after REALTIME was stepped, when pending stamps are of no use."""
        if not self.has_kernel_stamps:
            return None
        bases = read_bases(tries=2)
        offset_ns, before_ns = bases.raw_ns - bases.realtime_ns, self._raw_minus_realtime_ns
        self._raw_minus_realtime_ns = offset_ns
        is_stepped = before_ns is not None and abs(offset_ns - before_ns) > _CLOCK_STEP_NS
        return None if is_stepped else offset_ns

    def _read_ancillary(
        self, ancillary: Sequence[tuple[int, int, bytes]], raw_minus_realtime_ns: int | None
    ) -> tuple[int, int]:
        arrival_ns = self._clock.now_ns()
        dropped = 0
        for level, kind, data in ancillary:
            if level != socket.SOL_SOCKET:
                continue
            if kind == _SO_TIMESTAMPNS and raw_minus_realtime_ns is not None:
                seconds, nanoseconds = _TIMESPEC.unpack_from(data)
                arrival_ns = min(arrival_ns, seconds * SECOND_NS + nanoseconds + raw_minus_realtime_ns)
            elif kind == _SO_RXQ_OVFL:
                (total,) = _DROP_COUNT.unpack_from(data)
                dropped = (total - self._dropped) & 0xFFFFFFFF
                self._dropped = total
        return arrival_ns, dropped

    def close(self) -> None:
        """Release the port; safe to call twice."""
        self._socket.close()


def wait_readable(receivers: Sequence[UdpReceiver], timeout_s: float) -> bool:
    """Return True once one of ``receivers`` has data, False after ``timeout_s``."""
    poller = select.poll()
    for receiver in receivers:
        poller.register(receiver.fileno(), select.POLLIN)
    return bool(poller.poll(max(0.0, timeout_s) * 1000.0))


def resolve(host: str) -> str:
    """Return the IPv4 address of ``host``.

    Raises:
        DeviceError: If the name is unknown.
    """
    try:
        return socket.gethostbyname(host)
    except OSError as err:
        raise DeviceError(
            f"host {host!r} cannot be resolved: {err}; check the name or use its address"
        ) from err


def local_address_towards(address: tuple[str, int]) -> str:
    """Return the local address from which ``address`` is reached; bound to it, only that network can answer.

    Raises:
        DeviceError: If there is no route.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(address)
        except OSError as err:
            raise DeviceError(f"{address[0]}: no network route: {err}; is the interface up?") from err
        local: str = probe.getsockname()[0]
        return local
