"""What ptp4l says, asked over its management socket.

Messages as in IEEE 1588-2008, 15 (management), with linuxptp's own TIME_STATUS_NP.
"""

import os
import select
import socket
import struct
import tempfile
from dataclasses import dataclass
from enum import Enum, IntEnum
from pathlib import Path

from sensorium.errors import ClockError
from sensorium.timebase import SECOND_NS, BaseReading, Clock, read_bases

SOCKETS = (
    Path("/var/run/ptp/ptp4lro"),
    Path("/var/run/ptp4lro"),
    Path("/var/run/ptp4l"),
    Path("/var/run/ptp/ptp4l"),
)
"""Where linuxptp 4 and 3 put their management sockets; the read-only ones need no privilege."""
TIMEOUT_S = 0.5

_HEADER = struct.Struct(">BBHBBHqI8sHHBb8sHBBBB")
_TLV = struct.Struct(">HHH")
_MANAGEMENT, _VERSION, _CONTROL = 0x0D, 2, 4
_TLV_MANAGEMENT, _TLV_ERROR = 1, 2
_GET, _RESPONSE = 0, 2
_MAX_MESSAGE_BYTES = 1500
_SCALED_NS = 65536.0


class DataSet(IntEnum):
    """Management ids of what is asked for."""

    DEFAULT = 0x2000
    CURRENT = 0x2001
    PARENT = 0x2002
    TIME_PROPERTIES = 0x2003
    PORT = 0x2004
    TIME_STATUS = 0xC000


_LAYOUTS = {
    DataSet.DEFAULT: struct.Struct(">BBHB4sB8sBB"),
    DataSet.CURRENT: struct.Struct(">Hqq"),
    DataSet.PARENT: struct.Struct(">8sHBBHIBBBHB8s"),
    DataSet.TIME_PROPERTIES: struct.Struct(">hBB"),
    DataSet.PORT: struct.Struct(">8sHBbqbBbBbB"),
    DataSet.TIME_STATUS: struct.Struct(">qqiiHHQHi8s"),
}


class PortState(Enum):
    """State of a PTP port (IEEE 1588-2008, table 8)."""

    INITIALIZING = 1
    FAULTY = 2
    DISABLED = 3
    LISTENING = 4
    PRE_MASTER = 5
    MASTER = 6
    PASSIVE = 7
    UNCALIBRATED = 8
    SLAVE = 9


@dataclass(frozen=True, slots=True)
class PtpReading:
    """Everything that one poll of ptp4l said; identities as hexadecimal, as pmc prints them.

    Attributes:
        offset_ns: Local minus master clock at the newest sync.
        ingress_ns: When that came, on the clock that ptp4l stamps with; 0 = none.
        mean_path_delay_ns: Filtered; negative where a stamp is wrong, which no cable can do.
        sync_interval_s: Of the port that is (or could be) a slave.
        utc_offset_s: TAI - UTC as the grandmaster announces it.
        is_leap_61: The last minute of this UTC day has a second more; ``is_leap_59``: one less.
        is_time_traceable: The grandmaster says that its time comes from a primary reference; None = not told.
        is_frequency_traceable: Likewise for its frequency.
        bases: The host's clocks when ptp4l was asked.
    """

    host_ns: int
    clock_identity: str
    domain: int
    is_slave_only: bool
    port_state: PortState
    sync_interval_s: float
    offset_ns: int
    ingress_ns: int
    mean_path_delay_ns: float
    steps_removed: int
    grandmaster: str
    is_grandmaster_claimed: bool
    clock_class: int
    clock_accuracy: int
    utc_offset_s: int
    is_utc_offset_valid: bool
    is_ptp_timescale: bool
    is_leap_61: bool = False
    is_leap_59: bool = False
    is_time_traceable: bool | None = None
    is_frequency_traceable: bool | None = None
    time_source: int | None = None
    priority1: int | None = None
    priority2: int | None = None
    bases: BaseReading | None = None

    @property
    def utc_minus_ptp_ns(self) -> int | None:
        """What to add to PTP time to get UTC; None where the grandmaster does not tell."""
        if not self.is_ptp_timescale:
            return 0
        return -self.utc_offset_s * SECOND_NS if self.is_utc_offset_valid else None

    @property
    def announced_utc_offset_s(self) -> int | None:
        """TAI - UTC where the grandmaster counts TAI or vouches for the number; None = it does not tell."""
        return self.utc_offset_s if self.is_ptp_timescale or self.is_utc_offset_valid else None


def identity_text(identity: bytes) -> str:
    """Return a clock identity as pmc prints it: 5a8174.fffe.815c2b."""
    text = identity.hex()
    return f"{text[:6]}.{text[6:10]}.{text[10:]}"


def pack_get(data_set: DataSet, sequence: int, domain: int, transport_specific: int = 0) -> bytes:
    """Return a GET management message to all ports of the daemon."""
    length = _HEADER.size + _TLV.size
    header = _HEADER.pack(
        (transport_specific << 4) | _MANAGEMENT,
        _VERSION,
        length,
        domain,
        0,
        0,
        0,
        0,
        bytes(8),
        os.getpid() & 0xFFFF,
        sequence,
        _CONTROL,
        0x7F,
        b"\xff" * 8,
        0xFFFF,
        0,
        0,
        _GET,
        0,
    )
    return header + _TLV.pack(_TLV_MANAGEMENT, 2, data_set)


def unpack_response(
    message: bytes, sequence: int, domain: int
) -> tuple[DataSet, tuple[int | bytes, ...]] | None:
    """Return the data set of a response to ``sequence``; None if it is something else or malformed.

    Raises:
        ClockError: If the daemon answered with a management error.
    """
    if not _HEADER.size + _TLV.size <= len(message) <= _MAX_MESSAGE_BYTES:
        return None
    fields = _HEADER.unpack_from(message)
    kind, length, found_domain, found_sequence, action = (
        fields[0],
        fields[2],
        fields[3],
        fields[10],
        fields[17],
    )
    is_ours = kind & 0x0F == _MANAGEMENT and found_domain == domain and found_sequence == sequence
    if not is_ours or length > len(message) or action & 0x0F != _RESPONSE:
        return None
    tlv_kind, tlv_length, identifier = _TLV.unpack_from(message, _HEADER.size)
    if tlv_kind == _TLV_ERROR:
        raise ClockError(f"ptp4l refused a management request with error {identifier:#06x}")
    body = message[_HEADER.size + _TLV.size : _HEADER.size + 4 + tlv_length]
    try:
        data_set = DataSet(identifier)
    except ValueError:
        return None
    layout = _LAYOUTS[data_set]
    if tlv_kind != _TLV_MANAGEMENT or len(body) < layout.size:
        return None
    return data_set, layout.unpack_from(body)


class PtpClient:
    """Asks one ptp4l over its Unix datagram socket; never waits, except in :meth:`read`.

    Args:
        path: The daemon's socket; None = the first of :data:`SOCKETS` that exists.
        domain: PTP domain number; with another one there is no answer at all.
        transport_specific: Likewise (0, or 1 for 802.1AS).
    """

    def __init__(
        self, clock: Clock, path: Path | None = None, domain: int = 0, transport_specific: int = 0
    ) -> None:
        self.domain = domain
        self._clock = clock
        self._path = path
        self._transport_specific = transport_specific
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._socket: socket.socket | None = None
        self._sequence = 0
        self._awaited: dict[int, DataSet] = {}
        self._answers: dict[DataSet, list[tuple[int | bytes, ...]]] = {}
        self._asked_ns = 0
        self._bases: BaseReading | None = None

    @property
    def path(self) -> Path:
        """The daemon's socket."""
        if self._path is not None:
            return self._path
        return next((path for path in SOCKETS if path.exists()), SOCKETS[2])

    def ask(self) -> None:
        """Send one request for each data set; what was asked before is forgotten.

        Raises:
            ClockError: If the socket does not exist, belongs to nobody, or may not be written to.
        """
        opened = self._open()
        while self._receive(opened) is not None:
            pass  # answers that came too late
        self._awaited.clear()
        self._answers.clear()
        self._asked_ns = self._clock.now_ns()
        self._bases = read_bases()
        path = self.path
        for data_set in DataSet:
            self._sequence = (self._sequence + 1) & 0xFFFF
            message = pack_get(data_set, self._sequence, self.domain, self._transport_specific)
            self._awaited[self._sequence] = data_set
            try:
                opened.sendto(message, str(path))
            except BlockingIOError:  # its queue is full of what it has not read: silence will tell
                return
            except (FileNotFoundError, ConnectionRefusedError) as err:
                raise ClockError(f"no ptp4l is running behind {path}; start it, or name its socket") from err
            except PermissionError as err:
                raise ClockError(
                    f"{path} may not be used by this user; run as root, or use linuxptp 4's read-only socket"
                ) from err
            except OSError as err:
                raise ClockError(f"{path} does not take requests: {err}") from err

    def collect(self) -> PtpReading | None:
        """Return the reading once every answer has come; None before that.

        Raises:
            ClockError: If the daemon refused, or answered with impossible values.
        """
        opened = self._open()
        while (message := self._receive(opened)) is not None:
            for sequence in self._awaited:
                found = unpack_response(message, sequence, self.domain)
                if found is not None and found[0] is self._awaited[sequence]:
                    self._answers.setdefault(found[0], []).append(found[1])
        if len(self._answers) < len(DataSet):
            return None
        return _reading(self._asked_ns, self._answers, self._bases)

    def read(self, timeout_s: float = TIMEOUT_S) -> PtpReading:
        """Ask, wait and return the reading.

        Raises:
            ClockError: If there is no daemon, or no complete answer in time.
        """
        self.ask()
        end_ns = self._clock.now_ns() + int(timeout_s * SECOND_NS)
        while (left_ns := end_ns - self._clock.now_ns()) > 0:
            select.select([self._open()], [], [], left_ns / SECOND_NS)
            reading = self.collect()
            if reading is not None:
                return reading
        raise ClockError(self.silence())

    def silence(self) -> str:
        """Return what to say when no answer came."""
        return (
            f"ptp4l behind {self.path} does not answer: is its domain {self.domain}"
            f" and its transportSpecific {self._transport_specific}?"
        )

    def _open(self) -> socket.socket:
        if self._socket is None:
            self._folder = tempfile.TemporaryDirectory(prefix="sensorium-ptp-")
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)
            self._socket.bind(f"{self._folder.name}/client")
        return self._socket

    def _receive(self, opened: socket.socket) -> bytes | None:
        while True:
            try:
                message, sender = opened.recvfrom(_MAX_MESSAGE_BYTES + 1)
            except (BlockingIOError, ConnectionError):
                return None
            if sender == str(self.path):
                return message

    def close(self) -> None:
        """Release the socket; safe to call twice."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None


def _reading(
    host_ns: int, answers: dict[DataSet, list[tuple[int | bytes, ...]]], bases: BaseReading | None
) -> PtpReading:
    flags, _, _, _, _, _, identity, domain, _ = answers[DataSet.DEFAULT][0]
    steps, _, delay_scaled = answers[DataSet.CURRENT][0]
    parent = answers[DataSet.PARENT][0]
    utc_offset_s, time_flags, time_source = answers[DataSet.TIME_PROPERTIES][0]
    offset_ns, ingress_ns, *_, is_present, grandmaster = answers[DataSet.TIME_STATUS][0]
    port = max(answers[DataSet.PORT], key=lambda fields: _slave_rank(int(fields[2])))
    try:
        state = PortState(port[2])
    except ValueError as err:
        raise ClockError(f"ptp4l reports the unknown port state {port[2]!r}") from err
    assert isinstance(identity, bytes)
    assert isinstance(grandmaster, bytes)
    flags_of_time = int(time_flags)
    return PtpReading(
        host_ns,
        identity_text(identity),
        int(domain),
        bool(int(flags) & 1),
        state,
        2.0 ** int(port[7]),
        int(offset_ns),
        int(ingress_ns),
        int(delay_scaled) / _SCALED_NS,
        int(steps),
        identity_text(grandmaster),
        bool(is_present),
        int(parent[7]),
        int(parent[8]),
        int(utc_offset_s),
        bool(flags_of_time & 4),
        bool(flags_of_time & 8),
        is_leap_61=bool(flags_of_time & 1),
        is_leap_59=bool(flags_of_time & 2),
        is_time_traceable=bool(flags_of_time & 16),
        is_frequency_traceable=bool(flags_of_time & 32),
        time_source=int(time_source),
        priority1=int(parent[6]),
        priority2=int(parent[10]),
        bases=bases,
    )


def _slave_rank(state: int) -> int:
    """Order the ports of a boundary clock: the one that listens to a master counts."""
    preferred = (PortState.LISTENING.value, PortState.UNCALIBRATED.value, PortState.SLAVE.value)
    return preferred.index(state) + 1 if state in preferred else 0
