"""Aligned sets for whoever checks while recording: it asks and is answered with the next full row.

One request at a time. What is kept for it is bounded: twenty seconds of the streams that were asked for lately, without
their payloads.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sensorium.drivers.frame import Frame, StreamInfo
from sensorium.sync.align import Match, SyncRow
from sensorium.sync.episode.tail import EpisodeTail
from sensorium.timebase import SECOND_NS

_KEEP_NS = 20 * SECOND_NS
"""By so much a stream may be behind another one (a driver, or a simulated rig, on a busy machine)."""
MAX_KEPT_BYTES = 96 << 20
"""Of one stream, should its frames still hold their payloads; then large ones are kept for less time."""
_WANTED_NS = 60 * SECOND_NS
MARGIN_NS = SECOND_NS // 20
"""Frames beside a set reach this far over its first and last capture."""
PATIENCE_NS = 3 * SECOND_NS // 2
"""How long a full row waits for the frames beside it; the IMU of the same instant may arrive later."""


@dataclass(frozen=True, slots=True, eq=False)
class KeptFrame:
    """A recorded frame with its capture times (host ns, as many as the frame has stamps)."""

    info: StreamInfo
    frame: Frame
    capture_ns: NDArray[np.int64]

    @property
    def first_ns(self) -> int:
        return int(self.capture_ns[0])

    @property
    def last_ns(self) -> int:
        """Capture of the last sample; by the nominal rate where only the first is stamped."""
        span_ns = 0
        if len(self.capture_ns) == 1 and self.frame.count > 1 and self.info.rate_hz:
            span_ns = int((self.frame.count - 1) * SECOND_NS / self.info.rate_hz)
        return int(self.capture_ns[-1]) + span_ns


@dataclass(frozen=True, slots=True)
class AlignedSet:
    """Frames that matched one tick of an episode.

    Attributes:
        started_ns: Start of the episode; like ``tick_ns`` on the host's clock.
        members: In the order asked for.
        beside: All frames of the streams wanted beside, from before the first member to after the last; fewer
            where such a stream is silent.
        burst: Frames of the first stream that follow its member, where a burst was asked for.
    """

    episode_id: str
    started_ns: int
    tick_ns: int
    members: tuple[KeptFrame, ...]
    beside: tuple[KeptFrame, ...] = ()
    burst: tuple[KeptFrame, ...] = ()


@dataclass(frozen=True, slots=True)
class SetRequest:
    """Streams of which one frame each is wanted, and streams of which all around it are (an IMU).

    Attributes:
        burst_ns: So long after the first stream's frame its next ones are wanted too, with what is beside them.
        burst_step_ns: At least so far apart.
    """

    streams: tuple[str, ...]
    beside: tuple[str, ...] = ()
    burst_ns: int = 0
    burst_step_ns: int = 0


def filled(found: AlignedSet, tail: EpisodeTail) -> AlignedSet | None:
    """Return a set with the payloads of its frames from the open episode's files; None if one is not there yet."""
    members, beside, burst = (
        [_filled(kept, tail) for kept in frames] for frames in (found.members, found.beside, found.burst)
    )
    if any(kept is None for kept in (*members, *beside, *burst)):
        return None
    return replace(
        found,
        members=tuple(filter(None, members)),
        beside=tuple(filter(None, beside)),
        burst=tuple(filter(None, burst)),
    )


def _filled(kept: KeptFrame, tail: EpisodeTail) -> KeptFrame | None:
    frame = kept.frame
    payload = tail.payload(kept.info, frame.seq, int(frame.arrival_ns[-1]))
    return None if payload is None else replace(kept, frame=replace(frame, payload=payload))


class SetKeeper:
    """Keeps twenty seconds of the streams that somebody asked for lately, and joins them with the rows."""

    def __init__(self) -> None:
        self._reference = ""
        self._episode = ("", 0)
        self._kept: dict[str, deque[KeptFrame]] = {}
        self._bytes: dict[str, int] = {}
        self._wanted_until_ns: dict[str, int] = {}
        self._request: SetRequest | None = None
        self._pending: AlignedSet | None = None
        self._pending_since_ns = 0

    def begin(self, episode_id: str, started_ns: int, reference: str) -> None:
        """Note which episode the rows belong to from now on."""
        self._episode, self._reference = (episode_id, started_ns), reference

    def request(self, request: SetRequest, now_ns: int) -> None:
        """Look for the next row in which all streams match; replaces an earlier request."""
        for stream in (*request.streams, *request.beside):
            self._wanted_until_ns[stream] = now_ns + _WANTED_NS
        self._request, self._pending = request, None

    def wants(self, stream: str) -> bool:
        """Return whether frames of a stream are to be offered."""
        return stream in self._wanted_until_ns

    def offer(self, info: StreamInfo, frame: Frame, capture_ns: NDArray[np.int64], now_ns: int) -> None:
        """Take in a frame of a stream that is wanted."""
        if now_ns > self._wanted_until_ns[info.name]:
            del self._wanted_until_ns[info.name]
            self._kept.pop(info.name, None)
            self._bytes.pop(info.name, None)
            return
        kept = self._kept.setdefault(info.name, deque())
        kept.append(KeptFrame(info, frame, capture_ns))
        size = self._bytes.get(info.name, 0) + len(frame.payload)
        while kept[0].first_ns < int(capture_ns[0]) - _KEEP_NS or (size > MAX_KEPT_BYTES and len(kept) > 1):
            size -= len(kept.popleft().frame.payload)
        self._bytes[info.name] = size

    def row(self, row: SyncRow, now_ns: int) -> None:
        """Take in a row of the open episode."""
        if self._request is None or self._pending is not None:
            return
        seqs = {match.stream: match.seq for match in row.matches if match.outcome is Match.MATCHED}
        seqs[self._reference] = row.tick_seq
        found = [self._find(stream, seqs.get(stream)) for stream in self._request.streams]
        members = tuple(kept for kept in found if kept is not None)
        if len(members) == len(self._request.streams):
            self._pending = AlignedSet(*self._episode, row.tick_ns, members)
            self._pending_since_ns = now_ns

    def take(self, now_ns: int) -> AlignedSet | None:
        """Return the set that was asked for once it is there with what is wanted beside it; then forget it."""
        if self._pending is None or self._request is None:
            return None
        members, burst_ns = self._pending.members, self._request.burst_ns
        following = self._kept.get(self._request.streams[0], ())
        until_ns = members[0].first_ns + burst_ns
        burst = following_frames(following, members[0], until_ns, self._request.burst_step_ns)
        # Time offsets of up to a margin are looked for in a burst.
        margin_ns = 2 * MARGIN_NS if burst_ns else MARGIN_NS
        start_ns = min(kept.first_ns for kept in members) - margin_ns
        end_ns = max(kept.last_ns for kept in (*members, *burst)) + margin_ns
        blocks = [self._kept.get(stream, ()) for stream in self._request.beside]
        is_covered = all(kept and kept[-1].last_ns >= end_ns for kept in blocks)
        is_covered &= not burst_ns or bool(following and following[-1].first_ns >= until_ns)
        if not is_covered and now_ns - self._pending_since_ns < PATIENCE_NS:
            return None
        beside = tuple(kept for block in blocks for kept in _overlapping(block, start_ns, end_ns))
        found = replace(self._pending, beside=beside, burst=burst)
        self._request, self._pending = None, None
        return found

    def missing(self) -> Sequence[str]:
        """Return the streams asked for of which nothing was recorded lately."""
        wanted = self._request.streams if self._request is not None else ()
        return [stream for stream in wanted if not self._kept.get(stream)]

    def cancel(self) -> None:
        """Stop looking."""
        self._request, self._pending = None, None

    def _find(self, stream: str, seq: int | None) -> KeptFrame | None:
        if seq is None:
            return None
        for kept in reversed(self._kept.get(stream, ())):
            if kept.frame.seq <= seq < kept.frame.next_seq:
                return kept
        return None


def following_frames(
    kept: Iterable[KeptFrame], first: KeptFrame, until_ns: int, step_ns: int
) -> tuple[KeptFrame, ...]:
    """Return the frames after ``first`` up to an instant, at least ``step_ns`` apart; none if it is not later."""
    found: list[KeptFrame] = []
    next_ns = first.first_ns + max(step_ns, 1)
    for each in kept:
        if next_ns <= each.first_ns <= until_ns:
            found.append(each)
            next_ns = each.first_ns + max(step_ns, 1)
    return tuple(found)


def _overlapping(block: Iterable[KeptFrame], start_ns: int, end_ns: int) -> Iterator[KeptFrame]:
    return (kept for kept in block if kept.last_ns >= start_ns and kept.first_ns <= end_ns)
