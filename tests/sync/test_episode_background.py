"""What the writer does behind the caller's back: disks that stall or fail, what is settled when, and kills."""

import json
import mmap
import os
import resource
import signal
import subprocess
import sys
import textwrap
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pytest
from episode_samples import STREAMS, TIMELINE, PipeDisk, all_frames, begin_episode

from sensorium.drivers.frame import Frame, Modality, StreamInfo, stamps
from sensorium.errors import EpisodeError
from sensorium.sync.clocks.model import Stamped, Uncertainty
from sensorium.sync.episode.entries import EpisodeEvent
from sensorium.sync.episode.mcap_reader import McapReader
from sensorium.sync.episode.reader import Episode
from sensorium.sync.episode.recovery import recover
from sensorium.sync.episode.spool import Spool
from sensorium.sync.episode.ulid import new_ulid
from sensorium.sync.episode.writer import EpisodeWriter, WriterPolicy
from sensorium.timebase import SECOND_NS

STORED = StreamInfo("shot", Modality.OTHER, "png", 30.0, "cam")
BLOCK = StreamInfo("grey", Modality.OTHER, "mono8", 30.0, "cam", shape=(128, 512))
PAYLOAD_BYTES = 250_000


def begin(folder: Path, policy: WriterPolicy, *infos: StreamInfo) -> EpisodeWriter:
    spool = Spool(folder / "spool")
    spool.create()
    episode_id = new_ulid(0)
    writer = EpisodeWriter(spool.open_folder(episode_id), episode_id, TIMELINE, policy)
    for info in infos:
        writer.declare(info)
    return writer


def frame_of(info: StreamInfo, seq: int, payload: bytes | memoryview) -> tuple[Frame, Stamped]:
    arrival_ns = SECOND_NS + seq * 1_000_000
    stamped = Stamped(stamps(arrival_ns - 1000), Uncertainty(1.0, 2.0, 3.0), 0)
    return Frame(info.name, seq, 1, None, stamps(arrival_ns), payload), stamped


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_stalled_disk_holds_up_nobody_and_all_is_counted_afterwards(tmp_path: Path) -> None:
    """It would hang where it waited: the disk takes nothing before all frames were given."""
    writer = begin(tmp_path, WriterPolicy(sync_s=None), STORED)
    disk = PipeDisk(writer.folder / "data.mcap")
    payload = os.urandom(PAYLOAD_BYTES)
    for seq in range(100):
        writer.write(*frame_of(STORED, seq, payload), 0, held=seq)
        writer.step(SECOND_NS + seq * 10_000_000)
    writer.write_event(EpisodeEvent(SECOND_NS, "mark"))
    assert writer.take_settled() == []
    assert writer.unsettled_bytes() > 100 * PAYLOAD_BYTES
    assert not writer.wait(timeout_s=0)
    assert writer.written()["shot", 0].pending_samples == 100
    ending = writer.finish()
    assert not ending.done()
    disk.resume()
    ending.result(timeout=60)
    disk.put_back()
    assert writer.take_settled() == list(range(100))
    assert writer.unsettled_bytes() == 0
    found = writer.written()["shot", 0]
    assert (found.samples, found.pending_samples, found.lost_samples) == (100, 0, 0)
    with Episode(writer.folder) as episode:
        assert [entry.frame.seq for entry in episode.frames()] == list(range(100))


def test_everything_held_is_settled_once_and_in_order(tmp_path: Path) -> None:
    writer = begin_episode(tmp_path, WriterPolicy(chunk_bytes=20_000))
    given = []
    settled = []
    for serial, (frame, stamped) in enumerate(all_frames(30)):
        if serial % 3:
            given.append((frame.stream, frame.seq))
        writer.write(frame, stamped, 0, held=(frame.stream, frame.seq) if serial % 3 else None)
        settled += writer.take_settled()
    writer.flush()
    settled += writer.take_settled()
    assert writer.take_settled() == []
    assert sorted(settled) == sorted(given)
    for info in STREAMS:
        assert [key for key in settled if key[0] == info.name] == [
            key for key in given if key[0] == info.name
        ]
    writer.close()


def test_what_is_settled_is_no_longer_referenced(tmp_path: Path) -> None:
    """A driver's shared memory can be unmapped, or written over, once its frame is settled; lost ones too."""
    for limit in (1 << 30, 100_000):
        folder = tmp_path / str(limit)
        writer = begin(folder, WriterPolicy(sync_s=None), STORED, BLOCK)
        with file_size_limit(limit):
            shared = mmap.mmap(-1, PAYLOAD_BYTES)
            view = memoryview(shared)
            for seq in range(3):
                writer.write(*frame_of(STORED, seq, view), 0, held=seq)
                writer.write(*frame_of(BLOCK, seq, view[: 128 * 512]), 0, held=seq)
            with pytest.raises(EpisodeError) if limit == 100_000 else nullcontext():
                writer.flush()
            assert len(writer.take_settled()) == 6
            view.release()
            shared.close()  # BufferError if anything still referred to it
        writer.close()


def test_a_chunk_that_fails_is_lost_settled_and_said_once(tmp_path: Path) -> None:
    writer = begin(tmp_path, WriterPolicy(sync_s=None), STORED)
    payload = os.urandom(PAYLOAD_BYTES)
    for seq in range(3):
        writer.write(*frame_of(STORED, seq, payload), 0, held=seq)
    writer.flush()
    with file_size_limit(900_000):
        for seq in range(3, 6):
            writer.write(*frame_of(STORED, seq, payload), 0, held=seq)
        with pytest.raises(EpisodeError, match=r"data\.mcap.*could not be written"):
            writer.flush()
    writer.step(SECOND_NS)
    assert writer.take_settled() == list(range(6))
    for seq in range(6, 9):
        writer.write(*frame_of(STORED, seq, payload), 0, held=seq)
    writer.close()
    assert writer.take_settled() == [6, 7, 8]
    found = writer.written()["shot", 0]
    assert (found.samples, found.pending_samples, found.lost_samples) == (6, 0, 3)
    with Episode(writer.folder) as episode:
        assert [entry.frame.seq for entry in episode.frames()] == [0, 1, 2, 6, 7, 8]


def test_what_fails_at_the_end_is_in_the_future_and_the_counts_are_final(tmp_path: Path) -> None:
    writer = begin(tmp_path, WriterPolicy(sync_s=None), STORED)
    with file_size_limit(100_000):
        writer.write(*frame_of(STORED, 0, os.urandom(PAYLOAD_BYTES)), 0, held="one")
        ending = writer.finish()
        with pytest.raises(EpisodeError, match="could not be written"):
            ending.result(timeout=60)
    assert writer.finish() is ending
    assert writer.take_settled() == ["one"]
    assert writer.written()["shot", 0].lost_samples == 1
    with Episode(writer.folder) as episode:
        assert list(episode.frames()) == []


def test_one_thread_may_finish_while_another_takes_what_is_settled(tmp_path: Path) -> None:
    """As the recorder does: the loop returns credit while a thread closes the episode and settles its accounts."""
    payload = os.urandom(5_000)
    for attempt in range(20):
        policy = WriterPolicy(sync_s=None, chunk_bytes=20_000)
        writer = begin(tmp_path / str(attempt), policy, STORED, BLOCK)
        for seq in range(300):
            writer.write(*frame_of(STORED, seq, payload), 0, held=seq)
        settled: list[int] = []
        counts: list[int] = []

        def finish(writer: EpisodeWriter = writer, counts: list[int] = counts) -> None:
            writer.finish().result(timeout=60)
            counts.append(writer.written()["shot", 0].samples)

        closing = threading.Thread(target=finish)
        closing.start()
        while closing.is_alive():
            settled += writer.take_settled()
        closing.join()
        settled += writer.take_settled()
        assert settled == list(range(300))
        assert counts == [300]
        assert writer.unsettled_bytes() == 0


def test_a_closed_writer_refuses_frames_and_entries(tmp_path: Path) -> None:
    writer = begin(tmp_path, WriterPolicy(), STORED)
    writer.close()
    writer.close()
    assert writer.wait()
    writer.flush()
    with pytest.raises(EpisodeError, match="is closed"):
        writer.write(*frame_of(STORED, 0, b"x"), 0, held=1)
    with pytest.raises(EpisodeError, match="is closed"):
        writer.write_event(EpisodeEvent(SECOND_NS, "mark"))
    assert writer.take_settled() == []
    assert writer.written() == {}


def test_chunks_that_compression_cannot_keep_up_with_are_stored_as_they_came(tmp_path: Path) -> None:
    writer = begin(tmp_path, WriterPolicy(chunk_bytes=60_000, zstd_level=19), BLOCK)
    payload = np.random.default_rng(3).integers(0, 9, BLOCK.shape, np.uint8).tobytes()
    for seq in range(60):
        writer.write(*frame_of(BLOCK, seq, payload), 0)
    writer.close()
    reader = McapReader(writer.folder / "data.mcap")
    kinds = Counter(chunk.compression for chunk in reader.contents.chunks)
    reader.close()
    assert kinds["zstd"] >= 32
    assert kinds[""] > 0
    with Episode(writer.folder) as episode:
        assert [entry.frame.seq for entry in episode.frames()] == list(range(60))


KILLED = textwrap.dedent(
    """
    import json, os, sys
    from pathlib import Path
    from test_episode_background import BLOCK, STORED, begin, frame_of
    from sensorium.sync.episode.writer import WriterPolicy
    writer = begin(Path(sys.argv[1]), WriterPolicy(sync_s=None, chunk_bytes=200_000), STORED, BLOCK)
    large, block = os.urandom(90_000), bytes(range(256)) * 256
    settled = {"shot": 0, "grey": 0}
    for seq in range(1_000_000):
        writer.write(*frame_of(STORED, seq, large), 0, held="shot")
        writer.write(*frame_of(BLOCK, seq, block), 0, held="grey")
        while writer.unsettled_bytes() > 5_000_000:
            writer.wait(0.001)
        found = writer.take_settled()
        if found:
            for name in found:
                settled[name] += 1
            print(json.dumps(settled), flush=True)
    """
)


def test_whatever_was_settled_survives_a_kill_at_any_moment(tmp_path: Path) -> None:
    paths = os.pathsep.join([str(Path(__file__).parent), *(path for path in sys.path if path)])
    for attempt in range(4):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        child = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(folder)], env={"PYTHONPATH": paths}, stdout=subprocess.PIPE
        )
        assert child.stdout is not None
        for _ in range(20 + 57 * attempt):
            last = child.stdout.readline()
        child.send_signal(signal.SIGKILL)
        lines = [last, *child.stdout.read().splitlines(keepends=True)]
        child.stdout.close()
        child.wait(timeout=60)
        settled = json.loads([line for line in lines if line.endswith(b"\n")][-1])
        (episode,) = Spool(folder / "spool").open_folders()
        result = recover(episode)
        assert result.is_truncated
        for name, count in settled.items():
            assert result.recorded[name, 0] >= count
        with Episode(episode) as found:
            for name in settled:
                seqs = [entry.frame.seq for entry in found.frames([name])]
                assert seqs == list(range(len(seqs)))
