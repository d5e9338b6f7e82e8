"""What has to be done again and again beside the frames, without a frame having to wait for all of it."""

from collections import deque
from collections.abc import Callable

Duty = Callable[[int], None]


class Agenda:
    """Duties in order, each as often as all."""

    def __init__(self, every_ns: int, *duties: Duty) -> None:
        """Each duty is called with the time; all are due at once."""
        self._every_ns = every_ns
        self._entries = deque((-(1 << 62), duty) for duty in duties)

    def step(self, now_ns: int, *, is_busy: bool) -> None:
        """Do what is due; where frames come (``is_busy``) one thing a round: together they take a quarter of a
        millisecond, which a frame in a hundred would find in its way.
        """
        while self._entries[0][0] <= now_ns:
            _, duty = self._entries.popleft()
            self._entries.append((now_ns + self._every_ns, duty))
            duty(now_ns)
            if is_busy:
                return
