"""What `sensorium episodes` does; each function returns an exit code."""

from pathlib import Path
from typing import Any

from sensorium.agent.commands import display
from sensorium.agent.commands.output import print_json, say
from sensorium.agent.reporting.episode import write_report
from sensorium.agent.session.memory_folder import clear_up
from sensorium.agent.session.outcome import SessionResult, document
from sensorium.agent.session.supervisor import end_survivors
from sensorium.errors import SensoriumError, UsageError
from sensorium.sync.consent.grants import format_utc
from sensorium.sync.episode.files import PREPARED_FILE, REPORT_FILE
from sensorium.sync.episode.manifest import read_manifest
from sensorium.sync.episode.spool import Spool
from sensorium.sync.reading.locate import LocatedEpisode, Place, locate
from sensorium.sync.reading.rights import consent_of, rights_by
from sensorium.sync.thinking.orphans import recover_orphans
from sensorium.timebase import HostClock
from sensorium.uploader.receipt import upload_reasons, upload_state


def list_episodes(spool: Path, as_json: bool) -> int:
    """List the episodes of a spool with their upload state.

    Raises:
        UsageError: If there is no such folder.
    """
    found = _known(spool)
    rows: list[dict[str, Any]] = [
        {"episode": folder.name, "state": "open", "path": str(folder)}
        for folder in found.open_folders()
        if not (folder / PREPARED_FILE).exists()
    ]
    rows += [_sealed_row(folder) for folder in found.sealed_folders()]
    rows += [_sealed_row(folder) | {"state": gone_state(folder)} for folder in found.gone_folders()]
    if as_json:
        print_json({"episodes": rows})
    else:
        display.print_episodes(rows)
    return 0


def _sealed_row(folder: Path) -> dict[str, Any]:
    row: dict[str, Any] = {"episode": folder.name, "state": upload_state(folder).value, "path": str(folder)}
    reasons = upload_reasons(folder)
    if reasons:
        row["reasons"] = list(reasons)
    try:
        manifest = read_manifest(folder)
    except SensoriumError as err:
        return row | {"error": str(err)}
    return row | {
        "duration_s": manifest.duration_s,
        "bytes": sum(file.bytes for file in manifest.files),
        "start": format_utc(manifest.start_utc_ns),
        "quality": manifest.quality.status.value,
        "truncated": manifest.truncated,
    }


def gone_state(folder: Path) -> str:
    """Return ``evicted``, or ``deleted`` where no file is left anywhere."""
    try:
        return "evicted" if read_manifest(folder).files else "deleted"
    except SensoriumError:
        return "evicted"


def _session_of(episode: LocatedEpisode) -> SessionResult:
    """Return a finished episode as if its session had just ended; truth is only there for simulations."""
    folder = episode.folder
    runs = sorted((Spool.of(folder).root / "run").glob("*/truth")) if episode.place is Place.SPOOL else []
    return SessionResult([folder], runs[-1].parent if len(runs) == 1 else folder)


def _sealed(episode: str | Path, spool: Path) -> LocatedEpisode:
    found = locate(episode, spool)
    if found.manifest is None:
        read_manifest(found.folder)  # says what is missing
    return found


def show_episode(episode: str | Path, spool: Path, as_json: bool) -> int:
    """Print what an episode says about itself.

    Raises:
        UsageError: If there is no such episode.
        EpisodeError: If it is not sealed, or damaged.
    """
    located = _sealed(episode, spool)
    found = document(_session_of(located))
    found["verification"] = {"status": _state_of(located)}
    if as_json:
        print_json(found)
    else:
        display.print_session(found)
    return 0


def _state_of(episode: LocatedEpisode) -> str:
    if episode.is_delivered:
        return "delivered"
    is_gone = episode.folder.resolve().parent == Spool.of(episode.folder).gone_dir
    return gone_state(episode.folder) if is_gone else upload_state(episode.folder).value


def _known(spool: Path) -> Spool:
    if not spool.is_dir():
        raise UsageError(f"{spool} is not a spool; name one with --spool")
    return Spool(spool)


def recover_episodes(spool: Path, as_json: bool) -> int:
    """Recover and seal what a crash left open; exit code 3 if something could not be.

    Raises:
        UsageError: If there is no such folder.
        BusyError: If an agent owns the spool.
        EpisodeError: If the spool cannot be locked.
    """
    found = _known(spool.resolve())
    with found.lock():
        clock = HostClock()
        end_survivors(found.root, clock)  # they may still write what looks like an orphan
        cleared = clear_up(found.root, clock)
        recovered = recover_orphans(found.root, found.root / "consent")
    rows = [each.row() for each in recovered]
    if as_json:
        print_json({"recovered": rows, "warnings": cleared})
    else:
        for text in cleared:
            say(text)
        for row in rows:
            became = row["error"] or row["remark"] or f"recovered and sealed as {row['path']}"
            say(f"{row['episode']}: {became}")
        if not rows:
            say("nothing to recover")
    return 3 if any(row["error"] for row in rows) else 0


def report_episode(episode: str | Path, spool: Path, as_json: bool, consent: Path | None = None) -> int:
    """Write the report of an episode anew: beside it, or of a delivered copy into the current folder.

    Args:
        consent: Folder of the grants; None = that of its spool, or the state beside a delivered copy.

    Raises:
        UsageError: If there is no such episode.
        EpisodeError: If it is not sealed, or damaged, or the folder does not take the file.
    """
    located = _sealed(episode, spool)
    result = _session_of(located)
    assert located.manifest is not None, "it is sealed"
    rights = rights_by(located.manifest, consent_of(located, consent))
    report = located.output(REPORT_FILE)
    path = write_report(located.folder, document(result), result.run_dir, report, rights=rights)
    if as_json:
        print_json({"report": str(path)})
    else:
        say(str(path))
    return 0
