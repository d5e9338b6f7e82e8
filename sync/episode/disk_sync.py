"""Syncs the files of an open episode again and again, in a thread: a disk that stalls must not stop the loop."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from sensorium.errors import EpisodeError
from sensorium.sync.episode.mcap_file import McapFile
from sensorium.sync.episode.spool import sync_folder
from sensorium.timebase import SECOND_NS

_BEGIN_SHARE = 0.4
"""Of ``sync_s``, after which the next sync begins: what comes just then waits as long, and for the sync itself."""


class DiskSync:
    """Lets nothing wait for longer than ``sync_s`` to be on the disk, if the disk keeps up; never syncs twice at once.

    Attributes:
        worst_ns: The longest that something written was seen to wait.
    """

    def __init__(self, folder: Path, sync_s: float | None) -> None:
        """``sync_s`` None = only what the kernel does by itself."""
        self.worst_ns = 0
        self._folder = folder
        self._every_ns = None if sync_s is None else int(_BEGIN_SHARE * sync_s * SECOND_NS)
        self._began_ns: int | None = None
        self._safe_ns: int | None = None
        self._named: frozenset[Path] = frozenset()
        self._pool: ThreadPoolExecutor | None = None
        self._job: Future[None] | None = None

    def step(self, now_ns: int, hand_over: Callable[[], "Future[None]"], files: Sequence[McapFile]) -> None:
        """Begin to sync the files when that is due.

        Args:
            hand_over: Gives the disk's thread what is in memory; what it returns is done once that is written.

        Raises:
            EpisodeError: If the disk did not take what was written before.
        """
        if self._every_ns is None:
            return
        if self._began_ns is None or self._safe_ns is None:
            self._began_ns = self._safe_ns = now_ns
        if self._job is not None and self._job.done():
            self._take_done(now_ns, self._safe_ns, self._began_ns)
        if self._job is None and now_ns - self._began_ns >= self._every_ns:
            self._began_ns = now_ns
            self._job = self._start(hand_over(), files)

    def end(self) -> "Future[None] | None":
        """Begin no more; return the sync that is under way, if there is one."""
        if self._pool is not None:
            self._pool.shutdown(wait=False)
        self._every_ns = None
        return self._job

    def _take_done(self, now_ns: int, safe_ns: int, began_ns: int) -> None:
        """Note that what came before the sync began is safe; until now, nothing since the one before was."""
        job, self._job = self._job, None
        self.worst_ns = max(self.worst_ns, now_ns - safe_ns)
        self._safe_ns = began_ns
        if job is not None:
            job.result()

    def _start(self, handed: "Future[None]", files: Sequence[McapFile]) -> "Future[None]":
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="episode-sync")
        fresh = frozenset(file.path for file in files) - self._named
        self._named |= fresh
        return self._pool.submit(_sync, handed, files, self._folder if fresh else None)


def _sync(handed: "Future[None]", files: Sequence[McapFile], folder: Path | None) -> None:
    """Sync files that have got all they were given, and the names of new ones in their folder."""
    handed.result()
    try:
        for file in files:
            file.sync()
        if folder is not None:
            sync_folder(folder)
            sync_folder(folder.parent)
    except OSError as err:
        raise EpisodeError(
            f"{files[0].path.parent} could not be synced to disk: {err.strerror}; check the disk"
        ) from err
