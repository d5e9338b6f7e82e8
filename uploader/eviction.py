"""Makes room: removes the local copy of what the store was just seen to hold, oldest first, and never anything else.

The folder moves to ``gone/`` in one step before the first file goes, so that a crash in between leaves an episode
that is named as evicted and whose rest goes the next time. Manifest, revisions and receipt stay: the chain is whole,
and a later withdrawal still finds what to erase in the store.
"""

import shutil
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from sensorium.errors import BusyError, EpisodeError, StoreError
from sensorium.sync.episode.files import (
    CONSENT_STATE_FILE,
    MANIFEST_FILE,
    RECEIPT_FILE,
    UPLOAD_NOTE_FILE,
    is_litter,
)
from sensorium.sync.episode.manifest import read_manifest, revision_file
from sensorium.sync.episode.revisions import is_revision
from sensorium.sync.episode.spool import Spool, sync_folder
from sensorium.sync.erasure import bury, owned
from sensorium.uploader.proof import findings, look_again
from sensorium.uploader.stores.store import Store

_KEPT = frozenset({MANIFEST_FILE, RECEIPT_FILE, UPLOAD_NOTE_FILE, CONSENT_STATE_FILE})


@dataclass(frozen=True, slots=True)
class Eviction:
    """What became of an episode; ``reasons`` say why it stays."""

    episode_id: str
    freed_bytes: int = 0
    reasons: tuple[str, ...] = ()


def order(spool: Spool) -> list[Path]:
    """Return the sealed episodes in the order in which they may go: the one that was begun first goes first."""
    return sorted(spool.sealed_folders(), key=lambda folder: folder.name)


def evict(
    spool: Spool, folder: Path, store: Store, trusted: Collection[bytes], is_dry_run: bool = False
) -> Eviction:
    """Remove the local copy of one episode, if every byte of it is read back from the store first.

    Raises:
        BusyError: If another process is sending or erasing it.
        EpisodeError: If the disk does not let go of it.
        StoreError: If the store cannot be asked; nothing was removed.
    """
    with owned(folder):
        judge = findings if is_dry_run else look_again
        reasons = judge(folder, store, trusted)
        if reasons:
            return Eviction(folder.name, 0, tuple(reasons))
        freed_bytes = sum(file.bytes for file in read_manifest(folder, trusted).files)
        if not is_dry_run:
            _remove(_moved(spool, folder))
    return Eviction(folder.name, freed_bytes)


def delete(spool: Spool, folder: Path, reason: str, now_utc_ns: int, is_dry_run: bool = False) -> Eviction:
    """Remove an episode though no store may hold it; a signed revision of its manifest says why, and stays.

    What a store has of it goes as soon as the uploader comes to it.

    Raises:
        BusyError: If another process is sending or erasing it.
        EpisodeError: If it is no episode, or the disk does not let go of it.
    """
    with owned(folder):
        freed_bytes = sum(file.bytes for file in read_manifest(folder).files if (folder / file.name).exists())
        _refuse_two(spool, folder)
        if not is_dry_run:
            bury(folder, reason, now_utc_ns)
            _remove(folder if folder.parent == spool.gone_dir else _moved(spool, folder))
    return Eviction(folder.name, freed_bytes)


def evict_oldest(
    spool: Spool,
    store: Store,
    trusted: Collection[bytes],
    wanted_bytes: int | None = None,
    is_dry_run: bool = False,
) -> list[Eviction]:
    """Evict from the oldest on until so many bytes are free, or with None all that may go; return each one's fate."""
    done: list[Eviction] = []
    freed_bytes = 0
    if not is_dry_run:
        done += [Eviction(name, 0, (why,)) for name, why in finish(spool).items()]
    known = {fate.episode_id for fate in done}
    for folder in order(spool):
        if wanted_bytes is not None and freed_bytes >= wanted_bytes:
            break
        if folder.name in known:
            continue
        try:
            found = evict(spool, folder, store, trusted, is_dry_run)
        except StoreError as err:  # the others would learn no more, and each wait for its retries
            done.append(Eviction(folder.name, 0, (str(err),)))
            break
        except (BusyError, EpisodeError) as err:
            found = Eviction(folder.name, 0, (str(err),))
        freed_bytes += found.freed_bytes
        done.append(found)
    return done


def finish(spool: Spool, is_asked: Callable[[Path], bool] = lambda _: True) -> dict[str, str]:
    """Remove what an eviction or a deletion left that was cut off; return per episode why it could not be.

    Args:
        is_asked: Whether a folder is looked at.
    """
    failed: dict[str, str] = {}
    for folder in filter(is_asked, (*spool.sealed_folders(), *spool.gone_folders())):
        try:
            _finish(spool, folder)
        except (BusyError, EpisodeError) as err:  # what is wrong with one keeps nothing of the others
            failed[folder.name] = str(err)
    return failed


def _finish(spool: Spool, folder: Path) -> None:
    if folder.parent == spool.gone_dir:
        if any(_rest(folder)):
            with owned(folder):
                _remove(folder)
    elif (folder / revision_file(2)).exists() and not read_manifest(folder).files:
        with owned(folder):
            _remove(_moved(spool, folder))


def _moved(spool: Spool, folder: Path) -> Path:
    goal = spool.gone_dir / folder.name
    _refuse_two(spool, folder)
    try:
        spool.gone_dir.mkdir(mode=0o700, exist_ok=True)
        folder.rename(goal)
        sync_folder(spool.gone_dir)
        sync_folder(spool.sealed_dir)
    except OSError as err:
        raise EpisodeError(f"{folder} cannot be moved to {goal}: {err.strerror}") from err
    return goal


def _refuse_two(spool: Spool, folder: Path) -> None:
    """Refuse what would have two episodes of one name in ``gone/``; before anything is signed or moved."""
    goal = spool.gone_dir / folder.name
    if folder.parent != spool.gone_dir and goal.exists():
        raise EpisodeError(
            f"{goal} exists: this episode was evicted before, and put back; remove one of the two"
        )


def _rest(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name not in _KEPT and not is_revision(path.name):
            yield path


def _remove(folder: Path) -> None:
    try:
        for path in _rest(folder):
            if not path.is_dir() or path.is_symlink():
                path.unlink()
            elif is_litter(path.name):
                shutil.rmtree(path)
            else:
                raise EpisodeError(f"{path} is a folder that no episode has; remove it by hand")
        sync_folder(folder)
    except OSError as err:
        raise EpisodeError(f"{folder}: {err.filename} cannot be removed: {err.strerror}") from err
