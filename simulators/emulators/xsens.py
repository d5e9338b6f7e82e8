"""An Xsens MTi on a pseudo terminal. In tests: ``with XsensEmulator(...) as imu: ... imu.port``."""

import contextlib
import math
import os
import select
import struct
import tty
from collections.abc import Sequence

from sensorium.drivers.devices import mtdata2
from sensorium.simulators.emulators.emulator import NO_FAULTS, Emulator, Signal, WireFaults
from sensorium.timebase import Clock


def imu_signal(sample: int) -> tuple[float, float, float, float, float, float]:
    """Return gravity and a slow rocking; m/s^2 and rad/s."""
    swing = math.sin(sample * 0.01)
    return (swing, 0.5 * swing, 9.80665, 0.1 * swing, -0.1 * swing, sample % 1000 * 1e-3)


class XsensEmulator(Emulator):
    """An MTi on a pseudo terminal: measures after power-up, takes the configuration commands of the driver.

    Attributes:
        port: The device file to open.
    """

    def __init__(
        self,
        rate_hz: float = 100.0,
        *,
        signal: Signal = imu_signal,
        faults: WireFaults = NO_FAULTS,
        first_counter: int = 0,
        first_ticks: int = 0,
        allowed_rates_hz: Sequence[int] = (1, 2, 4, 5, 10, 20, 40, 50, 80, 100, 200, 400, 1000, 2000),
        clock: Clock | None = None,
    ) -> None:
        """Open a pty.

        Args:
            first_counter, first_ticks: Packet counter and SampleTimeFine of sample 0, to place their wraps.
            allowed_rates_hz: A configuration with another rate is answered with the next lower one.
        """
        super().__init__(rate_hz, faults, clock)
        self._signal = signal
        self._first_counter = first_counter
        self._first_ticks = first_ticks
        self._allowed_rates_hz = allowed_rates_hz
        self._parser = mtdata2.MessageParser()
        self._is_measuring = True
        self._outputs = {
            mtdata2.PACKET_COUNTER: mtdata2.EVERY_MESSAGE,
            mtdata2.SAMPLE_TIME_FINE: mtdata2.EVERY_MESSAGE,
            mtdata2.ACCELERATION: round(rate_hz),
            mtdata2.RATE_OF_TURN: round(rate_hz),
            mtdata2.STATUS_WORD: mtdata2.EVERY_MESSAGE,
        }
        self._master, self._slave = os.openpty()
        tty.setraw(self._slave)
        os.set_blocking(self._master, False)
        self.port = os.ttyname(self._slave)
        self._is_connected = True

    def __enter__(self) -> "XsensEmulator":
        super().__enter__()
        return self

    @property
    def is_streaming(self) -> bool:
        return self._is_measuring and self._is_connected

    def answer_requests(self) -> None:
        if not self._is_connected or not select.select([self._master], [], [], 0)[0]:
            return
        with contextlib.suppress(OSError):
            for message in self._parser.feed(os.read(self._master, 4096), self._clock.now_ns()):
                self._answer(message)

    def _answer(self, message: mtdata2.Message) -> None:
        answer = b""
        if message.kind == mtdata2.GOTO_CONFIG:
            self._is_measuring = False
        elif message.kind == mtdata2.GOTO_MEASUREMENT:
            self._is_measuring = True
        elif message.kind == mtdata2.REQ_DID:
            answer = bytes.fromhex("0380005A")
        elif message.kind == mtdata2.OUTPUT_CONFIGURATION:
            if message.data:
                self._configure(message.data)
            answer = b"".join(struct.pack(">HH", kind, rate) for kind, rate in self._outputs.items())
        else:
            self.send(mtdata2.encode_message(mtdata2.ERROR, b"\x04"))
            return
        self.send(mtdata2.encode_message(message.kind + 1, answer))

    def _configure(self, data: bytes) -> None:
        self._outputs = {}
        for kind, wanted in struct.iter_unpack(">HH", data[: len(data) // 4 * 4]):
            is_rate = wanted != mtdata2.EVERY_MESSAGE
            lower = [rate for rate in self._allowed_rates_hz if rate <= wanted]
            self._outputs[kind] = max(lower, default=1) if is_rate else wanted
            if kind == mtdata2.ACCELERATION:
                self.rate_hz = float(self._outputs[kind])

    def encode(self, sample: int) -> bytes:
        values = self._signal(sample)
        ticks = self._first_ticks + round(sample * 10_000 / self.rate_hz)
        items = {
            mtdata2.PACKET_COUNTER: ((self._first_counter + sample) & 0xFFFF).to_bytes(2, "big"),
            mtdata2.SAMPLE_TIME_FINE: (ticks & 0xFFFFFFFF).to_bytes(4, "big"),
            mtdata2.QUATERNION: struct.pack(">4f", 1.0, 0.0, 0.0, 0.0),
            mtdata2.ACCELERATION: struct.pack(">3f", *values[:3]),
            mtdata2.RATE_OF_TURN: struct.pack(">3f", *values[3:]),
            mtdata2.STATUS_WORD: (3).to_bytes(4, "big"),
        }
        data = b"".join(
            struct.pack(">HB", kind, len(items[kind])) + items[kind]
            for kind in self._outputs
            if kind in items
        )
        return mtdata2.encode_message(mtdata2.MTDATA2, data)

    def send(self, data: bytes) -> None:
        # Nobody reads: the pty is full, and like a UART without a reader the device does not wait.
        with contextlib.suppress(BlockingIOError):
            os.write(self._master, data)

    def disconnect(self) -> None:
        if self._is_connected:
            self._is_connected = False
            os.close(self._slave)
            os.close(self._master)

    def close(self) -> None:
        self.disconnect()
