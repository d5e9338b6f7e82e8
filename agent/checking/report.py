"""What calibration checks of a recording found: findings, verdicts and pictures."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from sensorium.agent.shots import Image
from sensorium.calibration import rotation
from sensorium.calibration.attribution import moved_sensors
from sensorium.calibration.checks import Degree
from sensorium.verdict import Quantity, Status, Verdict, worst


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
        verdicts: One for each check and pair.
    """

    findings: list[Verdict] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    overlays: list[Overlay] = field(default_factory=list)

    @property
    def status(self) -> Status:
        """The most severe verdict; findings count where they are failures, or where no check could judge.

        A pair that could not be judged makes nothing worse than ``insufficient``, and never ``ok``.
        """
        counted = [f for f in self.findings if f.status is Status.FAILED]
        if not any(verdict.status is Status.OK for verdict in self.verdicts):
            counted += [f for f in self.findings if f.status is Status.SUSPECT]
        judged = [verdict for verdict in self.verdicts if not _is_left_out(verdict)]
        return worst([*judged, *counted]) if judged else worst([*counted, _nothing()])

    @property
    def reasons(self) -> list[str]:
        """Sentences for the status, the most severe first."""
        judged = [verdict for verdict in self.verdicts if not _is_left_out(verdict)]
        if not judged and not any(f.status is Status.FAILED for f in self.findings):
            return list(_nothing().reasons)
        found = [
            v for v in (*self.findings, *self.verdicts) if v.status is self.status and not _is_left_out(v)
        ]
        return [f"{verdict.subject}: {reason}" for verdict in found for reason in verdict.reasons]

    @property
    def moved(self) -> tuple[str, ...]:
        """The sensors that explain all alarms best; two from one pair if it cannot be told which."""
        return moved_sensors(self.verdicts)


def _is_left_out(verdict: Verdict) -> bool:
    """Return whether a verdict does not count: few recordings turn enough about two axes for the IMU's."""
    return verdict.check == rotation.CHECK and verdict.status is Status.INSUFFICIENT


def _nothing() -> Verdict:
    reason = (
        "nothing to compare with: no two cameras with a common view and no camera with a LiDAR were recorded "
        "under this calibration"
    )
    return Verdict("calibration", "", Status.INSUFFICIENT, (), (reason,))


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
