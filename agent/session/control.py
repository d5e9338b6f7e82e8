"""How one terminal talks to an agent that another one runs: a request, a reply, both JSON."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zmq

from sensorium.errors import BusyError, SensoriumError, UsageError, VerdictError
from sensorium.timebase import HostClock

AGENT_FILE = "agent.json"
TIMEOUT_MS = 5000
_SLICE_MS = 20
_FREE = frozenset({"status", "pause", "stop", "mark"})
"""Commands that are never signed, so that nothing is loaded for it."""


@dataclass(frozen=True, slots=True)
class AgentNote:
    """Left in the spool by a running agent; tells where to reach it and which processes are its own."""

    pid: int
    session: str
    run_dir: str
    control_endpoint: str
    processes: dict[str, int]

    def save(self, spool: Path) -> None:
        folder = spool / "run"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial = folder / f".{AGENT_FILE}"
        partial.write_text(
            json.dumps(
                {
                    "pid": self.pid,
                    "session": self.session,
                    "run_dir": self.run_dir,
                    "control_endpoint": self.control_endpoint,
                    "processes": self.processes,
                }
            )
        )
        partial.replace(folder / AGENT_FILE)

    @classmethod
    def load(cls, spool: Path) -> "AgentNote | None":
        """Return the note of the agent that runs, or ran last, on this spool."""
        try:
            found = json.loads((spool / "run" / AGENT_FILE).read_text())
            return cls(
                int(found["pid"]),
                str(found["session"]),
                str(found["run_dir"]),
                str(found["control_endpoint"]),
                {str(name): int(pid) for name, pid in found["processes"].items()},
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def alive(self) -> dict[str, int]:
        """Return those of its processes that still run, by name."""
        return {name: pid for name, pid in self.processes.items() if is_of_run(pid, self.run_dir)}

    @staticmethod
    def remove(spool: Path) -> None:
        (spool / "run" / AGENT_FILE).unlink(missing_ok=True)


def is_of_run(pid: int, run_dir: str) -> bool:
    """Return whether a process still is one that was started for this run (pids are reused)."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return False
    return run_dir in command and is_running(pid)


def is_running(pid: int) -> bool:
    """Return whether a process is there and not only waits for its parent to take note of its end."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Requester:
    """A REQ socket that survives an unanswered request: it is opened anew, and the next one may be sent."""

    def __init__(
        self,
        endpoint: str,
        context: zmq.Context[zmq.Socket[bytes]],
        is_served: Callable[[], bool] = lambda: True,
    ) -> None:
        """``is_served`` tells whether somebody may still answer; else nobody is waited for."""
        self._endpoint = endpoint
        self._is_served = is_served
        self._context = context
        self._socket = self._open()

    def _open(self) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.REQ)
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(self._endpoint)
        return socket

    def request(self, message: bytes, timeout_ms: int) -> bytes | None:
        """Return the reply, or None if nobody answered in time."""
        try:
            self._socket.send(message)
            while not self._socket.poll(min(timeout_ms, _SLICE_MS)):
                timeout_ms -= _SLICE_MS
                if timeout_ms <= 0 or not self._is_served():
                    raise zmq.Again
            return self._socket.recv()
        except zmq.ZMQError:
            self._socket.close()
            self._socket = self._open()
            return None

    def close(self) -> None:
        self._socket.close()


class ControlClient(Requester):
    """A connection to one synchronizer's control socket."""

    def ask(self, cmd: str, timeout_ms: int = TIMEOUT_MS, **fields: Any) -> dict[str, Any] | None:
        """Return the reply, or None if nobody answered in time (the synchronizer may be restarting).

        Raises:
            UsageError: If the synchronizer refused; its reason is the message.
            VerdictError: If a verdict stands against what was asked.
        """
        data = self.request(json.dumps({"cmd": cmd, **fields}).encode(), timeout_ms)
        if data is None:
            return None
        reply: dict[str, Any] = json.loads(data)
        if not reply.get("ok"):
            error = VerdictError if reply.get("refused") else UsageError
            raise error(str(reply.get("error", "refused without a reason")))
        return reply


def _signed(ask: dict[str, Any], session: str) -> dict[str, Any]:
    from sensorium.sync.trust.commands import sign_command, widens  # cryptography: not before a press
    from sensorium.sync.trust.keys import Role
    from sensorium.sync.trust.store import signing_key

    return sign_command(ask, session, signing_key(Role.OPERATOR), HostClock()) if widens(ask) else ask


def ask_agent(spool: Path, cmd: str, **fields: Any) -> dict[str, Any]:
    """Send one command to the agent that records into ``spool`` and return its reply.

    What lets more be recorded, or less be kept, is signed by the operator's key, made on first use.

    Raises:
        TrustError: If that key is damaged, readable by others, or cannot be made.
        BusyError: If no agent runs there or it does not answer.
    """
    note = AgentNote.load(spool)
    if note is None:
        raise BusyError(f"no agent records into {spool}; start one with `sensorium record RIG.yaml`")
    if not any(map(is_running, (note.pid, *note.processes.values()))):
        raise BusyError(
            f"the agent of {spool} (process {note.pid}) was killed; `sensorium record RIG.yaml` starts the "
            f"next one, `sensorium episodes recover` only seals what this one recorded"
        )
    ask: dict[str, Any] = {"cmd": cmd, **fields}
    if cmd not in _FREE:
        ask = _signed(ask, note.session)
    with zmq.Context() as context:
        client = ControlClient(note.control_endpoint, context)
        try:
            reply = client.ask(**ask)
        except UsageError as err:
            raise SensoriumError(str(err)) from err
        finally:
            client.close()
    if reply is None:
        raise BusyError(f"the agent of {spool} (process {note.pid}) does not answer; is it still running?")
    return reply
