"""Which sensor moved, when, and whether it moved at all: what several verdicts say together."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from sensorium.calibration.geometry import Array
from sensorium.verdict import Status, Verdict

TIMING = "(timing)"
"""Stands in the first reason of a verdict whose cause is a time offset."""
_ALARM = (Status.SUSPECT, Status.FAILED)


def moved_sensors(verdicts: Iterable[Verdict]) -> tuple[str, ...]:
    """Return the sensors that explain the alarms of pairs ``a~b`` best; empty when nothing moved.

    A sensor that moved shows in every pair it belongs to, and in no other. The smallest set of sensors that
    covers all alarmed pairs is returned; sensors with an ok pair are taken only if nothing else explains an
    alarm. Two names from a single pair mean that it cannot be told which of the two moved. Alarms that follow
    the rig's turning (timing) are left out.
    """
    alarmed: list[tuple[str, ...]] = []
    cleared: set[str] = set()
    for verdict in verdicts:
        pair = tuple(verdict.subject.split("~"))
        if len(pair) != 2 or is_timing(verdict):
            continue
        if verdict.status in _ALARM:
            alarmed.append(pair)
        elif verdict.status is Status.OK:
            cleared.update(pair)
    blamed: set[str] = set()
    remaining = list(alarmed)
    while remaining:
        names = sorted({name for pair in remaining for name in pair})
        counts = {name: sum(name in pair for pair in remaining) - 0.5 * (name in cleared) for name in names}
        most = max(counts.values())
        chosen = {name for name in names if counts[name] == most}
        blamed |= chosen
        remaining = [pair for pair in remaining if not chosen & set(pair)]
    return tuple(sorted(blamed))


def is_timing(verdict: Verdict) -> bool:
    """Return whether stamps, not a mount, are said to be the cause."""
    return any(TIMING in reason for reason in verdict.reasons[:1])


@dataclass(frozen=True, slots=True)
class Window:
    """When a verdict's data was captured, host ns."""

    start_ns: int
    end_ns: int
    verdict: Verdict


def moved_between(windows: Sequence[Window]) -> tuple[int, int] | None:
    """Return the span in which a pair went from ok to alarm for good, or None if it did not.

    Args:
        windows: Of one pair, in order of time.
    """
    judged = [window for window in windows if window.verdict.status is not Status.INSUFFICIENT]
    first = len(judged)
    while first > 0 and judged[first - 1].verdict.status in _ALARM:
        first -= 1
    if first == len(judged):
        return None
    start_ns = judged[first - 1].end_ns if first else judged[0].start_ns
    return start_ns, max(judged[first].end_ns, start_ns)


@dataclass(frozen=True, slots=True, eq=False)
class TimingSplit:
    """How much of an apparent motion follows the rig's turning (time offset) and how much stays (mount).

    Attributes:
        mount: (k,) rotation (rad) and what else the motions hold (translation, m) that is there at rest too.
        offset_s: The second sensor is stamped this much too early.
    """

    mount: Array
    mount_covariance: Array
    offset_s: float
    offset_sigma_s: float

    @property
    def is_timing(self) -> bool:
        """A time offset is proven (three sigma) and beyond 2 ms, where it begins to matter."""
        return abs(self.offset_s) > max(3 * self.offset_sigma_s, 2e-3)


def split_timing(motions: Array, covariances: Array, rates_rad_s: Array) -> TimingSplit:
    """Tell a time offset from a moved mount: regress apparent motions on the angular rate at each of them.

    A sensor stamped too early by ``offset`` is seen turned by rate times offset.

    Args:
        motions: (N, k) apparent motions, each from frames at one angular rate (single keyframes or pairs); the
            rotation about three axes first, then what a stamp does not move.
        covariances: (N, k, k) of each; rates_rad_s: (N, 3) in the axes of the motions.
    """
    size = np.asarray(motions).shape[1]
    designs = [np.column_stack([np.eye(size), np.append(rate, np.zeros(size - 3))]) for rate in rates_rad_s]
    weights = np.linalg.inv(covariances)
    trust = np.ones(len(motions))
    for _ in range(5):  # single frames have false tops: reweight by Mahalanobis distance
        information, pull = 1e-9 * np.eye(size + 1), np.zeros(size + 1)
        for design, weight, motion, share in zip(designs, weights, motions, trust, strict=True):
            information += share * design.T @ weight @ design
            pull += share * design.T @ weight @ motion
        solution = np.linalg.solve(information, pull)
        left = [motion - design @ solution for design, motion in zip(designs, motions, strict=True)]
        squares = np.array([gap @ weight @ gap for gap, weight in zip(left, weights, strict=True)])
        trust = 1 / (1 + squares / (2.0 * size))
    spread = max(float(np.average(squares, weights=trust)) / size, 1.0)
    covariance = spread * np.linalg.inv(information)
    return TimingSplit(
        np.asarray(solution[:size], np.float64),
        np.asarray(covariance[:size, :size], np.float64),
        float(solution[size]),
        float(np.sqrt(covariance[size, size])),
    )
