"""Host clock, its relation to UTC, and a virtual clock for tests and replay.

The host base is CLOCK_MONOTONIC_RAW in int64 nanoseconds: neither stepped nor slewed. This is the only
module that may ask the operating system for the time or sleep.
"""

import ctypes
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

SECOND_NS = 1_000_000_000


class Clock(Protocol):
    """What a service needs of time; injected so that tests can use :class:`VirtualClock`."""

    def now_ns(self) -> int:
        """Return host time in nanoseconds (CLOCK_MONOTONIC_RAW or its virtual stand-in)."""

    def utc_ns(self) -> int:
        """Return UTC in nanoseconds since 1970, for labels and grant validity, never for intervals."""

    def utc_minus_host_ns(self) -> int:
        """Return what to add to host time for UTC as the wall clock says it now; it jumps when that is stepped."""

    def sleep_until(self, host_ns: int) -> None:
        """Return once host time has reached ``host_ns``."""


class HostClock:
    """The machine's own clock."""

    def now_ns(self) -> int:
        return time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)

    def utc_ns(self) -> int:
        return time.time_ns()

    def utc_minus_host_ns(self) -> int:
        return read_bases().utc_minus_host_ns

    def sleep_until(self, host_ns: int) -> None:
        remaining_ns = host_ns - self.now_ns()
        if remaining_ns > 0:
            time.sleep(remaining_ns / SECOND_NS)


class VirtualClock:
    """A clock that moves only when told to, or when somebody sleeps on it."""

    def __init__(self, now_ns: int = 0, utc_minus_host_ns: int = 0) -> None:
        self._now_ns = now_ns
        self._utc_minus_host_ns = utc_minus_host_ns

    def now_ns(self) -> int:
        return self._now_ns

    def utc_ns(self) -> int:
        return self._now_ns + self._utc_minus_host_ns

    def utc_minus_host_ns(self) -> int:
        return self._utc_minus_host_ns

    def step_utc(self, by_ns: int) -> None:
        """Step the wall clock, as an operator or NTP does; host time goes on."""
        self._utc_minus_host_ns += by_ns

    def sleep_until(self, host_ns: int) -> None:
        self._now_ns = max(self._now_ns, host_ns)

    def advance(self, by_ns: int) -> None:
        self._now_ns += by_ns


def thread_cpu_ns() -> int:
    """Return the processor time that the calling thread has used, nanoseconds."""
    return time.thread_time_ns()


def process_cpu_ns() -> int:
    """Return the processor time that this process has used, all threads, nanoseconds."""
    return time.process_time_ns()


@dataclass(frozen=True, slots=True)
class BaseReading:
    """One bracketed reading of the kernel's clocks; ``bracket_ns`` bounds its error.

    Attributes:
        asleep_ns: How long the host was suspended since it started (BOOTTIME - MONOTONIC); RAW stood still meanwhile.
    """

    raw_ns: int
    monotonic_ns: int
    realtime_ns: int
    tai_ns: int
    bracket_ns: int
    asleep_ns: int = 0

    @property
    def utc_minus_host_ns(self) -> int:
        return self.realtime_ns - self.raw_ns


_TIMEX_BYTES = 256
"""More than ``struct timex`` has; all zeros only asks."""
_TIME_ERROR = 5
"""What adjtimex(2) returns while nobody keeps the system's clock right."""


def is_utc_kept() -> bool:
    """Return whether somebody (chrony, ntpd, phc2sys) keeps the wall clock right, by the kernel's own word."""
    state = int(ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES)))
    return 0 <= state != _TIME_ERROR


def read_bases(tries: int = 5) -> BaseReading:
    """Return the reading of RAW around the other clocks with the shortest bracket of ``tries``."""
    best: BaseReading | None = None
    for _ in range(tries):
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        monotonic = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        realtime = time.clock_gettime_ns(time.CLOCK_REALTIME)
        tai = time.clock_gettime_ns(time.CLOCK_TAI)
        boot = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        after = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        if best is None or after - before < best.bracket_ns:
            middle = (before + after) // 2
            best = BaseReading(middle, monotonic, realtime, tai, after - before, boot - monotonic)
    assert best is not None
    return best


@dataclass(frozen=True, slots=True)
class Timeline:
    """The host clock that arrival stamps are on.

    Attributes:
        host_id: Machine whose CLOCK_MONOTONIC_RAW the stamps count, live or when they were recorded.
        utc_minus_host_ns: Add to a host stamp to get UTC.
        is_virtual: True for a replay: the stamps are recorded ones and have no relation to now.
        boot_id: Start of the machine that the stamps count from; "" where it is not known.
    """

    host_id: str
    utc_minus_host_ns: int
    is_virtual: bool = False
    boot_id: str = ""


@dataclass(frozen=True, slots=True)
class HostInstant:
    """An instant on the host clock that stays what it is when the wall clock is stepped."""

    boot_id: str
    host_ns: int


@lru_cache(maxsize=1)
def boot_id() -> str:
    """Return what names this start of the machine: host stamps of another one cannot be compared with ours."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
