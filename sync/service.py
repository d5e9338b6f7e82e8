"""The synchronizer's process: sockets, commands and the loop around :class:`Synchronizer`.

Run by the supervisor as ``python -m sensorium.sync.service SPEC.json``. SIGTERM drains, seals and ends.
"""

import functools
import json
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import msgpack
import zmq
from pydantic import TypeAdapter, ValidationError

from sensorium.drivers.bus import BusReceiver
from sensorium.drivers.counters import read_counters
from sensorium.drivers.frame import StreamInfo
from sensorium.drivers.live import LivePublisher
from sensorium.drivers.wire import Declare
from sensorium.errors import ConfigError, SensoriumError
from sensorium.sync.consent_store import ConsentStore
from sensorium.sync.orphans import recover_orphans
from sensorium.sync.session import SyncSpec
from sensorium.sync.sets import AlignedSet
from sensorium.sync.synchronizer import Sealed, Synchronizer
from sensorium.timebase import SECOND_NS, Clock, HostClock
from sensorium.verdict import Verdict

DRAIN_NS = 5 * SECOND_NS
SET_TIMEOUT_NS = 10 * SECOND_NS
SEALED_FILE = "sealed.jsonl"
_IDLE_MS = 5
_VERDICT: TypeAdapter[Verdict] = TypeAdapter(Verdict)
_INFO: TypeAdapter[StreamInfo] = TypeAdapter(StreamInfo)
Reply = dict[str, Any]


class SyncService:
    """Answers commands and hands aligned sets to the checker while the synchronizer records."""

    def __init__(self, spec: SyncSpec, context: zmq.Context[zmq.Socket[bytes]], clock: Clock) -> None:
        self._clock = clock
        self._spec = spec
        session = clock.now_ns() & ((1 << 64) - 1)
        receiver = BusReceiver(spec.bus_endpoint, session, context)
        live = LivePublisher(spec.live_endpoint, context)
        self.synchronizer = Synchronizer(spec, receiver, live, ConsentStore(spec.consent, clock), clock)
        self._receiver = receiver
        self._control = context.socket(zmq.REP)
        self._control.setsockopt(zmq.MAXMSGSIZE, 1 << 20)
        self._control.bind(spec.control_endpoint)
        self._sets = context.socket(zmq.REP)
        self._sets.setsockopt(zmq.MAXMSGSIZE, 1 << 16)
        self._sets.bind(spec.sets_endpoint)
        self._set_deadline_ns: int | None = None
        self._poller = zmq.Poller()
        for socket in (receiver.socket, self._control, self._sets):
            self._poller.register(socket, zmq.POLLIN)
        self._stopping_since_ns: int | None = None
        self._reported = 0
        self._commands: dict[str, Callable[[Reply], Reply]] = {
            "status": lambda _: self._status(),
            "start": lambda _: {"episode": self.synchronizer.start()},
            "stop": lambda _: {"episode": self.synchronizer.stop()},
            "discard": lambda _: {"episode": self.synchronizer.discard()},
            "mark": self._mark,
            "pause": lambda ask: {"pressed_utc_ns": self.synchronizer.pause(_text(ask, "source", "api"))},
            "resume": lambda ask: {"ended": self.synchronizer.resume(_text(ask, "source", "api"))},
            "exclude": self._exclude,
            "verdict": self._verdict,
        }

    def step(self) -> bool:
        """Do one round; False when the session is over."""
        handled = self.synchronizer.step()
        self._answer_control()
        self._answer_sets()
        self._report_sealed()
        if self._stopping_since_ns is not None and handled == 0:
            waited_ns = self._clock.now_ns() - self._stopping_since_ns
            if self.synchronizer.is_drained or waited_ns > DRAIN_NS:
                return False
        if handled == 0:
            self._poller.poll(_IDLE_MS)
        return True

    def run(self) -> None:
        """Serve until :meth:`stop`, then seal and report."""
        while self.step():
            pass
        self.synchronizer.close()
        self._report_sealed()
        for socket in (self._control, self._sets):
            socket.close(linger=200)
        self._receiver.close()
        self.synchronizer.live.close()

    def stop(self) -> None:
        """End once every driver has said its last word, or after 5 s."""
        if self._stopping_since_ns is None:
            self._stopping_since_ns = self._clock.now_ns()

    def _answer_control(self) -> None:
        while True:
            try:
                data = self._control.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._control.send(json.dumps(self._command(data)).encode())

    def _command(self, data: bytes) -> Reply:
        try:
            ask = json.loads(data)
            handler = self._commands[ask["cmd"]]
        except (ValueError, KeyError, TypeError):
            return {"ok": False, "error": f"unknown command; known: {', '.join(self._commands)}"}
        try:
            return {"ok": True, **handler(ask)}
        except (SensoriumError, ValidationError) as err:
            return {"ok": False, "error": str(err)}

    def _mark(self, ask: Reply) -> Reply:
        if not self.synchronizer.mark(_text(ask, "text", "")):
            raise ConfigError("nothing is being recorded to put a mark on; start an episode first")
        return {}

    def _exclude(self, ask: Reply) -> Reply:
        self.synchronizer.exclude(_text(ask, "device", ""))
        return {}

    def _verdict(self, ask: Reply) -> Reply:
        self.synchronizer.take_verdict(_VERDICT.validate_python(ask.get("verdict")))
        return {}

    def _status(self) -> Reply:
        found = self.synchronizer
        episode = found.episode
        streams: dict[str, Reply] = {}
        if episode is not None:
            for name, tally in episode.tallies.items():
                balances = [account for stream, _, account in episode.accounts if stream == name]
                streams[name] = {
                    "modality": tally.info.modality.value,
                    "produced": sum(account.produced for account in balances),
                    "recorded": tally.samples,
                    "dropped": sum(account.dropped.total() for account in balances),
                    "rate_hz": tally.rate_hz,
                    "uncertainty_p95_us": (tally.bound_ns.percentile(95) or 0.0) / 1e3,
                }
        return {
            "episode": episode.episode_id if episode is not None else None,
            "folder": str(episode.folder) if episode is not None else None,
            "recorded_s": (found.now_ns() - episode.started_ns) / 1e9 if episode is not None else 0.0,
            "bytes": episode.writer.bytes_stored() if episode is not None else 0,
            "streams": streams,
            "devices": {
                instance.declare.device: "ended" if instance.has_ended else "connected"
                for instance in found.instances.values()
            },
            "paused": found.is_paused,
            "fault": found.fault,
            "sealed": len(found.sealed),
            "rejected": dict(self._receiver.rejected),
        }

    def _answer_sets(self) -> None:
        """A request stays open (REP has not answered) until a row has all the streams, or 10 s are over."""
        if self._set_deadline_ns is None:
            try:
                data = self._sets.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                streams = tuple(str(name) for name in json.loads(data)["streams"])
            except (ValueError, KeyError, TypeError):
                self._sets.send(msgpack.packb({"error": 'a request is {"streams": [names]}'}))
                return
            self.synchronizer.request_set(streams)
            self._set_deadline_ns = self._clock.now_ns() + SET_TIMEOUT_NS
        ready = self.synchronizer.ready_set
        if ready is not None:
            self._sets.send(pack_set(ready))
        elif self._clock.now_ns() > self._set_deadline_ns:
            self._sets.send(msgpack.packb({"error": "no row held all the streams within 10 s"}))
        else:
            return
        self.synchronizer.ready_set = None
        self._set_deadline_ns = None

    def _report_sealed(self) -> None:
        """Append what was sealed to a file that outlives this process."""
        fresh = self.synchronizer.sealed[self._reported :]
        if fresh:
            with (self._spec.run_dir / SEALED_FILE).open("a") as file:
                for sealed in fresh:
                    file.write(json.dumps(_sealed_row(sealed)) + "\n")
            self._reported += len(fresh)


def pack_set(aligned: AlignedSet) -> bytes:
    """Return an aligned set as one msgpack document."""
    packed: bytes = msgpack.packb(
        {
            "tick_ns": aligned.tick_ns,
            "streams": [
                {
                    "info": _INFO.dump_json(info),
                    "seq": frame.seq,
                    "count": frame.count,
                    "capture_ns": capture_ns,
                    "payload": bytes(frame.payload),
                }
                for info, frame, capture_ns in aligned.members()
            ],
        }
    )
    return packed


def _sealed_row(sealed: Sealed) -> Reply:
    return {"episode": sealed.episode_id, "path": str(sealed.path or ""), "error": sealed.error}


def _text(ask: Reply, key: str, default: str) -> str:
    return str(ask.get(key, default))[:1000]


def _known_drivers(run_dir: Path) -> list[Declare]:
    """Return what a synchronizer before this one in the same session knew."""
    return [
        Declare.model_validate_json(path.read_text())
        for path in sorted((run_dir / "declares").glob("*.json"))
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one synchronizer; exit code 3 when a fault ended capture."""
    (spec_path,) = sys.argv[1:] if argv is None else argv
    spec = SyncSpec.model_validate_json(Path(spec_path).read_text())
    clock = HostClock()
    with zmq.Context() as context:
        try:
            known = _known_drivers(spec.run_dir)
            # One boundary: where the torn episode ends, the next one begins.
            read = functools.cache(read_counters)
            recovered = recover_orphans(spec, read)
            service = SyncService(spec, context, clock)
            service.synchronizer.sealed += recovered
            service.synchronizer.adopt(known, read)

            def stop(_signal: int, _frame: FrameType | None) -> None:
                service.stop()

            signal.signal(signal.SIGTERM, stop)
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the supervisor, which then tells us
            service.run()
        except SensoriumError as err:
            print(f"synchronizer: {err}", file=sys.stderr)  # noqa: T201 - the supervisor reads it
            return err.exit_code
    return 3 if service.synchronizer.fault else 0


if __name__ == "__main__":
    sys.exit(main())
