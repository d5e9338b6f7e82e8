"""From the samples of a numeric device to its frames; the host joins frames by time (stages.py)."""

import struct
from collections.abc import Sequence

from sensorium.drivers.frame import Column, Frame, Loss, Place, stamps

_CODES = {
    "<i1": "b",
    "<u1": "B",
    "<i2": "h",
    "<u2": "H",
    "<i4": "i",
    "<u4": "I",
    "<i8": "q",
    "<u8": "Q",
    "<f4": "f",
    "<f8": "d",
}


MAX_FRAME_SAMPLES = 10
"""A frame takes no more: what a late read brings need not leave as one."""


class SampleFrames:
    """Gathers the samples that one read brings: those that follow on each other become one frame.

    Args:
        stream: The stream's name.
        columns: What a sample holds, one value per column.

    Attributes:
        next_seq: Number of the next sample.
    """

    def __init__(self, stream: str, columns: Sequence[Column]) -> None:
        self._stream = stream
        self._codes = [_CODES[column.dtype] for column in columns]
        self.next_seq = 0
        self._items: list[Frame | Loss] = []
        self._rows: list[Sequence[float]] = []
        self._ticks: list[int | None] = []
        self._arrivals_ns: list[int] = []
        self._meta: tuple[float, ...] = ()

    def add(
        self,
        row: Sequence[float],
        arrival_ns: int,
        tick: int | None = None,
        meta: tuple[float, ...] = (),
        missed: int = 0,
    ) -> None:
        """Take a sample, in front of which the device counted ``missed`` that never came."""
        if missed or not self._continues(tick, meta):
            self._end_frame()
        self.next_seq += missed + 1
        self._rows.append(row)
        self._ticks.append(tick)
        self._arrivals_ns.append(arrival_ns)
        self._meta = meta

    def _continues(self, tick: int | None, meta: tuple[float, ...]) -> bool:
        is_alike = not self._rows or (meta == self._meta and (tick is None) == (self._ticks[-1] is None))
        return is_alike and len(self._rows) < MAX_FRAME_SAMPLES

    def skip(self, missed: int) -> None:
        """Leave a gap of ``missed`` samples that never came."""
        self._end_frame()
        self.next_seq += missed

    def lose(self, count: int, place: Place, reason: str) -> None:
        """Book samples that lie between the last one and the next."""
        self._end_frame()
        self._items.append(Loss(self._stream, count, place, reason))
        self.next_seq += count

    def take(self) -> list[Frame | Loss]:
        """Return what has come since the last call, in order."""
        self._end_frame()
        taken, self._items = self._items, []
        return taken

    def _end_frame(self) -> None:
        count = len(self._rows)
        if not count:
            return
        ticks = [tick for tick in self._ticks if tick is not None]
        columns = zip(self._codes, zip(*self._rows, strict=True), strict=True)
        self._items.append(
            Frame(
                stream=self._stream,
                seq=self.next_seq - count,
                count=count,
                device_ticks=stamps(*ticks) if ticks else None,
                arrival_ns=stamps(*self._arrivals_ns),
                payload=b"".join([struct.pack(f"<{count}{code}", *values) for code, values in columns]),
                meta=self._meta,
            )
        )
        self._rows, self._ticks, self._arrivals_ns = [], [], []
