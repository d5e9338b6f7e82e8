"""A serial line: bytes with the host time at which they came, whatever the device's protocol.

A thread of its own reads the port, so that the arrival stamps do not wait for what else the host does.
"""

import contextlib
import errno
import fcntl
import os
import select
import struct
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import serial

from sensorium.drivers.links.device_files import require_access
from sensorium.errors import DeviceError
from sensorium.timebase import SECOND_NS, Clock

BY_ID = Path("/dev/serial/by-id")
_READ_BYTES = 4096
_QUEUE_BYTES = 1 << 20
"""Seconds of the fastest UART. A host that stays away longer has a failed device: how many samples its unread
bytes were, nobody could say."""

_BAUD_TOLERANCE = 0.025
"""A UART that is further off misreads the last bits of a byte (half a bit in ten is 5 %, for both ends)."""

_TCGETS2 = 0x802C542A  # Linux, include/uapi/asm-generic/ioctls.h: a termios whose speeds are plain numbers
_TERMIOS2 = struct.Struct("4I20s2I")


@dataclass(frozen=True, slots=True)
class Chunk:
    """Bytes that were read at once; ``arrival_ns`` is the host time right after."""

    data: bytes
    arrival_ns: int


class SerialLine:
    """A serial port, opened with exclusive access; may be opened again after it failed or was closed.

    Args:
        label: Begins every error, e.g. ``Xsens /dev/ttyUSB0``.
        silence_s: Without a byte for so long the device counts as gone; None = it may be silent.
    """

    def __init__(
        self, port: str, baud: int, label: str, clock: Clock, silence_s: float | None = None
    ) -> None:
        self.port = port
        self.baud = baud
        self._label = label
        self._clock = clock
        self._silence_s = silence_s
        self._serial: serial.Serial | None = None
        self._reader: _Reader | None = None
        self._heard_ns = 0

    @property
    def is_open(self) -> bool:
        return self._serial is not None

    def open(self) -> None:
        """Open the port, 8 data bits, no parity, and begin to read.

        Raises:
            DeviceError: If it cannot be opened or does not take the speed; says what to look for.
        """
        self.close()
        try:
            port = serial.Serial(self.port, self.baud, timeout=0, write_timeout=1.0, exclusive=True)
        except (OSError, ValueError) as err:
            where = self._label if self.port in self._label else f"{self._label}: {self.port}"
            raise DeviceError(f"{where} cannot be opened: {_why_closed(self.port, err)}") from err
        try:
            require_speed(self._label, self.baud, speed_of(port.fileno()))
        except DeviceError:
            port.close()
            raise
        # A pty, or a USB CDC device, has no UART whose buffering could be cut.
        with contextlib.suppress(OSError, ValueError, NotImplementedError, AttributeError):
            port.set_low_latency_mode(True)
        self._serial = port
        self._reader = _Reader(port.fileno(), self._label, self._clock)
        self._heard_ns = self._clock.now_ns()

    def write(self, data: bytes) -> None:
        """Send ``data``.

        Raises:
            DeviceError: If the port is not open, or the device is gone.
        """
        if self._serial is None:
            raise DeviceError(f"{self._label}: is not open")
        try:
            self._serial.write(data)
        except OSError as err:
            raise _gone(self._label, err) from err

    def receive(self, timeout_s: float) -> list[Chunk]:
        """Return what has come, oldest first; empty after ``timeout_s`` without a byte.

        Raises:
            DeviceError: If the port is not open, the device is gone, or it has been silent for ``silence_s``.
        """
        if self._reader is None:
            raise DeviceError(f"{self._label}: is not open")
        chunks = self._reader.take(timeout_s)
        if chunks:
            self._heard_ns = chunks[-1].arrival_ns
        elif self._silence_s is not None:
            refuse_silence(self._label, self._heard_ns, self._clock.now_ns(), self._silence_s)
        return chunks

    def close(self) -> None:
        """Release the port; safe to call twice and after a failure."""
        if self._reader is not None:
            self._reader.stop()
            self._reader = None
        if self._serial is not None:
            with contextlib.suppress(OSError):  # an unplugged adapter has nothing left to release
                self._serial.close()
            self._serial = None


class _Reader:
    """The thread that reads a port until it is stopped or the device is gone."""

    def __init__(self, fd: int, label: str, clock: Clock) -> None:
        self._fd = fd
        self._label = label
        self._clock = clock
        self._chunks: deque[Chunk] = deque()
        self._queued_bytes = 0
        self._error: DeviceError | None = None
        self._changed = threading.Condition()
        self._wake_in, self._wake_out = os.pipe()
        self._thread = threading.Thread(target=self._run, name=f"{label} reader", daemon=True)
        self._thread.start()

    def take(self, timeout_s: float) -> list[Chunk]:
        with self._changed:
            self._changed.wait_for(lambda: self._chunks or self._error, timeout_s)
            if not self._chunks and self._error is not None:
                raise self._error
            taken = list(self._chunks)
            self._chunks.clear()
            self._queued_bytes = 0
            return taken

    def stop(self) -> None:
        os.write(self._wake_out, b"x")
        self._thread.join()
        os.close(self._wake_in)
        os.close(self._wake_out)

    def _run(self) -> None:
        poller = select.poll()
        poller.register(self._fd, select.POLLIN)
        poller.register(self._wake_in, select.POLLIN)
        try:
            while not any(fd == self._wake_in for fd, _ in poller.poll()):
                data = os.read(self._fd, _READ_BYTES)
                if not data:
                    raise OSError("end of file")
                self._put(data, self._clock.now_ns())
        except DeviceError as err:
            self._fail(err)
        except OSError as err:
            self._fail(_gone(self._label, err))

    def _put(self, data: bytes, arrival_ns: int) -> None:
        with self._changed:
            if self._queued_bytes > _QUEUE_BYTES:
                raise DeviceError(
                    f"{self._label}: {self._queued_bytes} bytes wait unread; the machine is overloaded"
                )
            self._chunks.append(Chunk(data, arrival_ns))
            self._queued_bytes += len(data)
            self._changed.notify_all()

    def _fail(self, error: DeviceError) -> None:
        with self._changed:
            self._error = error
            self._changed.notify_all()


def _gone(label: str, cause: OSError) -> DeviceError:
    error = DeviceError(f"{label}: device is gone ({cause}); was it unplugged?")
    error.__cause__ = cause
    return error


def refuse_silence(label: str, heard_ns: int, now_ns: int, silence_s: float) -> None:
    """Raise ``DeviceError`` if nothing was heard for longer than ``silence_s``."""
    silent_ns = now_ns - heard_ns
    if silent_ns > silence_s * SECOND_NS:
        raise DeviceError(f"{label}: no data for {silent_ns / SECOND_NS:.1f} s; check power and cable")


def speed_of(fd: int) -> int | None:
    """Return the bits per second that an open port receives at; None where the kernel does not say."""
    try:
        answer = fcntl.ioctl(fd, _TCGETS2, bytes(_TERMIOS2.size))
    except OSError:
        return None
    speed: int = _TERMIOS2.unpack(answer)[-2]
    return speed


def require_speed(label: str, asked: int, found: int | None) -> None:
    """Raise ``DeviceError`` if a port is set to another speed than it was asked for."""
    if found is not None and abs(found - asked) > _BAUD_TOLERANCE * asked:
        raise DeviceError(
            f"{label}: asked for baud {asked}, the port set {found}; choose a speed that its adapter has"
        )


def _why_closed(port: str, err: Exception) -> str:
    """Return why a port did not open, in words, and what to do."""
    number = getattr(err, "errno", None)
    if number in (errno.EAGAIN, errno.EBUSY):
        return f"another program uses it; `fuser {port}` names that program: end it"
    if number in (errno.EACCES, errno.EPERM):
        return "this user may not; join the group that it belongs to (often dialout), then log in again"
    if isinstance(err, ValueError):
        return f"{err}; choose a speed that its adapter has"
    return f"{os.strerror(number) if number else err}; is it a serial port, and plugged in?"


def require_port(label: str, port: str) -> None:
    """Raise ``DeviceError`` if there is no such device file, or this user may not use it; opens nothing."""
    if not Path(port).exists():
        present = serial_ports()
        there = f"present: {', '.join(present)}" if present else f"none is listed in {BY_ID}"
        raise DeviceError(f"{label}: serial port {port} does not exist; is the device plugged in? ({there})")
    require_access(label, Path(port))


def serial_ports() -> Sequence[str]:
    """Return the serial ports that are plugged in, by their stable names."""
    return sorted(str(entry) for entry in BY_ID.glob("*")) if BY_ID.is_dir() else []
