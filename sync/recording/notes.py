"""What the recorder tells the thinker, and what it hears from it: numbered batches of msgpack arrays.

The recorder never waits for the other end. A batch that could not be handed over is gone, the number of the
next one shows it, and what the thinker missed is read from the episode's own files before it is sealed.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import msgpack
import numpy as np
import zmq
from numpy.typing import NDArray

from sensorium.drivers.bus.context import has_mail
from sensorium.drivers.frame import Frame
from sensorium.sync.clocks.model import Stamped, Uncertainty
from sensorium.timebase import BaseReading

QUEUED_BATCHES = 4000
"""At 50 a second: more than a minute that the thinker may lag before it has to read from the files."""
MOST_WAITING_NOTES = 200_000
"""What is kept for the first thinker, which may be slower to start than the devices."""
HELLO = b"hello"


class NoteKind(str, Enum):
    """What happened; the first field of a note."""

    DECLARE = "declare"
    ENDED = "ended"
    BEGIN = "begin"
    STARTED = "started"
    FRAME = "frame"
    BASE = "base"
    CLOSING = "closing"
    CLOSED = "closed"
    DISCARD = "discard"


class ThoughtKind(str, Enum):
    """What the thinker says."""

    MAP = "map"
    SUMMARY = "summary"
    SEALED = "sealed"
    SEEN = "seen"


@dataclass(frozen=True, slots=True, eq=False)
class FrameNote:
    """All of a frame but its payload, with what the recorder made of it.

    Attributes:
        stream: Index of the stream in its instance's declaration.
        is_stored: It is in the open episode's files (a frame that consent withholds is not).
        has_own_time: Its capture times came with it (the replay of an episode).
        driver_bytes: Of its payload as the driver gave it, before a codec packed it.
        taken_ns: Host time at which the recorder took it from the bus.
    """

    instance: int
    stream: int
    seq: int
    count: int
    device_ticks: NDArray[np.int64] | None
    arrival_ns: NDArray[np.int64]
    stamped: Stamped
    is_stored: bool
    has_own_time: bool
    driver_bytes: int
    taken_ns: int


def pack_frame(
    instance: int,
    stream: int,
    frame: Frame,
    stamped: Stamped,
    *,
    is_stored: bool,
    driver_bytes: int,
    taken_ns: int,
) -> tuple[Any, ...]:
    """Return the note of a frame, to go into a batch."""
    known = stamped.uncertainty
    ticks = frame.device_ticks
    return (
        NoteKind.FRAME.value,
        instance,
        stream,
        frame.seq,
        frame.count,
        None if ticks is None else ticks.tobytes(),
        frame.arrival_ns.tobytes(),
        stamped.capture_ns.tobytes(),
        known.statistical_ns,
        known.floor_ns,
        known.asymmetry_ns,
        stamped.epoch,
        is_stored,
        frame.recorded is not None,
        driver_bytes,
        taken_ns,
    )


def unpack_frame(fields: Sequence[Any]) -> FrameNote:
    """Return the frame in a note of kind ``FRAME``."""
    (_, instance, stream, seq, count, ticks, arrival, capture, *rest) = fields
    statistical_ns, floor_ns, asymmetry_ns, epoch, is_stored, has_own_time, size, taken_ns = rest
    stamped = Stamped(
        np.frombuffer(capture, np.int64), Uncertainty(statistical_ns, floor_ns, asymmetry_ns), epoch
    )
    device_ticks = None if ticks is None else np.frombuffer(ticks, np.int64)
    arrival_ns = np.frombuffer(arrival, np.int64)
    return FrameNote(
        instance,
        stream,
        seq,
        count,
        device_ticks,
        arrival_ns,
        stamped,
        is_stored,
        has_own_time,
        size,
        taken_ns,
    )


def pack_base(base: BaseReading) -> tuple[Any, ...]:
    times = base.raw_ns, base.monotonic_ns, base.realtime_ns, base.tai_ns
    return NoteKind.BASE.value, *times, base.bracket_ns, base.asleep_ns


@dataclass(frozen=True, slots=True)
class Batch:
    """Some notes in order.

    Attributes:
        number: Counts from 0 for each thinker; a gap means that notes were lost.
        now_ns: Host time of the recorder.
        oldest_ns: Arrival of the latest frame, or of the oldest that still waits for its pulse: alignment may
            decide up to here.
        offset_ns: UTC minus host time of the recording (of a replay: of the source).
    """

    number: int
    now_ns: int
    oldest_ns: int
    notes: Sequence[Sequence[Any]]


class ThinkerLink:
    """The recorder's end. One thinker at a time; a new one is told what it needs to know by the caller."""

    def __init__(self, endpoint: str, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self.lost_batches = 0
        self.socket = context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # else a batch too many vanishes without a word
        self.socket.setsockopt(zmq.SNDHWM, QUEUED_BATCHES)
        self.socket.setsockopt(zmq.MAXMSGSIZE, 16 << 20)
        self.socket.bind(endpoint)
        self._thinker: bytes | None = None
        self._number = 0
        self._notes: list[tuple[Any, ...]] = []
        self._is_complete = True

    @property
    def has_thinker(self) -> bool:
        return self._thinker is not None

    def note(self, note: tuple[Any, ...]) -> None:
        """Add a note to the batch that goes next; kept for the first thinker, dropped while none is there."""
        if self._thinker is not None or self._is_complete:
            self._notes.append(note)

    def flush(self, now_ns: int, oldest_ns: int) -> None:
        """Send what was noted since the last time."""
        if self._thinker is None:
            if len(self._notes) > MOST_WAITING_NOTES:
                self._notes, self._is_complete = [], False
            return
        notes, self._notes = self._notes, []
        data = msgpack.packb((self._number, now_ns, oldest_ns, notes))
        self._number += 1
        try:
            self.socket.send_multipart([self._thinker, data], zmq.NOBLOCK)
        except zmq.Again:
            self.lost_batches += 1
        except zmq.ZMQError:  # it died: nobody to send to
            self.lost_batches += 1
            self._thinker = None

    def hear(self) -> tuple[bool, list[Sequence[Any]]]:
        """Return whether a thinker has come that must be told what is going on, and what was said."""
        is_new = False
        said: list[Sequence[Any]] = []
        while has_mail(self.socket):
            try:
                identity, data = self.socket.recv_multipart(zmq.NOBLOCK)
            except ValueError:
                continue  # not two parts: nobody of ours
            if data == HELLO and identity == self._thinker:
                continue  # it only has not heard from us for a while
            if data == HELLO:
                is_new = is_new or not self._is_complete
                if not self._is_complete:
                    self._notes = []
                self._thinker, self._number, self._is_complete = identity, 0, False
            elif identity == self._thinker:
                said += msgpack.unpackb(data)
        return is_new, said

    def close(self, linger_ms: int = 2000) -> None:
        self.socket.close(linger=linger_ms)


class RecorderLink:
    """The thinker's end."""

    def __init__(self, endpoint: str, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self.socket = context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.RCVHWM, QUEUED_BATCHES)
        self.socket.setsockopt(zmq.RECONNECT_IVL, 20)
        self.socket.setsockopt(zmq.RECONNECT_IVL_MAX, 200)
        self.socket.setsockopt(zmq.LINGER, 500)
        self.socket.connect(endpoint)
        self.greet()

    def greet(self) -> None:
        """Ask whoever records to tell what it knows, and to go on telling."""
        self.socket.send(HELLO, zmq.NOBLOCK)

    def receive(self) -> Batch | None:
        """Return the next batch; None when there is none now."""
        if not has_mail(self.socket):
            return None
        return Batch(*msgpack.unpackb(self.socket.recv(zmq.NOBLOCK)))

    def say(self, thoughts: Iterable[Sequence[Any]]) -> None:
        """Tell the recorder; dropped if it does not listen."""
        found = list(thoughts)
        if found:
            self.socket.send(msgpack.packb(found), zmq.NOBLOCK)

    def close(self) -> None:
        self.socket.close()
