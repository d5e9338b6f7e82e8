"""Who goes first on a busy machine: what may be late gives way to what must not be."""

import contextlib
import ctypes
import os
import platform
from pathlib import Path

from sensorium.timebase import SECOND_NS, Clock

AUTOGROUP_FILE = Path("/proc/self/autogroup")
_TRIES = 30
_RETRY_NS = SECOND_NS // 10
_NICE_FIRST = -10
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}
"""Number of the system call, which the C library does not wrap."""
_BEST_EFFORT_FIRST = 2 << 13


def go_first(who: str, clock: Clock) -> str:
    """Put this process before all that is not real-time; return what was refused as a sentence, "" if nothing.

    Round robin at its lowest priority: a controller that is real-time itself still comes first. Threads that are
    started later inherit it. Disk I/O of the process goes first among what is not real-time, too, where the
    disk's scheduler knows such a thing.
    """
    number = _IOPRIO_SET.get(platform.machine())
    if number is not None:
        ctypes.CDLL(None, use_errno=True).syscall(number, 1, 0, _BEST_EFFORT_FIRST)
    try:
        lowest = os.sched_get_priority_min(os.SCHED_RR)
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(lowest))
        return ""
    except OSError:
        pass  # the next best thing
    try:
        os.setpriority(os.PRIO_PROCESS, 0, _NICE_FIRST)
        if os.getsid(0) == os.getpid():
            _renice_session(_NICE_FIRST, clock)
        return ""
    except OSError as err:
        return (
            f"{who} runs without priority ({err.strerror}): on a busy machine it may lose samples; allow it with "
            "`ulimit -r 1`, `ulimit -e 30` or CAP_SYS_NICE"
        )


def let_go_first(pid: int) -> None:
    """Put a process that was just started before others, where that is allowed: its imports are in a hurry, too."""
    with contextlib.suppress(OSError):
        os.sched_setscheduler(pid, os.SCHED_RR, os.sched_param(os.sched_get_priority_min(os.SCHED_RR)))


def give_way(niceness: int, clock: Clock) -> None:
    """Let other processes go first: lower this thread, and this process if it leads a session.

    A nice value counts among the threads of one session only where the kernel groups tasks by session
    (``sched_autogroup_enabled``, the default of Debian and Ubuntu outside systemd's slices; sched(7)): there two
    busy processes of different sessions get half a core each, whatever their nice values. Every child of the
    supervisor leads a session of its own, so the session's group is lowered too. A process in somebody else's
    session leaves the group alone: the user's shell is in it.

    Args:
        niceness: 1 (a little) to 19 (only what nobody else wants); threads that are started later inherit it.
            Whoever is lower already stays there.
    """
    niceness = max(niceness, os.getpriority(os.PRIO_PROCESS, 0))
    os.setpriority(os.PRIO_PROCESS, 0, niceness)  # of the calling thread alone, on Linux
    if os.getsid(0) == os.getpid():
        _renice_session(niceness, clock)


def _renice_session(niceness: int, clock: Clock) -> None:
    for _ in range(_TRIES):
        try:
            AUTOGROUP_FILE.write_text(str(niceness), encoding="ascii")
        except BlockingIOError:  # the kernel lets one process of the whole machine do this each 100 ms
            clock.sleep_until(clock.now_ns() + _RETRY_NS)
        except OSError:  # no such groups here: the nice value is enough
            return
        else:
            return
