"""What people are told of a session: no number that is none, one duration, no sentence twice."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from episode_samples import begin_episode, manifest_of, sealed_episode, write_frames

from sensorium.agent.commands import sessions
from sensorium.agent.commands.display import Progress
from sensorium.agent.commands.episodes import list_episodes
from sensorium.agent.reporting.sync import sync_report
from sensorium.agent.session.outcome import SessionResult, document
from sensorium.sync.clocks.model import Uncertainty, credible_skew_ppm
from sensorium.sync.content.offset import ContentOffset, judge
from sensorium.sync.episode.chain import seal
from sensorium.sync.episode.manifest import CalibrationRecord, read_manifest
from sensorium.verdict import Status, Verdict

SHARP = Uncertainty(5e4, 0.0, 0.0)


@pytest.mark.parametrize(
    ("sigma_ms", "word"),
    [(0.02, "confirmed"), (10.8, "agrees, as far as the content can tell, which is 21.6")],
)
def test_content_confirms_a_claim_only_if_it_sees_as_finely_as_the_claim(sigma_ms: float, word: str) -> None:
    found = ContentOffset("flash", 0.0, sigma_ms * 1e6, 3)
    verdict = judge(found, "force~camera", SHARP, SHARP, wanted_ns=40e6)
    assert verdict.status is Status.OK
    assert word in verdict.reasons[0]
    assert ("confirmed" in verdict.reasons[0]) == (word == "confirmed")


def test_a_skew_that_no_clock_has_is_not_told() -> None:
    assert credible_skew_ppm(-475_305.0) is None
    assert credible_skew_ppm(float("nan")) is None
    assert credible_skew_ppm(-73.0) == -73.0


def test_an_episode_is_as_long_as_its_captures_wherever_one_looks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = sealed_episode(tmp_path)
    manifest = read_manifest(folder)
    list_episodes(tmp_path / "spool", as_json=True)
    (row,) = json.loads(capsys.readouterr().out)["episodes"]
    assert row["duration_s"] == manifest.duration_s
    assert sync_report(folder).document()["seconds"] == manifest.duration_s


def test_the_span_is_that_of_the_first_and_the_last_capture_of_any_stream(tmp_path: Path) -> None:
    manifest = read_manifest(sealed_episode(tmp_path))
    begin_ns, offset_ns = manifest.start_utc_ns, manifest.timeline.utc_minus_host_ns
    first, second, *rest = manifest.streams
    captured = (
        replace(first, first_utc_ns=begin_ns + 20, last_utc_ns=begin_ns + 1_500_000_000),
        replace(second, first_utc_ns=begin_ns, last_utc_ns=begin_ns + 70),
        *rest,
    )
    assert replace(manifest, streams=captured).duration_s == 1.5
    assert replace(manifest, streams=captured).span_ns[0] == begin_ns - offset_ns


def test_a_reason_is_said_once_by_a_session_that_ends_badly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reason = "the clock of imu ran away"
    writer = begin_episode(tmp_path)
    write_frames(writer, 5)
    writer.close()
    failed = Verdict("one_way", "imu", Status.FAILED, (), (reason,))
    folder = seal(
        writer.folder, replace(manifest_of(writer), clocks=(failed, replace(failed, subject="lidar")))
    )
    with Progress("bench", as_json=False) as progress:
        code = sessions.finish(
            SessionResult([folder], tmp_path), tmp_path / "consent", progress, as_json=False
        )
    told = capsys.readouterr()
    assert code == 1
    assert (told.out + told.err).count(reason) == 1
    assert "clocks failed" in told.err


def test_the_reasons_of_the_status_that_is_told_come_first(tmp_path: Path) -> None:
    writer = begin_episode(tmp_path)
    write_frames(writer, 5)
    writer.close()
    ok = Verdict("stereo", "left~right", Status.OK, (), ("the baseline cannot be seen",))
    vague = Verdict("lidar", "lidar~left", Status.INSUFFICIENT, (), ("nothing to see",))
    folder = seal(
        writer.folder, replace(manifest_of(writer), calibration=CalibrationRecord("c", (ok, vague)))
    )
    found = document(SessionResult([folder], tmp_path))["calibration"]
    assert (found["status"], found["reasons"][0]) == ("insufficient", "nothing to see")


def test_no_status_but_ok_is_told_without_a_reason(tmp_path: Path) -> None:
    found = document(SessionResult([sealed_episode(tmp_path)], tmp_path))
    for part in ("quality", "calibration", "clocks"):
        assert found[part]["status"] == "ok" or found[part]["reasons"], part
