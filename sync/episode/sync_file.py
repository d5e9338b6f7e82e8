"""Writes ``sync.mcap``: alignment rows, clock models and clock events of an episode, behind its recording."""

from pathlib import Path

import zstandard

from sensorium.sync.align import SyncRow
from sensorium.sync.clocks.model import ClockModel
from sensorium.sync.episode.entries import (
    EVENTS,
    MODELS,
    ROWS,
    EntryFormat,
    EntryT,
    EpisodeEvent,
    RecordedModel,
)
from sensorium.sync.episode.files import SYNC_FILE
from sensorium.sync.episode.layouts import protobuf_schema
from sensorium.sync.episode.mcap_file import McapFile
from sensorium.sync.episode.open_chunk import OpenChunk
from sensorium.sync.episode.origin import END_METADATA, EPISODE_METADATA, pack_origin
from sensorium.timebase import SECOND_NS, Timeline

FLUSH_NS = SECOND_NS
_CHUNK_BYTES = 256 << 10
_ENTRIES = (ROWS, EVENTS, MODELS)


class SyncFile:
    """One file. A disk that is full raises ``WriteError``; the file is to be abandoned then."""

    def __init__(self, folder: Path, episode_id: str, timeline: Timeline) -> None:
        """Create the file in the folder of an open episode.

        Raises:
            EpisodeError: If it exists or the disk does not take it.
        """
        self._timeline = timeline
        self._file = McapFile(folder / SYNC_FILE)
        self._file.add_metadata(EPISODE_METADATA, pack_origin(episode_id, timeline))
        self._channels: dict[str, int] = {}
        for entry in _ENTRIES:
            schema = protobuf_schema(entry.message)
            schema_id = self._file.add_schema(schema.name, schema.encoding, schema.data)
            self._channels[entry.topic] = self._file.add_channel(entry.topic, "protobuf", schema_id, {})
        self._episode_id = episode_id
        self._compressor = zstandard.ZstdCompressor(level=1)
        self._chunk = OpenChunk(self._file, True, None)
        self._next_flush_ns = 0

    def row(self, row: SyncRow) -> None:
        """Add what matches one reference tick."""
        self.add(ROWS, row)

    def model(self, stream: str, instance: int, host_ns: int, model: ClockModel) -> None:
        """Add a clock model as it stands at ``host_ns``."""
        self.add(MODELS, RecordedModel(stream, instance, host_ns, model))

    def event(self, event: EpisodeEvent) -> None:
        """Add something that happened to a clock."""
        self.add(EVENTS, event)

    def add(self, entry: EntryFormat[EntryT], value: EntryT) -> None:
        """Add an entry of any of the three kinds."""
        utc_ns = max(entry.host_ns(value) + self._timeline.utc_minus_host_ns, 0)  # MCAP stamps are unsigned
        channel_id = self._channels[entry.topic]
        data = entry.pack(value, utc_ns)
        self._chunk.add(channel_id, 0, utc_ns, utc_ns, (data,), len(data))

    def step(self, now_ns: int) -> None:
        """Write what has been added, once a second or when it is much."""
        if now_ns >= self._next_flush_ns or self._chunk.size >= _CHUNK_BYTES:
            self._next_flush_ns = now_ns + FLUSH_NS
            self._flush()

    def _flush(self) -> None:
        if self._chunk.size:
            chunk, self._chunk = self._chunk, OpenChunk(self._file, True, None)
            self._file.add_chunk(chunk.pack(self._compressor))

    def close(self) -> None:
        """Write the rest and finish the file."""
        self._flush()
        self._file.add_metadata(END_METADATA, {"episode_id": self._episode_id, "truncated": "false"})
        self._file.finish()

    def abandon(self) -> None:
        """Close without finishing; the file is written anew before the episode is sealed."""
        self._file.abandon()
