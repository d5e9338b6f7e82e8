"""Images beside recordings: what cannot be read or written is said with its file."""

from pathlib import Path

import numpy as np
import pytest

from sensorium.agent.calibrating.image_files import read_image, write_image
from sensorium.errors import CalibrationError


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    write_image(image, tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png"), image)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("name", ["overlay.xyz", "overlay"])
def test_a_suffix_that_names_no_format_is_said(name: str, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="names no image format"):
        write_image(np.zeros((4, 4), np.uint8), tmp_path / name)


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="cannot be written"):
        write_image(np.zeros((4, 4), np.uint8), tmp_path / "none" / "a.png")


def test_a_file_that_is_no_image_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"text")
    for name in ("a.png", "b.png"):
        with pytest.raises(CalibrationError, match=rf"image {tmp_path / name} cannot be read"):
            read_image(tmp_path / name)
