"""The synchronizer, step by step on a virtual clock: starts together, splits in time, denies, keeps verdicts."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import zmq

from sensorium.drivers.bus import BusPublisher, BusReceiver
from sensorium.drivers.counters import CounterFile
from sensorium.drivers.frame import Column, Encoding, Frame, Modality, StreamInfo, stamps
from sensorium.drivers.live import LivePublisher
from sensorium.drivers.wire import Declare
from sensorium.errors import SensoriumError
from sensorium.sync.consent_store import ConsentStore
from sensorium.sync.episode.manifest import Manifest, read_manifest
from sensorium.sync.session import SyncSpec
from sensorium.sync.synchronizer import Synchronizer
from sensorium.timebase import SECOND_NS, Timeline, VirtualClock
from sensorium.verdict import Status, Verdict

START_NS = 1000 * SECOND_NS
MS = 1_000_000
FORCE = StreamInfo(
    "force",
    Modality.FORCE,
    Encoding.COLUMNS,
    10.0,
    "force",
    columns=(Column("fz", "N", "<i4"),),
    is_sampled=True,
)
MICROPHONE = StreamInfo(
    "mic", Modality.AUDIO, Encoding.PCM_S16LE, 100.0, "mic", shape=(1,), is_personal=True, frame_rate_hz=10.0
)


class Bench:
    """A synchronizer and driver ends of its bus, all on one virtual clock."""

    def __init__(
        self, tmp_path: Path, context: zmq.Context, devices: tuple[str, ...], **options: object
    ) -> None:
        self.clock = VirtualClock(START_NS, utc_minus_host_ns=1_700_000_000 * SECOND_NS)
        self.context = context
        self.run_dir = tmp_path / "run"
        self.run_dir.mkdir()
        self.endpoint = f"inproc://bus-{id(self)}"
        self.store = ConsentStore(tmp_path / "consent", self.clock)
        spec = SyncSpec(
            spool=tmp_path / "spool",
            run_dir=self.run_dir,
            bus_endpoint=self.endpoint,
            control_endpoint="",
            sets_endpoint="",
            live_endpoint="",
            host_id="here",
            devices=devices,
            consent=tmp_path / "consent",
            **options,
        )
        receiver = BusReceiver(self.endpoint, 1, context)
        live = LivePublisher(f"inproc://live-{id(self)}", context)
        self.synchronizer = Synchronizer(spec, receiver, live, self.store, self.clock)
        self._receiver, self._live = receiver, live

    def driver(self, info: StreamInfo, instance: int) -> BusPublisher:
        counters = CounterFile(self.run_dir / f"{instance}.counters", instance, [info.name])
        declare = Declare(
            instance=instance,
            device=info.name,
            driver="bench",
            streams=(info,),
            timeline=Timeline("here", 1_700_000_000 * SECOND_NS),
            is_live=True,
            counters=str(counters.path),
        )
        return BusPublisher(self.endpoint, declare, counters, self.clock, self.context)

    def settle(self, *drivers: BusPublisher) -> None:
        """Let messages go back and forth until nothing moves."""
        for _ in range(4):
            while self.synchronizer.step():
                pass
            for driver in drivers:
                driver.step(wait_s=0.001)

    def advance(self, seconds: float, *drivers: BusPublisher) -> None:
        self.clock.advance(int(seconds * SECOND_NS))
        self.settle(*drivers)

    def close(self) -> list[Manifest]:
        self.synchronizer.close()
        self._receiver.close()
        self._live.close()
        assert not any(sealed.error for sealed in self.synchronizer.sealed)
        return [read_manifest(sealed.path) for sealed in self.synchronizer.sealed if sealed.path]


@pytest.fixture
def context() -> Iterator[zmq.Context]:
    with zmq.Context() as made:
        yield made


def reading(bench: Bench, seq: int) -> Frame:
    return Frame("force", seq, 1, None, stamps(bench.clock.now_ns()), seq.to_bytes(4, "little"))


def sound(bench: Bench, seq: int) -> Frame:
    return Frame("mic", seq, 10, None, stamps(bench.clock.now_ns()), bytes(20))


def test_nobody_is_welcome_before_all_devices_are_there(tmp_path, context):
    bench = Bench(tmp_path, context, ("force", "mic"))
    force = bench.driver(FORCE, 1)
    bench.settle(force)
    assert not force.is_welcome
    assert bench.synchronizer.episode is None
    mic = bench.driver(MICROPHONE, 2)
    bench.settle(force, mic)
    assert force.is_welcome
    assert mic.is_welcome
    assert bench.synchronizer.episode is not None
    force.end(linger_s=0.05)
    mic.end(linger_s=0.05)
    bench.settle()
    assert bench.close() == []  # nothing was produced, so nothing is sealed


def test_an_episode_ends_after_max_s_and_the_next_goes_on_without_a_gap(tmp_path, context):
    bench = Bench(tmp_path, context, ("force",), max_s=2.0)
    force = bench.driver(FORCE, 1)
    bench.settle(force)
    for seq in range(50):
        assert force.publish(reading(bench, seq))
        bench.advance(0.1, force)
    force.end(linger_s=0.05)
    bench.settle()
    manifests = bench.close()
    balances = [next(iter(manifest.stream("force").balances.values())) for manifest in manifests]
    assert len(balances) == 3
    assert sum(balance.recorded for balance in balances) == 50
    for before, after in pairwise(balances):
        assert before.first_seq + before.produced == after.first_seq


def test_what_is_personal_is_booked_but_not_stored_without_a_grant(tmp_path, context):
    bench = Bench(tmp_path, context, ("mic",))
    mic = bench.driver(MICROPHONE, 1)
    bench.settle(mic)
    for block in range(5):
        mic.publish(sound(bench, 10 * block))
        bench.advance(0.1, mic)
    mic.end(linger_s=0.05)
    bench.settle()
    (manifest,) = bench.close()
    record = manifest.stream("mic")
    assert record.total.dropped == {"synchronizer": {"consent: no_grant": 50}}
    assert record.total.is_exact
    assert record.consent.decision == "denied"


def test_a_pause_that_cannot_be_written_down_holds_all_the_same(tmp_path, context, monkeypatch):
    bench = Bench(tmp_path, context, ("mic",))
    blocked = tmp_path / "consent"
    blocked.write_text("a file where the folder should be")
    with pytest.raises(SensoriumError):
        bench.synchronizer.pause("button")
    assert bench.synchronizer.is_paused
    blocked.unlink()
    bench.synchronizer.resume("button")
    assert not bench.synchronizer.is_paused
    bench.close()


def test_the_verdict_that_weighs_most_is_kept_for_its_episode_only(tmp_path, context):
    bench = Bench(tmp_path, context, ("force",))
    force = bench.driver(FORCE, 1)
    bench.settle(force)
    insufficient = Verdict("stereo", "a~b", Status.INSUFFICIENT, (), ("too dark",))
    suspect = replace(insufficient, status=Status.SUSPECT, reasons=("pitch moved",))
    good = Verdict("stereo", "a~b", Status.OK)
    for verdict in (insufficient, good, suspect, good):
        bench.synchronizer.take_verdict(verdict)
    force.publish(reading(bench, 0))
    bench.settle(force)
    bench.synchronizer.stop()
    bench.synchronizer.start()
    force.publish(reading(bench, 1))
    bench.settle(force)
    force.end(linger_s=0.05)
    bench.settle()
    first, second = bench.close()
    assert [verdict.status for verdict in first.calibration.verdicts] == [Status.SUSPECT]
    assert second.calibration.verdicts == ()


def test_a_driver_that_comes_back_as_another_instance_has_a_balance_of_its_own(tmp_path, context):
    bench = Bench(tmp_path, context, ("force",))
    first = bench.driver(FORCE, 1)
    bench.settle(first)
    first.publish(reading(bench, 0))
    first.publish(reading(bench, 4))
    bench.settle(first)
    second = bench.driver(FORCE, 2)
    bench.settle(second)
    bench.clock.advance(100 * MS)
    second.publish(reading(bench, 0))
    second.end(linger_s=0.05)
    first.end(linger_s=0.05)
    bench.settle()
    (manifest,) = bench.close()
    balances = manifest.stream("force").balances
    assert (balances[1].produced, balances[1].recorded) == (5, 2)
    assert balances[1].dropped == {"device": {"gap in the device's counter": 3}}
    assert (balances[2].produced, balances[2].recorded) == (1, 1)


def test_a_stream_of_another_device_cannot_be_taken_over(tmp_path, context):
    bench = Bench(tmp_path, context, ("force",))
    force = bench.driver(FORCE, 1)
    bench.settle(force)
    thief = BusPublisher(
        bench.endpoint,
        Declare(
            instance=9,
            device="thief",
            driver="bench",
            streams=(FORCE,),
            timeline=Timeline("here", 0),
            is_live=True,
            counters="",
        ),
        CounterFile(tmp_path / "thief.counters", 9, ["force"]),
        bench.clock,
        context,
    )
    bench.settle(force, thief)
    assert not thief.is_welcome
    assert any("belongs to force" in reason for reason in bench.synchronizer.receiver.rejected)
    thief.end(linger_s=0.05)
    force.end(linger_s=0.05)
    bench.settle()
    bench.close()
