"""Xsens MTi IMUs: MTData2 over a serial line.

Source: "MT Low Level Communication Protocol Documentation" (Xsens): states, SetOutputConfiguration.
"""

import math
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

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
    item_name,
    parse_sample,
)
from sensorium.drivers.devices.sample_frames import MAX_FRAME_SAMPLES, SampleFrames
from sensorium.drivers.driver import Driver, DriverConfig, DriverContext, Seen
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
from sensorium.drivers.links.serial_line import SerialLine, refuse_silence, require_port, serial_ports
from sensorium.errors import DeviceError
from sensorium.timebase import SECOND_NS, Clock

_COUNTER_MODULUS = 1 << 16
_TIME_MODULUS = 1 << 32
_TICK_NS = 100_000
_TICKS_PER_SECOND = SECOND_NS // _TICK_NS
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


class MtiLine:
    """MTData2 messages over a serial line, and commands that are answered.

    Attributes:
        parser: Its counters say what on the line was no message.
    """

    def __init__(self, line: SerialLine, label: str, clock: Clock) -> None:
        self.parser = MessageParser()
        self._line = line
        self._label = label
        self._clock = clock

    def receive(self, timeout_s: float) -> list[Message]:
        """Return the messages that are complete within ``timeout_s``, as soon as bytes have come.

        Raises:
            DeviceError: If the line is not open or the device gone.
        """
        chunks = self._line.receive(timeout_s)
        return [message for chunk in chunks for message in self.parser.feed(chunk.data, chunk.arrival_ns)]

    def command(self, kind: int, data: bytes = b"") -> bytes:
        """Send a command, return the data of its answer.

        Raises:
            DeviceError: If the device refuses it or does not answer.
        """
        for _ in range(_ANSWER_TRIES):
            self._line.write(encode_message(kind, data))
            deadline_ns = self._clock.now_ns() + _ANSWER_NS
            while self._clock.now_ns() < deadline_ns:
                for message in self.receive(0.02):
                    if message.kind == kind + 1:
                        return message.data
                    if message.kind == ERROR:
                        raise DeviceError(
                            f"{self._label}: command 0x{kind:02X} refused: error {message.data.hex()}"
                        )
        raise DeviceError(
            f"{self._label}: no answer to command 0x{kind:02X} at {self._line.baud} baud ("
            f"{self.parser.skipped_bytes} B were no Xsens message); check them, or set configure: false"
        )

    def configure(self, outputs: dict[int, int]) -> str:
        """Write the output configuration, read it back, start measuring; return the device's id.

        Raises:
            DeviceError: If the device does not answer or has not taken an output; names both rates.
        """
        self.command(GOTO_CONFIG)
        device_id = self.command(REQ_DID)
        packed = b"".join(struct.pack(">HH", identifier, rate) for identifier, rate in outputs.items())
        self.command(OUTPUT_CONFIGURATION, packed)
        answer = self.command(OUTPUT_CONFIGURATION)
        found = dict(struct.iter_unpack(">HH", answer[: len(answer) // 4 * 4]))
        for identifier, rate in outputs.items():
            if identifier not in found or (rate != EVERY_MESSAGE and found[identifier] != rate):
                raise DeviceError(
                    f"{self._label}: output 0x{identifier:04X} at {rate} Hz was not accepted, the "
                    f"device has {found.get(identifier, 'none')}; choose a rate that it offers"
                )
        self.command(GOTO_MEASUREMENT)
        return device_id.hex().upper()


class SampleCounter:
    """Counts what the device produced, from its packet counter and its time.

    Attributes:
        restarts: Times that the device's clock began anew.
    """

    def __init__(self, rate_hz: float) -> None:
        self.restarts = 0
        self._rate_hz = rate_hz
        self._last: tuple[Sample, int] | None = None

    def missed_before(self, sample: Sample, arrival_ns: int) -> int:
        """Return how many samples the device counted between the last message and this one; -1 = a repeat.

        A count that the time cannot hold is a restarted device: 0, it goes on with the next number.
        """
        last, self._last = self._last, (sample, arrival_ns)
        if last is None or sample.counter is None or last[0].counter is None:
            return 0
        step = (sample.counter - last[0].counter) % _COUNTER_MODULUS
        if step == 0 and sample.ticks == last[0].ticks:
            self._last = last
            return -1
        elapsed_s, has_restarted = self._elapsed(*last, sample, arrival_ns, step)
        if has_restarted:
            self.restarts += 1
            return 0
        whole_turns = round((elapsed_s * self._rate_hz - step) / _COUNTER_MODULUS)
        return step - 1 + max(0, whole_turns) * _COUNTER_MODULUS

    def _elapsed(
        self, last: Sample, last_arrival_ns: int, sample: Sample, arrival_ns: int, step: int
    ) -> tuple[float, bool]:
        """Return the seconds since the last message, and whether the device has begun anew in them."""
        elapsed_s = max(0, arrival_ns - last_arrival_ns) / SECOND_NS
        if sample.ticks is None or last.ticks is None:
            return elapsed_s, step > 2 * elapsed_s * self._rate_hz + _COUNTER_MODULUS // 8
        ticks = (sample.ticks - last.ticks) % _TIME_MODULUS
        return max(elapsed_s, ticks / _TICKS_PER_SECOND), ticks > _TIME_MODULUS // 2


class XsensDriver(Driver[XsensConfig]):
    """One stream ``<name>`` of acceleration and rate of turn; ``frame.meta`` is the status word.

    Sequence numbers follow the device's packet counter; device stamps are SampleTimeFine.

    Attributes:
        items: What the messages held that is not recorded.
        incomplete_messages: Data messages without acceleration or rate of turn; lost in the driver.
        duplicates: Messages that repeat the last one's counter and time.
    """

    config_type: ClassVar[type[DriverConfig]] = XsensConfig

    def __init__(self, config: XsensConfig, context: DriverContext) -> None:
        super().__init__(config, context)
        self.items = ItemCounters()
        self.incomplete_messages = 0
        self.duplicates = 0
        self._label = f"Xsens {config.port}"
        self._line = SerialLine(config.port, config.baud, self._label, context.clock)
        self._device = MtiLine(self._line, self._label, context.clock)
        self._counter = SampleCounter(config.rate_hz)
        self._frames = SampleFrames(context.name, ())
        self._backlog: list[Message] = []
        self._heard_ns = 0

    @property
    def parser(self) -> MessageParser:
        """Its counters say what on the line was no message."""
        return self._device.parser

    @property
    def restarts(self) -> int:
        """Times that the device's clock began anew."""
        return self._counter.restarts

    @classmethod
    def check(cls, config: Any) -> None:
        """Raise if the port does not exist."""
        require_port("Xsens", config.port)

    @classmethod
    def discover(cls) -> Sequence[Seen]:
        """Return the serial ports whose adapter says that it is Xsens'; behind another's none shows."""
        ports = [port for port in serial_ports() if "xsens" in port.lower()]
        return [Seen(Path(port).name, {"port": port}) for port in ports]

    def open(self) -> Sequence[StreamInfo]:
        try:
            self._line.open()
            details: dict[str, str] = {}
            if self.config.configure:
                details["device_id"] = self._device.configure(self._wanted_outputs())
            info = self._info(self._first_sample(), details)
        except BaseException:
            self.close()
            raise
        self._frames = SampleFrames(info.name, info.columns)
        return (info,)

    def _wanted_outputs(self) -> dict[int, int]:
        rate = round(self.config.rate_hz)
        outputs = {PACKET_COUNTER: EVERY_MESSAGE, SAMPLE_TIME_FINE: EVERY_MESSAGE}
        if self.config.quaternion:
            outputs[QUATERNION] = rate
        return outputs | {ACCELERATION: rate, RATE_OF_TURN: rate, STATUS_WORD: EVERY_MESSAGE}

    def _first_sample(self) -> Sample:
        """Wait for the first usable message; it stays in line to be read."""
        clock = self.context.clock
        deadline_ns = clock.now_ns() + round(self.config.silence_s * SECOND_NS)
        found = ItemCounters()
        while clock.now_ns() < deadline_ns:
            messages = [each for each in self._device.receive(0.02) if each.kind == MTDATA2]
            self._backlog += messages
            for message in messages:
                sample = parse_sample(message.data, found)
                if sample.acceleration is not None and sample.rate_of_turn is not None:
                    self._heard_ns = clock.now_ns()
                    return sample
        raise DeviceError(
            f"{self._label}: no acceleration and rate of turn within {self.config.silence_s:g} s "
            f"at {self.config.baud} baud ({self.parser.skipped_bytes} B were no Xsens message); "
            f"{_advice(len(self._backlog), found)}"
        )

    def _info(self, first: Sample, details: dict[str, str]) -> StreamInfo:
        config = self.config
        dtype = "<f8" if first.is_double else "<f4"
        columns = [Column(f"acc_{axis}", "m/s^2", dtype) for axis in "xyz"]
        columns += [Column(f"gyro_{axis}", "rad/s", dtype) for axis in "xyz"]
        if config.quaternion:
            columns += [Column(f"quat_{part}", "", dtype) for part in "wxyz"]
        has_time = first.ticks is not None
        message_bytes = 5 + 3 * 5 + 2 + 4 + 4 + (8 if first.is_double else 4) * len(columns)
        line_ns = round(message_bytes * 10 * SECOND_NS / config.baud)
        return StreamInfo(
            name=self.context.name,
            modality=Modality.IMU,
            encoding=Encoding.COLUMNS,
            rate_hz=config.rate_hz,
            frame_id=self.context.name,
            clock=DeviceClock(ClockKind.FREE, _TICK_NS, 1, _TIME_MODULUS) if has_time else DeviceClock(),
            # The time on the line is not subtracted: over USB there is none.
            latency=Latency(0, _DEVICE_LATENCY_NS + line_ns, 200_000_000),
            stamp_of="sample",
            host_id=self.context.host_id,
            is_personal=bool(self.config.personal),
            columns=tuple(columns),
            is_sampled=True,
            has_device_counter=first.counter is not None,
            max_payload_bytes=MAX_FRAME_SAMPLES * 8 * len(columns),
            meta_fields=("status_any",),
            details={"port": config.port, "baud": str(config.baud), **details},
        )

    def read(self, timeout_s: float) -> Sequence[Frame | Loss]:
        clock = self.context.clock
        deadline_ns = clock.now_ns() + round(timeout_s * SECOND_NS)
        messages, self._backlog = self._backlog, []
        while True:
            remaining_s = 0.0 if messages else max(0.0, (deadline_ns - clock.now_ns()) / SECOND_NS)
            received = self._device.receive(remaining_s)
            for message in (*messages, *received):
                self._take(message)
            messages = []
            items = self._frames.take()
            if items or not received:
                refuse_silence(self._label, self._heard_ns, clock.now_ns(), self.config.silence_s)
                return items

    def _take(self, message: Message) -> None:
        if message.kind != MTDATA2:
            return
        self._heard_ns = message.arrival_ns
        sample = parse_sample(message.data, self.items)
        restarts = self.restarts
        missed = self._counter.missed_before(sample, message.arrival_ns)
        if missed < 0:
            self.duplicates += 1
        elif sample.acceleration is None or sample.rate_of_turn is None:
            self.incomplete_messages += 1
            self._frames.skip(missed)
            self._frames.lose(1, Place.DRIVER, "message without IMU data")
        else:
            if missed or self.restarts != restarts:
                self._frames.skip(missed)
            row = (*sample.acceleration, *sample.rate_of_turn)
            if self.config.quaternion:
                row += sample.quaternion or (math.nan,) * 4
            self._frames.add(row, message.arrival_ns, sample.ticks, (float(sample.status),))

    def close(self) -> None:
        self._line.close()


def _advice(messages: int, found: ItemCounters) -> str:
    """Return what to do where no message holds what is recorded."""
    if not messages:
        return "check baud and outputs"
    names = ", ".join(item_name(identifier) for identifier in sorted(found.unknown_items)) or "nothing else"
    return (
        f"its {messages} messages hold {names}; switch Acceleration and RateOfTurn on in its outputs, or leave "
        "configure out, which does it"
    )
