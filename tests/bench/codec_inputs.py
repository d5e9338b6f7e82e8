"""What the codecs are measured on: real captures where they are on this machine, else what is simulated."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from sensorium.drivers.driver import DriverContext
from sensorium.drivers.frame import Frame
from sensorium.drivers.payloads.ouster import beam_rays, decode_scan
from sensorium.drivers.payloads.ouster_metadata import OusterMetadata
from sensorium.drivers.registry import load_driver
from sensorium.errors import EndOfStreamError
from sensorium.simulators.demo_rig import demo_rig
from sensorium.simulators.emulators.ouster_encoder import encode_scan
from sensorium.sync.sources.ouster_capture import OusterCaptureSource
from sensorium.timebase import VirtualClock

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
START_NS = 5_000_000_000
RATE_HZ = 1000
GRAVITY_M_S2 = 9.80665


@dataclass(frozen=True, slots=True)
class Scan:
    """One revolution: the sensor's packets, and the same returns as PointCloud2 would hold them."""

    metadata: OusterMetadata
    packets: bytes

    @property
    def cloud(self) -> bytes:
        """x, y, z, intensity as float32 of every pixel, zeros where nothing returned."""
        scan = decode_scan(self.packets, self.metadata)
        directions, offsets = beam_rays(self.metadata)
        points = np.zeros((self.metadata.rings, self.metadata.columns, 4), "<f4")
        points[..., :3] = offsets + directions * (scan.range_mm[..., None] * np.float32(1e-3))
        points[scan.range_mm == 0] = 0
        points[..., 3] = scan.reflectivity
        return points.tobytes()


def scans() -> Iterator[tuple[str, Scan]]:
    """Yield (what it is, a revolution)."""
    for name in ("OS-0-128-U1_v2.3.0_1024x10", "OS-1-32-G_v2.1.1_1024x10"):
        path = DATA / "ouster" / f"{name}.pcap"
        if path.is_file():
            source = OusterCaptureSource(path)
            frames = (each for each in source.frames() if isinstance(each, Frame) and each.stream == "lidar")
            yield (
                f"real {name.split('_')[0]} {source.metadata.profile}",
                Scan(source.metadata, bytes(next(frames).payload)),
            )
    bag = DATA / "ouster/512x10_raw.bag"
    if bag.is_file():
        yield "real 128x512 RNG15_RFL8_NIR8", _from_bag(bag)
    for profile in ("RNG19_RFL8_SIG16_NIR16", "RNG15_RFL8_NIR8"):
        scan = _simulated(profile)
        yield f"sim room 128x1024 {profile}", scan
    yield (
        "sim room 128x1024 RNG19_RFL8_SIG16_NIR16, signal and near infrared of their own",
        _noisier(_simulated()),
    )


def _from_bag(path: Path) -> Scan:
    """Return the revolution in a ROS 1 bag of Ouster's driver: messages are a length and that many bytes."""
    from rosbags.rosbag1 import Reader

    found: dict[str, list[bytes]] = {}
    with Reader(path) as bag:
        for connection, _, raw in bag.messages():
            size = int.from_bytes(raw[:4], "little")
            found.setdefault(connection.topic, []).append(bytes(raw[4 : 4 + size]))
    metadata = OusterMetadata.from_json(found["/os_node0/metadata"][0].decode())
    packets = [packet[: metadata.packet_bytes] for packet in found["/os_node0/lidar_packets"]]
    return Scan(metadata, b"".join(packets))


def _simulated(profile: str = "RNG19_RFL8_SIG16_NIR16") -> Scan:
    settings: dict[str, Any] = demo_rig(start_ns=START_NS)["devices"]["lidar"]
    settings |= {"seconds": 0.35, "rings": 128, "columns": 1024, "profile": profile}
    driver_type = load_driver(settings.pop("driver"))
    with tempfile.TemporaryDirectory() as folder:
        context = DriverContext("lidar", "bench", VirtualClock(START_NS), Path(folder))
        driver = driver_type(driver_type.config_type(**settings), context)
        infos = {info.name: info for info in driver.open()}
        try:
            while True:
                for item in driver.read(1.0):
                    if isinstance(item, Frame) and item.stream == "lidar":
                        metadata = OusterMetadata.from_json(infos["lidar"].details["metadata"])
                        return Scan(metadata, bytes(item.payload))
        except EndOfStreamError as err:
            raise AssertionError("the simulated LiDAR sent no revolution") from err
        finally:
            driver.close()


def _noisier(scan: Scan) -> Scan:
    """Return the scan with photon noise in two fields; the simulator's near infrared repeats the reflectivity."""
    rng = np.random.default_rng(1)
    found = decode_scan(scan.packets, scan.metadata)
    packets = encode_scan(
        scan.metadata,
        1,
        found.range_mm,
        found.reflectivity,
        found.column_ns,
        signal=rng.poisson(4.0 * found.reflectivity + 20),
        near_ir=rng.poisson(2.0 * found.reflectivity + 50),
    )
    return Scan(scan.metadata, b"".join(packets))


@dataclass(frozen=True, slots=True)
class Rows:
    """A numeric stream: integers of the device by column, and the same as float64 rows with stamp and counter."""

    columns: tuple[NDArray[Any], ...]
    scale: float
    row_bytes: int

    @property
    def count(self) -> int:
        return len(self.columns[0])

    def float_rows(self, start: int, end: int) -> bytes:
        """Return rows as a recorder without schemas keeps them: ns since 1970, (counter,) scaled doubles."""
        fields = [("stamp", "<i8"), *((f"c{index}", "<f8") for index in range(len(self.columns)))]
        if self.row_bytes % 8:
            fields.insert(1, ("counter", "<u4"))
        rows = np.zeros(end - start, np.dtype(fields))
        rows["stamp"] = 1_700_000_000_000_000_000 + np.arange(start, end) * (10**9 // RATE_HZ)
        if "counter" in (rows.dtype.names or ()):
            rows["counter"] = np.arange(start, end)
        for index, column in enumerate(self.columns):
            rows[f"c{index}"] = column[start:end] * self.scale
        return rows.tobytes()

    def payload(self, start: int, end: int) -> bytes:
        return b"".join(column[start:end].tobytes() for column in self.columns)


def numeric_streams() -> Iterator[tuple[str, Rows]]:
    """Yield (what it is, rows): 100 B and 60 B as float64 rows, as in specs/performance.md 4b, and a real IMU."""
    rng = np.random.default_rng(0)
    time_s = np.arange(20_000) / RATE_HZ
    waves = [np.sin(2 * np.pi * (0.3 + 0.13 * index) * time_s + index) for index in range(11)]
    acc, gyro = 4 * GRAVITY_M_S2 / 32768, np.radians(500) / 32768
    # Noise densities of simulators/imu.py at 1 kHz; a magnetometer, a thermometer, a barometer of few steps.
    noise = (
        [1.0e-3 * np.sqrt(RATE_HZ) / acc] * 3
        + [1.2e-4 * np.sqrt(RATE_HZ) / gyro] * 3
        + [3.0] * 3
        + [0.5, 12.0]
    )
    swing = [800, 400, 8000, 1800, 1100, 700, 1000, 1000, 1000, 20, 300]
    imu = [
        np.rint(size * wave + rng.normal(0, sigma, len(wave)))
        for size, wave, sigma in zip(swing, waves, noise, strict=True)
    ]
    dtypes = ["<i2"] * 10 + ["<i4"]
    columns = tuple(each.astype(dtype) for each, dtype in zip(imu, dtypes, strict=True))
    yield "IMU, 11 columns", Rows(columns, acc, 100)
    force = [np.rint(30_000 * wave + rng.normal(0, 30, len(wave))).astype("<i4") for wave in waves[:6]]
    yield "force, 6 columns", Rows(tuple(force), 1e-6, 60)
    euroc = DATA / "euroc_micro/mav0/imu0/data.csv"
    if euroc.is_file():
        values = np.loadtxt(euroc, delimiter=",", skiprows=1)[:20_000, 1:]
        steps = np.array([np.pi / 4500] * 3 + [GRAVITY_M_S2 / 1200] * 3)
        counts = np.rint(values / steps).astype("<i2").T
        yield (
            "real EuRoC IMU, 6 columns",
            Rows(tuple(np.ascontiguousarray(each) for each in counts), steps[0], 56),
        )


def depth_images() -> Iterator[tuple[str, NDArray[np.uint16]]]:
    """Yield (what it is, a depth image in mm)."""
    bag = DATA / "realsense/single_depth_color_640x480.bag"
    if bag.is_file():
        from rosbags.rosbag1 import Reader
        from rosbags.typesys import Stores, get_typestore

        types = get_typestore(Stores.ROS1_NOETIC)
        with Reader(bag) as reader:
            for connection, _, raw in reader.messages():
                if connection.msgtype == "sensor_msgs/msg/Image":
                    image: Any = types.deserialize_ros1(raw, connection.msgtype)
                    if image.encoding == "mono16":
                        pixels = np.frombuffer(image.data, "<u2").reshape(image.height, image.width)
                        yield f"real RealSense 640x480, frame at {image.header.stamp.nanosec} ns", pixels
    rows, columns = np.mgrid[:480, :640]
    slanted = 1500 + 2 * columns + 3 * rows + np.random.default_rng(0).normal(0, 3, rows.shape)
    yield "slanted wall, 3 mm of noise", np.rint(slanted).astype("<u2")


def sounds() -> Iterator[tuple[str, NDArray[np.int16]]]:
    """Yield (what it is, (n, 2) samples at 48 kHz)."""
    rng = np.random.default_rng(0)
    time_s = np.arange(4 * 48_000) / 48_000
    voice = np.zeros(len(time_s))
    for k in range(1, 14):
        voice += 3000 * np.sin(2 * np.pi * 180 * k * time_s + k) / k
    voice[np.sin(2 * np.pi * 3 * time_s) <= 0] = 0.0
    rooms = {"voice-like, noise of 30 steps": (voice, 30.0), "quiet room, noise of 8 steps": (0 * voice, 8.0)}
    for name, (signal, noise) in rooms.items():
        both = signal[:, None] * [1.0, 0.8] + rng.normal(0, noise, (len(time_s), 2))
        yield name, np.clip(np.rint(both), -32768, 32767).astype("<i2")


def clips() -> Iterator[tuple[str, list[NDArray[np.uint8]]]]:
    """Yield (what it is, BGR images at 30 Hz)."""
    path = DATA / "lerobot_g1/videos/episode_000001.mp4"
    if not path.is_file():
        return
    import av

    with av.open(str(path)) as file:
        frames = [
            frame.to_ndarray(format="bgr24")
            for _, frame in zip(range(60), file.decode(video=0), strict=False)
        ]
    yield "real Unitree G1 640x480", frames
    yield "the same, enlarged to 1920x1080", [cv2.resize(frame, (1920, 1080)) for frame in frames[:30]]
