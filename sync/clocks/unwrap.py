"""Raw device counters made into one growing count per epoch: wraps, resets, duplicates, steps back."""

import math
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from sensorium.drivers.frame import ClockKind, DeviceClock

TOLERANCE_NS = 500_000_000
"""A tick further than this from where the host expects it belongs to a restarted clock (spec 2)."""
TOLERANCE_PER_NS = 1e-3
"""Crystals are within 1000 ppm of each other; the tolerance grows with the gap by that much."""
SHORT_MODULUS_NS = 4_000_000_000
"""Counters that wrap faster than this cannot be told apart by arrival alone: a stall spans several wraps."""
HELD_NS = 50_000_000
"""Lateness that no ordinary latency explains."""
AS_COUNTED = 0.3
"""A tick within this share of a period of where the sequence number expects it is that sample's."""
MISSED_AFTER = 4
"""So many ticks in a row that are late by a whole turn of a short counter, and do not catch up: turns were missed."""
FROZEN_AFTER = 4
"""So many equal ticks in a row are not a duplicate any more: the device's clock stands still."""


class TickKind(Enum):
    """What a raw tick is, seen after its predecessor."""

    FIRST = "first"
    NEXT = "next"
    DUPLICATE = "duplicate"
    FROZEN = "frozen"
    BACKWARDS = "backwards"
    RESET = "reset"


@dataclass(frozen=True, slots=True)
class Unwrapped:
    """Unwrapped ticks of one frame.

    Attributes:
        ticks: (k,) int64; comparable within ``epoch`` only.
        usable: (k,) bool, or None = all: False where a tick says nothing about time (duplicate,
            frozen, backwards).
        kinds: One kind per tick that is not plainly the next one, with its index.
        epoch: Epoch of the last tick.
        epoch_start: Index of the first tick of ``epoch`` in this frame (0 unless a reset lies inside).
    """

    ticks: NDArray[np.int64]
    usable: NDArray[np.bool_] | None
    kinds: tuple[tuple[int, TickKind], ...]
    epoch: int
    epoch_start: int


class Unwrapper:
    """Turns raw ticks into unwrapped ticks, one frame at a time.

    A tick that grows is accepted however late it comes: the device went on and its samples were held back (how late
    a sample is can grow by no more than the silence before it). What is refused and begins a new epoch: a tick
    that lies more than 0.5 s (and 1e-3 of the gap) in the future of the quickest recent arrival, one that runs
    back by 0.5 s or more, and a counter that wraps during a silence to a value that it has if it began at zero in
    that silence, but neither with the host's time nor with the count of samples. Values at or above the
    modulus are tolerated (Velodyne counts past the hour).

    Args:
        clock: How ticks count.
        period_ticks: Nominal ticks per sample; 0 = unknown. Decides the wrap of short counters.
        max_latency_ns: Longer silences are more likely a restart than samples held back across a wrap.
    """

    def __init__(self, clock: DeviceClock, period_ticks: float = 0.0, max_latency_ns: int = 1_000_000_000):
        self.epoch = 0
        self._tick_ns = clock.tick_ns
        self._modulus = clock.modulus
        self._is_short = clock.modulus is not None and clock.modulus * clock.tick_ns < SHORT_MODULUS_NS
        self._period_ticks = period_ticks
        self._max_latency_ns = max_latency_ns
        # A tick coarser than the sample period repeats in good order.
        self._is_coarse = 0 < period_ticks < (0.9 if clock.kind is ClockKind.SAMPLES else 2)
        self._is_started = False
        self._last_ticks = 0
        self._last_raw = 0
        self._last_seq = 0
        self._last_arrival_ns = 0
        self._equal_run = 0
        self._missed_run = 0
        self._anchor_ticks = 0
        self._anchor_ns = 0

    @property
    def last_ticks(self) -> int:
        return self._last_ticks

    def nearest(self, raw_ticks: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return raw ticks unwrapped to the value nearest to the last accepted tick; changes nothing."""
        if self._modulus is None:
            return raw_ticks
        wraps = np.rint((self._last_ticks - raw_ticks) / self._modulus).astype(np.int64)
        return raw_ticks + wraps * self._modulus

    def place(self, raw: int, seq: int) -> int:
        """Return the unwrapped count of a tick seen before, known by its raw value and sequence number."""
        if self._modulus is None:
            return raw
        expected: float = self._last_ticks
        if self._is_short and self._period_ticks > 0:
            expected += (seq - self._last_seq) * self._period_ticks
        return raw + round((expected - raw) / self._modulus) * self._modulus

    def step(self, raw: int, arrival_ns: int, seq: int) -> tuple[int, TickKind]:
        """Unwrap one tick and return it with its kind; a reset has begun a new epoch."""
        if not self._is_started:
            self._is_started = True
            return self._restart(raw, arrival_ns, seq), TickKind.FIRST
        since_anchor_ns = arrival_ns - self._anchor_ns
        slack_ns = TOLERANCE_PER_NS * abs(since_anchor_ns)
        ticks = self._unwrap(raw, since_anchor_ns, slack_ns, seq)
        late_ns = since_anchor_ns - (ticks - self._anchor_ticks) * self._tick_ns
        moved = ticks - self._last_ticks
        if self._is_short:
            missed = self._missed(late_ns, moved, arrival_ns)
            ticks, moved = ticks + missed, moved + missed
            late_ns -= missed * self._tick_ns
        if moved == 0 and not self._is_coarse:
            self._last_seq, self._last_arrival_ns = seq, arrival_ns
            self._equal_run += 1
            return ticks, TickKind.FROZEN if self._equal_run >= FROZEN_AFTER else TickKind.DUPLICATE
        self._equal_run = 0
        if (
            late_ns < -TOLERANCE_NS - slack_ns
            or moved * self._tick_ns <= -TOLERANCE_NS
            or (late_ns > HELD_NS and self._is_begun_anew(raw, ticks, arrival_ns, seq))
        ):
            self.epoch += 1
            return self._restart(raw, arrival_ns, seq), TickKind.RESET
        if late_ns <= slack_ns:
            self._anchor_ticks, self._anchor_ns = ticks, arrival_ns
        self._last_ticks, self._last_raw = ticks, raw
        self._last_seq, self._last_arrival_ns = seq, arrival_ns
        return ticks, TickKind.BACKWARDS if moved < 0 else TickKind.NEXT

    def frame(self, raw: NDArray[np.int64], arrival_ns: NDArray[np.int64], seq: int) -> Unwrapped:
        """Unwrap the (k,) ticks of one frame; ``arrival_ns`` is (k,), or (1,) = of the last tick."""
        first, kind = self.step(int(raw[0]), int(arrival_ns[0]), seq)
        kinds: list[tuple[int, TickKind]] = [] if kind is TickKind.NEXT else [(0, kind)]
        if raw.size == 1:
            usable = None if kind not in UNUSABLE else np.zeros(1, np.bool_)
            return Unwrapped(np.array([first], np.int64), usable, tuple(kinds), self.epoch, 0)
        moved = np.diff(raw)
        if self._modulus is not None:
            half = self._modulus // 2
            moved = (moved + half) % self._modulus - half
        span_ns = float(moved.sum()) * self._tick_ns
        if kind in UNUSABLE or int(moved.min()) <= 0 or span_ns > TOLERANCE_NS:
            return self._frame_one_by_one(raw, arrival_ns, seq, first, kinds)
        ticks = np.concatenate(([first], first + np.cumsum(moved)))
        self._last_ticks, self._last_raw = int(ticks[-1]), int(raw[-1])
        self._last_seq, self._last_arrival_ns = seq + raw.size - 1, int(arrival_ns[-1])
        self._equal_run = 0
        offset_ns = arrival_ns - ticks[-arrival_ns.size :] * self._tick_ns
        best = int(offset_ns.argmin())
        best_ticks = int(ticks[best - arrival_ns.size])
        since_ns = int(arrival_ns[best]) - self._anchor_ns
        late_ns = since_ns - (best_ticks - self._anchor_ticks) * self._tick_ns
        if late_ns <= TOLERANCE_PER_NS * abs(since_ns):
            self._anchor_ticks, self._anchor_ns = best_ticks, int(arrival_ns[best])
        return Unwrapped(ticks, None, tuple(kinds), self.epoch, 0)

    def allow_repeats(self) -> None:
        """Take equal ticks in a row for granted: the clock's step is coarser than was declared."""
        self._is_coarse = True

    def anchor(self, ticks: int, arrival_ns: int) -> None:
        """Expect ticks from here on as this one tells: another judge found that the clock was stepped."""
        self._anchor_ticks, self._anchor_ns = ticks, arrival_ns

    def _frame_one_by_one(
        self,
        raw: NDArray[np.int64],
        arrival_ns: NDArray[np.int64],
        seq: int,
        first: int,
        kinds: list[tuple[int, TickKind]],
    ) -> Unwrapped:
        ticks = np.empty(raw.size, np.int64)
        ticks[0] = first
        epoch_start = 0
        for index in range(1, raw.size):
            stamp_ns = int(arrival_ns[index if arrival_ns.size > 1 else 0])
            ticks[index], kind = self.step(int(raw[index]), stamp_ns, seq + index)
            if kind is not TickKind.NEXT:
                kinds.append((index, kind))
            if kind is TickKind.RESET:
                epoch_start = index
        usable = np.ones(raw.size, np.bool_)
        for index, kind in kinds:
            usable[index] = kind not in UNUSABLE
        return Unwrapped(ticks, usable, tuple(kinds), self.epoch, epoch_start)

    def _unwrap(self, raw: int, since_anchor_ns: int, slack_ns: float, seq: int) -> int:
        modulus = self._modulus
        if modulus is None:
            return raw
        counted = self._last_ticks + (seq - self._last_seq) * self._period_ticks
        if self._is_short and self._period_ticks > 0:
            # A stall delays arrivals by several wraps; the samples in between were counted all the same.
            return raw + round((counted - raw) / modulus) * modulus
        # Latency is never negative: take the latest tick that is not in the future.
        now = self._anchor_ticks + since_anchor_ns / self._tick_ns
        slack = 0.05 * modulus if self._is_short else (TOLERANCE_NS + slack_ns) / self._tick_ns
        ticks = raw + math.floor((now + slack - raw) / modulus) * modulus
        if self._period_ticks > 0:
            # Samples that were held for more than a turn of the counter are those that the count expects.
            held = raw + round((counted - raw) / modulus) * modulus
            if self._last_ticks < held < ticks and abs(held - counted) <= AS_COUNTED * self._period_ticks:
                return held
        return ticks

    def _missed(self, late_ns: float, moved: int, arrival_ns: int) -> int:
        """Return the ticks of the turns of a short counter that passed uncounted, once that is sure.

        Samples that were lost without a gap in the sequence numbers leave the count behind by whole turns. Samples
        that were held back are as late, but come quicker than they were captured.
        """
        assert self._modulus is not None
        turns = int(late_ns / (self._modulus * self._tick_ns))
        is_steady = arrival_ns - self._last_arrival_ns >= 0.5 * moved * self._tick_ns
        self._missed_run = self._missed_run + 1 if turns >= 1 and is_steady else 0
        if self._missed_run < MISSED_AFTER:
            return 0
        self._missed_run = 0
        return turns * self._modulus

    def _is_begun_anew(self, raw: int, ticks: int, arrival_ns: int, seq: int) -> bool:
        """Return whether a wrap was none: the counter began at zero while nothing came."""
        if self._modulus is None or self._is_short or raw >= self._last_raw:
            return False
        silence_ns = arrival_ns - self._last_arrival_ns
        is_silence = silence_ns > 2 * HELD_NS + 5 * self._period_ticks * self._tick_ns
        counted = self._last_ticks + (seq - self._last_seq) * self._period_ticks
        is_counted = self._period_ticks > 0 and abs(ticks - counted) <= AS_COUNTED * self._period_ticks
        is_held = is_counted and silence_ns <= self._max_latency_ns
        return is_silence and raw * self._tick_ns <= silence_ns and not is_held

    def _restart(self, raw: int, arrival_ns: int, seq: int) -> int:
        self._last_ticks = self._last_raw = raw
        self._last_seq, self._last_arrival_ns = seq, arrival_ns
        self._equal_run = self._missed_run = 0
        self._anchor_ticks, self._anchor_ns = raw, arrival_ns
        return raw


UNUSABLE = frozenset({TickKind.DUPLICATE, TickKind.FROZEN, TickKind.BACKWARDS})


def credible_late_ns(clock: DeviceClock, max_latency_ns: int) -> int:
    """Return up to which lateness the unwrapped tick of a sample is not in doubt."""
    if clock.modulus is None or clock.modulus * clock.tick_ns >= SHORT_MODULUS_NS:
        return max_latency_ns
    return min(max_latency_ns, int(clock.modulus * clock.tick_ns))
