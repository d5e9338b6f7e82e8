"""Offset of a remote clock from two-way probes, with a hard bound and a much smaller statistical one.

Every request bounds the offset from above (remote receive minus local send), every reply from below. Both
point clouds have an edge; the edges are parallel curves (the clock) one round trip apart (the path). The
estimate is the posterior mean of the curve under exponential excess delays with unknown scales: the closed
form of the two-sided hull (Moon et al. 1999, both directions), not only its edge. The least round trip is
learnt over many windows, so that while one direction is congested the other alone carries the clock. Where
the floors of the delays are softer than that, the halves of each window disagree by more than they state;
that is the floor term. Where delays gather in a narrow core (stamps of network cards), its middle is known
better than its edge and carries the clock (`two_cores`).

Independently of any law of the delays, the tightest bounds of the window form an interval that holds the
offset whatever the asymmetry of the path (interval intersection).
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sensorium.sync.clocks.model import ClockModel, Uncertainty
from sensorium.sync.clocks.two_cores import MIN_CORE, Core, CoreChoice, fit_core
from sensorium.sync.clocks.two_edges import (
    Cloud,
    DriftScale,
    FloatArray,
    Path,
    Posterior,
    Prior,
    SplitHalves,
    fit_curve,
)
from sensorium.timebase import SECOND_NS

MAX_EXCHANGES = 512
"""Memory: so many exchanges at most, whatever the probing rate."""
MIN_EXCHANGES = 6
"""Fewer valid answers say too little for an estimate (liblsl asks for as many)."""
MAX_DRIFT_PPM_S, MAX_SKEW_PPM = 0.3, 500.0
"""What the hard interval takes for impossible to exceed."""
_DRIFT, _MAX_SLOPE = MAX_DRIFT_PPM_S * 1e3, MAX_SKEW_PPM * 1e3
"""The same in ns/s^2 and ns/s."""
MIN_WINDOW_S, MAX_WINDOW_S = 20.0, 100.0
WINDOW_FACTOR = 64.0
"""Twice the factor of spec 2a: the curve bends with the clock, so the window may be longer (flat optimum)."""
FROZEN_AFTER = 4
"""So many repeats in a row: the other side is not measuring any more, somebody repeats its last word."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """One probe: local send, remote receive, remote send, local receive; and the remote clock's boot."""

    sent_ns: int
    remote_received_ns: int
    remote_sent_ns: int
    received_ns: int
    boot_id: int = 0

    @property
    def stamps_ns(self) -> tuple[int, int, int, int]:
        return self.sent_ns, self.remote_received_ns, self.remote_sent_ns, self.received_ns

    @property
    def round_trip_ns(self) -> int:
        return (self.received_ns - self.sent_ns) - (self.remote_sent_ns - self.remote_received_ns)


@dataclass(frozen=True, slots=True)
class OffsetEstimate:
    """Remote minus local clock at one local instant.

    Attributes:
        statistical_ns: Half width from the number and spread of the answers.
        floor_ns: What soft latency floors add to it; both together cover the truth with 95 % probability if
            the least delays of both directions are equal.
        asymmetry_ns: What unequal least delays can add: half the least round trip.
        lower_ns: The offset is not below this, whatever the asymmetry of the path.
        upper_ns: Nor above this.
        epoch: Counts restarts of the remote clock.
    """

    offset_ns: int
    skew_ppm: float
    statistical_ns: float
    floor_ns: float
    asymmetry_ns: float
    lower_ns: int
    upper_ns: int
    epoch: int

    @property
    def bound95_ns(self) -> float:
        return self.statistical_ns + self.floor_ns

    @property
    def total95_ns(self) -> float:
        """The 95 % bound with what unequal paths can add: for whoever uses the offset."""
        return self.bound95_ns + self.asymmetry_ns

    @property
    def hard_ns(self) -> float:
        """Half width of the hard interval."""
        return (self.upper_ns - self.lower_ns) / 2


@dataclass(frozen=True, slots=True)
class TwoWayCounts:
    """What happened to the exchanges so far."""

    accepted: int = 0
    repeated: int = 0
    impossible: int = 0
    restarts: int = 0
    steps: int = 0
    """Times that new answers contradicted the old ones: the remote clock was stepped, unannounced."""


@dataclass(frozen=True, slots=True)
class _Fit:
    """The curve of the newest window, at its end; slopes in ns/s; ``hard_*`` relative to the base offset."""

    end_ns: int
    offset_ns: float
    slope: float
    drift: float
    sigma_ns: float
    slope_sigma: float
    path_ns: float
    path_sigma_ns: float
    hard_lower_ns: float
    hard_upper_ns: float
    hard_slopes: tuple[float, float]
    window_s: float
    is_core: bool


_PATH_WALK_NS2_PER_S = 300.0**2
"""The least delay of a real path wanders (processor states, queues): 3 us in 100 s."""
_MAX_STAMP_NS = 1 << 61
"""Differences of such stamps, and differences of those, fit into int64; 73 years."""
_STAMP_NOISE_NS = 50_000
"""Bounds that contradict each other by less are a late reading of the kernel's clocks, not a step."""
_HALVES_EVERY = 2
_CORE_SAG_NS = 20e3
"""By how much a clock may leave a straight line in the window of a core; the fit bends with it."""
_SPAN_S = 30.0
"""Slopes of neighbouring spans of this length tell how fast the skew changes."""
_HELD_DRIFT_PPM_S = 0.12
"""How the bound grows beyond the newest answer: as for a crystal in a warming case (spec 2a)."""
_SIGMAS_95 = 2.15
"""Half width of 95 % of the posterior in its sigmas: one-sided depths have longer tails than a bell."""


class TwoWayEstimator:
    """Estimates the offset of one remote clock, burst by burst; constant memory, deterministic.

    Args:
        skew_ppm: Known skew of the remote crystal (an earlier session), or None.
    """

    def __init__(self, skew_ppm: float | None = None) -> None:
        self.counts = TwoWayCounts()
        self.epoch = 0
        self._skew_guess_ppm = skew_ppm
        self._repeats_in_row = 0
        self._boot_id: int | None = None
        self._recent: deque[tuple[int, int]] = deque(maxlen=64)
        self._rows: deque[tuple[int, int, int, int]] = deque(maxlen=MAX_EXCHANGES)
        self._base_ns = 0
        self._fit: _Fit | None = None
        self._spread: FloatArray | None = None
        self._window_s = MIN_WINDOW_S
        self._path: Path | None = None
        self._next_path: Path | None = None
        self._path_due_ns = 0
        self._halves = SplitHalves()
        self._choice = CoreChoice()
        self._drift = DriftScale()
        self._drift_due_ns = 0
        self._fits = 0

    @property
    def is_frozen(self) -> bool:
        """True while only repeats of old answers come: the estimate is kept, and no longer fed."""
        return self._repeats_in_row >= FROZEN_AFTER

    @property
    def is_by_edges(self) -> bool:
        """Whether the least delays carry the estimate; else the middle of their core does."""
        return self._fit is None or not self._fit.is_core

    def update(self, burst: Sequence[Exchange]) -> int:
        """Take the answers of one burst, in order; return how many of them were new and possible."""
        accepted = 0
        for exchange in burst:
            if self._boot_id is not None and exchange.boot_id != self._boot_id:
                self._restart()
                self._count()
            self._boot_id = exchange.boot_id
            accepted += self._accept(exchange)
        if accepted and len(self._rows) >= MIN_EXCHANGES and not self._refit():
            newest = [self._rows[n] for n in range(-min(accepted, len(self._rows)), 0)]
            self._restart()
            self._count(steps=1)
            shift_ns = newest[0][1]
            self._base_ns += shift_ns
            self._rows.extend((sent, up - shift_ns, got, low - shift_ns) for sent, up, got, low in newest)
            if len(newest) >= MIN_EXCHANGES and not self._refit():
                self._rows.clear()  # they contradict even each other
        return accepted

    def estimate(self, local_ns: int) -> OffsetEstimate | None:
        """Return the offset at a local instant at or after the newest burst; None before there is any."""
        fit = self._fit
        if fit is None:
            return None
        age_s = max(0.0, (local_ns - fit.end_ns) / SECOND_NS)
        offset_ns = fit.offset_ns + fit.slope * age_s
        drifted_ns = _DRIFT * age_s**2 / 2
        lower = fit.hard_lower_ns + fit.hard_slopes[0] * age_s - drifted_ns
        upper = fit.hard_upper_ns + fit.hard_slopes[1] * age_s + drifted_ns
        statistical_ns = _SIGMAS_95 * float(np.hypot(fit.sigma_ns, fit.slope_sigma * age_s))
        statistical_ns += _HELD_DRIFT_PPM_S * 1e3 * age_s**2 / 2
        floor_ns = 0.0 if fit.is_core else statistical_ns * (self._halves.widening - 1) + self._halves.lean_ns
        return OffsetEstimate(
            self._base_ns + round(float(np.clip(offset_ns, lower, upper))),
            fit.slope * 1e-3,
            statistical_ns,
            floor_ns,
            fit.path_ns,
            self._base_ns + int(np.floor(lower)),
            self._base_ns + int(np.ceil(upper)),
            self.epoch,
        )

    def model(self, local_ns: int) -> ClockModel | None:
        """Return the map from remote nanoseconds (the ticks) to the local host clock, valid about now."""
        found = self.estimate(local_ns)
        if found is None:
            return None
        uncertainty = Uncertainty(
            found.statistical_ns, found.floor_ns, max(found.asymmetry_ns, found.hard_ns)
        )
        ns_per_tick = 1.0 / (1.0 + found.skew_ppm * 1e-6)
        return ClockModel(
            found.epoch,
            "two_way",
            local_ns + found.offset_ns,
            local_ns,
            ns_per_tick,
            (ns_per_tick - 1) * 1e6,
            uncertainty,
        )

    # -- what comes in

    def _accept(self, exchange: Exchange) -> bool:
        key = (exchange.remote_received_ns, exchange.remote_sent_ns)
        if key in self._recent:
            self._repeats_in_row += 1
            self._count(repeated=1)
            return False
        is_possible = (
            max(abs(stamp_ns) for stamp_ns in exchange.stamps_ns) < _MAX_STAMP_NS
            and exchange.round_trip_ns >= 0
            and exchange.remote_sent_ns >= exchange.remote_received_ns
            and (not self._rows or exchange.sent_ns >= self._rows[-1][0])
        )
        if not is_possible:
            self._count(impossible=1)
            return False
        self._recent.append(key)
        self._repeats_in_row = 0
        if not self._rows:
            self._base_ns = exchange.remote_received_ns - exchange.sent_ns
        upper = exchange.remote_received_ns - exchange.sent_ns - self._base_ns
        lower = exchange.remote_sent_ns - exchange.received_ns - self._base_ns
        self._rows.append((exchange.sent_ns, upper, exchange.received_ns, lower))
        self._count(accepted=1)
        return True

    def _count(self, accepted: int = 0, repeated: int = 0, impossible: int = 0, steps: int = 0) -> None:
        old = self.counts
        self.counts = TwoWayCounts(
            old.accepted + accepted,
            old.repeated + repeated,
            old.impossible + impossible,
            self.epoch - old.steps - steps,
            old.steps + steps,
        )

    def _restart(self) -> None:
        """Begin a new epoch: the offset is void; the crystal (skew) and the path are the same."""
        if self._fit is not None:
            self._skew_guess_ppm = self._fit.slope * 1e-3
        self.epoch += 1
        self._rows.clear()
        self._recent.clear()
        self._fit = None
        self._spread = None
        self._window_s = MIN_WINDOW_S

    # -- the fit

    def _refit(self) -> bool:
        """Fit the newest window; False if its answers contradict each other."""
        rows = np.array(self._rows, np.int64)
        end_ns = int(rows[-1, 2])
        first_s = (end_ns - int(rows[0, 0])) / SECOND_NS
        window_s = min(self._window_s, max(first_s, 0.1))
        slopes = _slope_range(rows, end_ns)
        lower, upper = _hard_interval(rows, end_ns, slopes)
        if lower - upper > _STAMP_NOISE_NS or slopes[0] > slopes[1]:
            return False
        lower, upper = min(lower, upper), max(lower, upper)
        keep = rows[:, 0] >= end_ns - int(window_s * SECOND_NS)
        keep[-MIN_EXCHANGES:] = True
        part = rows[keep]
        window_s = max((end_ns - int(part[0, 0])) / SECOND_NS, 1e-3)
        is_due = end_ns >= self._path_due_ns
        if is_due:
            self._path = self._next_path
        cloud = _cloud(part, end_ns, window_s)
        prior = self._prior(end_ns, window_s)
        posterior = fit_curve(cloud, prior, self._path)
        self._compare_halves(cloud, prior, posterior)
        if end_ns >= self._drift_due_ns:
            self._drift_due_ns = end_ns + round(_SPAN_S * SECOND_NS)
            self._learn_drift(rows, end_ns)
        core = self._core(rows, end_ns, window_s, posterior)
        best_curve = core or posterior
        self._fit = _Fit(
            end_ns,
            best_curve.level_ns,
            best_curve.slope / window_s,
            2 * best_curve.bend / window_s**2,
            best_curve.sigma_ns,
            best_curve.slope_sigma / window_s,
            posterior.path_ns,
            posterior.path_sigma_ns,
            lower,
            upper,
            slopes,
            window_s,
            core is not None,
        )
        self._spread = posterior.spread
        if is_due:
            walked = _PATH_WALK_NS2_PER_S * window_s
            self._next_path = Path(posterior.path_ns, float(np.hypot(posterior.path_sigma_ns, walked**0.5)))
            self._path_due_ns = end_ns + int(window_s * SECOND_NS)
        best = _best_window_s(posterior.up_ns, posterior.low_ns, window_s, self._drift.ppm_s)
        self._window_s = float(np.clip(best, self._window_s * 0.9, self._window_s * 1.1 + 2.0))
        return True

    def _core(self, rows: NDArray[np.int64], end_ns: int, window_s: float, edges: Posterior) -> Core | None:
        """Return the curve through the middle of the delays where that is known much better than their edges.

        A middle has use for more exchanges than edges have: its window is as long as the clock is nearly a
        parabola in it. Positions stay in windows of the edges.
        """
        drift_ns_s2 = self._drift.ppm_s * 1e3 / 2
        span_s = min(MAX_WINDOW_S, float(np.sqrt(8 * _CORE_SAG_NS / drift_ns_s2)))
        part = rows[rows[:, 0] >= end_ns - int(span_s * SECOND_NS)]
        if len(part) < 2 * MIN_CORE:
            return None
        bend_ns = drift_ns_s2 / 2 * window_s**2
        core = fit_core(_cloud(part, end_ns, window_s), edges, bend_ns)
        is_better = core is not None and self._choice.is_better(core, edges.sigma_ns * self._halves.widening)
        return core if is_better else None

    def _compare_halves(self, cloud: Cloud, prior: Prior, whole: Posterior) -> None:
        self._fits += 1
        if self._fits % _HALVES_EVERY or len(cloud.at_up) < 4 * MIN_EXCHANGES:
            return
        nearby = replace(prior, centre=(whole.slope, whole.bend), spread=1.7 * whole.spread)
        first, second = (fit_curve(cloud.half(n), nearby, self._path) for n in (0, 1))
        self._halves.update(whole, first, second)

    def _learn_drift(self, rows: NDArray[np.int64], end_ns: int) -> None:
        """Compare the slopes of the two newest spans of :data:`_SPAN_S`."""
        middle_ns = end_ns - round(_SPAN_S * SECOND_NS)
        after = rows[rows[:, 0] >= middle_ns]
        before = rows[(rows[:, 0] < middle_ns) & (rows[:, 0] >= middle_ns - round(_SPAN_S * SECOND_NS))]
        if min(len(before), len(after)) < 3 * MIN_EXCHANGES or self._fit is None:
            return
        slope, reach = self._fit.slope * _SPAN_S, 5e3 * _SPAN_S
        straight = Prior(
            slope, 100 * reach, np.array([1.0]), np.array([1.0]), (slope, 0.0), np.diag([reach, 1.0])
        )
        first = fit_curve(_cloud(before, middle_ns, _SPAN_S), straight, None)
        second = fit_curve(_cloud(after, end_ns, _SPAN_S), straight, None)
        self._drift.update(_SPAN_S, first, second)

    def _prior(self, end_ns: int, window_s: float) -> Prior:
        fit = self._fit
        guess = self._skew_guess_ppm
        if fit is not None:
            elapsed_s = (end_ns - fit.end_ns) / SECOND_NS
            centre = ((fit.slope + fit.drift * elapsed_s) * window_s, fit.drift / 2 * window_s**2)
        else:
            centre = ((guess or 0.0) * 1e3 * window_s, 0.0)
        if self.epoch == 0 or guess is None:
            slope_mean, slope_sigma = 0.0, MAX_SKEW_PPM * 1e3 * window_s
        else:
            slope_mean, slope_sigma = guess * 1e3 * window_s, 2e3 * window_s
        bend_sigmas = DriftScale.CANDIDATES_PPM_S / 2 * 1e3 / 2 * window_s**2
        spread = self._spread
        if spread is None:
            spread = np.diag([slope_sigma if fit is None else 1e3 * window_s, bend_sigmas[-1]])
        return Prior(slope_mean, slope_sigma, bend_sigmas, self._drift.weights, centre, spread)


def _cloud(rows: NDArray[np.int64], end_ns: int, window_s: float) -> Cloud:
    scale = SECOND_NS * window_s
    return Cloud(
        (rows[:, 0] - end_ns) / scale,
        rows[:, 1].astype(np.float64),
        (rows[:, 2] - end_ns) / scale,
        rows[:, 3].astype(np.float64),
    )


def _best_window_s(up_depth_ns: float, low_depth_ns: float, span_s: float, drift_ppm_s: float) -> float:
    """Return the window that balances the depth of the edges against unmodelled drift (spec 2a)."""
    density = 1 / max(up_depth_ns, low_depth_ns, 1.0) + 0.5 / max(min(up_depth_ns, low_depth_ns), 1.0)
    window_s = (WINDOW_FACTOR * span_s / density / (drift_ppm_s * 1e3)) ** (1 / 3)
    return float(np.clip(window_s, MIN_WINDOW_S, MAX_WINDOW_S))


def _slope_range(rows: NDArray[np.int64], end_ns: int) -> tuple[float, float]:
    """Return what the slope (ns/s) at ``end_ns`` can be at all.

    An upper bound at one time and a lower bound at another limit how far the offset went in between.
    """
    step = max(1, len(rows) // 64)
    starts = np.arange(0, len(rows), step)
    up = rows[[start + int(rows[start : start + step, 1].argmin()) for start in starts]]
    low = rows[[start + int(rows[start : start + step, 3].argmax()) for start in starts]]
    at_up, at_low = (up[:, 0] - end_ns) / SECOND_NS, (low[:, 2] - end_ns) / SECOND_NS
    apart_s = at_up[:, None] - at_low
    moved_ns = (up[:, 1][:, None] - low[:, 3]).astype(np.float64) + _STAMP_NOISE_NS
    drifted = _DRIFT * np.maximum(-at_up[:, None], -at_low)
    with np.errstate(divide="ignore"):
        limits = moved_ns / apart_s
    highest = np.where(apart_s > 0, limits + drifted, np.inf).min()
    lowest = np.where(apart_s < 0, limits - drifted, -np.inf).max()
    return max(float(lowest), -_MAX_SLOPE), min(float(highest), _MAX_SLOPE)


def _hard_interval(rows: NDArray[np.int64], end_ns: int, slopes: tuple[float, float]) -> tuple[float, float]:
    """Return the tightest lower and upper bound of the offset at ``end_ns``."""
    age_up = (end_ns - rows[:, 0]) / SECOND_NS
    age_low = (end_ns - rows[:, 2]) / SECOND_NS
    upper = rows[:, 1] + slopes[1] * age_up + _DRIFT / 2 * age_up**2
    lower = rows[:, 3] + slopes[0] * age_low - _DRIFT / 2 * age_low**2
    return float(lower.max()), float(upper.min())
