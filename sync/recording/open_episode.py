"""The episode that is being written: its files, accounts and journal, until its files are closed."""

import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sensorium.calibration.rig_document import RigCalibration
from sensorium.drivers.frame import StreamInfo
from sensorium.sync.episode.chunk_accounts import Written
from sensorium.sync.episode.entries import EpisodeEvent
from sensorium.sync.episode.facts import SessionFacts
from sensorium.sync.episode.files import CALIBRATION_FILE
from sensorium.sync.episode.writer import EpisodeWriter, WriterPolicy
from sensorium.sync.recording.accounting import Account
from sensorium.sync.recording.closing import ClosedAccount, ClosedStream, pack_reasons
from sensorium.sync.recording.journal import Journal, JournalInstance, JournalStream
from sensorium.sync.recording.spec import SyncSpec
from sensorium.sync.recording.streams import Instance
from sensorium.timebase import Timeline

NOT_STARTED = -1
"""Start of a replay's episode until its first frame says when that was."""


@dataclass(slots=True)
class StreamRecord:
    """What the recorder counts of one stream of the episode."""

    info: StreamInfo
    samples: int = 0
    denials: Counter[str] = field(default_factory=Counter)
    clock_events: Counter[str] = field(default_factory=Counter)


class OpenEpisode:
    """One episode from its first file to the note that lets it be sealed."""

    def __init__(
        self, spec: SyncSpec, episode_id: str, timeline: Timeline, reference: str, started_ns: int
    ) -> None:
        """Make its folder in ``open/``.

        Raises:
            EpisodeError: If the disk does not take it.
        """
        self.episode_id = episode_id
        self.folder = spec.spool / "open" / episode_id
        settings = spec.recorder
        policy = WriterPolicy(flush_s=settings.flush_s, sync_s=settings.sync_s)
        self.writer = EpisodeWriter(self.folder, episode_id, timeline, policy)
        self.timeline = timeline
        self.reference = reference
        self.started_ns = started_ns
        self.streams: dict[str, StreamRecord] = {}
        self.accounts: list[tuple[str, int, Account]] = []
        self.marks: list[tuple[int, str]] = []
        self.limitations: list[str] = list(spec.limitations)
        self._facts: SessionFacts = spec.facts
        self._consent = str(spec.consent)
        self._tolerance_ns = spec.tolerance_ns
        self._instances: dict[int, JournalInstance] = {}

    def join(self, instance: Instance) -> None:
        """Open the accounts of an instance, and note where they begin."""
        begins = {}
        for name, stream in instance.streams.items():
            self.writer.declare(stream.info)
            self.streams.setdefault(name, StreamRecord(stream.info))
            account = stream.account.open_account()
            self.accounts.append((name, instance.number, account))
            begins[name] = JournalStream(account.start_seq, pack_reasons(stream.account.reported))
        declare = instance.declare
        self._instances[instance.number] = JournalInstance(declare.device, declare.counters, begins)
        self._save_journal()

    def _save_journal(self) -> None:
        instances = {str(number): found for number, found in self._instances.items()}
        journal = Journal(self._facts, self.reference, self._tolerance_ns, self._consent, instances)
        journal.save(self.folder)

    def is_changed_by(self, infos: Iterable[StreamInfo]) -> bool:
        """Return whether a device came back with other settings than it had in this episode."""
        return any(info.name in self.streams and self.streams[info.name].info != info for info in infos)

    def store_calibration(self, path: Path | None, calibration: RigCalibration | None) -> None:
        """Put the calibration in force beside the data, and into it for viewers."""
        if path is not None and calibration is not None:
            shutil.copyfile(path, self.folder / CALIBRATION_FILE)
            self.writer.write_calibration(calibration, self.started_ns)

    def event(
        self, host_ns: int, kind: str, stream: str, detail: str, fields: Mapping[str, str] | None = None
    ) -> None:
        """Write down that something happened.

        Raises:
            WriteError: If the disk is full.
        """
        self.writer.write_event(EpisodeEvent(host_ns, kind, stream, detail, fields or {}))

    def balances(self, stream: str) -> list[Account]:
        """Return the accounts of a stream, one for each driver instance."""
        return [account for name, _, account in self.accounts if name == stream]

    @property
    def has_produced(self) -> bool:
        return any(account.produced for _, _, account in self.accounts)

    def closed_streams(self, by_pulses: Mapping[str, str]) -> tuple[ClosedStream, ...]:
        """Return what was counted of each stream; ``by_pulses`` names the clock method of triggered ones."""
        return tuple(
            ClosedStream(
                record.info, dict(record.denials), by_pulses.get(name, ""), dict(record.clock_events)
            )
            for name, record in self.streams.items()
        )

    def closed_accounts(self) -> tuple[ClosedAccount, ...]:
        """Return the balances with what the files hold; call when the writer has finished."""
        written = self.writer.written()
        return tuple(
            ClosedAccount.of(name, number, account, written.get((name, number), Written()))
            for name, number, account in self.accounts
        )

    def remove(self) -> None:
        """Delete what was written."""
        shutil.rmtree(self.folder)
