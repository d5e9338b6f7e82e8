"""ATI Net F/T force/torque sensors: RDT records over UDP."""

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from sensorium.drivers.devices.rdt import (
    COMMAND_BUFFERED,
    COMMAND_REALTIME,
    COMMAND_STOP,
    INTERNAL_RATE_HZ,
    RDT_PORT,
    SEQUENCE_MODULUS,
    Calibration,
    Record,
    RecordCounter,
    parse_calibration,
    parse_records,
    request,
)
from sensorium.drivers.devices.sample_frames import MAX_FRAME_SAMPLES, SampleFrames
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
from sensorium.drivers.links.http import fetch
from sensorium.drivers.links.udp import Datagram, UdpReceiver, local_address_towards, resolve, wait_readable
from sensorium.errors import DeviceError, WireError
from sensorium.timebase import SECOND_NS

_AXES = ("fx", "fy", "fz", "tx", "ty", "tz")
_RESTART_NS = 500_000_000
_MAX_DRAINS = 4
_DEVICE_LATENCY_NS = 1_000_000
"""Filter and transmission delay inside the sensor: below 1 ms with its low-pass filter off (manual, RDT)."""


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
    """Datagrams that were no records, and what the status words of the others said."""

    malformed: int = 0
    foreign: int = 0
    error_records: int = 0
    warning_records: int = 0


class AtiNetFtDriver(Driver[AtiNetFtConfig]):
    """One stream ``<name>`` of force and torque; ``frame.meta`` is the records' status word.

    Sequence numbers follow ``rdt_seq``. The sensor sends no time; ``ft_seq``, its count of internal samples,
    serves as device clock.

    Attributes:
        counters: What did not become samples, and records with error or warning status.
        records: Counts late records and restarts.
    """

    config_type: ClassVar[type[DriverConfig]] = AtiNetFtConfig

    def __init__(self, config: AtiNetFtConfig, context: DriverContext) -> None:
        super().__init__(config, context)
        self.counters = AtiCounters()
        self.records = RecordCounter(config.rate_hz, INTERNAL_RATE_HZ)
        self._label = f"ATI Net F/T {config.host}"
        self._receiver: UdpReceiver | None = None
        self._frames = SampleFrames(context.name, ())
        self._address = ("", 0)
        self._has_started = False
        self._request_ns = 0
        self._record_ns = 0

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
                f"{self._label}: sends at {calibration.rate_hz:g} Hz, the rig file says "
                f"{config.rate_hz:g} Hz; make them equal on http://{config.host}/comm.htm or in the rig file"
            )
        receiver = UdpReceiver(
            local_address_towards(self._address), 0, config.receive_buffer_bytes, self.context.clock
        )
        self._receiver = receiver
        info = self._info(calibration, receiver)
        self.records = RecordCounter(config.rate_hz, calibration.internal_rate_hz)
        self._frames = SampleFrames(info.name, info.columns)
        self._start()
        self._wait_for_first_record()
        return (info,)

    def _calibration(self) -> Calibration:
        config = self.config
        if config.counts_per_newton is not None and config.counts_per_newton_metre is not None:
            return Calibration(1.0 / config.counts_per_newton, 1.0 / config.counts_per_newton_metre)
        url = f"http://{config.host}:{config.http_port}/netftapi2.xml"
        otherwise = "give counts_per_newton and counts_per_newton_metre"
        page = fetch(self._label, "calibration", url, config.http_timeout_s, otherwise)
        try:
            return parse_calibration(page)
        except DeviceError as err:
            raise DeviceError(f"{self._label}: {err}") from err

    def _start(self) -> None:
        assert self._receiver is not None
        command = COMMAND_BUFFERED if self.config.buffered else COMMAND_REALTIME
        self._receiver.send(request(command), self._address)
        self._has_started = True
        self._request_ns = self.context.clock.now_ns()

    def _wait_for_first_record(self) -> None:
        clock = self.context.clock
        opened_ns = self._record_ns = clock.now_ns()
        while not self.records.has_begun:
            self._receive(0.02)
            if clock.now_ns() - opened_ns > self.config.silence_s * SECOND_NS:
                raise DeviceError(
                    f"{self._label}: no RDT record from UDP port {self.config.port} within "
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
            frame_id=self.context.name,
            clock=DeviceClock(
                ClockKind.FREE,
                SECOND_NS // divisor,
                calibration.internal_rate_hz // divisor,
                SEQUENCE_MODULUS,
            ),
            latency=Latency(0, _DEVICE_LATENCY_NS, 200_000_000),
            stamp_of="sample",
            host_id=self.context.host_id,
            is_personal=bool(self.config.personal),
            columns=tuple(
                Column(name, unit, "<i4", scale)
                for name, unit, scale in zip(_AXES, units, scales, strict=True)
            ),
            is_sampled=True,
            has_device_counter=True,
            max_payload_bytes=MAX_FRAME_SAMPLES * 24,
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
        items = self._frames.take()
        while not items:
            remaining_s = max(0.0, (deadline_ns - clock.now_ns()) / SECOND_NS)
            has_data = self._receive(remaining_s)
            items = self._frames.take()
            if remaining_s == 0.0 or not has_data:
                break
        self._restart_when_silent()
        return items

    def _receive(self, timeout_s: float) -> bool:
        """Gather what the socket holds; return whether it held anything within ``timeout_s``."""
        assert self._receiver is not None
        if not wait_readable([self._receiver], timeout_s):
            return False
        for _ in range(_MAX_DRAINS):
            datagrams = self._receiver.receive()
            if not datagrams:
                break
            for datagram in datagrams:
                self._take(datagram)
        return True

    def _restart_when_silent(self) -> None:
        now_ns = self.context.clock.now_ns()
        silence_ns = now_ns - self._record_ns
        if silence_ns > self.config.silence_s * SECOND_NS and self.records.has_begun:
            raise DeviceError(
                f"{self._label}: no record for {silence_ns / SECOND_NS:.1f} s; check power and cable"
            )
        if min(silence_ns, now_ns - self._request_ns) > _RESTART_NS:
            self._start()

    def _take(self, datagram: Datagram) -> None:
        if datagram.source != self._address:
            self.counters.foreign += 1
            return
        try:
            records = parse_records(datagram.payload)
        except WireError:
            self.counters.malformed += 1
            return
        self._record_ns = max(self._record_ns, datagram.arrival_ns)
        kernel_drops = datagram.dropped_before
        for record in records:
            self._add(record, datagram.arrival_ns, kernel_drops)
            kernel_drops = 0

    def _add(self, record: Record, arrival_ns: int, kernel_drops: int) -> None:
        missed = self.records.missed_before(record)
        if missed is None:
            return
        if booked := min(missed, kernel_drops):
            self._frames.lose(booked, Place.KERNEL, "kernel receive buffer overflow")
        self.counters.warning_records += record.is_warning
        self.counters.error_records += record.is_error
        status = (float(record.status),)
        self._frames.add(record.counts, arrival_ns, record.ft_seq, status, missed - booked)

    def close(self) -> None:
        if self._receiver is None:
            return
        if self._has_started:
            with contextlib.suppress(DeviceError):  # a sensor that is gone needs no stop
                self._receiver.send(request(COMMAND_STOP), self._address)
        self._receiver.close()
        self._receiver = None
