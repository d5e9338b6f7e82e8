"""The serial line on a pseudo terminal: bytes, stamps, what happens when it is unplugged or stays silent."""

import os
import tty
from collections.abc import Iterator
from pathlib import Path

import pytest
import serial

from sensorium.drivers.links import serial_line
from sensorium.drivers.links.serial_line import SerialLine, require_port, require_speed, speed_of
from sensorium.errors import DeviceError
from sensorium.timebase import SECOND_NS, HostClock

CLOCK = HostClock()


class Terminal:
    """A pseudo terminal under a name that stays, as udev gives one, and may be plugged in again."""

    def __init__(self, folder: Path) -> None:
        self.port = folder / "ttyTest"
        self.plug_in()

    def plug_in(self) -> None:
        self._master, self._slave = os.openpty()
        tty.setraw(self._slave)
        self.port.unlink(missing_ok=True)
        self.port.symlink_to(os.ttyname(self._slave))

    def send(self, data: bytes) -> None:
        os.write(self._master, data)

    def received(self) -> bytes:
        return os.read(self._master, 4096)

    def unplug(self) -> None:
        os.close(self._slave)
        os.close(self._master)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    found = Terminal(tmp_path)
    yield found
    found.unplug()


def opened(terminal: Terminal, baud: int = 115200, silence_s: float | None = None) -> SerialLine:
    line = SerialLine(str(terminal.port), baud, "scale", CLOCK, silence_s)
    line.open()
    return line


def collect(line: SerialLine, size: int) -> bytes:
    data = b""
    while len(data) < size:
        chunks = line.receive(5.0)
        assert chunks, f"only {len(data)} of {size} bytes in 5 s"
        data += b"".join(chunk.data for chunk in chunks)
    return data


def drain(line: SerialLine) -> None:
    """Read until the line raises."""
    for _ in range(100):
        line.receive(0.02)


def test_all_bytes_come_in_order_and_stamped_between_sending_and_receiving(terminal: Terminal) -> None:
    line = opened(terminal)
    sent = bytes(range(256))
    before_ns = CLOCK.now_ns()
    terminal.send(sent)
    chunks = line.receive(5.0)
    stamps_ns = [chunk.arrival_ns for chunk in chunks]
    rest = collect(line, 256 - sum(len(chunk.data) for chunk in chunks))
    assert b"".join(chunk.data for chunk in chunks) + rest == sent
    assert before_ns <= stamps_ns[0] <= stamps_ns[-1] <= CLOCK.now_ns()
    line.write(b"tare\r")
    assert terminal.received() == b"tare\r"
    line.close()


def test_bytes_are_stamped_when_they_come_not_when_the_host_finds_time(terminal: Terminal) -> None:
    line = opened(terminal)
    terminal.send(b"early")
    assert line._reader is not None
    with line._reader._changed:
        assert line._reader._changed.wait_for(lambda: bool(line._reader and line._reader._chunks), 5.0)
    read_ns = CLOCK.now_ns()
    (chunk,) = line.receive(0.0)
    assert chunk.arrival_ns <= read_ns
    line.close()


def test_nothing_to_read_is_an_empty_answer_after_the_timeout(terminal: Terminal) -> None:
    line = opened(terminal)
    before_ns = CLOCK.now_ns()
    assert line.receive(0.05) == []
    assert CLOCK.now_ns() - before_ns >= 0.05 * SECOND_NS
    line.close()


def test_an_unplugged_device_gives_its_last_bytes_and_then_an_error_and_can_be_opened_again(
    tmp_path: Path,
) -> None:
    terminal = Terminal(tmp_path)
    line = opened(terminal)
    terminal.send(b"last words")
    assert collect(line, 10) == b"last words"
    terminal.unplug()
    for _ in range(2):
        with pytest.raises(DeviceError, match=r"scale: device is gone .*unplugged"):
            line.receive(5.0)
    terminal.plug_in()
    line.open()
    terminal.send(b"back")
    assert collect(line, 4) == b"back"
    line.close()
    terminal.unplug()


def test_a_silent_device_is_an_error_only_where_it_must_talk(terminal: Terminal) -> None:
    patient = opened(terminal)
    assert patient.receive(0.1) == []
    patient.close()
    line = opened(terminal, silence_s=0.1)
    terminal.send(b"x")
    assert collect(line, 1) == b"x"
    with pytest.raises(DeviceError, match=r"scale: no data for 0\.\d s; check power"):
        drain(line)
    line.close()


def test_a_host_that_does_not_read_is_told_so(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serial_line, "_QUEUE_BYTES", 100)
    line = opened(terminal)
    while line._reader is not None and line._reader._error is None:
        terminal.send(bytes(60))
    with pytest.raises(DeviceError, match=r"scale: \d+ bytes wait unread; the machine is overloaded"):
        drain(line)
    line.close()


def test_the_speed_is_read_back_from_the_kernel(terminal: Terminal) -> None:
    for baud in (9600, 115200, 250_000):
        line = opened(terminal, baud)
        assert line._serial is not None
        assert speed_of(line._serial.fileno()) == baud
        line.close()


def test_a_speed_that_was_not_taken_is_refused_with_both_values() -> None:
    require_speed("scale", 115_200, 115_942)  # what a 16 MHz UART makes of it
    require_speed("scale", 115_200, None)
    with pytest.raises(DeviceError, match="asked for baud 250000, the port set 230400"):
        require_speed("scale", 250_000, 230_400)
    with Path(os.devnull).open("rb") as no_port:
        assert speed_of(no_port.fileno()) is None


def test_a_port_that_is_in_use_or_absent_is_named(terminal: Terminal, tmp_path: Path) -> None:
    other = serial.Serial(str(terminal.port), exclusive=True)
    with pytest.raises(DeviceError, match=r"scale: .*ttyTest cannot be opened: another program uses it"):
        opened(terminal)
    other.close()
    with pytest.raises(DeviceError, match="absent does not exist; is the device plugged in"):
        require_port("scale", str(tmp_path / "absent"))
    require_port("scale", str(terminal.port))


def test_a_line_that_is_not_open_says_so(terminal: Terminal) -> None:
    line = SerialLine(str(terminal.port), 9600, "scale", CLOCK)
    line.close()
    for use in (lambda: line.receive(0.0), lambda: line.write(b"x")):
        with pytest.raises(DeviceError, match="scale: is not open"):
            use()
