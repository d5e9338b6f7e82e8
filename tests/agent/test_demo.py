"""``sensorium demo`` as its users run it."""

from pathlib import Path
from typing import Any

import pytest
from sessions import Done, check_balance, check_verifies, read_manifest, recorded_samples, sealed, sensorium

from sensorium.agent.session.outcome import START_UP_NS
from sensorium.drivers.frame import Encoding
from sensorium.drivers.payloads.ouster_metadata import OusterMetadata
from sensorium.timebase import SECOND_NS

pytestmark = pytest.mark.alone

PERSONAL = {"camera_left", "camera_right", "microphone"}
STREAMS = {*PERSONAL, "lidar", "lidar_points", "lidar_imu", "imu", "force"}
STREAM_KEYS = {
    "modality",
    "produced",
    "recorded",
    "dropped",
    "rate_hz",
    "clock_skew_ppm",
    "clock_uncertainty_p95_us",
    "clock_error_p99_us",
    "unmatched",
    "bytes_raw",
    "bytes_stored",
}
KEYS = {"episodes", "streams", "calibration", "consent", "quality", "verification", "report"}
CLOCK_GOAL_US = 200.0
COVERAGE_GOAL = 0.95


def run_dir(out: Path) -> Path:
    (found,) = (path.parent for path in (out / "spool" / "run").glob("*/counters"))
    return found


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo") / "out"


@pytest.fixture(scope="module")
def demo(out: Path) -> Done:
    """The demo of ten seconds, run once."""
    return sensorium("demo", "--out", out, "--json", timeout_s=90.0)


def test_the_demo_ends_well_and_prints_the_promised_document(demo: Done) -> None:
    assert demo.code == 0, demo.out
    document = demo.document
    assert document.keys() >= KEYS
    assert set(document["streams"]) == STREAMS
    for row in document["streams"].values():
        assert row.keys() >= STREAM_KEYS
    assert document["consent"]["decision"] == "allow"
    assert document["quality"] == {"status": "ok", "reasons": []}
    assert document["warnings"] == document["problems"] == []
    assert [
        text for text in document["limitations"] if not text.startswith("the disk was")
    ] == []  # others use it
    assert document["summary"].startswith("the pipeline is right: ")
    assert set(document["machine_too_slow"]) <= {"behind_s", "reason"}


def test_every_sample_of_the_demo_is_recorded_or_explained(demo: Done, out: Path) -> None:
    for row in demo.document["streams"].values():
        assert row["produced"] == row["recorded"] + sum(row["dropped"].values())
    check_balance(demo.episodes, run_dir(out))


def test_what_the_demo_saves_is_counted_from_what_the_sensors_gave(demo: Done) -> None:
    streams = {record.info.name: record for record in read_manifest(demo.episodes[0]).streams}
    lidar = streams["lidar"]
    assert lidar.info.encoding == Encoding.RANGE_IMAGE
    packet_bytes = OusterMetadata.from_json(lidar.info.details["metadata"]).packet_bytes
    assert lidar.bytes_raw == lidar.total.recorded * packet_bytes
    assert lidar.bytes_raw > 2 * lidar.bytes_stored
    for name in ("imu", "force"):
        record = streams[name]
        assert record.bytes_raw == record.total.recorded * record.info.row_bytes
    raw = sum(row["bytes_raw"] for row in demo.document["streams"].values())
    assert raw > 1.5 * demo.document["bytes_on_disk"]


def test_the_demos_calibration_is_checked_and_found_right(demo: Done) -> None:
    assert demo.document["calibration"]["status"] == "ok"
    assert demo.document["calibration"]["checks"]


def test_the_demos_episode_is_delivered_and_verified_in_the_store(demo: Done, out: Path) -> None:
    assert demo.document["verification"]["status"] == "verified"
    (episode,) = demo.episodes
    assert episode.parent == out / "spool" / "sealed"
    assert any(episode.name in str(path) for path in (out / "central").rglob("*"))
    check_verifies(episode)


def test_the_demos_report_is_there(demo: Done) -> None:
    report = Path(demo.document["report"])
    text = report.read_text()
    assert text.lstrip().lower().startswith("<!doctype html")
    for stream in STREAMS:
        assert stream in text


def check_clocks(streams: dict[str, Any]) -> None:
    for name, row in streams.items():
        assert row["capture_after_arrival"] == 0, name
        assert row["clock_error_p99_us"] < CLOCK_GOAL_US, (name, row)


def test_capture_times_are_near_the_truth_and_never_after_arrival(demo: Done) -> None:
    check_clocks(demo.document["streams"])


@pytest.mark.slow
def test_thirty_seconds_hold_the_clock_goal(tmp_path: Path) -> None:
    done = sensorium("demo", "--out", tmp_path / "out", "--seconds", 30, "--json", timeout_s=180.0)
    assert done.code == 0, done.out
    streams = done.document["streams"]
    check_clocks(streams)
    # The errors of one stream go together for as long as the estimator remembers, so that in a single run a
    # stream is covered nearly always or now and then hardly; tests/bench/clocks.py measures it over many.
    covered = [row["clock_bound_coverage"] for row in streams.values()]
    assert sum(covered) / len(covered) >= COVERAGE_GOAL, covered
    manifest = read_manifest(done.episodes[0])
    assert manifest.end_utc_ns - manifest.start_utc_ns > START_UP_NS + 20 * SECOND_NS


def test_without_consent_nothing_personal_is_stored_and_the_upload_refuses(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = sensorium("demo", "--out", out, "--seconds", 2, "--no-consent", "--json")
    assert done.code == 1, done.out
    document = done.document
    assert document["consent"]["decision"] == "deny"
    assert document["verification"]["status"] == "denied"
    (episode,) = sealed(out / "spool")
    held = recorded_samples(episode)
    assert {name for name, _ in held} == STREAMS - PERSONAL
    for name in PERSONAL:
        row = document["streams"][name]
        assert row["recorded"] == 0
        assert row["dropped"] == {"synchronizer": row["produced"]}
    assert not any(path.is_file() for path in (out / "central").rglob("*"))
    check_balance([episode], run_dir(out))


def test_a_second_demo_in_the_same_folder_adds_its_episode(demo: Done, out: Path) -> None:
    again = sensorium("demo", "--out", out, "--seconds", 1, "--json")
    assert again.document["verification"]["status"] == "verified"
    assert len(sealed(out / "spool")) == 2
    assert again.document["streams"].keys() == demo.document["streams"].keys()
