"""The report: every picture where it belongs, nothing personal without consent, and a page whatever happens."""

import base64
import io
import re
import wave
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from simulated_rig import run
from upload_samples import grant_for

from sensorium.agent.reporting import page as page_text
from sensorium.agent.reporting.episode import write_report
from sensorium.agent.reporting.page import LANE_COLOURS, STYLE
from sensorium.agent.reporting.pictures import bird_view, thumbnail
from sensorium.agent.reporting.survey import CLOCK_POINTS, MAX_LOSSES, TIME_BINS, Envelope, Thinned, survey
from sensorium.agent.session.outcome import SessionResult, document
from sensorium.drivers.frame import Frame, MessageSchema, Modality, Place, StreamInfo, stamps
from sensorium.errors import PayloadError
from sensorium.simulators.demo_rig import demo_calibration
from sensorium.sync.align import Aligner
from sensorium.sync.clocks.model import Stamped, Uncertainty
from sensorium.sync.clocks.tracker import StreamTracker
from sensorium.sync.consent.grants import (
    AFTER_ALL_NS,
    ConsentEvent,
    ConsentGrant,
    ConsentLedger,
    EventKind,
    Purpose,
)
from sensorium.sync.consent.use import rights_of
from sensorium.sync.decoding import picture
from sensorium.sync.episode.chain import seal
from sensorium.sync.episode.entries import EpisodeEvent
from sensorium.sync.episode.facts import SessionFacts
from sensorium.sync.episode.manifest import (
    Balance,
    CalibrationRecord,
    ConsentRecord,
    Manifest,
    Mark,
    QualityRecord,
    StreamRecord,
    read_manifest,
)
from sensorium.sync.episode.reader import Episode
from sensorium.sync.episode.spool import Spool
from sensorium.sync.episode.ulid import new_ulid
from sensorium.sync.episode.writer import EpisodeWriter
from sensorium.timebase import SECOND_NS, Timeline
from sensorium.verdict import Status, Verdict

TIMELINE = Timeline("bench", 1_790_000_000 * SECOND_NS)
GRANT = grant_for(purposes=(Purpose.RECORD, Purpose.LIVE), valid_around_ns=TIMELINE.utc_minus_host_ns)
ALLOWED = ConsentRecord("allowed", f"granted by {GRANT.id}", (GRANT.id,), ("record", "live"))
NOT_PERSONAL = ConsentRecord("not personal", "the stream is not personal")
DENIED = ConsentRecord("denied", "no live grant covers microphones and cameras here")
SECONDS = {"camera_left": 0.4, "lidar": 0.45, "imu": 0.5, "microphone": 0.5, "force": 0.5}


class Page(HTMLParser):
    """What a browser would see."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def pictures(self) -> list[bytes]:
        sources = [attrs["src"] or "" for tag, attrs in self.tags if tag == "img"]
        assert all(source.startswith("data:image/") for source in sources)
        return [base64.b64decode(source.partition(",")[2]) for source in sources]

    def of_class(self, name: str) -> int:
        return sum(name in (attrs.get("class") or "").split() for _, attrs in self.tags)


def decode(data: bytes) -> NDArray[np.uint8]:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    return np.asarray(image, np.uint8)


@dataclass
class Scene:
    """What an episode is to be made of."""

    frames: dict[str, list[Frame]]
    infos: dict[str, StreamInfo]
    consent: dict[str, ConsentRecord] = field(default_factory=dict)
    withheld: Sequence[str] = ()
    events: Sequence[EpisodeEvent] = ()
    dropped: Mapping[str, Balance] = field(default_factory=dict)
    has_calibration: bool = True
    rig: str = "bench"
    marks: Sequence[str] = ()


def simulate(run_dir: Path, *devices: str) -> Scene:
    scene = Scene({}, {})
    for device in devices:
        infos, frames = run(device, run_dir, seconds=SECONDS[device])
        scene.infos |= infos
        scene.frames |= frames
    return scene


def stamp(info: StreamInfo, frames: list[Frame]) -> Iterator[tuple[Frame, Stamped]]:
    tracker = StreamTracker(info)
    for frame in frames:
        yield frame, tracker.update(frame)


def write_episode(tmp_path: Path, scene: Scene) -> Path:
    """Write and seal the scene through the real writer, tracker and aligner."""
    spool = Spool(tmp_path / "spool")
    spool.create()
    episode_id = new_ulid(TIMELINE.utc_minus_host_ns)
    writer = EpisodeWriter(spool.open_folder(episode_id), episode_id, TIMELINE)
    aligner = Aligner("camera_left", 30_000_000)
    stamped: list[tuple[Frame, Stamped]] = []
    for name, info in scene.infos.items():
        if name in scene.withheld:
            continue
        writer.declare(info)
        if not info.reference_of:
            aligner.declare(info)
        stamped += stamp(info, scene.frames[name])
    spans: dict[str, tuple[int, int]] = {}
    for frame, times in sorted(stamped, key=lambda pair: int(pair[0].arrival_ns[-1])):
        writer.write(frame, times, instance=7)
        first, last = int(times.capture_ns[0]), int(times.capture_ns[-1])
        spans[frame.stream] = (spans.get(frame.stream, (first, last))[0], last)
        if not scene.infos[frame.stream].reference_of:
            aligner.add(frame.stream, frame.seq, frame.count, times.capture_ns, times.uncertainty.bound95_ns)
    for row in aligner.finish():
        writer.write_row(row)
    for event in scene.events:
        writer.write_event(event)
    writer.close()
    if scene.has_calibration:
        demo_calibration().save(writer.folder / "calibration.yaml")
    return seal(writer.folder, _manifest(writer, scene, spans))


def _manifest(writer: EpisodeWriter, scene: Scene, spans: Mapping[str, tuple[int, int]]) -> Manifest:
    offset = TIMELINE.utc_minus_host_ns
    written = writer.written()
    records = []
    for name, info in scene.infos.items():
        samples = written[name, 7].samples if (name, 7) in written else 0
        span = spans.get(name)
        records.append(
            StreamRecord(
                info,
                {7: scene.dropped.get(name, Balance(samples, samples))},
                rate_hz=info.rate_hz if span else None,
                first_utc_ns=span[0] + offset if span else None,
                last_utc_ns=span[1] + offset if span else None,
                consent=scene.consent.get(name, ALLOWED if info.is_personal else NOT_PERSONAL),
            )
        )
    verdict = Verdict("stereo_epipolar", "a~b", Status.SUSPECT, (), ("pitch moved",))
    return Manifest(
        writer.episode_id,
        "0.1",
        SessionFacts(rig=scene.rig),
        offset + 5 * SECOND_NS,
        offset + 6 * SECOND_NS,
        TIMELINE,
        tuple(records),
        reference="camera_left",
        calibration=CalibrationRecord("0123456789ab", (verdict,)),
        quality=QualityRecord(Status.OK),
        marks=tuple(Mark(5 * SECOND_NS, text) for text in scene.marks),
    )


def ledger_of(*grants: ConsentGrant, extra: Sequence[ConsentEvent] = ()) -> ConsentLedger:
    """Return a ledger in which what was granted still is."""
    valid = tuple(replace(each, valid_until=AFTER_ALL_NS) for each in grants)
    given_ = (ConsentEvent(each.id, EventKind.GIVEN, each.valid_from, "", each.digest) for each in valid)
    return ConsentLedger(valid, (*given_, *extra))


def report(folder: Path, run_dir: Path, ledger: ConsentLedger | None = None, **changes: Any) -> Page:
    found = document(SessionResult([folder], run_dir)) | changes
    path = write_report(
        folder, found, run_dir, rights=rights_of(read_manifest(folder), ledger=ledger or ledger_of(GRANT))
    )
    assert path == folder / "report.html"
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def scene(run_dir: Path) -> Scene:
    return simulate(run_dir, *SECONDS)


@pytest.fixture(scope="module")
def whole(scene: Scene, run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Page:
    return report(write_episode(tmp_path_factory.mktemp("whole"), scene), run_dir)


# -- what is shown


def test_every_picture_is_there(whole: Page) -> None:
    images = [decode(data) for data in whole.pictures()]
    thumbnails, bird, overlay, mounting = images[:3], images[3], images[4], images[5:]
    assert len(images) == 7
    assert {image.shape for image in thumbnails} == {(240, 320, 3)}
    assert bird.shape[0] == bird.shape[1]
    assert {image.shape for image in (overlay, *mounting)} == {(480, 640, 3)}
    assert "read from" in whole.text  # what the episode itself says of the mounting
    assert whole.of_class("timeline") == 1
    assert whole.of_class("lane") == len(("camera_left", "lidar", "lidar_imu", "lidar_points", "imu")) + 2
    assert whole.of_class("error") == 7  # every simulated stream has a truth
    assert whole.of_class("wave") == 6 + 6 + 6 + 1
    assert whole.of_class("count") > 0


def test_what_the_microphone_heard_can_be_listened_to(whole: Page) -> None:
    (source,) = [attrs["src"] or "" for tag, attrs in whole.tags if tag == "audio"]
    with wave.open(io.BytesIO(base64.b64decode(source.removeprefix("data:audio/wav;base64,")))) as sound:
        assert sound.getframerate() == 16_000
        assert sound.getnframes() == pytest.approx(SECONDS["microphone"] * 16_000, rel=0.05)
        assert np.frombuffer(sound.readframes(8000), "<i2").any()
    assert "media-src data:" in whole.html, "else the page's own policy forbids it"


def test_what_is_wider_than_the_page_scrolls_and_ids_stay_in_one_piece(whole: Page) -> None:
    inside = whole.html.split("<table>")[:-1] + whole.html.split('<svg class="timeline"')[:-1]
    assert inside
    assert all(before.rstrip().endswith('<div class="wide" tabindex="0">') for before in inside)
    assert page_text.prose("granted by 01M8R3PKWWFQ6QT3KXJ1WM0TP3") == (
        'granted by <code class="ulid">01M8R3PKWWFQ6QT3KXJ1WM0TP3</code>'
    )
    assert (page_text.unit("m/s^2"), page_text.unit("N*m"), page_text.unit("1")) == ("m/s²", "N·m", "")


def test_the_page_needs_nothing_beside_it(whole: Page) -> None:
    for tag, attrs in whole.tags:
        assert tag not in ("script", "link", "iframe", "object", "base")
        for name in ("src", "href", "action", "style", "data", "poster", "srcset"):
            assert (attrs.get(name) or "data:").startswith(("data:", "background:var("))
    assert "url(" not in whole.html
    assert "default-src 'none'" in whole.html


def test_tags_are_balanced(whole: Page) -> None:
    for tag in ("section", "div", "figure", "table", "tr", "td", "svg", "g", "span", "ul", "li", "main"):
        opened = len(re.findall(rf"<{tag}[ >]", whole.html))
        assert opened == whole.html.count(f"</{tag}>"), tag


def test_numbers_of_the_document_are_shown(whole: Page) -> None:
    for words in (
        "24 000",
        "pitch moved",
        "stereo_epipolar",
        "suspect",
        "camera_left",
        "not uploaded",
    ):
        assert words in whole.text.replace("\u202f", " "), words


def test_a_drop_is_drawn_with_its_place_reason_and_count(scene: Scene, run_dir: Path, tmp_path: Path) -> None:
    imu = scene.frames["imu"]
    gone = imu[3]
    fields = {
        "seq": str(gone.seq),
        "count": str(gone.count),
        "place": Place.KERNEL.value,
        "reason": "no room",
    }
    loss = EpisodeEvent(int(gone.arrival_ns[-1]), "loss", "imu", "lost", fields)
    produced = sum(frame.count for frame in imu)
    balance = Balance(produced, produced - gone.count, {"kernel": {"no room": gone.count}})
    cut = replace(
        scene,
        frames={**scene.frames, "imu": [frame for frame in imu if frame is not gone]},
        events=(loss,),
        dropped={"imu": balance},
    )
    page = report(write_episode(tmp_path, cut), run_dir)
    assert page.of_class("lost") == 1
    assert f"{gone.count} samples dropped at" in page.text
    assert "kernel: no room" in page.text
    assert f"kernel: {gone.count} no room" in page.text


def test_pauses_marks_and_verdicts_stand_on_the_timeline(scene: Scene, run_dir: Path, tmp_path: Path) -> None:
    at = 5 * SECOND_NS
    events = (
        EpisodeEvent(at + SECOND_NS // 10, "mark", "", "grasp"),
        EpisodeEvent(at + SECOND_NS // 5, "pause", "", "paused by button"),
        EpisodeEvent(at + SECOND_NS // 4, "resume", "", "resumed by button"),
        EpisodeEvent(at + SECOND_NS // 3, "verdict", "a~b", "stereo_epipolar: failed. moved"),
        EpisodeEvent(at + SECOND_NS // 3, "clock", "imu", "reset: began again"),
    )
    page = report(write_episode(tmp_path, replace(scene, events=events)), run_dir)
    for kind in ("mark", "pause", "failed", "clock"):
        assert page.of_class(kind) == 1, kind
    assert "grasp" in page.text


# -- consent


def test_a_denied_stream_shows_its_reason_in_the_place_of_a_picture(
    scene: Scene, run_dir: Path, tmp_path: Path
) -> None:
    names = ("camera_left", "microphone")
    denied = replace(scene, consent=dict.fromkeys(names, DENIED), withheld=names)
    page = report(write_episode(tmp_path, denied), run_dir)
    assert len(page.pictures()) == 1  # the LiDAR from above
    assert page.text.count(DENIED.reason) >= len(names)


def test_a_denied_stream_is_not_shown_even_if_its_frames_were_stored(
    scene: Scene, run_dir: Path, tmp_path: Path
) -> None:
    denied = replace(scene, consent=dict.fromkeys(("camera_left", "microphone"), DENIED))
    page = report(write_episode(tmp_path, denied), run_dir)
    assert len(page.pictures()) == 1
    assert page.of_class("wave") == 6 + 6 + 6
    assert "<audio" not in page.html


def test_an_episode_of_denied_streams_only_gives_a_page(scene: Scene, run_dir: Path, tmp_path: Path) -> None:
    names = tuple(scene.infos)
    personal = {name: replace(info, is_personal=True) for name, info in scene.infos.items()}
    denied = replace(scene, infos=personal, consent=dict.fromkeys(names, DENIED), withheld=names)
    page = report(write_episode(tmp_path, denied), run_dir)
    assert page.pictures() == []
    assert page.of_class("denied") >= len(names)


@pytest.mark.parametrize(
    ("purposes", "events", "reason"),
    [
        ((Purpose.RECORD, Purpose.UPLOAD), (), "does not include the purpose live"),
        ((Purpose.RECORD, Purpose.LIVE), (ConsentEvent(GRANT.id, EventKind.REVOKED, 0),), "was revoked"),
    ],
)
def test_what_may_be_recorded_but_not_shown_is_in_no_picture_curve_or_overlay(
    scene: Scene,
    run_dir: Path,
    tmp_path: Path,
    purposes: tuple[Purpose, ...],
    events: tuple[ConsentEvent, ...],
    reason: str,
) -> None:
    """All was stored under its grant; what it is worth now decides what is shown."""
    ledger = ledger_of(replace(GRANT, purposes=purposes), extra=events)
    page = report(write_episode(tmp_path, scene), run_dir, ledger)
    assert len(page.pictures()) == 1
    assert page.of_class("wave") == 6 + 6 + 6
    assert page.text.count(reason) >= 2


def test_without_the_log_that_granted_it_nothing_personal_is_shown(
    scene: Scene, run_dir: Path, tmp_path: Path
) -> None:
    folder = write_episode(tmp_path, scene)
    path = write_report(folder, document(SessionResult([folder], run_dir)), run_dir)
    page = Page(path.read_text(encoding="utf-8"))
    assert len(page.pictures()) == 1
    assert "the consent log here does not know" in page.text


# -- what cannot be shown


def test_hostile_texts_stay_text(scene: Scene, run_dir: Path, tmp_path: Path) -> None:
    attack = "\"><script>alert(1)</script><img src=x onerror=alert(1)>'</title></style>"
    events = (
        EpisodeEvent(5 * SECOND_NS, "mark", "", attack),
        EpisodeEvent(5 * SECOND_NS, "clock", "imu", attack),
        EpisodeEvent(5 * SECOND_NS, attack, attack, attack),
        EpisodeEvent(5 * SECOND_NS, "verdict", attack, f"x: {attack}. y"),
    )
    infos = dict(scene.infos)
    column = replace(infos["force"].columns[0], name=attack, unit=attack)
    infos["force"] = replace(infos["force"], columns=(column, *infos["force"].columns[1:]))
    infos["lidar_imu"] = replace(infos["lidar_imu"], frame_id=attack)
    hostile = replace(
        scene,
        infos=infos,
        events=events,
        rig=attack,
        marks=(attack,),
        consent={"camera_left": ConsentRecord("denied", attack), "microphone": ConsentRecord(attack, attack)},
        dropped={"imu": Balance(5, 0, {attack: {attack: 5}})},
    )
    changes: dict[str, Any] = {"problems": [attack], "warnings": [attack], "limitations": [attack]}
    changes["verification"] = {"status": attack, "reasons": [attack]}
    page = report(write_episode(tmp_path, hostile), run_dir, **changes)
    assert not [tag for tag, _ in page.tags if tag == "script"]
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    assert (
        len([tag for tag, _ in page.tags if tag in ("title", "style")]) == 2 + page.html.count("<title>") - 1
    )
    assert page.pictures()
    assert "alert(1)" in page.text


def test_without_calibration_the_overlay_says_why(scene: Scene, run_dir: Path, tmp_path: Path) -> None:
    page = report(write_episode(tmp_path, replace(scene, has_calibration=False)), run_dir)
    assert len(page.pictures()) == 4
    assert "the episode has no calibration" in page.text


def test_an_unknown_frame_name_is_a_sentence(scene: Scene, run_dir: Path, tmp_path: Path) -> None:
    infos = {**scene.infos, "lidar": replace(scene.infos["lidar"], frame_id="roof")}
    page = report(write_episode(tmp_path, replace(scene, infos=infos)), run_dir)
    assert len(page.pictures()) == 4
    assert "roof" in page.text


def test_a_damaged_image_is_a_sentence_and_the_others_are_shown(
    scene: Scene, run_dir: Path, tmp_path: Path
) -> None:
    frames = scene.frames["camera_left"]
    torn = [replace(frames[0], payload=b"\xff\xd8 no image"), *frames[1:]]
    page = report(
        write_episode(tmp_path, replace(scene, frames={**scene.frames, "camera_left": torn})), run_dir
    )
    assert len(page.pictures()) == 6
    assert "this image of camera_left cannot be shown" in page.text


def test_an_episode_without_frames_gives_a_page(scene: Scene, run_dir: Path, tmp_path: Path) -> None:
    empty = replace(scene, frames={name: [] for name in scene.infos})
    page = report(write_episode(tmp_path, empty), run_dir)
    assert page.pictures() == []
    assert "nothing recorded" in page.text
    assert "no image was recorded" in page.text


def test_an_episode_without_streams_gives_a_page(run_dir: Path, tmp_path: Path) -> None:
    page = report(write_episode(tmp_path, Scene({}, {})), run_dir)
    assert page.pictures() == []


def test_flipped_bits_in_a_file_are_named_and_the_rest_is_shown(
    scene: Scene, run_dir: Path, tmp_path: Path
) -> None:
    folder = write_episode(tmp_path, scene)
    found = document(SessionResult([folder], run_dir))
    path = folder / "camera_left.mcap"
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle] ^= 0xFF
    path.write_bytes(data)
    page = Page(write_report(folder, found, run_dir).read_text())
    assert "reading the frames stopped" in page.text
    assert "camera_left.mcap" in page.text


@pytest.mark.parametrize("keep", [0.0, 0.5])
def test_a_torn_file_still_gives_a_page_with_the_numbers(
    scene: Scene, run_dir: Path, tmp_path: Path, keep: float
) -> None:
    folder = write_episode(tmp_path, scene)
    found = document(SessionResult([folder], run_dir))
    path = folder / "data.mcap"
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    page = Page(write_report(folder, found, run_dir).read_text())
    assert "the episode cannot be read" in page.text
    assert "24 000" in page.text.replace("\u202f", " ")


def test_a_missing_manifest_still_gives_a_page_with_the_numbers(
    scene: Scene, run_dir: Path, tmp_path: Path
) -> None:
    folder = write_episode(tmp_path, scene)
    found = document(SessionResult([folder], run_dir))
    (folder / "manifest.json").unlink()
    page = Page(write_report(folder, found, run_dir).read_text())
    assert "the episode cannot be read" in page.text
    assert "camera_left" in page.text


def test_each_kind_of_stream_has_a_colour_of_its_own_on_the_timeline() -> None:
    assert set(LANE_COLOURS) == set(Modality)
    assert len(set(LANE_COLOURS.values())) == len(Modality)
    assert all(f"rect.{modality.value}{{fill" in STYLE for modality in Modality)


# -- single pictures


def test_what_lies_ahead_is_up_and_what_lies_left_is_left() -> None:
    ring = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    frame = np.stack([9 * np.cos(ring), 9 * np.sin(ring), np.zeros(400), np.ones(400)], axis=1)
    ahead = np.tile([5.0, 0.8, 2.0, 1.0], (60, 1))  # high: the red end of the scale
    left = np.tile([0.8, 5.0, -2.0, 1.0], (60, 1))  # low: the blue end
    picture = bird_view(np.concatenate([frame, ahead, left]).astype(np.float32))
    image = decode(base64.b64decode(picture.uri.partition(",")[2]))
    blue, green, red = np.moveaxis(image.astype(int), 2, 0)
    red_rows, red_columns = np.nonzero(red - np.maximum(green, blue) > 50)
    blue_rows, blue_columns = np.nonzero(blue - np.maximum(green, red) > 50)
    middle = image.shape[0] / 2
    assert red_rows.mean() < middle - 100
    assert abs(red_columns.mean() - middle) < 100
    assert blue_columns.mean() < middle - 100
    assert abs(blue_rows.mean() - middle) < 100


def test_a_sweep_without_returns_is_an_error() -> None:
    with pytest.raises(PayloadError, match="no returns"):
        bird_view(np.zeros((5, 4), np.float32))


@pytest.mark.parametrize("encoding", ["bgr8", "rgb8", "mono8", "mono16", "png"])
def test_every_image_encoding_decodes_to_the_same_scene(encoding: str) -> None:
    bgr = np.zeros((40, 60, 3), np.uint8)
    bgr[:, 30:] = (10, 60, 240)
    grey = cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY)
    payloads = {
        "bgr8": bgr.tobytes(),
        "rgb8": bgr[:, :, ::-1].tobytes(),
        "mono8": grey.tobytes(),
        "mono16": (grey.astype("<u2") * 200 + 1).tobytes(),
        "png": cv2.imencode(".png", bgr)[1].tobytes(),
    }
    shape = (40, 60) if encoding.startswith("mono") else (40, 60, 3)
    info = StreamInfo("cam", Modality.CAMERA, encoding, 30.0, "cam", shape=shape)
    image = picture(info, payloads[encoding])
    assert image.dtype == np.uint8
    assert image.shape[:2] == (40, 60)
    right, left = image[:, 30:].astype(int), image[:, :30].astype(int)
    assert right.max() > left.max() + 50
    if image.ndim == 3:
        np.testing.assert_array_equal(image, bgr)


@pytest.mark.parametrize("kind", ["Image", "CompressedImage"])
def test_ros_images_are_decoded(kind: str) -> None:
    rosbags = pytest.importorskip("rosbags.typesys", reason="rosbags is not installed")
    store = rosbags.get_typestore(rosbags.Stores.ROS1_NOETIC)
    pixels = np.arange(48 * 64 * 3, dtype=np.uint32).reshape(48, 64, 3).astype(np.uint8)
    types = store.types
    header = types["std_msgs/msg/Header"](
        seq=0, stamp=types["builtin_interfaces/msg/Time"](1, 2), frame_id="cam"
    )
    if kind == "Image":
        message = types["sensor_msgs/msg/Image"](header, 48, 64, "rgb8", 0, 192, pixels.reshape(-1))
    else:
        data = cv2.imencode(".png", pixels[:, :, ::-1])[1].reshape(-1)
        message = types["sensor_msgs/msg/CompressedImage"](header, "png", data)
    payload = bytes(store.serialize_ros1(message, message.__msgtype__))
    schema = MessageSchema("ros1", f"sensor_msgs/{kind}", "ros1msg", b"")
    info = StreamInfo("cam", Modality.CAMERA, "message", 30.0, "cam", schema=schema)
    np.testing.assert_array_equal(picture(info, payload), pixels[:, :, ::-1])
    assert thumbnail(info, payload).uri.startswith("data:image/jpeg;base64,")


# -- memory does not grow with the recording


@given(st.lists(st.integers(0, 700), max_size=12), st.integers(1, 50))
def test_thinning_keeps_every_nth_row_and_no_more_than_its_limit(sizes: list[int], limit: int) -> None:
    thinned = Thinned(1, limit)
    rows = np.arange(sum(sizes), dtype=np.int64)[:, None]
    at = 0
    for size in sizes:
        thinned.add(rows[at : at + size])
        at += size
    kept = thinned.rows()[:, 0]
    assert len(kept) <= limit
    if len(rows):
        stride = kept[1] if len(kept) > 1 else len(rows)
        np.testing.assert_array_equal(kept, rows[::stride, 0] if len(kept) > 1 else [0])


def test_the_envelope_holds_the_extremes_of_each_bin() -> None:
    rng = np.random.default_rng(4)
    times = np.sort(rng.integers(0, 10 * SECOND_NS, 20_000))
    values = rng.normal(size=(20_000, 2))
    envelope = Envelope(2, (0, 10 * SECOND_NS))
    for part in np.array_split(np.arange(20_000), 37):
        envelope.add(times[part], values[part])
    bins = times * TIME_BINS // (10 * SECOND_NS)
    for index in range(0, TIME_BINS, 53):
        inside = values[bins == index]
        np.testing.assert_array_equal(envelope.low[index], inside.min(axis=0))
        np.testing.assert_array_equal(envelope.high[index], inside.max(axis=0))


def test_a_long_stream_is_thinned_while_reading(tmp_path: Path) -> None:
    info = StreamInfo("tick", Modality.OTHER, "mono8", 1000.0, "tick", shape=(1, 1))
    frames = [Frame("tick", k, 1, None, stamps(5 * SECOND_NS + k * 1_000_000), b"x") for k in range(5000)]
    scene = Scene({"tick": frames}, {"tick": info}, has_calibration=False)
    folder = write_episode(tmp_path, scene)
    with Episode(folder) as episode:
        assert episode.manifest is not None
        found = survey(episode, episode.manifest).streams["tick"]
    assert CLOCK_POINTS // 2 <= len(found.clock.rows()) <= CLOCK_POINTS
    assert len(found.spans) == 1
    assert found.losses == []


def test_many_losses_are_joined_until_they_fit_and_none_is_forgotten(tmp_path: Path) -> None:
    info = StreamInfo("tick", Modality.OTHER, "mono8", 1000.0, "tick", shape=(1, 1))
    frames = [
        Frame("tick", k, 1, None, stamps(5 * SECOND_NS + k * 1_000_000), b"x") for k in range(0, 9000, 3)
    ]
    folder = write_episode(tmp_path, Scene({"tick": frames}, {"tick": info}, has_calibration=False))
    with Episode(folder) as episode:
        assert episode.manifest is not None
        losses = survey(episode, episode.manifest).streams["tick"].losses
    assert 1 <= len(losses) <= MAX_LOSSES
    assert sum(loss.count for loss in losses) == 2 * (len(frames) - 1)


def test_uncertainty_without_bound_does_not_overflow(tmp_path: Path, run_dir: Path) -> None:
    info = StreamInfo("tick", Modality.OTHER, "mono8", 10.0, "tick", shape=(1, 1))
    spool = Spool(tmp_path / "spool")
    spool.create()
    episode_id = new_ulid(TIMELINE.utc_minus_host_ns)
    writer = EpisodeWriter(spool.open_folder(episode_id), episode_id, TIMELINE)
    writer.declare(info)
    for k in range(3):
        at = stamps(5 * SECOND_NS + k * SECOND_NS // 10)
        stamped = Stamped(at - 1000, Uncertainty(np.inf, 0.0, 0.0), 0)
        writer.write(Frame("tick", k, 1, None, at, b"x"), stamped, 7)
    writer.close()
    scene = Scene({"tick": []}, {"tick": info})
    folder = seal(writer.folder, _manifest(writer, scene, {"tick": (5 * SECOND_NS, 6 * SECOND_NS)}))
    assert report(folder, run_dir).of_class("boundline") == 1
