"""Services on the network: questions, answers, garbage."""

import socket
import struct
import threading

from hypothesis import given
from hypothesis import strategies as st

from sensorium.drivers.links.mdns import Offer, find_services, parse_instances, question
from sensorium.timebase import SECOND_NS, HostClock

SERVICE = "_roger._tcp.local"
CLOCK = HostClock()


def label(text: str) -> bytes:
    return bytes([len(text)]) + text.encode()


def answer(*instances: str) -> bytes:
    """Return an answer as sensors send it: the service's name once, then pointers to it (RFC 1035, 4.1.4)."""
    name = b"".join(label(part) for part in SERVICE.split(".")) + b"\0"
    message = struct.pack(">6H", 0, 0x8400, 1, len(instances), 0, 0) + name + struct.pack(">2H", 12, 1)
    for instance in instances:
        data = label(instance) + b"\xc0\x0c"
        message += b"\xc0\x0c" + struct.pack(">2HIH", 12, 1, 120, len(data)) + data
    return message


def test_the_instances_of_a_service_are_read_from_a_compressed_answer() -> None:
    names = ["Ouster Sensor 122150000150", "Ouster Sensor 992029000352"]
    assert parse_instances(answer(*names), SERVICE) == names
    assert parse_instances(answer(*names), "_http._tcp.local") == []


@given(st.binary(max_size=80), st.integers(0, 60))
def test_garbage_is_no_answer_and_no_error(garbage: bytes, cut: int) -> None:
    parse_instances(garbage, SERVICE)
    parse_instances(answer("Ouster Sensor 1")[:-cut] + garbage, SERVICE)


def test_a_name_that_points_at_itself_is_no_answer() -> None:
    assert parse_instances(struct.pack(">6H", 0, 0x8400, 0, 1, 0, 0) + b"\xc0\x0c" + bytes(20), SERVICE) == []


def test_who_answers_is_found_with_its_address_and_the_question_ends_in_time() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sensor:
        sensor.bind(("127.0.0.1", 0))
        sensor.settimeout(5.0)

        def respond() -> None:
            asked, source = sensor.recvfrom(9000)
            assert asked == question(SERVICE)
            for message in (b"noise", answer("Ouster Sensor 1"), answer("Ouster Sensor 1")):
                sensor.sendto(message, source)

        thread = threading.Thread(target=respond)
        thread.start()
        before_ns = CLOCK.now_ns()
        offers = find_services(SERVICE, CLOCK, 0.3, sensor.getsockname())
        thread.join()
    assert offers == [Offer("Ouster Sensor 1", "127.0.0.1")]
    assert 0.3 * SECOND_NS <= CLOCK.now_ns() - before_ns < SECOND_NS
