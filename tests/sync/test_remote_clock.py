"""A remote node's clock, followed over real loopback sockets; both ends share one clock."""

import secrets
from collections.abc import Iterator

import pytest

from sensorium.sync.clocks.model import ClockEventKind
from sensorium.sync.clocks.probe import KEY_BYTES, ProbeClient, ProbeServer, Schedule
from sensorium.sync.clocks.remote import SILENT_BURSTS, RemoteClock
from sensorium.timebase import SECOND_NS, HostClock
from sensorium.verdict import Status

LOOPBACK = "127.0.0.1"
KEY = bytes(range(KEY_BYTES))
QUICK = Schedule(count=8, gap_ns=1_000_000, every_ns=10_000_000, window_ns=5_000_000)
CLOCK = HostClock()


def node_of(port: int, key: bytes = KEY) -> RemoteClock:
    return RemoteClock("node", ProbeClient(LOOPBACK, port, key, CLOCK, QUICK), CLOCK)


@pytest.fixture
def server() -> Iterator[ProbeServer]:
    opened = ProbeServer(LOOPBACK, 0, KEY, CLOCK)
    yield opened
    opened.close()


def run(node: RemoteClock, servers: list[ProbeServer], bursts: int) -> None:
    end_ns = CLOCK.now_ns() + 20 * SECOND_NS
    while bursts and CLOCK.now_ns() < end_ns:
        bursts -= node.step()
        for server in servers:
            server.wait(0.0005)
            server.step()
    assert bursts == 0


def test_a_node_that_answers_is_known_and_good(server: ProbeServer) -> None:
    node = node_of(server.port)
    assert node.verdict().status is Status.INSUFFICIENT
    assert node.model() is None
    run(node, [server], 4)
    verdict, estimate, model = node.verdict(), node.estimate(), node.model()
    node.close()
    assert verdict.status is Status.OK, verdict.reasons
    assert estimate is not None
    assert estimate.lower_ns <= 0 <= estimate.upper_ns
    assert model is not None
    assert model.method == "two_way"
    assert node.take_events() == ()


def test_a_node_that_falls_silent_goes_into_holdover_and_comes_back(server: ProbeServer) -> None:
    node = node_of(server.port)
    run(node, [server], 3)
    run(node, [], SILENT_BURSTS)
    verdict = node.verdict()
    assert verdict.status is Status.SUSPECT
    assert "in holdover for" in verdict.reasons[0]
    run(node, [server], 2)
    node.close()
    assert [event.kind for event in node.take_events()] == [ClockEventKind.STALL, ClockEventKind.STALL]


def test_a_wrong_key_is_named(server: ProbeServer) -> None:
    node = node_of(server.port, secrets.token_bytes(KEY_BYTES))
    run(node, [server], 1)
    verdict = node.verdict()
    node.close()
    assert verdict.status is Status.INSUFFICIENT
    assert "with the same key" in verdict.reasons[0]


def test_a_reboot_of_the_node_is_an_event() -> None:
    first = ProbeServer(LOOPBACK, 0, KEY, CLOCK, boot_id=1)
    node = node_of(first.port)
    run(node, [first], 2)
    port = first.port
    first.close()
    second = ProbeServer(LOOPBACK, port, KEY, CLOCK, boot_id=2)
    run(node, [second], 2)
    second.close()
    node.close()
    (event,) = node.take_events()
    assert event.kind is ClockEventKind.RESET
    assert "1 restarts, 0 steps" in event.detail
    estimate = node.estimate()
    assert estimate is not None
    assert estimate.epoch == 1
