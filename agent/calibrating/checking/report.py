"""What calibration checks of a recording found: findings, verdicts and pictures."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from sensorium.agent.calibrating.shots import Image
from sensorium.calibration.attribution import moved_sensors
from sensorium.calibration.checks import Degree
from sensorium.verdict import Quantity, Status, Verdict, finite, worst


@dataclass(frozen=True, slots=True, eq=False)
class Overlay:
    """A picture that shows what a check saw; ``caption`` says what its colours mean."""

    caption: str
    image: Image


@dataclass(slots=True)
class CheckReport:
    """What came out.

    Attributes:
        findings: Formal faults of the document, or of how it fits the data.
        verdicts: One for each check and sensor or pair.
        overlays: What the checks saw, if pictures are wanted.
    """

    findings: list[Verdict] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    overlays: list[Overlay] = field(default_factory=list)
    with_pictures: bool = False
    _left_out: set[tuple[str, str]] = field(default_factory=set)

    def leave_out(self, verdict: Verdict) -> Verdict:
        """Return the verdict, noted as one that does not count if it is insufficient.

        For checks that ask for what few recordings offer: rest, turning about two axes, claps. That a drive had
        no rest says nothing against the rig, nor anything for it.
        """
        if verdict.status is Status.INSUFFICIENT:
            self._left_out.add((verdict.check, verdict.subject))
        return verdict

    def counts(self, verdict: Verdict) -> bool:
        """Return whether a verdict bears on the whole."""
        return (verdict.check, verdict.subject) not in self._left_out

    @property
    def judged(self) -> list[Verdict]:
        return [verdict for verdict in self.verdicts if self.counts(verdict)]

    @property
    def status(self) -> Status:
        """The most severe verdict; findings count where they are failures, or where no check could judge.

        A pair that could not be judged makes nothing worse than ``insufficient``, and never ``ok``.
        """
        counted = [f for f in self.findings if f.status is Status.FAILED]
        if not any(verdict.status is Status.OK for verdict in self.verdicts):
            counted += [f for f in self.findings if f.status is Status.SUSPECT]
        return worst([*self.judged, *counted]) if self.judged else worst([*counted, self._nothing()])

    @property
    def reasons(self) -> list[str]:
        """Sentences for the status, the most severe first."""
        if not self.judged and not any(f.status is Status.FAILED for f in self.findings):
            return list(self._nothing().reasons)
        found = [v for v in (*self.findings, *self.judged) if v.status is self.status]
        return [f"{verdict.subject}: {reason}" for verdict in found for reason in verdict.reasons]

    @property
    def moved(self) -> tuple[str, ...]:
        """The sensors that explain all alarms best; two from one pair if it cannot be told which."""
        return moved_sensors(self.verdicts)

    def _nothing(self) -> Verdict:
        reasons = tuple(f"{v.subject} {v.check}: {v.reasons[0]}" for v in self.verdicts) or (
            "nothing to compare with: no two cameras with a common view, no LiDAR beside another sensor, no IMU, "
            "force sensor or microphones were recorded under this calibration",
        )
        return Verdict("calibration", "", Status.INSUFFICIENT, (), reasons)


def told_only_by_more_motion(verdict: Verdict) -> Verdict:
    """Return a suspicion as insufficient if every degree is inside its tolerance, only not by two sigma.

    Ten seconds of handheld motion leave 0.2 deg; more motion tells, not another rig.
    """
    judged = degrees(verdict)
    if verdict.status is Status.SUSPECT and all(abs(q.value) < (q.threshold or 0.0) for q, _ in judged):
        reason = "the motion does not pin every degree to its tolerance; turn more about all axes"
        return replace(verdict, status=Status.INSUFFICIENT, reasons=(reason, *verdict.reasons))
    return verdict


def degrees(verdict: Verdict) -> list[tuple[Quantity, Status]]:
    """Return the degrees of freedom of a verdict, each with its own status."""
    found = []
    for quantity in verdict.quantities:
        if quantity.sigma is None or quantity.threshold is None:
            continue
        degree = Degree(quantity.name, quantity.unit, quantity.value, quantity.sigma, quantity.threshold)
        status = degree.status if np.isfinite(quantity.sigma) else Status.INSUFFICIENT
        if verdict.status is Status.INSUFFICIENT:
            status = Status.INSUFFICIENT
        elif status is Status.FAILED and verdict.status is not Status.FAILED:
            status = Status.SUSPECT  # one window, or a degree that only drift can prove
        found.append((quantity, status))
    return found


def judged_document(verdict: Verdict) -> dict[str, Any]:
    """Return a verdict for machines, with its degrees of freedom once more, each with its own status.

    A degree's ``tolerance`` is its ``threshold`` by the name that docs/calibration.md gives it.
    """
    found = {
        quantity.name: quantity.document() | {"tolerance": finite(quantity.threshold), "status": status.value}
        for quantity, status in degrees(verdict)
    }
    return verdict.document() | {"degrees": found}


def montage(overlays: Sequence[Overlay], width_px: int = 1242) -> Image:
    """Return all pictures one above the other, each under its caption."""
    rows: list[NDArray[np.uint8]] = []
    for overlay in overlays:
        height = max(round(overlay.image.shape[0] * width_px / overlay.image.shape[1]), 1)
        bar = np.full((28, width_px, 3), 24, np.uint8)
        cv2.putText(
            bar,
            overlay.caption[:150],
            (8, 19),
            cv2.FONT_HERSHEY_SIMPLEX,
            0.5,
            (230, 230, 230),
            1,
            cv2.LINE_AA,
        )
        scaled = cv2.resize(overlay.image, (width_px, height), interpolation=cv2.INTER_AREA)
        rows += [bar, np.asarray(scaled, np.uint8)]
    return np.concatenate(rows) if rows else np.zeros((1, 1, 3), np.uint8)
