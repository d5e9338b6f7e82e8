"""The triggers of a recording session: which camera waits for whose pulses, and what came of it."""

import difflib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from sensorium.drivers.bus.credits import Held
from sensorium.drivers.bus.wire import Declare
from sensorium.drivers.frame import Frame, StreamInfo
from sensorium.errors import ConfigError
from sensorium.sync.clocks.model import ClockEvent, Stamped
from sensorium.sync.clocks.pps import MARKS, UTC_SECOND, PpsWatch
from sensorium.sync.clocks.trigger import TriggerCounts
from sensorium.sync.clocks.triggered import DETAIL, TriggerMatcher, TriggerSettings, settings_of
from sensorium.sync.recording.streams import Instance, LiveStream
from sensorium.verdict import Status, Verdict

_UNDECLARED = "the pulses were not declared yet"


@dataclass(frozen=True, slots=True, eq=False)
class Due:
    """A frame with its stamps, and the credit that it holds until it is recorded."""

    instance: Instance
    stream: LiveStream
    frame: Frame
    stamped: Stamped
    held: Held | None = None


@dataclass(slots=True)
class _Driven:
    """A triggered camera. ``problem`` says why its frames keep their ordinary stamps, if they do."""

    instance: Instance
    stream: LiveStream
    settings: TriggerSettings | None
    matcher: TriggerMatcher | None = None
    problem: str = ""
    held: dict[int, Held] = field(default_factory=dict)
    """Credit of the frames that wait, by their sequence number."""


class SessionTriggers:
    """Routes pulses to the cameras that they drive and holds frames until their pulse is known."""

    def __init__(self, settings: Iterable[TriggerSettings]) -> None:
        self._settings = {name: each for each in settings for name in each.drives}
        self._infos: dict[str, StreamInfo] = {}
        self._driven: dict[str, _Driven] = {}
        self._by_pulses: dict[str, list[_Driven]] = {}
        self._seconds: dict[str, PpsWatch] = {}
        self._counts: dict[str, TriggerCounts] = {}
        self._frames: set[str] = set()

    # -- declarations

    def describe(self, declare: Declare) -> Declare:
        """Return the declaration with the rig file's triggers in the details of the cameras that they drive."""
        if self._settings.keys().isdisjoint(info.name for info in declare.streams):
            return declare
        streams = tuple(
            replace(info, details={**info.details, DETAIL: self._settings[info.name].model_dump_json()})
            if info.name in self._settings
            else info
            for info in declare.streams
        )
        return declare.model_copy(update={"streams": streams})

    def admit(self, instance: Instance) -> Iterator[Due]:
        """Take up the streams of a new driver instance; yield what an older one of the device still held."""
        for name, stream in instance.streams.items():
            self._infos[name] = stream.info
            if stream.info.details.get(MARKS) == UTC_SECOND and name not in self._seconds:
                self._seconds[name] = PpsWatch(stream.info)
            old = self._driven.pop(name, None)
            if old is not None:
                yield from _ready(old, None)
                self._collect(old)
            try:
                settings, problem = settings_of(stream.info), ""
            except ConfigError as err:
                settings, problem = None, str(err)
            if settings is not None or problem:
                self._driven[name] = _Driven(instance, stream, settings, None, problem)
        self._connect()

    def _connect(self) -> None:
        self._by_pulses.clear()
        for driven in self._driven.values():
            settings = driven.settings
            if settings is None:
                continue
            pulses = self._infos.get(settings.pulses)
            if pulses is None:
                driven.problem = f"triggers: {driven.stream.info.name} has no pulses: " + self._unknown(
                    settings.pulses
                )
                continue
            if driven.matcher is None:
                try:
                    driven.matcher = TriggerMatcher(driven.stream.info, settings, pulses)
                except ConfigError as err:
                    driven.problem = str(err)
                    continue
                driven.problem = ""
            self._by_pulses.setdefault(settings.pulses, []).append(driven)

    def _unknown(self, name: str) -> str:
        near = difflib.get_close_matches(name, self._infos, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(self._infos))}"
        return f"no stream {name!r} was declared; {hint}"

    def problems(self) -> tuple[tuple[str, str], ...]:
        """Return (stream, why nothing comes of its trigger) for all that were declared or named by now."""
        found = [(name, driven.problem) for name, driven in self._driven.items() if driven.problem]
        missing = sorted(self._settings.keys() - self._infos.keys())
        return (*found, *((name, f"triggers: {self._unknown(name)}") for name in missing))

    # -- frames

    def concerns(self, frame: Frame) -> bool:
        """Return whether a frame is a pulse, or of a triggered camera; those of an episode keep their stamps."""
        if frame.recorded is not None:
            return False
        name = frame.stream
        return name in self._driven or name in self._by_pulses or name in self._seconds

    def take(self, due: Due, now_ns: int) -> Iterator[Due]:
        """Take a frame that concerns a trigger, with its ordinary stamps; yield what needs no :meth:`due`."""
        stream, frame, stamped = due.stream, due.frame, due.stamped
        name = frame.stream
        if name in self._seconds:
            self._seconds[name].take(frame, stamped)
        driven = self._driven.get(name)
        if driven is not None:
            self._frames.add(name)
        if driven is not None and driven.matcher is not None and driven.stream is stream:
            if due.held is not None:
                driven.held[frame.seq] = due.held
            driven.matcher.frame(frame, stamped, now_ns)
        else:
            if driven is not None:
                self._counts.setdefault(name, TriggerCounts()).estimated[_UNDECLARED] += 1
            yield due
        for each in self._by_pulses.get(name, ()):
            assert each.matcher is not None
            each.matcher.pulse(frame, stamped, due.instance.number)

    def due(self, now_ns: int | None) -> Iterator[Due]:
        """Yield the frames that are decided by now; None = all that still wait."""
        for driven in self._driven.values():
            yield from _ready(driven, now_ns)

    def oldest_arrival_ns(self, now_ns: int) -> int:
        """Return the arrival of the oldest frame that still waits for its pulse; ``now_ns`` without one."""
        waiting = [d.matcher.oldest_arrival_ns for d in self._driven.values() if d.matcher is not None]
        return min((arrival_ns for arrival_ns in waiting if arrival_ns is not None), default=now_ns)

    # -- what came of it

    def begin(self) -> None:
        """Begin the counts of a new episode."""
        for driven in self._driven.values():
            self._collect(driven)
        self._counts.clear()
        self._frames.clear()
        for seconds in self._seconds.values():
            seconds.begin()

    def _collect(self, driven: _Driven) -> None:
        if driven.matcher is not None:
            self._counts.setdefault(driven.stream.info.name, TriggerCounts()).add(
                driven.matcher.take_counts()
            )

    def take_events(self) -> Iterator[ClockEvent]:
        """Yield what happened since the last call."""
        for driven in self._driven.values():
            if driven.matcher is not None:
                yield from driven.matcher.take_events()

    def is_by_pulse(self, name: str) -> bool:
        """Return whether a stream's frames have the times of pulses."""
        driven = self._driven.get(name)
        return driven is not None and driven.matcher is not None and driven.matcher.is_matching

    def verdicts(self, *, with_seconds: bool = True) -> tuple[Verdict, ...]:
        """Return one verdict per triggered camera and per PPS, over the frames since :meth:`begin`."""
        problems = dict(self.problems())
        for driven in self._driven.values():
            self._collect(driven)
        found = [
            Verdict("trigger", name, Status.INSUFFICIENT, (), (problem,))
            for name, problem in problems.items()
            if name in self._frames or name not in self._infos
        ]
        found += [
            counts.verdict(name)
            for name, counts in self._counts.items()
            if name not in problems and name in self._frames
        ]
        if with_seconds:
            found += [seconds.verdict() for seconds in self._seconds.values()]
        return tuple(found)


def _ready(driven: _Driven, now_ns: int | None) -> Iterator[Due]:
    if driven.matcher is not None:
        for frame, stamped in driven.matcher.ready(now_ns):
            yield Due(driven.instance, driven.stream, frame, stamped, driven.held.pop(frame.seq, None))


def check_streams(settings: Sequence[TriggerSettings], devices: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Yield (index, problem) of triggers that cannot be meant, as far as the devices' names tell.

    A device's streams begin with its name; which of them there are, only the open device knows.
    """
    names = list(devices)
    driven_by: dict[str, str] = {}
    for index, each in enumerate(settings):
        for stream in (each.pulses, *each.drives):
            if not any(stream == name or stream.startswith(f"{name}_") for name in names):
                near = difflib.get_close_matches(stream, names, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"devices: {', '.join(names)}"
                yield index, f"no device has a stream {stream!r}; {hint}"
        for stream in each.drives:
            if stream == each.pulses:
                yield index, f"{stream} cannot drive itself; name the camera"
            elif stream in driven_by:
                yield index, f"{stream} is driven by {driven_by[stream]} already; keep one"
            driven_by.setdefault(stream, each.pulses)
