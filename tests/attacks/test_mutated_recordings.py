"""Real recordings, cut, flipped, swapped, doubled and given absurd lengths: frames and problems, or one clear error."""

import contextlib
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from sensorium.drivers.frame import Frame, Modality
from sensorium.errors import PayloadError, SourceError
from sensorium.sync.decoding import StreamDecoder
from sensorium.sync.sources import open_source
from sensorium.sync.sources.xdf import is_xdf, read_xdf

FILES = (
    "rosbag1/example.bag",
    "rosbag1/example-lz4.bag",
    "rosbag1/example-bz2.bag",
    "rosbag1/no-messages.bag",
    "realsense/single_depth_color_640x480.bag",
    "ouster/512x10_raw.bag",
    "ouster/OS-1-32-G_v2.1.1_1024x10.pcap",
    "ouster/OS-1-32-G_v2.1.1_1024x10.json",
    "velodyne_vlp16/vlp16.pcap",
    "continental_ars548/ars548.pcap",
    "rosbag2/talker/talker.mcap",
    "rosbag2/talker/metadata.yaml",
    "rosbag2/cdr_test/cdr_test_0.mcap",
    "mcap_samples/custom-camera-model.mcap",
    "mcap_samples/example.mcap",
    "mcap_conformance/TenMessages/TenMessages-ch-chx-mx-rch-rsh-st-sum.mcap",
    "euroc_micro/mav0/cam0/data.csv",
    "euroc_micro/mav0/cam0/sensor.yaml",
    "clock/clock_resets.xdf",
    "clock/empty_streams.xdf",
    "clock/minimal.xdf",
    "cases2/message_compressed/camera_0.mcap",
    "cases2/empty_type/rewriter_a_0.mcap",
    "cases2/topics_one_after_another_bz2.bag",
    "cases2/ouster_over_ipv6/capture.pcap",
)
ABSURD = (
    b"\xff" * 8,
    (1 << 40).to_bytes(8, "little"),
    (1 << 40).to_bytes(8, "big"),
    b"\0" * 8,
    b"\x7f\xff\xff\xff",
)
MOST_CPU_S = 20.0


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def _flip(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 4, 40))):
        changed[_place(data, rng)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _swap(data: bytes, rng: random.Random) -> bytes:
    size = rng.randrange(1, max(2, min(4096, len(data) // 3)))
    one, other = sorted((rng.randrange(len(data) - size), rng.randrange(len(data) - size)))
    other = max(other, one + size)
    return (
        data[:one]
        + data[other : other + size]
        + data[one + size : other]
        + data[one : one + size]
        + data[other + size :]
    )


def _double(data: bytes, rng: random.Random) -> bytes:
    size = rng.randrange(1, min(65536, len(data)))
    start = rng.randrange(len(data) - size + 1)
    return data[: start + size] + data[start : start + size] * rng.choice((1, 3)) + data[start + size :]


def _claim(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 3))):
        value, at = rng.choice(ABSURD), _place(data, rng)
        changed[at : at + len(value)] = value
    return bytes(changed)


def _place(data: bytes, rng: random.Random) -> int:
    """Headers and indexes lie at the ends; most of the middle is payload."""
    near = rng.randrange(min(600, len(data)))
    return rng.choice((rng.randrange(len(data)), near, len(data) - 1 - near))


MUTATIONS: tuple[Callable[[bytes, random.Random], bytes], ...] = (_cut, _flip, _swap, _double, _claim)


def mutated(shared: Path, name: str, folder: Path, rng: random.Random) -> Path:
    """Copy a recording with one of its files changed; return what is to be opened."""
    victim = shared / name
    root = victim.parents[1 if "mav0" in name else 0]
    if "mav0" in name:
        for part in ("cam0/data.csv", "cam0/sensor.yaml", "imu0/sensor.yaml"):
            (folder / "mav0" / part).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / part, folder / "mav0" / part)
        target, source = folder / "mav0" / "cam0" / victim.name, folder
    elif (root / "metadata.yaml").is_file() and rng.random() < 0.7:
        for entry in root.iterdir():
            shutil.copyfile(entry, folder / entry.name)
        target, source = folder / victim.name, folder
    else:
        for entry in root.glob(f"{victim.stem}*"):
            shutil.copyfile(entry, folder / entry.name)
        target = folder / victim.name
        source = target.with_suffix(".pcap") if target.suffix == ".json" else target
    target.write_bytes(rng.choice(MUTATIONS)(victim.read_bytes(), rng))
    return source


def read_all(path: Path) -> str:
    """Read and decode a recording to its end; return ``""`` or the error that refuses it. Anything else propagates."""
    try:
        if path.is_file() and is_xdf(path):
            read_xdf(path)
        else:
            _play(path)
    except SourceError as err:
        return str(err)
    return ""


def _play(path: Path) -> None:
    with open_source(path) as source:
        decoders = {info.name: StreamDecoder(info) for info in source.streams}
        seen: Counter[str] = Counter()
        for item in source.frames():
            if not isinstance(item, Frame) or seen[item.stream] > 5:
                continue
            seen[item.stream] += 1
            decoder = decoders[item.stream]
            is_cloud = decoder.info.modality is Modality.LIDAR
            with contextlib.suppress(PayloadError):
                decoder.cloud(item.payload) if is_cloud else decoder.picture(item.payload)


def _attack(shared: Path, folder: Path, seeds: range) -> Counter[bool]:
    """Return how many were read and how many refused."""
    outcomes: Counter[bool] = Counter()
    for seed in seeds:
        rng = random.Random(f"mutated {seed}")
        name = FILES[seed % len(FILES)]
        own = folder / str(seed)
        own.mkdir()
        path = mutated(shared, name, own, rng)
        began = time.process_time()
        try:
            refusal = read_all(path)
        except Exception as err:
            raise AssertionError(f"seed {seed}, {name}: {type(err).__name__}: {err}") from err
        assert time.process_time() - began < MOST_CPU_S, f"seed {seed}, {name}"
        assert not refusal or (str(own) in refusal and "\n" not in refusal), f"seed {seed}: {refusal}"
        outcomes[not refusal] += 1
        shutil.rmtree(own)
    return outcomes


def test_forty_mutated_recordings_are_read_or_refused(shared_data: Path, tmp_path: Path) -> None:
    outcomes = _attack(shared_data, tmp_path, range(40))
    assert outcomes[True] > 10
    assert outcomes[False] > 3


@pytest.mark.slow
@pytest.mark.parametrize("part", range(10))
def test_five_hundred_mutated_recordings_are_read_or_refused(
    part: int, shared_data: Path, tmp_path: Path
) -> None:
    assert sum(_attack(shared_data, tmp_path, range(1000 + 50 * part, 1050 + 50 * part)).values()) == 50
