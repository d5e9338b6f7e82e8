"""A store in a folder that fails and lies when it is told to, and is honest to whoever asks without."""

from collections import Counter
from collections.abc import Iterator
from enum import Enum

from sensorium.uploader.stores.directory import DirectoryStore
from sensorium.uploader.stores.store import ObjectInfo, RetryableStoreError, Store, Upload


class Lie(Enum):
    """What the store does the next time it can: each is told once."""

    LOSE = "it says that an object was stored, and has none"
    CHANGE = "it stores an object with another byte in it"
    KEEP = "it says that an object was deleted, and has it"
    FAIL = "it cannot be reached"


class LyingStore(Store):
    """Tells the lies in ``lies``, each as often as it stands there; its connections share them."""

    def __init__(self, inner: DirectoryStore, lies: "Counter[Lie] | None" = None) -> None:
        self.url = inner.url
        self.inner = inner
        self.lies: Counter[Lie] = Counter() if lies is None else lies

    def tells(self, lie: Lie) -> bool:
        """Return whether this lie is told now, and count it."""
        if not self.lies[lie]:
            return False
        self.lies[lie] -= 1
        return True

    def _reach(self) -> None:
        if self.tells(Lie.FAIL):
            raise RetryableStoreError(f"store {self.url}: no route to host")

    def put(self, key: str, data: bytes) -> None:
        self._reach()
        if not self.tells(Lie.LOSE):
            self.inner.put(key, data[:-3] + b"  \n" if self.tells(Lie.CHANGE) else data)

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        self._reach()
        return self.inner.get(key, start, length)

    def head(self, key: str) -> ObjectInfo | None:
        self._reach()
        return self.inner.head(key)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return self.inner.list(prefix)

    def delete(self, key: str) -> None:
        self._reach()
        if not self.tells(Lie.KEEP):
            self.inner.delete(key)

    def upload(self, key: str) -> Upload:
        self._reach()
        return _LyingUpload(self, self.inner.upload(key), key)

    def reopen(self) -> Store:
        self._reach()
        return LyingStore(self.inner, self.lies)


class _LyingUpload(Upload):
    def __init__(self, store: LyingStore, inner: Upload, key: str) -> None:
        self._store = store
        self._inner = inner
        self._key = key

    def stored_bytes(self) -> int:
        return self._inner.stored_bytes()

    def put_part(self, offset: int, data: bytes | memoryview) -> None:
        if self._store.tells(Lie.CHANGE):
            data = bytes([data[0] ^ 1]) + bytes(data[1:])
        self._inner.put_part(offset, data)

    def complete(self, size_bytes: int, is_replacing: bool = False) -> None:
        if self._store.tells(Lie.LOSE):
            self._inner.abort()
        else:
            self._inner.complete(size_bytes, is_replacing)

    def abort(self) -> None:
        self._inner.abort()
