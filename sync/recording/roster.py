"""Who publishes: driver instances that declared themselves, and the moment when they may begin."""

from collections.abc import Callable, Iterable, Iterator
from hmac import compare_digest
from pathlib import Path

from sensorium.drivers.bus.counters import Counts, make_private, read_counters
from sensorium.drivers.bus.receiver import BusReceiver
from sensorium.drivers.bus.wire import Declare, device_token
from sensorium.errors import ConfigError
from sensorium.sync.episode.writer import storable
from sensorium.sync.recording.personal import PersonalStreams
from sensorium.sync.recording.streams import Instance, LiveStream, instance_of
from sensorium.timebase import SECOND_NS, Clock, Timeline

DECLARE_GRACE_NS = 20 * SECOND_NS
SILENT_NS = 2 * SECOND_NS


class Roster:
    """The driver instances of a session by number, and those that wait for a welcome.

    Attributes:
        problems: What could not be known of instances that died without a last word.
    """

    def __init__(
        self,
        devices: Iterable[str],
        run_dir: Path,
        receiver: BusReceiver,
        clock: Clock,
        secret: str = "",
    ) -> None:
        """``secret``: of which the tokens of declarations are made; "" = none is asked for."""
        self.instances: dict[int, Instance] = {}
        self.problems: list[str] = []
        self.has_started = False
        self._devices = tuple(devices)
        self._run_dir = run_dir
        self._receiver = receiver
        self._clock = clock
        self._begun_ns = clock.now_ns()
        self._waiting: dict[int, bytes] = {}
        self._personal = PersonalStreams(run_dir)
        self._secret = secret

    def __iter__(self) -> Iterator[Instance]:
        return iter(self.instances.values())

    def streams(self) -> Iterator[tuple[Instance, LiveStream]]:
        """Yield every stream with its instance."""
        for instance in self.instances.values():
            for stream in instance.streams.values():
                yield instance, stream

    @property
    def timeline(self) -> Timeline | None:
        """The timeline of the streams: the source's for a replay, this machine's otherwise."""
        for instance in self.instances.values():
            return instance.declare.timeline
        return None

    @property
    def refusals(self) -> list[str]:
        """What the system refused the processes of connected drivers, in words."""
        found = [instance.declare.refused_priority for instance in self if not instance.has_ended]
        return list(dict.fromkeys(filter(None, found)))

    @property
    def is_drained(self) -> bool:
        """Whether every driver has said its last word."""
        return all(instance.has_ended for instance in self.instances.values())

    def in_rig_order(self) -> list[Instance]:
        """Return the instances that have not ended, in the order of the rig file."""
        known = {device: place for place, device in enumerate(self._devices)}
        alive = [instance for instance in self if not instance.has_ended]
        return sorted(alive, key=lambda instance: known.get(instance.declare.device, len(known)))

    def declare(self, identity: bytes, declare: Declare) -> Instance | None:
        """Take a declaration; return the instance if it is new, None if it is known or refused."""
        problem = self._conflict(declare)
        if problem:
            self._receiver.reject(problem)
            return None
        for known in self.instances.values():
            is_same_device = known.declare.device == declare.device
            if is_same_device and known.number != declare.instance and not known.has_ended:
                self.settle(known)
                self._receiver.forget(known.number)
                self._note_path(known.number).unlink(missing_ok=True)
        self._waiting[declare.instance] = identity
        if declare.instance in self.instances:
            return None
        instance = instance_of(declare, identity, self._clock.now_ns())
        self.instances[declare.instance] = instance
        self._personal.add(declare.streams)
        self._save_note(declare)
        return instance

    def _conflict(self, declare: Declare) -> str:
        if self._secret and not compare_digest(declare.token, device_token(self._secret, declare.device)):
            return "declaration of a process that no supervisor of this session started"
        timeline = self.timeline
        if timeline is not None and timeline.is_virtual != declare.timeline.is_virtual:
            return f"device {declare.device}: a replay and live devices cannot share a session"
        try:
            for info in declare.streams:
                storable(info)
        except ConfigError as err:
            return f"device {declare.device}: {err}"
        for known in self.instances.values():
            if known.declare.device != declare.device:
                for info in declare.streams:
                    if info.name in known.streams:
                        owner = known.declare.device
                        return f"device {declare.device}: stream {info.name} belongs to {owner}"
        problem = self._personal.objection(declare.streams)
        return f"device {declare.device}: {problem}" if problem else ""

    def is_complete(self) -> bool:
        """Return whether recording may begin: all devices are there, or the others have waited long enough."""
        declared = {instance.declare.device for instance in self}
        is_late = self._clock.now_ns() - self._begun_ns > DECLARE_GRACE_NS
        return self.has_started or declared.issuperset(self._devices) or (is_late and bool(declared))

    def welcome(self) -> None:
        """Let the drivers that wait begin together, so that their first accounts begin at zero."""
        for number, identity in self._waiting.items():
            self._receiver.welcome(identity, self.instances[number].declare)
        self._waiting.clear()

    def exclude(self, device: str) -> None:
        """Do not wait for a device that failed to open."""
        self._devices = tuple(name for name in self._devices if name != device)

    def end(self, instance: Instance, error: str) -> None:
        """Take note of an instance's last word."""
        instance.has_ended = True
        instance.error = error
        self._receiver.forget(instance.number)
        self._note_path(instance.number).unlink(missing_ok=True)

    def settle(self, instance: Instance, read: Callable[[Path], Counts] = read_counters) -> bool:
        """Close the accounts of an instance that died without a last word; False where they are unknown."""
        problem = instance.settle(read)
        if problem:
            self.problems.append(problem)
        return not problem

    def settle_silent(self) -> None:
        """Bring the accounts of instances that have said nothing for long up to their counter files."""
        for instance in self:
            if not instance.has_ended and self._clock.now_ns() - instance.heard_ns > SILENT_NS:
                self.settle(instance)
                instance.has_ended = False  # it may only have been suspended

    def adopt(self, declares: Iterable[Declare], read: Callable[[Path], Counts]) -> list[Instance]:
        """Know the drivers that a recorder before this one knew, at the boundary that it left.

        Accounts go on where those of the torn episode end: at what ``read`` says of the counter files, which
        must be what its recovery is told.
        """
        adopted = []
        for declare in declares:
            identity = b"\1" + declare.instance.to_bytes(8, "little")
            instance = instance_of(declare, identity, self._clock.now_ns())
            is_known = not instance.settle(read)
            instance.has_ended = False
            if is_known:
                self.instances[declare.instance] = instance
                self._waiting[declare.instance] = identity
                adopted.append(instance)
        return adopted

    def _save_note(self, declare: Declare) -> None:
        path = self._note_path(declare.instance)
        make_private(path.parent)
        path.write_text(declare.model_dump_json(exclude={"token"}))

    def _note_path(self, instance: int) -> Path:
        """Return where a connected driver is noted for a recorder that comes after this one."""
        return self._run_dir / "declares" / f"{instance:08x}.json"


def known_drivers(run_dir: Path) -> list[Declare]:
    """Return what a recorder before this one in the same session knew."""
    notes = sorted((run_dir / "declares").glob("*.json"))
    return [Declare.model_validate_json(path.read_text()) for path in notes]
