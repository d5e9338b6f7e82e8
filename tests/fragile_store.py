"""A store that dies after so many calls."""

from collections.abc import Callable, Iterator

from sensorium.uploader.stores.directory import DirectoryStore
from sensorium.uploader.stores.store import ObjectInfo, Store, Upload


class PowerCut(BaseException):
    """The process ends here."""


class Fragile(Store):
    """A store in a folder that dies after so many calls, and asks at each commit whether it was allowed."""

    def __init__(self, inner: DirectoryStore, calls: int, on_put: Callable[[str], None]) -> None:
        self.url = inner.url
        self._inner = inner
        self._left = calls
        self._on_put = on_put

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise PowerCut

    def put(self, key: str, data: bytes) -> None:
        self._count()
        self._on_put(key)
        self._inner.put(key, data)
        self._count()

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        self._count()
        return self._inner.get(key, start, length)

    def head(self, key: str) -> ObjectInfo | None:
        self._count()
        return self._inner.head(key)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return self._inner.list(prefix)

    def delete(self, key: str) -> None:
        self._count()
        self._inner.delete(key)

    def upload(self, key: str) -> Upload:
        self._count()
        return self._inner.upload(key)

    def reopen(self) -> Store:
        self._count()
        return self
