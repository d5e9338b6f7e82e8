"""Erases what consent no longer lets anybody keep: files, pictures, whatever was made of them; and says so, signed.

A tombstone (a revision of the manifest) is on disk before the first file goes, so that a crash in between leaves an
episode that is still to be erased, and says which files; to do it again is harmless.
"""

import fcntl
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from sensorium.errors import BusyError, EpisodeError
from sensorium.sync.consent.decisions import timeline
from sensorium.sync.consent.gate import span_utc_ns
from sensorium.sync.consent.grants import ConsentLedger, Purpose
from sensorium.sync.episode.files import REMAP_FILE, REPORT_FILE, SYNC_REPORT_FILE, stream_file
from sensorium.sync.episode.manifest import Manifest, StreamRecord, Tombstone, read_manifest, stored_name
from sensorium.sync.episode.revisions import revise
from sensorium.sync.episode.spool import Spool, sync_folder
from sensorium.timebase import SECOND_NS

VIEWS = (REPORT_FILE, SYNC_REPORT_FILE, REMAP_FILE)
"""Made from an episode's files: pictures, curves, stamps. They go with the stream, and can be made anew without it."""

_FORGETTING = frozenset({"withdrawn", "revoked", "refused"})
"""Rules of a denial after which nothing may be kept. Others (paused, not granted) say that nothing may be used."""

_BY_TIME = "retention"
"""The rule that only the clock decides: what it forbids is used by nobody, and goes when the clock can be believed.
One that was set years ahead by mistake must not erase what nothing brings back."""

_AHEAD_NS = 24 * 3600 * SECOND_NS
"""By so much the consent log may have seen a later time than it is now."""

Hook = Callable[[Path, frozenset[str]], None]
_HOOKS: list[Hook] = []


@dataclass(frozen=True, slots=True)
class Erasure:
    """What was erased of an episode: reasons by stream."""

    episode_id: str
    streams: Mapping[str, str]


def register(hook: Hook) -> None:
    """Have ``hook(folder, streams)`` called before files go: it erases what was made of them elsewhere here."""
    _HOOKS.append(hook)


def to_erase(
    manifest: Manifest, ledger: ConsentLedger, now_utc_ns: int, *, is_time_kept: bool = True
) -> dict[str, str]:
    """Return the streams of an episode that may not be kept, with the reason; none while the ledger has a fault.

    Args:
        is_time_kept: Somebody keeps the wall clock right; else no ``retain_days`` is over.
    """
    if ledger.fault:
        return {}
    found = {}
    is_believed = is_time_kept and ledger.seen_ns <= now_utc_ns + _AHEAD_NS
    rules = _FORGETTING | {_BY_TIME} if is_believed else _FORGETTING
    for record in manifest.streams:
        if record.info.is_personal and record.total.recorded and _lies_in(manifest, record):
            reason = _why_forgotten(manifest, record, ledger, now_utc_ns, rules)
            if reason:
                found[record.info.name] = reason
    return found


def erase_forgotten(
    folder: Path, ledger: ConsentLedger, now_utc_ns: int, *, is_time_kept: bool = True
) -> Erasure | None:
    """Erase what of a sealed episode may not be kept, and end what a crash cut off; None if there is nothing.

    Raises:
        EpisodeError: If it is no episode, or the disk does not let go of it.
        BusyError: If another process is sending it.
    """
    manifest = read_manifest(folder)
    streams = to_erase(manifest, ledger, now_utc_ns, is_time_kept=is_time_kept)
    left_over = [name for name in _names(manifest) if os.path.lexists(folder / name)]
    if not streams and not left_over:
        return None
    with owned(folder):
        if streams:
            manifest = revise(folder, lambda found: _with_tombstones(found, streams, now_utc_ns))
        _remove(folder, manifest)
    return Erasure(manifest.episode_id, streams)


def bury(folder: Path, reason: str, now_utc_ns: int) -> Manifest:
    """Say, signed, that every file of an episode is to go, here and in its store; whoever calls owns the folder.

    Raises:
        EpisodeError: If it is no episode, or the disk does not take it.
    """

    def with_all(manifest: Manifest) -> Manifest:
        personal = {stream_file(each.info.name): each.info.name for each in manifest.streams}
        graves = tuple(
            Tombstone(
                file.name,
                personal.get(file.name, ""),
                stored_name(file),
                file.bytes,
                file.sha256,
                now_utc_ns,
                reason,
            )
            for file in manifest.files
        )
        return replace(manifest, files=(), tombstones=(*manifest.tombstones, *graves))

    return revise(folder, with_all)


def erase_all_forgotten(
    spool: Spool,
    ledger: ConsentLedger,
    now_utc_ns: int,
    *,
    is_time_kept: bool = True,
    is_asked: Callable[[Path], bool] = lambda _: True,
) -> tuple[list[Erasure], dict[str, str]]:
    """Erase in every sealed episode of a spool; return what was, and per episode why it could not be.

    Args:
        is_asked: Whether a folder is looked at, asked right before it is.
    """
    done: list[Erasure] = []
    failed: dict[str, str] = {}
    for folder in (*spool.sealed_folders(), *spool.gone_folders()):
        if not is_asked(folder):
            continue
        try:
            found = erase_forgotten(folder, ledger, now_utc_ns, is_time_kept=is_time_kept)
        except (EpisodeError, BusyError) as err:
            failed[folder.name] = str(err)
        else:
            done += [found] if found else []
    return done, failed


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Own an episode folder; the kernel lets go when this process dies.

    Raises:
        BusyError: If another process is sending or changing it.
        EpisodeError: If it cannot be opened.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as err:
        raise EpisodeError(f"episode {folder} cannot be opened: {err.strerror}") from err
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            raise BusyError(f"episode {folder} is being sent or changed by another process") from err
        yield
    finally:
        os.close(descriptor)


def _why_forgotten(
    manifest: Manifest, record: StreamRecord, ledger: ConsentLedger, now_utc_ns: int, rules: Collection[str]
) -> str:
    """Return why one of the subjects in a stream's span lets nobody keep it; each is asked for himself."""
    first_ns, last_ns = span_utc_ns(manifest, record)
    for subject in sorted({grant.subject for grant in ledger.grants}):
        own = tuple(grant for grant in ledger.grants if grant.subject == subject)
        alone = replace(ledger, grants=own, pauses=())
        for part in timeline(record.info, Purpose.RECORD, now_utc_ns, alone):
            is_touched = part.from_ns <= last_ns and part.until_ns > first_ns
            if is_touched and part.decision.rule in rules:
                return part.decision.reason
    return ""


def _lies_in(manifest: Manifest, record: StreamRecord) -> bool:
    name = stream_file(record.info.name)
    return any(file.name == name for file in manifest.files)


def _with_tombstones(manifest: Manifest, streams: Mapping[str, str], now_utc_ns: int) -> Manifest:
    names = {stream_file(stream): stream for stream in streams}
    grants = {record.info.name: record.consent.grants for record in manifest.streams}
    graves = tuple(
        Tombstone(
            file.name,
            names[file.name],
            stored_name(file),
            file.bytes,
            file.sha256,
            now_utc_ns,
            streams[names[file.name]],
            grants[names[file.name]],
        )
        for file in manifest.files
        if file.name in names
    )
    kept = tuple(file for file in manifest.files if file.name not in names)
    return replace(manifest, files=kept, tombstones=(*manifest.tombstones, *graves))


def _names(manifest: Manifest) -> Iterator[str]:
    for grave in manifest.tombstones:
        yield from (grave.file, grave.stored)


def _remove(folder: Path, manifest: Manifest) -> None:
    for hook in _HOOKS:
        hook(folder, manifest.erased)
    try:
        for name in (*VIEWS, *_names(manifest)):
            (folder / name).unlink(missing_ok=True)
        sync_folder(folder)
    except OSError as err:
        raise EpisodeError(f"{folder}: {err.filename} cannot be erased: {err.strerror}") from err
