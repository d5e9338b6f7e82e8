"""`sensorium calibration solve`, and `check` with a board: real chessboards, and a simulated rig with known truth."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from board_rig import BOARD, TOUR_S, board_episode
from typer.testing import CliRunner

from sensorium.agent.calibrating.solving.guide import Guide
from sensorium.agent.calibrating.solving.material import moments
from sensorium.agent.calibrating.solving.solver import SolvedPart, merged
from sensorium.agent.cli import app
from sensorium.calibration.board import check_intrinsics
from sensorium.calibration.edges import Edge
from sensorium.calibration.geometry import (
    Intrinsics,
    apply,
    difference,
    inverse,
    project,
    rotation_exp,
    small_motion,
    transform,
)
from sensorium.calibration.rig_document import RigCalibration
from sensorium.calibration.targets import CharucoBoard, parse_board
from sensorium.errors import CalibrationError, UsageError
from sensorium.simulators.demo_rig import demo_calibration, write_demo_rig
from sensorium.verdict import Status, Verdict

CHESS = ("--board", "9x6x0.025")
DEVICES = {
    "camera_left": {"rate_hz": 4},
    "camera_right": {"rate_hz": 4},
    "lidar": {"columns": 512, "rate_hz": 5},
}


def command(*arguments: object) -> tuple[int, str]:
    """Run a command in this process; errors of ours are raised."""
    found = CliRunner().invoke(app, ["calibration", *map(str, arguments)], catch_exceptions=False)
    return found.exit_code, found.stdout


def as_json(*arguments: object) -> tuple[int, dict[str, Any]]:
    code, text = command(*arguments, "--json")
    found: dict[str, Any] = json.loads(text)
    return code, found


def parts(found: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(part["solver"], part["subject"]): part for part in found["parts"]}


# -- real chessboards


@pytest.fixture
def chess(shared_data: Path) -> Path:
    return shared_data / "calibration/opencv_stereo_chess"


def test_a_folder_of_real_images_gives_a_rig_document(chess: Path, tmp_path: Path) -> None:
    out, picture = tmp_path / "calibration.yaml", tmp_path / "coverage.png"
    code, found = as_json("solve", chess, *CHESS, "--fresh", "-o", out, "--picture", picture)
    assert (code, found["status"]) == (0, "ok"), found
    solved = parts(found)
    assert set(solved) == {("intrinsics", "left"), ("intrinsics", "right"), ("stereo", "left~right")}
    left = solved["intrinsics", "left"]["quantities"]
    # Spec 1.14: 0.20 px; views that the fit had not seen are as good.
    assert left["held_out_rms"]["value"] < 0.3
    assert left["focal_x"]["sigma"] < 0.003 * left["focal_x"]["value"]
    document = RigCalibration.load(out)
    assert document.calibration_id == found["calibration"]["id"]
    (edge,) = document.edges
    assert edge.covariance is not None
    assert edge.board_rms_px == pytest.approx(0.3, abs=0.1)
    assert edge.date
    assert "opencv_stereo_chess" in edge.source
    assert document.cameras["left"].board_rms_px == pytest.approx(0.24, abs=0.05)
    assert np.linalg.norm(edge.T_parent_child[:3, 3]) == pytest.approx(0.0832, abs=0.0005)
    image = cv2.imread(str(picture))
    assert image is not None
    assert image.shape == (960, 640, 3)
    with pytest.raises(UsageError, match="exists"):
        command("solve", chess, *CHESS, "-o", out)
    # What it wrote holds for the images by the checks with a board, and no longer once it is made wrong.
    code, checked = as_json("check", chess, *CHESS, "--calibration", out)
    assert (code, checked["status"]) == (0, "ok"), checked["reasons"]
    turned = edge.T_parent_child @ small_motion((0.0, np.deg2rad(0.15), 0.0, 0.0, 0.0, 0.0))
    replace(document, edges=(replace(edge, T_parent_child=turned),)).save(tmp_path / "wrong.yaml")
    code, checked = as_json("check", chess, *CHESS, "--calibration", tmp_path / "wrong.yaml")
    states = {(check["check"], check["subject"]): check["status"] for check in checked["checks"]}
    assert (code, states["stereo_board", "left~right"]) == (1, "failed")
    assert states["intrinsics_board", "left"] == "ok"
    wrong = ("--calibration", tmp_path / "wrong.yaml")
    code, checked = as_json("check", chess, *CHESS, *wrong, "--pair", "left")
    assert (code, [check["subject"] for check in checked["checks"]]) == (0, ["left"])
    with pytest.raises(UsageError, match="left~up"):
        command("check", chess, *CHESS, *wrong, "--pair", "left~up")


def test_a_charuco_board_in_png_files_solves_a_camera(tmp_path: Path) -> None:
    board = CharucoBoard(8, 6, 0.04, 0.03)
    truth, rng, number = (
        Intrinsics("pinhole", 640, 480, 520.0, 522.0, 325.0, 236.0),
        np.random.default_rng(2),
        0,
    )
    width, height = board.outline_m
    outline = np.array([[0, 0, 0], [width, 0, 0], [width, height, 0], [0, height, 0]])
    texture = board.draw(2500)
    corners = (outline[:, :2] * 2500 - 0.5).astype(np.float32)
    while number < 14:
        turn = rotation_exp(rng.uniform(-0.6, 0.6, 3))
        T = transform(turn, (*rng.uniform(-0.3, 0.1, 2), rng.uniform(0.35, 0.6)))
        seen = project(apply(T, outline), truth)
        if not np.isfinite(seen).all() or (seen < -60).any() or (seen > (700, 540)).any():
            continue
        H = cv2.getPerspectiveTransform(corners, seen.astype(np.float32))
        image = cv2.warpPerspective(texture, H, (640, 480), flags=cv2.INTER_LINEAR, borderValue=(120,))
        cv2.imwrite(str(tmp_path / f"front_{number:02d}.png"), cv2.GaussianBlur(image, (0, 0), 0.8))
        number += 1
    options = ("--board", "8x6x0.04", "--board-type", "charuco", "--marker", "0.03", "--model", "pinhole")
    code, found = as_json("solve", tmp_path, *options)
    assert code == 0, found
    numbers = found["parts"][0]["quantities"]
    for key, value in (("focal_x", 520.0), ("focal_y", 522.0), ("centre_x", 325.0), ("centre_y", 236.0)):
        assert abs(numbers[key]["value"] - value) < 4 * numbers[key]["sigma"], key
        assert numbers[key]["sigma"] < 1.0


def test_a_recording_without_a_board_is_insufficient(shared_data: Path) -> None:
    code, found = as_json("solve", shared_data / "euroc_micro", *CHESS, "--only", "intrinsics,stereo")
    assert (code, found["status"]) == (1, "insufficient")
    solved = parts(found)
    assert "not found" in solved["intrinsics", "cam0"]["reasons"][1]
    assert "0 views of the board by both" in solved["stereo", "cam0~cam1"]["reasons"][0]
    code, checked = as_json("check", shared_data / "euroc_micro", *CHESS)
    assert (code, checked["status"]) == (1, "insufficient")


def test_few_views_are_not_enough_and_the_missing_poses_are_named(chess: Path, tmp_path: Path) -> None:
    for number in ("01", "03", "05"):
        shutil.copy(chess / f"left{number}.jpg", tmp_path)
    out = tmp_path / "calibration.yaml"
    code, found = as_json("solve", tmp_path, *CHESS, "-o", out)
    assert (code, found["status"], found["written"]) == (1, "insufficient", None)
    (part,) = found["parts"]
    assert any("3 views of the board, at least 6 are needed" in reason for reason in part["reasons"])
    assert any(reason.startswith("next: bring the board") for reason in part["reasons"])
    assert not out.exists()


def test_a_solve_goes_into_the_calibration_before_and_says_how_far_things_moved(
    chess: Path, tmp_path: Path
) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    command("solve", chess, *CHESS, "--fresh", "-o", first)
    before = RigCalibration.load(first)
    turned = replace(
        before.edges[0], T_parent_child=before.edges[0].T_parent_child @ small_motion((0.01, 0, 0, 0, 0, 0))
    )
    other = Edge("left", "arm", small_motion((0.0, 0.0, 0.1, 1.0, 0.0, 0.0)), source="drawing")
    replace(before, edges=(turned, other)).save(first)
    code, found = as_json("solve", chess, *CHESS, "--only", "stereo", "--base", first, "-o", second)
    assert code == 0, found
    (moved,) = found["moved"]
    assert moved["what"] == "left~right"
    assert moved["rotation_deg"] == pytest.approx(np.rad2deg(0.01), rel=0.02)
    after = RigCalibration.load(second)
    np.testing.assert_allclose(after.transform("left", "arm"), other.T_parent_child, atol=1e-12)
    assert after.cameras == before.cameras
    _, text = command("solve", chess, *CHESS, "--only", "stereo", "--base", first)
    assert "from the calibration before" in text


def test_poses_of_acfr_solve_camera_against_lidar(shared_data: Path) -> None:
    code, found = as_json("solve", shared_data / "calibration/acfr_board", "--only", "camera-lidar")
    assert code == 0
    (part,) = found["parts"]
    # Spec 1.14: 0.76 cm median distance of the centres.
    assert part["quantities"]["held_out_rms"]["value"] < 0.012
    assert part["quantities"]["rotation_x"]["sigma"] < 0.15


def test_what_cannot_be_solved_is_said(chess: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="known: intrinsics,"):
        command("solve", chess, *CHESS, "--only", "lens")
    with pytest.raises(CalibrationError, match="nothing to solve"):
        command("solve", chess)
    with pytest.raises(CalibrationError, match="does not exist"):
        command("solve", tmp_path / "absent", *CHESS)
    with pytest.raises(UsageError, match="rig file"):
        command("solve", chess, *CHESS, "--seconds", "5")
    (tmp_path / "empty").mkdir()
    code, found = as_json("solve", tmp_path / "empty", *CHESS)
    assert code == 1
    assert "holds no images" in found["parts"][0]["reasons"][0]


# -- the document


def solved_part(parent: str, child: str, T: Any) -> SolvedPart:
    return SolvedPart("test", Verdict("test", "", Status.OK), edges=(Edge(parent, child, T),))


def test_a_solved_pair_takes_the_place_of_the_way_over_other_frames() -> None:
    rng = np.random.default_rng(1)
    T = {name: small_motion(rng.uniform(-1, 1, 6)) for name in ("camera", "lidar", "imu", "fresh")}
    base = RigCalibration(
        edges=(
            Edge("body", "camera", T["camera"]),
            Edge("body", "lidar", T["lidar"]),
            Edge("lidar", "imu", T["imu"]),
        )
    )
    after = merged(base, [solved_part("camera", "lidar", T["fresh"])])
    np.testing.assert_allclose(after.transform("camera", "lidar"), T["fresh"])
    np.testing.assert_allclose(after.transform("body", "camera"), T["camera"])
    # What hangs on the LiDAR moves with it.
    np.testing.assert_allclose(after.transform("camera", "imu"), T["fresh"] @ T["imu"])
    assert after.loops() == ()


def test_pairs_solved_together_close_a_loop_and_insufficient_ones_stay_out() -> None:
    T_ab, T_bc = small_motion((0.1, 0, 0, 1, 0, 0)), small_motion((0, 0.1, 0, 0, 1, 0))
    found = [solved_part("a", "b", T_ab), solved_part("b", "c", T_bc), solved_part("a", "c", T_ab @ T_bc)]
    after = merged(RigCalibration(), found)
    (loop,) = after.loops()
    assert loop.is_closed
    assert len(after.edges) == 3
    failed = replace(found[0], verdict=Verdict("test", "", Status.INSUFFICIENT, (), ("few",)))
    assert merged(RigCalibration(), [failed]).edges == ()


# -- the simulated rig before its board


@pytest.fixture(scope="module")
def episode(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rig goes from stop to stop before the board: two cameras and a LiDAR, without a calibration."""
    return board_episode(tmp_path_factory.mktemp("board"), TOUR_S, DEVICES)


@pytest.fixture(scope="module")
def rough(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A calibration as a drawing gives it: every sensor 2 deg and 3 cm off, focal lengths 3 %."""
    truth, rng = demo_calibration(), np.random.default_rng(5)
    edges = tuple(
        replace(edge, T_parent_child=edge.T_parent_child @ small_motion(0.02 * rng.normal(size=6)))
        for edge in truth.edges
    )
    cameras = {
        name: replace(camera, fx=1.03 * camera.fx, fy=1.03 * camera.fy, model="radtan", distortion=(0.0,) * 4)
        for name, camera in truth.cameras.items()
    }
    path = tmp_path_factory.mktemp("rough") / "drawing.yaml"
    replace(truth, edges=edges, cameras=cameras).save(path)
    return path


@pytest.fixture(scope="module")
def solved(
    episode: Path, rough: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """The rig document solved from the episode, and what was said."""
    out = tmp_path_factory.mktemp("solved") / "calibration.yaml"
    only = ("--only", "intrinsics,stereo,camera-lidar")
    code, found = as_json("solve", episode, *BOARD, *only, "--base", rough, "-o", out)
    assert code == 0, found
    return out, found


def test_a_simulated_rig_is_solved_to_its_truth(solved: tuple[Path, dict[str, Any]]) -> None:
    found, truth = RigCalibration.load(solved[0]), demo_calibration()
    for (solver, name), part in parts(solved[1]).items():
        if solver != "intrinsics":
            continue
        numbers, lens = part["quantities"], truth.cameras[name]
        for key, value in (
            ("focal_x", lens.fx),
            ("focal_y", lens.fy),
            ("centre_x", lens.cx),
            ("centre_y", lens.cy),
            ("k1", 0.0),
        ):
            assert abs(numbers[key]["value"] - value) < 4 * numbers[key]["sigma"], (name, key)
        assert numbers["focal_x"]["sigma"] < 0.001 * lens.fx
        assert numbers["held_out_rms"]["value"] < 0.15
    limits = {"camera_right": (0.05, 0.002), "lidar": (0.2, 0.005)}
    for pair in (("camera_left", "camera_right"), ("camera_left", "lidar"), ("camera_right", "lidar")):
        (edge,) = (e for e in found.edges if (e.parent, e.child) == pair)
        assert edge.covariance is not None
        sigma = np.sqrt(np.diag(edge.covariance))
        gap = difference(edge.T_parent_child, truth.transform(*pair))
        assert (np.abs(gap) < 4 * sigma).all(), (pair, gap / sigma)
        limit_deg, limit_m = limits[pair[1]]
        assert np.rad2deg(sigma[:3].max()) < limit_deg, pair
        assert sigma[3:].max() < limit_m, pair
    (loop,) = solved[1]["loops"]
    assert loop["is_closed"]
    assert {moved["what"] for moved in solved[1]["moved"]} >= {"camera_left", "camera_left~lidar"}


def test_views_that_moved_are_not_used(episode: Path) -> None:
    guide = Guide(parse_board("9x6x0.12"), RigCalibration(), only=("intrinsics",))
    for moment in moments(episode, "episode"):
        guide.boards.add(moment)
    for found in guide.boards.moments:
        # It stands still for the first second of 1.75; the image is up to half a step from the moment.
        since_s = (float(found.label.removesuffix(" s")) + 0.125) % 1.75
        assert since_s <= 1.25
    assert all(counts["moving"] > 10 for counts in guide.boards.counts.values())


def test_the_guide_asks_for_what_is_missing_and_ends_when_it_is_enough(episode: Path) -> None:
    board = parse_board("9x6x0.12", size="1.5x1.14")
    guide = Guide(board, demo_calibration(), only=("intrinsics", "stereo"))
    assert not guide.is_enough
    heard = []
    for moment in moments(episode, "episode"):
        guide.take(moment)
        heard.append(guide.advice())
        if guide.is_enough:
            break
    assert guide.is_enough
    assert heard[-1] == "enough"
    assert any("bring the board" in sentence for sentence in heard)
    rows = {row[0]: row for row in guide.rows()}
    assert rows["camera_left"][3] == "100 %"
    # Enough is not late: before the tour is over.
    assert len(heard) < 0.9 * TOUR_S / 0.25
    picture = guide.picture()
    assert picture is not None
    assert picture.shape == (960, 640, 3)


def test_the_guide_of_a_check_ends_when_the_views_would_show_a_wrong_focal_length(episode: Path) -> None:
    board = parse_board("9x6x0.12", size="1.5x1.14")
    known = demo_calibration()
    guide = Guide(board, known, for_check=True, only=("intrinsics",))
    for moment in moments(episode, "episode"):
        guide.take(moment)
        if guide.is_enough:
            break
    assert guide.is_enough
    for name in ("camera_left", "camera_right"):
        views, camera = guide.boards.views(name), known.camera(name)
        assert check_intrinsics(views, board, camera, name).status is Status.OK
        for factor in (0.99, 1.01):
            wrong = replace(camera, fx=camera.fx * factor, fy=camera.fy * factor)
            assert check_intrinsics(views, board, wrong, name).status in (Status.SUSPECT, Status.FAILED)


def test_a_rig_is_checked_with_a_board_and_keeps_readings_for_later(
    episode: Path, solved: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    given, picture = tmp_path / "calibration.yaml", tmp_path / "overlay.png"
    shutil.copy(solved[0], given)
    options = ("--calibration", given, *BOARD, "--overlay", picture, "--store-reference")
    code, found = as_json("check", episode, *options)
    assert (code, found["status"]) == (0, "ok"), found["reasons"]
    names = {(check["check"], check["subject"]) for check in found["checks"]}
    assert names >= {
        ("intrinsics_board", "camera_left"),
        ("stereo_board", "camera_left~camera_right"),
        ("camera_lidar_board", "camera_right~lidar"),
    }
    assert picture.is_file()
    before, after = RigCalibration.load(solved[0]), RigCalibration.load(given)
    assert after.calibration_id == before.calibration_id
    # Close to a wall the LiDAR sees few edges, so only the cameras' reading is kept, and the others' lack is said.
    assert after.reference("stereo_epipolar", "camera_left~camera_right") is not None
    assert len(after.references) == 1
    assert "keeps what stereo_epipolar read of camera_left~camera_right" in found["references"][0]
    assert "no reference for camera_left~lidar" in found["references"][1]


def test_a_reference_is_stored_only_with_a_board_and_into_a_file_that_was_named(episode: Path) -> None:
    with pytest.raises(UsageError, match="--calibration FILE"):
        command("check", episode, *BOARD, "--store-reference")
    with pytest.raises(UsageError, match="--board"):
        command("check", episode, "--store-reference")


def test_a_sensor_that_moved_is_found_with_a_board(episode: Path, tmp_path: Path) -> None:
    truth = demo_calibration()
    # The LiDAR sits 1 deg and 2 cm elsewhere than the calibration says (spec 3a).
    bump = small_motion((0.0, np.deg2rad(1.0), 0.0, 0.0, 0.02, 0.0))
    edges = tuple(
        replace(e, T_parent_child=e.T_parent_child @ bump) if e.child == "lidar" else e for e in truth.edges
    )
    wrong = tmp_path / "wrong.yaml"
    replace(truth, edges=edges).save(wrong)
    code, found = as_json("check", episode, "--calibration", wrong, *BOARD)
    states = {(check["check"], check["subject"]): check["status"] for check in found["checks"]}
    assert code == 1
    assert states["camera_lidar_board", "camera_left~lidar"] == "failed"
    assert states["camera_lidar_board", "camera_right~lidar"] == "failed"
    assert states["stereo_board", "camera_left~camera_right"] == "ok"
    assert found["moved"] == ["lidar"]


@pytest.mark.slow
def test_the_lidar_is_solved_without_any_calibration_before(episode: Path, tmp_path: Path) -> None:
    code, found = as_json("solve", episode, *BOARD, "--only", "intrinsics,camera-lidar", "--fresh")
    assert code == 0, found
    truth = inverse(demo_calibration().transform("lidar", "camera_left"))
    numbers = parts(found)["camera-lidar", "camera_left~lidar"]["quantities"]
    for k, axis in enumerate("xyz"):
        quantity = numbers[f"translation_{axis}"]
        assert abs(quantity["value"] - truth[k, 3]) < 4 * quantity["sigma"]


@pytest.mark.slow
def test_a_running_rig_is_solved_while_it_is_guided(tmp_path: Path) -> None:
    rig = write_demo_rig(tmp_path, motion="board", personal=False)
    out, picture = tmp_path / "solved.yaml", tmp_path / "coverage.png"
    only = ("--only", "intrinsics,stereo,camera-lidar")
    code, found = as_json("solve", rig, *BOARD, *only, "--seconds", "60", "-o", out, "--picture", picture)
    assert code == 0, found
    truth = demo_calibration()
    for edge in RigCalibration.load(out).edges:
        if edge.covariance is not None:
            gap = difference(edge.T_parent_child, truth.transform(edge.parent, edge.child))
            assert (np.abs(gap) < 4 * np.sqrt(np.diag(edge.covariance))).all()
    assert picture.is_file()
