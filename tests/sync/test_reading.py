"""``sensorium.open``: everything of an episode by name and by time, in physical units, under its consent."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from delivered_episode import DEVICES, PURPOSES, Delivered, deliver
from episode_samples import TIMELINE
from simulated_rig import START_NS

import sensorium
from sensorium.drivers.frame import Column, Encoding, Frame, Modality, StreamInfo, stamps
from sensorium.drivers.payloads.choice import CodecChoice
from sensorium.drivers.stages import CodecStage, Pipeline
from sensorium.errors import CalibrationError, ConsentError, EpisodeError, PayloadError, UsageError
from sensorium.simulators.demo_rig import rig_calibration
from sensorium.simulators.rig import MOUNTS
from sensorium.sync.clocks.model import Stamped, Uncertainty
from sensorium.sync.consent.grants import Purpose
from sensorium.sync.consent.store import ConsentStore
from sensorium.sync.decoding import StreamDecoder
from sensorium.sync.episode.chain import seal
from sensorium.sync.episode.facts import SessionFacts
from sensorium.sync.episode.manifest import Balance, Manifest, StreamRecord
from sensorium.sync.episode.reader import Episode as EpisodeFiles
from sensorium.sync.episode.spool import Spool
from sensorium.sync.episode.ulid import new_ulid
from sensorium.sync.episode.writer import EpisodeWriter, WriterPolicy
from sensorium.sync.erasure import erase_forgotten
from sensorium.sync.reading.episode import Episode
from sensorium.timebase import SECOND_NS, HostClock

TRAINING = "ai:train"
UTC_NS = TIMELINE.utc_minus_host_ns
IMU = StreamInfo(
    "imu",
    Modality.IMU,
    Encoding.COLUMNS,
    100.0,
    "imu",
    columns=(Column("wx", "rad/s", "<i2", 0.5), Column("t_ns", "ns", "<i8")),
    is_sampled=True,
    frame_rate_hz=10.0,
)
MIC = StreamInfo("mic", Modality.AUDIO, Encoding.PCM_S16LE, 1000.0, "mic", shape=(2,), frame_rate_hz=10.0)


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Delivered:
    return deliver(tmp_path_factory.mktemp("read"), seconds=3.0)


@pytest.fixture
def episode(there: Delivered) -> Iterator[Episode]:
    with sensorium.open(there.folder, purpose=TRAINING) as opened:
        yield opened


def sealed(
    folder: Path,
    infos: Sequence[StreamInfo],
    frames: Sequence[tuple[Frame, Stamped, int]],
    chunk_bytes: int = 4096,
) -> Path:
    """Return a sealed episode of these frames, in the order given."""
    spool = Spool(folder / "spool")
    spool.create()
    episode_id = new_ulid(UTC_NS)
    policy = WriterPolicy(chunk_bytes=chunk_bytes, sync_s=None, reserve_bytes=0)
    writer = EpisodeWriter(spool.open_folder(episode_id), episode_id, TIMELINE, policy)
    for info in infos:
        writer.declare(info)
    for frame, stamped, instance in frames:
        writer.write(frame, stamped, instance)
        writer.step(int(frame.arrival_ns[-1]))
    writer.close()
    records = []
    for info in infos:
        counts = {i: w.samples for (name, i), w in writer.written().items() if name == info.name}
        records.append(StreamRecord(info, {i: Balance(n, n) for i, n in counts.items()}))
    facts, end_ns = SessionFacts(rig="bench"), UTC_NS + 100 * SECOND_NS
    return seal(writer.folder, Manifest(episode_id, "0", facts, UTC_NS, end_ns, TIMELINE, tuple(records)))


def block(
    info: StreamInfo, seq: int, count: int, capture_ns: int, late_ns: int = 1000, known: float = 7.0
) -> tuple[Frame, Stamped, int]:
    """Return a frame of ``count`` samples, the first captured at ``capture_ns``, and what is stated of it."""
    period_ns = round(SECOND_NS / info.rate_hz)
    times_ns = capture_ns + period_ns * np.arange(count)
    numbers = np.arange(seq, seq + count)
    if info.columns:
        payload = numbers.astype("<i2").tobytes() + (times_ns + UTC_NS).astype("<i8").tobytes()
    else:
        payload = np.stack([numbers, -numbers], axis=1).astype("<i2").tobytes()
    arrival_ns = int(times_ns[-1]) + late_ns
    stamped = Stamped(times_ns, Uncertainty(known, 1.0, 0.5), 0)
    return Frame(info.name, seq, count, times_ns, stamps(arrival_ns), payload), stamped, 1


# -- what is there


def test_importing_it_loads_nothing_heavy_and_opening_is_found() -> None:
    script = (
        "import sys, sensorium; heavy = {'numpy', 'cv2', 'zmq', 'pydantic', 'yaml'} & set(sys.modules);"
        "print(sorted(heavy), dir(sensorium), callable(sensorium.open), hasattr(sensorium, 'nothing'))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] ['__version__', 'open'] True False"


@pytest.mark.parametrize("form", ["folder", "id", "copy", "url"])
def test_an_episode_reads_the_same_wherever_it_lies(there: Delivered, form: str) -> None:
    with sensorium.open(there.forms[form], purpose=TRAINING, spool=there.spool) as episode:
        assert repr(episode) == f"<Episode {there.folder.name}: 3.0 s, 6 streams>"
        assert {name: stream.holds for name, stream in episode.streams.items()} == {
            "camera_left": "images",
            "lidar": "points",
            "lidar_imu": "columns",
            "imu": "columns",
            "microphone": "audio",
            "force": "columns",
        }
        assert sum(frame.count for frame in episode.frames("imu")) == episode.streams["imu"].count == 600
        assert sum(1 for _ in episode.images("camera_left")) == 90
        assert {frame.stream for frame in episode} == set(episode.streams)


def test_a_stream_says_what_it_is_before_it_is_read(episode: Episode) -> None:
    imu = episode.streams["imu"]
    assert (imu.modality, imu.rate_hz, imu.frame_id, imu.is_personal) == ("imu", 200.0, "imu", False)
    assert imu.columns["gyro_x"] == "rad/s"
    assert repr(imu) == "<Stream imu: imu columns at 200 Hz, 600 samples>"
    assert episode.streams["camera_left"].is_personal
    assert all(len(repr(each)) < 120 for each in (*episode.streams.values(), next(iter(episode))))


# -- numbers


def test_columns_are_in_physical_units_with_the_time_of_each_sample(
    there: Delivered, episode: Episode
) -> None:
    found = episode.columns("imu")
    truth = np.fromfile(there.folder.parents[2] / "truth/imu.i64", "<i8").reshape(-1, 2)
    assert np.array_equal(found.times_ns - UTC_NS, truth[:600, 1])
    assert np.array_equal(found.seq, np.arange(600))
    assert found.array().shape == (600, 6)
    # On a stationary or walking rig the accelerometer feels gravity, whatever else it feels.
    assert np.linalg.norm(found.array()[:, :3], axis=1).mean() == pytest.approx(9.81, rel=0.1)
    with EpisodeFiles(there.folder) as files:
        decoder = StreamDecoder(files.streams["imu"])
        expected = [decoder.samples(each.frame.payload, each.frame.count) for each in files.frames(["imu"])]
    assert np.array_equal(found.array(), np.concatenate([each for each in expected if each is not None]))


def test_whole_numbers_stay_whole_and_scaled_ones_are_scaled(tmp_path: Path) -> None:
    folder = sealed(tmp_path, [IMU], [block(IMU, 10 * k, 10, k * SECOND_NS // 10) for k in range(10)])
    with sensorium.open(folder) as episode:
        found = episode.columns("imu")
    assert found["t_ns"].dtype == np.int64
    assert np.array_equal(found["t_ns"], found.times_ns)
    assert np.array_equal(found["wx"], 0.5 * np.arange(100))
    assert (list(found), dict(found.units)) == (["wx", "t_ns"], {"wx": "rad/s", "t_ns": "ns"})
    assert set(found.uncertainty_ns) == {8.5}
    assert set(found.asymmetry_ns) == {0.5}


@pytest.mark.parametrize("seed", range(6))
def test_a_span_holds_exactly_the_samples_that_were_captured_in_it(episode: Episode, seed: int) -> None:
    rng = np.random.default_rng(seed)
    start_ns, end_ns = sorted(rng.integers(episode.start_ns, episode.end_ns, 2).tolist())
    whole, part = episode.columns("imu"), episode.columns("imu", start_ns=start_ns, end_ns=end_ns)
    inside = (whole.times_ns >= start_ns) & (whole.times_ns < end_ns)
    assert np.array_equal(part.times_ns, whole.times_ns[inside])
    assert np.array_equal(part.array(), whole.array()[inside])
    sound, piece = episode.audio("microphone"), episode.audio("microphone", start_ns=start_ns, end_ns=end_ns)
    inside = (sound.times_ns >= start_ns) & (sound.times_ns < end_ns)
    assert np.array_equal(piece.samples, sound.samples[inside])
    images = [each for each in episode.images("camera_left") if start_ns <= each.time_ns < end_ns]
    found = list(episode.images("camera_left", start_ns=start_ns, end_ns=end_ns))
    assert [each.frame.seq for each in found] == [each.frame.seq for each in images]


def test_what_arrived_long_after_its_capture_is_in_its_span(tmp_path: Path) -> None:
    """A link held samples back for 20 s, far beyond any declared latency, while another stream went on."""
    held = [block(IMU, 10 * k, 10, k * SECOND_NS // 10, 20 * SECOND_NS) for k in range(50)]
    sound = [block(MIC, 100 * k, 100, k * SECOND_NS // 10) for k in range(250)]
    frames = sorted([*held, *sound], key=lambda each: int(each[0].arrival_ns[-1]))
    with sensorium.open(sealed(tmp_path, [IMU, MIC], frames)) as episode:
        start_ns, end_ns = UTC_NS + 2 * SECOND_NS, UTC_NS + 3 * SECOND_NS
        found = episode.columns("imu", start_ns=start_ns, end_ns=end_ns)
        assert np.array_equal(found.seq, np.arange(200, 300))
        assert len(episode.audio("mic", start_ns=start_ns, end_ns=end_ns).samples) == 1000
        rows = list(episode.aligned(rate_hz=10, start_ns=start_ns, end_ns=end_ns))
    assert len(rows) == 10
    assert all(row["mic"].is_present for row in rows)


def test_sound_is_in_full_scales_and_says_where_some_is_missing(tmp_path: Path) -> None:
    frames = [block(MIC, 100 * k, 100, k * SECOND_NS // 10) for k in range(10) if k != 4]
    with sensorium.open(sealed(tmp_path, [MIC], frames)) as episode:
        found = episode.audio("mic")
    assert found.gaps == ((400, 100),)
    assert found.samples.dtype == np.float32
    assert (found.samples.shape, found.rate_hz) == ((900, 2), 1000.0)
    assert np.allclose(found.samples[:, 0] * 32768, found.seq)
    assert np.array_equal(found.samples[:, 0], -found.samples[:, 1])


# -- pictures


def test_images_are_red_first_and_clouds_in_metres(there: Delivered, episode: Episode) -> None:
    image = next(episode.images("camera_left"))
    with EpisodeFiles(there.folder) as files:
        stored = next(iter(files.frames(["camera_left"])))
        pixels = StreamDecoder(files.streams["camera_left"]).image(stored.frame.payload)
    assert image.pixels.shape == (120, 160, 3)
    assert np.array_equal(image.pixels[..., ::-1], pixels)
    cloud = next(episode.points("lidar"))
    assert cloud.xyz_m.shape == (len(cloud), 3)
    assert 0.1 < np.median(np.linalg.norm(cloud.xyz_m, axis=1)) < 50
    assert cloud.ring is not None
    assert cloud.times_ns[0] >= cloud.time_ns
    assert np.ptp(cloud.times_ns) < 0.11 * SECOND_NS  # a revolution at 10 Hz


def test_a_damaged_image_says_so_where_it_is_looked_at_and_the_others_are_read(tmp_path: Path) -> None:
    info = StreamInfo("shot", Modality.OTHER, Encoding.MONO8, 10.0, "cam", shape=(2, 2))
    jpeg = replace(info, encoding=Encoding.JPEG, shape=())
    good = StreamDecoder(info).image(bytes(4))
    assert good.shape == (2, 2)
    frames = [
        (
            Frame("shot", k, 1, None, stamps(k * SECOND_NS), b"no image"),
            Stamped(stamps(k), Uncertainty(0, 0, 0), 0),
            1,
        )
        for k in range(1, 3)
    ]
    with sensorium.open(sealed(tmp_path, [jpeg], frames)) as episode:
        found = list(episode.images("shot"))
    assert [image.frame.seq for image in found] == [1, 2]
    assert "does not decode" in found[0].problem or "shot" in found[0].problem
    with pytest.raises(PayloadError, match="shot"):
        _ = found[0].pixels


def test_a_video_is_decoded_from_any_instant_on_also_in_rows(tmp_path: Path) -> None:
    pytest.importorskip("av")
    cam = StreamInfo("cam", Modality.OTHER, Encoding.MONO8, 10.0, "cam", shape=(64, 64))
    pipeline = Pipeline([CodecStage(CodecChoice("h264_lossless"), {}, must_fit=True)], [cam])
    pictures, frames = [], []
    for k in range(40):
        pictures.append(np.random.default_rng(k).integers(0, 256, (64, 64), np.uint8))
        (frame,) = pipeline.apply(
            [Frame("cam", k, 1, None, stamps(k * SECOND_NS // 10 + 9), pictures[k].tobytes())]
        )
        assert isinstance(frame, Frame)
        if k != 33:  # what builds upon it cannot be shown
            frames.append((frame, Stamped(stamps(k * SECOND_NS // 10), Uncertainty(1, 1, 1), 0), 1))
    with sensorium.open(sealed(tmp_path, list(pipeline.infos), frames)) as episode:
        for first in (0, 7, 15, 27):
            start_ns, end_ns = UTC_NS + first * SECOND_NS // 10, UTC_NS + (first + 3) * SECOND_NS // 10
            found = list(episode.images("cam", start_ns=start_ns, end_ns=end_ns))
            assert [image.frame.seq for image in found] == [first, first + 1, first + 2]
            assert all(np.array_equal(image.pixels, pictures[image.frame.seq]) for image in found)
            rows = list(episode.aligned(rate_hz=5, start_ns=start_ns, end_ns=end_ns))
            for row, seq in zip(rows, (first, first + 2), strict=True):
                assert np.array_equal(row["cam"].values, pictures[seq])
        rows = list(episode.aligned(rate_hz=10, start_ns=UTC_NS + 3 * SECOND_NS))
    shown = [row.index + 30 for row in rows if row["cam"].is_present]
    assert {30, 31, 32} <= set(shown)
    assert not {34, 35, 36} & set(shown)
    assert "does not decode" in rows[5]["cam"].reason


# -- rows


@pytest.mark.parametrize("how", [{"rate_hz": 10.0}, {"rate_hz": 37.0}, {"reference": "lidar"}])
def test_the_rows_of_a_span_are_those_of_the_whole(episode: Episode, how: dict[str, object]) -> None:
    start_ns = episode.start_ns + 1_234_567_890
    end_ns = start_ns + SECOND_NS
    whole = [row for row in episode.aligned(start_ns=start_ns, **how) if row.time_ns < end_ns]  # type: ignore[arg-type]
    part = list(episode.aligned(start_ns=start_ns, end_ns=end_ns, **how))  # type: ignore[arg-type]
    assert [row.time_ns for row in part] == [row.time_ns for row in whole]
    assert sum(row.is_complete for row in part) > 8
    for row, other in zip(part, whole, strict=True):
        assert list(row) == list(other) == list(episode.streams)
        for name in row:
            assert row[name].reason == other[name].reason
            assert row[name].time_ns == other[name].time_ns
            assert np.array_equal(row[name].values, other[name].values)


def test_a_row_tells_time_and_uncertainty_of_all_it_shows(episode: Episode) -> None:
    row = list(episode.aligned(rate_hz=10, streams=["camera_left", "lidar", "imu", "microphone"]))[10]
    assert set(row.streams) == {"camera_left", "lidar", "imu", "microphone"}
    image, cloud, imu, sound = row["camera_left"], row["lidar"], row["imu"], row["microphone"]
    assert image.time_ns is not None
    assert image.time_ns - row.time_ns == image.residual_ns
    assert image.values.shape == (120, 160, 3)
    assert cloud.values.shape[1] == 4
    assert (imu.time_ns, imu.values.shape) == (row.time_ns, (6,))
    assert imu.gap_ns <= 5_100_000
    assert imu.value_bound is not None
    assert sound.values.dtype == np.float32
    assert abs(len(sound.values) - 4800) <= 2
    assert all(value.uncertainty_ns >= 0 and value.frame is not None for value in row.streams.values())


def test_one_stream_may_be_named_by_itself(episode: Episode) -> None:
    rows = list(episode.aligned(rate_hz=10, streams="imu"))
    assert list(rows[0]) == ["imu"]
    assert np.array_equal(
        np.stack([row["imu"] for row in rows]), np.stack([row["imu"].values for row in rows])
    )
    assert np.asarray(rows[0]["imu"], np.float32).dtype == np.float32
    assert next(episode.frames("imu")).stream == "imu"
    assert {frame.stream for frame in episode.frames(["imu", "force"])} == {"imu", "force"}


def test_a_row_says_why_a_stream_shows_nothing(tmp_path: Path) -> None:
    frames = [block(IMU, 10 * k, 10, k * SECOND_NS // 10) for k in (*range(10), *range(40, 50))]
    with sensorium.open(sealed(tmp_path, [IMU], frames)) as episode:
        silent = next(episode.aligned(rate_hz=10, start_ns=UTC_NS + 2 * SECOND_NS))
        early = next(episode.aligned(rate_hz=10, start_ns=UTC_NS - SECOND_NS))
    assert silent["imu"].reason == "gap too wide to interpolate"
    assert early["imu"].reason == "stream had not started"
    assert not silent.is_complete
    with pytest.raises(PayloadError, match="imu has no value here: gap too wide"):
        _ = silent["imu"].values


# -- cost


def bytes_read() -> int:
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["rchar"])


def open_files(folder: Path) -> list[str]:
    """Return which files of a folder this process holds open."""
    held = [link.readlink() for link in Path("/proc/self/fd").iterdir() if link.exists()]
    return sorted(path.name for path in held if path.parent == folder)


def test_opening_reads_the_manifest_alone_and_a_span_its_chunks(tmp_path: Path) -> None:
    fast = replace(MIC, rate_hz=100_000.0)
    frames = [block(fast, 10_000 * k, 10_000, k * SECOND_NS // 10) for k in range(300)]
    folder = sealed(tmp_path, [fast], frames, chunk_bytes=100_000)
    size = (folder / "data.mcap").stat().st_size
    sensorium.open(folder).close()  # whatever Python itself has to read is read now
    before = bytes_read()
    with sensorium.open(folder) as episode:
        opened = bytes_read()
        episode.audio("mic", start_ns=UTC_NS + 10 * SECOND_NS, end_ns=UTC_NS + 11 * SECOND_NS)
        read = bytes_read()
        assert open_files(folder) == ["data.mcap"]
    assert opened - before < 6 * (folder / "manifest.json").stat().st_size + 20_000
    assert read - opened < size * (1 + 3) / 30  # a second of thirty, the chunks at its ends, the index


def test_files_of_streams_that_may_not_be_read_are_not_opened(there: Delivered) -> None:
    with sensorium.open(there.folder) as episode:
        next(iter(episode))
        assert open_files(there.folder) == ["data.mcap"]


# -- consent


def test_without_a_purpose_what_is_personal_is_listed_and_not_read(there: Delivered) -> None:
    for form in (there.folder, there.url):
        with sensorium.open(form) as episode:
            withheld = {name for name, stream in episode.streams.items() if not stream.is_readable}
            assert withheld == {"camera_left", "microphone"}
            assert "purpose='ai:train'" in episode.consent["camera_left"]
            assert {frame.stream for frame in episode} == {"imu", "force", "lidar", "lidar_imu"}
            assert set(next(episode.aligned(rate_hz=10))) == {"imu", "force", "lidar", "lidar_imu"}
            with pytest.raises(ConsentError, match=r"camera_left .* is withheld: it is personal"):
                episode.images("camera_left")
            with pytest.raises(ConsentError, match="microphone"):
                episode.aligned(rate_hz=10, streams=["imu", "microphone"])


@pytest.mark.parametrize("form", ["folder", "url"])
def test_a_purpose_that_nobody_granted_opens_nothing_personal(there: Delivered, form: str) -> None:
    with sensorium.open(there.forms[form], purpose=Purpose.SHARE_THIRD_PARTY) as episode:
        assert not episode.streams["camera_left"].is_readable
        assert episode.columns("imu")["gyro_x"].any()
        with pytest.raises(ConsentError, match="camera_left"):
            episode.images("camera_left")


def test_a_withdrawal_ends_reading_also_of_what_is_open(tmp_path: Path) -> None:
    there = deliver(tmp_path, 1.0, PURPOSES, {"camera_left": DEVICES["camera_left"], "imu": DEVICES["imu"]})
    with sensorium.open(there.folder, purpose=TRAINING) as episode:
        assert next(episode.images("camera_left")).pixels.any()
        there.withdraw()
        with pytest.raises(ConsentError, match="withdrawn"):
            episode.images("camera_left")
        assert len(episode.columns("imu").times_ns) == 200
    consent = ConsentStore(there.spool / "consent")
    assert erase_forgotten(there.folder, consent.poll(), HostClock().utc_ns()) is not None
    with sensorium.open(there.folder, purpose=TRAINING) as episode:
        assert episode.consent["camera_left"].startswith("it was erased:")
        assert len(episode.columns("imu").times_ns) == 200


def test_a_copy_is_governed_by_the_state_beside_it_and_by_a_log_that_is_named(tmp_path: Path) -> None:
    there = deliver(tmp_path, 1.0, PURPOSES, {"camera_left": DEVICES["camera_left"]})
    with sensorium.open(there.copy, purpose=TRAINING) as episode:
        assert episode.streams["camera_left"].is_readable
    there.withdraw()  # the store has not heard of it
    with sensorium.open(there.copy, purpose=TRAINING, consent=there.spool / "consent") as episode:
        assert "withdrawn" in episode.consent["camera_left"]
    state = there.copy / "consent.json"
    state.write_bytes(state.read_bytes().replace(b"payload", b"pay1oad"))
    with sensorium.open(there.copy, purpose=TRAINING) as episode:
        assert "cannot be relied on" in episode.consent["camera_left"]
    state.unlink()
    with sensorium.open(there.copy, purpose=TRAINING) as episode:
        assert "no consent state lies beside this copy" in episode.consent["camera_left"]


def test_a_stranger_may_not_say_that_a_camera_is_not_personal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = {"camera_left": dict(DEVICES["camera_left"]) | {"personal": False}, "imu": DEVICES["imu"]}
    there = deliver(tmp_path, 1.0, PURPOSES, devices)
    with sensorium.open(there.copy) as episode:
        assert episode.streams["camera_left"].is_readable
    monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path / "elsewhere"))
    with sensorium.open(there.copy) as episode:
        assert "sensorium keys enroll" in episode.consent["camera_left"]
        assert len(episode.columns("imu").times_ns) == 200


def test_a_file_that_a_copy_lacks_is_named(there: Delivered, tmp_path: Path) -> None:
    copy = tmp_path / there.folder.name
    copy.mkdir()
    for path in there.copy.iterdir():
        if not path.name.startswith("camera_left"):
            (copy / path.name).write_bytes(path.read_bytes())
    with sensorium.open(copy, purpose=TRAINING) as episode:
        assert "camera_left.mcap is not in" in episode.consent["camera_left"]
        assert len(episode.audio("microphone").samples) > 0


# -- the rig


def test_transforms_lead_from_the_body_to_every_sensor(episode: Episode) -> None:
    found = episode.transforms(episode.start_ns)
    assert found.base == "body"
    for name, stream in episode.streams.items():
        assert np.allclose(found[stream.frame_id], MOUNTS[name], atol=1e-9)
    assert np.allclose(
        found.between("imu", "camera_left"), rig_calibration(1).transform("imu", "camera_left")
    )
    assert np.allclose(episode.transforms(base="imu")["imu"], np.eye(4))
    with pytest.raises(EpisodeError, match="lies outside"):
        episode.transforms(episode.end_ns + 1)
    with pytest.raises(CalibrationError, match="no frame 'tail'; it has: body"):
        episode.transforms(base="tail")


def test_quality_clocks_and_calibration_are_those_of_the_manifest(episode: Episode) -> None:
    assert episode.quality.reasons == ("nobody judged it",)
    assert set(episode.clocks) == set(episode.streams)
    assert episode.calibration is not None
    assert episode.calibration.cameras["camera_left"].width == 640
    assert list(episode.events()) == []


def test_a_calibration_that_was_not_sealed_is_not_believed(there: Delivered, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in there.folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    text = (copy / "calibration.yaml").read_text()
    (copy / "calibration.yaml").write_text(text.replace("simulator", "Simulator"))
    with (
        sensorium.open(copy) as episode,
        pytest.raises(EpisodeError, match="not the calibration that was sealed"),
    ):
        episode.transforms()


# -- mistakes


def test_mistakes_are_answered_with_what_to_do(there: Delivered, episode: Episode, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"purpose 'training' is none; there are: .*'ai:train'"):
        sensorium.open(there.folder, purpose="training")
    with pytest.raises(UsageError, match=r"imu holds columns: read it with columns\('imu'\)"):
        episode.images("imu")
    with pytest.raises(UsageError, match=r"has no stream 'cam'; it has: .*camera_left"):
        episode.frames("cam")
    with pytest.raises(UsageError, match="ends at 5 before it begins at 6"):
        episode.columns("imu", start_ns=6, end_ns=5)
    with pytest.raises(EpisodeError, match="either rate_hz or a reference"):
        episode.aligned()
    with pytest.raises(EpisodeError, match="rows at -1 Hz are not possible"):
        episode.aligned(rate_hz=-1)
    spool = Spool(tmp_path)
    spool.create()
    (spool.open_folder(there.folder.name)).mkdir()
    (spool.open_folder(there.folder.name) / "data.mcap").write_bytes(b"")
    with pytest.raises(EpisodeError, match="is not sealed; let the agent finish"):
        sensorium.open(there.folder.name, spool=tmp_path)


def test_a_closed_episode_says_so_and_what_was_read_stays(there: Delivered) -> None:
    with sensorium.open(there.folder) as episode:
        frames = iter(episode)
        first = next(frames)
        found = episode.columns("imu")
    assert len(found.times_ns) == 600
    assert len(first.payload) > 0
    with pytest.raises(EpisodeError, match="was closed; open it again"):
        episode.columns("imu")
    with pytest.raises(EpisodeError, match="was closed while it was read"):
        list(frames)


def test_a_damaged_chunk_is_an_error_that_names_the_file(there: Delivered, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in there.folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    data = bytearray((copy / "data.mcap").read_bytes())
    data[len(data) // 2] ^= 1
    (copy / "data.mcap").write_bytes(data)
    with sensorium.open(copy) as episode, pytest.raises(EpisodeError, match=r"data\.mcap"):
        for _ in episode:
            pass


def test_frames_carry_what_was_published(there: Delivered, episode: Episode) -> None:
    with EpisodeFiles(there.folder) as files:
        stored = list(files.frames())
    found = list(episode)
    assert [bytes(each.payload) for each in found] == [bytes(each.frame.payload) for each in stored]
    assert [each.seq for each in found] == [each.frame.seq for each in stored]
    assert all(np.all(np.diff(each.times_ns) >= 0) for each in found)
    assert all(each.times_ns[-1] <= each.arrival_ns[-1] for each in found)
    assert all(a.arrival_ns[-1] <= b.arrival_ns[-1] for a, b in pairwise(found))
    assert found[0].times_ns[0] >= START_NS + UTC_NS
