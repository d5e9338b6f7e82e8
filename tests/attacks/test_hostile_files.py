"""Files that claim more than they hold: a verdict within a bounded memory, never an internal error."""

import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard
from episode_samples import sealed_episode

from sensorium.errors import EpisodeError
from sensorium.sync.episode.checksum import crc32
from sensorium.sync.episode.mcap_reader import McapReader
from sensorium.sync.episode.mcap_records import (
    FOOTER,
    FOOTER_LAYOUT,
    HEADER,
    MAGIC,
    MAX_CHUNK_BYTES,
    AttachmentIndex,
    Chunk,
    MetadataIndex,
    pack_record,
    pack_text,
)
from sensorium.sync.episode.verify import examine
from sensorium.sync.sources.budget import DamagedError
from sensorium.sync.sources.mcap_files import unpack_chunk
from sensorium.uploader.receipt import State, upload_state


def mcap_with(path: Path, summary: bytes) -> Path:
    head = MAGIC + pack_record(HEADER, pack_text("") + pack_text("x"))
    footer = FOOTER_LAYOUT.pack(FOOTER, 20, len(head), 0, 0)
    path.write_bytes(head + summary + footer + MAGIC)
    return path


@pytest.mark.parametrize("power", [33, 40, 48, 56, 62, 63])
def test_an_index_that_claims_terabytes_is_a_verdict_and_not_a_memory_error(
    tmp_path: Path, power: int
) -> None:
    claimed = (1 << power) - (power == 63)
    summary = MetadataIndex(8, claimed, "m").pack() + AttachmentIndex(8, claimed, 0, claimed, "a", "").pack()
    reader = McapReader(mcap_with(tmp_path / "x.mcap", summary))
    try:
        with pytest.raises(EpisodeError, match="ends at byte"):
            reader.metadata("m")
        with pytest.raises(EpisodeError, match="ends at byte"):
            reader.attachment("a")
    finally:
        reader.close()


@pytest.mark.parametrize("offset", [1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
def test_an_index_that_points_beyond_the_file_is_a_verdict(tmp_path: Path, offset: int) -> None:
    reader = McapReader(mcap_with(tmp_path / "x.mcap", MetadataIndex(offset, 20, "m").pack()))
    try:
        with pytest.raises(EpisodeError, match="ends at byte"):
            reader.metadata("m")
    finally:
        reader.close()


def bomb(plain_bytes: int) -> bytes:
    """Return the body of a chunk record that holds ``plain_bytes`` zeros."""
    compressor = zstandard.ZstdCompressor(level=19).compressobj(size=plain_bytes)
    piece = bytes(1 << 20)
    stored = b"".join(compressor.compress(piece) for _ in range(plain_bytes >> 20)) + compressor.flush()
    head = struct.pack("<QQQI", 0, 0, plain_bytes, 0)
    return head + pack_text("zstd") + struct.pack("<Q", len(stored)) + stored


def test_a_compressed_bomb_is_refused_before_memory_is_taken_for_it(tmp_path: Path) -> None:
    body = bomb(256 << 20)
    assert len(body) < 40_000
    code = (
        "import resource, sys\n"
        "from sensorium.errors import EpisodeError\n"
        "from sensorium.sync.episode.mcap_records import Chunk\n"
        "from sensorium.sync.sources.mcap_files import unpack_chunk\n"
        "from sensorium.sync.sources.budget import DamagedError\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "body = open(sys.argv[1], 'rb').read()\n"
        "for attempt in (lambda: Chunk.parse(body).unpack(), lambda: unpack_chunk(body, is_torn=False)):\n"
        "    try:\n"
        "        attempt()\n"
        "    except (EpisodeError, DamagedError):\n"
        "        continue\n"
        "    sys.exit('taken')\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    (tmp_path / "bomb").write_bytes(body)
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "bomb")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) * 1024 < 16 << 20


def test_a_chunk_that_says_less_than_it_unpacks_to_is_not_unpacked() -> None:
    body = bytearray(bomb(64 << 20))
    struct.pack_into("<Q", body, 16, 1000)
    with pytest.raises(EpisodeError, match="zstd declares"):
        Chunk.parse(body).unpack()
    with pytest.raises(DamagedError):
        unpack_chunk(bytes(body), is_torn=False)


def test_the_largest_chunk_that_the_bus_can_lead_to_is_read() -> None:
    plain = bytes(MAX_CHUNK_BYTES)
    assert len(Chunk(0, 0, len(plain), crc32(plain, 0), "", memoryview(plain)).unpack()) == MAX_CHUNK_BYTES


@pytest.mark.parametrize(
    "name", ["manifest.json", "manifest-2.json", "receipt.json", "upload.json", "consent.json"]
)
def test_a_pipe_or_a_huge_file_in_a_records_place_is_named_and_not_waited_for(
    name: str, tmp_path: Path
) -> None:
    folder = sealed_episode(tmp_path)
    path = folder / name
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    found = examine(folder)
    assert name == "upload.json" or any(name in reason for reason in found.reasons)
    assert upload_state(folder) in (State.SEALED, State.QUARANTINED)
    path.unlink()
    with path.open("wb") as file:
        file.truncate(1 << 40)
    found = examine(folder)
    assert name == "upload.json" or any(name in reason for reason in found.reasons)
    assert upload_state(folder) in (State.SEALED, State.QUARANTINED)
