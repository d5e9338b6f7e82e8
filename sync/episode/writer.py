"""Writes an open episode: ``data.mcap``, and a file of its own for each personal stream."""

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sensorium.calibration.rig_document import RigCalibration
from sensorium.drivers.frame import Frame, MessageSchema, StreamInfo
from sensorium.drivers.payloads.table import is_compressed
from sensorium.errors import ConfigError, EpisodeError
from sensorium.sync.align import SyncRow
from sensorium.sync.clocks.model import ClockModel, Stamped
from sensorium.sync.episode import schemas
from sensorium.sync.episode.entries import (
    ALL_ENTRIES,
    BASES,
    EVENTS,
    MODELS,
    ROWS,
    EntryFormat,
    EpisodeEvent,
    RecordedModel,
)
from sensorium.sync.episode.files import DATA_FILE, RESERVE_FILE, RESERVED_STREAMS, stream_file
from sensorium.sync.episode.layouts import (
    MessageLayout,
    dump_stream_info,
    layout_for,
    protobuf_schema,
)
from sensorium.sync.episode.mcap_file import McapFile
from sensorium.sync.episode.mcap_records import MESSAGE, MESSAGE_HEAD, Attachment, Buffer, WriteError
from sensorium.sync.episode.scene import scene_messages
from sensorium.sync.episode.stamp_rows import HEAD_BYTES, StampRows
from sensorium.timebase import SECOND_NS, BaseReading, Timeline

STREAM_INFO_KEY = "sensorium.stream"
EPISODE_METADATA = "sensorium.episode"
END_METADATA = "sensorium.end"
STAMPS_SUFFIX = "/stamps"
_STAMPS_OVERHEAD_BYTES = MESSAGE_HEAD.size + HEAD_BYTES


@dataclass(frozen=True, slots=True)
class WriterPolicy:
    """How much may be lost, and how full the disk may get.

    Attributes:
        chunk_bytes: Chunks are closed before they grow larger (one frame may be larger than this); 1 MiB
            stays in the cache (specs/performance.md 2a).
        flush_s: A killed process loses at most this much.
        sync_s: A power cut loses at most this much; None = only what the kernel keeps.
        min_free_bytes: ``has_room`` says no below this.
        reserve_bytes: Kept allocated while recording, so that a full disk still lets the episode be closed.
    """

    chunk_bytes: int = 1 << 20
    flush_s: float = 1.0
    sync_s: float | None = 5.0
    zstd_level: int = 1
    min_free_bytes: int = 64 << 20
    reserve_bytes: int = 4 << 20


@dataclass(slots=True)
class Written:
    """What one instance of a stream has in the file; ``pending`` lies in chunks that are still open.

    ``stored_bytes`` is its share, by payload, of the chunks as they lie on disk.
    """

    frames: int = 0
    samples: int = 0
    payload_bytes: int = 0
    stored_bytes: float = 0.0
    pending_samples: int = 0
    lost_samples: int = 0


@dataclass(slots=True)
class _Share:
    """What an open chunk holds of one stream instance, until it is known to be written."""

    frames: int = 0
    samples: int = 0
    payload_bytes: int = 0


class _ChunkLine:
    """The chunk that is being filled for one compression in one file."""

    def __init__(self, file: McapFile, compression: str) -> None:
        self.file = file
        self.compression = compression
        self.opened_ns: int | None = None
        self.size = 0
        self.reserved = 0
        self._parts: list[Buffer] = []
        self._index: dict[int, list[tuple[int, int]]] = {}
        self._stamps: dict[int, StampRows] = {}
        self.shares: dict[tuple[str, int], _Share] = {}

    def add(
        self, channel_id: int, sequence: int, log_ns: int, publish_ns: int, parts: Sequence[Buffer]
    ) -> int:
        size = sum(map(len, parts))
        head = MESSAGE_HEAD.pack(MESSAGE, 22 + size, channel_id, sequence & 0xFFFFFFFF, log_ns, publish_ns)
        self._index.setdefault(channel_id, []).append((log_ns, self.size))
        self._parts.append(head)
        self._parts.extend(parts)
        self.size += len(head) + size
        return len(head) + size

    def stamp(self, channel_id: int, instance: int, frame: Frame, stamped: Stamped, log_ns: int) -> None:
        rows = self._stamps.get(channel_id)
        if rows is None:
            rows = self._stamps[channel_id] = StampRows()
            self.reserved += HEAD_BYTES + MESSAGE_HEAD.size
        rows.add(instance, frame, stamped, log_ns)
        self.reserved += rows.row_bytes(frame, stamped)

    def take(self) -> tuple[list[Buffer], dict[int, list[tuple[int, int]]]]:
        """Return parts and index of the chunk with the stamps of its frames, and begin a new one."""
        for channel_id, rows in self._stamps.items():
            self.add(channel_id, len(rows.frames), rows.last_log_ns, rows.last_log_ns, [rows.pack()])
        taken = self._parts, self._index
        self._parts, self._index, self._stamps = [], {}, {}
        self.size = self.reserved = 0
        self.opened_ns = None
        return taken


@dataclass(slots=True)
class _StreamOutput:
    info: StreamInfo
    layout: MessageLayout
    line: _ChunkLine
    channel_id: int
    stamps_id: int
    bytes_stored: int = 0


@dataclass(slots=True)
class _FileOutput:
    file: McapFile
    lines: dict[str, _ChunkLine] = field(default_factory=dict)


def storable(info: StreamInfo) -> MessageLayout:
    """Return the layout of a stream that an episode can hold.

    Raises:
        ConfigError: If its encoding cannot be stored, or its name is reserved.
    """
    if info.name in RESERVED_STREAMS:
        raise ConfigError(f"stream name {info.name!r} is reserved; rename the device")
    return layout_for(info)


class EpisodeWriter:
    """Writes frames on arrival; call :meth:`step` often so that chunks close in time.

    A disk that is full raises ``WriteError`` (an ``EpisodeError``) once per lost chunk; the samples of that
    chunk are booked as lost (``written``), the files stay whole and may be written to again or closed.
    """

    def __init__(
        self, folder: Path, episode_id: str, timeline: Timeline, policy: WriterPolicy | None = None
    ) -> None:
        """Create ``data.mcap`` in ``folder`` (made with mode 0700 if missing).

        Raises:
            EpisodeError: If the folder already holds an episode, or cannot be written.
        """
        self.folder = folder
        self.episode_id = episode_id
        self.timeline = timeline
        self.policy = policy or WriterPolicy()
        self.is_closed = False
        self._files: dict[str, _FileOutput] = {}
        self._streams: dict[str, _StreamOutput] = {}
        self._written: dict[tuple[str, int], Written] = {}
        self._now_ns: int | None = None
        self._synced_ns: int | None = None
        self._sync_pool: ThreadPoolExecutor | None = None
        self._sync_job: Future[None] | None = None
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._allocate_reserve()
        except OSError as err:
            raise EpisodeError(
                f"{folder} cannot hold an episode: {err.strerror}; free space or choose another spool"
            ) from err
        data = self._open_file(DATA_FILE)
        self._entry_channels: dict[str, int] = {}
        for entry in ALL_ENTRIES:
            self._entry_channels[entry.topic] = self._add_channel(
                data.file, entry.topic, protobuf_schema(entry.message), {}
            )
        self._extra_channels: dict[str, int] = {}

    # -- what is recorded

    def declare(self, info: StreamInfo) -> None:
        """Make a stream known; declaring it again with the same contents is harmless.

        Raises:
            ConfigError: If its encoding cannot be stored, or its name is reserved.
            EpisodeError: If it was declared differently before, or the disk is full.
        """
        known = self._streams.get(info.name)
        if known is not None:
            if known.info != info:
                raise EpisodeError(
                    f"stream {info.name} changed its declaration within an episode; start a new episode"
                )
            return
        layout = storable(info)
        output = self._files[DATA_FILE] if not info.is_personal else self._open_file(stream_file(info.name))
        line = self._line(output, "" if is_compressed(info) else "zstd")
        metadata = {STREAM_INFO_KEY: dump_stream_info(info)}
        channel_id = self._add_channel(output.file, layout.channel.topic, layout.channel.schema, metadata)
        stamps_topic = layout.channel.topic + STAMPS_SUFFIX
        stamps_id = self._add_channel(output.file, stamps_topic, protobuf_schema(schemas.Stamps), {})
        self._streams[info.name] = _StreamOutput(info, layout, line, channel_id, stamps_id)

    def write(self, frame: Frame, stamped: Stamped, instance: int) -> int:
        """Store a frame of a declared stream and return the bytes that it takes before compression.

        Raises:
            WriteError: If the disk is full; this frame and those of its chunk are booked as lost.
            EpisodeError: If the stream is unknown or the frame not laid out as declared; nothing is booked.
        """
        output = self._streams.get(frame.stream)
        if output is None:
            raise EpisodeError(f"stream {frame.stream} was not declared to the episode")
        if len(frame.meta) != len(output.info.meta_fields):
            raise EpisodeError(
                f"frame {frame.seq} of {frame.stream} carries {len(frame.meta)} numbers, "
                f"its stream declares {len(output.info.meta_fields)}"
            )
        capture_utc_ns = self._utc(int(stamped.capture_ns[0]))
        log_ns = self._utc(int(frame.arrival_ns[-1]))
        parts = output.layout.wrap_parts(frame, capture_utc_ns)
        line = output.line
        try:
            stamp_bytes = StampRows.row_bytes(frame, stamped) + _STAMPS_OVERHEAD_BYTES
            self._make_room(line, sum(map(len, parts)) + stamp_bytes)
        except WriteError:
            self._count(frame.stream, instance).lost_samples += frame.count
            raise
        size = line.add(output.channel_id, frame.seq, log_ns, capture_utc_ns, parts)
        line.stamp(output.stamps_id, instance, frame, stamped, log_ns)
        self._book(line, frame, instance)
        output.bytes_stored += size
        if line.size + line.reserved >= self.policy.chunk_bytes:
            self._flush(line)
        return size

    def write_row(self, row: SyncRow) -> None:
        """Store what matches one reference tick."""
        self._write_entry(ROWS, row)

    def write_event(self, event: EpisodeEvent) -> None:
        """Store a mark, pause, clock event, loss or whatever else happened."""
        self._write_entry(EVENTS, event)

    def write_base(self, base: BaseReading) -> None:
        """Store one reading of the kernel's clocks."""
        self._write_entry(BASES, base)

    def write_model(self, stream: str, model: ClockModel, host_ns: int, instance: int = 0) -> None:
        """Store the clock model of a stream as it stands at ``host_ns``."""
        self._write_entry(MODELS, RecordedModel(stream, instance, host_ns, model))

    def write_message(self, topic: str, message: Any, host_ns: int) -> None:
        """Store a protobuf message of a well-known schema (FrameTransforms, ...) for viewers."""
        data = self._files[DATA_FILE]
        if topic not in self._extra_channels:
            self._extra_channels[topic] = self._add_channel(
                data.file, topic, protobuf_schema(type(message)), {}
            )
        self._write_bytes(self._extra_channels[topic], message.SerializeToString(), self._utc(host_ns))

    def write_calibration(self, calibration: RigCalibration, host_ns: int) -> None:
        """Store transforms and camera models for viewers; attach the document itself for everybody else."""
        for topic, message in scene_messages(calibration, self._utc(host_ns)):
            self.write_message(topic, message, host_ns)

    def attach(self, name: str, media_type: str, data: bytes, host_ns: int) -> None:
        """Store a small document, such as the calibration, inside ``data.mcap``."""
        self._files[DATA_FILE].file.add_attachment(Attachment(self._utc(host_ns), name, media_type, data))

    # -- what became of it

    def written(self) -> dict[tuple[str, int], Written]:
        """Return the counts per (stream, instance); samples + pending + lost = all that was given."""
        return self._written

    def bytes_stored(self) -> int:
        """Return the size of all files of the episode so far."""
        return sum(output.file.offset for output in self._files.values())

    def has_room(self) -> bool:
        """Return whether the disk has more than ``min_free_bytes`` left; if not, stop capture and close."""
        found = os.statvfs(self.folder)
        return found.f_bavail * found.f_frsize > self.policy.min_free_bytes

    # -- time

    def step(self, now_ns: int) -> None:
        """Write chunks whose first message is older than ``flush_s`` and start a sync when one is due.

        Raises:
            EpisodeError: If a chunk could not be written (its samples are booked as lost), or the disk did
                not take what was written before.
        """
        self._now_ns = now_ns
        limit_ns = int(self.policy.flush_s * SECOND_NS)
        failures: list[WriteError] = []
        for line in self._lines():
            if line.size and line.opened_ns is None:
                line.opened_ns = now_ns
            if line.opened_ns is not None and now_ns - line.opened_ns >= limit_ns:
                self._try_flush(line, failures)
        self._sync_when_due(now_ns)
        if failures:
            raise failures[0]

    def flush(self) -> None:
        """Write all open chunks now.

        Raises:
            EpisodeError: If one could not be written; the others are.
        """
        failures: list[WriteError] = []
        for line in self._lines():
            self._try_flush(line, failures)
        if failures:
            raise failures[0]

    def close(self) -> None:
        """Write what is open, finish every file and release the reserve; safe to call twice.

        Raises:
            EpisodeError: If the disk did not take all; the files are closed anyway and stay recoverable.
        """
        if self.is_closed:
            return
        self.is_closed = True
        failures: list[WriteError] = []
        if self._sync_pool is not None:
            self._sync_pool.shutdown(wait=True)
        (self.folder / RESERVE_FILE).unlink(missing_ok=True)
        for line in self._lines():
            self._try_flush(line, failures)
        for output in self._files.values():
            try:
                output.file.add_metadata(END_METADATA, {"episode_id": self.episode_id, "truncated": "false"})
                output.file.finish()
            except WriteError as err:
                failures.append(err)
                output.file.abandon()
        if failures:
            raise failures[0]

    # -- inside

    def _allocate_reserve(self) -> None:
        fd = os.open(self.folder / RESERVE_FILE, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if self.policy.reserve_bytes:
                os.posix_fallocate(fd, 0, self.policy.reserve_bytes)
        finally:
            os.close(fd)

    def _open_file(self, name: str) -> _FileOutput:
        if name in self._files:
            return self._files[name]  # left by a declaration that a full disk cut short
        file = McapFile(self.folder / name, self.policy.zstd_level)
        origin = {
            "episode_id": self.episode_id,
            "host_id": self.timeline.host_id,
            "utc_minus_host_ns": str(self.timeline.utc_minus_host_ns),
            "is_virtual": "true" if self.timeline.is_virtual else "false",
        }
        try:
            file.add_metadata(EPISODE_METADATA, origin)
        except WriteError:
            file.discard()
            raise
        self._files[name] = _FileOutput(file)
        return self._files[name]

    def _add_channel(
        self, file: McapFile, topic: str, schema: MessageSchema, metadata: dict[str, str]
    ) -> int:
        schema_id = file.add_schema(schema.name, schema.encoding, schema.data)
        return file.add_channel(topic, schema.message_encoding, schema_id, metadata)

    def _line(self, output: _FileOutput, compression: str) -> _ChunkLine:
        if compression not in output.lines:
            output.lines[compression] = _ChunkLine(output.file, compression)
        return output.lines[compression]

    def _lines(self) -> list[_ChunkLine]:
        return [line for output in self._files.values() for line in output.lines.values()]

    def _utc(self, host_ns: int) -> int:
        """MCAP stamps are unsigned; the exact host stamps lie in the stamps channel."""
        return max(host_ns + self.timeline.utc_minus_host_ns, 0)

    def _write_entry(self, entry_format: EntryFormat[Any], entry: Any) -> None:
        utc_ns = self._utc(entry_format.host_ns(entry))
        self._write_bytes(self._entry_channels[entry_format.topic], entry_format.pack(entry, utc_ns), utc_ns)

    def _write_bytes(self, channel_id: int, data: bytes, utc_ns: int) -> None:
        output = self._files[DATA_FILE]
        line = self._line(output, "zstd")
        self._make_room(line, len(data))
        line.add(channel_id, 0, utc_ns, utc_ns, [data])

    def _make_room(self, line: _ChunkLine, size: int) -> None:
        if line.size and line.size + line.reserved + size + MESSAGE_HEAD.size > self.policy.chunk_bytes:
            self._flush(line)
        if not line.size:
            # Older than the message by at most one step: a chunk may close early, never late.
            line.opened_ns = self._now_ns

    def _count(self, stream: str, instance: int) -> Written:
        key = (stream, instance)
        found = self._written.get(key)
        if found is None:
            found = self._written[key] = Written()
        return found

    def _book(self, line: _ChunkLine, frame: Frame, instance: int) -> None:
        self._count(frame.stream, instance).pending_samples += frame.count
        key = (frame.stream, instance)
        share = line.shares.get(key)
        if share is None:
            share = line.shares[key] = _Share()
        share.frames += 1
        share.samples += frame.count
        share.payload_bytes += len(frame.payload)

    def _try_flush(self, line: _ChunkLine, failures: list[WriteError]) -> None:
        try:
            self._flush(line)
        except WriteError as err:
            failures.append(err)

    def _flush(self, line: _ChunkLine) -> None:
        if not line.size:
            return
        parts, index = line.take()
        shares, line.shares = line.shares, {}
        try:
            stored_bytes = line.file.add_chunk(line.compression, parts, index)
        except WriteError:
            for key, share in shares.items():
                self._written[key].pending_samples -= share.samples
                self._written[key].lost_samples += share.samples
            raise
        chunk_payload_bytes = max(1, sum(share.payload_bytes for share in shares.values()))
        for key, share in shares.items():
            written = self._written[key]
            written.pending_samples -= share.samples
            written.frames += share.frames
            written.samples += share.samples
            written.payload_bytes += share.payload_bytes
            written.stored_bytes += stored_bytes * share.payload_bytes / chunk_payload_bytes

    def _sync_when_due(self, now_ns: int) -> None:
        """Sync in a thread: a disk that stalls must not stop the loop that takes in frames."""
        if self.policy.sync_s is None:
            return
        if self._synced_ns is None:
            self._synced_ns = now_ns
        if self._sync_job is not None and self._sync_job.done():
            job, self._sync_job = self._sync_job, None
            job.result()
        if self._sync_job is None and now_ns - self._synced_ns >= self.policy.sync_s * SECOND_NS:
            if self._sync_pool is None:
                self._sync_pool = ThreadPoolExecutor(1, thread_name_prefix="episode-sync")
            self._synced_ns = now_ns
            self._sync_job = self._sync_pool.submit(
                self._sync, [output.file for output in self._files.values()]
            )

    @staticmethod
    def _sync(files: Sequence[McapFile]) -> None:
        for file in files:
            try:
                file.sync()
            except OSError as err:
                raise EpisodeError(f"{file.path} could not be synced to disk: {err.strerror}") from err
