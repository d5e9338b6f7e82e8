"""Tells stamps from mounting for two sensors of one kind: what follows the rig's turning is a time offset."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sensorium.calibration.attribution import TIMING, split_timing
from sensorium.calibration.geometry import Array
from sensorium.verdict import Quantity, Status, Verdict

MIN_PAIRS = 6
MAX_OFFSET_MS = 5.0
# Pairs that all turned alike cannot tell a stamp from a mount: 0.1 deg of mount is 10 ms at 10 deg/s.
MIN_SPREAD_RAD_S = np.deg2rad(5.0)


@dataclass(frozen=True, slots=True, eq=False)
class TurnedPair:
    """How one pair of frames alone has the second sensor turned, and how fast it turned then.

    Attributes:
        turn_rad: (3,) apparent rotation about the second sensor's axes, and its deviations.
        rate_rad_s: (3,) in the same axes.
        known_apart_s: By how much the second frame was taken later, as the stamps say.
    """

    turn_rad: Array
    sigma_rad: Array
    rate_rad_s: Array
    known_apart_s: float = 0.0


def with_stamps(
    verdict: Verdict, pairs: Sequence[TurnedPair], limits_rad: Array, names: Sequence[str]
) -> Verdict:
    """Return a verdict that says whether an apparent motion follows the turning: then a stamp is off, not the mount.

    Args:
        limits_rad: (3,) accepted rotation of the mount.
        names: Of the two sensors.
    """
    if len(pairs) < MIN_PAIRS or _spread(pairs) < MIN_SPREAD_RAD_S:
        return verdict
    split = split_timing(
        np.array([pair.turn_rad - pair.rate_rad_s * pair.known_apart_s for pair in pairs]),
        np.array([np.diag(np.square(pair.sigma_rad)) for pair in pairs]),
        np.array([pair.rate_rad_s for pair in pairs]),
    )
    offset_ms, sigma_ms = 1e3 * split.offset_s, 1e3 * split.offset_sigma_s
    verdict = replace(
        verdict,
        quantities=(*verdict.quantities, Quantity("time_offset", offset_ms, "ms", MAX_OFFSET_MS, sigma_ms)),
    )
    said = f"{abs(offset_ms):.1f} ± {sigma_ms:.1f} ms too {'early' if offset_ms > 0 else 'late'}"
    is_proven = split.is_timing and abs(offset_ms) - 2 * sigma_ms > MAX_OFFSET_MS
    if not is_proven:
        if verdict.status not in (Status.SUSPECT, Status.FAILED):
            return verdict
        reason = f"it does not follow the rig's turning (time offset {offset_ms:+.1f} ± {sigma_ms:.1f} ms): mounting"
        return replace(verdict, reasons=(*verdict.reasons, reason))
    reason = f"it follows the rig's turning: {names[1]} is stamped {said} against {names[0]} {TIMING}"
    sigma = np.sqrt(np.diag(split.mount_covariance))
    if np.all(np.abs(split.mount) - 2 * sigma < limits_rad):
        told = "the mount itself is within tolerance: correct the stamps, not the calibration"
        return replace(verdict, status=Status.SUSPECT, reasons=(reason, told, *verdict.reasons))
    return replace(verdict, reasons=(*verdict.reasons, reason, "and the mount has moved as well"))


def _spread(pairs: Sequence[TurnedPair]) -> float:
    """Return the RMS by which the pairs' rates differ from their mean, rad/s."""
    rates = np.array([pair.rate_rad_s for pair in pairs])
    return float(np.sqrt(np.square(rates - rates.mean(axis=0)).sum(axis=1).mean()))
