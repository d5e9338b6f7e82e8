"""The shared memory of large payloads: slots never overlap, memory is bounded, and only the real one is mapped."""

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sensorium.drivers.bus.ring import MOST_RING_BYTES, PAGE_BYTES, Pages, RingOffer, RingWriter, open_ring
from sensorium.errors import WireError

pytestmark = pytest.mark.alone

N_PAGES = 64
RING_BYTES = N_PAGES * PAGE_BYTES


def made(size_bytes: int = RING_BYTES) -> RingWriter:
    ring = RingWriter.make(size_bytes)
    assert ring is not None
    return ring


@pytest.fixture
def ring() -> Iterator[RingWriter]:
    found = made()
    yield found
    found.close()


def resident_bytes(ring: RingWriter) -> int:
    """Return what the kernel says that the ring holds."""
    return os.fstat(ring.offer.fd).st_blocks * 512


@given(st.lists(st.one_of(st.integers(1, 20), st.integers(-30, -1)), max_size=80), st.integers(1, N_PAGES))
def test_slots_never_overlap_and_freed_ones_are_whole_again(steps: list[int], before: int) -> None:
    pages = Pages(N_PAGES)
    used: dict[int, int] = {}
    for step in steps:
        if step > 0:
            slot = pages.take(step, before)
            free = [page for page in range(before) if all(not s <= page < s + n for s, n in used.items())]
            fits = [page for page in free if set(range(page, page + step)) <= set(free)]
            assert slot == min(fits, default=None)
            if slot is not None:
                used[slot] = step
        elif used:
            slot = sorted(used)[-step % len(used)]
            assert pages.give(slot)
            assert not pages.give(slot)
            del used[slot]
        assert pages.used_pages == sum(used.values())
        assert sorted(pages.used) == sorted(used)
    for slot in used:
        pages.give(slot)
    assert list(pages.gaps(N_PAGES)) == [(0, N_PAGES)]
    assert pages.take(N_PAGES, N_PAGES) == 0


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("place"), st.integers(1, 12 * PAGE_BYTES)),
        st.tuples(st.just("free"), st.integers(0, 20)),
        st.tuples(st.just("limit"), st.integers(0, RING_BYTES)),
        st.tuples(st.just("trim"), st.just(0)),
    ),
    max_size=60,
)


@settings(max_examples=200, deadline=None)
@given(STEPS)
def test_the_ring_never_holds_more_memory_than_its_limit_and_payloads_stay_as_they_are(
    steps: list[tuple[str, int]],
) -> None:
    ring = made()
    reader = open_ring(ring.offer)
    assert reader is not None
    limit = RING_BYTES
    held: dict[int, tuple[bytes, memoryview]] = {}
    for number, (what, amount) in enumerate(steps):
        if what == "place":
            payload = bytes([number % 255 + 1]) * amount
            slot = ring.place(payload, limit)
            if slot is not None:
                held[slot] = (payload, reader.view(slot, amount))
                assert resident_bytes(ring) <= ring.touched_bytes <= limit
        elif what == "free" and held:
            slot = sorted(held)[amount % len(held)]
            del held[slot]
            ring.free([slot])
        elif what == "limit":
            limit = amount
        elif what == "trim":
            ring.trim()
            assert resident_bytes(ring) == ring.touched_bytes == ring.used_bytes
        for payload, view in held.values():
            assert view == payload
    ring.close()


def test_the_lowest_free_pages_are_used_so_that_few_are_touched(ring: RingWriter) -> None:
    payload = bytes(3 * PAGE_BYTES)
    for _ in range(100):
        slot = ring.place(payload, RING_BYTES)
        assert slot == 0
        ring.free([slot])
    assert resident_bytes(ring) == 3 * PAGE_BYTES


def test_it_asks_for_room_without_taking_it(ring: RingWriter) -> None:
    assert ring.has_room(RING_BYTES, RING_BYTES)
    assert not ring.has_room(RING_BYTES, RING_BYTES - 1)
    assert ring.place(bytes(RING_BYTES), RING_BYTES) == 0
    assert not ring.has_room(1, RING_BYTES)


def test_a_view_outside_of_the_ring_is_refused(ring: RingWriter) -> None:
    reader = open_ring(ring.offer)
    assert reader is not None
    assert len(reader.view(0, RING_BYTES)) == RING_BYTES
    for slot, size in ((0, RING_BYTES + 1), (N_PAGES, 1), (-1, 4), (0, -1), (1 << 60, 1)):
        with pytest.raises(WireError, match="out of bounds"):
            reader.view(slot, size)


def test_the_recorder_cannot_write_and_the_driver_cannot_shrink(ring: RingWriter) -> None:
    reader = open_ring(ring.offer)
    assert reader is not None
    assert reader.view(0, 1).readonly
    for size in (0, RING_BYTES + PAGE_BYTES):
        with pytest.raises(PermissionError):
            os.ftruncate(ring.offer.fd, size)
    assert os.fstat(ring.offer.fd).st_mode & 0o777 == 0o600


def test_what_is_not_the_ring_that_was_offered_is_not_mapped(ring: RingWriter, tmp_path: Path) -> None:
    offer = ring.offer
    path = tmp_path / "file"
    path.write_bytes(bytes(RING_BYTES))
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(path.open("rb"))
        pipe, other_end = os.pipe()
        stack.callback(os.close, pipe)
        stack.callback(os.close, other_end)
        mine, theirs = socket.socketpair()
        stack.enter_context(mine)
        stack.enter_context(theirs)
        unsealed = os.memfd_create("sensorium-ring", os.MFD_ALLOW_SEALING)
        stack.callback(os.close, unsealed)
        os.ftruncate(unsealed, RING_BYTES)
        growing = os.memfd_create("sensorium-ring", os.MFD_ALLOW_SEALING)
        stack.callback(os.close, growing)
        os.ftruncate(growing, RING_BYTES)
        fcntl.fcntl(growing, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
        for fd in (file.fileno(), pipe, mine.fileno(), unsealed, growing, 0):
            assert open_ring(replace(offer, fd=fd, inode=os.fstat(fd).st_ino)) is None
    bad: list[dict[str, int]] = [
        {"fd": 1 << 20},
        {"fd": -1},
        {"pid": 1 << 30},
        {"pid": -1},
        {"pid": 0},
        {"pid": 1},  # another process: its descriptors are not ours, or not this one
        {"inode": offer.inode + 1},
        {"size_bytes": RING_BYTES - PAGE_BYTES},
        {"size_bytes": 2 * RING_BYTES},
        {"size_bytes": 0},
        {"size_bytes": MOST_RING_BYTES + 1},
    ]
    for change in bad:
        assert open_ring(replace(offer, **change)) is None, change
    assert open_ring(offer) is not None


_CHILD = """
import sys
from sensorium.drivers.bus.ring import RingWriter
ring = RingWriter.make(1 << 20)
slot = ring.place(b"from a process that dies" * 1000, 1 << 20)
offer = ring.offer
print(offer.pid, offer.fd, offer.inode, offer.size_bytes, slot, flush=True)
sys.stdin.read()
"""


def test_what_a_killed_driver_wrote_stays_readable_and_nothing_is_left_over() -> None:
    before = set(Path("/dev/shm").iterdir()) if Path("/dev/shm").is_dir() else set()
    with subprocess.Popen(
        [sys.executable, "-c", _CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        *numbers, slot = map(int, child.stdout.readline().split())
        offer = RingOffer(*numbers)
        reader = open_ring(offer)
        assert reader is not None
        view = reader.view(slot, 24_000)
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert bytes(view) == b"from a process that dies" * 1000
        assert open_ring(offer) is None
    after = set(Path("/dev/shm").iterdir()) if Path("/dev/shm").is_dir() else set()
    assert not [path for path in after - before if "sensorium" in path.name]
