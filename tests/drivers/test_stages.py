"""Stages between driver and bus: codecs, order, what is held back, what is lost."""

import contextlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import pytest
import zmq

from sensorium.drivers import registry
from sensorium.drivers.bus.receiver import BusReceiver
from sensorium.drivers.bus.wire import Declare, End, Heartbeat, Lost
from sensorium.drivers.driver import Driver, DriverConfig, DriverContext
from sensorium.drivers.frame import (
    COUNTER_GAP,
    Column,
    Encoding,
    Frame,
    Loss,
    Modality,
    Place,
    StreamInfo,
    stamps,
)
from sensorium.drivers.host import DriverHost, HostSpec
from sensorium.drivers.payloads.choice import CodecChoice, parse_codec
from sensorium.drivers.payloads.table import CODECS
from sensorium.drivers.stages import BatchStage, CodecStage, Item, Pipeline, Stage, stages_for
from sensorium.errors import ConfigError, DeviceError, EndOfStreamError
from sensorium.timebase import SECOND_NS, HostClock, Timeline, VirtualClock

CLOCK = HostClock()
SIZE = (48, 64)
RAW = StreamInfo("cam", Modality.CAMERA, Encoding.BGR8, 30.0, "cam", shape=(*SIZE, 3))
GREY = replace(RAW, name="grey", encoding=Encoding.MONO8, shape=SIZE)
JPEG = replace(RAW, name="jpg", encoding=Encoding.JPEG, shape=SIZE)


def pixels(seq: int, info: StreamInfo = RAW) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seq).integers(0, 256, info.shape, dtype=np.uint8)


def picture(seq: int, info: StreamInfo = RAW) -> Frame:
    return Frame(info.name, seq, 1, stamps(7 * seq), stamps(1000 + seq), pixels(seq, info).tobytes())


def codec(text: str, *infos: StreamInfo, must_fit: bool = True) -> Pipeline:
    choice = parse_codec(text)
    assert choice is not None
    return Pipeline([CodecStage(choice, {}, must_fit=must_fit)], infos or (RAW,))


def test_png_keeps_every_pixel_and_every_stamp() -> None:
    pipeline = codec("png", RAW, GREY)
    assert [info.encoding for info in pipeline.infos] == [Encoding.PNG, Encoding.PNG]
    for declared, info in zip(pipeline.infos, (RAW, GREY), strict=True):
        for seq in range(3):
            (packed,) = pipeline.apply([picture(seq, info)])
            assert isinstance(packed, Frame)
            assert packed.device_ticks is not None
            assert (packed.seq, *packed.device_ticks, *packed.arrival_ns) == (seq, 7 * seq, 1000 + seq)
            found = cv2.imdecode(np.frombuffer(packed.payload, np.uint8), cv2.IMREAD_UNCHANGED)
            np.testing.assert_array_equal(found, pixels(seq, info))
            assert len(packed.payload) <= declared.max_payload_bytes
        assert declared.details["codec_is_exact"] == "true"


def test_a_lossy_codec_says_so_and_its_level_counts() -> None:
    sizes = []
    for level in ("20", "95"):
        pipeline = codec(f"jpeg:{level}")
        (info,) = pipeline.infos
        assert (info.details["codec"], info.details["codec_is_exact"]) == (f"jpeg:{level}", "false")
        (packed,) = pipeline.apply([picture(0)])
        assert isinstance(packed, Frame)
        sizes.append(len(packed.payload))
    assert 2 * sizes[0] < sizes[1]


def test_streams_that_the_codec_does_not_pack_pass_untouched() -> None:
    pipeline = codec("png", JPEG, RAW)
    image = Frame("jpg", 0, 1, None, stamps(5), b"\xff\xd8 as it came")
    assert pipeline.infos[0] is JPEG
    assert pipeline.apply([image]) == [image]


def test_a_codec_of_no_use_to_the_device_is_refused_with_what_it_packs() -> None:
    with pytest.raises(
        ConfigError, match="codec png packs bgr8, mono16, mono8, rgb8, but jpg is jpeg; choose"
    ):
        codec("png", JPEG)
    assert codec("png", JPEG, must_fit=False).infos == (JPEG,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("jpg", "codec 'jpg' is unknown; did you mean 'jpeg'"),
        ("zip7", "codec 'zip7' is unknown; known: .*jpeg, none, pcm, png"),
        ("jpeg:best", "level 'best' is not a number"),
        ("jpeg:", "level '' is not a number"),
        ("none:3", "codec 'none' is unknown"),
    ],
)
def test_a_codec_that_does_not_exist_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_codec(text)


@pytest.mark.parametrize(("text", "message"), [("jpeg:0", "from 1 to 100"), ("png:3", "write only its name")])
def test_a_level_that_the_codec_does_not_have_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        codec(text)


@pytest.mark.parametrize("name", CODECS)
def test_every_codec_of_the_table_loads_under_its_name(name: str) -> None:
    assert CodecChoice(name).load().name == name


def test_a_frame_that_cannot_be_packed_is_lost_where_it_stood() -> None:
    torn = replace(picture(4), payload=b"torn")
    items: list[Item] = [picture(0), Loss("cam", 1, Place.KERNEL, "overflow"), torn, picture(5)]
    found = codec("png").apply(items)
    assert [item.seq if isinstance(item, Frame) else item for item in found] == [
        0,
        Loss("cam", 1, Place.KERNEL, "overflow"),
        Loss("cam", 2, Place.DEVICE, COUNTER_GAP),
        Loss("cam", 1, Place.DRIVER, "could not be packed as png"),
        5,
    ]


class Hold(Stage):
    """Keeps each stream's newest item until the next one, the end, or the hour."""

    def __init__(self, due_ns: int | None = None) -> None:
        self._held: dict[str, Item] = {}
        self._hour_ns = due_ns

    def declare(self, infos: Sequence[StreamInfo]) -> Sequence[StreamInfo]:
        return [replace(info, details={"held": "yes"}) for info in infos]

    def apply(self, item: Item) -> Sequence[Item]:
        before = self._held.get(item.stream)
        self._held[item.stream] = item
        self.due_ns = self._hour_ns
        return () if before is None else (before,)

    def due(self, now_ns: int) -> Sequence[Item]:
        return self.flush() if self.due_ns is not None and now_ns >= self.due_ns else ()

    def flush(self) -> Sequence[Item]:
        found, self._held, self.due_ns = list(self._held.values()), {}, None
        return found


def test_what_a_stage_gives_up_late_passes_the_stages_behind_it() -> None:
    png = CodecStage(CodecChoice("png"), {}, must_fit=True)
    pipeline = Pipeline([Hold(due_ns=500), png, Hold()], [RAW])
    assert pipeline.infos[0].details["held"] == "yes"
    assert pipeline.apply([picture(0)]) == []
    assert pipeline.due_ns == 500
    assert pipeline.due(499) == []
    assert pipeline.due(500) == []  # now in the second hold
    assert pipeline.due_ns is None
    pipeline.apply([picture(1)])
    found = pipeline.flush()
    assert [item.seq for item in found if isinstance(item, Frame)] == [0, 1]
    assert all(bytes(item.payload)[1:4] == b"PNG" for item in found if isinstance(item, Frame))


class FilmConfig(DriverConfig):
    ends_with: str = "end"


class Film(Driver[FilmConfig]):
    """Four pictures, the second torn, then the end or a failure."""

    config_type: ClassVar[type[DriverConfig]] = FilmConfig

    def __init__(self, config: FilmConfig, context: DriverContext) -> None:
        super().__init__(config, context)
        self._items: list[Item] = [picture(0), replace(picture(1), payload=b"torn"), picture(2), picture(3)]

    def open(self) -> Sequence[StreamInfo]:
        return [RAW]

    def read(self, timeout_s: float) -> Sequence[Item]:
        if self._items:
            return [self._items.pop(0)]
        if self.config.ends_with == "end":
            raise EndOfStreamError("the film is over")
        raise DeviceError("the film tore")

    def close(self) -> None:
        return


def published(spec: HostSpec, context: "zmq.Context[zmq.Socket[bytes]]") -> list[object]:
    """Run a host to its end beside a receiver; return the messages, frames as such."""
    receiver = BusReceiver(spec.endpoint, 1, context)
    host = DriverHost(spec, CLOCK, context)
    with ThreadPoolExecutor(1) as executor:
        running = executor.submit(host.run)
        found: list[object] = []
        while not (found and isinstance(found[-1], End)):
            assert receiver.socket.poll(10_000), "the host went silent"
            for inbound in receiver.receive(100):
                message = inbound.message
                if isinstance(message, Declare):
                    receiver.welcome(inbound.identity, message)
                if isinstance(message, tuple):
                    assert inbound.held is not None
                    receiver.release([inbound.held])
                    found.append(message[1])
                elif not isinstance(message, Heartbeat):
                    found.append(message)
            receiver.step(CLOCK.now_ns())
        receiver.close()
        with contextlib.suppress(DeviceError):
            running.result()
    return found


@pytest.mark.parametrize("ends_with", ["end", "failure"])
def test_the_host_publishes_what_the_stages_make_and_books_what_they_drop(
    tmp_path: Path,
    context: "zmq.Context[zmq.Socket[bytes]]",
    monkeypatch: pytest.MonkeyPatch,
    ends_with: str,
) -> None:
    monkeypatch.setitem(registry.BUILT_IN, "film", f"{__name__}:Film")
    monkeypatch.setattr(
        "sensorium.drivers.host.stages_for",
        lambda *args: [Hold(), *stages_for(*args)],
    )
    options = {"ends_with": ends_with}
    spec = HostSpec(
        name="cam",
        driver="film",
        options=options,
        endpoint="inproc://bus",
        run_dir=tmp_path,
        host_id="here",
        codec="png",
    )
    declare, *rest, end = published(spec, context)
    assert isinstance(declare, Declare)
    assert [info.encoding for info in declare.streams] == [Encoding.PNG]
    frames = [message for message in rest if isinstance(message, Frame)]
    lost = [message for message in rest if isinstance(message, Lost)]
    assert [frame.seq for frame in frames] == [0, 2, 3]
    assert [(loss.seq, loss.count, loss.place) for loss in lost] == [(1, 1, Place.DRIVER)]
    for frame in frames:
        found = cv2.imdecode(np.frombuffer(frame.payload, np.uint8), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(found, pixels(frame.seq))
    assert isinstance(end, End)
    assert end.error == ("the film tore" if ends_with == "failure" else "")


class Swell(Stage):
    """Makes one picture larger than its stream declares, which the bus refuses; hears of it."""

    def __init__(self) -> None:
        self.heard: list[int] = []

    def declare(self, infos: Sequence[StreamInfo]) -> Sequence[StreamInfo]:
        return infos

    def apply(self, item: Item) -> Sequence[Item]:
        if isinstance(item, Frame) and item.seq == 2:
            return (replace(item, payload=bytes(RAW.max_payload_bytes + 1)),)
        return (item,)

    def refused(self, frame: Frame) -> None:
        self.heard.append(frame.seq)


def test_a_stage_hears_which_frame_the_bus_refused(
    tmp_path: Path, context: "zmq.Context[zmq.Socket[bytes]]", monkeypatch: pytest.MonkeyPatch
) -> None:
    swell = Swell()
    monkeypatch.setitem(registry.BUILT_IN, "film", f"{__name__}:Film")
    monkeypatch.setattr("sensorium.drivers.host.stages_for", lambda *_: [swell])
    spec = HostSpec(
        name="cam",
        driver="film",
        options={"ends_with": "end"},
        endpoint="inproc://bus",
        run_dir=tmp_path,
        host_id="here",
    )
    frames = [message for message in published(spec, context) if isinstance(message, Frame)]
    assert 2 not in [frame.seq for frame in frames]
    assert swell.heard == [2]


def test_a_codec_that_fits_no_stream_ends_the_host_with_its_reason(
    tmp_path: Path, context: "zmq.Context[zmq.Socket[bytes]]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry.BUILT_IN, "film", f"{__name__}:Film")
    monkeypatch.setattr(Film, "open", lambda self: [JPEG])
    spec = HostSpec(
        name="cam",
        driver="film",
        options={},
        endpoint="inproc://bus",
        run_dir=tmp_path,
        host_id="here",
        codec="png",
    )
    receiver = BusReceiver(spec.endpoint, 1, context)
    host = DriverHost(spec, CLOCK, context)
    with ThreadPoolExecutor(1) as executor:
        running = executor.submit(host.run)
        while not running.done():
            receiver.socket.poll(20)
            assert list(receiver.receive(100)) == []
        with pytest.raises(ConfigError, match="codec png packs bgr8, mono16, mono8, rgb8, but jpg is jpeg"):
            running.result()
    receiver.close()


def film(tmp_path: Path) -> Film:
    return Film(FilmConfig(), DriverContext("cam", "here", CLOCK, tmp_path))


def test_what_is_not_asked_for_is_packed_only_exactly_and_a_recording_never(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "sensorium.drivers.stages.DEFAULTS", {Encoding.BGR8: CODECS["png"], Encoding.JPEG: CODECS["jpeg"]}
    )
    infos = [RAW, GREY]
    driver = film(tmp_path)

    def encodings(codec: str | None) -> list[str]:
        return [info.encoding for info in Pipeline(stages_for(driver, infos, codec, 0.0), infos).infos]

    assert encodings(None) == [Encoding.PNG, Encoding.MONO8]
    assert encodings("none") == [Encoding.BGR8, Encoding.MONO8]
    assert encodings("jpeg") == [Encoding.JPEG, Encoding.JPEG]
    monkeypatch.setattr(Film, "codec", "jpeg:50")
    assert encodings(None) == [Encoding.JPEG, Encoding.JPEG]
    monkeypatch.setattr(Film, "codec", None)
    monkeypatch.setattr(Film, "blocks", True)
    assert encodings(None) == [Encoding.BGR8, Encoding.MONO8]
    assert encodings("png") == [Encoding.PNG, Encoding.PNG]


def test_a_recording_and_a_virtual_clock_are_not_batched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = film(tmp_path)
    assert [type(stage) for stage in stages_for(driver, [RAW], None, 10.0)] == [BatchStage]
    assert stages_for(driver, [RAW], None, 0.0) == []
    driver.timeline = Timeline("here", 0, is_virtual=True)
    assert stages_for(driver, [RAW], None, 10.0) == []
    driver.timeline = None
    monkeypatch.setattr(Film, "blocks", True)
    assert stages_for(driver, [RAW], None, 10.0) == []


class Tick(Driver[DriverConfig]):
    """One sample, then silence for as long as it is allowed to wait."""

    config_type: ClassVar[type[DriverConfig]] = DriverConfig

    def open(self) -> Sequence[StreamInfo]:
        self._is_first = True
        columns = (Column("t", "s", "<i4"),)
        name = self.context.name
        return [StreamInfo(name, Modality.OTHER, Encoding.COLUMNS, 1000.0, name, columns=columns)]

    def read(self, timeout_s: float) -> Sequence[Item]:
        now_ns = self.context.clock.now_ns()
        if self._is_first:
            self._is_first = False
            return [Frame(self.context.name, 0, 1, None, stamps(now_ns), bytes(4))]
        self.context.clock.sleep_until(now_ns + round(timeout_s * SECOND_NS))
        return ()

    def close(self) -> None:
        return


@pytest.mark.parametrize("batch_ms", [3.0, 10.0, 50.0])
def test_a_sample_leaves_at_its_bound_although_the_driver_reads_on_in_silence(
    tmp_path: Path,
    context: "zmq.Context[zmq.Socket[bytes]]",
    monkeypatch: pytest.MonkeyPatch,
    batch_ms: float,
) -> None:
    monkeypatch.setitem(registry.BUILT_IN, "tick", f"{__name__}:Tick")
    clock = VirtualClock(SECOND_NS)
    receiver = BusReceiver("inproc://bus", 1, context)
    spec = HostSpec(
        name="t",
        driver="tick",
        options={},
        endpoint="inproc://bus",
        run_dir=tmp_path,
        host_id="here",
        batch_ms=batch_ms,
    )
    host = DriverHost(spec, clock, context)
    with ThreadPoolExecutor(1) as executor:
        opening = executor.submit(host.open)
        while not opening.done():
            receiver.socket.poll(20)
            for inbound in receiver.receive(100):
                if isinstance(inbound.message, Declare):
                    receiver.welcome(inbound.identity, inbound.message)
            receiver.step(clock.now_ns())
        opening.result()
    frames: list[Frame] = []
    while not frames:
        assert clock.now_ns() <= SECOND_NS + 2 * batch_ms * 1e6, "held back for too long"
        host.step()
        receiver.socket.poll(20)
        frames += [found.message[1] for found in receiver.receive(100) if isinstance(found.message, tuple)]
    assert clock.now_ns() == SECOND_NS + batch_ms * 1e6
    host._bus.end(linger_s=0.0)
    receiver.close()
