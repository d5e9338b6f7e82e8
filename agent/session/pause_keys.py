"""The privacy pause by a key, where a recording has a terminal: ``p`` pauses, ``r`` resumes."""

import contextlib
import os
import select
import sys
import termios
import threading
import tty
from collections.abc import Callable
from types import TracebackType
from typing import Any

from sensorium.errors import SensoriumError
from sensorium.timebase import Clock

_COMMANDS = {b"p": "pause", b"P": "pause", b"r": "resume", b"R": "resume"}
_WAIT_S = 0.2

Press = Callable[[str, int], None]
"""Is told ``pause`` or ``resume``, and the host time of the key."""


class PauseKeys:
    """Listens on a terminal while the block lasts, and leaves it as it was.

    Only in the foreground: what reads or sets a terminal in the background is stopped by the kernel, and a recording
    must not be. Where there is no terminal it does nothing.

    Args:
        press: Called from a thread of its own; what it raises is handed to ``say``.
        descriptor: Of the terminal; None = standard input.
    """

    def __init__(
        self, press: Press, clock: Clock, say: Callable[[str], None], descriptor: int | None = None
    ) -> None:
        self._press = press
        self._clock = clock
        self._say = say
        self._descriptor = _standard_input() if descriptor is None else descriptor
        self._before: list[Any] | None = None
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="keys", daemon=True)

    def __enter__(self) -> "PauseKeys":
        if self.is_usable:
            try:
                self._before = termios.tcgetattr(self._descriptor)
                tty.setcbreak(self._descriptor, termios.TCSADRAIN)
            except (termios.error, OSError):
                return self  # a terminal that cannot be set is no place for keys
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join(2.0)
        if self._before is not None and self._is_ours():
            with contextlib.suppress(termios.error, OSError):
                termios.tcsetattr(self._descriptor, termios.TCSADRAIN, self._before)

    @property
    def is_listening(self) -> bool:
        return self._thread.is_alive()

    @property
    def is_usable(self) -> bool:
        """Whether there is a terminal, and this program is in its foreground."""
        return self._is_ours()

    def _is_ours(self) -> bool:
        try:
            return os.isatty(self._descriptor) and os.tcgetpgrp(self._descriptor) == os.getpgrp()
        except OSError:
            return False

    def _listen(self) -> None:
        while not self._ending.is_set():
            if not self._is_ours():
                self._ending.wait(_WAIT_S)
                continue
            try:
                ready, _, _ = select.select([self._descriptor], [], [], _WAIT_S)
                pressed = os.read(self._descriptor, 64) if ready and self._is_ours() else b""
            except OSError:
                return
            host_ns = self._clock.now_ns()
            if ready and not pressed:
                return  # the terminal is gone
            for key in pressed:
                self._act(_COMMANDS.get(bytes([key]), ""), host_ns)

    def _act(self, command: str, host_ns: int) -> None:
        if not command:
            return
        try:
            self._press(command, host_ns)
        except SensoriumError as err:
            self._say(f"{command} by key: {err}")


def _standard_input() -> int:
    try:
        return sys.stdin.fileno()
    except (AttributeError, ValueError, OSError):
        return -1
