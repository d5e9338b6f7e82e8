"""Alignment of streams on the ticks of a reference stream, behind a watermark.

Every reference tick lists what matches it of each other stream, with the residual, or the reason why nothing
does; every frame of an event-like stream is matched or counted under a reason. A stream that has fallen
silent holds a tick back for at most its declared largest latency.
"""

from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from sensorium.drivers.frame import StreamInfo
from sensorium.sync.distribution import Distribution
from sensorium.timebase import SECOND_NS

_GAP_PERIODS = 3.0
"""Interpolation across more than this many nominal periods is not a match."""


class Match(str, Enum):
    """How a stream answered a tick (the values are also the reasons counted for unmatched samples)."""

    MATCHED = "matched"
    OUT_OF_TOLERANCE = "out of tolerance"
    NEARER_TO_ANOTHER = "nearer to another tick"
    GAP = "gap too wide to interpolate"
    NOT_STARTED = "stream had not started"
    SILENT = "stream was silent"
    NOT_RECORDED = "not recorded"
    LATE = "arrived after its tick was decided"
    NO_TICK = "no reference tick within tolerance"
    OUTSIDE = "outside the reference's span"


@dataclass(frozen=True, slots=True)
class Matched:
    """One stream's answer to one tick.

    Attributes:
        seq: The matching sample; for interpolated streams the last one at or before the tick; None without.
        residual_ns: Capture time minus tick; 0 for interpolated streams.
        gap_ns: Distance of the two samples that interpolation joins; 0 for nearest matches.
        bound_ns: 95 % bound of the sample's capture time.
    """

    stream: str
    outcome: Match
    seq: int | None = None
    residual_ns: int = 0
    gap_ns: int = 0
    bound_ns: float = 0.0


@dataclass(frozen=True, slots=True)
class SyncRow:
    """A reference tick and its matches; ``tick_ns`` is host time."""

    tick_seq: int
    tick_ns: int
    matches: tuple[Matched, ...]


@dataclass(slots=True)
class _Block:
    """Samples of one frame: their times, or the first and last time of a uniform block."""

    first_ns: int
    last_ns: int
    seq: int
    count: int
    bound_ns: float
    times_ns: NDArray[np.int64] | None
    is_used: bool = False

    @property
    def middle_ns(self) -> int:
        return (self.first_ns + self.last_ns) // 2

    def distance_ns(self, tick_ns: int) -> int:
        """Return how far the tick lies outside the block; 0 within it, as in a LiDAR sweep."""
        return max(self.first_ns - tick_ns, tick_ns - self.last_ns, 0)


@dataclass(slots=True)
class StreamAlignment:
    """What the episode says about one stream's alignment."""

    matched: int = 0
    unmatched: Counter[str] = field(default_factory=Counter)
    ticks_without: Counter[str] = field(default_factory=Counter)
    residual_ns: Distribution = field(default_factory=Distribution)

    def residual_us(self) -> tuple[float, float, float] | None:
        """Return (p50, p95, max) of the absolute residual, or for interpolated streams of the gap, in us."""
        p50, p95 = self.residual_ns.percentile(50), self.residual_ns.percentile(95)
        if p50 is None or p95 is None:
            return None
        return p50 / 1e3, p95 / 1e3, self.residual_ns.max / 1e3


class _Track:
    def __init__(self, info: StreamInfo) -> None:
        self.info = info
        self.blocks: deque[_Block] = deque()
        self.started_ns: int | None = None
        self.seen_until_ns: int | None = None
        self.decided_until_ns: int | None = None
        self.not_recorded = False
        self.result = StreamAlignment()
        self.is_interpolated = info.is_sampled or info.modality.value == "audio"
        self.period_ns = int(SECOND_NS / info.rate_hz) if info.rate_hz else 0
        self.gap_limit_ns = int(_GAP_PERIODS * self.period_ns) or SECOND_NS

    def covers(self, until_ns: int, now_ns: int, tick_ns: int) -> bool:
        """Return whether nothing that concerns ``tick_ns`` can still come."""
        if self.seen_until_ns is not None and self.seen_until_ns >= until_ns:
            return True
        return self.not_recorded or now_ns - tick_ns > self.info.latency.max_ns

    def nearest(self, tick_ns: int) -> _Block | None:
        return min(self.blocks, key=lambda block: abs(block.middle_ns - tick_ns), default=None)


class Aligner:
    """Joins streams on the ticks of ``reference``; call :meth:`add` on arrival and :meth:`advance` after."""

    def __init__(self, reference: str, tolerance_ns: int) -> None:
        self.reference = reference
        self.tolerance_ns = tolerance_ns
        self._tracks: dict[str, _Track] = {}
        self._ticks: deque[_Block] = deque()
        self._first_tick_ns: int | None = None
        self._last_tick_ns: int | None = None

    def declare(self, info: StreamInfo) -> None:
        """Make a stream known; again after a driver's restart is harmless."""
        self._tracks.setdefault(info.name, _Track(info))

    def results(self) -> dict[str, StreamAlignment]:
        return {name: track.result for name, track in self._tracks.items()}

    def add(self, stream: str, seq: int, count: int, capture_ns: NDArray[np.int64], bound_ns: float) -> None:
        """Take in the capture times of one recorded frame ((k,) int64, k = ``count`` or 1)."""
        track = self._tracks[stream]
        first, last = int(capture_ns[0]), int(capture_ns[-1])
        if len(capture_ns) == 1 and count > 1 and track.info.rate_hz:
            last = first + int((count - 1) * SECOND_NS / track.info.rate_hz)
        times = capture_ns if len(capture_ns) == count and count > 1 else None
        block = _Block(first, last, seq, count, bound_ns, times)
        track.not_recorded = False
        track.started_ns = first if track.started_ns is None else min(first, track.started_ns)
        track.seen_until_ns = max(last, track.seen_until_ns or last)
        if stream == self.reference:
            self._ticks.append(block)
            return
        if track.decided_until_ns is not None and block.middle_ns < track.decided_until_ns:
            if track.is_interpolated:
                track.blocks.append(block)  # still brackets later ticks
            else:
                track.result.unmatched[Match.LATE.value] += count
            return
        track.blocks.append(block)

    def withhold(self, stream: str) -> None:
        """Tell that the stream's frames are not recorded now (consent, pause): nobody waits for them."""
        self._tracks[stream].not_recorded = True

    def advance(self, now_ns: int) -> list[SyncRow]:
        """Return the rows that are decided at host time ``now_ns``."""
        rows = []
        while self._ticks:
            tick_ns = self._ticks[0].middle_ns
            until_ns = tick_ns + 2 * self.tolerance_ns
            if not all(track.covers(until_ns, now_ns, tick_ns) for track in self._tracks.values()):
                break
            rows.append(self._decide(self._ticks.popleft()))
        return rows

    def finish(self) -> list[SyncRow]:
        """Return the remaining rows at the end of an episode and count what was never matched."""
        rows = []
        while self._ticks:
            rows.append(self._decide(self._ticks.popleft()))
        for track in self._tracks.values():
            while track.blocks:
                self._retire(track, track.blocks.popleft())
        return rows

    def _decide(self, tick: _Block) -> SyncRow:
        tick_ns = tick.middle_ns
        self._first_tick_ns = tick_ns if self._first_tick_ns is None else self._first_tick_ns
        self._last_tick_ns = tick_ns
        matches = []
        for name, track in self._tracks.items():
            if name == self.reference:
                track.result.matched += tick.count
                continue
            answer = (self._interpolate if track.is_interpolated else self._nearest)(track, tick)
            if answer.outcome is Match.MATCHED:
                track.result.residual_ns.add(answer.gap_ns or abs(answer.residual_ns))
            else:
                track.result.ticks_without[answer.outcome.value] += 1
            matches.append(answer)
            track.decided_until_ns = tick_ns
            self._forget(track, tick_ns)
        return SyncRow(tick.seq, tick_ns, tuple(matches))

    def _nearest(self, track: _Track, tick: _Block) -> Matched:
        tick_ns = tick.middle_ns
        block = track.nearest(tick_ns)
        if block is None:
            return Matched(track.info.name, self._absence(track, tick_ns))
        residual = block.middle_ns - tick_ns
        if block.distance_ns(tick_ns) > self.tolerance_ns:
            outcome = self._absence(track, tick_ns)
            return Matched(track.info.name, outcome)
        following = self._ticks[0].middle_ns if self._ticks else None
        if block.is_used or (following is not None and abs(block.middle_ns - following) < abs(residual)):
            return Matched(track.info.name, Match.NEARER_TO_ANOTHER)
        block.is_used = True
        return Matched(track.info.name, Match.MATCHED, block.seq, residual, 0, block.bound_ns)

    def _interpolate(self, track: _Track, tick: _Block) -> Matched:
        tick_ns = tick.middle_ns
        before: tuple[int, int, float] | None = None
        after_ns: int | None = None
        for block in track.blocks:
            if block.first_ns > tick_ns:
                after_ns = block.first_ns if after_ns is None else min(after_ns, block.first_ns)
                continue
            times = _times(block)
            index = bisect_left(times, tick_ns + 1) - 1
            candidate = int(times[index])
            if before is None or candidate > before[0]:
                before = (candidate, block.seq + index, block.bound_ns)
                after_ns = None
            if index + 1 < len(times):
                after_ns = int(times[index + 1]) if after_ns is None else min(after_ns, int(times[index + 1]))
        if before is None or (after_ns is None and before[0] != tick_ns):
            return Matched(track.info.name, self._absence(track, tick_ns))
        gap = 0 if after_ns is None else after_ns - before[0]
        if gap > track.gap_limit_ns:
            return Matched(track.info.name, Match.GAP, gap_ns=gap)
        return Matched(track.info.name, Match.MATCHED, before[1], 0, gap, before[2])

    def _absence(self, track: _Track, tick_ns: int) -> Match:
        if track.not_recorded:
            return Match.NOT_RECORDED
        started_ns = track.started_ns
        if started_ns is None or started_ns > tick_ns + self.tolerance_ns:
            return Match.NOT_STARTED
        if track.seen_until_ns is None or track.seen_until_ns < tick_ns - self.tolerance_ns:
            return Match.SILENT
        return Match.OUT_OF_TOLERANCE

    def _forget(self, track: _Track, tick_ns: int) -> None:
        """Retire what no later tick can use; an interpolated stream keeps its last block before the tick."""
        while track.blocks:
            block = track.blocks[0]
            if track.is_interpolated:
                is_past = len(track.blocks) > 1 and track.blocks[1].first_ns <= tick_ns
            else:
                is_past = block.last_ns < tick_ns - self.tolerance_ns
            if not is_past:
                return
            self._retire(track, track.blocks.popleft())

    def _retire(self, track: _Track, block: _Block) -> None:
        result = track.result
        if track.is_interpolated:
            inside = self._inside(block, track.period_ns)
            result.matched += inside
            if block.count > inside:
                result.unmatched[Match.OUTSIDE.value] += block.count - inside
        elif block.is_used:
            result.matched += block.count
        else:
            result.unmatched[Match.NO_TICK.value] += block.count

    def _inside(self, block: _Block, period_ns: int) -> int:
        """Return how many samples lie within the ticks' span, widened by one period to bracket its ends."""
        if self._first_tick_ns is None or self._last_tick_ns is None:
            return 0
        times = _times(block)
        begin = bisect_left(times, self._first_tick_ns - period_ns)
        return bisect_left(times, self._last_tick_ns + period_ns + 1) - begin


class _UniformTimes(Sequence[int]):
    """Times of a block that is stamped once: evenly spaced from its first to its last sample."""

    def __init__(self, block: _Block) -> None:
        self._block = block

    def __len__(self) -> int:
        return self._block.count

    def __getitem__(self, index: int) -> int:  # type: ignore[override]
        block = self._block
        if not 0 <= index < block.count:
            raise IndexError(index)
        if block.count == 1:
            return block.first_ns
        return block.first_ns + (block.last_ns - block.first_ns) * index // (block.count - 1)


def _times(block: _Block) -> Sequence[int]:
    if block.times_ns is not None:
        return block.times_ns  # type: ignore[return-value]
    return _UniformTimes(block)
