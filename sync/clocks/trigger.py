"""Hardware triggers: frames matched to the pulses that caused them.

A trigger's pulse is timed far better than any frame's arrival. Frames are matched by counter: the camera counts
its exposures, the trigger its pulses, and the difference of the two counts stays constant until a pulse is ignored
or an exposure happens without one. Approximate capture times (one-way estimates) tell that difference; they need to
be right within half a period, with a constant error allowed for through the declared latency.

:func:`match_trigger` matches a finished recording; :class:`~sensorium.sync.clocks.triggered.TriggerMatcher` does it
while recording.
"""

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from sensorium.errors import ClockError
from sensorium.verdict import Quantity, Status, Verdict

Stamps = NDArray[np.int64]

PERSIST = 3
"""A difference of the counters must hold for so many frames before it is believed; one frame may just be late."""
_BRIDGE_PERIODS = 4


class Pulse(str, Enum):
    """How a frame relates to the pulses (values are for reports)."""

    MATCHED = "matched"
    BRIDGED = "the pulse was not recorded; time from its neighbours"
    PULSE_LOST = "the pulse was not recorded"
    NO_PULSE = "they were exposed without a pulse"


@dataclass(frozen=True, slots=True)
class Shutter:
    """From the trigger's edge to the middle of the exposure.

    Attributes:
        delay_ns: Edge to start of exposure (data sheet: "trigger latency"); ``bound_ns`` bounds its error.
        row_ns: Time from one row's exposure to the next; 0 for a global shutter.
        rows: Rows of the image.
    """

    delay_ns: int = 0
    bound_ns: int = 0
    row_ns: float = 0.0
    rows: int = 1

    def row_middle_ns(self, edge_ns: Stamps, exposure_ns: NDArray[np.float64], row: float) -> Stamps:
        """Return when (n,) frames exposed the middle of a row (fractions count)."""
        after: Stamps = np.rint(self.delay_ns + exposure_ns / 2 + row * self.row_ns).astype(np.int64)
        return edge_ns + after

    def after_edge_ns(self, exposure_ns: float) -> int:
        """Return how long after its edge one image stands: mid-exposure of the middle row."""
        return round(self.delay_ns + exposure_ns / 2 + (self.rows - 1) / 2 * self.row_ns)

    def middle_ns(self, edge_ns: Stamps, exposure_ns: NDArray[np.float64]) -> Stamps:
        """Return the instant that (n,) images stand for: mid-exposure of the middle row."""
        return self.row_middle_ns(edge_ns, exposure_ns, (self.rows - 1) / 2)


@dataclass(slots=True)
class TriggerCounts:
    """What became of the pulses and of the frames of one camera.

    Attributes:
        matched: Frames that have the time of their own pulse.
        bridged: Frames whose pulse was not recorded, with a time from its neighbours.
        estimated: Frames that kept the ordinary estimate, by the reason why.
        lost_frames: Exposures that the camera counted, but whose frames never came.
        ignored_pulses: Pulses that the camera did not answer.
        spurious_frames: Exposures without a pulse.
        pulses: Pulses recorded.
        unrecorded_pulses: Numbers missing from the trigger's own record.
        slips: How often the camera's times left their pulses and had to be found again.
        is_loose: They keep leaving them in one direction: the camera runs freely.
        refusal: Why nothing can be matched at all, and what to do; "" otherwise.
        counts_exposures: The camera has a counter of its own; else a lost frame looks like an ignored pulse.
        least_ns, most_ns, sum_ns: Of the ordinary estimates minus the times by the pulses.
    """

    matched: int = 0
    bridged: int = 0
    estimated: Counter[str] = field(default_factory=Counter)
    lost_frames: int = 0
    ignored_pulses: int = 0
    spurious_frames: int = 0
    pulses: int = 0
    unrecorded_pulses: int = 0
    slips: int = 0
    is_loose: bool = False
    refusal: str = ""
    counts_exposures: bool = True
    period_ns: float = 0.0
    least_ns: float = float("inf")
    most_ns: float = float("-inf")
    sum_ns: float = 0.0

    def residual(self, residual_ns: float) -> None:
        """Note by how much the estimate of a matched frame is later than its pulse says."""
        self.least_ns, self.most_ns = min(self.least_ns, residual_ns), max(self.most_ns, residual_ns)
        self.sum_ns += residual_ns

    def add(self, other: "TriggerCounts") -> None:
        """Add what another instance of the same camera's driver counted."""
        for name in ("matched", "bridged", "lost_frames", "ignored_pulses", "spurious_frames"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("pulses", "unrecorded_pulses", "slips"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.estimated += other.estimated
        self.is_loose |= other.is_loose
        self.counts_exposures &= other.counts_exposures
        self.refusal = other.refusal or self.refusal
        self.period_ns = other.period_ns or self.period_ns
        self.least_ns, self.most_ns = min(self.least_ns, other.least_ns), max(self.most_ns, other.most_ns)
        self.sum_ns += other.sum_ns

    def verdict(self, subject: str) -> Verdict:
        """Return whether the camera follows its trigger."""
        matched, estimated = self.matched + self.bridged, self.estimated.total()
        quantities = [
            Quantity("frames matched", matched, "1"),
            Quantity("frames with the ordinary estimate", estimated, "1"),
            Quantity("frames lost", self.lost_frames, "1"),
            Quantity("pulses ignored", self.ignored_pulses, "1"),
            Quantity("pulses not recorded", self.unrecorded_pulses, "1"),
            Quantity("frames without a pulse", self.spurious_frames, "1"),
        ]
        if matched:
            spread_us, limit_us = (self.most_ns - self.least_ns) / 1e3, self.period_ns / 2e3
            quantities += [
                Quantity("spread of the ordinary estimates", spread_us, "us", threshold=limit_us),
                Quantity("ordinary estimates are late by", self.sum_ns / matched / 1e3, "us"),
            ]
        status, reasons = self._judge(matched, estimated)
        return Verdict("trigger", subject, status, tuple(quantities), reasons)

    def _judge(self, matched: int, estimated: int) -> tuple[Status, tuple[str, ...]]:
        if self.refusal:
            return Status.INSUFFICIENT, (self.refusal,)
        if not matched + estimated:
            return Status.INSUFFICIENT, ("no frames",)
        if not self.pulses:
            return Status.FAILED, ("no pulse came: is the trigger running and connected?",)
        reasons = self._reasons()
        if self.is_loose or self.spurious_frames > matched:
            return Status.FAILED, reasons
        if not matched:
            return Status.INSUFFICIENT, (*reasons, "no frame could be matched with a pulse")
        is_followed = not (self.spurious_frames or self.ignored_pulses or self.slips)
        return (Status.OK if is_followed else Status.SUSPECT), reasons

    def _reasons(self) -> tuple[str, ...]:
        ignored = "pulses ignored by the camera: {}; the exposure may exceed the period"
        if not self.counts_exposures:
            ignored = (
                "pulses without a frame: {}; ignored or lost, which a camera without a counter cannot tell"
            )
        found = (
            (self.spurious_frames, "frames exposed without a pulse: {}; is the camera in trigger mode?"),
            (self.ignored_pulses, ignored),
            (
                self.slips,
                "frames left their pulses and found others: {} times; is the camera in trigger mode?",
            ),
            (self.lost_frames, "frames that were exposed but never came: {}"),
            (self.unrecorded_pulses, "pulses missing from the trigger's record: {}"),
        )
        kept = (
            f"frames with the ordinary estimate: {count}, because {why}"
            for why, count in self.estimated.items()
        )
        return (*(sentence.format(count) for count, sentence in found if count), *kept)


@dataclass(frozen=True, slots=True, eq=False)
class TriggerMatch:
    """Which pulse caused which frame; arrays have one entry per frame given.

    Attributes:
        pulse: Unwrapped pulse number; -1 for frames without one.
        edge_ns: Time of that pulse; -1 where it is unknown.
        outcome: One of :class:`Pulse`.
        pulses: How many were recorded.
        lost_frames: Exposures that the camera counted, but whose frames never came.
        ignored_pulses: Pulses that the camera did not answer.
        unrecorded_pulses: Numbers missing from the trigger's own record, within its span.
        outside_pulses: Pulses recorded before the first frame's or after the last one's.
        residual_ns: Approximate capture time minus middle of exposure, of matched frames.
    """

    pulse: Stamps
    edge_ns: Stamps
    capture_ns: Stamps
    outcome: tuple[Pulse, ...]
    pulses: int
    lost_frames: int
    ignored_pulses: int
    unrecorded_pulses: int
    outside_pulses: int
    period_ns: float
    residual_ns: NDArray[np.float64]

    @property
    def counts(self) -> TriggerCounts:
        """What became of the pulses and of the frames."""
        outcomes = Counter(self.outcome)
        found = TriggerCounts(
            matched=outcomes[Pulse.MATCHED],
            bridged=outcomes[Pulse.BRIDGED],
            lost_frames=self.lost_frames,
            ignored_pulses=self.ignored_pulses,
            spurious_frames=outcomes[Pulse.NO_PULSE],
            pulses=self.pulses,
            unrecorded_pulses=self.unrecorded_pulses,
            period_ns=self.period_ns,
        )
        for outcome in (Pulse.PULSE_LOST, Pulse.NO_PULSE):
            if outcomes[outcome]:
                found.estimated[outcome.value] = outcomes[outcome]
        for residual_ns in self.residual_ns.tolist():
            found.residual(residual_ns)
        return found

    def verdict(self, subject: str) -> Verdict:
        """Return whether the camera follows its trigger."""
        return self.counts.verdict(subject)


def unwrap_counter(counts: Stamps, modulus: int | None, times_ns: Stamps, period_ns: float) -> Stamps:
    """Return (n,) counts of a counter that wraps, made continuous.

    A step is taken modulo ``modulus``; whole turns that were missed in a long gap come from the elapsed time.

    Raises:
        ClockError: If a count is not below the modulus, or counts do not ascend.
    """
    counts = np.asarray(counts, np.int64)
    steps = np.diff(counts)
    if modulus is not None:
        if counts.size and (counts.min() < 0 or counts.max() >= modulus):
            raise ClockError(f"counter reads {counts.max()}, but wraps at {modulus}")
        steps = steps % modulus
        if period_ns > 0:
            expected = np.diff(times_ns) / period_ns
            steps = steps + modulus * np.maximum(np.rint((expected - steps) / modulus), 0).astype(np.int64)
    if (steps <= 0).any():
        at = int(np.argmax(steps <= 0))
        raise ClockError(f"counter does not ascend: {int(counts[at])} is followed by {int(counts[at + 1])}")
    return np.concatenate([counts[:1], counts[:1] + np.cumsum(steps)]).astype(np.int64)


def match_trigger(
    pulse_count: Stamps,
    pulse_ns: Stamps,
    frame_count: Stamps,
    approximate_ns: Stamps,
    exposure_ns: NDArray[np.float64],
    shutter: Shutter,
    *,
    pulse_modulus: int | None = None,
    frame_modulus: int | None = None,
    latency_bound_ns: float = 0.0,
) -> TriggerMatch:
    """Match frames with the pulses that caused them.

    Args:
        pulse_count: (p,) counter values of the recorded pulses, in order.
        pulse_ns: (p,) host times of their edges.
        frame_count: (f,) the camera's own exposure counter, in order.
        approximate_ns: (f,) capture times of the frames (middle of exposure), each right to half a period.
        exposure_ns: (f,) exposure times.
        latency_bound_ns: Bound on the constant error of ``approximate_ns``; beyond half a period the match is
            ambiguous by whole pulses, which is refused.

    Raises:
        ClockError: If there are too few pulses, counters do not ascend, or the match would be ambiguous.
    """
    if len(pulse_count) < 2:
        raise ClockError(f"trigger: {len(pulse_count)} pulses recorded, at least 2 are needed")
    known_steps = np.diff(pulse_count) if pulse_modulus is None else np.diff(pulse_count) % pulse_modulus
    period_ns = float(np.median(np.diff(pulse_ns) / np.maximum(known_steps, 1)))
    if latency_bound_ns >= period_ns / 2:
        raise ClockError(ambiguity(latency_bound_ns, period_ns))
    pulses = unwrap_counter(pulse_count, pulse_modulus, pulse_ns, period_ns)
    frames = unwrap_counter(frame_count, frame_modulus, approximate_ns, period_ns)
    edges_seen_ns = approximate_ns - shutter.middle_ns(np.zeros(len(frames), np.int64), exposure_ns)
    nearest = _pulse_at(pulses, pulse_ns, edges_seen_ns, period_ns)
    misfit_ns = edges_seen_ns - np.interp(nearest, pulses, pulse_ns)
    misfit_ns = np.abs(misfit_ns - np.median(misfit_ns)) if len(frames) else misfit_ns
    difference, spurious = _differences(frames, nearest, misfit_ns)
    number = np.where(spurious, -1, frames + difference)
    edge_ns, outcome = _edges(pulses, pulse_ns, number)
    middle_ns = shutter.middle_ns(edge_ns, exposure_ns)
    has_edge = edge_ns >= 0
    steps = np.diff(difference)
    first, last = (int(number[~spurious][0]), int(number[~spurious][-1])) if (~spurious).any() else (0, -1)
    ignored = int(np.maximum(steps, 0).sum())
    return TriggerMatch(
        pulse=number,
        edge_ns=edge_ns,
        capture_ns=np.where(has_edge, middle_ns, approximate_ns),
        outcome=outcome,
        pulses=len(pulses),
        lost_frames=int((np.diff(frames) - 1).sum()) if len(frames) else 0,
        ignored_pulses=ignored,
        unrecorded_pulses=int((np.diff(pulses) - 1).sum()),
        outside_pulses=int(((pulses < first) | (pulses > last)).sum()),
        period_ns=period_ns,
        residual_ns=np.asarray(approximate_ns - middle_ns, np.float64)[has_edge],
    )


def ambiguity(latency_bound_ns: float, period_ns: float) -> str:
    """Return why frames whose latency is known so badly cannot be matched, and what to do."""
    return (
        f"the frames' latency is known to {latency_bound_ns / 1e6:.1f} ms only, not to half the "
        f"period of {period_ns / 1e6:.1f} ms; which pulse caused a frame cannot be told. Measure "
        f"the latency and narrow late_ms, or trigger more slowly"
    )


def _pulse_at(pulses: Stamps, pulse_ns: Stamps, edges_ns: Stamps, period_ns: float) -> Stamps:
    """Return the number of the pulse nearest to each time, also of pulses that were not recorded."""
    if not len(edges_ns):
        return np.empty(0, np.int64)
    index = np.clip(np.searchsorted(pulse_ns, edges_ns), 1, len(pulses) - 1)
    left, right = index - 1, index
    # Between two records the pulses are even; beyond the ends they go on at the usual period.
    span = np.maximum(pulse_ns[right] - pulse_ns[left], 1)
    inside = pulses[left] + (edges_ns - pulse_ns[left]) / span * (pulses[right] - pulses[left])
    before = pulses[0] + (edges_ns - pulse_ns[0]) / period_ns
    after = pulses[-1] + (edges_ns - pulse_ns[-1]) / period_ns
    number = np.where(edges_ns < pulse_ns[0], before, np.where(edges_ns > pulse_ns[-1], after, inside))
    rounded: Stamps = np.rint(number).astype(np.int64)
    return rounded


def _differences(
    frames: Stamps, nearest: Stamps, misfit_ns: NDArray[np.float64]
) -> tuple[Stamps, NDArray[np.bool_]]:
    """Return each frame's (pulse - frame) count, and which frames had no pulse of their own.

    A new difference is believed once it held for ``PERSIST`` frames. When it falls, as many frames as it fell
    by were exposed without a pulse: of those around the fall, which share their pulses, the ones that fit worst.
    """
    raw = nearest - frames
    out = raw.copy()
    spurious = np.zeros(len(raw), np.bool_)
    if not len(raw):
        return out, spurious
    current = int(Counter(raw[: 4 * PERSIST].tolist()).most_common(1)[0][0])
    for index in range(len(raw)):
        ahead = raw[index : index + PERSIST]
        before = current
        if raw[index] != current and (ahead == raw[index]).all() and len(ahead) == PERSIST:
            current = int(raw[index])
        out[index] = current
        fall = before - current
        if 0 < fall <= PERSIST:
            around = slice(max(index - fall, 0), index + 1)
            is_worst = np.zeros(index + 1 - around.start, np.bool_)
            is_worst[np.argsort(misfit_ns[around], kind="stable")[-fall:]] = True
            spurious[around] |= is_worst
            out[around] = before - np.cumsum(is_worst)
    return out, spurious


def _edges(pulses: Stamps, pulse_ns: Stamps, number: Stamps) -> tuple[Stamps, tuple[Pulse, ...]]:
    index = np.clip(np.searchsorted(pulses, number), 0, len(pulses) - 1)
    edge_ns = np.full(len(number), -1, np.int64)
    outcome = []
    for row, wanted in enumerate(number.tolist()):
        at = int(index[row])
        if wanted < 0:
            outcome.append(Pulse.NO_PULSE)
        elif pulses[at] == wanted:
            edge_ns[row] = pulse_ns[at]
            outcome.append(Pulse.MATCHED)
        elif at > 0 and pulses[at] > wanted and pulses[at] - pulses[at - 1] <= _BRIDGE_PERIODS:
            share = (wanted - int(pulses[at - 1])) / int(pulses[at] - pulses[at - 1])
            edge_ns[row] = pulse_ns[at - 1] + round(share * int(pulse_ns[at] - pulse_ns[at - 1]))
            outcome.append(Pulse.BRIDGED)
        else:
            outcome.append(Pulse.PULSE_LOST)
    return edge_ns, tuple(outcome)
