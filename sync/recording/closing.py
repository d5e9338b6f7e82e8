"""What the recorder knows about an episode when it closes its files, written beside them for whoever seals."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from sensorium.drivers.frame import Place, StreamInfo
from sensorium.errors import ConfigError, EpisodeError
from sensorium.sync.episode.chunk_accounts import Written
from sensorium.sync.episode.facts import UNBOUNDED, LossBounds, SessionFacts
from sensorium.sync.episode.files import CLOSING_FILE
from sensorium.sync.episode.manifest import CheckRecord
from sensorium.sync.episode.spool import write_durably
from sensorium.sync.recording.accounting import Account, Reason
from sensorium.sync.recording.memory_notes import NOTE_OF_CLOSING, notes_of, write_note
from sensorium.timebase import Timeline
from sensorium.verdict import Verdict
from sensorium.wording import said

_SEPARATOR = "\t"


def pack_reasons(counts: Mapping[Reason, int]) -> dict[str, int]:
    """Return losses by place and reason in the form of JSON."""
    return {f"{place.value}{_SEPARATOR}{reason}": count for (place, reason), count in counts.items()}


def unpack_reasons(packed: Mapping[str, int]) -> Counter[Reason]:
    """Return what :func:`pack_reasons` was given."""
    found: Counter[Reason] = Counter()
    for key, count in packed.items():
        place, _, reason = key.partition(_SEPARATOR)
        found[Place(place), reason] = count
    return found


@dataclass(frozen=True, slots=True)
class ClosedStream:
    """One stream of a closed episode.

    Attributes:
        denials: Samples that consent withheld, by the reason in words.
        clock_method: Set where it is not the published map's (stamped by pulses).
        clock_events: What the recorder itself saw of its clock (triggers), by kind.
    """

    info: StreamInfo
    denials: dict[str, int] = field(default_factory=dict)
    clock_method: str = ""
    clock_events: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ClosedAccount:
    """The balance of one stream of one driver instance, and what the files hold of it."""

    stream: str
    instance: int
    start_seq: int
    next_seq: int
    dropped: dict[str, int]
    written: Written = field(default_factory=Written)

    @classmethod
    def of(cls, stream: str, instance: int, account: Account, written: Written) -> "ClosedAccount":
        return cls(
            stream, instance, account.start_seq, account.next_seq, pack_reasons(account.dropped), written
        )

    @property
    def produced(self) -> int:
        return self.next_seq - self.start_seq


@dataclass(frozen=True, slots=True)
class Closing:
    """All that the recorder knows about an episode when its files are closed.

    Attributes:
        consent: Folder of the consent log that it was recorded under.
        now_utc_ns: When it was closed; decides which grants count as live.
    """

    facts: SessionFacts
    episode_id: str
    timeline: Timeline
    reference: str
    tolerance_ns: int
    started_ns: int
    ended_ns: int
    now_utc_ns: int
    consent: str
    streams: tuple[ClosedStream, ...] = ()
    accounts: tuple[ClosedAccount, ...] = ()
    marks: tuple[tuple[int, str], ...] = ()
    limitations: tuple[str, ...] = ()
    rejected: dict[str, int] = field(default_factory=dict)
    verdicts: tuple[Verdict, ...] = ()
    checks: tuple[CheckRecord, ...] = ()
    clocks: tuple[Verdict, ...] = ()
    calibration_id: str = ""
    is_truncated: bool = False
    bounds: LossBounds = UNBOUNDED

    def save(self, folder: Path) -> None:
        """Write it beside the files.

        Raises:
            EpisodeError: If the disk does not take it.
        """
        write_durably(folder / CLOSING_FILE, _CLOSING.dump_json(self))

    def note(self, run_dir: Path) -> None:
        """Write it where no disk is waited for, before the files are finished.

        Raises:
            WriteError: If there is no room.
        """
        write_note(run_dir, self.episode_id, NOTE_OF_CLOSING, _CLOSING.dump_json(self))

    @classmethod
    def noted(cls, folder: Path) -> "Closing | None":
        """Return what :meth:`note` wrote of the episode in ``folder``, if its files were not finished since.

        What it says of the files is from before they were.

        Raises:
            EpisodeError: If it cannot be read.
        """
        path = next(notes_of(folder, NOTE_OF_CLOSING), None)
        return None if path is None else cls._read(path)

    @classmethod
    def load(cls, folder: Path) -> "Closing | None":
        """Return what the recorder left in ``folder``; None if it never closed the episode.

        Raises:
            EpisodeError: If it cannot be read.
        """
        return cls._read(folder / CLOSING_FILE)

    @classmethod
    def _read(cls, path: Path) -> "Closing | None":
        try:
            return _CLOSING.validate_python(json.loads(path.read_bytes()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, ValidationError, ConfigError) as err:
            raise EpisodeError(f"{path} cannot be read: {said(err)}") from err


_CLOSING: TypeAdapter[Closing] = TypeAdapter(Closing)
