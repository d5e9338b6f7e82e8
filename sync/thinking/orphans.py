"""Episodes that nobody is writing any more: closed ones are sealed, torn ones recovered, settled and sealed."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from sensorium.calibration.rig_document import RigCalibration
from sensorium.drivers.bus.counters import Counts, read_counters
from sensorium.errors import CalibrationError, EpisodeError
from sensorium.sync.episode.chain import finish_seal
from sensorium.sync.episode.chunk_accounts import Written
from sensorium.sync.episode.facts import UNBOUNDED, SessionFacts
from sensorium.sync.episode.files import CALIBRATION_FILE, MANIFEST_FILE
from sensorium.sync.episode.reader import Episode
from sensorium.sync.episode.recovery import RecoveryResult, recover
from sensorium.sync.episode.spool import Spool
from sensorium.sync.episode.ulid import utc_ns_of
from sensorium.sync.recording.accounting import NOT_ON_DISK, Account
from sensorium.sync.recording.boundary import boundary_reader
from sensorium.sync.recording.closing import (
    ClosedAccount,
    ClosedStream,
    Closing,
    pack_reasons,
    unpack_reasons,
)
from sensorium.sync.recording.journal import Journal, remove_unbegun, settle_journal
from sensorium.sync.thinking.catch_up import catch_up, started_and_ended_ns
from sensorium.sync.thinking.sealed import Sealed
from sensorium.sync.thinking.sealing import Thoughts, seal_closing

DEFAULT_TOLERANCE_NS = 10_000_000
NOTHING_THERE = "it had only begun, and none of its samples had reached the disk: its files were removed"


def recover_orphans(spool: Path, consent: Path) -> list[Sealed]:
    """Recover and seal every open episode of the spool; the caller owns the spool.

    An episode that cannot be recovered stays where it is and is reported; nothing is deleted.

    Args:
        consent: The consent log, for episodes that do not say which they were recorded under.
    """
    remove_unbegun(spool)
    return [seal_orphan(folder, consent) for folder in Spool(spool).open_folders()]


def seal_orphan(folder: Path, consent: Path) -> Sealed:
    """Seal one open episode that nobody writes to; says why where it cannot be."""
    try:
        path = recover_orphan(folder, consent)
        return Sealed(folder.name, path, remark="" if path else NOTHING_THERE)
    except (EpisodeError, OSError) as err:
        return Sealed(folder.name, None, f"cannot be recovered: {err}")


def recover_orphan(folder: Path, consent: Path) -> Path | None:
    """Bring one open episode to its seal; return its folder in ``sealed/``.

    One that had only begun, of which the disk holds no sample, is removed: None.

    Raises:
        EpisodeError: If it holds nothing that can be saved.
    """
    if (folder / MANIFEST_FILE).exists():
        return finish_seal(folder)  # the crash came between signing and renaming
    closing = Closing.load(folder)
    result = recover(folder)
    if not result.episode_id and not any(file.chunks for file in result.files):
        shutil.rmtree(folder)
        return None
    if not result.episode_id:
        raise EpisodeError(f"{folder} holds no readable record; look at it and remove it by hand")
    noted = Closing.noted(folder) if closing is None else None
    if noted is not None:
        closing = _settled(noted, result)
    if closing is not None:
        thoughts = catch_up(folder, closing.reference, closing.tolerance_ns)
        return seal_closing(folder, closing, thoughts)
    journal, problem = _journal(folder)
    tolerance_ns = journal.tolerance_ns if journal else DEFAULT_TOLERANCE_NS
    thoughts = catch_up(folder, journal.reference if journal else "", tolerance_ns)
    closing = _closing_of_torn(folder, result.written, journal, consent, thoughts)
    lost = f"recovered after a crash; {result.bytes_lost} bytes of torn records were cut"
    limitations = (lost, *((problem,) if problem else ()), *closing.limitations)
    return seal_closing(folder, replace(closing, limitations=limitations), replace(thoughts, limitations=()))


def _settled(closing: Closing, result: RecoveryResult) -> Closing:
    """Return what the recorder knew when it ended an episode, with what the recovered files hold of it."""
    accounts = []
    for account in closing.accounts:
        written = result.written.get((account.stream, account.instance), Written())
        dropped = unpack_reasons(account.dropped)
        lost = account.produced - written.samples - dropped.total()
        if lost > 0:
            dropped[NOT_ON_DISK] += lost
        accounts.append(replace(account, dropped=pack_reasons(dropped), written=written))
    sentence = f"recovered after a crash; {result.bytes_lost} bytes of torn records were cut"
    limitations = (sentence, *closing.limitations)
    return replace(closing, accounts=tuple(accounts), limitations=limitations, is_truncated=True)


def _journal(folder: Path) -> tuple[Journal | None, str]:
    try:
        return Journal.load(folder), ""
    except EpisodeError as err:
        return None, str(err)


def _closing_of_torn(
    folder: Path,
    written: Mapping[tuple[str, int], Written],
    journal: Journal | None,
    consent: Path,
    thoughts: Thoughts,
) -> Closing:
    accounts, limitations = _accounts(folder, written, journal)
    started_ns, ended_ns = started_and_ended_ns(thoughts)
    with Episode(folder) as episode:
        if not ended_ns:  # nothing was recorded: it is judged as of when it was begun, not from the boot on
            begun_ns = utc_ns_of(episode.episode_id) - episode.timeline.utc_minus_host_ns
            started_ns = ended_ns = begun_ns
        marks = tuple((event.host_ns, event.detail) for event in episode.events() if event.kind == "mark")
        return Closing(
            facts=journal.facts if journal else SessionFacts(),
            episode_id=episode.episode_id,
            timeline=episode.timeline,
            reference=journal.reference if journal else "",
            tolerance_ns=journal.tolerance_ns if journal else DEFAULT_TOLERANCE_NS,
            started_ns=started_ns,
            ended_ns=ended_ns,
            now_utc_ns=ended_ns + episode.timeline.utc_minus_host_ns,
            consent=journal.consent if journal else str(consent),
            streams=tuple(ClosedStream(info) for info in episode.streams.values()),
            accounts=tuple(accounts),
            marks=marks,
            limitations=tuple(limitations),
            calibration_id=_calibration_id(folder),
            is_truncated=True,
            bounds=journal.bounds if journal else UNBOUNDED,
        )


def _accounts(
    folder: Path, written: Mapping[tuple[str, int], Written], journal: Journal | None
) -> tuple[list[ClosedAccount], list[str]]:
    """Return the balances of a torn episode, and what of them is not known."""
    if journal is None:
        plain = [
            ClosedAccount.of(stream, instance, Account(0, found.samples, found.samples), found)
            for (stream, instance), found in written.items()
        ]
        return plain, []
    accounts, unknown = [], []
    read: Callable[[Path], Counts] = boundary_reader(folder, read_counters)
    recorded = {key: found.samples for key, found in written.items()}
    for settled in settle_journal(journal, recorded, read):
        found = written.get((settled.stream, settled.instance), Written())
        accounts.append(ClosedAccount.of(settled.stream, settled.instance, settled.account, found))
        if not settled.is_end_known:
            unknown.append(f"{settled.stream}: samples after the last recorded one are unknown")
    return accounts, unknown


def _calibration_id(folder: Path) -> str:
    path = folder / CALIBRATION_FILE
    if not path.is_file():
        return ""
    try:
        return RigCalibration.load(path).calibration_id
    except CalibrationError:
        return ""
