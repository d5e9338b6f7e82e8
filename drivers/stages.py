"""What happens to a device's frames in its host, between driver and bus.

A stage sees a device's items in the order in which its driver gave them. What it drops it says as a
:class:`Loss` in that place; what it holds back keeps its stamps.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from sensorium.drivers.driver import Driver
from sensorium.drivers.frame import COUNTER_GAP, Frame, Loss, Place, StreamInfo
from sensorium.drivers.payloads.codec import Codec, CodecChoice, parse_codec
from sensorium.drivers.payloads.table import packed_as
from sensorium.errors import ConfigError

Item = Frame | Loss


class Stage(Protocol):
    """One step on the way; a stage that holds nothing back keeps the defaults of the last three.

    Attributes:
        due_ns: Host time at which :meth:`due` must be called; None while nothing is held back.
    """

    due_ns: int | None = None

    def declare(self, infos: Sequence[StreamInfo]) -> Sequence[StreamInfo]:
        """Return the streams as they leave this stage; called once, before the first item.

        Raises:
            ConfigError: If the stage is of no use to any of them.
        """
        ...

    def apply(self, item: Item) -> Sequence[Item]:
        """Return what goes on now; the order of a stream's samples and losses is kept."""
        ...

    def due(self, now_ns: int) -> Sequence[Item]:  # noqa: ARG002 - nothing is held back here
        """Return what has been held back long enough; called every round of the host."""
        return ()

    def flush(self) -> Sequence[Item]:
        """Return all that is held back; the source has ended."""
        return ()


class Pipeline:
    """A device's stages, one behind the other."""

    def __init__(self, stages: Sequence[Stage], infos: Sequence[StreamInfo]) -> None:
        """Declare the driver's streams from stage to stage; see :meth:`Stage.declare` for what is raised."""
        self._stages = tuple(stages)
        for stage in self._stages:
            infos = stage.declare(infos)
        self.infos = tuple(infos)

    @property
    def due_ns(self) -> int | None:
        """When the first stage that holds something back wants to be called again."""
        return min((stage.due_ns for stage in self._stages if stage.due_ns is not None), default=None)

    def apply(self, items: Iterable[Item]) -> list[Item]:
        return self._through(items, 0)

    def due(self, now_ns: int) -> list[Item]:
        found: list[Item] = []
        for index, stage in enumerate(self._stages):
            found += self._through(stage.due(now_ns), index + 1)
        return found

    def flush(self) -> list[Item]:
        found: list[Item] = []
        for index, stage in enumerate(self._stages):
            found += self._through(stage.flush(), index + 1)
        return found

    def _through(self, items: Iterable[Item], start: int) -> list[Item]:
        taken = list(items)
        for stage in self._stages[start:]:
            if not taken:
                break
            taken = [out for item in taken for out in stage.apply(item)]
        return taken


class CodecStage(Stage):
    """Packs the payloads of those streams that the codec can pack; the others pass."""

    def __init__(self, choice: CodecChoice, first_seq: Mapping[str, int], *, must_fit: bool) -> None:
        """Args:
        first_seq: Where the numbers of a stream begin, if not at 0.
        must_fit: Refuse a device without a stream for this codec: the rig file names it.

        Raises:
            ConfigError: If the codec has no such level.
        """
        self._choice = choice
        self._codec: Codec = choice.load()
        self._level = choice.level if choice.level is not None else self._codec.level or 0
        self._must_fit = must_fit
        self._first_seq = first_seq
        self._next_seq: dict[str, int] = {}
        self._infos: dict[str, StreamInfo] = {}

    def declare(self, infos: Sequence[StreamInfo]) -> Sequence[StreamInfo]:
        packable = [info for info in infos if info.encoding in self._codec.sources]
        if self._must_fit and not packable:
            found = ", ".join(f"{info.name} is {info.encoding}" for info in infos)
            raise ConfigError(
                f"codec {self._choice.name} packs {', '.join(sorted(self._codec.sources))}, but {found}; "
                "choose a codec for that, or leave codec away"
            )
        self._infos = {info.name: info for info in packable}
        self._next_seq = {name: self._first_seq.get(name, 0) for name in self._infos}
        return [self._declared(info) if info.name in self._infos else info for info in infos]

    def _declared(self, info: StreamInfo) -> StreamInfo:
        level = "" if self._codec.level is None else f":{self._level}"
        said = {
            "codec": f"{self._codec.name}{level}",
            "codec_source": info.encoding,
            "codec_is_exact": "true" if self._codec.is_exact else "false",
        }
        packed = packed_as(self._codec.declare(info), self._codec.encoding)
        return replace(packed, details={**info.details, **said})

    def apply(self, item: Item) -> Sequence[Item]:
        info = self._infos.get(item.stream)
        if info is None:
            return (item,)
        if isinstance(item, Loss):
            self._next_seq[item.stream] += item.count
            return (item,)
        gap = item.seq - self._next_seq[item.stream]
        self._next_seq[item.stream] = item.next_seq
        payload = self._codec.encode(info, item.payload, self._level)
        if payload is not None:
            return (replace(item, payload=payload),)
        lost = Loss(item.stream, item.count, Place.DRIVER, f"could not be packed as {self._codec.name}")
        if gap <= 0:
            return (lost,)
        # Without the frame behind it nobody would see where this gap lies.
        return (Loss(item.stream, gap, Place.DEVICE, COUNTER_GAP), lost)


def stages_for(driver: Driver[Any], codec: str | None) -> list[Stage]:
    """Return the stages of an opened driver whose rig entry says ``codec``.

    Raises:
        ConfigError: If the codec is unknown.
    """
    choice = parse_codec(codec if codec is not None else driver.codec or "none")
    if choice is None:
        return []
    return [CodecStage(choice, driver.first_seq, must_fit=codec is not None)]
