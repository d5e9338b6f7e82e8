"""``camera.txt`` of DSO and its kin, as the TUM data sets bring it (read).

Frames: the folder's name if it is ``cam0`` and the like, else the file's. The first line is a model and its numbers
(``EquiDistant``, ``KannalaBrandt``: k1..k4; ``RadTan``: k1 k2 p1 p2; ``Pinhole``; ``FOV``, or five numbers alone), the
second width and height. Numbers below 1 are shares of the image, whose origin is the corner of the first pixel: half
a pixel is taken off.

Source: JakobEngel/dso, src/util/Undistort.cpp and its README.
"""

import re
from pathlib import Path

from sensorium.calibration.formats.draft import Draft, read_text, size_of
from sensorium.calibration.rig_document import RigCalibration
from sensorium.errors import CalibrationError
from sensorium.verdict import Verdict

_MODELS = {
    "pinhole": ("pinhole", 0),
    "fov": ("fov", 1),
    "atan": ("fov", 1),
    "radtan": ("radtan", 4),
    "equidistant": ("equidistant", 4),
    "kannalabrandt": ("equidistant", 4),
}
_COUNTS = range(4, 9)


def _first_line(line: str) -> tuple[str, list[str]] | None:
    """Return the name in lower case ("" without) and the numbers of a first line; None if it is none."""
    words = line.split()
    name = words.pop(0).lower() if words and words[0].isalpha() else ""
    if len(words) not in _COUNTS:
        return None
    try:
        for word in words:
            float(word)
    except ValueError:
        return None
    return name, words


def claims(text: str) -> bool:
    """Return whether a text file is such a calibration."""
    lines = text.splitlines()
    found = _first_line(lines[0]) if len(lines) > 1 else None
    if found is None or not re.fullmatch(r"\s*\d+\s+\d+\s*", lines[1]):
        return False
    name, numbers = found
    return name in _MODELS if name else len(numbers) in (5, 8)


def read(
    path: Path | str,
    findings: list[Verdict] | None = None,
    size: tuple[int, int] | None = None,  # noqa: ARG001 - the format always says
) -> RigCalibration:
    """Read the first two lines; how the program itself rectifies is left out.

    Raises:
        CalibrationError: With the file and what it lacks.
    """
    path = Path(path)
    draft, lines = Draft(path, findings), read_text(path).splitlines()
    found = _first_line(lines[0]) if len(lines) > 1 else None
    if found is None:
        raise draft.error("the first line must be a model with its numbers, the second width and height")
    sizes = lines[1].split()
    if len(sizes) != 2:
        raise draft.error(f"the second line must be width and height, found {lines[1][:60]!r}")
    image = size_of(sizes[0], sizes[1], draft, "the second line")
    said, words = found
    numbers = draft.numbers(words, len(words), "the first line").tolist()
    model, terms = _model(draft, said, numbers)
    fx, fy, cx, cy = numbers[:4]
    if cx < 1 and cy < 1:
        fx, fy, cx, cy = fx * image[0], fy * image[1], cx * image[0] - 0.5, cy * image[1] - 0.5
    name = path.parent.name if re.fullmatch(r"cam\d+", path.parent.name) else path.stem
    if model == "fov":
        draft.add_lens(name, model, image, (fx, fy, cx, cy), terms)
    else:
        draft.add_camera(name, model, (fx, 0, cx, 0, fy, cy, 0, 0, 1), image, terms)
    return draft.finish(rig="dso")


def _model(draft: Draft, name: str, numbers: list[float]) -> tuple[str, list[float]]:
    """Return the model and its coefficients; without a name the count of numbers tells, as in DSO.

    Raises:
        CalibrationError: If the numbers do not fit the model.
    """
    said = name or {5: "fov", 8: "radtan"}.get(len(numbers), "")
    if said not in _MODELS:
        raise draft.error(f"its model is {name!r} with {len(numbers)} numbers; known: {', '.join(_MODELS)}")
    model, count = _MODELS[said]
    terms = numbers[4:]
    if model in ("fov", "pinhole") and not any(terms):
        return "pinhole", []
    if len(terms) != count:
        raise CalibrationError(
            f"calibration file {draft.path}: {said} takes {4 + count} numbers, found {len(numbers)}"
        )
    return model, terms
