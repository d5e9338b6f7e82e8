"""Starts, watches, restarts and stops the processes of a recording session.

The processes share sockets and the spool, nothing else. A driver that dies is restarted with backoff while
the others record on; a synchronizer or thinker that dies is restarted at once, and what was left open is sealed.
"""

import contextlib
import json
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zmq

from sensorium.agent.session.control import AgentNote, ControlClient, is_of_run
from sensorium.agent.session.memory_folder import bring_home, clear_up, make_memory_folder
from sensorium.agent.session.rig import Device
from sensorium.agent.session.secret_options import standard_input, without_secrets
from sensorium.drivers.bus.wire import device_token
from sensorium.errors import DeviceError, SensoriumError
from sensorium.priority import let_go_first
from sensorium.stopping import PARENT_KEY, sigterm_held
from sensorium.sync.episode.spool import Spool
from sensorium.sync.recording.boundary import SOCKETS_PREFIX, freeze_boundary, remove_sockets
from sensorium.sync.recording.spec import SessionPlan, SyncSpec
from sensorium.sync.thinking.sealed import SEALED_FILE
from sensorium.timebase import SECOND_NS, Clock

FIRST_BACKOFF_NS = SECOND_NS // 2
LONGEST_BACKOFF_NS = 30 * SECOND_NS
HEALTHY_NS = 10 * SECOND_NS
MAX_SYNCHRONIZER_DEATHS = 5
STOP_DRIVERS_NS = 8 * SECOND_NS
STOP_SYNCHRONIZER_NS = 120 * SECOND_NS
STOP_THINKER_NS = 600 * SECOND_NS
STOP_HELPERS_NS = 5 * SECOND_NS
_TICK_NS = SECOND_NS // 20
_SOCKETS = ("bus", "control", "notes", "sets", "live")

_SAYS_WHY = (2, 3)
"""Exit codes of a process that could not work and said so: starting it again would not help."""

_ENDED_LAST = {"synchronizer": 1, "thinker": 2}
_PATIENCE_NS = {"synchronizer": STOP_SYNCHRONIZER_NS, "thinker": STOP_THINKER_NS}

# Held ZeroMQ frames make glibc map and unmap every payload otherwise (specs/performance.md 3c).
_CHILD_ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 26),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 27),
    "MALLOC_ARENA_MAX": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONUNBUFFERED": "1",
    "PYTHONFAULTHANDLER": "1",
}


@dataclass(slots=True)
class Child:
    """One process of the session, and what to do when it ends.

    Attributes:
        holds_sigterm: It has something to save and keeps a SIGTERM until it can.
        outlives: It is not to know whose child it is: it goes on when this process ends.
        told: What it reads from standard input: what no file and no process list may show.
    """

    name: str
    module: str
    arguments: tuple[str, ...]
    holds_sigterm: bool = False
    outlives: bool = False
    told: bytes = b""
    process: subprocess.Popen[bytes] | None = None
    started_ns: int = 0
    backoff_ns: int = FIRST_BACKOFF_NS
    restart_at_ns: int | None = None
    restarts: int = 0
    is_finished: bool = False
    last_error: str = ""


class Supervisor:
    """One recording session. Use as a context manager: leaving it stops every process."""

    def __init__(
        self, devices: Sequence[Device], spool: Path, consent: Path, plan: SessionPlan, clock: Clock
    ) -> None:
        self.devices = tuple(devices)
        self.spool = spool.resolve()
        self.session = secrets.token_hex(4)
        self.run_dir = self.spool / "run" / self.session
        self._secret = secrets.token_hex(32)
        self._consent = consent
        self._plan = plan
        self.warnings: list[str] = []
        self._clock = clock
        self._stack = ExitStack()
        self._drivers: dict[str, Child] = {}
        self._helpers: dict[str, Child] = {}
        self._synchronizer: Child | None = None
        self._thinker: Child | None = None
        self._control: ControlClient | None = None
        self._endpoints: dict[str, str] = {}
        self._is_stopped = False
        self._is_noted = False

    # -- beginning

    def __enter__(self) -> "Supervisor":
        with ExitStack() as stack:
            stack.enter_context(Spool(self.spool).lock())
            self.warnings += end_survivors(self.spool, self._clock)
            self.warnings += clear_up(self.spool, self._clock)
            sockets = Path(tempfile.mkdtemp(prefix=SOCKETS_PREFIX))  # ipc paths are limited to 107 bytes
            stack.callback(shutil.rmtree, sockets, ignore_errors=True)
            self._endpoints = {name: f"ipc://{sockets}/{name}" for name in _SOCKETS}
            (self.run_dir / "logs").mkdir(mode=0o700, parents=True)
            self._warn(make_memory_folder(self.run_dir))
            stack.callback(lambda: self._warn(bring_home(self.run_dir)))
            context = stack.enter_context(zmq.Context())
            self._control = ControlClient(self._endpoints["control"], context, self._is_recording)
            stack.callback(self._control.close)
            stack.callback(self.kill)
            self._stack = stack.pop_all()
        try:
            self._start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()
        AgentNote.remove(self.spool)

    def _warn(self, problem: str) -> None:
        if problem:
            self.warnings.append(problem)

    def _start(self) -> None:
        spec = self._sync_spec()
        self._synchronizer = self._child("synchronizer", "sensorium.sync.recording.service", spec)
        self._spawn(self._synchronizer)
        self._thinker = self._child("thinker", "sensorium.sync.thinking.service", spec)
        self._spawn(self._thinker)
        for device in self.devices:
            spec = {
                "name": device.name,
                "driver": device.driver,
                "options": dict(device.options),
                "endpoint": self._endpoints["bus"],
                "run_dir": str(self.run_dir),
                "host_id": os.uname().nodename,
                "codec": device.codec,
                "batch_ms": self._plan.recorder.batch_ms,
                "token": device_token(self._secret, device.name),
            }
            child = self._driver_child(device, spec)
            self._drivers[device.name] = child
            self._spawn(child)

    def _sync_spec(self) -> dict[str, Any]:
        spec = SyncSpec(
            **{name: getattr(self._plan, name) for name in SessionPlan.model_fields},
            spool=self.spool,
            run_dir=self.run_dir,
            bus_endpoint=self._endpoints["bus"],
            control_endpoint=self._endpoints["control"],
            notes_endpoint=self._endpoints["notes"],
            sets_endpoint=self._endpoints["sets"],
            live_endpoint=self._endpoints["live"],
            host_id=os.uname().nodename,
            devices=tuple(device.name for device in self.devices),
            consent=self._consent,
            bus_secret=self._secret,
        )
        found: dict[str, Any] = json.loads(spec.model_dump_json())
        return found

    def add_helper(self, name: str, module: str, arguments: Sequence[str]) -> None:
        """Start a process that recording does not depend on (checker, uploader); restarted like a driver."""
        child = Child(name, module, tuple(arguments))
        self._helpers[name] = child
        self._spawn(child)

    def leave_behind(self, name: str, module: str, arguments: Sequence[str]) -> None:
        """Start a process that goes on when this one ends, such as the upload of the last episode."""
        child = Child(name, module, tuple(arguments), outlives=True)
        self._spawn(child)
        child.process = None

    @property
    def sets_endpoint(self) -> str:
        return self._endpoints["sets"]

    @property
    def control_endpoint(self) -> str:
        return self._endpoints["control"]

    def _child(self, name: str, module: str, spec: Mapping[str, Any]) -> Child:
        path = self.run_dir / f"{name}.spec.json"
        with open(path, "x", opener=_private) as file:  # it holds what lets a process onto the bus
            json.dump(spec, file)
        return Child(name, module, (str(path),), holds_sigterm=True)

    def _driver_child(self, device: Device, spec: Mapping[str, Any]) -> Child:
        shown, told = without_secrets(spec)
        child = self._child(device.name, "sensorium.drivers.host", shown)
        child.told = told
        return child

    def _spawn(self, child: Child) -> None:
        log = (self.run_dir / "logs" / f"{child.name}.log").open("ab")
        held = sigterm_held() if child.holds_sigterm else contextlib.nullcontext()
        with log, standard_input(child.told) as told, held:
            child.process = subprocess.Popen(
                [sys.executable, "-m", child.module, *child.arguments],
                stdin=told,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C in the terminal is ours to handle
                env={
                    **os.environ,
                    **_CHILD_ENVIRONMENT,
                    **({} if child.outlives else {PARENT_KEY: str(os.getpid())}),
                },
            )
        if child is self._synchronizer:
            let_go_first(child.process.pid)
        child.started_ns = self._clock.now_ns()
        child.restart_at_ns = None
        self._save_note()

    def _save_note(self) -> None:
        control = self._endpoints["control"]
        note = AgentNote(os.getpid(), self.session, str(self.run_dir), control, self.pids())
        try:
            note.save(self.spool)
        except OSError:
            if not self._is_noted:
                raise
            # A disk that has just filled up ends capture in order, not a process that was replaced meanwhile. The note
            # before this one stays.
        self._is_noted = True

    def _children(self) -> list[Child]:
        first = [child for child in (self._synchronizer, self._thinker) if child is not None]
        return [*first, *self._drivers.values(), *self._helpers.values()]

    # -- while it runs

    def step(self) -> bool:
        """Look after the processes; False once every source has ended or capture stopped by itself.

        Raises:
            DeviceError: If a required device failed before it ever recorded.
            SensoriumError: If the synchronizer keeps dying, or the spool's disk is gone.
        """
        self._check_disk()
        now_ns = self._clock.now_ns()
        for child in self._drivers.values():
            self._watch_driver(child, now_ns)
        for child in self._helpers.values():
            self._watch_restartable(child, now_ns)
        self._watch_synchronizer()
        self._watch_thinker(now_ns)
        return not all(child.is_finished for child in self._drivers.values())

    def _check_disk(self) -> None:
        try:
            self.run_dir.stat()
        except OSError as err:
            raise SensoriumError(
                f"the disk of spool {self.spool} is gone: {self.run_dir} is not there any more ({err.strerror}); was "
                "it unmounted or unplugged? What was recorded until then lies on it: mount it again, then "
                f"`sensorium episodes recover --spool {self.spool}`, or record on, which recovers it too"
            ) from err

    def _watch_driver(self, child: Child, now_ns: int) -> None:
        code = _exit_code(child)
        if code == 0 and not child.is_finished:
            child.is_finished = True
            child.process = None
        elif code is not None:
            self._note_death(child, code)
            device = next(device for device in self.devices if device.name == child.name)
            if child.restarts == 0 and not self._has_declared(child.name):
                if device.config.required:
                    reason = child.last_error.removeprefix(f"{child.name}: ")
                    raise DeviceError(f"device {child.name} did not start: {reason}")
                self.ask("exclude", device=child.name)
            self._schedule(child, now_ns)
        self._restart_when_due(child, now_ns)

    def _watch_restartable(self, child: Child, now_ns: int) -> None:
        code = _exit_code(child)
        if code == 0:
            child.is_finished = True
            child.process = None
        elif code is not None:
            self._note_death(child, code)
            self._schedule(child, now_ns)
        self._restart_when_due(child, now_ns)

    def _watch_synchronizer(self) -> None:
        """Replace a synchronizer that died, at once, unless it said that it cannot work."""
        child = self._synchronizer
        assert child is not None
        code = _exit_code(child)
        if code is None:
            return
        self._note_death(child, code)
        if code in _SAYS_WHY:
            raise SensoriumError(child.last_error)
        with contextlib.suppress(OSError):  # a full disk: the next recorder draws it, a little later
            freeze_boundary(self.spool)
        child.restarts += 1
        if child.restarts > MAX_SYNCHRONIZER_DEATHS:
            raise SensoriumError(f"the synchronizer died {child.restarts} times: {child.last_error}")
        self._spawn(child)

    def _watch_thinker(self, now_ns: int) -> None:
        """Replace a thinker that died; recording goes on without it, however often that happens."""
        child = self._thinker
        assert child is not None
        code = _exit_code(child)
        if code is not None:
            self._note_death(child, code)
            if code in _SAYS_WHY and child.restarts == 0:
                raise SensoriumError(child.last_error)
            self._schedule(child, now_ns)
        self._restart_when_due(child, now_ns)

    def _note_death(self, child: Child, code: int) -> None:
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        child.last_error = _last_line(self.run_dir / "logs" / f"{child.name}.log") or f"{child.name} {how}"
        child.process = None
        self.warnings.append(f"{child.name} {how}: {child.last_error}")

    def _schedule(self, child: Child, now_ns: int) -> None:
        if now_ns - child.started_ns > HEALTHY_NS:
            child.backoff_ns = FIRST_BACKOFF_NS
        child.restart_at_ns = now_ns + child.backoff_ns
        child.backoff_ns = min(2 * child.backoff_ns, LONGEST_BACKOFF_NS)

    def _restart_when_due(self, child: Child, now_ns: int) -> None:
        if child.restart_at_ns is not None and now_ns >= child.restart_at_ns:
            child.restarts += 1
            self._spawn(child)

    def _has_declared(self, device: str) -> bool:
        reply = self.ask("status")
        return reply is None or device in reply["devices"]

    def _is_recording(self) -> bool:
        return self._synchronizer is not None and _exit_code(self._synchronizer) is None

    def wait(self, wait_ns: int) -> None:
        """Let time pass, less of it if the synchronizer dies: the drivers' credit lasts for a second."""
        child = self._synchronizer
        descriptor = death_of(child.process.pid) if child is not None and child.process is not None else None
        if descriptor is None:
            self._clock.sleep_until(self._clock.now_ns() + wait_ns)
            return
        try:
            select.select([descriptor], [], [], wait_ns / SECOND_NS)
        finally:
            os.close(descriptor)

    def ask(self, cmd: str, **fields: Any) -> dict[str, Any] | None:
        """Send a command to the synchronizer; None while it does not answer."""
        assert self._control is not None
        return self._control.ask(cmd, **fields)

    def pids(self) -> dict[str, int]:
        """Return the process ids of what is running, by name."""
        return {child.name: child.process.pid for child in self._children() if child.process is not None}

    # -- the end

    def stop(self) -> None:
        """End the session: drivers first, then the synchronizer drains, the thinker seals, then the helpers."""
        if self._is_stopped:
            return
        self._is_stopped = True
        for child in self._drivers.values():
            child.restart_at_ns = None
        self._end(self._drivers.values(), STOP_DRIVERS_NS)
        if self._synchronizer is not None:
            self._end([self._synchronizer], STOP_SYNCHRONIZER_NS)
        self._end_thinker()
        self._end(self._helpers.values(), STOP_HELPERS_NS)

    def _end_thinker(self) -> None:
        """Let the thinker seal all that is closed; one that dies over it is replaced once."""
        child = self._thinker
        if child is None:
            return
        for _ in range(2):
            if _exit_code(child) is not None or child.process is None:
                self._spawn(child)
            self._end([child], STOP_THINKER_NS)
            if child.process is not None and child.process.returncode == 0:
                return

    def _end(self, children: Any, patience_ns: int) -> None:
        waiting = [child for child in children if child.process is not None]
        for child in waiting:
            child.process.terminate()
        deadline_ns = self._clock.now_ns() + patience_ns
        while waiting:
            waiting = [child for child in waiting if _exit_code(child) is None]
            if waiting and self._clock.now_ns() > deadline_ns:
                for child in waiting:
                    self.warnings.append(
                        f"{child.name} did not end in {patience_ns // SECOND_NS} s and was killed"
                    )
                    child.process.kill()
                deadline_ns += SECOND_NS
            if waiting:
                self._clock.sleep_until(self._clock.now_ns() + _TICK_NS // 5)

    def kill(self) -> None:
        """End every process at once; what was recorded is recovered by the next start."""
        for child in self._children():
            if child.process is not None and child.process.poll() is None:
                child.process.kill()
                child.process.wait()

    def sealed(self) -> list[dict[str, str]]:
        """Return what the synchronizers of this session have sealed so far: episode, path, error."""
        path = self.run_dir / SEALED_FILE
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text().splitlines()]


def end_survivors(spool: Path, clock: Clock) -> list[str]:
    """End what an agent that was killed left running, and say what; the caller owns the spool.

    Drivers first, so that the synchronizer hears their last word; the thinker seals what that one closed.
    """
    note = AgentNote.load(spool)
    if note is None:
        return []
    ended = []
    alive = note.alive()
    for name in sorted(alive, key=lambda name: _ENDED_LAST.get(name, 0)):
        pid = alive[name]
        ended.append(f"ended {name} (process {pid}), left over from an agent that was killed")
        patience_ns = _PATIENCE_NS.get(name, STOP_DRIVERS_NS)
        deadline_ns = clock.now_ns() + patience_ns
        _signal(pid, signal.SIGTERM)
        while is_of_run(pid, note.run_dir):
            if clock.now_ns() > deadline_ns:
                _signal(pid, signal.SIGKILL)
                deadline_ns += SECOND_NS
            clock.sleep_until(clock.now_ns() + _TICK_NS)
    remove_sockets(note.control_endpoint)
    return ended


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def death_of(pid: int) -> int | None:
    """Return a descriptor that can be read once a process is dead; None where it is gone for good, or unsupported."""
    try:
        return os.pidfd_open(pid) if hasattr(os, "pidfd_open") else None
    except ProcessLookupError:  # it ended by itself, and was reaped
        return None


def _exit_code(child: Child) -> int | None:
    """Return the exit code of a child that has ended, None while it runs or is not started."""
    return child.process.poll() if child.process is not None else None


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1][:500] if lines else ""
