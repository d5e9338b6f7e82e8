"""Episodes that a crash left open: recovered to their last whole chunk, settled, marked truncated, sealed."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from sensorium.calibration.rig_document import RigCalibration
from sensorium.drivers.bus.counters import Counts, read_counters
from sensorium.errors import CalibrationError, EpisodeError
from sensorium.sync.align import Match, StreamAlignment
from sensorium.sync.consent.store import ConsentStore
from sensorium.sync.episode.files import MANIFEST_FILE
from sensorium.sync.episode.manifest import finish_seal, seal
from sensorium.sync.episode.reader import Episode
from sensorium.sync.episode.recovery import recover
from sensorium.sync.episode.spool import Spool
from sensorium.sync.episode.writer import Written
from sensorium.sync.recording.accounting import Account
from sensorium.sync.recording.sealing import Closing, manifest_of
from sensorium.sync.recording.spec import Journal, SyncSpec, settle_journal
from sensorium.sync.recording.streams import StreamTally
from sensorium.sync.recording.synchronizer import Sealed


def recover_orphans(spec: SyncSpec, read: Callable[[Path], Counts] = read_counters) -> list[Sealed]:
    """Recover and seal every open episode of the spool; the caller owns the spool.

    An episode that cannot be recovered stays where it is and is reported; nothing is deleted. ``read`` reads
    counter files: where drivers live on, the torn episode ends at what it says.
    """
    found = []
    for folder in Spool(spec.spool).open_folders():
        try:
            found.append(Sealed(folder.name, recover_orphan(folder, spec, read)))
        except EpisodeError as err:
            found.append(Sealed(folder.name, None, f"cannot be recovered: {err}"))
    return found


def recover_orphan(folder: Path, spec: SyncSpec, read: Callable[[Path], Counts] = read_counters) -> Path:
    """Recover one open episode and seal it; return its folder in ``sealed/``.

    Raises:
        EpisodeError: If it holds nothing that can be saved.
    """
    if (folder / MANIFEST_FILE).exists():
        return finish_seal(folder)  # the crash came between signing and renaming
    result = recover(folder)
    if not result.episode_id:
        raise EpisodeError(f"{folder} holds no readable record; look at it and remove it by hand")
    with Episode(folder) as episode:
        closing = _closing(folder, spec, episode, dict(result.recorded), read)
    lost = f"recovered after a crash; {result.bytes_lost} bytes of torn records were cut"
    limitations = (lost, *closing.limitations)
    return seal(folder, replace(manifest_of(replace(closing, limitations=limitations)), truncated=True))


def _closing(
    folder: Path,
    spec: SyncSpec,
    episode: Episode,
    recorded: dict[tuple[str, int], int],
    read: Callable[[Path], Counts],
) -> Closing:
    tallies = {name: StreamTally(info) for name, info in episode.streams.items()}
    for found in episode.frames():
        tallies[found.frame.stream].add(found.frame, found.stamped)
    for entry in episode.models():
        if entry.stream in tallies:
            tallies[entry.stream].skew_ppm = entry.model.skew_ppm
            tallies[entry.stream].clock_method = entry.model.method
    arrivals = [tally.first_arrival_ns for tally in tallies.values() if tally.first_arrival_ns is not None]
    started_ns = min(arrivals, default=0)
    ended_ns = max((tally.last_arrival_ns for tally in tallies.values()), default=started_ns)
    limitations: list[str] = []
    accounts: list[tuple[str, int, Account]] = []
    try:
        journal = Journal.load(folder)
        spec = spec.model_copy(
            update={
                "rig": journal.rig,
                "operator": journal.operator,
                "task": journal.task,
                "instruction": journal.instruction,
                "consent": Path(journal.consent),
            }
        )
        for settled in settle_journal(journal, recorded, read):
            accounts.append((settled.stream, settled.instance, settled.account))
            if not settled.is_end_known:
                limitations.append(f"{settled.stream}: samples after the last recorded one are unknown")
    except EpisodeError as err:
        limitations.append(str(err))
        for (stream, instance), samples in recorded.items():
            accounts.append((stream, instance, Account(0, samples, samples)))
    return Closing(
        spool=spec.spool,
        spec=spec,
        episode_id=episode.episode_id,
        folder=folder,
        timeline=episode.timeline,
        reference=_reference(folder),
        tallies=tallies,
        accounts=tuple(accounts),
        written={key: Written(samples=samples) for key, samples in recorded.items()},
        alignments=_alignments(episode),
        marks=tuple((event.host_ns, event.detail) for event in episode.events() if event.kind == "mark"),
        limitations=tuple(limitations),
        rejected=Counter(),
        verdicts=(),
        clocks=(),
        calibration_id=_calibration_id(folder),
        ledger=ConsentStore(spec.consent).poll(),
        now_utc_ns=ended_ns + episode.timeline.utc_minus_host_ns,
        started_ns=started_ns,
        ended_ns=ended_ns,
    )


def _reference(folder: Path) -> str:
    try:
        return Journal.load(folder).reference
    except EpisodeError:
        return ""


def _alignments(episode: Episode) -> dict[str, StreamAlignment]:
    """Return what the rows on disk say of each stream's residuals."""
    found: dict[str, StreamAlignment] = {}
    for row in episode.rows():
        for match in row.matches:
            alignment = found.setdefault(match.stream, StreamAlignment())
            if match.outcome is Match.MATCHED:
                alignment.residual_ns.add(match.gap_ns or abs(match.residual_ns))
            else:
                alignment.ticks_without[match.outcome.value] += 1
    return found


def _calibration_id(folder: Path) -> str:
    path = folder / "calibration.yaml"
    if not path.is_file():
        return ""
    try:
        return RigCalibration.load(path).calibration_id
    except CalibrationError:
        return ""
