"""The files of the next episode, made in a thread before it begins: a split must not wait for the disk."""

import shutil
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from sensorium.calibration.rig_document import RigCalibration
from sensorium.drivers.frame import StreamInfo
from sensorium.errors import EpisodeError
from sensorium.sync.episode.files import PREPARED_FILE
from sensorium.sync.episode.ulid import new_ulid
from sensorium.sync.recording.open_episode import NOT_STARTED, OpenEpisode
from sensorium.sync.recording.spec import SyncSpec
from sensorium.timebase import SECOND_NS, Clock, Timeline

_FRESH_NS = 60 * SECOND_NS
"""What was made longer ago carries a name, and a relation of clocks, from too long ago."""
_SAME_OFFSET_NS = SECOND_NS // 100
"""By so much UTC may have moved against the host clock meanwhile; a step of the clock is more."""


@dataclass(frozen=True, slots=True)
class _Ahead:
    timeline: Timeline
    reference: str
    infos: tuple[StreamInfo, ...]
    made_ns: int
    future: "Future[OpenEpisode]"

    def fits(self, timeline: Timeline, reference: str, infos: Sequence[StreamInfo], now_ns: int) -> bool:
        offset_ns = abs(timeline.utc_minus_host_ns - self.timeline.utc_minus_host_ns)
        is_alike = (reference, tuple(infos)) == (self.reference, self.infos)
        return is_alike and offset_ns < _SAME_OFFSET_NS and now_ns - self.made_ns < _FRESH_NS


class FilesAhead:
    """Makes the files of at most one episode ahead of time; what is not used is removed."""

    def __init__(self, spec: SyncSpec, clock: Clock, calibration: RigCalibration | None) -> None:
        self._spec = spec
        self._clock = clock
        self._calibration = calibration
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="files-ahead")
        self._ahead: _Ahead | None = None

    def prepare(self, timeline: Timeline, reference: str, infos: tuple[StreamInfo, ...]) -> None:
        """Begin to make them, unless that was begun."""
        if self._ahead is None:
            episode_id = new_ulid(self._clock.utc_ns())
            future = self._pool.submit(self._make, episode_id, timeline, reference, infos)
            self._ahead = _Ahead(timeline, reference, infos, self._clock.now_ns(), future)

    def take(self, timeline: Timeline, reference: str, infos: Sequence[StreamInfo]) -> OpenEpisode | None:
        """Return an episode that is ready and fits what is to be recorded; None if there is none."""
        ahead, self._ahead = self._ahead, None
        if ahead is None:
            return None
        if not ahead.future.done() or not ahead.fits(timeline, reference, infos, self._clock.now_ns()):
            self._pool.submit(_remove, ahead.future)
            return None
        return ahead.future.result() if ahead.future.exception() is None else None

    def close(self) -> None:
        """Remove what was not used; return when that is done."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            self._pool.submit(_remove, ahead.future)
        self._pool.shutdown(wait=True)

    def _make(
        self, episode_id: str, timeline: Timeline, reference: str, infos: tuple[StreamInfo, ...]
    ) -> OpenEpisode:
        folder = self._spec.spool / "open" / episode_id
        try:
            folder.mkdir(mode=0o700, parents=True)
            (folder / PREPARED_FILE).touch()
            episode = OpenEpisode(self._spec, episode_id, timeline, reference, NOT_STARTED)
            episode.prepare(infos, self._spec.calibration, self._calibration)
        except (OSError, EpisodeError):
            shutil.rmtree(folder, ignore_errors=True)
            raise  # whoever begins tries again, and says why
        return episode


def _remove(future: "Future[OpenEpisode]") -> None:
    if future.exception() is None:
        episode = future.result()
        episode.writer.finish().result()
        episode.remove()
