"""A file of messages as bags and MCAP hold them: read once to learn what is in it, then played by arrival."""

import heapq
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from sensorium.drivers.frame import MessageSchema
from sensorium.sync.sources.source import Problem


class Message(NamedTuple):
    """A message as recorded; ordered by arrival, then by its place in the file.

    ``sequence`` is None where the format has none, ``publish_ns`` where it states no second time.
    """

    log_ns: int
    place: tuple[int, int]
    channel_id: int
    sequence: int | None
    publish_ns: int | None
    payload: bytes


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a file that is read at once, as a chunk is."""

    offset: int
    length: int
    start_ns: int
    is_chunk: bool = True
    is_torn: bool = False


@dataclass(frozen=True, slots=True)
class ChannelFacts:
    """What a file says about one of its channels.

    Attributes:
        publishers: Connections that share the topic, as far as the format tells.
        occurrence: Tells channels apart that a file declares separately for one topic and schema.
    """

    topic: str
    schema: MessageSchema
    publishers: int = 1
    occurrence: int = 0
    details: dict[str, str] = field(default_factory=dict)


class MessageFile(ABC):
    """One file; ``scan`` first, then ``messages`` as often as wanted.

    Attributes:
        kind: The format in words, for messages.
    """

    kind = "file of messages"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.notes = Notes()

    @abstractmethod
    def scan(self) -> Iterator[Message]:
        """Yield every message that can be read, in the order of the file, and note what cannot.

        Raises:
            SourceError: If nothing of the file can be trusted.
        """

    @abstractmethod
    def messages(self) -> Iterator[Message]:
        """Yield the messages of the scan by arrival; memory stays bounded by what overlaps in time.

        Raises:
            DamagedError: If the file is no longer what was scanned.
        """

    @abstractmethod
    def channels(self) -> dict[int, ChannelFacts]:
        """Return the channels by their number; complete after the scan."""

    def close(self) -> None:  # noqa: B027 - most files are open only while they are read
        """Release what is held; safe to call twice."""


class Notes:
    """What was found amiss, each kind once with its count and its first sentence."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, str]] = {}

    def note(self, kind: str, sentence: str, count: int = 1) -> None:
        before, first = self._found.get(kind, (0, sentence))
        self._found[kind] = (before + count, first)

    def problems(self) -> Iterator[Problem]:
        for kind, (count, sentence) in self._found.items():
            yield Problem(kind, "", count, sentence)


def by_arrival(
    segments: Sequence[Segment], read: Callable[[Segment], Iterator[Message]]
) -> Iterator[Message]:
    """Yield the messages of segments by arrival; holds only the segments that overlap in time."""
    ordered = sorted(segments, key=lambda segment: (segment.start_ns, segment.offset))
    waiting: list[Message] = []
    for segment in ordered:
        while waiting and waiting[0].log_ns < segment.start_ns:
            yield heapq.heappop(waiting)
        if waiting:
            for message in read(segment):
                heapq.heappush(waiting, message)
        else:
            waiting = sorted(read(segment))  # a sorted list is a heap
    yield from sorted(waiting)
