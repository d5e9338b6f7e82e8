"""Hardware triggers and PPS: frames matched to the pulses that caused them, seconds to their edges.

A trigger's pulse is timed far better than any frame's arrival. Frames are matched by counter: the camera counts
its exposures, the trigger its pulses, and the difference of the two counts stays constant until a pulse is ignored
or an exposure happens without one. Approximate capture times (one-way estimates) tell that difference; they need to
be right within half a period, with a constant error allowed for through the declared latency.
"""

from collections import Counter, deque
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from sensorium.errors import ClockError
from sensorium.timebase import SECOND_NS
from sensorium.verdict import Quantity, Status, Verdict

Stamps = NDArray[np.int64]

_PERSIST = 3
"""A difference of the counters must hold for so many frames before it is believed; one frame may just be late."""
_BRIDGE_PERIODS = 4


class Pulse(str, Enum):
    """How a frame relates to the pulses (values are for reports)."""

    MATCHED = "matched"
    BRIDGED = "its pulse was not recorded; time from the neighbours"
    PULSE_LOST = "its pulse was not recorded"
    NO_PULSE = "exposed without a pulse"


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

    def middle_ns(self, edge_ns: Stamps, exposure_ns: NDArray[np.float64]) -> Stamps:
        """Return the instant that (n,) images stand for: mid-exposure of the middle row."""
        return self.row_middle_ns(edge_ns, exposure_ns, (self.rows - 1) / 2)


@dataclass(frozen=True, slots=True, eq=False)
class TriggerMatch:
    """Which pulse caused which frame; arrays have one entry per frame given.

    Attributes:
        pulse: Unwrapped pulse number; -1 for frames without one.
        edge_ns: Time of that pulse; -1 where it is unknown.
        outcome: One of :class:`Pulse`.
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
    lost_frames: int
    ignored_pulses: int
    unrecorded_pulses: int
    outside_pulses: int
    period_ns: float
    residual_ns: NDArray[np.float64]

    def verdict(self, subject: str) -> Verdict:
        """Return whether the camera follows its trigger."""
        counts = Counter(self.outcome)
        matched = counts[Pulse.MATCHED] + counts[Pulse.BRIDGED]
        spread_us = float(np.ptp(self.residual_ns)) / 1e3 if len(self.residual_ns) else 0.0
        quantities = (
            Quantity("frames matched", matched, "1"),
            Quantity("frames lost", self.lost_frames, "1"),
            Quantity("pulses ignored", self.ignored_pulses, "1"),
            Quantity("pulses not recorded", self.unrecorded_pulses, "1"),
            Quantity("frames without a pulse", counts[Pulse.NO_PULSE], "1"),
            Quantity("spread of the approximate times", spread_us, "us", threshold=self.period_ns / 2e3),
        )
        reasons = [
            f"{count} {what}"
            for count, what in (
                (
                    counts[Pulse.NO_PULSE],
                    "frames were exposed without a pulse: is the camera in trigger mode?",
                ),
                (
                    self.ignored_pulses,
                    "pulses were ignored by the camera: the exposure may exceed the period",
                ),
                (self.lost_frames, "frames were exposed but never came"),
                (self.unrecorded_pulses, "pulses are missing from the trigger's record"),
            )
            if count
        ]
        if not self.outcome:
            return Verdict("trigger", subject, Status.INSUFFICIENT, quantities, ("no frames",))
        if counts[Pulse.NO_PULSE] > matched:
            return Verdict("trigger", subject, Status.FAILED, quantities, tuple(reasons))
        is_followed = not counts[Pulse.NO_PULSE] and not self.ignored_pulses
        return Verdict(
            "trigger",
            subject,
            Status.OK if is_followed else Status.SUSPECT,
            quantities,
            tuple(reasons),
        )


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
        raise ClockError(
            f"trigger: the frames' latency is known to {latency_bound_ns / 1e6:.1f} ms only, more than half the "
            f"period of {period_ns / 1e6:.1f} ms; which pulse caused a frame cannot be told"
        )
    pulses = unwrap_counter(pulse_count, pulse_modulus, pulse_ns, period_ns)
    frames = unwrap_counter(frame_count, frame_modulus, approximate_ns, period_ns)
    edges_seen_ns = approximate_ns - shutter.middle_ns(np.zeros(len(frames), np.int64), exposure_ns)
    nearest = _pulse_at(pulses, pulse_ns, edges_seen_ns, period_ns)
    difference, spurious = _differences(frames, nearest)
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
        lost_frames=int((np.diff(frames) - 1).sum()) if len(frames) else 0,
        ignored_pulses=ignored,
        unrecorded_pulses=int((np.diff(pulses) - 1).sum()),
        outside_pulses=int(((pulses < first) | (pulses > last)).sum()),
        period_ns=period_ns,
        residual_ns=np.asarray(approximate_ns - middle_ns, np.float64)[has_edge],
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


def _differences(frames: Stamps, nearest: Stamps) -> tuple[Stamps, NDArray[np.bool_]]:
    """Return each frame's (pulse - frame) count, and which frames had no pulse of their own.

    A new difference is believed once it held for ``_PERSIST`` frames. When it falls, as many frames as it fell
    by were exposed without a pulse: those before the fall share their pulse with a neighbour.
    """
    raw = nearest - frames
    out = raw.copy()
    spurious = np.zeros(len(raw), np.bool_)
    if not len(raw):
        return out, spurious
    current = int(Counter(raw[: 4 * _PERSIST].tolist()).most_common(1)[0][0])
    index = 0
    while index < len(raw):
        ahead = raw[index : index + _PERSIST]
        if raw[index] != current and (ahead == raw[index]).all() and len(ahead) == _PERSIST:
            fall = current - int(raw[index])
            if 0 < fall <= _PERSIST:
                spurious[max(index - fall, 0) : index] = True
            current = int(raw[index])
        out[index] = current
        index += 1
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


class Edge(str, Enum):
    """What a PPS edge was."""

    FIRST = "first"
    SECOND = "second"
    GLITCH = "glitch"


@dataclass(frozen=True, slots=True)
class PpsState:
    """The UTC of a PPS: ``utc_s`` is the whole second of the edge at ``edge_ns`` (host)."""

    edge_ns: int
    utc_s: int
    ns_per_second: float
    bound_ns: float

    def utc_ns(self, host_ns: int) -> int:
        """Return the UTC of a host time near the edge."""
        return self.utc_s * SECOND_NS + round((host_ns - self.edge_ns) * SECOND_NS / self.ns_per_second)


class PpsTracker:
    """Numbers the edges of a pulse per second and names them by the messages (NMEA, UBX) that follow.

    An edge that is not a whole number of seconds after the last one is a glitch; skipped seconds are missed
    edges. A message names the last edge before its arrival; the name is used once three in a row agree, and a
    name that then disagrees is counted, not believed, until three in a row agree again.
    """

    def __init__(self, tolerance_ns: int = 2_000_000, max_skew_ppm: float = 200.0, window: int = 32) -> None:
        """Args:
        tolerance_ns: Largest latency jitter of an edge's stamp.
        max_skew_ppm: Largest rate error of the host clock.
        """
        self._tolerance_ns, self._max_skew = tolerance_ns, max_skew_ppm * 1e-6
        self._edges: deque[tuple[int, int]] = deque(maxlen=window)
        self._offset_s: int | None = None
        self._candidate: tuple[int, int] | None = None
        self._glitches_in_row: list[int] = []
        self.glitches = 0
        self.missed = 0
        self.bad_labels = 0

    def edge(self, host_ns: int) -> Edge:
        """Take an edge, in order."""
        if not self._edges:
            self._edges.append((0, host_ns))
            return Edge.FIRST
        number, last_ns = self._edges[-1]
        elapsed_ns = host_ns - last_ns
        seconds = round(elapsed_ns / SECOND_NS)
        slack_ns = self._tolerance_ns + self._max_skew * elapsed_ns
        if seconds < 1 or abs(elapsed_ns - seconds * SECOND_NS) > slack_ns:
            self.glitches += 1
            if self._begins_anew(host_ns):
                return Edge.FIRST
            return Edge.GLITCH
        self.missed += seconds - 1
        self._glitches_in_row.clear()
        self._edges.append((number + seconds, host_ns))
        return Edge.SECOND

    def _begins_anew(self, host_ns: int) -> bool:
        """Return whether three "glitches" in a row are a second apart: then the first edge was the glitch."""
        row = self._glitches_in_row
        if row and abs(host_ns - row[-1] - SECOND_NS) > self._tolerance_ns + self._max_skew * SECOND_NS:
            row.clear()
        row.append(host_ns)
        if len(row) < 3:
            return False
        self._edges.clear()
        self._edges.extend(enumerate(row))
        self._offset_s = self._candidate = None
        row.clear()
        return True

    def label(self, utc_s: int, arrival_ns: int) -> bool:
        """Take a message that names the edge before it; return whether it agrees with what is known."""
        before = [number for number, edge_ns in self._edges if 0 <= arrival_ns - edge_ns < SECOND_NS]
        if not before:
            return False
        offset_s = utc_s - before[-1]
        if offset_s == self._offset_s:
            self._candidate = None
            return True
        count = self._candidate[1] + 1 if self._candidate and self._candidate[0] == offset_s else 1
        self._candidate = (offset_s, count)
        if count >= 3:
            self._offset_s, self._candidate = offset_s, None
            return True
        if self._offset_s is not None:
            self.bad_labels += 1
        return False

    @property
    def state(self) -> PpsState | None:
        """The newest edge as UTC; None until it has a name.

        Stamps of edges are late, never early: the line lies under them. Its slope is the median of slopes over
        half the window (Theil-Sen), its height the least of the last edges'.
        """
        if self._offset_s is None or len(self._edges) < 4:
            return None
        numbers = np.array([number for number, _ in self._edges])
        origin_ns = self._edges[0][1]
        times = np.array([edge_ns - origin_ns for _, edge_ns in self._edges], np.float64)
        half = len(times) // 2
        rest = len(times) - half
        slope = float(np.median((times[half:] - times[:rest]) / (numbers[half:] - numbers[:rest])))
        excess = times - slope * (numbers - numbers[-1])
        height, spread = float(excess.min()), float(np.median(excess) - excess.min())
        return PpsState(
            origin_ns + round(height),
            int(numbers[-1]) + self._offset_s,
            slope,
            spread / np.sqrt(len(times)) + 1.0,
        )
