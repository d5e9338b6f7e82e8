"""Chunks on their way to the disk: made ready in a pool, then written in order by one thread."""

import os
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Protocol

import zstandard

from sensorium.errors import EpisodeError
from sensorium.sync.episode.chunks import PackedChunk
from sensorium.sync.episode.open_chunk import OpenChunk

_MOST_TO_COMPRESS = 32
"""Chunks that may wait for the pool to compress them. Those beyond are stored as they came: where compression
cannot follow, the disk gets more bytes, and nobody waits (32 MiB are 80 ms of one thread at level 1)."""

_SWITCH_INTERVAL_S = 0.00005
"""How long a thread that wants to run waits for one that computes, at most. Python's 5 ms starve the disk's
thread, which must be let in again after each checksum and each write: beside a loop that never rests it wrote
half as much, and at full speed a sixth less."""


class _Job(Protocol):
    def run(self) -> None: ...


class ChunkJob:
    """One chunk on its way.

    Attributes:
        size: Of its messages, without the stamps.
        packed: The chunk compressed; None if it is to be stored as it came.
        completed: When its stamps are added; None if they are, or whoever packs it does that.
        is_done: Whether it was written or given up; its payloads are not referenced any more.
    """

    __slots__ = ("_error", "chunk", "completed", "is_done", "packed", "size", "stored_bytes")

    def __init__(self, chunk: OpenChunk) -> None:
        self.chunk = chunk
        self.size = chunk.size
        self.packed: Future[PackedChunk] | None = None
        self.completed: Future[None] | None = None
        self.stored_bytes = 0
        self._error: BaseException | None = None
        self.is_done = False

    def run(self) -> None:
        """Write the chunk once it is ready; by the disk's thread."""
        try:
            self.stored_bytes = self.chunk.file.add_chunk(self._ready())
        except EpisodeError as err:
            self._error = _bare(err)
        except BaseException as err:  # noqa: BLE001 - a mistake of ours, for the thread that put the chunk
            self._error = err
        self.chunk.release()
        self.is_done = True

    def _ready(self) -> PackedChunk:
        if self.packed is not None:
            return self.packed.result()
        if self.completed is not None:
            self.completed.result()
        # Summed only now: the processor that copies the megabyte next has it in its cache.
        return self.chunk.pack(None)

    def failure(self) -> EpisodeError | None:
        """Return why the disk did not take the chunk; None if it did."""
        if self._error is not None and not isinstance(self._error, EpisodeError):
            raise self._error
        return self._error


def _bare(error: EpisodeError) -> EpisodeError:
    """Remove the tracebacks, which keep alive what the functions in them refer to: the parts of the chunk."""
    if error.__cause__ is not None:
        error.__cause__.with_traceback(None)
    return error.with_traceback(None)


class _Task:
    """Something else that the disk's thread is to do."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self.future: Future[None] = Future()

    def run(self) -> None:
        try:
            self._work()
        except BaseException as err:  # noqa: BLE001 - it belongs to whoever has the future
            self.future.set_exception(err)
        else:
            self.future.set_result(None)


class _Compressor(threading.local):
    """One for each thread: a context cannot be shared."""

    def __init__(self, level: int) -> None:
        self.zstd = zstandard.ZstdCompressor(level=level)


class ChunkQueue:
    """Takes chunks from its owner, who sees to it that no two threads call it at once; only ``wait`` waits.

    Attributes:
        waiting_bytes: Of the chunks that are not known to be done.
    """

    def __init__(self, zstd_level: int) -> None:
        sys.setswitchinterval(min(sys.getswitchinterval(), _SWITCH_INTERVAL_S))
        self.waiting_bytes = 0
        self._under_way: deque[ChunkJob] = deque()
        self._compressor = _Compressor(zstd_level)
        self._pool = ThreadPoolExecutor(
            max(1, min(4, (os.cpu_count() or 1) - 1)), thread_name_prefix="episode-pool"
        )
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        # A daemon, because a stalled disk may keep it for ever; and it ends with the queue where nobody ended it.
        threading.Thread(target=_serve, args=(self._jobs,), name="episode-disk", daemon=True).start()
        self._finalizer = weakref.finalize(self, self._jobs.put, None)

    def put(self, chunk: OpenChunk) -> None:
        """Hand a chunk over."""
        job = ChunkJob(chunk)
        if chunk.is_compressible and self._to_compress() < _MOST_TO_COMPRESS:
            job.packed = self._pool.submit(_compress, chunk, self._compressor)
        elif self._is_busy():  # else the disk's thread has the time to complete the chunk itself
            if chunk.is_quick:
                chunk.complete()
            else:
                job.completed = self._pool.submit(chunk.complete)
        self._under_way.append(job)
        self.waiting_bytes += job.size
        self._jobs.put(job)

    def run(self, work: Callable[[], None]) -> "Future[None]":
        """Do ``work`` on the disk's thread, behind all chunks that were put so far."""
        task = _Task(work)
        self._jobs.put(task)
        return task.future

    def waiting(self) -> list[OpenChunk]:
        """Return the chunks that were put and not yet taken as done."""
        return [job.chunk for job in self._under_way]

    def take_done(self) -> list[ChunkJob]:
        """Return what was written or given up since the last call, in order."""
        found = []
        while self._under_way and self._under_way[0].is_done:
            job = self._under_way.popleft()
            self.waiting_bytes -= job.size
            found.append(job)
        return found

    def wait(self, timeout_s: float | None = None) -> bool:
        """Return whether all that was put until now is done, waiting for it if need be."""
        reached = threading.Event()
        self.run(reached.set)
        return reached.wait(timeout_s)

    def end(self) -> None:
        """Let the threads go once they have done what they were given."""
        self._pool.shutdown(wait=False)
        self._finalizer()

    def _is_busy(self) -> bool:
        return bool(self._under_way) and not self._under_way[-1].is_done

    def _to_compress(self) -> int:
        return sum(job.packed is not None and not job.packed.done() for job in self._under_way)


def _serve(jobs: "SimpleQueue[_Job | None]") -> None:
    while (job := jobs.get()) is not None:
        job.run()
        del job  # what it refers to may be free before there is another one


def _compress(chunk: OpenChunk, compressor: _Compressor) -> PackedChunk:
    return chunk.pack(compressor.zstd)
