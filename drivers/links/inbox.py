"""The bounded hand-over from a driver's reader thread to ``Driver.read``."""

import threading
from collections import deque

from sensorium.drivers.frame import Frame, Loss, Place
from sensorium.errors import SensoriumError


class Inbox:
    """Holds at most ``capacity`` frames; what does not fit is dropped and booked as a :class:`Loss`.

    The newest frame is the one that is dropped: the older ones are already in order, and a loss is told in
    front of the frame that follows it. One thread puts, one takes.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._items: deque[Frame | Loss] = deque()
        self._frames = 0
        self._error: SensoriumError | None = None
        self._is_closed = False
        self._changed = threading.Condition()

    def put(self, frame: Frame) -> None:
        """Append ``frame``, or book its samples as lost in the driver when there is no room."""
        with self._changed:
            if self._frames < self._capacity:
                self._append(frame)
            else:
                self._book(Loss(frame.stream, frame.count, Place.DRIVER, "driver queue full"))

    def put_waiting(self, frame: Frame) -> None:
        """Append ``frame`` once there is room; return without it when the inbox is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._frames < self._capacity or self._is_closed)
            if not self._is_closed:
                self._append(frame)

    def lose(self, loss: Loss) -> None:
        """Book samples that never became a frame."""
        with self._changed:
            self._book(loss)

    def fail(self, error: SensoriumError) -> None:
        """End the stream: ``error`` is raised by :meth:`take` after everything before it was taken."""
        with self._changed:
            self._error = error
            self._changed.notify_all()

    def close(self) -> None:
        """Let a waiting producer go."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    @property
    def is_closed(self) -> bool:
        return self._is_closed

    def take(self, timeout_s: float) -> list[Frame | Loss]:
        """Return all that has come; wait up to ``timeout_s`` for the first item; empty after that.

        Raises:
            SensoriumError: What :meth:`fail` was given, when nothing else is left.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._error or self._is_closed, timeout_s)
            if not self._items and self._error is not None:
                raise self._error
            taken = list(self._items)
            self._items.clear()
            self._frames = 0
            self._changed.notify_all()
            return taken

    def _append(self, frame: Frame) -> None:
        self._items.append(frame)
        self._frames += 1
        self._changed.notify_all()

    def _book(self, loss: Loss) -> None:
        last = self._items[-1] if self._items else None
        if isinstance(last, Loss) and (last.stream, last.place, last.reason) == (
            loss.stream,
            loss.place,
            loss.reason,
        ):
            self._items[-1] = Loss(loss.stream, last.count + loss.count, loss.place, loss.reason)
        else:
            self._items.append(loss)
        self._changed.notify_all()
