"""An ATI Net F/T on loopback: records over UDP, its calibration over HTTP."""

import contextlib
import http.server
import math
import socket
import struct
import threading
from collections.abc import Callable

from sensorium.drivers.devices import rdt
from sensorium.simulators.emulators.emulator import NO_FAULTS, Emulator, Signal, WireFaults
from sensorium.timebase import Clock


def force_signal(sample: int) -> tuple[float, float, float, float, float, float]:
    """Return a pull that grows and falls; N and Nm."""
    swing = math.sin(sample * 0.01)
    return (10.0 * swing, -5.0, 20.0 + swing, 0.1, 0.2 * swing, -(sample % 1000) * 1e-3)


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
            counts_per_force / rdt.NEWTON[force_unit],
            counts_per_torque / rdt.NEWTON_METRE[torque_unit],
        )
        self._first_rdt_seq = first_rdt_seq
        self._first_ft_seq = first_ft_seq
        self._buffer_records = buffer_records
        self._buffered: list[bytes] = []
        self._client: tuple[str, int] | None = None
        self._command = rdt.COMMAND_STOP
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
            if len(request) == rdt.REQUEST.size:
                header, command, _ = rdt.REQUEST.unpack(request)
                if header == rdt.REQUEST_HEADER:
                    self._obey(command, client)

    def _obey(self, command: int, client: tuple[str, int]) -> None:
        if command in (rdt.COMMAND_REALTIME, rdt.COMMAND_BUFFERED):
            self._client, self._command = client, command
            self._started_at = self._sample
            self._buffered = []
            self.starts += 1
        elif command == rdt.COMMAND_STOP:
            self._client = None

    def encode(self, sample: int) -> bytes:
        forces, torques = self._signal(sample)[:3], self._signal(sample)[3:]
        counts = [round(value * self._scale[0]) for value in forces]
        counts += [round(value * self._scale[1]) for value in torques]
        rdt_seq = self._first_rdt_seq + sample - self._started_at
        ft_seq = self._first_ft_seq + round(sample * rdt.INTERNAL_RATE_HZ / self.rate_hz)
        return struct.pack(">III6i", rdt_seq & 0xFFFFFFFF, ft_seq & 0xFFFFFFFF, self._status(sample), *counts)

    def spoil(self, data: bytes) -> bytes:
        """Return ``data`` cut short: UDP's own checksum would catch flipped bits."""
        return data[: self._random.randrange(1, len(data))]

    def send(self, data: bytes) -> None:
        if self._client is None:
            return
        if self._command == rdt.COMMAND_BUFFERED and len(data) == rdt.RECORD_BYTES:
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
        "runrate": rdt.INTERNAL_RATE_HZ,
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
