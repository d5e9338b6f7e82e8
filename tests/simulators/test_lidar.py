from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from simulated_rig import columns, run, world_seconds

from sensorium.calibration.geometry import Array
from sensorium.drivers.frame import Frame
from sensorium.drivers.payloads.ouster import Scan, beam_rays, decode_scan
from sensorium.drivers.payloads.ouster_metadata import OusterMetadata
from sensorium.simulators.imu import inertial_truth
from sensorium.simulators.rig import MOUNTS
from sensorium.simulators.truth import load_truth
from sensorium.simulators.world import ROOM_M, World

NOISE_M = 0.008
ROUNDING_M = 0.0005


def _world_points(scan: Scan, metadata: OusterMetadata, column_s: Array) -> NDArray[np.float64]:
    """Return (H, W, 3) points, each column from where the sensor was at its own instant."""
    directions, offsets = beam_rays(metadata)
    local = offsets + directions * (scan.range_mm[..., None] * 1e-3)
    poses = World(1).motion(column_s).carried_to(MOUNTS["lidar"])
    return np.asarray(np.einsum("wij,hwj->hwi", poses.rotation, local) + poses.position_m)


def _column_seconds(frame: Frame, truth: NDArray[np.int64], scan: Scan) -> Array:
    """Return the true times of the columns: their device stamps, mapped by the packets' truth."""
    capture_ns = truth[frame.seq : frame.next_seq, 1]
    assert frame.device_ticks is not None
    slope = (capture_ns[-1] - capture_ns[0]) / (frame.device_ticks[-1] - frame.device_ticks[0])
    after_ns = (scan.column_ns - frame.device_ticks[0]) * slope
    return np.asarray(world_seconds(capture_ns[:1]) + after_ns * 1e-9)


def test_deskewed_points_lie_on_the_room_and_its_furniture(tmp_path: Path) -> None:
    infos, frames = run("lidar", tmp_path, seconds=0.45)
    metadata = OusterMetadata.from_json(infos["lidar"].details["metadata"])
    truth = load_truth(tmp_path)["lidar"]
    assert len(frames["lidar"]) >= 4
    frame = frames["lidar"][3]
    scan = decode_scan(frame.payload, metadata)
    assert scan.column_valid.all()
    assert np.count_nonzero(scan.range_mm) == scan.range_mm.size
    points = _world_points(scan, metadata, _column_seconds(frame, truth, scan)).reshape(-1, 3)
    half = np.array(ROOM_M) / 2
    inside = half - np.abs(points - (0, 0, half[2]))
    to_walls = inside.min(axis=1)
    assert to_walls.min() > -6 * NOISE_M
    on_wall = np.abs(to_walls) < 0.04
    # Furniture and the board, which stands up to 6 cm before its wall, hide a part of the room.
    assert 0.6 < on_wall.mean() < 0.98
    # At grazing incidence a range error moves a point by less across the wall than along the ray.
    assert np.sqrt(np.mean(to_walls[np.abs(to_walls) < 0.03] ** 2)) < 1.1 * NOISE_M
    others = points[~on_wall]
    boxes = World(1).scene.boxes[1:]
    gaps = np.min([_distance_to_box(others, box) for box in boxes], axis=0)
    assert np.quantile(gaps, 0.99) < 4 * NOISE_M + ROUNDING_M


def _distance_to_box(points: Array, box: object) -> Array:
    local = np.abs((points - box.centre_m) @ box.rotation) - box.half_m  # type: ignore[attr-defined]
    outside = np.linalg.norm(np.maximum(local, 0), axis=1)
    return np.asarray(np.where(outside > 0, outside, -local.max(axis=1)))


def test_without_deskew_the_points_miss_the_walls(tmp_path: Path) -> None:
    """The scan is skewed by motion, so that de-skewing can be tested at all."""
    infos, frames = run("lidar", tmp_path, seconds=0.45, range_noise_m=0.0)
    metadata = OusterMetadata.from_json(infos["lidar"].details["metadata"])
    truth = load_truth(tmp_path)["lidar"]
    frame = frames["lidar"][3]
    scan = decode_scan(frame.payload, metadata)
    column_s = _column_seconds(frame, truth, scan)
    half = np.array(ROOM_M) / 2

    def wall_gap(seconds: Array) -> float:
        points = _world_points(scan, metadata, seconds).reshape(-1, 3)
        return float(np.median(np.abs((half - np.abs(points - (0, 0, half[2]))).min(axis=1))))

    assert wall_gap(column_s) < 2 * ROUNDING_M
    # Turning at 10 deg/s for the scan's 0.1 s moves a wall 3 m away by centimetres.
    assert wall_gap(np.full_like(column_s, column_s[0])) > 0.01


def test_reflectivity_shows_the_chessboard(tmp_path: Path) -> None:
    infos, frames = run("lidar", tmp_path, seconds=0.45)
    metadata = OusterMetadata.from_json(infos["lidar"].details["metadata"])
    frame = frames["lidar"][3]
    scan = decode_scan(frame.payload, metadata)
    points = _world_points(scan, metadata, _column_seconds(frame, load_truth(tmp_path)["lidar"], scan))
    on_board = (
        (np.abs(points[..., 0] - 3.94) < 0.05)
        & (np.abs(points[..., 1] - 0.25) < 0.55)
        & (np.abs(points[..., 2] - 1.45) < 0.35)
    )
    values = scan.reflectivity[on_board]
    dark, bright = np.count_nonzero(values < 60), np.count_nonzero(values > 190)
    assert len(values) > 500
    assert dark + bright > 0.6 * len(values)
    assert abs(dark - bright) < 0.2 * len(values)


def test_packet_stamps_equal_those_inside_the_packets(tmp_path: Path) -> None:
    infos, frames = run("lidar", tmp_path, seconds=0.25)
    metadata = OusterMetadata.from_json(infos["lidar"].details["metadata"])
    for frame in frames["lidar"]:
        scan = decode_scan(frame.payload, metadata)
        stamps_inside = scan.column_ns[scan.column_valid][:: metadata.columns_per_packet]
        np.testing.assert_array_equal(stamps_inside, frame.device_ticks)


def test_the_preview_is_a_subset_of_the_scan(tmp_path: Path) -> None:
    infos, frames = run("lidar", tmp_path, seconds=0.25)
    assert infos["lidar_points"].reference_of == "lidar"
    metadata = OusterMetadata.from_json(infos["lidar"].details["metadata"])
    directions, offsets = beam_rays(metadata)
    for cloud, revolution in zip(frames["lidar_points"], frames["lidar"], strict=True):
        rows = np.frombuffer(cloud.payload, "<f4").reshape(-1, 4)
        assert 3000 < len(rows) <= 4096
        scan = decode_scan(revolution.payload, metadata)
        every = (offsets + directions * (scan.range_mm[..., None] * np.float32(1e-3))).reshape(-1, 3)
        gaps = [np.linalg.norm(every - row, axis=1).min() for row in rows[::200, :3]]
        assert max(gaps) < 1e-4
        assert cloud.arrival_ns[0] == revolution.arrival_ns[-1]


def test_its_imu_measures_its_own_motion(tmp_path: Path) -> None:
    infos, frames = run("lidar", tmp_path, seconds=1.0)
    readings = columns(infos["lidar_imu"], frames["lidar_imu"])
    seconds = world_seconds(load_truth(tmp_path)["lidar_imu"][: len(readings), 1])
    truth = inertial_truth(World(1).motion(seconds).carried_to(MOUNTS["lidar_imu"]))
    # Bias within 4 sigma of its prior, white noise N sqrt(100 Hz).
    assert np.abs((readings - truth)[:, :3]).max() < 4 * 0.03 + 5 * 1.0e-3 * 10
    assert np.abs((readings - truth)[:, 3:]).max() < 4 * 0.002 + 5 * 1.2e-4 * 10


def test_a_bumped_lidar_sees_the_room_turned(tmp_path: Path) -> None:
    options = {"seconds": 0.25, "range_noise_m": 0.0, "rings": 16, "columns": 512}
    infos, plain = run("lidar", tmp_path / "a", **options)
    bump = {"at_s": 0.1, "translation_m": [0.0, 0.0, 0.10]}
    _, bumped = run("lidar", tmp_path / "b", bump=bump, **options)
    metadata = OusterMetadata.from_json(infos["lidar"].details["metadata"])
    before, after = (
        [decode_scan(frame.payload, metadata).range_mm for frame in frames["lidar"][:2]]
        for frames in (plain, bumped)
    )
    np.testing.assert_array_equal(before[0], after[0])
    assert np.mean(before[1] != after[1]) > 0.5
