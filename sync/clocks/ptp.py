"""What PTP is worth: the lock rule, holdover, a new epoch for every lock, verdicts.

After a grandmaster has died, a slave-only ptp4l goes on reporting it as present, with its last offset; only
the port state and the ingress time tell (measured, linuxptp 3.1). So nothing here trusts ``gmPresent``.
"""

from collections import deque
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from sensorium.errors import ClockError
from sensorium.sync.clocks.model import ClockModel, Uncertainty
from sensorium.sync.clocks.ptp_management import PortState, PtpClient, PtpReading
from sensorium.timebase import SECOND_NS, Clock
from sensorium.verdict import Quantity, Status, Verdict

POLL_NS = SECOND_NS


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
    """

    is_free_running: bool = False
    is_master: bool = False
    offset_limit_ns: int = 100_000
    sync_intervals: float = 3.0
    holdover_per_ns: float = 1e-5


class PtpEventKind(str, Enum):
    LOCKED = "locked"
    LOST = "lost"
    GRANDMASTER = "grandmaster"


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
        epoch: Counts locks; nothing is carried from one to the next.
        offset_ns: Local minus master clock, newest accepted.
        uncertainty: Statistical = 99 % of the offsets' scatter, plus holdover; asymmetry = the whole path
            delay, the most that an unequal path can hide. None before the first lock.
        reading: The newest one, accepted or not.
    """

    is_locked: bool
    epoch: int
    offset_ns: int
    uncertainty: Uncertainty | None
    verdict: Verdict
    reading: PtpReading | None


class PtpTracker:
    """Judges one reading (or one failure to get one) after another; pure and deterministic.

    Args:
        subject: What the verdicts are about, such as the host's name.
        phc_bracket_ns: Bracket of the reads that tie the PTP hardware clock to the host; 0 without one.
    """

    def __init__(self, subject: str, policy: PtpPolicy | None = None, phc_bracket_ns: int = 0) -> None:
        self.policy = policy or PtpPolicy()
        self.epoch = -1
        self._subject = subject
        self._bracket_ns = phc_bracket_ns
        self._offsets: deque[tuple[int, int]] = deque(maxlen=128)
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

    def update(self, reading: PtpReading) -> PtpStatus:
        """Judge a reading."""
        self._reading = reading
        host_ns = reading.host_ns
        self._note_grandmaster(reading)
        if self.policy.is_master or reading.ingress_ns != self._ingress_ns:
            self._ingress_ns, self._ingress_seen_ns = reading.ingress_ns, host_ns
        reason, status = self._why_not(reading)
        if reason:
            self._reject(host_ns, reason, status)
            return self.status(host_ns)
        if not self._is_locked:
            self._lock(reading)
        if not self._offsets or self._offsets[-1][0] != self._ingress_seen_ns:
            self._offsets.append((self._ingress_seen_ns, reading.offset_ns))
        self._path_delay_ns = reading.mean_path_delay_ns
        self._reason, self._status = "", Status.OK
        if reading.utc_minus_ptp_ns is None:
            self._status = Status.SUSPECT
            self._reason = (
                f"grandmaster {reading.grandmaster} counts TAI and does not vouch for its UTC offset"
                f" ({reading.utc_offset_s} s); UTC is not known from PTP"
            )
        return self.status(host_ns)

    def status(self, host_ns: int) -> PtpStatus:
        """Return what PTP is worth at ``host_ns``."""
        uncertainty = self._uncertainty(host_ns) if self._offsets else None
        offset_ns = self._offsets[-1][1] if self._offsets else 0
        return PtpStatus(
            self._is_locked, self.epoch, offset_ns, uncertainty, self._verdict(host_ns), self._reading
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
        self._offsets.clear()

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
        self._offsets.clear()
        detail = (
            f"locked to {reading.grandmaster}, offset {reading.offset_ns} ns, path delay"
            f" {reading.mean_path_delay_ns:.0f} ns"
        )
        self._note(PtpEventKind.LOCKED, reading.host_ns, detail)

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
        at_ns, offset_ns = np.array(self._offsets, np.float64).T
        scatter = offset_ns
        if self.policy.is_free_running:
            scatter = _without_line(at_ns, offset_ns)
        held_ns = max(0, host_ns - self._offsets[-1][0]) * self.policy.holdover_per_ns
        statistical_ns = float(np.percentile(np.abs(scatter), 99)) + held_ns
        return Uncertainty(statistical_ns, self._bracket_ns / 2, max(self._path_delay_ns, 0.0))

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
        return Verdict("ptp_lock", self._subject, self._status, tuple(quantities), tuple(reasons))


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


class PtpMonitor:
    """Polls ptp4l once per second without ever waiting; call :meth:`step` as often as you like."""

    def __init__(self, client: PtpClient, tracker: PtpTracker, clock: Clock) -> None:
        self.tracker = tracker
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
                    return self.tracker.update(reading)
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
