"""What a sealed episode says of itself, read without the recorder's own code, and whether its files agree."""

import base64
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from mcap.reader import make_reader
from mcap_protobuf.decoder import DecoderFactory

from sensorium.timebase import SECOND_NS

STAMPS = "/stamps"
SMALL_BYTES = 64 << 10
ZSTD = zstandard.ZstdCompressor(level=1)
FRAMING_BYTES = 31 + 16
"""Head of a message record and its entry in the chunk's index."""


@dataclass(slots=True)
class StreamCount:
    """One stream over all episodes of a run.

    ``stored_bytes`` is the manifest's, a share by payload of chunks that hold other streams as well; so are
    ``raw_bytes``, of payloads as the driver gave them;
    ``alone_bytes`` are the stream's messages and stamps with their framing, of the episodes that were read, as
    chunks of its own would hold them: a second of it, zstd 1 for what travels in small messages.
    """

    produced: int = 0
    recorded: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    stored_bytes: int = 0
    raw_bytes: int = 0
    alone_bytes: int = 0

    @property
    def lost(self) -> int:
        return self.dropped.total()

    @property
    def is_balanced(self) -> bool:
        return self.produced == self.recorded + self.lost


def manifest_of(episode: Path) -> dict[str, Any]:
    """Return the predicate of an episode's in-toto statement (DSSE envelope, JSON)."""
    envelope = json.loads((episode / "manifest.json").read_text())
    found: dict[str, Any] = json.loads(base64.b64decode(envelope["payload"]))["predicate"]
    return found


def add_episode(counts: dict[str, StreamCount], manifest: Mapping[str, Any]) -> None:
    """Add one episode's balances to the run's."""
    for record in manifest["streams"]:
        count = counts.setdefault(record["info"]["name"], StreamCount())
        count.stored_bytes += record["bytes_stored"]
        count.raw_bytes += record["bytes_raw"]
        for balance in record["balances"].values():
            count.produced += balance["produced"]
            count.recorded += balance["recorded"]
            for place, reasons in balance["dropped"].items():
                for reason, samples in reasons.items():
                    count.dropped[f"{place}: {reason}"] += samples


def disagreements(
    episode: Path, manifest: Mapping[str, Any], counts: dict[str, StreamCount], streams: Sequence[str]
) -> list[str]:
    """Return where the files, read by the mcap library with their checksums, differ from the balance.

    Each stream's messages must be as many as its stamps rows, and the samples in those as many as recorded.
    The bytes of the messages are added to ``counts``.
    """
    found = read_files(episode)
    own: dict[str, StreamCount] = {}
    add_episode(own, manifest)
    for name, read in found.items():
        if name in counts:
            counts[name].alone_bytes += read.alone_bytes
    return [
        problem
        for name in streams
        for problem in _compared(name, own.get(name, StreamCount()), found.get(name, Read()))
    ]


@dataclass(slots=True)
class Read:
    """What the files hold of one stream."""

    messages: int = 0
    rows: int = 0
    samples: int = 0
    alone_bytes: int = 0
    _second: int = 0
    _records: list[bytes] = field(default_factory=list)

    def add(self, log_ns: int, data: bytes) -> None:
        """Take in a message of the stream or of its stamps."""
        if log_ns // SECOND_NS != self._second:
            self.close_second()
            self._second = log_ns // SECOND_NS
        self._records += [log_ns.to_bytes(FRAMING_BYTES, "little"), data]

    def close_second(self) -> None:
        """Count the bytes that a chunk of the last second takes."""
        is_small = all(len(data) < SMALL_BYTES for data in self._records)
        chunk = b"".join(self._records)
        self.alone_bytes += len(ZSTD.compress(chunk) if is_small else chunk)
        self._records = []


def read_files(episode: Path) -> dict[str, Read]:
    """Return what the mcap library finds in an episode, checksums verified."""
    found: dict[str, Read] = {}
    decoders = DecoderFactory()
    for path in sorted(episode.glob("*.mcap")):
        with path.open("rb") as file:
            reader = make_reader(file, validate_crcs=True)
            for schema, channel, message in reader.iter_messages(log_time_order=False):
                read = found.setdefault(channel.topic.removeprefix("/").removesuffix(STAMPS), Read())
                read.add(message.log_time, message.data)
                if not channel.topic.endswith(STAMPS):
                    read.messages += 1
                    continue
                decoder = decoders.decoder_for(channel.message_encoding, schema)
                assert decoder is not None, channel.topic
                counts = np.cumsum(decoder(message.data).count_step)
                read.rows += len(counts)
                read.samples += int(counts.sum())
    for read in found.values():
        read.close_second()
    return found


def _compared(name: str, count: StreamCount, read: Read) -> list[str]:
    found = []
    if not count.is_balanced:
        found.append(f"{name}: {count.produced} produced, {count.recorded} recorded, {count.lost} lost")
    if read.samples != count.recorded:
        found.append(f"{name}: {read.samples} samples in the files, {count.recorded} in the balance")
    if read.messages != read.rows:
        found.append(f"{name}: {read.messages} messages in the files, {read.rows} rows of stamps")
    return found
