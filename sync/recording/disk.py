"""Ends a recording that has no room left, and says how long there is some; nothing is removed here."""

from sensorium.sync.episode.disk_room import DiskRoom
from sensorium.sync.episode.writer import EpisodeWriter
from sensorium.sync.recording.open_episode import NOT_STARTED, OpenEpisode
from sensorium.sync.recording.spec import SyncSpec
from sensorium.timebase import SECOND_NS

_GB = 1_000_000_000
_MINUTE_S = 60


class RecordingDisk:
    """The disk that a session records to, with the rig's limits."""

    def __init__(self, spec: SyncSpec) -> None:
        self._room = DiskRoom(spec.spool, spec.disk.quota_bytes, spec.disk.min_free_bytes)

    def trouble(self, writer: EpisodeWriter) -> str:
        """Return why no more may be recorded; "" while there is room for what is in memory, too."""
        if not writer.has_room():
            return f"less than {writer.policy.min_free_bytes >> 20} MiB free on the spool's disk"
        quota_bytes = self._room.quota_bytes
        if quota_bytes is not None and self._room.used_bytes() + writer.unsettled_bytes() >= quota_bytes:
            return (
                f"the spool holds its quota of {quota_bytes / _GB:g} GB (disk: {{quota_gb}} of the rig), and nothing "
                "is deleted that no store was seen to hold; `sensorium episodes evict` says what keeps each episode"
            )
        return ""

    def status(self, episode: OpenEpisode | None, now_ns: int) -> dict[str, float | None]:
        """Return ``free_bytes`` until the limit and ``minutes_left`` at the open episode's rate; None: unknown."""
        try:
            free_bytes = max(self._room.free_bytes(), 0)
        except OSError:
            return {"free_bytes": None, "minutes_left": None}
        return {"free_bytes": free_bytes, "minutes_left": _minutes(free_bytes, episode, now_ns)}


def _minutes(free_bytes: int, episode: OpenEpisode | None, now_ns: int) -> float | None:
    if episode is None or episode.started_ns == NOT_STARTED or not episode.writer.bytes_stored():
        return None
    if now_ns - episode.started_ns < SECOND_NS:
        return None
    recorded_s = (now_ns - episode.started_ns) / SECOND_NS
    return free_bytes / (episode.writer.bytes_stored() / recorded_s) / _MINUTE_S
