"""Runs one session, from the first process to the last seal; demo, record and replay are requests to it."""

import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from sensorium.agent.session.checker_spec import CheckerSpec
from sensorium.agent.session.outcome import SessionResult
from sensorium.agent.session.rig import CheckerOptions, CheckOptions, Device, Rig
from sensorium.agent.session.supervisor import Supervisor
from sensorium.drivers.bus.counters import StreamCounts, read_counters
from sensorium.errors import EpisodeError, SensoriumError
from sensorium.sync.episode.spool import Spool
from sensorium.sync.episode.ulid import new_ulid
from sensorium.sync.recording.spec import SessionPlan
from sensorium.sync.thinking.orphans import recover_orphans
from sensorium.sync.trust.keys import Role
from sensorium.sync.trust.store import signing_key
from sensorium.timebase import SECOND_NS, Clock

Status = dict[str, Any]
_TICK_NS = SECOND_NS // 10
_STATUS_NS = SECOND_NS // 4
_ULID_TIME = 10
"""Characters of an episode's id that count its time; the others are by chance."""


@dataclass(frozen=True, slots=True)
class SessionRequest:
    """What to record, where, and for how long.

    Attributes:
        seconds: Stop after so much recorded time, of all episodes together; None = until the sources end or
            somebody stops it.
        checks: Calibration checks beside the recording; None = those that the calibration allows.
        uploads_in_background: Run the uploader process beside the recording.
    """

    devices: tuple[Device, ...]
    spool: Path
    consent: Path
    plan: SessionPlan = field(default_factory=SessionPlan)
    checks: tuple[CheckOptions, ...] | None = ()
    checker: CheckerOptions = field(default_factory=CheckerOptions)
    calibration: Path | None = None
    store: str | None = None
    seconds: float | None = None
    uploads_in_background: bool = False


def request_for(rig: Rig, spool: Path | None, seconds: float | None) -> SessionRequest:
    """Return what a rig file asks to be recorded; ``spool`` overrides the file's."""
    found = rig.document
    base = spool or found.spool or Path("spool")
    episode = found.episode
    return SessionRequest(
        devices=rig.devices,
        spool=base.resolve(),
        consent=(found.consent or base / "consent").resolve(),
        plan=SessionPlan(
            facts=found.facts,
            max_s=episode.max_s,
            max_bytes=episode.max_bytes,
            reference=episode.reference,
            tolerance_ns=int(episode.tolerance_ms * 1e6),
            start=episode.start,
            calibration=found.calibration,
            on_failed_check=found.on_failed_check,
            clocks=found.clocks,
            triggers=found.triggers,
            recorder=found.recorder,
            disk=found.disk,
            pause=found.pause,
            thinking=found.thinking,
        ),
        checks=found.checks,
        checker=found.checker,
        calibration=found.calibration,
        store=found.store,
        seconds=seconds,
        uploads_in_background=found.upload and found.store is not None,
    )


class Companion(Protocol):
    """Looks on while a session records, and ends it when ``is_done``."""

    is_done: bool

    def start(self, sets_endpoint: str, control_endpoint: str) -> None:
        """Called once, when the session's processes have been started."""


def run_session(
    request: SessionRequest,
    clock: Clock,
    show: Callable[[Status], None] = lambda _: None,
    companion: Companion | None = None,
) -> SessionResult:
    """Record until the sources end, ``seconds`` are over, or Ctrl-C, SIGTERM or SIGHUP; then drain and seal.

    A second Ctrl-C ends at once; the next start recovers what was recorded.

    Raises:
        TrustError: If this machine's key cannot sign: nothing is begun.
        SensoriumError: If a required device did not start, capture stopped by itself, or nothing was sealed.
    """
    signing_key(
        Role.DEVICE
    )  # what could not be sealed in the end is not begun: the key may be revoked, or damaged
    supervisor = Supervisor(request.devices, request.spool, request.consent, request.plan, clock)
    begun = new_ulid(clock.utc_ns())
    with _Interrupts(supervisor) as interrupts, supervisor:
        _start_helpers(supervisor, request)
        if companion is not None:
            companion.start(supervisor.sets_endpoint, supervisor.control_endpoint)
        fault = _record(supervisor, request, clock, show, interrupts, companion)
        show({"phase": "sealing"})
        supervisor.stop()
        sealed = supervisor.sealed()
        if Spool(
            request.spool
        ).open_folders():  # a recorder died at the very end; nobody writes there any more
            sealed += [each.row() for each in recover_orphans(request.spool, request.consent)]
        if request.uploads_in_background:
            supervisor.leave_behind(
                "uploader", "sensorium.uploader.service", [*_upload_arguments(request), "--once"]
            )
    episodes = [Path(row["path"]) for row in sealed if row["path"]]
    problems = [f"episode {row['episode']}: {row['error']}" for row in sealed if row["error"]]
    remarks = [f"episode {row['episode']}: {row['remark']}" for row in sealed if row.get("remark")]
    told = {row["episode"] for row in sealed}
    # A thinker that was killed after a seal and before its report; ids sort by time.
    episodes += [
        folder
        for folder in Spool(request.spool).sealed_folders()
        if folder.name >= begun[:_ULID_TIME] and folder.name not in told
    ]
    if fault:
        problems.insert(0, fault)
    if not episodes and not problems:
        problems.append(_why_nothing(supervisor, interrupts.sentence))
    return SessionResult(
        episodes, supervisor.run_dir, [*supervisor.warnings, *remarks], problems, fault=fault
    )


def _why_nothing(supervisor: Supervisor, ended_by: str) -> str:
    """Return what is known about a session that left no episode; it never ends without a sentence.

    Args:
        ended_by: Which signal ended it; "" if none did.
    """
    counters = sorted((supervisor.run_dir / "counters").glob("*.counters"))
    produced = {name for path in counters for name, found in _counts(path).items() if found.next_seq}
    logs = supervisor.run_dir / "logs"
    if not counters:
        return (
            f"nothing was recorded: no device was ready before the session ended{ended_by}; their words are in"
            f" {logs}"
        )
    if not produced:
        return (
            f"nothing was recorded: no device delivered a sample before the session ended{ended_by}; their words"
            f" are in {logs}"
        )
    return (
        f"nothing was recorded although {', '.join(sorted(produced))} delivered samples: no episode was open. "
        f"`episode: {{start: manual}}` waits for `sensorium start`; else see {logs}"
    )


def _counts(path: Path) -> dict[str, StreamCounts]:
    try:
        return read_counters(path)[1]
    except EpisodeError:
        return {}


def _start_helpers(supervisor: Supervisor, request: SessionRequest) -> None:
    if request.checks != () and request.calibration is not None:
        spec = CheckerSpec(
            sets_endpoint=supervisor.sets_endpoint,
            control_endpoint=supervisor.control_endpoint,
            calibration=request.calibration,
            checks=request.checks,
            checker=request.checker,
        )
        path = supervisor.run_dir / "checker.spec.json"
        path.write_text(spec.model_dump_json())
        supervisor.add_helper("checker", "sensorium.agent.calibrating.watching.service", [str(path)])
    if request.uploads_in_background:
        supervisor.add_helper("uploader", "sensorium.uploader.service", _upload_arguments(request))


def _upload_arguments(request: SessionRequest) -> list[str]:
    where = ["--spool", str(request.spool), "--consent", str(request.consent)]
    disk = request.plan.disk
    quota = [] if disk.quota_bytes is None else ["--quota-bytes", str(disk.quota_bytes)]
    limits = ["--reserve-bytes", str(disk.reserve_bytes), "--min-free-bytes", str(disk.min_free_bytes)]
    return [*where, "--store", request.store or "", *quota, *limits]


def _record(
    supervisor: Supervisor,
    request: SessionRequest,
    clock: Clock,
    show: Callable[[Status], None],
    interrupts: "_Interrupts",
    companion: Companion | None,
) -> str:
    """Watch the session until it is over; return why capture stopped by itself, "" otherwise."""
    next_status_ns = 0
    recorded = _RecordedTime()
    while supervisor.step() and not interrupts.count and not (companion is not None and companion.is_done):
        now_ns = clock.now_ns()
        if now_ns >= next_status_ns:
            next_status_ns = now_ns + _STATUS_NS
            status = supervisor.ask("status", timeout_ms=1000)
            if status is not None:
                status = {**status, "warnings": [*status["warnings"], *_withheld(status)]}
                show({"phase": "recording", **status})
                _keep_warnings(supervisor, status)
                if status["fault"]:
                    return str(status["fault"])
                if request.seconds is not None and status["refused"]:
                    supervisor.warnings.append(status["refused"])  # nobody is there to decide
                    return ""
                if request.seconds is not None and recorded.seconds(status) >= request.seconds:
                    return ""
        supervisor.wait(_TICK_NS)
    return ""


class _RecordedTime:
    """Adds up the episodes of a session, each of which counts its time from its own beginning."""

    def __init__(self) -> None:
        self._episode: str | None = None
        self._open_s = 0.0
        self._before_s = 0.0

    def seconds(self, status: Status) -> float:
        """Return how much was recorded up to this status; of each ended episode, what its last status said."""
        if status["episode"] != self._episode:
            self._episode = status["episode"]
            self._before_s += self._open_s
        self._open_s = float(status["recorded_s"])
        return self._before_s + self._open_s


def _withheld(status: Status) -> list[str]:
    """Return what is withheld for want of a grant, with the command that changes it; a pause is meant to."""
    if status["paused"] or not status["allowed_by"]:
        return []
    names = ", ".join(name for name, stream in status["streams"].items() if stream["withheld"])
    return [f"WITHHELD for want of a grant: {names}; {'; '.join(status['allowed_by'])}"]


def _keep_warnings(supervisor: Supervisor, status: Status) -> None:
    """Let what the recorder warned of stand in the result, too."""
    for warning in status["warnings"]:
        if warning not in supervisor.warnings:
            supervisor.warnings.append(warning)


class _Interrupts:
    """Counts Ctrl-C, SIGTERM and SIGHUP; the second one kills the session's processes."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.count = 0
        self.sentence = ""
        self._supervisor = supervisor
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "_Interrupts":
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                continue  # nohup: to go on without the terminal is what was asked for
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self.count += 1
        self.sentence = f" by {signal.Signals(number).name}"
        if self.count > 1:
            self._supervisor.kill()
            raise SensoriumError("ended at once; the next start recovers what was recorded")
