"""The probe side channel on real loopback sockets; both ends share one clock, so the true offset is 0."""

import secrets
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sensorium.errors import ConfigError
from sensorium.sync.clocks.probe import (
    KEY_BYTES,
    MESSAGE_BYTES,
    ProbeClient,
    ProbeServer,
    Schedule,
    clock_boot_id,
    load_key,
)
from sensorium.sync.clocks.two_way import Exchange, TwoWayEstimator
from sensorium.timebase import SECOND_NS, HostClock

LOOPBACK = "127.0.0.1"
KEY = bytes(range(KEY_BYTES))
QUICK = Schedule(count=8, gap_ns=1_000_000, every_ns=10_000_000, window_ns=20_000_000)
CLOCK = HostClock()
DEADLINE_NS = 10 * SECOND_NS


@pytest.fixture
def server() -> Iterator[ProbeServer]:
    opened = ProbeServer(LOOPBACK, 0, KEY, CLOCK)
    yield opened
    opened.close()


@pytest.fixture
def client(server: ProbeServer) -> Iterator[ProbeClient]:
    opened = ProbeClient(LOOPBACK, server.port, KEY, CLOCK, QUICK)
    yield opened
    opened.close()


class Relay:
    """A stranger on the way who sees everything, has no key, and may change, keep or repeat answers."""

    def __init__(self, server_port: int) -> None:
        self.front = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.back = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        for end in (self.front, self.back):
            end.bind((LOOPBACK, 0))
            end.setblocking(False)
        self.port: int = self.front.getsockname()[1]
        self.replies: list[bytes] = []
        self.requests: list[bytes] = []
        self.client = ("", 0)
        self._server = (LOOPBACK, server_port)

    def pass_requests(self) -> None:
        while (message := self._take(self.front)) is not None:
            payload, self.client = message
            self.requests.append(payload)
            self.back.sendto(payload, self._server)

    def collect_replies(self) -> list[bytes]:
        taken = []
        while (message := self._take(self.back)) is not None:
            taken.append(message[0])
        self.replies += taken
        return taken

    def to_client(self, payload: bytes) -> None:
        self.front.sendto(payload, self.client)

    def close(self) -> None:
        self.front.close()
        self.back.close()

    @staticmethod
    def _take(end: socket.socket) -> tuple[bytes, tuple[str, int]] | None:
        try:
            return end.recvfrom(2048)
        except BlockingIOError:
            return None


@pytest.fixture
def relay(server: ProbeServer) -> Iterator[Relay]:
    opened = Relay(server.port)
    yield opened
    opened.close()


def burst_of(
    client: ProbeClient, server: ProbeServer | None, relay: Relay | None = None
) -> tuple[Exchange, ...]:
    """Run both ends by turns in this thread until a burst is complete."""
    end_ns = CLOCK.now_ns() + DEADLINE_NS
    while CLOCK.now_ns() < end_ns:
        answers = client.step()
        if answers is not None:
            return answers
        if relay is not None:
            relay.pass_requests()
        if server is not None:
            server.step()
        if relay is not None:
            for reply in relay.collect_replies():
                relay.to_client(reply)
        client.wait(0.0005)
    raise AssertionError("no burst was completed in time")


def test_a_burst_bounds_the_true_offset_from_both_sides(client: ProbeClient, server: ProbeServer) -> None:
    answers = burst_of(client, server)
    assert len(answers) == QUICK.count
    for answer in answers:
        assert answer.sent_ns <= answer.remote_received_ns <= answer.remote_sent_ns <= answer.received_ns
        assert answer.boot_id == clock_boot_id()


def test_bursts_feed_the_estimator(client: ProbeClient, server: ProbeServer) -> None:
    estimator = TwoWayEstimator()
    for _ in range(6):
        estimator.update(burst_of(client, server))
    estimate = estimator.estimate(CLOCK.now_ns())
    assert estimate is not None
    assert estimate.lower_ns <= 0 <= estimate.upper_ns


def test_without_the_key_nobody_gets_an_answer(server: ProbeServer) -> None:
    stranger = ProbeClient(LOOPBACK, server.port, secrets.token_bytes(KEY_BYTES), CLOCK, QUICK)
    assert burst_of(stranger, server) == ()
    stranger.close()
    assert stranger.unanswered == QUICK.count
    assert server.rejected == {"wrong key or forged": QUICK.count}


def test_a_server_without_the_key_cannot_steer_the_clock() -> None:
    impostor = ProbeServer(LOOPBACK, 0, secrets.token_bytes(KEY_BYTES), CLOCK)
    client = ProbeClient(LOOPBACK, impostor.port, KEY, CLOCK, QUICK)
    assert burst_of(client, impostor) == ()
    client.close()
    impostor.close()


def test_answers_sent_again_are_refused(server: ProbeServer, relay: Relay) -> None:
    client = ProbeClient(LOOPBACK, relay.port, KEY, CLOCK, QUICK)
    assert len(burst_of(client, server, relay)) == QUICK.count
    old = list(relay.replies)
    for reply in old:
        relay.to_client(reply)
    assert len(burst_of(client, server, relay)) == QUICK.count
    client.close()
    assert client.rejected == {"too late or sent again": len(old)}


def test_a_request_sent_back_is_no_answer(server: ProbeServer, relay: Relay) -> None:
    client = ProbeClient(LOOPBACK, relay.port, KEY, CLOCK, QUICK)
    client.step()
    client.wait(0.01)
    relay.pass_requests()
    for request in relay.requests:
        relay.to_client(request)
    client.wait(0.1)
    client.step()
    client.close()
    assert client.rejected == {"wrong direction": len(relay.requests)}


@pytest.mark.parametrize("at", [0, 4, 5, 8, 24, 32, 40, 48, MESSAGE_BYTES - 1])
def test_a_changed_answer_is_refused(at: int, server: ProbeServer, relay: Relay) -> None:
    client = ProbeClient(LOOPBACK, relay.port, KEY, CLOCK, QUICK)
    client.step()
    for _ in range(100):
        relay.pass_requests()
        server.wait(0.01)
        server.step()
        replies = relay.collect_replies()
        if replies:
            break
    changed = bytearray(replies[0])
    changed[at] ^= 1
    relay.to_client(bytes(changed))
    client.wait(0.1)
    client.step()
    client.close()
    assert client.rejected.total() == 1


def test_a_silent_server_gives_an_empty_burst() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mute:
        mute.bind((LOOPBACK, 0))
        client = ProbeClient(LOOPBACK, mute.getsockname()[1], KEY, CLOCK, QUICK)
        assert burst_of(client, None) == ()
        client.close()
    assert client.unanswered == QUICK.count


def test_a_boot_id_of_its_own_marks_a_restarted_server(server: ProbeServer) -> None:
    restarted = ProbeServer(LOOPBACK, 0, KEY, CLOCK, boot_id=77)
    client = ProbeClient(LOOPBACK, restarted.port, KEY, CLOCK, QUICK)
    assert {answer.boot_id for answer in burst_of(client, restarted)} == {77}
    client.close()
    restarted.close()


@settings(max_examples=60, deadline=None)
@given(payload=st.binary(max_size=3 * MESSAGE_BYTES))
def test_garbage_is_counted_and_gets_no_answer(payload: bytes) -> None:
    server = ProbeServer(LOOPBACK, 0, KEY, CLOCK)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.bind((LOOPBACK, 0))
        stranger.sendto(payload, (LOOPBACK, server.port))
        server.wait(1.0)
        assert server.step() == 0
        assert server.rejected.total() == 1
        stranger.setblocking(False)
        with pytest.raises(BlockingIOError):
            stranger.recv(1)
    server.close()


def test_a_key_file_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "probe.key"
    path.write_text(KEY.hex() + "\n")
    path.chmod(0o600)
    assert load_key(path) == KEY


def test_bad_key_files_are_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "probe.key"
    with pytest.raises(ConfigError, match="openssl rand -hex 32"):
        load_key(path)
    for text, message in (("no hex", "openssl"), ("abcd", "2 bytes instead of 32")):
        path.write_text(text)
        path.chmod(0o600)
        with pytest.raises(ConfigError, match=message):
            load_key(path)
    path.write_text(KEY.hex())
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        load_key(path)
