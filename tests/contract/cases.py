"""One case per driver: how to bring its device up on this machine, and the options that lead to it."""

import contextlib
import http.server
import importlib
import itertools
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import numpy as np
from contract import pulseaudio
from numpy.typing import NDArray

from sensorium.simulators.emulators.ati_netft import AtiNetFtEmulator
from sensorium.simulators.emulators.ouster_encoder import default_metadata, encode_imu, encode_scan
from sensorium.simulators.emulators.xsens import XsensEmulator
from sensorium.timebase import SECOND_NS, HostClock

Options = dict[str, Any]
Emulator = Callable[[Path], AbstractContextManager[Options]]


@dataclass(frozen=True, slots=True)
class DriverCase:
    """What the contract suite needs to know about a driver.

    Attributes:
        label: Names the case in the test's id.
        driver: The driver's name in the registry.
        emulate: Brings up what stands for the device, in the given folder, and yields the rig file's options.
        broken: Options for which ``open`` must raise ``DeviceError``, made from the working ones.
        enough: Frames of each stream that the suite waits for.
        patience_s: How long it waits for them.
        why_not: The reason why this machine cannot run the case, or None.
    """

    label: str
    driver: str
    emulate: Emulator
    broken: Callable[[Options], Options] | None = None
    enough: int = 5
    patience_s: float = 10.0
    why_not: Callable[[], str | None] = lambda: None


def _picture(index: int) -> NDArray[np.uint8]:
    pixels = np.full((48, 64, 3), index * 10 % 200, np.uint8)
    cv2.circle(pixels, (index % 64, 24), 8, (0, 255, 0), -1)
    return pixels


def _replaced(changes: Mapping[str, Any]) -> Callable[[Options], Options]:
    return lambda options: {**options, **changes}


def _video_file(**options: Any) -> Emulator:
    @contextmanager
    def emulate(folder: Path) -> Iterator[Options]:
        path = folder / "film.avi"
        fourcc = cv2.VideoWriter.fourcc(*"MJPG")
        writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, fourcc, 50.0, (64, 48))
        for index in range(10):
            writer.write(_picture(index))
        writer.release()
        yield {"device": str(path), "size": [64, 48], "rate_hz": 50, **options}

    return emulate


@contextmanager
def _network_camera(folder: Path) -> Iterator[Options]:
    stop = threading.Event()

    class Camera(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
            index = 0
            try:
                while not stop.wait(0.02):
                    image = cv2.imencode(".jpg", _picture(index))[1].tobytes()
                    head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(image)}\r\n\r\n"
                    self.wfile.write(head.encode() + image + b"\r\n")
                    index += 1
            except OSError:
                return  # the client left

        def log_message(self, format: str, *args: Any) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Camera)
    server.block_on_close = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), name="network camera")
    thread.start()
    try:
        yield {"device": f"http://127.0.0.1:{server.server_address[1]}/", "rate_hz": 50}
    finally:
        stop.set()
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def _null_sink(folder: Path) -> Iterator[Options]:
    with pulseaudio.null_sink(folder / "pa") as environment, mock.patch.dict(os.environ, environment):
        import sounddevice

        # PortAudio lists its devices once; another test may have made it look before this daemon ran.
        sounddevice._terminate()
        sounddevice._initialize()
        try:
            yield {"device": "mic0", "rate_hz": pulseaudio.RATE_HZ, "channels": 2}
        finally:
            sounddevice._terminate()
            sounddevice._initialize()


@contextmanager
def _ouster(folder: Path) -> Iterator[Options]:
    """Send a small LiDAR's packets and its IMU's to two loopback ports, as its own clock counts on."""
    metadata = default_metadata(4, 512, 10)
    path = folder / "sensor.json"
    path.write_text(metadata.text)
    lidar_port, imu_port = free_udp_ports(2)
    stop = threading.Event()

    def spin() -> None:
        period_ns = SECOND_NS // 10
        columns_ns = np.arange(metadata.columns) * period_ns // metadata.columns
        imu_due_ns = 0
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for revolution in itertools.count():
                start_ns = revolution * period_ns
                packets = encode_scan(metadata, revolution, 2000, 50, start_ns + columns_ns)
                for index, packet in enumerate(packets):
                    if stop.wait(0.1 / len(packets)):
                        return
                    sender.sendto(packet, ("127.0.0.1", lidar_port))
                    now_ns = start_ns + index * period_ns // len(packets)
                    if now_ns >= imu_due_ns:
                        imu = encode_imu(now_ns, (0.0, 0.0, 1.0), (0.0, 0.0, 0.0))
                        sender.sendto(imu, ("127.0.0.1", imu_port))
                        imu_due_ns += period_ns // 10

    thread = threading.Thread(target=spin, name="emulator of an Ouster")
    thread.start()
    try:
        yield {
            "metadata": str(path),
            "lidar_port": lidar_port,
            "imu_port": imu_port,
            "bind": "127.0.0.1",
            "preview_points": 256,
        }
    finally:
        stop.set()
        thread.join()


@contextmanager
def _xsens(folder: Path) -> Iterator[Options]:
    with XsensEmulator(rate_hz=100.0) as imu:
        yield {"port": imu.port, "rate_hz": 100}


@contextmanager
def _ati_netft(folder: Path) -> Iterator[Options]:
    with AtiNetFtEmulator(rate_hz=500.0) as sensor:
        yield {
            "host": "127.0.0.1",
            "port": sensor.port,
            "http_port": sensor.http_port,
            "rate_hz": 500,
        }


def free_udp_ports(count: int) -> list[int]:
    """Return ports that nobody is bound to on the loopback address."""
    probes = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def _recording(**options: Any) -> Emulator:
    """A small EuRoC folder: a camera at 20 Hz with one listed image missing, and an IMU at 200 Hz."""

    @contextmanager
    def emulate(folder: Path) -> Iterator[Options]:
        camera, imu = folder / "mav0/cam0", folder / "mav0/imu0"
        (camera / "data").mkdir(parents=True)
        imu.mkdir(parents=True)
        start_ns = 1_403_715_273 * SECOND_NS
        shots = [start_ns + index * SECOND_NS // 20 for index in range(12)]
        (camera / "sensor.yaml").write_text("sensor_type: camera\nrate_hz: 20\nresolution: [64, 48]\n")
        (camera / "data.csv").write_text("#timestamp,filename\n" + "".join(f"{t},{t}.png\n" for t in shots))
        for index, taken_ns in enumerate(shots):
            if index != 3:
                cv2.imwrite(str(camera / "data" / f"{taken_ns}.png"), _picture(index))
        rows = [f"{start_ns + index * SECOND_NS // 200},0,0,0,9.8,0,0\n" for index in range(120)]
        (imu / "data.csv").write_text("#timestamp,gyro,acc\n" + "".join(rows))
        yield {"source": str(folder), **options}

    return emulate


@contextmanager
def _kernel_pps(folder: Path) -> Iterator[Options]:
    """A file like that of /sys/class/pps/pps0, written anew at each edge, 20 times a second."""
    stop = threading.Event()
    path = folder / "assert"
    path.write_text("0.000000000#0\n")

    def pulse() -> None:
        for number in itertools.count(1):
            if stop.wait(0.05):
                return
            now_ns = HostClock().utc_ns()
            fresh = folder / "fresh"
            fresh.write_text(f"{now_ns // SECOND_NS}.{now_ns % SECOND_NS:09d}#{number}\n")
            fresh.replace(path)

    thread = threading.Thread(target=pulse, name="pps")
    thread.start()
    try:
        yield {"source": str(folder), "rate_hz": 20.0}
    finally:
        stop.set()
        thread.join()


def _simulated(mount: str, **options: Any) -> Emulator:
    @contextmanager
    def emulate(folder: Path) -> Iterator[Options]:
        yield {"seed": 7, "mount": mount, **options}

    return emulate


@contextmanager
def third_party(folder: Path) -> Iterator[Options]:
    """Install the example package with pip and put it on the path, as in somebody's environment."""
    site = folder / "site"
    install_third_party(site)
    sys.path.insert(0, str(site))
    importlib.invalidate_caches()
    try:
        yield {"rate_hz": 200}
    finally:
        sys.path.remove(str(site))
        sys.modules.pop("example_ticker", None)


def install_third_party(site: Path) -> None:
    """Install ``tests/contract/third_party`` into ``site``."""
    source = Path(__file__).parent / "third_party"
    copy = site.parent / "third_party"  # building writes beside the sources
    for path in source.rglob("*"):
        if path.suffix in (".py", ".toml"):
            (copy / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            (copy / path.relative_to(source)).write_bytes(path.read_bytes())
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site)]
    done = subprocess.run([*command, str(copy)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


CASES = [
    DriverCase("opencv-file", "opencv", _video_file(loop=True), _replaced({"device": "absent.avi"})),
    DriverCase("opencv-png", "opencv", _video_file(loop=True, encoding="png"), _replaced({"size": [8, 8]})),
    DriverCase("opencv-raw", "opencv", _video_file(encoding="bgr8"), _replaced({"rate_hz": 5})),
    DriverCase("opencv-http", "opencv", _network_camera, _replaced({"device": "http://127.0.0.1:9/"})),
    DriverCase(
        "sounddevice",
        "sounddevice",
        _null_sink,
        _replaced({"device": "absent microphone"}),
        why_not=pulseaudio.why_not,
    ),
    DriverCase(
        "ouster",
        "ouster",
        _ouster,
        _replaced({"metadata": None, "host": "127.0.0.1", "http_port": 9}),
    ),
    DriverCase("xsens", "xsens", _xsens, _replaced({"port": "/dev/serial/by-id/absent"})),
    DriverCase("ati-netft", "ati_netft", _ati_netft, _replaced({"http_port": 9, "http_timeout_s": 1})),
    DriverCase("pps", "pps", _kernel_pps, _replaced({"source": "/sys/class/pps/absent"})),
    DriverCase("sim-camera", "sim_camera", _simulated("camera_left", size=[160, 120])),
    DriverCase("sim-trigger", "sim_trigger", lambda _: contextlib.nullcontext({"seed": 7})),
    DriverCase("sim-lidar", "sim_lidar", _simulated("lidar", rings=16, columns=512)),
    DriverCase("sim-imu", "sim_imu", _simulated("imu")),
    DriverCase("sim-imu-drops", "sim_imu", _simulated("imu", drop_probability=0.2), enough=30),
    DriverCase("sim-microphone", "sim_microphone", _simulated("microphone", channels=2)),
    DriverCase("sim-force", "sim_force", _simulated("force")),
    DriverCase("replay", "replay", _recording(), _replaced({"source": "absent.mcap"})),
    DriverCase("replay-max", "replay", _recording(rate="max"), _replaced({"streams": ["cam7"]})),
    DriverCase("third-party", "example_ticker", third_party),
]
