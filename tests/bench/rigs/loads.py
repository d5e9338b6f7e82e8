"""What the reference rigs of specs/performance.md 2 produce, and the payloads that they produce it from.

Payloads are made once per bench run and lie in files, so that every driver, every peer and the C++ publisher
send the same bytes and none of them pays for making them.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

RINGS, COLUMNS = 128, 1024
CLOUD_BYTES = RINGS * COLUMNS * 16
JPEG_BYTES = 251_000
ENTRY_POINT = "bench_load"
POOL_FRAMES = 16
"""Payloads per stream; 16 clouds are 34 MB, more than a cache holds."""

SMALL_POOL_S = 40
"""Of the rig's time, for small streams: a chunk holds at most a second, and must not find the pool repeated."""

_OUSTER = "ouster/OS-0-128-U1_v2.3.0_1024x10"
_PCAP_HEAD, _PCAP_RECORD = 24, struct.Struct("<IIII")


@dataclass(frozen=True, slots=True)
class Load:
    """One stream of a rig at 1 x.

    Attributes:
        kind: ``jpeg``, ``cloud``, ``columns``, ``pcm`` or ``ouster``; what the driver declares.
        frames_per_s: Messages; ``samples`` of them are counted in each.
        frame_bytes: Payload of one message.
        reference_frame_bytes: The same data as a recorder without typed streams would get it: float32 clouds,
            float64 rows with a stamp. 0 = the payload itself.
    """

    name: str
    kind: str
    frames_per_s: int
    samples: int
    frame_bytes: int
    reference_frame_bytes: int = 0

    @property
    def bytes_per_s(self) -> int:
        return self.frames_per_s * self.frame_bytes


_CAMERAS = tuple(Load(f"cam{index}", "jpeg", 30, 1, JPEG_BYTES) for index in range(4))
_MICROPHONE = Load("mic", "pcm", 100, 1024, 4096)
_ROW_BYTES = 8 + 6 * 8
RIGS = {
    "opaque": (
        *_CAMERAS,
        Load("lidar", "cloud", 20, 1, CLOUD_BYTES),
        Load("imu", "columns", 100, 10, 10 * 100),
        Load("force", "columns", 100, 10, 10 * 60),
        _MICROPHONE,
    ),
    "typed": (
        *_CAMERAS,
        Load("lidar", "ouster", 20, 64, 64 * 8448, CLOUD_BYTES),
        Load("imu", "columns", 100, 10, 10 * 6 * 4, 10 * _ROW_BYTES),
        Load("force", "columns", 100, 10, 10 * 6 * 4, 10 * _ROW_BYTES),
        _MICROPHONE,
    ),
}
QUEUE_FRAMES = {"jpeg": 100, "cloud": 20, "ouster": 20, "columns": 2000, "pcm": 2000}
"""Publisher queues of the ROS peer (specs/performance.md 3c)."""


def load_named(rig: str, name: str) -> Load:
    """Return one stream of a rig."""
    return next(load for load in RIGS[rig] if load.name == name)


def shared_data() -> Path | None:
    """Return the folder of recordings that nobody on the team made, None where it is absent."""
    for parent in Path(__file__).resolve().parents:
        folder = parent / "shared/data"
        if folder.is_dir():
            return folder
    return None


def why_not(rig: str) -> str:
    """Return why a rig cannot be had on this machine; "" if it can."""
    data = shared_data()
    if rig == "typed" and (data is None or not (data / f"{_OUSTER}.pcap").is_file()):
        return f"{_OUSTER}.pcap is absent from ../shared/data"
    return ""


def write_pools(folder: Path, rig: str) -> None:
    """Write ``<stream>.pool`` for each stream of a rig: its payloads back to back, equal sizes."""
    folder.mkdir(parents=True)
    pictures = list(_jpegs())
    rng = np.random.default_rng(9)
    for index, load in enumerate(RIGS[rig]):
        if load.kind == "jpeg":
            payloads = pictures[index:] + pictures[:index]
        elif load.kind == "cloud":
            payloads = [_cloud(rng) for _ in range(POOL_FRAMES)]
        elif load.kind == "columns":
            payloads = _blocks(load, rng)
        elif load.kind == "pcm":
            payloads = _sound(load, rng)
        else:
            payloads = [_ouster_revolution(folder)]
        assert all(len(payload) == load.frame_bytes for payload in payloads), load.name
        (folder / f"{load.name}.pool").write_bytes(b"".join(payloads))


def column_count(load: Load) -> int:
    """Return how many int32 columns a stream of kind ``columns`` has."""
    return load.frame_bytes // load.samples // 4


def _jpegs() -> Iterator[bytes]:
    """Yield real JPEG files of at most ``JPEG_BYTES``, padded to it behind their end marker."""
    data = shared_data()
    found = sorted((data / "calibration/kitti_object/image_2").glob("*.png")) if data is not None else []
    scenes = [image for image in map(cv2.imread, map(str, found)) if image is not None] or [_scene()]
    for index in range(POOL_FRAMES):
        image = np.roll(scenes[index % len(scenes)], 61 * index, axis=1)
        yield _encoded(cv2.resize(image, (1242, 700), interpolation=cv2.INTER_CUBIC))


def _scene() -> NDArray[np.uint8]:
    rng = np.random.default_rng(5)
    coarse = rng.integers(0, 256, (90, 160, 3)).astype(np.float32)
    smooth = cv2.resize(coarse, (1242, 700), interpolation=cv2.INTER_CUBIC)
    noisy: NDArray[np.uint8] = np.clip(smooth + rng.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)
    return noisy


def _encoded(image: Any) -> bytes:
    """Return the image at the highest quality that fits."""
    low, high = 5, 100
    best = b""
    while low <= high:
        quality = (low + high) // 2
        data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
        if len(data) <= JPEG_BYTES:
            best, low = data, quality + 1
        else:
            high = quality - 1
    return best.ljust(JPEG_BYTES, b"\0")


def _cloud(rng: np.random.Generator) -> bytes:
    """Return float32 x, y, z, intensity of a box-shaped room, 1 cm of range noise."""
    azimuth = np.linspace(-np.pi, np.pi, COLUMNS, endpoint=False)[None, :]
    altitude = np.radians(np.linspace(22.5, -22.5, RINGS))[:, None]
    rays = np.stack(
        np.broadcast_arrays(
            np.cos(altitude) * np.cos(azimuth), np.cos(altitude) * np.sin(azimuth), np.sin(altitude)
        ),
        axis=-1,
    )
    with np.errstate(divide="ignore"):
        range_m = np.min(np.array([6.0, 4.0, 1.6]) / np.abs(rays), axis=-1)
    range_m = range_m + rng.normal(0, 0.01, range_m.shape)
    intensity = rng.integers(0, 256, range_m.shape)
    points = np.concatenate([rays * range_m[..., None], intensity[..., None]], axis=-1)
    return points.astype("<f4").tobytes()


def _blocks(load: Load, rng: np.random.Generator) -> list[bytes]:
    """Return consecutive blocks of ADC counts, column by column: a slow random walk under white noise."""
    rows = SMALL_POOL_S * load.frames_per_s * load.samples
    shape = (rows, column_count(load))
    walk = np.cumsum(rng.normal(0, 3.0, shape), axis=0) + rng.integers(-20_000, 20_000, shape[1])
    counts = np.rint(walk + rng.normal(0, 8.0, shape)).astype("<i4")
    return [block.T.tobytes() for block in np.split(counts, rows // load.samples)]


def _sound(load: Load, rng: np.random.Generator) -> list[bytes]:
    """Return consecutive blocks of 16-bit stereo: two tones over noise of about 10 bits."""
    frames = SMALL_POOL_S * load.frames_per_s
    samples = np.arange(frames * load.samples)
    # Whole cycles, so that the loop has no click.
    tones = [6000 * np.sin(2 * np.pi * cycles * samples / len(samples)) for cycles in (18_773, 52_817)]
    sound = np.stack(tones, axis=1) + rng.normal(0, 300, (len(samples), 2))
    return [block.tobytes() for block in np.split(np.rint(sound).astype("<i2"), frames)]


def _ouster_revolution(folder: Path) -> bytes:
    """Return the 64 packets of the recorded revolution in sending order; write the sensor's metadata beside."""
    data = shared_data()
    assert data is not None
    (folder / "ouster.json").write_text((data / f"{_OUSTER}.json").read_text())
    packets = {
        int.from_bytes(payload[40:42], "little"): payload  # by the measurement id of its first column
        for payload in _udp_payloads(data / f"{_OUSTER}.pcap")
        if len(payload) == 8448
    }
    return b"".join(packets[number] for number in sorted(packets))


def _udp_payloads(pcap: Path) -> Iterator[bytes]:
    """Yield the UDP payloads of a classic little-endian pcap of Ethernet frames, fragments joined."""
    data = pcap.read_bytes()
    at = _PCAP_HEAD
    pending: dict[bytes, bytes] = {}
    while at < len(data):
        _, _, size, _ = _PCAP_RECORD.unpack_from(data, at)
        packet = data[at + _PCAP_RECORD.size + 14 : at + _PCAP_RECORD.size + size]
        at += _PCAP_RECORD.size + size
        head, total = 4 * (packet[0] & 15), int.from_bytes(packet[2:4], "big")
        offset = int.from_bytes(packet[6:8], "big")
        key = packet[4:6] + packet[12:20]
        pending[key] = pending.get(key, b"") + packet[head:total]
        if not offset & 0x2000:
            yield pending.pop(key)[8:]


def entry_point_folder(folder: Path) -> Path:
    """Return a folder that, on the path, makes the bench's driver known as an installed package would."""
    info = folder / "bench_load-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bench-load\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[sensorium.drivers]\n{ENTRY_POINT} = rigs.driver:LoadDriver\n")
    return folder
