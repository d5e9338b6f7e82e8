"""``sensorium sync report`` on a simulated episode: numbers, plots, and proof by content."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from episode_samples import TIMELINE
from sessions import sensorium
from simulated_rig import device, run

from sensorium.agent.commands.sync import content_inputs, report_sync
from sensorium.agent.reporting.advice import what_to_do
from sensorium.agent.reporting.sync import render, sync_report
from sensorium.drivers.frame import Frame, StreamInfo
from sensorium.errors import EpisodeError, UsageError
from sensorium.simulators.microphone import SimulatedMicrophone, heard_s
from sensorium.simulators.world import SOUND_M_S, World
from sensorium.sync.align import Aligner
from sensorium.sync.clocks.model import Stamped
from sensorium.sync.clocks.tracker import StreamTracker
from sensorium.sync.content.check import ContentInputs, check_content
from sensorium.sync.episode.reader import Episode
from sensorium.sync.episode.spool import Spool
from sensorium.sync.episode.ulid import new_ulid
from sensorium.sync.episode.writer import EpisodeWriter
from sensorium.verdict import Status, Verdict


def record(
    folder: Path,
    *,
    streams: tuple[str, ...] = ("force", "microphone", "imu"),
    late_ns: Mapping[str, int] = MappingProxyType({}),
    sabotage: bool = False,
) -> Path:
    """Write nine seconds of some streams, stamped as they would be live; ``late_ns`` shifts captures of some."""
    infos: dict[str, StreamInfo] = {}
    frames: list[Frame] = []
    for name in streams:
        found, by_stream = run(name, folder, seconds=9.0)
        infos |= found
        frames += by_stream[name]
    spool = Spool(folder / "spool")
    spool.create()
    episode_id = new_ulid(TIMELINE.utc_minus_host_ns)
    writer = EpisodeWriter(spool.open_folder(episode_id), episode_id, TIMELINE, None)
    aligner = Aligner(streams[-1], 10_000_000)
    trackers = {name: StreamTracker(info) for name, info in infos.items()}
    for info in infos.values():
        writer.declare(info)
        aligner.declare(info)
    for frame in sorted(frames, key=lambda each: int(each.arrival_ns[-1])):
        stamped = trackers[frame.stream].update(frame)
        stamped = replace(stamped, capture_ns=stamped.capture_ns - late_ns.get(frame.stream, 0))
        if sabotage and frame.stream == "imu" and frame.seq == 200:
            stamped = Stamped(frame.arrival_ns + 1_000_000, stamped.uncertainty, stamped.epoch)
        writer.write(frame, stamped, 0)
        aligner.add(frame.stream, frame.seq, frame.count, stamped.capture_ns, stamped.uncertainty.bound95_ns)
        model = trackers[frame.stream].model
        if model is not None and frame.seq % 10 == 0:
            writer.write_model(frame.stream, model, int(frame.arrival_ns[-1]))
        for row in aligner.advance(int(frame.arrival_ns[-1])):
            writer.write_row(row)
        writer.step(int(frame.arrival_ns[-1]))
    writer.close()
    return writer.folder


@pytest.fixture(scope="module")
def episode(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("sync"))


def test_the_report_tells_rates_skews_and_bounds_of_every_clock(episode: Path) -> None:
    found = sync_report(episode).document()
    assert set(found["streams"]) == {"force", "microphone", "imu"}
    imu = found["streams"]["imu"]
    # The demo's IMU runs 18 ppm slow, with up to 6 ppm of warm-up and thermal wave.
    assert imu["skew_ppm"] == pytest.approx(-18, abs=25)
    assert imu["rate_hz"] == pytest.approx(200.0, rel=1e-3)
    assert imu["captures_after_arrival"] == imu["captures_backwards"] == 0
    assert 0 < imu["bound95_us"]["p50"] < imu["bound95_us"]["max"]
    assert 500 < imu["residual_us"]["p50"] < 2000  # exponential jitter of 1.5 ms has its median at 1040 us
    assert found["alignment"]["force"]["method"] == "interpolated"
    assert found["alignment"]["force"]["gap_us"]["p50"] == pytest.approx(1000, rel=0.03)
    assert {verdict["status"] for verdict in found["verdicts"]} == {"ok"}
    json.dumps(found, allow_nan=False)


def test_the_page_needs_no_other_file_and_shows_every_section(episode: Path) -> None:
    html = render(sync_report(episode))
    for name in ("clocks", "residuals", "histograms", "offsets", "alignment"):
        assert f'<section id="{name}">' in html
    assert "<script" not in html
    assert "src=" not in html
    assert html.count("<svg") >= 8


def test_what_a_stream_says_of_itself_is_text_on_the_page_and_no_markup(episode: Path) -> None:
    report = sync_report(episode)
    hostile = "<script>alert(1)</script><img src=x onerror=alert(1)>"
    for clock in report.streams.values():
        clock.method = hostile
        clock.info = replace(clock.info, stamp_of=hostile, units=hostile, frame_id=hostile)
    html = render(report)
    assert "&lt;script&gt;" in html
    assert "<script" not in html
    assert "<img" not in html


def test_a_capture_after_its_arrival_is_a_verdict_against_the_episode(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = record(tmp_path, sabotage=True)
    code = report_sync(folder, tmp_path / "report.html", inputs=None, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert code == 1
    (failed,) = (verdict for verdict in found["verdicts"] if verdict["status"] == "failed")
    assert failed["subject"] == "imu"
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")


def test_claps_confirm_honest_clocks_and_contradict_a_shifted_one(episode: Path, tmp_path: Path) -> None:
    with Episode(episode) as opened:
        (honest,) = check_content(opened, {})
    assert (honest.check, honest.subject, honest.status) == ("content_clap", "force~microphone", Status.OK)
    with Episode(record(tmp_path, late_ns={"microphone": 40_000_000})) as opened:
        (shifted,) = check_content(opened, {})
    assert shifted.status is Status.FAILED
    offset = next(quantity for quantity in shifted.quantities if quantity.name == "offset")
    assert offset.value == pytest.approx(-40_000, abs=5_000)


def clap_distance_m(run_dir: Path) -> float:
    """Return how far the claps of the demo's world are from the microphone, on the mean of the first nine seconds."""
    world = World(1)
    microphone = device("microphone", run_dir)
    assert isinstance(microphone, SimulatedMicrophone)
    mounted = microphone.mount()
    claps = world.claps(0.0, 9.0)
    return float(np.mean([(heard_s(world, clap, mounted) - clap.at_s) * SOUND_M_S for clap in claps]))


def test_a_known_place_of_the_claps_sharpens_the_proof(episode: Path, tmp_path: Path) -> None:
    inputs = ContentInputs(clap_distance_m(tmp_path), 0.1)
    with Episode(episode) as opened:
        (vague,) = check_content(opened, {})
        (sharp,) = check_content(opened, {}, inputs)
        late = replace(inputs, filter_delay_ns={"microphone": 3e6})
        (contradicted,) = check_content(opened, {}, late)
    assert sharp.status is Status.OK
    limits = [verdict.quantities[0].threshold for verdict in (vague, sharp)]
    assert limits[1] is not None
    assert limits[0] is not None
    assert limits[1] < limits[0] / 5
    assert abs(sharp.quantities[0].value) < limits[1]
    # A filter that is not there is taken off the stamps, 3 ms: half a room would have hidden it.
    assert contradicted.status is Status.FAILED
    moved = contradicted.quantities[0].value - sharp.quantities[0].value
    assert moved == pytest.approx(-3000, abs=1)


def test_lamps_that_go_on_at_the_claps_confirm_a_camera_and_contradict_a_shifted_one(tmp_path: Path) -> None:
    streams = ("force", "camera_left")
    shown = []
    for late_ns in (0, 120_000_000):
        folder = record(tmp_path / str(late_ns), streams=streams, late_ns={"camera_left": late_ns})
        with Episode(folder) as opened:
            shown += [v for v in check_content(opened, {}) if v.check == "content_flash"]
    honest, shifted = shown
    assert (honest.subject, honest.status) == ("force~camera_left", Status.OK)
    assert shifted.status is Status.FAILED
    # A flash is seen to a period of the camera, 33 ms.
    assert shifted.quantities[0].value == pytest.approx(-120_000, abs=17_000)


def test_a_filter_delay_of_an_unknown_stream_or_form_is_refused(episode: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="STREAM=MS"):
        content_inputs(None, ["imu"])
    with pytest.raises(UsageError, match="no such stream; known: force"):
        report_sync(episode, tmp_path / "r.html", inputs=content_inputs(1.0, ["imo=3"]), as_json=True)


def test_the_table_prints(episode: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report_sync(episode, tmp_path / "r.html", inputs=ContentInputs(), as_json=False) == 0
    out = capsys.readouterr().out
    assert "microphone" in out
    assert "confirmed" in out


def test_an_empty_episode_is_refused(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    spool.create()
    writer = EpisodeWriter(spool.open_folder(new_ulid(0)), new_ulid(0), TIMELINE, None)
    writer.close()
    with pytest.raises(EpisodeError, match="no samples"):
        sync_report(writer.folder)


def test_an_xdf_file_is_reported_with_what_pyxdf_would_be_off_by(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "clock" / "clock_resets.xdf"
    page = tmp_path / "page.html"
    done = sensorium("sync", "report", source, "--html", page, "--json")
    assert done.code == 0, done.err
    found = done.document
    biosemi = found["streams"]["BioSemi"]
    assert (biosemi["samples"], biosemi["rate_nominal_hz"]) == (27815, 100.0)
    assert biosemi["offset"]["frozen"][0]["readings"] == 54
    assert len(biosemi["resets"]) == 1
    assert biosemi["pyxdf_off_us"]["max"] == pytest.approx(274e3, rel=0.01)
    said = {(check["check"], check["subject"]): check["status"] for check in found["checks"]}
    assert said["xdf_clock", "BioSemi"] == "suspect"
    assert said["pyxdf_stamps", "MyMarkerStream"] == "ok"
    assert page.read_text().count("<svg") == 4
    told = sensorium("sync", "report", source, "--html", page)
    assert "BioSemi" in told.out
    assert "dejitter_timestamps=False" in told.out
    refused = sensorium("sync", "report", source, "--html", page, "--clap-m", "1")
    assert refused.code == 2
    assert "are for episodes" in refused.err


def test_what_to_do_comes_first_and_names_the_next_step(tmp_path: Path) -> None:
    found = Verdict("content_clap", "force~microphone", Status.FAILED, (), ("contradicted",))
    vague = Verdict("content_flash", "force~camera", Status.INSUFFICIENT, (), ("too few flashes",))
    fine = Verdict("stamps", "imu", Status.OK)
    silent = {"camera": {"outcomes": {"matched": 50, "stream was silent": 50}}}
    lidar = {"lidar": {"outcomes": {"matched": 10, "nearer to another tick": 20}}}
    worst, next_one, starved = what_to_do([fine, vague, found], silent | lidar)
    assert worst.startswith("failed: force~microphone: contradicted; ")
    assert "--filter-delay" in worst
    assert next_one.startswith("insufficient: force~camera: too few flashes; show the sensors more")
    assert starved.startswith("camera answers 50 of 100 ticks")
    assert what_to_do([fine], lidar) == []
    page = render(sync_report(record(tmp_path, streams=("force", "imu"), sabotage=True)))
    assert page.index("What to do") < page.index(">Verdicts<") < page.index(">Clocks<")
