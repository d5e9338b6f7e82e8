"""Recordings that claim or unpack to more than there is: the cost stays that of an honest file."""

import bz2
import struct
import time
import tracemalloc
from pathlib import Path

import lz4.frame  # type: ignore[import-untyped]
import pytest
import zstandard

from sensorium.errors import SourceError
from sensorium.sync.sources import open_source
from sensorium.sync.sources.budget import DamagedError, UnpackBudget, unpack
from sensorium.sync.sources.xdf import read_xdf

PLAIN_BYTES = 40 << 20
MOST_BYTES = 16 << 20


def bomb(compression: str) -> bytes:
    piece = bytes(1 << 20)
    if compression == "bz2":
        packer = bz2.BZ2Compressor()
        return b"".join([packer.compress(piece) for _ in range(PLAIN_BYTES >> 20)]) + packer.flush()
    if compression == "zstd":
        stream = zstandard.ZstdCompressor().compressobj()
        return b"".join([stream.compress(piece) for _ in range(PLAIN_BYTES >> 20)]) + stream.flush()
    return bytes(lz4.frame.compress(piece)) * (PLAIN_BYTES >> 20)


@pytest.mark.parametrize("compression", ["bz2", "lz4", "zstd"])
def test_what_was_not_announced_is_not_unpacked(compression: str) -> None:
    packed = bomb(compression)
    tracemalloc.start()
    began = time.process_time()
    try:
        assert len(unpack(compression, packed, 1000)) == 1001
        assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
    finally:
        tracemalloc.stop()
    assert time.process_time() - began < 1.0


def test_all_that_a_file_unpacks_to_is_bounded_by_its_size() -> None:
    budget = UnpackBudget(8 << 20)
    for _ in range(15):
        budget.take(128 << 20)
    with pytest.raises(DamagedError, match="unpacks to more than recordings of its size do"):
        budget.take(128 << 20)


def test_an_xdf_file_that_claims_samples_without_end_takes_no_memory_for_them(tmp_path: Path) -> None:
    header = (
        b"<info><name>n</name><type>t</type><channel_count>1</channel_count><nominal_srate>0</nominal_srate>"
        b"<channel_format>string</channel_format></info>"
    )

    def chunk(tag: int, content: bytes) -> bytes:
        return b"\x04" + struct.pack("<IH", 2 + len(content), tag) + content

    number = struct.pack("<I", 1)
    claims = chunk(3, number + b"\x08" + struct.pack("<Q", 1 << 40) + bytes(40))
    good = chunk(3, number + b"\x01\x01" + b"\x08" + struct.pack("<d", 7.0) + b"\x01\x02ok")
    boundary = chunk(5, bytes.fromhex("43a546dccbf5410fb30ed5467383cbe4"))
    huge = b"\x08" + struct.pack("<QH", 1 << 40, 3)
    (tmp_path / "x.xdf").write_bytes(b"XDF:" + chunk(2, number + header) + claims + boundary + good + huge)
    tracemalloc.start()
    try:
        recording = read_xdf(tmp_path / "x.xdf")
        assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
    finally:
        tracemalloc.stop()
    assert recording.streams[0].stamp_s.tolist() == [7.0]
    told = " ".join(recording.problems)
    assert f"claims {1 << 40} samples in 40 bytes" in told
    assert f"claims {1 << 40} bytes" in told


@pytest.mark.parametrize("length", [0xFFFFFFFF, 0x7FFFFFFF, 1 << 20])
def test_a_bag_whose_index_claims_more_than_the_file_holds_is_refused(
    shared_data: Path, tmp_path: Path, length: int
) -> None:
    data = bytearray((shared_data / "rosbag1" / "example.bag").read_bytes())
    index_at = struct.unpack("<Q", data[data.index(b"index_pos=") + 10 :][:8])[0]
    data[index_at : index_at + 4] = struct.pack("<I", length)
    (tmp_path / "x.bag").write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(SourceError, match=r"x\.bag: damaged or unfinished ROS 1 bag"):
            open_source(tmp_path / "x.bag")
        assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
    finally:
        tracemalloc.stop()
