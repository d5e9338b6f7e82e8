"""Notes about open episodes in the session's memory folder: no disk is waited for, and they outlive every process."""

from collections.abc import Iterator
from pathlib import Path

from sensorium.drivers.bus.counters import make_private
from sensorium.sync.episode.mcap_records import WriteError
from sensorium.sync.episode.spool import Spool

NOTES_FOLDER = "journals"
NOTE_OF_JOURNAL, NOTE_OF_CLOSING = "journal", "closing"


def write_note(run_dir: Path, episode_id: str, kind: str, data: bytes) -> None:
    """Write a note, or replace it; it counts until :func:`forget`.

    Raises:
        WriteError: If there is no room.
    """
    target = run_dir / NOTES_FOLDER / f"{episode_id}.{kind}.json"
    try:
        make_private(target.parent)
        replace_file(target, data)
    except OSError as err:
        raise WriteError(f"{target} could not be written: {err.strerror}; free space there") from err


def replace_file(target: Path, data: bytes) -> None:
    """Write a file so that a reader finds the old bytes or the new ones, whoever is killed."""
    partial = target.with_suffix(".new")
    partial.write_bytes(data)
    partial.replace(target)


def notes_of(folder: Path, kind: str = "*") -> Iterator[Path]:
    """Yield the notes about the episode in an open folder, whichever session made them."""
    return Spool.of(folder).root.glob(f"run/*/{NOTES_FOLDER}/{folder.name}.{kind}.json")


def forget(run_dir: Path, episode_id: str) -> None:
    """Remove the notes about an episode that is closed or gone."""
    for path in (run_dir / NOTES_FOLDER).glob(f"{episode_id}.*"):
        path.unlink(missing_ok=True)
