"""The spool on disk: where episodes lie, and who owns it.

Layout: ``open/<ULID>/`` while recording, ``sealed/<ULID>/`` once signed, ``gone/<ULID>/`` what is left of evicted ones.
"""

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sensorium.errors import BusyError, EpisodeError
from sensorium.sync.episode.ulid import ULID


class Spool:
    """Paths of a spool; ``create`` makes the folders, private to the user (mode 0700)."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.open_dir = root / "open"
        self.sealed_dir = root / "sealed"
        self.gone_dir = root / "gone"
        self.chain_file = root / "chain.json"
        self._lock_file = root / "lock"

    @classmethod
    def of(cls, episode_folder: Path) -> "Spool":
        """Return the spool that an episode folder lies in."""
        return cls(episode_folder.resolve().parent.parent)

    def create(self) -> None:
        """Make the folders.

        Raises:
            EpisodeError: If they cannot be made.
        """
        try:
            for folder in (self.root, self.open_dir, self.sealed_dir):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as err:
            raise EpisodeError(f"spool {self.root} cannot be made: {err.strerror}") from err

    def open_folder(self, episode_id: str) -> Path:
        return self.open_dir / _checked(episode_id)

    def sealed_folder(self, episode_id: str) -> Path:
        return self.sealed_dir / _checked(episode_id)

    def open_folders(self) -> list[Path]:
        """Return the folders of open episodes, oldest first; orphans, if no agent holds the lock."""
        return _episode_folders(self.open_dir)

    def sealed_folders(self) -> list[Path]:
        """Return the folders of sealed episodes, oldest first."""
        return _episode_folders(self.sealed_dir)

    def gone_folders(self) -> list[Path]:
        """Return the folders of episodes whose data was evicted, oldest first: manifest, revisions, receipt."""
        return _episode_folders(self.gone_dir)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Own the spool; the kernel releases it when this process dies.

        Raises:
            BusyError: If another process owns it; names its pid.
        """
        self.create()
        fd = os.open(self._lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as err:
                if err.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    raise EpisodeError(f"spool {self.root} cannot be locked: {err.strerror}") from err
                owner = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
                raise BusyError(
                    f"spool {self.root} is in use by process {owner}; stop it or choose another spool"
                ) from err
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
            yield
        finally:
            os.close(fd)


def _checked(episode_id: str) -> str:
    if not ULID.fullmatch(episode_id):
        raise EpisodeError(f"{episode_id!r} is not an episode id (26 letters and digits)")
    return episode_id


def _episode_folders(parent: Path) -> list[Path]:
    if not parent.is_dir():
        return []
    return sorted(folder for folder in parent.iterdir() if ULID.fullmatch(folder.name) and folder.is_dir())


_CANNOT_SYNC = frozenset(
    {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EPERM, errno.EACCES, errno.EISDIR}
)
"""What SMB shares, 9p, FUSE and FAT answer to the sync of a folder that they cannot sync; it is no failed write."""


def sync_folder(folder: Path) -> bool:
    """Make the names in a folder survive a power cut; return whether its file system can.

    Raises:
        OSError: If it can, and failed.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return sync_opened(fd)
    finally:
        os.close(fd)


def sync_opened(descriptor: int) -> bool:
    """Sync an open file or folder; return whether its file system can.

    Raises:
        OSError: If it can, and failed.
    """
    try:
        os.fsync(descriptor)
    except OSError as err:
        if err.errno not in _CANNOT_SYNC:
            raise
        return False
    return True


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write every byte to an open file; ``os.write`` may take fewer."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


MOST_RECORD_BYTES = 64 << 20
"""Of a manifest or another record beside the data: one of a terabyte of episode has ten."""


def read_plain(path: Path, most_bytes: int = MOST_RECORD_BYTES) -> bytes:
    """Return what a small file holds; one that is a link, a pipe or a device is not opened, nor one that is huge read.

    Raises:
        OSError: If it is none, or cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is no plain file", str(path))
        if found.st_size > most_bytes:
            raise OSError(
                errno.EFBIG, f"it has {found.st_size} bytes, at most {most_bytes} make sense", str(path)
            )
        return file.read(most_bytes)


def write_durably(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replace ``path`` so that after a crash it holds either the old or the new bytes.

    Raises:
        EpisodeError: If the disk does not take it; the old file stays.
    """
    scratch = path.with_name(f".{path.name}.tmp")
    try:
        scratch.unlink(missing_ok=True)
        fd = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(fd)
        scratch.replace(path)
        sync_folder(path.parent)
    except OSError as err:
        raise EpisodeError(f"{path} cannot be written: {err.strerror}; free space or check the disk") from err
