"""Keeps a process within a share of one core."""

from collections import deque
from collections.abc import Callable

from sensorium.timebase import SECOND_NS


class CpuBudget:
    """A share of one core over every window of time, measured on the process itself.

    Work is begun only if what it is expected to cost still fits into the window that ends now. So a burst is
    allowed after idling, and over any full window the share is exceeded by one misjudged piece of work at most.
    """

    def __init__(self, share: float, over_s: float, used_ns: Callable[[], int], now_ns: int) -> None:
        """``used_ns`` returns the processor time of the process so far; what it used before now counts too."""
        self.share = share
        self._over_ns = int(over_s * SECOND_NS)
        self._used_ns = used_ns
        self._readings: deque[tuple[int, int]] = deque([(now_ns, 0)])

    def note(self, now_ns: int) -> None:
        """Read the meter; call after each piece of work."""
        self._readings.append((now_ns, self._used_ns()))
        while len(self._readings) > 2 and self._readings[1][0] <= now_ns - self._over_ns:
            self._readings.popleft()

    def used(self, now_ns: int) -> float:
        """Return the share of one core used over the last window (or since the start, if that is shorter)."""
        start_ns, before_ns = self._readings[0]
        span_ns = min(max(now_ns - start_ns, 1), self._over_ns)
        return (self._readings[-1][1] - before_ns) / span_ns

    def free_at(self, expected_ns: int, now_ns: int) -> int:
        """Return when work that takes so much processor time fits (host ns); now if it does already.

        Work larger than the whole share of a window is let in when the window is empty.
        """
        allowed_ns = max(int(self.share * self._over_ns) - expected_ns, 0)
        total_ns = self._readings[-1][1]
        # What was used after reading i is all that a window beginning there holds.
        fits = next(i for i, (_, used_ns) in enumerate(self._readings) if total_ns - used_ns <= allowed_ns)
        return now_ns if fits == 0 else max(now_ns, self._readings[fits][0] + self._over_ns)
