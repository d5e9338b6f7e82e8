"""What a recording is to the rest of the agent: declared streams and their frames in order of arrival."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from sensorium.drivers.frame import Frame, Loss, StreamInfo
from sensorium.timebase import Timeline

RECORDING_HOST = "recording"


@dataclass(frozen=True, slots=True)
class Problem:
    """What a recording lacks or holds in a way that a user must know; reading goes on without it.

    Attributes:
        kind: One word for machines: ``absent_image``, ``no_twin``, ``bad_image``, ``truncated``, ``unknown_type``,
            ``filled_definition``, ``bad_checksum``, ``bad_chunk``, ``bad_record``, ``bad_message``, ``bomb``,
            ``bad_row``, ``bad_stamp``, ``unset_stamps``, ``wrong_unit``, ``relative_stamps``, ``gap``,
            ``cut_packet``, ``repeated_packet``, ``incomplete_fragments``, ``bad_packet``, ``other_traffic``,
            ``guessed_metadata``, ``no_metadata``, ``unlisted_file``, ``unread_log``, ``empty_stream``, ``empty``,
            ``not_carried``; of episodes also ``unsealed``, ``unverified``, ``absent_stream``, ``restarted``.
        stream: The stream concerned; "" = the recording as a whole.
        count: How many times.
        sentence: For people, with numbers and names.
    """

    kind: str
    stream: str
    count: int
    sentence: str


class Source(ABC):
    """A recording that somebody else, or an earlier session, made.

    Everything there is to know before the first frame is known after construction; ``frames`` may be called
    again for another pass from the start.

    Attributes:
        path: The file or folder.
        kind: The format in words, for messages.
        streams: The streams that hold at least one sample.
        timeline: The clock of the arrival stamps; always virtual.
        problems: What was found amiss.
        first_seq: Where a stream's numbers begin, if not at 0.
    """

    kind: str = "recording"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.streams: tuple[StreamInfo, ...] = ()
        self.timeline = Timeline(RECORDING_HOST, utc_minus_host_ns=0, is_virtual=True)
        self.problems: tuple[Problem, ...] = ()
        self.first_seq: Mapping[str, int] = {}
        self.start_ns = 0
        self.end_ns = 0

    @abstractmethod
    def frames(self) -> Iterator[Frame | Loss]:
        """Yield everything, merged over all streams by arrival; memory stays bounded.

        Raises:
            SourceError: If the recording turns out unreadable on the way.
        """

    def close(self) -> None:  # noqa: B027 - most readers hold nothing open between passes
        """Release files; safe to call twice."""

    def __enter__(self) -> "Source":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def frame_end_ns(frame: Frame) -> int:
    """Return the arrival of the frame's last sample: when the whole frame was there."""
    return int(frame.arrival_ns[-1])
