"""Counters of a driver instance in a small memory-mapped file that outlives its process.

It lies in a file system in memory (the supervisor sees to that): a store into a page of a disk that stands still would
wait for the disk.

Layout, little endian: 64 bytes header (magic, instance, number of streams), then per stream 64 bytes (name,
next sequence number) and ``SLOTS`` loss slots of 128 bytes (count, place, reason). The sequence number is
advanced before a loss is booked or a frame is sent, so a kill between the two can only leave a sample
unexplained, never explained twice.
"""

import mmap
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sensorium.drivers.frame import Place
from sensorium.errors import EpisodeError

_MAGIC = b"SNSCNT02"
_HEADER = struct.Struct("<8sQI44x")
_STREAM = struct.Struct("<48sQ8x")
_REASON_BYTES = 104
_SLOT = struct.Struct(f"<Q16s{_REASON_BYTES}s")
SLOTS = 12
_STREAM_BYTES = _STREAM.size + SLOTS * _SLOT.size
_OTHER = "other reasons"
_MOST_READS = 100


@dataclass(slots=True)
class StreamCounts:
    """What an instance has produced and lost of one stream so far."""

    next_seq: int
    lost: dict[tuple[Place, str], int] = field(default_factory=dict)


Counts = tuple[int, dict[str, StreamCounts]]
"""A driver instance and its counts by stream."""


class CounterFile:
    """The writer's side; one per driver instance, created before its first frame."""

    def __init__(self, path: Path, instance: int, streams: Sequence[str]) -> None:
        self.path = path
        size = _HEADER.size + len(streams) * _STREAM_BYTES
        make_private(path.parent)
        with path.open("x+b") as file:
            file.truncate(size)
            self._map = mmap.mmap(file.fileno(), size)
        _HEADER.pack_into(self._map, 0, _MAGIC, instance, len(streams))
        self._base = {name: _HEADER.size + index * _STREAM_BYTES for index, name in enumerate(streams)}
        self._slot: dict[tuple[str, Place, str], tuple[int, tuple[Place, str]]] = {}
        self._others: dict[str, tuple[int, tuple[Place, str]]] = {}
        self._slots_used = dict.fromkeys(streams, 0)
        self._next = dict.fromkeys(streams, 0)
        for name, base in self._base.items():
            _STREAM.pack_into(self._map, base, name.encode(), 0)

    def next_seq(self, stream: str) -> int:
        return self._next[stream]

    def advance(self, stream: str, next_seq: int) -> None:
        """Record that all samples before ``next_seq`` have been produced."""
        self._next[stream] = next_seq
        struct.pack_into("<Q", self._map, self._base[stream] + 48, next_seq)

    def book(self, stream: str, count: int, place: Place, reason: str) -> tuple[Place, str]:
        """Add ``count`` lost samples; call after :meth:`advance`.

        Returns what they are booked as: a long reason is cut, and of many different ones the last are one.
        """
        key = (stream, place, reason)
        found = self._slot.get(key)
        if found is None:
            found = self._slot[key] = self._claim_slot(stream, place, reason)
        offset, booked = found
        (before,) = struct.unpack_from("<Q", self._map, offset)
        struct.pack_into("<Q", self._map, offset, before + count)
        return booked

    def _claim_slot(self, stream: str, place: Place, reason: str) -> tuple[int, tuple[Place, str]]:
        index = self._slots_used[stream]
        if index >= SLOTS:
            return self._others[stream]
        self._slots_used[stream] = index + 1
        if index == SLOTS - 1:
            reason = _OTHER
        packed = reason.encode()[:_REASON_BYTES]
        offset = self._base[stream] + _STREAM.size + index * _SLOT.size
        _SLOT.pack_into(self._map, offset, 0, place.value.encode(), packed)
        found = (offset, (place, packed.decode(errors="replace")))
        if index == SLOTS - 1:
            self._others[stream] = found
        return found

    def close(self) -> None:
        self._map.close()


def make_private(folder: Path) -> None:
    """Make a folder for this user alone, unless it is there.

    Looking first matters: to make a folder that is there already waits for a disk that stands still, even where it
    is a link into memory.
    """
    if not folder.is_dir():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def read_counters(path: Path) -> Counts:
    """Return (instance, counts by stream) from a counter file, its process alive or dead.

    Raises:
        EpisodeError: If the file is missing or not a counter file.
    """
    try:
        data = counter_bytes(path)
    except OSError as err:
        raise EpisodeError(
            f"counter file {path} cannot be read ({err.strerror}); losses are unknown"
        ) from err
    if len(data) < _HEADER.size or data[:8] != _MAGIC:
        raise EpisodeError(f"{path} is not a counter file")
    _, instance, n_streams = _HEADER.unpack_from(data)
    if len(data) != _HEADER.size + n_streams * _STREAM_BYTES:
        raise EpisodeError(
            f"counter file {path} has {len(data)} bytes, which does not fit {n_streams} streams"
        )
    found = {}
    for index in range(n_streams):
        base = _HEADER.size + index * _STREAM_BYTES
        name, next_seq = _STREAM.unpack_from(data, base)
        counts = StreamCounts(next_seq)
        for slot in range(SLOTS):
            count, place, reason = _SLOT.unpack_from(data, base + _STREAM.size + slot * _SLOT.size)
            if count:
                key = (Place(place.rstrip(b"\0").decode()), reason.rstrip(b"\0").decode(errors="replace"))
                counts.lost[key] = counts.lost.get(key, 0) + count
        found[name.rstrip(b"\0").decode()] = counts
    return instance, found


def counter_bytes(path: Path) -> bytes:
    """Return the file as it was at one instant, although a driver may be writing to it.

    A single read could pair an old sequence number with a new loss, which would explain a sample twice.
    """
    data = path.read_bytes()
    for _ in range(_MOST_READS):
        again = path.read_bytes()
        if again == data:
            break
        data = again
    return data
