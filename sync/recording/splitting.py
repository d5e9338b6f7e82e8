"""When an episode is long or large enough: the next one's files are made ready before, so that nothing waits."""

from sensorium.sync.recording.episodes import Episodes
from sensorium.sync.recording.open_episode import OpenEpisode
from sensorium.timebase import SECOND_NS

AHEAD_NS = 10 * SECOND_NS
_AHEAD_SHARE = 0.5
"""Of an episode, after which the next one's files are made, unless that is longer than ``AHEAD_NS`` before its end."""


class Splitting:
    """Splits by length and size.

    Args:
        max_s, max_bytes: Of one episode; None = no limit.
    """

    def __init__(self, max_s: float | None, max_bytes: int | None, episodes: Episodes) -> None:
        self._max_ns = None if max_s is None else round(max_s * SECOND_NS)
        self._max_bytes = max_bytes
        self._episodes = episodes

    def is_due(self, episode: OpenEpisode, now_ns: int) -> bool:
        """Return whether the episode is to end now; have the next one prepared when that is near."""
        age_ns, size = now_ns - episode.started_ns, 0
        if self._max_bytes is not None:
            size = episode.writer.bytes_stored()
        if self._has_reached(age_ns, size):
            return True
        if self._is_near(age_ns, size):
            self._episodes.prepare()
        return False

    def _has_reached(self, age_ns: int, size: int) -> bool:
        is_long = self._max_ns is not None and age_ns >= self._max_ns
        return is_long or (self._max_bytes is not None and size >= self._max_bytes)

    def _is_near(self, age_ns: int, size: int) -> bool:
        if self._max_ns is not None and age_ns >= max(self._max_ns - AHEAD_NS, _AHEAD_SHARE * self._max_ns):
            return True
        return self._max_bytes is not None and size >= _AHEAD_SHARE * self._max_bytes
