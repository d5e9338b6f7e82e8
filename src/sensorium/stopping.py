"""How the processes of a session are told to end, however early that is."""

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

PARENT_KEY = "SENSORIUM_PARENT"
"""Of the environment: the process id of the supervisor, for the processes of its session."""

_PARENT = int(os.environ.pop(PARENT_KEY, "0"))
_PR_SET_PDEATHSIG = 1


def is_orphaned() -> bool:
    """Return whether the supervisor that started this process has ended; False where none did."""
    return _PARENT != 0 and os.getppid() != _PARENT


def is_recorded(run_dir: Path) -> bool:
    """Return whether a process still records the session of this folder: one may live on without its supervisor."""
    wanted = f"sensorium.sync.recording.service\0{run_dir}/".encode()
    for found in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has just ended
            if wanted in found.read_bytes():
                return True
    return False


def end_with_parent() -> None:
    """Have the system send us SIGTERM when the supervisor that started this process ends, even killed."""
    if _PARENT and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if is_orphaned():  # it ended before we asked
            os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def sigterm_held() -> Iterator[None]:
    """Let processes that are started inside keep a SIGTERM until they call :func:`stop_on_sigterm`.

    A Python process takes a second and more to import what it needs, on a busy machine many. Told to end
    before its handler is in place it would die without a word, and what it had to seal would lie open.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def stop_on_sigterm(stop: Callable[[], None]) -> None:
    """Call ``stop`` on SIGTERM, on one that came before, too. Ctrl-C is for the supervisor, which then tells us."""

    def handle(_signal: int, _frame: FrameType | None) -> None:
        stop()

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
