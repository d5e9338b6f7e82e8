"""What PTP is worth: the lock rule, holdover, a new epoch for every lock, verdicts.

After a grandmaster has died, a slave-only ptp4l goes on reporting it as present, with its last offset; only
the port state and the ingress time tell (measured, linuxptp 3.1). So nothing here trusts ``gmPresent``.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from sensorium.errors import ClockError
from sensorium.sync.clocks.model import ClockModel, Uncertainty
from sensorium.sync.clocks.ptp_management import PortState, PtpClient, PtpReading
from sensorium.sync.clocks.ptp_story import (
    HostUtc,
    LocalReading,
    Story,
    changed_properties,
    vouched_best,
    why_not_vouched,
)
from sensorium.timebase import SECOND_NS, Clock
from sensorium.verdict import Quantity, Status, Verdict

POLL_NS = SECOND_NS
SOFTWARE_STAMP_NS = 1_000.0
"""What software stamps add however steady they look: the way from the wire to the kernel is not in them."""
SOFTWARE_JITTER_NS, HARDWARE_JITTER_NS = 1_000.0, 50.0
"""What a single offset is taken to scatter by, worth one reading (specs/clocks.md 4: software p99 1.4 us)."""
HARDWARE_STAMP_NS = 8.0
"""Resolution of a network card's stamps: one tick of its 125 MHz clock."""
_REPEATS_FOR_NS = 3 * SECOND_NS
"""How long after a loss an old offset may be repeated; after that, equal ones are a coincidence."""
_SIGMA_PER_MAD = 1.4826
_LATEST = 32
"""Of a lock's offsets, those that tell the scatter: with the median, not a servo that was still finding its way."""
_ENOUGH_TO_KNOW = 8
"""Offsets of a lock that tell how much exchanges scatter on this machine and this network."""
_T_95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23)
"""Two-sided 95 % of Student's t for 1 to 10 degrees of freedom."""


@dataclass(frozen=True, slots=True)
class PtpPolicy:
    """When PTP counts as locked.

    Attributes:
        is_free_running: ptp4l only measures (``free_running 1``) and its port stays UNCALIBRATED; the offset
            is then used, not bounded.
        is_master: This host is the master of its devices (the usual set-up for one LiDAR): its clock is PTP time.
        offset_limit_ns: Largest offset of a locked clock.
        sync_intervals: So many without a sync, and the lock is lost.
        holdover_per_ns: How fast the clock may run off without a master (crystals: 2e-7 ... 1e-5).
        is_software: ptp4l stamps in the kernel, on REALTIME; otherwise in a network card.
    """

    is_free_running: bool = False
    is_master: bool = False
    offset_limit_ns: int = 100_000
    sync_intervals: float = 3.0
    holdover_per_ns: float = 1e-5
    is_software: bool = True


class PtpEventKind(str, Enum):
    LOCKED = "locked"
    LOST = "lost"
    GRANDMASTER = "grandmaster"
    STEP = "step"
    PROPERTY = "property"


@dataclass(frozen=True, slots=True)
class PtpEvent:
    """Something that happened to the PTP clock; ``detail`` is a sentence with numbers."""

    kind: PtpEventKind
    host_ns: int
    detail: str


@dataclass(frozen=True, slots=True)
class PtpStatus:
    """What PTP is worth now.

    Attributes:
        epoch: Counts locks and steps of PTP time; nothing is carried from one to the next.
        offset_ns: Local minus master clock, newest accepted.
        uncertainty: Statistical = 99 % of the offsets' scatter, plus holdover; floor = what few readings and
            the stamps themselves add; asymmetry = the whole path delay, the most that an unequal path can
            hide, and ``apart_ns``. None before the first lock.
        reading: The newest one, accepted or not.
        apart_ns: How far what PTP says of UTC is from what else is known; 0.0 = nothing contradicts it.
        doubt: A sentence on that; "" without one.
        on_wire: The uncertainty of PTP time as it is on the wire, right or wrong: for what follows the same
            grandmaster.
        ptp_minus_told_ns: PTP time minus (local clock - offset): TAI - UTC where ptp4l has taken that off.
    """

    is_locked: bool
    epoch: int
    offset_ns: int
    uncertainty: Uncertainty | None
    verdict: Verdict
    reading: PtpReading | None
    apart_ns: float = 0.0
    doubt: str = ""
    on_wire: Uncertainty | None = None
    ptp_minus_told_ns: int = 0


class PtpTracker:
    """Judges one reading (or one failure to get one) after another; pure and deterministic.

    Args:
        subject: What the verdicts are about, such as the host's name.
        phc_bracket_ns: Bracket of the reads that tie the PTP hardware clock to the host; 0 without one.

    Attributes:
        utc_error_ns: Bound of the host's own UTC as chrony vouches for it; None while nobody does.
    """

    def __init__(self, subject: str, policy: PtpPolicy | None = None, phc_bracket_ns: int = 0) -> None:
        self.policy = policy or PtpPolicy()
        self.epoch = -1
        self.utc_error_ns: float | None = None
        self._story = Story(self.policy.is_software, self.policy.holdover_per_ns)
        self._announced: PtpReading | None = None
        self._best: PtpReading | None = None
        self._ptp_minus_told_ns = 0
        self._last_offset_ns: int | None = None
        self._locked_ns = 0
        self._subject = subject
        self._bracket_ns = phc_bracket_ns
        self._offsets: deque[tuple[int, int]] = deque(maxlen=128)
        self._usual_ns = 0.0
        self._grandmaster = ""
        self._stale_ingress_ns: int | None = None
        self._ingress_ns = 0
        self._ingress_seen_ns = 0
        self._path_delay_ns = 0.0
        self._is_locked = False
        self._reading: PtpReading | None = None
        self._reason = "ptp4l was not asked yet"
        self._status = Status.INSUFFICIENT
        self._events: list[PtpEvent] = []

    def take_events(self) -> tuple[PtpEvent, ...]:
        """Return and forget the events since the last call."""
        events = tuple(self._events)
        self._events.clear()
        return events

    def fail(self, host_ns: int, reason: str, status: Status = Status.INSUFFICIENT) -> PtpStatus:
        """Take note that no reading could be had, and why."""
        self._reject(host_ns, reason, status)
        return self.status(host_ns)

    def update(self, reading: PtpReading, local: LocalReading | None = None) -> PtpStatus:
        """Judge a reading.

        Args:
            local: The clock that ptp4l stamps with, about when the reading was taken; None = REALTIME as the
                reading has it, if ptp4l stamps in software.
        """
        self._reading = reading
        host_ns = reading.host_ns
        self._note_grandmaster(reading)
        is_new = self.policy.is_master or reading.ingress_ns != self._ingress_ns
        if is_new:
            self._ingress_ns, self._ingress_seen_ns = reading.ingress_ns, host_ns
        reason, status = self._why_not(reading)
        if reason:
            self._reject(host_ns, reason, status)
            return self.status(host_ns)
        self._note_properties(reading)
        had_lock = self._is_locked
        if not had_lock:
            self._lock(reading)
        if self._is_from_before(reading):
            self._reason = "the offset is still the one from before the lock was lost"
            self._status = Status.INSUFFICIENT
            return self.status(host_ns)
        if is_new and not self.policy.is_master:
            self._hold_against(reading, local or self._realtime(reading), had_lock)
        is_due = not self._offsets or self._offsets[-1][0] != self._ingress_seen_ns
        if is_due and (not self._story.pending_ns or not self._offsets):
            self._offsets.append((self._ingress_seen_ns, reading.offset_ns))
        self._path_delay_ns = reading.mean_path_delay_ns
        self._last_offset_ns = reading.offset_ns
        self._judge(reading)
        return self.status(host_ns)

    def _is_from_before(self, reading: PtpReading) -> bool:
        """Return whether ptp4l repeats an old offset: it does until it has measured the path anew (linuxptp 3.1)."""
        is_same = reading.offset_ns == self._last_offset_ns
        is_fresh = reading.host_ns - self._locked_ns < _REPEATS_FOR_NS
        return is_same and is_fresh and self.epoch > 0 and not self._offsets and not self.policy.is_master

    def _judge(self, reading: PtpReading) -> None:
        """Say what an accepted reading is worth."""
        reasons = []
        self._reason, self._status = "", Status.OK
        if reading.utc_minus_ptp_ns is None:
            reasons.append(
                f"grandmaster {reading.grandmaster} counts TAI and does not vouch for its UTC offset"
                f" ({reading.utc_offset_s} s); UTC is not known from PTP"
            )
        lost = "" if self.policy.is_master else why_not_vouched(self._best, reading)
        if lost:
            reasons.append(lost)
        if reasons:
            self._reason, self._status = "; ".join(reasons), Status.SUSPECT
        self._best = vouched_best(self._best, reading)

    def status(self, host_ns: int) -> PtpStatus:
        """Return what PTP is worth at ``host_ns``."""
        on_wire = self._uncertainty(host_ns) if self._offsets else None
        apart_ns = self._story.apart_ns
        known = on_wire and replace(on_wire, asymmetry_ns=on_wire.asymmetry_ns + apart_ns)
        return PtpStatus(
            self._is_locked,
            self.epoch,
            self._offsets[-1][1] if self._offsets else 0,
            known,
            self._verdict(host_ns),
            self._reading,
            apart_ns,
            self._story.reason,
            on_wire,
            self._ptp_minus_told_ns,
        )

    # -- the rule

    def _note_grandmaster(self, reading: PtpReading) -> None:
        if reading.grandmaster == self._grandmaster:
            return
        if self._grandmaster:
            self._lose(reading.host_ns, "the grandmaster changed")
            self._note(
                PtpEventKind.GRANDMASTER,
                reading.host_ns,
                f"grandmaster changed from {self._grandmaster} to {reading.grandmaster}",
            )
            # The offset is still the old master's until a sync of the new one comes.
            self._stale_ingress_ns = reading.ingress_ns
        self._grandmaster = reading.grandmaster
        self._forget_offsets()

    def _note_properties(self, reading: PtpReading) -> None:
        before, self._announced = self._announced, reading
        if before is not None:
            for sentence in changed_properties(before, reading):
                self._note(PtpEventKind.PROPERTY, reading.host_ns, sentence)

    def _realtime(self, reading: PtpReading) -> LocalReading | None:
        bases = reading.bases
        if bases is None or not self.policy.is_software:
            return None
        return LocalReading(bases.raw_ns, bases.realtime_ns, bases.bracket_ns)

    def _hold_against(self, reading: PtpReading, local: LocalReading | None, had_lock: bool) -> None:
        """Compare with the story so far and the host's own UTC; a step begins a new epoch."""
        told = self._story.told(reading, local)
        if told is None:
            return
        self._ptp_minus_told_ns = told.taken_off_s * SECOND_NS
        stepped = self._story.take(reading, told)
        if stepped:
            self._note(PtpEventKind.STEP, reading.host_ns, stepped)
            self._forget_offsets()
            if had_lock:  # else the lock has begun one already
                self.epoch += 1
        if not self._story.pending_ns:
            self._story.judge(reading, told, self._witness(reading, local))
            self._story.judge_offset(reading, told)

    def _witness(self, reading: PtpReading, local: LocalReading | None) -> HostUtc | None:
        bases, policy = reading.bases, self.policy
        if bases is None or local is None:
            return None
        is_independent = self.utc_error_ns is not None or (policy.is_software and policy.is_free_running)
        return HostUtc(bases.realtime_ns - bases.raw_ns, self.utc_error_ns, is_independent)

    def _why_not(self, reading: PtpReading) -> tuple[str, Status]:
        """Return why this reading is no lock, and how bad that is; "" = locked."""
        policy = self.policy
        state = reading.port_state
        wanted = {PortState.SLAVE}
        if policy.is_free_running:
            wanted.add(PortState.UNCALIBRATED)
        if policy.is_master:
            is_good = state is PortState.MASTER
            return ("", Status.OK) if is_good else (f"port is {state.name} instead of MASTER", Status.SUSPECT)
        if state is PortState.MASTER:
            return "this host is itself the master; nothing disciplines its clock", Status.FAILED
        if state not in wanted:
            expected = "SLAVE" + (" or UNCALIBRATED" if policy.is_free_running else "")
            return f"port is {state.name} instead of {expected}", Status.SUSPECT
        if reading.ingress_ns == 0:
            return "no sync has come from the grandmaster", Status.INSUFFICIENT
        if reading.ingress_ns == self._stale_ingress_ns:
            return "waiting for the first sync of the new grandmaster", Status.INSUFFICIENT
        self._stale_ingress_ns = None
        age_ns = reading.host_ns - self._ingress_seen_ns
        limit_ns = policy.sync_intervals * reading.sync_interval_s * SECOND_NS + POLL_NS
        if age_ns > limit_ns:
            return (
                f"no sync for {age_ns / 1e9:.1f} s (one each {reading.sync_interval_s:g} s)",
                Status.SUSPECT,
            )
        if reading.mean_path_delay_ns < 0:
            return (
                f"mean path delay is {reading.mean_path_delay_ns:.0f} ns; no path is shorter than nothing, a"
                " time stamp or its configured latency is wrong",
                Status.FAILED,
            )
        if not policy.is_free_running and abs(reading.offset_ns) > policy.offset_limit_ns:
            return (
                f"offset {reading.offset_ns} ns exceeds the limit of {policy.offset_limit_ns} ns",
                Status.FAILED,
            )
        return "", Status.OK

    def _lock(self, reading: PtpReading) -> None:
        self.epoch += 1
        self._is_locked = True
        self._locked_ns = reading.host_ns
        self._forget_offsets()
        detail = (
            f"locked to {reading.grandmaster}, offset {reading.offset_ns} ns, path delay"
            f" {reading.mean_path_delay_ns:.0f} ns"
        )
        self._note(PtpEventKind.LOCKED, reading.host_ns, detail)

    def _forget_offsets(self) -> None:
        """Begin anew, but keep how much exchanges scatter here: the first ones of the next lock will not be better."""
        if len(self._offsets) >= _ENOUGH_TO_KNOW:
            left = _without_line(*np.array(list(self._offsets)[-_LATEST:], np.float64).T)
            self._usual_ns = float(np.median(np.abs(left))) * _SIGMA_PER_MAD
        self._offsets.clear()

    def _reject(self, host_ns: int, reason: str, status: Status) -> None:
        self._lose(host_ns, reason)
        self._reason, self._status = reason, status

    def _lose(self, host_ns: int, reason: str) -> None:
        if self._is_locked:
            self._is_locked = False
            self._note(PtpEventKind.LOST, host_ns, reason)

    def _note(self, kind: PtpEventKind, host_ns: int, detail: str) -> None:
        self._events.append(PtpEvent(kind, host_ns, detail))

    # -- what it is worth

    def _uncertainty(self, host_ns: int) -> Uncertainty:
        if self.policy.is_master:
            return Uncertainty(0.0, self._bracket_ns / 2, 0.0)  # its own clock is PTP time
        at_ns, offset_ns = np.array(self._offsets, np.float64).T
        scatter, freedom = offset_ns, len(offset_ns)
        if self.policy.is_free_running:
            scatter, freedom = _without_line(at_ns, offset_ns), max(0, len(offset_ns) - 2)
        held_ns = max(0, host_ns - self._offsets[-1][0]) * self.policy.holdover_per_ns
        seen_ns = float(np.percentile(np.abs(scatter), 99))
        few_ns = max(0.0, _of_few(scatter, freedom, self._jitter_ns) - seen_ns)
        stamp_ns = SOFTWARE_STAMP_NS if self.policy.is_software else HARDWARE_STAMP_NS
        floor_ns = self._bracket_ns / 2 + stamp_ns + few_ns
        hidden_ns = max(self._path_delay_ns, 0.0) + self._story.pending_ns
        return Uncertainty(seen_ns + held_ns, floor_ns, hidden_ns)

    @property
    def _jitter_ns(self) -> float:
        return max(self._usual_ns, SOFTWARE_JITTER_NS if self.policy.is_software else HARDWARE_JITTER_NS)

    def _verdict(self, host_ns: int) -> Verdict:
        quantities: list[Quantity] = []
        reasons = [self._reason] if self._reason else []
        if self._offsets:
            at_ns, offset_ns = self._offsets[-1]
            limit = None if self.policy.is_free_running else float(self.policy.offset_limit_ns)
            quantities.append(Quantity("offset", float(offset_ns), "ns", limit))
            quantities.append(Quantity("path delay", self._path_delay_ns, "ns"))
            if not self._is_locked:
                held_s = (host_ns - at_ns) / SECOND_NS
                quantities.append(Quantity("holdover", held_s, "s"))
                reasons.append(f"in holdover for {held_s:.1f} s")
        status = self._status
        if self._story.apart_ns:
            quantities.append(Quantity("apart from the other story", self._story.apart_ns, "ns"))
            reasons.append(self._story.reason)
            status = Status.SUSPECT if status is Status.OK else status
        return Verdict("ptp_lock", self._subject, status, tuple(quantities), tuple(reasons))


def claimed_model(status: PtpStatus, local_ns: int, host_ns: int, host_per_local: float = 1.0) -> ClockModel:
    """Return the map from PTP nanoseconds to the host clock that the lock claims.

    Args:
        local_ns: The clock that ptp4l stamps with (REALTIME, or a PTP hardware clock), read at ``host_ns``.
        host_per_local: Host nanoseconds per nanosecond of that clock.

    Raises:
        ClockError: If PTP was never locked.
    """
    if status.uncertainty is None:
        raise ClockError("PTP was never locked; there is no claim to compare with")
    skew_ppm = (host_per_local - 1) * 1e6
    return ClockModel(
        status.epoch,
        "ptp",
        local_ns - status.offset_ns,
        host_ns,
        host_per_local,
        skew_ppm,
        status.uncertainty,
    )


def _without_line(at_ns: NDArray[np.float64], offset_ns: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what a straight line leaves; a free-running clock drifts by design."""
    left: NDArray[np.float64] = offset_ns - offset_ns.mean()
    if at_ns.size >= 4:
        at = (at_ns - at_ns.mean()) / SECOND_NS
        left = left - at * (float(at @ left) / max(float(at @ at), 1e-12))
    return left


def _of_few(scatter: NDArray[np.float64], freedom: int, jitter_ns: float) -> float:
    """Return the 95 % half width that so few readings allow; what is usual counts as one reading more."""
    variance = (jitter_ns**2 + float(scatter @ scatter)) / (freedom + 1)
    t = _T_95[freedom] if freedom < len(_T_95) else 1.96 + 2.5 / (freedom + 1)
    return float(t * np.sqrt(variance))


class PtpMonitor:
    """Polls ptp4l once per second without ever waiting; call :meth:`step` as often as you like."""

    def __init__(
        self,
        client: PtpClient,
        tracker: PtpTracker,
        clock: Clock,
        local: Callable[[], LocalReading | None] = lambda: None,
    ) -> None:
        """Args:
        local: Reads the clock that ptp4l stamps with; None = REALTIME, which the client reads itself.
        """
        self.tracker = tracker
        self._local = local
        self._client = client
        self._clock = clock
        self._next_ns = clock.now_ns()
        self._is_asking = False

    def step(self) -> PtpStatus | None:
        """Take in answers and ask again when due; return a status when there is a new one."""
        now_ns = self._clock.now_ns()
        try:
            if self._is_asking:
                reading = self._client.collect()
                if reading is not None:
                    self._is_asking = False
                    return self.tracker.update(reading, self._local())
            if now_ns < self._next_ns:
                return None
            self._next_ns = now_ns + POLL_NS
            was_asking, self._is_asking = self._is_asking, False
            self._client.ask()
            self._is_asking = True
        except ClockError as err:
            return self.tracker.fail(now_ns, str(err), Status.FAILED)
        return self.tracker.fail(now_ns, self._client.silence()) if was_asking else None

    def close(self) -> None:
        """Release the socket."""
        self._client.close()
