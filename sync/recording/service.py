"""The synchronizer's process: sockets, commands and the loop around :class:`Synchronizer`.

Run by the supervisor as ``python -m sensorium.sync.recording.service SPEC.json``. SIGTERM drains, seals and ends.
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
import numpy as np
import zmq
from pydantic import TypeAdapter, ValidationError

from sensorium.drivers.bus.counters import read_counters
from sensorium.drivers.bus.live import LivePublisher
from sensorium.drivers.bus.receiver import BusReceiver
from sensorium.drivers.bus.wire import Declare
from sensorium.drivers.frame import Frame, StreamInfo
from sensorium.errors import ConfigError, SensoriumError, VerdictError
from sensorium.sync.consent.store import ConsentStore
from sensorium.sync.recording.check_book import CheckMessage
from sensorium.sync.recording.orphans import recover_orphans
from sensorium.sync.recording.sets import AlignedSet, KeptFrame, SetRequest
from sensorium.sync.recording.spec import SyncSpec
from sensorium.sync.recording.synchronizer import Sealed, Synchronizer
from sensorium.timebase import SECOND_NS, Clock, HostClock

DRAIN_NS = 5 * SECOND_NS
SET_TIMEOUT_NS = 4 * SECOND_NS
SEALED_FILE = "sealed.jsonl"
_IDLE_MS = 5
_CHECK: TypeAdapter[CheckMessage] = TypeAdapter(CheckMessage)
_REQUEST: TypeAdapter[SetRequest] = TypeAdapter(SetRequest)
_INFO: TypeAdapter[StreamInfo] = TypeAdapter(StreamInfo)
Reply = dict[str, Any]


class SyncService:
    """Answers commands and hands aligned sets to the checker while the synchronizer records."""

    def __init__(self, spec: SyncSpec, context: zmq.Context[zmq.Socket[bytes]], clock: Clock) -> None:
        self._clock = clock
        self._spec = spec
        session = clock.now_ns() & ((1 << 64) - 1)
        receiver = BusReceiver(spec.bus_endpoint, session, context, spec.memory_bytes)
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
        self._heard_checker_ns: int | None = None
        self._poller = zmq.Poller()
        for socket in (receiver.socket, self._control, self._sets):
            self._poller.register(socket, zmq.POLLIN)
        self._stopping_since_ns: int | None = None
        self._reported = 0
        self._commands: dict[str, Callable[[Reply], Reply]] = {
            "status": lambda _: self._status(),
            "start": self._start,
            "stop": lambda _: {"episode": self.synchronizer.stop()},
            "discard": lambda _: {"episode": self.synchronizer.discard()},
            "mark": self._mark,
            "pause": lambda ask: {"pressed_utc_ns": self.synchronizer.pause(_text(ask, "source", "api"))},
            "resume": lambda ask: {"ended": self.synchronizer.resume(_text(ask, "source", "api"))},
            "exclude": self._exclude,
            "checked": self._checked,
            "streams": lambda _: self._streams(),
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
            return {"ok": False, "error": str(err), "refused": isinstance(err, VerdictError)}

    def _mark(self, ask: Reply) -> Reply:
        if not self.synchronizer.mark(_text(ask, "text", "")):
            raise ConfigError("nothing is being recorded to put a mark on; start an episode first")
        return {}

    def _exclude(self, ask: Reply) -> Reply:
        self.synchronizer.exclude(_text(ask, "device", ""))
        return {}

    def _start(self, ask: Reply) -> Reply:
        is_despite = ask.get("despite_calibration") is True
        return {"episode": self.synchronizer.start_when_allowed(is_despite)}

    def _checked(self, ask: Reply) -> Reply:
        self._heard_checker_ns = self._clock.now_ns()
        self.synchronizer.take_check(_CHECK.validate_python(ask.get("message")))
        return {}

    def _streams(self) -> Reply:
        """Return the declared streams, and whether recording has begun; the checker plans by them."""
        found = self.synchronizer
        infos = [stream.info for each in found.instances.values() for stream in each.streams.values()]
        return {
            "streams": [_INFO.dump_python(info, mode="json") for info in infos],
            "episode": found.episode.episode_id if found.episode is not None else None,
        }

    def _checks(self) -> Reply:
        """Return what the checker said last of each pair, how long ago it was captured, and what it costs."""
        found, now_ns = self.synchronizer, self.synchronizer.now_ns()
        book = found.checks
        planned = {(each.check, each.subject): each for each in book.report.checks}
        rows = []
        for key in sorted({*planned, *book.latest}):
            window, plan = book.latest.get(key), planned.get(key)
            rows.append(
                {
                    "check": key[0],
                    "subject": window.verdict.subject if window else key[1],
                    "status": window.verdict.status.value if window else "none yet",
                    "age_s": (now_ns - window.end_ns) / SECOND_NS if window else None,
                    "reasons": list(window.verdict.reasons) if window else [plan.note] if plan else [],
                    "every_s": plan.every_s if plan else None,
                    "cost_s": plan.cost_s if plan else None,
                    "note": plan.note if plan else "",
                }
            )
        heard_ns = self._heard_checker_ns
        return {
            "cpu_share": book.report.cpu_share,
            "cpu_used": book.report.used,
            "postponed_s": book.report.postponed_s,
            "silent_s": None if heard_ns is None else (self._clock.now_ns() - heard_ns) / SECOND_NS,
            "pairs": rows,
        }

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
            "refused": found.permit.refusal.sentence if found.permit.refusal is not None else "",
            "checks": self._checks(),
            "sealed": len(found.sealed),
            "rejected": dict(self._receiver.rejected),
        }

    def _answer_sets(self) -> None:
        """A request stays open (REP has not answered) until a row has all the streams, or 4 s are over."""
        keeper, now_ns = self.synchronizer.sets, self._clock.now_ns()
        if self._set_deadline_ns is None:
            try:
                data = self._sets.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                keeper.request(_REQUEST.validate_json(data), now_ns)
            except ValidationError:
                self._sets.send(
                    msgpack.packb({"error": 'a request is {"streams": [names], "beside": [names]}'})
                )
                return
            self._set_deadline_ns = now_ns + SET_TIMEOUT_NS
        found = keeper.take(now_ns)
        if found is not None:
            self._sets.send(pack_set(found))
        elif now_ns > self._set_deadline_ns:
            missing = keeper.missing()
            what = (
                f"nothing is recorded of {', '.join(missing)}" if missing else "no row held all the streams"
            )
            keeper.cancel()
            self._sets.send(msgpack.packb({"error": f"{what} for {SET_TIMEOUT_NS // SECOND_NS} s"}))
        else:
            return
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
            "episode": aligned.episode_id,
            "started_ns": aligned.started_ns,
            "tick_ns": aligned.tick_ns,
            "members": [_packed(kept) for kept in aligned.members],
            "beside": [_packed(kept) for kept in aligned.beside],
        }
    )
    return packed


def unpack_set(data: bytes) -> AlignedSet | str:
    """Return the aligned set in a reply to a request, or why there is none."""
    found: Reply = msgpack.unpackb(data)
    if "error" in found:
        return str(found["error"])
    members, beside = (tuple(map(_unpacked, found[key])) for key in ("members", "beside"))
    return AlignedSet(found["episode"], found["started_ns"], found["tick_ns"], members, beside)


def _packed(kept: KeptFrame) -> Reply:
    return {
        "info": _INFO.dump_json(kept.info),
        "seq": kept.frame.seq,
        "count": kept.frame.count,
        "capture_ns": kept.capture_ns.astype("<i8").tobytes(),
        "payload": bytes(kept.frame.payload),
    }


def _unpacked(found: Reply) -> KeptFrame:
    info = _INFO.validate_json(found["info"])
    capture_ns = np.frombuffer(found["capture_ns"], "<i8")
    frame = Frame(info.name, found["seq"], found["count"], None, capture_ns[-1:], found["payload"])
    return KeptFrame(info, frame, capture_ns)


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
