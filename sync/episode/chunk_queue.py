"""Chunks on their way to the disk: made ready in a pool, then written in order by one thread."""

import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, TypeVar

import zstandard

from sensorium.errors import EpisodeError
from sensorium.sync.episode.chunks import PackedChunk
from sensorium.sync.episode.open_chunk import OpenChunk

_Result = TypeVar("_Result")

_MOST_TO_COMPRESS = 32
"""Chunks that may wait for the pool to compress them. Those beyond are stored as they came: where compression
cannot follow, the disk gets more bytes, and nobody waits (32 MiB are 80 ms of one thread at level 1)."""

_SWITCH_INTERVAL_S = 0.0002
"""How long a thread that wants to run waits for one that computes, at most. Python's 5 ms starve the disk's
thread, which must be let in again after each checksum and each write: beside a loop that never rests it wrote
half as much."""


@dataclass(frozen=True, slots=True)
class DoneChunk:
    """A chunk that the disk has taken, or that is given up with an ``error``; ``stored_bytes`` is 0 then."""

    chunk: OpenChunk
    stored_bytes: int
    error: EpisodeError | None


@dataclass(frozen=True, slots=True)
class _UnderWay:
    chunk: OpenChunk
    size: int
    is_to_compress: bool
    ready: "Future[PackedChunk | None]"
    stored: "Future[int]"


class _Compressor(threading.local):
    """One for each thread: a context cannot be shared."""

    def __init__(self, level: int) -> None:
        self.zstd = zstandard.ZstdCompressor(level=level)


class ChunkQueue:
    """Takes chunks from one thread, the owner, which alone calls its methods; only ``wait`` waits.

    Attributes:
        waiting_bytes: Of the chunks that are not known to be done.
    """

    def __init__(self, zstd_level: int) -> None:
        sys.setswitchinterval(min(sys.getswitchinterval(), _SWITCH_INTERVAL_S))
        self.waiting_bytes = 0
        self._under_way: deque[_UnderWay] = deque()
        self._compressor = _Compressor(zstd_level)
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="episode-disk")
        self._pool = ThreadPoolExecutor(
            max(1, min(4, (os.cpu_count() or 1) - 1)), thread_name_prefix="episode-pool"
        )

    def put(self, chunk: OpenChunk) -> None:
        """Hand a chunk over."""
        size = chunk.size  # before a thread adds the stamps
        is_to_compress = chunk.is_compressible and self._to_compress() < _MOST_TO_COMPRESS
        ready = self._pool.submit(_make_ready, chunk, self._compressor if is_to_compress else None)
        stored = self._disk.submit(_store, chunk, ready)
        self._under_way.append(_UnderWay(chunk, size, is_to_compress, ready, stored))
        self.waiting_bytes += size

    def run(self, job: Callable[[], _Result]) -> "Future[_Result]":
        """Run ``job`` on the disk's thread, behind all chunks that were put so far."""
        return self._disk.submit(job)

    def waiting(self) -> list[OpenChunk]:
        """Return the chunks that were put and not yet taken as done."""
        return [entry.chunk for entry in self._under_way]

    def jobs(self) -> "list[Future[int]]":
        """Return what is done once the chunks that were put are."""
        return [entry.stored for entry in self._under_way]

    def take_done(self) -> list[DoneChunk]:
        """Return what was written or given up since the last call, in order."""
        found = []
        while self._under_way and self._under_way[0].stored.done():
            entry = self._under_way.popleft()
            self.waiting_bytes -= entry.size
            found.append(_done(entry))
        return found

    def wait(self, timeout_s: float | None = None) -> bool:
        """Return whether all that was put until now is done, waiting for it if need be."""
        return not wait(self.jobs(), timeout_s).not_done

    def end(self) -> None:
        """Let the threads go once they have done what they were given."""
        self._pool.shutdown(wait=False)
        self._disk.shutdown(wait=False)

    def _to_compress(self) -> int:
        return sum(entry.is_to_compress and not entry.ready.done() for entry in self._under_way)


def _make_ready(chunk: OpenChunk, compressor: _Compressor | None) -> PackedChunk | None:
    """Return the packed chunk; None if it is not compressed.

    The checksum of its megabyte is best made just before the kernel copies it: by then it is in the cache.
    """
    if compressor is not None:
        return chunk.pack(compressor.zstd)
    chunk.complete()
    return None


def _store(chunk: OpenChunk, ready: "Future[PackedChunk | None]") -> int:
    return chunk.file.add_chunk(ready.result() or chunk.pack(None))


def _done(entry: _UnderWay) -> DoneChunk:
    error = failure_of(entry.stored)
    return DoneChunk(entry.chunk, 0 if error is not None else entry.stored.result(), error)


def failure_of(job: "Future[Any]") -> EpisodeError | None:
    """Return why a job that is done failed, without the traceback.

    That would keep alive the parts of a chunk, which their owner is about to be told are free.
    """
    error = job.exception()
    if error is None:
        return None
    if not isinstance(error, EpisodeError):
        raise error
    if error.__cause__ is not None:
        error.__cause__.with_traceback(None)
    return error.with_traceback(None)
