"""The recorder's process: sockets, commands and the loop around :class:`Synchronizer`.

Run by the supervisor as ``python -m sensorium.sync.recording.service SPEC.json``. SIGTERM drains, closes the
open episode and ends; the thinker seals it.
"""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import zmq
from pydantic import TypeAdapter, ValidationError

from sensorium.drivers.bus.context import bus_context, has_mail
from sensorium.drivers.bus.live import LivePublisher
from sensorium.drivers.bus.receiver import BusReceiver
from sensorium.errors import ConfigError, SensoriumError, VerdictError
from sensorium.priority import go_first
from sensorium.stopping import is_orphaned, stop_on_sigterm
from sensorium.sync.consent.store import ConsentStore
from sensorium.sync.recording.boundary import draw_boundary
from sensorium.sync.recording.check_book import CheckMessage
from sensorium.sync.recording.notes import ThinkerLink
from sensorium.sync.recording.roster import known_drivers
from sensorium.sync.recording.spec import SyncSpec
from sensorium.sync.recording.status import SessionStatus
from sensorium.sync.recording.synchronizer import Synchronizer
from sensorium.sync.trust.commands import CommandGuard
from sensorium.sync.trust.keys import Role
from sensorium.sync.trust.store import trusted_keys
from sensorium.timebase import SECOND_NS, Clock, HostClock
from sensorium.wording import said

DRAIN_NS = 5 * SECOND_NS
CONTROL_NS = SECOND_NS // 100
_IDLE_MS = 5
_CHECK: TypeAdapter[CheckMessage] = TypeAdapter(CheckMessage)
Reply = dict[str, Any]


class SyncService:
    """Answers commands while the synchronizer records."""

    def __init__(self, spec: SyncSpec, context: zmq.Context[zmq.Socket[bytes]], clock: Clock) -> None:
        self._clock = clock
        session = clock.now_ns() & ((1 << 64) - 1)
        memory_mb = spec.recorder.memory_mb
        budget = None if memory_mb is None else int(memory_mb * 1e6)
        self._receiver = BusReceiver(spec.bus_endpoint, session, context, budget)
        self._live = LivePublisher(spec.live_endpoint, context)
        self._link = ThinkerLink(spec.notes_endpoint, context)
        store = ConsentStore(spec.consent, clock)
        self.synchronizer = Synchronizer(spec, self._receiver, self._live, self._link, store, clock)
        self.status = SessionStatus(self.synchronizer, clock, spec)
        self._guard = CommandGuard(spec.run_dir, lambda: trusted_keys(Role.OPERATOR), clock)
        self._control = context.socket(zmq.REP)
        self._control.setsockopt(zmq.MAXMSGSIZE, 1 << 20)
        self._control.bind(spec.control_endpoint)
        # Only of the bus: the others are heard each 10 or 20 ms, and to ask them costs as much as a frame.
        self._awaited = [(self._receiver.socket, int(zmq.POLLIN))]
        self._stopping_since_ns: int | None = None
        self._next_control_ns = 0
        self._commands: dict[str, Callable[[Reply], Reply]] = {
            "status": lambda _: self.status.session(),
            "start": self._start,
            "stop": lambda _: {"episode": self.synchronizer.stop()},
            "discard": lambda _: {"episode": self.synchronizer.discard()},
            "mark": self._mark,
            "pause": self._pause,
            "resume": lambda ask: {"ended": self.synchronizer.resume(_text(ask, "source", "api"))},
            "exclude": self._exclude,
            "checked": self._checked,
            "streams": lambda _: self.status.streams(),
        }

    def step(self) -> bool:
        """Do one round; False when the session is over."""
        zmq.zmq_poll(self._awaited, _IDLE_MS)
        handled = self.synchronizer.step()
        now_ns = self._clock.now_ns()
        if now_ns >= self._next_control_ns:
            self._next_control_ns = now_ns + CONTROL_NS
            self._answer_control()
            if is_orphaned() and self.synchronizer.roster.is_drained:
                self.stop()  # nobody restarts a driver any more, and none is left, as at the end of a replay
        if self._stopping_since_ns is not None and handled == 0:
            waited_ns = now_ns - self._stopping_since_ns
            return not self.synchronizer.roster.is_drained and waited_ns <= DRAIN_NS
        return True

    def run(self) -> None:
        """Serve until :meth:`stop`, then close what is open."""
        while self.step():
            pass
        self.synchronizer.close()
        self._control.close(linger=200)
        self._receiver.close()
        self._live.close()
        self._link.close()

    def stop(self) -> None:
        """End once every driver has said its last word, or after 5 s."""
        if self._stopping_since_ns is None:
            self._stopping_since_ns = self._clock.now_ns()
            self.synchronizer.is_ending = True

    def _answer_control(self) -> None:
        while has_mail(self._control):
            data = self._control.recv(zmq.NOBLOCK)
            self._control.send(json.dumps(self._command(data)).encode())

    def _command(self, data: bytes) -> Reply:
        try:
            ask = json.loads(data)
            handler = self._commands[ask["cmd"]]
        except (ValueError, KeyError, TypeError, RecursionError):  # the last of what is nested without end
            return {"ok": False, "error": f"unknown command; known: {', '.join(self._commands)}"}
        try:
            self._guard.admit(ask)
            return {"ok": True, **handler(ask)}
        except (SensoriumError, ValidationError) as err:
            return {"ok": False, "error": said(err), "refused": isinstance(err, VerdictError)}

    def _mark(self, ask: Reply) -> Reply:
        if not self.synchronizer.mark(_text(ask, "text", "")):
            raise ConfigError("nothing is being recorded to put a mark on; start an episode first")
        return {}

    def _pause(self, ask: Reply) -> Reply:
        host_ns = ask.get("host_ns")
        pressed = host_ns if isinstance(host_ns, int) and not isinstance(host_ns, bool) else None
        return {"pressed_utc_ns": self.synchronizer.pause(_text(ask, "source", "api"), pressed)}

    def _exclude(self, ask: Reply) -> Reply:
        self.synchronizer.exclude(_text(ask, "device", ""))
        return {}

    def _start(self, ask: Reply) -> Reply:
        is_despite = ask.get("despite_calibration") is True
        return {"episode": self.synchronizer.start_when_allowed(is_despite)}

    def _checked(self, ask: Reply) -> Reply:
        self.status.note_checker()
        self.synchronizer.take_check(_CHECK.validate_python(ask.get("message")))
        return {}


def _text(ask: Reply, key: str, default: str) -> str:
    return str(ask.get(key, default))[:1000]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one recorder; exit code 3 when a fault ended capture."""
    (spec_path,) = sys.argv[1:] if argv is None else argv
    spec = SyncSpec.model_validate_json(Path(spec_path).read_text())
    clock = HostClock()
    refused = go_first("the synchronizer", clock)
    with bus_context() as context:
        try:
            # One boundary: where the torn episode of a recorder that died ends, the next one begins.
            read = draw_boundary(spec.spool, spec.run_dir)
            service = SyncService(spec, context, clock)
            service.synchronizer.refused_priority = refused

            stop_on_sigterm(service.stop)
            service.synchronizer.adopt(known_drivers(spec.run_dir), read)
            service.run()
        except SensoriumError as err:
            print(f"synchronizer: {err}", file=sys.stderr)  # noqa: T201 - the supervisor reads it
            return err.exit_code
    return 3 if service.synchronizer.fault else 0


if __name__ == "__main__":
    sys.exit(main())
