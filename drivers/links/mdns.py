"""Who on the network offers a service: one multicast DNS question, and what is answered within a moment.

Source: RFC 6762 (one-shot queries, section 5.1), RFC 1035 (messages, names and their compression).
"""

import select
import socket
import struct
from dataclasses import dataclass

from sensorium.timebase import SECOND_NS, Clock

GROUP = ("224.0.0.251", 5353)
_HEADER = struct.Struct(">6H")
_QUESTION = struct.Struct(">2H")
_RECORD = struct.Struct(">2HIH")
_PTR = 12
_INTERNET = 1
_UNICAST_ANSWER = 0x8000
_MAX_MESSAGE_BYTES = 9000
_MAX_LABELS = 128  # a name has no more, so a chain of pointers with more is a circle


@dataclass(frozen=True, slots=True)
class Offer:
    """An instance of the service, e.g. ``Ouster Sensor 122150000150``, and the address that answered."""

    instance: str
    address: str


def find_services(
    service: str, clock: Clock, wait_s: float = 0.5, group: tuple[str, int] = GROUP
) -> list[Offer]:
    """Return who answers for ``service`` (e.g. ``_roger._tcp.local``); empty without a network."""
    offers: dict[Offer, None] = {}
    deadline_ns = clock.now_ns() + round(wait_s * SECOND_NS)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        try:
            asker.sendto(question(service), group)
        except OSError:  # no interface is up: nobody can be seen
            return []
        poller = select.poll()
        poller.register(asker, select.POLLIN)
        while (left_ns := deadline_ns - clock.now_ns()) > 0:
            if poller.poll(left_ns / 1e6):
                message, (address, _) = asker.recvfrom(_MAX_MESSAGE_BYTES)
                offers |= {Offer(name, address): None for name in parse_instances(message, service)}
    return list(offers)


def question(service: str) -> bytes:
    """Return the message that asks for all instances of ``service``, to be answered to the asker alone."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in service.split("."))
    return _HEADER.pack(0, 0, 1, 0, 0, 0) + labels + b"\0" + _QUESTION.pack(_PTR, _INTERNET | _UNICAST_ANSWER)


def parse_instances(message: bytes, service: str) -> list[str]:
    """Return the instance names that a message gives for ``service``; none if it is garbage."""
    try:
        return _instances(message, service.lower())
    except (struct.error, IndexError, ValueError):
        return []


def _instances(message: bytes, service: str) -> list[str]:
    _, _, questions, *counts = _HEADER.unpack_from(message)
    at = _HEADER.size
    for _ in range(questions):
        at = _name(message, at)[1] + _QUESTION.size
    found = []
    for _ in range(sum(counts)):
        owner, at = _name(message, at)
        kind, _, _, length = _RECORD.unpack_from(message, at)
        at += _RECORD.size
        if kind == _PTR and ".".join(owner).lower() == service:
            instance = ".".join(_name(message, at)[0])
            found.append(instance[: -len(service) - 1] if instance.lower().endswith(service) else instance)
        at += length
    return found


def _name(message: bytes, at: int) -> tuple[list[str], int]:
    """Return the labels of the name at ``at``, and where what follows it begins."""
    labels: list[str] = []
    end = None
    for _ in range(_MAX_LABELS):
        length = message[at]
        if length >= 0xC0:  # the rest of the name lies elsewhere
            end = end if end is not None else at + 2
            at = (length & 0x3F) << 8 | message[at + 1]
            continue
        if length == 0:
            return labels, end if end is not None else at + 1
        labels.append(message[at + 1 : at + 1 + length].decode())
        at += 1 + length
    raise ValueError("a name without end")
