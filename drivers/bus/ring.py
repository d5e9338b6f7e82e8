"""Shared memory for large payloads: the driver writes each once, the recorder reads it where it lies.

It is a memfd: it has no name that could be left over, and it is gone when the last process that maps it is.
The driver seals its size, so nobody can make the recorder fault by cutting it; the recorder opens it through
``/proc``, checks that it is what it was told, and maps it read-only. Slots are taken from the low end, so
that few pages are touched and those stay in the cache.
"""

import contextlib
import fcntl
import mmap
import os
import stat
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sensorium.errors import WireError

RING_FROM_BYTES = 64 << 10
"""A smaller payload is cheaper through the socket."""

PAGE_BYTES = mmap.PAGESIZE
MOST_RING_BYTES = 64 << 30
_LINK = "/memfd:sensorium-ring"


@dataclass(frozen=True, slots=True)
class RingOffer:
    """What a driver says of its ring, so that the recorder can open it and know that it is the one.

    Attributes:
        pid, fd: The process and its descriptor.
        inode: Of the memfd; another one means that the process id is of another machine or was reused.
    """

    pid: int
    fd: int
    inode: int
    size_bytes: int


def ring_bytes() -> int:
    """Return the size of a ring: address space, of which only what limits allow is ever touched."""
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(memory_bytes // 4, MOST_RING_BYTES) // PAGE_BYTES * PAGE_BYTES


def _size_seals() -> int:
    return fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


def pages_of(size_bytes: int) -> int:
    """Return how many pages a payload takes."""
    return -(-size_bytes // PAGE_BYTES)


class Pages:
    """First-fit allocation of whole pages; a slot is the number of its first page."""

    def __init__(self, n_pages: int) -> None:
        self._starts = [0]
        self._lengths = [n_pages]
        self._used: dict[int, int] = {}
        self.used_pages = 0

    @property
    def used(self) -> tuple[int, ...]:
        """The slots in use."""
        return tuple(self._used)

    @property
    def end(self) -> int:
        """The page after the last one in use."""
        return max((slot + length for slot, length in self._used.items()), default=0)

    def take(self, length: int, before: int) -> int | None:
        """Return the lowest slot of ``length`` pages that ends at page ``before`` or earlier, if there is one."""
        for index, start in enumerate(self._starts):
            if start + length > before:
                return None
            if self._lengths[index] >= length:
                self._shorten(index, length)
                self._used[start] = length
                self.used_pages += length
                return start
        return None

    def _shorten(self, index: int, by: int) -> None:
        if self._lengths[index] == by:
            del self._starts[index], self._lengths[index]
        else:
            self._starts[index] += by
            self._lengths[index] -= by

    def give(self, slot: int) -> bool:
        """Take back a slot; False when it is not in use."""
        length = self._used.pop(slot, None)
        if length is None:
            return False
        self.used_pages -= length
        index = bisect_left(self._starts, slot)
        if index < len(self._starts) and self._starts[index] == slot + length:
            length += self._lengths[index]
            del self._starts[index], self._lengths[index]
        if index > 0 and self._starts[index - 1] + self._lengths[index - 1] == slot:
            self._lengths[index - 1] += length
        else:
            self._starts.insert(index, slot)
            self._lengths.insert(index, length)
        return True

    def gaps(self, before: int) -> Iterable[tuple[int, int]]:
        """Yield the (first page, length) of what is free before page ``before``."""
        for start, length in zip(self._starts, self._lengths, strict=True):
            if start >= before:
                return
            yield start, min(length, before - start)


class RingWriter:
    """The driver's end: owns the memory and decides which of it is in use."""

    def __init__(self, fd: int, size_bytes: int) -> None:
        self._fd = fd
        self._map = mmap.mmap(fd, size_bytes)
        self._view = memoryview(self._map)
        self._pages = Pages(size_bytes // PAGE_BYTES)
        self._high_pages = 0
        self._resident_pages = 0
        self._size_bytes = size_bytes

    @classmethod
    def make(cls, size_bytes: int | None = None) -> "RingWriter | None":
        """Return a ring of new shared memory; None where the system has none to give."""
        if not hasattr(os, "memfd_create"):
            return None
        size_bytes = ring_bytes() if size_bytes is None else size_bytes
        try:
            fd = os.memfd_create("sensorium-ring", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        except OSError:
            return None
        try:
            os.fchmod(fd, 0o600)
            os.ftruncate(fd, size_bytes)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _size_seals() | fcntl.F_SEAL_SEAL)
            return cls(fd, size_bytes)
        except OSError:
            os.close(fd)
            return None

    @property
    def offer(self) -> RingOffer:
        return RingOffer(os.getpid(), self._fd, os.fstat(self._fd).st_ino, self._size_bytes)

    @property
    def slots(self) -> tuple[int, ...]:
        """The slots in use."""
        return self._pages.used

    @property
    def used_bytes(self) -> int:
        return self._pages.used_pages * PAGE_BYTES

    @property
    def touched_bytes(self) -> int:
        """What it holds of the machine's memory at most, in use or not."""
        return min(self._high_pages, self._resident_pages) * PAGE_BYTES

    def has_room(self, size_bytes: int, limit_bytes: int) -> bool:
        """Return whether :meth:`place` would find a slot for so many bytes."""
        slot = self._take(pages_of(size_bytes), limit_bytes // PAGE_BYTES)
        return slot is not None and self._pages.give(slot)

    def place(self, payload: bytes | memoryview, limit_bytes: int) -> int | None:
        """Copy a payload into a free slot; return it, or None when the limit leaves none.

        Args:
            limit_bytes: What the ring may hold of the machine's memory.
        """
        length = pages_of(len(payload))
        slot = self._take(length, limit_bytes // PAGE_BYTES)
        if slot is None:
            return None
        self._high_pages = max(self._high_pages, slot + length)
        self._resident_pages += length
        offset = slot * PAGE_BYTES
        self._view[offset : offset + len(payload)] = payload
        return slot

    def _take(self, length: int, limit_pages: int) -> int | None:
        slot = self._pages.take(length, limit_pages)
        if slot is None:
            return None
        if min(max(self._high_pages, slot + length), self._resident_pages + length) > limit_pages:
            # Only after the limit was lowered: pages above it are in use, or were.
            self._pages.give(slot)
            self.trim()
            if self._pages.used_pages + length > limit_pages:
                return None
            slot = self._pages.take(length, limit_pages)
        return slot

    def free(self, slots: Iterable[int]) -> None:
        """Take back slots that nobody reads any more."""
        for slot in slots:
            self._pages.give(slot)

    def trim(self) -> None:
        """Give the pages that are not in use back to the system."""
        for start, length in self._pages.gaps(self._high_pages):
            self._map.madvise(mmap.MADV_REMOVE, start * PAGE_BYTES, length * PAGE_BYTES)
        self._high_pages, self._resident_pages = self._pages.end, self._pages.used_pages

    def close(self) -> None:
        """Unmap; what the recorder still reads stays until it lets go."""
        self._view.release()
        self._map.close()
        os.close(self._fd)


class RingReader:
    """The recorder's end: a read-only view of a driver's memory, which stays valid when the driver dies."""

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self._n_bytes = len(view)

    def view(self, slot: int, size: int) -> memoryview:
        """Return a payload where it lies.

        Raises:
            WireError: If it would not lie within the memory.
        """
        offset = slot * PAGE_BYTES
        if slot < 0 or size < 0 or offset + size > self._n_bytes:
            raise WireError("place in shared memory is out of bounds")
        return self._view[offset : offset + size]


def open_ring(offer: RingOffer) -> RingReader | None:
    """Map the ring that a driver offers; None when it cannot be had or is not what it is said to be."""
    if offer.pid <= 0 or offer.fd < 0 or not 0 < offer.size_bytes <= MOST_RING_BYTES:
        return None
    with contextlib.ExitStack() as stack:
        try:
            # O_PATH opens nothing yet: what it leads to may be a device or a pipe, which opening would disturb.
            path_fd = os.open(f"/proc/{offer.pid}/fd/{offer.fd}", os.O_PATH | os.O_CLOEXEC)
            stack.callback(os.close, path_fd)
            if not _is_as_said(path_fd, offer):
                return None
            fd = os.open(f"/proc/self/fd/{path_fd}", os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, fd)
            if fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _size_seals() != _size_seals():
                return None
            found = mmap.mmap(fd, offer.size_bytes, mmap.MAP_SHARED, mmap.PROT_READ)
        except (OSError, ValueError, OverflowError):
            return None
    return RingReader(memoryview(found))


def _is_as_said(path_fd: int, offer: RingOffer) -> bool:
    found = os.fstat(path_fd)
    return (
        str(Path(f"/proc/self/fd/{path_fd}").readlink()).startswith(_LINK)
        and stat.S_ISREG(found.st_mode)
        and found.st_uid == os.geteuid()
        and found.st_ino == offer.inode
        and found.st_size == offer.size_bytes
    )
