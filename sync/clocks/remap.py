"""Stamps of a stored stream, estimated again from both sides: before and after each sample.

The causal tracker decides what belongs together (wraps, resets, outliers); then each epoch is solved in windows
centred on the time asked for, where an envelope is known several times better than at its end. A re-map is kept
beside the episode; the episode does not change.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sensorium.drivers.frame import ClockKind, Frame, StreamInfo
from sensorium.sync.clocks.crystal import DRIFT_SPREAD_PER_S, TYPICAL_JERK
from sensorium.sync.clocks.envelope import FEW, Prior, Proposal, fit
from sensorium.sync.clocks.model import Stamped, Uncertainty
from sensorium.sync.clocks.oneway import SLOTS_PER_WINDOW, FloatArray, highest_line_below
from sensorium.sync.clocks.tracker import StreamTracker

WINDOW_FACTOR = 2.0
"""A centred window may be longer than a causal one: the cubic part of the crystal's motion cancels."""
ANSWERS_PER_WINDOW = 8
SLOPE_SPREAD = 1e-4
JERK_HOLDS_S = 48.0
"""In what time a crystal's jerk changes by itself: a swing of 300 s / 2 pi."""


class Stamps(Protocol):
    """What is stored of a frame's time; a :class:`Frame` and an episode's stamp row both have it."""

    @property
    def seq(self) -> int: ...
    @property
    def count(self) -> int: ...
    @property
    def device_ticks(self) -> NDArray[np.int64] | None: ...
    @property
    def arrival_ns(self) -> NDArray[np.int64]: ...


@dataclass(slots=True)
class _Epoch:
    """Samples of one epoch, and what the causal pass found out about them.

    Attributes:
        origin_ticks: Of ticks, or of samples where ``counts_samples``: their numbers are the finer clock.
        count_ns: Device time from one to the next.
    """

    origin_ticks: int
    origin_host_ns: int
    device_ns: list[FloatArray] = field(default_factory=list)
    offset_ns: list[FloatArray] = field(default_factory=list)
    windows_ns: list[float] = field(default_factory=list)
    scale_ns: float = 1e6
    wander_ns: float = 0.0
    jerk_per_s2: float = TYPICAL_JERK
    count_ns: float = 1.0
    counts_samples: bool = False
    evidence: FloatArray | None = None


class _Epochs:
    """Recorder of the causal pass."""

    def __init__(self) -> None:
        self.by_number: dict[int, _Epoch] = {}
        self._current: _Epoch | None = None

    def at(self, arrival_ns: int) -> int:
        """Return the epoch of a sample by its arrival: a step is known only some time after it."""
        began = [number for number, epoch in self.by_number.items() if epoch.origin_host_ns <= arrival_ns]
        return max(began, default=0)

    def begin(self, epoch: int, origin_ticks: int, origin_host_ns: int) -> None:
        self._current = self.by_number[epoch] = _Epoch(origin_ticks, origin_host_ns)

    def take(self, device_ns: FloatArray, offset_ns: FloatArray) -> None:
        assert self._current is not None
        self._current.device_ns.append(device_ns)
        self._current.offset_ns.append(offset_ns)


@dataclass(frozen=True, slots=True)
class Curve:
    """Host minus device time at (n,) nodes of device time, with its uncertainty; cubic in between."""

    at_ns: FloatArray
    offset_ns: FloatArray
    slope: FloatArray
    statistical_ns: FloatArray
    floor_ns: FloatArray

    def offset_at(self, device_ns: FloatArray) -> FloatArray:
        """Return host minus device time at (k,) device times (Hermite; straight beyond the ends)."""
        if self.at_ns.size == 1:
            alone: FloatArray = self.offset_ns[0] + self.slope[0] * (device_ns - self.at_ns[0])
            return alone
        left = np.clip(np.searchsorted(self.at_ns, device_ns) - 1, 0, self.at_ns.size - 2)
        width = self.at_ns[left + 1] - self.at_ns[left]
        inside = np.clip(device_ns, self.at_ns[0], self.at_ns[-1])
        t = (inside - self.at_ns[left]) / width
        rise = self.offset_ns[left + 1] - self.offset_ns[left]
        begin, end = self.slope[left] * width - rise, rise - self.slope[left + 1] * width
        value = self.offset_ns[left] + t * rise + t * (1 - t) * ((1 - t) * begin + t * end)
        beyond = np.where(device_ns < inside, self.slope[0], self.slope[-1]) * (device_ns - inside)
        offset: FloatArray = value + beyond
        return offset


def remap(info: StreamInfo, rows: Iterable[Stamps]) -> list[Stamped]:
    """Return new stamps for the rows of a stream, in order.

    Frames that the tracker stamped by arrival (no device clock, frozen or repeated ticks) keep that stamp.
    """
    epochs = _Epochs()
    tracker = StreamTracker(info, epochs)
    causal: list[Stamped] = []
    ticks_of: list[NDArray[np.int64] | None] = []
    arrivals: list[NDArray[np.int64]] = []
    seqs: list[int] = []
    for row in rows:
        frame = Frame(info.name, row.seq, row.count, row.device_ticks, row.arrival_ns, b"")
        stamped = tracker.update(frame)
        causal.append(stamped)
        arrivals.append(row.arrival_ns)
        seqs.append(row.seq)
        raw = row.device_ticks
        if raw is None:
            raw = np.array([row.seq], np.int64)
        is_mapped = tracker.is_on_device_clock and info.clock.kind is not ClockKind.HOST
        is_whole = raw.size == stamped.capture_ns.size
        ticks_of.append(tracker.unwrapped(raw) if is_mapped and is_whole else None)
        line = tracker.line
        epoch = epochs.by_number.get(stamped.epoch)
        if line is not None and epoch is not None:
            epoch.windows_ns.append(line.window_ns)
            epoch.scale_ns = line.scale_ns
            epoch.count_ns, epoch.counts_samples = tracker.count_ns, tracker.counts_samples
            epoch.wander_ns = max(epoch.wander_ns, line.wander_ns)
            epoch.jerk_per_s2 = line.jerk_per_s2
            epoch.evidence = tracker.evidence
    step_ns = tracker.step_ns
    resolution_ns = info.clock.tick_ns if info.clock.kind in (ClockKind.FREE, ClockKind.PTP) else 0.0
    curves = {
        number: _solve(epoch, 0.0 if epoch.counts_samples or step_ns else resolution_ns)
        for number, epoch in epochs.by_number.items()
    }
    result = []
    last_ns = -(1 << 62)
    for stamped, ticks, seq, arrival_ns in zip(causal, ticks_of, seqs, arrivals, strict=True):
        number = epochs.at(int(arrival_ns[-1]))
        curve = curves.get(number)
        if ticks is not None and curve is not None:
            stamped = replace(stamped, epoch=number)
            epoch = epochs.by_number[number]
            counts = seq + np.arange(ticks.size) if epoch.counts_samples else ticks
            # Cut off stamps lie anywhere in their step; its middle is nearest to all of them.
            half_ns = 0.0 if epoch.counts_samples else step_ns / 2
            stamped = _stamp(info, stamped, counts, arrival_ns, epoch, curve, last_ns, half_ns)
        last_ns = int(stamped.capture_ns[-1])
        result.append(stamped)
    return result


def _stamp(
    info: StreamInfo,
    causal: Stamped,
    counts: NDArray[np.int64],
    arrival_ns: NDArray[np.int64],
    epoch: _Epoch,
    curve: Curve,
    last_ns: int,
    half_ns: float,
) -> Stamped:
    elapsed_ns = (counts - epoch.origin_ticks) * epoch.count_ns
    mapped_ns = elapsed_ns + curve.offset_at(elapsed_ns) + half_ns
    capture_ns = epoch.origin_host_ns + np.rint(mapped_ns).astype(np.int64) - info.latency.min_ns
    capture_ns = np.maximum.accumulate(np.maximum(capture_ns, last_ns))
    newest = elapsed_ns[-1:]
    uncertainty = Uncertainty(
        float(np.interp(newest, curve.at_ns, curve.statistical_ns)[0]),
        float(np.interp(newest, curve.at_ns, curve.floor_ns)[0]) + half_ns,
        causal.uncertainty.asymmetry_ns,
    )
    return Stamped(np.minimum(capture_ns, arrival_ns), uncertainty, causal.epoch)


def _solve(epoch: _Epoch, resolution_ns: float) -> Curve | None:
    """Return the two-sided curve of an epoch; None if it is too short to beat the causal stamps."""
    if not epoch.device_ns:
        return None
    x, d = np.concatenate(epoch.device_ns), np.concatenate(epoch.offset_ns)
    if x.size < 2 * FEW or epoch.evidence is None:
        return None
    length_ns = float(x[-1] - x[0])
    window_ns = min(WINDOW_FACTOR * float(np.percentile(epoch.windows_ns, 75)), length_ns)
    x, d, per_slot = _thin(x, d, window_ns / SLOTS_PER_WINDOW)
    answers = max(2, round(length_ns / window_ns * ANSWERS_PER_WINDOW))
    nodes = np.linspace(x[0], x[-1], answers)
    half_ns = window_ns / 2
    reference: tuple[float, float, float, float] | None = None
    proposal: Proposal | None = None
    rows = []
    for node in nodes:
        middle = min(max(float(node), float(x[0]) + half_ns), float(x[-1]) - half_ns)
        part = slice(*np.searchsorted(x, [middle - half_ns, middle + half_ns + 1]))
        if part.stop - part.start < FEW:
            continue
        at, wide = x[part] - middle, d[part]
        if reference is None:
            slope, height, mean = highest_line_below(at, wide, -3 * SLOPE_SPREAD, 3 * SLOPE_SPREAD)
            reference = (middle, height - slope * mean, slope, 0.0)
        since = middle - reference[0]
        drift = reference[3]
        slope = reference[2] + drift * since
        offset = reference[1] + reference[2] * since + drift * since * since / 2
        excess = wide - (offset + slope * at + drift * at * at / 2)
        prior = Prior(
            slope_mean_ns=-slope * half_ns,
            slope_spread_ns=SLOPE_SPREAD * half_ns,
            bend_mean_ns=-drift * half_ns * half_ns / 2,
            bend_spread_ns=DRIFT_SPREAD_PER_S * 1e-9 * half_ns * half_ns / 2,
            scale_ns=epoch.scale_ns / per_slot,
            scale_weight=2.0,
        )
        answer_at = (float(node) - middle) / half_ns
        found = fit(at / half_ns, excess, prior, epoch.evidence, proposal, answer_at)
        proposal = found.proposal
        # The curve through the answer; `reference` continues it in the next window.
        new_drift = drift + 2 * found.bend_ns / (half_ns * half_ns)
        here = float(node) - middle
        value = offset + slope * here + drift * here * here / 2 + found.end_ns
        new_slope = slope + found.slope_ns / half_ns + new_drift * here
        reference = (float(node), value, new_slope, new_drift)
        floor_ns = _model_error_ns(epoch.jerk_per_s2, window_ns, answer_at) + resolution_ns + epoch.wander_ns
        rows.append((float(node), value, new_slope, found.bound95_ns, floor_ns))
    if not rows:
        return None
    return Curve(*(np.array(column) for column in zip(*rows, strict=True)))


def _thin(x: FloatArray, d: FloatArray, slot_ns: float) -> tuple[FloatArray, FloatArray, float]:
    """Keep the sample of least offset in each slot; return also how many there were per slot."""
    slots = np.floor((x - x[0]) / slot_ns).astype(np.int64)
    trend = np.polyfit(x - x[0], d, 1)
    order = np.lexsort((d - np.polyval(trend, x - x[0]), slots))
    first = np.concatenate(([True], np.diff(slots[order]) > 0))
    kept = np.sort(order[first])
    return x[kept], d[kept], x.size / kept.size


def _model_error_ns(jerk_per_s2: float, window_ns: float, answer_at: float) -> float:
    """Return what a parabola misses of a crystal's motion: the cubic part off the middle, the quartic in it.

    Least squares on -1 ... 1: t^3 leaves t^3 - 3/5 t, and t^4 leaves 3/35 at the middle.
    """
    half_s = window_ns * 0.5e-9
    cubic = jerk_per_s2 / 6 * half_s**3 * abs(answer_at**3 - 0.6 * answer_at)
    quartic = jerk_per_s2 / JERK_HOLDS_S / 24 * half_s**4 * 3 / 35
    return (cubic + quartic) * 1e9
