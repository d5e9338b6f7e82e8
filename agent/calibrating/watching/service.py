"""The checker: asks the synchronizer for aligned sets, judges pairs, stays within its share of the processor.

Run by the supervisor as ``python -m sensorium.agent.calibrating.watching.service SPEC.json``. It sees recorded
frames only, never the lossy live plane, and it can be killed at any time: recording does not wait for it.
"""

import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import cv2
import zmq
from pydantic import TypeAdapter

from sensorium.agent.calibrating.watching.attribution import Attribution
from sensorium.agent.calibrating.watching.budget import CpuBudget
from sensorium.agent.calibrating.watching.plan import Planned, plan_checks
from sensorium.agent.calibrating.watching.watch import ALARM, UNREADABLE, Watch, new_watch
from sensorium.agent.session.checker_spec import CheckerSpec
from sensorium.agent.session.control import ControlClient, Requester
from sensorium.calibration.rig_document import RigCalibration
from sensorium.drivers.frame import StreamInfo
from sensorium.errors import SensoriumError, UsageError
from sensorium.priority import give_way
from sensorium.stopping import end_with_parent
from sensorium.sync.recording.check_book import CheckerReport, CheckMessage, PlannedCheck
from sensorium.sync.recording.judged import JudgedWindow
from sensorium.sync.thinking.set_messages import unpack_set
from sensorium.sync.thinking.sets import AlignedSet, SetRequest
from sensorium.timebase import SECOND_NS, Clock, HostClock, process_cpu_ns

NICENESS = 5
PLAN_NS = 10 * SECOND_NS
REPORT_NS = 2 * SECOND_NS
_IDLE_NS = SECOND_NS // 4
_ANSWER_MS = 8_000
_INFO: TypeAdapter[StreamInfo] = TypeAdapter(StreamInfo)
_REQUEST: TypeAdapter[SetRequest] = TypeAdapter(SetRequest)
_MESSAGE: TypeAdapter[CheckMessage] = TypeAdapter(CheckMessage)


class SetClient(Requester):
    """Asks for aligned sets, one at a time."""

    def ask(self, request: SetRequest) -> AlignedSet | str:
        """Return the next aligned set of these streams, or why there is none."""
        data = self.request(_REQUEST.dump_json(request), _ANSWER_MS)
        return "the synchronizer does not answer" if data is None else unpack_set(data)


@dataclass(slots=True)
class Job:
    """A watch with its place in the queue and what its work costs (processor time, ns).

    Attributes:
        since_ns: When the last result was out.
        is_postponed: Some of the work for the next one waited for the share of the processor.
        took_s: How long the last result took, if that was too long because of it; else 0.
    """

    watch: Watch[Any]
    due_ns: int
    is_hurried: bool = False
    since_ns: int = 0
    is_postponed: bool = False
    took_s: float = 0.0
    spent_ns: int = 0
    result_ns: int | None = None
    cost_ns: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self.cost_ns = {work: int(cost_s * SECOND_NS) for work, cost_s in self.watch.first_cost_s.items()}

    @property
    def work(self) -> str:
        return "judge" if self.watch.is_full else "take"

    def charge(self, work: str, used_ns: int) -> None:
        self.spent_ns += used_ns
        self.cost_ns[work] = (self.cost_ns[work] + used_ns) // 2

    def finish(self, now_ns: int) -> None:
        """Note that a result is out: what was spent on it is its cost."""
        self.result_ns = self.spent_ns if self.result_ns is None else (self.result_ns + self.spent_ns) // 2
        self.spent_ns = 0
        took_s = (now_ns - self.since_ns) / SECOND_NS
        self.took_s = took_s if self.is_postponed and took_s > 1.5 * self.watch.plan.every_s else 0.0
        self.since_ns, self.is_postponed = now_ns, False


def next_job(jobs: Sequence[Job], now_ns: int, ask_ns: int) -> Job | None:
    """Return the most overdue job; a patient one only in the gaps of the others, or after twice its period.

    Args:
        ask_ns: What it takes until a set comes: up to a second, and there is one request at a time.
    """

    def first(is_patient: bool) -> Job | None:
        found = (job for job in jobs if job.watch.is_patient is is_patient)
        return min(found, key=lambda each: each.due_ns, default=None)

    usual, patient = first(False), first(True)
    if usual is None or patient is None:
        return usual or patient
    if patient.due_ns > now_ns:
        return min(usual, patient, key=lambda each: each.due_ns)
    has_gap = usual.due_ns >= now_ns + ask_ns
    is_starved = now_ns - patient.due_ns > 2 * patient.watch.plan.every_s * SECOND_NS
    return patient if has_gap or is_starved else usual


class Checker:
    """Runs the checks that are planned, the most overdue first, and says how it is doing."""

    def __init__(
        self,
        spec: CheckerSpec,
        sets: SetClient,
        control: ControlClient,
        clock: Clock,
        used_ns: Callable[[], int] = process_cpu_ns,
    ) -> None:
        self._spec = spec
        self._sets, self._control = sets, control
        self._clock, self._used_ns = clock, used_ns
        self._calibration = RigCalibration.load(spec.calibration)
        options = spec.checker
        self._budget = CpuBudget(options.cpu_share, options.over_s, used_ns, clock.now_ns())
        self._jobs: list[Job] = []
        self._refused: list[Planned] = []
        self._known: frozenset[str] = frozenset()
        self._attribution = Attribution()
        self._plan_ns = 0
        self._report_ns = 0
        self._ask_ns = SECOND_NS // 2
        """What it takes lately until a set comes."""
        self._unsent: list[CheckMessage] = []

    def step(self) -> None:
        """Plan anew when it is time, then do one piece of work or wait a little.

        Raises:
            SensoriumError: If the agent that is asked for streams does not answer.
        """
        now_ns = self._clock.now_ns()
        if now_ns >= self._plan_ns:
            self._plan(now_ns)
        if now_ns >= self._report_ns:
            self._report("", ())
        job = next_job(self._jobs, now_ns, self._ask_ns)
        if job is None:
            self._clock.sleep_until(now_ns + _IDLE_NS)
            return
        # What fits may be less overdue than what does not; the order stays, so that nobody starves.
        free_ns = self._budget.free_at(job.cost_ns[job.work], now_ns)
        job.is_postponed |= free_ns > max(job.due_ns, now_ns)
        start_ns = max(job.due_ns, free_ns)
        if start_ns > now_ns:
            self._clock.sleep_until(min(start_ns, now_ns + _IDLE_NS))
            return
        self._work(job)

    def run(self) -> None:
        while True:
            self.step()

    def _plan(self, now_ns: int) -> None:
        reply = self._control.ask("streams")
        # Devices declare themselves one by one; a plan holds until another stream is known.
        self._plan_ns = now_ns + (PLAN_NS if self._jobs else _IDLE_NS)
        if reply is None or reply["episode"] is None:
            return
        self._plan_ns = now_ns + PLAN_NS
        infos = [_INFO.validate_python(found) for found in reply["streams"]]
        names = frozenset(info.name for info in infos)
        if names == self._known:
            return
        self._known = names
        planned = plan_checks(self._spec.checks, self._calibration, infos)
        self._refused = [plan for plan in planned if plan.problem]
        known = {job.watch.plan: job for job in self._jobs}
        fresh = [plan for plan in planned if not plan.problem]
        self._jobs = [
            known.get(plan)
            or Job(
                new_watch(plan, self._calibration),
                now_ns + index * SECOND_NS // max(len(fresh), 1),
                since_ns=now_ns,
            )
            for index, plan in enumerate(fresh)
        ]
        origin = (
            "of the rig file" if self._spec.checks is not None else "from the calibration and the streams"
        )
        listed = "; ".join(f"{plan.check} {plan.subject} every {plan.every_s:g} s" for plan in fresh)
        _log(f"checks {origin}: {listed or 'none'}; `checks: []` turns them off")
        for plan in self._refused:
            _log(f"{plan.check} {plan.subject}: {plan.problem}")

    def _work(self, job: Job) -> None:
        """Take one set or judge one window."""
        work, before_ns = job.work, self._used_ns()
        was_alarmed = job.watch.latest is not None and job.watch.latest.verdict.status in ALARM
        window = self._judged(job) if work == "judge" else self._taken(job)
        now_ns = self._clock.now_ns()
        job.charge(work, self._used_ns() - before_ns)
        self._budget.note(now_ns)
        if window is None:
            return
        job.finish(now_ns)
        job.is_hurried = False
        named = self._attribution.verdict((each.watch for each in self._jobs), job.watch)
        if window.verdict.status in ALARM and not was_alarmed:
            self._hurry(job, now_ns)
        self._report(job.watch.episode, (window,) if named is None else (window, named))

    def _taken(self, job: Job) -> JudgedWindow | None:
        watch = job.watch
        asked_ns = self._clock.now_ns()
        found = self._sets.ask(watch.request)
        now_ns = self._clock.now_ns()
        self._ask_ns = (self._ask_ns + now_ns - asked_ns) // 2
        job.due_ns = now_ns + watch.step_ns(job.is_hurried)
        if isinstance(found, str):
            watch.fail(found)
            job.due_ns = max(job.due_ns, now_ns + 2 * SECOND_NS)
            return None
        watch.take(found)
        if watch.is_full:
            job.due_ns = now_ns
            return None
        return watch.due_verdict()

    def _judged(self, job: Job) -> JudgedWindow | None:
        watch = job.watch
        job.due_ns = self._clock.now_ns() + watch.step_ns(job.is_hurried)
        try:
            return watch.due_verdict()
        except UNREADABLE as err:
            return watch.unjudged((f"could not be judged: {' '.join(str(err).split())}",))

    def _hurry(self, alarmed: Job, now_ns: int) -> None:
        """Look sooner at the pairs that share a sensor with one in alarm: together they tell which one moved."""
        for job in self._jobs:
            shared = set(job.watch.plan.frames) & set(alarmed.watch.plan.frames)
            if job is not alarmed and shared and not job.is_hurried:
                job.is_hurried = True
                job.due_ns = min(job.due_ns, now_ns + job.watch.gap_ns)
        alarmed.is_hurried = True

    # -- what is said

    def _report(self, episode: str, windows: Sequence[JudgedWindow]) -> None:
        now_ns = self._clock.now_ns()
        self._report_ns = now_ns + REPORT_NS
        self._unsent.append(CheckMessage(episode, tuple(windows), self._state(now_ns)))
        while self._unsent:
            message = self._unsent[0]
            try:
                reply = self._control.ask("checked", message=_MESSAGE.dump_python(message, mode="json"))
            except UsageError as err:
                _log(f"a verdict was refused: {err}")
                reply = {}
            if reply is None and windows:
                return  # the synchronizer is away; its successor will hear it
            self._unsent.pop(0)

    def _state(self, now_ns: int) -> CheckerReport:
        late = [job for job in self._jobs if job.due_ns < now_ns]
        overdue_s = max((now_ns - job.due_ns for job in late), default=0) / SECOND_NS
        planned = [self._row(job) for job in self._jobs]
        planned += [
            PlannedCheck(plan.check, plan.subject, plan.every_s, note=plan.problem) for plan in self._refused
        ]
        return CheckerReport(self._budget.share, self._budget.used(now_ns), overdue_s, tuple(planned))

    def _row(self, job: Job) -> PlannedCheck:
        watch = job.watch
        note = watch.note
        if not note and job.took_s:
            note = (
                f"a result took {job.took_s:.0f} s instead of {watch.plan.every_s:g} s: the checks may use "
                f"{self._budget.share:.0%} of a core (checker: cpu_share)"
            )
        is_optional = watch.is_opportune and self._spec.checks is None
        cost_s = None if job.result_ns is None else job.result_ns / SECOND_NS
        return PlannedCheck(
            watch.plan.check, watch.plan.subject, watch.plan.every_s, cost_s, note, is_optional
        )


def _log(text: str) -> None:
    print(f"checker: {text}", file=sys.stderr)  # noqa: T201 - the supervisor reads it


def main(argv: Sequence[str] | None = None) -> int:
    """Run the checker until it is told to stop."""
    (spec_path,) = sys.argv[1:] if argv is None else argv
    spec = CheckerSpec.model_validate_json(Path(spec_path).read_text())
    give_way(NICENESS, HostClock())
    cv2.setNumThreads(1)
    with zmq.Context() as context:
        try:
            sets = SetClient(spec.sets_endpoint, context)
            control = ControlClient(spec.control_endpoint, context)
            checker = Checker(spec, sets, control, HostClock())

            def stop(_signal: int, _frame: FrameType | None) -> None:
                sys.exit(0)  # nothing to save

            signal.signal(signal.SIGTERM, stop)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            end_with_parent()
            checker.run()
        except SensoriumError as err:
            _log(str(err))
            return err.exit_code
        except SystemExit:
            context.destroy(linger=0)
            raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
