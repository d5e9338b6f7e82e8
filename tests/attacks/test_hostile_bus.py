"""Messages on the bus and to the control socket that are to kill the recorder, or to make it say what is not so."""

import json
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import zmq
from sessions import IMU, Session, check_verifies, grant, until, write_rig
from synchronizer_bench import START_NS, Bench

from sensorium.drivers.frame import Column, Frame, Modality, StreamInfo, stamps
from sensorium.sync.episode import ulid
from sensorium.sync.episode.manifest import read_manifest
from sensorium.sync.recording.synchronizer import REPLACED
from sensorium.sync.thinking.orphans import recover_orphans

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
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    with zmq.Context() as made:
        yield made


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
