"""The UDP side channel of two-way probes: authenticated, kernel receive stamps on both ends, bursts of 8.

A request and its reply have the same size, so neither way is longer and a forged request gains nothing:

    0  4s  magic "SnPr"         8  16s  nonce of the request
    4  B   version (1)         24  Q    boot id of the answering clock (request: 0)
    5  B   1 request, 2 reply  32  q    request received, ns on that clock (request: 0)
    6  H   0                   40  q    reply sent, ns on that clock (request: 0)
                               48  16s  HMAC-SHA256 of all before, cut to 16 bytes

Who does not know the key gets no answer and cannot answer. A reply counts once, for a nonce that is open:
an old reply sent again is refused. Whoever can hold packets back on the way can still shift the estimate, but
not beyond the hard interval of :mod:`sensorium.sync.clocks.two_way`.
"""

import hashlib
import hmac
import os
import stat
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from sensorium.drivers.links.udp import Datagram, UdpReceiver, resolve, wait_readable
from sensorium.errors import ConfigError, DeviceError
from sensorium.sync.clocks.two_way import Exchange
from sensorium.timebase import SECOND_NS, Clock

KEY_BYTES = 32
MESSAGE_BYTES = 64
_MAGIC = b"SnPr"
_VERSION = 1
_REQUEST, _REPLY = 1, 2
_MAC_BYTES = 16
_NONCE_BYTES = 16
_BODY = struct.Struct("<4sBBH16sQqq")
_BUFFER_BYTES = 1 << 16
_MAX_TURNAROUND_NS = SECOND_NS


@dataclass(frozen=True, slots=True)
class Schedule:
    """When probes go out, and how long after the last of a burst answers are awaited (as liblsl does)."""

    count: int = 8
    gap_ns: int = 64_000_000
    every_ns: int = 2 * SECOND_NS
    window_ns: int = 128_000_000


@dataclass(frozen=True, slots=True)
class _Message:
    kind: int
    nonce: bytes
    boot_id: int = 0
    received_ns: int = 0
    sent_ns: int = 0


def load_key(path: Path) -> bytes:
    """Return the shared key: 64 hexadecimal digits in a file that only its owner can read.

    Raises:
        ConfigError: If the file is missing, open to others, or holds something else.
    """
    try:
        mode = path.stat().st_mode
        text = path.read_text(encoding="ascii").strip()
        key = bytes.fromhex(text)
    except (OSError, ValueError) as err:
        why = err.strerror if isinstance(err, OSError) else "it holds something else than hexadecimal digits"
        raise ConfigError(
            f"probe key {path}: {why}; create it with: (umask 077; openssl rand -hex {KEY_BYTES} > {path})"
        ) from err
    if stat.S_IMODE(mode) & 0o077:
        raise ConfigError(f"probe key {path} is readable by others; run: chmod 600 {path}")
    if len(key) != KEY_BYTES:
        raise ConfigError(f"probe key {path} has {len(key)} bytes instead of {KEY_BYTES}")
    return key


def clock_boot_id() -> int:
    """Return a number that changes when CLOCK_MONOTONIC_RAW restarts: the kernel's boot id, hashed."""
    try:
        found = Path("/proc/sys/kernel/random/boot_id").read_bytes()
    except OSError:  # not Linux: then every process counts as a restart
        found = os.urandom(16)
    return int.from_bytes(hashlib.blake2b(found, digest_size=8).digest(), "little")


def _mac(key: bytes, body: bytes) -> bytes:
    return hmac.digest(key, body, "sha256")[:_MAC_BYTES]


def _pack(key: bytes, message: _Message) -> bytes:
    body = _BODY.pack(
        _MAGIC,
        _VERSION,
        message.kind,
        0,
        message.nonce,
        message.boot_id,
        message.received_ns,
        message.sent_ns,
    )
    return body + _mac(key, body)


def _unpack(key: bytes, payload: bytes, kind: int) -> _Message | str:
    """Return the message, or why it is refused."""
    if len(payload) != MESSAGE_BYTES:
        return "wrong size"
    body = payload[: _BODY.size]
    magic, version, found_kind, reserved, nonce, boot_id, received_ns, sent_ns = _BODY.unpack(body)
    if magic != _MAGIC or version != _VERSION or reserved:
        return "not a probe of this version"
    if found_kind != kind:
        return "wrong direction"
    if not hmac.compare_digest(payload[_BODY.size :], _mac(key, body)):
        return "wrong key or forged"
    return _Message(found_kind, nonce, boot_id, received_ns, sent_ns)


class ProbeServer:
    """Answers probes of those who know the key, with this machine's clock. Call :meth:`step` in a loop.

    Attributes:
        rejected: Reasons of refused datagrams with their counts; a refused datagram gets no answer.
    """

    def __init__(self, bind: str, port: int, key: bytes, clock: Clock, boot_id: int | None = None) -> None:
        """Bind to ``bind:port`` (0 = any free one).

        Raises:
            DeviceError: If the address cannot be bound.
        """
        self.rejected: Counter[str] = Counter()
        self._key = key
        self._clock = clock
        self._boot_id = clock_boot_id() if boot_id is None else boot_id
        self._socket = UdpReceiver(bind, port, _BUFFER_BYTES, clock)

    @property
    def port(self) -> int:
        return self._socket.port

    def wait(self, timeout_s: float) -> bool:
        """Return True as soon as there is something to do."""
        return wait_readable([self._socket], timeout_s)

    def step(self) -> int:
        """Answer what has come; return how many requests were answered."""
        answered = 0
        for datagram in self._socket.receive():
            request = _unpack(self._key, datagram.payload, _REQUEST)
            if isinstance(request, str):
                self.rejected[request] += 1
                continue
            answered += self._answer(request, datagram)
        return answered

    def _answer(self, request: _Message, datagram: Datagram) -> int:
        reply = _Message(
            _REPLY,
            request.nonce,
            self._boot_id,
            datagram.arrival_ns,
            max(datagram.arrival_ns, self._clock.now_ns()),
        )
        try:
            self._socket.send(_pack(self._key, reply), datagram.source)
        except DeviceError:  # the asker's network is gone; it will ask again
            self.rejected["answer could not be sent"] += 1
            return 0
        return 1

    def close(self) -> None:
        """Release the port; safe to call twice."""
        self._socket.close()


class ProbeClient:
    """Probes one server in bursts. Call :meth:`step` whenever :meth:`wait` returns.

    Attributes:
        rejected: Reasons of refused datagrams with their counts.
        unanswered: Probes whose burst closed without an answer.
    """

    def __init__(
        self, host: str, port: int, key: bytes, clock: Clock, schedule: Schedule | None = None, bind: str = ""
    ) -> None:
        """Open the client's socket; nothing is sent yet.

        Raises:
            DeviceError: If the host is unknown or no port is free.
        """
        self.rejected: Counter[str] = Counter()
        self.unanswered = 0
        self._server = (resolve(host), port)
        self._key = key
        self._clock = clock
        self._schedule = schedule or Schedule()
        self._socket = UdpReceiver(bind, 0, _BUFFER_BYTES, clock)
        self._open: dict[bytes, int] = {}
        self._answers: list[Exchange] = []
        self._sent = 0
        self._burst_ns = clock.now_ns()

    @property
    def due_ns(self) -> int:
        """Host time of the next probe, or of the end of the burst."""
        schedule = self._schedule
        if self._sent < schedule.count:
            return self._burst_ns + self._sent * schedule.gap_ns
        return self._burst_ns + (schedule.count - 1) * schedule.gap_ns + schedule.window_ns

    def wait(self, timeout_s: float) -> bool:
        """Return True once an answer is there; False when a probe is due or after ``timeout_s``."""
        until_due_s = (self.due_ns - self._clock.now_ns()) / SECOND_NS
        return wait_readable([self._socket], max(0.0, min(timeout_s, until_due_s)))

    def step(self) -> tuple[Exchange, ...] | None:
        """Take in answers, send what is due; return the answers of a burst once it is complete.

        Exchanges are in the order in which they were sent; an empty tuple says that nobody answered.
        """
        for datagram in self._socket.receive():
            self._take(datagram)
        if self._clock.now_ns() < self.due_ns and not self._is_complete:
            return None
        if self._sent < self._schedule.count:
            self._send()
            return None
        return self._close_burst()

    @property
    def _is_complete(self) -> bool:
        return self._sent == self._schedule.count and not self._open

    def _send(self) -> None:
        nonce = os.urandom(_NONCE_BYTES)
        payload = _pack(self._key, _Message(_REQUEST, nonce))
        self._sent += 1
        self._open[nonce] = self._clock.now_ns()
        try:
            self._socket.send(payload, self._server)
        except DeviceError:  # no route for the moment: counts as unanswered
            self.rejected["request could not be sent"] += 1

    def _take(self, datagram: Datagram) -> None:
        if datagram.source != self._server:
            self.rejected["not from the server"] += 1
            return
        reply = _unpack(self._key, datagram.payload, _REPLY)
        if isinstance(reply, str):
            self.rejected[reply] += 1
            return
        sent_ns = self._open.pop(reply.nonce, None)
        if sent_ns is None:
            self.rejected["too late or sent again"] += 1
            return
        if not 0 <= reply.sent_ns - reply.received_ns <= _MAX_TURNAROUND_NS:
            self.rejected["impossible stamps"] += 1
            return
        exchange = Exchange(sent_ns, reply.received_ns, reply.sent_ns, datagram.arrival_ns, reply.boot_id)
        self._answers.append(exchange)

    def _close_burst(self) -> tuple[Exchange, ...]:
        answers = tuple(sorted(self._answers, key=lambda exchange: exchange.sent_ns))
        self.unanswered += len(self._open)
        self._open.clear()
        self._answers.clear()
        self._sent = 0
        self._burst_ns = max(self._burst_ns + self._schedule.every_ns, self._clock.now_ns())
        return answers

    def close(self) -> None:
        """Release the socket; safe to call twice."""
        self._socket.close()
