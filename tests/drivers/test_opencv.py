"""The OpenCV driver on generated files, a real HTTP server, and a scripted V4L2 capture."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from camera_server import HEIGHT, WIDTH, counted_parts, jpeg, mjpeg_server, picture, uncounted_parts
from pydantic import ValidationError

from sensorium.drivers.devices.opencv.config import OpenCvConfig
from sensorium.drivers.devices.opencv.driver import OpenCvDriver
from sensorium.drivers.devices.opencv.sources import V4l2Source
from sensorium.drivers.driver import DriverContext
from sensorium.drivers.frame import ClockKind, Encoding, Frame, Loss, Place, StreamInfo
from sensorium.drivers.links.inbox import Inbox
from sensorium.drivers.links.mjpeg import MjpegStream
from sensorium.drivers.payloads.images import jpeg_extent
from sensorium.drivers.stages import Pipeline, stages_for
from sensorium.errors import DeviceError, EndOfStreamError
from sensorium.timebase import SECOND_NS, HostClock, read_bases

RATE_HZ = 50.0


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(
        str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"MJPG"), RATE_HZ, (WIDTH, HEIGHT)
    )
    assert writer.isOpened()
    for index in range(12):
        writer.write(picture(index))
    writer.release()
    return path


class Camera:
    """A driver with the stages that its host puts behind it."""

    def __init__(self, driver: OpenCvDriver, codec: str | None) -> None:
        self._driver = driver
        infos = driver.open()
        self._pipeline = Pipeline(stages_for(driver, infos, codec, batch_ms=0), infos)
        (self.info,) = self._pipeline.infos

    def read(self, timeout_s: float) -> Sequence[Frame | Loss]:
        return self._pipeline.apply(self._driver.read(timeout_s))


@contextmanager
def opened(folder: Path, codec: str | None = None, **options: Any) -> Iterator[tuple[Camera, StreamInfo]]:
    context = DriverContext("cam", "here", HostClock(), folder)
    driver = OpenCvDriver(OpenCvConfig(**options), context)
    try:
        camera = Camera(driver, codec)
        yield camera, camera.info
    finally:
        driver.close()


def collect(driver: Camera, count: int) -> list[Frame | Loss]:
    """Read until ``count`` samples are accounted for, or the file ends."""
    items: list[Frame | Loss] = []
    deadline_ns = HostClock().now_ns() + 10 * SECOND_NS
    while sum(item.count for item in items) < count:
        assert HostClock().now_ns() < deadline_ns, f"only {len(items)} items in 10 s"
        try:
            items += driver.read(0.5)
        except EndOfStreamError:
            break
    return items


def frames_of(items: Sequence[Frame | Loss]) -> list[Frame]:
    return [item for item in items if isinstance(item, Frame)]


def test_a_jpeg_ends_where_its_last_marker_says_and_not_at_the_end_of_the_buffer() -> None:
    image = jpeg(3)
    stale = jpeg(9)[-200:]
    extent = jpeg_extent(image + b"\0" * 100 + stale)
    assert extent is not None
    assert (extent.length_bytes, extent.width_px, extent.height_px) == (len(image), WIDTH, HEIGHT)


@pytest.mark.parametrize("cut", [0, 1, 2, 3, 20, 200, -3, -1])
def test_a_cut_jpeg_is_no_jpeg(cut: int) -> None:
    assert jpeg_extent(jpeg(1)[:cut]) is None


def test_garbage_is_no_jpeg() -> None:
    rng = np.random.default_rng(7)
    for size in rng.integers(0, 3000, 300):
        assert jpeg_extent(b"\xff\xd8" + rng.bytes(int(size))) is None


def test_the_jpeg_images_of_a_file_pass_untouched_and_in_its_media_time(video: Path, tmp_path: Path) -> None:
    stored = video.read_bytes()
    with opened(tmp_path, device=str(video), size=(WIDTH, HEIGHT), rate_hz=RATE_HZ) as (driver, info):
        items = collect(driver, 100)
    frames = frames_of(items)
    assert info.clock.kind is ClockKind.FREE
    assert info.encoding == Encoding.JPEG
    assert info.is_personal
    assert info.rate_hz == RATE_HZ
    assert [frame.seq for frame in frames] == list(range(12))
    assert items == frames, "a file waits; nothing of it may be dropped"
    assert all(bytes(frame.payload) in stored for frame in frames)
    ticks = [int(frame.device_ticks[0]) for frame in frames if frame.device_ticks is not None]
    assert ticks == [round(index * SECOND_NS / RATE_HZ) for index in range(12)]
    arrivals = [int(frame.arrival_ns[0]) for frame in frames]
    assert arrivals == sorted(arrivals)
    assert arrivals[-1] - arrivals[0] >= ticks[-1], "frames must not come faster than the film"


@pytest.mark.parametrize("encoding", ["png", "bgr8", "mono8"])
def test_lossless_encodings_hold_the_pixels_that_the_file_decodes_to(
    video: Path, tmp_path: Path, encoding: str
) -> None:
    with opened(tmp_path, device=str(video), encoding=encoding) as (driver, info):
        frames = frames_of(collect(driver, 3))[:3]
    capture = cv2.VideoCapture(str(video), cv2.CAP_FFMPEG)
    for frame in frames:
        truth = np.asarray(capture.read()[1], np.uint8)
        if encoding == "png":
            found = cv2.imdecode(np.frombuffer(frame.payload, np.uint8), cv2.IMREAD_COLOR)
        else:
            found = np.frombuffer(frame.payload, np.uint8).reshape(info.shape)
        if encoding == "mono8":
            truth = np.asarray(cv2.cvtColor(truth, cv2.COLOR_BGR2GRAY), np.uint8)
        assert len(frame.payload) <= info.max_payload_bytes
        np.testing.assert_array_equal(found, truth)
    capture.release()


def test_a_video_that_asks_to_be_turned_is_read_as_it_is_stored(tmp_path: Path) -> None:
    path = tmp_path / "phone.mp4"
    writer = cv2.VideoWriter(
        str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"mp4v"), RATE_HZ, (WIDTH, HEIGHT)
    )
    for index in range(3):
        writer.write(picture(index))
    writer.release()
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44  # ISO 14496-12: the matrix of the track header, version 0
    quarter_turn = (0, 1 << 16, 0, -(1 << 16), 0, 0, HEIGHT << 16, 0, 1 << 30)
    data[at : at + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in quarter_turn)
    path.write_bytes(data)
    turned = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    assert turned.read()[1].shape == (WIDTH, HEIGHT, 3), "the file does ask for it"
    turned.release()
    with opened(tmp_path, device=str(path), encoding="bgr8", size=(WIDTH, HEIGHT)) as (driver, info):
        assert info.shape == (HEIGHT, WIDTH, 3)
        assert len(frames_of(collect(driver, 3))) == 3


def test_a_loop_continues_sequence_and_media_time(video: Path, tmp_path: Path) -> None:
    with opened(tmp_path, device=str(video), loop=True) as (driver, _):
        frames = frames_of(collect(driver, 15))[:15]
    assert [frame.seq for frame in frames] == list(range(15))
    ticks = np.array([frame.device_ticks[0] for frame in frames if frame.device_ticks is not None])
    np.testing.assert_array_equal(np.diff(ticks), SECOND_NS // RATE_HZ)


def test_a_finished_file_says_so_after_its_last_frame(video: Path, tmp_path: Path) -> None:
    with opened(tmp_path, device=str(video)) as (driver, _):
        assert len(collect(driver, 100)) == 12
        with pytest.raises(EndOfStreamError):
            driver.read(0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"size": (32, 24)}, "64x48 instead of 32x24"), ({"rate_hz": 30}, "rate_hz 30, it delivers 50")],
)
def test_a_file_of_another_size_or_rate_is_refused(
    video: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(DeviceError, match=message), opened(tmp_path, device=str(video), **options):
        pass


def test_a_rate_within_ten_percent_is_accepted(video: Path, tmp_path: Path) -> None:
    with opened(tmp_path, device=str(video), rate_hz=RATE_HZ * 1.05) as (_, info):
        assert info.rate_hz == RATE_HZ


def test_missing_devices_and_files_are_named_before_anything_starts(tmp_path: Path) -> None:
    for device in ("/dev/v4l/by-id/usb-nothing-video-index0", 4711, str(tmp_path / "absent.avi")):
        with pytest.raises(DeviceError, match="no such"):
            OpenCvDriver.check(OpenCvConfig(device=device))


def test_a_file_that_is_no_video_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "noise.avi"
    path.write_bytes(np.random.default_rng(1).bytes(5000))
    with (
        pytest.raises(DeviceError, match=r"noise\.avi: cannot be opened"),
        opened(tmp_path, device=str(path)),
    ):
        pass


@pytest.mark.parametrize(
    "options",
    [
        {"device": "x.avi", "exposure_us": 5000},
        {"device": "http://h/", "loop": True},
        {"device": 0, "frame_rate": 30},
        {"device": -1},
        {"device": 0, "pixel_format": "MJPEG"},
        {"device": 0, "jpeg_quality": 0},
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        OpenCvConfig(**options)


@pytest.mark.parametrize(
    ("content_type", "delimiter"),
    [
        ("multipart/x-mixed-replace; boundary=frame", b"--frame"),
        ("multipart/x-mixed-replace;boundary=--frame", b"--frame"),
        ("multipart/x-mixed-replace; boundary=other", b"--frame"),
        ("application/octet-stream", b"--ffmpeg"),
    ],
)
@pytest.mark.parametrize("is_counted", [True, False])
def test_images_of_a_network_camera_pass_untouched_whatever_its_header_says(
    tmp_path: Path, content_type: str, delimiter: bytes, is_counted: bool
) -> None:
    images = [jpeg(index) for index in range(6)]
    parts = counted_parts if is_counted else uncounted_parts
    with (
        mjpeg_server(lambda: parts(images, delimiter), content_type) as url,
        opened(tmp_path, device=url, size=(WIDTH, HEIGHT), rate_hz=30) as (driver, info),
    ):
        frames = frames_of(collect(driver, 6))
        assert [bytes(frame.payload) for frame in frames] == images
        assert info.clock.kind is ClockKind.NONE
        assert all(frame.device_ticks is None for frame in frames)
        with pytest.raises(DeviceError, match="closed the connection"):
            driver.read(2.0)


def test_a_stream_cut_into_any_chunks_gives_the_same_images() -> None:
    images = [jpeg(index) for index in range(4)]
    body = b"".join(uncounted_parts(images[:2], b"--b")) + b"".join(counted_parts(images[2:], b"--b"))
    rng = np.random.default_rng(5)
    cuts = np.sort(rng.integers(0, len(body), 40))

    def chunks() -> Iterator[bytes]:
        for piece in np.split(np.frombuffer(body, np.uint8), cuts):
            yield piece.tobytes()

    with mjpeg_server(chunks, "application/octet-stream") as url:
        stream = MjpegStream(url, 5.0)
        parts = stream.parts()
        assert [next(parts).body for _ in images] == images
        stream.close()


def test_an_image_without_length_is_published_before_the_next_one_begins(tmp_path: Path) -> None:
    may_go_on = threading.Event()

    def chunks() -> Iterator[bytes]:
        yield from uncounted_parts([jpeg(0), jpeg(1)], b"--b")
        assert may_go_on.wait(10)
        yield from uncounted_parts([jpeg(2)], b"--b")

    with (
        mjpeg_server(chunks, "multipart/x-mixed-replace") as url,
        opened(tmp_path, device=url) as (driver, _),
    ):
        assert len(collect(driver, 2)) == 2
        may_go_on.set()


def test_the_senders_time_stamps_are_kept_as_a_free_clock(tmp_path: Path) -> None:
    def chunks() -> Iterator[bytes]:
        for index in range(3):
            stamp = b"X-Timestamp: %d.%06d\r\n" % (100 + index, 250)
            yield from counted_parts([jpeg(index)], b"--b", stamp)

    with (
        mjpeg_server(chunks, "multipart/x-mixed-replace") as url,
        opened(tmp_path, device=url) as (driver, info),
    ):
        frames = frames_of(collect(driver, 3))
    assert info.clock.kind is ClockKind.FREE
    assert info.clock.tick_ns == 1000
    assert [frame.device_ticks.tolist() for frame in frames if frame.device_ticks is not None] == [
        [100_000_250],
        [101_000_250],
        [102_000_250],
    ]


def test_a_damaged_image_is_counted_as_lost_and_its_number_is_skipped(tmp_path: Path) -> None:
    images = [jpeg(0), jpeg(1)[:-50], jpeg(2)]
    with (
        mjpeg_server(lambda: counted_parts(images, b"--b"), "multipart/x-mixed-replace") as url,
        opened(tmp_path, device=url) as (driver, _),
    ):
        items = collect(driver, 3)
    assert [item.seq for item in frames_of(items)] == [0, 2]
    assert items[1] == Loss("cam", 1, Place.DRIVER, "damaged image")


def test_torn_images_at_the_start_are_counted_and_the_size_is_that_of_the_first_whole_one(
    tmp_path: Path,
) -> None:
    images = [jpeg(0)[:300], jpeg(1)[200:], jpeg(2), jpeg(3)]
    with (
        mjpeg_server(lambda: counted_parts(images, b"--b"), "multipart/x-mixed-replace") as url,
        opened(tmp_path, device=url) as (driver, info),
    ):
        items = collect(driver, 4)
    assert info.shape == (HEIGHT, WIDTH)
    assert items[0] == Loss("cam", 2, Place.DRIVER, "damaged image")
    assert [frame.seq for frame in frames_of(items)] == [2, 3]


def test_a_source_of_nothing_but_damaged_images_is_refused(tmp_path: Path) -> None:
    with (
        mjpeg_server(lambda: counted_parts([b"no image"] * 20, b"--b"), "multipart/x-mixed-replace") as url,
        pytest.raises(DeviceError, match="no whole JPEG"),
        opened(tmp_path, device=url),
    ):
        pass


def test_a_frozen_camera_is_a_failed_device(tmp_path: Path) -> None:
    gone = threading.Event()

    def chunks() -> Iterator[bytes]:
        yield from counted_parts([jpeg(0)], b"--b")
        gone.wait(10)

    with mjpeg_server(chunks, "multipart/x-mixed-replace") as url:
        with opened(tmp_path, device=url, stall_s=0.2) as (driver, _):
            assert len(collect(driver, 1)) == 1
            with pytest.raises(DeviceError, match=r"silent for 0\.2 s|frozen, no image for 0\.2 s"):
                collect(driver, 1)
        gone.set()


def test_a_camera_that_changes_its_size_is_refused(tmp_path: Path) -> None:
    images = [jpeg(0), jpeg(1, WIDTH * 2, HEIGHT)]
    with (
        mjpeg_server(lambda: counted_parts(images, b"--b"), "multipart/x-mixed-replace") as url,
        opened(tmp_path, device=url) as (driver, _),
    ):
        assert len(collect(driver, 1)) == 1
        with pytest.raises(DeviceError, match="128x48 instead of 64x48"):
            driver.read(2.0)


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (401, b"", r"answered 401 .*put user:password@"),
        (404, b"", "answered 404 .*check the path"),
        (200, b"<html>\n<p>not a camera</p>\n", "closed the connection"),
        (200, b"line\n" * 40_000, "no multipart stream"),
        (200, b"--b\r\nContent-Length: 99999999999\r\n\r\n", "not believed"),
        (200, b"--b\r\n" + b"a: b\r\n" * 200, None),
    ],
)
def test_a_server_that_is_no_camera_gets_a_clear_error(
    tmp_path: Path, status: int, body: bytes, message: str | None
) -> None:
    with (
        mjpeg_server(lambda: iter([body]), "text/html", status) as url,
        pytest.raises(DeviceError, match=message),
        opened(tmp_path, device=url),
    ):
        pass


def test_an_unreachable_camera_is_named_without_its_password(tmp_path: Path) -> None:
    with (
        pytest.raises(DeviceError, match=r"http://\*\*\*@127\.0\.0\.1:9/x: no answer") as caught,
        opened(tmp_path, device="http://me:secret@127.0.0.1:9/x"),
    ):
        pass
    assert "secret" not in str(caught.value)


class ScriptedCapture:
    """What cv2.VideoCapture does on a V4L2 camera: takes settings as far as it can, gives buffers."""

    def __init__(self, rate_hz: float = 30.0, fourcc: str = "MJPG", stamp_offset_ns: int = 2_000_000) -> None:
        self.properties: dict[int, float] = {}
        self.forced = {
            cv2.CAP_PROP_FPS: rate_hz,
            cv2.CAP_PROP_FOURCC: float(int.from_bytes(fourcc.encode(), "little")),
        }
        self.stamp_offset_ns = stamp_offset_ns
        self.is_released = False

    def set(self, prop: int, value: float) -> bool:
        self.properties[prop] = value
        return True

    def get(self, prop: int) -> float:
        if prop == cv2.CAP_PROP_POS_MSEC:
            return (read_bases().monotonic_ns - self.stamp_offset_ns) / 1e6
        return self.forced.get(prop, self.properties.get(prop, 0.0))

    def read(self) -> tuple[bool, Any]:
        return True, np.frombuffer(jpeg(0) + b"\0" * 500, np.uint8).reshape(1, -1)

    def release(self) -> None:
        self.is_released = True


def test_v4l2_buffers_are_stamped_by_the_kernel_and_carried_to_the_host_clock() -> None:
    config = OpenCvConfig(device="/dev/v4l/by-id/usb-cam", size=(WIDTH, HEIGHT))
    source = V4l2Source(config, HostClock(), ScriptedCapture())
    taken = source.next()
    assert source.clock.kind is ClockKind.HOST
    assert taken.tick is not None
    # The capture was read 2 ms after the buffer's stamp; both readings are under a millisecond apart.
    assert 1_000_000 <= taken.arrival_ns - taken.tick <= 4_000_000


def test_v4l2_stamps_of_another_clock_are_not_believed() -> None:
    capture = ScriptedCapture(stamp_offset_ns=-3600 * SECOND_NS)
    source = V4l2Source(OpenCvConfig(device=0), HostClock(), capture)
    assert source.clock.kind is ClockKind.NONE
    assert source.stamp_of == "arrival"


@pytest.mark.parametrize(
    ("capture", "message"),
    [
        (ScriptedCapture(rate_hz=15), "rate_hz 30, it delivers 15"),
        (ScriptedCapture(fourcc="YUYV"), "pixel_format MJPG, it set YUYV"),
    ],
)
def test_a_v4l2_camera_that_does_not_take_its_settings_is_refused(
    capture: ScriptedCapture, message: str
) -> None:
    with pytest.raises(DeviceError, match=message):
        V4l2Source(OpenCvConfig(device=0), HostClock(), capture)
    assert capture.is_released


def test_a_full_inbox_drops_and_tells_the_loss_in_front_of_the_next_frame() -> None:
    def frame(seq: int) -> Frame:
        return Frame("s", seq, 1, None, np.array([seq], np.int64), b"x")

    inbox = Inbox(2)
    for seq in range(5):
        inbox.put(frame(seq))
    first = inbox.take(0)
    inbox.put(frame(5))
    second = inbox.take(0)
    numbers = [item.seq if isinstance(item, Frame) else item for item in first + second]
    assert numbers == [0, 1, Loss("s", 3, Place.DRIVER, "driver queue full"), 5]
