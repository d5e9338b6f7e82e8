"""Where a torn episode ends and the next one begins, although the drivers go on counting.

A recorder that replaces a dead one begins its accounts at what the drivers' counter files say at that moment.
The torn episode is settled later, by somebody else, and must end at the same numbers: so they are copied into
its folder first.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

from sensorium.drivers.bus.counters import Counts, StreamCounts, counter_bytes, read_counters
from sensorium.errors import EpisodeError
from sensorium.sync.episode.files import CLOSING_FILE
from sensorium.sync.episode.spool import Spool
from sensorium.sync.recording.closing import unpack_reasons
from sensorium.sync.recording.journal import Journal, JournalStream, remove_unbegun
from sensorium.sync.recording.memory_notes import NOTE_OF_CLOSING, NOTES_FOLDER, notes_of, replace_file

ORPHANS_FILE = "orphans.json"
SOCKETS_PREFIX = "sensorium-"
_HANDOVER_FILE = "handover.json"


def _copy_of(folder: Path, counters: Path) -> Path:
    return folder / f".{counters.name}"


def draw_boundary(spool: Path, run_dir: Path) -> Callable[[Path], Counts]:
    """Take down where the open episodes of a dead recorder end; return a reader that says the same.

    Names them in ``run_dir`` for whoever recovers them; call before an episode of one's own is opened.
    """
    remove_unbegun(spool)
    frozen = freeze_boundary(spool)
    orphans = Spool(spool).open_folders()
    (run_dir / ORPHANS_FILE).write_text(json.dumps([folder.name for folder in orphans]))
    torn = {path for folder in orphans if not _has_ended(folder) for path in _counters_of(folder)}
    handed_over = _handed_over(run_dir)

    def reading(path: Path) -> Counts:
        instance, counts = read_counters(frozen.get(path, path))
        if path in torn or path not in handed_over:
            return instance, counts
        return instance, {**counts, **handed_over[path]}

    return reading


def note_handover(run_dir: Path, ends: Mapping[str, Mapping[str, JournalStream]]) -> None:
    """Note where the accounts of an episode ended that another one is to follow at once, by counter file and stream.

    Whoever dies between the two leaves what came in between to the next recorder.
    """
    document = {path: {name: asdict(end) for name, end in streams.items()} for path, streams in ends.items()}
    replace_file(run_dir / NOTES_FOLDER / _HANDOVER_FILE, json.dumps(document).encode())


def forget_handover(run_dir: Path) -> None:
    """Let go of the note: the next episode has its own, or none is to come."""
    (run_dir / NOTES_FOLDER / _HANDOVER_FILE).unlink(missing_ok=True)


def _handed_over(run_dir: Path) -> dict[Path, dict[str, StreamCounts]]:
    try:
        document = json.loads((run_dir / NOTES_FOLDER / _HANDOVER_FILE).read_bytes())
    except (OSError, ValueError):
        return {}
    return {
        Path(path): {
            name: StreamCounts(end["start_seq"], dict(unpack_reasons(end["reported"])))
            for name, end in streams.items()
        }
        for path, streams in document.items()
    }


def _has_ended(folder: Path) -> bool:
    """Return whether the recorder had ended an episode, so that its accounts are known."""
    return (folder / CLOSING_FILE).exists() or any(notes_of(folder, NOTE_OF_CLOSING))


def freeze_boundary(spool: Path) -> dict[Path, Path]:
    """Copy the counter files of open episodes that have no copy yet; return the newest copy of each.

    Whoever sees a recorder die does it at once: what drivers send from then on is the next recorder's.
    """
    frozen: dict[Path, Path] = {}
    for folder in Spool(spool).open_folders():
        for counters in _counters_of(folder):
            copy = _copy_of(folder, counters)
            if not copy.exists() and counters.exists():
                copy.write_bytes(counter_bytes(counters))
            if copy.exists():
                frozen[counters] = copy
    return frozen


def remove_sockets(endpoint: str) -> None:
    """Remove the folder in which a session's sockets lie, if it was one of ours; all its processes must have ended."""
    folder = Path(endpoint.removeprefix("ipc://")).parent
    if endpoint.startswith("ipc://") and folder.name.startswith(SOCKETS_PREFIX):
        shutil.rmtree(folder, ignore_errors=True)


def _counters_of(folder: Path) -> list[Path]:
    try:
        return [Path(instance.counters) for instance in Journal.load(folder).instances.values()]
    except EpisodeError:
        return []


def boundary_reader(folder: Path, read: Callable[[Path], Counts]) -> Callable[[Path], Counts]:
    """Return a reader of counter files that takes a torn episode's own copies where there are some."""

    def reading(path: Path) -> Counts:
        copy = _copy_of(folder, path)
        return read(copy if copy.exists() else path)

    return reading


def orphans_of(run_dir: Path) -> list[str]:
    """Return the episodes that were open when the recorder of this run began."""
    try:
        found = json.loads((run_dir / ORPHANS_FILE).read_text())
    except (OSError, ValueError):
        return []
    return [str(name) for name in found]
