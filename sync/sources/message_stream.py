"""Streams of messages whose schema is somebody else's: names, declarations and stamps, for bags and MCAP.

A recording is scanned once before its first frame is played, because a stream's declaration states facts that
stand nowhere in a bag: the largest payload, whether a header's stamp was ever set, the rate.
"""

import hashlib
import re
from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sensorium.drivers.frame import (
    ClockKind,
    DeviceClock,
    Encoding,
    Frame,
    Latency,
    MessageSchema,
    StreamInfo,
    stamps,
)
from sensorium.sync.episode.personal import PERSONAL_BECAUSE
from sensorium.sync.sources import known_types, ros_types
from sensorium.sync.sources.arrival_gaps import LONGEST_WAIT_NS
from sensorium.sync.sources.budget import PACKED_MAGICS
from sensorium.sync.sources.source import RECORDING_HOST
from sensorium.sync.sources.stamp_units import EARLIEST_UTC_NS, WrongUnit, rate_unit, stand_still
from sensorium.sync.sources.topic_kinds import Topic, TopicKind, carries_colour, kind_of, names_globe
from sensorium.timebase import SECOND_NS

MAX_STAMP_NS = (1 << 63) - 1
LATEST_STAMP_NS = 1 << 61
"""2043: a recorder takes no later stamp."""
_NAME_LENGTH = 48
_RESERVED = frozenset({"data", "sensorium"})  # files of an episode
_ARRIVALS_KEPT = 4096
_SILENCE_MEDIANS = 100
_FAR_NS = 86_400 * SECOND_NS
_HOST_LAG_LIMIT_NS = 60 * SECOND_NS


def stream_name(topic: str, taken: Collection[str]) -> str:
    """Return a valid stream name for a topic, unlike those in ``taken``; long ones end in a hash."""
    name = re.sub(r"[^a-z0-9]+", "_", topic.lower()).strip("_") or "stream"
    if len(name) > _NAME_LENGTH:
        digest = hashlib.sha256(topic.encode()).hexdigest()[:8]
        name = f"{name[: _NAME_LENGTH - 9].rstrip('_')}_{digest}"
    unique, number = name, 2
    while unique in taken or unique in _RESERVED:
        suffix = f"_{number}"
        unique = name[: _NAME_LENGTH - len(suffix)] + suffix
        number += 1
    return unique


@dataclass(slots=True)
class HeaderStamps:
    """What the headers of a stream's messages say about time, gathered by the scan.

    Attributes:
        sound: Stamps that are set and are times.
        unset, bad: Stamps of 0, and numbers that are no time; these messages are stamped by their arrival.
        unreadable: Messages that cannot hold a header, whatever their definition claims.
        far: Sound ones that lie more than a day from their arrival.
    """

    sound: int = 0
    unset: int = 0
    bad: int = 0
    unreadable: int = 0
    far: int = 0
    stamps_ns: list[int] = field(default_factory=list)
    arrivals_ns: list[int] = field(default_factory=list)

    @property
    def count(self) -> int:
        return self.sound + self.unset + self.bad + self.unreadable

    @property
    def are_a_clock(self) -> bool:
        """Most messages tell a time; a few that do not are the exception."""
        return 2 * self.sound > self.count

    @property
    def has_strays(self) -> bool:
        """Some stamps lie far from their arrival, and most do not: each of those is none."""
        return 0 < 2 * self.far < self.sound

    @property
    def are_beyond(self) -> bool:
        """Most stamps are later than any recorder takes them."""
        return bool(self.stamps_ns) and float(np.median(self.stamps_ns)) > LATEST_STAMP_NS

    def take(self, stamp_ns: int | None, arrival_ns: int) -> None:
        if stamp_ns is None:
            self.bad += 1
        elif stamp_ns == 0:
            self.unset += 1
        else:
            self.sound += 1
            self.far += is_far(stamp_ns, arrival_ns)
            if len(self.stamps_ns) < _ARRIVALS_KEPT:
                self.stamps_ns.append(stamp_ns)
                self.arrivals_ns.append(arrival_ns)


def is_far(stamp_ns: int, arrival_ns: int) -> bool:
    """Return whether a stamp lies more than a day from its arrival."""
    return abs(stamp_ns - arrival_ns) > _FAR_NS


@dataclass(slots=True)
class MessageChannel:
    """One stream of messages, while the scan gathers the facts for its declaration.

    Attributes:
        publishers: Connections that share the topic. Header stamps of several publishers are no clock: they
            may come from several machines.
        unit: Of the header's stamps, where they are not nanoseconds; known after the scan.
        stands_still: The header's stamps do not advance while messages arrive; known after the scan.
        is_beyond: Most of them are later than any recorder takes them; known after the scan.
        packed: How many messages begin like packed data and pass as they are.
    """

    name: str
    topic: str
    schema: MessageSchema
    publishers: int = 1
    details: dict[str, str] = field(default_factory=dict)
    count: int = 0
    max_bytes: int = 0
    is_headed: bool = False
    header: HeaderStamps = field(default_factory=HeaderStamps)
    unit: WrongUnit | None = None
    stands_still: bool = False
    is_beyond: bool = False
    frame_id: str = ""
    image_format: tuple[int, int, str] | None = None
    compression: str = ""
    lag_min_ns: int = 0
    lag_max_ns: int = 0
    published_max_ns: int = 0
    latest_ns: int = 0
    arrivals_ns: list[int] = field(default_factory=list)
    has_colour: bool | None = None
    names_globe: bool = False
    is_cloud: bool = False
    may_be_place: bool = False
    packed: int = 0

    def __post_init__(self) -> None:
        definition = self.schema.data.decode("utf-8", "replace")
        is_ros = self.schema.message_encoding in (ros_types.ROS1, ros_types.CDR)
        self.is_headed = is_ros and ros_types.begins_with_header(self.schema.name, definition)
        self.is_cloud = known_types.last_name(self.schema.name) in known_types.CLOUDS
        known = known_types.HARMLESS.get(known_types.plain_name(self.schema.name))
        self.may_be_place = known is not None and known.may_be_place

    @property
    def has_header_stamps(self) -> bool:
        return self.is_headed and self.header.are_a_clock

    @property
    def uses_header(self) -> bool:
        is_time = (self.unit is None or self.unit.is_steady) and not (self.stands_still or self.is_beyond)
        return self.has_header_stamps and self.publishers == 1 and is_time

    @property
    def uses_publish_time(self) -> bool:
        return not self.uses_header and (self.lag_min_ns, self.lag_max_ns) != (0, 0)

    def observe(self, payload: bytes | memoryview, arrival_ns: int, published_ns: int | None = None) -> None:
        """Take one message of the scan into account; ``published_ns`` where the recording states one."""
        self.count += 1
        self.max_bytes = max(self.max_bytes, len(payload))
        self.latest_ns = max(self.latest_ns, arrival_ns)
        self.packed += bytes(payload[:4]).startswith(PACKED_MAGICS)
        if len(self.arrivals_ns) < _ARRIVALS_KEPT:
            self.arrivals_ns.append(arrival_ns)
        if published_ns:
            self.published_max_ns = max(self.published_max_ns, published_ns)
            lag_ns = arrival_ns - published_ns
            self.lag_min_ns = min(self.lag_min_ns, lag_ns)
            self.lag_max_ns = max(self.lag_max_ns, lag_ns)
        self._look_for_people(payload)
        if self.is_headed:
            self._observe_header(payload, arrival_ns)

    def _observe_header(self, payload: bytes | memoryview, arrival_ns: int) -> None:
        header = ros_types.read_header(payload, self.schema.message_encoding)
        if header is None:
            self.header.unreadable += 1
            return
        if self.header.count == self.header.unreadable:
            self.frame_id = header.frame_id
            kind = known_types.last_name(self.schema.name)
            if kind == "Image":
                self.image_format = ros_types.read_image_format(payload, self.schema.message_encoding, header)
            elif kind == "CompressedImage":
                self.compression = ros_types.read_text(payload, self.schema.message_encoding, header)
        self.header.take(header.stamp_ns, arrival_ns)

    def conclude(self) -> None:
        """Draw the conclusions that need the whole scan; call before ``declare``."""
        if self.has_header_stamps and self.publishers == 1:
            self.unit = rate_unit(self.header.stamps_ns, self.header.arrivals_ns)
            self.is_beyond = self.unit is None and self.header.are_beyond
            self.stands_still = stand_still(self.header.stamps_ns, self.header.arrivals_ns)
        if not self.has_header_stamps:
            self.image_format = self.image_format if 2 * self.header.unreadable < self.count else None

    def _look_for_people(self, payload: bytes | memoryview) -> None:
        """Note what speaks for people although the type does not."""
        if self.is_cloud and not self.has_colour:
            self.has_colour = carries_colour(self.schema, payload)
        if self.may_be_place and not self.names_globe:
            self.names_globe = names_globe(payload)

    def _kind(self) -> TopicKind:
        pixels = self.image_format[2] if self.image_format is not None else self.compression
        found = Topic(self.topic, self.schema, self.frame_id, pixels, self.has_colour, self.names_globe)
        return kind_of(found)

    def device_ns(self, payload: bytes | memoryview, arrival_ns: int, published_ns: int | None) -> int | None:
        """Return the device stamp of one message in ticks of its clock, None where it has none."""
        if arrival_ns < EARLIEST_UTC_NS < self.latest_ns:
            return None  # from before the clock was set, by decades: no line leads from there to the others
        if self.uses_header:
            header = ros_types.read_header(payload, self.schema.message_encoding)
            stamp_ns = header.stamp_ns if header is not None else None
            is_stray = self.header.has_strays and is_far(stamp_ns or 0, arrival_ns)
            return None if is_stray else stamp_ns or None
        # Among dates 0 was not set; of a clock that counts from its start it is the first tick.
        is_unset = published_ns == 0 and self.published_max_ns > EARLIEST_UTC_NS
        return published_ns if self.uses_publish_time and not is_unset else None

    def declare(self) -> StreamInfo:
        """Return the stream's declaration; call after the scan."""
        kind = self._kind()
        shape: tuple[int, ...] = ()
        details = {
            "topic": self.topic,
            "type": self.schema.name,
            "publishers": str(self.publishers),
            **self.details,
        }
        if self.image_format is not None:
            height, width, pixels = self.image_format
            shape = (height, width)
            details["pixel_format"] = pixels
        if kind.personal_because:
            details[PERSONAL_BECAUSE] = kind.personal_because
        if self.frame_id:
            details["frame_id"] = self.frame_id
        clock, stamp_of, max_latency_ns = self._clock()
        return StreamInfo(
            name=self.name,
            modality=kind.modality,
            encoding=Encoding.MESSAGE,
            rate_hz=nominal_rate_hz(self.arrivals_ns),
            frame_id=self.frame_id or self.name,
            clock=clock,
            latency=Latency(max_ns=max_latency_ns),
            stamp_of=stamp_of,
            shape=shape,
            host_id=RECORDING_HOST,
            schema=self.schema,
            is_personal=bool(kind.personal_because),
            max_payload_bytes=max(1, self.max_bytes),
            details=details,
        )

    def _clock(self) -> tuple[DeviceClock, str, int]:
        """Return the clock of the stamps, what they are stamps of, and the largest latency in nanoseconds."""
        if self.uses_header:
            # The stamp was set by the producer, on a machine whose clock nobody vouches for.
            num, den = (self.unit.num, self.unit.den) if self.unit is not None else (1, 1)
            return DeviceClock(ClockKind.FREE, num, den), "sample", SECOND_NS
        if not self.uses_publish_time:
            return DeviceClock(), "arrival", SECOND_NS
        is_host = self.lag_min_ns >= 0 and self.lag_max_ns < _HOST_LAG_LIMIT_NS
        kind = ClockKind.HOST if is_host else ClockKind.FREE
        return DeviceClock(kind), "sample", max(SECOND_NS, self.lag_max_ns) if is_host else SECOND_NS

    def frame(self, seq: int, payload: bytes, arrival_ns: int, published_ns: int | None = None) -> Frame:
        device_ns = self.device_ns(payload, arrival_ns, published_ns)
        ticks = None if device_ns is None else stamps(device_ns)
        return Frame(self.name, seq, 1, ticks, stamps(arrival_ns), payload)


def nominal_rate_hz(arrivals_ns: list[int]) -> float:
    """Return messages per second of a steady stream, 0 for one that comes in bursts or on events.

    Steady: the gaps within half of the median gap are four of five, and fill four fifths of the time. Silences that
    a replay jumps over do not count.
    """
    ordered_ns: NDArray[np.int64] = np.sort(np.asarray(arrivals_ns, np.int64))
    gaps_ns = ordered_ns[1:] - ordered_ns[:-1]
    if len(gaps_ns) < 4:
        return 0.0
    median_ns = float(np.median(gaps_ns))
    gaps_ns = gaps_ns[(gaps_ns <= LONGEST_WAIT_NS) | (gaps_ns <= _SILENCE_MEDIANS * median_ns)]
    usual = gaps_ns[np.abs(gaps_ns - median_ns) <= 0.5 * median_ns]
    if median_ns <= 0 or len(usual) < 0.8 * len(gaps_ns) or usual.sum() < 0.8 * gaps_ns.sum():
        return 0.0
    rate_hz = SECOND_NS / float(np.mean(usual))
    return float(f"{rate_hz:.6g}") if rate_hz < 1e7 else 0.0
