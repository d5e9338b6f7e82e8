"""Reads frames of an episode while it is being written: payloads of what has reached the disk by now."""

import os
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from sensorium.drivers.frame import StreamInfo
from sensorium.errors import EpisodeError
from sensorium.sync.episode.files import DATA_FILE, stream_file
from sensorium.sync.episode.layouts import layout_for
from sensorium.sync.episode.mcap_records import CHANNEL, CHUNK, MAGIC, RECORD_HEAD, Channel, Chunk, messages

_KEPT_CHUNKS = 512
"""Half a gigabyte of the newest chunks of a file; what is asked for is a few seconds old at most."""
_CHUNK_TIMES_BYTES = 16


@dataclass(slots=True)
class _Place:
    """A chunk in the file, with the span of its log times (UTC ns)."""

    offset: int
    length: int
    start_ns: int
    end_ns: int


@dataclass(slots=True)
class _File:
    """How far one growing file has been read."""

    fd: int
    at: int = len(MAGIC)
    channels: dict[str, int] = field(default_factory=dict)
    chunks: deque[_Place] = field(default_factory=lambda: deque(maxlen=_KEPT_CHUNKS))

    def follow(self) -> None:
        """Take note of the records that were added; one that is not whole yet is left for the next time."""
        size = os.fstat(self.fd).st_size
        while self.at + RECORD_HEAD.size <= size:
            opcode, length = RECORD_HEAD.unpack(os.pread(self.fd, RECORD_HEAD.size, self.at))
            begin = self.at + RECORD_HEAD.size
            if begin + length > size:
                return
            if opcode == CHUNK:
                head = os.pread(self.fd, _CHUNK_TIMES_BYTES, begin)
                start_ns, end_ns = (int.from_bytes(head[at : at + 8], "little") for at in (0, 8))
                self.chunks.append(_Place(begin, length, start_ns, end_ns))
            elif opcode == CHANNEL:
                channel = Channel.parse(memoryview(os.pread(self.fd, length, begin)))
                self.channels[channel.topic] = channel.id
            self.at = begin + length

    def message(self, topic: str, sequence: int, log_ns: int) -> bytes | None:
        """Return the data of a message; None if it is not there."""
        channel_id = self.channels.get(topic)
        for place in reversed(self.chunks):
            if place.start_ns <= log_ns <= place.end_ns:
                record = os.pread(self.fd, place.length, place.offset)
                for found in messages(Chunk.parse(memoryview(record)).unpack()):
                    if found.channel_id == channel_id and found.sequence == sequence:
                        return bytes(found.data)
        return None


class EpisodeTail:
    """The newest frames of one open episode. Nothing is locked and nothing waits for the reader."""

    def __init__(self, folder: Path, utc_minus_host_ns: int) -> None:
        self._folder = folder
        self._offset_ns = utc_minus_host_ns
        self._files: dict[str, _File] = {}

    def payload(self, info: StreamInfo, seq: int, last_arrival_ns: int) -> bytes | None:
        """Return the payload of a recorded frame; None while it is not on disk (or no longer among the newest).

        Args:
            seq: The frame's first sequence number.
            last_arrival_ns: Arrival of its last sample, host time.

        Raises:
            EpisodeError: If the file is damaged.
        """
        name = stream_file(info.name) if info.is_personal else DATA_FILE
        layout = layout_for(info)
        try:
            file = self._files.get(name)
            if file is None:
                file = self._files[name] = _File(os.open(self._folder / name, os.O_RDONLY | os.O_CLOEXEC))
            file.follow()
            data = file.message(layout.channel.topic, seq & 0xFFFFFFFF, last_arrival_ns + self._offset_ns)
        except FileNotFoundError:
            return None
        except OSError as err:
            raise EpisodeError(f"{self._folder / name} cannot be read: {err.strerror}") from err
        return None if data is None else layout.unwrap(data)

    def close(self) -> None:
        """Let go of the files."""
        for file in self._files.values():
            os.close(file.fd)
        self._files.clear()
