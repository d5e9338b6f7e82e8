"""ATI Net F/T force/torque sensors: RDT records over UDP.

Source: "Net F/T Installation and Operation Manual" (ATI 9620-05-Net FT): RDT, netftapi2.xml, status codes.
"""

import contextlib
import math
import socket
import struct
import urllib.error
import urllib.request
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from sensorium.drivers.driver import Driver, DriverConfig, DriverContext
from sensorium.drivers.frame import (
    ClockKind,
    Column,
    DeviceClock,
    Encoding,
    Frame,
    Latency,
    Loss,
    Modality,
    Place,
    StreamInfo,
)
from sensorium.drivers.links.udp import Datagram, UdpReceiver, resolve, wait_readable
from sensorium.errors import DeviceError
from sensorium.timebase import SECOND_NS

RDT_PORT = 49152
REQUEST = struct.Struct(">HHI")
REQUEST_HEADER = 0x1234
COMMAND_STOP = 0
COMMAND_REALTIME = 2
COMMAND_BUFFERED = 3
RECORD_BYTES = 36
RECORD = np.dtype([("rdt_seq", ">u4"), ("ft_seq", ">u4"), ("status", ">u4"), ("counts", ">i4", (6,))])

STATUS_SUMMARY = 0x80000000
STATUS_WARNINGS = 0x00010000
"""A threshold monitor has latched: the reading is good. Every other bit but the summary is an error."""

INTERNAL_RATE_HZ = 7000
_SEQUENCE_MODULUS = 1 << 32
_AXES = ("fx", "fy", "fz", "tx", "ty", "tz")
_BLOCK_NS = 20_000_000
_MAX_BLOCK_SAMPLES = 100
_RESTART_NS = 500_000_000
_REORDER_NS = SECOND_NS
_SLACK_RECORDS = 10
_MAX_XML_BYTES = 1 << 20
_MAX_DRAINS = 4
_DEVICE_LATENCY_NS = 1_000_000
"""Filter and transmission delay inside the sensor: below 1 ms with its low-pass filter off (manual, RDT)."""

NEWTON = {
    "N": 1.0,
    "kN": 1000.0,
    "lbf": 4.4482216152605,
    "klbf": 4448.2216152605,
    "kgf": 9.80665,
    "gf": 0.00980665,
}
NEWTON_METRE = {
    "Nm": 1.0,
    "kNm": 1000.0,
    "Nmm": 0.001,
    "lbfin": 0.1129848290276167,
    "lbfft": 1.3558179483314004,
    "kgfcm": 0.0980665,
}


@dataclass(frozen=True, slots=True)
class Calibration:
    """What turns counts into N and Nm, and what else the sensor says of itself.

    Attributes:
        newton_per_count, newton_metre_per_count: Scales of the integer columns.
        rate_hz: RDT output rate that the sensor is set to; None when unknown.
        internal_rate_hz: Rate of the ft_seq counter.
    """

    newton_per_count: float
    newton_metre_per_count: float
    rate_hz: float | None = None
    internal_rate_hz: int = INTERNAL_RATE_HZ
    product: str = ""
    serial: str = ""


def parse_calibration(text: str) -> Calibration:
    """Read the answer to ``/netftapi2.xml``.

    Raises:
        DeviceError: If counts or units are missing or unknown.
    """
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as err:
        raise DeviceError(f"netftapi2.xml is not XML: {err}") from err
    values = {element.tag: (element.text or "").strip() for element in root.iter()}
    try:
        force_unit, torque_unit = values["scfgfu"], values["scfgtu"]
        rate = values.get("comrdtrate", "")
        return Calibration(
            NEWTON[_plain(force_unit)] / float(values["cfgcpf"]),
            NEWTON_METRE[_plain(torque_unit)] / float(values["cfgcpt"]),
            float(rate) if rate else None,
            int(values.get("runrate") or INTERNAL_RATE_HZ),
            values.get("prodname", ""),
            values.get("setserial", ""),
        )
    except KeyError as err:
        raise DeviceError(f"netftapi2.xml lacks, or has an unknown unit, {err}") from err
    except (ValueError, ZeroDivisionError) as err:
        raise DeviceError(f"netftapi2.xml has a wrong number: {err}") from err


def _plain(unit: str) -> str:
    return unit.replace("-", "").replace("·", "").replace(" ", "")


class AtiNetFtConfig(DriverConfig):
    """Options of :class:`AtiNetFtDriver`.

    Attributes:
        host: The sensor's address.
        rate_hz: RDT output rate; must equal what the sensor is set to (its page "Communications").
        port, http_port: Of the RDT service and of the sensor's web pages.
        counts_per_newton, counts_per_newton_metre: Both given: nothing is asked over HTTP.
        buffered: Ask for several records per datagram; fewer packets, later arrival.
        receive_buffer_bytes: Kernel buffer to ask for.
        http_timeout_s: How long the sensor may take to answer with its calibration.
        silence_s: Without a record for this long the sensor counts as gone; the start request is repeated
            every half second until then.
    """

    host: str
    rate_hz: PositiveFloat = Field(default=1000.0, le=8000.0)
    port: int = Field(default=RDT_PORT, ge=1, le=65535)
    http_port: int = Field(default=80, ge=1, le=65535)
    counts_per_newton: PositiveFloat | None = None
    counts_per_newton_metre: PositiveFloat | None = None
    buffered: bool = False
    receive_buffer_bytes: PositiveInt = 1 << 20
    http_timeout_s: PositiveFloat = 5.0
    silence_s: PositiveFloat = 5.0

    @model_validator(mode="after")
    def _has_both_counts_or_none(self) -> "AtiNetFtConfig":
        if (self.counts_per_newton is None) != (self.counts_per_newton_metre is None):
            raise ValueError("give both counts_per_newton and counts_per_newton_metre, or neither")
        return self


@dataclass(slots=True)
class AtiCounters:
    """Datagrams that were no records, records that came late or twice, and what the status words said."""

    malformed: int = 0
    foreign: int = 0
    late: int = 0
    restarts: int = 0
    error_records: int = 0
    warning_records: int = 0


@dataclass(frozen=True, slots=True)
class _Record:
    rdt_seq: int
    ft_seq: int
    status: int
    counts: tuple[int, ...]
    arrival_ns: int


class AtiNetFtDriver(Driver[AtiNetFtConfig]):
    """One stream ``<name>`` of force and torque; ``frame.meta`` is the OR of the records' status words.

    Sequence numbers follow ``rdt_seq``. The sensor sends no time; ``ft_seq``, its count of internal samples,
    serves as device clock.

    Attributes:
        counters: What did not become samples, and records with error or warning status.
    """

    config_type: ClassVar[type[DriverConfig]] = AtiNetFtConfig

    def __init__(self, config: AtiNetFtConfig, context: DriverContext) -> None:
        super().__init__(config, context)
        self.counters = AtiCounters()
        self._receiver: UdpReceiver | None = None
        self._address = ("", 0)
        self._has_started = False
        self._request_ns = 0
        self._record_ns = 0
        self._internal_rate_hz = INTERNAL_RATE_HZ
        self._last: _Record | None = None
        self._next_seq = 0
        self._block: list[_Record] = []
        self._block_seq = 0
        self._ready: list[Frame | Loss] = []
        self._block_samples = max(1, min(_MAX_BLOCK_SAMPLES, int(config.rate_hz * _BLOCK_NS / SECOND_NS)))

    @classmethod
    def check(cls, config: Any) -> None:
        """Raise if the host name is unknown."""
        resolve(config.host)

    @property
    def port(self) -> int | None:
        """The local port that records arrive on; None while closed."""
        return self._receiver.port if self._receiver is not None else None

    def open(self) -> Sequence[StreamInfo]:
        try:
            return self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> Sequence[StreamInfo]:
        config = self.config
        self._address = (resolve(config.host), config.port)
        calibration = self._calibration()
        if calibration.rate_hz is not None and not math.isclose(calibration.rate_hz, config.rate_hz):
            raise DeviceError(
                f"ATI Net F/T {config.host}: sends at {calibration.rate_hz:g} Hz, the rig file says "
                f"{config.rate_hz:g} Hz; make them equal on http://{config.host}/comm.htm or in the rig file"
            )
        self._internal_rate_hz = calibration.internal_rate_hz
        receiver = UdpReceiver(
            _local_address_towards(self._address), 0, config.receive_buffer_bytes, self.context.clock
        )
        self._receiver = receiver
        self._start()
        self._wait_for_first_record()
        return (self._info(calibration, receiver),)

    def _calibration(self) -> Calibration:
        config = self.config
        if config.counts_per_newton is not None and config.counts_per_newton_metre is not None:
            return Calibration(1.0 / config.counts_per_newton, 1.0 / config.counts_per_newton_metre)
        url = f"http://{config.host}:{config.http_port}/netftapi2.xml"
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # sensors are behind no proxy
        try:
            with direct.open(url, timeout=config.http_timeout_s) as answer:
                text = answer.read(_MAX_XML_BYTES).decode("latin-1")
        except (OSError, ValueError, urllib.error.URLError) as err:
            raise DeviceError(
                f"ATI Net F/T {config.host}: no calibration from {url}: {err}; check the address, "
                "or give counts_per_newton and counts_per_newton_metre"
            ) from err
        try:
            return parse_calibration(text)
        except DeviceError as err:
            raise DeviceError(f"ATI Net F/T {config.host}: {err}") from err

    def _start(self) -> None:
        assert self._receiver is not None
        command = COMMAND_BUFFERED if self.config.buffered else COMMAND_REALTIME
        self._receiver.send(REQUEST.pack(REQUEST_HEADER, command, 0), self._address)
        self._has_started = True
        self._request_ns = self.context.clock.now_ns()

    def _wait_for_first_record(self) -> None:
        clock = self.context.clock
        opened_ns = self._record_ns = clock.now_ns()
        while self._last is None:
            self._ready += self._receive(0.02)
            if clock.now_ns() - opened_ns > self.config.silence_s * SECOND_NS:
                raise DeviceError(
                    f"ATI Net F/T {self.config.host}: no RDT record from UDP port {self.config.port} within "
                    f"{self.config.silence_s:g} s; check power and cable, and that RDT is enabled on it"
                )
            self._restart_when_silent()

    def _info(self, calibration: Calibration, receiver: UdpReceiver) -> StreamInfo:
        config = self.config
        scales = [calibration.newton_per_count] * 3 + [calibration.newton_metre_per_count] * 3
        units = ["N"] * 3 + ["Nm"] * 3
        divisor = math.gcd(SECOND_NS, calibration.internal_rate_hz)
        return StreamInfo(
            name=self.context.name,
            modality=Modality.FORCE,
            encoding=Encoding.COLUMNS,
            rate_hz=config.rate_hz,
            frame_rate_hz=config.rate_hz / self._block_samples,
            frame_id=self.context.name,
            clock=DeviceClock(
                ClockKind.FREE,
                SECOND_NS // divisor,
                calibration.internal_rate_hz // divisor,
                _SEQUENCE_MODULUS,
            ),
            latency=Latency(0, _DEVICE_LATENCY_NS, _BLOCK_NS + 200_000_000),
            stamp_of="sample",
            host_id=self.context.host_id,
            is_personal=bool(self.config.personal),
            columns=tuple(
                Column(name, unit, "<i4", scale)
                for name, unit, scale in zip(_AXES, units, scales, strict=True)
            ),
            is_sampled=True,
            has_device_counter=True,
            max_payload_bytes=_MAX_BLOCK_SAMPLES * 24,
            meta_fields=("status_any",),
            details={
                "host": config.host,
                "product": calibration.product,
                "serial": calibration.serial,
                "receive_buffer_bytes": str(receiver.buffer_bytes),
                "arrival_stamps": "kernel" if receiver.has_kernel_stamps else "program",
            },
        )

    def read(self, timeout_s: float) -> Sequence[Frame | Loss]:
        if self._receiver is None:
            raise DeviceError(f"ATI Net F/T {self.context.name} is not open")
        clock = self.context.clock
        deadline_ns = clock.now_ns() + round(timeout_s * SECOND_NS)
        items, self._ready = self._ready, []
        while True:
            remaining_s = max(0.0, (deadline_ns - clock.now_ns()) / SECOND_NS)
            before = self._last
            items += self._receive(0.0 if items else remaining_s)
            if items or remaining_s == 0.0 or self._last is before:
                self._restart_when_silent()
                return items

    def _receive(self, timeout_s: float) -> list[Frame | Loss]:
        assert self._receiver is not None
        wait_readable([self._receiver], timeout_s)
        items: list[Frame | Loss] = []
        now_ns = self.context.clock.now_ns()
        for _ in range(_MAX_DRAINS):
            datagrams = self._receiver.receive()
            if not datagrams:
                return items + self._expire(now_ns)
            for datagram in datagrams:
                items += self._take(datagram)
        return items

    def _restart_when_silent(self) -> None:
        now_ns = self.context.clock.now_ns()
        silence_ns = now_ns - self._record_ns
        if silence_ns > self.config.silence_s * SECOND_NS and self._last is not None:
            raise DeviceError(
                f"ATI Net F/T {self.config.host}: no record for {silence_ns / SECOND_NS:.1f} s; "
                "check power and cable"
            )
        if min(silence_ns, now_ns - self._request_ns) > _RESTART_NS:
            self._start()

    def _take(self, datagram: Datagram) -> list[Frame | Loss]:
        if datagram.source != self._address:
            self.counters.foreign += 1
            return []
        if not datagram.payload or len(datagram.payload) % RECORD_BYTES:
            self.counters.malformed += 1
            return []
        self._record_ns = max(self._record_ns, datagram.arrival_ns)
        items: list[Frame | Loss] = []
        kernel_drops = datagram.dropped_before
        for row in np.frombuffer(datagram.payload, RECORD).tolist():
            record = _Record(row[0], row[1], row[2], tuple(row[3]), datagram.arrival_ns)
            items += self._add(record, kernel_drops)
            kernel_drops = 0
        return items

    def _add(self, record: _Record, kernel_drops: int) -> list[Frame | Loss]:
        missed = self._missed_before(record)
        if missed is None:
            self.counters.late += 1
            return []
        items = self._emit() if missed else []
        if booked := min(missed, kernel_drops):
            items.append(Loss(self.context.name, booked, Place.KERNEL, "kernel receive buffer overflow"))
        self._last = record
        self.counters.warning_records += bool(record.status & STATUS_WARNINGS)
        self.counters.error_records += bool(record.status & ~(STATUS_SUMMARY | STATUS_WARNINGS))
        if not self._block:
            self._block_seq = self._next_seq + missed
        self._block.append(record)
        self._next_seq += missed + 1
        return items + self._emit() if len(self._block) >= self._block_samples else items

    def _missed_before(self, record: _Record) -> int | None:
        """Return how many records the sensor made between the last one and this; None = an old one.

        A start request makes ``rdt_seq`` begin anew while ``ft_seq`` counts on: then the internal samples
        between the two say how many records there should have been.
        """
        if self._last is None:
            return 0
        behind = (self._last.ft_seq - record.ft_seq) % _SEQUENCE_MODULUS
        if behind <= _REORDER_NS * self._internal_rate_hz // SECOND_NS:
            return None
        step = (record.rdt_seq - self._last.rdt_seq) % _SEQUENCE_MODULUS
        internal = (record.ft_seq - self._last.ft_seq) % _SEQUENCE_MODULUS
        expected = internal * self.config.rate_hz / self._internal_rate_hz
        counter_ran_on = internal < _SEQUENCE_MODULUS // 2
        if counter_ran_on and 0 < step <= 2 * expected + _SLACK_RECORDS:
            return step - 1
        self.counters.restarts += 1
        return max(0, round(expected) - 1) if counter_ran_on else 0

    def _emit(self) -> list[Frame | Loss]:
        if not self._block:
            return []
        block, self._block = self._block, []
        counts = np.array([record.counts for record in block], "<i4")
        status = 0
        for record in block:
            status |= record.status
        frame = Frame(
            stream=self.context.name,
            seq=self._block_seq,
            count=len(block),
            device_ticks=np.array([record.ft_seq for record in block], np.int64),
            arrival_ns=np.array([record.arrival_ns for record in block], np.int64),
            payload=np.ascontiguousarray(counts.T).tobytes(),
            meta=(float(status),),
        )
        return [frame]

    def _expire(self, now_ns: int) -> list[Frame | Loss]:
        is_old = bool(self._block) and now_ns - self._block[0].arrival_ns >= _BLOCK_NS
        return self._emit() if is_old else []

    def close(self) -> None:
        if self._receiver is None:
            return
        if self._has_started:
            with contextlib.suppress(DeviceError):  # a sensor that is gone needs no stop
                self._receiver.send(REQUEST.pack(REQUEST_HEADER, COMMAND_STOP, 0), self._address)
        self._receiver.close()
        self._receiver = None


def _local_address_towards(address: tuple[str, int]) -> str:
    """Return the local address from which ``address`` is reached, so that only its network can answer."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(address)
        except OSError as err:
            raise DeviceError(
                f"ATI Net F/T {address[0]}: no network route: {err}; is the interface up?"
            ) from err
        local: str = probe.getsockname()[0]
        return local
