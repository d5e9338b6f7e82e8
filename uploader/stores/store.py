"""What a store is: objects under keys, put once, read back, never changed.

Keys are made of segments ``[A-Za-z0-9_=][A-Za-z0-9._=-]*`` joined by ``/``, at most 512 characters. Every
backend passes tests/uploader/test_stores.py.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

from sensorium.errors import StoreError

_KEY = re.compile(r"[A-Za-z0-9_=][A-Za-z0-9._=-]*(/[A-Za-z0-9_=][A-Za-z0-9._=-]*)*")
_MAX_KEY_LENGTH = 512


class RetryableStoreError(StoreError):
    """It may work the next time: a timeout, a busy server, a cut connection.

    Attributes:
        retry_after_s: The store asked not to be called again before.
    """

    def __init__(self, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ParkedStoreError(StoreError):
    """It will not work until somebody acts: no room, no permission, no such folder. Never success."""


class FatalStoreError(StoreError):
    """It can never work: a key that no store takes, a request that makes no sense."""


class ObjectExistsError(StoreError):
    """There is an object under that key, and it was to be put only if there is none."""


class ObjectMissingError(StoreError):
    """There is no object under that key."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    key: str
    size_bytes: int


class Upload(ABC):
    """A large object on its way, invisible under its key until ``complete``. It outlives the process."""

    @abstractmethod
    def stored_bytes(self) -> int:
        """Return how many bytes, counted from the beginning, the store holds already."""

    @abstractmethod
    def put_part(self, offset: int, data: bytes | memoryview) -> None:
        """Add a part; parts come in order, each where the last one ended.

        Raises:
            FatalStoreError: If ``offset`` is not where the last part ended.
        """

    @abstractmethod
    def complete(self, size_bytes: int, is_replacing: bool = False) -> None:
        """Make the object appear under its key, whole and durable.

        Args:
            size_bytes: What the parts must add up to.
            is_replacing: Put it even where an object exists (one that was found damaged).

        Raises:
            ObjectExistsError: If there is an object and ``is_replacing`` is false; the upload is dropped.
            RetryableStoreError: If the store holds another number of bytes; the upload is dropped.
        """

    @abstractmethod
    def abort(self) -> None:
        """Drop what was sent; safe to call at any time."""


class Store(ABC):
    """Objects under keys.

    Errors are ``RetryableStoreError``, ``ParkedStoreError`` or ``FatalStoreError`` unless said otherwise.
    Nothing is deleted but what :meth:`delete` is asked for by name: data that consent no longer lets anybody keep.
    """

    url: str

    @property
    def remarks(self) -> tuple[str, ...]:
        """What was found so far that this store cannot promise, in words; nothing is refused for it."""
        return ()

    @abstractmethod
    def put(self, key: str, data: bytes) -> None:
        """Put a small object, durably, in one step, only if there is none under the key.

        Raises:
            ObjectExistsError: If there is one. After a retry it may be our own: read it to know.
        """

    @abstractmethod
    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        """Return a range of an object; shorter where the object ends.

        Raises:
            ObjectMissingError: If there is no such object.
        """

    @abstractmethod
    def head(self, key: str) -> ObjectInfo | None:
        """Return what is under a key; None if nothing."""

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield the objects whose keys begin with ``prefix``, sorted by key."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove an object, durably; that there is none is fine, so it may be done again."""

    @abstractmethod
    def upload(self, key: str) -> Upload:
        """Return the upload in progress under a key; a new one if there is none."""

    @abstractmethod
    def reopen(self) -> "Store":
        """Return the same store through a fresh connection, which shares no buffers with this one."""


def check_key(key: str) -> str:
    """Return the key.

    Raises:
        FatalStoreError: If it could mean different things to different stores, or leave its folder.
    """
    if len(key) > _MAX_KEY_LENGTH or not _KEY.fullmatch(key):
        raise FatalStoreError(f"store key {key!r} is not made of plain segments joined by /")
    return key


def check_offset(key: str, stored_bytes: int, offset: int) -> None:
    """Raise ``FatalStoreError`` unless the next part begins where the last one ended."""
    if stored_bytes != offset:
        raise FatalStoreError(
            f"upload of {key}: a part for byte {offset}, but the store holds {stored_bytes}"
        )


def check_size(key: str, stored_bytes: int, size_bytes: int) -> None:
    """Raise ``RetryableStoreError`` unless an upload is as long as it should be."""
    if stored_bytes != size_bytes:
        raise RetryableStoreError(
            f"upload of {key}: the store holds {stored_bytes} bytes of {size_bytes}; it must be sent again"
        )
