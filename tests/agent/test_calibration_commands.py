"""`sensorium calibration show|convert|check` on real recordings and on an episode of the simulated rig."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from sensor_episodes import sensor_episode
from typer.testing import CliRunner

from sensorium.agent.calibrating.checking.run import run_checks
from sensorium.agent.calibrating.opening import open_recording
from sensorium.agent.cli import app
from sensorium.calibration.formats.detect import import_calibration
from sensorium.calibration.geometry import small_motion, transform
from sensorium.calibration.rig_document import RigCalibration
from sensorium.errors import CalibrationError, ConsentError, UsageError
from sensorium.simulators.demo_rig import demo_calibration, demo_rig
from sensorium.verdict import Status

TIMING_BIAS_MS = 5.0
"""What the edges of a beam's width look like at the rates of the simulated walk."""


def command(*arguments: object) -> tuple[int, str]:
    """Run a command in this process; errors of ours are raised."""
    found = CliRunner().invoke(app, ["calibration", *map(str, arguments)], catch_exceptions=False)
    return found.exit_code, found.stdout


def as_json(*arguments: object) -> tuple[int, dict[str, Any]]:
    code, text = command(*arguments, "--json")
    found: dict[str, Any] = json.loads(text)
    return code, found


def moved(calibration: RigCalibration, parent: str, child: str, motion: tuple[float, ...]) -> RigCalibration:
    """Return the calibration made wrong: the child is elsewhere by a motion in the parent's axes."""
    T = small_motion(motion) @ calibration.transform(parent, child)
    (edge,) = (e for e in calibration.edges if child in (e.parent, e.child) and len(calibration.edges) < 99)
    T_edge = calibration.transform(edge.parent, parent) @ T
    edges = tuple(replace(e, T_parent_child=T_edge) if e is edge else e for e in calibration.edges)
    return replace(calibration, edges=edges)


# -- an episode of the simulated rig


@pytest.fixture(scope="module")
def episode(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seconds of two cameras, a LiDAR and an IMU, aligned by the simulator's truth."""
    return simulated_episode(tmp_path_factory.mktemp("calibrated"))


def simulated_episode(folder: Path, left_late_ns: int = 0, **right: Any) -> Path:
    """Return a sealed episode of the demo's rig.

    Args:
        left_late_ns: How late the left camera's stamps are.
        right: Options of the right camera.
    """
    changes = {
        "camera_left": {"rate_hz": 15},
        "camera_right": {"rate_hz": 15, **right},
        "lidar": {"columns": 512},
        "imu": {},
    }
    settings = demo_rig()["devices"]
    devices = {name: {**settings[name], **options} for name, options in changes.items()}
    late_ns = {"camera_left": left_late_ns}
    return sensor_episode(folder, devices, demo_calibration(), 3.0, late_ns=late_ns)


def test_no_picture_is_drawn_of_cameras_that_may_not_be_shown(episode: Path, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    shutil.copytree(episode, spool / "sealed" / "given")
    with pytest.raises(ConsentError, match="stream camera_left: no grant covers"):
        as_json("check", spool / "sealed" / "given", "--overlay", tmp_path / "seen.png")
    assert not (tmp_path / "seen.png").exists()


def test_an_episode_under_its_true_calibration_is_ok_for_every_pair(episode: Path, tmp_path: Path) -> None:
    picture = tmp_path / "overlay.png"
    code, found = as_json("check", episode, "--overlay", picture)
    assert (code, found["status"], found["kind"]) == (0, "ok", "episode"), found["reasons"]
    assert {check["subject"] for check in found["checks"]} == {
        "camera_left~camera_right",
        "camera_left~lidar",
        "camera_right~lidar",
        "camera_left~imu",  # three seconds are too short to judge, which is said and held against nobody
        "camera_right~imu",
        "imu",
        "lidar_imu",
        "lidar~imu",
    }
    for check in found["checks"]:
        offset = check["degrees"].get("time_offset")
        if check["check"] == "camera_lidar":
            assert abs(offset["value"]) < TIMING_BIAS_MS + 3 * offset["sigma"]
    assert found["calibration"]["id"] == demo_calibration().calibration_id
    image = cv2.imread(str(picture))
    assert image is not None
    assert image.shape[1] == 1242


def test_a_camera_that_was_bumped_is_found_and_the_other_pairs_stay_ok(episode: Path, tmp_path: Path) -> None:
    wrong = moved(demo_calibration(), "camera_left", "lidar", (0.0, np.deg2rad(1.5), 0.0, 0.0, 0.0, 0.0))
    wrong.save(tmp_path / "wrong.yaml")
    pairs = ("--pair", "camera_left~lidar", "--pair", "camera_left~camera_right")
    code, found = as_json("check", episode, "--calibration", tmp_path / "wrong.yaml", *pairs)
    states = {check["subject"]: check["status"] for check in found["checks"]}
    assert code == 1
    assert states["camera_left~camera_right"] == "ok"
    assert states["camera_left~lidar"] in ("suspect", "failed")
    yaw = next(c for c in found["checks"] if c["subject"] == "camera_left~lidar")["degrees"]["yaw"]
    assert yaw["value"] == pytest.approx(-1.5, abs=0.3)


def test_a_bumped_stereo_camera_is_found(episode: Path, tmp_path: Path) -> None:
    motion = (np.deg2rad(0.4), 0.0, 0.0, 0.0, 0.0, 0.0)
    moved(demo_calibration(), "camera_left", "camera_right", motion).save(tmp_path / "wrong.yaml")
    pair = ("--pair", "camera_left~camera_right")
    code, found = as_json("check", episode, "--calibration", tmp_path / "wrong.yaml", *pair)
    stereo = next(check for check in found["checks"] if check["check"] == "stereo_epipolar")
    assert (code, stereo["status"], stereo["degrees"]["pitch"]["status"]) == (1, "failed", "failed")


def test_a_late_stamp_is_told_from_a_moved_mount(tmp_path: Path) -> None:
    late_ms = 60.0
    late = simulated_episode(tmp_path, left_late_ns=int(late_ms * 1e6))
    code, found = as_json("check", late, "--pair", "camera_left~lidar")
    (check,) = found["checks"]
    offset = check["degrees"]["time_offset"]
    assert offset["value"] == pytest.approx(late_ms, abs=TIMING_BIAS_MS + 3 * offset["sigma"])
    assert (code, check["status"]) == (1, "suspect")
    assert "(timing)" in check["reasons"][0]
    assert found["moved"] == []


def test_a_bump_in_the_middle_is_found_with_its_time(tmp_path: Path) -> None:
    bump_s = 1.6
    bumped = simulated_episode(tmp_path, bump={"at_s": bump_s, "rotation_deg": (0.6, 0.0, 0.0)})
    code, found = as_json("check", bumped, "--pair", "camera_left~camera_right")
    (check,) = found["checks"]
    assert (code, check["status"]) == (1, "failed")
    after, before = (check["quantities"][name]["value"] for name in ("moved_after", "moved_before"))
    # Times count from the first row, 0.25 s into the world; ticks are 0.3 s apart.
    assert after - 0.3 < bump_s - 0.25 < before + 0.3
    assert before - after < 1.0
    assert check["degrees"]["pitch"]["value"] == pytest.approx(0.6, abs=0.05)  # as it is now


def test_an_unknown_pair_is_refused_with_those_there_are(episode: Path) -> None:
    with pytest.raises(UsageError, match=r"camera_left~camera_right, camera_left~lidar"):
        command("check", episode, "--pair", "camera~lidar")


def test_an_episode_without_calibration_says_how_to_give_one(episode: Path, tmp_path: Path) -> None:
    shutil.copytree(episode, tmp_path / "bare", ignore=shutil.ignore_patterns("calibration.yaml"))
    with pytest.raises(CalibrationError, match="--calibration FILE"):
        command("check", tmp_path / "bare")


def test_images_of_another_size_are_insufficient_and_named(episode: Path, tmp_path: Path) -> None:
    calibration = demo_calibration()
    small = {name: camera.scaled(320, 240) for name, camera in calibration.cameras.items()}
    replace(calibration, cameras=small).save(tmp_path / "small.yaml")
    code, found = as_json("check", episode, "--calibration", tmp_path / "small.yaml")
    assert (code, found["status"]) == (1, "failed")
    assert {check["status"] for check in found["checks"]} == {"insufficient"}
    reasons = " ".join(reason for check in found["checks"] for reason in check["reasons"])
    assert "calibration is for 320x240" in reasons
    assert "640x480" in found["reasons"][0]


# -- real recordings


@pytest.fixture
def euroc(shared_data: Path, tmp_path: Path) -> Path:
    """Four image pairs of EuRoC with its calibration."""
    source, target = shared_data / "euroc_micro", tmp_path / "euroc"
    for camera in ("cam0", "cam1"):
        folder = target / "mav0" / camera
        (folder / "data").mkdir(parents=True)
        shutil.copy(source / "mav0" / camera / "sensor.yaml", folder)
        for image in sorted((source / "mav0" / camera / "data").glob("*.png"))[::4]:
            (folder / "data" / image.name).symlink_to(image)
    return target


def test_euroc_is_ok_and_the_table_names_every_degree(euroc: Path) -> None:
    code, text = command("check", euroc)
    assert code == 0
    for word in ("cam0~cam1", "pitch", "yaw", "roll", "baseline_vertical", "calibration: ok"):
        assert word in text


def test_euroc_with_a_pitched_camera_fails_in_pitch(euroc: Path, tmp_path: Path) -> None:
    calibration = import_calibration(euroc).calibration
    motion = (np.deg2rad(0.4), 0.0, 0.0, 0.0, 0.0, 0.0)
    moved(calibration, "cam0", "cam1", motion).save(tmp_path / "wrong.yaml")
    code, found = as_json("check", euroc, "--calibration", tmp_path / "wrong.yaml")
    (check,) = found["checks"]
    assert (code, check["status"]) == (1, "failed")
    assert check["degrees"]["pitch"]["status"] == "failed"
    assert check["degrees"]["pitch"]["value"] == pytest.approx(-0.4, abs=0.05)


def test_swapped_names_are_found_in_the_images(euroc: Path, tmp_path: Path) -> None:
    calibration = import_calibration(euroc).calibration
    names = {"cam0": "cam1", "cam1": "cam0"}
    swapped = replace(
        calibration,
        cameras={names[name]: camera for name, camera in calibration.cameras.items()},
        edges=tuple(replace(edge, child=names.get(edge.child, edge.child)) for edge in calibration.edges),
    )
    swapped.save(tmp_path / "swapped.yaml")
    code, found = as_json("check", euroc, "--calibration", tmp_path / "swapped.yaml")
    assert (code, found["status"]) == (1, "failed")
    assert [finding["check"] for finding in found["findings"]] == ["left_right"]


@pytest.fixture
def drive(shared_data: Path, tmp_path: Path) -> Path:
    """Four frames of one KITTI drive with that day's calibration."""
    source, target = shared_data / "calibration/kitti_raw_seq", tmp_path / "drive"
    stems = [path.stem for path in sorted((source / "image_2").glob("*.png"))][::3][:4]
    target.mkdir()
    for path in source.glob("calib_*.txt"):
        shutil.copy(path, target)
    for kind, suffix in (("image_2", "png"), ("velodyne", "bin")):
        (target / kind).mkdir()
        for stem in stems:
            (target / kind / f"{stem}.{suffix}").symlink_to(source / kind / f"{stem}.{suffix}")
    return target


def test_kitti_is_ok_and_a_turned_lidar_is_not(drive: Path, tmp_path: Path) -> None:
    folder = drive
    code, found = as_json("check", folder)
    assert (code, [check["status"] for check in found["checks"]]) == (0, ["ok"])
    calibration = import_calibration(folder).calibration
    motion = (0.0, np.deg2rad(1.0), 0.0, 0.0, 0.0, 0.0)
    wrong = moved(calibration, "camera_2", "velodyne", motion)
    wrong.save(tmp_path / "wrong.yaml")
    code, found = as_json("check", folder, "--calibration", tmp_path / "wrong.yaml")
    (check,) = found["checks"]
    assert code == 1
    assert check["status"] in ("failed", "suspect")
    assert check["degrees"]["yaw"]["value"] == pytest.approx(-1.0, abs=0.25)


def test_kitti_with_the_transform_inverted_is_told_so(drive: Path, tmp_path: Path) -> None:
    folder = drive
    calibration = import_calibration(folder).calibration
    T = np.linalg.inv(calibration.transform("rect", "velodyne"))
    T = transform(T[:3, :3], T[:3, 3])
    edges = tuple(
        replace(edge, T_parent_child=T) if edge.child == "velodyne" else edge for edge in calibration.edges
    )
    replace(calibration, edges=edges).save(tmp_path / "inverted.yaml")
    code, found = as_json("check", folder, "--calibration", tmp_path / "inverted.yaml")
    assert (code, found["status"]) == (1, "failed")
    assert "inverted" in {finding["check"] for finding in found["findings"]}


# -- degenerate data gives insufficient with the reason


def kitti_folder(source: Path, target: Path, names: list[str]) -> Path:
    for name in names:
        for kind, suffix in (("image_2", "png"), ("velodyne", "bin"), ("calib", "txt")):
            (target / kind).mkdir(parents=True, exist_ok=True)
            shutil.copy(source / kind / f"{name}.{suffix}", target / kind)
    return target


@pytest.mark.parametrize(
    ("fault", "word"),
    [
        ("one frame", "too few"),
        ("the same frame", "standing still"),
        ("darkness", "no contrast"),
        ("covered", "depth edges"),
        ("empty sweep", "depth edges"),
        ("torn sweep", "rows of four"),
        ("no image", "cannot be read"),
    ],
)
def test_degenerate_data_is_insufficient_with_the_reason(
    shared_data: Path, tmp_path: Path, fault: str, word: str
) -> None:
    source = shared_data / "calibration/kitti_object"
    names = [path.stem for path in sorted((source / "calib").glob("*.txt"))][:3]
    folder = kitti_folder(source, tmp_path / "kitti", names[:1] if fault == "one frame" else names)
    images, sweeps = sorted((folder / "image_2").iterdir()), sorted((folder / "velodyne").iterdir())
    if fault == "the same frame":
        for files in (images, sweeps, sorted((folder / "calib").iterdir())):
            for file in files[1:]:
                shutil.copy(files[0], file)
    for path in images:
        if fault == "darkness":
            shape = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
            assert shape is not None
            cv2.imwrite(str(path), np.full_like(shape, 3))
    for path in sweeps:
        if fault == "covered":
            points = np.fromfile(path, "<f4").reshape(-1, 4)
            np.float32(points * (0.5 / np.linalg.norm(points[:, :3], axis=1))[:, None]).tofile(path)
        elif fault == "empty sweep":
            path.write_bytes(b"")
        elif fault == "torn sweep":
            path.write_bytes(path.read_bytes()[:-4])
    if fault == "no image":
        images[-1].write_bytes(b"\x89PNG not")
    code, found = as_json("check", folder, "--overlay", tmp_path / "overlay.png")
    assert (code, found["status"]) == (1, "insufficient")
    assert word in " ".join(found["reasons"])


def test_a_blank_wall_is_insufficient_for_stereo(euroc: Path) -> None:
    for path in euroc.glob("mav0/cam*/data/*.png"):
        path.unlink()
        cv2.imwrite(str(path), np.full((480, 752), 130, np.uint8))
    code, found = as_json("check", euroc)
    assert (code, found["status"]) == (1, "insufficient")
    assert "too little texture or light" in found["reasons"][0]


def test_a_document_alone_is_insufficient_and_a_folder_of_nothing_an_error(tmp_path: Path) -> None:
    demo_calibration().save(tmp_path / "calibration.yaml")
    code, found = as_json("check", tmp_path / "calibration.yaml")
    assert (code, found["status"], found["kind"]) == (1, "insufficient", "document")
    assert found["reasons"][0].startswith("nothing to compare with")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CalibrationError, match="no format that is known"):
        command("check", tmp_path / "empty")
    with pytest.raises(CalibrationError, match="does not exist"):
        command("check", tmp_path / "nothing")


def test_a_pair_that_cannot_be_judged_keeps_the_whole_from_being_ok(shared_data: Path) -> None:
    report = run_checks(open_recording(shared_data / "calibration/kitti_raw_0048"))
    assert {verdict.status for verdict in report.verdicts} == {Status.OK, Status.INSUFFICIENT}
    assert report.status is Status.INSUFFICIENT


# -- show and convert


def test_show_prints_cameras_transforms_and_findings(shared_data: Path) -> None:
    code, text = command("show", shared_data / "calibration/opencv_stereo_chess/intrinsics.yml")
    assert code == 0
    assert "640x480" in text
    assert "has no inverse" in text
    code, text = command("show", shared_data / "euroc_micro")
    assert "IMU imu0: gyro noise 0.0001697 rad/s/sqrt(Hz), accelerometer noise 0.002 m/s^2/sqrt(Hz)" in text
    code, found = as_json("show", shared_data / "euroc_micro")
    assert (code, found["format"], found["findings"]) == (0, "euroc", [])
    assert RigCalibration.parse(json.dumps(found["calibration"])).calibration_id == found["id"]


@pytest.mark.parametrize(
    ("name", "to"),
    [
        ("chain.yaml", "kalibr"),
        ("ros", None),
        ("rig.urdf", None),
        ("stereo.yml", None),
        ("rig.mcap", None),
        ("rig.yaml", None),
    ],
)
def test_convert_writes_what_reads_back(shared_data: Path, tmp_path: Path, name: str, to: str | None) -> None:
    target = tmp_path / name
    options = ["--to", to] if to else []
    code, _ = command("convert", shared_data / "euroc_micro", target, *options)
    assert code == 0
    again = import_calibration(target).calibration
    before = import_calibration(shared_data / "euroc_micro").calibration
    np.testing.assert_allclose(again.transform("cam0", "cam1"), before.transform("cam0", "cam1"), atol=1e-9)
    with pytest.raises(UsageError, match="--force"):
        command("convert", shared_data / "euroc_micro", target, *options)


def test_convert_refuses_what_is_plainly_wrong_and_what_it_cannot_name(tmp_path: Path) -> None:
    wrong = moved(demo_calibration(), "body", "lidar", (0, 0, 0, 300.0, 0, 0))
    wrong.save(tmp_path / "wrong.yaml")
    with pytest.raises(CalibrationError, match="millimetres"):
        command("convert", tmp_path / "wrong.yaml", tmp_path / "out.urdf")
    assert not (tmp_path / "out.urdf").exists()
    assert command("convert", tmp_path / "wrong.yaml", tmp_path / "out.urdf", "--force")[0] == 0
    with pytest.raises(UsageError, match="--to"):
        command("convert", tmp_path / "wrong.yaml", tmp_path / "out.bin")
    with pytest.raises(UsageError, match="WIDTHxHEIGHT"):
        command("show", tmp_path / "wrong.yaml", "--size", "big")


def test_late_stamps_of_a_stereo_camera_are_told_from_its_mount(tmp_path: Path) -> None:
    late = simulated_episode(tmp_path, left_late_ns=60_000_000)
    _, found = as_json("check", late, "--pair", "camera_left~camera_right")
    (check,) = found["checks"]
    # The left camera's stamps are late, so the right one seems early.
    assert check["status"] in ("suspect", "failed"), check["reasons"]
    assert "camera_right is stamped" in check["reasons"][0]
    assert "too early against camera_left (timing)" in check["reasons"][0]
    offset = check["quantities"]["time_offset"]
    assert offset["value"] == pytest.approx(60.0, abs=max(3 * offset["sigma"], 6.0))
    assert found["moved"] == []
