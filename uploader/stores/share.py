"""What the file system below a folder store cannot do: shares (SMB, NFS, sshfs, 9p) and FAT lack what POSIX promises.

Each lack is worked around as far as that goes and noted, so that it is said once instead of ending every delivery.
"""

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sensorium.sync.episode.spool import sync_folder, sync_opened

UNSUPPORTED = frozenset(
    {
        errno.EPERM,
        errno.EACCES,
        errno.EINVAL,
        errno.EOPNOTSUPP,
        errno.ENOSYS,
        errno.EXDEV,
        errno.EMLINK,
        errno.ENOTTY,
        errno.ELOOP,
    }
)
"""What file systems answer to a hard link that they do not know; that of a full or broken one is none of these."""

_NO_LOCKS = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EBADF, errno.EPERM})
_NO_REPLACING = frozenset({errno.EEXIST, errno.EACCES, errno.EPERM, errno.EINVAL})


class Share:
    """The calls that not every file system has; ``remarks`` say which were found lacking, each once.

    Args:
        link: Gives a file a second name unless it is taken.
    """

    def __init__(self, link: Callable[[Path, Path], None] = os.link) -> None:
        self._link = link
        self._remarks: dict[str, None] = {}

    @property
    def remarks(self) -> tuple[str, ...]:
        return tuple(self._remarks)

    def link(self, source: Path, target: Path) -> bool:
        """Give a file a second name; return whether links are known here.

        Raises:
            FileExistsError: If the name is taken.
            OSError: If it cannot be written.
        """
        try:
            self._link(source, target)
        except OSError as err:
            if err.errno not in UNSUPPORTED:
                raise
            # How it is worked around, a rename under a lock, is as good where only this program writes: no remark.
            return False
        return True

    def replace(self, source: Path, target: Path) -> None:
        """Rename a file onto another; where that is refused, the other goes first.

        Raises:
            OSError: If it cannot be written.
        """
        try:
            source.replace(target)
        except OSError as err:
            if err.errno not in _NO_REPLACING or not target.exists():
                raise
            target.unlink()
            source.rename(target)
            self._note("no file can be renamed onto another: for an instant one that is replaced is missing")

    def sync_folder(self, folder: Path) -> None:
        """Make the names in a folder survive a power cut of the server, if it can do that.

        Raises:
            OSError: If it can, and failed.
        """
        if not sync_folder(folder):
            self._note(
                "folders cannot be synced: a power cut at the server may lose the names of the last files, "
                "which `sensorium upload verify` finds"
            )

    def sync_file(self, descriptor: int) -> None:
        """Make a file survive a power cut of the server, if it can do that.

        Raises:
            OSError: If it can, and failed.
        """
        if not sync_opened(descriptor):
            self._note(
                "files cannot be synced: a power cut at the server may lose what it took last, which "
                "`sensorium upload verify` finds"
            )
        with suppress(OSError):  # reading back shall come from the disk, not from the pages just written
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def lock(self, descriptor: int) -> None:
        """Be the only one with a file, if the share knows locks; ends with the descriptor.

        Raises:
            OSError: If it knows them, and failed.
        """
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as err:
            if err.errno not in _NO_LOCKS:
                raise
            self._note("files cannot be locked: let only one machine at a time send to this folder")

    @contextmanager
    def locked(self, path: Path) -> Iterator[None]:
        """Hold the lock of a file, which is made."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self.lock(descriptor)
            yield
        finally:
            os.close(descriptor)

    def _note(self, text: str) -> None:
        self._remarks[text] = None
