"""Two windows without common frames: what a second one says, and when along a recording something moved."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sensorium.calibration.attribution import Window, moved_between
from sensorium.calibration.geometry import Array
from sensorium.timebase import SECOND_NS
from sensorium.verdict import Quantity, Status, Verdict


def decided(
    pooled: Verdict, halves: Sequence[Verdict], drift: Sequence[tuple[str, float, float, str]]
) -> Verdict:
    """Return the verdict over all frames, once its two halves, which share no frame, were heard.

    Args:
        halves: Verdicts of the first and the second half; empty if there were too few frames to halve.
        drift: Name, change from half to half, limit and unit of each degree that changed beyond its limit.
    """
    if pooled.status is Status.FAILED:
        agreeing = sum(half.status is Status.FAILED for half in halves)
        if agreeing < 2:
            reason = (
                f"only {agreeing} of two windows without common frames says so: record more"
                if halves
                else "too few frames for a second window without common frames: record more"
            )
            pooled = replace(pooled, status=Status.SUSPECT, reasons=(*pooled.reasons, reason))
    if drift and pooled.status in (Status.OK, Status.SUSPECT):
        sentences = tuple(
            f"{name} changed by {change:+.3g} {unit} from the first half to the second (limit {limit:.2g}): "
            "a mount may have moved during the recording"
            for name, change, limit, unit in drift
        )
        # Both halves together mean nothing then; what holds now is what the second half says.
        now = halves[-1].quantities
        return replace(pooled, status=Status.SUSPECT, quantities=now, reasons=(*sentences, *pooled.reasons))
    failed = [
        (word, half)
        for word, half in zip(("first", "second"), halves, strict=False)
        if half.status is Status.FAILED
    ]
    if pooled.status is Status.OK and failed:
        word, half = failed[0]
        reasons = (f"the {word} half of the recording alone is beyond tolerance", *half.reasons)
        return replace(pooled, status=Status.SUSPECT, quantities=half.quantities, reasons=reasons)
    return pooled


def located(verdict: Verdict, windows: Sequence[Verdict], times_s: Sequence[float]) -> Verdict:
    """Say when a pair went from ok to alarm for good, if windows along the recording show it."""
    if len(windows) != len(times_s):
        return verdict
    at = [
        Window(round(time_s * SECOND_NS), round(time_s * SECOND_NS), window)
        for time_s, window in zip(times_s, windows, strict=True)
    ]
    found = moved_between(at)
    is_ok_before = any(
        window.verdict.status is Status.OK for window in at if found and window.end_ns <= found[0]
    )
    if found is None or not is_ok_before:
        return verdict
    start_s, end_s = (instant / SECOND_NS for instant in found)
    sentence = f"it was in place until {start_s:.1f} s and is off from {end_s:.1f} s of the recording on"
    moved = (
        Quantity("moved_after", start_s, "s"),
        Quantity("moved_before", end_s, "s"),
    )
    # Windows share no frames, so two that fail are the proof that one alone is not.
    failed = sum(window.verdict.status is Status.FAILED for window in at if window.start_ns >= found[1])
    return replace(
        verdict,
        status=Status.FAILED if failed >= 2 else Status.SUSPECT,
        quantities=(*verdict.quantities, *moved),
        reasons=(sentence, *verdict.reasons),
    )


def changes(
    names: Sequence[str],
    units: Sequence[str],
    first: tuple[Array, Array],
    second: tuple[Array, Array],
    tolerance: Sequence[float],
) -> list[tuple[str, float, float, str]]:
    change = second[0] - first[0]
    limit = np.maximum(3 * np.hypot(first[1], second[1]), np.asarray(tolerance))
    return [
        (names[k], float(change[k]), float(limit[k]), units[k])
        for k in range(len(names))
        if abs(change[k]) > limit[k]
    ]
