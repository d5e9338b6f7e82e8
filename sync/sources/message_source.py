"""Recordings that are files of messages: bags and MCAP, one file or several that follow one another.

Arrival is the recorder's receive stamp (UTC). The device stamp is the producer's ``header.stamp`` where the type
begins with one; else the second stamp of an MCAP message where it ever differs from the first: as host time if it
always lies within a minute before it, else as a clock of its own. Messages of one topic, type and definition are one
stream, whatever number of publishers shared it.

Sequence numbers are kept (from the first one on, as every stream counts from 0) where they count the channel's
messages; many writers leave them 0 or count over the whole file, and then the messages are counted here.
"""

import heapq
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from sensorium.drivers.frame import Frame, Loss, Place
from sensorium.errors import SourceError
from sensorium.sync.sources import ros_types
from sensorium.sync.sources.arrival_gaps import ArrivalGaps
from sensorium.sync.sources.budget import ZSTD_MAGIC, DamagedError, unpack_message
from sensorium.sync.sources.message_file import ChannelFacts, Message, MessageFile
from sensorium.sync.sources.message_problems import message_problems
from sensorium.sync.sources.message_stream import MessageChannel, stream_name
from sensorium.sync.sources.realsense import SystemTime
from sensorium.sync.sources.ros_definitions import filled_in
from sensorium.sync.sources.sequence_facts import SequenceFacts
from sensorium.sync.sources.source import RECORDING_HOST, Problem, Source
from sensorium.timebase import Timeline

_MAX_STREAMS = 4096
_NEVER_LIKE_ZSTD = (ros_types.CDR, ros_types.ROS1, "json")
_DAMAGED_MESSAGE = "damaged message in the recording"


class MessageSource(Source):
    """One recording.

    Raises:
        SourceError: If nothing of a file can be read.
    """

    def __init__(self, path: Path, files: Sequence[MessageFile], remarks: Sequence[Problem] = ()) -> None:
        """Scan the files.

        Args:
            files: In their order.
            remarks: What was found amiss while the files were looked for.
        """
        super().__init__(path)
        self.kind = files[0].kind
        self._files = files
        self._channels: dict[tuple[int, int], MessageChannel] = {}
        self._shared: dict[object, MessageChannel] = {}
        self._sequences: dict[str, SequenceFacts] = {}
        self._all_sequences = SequenceFacts()
        self._packed: dict[str, int] = {}
        self._damaged: dict[str, int] = {}
        self._gaps = ArrivalGaps()
        self._system_time = SystemTime()
        self._is_empty = True
        try:
            for number, file in enumerate(files):
                for message in file.scan():
                    self._observe(number, message)
            self._declare(remarks)
        except BaseException:
            self.close()
            raise

    def frames(self) -> Iterator[Frame | Loss]:
        try:
            yield from self._frames()
        except OSError as err:
            raise SourceError(f"{self.path}: cannot be read: {err.strerror}") from err
        except DamagedError as err:
            raise SourceError(f"{self.path}: changed while it was played: {err}") from err

    @property
    def message_count(self) -> int:
        """How many messages the scan found, those included that do not unpack."""
        return sum(channel.count for channel in self._shared.values()) + sum(self._damaged.values())

    def close(self) -> None:
        for file in self._files:
            file.close()

    def _frames(self) -> Iterator[Frame | Loss]:
        counts = dict.fromkeys((channel.name for channel in self._channels.values()), 0)
        for number, message in self._by_arrival():
            channel = self._channels.get((number, message.channel_id))
            if channel is None:
                continue  # counted by the scan as undeclared: its declaration comes later in the file
            facts = self._sequences[channel.name]
            if message.sequence is not None and self._keeps_sequence(facts):
                seq = message.sequence - facts.first
            else:
                seq = counts[channel.name]
                counts[channel.name] += 1
            try:
                payload = self._plain(channel, message.payload)
            except DamagedError:
                yield Loss(channel.name, 1, Place.SOURCE, _DAMAGED_MESSAGE)
                continue
            yield channel.frame(seq, payload, message.log_ns, message.publish_ns)

    def _by_arrival(self) -> Iterator[tuple[int, Message]]:
        if len(self._files) == 1:
            return zip(itertools.repeat(0), self._files[0].messages())
        numbered = [zip(itertools.repeat(number), file.messages()) for number, file in enumerate(self._files)]
        return heapq.merge(*numbered, key=lambda pair: (pair[1].log_ns, pair[0]))

    def _keeps_sequence(self, facts: SequenceFacts) -> bool:
        counts_whole_file = self._all_sequences.is_increasing and len(self._sequences) > 1
        return facts.is_counter and not counts_whole_file

    def _observe(self, number: int, message: Message) -> None:
        channel = self._channels.get((number, message.channel_id))
        if channel is None:
            channel = self._channel(number, message.channel_id)
        log_ns = message.log_ns
        if self._is_empty:
            self.start_ns, self._is_empty = log_ns, False
        self.start_ns, self.end_ns = min(self.start_ns, log_ns), max(self.end_ns, log_ns)
        self._gaps.take(log_ns)
        if message.sequence is not None:
            self._sequences[channel.name].observe(message.sequence, log_ns)
            self._all_sequences.observe(message.sequence, 0)
        if self._system_time.is_told_on(channel.topic):
            self._system_time.take(message.payload, log_ns)
        try:
            channel.observe(self._plain(channel, message.payload), log_ns, message.publish_ns)
        except DamagedError:
            self._damaged[channel.name] = self._damaged.get(channel.name, 0) + 1

    def _plain(self, channel: MessageChannel, payload: bytes) -> bytes:
        """Return a message as it was published: rosbag2 can pack each with zstd, and the file does not say so.

        No CDR begins like a zstd frame, its first byte is 0, and no JSON does, nor a ROS 1 message that is numbered
        from 0 on. In other encodings these bytes may be the message's own.
        """
        if payload[:4] != ZSTD_MAGIC or channel.schema.message_encoding not in _NEVER_LIKE_ZSTD:
            return payload
        channel.details["compression"] = "each message packed with zstd; played unpacked"
        return unpack_message(payload)

    def _channel(self, number: int, channel_id: int) -> MessageChannel:
        facts = self._files[number].channels()[channel_id]
        key = (facts.topic, facts.schema, facts.occurrence)
        channel = self._shared.get(key)
        if channel is None:
            channel = self._shared[key] = self._new_channel(facts)
            self._sequences[channel.name] = SequenceFacts()
        self._channels[number, channel_id] = channel
        return channel

    def _new_channel(self, facts: ChannelFacts) -> MessageChannel:
        if len(self._sequences) >= _MAX_STREAMS:
            raise SourceError(
                f"{self.path}: holds messages of more than {_MAX_STREAMS} topics; no recorder does that"
            )
        name = stream_name(facts.topic, self._sequences)
        schema, details = facts.schema, dict(facts.details)
        filled = filled_in(schema)
        if filled is not None:
            schema, details["definition"] = filled
        return MessageChannel(name, facts.topic, schema, facts.publishers, details)

    def _declare(self, remarks: Sequence[Problem]) -> None:
        used = [channel for channel in self._shared.values() if channel.count]
        for channel in used:
            channel.conclude()
            facts = self._sequences[channel.name]
            if facts.count and self._keeps_sequence(facts):
                channel.details["first_sequence"] = str(facts.first)
        self.streams = tuple(channel.declare() for channel in used)
        problems = [*remarks]
        for file in self._files:
            problems += file.notes.problems()
        problems += message_problems([*used, *self._silent()])
        problems += self._gaps.problems()
        problems += self._system_time.problems(self.start_ns)
        if self._system_time.offset_ns:
            offset_ns = self._system_time.offset_ns
            self.timeline = Timeline(RECORDING_HOST, utc_minus_host_ns=offset_ns, is_virtual=True)
        for name, count in self._damaged.items():
            text = f"{name}: {count} messages are packed with zstd and do not unpack; they are left out"
            problems.append(Problem("bad_message", name, count, text))
        self.problems = tuple(problems)

    def _silent(self) -> list[MessageChannel]:
        """Return the channels that are declared but hold nothing, each topic once."""
        silent: dict[object, ChannelFacts] = {}
        for file in self._files:
            for facts in file.channels().values():
                key = (facts.topic, facts.schema, facts.occurrence)
                channel = self._shared.get(key)
                if channel is None or not channel.count:
                    silent.setdefault(key, facts)
        return [
            MessageChannel(stream_name(facts.topic, ()), facts.topic, facts.schema)
            for facts in silent.values()
        ]
