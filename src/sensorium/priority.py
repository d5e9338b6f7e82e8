"""Who goes first on a busy machine: what may be late gives way to what must not be."""

import os
from pathlib import Path

from sensorium.timebase import SECOND_NS, Clock

AUTOGROUP_FILE = Path("/proc/self/autogroup")
_TRIES = 30
_RETRY_NS = SECOND_NS // 10


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
        _lower_session(niceness, clock)


def _lower_session(niceness: int, clock: Clock) -> None:
    for _ in range(_TRIES):
        try:
            AUTOGROUP_FILE.write_text(str(niceness), encoding="ascii")
        except BlockingIOError:  # the kernel lets one process of the whole machine do this each 100 ms
            clock.sleep_until(clock.now_ns() + _RETRY_NS)
        except OSError:  # no such groups here: the nice value is enough
            return
        else:
            return
