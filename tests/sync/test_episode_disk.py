import contextlib
import ctypes
import os
import resource
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from episode_samples import STREAMS, PipeDisk, all_frames, begin_episode, make_frame, manifest_of

from sensorium.errors import EpisodeError
from sensorium.sync.episode.chain import seal
from sensorium.sync.episode.mcap_records import WriteError
from sensorium.sync.episode.reader import Episode
from sensorium.sync.episode.recovery import recover
from sensorium.sync.episode.verify import verify
from sensorium.sync.episode.writer import EpisodeWriter, WriterPolicy
from sensorium.verdict import Status

DISK_BYTES = 1 << 20
POLICY = WriterPolicy(chunk_bytes=40_000, reserve_bytes=256 << 10, min_free_bytes=300 << 10, sync_s=None)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"none", bytes(disk), b"tmpfs", 0, b"size=%d" % DISK_BYTES) != 0:
        pytest.skip(f"mounting a tmpfs is not permitted here: {os.strerror(ctypes.get_errno())}")
    yield disk
    libc.umount2(bytes(disk), 2)


def write_until_full(writer: EpisodeWriter) -> tuple[Counter[str], int]:
    """Write frames until the disk refuses a few times; return samples given per stream, and refusals."""
    given: Counter[str] = Counter()
    refusals = 0
    for frame, stamped in all_frames(400):
        given[frame.stream] += frame.count
        writer.write(frame, stamped, 0)
        writer.wait()
        try:
            writer.step(int(frame.arrival_ns[-1]))
        except WriteError:
            refusals += 1
        if refusals == 3:
            break
    return given, refusals


def assert_balanced(writer: EpisodeWriter, given: Counter[str]) -> None:
    written = writer.written()
    for (name, _), found in written.items():
        assert found.pending_samples == 0
        assert found.samples + found.lost_samples == given[name]
    assert any(found.lost_samples for found in written.values())


def test_a_full_disk_is_loud_books_its_losses_and_the_episode_still_seals(small_disk: Path) -> None:
    writer = begin_episode(small_disk, POLICY)
    given, refusals = write_until_full(writer)
    assert refusals == 3
    writer.close()
    assert_balanced(writer, given)
    with Episode(writer.folder) as episode:
        samples: Counter[str] = Counter()
        for entry in episode.frames():
            samples[entry.frame.stream] += entry.frame.count
    assert samples == {name: found.samples for (name, _), found in writer.written().items() if found.samples}
    assert verify(seal(writer.folder, manifest_of(writer))).status is Status.OK


def test_room_runs_out_before_the_disk_does(small_disk: Path) -> None:
    writer = begin_episode(small_disk, POLICY)
    assert writer.has_room()
    for frame, stamped in all_frames(400):
        if not writer.has_room():
            break
        writer.write(frame, stamped, 0)
    else:
        pytest.fail("the disk never came close to full")
    writer.close()
    assert all(found.lost_samples == 0 for found in writer.written().values())


def test_what_a_stalled_disk_has_not_taken_yet_is_no_room(small_disk: Path) -> None:
    writer = begin_episode(small_disk, POLICY)
    disk = PipeDisk(writer.folder / "data.mcap")
    assert writer.has_room()
    frame, stamped = make_frame(STREAMS[1], 0, np.random.default_rng(0))
    large = replace(frame, payload=bytes(100_000))
    for _ in range(6):
        writer.write(large, stamped, 0)
    assert not writer.has_room()
    disk.resume()
    writer.flush()
    assert writer.has_room()
    writer.close()


def test_a_disk_full_from_the_start_says_so(small_disk: Path) -> None:
    (small_disk / "ballast").write_bytes(bytes(DISK_BYTES - (128 << 10)))
    with pytest.raises(EpisodeError, match=r"cannot hold an episode.*free space"):
        begin_episode(small_disk, POLICY)


def test_a_stream_that_finds_no_room_for_its_declaration_leaves_the_others_whole(small_disk: Path) -> None:
    writer = begin_episode(small_disk, POLICY)
    ballast = small_disk / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass
    late = [replace(STREAMS[0], name=f"late{index}") for index in range(5)]
    for info in late:
        with pytest.raises(WriteError):
            writer.declare(info)
    ballast.unlink()
    writer.declare(late[0])
    writer.close()
    with Episode(writer.folder) as episode:
        assert set(episode.streams) == {info.name for info in STREAMS} | {"late0"}


def test_a_recovery_on_a_full_disk_needs_no_second_copy(small_disk: Path) -> None:
    writer = begin_episode(small_disk, POLICY)
    write_until_full(writer)
    expected = {key: found.samples for key, found in writer.written().items() if found.samples}
    result = recover(writer.folder)
    assert result.is_truncated
    assert result.recorded == expected


def test_a_file_size_limit_is_handled_like_a_full_disk(tmp_path: Path) -> None:
    writer = begin_episode(tmp_path, POLICY)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
    try:
        given, refusals = write_until_full(writer)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert refusals == 3
    writer.close()
    assert_balanced(writer, given)
    assert {name for name, _ in writer.written()} <= {info.name for info in STREAMS}
    with Episode(writer.folder) as episode:
        assert sum(entry.frame.count for entry in episode.frames()) == sum(
            found.samples for found in writer.written().values()
        )
