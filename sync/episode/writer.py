"""Writes an open episode: ``data.mcap``, and a file of its own for each personal stream."""

import os
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from sensorium.calibration.rig_document import RigCalibration
from sensorium.drivers.frame import Frame, MessageSchema, StreamInfo
from sensorium.drivers.payloads.table import is_compressed
from sensorium.errors import ConfigError, EpisodeError
from sensorium.sync.align import SyncRow
from sensorium.sync.clocks.model import ClockModel, Stamped
from sensorium.sync.episode import schemas
from sensorium.sync.episode.chunk_accounts import ChunkAccounts, Written
from sensorium.sync.episode.chunk_queue import ChunkQueue
from sensorium.sync.episode.disk_sync import DiskSync
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
from sensorium.sync.episode.mcap_records import MESSAGE_HEAD, Attachment, WriteError
from sensorium.sync.episode.open_chunk import OpenChunk
from sensorium.sync.episode.origin import END_METADATA, EPISODE_METADATA, pack_origin
from sensorium.sync.episode.scene import scene_messages
from sensorium.sync.episode.stamp_rows import HEAD_BYTES, StampRows
from sensorium.timebase import SECOND_NS, BaseReading, Timeline

STREAM_INFO_KEY = "sensorium.stream"
STAMPS_SUFFIX = "/stamps"
_STAMPS_OVERHEAD_BYTES = MESSAGE_HEAD.size + HEAD_BYTES
_FLUSH_SHARE = 0.95
"""Of ``flush_s``, after which a chunk is closed: the rest is for the thread that writes it."""


@dataclass(frozen=True, slots=True)
class WriterPolicy:
    """How much may be lost, and how full the disk may get.

    Attributes:
        chunk_bytes: Chunks are closed before they grow larger (one frame may be larger than this); 1 MiB
            stays in the cache (specs/performance.md 2a).
        flush_s: A killed process loses at most this much, on a disk that keeps up.
        sync_s: A power cut loses at most this much, on a disk that keeps up (``sync_lag_ns`` says whether it
            did); None = only what the kernel keeps.
        min_free_bytes: ``has_room`` says no below this.
        reserve_bytes: Kept allocated while recording, so that a full disk still lets the episode be closed.
    """

    chunk_bytes: int = 1 << 20
    flush_s: float = 1.0
    sync_s: float | None = 1.0
    zstd_level: int = 1
    min_free_bytes: int = 64 << 20
    reserve_bytes: int = 4 << 20


class _ChunkLine:
    """Where the messages of one compression go in one file."""

    __slots__ = ("chunk", "file", "is_compressible")

    def __init__(self, file: McapFile, is_compressible: bool) -> None:
        self.file = file
        self.is_compressible = is_compressible
        self.chunk: OpenChunk | None = None


@dataclass(slots=True)
class _StreamOutput:
    info: StreamInfo
    layout: MessageLayout
    line: _ChunkLine
    channel_id: int
    stamps_id: int
    meta_count: int


@dataclass(slots=True)
class _FileOutput:
    file: McapFile
    lines: dict[bool, _ChunkLine] = field(default_factory=dict)


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

    One thread writes; another one may finish, and ask what became of it, while the first still takes what is
    settled. ``write`` references the payload and never waits for the disk: chunks are compressed and written by
    threads in the background, and what a stalled disk has not taken stays in memory (``unsettled_bytes``) until
    the caller gives no more. ``take_settled`` returns the ``held`` of the frames whose payload is needed no longer.

    A disk that is full costs whole chunks: their samples are booked as lost (``written``), the error is raised
    once by ``step``, the files stay whole and may be written to again or closed.
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
        self._files: dict[str, _FileOutput] = {}
        self._streams: dict[str, _StreamOutput] = {}
        self._now_ns: int | None = None
        self._queue = ChunkQueue(self.policy.zstd_level)
        self._accounts = ChunkAccounts(self._queue)
        self._sync = DiskSync(folder, self.policy.sync_s)
        self._ending: Future[None] | None = None
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

        Its record is written before this returns: on a disk that stalls, this waits.
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
        line = self._line(output, is_compressible=not is_compressed(info))
        metadata = {STREAM_INFO_KEY: dump_stream_info(info)}
        channel_id = self._add_channel(output.file, layout.channel.topic, layout.channel.schema, metadata)
        stamps_topic = layout.channel.topic + STAMPS_SUFFIX
        stamps_id = self._add_channel(output.file, stamps_topic, protobuf_schema(schemas.Stamps), {})
        self._streams[info.name] = _StreamOutput(
            info, layout, line, channel_id, stamps_id, len(info.meta_fields)
        )

    def write(self, frame: Frame, stamped: Stamped, instance: int, held: Any = None) -> int:
        """Take a frame of a declared stream and return the bytes that it takes before compression.

        Args:
            held: What ``take_settled`` is to return once the frame's bytes are on disk or given up; its
                payload must stay as it is until then.

        Raises:
            EpisodeError: If the stream is unknown, the frame not laid out as declared, or the writer closed;
                nothing is booked, and ``held`` remains the caller's.
        """
        output = self._streams.get(frame.stream)
        if output is None or len(frame.meta) != output.meta_count:
            raise self._refusal(frame, output)
        capture_utc_ns = self._utc(stamped.capture_ns.item(0))
        log_ns = self._utc(frame.arrival_ns.item(-1))
        parts = output.layout.wrap_parts(frame, capture_utc_ns)
        size = sum(map(len, parts))
        row_bytes = StampRows.row_bytes(frame, stamped)
        chunk = self._chunk(output.line, size + row_bytes + _STAMPS_OVERHEAD_BYTES)
        chunk.add(output.channel_id, frame.seq, log_ns, capture_utc_ns, parts, size)
        chunk.stamp(output.stamps_id, instance, frame, stamped, log_ns, row_bytes)
        if held is not None:
            chunk.held.append(held)
        if chunk.size + chunk.reserved_bytes >= self.policy.chunk_bytes:
            self._hand_over(output.line)
        return MESSAGE_HEAD.size + size

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
        self.declare_message(topic, type(message))
        self._write_bytes(self._extra_channels[topic], message.SerializeToString(), self._utc(host_ns))

    def declare_message(self, topic: str, kind: type[Any]) -> None:
        """Make the place of a protobuf message's topic; else the first message does, which waits for the disk."""
        if topic not in self._extra_channels:
            file = self._files[DATA_FILE].file
            self._extra_channels[topic] = self._add_channel(file, topic, protobuf_schema(kind), {})

    def write_calibration(self, calibration: RigCalibration, host_ns: int) -> None:
        """Store transforms and camera models for viewers; attach the document itself for everybody else."""
        for topic, message in scene_messages(calibration, self._utc(host_ns)):
            self.write_message(topic, message, host_ns)

    def attach(self, name: str, media_type: str, data: bytes, host_ns: int) -> None:
        """Store a small document, such as the calibration, inside ``data.mcap``."""
        self._files[DATA_FILE].file.add_attachment(Attachment(self._utc(host_ns), name, media_type, data))

    def run(self, work: Callable[[], None]) -> "Future[None]":
        """Do something else on the disk's thread: before all chunks that are closed from now on."""
        return self._queue.run(work)

    # -- what became of it

    def take_settled(self) -> list[Any]:
        """Return the ``held`` of every frame that was written or given up since the last call, in order.

        "Written" is handed to the kernel: it survives this process, not a power cut (``sync_s``).
        """
        return self._accounts.take_settled()

    def unsettled_bytes(self) -> int:
        """Return what is in memory: chunks being filled, and those that the disk has not taken yet."""
        return self._accounts.unsettled_bytes(self._open_chunks())

    def written(self) -> dict[tuple[str, int], Written]:
        """Return the counts per (stream, instance); samples + pending + lost = all that was given.

        They are final, with nothing pending, once the future of ``finish`` is done.
        """
        return self._accounts.written(self._open_chunks())

    @property
    def sync_lag_ns(self) -> int:
        """The longest that something was seen to wait until it was on the disk; 0 where nothing was synced."""
        return self._sync.worst_ns

    def bytes_stored(self) -> int:
        """Return the size of all files of the episode so far."""
        return sum(output.file.offset for output in self._files.values())

    def has_room(self) -> bool:
        """Return whether the disk keeps more than ``min_free_bytes`` once it has taken what is in memory.

        If not, stop capture and close.
        """
        found = os.statvfs(self.folder)
        return found.f_bavail * found.f_frsize - self.unsettled_bytes() > self.policy.min_free_bytes

    # -- time

    def step(self, now_ns: int) -> None:
        """Close chunks whose first message is ``flush_s`` old and start a sync when one is due.

        Raises:
            EpisodeError: If a chunk could not be written (its samples are booked as lost), or the disk did
                not take what was written before.
        """
        self._now_ns = now_ns
        limit_ns = int(_FLUSH_SHARE * self.policy.flush_s * SECOND_NS)
        for line in self._lines():
            chunk = line.chunk
            if chunk is not None:
                if chunk.opened_ns is None:
                    chunk.opened_ns = now_ns
                if now_ns - chunk.opened_ns >= limit_ns:
                    self._hand_over(line)
        self._sync.step(now_ns, self._hand_over_all, [output.file for output in self._files.values()])
        self._raise_failure()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Return whether all chunks that were closed until now are settled, waiting for them if need be.

        For a caller that paces itself; a loop that must not wait looks at ``take_settled``.
        """
        if self._ending is not None:
            return bool(wait([self._ending], timeout_s).done)
        return self._queue.wait(timeout_s)

    def flush(self) -> None:
        """Write all open chunks, and return once the disk has taken them.

        Raises:
            EpisodeError: If a chunk could not be written; the others are.
        """
        self._hand_over_all()
        self.wait()
        self._raise_failure()

    def finish(self) -> "Future[None]":
        """Write what is open, finish every file and release the reserve, all in the background.

        Returns:
            What is done once the files are closed; always the same one. It holds an ``EpisodeError`` if the
            disk did not take all; the files are closed anyway and stay recoverable.
        """
        if self._ending is None:
            tasks = [self._queue.run(self._release_reserve)]
            for line in self._lines():
                self._hand_over(line)
            syncing = self._sync.end()
            if syncing is not None:
                tasks.append(syncing)
            self._ending = self._queue.run(partial(self._end, tasks))
            self._queue.end()
        return self._ending

    def close(self) -> None:
        """Finish, and return once that is done; to call it again changes nothing.

        Raises:
            EpisodeError: If the disk did not take all; the files are closed anyway and stay recoverable.
        """
        self.finish().result()

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
        file = McapFile(self.folder / name)
        try:
            file.add_metadata(EPISODE_METADATA, pack_origin(self.episode_id, self.timeline))
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

    def _line(self, output: _FileOutput, is_compressible: bool) -> _ChunkLine:
        if is_compressible not in output.lines:
            output.lines[is_compressible] = _ChunkLine(output.file, is_compressible)
        return output.lines[is_compressible]

    def _lines(self) -> list[_ChunkLine]:
        return [line for output in self._files.values() for line in output.lines.values()]

    def _open_chunks(self) -> list[OpenChunk]:
        return [line.chunk for line in self._lines() if line.chunk is not None]

    def _utc(self, host_ns: int) -> int:
        """MCAP stamps are unsigned; the exact host stamps lie in the stamps channel."""
        utc_ns = host_ns + self.timeline.utc_minus_host_ns
        return utc_ns if utc_ns > 0 else 0

    def _write_entry(self, entry_format: EntryFormat[Any], entry: Any) -> None:
        utc_ns = self._utc(entry_format.host_ns(entry))
        self._write_bytes(self._entry_channels[entry_format.topic], entry_format.pack(entry, utc_ns), utc_ns)

    def _write_bytes(self, channel_id: int, data: bytes, utc_ns: int) -> None:
        chunk = self._chunk(self._line(self._files[DATA_FILE], is_compressible=True), len(data))
        chunk.add(channel_id, 0, utc_ns, utc_ns, (data,), len(data))

    def _chunk(self, line: _ChunkLine, size: int) -> OpenChunk:
        """Return the chunk of a line that has room for a message of ``size`` bytes, its stamps included."""
        chunk = line.chunk
        if self._ending is not None:
            raise EpisodeError(f"episode {self.episode_id} is closed and takes nothing more")
        if chunk is not None:
            if chunk.size + chunk.reserved_bytes + size + MESSAGE_HEAD.size <= self.policy.chunk_bytes:
                return chunk
            self._hand_over(line)
        # Older than the message by at most one step: a chunk may close early, never late.
        line.chunk = chunk = OpenChunk(line.file, line.is_compressible, self._now_ns)
        return chunk

    def _hand_over(self, line: _ChunkLine) -> None:
        chunk, line.chunk = line.chunk, None
        if chunk is not None:
            self._accounts.put(chunk)

    def _hand_over_all(self) -> "Future[None]":
        """Return what is done when all that was given until now was written, or given up."""
        for line in self._lines():
            self._hand_over(line)
        return self._queue.run(_nothing)

    def _raise_failure(self) -> None:
        for failure in self._accounts.take_failures():
            raise failure  # the first stands for all

    def _refusal(self, frame: Frame, output: _StreamOutput | None) -> EpisodeError:
        if output is None:
            return EpisodeError(f"stream {frame.stream} was not declared to the episode")
        return EpisodeError(
            f"frame {frame.seq} of {frame.stream} carries {len(frame.meta)} numbers, "
            f"its stream declares {output.meta_count}"
        )

    # -- what the disk's thread does at the end

    def _release_reserve(self) -> None:
        try:
            (self.folder / RESERVE_FILE).unlink(missing_ok=True)
        except OSError as err:
            raise EpisodeError(f"{self.folder / RESERVE_FILE} cannot be removed: {err.strerror}") from err

    def _end(self, tasks: list["Future[None]"]) -> None:
        """Finish every file once the tasks are done, as all chunks are, and raise the first of all failures."""
        errors: list[BaseException] = [*self._accounts.take_failures()]
        errors += [error for task in tasks if (error := task.exception()) is not None]
        for output in self._files.values():
            try:
                output.file.add_metadata(END_METADATA, {"episode_id": self.episode_id, "truncated": "false"})
                output.file.finish(is_synced=self.policy.sync_s is not None)
            except WriteError as err:
                errors.append(err)
                output.file.abandon()
        if errors:
            raise errors[0]


def _nothing() -> None:
    """Be done when its turn comes."""
