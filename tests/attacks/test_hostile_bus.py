"""Messages on the bus and to the control socket that are to kill the recorder, or to make it say what is not so."""

import contextlib
import json
import secrets
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import zmq
from sessions import CLOCK, IMU, Session, check_verifies, grant, until, write_rig
from synchronizer_bench import START_NS, Bench

from sensorium.agent.session.memory_folder import memory_folders
from sensorium.drivers.bus.wire import Declare, End, Hello, device_token, pack_control
from sensorium.drivers.frame import Column, Frame, Modality, StreamInfo, stamps
from sensorium.sync.episode import ulid
from sensorium.sync.episode.manifest import read_manifest
from sensorium.sync.recording.open_episode import REPLACED
from sensorium.sync.thinking.orphans import recover_orphans
from sensorium.timebase import Timeline

pytestmark = pytest.mark.alone

SCALE = StreamInfo(
    "scale",
    Modality.FORCE,
    "columns",
    100.0,
    "scale",
    columns=(Column("x", "N", "<i2"),),
    meta_fields=("gain",),
)


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    rig = write_rig(tmp_path, {"imu": IMU})
    grant(tmp_path / "spool")
    with Session("record", rig, "--json", spool=tmp_path / "spool") as found:
        found.until_recorded(0.3, ("imu",))
        yield found


@pytest.mark.parametrize("fields", [(), ("gain", "offset"), ("other",)], ids=["fewer", "more", "another"])
def test_frames_of_before_a_second_declaration_are_dropped_and_counted(
    tmp_path: Path, context: zmq.Context[zmq.Socket[bytes]], fields: tuple[str, ...]
) -> None:
    bench = Bench(tmp_path, context, ("scale",))
    first = bench.driver(SCALE, 1)
    bench.settle(first)
    bench.advance(0.1, first)
    first.publish(Frame("scale", 0, 1, None, stamps(bench.clock.now_ns()), b"ab", (1.0,)))
    bench.settle(first)
    second = bench.driver(replace(SCALE, meta_fields=fields), 2)
    bench.settle(second)
    for seq in range(1, 6):
        now = stamps(bench.clock.now_ns())
        first.publish(Frame("scale", seq, 1, None, now, b"ab", (1.0,)))
        second.publish(Frame("scale", seq - 1, 1, None, now, b"ab", (1.0,) * len(fields)))
        bench.advance(0.1, first, second)
    first.end(linger_s=0.05)
    second.end(linger_s=0.05)
    bench.settle()
    manifests = bench.close()
    assert sum(manifest.stream("scale").total.recorded for manifest in manifests) == 6
    assert manifests[-1].stream("scale").info.meta_fields == fields
    assert bench.synchronizer.receiver.rejected["frame of scale as it was declared before"] == 5
    assert REPLACED not in str(manifests[0].stream("scale").total.dropped)


def peer(context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> tuple[int, zmq.Socket[bytes]]:
    """Return a process of the same user on the bus that no supervisor started, and its number."""
    number = secrets.randbits(32)
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.IDENTITY, b"\1" + number.to_bytes(8, "little"))
    socket.setsockopt(zmq.LINGER, 0)
    socket.connect(endpoint)
    return number, socket


def declaration(number: int, device: str, token: str) -> bytes:
    return pack_control(
        Declare(
            instance=number,
            device=device,
            driver="unknown",
            streams=(replace(SCALE, name=device, details={"filling": "x" * 10_000}),),
            timeline=Timeline("elsewhere", 0),
            is_live=True,
            counters="",
            token=token,
        )
    )


def memory_kb(pid: int) -> int:
    (line,) = (row for row in Path(f"/proc/{pid}/status").read_text().splitlines() if "VmHWM" in row)
    return int(line.split()[1])


def test_a_declaration_without_the_token_of_its_device_is_refused(session: Session) -> None:
    spec = json.loads((session.run_dir / "synchronizer.spec.json").read_text())
    of_another = device_token(spec["bus_secret"], "imu")
    with zmq.Context() as context:
        for count, token in enumerate(("", "0" * 64, of_another), start=1):
            number, socket = peer(context, spec["bus_endpoint"])
            socket.send(declaration(number, "scale", token))
            until(lambda: sum((session.status() or {})["rejected"].values()) == count, "the refusal")  # noqa: B023
            assert not socket.poll(50)
            socket.close()
    assert "scale" not in session.until_recorded(0.5, ("imu",))["devices"]
    done = session.finish(signal.SIGINT)
    assert any("that no supervisor" in said for said in read_manifest(done.episodes[0]).limitations)


def test_a_flood_from_the_same_user_takes_no_memory_and_no_answers(session: Session) -> None:
    """Declarations, greetings that are never read, and reasons that are all different."""
    spec = json.loads((session.run_dir / "synchronizer.spec.json").read_text())
    recorder = session.note_processes()["synchronizer"]
    before_kb, slowest_s = memory_kb(recorder), 0.0
    with zmq.Context() as context:
        peers = [peer(context, spec["bus_endpoint"]) for _ in range(4)]
        for turn in range(600):
            for number, socket in peers:
                messages = (
                    declaration(number, f"d{turn}", "no"),
                    pack_control(Hello(number)),
                    pack_control(End(instance=turn, next_seq={}, error="")),
                    bytes(secrets.token_bytes(4000)),
                )
                for message in messages:
                    with contextlib.suppress(zmq.Again):
                        socket.send(message, zmq.NOBLOCK)
            if turn % 60 == 0:
                begun_s = CLOCK.now_ns() / 1e9
                assert session.status() is not None
                slowest_s = max(slowest_s, CLOCK.now_ns() / 1e9 - begun_s)
        status = session.status()
        for _, socket in peers:
            socket.close()
    assert status is not None
    assert len(status["rejected"]) <= 101
    assert sum(status["rejected"].values()) > 1000
    assert memory_kb(recorder) - before_kb < 64 << 10
    assert slowest_s < 3.0
    done = session.finish(signal.SIGINT)
    assert done.document["streams"]["imu"]["dropped"] == {}
    check_verifies(*done.episodes)


def test_sockets_specifications_and_shared_memory_are_for_this_user_only(session: Session) -> None:
    spec = json.loads((session.run_dir / "synchronizer.spec.json").read_text())
    sockets = Path(spec["bus_endpoint"].removeprefix("ipc://")).parent
    private = [
        sockets,
        *(folder for folder in memory_folders() if folder.name.endswith(session.run_dir.name)),
    ]
    assert len(private) == 2
    assert [oct(folder.stat().st_mode & 0o777) for folder in private] == ["0o700"] * 2
    files = list(session.run_dir.glob("*.spec.json"))
    assert len(files) == 3
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    for name in session.note_processes().values():
        assert spec["bus_secret"] not in Path(f"/proc/{name}/cmdline").read_text()


HOSTILE_COMMANDS = {
    "nested lists": b"[" * 100_000,
    "nested objects": b'{"cmd":' * 100_000,
    "a nested field": b'{"cmd":"mark","text":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    "a number as command": b'{"cmd":1}',
    "a list as command": b'{"cmd":[]}',
    "an object as command": b'{"cmd":{}}',
    "no object": b"null",
    "no JSON": b"\xff\xfe\x00",
    "nothing": b"",
    "a huge number": b'{"cmd":"pause","host_ns":' + b"9" * 4000 + b"}",
    "a check that is none": b'{"cmd":"checked","message":{"kind":' + b"[" * 900 + b"]" * 900 + b"}}",
}


def test_no_control_message_ends_the_recorder(session: Session) -> None:
    endpoint = json.loads((session.run_dir / "synchronizer.spec.json").read_text())["control_endpoint"]
    recorder = session.note_processes()["synchronizer"]
    with zmq.Context() as context:
        for what, message in HOSTILE_COMMANDS.items():
            with context.socket(zmq.REQ) as asking:
                asking.setsockopt(zmq.LINGER, 0)
                asking.connect(endpoint)
                asking.send(message)
                assert asking.poll(5000), what
                assert "ok" in json.loads(asking.recv()), what
    assert session.note_processes()["synchronizer"] == recorder
    until(lambda: session.status() is not None, "an answer")
    done = session.finish(signal.SIGINT)
    assert not any("synchronizer" in warning for warning in done.document["warnings"]), done.document
    check_verifies(*done.episodes)


def test_an_empty_torn_episode_is_of_the_time_when_it_was_begun(
    tmp_path: Path, context: zmq.Context[zmq.Socket[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ulid, "_last", 0)  # other tests of this process live in another year
    bench = Bench(tmp_path, context, ("scale",))
    driver = bench.driver(SCALE, 1)
    bench.settle(driver)
    episode = bench.synchronizer.episode
    assert episode is not None
    bench.advance(2.0, driver)
    episode.writer.flush()  # the recorder dies here, before a first frame
    shutil.copytree(tmp_path / "spool", tmp_path / "torn")
    (sealed,) = recover_orphans(tmp_path / "torn", tmp_path / "consent")
    assert sealed.path is not None, sealed.error
    manifest = read_manifest(sealed.path)
    begun_utc_ns = START_NS + bench.clock.utc_minus_host_ns()
    assert abs(manifest.start_utc_ns - begun_utc_ns) < 2_000_000
    assert manifest.end_utc_ns == manifest.start_utc_ns
    driver.end(linger_s=0.05)
    bench.settle()
    bench.close()
