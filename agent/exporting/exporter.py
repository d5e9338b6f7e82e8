"""What an exporter is, and how one is run: the gate before it, the folder that appears whole after it.

A new format is a module with an :class:`Exporter` and a row in :data:`EXPORTERS`.
"""

import difflib
import importlib
import json
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from sensorium.drivers.frame import StreamInfo
from sensorium.errors import ConsentError, EpisodeError, ExportError, UsageError
from sensorium.sync.consent.grants import ConsentLedger, Purpose
from sensorium.sync.consent.remedy import GrantFolder, how_to_allow
from sensorium.sync.consent.use import denials
from sensorium.sync.episode.manifest import Manifest, manifest_digest
from sensorium.sync.episode.reader import Episode
from sensorium.sync.episode.spool import Spool, sync_folder, write_durably
from sensorium.sync.reading.rights import Consent, rights_by

EXPORTERS = {
    "csv": "sensorium.agent.exporting.csv_files:CsvExporter",
    "parquet": "sensorium.agent.exporting.parquet:ParquetExporter",
    "mcap": "sensorium.agent.exporting.mcap_file:McapExporter",
}
"""By the name that ``--to`` takes: ``module:class``, imported when it is asked for."""

SUMMARY_FILE = "export.json"


@dataclass(frozen=True, slots=True)
class ExportJob:
    """What one exporter is asked to write.

    Attributes:
        manifest: The episode's own, signed.
        streams: The streams to write, as the files declare them; ``holds`` was true of each.
        folder: Empty; only what is in it when ``write`` returns is kept, under the name that the user gave.
        report: To be called now and then with the number of samples written since the last call.
    """

    episode: Episode
    manifest: Manifest
    streams: tuple[StreamInfo, ...]
    folder: Path
    report: Callable[[int], None]


class Exporter(ABC):
    """One format that episodes can be written in."""

    @abstractmethod
    def holds(self, info: StreamInfo) -> bool:
        """Return whether the format has a place for such a stream."""

    @abstractmethod
    def write(self, job: ExportJob) -> Mapping[str, int]:
        """Write the chosen streams into the job's folder; return the samples written of each.

        Raises:
            SensoriumError: If the episode cannot be read.
            OSError: If the disk does not take it.
        """


@dataclass(frozen=True, slots=True)
class ExportedFile:
    name: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Export:
    """What an export came to; lies beside it as ``export.json``.

    Attributes:
        manifest_blake3: Of the manifest that the episode had.
        streams: Samples written of each stream.
        left_out: Streams of the episode that were not asked for, or that the format has no place for.
    """

    episode: str
    manifest_blake3: str
    to: str
    streams: Mapping[str, int]
    left_out: tuple[str, ...]
    files: tuple[ExportedFile, ...]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an export is, in samples."""

    done: int
    total: int


def load_exporter(name: str) -> Exporter:
    """Return the exporter called ``name``.

    Raises:
        UsageError: If there is none.
        ConfigError: If it needs a package that is not installed; names the extra.
    """
    if name not in EXPORTERS:
        near = difflib.get_close_matches(name, EXPORTERS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(EXPORTERS)}"
        raise UsageError(f"--to {name}: there is no such format; {hint}")
    module, _, found = EXPORTERS[name].partition(":")
    exporter: Exporter = getattr(importlib.import_module(module), found)()
    return exporter


def export_episode(
    path: Path,
    to: str,
    folder: Path,
    consent: Consent,
    now_utc_ns: int,
    names: Sequence[str] = (),
    progress: Callable[[Progress], None] = lambda _: None,
    grants: Path | None = None,
) -> Export:
    """Write a sealed episode in another format into a new folder, which appears only when all of it is there.

    Args:
        names: Streams to write; none = all that the format has a place for.
        consent: As it is now; every personal stream that is written needs a grant for ``export``.
        grants: Folder of the grants, for the command that a refusal names; None = the spool's.

    Raises:
        UsageError: If the format or a stream is unknown, or ``folder`` holds something already.
        ConsentError: If consent forbids one of the streams; nothing was written.
        EpisodeError: If the episode is not sealed, or damaged.
        ExportError: If the folder does not take it.
    """
    exporter = load_exporter(to)
    _check_target(folder)
    with Episode(path) as episode:
        manifest = episode.manifest
        if manifest is None:
            raise EpisodeError(
                f"{path} is not sealed; let the agent finish, or run: sensorium episodes recover"
            )
        chosen = _choose(exporter, to, episode, manifest, names)
        place = GrantFolder(Spool.of(path).root, grants)
        _check_consent(manifest, consent, now_utc_ns, [info.name for info in chosen], place)
        with _Scratch(folder) as scratch:
            report = _Counter(manifest, chosen, progress)
            streams = exporter.write(ExportJob(episode, manifest, chosen, scratch.folder, report))
            left_out = tuple(r.info.name for r in manifest.streams if r.info.name not in streams)
            export = Export(
                manifest.episode_id, manifest_digest(path), to, dict(streams), left_out, scratch.files()
            )
            scratch.finish(json.dumps(asdict(export), indent=1).encode() + b"\n")
    return export


def _check_target(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is there already; an export overwrites nothing: choose another folder")


def _choose(
    exporter: Exporter, to: str, episode: Episode, manifest: Manifest, names: Sequence[str]
) -> tuple[StreamInfo, ...]:
    held = tuple(info for info in episode.streams.values() if exporter.holds(info))
    if not names:
        if not held:
            raise UsageError(f"{episode.path} has no stream that {to} has a place for")
        return held
    for name in names:
        if name not in episode.streams:
            raise UsageError(_absence(name, episode, manifest))
        if not exporter.holds(episode.streams[name]):
            there = ", ".join(info.name for info in held) or "none"
            raise UsageError(f"{to} has no place for stream {name}; it has one for: {there}")
    return tuple(info for info in held if info.name in names)


def _absence(name: str, episode: Episode, manifest: Manifest) -> str:
    for record in manifest.streams:
        if record.info.name == name:
            return f"stream {name} was not recorded: {record.consent.reason or 'no sample came'}"
    return f"{episode.path} has no stream {name}; it has: {', '.join(episode.streams) or 'none'}"


def _check_consent(
    manifest: Manifest, consent: Consent, now_utc_ns: int, names: Sequence[str], place: GrantFolder
) -> None:
    denied = denials(rights_by(manifest, consent), manifest, Purpose.EXPORT, now_utc_ns, names)
    if denied:
        reasons = [f"stream {name}: {decision.reason}" for name, decision in denied.items()]
        remedies: tuple[str, ...] = ()
        if isinstance(consent, ConsentLedger):  # a delivered copy's state is changed where its log is
            remedies = how_to_allow(manifest, consent, Purpose.EXPORT, now_utc_ns, place, names)
        raise ConsentError(
            f"episode {manifest.episode_id} is not exported: {'; '.join(reasons)}; name other streams with --stream"
            + "".join(f"; or {remedy}" for remedy in remedies)
        )


class _Counter:
    """Adds up the samples that were written and says how far that is."""

    def __init__(
        self, manifest: Manifest, chosen: Sequence[StreamInfo], progress: Callable[[Progress], None]
    ) -> None:
        self._total = sum(manifest.stream(info.name).total.recorded for info in chosen)
        self._done = 0
        self._progress = progress

    def __call__(self, samples: int) -> None:
        self._done += samples
        self._progress(Progress(self._done, self._total))


class _Scratch:
    """A hidden folder beside the target that takes its place in one step, or is gone."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self.folder = target.with_name(f".{target.name}.partial-{os.getpid()}")

    def __enter__(self) -> "_Scratch":
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            self.folder.mkdir(mode=0o700)
        except OSError as err:
            raise self._trouble(err) from err
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        if isinstance(error, OSError):
            raise self._trouble(error) from error

    def files(self) -> tuple[ExportedFile, ...]:
        found = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return tuple(
            ExportedFile(path.relative_to(self.folder).as_posix(), path.stat().st_size) for path in found
        )

    def finish(self, summary: bytes) -> None:
        """Add the summary, and give the folder its name unless somebody else took it meanwhile."""
        write_durably(self.folder / SUMMARY_FILE, summary)
        for path in self.folder.rglob("*"):
            _sync(path)  # a name that survives a power cut must not stand for bytes that did not
        self.folder.rename(self._target)
        sync_folder(self._target.parent)

    def _trouble(self, error: OSError) -> ExportError:
        return ExportError(
            f"export {self._target} cannot be written: {error.strerror or error}; nothing is left"
        )


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
