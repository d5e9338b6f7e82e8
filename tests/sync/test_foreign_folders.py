"""EuRoC folders as other tools write them: units, delimiters, headings, spreadsheets."""

import os
from pathlib import Path

import numpy as np
import pytest
from foreign_cases import generate

from sensorium.drivers.frame import Frame, Loss
from sensorium.errors import SourceError
from sensorium.sync.sources import Source, open_source

START_NS = 1_400_000_000_000_000_000
STEP_NS = 5_000_000


def _counts(source: Source) -> dict[str, int]:
    counts: dict[str, int] = {}
    for item in source.frames():
        if isinstance(item, Frame):
            counts[item.stream] = counts.get(item.stream, 0) + item.count
    return counts


def _imu(folder: Path, text: str) -> Source:
    (folder / "mav0" / "imu0").mkdir(parents=True)
    (folder / "mav0" / "imu0" / "data.csv").write_text(text)
    return open_source(folder)


def _stamps_ns(source: Source, stream: str = "imu0") -> list[int]:
    frames = [item for item in source.frames() if isinstance(item, Frame) and item.stream == stream]
    return [int(ns) for frame in frames for ns in frame.arrival_ns]


def test_stamps_in_seconds_are_read_and_the_unit_is_named(tmp_path: Path) -> None:
    generate("euroc_seconds", tmp_path)
    source = open_source(tmp_path)
    assert _counts(source) == {"cam0": 20, "imu0": 200}
    (problem,) = source.problems
    assert (problem.kind, problem.stream) == ("wrong_unit", "imu0")
    assert "seconds" in problem.sentence
    imu = [
        int(ns)
        for item in source.frames()
        if isinstance(item, Frame) and item.stream == "imu0"
        for ns in item.arrival_ns
    ]
    assert imu == [START_NS + at * STEP_NS for at in range(200)]


def test_a_delimiter_at_the_end_of_rows_is_no_cell(tmp_path: Path) -> None:
    right = generate("euroc_trailing_comma", tmp_path)
    source = open_source(tmp_path)
    assert _counts(source) == {"cam0": right["cam0"], "imu0": right["imu0"]}
    assert [item for item in source.frames() if isinstance(item, Loss)] == []
    assert source.problems == ()


@pytest.mark.parametrize(
    ("form", "heading"),
    [
        ("{us}", "#timestamp [us]"),
        ("{us}", "#timestamp"),
        ("{ms}", "timestamp,w"),
        ("{s}.{rest:09d}", "#t"),
        ("{s}.{rest:09d}", "#timestamp [ns]"),
        ("{sci}", ""),
    ],
    ids=["us said", "us unsaid", "ms unsaid", "decimals unsaid", "decimals under ns", "exponents"],
)
def test_every_unit_is_told_by_heading_decimals_or_steps(tmp_path: Path, form: str, heading: str) -> None:
    rows = []
    for at in range(100):
        ns = START_NS + at * STEP_NS
        seconds, rest = divmod(ns, 10**9)
        sci = f"{ns / 10**9 // 1:.0f}"
        stamp = form.format(us=ns // 1000, ms=ns // 10**6, s=seconds, rest=rest, sci=f"{sci}.{rest:09d}e0")
        rows.append(f"{stamp},1,2,3,4,5,6")
    source = _imu(tmp_path, "\n".join(([heading] if heading else []) + rows) + "\n")
    assert _stamps_ns(source) == [START_NS + at * STEP_NS for at in range(100)]
    assert [one.kind for one in source.problems] == ["wrong_unit"]


def test_nanoseconds_since_boot_stay_nanoseconds(tmp_path: Path) -> None:
    """Twenty days since boot look like a date in microseconds; the steps tell that they are none."""
    boot_ns = 1_700_000_000_000_000
    rows = [f"{boot_ns + at * STEP_NS},1,2,3,4,5,6" for at in range(100)]
    source = _imu(tmp_path, "\n".join(rows))
    assert _stamps_ns(source) == [boot_ns + at * STEP_NS for at in range(100)]
    assert source.problems == ()


@pytest.mark.parametrize("mark", [";", "\t", " ", ", "])
def test_other_delimiters_are_read(tmp_path: Path, mark: str) -> None:
    rows = [mark.join([str(START_NS + at * STEP_NS), *map(str, range(6))]) for at in range(30)]
    text = (
        "\ufeff#timestamp [ns]"
        + "".join(f"{mark}{name}" for name in ("wx", "wy", "wz", "ax", "ay", "az"))
        + "\r\n"
    )
    source = _imu(tmp_path, text + "\r\n".join(rows))
    (first, *_) = [item for item in source.frames() if isinstance(item, Frame)]
    assert np.frombuffer(first.payload, "<f8").reshape(6, -1)[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert _counts(source) == {"imu0": 30}
    assert source.problems == ()


def test_rows_that_mean_something_else_are_named_with_the_first(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no cam\*/data\.csv or imu\*/data\.csv with at least one entry"):
        _imu(tmp_path, "noon,a,b,c,d,e,f\n" * 5)


def test_a_line_without_end_costs_no_memory_and_is_one_bad_row(tmp_path: Path) -> None:
    rows = [f"{START_NS + at * STEP_NS},1,2,3,4,5,6" for at in range(20)]
    source = _imu(tmp_path, "\n".join([*rows[:10], "9" * 5_000_000, *rows[10:]]))
    assert _counts(source) == {"imu0": 20}
    assert [(one.kind, one.count) for one in source.problems] == [("bad_row", 1)]


def test_a_pipe_among_the_images_is_not_waited_for(tmp_path: Path) -> None:
    generate("euroc_trailing_comma", tmp_path)
    image = next((tmp_path / "mav0" / "cam0" / "data").iterdir())
    image.unlink()
    os.mkfifo(image)
    source = open_source(tmp_path)
    assert _counts(source)["cam0"] == 19
    assert [(one.kind, one.count) for one in source.problems] == [("absent_image", 1)]


def test_images_that_no_list_names_are_named(tmp_path: Path) -> None:
    generate("euroc_trailing_comma", tmp_path)
    images = tmp_path / "mav0" / "cam0" / "data"
    for name in ("9.png", "._9.png", "notes.txt"):
        (images / name).write_bytes(next(images.glob("1*.png")).read_bytes())
    (problem,) = open_source(tmp_path).problems
    assert (problem.kind, problem.stream, problem.count) == ("unlisted_file", "cam0", 1)
    assert "9.png" in problem.sentence


@pytest.mark.parametrize(
    ("heading", "expected", "is_said"),
    [
        ("#timestamp [ns],w_RS_S_x [rad s^-1],w_y,w_z,a_RS_S_x [m s^-2],a_y,a_z", (1, 2, 3, 4, 5, 6), False),
        ("#timestamp [ns],a_RS_S_x [m s^-2],a_y,a_z,w_RS_S_x [rad s^-1],w_y,w_z", (4, 5, 6, 1, 2, 3), False),
        ("timestamp,acc_z,acc_y,acc_x,gyro_x,gyro_y,gyro_z", (4, 5, 6, 3, 2, 1), False),
        ("#t [ns],wx [deg/s],wy [deg/s],wz [deg/s],ax [g],ay [g],az [g]", None, True),
        ("#t [ns],one,two,three,four,five,six", (1, 2, 3, 4, 5, 6), False),
    ],
    ids=["EuRoC", "acceleration first", "another order", "degrees and g", "says nothing"],
)
def test_columns_of_an_imu_are_those_of_its_heading(
    tmp_path: Path, heading: str, expected: tuple[int, ...] | None, is_said: bool
) -> None:
    rows = [f"{START_NS + n * STEP_NS},1,2,3,4,5,6" for n in range(20)]
    source = _imu(tmp_path, "\n".join([heading, *rows]))
    frame = next(item for item in source.frames() if isinstance(item, Frame))
    values = np.frombuffer(frame.payload, "<f8").reshape(6, -1)[:, 0]
    radians, metres = np.pi / 180, 9.80665
    right = expected or (radians, 2 * radians, 3 * radians, 4 * metres, 5 * metres, 6 * metres)
    assert values == pytest.approx(right)
    assert ["deg/s and g (as the heading says)" in one.sentence for one in source.problems] == [
        True
    ] * is_said
