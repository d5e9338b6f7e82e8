"""Calls on a store that are repeated when they may work the next time."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from sensorium.timebase import SECOND_NS, Clock
from sensorium.uploader.stores.store import ObjectInfo, RetryableStoreError, Store, Upload

_T = TypeVar("_T")


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

    def call(self, action: Callable[[], _T]) -> _T:
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

    @property
    def remarks(self) -> tuple[str, ...]:
        return self._inner.remarks

    def put(self, key: str, data: bytes) -> None:
        self._retrier.call(lambda: self._inner.put(key, data))

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        return self._retrier.call(lambda: self._inner.get(key, start, length))

    def head(self, key: str) -> ObjectInfo | None:
        return self._retrier.call(lambda: self._inner.head(key))

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return iter(self._retrier.call(lambda: tuple(self._inner.list(prefix))))

    def delete(self, key: str) -> None:
        self._retrier.call(lambda: self._inner.delete(key))

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
