"""What a store is: objects under keys, put once, read back, never changed; and how calls on it are retried.

Keys are made of segments ``[A-Za-z0-9_=][A-Za-z0-9._=-]*`` joined by ``/``, at most 512 characters. Every
backend passes tests/uploader/test_stores.py.
"""

import random
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from sensorium.errors import StoreError
from sensorium.timebase import SECOND_NS, Clock

_KEY = re.compile(r"[A-Za-z0-9_=][A-Za-z0-9._=-]*(/[A-Za-z0-9_=][A-Za-z0-9._=-]*)*")
_MAX_KEY_LENGTH = 512

T = TypeVar("T")


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
    Nothing here deletes; removing data is the work of tools that ask for it by name.
    """

    url: str

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


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential backoff with full jitter: the n-th wait is uniform in 0 .. min(cap, base * 2^n).

    Source: M. Brooker, "Exponential backoff and jitter", AWS Architecture Blog, 2015.
    """

    attempts: int = 6
    base_s: float = 0.2
    cap_s: float = 30.0

    def delay_s(self, failures: int, rng: random.Random, retry_after_s: float = 0.0) -> float:
        """Return the wait after so many failures (1 or more), never less than the store asked for."""
        return max(retry_after_s, rng.uniform(0.0, min(self.cap_s, self.base_s * 2.0 ** (failures - 1))))


class Retrier:
    """Repeats calls that fail with ``RetryableStoreError``."""

    def __init__(self, policy: RetryPolicy, clock: Clock, rng: random.Random) -> None:
        self._policy = policy
        self._clock = clock
        self._rng = rng

    def call(self, action: Callable[[], T]) -> T:
        """Return what ``action`` returns; re-raise its last error when the attempts are used up."""
        failures = 0
        while True:
            try:
                return action()
            except RetryableStoreError as error:
                failures += 1
                if failures >= self._policy.attempts:
                    raise
                delay_s = self._policy.delay_s(failures, self._rng, error.retry_after_s)
            self._clock.sleep_until(self._clock.now_ns() + int(delay_s * SECOND_NS))


class RetryingStore(Store):
    """A store whose calls are repeated when they may work the next time."""

    def __init__(self, inner: Store, retrier: Retrier) -> None:
        self.url = inner.url
        self._inner = inner
        self._retrier = retrier

    def put(self, key: str, data: bytes) -> None:
        self._retrier.call(lambda: self._inner.put(key, data))

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        return self._retrier.call(lambda: self._inner.get(key, start, length))

    def head(self, key: str) -> ObjectInfo | None:
        return self._retrier.call(lambda: self._inner.head(key))

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return iter(self._retrier.call(lambda: tuple(self._inner.list(prefix))))

    def upload(self, key: str) -> Upload:
        return _RetryingUpload(self._retrier.call(lambda: self._inner.upload(key)), self._retrier)

    def reopen(self) -> Store:
        return RetryingStore(self._retrier.call(self._inner.reopen), self._retrier)


class _RetryingUpload(Upload):
    def __init__(self, inner: Upload, retrier: Retrier) -> None:
        self._inner = inner
        self._retrier = retrier

    def stored_bytes(self) -> int:
        return self._retrier.call(self._inner.stored_bytes)

    def put_part(self, offset: int, data: bytes | memoryview) -> None:
        self._retrier.call(lambda: self._put_once(offset, data))

    def _put_once(self, offset: int, data: bytes | memoryview) -> None:
        # An attempt that failed may have brought the part or a piece of it.
        arrived_bytes = self._inner.stored_bytes() - offset
        if arrived_bytes < len(data):
            self._inner.put_part(offset + max(arrived_bytes, 0), data[max(arrived_bytes, 0) :])

    def complete(self, size_bytes: int, is_replacing: bool = False) -> None:
        # Not repeated: a failed completion drops the upload, so the caller sends it again.
        self._inner.complete(size_bytes, is_replacing)

    def abort(self) -> None:
        self._retrier.call(self._inner.abort)


class MemoryStore(Store):
    """A store in memory, for tests and trials; ``reopen`` shares the objects."""

    url = "memory:"

    def __init__(self) -> None:
        self._objects: dict[str, bytes] = {}
        self._uploads: dict[str, bytearray] = {}

    def put(self, key: str, data: bytes) -> None:
        if check_key(key) in self._objects:
            raise ObjectExistsError(f"{key} exists in {self.url}")
        self._objects[key] = bytes(data)

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        if check_key(key) not in self._objects:
            raise ObjectMissingError(f"{key} is not in {self.url}")
        return self._objects[key][start : None if length is None else start + length]

    def head(self, key: str) -> ObjectInfo | None:
        return ObjectInfo(key, len(self._objects[key])) if check_key(key) in self._objects else None

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        for key in sorted(self._objects):
            if key.startswith(prefix):
                yield ObjectInfo(key, len(self._objects[key]))

    def upload(self, key: str) -> Upload:
        return _MemoryUpload(self._objects, self._uploads, check_key(key))

    def reopen(self) -> Store:
        again = MemoryStore()
        again._objects, again._uploads = self._objects, self._uploads
        return again


class _MemoryUpload(Upload):
    def __init__(self, objects: dict[str, bytes], uploads: dict[str, bytearray], key: str) -> None:
        self._objects = objects
        self._uploads = uploads
        self._key = key

    def stored_bytes(self) -> int:
        return len(self._uploads.get(self._key, b""))

    def put_part(self, offset: int, data: bytes | memoryview) -> None:
        check_offset(self._key, self.stored_bytes(), offset)
        self._uploads.setdefault(self._key, bytearray()).extend(data)

    def complete(self, size_bytes: int, is_replacing: bool = False) -> None:
        data = bytes(self._uploads.pop(self._key, b""))
        check_size(self._key, len(data), size_bytes)
        if self._key in self._objects and not is_replacing:
            raise ObjectExistsError(f"{self._key} exists in memory")
        self._objects[self._key] = data

    def abort(self) -> None:
        self._uploads.pop(self._key, None)


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
