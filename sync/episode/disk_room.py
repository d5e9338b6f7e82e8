"""How much a spool may still take: of its disk, and of its quota."""

import os
from collections.abc import Iterator
from pathlib import Path

from sensorium.sync.episode.spool import Spool

_BLOCK_BYTES = 512
"""Unit of ``st_blocks`` (POSIX, sys/stat.h)."""


class DiskRoom:
    """Asks the file system; what lies in a sealed folder is measured again only once the folder changed."""

    def __init__(self, spool: Path, quota_bytes: int | None = None, min_free_bytes: int = 0) -> None:
        self.quota_bytes = quota_bytes
        self.min_free_bytes = min_free_bytes
        self._spool = Spool(spool)
        self._measured: dict[Path, tuple[int, int]] = {}

    def free_bytes(self) -> int:
        """Return how much more the spool may take: of its disk above ``min_free_bytes``, of its quota if that is less.

        Raises:
            OSError: If the disk cannot be asked, as when a mount is gone.
        """
        found = os.statvfs(self._spool.root)
        on_disk = found.f_bavail * found.f_frsize - self.min_free_bytes
        return on_disk if self.quota_bytes is None else min(on_disk, self.quota_bytes - self.used_bytes())

    def used_bytes(self) -> int:
        """Return what the episodes of the spool take on the disk: open, sealed, and the rest of evicted ones."""
        settled = (*self._spool.sealed_folders(), *self._spool.gone_folders())
        self._measured = {folder: self._settled(folder) for folder in settled}
        writing = sum(sum(_sizes(folder)) for folder in self._spool.open_folders())
        return writing + sum(taken for _, taken in self._measured.values())

    def _settled(self, folder: Path) -> tuple[int, int]:
        try:
            changed_ns = folder.stat().st_mtime_ns
        except OSError:
            return 0, 0  # moved away meanwhile
        known = self._measured.get(folder)
        return known if known is not None and known[0] == changed_ns else (changed_ns, sum(_sizes(folder)))


def _sizes(folder: Path) -> Iterator[int]:
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                yield entry.stat(follow_symlinks=False).st_blocks * _BLOCK_BYTES
    except OSError:
        return  # sealed, evicted or erased meanwhile
