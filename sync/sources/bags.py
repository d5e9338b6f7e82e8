"""ROS 1 and ROS 2 bags through the rosbags library (the extra ``ros``); messages stay as serialised.

Messages of one topic, type and definition are one stream, whatever number of publishers shared it. Arrival is
the recorder's receive stamp (UTC); the device stamp is the producer's ``header.stamp`` where the type begins
with one.
"""

import functools
import importlib
import re
import sqlite3
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sensorium.drivers.frame import Frame, Loss, MessageSchema
from sensorium.errors import SourceError
from sensorium.sync.sources import ros_types
from sensorium.sync.sources.message_stream import MAX_STAMP_NS, MessageChannel, stream_name
from sensorium.sync.sources.source import Problem, Source

# rosbags parses untrusted bytes with asserts, indexing and struct; whatever it raises means a damaged bag.
_DAMAGE: tuple[type[Exception], ...] = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    sqlite3.Error,
    struct.error,
)


class BagSource(Source):
    """A ROS 1 bag file, a ROS 2 bag folder, or a bare ``.db3`` file.

    Raises:
        SourceError: If rosbags is not installed or the bag is damaged, unindexed, encrypted or too new.
    """

    kind = "ROS bag"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._is_ros1 = path.is_file() and path.suffix != ".db3" and not _is_sqlite(path)
        self.kind = "ROS 1 bag" if self._is_ros1 else "ROS 2 bag"
        self._new_reader, self._errors = _load_reader(path, self._is_ros1)
        self._channel_of: dict[Any, MessageChannel] = {}
        try:
            with self._new_reader() as reader:
                connections = self._connections(reader)
                self._scan(reader, connections, self._find_channels(connections))
        except self._errors as err:
            raise SourceError(
                f"{path}: damaged or unfinished {self.kind}: {_first_line(err)}{_advice(err, self._is_ros1)}"
            ) from err

    def frames(self) -> Iterator[Frame | Loss]:
        next_seq = dict.fromkeys((stream.name for stream in self.streams), 0)
        try:
            with self._new_reader() as reader:
                yield from self._frames(reader, next_seq)
        except self._errors as err:
            raise SourceError(f"{self.path}: damaged {self.kind}: {_first_line(err)}") from err

    def _frames(self, reader: Any, next_seq: dict[str, int]) -> Iterator[Frame]:
        for connection, arrival_ns, payload in _messages(reader, self._connections(reader)):
            channel = self._channel_of[self._key(connection)]
            seq = next_seq[channel.name]
            next_seq[channel.name] = seq + 1
            yield channel.frame(seq, payload, arrival_ns)

    def _key(self, connection: Any) -> Any:
        return connection.id if self._is_ros1 else (connection.topic, connection.msgtype)

    def _connections(self, reader: Any) -> list[Any]:
        """Return the connections as the files themselves state them.

        A ROS 2 bag states them twice. rosbags drops the messages of a topic whose quality of service reads
        differently in metadata.yaml and in the file (as in bags of early MCAP plugins), so the file's word
        is taken.
        """
        storages = [] if self._is_ros1 else getattr(reader.storage, "storages", [])
        if not storages:
            return list(reader.connections)
        return [connection for storage in storages for connection in storage.connections]

    def _find_channels(self, connections: list[Any]) -> dict[tuple[str, MessageSchema], MessageChannel]:
        channels: dict[tuple[str, MessageSchema], MessageChannel] = {}
        names: set[str] = set()
        for connection in connections:
            schema = self._schema_of(connection)
            channel = channels.get((connection.topic, schema))
            if channel is None:
                name = stream_name(connection.topic, names)
                names.add(name)
                channel = MessageChannel(name, connection.topic, schema, publishers=0)
                channels[connection.topic, schema] = channel
            # In a ROS 2 bag a topic is one connection per file, however many nodes published on it.
            channel.publishers = channel.publishers + 1 if self._is_ros1 else 1
            caller = getattr(connection.ext, "callerid", None)
            if caller:
                known = channel.details.get("callers")
                channel.details["callers"] = f"{known} {caller}" if known else caller
            self._channel_of[self._key(connection)] = channel
        return channels

    def _schema_of(self, connection: Any) -> MessageSchema:
        definition = connection.msgdef.data.encode()
        if self._is_ros1:
            name = connection.msgtype.replace("/msg/", "/")
            return MessageSchema(ros_types.ROS1, name, "ros1msg" if definition else "", definition)
        encoding = "ros2idl" if connection.msgdef.format.name == "IDL" else "ros2msg"
        return MessageSchema(ros_types.CDR, connection.msgtype, encoding if definition else "", definition)

    def _scan(
        self,
        reader: Any,
        connections: list[Any],
        channels: dict[tuple[str, MessageSchema], MessageChannel],
    ) -> None:
        start_ns, end_ns = MAX_STAMP_NS, 0
        for connection, arrival_ns, payload in _messages(reader, connections):
            if not 0 <= arrival_ns <= MAX_STAMP_NS:
                raise ValueError(f"a message of {connection.topic} is stamped {arrival_ns} ns")
            self._channel_of[self._key(connection)].observe(payload, arrival_ns)
            start_ns, end_ns = min(start_ns, arrival_ns), max(end_ns, arrival_ns)
        used = [channel for channel in channels.values() if channel.count]
        self.streams = tuple(channel.declare() for channel in used)
        self.problems = tuple(message_problems(list(channels.values())))
        if used:
            self.start_ns, self.end_ns = start_ns, end_ns


def _messages(reader: Any, connections: list[Any]) -> Iterator[tuple[Any, int, bytes]]:
    if connections:  # rosbags takes an empty list for "all"
        yield from reader.messages(connections)


def message_problems(channels: list[MessageChannel]) -> Iterator[Problem]:
    """Yield what a scan found amiss with message streams."""
    if not any(channel.count for channel in channels):
        yield Problem("empty", "", 0, f"no messages ({len(channels)} topics)")
        return
    for channel in channels:
        if not channel.count:
            yield Problem(
                "empty_stream", channel.name, 0, f"{channel.topic} is declared but holds no message"
            )
            continue
        if channel.schema.name and not channel.schema.data and channel.schema.encoding == "":
            yield Problem(
                "unknown_type",
                channel.name,
                channel.count,
                f"{channel.topic}: {channel.count} messages of {channel.schema.name}, whose definition the "
                f"recording lacks, pass as bytes that no viewer can decode",
            )
        if channel.is_headed and not channel.has_header_stamps:
            yield Problem(
                "unset_stamps",
                channel.name,
                channel.count,
                f"{channel.topic}: no header stamp was ever set; arrival is the only time",
            )


def _load_reader(path: Path, is_ros1: bool) -> tuple[Callable[[], Any], tuple[type[Exception], ...]]:
    """Return what makes a fresh reader for each pass, and the errors that it may raise."""
    try:
        from rosbags import rosbag1, rosbag2
        from rosbags.rosbag2.errors import ReaderError as Ros2Error
    except ImportError as err:
        raise SourceError(f"{path}: ROS bags need the rosbags library: pip install 'sensorium[ros]'") from err
    errors: tuple[type[Exception], ...] = (*_DAMAGE, rosbag1.ReaderError, Ros2Error, *_library_errors())
    reader = rosbag1.Reader if is_ros1 else rosbag2.Reader
    return functools.partial(reader, path), errors


def _library_errors() -> Iterator[type[Exception]]:
    """Yield the errors of what rosbags unpacks and queries with, as far as it is installed."""
    for module, name in (
        ("backports.zstd", "ZstdError"),
        ("compression.zstd", "ZstdError"),
        ("apsw", "Error"),
    ):
        try:
            yield getattr(importlib.import_module(module), name)
        except ImportError:
            continue


def _is_sqlite(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(15) == b"SQLite format 3"


def _first_line(err: BaseException) -> str:
    text = str(err).strip().splitlines()
    # rosbags quotes the arguments of the error below as a tuple.
    return re.sub(r"\('(.*)',\)", r"\1", text[0]) if text else type(err).__name__


def _advice(err: BaseException, is_ros1: bool) -> str:
    if "index" not in str(err).lower():
        return ""
    command = "rosbag reindex" if is_ros1 else "ros2 bag reindex"
    return f"; '{command}' repairs a recording that was not finished"
