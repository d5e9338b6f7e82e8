"""Clock offsets that somebody else measured: XDF files of LabRecorder, logs of a time daemon.

Each reading says by how much one clock was behind another, give or take a symmetric error. `OffsetTracker`
follows offset and skew causally, `smooth` from both sides. Readings that repeat exactly are not readings: a
library returns its cached value after the sender has died (specs/clocks.md 0.5), and a line fitted through them
shifts every stamp.
"""

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating[Any]]

STEP_NS = 1e9
"""An offset that changes by more than this between readings belongs to a restarted clock (pyxdf's limit)."""
FROZEN_AFTER = 3
"""So many exact repeats in a row: the source is dead or its clock is not being read."""
NOISE_NS = 35e3
"""One sigma of a reading before any were seen (a best-of-8 probe on one host, measured)."""
WANDER_NS = 6e3
"""Random walk of the offset, ns per root second: probes are made of software, not crystals."""
DRIFT = 1e-8
"""Random walk of the skew, ratio per root second."""
OUTLIER_SIGMAS = 3.0
SKEW_SPREAD_FRESH, SKEW_SPREAD_CARRIED = 20e-6, 1e-6


def live_readings(at_ns: FloatArray, offset_ns: FloatArray) -> tuple[NDArray[np.bool_], list[slice]]:
    """Return which readings are no exact repeat of the one before, and the epochs.

    A new epoch begins where the source's clock runs back or its offset jumps by more than a second.
    """
    is_live = np.concatenate(([True], np.diff(offset_ns) != 0))
    breaks = (np.diff(at_ns) < 0) | (np.abs(np.diff(offset_ns)) > STEP_NS)
    edges = [0, *(np.flatnonzero(breaks) + 1).tolist(), at_ns.size]
    return is_live, [slice(begin, end) for begin, end in itertools.pairwise(edges)]


def frozen_runs(offset_ns: FloatArray) -> list[slice]:
    """Return the runs of at least `FROZEN_AFTER` exact repeats, each without the live reading it repeats."""
    changes = np.flatnonzero(np.concatenate(([True], np.diff(offset_ns) != 0, [True])))
    return [
        slice(int(begin) + 1, int(end))
        for begin, end in itertools.pairwise(changes)
        if end - begin > FROZEN_AFTER
    ]


@dataclass(frozen=True, slots=True)
class _State:
    """Offset and skew at a time, with their covariance."""

    at_ns: float
    offset_ns: float
    skew: float
    p00: float
    p01: float
    p11: float

    def advance(self, at_ns: float) -> "_State":
        dt = at_ns - self.at_ns
        seconds = abs(dt) * 1e-9
        return _State(
            at_ns,
            self.offset_ns + self.skew * dt,
            self.skew,
            self.p00 + 2 * dt * self.p01 + dt * dt * self.p11 + WANDER_NS * WANDER_NS * seconds,
            self.p01 + dt * self.p11,
            self.p11 + DRIFT * DRIFT * seconds,
        )


class OffsetTracker:
    """Causal offset and skew from readings of unknown, symmetric error; constant memory.

    Attributes:
        epoch: Counts restarts of the source's clock; the skew is kept across them, the offset is not.
        repeats: Exact repeats in a row, now. Frozen from `FROZEN_AFTER` on.
    """

    def __init__(self, noise_ns: float = NOISE_NS) -> None:
        self.epoch = 0
        self.repeats = 0
        self._noise_ns = noise_ns
        self._state: _State | None = None
        self._last_ns = -math.inf
        self._last_offset_ns = math.nan

    @property
    def is_frozen(self) -> bool:
        return self.repeats >= FROZEN_AFTER

    @property
    def skew_ppm(self) -> float:
        return self._state.skew * 1e6 if self._state is not None else 0.0

    def update(self, at_ns: float, offset_ns: float) -> bool:
        """Take a reading; return False if it is an exact repeat and was left out."""
        if offset_ns == self._last_offset_ns:
            self.repeats += 1
            self._last_ns = at_ns
            return False
        state = self._state
        if state is None:
            self._state = self._fresh(at_ns, offset_ns, 0.0, SKEW_SPREAD_FRESH)
        elif at_ns < self._last_ns or abs(offset_ns - self._last_offset_ns) > STEP_NS:
            self.epoch += 1
            self._state = self._fresh(at_ns, offset_ns, state.skew, SKEW_SPREAD_CARRIED)
        else:
            self._state = self._correct(state.advance(at_ns), offset_ns)
        self.repeats, self._last_ns, self._last_offset_ns = 0, at_ns, offset_ns
        return True

    def offset_at(self, at_ns: float) -> tuple[float, float]:
        """Return the offset (ns) at a time of the source's clock, and its one-sigma uncertainty.

        Raises:
            ValueError: If there is no reading yet.
        """
        if self._state is None:
            raise ValueError("no offset reading yet")
        now = self._state.advance(at_ns)
        return now.offset_ns, math.sqrt(now.p00)

    def _fresh(self, at_ns: float, offset_ns: float, skew: float, spread: float) -> _State:
        return _State(at_ns, offset_ns, skew, self._noise_ns**2, 0.0, spread * spread)

    def _correct(self, state: _State, offset_ns: float) -> _State:
        surprise = offset_ns - state.offset_ns
        expected = state.p00 + self._noise_ns**2
        # A reading far out pulls like one at three sigma, so that a lasting change still gets through.
        weight = min(1.0, OUTLIER_SIGMAS * math.sqrt(expected) / max(abs(surprise), 1e-9))
        gain0, gain1 = state.p00 / expected * weight, state.p01 / expected * weight
        return _State(
            state.at_ns,
            state.offset_ns + gain0 * surprise,
            state.skew + gain1 * surprise,
            state.p00 * (1 - gain0),
            state.p01 * (1 - gain0),
            state.p11 - gain1 * state.p01,
        )


@dataclass(frozen=True, slots=True)
class OffsetLine:
    """Two-sided estimate of one epoch: a straight line through its live readings."""

    begin_ns: float
    end_ns: float
    offset_ns: float
    skew: float
    residual_rms_ns: float
    live: int
    repeats: int

    def offset_at(self, at_ns: FloatArray) -> FloatArray:
        """Return the offset (ns) at (k,) times of the source's clock."""
        offset: FloatArray = self.offset_ns + self.skew * (at_ns - self.begin_ns)
        return offset


def smooth(at_ns: FloatArray, offset_ns: FloatArray) -> list[OffsetLine]:
    """Return one robust line (Huber, at 1.5 sigma) per epoch, exact repeats left out."""
    is_live, epochs = live_readings(at_ns, offset_ns)
    lines = []
    for epoch in epochs:
        kept = np.flatnonzero(is_live[epoch]) + epoch.start
        x, y = at_ns[kept] - at_ns[kept[0]], offset_ns[kept]
        weight = np.ones(kept.size)
        slope, level = 0.0, float(np.median(y))
        for _ in range(20 if kept.size > 2 else 0):
            total = weight.sum()
            mean_x, mean_y = float(weight @ x / total), float(weight @ y / total)
            slope = float((weight * (x - mean_x)) @ (y - mean_y) / ((weight * (x - mean_x)) @ (x - mean_x)))
            level = mean_y - slope * mean_x
            distance = np.abs(y - level - slope * x)
            limit = 1.5 * 1.4826 * max(float(np.median(distance)), 1.0)
            weight = np.minimum(1.0, limit / np.maximum(distance, 1e-9))
        rms = float(np.sqrt(np.mean((y - level - slope * x) ** 2)))
        repeats = epoch.stop - epoch.start - kept.size
        lines.append(
            OffsetLine(float(at_ns[kept[0]]), float(at_ns[kept[-1]]), level, slope, rms, kept.size, repeats)
        )
    return lines
