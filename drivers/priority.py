"""Who goes first when the machine is short: the recorder and real devices, then all that may lag."""

import ctypes
import os
import platform
from enum import Enum

_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}
_BEST_EFFORT, _IDLE = 2, 3
_IOPRIO_CLASS_SHIFT = 13


class Role(Enum):
    """What a process of the agent is for; (nice value, real-time round robin or not, class of its disk I/O)."""

    RECORDER = (-10, True, (_BEST_EFFORT, 0))
    DEVICE = (-10, True, (_BEST_EFFORT, 4))
    THINKER = (5, False, (_BEST_EFFORT, 4))
    CHECKER = (10, False, (_BEST_EFFORT, 6))
    UPLOADER = (15, False, (_IDLE, 0))
    RENDERER = (10, False, (_BEST_EFFORT, 6))


def take_priority(role: Role) -> str:
    """Give this process the priority of its role; return what was refused as a sentence, "" if nothing was.

    Round robin at its lowest priority: above everything that is not real-time, below every controller that is.
    Threads that are started later inherit it.
    """
    nice, is_real_time, (io_class, io_level) = role.value
    _set_io_priority(io_class, io_level)
    if is_real_time and _take_round_robin():
        return ""
    try:
        os.setpriority(os.PRIO_PROCESS, 0, nice)
    except OSError as err:
        return (
            f"the {role.name.lower()} runs without priority ({err.strerror}): on a busy machine it may lose "
            "samples; allow it by `ulimit -r 1` and `ulimit -e 30`, or CAP_SYS_NICE"
        )
    return ""


def _take_round_robin() -> bool:
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(os.sched_get_priority_min(os.SCHED_RR)))
    except OSError:
        return False
    return True


def _set_io_priority(io_class: int, level: int) -> None:
    """Ask for a class of disk I/O; most schedulers of fast disks ignore it, so a refusal is no news."""
    number = _IOPRIO_SET.get(platform.machine())
    if number is not None:
        value = (io_class << _IOPRIO_CLASS_SHIFT) | level
        ctypes.CDLL(None, use_errno=True).syscall(number, 1, 0, value)
