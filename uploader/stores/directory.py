"""A store in a folder: a disk, a mounted share, a drive that is carried away. ``file:///path``."""

import contextlib
import errno
import hashlib
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sensorium.errors import ConfigError, StoreError
from sensorium.masking import masked_address
from sensorium.sync.episode.files import is_litter
from sensorium.sync.episode.spool import write_all
from sensorium.uploader.stores.share import Share
from sensorium.uploader.stores.store import (
    ObjectExistsError,
    ObjectInfo,
    ObjectMissingError,
    ParkedStoreError,
    RetryableStoreError,
    Store,
    Upload,
    check_key,
    check_offset,
    check_size,
)

_PARTIAL = ".partial"
_PASSING = frozenset(
    {
        errno.EIO,
        errno.EAGAIN,
        errno.EBUSY,
        errno.ETIMEDOUT,
        errno.ESTALE,
        errno.ENOENT,
        errno.EINTR,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ECONNRESET,
        errno.ECONNABORTED,
        errno.ECONNREFUSED,
        errno.ENOTCONN,
        errno.EREMOTEIO,
    }
)
"""What a share answers while its server is away."""


def open_directory(url: str) -> Store:
    """Return the store in the folder of a ``file:`` URL.

    Raises:
        ConfigError: If it names another machine, or no absolute path.
    """
    parts = urlsplit(url)
    folder = Path(unquote(parts.path))
    if parts.netloc not in ("", "localhost") or not folder.is_absolute():
        raise ConfigError(f"store {masked_address(url)!r}: a folder is written file:///absolute/path")
    return DirectoryStore(folder)


class DirectoryStore(Store):
    """Objects as files below ``root``; what is not complete lies in ``root/.partial``.

    An object appears whole: it is written beside, synced, and linked to its name, which fails if the name is
    taken. The parent of ``root`` must exist, so that a drive that is not mounted is noticed.

    Args:
        link: Gives a file a second name unless it is taken; where the file system has no links (FAT, some
            shares) a locked rename does.
        share: How its file system does what not every one can.
    """

    def __init__(
        self, root: Path, link: Callable[[Path, Path], None] = os.link, share: Share | None = None
    ) -> None:
        self.root = root
        self.url = root.as_uri()
        self.share = share or Share(link)

    @property
    def remarks(self) -> tuple[str, ...]:
        return tuple(f"store {self.url}: {each}" for each in self.share.remarks)

    def put(self, key: str, data: bytes) -> None:
        with _explained(self, key):
            path = self.path(key)
            folder = self.partial_folder()
            stem = f"put-{_short_hash(key)}"
            partial = folder / f"{stem}-{secrets.token_hex(8)}"
            try:
                if path.exists():
                    raise ObjectExistsError(f"{key} exists in {self.url}")
                self._write_synced(partial, data)
                self.publish(partial, key, is_replacing=False)
            finally:
                for leftover in folder.glob(f"{stem}-*"):  # ours, and those of processes that were killed
                    leftover.unlink(missing_ok=True)

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        with _explained(self, key):
            try:
                with self.path(key).open("rb", buffering=0) as file:
                    file.seek(start)
                    return _read_fully(file.fileno(), length)
            except FileNotFoundError as error:
                raise ObjectMissingError(f"{key} is not in {self.url}") from error

    def head(self, key: str) -> ObjectInfo | None:
        with _explained(self, key):
            try:
                return ObjectInfo(key, self.path(key).stat().st_size)
            except FileNotFoundError:
                return None

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        with _explained(self, prefix):
            found = []
            for folder, folders, names in os.walk(self.root):
                folders[:] = [name for name in folders if not is_litter(name)]
                found += [Path(folder, name) for name in names if not is_litter(name)]
            keys = sorted((path.relative_to(self.root).as_posix(), path) for path in found)
            chosen = [ObjectInfo(key, path.stat().st_size) for key, path in keys if key.startswith(prefix)]
        yield from chosen

    def delete(self, key: str) -> None:
        with _explained(self, key):
            path = self.path(key)
            path.unlink(missing_ok=True)
            if path.parent.is_dir():
                self.share.sync_folder(path.parent)

    def upload(self, key: str) -> Upload:
        return _DirectoryUpload(self, check_key(key))

    def reopen(self) -> Store:
        return DirectoryStore(self.root, share=self.share)

    def path(self, key: str) -> Path:
        """Return where an object lies.

        Raises:
            FatalStoreError: If the key is malformed.
            ParkedStoreError: If a link inside the store leads out of it.
        """
        path = self.root / check_key(key)
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise ParkedStoreError(
                f"store {self.url}: {key} leads out of the store through a link; remove it"
            )
        return path

    def partial_folder(self) -> Path:
        folder = self.root / _PARTIAL
        if not folder.is_dir():
            if not self.root.parent.is_dir():
                raise ParkedStoreError(f"store {self.url}: {self.root.parent} does not exist; is it mounted?")
            self._make_folders(folder, self.root.parent)
        return folder

    def publish(self, partial: Path, key: str, is_replacing: bool) -> None:
        """Give a synced file its name in the store, durably.

        Raises:
            ObjectExistsError: If the name is taken and ``is_replacing`` is false.
        """
        path = self.path(key)
        self._make_folders(path.parent, self.root)
        if is_replacing:
            self.share.replace(partial, path)
        else:
            self._link_or_rename(partial, path)
        self.share.sync_folder(path.parent)

    def _link_or_rename(self, partial: Path, path: Path) -> None:
        try:
            if self.share.link(partial, path):
                return
        except FileExistsError as error:
            raise ObjectExistsError(f"{path.relative_to(self.root)} exists in {self.url}") from error
        with self.share.locked(self.partial_folder() / "lock"):
            if path.exists():
                raise ObjectExistsError(f"{path.relative_to(self.root)} exists in {self.url}")
            partial.rename(path)

    def _make_folders(self, folder: Path, existing: Path) -> None:
        """Create the folders between ``existing`` and ``folder`` so that they survive a power cut."""
        missing = [
            path for path in (folder, *folder.parents) if path.is_relative_to(existing) and path != existing
        ]
        for path in reversed(missing):
            with contextlib.suppress(FileExistsError):
                path.mkdir(mode=0o700)
                self.share.sync_folder(path.parent)

    def _write_synced(self, path: Path, data: bytes) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            write_all(descriptor, data)
            self.share.sync_file(descriptor)
        finally:
            os.close(descriptor)


class _DirectoryUpload(Upload):
    """One file in ``.partial`` that grows in order, so that its length says how much has arrived."""

    def __init__(self, store: DirectoryStore, key: str) -> None:
        self._store = store
        self._key = key
        self._name = f"upload-{_short_hash(key)}"

    def stored_bytes(self) -> int:
        with _explained(self._store, self._key):
            try:
                return self._path().stat().st_size
            except FileNotFoundError:
                return 0

    def put_part(self, offset: int, data: bytes | memoryview) -> None:
        with _explained(self._store, self._key):
            self._store.partial_folder()
            descriptor = os.open(self._path(), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                self._store.share.lock(descriptor)
                check_offset(self._key, os.fstat(descriptor).st_size, offset)
                os.lseek(descriptor, offset, os.SEEK_SET)
                try:
                    write_all(descriptor, data)
                except OSError:
                    os.ftruncate(descriptor, offset)
                    raise
            finally:
                os.close(descriptor)

    def complete(self, size_bytes: int, is_replacing: bool = False) -> None:
        with _explained(self._store, self._key):
            try:
                self._sync(size_bytes)
                self._store.publish(self._path(), self._key, is_replacing)
            finally:
                # Also after a failed sync: the kernel may have dropped pages, so what is there is not to be
                # trusted and must be sent again.
                self.abort()

    def abort(self) -> None:
        with _explained(self._store, self._key):
            self._path().unlink(missing_ok=True)

    def _sync(self, size_bytes: int) -> None:
        if size_bytes == 0:
            self._store.partial_folder()
            self._path().touch(mode=0o600)
        descriptor = os.open(self._path(), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            check_size(self._key, os.fstat(descriptor).st_size, size_bytes)
            self._store.share.sync_file(descriptor)
        finally:
            os.close(descriptor)

    def _path(self) -> Path:
        return self._store.root / _PARTIAL / self._name


@contextmanager
def _explained(store: DirectoryStore, key: str) -> Iterator[None]:
    """Turn operating system errors into store errors that say whether to try again."""
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        message = f"store {store.url}: {key}: {error.strerror or error}"
        if error.errno in _PASSING:
            raise RetryableStoreError(message) from error
        raise ParkedStoreError(message) from error


def _short_hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:32]


def _read_fully(descriptor: int, length: int | None) -> bytes:
    chunks = []
    while length is None or length > 0:
        chunk = os.read(descriptor, 1 << 20 if length is None else min(length, 1 << 30))
        if not chunk:
            break
        chunks.append(chunk)
        length = None if length is None else length - len(chunk)
    return b"".join(chunks)
