"""Where a torn episode ends and the next one begins, although the drivers go on counting.

A recorder that replaces a dead one begins its accounts at what the drivers' counter files say at that moment.
The torn episode is settled later, by somebody else, and must end at the same numbers: so they are copied into
its folder first.
"""

import json
from collections.abc import Callable
from pathlib import Path

from sensorium.drivers.bus.counters import Counts, counter_bytes, read_counters
from sensorium.errors import EpisodeError
from sensorium.sync.episode.spool import Spool
from sensorium.sync.recording.journal import Journal, remove_unbegun

ORPHANS_FILE = "orphans.json"


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
    return lambda path: read_counters(frozen.get(path, path))


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
