"""Recorder, thinker and driver ends of the bus in one process, on a virtual clock."""

from pathlib import Path
from typing import Any

import zmq

from sensorium.drivers.bus.counters import CounterFile
from sensorium.drivers.bus.live import LivePublisher
from sensorium.drivers.bus.publisher import BusPublisher
from sensorium.drivers.bus.receiver import BusReceiver
from sensorium.drivers.bus.wire import Declare
from sensorium.drivers.frame import StreamInfo
from sensorium.sync.consent.grants import ConsentGrant, Evidence, LawfulBasis, Purpose, Scope
from sensorium.sync.consent.store import ConsentStore
from sensorium.sync.episode.manifest import Manifest, read_manifest
from sensorium.sync.episode.ulid import new_ulid
from sensorium.sync.recording.notes import RecorderLink, ThinkerLink
from sensorium.sync.recording.spec import SyncSpec
from sensorium.sync.recording.synchronizer import Synchronizer
from sensorium.sync.thinking.thinker import Thinker
from sensorium.timebase import SECOND_NS, Timeline, VirtualClock

START_NS = 1000 * SECOND_NS


class Bench:
    """A recorder with its thinker, and driver ends of its bus, all on one virtual clock."""

    def __init__(
        self,
        tmp_path: Path,
        context: zmq.Context[zmq.Socket[bytes]],
        devices: tuple[str, ...],
        **options: Any,
    ) -> None:
        self.clock = VirtualClock(START_NS, utc_minus_host_ns=1_700_000_000 * SECOND_NS)
        self.context = context
        self.run_dir = tmp_path / f"run{len(list(tmp_path.glob('run*')))}"
        self.run_dir.mkdir()
        self.endpoint = f"inproc://bus-{id(self)}"
        self.store = ConsentStore(tmp_path / "consent", self.clock)
        notes = f"inproc://notes-{id(self)}"
        spec = SyncSpec(
            spool=tmp_path / "spool",
            run_dir=self.run_dir,
            bus_endpoint=self.endpoint,
            control_endpoint="",
            notes_endpoint=notes,
            sets_endpoint="",
            live_endpoint="",
            host_id="here",
            devices=devices,
            consent=tmp_path / "consent",
            **options,
        )
        receiver = BusReceiver(self.endpoint, 1, context)
        live = LivePublisher(f"inproc://live-{id(self)}", context)
        link = ThinkerLink(notes, context)
        self.synchronizer = Synchronizer(spec, receiver, live, link, self.store, self.clock)
        self._recorder_link = RecorderLink(notes, context)
        self.thinker = Thinker(spec, self.clock, self._recorder_link.say)
        self._receiver, self._live, self._link = receiver, live, link

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
        publisher = BusPublisher(self.endpoint, instance, self.clock, self.context)
        publisher.declare(declare, counters)
        return publisher

    def grant(self, *purposes: Purpose, lasts_ns: int = 3600 * SECOND_NS) -> ConsentGrant:
        """Let everything be recorded, and used for these purposes, until ``lasts_ns`` from now."""
        now_ns = self.clock.utc_ns()
        return self.store.grant(
            ConsentGrant(
                id=new_ulid(now_ns),
                subject="sub:a",
                controller="lab",
                lawful_basis=LawfulBasis.CONSENT,
                purposes=(Purpose.RECORD, *purposes),
                scope=Scope(("*",)),
                valid_from=now_ns - 3600 * SECOND_NS,
                valid_until=now_ns + lasts_ns,
                evidence=Evidence("button"),
            )
        )

    def settle(self, *drivers: BusPublisher) -> None:
        """Let messages go back and forth until nothing moves."""
        for _ in range(4):
            while self.synchronizer.step():
                pass
            self._think()
            for driver in drivers:
                driver.step(wait_s=0.001)

    def _think(self) -> None:
        while True:
            batch = self._recorder_link.receive()
            if batch is None:
                break
            self.thinker.take(batch)
        self.thinker.step()

    def advance(self, seconds: float, *drivers: BusPublisher) -> None:
        self.clock.advance(int(seconds * SECOND_NS))
        self.settle(*drivers)

    def close(self) -> list[Manifest]:
        self.synchronizer.close()
        self._think()
        self.thinker.close()
        for end in (self._receiver, self._live, self._link, self._recorder_link):
            end.close()
        assert not any(sealed.error for sealed in self.thinker.sealed)
        return [read_manifest(sealed.path) for sealed in self.thinker.sealed if sealed.path]
