"""Syncs the files of an open episode now and then, in a thread: a disk that stalls must not stop the loop."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from sensorium.errors import EpisodeError
from sensorium.sync.episode.mcap_file import McapFile
from sensorium.timebase import SECOND_NS


class DiskSync:
    """One sync every ``sync_s`` seconds (None = never), and never two at once."""

    def __init__(self, sync_s: float | None) -> None:
        self._sync_ns = None if sync_s is None else int(sync_s * SECOND_NS)
        self._last_ns: int | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._job: Future[None] | None = None

    def step(self, now_ns: int, files: Sequence[McapFile]) -> None:
        """Begin to sync the files when that is due.

        Raises:
            EpisodeError: If the disk did not take what was written before.
        """
        if self._sync_ns is None:
            return
        if self._last_ns is None:
            self._last_ns = now_ns
        if self._job is not None and self._job.done():
            job, self._job = self._job, None
            job.result()
        if self._job is None and now_ns - self._last_ns >= self._sync_ns:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(1, thread_name_prefix="episode-sync")
            self._last_ns = now_ns
            self._job = self._pool.submit(_sync, files)

    def end(self) -> "Future[None] | None":
        """Begin no more; return the sync that is under way, if there is one."""
        if self._pool is not None:
            self._pool.shutdown(wait=False)
        self._sync_ns = None
        return self._job


def _sync(files: Sequence[McapFile]) -> None:
    for file in files:
        try:
            file.sync()
        except OSError as err:
            raise EpisodeError(f"{file.path} could not be synced to disk: {err.strerror}") from err
