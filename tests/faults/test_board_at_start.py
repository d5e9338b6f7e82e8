"""`checks_at_start: board`: shown or not, the recording begins, and its manifest says what the board showed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sessions import Session, grant, write_rig

from sensorium.agent.session.rig import parse_rig
from sensorium.calibration.edges import Edge
from sensorium.calibration.geometry import small_motion
from sensorium.calibration.rig_document import RigCalibration
from sensorium.errors import ConfigError
from sensorium.simulators.demo_rig import demo_calibration
from sensorium.sync.episode.manifest import read_manifest
from sensorium.timebase import SECOND_NS, HostClock
from sensorium.verdict import Status

BOARD = {"pattern": "9x6x0.12", "size": "1.5x1.14", "seconds": 30.0}


def pair(motion: str) -> dict[str, Any]:
    camera = {"driver": "sim_camera", "rate_hz": 5.0, "motion": motion}
    return {"camera_left": camera, "camera_right": camera}


def recorded(
    tmp_path: Path, motion: str, calibration: RigCalibration, *arguments: str, **keys: Any
) -> tuple[Session, Path]:
    calibration.save(tmp_path / "calibration.yaml")
    board = {**BOARD, **keys.pop("board", {})}
    rig = write_rig(
        tmp_path,
        pair(motion),
        calibration="calibration.yaml",
        checks=[],
        checks_at_start="board",
        board=board,
        **keys,
    )
    grant(tmp_path / "spool")
    return Session("record", rig, "--json", "--seconds", 2, *arguments, spool=tmp_path / "spool"), rig


def turned(calibration: RigCalibration) -> RigCalibration:
    """Return the calibration with the right camera pitched by half a degree."""
    motion = small_motion((np.deg2rad(0.5), 0.0, 0.0, 0.0, 0.0, 0.0))
    T = calibration.transform("camera_left", "camera_right") @ motion
    return RigCalibration(cameras=calibration.cameras, edges=(Edge("camera_left", "camera_right", T),))


def test_a_board_that_is_shown_is_judged_before_the_first_frame(tmp_path: Path) -> None:
    session, _ = recorded(tmp_path, "board", demo_calibration())
    with session:
        done = session.finish(timeout_s=120.0)
    assert done.code == 0, done.err
    (path,) = done.episodes
    manifest = read_manifest(path)
    found = {(each.check, each.subject): each.status for each in manifest.calibration.verdicts}
    assert found[("stereo_board", "camera_left~camera_right")] is Status.OK, done.err
    (record,) = (each for each in manifest.calibration.checks if each.check == "stereo_board")
    started_ns = manifest.start_utc_ns - manifest.timeline.utc_minus_host_ns
    assert record.end_ns < started_ns, "the board was shown before the episode began"
    assert "show the board (9x6x0.12) to camera_left, camera_right" in done.err
    document = {each["check"]: each for each in done.document["calibration"]["checks"]}
    assert document["stereo_board"]["to_s"] < 0


def test_without_a_board_recording_begins_after_its_time_and_says_what_to_do(tmp_path: Path) -> None:
    clock = HostClock()
    started_ns = clock.now_ns()
    session, rig = recorded(
        tmp_path, "walk", demo_calibration(), board={"seconds": 3.0, "pattern": "11x8x0.03"}
    )
    with session:
        done = session.finish(timeout_s=90.0)
    assert (clock.now_ns() - started_ns) / SECOND_NS < 60
    (path,) = done.episodes
    verdicts = read_manifest(path).calibration.verdicts
    assert verdicts
    assert {each.status for each in verdicts} == {Status.INSUFFICIENT}
    advice = f"sensorium calibration check {rig} --board 11x8x0.03"
    assert all(advice in each.reasons[-1] for each in verdicts)
    assert done.document["calibration"]["status"] == "insufficient"


def test_a_camera_that_the_board_shows_turned_stops_a_rig_that_says_so(tmp_path: Path) -> None:
    session, rig = recorded(tmp_path, "board", turned(demo_calibration()), on_failed_check="stop")
    with session:
        done = session.finish(timeout_s=120.0)
    assert done.code == 1, done.err
    assert "not recorded, calibration stereo_board camera_left~camera_right failed" in done.err
    assert "--despite-calibration" in done.err
    assert not list((tmp_path / "spool/sealed").glob("*"))
    assert rig.is_file()


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ({"checks_at_start": "board", "calibration": "c.yaml"}, "add board: {pattern: 9x6x0.05}"),
        ({"checks_at_start": "board", "board": {"pattern": "9x6x0.05"}}, "add calibration: FILE"),
        ({"board": {"pattern": "9x6x0.05"}}, "nothing uses it; add checks_at_start: board"),
        (
            {"checks_at_start": "board", "board": {"pattern": "9x6"}, "calibration": "c.yaml"},
            "COLUMNSxROWSxSQUARE",
        ),
        ({"checks_at_start": "chess"}, "checks_at_start"),
    ],
)
def test_a_rig_file_says_what_the_check_at_start_lacks(
    keys: dict[str, Any], complaint: str, tmp_path: Path
) -> None:
    demo_calibration().save(tmp_path / "c.yaml")
    path = write_rig(tmp_path, pair("walk"), **keys)
    with pytest.raises(ConfigError, match=complaint.replace("{", r"\{").replace("}", r"\}")):
        parse_rig(path.read_text(), path)
