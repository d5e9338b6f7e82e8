"""Clock maps that are solved in one place and applied in another: O(1) per frame, honest about their age.

Who records stamps each frame by the map in force and waits for no estimator. The estimator (`StreamTracker`)
sees the same frames a little later and publishes a new map when it knows better. A map says which sample it was
made at, so that one of an epoch that has ended since is recognised, and how fast its error may grow, so that a
map that is not renewed widens instead of lying.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sensorium.drivers.frame import ClockKind, Frame, StreamInfo
from sensorium.sync.clocks.clamp import CaptureClamp, HeldSamples, widened, within_step
from sensorium.sync.clocks.grid import DRIFT_LIMIT
from sensorium.sync.clocks.model import Stamped, Uncertainty
from sensorium.sync.clocks.tracker import StreamTracker
from sensorium.sync.clocks.unwrap import UNUSABLE, TickKind, Unwrapper, credible_late_ns

DRIFT_PER_S = 2e-7
"""How fast the skew of a crystal may change while no new map comes (ratio per second): drift and warm-up."""
OF_THE_WINDOW = 2.0
"""An error of e at the end of a window of t has a slope of about 2 e / t (a line's end against its middle)."""
AHEAD_WIDTHS = 6.0
AHEAD_NS = 50_000.0
"""A sample that lies ahead of the clock by more than so many bounds, and this, is of a clock that has stepped."""
NO_MAP = -1


@dataclass(frozen=True, slots=True)
class ClockMap:
    """How the frames of a stream are stamped until the next map comes.

    Attributes:
        epoch: Of the clock; ``NO_MAP`` if ticks cannot be mapped (yet) and only ``arrival_bound_ns`` is news.
        method: Whose estimate it is (`sensorium.sync.clocks.model.ONE_WAY` or the followed clock's name).
        ref_ticks, ref_seq: Raw device ticks and sequence number of the sample that it was made at.
        ref_host_ns: Capture time of that sample (the least latency is subtracted already).
        uncertainty: As of that sample.
        spread: 95 % half width of the skew (ratio); the bound grows by it, and by drift, with the map's age.
        arrival_bound_ns: 95 % half width of samples that are stamped by their arrival.
        step_ns: Step of the device's stamps where it is coarse; 0 = finer than matters.
        counts_samples: ``ns_per_tick`` is that of a sample: their numbers are a finer clock than the stamps.
    """

    epoch: int
    method: str
    ref_ticks: int
    ref_seq: int
    ref_host_ns: int
    ns_per_tick: float
    uncertainty: Uncertainty
    spread: float
    arrival_bound_ns: float
    step_ns: float = 0.0
    counts_samples: bool = False

    def pack(self) -> tuple[Any, ...]:
        """Return the fields as plain values, for a message."""
        known = self.uncertainty
        return (
            *(self.epoch, self.method, self.ref_ticks, self.ref_seq, self.ref_host_ns, self.ns_per_tick),
            *(known.statistical_ns, known.floor_ns, known.asymmetry_ns, self.spread, self.arrival_bound_ns),
            *(self.step_ns, self.counts_samples),
        )

    @classmethod
    def unpack(cls, fields: Sequence[Any]) -> "ClockMap":
        """Return the map in the fields of a message."""
        epoch, method, ref_ticks, ref_seq, ref_host_ns, ns_per_tick, *rest = fields
        statistical_ns, floor_ns, asymmetry_ns, *rest = rest
        known = Uncertainty(statistical_ns, floor_ns, asymmetry_ns)
        return cls(epoch, method, ref_ticks, ref_seq, ref_host_ns, ns_per_tick, known, *rest)

    def aged(self, age_ns: int) -> Uncertainty:
        """Return the uncertainty of a sample captured so long after the one that the map was made at."""
        known = self.uncertainty
        age_s = abs(age_ns) * 1e-9
        growth_ns = self.spread * abs(age_ns) + DRIFT_PER_S / 2 * age_s * age_s * 1e9
        return Uncertainty(known.statistical_ns + growth_ns, known.floor_ns, known.asymmetry_ns)


class MapSource:
    """Turns the state of a stream's tracker into maps, one whenever there is news."""

    def __init__(self, tracker: StreamTracker) -> None:
        self._tracker = tracker
        self._modulus = tracker.info.clock.modulus
        self._of: object = None
        self._followed: object = None
        self._arrival_bound_ns = -1.0

    def news(self, last_seq: int) -> ClockMap | None:
        """Return the map as of the newest sample, whose number is ``last_seq``; None while nothing changed."""
        tracker = self._tracker
        stamping, line, model = tracker.stamping, tracker.line, tracker.model
        followed = model if model is not None and model is not tracker.own_model else None
        if stamping is self._of and followed is self._followed:
            return None
        self._of, self._followed = stamping, followed
        bound_ns = tracker.arrival_bound_ns
        if model is None:
            # Arrivals are all there is; how much they jitter changes slowly.
            if abs(bound_ns - self._arrival_bound_ns) <= 0.05 * self._arrival_bound_ns:
                return None
            self._arrival_bound_ns = bound_ns
            return ClockMap(NO_MAP, "", 0, last_seq, 0, 1.0, Uncertainty(0.0, 0.0, 0.0), 0.0, bound_ns)
        ticks = tracker.newest_ticks
        host_ns = model.ref_host_ns + round((ticks - model.ref_ticks) * model.ns_per_tick)
        spread = 0.0
        if followed is None and line is not None:
            spread = OF_THE_WINDOW * (line.statistical_ns + line.floor_ns) / max(line.window_ns, 1e9)
        raw = ticks if self._modulus is None else ticks % self._modulus
        known, rate_ns, counts = model.uncertainty, model.ns_per_tick, False
        if followed is None and tracker.counts_samples and stamping is not None:
            counts, known = True, stamping.uncertainty
            host_ns, rate_ns = tracker.sample_map()
        return ClockMap(
            *(model.epoch, model.method, raw, last_seq, host_ns, rate_ns, known, spread, bound_ns),
            tracker.step_ns,
            counts,
        )


class MapStamper:
    """Stamps the frames of one stream by the map in force; never estimates anything.

    Capture times are never after their arrival and never run backwards. Samples that come late keep the time that
    the clock says: their ticks go on, so the device did. Later than the driver declares to be possible, the
    device's clock may have stood still instead; until it shows which, the bound covers both. A sample that lies
    ahead of the clock shows a step: it is stamped by its arrival, and so are those after it, until a map says more.
    Without a map that fits, a sample is captured at arrival - ``latency.min_ns`` with the wide bound of it; the
    first frame of all is estimated once, here, so that a recording does not begin with that.
    """

    def __init__(self, info: StreamInfo) -> None:
        self.info = info
        self.map: ClockMap | None = None
        latency = info.latency
        self._kind = info.clock.kind
        self._tick_ns = info.clock.tick_ns
        self._min_ns = latency.min_ns
        self._asymmetry_ns = float(latency.min_uncertainty_ns)
        self._declared_ns = float(latency.max_ns - latency.min_ns)
        self._by_arrival = Uncertainty(self._declared_ns, 0.0, self._asymmetry_ns)
        period_ticks = 1e9 / info.rate_hz / self._tick_ns if info.rate_hz > 0 else 0.0
        self._period_ticks = period_ticks
        self._unwrapper = Unwrapper(info.clock, period_ticks, latency.max_ns)
        self._clamp = CaptureClamp()
        self._held = HeldSamples(credible_late_ns(info.clock, latency.max_ns))
        self._epoch = 0
        self._epoch_seq = 0
        self._epoch_ticks = 0
        self._least_ns = 0
        self._ref_ticks = 0
        self._is_mapped = False
        self._is_begun = False
        self._first: ClockMap | None = None

    @property
    def method(self) -> str:
        """Whose estimate stamps the stream now; "" = arrivals."""
        return self.map.method if self.map is not None else ""

    def use(self, found: ClockMap) -> None:
        """Stamp by this map from the next frame on, unless it is of an epoch that has ended since."""
        self.map = found
        self._by_arrival = Uncertainty(found.arrival_bound_ns, 0.0, self._asymmetry_ns)
        self._is_mapped = found.epoch != NO_MAP and found.ref_seq >= self._epoch_seq
        if self._is_mapped:
            self._ref_ticks = self._unwrapper.place(found.ref_ticks, found.ref_seq)
            if found.epoch != self._epoch:
                self._unwrapper.anchor(self._ref_ticks, found.ref_host_ns + self._min_ns)
            self._epoch = found.epoch
            if 0 < self._period_ticks * self._tick_ns < 2 * found.step_ns:
                self._unwrapper.allow_repeats()

    def stamp(self, frame: Frame) -> Stamped:
        """Return the capture times of a frame, in order of arrival."""
        raw, arrival_ns = frame.device_ticks, frame.arrival_ns
        if raw is None:
            if self._kind is not ClockKind.SAMPLES:
                return self._by_arrivals(arrival_ns, arrival_ns.size)
            raw = np.array([frame.seq], np.int64)
        elif self._kind is ClockKind.HOST:
            return self._by_host_stamps(raw, arrival_ns)
        elif self._kind is ClockKind.NONE:
            return self._by_arrivals(arrival_ns, max(raw.size, arrival_ns.size))
        if not self._is_begun:
            self._begin(frame, raw.size)
        if raw.size == 1 and arrival_ns.size == 1:
            return self._one(int(raw[0]), int(arrival_ns[0]), frame.seq)
        return self._block(raw, arrival_ns, frame.seq)

    def _begin(self, frame: Frame, n_ticks: int) -> None:
        self._is_begun = True
        tracker = StreamTracker(self.info)
        tracker.update(frame)
        self._first = MapSource(tracker).news(frame.seq + n_ticks - 1)

    def _one(self, raw: int, arrival_ns: int, seq: int) -> Stamped:
        ticks, kind = self._unwrapper.step(raw, arrival_ns, seq)
        self._note(kind, seq)
        if self._epoch_seq == seq:
            self._epoch_ticks, self._least_ns = ticks, arrival_ns
        found = self.map
        if found is not None and self._is_mapped and kind not in UNUSABLE:
            capture_ns = self._by_map(found, ticks, seq)
            known = found.aged(capture_ns - found.ref_host_ns)
            late_ns = arrival_ns - capture_ns
            is_fit = not found.counts_samples or self._is_counted(found, ticks, seq)
            is_fit = is_fit and not self._is_stale(known)
            if is_fit and late_ns >= self._min_ns - AHEAD_NS - AHEAD_WIDTHS * known.bound95_ns:
                if found.step_ns and not found.counts_samples:
                    least_ns, jitter_ns = arrival_ns - self._min_ns, found.arrival_bound_ns
                    capture_ns, half_ns = within_step(capture_ns, least_ns, found.step_ns, jitter_ns)
                    known = widened(known, half_ns)
                return self._mapped(capture_ns, arrival_ns, late_ns, known)
        if found is not None and not self._is_mapped and kind not in UNUSABLE:
            estimate_ns = self._least_delayed(ticks, arrival_ns, found) - self._min_ns
            return self._mapped(estimate_ns, arrival_ns, arrival_ns - estimate_ns, self._by_arrival)
        capture_ns = self._clamp.one(arrival_ns - self._min_ns, arrival_ns)
        return Stamped(np.array([capture_ns], np.int64), self._clamp.widened(self._by_arrival), self._epoch)

    def _is_stale(self, known: Uncertainty) -> bool:
        """Return whether a map is so old, as after a week's silence, that the arrival alone tells more."""
        return known.bound95_ns > self._declared_ns

    def _by_map(self, found: ClockMap, ticks: int, seq: int) -> int:
        if found.counts_samples:
            return found.ref_host_ns + round((seq - found.ref_seq) * found.ns_per_tick)
        return found.ref_host_ns + round((ticks - self._ref_ticks) * found.ns_per_tick)

    def _is_counted(self, found: ClockMap, ticks: int, seq: int) -> bool:
        """Return whether a sample's stamp is of the step that its number says."""
        elapsed_ns = (seq - found.ref_seq) * found.ns_per_tick
        off_ns = abs((ticks - self._ref_ticks) * self._tick_ns - elapsed_ns)
        return off_ns <= 1.02 * found.step_ns + DRIFT_LIMIT * abs(elapsed_ns) + AHEAD_NS

    def _mapped(self, capture_ns: int, arrival_ns: int, late_ns: int, known: Uncertainty) -> Stamped:
        """Return the stamp of a sample that its clock puts at ``capture_ns``."""
        doubt_ns = self._held.doubt_ns(late_ns, self._by_arrival.statistical_ns)
        if doubt_ns:
            known = widened(known, doubt_ns)
        capture_ns = self._clamp.one(capture_ns, arrival_ns)
        return Stamped(np.array([capture_ns], np.int64), self._clamp.widened(known), self._epoch)

    def _least_delayed(self, ticks: int, arrival_ns: int, found: ClockMap) -> int:
        """Return when a sample would have arrived had it been delayed as little as the least of its epoch.

        For the few samples between a restart and the first map of the new epoch: the crystal's skew is known.
        """
        ns_per_tick = found.ns_per_tick if found.epoch != NO_MAP else self._tick_ns
        elapsed_ns = round((ticks - self._epoch_ticks) * ns_per_tick)
        self._least_ns = min(self._least_ns, arrival_ns - elapsed_ns)
        return elapsed_ns + self._least_ns

    def _block(self, raw: NDArray[np.int64], arrival_ns: NDArray[np.int64], seq: int) -> Stamped:
        unwrapped = self._unwrapper.frame(raw, arrival_ns, seq)
        for index, kind in unwrapped.kinds:
            self._note(kind, seq + index)
        size = max(raw.size, arrival_ns.size)
        found = self.map
        is_usable = unwrapped.usable is None or bool(unwrapped.usable[-1])
        is_by_ticks = found is not None and self._is_mapped and not found.counts_samples
        if found is None or not is_by_ticks or not is_usable or unwrapped.epoch_start:
            return self._by_arrivals(arrival_ns, size)
        ticks = unwrapped.ticks
        if ticks.size == 1:
            ticks = ticks[0] + self._steps(arrival_ns)
        elapsed_ns = (ticks - self._ref_ticks) * found.ns_per_tick
        capture_ns = found.ref_host_ns + np.rint(elapsed_ns).astype(np.int64)
        known = found.aged(int(capture_ns[-1]) - found.ref_host_ns)
        late_ns = int(arrival_ns[-1] - capture_ns[-1])
        is_ahead = late_ns < self._min_ns - AHEAD_NS - AHEAD_WIDTHS * known.bound95_ns
        if is_ahead or self._is_stale(known):
            return self._by_arrivals(arrival_ns, size)
        doubt_ns = self._held.doubt_ns(late_ns, self._by_arrival.statistical_ns)
        capture_ns = self._clamp.block(capture_ns, arrival_ns)
        known = widened(self._clamp.widened(known), doubt_ns + found.step_ns)
        return Stamped(capture_ns, known, self._epoch)

    def _steps(self, arrival_ns: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return ticks since the only stamped sample of a block whose samples arrived one by one."""
        if self._period_ticks > 0:
            steps = np.arange(arrival_ns.size) * self._period_ticks
        else:
            steps = (arrival_ns - arrival_ns[0]) / self._tick_ns
        found: NDArray[np.int64] = np.rint(steps).astype(np.int64)
        return found

    def _note(self, kind: TickKind, seq: int) -> None:
        """Take note of the beginning of an epoch: maps made before it say nothing about it."""
        if kind is TickKind.RESET:
            self._epoch += 1
        if kind is TickKind.RESET or kind is TickKind.FIRST:
            self._epoch_seq = seq
            self._is_mapped = False
        if kind is TickKind.FIRST and self._first is not None:
            self.use(self._first)

    def _by_arrivals(self, arrival_ns: NDArray[np.int64], size: int) -> Stamped:
        if size == 1 == arrival_ns.size:  # the common single stamp, without the cost of arrays
            at_ns = int(arrival_ns[0])
            capture_ns = np.array([self._clamp.one(at_ns - self._min_ns, at_ns)], np.int64)
            return Stamped(capture_ns, self._clamp.widened(self._by_arrival), self._epoch)
        capture_ns = np.broadcast_to(arrival_ns - self._min_ns, (size,)).astype(np.int64)
        capture_ns = self._clamp.block(capture_ns, arrival_ns)
        return Stamped(capture_ns, self._clamp.widened(self._by_arrival), self._epoch)

    def _by_host_stamps(self, ticks: NDArray[np.int64], arrival_ns: NDArray[np.int64]) -> Stamped:
        size = max(ticks.size, arrival_ns.size)
        capture_ns = np.broadcast_to(ticks, (size,)).astype(np.int64)
        capture_ns = self._clamp.block(capture_ns, arrival_ns)
        return Stamped(capture_ns, self._clamp.widened(Uncertainty(0.0, 0.0, self._asymmetry_ns)), 0)
