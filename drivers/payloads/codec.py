"""What a codec is: how the payloads of a stream are packed in the driver's host."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from sensorium.drivers.frame import StreamInfo

Payload = bytes | memoryview

CODEC_SOURCE = "codec_source"
"""Key in ``StreamInfo.details``: the encoding that the driver itself gave, where a codec packed it in the host."""

Pack = Callable[[Payload, int], bytes | None]
"""From a frame's payload and count to the packed payload; None when this one cannot be packed."""


class ChainedPack(ABC):
    """A ``Pack`` whose payloads build upon those before: what is lost spoils what follows, until a key frame."""

    @abstractmethod
    def __call__(self, payload: Payload, count: int) -> bytes | None: ...

    @abstractmethod
    def ask_key_frame(self) -> None:
        """Make the next payload one that stands alone; called when one did not reach the bus."""


@dataclass(frozen=True, slots=True)
class Codec:
    """How payloads are packed, frame by frame.

    Attributes:
        sources: Encodings that it packs.
        encoding: The encoding that comes out.
        is_exact: Unpacking gives the same values, bit for bit.
        level: Quality or effort where the rig file names none; None = the codec has no such setting.
        levels: The lowest and highest level allowed.
        declare: The stream as it is once packed, but for ``encoding``.
        packer: From the stream as the driver declares it, and a level, to what packs its payloads; called
            once per stream, then given its frames in order.
        default_for: Encodings that it packs where neither the rig file nor the device's options say anything; a
            codec is the default only of what it gives back exactly.
    """

    name: str
    sources: frozenset[str]
    encoding: str
    is_exact: bool
    declare: Callable[[StreamInfo], StreamInfo]
    packer: Callable[[StreamInfo, int], Pack]
    level: int | None = None
    levels: tuple[int, int] = (0, 0)
    default_for: frozenset[str] = frozenset()
