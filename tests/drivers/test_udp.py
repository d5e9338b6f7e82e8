"""UDP reception on real loopback sockets."""

import socket
from collections.abc import Iterator

import pytest

from sensorium.drivers.links.udp import Datagram, UdpReceiver, resolve, wait_readable
from sensorium.errors import DeviceError
from sensorium.timebase import HostClock

LOOPBACK = "127.0.0.1"
BUFFER_BYTES = 1 << 20


@pytest.fixture
def sender() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        yield opened


@pytest.fixture
def receiver() -> Iterator[UdpReceiver]:
    opened = UdpReceiver(LOOPBACK, 0, BUFFER_BYTES, HostClock())
    yield opened
    opened.close()


def receive_all(receiver: UdpReceiver, count: int) -> list[Datagram]:
    received: list[Datagram] = []
    while len(received) < count and wait_readable([receiver], 2.0):
        received += receiver.receive()
    return received


def test_datagrams_come_in_order_with_their_sender(receiver: UdpReceiver, sender: socket.socket) -> None:
    payloads = [bytes([i]) * (i + 1) for i in range(50)]
    for payload in payloads:
        sender.sendto(payload, (LOOPBACK, receiver.port))
    received = receive_all(receiver, len(payloads))
    assert [datagram.payload for datagram in received] == payloads
    assert {datagram.source for datagram in received} == {(LOOPBACK, sender.getsockname()[1])}
    assert {datagram.dropped_before for datagram in received} == {0}


def test_arrival_is_when_the_kernel_got_it_not_when_it_was_read(
    receiver: UdpReceiver, sender: socket.socket
) -> None:
    if not receiver.has_kernel_stamps:
        pytest.skip("this kernel gives no receive stamps")
    # Linux turns stamping on from a work queue some time after the first socket asks for it.
    assert any(stamp_precedes_a_late_read(receiver, sender) for _ in range(20))


def stamp_precedes_a_late_read(receiver: UdpReceiver, sender: socket.socket) -> bool:
    clock = HostClock()
    before_ns = clock.now_ns()
    sender.sendto(b"x", (LOOPBACK, receiver.port))
    after_ns = clock.now_ns()
    read_ns = after_ns + 50_000_000
    clock.sleep_until(read_ns)
    (datagram,) = receive_all(receiver, 1)
    # The offset between the clocks is read in a bracket that a busy machine may stretch: 5 ms either side.
    return before_ns - 5_000_000 <= datagram.arrival_ns <= after_ns + 5_000_000


def test_what_the_kernel_drops_is_counted(sender: socket.socket) -> None:
    receiver = UdpReceiver(LOOPBACK, 0, 16_384, HostClock())
    try:
        sent = 200
        for _ in range(sent):
            sender.sendto(bytes(1000), (LOOPBACK, receiver.port))
        received = receive_all(receiver, 1)
        while more := receiver.receive():
            received += more
        assert 0 < len(received) < sent
        sender.sendto(b"after", (LOOPBACK, receiver.port))
        (after,) = receive_all(receiver, 1)
        assert after.dropped_before + sum(d.dropped_before for d in received) == sent - len(received)
    finally:
        receiver.close()


def test_the_buffer_size_is_read_back(receiver: UdpReceiver) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as plain:
        default_bytes = plain.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2
    assert receiver.buffer_bytes >= min(BUFFER_BYTES, default_bytes)


def test_a_port_in_use_is_an_error_that_names_it(receiver: UdpReceiver) -> None:
    with pytest.raises(DeviceError, match=f"127.0.0.1:{receiver.port}"):
        UdpReceiver(LOOPBACK, receiver.port, BUFFER_BYTES, HostClock())


def test_an_unreachable_peer_does_not_end_reception(receiver: UdpReceiver, sender: socket.socket) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as gone:
        gone.bind((LOOPBACK, 0))
        nobody = gone.getsockname()
    receiver.send(b"is anybody there", nobody)
    sender.sendto(b"still here", (LOOPBACK, receiver.port))
    assert [datagram.payload for datagram in receive_all(receiver, 1)] == [b"still here"]


def test_waiting_without_data_ends_at_the_timeout(receiver: UdpReceiver) -> None:
    assert not wait_readable([receiver], 0.01)
    assert receiver.receive() == []


def test_close_twice_is_fine(receiver: UdpReceiver) -> None:
    receiver.close()
    receiver.close()


def test_an_unknown_host_name_is_an_error() -> None:
    assert resolve("127.0.0.1") == "127.0.0.1"
    with pytest.raises(DeviceError, match=r"sensor\.invalid"):
        resolve("sensor.invalid")
