"""The epochs of one device clock: an estimator for each, and a rival while a step of the clock is in doubt.

A clock that is set forward puts samples ahead of the least delayed ones so far, which no latency can. One that is
set back makes all samples later, which congestion can too. In either case a second estimator begins at the sample
where the step would have been, and both go on: the bound covers both until one of them is refuted.

- Samples reach the old floor again: it was congestion (or one bad tick), and the rival is dropped.
- They do not for far longer than they ever did, or by more than the link can be late: the clock was stepped, and
  the rival, which has all samples since, becomes the next epoch. The crystal is the same, so the skew is kept.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sensorium.sync.clocks.model import ClockEventKind, Uncertainty
from sensorium.sync.clocks.oneway import FloatArray, Line, LowerEnvelope
from sensorium.sync.clocks.polling import Polling
from sensorium.sync.clocks.steps import LatencyLaw, Run, freedom, independent

MATURE = 32
"""Samples before the estimate is trusted to judge others, or to state a jitter."""
YOUNG_NS = 5e9
AHEAD_NS = 2_000_000.0
"""How far ahead of a young clock, whose bound is not to be relied on, a sample must lie to show a step."""
AHEAD_WIDTHS, AHEAD_SCALES = 6.0, 0.05
GATE_PER_NS2 = 1e-16
"""How far a crystal may stray over a gap: 0.1 ppm of skew per second of it."""
OF_THE_WINDOW = 2.0
HELD_NS, HELD_SCALES = 50_000_000.0, 20.0
"""Samples later than both were held back; they say nothing about the floor."""
SKEW_SPREAD_CARRIED = 5e-7
"""One sigma of the skew across a restart, as in real recordings (spec 2: 0.8 ppm over 20 min)."""
DOUBT_NATS, DOUBT_NATS_STEPPED = 10.0, 5.5
"""How unlikely a run must be before the bound covers a step: at ten, runs that chance makes widen the bound by less
than a tenth on the mean. A device whose clock was stepped before is distrusted sooner."""
LOOK_EVERY = 2
"""Samples. Runs are long where the floor is well known, and a step that comes in one is to be in doubt at once."""
REFUTED_NATS = 12.0
SURE_NATS = 20.0
LEAST_SAMPLES = 8.0
LEADS_AFTER_NS = 6_500_000_000
"""From when on stamps are those of the step, still in doubt: by then it is the likelier story, and ten seconds of
congestion that looks like one do little harm."""
LASTS_NS, LASTS_UNLIKE_NS = 12_000_000_000, 60_000_000_000
"""Congestion of ten seconds without one sample near the floor is possible; if it spreads latencies, even a minute's."""
BEYOND_LATENCY_NS = 2_000_000_000
LEADS_TIMES, LASTS_TIMES = 2, 3
"""How much longer than the longest congestion so far a step lasts."""
LONGEST_NS = 60_000_000_000
SAME_LAW = 1.6
"""Congestion spreads latencies, a step does not: by how much their median may differ."""
USUAL_TIMES, USUAL_NS, USUAL_FADES = 1.25, 2_000_000_000, 0.9
"""A link that is congested now and then, for so long and as unlikely as that, is in doubt only beyond either."""
AGREEING = 3
"""So many samples ahead of the clock by the same are no bad ticks: the floor is lower than was known."""
AHEAD_NATS = 7.0
"""A single bad tick is one sample in a thousand at most."""
SURE_AHEAD_NATS = 14.0
PATIENCE_NS = 30_000_000_000


class Recorder(Protocol):
    """Sees what the estimator sees; a re-map solves it again from both sides."""

    def begin(self, epoch: int, origin_ticks: int, origin_host_ns: int) -> None:
        """Take the origin of a new epoch, which begins at the sample that arrived at ``origin_host_ns``."""

    def take(self, device_ns: FloatArray, offset_ns: FloatArray) -> None:
        """Take samples since the origin: device time, and host minus device time."""


@dataclass(slots=True)
class Epoch:
    """Origin of the differences that the estimator works on; exact integers lose nothing."""

    number: int
    origin_ticks: int
    origin_host_ns: int
    envelope: LowerEnvelope

    @property
    def line(self) -> Line | None:
        return self.envelope.line


@dataclass(frozen=True, slots=True)
class Stamping:
    """By which line samples are stamped now, and how well that is known."""

    epoch: Epoch
    line: Line
    uncertainty: Uncertainty


@dataclass(slots=True)
class _Rival:
    """The epoch that has begun if the clock was stepped.

    Attributes:
        begin_ns: Arrival of its first sample.
        nats: For the step (ahead), or against ordinary latency (back).
        least_ns: Height of its lowest sample above the old clock.
    """

    epoch: Epoch
    is_ahead: bool
    begin_ns: int
    nats: float
    least_ns: float
    weight: float = 0.0
    n_ahead: int = 1
    is_leading: bool = False
    is_doubted: bool = True
    is_same_law: bool = False


class Epochs:
    """Samples of one stream in; the line to stamp by, and the steps of the clock, out.

    Args:
        tick_ns: Of the ticks that samples come with.
        resolution_ns: Step of the device's stamps.

    Attributes:
        step_ns: By how much coarse stamps let the floor move, as samples and steps go in and out of phase.
        max_latency_ns: The largest that the driver declares.
        note: Takes events: kind, arrival, sentence.
    """

    def __init__(
        self,
        tick_ns: float,
        resolution_ns: float,
        asymmetry_ns: float,
        max_latency_ns: int,
        note: Callable[[ClockEventKind, int, str], None],
        recorder: Recorder | None = None,
    ) -> None:
        self.step_ns = 0.0
        self.current: Epoch | None = None
        self.stamping: Stamping | None = None
        self.n_steps = 0
        self._tick_ns = tick_ns
        self.resolution_ns = resolution_ns
        self._asymmetry_ns = asymmetry_ns
        self._max_latency_ns = max_latency_ns
        self._note = note
        self._recorder = recorder
        self._law = LatencyLaw()
        self._run = Run(self._law, tick_ns)
        self._polling = Polling()
        self._surprise_ns = self._surprised_until_ns = 0.0
        self._rival: _Rival | None = None
        self._longest_ns = self._usual_ns = 0
        self._usual_nats = 0.0
        self._depths_ns: list[float] = []
        self._pace = 1.0
        self._is_floor_moving = False
        self._lines: tuple[object, ...] = ()
        self._gate_ns = 0.0
        self._ahead_ns = AHEAD_NS
        self._per_ns = 0.0
        self._held_ns = HELD_NS

    @property
    def _doubt_nats(self) -> float:
        return DOUBT_NATS_STEPPED if self.n_steps else DOUBT_NATS

    @property
    def is_in_doubt(self) -> bool:
        return self._rival is not None

    @property
    def jitter_ns(self) -> float:
        """How far most arrivals (90 %) spread above the least delayed; what is declared while that is not known."""
        found = self._law.quantile_ns(0.9)
        return float(self._max_latency_ns) if found is None else found

    @property
    def mean_ns(self) -> float:
        """How far arrivals are above the least delayed on the mean; what is declared while that is not known."""
        found = self._law.mean_ns
        return float(self._max_latency_ns) if found is None else found

    @property
    def pace(self) -> float:
        return self._pace

    @pace.setter
    def pace(self, pace: float) -> None:
        self._pace = pace
        if self.current is not None:
            self.current.envelope.pace = pace

    def begin(self, ticks: int, arrival_ns: int) -> None:
        """Begin an epoch with a sample, because its ticks have nothing in common with those before."""
        self._rival = None
        self._run.clear()
        self._adopt(self._successor(ticks, arrival_ns))

    def rebase(
        self, tick_ns: float, samples: Sequence[tuple[int, int]], slope_spread: float | None = None
    ) -> None:
        """Go on with another count of the same clock, from (count, arrival) of some samples; no new epoch begins.

        Args:
            slope_spread: How far ``tick_ns`` may be off (ratio).
        """
        old = self.current
        self._tick_ns = tick_ns
        self._rival = None
        self._law = LatencyLaw()
        self._run = Run(self._law, tick_ns)
        envelope = LowerEnvelope(resolution_ns=self.resolution_ns)
        if slope_spread is not None:
            envelope = LowerEnvelope(slope_spread=slope_spread, resolution_ns=self.resolution_ns)
        envelope.pace = self._pace
        count, arrival_ns = samples[0]
        self._adopt(Epoch(0 if old is None else old.number, count, arrival_ns, envelope))
        for count, arrival_ns in samples:
            self.take_one(count, arrival_ns)

    def ran_back(self) -> None:
        """A tick was lower than its predecessor: a run of late samples from here on is no congestion."""
        self._run.is_ran_back = True

    def take_one(self, ticks: int, arrival_ns: int) -> None:
        """Take one sample."""
        epoch = self.current
        assert epoch is not None
        line = epoch.envelope.line
        device_ns = (ticks - epoch.origin_ticks) * self._tick_ns
        offset_ns = (arrival_ns - epoch.origin_host_ns) - device_ns
        if line is not None and line.count >= MATURE:
            since_ns = device_ns - line.at_ns
            excess_ns = offset_ns - line.offset_ns - line.slope * since_ns
            growth_ns = (self._per_ns + GATE_PER_NS2 * since_ns) * since_ns if since_ns > 0 else 0.0
            if not self._judge(ticks, arrival_ns, excess_ns, growth_ns):
                return
        epoch.envelope.add_one(device_ns, offset_ns)
        if self._recorder is not None:
            self._recorder.take(np.array([device_ns]), np.array([offset_ns]))
        if epoch.envelope.line is not line:
            self._renew()

    def take(self, ticks: NDArray[np.int64], arrival_ns: NDArray[np.int64]) -> None:
        """Take (k,) samples of one frame; the least delayed of them stands for all."""
        if ticks.size == 1:
            self.take_one(int(ticks[0]), int(arrival_ns[0]))
            return
        epoch = self.current
        assert epoch is not None
        line = epoch.envelope.line
        device_ns: FloatArray = (ticks - epoch.origin_ticks) * self._tick_ns
        offset_ns: FloatArray = (arrival_ns - epoch.origin_host_ns) - device_ns
        if line is not None and line.count >= MATURE:
            excess_ns = offset_ns - epoch.envelope.offset_at(device_ns)
            least = int(excess_ns.argmin())
            since_ns = float(device_ns[least]) - line.at_ns
            growth_ns = (self._per_ns + GATE_PER_NS2 * since_ns) * since_ns if since_ns > 0 else 0.0
            if not self._judge(
                int(ticks[least]),
                int(arrival_ns[least]),
                float(excess_ns[least]),
                growth_ns,
                (ticks, arrival_ns),
            ):
                return
        epoch.envelope.add(device_ns, offset_ns)
        if self._recorder is not None:
            self._recorder.take(device_ns, offset_ns)
        if epoch.envelope.line is not line:
            self._renew()

    # -- judging

    def _judge(
        self,
        ticks: int,
        arrival_ns: int,
        excess_ns: float,
        growth_ns: float,
        block: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None,
    ) -> bool:
        """Return whether a sample is evidence of the current clock."""
        run = self._run
        if self._rival is not None:
            return self._contest(self._rival, ticks, arrival_ns, excess_ns, growth_ns, block)
        if excess_ns < -self._ahead_ns - growth_ns:
            self._challenge_ahead(ticks, arrival_ns, excess_ns)
            return False
        if excess_ns < -self._gate_ns - growth_ns:
            self._surprise(-excess_ns)
        self._law.add(excess_ns)
        self._heed_polling(ticks, arrival_ns)
        gate_ns = self._gate_ns + growth_ns
        if excess_ns <= gate_ns:
            run.clear()
            return True
        if run.add(ticks, arrival_ns, excess_ns) or len(run.samples) % LOOK_EVERY == 0:
            nats, first = run.most_unlikely(gate_ns)
            if nats >= self._doubt_nats and self._challenge_back(first, gate_ns):
                return False
        return excess_ns < self._held_ns

    def _surprise(self, by_ns: float) -> None:
        """Take note that the bound was wrong: a sample is below it, by too little for a step."""
        epoch = self.current
        assert epoch is not None
        line = epoch.line
        assert line is not None
        if by_ns > self._surprise_ns:
            self._surprise_ns, self._surprised_until_ns = by_ns, line.at_ns + line.window_ns
            self._renew()

    def _heed_polling(self, ticks: int, arrival_ns: int) -> None:
        epoch = self.current
        assert epoch is not None
        device_ns = (ticks - epoch.origin_ticks) * self._tick_ns
        if self._polling.take(arrival_ns, device_ns) and self._polling.look(epoch.envelope.offset_at):
            self._renew()

    def _heights(self, first: int) -> tuple[FloatArray, NDArray[np.int64], FloatArray]:
        """Return heights above the current clock, arrivals and device times of the run from a sample on."""
        epoch = self.current
        assert epoch is not None
        samples = np.array(self._run.samples[first:], np.int64)
        device_ns = (samples[:, 0] - epoch.origin_ticks) * self._tick_ns
        offset_ns = (samples[:, 1] - epoch.origin_host_ns) - device_ns
        return offset_ns - epoch.envelope.offset_at(device_ns), samples[:, 1], device_ns

    def _challenge_back(self, first: int, gate_ns: float) -> bool:
        """Begin a rival at a sample of the run, unless the samples merely had to wait for one another."""
        heights_ns, arrivals_ns, device_ns = self._heights(first)
        least_ns = float(heights_ns.min())
        weight = independent(heights_ns, arrivals_ns, device_ns, least_ns)
        nats = weight * self._law.nats(least_ns - gate_ns)
        if nats < self._doubt_nats:
            return False
        self._run.drop(first)
        self._rival = self._rival_of_run(nats, least_ns, weight)
        self._decide_back(self._rival, arrivals_ns[-1])
        self._renew()
        return True

    def _rival_of_run(self, nats: float, least_ns: float, weight: float) -> _Rival:
        samples = self._run.samples
        epoch = self._successor(*samples[0])
        for ticks, arrival_ns in samples:
            self._feed(epoch, ticks, arrival_ns)
        return _Rival(epoch, False, samples[0][1], nats, least_ns, weight, is_doubted=False)

    def _begin_later(self, rival: _Rival, gate_ns: float) -> _Rival:
        """Return the rival, or one that begins later in the run, where by now a step seems likelier."""
        nats, first = self._run.most_unlikely(gate_ns)
        if first == 0 or nats <= rival.nats:
            return rival
        self._run.drop(first)
        heights_ns, arrivals_ns, device_ns = self._heights(0)
        least_ns = float(heights_ns.min())
        weight = independent(heights_ns, arrivals_ns, device_ns, least_ns)
        later = self._rival_of_run(weight * self._law.nats(least_ns - gate_ns), least_ns, weight)
        later.is_leading = rival.is_leading
        self._rival = later
        return later

    def _challenge_ahead(self, ticks: int, arrival_ns: int, excess_ns: float) -> None:
        self._run.clear()
        self._run.samples.append((ticks, arrival_ns))
        rival = self._successor(ticks, arrival_ns)
        self._feed(rival, ticks, arrival_ns)
        self._rival = _Rival(rival, True, arrival_ns, 0.0, excess_ns)
        self._renew()

    def _contest(
        self,
        rival: _Rival,
        ticks: int,
        arrival_ns: int,
        excess_ns: float,
        growth_ns: float,
        block: tuple[NDArray[np.int64], NDArray[np.int64]] | None,
    ) -> bool:
        run = self._run
        if rival.is_ahead:
            run.samples.append((ticks, arrival_ns))
            self._contest_ahead(rival, arrival_ns, excess_ns, growth_ns)
            is_evidence = self._rival is None and self.current is not rival.epoch
            if self._rival is not None or self.current is rival.epoch:
                self._feed_all(rival.epoch, ticks, arrival_ns, block)
            self._renew_if_new(rival)
            return is_evidence
        if excess_ns < self._gate_ns + growth_ns:
            self._dismiss(arrival_ns)
            if excess_ns < -self._ahead_ns - growth_ns:
                self._challenge_ahead(ticks, arrival_ns, excess_ns)
                return False
            return True
        before_ticks, before_ns = run.samples[-1]
        is_time_to_look = run.add(ticks, arrival_ns, excess_ns)
        if excess_ns < rival.least_ns:
            rival.least_ns = excess_ns
            if not self._still_doubts(rival, excess_ns, growth_ns, ticks, arrival_ns):
                return excess_ns < self._held_ns
        ticked_ns = (ticks - before_ticks) * self._tick_ns
        rival.weight += freedom(excess_ns, arrival_ns - before_ns, ticked_ns, rival.least_ns)
        rival.nats = rival.weight * self._law.nats(rival.least_ns - self._gate_ns - growth_ns)
        self._feed_all(rival.epoch, ticks, arrival_ns, block)
        if is_time_to_look:
            rival = self._begin_later(rival, self._gate_ns + growth_ns)
            rival.is_same_law = self._is_same_law(rival)
        self._decide_back(rival, arrival_ns)
        self._renew_if_new(rival)
        return False

    def _still_doubts(
        self, rival: _Rival, excess_ns: float, growth_ns: float, ticks: int, arrival_ns: int
    ) -> bool:
        """Return whether a rival outlives a sample lower than all of its run; one far below it refutes it."""
        run = self._run
        heights_ns, arrivals_ns, run_ns = self._heights(0)
        rival.weight = independent(heights_ns, arrivals_ns, run_ns, excess_ns)
        nats = rival.weight * self._law.nats(excess_ns - self._gate_ns - growth_ns)
        line = rival.epoch.line
        assert line is not None
        device_ns = (ticks - rival.epoch.origin_ticks) * self._tick_ns
        offset_ns = (arrival_ns - rival.epoch.origin_host_ns) - device_ns
        below_ns = line.offset_ns + line.slope * (device_ns - line.at_ns) - offset_ns
        reach_ns = AHEAD_WIDTHS * (line.statistical_ns + line.floor_ns) + 0.25 * line.scale_ns
        if nats >= self._doubt_nats / 2 and below_ns < reach_ns:
            return True
        self._dismiss(arrival_ns)
        run.add(ticks, arrival_ns, excess_ns)
        return False

    def _contest_ahead(self, rival: _Rival, arrival_ns: int, excess_ns: float, growth_ns: float) -> None:
        if excess_ns < -self._ahead_ns - growth_ns:
            rival.nats += AHEAD_NATS
            rival.n_ahead += 1
            rival.least_ns = min(rival.least_ns, excess_ns)
        else:
            rival.nats -= self._law.nats(excess_ns - rival.least_ns) or AHEAD_NATS / 8
        if rival.nats >= SURE_AHEAD_NATS:
            self._accept(rival, arrival_ns, f"odds e^{rival.nats:.0f}")
        elif rival.nats <= -REFUTED_NATS or arrival_ns - rival.begin_ns > PATIENCE_NS:
            self._reject(rival, arrival_ns)

    def _reject(self, rival: _Rival, arrival_ns: int) -> None:
        """Call what was ahead bad ticks, unless it comes again and again by the same amount."""
        epoch = self.current
        assert epoch is not None
        line = epoch.line
        assert line is not None
        self._depths_ns = [*self._depths_ns[1 - AGREEING :], rival.least_ns]
        spread_ns = max(self._depths_ns) - min(self._depths_ns)
        samples = self._run.samples
        self._dismiss(arrival_ns)
        if len(self._depths_ns) < AGREEING or spread_ns > self._ahead_ns + line.scale_ns:
            self._note(
                ClockEventKind.AHEAD,
                arrival_ns,
                f"{rival.n_ahead} device stamps up to {-rival.least_ns / 1e6:.3f} ms ahead of their arrival; not used",
            )
            return
        self._depths_ns = []
        self._law = LatencyLaw()
        self._run = Run(self._law, self._tick_ns)
        for ticks, at_ns in samples:
            self._feed(epoch, ticks, at_ns)
        self._renew()

    def _decide_back(self, rival: _Rival, arrival_ns: int) -> None:
        """Let a rival lead, or win, once no congestion lasts so long."""
        lasts_ns = arrival_ns - rival.begin_ns
        rival.is_doubted = (
            lasts_ns >= USUAL_TIMES * min(self._usual_ns, USUAL_NS)
            or rival.nats >= USUAL_TIMES * self._usual_nats
        )
        if rival.weight < LEAST_SAMPLES and not self._run.is_ran_back:
            return
        if self._run.is_ran_back:
            is_sure = True
        elif rival.nats < SURE_NATS:
            return
        elif rival.least_ns > self._max_latency_ns:
            is_sure = lasts_ns > BEYOND_LATENCY_NS
        else:
            least_ns = LASTS_NS if rival.is_same_law else LASTS_UNLIKE_NS
            is_sure = lasts_ns > max(least_ns, LASTS_TIMES * self._longest_ns)
        if is_sure:
            self._accept(rival, arrival_ns, f"odds e^{rival.nats:.0f} over {lasts_ns / 1e9:.1f} s")
        elif lasts_ns > max(LEADS_AFTER_NS, LEADS_TIMES * self._longest_ns):
            rival.is_leading = rival.is_leading or rival.is_same_law

    def _is_same_law(self, rival: _Rival) -> bool:
        """Return whether samples of the run spread above its floor as others do above the old one."""
        usual_ns = self._law.quantile_ns(0.5)
        heights_ns, _, _ = self._heights(0)
        spread_ns = float(np.median(heights_ns)) - rival.least_ns
        return usual_ns is not None and usual_ns / SAME_LAW <= spread_ns <= usual_ns * SAME_LAW

    def _accept(self, rival: _Rival, arrival_ns: int, how_sure: str) -> None:
        """Make the rival the current epoch."""
        new = rival.epoch.line
        assert new is not None
        moved_ns = self._apart_ns(rival)
        self._note(
            ClockEventKind.RESET,
            arrival_ns,
            f"device clock stepped {'ahead' if moved_ns < 0 else 'back'} by {abs(moved_ns) / 1e6:.3f} ms"
            f" (+- {(new.statistical_ns + new.floor_ns) / 1e6:.3f}) at about host {rival.begin_ns},"
            f" {(arrival_ns - rival.begin_ns) / 1e9:.2f} s before it was known; {how_sure}; new epoch",
        )
        self.n_steps += 1
        self._rival = None
        samples = self._run.samples
        self._run.clear()
        self._adopt(rival.epoch)
        if self._recorder is not None:
            self._record(rival.epoch, samples)

    def _dismiss(self, arrival_ns: int) -> None:
        """Drop the rival: the old floor was reached again."""
        rival = self._rival
        assert rival is not None
        if not rival.is_ahead:
            lasts_ns = arrival_ns - rival.begin_ns
            self._usual_ns = max(lasts_ns, int(USUAL_FADES * self._usual_ns))
            self._usual_nats = max(rival.nats, USUAL_FADES * self._usual_nats)
            if rival.nats >= SURE_NATS:
                self._longest_ns = min(max(self._longest_ns, lasts_ns), LONGEST_NS)
        epoch = self.current
        assert epoch is not None
        self._rival = None
        if self._recorder is not None:
            self._record(epoch, self._run.samples)
        self._run.clear()
        self._renew()

    def _record(self, epoch: Epoch, samples: list[tuple[int, int]]) -> None:
        assert self._recorder is not None
        if not samples:
            return
        both = np.array(samples, np.int64)
        device_ns = (both[:, 0] - epoch.origin_ticks) * self._tick_ns
        self._recorder.take(device_ns, (both[:, 1] - epoch.origin_host_ns) - device_ns)

    # -- estimators

    def _successor(self, ticks: int, arrival_ns: int) -> Epoch:
        """Return the epoch that begins with a sample: same crystal and link, only the offset is unknown."""
        old = self.current
        if old is None:
            envelope = LowerEnvelope(resolution_ns=self.resolution_ns)
        else:
            envelope = old.envelope.successor(SKEW_SPREAD_CARRIED)
        envelope.pace = self._pace
        return Epoch(0 if old is None else old.number + 1, ticks, arrival_ns, envelope)

    def _adopt(self, epoch: Epoch) -> None:
        self.current = epoch
        self._polling.clear()
        self._surprise_ns = 0.0
        if self._recorder is not None:
            self._recorder.begin(epoch.number, epoch.origin_ticks, epoch.origin_host_ns)
        self._renew()

    def _feed(self, epoch: Epoch, ticks: int, arrival_ns: int) -> None:
        device_ns = (ticks - epoch.origin_ticks) * self._tick_ns
        epoch.envelope.add_one(device_ns, (arrival_ns - epoch.origin_host_ns) - device_ns)

    def _feed_all(
        self,
        epoch: Epoch,
        ticks: int,
        arrival_ns: int,
        block: tuple[NDArray[np.int64], NDArray[np.int64]] | None,
    ) -> None:
        if block is None:
            self._feed(epoch, ticks, arrival_ns)
            return
        device_ns: FloatArray = (block[0] - epoch.origin_ticks) * self._tick_ns
        epoch.envelope.add(device_ns, (block[1] - epoch.origin_host_ns) - device_ns)

    def _apart_ns(self, rival: _Rival) -> float:
        """Return by how much later the rival says that the newest sample was captured."""
        epoch = self.current
        assert epoch is not None
        new, old = rival.epoch.line, epoch.line
        assert new is not None
        assert old is not None
        shift_ns = (rival.epoch.origin_ticks - epoch.origin_ticks) * self._tick_ns
        at_ns = new.at_ns + shift_ns
        base_ns = (rival.epoch.origin_host_ns - epoch.origin_host_ns) - shift_ns
        return base_ns + new.offset_ns - (old.offset_ns + old.slope * (at_ns - old.at_ns))

    def _renew_if_new(self, rival: _Rival) -> None:
        epoch = self.current
        assert epoch is not None
        if self._rival is rival and self._lines != _state(epoch, rival):
            self._renew()

    def _renew(self) -> None:
        """Take note of new lines: what samples are stamped by, and what the next one is judged by."""
        epoch, rival = self.current, self._rival
        assert epoch is not None
        line = epoch.line
        self._lines = _state(epoch, rival)
        if line is None:
            self.stamping = None
            return
        self._watch_floor(line)
        if line.at_ns > self._surprised_until_ns:
            self._surprise_ns = 0.0
        bound_ns = line.statistical_ns + line.floor_ns
        moves_ns = self.step_ns + self._polling.unseen_ns
        self._gate_ns = moves_ns + 2 * bound_ns
        self._ahead_ns = moves_ns + AHEAD_WIDTHS * bound_ns + AHEAD_SCALES * line.scale_ns
        if line.window_ns < YOUNG_NS:
            self._ahead_ns = max(self._ahead_ns, AHEAD_NS + 10 * bound_ns)
        self._per_ns = OF_THE_WINDOW * bound_ns / max(line.window_ns, 1e9)
        self._held_ns = max(HELD_NS, HELD_SCALES * line.scale_ns)
        if rival is None or rival.epoch.line is None or not rival.is_doubted:
            self.stamping = Stamping(epoch, line, self._known(line.statistical_ns, line.floor_ns))
            return
        other = rival.epoch.line
        dt_ns = max(
            other.at_ns + (rival.epoch.origin_ticks - epoch.origin_ticks) * self._tick_ns - line.at_ns, 0.0
        )
        growth_ns = (self._per_ns + GATE_PER_NS2 * dt_ns) * dt_ns
        known = self._known(
            max(line.statistical_ns + growth_ns, other.statistical_ns),
            max(line.floor_ns, other.floor_ns) + abs(self._apart_ns(rival)),
        )
        leader = rival.epoch if rival.is_leading else epoch
        self.stamping = Stamping(leader, other if rival.is_leading else line, known)

    def _known(self, statistical_ns: float, floor_ns: float) -> Uncertainty:
        floor_ns += self._polling.unseen_ns + self._surprise_ns
        return Uncertainty(statistical_ns, floor_ns, self._asymmetry_ns)

    def _watch_floor(self, line: Line) -> None:
        if line.is_floor_moving and not self._is_floor_moving:
            assert self.current is not None
            at_ns = self.current.origin_host_ns + round(line.at_ns + line.offset_ns)
            self._note(
                ClockEventKind.FLOOR,
                at_ns,
                "the least latency moves: faster than a crystal drifts, so up to"
                f" {line.wander_ns / 1e3:.0f} us of the clock's wander may be latency",
            )
        self._is_floor_moving = line.is_floor_moving


def _state(epoch: Epoch, rival: _Rival | None) -> tuple[object, ...]:
    """Return what stamps depend on."""
    if rival is None:
        return (epoch.line,)
    return epoch.line, rival.epoch.line, rival.is_leading, rival.is_doubted
