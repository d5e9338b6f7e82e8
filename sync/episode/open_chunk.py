"""The chunk that is being filled: messages by reference, the stamps of their frames, and whose they are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import zstandard

from sensorium.drivers.frame import Frame
from sensorium.sync.clocks.model import Stamped
from sensorium.sync.episode.chunks import PackedChunk, join_small, pack_chunk
from sensorium.sync.episode.mcap_file import McapFile
from sensorium.sync.episode.mcap_records import MESSAGE, MESSAGE_HEAD, Buffer, Index
from sensorium.sync.episode.stamp_rows import HEAD_BYTES, StampRows


@dataclass(slots=True)
class Share:
    """What a chunk holds of one stream instance."""

    frames: int = 0
    samples: int = 0
    payload_bytes: int = 0

    def add(self, frame: Frame) -> None:
        self.frames += 1
        self.samples += frame.count
        self.payload_bytes += len(frame.payload)


class OpenChunk:
    """Collects messages; whoever fills it hands it on whole and never touches it again.

    Attributes:
        opened_ns: When the first message came; None until the next step tells the time.
        size: Bytes of the messages so far.
        reserved_bytes: What the stamps of the frames will add to that, at most.
        shares: By (stream, instance).
        held: What to return to its owner once the chunk is written or given up, in order.
    """

    __slots__ = (
        "_end_ns",
        "_index",
        "_parts",
        "_stamps",
        "_start_ns",
        "file",
        "held",
        "is_compressible",
        "opened_ns",
        "reserved_bytes",
        "shares",
        "size",
    )

    def __init__(self, file: McapFile, is_compressible: bool, opened_ns: int | None) -> None:
        self.file = file
        self.is_compressible = is_compressible
        self.opened_ns = opened_ns
        self.size = 0
        self.reserved_bytes = 0
        self.shares: dict[tuple[str, int], Share] = {}
        self.held: list[Any] = []
        self._parts: list[Buffer] = []
        self._index: Index = {}
        self._start_ns = 1 << 64
        self._end_ns = 0
        self._stamps: dict[int, StampRows] = {}

    def add(
        self, channel_id: int, sequence: int, log_ns: int, publish_ns: int, parts: Sequence[Buffer], size: int
    ) -> None:
        """Take one message; ``size`` is that of its ``parts``, which are referenced."""
        head = MESSAGE_HEAD.pack(MESSAGE, 22 + size, channel_id, sequence & 0xFFFFFFFF, log_ns, publish_ns)
        entries = self._index.get(channel_id)
        if entries is None:
            entries = self._index[channel_id] = []
        entries += (log_ns, self.size)
        if log_ns < self._start_ns:
            self._start_ns = log_ns
        if log_ns > self._end_ns:
            self._end_ns = log_ns
        self._parts.append(head)
        self._parts += parts
        self.size += MESSAGE_HEAD.size + size

    def stamp(
        self, channel_id: int, instance: int, frame: Frame, stamped: Stamped, log_ns: int, row_bytes: int
    ) -> None:
        """Note the stamps of a frame whose message was added, and whose frame it is."""
        rows = self._stamps.get(channel_id)
        if rows is None:
            rows = self._stamps[channel_id] = StampRows()
            self.reserved_bytes += HEAD_BYTES + MESSAGE_HEAD.size
        rows.add(instance, frame, stamped, log_ns)
        self.reserved_bytes += row_bytes
        key = (frame.stream, instance)
        share = self.shares.get(key)
        if share is None:
            share = self.shares[key] = Share()
        share.add(frame)

    @property
    def is_quick(self) -> bool:
        """Whether ``complete`` takes no longer than handing it to another thread would."""
        return all(rows.are_few for rows in self._stamps.values())

    def complete(self) -> None:
        """Add the stamps of the frames, and join what is small; once that is done nothing can be added."""
        stamps, self._stamps = self._stamps, {}
        for channel_id, rows in stamps.items():
            data = rows.pack()
            self.add(channel_id, len(rows.frames), rows.last_log_ns, rows.last_log_ns, (data,), len(data))
        self._parts = join_small(self._parts)

    def pack(self, compressor: zstandard.ZstdCompressor | None) -> PackedChunk:
        """Return the chunk as it goes to the file, complete; called once, by a thread in the background."""
        self.complete()
        return pack_chunk(self._parts, self._index, self._start_ns, self._end_ns, compressor)

    def release(self) -> None:
        """Forget the messages, which may be somebody else's memory; shares and ``held`` remain."""
        self._parts, self._index, self._stamps = [], {}, {}
