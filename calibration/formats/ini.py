"""``.ini`` camera_info of ROS (oST) and of Videre cameras (read).

Frames: the section's name (``narrow_stereo/left``; ``left camera`` and ``right camera`` of Videre). Rectification and
projection place a camera in the frame ``rectified``, as in the YAML form. Videre's projection is in **millimetres**,
its lens kappa1 kappa2 tau1 tau2 kappa3 are k1 k2 p1 p2 k3.

Source: ros-perception/image_common, camera_calibration_parsers (parse_ini.cpp); the Videre driver of camera_drivers
(dcam: extractParams).
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sensorium.calibration.formats import ros
from sensorium.calibration.formats.draft import Draft, read_text, size_of
from sensorium.calibration.geometry import Array
from sensorium.calibration.rig_document import RigCalibration
from sensorium.verdict import Verdict

_MATRICES = {"camera matrix": 9, "distortion": 0, "rectification": 9, "projection": 12, "proj": 12, "rect": 9}
_VIDERE_LENS = ("kappa1", "kappa2", "tau1", "tau2", "kappa3")
_MM = 1e-3


@dataclass(slots=True)
class _Section:
    """What stands under one ``[name]``: labels with their words, over as many lines as they take."""

    name: str
    words: dict[str, list[str]] = field(default_factory=dict)


def claims(text: str) -> bool:
    """Return whether a text is of either form."""
    return "[image]" in text and (
        "camera matrix" in text or "[left camera]" in text or "[right camera]" in text
    )


def read(
    path: Path | str, findings: list[Verdict] | None = None, size: tuple[int, int] | None = None
) -> RigCalibration:
    """Read all cameras of a file; the two blocks that the stereo calibrator prints may stand in one.

    Args:
        size: Width and height of the images where the file does not say.

    Raises:
        CalibrationError: With the file and the label that is missing or wrong.
    """
    path = Path(path)
    draft = Draft(path, findings)
    mounts: list[tuple[str, Array]] = []
    for section in _sections(read_text(path)):
        if section.name == "image":
            size = _size(draft, section) or size
        elif "camera matrix" in section.words:
            mounts += _read_camera(draft, section, size)
        elif section.name.endswith(" camera") and "f" in section.words:
            mounts += _read_videre(draft, section, size)
    ros.add_mounts(draft, mounts)
    return draft.finish(rig="ros")


def _sections(text: str) -> list[_Section]:
    found: list[_Section] = []
    label = ""
    for line in text.splitlines():
        line = line.split("#")[0].strip()
        is_head = line.startswith("[") and line.endswith("]")
        if not line or (not is_head and not found):
            continue
        if is_head:
            found.append(_Section(line[1:-1].strip()))
            label = ""
            continue
        key, *rest = line.split()
        if line in _MATRICES:
            label, rest = line, []
        elif _is_number(key):
            rest = line.split()
        else:
            label = key
        found[-1].words.setdefault(label, []).extend(rest)
    return found


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _size(draft: Draft, section: _Section) -> tuple[int, int] | None:
    if not {"width", "height"} <= section.words.keys():
        return None
    width, height = (draft.numbers(section.words[key], 1, f"[image] {key}")[0] for key in ("width", "height"))
    return size_of(width, height, draft, "[image] width and height")


def _numbers(draft: Draft, section: _Section, label: str, count: int) -> Array | None:
    if label not in section.words:
        return None
    words = section.words[label]
    return draft.numbers(words, count or len(words), f"[{section.name}] {label}")


def _read_camera(draft: Draft, section: _Section, size: tuple[int, int] | None) -> list[tuple[str, Array]]:
    K = _numbers(draft, section, "camera matrix", 9)
    terms = _numbers(draft, section, "distortion", 0)
    assert K is not None
    draft.add_camera(section.name, "", K, size, [] if terms is None else terms.tolist())
    R, P = (_numbers(draft, section, *each) for each in (("rectification", 9), ("projection", 12)))
    return ros.mount_of(draft, section.name, R, P)


def _read_videre(draft: Draft, section: _Section, size: tuple[int, int] | None) -> list[tuple[str, Array]]:
    found = {}
    for key in ("f", "Cx", "Cy", *_VIDERE_LENS):
        values = _numbers(draft, section, key, 1)
        if values is None:
            known = ", ".join(section.words) or "nothing"
            raise draft.error(f"[{section.name}] {key} is missing; found: {known[:160]}")
        found[key] = float(values[0])
    tall = _numbers(draft, section, "fy", 1)
    fy = found["f"] if tall is None else float(tall[0])
    own = [_numbers(draft, section, key, 1) for key in ("pwidth", "pheight")]
    if own[0] is not None and own[1] is not None:
        size = size_of(own[0][0], own[1][0], draft, f"[{section.name}] pwidth, pheight")
    K = (found["f"], 0, found["Cx"], 0, fy, found["Cy"], 0, 0, 1)
    draft.add_camera(section.name, "", K, size, [found[key] for key in _VIDERE_LENS])
    P = _numbers(draft, section, "proj", 12)
    if P is not None:
        P = P.reshape(3, 4) @ np.diag((1, 1, 1, _MM))
    return ros.mount_of(draft, section.name, _numbers(draft, section, "rect", 9), P)
