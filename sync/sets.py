"""Aligned sets for whoever checks while recording: it asks and is answered with the next full row."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sensorium.drivers.frame import Frame, StreamInfo
from sensorium.sync.align import Match, SyncRow
from sensorium.timebase import SECOND_NS

_KEEP_NS = 2 * SECOND_NS
_WANTED_NS = 30 * SECOND_NS


@dataclass(frozen=True, slots=True)
class AlignedSet:
    """Frames that matched one tick, in the order asked for, with their capture times (host ns)."""

    tick_ns: int
    infos: tuple[StreamInfo, ...]
    frames: tuple[Frame, ...]
    capture_ns: tuple[int, ...]

    def members(self) -> Iterator[tuple[StreamInfo, Frame, int]]:
        """Yield (info, frame, capture time) of each stream."""
        return zip(self.infos, self.frames, self.capture_ns, strict=True)


@dataclass(slots=True)
class _Kept:
    seq: int
    end_seq: int
    capture_ns: int
    frame: Frame


class SetKeeper:
    """Keeps two seconds of the streams that somebody asked for lately, and joins them with the rows."""

    def __init__(self, reference: str) -> None:
        self.reference = reference
        self._kept: dict[str, deque[_Kept]] = {}
        self._wanted_until_ns: dict[str, int] = {}
        self._infos: dict[str, StreamInfo] = {}

    def want(self, streams: Sequence[str], now_ns: int) -> None:
        """Begin (or go on) keeping these streams for half a minute."""
        for stream in streams:
            self._wanted_until_ns[stream] = now_ns + _WANTED_NS

    def offer(self, info: StreamInfo, frame: Frame, capture_ns: int, now_ns: int) -> None:
        """Take in a frame that was just recorded."""
        until_ns = self._wanted_until_ns.get(info.name)
        if until_ns is None:
            return
        if now_ns > until_ns:
            del self._wanted_until_ns[info.name]
            self._kept.pop(info.name, None)
            return
        self._infos[info.name] = info
        kept = self._kept.setdefault(info.name, deque())
        kept.append(_Kept(frame.seq, frame.next_seq, capture_ns, frame))
        while kept[0].capture_ns < capture_ns - _KEEP_NS:
            kept.popleft()

    def answer(self, row: SyncRow, streams: Sequence[str]) -> AlignedSet | None:
        """Return the set for ``streams`` at this row, or None when one of them has no match in it."""
        seqs = {match.stream: match.seq for match in row.matches if match.outcome is Match.MATCHED}
        seqs[self.reference] = row.tick_seq
        found = [self._find(stream, seqs.get(stream)) for stream in streams]
        complete = [kept for kept in found if kept is not None]
        if len(complete) != len(streams):
            return None
        return AlignedSet(
            row.tick_ns,
            tuple(self._infos[stream] for stream in streams),
            tuple(kept.frame for kept in complete),
            tuple(kept.capture_ns for kept in complete),
        )

    def _find(self, stream: str, seq: int | None) -> _Kept | None:
        if seq is None:
            return None
        for kept in reversed(self._kept.get(stream, ())):
            if kept.seq <= seq < kept.end_seq:
                return kept
        return None
