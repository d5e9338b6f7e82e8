"""How well chronyd knows the time: the fallback for UTC where there is no PTP."""

import math
import shutil
import subprocess
from dataclasses import dataclass

from sensorium.errors import ClockError
from sensorium.timebase import SECOND_NS, Clock
from sensorium.verdict import Quantity, Status, Verdict

POLL_NS = 16 * SECOND_NS
_TRACKING_FIELDS = 14


@dataclass(frozen=True, slots=True)
class ChronyTracking:
    """What chronyd says about the system clock; seconds and ppm as chrony counts them.

    Attributes:
        reference: Hexadecimal reference id; "00000000" = none.
        system_offset_s: Between the system clock and chrony's idea of the time; its sign is chrony's.
    """

    reference: str
    stratum: int
    system_offset_s: float
    last_offset_s: float
    rms_offset_s: float
    frequency_ppm: float
    skew_ppm: float
    root_delay_s: float
    root_dispersion_s: float
    update_interval_s: float
    leap: str

    @property
    def is_synchronised(self) -> bool:
        return self.leap != "Not synchronised" and self.reference != "00000000"

    @property
    def bound_ns(self) -> float:
        """Bound of the system clock's error: offset + root dispersion + half the root delay (RFC 5905)."""
        return 1e9 * (abs(self.system_offset_s) + self.root_dispersion_s + self.root_delay_s / 2)


def parse_tracking(line: str) -> ChronyTracking:
    """Return what a line of ``chronyc -c tracking`` says.

    Raises:
        ClockError: If it is something else.
    """
    fields = line.strip().split(",")
    try:
        if len(fields) != _TRACKING_FIELDS:
            raise ValueError(f"{len(fields)} fields instead of {_TRACKING_FIELDS}")
        numbers = [float(field) for field in fields[4:13]]
        if not all(map(math.isfinite, numbers)):
            raise ValueError("a number is not finite")
        system, last, rms, frequency, _, skew, delay, dispersion, interval = numbers
        return ChronyTracking(
            fields[0],
            int(fields[2]),
            system,
            last,
            rms,
            frequency,
            skew,
            delay,
            dispersion,
            interval,
            fields[13],
        )
    except ValueError as err:
        raise ClockError(f"chronyc -c tracking answered {line.strip()[:80]!r}: {err}") from err


def _command(command: str, arguments: tuple[str, ...]) -> list[str]:
    found = shutil.which(command)
    if found is None:
        raise ClockError(f"{command} is not installed; there is neither PTP nor chrony to ask about UTC")
    return [found, *arguments, "-n", "-c", "tracking"]


def _answer(command: str, code: int, text: str) -> ChronyTracking:
    if code:
        raise ClockError(f"{command} failed: {text.strip()[:120]}; is chronyd running?")
    return parse_tracking(text)


def judge_chrony(tracking: ChronyTracking, subject: str, limit_ns: float) -> Verdict:
    """Return whether the system clock is synchronised to within ``limit_ns``."""
    quantities = (
        Quantity("bound", tracking.bound_ns, "ns", limit_ns),
        Quantity("rms offset", tracking.rms_offset_s * 1e9, "ns"),
        Quantity("frequency", tracking.frequency_ppm, "ppm", sigma=tracking.skew_ppm),
    )
    reasons = []
    status = Status.OK
    if not tracking.is_synchronised:
        status = Status.FAILED
        reasons.append("chronyd is not synchronised to any source")
    elif tracking.bound_ns > limit_ns:
        status = Status.SUSPECT
        reasons.append(
            f"UTC is known to {tracking.bound_ns / 1e3:.0f} us only, {limit_ns / 1e3:.0f} us are wanted"
        )
    return Verdict("system_clock", subject, status, quantities, tuple(reasons))


class ChronyMonitor:
    """Asks chronyd every 16 s without ever waiting; call :meth:`step` as often as you like.

    Attributes:
        verdict: The newest one.
    """

    def __init__(
        self,
        subject: str,
        clock: Clock,
        limit_ns: float,
        command: str = "chronyc",
        arguments: tuple[str, ...] = (),
    ) -> None:
        self.verdict = Verdict(
            "system_clock", subject, Status.INSUFFICIENT, (), ("chronyd was not asked yet",)
        )
        self._subject = subject
        self._clock = clock
        self._limit_ns = limit_ns
        self._command = command
        self._arguments = arguments
        self._next_ns = clock.now_ns()
        self._asking: subprocess.Popen[str] | None = None

    def step(self) -> bool:
        """Take an answer in, ask when due; return True when there is a new verdict."""
        now_ns = self._clock.now_ns()
        if self._asking is not None and self._asking.poll() is not None:
            code, text = self._asking.returncode, self._finish(self._asking)
            try:
                self.verdict = judge_chrony(_answer(self._command, code, text), self._subject, self._limit_ns)
            except ClockError as err:
                self._fail(str(err))
            return True
        if now_ns < self._next_ns:
            return False
        self._next_ns = now_ns + POLL_NS
        was_asking = self._asking is not None
        self.close()
        try:
            self._asking = subprocess.Popen(
                _command(self._command, self._arguments),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        except (ClockError, OSError) as err:
            self._fail(str(err))
            return True
        if was_asking:
            self._fail(f"{self._command} did not answer within {POLL_NS // SECOND_NS} s")
        return was_asking

    def close(self) -> None:
        """End a question that is still open; safe to call twice."""
        if self._asking is not None:
            self._asking.kill()
            self._finish(self._asking)

    def _finish(self, asking: "subprocess.Popen[str]") -> str:
        text, _ = asking.communicate()
        self._asking = None
        return text

    def _fail(self, reason: str) -> None:
        self.verdict = Verdict("system_clock", self._subject, Status.INSUFFICIENT, (), (reason,))
