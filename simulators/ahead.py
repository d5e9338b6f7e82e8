"""Frames made ahead of their time, by a thread that lets everything else on the machine go first."""

import heapq
import os
import threading
from collections.abc import Callable

from sensorium.drivers.frame import Frame

NICENESS = 5
"""How far making frames steps back behind handing them over."""

AHEAD_BYTES = 32 << 20
"""How much a device holds: 18 s of the demo's cameras, 4 s of its LiDAR."""

_ROW_BYTES = 200  # about what a small frame and its arrays weigh beside its payload


class FramesAhead:
    """Frames in order of arrival, made by a thread until :data:`AHEAD_BYTES` of them wait.

    The thread begins when somebody asks for the first frame.
    """

    def __init__(self, name: str, produce: Callable[[], bool]) -> None:
        """Args: produce: Pushes the next frames; returns False when there are no more."""
        self._name = name
        self._produce = produce
        self._heap: list[tuple[int, int, Frame]] = []
        self._pushed = 0
        self._held_bytes = 0
        self._has_ended = False
        self._error: BaseException | None = None
        self._is_closed = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def push(self, frame: Frame) -> None:
        """Hold a frame for the moment when its last byte has arrived."""
        with self._changed:
            heapq.heappush(self._heap, (int(frame.arrival_ns[-1]), self._pushed, frame))
            self._pushed += 1
            self._held_bytes += len(frame.payload) + _ROW_BYTES
            self._changed.notify_all()

    def next_ns(self) -> int | None:
        """Return when the next frame arrives, once it has been made; None when there are no more.

        Raises:
            Exception: What making it raised.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=f"makes {self._name}", daemon=True)
            self._thread.start()
        with self._changed:
            self._changed.wait_for(lambda: self._heap or self._has_ended)
            if self._heap:
                return self._heap[0][0]
            if self._error is not None:
                raise self._error
            return None

    def take(self, until_ns: int) -> list[Frame]:
        """Return the frames that have arrived by then."""
        taken = []
        with self._changed:
            while self._heap and self._heap[0][0] <= until_ns:
                frame = heapq.heappop(self._heap)[2]
                self._held_bytes -= len(frame.payload) + _ROW_BYTES
                taken.append(frame)
            self._changed.notify_all()
        return taken

    def close(self) -> None:
        """End the thread; what was not taken is gone."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        os.nice(NICENESS)  # of this thread alone, on Linux
        try:
            while self._has_room() and self._produce():
                pass
        except Exception as err:  # noqa: BLE001 - raised again where the frames are taken
            self._error = err
        with self._changed:
            self._has_ended = True
            self._changed.notify_all()

    def _has_room(self) -> bool:
        """Return True once frames are wanted, False when closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._held_bytes < AHEAD_BYTES or self._is_closed)
            return not self._is_closed
