"""Hostile messages on the bus of a running session: counted, refused, and recording goes on."""

import json
import secrets
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq
from sessions import (
    FORCE,
    IMU,
    Session,
    check_balance,
    check_verifies,
    grant,
    read_manifest,
    until,
    write_rig,
)

from sensorium.drivers.bus.header import VERSION, pack_header
from sensorium.drivers.bus.wire import (
    MAX_MESSAGE_BYTES,
    Declare,
    End,
    Heartbeat,
    Lost,
    Welcome,
    device_token,
    pack_control,
    unpack_control,
)
from sensorium.drivers.frame import ClockKind, Column, DeviceClock, Frame, Modality, Place, StreamInfo, stamps
from sensorium.timebase import Timeline

STREAMS = ("imu", "force")


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    rig = write_rig(tmp_path, {"imu": IMU, "force": FORCE})
    grant(tmp_path / "spool")
    with Session("record", rig, "--json", spool=tmp_path / "spool") as found:
        found.until_recorded(0.5, STREAMS)
        yield found


class Stranger:
    """A process of the same user that speaks to the bus without being one of the session's drivers."""

    def __init__(
        self, session: Session, context: "zmq.Context[zmq.Socket[bytes]]", has_token: bool = True
    ) -> None:
        """``has_token``: it found the secret that only this user can read, the worst case."""
        self.session = session
        self.number = secrets.randbits(32)
        self.socket = context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.IDENTITY, b"\1" + self.number.to_bytes(8, "little"))
        spec = json.loads((session.run_dir / "synchronizer.spec.json").read_text())
        self.socket.connect(spec["bus_endpoint"])
        self.token = device_token(spec["bus_secret"], "stranger") if has_token else ""

    def send(self, *parts: bytes) -> None:
        self.socket.send_multipart(parts)

    def declare(self, *infos: StreamInfo, **changes: Any) -> None:
        message = Declare(
            instance=self.number,
            device="stranger",
            driver="unknown",
            streams=infos,
            timeline=Timeline("elsewhere", 0),
            is_live=True,
            counters="",
            token=self.token,
        )
        self.send(pack_control(message.model_copy(update=changes)))

    def is_welcome(self) -> bool:
        if not self.socket.poll(3000):
            return False
        return isinstance(unpack_control(self.socket.recv()), Welcome)


@contextmanager
def strangers(session: Session) -> Iterator[Stranger]:
    with zmq.Context() as context:
        found = Stranger(session, context)
        try:
            yield found
        finally:
            found.socket.close(linger=0)


@pytest.fixture
def stranger(session: Session) -> Iterator[Stranger]:
    with strangers(session) as found:
        yield found


def rejected(session: Session) -> int:
    status = session.status()
    return sum(status["rejected"].values()) if status else 0


def check_unharmed(session: Session) -> None:
    """Assert that both streams are recorded on without a loss, and that the episode seals."""
    before = session.until_recorded(0.0)
    session.until_recorded(before["recorded_s"] + 0.7)
    run_dir = session.run_dir
    done = session.finish(signal.SIGINT)
    assert done.code == 0, done.err + done.out
    assert done.document["warnings"] == []
    (episode,) = done.episodes
    for stream in STREAMS:
        row = done.document["streams"][stream]
        assert row["dropped"] == {}, row
        assert row["recorded"] > before["streams"][stream]["recorded"]
    check_verifies(episode)
    records = [record for record in read_manifest(episode).streams if record.info.name in STREAMS]
    assert all(len(record.balances) == 1 for record in records)
    if {record.info.name for record in read_manifest(episode).streams} == set(STREAMS):
        check_balance([episode], run_dir)


def header(stranger: Stranger, stream: str = "imu", **changes: Any) -> bytes:
    fields = {
        "version": VERSION,
        "instance": stranger.number,
        "stream": stream,
        "seq": 0,
        "count": 1,
        "ticks": bytes(8),
        "arrival": bytes(8),
        "meta": [],
        "recorded": None,
        "losses": None,
        "place": None,
        "inside": None,
    }
    return bytes(msgpack.packb(list({**fields, **changes}.values())))


def test_garbage_is_rejected_and_recording_goes_on(session: Session, stranger: Stranger) -> None:
    hostile = [
        (b"",),
        (b"garbage",),
        (b"garbage", b"payload"),
        (b"a", b"b", b"c", b"d"),
        (header(stranger, version=1), b""),
        (header(stranger, instance=5), b""),
        (header(stranger, instance=-1), b""),
        (header(stranger, seq=-1), b""),
        (header(stranger, seq=1 << 63), b""),
        (header(stranger, count=0), b""),
        (header(stranger, count=1 << 40), b""),
        (header(stranger, stream="../../etc/passwd"), b""),
        (header(stranger, arrival=b""), b""),
        (header(stranger, ticks=bytes(24)), b""),
        (header(stranger, meta=["x"]), b""),
        (header(stranger), b""),  # whole, but nobody declared it
        (pack_control(Heartbeat(instance=5, next_seq={"imu": 1 << 60})),),
        (pack_control(End(instance=stranger.number, next_seq={"imu": 1 << 60}, error="")),),
        (msgpack.packb({"kind": "declare", "instance": stranger.number}),),
        (b"\xdd" + b"\xff" * 4, b""),
        (b"\xc7\xff\xff\xff\xff" * 1000,),
    ]
    for parts in hostile:
        stranger.send(*parts)
    until(lambda: rejected(session) == len(hostile), f"{len(hostile)} rejected messages")
    check_unharmed(session)


def test_a_message_over_the_limit_ends_only_the_connection_that_sent_it(
    session: Session, stranger: Stranger
) -> None:
    stranger.send(bytes(MAX_MESSAGE_BYTES + 1))
    stranger.send(header(stranger), bytes(8 << 20))
    check_unharmed(session)


BAD_STREAMS = {
    "a name that is reserved": StreamInfo("data", Modality.OTHER, "png", 1.0, "x"),
    "an encoding that nobody can store": StreamInfo("odd", Modality.OTHER, "smoke_signals", 1.0, "x"),
    "a stream of another device": StreamInfo("imu", Modality.IMU, "png", 1.0, "x"),
    "an image without a shape": StreamInfo("odd", Modality.CAMERA, "mono8", 1.0, "x"),
}


def test_a_declaration_that_cannot_be_recorded_is_refused(session: Session) -> None:
    for before, (what, info) in enumerate(BAD_STREAMS.items()):
        with strangers(session) as stranger:
            stranger.declare(info)
            until(lambda: rejected(session) == before + 1, f"the refusal of {what}")  # noqa: B023
            assert not stranger.socket.poll(100), what
    check_unharmed(session)


HUGE = 1 << 62
GOOD = StreamInfo(
    "odd",
    Modality.IMU,
    "columns",
    100.0,
    "odd",
    clock=DeviceClock(ClockKind.FREE, 1000, 1, 1 << 32),
    columns=(Column("x", "m", "<i2"),),
    is_sampled=True,
)


def test_a_declared_driver_with_mad_stamps_harms_only_its_own_stream(
    session: Session, stranger: Stranger
) -> None:
    stranger.declare(GOOD)
    assert stranger.is_welcome()
    seq = 0
    for ticks, arrival in (
        (0, 0),
        (HUGE, HUGE),
        (-HUGE, -HUGE),
        ((1 << 63) - 1, (1 << 63) - 1),
        (-(1 << 63), -(1 << 63)),
        (1, -1),
        (1 << 40, 1),
    ):
        stranger.send(
            pack_header(stranger.number, Frame("odd", seq, 1, stamps(ticks), stamps(arrival), b"ab")), b"ab"
        )
        seq += 1
    stranger.send(
        pack_header(stranger.number, Frame("odd", seq, 1, None, stamps(5), b"ab")), b"ab"
    )  # no device stamp, although the clock promises one
    stranger.send(
        pack_header(stranger.number, Frame("odd", seq + 1, 1, stamps(5), stamps(5), b"abc")), b"abc"
    )
    stranger.send(
        pack_control(
            Lost(
                instance=stranger.number,
                stream="odd",
                seq=1 << 60,
                count=1 << 60,
                place=Place.BUS,
                reason="none",
            )
        )
    )
    stranger.send(pack_control(End(instance=stranger.number, next_seq={"odd": 3}, error="")))
    before = session.until_recorded(0.0)
    session.until_recorded(before["recorded_s"] + 0.5)
    status = session.status()
    assert status is not None
    assert status["streams"]["imu"]["dropped"] == 0
    done = session.finish(signal.SIGINT)
    assert not any("synchronizer" in warning for warning in done.document["warnings"]), done.document
    check_verifies(*done.episodes)


def test_a_driver_that_comes_back_with_another_declaration_begins_a_new_episode(
    session: Session, stranger: Stranger
) -> None:
    stranger.declare(GOOD)
    assert stranger.is_welcome()
    first = session.until_recorded(0.0)["episode"]
    with strangers(session) as second_life:
        second_life.declare(replace(GOOD, rate_hz=200.0))
        assert second_life.is_welcome()
        until(lambda: (session.status() or {}).get("episode") not in (None, first), "the next episode")
    done = session.finish(signal.SIGINT)
    assert len(done.episodes) == 2
    assert not any("synchronizer" in warning for warning in done.document["warnings"]), done.document
    check_verifies(*done.episodes)
