"""Which lens model a file means, where the model stands under one key, under another, or nowhere.

ROS keeps it in ``distortion_model``; the calibrator's fisheye mode, ASL and Autoware's tools in ``camera_model``.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sensorium.calibration.formats.draft import Draft
from sensorium.verdict import Status

_FISHEYE = frozenset(
    (
        "fisheye",
        "equidistant",
        "equi",
        "kannala_brandt",
        "kannala_brandt4",
        "kannalabrandt",
        "kb4",
        "opencv_fisheye",
    )
)
_STRAIGHT = frozenset(("", "pinhole", "perspective", "standard", "opencv", "none"))
"""Camera models that say nothing about the bending."""


def stated_model(fields: Mapping[str, Any], draft: Draft, name: str, coefficients: Sequence[float]) -> str:
    """Return the distortion model that a camera's fields state, in a spelling that ``Draft.add_camera`` takes.

    Two statements that exclude each other are a finding; so is none at all where the lens does bend.

    Raises:
        CalibrationError: If ``camera_model`` names a lens that is read differently or not at all.
    """
    kind, given = (_word(fields.get(key)) for key in ("camera_model", "distortion_model"))
    if kind in _FISHEYE:
        return _of_a_fisheye(kind, given, draft, name, len(coefficients))
    if kind not in _STRAIGHT:
        raise draft.error(
            f"camera {name} has camera_model {kind!r}, which is not read here; known: pinhole, fisheye, equidistant"
        )
    if given in _FISHEYE:
        return "equidistant"
    if not given and kind == "none" and not any(coefficients):
        return "pinhole"
    if not given and any(coefficients):
        _note_silence(draft, name, len(coefficients))
    return given


def note_no_distortion(draft: Draft, name: str) -> None:
    """Note that a file gives a camera matrix and no distortion at all."""
    sentence = (
        f"{draft.path.name} gives no distortion coefficients for {name}: it was read as without distortion"
    )
    draft.note("no_distortion", name, Status.INSUFFICIENT, sentence)


def _word(value: Any) -> str:
    return "" if value is None else str(value).strip().lower()


def _of_a_fisheye(kind: str, given: str, draft: Draft, name: str, count: int) -> str:
    if not given or given in _FISHEYE or (given == "none" and count == 4):
        return "equidistant"
    taken = "equidistant" if count == 4 else given
    draft.note(
        "lens_model",
        name,
        Status.FAILED,
        f"camera_model says {kind}, distortion_model says {given}; with {count} coefficients it was read as {taken}: "
        "correct the one that is wrong",
    )
    return taken


def _note_silence(draft: Draft, name: str, count: int) -> None:
    taken = "rational_polynomial" if count >= 8 else "plumb_bob"
    doubt = " (four coefficients are a fisheye's as well)" if count == 4 else ""
    draft.note(
        "lens_model",
        name,
        Status.INSUFFICIENT if count == 4 else Status.OK,
        f"the file does not say which distortion model its {count} coefficients belong to; {taken} was taken{doubt}: "
        "add distortion_model",
    )
