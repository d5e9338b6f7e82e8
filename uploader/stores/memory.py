"""A store in memory: the shortest one that keeps every promise of the interface."""

from collections.abc import Iterator

from sensorium.uploader.stores.store import (
    ObjectExistsError,
    ObjectInfo,
    ObjectMissingError,
    Store,
    Upload,
    check_key,
    check_offset,
    check_size,
)


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

    def delete(self, key: str) -> None:
        self._objects.pop(check_key(key), None)

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
