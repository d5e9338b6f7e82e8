"""One verdict type for clocks, calibration, quality and consent gates."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any


class Status(str, Enum):
    """Outcome of a check. ``INSUFFICIENT`` (not enough evidence) never counts as ``OK``."""

    OK = "ok"
    SUSPECT = "suspect"
    FAILED = "failed"
    INSUFFICIENT = "insufficient"


_SEVERITY = {Status.OK: 0, Status.INSUFFICIENT: 1, Status.SUSPECT: 2, Status.FAILED: 3}


_WEIGHT = {Status.INSUFFICIENT: 0, Status.OK: 1, Status.SUSPECT: 2, Status.FAILED: 3}


def outweighs(status: Status, other: Status) -> bool:
    """Return whether of two looks at one thing the first says as much or more against it.

    Unlike severity, an ``ok`` says more than ``insufficient``: that one look could not tell takes nothing back.
    """
    return _WEIGHT[status] >= _WEIGHT[other]


def finite(value: float | None) -> float | None:
    """Return a number, or None where it is none: JSON has no word for infinities and NaN."""
    return float(value) if value is not None and math.isfinite(value) else None


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number with its unit, and where they apply its limit and one-sigma uncertainty."""

    name: str
    value: float
    unit: str
    threshold: float | None = None
    sigma: float | None = None

    def document(self) -> dict[str, Any]:
        """Return the quantity as JSON has it, everywhere; what does not apply or is no number is None."""
        return {
            "value": finite(self.value),
            "unit": self.unit,
            "threshold": finite(self.threshold),
            "sigma": finite(self.sigma),
        }


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a check found.

    Attributes:
        check: The check's name, such as ``stereo_epipolar``.
        subject: What was checked: a stream, a pair ``cam0~lidar``, an episode.
        reasons: One sentence each; never empty unless the status is ``OK``.
    """

    check: str
    subject: str
    status: Status
    quantities: tuple[Quantity, ...] = ()
    reasons: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.status is not Status.OK and not self.reasons:
            raise ValueError(f"{self.check} on {self.subject} is {self.status.value} without a reason")

    def document(self) -> dict[str, Any]:
        """Return the verdict as JSON has it, everywhere; its quantities by their names."""
        return {
            "check": self.check,
            "subject": self.subject,
            "status": self.status.value,
            "reasons": list(self.reasons),
            "quantities": {quantity.name: quantity.document() for quantity in self.quantities},
        }


def worst(verdicts: Iterable[Verdict]) -> Status:
    """Return the most severe status; ``INSUFFICIENT`` when there is no verdict at all."""
    statuses = [verdict.status for verdict in verdicts]
    if not statuses:
        return Status.INSUFFICIENT
    return max(statuses, key=_SEVERITY.__getitem__)
