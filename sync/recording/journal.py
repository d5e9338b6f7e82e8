"""The notes beside an open episode that let its balance be settled after a crash."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from sensorium.drivers.bus.counters import Counts, read_counters
from sensorium.errors import EpisodeError
from sensorium.sync.episode.facts import UNBOUNDED, LossBounds, SessionFacts
from sensorium.sync.episode.files import JOURNAL_FILE, PREPARED_FILE
from sensorium.sync.episode.mcap_records import WriteError
from sensorium.sync.episode.spool import Spool, sync_folder, write_durably
from sensorium.sync.recording.accounting import Account, settle_torn
from sensorium.sync.recording.closing import unpack_reasons
from sensorium.sync.recording.memory_notes import NOTE_OF_JOURNAL, notes_of, write_note


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

    facts: SessionFacts
    reference: str
    tolerance_ns: int
    consent: str
    instances: dict[str, JournalInstance]
    bounds: LossBounds = UNBOUNDED

    def note(self, run_dir: Path, episode_id: str) -> None:
        """Write it where no disk is waited for; before it is written beside the files.

        Raises:
            WriteError: If there is no room.
        """
        write_note(run_dir, episode_id, NOTE_OF_JOURNAL, _JOURNAL.dump_json(self))

    def save(self, folder: Path) -> None:
        """Write it beside the episode, so that it survives the machine.

        Raises:
            WriteError: If the disk does not take it.
        """
        try:
            write_durably(folder / JOURNAL_FILE, _JOURNAL.dump_json(self))
            (folder / PREPARED_FILE).unlink(missing_ok=True)
            sync_folder(folder)
        except (OSError, EpisodeError) as err:
            raise WriteError(f"{folder / JOURNAL_FILE} could not be written: {err}") from err

    @classmethod
    def load(cls, folder: Path) -> "Journal":
        """Return the journal of an open episode, as it was noted last.

        Raises:
            EpisodeError: If it is missing or unreadable.
        """
        path = next(notes_of(folder, NOTE_OF_JOURNAL), folder / JOURNAL_FILE)
        try:
            return _JOURNAL.validate_python(json.loads(path.read_bytes()))
        except (OSError, ValueError) as err:
            raise EpisodeError(f"{folder}: no usable journal ({err}); its losses cannot be settled") from err


def remove_unbegun(spool: Path) -> None:
    """Remove the folders of episodes whose files were prepared and that never began; nobody may record there."""
    for folder in Spool(spool).open_folders():
        # After a power cut the notes in memory are gone, and of two names in a folder one may have come back.
        has_begun = (folder / JOURNAL_FILE).exists() or any(notes_of(folder))
        is_prepared = (folder / PREPARED_FILE).exists() and not has_begun
        if is_prepared or not any(folder.iterdir()):
            shutil.rmtree(folder)


_JOURNAL: TypeAdapter[Journal] = TypeAdapter(Journal)


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
                account = settle_torn(begin.start_seq, unpack_reasons(begin.reported), held, known)
            settled.append(SettledStream(name, int(number), account, known is not None))
    return tuple(settled)
