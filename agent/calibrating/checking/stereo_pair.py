"""Judges two cameras with a common view by their epipolar geometry."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import cv2
import numpy as np

from sensorium.agent.calibrating.checking.report import CheckReport, Overlay
from sensorium.agent.calibrating.checking.timing import TurnedPair, with_stamps
from sensorium.agent.calibrating.checking.windows import changes, decided, located
from sensorium.agent.calibrating.recording import Recording
from sensorium.agent.calibrating.shots import Image, require_size
from sensorium.agent.calibrating.tasks import CheckTask
from sensorium.calibration import stereo
from sensorium.calibration.geometry import Array, rays, skew
from sensorium.calibration.pair_lint import lint_stereo
from sensorium.calibration.rig_document import RigCalibration
from sensorium.verdict import Quantity, Status, Verdict


def judge_stereo(report: CheckReport, recording: Recording, task: CheckTask) -> Verdict:
    """Judge two cameras by all their pairs of images, and by both halves of them.

    Raises:
        CalibrationError: If an image does not decode or has another size than its calibration is for.
    """
    calibration, (left, right) = recording.calibration.calibration, task.frames
    chosen = recording.material.stereo(task)
    matches, last = [], None
    for load in chosen.pairs:
        last = load()
        for image, name in zip(last, (left, right), strict=True):
            require_size(image, name, calibration.camera(name))
        matches.append(stereo.match_pair(*last))
    faults = lint_stereo(matches, calibration, left, right)
    report.findings += faults
    pooled = stereo.check_matches(matches, calibration, left, right)
    if report.with_pictures and last is not None:
        report.overlays.append(_stereo_overlay(last[1], matches[-1], calibration, left, right))
    if faults:
        return replace(pooled.verdict, status=Status.FAILED, reasons=faults[0].reasons)
    middle = len(matches) // 2
    if middle == 0:
        return decided(pooled.verdict, (), ())
    halves = [
        stereo.check_matches(part, calibration, left, right) for part in (matches[:middle], matches[middle:])
    ]
    drift: list[tuple[str, float, float, str]] = []
    if all(half.verdict.status is not Status.INSUFFICIENT for half in halves):
        limits = [quantity.threshold or np.inf for quantity in pooled.verdict.quantities[:6]]
        readings = [(half.estimate, half.sigma) for half in halves]
        drift = changes(stereo.DEGREES, stereo.UNITS, readings[0], readings[1], limits)
    verdict = decided(pooled.verdict, [half.verdict for half in halves], drift)
    if verdict.status is not Status.OK:
        windows = [stereo.check_matches([one], calibration, left, right).verdict for one in matches]
        verdict = located(verdict, windows, chosen.times_s)
    verdict = timed(verdict, matches, chosen.turning, calibration)
    counted = (*verdict.quantities, Quantity("pairs", float(len(matches)), "1"))
    return replace(verdict, quantities=counted)


def timed(
    verdict: Verdict,
    matches: Sequence[stereo.Matches],
    turning: Sequence[tuple[Array, float]],
    calibration: RigCalibration,
) -> Verdict:
    """Return the verdict after each pair alone was held against the rig's turning, see :func:`with_stamps`.

    Args:
        turning: Of each pair the rate in the right camera's axes and how much later its image is stamped.

    Raises:
        CalibrationError: If the calibration does not join the two frames, or knows no lens of a camera.
    """
    left, right = verdict.subject.split("~")
    single = []
    for pair, (rate, apart_s) in zip(matches, turning, strict=False):
        found = stereo.check_matches([pair], calibration, left, right)
        if found.matches >= stereo.MIN_MATCHES // 2:
            turn, sigma = np.deg2rad(found.estimate[:3]), np.deg2rad(found.sigma[:3])
            single.append(TurnedPair(turn, sigma, rate, apart_s))
    limits = np.deg2rad([quantity.threshold or np.inf for quantity in verdict.quantities[:3]])
    return with_stamps(verdict, single, limits, (left, right))


def _stereo_overlay(
    image: Image, matches: stereo.Matches, calibration: RigCalibration, left: str, right: str
) -> Overlay:
    """Return the right image with every match, green on its epipolar line, red 2 px or more beside it."""
    canvas: Any = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR) if image.ndim == 2 else image.copy()
    canvas = np.asarray(canvas * 0.7, np.uint8)
    misses = _epipolar_misses(matches, calibration, left, right)
    for (u, v), miss in zip(matches[1], misses, strict=True):
        if np.isfinite(miss):
            share = min(abs(float(miss)) / 2.0, 1.0)
            colour = (40, int(255 * (1 - share)), int(255 * share))
            cv2.circle(canvas, (round(u), round(v)), 3, colour, -1, cv2.LINE_AA)
    median = float(np.nanmedian(np.abs(misses))) if len(misses) else float("nan")
    caption = f"{left}~{right}: matches on {right}, green on their epipolar line, red 2 px off; median {median:.2f} px"
    return Overlay(caption, np.asarray(canvas, np.uint8))


def _epipolar_misses(matches: stereo.Matches, calibration: RigCalibration, left: str, right: str) -> Array:
    T_right_left = calibration.transform(right, left)
    essential = skew(T_right_left[:3, 3]) @ T_right_left[:3, :3]
    camera = calibration.camera(right)
    lines = rays(matches[0], calibration.camera(left)) @ essential.T
    points = rays(matches[1], camera)
    with np.errstate(all="ignore"):
        distance = np.einsum("ij,ij->i", points, lines) / np.hypot(lines[:, 0], lines[:, 1])
    return np.asarray(distance * camera.f_px, np.float64)
