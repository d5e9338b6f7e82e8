"""Devices that speak their real wire protocol in real time: an Xsens MTi on a pty, an ATI Net F/T on UDP.

In tests: ``with XsensEmulator(...) as imu: ... imu.port``. By hand:
``python -m sensorium.simulators.emulators.command xsens|ati`` prints where to connect to.
"""

import argparse
import contextlib
import http.server
import math
import os
import random
import select
import socket
import struct
import sys
import threading
import tty
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType

from sensorium.drivers.devices import ati_netft, mtdata2
from sensorium.timebase import SECOND_NS, Clock, HostClock

Signal = Callable[[int], tuple[float, float, float, float, float, float]]
"""Six values of sample number i: acceleration and rate of turn, or force and torque."""

_POLL_NS = 5_000_000


def imu_signal(sample: int) -> tuple[float, float, float, float, float, float]:
    """Return gravity and a slow rocking; m/s^2 and rad/s."""
    swing = math.sin(sample * 0.01)
    return (swing, 0.5 * swing, 9.80665, 0.1 * swing, -0.1 * swing, sample % 1000 * 1e-3)


def force_signal(sample: int) -> tuple[float, float, float, float, float, float]:
    """Return a pull that grows and falls; N and Nm."""
    swing = math.sin(sample * 0.01)
    return (10.0 * swing, -5.0, 20.0 + swing, 0.1, 0.2 * swing, -(sample % 1000) * 1e-3)


@dataclass(frozen=True, slots=True)
class WireFaults:
    """What goes wrong on the wire; sample numbers count from 0, an interval of 0 means never.

    Attributes:
        drop_every: Each such sample is counted by the device but not sent.
        garbage_every: Random bytes (serial) or a random datagram (UDP) in front of each such sample.
        corrupt_every: One flipped bit in each such sample.
        disconnect_after: The device vanishes at this sample.
        seed: Of the random bytes.
    """

    drop_every: int = 0
    garbage_every: int = 0
    corrupt_every: int = 0
    disconnect_after: int = 0
    seed: int = 0

    def drops(self, sample: int) -> bool:
        return _hits(self.drop_every, sample)

    def spoils(self, sample: int) -> bool:
        return _hits(self.corrupt_every, sample)

    def precedes_with_garbage(self, sample: int) -> bool:
        return _hits(self.garbage_every, sample)

    def disconnects(self, sample: int) -> bool:
        return bool(self.disconnect_after) and sample >= self.disconnect_after


def _hits(interval: int, sample: int) -> bool:
    return bool(interval) and sample > 0 and sample % interval == 0


NO_FAULTS = WireFaults()


class Emulator(ABC):
    """A device that runs in a thread while the context is open; paced by sample number, so without drift."""

    def __init__(self, rate_hz: float, faults: WireFaults, clock: Clock | None) -> None:
        self.rate_hz = rate_hz
        self._faults = faults
        self._clock = clock or HostClock()
        self._random = random.Random(faults.seed)
        self._sample = 0
        self._start_ns: int | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self.run, name=type(self).__name__, daemon=True)

    @property
    def samples(self) -> int:
        """How many samples the device has made."""
        return self._sample

    def __enter__(self) -> "Emulator":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._thread.join()
        self.close()

    def run(self) -> None:
        """Work until :meth:`stop`."""
        while not self._stopped.is_set():
            self._clock.sleep_until(min(self.step(), self._clock.now_ns() + _POLL_NS))

    def stop(self) -> None:
        self._stopped.set()

    def step(self) -> int:
        """Answer requests and send the samples that are due; return when the next one is."""
        self.answer_requests()
        now_ns = self._clock.now_ns()
        if not self.is_streaming or self._stopped.is_set():
            self._start_ns = None
            return now_ns + _POLL_NS
        if self._start_ns is None:
            self._start_ns = now_ns - round(self._sample * SECOND_NS / self.rate_hz)
        while (due_ns := self._start_ns + round(self._sample * SECOND_NS / self.rate_hz)) <= now_ns:
            if self._faults.disconnects(self._sample):
                self.disconnect()
                return now_ns + _POLL_NS
            self._emit(self._sample)
            self._sample += 1
        return due_ns

    def _emit(self, sample: int) -> None:
        if self._faults.precedes_with_garbage(sample):
            self.send(self._random.randbytes(self._random.randrange(1, 120)))
        data = self.encode(sample)
        if self._faults.spoils(sample):
            data = self.spoil(data)
        if not self._faults.drops(sample):
            self.send(data)

    def spoil(self, data: bytes) -> bytes:
        """Return ``data`` with one bit flipped."""
        bit = self._random.randrange(len(data) * 8)
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        return bytes(damaged)

    @property
    @abstractmethod
    def is_streaming(self) -> bool:
        """Whether samples are being made."""

    @abstractmethod
    def answer_requests(self) -> None:
        """Take what the host has sent."""

    @abstractmethod
    def encode(self, sample: int) -> bytes:
        """Return sample number ``sample`` as it goes over the wire."""

    @abstractmethod
    def send(self, data: bytes) -> None:
        """Put bytes on the wire."""

    @abstractmethod
    def disconnect(self) -> None:
        """Vanish, as if unplugged."""

    @abstractmethod
    def close(self) -> None:
        """Release what is open."""


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


class AtiNetFtEmulator(Emulator):
    """A Net F/T on loopback: RDT over UDP, calibration over HTTP.

    Attributes:
        port, http_port: Where it listens.
    """

    def __init__(
        self,
        rate_hz: float = 1000.0,
        *,
        port: int = 0,
        http_port: int = 0,
        signal: Signal = force_signal,
        faults: WireFaults = NO_FAULTS,
        counts_per_force: int = 1_000_000,
        counts_per_torque: int = 1_000_000,
        force_unit: str = "N",
        torque_unit: str = "Nm",
        status: Callable[[int], int] = lambda _sample: 0,
        first_rdt_seq: int = 1,
        first_ft_seq: int = 0,
        buffer_records: int = 10,
        clock: Clock | None = None,
    ) -> None:
        """Bind both ports on 127.0.0.1 (0 = any).

        Args:
            counts_per_force, counts_per_torque: Per ``force_unit`` and ``torque_unit``; the signal is N, Nm.
            first_rdt_seq, first_ft_seq: Sequence numbers of the first record, to place their wraps.
            buffer_records: Records per datagram in buffered mode.
        """
        super().__init__(rate_hz, faults, clock)
        self._signal = signal
        self._status = status
        self._scale = (
            counts_per_force / ati_netft.NEWTON[force_unit],
            counts_per_torque / ati_netft.NEWTON_METRE[torque_unit],
        )
        self._first_rdt_seq = first_rdt_seq
        self._first_ft_seq = first_ft_seq
        self._buffer_records = buffer_records
        self._buffered: list[bytes] = []
        self._client: tuple[str, int] | None = None
        self._command = ati_netft.COMMAND_STOP
        self._started_at = 0
        self._is_connected = True
        self.starts = 0
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", port))
        self._socket.setblocking(False)
        self.port: int = self._socket.getsockname()[1]
        page = _netft_page(rate_hz, counts_per_force, counts_per_torque, force_unit, torque_unit)
        self._web = http.server.ThreadingHTTPServer(("127.0.0.1", http_port), _page_handler(page))
        self.http_port = self._web.server_port
        self._web_thread = threading.Thread(target=self._web.serve_forever, args=(0.02,), daemon=True)
        self._web_thread.start()

    def __enter__(self) -> "AtiNetFtEmulator":
        super().__enter__()
        return self

    @property
    def is_streaming(self) -> bool:
        # The sensor measures whether or not somebody listens; its records go out only to a client.
        return self._is_connected

    @property
    def has_client(self) -> bool:
        """Whether somebody has started the stream and not stopped it."""
        return self._client is not None

    def answer_requests(self) -> None:
        while self._is_connected:
            try:
                request, client = self._socket.recvfrom(2048)
            except OSError:
                return
            if len(request) == ati_netft.REQUEST.size:
                header, command, _ = ati_netft.REQUEST.unpack(request)
                if header == ati_netft.REQUEST_HEADER:
                    self._obey(command, client)

    def _obey(self, command: int, client: tuple[str, int]) -> None:
        if command in (ati_netft.COMMAND_REALTIME, ati_netft.COMMAND_BUFFERED):
            self._client, self._command = client, command
            self._started_at = self._sample
            self._buffered = []
            self.starts += 1
        elif command == ati_netft.COMMAND_STOP:
            self._client = None

    def encode(self, sample: int) -> bytes:
        forces, torques = self._signal(sample)[:3], self._signal(sample)[3:]
        counts = [round(value * self._scale[0]) for value in forces]
        counts += [round(value * self._scale[1]) for value in torques]
        rdt_seq = self._first_rdt_seq + sample - self._started_at
        ft_seq = self._first_ft_seq + round(sample * ati_netft.INTERNAL_RATE_HZ / self.rate_hz)
        return struct.pack(">III6i", rdt_seq & 0xFFFFFFFF, ft_seq & 0xFFFFFFFF, self._status(sample), *counts)

    def spoil(self, data: bytes) -> bytes:
        """Return ``data`` cut short: UDP's own checksum would catch flipped bits."""
        return data[: self._random.randrange(1, len(data))]

    def send(self, data: bytes) -> None:
        if self._client is None:
            return
        if self._command == ati_netft.COMMAND_BUFFERED and len(data) == ati_netft.RECORD_BYTES:
            self._buffered.append(data)
            if len(self._buffered) < self._buffer_records:
                return
            data, self._buffered = b"".join(self._buffered), []
        with contextlib.suppress(OSError):  # nobody listens there any more
            self._socket.sendto(data, self._client)

    def forget_client(self) -> None:
        """Lose the stream request, as a sensor does that was reset."""
        self._client = None

    def disconnect(self) -> None:
        if self._is_connected:
            self._is_connected = False
            self._socket.close()

    def close(self) -> None:
        self.disconnect()
        self._web.shutdown()
        self._web.server_close()
        self._web_thread.join()


def _netft_page(
    rate_hz: float, counts_per_force: int, counts_per_torque: int, force_unit: str, torque_unit: str
) -> bytes:
    values = {
        "prodname": "Emulated Net F/T",
        "setserial": "FT00001",
        "cfgcpf": counts_per_force,
        "cfgcpt": counts_per_torque,
        "scfgfu": force_unit,
        "scfgtu": torque_unit,
        "comrdte": "Enabled",
        "comrdtrate": f"{rate_hz:g}",
        "runrate": ati_netft.INTERNAL_RATE_HZ,
    }
    body = "".join(f"<{tag}>{value}</{tag}>" for tag, value in values.items())
    return f'<?xml version="1.0" encoding="UTF-8"?><netft>{body}</netft>'.encode()


def _page_handler(page: bytes) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            is_known = self.path == "/netftapi2.xml"
            body = page if is_known else b"not found"
            self.send_response(200 if is_known else 404)
            self.send_header("Content-Type", "text/xml")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Stay silent: the emulator's output is for its address alone."""

    return Handler


def main(argv: Sequence[str] | None = None) -> int:
    """Run one emulator until Ctrl-C; prints the rig-file entry that connects to it."""
    parser = argparse.ArgumentParser(
        prog="python -m sensorium.simulators.emulators.command", description=__doc__
    )
    parser.add_argument("device", choices=["xsens", "ati"])
    parser.add_argument("--rate-hz", type=float, default=None)
    for name in ("drop-every", "garbage-every", "corrupt-every", "disconnect-after", "seed"):
        parser.add_argument(f"--{name}", type=int, default=0)
    options = parser.parse_args(argv)
    faults = WireFaults(
        options.drop_every,
        options.garbage_every,
        options.corrupt_every,
        options.disconnect_after,
        options.seed,
    )
    emulator: Emulator
    if options.device == "xsens":
        emulator = imu = XsensEmulator(options.rate_hz or 100.0, faults=faults)
        entry = f"imu: {{driver: xsens, port: {imu.port}, rate_hz: {imu.rate_hz:g}}}"
    else:
        emulator = force = AtiNetFtEmulator(options.rate_hz or 1000.0, faults=faults)
        entry = (
            f"force: {{driver: ati_netft, host: 127.0.0.1, port: {force.port}, "
            f"http_port: {force.http_port}, rate_hz: {force.rate_hz:g}}}"
        )
    sys.stdout.write(entry + "\n")
    sys.stdout.flush()
    try:
        emulator.run()
    except KeyboardInterrupt:
        pass
    finally:
        emulator.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
