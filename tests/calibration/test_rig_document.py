"""The rig document keeps what it is told and refuses what it cannot mean."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sensorium.calibration import geometry
from sensorium.calibration.edges import Edge, Reference
from sensorium.calibration.rig_document import Intrinsics, RigCalibration
from sensorium.calibration.sensor_models import ImuModel, MicrophoneArray, Payload
from sensorium.errors import CalibrationError

T_BODY_LEFT = geometry.small_motion((0.1, 0.2, -0.3, 0.5, 0.1, 1.2))
T_BODY_LIDAR = geometry.small_motion((0.0, 0.01, 0.02, 0.1, 0.0, 1.5))
T_LEFT_RIGHT = geometry.small_motion((0.001, 0.002, 0.003, 0.2, 0.0, 0.0))


def rig() -> RigCalibration:
    camera = Intrinsics("radtan", 640, 480, 500.5, 501.25, 319.5, 239.5, (1e-05, -0.1, 0.0, 1e-7), 0.21)
    return RigCalibration(
        rig="bench",
        date="2026-11-21",
        source="simulator truth",
        cameras={"left": camera, "right": replace(camera, board_rms_px=None)},
        edges=(
            Edge("body", "left", T_BODY_LEFT, np.diag([1e-6] * 6), "board", "2026-11-20", 0.3),
            Edge("left", "right", T_LEFT_RIGHT),
            Edge("body", "lidar", T_BODY_LIDAR),
        ),
        imus={"imu": ImuModel((0.01, -0.02, 1e-05), None, 2e-4, 1e-3, source="static", date="2026-11-20")},
        force_torque={
            "wrist": Payload(0.4, np.array([1.0, -0.5, 2.0]), np.array([0.0, 0.01, 0.06]), holds=True)
        },
        microphones={"array": MicrophoneArray(((0.0, 0.05, 0.0), (0.0, -0.05, 0.0)), (1, -1))},
    )


def test_saved_document_reads_back_equal(tmp_path: Path) -> None:
    rig().save(tmp_path / "calibration.yaml")
    again = RigCalibration.load(tmp_path / "calibration.yaml")
    assert again.calibration_id == rig().calibration_id
    assert again.dump() == rig().dump()
    assert again.cameras == rig().cameras
    assert (again.imus, again.microphones) == (rig().imus, rig().microphones)
    np.testing.assert_array_equal(again.force_torque["wrist"].force_bias_n, [1.0, -0.5, 2.0])
    assert again.force_torque["wrist"].holds
    assert again.edges[0].covariance is not None
    np.testing.assert_array_equal(again.edges[0].T_parent_child, T_BODY_LEFT)
    assert (again.date, again.edges[0].date) == ("2026-11-21", "2026-11-20")


def test_transform_walks_the_graph_both_ways() -> None:
    expected = geometry.inverse(T_BODY_LEFT @ T_LEFT_RIGHT) @ T_BODY_LIDAR
    np.testing.assert_allclose(rig().transform("right", "lidar"), expected, atol=1e-12)
    np.testing.assert_allclose(rig().transform("lidar", "right"), geometry.inverse(expected), atol=1e-12)
    np.testing.assert_array_equal(rig().transform("left", "left"), np.eye(4))


def test_id_follows_the_geometry_and_nothing_else() -> None:
    moved = rig().with_transform("body", "lidar", T_BODY_LIDAR @ geometry.small_motion([1e-6] * 6), "test")
    assert moved.calibration_id != rig().calibration_id
    reference = Reference("stereo", "left~right", rig().calibration_id, (0.0,), (1.0,), 10)
    assert rig().with_reference(reference).calibration_id == rig().calibration_id
    shuffled = replace(rig(), edges=tuple(reversed(rig().edges)))
    assert shuffled.calibration_id == rig().calibration_id


def test_reference_of_another_calibration_is_void() -> None:
    reference = Reference("stereo", "left~right", rig().calibration_id, (0.0,), (1.0,), 10)
    known = RigCalibration.parse(rig().with_reference(reference).dump())
    assert known.reference("stereo", "left~right") == reference
    moved = known.with_transform("left", "right", np.eye(4), "test")
    assert moved.reference("stereo", "left~right") is None


def test_unknown_frames_and_missing_paths_are_named() -> None:
    with pytest.raises(CalibrationError, match="'radar' is not in the calibration"):
        rig().transform("body", "radar")
    alone = replace(rig(), cameras={**rig().cameras, "rear": rig().cameras["left"]})
    with pytest.raises(CalibrationError, match="no chain of transforms joins 'body' and 'rear'"):
        alone.transform("body", "rear")
    assert not alone.has_transform("body", "rear")
    with pytest.raises(
        CalibrationError, match="no intrinsics for camera 'lidar'; the calibration has: left, right"
    ):
        rig().camera("lidar")


def test_loop_that_does_not_close_is_reported_with_its_gap() -> None:
    closing = geometry.inverse(T_BODY_LEFT) @ T_BODY_LIDAR
    closed = replace(rig(), edges=(*rig().edges, Edge("left", "lidar", closing)))
    assert [loop.is_closed for loop in closed.loops()] == [True]
    bent = replace(
        rig(),
        edges=(*rig().edges, Edge("left", "lidar", geometry.small_motion((0.01, 0, 0, 0, 0, 0)) @ closing)),
    )
    (loop,) = bent.loops()
    assert loop.rotation_rad == pytest.approx(0.01, abs=1e-9)
    assert not loop.is_closed


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        (
            "  left:\n    model:",
            "  left:\n    modle:",
            r"cameras\.left\.modle: unknown key; did you mean 'model'",
        ),
        ("model: radtan", "model: radial", r"cameras\.left: camera model 'radial' is unknown"),
        ("fx: 500.5", "fx: wide", r"cameras\.left\.fx: .*found 'wide'"),
        ("fx: 500.5", "fx: 500.5\n    fx: 500.5", "given twice"),
        ("format: sensorium-calibration/1", "format: kalibr", "this reader knows"),
        ("rig: bench", "rig: [", "is not YAML"),
        ("- parent: body\n  child: lidar", "- parent: lidar\n  child: lidar", "joins a frame with itself"),
        (
            "  T_parent_child:\n  - [",
            "  T_parent_child:\n  - [2.0, ",
            r"transforms\[0\]\.T_parent_child: needs 4 rows",
        ),
    ],
)
def test_faults_in_the_file_are_named(tmp_path: Path, old: str, new: str, complaint: str) -> None:
    assert old in rig().dump()
    path = tmp_path / "calibration.yaml"
    path.write_text(rig().dump().replace(old, new, 1))
    with pytest.raises(CalibrationError, match=complaint) as caught:
        RigCalibration.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="cannot be read"):
        RigCalibration.load(tmp_path / "absent.yaml")


def test_matrix_that_is_no_rigid_transform_is_refused() -> None:
    for T in (np.diag([1.0, 1.0, -1.0, 1.0]), np.diag([2.0, 2.0, 2.0, 1.0]), np.ones((4, 4))):
        with pytest.raises(CalibrationError, match="a -> b"):
            RigCalibration(edges=(Edge("a", "b", T),))


def test_time_offset_is_kept_and_is_part_of_the_identity() -> None:
    edges = (replace(rig().edges[0], time_offset_s=-0.0021), *rig().edges[1:])
    shifted = replace(rig(), edges=edges)
    assert RigCalibration.parse(shifted.dump()).edges[0].time_offset_s == -0.0021
    assert shifted.calibration_id != rig().calibration_id


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"gyro_noise_rad_s": 0.0}, "gyro_noise_rad_s must be positive"),
        ({"acc_noise_m_s2": -1e-3}, "acc_noise_m_s2 must be positive"),
        ({"acc_walk_m_s3": -1e-3}, "acc_walk_m_s3 must not be negative"),
        ({"gyro_walk_rad_s2": float("nan")}, "gyro_walk_rad_s2 must not be negative"),
        ({"gyro_bias_rad_s": (0.0, float("inf"), 0.0)}, "gyro_bias_rad_s must be finite"),
    ],
)
def test_an_imu_that_cannot_be_is_refused(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(CalibrationError, match=complaint):
        ImuModel(**changes)


@pytest.mark.parametrize(
    ("entry", "value"),
    [(0, -1e-6), (0, float("nan")), (1, 1.0)],
    ids=["negative variance", "no number", "correlation beyond 1"],
)
def test_a_covariance_that_cannot_be_is_refused(entry: int, value: float) -> None:
    covariance = np.diag(np.full(6, 1e-6))
    covariance[0, entry] = covariance[entry, 0] = value
    with pytest.raises(CalibrationError, match="a -> b"):
        RigCalibration(edges=(Edge("a", "b", np.eye(4), covariance),))


def test_numbers_that_are_none_are_refused_in_the_document() -> None:
    for old, new in (
        ("cx: 319.5", "cx: .nan"),
        ("board_rms_px: 0.21", "board_rms_px: -0.21"),
        ("gyro_noise_rad_s: 0.0002", "gyro_noise_rad_s: .inf"),
        ("time_offset_s: 0.002", "time_offset_s: .inf"),
    ):
        text = replace(rig(), edges=(replace(rig().edges[0], time_offset_s=0.002), *rig().edges[1:])).dump()
        assert old in text
        with pytest.raises(CalibrationError, match=new.split(":")[0]):
            RigCalibration.parse(text.replace(old, new, 1))
