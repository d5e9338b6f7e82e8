"""Reads an episode back: streams, frames exactly as they were published, and what was noted beside."""

import heapq
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sensorium.drivers.frame import Frame, StreamInfo
from sensorium.errors import EpisodeError
from sensorium.sync.align import SyncRow
from sensorium.sync.episode.aligned import AlignedOptions, AlignedRow, StampsOf, aligned_rows
from sensorium.sync.episode.entries import (
    BASES,
    EVENTS,
    MODELS,
    ROWS,
    EntryFormat,
    EntryT,
    EpisodeEvent,
    RecordedModel,
)
from sensorium.sync.episode.files import DATA_FILE, MANIFEST_FILE, recorded_files
from sensorium.sync.episode.folder import names_in
from sensorium.sync.episode.layouts import MessageLayout, layout_for, load_stream_info
from sensorium.sync.episode.manifest import Manifest, read_manifest
from sensorium.sync.episode.mcap_reader import McapReader
from sensorium.sync.episode.mcap_records import ChunkIndex, messages
from sensorium.sync.episode.origin import EPISODE_METADATA, parse_origin
from sensorium.sync.episode.recorded import RecordedFrame
from sensorium.sync.episode.stamp_reader import StampRow, unpack_stamps
from sensorium.sync.episode.writer import STAMPS_SUFFIX, STREAM_INFO_KEY
from sensorium.timebase import BaseReading, Timeline

_Chunk = tuple[int, McapReader, ChunkIndex]
"""A chunk, the file that it lies in, and when (UTC ns) it comes."""
_NO_ROWS: Iterator[StampRow] = iter(())


@dataclass(frozen=True, slots=True)
class _Source:
    """One stream in its file."""

    reader: McapReader
    info: StreamInfo
    layout: MessageLayout
    channel_id: int
    stamps_id: int
    rank: int


class Episode:
    """A closed episode folder, sealed or not.

    Attributes:
        manifest: The signed manifest; None while the episode is not sealed.
        streams: Declarations by name, as the files themselves carry them.
        timeline: The host clock that all stamps are on.
    """

    def __init__(self, path: Path, files: Collection[str] | None = None) -> None:
        """Open the episode in folder ``path``, which may be a store's copy.

        Args:
            files: Of a sealed episode: open these alone, by their names in the manifest; None = all that are there.

        Raises:
            EpisodeError: If it is no episode, is torn, or its manifest does not check out.
        """
        self.path = path
        if not path.is_dir():
            raise EpisodeError(f"{path} is not an episode folder")
        self.manifest: Manifest | None = read_manifest(path) if (path / MANIFEST_FILE).exists() else None
        self._names = {DATA_FILE: DATA_FILE} if self.manifest is None else names_in(path, self.manifest)
        self._readers: list[McapReader] = []
        try:
            for file in self._recordings(files):
                self._readers.append(McapReader(file))
            self.episode_id, self.timeline = self._read_origin()
            self._sources = self._find_streams()
        except BaseException:
            self.close()
            raise
        self.streams = {name: source.info for name, source in self._sources.items()}

    def _recordings(self, files: Collection[str] | None) -> list[Path]:
        """Return what to open: of a sealed episode what its manifest names, so that litter is not read."""
        data = self.path / self._names.get(DATA_FILE, DATA_FILE)
        if not data.is_file() and (files is None or DATA_FILE in files):
            raise EpisodeError(f"{self.path} is not an episode: it has no {data.name}")
        if self.manifest is None:
            return recorded_files(self.path)
        chosen = [name for name in self._names if name.endswith(".mcap") and (files is None or name in files)]
        return sorted(path for name in chosen if (path := self.path / self._names[name]).is_file())

    def close(self) -> None:
        for reader in self._readers:
            reader.close()

    def __enter__(self) -> "Episode":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def frames(
        self,
        names: Collection[str] | None = None,
        since_ns: int | None = None,
        until_ns: int | None = None,
    ) -> Iterator[RecordedFrame]:
        """Yield the frames of all (or the named) streams in order of arrival.

        Only chunks that overlap the current instant are held in memory.

        Args:
            since_ns: Leave out chunks of which nothing arrived at this host time or later.
            until_ns: Read of each stream no chunk after the one with its first frame that was captured at this host
                time or later; how late it arrived does not matter, because captures of a stream never run backwards.

        Raises:
            EpisodeError: If a name is unknown, or a file is damaged.
        """
        chosen = self._choose(names)
        waiting: list[tuple[int, int, int, int, RecordedFrame]] = []
        since_utc_ns = None if since_ns is None else since_ns + self.timeline.utc_minus_host_ns
        last_offsets: dict[int, int] = {}
        for start_ns, reader, chunk in self._chunks(chosen):
            if since_utc_ns is not None and chunk.end_ns < since_utc_ns:
                continue
            wanted = [each for each in chosen if chunk.offset <= last_offsets.get(each.rank, chunk.offset)]
            if not any(each.reader is reader and each.channel_id in chunk.index_offsets for each in wanted):
                continue
            while waiting and waiting[0][0] < start_ns:
                yield heapq.heappop(waiting)[4]
            for index, (log_ns, source, recorded) in enumerate(_chunk_frames(reader, chunk, wanted)):
                heapq.heappush(waiting, (log_ns, source.rank, chunk.offset, index, recorded))
                if until_ns is not None and recorded.stamped.capture_ns[0] >= until_ns:
                    last_offsets[source.rank] = min(last_offsets.get(source.rank, chunk.offset), chunk.offset)
        while waiting:
            yield heapq.heappop(waiting)[4]

    def stamps(self, names: Collection[str] | None = None) -> Iterator[tuple[str, StampRow]]:
        """Yield (stream, all but the payload) of every frame, chunk by chunk; each stream in order of arrival."""
        chosen = self._choose(names)
        for _, reader, chunk in self._as_written(chosen):
            by_stamps = {source.stamps_id: source for source in chosen if source.reader is reader}
            for message in messages(reader.unpack(chunk)):
                source = by_stamps.get(message.channel_id)
                if source is not None:
                    for row in unpack_stamps(message.data, len(source.info.meta_fields)):
                        yield source.info.name, row

    def chunks(self) -> Iterator[tuple[int, list[RecordedFrame]]]:
        """Yield (bytes on disk, frames) of every chunk that holds some."""
        chosen = self._choose(None)
        for _, reader, chunk in self._as_written(chosen):
            yield chunk.stored_bytes, [recorded for _, _, recorded in _chunk_frames(reader, chunk, chosen)]

    def rows(self) -> Iterator[SyncRow]:
        """Yield what matched each reference tick."""
        return self._entries(ROWS)

    def events(self) -> Iterator[EpisodeEvent]:
        """Yield marks, pauses, clock events, losses, in the order they were written."""
        return self._entries(EVENTS)

    def bases(self) -> Iterator[BaseReading]:
        """Yield the readings of the kernel's clocks."""
        return self._entries(BASES)

    def models(self) -> Iterator[RecordedModel]:
        """Yield the clock models as they stood while recording."""
        return self._entries(MODELS)

    def aligned(
        self,
        *,
        rate_hz: float | None = None,
        reference: str | None = None,
        streams: Collection[str] | None = None,
        tolerance_ns: int | None = None,
        max_gap_ns: int | None = None,
        start_ns: int | None = None,
        end_ns: int | None = None,
        stamps: StampsOf | None = None,
    ) -> Iterator[AlignedRow]:
        """Return an iterator over aligned rows: what every stream showed at one instant, or why nothing.

        Args:
            rate_hz: Rows per second, from the first capture on; or
            reference: a stream whose frames are the instants.
            streams: Those to join; all declared ones by default, also those that were not recorded.
            tolerance_ns: How far from the instant the nearest image or event may lie; half a period of the
                stream by default.
            max_gap_ns: Widest gap to interpolate across; three periods of the stream by default.
            start_ns, end_ns: Host time of the first row, and the end (not itself a row).
            stamps: Better stamps from an offline re-map.

        Raises:
            EpisodeError: If neither or both of rate and reference are given, or a stream is unknown.
        """
        options = AlignedOptions(
            rate_hz, reference, streams, tolerance_ns, max_gap_ns, start_ns, end_ns, stamps
        )
        return aligned_rows(self, options)

    def attachment(self, name: str) -> bytes | None:
        """Return a document stored inside ``data.mcap``, such as the calibration."""
        return self._data.attachment(name)

    @property
    def _data(self) -> McapReader:
        """The file that holds what belongs to no stream; where it was left out, the first one."""
        name = self._names.get(DATA_FILE, DATA_FILE)
        return next((reader for reader in self._readers if reader.path.name == name), self._readers[0])

    def _read_origin(self) -> tuple[str, Timeline]:
        if not self._readers:
            raise EpisodeError(f"{self.path} has none of the files that its manifest names")
        found = self._data.metadata(EPISODE_METADATA)
        if found is None:
            raise EpisodeError(f"{self._data.path} is an MCAP file but not of a Sensorium episode")
        for reader in self._readers:
            other = reader.metadata(EPISODE_METADATA) or {}
            if other.get("episode_id") != found.get("episode_id"):
                raise EpisodeError(
                    f"{reader.path} belongs to episode {other.get('episode_id')}, not to this one"
                )
        return parse_origin(found)

    def _find_streams(self) -> dict[str, _Source]:
        found: dict[str, _Source] = {}
        for reader in self._readers:
            topics = {channel.topic: channel for channel in reader.contents.channels.values()}
            for channel in topics.values():
                if STREAM_INFO_KEY not in channel.metadata:
                    continue
                info = load_stream_info(channel.metadata[STREAM_INFO_KEY])
                stamps = topics.get(channel.topic + STAMPS_SUFFIX)
                if stamps is None:
                    continue  # cut between the two channels: no frame can have been written
                found[info.name] = _Source(reader, info, layout_for(info), channel.id, stamps.id, len(found))
        return found

    def _choose(self, names: Collection[str] | None) -> list[_Source]:
        if names is None:
            return list(self._sources.values())
        unknown = sorted(set(names) - set(self._sources))
        if unknown:
            raise EpisodeError(
                f"{self.path} has no stream {unknown[0]}; it has: {', '.join(self._sources) or 'none'}"
            )
        return [self._sources[name] for name in self._sources if name in names]

    def _chunks(self, chosen: list[_Source]) -> list[_Chunk]:
        """Return the chunks that hold some of the streams, by the first arrival in each."""
        found = []
        for reader in self._readers:
            wanted = {source.channel_id for source in chosen if source.reader is reader}
            found += [
                (chunk.start_ns, reader, chunk)
                for chunk in reader.contents.chunks
                if not wanted.isdisjoint(chunk.index_offsets)
            ]
        return sorted(found, key=lambda entry: (entry[0], entry[2].offset))

    def _as_written(self, chosen: list[_Source]) -> list[_Chunk]:
        """Return the chunks about in time, and those of one file in the order in which they were written.

        A stream that came late (a driver that was stalled, a machine too slow) makes a later chunk begin before an
        earlier one, although the samples of every other stream in them go on.
        """
        latest: dict[int, int] = {}
        found = []
        for start_ns, reader, chunk in sorted(self._chunks(chosen), key=lambda entry: entry[2].offset):
            latest[id(reader)] = max(start_ns, latest.get(id(reader), start_ns))
            found.append((latest[id(reader)], reader, chunk))
        return sorted(found, key=lambda entry: entry[0])

    def _entries(self, entry: EntryFormat[EntryT]) -> Iterator[EntryT]:
        """Yield the entries of one kind from the files that hold some, in the order of their times."""
        return heapq.merge(*(_entries_of(reader, entry) for reader in self._readers), key=entry.host_ns)


def _entries_of(reader: McapReader, entry: EntryFormat[EntryT]) -> Iterator[EntryT]:
    ids = [channel.id for channel in reader.contents.channels.values() if channel.topic == entry.topic]
    for chunk in reader.contents.chunks:
        if any(channel_id in chunk.index_offsets for channel_id in ids):
            for message in messages(reader.unpack(chunk)):
                if message.channel_id in ids:
                    yield entry.parse(message.data)


def _chunk_frames(
    reader: McapReader, chunk: ChunkIndex, chosen: list[_Source]
) -> Iterator[tuple[int, _Source, RecordedFrame]]:
    """Yield (log time, source, frame) of the chosen streams in one chunk, with their stamps."""
    plain = reader.unpack(chunk)
    by_channel = {source.channel_id: source for source in chosen if source.reader is reader}
    by_stamps = {source.stamps_id: source for source in by_channel.values()}
    rows: dict[int, Iterator[StampRow]] = {}
    found: list[tuple[int, _Source, Any]] = []
    for message in messages(plain):
        if message.channel_id in by_channel:
            found.append((message.log_ns, by_channel[message.channel_id], message.data))
        elif message.channel_id in by_stamps:
            source = by_stamps[message.channel_id]
            rows[source.channel_id] = unpack_stamps(message.data, len(source.info.meta_fields))
    for log_ns, source, data in found:
        row = next(rows.get(source.channel_id, _NO_ROWS), None)
        if row is None:
            raise EpisodeError(f"{reader.path}: a frame of {source.info.name} has no stamps")
        payload = source.layout.unwrap(data)
        name = source.info.name
        try:
            frame = Frame(name, row.seq, row.count, row.device_ticks, row.arrival_ns, payload, row.meta)
        except ValueError as err:
            raise EpisodeError(f"{reader.path}: {err}") from err
        yield log_ns, source, RecordedFrame(frame, row.stamped, row.instance)
