"""The clock of one stream: frames in, capture times with an honest uncertainty out."""

from collections import deque
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sensorium.drivers.frame import ClockKind, DeviceClock, Encoding, Frame, StreamInfo
from sensorium.sync.clocks.clamp import CaptureClamp, HeldSamples, widened, within_step
from sensorium.sync.clocks.epochs import MATURE, Epochs, Recorder, Stamping
from sensorium.sync.clocks.grid import DRIFT_LIMIT, STEADY_AFTER, Grid, TickGrid
from sensorium.sync.clocks.model import ONE_WAY, ClockEvent, ClockEventKind, ClockModel, Stamped, Uncertainty
from sensorium.sync.clocks.oneway import FloatArray, Line
from sensorium.sync.clocks.unwrap import UNUSABLE, TickKind, Unwrapped, Unwrapper, credible_late_ns

_FARTHEST_NS = 2.0**61
"""73 years from an epoch's origin; ticks beyond it are nonsense, and sums of them would leave int64."""
MAX_EVENTS = 256
"""Events kept until somebody takes them; more are counted in the last one taken."""
STALL_NS = 50_000_000
CHECKED_EVERY = 256
MOST_UNSURE = 64
AHEAD_NS = 2_000_000.0
"""How far a followed clock may put a capture after its arrival, beside its bounds."""

_EVENT_OF = {
    TickKind.RESET: ClockEventKind.RESET,
    TickKind.BACKWARDS: ClockEventKind.BACKWARDS,
    TickKind.DUPLICATE: ClockEventKind.DUPLICATE,
    TickKind.FROZEN: ClockEventKind.FROZEN,
}


class StreamTracker:
    """Maps the stamps of one stream to host time. Deterministic: equal frames in, equal stamps out.

    A stamp may use samples that arrived up to the end of its own frame, none later. Capture times are the
    envelope's estimate minus ``latency.min_ns``, never after the arrival, and never run backwards; what has to be
    moved for that widens the bound. By clock kind:

    - ``FREE``, ``PTP``: device ticks against arrivals. With one arrival for k ticks, the arrival is that of
      the last tick.
    - ``SAMPLES``: ticks (or sequence numbers, if the driver gives none) count samples. The stamp is that of
      the block's first sample, which was captured one block before it could arrive: the driver's declared
      ``latency.min_ns`` covers the length of the block.
    - ``HOST``: ticks are host nanoseconds already.
    - ``NONE``: capture = arrival - ``latency.min_ns``. The statistical term is then the observed 95 % latency
      jitter against the nominal rate, or the declared latency range where that cannot be observed, as of streams
      of a foreign recording: their rate was measured from the arrivals themselves.
    """

    def __init__(self, info: StreamInfo, recorder: Recorder | None = None) -> None:
        self.info = info
        kind = info.clock.kind
        self._kind = kind
        self._clock = info.clock
        # The rate of a foreign recording's stream was measured from these very arrivals: nothing to hold against them.
        self._counts_arrivals = (
            kind is ClockKind.NONE and info.rate_hz > 0 and info.encoding != Encoding.MESSAGE
        )
        if self._counts_arrivals:
            # No device clock: the count of samples at the nominal rate shows how much the arrivals jitter.
            self._clock = DeviceClock(ClockKind.SAMPLES, round(1e12 / info.rate_hz), 1000)
        elif kind is ClockKind.HOST:
            self._clock = DeviceClock(ClockKind.HOST)
        self._tick_ns = self._clock.tick_ns
        period_ticks = 1e9 / info.rate_hz / self._tick_ns if info.rate_hz > 0 else 0.0
        self._unwrapper = Unwrapper(self._clock, period_ticks, info.latency.max_ns)
        self._period_ticks = period_ticks
        self._asymmetry_ns = float(info.latency.min_uncertainty_ns)
        self._min_ns, self._max_ns = info.latency.min_ns, info.latency.max_ns
        self._held = HeldSamples(credible_late_ns(self._clock, info.latency.max_ns))
        # Counters of samples are exact; clocks are cut off to whole ticks.
        is_cut = self._clock.kind in (ClockKind.FREE, ClockKind.PTP)
        self._grid = TickGrid(self._tick_ns, period_ticks, is_cut)
        self._unsure: list[tuple[TickKind, int, int]] = []
        self._count_ns = self._step_ns = 0.0
        if self._grid.state is Grid.COARSE:
            self._step_ns = self._grid.step_ns
        self._resolution_ns = self._tick_ns if is_cut and not self._step_ns else 0.0
        self._steady_ref = (0, 0)
        self._newest_seq = 0
        self._until_check = STEADY_AFTER
        self._events: deque[ClockEvent] = deque(maxlen=MAX_EVENTS)
        self._dropped_events = 0
        self._last_kind = TickKind.NEXT
        self._has_arrived = False
        self._last_arrival_ns = 0
        rate_hz = info.message_rate_hz
        self._stall_ns = STALL_NS + 5e9 / rate_hz if rate_hz > 0 else float("inf")
        self._clamp = CaptureClamp()
        self._epochs = Epochs(
            self._tick_ns,
            self._resolution_ns,
            self._asymmetry_ns,
            info.latency.max_ns,
            self._note,
            recorder,
        )
        self._epochs.step_ns = self._step_ns
        self._tick_epoch = -1
        self._n_steps = 0
        self._is_on_device_clock = False
        self._model: ClockModel | None = None
        self._model_of: object = None
        self._followed: ClockModel | None = None
        self._followed_source = 0
        self._follow_epochs = 0

    @property
    def stamping(self) -> Stamping | None:
        """What frames are stamped by; a new object whenever there is news."""
        return self._epochs.stamping

    @property
    def line(self) -> Line | None:
        """The estimator's current line, with its window and the hardness of the latency floor."""
        stamping = self._epochs.stamping
        return stamping.line if stamping is not None else None

    @property
    def evidence(self) -> FloatArray | None:
        """What the samples so far say about the shape of the latency floor."""
        epoch = self._epochs.current
        return epoch.envelope.evidence if epoch is not None else None

    @property
    def arrival_bound_ns(self) -> float:
        """The 95 % half width of a capture time that is taken from the arrival alone."""
        latency = self.info.latency
        declared_ns = float(latency.max_ns - latency.min_ns)
        line = self.line
        if line is None or line.count < MATURE:
            return declared_ns
        if self._step_ns and not self._count_ns:
            # Cut off stamps spread what is seen by half a step.
            spread_ns = max(self._epochs.mean_ns - self._step_ns / 2, 0.02 * self._step_ns)
            return min(declared_ns, 3 * spread_ns + line.statistical_ns + line.floor_ns)
        # Latency above the floor exceeds 3 scales in 5 % of samples, if it is exponential.
        return min(declared_ns, 3 * line.scale_ns + line.statistical_ns + line.floor_ns)

    @property
    def jitter_ns(self) -> float:
        """How far most arrivals (90 %) spread above the least delayed."""
        return self._epochs.jitter_ns

    @property
    def is_on_device_clock(self) -> bool:
        """True if the last frame was stamped by its device ticks, False if by its arrival."""
        return self._is_on_device_clock

    @property
    def model(self) -> ClockModel | None:
        """The map from unwrapped ticks to capture time now in use; None without stamps or without ticks."""
        return self._followed if self._followed is not None else self.own_model

    @property
    def own_model(self) -> ClockModel | None:
        """The one-way estimate of that map, also while another clock is followed."""
        stamping = self._epochs.stamping
        if stamping is None or self._kind in (ClockKind.NONE, ClockKind.HOST):
            return None
        if self._count_ns:
            return self._model_of_ticks(stamping)
        if self._model_of is not stamping:
            epoch, line = stamping.epoch, stamping.line
            ref_ticks = epoch.origin_ticks + round(line.at_ns / self._tick_ns)
            at_ns = (ref_ticks - epoch.origin_ticks) * self._tick_ns
            offset_ns = line.offset_ns + line.slope * (at_ns - line.at_ns)
            self._model = ClockModel(
                epoch=self._number,
                method=ONE_WAY,
                ref_ticks=ref_ticks,
                ref_host_ns=epoch.origin_host_ns + round(at_ns + offset_ns) - self.info.latency.min_ns,
                ns_per_tick=self._tick_ns * (1 + line.slope),
                skew_ppm=line.slope * 1e6,
                uncertainty=stamping.uncertainty,
            )
            self._model_of = stamping
        return self._model

    def _model_of_ticks(self, stamping: Stamping) -> ClockModel:
        """Return the map of cut off ticks while samples are the finer clock: the newest one, in mid-step."""
        if self._model_of is not stamping or self._model is None:
            host_ns = self._own_capture_ns(stamping, self._newest_seq)
            ticks, half_ns = self._unwrapper.last_ticks, self._step_ns / 2
            first_ticks, first_seq = self._steady_ref
            elapsed_ns = (ticks - first_ticks) * self._tick_ns
            ns_per_tick = self._tick_ns
            if elapsed_ns > 100 * self._step_ns:
                first_ns = self._own_capture_ns(stamping, first_seq)
                ns_per_tick *= (host_ns - first_ns) / elapsed_ns
            self._model = ClockModel(
                epoch=self._number,
                method=ONE_WAY,
                ref_ticks=ticks,
                ref_host_ns=host_ns - round(half_ns),
                ns_per_tick=ns_per_tick,
                skew_ppm=(ns_per_tick / self._tick_ns - 1) * 1e6,
                uncertainty=widened(stamping.uncertainty, half_ns),
            )
            self._model_of = stamping
        return self._model

    @property
    def step_ns(self) -> float:
        """Step of the device's stamps, where it is coarse; 0 = finer than matters."""
        return self._step_ns

    @property
    def counts_samples(self) -> bool:
        """Whether samples are timed by their sequence numbers, because those are finer than the stamps."""
        return self._count_ns > 0

    @property
    def count_ns(self) -> float:
        """Device time from one count to the next: of ticks, or of samples."""
        return self._count_ns or self._tick_ns

    def sample_map(self) -> tuple[int, float]:
        """Return the capture time of the newest sample and the time from one to the next, if samples are counted."""
        stamping = self._epochs.stamping
        assert stamping is not None
        return self._own_capture_ns(stamping, self._newest_seq), self._count_ns * (1 + stamping.line.slope)

    @property
    def _number(self) -> int:
        """The epoch that stamps are of; a step that is in doubt has not begun one."""
        epoch = self._epochs.current
        return self._follow_epochs + (epoch.number if epoch is not None else 0)

    def follow(self, model: ClockModel | None) -> None:
        """Stamp by a known clock from the next frame on, or by the own estimate again (None).

        The estimate goes on beside as a monitor. To begin, to end and to change the epoch of ``model`` each
        begin a new epoch of the stream.

        Args:
            model: Maps unwrapped ticks to host time; its uncertainty is stated as it is.
        """
        before = self._followed
        is_same = (
            model is None if before is None else model is not None and model.epoch == self._followed_source
        )
        if not is_same:
            self._follow_epochs += 1
            self._model_of = None
            what = "its own estimate" if model is None else model.method
            self._note(ClockEventKind.FOLLOW, self._last_arrival_ns, f"stamped by {what} from here on")
        if model is None:
            self._followed = None
            return
        self._followed_source = model.epoch
        self._followed = replace(model, epoch=self._number)

    def take_events(self) -> tuple[ClockEvent, ...]:
        """Return what happened since the last call, oldest first, and forget it."""
        events = tuple(self._events)
        self._events.clear()
        if self._dropped_events:
            first = events[0]
            lost = f"{self._dropped_events} earlier events of this stream were dropped"
            events = (ClockEvent(first.stream, first.kind, first.host_ns, lost), *events)
            self._dropped_events = 0
        return events

    @property
    def pace(self) -> float:
        """How many times less often than it would like the estimate is solved anew."""
        return self._epochs.pace

    @pace.setter
    def pace(self, pace: float) -> None:
        self._epochs.pace = pace

    @property
    def newest_ticks(self) -> int:
        """The last tick that was accepted, unwrapped; ``model`` maps it to host time."""
        return self._unwrapper.last_ticks

    def unwrapped(self, ticks: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return recent raw ticks unwrapped, as ``model.to_host`` expects them."""
        return self._unwrapper.nearest(ticks)

    def update(self, frame: Frame) -> Stamped:
        """Take one frame, in order of arrival, and return the capture times of its samples."""
        arrival_ns = frame.arrival_ns
        self._note_stall(frame)
        self._is_on_device_clock = True
        if self._kind is ClockKind.HOST and frame.device_ticks is not None:
            return self._stamp_host(frame.device_ticks, arrival_ns)
        if self._kind is ClockKind.NONE or (
            frame.device_ticks is None and self._kind is not ClockKind.SAMPLES
        ):
            return self._stamp_arrival(frame)
        raw = frame.device_ticks if frame.device_ticks is not None else np.array([frame.seq], np.int64)
        if raw.size == 1 and arrival_ns.size == 1:
            return self._update_one(raw, arrival_ns, frame.seq)
        return self._update_block(raw, arrival_ns, self._unwrapper.frame(raw, arrival_ns, frame.seq))

    def _update_one(self, raw: NDArray[np.int64], arrival_ns: NDArray[np.int64], seq: int) -> Stamped:
        """Do what `_update_block` does for the common single stamp, without the cost of arrays."""
        at_ns = int(arrival_ns[0])
        ticks, kind = self._unwrapper.step(int(raw[0]), at_ns, seq)
        self._newest_seq = seq
        if self._grid.state is not Grid.FINE:
            kind = self._heed_grid(ticks, seq, at_ns, kind)
        if kind is TickKind.NEXT:
            self._last_kind = kind
        else:
            self._note_kind(kind, int(raw[0]), at_ns)
            if kind in UNUSABLE:
                return self._stamp_arrival_of(arrival_ns, 1)
        count = seq if self._count_ns else ticks
        if self._tick_epoch != self._unwrapper.epoch:
            self._tick_epoch = self._unwrapper.epoch
            self._epochs.begin(count, at_ns)
        self._epochs.take_one(count, at_ns)
        self._heed_steps(ticks, at_ns)
        capture_ns, known = self._capture(ticks, count, at_ns)
        known = self._doubted(known, at_ns - capture_ns)
        capture_ns = self._clamp.one(capture_ns, at_ns)
        return Stamped(np.array([capture_ns], np.int64), self._clamp.widened(known), self._number)

    def _heed_grid(self, ticks: int, seq: int, arrival_ns: int, kind: TickKind) -> TickKind:
        """Look at how coarse the stamps are; return what kind of tick this is in that light."""
        grid = self._grid
        if kind in (TickKind.RESET, TickKind.FIRST):
            grid.forget()
        elif kind is TickKind.BACKWARDS:
            return kind
        if grid.take(ticks, seq, arrival_ns):
            if grid.state is Grid.COARSE:
                self._become_coarse()
            if not grid.repeats:
                for at in self._unsure:
                    self._note_kind(*at)
            self._unsure.clear()
        if grid.state is Grid.COARSE:
            self._until_check -= 1
            if self._count_ns:
                self._check_steady(ticks, seq)
            elif self._until_check <= 0:
                self._try_counting()
            if grid.repeats and kind in (TickKind.DUPLICATE, TickKind.FROZEN):
                self._unwrapper.allow_repeats()
                return TickKind.NEXT
        return kind

    def _become_coarse(self) -> None:
        self._step_ns = self._grid.step_ns
        if self._grid.repeats:
            self._unwrapper.allow_repeats()
        self._epochs.resolution_ns, self._epochs.step_ns = 0.0, self._step_ns
        self._try_counting()
        if not self._count_ns:
            self._epochs.rebase(self._tick_ns, [(ticks, at) for ticks, _, at in self._grid.samples])

    def _try_counting(self) -> None:
        """Time samples by their count, if they come as steadily as their stamps can show."""
        self._until_check = STEADY_AFTER
        found = self._grid.steady_period()
        if found is None:
            return
        self._count_ns, spread = found
        self._until_check = CHECKED_EVERY
        self._steady_ref = self._grid.samples[0][:2]
        self._epochs.resolution_ns = self._epochs.step_ns = 0.0
        self._epochs.rebase(self._count_ns, [(seq, at) for _, seq, at in self._grid.samples], spread)
        self._model_of = None

    def _check_steady(self, ticks: int, seq: int) -> None:
        """Go back to the stamps if the samples have left the band that they draw, or their count has."""
        before_ticks, before_seq, _ = (
            self._grid.samples[-2] if len(self._grid.samples) > 1 else (ticks, seq, 0)
        )
        counted_ns = (seq - before_seq) * self._count_ns
        off_ns = abs((ticks - before_ticks) * self._tick_ns - counted_ns)
        is_counted = off_ns <= self._step_ns * 1.02 + DRIFT_LIMIT * counted_ns + 2e4
        if is_counted:
            if self._until_check > 0:
                return
            self._until_check = CHECKED_EVERY
            if len(self._grid.samples) < STEADY_AFTER or self._grid.steady_period() is not None:
                return
        self._count_ns = 0.0
        # A count that jumped is soon one again; meanwhile samples and steps may be in phase.
        self._until_check = CHECKED_EVERY if is_counted else STEADY_AFTER
        self._epochs.resolution_ns = 0.0 if is_counted else self._step_ns / 2
        self._epochs.step_ns = self._step_ns
        self._epochs.rebase(self._tick_ns, [(before, at) for before, _, at in self._grid.samples])
        self._grid.forget()
        self._grid.take(ticks, seq, self._last_arrival_ns)
        self._model_of = None

    def _capture(self, ticks: int, count: int, arrival_ns: int) -> tuple[int, Uncertainty]:
        """Return when a sample was captured by the clock in use."""
        followed, stamping = self._followed, self._epochs.stamping
        assert stamping is not None
        if followed is not None and self._is_credible(ticks, count, arrival_ns):
            elapsed_ns = (ticks - followed.ref_ticks) * followed.ns_per_tick
            capture_ns, known = followed.ref_host_ns + round(elapsed_ns), followed.uncertainty
        else:
            capture_ns, known = self._own_capture_ns(stamping, count), stamping.uncertainty
            if self._count_ns:
                return capture_ns, known
        if not self._step_ns:
            return capture_ns, known
        jitter_ns = self.arrival_bound_ns
        capture_ns, half_ns = within_step(capture_ns, arrival_ns - self._min_ns, self._step_ns, jitter_ns)
        return capture_ns, widened(known, half_ns)

    def _own_capture_ns(self, stamping: Stamping, count: int) -> int:
        epoch, line = stamping.epoch, stamping.line
        device_ns = (count - epoch.origin_ticks) * (self._count_ns or self._tick_ns)
        mapped_ns = device_ns + line.offset_ns + line.slope * (device_ns - line.at_ns)
        return epoch.origin_host_ns + round(mapped_ns) - self._min_ns

    def _doubted(self, known: Uncertainty, late_ns: int) -> Uncertainty:
        """Widen what is known of a sample that may not be as late as its clock says."""
        if self._followed is not None:
            return known
        doubt_ns = self._held.doubt_ns(late_ns, self.arrival_bound_ns)
        return widened(known, doubt_ns) if doubt_ns else known

    def _heed_steps(self, ticks: int, arrival_ns: int) -> None:
        if self._epochs.n_steps != self._n_steps:
            self._n_steps = self._epochs.n_steps
            self._unwrapper.anchor(ticks, arrival_ns)

    def _update_block(
        self, raw: NDArray[np.int64], arrival_ns: NDArray[np.int64], unwrapped: Unwrapped
    ) -> Stamped:
        self._track(raw, arrival_ns, unwrapped)
        ticks = unwrapped.ticks
        if unwrapped.usable is not None and not unwrapped.usable[-1]:
            return self._stamp_arrival_of(arrival_ns, max(ticks.size, arrival_ns.size))
        if ticks.size == 1 and arrival_ns.size > 1:
            # One device stamp for samples that arrived one by one: the rest follow at the nominal rate.
            if self._period_ticks > 0:
                steps = np.arange(arrival_ns.size) * self._period_ticks
            else:
                steps = (arrival_ns - arrival_ns[0]) / self._tick_ns
            ticks = ticks[0] + np.rint(steps).astype(np.int64)
        stamping = self._epochs.stamping
        assert stamping is not None
        epoch, line = stamping.epoch, stamping.line
        elapsed_ns = np.clip((ticks - epoch.origin_ticks) * self._tick_ns, -_FARTHEST_NS, _FARTHEST_NS)
        offset_ns = line.offset_ns + line.slope * (elapsed_ns - line.at_ns) - self._min_ns
        capture_ns = epoch.origin_host_ns + np.rint(elapsed_ns + offset_ns).astype(np.int64)
        known = widened(stamping.uncertainty, self._step_ns)
        if unwrapped.epoch_start > 0:
            before = unwrapped.epoch_start
            head_ns = arrival_ns[:before] if arrival_ns.size > 1 else arrival_ns[0]
            capture_ns[:before] = head_ns - self._min_ns
            known = widened(known, self.arrival_bound_ns)
        if self._followed is not None and self._is_credible(
            int(ticks[-1]), int(ticks[-1]), int(arrival_ns[-1])
        ):
            capture_ns, known = self._followed.to_host(ticks), self._followed.uncertainty
        known = self._doubted(known, int(arrival_ns[-1] - capture_ns[-1]))
        capture_ns = self._clamp.block(capture_ns, arrival_ns)
        return Stamped(capture_ns, self._clamp.widened(known), self._number)

    def _is_credible(self, ticks: int, count: int, arrival_ns: int) -> bool:
        """Return whether the followed clock puts a stamp where it can be; if not, stop following it."""
        followed, stamping = self._followed, self._epochs.stamping
        assert followed is not None
        capture_ns = followed.ref_host_ns + (ticks - followed.ref_ticks) * followed.ns_per_tick
        slack_ns = AHEAD_NS + followed.uncertainty.bound95_ns + followed.uncertainty.asymmetry_ns
        latest_ns = arrival_ns
        if stamping is not None and stamping.line.count >= MATURE:
            # Samples that were held back are late by the own estimate as well.
            latest_ns = self._own_capture_ns(stamping, count) + self._min_ns
            slack_ns += self._step_ns + stamping.uncertainty.bound95_ns + self._asymmetry_ns
        if -slack_ns <= latest_ns - capture_ns <= self._max_ns + slack_ns:
            return True
        self.follow(None)
        return False

    def _track(self, raw: NDArray[np.int64], arrival_ns: NDArray[np.int64], unwrapped: Unwrapped) -> None:
        """Feed the estimator what a frame's ticks and arrivals say."""
        if unwrapped.kinds:
            self._note_kinds(unwrapped, raw, arrival_ns)
        else:
            self._last_kind = TickKind.NEXT
        ticks = unwrapped.ticks
        if self._tick_epoch != unwrapped.epoch:
            self._tick_epoch = unwrapped.epoch
            start = unwrapped.epoch_start
            self._epochs.begin(int(ticks[start]), int(arrival_ns[min(start, arrival_ns.size - 1)]))
        if arrival_ns.size == ticks.size:
            paired_ticks, paired_ns = ticks, arrival_ns
            if unwrapped.usable is not None:
                paired_ticks, paired_ns = ticks[unwrapped.usable], arrival_ns[unwrapped.usable]
            if unwrapped.epoch_start > 0:
                after = unwrapped.epoch_start
                if unwrapped.usable is not None:
                    after = int(unwrapped.usable[: unwrapped.epoch_start].sum())
                paired_ticks, paired_ns = paired_ticks[after:], paired_ns[after:]
        elif ticks.size == 1:
            paired_ticks, paired_ns = ticks, arrival_ns[:1]
            if unwrapped.usable is not None:
                paired_ticks, paired_ns = ticks[:0], arrival_ns[:0]
        else:
            paired_ticks, paired_ns = ticks[-1:], arrival_ns
            if unwrapped.usable is not None and not unwrapped.usable[-1]:
                paired_ticks, paired_ns = ticks[:0], arrival_ns[:0]
        if paired_ticks.size:
            self._epochs.take(paired_ticks, paired_ns)
            self._heed_steps(int(paired_ticks[-1]), int(paired_ns[-1]))

    def _stamp_host(self, ticks: NDArray[np.int64], arrival_ns: NDArray[np.int64]) -> Stamped:
        size = max(ticks.size, arrival_ns.size)
        ahead = int((ticks > arrival_ns).sum())
        if ahead:
            self._note(
                ClockEventKind.AHEAD,
                int(arrival_ns[-1]),
                f"{ahead} host stamps after their arrival, by up to {int((ticks - arrival_ns).max())} ns",
            )
        capture_ns = np.broadcast_to(ticks, (size,)).astype(np.int64)
        capture_ns = self._clamp.block(capture_ns, arrival_ns)
        return Stamped(capture_ns, self._clamp.widened(Uncertainty(0.0, 0.0, self._asymmetry_ns)), 0)

    def _stamp_arrival(self, frame: Frame) -> Stamped:
        if self._counts_arrivals:
            raw, arrival_ns = np.array([frame.seq], np.int64), frame.arrival_ns[:1]
            unwrapped = self._unwrapper.frame(raw, arrival_ns, frame.seq)
            self._track(raw, arrival_ns, unwrapped)
        ticks = 0 if frame.device_ticks is None else frame.device_ticks.size
        return self._stamp_arrival_of(frame.arrival_ns, max(ticks, frame.arrival_ns.size))

    def _stamp_arrival_of(self, arrival_ns: NDArray[np.int64], size: int) -> Stamped:
        """Stamp without a usable device clock: arrival minus the least latency."""
        self._is_on_device_clock = False
        latency = self.info.latency
        if size == 1 == arrival_ns.size:
            at_ns = int(arrival_ns[0])
            capture_ns = np.array([self._clamp.one(at_ns - latency.min_ns, at_ns)], np.int64)
        else:
            capture_ns = np.broadcast_to(arrival_ns - latency.min_ns, (size,)).astype(np.int64)
            capture_ns = self._clamp.block(capture_ns, arrival_ns)
        known = self._clamp.widened(Uncertainty(self.arrival_bound_ns, 0.0, self._asymmetry_ns))
        return Stamped(capture_ns, known, self._number)

    def _note_stall(self, frame: Frame) -> None:
        first_ns = int(frame.arrival_ns[0])
        gap_ns = first_ns - self._last_arrival_ns
        if gap_ns > self._stall_ns and self._has_arrived:
            self._note(ClockEventKind.STALL, first_ns, f"nothing arrived for {gap_ns / 1e6:.1f} ms")
        self._has_arrived = True
        self._last_arrival_ns = first_ns if frame.arrival_ns.size == 1 else int(frame.arrival_ns[-1])

    def _note_kinds(
        self, unwrapped: Unwrapped, raw: NDArray[np.int64], arrival_ns: NDArray[np.int64]
    ) -> None:
        for index, kind in unwrapped.kinds:
            self._note_kind(kind, int(raw[index]), int(arrival_ns[min(index, arrival_ns.size - 1)]))

    def _note_kind(self, kind: TickKind, raw: int, at_ns: int) -> None:
        is_repeat = kind in (TickKind.DUPLICATE, TickKind.FROZEN)
        if is_repeat and self._grid.state is Grid.UNKNOWN and len(self._unsure) < MOST_UNSURE:
            # Whether stamps may repeat is known once their step is.
            self._unsure.append((kind, raw, at_ns))
            return
        is_news = kind is not TickKind.FROZEN or self._last_kind is not TickKind.FROZEN
        self._last_kind = kind
        if kind is TickKind.BACKWARDS:
            self._epochs.ran_back()
        event = _EVENT_OF.get(kind)
        if event is not None and is_news and self._kind is not ClockKind.NONE:
            self._note(event, at_ns, f"{kind.value} at raw device tick {raw}")

    def _note(self, kind: ClockEventKind, host_ns: int, detail: str) -> None:
        if len(self._events) == MAX_EVENTS:
            self._dropped_events += 1
        self._events.append(ClockEvent(self.info.name, kind, host_ns, detail))
