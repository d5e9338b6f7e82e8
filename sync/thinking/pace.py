"""Keeps the thinking within its share of a core: clocks are solved less often when it is used up."""

from collections import deque

from sensorium.sync.recording.spec import ThinkingSettings
from sensorium.timebase import SECOND_NS, thread_cpu_ns

_FASTER, _SLOWER = 0.8, 1.5
_SLOWEST = 64.0


class Pace:
    """How many times less often than they would like the clocks are solved.

    Only the thread that thinks counts; the one that seals has work of another kind, and gives way anyway.
    """

    def __init__(self, settings: ThinkingSettings, now_ns: int) -> None:
        self._share = settings.cpu_share
        self._over_ns = int(settings.over_s * SECOND_NS)
        self._readings: deque[tuple[int, int]] = deque([(now_ns, thread_cpu_ns())])
        self.pace = 1.0
        self.used = 0.0
        """Share of one core over the last ``over_s``."""

    def next(self, now_ns: int) -> float:
        """Return the pace from now on; call about twice a second."""
        self._readings.append((now_ns, thread_cpu_ns()))
        while len(self._readings) > 2 and self._readings[1][0] <= now_ns - self._over_ns:
            self._readings.popleft()
        (then_ns, before_ns), (at_ns, used_ns) = self._readings[0], self._readings[-1]
        self.used = (used_ns - before_ns) / max(at_ns - then_ns, 1)
        factor = _SLOWER if self.used > self._share else _FASTER
        self.pace = min(max(self.pace * factor, 1.0), _SLOWEST)
        return self.pace
