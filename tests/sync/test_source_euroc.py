"""EuRoC folders: what is listed, what is there, and what has no twin."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from sensorium.drivers.frame import ClockKind, Encoding, Frame, Loss, Modality, Place
from sensorium.errors import SourceError
from sensorium.sync.sources import Source, open_source

FIRST_NS = 1403715273262142976


@pytest.fixture(scope="module")
def source(shared_data: Path) -> Source:
    return open_source(shared_data / "euroc_micro")


@pytest.fixture(scope="module")
def items(source: Source) -> list[Frame | Loss]:
    return list(source.frames())


def _problem(source: Source, kind: str, stream: str) -> int:
    return {(problem.kind, problem.stream): problem.count for problem in source.problems}.get(
        (kind, stream), 0
    )


def _folder(tmp_path: Path, imu_rows: str = "", images: int = 0) -> Path:
    """Write a small EuRoC folder: one IMU, and one camera that lists two images more than there are."""
    imu = tmp_path / "mav0" / "imu0"
    imu.mkdir(parents=True)
    (imu / "data.csv").write_text("#timestamp [ns],gyro,acc\n" + imu_rows)
    camera = tmp_path / "mav0" / "cam0"
    (camera / "data").mkdir(parents=True)
    stamps = [1_000 * (i + 1) for i in range(images + 2)]
    (camera / "data.csv").write_text("".join(f"{stamp},{stamp}.png\n" for stamp in stamps))
    for stamp in stamps[:images]:
        (camera / "data" / f"{stamp}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"IEND\xaeB`\x82")
    return tmp_path


def test_every_listed_image_is_either_a_frame_or_a_loss(items: list[Frame | Loss]) -> None:
    frames = Counter(item.stream for item in items if isinstance(item, Frame))
    lost: Counter[str] = Counter()
    for item in items:
        if isinstance(item, Loss):
            assert (item.place, item.reason) == (Place.SOURCE, "listed but absent")
            lost[item.stream] += item.count
    assert (frames["cam0"], lost["cam0"]) == (16, 95 - 16)
    assert (frames["cam1"], lost["cam1"]) == (16, 99 - 16)


def test_absent_images_and_missing_twins_are_told_apart(source: Source) -> None:
    assert _problem(source, "absent_image", "cam0") == 95 - 16
    assert _problem(source, "absent_image", "cam1") == 99 - 16
    assert _problem(source, "no_twin", "cam1") == 4
    assert _problem(source, "no_twin", "cam0") == 0


def test_image_files_pass_untouched(shared_data: Path, items: list[Frame | Loss]) -> None:
    first = next(item for item in items if isinstance(item, Frame) and item.stream == "cam1")
    file = shared_data / "euroc_micro" / "mav0" / "cam1" / "data" / f"{FIRST_NS}.png"
    assert bytes(first.payload) == file.read_bytes()
    assert first.seq == 0
    assert first.arrival_ns.tolist() == [FIRST_NS]


def test_imu_rows_are_all_there_in_blocks_with_the_numbers_of_the_text(
    shared_data: Path, items: list[Frame | Loss]
) -> None:
    blocks = [item for item in items if isinstance(item, Frame) and item.stream == "imu0"]
    assert sum(block.count for block in blocks) == 29120
    assert [block.seq for block in blocks] == list(range(0, 29120, 10))
    text = (shared_data / "euroc_micro" / "mav0" / "imu0" / "data.csv").read_text().splitlines()[1:11]
    rows = np.array([[float(cell) for cell in line.split(",")[1:]] for line in text])
    np.testing.assert_array_equal(np.frombuffer(blocks[0].payload, "<f8").reshape(6, 10), rows.T)
    assert blocks[0].device_ticks is not None
    assert blocks[0].device_ticks.tolist() == [int(line.split(",")[0]) for line in text]


def test_the_streams_say_what_the_sensor_files_say(source: Source) -> None:
    cam0, cam1, imu0 = source.streams
    assert (cam0.modality, cam0.encoding, cam0.shape, cam0.rate_hz) == (
        Modality.CAMERA,
        Encoding.PNG,
        (480, 752),
        20,
    )
    assert cam1.is_personal
    assert not imu0.is_personal
    assert (imu0.rate_hz, imu0.is_sampled, imu0.clock.kind) == (200, True, ClockKind.HOST)
    assert "distortion_coefficients" in cam0.details["sensor_yaml"]
    assert source.timeline.is_virtual
    assert source.timeline.utc_minus_host_ns == 0


def test_frames_come_in_the_order_of_arrival(items: list[Frame | Loss]) -> None:
    arrivals = [int(item.arrival_ns[-1]) for item in items if isinstance(item, Frame)]
    assert arrivals == sorted(arrivals)


def test_a_camera_without_any_image_is_all_loss(tmp_path: Path) -> None:
    source = open_source(_folder(tmp_path, images=0))
    losses = [item for item in source.frames() if isinstance(item, Loss)]
    assert [(loss.stream, loss.count) for loss in losses] == [("cam0", 2)]


def test_unreadable_imu_rows_are_losses_and_the_rest_keeps_its_numbers(tmp_path: Path) -> None:
    good = "".join(f"{1000 + i},0,0,0,0,0,9.8\n" for i in range(3))
    source = open_source(
        _folder(tmp_path, imu_rows=good + "2000,0,zero,0,0,0,0\n3000,1\n" + "4000,0,0,0,0,0,9.8\n")
    )
    imu = [item for item in source.frames() if item.stream == "imu0"]
    assert [(type(item).__name__, item.count) for item in imu] == [
        ("Frame", 3),
        ("Loss", 1),
        ("Loss", 1),
        ("Frame", 1),
    ]
    assert isinstance(imu[-1], Frame)
    assert imu[-1].seq == 5
    assert _problem(source, "bad_row", "imu0") == 2


def test_a_cut_image_is_a_loss_not_a_broken_picture(shared_data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cut"
    shutil.copytree(shared_data / "euroc_micro" / "mav0" / "cam0", folder / "mav0" / "cam0")
    image = folder / "mav0" / "cam0" / "data" / f"{FIRST_NS}.png"
    image.parent.chmod(0o755)
    image.chmod(0o644)
    image.write_bytes(image.read_bytes()[:1000])
    source = open_source(folder)
    items = list(source.frames())
    assert _problem(source, "bad_image", "cam0") == 1
    assert Loss("cam0", 1, Place.SOURCE, "image file is damaged") in items
    assert min(item.seq for item in items if isinstance(item, Frame)) == 1


def test_a_folder_that_lists_nothing_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "mav0" / "cam0"
    folder.mkdir(parents=True)
    (folder / "data.csv").write_text("#timestamp [ns],filename\n")
    with pytest.raises(SourceError, match="at least one entry"):
        open_source(tmp_path)
