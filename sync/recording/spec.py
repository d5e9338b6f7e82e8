"""What the supervisor tells the synchronizer, and the notes that let a torn episode be settled."""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from sensorium.drivers.bus.counters import Counts, read_counters
from sensorium.drivers.frame import Place
from sensorium.errors import EpisodeError
from sensorium.sync.clocks.triggered import TriggerSettings
from sensorium.sync.clocks.watch import WatchSettings
from sensorium.sync.episode.files import JOURNAL_FILE
from sensorium.sync.recording.accounting import Account, settle_torn


class SyncSpec(BaseModel):
    """Everything a recording session needs to know; written by the supervisor as JSON.

    Attributes:
        devices: Names that must declare themselves before anything is recorded (or 20 s pass).
        despite_calibration: Record although a check failed before; failed checks of this session only warn.
        reference: Stream whose frames are the ticks of alignment; None = chosen from what is there.
        memory_bytes: What may be under way between the drivers and the disk; None = as much as the bus's default.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    spool: Path
    run_dir: Path
    bus_endpoint: str
    control_endpoint: str
    sets_endpoint: str
    live_endpoint: str
    host_id: str
    devices: tuple[str, ...]
    rig: str = ""
    operator: str = ""
    task: str = ""
    instruction: str = ""
    max_s: float | None = None
    max_bytes: int | None = None
    reference: str | None = None
    tolerance_ns: int = Field(default=10_000_000, gt=0)
    start: Literal["immediately", "manual"] = "immediately"
    calibration: Path | None = None
    consent: Path
    on_failed_check: Literal["warn", "split", "stop"] = "warn"
    despite_calibration: bool = False
    flush_s: float = 1.0
    memory_bytes: int | None = Field(default=None, gt=0)
    limitations: tuple[str, ...] = ()
    clocks: WatchSettings = WatchSettings()
    triggers: tuple[TriggerSettings, ...] = ()


@dataclass(frozen=True, slots=True)
class JournalStream:
    """Where an episode's account of one stream began, and what had been reported lost before."""

    start_seq: int
    reported: dict[str, int]


@dataclass(frozen=True, slots=True)
class JournalInstance:
    """A driver instance that takes part in an open episode; ``counters`` is its counter file."""

    device: str
    counters: str
    streams: dict[str, JournalStream]


@dataclass(frozen=True, slots=True)
class Journal:
    """Lies beside an open episode so that its balance can be settled after a crash."""

    rig: str
    operator: str
    task: str
    instruction: str
    reference: str
    consent: str
    instances: dict[str, JournalInstance]

    def save(self, folder: Path) -> None:
        target = folder / JOURNAL_FILE
        partial = target.with_suffix(".new")
        partial.write_bytes(_JOURNAL.dump_json(self))
        partial.replace(target)

    @classmethod
    def load(cls, folder: Path) -> "Journal":
        """Return the journal of an open episode.

        Raises:
            EpisodeError: If it is missing or unreadable.
        """
        try:
            return _JOURNAL.validate_python(json.loads((folder / JOURNAL_FILE).read_bytes()))
        except (OSError, ValueError) as err:
            raise EpisodeError(f"{folder}: no usable journal ({err}); its losses cannot be settled") from err


_JOURNAL: TypeAdapter[Journal] = TypeAdapter(Journal)
_SEPARATOR = "\t"


def pack_reported(reported: Mapping[tuple[Place, str], int]) -> dict[str, int]:
    return {f"{place.value}{_SEPARATOR}{reason}": count for (place, reason), count in reported.items()}


def unpack_reported(packed: Mapping[str, int]) -> Counter[tuple[Place, str]]:
    found: Counter[tuple[Place, str]] = Counter()
    for key, count in packed.items():
        place, _, reason = key.partition(_SEPARATOR)
        found[Place(place), reason] = count
    return found


@dataclass(frozen=True, slots=True)
class SettledStream:
    """The account of a torn episode's stream, and whether its true end is known."""

    stream: str
    instance: int
    account: Account
    is_end_known: bool


def settle_journal(
    journal: Journal,
    recorded: Mapping[tuple[str, int], int],
    read: Callable[[Path], Counts] = read_counters,
) -> tuple[SettledStream, ...]:
    """Return the accounts of a torn episode.

    Args:
        recorded: Samples that the recovered files hold, per (stream, instance).
        read: Reads counter files; of drivers that live, it must say the same to whoever records on.
    """
    settled = []
    for number, instance in journal.instances.items():
        try:
            _, counts = read(Path(instance.counters))
        except EpisodeError:
            counts = {}
        for name, begin in instance.streams.items():
            held = recorded.get((name, int(number)), 0)
            known = counts.get(name)
            if known is None:
                account = Account(begin.start_seq, begin.start_seq + held, held)
            else:
                account = settle_torn(begin.start_seq, unpack_reported(begin.reported), held, known)
            settled.append(SettledStream(name, int(number), account, known is not None))
    return tuple(settled)
