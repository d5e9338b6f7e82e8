"""The clock of one stream: frames in, capture times with an honest uncertainty out."""

from collections import deque
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sensorium.drivers.frame import ClockKind, DeviceClock, Frame, StreamInfo
from sensorium.sync.clocks.clamp import CaptureClamp
from sensorium.sync.clocks.model import ONE_WAY, ClockEvent, ClockEventKind, ClockModel, Stamped, Uncertainty
from sensorium.sync.clocks.oneway import FloatArray, Line, LowerEnvelope
from sensorium.sync.clocks.unwrap import UNUSABLE, TickKind, Unwrapped, Unwrapper

_FARTHEST_NS = 2.0**61
"""73 years from an epoch's origin; ticks beyond it are nonsense, and sums of them would leave int64."""
MAX_EVENTS = 256
"""Events kept until somebody takes them; more are counted in the last one taken."""
STALL_NS = 50_000_000
MATURE = 32
"""Samples before the estimate is trusted to judge others, or to state a jitter."""
QUARANTINE = 8
"""So many ticks in a row that lie far ahead of the clock are not outliers: the clock has stepped."""
AHEAD_NS = 2_000_000.0
GATE_PER_NS2 = 1e-16
"""How far a crystal may stray over a gap: 0.1 ppm of skew per second of it."""
STEP_NS = 100_000_000.0
STEP_AFTER_NS = 2_000_000_000
SKEW_SPREAD_CARRIED = 5e-7
"""One sigma of the skew across a restart, as in real recordings (spec 2: 0.8 ppm over 20 min)."""

_EVENT_OF = {
    TickKind.RESET: ClockEventKind.RESET,
    TickKind.BACKWARDS: ClockEventKind.BACKWARDS,
    TickKind.DUPLICATE: ClockEventKind.DUPLICATE,
    TickKind.FROZEN: ClockEventKind.FROZEN,
}


@dataclass(slots=True)
class _Epoch:
    """Origin of the differences that the estimator works on; exact integers lose nothing."""

    number: int
    origin_ticks: int
    origin_host_ns: int
    envelope: LowerEnvelope


class Recorder(Protocol):
    """Sees what the estimator sees; a re-map solves it again from both sides."""

    def begin(self, epoch: int, origin_ticks: int, origin_host_ns: int) -> None:
        """Take the origin of a new epoch."""

    def take(self, device_ns: FloatArray, offset_ns: FloatArray) -> None:
        """Take samples since the origin: device time, and host minus device time."""


class StreamTracker:
    """Maps the stamps of one stream to host time. Deterministic: equal frames in, equal stamps out.

    A stamp may use samples that arrived up to the end of its own frame, none later. Capture times are the
    envelope's estimate minus ``latency.min_ns``, within [arrival - ``latency.max_ns``, arrival], and never
    run backwards. By clock kind:

    - ``FREE``, ``PTP``: device ticks against arrivals. With one arrival for k ticks, the arrival is that of
      the last tick.
    - ``SAMPLES``: ticks (or sequence numbers, if the driver gives none) count samples. The stamp is that of
      the block's first sample, which was captured one block before it could arrive: the driver's declared
      ``latency.min_ns`` covers the length of the block.
    - ``HOST``: ticks are host nanoseconds already.
    - ``NONE``: capture = arrival - ``latency.min_ns``. The statistical term is then the observed 95 % latency
      jitter against the nominal rate, or the declared latency range where that cannot be observed.
    """

    def __init__(self, info: StreamInfo, recorder: Recorder | None = None) -> None:
        self.info = info
        self._recorder = recorder
        kind = info.clock.kind
        self._kind = kind
        self._clock = info.clock
        if kind is ClockKind.NONE and info.rate_hz > 0:
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
        # Counters of samples are exact; clocks are cut off to whole ticks.
        is_cut = self._clock.kind in (ClockKind.FREE, ClockKind.PTP)
        self._resolution_ns = self._tick_ns if is_cut else 0.0
        self._epoch: _Epoch | None = None
        self._events: deque[ClockEvent] = deque(maxlen=MAX_EVENTS)
        self._dropped_events = 0
        self._last_kind = TickKind.NEXT
        self._has_arrived = False
        self._last_arrival_ns = 0
        rate_hz = info.message_rate_hz
        self._stall_ns = STALL_NS + 5e9 / rate_hz if rate_hz > 0 else float("inf")
        self._clamp = CaptureClamp(info.latency.max_ns)
        self._ahead_run = 0
        self._late_since_ns: int | None = None
        self._is_on_device_clock = False
        self._gate_ns = AHEAD_NS
        self._line_of_uncertainty: Line | None = None
        self._is_floor_moving = False
        self._uncertainty = Uncertainty(0.0, 0.0, self._asymmetry_ns)
        self._model: ClockModel | None = None
        self._model_of: object = None
        self._followed: ClockModel | None = None
        self._followed_source = 0
        self._follow_epochs = 0
        self._pace = 1.0

    @property
    def line(self) -> Line | None:
        """The estimator's current line, with its window and the hardness of the latency floor."""
        return self._epoch.envelope.line if self._epoch is not None else None

    @property
    def evidence(self) -> FloatArray | None:
        """What the samples so far say about the shape of the latency floor."""
        return self._epoch.envelope.evidence if self._epoch is not None else None

    @property
    def arrival_bound_ns(self) -> float:
        """The 95 % half width of a capture time that is taken from the arrival alone."""
        latency = self.info.latency
        declared_ns = float(latency.max_ns - latency.min_ns)
        line = self.line
        if line is None or line.count < MATURE:
            return declared_ns
        # Latency above the floor exceeds 3 scales in 5 % of samples, if it is exponential.
        return min(declared_ns, 3 * line.scale_ns + line.statistical_ns + line.floor_ns)

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
        epoch = self._epoch
        if epoch is None or self._kind in (ClockKind.NONE, ClockKind.HOST):
            return None
        line = epoch.envelope.line
        if line is None:
            return None
        if self._model_of is not line:
            ref_ticks = epoch.origin_ticks + round(line.at_ns / self._tick_ns)
            at_ns = (ref_ticks - epoch.origin_ticks) * self._tick_ns
            offset_ns = line.offset_ns + line.slope * (at_ns - line.at_ns)
            self._model = ClockModel(
                epoch=epoch.number + self._follow_epochs,
                method=ONE_WAY,
                ref_ticks=ref_ticks,
                ref_host_ns=epoch.origin_host_ns + round(at_ns + offset_ns) - self.info.latency.min_ns,
                ns_per_tick=self._tick_ns * (1 + line.slope),
                skew_ppm=line.slope * 1e6,
                uncertainty=self._current(epoch),
            )
            self._model_of = line
        return self._model

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
        number = self._epoch.number if self._epoch is not None else 0
        self._followed = replace(model, epoch=number + self._follow_epochs)

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
        return self._pace

    @pace.setter
    def pace(self, pace: float) -> None:
        self._pace = pace
        if self._epoch is not None:
            self._epoch.envelope.pace = pace

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
        return self._update_block(
            raw, arrival_ns, self._unwrapper.frame(raw, arrival_ns, frame.seq), frame.seq
        )

    def _update_one(self, raw: NDArray[np.int64], arrival_ns: NDArray[np.int64], seq: int) -> Stamped:
        """Do what `_update_block` does for the common single stamp, without the cost of arrays."""
        at_ns = int(arrival_ns[0])
        ticks, kind = self._unwrapper.step(int(raw[0]), at_ns, seq)
        epoch = self._epoch
        line = epoch.envelope.line if epoch is not None else None
        if kind is TickKind.NEXT and epoch is not None and line is not None:
            device_ns = (ticks - epoch.origin_ticks) * self._tick_ns
            offset_ns = (at_ns - epoch.origin_host_ns) - device_ns
            excess_ns = offset_ns - line.offset_ns - line.slope * (device_ns - line.at_ns)
            gate_ns = self._gate_ns + GATE_PER_NS2 * (device_ns - line.at_ns) ** 2
            if line.count < MATURE or -gate_ns <= excess_ns < STEP_NS:
                self._ahead_run, self._late_since_ns = 0, None
                self._last_kind = kind
                envelope = epoch.envelope
                envelope.add_one(device_ns, offset_ns)
                if self._recorder is not None:
                    self._recorder.take(np.array([device_ns]), np.array([offset_ns]))
                uncertainty = self._current(epoch)
                followed = self._followed
                if followed is not None and self._is_credible(ticks, at_ns):
                    uncertainty = followed.uncertainty
                    elapsed_ns = (ticks - followed.ref_ticks) * followed.ns_per_tick
                    capture_ns = followed.ref_host_ns + round(elapsed_ns)
                else:
                    line = envelope.line
                    assert line is not None
                    mapped_ns = device_ns + line.offset_ns + line.slope * (device_ns - line.at_ns)
                    capture_ns = epoch.origin_host_ns + round(mapped_ns) - self._min_ns
                capture_ns = self._clamp.one(capture_ns, at_ns)
                number = epoch.number + self._follow_epochs
                return Stamped(np.array([capture_ns], np.int64), uncertainty, number)
        usable = None if kind not in UNUSABLE else np.zeros(1, np.bool_)
        kinds = () if kind is TickKind.NEXT else ((0, kind),)
        unwrapped = Unwrapped(np.array([ticks], np.int64), usable, kinds, self._unwrapper.epoch, 0)
        return self._update_block(raw, arrival_ns, unwrapped, seq)

    def _update_block(
        self, raw: NDArray[np.int64], arrival_ns: NDArray[np.int64], unwrapped: Unwrapped, seq: int
    ) -> Stamped:
        ticks = self._track(raw, arrival_ns, unwrapped, seq)
        epoch = self._epoch
        assert epoch is not None
        if unwrapped.usable is not None and not unwrapped.usable[-1]:
            return self._stamp_arrival_of(arrival_ns, max(ticks.size, arrival_ns.size))
        if ticks.size == 1 and arrival_ns.size > 1:
            # One device stamp for samples that arrived one by one: the rest follow at the nominal rate.
            if self._period_ticks > 0:
                steps = np.arange(arrival_ns.size) * self._period_ticks
            else:
                steps = (arrival_ns - arrival_ns[0]) / self._tick_ns
            ticks = ticks[0] + np.rint(steps).astype(np.int64)
        elapsed_ns = np.clip((ticks - epoch.origin_ticks) * self._tick_ns, -_FARTHEST_NS, _FARTHEST_NS)
        offset_ns = epoch.envelope.offset_at(elapsed_ns) - self.info.latency.min_ns
        capture_ns = epoch.origin_host_ns + np.rint(elapsed_ns + offset_ns).astype(np.int64)
        if unwrapped.epoch_start > 0:
            before = unwrapped.epoch_start
            head_ns = arrival_ns[:before] if arrival_ns.size > 1 else arrival_ns[0]
            capture_ns[:before] = head_ns - self.info.latency.min_ns
        uncertainty = self._current(epoch)
        if self._followed is not None and self._is_credible(int(ticks[-1]), int(arrival_ns[-1])):
            capture_ns, uncertainty = self._followed.to_host(ticks), self._followed.uncertainty
        number = epoch.number + self._follow_epochs
        return Stamped(self._clamp.block(capture_ns, arrival_ns, elapsed_ns), uncertainty, number)

    def _is_credible(self, ticks: int, arrival_ns: int) -> bool:
        """Return whether the followed clock puts a stamp where it can be; if not, stop following it."""
        followed = self._followed
        assert followed is not None
        capture_ns = followed.ref_host_ns + (ticks - followed.ref_ticks) * followed.ns_per_tick
        slack_ns = AHEAD_NS + followed.uncertainty.bound95_ns + followed.uncertainty.asymmetry_ns
        if -slack_ns <= arrival_ns - capture_ns <= self._max_ns + slack_ns:
            return True
        self.follow(None)
        return False

    def _current(self, epoch: _Epoch) -> Uncertainty:
        """Return the uncertainty of the epoch's line, and renew what depends on it when it is a new one."""
        line = epoch.envelope.line
        if line is not self._line_of_uncertainty:
            assert line is not None
            if line.wander_ns > 0 and not self._is_floor_moving:
                self._note(
                    ClockEventKind.FLOOR,
                    self._last_arrival_ns,
                    "the least latency moves: faster than a crystal drifts, so up to"
                    f" {line.wander_ns / 1e3:.0f} us of the clock's wander may be latency",
                )
            self._is_floor_moving = line.wander_ns > 0
            self._line_of_uncertainty = line
            self._uncertainty = Uncertainty(line.statistical_ns, line.floor_ns, self._asymmetry_ns)
            self._gate_ns = AHEAD_NS + 10 * (line.statistical_ns + line.floor_ns)
        return self._uncertainty

    def _track(
        self, raw: NDArray[np.int64], arrival_ns: NDArray[np.int64], unwrapped: Unwrapped, seq: int
    ) -> NDArray[np.int64]:
        """Feed the estimator and return the unwrapped ticks, renewed if the estimator began an epoch."""
        if unwrapped.kinds:
            self._note_kinds(unwrapped, raw, arrival_ns)
        else:
            self._last_kind = TickKind.NEXT
        ticks = unwrapped.ticks
        if self._epoch is None or self._epoch.number != unwrapped.epoch:
            start = unwrapped.epoch_start
            self._begin(unwrapped.epoch, int(ticks[start]), int(arrival_ns[min(start, arrival_ns.size - 1)]))
        epoch = self._epoch
        assert epoch is not None
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
            self._feed(epoch, paired_ticks, paired_ns, raw, seq)
        if self._epoch is not epoch:
            # The estimator found a step that the unwrapper had let pass; the epoch began at the last tick.
            ticks = self._unwrapper.nearest(raw)
        return ticks

    def _feed(
        self,
        epoch: _Epoch,
        ticks: NDArray[np.int64],
        arrival_ns: NDArray[np.int64],
        raw: NDArray[np.int64],
        seq: int,
    ) -> None:
        device_ns: FloatArray = (ticks - epoch.origin_ticks) * self._tick_ns
        offset_ns: FloatArray = (arrival_ns - epoch.origin_host_ns) - device_ns
        line = epoch.envelope.line
        if line is not None and line.count >= MATURE:
            excess_ns = offset_ns - epoch.envelope.offset_at(device_ns)
            lowest_ns = float(excess_ns.min())
            gate_ns = self._gate_ns + GATE_PER_NS2 * (float(device_ns[-1]) - line.at_ns) ** 2
            if lowest_ns < -gate_ns:
                sane = excess_ns >= -gate_ns
                self._ahead_run += int((~sane).sum())
                self._note(
                    ClockEventKind.AHEAD,
                    int(arrival_ns[-1]),
                    f"device stamp {-lowest_ns / 1e6:.3f} ms ahead of its arrival; not used",
                )
                if self._ahead_run >= QUARANTINE:
                    self._step_epoch(
                        epoch, raw, arrival_ns, seq, f"stepped ahead by {-lowest_ns / 1e6:.3f} ms"
                    )
                    return
                device_ns, offset_ns = device_ns[sane], offset_ns[sane]
                if not device_ns.size:
                    return
            else:
                self._ahead_run = 0
            if lowest_ns < max(STEP_NS, 20 * line.scale_ns):
                self._late_since_ns = None
            elif self._late_since_ns is None:
                self._late_since_ns = int(arrival_ns[0])
            elif int(arrival_ns[-1]) - self._late_since_ns > STEP_AFTER_NS:
                self._step_epoch(epoch, raw, arrival_ns, seq, f"stepped back by {lowest_ns / 1e6:.3f} ms")
                return
        epoch.envelope.add(device_ns, offset_ns)
        if self._recorder is not None:
            self._recorder.take(device_ns, offset_ns)

    def _step_epoch(
        self, epoch: _Epoch, raw: NDArray[np.int64], arrival_ns: NDArray[np.int64], seq: int, what: str
    ) -> None:
        self._note(ClockEventKind.RESET, int(arrival_ns[-1]), f"device clock {what}; new epoch")
        ticks = self._unwrapper.restart(int(raw[-1]), int(arrival_ns[-1]), seq + raw.size - 1)
        self._begin(epoch.number + 1, ticks, int(arrival_ns[-1]))
        assert self._epoch is not None
        self._epoch.envelope.add(np.zeros(1), np.zeros(1))
        if self._recorder is not None:
            self._recorder.take(np.zeros(1), np.zeros(1))

    def _begin(self, number: int, ticks: int, host_ns: int) -> None:
        old = self._epoch
        # The crystal is the same, so its skew is known; only the offset is lost (spec 2).
        if old is None:
            envelope = LowerEnvelope(resolution_ns=self._resolution_ns)
        else:
            envelope = old.envelope.successor(SKEW_SPREAD_CARRIED)
        envelope.pace = self._pace
        self._epoch = _Epoch(number, ticks, host_ns, envelope)
        if self._recorder is not None:
            self._recorder.begin(number, ticks, host_ns)
        self._ahead_run = 0
        self._late_since_ns = None

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
        elapsed_ns = (capture_ns - capture_ns[0]).astype(np.float64)
        return Stamped(
            self._clamp.block(capture_ns, arrival_ns, elapsed_ns),
            Uncertainty(0.0, 0.0, self._asymmetry_ns),
            0,
        )

    def _stamp_arrival(self, frame: Frame) -> Stamped:
        if self._kind is ClockKind.NONE and self.info.rate_hz > 0:
            raw, arrival_ns = np.array([frame.seq], np.int64), frame.arrival_ns[:1]
            unwrapped = self._unwrapper.frame(raw, arrival_ns, frame.seq)
            self._track(raw, arrival_ns, unwrapped, frame.seq)
        ticks = 0 if frame.device_ticks is None else frame.device_ticks.size
        return self._stamp_arrival_of(frame.arrival_ns, max(ticks, frame.arrival_ns.size))

    def _stamp_arrival_of(self, arrival_ns: NDArray[np.int64], size: int) -> Stamped:
        """Stamp without a usable device clock: arrival minus the least latency."""
        self._is_on_device_clock = False
        latency = self.info.latency
        capture_ns = np.broadcast_to(arrival_ns - latency.min_ns, (size,)).astype(np.int64)
        number = self._follow_epochs + (self._epoch.number if self._epoch is not None else 0)
        return Stamped(
            self._clamp.block(capture_ns, arrival_ns, np.zeros(size)),
            Uncertainty(self.arrival_bound_ns, 0.0, self._asymmetry_ns),
            number,
        )

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
            is_news = kind is not TickKind.FROZEN or self._last_kind is not TickKind.FROZEN
            self._last_kind = kind
            event = _EVENT_OF.get(kind)
            if event is not None and is_news and self._kind is not ClockKind.NONE:
                at_ns = int(arrival_ns[min(index, arrival_ns.size - 1)])
                self._note(event, at_ns, f"{kind.value} at raw device tick {int(raw[index])}")

    def _note(self, kind: ClockEventKind, host_ns: int, detail: str) -> None:
        if len(self._events) == MAX_EVENTS:
            self._dropped_events += 1
        self._events.append(ClockEvent(self.info.name, kind, host_ns, detail))
