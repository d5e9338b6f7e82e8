"""Pulses per second: edges numbered and named, and the system clock held against them."""

from collections import deque
from dataclasses import dataclass
from enum import Enum

import numpy as np

from sensorium.drivers.frame import Frame, StreamInfo
from sensorium.drivers.payloads.decoder import Decoder
from sensorium.errors import PayloadError
from sensorium.sync.clocks.model import Stamped
from sensorium.sync.distribution import Distribution
from sensorium.timebase import SECOND_NS
from sensorium.verdict import Quantity, Status, Verdict

MARKS = "marks"
UTC_SECOND = "utc_second"
"""``StreamInfo.details[MARKS]`` of a stream whose pulses mark the seconds of UTC."""
PHASE_LIMIT_NS = 1_000_000
"""A system clock that a daemon steers is well within a millisecond of a PPS."""
PHASE_WRONG_NS = 100_000_000
RATE_LIMIT_PPM = 2.0
"""A steered clock is held; a free one runs 5 to 100 ppm off. The temperature moves either by less than this."""
FEW_EDGES = 5
LONG_NS = 15 * SECOND_NS
"""Over less time the latency of interrupts looks like a rate."""


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


class PpsWatch:
    """Holds the host's REALTIME, as the kernel stamped the edges with it, against the PPS itself.

    The edges mark the seconds of UTC. By how far REALTIME's second misses an edge is its phase error, up to half a
    second; a change of it is a rate error. REALTIME also names the edges: a step by whole seconds, which leaves the
    phase as it was, gives names that disagree. Which second it truly is no pulse can say.
    """

    def __init__(self, info: StreamInfo) -> None:
        self._stream = info.name
        self._decoder = Decoder(info)
        self._tracker = PpsTracker()
        self.begin()

    def begin(self) -> None:
        """Begin a new episode: forget the numbers, keep the names."""
        self._edges = 0
        self._phase = Distribution()
        self._first: tuple[int, int] | None = None
        self._last: tuple[int, int] | None = None
        self._before = (self._tracker.missed, self._tracker.glitches, self._tracker.bad_labels)

    def take(self, frame: Frame, stamped: Stamped) -> None:
        """Take edges; the payload holds their stamps on REALTIME as int64 nanoseconds."""
        try:
            stamps_ns = self._decoder.columns(frame.payload, frame.count)[0]
        except PayloadError:  # recorded all the same; without names there is nothing to compare
            return
        for edge_ns, realtime_ns in zip(stamped.capture_ns.tolist(), stamps_ns.tolist(), strict=False):
            if self._tracker.edge(edge_ns) is Edge.GLITCH:
                continue
            utc_s = (realtime_ns + SECOND_NS // 2) // SECOND_NS
            self._tracker.label(utc_s, edge_ns)
            phase_ns = realtime_ns - utc_s * SECOND_NS
            self._edges += 1
            self._phase.add(abs(phase_ns))
            self._first = self._first or (edge_ns, phase_ns)
            self._last = (edge_ns, phase_ns)

    @property
    def phase_rate_ppm(self) -> float | None:
        """How much faster REALTIME runs than the PPS; None until known."""
        if self._first is None or self._last is None or self._last[0] - self._first[0] < LONG_NS:
            return None
        moved_ns = (self._last[1] - self._first[1] + SECOND_NS // 2) % SECOND_NS - SECOND_NS // 2
        return moved_ns / (self._last[0] - self._first[0]) * 1e6

    def verdict(self) -> Verdict:
        """Return whether the system clock keeps the seconds that the pulses mark."""
        missed, glitches, renamed = (
            now - before
            for now, before in zip(
                (self._tracker.missed, self._tracker.glitches, self._tracker.bad_labels),
                self._before,
                strict=True,
            )
        )
        quantities = [
            Quantity("edges", self._edges, "1"),
            Quantity("edges missed", missed, "1"),
            Quantity("glitches", glitches, "1"),
            Quantity("edges named otherwise", renamed, "1", threshold=0),
        ]
        if self._edges < FEW_EDGES:
            reason = f"{self._edges} edges came, at least {FEW_EDGES} are needed: is the antenna connected?"
            return Verdict("pps", self._stream, Status.INSUFFICIENT, tuple(quantities), (reason,))
        phase_ns = self._phase.percentile(50) or 0.0
        quantities.append(Quantity("phase of REALTIME", phase_ns / 1e3, "us", threshold=PHASE_LIMIT_NS / 1e3))
        rate_ppm = self.phase_rate_ppm
        if rate_ppm is not None:
            quantities.append(Quantity("rate of REALTIME", rate_ppm, "ppm", threshold=RATE_LIMIT_PPM))
        state = self._tracker.state
        if state is not None:
            host_ppm = (state.ns_per_second / SECOND_NS - 1) * 1e6
            quantities.append(Quantity("rate of the host's raw clock", host_ppm, "ppm"))
        status, reasons = _judge(phase_ns, rate_ppm, renamed)
        return Verdict("pps", self._stream, status, tuple(quantities), reasons)


def _judge(phase_ns: float, rate_ppm: float | None, renamed: int) -> tuple[Status, tuple[str, ...]]:
    found: list[tuple[Status, str]] = []
    if renamed:
        found.append(
            (
                Status.FAILED,
                f"the system clock gave {renamed} edges another second than before: it was stepped by whole "
                "seconds; UTC labels of this episode are not to be trusted, capture times are unaffected",
            )
        )
    if phase_ns > PHASE_LIMIT_NS:
        found.append(
            (
                Status.FAILED if phase_ns > PHASE_WRONG_NS else Status.SUSPECT,
                f"the system clock is {phase_ns / 1e6:.3f} ms off the PPS: UTC labels are as wrong; does "
                "chronyd or ntpd use this PPS?",
            )
        )
    if rate_ppm is not None and abs(rate_ppm) > RATE_LIMIT_PPM:
        found.append(
            (
                Status.SUSPECT,
                f"the system clock runs {rate_ppm:+.1f} ppm against the PPS: nobody steers it",
            )
        )
    statuses = [status for status, _ in found]
    status = Status.FAILED if Status.FAILED in statuses else Status.SUSPECT if statuses else Status.OK
    return status, tuple(reason for _, reason in found)
