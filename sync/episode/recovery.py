"""Makes the files of an episode whole again after a crash: every whole chunk is kept, the torn tail is cut.

A torn file is cut and finished in place, so recovery needs no second copy on a full disk: the bytes that are
kept are never moved, and a recovery that is killed is simply repeated. Only a file with damage in its middle
(pages lost in a power cut) is rewritten beside and renamed.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sensorium.errors import EpisodeError
from sensorium.sync.episode.checksum import crc32
from sensorium.sync.episode.chunk_accounts import Written, add_shares
from sensorium.sync.episode.chunks import pack_message_indexes
from sensorium.sync.episode.files import DATA_FILE, RESERVE_FILE, recorded_files
from sensorium.sync.episode.layouts import load_stream_info
from sensorium.sync.episode.mcap_file import McapFile
from sensorium.sync.episode.mcap_reader import McapReader
from sensorium.sync.episode.mcap_records import (
    ATTACHMENT,
    CHANNEL,
    CHUNK,
    DATA_END,
    FOOTER,
    HEADER,
    MAGIC,
    METADATA,
    RECORD_HEAD,
    SCHEMA,
    Attachment,
    AttachmentIndex,
    Channel,
    Chunk,
    ChunkIndex,
    Contents,
    Metadata,
    MetadataIndex,
    Schema,
    index_messages,
)
from sensorium.sync.episode.open_chunk import Share
from sensorium.sync.episode.origin import END_METADATA, EPISODE_METADATA, parse_origin
from sensorium.sync.episode.reader import Episode
from sensorium.sync.episode.spool import sync_folder
from sensorium.sync.episode.writer import (
    STREAM_INFO_KEY,
)


@dataclass(frozen=True, slots=True)
class FileRecovery:
    """What became of one file. ``bytes_lost`` counts what held no whole record (or a damaged one)."""

    name: str
    was_torn: bool
    is_truncated: bool
    bytes_lost: int
    chunks: int


@dataclass(frozen=True, slots=True)
class RecoveryResult:
    """What an open folder holds after recovery.

    Attributes:
        episode_id: "" if not even that could be read; there are no frames then, the folder may be discarded.
        is_truncated: The recording ended without being closed; the last ``flush_s`` may be missing.
        written: What the files hold per (stream, instance).
    """

    folder: Path
    episode_id: str
    is_truncated: bool
    files: tuple[FileRecovery, ...]
    written: Mapping[tuple[str, int], Written]

    @property
    def recorded(self) -> dict[tuple[str, int], int]:
        """Samples in the files per (stream, instance)."""
        return {key: found.samples for key, found in self.written.items()}

    @property
    def bytes_lost(self) -> int:
        return sum(file.bytes_lost for file in self.files)


@dataclass(slots=True)
class _Piece:
    """A range of the file to keep, or bytes to put in its place (message indexes that were lost)."""

    begin: int
    end: int
    patch: bytes = b""

    @property
    def size(self) -> int:
        return len(self.patch) or self.end - self.begin


@dataclass(slots=True)
class _Scan:
    """What a walk over the records of a file found, whatever its state.

    Attributes:
        pieces: What to keep; one range from 0, perhaps with a patch behind, unless the middle is damaged.
        crc: Checksum of the ranges (patches are not in it).
        size: Of the file as it was found.
        data_end: Where the data section ended properly; None when it did not.
    """

    size: int
    contents: Contents = field(default_factory=Contents)
    pieces: list[_Piece] = field(default_factory=list)
    crc: int = 0
    data_end: int | None = None
    origin: dict[str, str] | None = None
    end: dict[str, str] | None = None

    @property
    def kept_bytes(self) -> int:
        return sum(piece.size for piece in self.pieces)

    @property
    def tail(self) -> bytes:
        return self.pieces[-1].patch if self.pieces else b""

    @property
    def is_one_piece(self) -> bool:
        return len(self.pieces) - bool(self.tail) <= 1


def recover(folder: Path) -> RecoveryResult:
    """Finish every MCAP file of an open episode and return what is in them; harmless to repeat.

    Raises:
        EpisodeError: If the folder is missing or the disk fails; never because of what the files hold.
    """
    if not folder.is_dir():
        raise EpisodeError(f"{folder} is not an episode folder")
    try:
        return _recover(folder)
    except OSError as err:
        raise EpisodeError(f"{folder} cannot be recovered: {err.strerror}") from err


def _recover(folder: Path) -> RecoveryResult:
    for scratch in (*folder.glob(".*.recover"), folder / RESERVE_FILE):
        scratch.unlink(missing_ok=True)
    paths = recorded_files(folder)
    scans = {path: _scan(path) for path in paths}
    origin = next((scan.origin for scan in scans.values() if scan.origin), None)
    if origin is None or folder / DATA_FILE not in scans:
        files = tuple(FileRecovery(path.name, True, True, scan.size, 0) for path, scan in scans.items())
        return RecoveryResult(folder, "", True, files, {})
    files = tuple(_recover_file(path, scan, origin) for path, scan in scans.items())
    sync_folder(folder)
    return RecoveryResult(
        folder, origin["episode_id"], any(file.is_truncated for file in files), files, count_written(folder)
    )


def count_written(folder: Path) -> dict[tuple[str, int], Written]:
    """Return what the files of an episode hold per (stream, instance), as their writer would have counted it.

    Raises:
        EpisodeError: If a file is torn or damaged.
    """
    found: dict[tuple[str, int], Written] = {}
    with Episode(folder) as episode:
        for stored_bytes, frames in episode.chunks():
            shares: dict[tuple[str, int], Share] = {}
            for recorded in frames:
                frame = recorded.frame
                shares.setdefault((frame.stream, recorded.instance), Share()).add(frame)
            add_shares(found, shares, stored_bytes)
    return found


def _recover_file(path: Path, scan: _Scan, origin: dict[str, str]) -> FileRecovery:
    if _is_whole(path, scan):
        end = scan.end or {}
        is_truncated = end.get("truncated") == "true"
        return FileRecovery(
            path.name, False, is_truncated, _number(end.get("bytes_lost")), len(scan.contents.chunks)
        )
    was_closed = scan.data_end is not None or (scan.end is not None and scan.is_one_piece)
    lost = 0 if was_closed and scan.is_one_piece else max((scan.data_end or scan.size) - scan.kept_bytes, 0)
    if not scan.is_one_piece:
        scratch = path.with_name(f".{path.name}.recover")
        _copy_pieces(path, scratch, scan.pieces)
        scan = _scan(scratch)
        _finish(scratch, scan, origin, lost, is_damaged=True)
        scratch.replace(path)
        is_truncated = True
    else:
        is_truncated = _finish(path, scan, origin, lost, is_damaged=False)
    return FileRecovery(path.name, True, is_truncated, lost, len(scan.contents.chunks))


def _is_whole(path: Path, scan: _Scan) -> bool:
    """Return whether nothing needs to be done: the summary reads, and the walk met no damage before it."""
    if scan.data_end is None or not scan.is_one_piece or scan.tail or scan.origin is None:
        return False
    try:
        McapReader(path).close()
    except EpisodeError:
        return False
    return scan.kept_bytes == scan.data_end


def _finish(path: Path, scan: _Scan, origin: dict[str, str], lost: int, is_damaged: bool) -> bool:
    """Cut the file after its last whole record, close it properly and return whether it is truncated."""
    file = McapFile.resume(path, scan.contents, scan.kept_bytes - len(scan.tail), scan.crc)
    try:
        if scan.tail:
            file.append([scan.tail])
        if scan.origin is None:
            file.add_metadata(EPISODE_METADATA, origin)
        if scan.end is None or (is_damaged and scan.end.get("truncated") != "true"):
            end = {"episode_id": origin["episode_id"], "truncated": "true", "bytes_lost": str(lost)}
            file.add_metadata(END_METADATA, end)
            is_truncated = True
        else:
            is_truncated = scan.end.get("truncated") == "true"
        file.sync()
        file.finish()
    finally:
        file.abandon()
    return is_truncated


def _number(text: str | None) -> int:
    return int(text) if text is not None and text.isdecimal() else 0


def _copy_pieces(source: Path, target: Path, pieces: list[_Piece]) -> None:
    with source.open("rb") as reading, target.open("xb") as writing:
        for piece in pieces:
            writing.write(piece.patch)
            at = piece.begin
            reading.seek(at)
            while at < piece.end:
                data = reading.read(min(piece.end - at, 1 << 20))
                writing.write(data)
                at += len(data)
        writing.flush()
        os.fsync(writing.fileno())


def _scan(path: Path) -> _Scan:
    """Walk over the records of a file and sort out what is whole; raises nothing about contents."""
    with path.open("rb") as file:
        scan = _Scan(os.fstat(file.fileno()).st_size)
        walk = _Walk(file.fileno(), scan)
        if walk.read(0, len(MAGIC)) == MAGIC:
            walk.keep(0, MAGIC)
            walk.run(len(MAGIC))
        return scan


class _Walk:
    def __init__(self, fd: int, scan: _Scan) -> None:
        self._fd = fd
        self._scan = scan

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self._fd, size, offset)

    def keep(self, offset: int, data: bytes) -> None:
        """Count ``data`` at ``offset`` among what survives."""
        pieces = self._scan.pieces
        if pieces and not pieces[-1].patch and pieces[-1].end == offset:
            pieces[-1].end = offset + len(data)
        else:
            pieces.append(_Piece(offset, offset + len(data)))
        self._scan.crc = crc32(data, self._scan.crc)

    def run(self, at: int) -> None:
        while True:
            head = self.read(at, RECORD_HEAD.size)
            if len(head) < RECORD_HEAD.size:
                return
            opcode, length = RECORD_HEAD.unpack(head)
            end = at + RECORD_HEAD.size + length
            if opcode == 0 or end > self._scan.size:
                return
            if opcode == DATA_END:
                self._scan.data_end = at
                return
            if opcode == FOOTER:
                return
            record = self.read(at, end - at)
            if len(record) < end - at:
                return
            try:
                at = self._take(opcode, at, record)
            except EpisodeError:
                at = end  # the frame around the damage is plausible: look for whole records behind it

    def _take(self, opcode: int, at: int, record: bytes) -> int:
        """Keep one record (a chunk with its indexes) if it is whole; return where the next begins.

        Raises:
            EpisodeError: If it is damaged.
        """
        contents = self._scan.contents
        body = memoryview(record)[RECORD_HEAD.size :]
        end = at + len(record)
        if opcode == SCHEMA:
            schema = Schema.parse(body)
            contents.schemas[schema.id] = schema
        elif opcode == CHANNEL:
            channel = Channel.parse(body)
            if channel.schema_id and channel.schema_id not in contents.schemas:
                raise EpisodeError(f"channel {channel.topic} has a schema that is lost")
            if STREAM_INFO_KEY in channel.metadata:
                load_stream_info(channel.metadata[STREAM_INFO_KEY])
            contents.channels[channel.id] = channel
        elif opcode == METADATA:
            metadata = Metadata.parse(body)
            if metadata.name == EPISODE_METADATA:
                parse_origin(metadata.values)
                self._scan.origin = metadata.values
            elif metadata.name == END_METADATA:
                self._scan.end = metadata.values
            contents.metadata.append(MetadataIndex(at, len(record), metadata.name))
        elif opcode == ATTACHMENT:
            found = Attachment.parse(body)
            entry = AttachmentIndex(
                at, len(record), found.log_ns, len(found.data), found.name, found.media_type
            )
            contents.attachments.append(entry)
        elif opcode == CHUNK:
            return self._take_chunk(at, record)
        elif opcode != HEADER:
            return end  # indexes of a damaged chunk, or nothing that the writer writes
        self.keep(at, record)
        return end

    def _take_chunk(self, at: int, record: bytes) -> int:
        scan = self._scan
        chunk = Chunk.parse(memoryview(record)[RECORD_HEAD.size :])
        index = index_messages(chunk.unpack())
        if not index or not index.keys() <= scan.contents.channels.keys():
            raise EpisodeError("chunk without messages, or of a channel that is lost")
        end = at + len(record)
        kept_end = scan.kept_bytes + len(record)
        expected, offsets = pack_message_indexes(index, kept_end)
        found = self.read(end, len(expected))
        self.keep(at, record)
        if found == expected:
            self.keep(end, found)
            end += len(expected)
        else:
            scan.pieces.append(_Piece(0, 0, expected))
        times = [log_ns for entries in index.values() for log_ns in entries[::2]]
        scan.contents.chunks.append(
            ChunkIndex(
                min(times),
                max(times),
                kept_end - len(record),
                len(record),
                offsets,
                len(expected),
                chunk.compression,
                len(chunk.stored),
                chunk.plain_bytes,
            )
        )
        counts = {channel_id: len(entries) // 2 for channel_id, entries in index.items()}
        scan.contents.statistics.add(counts, min(times), max(times))
        return end
