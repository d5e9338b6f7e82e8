"""What became of the chunks of an episode: counts of samples, what is settled, what failed."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Any

from sensorium.errors import EpisodeError
from sensorium.sync.episode.chunk_queue import ChunkQueue
from sensorium.sync.episode.open_chunk import OpenChunk, Share


@dataclass(slots=True)
class Written:
    """What one instance of a stream has in the file; ``pending`` lies in chunks that are not on disk yet.

    ``stored_bytes`` is its share, by payload, of the chunks as they lie on disk.
    """

    frames: int = 0
    samples: int = 0
    payload_bytes: int = 0
    stored_bytes: float = 0.0
    pending_samples: int = 0
    lost_samples: int = 0


class ChunkAccounts:
    """Books chunks once they are done; any thread may ask, whoever asks books.

    ``open_chunks`` are those that are being filled, which nobody else may touch meanwhile.
    """

    def __init__(self, queue: ChunkQueue) -> None:
        self._queue = queue
        self._lock = Lock()
        self._written: dict[tuple[str, int], Written] = {}
        self._settled: list[Any] = []
        self._failures: list[EpisodeError] = []

    def put(self, chunk: OpenChunk) -> None:
        """Hand a chunk over to the queue."""
        with self._lock:
            self._queue.put(chunk)

    def take_settled(self) -> list[Any]:
        """Return what the frames of done chunks held and was not returned before, in order."""
        with self._lock:
            self._book()
            settled, self._settled = self._settled, []
        return settled

    def take_failures(self) -> list[EpisodeError]:
        """Return why chunks were given up, each once."""
        with self._lock:
            self._book()
            failures, self._failures = self._failures, []
        return failures

    def unsettled_bytes(self, open_chunks: Iterable[OpenChunk]) -> int:
        """Return the size of the messages that are not on disk."""
        with self._lock:
            self._book()
            return self._queue.waiting_bytes + sum(chunk.size for chunk in open_chunks)

    def written(self, open_chunks: Iterable[OpenChunk]) -> dict[tuple[str, int], Written]:
        """Return the counts per (stream, instance)."""
        with self._lock:
            self._book()
            for found in self._written.values():
                found.pending_samples = 0
            for chunk in (*self._queue.waiting(), *open_chunks):
                for key, share in chunk.shares.items():
                    self._count(key).pending_samples += share.samples
            return self._written

    def _book(self) -> None:
        """Account for the chunks that are done; the lock is held."""
        for job in self._queue.take_done():
            self._settled += job.chunk.held
            failure = job.failure()
            if failure is None:
                add_shares(self._written, job.chunk.shares, job.stored_bytes)
                continue
            self._failures.append(failure)
            for key, share in job.chunk.shares.items():
                self._count(key).lost_samples += share.samples

    def _count(self, key: tuple[str, int]) -> Written:
        return _of(self._written, key)


def add_shares(
    written: dict[tuple[str, int], Written], shares: Mapping[tuple[str, int], Share], stored_bytes: int
) -> None:
    """Count a chunk that takes ``stored_bytes`` on disk to those whose frames it holds."""
    payload_bytes = max(1, sum(share.payload_bytes for share in shares.values()))
    for key, share in shares.items():
        found = _of(written, key)
        found.frames += share.frames
        found.samples += share.samples
        found.payload_bytes += share.payload_bytes
        found.stored_bytes += stored_bytes * share.payload_bytes / payload_bytes


def _of(written: dict[tuple[str, int], Written], key: tuple[str, int]) -> Written:
    found = written.get(key)
    if found is None:
        found = written[key] = Written()
    return found
