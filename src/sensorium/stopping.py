"""How the processes of a session are told to end, however early that is."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


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
