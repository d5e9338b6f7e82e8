"""Xsens MTi IMUs: MTData2 over a serial line.

Source: "MT Low Level Communication Protocol Documentation" (Xsens): states, SetOutputConfiguration.
"""

import contextlib
import math
import select
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import serial
from pydantic import Field, PositiveFloat

from sensorium.drivers.devices.mtdata2 import (
    ACCELERATION,
    ERROR,
    EVERY_MESSAGE,
    GOTO_CONFIG,
    GOTO_MEASUREMENT,
    MTDATA2,
    OUTPUT_CONFIGURATION,
    PACKET_COUNTER,
    QUATERNION,
    RATE_OF_TURN,
    REQ_DID,
    SAMPLE_TIME_FINE,
    STATUS_WORD,
    ItemCounters,
    Message,
    MessageParser,
    Sample,
    encode_message,
    parse_sample,
)
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
    stamps,
)
from sensorium.errors import DeviceError
from sensorium.timebase import SECOND_NS

_COUNTER_MODULUS = 1 << 16
_TIME_MODULUS = 1 << 32
_TICK_NS = 100_000
_TICKS_PER_SECOND = SECOND_NS // _TICK_NS
_BLOCK_NS = 20_000_000
_BLOCK_SAMPLES = 10
_ANSWER_TRIES = 3
_ANSWER_NS = 500_000_000
_DEVICE_LATENCY_NS = 2_000_000
"""Sensor-internal latency that the MTi datasheets bound with "< 2 ms"; one-way stamps cannot see it."""


class XsensConfig(DriverConfig):
    """Options of :class:`XsensDriver`.

    Attributes:
        port: Serial device, best as ``/dev/serial/by-id/...``.
        baud: Line speed; USB devices ignore it.
        rate_hz: Output rate of acceleration and rate of turn.
        quaternion: Also record the device's own orientation estimate.
        configure: Write the outputs to the device and read them back; False only listens, and takes the
            device to be set up already.
        silence_s: Without a valid message for this long the device counts as gone.
    """

    port: str
    baud: int = Field(default=115200, ge=1200, le=4_000_000)
    rate_hz: PositiveFloat = Field(default=100.0, le=2000.0)
    quaternion: bool = False
    configure: bool = True
    silence_s: PositiveFloat = 2.0


@dataclass(slots=True)
class _Block:
    """Consecutive samples that wait to become one frame."""

    seq: int
    samples: list[Sample] = field(default_factory=list)
    arrival_ns: list[int] = field(default_factory=list)


class XsensDriver(Driver[XsensConfig]):
    """One stream ``<name>`` of acceleration and rate of turn; ``frame.meta`` is the OR of the status words.

    Sequence numbers follow the device's packet counter; device stamps are SampleTimeFine.

    Attributes:
        parser: Its counters say what on the line was no message.
        items: What the messages held that is not recorded.
        incomplete_messages: Data messages without acceleration or rate of turn; lost in the driver.
        duplicates: Messages that repeat the last one's counter and time.
        restarts: Times that the device's clock began anew.
    """

    config_type: ClassVar[type[DriverConfig]] = XsensConfig

    def __init__(self, config: XsensConfig, context: DriverContext) -> None:
        super().__init__(config, context)
        self.parser = MessageParser()
        self.items = ItemCounters()
        self.incomplete_messages = 0
        self.duplicates = 0
        self.restarts = 0
        self._label = f"Xsens {config.port}"
        self._serial: serial.Serial | None = None
        self._backlog: list[Message] = []
        self._block = _Block(0)
        self._block_samples = max(1, min(_BLOCK_SAMPLES, int(config.rate_hz * _BLOCK_NS / SECOND_NS)))
        self._value_code = "f"
        self._last: tuple[Sample, int] | None = None
        self._next_seq = 0
        self._last_message_ns = 0

    @classmethod
    def check(cls, config: Any) -> None:
        """Raise if the port does not exist."""
        if not Path(config.port).exists():
            raise DeviceError(f"Xsens: serial port {config.port} does not exist; is the device plugged in?")

    def open(self) -> Sequence[StreamInfo]:
        try:
            return self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> Sequence[StreamInfo]:
        config = self.config
        try:
            self._serial = serial.Serial(
                config.port, config.baud, timeout=0, write_timeout=1.0, exclusive=True
            )
        except (OSError, ValueError) as err:
            raise DeviceError(
                f"Xsens {config.port}: cannot be opened: {err}; is it plugged in, are you in group dialout?"
            ) from err
        # A pty, or a USB CDC device, has no UART whose buffering could be cut.
        with contextlib.suppress(OSError, ValueError, NotImplementedError, AttributeError):
            self._serial.set_low_latency_mode(True)
        details = self._configure() if config.configure else {}
        first = self._first_sample()
        self._value_code = "d" if first.is_double else "f"
        return (self._info(first, details),)

    def _configure(self) -> dict[str, str]:
        """Write the output configuration, read it back, and return what identifies the device."""
        self._command(GOTO_CONFIG)
        device_id = self._command(REQ_DID)
        wanted = self._wanted_outputs()
        packed = b"".join(struct.pack(">HH", identifier, rate) for identifier, rate in wanted.items())
        self._command(OUTPUT_CONFIGURATION, packed)
        answer = self._command(OUTPUT_CONFIGURATION)
        found = dict(struct.iter_unpack(">HH", answer[: len(answer) // 4 * 4]))
        for identifier, rate in wanted.items():
            if identifier not in found or (rate != EVERY_MESSAGE and found[identifier] != rate):
                raise DeviceError(
                    f"{self._label}: output 0x{identifier:04X} at {rate} Hz was not accepted, the "
                    f"device has {found.get(identifier, 'none')}; choose a rate that it offers"
                )
        self._command(GOTO_MEASUREMENT)
        return {"device_id": device_id.hex().upper()}

    def _wanted_outputs(self) -> dict[int, int]:
        rate = round(self.config.rate_hz)
        outputs = {PACKET_COUNTER: EVERY_MESSAGE, SAMPLE_TIME_FINE: EVERY_MESSAGE}
        if self.config.quaternion:
            outputs[QUATERNION] = rate
        return outputs | {ACCELERATION: rate, RATE_OF_TURN: rate, STATUS_WORD: EVERY_MESSAGE}

    def _command(self, kind: int, data: bytes = b"") -> bytes:
        """Send a command, return the data of its answer.

        Raises:
            DeviceError: If the device refuses it or does not answer.
        """
        for _ in range(_ANSWER_TRIES):
            self._write(encode_message(kind, data))
            deadline_ns = self.context.clock.now_ns() + _ANSWER_NS
            while self.context.clock.now_ns() < deadline_ns:
                for message in self._receive(0.02):
                    if message.kind == kind + 1:
                        return message.data
                    if message.kind == ERROR:
                        raise DeviceError(
                            f"{self._label}: command 0x{kind:02X} refused: error {message.data.hex()}"
                        )
        raise DeviceError(
            f"{self._label}: no answer to command 0x{kind:02X} at {self.config.baud} baud ("
            f"{self.parser.skipped_bytes} B were no Xsens message); check them, or set configure: false"
        )

    def _first_sample(self) -> Sample:
        """Wait for the first usable message; it stays in line to be read."""
        clock = self.context.clock
        deadline_ns = clock.now_ns() + round(self.config.silence_s * SECOND_NS)
        while clock.now_ns() < deadline_ns:
            for message in self._receive(0.02):
                if message.kind == MTDATA2:
                    self._backlog.append(message)
            for message in self._backlog:
                sample = parse_sample(message.data, ItemCounters())
                if sample.acceleration is not None and sample.rate_of_turn is not None:
                    self._last_message_ns = clock.now_ns()
                    return sample
        raise DeviceError(
            f"{self._label}: no acceleration and rate of turn within {self.config.silence_s:g} s "
            f"at {self.config.baud} baud ({self.parser.skipped_bytes} B were no Xsens message); check baud "
            "and outputs"
        )

    def _info(self, first: Sample, details: dict[str, str]) -> StreamInfo:
        config = self.config
        dtype = "<f8" if first.is_double else "<f4"
        columns = [Column(f"acc_{axis}", "m/s^2", dtype) for axis in "xyz"]
        columns += [Column(f"gyro_{axis}", "rad/s", dtype) for axis in "xyz"]
        if config.quaternion:
            columns += [Column(f"quat_{part}", "", dtype) for part in "wxyz"]
        has_time = first.ticks is not None
        message_bytes = 5 + 3 * 5 + 2 + 4 + 4 + sum(4 for _ in columns)
        line_ns = round(message_bytes * 10 * SECOND_NS / config.baud)
        return StreamInfo(
            name=self.context.name,
            modality=Modality.IMU,
            encoding=Encoding.COLUMNS,
            rate_hz=config.rate_hz,
            frame_rate_hz=config.rate_hz / self._block_samples,
            frame_id=self.context.name,
            clock=DeviceClock(ClockKind.FREE, _TICK_NS, 1, _TIME_MODULUS) if has_time else DeviceClock(),
            # The time on the line is not subtracted: over USB there is none.
            latency=Latency(0, _DEVICE_LATENCY_NS + line_ns, _BLOCK_NS + 200_000_000),
            stamp_of="sample",
            host_id=self.context.host_id,
            is_personal=bool(self.config.personal),
            columns=tuple(columns),
            is_sampled=True,
            has_device_counter=first.counter is not None,
            max_payload_bytes=4096,
            meta_fields=("status_any",),
            details={"port": config.port, "baud": str(config.baud), **details},
        )

    def read(self, timeout_s: float) -> Sequence[Frame | Loss]:
        if self._serial is None:
            raise DeviceError(f"Xsens {self.context.name} is not open")
        clock = self.context.clock
        deadline_ns = clock.now_ns() + round(timeout_s * SECOND_NS)
        while True:
            remaining_s = max(0.0, (deadline_ns - clock.now_ns()) / SECOND_NS)
            messages, self._backlog = self._backlog, []
            received = self._receive(0.0 if messages else remaining_s)
            items: list[Frame | Loss] = []
            for message in (*messages, *received):
                items += self._take(message)
            items += self._expire(clock.now_ns())
            if items or remaining_s == 0.0 or not received:
                self._refuse_silence()
                return items

    def _write(self, data: bytes) -> None:
        assert self._serial is not None
        try:
            self._serial.write(data)
        except OSError as err:
            raise self._gone(err) from err

    def _receive(self, timeout_s: float) -> list[Message]:
        """Return the messages that arrive within ``timeout_s``, as soon as there are bytes."""
        assert self._serial is not None
        poller = select.poll()
        poller.register(self._serial.fileno(), select.POLLIN)
        if not poller.poll(timeout_s * 1000.0):
            return []
        try:
            data = self._serial.read(4096)
        except OSError as err:
            raise self._gone(err) from err
        if not data:
            raise self._gone("end of file")
        return self.parser.feed(data, self.context.clock.now_ns())

    def _gone(self, cause: object) -> DeviceError:
        return DeviceError(f"{self._label}: device is gone ({cause}); was it unplugged?")

    def _refuse_silence(self) -> None:
        silence_ns = self.context.clock.now_ns() - self._last_message_ns
        if silence_ns > self.config.silence_s * SECOND_NS:
            raise DeviceError(
                f"{self._label}: no data for {silence_ns / SECOND_NS:.1f} s; check power and cable"
            )

    def _take(self, message: Message) -> list[Frame | Loss]:
        if message.kind != MTDATA2:
            return []
        self._last_message_ns = message.arrival_ns
        sample = parse_sample(message.data, self.items)
        restarts = self.restarts
        missed = self._missed_before(sample, message.arrival_ns)
        if missed < 0:
            self.duplicates += 1
            return []
        self._last = (sample, message.arrival_ns)
        items: list[Frame | Loss] = self._emit() if missed or self.restarts != restarts else []
        seq = self._next_seq + missed
        self._next_seq = seq + 1
        if sample.acceleration is None or sample.rate_of_turn is None:
            self.incomplete_messages += 1
            return [
                *items,
                *self._emit(),
                Loss(self.context.name, 1, Place.DRIVER, "message without IMU data"),
            ]
        if not self._block.samples:
            self._block = _Block(seq)
        self._block.samples.append(sample)
        self._block.arrival_ns.append(message.arrival_ns)
        return items + self._emit() if len(self._block.samples) >= self._block_samples else items

    def _missed_before(self, sample: Sample, arrival_ns: int) -> int:
        """Return how many samples the device counted between the last message and this one; -1 = a repeat.

        A count that the time cannot hold is a restarted device: 0, it goes on with the next number.
        """
        if self._last is None or sample.counter is None or self._last[0].counter is None:
            return 0
        last, last_arrival_ns = self._last
        assert last.counter is not None
        step = (sample.counter - last.counter) % _COUNTER_MODULUS
        if step == 0 and sample.ticks == last.ticks:
            return -1
        elapsed_s = max(0, arrival_ns - last_arrival_ns) / SECOND_NS
        if sample.ticks is not None and last.ticks is not None:
            elapsed_s = max(elapsed_s, (sample.ticks - last.ticks) % _TIME_MODULUS / _TICKS_PER_SECOND)
            has_restarted = (sample.ticks - last.ticks) % _TIME_MODULUS > _TIME_MODULUS // 2
        else:
            has_restarted = step > 2 * elapsed_s * self.config.rate_hz + _COUNTER_MODULUS // 8
        if has_restarted:
            self.restarts += 1
            return 0
        whole_turns = round((elapsed_s * self.config.rate_hz - step) / _COUNTER_MODULUS)
        return step - 1 + max(0, whole_turns) * _COUNTER_MODULUS

    def _emit(self) -> list[Frame | Loss]:
        block = self._block
        if not block.samples:
            return []
        self._block = _Block(self._next_seq)
        ticks = [sample.ticks for sample in block.samples if sample.ticks is not None]
        status = 0
        for sample in block.samples:
            status |= sample.status
        frame = Frame(
            stream=self.context.name,
            seq=block.seq,
            count=len(block.samples),
            device_ticks=stamps(*ticks) if len(ticks) == len(block.samples) else None,
            arrival_ns=stamps(*block.arrival_ns),
            payload=self._payload(block.samples),
            meta=(float(status),),
        )
        return [frame]

    def _payload(self, samples: list[Sample]) -> bytes:
        missing = (math.nan,) * 4
        rows = []
        for sample in samples:
            assert sample.acceleration is not None
            assert sample.rate_of_turn is not None
            row = (*sample.acceleration, *sample.rate_of_turn)
            rows.append((*row, *(sample.quaternion or missing)) if self.config.quaternion else row)
        columns = zip(*rows, strict=True)
        return b"".join(struct.pack(f"<{len(rows)}{self._value_code}", *column) for column in columns)

    def _expire(self, now_ns: int) -> list[Frame | Loss]:
        is_old = bool(self._block.samples) and now_ns - self._block.arrival_ns[0] >= _BLOCK_NS
        return self._emit() if is_old else []

    def close(self) -> None:
        if self._serial is not None:
            with contextlib.suppress(OSError):  # an unplugged adapter has nothing left to release
                self._serial.close()
            self._serial = None
