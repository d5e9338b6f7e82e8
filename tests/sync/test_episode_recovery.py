import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from episode_samples import begin_episode, manifest_of, run_doctor, write_frames

from sensorium.errors import EpisodeError
from sensorium.sync.episode.chain import finish_seal, seal
from sensorium.sync.episode.files import RESERVE_FILE
from sensorium.sync.episode.manifest import read_manifest
from sensorium.sync.episode.mcap_reader import McapReader
from sensorium.sync.episode.reader import Episode
from sensorium.sync.episode.recovery import count_written, recover
from sensorium.sync.episode.spool import Spool
from sensorium.sync.episode.verify import verify
from sensorium.sync.episode.writer import WriterPolicy
from sensorium.verdict import Status

POLICY = WriterPolicy(chunk_bytes=6_000, reserve_bytes=0)


class Torn:
    """A closed episode, what its data file holds up to each byte, and copies of it cut short."""

    def __init__(self, tmp_path: Path) -> None:
        self.tmp_path = tmp_path
        self.writer = begin_episode(tmp_path, POLICY)
        write_frames(self.writer, frames=12)
        self.writer.close()
        self.file = self.writer.folder / "data.mcap"
        self.size = self.file.stat().st_size
        reader = McapReader(self.file)
        self.chunks = reader.contents.chunks
        last = reader.contents.metadata[-1]
        self.closed_at = last.offset + last.length
        reader.close()
        self.data_end = max(chunk.offset + chunk.length + chunk.index_bytes for chunk in self.chunks)

    def cut(self, at: int, name: str = "copy") -> Path:
        folder = self.tmp_path / name
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.writer.folder, folder)
        os.truncate(folder / "data.mcap", at)
        return folder

    def whole_chunks(self, at: int) -> int:
        return sum(chunk.offset + chunk.length <= at for chunk in self.chunks)


@pytest.fixture(scope="module")
def torn(tmp_path_factory: pytest.TempPathFactory) -> Torn:
    return Torn(tmp_path_factory.mktemp("torn"))


def cut_points(torn: Torn) -> list[int]:
    """Every edge of a chunk, of its indexes and of the summary, one byte around it, and random places."""
    edges = {0, 1, 7, 8, 9, 20, torn.data_end, torn.size}
    for chunk in torn.chunks:
        end = chunk.offset + chunk.length
        edges |= {chunk.offset, chunk.offset + 9, end, end + 9, end + chunk.index_bytes}
    points = {edge + shift for edge in edges for shift in (-1, 0, 1)}
    points |= set(range(torn.size - 40, torn.size))
    points |= {random.Random(5).randrange(torn.size) for _ in range(60)}
    return sorted(point for point in points if 0 <= point <= torn.size)


def test_a_file_cut_anywhere_keeps_all_of_its_whole_chunks(torn: Torn) -> None:
    points = cut_points(torn)
    assert len(points) > 150
    for at in points:
        folder = torn.cut(at)
        result = recover(folder)
        assert result.episode_id == torn.writer.episode_id  # if need be from another file of the episode
        recovered = next(file for file in result.files if file.name == "data.mcap")
        assert recovered.chunks == torn.whole_chunks(at), at
        assert result.is_truncated == (at < torn.closed_at), at
        if at >= torn.closed_at:
            assert result.bytes_lost == 0
        with Episode(folder) as episode:
            frames = list(episode.frames())
        assert sum(result.recorded.values()) == sum(entry.frame.count for entry in frames)


def test_the_doctor_passes_a_recovered_file(torn: Torn) -> None:
    for at in (torn.chunks[0].offset, torn.chunks[4].offset + 30, torn.data_end + 1):
        folder = torn.cut(at)
        recover(folder)
        severities = {finding.get("severity") for finding in run_doctor(folder / "data.mcap")}
        assert severities.isdisjoint({"error", "warning"})


def test_recovery_changes_nothing_when_repeated(torn: Torn) -> None:
    for at in cut_points(torn)[::9]:
        folder = torn.cut(at)
        first = recover(folder)
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        second = recover(folder)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
        assert (second.recorded, second.is_truncated, second.bytes_lost) == (
            first.recorded,
            first.is_truncated,
            first.bytes_lost,
        )


def test_a_closed_episode_is_left_as_it_is(torn: Torn) -> None:
    folder = torn.cut(torn.size)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    result = recover(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert not result.is_truncated
    assert result.recorded == {key: found.samples for key, found in torn.writer.written().items()}
    assert result.written == torn.writer.written()


def test_recovery_that_is_killed_itself_can_be_repeated(torn: Torn) -> None:
    """A recovery appends behind the bytes it keeps: nothing is lost, whatever prefix reached the disk."""
    at = torn.chunks[3].offset + 100
    folder = torn.cut(at)
    expected = recover(folder).recorded
    finished = (folder / "data.mcap").read_bytes()
    for size in range(torn.chunks[3].offset, len(finished), 211):
        (folder / "data.mcap").write_bytes(finished[:size])
        assert recover(folder).recorded == expected


def test_a_flipped_bit_costs_no_more_than_its_chunk(torn: Torn) -> None:
    rng = random.Random(11)
    for _ in range(40):
        at = rng.randrange(8, torn.size)
        folder = torn.cut(torn.size)
        data = bytearray((folder / "data.mcap").read_bytes())
        data[at] ^= 1 << rng.randrange(8)
        (folder / "data.mcap").write_bytes(data)
        result = recover(folder)
        with Episode(folder) as episode:
            list(episode.frames())
        hit = [chunk for chunk in torn.chunks if chunk.offset + 50 <= at < chunk.offset + chunk.length]
        recovered = next(file for file in result.files if file.name == "data.mcap")
        if hit:
            assert recovered.chunks == len(torn.chunks) - 1
            assert recovered.is_truncated


def test_zeroed_pages_in_the_middle_cost_no_more_than_what_lies_behind(torn: Torn) -> None:
    """After a power cut a file may have its full length and holes: the walk stops at the first hole."""
    folder = torn.cut(torn.size)
    first = torn.chunks[2].offset
    data = bytearray((folder / "data.mcap").read_bytes())
    data[first : first + 4096] = bytes(4096)
    (folder / "data.mcap").write_bytes(data)
    result = recover(folder)
    recovered = next(file for file in result.files if file.name == "data.mcap")
    assert recovered.chunks >= 2
    assert recovered.is_truncated


def test_a_folder_without_a_readable_name_holds_no_frames(tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    assert recover(folder).episode_id == ""
    (folder / "data.mcap").write_bytes(b"")
    assert recover(folder).episode_id == ""
    with pytest.raises(EpisodeError, match="not an episode folder"):
        recover(tmp_path / "missing")


def test_a_killed_writer_loses_only_what_was_not_flushed(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import os, signal, sys
        from pathlib import Path
        from episode_samples import begin_episode, write_frames
        writer = begin_episode(Path(sys.argv[1]))
        write_frames(writer, frames=4)
        writer.flush()
        write_frames(writer, frames=3, seed=2)
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    paths = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], env={"PYTHONPATH": paths}, timeout=60
    )
    assert done.returncode == -signal.SIGKILL
    (folder,) = Spool(tmp_path / "spool").open_folders()
    result = recover(folder)
    assert result.is_truncated
    reference = begin_episode(tmp_path / "reference")
    write_frames(reference, frames=4)
    reference.close()
    assert result.recorded == {key: found.samples for key, found in reference.written().items()}
    assert not (folder / RESERVE_FILE).exists()


def test_a_recovered_episode_seals_and_verifies(tmp_path: Path) -> None:
    writer = begin_episode(tmp_path)
    write_frames(writer, frames=4)
    writer.flush()
    folder = writer.folder
    result = recover(folder)
    assert result.written == count_written(folder)
    sealed = seal(folder, manifest_of(writer))
    assert verify(sealed).status is Status.OK


def test_an_episode_signed_but_not_moved_is_moved_at_the_next_start(tmp_path: Path) -> None:
    writer = begin_episode(tmp_path)
    write_frames(writer, frames=2)
    writer.close()
    sealed = seal(writer.folder, manifest_of(writer))
    sealed.rename(writer.folder)
    (tmp_path / "spool" / "chain.json").unlink()
    recover(writer.folder)
    assert finish_seal(writer.folder) == sealed
    assert verify(sealed).status is Status.OK
    following = begin_episode(tmp_path, serial=1)
    following.close()
    assert read_manifest(seal(following.folder, manifest_of(following))).prev_manifest != ""
